"""What vanishes from run to run, and what waits: the rule, the database and the end of a run together."""

from collections.abc import Iterable
from datetime import timedelta

import pytest
from msgspec import structs
from support.reading import FULL_EVERY, QUARTER, Mirror, Reading, event, gauge, ticket, tickets

from syncd.database import rows
from syncd.model import ATTENDEES, EVENTS, GAUGES, TICKETS, Attendee, Doubt, Session

INSTANT = timedelta(microseconds=1)
ELSEWHERE = [ticket(f"8{number}", "8") for number in range(20)]
"""So many rows of another event that those of the one in question are not most of the account."""


@pytest.fixture
def mirror(shared_mirror: Mirror) -> Mirror:
    """Give a mirror with empty tables."""
    shared_mirror.empty()
    return shared_mirror


def read(
    mirror: Mirror,
    shown: str | None,
    *,
    after: timedelta = QUARTER,
    whole: bool = True,
    accept: bool = False,
    accepted: Iterable[str] = (),
) -> Reading:
    """Have a run read an event's tariffs, one letter each (None: nothing of it), and all of another event."""
    mirror.clock.at += after
    with mirror.run(whole=whole, accept=accept, accepted=accepted) as run:
        run.event(event("8"), *ELSEWHERE)
        if shown is not None:
            run.event(event(), *tickets(shown))
    return run


def gone(mirror: Mirror, *shown: str | None, after: timedelta = QUARTER) -> list[str]:
    """Return which rows each of these reads makes vanish, one after the other."""
    return [vanished(read(mirror, each, after=after)) for each in shown]


def vanished(run: Reading) -> str:
    return "".join(sorted(row for row, kind in run.kinds.items() if kind == "vanished"))


# --- few rows are lacking


def test_one_incomplete_answer_removes_a_row(mirror: Mirror) -> None:
    """A row vanishes with the second run in a row that lacks it, neither sooner nor later."""
    assert gone(mirror, "abcd", "abc", "abc", "abc") == ["", "", "d", ""]


def test_a_row_that_came_back_is_held_to_an_old_absence(mirror: Mirror) -> None:
    """A read that holds the row begins the count anew."""
    assert gone(mirror, "abcd", "abc", "abcd", "abc", "abc") == ["", "", "", "", "d"]


def test_rows_that_are_lacking_in_turn_vanish(mirror: Mirror) -> None:
    """Each row needs two reads of its own."""
    assert gone(mirror, "abcd", "bcd", "acd", "abd", "abc", "bcd") == [""] * 6


def test_a_run_that_read_nothing_says_something(mirror: Mirror) -> None:
    """A run that did not read the scope, or not completely, neither counts nor begins the count anew."""
    assert gone(mirror, "abcd", "abc", None, None) == [""] * 4
    assert mirror.absent(TICKETS) == {"d": 1}
    assert gone(mirror, "abc") == ["d"]


def test_two_reads_of_one_run_are_two_runs(mirror: Mirror) -> None:
    """A run's own absences are counted once at its end; only the next run makes them vanish."""
    read(mirror, "abcd")
    with mirror.run() as run:
        run.event(event("8"), *ELSEWHERE)
        run.event(event(), *tickets("abc"))
    assert (vanished(run), mirror.absent(TICKETS)) == ("", {"d": 1})


# --- most rows are lacking


def test_many_rows_vanish_as_soon_as_few(mirror: Mirror) -> None:
    """What lacks most of its scope must be lacking for `sync.full_every`, to the instant."""
    read(mirror, "abcd")
    first = read(mirror, "a")
    assert (first.doubted, vanished(first)) == (["event 9"], "")
    since = mirror.clock.at
    for _ in range(10):
        assert vanished(read(mirror, "a")) == ""
    assert vanished(read(mirror, "a", after=since + FULL_EVERY - INSTANT - mirror.clock.at)) == ""
    last = read(mirror, "a", after=INSTANT)
    assert (vanished(last), last.doubted, mirror.doubts()) == ("bcd", [], [])


def test_time_alone_makes_rows_vanish(mirror: Mirror) -> None:
    """However long ago they were last seen, it takes two reads."""
    assert gone(mirror, "abcd", "a", after=3 * FULL_EVERY) == ["", ""]
    assert gone(mirror, "a", after=FULL_EVERY) == ["bcd"]


