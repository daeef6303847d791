"""Third boot: the watchdog. What hangs is restarted in time and says why; what is only slow is left alone.

All of it at once, each in a daemon of its own beside the service.
"""

import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from inside import Json, Twin, eventually, fault, journal, pid, run, shown, systemctl
from sabotaged import OVERRUN_S

from syncd.account.schedule import TICK_S
from syncd.daemon.watchdog import LATE_S

WATCHDOG_S = 8
ABORT_S = 5
INTERVAL_S = 10
RUN_TIMEOUT_S = 5
UNIT = f"""\
ExecStart=
ExecStart=/opt/syncd/bin/python /project/tests/systemd/sabotaged.py run
WatchdogSec={WATCHDOG_S}s
TimeoutAbortSec={ABORT_S}s
RestartSec=1s
"""


class Hang(NamedTuple):
    """A way to hang: the signal that brings it about (see sabotaged.py), and what it must lead to."""

    signal: str
    given_s: float  # beside what systemd gives
    told: str  # "" where the process itself cannot tell
    frame: str | None  # in the stacks: what hangs, or what goes on without what is dead


LOOP_LIVES = r'base_events\.py", line \d+ in run_forever'  # whatever it is at in that instant
HANGS = {
    # Whichever of its threads is the first to wake takes the abort, and the others go on while it reads their
    # stacks: that of the loop may end anywhere.
    "stopped": Hang("SIGSTOP", 0, "", None),
    "interpreter": Hang("SIGURG", 0, "", "in hold_the_interpreter"),
    "loop": Hang("SIGUSR1", 0, "the control server does not answer: timed out", "in block_the_loop"),
    "scheduler": Hang("SIGUSR2", TICK_S, "the scheduler is dead: nothing is set to wake it", LOOP_LIVES),
    "slot": Hang(
        "SIGVTALRM", INTERVAL_S + LATE_S, "the scheduler is dead: a scheduled run has been due", LOOP_LIVES
    ),
    "run": Hang("SIGWINCH", RUN_TIMEOUT_S + OVERRUN_S, "the run in progress hangs", "in never_return"),
}


class Broken(NamedTuple):
    """A daemon that hangs since `at_s`, and what was to be seen of it just then."""

    twin: Twin
    hang: Hang
    at_s: float
    pid: int
    threads: int


def break_(name: str, hang: Hang) -> Broken:
    """Make a daemon that is up hang."""
    twin = started(name, run_timeout=f"{RUN_TIMEOUT_S}s")
    assert twin.idle()["last_run"]["outcome"] == "ok"
    victim = pid(twin.unit)
    at_s = time.monotonic()
    systemctl("kill", "--kill-whom=main", f"--signal={hang.signal}", twin.unit)
    if hang.signal == "SIGWINCH":
        run("syncctl", "--socket", str(twin.socket), "run-now", "--no-wait")
    return Broken(twin, hang, at_s, victim, len(list(Path(f"/proc/{victim}/task").iterdir())))


def started(name: str, **sync: str) -> Twin:
    """Return a daemon that is up; a request of its may take 8 s."""
    twin = Twin(name, UNIT, {"billetweb": {"timeout": "8s"}, "sync": {"interval": f"{INTERVAL_S}s"} | sync})
    systemctl("daemon-reload")
    systemctl("start", twin.unit)
    return twin


@pytest.fixture(scope="module")
def all_broken() -> dict[str, Broken]:
    """Give daemons of which each hangs in its own way."""
    return {name: break_(name, hang) for name, hang in HANGS.items()}


@pytest.fixture(params=HANGS)
def broken(request: pytest.FixtureRequest, all_broken: dict[str, Broken]) -> Broken:
    """Give one that hangs."""
    found: Broken = all_broken[request.param]
    return found


