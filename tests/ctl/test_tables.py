"""The tables of `syncctl`: what they tell, and that they fit."""

from datetime import UTC, datetime

import pytest
from support.canned_daemon import DOUBT, ENDED, ERROR, EVENT, TARGET

from syncd import text
from syncd.ctl.tables import doubts_table, publish_table, runs_table, short_time

NOW = datetime(2027, 5, 8, 10, 2, 3, tzinfo=UTC)


pytestmark = pytest.mark.usefixtures("paris")


def test_the_history_names_who_asked_and_what_went_wrong() -> None:
    """A run is one line, with who asked and its changes; below it its first error."""
    error = ERROR | {"message": "no answer\nin 30 s"}
    partial = ENDED | {"id": 42, "outcome": "partial", "synced": 11, "failed": 1, "errors": [error]}
    partial["counts"] = {"inserted": 3, "updated": 4, "unchanged": 500}
    going = ENDED | {
        "id": -1,
        "trigger": "interval",
        "requested_by": None,
        "state": "running",
        "outcome": None,
    }
    going |= {"duration_s": None, "started_at": None}
    assert runs_table([partial, going], NOW).split("\n") == [
        "id  started       why       outcome  took   synced    changes  requests",
        "42  May 08 12:00  by alice  partial  3.2 s  11 of 12        7        25",
        "    event 9: no answer in 30 s (transport)",
        "-1  -             interval  running  -      12              1        25",
    ]
    assert runs_table([], NOW) == "No runs yet."


def test_a_time_of_last_year_passes_for_this_years() -> None:
    """A time far from now has its year instead of its hour."""
    assert short_time("2027-05-08T10:00:00Z", NOW) == "May 08 12:00"
    assert short_time("2026-05-08T10:00:00Z", NOW) == "May 08 2026"
    assert short_time(None, NOW) == "-"


def test_a_doubt_hides_what_is_missing_or_who_must_act() -> None:
    """Each doubt says where how much is absent, for how long, and whether it waits for time or a person."""
    of_the_list = DOUBT | {
        "table": "billetweb_events",
        "event_id": None,
        "absent": 210,
        "of": 240,
        "since": "2027-05-07T08:02:03Z",
        "reads": 104,
        "examples": ["900001"],
    }
    timed = DOUBT | {"waits_for": "time", "until": "2027-05-09T09:57:00Z"}
    late = DOUBT | {
        "table": "billetweb_attendees",
        "absent": 1,
        "examples": ["7"],
        "until": "2027-05-08T09:59:00Z",
    }
    assert doubts_table([of_the_list, timed, late], NOW, None).split("\n") == [
        "absent from              rows        since          reads  waits for                 examples",
        "list of events           210 of 240  1 d 2 h ago      104  syncctl accept            900001, …",
        "event 900003, tickets    3 of 4      2 min 3 s ago      2  time: until May 09 11:57  11, 12, 13",
        "event 900003, attendees  1 of 4      2 min 3 s ago      2  its next read             7",
    ]
    assert doubts_table([], NOW) == "Nothing is doubted."


LONG = "Fête du pain, des brioches et de la farine ☂ à l'ancien moulin de la Vallée des Roseaux"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_is_wider_than_the_terminal(width: int) -> None:
    """Whatever the names, no line of a table is wider than the terminal, and no column is torn."""
    errors = [ERROR | {"message": "no answer " * 50}]
    runs = [
        ENDED | {"id": 10_000, "duration_s": 5_400, "outcome": "cancelled", "errors": errors, "failed": 3}
    ]
    events = [EVENT | {"name": LONG, "online": False, "unlimited": True, "places_left": None}]
    events += [EVENT | {"name": LONG, "ends_at": "2027-05-08T09:00:00Z", "places_total": 12_000}]
    doubts = [DOUBT | {"examples": ["900001", "900002", "900003"], "table": "billetweb_attendees"}]
    target = TARGET | {"name": "public.a_table_with_quite_a_long_name", "last_error": None, "examples": []}
    for shown in (
        runs_table(runs, NOW, width),
        text.events_table(events, NOW, width),
        doubts_table(doubts, NOW, width),
        publish_table([target | {"vanished": 0}], NOW, width),
    ):
        assert max(map(text.cell_width, shown.split("\n"))) <= width, shown
    whole = text.events_table(events, NOW, None)
    assert whole.count(LONG) == 2
    assert "…" not in whole
