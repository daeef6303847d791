"""Values that no database holds, and a list too large for one answer: one bad item stops none other."""

import json
import random

import pytest
from conftest import LogLines, MakeConfig, Rig, mirrors, rig_on
from support.events import CONCERT, FESTIVAL, kinds
from support.faults import raw, with_rows
from support.real_databases import is_postgresql

from syncd.billetweb import body
from syncd.standin.server import StandIn
from syncd.standin.world import Row


def refuse(rig: Rig, table: str, condition: str) -> None:
    """Have the database refuse the rows of a table of which this holds."""
    if is_postgresql():
        rig.sql(f"ALTER TABLE {table} ADD CONSTRAINT odd CHECK (NOT ({condition})) NOT VALID")
    else:
        rig.sql(
            f"CREATE TRIGGER odd BEFORE INSERT ON {table} WHEN NEW.{condition}"
            " BEGIN SELECT RAISE(ABORT, 'odd'); END"
        )


@pytest.mark.parametrize("table", ["billetweb_gauges", "billetweb_tickets", "billetweb_events"])
def test_a_value_that_the_database_refuses_stops_the_account(rig: Rig, standin: StandIn, table: str) -> None:
    """It is that event's error; all others are brought up to date, in this run and the next."""
    refuse(rig, table, f"{'id' if table == 'billetweb_events' else 'event_id'} = '{CONCERT}'")
    for _ in range(2):
        run = rig.run()
        assert (run.outcome, run.synced, run.failed) == ("partial", 5, 1)
        assert kinds(run) == [(f"event {CONCERT}", "value")]
        assert CONCERT not in run.errors[0].message
    mirrors(rig, standin, CONCERT)


def test_an_old_event_with_a_bad_value_stops_the_account(rig: Rig, standin: StandIn) -> None:
    """An event of which only the list is read is no other case."""
    standin.events[CONCERT].row.update(start="2020-01-01 10:00:00", end="2020-01-01 12:00:00")
    refuse(rig, "billetweb_events", f"id = '{CONCERT}'")
    run = rig.run()
    assert (run.outcome, run.synced, kinds(run)) == ("partial", 5, [(f"event {CONCERT}", "value")])


def test_a_bad_attendee_costs_the_figures_of_all_events(make_config: MakeConfig, standin: StandIn) -> None:
    """Where the account's attendees cannot be written, each event's own are, and its figures in any case."""
    with rig_on(make_config(sync__attendees="full")) as rig:
        refuse(rig, "billetweb_attendees", f"event_id = '{FESTIVAL}'")
        run = rig.run()
        assert {*kinds(run)} == {("attendees", "value"), (f"event {FESTIVAL}", "value")}
        assert (run.outcome, run.synced) == ("partial", 5)
        assert rig.sql("SELECT count(*) FROM billetweb_events WHERE availability_at IS NOT NULL") == [(6,)]
        events = rig.sql("SELECT DISTINCT event_id FROM billetweb_attendees")
        assert len(events) > 1
        assert (FESTIVAL,) not in events


@pytest.mark.postgresql_only
def test_a_name_longer_than_an_index_takes_stops_the_account(rig: Rig, standin: StandIn) -> None:
    """A gauge without an id is known by its name, which may be longer than a key can be."""
    name = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6000))
    standin.events[CONCERT].gauges.append({"type": "zone", "name": name, "avail": "1", "quota": "2"})
    run = rig.run()
    assert (run.outcome, run.synced, kinds(run)) == ("partial", 5, [(f"event {CONCERT}", "value")])
    assert name[:50] not in run.errors[0].message
    del standin.events[CONCERT].gauges[-1]
    assert rig.run().outcome == "ok"


# --- a list of events too large for one answer


def test_one_long_description_stops_the_account(
    rig: Rig, standin: StandIn, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    """The list is read without descriptions then, which stay; once a day it is tried with them."""
    rig.run()
    before = descriptions(rig)
    standin.events[CONCERT].row["description"] = "x" * 100_000
    standin.events[FESTIVAL].row["name"] = "Another name"
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 50_000)
    for _ in range(3):
        run = rig.run()
        assert (run.outcome, run.synced, run.errors) == ("ok", 6, [])
    asked = [request.query["description"] for request in standin.requests if request.path == "/events"]
    assert asked == ["1", "1", "0", "0", "0"]
    assert len(log_lines.of("list.short")) == 1
    assert rig.sql("SELECT name FROM billetweb_events WHERE id = ?", FESTIVAL) == [("Another name",)]
    assert descriptions(rig) == before
    rig.clock.now_s += 25 * 3600
    monkeypatch.undo()
    assert rig.run().outcome == "ok"
    assert descriptions(rig)[CONCERT] == "x" * 100_000


