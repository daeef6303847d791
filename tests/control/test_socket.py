"""The control server's socket and connections: who gets in, what lasts, and clients that misbehave."""

import asyncio
import contextlib
import grp
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from conftest import LogLines
from support.control_stub import ENDED, Client, Stub, answering, ask, refused, serving
from support.processes import as_nobody, short_folder

import syncd
from syncd.control import api
from syncd.control.server import ControlServer, socket_obstacle
from syncd.errors import AlreadyRunning, ConfigError
from syncd.log.redact import Redactor
from syncd.model import Progress, Run


@pytest.fixture
def path() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder / "syncd.sock"


async def raw(path: Path, sent: bytes) -> bytes:
    """Return all that comes back for these bytes, until the server hangs up."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    received = await reader.read()
    writer.close()
    return received


def running() -> tuple[Stub, Run]:
    """Return a daemon in which run 43 is in progress."""
    stub = Stub()
    run = stub.known[43]
    run.state = "running"
    return stub, run


async def is_well(client: Client) -> bool:
    return (await asyncio.wait_for(client.get("/v1/status"), 5)).status_code == 200


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.01)


# --- progress


@pytest.fixture
def lively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stream give a sign of life all the time."""
    monkeypatch.setattr(api, "KEEP_ALIVE_S", 0.02)


def test_who_watches_a_run_sees_each_step_and_its_end(path: Path, lively: None) -> None:
    """A line for each step as it happens, an empty one as a sign of life, the ended run last."""
    stub, run = running()

    async def use(client: Client) -> None:
        steps = [Progress("events", 0, 2), Progress("events", 1, 2)]
        async with client.stream("GET", "/v1/runs/43/progress") as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            assert answer.headers["syncd-version"] == syncd.__version__
            lines = answer.aiter_lines()
            assert await anext(lines) == ""
            for step in steps:
                stub.steps.put_nowait(step)
                told = await anext(line async for line in lines if line)
                assert msgspec.json.decode(told, type=Progress) == step
            run.state, run.outcome = "done", "ok"
            rest = [line async for line in lines if line]
        assert [msgspec.json.decode(line, type=Run) for line in rest] == [run]

    ask(path, stub, use)


def test_the_progress_of_an_ended_run_is_its_end(path: Path) -> None:
    """Who comes too late gets the ended run at once."""

    async def use(client: Client) -> None:
        answer = await client.get("/v1/runs/42/progress")
        assert msgspec.json.decode(answer.text.strip(), type=Run) == ENDED

    ask(path, Stub(), use)


def test_a_watcher_who_leaves_is_let_go(path: Path, lively: None) -> None:
    """The connection of a client that hung up in the middle of a run is not kept until the run ends."""
    stub, _ = running()

    async def use(client: Client) -> None:
        async with client.stream("GET", "/v1/runs/43/progress") as answer:
            assert await anext(answer.aiter_lines()) == ""
            assert stub.watchers == 1
        await until(lambda: stub.watchers == 0)
        assert await is_well(client)

    ask(path, stub, use)


def test_a_stop_does_not_wait_for_those_who_watch(path: Path) -> None:
    """A server with an open progress stream and an idle connection ends all the same."""
    stub, _ = running()

    async def main() -> None:
        async with serving(path, stub) as client:
            idle = asyncio.create_task(raw(path, b""))
            watching = asyncio.create_task(raw(path, b"GET /v1/runs/43/progress HTTP/1.1\r\nHost: a\r\n\r\n"))
            await until(lambda: stub.watchers == 1)
            assert await is_well(client)
        assert await idle == b""
        assert (await watching).startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


