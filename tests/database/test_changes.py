"""The log of changes does not grow for ever, and loses nothing to a clock that is wrong."""

from datetime import UTC, datetime, timedelta

import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, rig_on
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support import faults as fault
from support.reading import event
from support.real_databases import allow, query, refuse

from syncd.database import changes, deliveries, rows, schema
from syncd.database.deliveries import Message
from syncd.database.engine import Database
from syncd.mirror.diff import plan_listed
from syncd.standin.server import StandIn

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
KEEP = 10 * DAY


@pytest.fixture
def database(opened: Database, url: str) -> Database:
    """Give the database with empty tables."""
    clear(url)
    return opened


def clear(url: str) -> None:
    query(url, "DELETE FROM syncd_changes")
    query(url, "DELETE FROM syncd_deliveries")
    query(url, "DELETE FROM billetweb_events")


def change(database: Database, name: object, seen_at: datetime) -> None:
    """Have a run see an event for the first time."""
    with database.begin(write=True) as connection:
        rows.write_plan(connection, rows.Writing(1, seen_at), plan_listed(event(str(name)), None, seen_at))


def prune(database: Database, now: datetime, read_at: datetime, *, times: int = 100) -> int:
    """Remove changes that are older than KEEP, so many times what is removed at once; return how many."""
    with database.begin() as connection:
        old = changes.old(connection, KEEP, now, read_at)
    removed = 0
    for _ in range(times):
        with database.begin(write=True) as connection:
            count = changes.prune(connection, schema.changes, old)
        removed += count
        if count < changes.PRUNED_AT_ONCE:
            break
    return removed


def left(url: str) -> list[str]:
    """Return which changes are on record, in order."""
    return [name for (name,) in query(url, "SELECT row_id FROM syncd_changes ORDER BY seq")]


# --- what is removed


days = st.integers(-30, 5)


@given(st.lists(days, max_size=12).map(sorted), days, days)
@settings(max_examples=60)
def test_change_goes_too_early_or_never(
    opened: Database, url: str, seen: list[int], now: int, full: int
) -> None:
    """Those stay that are younger than `keep` before now, the full run before and the latest change."""
    clear(url)
    for number, day in enumerate(seen):
        change(opened, number, NOW + day * DAY)
    removed = prune(opened, NOW + now * DAY, NOW + full * DAY)
    since = min([now, full, *seen[-1:]]) - KEEP.days
    kept = [str(number) for number, day in enumerate(seen) if day >= since]
    assert left(url) == kept
    assert removed == len(seen) - len(kept)


@pytest.mark.slow("many runs")
@given(
    gaps=st.lists(st.integers(1, KEEP.days - 1), min_size=4, max_size=14),
    wrong=st.integers(1, 12),
    by=st.integers(-9000, 9000),
)
@settings(max_examples=40)
def test_clock_that_is_wrong_for_one_run_empties_the_log(
    opened: Database, url: str, gaps: list[int], wrong: int, by: int
) -> None:
    """What is young by the right clock stays, whichever full run but the first has a wrong one.

    Nobody can tell the age of a change seen with a clock that was behind: it goes with the one before it.
    """
    clear(url)
    at, full_before = NOW, None
    begun: dict[int, datetime] = {}
    for number, gap in enumerate(gaps):
        at += gap * DAY
        clock = at + (by * DAY if number == wrong else timedelta(0))
        begun[number] = at
        change(opened, number, clock)
        if full_before:
            prune(opened, clock, full_before)
        full_before = clock
        kept = {int(name) for name in left(url)}
        young = {name for name, instant in begun.items() if instant >= at - KEEP}
        unsure = {wrong} if by < 0 and wrong - 1 not in kept else set()
        assert young - unsure <= kept


def test_change_that_bears_an_instant_of_long_ago_goes_while_it_is_young(
    database: Database, url: str
) -> None:
    """A change seen with a clock that was behind is as young as the one before it, and goes after that."""
    change(database, "young", NOW)
    change(database, "behind", NOW - 9000 * DAY)
    change(database, "right", NOW + 5 * DAY)
    for age, names in ((10, ["young", "behind", "right"]), (11, ["right"])):
        at = NOW + age * DAY
        change(database, age, at)
        prune(database, at, at)
        assert [name for name in left(url) if not name.isdigit()] == names


