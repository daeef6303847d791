"""One account over its life and over restarts: an absent database, new settings, the pause, times of rest."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, mirrors, rig_on
from msgspec import structs
from support import faults as fault
from support.faults import with_rows
from support.processes import DaemonProcess, eventually, syncd, write_config
from support.real_databases import Rows, allow, held_up, query, refuse, url_at
from support.variants import mostly_slow

from syncd.account.account import Account
from syncd.config import Config, Secret
from syncd.database import runs, state
from syncd.database.engine import VERSION_TABLE, Database
from syncd.errors import AlreadyRunning, ConfigError, StoreError
from syncd.log.redact import Redactor
from syncd.model import MAX_ERRORS, Peer, Quiet, Run
from syncd.standin.server import Fault, StandIn

DAY_S = 86_400.0


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """Give a database that nobody else holds."""
    database = Database(url)
    database.open()
    try:
        yield database
    finally:
        database.close()


@contextmanager
def spied(database: Database) -> Iterator[list[str]]:
    """Give a list that grows by each attempt to open a database."""
    tried: list[str] = []
    really = database.open

    def opened() -> None:
        tried.append(database.url)
        really()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "open", opened)
        yield tried


def pause(rig: Rig, *, paused: bool = True) -> None:
    rig.portal.call(partial(rig.account.pause, paused=paused))


def asked_for(rig: Rig) -> Run:
    """Return the run that somebody's request by hand gets."""
    return rig.portal.call(rig.account.request)


def found(rig: Rig, run_id: int) -> Run | None:
    return rig.portal.call(rig.account.find_run, run_id)


def with_key(config: Config, key: str) -> Config:
    return structs.replace(config, key=Secret(key))


# --- the database


@pytest.mark.sqlite_only("a folder that is missing")
def test_a_database_that_comes_late_is_never_opened(
    make_config: MakeConfig, standin: StandIn, tmp_path: Path, log_lines: LogLines
) -> None:
    """Until its folder exists runs fail and ask nothing; then they succeed, and the failed are on record."""
    folder = tmp_path / "late"
    with rig_on(make_config(database__url=f"sqlite:///{folder}/syncd.db")) as rig:
        failed = [rig.run() for _ in range(2)]
        for run in failed:
            assert (run.outcome, [error.kind for error in run.errors]) == ("failed", ["database"])
            assert str(folder) in run.errors[0].message
            assert run.id < 0
        assert standin.requests == []
        assert rig.account.facts.consecutive_failures == 2
        assert len(log_lines.of("error.database")) == 1
        folder.mkdir()
        good = rig.run()
        assert good.outcome == "ok"
        mirrors(rig, standin)
        assert rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY started_at") == [
            *((run.id, "failed") for run in failed),
            (good.id, "ok"),
        ]
        assert min(run.id for run in (*failed, good)) > 0
        after = rig.run()
        assert after.outcome == "ok"
        assert [run.id for run in rig.portal.call(rig.account.runs, 2, after.id)] == [good.id, failed[1].id]
        assert rig.account.facts.run_count == 4
        assert rig.account.facts.consecutive_failures == 0


def test_a_run_is_over_before_its_end_is_on_record(rig: Rig) -> None:
    """As soon as status shows no run in progress, its row says how the latest one ended."""

    async def outcomes_at_the_end(run: Run) -> Rows:
        """Return what is on record in the same turn of the loop in which status shows that it is over."""
        while run.state != "done" or rig.account.status().current_run is run:  # noqa: ASYNC110 - each turn
            await asyncio.sleep(0)
        return rig.sql("SELECT outcome FROM syncd_runs ORDER BY id")

    for count in range(1, 4):
        assert rig.portal.call(outcomes_at_the_end, rig.request()) == [("ok",)] * count


def test_an_end_is_lost_while_the_database_fails(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """A run whose end cannot be written is put on record by the next one that can."""
    first = rig.run()
    refuse(rig.url, "INSERT ON syncd_runs")
    standin.requests.clear()
    lost = rig.run()
    assert (lost.outcome, [error.kind for error in lost.errors]) == ("failed", ["database"])
    assert standin.requests == []
    assert "is not on record yet" in log_lines.of("error.database")[-1]["message"]
    allow(rig.url, "INSERT ON syncd_runs")
    good = rig.run()
    assert rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY started_at") == [
        (first.id, "ok"),
        (lost.id, "failed"),
        (good.id, "ok"),
    ]


def test_a_run_by_hand_is_on_record_before_the_one_that_it_follows(rig: Rig) -> None:
    """Ids are given in the order in which runs began, for by them it is known which one was the latest."""
    refuse(rig.url, "INSERT ON syncd_runs")
    failed = rig.run()
    allow(rig.url, "INSERT ON syncd_runs")
    good = rig.wait(asked_for(rig))
    assert rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY id") == [
        (failed.id, "failed"),
        (good.id, "ok"),
    ]


def test_a_run_by_hand_is_on_record_before_the_one_in_progress(rig: Rig) -> None:
    """Nor does it get its id before the run that began already, and has none yet."""
    rig.run()
    with held_up(VERSION_TABLE) as (begun, go_on):
        first = rig.request()
        assert begun.wait(30)
        asked = rig.portal.start_task_soon(rig.account.request)
        rig.until(lambda: rig.runner.queued is not None)
        rig.portal.call(asyncio.sleep, 0.2)
        go_on.set()
        second = asked.result()
    rig.wait(second)
    assert 0 < first.id < second.id


def test_a_run_is_denied_before_the_database_is_open(rig: Rig) -> None:
    """While nobody can look for it, nobody says that there is none."""
    run = rig.run()
    rig.restart()
    rig.portal.call(rig.account.database.close)
    with pytest.raises(StoreError, match="not open"):
        found(rig, run.id)


