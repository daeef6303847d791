"""What `syncctl watch` has seen of the daemon so far, and the thread that keeps polling it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from syncd.ctl.http import Failure, ask_json, unit_at
from syncd.text import Json

LOOK_EVERY_S = 1.0
"""A person notices a second; the daemon answers status from memory within some milliseconds."""
AGAIN_AFTER_S = 60.0
"""Runs and events are requested after each run, and this often, because an event may end without a run."""
ANSWER_WITHIN_S = 5.0
"""After this time the daemon does not count as alive; the screen itself waits for no answer."""
RUNS = 100
"""How many bars of a sparkline fit the widest terminal; a day of runs at the usual interval."""


@dataclass(frozen=True)
class Seen:
    """The latest answers; `trouble` says why none comes now, and `since` when that began.

    `moved`: by event, how many more places are left than before the latest run that was seen to end. `unit`:
    what it runs as under systemd.
    """

    status: Json
    runs: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)
    trouble: str = ""
    since: datetime | None = None
    asked_at: datetime | None = None
    unit: str | None = None


def look(path: str, before: Seen | None = None) -> Seen:
    """Return what the daemon on the socket at `path` says now. Raises Failure if nothing came before."""
    now, unit = datetime.now(UTC), unit_at(path)
    try:
        status = ask_json(path, "GET", "/v1/status", timeout_s=ANSWER_WITHIN_S)
    except Failure as failure:
        if before is None:
            raise
        return replace(before, trouble=str(failure), since=before.since or now)
    if before and not _is_news(before, status, now):
        return replace(before, status=status)
    try:
        runs = ask_json(path, "GET", f"/v1/runs?limit={RUNS}", timeout_s=ANSWER_WITHIN_S)["runs"]
        events = ask_json(path, "GET", "/v1/events?all=0", timeout_s=ANSWER_WITHIN_S)["events"]
    except Failure:  # its database is not open yet: status says so, and these are requested again
        first = Seen(status, unit=unit)
        return replace(before or first, status=status, trouble="", since=None, asked_at=None)
    moved = before.moved if before else {}
    if before and (before.asked_at is None or _latest(before.status) != _latest(status)):
        moved = _moved(before.events, events)
    return Seen(status, runs, events, moved, asked_at=now, unit=unit)


def _is_news(before: Seen, status: Json, now: datetime) -> bool:
    if before.trouble or before.asked_at is None or _latest(before.status) != _latest(status):
        return True
    return abs((now - before.asked_at).total_seconds()) > AGAIN_AFTER_S


def _latest(status: Json) -> tuple[int, int, int]:
    """Return what changes when another run has ended."""
    return status["pid"], status["run_count"], (status["last_run"] or {}).get("id", 0)


def _moved(before: list[Json], after: list[Json]) -> dict[str, int]:
    known = {event["id"]: event["places_left"] for event in before}
    return {
        event["id"]: event["places_left"] - left
        for event in after
        if (left := known.get(event["id"])) is not None and event["places_left"] not in (None, left)
    }


class Looker:
    """Polls the daemon until the program ends, in a thread, which may be waiting for one that hangs.

    Raises Failure if none answers at first.
    """

    def __init__(self, path: str) -> None:
        self.seen = look(path)
        self._path = path
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            self.seen = look(self._path, self.seen)
