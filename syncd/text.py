"""Text for people: durations, local times, tables, and the control API's answers. Imports nothing of syncd.

Part of every start of `syncctl`, so it leans on light parts of the standard library alone.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

TYPE_CHECKING = False  # typing alone would cost `syncctl` a tenth of its start
if TYPE_CHECKING:
    from typing import Any, TextIO

Json = dict[str, "Any"]
NOTHING = "-"
ZONES, THIS_ZONE = "/usr/share/zoneinfo", "/etc/localtime"
USUAL_WIDTH = 80
"""So many columns has a terminal that nobody made larger."""
SHORTEST_BAR, LONGEST_BAR = 4, 60
"""A shorter bar does not move with each event, a longer one says no more."""
ECHO = 3
"""So many columns are left for the ^C of whoever ends it, or the line would break."""
NARROWEST = 8
"""A text shortened to less tells nothing."""
MARKS = {"ok": "✓+", "degraded": "!!", "failing": "✗x", "partial": "!!", "failed": "✗x", "cancelled": "–-"}
"""The mark of each health and outcome, and the same in ASCII."""
COLOURS = {"ok": "green", "degraded": "yellow", "partial": "yellow", "cancelled": "yellow"}
COLOURS |= {"failing": "red", "failed": "red"}
NEARLY_FULL = 10
"""An event is nearly full if at most one place in so many is left: the last ones sell fast."""
LONGEST = 4000
"""So many characters of a text from outside fill a screen; two dozen such values fit a journal's datagram."""
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, those of one byte in Latin-1 too
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    "\u2028\u2029\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # line ends, what is not seen
    "\ud800-\udfff]"  # halves of characters, which no encoding has
)
EVENT_NAME = "[A-Za-z0-9][A-Za-z0-9._~-]{0,199}"
_DURATION = r"(?:([0-9]{1,7})d)?(?:([0-9]{1,7})h)?(?:([0-9]{1,7})m)?(?:([0-9]{1,7})s)?"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def names_an_event(text: str) -> bool:
    """Tell whether a text may name an event: its id, or its `ext_id`, both as they stand in web addresses."""
    return bool(re.fullmatch(EVENT_NAME, text))


def parse_duration(text: str) -> timedelta:
    """Return the duration written as days, hours, minutes and seconds, each at most once and in that order.

    Raises ValueError, with the accepted form in its message, for anything else.
    """
    match = re.fullmatch(_DURATION, text)
    if not match or not text:
        raise ValueError(
            f"{text!r} is not a duration: write whole days, hours, minutes and seconds in that order, "
            'such as "90s", "15m", "1h30m" or "30d"'
        )
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def format_duration(seconds: float | None, *, units: int = 2) -> str:
    """Return a duration in its largest units: "0.4 s", "12 s", "1 h 30 min", "3 d 4 h".

    Negative durations, which only a stepped clock gives, count as none; "-" stands for None.
    """
    if seconds is None:
        return NOTHING
    if seconds < 10:  # noqa: PLR2004 - below this a tenth of a second is worth reading
        return f"{max(seconds, 0):.1f}".removesuffix(".0") + " s"
    rest = round(seconds)
    if rest >= 3_600:  # noqa: PLR2004 - an hour: seconds no longer matter
        rest = round(rest / 60) * 60
    if rest >= 86_400:  # noqa: PLR2004 - a day: minutes no longer matter
        rest = round(rest / 3_600) * 3_600
    parts = []
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:units])


def local_time(instant: str | None) -> str:
    """Return an RFC 3339 instant to the minute in this machine's zone, "-" for None."""
    if instant is None:
        return NOTHING
    return here(instant).strftime("%Y-%m-%d %H:%M")


def here(instant: str) -> datetime:
    """Return an RFC 3339 instant in this machine's zone; as it is where the calendar ends before that."""
    at = datetime.fromisoformat(instant)
    try:
        return at.astimezone()
    except (OverflowError, ValueError):
        return at