def test_an_empty_answer_is_believed_as_soon_as_a_short_one(mirror: Mirror) -> None:
    """Where all rows are lacking they must be for long, be they only a few."""
    read(mirror, "ab")
    assert read(mirror, "").doubted == ["event 9"]
    assert gone(mirror, "", "") == ["", ""]
    assert gone(mirror, "", after=FULL_EVERY) == ["ab"]


def test_rows_that_are_there_again_stay_doubted(mirror: Mirror) -> None:
    """A read that holds them ends the doubt, and the next one begins with its own instant."""
    read(mirror, "abcd")
    read(mirror, "a")
    run = read(mirror, "abcd", after=FULL_EVERY)
    assert (run.doubted, mirror.absent(TICKETS), mirror.doubts()) == ([], {}, [])
    assert gone(mirror, "a", "a") == ["", ""]
    assert mirror.doubts()[0].since == mirror.clock.at - QUARTER


def test_rows_vanish_with_others_that_were_lacking_for_longer(mirror: Mirror) -> None:
    """Of a doubted scope those vanish that lasted, and the others when they did."""
    read(mirror, "abcdef")
    read(mirror, "ab")
    read(mirror, "fg", after=FULL_EVERY / 2)
    assert mirror.absent(TICKETS) == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 2}
    run = read(mirror, "fg", after=FULL_EVERY / 2)
    assert vanished(run) == "cde"
    assert (run.doubted, mirror.absent(TICKETS)) == (["event 9"], {"a": 2, "b": 2})
    assert gone(mirror, "fg", after=FULL_EVERY / 2) == ["ab"]


def test_a_row_lacking_among_few_vanishes_with_the_many(mirror: Mirror) -> None:
    """It is the latest read that says how long an absence must last."""
    assert gone(mirror, "abcd", "abc", "") == ["", "", ""]
    (doubt,) = mirror.doubts()
    assert (doubt.absent, doubt.reads, doubt.waits_for) == (4, 2, "time")
    assert gone(mirror, "abc") == ["d"]
    assert mirror.doubts() == []


@pytest.mark.parametrize("shown", ["abcdefghij", "abcdef"])
def test_a_doubt_outlives_the_read_that_settles_it(mirror: Mirror, shown: str) -> None:
    """Where the next read lacks nothing, or no more than half, nothing waits any longer."""
    read(mirror, "abcdefghij")
    assert read(mirror, "a").doubted == ["event 9"]
    run = read(mirror, shown)
    assert (run.doubted, mirror.doubts()) == ([], [])
    assert vanished(run) == "".join(sorted(set("abcdefghij") - set(shown)))


# --- most of an account is lacking


def account(mirror: Mirror, shown: str, *, after: timedelta = QUARTER, accept: bool = False) -> Reading:
    """Have a run read three events with three tariffs each, of which it holds these."""
    mirror.clock.at += after
    with mirror.run(accept=accept) as run:
        for event_id, own in (("1", "abc"), ("2", "def"), ("3", "ghi")):
            run.event(event(event_id), *tickets("".join(sorted(set(own) & set(shown))), event_id))
    return run


def test_most_of_an_account_vanishes_by_itself(mirror: Mirror) -> None:
    """Lacking a few here and a few there, more than half in all, it waits for a person however long."""
    account(mirror, "abcdefghi")
    for _ in range(3):
        run = account(mirror, "adgh", after=2 * FULL_EVERY)
        assert (vanished(run), run.doubted) == ("", ["event 1", "event 2", "event 3"])
    found = [
        (doubt.event_id, doubt.absent, doubt.of, doubt.waits_for, doubt.until) for doubt in mirror.doubts()
    ]
    assert found == [("1", 2, 3, "accept", None), ("2", 2, 3, "accept", None), ("3", 1, 3, "accept", None)]
    run = account(mirror, "adgh", accept=True)
    assert (vanished(run), run.doubted, mirror.doubts()) == ("bcefi", [], [])


def test_half_of_an_account_waits_for_a_person(mirror: Mirror) -> None:
    """Four of nine rows are not most of them: they vanish with the second run."""
    account(mirror, "abcdefghi")
    assert vanished(account(mirror, "adghi")) == ""
    run = account(mirror, "adghi")
    assert (vanished(run), run.doubted) == ("bcef", [])


