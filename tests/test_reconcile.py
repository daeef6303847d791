"""The vanishing rule in its borders, and what a plan says of one event."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from syncd.model import Event, Gauge, Session, Ticket
from syncd.reconcile import (
    EventPlan,
    EventRows,
    Evidence,
    Fetched,
    Stored,
    Suspicion,
    Verdict,
    compare,
    judge,
    plan_absent,
    plan_event,
    plan_listed,
    row_id,
)

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
EVENTS, GAUGES = "billetweb_events", "billetweb_gauges"
TICKETS, SESSIONS = "billetweb_tickets", "billetweb_sessions"
FULL = Evidence(full=True)
BY_HAND = Evidence(full=True, by_hand=True, needs_hand=True)
SCHEDULED = Evidence(full=True, needs_hand=True)


class Scope:
    """The rows of one scope, one letter each, over several runs."""

    def __init__(self, rows: str) -> None:
        self.present = set(rows)
        self.suspects: dict[str, Suspicion] = {}

    def read(self, rows: str, evidence: Evidence = Evidence()) -> Verdict:  # noqa: B008  # it is frozen
        """Judge a run's read of these rows, and take the verdict over."""
        verdict = judge(self.present, set(rows), self.suspects, evidence)
        self.present -= verdict.vanished
        if not verdict.doubt:
            self.present |= set(rows)
        self.suspects = verdict.suspects
        return verdict

    def gone(self, rows: str, evidence: Evidence = Evidence()) -> str:  # noqa: B008
        """Return the rows that a run's read makes vanish."""
        return "".join(sorted(self.read(rows, evidence).vanished))


# --- few rows are lacking


def test_one_incomplete_answer_removes_no_row() -> None:
    """A row vanishes with the second run in a row that lacks it, of whatever kind the runs are."""
    scope = Scope("abcd")
    assert scope.gone("abc") == ""
    assert scope.gone("abc", FULL) == "d"
    assert scope.gone("abc") == ""


def test_a_row_that_came_back_is_not_held_to_an_old_suspicion() -> None:
    """A run that shows the row begins the count anew."""
    scope = Scope("abcd")
    assert [scope.gone(rows) for rows in ("abc", "abcd", "abc", "abc")] == ["", "", "", "d"]


def test_rows_that_are_lacking_in_turn_all_stay() -> None:
    """Each row needs two runs of its own."""
    scope = Scope("abcd")
    assert [scope.gone(rows) for rows in ("bcd", "acd", "abd", "abc", "bcd")] == [""] * 5


@pytest.mark.parametrize(
    ("present", "read", "doubted"),
    [
        pytest.param("a", "", True, id="one row, empty"),
        pytest.param("abc", "", True, id="three rows, empty"),
        pytest.param("abc", "a", False, id="two of three"),
        pytest.param("abc", "z", False, id="three of three, another one there"),
        pytest.param("abcd", "ab", False, id="exactly half of four"),
        pytest.param("abcd", "a", True, id="three of four"),
        pytest.param("abcd", "avwxyz", True, id="three of four, others there"),
        pytest.param("abcdef", "abc", False, id="exactly half of six"),
        pytest.param("abcdef", "ab", True, id="four of six"),
        pytest.param("abcdefg", "abcd", False, id="three of seven"),
        pytest.param("abcdefg", "abc", True, id="four of seven"),
        pytest.param("", "", False, id="empty, and was empty"),
        pytest.param("", "abcd", False, id="the first read"),
        pytest.param("abcd", "abcd", False, id="nothing lacking"),
    ],
)
@pytest.mark.parametrize("evidence", [Evidence(), FULL, BY_HAND])
def test_a_broken_answer_is_not_taken_for_the_truth(
    present: str, read: str, doubted: bool, evidence: Evidence
) -> None:
    """Doubted are: empty where rows were, and more than half of more than three rows lacking."""
    verdict = Scope(present).read(read, evidence)
    assert bool(verdict.doubt) is doubted
    assert not verdict.vanished


# --- too many rows are lacking


def test_two_full_runs_that_agree_are_believed() -> None:
    """What is doubted vanishes with the second full run in a row that lacks it."""
    scope = Scope("abcd")
    assert scope.read("", FULL).doubt
    assert scope.read("", FULL) == Verdict(frozenset("abcd"))
    assert scope.present == set()


