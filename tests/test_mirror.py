"""What is remembered between runs: an absent database, new settings, the pause, and the minute's requests."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import LogLines, MakeConfig, Rig, mirrors, rig_on
from msgspec import structs
from real_databases import allow, refuse

from syncd import standin as fault
from syncd.database import Database
from syncd.errors import AlreadyRunning, StoreError
from syncd.mirror import Mirror
from syncd.model import MAX_ERRORS
from syncd.redact import Redactor
from syncd.standin import StandIn, rate_limiting
from syncd.store import Store


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
        assert rig.mirror.record.consecutive_failures == 2
        assert len(log_lines.of("error.database")) == 1
        folder.mkdir()
        good = rig.run()
        assert good.outcome == "ok"
        mirrors(rig, standin)
        assert rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY started_at") == [
            *((run.id, "failed") for run in failed),
            (good.id, "ok"),
        ]
        after = rig.run()
        assert (after.id, after.outcome) == (1, "ok")
        assert rig.mirror.record.run_count == 4
        assert rig.mirror.record.consecutive_failures == 0


def test_an_end_is_lost_while_the_database_fails(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """A run whose end cannot be written is put on record by the next one that can."""
    rig.run()
    refuse(rig.url, "INSERT ON syncd_runs")
    standin.requests.clear()
    lost = rig.run()
    assert (lost.outcome, [error.kind for error in lost.errors]) == ("failed", ["database"])
    assert standin.requests == []
    assert "is not on record yet" in log_lines.of("error.database")[-1]["message"]
    allow(rig.url, "INSERT ON syncd_runs")
    good = rig.run()
    assert rig.sql("SELECT id, outcome FROM syncd_runs WHERE id > 1 ORDER BY id") == [
        (lost.id, "failed"),
        (good.id, "ok"),
    ]


def test_two_who_open_at_once_refuse_each_other(make_config: MakeConfig) -> None:
    """A run and a command that come first together share one database; a second daemon is refused."""
    config = make_config()

    async def scene() -> None:
        mirror = Mirror(config, Redactor())
        stores = await asyncio.gather(*(mirror.open() for _ in range(3)))
        assert stores == [mirror.store] * 3
        other = Mirror(config, Redactor())
        with pytest.raises(AlreadyRunning):
            await other.open()
        assert other.store is None
        await mirror.close()
        await other.open()
        await other.close()

    asyncio.run(scene())


def test_a_start_cut_short_locks_the_database_out(make_config: MakeConfig) -> None:
    """An opening that is cancelled ends as opened, or the lock would be held with nobody to use it."""

    async def scene() -> None:
        mirror = Mirror(make_config(), Redactor())
        opening = asyncio.create_task(mirror.open())
        await asyncio.sleep(0.005)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert await mirror.open() is mirror.store
        await mirror.close()

    asyncio.run(scene())


def test_a_half_read_database_passes_for_an_open_one(rig: Rig) -> None:
    """Where the past cannot be read nothing is taken over, and the next opening starts again."""
    rig.run()
    rig.portal.call(rig.mirror.close)

    async def scene() -> None:
        mirror = Mirror(rig.mirror.config, Redactor())
        rig.sql("ALTER TABLE syncd_state RENAME TO elsewhere")
        with pytest.raises(StoreError):
            await mirror.open()
        assert mirror.store is None
        assert mirror.record.run_count == 0
        rig.sql("ALTER TABLE elsewhere RENAME TO syncd_state")
        await mirror.open()
        assert (mirror.record.run_count, mirror.record.events_live, mirror.next_id()) == (1, 6, 2)
        await mirror.close()

    asyncio.run(scene())


def test_new_settings_wait_for_a_restart(rig: Rig, standin: StandIn) -> None:
    """After configure the next run uses them, a refused key is asked again, and the counts go on."""
    good_key, standin.key = standin.key, "another-key"
    refused = rig.run()
    assert [error.kind for error in refused.errors] == ["credentials"]
    assert rig.mirror.client.refused
    assert rig.run().requests == 0
    standin.key = good_key
    assert rig.run().requests == 0
    config = rig.mirror.config
    quick = structs.replace(config.sync, count_carts=True)
    rig.portal.call(rig.mirror.configure, structs.replace(config, sync=quick))
    assert not rig.mirror.client.refused
    run = rig.run()
    assert (run.outcome, run.requests) == ("ok", 14)
    assert {request.query["temp"] for request in standin.requests if "avail" in request.path} == {"1"}
    assert rig.mirror.client.statuses["200"] == 15


def test_a_run_in_progress_loses_its_connections(rig: Rig, standin: StandIn) -> None:
    """It ends with the settings it began with; every client but the one in use is closed, then that too."""
    standin.fail("/events", fault.hang)
    run = rig.request()
    rig.until(lambda: len(standin.requests) == 1)
    clients = [rig.mirror.client]
    for _ in range(2):
        rig.portal.call(rig.mirror.configure, rig.mirror.config)
        clients.append(rig.mirror.client)
    assert [client._http.is_closed for client in clients] == [False, True, False]
    standin.heal()
    assert rig.wait(run).outcome == "ok"
    assert [client._http.is_closed for client in clients] == [True, True, False]
    assert rig.mirror.client.statuses["200"] == 14
    assert rig.run().outcome == "ok"


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
    make_config: MakeConfig, ago: timedelta | None, full: bool
) -> None:
    """A scheduled run is full when the last full one is full_every ago or there was none."""
    with rig_on(make_config(sync__full_every="2h")) as rig:
        rig.mirror.record.last_full_at = datetime.now(UTC) - ago if ago else None
        assert rig.run("manual").full is False
        assert rig.run("manual", events=("900001",)).full is False
        assert rig.run("interval", events=("900001",)).full is False
        assert rig.run().full is full
        assert rig.run().full is False


def test_a_failed_full_run_counts_as_one(rig: Rig, standin: StandIn) -> None:
    """The next scheduled run makes up for it, in another process too."""
    standin.fail("/events", fault.null)
    assert (rig.run().full, rig.run().full, rig.run().full) == (True, True, False)
    assert rig.mirror.store
    assert rig.mirror.store.open_history(datetime.now(UTC)).last_full_at == rig.mirror.record.last_full_at


def test_a_run_by_hand_obeys_an_old_refusal(rig: Rig, standin: StandIn) -> None:
    """After refused credentials scheduled runs ask nothing; one by hand asks again."""
    standin.fail("/events", fault.unauthorized)
    rig.run()
    assert rig.run().requests == 0
    assert rig.run("manual").outcome == "ok"


def test_a_pause_ends_with_the_process(make_config: MakeConfig) -> None:
    """Whether runs are paused, and what status tells of the past, are read when the database is opened."""
    config = make_config()
    with rig_on(config) as rig:
        last = rig.run()
        assert rig.mirror.store
        rig.mirror.store.set_paused(True)
    with rig_on(config) as rig:
        assert rig.mirror.paused
        record = rig.mirror.record
        assert record.last_run
        assert (record.last_run.id, record.run_count, record.events_live) == (last.id, 1, 6)
        assert record.last_success_at == last.finished_at
        assert rig.run().id == last.id + 1


def test_a_pause_is_overlooked_by_the_run_that_opens_the_database(
    make_config: MakeConfig, standin: StandIn
) -> None:
    """A scheduled run that finds out by opening the database that runs are paused ends before it begins."""
    config = make_config()
    with rig_on(config) as before:
        before.run()
        before.portal.call(before.mirror.close)
        store = Store(Database(config.database.url))
        store.set_paused(True)
        store.close()
    standin.requests.clear()
    with rig_on(config) as rig:
        assert rig.run("startup").outcome == "cancelled"
        assert not standin.requests
        assert rig.run("manual").outcome == "ok"


def test_a_long_rest_holds_a_run_until_its_time_is_over(rig: Rig, standin: StandIn) -> None:
    """A rest longer than a run may wait ends it at once, and the next run asks nothing."""
    standin.fail("/events", rate_limiting("3600"))
    for requests in (1, 0):
        run = rig.run()
        assert (run.outcome, run.requests) == ("failed", requests)
        assert [error.kind for error in run.errors] == ["rate_limited"]
    rig.clock.now_s += 3601
    assert rig.run().outcome == "ok"


def test_a_restart_empties_the_minute(make_config: MakeConfig, standin: StandIn) -> None:
    """Requests of the process before count: with the ceiling reached the next one waits for the window."""
    config = make_config(billetweb__requests_per_minute=14)
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


def test_an_interrupted_run_is_for_ever_running(make_config: MakeConfig) -> None:
    """What a killed process left open is closed as failed when the database is opened, and counted."""
    config = make_config()
    with rig_on(config) as rig:
        rig.run()
    rig.sql("UPDATE syncd_runs SET state = 'running', outcome = NULL, finished_at = NULL")
    with rig_on(config) as rig:
        ((outcome, errors),) = rig.sql("SELECT outcome, errors FROM syncd_runs")
        assert outcome == "failed"
        assert '"interrupted"' in errors
        assert rig.mirror.record.consecutive_failures == 1
        assert rig.run().id == 2
