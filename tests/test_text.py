"""What people read and write: durations, times, tables and the control API's answers in words."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd import text
from syncd.model import Counts, Doubt, Peer, Progress, Run, RunError

NOW = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def paris(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Paris")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def json_of(run: Run) -> dict[str, Any]:
    """Return a Run as the control API sends it."""
    document: dict[str, Any] = msgspec.to_builtins(run)
    return document


def a_run(**changes: Any) -> Run:
    """Return an ended run in which most things happened."""
    return msgspec.structs.replace(
        Run(
            id=42,
            trigger="manual",
            requested_by=Peer(uid=1000, user="alice", pid=77),
            full=True,
            state="done",
            outcome="partial",
            started_at=datetime(2027, 5, 8, 9, 56, 57, tzinfo=UTC),
            finished_at=datetime(2027, 5, 8, 9, 57, tzinfo=UTC),
            duration_s=3.24,
            requests=25,
            synced=11,
            failed=1,
            counts=Counts(inserted=3, updated=4, unchanged=500),
            errors=[RunError(subject="event 900001", kind="transport", message="no answer\nin 30 s")],
            errors_total=3,
        ),
        **changes,
    )


def an_event(**changes: Any) -> dict[str, Any]:
    """Return an Event as the control API sends it."""
    return {
        "id": "900001",
        "name": "Fête du pain",
        "starts_at": "2027-05-08T08:00:00Z",
        "places_total": 50,
        "places_left": 12,
        "unlimited": False,
        "is_full": False,
        "age_s": 61.5,
        "vanished_at": None,
    } | changes


def a_status(**changes: Any) -> dict[str, Any]:
    """Return a Status as the control API sends it."""
    return {
        "version": "0.1.0",
        "pid": 4321,
        "uptime_s": 273_600.0,
        "state": "idle",
        "health": "degraded",
        "health_reason": "the last run was partial",
        "interval_s": 900,
        "next_run_at": "2027-05-08T10:12:00Z",
        "last_run": json_of(a_run()),
        "last_success_at": "2027-05-08T09:42:00Z",
        "last_error": "event 900001: no answer",
        "current_run": None,
        "queued_runs": 0,
        "database": "sqlite:////var/lib/syncd/syncd.db",
        "events_live": 12,
        "events_full": 2,
        "slots_skipped": {},
        "slots_missed": 0,
    } | changes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("30d", timedelta(days=30)),
        ("0s", timedelta(0)),
        ("1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
    ],
)
def test_a_duration_is_not_misread(written: str, meant: timedelta) -> None:
    """Each accepted form gives the duration it says."""
    assert text.parse_duration(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "15",
        "m",
        "15M",
        "1.5h",
        "-5m",
        "30m1h",
        "1h 30m",
        "5m5m",
        "500ms",
        "٣m",
        "1w",
        "9" * 99 + "d",
    ],
)
def test_an_unclear_duration_is_not_guessed(written: str) -> None:
    """What is not exactly of the accepted form is refused, and the message shows that form."""
    with pytest.raises(ValueError, match=r'is not a duration: .* "1h30m"'):
        text.parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "read"),
    [
        (None, "-"),
        (-3, "0 s"),
        (0, "0 s"),
        (0.42, "0.4 s"),
        (5, "5 s"),
        (9.97, "10 s"),
        (12.4, "12 s"),
        (59.7, "1 min"),
        (90, "1 min 30 s"),
        (900, "15 min"),
        (3_599.8, "1 h"),
        (5_400, "1 h 30 min"),
        (86_399, "1 d"),
        (273_500, "3 d 4 h"),
        (30 * 86_400, "30 d"),
    ],
)
def test_a_duration_never_reads_as_60_seconds_or_24_hours(seconds: float | None, read: str) -> None:
    """Durations are rounded to two units, and the rounding carries over."""
    assert text.format_duration(seconds) == read


def test_a_utc_instant_is_not_shown_as_if_it_were_local() -> None:
    """Instants are shown in this machine's zone, with the offset of their own date."""
    assert text.local_time("2027-05-08T08:00:00Z") == "2027-05-08 10:00"
    assert text.local_time("2027-12-08T08:00:00+00:00") == "2027-12-08 09:00"
    assert text.local_time(None) == "-"