def test_ordinary_runs_never_empty_the_mirror() -> None:
    """Runs that are not full doubt again and again, and suspect nothing by it."""
    scope = Scope("abcd")
    for _ in range(5):
        verdict = scope.read("")
        assert verdict.doubt
        assert verdict == Verdict(doubt=verdict.doubt)
    assert scope.gone("", FULL) == ""


def test_an_ordinary_run_between_does_not_undo_a_full_runs_doubt() -> None:
    """Between two full runs, one that lacks the rows too changes nothing about them."""
    scope = Scope("abcd")
    assert [scope.gone("", evidence) for evidence in (FULL, Evidence(), FULL)] == ["", "", "abcd"]


@pytest.mark.parametrize("between", [FULL, Evidence()])
def test_a_run_that_shows_the_rows_again_clears_them(between: Evidence) -> None:
    """After it, two more full runs are needed."""
    scope = Scope("abcd")
    assert scope.gone("a", FULL) == ""
    assert scope.gone("abcd", between) == ""
    assert [scope.gone("a", FULL), scope.gone("a", FULL)] == ["", "bcd"]


def test_full_runs_that_disagree_are_believed_where_they_agree_only() -> None:
    """Rows that only one of two full runs lacks stay, and stay doubted."""
    scope = Scope("abcdef")
    assert scope.gone("ab", FULL) == ""
    verdict = scope.read("fg", FULL)
    assert verdict.vanished == frozenset("cde")
    assert verdict.doubt
    assert verdict.suspects == {row: Suspicion(doubted=True) for row in "ab"}
    assert scope.gone("", FULL) == "ab"


def test_a_light_suspicion_does_not_count_as_a_full_runs_doubt() -> None:
    """A row that was lacking among few before is not thereby believed gone in a doubted read."""
    scope = Scope("abcd")
    assert [scope.gone("abc"), scope.gone("", FULL)] == ["", ""]
    assert scope.gone("", FULL) == "abcd"


def test_a_full_runs_doubt_does_not_count_as_a_light_suspicion() -> None:
    """A row out of a doubted read, lacking among few in the next, needs one more run."""
    scope = Scope("abcd")
    assert scope.gone("a", FULL) == ""
    assert [scope.gone("abc"), scope.gone("abc")] == ["", "d"]


def test_a_light_suspicion_does_not_outlive_a_doubted_read() -> None:
    """A doubted read in between is no evidence: the two runs that lacked the row were not in a row."""
    scope = Scope("abcd")
    assert [scope.gone("abc"), scope.gone(""), scope.gone("abc"), scope.gone("abc")] == ["", "", "", "d"]


@pytest.mark.parametrize(
    ("runs", "gone"),
    [
        ((BY_HAND, BY_HAND), "abcd"),
        ((BY_HAND, SCHEDULED), ""),
        ((SCHEDULED, BY_HAND), ""),
        ((SCHEDULED, SCHEDULED, SCHEDULED), ""),
        ((BY_HAND, SCHEDULED, BY_HAND), ""),
        ((SCHEDULED, BY_HAND, BY_HAND), "abcd"),
        ((BY_HAND, Evidence(needs_hand=True), BY_HAND), "abcd"),
        ((BY_HAND, Evidence(by_hand=True, needs_hand=True)), ""),
    ],
)
def test_most_of_an_account_is_emptied_by_hand_only(runs: tuple[Evidence, ...], gone: str) -> None:
    """Where it takes a hand, both of the two full runs in a row must have been asked for by one."""
    scope = Scope("abcd")
    assert [scope.gone("", evidence) for evidence in runs] == [""] * (len(runs) - 1) + [gone]


def test_few_rows_vanish_without_a_hand() -> None:
    """What is lacking among few is not doubted: nobody needs to confirm it."""
    scope = Scope("abcd")
    assert [scope.gone("abc", SCHEDULED), scope.gone("abc", SCHEDULED)] == ["", "d"]