def test_a_question_of_the_last_instant_is_dropped(path: Path) -> None:
    """Who was let in before a stop, and asks once nobody else is let in any more, still gets an answer."""

    async def ask_late(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                (await asyncio.open_unix_connection(path))[1].close()
                await asyncio.sleep(0.005)
        writer.write(b"GET /v1/status HTTP/1.0\r\n\r\n")

    async def main() -> bytes:
        async with serving(path, Stub()):
            reader, writer = await asyncio.open_unix_connection(path)
            asking = asyncio.create_task(ask_late(writer))
        await asking
        answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(main()).startswith(b"HTTP/1.1 200 ")


# --- clients that misbehave


def test_an_old_client_gets_a_whole_answer(path: Path) -> None:
    """An HTTP/1.0 request, as of a shell script or a plain proxy, is answered and the connection closed."""

    async def use(_client: Client) -> None:
        ended = msgspec.json.encode(ENDED) + b"\n"
        for target, wanted in ((b"/healthz", b"ok\n"), (b"/v1/runs/42/progress", ended)):
            answer = await raw(path, b"GET %b HTTP/1.0\r\n\r\n" % target)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b" 200 " in head.partition(b"\r\n")[0]
            assert b"transfer-encoding" not in head.lower()
            assert body == wanted

    ask(path, Stub(), use)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00" * 4096 + b"\r\n\r\n",
        b"GET /v1/status\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\nX\x00: 1\r\n\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000,
        b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["nuls", "no version", "no host", "nul in header", "odd path", "endless header", "bad length", "tls"],
)
def test_what_is_no_http_gets_an_error_of_the_usual_shape(path: Path, sent: bytes) -> None:
    """Garbage is answered with 400, the version and the one error shape, and the connection is closed."""

    async def use(client: Client) -> None:
        head, _, body = (await asyncio.wait_for(raw(path, sent), 5)).partition(b"\r\n\r\n")
        first, *fields = head.decode().split("\r\n")
        headers = dict(field.split(": ", 1) for field in fields)
        status = int(first.split()[1])
        assert refused(httpx.Response(status, headers=headers, content=body)) == (400, "bad_request")
        assert await is_well(client)

    ask(path, Stub(), use)


def test_half_requests_hold_nobody_up(path: Path, log_lines: LogLines) -> None:
    """Clients that send half a request and wait, or leave, neither disturb others nor fill the log."""
    stub = Stub()
    halves = (
        b"",
        b"G",
        b"GET /v1/status HTTP/1.1\r\nHost",
        b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    )

    async def use(client: Client) -> None:
        writers = []
        for half in halves * 20:
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(half)
            await writer.drain()
            writers.append(writer)
        assert await is_well(client)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        for _ in range(5):
            assert await is_well(client)

    ask(path, stub, use)
    assert stub.asked == []
    assert [line for line in log_lines.of() if line["level"] not in ("TRACE", "DEBUG", "INFO")] == []


