"""What `syncd once` shows while it runs: a bar on a terminal, in a pipe no more than the log."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from conftest import LogLines, WaitedFor
from support.faults import hang
from support.processes import PATIENCE_S, WITH_INSTANT_RETRIES, environment, eventually, syncd, write_config

from syncd.cli.progress import Teller, remaining_s, shown
from syncd.model import Progress, Run
from syncd.standin.server import StandIn, error_object

pytestmark = pytest.mark.sqlite_only("a terminal shows the same, whatever the database")

COLUMNS = 80
LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO |WARNING|ERROR)")


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=2)


@pytest.fixture
def config(home: Path, base_url: str) -> Path:
    return write_config(home, base_url, {"log": {"level": "INFO"}})


class Once:
    """`syncd once` with a terminal of 80 columns for stderr, and what is drawn there."""

    def __init__(self, config: Path, **environ: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [*WITH_INSTANT_RETRIES, "once", "--config", str(config)],
            env=environment(**{"TERM": "xterm"} | environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        )
        os.close(theirs)
        self._drawn = b""
        self._watched = True
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.hang_up()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how Linux tells the end of a terminal
            while self._watched:
                if select.select([self._ours], [], [], 0.02)[0]:
                    self._drawn += os.read(self._ours, 65_536)

    @property
    def drawn(self) -> str:
        """All that was written to the terminal so far."""
        return self._drawn.decode(errors="replace")

    def hang_up(self) -> None:
        """Take the terminal away, as a lost connection does."""
        self._watched = False
        self._reader.join()
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def press(self, key: bytes) -> None:
        """Press a key on the terminal."""
        os.write(self._ours, key)

    def shows(self, part: str) -> None:
        """Wait until the bar has shown this."""
        eventually(lambda: part in self.drawn)

    def ended(self) -> tuple[int, str, list[str]]:
        """Return the exit code, what stdout got, and the lines that are left on the terminal."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        self._reader.join()
        return self.process.returncode, out, screen(self.drawn)


def screen(drawn: str) -> list[str]:
    """Return the lines that a terminal of endless width shows in the end; fail for what it does not know."""
    lines, row, column = [""], 0, 0
    for code, move, up, text in re.findall(r"(\x1b\[[0-9;?]*[mhl])|(\r|\n|\x1b\[2K)|\x1b\[(\d)A|(.)", drawn):
        assert text != "\x1b", "an unknown control sequence"
        if move == "\r":
            column = 0
        elif move == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif move:
            lines[row] = ""
        elif up:
            row -= int(up)
        elif not code:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
    return [line for line in lines if line.strip()]


@pytest.fixture
def held(standin: StandIn, config: Path) -> Iterator[Path]:
    """Give a configuration with which a run waits for the second event, until the stand-in is healed."""
    standin.fail("/event/900002/avail", hang)
    yield config
    standin.heal()


# --- on a terminal


@pytest.mark.slow("a run that is held")
def test_first_import_is_silent(standin: StandIn, held: Path) -> None:
    """A bar shows the events, and is gone in the end: whole log lines are left, and the summary on stdout."""
    with Once(held) as once:
        once.shows("events 1/2")
        once.shows("/s), ")
        eventually(lambda: len(set(re.findall(r" requests, (\d+) s", once.drawn))) > 1)  # time passes
        standin.heal()
        code, out, left = once.ended()
    assert code == 0
    assert out.startswith("Run 1 ok: 2 events synced, 0 failed, in ")
    assert len(out.splitlines()) == 2
    assert [LOGGED.match(line) is not None for line in left] == [True, True]
    assert left[0].endswith("run 1 in full started (once)")
    assert len(left[1]) > COLUMNS  # not broken: the terminal does that, and knows that it is one line
    assert left[1].endswith(" requests")


@pytest.mark.slow("waits for seconds")
def test_wait_looks_like_a_standstill(home: Path, base_url: str) -> None:
    """While the run waits for requests the bar says for how long, and for what."""
    config = write_config(home, base_url, {"billetweb": {"requests_per_minute": 4}})
    with Once(config) as once:
        eventually(lambda: re.search(r"events \d/2 .*waits \d+ s more: 4 requests a minute are", once.drawn))
        once.process.send_signal(signal.SIGINT)
        assert once.ended()[0] == 1


def test_warning_above_the_bar_holds_a_secret(standin: StandIn, held: Path) -> None:
    """What is logged while the bar stands is masked and coloured as ever, on lines of its own."""
    standin.fail("/event/900001/avail", error_object("odd", "demo-key is odd"), times=None)
    with Once(held) as once:
        once.shows("events 1/2")
        standin.heal()
        code, _, left = once.ended()
    assert code == 0
    warning, finished = left[1:]
    assert LOGGED.match(warning)
    assert "*** is odd" in warning
    assert "run 1 partial" in finished
    assert "\x1b[33mWARNING\x1b[0m" in once.drawn
    assert "demo-key" not in once.drawn


@pytest.mark.slow("each is a run that is held")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_bar_outlives_a_signal(held: Path, number: signal.Signals) -> None:
    """Ctrl-C or a closed session cancels the run, which is told and summed up; the bar is gone."""
    with Once(held) as once:
        once.shows("events 1/2")
        once.process.send_signal(number)
        code, out, left = once.ended()
    assert code == 1
    assert out.startswith("Run 1 cancelled: 1 event synced")
    assert "run 1 cancelled in" in left[-1]
    assert all(map(LOGGED.match, left))