def test_delivery_that_bears_an_instant_of_long_ago_goes_while_it_is_young(
    database: Database, url: str
) -> None:
    """Deliveries are as old as changes are: one of a clock that was behind goes after the one before it."""
    with database.begin(write=True) as connection:
        for name, at in (("young", NOW), ("behind", NOW - 9000 * DAY), ("right", NOW + 5 * DAY)):
            deliveries.put(connection, [Message(name, "site", "run.failed", "", "{}")], at)
    query(url, "UPDATE syncd_deliveries SET state = 'parked' WHERE id <> 'right'")
    for age, names in ((10, ["young", "behind", "right"]), (11, ["right"]), (900, ["right"])):
        at = NOW + age * DAY
        with database.begin(write=True) as connection:
            deliveries.put(connection, [Message(str(age), "site", "run.failed", "", "{}")], at)
            changes.prune(connection, schema.deliveries, deliveries.old(connection, KEEP, at, at))
        found = [name for (name,) in query(url, "SELECT id FROM syncd_deliveries ORDER BY seq")]
        assert [name for name in found if not name.isdigit()] == names


def test_delivery_that_is_asked_for_again_shows_its_old_error(database: Database) -> None:
    """It waits like a new one, and says nothing of what went wrong before."""
    with database.begin(write=True) as connection:
        deliveries.put(connection, [Message("one", "site", "event.full", "9", "{}")], NOW)
        deliveries.park(connection, "site", "digest")
        deliveries.retry(connection, NOW, ids=["one"], endpoint=None, configured=["site"])
        (asked,) = deliveries.latest(connection, 9, delivered_too=False)
    assert (asked.state, asked.attempts, asked.error) == ("pending", 0, None)


def test_change_of_a_clock_that_was_ahead_stops_all_pruning(database: Database, url: str) -> None:
    """A change that bears an instant yet to come stays until then; what is old behind it goes."""
    for name, age in (("old", 13), ("ahead", -9000), ("old too", 12), ("young", 1)):
        change(database, name, NOW - age * DAY)
    assert prune(database, NOW, NOW) == 2
    assert left(url) == ["ahead", "young"]


def test_nothing_on_record_is_an_error(database: Database) -> None:
    """An empty log is pruned of nothing."""
    assert prune(database, NOW, NOW) == 0