def test_a_stop_puts_the_end_of_the_run_before_on_record_twice(rig: Rig) -> None:
    """A run that puts it there, and waits for the database, is cancelled: that much it finishes."""
    rig.run()
    refuse(rig.url, "INSERT ON syncd_runs")
    rig.run()
    allow(rig.url, "INSERT ON syncd_runs")
    with rig.locked():
        rig.request()
        rig.until(rig.account.recorder.lock.locked)
        stopped = rig.portal.start_task_soon(rig.runner.stop, 5.0)
        rig.until(lambda: rig.runner.is_stopping)
    assert stopped.result()
    outcomes = [outcome for (outcome,) in rig.sql("SELECT outcome FROM syncd_runs ORDER BY id")]
    assert outcomes == ["ok", "failed", "cancelled"]


def test_an_end_that_two_put_on_record_at_once_fails_a_run(rig: Rig) -> None:
    """Whoever comes second to an end that waits for the database finds it recorded, and goes on."""
    refuse(rig.url, "INSERT ON syncd_runs")
    rig.run()
    allow(rig.url, "INSERT ON syncd_runs")
    with held_up("INSERT INTO syncd_runs") as (begun, go_on):
        asked = rig.portal.start_task_soon(rig.account.request)
        assert begun.wait(30)
        rig.until(lambda: bool(rig.account.recorder.lock._waiters))
        go_on.set()
        run = rig.wait(asked.result())
    assert (run.outcome, run.errors) == ("ok", [])
    assert rig.sql("SELECT outcome FROM syncd_runs ORDER BY id") == [("failed",), ("ok",)]


def test_two_who_open_at_once_refuse_each_other(make_config: MakeConfig) -> None:
    """A run and a command that come first together share one database; a second daemon is refused."""
    config = make_config()

    async def scene() -> None:
        account = Account(config, Redactor())
        await asyncio.gather(*(account.open() for _ in range(3)))
        assert account.database.is_open
        other = Account(config, Redactor())
        with pytest.raises(AlreadyRunning):
            await other.open()
        assert not other.database.is_open
        await account.close()
        await other.open()
        await other.close()

    asyncio.run(scene())


def test_whoever_asks_waits_for_each_who_asked_before(make_config: MakeConfig) -> None:
    """What an attempt to open the database fails with is for all who waited for it; a run tries once more."""
    config = make_config()
    with opened(config.database.url):
        pass
    query(config.database.url, "ALTER TABLE syncd_state RENAME TO elsewhere")

    async def scene() -> None:
        account = Account(config, Redactor())
        account.runner.serve()
        with held_up(VERSION_TABLE) as (begun, go_on), spied(account.database) as tried:
            asked = [asyncio.create_task(account.events(ended_too=True)) for _ in range(3)]
            assert await asyncio.to_thread(begun.wait, 30)
            run = account.runner.request("manual")
            while len(account._opening.alone._waiters or ()) < 3:  # noqa: ASYNC110  # each turn of the loop
                await asyncio.sleep(0)
            go_on.set()
            for one in asked:
                with pytest.raises(StoreError):
                    await one
            await account.runner.wait(run)
            assert [error.kind for error in run.errors] == ["database"]
            assert len(tried) == 2
        query(config.database.url, "ALTER TABLE elsewhere RENAME TO syncd_state")
        assert await account.events(ended_too=True) == []
        assert await account.runner.stop(30)
        await account.close()

    asyncio.run(scene())


def test_a_start_cut_short_locks_the_database_out(make_config: MakeConfig) -> None:
    """An opening that is cancelled ends as opened, or the lock would be held with nobody to use it."""

    async def scene() -> None:
        account = Account(make_config(), Redactor())
        opening = asyncio.create_task(account.open())
        await asyncio.sleep(0.005)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await account.open()
        assert account.database.is_open
        await account.close()

    asyncio.run(scene())


def test_an_opening_cut_short_forgets_the_past(rig: Rig) -> None:
    """One that is cancelled while the file is opened reads what is on record too: nobody does it later."""
    rig.run()
    pause(rig)
    rig.portal.call(rig.account.close)

    async def scene() -> None:
        account = Account(rig.account.config, Redactor())
        with held_up(VERSION_TABLE) as (begun, go_on):
            opening = asyncio.create_task(account.open())
            assert await asyncio.to_thread(begun.wait, 30)
            opening.cancel()
            await asyncio.sleep(0)  # it has heard of that
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await opening
        await account.open()
        assert (account.facts.run_count, account.status().state) == (1, "paused")
        await account.close()

    asyncio.run(scene())


