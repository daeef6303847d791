"""The absences on record: what is noted, counted, ended and told of them."""

from datetime import datetime, timedelta

import pytest
from support.reading import FULL_EVERY, NOW, QUARTER, Mirror, event, ticket, tickets
from support.real_databases import refuse, url_at

from syncd.database import absences
from syncd.mirror.absence import Absence, Scope, Size
from syncd.model import ATTENDEES, EVENTS, GAUGES, SESSIONS, TICKETS

INSTANT = timedelta(microseconds=1)


@pytest.fixture
def mirror(shared_mirror: Mirror) -> Mirror:
    """Give a mirror with empty tables."""
    shared_mirror.empty()
    return shared_mirror


# --- what is on record


def note(mirror: Mirror, table: str, event_id: str | None, run_id: int = 1, **reads: int) -> None:
    """Put absences on record: by row, in how many reads; since so many quarters of an hour before NOW."""
    found = {row: Absence(NOW - count * QUARTER, count) for row, count in reads.items()}
    mirror.write(absences.note, run_id, table, event_id, found)


def wait(mirror: Mirror, waits_for: str | None, table: str = TICKETS, event_id: str | None = "9") -> None:
    mirror.write(absences.set_waiting, Scope(table=table, event_id=event_id, size=Size(1, 1)), waits_for)


def test_absences_of_another_scope_are_forgotten(mirror: Mirror) -> None:
    """What a read notes takes the place of what stood there for its scope, and of nothing else."""
    note(mirror, TICKETS, "9", a=1, b=2)
    note(mirror, TICKETS, "8", c=1)
    note(mirror, GAUGES, "9", d=1)
    note(mirror, EVENTS, None, e=1)
    note(mirror, TICKETS, "9", 2, b=3)
    assert mirror.absent(TICKETS, "9") == {"b": 3}
    assert mirror.absent(TICKETS) == {"b": 3, "c": 1}
    assert mirror.absent(GAUGES, "9") == {"d": 1}
    note(mirror, EVENTS, None, 2)
    assert mirror.absent(EVENTS) == {}
    assert mirror.sql("SELECT DISTINCT event_id FROM syncd_absences ORDER BY 1") == [("8",), ("9",)]


def test_an_absence_loses_its_beginning(mirror: Mirror) -> None:
    """Instants come back as they were, to the microsecond and aware."""
    since = NOW + INSTANT
    mirror.write(absences.note, 1, TICKETS, "9", {"a": Absence(since, 7)})
    assert mirror.query(absences.of, TICKETS, "9") == {"a": Absence(since, 7)}


def test_a_row_is_absent_in_two_places(mirror: Mirror) -> None:
    """One that is lacking under its new event is absent there, and no longer where it was."""
    note(mirror, TICKETS, "8", a=2, b=1)
    note(mirror, TICKETS, "9", 2, a=1)
    assert (mirror.absent(TICKETS, "8"), mirror.absent(TICKETS, "9")) == ({"b": 1}, {"a": 1})


def test_the_end_of_one_absence_ends_others(mirror: Mirror) -> None:
    """Absences are ended row by row, in one table."""
    note(mirror, TICKETS, "9", a=1, b=1, c=1)
    note(mirror, GAUGES, "9", a=1)
    mirror.write(absences.end, TICKETS, ["a", "c", "unknown"])
    assert (mirror.absent(TICKETS), mirror.absent(GAUGES)) == ({"b": 1}, {"a": 1})
    mirror.write(absences.end, TICKETS, [])
    assert mirror.absent(TICKETS) == {"b": 1}


def test_rows_of_a_vanished_event_are_missed_for_ever(mirror: Mirror) -> None:
    """With an event that vanished the absences inside it go, and its own; nobody reads them any more."""
    for table, event_id in ((TICKETS, "9"), (GAUGES, "9"), (TICKETS, "8")):
        note(mirror, table, event_id, **{f"{table}{event_id}": 1})
    mirror.write(absences.note, 1, EVENTS, None, {"9": Absence(NOW, 2), "8": Absence(NOW, 1)})
    mirror.write(absences.forget_events, ["9"])
    assert mirror.sql("SELECT table_name, event_id FROM syncd_absences ORDER BY 1") == [
        (EVENTS, "8"),
        (TICKETS, "8"),
    ]
    mirror.write(absences.forget_events, [])
    assert len(mirror.sql("SELECT * FROM syncd_absences")) == 2


