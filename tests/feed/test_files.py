"""How feeds are written: whole or not at all, only with news, and never at the cost of anything else."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PosixPath
from threading import Thread

import pytest
from conftest import LogLines
from msgspec import structs
from support.processes import short_folder

from syncd.config import FeedConfig
from syncd.database.rows import PUBLIC, PublicEvent
from syncd.feed.files import Feeds, NotReplaced, obstacle, replace
from syncd.feed.rendering import render

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def event(event_id: str = "1", tags: tuple[str, ...] = (), **shown: object) -> PublicEvent:
    values = dict.fromkeys(PUBLIC) | {"id": event_id, "unlimited": False, "is_full": False} | shown
    return PublicEvent(values, "12345", [*tags], NOON, [])


@pytest.fixture
def feed(tmp_path: Path) -> FeedConfig:
    """Return a feed into a folder that is there."""
    return FeedConfig(path=tmp_path / "events.json", format="json")


@pytest.fixture
def umask() -> Iterator[None]:
    """Keep what is made from everybody, as some services do."""
    before = os.umask(0o177)
    yield
    os.umask(before)


def left_beside(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if each != path)


def state(path: Path) -> tuple[int, ...]:
    """Return all of a file's state but when it was read last: syncd reads it to compare."""
    found = path.stat()
    owner = found.st_nlink, found.st_uid, found.st_gid, found.st_mode
    return found.st_dev, found.st_ino, *owner, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def test_a_file_is_written_without_news(feed: FeedConfig) -> None:
    """The same content leaves the file as it is, for another process too; other content replaces it."""
    asyncio.run(Feeds([]).write(feed, [event()]))
    first, was = feed.path.stat(), state(feed.path)
    for _ in range(2):
        asyncio.run(Feeds([]).write(feed, [event()]))
    assert state(feed.path) == was
    asyncio.run(Feeds([]).write(feed, [event(is_full=True)]))
    second = feed.path.stat()
    assert second.st_ino != first.st_ino
    assert feed.path.read_bytes() == render("json", [event(is_full=True)])
    assert left_beside(feed.path) == []


def test_what_was_written_and_what_failed_is_counted_wrongly(feed: FeedConfig, tmp_path: Path) -> None:
    """A file is counted when it is replaced, and each failure; one that has no news is neither."""
    feeds, nowhere = Feeds([]), structs.replace(feed, path=tmp_path / "none" / "events.json")
    for shown in (event(), event(), event(is_full=True)):
        for each in (feed, nowhere):
            asyncio.run(feeds.write(each, [shown]))
    assert (feeds.written, feeds.failed) == (2, 3)


def test_a_reader_sees_half_a_file(feed: FeedConfig) -> None:
    """Whoever has opened the old file reads it to its end: it is replaced, not overwritten."""
    asyncio.run(Feeds([]).write(feed, [event()]))
    with feed.path.open("rb") as reader:
        asyncio.run(Feeds([]).write(feed, [event(is_full=True)]))
        assert reader.read() == render("json", [event()])


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664])
def test_the_umask_shuts_the_web_server_out(feed: FeedConfig, umask: None, mode: int) -> None:
    """The file has the mode that is asked for, whatever the umask, also where only that is new."""
    asyncio.run(Feeds([]).write(structs.replace(feed, mode=0o604), [event()]))
    asyncio.run(Feeds([]).write(structs.replace(feed, mode=mode), [event()]))
    assert stat.S_IMODE(feed.path.stat().st_mode) == mode


@pytest.mark.parametrize(("step", "mode"), [("os.fchmod", 0o600), ("Path.replace", 0o644)])
def test_a_killed_process_spoils_the_file(feed: FeedConfig, step: str, mode: int) -> None:
    """One killed between writing and renaming leaves the old file, and the next clears up after it.

    Until the new one is whole nobody else can open it, whatever the umask.
    """
    replace(feed.path, b"old", 0o644)
    code = (
        "import os, signal, sys; from pathlib import Path; from syncd.feed.files import replace\n"
        f"{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.umask(0)\n"
        "replace(Path(sys.argv[1]), b'new', 0o644)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(feed.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert feed.path.read_bytes() == b"old"
    assert left_beside(feed.path) == [".events.json.new"]
    assert stat.S_IMODE((feed.path.parent / ".events.json.new").stat().st_mode) == mode
    assert replace(feed.path, b"newer", 0o644)
    assert feed.path.read_bytes() == b"newer"
    assert left_beside(feed.path) == []


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_followed(feed: FeedConfig, tmp_path: Path, dangling: bool) -> None:
    """A symbolic link in the file's place is neither written through nor replaced."""
    target = tmp_path / "shadow"
    if not dangling:
        target.write_text("secret")
    feed.path.symlink_to(target)
    with pytest.raises(NotReplaced, match="symbolic link"):
        replace(feed.path, b"new", 0o644)
    assert "symbolic link" in (obstacle(feed) or "")
    assert feed.path.is_symlink()
    assert target.exists() is not dangling
    assert dangling or target.read_text() == "secret"


def test_a_link_beside_is_followed(feed: FeedConfig, tmp_path: Path) -> None:
    """A link under the name that is written beside is cleared away, not written through."""
    target = tmp_path / "shadow"
    target.write_text("secret")
    (tmp_path / ".events.json.new").symlink_to(target)
    assert replace(feed.path, b"new", 0o644)
    assert (target.read_text(), feed.path.read_bytes()) == ("secret", b"new")
    assert not feed.path.is_symlink()


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_something_else_is_replaced(feed: FeedConfig, kind: str) -> None:
    """What is no regular file stays, and is not waited for."""
    match kind:
        case "folder":
            feed.path.mkdir()
        case "pipe":
            os.mkfifo(feed.path)
        case _:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(feed.path))
    before = state(feed.path)
    with pytest.raises(NotReplaced, match="no regular file"):
        replace(feed.path, b"new", 0o644)
    assert state(feed.path) == before
    assert left_beside(feed.path) == []