def test_past_and_future_are_not_confused() -> None:
    """A moment says on which side of now it lies."""
    assert text.moment("2027-05-08T09:57:00Z", NOW) == "3 min ago (2027-05-08 11:57)"
    assert text.moment("2027-05-08T10:12:00Z", NOW) == "in 12 min (2027-05-08 12:12)"
    assert text.moment(None, NOW) == "-"


def test_a_name_cannot_drive_the_terminal() -> None:
    """Escape sequences, line breaks, reversed writing and lone surrogates do not reach the terminal."""
    assert (
        text.plain("Fête\x1b[2J\r\n du\u202epain\u200b\ud800\t!") == r"Fête\x1b[2J du\u202epain\u200b\ud800 !"
    )


HARMFUL = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *map(chr, (0x61C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF)),
    *map(chr, (*range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC))),
]


@pytest.mark.parametrize("character", HARMFUL, ids=lambda character: f"U+{ord(character):04X}")
def test_foreign_character_commands_or_deceives(character: str) -> None:
    """No character that commands a terminal, turns the writing or cannot be seen is shown; nor lost."""
    kept = text.harmless(f"a{character}b")
    if character in "\n\t":
        assert kept == f"a{character}b"
        assert text.plain(f"a{character}b") == "a b"
    else:
        assert kept in (rf"a\x{ord(character):02x}b", rf"a\u{ord(character):04x}b")
        assert text.plain(f"a{character}b").isprintable()


@pytest.mark.parametrize(
    "word", ["Fête à 12 €", "12\u202f€\u00a0!", "👩\u200d🌾🌱", "שלום", "日本語", "e\u0301", r"a\b"]
)
def test_good_text_is_escaped(word: str) -> None:
    """Letters of every alphabet, the blanks of French and the joins of emoji stay what they are."""
    assert text.harmless(word) == word


@given(st.text(), st.integers(2, 50))
def test_foreign_text_has_no_end(said: str, most: int) -> None:
    """A text that is cut keeps its two ends and tells how much is missing; one that fits stays whole."""
    whole = text.harmless(said, 10**6)
    cut = text.harmless(said, most)
    if len(whole) <= most:
        assert cut == whole
    else:
        half = most // 2
        assert cut == f"{whole[:half]} […{len(whole) - 2 * half} characters cut…] {whole[-half:]}"


def test_wide_characters_do_not_shift_the_columns() -> None:
    """Columns line up by what the terminal shows: two places for 日, none for a combining accent."""
    lines = text.table(("name", "n"), [("日本", 1), ("abcd", 22), ("e\u0301te\u0301", None)]).split("\n")
    assert lines == ["name   n", "日本   1", "abcd  22", "e\u0301te\u0301"]


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("abcdef", "abcdef"),
        ("abcdefg", "abcde…"),
        ("日本日本", "日本…"),
        ("abcd efg", "abcd…"),
        pytest.param("日" * 20_000, "日日…", id="long"),
    ],
)
def test_a_long_name_does_not_tear_the_table(name: str, cut: str) -> None:
    """A cell is cut at the given terminal width, never in the middle of a wide character."""
    assert text.table(("h",), [(name,)], widest=6) == f"h\n{cut}"


def test_an_empty_table_still_has_its_headers() -> None:
    """A table without rows is its headers."""
    assert text.table(("a", "b"), []) == "a  b"


def test_unknown_places_are_not_shown_as_none_left() -> None:
    """Full, unlimited, unknown, vanished and a number each read differently."""
    assert text.events_table(
        [
            an_event(),
            an_event(id="2", places_left=0, is_full=True),
            an_event(id="3", places_left=None, places_total=None, unlimited=True),
            an_event(id="4", places_left=None, places_total=None, age_s=None, starts_at=None, name=None),
            an_event(id="5", vanished_at="2027-05-07T08:00:00Z"),
        ]
    ).split("\n") == [
        "id      starts            event              left  of  age",
        "900001  2027-05-08 10:00  Fête du pain         12  50  1 min 2 s",
        "2       2027-05-08 10:00  Fête du pain       full  50  1 min 2 s",
        "3       2027-05-08 10:00  Fête du pain  unlimited      1 min 2 s",
        "4       -                                       ?      -",
        "5       2027-05-08 10:00  Fête du pain   vanished  50  1 min 2 s",
    ]
    assert text.events_table([]) == "No events."


