"""Text for people: durations, local times, tables, and the control API's answers. Imports nothing of syncd.

Part of every start of `syncctl`, so it leans on light parts of the standard library alone.
"""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

TYPE_CHECKING = False  # typing alone would cost `syncctl` a tenth of its start
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

NOTHING = "-"
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
_COLOURS = {"ok": 32, "degraded": 33, "partial": 33, "cancelled": 33, "failing": 31, "failed": 31}
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


def format_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: "0.4 s", "12 s", "1 h 30 min", "3 d 4 h".

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
    return " ".join(parts)


def local_time(instant: str | None) -> str:
    """Return an RFC 3339 instant to the minute in this machine's zone, "-" for None."""
    if instant is None:
        return NOTHING
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M")


def moment(instant: str | None, now: datetime) -> str:
    """Return an RFC 3339 instant's distance from `now` and local time: "3 min ago (2027-05-08 10:00)"."""
    if instant is None:
        return NOTHING
    ahead_s = (datetime.fromisoformat(instant) - now).total_seconds()
    distance = format_duration(round(abs(ahead_s)))
    return f"{f'in {distance}' if ahead_s > 0 else f'{distance} ago'} ({local_time(instant)})"


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


def paint(word: str) -> str:
    """Return a word for health or outcome, coloured where stdout is a terminal and its user allows that."""
    forbidden = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if forbidden or word not in _COLOURS or sys.stdout is None or not sys.stdout.isatty():
        return word
    return f"\x1b[{_COLOURS[word]}m{word}\x1b[0m"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, widest: int = 48) -> str:
    """Return aligned columns of text, one line per row, without trailing blanks or a last line end.

    A column that holds a number stands to the right; None is an empty cell; a cell of more than `widest`
    terminal columns is cut.
    """
    rows = [headers, *rows]
    columns = [_column([row[index] for row in rows], widest) for index in range(len(headers))]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def events_table(events: Iterable[Json]) -> str:
    """Return a table of the control API's Events: when, what, places left of how many, how old that is."""
    rows = [
        (
            event["id"],
            local_time(event["starts_at"]),
            event["name"],
            _places_left(event),
            event["places_total"],
            format_duration(event["age_s"]),
        )
        for event in events
    ]
    return table(("id", "starts", "event", "left", "of", "age"), rows) if rows else "No events."


def runs_table(runs: Iterable[Json]) -> str:
    """Return a table of the control API's Runs."""
    rows = [
        (
            run["id"],
            local_time(run["started_at"]),
            run["trigger"],
            (run["requested_by"] or {}).get("user"),
            run["outcome"] or run["state"],
            format_duration(run["duration_s"]),
            run["synced"],
            run["failed"],
            _changed(run),
            run["requests"],
            next(map(_error_line, run["errors"]), None),
        )
        for run in runs
    ]
    headers = ("id", "started", "trigger", "by", "outcome", "took", "synced", "failed", "changes", "requests")
    return table((*headers, "first error"), rows) if rows else "No runs yet."


def doubts_table(doubts: Iterable[Json], now: datetime) -> str:
    """Return a table of the control API's Doubts: where, how many rows, since when, what they wait for."""
    rows = [
        (
            _scope(doubt),
            f"{doubt['absent']} of {doubt['of']}",
            moment(doubt["since"], now),
            doubt["reads"],
            _waits_for(doubt, now),
            ", ".join(doubt["examples"]) + (", …" if doubt["absent"] > len(doubt["examples"]) else ""),
        )
        for doubt in doubts
    ]
    headers = ("absent from", "rows", "since", "reads", "waits for", "examples")
    return table(headers, rows) if rows else "Nothing is doubted."


def publish_table(targets: Sequence[Json], now: datetime) -> str:
    """Return a table of the targets that the control API shows, and lines on what is to be looked at."""
    rows = [
        (
            target["name"],
            target["matched"],
            target["unmatched"],
            target["written"],
            moment(target["last_write_at"], now),
            target["last_error"] or "",
        )
        for target in targets
    ]
    if not rows:
        return "Nothing is published: there is no [[publish]] in the configuration."
    headers = ("target", "rows", "unmatched", "written", "last write", "last error")
    return "\n".join([table(headers, rows), *(line for target in targets for line in _to_look_at(target))])


def _to_look_at(target: Json) -> list[str]:
    name, more = plain(target["name"]), target["unmatched"] - len(target["examples"])
    lines = []
    if target["last_error"]:
        lines.append(f"{name}: {plain(target['last_error'])}")
    if target["examples"]:
        keys = ", ".join(map(plain, target["examples"]))
        lines.append(f"{name}: no event has the key {keys}{f' and {more} more' if more > 0 else ''}")
    if target["vanished"]:
        lines.append(f"{name}: {count(target['vanished'], 'row')} of vanished events, left as they are")
    return lines + [f"{name}: {plain(warning)}" for warning in target["warnings"]]


def webhooks_table(answer: Json, now: datetime) -> str:
    """Return a table of the endpoints that the control API shows, and one of what waits for them."""
    endpoints = [
        (
            each["name"],
            each["host"],
            each["pending"],
            each["parked"],
            moment(each["last_delivered_at"], now),
            "gone (410)" if each["gone"] else each["last_error"],
        )
        for each in answer["endpoints"]
    ]
    if not endpoints:
        return "Nobody is told: there is no [[webhooks]] in the configuration."
    shown = table(("endpoint", "host", "waiting", "parked", "last delivered", "last error"), endpoints)
    rows = [
        (
            each["id"],
            each["endpoint"],
            each["type"],
            each["event_id"],
            local_time(each["created_at"]),
            each["attempts"],
            "parked" if each["state"] == "parked" else f"next {moment(each['next_at'], now)}",
            each["error"],
        )
        for each in answer["deliveries"]
    ]
    headers = ("delivery", "endpoint", "type", "event", "since", "tried", "state", "last error")
    return f"{shown}\n\n{table(headers, rows)}" if rows else shown


def run_summary(run: Json) -> str:
    """Return a few lines on a Run: what came of it, why it ran, what changed, and a line for each error."""
    if run["state"] != "done":
        return f"Run {run['id']} is {run['state']}; `syncctl history` will show how it ended."
    by = f" by {run['requested_by']['user']}" if run["requested_by"] else ""
    why = f"{run['trigger']}{by}{', full' if run['full'] else ''}{_consent(run)}"
    lines = [
        f"Run {run['id']} {paint(run['outcome'])}: {_synced(run)}, in {format_duration(run['duration_s'])}",
        f"  {why}; {_changes(run)}; {count(run['requests'], 'request')}",
        *(f"  error: {_error_line(error)}" for error in run["errors"]),
    ]
    if (more := run["errors_total"] - len(run["errors"])) > 0:
        lines.append(f"  and {count(more, 'more error')}")
    return "\n".join(lines)


def status_panel(status: Json, now: datetime) -> str:
    """Return a Status as a panel, one subject a line."""
    reason, queued = status["health_reason"], status["queued_runs"]
    rows = {
        "health": paint(status["health"]) + (f": {plain(reason)}" if reason else ""),
        "state": status["state"],
        "last run": _last_run(status["last_run"], now),
        "last success": moment(status["last_success_at"], now),
        "next run": _next_run(status, now),
        "interval": format_duration(status["interval_s"]),
        "current run": _current_run(status["current_run"], now),
        "queued": count(queued, "run") if queued else "",
        "events": _live_events(status),
        "figures": _figures(status),
        "doubts": _doubts(status),
        "publish": _publish(status),
        "feeds": _feeds(status),
        "webhooks": _webhooks(status),
        "last error": plain(status["last_error"] or ""),
        "slots": _slots(status),
        "database": plain(status["database"]),
        "daemon": f"syncd {status['version']}, pid {status['pid']}, up {format_duration(status['uptime_s'])}",
    }
    return "\n".join(f"{name:14}{value}" for name, value in rows.items() if value)


def state_line(status: Json, now: datetime) -> str:
    """Return a Status as one line: state, health and next run."""
    next_run = _next_run(status, now)
    return f"syncd is {status['state']}, health {paint(status['health'])}, next run {next_run}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _places_left(event: Json) -> int | str:
    if event["vanished_at"]:
        return "vanished"
    if event["is_full"]:
        return "full"
    if event["unlimited"]:
        return "unlimited"
    left: int | None = event["places_left"]
    return "?" if left is None else left


def _live_events(status: Json) -> str:
    """Return how many events are live and full, "" while no database has told."""
    live, full = status["events_live"], status["events_full"]
    return "" if live is None else f"{live} live, {full} full"


def _figures(status: Json) -> str:
    """Return how old figures are and may get, "" while none was read, or where the daemon is an older one."""
    age_s, budget = status.get("oldest_figure_age_s"), status.get("budget")
    if age_s is None:
        return ""
    unread = status.get("events_unread")
    told = f"{count(unread, 'event')} never read; " if unread else ""
    told += f"the oldest is {format_duration(age_s)} old"
    if budget:
        told += f"; each is read at least every {format_duration(budget['refresh_s'])}"
        told += f"; {count(budget['waiting'], 'event')} more to read" if budget["waiting"] else ""
        if budget["increment"] == "not permitted":
            told += "; sales too are seen no sooner, for the key may not read the account's attendees"
        elif budget["increment"] == "failed":
            told += "; sales too are seen no sooner while the account's attendees cannot be read"
    return told


