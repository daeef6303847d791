"""`syncd demo`, the first thing that anybody sees: as a real process, with its own stand-in."""

import http.client
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.processes import (
    PATIENCE_S,
    SYNCCTL,
    SYNCD,
    environment,
    eventually,
    short_folder,
    syncd,
    write_config,
)
from support.variants import mostly_slow

from syncd.cli import site
from syncd.cli.demo import LEFT, remove


class Screen:
    """A running demo and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.text += line

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows something."""
        found: re.Match[str] = eventually(lambda: re.search(pattern, self.text))
        return found

    def leave(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End whatever is left."""
        self.process.kill()
        self.process.wait()
        self._reader.join()


def _is_refused(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def demo(*arguments: str, **environ: str) -> Iterator[Screen]:
    command = [*SYNCD, "demo", "--interval", "1s", "--events", "3", *arguments]
    with subprocess.Popen(
        command, env=environment(**environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        screen = Screen(process)
        try:
            yield screen
        finally:
            screen.close()


def test_first_minute_disappoints() -> None:
    """The table comes by itself, further runs follow, syncctl works as printed, Ctrl-C leaves nothing."""
    with demo() as screen:
        folder = Path(screen.shows(r"mirrors it into (\S+)/syncd\.db every 1 s")[1])
        screen.shows("run 1 ok in")
        screen.shows(r"In another terminal:\n")
        line = screen.shows(r"  export SYNCD_SOCKET=(\S+)\n  syncctl status\n")
        screen.shows(r"  syncctl watch\n  syncctl page\n")
        assert "Fête des lucioles" in screen.text  # the table of places
        screen.shows(r"run 3 \w+ in .* \(interval\)")

        environ = environment(SYNCD_SOCKET=line[1])
        done = subprocess.run(
            [*SYNCCTL, "run-now", "--json"], env=environ, capture_output=True, text=True, check=False
        )
        assert json.loads(done.stdout)["state"] == "done"
        status = subprocess.run(
            [*SYNCCTL, "status"], env=environ, capture_output=True, text=True, check=False
        )
        assert status.returncode == 0
        assert "every" not in status.stderr
        assert screen.leave(signal.SIGINT) == 0
        assert not folder.exists()
        assert "Traceback" not in screen.text
        assert screen.text.count("In another terminal:") == 1


@pytest.mark.slow("starts a demo of its own")
def test_a_closed_terminal_leaves_the_demo_behind() -> None:
    """When the terminal is closed, it stops as by Ctrl-C."""
    with demo() as screen:
        folder = Path(screen.shows(r"mirrors it into (\S+)/syncd\.db")[1])
        screen.shows(r"In another terminal:\n")
        assert screen.leave(signal.SIGHUP) == 0
        assert not folder.exists()


@pytest.mark.slow("starts a demo and a page")
def test_a_second_ctrl_c_leaves_the_demo_behind() -> None:
    """It ends at once, and its files and its page go with it all the same."""
    with short_folder() as temporary, demo("--site", TMPDIR=f"{temporary}") as screen:
        address = screen.shows(r"opens it once:\n  http://([\d.]+:\d+)")[1]
        assert list(temporary.iterdir())
        screen.process.send_signal(signal.SIGINT)
        time.sleep(0.02)  # two at one instant are one
        assert screen.leave(signal.SIGINT) in (0, 1)
        assert not list(temporary.iterdir())
        eventually(lambda: _is_refused(address))


@pytest.mark.slow("starts a demo")
def test_ctrl_c_after_the_last_line_is_an_error() -> None:
    """What takes itself down already ends as it was going to."""
    with short_folder() as temporary, demo(TMPDIR=f"{temporary}") as screen:
        screen.shows(r"In another terminal:\n")
        screen.process.send_signal(signal.SIGINT)
        screen.shows(r" stopped\n")
        assert screen.leave(signal.SIGINT) == 0
        assert not list(temporary.iterdir())


def test_files_made_meanwhile_keep_the_folder(tmp_path: Path) -> None:
    """Whoever still writes while a demo is cut off keeps nothing of its folder there."""
    home = tmp_path / "demo"
    home.mkdir()
    over = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            with suppress(OSError):
                (home / f"{number}").write_bytes(b"")

    with ThreadPoolExecutor() as threads:
        threads.submit(write)
        try:
            eventually(lambda: len(list(home.iterdir())) > 100)
            remove(home)
        finally:
            over.set()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow("takes many runs")
def test_demo_waits_for_a_limit_of_its_own() -> None:
    """However many events there are, the first table has every figure: nobody's requests are spared here."""
    with demo("--events", "90") as screen:
        screen.shows(r"In another terminal:\n")
        left = re.findall(r"^9000\d\d .* (\S+) +\d* +[\d.]+ s", screen.text, re.MULTILINE)
        assert len(left) > 70
        assert "?" not in left
        assert "requests a minute" not in screen.text
        assert screen.leave(signal.SIGINT) == 0


@pytest.mark.slow("starts a demo")
def test_query_that_is_printed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that looks into the database works as it is printed, with sqlite3 and without."""
    with demo("--attendees", "full") as screen:
        query = screen.shows(r"with one query:\n  (.+)\n")[1]
        home = screen.shows(r"mirrors it into (\S+)/syncd\.db")[1]
        monkeypatch.setattr(shutil, "which", lambda _: None)
        for command in (query, site.sql(Path(home) / "syncd.db", LEFT)):
            shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
            assert "Atelier vannerie sauvage" in shown
        people = site.sql(
            Path(home) / "syncd.db", "SELECT count(*), count(firstname) FROM billetweb_attendees"
        )
        shown = subprocess.run(["sh", "-c", people], capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"\(([1-9]\d+), \1\)\n", shown)


@pytest.mark.slow("waits for an event that sells out")
def test_newcomer_sees_no_badge_turn_full() -> None:
    """With `--site` a badge, the feeds and the page say within a minute that an event is sold out."""
    with demo("--site") as screen:
        home = Path(screen.shows(r"mirrors it into (\S+)/syncd\.db")[1])
        address = urlsplit(screen.shows(r"opens it once:\n  (http://127\.0\.0\.1:\d+/\?token=\S+)\n")[1])
        table = screen.shows(r"turns full, and back:\n  (.+)\n")[1]
        screen.shows("The site shows FULL: fete-des-lucioles\n")
        shown = subprocess.run(["sh", "-c", table], capture_output=True, text=True, check=True).stdout
        assert re.search(r"fete-des-lucioles\W+0\W+120\W+1\b", shown)
        assert re.search(r"900002\W+\d+\W+95\W+0\b", shown)  # newer rows of a site hold the number
        feed = json.loads((home / "events.json").read_text())
        (full,) = [each for each in feed["events"] if each["is_full"]]
        assert full["ext_id"] == "fete-des-lucioles"
        assert "SoldOut" in (home / "events.jsonld").read_text()
        assert (home / "events.ics").exists()
        assert (home / "events.csv").exists()

        def ask(target: str, cookie: str = "") -> tuple[int, str, str]:
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE_S)
            with closing(connection):
                connection.request("GET", target, headers={"Cookie": cookie})
                answer = connection.getresponse()
                told = answer.headers.get("Set-Cookie", "").partition(";")[0]
                return answer.status, answer.read().decode(), told

        assert ask("/")[0] == 403
        _, welcome, cookie = ask(f"/?{address.query}")
        folder = re.search('url=(/[^/"]+/)"', welcome)
        assert folder
        status, page, _ = ask(folder[1], cookie)
        assert status == 200
        assert "Fête des lucioles" in page
        assert ask(f"/?{address.query}")[0] == 403
        assert screen.leave(signal.SIGTERM) == 0
        with pytest.raises(ConnectionRefusedError):
            ask("/")
        assert not home.exists()


@pytest.mark.slow("starts several demos")
def test_kept_folder_is_removed() -> None:
    """With `--dir` its files stay, and the next demo goes on from them; the key is for the owner alone."""
    with short_folder() as home:
        folder = home / "kept"
        for expected in (1, 2):
            with demo("--dir", str(folder)) as screen:
                screen.shows(r"In another terminal:\n")
                assert screen.leave(signal.SIGTERM) == 0
            assert screen.text.count("run 1 ok") == (expected == 1)
        assert {"config.toml", "billetweb.key", "syncd.db"} <= {path.name for path in folder.iterdir()}
        assert not (folder / "syncd.sock").exists()
        assert (folder / "billetweb.key").stat().st_mode & 0o077 == 0


FOREIGN = {
    "config.toml": '[billetweb]\nuser = "777"\n',
    "billetweb.key": "0123456789abcdef\n",
    "syncd.db": "the database of a real account",
    "syncd.db-wal": "what was not yet in it",
    "site.db": "the database of a real site",
    "events.ics": "BEGIN:VCALENDAR",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("is_link", mostly_slow([False, True], "each starts a process"))
def test_demo_overwrites_what_it_did_not_make(name: str, is_link: bool) -> None:
    """A folder with a file of somebody's where the demo would write is refused by name, and left as it is."""
    with short_folder() as home:
        path = home / "etc" / name
        path.parent.mkdir()
        real = home / "real" if is_link else path
        real.write_text(FOREIGN[name])
        if is_link:
            path.symlink_to(real)
        done = syncd("demo", "--dir", path.parent)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (78, "")
        assert f"--dir: {path} is there and was not made by a demo" in line
        assert real.read_text() == FOREIGN[name]
        assert [file.name for file in path.parent.iterdir()] == [name]


def test_demo_takes_settings_made_of_its_own_for_its_own() -> None:
    """Settings copied from a demo's and made real are somebody's, and so is a key put in place of its own."""
    with short_folder() as home:
        config = write_config(home, "https://www.billetweb.fr/api")
        config.write_text(
            f"# The demo's configuration. Change it and run: syncctl reload\n{config.read_text()}"
        )
        before = config.read_text()
        assert f"{config} is there" in syncd("demo", "--dir", home).stderr
        assert config.read_text() == before

        config.write_text(before.replace("https://www.billetweb.fr", "http://127.0.0.1:1"))
        (home / "billetweb.key").write_text(FOREIGN["billetweb.key"])
        assert f"{home}/billetweb.key is there" in syncd("demo", "--dir", home).stderr
        assert (home / "billetweb.key").read_text() == FOREIGN["billetweb.key"]


@pytest.mark.slow("starts two demos")
def test_second_demo_spoils_the_first_one_s_settings() -> None:
    """While a demo runs in a folder another one is turned away before it writes: exit code 75."""
    with short_folder() as home, demo("--dir", str(home)) as screen:
        screen.shows(r"In another terminal:\n")
        before = (home / "config.toml").read_text()
        done = syncd("demo", "--dir", home)
        assert done.returncode == 75
        assert f"holds the demo in {home}" in done.stderr
        assert (home / "config.toml").read_text() == before


@pytest.mark.parametrize(
    "path",
    mostly_slow(
        [
            *("/etc/passwd", "/proc/demo", "{}/loop", "{}/what?", "{}/two\nlines"),
            *(
                "/etc/passwd/demo",
                "/dev/null",
                "/proc",
                "{}/loop/demo",
                "{}/" + "x" * 90,
                "/tmp/" + "x" * 300,
            ),
        ],
        "each starts a process",
        always=5,
    ),
)
def test_folder_that_is_none_is_a_traceback(path: str) -> None:
    """Whatever is given as `--dir`, a demo that cannot be there says why in one line: exit code 78."""
    with short_folder() as home:
        (home / "loop").symlink_to("loop")
        done = syncd("demo", "--dir", path.format(home))
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (78, "")
        assert "CRITICAL --dir: " in line
        assert [file.name for file in home.iterdir()] == ["loop"]


def test_missing_temporary_folder_is_a_traceback() -> None:
    """Without `--dir`, and without a place for a folder of its own, the demo says so in one line."""
    program = [sys.executable, "-c", NOWHERE]
    done = syncd("demo", program=program)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 78
    assert "no temporary folder" in line
    assert "choose one with --dir" in line


NOWHERE = """
import sys, tempfile, syncd.cli.main
tempfile.tempdir = "/proc/none"
sys.exit(syncd.cli.main.main())
"""
