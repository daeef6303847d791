"""The one rule of absence in its borders: what vanishes, what must last, and what a person must say."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.mirror.absence import READS, Absence, Ruling, Scope, Size, is_most, is_mostly_absent, note, rule
from syncd.model import ATTENDEES, EVENTS, GAUGES, SESSIONS, TICKETS

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=3)
HALF = Fraction(1, 2)
AGAIN = Ruling("again")
TIME, ACCEPT = Ruling("lasting", "time"), Ruling("none", "accept")
INSIDE = (GAUGES, TICKETS, SESSIONS, ATTENDEES)
SIZES = [(absent, of) for of in range(10) for absent in range(of + 1)]
"""Every number of absent rows of every number of rows."""


def scope(absent: int, of: int, table: str = TICKETS, event_id: str | None = "9", *, came: int = 0) -> Scope:
    size = Size(of, of + came)
    return Scope(table=table, event_id=None if table == EVENTS else event_id, size=size, absent=absent)


def ruled(*scopes: Scope, whole: bool = True, accepted: bool = False) -> list[Ruling]:
    return rule(scopes, whole=whole, accepted=lambda _: accepted)


# --- notes


def test_an_absence_begins_before_it_was_seen() -> None:
    """A row that is lacking for the first time is absent since this read."""
    assert note({"a", "b"}, {"a"}, {}, NOW) == {"b": Absence(NOW, 1)}


def test_an_absence_that_goes_on_begins_anew() -> None:
    """Each read in a row that lacks the row counts, and the beginning stays."""
    assert note({"a"}, set(), {"a": Absence(EARLIER, 4)}, NOW) == {"a": Absence(EARLIER, 5)}


def test_an_absence_of_a_clock_that_was_ahead_lasts_for_years() -> None:
    """A beginning that is yet to come was read off a wrong clock: the absence counts from this read on."""
    ahead = {"a": Absence(NOW + timedelta(days=900), 1)}
    assert note({"a"}, set(), ahead, NOW) == {"a": Absence(NOW, 2)}


def test_a_row_that_is_read_again_stays_absent() -> None:
    """A read that holds the row ends its absence, whatever else it lacks."""
    before = {"a": Absence(EARLIER, 4), "b": Absence(EARLIER, 1)}
    assert note({"a", "b"}, {"a"}, before, NOW) == {"b": Absence(EARLIER, 2)}
    assert note({"a", "b"}, {"a", "b"}, before, NOW) == {}


def test_what_never_was_is_missed() -> None:
    """Only rows that stand in the mirror can be absent: not one that vanished, nor one of elsewhere."""
    assert note(set(), set(), {"a": Absence(EARLIER, 4)}, NOW) == {}
    assert note({"a"}, {"a", "b"}, {"b": Absence(EARLIER, 4)}, NOW) == {}


# --- how much is most


@pytest.mark.parametrize(("absent", "of"), SIZES)
def test_most_of_few_or_half_of_many_is_doubted(absent: int, of: int) -> None:
    """Most are more than half of more than three rows."""
    assert is_most(absent, of) is (of >= 4 and Fraction(absent, of) > HALF)


@pytest.mark.parametrize(("absent", "of"), SIZES)
def test_an_empty_answer_is_soon_believed(absent: int, of: int) -> None:
    """A read that lacks all rows is as doubtful as one that lacks most, however few they were."""
    expected = (of >= 4 and Fraction(absent, of) > HALF) or (of >= 1 and absent == of)
    assert is_mostly_absent(absent, of) is expected


@pytest.mark.parametrize(
    ("absent", "of", "expected"),
    [
        pytest.param(1, 1, TIME, id="one row, empty"),
        pytest.param(3, 3, TIME, id="three rows, empty"),
        pytest.param(2, 3, AGAIN, id="two of three"),
        pytest.param(2, 4, AGAIN, id="exactly half of four"),
        pytest.param(3, 4, TIME, id="three of four"),
        pytest.param(3, 6, AGAIN, id="exactly half of six"),
        pytest.param(4, 6, TIME, id="four of six"),
        pytest.param(3, 7, AGAIN, id="three of seven"),
        pytest.param(4, 7, TIME, id="four of seven"),
        pytest.param(1000, 2000, AGAIN, id="half of two thousand"),
        pytest.param(1001, 2000, TIME, id="one more than that"),
        pytest.param(0, 0, AGAIN, id="empty, and was empty"),
        pytest.param(0, 4, AGAIN, id="nothing lacking"),
    ],
)
@pytest.mark.parametrize("table", INSIDE)
def test_a_broken_answer_about_an_event_is_taken_for_the_truth(
    absent: int, of: int, expected: Ruling, table: str
) -> None:
    """Where a read lacks most of its scope, or all, the absences must last; else a second read will do."""
    elsewhere = scope(0, 10_000, table, "8")
    assert ruled(scope(absent, of, table), elsewhere) == [expected, AGAIN]


# --- most of an account


@pytest.mark.parametrize(("absent", "of"), SIZES)
def test_a_person_is_asked_about_half_of_an_account(absent: int, of: int) -> None:
    """Over all scopes of a table more than half of more than three rows must be lacking for that."""
    # As evenly as can be over two events, so that in neither is anything else decided by the whole.
    parts = [scope(absent // 2, of // 2, event_id="8"), scope(absent - absent // 2, of - of // 2)]
    is_doubted = of >= 4 and Fraction(absent, of) > HALF
    assert [ruling == ACCEPT for ruling in ruled(*parts)] == [is_doubted] * 2


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        pytest.param([(1, 2), (1, 2)], [AGAIN, AGAIN], id="half of four"),
        pytest.param([(1, 2), (2, 2)], [ACCEPT, ACCEPT], id="three of four"),
        pytest.param([(1, 2), (1, 1)], [AGAIN, TIME], id="two of three"),
        pytest.param([(1, 2), (1, 1), (0, 0)], [AGAIN, TIME, AGAIN], id="and an empty event"),
        pytest.param([(3, 3), (0, 2), (0, 1)], [TIME, AGAIN, AGAIN], id="half of six, all in one event"),
        pytest.param([(3, 3), (0, 2)], [ACCEPT, ACCEPT], id="three of five, all in one event"),
        pytest.param([(1, 2)] * 50 + [(1, 1)], [ACCEPT] * 51, id="little more than half, a bit everywhere"),
        pytest.param([(1, 2)] * 50 + [(0, 1)], [AGAIN] * 51, id="little less than half, a bit everywhere"),
        pytest.param([(4, 4)], [ACCEPT], id="one event is the account"),
        pytest.param([(3, 3)], [TIME], id="one event with three rows is the account"),
    ],
)
@pytest.mark.parametrize("table", INSIDE)
def test_an_account_is_emptied_a_few_rows_here_and_a_few_there(
    scopes: list[tuple[int, int]], expected: list[Ruling], table: str
) -> None:
    """What counts is the sum over the scopes that this run read, for each table by itself."""
    found = [scope(absent, of, table, str(number)) for number, (absent, of) in enumerate(scopes)]
    assert ruled(*found) == expected


@pytest.mark.parametrize(
    ("absent", "came", "expected"),
    [
        pytest.param(4, 0, ACCEPT, id="nothing came"),
        pytest.param(4, 3, ACCEPT, id="fewer than most"),
        pytest.param(4, 4, TIME, id="as many"),
        pytest.param(2, 4, AGAIN, id="for half of them"),
    ],
)
@pytest.mark.parametrize("table", INSIDE)
def test_a_person_is_asked_about_rows_whose_place_others_took(
    absent: int, came: int, expected: Ruling, table: str
) -> None:
    """What comes with the loss is no evidence for it; but an event that has others is not empty."""
    assert ruled(scope(absent, 4, table, came=came)) == [expected]


def test_one_table_answers_for_another() -> None:
    """An account without tariffs is no reason to doubt the gauges, and a list that is whole excuses none."""
    found = ruled(scope(1, 10, GAUGES), scope(9, 10, TICKETS), scope(0, 10, EVENTS), scope(1, 10, SESSIONS))
    assert found == [AGAIN, ACCEPT, AGAIN, AGAIN]


@pytest.mark.parametrize(("absent", "of"), SIZES)
def test_a_small_account_disappears_from_the_list_by_itself(absent: int, of: int) -> None:
    """Of the list of events all rows are most of the account, also where there are three or fewer."""
    is_doubted = (of >= 4 and Fraction(absent, of) > HALF) or (of >= 1 and absent == of)
    assert ruled(scope(absent, of, EVENTS)) == [ACCEPT if is_doubted else AGAIN]


@pytest.mark.parametrize("of", [1, 2, 3])
def test_an_account_of_few_events_is_gone_with_one_odd_list(of: int) -> None:
    """An empty list waits for a person, however few events there were."""
    assert ruled(scope(of, of, EVENTS)) == [ACCEPT]


# --- runs of named events, and what somebody accepted


@pytest.mark.parametrize("table", [*INSIDE, EVENTS])
def test_a_run_of_named_events_lets_rows_vanish(table: str) -> None:
    """It notes what is lacking, and that it waits for time where that is much; no row vanishes by it."""
    for absent, of in SIZES:
        waits_for: Literal["time"] | None = "time" if is_mostly_absent(absent, of) else None
        assert ruled(scope(absent, of, table), whole=False) == [Ruling("none", waits_for)]


@pytest.mark.parametrize("table", [*INSIDE, EVENTS])
@pytest.mark.parametrize("whole", [True, False])
def test_somebodys_word_is_not_heard_or_heard_for_too_much(whole: bool, table: str) -> None:
    """What is accepted vanishes where it was lacking before too: never by its first absence."""
    for absent, of in SIZES:
        (asked,) = ruled(scope(absent, of, table), whole=whole)
        assert ruled(scope(absent, of, table), whole=whole, accepted=True) == [
            Ruling("again", asked.waits_for)
        ]


def test_one_scope_is_accepted_with_another() -> None:
    """A word about one event is none about the others of a doubted account."""
    scopes = [scope(9, 10, event_id=event_id) for event_id in "123"]
    found = rule(scopes, whole=True, accepted=lambda one: one.event_id == "2")
    assert found == [ACCEPT, Ruling("again", "accept"), ACCEPT]


def test_a_row_is_gone_after_one_read() -> None:
    """So many reads must lack it: one odd answer is no news, and a third one would hold news up."""
    assert READS == 2


# --- any scopes at all


scopes = st.lists(
    st.builds(
        lambda table, number, absent, more: scope(absent, absent + more, table, number),
        st.sampled_from([*INSIDE, EVENTS]),
        st.sampled_from("123"),
        st.integers(0, 6),
        st.integers(0, 6),
    ),
    max_size=6,
)


@given(scopes, st.booleans(), st.booleans())
def test_scopes_are_mixed_up(found: list[Scope], whole: bool, accepted: bool) -> None:
    """Each scope has its ruling, in its place, whichever other tables were read, in whatever order."""
    rulings = ruled(*found, whole=whole, accepted=accepted)
    assert ruled(*found[::-1], whole=whole, accepted=accepted) == rulings[::-1]
    for table in {one.table for one in found}:
        alone = [one for one in found if one.table == table]
        together = [ruling for one, ruling in zip(found, rulings, strict=True) if one.table == table]
        assert ruled(*alone, whole=whole, accepted=accepted) == together
