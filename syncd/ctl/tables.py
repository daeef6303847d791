"""The tables of `syncctl`: runs, doubts, the site's own tables, and webhooks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from syncd import text
from syncd.text import Json

HALF_A_YEAR_S = 182 * 86_400.0
"""As in `ls`: for a date further away the year matters more than the hour."""
RELOAD = "A change of the configuration is in force after `syncctl reload`."


def runs_table(runs: Iterable[Json], now: datetime, width: int | None = text.USUAL_WIDTH) -> str:
    """Return a table of the control API's Runs, each with its first error below it."""
    runs = [*runs]
    rows = [
        (
            run["id"],
            short_time(run["started_at"], now),
            text.asked_by(run).strip() or run["trigger"],
            run["outcome"] or run["state"],
            text.format_duration(run["duration_s"]),
            f"{run['synced']} of {run['synced'] + run['failed']}" if run["failed"] else f"{run['synced']}",
            text.changed_rows(run),
            run["requests"],
        )
        for run in runs
    ]
    if not rows:
        return "No runs yet."
    headers = ("id", "started", "why", "outcome", "took", "synced", "changes", "requests")
    errors = [text.error_line(run["errors"][0]) if run["errors"] else "" for run in runs]
    return _with_lines_below(text.table(headers, rows, width=width), errors, width)


def _with_lines_below(table: str, below: Sequence[str], width: int | None) -> str:
    """Return a table with an additional line below some rows."""
    head, *lines = table.split("\n")
    shown = [head]
    for line, more in zip(lines, below, strict=True):
        shown += [line, text.clip(f"    {more}", width)] if more else [line]
    return "\n".join(shown)


def doubts_table(doubts: Iterable[Json], now: datetime, width: int | None = text.USUAL_WIDTH) -> str:
    """Return a table of the control API's Doubts: where, how many rows, how long, what they wait for."""
    rows = [
        (
            _scope(doubt),
            f"{doubt['absent']} of {doubt['of']}",
            text.ago(doubt["since"], now),
            doubt["reads"],
            _waits_for(doubt, now),
            ", ".join(doubt["examples"]) + (", …" if doubt["absent"] > len(doubt["examples"]) else ""),
        )
        for doubt in doubts
    ]
    headers = ("absent from", "rows", "since", "reads", "waits for", "examples")
    return text.table(headers, rows, width=width) if rows else "Nothing is doubted."


def publish_table(targets: Sequence[Json], now: datetime, width: int | None = text.USUAL_WIDTH) -> str:
    """Return a table of the targets that the control API shows, and lines on what needs attention."""
    rows = [
        (
            target["name"],
            target["matched"],
            target["unmatched"],
            target["written"],
            f"{text.ago(target['last_write_at'], now)}{' (error below)' if target['last_error'] else ''}",
        )
        for target in targets
    ]
    if not rows:
        return f"Nothing is published: no [[publish]] is in force. {RELOAD}"
    headers = ("target", "rows", "unmatched", "written", "last write")
    lines = (line for target in targets for line in _to_look_at(target))
    return "\n".join([text.table(headers, rows, width=width), *lines])


def _to_look_at(target: Json) -> list[str]:
    name, more = text.plain(target["name"]), target["unmatched"] - len(target["examples"])
    lines = []
    if target["last_error"]:
        lines.append(f"{name}: {text.plain(target['last_error'])}")
    if target["examples"]:
        keys = ", ".join(json.dumps(text.harmless(key), ensure_ascii=False) for key in target["examples"])
        lines.append(f"{name}: no event has the key {keys}{f' and {more} more' if more > 0 else ''}")
    if target["vanished"]:
        lines.append(f"{name}: {text.count(target['vanished'], 'row')} of vanished events, left as they are")
    return lines + [f"{name}: {text.plain(warning)}" for warning in target["warnings"]]


def webhooks_table(answer: Json, now: datetime, width: int | None = text.USUAL_WIDTH) -> str:
    """Return a table of the endpoints that the control API shows, and one of what waits for them."""
    endpoints = [
        (
            each["name"],
            each["host"],
            each["pending"],
            each["parked"],
            text.ago(each["last_delivered_at"], now),
            "gone (410)" if each["gone"] else each["last_error"],
        )
        for each in answer["endpoints"]
    ]
    if not endpoints:
        return f"Nobody is told: no [[webhooks]] is in force. {RELOAD}"
    headers = ("endpoint", "host", "waiting", "parked", "last delivered", "last error")
    shown = text.table(headers, endpoints, width=width)
    waiting = answer["deliveries"]
    if not waiting:
        return shown
    rows = [[each[name] for name in ("id", "endpoint", "type", "event_id", "state")] for each in waiting]
    table = text.table(("delivery", "endpoint", "type", "event", "state"), rows, width=width)
    return f"{shown}\n\n{_with_lines_below(table, [_tried(each, now) for each in waiting], width)}"


def _tried(delivery: Json, now: datetime) -> str:
    """Return the state of a delivery and when it is sent again, "" if it was not tried yet."""
    if not delivery["attempts"]:
        return ""
    tried = f"{text.count(delivery['attempts'], 'attempt')} since {short_time(delivery['created_at'], now)}"
    again = f"; again {text.moment(delivery['next_at'], now)}" if delivery["next_at"] else ""
    return f"{tried}: {text.plain(delivery['error'] or '')}{again}"


def _scope(doubt: Json) -> str:
    if doubt["event_id"] is None:
        return "list of events"
    return f"event {doubt['event_id']}, {doubt['table'].removeprefix('billetweb_')}"


def _waits_for(doubt: Json, now: datetime) -> str:
    if doubt["until"] is None:
        return "syncctl accept"
    if datetime.fromisoformat(doubt["until"]) <= now:
        return "its next read"
    return f"time: until {short_time(doubt['until'], now)}"


def short_time(instant: str | None, now: datetime) -> str:
    """Return a local time in twelve columns, as in journalctl: "May 08 11:56", or "May 08 2026"."""
    if instant is None:
        return text.NOTHING
    at = text.here(instant)
    return at.strftime("%b %d %Y" if abs((at - now).total_seconds()) > HALF_A_YEAR_S else "%b %d %H:%M")