def test_a_list_of_too_many_events_is_asked_for_twice(
    rig: Rig, standin: StandIn, log_lines: LogLines
) -> None:
    """Without descriptions it would have as many rows."""
    standin.fail("/events", raw(b"[" + b"{}," * body.LIST_MAX_ROWS + b"{}]"), times=None)
    run = rig.run()
    assert (run.outcome, kinds(run)) == ("failed", [("run", "too_large")])
    assert len([request for request in standin.requests if request.path == "/events"]) == 1
    assert not log_lines.of("list.short")


def descriptions(rig: Rig) -> Row:
    return dict(rig.sql("SELECT id, description FROM billetweb_events"))


# --- keys


def test_two_gauges_share_one_row(rig: Rig, standin: StandIn) -> None:
    """A `/` in a gauge's type or name makes no two rows alike, in the log of changes either."""
    odd: list[Row] = [
        {"type": "a/b", "name": "c", "avail": "1", "quota": "2"},
        {"type": "a", "name": "b/c", "avail": "3", "quota": "4"},
        {"type": "a", "name": "b%2Fc", "avail": "5", "quota": "6"},
    ]
    standin.events[CONCERT].gauges += odd
    assert rig.run().outcome == "ok"
    query = "SELECT row_id FROM syncd_changes WHERE row_id LIKE ? ORDER BY seq"
    ids = [row[0] for row in rig.sql(query, f"{CONCERT}//a%")]
    assert ids == [f"{CONCERT}//a%2Fb/c", f"{CONCERT}//a/b%2Fc", f"{CONCERT}//a/b%252Fc"]
    del standin.events[CONCERT].gauges[-1]
    for _ in range(2):
        assert rig.run().outcome == "ok"
    gone = rig.sql("SELECT type, gauge_id FROM billetweb_gauges WHERE vanished_at IS NOT NULL")
    assert gone == [("a", "b%2Fc")]


def test_a_tariff_of_two_events_is_new_in_every_run(rig: Rig, standin: StandIn) -> None:
    """A row under two events moves from one to the other: it is updated, and inserted once."""
    shared = standin.events[CONCERT].tickets[0]
    standin.events[FESTIVAL].tickets.append(shared)
    for _ in range(3):
        assert rig.run().outcome in ("ok", "partial")
    kinds_of = rig.sql("SELECT kind FROM syncd_changes WHERE row_id = ? ORDER BY seq", str(shared["id"]))
    assert kinds_of[0] == ("inserted",)
    assert {*kinds_of[1:]} == {("updated",)}


@pytest.mark.parametrize("what", ["events", "tickets"])
def test_an_id_of_thousands_of_digits_stops_the_account(rig: Rig, standin: StandIn, what: str) -> None:
    """It is no id: the event that has it fails, or it is passed over in the list."""
    path = "/events" if what == "events" else f"/event/{CONCERT}/tickets"
    more = {"id": "9" * 9000, "name": "x"}
    standin.fail(path, with_rows(lambda rows: [*rows, more]), times=None)
    run = rig.run()
    assert (run.outcome, run.failed) == ("partial", 1)
    assert [error.kind for error in run.errors] == ["malformed"]
    assert len(run.errors[0].message) < 300


def test_an_amount_has_two_forms_in_the_log(rig: Rig, standin: StandIn) -> None:
    """What a change had for new is what the next one has for old, as PHP spells it or as JSON does."""
    ticket = standin.events[CONCERT].tickets[0]
    for price in ("10", "12.50", 0.0, "100.00", "-0.00", "1"):
        ticket["price"] = price
        rig.run()
    query = "SELECT diff FROM syncd_changes WHERE table_name = 'billetweb_tickets' AND row_id = ?"
    diffs = [json.loads(diff) for (diff,) in rig.sql(f"{query} ORDER BY seq", ticket["id"])]
    seen = [diff["price"] for diff in diffs if "price" in diff]
    assert seen == [[None, "10"], ["10", "12.5"], ["12.5", "0"], ["0", "100"], ["100", "0"], ["0", "1"]]