@pytest.mark.sqlite_only("a folder that is missing")
def test_an_end_that_is_recorded_during_the_opening_counts_twice(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """A run that waits for its record gets there before or after the past is read, never meanwhile."""
    (folder := tmp_path / "late").touch()
    with rig_on(make_config(database__url=f"sqlite:///{folder}/syncd.db")) as rig:
        rig.run()
        folder.unlink()
        folder.mkdir()

        async def scene() -> None:
            with held_up(VERSION_TABLE) as (begun, go_on):
                opening = asyncio.create_task(rig.account.open())
                assert await asyncio.to_thread(begun.wait, 30)
                go_on.set()
                while not rig.account.database.is_open:  # the loop stands still: the request is next
                    time.sleep(0.001)  # noqa: ASYNC251
            await rig.account.request()
            await opening

        rig.portal.call(scene)
        rig.until(lambda: rig.account.status().state == "idle")
        assert [(rig.account.facts.run_count,)] == rig.sql("SELECT count(*) FROM syncd_runs")


def test_a_half_read_database_passes_for_an_open_one(rig: Rig) -> None:
    """Where the past cannot be read nothing is taken over, and the next opening starts again."""
    rig.run()
    rig.portal.call(rig.account.close)

    async def scene() -> None:
        account = Account(rig.account.config, Redactor())
        rig.sql("ALTER TABLE syncd_state RENAME TO elsewhere")
        with pytest.raises(StoreError):
            await account.open()
        assert not account.database.is_open
        assert account.facts.run_count == 0
        rig.sql("ALTER TABLE elsewhere RENAME TO syncd_state")
        await account.open()
        assert (account.facts.run_count, account.facts.events_live) == (1, 6)
        await account.close()

    asyncio.run(scene())


# --- new settings


def test_new_settings_wait_for_a_restart(rig: Rig, standin: StandIn) -> None:
    """After configure the next run uses them, a refused key is asked again, and the counts go on."""
    good_key, standin.key = standin.key, "another-key"
    refused = rig.run()
    assert [error.kind for error in refused.errors] == ["credentials"]
    assert rig.account.client.breaker.refused
    assert rig.run().requests == 0
    standin.key = good_key
    assert rig.run().requests == 0
    config = rig.account.config
    quick = structs.replace(config.sync, count_carts=True)
    rig.portal.call(rig.account.configure, structs.replace(config, sync=quick))
    assert not rig.account.client.breaker.refused
    run = rig.run()
    assert (run.outcome, run.requests) == ("ok", 14)
    assert {request.query["temp"] for request in standin.requests if "avail" in request.path} == {"1"}
    assert rig.account.client.statuses["200"] == 15


def test_new_limits_wait_for_a_restart(rig: Rig, standin: StandIn) -> None:
    """The next run keeps to the ceiling and to the time-out that a reload has set."""
    config = rig.account.config
    slow = structs.replace(config.billetweb, requests_per_minute=7)
    rig.portal.call(rig.account.configure, structs.replace(config, billetweb=slow))
    assert rig.run().requests == 14
    assert rig.clock.slept_s > 60
    short = structs.replace(config.sync, run_timeout=timedelta(seconds=0.1))
    rig.portal.call(rig.account.configure, structs.replace(config, sync=short))
    standin.fail("/events", fault.hang)
    assert [error.kind for error in rig.run().errors] == ["timeout"]


def test_settings_that_cannot_be_used_hold_in_part(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no client can be made with new settings, all of the old ones stay."""
    before, client = rig.account.config, rig.account.client
    monkeypatch.setenv("HTTPS_PROXY", "http://a b")
    settings = structs.replace(before.billetweb, base_url="https://billetweb.invalid/api")
    sync = structs.replace(before.sync, interval=timedelta(hours=5))
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        rig.portal.call(rig.account.configure, structs.replace(before, billetweb=settings, sync=sync))
    assert (rig.account.config, rig.account.client) == (before, client)
    assert rig.account.status().interval_s == before.sync.interval.total_seconds()
    assert rig.run().outcome == "ok"


def test_a_run_in_progress_loses_its_connections(rig: Rig, standin: StandIn) -> None:
    """It ends with the settings it began with; every client but the one in use is closed, then that too."""
    standin.fail("/events", fault.hang)
    run = rig.request()
    rig.until(lambda: len(standin.requests) == 1)
    clients = [rig.account.client]
    for _ in range(2):
        rig.portal.call(rig.account.configure, rig.account.config)
        clients.append(rig.account.client)
    assert [client._http.is_closed for client in clients] == [False, True, False]
    standin.heal()
    assert rig.wait(run).outcome == "ok"
    assert [client._http.is_closed for client in clients] == [True, True, False]
    assert rig.account.client.statuses["200"] == 14
    assert rig.run().outcome == "ok"


def test_a_run_of_one_event_uses_up_a_slot(rig: Rig, standin: StandIn) -> None:
    """It stands for no run of all events: a slot that comes meanwhile has one after it."""
    standin.fail("*", fault.hang, times=None)
    named = rig.request("manual", events=("900006",))
    rig.until(lambda: rig.runner.current is named)
    slot = rig.portal.start_task_soon(rig.account._fire)
    rig.until(lambda: bool(rig.runner.queued or rig.account.schedule.skipped))
    standin.heal()
    slot.result()
    status = rig.account.status()
    assert status.slots_skipped == {}
    assert status.last_run
    assert (status.last_run.trigger, status.last_run.whole) == ("interval", True)


def test_a_run_in_progress_stands_still_among_the_latest(rig: Rig, standin: StandIn) -> None:
    """It is listed with what it has done so far, as it is told when it is asked for alone."""
    rig.run()
    standin.fail("/event/*/avail", fault.hang)
    run = rig.request()
    rig.until(lambda: run.progress is not None)
    latest = rig.portal.call(rig.account.runs, 20, None)
    assert [each.id for each in latest] == [run.id, run.id - 1]
    assert latest[0] is found(rig, run.id)


# --- full runs, the pause, what a killed process left


@pytest.mark.parametrize(
    ("ago", "full"),
    [
        (None, True),
        (timedelta(hours=1, minutes=59), False),
        (timedelta(hours=2), True),
        pytest.param(timedelta(minutes=-1), True, id="read-off-a-clock-that-was-ahead"),
    ],
)
def test_full_runs_come_too_often_or_never(
    make_config: MakeConfig, standin: StandIn, ago: timedelta | None, full: bool
) -> None:
    """A scheduled run is full when the last full one is full_every ago or there was none."""
    standin.events = {"900001": standin.events["900001"]}
    with rig_on(make_config(sync__full_every="2h")) as rig:
        rig.account.recorder.last_full_at = datetime.now(UTC) - ago if ago else None
        assert rig.run("manual").full is False
        assert rig.run("manual", events=("900001",)).full is False
        assert rig.run("interval", events=("900001",)).full is False
        assert rig.run().full is full
        assert rig.run().full is False


def test_a_full_run_of_one_event_counts_as_one(rig: Rig) -> None:
    """However fully it reads the events that it names, it says nothing of when all were read."""
    rig.run()
    before = rig.account.recorder.last_full_at
    assert before
    assert rig.run("manual", full=True, events=("900001",)).outcome == "ok"
    assert rig.account.recorder.last_full_at == before
    rig.restart()
    assert rig.account.recorder.last_full_at == before


def test_a_failed_full_run_counts_as_one(rig: Rig, standin: StandIn) -> None:
    """The next scheduled run makes up for it, in another process too."""
    standin.fail("/events", fault.null)
    assert (rig.run().full, rig.run().full, rig.run().full) == (True, True, False)
    last_full_at = rig.query(runs.history, datetime.now(UTC)).last_full_at
    assert last_full_at
    assert last_full_at == rig.account.recorder.last_full_at


def test_a_restart_makes_every_run_full(make_config: MakeConfig, standin: StandIn) -> None:
    """When all was read last is on record: a run that left some events behind was full all the same."""
    config, clock = make_config(), WaitedFor()
    with rig_on(config, clock) as rig:
        standin.fail("/event/900001/tickets", fault.truncated)
        run = rig.run()
        assert (run.full, run.outcome) == (True, "partial")
    for later_s, full in ((0.0, False), (DAY_S - 600, False), (600.0, True), (0.0, False)):
        clock.now_s += later_s
        with rig_on(config, clock) as rig:
            assert rig.run("once").full is full


def test_a_pause_ends_with_the_process(make_config: MakeConfig) -> None:
    """Whether runs are paused, and what status tells of the past, are read when the database is opened."""
    config = make_config()
    with rig_on(config) as rig:
        last = rig.run()
        pause(rig)
    with rig_on(config) as rig:
        assert rig.account.paused
        facts = rig.account.facts
        assert facts.last_run
        assert (facts.last_run.id, facts.run_count, facts.events_live) == (last.id, 1, 6)
        assert facts.last_success_at == last.finished_at
        assert rig.run("manual").id == last.id + 1
        pause(rig, paused=False)
    with rig_on(config) as rig:
        assert not rig.account.paused


def test_nobody_knows_who_paused(make_config: MakeConfig) -> None:
    """Since when and by whom runs are paused outlasts a restart; who pauses them again changes nothing."""
    config, alice, bob = make_config(), Peer(1000, "alice", 1), Peer(1001, "bob", 2)
    with rig_on(config) as rig:
        rig.run()
        assert rig.portal.call(partial(rig.account.pause, paused=True, requested_by=alice))
        status = rig.account.status()
        assert (status.state, status.skipping, status.paused_by) == ("paused", "paused", "alice")
        assert not rig.portal.call(partial(rig.account.pause, paused=True, requested_by=bob))
        assert status.health == "ok"
    with rig_on(config) as rig:
        rig.portal.call(rig.account.open)
        after = rig.account.status()
        assert (after.paused_by, after.paused_since) == ("alice", status.paused_since)
        assert rig.portal.call(partial(rig.account.pause, paused=False, requested_by=bob))
        assert not rig.portal.call(partial(rig.account.pause, paused=False, requested_by=bob))
        after = rig.account.status()
        assert (after.paused_by, after.paused_since, after.skipping) == (None, None, None)


def test_a_status_forgets_the_latest_runs(make_config: MakeConfig, standin: StandIn) -> None:
    """The outcomes of the latest eight runs, newest first, and the database's size are known at once."""
    config = make_config()
    with rig_on(config) as rig:
        standin.fail("/event/900001/avail", fault.status(400))
        outcomes = [rig.run().outcome for _ in range(2)]
        assert rig.account.status().latest_outcomes == outcomes[::-1] == ["ok", "partial"]
    with rig_on(config) as rig:
        rig.portal.call(rig.account.open)
        told = rig.account.status()
        assert told.latest_outcomes == ["ok", "partial"]
        assert told.database_bytes is not None
        assert told.database_bytes > 10_000
        for _ in range(7):
            rig.run()
        assert rig.account.status().latest_outcomes == ["ok"] * 8


def test_the_requests_of_a_year_are_kept(rig: Rig) -> None:
    """Of the requests noted for the next process, a run leaves those of the last minute: its own."""
    for _ in range(3):
        run = rig.run()
        assert rig.sql("SELECT COUNT(*) FROM syncd_requests") == [(run.requests,)]
        rig.clock.now_s += 3600


def test_a_pause_that_cannot_be_remembered_passes_for_one(rig: Rig) -> None:
    """Where the database refuses it the pause fails: after a restart nobody would know of it."""
    refuse(rig.url, "INSERT ON syncd_state")
    with pytest.raises(StoreError):
        pause(rig)
    assert rig.account.status().state == "idle"
    allow(rig.url, "INSERT ON syncd_state")
    pause(rig)
    assert rig.account.status().state == "paused"


def test_a_pause_is_overlooked_by_the_run_that_opens_the_database(rig: Rig, standin: StandIn) -> None:
    """A scheduled run that finds out by opening the database that runs are paused ends before it begins."""
    rig.run()
    rig.portal.call(rig.account.database.close)
    with opened(rig.url) as database, database.begin(write=True) as connection:
        state.put(connection, state.PAUSED, True)
    standin.requests.clear()
    assert not rig.account.paused
    assert rig.run("startup").outcome == "cancelled"
    assert not standin.requests
    assert rig.run("manual").outcome == "ok"


def test_a_restart_empties_the_minute(make_config: MakeConfig, standin: StandIn) -> None:
    """Requests of the process before count: with the ceiling reached the next one waits for the window."""
    # One after the other: whose turn it is in the second run, and what that costs, follows from their order.
    config = make_config(billetweb__requests_per_minute=14, billetweb__concurrency=1)
    with rig_on(config) as rig:
        rig.run()
        assert rig.clock.slept_s == 0
    assert len(standin.requests) == 14
    with rig_on(config) as rig:
        rig.run()
        assert 50 < rig.clock.slept_s <= 61


def test_the_error_that_ended_a_run_is_told_as_another(
    rig: Rig, standin: StandIn, log_lines: LogLines
) -> None:
    """Where a run keeps no more errors the log still tells what ended it."""
    rig.run()
    names = [f"4{number:05}" for number in range(MAX_ERRORS + 5)]
    standin.sell("900001")
    refuse(rig.url, "UPDATE ON billetweb_tickets")
    run = rig.run("manual", events=(*names, "900001"))
    assert (run.outcome, run.errors_total, len(run.errors)) == ("failed", MAX_ERRORS + 6, MAX_ERRORS)
    (told,) = log_lines.of("error.database")
    assert told["subject"] == "run"
    assert "refused" in told["message"]


def test_an_interrupted_run_is_for_ever_running(make_config: MakeConfig, standin: StandIn) -> None:
    """What a killed process left open is closed as failed by the next, with the count of what it changed."""
    config = make_config()
    with rig_on(config) as rig:
        rig.run()
        standin.sell("900006", 1)
        assert rig.run().counts.updated > 0
    before = rig.sql("SELECT inserted, updated FROM syncd_runs ORDER BY id")
    left = "state = 'running', outcome = NULL, finished_at = NULL, updated = 0"
    rig.sql(f"UPDATE syncd_runs SET {left} WHERE id = 2")
    with rig_on(config) as rig:
        assert rig.sql("SELECT inserted, updated FROM syncd_runs ORDER BY id") == before
        ((outcome, errors),) = rig.sql("SELECT outcome, errors FROM syncd_runs WHERE id = 2")
        assert outcome == "failed"
        assert '"interrupted"' in errors
        assert rig.account.facts.consecutive_failures == 1
        assert rig.run().id == 3


def test_a_run_that_never_began_counts_as_failed(make_config: MakeConfig) -> None:
    """A run that was queued when its process was killed is closed as cancelled, and in no count."""
    config = make_config()
    with rig_on(config) as rig:
        good = rig.run()
        waiting = Run(id=-1, trigger="manual")
        with rig.account.database.begin(write=True) as connection:
            waiting.id = runs.put(connection, waiting)
    with rig_on(config) as rig:
        assert rig.sql("SELECT state, outcome FROM syncd_runs WHERE id = ?", waiting.id) == [
            ("done", "cancelled")
        ]
        facts = rig.account.facts
        assert (facts.run_count, facts.consecutive_failures) == (1, 0)
        assert facts.last_run
        assert facts.last_run.id == good.id


# --- a run that somebody asked for


def test_a_run_asked_for_is_not_on_record(rig: Rig, standin: StandIn) -> None:
    """While another is in progress it has its lasting id, and its row, as soon as the request is answered."""
    rig.run()
    before = len(standin.requests)
    standin.fail("/events", fault.hang)
    running = rig.request()
    rig.until(lambda: len(standin.requests) > before)
    run = asked_for(rig)
    assert (run.state, run.id) == ("queued", running.id + 1)
    assert rig.sql("SELECT state FROM syncd_runs WHERE id = ?", run.id) == [("queued",)]
    assert found(rig, run.id) is run
    assert asked_for(rig) is run
    assert len(rig.sql("SELECT id FROM syncd_runs")) == 3
    standin.heal()
    assert rig.wait(run).outcome == "ok"
    assert rig.sql("SELECT state, outcome FROM syncd_runs WHERE id = ?", run.id) == [("done", "ok")]


def test_a_run_asked_for_without_a_database_is_lost(rig: Rig) -> None:
    """It has an id of this process alone, by which it is found also when it has its lasting one."""
    rig.run()
    refuse(rig.url, "INSERT ON syncd_runs")
    run = asked_for(rig)
    first = run.id
    assert first < 0
    assert found(rig, first) is run
    assert rig.wait(run).outcome == "failed"
    allow(rig.url, "INSERT ON syncd_runs")
    rig.run()
    assert run.id > 0
    assert found(rig, first) is found(rig, run.id) is run
    assert rig.sql("SELECT outcome FROM syncd_runs WHERE id = ?", run.id) == [("failed",)]


def test_a_locked_database_keeps_whoever_asks_waiting(rig: Rig) -> None:
    """An answer comes within two seconds or so; the run has its lasting id as soon as that can be given."""
    rig.run()
    with rig.locked():
        began = time.monotonic()
        run = asked_for(rig)
        assert time.monotonic() - began < 2.9
        first = run.id
        assert first < 0
    assert rig.wait(run).outcome == "ok"
    assert found(rig, first) is found(rig, run.id) is run
    assert rig.sql("SELECT id, outcome FROM syncd_runs WHERE id > 1") == [(run.id, "ok")]


# --- no state in memory: times of rest

RESTS: dict[str, tuple[Fault, str, float]] = {
    # case: what Billetweb answers, the kind of error that a run then ends with, how long nothing is sent
    "too many calls": (fault.rate_limiting("3600"), "rate_limited", 3600.0),
    "maintenance": (fault.raw(b"", 503, {"retry-after": "3600"}), "rate_limited", 3600.0),
    "challenge": (fault.challenge, "challenge", 300.0),
    "refused key": (fault.unauthorized, "credentials", DAY_S),
}


def rests(rig: Rig, standin: StandIn, kind: str, trigger: str = "startup") -> None:
    """Fail unless a run asks nothing, and says why."""
    before = len(standin.requests)
    run = rig.run(trigger)  # type: ignore[arg-type]
    assert (run.outcome, run.requests, [error.kind for error in run.errors]) == ("failed", 0, [kind])
    assert len(standin.requests) == before


def refused_once(config: Config, standin: StandIn, clock: WaitedFor, case: str) -> None:
    """Let a process meet what it is to rest after; it ends."""
    standin.fail("/events", RESTS[case][0])
    with rig_on(config, clock) as rig:
        assert rig.run("once").outcome == "failed"
    assert len(standin.requests) == 1


@pytest.mark.usefixtures("instant_retries")
@pytest.mark.parametrize("case", mostly_slow(RESTS, "each starts a dozen times"))
def test_ten_restarts_send_ten_requests(make_config: MakeConfig, standin: StandIn, case: str) -> None:
    """While nothing is to be sent no process sends anything; the first one after that time does."""
    _, kind, rest_s = RESTS[case]
    config, clock = make_config(), WaitedFor()
    refused_once(config, standin, clock, case)
    for _ in range(10):
        with rig_on(config, clock) as rig:
            assert rig.account.client.breaker.refused is (kind == "credentials")
            rests(rig, standin, kind)
        clock.now_s += rest_s / 11
    assert len(standin.requests) == 1
    clock.now_s += rest_s / 11
    with rig_on(config, clock) as rig:
        assert rig.run("startup").outcome == "ok"
    with rig_on(config, clock) as rig:  # and the rest is forgotten
        assert rig.sql("SELECT name FROM syncd_state WHERE name = 'quiet'") == []
        assert rig.run("startup").outcome == "ok"


def test_a_long_rest_holds_a_run_until_its_time_is_over(rig: Rig, standin: StandIn) -> None:
    """A rest longer than a run may wait ends it at once, and the next run asks nothing."""
    standin.fail("/events", fault.rate_limiting("3600"))
    for requests in (1, 0):
        run = rig.run()
        assert (run.outcome, run.requests) == ("failed", requests)
        assert [error.kind for error in run.errors] == ["rate_limited"]
    rig.clock.now_s += 3601
    assert rig.run().outcome == "ok"


class MayBeSetBack(WaitedFor):
    """A machine whose wall clock somebody sets back."""

    set_back_s = 0.0

    def now(self) -> datetime:
        return super().now() - timedelta(seconds=self.set_back_s)


def test_requests_of_a_clock_that_was_ahead_fill_the_minute(
    make_config: MakeConfig, standin: StandIn
) -> None:
    """After the wall clock was set back the next process waits for no request of a day to come."""
    config, clock = make_config(billetweb__requests_per_minute=14, billetweb__concurrency=1), MayBeSetBack()
    with rig_on(config, clock) as rig:
        rig.run()
    assert len(standin.requests) == 14
    clock.set_back_s = DAY_S
    with rig_on(config, clock) as rig:
        assert rig.run().outcome == "ok"
        assert clock.slept_s == 0


@pytest.mark.usefixtures("instant_retries")
@pytest.mark.parametrize("case", mostly_slow(RESTS, "each takes three runs", always=2))
@pytest.mark.parametrize("restarts", [True, False])
def test_a_clock_set_back_makes_a_rest_longer(
    make_config: MakeConfig, standin: StandIn, case: str, restarts: bool
) -> None:
    """After at most its length a rest is over, though the wall clock shows an instant long before it."""
    fault_, kind, rest_s = RESTS[case]
    config, clock = make_config(), MayBeSetBack()
    if restarts:
        refused_once(config, standin, clock, case)
        clock.set_back_s = 10 * DAY_S
        for _ in range(3):
            with rig_on(config, clock) as rig:
                rests(rig, standin, kind)
            clock.now_s += rest_s / 3
        with rig_on(config, clock) as rig:
            assert rig.run("startup").outcome == "ok"
    else:
        standin.fail("/events", fault_)
        with rig_on(config, clock) as rig:
            rig.run()
            clock.set_back_s = 10 * DAY_S
            rests(rig, standin, kind)
            clock.now_s += rest_s
            assert rig.run().outcome == "ok"


@pytest.mark.usefixtures("instant_retries")
def test_a_third_challenge_after_restarts_counts_as_the_first(
    make_config: MakeConfig, standin: StandIn
) -> None:
    """Each challenge in a row doubles the rest, however many processes meet them."""
    config, clock = make_config(), WaitedFor()
    for length_s in (300.0, 600.0, 1200.0):
        standin.fail("/events", fault.challenge)
        with rig_on(config, clock) as rig:
            assert rig.run("once").requests == 1
        clock.now_s += length_s - 60
        with rig_on(config, clock) as rig:
            rests(rig, standin, "challenge", "once")
        clock.now_s += 60
    with rig_on(config, clock) as rig:
        assert rig.run("once").outcome == "ok"


@pytest.mark.usefixtures("instant_retries")
@pytest.mark.parametrize(
    "case", mostly_slow(["too many calls", "maintenance", "challenge"], "each takes three runs")
)
def test_a_reload_ends_a_rest_that_is_not_the_keys(
    make_config: MakeConfig, standin: StandIn, case: str
) -> None:
    """New settings, and a new key, change nothing about what Billetweb asked of whoever sends."""
    fault_, kind, rest_s = RESTS[case]
    config, clock = make_config(), WaitedFor()
    standin.fail("/events", fault_)
    with rig_on(config, clock) as rig:
        rig.run()
        for key in (config.key.value, "a-new-key"):
            rig.portal.call(rig.account.configure, with_key(config, key))
            rests(rig, standin, kind, "interval")
        standin.key = "a-new-key"
        clock.now_s += rest_s
        assert rig.run().outcome == "ok"
        assert rig.sql("SELECT name FROM syncd_state WHERE name = 'quiet'") == []


@pytest.mark.usefixtures("instant_retries")
@pytest.mark.parametrize("case", mostly_slow(RESTS, "each takes two runs", always=2))
def test_a_reload_during_a_run_forgets_what_the_run_meets(
    make_config: MakeConfig, standin: StandIn, case: str
) -> None:
    """What Billetweb asks of a run that goes on with its settings holds for the next, and then no longer."""
    fault_, kind, rest_s = RESTS[case]
    clock = WaitedFor()
    standin.fail("/events", lambda answer: fault.hang(fault_(answer)))
    with rig_on(make_config(), clock) as rig:
        run = rig.request()
        rig.until(lambda: len(standin.requests) == 1)
        rig.portal.call(rig.account.configure, rig.account.config)
        standin.heal()
        assert rig.wait(run).outcome == "failed"
        rests(rig, standin, kind, "interval")
        clock.now_s += rest_s
        assert rig.run().outcome == "ok"
        assert rig.sql("SELECT name FROM syncd_state WHERE name = 'quiet'") == []


def test_a_rest_is_on_record_after_its_end(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what requests at the same time find out the latest is noted last, however long a note takes."""
    with rig_on(make_config()) as rig:
        database, now, steps = rig.account.database, rig.clock.now(), list[str]()
        write = database.write

        async def written(query: Any, *values: Any) -> Any:
            steps.append("begun")
            found = await write(query, *values)
            steps.append("done")
            return found

        async def note() -> None:
            """Note that a rest begins, and at the same time that it is over."""
            rest = Quiet(kind="rate_limited", since=now, until=now + timedelta(hours=1))
            await asyncio.gather(*map(rig.account.client.breaker._on_quiet, (rest, None)))  # type: ignore[arg-type]

        monkeypatch.setattr(database, "write", written)
        rig.portal.call(note)
        assert steps == ["begun", "done"] * 2
        assert rig.query(state.get, state.QUIET, Quiet) is None


# --- no state in memory: refused and limited keys


@pytest.mark.parametrize("way", ["restart", "reload"])
def test_a_refusal_outlives_its_key(make_config: MakeConfig, standin: StandIn, way: str) -> None:
    """A key that takes the place of a refused one is tried at once, and then not any more as refused."""
    config, clock = make_config(), WaitedFor()
    good_key, standin.key = standin.key, "a-new-key"
    with rig_on(config, clock) as rig:
        assert rig.run().requests == 1
        assert rig.account.client.breaker.refused
        if way == "reload":
            rig.portal.call(rig.account.configure, with_key(config, standin.key))
            assert not rig.account.client.breaker.refused
            assert rig.run().outcome == "ok"
    with rig_on(with_key(config, standin.key), clock) as rig:
        assert not rig.account.client.breaker.refused
        assert rig.run("startup").outcome == "ok"
    assert good_key != standin.key


def test_a_refused_key_that_is_good_again_stays_refused(make_config: MakeConfig, standin: StandIn) -> None:
    """Who runs by hand, or reloads, says that it is good: it is asked, and then no restart doubts it."""
    config, clock = make_config(), WaitedFor()
    for way, reloads in (("run-now", 0), ("reload", 1), ("reload", 2)):
        standin.fail("/events", fault.unauthorized)
        with rig_on(config, clock) as rig:
            rig.run()
            rests(rig, standin, "credentials", "interval")
        with rig_on(config, clock) as rig:
            rests(rig, standin, "credentials")
            for _ in range(reloads):
                rig.portal.call(rig.account.configure, config)
            assert rig.run("manual" if way == "run-now" else "interval").outcome == "ok"
            assert rig.run("interval").outcome == "ok"
        with rig_on(config, clock) as rig:
            assert rig.account.status().health == "ok"
            assert rig.run("startup").outcome == "ok"


def test_a_run_by_hand_hammers_a_refused_key(make_config: MakeConfig, standin: StandIn) -> None:
    """Each run by hand asks once, also after a restart; the next scheduled one asks nothing again."""
    config, clock = make_config(), WaitedFor()
    standin.fail("/events", fault.unauthorized, times=None)
    with rig_on(config, clock) as rig:
        assert rig.run().requests == 1
    for _ in range(2):
        with rig_on(config, clock) as rig:
            assert rig.run("manual").requests == 1
            rests(rig, standin, "credentials", "interval")
    with rig_on(config, clock) as rig:
        rests(rig, standin, "credentials")


def test_a_first_import_by_hand_stays_refused(rig: Rig, standin: StandIn) -> None:
    """Who asks for `once --full` vouches for the key; a timer's `once` leaves it alone."""
    good_key, standin.key = standin.key, "another-key"
    rig.run()
    standin.key = good_key
    assert rig.run("once").requests == 0
    assert rig.run("once", full=True).outcome == "ok"


def test_the_database_tells_the_key(make_config: MakeConfig, standin: StandIn) -> None:
    """Of a refused or a limited key there is a digest; two of the same key have nothing in common."""
    config, clock = make_config(sync__attendees="minimal"), WaitedFor()
    seen: list[str] = []
    for _ in range(2):
        standin.restricted = True
        with rig_on(config, clock) as rig:
            rig.run("manual")
            limited = rig.query(state.get, state.LIMITED, state.Limited)
            standin.fail("/events", fault.unauthorized)
            rig.run("manual")
            quiet = rig.query(state.get, state.QUIET, Quiet)
            seen += [limited.key, quiet.key]
            secret = f"{config.billetweb.user}:{config.key.value}"
            assert Secret(secret).is_of(limited.key)
            assert Secret(secret).is_of(quiet.key)
            assert not Secret("another").is_of(quiet.key)
            stored = str(rig.sql("SELECT name, value FROM syncd_state"))
            assert config.key.value not in stored
            clock.now_s += DAY_S
    parts = [part for digest in seen for part in digest.split("$")]
    assert len({*parts}) == len(parts) == 8


@pytest.mark.parametrize("restarts", mostly_slow([True, False], "each takes many runs"))
def test_a_limited_key_is_asked_with_every_run(
    make_config: MakeConfig, standin: StandIn, restarts: bool
) -> None:
    """Once a day the account's attendees are asked for, whichever process runs; by a new key at once."""
    config, clock = make_config(sync__attendees="minimal"), WaitedFor()
    standin.restricted = True
    standin.events = {"900001": standin.events["900001"]}
    asked: list[int] = []

    def hours_later(rig: Rig, hours: float) -> None:
        clock.now_s += 3600 * hours
        before = len(standin.requests)
        run = rig.run("once")
        assert run.synced == 1
        asked.append([request.path for request in standin.requests[before:]].count("/attendees"))

    waits = (0.0, 0.25, 6.0, 17.0, 0.75, 0.25, 23.0)
    if restarts:
        for hours in waits:
            with rig_on(config, clock) as rig:
                hours_later(rig, hours)
    else:
        with rig_on(config, clock) as rig:
            for hours in waits:
                hours_later(rig, hours)
    assert asked == [1, 0, 0, 0, 1, 0, 0]
    standin.key = "a-new-key"
    for expected in ([1], [1, 0]):  # limited as the old one, which it has to find out for itself
        del asked[len(expected) - 1 :]
        with rig_on(with_key(config, standin.key), clock) as rig:
            hours_later(rig, 0.25)
        assert asked == expected
    standin.restricted, standin.key = False, "an-unlimited-key"
    with rig_on(with_key(config, standin.key), clock) as rig:
        hours_later(rig, 0.25)
        hours_later(rig, 0.25)
    assert min(asked[-2:]) >= 1


# --- no state in memory: what status tells


def test_status_after_a_restart_knows_nothing(make_config: MakeConfig, standin: StandIn) -> None:
    """The budget and the doubts of the latest run are shown before the next one begins."""
    config = make_config()
    with rig_on(config) as rig:
        rig.run()
        standin.fail("/event/900001/tickets", with_rows(lambda _: []))
        assert rig.run().outcome == "partial"
        before = rig.account.status()
        assert (before.doubts, before.health) == (1, "degraded")
        assert before.budget
        assert before.budget.full_requests == 13
    with rig_on(config) as rig:
        after = rig.account.status()
        assert after.budget == before.budget
        assert (after.doubts, after.events_unread) == (before.doubts, before.events_unread)
        assert (after.health, after.health_reason) == (before.health, before.health_reason)
        assert after.last_error == before.last_error
        assert (after.run_count, after.last_success_at) == (2, before.last_success_at)
        assert rig.run().outcome == "ok"
        assert rig.account.status().doubts == 0


# --- no state in memory: fresh processes


@pytest.mark.slow("each starts ten processes")
@pytest.mark.parametrize("case", ["refused key", "too many calls", "challenge"])
def test_a_timer_sends_what_billetweb_asked_not_to(
    home: Path, standin: StandIn, base_url: str, case: str
) -> None:
    """Neither `syncd once` nor a daemon that starts sends anything, until the rest is over."""
    path = write_config(home, base_url)
    standin.fail("/events", RESTS[case][0])
    for _ in range(3):
        assert syncd("once", "--config", path).returncode == 1
        assert len(standin.requests) == 1
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran(4)
        assert len(standin.requests) == 1
        if case == "refused key":
            assert daemon.status()["health"] == "failing"
            assert daemon.ctl("run-now").returncode == 0  # somebody says that it is good
            return
        assert daemon.ctl("run-now").returncode == 1
        assert len(standin.requests) == 1
    with opened(url_at(home / "syncd.db")) as database, database.begin(write=True) as connection:
        quiet = state.get(connection, state.QUIET, Quiet)
        assert quiet
        earlier = quiet.until - quiet.since
        over = structs.replace(quiet, since=quiet.since - earlier, until=quiet.until - earlier)
        state.put(connection, state.QUIET, over)
    assert syncd("once", "--config", path).returncode == 0
    assert query(url_at(home / "syncd.db"), "SELECT name FROM syncd_state WHERE name = 'quiet'") == []


def tells_of(rig: Rig, count: int) -> bool:
    return len(rig.account.facts.places) == count


@pytest.mark.parametrize(("most", "told"), [(6, 6), (5, 0), (0, 0)])
def test_metrics_tell_of_more_events_than_they_may(
    make_config: MakeConfig, standin: StandIn, most: int, told: int
) -> None:
    """The places of each live event are known, from the start on, where there are no more than wanted."""
    with rig_on(make_config(metrics__events=most)) as rig:
        rig.run()
        places = {event.id: event for event in rig.account.facts.places}
        assert len(places) == told
        rig.restart()
        assert {event.id: event for event in rig.account.facts.places} == places
        if told:
            assert (places["900006"].places_left, places["900006"].places_total) == (3, 180)
            assert places["900004"].unlimited
        for events, shown in ((0, 0), (most, told)):
            rig.portal.call(rig.account.configure, make_config(metrics__events=events))
            eventually(partial(tells_of, rig, shown))