def test_an_earlier_runs_sum_keeps_a_row_from_vanishing(mirror: Mirror) -> None:
    """What an earlier run found lacking elsewhere is no reason to doubt what this run reads."""
    with mirror.run() as run:
        run.event(event("1"), *tickets("abcd", "1"))
        run.event(event("2"), *tickets("efgh", "2"))
        run.event(event("8"), *ELSEWHERE)
    for _ in range(2):
        with mirror.run() as run:
            run.event(event("1"))
            run.event(event("8"), *ELSEWHERE)
        assert run.doubted == ["event 1"]
        with mirror.run() as run:
            run.event(event("2"), *tickets("efg", "2"))
    assert (vanished(run), run.doubted) == ("h", [])
    assert [doubt.event_id for doubt in mirror.doubts()] == ["1"]


@pytest.mark.parametrize(("ids", "shown"), [("1", ""), ("12", ""), ("123", ""), ("1234", "1")])
def test_an_account_is_gone_with_its_list(mirror: Mirror, ids: str, shown: str) -> None:
    """A list that lacks all events, few or many, or most of many, waits for a person however long."""
    with mirror.run() as run:
        for event_id in ids:
            run.event_of_list(event(event_id))
    lacking = sorted(set(ids) - set(shown))
    for number in range(1, 4):
        mirror.clock.at += 2 * FULL_EVERY
        with mirror.run() as run:
            run.listed(*shown)
        assert (vanished(run), run.doubted, run.run.failed) == ("", ["events"], len(lacking))
        (doubt,) = mirror.doubts()
        assert (doubt.table, doubt.event_id, doubt.waits_for, doubt.until) == (EVENTS, None, "accept", None)
        assert (doubt.absent, doubt.of, doubt.reads) == (len(lacking), len(ids), number)
    with mirror.run(accept=True) as run:
        run.listed(*shown)
    assert (vanished(run), run.doubted, mirror.absent(EVENTS)) == ("".join(lacking), [], {})


@pytest.mark.parametrize("others", ["56", "56789"])
def test_another_accounts_list_takes_the_place_of_ones_own(mirror: Mirror, others: str) -> None:
    """Events that come with the loss of the others are no evidence that these are gone."""
    with mirror.run() as run:
        for event_id in "1234":
            run.event_of_list(event(event_id))
    for shown in (others, others, f"{others}0"):
        mirror.clock.at += 2 * FULL_EVERY
        with mirror.run() as run:
            run.listed(*shown)
            mirror.clock.at += QUARTER
            for event_id in shown:
                run.event_of_list(event(event_id))
        assert (vanished(run), run.doubted, run.run.failed) == ("", ["events"], 4)
        assert [(doubt.absent, doubt.of) for doubt in mirror.doubts()] == [(4, 4)]
    for gone in ("4", "0"):  # once most of ours are there, few are absent, of theirs too
        with mirror.run() as run:
            run.listed("1", "2", "3", *others)
        assert (vanished(run), run.doubted) == (gone, [])


@pytest.mark.parametrize("others", ["efgh", "aefghi"])
def test_other_rows_take_the_place_of_most(mirror: Mirror, others: str) -> None:
    """Rows that come with the loss of the others are no evidence for it: that must last all the same."""
    read(mirror, "abcd")
    lacking = "".join(sorted({*"abcd"} - {*others}))
    assert gone(mirror, others, others, f"{others}j") == ["", "", ""]
    (doubt,) = mirror.doubts()
    assert (doubt.waits_for, doubt.absent, doubt.of) == ("time", len(lacking), 4)
    assert gone(mirror, others, after=FULL_EVERY) == [lacking]


def test_more_rows_are_lacking_than_there_were(mirror: Mirror) -> None:
    """Rows that came in the place of most, and are lacking too, are among those that a read should hold."""
    read(mirror, "abcd")
    read(mirror, "efgh")
    (error,) = read(mirror, "ijkl").run.errors
    assert "the answer lacks 8 of 8 rows" in error.message


def only_event(mirror: Mirror, shown: str, *, after: timedelta = QUARTER) -> tuple[str, list[Doubt]]:
    """Have a run read tariffs and attendees of an account's only event; return what vanishes, and doubts."""
    mirror.clock.at += after
    with mirror.run() as run:
        run.event(event(), *tickets(shown))
        run.people("9", *(Attendee(id=row.upper(), event_id="9") for row in shown))
    return vanished(run), mirror.doubts()


