"""Sixth boot: a wrong clock at the start, by decades, and steps of it while the daemon runs.

Only the daemons' wall clock is false, by libfaketime; systemd, the journal and these tests see the true one.
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from inside import Json, Twin, cursor, eventually, fault, journal, pid, query, run, shown, systemctl

INTERVAL_S = 10
WATCHDOG_S = 8
DAY = timedelta(days=1)
DECADES = timedelta(days=10 * 365)
SINCE_1970 = timedelta(seconds=int(time.time()) - 3600)
MEMORY_KB = 10 * 1024

(FAKETIME,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
FALSE_CLOCK = {
    "LD_PRELOAD": str(FAKETIME),
    "FAKETIME_TIMESTAMP_FILE": "/run/%N.clock",
    "FAKETIME_NO_CACHE": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    # Its mending of timed waits ends each of them at once: threads that wait for the interpreter would spin.
    "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    "NO_FAKE_STAT": "1",
}
UNIT = "".join(f"Environment={name}={value}\n" for name, value in FALSE_CLOCK.items())
UNIT += f"WatchdogSec={WATCHDOG_S}s\nTimeoutAbortSec=5s\n"


class Victim:
    """A daemon with a clock of its own, which is `wrong` by so much."""

    def __init__(self, name: str, wrong: timedelta) -> None:
        tables = {"billetweb": {"timeout": "3s"}, "sync": {"interval": f"{INTERVAL_S}s"}}
        self.twin = Twin(name, UNIT, tables)
        self.wrong = timedelta(0)
        self.step_to(wrong)

    def step_to(self, wrong: timedelta) -> timedelta:
        """Step the clock; return by how much."""
        step, self.wrong = wrong - self.wrong, wrong
        coming = Path("/run/clock.new")
        coming.write_text(f"{wrong.total_seconds():+.0f}")
        coming.rename(Path("/run", self.twin.unit).with_suffix(".clock"))
        return step

    def current_run(self) -> Json | None:
        """Return the run in progress, once it is on record: before that it has another number."""
        found: Json | None = self.twin.status()["current_run"]
        return found if found and found["id"] > 0 else None

    def rests(self) -> bool:
        """Whether no run is in progress, nor about to begin."""
        status = self.twin.status()
        left = datetime.fromisoformat(status["next_run_at"]) - (datetime.now(UTC) + self.wrong)
        return not status["current_run"] and left > timedelta(seconds=2)

    def memory_kb(self) -> int:
        """Return what it occupies of the machine's memory."""
        lines = Path(f"/proc/{pid(self.twin.unit)}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def entries(self, event: str, after: str = "") -> list[Json]:
        """Return what it said of an event."""
        return journal(after, f"_SYSTEMD_UNIT={self.twin.unit}", f"SYNCD_EVENT={event}")

    def off_s(self, at: datetime, entry: Json) -> float:
        """Return how far an instant by this clock is from that of a journal entry, by the true one."""
        true = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
        return abs((at - self.wrong - true).total_seconds())


class Before(NamedTuple):
    """What was to be seen of a daemon just before its clock was stepped."""

    pid: int
    memory_kb: int
    run_id: int
    end: str


@pytest.fixture(scope="module")
def victims() -> list[Victim]:
    """Give daemons started with a clock that is decades behind, or ahead, and whose first run is over."""
    found = [Victim("early", -SINCE_1970), Victim("late", DECADES)]
    systemctl("daemon-reload")
    systemctl("start", *(victim.twin.unit for victim in found))
    for victim in found:
        victim.twin.idle()
    return found


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_more_than_the_wall_clock_is_false() -> None:
    """The clocks that nobody can step are the machine's, or the other tests would prove nothing."""
    clocks = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic(), time.time())"
    clock = Path("/run/probe.clock")
    clock.write_text("-86400")
    settings = [f"{name}={value}".replace("%N", "probe") for name, value in FALSE_CLOCK.items()]
    shown_s = run("env", *settings, "/opt/syncd/bin/python", "-c", clocks).stdout.split()
    true_s = (time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic(), time.time() - 86400)
    assert [float(one) for one in shown_s] == pytest.approx(true_s, rel=0, abs=30)


def test_wrong_clock_keeps_it_from_starting(victims: list[Victim]) -> None:
    """It comes up at the first attempt, with its sandbox, takes the clock as it is, and runs at once."""
    for victim in victims:
        status = victim.twin.status()
        assert (status["last_run"]["outcome"], status["health"]) == ("ok", "ok")
        (entry,) = victim.entries("started")
        assert victim.off_s(datetime.fromisoformat(status["started_at"]), entry) < 5
        assert shown("MemoryDenyWriteExecute", victim.twin.unit) == "yes"
        assert shown("NRestarts", victim.twin.unit) == "0"