def ago(instant: str | None, now: datetime, after: str = " ago") -> str:
    """Return how long ago an RFC 3339 instant was: "2 min 3 s ago"."""
    if instant is None:
        return NOTHING
    return f"{format_duration(round(max((now - datetime.fromisoformat(instant)).total_seconds(), 0)))}{after}"


def zone() -> str:
    """Return the name of this machine's zone, "Europe/Paris"; where it has none, what it is called now.

    A name in $TZ that is no zone's is not used: times are those of UTC then, as they are where it is empty.
    """
    told = os.environ.get("TZ", THIS_ZONE).removeprefix(":")
    if told == THIS_ZONE:
        told = ""
        with contextlib.suppress(OSError):
            told = os.readlink(THIS_ZONE).partition("zoneinfo/")[2]  # noqa: PTH115 - pathlib starts slowly
    elif not os.path.isfile(os.path.join(ZONES, told)):  # noqa: PTH113, PTH118 - pathlib starts slowly
        told = "" if time.timezone or time.daylight else "UTC"
    return plain(told or datetime.now().astimezone().tzname() or "this machine")


def format_size(size_bytes: float) -> str:
    """Return a size as people write it: "147 kB", "1.2 MB"."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size_bytes >= 999.5 and len(units) > 1:  # noqa: PLR2004 - what would be rounded to 1000
        size_bytes /= 1000
        units.pop(0)
    digits = 1 if size_bytes < 10 and units[0] != "bytes" else 0  # noqa: PLR2004 - two figures at least
    return f"{size_bytes:.{digits}f} {units[0]}"


def mark(word: str) -> str:
    """Return the mark of a health or an outcome, in ASCII where stdout takes no more."""
    is_unicode = "utf" in (getattr(sys.stdout, "encoding", "") or "").lower()
    return MARKS[word][not is_unicode] if word in MARKS else " "


def away(instant: str, now: datetime) -> str:
    """Return how far an RFC 3339 instant is from `now`: "3 min ago", "in 12 min"."""
    ahead_s = (datetime.fromisoformat(instant) - now).total_seconds()
    distance = format_duration(round(abs(ahead_s)))
    return f"in {distance}" if ahead_s > 0 else f"{distance} ago"


def moment(instant: str | None, now: datetime) -> str:
    """Return an RFC 3339 instant's distance from `now` and local time: "3 min ago (2027-05-08 10:00)"."""
    return NOTHING if instant is None else f"{away(instant, now)} ({local_time(instant)})"


def harmless(text: str, most: int = LONGEST) -> str:
    """Return text from outside so that it can be shown and logged; every door to people lets it through here.

    What commands a terminal, turns the direction of writing, cannot be seen or is no character is escaped;
    line breaks and tabs stay. Of more than `most` characters the two ends stay, and how many were between.
    """
    shown = _HARMFUL.sub(_escaped, text)
    left_out = len(shown) - most
    if left_out <= 0:
        return shown
    half = most // 2
    return f"{shown[:half]} […{len(shown) - 2 * half} characters cut…] {shown[-half:]}"


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - two digits


def plain(text: str, most: int = LONGEST) -> str:
    """Return `harmless` text on one line."""
    return harmless(" ".join(text.split()), most)


