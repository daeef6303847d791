"""What a read changes in the mirror: rows column by column, and what a plan says of one event."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs
from support.reading import event, ticket

from syncd.mirror.absence import Absence, Size
from syncd.mirror.diff import (
    LOGGED,
    Change,
    EventPlan,
    EventRows,
    Fetched,
    Record,
    Stored,
    compare,
    count,
    plan_event,
    plan_listed,
    plan_vanished,
    present,
    vanished,
)
from syncd.model import (
    ATTENDEES,
    EVENTS,
    GAUGES,
    PERSONAL,
    SESSIONS,
    TICKETS,
    Attendee,
    Counts,
    Event,
    Gauge,
    Session,
    Ticket,
)

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
TABLES: dict[type, str] = {
    Event: EVENTS,
    Gauge: GAUGES,
    Ticket: TICKETS,
    Session: SESSIONS,
    Attendee: ATTENDEES,
}


def gauge(kind: str, gauge_id: str, left: int | None, **fields: Any) -> Gauge:
    return Gauge(event_id="9", session_id="", type=kind, gauge_id=gauge_id, places_left=left, **fields)


def fetched(
    gauges: Iterable[Gauge] = (), tickets: Iterable[Ticket] = (), sessions: Iterable[Session] = ()
) -> Fetched:
    found: dict[str, Iterable[Any]] = {GAUGES: gauges, TICKETS: tickets, SESSIONS: sessions}
    return Fetched(rows={table: {row.id: row for row in some} for table, some in found.items()}, read_at=NOW)


def as_stored(record: Record, vanished_at: datetime | None = None) -> Stored:
    return Stored(structs.astuple(record), vanished_at)


def held(*records: Record, vanished_at: datetime | None = None, event_id: str = "9") -> EventRows:
    """Give what the mirror holds of an event: these rows."""
    known = EventRows(event_id, {name: {} for name in TABLES.values() if name != ATTENDEES})
    for record in records:
        at = None if isinstance(record, Event) else vanished_at
        known.rows[TABLES[type(record)]][record.id] = as_stored(record, at)
    return known


def planned(known: EventRows, read: Fetched, of: Event | None = None) -> EventPlan:
    return plan_event(of or event(), known, read, was_due=False)


def absent(plan: EventPlan) -> dict[str, dict[str, Absence]]:
    """Return what the plan notes as absent, by table."""
    return {lack.table: dict(lack.absences) for lack in plan.lacks if lack.is_news}


def figure(plan: EventPlan) -> dict[str, object]:
    """Return what the plan changes in the event's figures."""
    return {
        name: new
        for change in plan.changes
        if change.table == EVENTS
        for name, (_, new) in change.diff.items()
        if name.startswith(("places", "is_full"))
    }


def of_table(plan: EventPlan, table: str) -> list[Change]:
    return [change for change in plan.changes if change.table == table]


# --- rows that are lacking


def test_a_gauge_that_is_merely_absent_does_not_move_the_figure() -> None:
    """A gauge that a read lacks still counts, as often as that happens; when it has vanished it does not."""
    gauges = [gauge("ticket", "1", 5, places_total=5), gauge("ticket", "2", 7, places_total=7)]
    known = held(event(places_total=12, places_left=12), *gauges)
    plan = planned(known, fetched(gauges[:1]))
    gone = gauges[1].id
    assert (plan.changes, absent(plan), plan.read_at) == ((), {GAUGES: {gone: Absence(NOW, 1)}}, NOW)
    known.absences[GAUGES] = {gone: Absence(NOW, 1)}
    plan = planned(known, fetched(gauges[:1]))
    assert (plan.changes, absent(plan)) == ((), {GAUGES: {gone: Absence(NOW, 2)}})
    plan = plan_vanished(known, {GAUGES: {gone}}, LATER)
    assert figure(plan) == {"places_total": 5, "places_left": 5}
    assert [change.kind for change in plan.changes] == ["vanished", "updated"]


