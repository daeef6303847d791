"""`syncctl watch`: the live screen in a real terminal, of a real daemon; and what is drawn at any size."""

import io
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.canned_daemon import ENDED, ERROR, EVENT, STATUS, Daemon, serving
from support.faults import hang
from support.processes import (
    PATIENCE_S,
    SYNCCTL,
    DaemonProcess,
    Tables,
    environment,
    eventually,
    short_folder,
)
from support.terminal import Terminal
from support.variants import mostly_slow

from syncd.ctl.drawing import drawn
from syncd.ctl.http import NoDaemon
from syncd.ctl.seen import AGAIN_AFTER_S, Seen, look
from syncd.standin.server import StandIn
from syncd.standin.server import serving as standin_serving

NOW = datetime(2027, 5, 8, 10, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def standin() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def daemon(home: Path, standin: StandIn) -> Iterator[DaemonProcess]:
    """Give a daemon that has done its first run; the tests share it, and each leaves it idle and well."""
    with standin_serving(standin) as base_url, DaemonProcess(home, base_url) as process:
        process.ran()
        yield process


def watching(daemon: DaemonProcess, columns: int = 80, rows: int = 24, **environ: str) -> Terminal:
    """Return a terminal in which the daemon is watched."""
    command = [*SYNCCTL, "--socket", str(daemon.socket), "watch"]
    return Terminal(command, columns=columns, rows=rows, environ=environ)


def test_the_screen_hides_how_it_fares(daemon: DaemonProcess) -> None:
    """Health, the next run counting down, the latest runs, and first the events with the fewest places."""
    with watching(daemon) as terminal:
        shown = terminal.shows("q quits")
        assert re.search(r"✓ ok  syncd \S+, up .*, a run every 15 min", shown)
        assert re.search(r"last run  #1 ok, .* ago: 6 events, 48 changes, in ", shown)
        assert re.search(r"✓ #1 .* startup .* 6 events  48 changes", shown)
        left = re.findall(r" (\d+|unlimited) +\d* +\d{4}-", shown)
        assert len(left) == 6
        assert left == [*sorted(left[:-1], key=int), "unlimited"]
        pattern = r"next run  in (\d+ min \d+ s)"
        first = re.findall(pattern, shown)
        terminal.shows(lambda shown: re.findall(pattern, shown) not in (first, []))
        terminal.type("q")
        assert terminal.ended() == 0


@pytest.mark.slow("waits for the screen")
def test_a_sale_is_not_seen_on_the_screen(daemon: DaemonProcess, standin: StandIn) -> None:
    """What a run changed is marked, with how many places; the last place that goes makes it full."""
    runs = daemon.status()["run_count"]
    with watching(daemon) as terminal:
        terminal.shows("q quits")
        standin.sell("900006", 3)
        assert daemon.ctl("run-now").returncode == 0
        assert re.search(r"│ Concert à la grange +full +180 +▼ 3 ", terminal.shows("▼ 3"))
        assert f"✓ #{runs + 1} " in terminal.shown
        assert "1 full" in terminal.shown
        standin.refund("900006", 3)
        assert daemon.ctl("run-now").returncode == 0
        assert re.search(r"│ Concert à la grange +3 +180 +▲ 3 ", terminal.shows("▲ 3"))


@pytest.mark.slow("waits for the screen")
def test_a_run_in_progress_is_hidden(daemon: DaemonProcess, standin: StandIn) -> None:
    """A run shows why it runs and how far it is, for as long as it does."""
    standin.fail("/event/900002/avail", hang)
    with watching(daemon) as terminal:
        terminal.shows("q quits")
        assert daemon.ctl("run-now", "--no-wait").returncode == 0
        shown = terminal.shows("events 5/6")
        assert re.search(r"running   #\d+ manual by \w+: events 5/6 ━+─+ \d", shown)
        standin.heal()
        terminal.shows("last run")


def test_a_wait_passes_for_a_run_that_hangs(standin: StandIn) -> None:
    """Whoever waits for a run, or watches, is told for how long it waits and for what."""
    ceiling: Tables = {"billetweb": {"requests_per_minute": 4}, "sync": {"run_on_start": False}}
    with (
        short_folder() as folder,
        standin_serving(standin) as base_url,
        DaemonProcess(folder, base_url, ceiling) as daemon,
        watching(daemon, 120) as watcher,
        Terminal([*SYNCCTL, "--socket", str(daemon.socket), "run-now"]) as waiter,
    ):
        for terminal in (waiter, watcher):
            terminal.shows(
                lambda shown: re.search(
                    r"events \d/6 ━*─+ waits (\d+ s|1 min.*) more: 4 requests a minute are spent", shown
                )
            )
        waiter.type("\x03")
        assert waiter.ended() == -signal.SIGINT
        assert waiter.lines[0].startswith("syncctl: Stopped waiting. Run 1 goes on: ")


@pytest.mark.slow("starts two daemons")
def test_a_restart_of_the_daemon_ends_the_screen(standin: StandIn) -> None:
    """While no daemon answers the screen says so and since when, with what was last; then it goes on."""
    with (
        short_folder() as folder,
        standin_serving(standin) as base_url,
        DaemonProcess(folder, base_url) as first,
        watching(first) as terminal,
    ):
        first.ran()
        terminal.shows("last run  #1 ok")
        terminal.shows("Concert à la grange")  # which may come later than the status
        assert first.stop() == 0
        shown = terminal.shows("no daemon answers, since ")
        assert re.search(r"since \d\d:\d\d:\d\d \(\d+(\.\d)? s\)", shown)
        assert "Concert à la grange" in shown
        with DaemonProcess(folder, base_url) as second:
            second.ran(2)
            assert "no daemon answers" not in terminal.shows("last run  #2 ok")


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda terminal: terminal.type("q"), 0),
        (lambda terminal: terminal.type("\x04"), 0),
        (lambda terminal: terminal.type("\x03"), -signal.SIGINT),
        (lambda terminal: terminal.signal(signal.SIGQUIT), -signal.SIGQUIT),
        (lambda terminal: terminal.signal(signal.SIGTERM), -signal.SIGTERM),
        (lambda terminal: terminal.signal(signal.SIGHUP), -signal.SIGHUP),
    ],
    ids=["q", "Ctrl-D", "Ctrl-C", "SIGQUIT", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_left_in_disorder(daemon: DaemonProcess, leave: Any, code: int) -> None:
    """However it is left, cursor, main screen and settings of the terminal are as before."""
    with watching(daemon) as terminal:
        terminal.shows("q quits")
        assert not terminal.is_given_back()
        leave(terminal)
        assert terminal.ended() == code
        assert terminal.is_given_back()
        assert b"syncctl:" not in terminal.written
        assert b"Traceback" not in terminal.written


def test_a_stopped_screen_keeps_the_terminal(daemon: DaemonProcess) -> None:
    """Ctrl-Z gives the terminal back to the shell, and `fg` draws the screen again."""
    with watching(daemon) as terminal:
        terminal.shows("q quits")
        terminal.signal(signal.SIGTSTP)
        state = Path(f"/proc/{terminal.process.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        eventually(terminal.is_given_back)
        terminal.signal(signal.SIGCONT)
        eventually(lambda: not terminal.is_given_back())
        terminal.shows("q quits")
        terminal.type("q")
        assert terminal.ended() == 0


def test_a_resized_terminal_is_drawn_as_before(daemon: DaemonProcess) -> None:
    """A larger terminal gets runs and events side by side, with bars; a smaller one all below each other."""
    with watching(daemon) as terminal:
        terminal.shows("q quits")
        terminal.resize(200, 50)
        shown = terminal.shows("taken")
        assert max(map(len, shown.split("\n"))) == 200
        assert len(shown.split("\n")) == 50
        assert re.search(r"latest runs ─+╮╭─ events", shown)
        terminal.resize(60, 20)
        shown = terminal.shows(lambda shown: "taken" not in shown and "q quits" in shown.split("\n")[-1])
        assert max(map(len, shown.split("\n"))) == 60


def test_a_quiet_screen_is_drawn_again_and_again(daemon: DaemonProcess) -> None:
    """Only lines that changed are written, so that a slow connection has little to carry."""
    with watching(daemon, columns=200, rows=50) as terminal:
        terminal.shows("q quits")
        before = len(terminal.written)
        clock = terminal.lines[-1][-8:]
        eventually(lambda: terminal.lines[-1][-8:] not in (clock, ""))
        eventually(lambda: len(terminal.written) > before)
        assert len(terminal.written) - before < 5_000  # the whole screen has more than thrice as much


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_cannot_be_refused(daemon: DaemonProcess, environ: dict[str, str], *, coloured: bool) -> None:
    """With NO_COLOR nothing is coloured; the marks tell the same."""
    with watching(daemon, 80, 24, **environ) as terminal:
        terminal.shows("✓ ok")
        assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]", terminal.written)) is coloured


def test_a_terminal_of_ascii_gets_what_it_cannot_show(daemon: DaemonProcess) -> None:
    """Where the output's encoding is not UTF-8, frames, bars and marks are ASCII."""
    with watching(daemon, PYTHONIOENCODING="ascii", PYTHONUTF8="0") as terminal:
        shown = terminal.shows("q quits")
        assert "+ ok  syncd" in shown
        assert "Concert \\xe0 la grange" in shown
        assert not re.search(rb"[^\x00-\x7f]", terminal.written)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_is_drawn_on(daemon: DaemonProcess, term: str) -> None:
    """Where nothing can be drawn, a sentence says what shows the same, with exit code 2."""
    with watching(daemon, TERM=term) as terminal:
        assert terminal.ended() == 2
        assert "use `syncctl status`" in terminal.shown.replace("\n", "")
        assert b"\x1b" not in terminal.written


def test_a_pipe_is_drawn_on(daemon: DaemonProcess) -> None:
    """Without a terminal it is the same sentence, though colours are forced."""
    done = subprocess.run(
        [*SYNCCTL, "--socket", str(daemon.socket), "watch"],
        env=environment(TERM="xterm", FORCE_COLOR="1"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("syncctl: watch draws on a terminal, ")


def test_a_screen_without_a_daemon(home: Path) -> None:
    """Where no daemon answers from the first, it ends as every command does, and draws nothing."""
    with Terminal([*SYNCCTL, "--socket", str(home / "none"), "watch"]) as terminal:
        assert terminal.ended() == 3
        assert "No daemon answers" in terminal.shown
        assert b"\x1b" not in terminal.written


# --- looking


@pytest.fixture
def canned() -> Iterator[Daemon]:
    with serving() as daemon:
        daemon.answers["GET /v1/runs?limit=100"] = {"runs": [ENDED]}
        yield daemon


def asked_for(daemon: Daemon) -> list[str]:
    """Return what the daemon was asked since the last time."""
    targets = [request.split("/v1/")[1].partition("?")[0] for request, _ in daemon.asked]
    daemon.asked.clear()
    return targets


def test_watching_reads_all_events_each_second(canned: Daemon) -> None:
    """Runs and events are asked for once a run has ended, or the daemon is another; else status alone."""
    seen = look(canned.path)
    assert asked_for(canned) == ["status", "runs", "events"]
    for _ in range(3):
        seen = look(canned.path, seen)
    assert asked_for(canned) == ["status"] * 3
    for news in ({"run_count": 121}, {"pid": 1}, {"last_run": ENDED | {"id": 44}}):
        canned.answers["GET /v1/status"] = canned.answers["GET /v1/status"] | news
        seen = look(canned.path, seen)
        assert asked_for(canned) == ["status", "runs", "events"]
    assert seen.asked_at
    old = Seen(seen.status, seen.runs, seen.events, asked_at=seen.asked_at - timedelta(seconds=AGAIN_AFTER_S))
    look(canned.path, old)
    assert asked_for(canned) == ["status", "runs", "events"]


def test_a_change_is_marked_for_a_second(canned: Daemon) -> None:
    """What a run changed stays marked until the next one; an unknown figure is no change."""
    seen = look(canned.path)

    def ended(run_count: int, left: int | None) -> Seen:
        canned.answers["GET /v1/status"] = STATUS | {"run_count": run_count}
        canned.answers["GET /v1/events?all=0"] = {"events": [EVENT | {"places_left": left}]}
        return look(canned.path, seen)

    seen = ended(121, 10)
    assert seen.moved == {"900001": -2}
    assert look(canned.path, seen).moved == {"900001": -2}
    seen = ended(122, 10)
    assert seen.moved == {}
    for left in (None, 9):
        seen = ended(seen.status["run_count"] + 1, left)
        assert seen.moved == {}


def test_a_daemon_that_went_away_is_forgotten(canned: Daemon) -> None:
    """What was seen last is kept with since when nobody answers; at first there is nothing to keep."""
    seen = look(canned.path)
    canned.vanish()
    gone = look(canned.path, seen)
    assert "No daemon answers" in gone.trouble
    assert gone.status == seen.status
    assert gone.since
    assert look(canned.path, gone).since == gone.since
    with pytest.raises(NoDaemon):
        look(canned.path)


def test_a_daemon_without_its_database_passes_for_none(canned: Daemon) -> None:
    """While runs and events cannot be told, status is shown all the same, and they are asked for again."""
    events = canned.answers["GET /v1/events?all=0"]
    canned.answers["GET /v1/events?all=0"] = (503, {"error": {"code": "database", "message": "locked"}})
    seen = look(canned.path)
    assert (seen.status, seen.events, seen.trouble) == (STATUS, [], "")
    seen = look(canned.path, seen)
    canned.answers["GET /v1/events?all=0"] = events
    seen = look(canned.path, seen)
    assert seen.events == [EVENT]
    asked_for(canned)
    look(canned.path, seen)
    assert asked_for(canned) == ["status"]


# --- drawing


def lines_of(seen: Seen, width: int, height: int, *, unicode: bool = True) -> list[str]:
    """Return the screen as drawn at a size."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    drawing = drawn(seen, NOW, width, height, unicode=unicode)
    lines = console.render_lines(drawing, console.options.update(height=height))
    assert all(sum(segment.cell_length for segment in line) == width for line in lines)
    return ["".join(segment.text for segment in line) for line in lines]


def a_sight(**changes: Any) -> Seen:
    """Return what was seen of a daemon with things to look at."""
    status = STATUS | {
        "health": "degraded",
        "health_reason": "the last run ended partial",
        "last_error": "event 9: no answer",
        "last_run": ENDED | {"outcome": "partial", "errors": [ERROR | {"kind": "doubted"}]},
        "doubts": 2,
        "webhooks": {"endpoints": 2, "pending": 4, "parked": 3},
        "publish": {"targets": 2, "failing": 1},
        "feeds": {"files": 2, "failing": 1, "error": "/srv/a.csv: the folder /srv is missing"},
    }
    runs = [
        status["last_run"],
        *(ENDED | {"id": number, "duration_s": number} for number in range(42, 0, -1)),
    ]
    events = [EVENT | {"id": str(number), "places_left": number} for number in range(30)]
    return Seen(status | changes, runs, events, {"3": -2})


@pytest.mark.parametrize("unicode", mostly_slow([True, False], "many sizes"))
@pytest.mark.parametrize(
    "size", [(1, 1), (10, 5), (20, 80), (40, 12), (80, 24), (81, 25), (139, 50), (140, 20), (300, 90)]
)
def test_a_size_that_cannot_be_drawn(size: tuple[int, int], *, unicode: bool) -> None:
    """At any size as many lines as there are, all as wide as the terminal, are drawn."""
    running = ENDED | {"state": "running", "progress": {"phase": "events", "done": 0, "total": 0}}
    empty = Seen(
        STATUS | {"last_run": None, "events_live": None, "current_run": running, "next_run_at": None}
    )
    gone = Seen(a_sight().status, trouble="No daemon answers on /run/s.", since=NOW - timedelta(seconds=9))
    for seen in (a_sight(), empty, gone, Seen(STATUS)):
        assert len(lines_of(seen, *size, unicode=unicode)) == size[1]


def test_what_is_to_be_looked_at_has_no_line() -> None:
    """Why health is not ok, doubts, parked webhooks, failing targets and files have a line with a command."""
    shown = "\n".join(lines_of(a_sight(), 80, 24))
    for part in (
        "! degraded  syncd ",
        "health    the last run ended partial",
        "hint      `syncctl doubts` shows what is absent, `syncctl accept` says it is",
        "│           gone  ",
        "last run  #43 partial, 1 min 57 s ago: 12 events, 1 change, in 3.2 s",
        "error     event 9: no answer",
        "doubts    2, shown by `syncctl doubts`",
        "webhooks  2 endpoints, 4 waiting, 3 parked: see `syncctl webhooks`",
        "publish   2 targets, 1 failing: see `syncctl publish`",
        "feeds     1 of 2 not written: /srv/a.csv: the folder /srv is missing",
    ):
        assert part in shown
    calm = "\n".join(lines_of(Seen(STATUS, [ENDED], [EVENT]), 80, 24))
    assert not re.search("health  |doubts|webhooks|publish|feeds", calm)


@pytest.mark.parametrize(
    ("phase", "done", "total", "shown"),
    [("events", 35, 40, "events 35/40 ━━━"), ("listing", 0, 0, "listing")],
)
def test_a_wait_looks_like_a_standstill(phase: str, done: int, total: int, shown: str) -> None:
    """A run that waits for requests says how long, and for what, instead of how long it takes."""
    wait = {"waits_until": "2027-05-08T10:02:09Z", "waits_for": "60 requests a minute are spent"}
    progress = {"phase": phase, "done": done, "total": total} | wait
    running = ENDED | {"state": "running", "progress": progress}
    lines = lines_of(a_sight(current_run=running), 100, 24)
    assert any(shown in line and " waits 9 s more: 60 requests a minute are spent " in line for line in lines)


def test_a_paused_daemon_promises_a_run() -> None:
    """While runs are paused the screen says so instead of counting down."""
    shown = "\n".join(lines_of(a_sight(state="paused", next_run_at=None), 80, 24))
    assert "next run  paused" in shown


@pytest.mark.parametrize(
    ("changes", "stands_out"),
    [({}, False), ({"skipping": "credentials"}, True), ({"state": "paused", "next_run_at": None}, True)],
)
def test_a_run_that_is_skipped_looks_like_one_that_comes(
    changes: dict[str, Any], *, stands_out: bool
) -> None:
    """Where no scheduled run will be carried out its line has another colour."""
    console = Console(file=io.StringIO(), width=80, height=24, color_system="standard", force_terminal=True)
    console.print(drawn(a_sight(**changes), NOW, 80, 24, unicode=True))
    line = next(line for line in console.file.getvalue().splitlines() if "next run" in line)  # type: ignore[attr-defined]
    assert ("\x1b[33m" in line) == stands_out


def test_the_last_event_has_no_room() -> None:
    """Where not all events have room, as many as have are shown, and how many more there are."""
    small, large = lines_of(a_sight(), 80, 24), lines_of(a_sight(), 200, 50)
    assert any(re.search(r"and \d\d more: `syncctl events`", line) for line in small)
    assert sum("Fête du pain" in line for line in large) == 30
    assert any("▼ 2" in line for line in large)


def test_few_events_leave_the_screen_empty() -> None:
    """What the events do not need of a small screen shows more runs."""
    runs = a_sight().runs
    shown = "\n".join(lines_of(Seen(STATUS, runs, [EVENT] * 3), 80, 24))
    assert re.findall(r"#(\d+) ", shown)[1:] == [str(number) for number in range(43, 33, -1)]


def test_a_name_cannot_drive_the_screen() -> None:
    """Escape sequences and markup in what the daemon tells are shown, not obeyed."""
    event = EVENT | {"name": "Fête\x1b[2J [red]du pain[/red]"}
    shown = "\n".join(lines_of(Seen(STATUS, [ENDED], [event]), 80, 24))
    assert "Fête\\x1b[2J [red]du pain[/red]" in shown


def test_watch_offers_json() -> None:
    """`watch` takes no --json, for it never ends with a document."""
    done = subprocess.run([*SYNCCTL, "watch", "--json"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"--json" in done.stderr