@pytest.mark.usefixtures("all_broken")  # whose time goes by meanwhile
def test_slow_service_restarted() -> None:
    """A run through three times WatchdogSec, with Billetweb mute and the database locked, is left alone."""
    twin = started("slow", run_timeout="1m")
    twin.idle()
    before = pid(twin.unit)
    with fault("hang"):
        slow: Json = eventually(lambda: on_record(twin))
        time.sleep(2 * WATCHDOG_S)
        with closing(sqlite3.connect(twin.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ended = eventually(lambda: over(twin, slow["id"]), within_s=60)
    assert (ended["outcome"], ended["duration_s"] > 3 * WATCHDOG_S) == ("failed", True)
    eventually(lambda: twin.status()["health"] == "ok")
    assert (pid(twin.unit), shown("NRestarts", twin.unit)) == (before, "0")
    assert not complaints(twin)


def on_record(twin: Twin) -> Json | None:
    """Return the run in progress once it has its number."""
    run: Json | None = twin.status()["current_run"]
    return run if run and run["id"] > 0 else None


def over(twin: Twin, run_id: int) -> Json | None:
    """Return a run once it is the last that ended, on record or not."""
    last: Json = twin.status()["last_run"]
    return last if last["id"] == run_id else None


def complaints(twin: Twin) -> list[Json]:
    """Return what the daemon's watchdog had to say."""
    return journal("", f"_SYSTEMD_UNIT={twin.unit}", "SYNCD_EVENT=watchdog")


def ended_by_watchdog(broken: Broken) -> Json:
    """Return the entry by which systemd says that the watchdog ended it."""
    found: list[Json] = eventually(
        lambda: journal("", f"UNIT={broken.twin.unit}", "UNIT_RESULT=watchdog"), within_s=90
    )
    return found[0]


def test_hang_lasts_too_long(broken: Broken) -> None:
    """It is ended as a case for the watchdog, within the time that the unit and the daemon's limits give."""
    at_s = int(ended_by_watchdog(broken)["__MONOTONIC_TIMESTAMP"]) / 1e6
    assert at_s - broken.at_s <= broken.hang.given_s + WATCHDOG_S + ABORT_S


def test_reason_untold(broken: Broken) -> None:
    """The daemon says once, gravely, what hangs, and systemd repeats it; a stopped one it finds by itself."""
    ended_by_watchdog(broken)
    told = complaints(broken.twin)
    assert [entry["PRIORITY"] for entry in told] == ["2"] * bool(broken.hang.told)
    assert all(entry["MESSAGE"].startswith(broken.hang.told) for entry in told)
    said = "\n".join(entry["MESSAGE"] for entry in journal("", f"UNIT={broken.twin.unit}", "_PID=1"))
    why = (
        rf"request \(last status: hangs: {broken.hang.told}" if broken.hang.told else r"timeout \(limit 8s\)"
    )
    assert re.search(f"Watchdog {why}", said), said


def test_stacks_missing(broken: Broken) -> None:
    """The journal has the stack of each thread, and one shows the place."""
    ended_by_watchdog(broken)
    unit, hang = broken.twin.unit, broken.hang
    lines = [entry["MESSAGE"] for entry in journal("", f"_SYSTEMD_UNIT={unit}", f"_PID={broken.pid}")]
    said = "\n".join(lines)
    assert "Fatal Python error: Aborted" in lines, said
    stacks = re.findall(r"^(?:Thread|Current thread) 0x.*:\n  File ", said, re.MULTILINE)
    if not hang.told:  # it did nothing since, so the threads of that instant are all there
        assert len(stacks) >= broken.threads > 1, said
    if hang.frame:
        assert re.search(hang.frame, said), said
        assert re.search(r"syncd/cli/main\.py.* in main$", said, re.MULTILINE), said


def test_restarted_service_does_not_work(broken: Broken) -> None:
    """It was restarted once; the new process answers, its runs succeed."""
    ended_by_watchdog(broken)
    twin = broken.twin
    eventually(lambda: shown("ActiveState", twin.unit) == "active")
    eventually(lambda: recovered(twin.status()))
    assert twin.status()["pid"] == pid(twin.unit) != broken.pid
    assert shown("NRestarts", twin.unit) == "1"


def recovered(status: Json) -> bool:
    """Whether the last run is one of this process and succeeded."""
    last = status["last_run"]
    return bool(last["started_at"] > status["started_at"] and last["outcome"] == "ok")