def test_a_pipe_that_comes_in_between_is_waited_for(feed: FeedConfig) -> None:
    """Whoever puts a pipe in the file's place as it is looked at holds nobody up, and has it replaced."""

    class Swapped(PosixPath):
        """A path at which somebody puts a pipe as soon as it was looked at."""

        def lstat(self) -> os.stat_result:
            found = super().lstat()
            self.unlink()
            os.mkfifo(self)
            return found

    replace(feed.path, b"same", 0o644)
    done = list[bool]()
    writing = Thread(target=lambda: done.append(replace(Swapped(feed.path), b"same", 0o644)), daemon=True)
    writing.start()
    writing.join(30)
    assert done == [True]
    assert feed.path.read_bytes() == b"same"


def test_a_full_disk_takes_the_old_file_with_it(feed: FeedConfig, log_lines: LogLines) -> None:
    """Where the new one does not fit, the old one stays and nothing is left beside it."""
    import resource

    feeds = Feeds([])
    asyncio.run(feeds.write(feed, [event()]))
    before = feed.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # or the process would end
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        asyncio.run(feeds.write(feed, [event(name="x" * 10_000)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert feeds.errors == {feed.path: "File too large"}
    assert feed.path.read_bytes() == before
    assert left_beside(feed.path) == []


def test_one_feed_keeps_another_from_being_written(feed: FeedConfig, log_lines: LogLines) -> None:
    """A feed's error is its own: the others are written; it is told once per cause, and when it is over."""
    folder = feed.path.parent / "late"
    late = FeedConfig(path=folder / "events.csv", format="csv")
    feeds = Feeds([])
    for each in (late, feed) * 3:
        asyncio.run(feeds.write(each, [event()]))
    assert feed.path.exists()
    assert feeds.errors == {late.path: f"the folder {folder} is missing"}
    assert obstacle(late) == f"{late.path}: the folder {folder} is missing"
    (failed,) = log_lines.of("feed.")
    assert failed["event"] == "feed.failed"
    assert f"{late.path} was not written: the folder {folder} is missing" in failed["message"]
    folder.write_text("no folder")
    asyncio.run(feeds.write(late, [event()]))
    assert obstacle(late) == f"{late.path}: {folder} is not a folder"
    folder.unlink()
    folder.mkdir()
    asyncio.run(feeds.write(late, [event()]))
    assert late.path.exists()
    assert feeds.errors == {}
    assert obstacle(late) is None
    assert [line["event"] for line in log_lines.of("feed.")] == [
        "feed.failed",
        "feed.failed",
        "feed.recovered",
    ]


def test_a_bug_in_one_format_ends_the_daemon(feed: FeedConfig, log_lines: LogLines) -> None:
    """Whatever a library raises over some value is that feed's error."""
    odd = event(name=type("a secret", (), {})())
    with pytest.raises(TypeError, match="a secret"):
        render(feed.format, [odd])
    feeds = Feeds([])
    asyncio.run(feeds.write(feed, [odd]))
    assert feeds.errors == {feed.path: "unexpected TypeError"}
    assert "a secret" not in log_lines.text


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root for a while")
def test_a_closed_folder_is_good_for_check() -> None:
    """A folder that this user may not write to is said to be one, and the old file in it stays."""
    code = (
        "import asyncio, os, sys; from pathlib import Path; from syncd.config import FeedConfig\n"
        "from syncd.feed.files import Feeds, obstacle; os.setuid(65534)\n"
        "feed, feeds = FeedConfig(path=Path(sys.argv[1]), format='json'), Feeds([])\n"
        "asyncio.run(feeds.write(feed, [])); print(obstacle(feed)); print(*feeds.errors.values())"
    )
    with short_folder() as folder:
        path = folder / "events.json"
        replace(path, b"old", 0o644)
        folder.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
        )
        assert path.read_bytes() == b"old"
    assert done.stdout.splitlines() == [
        f"{path}: this user may not write to the folder {folder}",
        "Permission denied",
    ]


@pytest.mark.parametrize(
    ("tags", "expected"), [((), ["1", "2", "3"]), (("site",), ["1"]), (("site", "stage"), ["1", "2"])]
)
def test_an_event_without_the_tag_is_shown(
    feed: FeedConfig, tags: tuple[str, ...], expected: list[str]
) -> None:
    """With tags, the events that have one of them are in the file and no others."""
    events = [event("1", ("site", "other")), event("2", ("stage",)), event("3")]
    asyncio.run(Feeds([]).write(structs.replace(feed, tags=tags), events))
    kept = [one for one in events if one.shown["id"] in expected]
    assert feed.path.read_bytes() == render("json", kept)