def test_an_availability_that_lacks_most_passes_for_a_fresh_one() -> None:
    """What it holds is believed, its absences are noted, and the figure keeps the age that it had."""
    gauges = [gauge("ticket", str(number), number) for number in range(1, 5)]
    known = held(event(places_left=10), *gauges)
    plan = planned(known, fetched([gauge("ticket", "1", 0)]))
    assert figure(plan) == {"places_left": 9}
    assert [change.diff for change in of_table(plan, GAUGES)] == [{"places_left": (1, 0)}]
    assert absent(plan)[GAUGES].keys() == {row.id for row in gauges[1:]}
    assert (plan.writes, plan.read_at, plan.is_odd) == (True, NOW, True)


@pytest.mark.parametrize(
    ("shown", "is_fresh"),
    [("1234", True), ("12", True), ("1", False), ("", False), ("56", False), ("125678", True)],
)
def test_an_age_is_told_that_is_not_the_figures(shown: str, is_fresh: bool) -> None:
    """Half of four gauges and more make a fresh figure, fewer do not, whatever else is shown."""
    known = held(event(), *(gauge("ticket", str(number), 1) for number in range(1, 5)))
    plan = planned(known, fetched([gauge("ticket", number, 1) for number in shown]))
    assert (plan.read_at, plan.is_odd) == (NOW, not is_fresh)


def test_absent_tariffs_keep_the_figures_from_being_fresh() -> None:
    """Availability that was read well is taken over also where another read of the event lacks everything."""
    known = held(event(places_left=5), gauge("event", "", 5), ticket("1", places_left=5))
    plan = planned(known, fetched([gauge("event", "", 0)]))
    assert absent(plan) == {TICKETS: {"1": Absence(NOW, 1)}}
    assert (plan.read_at, plan.is_odd) == (NOW, False)
    assert figure(plan) == {"places_left": 0, "is_full": True}
    (change,) = of_table(plan, TICKETS)
    assert change.diff == {"places_left": (5, 0), "is_full": (False, True)}


def test_rows_of_a_read_that_lacks_most_are_lost() -> None:
    """New rows, changed ones and those that are back are written, however much is lacking."""
    known = held(event(sale_status="on_sale"), *(ticket(row, name="old") for row in "1234"))
    known.rows[TICKETS]["5"] = as_stored(ticket("5", name="old"), NOW)
    known.absences[TICKETS] = {"1": Absence(NOW, 1)}
    plan = planned(known, fetched(tickets=[ticket(row, name="new") for row in "156"]))
    assert {change.row_id: change.kind for change in plan.changes} == {
        "1": "updated",
        "5": "returned",
        "6": "inserted",
    }
    assert absent(plan)[TICKETS] == {row: Absence(NOW, 1) for row in "234"}


def test_the_end_of_an_absence_is_never_written() -> None:
    """A plan in which nothing changes but that a row is there again is written; the next one is not."""
    known = held(event(sale_status="on_sale"), ticket("1"))
    known.absences[TICKETS] = {"1": Absence(NOW, 1)}
    plan = planned(known, fetched(tickets=[ticket("1")]))
    assert (plan.changes, absent(plan), plan.writes) == ((), {TICKETS: {}}, True)
    known.absences[TICKETS] = {}
    assert not planned(known, fetched(tickets=[ticket("1")])).writes


def test_a_scope_is_measured_by_what_it_holds_now() -> None:
    """A read is held against the rows that stood there before it, not against those that it brings."""
    known = held(event(), *(ticket(row) for row in "123"))
    plan = planned(known, fetched(tickets=[ticket(row) for row in "3456"]))
    assert [(lack.table, lack.size, [*lack.absences]) for lack in plan.lacks] == [
        (GAUGES, Size(0, 0), []),
        (TICKETS, Size(3, 3), ["1", "2"]),
        (SESSIONS, Size(0, 0), []),
    ]


def test_a_vanished_row_vanishes_again() -> None:
    """Rows marked vanished are no part of what a read is held against, nor marked a second time."""
    known = held(event(), *(ticket(str(n)) for n in range(9)), vanished_at=NOW)
    plan = planned(known, fetched())
    assert (plan.changes, absent(plan), plan.unchanged, plan.writes) == ((), {}, 1, False)
    assert plan_vanished(known, {TICKETS: {"1", "2"}}, LATER).changes == ()


def test_rows_vanish_from_an_event_that_nobody_knows() -> None:
    """Where the event itself is not in the mirror its rows vanish all the same, without figures."""
    known = held(ticket("1"), ticket("2"))
    plan = plan_vanished(known, {TICKETS: {"2"}}, LATER)
    assert plan.changes == (Change(TICKETS, "2", "9", "vanished", (), {"vanished_at": (None, LATER)}),)


def test_rows_that_vanish_are_told_out_of_order() -> None:
    """They come in the order of their ids, each with the instant."""
    changes = vanished(TICKETS, "9", {"b", "a"}, NOW)
    assert [(change.row_id, change.kind, change.values) for change in changes] == [
        ("a", "vanished", ()),
        ("b", "vanished", ()),
    ]
    assert changes[0].diff == {"vanished_at": (None, NOW)}


# --- rows that come, go and move


def test_a_row_that_returns_is_taken_for_a_new_one() -> None:
    """A vanished row that is read again is `returned`, also where nothing else in it changed."""
    known = held(event(sale_status="on_sale"), ticket("1", name="old"), vanished_at=NOW)
    (change,) = planned(known, fetched(tickets=[ticket("1", name="new")])).changes
    assert (change.kind, change.values) == ("returned", structs.astuple(ticket("1", name="new")))
    assert change.diff == {"name": ("old", "new"), "vanished_at": (NOW, None)}
    (change,) = planned(known, fetched(tickets=[ticket("1", name="old")])).changes
    assert (change.kind, change.diff) == ("returned", {"vanished_at": (NOW, None)})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ticket("1", "8"), ticket("1", "9")),
        (Session(id="1", event_id="8"), Session(id="1", event_id="9")),
        (Attendee(id="1", event_id="8"), Attendee(id="1", event_id="9")),
    ],
)
def test_a_row_that_moves_is_there_twice(old: Record, new: Record) -> None:
    """A row read under another event is the same row with another `event_id`, not a new one."""
    table = TABLES[type(new)]
    change = compare(table, as_stored(old), new)
    assert change
    assert (change.kind, change.event_id, change.diff) == ("updated", "9", {"event_id": ("8", "9")})
    change = compare(table, as_stored(old, NOW), new)
    assert change
    assert change.kind == "returned"
    assert change.diff == {"event_id": ("8", "9"), "vanished_at": (NOW, None)}


def test_a_row_that_has_moved_here_counts_where_it_was() -> None:
    """It is no row of this event before it is read: not missed, not in the figures; and then it is."""
    known = held(event(), ticket("1", places_total=5, places_left=5))
    known.rows[TICKETS]["2"] = as_stored(ticket("2", "8", places_total=7, places_left=7))
    assert present(known, TICKETS) == {"1"}
    plan = planned(known, fetched([gauge("ticket", "1", 5, places_total=5)], [ticket("1", places_total=5)]))
    assert (absent(plan), figure(plan)) == ({}, {"places_total": 5, "places_left": 5})
    both = [gauge("ticket", row, 5, places_total=5) for row in "12"]
    plan = planned(known, fetched(both, [ticket("1", places_total=5), ticket("2", places_total=5)]))
    assert figure(plan) == {"places_total": 10, "places_left": 10}
    (change,) = of_table(plan, TICKETS)
    assert (change.kind, change.diff["event_id"]) == ("updated", ("8", "9"))
    gone = plan_vanished(known, {TICKETS: {"1", "2"}}, LATER).changes
    assert [change.row_id for change in gone if change.kind == "vanished"] == ["1"]


def test_an_ended_event_loses_its_last_figures() -> None:
    """An event of which only the list was read is compared without its figures."""
    old = event(name="old", places_total=9, places_left=0, is_full=True)
    plan = plan_listed(event(name="new"), as_stored(old), NOW)
    (change,) = plan.changes
    assert change.diff == {"name": ("old", "new")}
    assert change.values == structs.astuple(structs.replace(old, name="new"))
    assert (plan.read_at, plan.lacks, plan.unchanged) == (None, (), 0)
    plan = plan_listed(event(name="old"), as_stored(old), NOW)
    assert (plan.writes, plan.unchanged) == (False, 1)


def test_what_made_an_event_due_is_read_again_and_again() -> None:
    """A plan in which nothing changes is written where it settles why the event was read."""
    known = held(event())
    assert plan_event(event(), known, fetched(), was_due=True).writes
    assert not plan_event(event(), known, fetched(), was_due=False).writes
    known = held(event(), *(gauge("ticket", row, 1) for row in "1234"))
    assert not plan_event(event(), known, fetched(), was_due=True).was_due, "an odd read settles nothing"


def test_a_plan_is_counted_wrong() -> None:
    """Rows are counted by what becomes of them."""
    kinds = ("inserted", "updated", "updated", "vanished", "returned", "returned", "returned")
    changes = [Change(TICKETS, str(number), "9", kind, (), {}) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    assert count(changes) == Counts(1, 2, 0, 1, 3)


# --- values


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ({"x": 1}, {"x": True}, False),
        ({"x": [0]}, {"x": [False]}, False),
        ({"x": 1}, {"x": 1.0}, False),
        ({"x": None}, {}, False),
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True),
        ({"x": 10**40}, {"x": 10**40}, True),
    ],
)
def test_a_changed_type_in_unknown_fields_is_not_overlooked(
    old: dict[str, object], new: dict[str, object], same: bool
) -> None:
    """JSON values are compared as JSON, where 1 is not true; the order of keys says nothing."""
    change = compare(TICKETS, as_stored(ticket("1", extra=old)), ticket("1", extra=new))
    assert (change is None) is same


def test_the_same_price_written_otherwise_is_no_change() -> None:
    """12.50 is 12.5, and an instant is the same in any zone."""
    old = ticket("1", price=Decimal("12.5"), sale_starts_at=NOW)
    new = ticket("1", price=Decimal("12.50"), sale_starts_at=NOW.astimezone(ZoneInfo("Europe/Paris")))
    assert compare(TICKETS, as_stored(old), new) is None


def test_a_date_that_passes_changes_the_figure_of_its_event() -> None:
    """The sum over coming dates is taken at the instant of the read."""
    dates = [
        Session(id="1", event_id="9", starts_at=NOW - timedelta(1), places_total=5, places_sold=0),
        Session(id="2", event_id="9", starts_at=NOW + timedelta(1), places_total=7, places_sold=0),
    ]
    plan = planned(held(), fetched(sessions=dates), event(multiple=True))
    assert figure(plan)["places_left"] == 7


PEOPLE = {name: {"x": 1} if name in ("custom", "custom_order", "extra") else "canary" for name in PERSONAL}


def test_personal_data_gets_into_the_log_of_changes() -> None:
    """A change tells of no column that may hold such, and is one also where nothing else changed."""
    nobody, somebody = Attendee("1", "9"), structs.replace(Attendee("1", "9"), **PEOPLE)
    inserted = compare(ATTENDEES, None, somebody)
    assert inserted
    assert (inserted.values, inserted.diff) == (
        structs.astuple(somebody),
        {"id": (None, "1"), "event_id": (None, "9")},
    )
    for old, new in ((nobody, somebody), (somebody, nobody)):
        updated = compare(ATTENDEES, as_stored(old), new)
        assert updated
        assert (updated.kind, updated.diff, updated.values) == ("updated", {}, structs.astuple(new))
    assert compare(ATTENDEES, as_stored(somebody), somebody) is None
    assert not PERSONAL & {*LOGGED[ATTENDEES]}


def test_a_column_is_left_out_of_the_log_of_changes() -> None:
    """All columns of other tables are told of, in their order."""
    for kind, table in TABLES.items():
        names = kind.__struct_fields__  # type: ignore[attr-defined]
        assert LOGGED[table] == tuple(name for name in names if table != ATTENDEES or name not in PERSONAL)