def any_alphabet() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(output: str) -> None:
    """Write to stdout at once. A reader that has gone away is no error; any other OSError is raised."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(output)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered would be tried again, and complained of, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def paint(word: str, shown: str = "") -> str:
    """Return a word for health or outcome, or what is `shown` for it, coloured where stdout is a terminal."""
    if word not in COLOURS or not takes_colour(sys.stdout):
        return shown or word
    code = {"red": 31, "green": 32, "yellow": 33}[COLOURS[word]]
    return f"\x1b[{code}m{shown or word}\x1b[0m"


def takes_colour(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal, and nobody wants it without colours."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return is_terminal(stream) and not is_plain


def can_be_drawn_on(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal on which the cursor can be moved."""
    is_plain = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return is_terminal(stream) and not is_plain


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a standard stream, None where it was closed, is a terminal."""
    return stream is not None and stream.isatty()


def columns() -> int | None:
    """Return how many columns the terminal has that stdout is; else $COLUMNS; else None, as in a pipe."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or USUAL_WIDTH
    except (OSError, ValueError, AttributeError):
        told = os.environ.get("COLUMNS", "")
        return (told.isdecimal() and int(told)) or None


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, width: int | None = USUAL_WIDTH
) -> str:
    """Return aligned columns of text, one line per row, without trailing blanks or a last line end.

    A column that holds a number stands to the right; None is an empty cell. What is wider than `width` has
    its widest texts shortened; None shortens nothing.
    """
    rows = [headers, *rows]
    cells = [[row[index] for row in rows] for index in range(len(headers))]
    texts = [["" if cell is None else plain(str(cell)) for cell in column] for column in cells]
    numeric = [any(isinstance(cell, int | float) for cell in column) for column in cells]
    widths = [max(map(cell_width, column)) for column in texts]
    if width is not None:
        _shrink(widths, [index for index, is_number in enumerate(numeric) if not is_number], width)
    lines = zip(*map(_column, texts, widths, numeric), strict=True)
    return "\n".join(clip("  ".join(line).rstrip(), width) for line in lines)


def _shrink(widths: list[int], may: list[int], width: int) -> None:
    """Make the widest of those columns narrower that may be, until all fit or none may be any more."""
    while sum(widths) + 2 * (len(widths) - 1) > width and may:
        widest = max(may, key=lambda index: widths[index])
        if widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def events_table(events: Sequence[Json], now: datetime, width: int | None = USUAL_WIDTH) -> str:
    """Return a table of the control API's Events, and a line on how many they are and whose time is meant."""
    rows = [
        (
            event["id"],
            local_time(event["starts_at"]),
            event["name"],
            places_left(event),
            event["places_total"],
            format_duration(event["age_s"], units=1),
            _marks(event, now),
        )
        for event in events
    ]
    if not rows:
        return "No events."
    headers = ["id", "starts", "event", "left", "of", "age", "note"]
    if not any(row[-1] for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]  # type: ignore[misc]
    full = sum(event["is_full"] for event in events)
    told = f"{count(len(rows), 'event')}, {full} full. Times are those of {zone()}."
    return f"{table(headers, rows, width=width)}\n\n{told}"


def _marks(event: Json, now: datetime) -> str:
    """Return what sets an event apart from those that are sold now."""
    marks = ["offline"] if event["online"] is False else []
    return ", ".join(marks + ["ended"] * is_over(event, now))


def is_over(event: Json, now: datetime) -> bool:
    """Tell whether an event has ended."""
    end = event["ends_at"] or event["starts_at"]
    return end is not None and datetime.fromisoformat(end) < now


def has_places(event: Json, now: datetime) -> bool:
    """Tell whether places are known to be left of an event that is there and not over."""
    some = event["unlimited"] or (event["places_left"] or 0) > 0
    return bool(some and not event["vanished_at"] and not is_over(event, now))