@pytest.mark.parametrize(
    ("early", "late"),
    [
        pytest.param(timedelta(0), timedelta(0), id="decades-to-right"),
        pytest.param(-DAY, DAY, id="right-to-a-day-off"),
        pytest.param(timedelta(0), timedelta(0), id="a-day-off-to-right"),
    ],
)
def test_step_does_harm(victims: list[Victim], early: timedelta, late: timedelta) -> None:
    """Stepped in the middle of a run: noticed and told, the next run in time and with the right instants."""
    eventually(lambda: all(victim.rests() for victim in victims))
    with fault("hang"):  # the first request of the coming runs, until its time-out
        running = [eventually(victim.current_run) for victim in victims]
        before = [
            Before(pid(victim.twin.unit), victim.memory_kb(), current["id"], cursor())
            for victim, current in zip(victims, running, strict=True)
        ]
        at_s = time.monotonic()
        steps = [victim.step_to(wrong) for victim, wrong in zip(victims, (early, late), strict=True)]
    for victim, seen, step in zip(victims, before, steps, strict=True):
        assert_run_over_the_step_is_sane(victim, seen)
        assert_next_run_in_time_and_right(victim, seen, at_s)
        told = [entry["MESSAGE"] for entry in victim.entries("clock.stepped", seen.end)]
        assert [abs(float(line.split()[-2]) - step.total_seconds()) < 3 for line in told] == [True], told
        assert (pid(victim.twin.unit), shown("NRestarts", victim.twin.unit)) == (seen.pid, "0")
        assert victim.memory_kb() - seen.memory_kb < MEMORY_KB
        assert not victim.entries("watchdog")


def assert_run_over_the_step_is_sane(victim: Victim, seen: Before) -> None:
    """Fail unless the run in progress at the step ended well, and took as long as it really did."""
    ended = eventually(lambda: [e for e in finished(victim, seen) if int(e["SYNCD_RUN"]) == seen.run_id])[0]
    assert ended["SYNCD_OUTCOME"] == "ok"
    assert 0 < float(ended["SYNCD_DURATION_S"]) < 2 * INTERVAL_S


def assert_next_run_in_time_and_right(victim: Victim, seen: Before, stepped_s: float) -> None:
    """Fail unless the run after the step came within an interval, and put the clock's instants on record."""
    after = eventually(lambda: [e for e in finished(victim, seen) if int(e["SYNCD_RUN"]) > seen.run_id])[0]
    began = next(e for e in victim.entries("run.started", seen.end) if e["SYNCD_RUN"] == after["SYNCD_RUN"])
    assert int(began["__MONOTONIC_TIMESTAMP"]) / 1e6 - stepped_s <= INTERVAL_S
    assert (after["SYNCD_OUTCOME"], after["SYNCD_SYNCED"]) == ("ok", "3")
    assert victim.twin.status()["health"] == "ok"
    victim.twin.idle()  # so that its end is on record
    database = victim.twin.database
    statement = "SELECT started_at, finished_at, duration_s, full FROM syncd_runs WHERE id = {}"
    ((started_at, finished_at, duration_s, full),) = query(statement.format(after["SYNCD_RUN"]), database)
    assert full, "the last full run was a day ago or more, or is yet to come"
    assert victim.off_s(instant(started_at), began) < 5
    assert victim.off_s(instant(finished_at), after) < 5
    assert 0 < duration_s < INTERVAL_S
    ((oldest, latest),) = query(
        "SELECT min(availability_at), max(availability_at) FROM billetweb_events", database
    )
    assert instant(started_at) <= instant(oldest) <= instant(latest) <= instant(finished_at)


def finished(victim: Victim, seen: Before) -> list[Json]:
    """Return what was said of runs that ended since."""
    return victim.entries("run.finished", seen.end)


def test_wrong_clock_remembered_as_the_latest(victims: list[Victim]) -> None:
    """After a restart with the right clock, what was put on record with one far ahead is not the latest."""
    twin = victims[1].twin
    last_id = twin.idle()["last_run"]["id"]
    with fault("hang"):
        systemctl("restart", twin.unit)
        status = twin.status()
    assert status["last_run"]["id"] >= last_id
    assert datetime.fromisoformat(status["last_success_at"]) < datetime.now(UTC)