def test_the_history_names_who_asked_and_what_went_wrong() -> None:
    """A run is one line, with its requester, its changes without the unchanged rows, and its first error."""
    going = a_run(id=-1, trigger="interval", requested_by=None, state="running", outcome=None, errors=[])
    going.duration_s = going.started_at = None
    headers, *rows = text.runs_table(map(json_of, (a_run(), going))).split("\n")
    assert headers.split("  ")[-4:] == ["failed", "changes", "requests", "first error"]
    error = "event 900001: no answer in 30 s (transport)"
    assert rows == [
        f"42  2027-05-08 11:56  manual    alice  partial  3.2 s      11       1        7        25  {error}",
        "-1  -                 interval         running  -          11       1        7        25",
    ]
    assert text.runs_table([]) == "No runs yet."


def test_the_summary_of_a_run_hides_no_error() -> None:
    """Outcome, reason, changes and each error have their place, and errors beyond those kept are counted."""
    assert text.run_summary(json_of(a_run())).split("\n") == [
        "Run 42 partial: 11 events synced, 1 failed, in 3.2 s",
        "  manual by alice, full; 7 changes (3 inserted, 4 updated); 25 requests",
        "  error: event 900001: no answer in 30 s (transport)",
        "  and 2 more errors",
    ]
    quiet = a_run(
        outcome="ok", failed=0, requested_by=None, full=False, counts=Counts(), errors=[], errors_total=0
    )
    assert text.run_summary(json_of(quiet)).split("\n") == [
        "Run 42 ok: 11 events synced, 0 failed, in 3.2 s",
        "  manual; 0 changes; 25 requests",
    ]


@pytest.mark.parametrize(
    ("accepted", "said"), [([], ""), (["900001", "900002"], " (900001, 900002)")], ids=["all", "named"]
)
def test_nobody_learns_from_the_summary_that_somebody_accepted(accepted: list[str], said: str) -> None:
    """The summary of an accepting run says so, and for which events where not for all."""
    run = json_of(a_run(accept=True, accepted=accepted, full=False))
    assert text.run_summary(run).split("\n")[1] == (
        f"  manual by alice, accepting what is absent{said}; 7 changes (3 inserted, 4 updated); 25 requests"
    )


def a_doubt(**changes: Any) -> dict[str, Any]:
    """Return a Doubt as the control API sends it."""
    doubt: dict[str, Any] = msgspec.to_builtins(
        Doubt(
            table="billetweb_tickets",
            event_id="900003",
            absent=3,
            of=4,
            since=datetime(2027, 5, 8, 9, 57, tzinfo=UTC),
            reads=2,
            examples=["11", "12", "13"],
            waits_for="time",
            until=datetime(2027, 5, 9, 9, 57, tzinfo=UTC),
        )
    )
    return doubt | changes


def test_a_doubt_hides_what_is_missing_or_who_must_act() -> None:
    """Each doubt says where how much is absent, since when, and whether it waits for time or a person."""
    of_the_list = a_doubt(
        table="billetweb_events",
        event_id=None,
        absent=210,
        of=240,
        since="2027-05-07T08:00:00Z",
        reads=104,
        examples=["900001", "900002", "900003"],
        waits_for="accept",
        until=None,
    )
    late = a_doubt(table="billetweb_attendees", absent=1, of=1, examples=["7"], until="2027-05-08T09:59:00Z")
    headers, *rows = text.doubts_table([of_the_list, a_doubt(), late], NOW).split("\n")
    assert re.split(" {2,}", headers) == ["absent from", "rows", "since", "reads", "waits for", "examples"]
    assert [re.split(" {2,}", row) for row in rows] == [
        [
            "list of events",
            "210 of 240",
            "1 d 2 h ago (2027-05-07 10:00)",
            "104",
            "you: syncctl accept",
            "900001, 900002, 900003, …",
        ],
        [
            "event 900003, tickets",
            "3 of 4",
            "3 min ago (2027-05-08 11:57)",
            "2",
            "time: until 2027-05-09 11:57",
            "11, 12, 13",
        ],
        [
            "event 900003, attendees",
            "1 of 1",
            "3 min ago (2027-05-08 11:57)",
            "2",
            "its next read",
            "7",
        ],
    ]
    assert text.doubts_table([], NOW) == "Nothing is doubted."