def test_other_rows_take_the_place_of_most_of_an_account(mirror: Mirror) -> None:
    """An account whose only event is sold by other tariffs is not empty: if that lasts, nobody is asked."""
    only_event(mirror, "abcd")
    for waits_for in ("accept", "time", "time"):  # what a read brings counts from the next one on
        gone, doubts = only_event(mirror, "efgh")
        found = [(doubt.table, doubt.waits_for, doubt.absent, doubt.of) for doubt in doubts]
        assert (gone, found) == ("", [(ATTENDEES, waits_for, 4, 4), (TICKETS, waits_for, 4, 4)])
    assert only_event(mirror, "efgh", after=FULL_EVERY) == ("ABCDabcd", [])


def test_a_few_other_rows_take_the_place_of_most_of_an_account(mirror: Mirror) -> None:
    """That waits for a person, who was told so."""
    only_event(mirror, "abcd")
    for _ in range(3):
        gone, doubts = only_event(mirror, "efg", after=FULL_EVERY)
        found = [(doubt.table, doubt.waits_for, doubt.absent, doubt.of) for doubt in doubts]
        assert (gone, found) == ("", [(ATTENDEES, "accept", 4, 4), (TICKETS, "accept", 4, 4)])


@pytest.mark.parametrize("ids", ["1", "123"])
def test_a_new_event_in_the_place_of_another_is_doubted_for_ever(mirror: Mirror, ids: str) -> None:
    """In a small account, events that are deleted while others are made vanish with the second run."""
    with mirror.run() as run:
        for event_id in ids:
            run.event_of_list(event(event_id))
    found = []
    for _ in range(2):
        mirror.clock.at += QUARTER
        with mirror.run() as run:
            run.listed(*"5678")
            mirror.clock.at += QUARTER
            for event_id in "5678":
                run.event_of_list(event(event_id))
        found.append((vanished(run), run.doubted))
    assert found == [("", ["events"]), (ids, [])]


def test_a_list_without_a_few_events_waits_for_a_person(mirror: Mirror) -> None:
    """They vanish with the second run whose list lacks them."""
    with mirror.run() as run:
        for event_id in "1234":
            run.event_of_list(event(event_id))
    found = []
    for _ in range(2):
        with mirror.run() as run:
            run.listed("1", "2")
        found.append(vanished(run))
    assert found == ["", "34"]


def test_what_was_absent_inside_an_event_outlives_it(mirror: Mirror) -> None:
    """Nobody reads a vanished event, so nothing inside it waits; an accepting run of it alone says so too."""
    read(mirror, "abcd")
    with mirror.run() as run:
        for event_id in "1234":
            run.event_of_list(event(event_id))
        run.event(event(), *tickets("abc"))
    assert mirror.absent(TICKETS) == {"d": 1}
    with mirror.run() as run:
        run.listed(*"12348")
    with mirror.run(whole=False, accept=True, accepted=["9"]) as run:
        run.listed(*"12348")
    assert (vanished(run), mirror.absent(TICKETS)) == ("9", {})


# --- runs of named events, and what somebody accepted


def test_a_run_of_named_events_makes_rows_vanish(mirror: Mirror) -> None:
    """It only notes what it lacks; the next run of the whole account rules."""
    read(mirror, "abcd")
    for _ in range(3):
        assert vanished(read(mirror, "abc", whole=False)) == ""
    assert mirror.absent(TICKETS) == {"d": 3}
    assert gone(mirror, "abc") == ["d"]


def test_a_run_of_named_events_keeps_a_doubt_to_itself(mirror: Mirror) -> None:
    """It reports what it doubts, and no sum over an account that it did not read."""
    with mirror.run() as run:
        run.event(event(), *tickets("abcd"))
    with mirror.run(whole=False) as run:
        run.event(event(), *tickets("a"))
    assert run.doubted == ["event 9"]
    assert [(doubt.waits_for, doubt.absent) for doubt in mirror.doubts()] == [("time", 3)]


def test_a_run_of_named_events_ends_the_wait_for_a_person(mirror: Mirror) -> None:
    """What waits for a person goes on waiting for one, however little the named event lacks now."""
    account(mirror, "abcdefghi")
    account(mirror, "adgh")
    for shown in ("ab", "a", ""):
        with mirror.run(whole=False) as run:
            run.event(event("1"), *tickets(shown, "1"))
        assert run.doubted == ["event 1"]
        assert {(doubt.event_id, doubt.waits_for) for doubt in mirror.doubts()} == {
            (event_id, "accept") for event_id in "123"
        }
    with mirror.run(whole=False) as run:
        run.event(event("1"), *tickets("abc", "1"))
    assert run.doubted == []
    assert [doubt.event_id for doubt in mirror.doubts()] == ["2", "3"]


