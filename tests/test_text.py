"""What people read and write: durations, times, tables and the control API's answers in words."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd import text
from syncd.model import Counts, Peer, Run, RunError

NOW = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)


pytestmark = pytest.mark.usefixtures("paris")


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
        "ends_at": "2027-05-08T18:00:00Z",
        "online": True,
        "places_total": 50,
        "places_left": 12,
        "unlimited": False,
        "is_full": False,
        "age_s": 61.5,
        "vanished_at": None,
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
    assert text.local_time("9999-12-31T23:59:59Z") == "9999-12-31 23:59"  # here it is the year 10000


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


@settings(max_examples=30)
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
    """A text is cut at the given terminal width, never in the middle of a wide character."""
    assert text.clip(name, 6) == cut


def test_an_empty_table_still_has_its_headers() -> None:
    """A table without rows is its headers."""
    assert text.table(("a", "b"), []) == "a  b"


def test_unknown_places_are_not_shown_as_none_left() -> None:
    """Full, unlimited, unknown, vanished and a number each read differently; the times' zone is named."""
    assert text.events_table(
        [
            an_event(),
            an_event(id="2", places_left=0, is_full=True),
            an_event(id="3", places_left=None, places_total=None, unlimited=True),
            an_event(id="4", places_left=None, places_total=None, age_s=None, starts_at=None, name=None),
            an_event(id="5", vanished_at="2027-05-07T08:00:00Z"),
        ],
        NOW,
    ).split("\n") == [
        "id      starts            event              left  of  age",
        "900001  2027-05-08 10:00  Fête du pain         12  50  1 min",
        "2       2027-05-08 10:00  Fête du pain       full  50  1 min",
        "3       2027-05-08 10:00  Fête du pain  unlimited      1 min",
        "4       -                                       ?      -",
        "5       2027-05-08 10:00  Fête du pain   vanished  50  1 min",
        "",
        "5 events, 1 full. Times are those of Europe/Paris.",
    ]
    assert text.events_table([], NOW) == "No events."


def test_an_event_that_is_over_or_hidden_passes_for_one_on_sale() -> None:
    """An event that has ended, or is not online, is marked; it has no places for anybody."""
    over, hidden = an_event(ends_at="2027-05-08T09:59:00Z"), an_event(online=False)
    lines = text.events_table([an_event(), over, hidden], NOW).split("\n")
    assert [line.partition(" min")[2].strip() for line in lines[1:4]] == ["", "ended", "offline"]
    assert [text.has_places(event, NOW) for event in (an_event(), over)] == [True, False]
    gone = an_event(vanished_at="2027-05-08T09:59:00Z")
    assert [
        text.has_places(event, NOW)
        for event in (gone, an_event(places_left=0), an_event(places_left=None), an_event(unlimited=True))
    ] == [False, False, False, True]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ("Europe/Paris", "Europe/Paris"),
        (":Europe/Paris", "Europe/Paris"),
        (":UTC", "UTC"),
        ("", "UTC"),
        ("CET-1", "CET"),
        ("Europe/Pariss", "UTC"),
        ("Europe", "UTC"),
        ("a\x1bb", "UTC"),
    ],
)
def test_a_zone_is_not_named(monkeypatch: pytest.MonkeyPatch, environ: str, named: str) -> None:
    """The zone of shown times is that of $TZ, else the machine's; where $TZ names none, it is UTC."""
    monkeypatch.setenv("TZ", environ)
    time.tzset()
    assert text.zone() == named
    monkeypatch.delenv("TZ")
    machines = text.zone()
    assert machines
    monkeypatch.setenv("TZ", f":{text.THIS_ZONE}")
    assert text.zone() == machines


def test_a_zone_drives_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A zone's own file may have any name."""
    path = tmp_path / "a\x1bb"
    path.write_bytes((Path(text.ZONES) / "Europe/Paris").read_bytes())
    monkeypatch.setenv("TZ", str(path))
    assert text.zone() == f"{tmp_path}/a\\x1bb"


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (147_456, "147 kB"),
        (999_600, "1.0 MB"),
        (2e15, "2000 TB"),
    ],
)
def test_a_size_is_not_read_at_a_glance(size: float, shown: str) -> None:
    """A size has two figures at least, and its unit."""
    assert text.format_size(size) == shown


@pytest.mark.parametrize(("told", "width"), [("", None), ("132", 132), ("wide", None), ("0", None)])
def test_a_pipe_has_a_width(monkeypatch: pytest.MonkeyPatch, told: str, width: int | None) -> None:
    """Where stdout is no terminal, $COLUMNS is believed, as `watch` sets it; else nothing is shortened."""
    monkeypatch.setenv("COLUMNS", told)
    assert text.columns() == width


@given(st.lists(st.tuples(st.text(), st.integers(0, 10**6), st.text()), max_size=5), st.integers(40, 200))
def test_a_table_is_wider_than_its_terminal(rows: list[tuple[str, int, str]], width: int) -> None:
    """Whatever is in it, a table has a line for each row, and none is wider than the terminal."""
    lines = text.table(("name", "number", "told"), rows, width=width).split("\n")
    assert len(lines) == len(rows) + 1
    assert max(map(text.cell_width, lines)) <= width


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


def test_a_queued_run_is_not_reported_as_ended() -> None:
    """A run that has not ended yet is said to be queued or running."""
    queued = text.run_summary(json_of(a_run(state="queued", outcome=None)))
    assert queued == "Run 42 is queued; `syncctl history` will show how it ended."


@pytest.mark.parametrize("state", ["queued", "done"])
def test_a_run_without_a_number_shows_a_negative_one(state: str) -> None:
    """A run that is on no record yet is called a new one."""
    run = json_of(a_run(id=-1234567890, state=state))
    assert text.run_summary(run).startswith("A new run ")
    assert text.run_name(412, "#{}") == "#412"


def test_a_run_is_what_went_wrong_in_the_run() -> None:
    """What concerns the whole run is told as a sentence, without a word for what it concerns."""
    errors = [RunError("run", "database", "the disk is full"), RunError("event 7", "transport", "no answer")]
    told = text.run_summary(json_of(a_run(errors=errors))).split("\n")
    assert told[2:4] == ["  error: the disk is full (database)", "  error: event 7: no answer (transport)"]


@pytest.mark.parametrize(
    ("progress", "width", "line"),
    [
        ({}, 40, "events 35/40 ━━━━━━━━━━━━━━━━━━━━─── 4 s"),
        ({"waits_until": None}, 22, "events 35/40 ━━━━─ 4 s"),
        ({}, 18, "events 35/40  4 s"),
        ({}, 10, "events 35…"),
        ({"phase": "listing", "done": 0, "total": 0}, 40, "listing  4 s"),
        (
            {"waits_until": "2027-05-08T10:00:08.2Z", "waits_for": "60 requests a minute are spent"},
            79,
            "events 35/40 ━━━━━━━━━━━━━━━━─── waits 9 s more: 60 requests a minute are spent",
        ),
    ],
)
def test_a_wait_passes_for_a_run_that_hangs(progress: dict[str, Any], width: int, line: str) -> None:
    """The one line of progress says how far a run is and, while it waits, for how long and for what."""
    steps = {"phase": "events", "done": 35, "total": 40} | progress
    shown = text.progress_line(steps, "4 s", NOW, width)
    assert shown == line
    assert text.cell_width(shown) <= width
    assert text.progress_line(steps, "4 s", NOW, width, unicode=False).replace("…", "").isascii()