def test_a_queued_run_is_not_reported_as_ended() -> None:
    """A run that has not ended yet is said to be queued or running."""
    queued = text.run_summary(json_of(a_run(state="queued", outcome=None)))
    assert queued == "Run 42 is queued; `syncctl history` will show how it ended."


def test_the_panel_shows_what_is_wrong_and_since_when() -> None:
    """The panel of an idle daemon whose last run was partial."""
    assert text.status_panel(a_status(), NOW).split("\n") == [
        "health        degraded: the last run was partial",
        "state         idle",
        "last run      42 partial, 3 min ago (2027-05-08 11:57), took 3.2 s: 11 events synced, 1 failed",
        "last success  18 min ago (2027-05-08 11:42)",
        "next run      in 12 min (2027-05-08 12:12)",
        "interval      15 min",
        "events        12 live, 2 full",
        "last error    event 900001: no answer",
        "database      sqlite:////var/lib/syncd/syncd.db",
        "daemon        syncd 0.1.0, pid 4321, up 3 d 4 h",
    ]


def test_the_panel_shows_a_run_in_progress_and_missed_slots() -> None:
    """A busy daemon's panel adds the current run, the queue and the slots."""
    current = a_run(id=43, state="running", outcome=None, progress=Progress(phase="events", done=3, total=12))
    panel = text.status_panel(
        a_status(
            current_run=json_of(current),
            queued_runs=1,
            next_run_at=None,
            last_run=None,
            last_success_at=None,
            last_error=None,
            slots_skipped={"busy": 2, "paused": 0},
            slots_missed=1,
        ),
        NOW,
    )
    assert panel.split("\n") == [
        "health        degraded: the last run was partial",
        "state         idle",
        "last success  -",
        "next run      not scheduled",
        "interval      15 min",
        "current run   43 manual, began 3 min 3 s ago (2027-05-08 11:56), events 3/12",
        "queued        1 run",
        "events        12 live, 2 full",
        "slots         2 skipped (busy), 1 missed",
        "database      sqlite:////var/lib/syncd/syncd.db",
        "daemon        syncd 0.1.0, pid 4321, up 3 d 4 h",
    ]


def test_the_panel_keeps_a_lost_feed_to_itself() -> None:
    """Why a file was not written is shown; where all were, or the daemon is an older one, nothing is."""
    failing = {"files": 2, "failing": 1, "error": "/srv/a.csv: the folder /srv is missing"}
    panel = text.status_panel(a_status(feeds=failing), NOW)
    assert "feeds         1 of 2 not written: /srv/a.csv: the folder /srv is missing\n" in panel
    for feeds in ({"files": 2, "failing": 0, "error": None}, None):
        assert "feeds" not in text.status_panel(a_status(feeds=feeds), NOW)


@pytest.mark.parametrize(("doubts", "lines"), [(2, 1), (0, 0)])
def test_the_panel_keeps_a_doubt_to_itself(doubts: int, lines: int) -> None:
    """While something is doubted the panel says how much, and names the command that shows it."""
    panel = text.status_panel(a_status(doubts=doubts), NOW)
    assert panel.count("doubts        2, shown by `syncctl doubts`\n") == lines
    assert panel.count("doubt") == 2 * lines


def test_the_state_after_a_command_fits_one_line() -> None:
    """Pause, resume and reload answer with state, health and next run."""
    line = text.state_line(a_status(), NOW)
    assert line == "syncd is idle, health degraded, next run in 12 min (2027-05-08 12:12)"
    paused = text.state_line(a_status(state="paused", next_run_at=None), NOW)
    assert paused == "syncd is paused, health degraded, next run not scheduled"


def test_the_panel_claims_no_figures_that_no_database_gave() -> None:
    """While the database was never open the panel says nothing of events."""
    panel = text.status_panel(a_status(events_live=None, events_full=None), NOW)
    assert not re.search("None|^events", panel, re.MULTILINE)