def _doubts(status: Json) -> str:
    """Return that something is doubted, "" where nothing is, or where the daemon is an older one."""
    number = status.get("doubts")
    return f"{number}, shown by `syncctl doubts`" if number else ""


def _publish(status: Json) -> str:
    """Return how many targets there are, "" where there is none, or where the daemon is an older one."""
    publish = status.get("publish") or {"targets": 0, "failing": 0}
    failing = f", {publish['failing']} failing: see `syncctl publish`" if publish["failing"] else ""
    return f"{count(publish['targets'], 'target')}{failing}" if publish["targets"] else ""


def _feeds(status: Json) -> str:
    """Return which file could not be written, "" where each was, or where the daemon is an older one."""
    feeds = status.get("feeds") or {"failing": 0}
    if not feeds["failing"]:
        return ""
    return f"{feeds['failing']} of {feeds['files']} not written: {plain(feeds['error'])}"


def _webhooks(status: Json) -> str:
    """Return what waits for endpoints, "" where there is none, or where the daemon is an older one."""
    told = status.get("webhooks") or {"endpoints": 0}
    if not told["endpoints"]:
        return ""
    waits = f", {told['pending']} waiting" if told["pending"] else ""
    parked = f", {told['parked']} parked: see `syncctl webhooks`" if told["parked"] else ""
    return f"{count(told['endpoints'], 'endpoint')}{waits}{parked}"


def _scope(doubt: Json) -> str:
    if doubt["event_id"] is None:
        return "list of events"
    return f"event {doubt['event_id']}, {doubt['table'].removeprefix('billetweb_')}"


def _waits_for(doubt: Json, now: datetime) -> str:
    if doubt["until"] is None:
        return "you: syncctl accept"
    if datetime.fromisoformat(doubt["until"]) <= now:
        return "its next read"
    return f"time: until {local_time(doubt['until'])}"


def _consent(run: Json) -> str:
    """Return what somebody said is gone, "" where nobody did, or where the daemon is an older one."""
    if not run.get("accept"):
        return ""
    where = f" ({', '.join(run['accepted'])})" if run["accepted"] else ""
    return f", accepting what is absent{where}"


def _next_run(status: Json, now: datetime) -> str:
    return moment(status["next_run_at"], now) if status["next_run_at"] else "not scheduled"


def _last_run(run: Json | None, now: datetime) -> str:
    if not run:
        return ""
    took = format_duration(run["duration_s"])
    return (
        f"{run['id']} {paint(run['outcome'])}, {moment(run['finished_at'], now)}, took {took}: {_synced(run)}"
    )


def _current_run(run: Json | None, now: datetime) -> str:
    if not run:
        return ""
    progress = run["progress"]
    far = f", {progress['phase']} {progress['done']}/{progress['total'] or '?'}" if progress else ""
    return f"{run['id']} {run['trigger']}, began {moment(run['started_at'], now)}{far}"


def _slots(status: Json) -> str:
    skipped: dict[str, int] = status["slots_skipped"]
    parts = [f"{number} skipped ({plain(reason)})" for reason, number in skipped.items() if number]
    if status["slots_missed"]:
        parts.append(f"{status['slots_missed']} missed")
    return ", ".join(parts)


def _synced(run: Json) -> str:
    return f"{count(run['synced'], 'event')} synced, {run['failed']} failed"


def _changed(run: Json) -> int:
    return sum(number for kind, number in run["counts"].items() if kind != "unchanged")


def _changes(run: Json) -> str:
    kinds = [f"{number} {kind}" for kind, number in run["counts"].items() if number and kind != "unchanged"]
    return count(_changed(run), "change") + (f" ({', '.join(kinds)})" if kinds else "")


def _error_line(error: Json) -> str:
    return plain(f"{error['subject']}: {error['message']} ({error['kind']})")


def _column(cells: list[object], widest: int) -> list[str]:
    texts = [_clip("" if cell is None else plain(str(cell)), widest) for cell in cells]
    width = max(map(_width, texts))
    to_the_right = any(isinstance(cell, int | float) for cell in cells)
    blanks = (" " * (width - _width(text)) for text in texts)
    return [blank + text if to_the_right else text + blank for text, blank in zip(texts, blanks, strict=True)]


def _clip(text: str, widest: int) -> str:
    if _width(text) <= widest:
        return text
    text = text[:widest]
    while _width(text) > widest - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def _width(text: str) -> int:
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
