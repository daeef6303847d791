"""A database that 0.3 left is brought to this version: nothing is lost, and the next run goes on from it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import MakeConfig, Rig, mirrors, rig_on
from sqlalchemy import inspect
from support.people import remove_order
from support.reading import past_the_lock
from support.real_databases import Rows, is_postgresql, query, url_at

from syncd.database import absences, attendees, runs, schema, state
from syncd.database.attendees import Cursor
from syncd.database.engine import VERSION_TABLE, Database, upgrade
from syncd.database.state import Reads
from syncd.errors import StoreError
from syncd.mirror.absence import Absence
from syncd.model import ATTENDEES, EVENTS, GAUGES, SESSIONS, TICKETS, Peer, Run, RunError
from syncd.standin.server import StandIn

FESTIVAL, WEEKEND, WORKSHOP, OPEN_DAY, OUTING, CONCERT = (str(900001 + turn) for turn in range(6))
OVER = "800001"
MANY = 100_000
LONG_AGO = -1_800_000_000
"""The id that 0.3 gave a run for which it could open no database."""
LAST_ID = 41
NOW = datetime.now(UTC).replace(microsecond=0)
MIRRORED = (EVENTS, GAUGES, TICKETS, SESSIONS, ATTENDEES)
SUSPECTS = {
    (EVENTS, OVER): (OVER, False, False),
    (TICKETS, "7001"): (FESTIVAL, False, False),
    (TICKETS, "7002"): (FESTIVAL, True, True),
    (GAUGES, f"{WEEKEND}//seat/row/A/B"): (WEEKEND, True, False),
    (SESSIONS, "880001"): (OUTING, False, True),
    (ATTENDEES, "a77"): (OVER, True, False),
}
"""By table and row: its event, whether it was doubted, and whether by hand."""


def at(**ago: float) -> str:
    """Give an instant of so long ago as text."""
    return (NOW - timedelta(**ago)).strftime("%Y-%m-%d %H:%M:%S.%f")


# --- what 0.3 left


def insert(url: str, table: str, /, **row: object) -> None:
    columns, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" for _ in row)
    query(url, f"INSERT INTO {table} ({columns}) VALUES ({marks})", *row.values())


def insert_run(url: str, run_id: int, outcome: str | None, **fields: object) -> None:
    hours_ago = 50 - max(run_id, 0)
    row: dict[str, object] = {
        "id": run_id,
        "trigger": "interval",
        "requested_by": None,
        "full": False,
        "events": "[]",
        "whole": True,
        "state": "done",
        "outcome": outcome,
        "started_at": at(hours=hours_ago),
        "finished_at": at(hours=hours_ago - 0.1),
        "duration_s": 360.0,
        "requests": 14,
        "synced": 6,
        "failed": 0,
        "errors": "[]",
        "errors_total": 0,
    }
    counts = {"inserted": 1, "updated": 2, "unchanged": 30, "vanished": 0, "returned": 0}
    insert(url, "syncd_runs", **row | counts | fields)


def insert_runs(url: str) -> None:
    """Put on record: one of a time without a database, many good ones, one by hand, one still running."""
    no_database = '[{"subject":"run","kind":"database","message":"cannot open the database"}]'
    insert_run(
        url, LONG_AGO, "failed", requests=0, synced=0, errors=no_database, errors_total=1, duration_s=0.1
    )
    for run_id in range(1, LAST_ID - 2):
        insert_run(url, run_id, "ok", full=run_id % 10 == 1)
    named = {"requested_by": '{"uid":1000,"user":"amélie","pid":77}', "events": '["900001"]', "whole": False}
    insert_run(url, LAST_ID - 2, "partial", trigger="manual", **named)
    insert_run(url, LAST_ID - 1, "failed")
    insert_run(url, LAST_ID, None, state="running", finished_at=None, duration_s=None, synced=0)


def insert_many_attendees(url: str, count: int = MANY) -> None:
    """Let an event that is over have many attendees."""
    insert(
        url,
        EVENTS,
        id=OVER,
        account="1",
        name="Fête d'été 🎸",
        starts_at=at(days=90),
        ends_at=at(days=89),
        multiple=False,
        online=True,
        tax_rate="5.5",
        tags='["été"]',
        places_total=MANY,
        places_left=0,
        unlimited=False,
        is_full=True,
        availability_at=at(days=60),
        extra='{"x":[1.0,null]}',
        first_seen_at=at(days=300),
        changed_at=at(days=60),
    )
    query(
        url,
        f"""
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
        INSERT INTO billetweb_attendees (
            id, event_id, ticket_id, order_id, barcode, price, order_price, used, used_at, disabled,
            order_paid, ordered_at, last_update_at, firstname, name, email, custom, extra,
            first_seen_at, changed_at, vanished_at
        )
        SELECT 'a' || i, '{OVER}', CAST(i % 7 AS text), 'o' || (i / 3), 'B' || (i * 7919), i % 40 + 0.25,
            (i % 40) * 3 + 0.75, CASE WHEN i % 3 = 0 THEN 1 ELSE 0 END,
            CASE WHEN i % 3 = 0 THEN ts.at END, ts.no, CASE WHEN i % 11 = 0 THEN NULL ELSE ts.yes END,
            ts.at, ts.at, 'Zoé ' || i, 'Brûlé', 'z' || i || '@example.org', ts.custom, ts.extra,
            ts.at, ts.at, CASE WHEN i % 100 = 0 THEN ts.at END
        FROM n, (SELECT {typed(at(days=100))}) AS ts
        """,
    )


def typed(instant: str) -> str:
    """Give one value of each kind that the databases spell in their own ways."""
    spelled = {
        "at": f"'{instant}'",
        "no": "false",
        "yes": "true",
        "custom": """'{"q":"é"}'""",
        "extra": "'{}'",
    }
    if not is_postgresql():
        return ", ".join(f"{text} AS {name}" for name, text in spelled.items())
    kinds = {"at": "timestamptz", "no": "boolean", "yes": "boolean", "custom": "jsonb", "extra": "jsonb"}
    return ", ".join(f"CAST({text} AS {kinds[name]}) AS {name}" for name, text in spelled.items())


def insert_few(url: str) -> None:
    """Let there be a row or two of everything else."""
    more: dict[str, object] = {
        "places_total": 9,
        "places_left": 3,
        "unlimited": False,
        "extra": '{"é":[1]}',
        "first_seen_at": at(days=3),
        "changed_at": at(days=2),
    }
    for ticket_id, gone in (("7001", None), ("7002", at(days=1))):
        named = {"id": ticket_id, "name": "Plein tarif", "price": "12.5", "vanished_at": gone}
        insert(url, TICKETS, event_id=FESTIVAL, position=1, is_full=False, **named | more)
    insert(url, GAUGES, event_id=WEEKEND, session_id="", type="seat/row", gauge_id="A/B", **more)
    date = {"id": "880001", "starts_at": at(days=-3), "places_sold": 6, "tickets": '{"7001":3}'}
    insert(url, SESSIONS, event_id=OUTING, is_full=False, **date | more)
    for run_id, kind in ((1, "inserted"), (2, "vanished")):
        insert_change(url, run_id, kind)
    insert(url, "syncd_requests", sent_at=NOW.timestamp() - 5)
    insert(url, "syncd_reads", event_id=FESTIVAL, attendees_at=at(hours=1), attendees_full_at=at(hours=5))
    insert(url, "syncd_reads", event_id=WEEKEND, due_at=at(hours=2))


def insert_change(url: str, run_id: int, kind: str) -> None:
    of = {"table_name": TICKETS, "row_id": "7002", "event_id": FESTIVAL}
    diff = '{"name":[null,"Plein tarif"]}'
    insert(url, "syncd_changes", run_id=run_id, seen_at=at(days=2), kind=kind, diff=diff, **of)


def insert_state(url: str) -> None:
    """Remember what 0.3 did besides: whose data are kept, and how far they are known."""
    insert(url, "syncd_state", name="attendees", value='"full"')
    since = (NOW - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    imported = (NOW - timedelta(hours=9)).isoformat().replace("+00:00", "Z")
    value = f'{{"since":"{since}","before":null,"back_to":null,"imported_at":"{imported}"}}'
    insert(url, "syncd_cursors", name="attendees", value=value, updated_at=at(hours=1))


def insert_suspects(url: str, suspects: dict[tuple[str, str], tuple[str, bool, bool]]) -> None:
    for (table, row), (event_id, doubted, by_hand) in suspects.items():
        why = {"doubted": doubted, "by_hand": by_hand}
        insert(url, "syncd_suspects", table_name=table, row_id=row, event_id=event_id, **why)


@pytest.fixture
def url(tmp_path: Path, database_kind: str) -> str:
    """Give a database as 0.3 made it, with nothing in it."""
    url = url_at(tmp_path / "old.db")
    with past_the_lock(url) as engine, engine.begin() as connection:
        upgrade(connection, "0003")
    return url


def opened(url: str) -> Database:
    database = Database(url)
    database.open()
    return database


def content(url: str) -> dict[str, tuple[list[str], Rows]]:
    """Return the columns of every table, and its rows in the order of their texts."""
    found = {}
    with past_the_lock(url) as engine, engine.connect() as connection:
        inspector = inspect(connection)
        names = {
            table: [column["name"] for column in inspector.get_columns(table)]
            for table in inspector.get_table_names()
        }
    for table, columns in names.items():
        listed = ", ".join(f'"{name}"' for name in columns)
        found[table] = columns, sorted(query(url, f"SELECT {listed} FROM {table}"), key=repr)
    return found


# --- nothing is lost


def test_an_upgrade_loses_something(url: str) -> None:
    """Every row of every table stays as it was, 100,000 attendees among them."""
    insert_runs(url)
    insert_many_attendees(url)
    insert_few(url)
    insert_state(url)
    insert(url, "syncd_state", name="paused", value="true")
    insert_suspects(url, SUSPECTS)
    before = content(url)
    opened(url).close()
    after = content(url)
    assert after[VERSION_TABLE] == (["version_num"], [(schema.REVISION,)])
    assert after.keys() == before.keys() - {"syncd_suspects"} | {"syncd_absences", "syncd_deliveries"}
    for table in before.keys() - {"syncd_suspects", VERSION_TABLE}:
        columns, held = before[table]
        assert held, f"nothing in {table} to be lost"
        assert after[table][0][: len(columns)] == columns
        kept = [row[: len(columns)] for row in after[table][1] if row[0] != state.HOLDER]
        assert sorted(kept, key=repr) == held, table
    assert len(after[ATTENDEES][1]) == MANY


def test_a_suspicion_is_forgotten_or_counts_twice(url: str) -> None:
    """Each becomes an absence of one read, since the upgrade; none is a doubt before a run has it."""
    insert_suspects(url, SUSPECTS)
    began = datetime.now(UTC)
    database = opened(url)
    ended = datetime.now(UTC)
    found = {}
    with database.begin() as connection:
        for table in MIRRORED:
            found[table] = absences.of(connection, table)
        assert absences.count_doubts(connection) == 0
        by_event = {
            table: absences.of(connection, table, event) for (table, _), (event, *_) in SUSPECTS.items()
        }
    database.close()
    assert {(table, row) for table, rows in found.items() for row in rows} == SUSPECTS.keys()
    assert by_event == found
    (since,) = {absence.since for rows in found.values() for absence in rows.values()}
    assert {absence for rows in found.values() for absence in rows.values()} == {Absence(since, 1)}
    assert began <= since <= ended


def test_an_upgrade_that_fails_half_way_leaves_a_mixture(url: str) -> None:
    """Where it cannot be done the database stays as it was, and can be upgraded later."""
    insert_runs(url)
    insert_suspects(url, SUSPECTS)
    query(url, "CREATE TABLE syncd_absences (theirs TEXT)")
    before = content(url)
    with pytest.raises(StoreError, match=r"syncd_absences.* already exists"):
        opened(url)
    assert content(url) == before
    query(url, "DROP TABLE syncd_absences")
    opened(url).close()
    assert content(url)[VERSION_TABLE][1] == [(schema.REVISION,)]


# --- what follows


@pytest.mark.parametrize(
    ("on_record", "following"),
    [
        pytest.param([], 1, id="none"),
        pytest.param([LONG_AGO, LONG_AGO - 1], 1, id="none but without a database"),
        pytest.param([-1], 1, id="one below nought"),
        pytest.param([LONG_AGO, 1, 2, 7], 8, id="some"),
    ],
)
def test_a_number_of_0_3_is_given_again(url: str, on_record: list[int], following: int) -> None:
    """Runs are numbered on from the greatest of 0.3, and from 1 where there was none above nought."""
    for run_id in on_record:
        insert_run(url, run_id, "ok")
    database = opened(url)
    ids = []
    for _ in range(3):
        with database.begin(write=True) as connection:
            ids.append(runs.put(connection, Run(id=-1, trigger="interval", state="running", started_at=NOW)))
    database.close()
    assert ids == [following, following + 1, following + 2]
    assert query(url, "SELECT count(*) FROM syncd_runs") == [(len(on_record) + 3,)]


def test_a_change_of_0_3_gets_a_follower_before_it(url: str) -> None:
    """The numbers of changes go on, for those who follow them."""
    insert_few(url)
    opened(url).close()
    before = query(url, "SELECT seq FROM syncd_changes ORDER BY seq")
    insert_change(url, 3, "inserted")
    after = query(url, "SELECT seq FROM syncd_changes ORDER BY seq")
    assert after[:-1] == before
    assert len(after) == len(before) + 1


def test_what_0_3_remembered_of_reads_is_forgotten(url: str) -> None:
    """Cursor, reads and requests are as they were; no event failed or was tried."""
    insert_few(url)
    insert_state(url)
    database = opened(url)
    with database.begin(write=True) as connection:
        assert attendees.retain(connection, "12345", "full", NOW) == 0
        assert attendees.cursor(connection) == Cursor(
            since=NOW - timedelta(hours=1), imported_at=NOW - timedelta(hours=9)
        )
        assert state.reads(connection) == {
            FESTIVAL: Reads(
                attendees_at=NOW - timedelta(hours=1), attendees_full_at=NOW - timedelta(hours=5)
            ),
            WEEKEND: Reads(due_at=NOW - timedelta(hours=2)),
        }
        assert state.request_ages_s(connection, NOW.timestamp(), 60.0) == [5.0]
        assert not attendees.is_other(connection, "12345", "full")
        assert attendees.is_other(connection, "12345", "minimal")
    database.close()


# --- the first run of this version


@pytest.fixture
def rig(make_config: MakeConfig, standin: StandIn, url: str, instant_retries: None) -> Iterator[Rig]:
    """Give a rig on a database in which 0.3 mirrored the stand-in's account, and suspected some of it.

    That is what a mirror made for this holds, and misses, when the account has changed.
    """
    settings = {"sync__attendees": "full", "sync__full_every": "1h", "billetweb__concurrency": 1}
    with rig_on(make_config(**settings)) as made:
        made.run()
        change(standin)
        run = made.run("manual", full=True)
        assert [(error.subject, error.kind) for error in run.errors] == [(f"event {WEEKEND}", "doubted")]
        for table in (*MIRRORED, "syncd_cursors"):
            copy(made, url, table)
        copy(made, url, "syncd_reads")
        missed = made.sql("SELECT table_name, row_id, event_id, waits_for FROM syncd_absences")
    suspects = {
        (str(table), str(row)): (str(event_id), bool(waits_for), False)
        for table, row, event_id, waits_for in missed
    }
    suspects[SESSIONS, str(query(url, "SELECT min(id) FROM billetweb_sessions")[0][0])] = OUTING, False, False
    insert_suspects(url, suspects)
    insert_runs(url)
    insert_many_attendees(url)
    insert(url, "syncd_state", name="attendees", value='"full"')
    insert(url, "syncd_state", name="paused", value="true")
    with rig_on(make_config(**settings, database__url=url)) as rig:
        yield rig


def change(standin: StandIn) -> None:
    """Let a tariff, a place and an event go, and most tariffs of another event."""
    with standin.lock:
        standin.events[CONCERT].tickets.pop()
        del standin.events[WEEKEND].tickets[1:]
        order = next(iter(standin.attendees(FESTIVAL).values()))["order_id"]
        remove_order(standin, str(order))
        del standin.events[WORKSHOP]


def copy(made: Rig, url: str, table: str) -> None:
    """Copy a table into one of 0.3, as far as it has the columns."""
    with past_the_lock(url) as engine, engine.connect() as connection:
        there = [column["name"] for column in inspect(connection).get_columns(table)]
    names = ", ".join(f'"{name}"' for name in there)
    marks = ", ".join("?" for _ in there)
    for row in made.sql(f"SELECT {names} FROM {table}"):
        query(url, f"INSERT INTO {table} ({names}) VALUES ({marks})", *row)


def places(found: Rows) -> set[tuple[str, str]]:
    return {(str(table), str(row)) for table, row in found}


def vanished(rig: Rig) -> set[tuple[str, str]]:
    return places(rig.sql("SELECT table_name, row_id FROM syncd_changes WHERE kind = 'vanished'"))


def absent(rig: Rig, where: str = "true") -> set[tuple[str, str]]:
    return places(rig.sql(f"SELECT table_name, row_id FROM syncd_absences WHERE {where}"))


@pytest.mark.slow("100,000 attendees")
@pytest.mark.timeout(180)
def test_status_begins_from_nothing(rig: Rig) -> None:
    """It knows the runs of 0.3, the one that was cut short among them, and that they are paused."""
    facts, last = rig.account.facts, rig.account.facts.last_run
    assert (facts.run_count, facts.consecutive_failures) == (LAST_ID + 1, 2)
    assert last
    assert (last.id, last.outcome, [error.kind for error in last.errors]) == (
        *(LAST_ID, "failed"),
        ["interrupted"],
    )
    by_hand = rig.query(runs.find, LAST_ID - 2)
    assert (by_hand.requested_by, by_hand.events) == (Peer(1000, "amélie", 77), [FESTIVAL])
    oldest = rig.query(runs.latest, 100, None)[-1]
    assert oldest.id == LONG_AGO
    assert oldest.errors == [RunError("run", "database", "cannot open the database")]
    assert rig.account.paused
    assert rig.run().outcome == "cancelled"


@pytest.mark.slow("100,000 attendees")
@pytest.mark.timeout(180)
def test_the_first_run_begins_from_nothing(rig: Rig, standin: StandIn) -> None:
    """What was suspected once is gone with it, what was doubted lasts from the upgrade on."""
    suspected = absent(rig)
    doubted = absent(rig, f"event_id = '{WEEKEND}'")
    there = absent(rig, f"event_id = '{OUTING}'")
    assert {table for table, _ in suspected} == {EVENTS, TICKETS, SESSIONS, ATTENDEES}
    run = rig.run("manual")
    assert (run.id, run.outcome) == (LAST_ID + 1, "partial")
    assert [(error.subject, error.kind) for error in run.errors] == [(f"event {WEEKEND}", "doubted")]
    assert vanished(rig) == suspected - doubted - there
    (doubt,) = rig.portal.call(rig.account.doubts)
    assert (doubt.event_id, doubt.absent, doubt.reads, doubt.waits_for) == (WEEKEND, len(doubted), 2, "time")
    assert doubt.until == doubt.since + timedelta(hours=1)
    assert absent(rig) == doubted
    rig.clock.now_s += 3600
    run = rig.run("manual")
    assert (run.id, run.outcome) == (LAST_ID + 2, "ok")
    assert vanished(rig) == suspected - there
    mirrors(rig, standin, OVER)
    assert rig.sql("SELECT count(*) FROM billetweb_attendees WHERE event_id = ?", OVER) == [(MANY,)]
    assert rig.sql("SELECT id FROM syncd_runs ORDER BY id") == [
        (LONG_AGO,),
        *((run_id,) for run_id in range(1, LAST_ID + 3)),
    ]