def test_a_doubt_tells_what_to_do() -> None:
    """The sentence holds the numbers, some rows, and what would make the read believed."""
    doubt = Scope("abcdef").read("a", FULL).doubt or ""
    assert "lacks 5 of 6 rows (b, c, d, …)" in doubt
    assert "two full runs in a row that agree" in doubt
    assert "`syncctl run-now --full` twice" in (Scope("abc").read("", SCHEDULED).doubt or "")


@given(
    st.sets(st.sampled_from("abcdefgh")),
    st.lists(
        st.tuples(
            st.sets(st.sampled_from("abcdefgh")),
            st.builds(Evidence, st.booleans(), st.booleans(), st.booleans()),
        ),
        max_size=8,
    ),
)
def test_no_row_vanishes_by_fewer_than_two_reads(
    rows: set[str], reads: list[tuple[set[str], Evidence]]
) -> None:
    """Whatever is read in whatever runs: a row that vanishes was lacking in this read and the one before."""
    scope = Scope("".join(rows))
    before = set("abcdefgh")
    for read, evidence in reads:
        gone = scope.read("".join(read), evidence).vanished
        assert not gone & (read | before)
        assert not gone & scope.suspects.keys()
        assert scope.suspects.keys() <= scope.present - read
        before = read


# --- plans


def event(**fields: Any) -> Event:
    return Event(id="9", account="1", **fields)


def gauge(kind: str, gauge_id: str, left: int | None, **fields: Any) -> Gauge:
    return Gauge(event_id="9", session_id="", type=kind, gauge_id=gauge_id, places_left=left, **fields)


def ticket(ticket_id: str, **fields: Any) -> Ticket:
    return Ticket(id=ticket_id, event_id="9", position=1, **fields)


def fetched(
    gauges: Iterable[Gauge] = (), tickets: Iterable[Ticket] = (), sessions: Iterable[Session] | None = None
) -> Fetched:
    return Fetched(
        gauges={row_id(row): row for row in gauges},
        tickets={row.id: row for row in tickets},
        sessions=None if sessions is None else {row.id: row for row in sessions},
        read_at=NOW,
    )


def stored(*records: Event | Gauge | Ticket | Session, vanished_at: datetime | None = None) -> EventRows:
    tables = {Event: EVENTS, Gauge: GAUGES, Ticket: TICKETS, Session: SESSIONS}
    known = EventRows({name: {} for name in tables.values()}, {name: {} for name in tables.values()})
    for record in records:
        row = Stored(structs.asdict(record), vanished_at)
        known.rows[tables[type(record)]][row_id(record)] = row
    return known


def figure(plan: EventPlan) -> dict[str, object]:
    """Return what the plan changes in the event's figures."""
    return {
        name: new
        for change in plan.changes
        if change.table == EVENTS
        for name, (_, new) in change.diff.items()
        if name.startswith(("places", "is_full"))
    }


def test_a_gauge_that_is_merely_suspected_does_not_move_the_figure() -> None:
    """A gauge that one read lacks still counts; when it is believed gone it no longer does."""
    gauges = [gauge("ticket", "1", 5, places_total=5), gauge("ticket", "2", 7, places_total=7)]
    known = stored(event(places_total=12, places_left=12), *gauges)
    plan = plan_event(event(), known, fetched(gauges[:1]), Evidence())
    assert (plan.changes, plan.doubts, plan.read_at) == ([], {}, NOW)
    known.suspects = plan.suspects
    plan = plan_event(event(), known, fetched(gauges[:1]), Evidence())
    assert figure(plan) == {"places_total": 5, "places_left": 5}


def test_a_doubted_availability_does_not_pass_for_a_fresh_one() -> None:
    """Figures stay, also those of rows that the doubted read shows, and so does the instant of the read."""
    gauges = [gauge("ticket", str(n), n) for n in range(1, 5)]
    known = stored(event(places_left=10), *gauges)
    plan = plan_event(event(), known, fetched([gauge("ticket", "1", 0)]), Evidence())
    assert plan.changes == []
    assert not plan.writes
    assert plan.doubts.keys() == {GAUGES}
    assert plan.read_at is None