def test_rows_of_an_event_that_nobody_reads_are_missed_for_ever(mirror: Mirror) -> None:
    """The absences inside events that are not live go: an event without a date that is offline is one."""
    with mirror.run() as run:
        for each in (event("live"), event("over", ends_at=NOW - QUARTER), event("offline", online=False)):
            run.event_of_list(each)
    for event_id in ("live", "over", "offline"):
        note(mirror, TICKETS, event_id, **{event_id: 1})
    mirror.write(absences.forget_unread, NOW)
    assert mirror.absent(TICKETS) == {"live": 1}


def test_which_events_the_next_read_may_settle_is_not_known(mirror: Mirror) -> None:
    """They are those with an absence that nobody doubts; all of them where somebody accepts."""
    note(mirror, TICKETS, "9", a=1, b=5)
    note(mirror, ATTENDEES, "9", p=1)
    note(mirror, TICKETS, "8", c=2)
    note(mirror, SESSIONS, "7", d=3, e=1)
    note(mirror, GAUGES, "6", g=1)
    note(mirror, EVENTS, None, f=1)
    wait(mirror, "time", event_id="8")
    wait(mirror, "accept", GAUGES, "6")
    some = mirror.query(absences.inside, all_of_them=False)
    assert some == {"9": {TICKETS, ATTENDEES}, "7": {SESSIONS}}
    every = mirror.query(absences.inside, all_of_them=True)
    assert every == some | {"8": {TICKETS}, "6": {GAUGES}}


# --- what a run found, in numbers


def measured(mirror: Mirror, run_id: int, since: datetime, **sizes: int) -> dict[str, tuple[int, ...]]:
    of = {(table, None if table == EVENTS else "9"): Size(size, size) for table, size in sizes.items()}
    found: list[Scope] = mirror.query(absences.measure, run_id, of)
    assert [(scope.table, scope.event_id) for scope in found] == [*of]

    def gone(scope: Scope, since: datetime | None) -> int:
        return len(mirror.query(absences.gone, run_id, scope, since))

    return {each.table: (each.size.of, each.absent, gone(each, None), gone(each, since)) for each in found}


def test_absences_are_counted_wrong(mirror: Mirror) -> None:
    """Of the rows of a scope: how many are lacking, in two reads and more, and of these for long enough."""
    note(mirror, TICKETS, "9", 7, a=1, b=2, c=3, d=4)
    note(mirror, TICKETS, "8", 7, e=9)
    note(mirror, EVENTS, None, 7, f=1, g=2)
    note(mirror, SESSIONS, "9", 6, h=9)
    sizes = {TICKETS: 10, EVENTS: 5, GAUGES: 4, SESSIONS: 3}
    assert measured(mirror, 7, NOW - 3 * QUARTER, **sizes) == {
        TICKETS: (10, 4, 3, 2),
        EVENTS: (5, 2, 1, 0),
        GAUGES: (4, 0, 0, 0),
        SESSIONS: (3, 0, 0, 0),  # what an earlier run found says nothing here
    }
    assert measured(mirror, 7, NOW - 3 * QUARTER - INSTANT, **sizes)[TICKETS] == (10, 4, 3, 1)
    assert measured(mirror, 7, NOW, **sizes)[TICKETS] == (10, 4, 3, 3), "an absence of one read never lasts"
    assert measured(mirror, 7, NOW) == {}


def test_others_vanish_than_were_counted(mirror: Mirror) -> None:
    """The rows of a scope that may vanish are those that this run found lacking again, by their ids."""
    note(mirror, TICKETS, "9", 7, d=1, c=2, b=3, a=4)
    note(mirror, TICKETS, "8", 7, e=9)
    note(mirror, EVENTS, None, 7, f=1, g=2)
    scope = Scope(table=TICKETS, event_id="9", size=Size(10, 10))

    def found(run_id: int, scope: Scope, since: datetime | None) -> str:
        return "".join(mirror.query(absences.gone, run_id, scope, since))

    assert found(7, scope, None) == "abc"
    assert found(7, scope, NOW - 3 * QUARTER) == "ab"
    assert found(7, scope, NOW) == "abc"
    assert found(6, scope, None) == ""
    assert found(7, Scope(table=EVENTS, event_id=None, size=Size(5, 5)), None) == "g"


# --- doubts


def test_a_doubt_is_told_wrong(mirror: Mirror) -> None:
    """It holds numbers, instants, a few rows and what it waits for; doubts of the account come first."""
    mirror.clock.at = NOW - FULL_EVERY
    mirror.take(event("8"), ticket("80", "8"))
    mirror.take(event(), *tickets("abcdef"))
    mirror.take(event("7"))
    mirror.clock.at = NOW
    note(mirror, TICKETS, "9", e=1, d=2, c=3, b=4)
    note(mirror, TICKETS, "8", **{"80": 1})
    mirror.write(absences.note, 1, EVENTS, None, {"7": Absence(NOW, 1)})
    wait(mirror, "time")
    wait(mirror, "accept", EVENTS, None)
    account, inside = mirror.doubts()
    assert (account.table, account.event_id, account.waits_for, account.until) == (
        EVENTS,
        None,
        "accept",
        None,
    )
    assert (account.absent, account.of, account.examples) == (1, 3, ["7"])
    assert (inside.table, inside.event_id, inside.absent, inside.of) == (TICKETS, "9", 4, 6)
    assert (inside.since, inside.reads, inside.examples) == (NOW - 4 * QUARTER, 4, ["b", "c", "d"])
    assert (inside.waits_for, inside.until) == ("time", NOW - QUARTER + FULL_EVERY), "the last one's time"
    assert mirror.query(absences.count_doubts) == 2


def test_an_id_commands_whoever_reads_of_its_doubt(mirror: Mirror) -> None:
    """The ids that a doubt gives as examples are shown without what commands a terminal, and have an end."""
    note(mirror, TICKETS, "9", **{"7\x1b[2J\u202e": 2, "8" * 500: 2})
    wait(mirror, "accept")
    (doubt,) = mirror.doubts()
    assert doubt.examples[0] == r"7\x1b[2J\u202e"
    assert doubt.examples[1].startswith("8" * 40 + " […420 characters cut…]")


def test_a_doubt_of_one_scope_is_told_as_anothers(mirror: Mirror) -> None:
    """Asked for one scope, that one's doubt is given, with the size that the run measured."""
    note(mirror, TICKETS, "9", a=1)
    note(mirror, TICKETS, "8", b=1)
    for event_id in "98":
        wait(mirror, "time", event_id=event_id)
    scope = Scope(table=TICKETS, event_id="9", size=Size(77, 80))
    (doubt,) = mirror.query(absences.doubts, mirror.clock.now(), FULL_EVERY, scope)
    assert (doubt.event_id, doubt.of, doubt.examples) == ("9", 77, ["a"])
    other = Scope(table=TICKETS, event_id="7", size=Size(1, 1))
    assert mirror.query(absences.doubts, mirror.clock.now(), FULL_EVERY, other) == []


def test_what_an_absence_waits_for_is_kept_too_long(mirror: Mirror) -> None:
    """It changes with each ruling, ends with the absence, and is written only where it changes."""
    note(mirror, TICKETS, "9", a=1, b=1)
    note(mirror, TICKETS, "8", c=1)
    for waits_for in ("time", "accept", None, "accept"):
        wait(mirror, waits_for)
        assert [doubt.waits_for for doubt in mirror.doubts()] == [waits_for][: bool(waits_for)]
    note(mirror, TICKETS, "9", 2, a=2)  # the next read says nothing of what it waits for
    assert [(doubt.absent, doubt.waits_for) for doubt in mirror.doubts()] == [(1, "accept")]
    mirror.write(absences.end, TICKETS, ["a"])
    assert (mirror.doubts(), mirror.query(absences.count_doubts)) == ([], 0)


def test_a_doubt_that_waits_for_a_person_seems_to_wait_for_time(mirror: Mirror) -> None:
    """Where rows of one scope wait for one or the other, a person is needed for all of it."""
    note(mirror, TICKETS, "9", a=1, b=2)
    wait(mirror, "time")
    mirror.sql("UPDATE syncd_absences SET waits_for = 'accept' WHERE row_id = 'a'")
    assert [(doubt.waits_for, doubt.until) for doubt in mirror.doubts()] == [("accept", None)]


def test_a_doubt_is_written_again_and_again(mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where nothing changes in what absences wait for, nothing is written."""
    other = Mirror(url_at(tmp_path_factory.mktemp("refusing") / "mirror.db"))
    note(other, TICKETS, "9", a=1)
    note(other, TICKETS, "8", b=1)
    wait(other, "time")
    refuse(other.url, "UPDATE ON syncd_absences")
    wait(other, "time")
    wait(other, None, event_id="8")
    other.close()