def test_many_old_changes_are_removed_in_one_go(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction removes so many and no more, the oldest first."""
    monkeypatch.setattr(changes, "PRUNED_AT_ONCE", 3)
    for number in range(10):
        change(database, number, NOW - (30 - number) * DAY)
    change(database, "young", NOW)
    assert prune(database, NOW, NOW, times=1) == 3
    assert left(url) == ["3", "4", "5", "6", "7", "8", "9", "young"]
    assert prune(database, NOW, NOW) == 7
    assert left(url) == ["young"]


# --- when


def age_all(rig: Rig, by: timedelta) -> int:
    """Make every change so much older; return how many there are."""
    seen_at = (datetime.now(UTC) - by).strftime("%Y-%m-%d %H:%M:%S.%f")
    rig.sql("UPDATE syncd_changes SET seen_at = ?", seen_at)
    return count(rig)


def count(rig: Rig) -> int:
    ((found,),) = rig.sql("SELECT count(*) FROM syncd_changes")
    assert isinstance(found, int)
    return found


def test_log_of_changes_grows_for_ever(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """After a full run what is too old is gone, with one line that says so, and numbers go on."""
    rig.run()
    ((last,),) = rig.sql("SELECT max(seq) FROM syncd_changes")
    old = age_all(rig, timedelta(days=401))
    standin.sell("900001")
    run = rig.run("manual", full=True)
    assert run.outcome == "ok"
    ((first, rows),) = rig.sql("SELECT min(seq), count(*) FROM syncd_changes")
    assert (first, rows) == (last + 1, run.counts.updated)
    (line,) = log_lines.of("changes.pruned")
    assert line["message"] == f"{old} changes older than 400 d removed from the log of changes"
    assert (line["level"], line["removed"]) == ("INFO", old)
    rig.run("manual", full=True)
    assert len(log_lines.of("changes.pruned")) == 1


def test_run_that_proves_nothing_removes_changes(rig: Rig, standin: StandIn) -> None:
    """Runs not full, of named events or failed leave the log alone, and so does the first full one."""
    rig.run("manual")
    standin.sell("900001")
    old = age_all(rig, timedelta(days=401))
    first = rig.run("manual", full=True)
    assert (rig.account.recorder.last_full_at, count(rig)) == (first.finished_at, old + first.counts.updated)
    standin.sell("900001")
    kept = count(rig) + rig.run("manual").counts.updated
    rig.run("manual", full=True, events=("900001",))
    standin.fail("/events", fault.null)
    assert rig.run("manual", full=True).outcome == "failed"
    assert count(rig) == kept
    rig.run("manual", full=True)
    assert count(rig) == kept - old


def test_clock_of_one_full_run_decides_alone(rig: Rig, standin: StandIn) -> None:
    """What is too old by this full run's clock alone stays until the next one says so too."""
    config = rig.account.config
    shorter = structs.replace(config.sync, keep_changes=timedelta(days=2))
    rig.portal.call(rig.account.configure, structs.replace(config, sync=shorter))
    rig.run()
    old = age_all(rig, timedelta(days=3))
    rig.account.recorder.last_full_at = datetime.now(UTC) - timedelta(days=2)
    standin.sell("900001")
    kept = rig.run("manual", full=True).counts.updated
    assert count(rig) == old + kept
    rig.run("manual", full=True)
    assert count(rig) == kept


def test_new_length_of_the_log_waits_for_a_restart(rig: Rig, standin: StandIn) -> None:
    """After a reload the next full run keeps as much as is said now."""
    rig.run()
    old = age_all(rig, timedelta(days=3))
    standin.sell("900001")
    rig.run("manual", full=True)
    kept = count(rig)
    assert kept > old
    config = rig.account.config
    shorter = structs.replace(config.sync, keep_changes=timedelta(days=2))
    rig.portal.call(rig.account.configure, structs.replace(config, sync=shorter))
    rig.run("manual", full=True)
    assert count(rig) == kept - old


def test_trouble_with_old_changes_spoils_a_good_run(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """Where they cannot be removed the run ends as it would, a line says so, and the next one does it."""
    rig.run()
    old = age_all(rig, timedelta(days=401))
    refuse(rig.url, "DELETE ON syncd_changes")
    standin.sell("900001")
    run = rig.run("manual", full=True)
    assert rig.sql("SELECT outcome FROM syncd_runs WHERE id = ?", run.id) == [("ok",)]
    (line,) = log_lines.of("error.database")
    assert "old changes and deliveries could not be removed" in line["message"]
    assert "refused" in line["message"]
    assert count(rig) == old + run.counts.updated
    allow(rig.url, "DELETE ON syncd_changes")
    rig.run("manual", full=True)
    assert count(rig) == run.counts.updated


def test_more_deliveries_come_than_go(rig: Rig, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full run all those are gone that are too old, however many they are."""
    monkeypatch.setattr(changes, "PRUNED_AT_ONCE", 3)
    rig.run()
    at = datetime.now(UTC)
    messages = [Message(f"msg_{number}", "site", "event.new", "", "{}") for number in range(10)]
    with rig.account.database.begin(write=True) as connection:
        deliveries.put(connection, messages[:9], at - timedelta(days=402))
        deliveries.put(connection, messages[9:], at)
    rig.sql("UPDATE syncd_deliveries SET state = 'delivered'")
    assert rig.run("manual", full=True).outcome == "ok"
    assert rig.sql("SELECT id FROM syncd_deliveries") == [("msg_9",)]


class Ticks(WaitedFor):
    """A time of which a fifth of a second passes whenever somebody looks."""

    def running_s(self) -> float:
        self.now_s += 0.2
        return super().running_s()


def test_many_old_changes_hold_up_a_stop(
    make_config: MakeConfig,
    standin: StandIn,
    instant_retries: None,
    log_lines: LogLines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When time is up the rest waits for the next whole reading."""
    monkeypatch.setattr(changes, "PRUNED_AT_ONCE", 3)
    with rig_on(make_config(billetweb__concurrency=1), Ticks()) as rig:
        rig.run()
        old = age_all(rig, timedelta(days=401))
        assert old > 2 * 5 * 3
        standin.sell("900001")
        young = rig.run("manual").counts.updated
        for number in (1, 2):
            rig.run("manual", full=True)
            lines = log_lines.of("changes.pruned")
            assert len(lines) == number
            assert 0 < lines[-1]["removed"] <= 5 * 3
        assert count(rig) == old + young - sum(line["removed"] for line in lines)