def progress_line(progress: Json, figures: str, now: datetime, width: int, *, unicode: bool = True) -> str:
    """Return how far a run is on one line: a Progress of the control API, a bar, and what it waits for.

    While it waits for nothing, these `figures` stand there instead.
    """
    phase, done, total = plain(progress["phase"]), progress["done"], progress["total"]
    far = f"{phase} {done}/{total}" if total else phase
    tail = waits(progress, now) or figures
    length = min(width - cell_width(far) - cell_width(tail) - 2, LONGEST_BAR)
    if not total or length < SHORTEST_BAR:
        return clip(f"{far}  {tail}", width)
    full, rest = "━─" if unicode else "=-"
    filled = min(length * done // total, length)
    return f"{far} {full * filled}{rest * (length - filled)} {tail}"


def waits(progress: Json, now: datetime) -> str:
    """Return how long a run waits and for what, "" while it does not, or where the daemon is an older one."""
    until = progress.get("waits_until")
    if not until:
        return ""
    left_s = max((datetime.fromisoformat(until) - now).total_seconds(), 0)
    return f"waits {format_duration(math.ceil(left_s))} more: {plain(progress['waits_for'])}"


def run_name(run_id: int, named: str = "run {}") -> str:
    """Return how people call a run: "run 412", or "a new run" until it is on record and has a number."""
    return named.format(run_id) if run_id > 0 else "a new run"


def run_summary(run: Json) -> str:
    """Return a few lines on a Run: what came of it, why it ran, what changed, and a line for each error."""
    name = run_name(run["id"]).capitalize()
    if run["state"] != "done":
        return f"{name} is {run['state']}; `syncctl history` will show how it ended."
    why = f"{run['trigger']}{asked_by(run)}{', full' if run['full'] else ''}{_consent(run)}"
    synced = f"{count(run['synced'], 'event')} synced, {run['failed']} failed"
    lines = [
        f"{name} {paint(run['outcome'])}: {synced}, in {format_duration(run['duration_s'])}",
        f"  {why}; {_changes(run)}; {count(run['requests'], 'request')}",
        *(f"  error: {error_line(error)}" for error in run["errors"]),
    ]
    if (more := run["errors_total"] - len(run["errors"])) > 0:
        lines.append(f"  and {count(more, 'more error')}")
    return "\n".join(lines)


def alike(word: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the name that a word was probably meant to be, in whatever letters; None where none is alike."""
    from difflib import get_close_matches  # noqa: PLC0415 - for a slip alone

    by_letters = {name.lower(): name for name in names}
    close = get_close_matches(word.lower(), by_letters, 1, likeness)
    return by_letters[close[0]] if close else None


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def is_nearly_full(left: int, total: int | None) -> bool:
    """Tell whether of so many places few are left; of an unknown number none are few."""
    return bool(total and left * NEARLY_FULL <= total)


def places_left(event: Json) -> int | str:
    """Return how many places an event has left, or the word that says more."""
    if event["vanished_at"]:
        return "vanished"
    if event["is_full"]:
        return "full"
    if event["unlimited"]:
        return "unlimited"
    left: int | None = event["places_left"]
    return "?" if left is None else left


def asked_by(run: Json) -> str:
    """Return who asked for a run, after a blank; nothing where nobody did."""
    return f" by {plain(run['requested_by']['user'])}" if run["requested_by"] else ""


def _consent(run: Json) -> str:
    """Return what somebody said is gone, "" where nobody did, or where the daemon is an older one."""
    if not run.get("accept"):
        return ""
    where = f" ({', '.join(run['accepted'])})" if run["accepted"] else ""
    return f", accepting what is absent{where}"


def changed_rows(run: Json) -> int:
    """Return how many rows a run changed."""
    return sum(number for kind, number in run["counts"].items() if kind != "unchanged")


def _changes(run: Json) -> str:
    kinds = [f"{number} {kind}" for kind, number in run["counts"].items() if number and kind != "unchanged"]
    return count(changed_rows(run), "change") + (f" ({', '.join(kinds)})" if kinds else "")


def error_line(error: Json) -> str:
    """Return an error of a run on one line."""
    return plain(f"{about(error['subject'])}{error['message']} ({error['kind']})")


def about(subject: str) -> str:
    """Return what stands before a sentence on what went wrong: nothing where the whole run is meant."""
    return "" if subject == "run" else f"{subject}: "


def _column(texts: Sequence[str], width: int, to_the_right: bool) -> list[str]:
    texts = [clip(each, width) for each in texts]
    blanks = (" " * (width - cell_width(each)) for each in texts)
    return [blank + each if to_the_right else each + blank for each, blank in zip(texts, blanks, strict=True)]


def clip(text: str, widest: int | None) -> str:
    """Return a text of at most so many terminal columns, which ends with … where it is cut."""
    if widest is None or cell_width(text) <= widest:
        return text
    text = text[: max(widest, 1)]
    while text and cell_width(text) > widest - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def cell_width(text: str) -> int:
    """Return the terminal columns that printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )
