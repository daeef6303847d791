"""The availability rule, level by level."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from syncd.mirror.availability import with_figures, with_place
from syncd.model import Event, Gauge, Session, Ticket

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
PAST, SOON = NOW - timedelta(hours=1), NOW + timedelta(hours=1)

Figure = tuple[int | None, int | None, bool]  # total, left, unlimited
UNKNOWN: Figure = (None, None, False)
UNLIMITED: Figure = (None, None, True)


def gauge(kind: str, gauge_id: str = "", figure: Figure = UNKNOWN, *, name: str | None = None) -> Gauge:
    """Give a gauge as decoded: one without an id has its name, or nothing, for `gauge_id`."""
    total, left, unlimited = figure
    return Gauge(
        event_id="9",
        session_id=gauge_id if kind == "session" else "",
        type=kind,
        gauge_id=gauge_id or name or "",
        name=name,
        places_total=total,
        places_left=left,
        unlimited=unlimited,
    )


def whole(total: int | None, left: int | None, unlimited: bool = False) -> Gauge:
    return gauge("event", figure=(total, left, unlimited))


def tariff(gauge_id: str, total: int | None, left: int | None, unlimited: bool = False) -> Gauge:
    return gauge("ticket", gauge_id, (total, left, unlimited))


def category(name: str | None, total: int | None, left: int | None, unlimited: bool = False) -> Gauge:
    return gauge("category", "501" if name is None else "50" + name, (total, left, unlimited), name=name)


def date(gauge_id: str, total: int | None, left: int | None, unlimited: bool = False) -> Gauge:
    return gauge("session", gauge_id, (total, left, unlimited))


def ticket(ticket_id: str, of: str | None = None, quota: int | None = None) -> Ticket:
    return Ticket(id=ticket_id, event_id="9", position=1, category=of, places_total=quota)


def session(
    session_id: str, quota: int | None, sold: int | None, starts_at: datetime | None = SOON
) -> Session:
    return Session(id=session_id, event_id="9", starts_at=starts_at, places_total=quota, places_sold=sold)


def figure_of(record: Event | Ticket | Session) -> Figure:
    """Give a record's figure, having checked that `is_full` follows from it."""
    assert record.is_full is (record.places_left == 0)
    return record.places_total, record.places_left, record.unlimited


class Case(NamedTuple):
    """An event's gauges and parts, and the figure that follows."""

    name: str
    expected: Figure
    gauges: Sequence[Gauge] = ()
    tickets: Sequence[Ticket] = ()
    sessions: Sequence[Session] = ()
    multiple: bool = False


IN_A = [ticket("1", "A"), ticket("2", "A")]
A_AND_B = [ticket("1", "A"), ticket("2", "B")]
TWO = [tariff("1", 10, 4), tariff("2", 20, 6)]
TWO_DATES = [session("71", 10, 4), session("72", 20, 5)]

EVENTS = [
    Case("1 event gauge, never added to tickets", (50, 7, False), [*TWO, whole(50, 7)]),
    Case("1 event gauge full while tickets are not", (50, 0, False), [*TWO, whole(50, 0)]),
    Case("1 event gauge unlimited over limited tickets", (None, None, True), [*TWO, whole(None, None, True)]),
    Case("1 event gauge unlimited beside a quota", UNLIMITED, [whole(100, None, True)]),
    Case("1 event gauge unknown over limited tickets", (50, None, False), [*TWO, whole(50, None)]),
    Case("1 event gauge before sessions", (50, 7, False), [whole(50, 7)], [], TWO_DATES, multiple=True),
    Case(
        "1 event gauge with a name", (50, 7, False), [*TWO, gauge("global", "", (50, 7, False), name="Salle")]
    ),
    Case(
        "1 event gauge named by digits", (50, 7, False), [*TWO, gauge("x", "", (50, 7, False), name="2027")]
    ),
    Case(
        "1 unknown row with an id is no event gauge",
        (30, 10, False),
        [*TWO, gauge("zone", "3", (5, 1, False))],
    ),
    Case("1 category without id is no event gauge", UNKNOWN, [gauge("category")]),
    Case("1 ticket without id is no event gauge", (8, 3, False), [gauge("ticket", "", (8, 3, False))]),
    Case("1 session without id is no event gauge", UNKNOWN, [gauge("session", "", (8, 3, False))]),
    Case(
        "1 the tightest of several",
        (90, 3, False),
        [whole(50, 7), gauge("hall", figure=(90, 3, False)), gauge("x", figure=UNLIMITED)],
    ),
    Case("1 unknown before unlimited", UNKNOWN, [gauge("hall", figure=UNLIMITED), gauge("x")]),
    Case("2 sum of sessions", (30, 21, False), [*TWO], [], TWO_DATES, multiple=True),
    Case("2 not without session mode", (30, 10, False), [*TWO], [], TWO_DATES),
    Case(
        "2 past sessions left out",
        (10, 6, False),
        [],
        [],
        [TWO_DATES[0], session("7", 9, 0, PAST)],
        multiple=True,
    ),
    Case("2 a session that starts now is past", UNKNOWN, [], [], [session("7", 9, 0, NOW)], multiple=True),
    Case("2 unknown start counts", (9, 8, False), [], [], [session("7", 9, 1, None)], multiple=True),
    Case(
        "2 not with one unlimited",
        (30, 10, False),
        [*TWO],
        [],
        [*TWO_DATES, session("7", None, 1)],
        multiple=True,
    ),
    Case(
        "2 unknown with one unlimited and nothing else",
        UNKNOWN,
        [],
        [],
        [session("7", None, 1)],
        multiple=True,
    ),
    Case(
        "2 not without a coming session",
        (30, 10, False),
        [*TWO],
        [],
        [session("7", 9, 0, PAST)],
        multiple=True,
    ),
    Case("2 not without sessions", (30, 10, False), [*TWO], multiple=True),
    Case(
        "2 session gauges before quotas",
        (30, 1, False),
        [date("71", 10, 1), date("72", None, 0)],
        [],
        TWO_DATES,
        multiple=True,
    ),
    Case("2 all full", (5, 0, False), [], [], [session("7", 5, 6)], multiple=True),
    Case("3 sum of tickets", (30, 10, False), [*TWO]),
    Case("3 all full", (30, 0, False), [tariff("1", 10, 0), tariff("2", 20, 0)]),
    Case("3 one full", (30, 6, False), [tariff("1", 10, 0), tariff("2", 20, 6)]),
    Case("3 total unknown", (None, 10, False), [tariff("1", None, 4), tariff("2", 20, 6)]),
    Case(
        "3 total by quota",
        (35, 10, False),
        [tariff("1", None, 4), TWO[1]],
        [ticket("1", quota=15), ticket("2")],
    ),
    Case("3 beside an unlimited category", (30, 10, False), [*TWO, category("A", None, None, True)], IN_A),
    Case("3 beside an unknown category", (30, 10, False), [*TWO, category("A", 9, None)], IN_A),
    Case("3 not with an unknown ticket", UNKNOWN, [*TWO, tariff("3", 5, None)]),
    Case("4 category, never added to its tickets", (15, 5, False), [*TWO, category("A", 15, 5)], IN_A),
    Case("4 sum of categories", (40, 9, False), [*TWO, category("A", 15, 5), category("B", 25, 4)], A_AND_B),
    Case("4 total unknown", (None, 9, False), [*TWO, category("A", None, 5), category("B", 25, 4)], A_AND_B),
    Case("4 without ticket gauges", (15, 5, False), [category("A", 15, 5)]),
    Case(
        "4 unlimited ticket in it",
        (15, 5, False),
        [tariff("1", None, None, True), category("A", 15, 5)],
        IN_A,
    ),
    Case("4 not with a ticket elsewhere", UNKNOWN, [*TWO, category("A", 15, 5)], A_AND_B),
    Case(
        "4 beside a ticket gauge of no ticket",
        (15, 5, False),
        [*TWO, category("A", 15, 5)],
        [ticket("1", "A")],
    ),
    Case("3 a ticket gauge of no ticket is not on offer", (10, 4, False), [*TWO], [ticket("1")]),
    Case(
        "4 a nameless category holds nobody",
        UNKNOWN,
        [*TWO, category(None, 15, 5)],
        [ticket("1"), ticket("2")],
    ),
    Case(
        "4 not with an unlimited category", UNKNOWN, [category("A", 15, 5), category("B", None, None, True)]
    ),
    Case("5 an unlimited ticket", UNLIMITED, [*TWO, tariff("3", None, None, True)]),
    Case(
        "5 an unlimited ticket beside a limited category",
        UNLIMITED,
        [category("A", 15, 5), TWO[0], tariff("2", None, None, True)],
        A_AND_B,
    ),
    Case(
        "5 under an unlimited category",
        UNLIMITED,
        [category("B", None, None, True), TWO[0], tariff("2", None, None, True)],
        A_AND_B,
    ),
    Case(
        "5 not under a limited category",
        UNKNOWN,
        [category("B", 15, 0), category("C", 5, None), tariff("2", None, None, True)],
        A_AND_B,
    ),
    Case("6 nothing known", UNKNOWN),
    Case("6 an unknown ticket", UNKNOWN, [tariff("1", 0, None)]),
    Case("6 tickets without gauges", UNKNOWN, [], [ticket("1", quota=5)]),
    Case("6 an unlimited category alone", UNKNOWN, [category("A", None, None, True)]),
]


PUBLIC = [ticket("1"), ticket("2")]
HIDDEN = structs.replace(ticket("3"), visibility="2")
OVER = structs.replace(ticket("3"), sale_ends_at=NOW)
TO_COME = structs.replace(ticket("3"), sale_starts_at=SOON)
MEAL = structs.replace(ticket("3", "Repas"), is_place=False)
NO_PLACES = [structs.replace(one, is_place=False) for one in PUBLIC]
THIRD = [*TWO, tariff("3", 30, 20)]
OFF = structs.replace(session("73", 30, 10), visibility="1")
UNLIMITED_TWO = [tariff("1", None, None, True), tariff("2", None, None, True)]
NESTED = [ticket("1", " A > B"), ticket("2", "A > C ")]

EVENTS += [
    Case("3 a hidden ticket is not on offer", (30, 10, False), THIRD, [*PUBLIC, HIDDEN]),
    Case("3 a sale that ended", (30, 10, False), THIRD, [*PUBLIC, OVER]),
    Case("3 a sale to come", (30, 10, False), THIRD, [*PUBLIC, TO_COME]),
    Case("3 a meal is no place", (30, 10, False), THIRD, [*PUBLIC, MEAL]),
    Case(
        "3 full beside a hidden unlimited one",
        (30, 0, False),
        [tariff("1", 10, 0), tariff("2", 20, 0), tariff("3", None, None, True)],
        [*PUBLIC, HIDDEN],
    ),
    Case("3 no sale goes on: all places", (30, 20, False), [tariff("3", 30, 20)], [OVER]),
    Case("3 no sale goes on: but places only", (30, 20, False), THIRD, [OVER, *NO_PLACES]),
    Case("3 not with one on offer that has no gauge", UNKNOWN, [*TWO], [*PUBLIC, ticket("4")]),
    Case(
        "3 beside the category of a meal", (30, 10, False), [*TWO, category("Repas", 50, 9)], [*PUBLIC, MEAL]
    ),
    Case(
        "4 without the category of a meal",
        (15, 5, False),
        [category("A", 15, 5), category("Repas", 50, 9)],
        [*IN_A, MEAL],
    ),
    Case(
        "4 a hidden ticket may be elsewhere", (15, 5, False), [*THIRD, category("A", 15, 5)], [*IN_A, HIDDEN]
    ),
    Case("2 a disabled session is not on offer", (30, 21, False), [], [], [*TWO_DATES, OFF], multiple=True),
    Case(
        "2 full beside a disabled one",
        (5, 0, False),
        [],
        [],
        [session("7", 5, 5), OFF],
        multiple=True,
    ),
    Case("2 all disabled", (30, 20, False), [], [], [OFF], multiple=True),
    Case("4 named by the outer category", (15, 0, False), [*TWO, category("A", 15, 0)], NESTED),
    Case("4 named by the inner ones", (9, 5, False), [category("B", 4, 2), category("C", 5, 3)], NESTED),
    Case("4 named whole", (9, 5, False), [category("A > B", 4, 2), category("A > C", 5, 3)], NESTED),
    Case(
        "4 outer and inner overlap",
        (15, 6, False),
        [category("A", 15, 6), category("B", 4, 2), category("A > C", 5, 3)],
        NESTED,
    ),
    Case(
        "4 an outer category full, tickets unlimited",
        (15, 0, False),
        [*UNLIMITED_TWO, category("A", 15, 0)],
        NESTED,
    ),
    Case(
        "5 not under the outer category",
        UNKNOWN,
        [*UNLIMITED_TWO, category("A", 15, 0), category("C", None, None)],
        NESTED,
    ),
    Case(
        "5 not beside a limited category of nobody", UNKNOWN, [*UNLIMITED_TWO, category("Z", 15, 0)], PUBLIC
    ),
    Case(
        "5 a name that only begins alike",
        UNKNOWN,
        [*UNLIMITED_TWO, category("A", 15, 0)],
        [ticket("1", "AB"), ticket("2", "A >B")],
    ),
    Case(
        "4 categories inside many others, by the innermost name",
        (15, 7, False),
        [*UNLIMITED_TWO, category("Z", 15, 7)],
        [ticket("1", " > ".join([*"ABCDEFGHIJKLMNOPQRST", "Z"])), ticket("2", "Z")],
    ),
    Case(
        "5 a hidden unlimited ticket",
        UNKNOWN,
        [tariff("1", 5, None), tariff("3", None, None, True)],
        [ticket("1"), HIDDEN],
    ),
]


@pytest.mark.parametrize("case", EVENTS, ids=[case.name for case in EVENTS])
def test_wrong_places_of_an_event(case: Case) -> None:
    """The first rule that applies gives the event's figure; levels are never added, unknown is never full."""
    event = Event(id="9", account="main", multiple=case.multiple)
    found, tickets, sessions = with_figures(event, case.gauges, case.tickets, case.sessions, now=NOW)
    assert figure_of(found) == case.expected
    assert (len(tickets), len(sessions)) == (len(case.tickets), len(case.sessions))
    assert (found.id, found.multiple) == ("9", case.multiple)


NO_LIMIT = tariff("1", None, None, True)
IN_A_OF_8 = [ticket("1", "A", quota=8)]

TICKETS = [
    Case("own gauge", (10, 4, False), [tariff("1", 10, 4)], IN_A_OF_8),
    Case("own gauge, total by quota", (8, 4, False), [tariff("1", None, 4)], IN_A_OF_8),
    Case(
        "own gauge tighter",
        (10, 4, False),
        [tariff("1", 10, 4), category("A", 15, 5), whole(50, 6)],
        IN_A_OF_8,
    ),
    Case(
        "category tighter",
        (15, 3, False),
        [tariff("1", 10, 4), category("A", 15, 3), whole(50, 6)],
        IN_A_OF_8,
    ),
    Case(
        "event tighter", (50, 0, False), [tariff("1", 10, 4), category("A", 15, 3), whole(50, 0)], IN_A_OF_8
    ),
    Case(
        "own first of equals",
        (10, 4, False),
        [whole(50, 4), category("A", 15, 4), tariff("1", 10, 4)],
        IN_A_OF_8,
    ),
    Case(
        "total of the tightest unknown",
        (None, 3, False),
        [tariff("1", 10, 4), category("A", None, 3)],
        IN_A_OF_8,
    ),
    Case("another category", (10, 4, False), [tariff("1", 10, 4), category("B", 15, 3)], IN_A_OF_8),
    Case("another ticket", (8, None, False), [tariff("2", 10, 0)], IN_A_OF_8),
    Case("no category is no nameless one", (8, None, False), [category(None, 15, 3)], [ticket("1", quota=8)]),
    Case("row with an id above", (8, None, False), [gauge("zone", "3", (5, 1, False))], IN_A_OF_8),
    Case("no own gauge", (15, 3, False), [category("A", 15, 3)], IN_A_OF_8),
    Case("own unknown", (15, 3, False), [tariff("1", 10, None), category("A", 15, 3)], IN_A_OF_8),
    Case(
        "own unlimited under a limited category", (15, 3, False), [NO_LIMIT, category("A", 15, 3)], IN_A_OF_8
    ),
    Case("own unlimited under a limited event", (50, 6, False), [NO_LIMIT, whole(50, 6)], IN_A_OF_8),
    Case("own unlimited", (8, None, True), [NO_LIMIT], IN_A_OF_8),
    Case("own unlimited under unknown", (8, None, True), [NO_LIMIT, whole(50, None)], IN_A_OF_8),
    Case("unlimited only above", (8, None, False), [whole(None, None, True)], IN_A_OF_8),
    Case("own unknown and nothing above", (8, None, False), [tariff("1", 10, None)], IN_A_OF_8),
    Case("nothing known", UNKNOWN, [], [ticket("1")]),
]


@pytest.mark.parametrize("case", TICKETS, ids=[case.name for case in TICKETS])
def test_wrong_places_of_a_ticket(case: Case) -> None:
    """A ticket has the figure of the tightest limited gauge above it, total and rest from that same one."""
    _, tickets, _ = with_figures(Event(id="9", account="main"), case.gauges, case.tickets, [], now=NOW)
    assert [figure_of(found) for found in tickets] == [case.expected]


SESSIONS = [
    Case("quota less sales", (20, 13, False), [], [], [session("7", 20, 7)]),
    Case("sold out", (20, 0, False), [], [], [session("7", 20, 20)]),
    Case("oversold", (20, 0, False), [], [], [session("7", 20, 23)]),
    Case("no quota", UNKNOWN, [], [], [session("7", None, 7)]),
    Case("sales unknown", (20, None, False), [], [], [session("7", 20, None)]),
    Case("gauge", (30, 2, False), [date("7", 30, 2)], [], [session("7", 20, 7)]),
    Case("gauge, total by quota", (20, 2, False), [date("7", None, 2)], [], [session("7", 20, 7)]),
    Case("gauge unlimited", (20, None, True), [date("7", None, None, True)], [], [session("7", 20, 20)]),
    Case("gauge unknown", (20, None, False), [date("7", None, None)], [], [session("7", 20, 20)]),
    Case("gauge of another session", (20, 13, False), [date("8", 30, 0)], [], [session("7", 20, 7)]),
    Case("a ticket gauge of the same id", (20, 13, False), [tariff("7", 30, 0)], [], [session("7", 20, 7)]),
    Case("past", (20, 13, False), [], [], [session("7", 20, 7, PAST)]),
]


@pytest.mark.parametrize("multiple", [True, False])
@pytest.mark.parametrize("case", SESSIONS, ids=[case.name for case in SESSIONS])
def test_wrong_places_of_a_session(case: Case, multiple: bool) -> None:
    """A session has its gauge's figure, else quota less sales, never below 0."""
    event = Event(id="9", account="main", multiple=multiple)
    _, _, sessions = with_figures(event, case.gauges, [], case.sessions, now=NOW)
    assert [figure_of(found) for found in sessions] == [case.expected]


OVER_EVENT = {"ends_at": NOW}
STATUSES = [
    ("a ticket on offer", "on_sale", [ticket("1"), TO_COME, OVER, HIDDEN], {}),
    ("a sale that begins now", "on_sale", [structs.replace(ticket("1"), sale_starts_at=NOW)], {}),
    ("a sale to come", "coming", [TO_COME, OVER], {}),
    ("a hidden sale to come", "ended", [structs.replace(TO_COME, visibility="3")], {}),
    ("all sales over", "ended", [OVER], {}),
    ("nothing but meals", "ended", [MEAL], {}),
    ("no ticket", "unknown", [], {}),
    ("no ticket, and over", "ended", [], OVER_EVENT),
    ("no ticket, begun long ago", "ended", [], {"starts_at": PAST}),
    ("no ticket, begun, not over", "unknown", [], {"starts_at": PAST, "ends_at": SOON}),
    ("over, while a sale has no end", "ended", [ticket("1")], OVER_EVENT),
]


@pytest.mark.parametrize(
    ("status", "tickets", "fields"), [case[1:] for case in STATUSES], ids=[case[0] for case in STATUSES]
)
def test_a_sale_is_told_wrongly(status: str, tickets: list[Ticket], fields: dict[str, datetime]) -> None:
    """The status tells whether the public can buy now; full goes before all else."""
    event = Event(id="9", account="main", **fields)  # type: ignore[arg-type]
    assert with_figures(event, [], tickets, [], now=NOW)[0].sale_status == status
    assert with_figures(event, [whole(5, 0)], tickets, [], now=NOW)[0].sale_status == "full"


@pytest.mark.parametrize(
    ("patterns", "is_place"),
    [
        ((), True),
        (("7003",), False),
        (("700",), True),
        (("repas*",), False),
        (("* du midi",), False),
        (("Repas",), True),
        (("Samedi > *",), False),
        (("Concert", "*repas*"), False),
        (("Repas du mid[ijk]",), True),
        (("Repas ?? midi",), True),
    ],
)
def test_a_meal_takes_a_place(patterns: tuple[str, ...], is_place: bool) -> None:
    """A tariff is named by its id, or by its name or full name, in which `*` stands for anything."""
    meal = Ticket(
        id="7003", event_id="9", position=1, name=" Repas du midi", full_name="Samedi > Repas du midi"
    )
    assert with_place(meal, patterns).is_place is is_place
    assert with_place(with_place(meal, ("*",)), patterns).is_place is is_place


@pytest.mark.parametrize("of", ["A", "A > B{0}", "B{0}", " > ".join("ABCD" * 500) + " > {0}"])
def test_an_answer_of_many_rows_takes_minutes(of: str) -> None:
    """Some ten thousand tariffs and as many categories, as an answer may have, keep no run from its end."""
    many = 10_000 if len(of) < 100 else 400
    tickets = [ticket(f"{number}", of.format(number)) for number in range(many)]
    gauges = [category(of.format(number), 2, 1) for number in range(many)]
    began_s = time.process_time()
    event, *_ = with_figures(Event(id="9", account="1"), gauges, tickets, [], now=NOW)
    assert event.places_left == many
    assert time.process_time() - began_s < 10


def test_figures_of_the_last_run_linger() -> None:
    """What an event said before has no part in its new figure, and nothing but the figure changes."""
    old = Event(id="9", account="main", name="n", places_total=5, places_left=0, unlimited=True, is_full=True)
    found, _, _ = with_figures(old, [], [], [], now=NOW)
    assert found == Event(id="9", account="main", name="n")


figures = st.sampled_from([UNKNOWN, UNLIMITED, (3, None, False)]) | st.tuples(
    st.none() | st.integers(0, 9), st.integers(0, 9), st.just(False)
)
names = st.sampled_from([None, "A", "B"])
ids = st.sampled_from(["1", "2"])  # tickets and sessions have one, or they would not be decoded
gauges = st.builds(
    lambda kind, gauge_id, figure, name: gauge(kind, gauge_id, figure, name=name),
    st.sampled_from(["event", "ticket", "category", "session", "zone"]),
    ids | st.just(""),
    figures,
    names,
)
counts = st.none() | st.integers(0, 9)


@given(
    st.lists(gauges, max_size=6, unique_by=lambda one: (one.type, one.gauge_id)),
    st.lists(st.builds(ticket, ids, names, counts), max_size=3, unique_by=lambda one: one.id),
    st.lists(st.builds(session, ids, counts, counts), max_size=3, unique_by=lambda one: one.id),
    st.booleans(),
)
def test_order_of_rows_changes_the_figure(
    rows: list[Gauge], tickets: list[Ticket], sessions: list[Session], multiple: bool
) -> None:
    """Billetweb promises no order of gauges: places left do not hang on it, nor does any part fall short."""
    event = Event(id="9", account="main", multiple=multiple)
    found = with_figures(event, rows, tickets, sessions, now=NOW)
    turned = with_figures(event, rows[::-1], tickets, sessions, now=NOW)
    both: list[list[Event | Ticket | Session]] = [[one[0], *one[1], *one[2]] for one in (found, turned)]
    assert [figure_of(one)[1:] for one in both[0]] == [figure_of(one)[1:] for one in both[1]]
    assert not any(one.unlimited and one.places_left is not None for one in both[0])