@pytest.mark.parametrize("known", [True, False])
def test_a_run_of_named_events_doubts_the_list(mirror: Mirror, known: bool) -> None:
    """It says nothing of the events that the list lacks, and leaves what a run of the account said."""
    with mirror.run() as run:
        for event_id in "12":
            run.event_of_list(event(event_id))
    if known:
        with mirror.run() as run:
            run.listed()
    before = [(doubt.waits_for, doubt.absent) for doubt in mirror.doubts()]
    assert before == ([("accept", 2)] if known else [])
    with mirror.run(whole=False) as run:
        run.listed()
    assert (run.doubted, run.kinds) == ([], {})
    assert [(doubt.waits_for, doubt.absent) for doubt in mirror.doubts()] == before


@pytest.mark.parametrize("whole", [True, False])
def test_what_somebody_accepted_stays(mirror: Mirror, whole: bool) -> None:
    """It vanishes in the accepting run, which may be one of named events, however much it is."""
    read(mirror, "abcd")
    read(mirror, "")
    run = read(mirror, "", whole=whole, accept=True)
    assert (vanished(run), run.doubted, mirror.doubts()) == ("abcd", [], [])


@pytest.mark.parametrize("whole", [True, False])
def test_what_nobody_had_seen_lacking_is_accepted(mirror: Mirror, whole: bool) -> None:
    """A first absence stays also in the accepting run, beside others that vanish."""
    read(mirror, "abcdef")
    read(mirror, "ab")
    run = read(mirror, "", whole=whole, accept=True)
    assert (vanished(run), run.doubted) == ("cdef", ["event 9"])
    assert mirror.absent(TICKETS) == {"a": 1, "b": 1}
    assert vanished(read(mirror, "", whole=whole, accept=True)) == "ab"


def test_what_is_there_again_is_accepted(mirror: Mirror) -> None:
    """What the accepting run reads stays."""
    read(mirror, "abcd")
    read(mirror, "")
    assert vanished(read(mirror, "ab", accept=True)) == "cd"


def test_a_word_about_one_event_is_taken_for_another(mirror: Mirror) -> None:
    """Only the scopes of the events that somebody named are accepted."""
    read(mirror, "abcd")
    for accepted in ("8", "7"):
        run = read(mirror, "", accept=True, accepted=[accepted])
        assert (vanished(run), run.doubted) == ("", ["event 9"])
    assert vanished(read(mirror, "", accept=True, accepted=["7", "9"])) == "abcd"


def test_a_word_about_one_event_is_taken_for_the_list(mirror: Mirror) -> None:
    """Of the events that the list lacks those alone vanish that somebody named."""
    with mirror.run() as run:
        for event_id in "1234":
            run.event_of_list(event(event_id))
    with mirror.run() as run:
        run.listed("4")
    with mirror.run(accept=True, accepted=["2", "4"]) as run:
        run.listed("4")
    assert (vanished(run), run.doubted, mirror.absent(EVENTS)) == ("2", ["events"], {"1": 2, "3": 2})


def test_a_word_about_an_event_covers_its_first_absence(mirror: Mirror) -> None:
    """An event that the list lacks for the first time stays, named or not."""
    with mirror.run() as run:
        run.event_of_list(event("1"))
    with mirror.run(accept=True, accepted=["1"]) as run:
        run.listed()
    assert (vanished(run), mirror.absent(EVENTS)) == ("", {"1": 1})


# --- attendees and dates


def test_attendees_vanish_by_another_rule(mirror: Mirror) -> None:
    """One place of several vanishes with the second read of all; a read of some does not count."""
    people = [Attendee(row, "9") for row in "abcd"]
    found = []
    for shown, whole in ((people, True), (people[:3], True), (people[:1], False), (people[:3], True)):
        with mirror.run() as run:
            run.people("9", *shown, whole=whole)
        found.append(vanished(run))
    assert found == ["", "", "", "d"]


def test_a_place_that_is_told_of_stays_absent(mirror: Mirror) -> None:
    """A read of some attendees ends the absences of those that it holds."""
    people = [Attendee(row, "9") for row in "abcd"]
    for shown, whole in ((people, True), (people[:2], True), (people[3:], False)):
        with mirror.run() as run:
            run.people("9", *shown, whole=whole)
    assert mirror.absent(ATTENDEES) == {"c": 1}