@pytest.mark.slow("a run that is held")
def test_bar_is_left_where_a_second_signal_ends_the_program(home: Path, held: Path) -> None:
    """While another program holds the database the first one ends nothing; the prompt has its own line."""
    with Once(held) as once, contextlib.closing(sqlite3.connect(home / "syncd.db")) as other:
        once.shows("events 1/2")
        other.execute("BEGIN IMMEDIATE")
        once.process.send_signal(signal.SIGINT)
        once.shows("run 1 cancelled")
        once.process.send_signal(signal.SIGINT)
        code, _, left = once.ended()
    assert code == 1
    assert "ending at once: a second signal" in left[-1]


@pytest.mark.slow("a run that is held")
def test_run_waits_for_a_terminal_that_stands_still(standin: StandIn, home: Path, held: Path) -> None:
    """Behind Ctrl-S, or at the other end of a dead connection, nothing is shown, and the run goes on."""
    with Once(held) as once:
        once.shows("events 1/2")
        once.press(b"\x13")
        standin.heal()
        with contextlib.closing(sqlite3.connect(home / "syncd.db")) as database:
            eventually(lambda: database.execute("SELECT outcome FROM syncd_runs").fetchone() == ("ok",))
        once.press(b"\x11")
        assert once.ended()[0] == 0


@pytest.mark.slow("a run that is held")
def test_colours_cannot_be_refused(standin: StandIn, held: Path) -> None:
    """With NO_COLOR neither bar nor log is coloured."""
    with Once(held, NO_COLOR="1") as once:
        once.shows("events 1/2")
        standin.heal()
        once.ended()
    assert not re.search(r"\x1b\[[0-9;]*m", once.drawn)


@pytest.mark.slow("a run that is held")
def test_run_fails_with_its_terminal(standin: StandIn, held: Path) -> None:
    """A terminal that goes away without a signal takes the bar along, not the run."""
    with Once(held) as once:
        once.shows("events 1/2")
        once.hang_up()
        standin.heal()
        out, _ = once.process.communicate(timeout=PATIENCE_S)
    assert out.startswith("Run 1 ok: 2 events synced")


# --- elsewhere


@pytest.mark.parametrize(("term", "drawn"), [("xterm", True), ("dumb", False)])
def test_dumb_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, term: str, *, drawn: bool) -> None:
    """A terminal that cannot move its cursor gets the log's lines, as a pipe does."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", term)
    led_to: list[object] = []
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", 0) as shows:
        monkeypatch.setattr(sys, "stderr", terminal)
        with shown(100, led_to.append) as show:
            assert isinstance(show, Teller) is not drawn
        print("end", file=terminal, flush=True)
        assert (b"\x1b" in shows.read(65_536)) is drawn
    assert len(led_to) == 2 * drawn


@pytest.mark.slow("starts a process")
def test_bar_in_a_pipe(config: Path) -> None:
    """In a pipe stderr holds the two lines of the log, without a control character."""
    done = syncd("once", "--config", config)
    assert done.returncode == 0
    assert done.stdout.startswith("Run 1 ok: ")
    lines = done.stderr.splitlines()
    assert [LOGGED.match(line) is not None for line in lines] == [True, True]
    assert re.search(r"[^\n -~]", done.stderr) is None


def test_long_run_in_a_pipe_is_silent(log_lines: LogLines) -> None:
    """A long run is told of every 30 s and no oftener, a short one never, nor before the list is read."""
    clock = WaitedFor()
    tell = Teller(100, clock.running_s)
    run = Run(id=7, trigger="once", requests=1)
    for done in range(-1, 41):
        run.progress = Progress("events", done, 400) if done >= 0 else Progress("listing")
        run.requests += 2
        tell(run)
        clock.now_s += 2
    told = log_lines.of("run.progress")
    assert [(line["run"], line["done"], line["total"]) for line in told] == [(7, 14, 400), (7, 29, 400)]
    assert told[0]["message"] == "run 7: 14 of 400 events, 33 requests, 30 s, about 14 min left"
    assert [line["requests"] for line in told] == [33, 63]

    log_lines.clear()
    tell = Teller(100, clock.running_s)
    clock.now_s += 100
    run.progress = Progress("listing")
    tell(run)
    assert log_lines.text == ""


@pytest.mark.parametrize(
    ("done", "requests", "elapsed_s", "expected_s"),
    [
        (0, 1, 1.0, 0),
        (9, 30, 1.0, 0),  # too early
        (25, 60, 5.0, 15 * 61 - 5),  # the first minute's, at once: 960 requests are 16 minutes' worth
        (25, 60, 60.0, 900),  # while the ceiling is waited for
        (200, 480, 3600.0, 3600),  # Billetweb is slower than the ceiling
        (400, 960, 920.0, 0),
    ],
)
def test_first_burst_is_taken_for_the_pace(
    done: int, requests: int, elapsed_s: float, expected_s: float
) -> None:
    """The ceiling on requests counts: its first minute's go out within seconds, the others do not."""
    run = Run(id=1, trigger="once", requests=requests, progress=Progress("events", done, 400))
    assert remaining_s(run, elapsed_s, 60) == pytest.approx(expected_s)