def test_everybody_who_asks_at_once_is_answered(path: Path) -> None:
    """Hundreds of status requests, each on a connection of its own, are all answered."""

    async def use(_: Client) -> None:
        request = b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        received = await asyncio.gather(*(raw(path, request) for _ in range(300)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in received)

    ask(path, Stub(), use)


# --- who asks, and the socket


def test_nobody_can_ask_in_the_name_of_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers of proxies say nothing about who asks, even where the environment trusts every proxy."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    stub = Stub()

    async def use(client: Client) -> None:
        await client.post("/v1/runs", headers={"X-Forwarded-For": "0", "X-Forwarded-Proto": "https"})

    ask(path, stub, use)
    assert (stub.asked[0][-1].uid, stub.asked[0][-1].pid) == (os.getuid(), os.getpid())


def a_group_of_mine() -> int:
    others = [each for each in os.getgroups() if each != os.getegid()]
    return others[0] if others else os.getegid()


def test_nobody_gets_in_before_mode_and_group_are_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is the owner's alone until its group and mode are those of the configuration."""
    seen: list[int] = []
    chown = os.chown

    def look(*arguments: object) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chown(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "chown", look)
    gid = a_group_of_mine()
    before = os.umask(0)
    try:
        server = ControlServer(path, mode=0o660, group=grp.getgrgid(gid).gr_name)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    try:
        assert seen == [0o600]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == gid
    finally:
        server.remove()


def test_a_socket_is_gone_with_its_server(path: Path) -> None:
    """After a stop nobody finds a socket that would not answer, and the next start is free to make one."""
    for _ in range(2):
        server = ControlServer(path, mode=0o600, group=None)
        assert path.is_socket()
        server.remove()
        server.remove()
        assert not path.exists()


def test_a_socket_made_anew_during_a_stop_lets_more_in(
    path: Path, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that comes while a removed socket is made again waits for that, and removes it."""
    monkeypatch.setattr("syncd.control.server.LOOK_EVERY_S", 0.01)

    async def main() -> None:
        server = ControlServer(path, mode=0o600, group=None)
        serving = asyncio.create_task(server.serve(answering(Stub(), Redactor(), most_waiting=1)))
        await server.up.wait()
        loop = asyncio.get_running_loop()
        begun, stopped = asyncio.Event(), threading.Event()

        def obstacle(*found: Any) -> str | None:
            loop.call_soon_threadsafe(begun.set)
            assert stopped.wait(10)
            return socket_obstacle(*found)

        monkeypatch.setattr("syncd.control.server.socket_obstacle", obstacle)
        os.unlink(path)  # noqa: PTH108 - not from a thread
        await begun.wait()
        server.stop()
        stopped.set()
        await serving
        server.remove()

    asyncio.run(main())
    assert not path.exists()
    assert log_lines.of("socket.remade") == []


@pytest.mark.parametrize("kind", ["socket", "file", "link to the socket"])
def test_a_stop_removes_what_another_program_put_there(path: Path, kind: str) -> None:
    """Whatever is at the path of a socket that was removed meanwhile stays, and answers."""
    server = ControlServer(path, mode=0o660, group=None)
    aside = path.with_name("aside")
    path.rename(aside)
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "socket":
            other.bind(str(path))
        elif kind == "file":
            path.write_text("theirs")
        else:
            path.symlink_to(aside)
        before = path.lstat().st_ino
        server.remove()
        assert path.lstat().st_ino == before
        server.remove()
    assert path.lstat().st_ino == before


def test_what_a_killed_daemon_left_behind_is_replaced(path: Path) -> None:
    """A socket on which nobody answers does not hinder a start."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    inode = path.stat().st_ino
    keep = path.with_name("keep")
    path.rename(keep)  # so that its inode is not given out again
    os.link(keep, path)
    ControlServer(path, mode=0o600, group=None).remove()
    assert keep.stat().st_ino == inode
    ask(path, Stub(), is_fine)


async def is_fine(client: Client) -> None:
    assert await is_well(client)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to a socket"])
def test_what_is_no_socket_is_never_removed(path: Path, kind: str) -> None:
    """A wrong `control.socket` costs a message, not somebody's file."""
    elsewhere = path.with_name("elsewhere")
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "file":
            path.write_text("precious")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(elsewhere)
            if kind == "link to a socket":
                other.bind(str(elsewhere))
        before = path.lstat()
        with pytest.raises(ConfigError, match=r"control\.socket.* no socket"):
            ControlServer(path, mode=0o600, group=None)
    assert path.lstat().st_ino == before.st_ino
    assert kind != "file" or path.read_text() == "precious"


def test_a_socket_that_answers_is_not_stolen(path: Path) -> None:
    """A start is refused while another program answers there, and only as long as that."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(AlreadyRunning, match="something answers"):
            ControlServer(path, mode=0o600, group=None)
        assert path.is_socket()
    ControlServer(path, mode=0o600, group=None).remove()


def test_a_second_syncd_is_refused_before_it_answers(path: Path) -> None:
    """Between making its socket and answering on it, the first syncd is protected by its lock."""
    server = ControlServer(path, mode=0o600, group=None)
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        ControlServer(path, mode=0o600, group=None)
    assert path.is_socket()
    server.remove()


@pytest.mark.parametrize(
    ("name", "group", "reason"),
    [
        ("x" * 100, None, "too long"),
        ("missing/syncd.sock", None, "No such file"),
        ("syncd.sock", "no-such-group", "no group no-such-group"),
    ],
)
def test_a_socket_that_cannot_be_made_says_why(path: Path, name: str, group: str | None, reason: str) -> None:
    """The message names the key and the reason, and a failed start leaves no socket behind."""
    wrong = path.parent / name
    with pytest.raises(ConfigError, match=rf"control\.(socket|group): .*{reason}"):
        ControlServer(wrong, mode=0o600, group=group)
    assert not wrong.exists()
    assert not path.exists()


def test_a_group_that_cannot_be_given_leaves_nothing_behind(path: Path) -> None:
    """Where the group cannot be set the socket is taken back; without one it is made.

    Nobody but an administrator may give a file to a group that he is not in.
    """
    mine = {os.getegid(), *os.getgroups()}
    group = next(each.gr_name for each in grp.getgrall() if each.gr_gid not in mine)
    path.parent.chmod(0o777)
    with as_nobody():
        with pytest.raises(ConfigError, match="Operation not permitted"):
            ControlServer(path, mode=0o660, group=group)
        assert not path.exists()
        ControlServer(path, mode=0o660, group=None).remove()