def test_figures_are_young_while_a_gauge_is_doubted(mirror: Mirror) -> None:
    """Where gauges vanish that lasted, and another is still waited for, the figures bear no new age."""
    elsewhere = [structs.replace(gauge(f"8{number}"), event_id="8") for number in range(20)]

    def look(names: str, after: timedelta = QUARTER) -> Reading:
        mirror.clock.at += after
        with mirror.run() as run:
            run.event(event("8"), *elsewhere)
            run.event(event(), *map(gauge, names))
        return run

    look("abcde")
    read_at = mirror.query(rows.present_events)["9"]
    look("de")
    look("e")
    run = look("e", FULL_EVERY - QUARTER)
    assert sorted(mirror.absent(GAUGES)) == ["9//category/d"]
    assert len(run.kinds) == 3
    assert mirror.query(rows.present_events)["9"] == read_at


def test_rows_of_several_tables_vanish_apart(mirror: Mirror) -> None:
    """What one event lost in a run is gone in one go, from each table by its own count."""
    dates = [Session(id=f"s{number}", event_id="9") for number in range(4)]
    people = [Attendee(f"p{number}", "9") for number in range(4)]
    for number in (4, 3, 3):
        with mirror.run() as run:
            run.people("9", *people[:number])
            run.event(event(), *tickets("abcd"[:number]), *dates[:number])
    assert run.kinds == {"p3": "vanished", "d": "vanished", "s3": "vanished"}
    assert run.run.counts.vanished == 3
    assert mirror.sql("SELECT count(*) FROM syncd_absences") == [(0,)]


def test_absences_inside_an_event_that_vanishes_are_left(mirror: Mirror) -> None:
    """The run in which an event vanishes forgets what was absent inside it."""
    with mirror.run() as run:
        for event_id in "1234":
            run.event(event(event_id), *(ticket(f"{event_id}{row}", event_id) for row in "abc"))
    with mirror.run() as run:
        run.listed("1", "2", "3")
        run.event(event("4"), *(ticket(f"4{row}", "4") for row in "ab"))
    with mirror.run() as run:
        run.listed("1", "2", "3")
    assert run.kinds == {"4": "vanished"}
    assert mirror.sql("SELECT * FROM syncd_absences") == []


def test_a_figure_forgets_an_absent_row_before_it_vanished(mirror: Mirror) -> None:
    """The event's rows stand in the mirror, absent or not, until they vanish."""
    read(mirror, "abcd")
    read(mirror, "")
    known = mirror.query(rows.of_event, "9")
    assert known.rows[TICKETS].keys() == set("abcd")
    assert {row.vanished_at for row in known.rows[TICKETS].values()} == {None}
    assert {row: one.reads for row, one in known.absences[TICKETS].items()} == dict.fromkeys("abcd", 1)


# --- what is told of doubts


def test_a_doubt_does_not_tell_what_to_do(mirror: Mirror) -> None:
    """The sentence holds the numbers, some rows, and what would make the read believed."""
    read(mirror, "abcdef")
    read(mirror, "a", after=INSTANT)
    (error,) = read(mirror, "a", after=FULL_EVERY / 2).run.errors
    assert (error.subject, error.kind) == ("event 9", "doubted")
    assert error.message == (
        "billetweb_tickets: the answer lacks 5 of 6 rows (b, c, d, …); nothing of it is marked vanished"
        " before 12 h are over, or until `syncctl accept --event 9`"
    )
    with mirror.run() as run:
        run.listed()
    (error,) = run.run.errors
    assert error.message == (
        "the answer lacks 2 of 2 rows (8, 9); nothing of it is marked vanished until somebody says that they"
        " are gone: `syncctl accept`"
    )


def test_a_doubted_event_passes_for_one_brought_up_to_date(mirror: Mirror) -> None:
    """Each event with a doubt counts as failed, once, and no longer as synced."""
    dates = [Session(id=f"s{number}", event_id="9") for number in range(4)]
    with mirror.run() as run:
        run.event(event("8"), *ELSEWHERE)
        run.event(event(), *tickets("abcd"), *dates)
    with mirror.run() as run:
        run.run.synced = 2
        run.event(event("8"), *ELSEWHERE)
        run.event(event(), *tickets("a"))
    assert (run.doubted, run.run.synced, run.run.failed) == (["event 9", "event 9"], 1, 1)