def test_doubted_tariffs_do_not_keep_the_figures_from_being_fresh() -> None:
    """Availability that was read well is taken over also where another read of the event is doubted."""
    known = stored(event(places_left=5), gauge("event", "", 5), ticket("1", places_left=5))
    plan = plan_event(event(), known, fetched([gauge("event", "", 0)]), Evidence())
    assert plan.doubts.keys() == {TICKETS}
    assert plan.read_at == NOW
    assert figure(plan) == {"places_left": 0, "is_full": True}
    [ticket_change] = [change for change in plan.changes if change.table == TICKETS]
    assert ticket_change.diff == {"places_left": [5, 0], "is_full": [False, True]}


def test_a_row_that_returns_is_not_taken_for_a_new_one() -> None:
    """A vanished row that is read again is `returned`, also where nothing else in it changed."""
    known = stored(ticket("1", name="old"), vanished_at=NOW)
    known.rows[EVENTS] = stored(event()).rows[EVENTS]
    [change] = plan_event(event(), known, fetched(tickets=[ticket("1", name="new")]), Evidence()).changes
    assert (change.kind, change.values) == ("returned", structs.asdict(ticket("1", name="new")))
    assert change.diff == {"name": ["old", "new"], "vanished_at": [NOW, None]}
    [change] = plan_event(event(), known, fetched(tickets=[ticket("1", name="old")]), Evidence()).changes
    assert (change.kind, change.diff) == ("returned", {"vanished_at": [NOW, None]})


def test_a_vanished_row_does_not_vanish_again() -> None:
    """Rows marked vanished are no part of what a read is held against."""
    known = stored(*(ticket(str(n)) for n in range(9)), vanished_at=NOW)
    known.rows[EVENTS] = stored(event()).rows[EVENTS]
    plan = plan_event(event(), known, fetched(), FULL)
    assert (plan.changes, plan.suspects, plan.doubts, plan.unchanged) == ([], {}, {}, 1)


def test_an_ended_event_keeps_its_last_figures() -> None:
    """An event of which only the list was read is compared without its figures."""
    old = event(name="old", places_total=9, places_left=0, is_full=True)
    plan = plan_listed(event(name="new"), stored(old).rows[EVENTS]["9"])
    [change] = plan.changes
    assert change.diff == {"name": ["old", "new"]}
    assert change.values == structs.asdict(structs.replace(old, name="new"))
    assert plan.read_at is None
    assert not plan_listed(event(name="old"), stored(old).rows[EVENTS]["9"]).writes


def test_events_are_marked_and_suspected_one_by_one() -> None:
    """Of the list's verdict only those events get a plan for which something changes."""
    old = {"1": Suspicion(), "2": Suspicion(), "4": Suspicion()}
    plans = plan_absent("1235", Verdict(frozenset("1"), {"2": Suspicion(), "3": Suspicion()}), old)
    found = {plan.event_id: ([change.kind for change in plan.changes], plan.suspects) for plan in plans}
    assert found == {
        "1": (["vanished"], {EVENTS: {}}),
        "3": ([], {EVENTS: {"3": Suspicion()}}),
        "4": ([], {EVENTS: {}}),  # suspected once, and in the list again
    }


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
    assert (
        compare(TICKETS, Stored(structs.asdict(ticket("1", extra=old)), None), ticket("1", extra=new)) is None
    ) is same


def test_the_same_price_written_otherwise_is_no_change() -> None:
    """12.50 is 12.5, and an instant is the same in any zone."""
    old = ticket("1", price=Decimal("12.5"), sale_starts_at=NOW)
    new = ticket("1", price=Decimal("12.50"), sale_starts_at=NOW.astimezone(ZoneInfo("Europe/Paris")))
    assert compare(TICKETS, Stored(structs.asdict(old), None), new) is None


def test_a_date_that_passes_changes_the_figure_of_its_event() -> None:
    """The sum over coming dates is taken at the instant of the read."""
    dates = [
        Session(id="1", event_id="9", starts_at=NOW - timedelta(1), places_total=5, places_sold=0),
        Session(id="2", event_id="9", starts_at=NOW + timedelta(1), places_total=7, places_sold=0),
    ]
    plan = plan_event(event(multiple=True), stored(), fetched(sessions=dates), Evidence())
    assert figure(plan)["places_left"] == 7
