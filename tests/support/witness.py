"""What Billetweb's stand-in told in a run: the ground on which `truth.py` judges what the run did."""

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from msgspec import structs
from starlette.types import Scope

from support.sized import Sized
from syncd.billetweb import body, decode
from syncd.database import schema
from syncd.model import Attendee, AttendeeMode, Event, Gauge, Session, Ticket
from syncd.standin.server import Answer, php_json, send_whole
from syncd.standin.world import World

Record = Event | Gauge | Ticket | Session
Place = tuple[str, str]
"""Table and row id, or table and event id."""
EVENTS, GAUGES = schema.events.name, schema.gauges.name
TICKETS, SESSIONS = schema.tickets.name, schema.sessions.name
ATTENDEES = schema.attendees.name
OPERATIONS = {"avail": GAUGES, "tickets": TICKETS, "dates": SESSIONS}
KEEP_PAST = timedelta(days=30)
Parts = dict[tuple[float, float], dict[str, Attendee]]
"""What answers for spans of time told."""
Question = tuple[str, str]
"""Path and query of a request."""


class Witness(Sized):
    """A stand-in that remembers the latest answer to each question."""

    def __init__(self, *, attendees: int, **settings: Any) -> None:
        self._settings = settings
        super().__init__(attendees=attendees, **settings)
        self.told: dict[Question, Answer] = {}

    def begin_anew(self) -> None:
        """Have the account that it had at first, with no fault planned."""
        self.heal()
        self.restricted = False
        World.__init__(self, **{"seed": 1, "now": None, **self._settings})

    def _answer(self, scope: Scope) -> Answer:
        answer = super()._answer(scope)
        self.told[str(scope["path"]).removeprefix("/api"), scope["query_string"].decode()] = answer
        return answer


class Told:
    """What the last answer to each question of one run said; what was no complete answer said nothing.

    `events` is None where the list was not told; `listed` says whether all of its rows were usable,
    `described` whether they held descriptions.
    `scopes` holds, by table and event, the records of those that were asked for, None where not told.
    `read` names the events whose figures were told. `everybody` holds the attendees that the account's
    answers told, `people` those of all answers, both as `mode` keeps them.
    """

    def __init__(self, told: dict[Question, Answer], account: str, mode: AttendeeMode) -> None:
        self.events: dict[str, Event] | None = None
        self.listed = self.described = False
        self.scopes: dict[Place, dict[str, Any] | None] = {}
        self.everybody: dict[str, Attendee] = {}
        self._latest: dict[str, dict[str, Attendee] | None] = {}
        self._parts: dict[str, Parts] = {}
        for (path, query), answer in told.items():
            match path.strip("/").split("/"):
                case ["events"]:
                    self._list(answer, account)
                    self.described = dict(parse_qsl(query)).get("description") == "1"
                case ["attendees"]:  # without a mode they only tell who sold
                    self.everybody |= (_attendees(answer, None, mode) if mode != "none" else None) or {}
                case [_, event_id, "attendees"]:
                    self._hear(event_id, dict(parse_qsl(query)), _attendees(answer, event_id, mode))
                case [_, event_id, operation]:
                    self.scopes[OPERATIONS[operation], event_id] = _records(answer, event_id, operation)
        for (table, event_id), whole in self.scopes.items():
            if (table, whole) == (ATTENDEES, None):  # too large, perhaps, and told in parts
                self._latest.pop(event_id, None)
                self.scopes[ATTENDEES, event_id] = _together(self._parts.get(event_id, {}))
        self.asked = {event_id for _, event_id in self.scopes}
        self.read = {event_id for event_id in self.asked if self._is_read(event_id)}
        self.people = dict(self.everybody)
        for event_id in self.read:
            self.people |= self.scopes.get((ATTENDEES, event_id)) or self._latest.get(event_id) or {}

    def _hear(self, event_id: str, query: dict[str, str], told: dict[str, Attendee] | None) -> None:
        """Take what was told of attendees of an event: all, those lately modified, or those of a span."""
        since, until = query.get("last_update"), query.get("to")
        if since or until:
            self._latest[event_id] = told
        else:
            self.scopes[ATTENDEES, event_id] = told
        if told is not None:
            span = float(since or -math.inf), float(until or math.inf)
            self._parts.setdefault(event_id, {})[span] = told

    def _list(self, answer: Answer, account: str) -> None:
        rows = _rows(answer)
        if rows is not None:
            usable = [row for row in rows if _is_usable(row, "id")]
            self.events = decode.decode_events(php_json(usable), account=account).records
            self.listed = usable == rows

    def keep(self, before: Mapping[Place, Mapping[str, Any]]) -> None:
        """Take the descriptions that the mirror had, where the list was told without them."""
        if self.events and not self.described:
            self.events = {
                key: structs.replace(event, description=before.get((EVENTS, key), {}).get("description"))
                for key, event in self.events.items()
            }

    def _is_read(self, event_id: str) -> bool:
        needed = [self.scopes.get((table, event_id)) for table in (GAUGES, TICKETS)]
        return None not in [*needed, self.scopes.get((SESSIONS, event_id), {})]

    def of(self, table: str, event_id: str) -> dict[str, Any]:
        """Return what was told of a scope, by row id."""
        if table == ATTENDEES:
            return {key: one for key, one in self.people.items() if one.event_id == event_id}
        return (self.events if table == EVENTS else self.scopes.get((table, event_id))) or {}

    def live(self, now: datetime) -> set[str]:
        """Return the events told that have not ended long ago."""
        ends = {key: event.ends_at or event.starts_at for key, event in (self.events or {}).items()}
        return {key for key, end in ends.items() if end is None or end > now - KEEP_PAST}


def _rows(answer: Answer) -> list[Any] | None:
    if answer.status != 200 or answer.delivery is not send_whole or len(answer.body) > body.MAX_BODY_BYTES:
        return None
    try:
        rows = json.loads(answer.body)
    except ValueError:
        return None
    return rows if isinstance(rows, list) else None


def _is_usable(row: object, key: str) -> bool:
    return isinstance(row, dict) and bool(row.get(key))


def _records(answer: Answer, event_id: str, operation: str) -> dict[str, Record] | None:
    rows = _rows(answer)
    if rows is None or not all(_is_usable(row, "type" if operation == "avail" else "id") for row in rows):
        return None
    found: Any
    match operation:
        case "avail":
            found = decode.decode_gauges(answer.body, event_id=event_id)
        case "tickets":
            found = decode.decode_tickets(answer.body, event_id=event_id)
        case _:
            found = decode.decode_sessions(answer.body, event_id=event_id)
    return dict(found.records)


def _together(parts: Parts) -> dict[str, Attendee] | None:
    """Return the attendees of answers for spans of time, None where these leave a gap."""
    found: dict[str, Attendee] = {}
    told_until = -math.inf
    for (since, until), some in sorted(parts.items()):
        if since > told_until:
            return None
        found |= some
        told_until = max(told_until, until)
    return found if told_until == math.inf else None


def _attendees(answer: Answer, event_id: str | None, mode: AttendeeMode) -> dict[str, Attendee] | None:
    rows = _rows(answer)
    if rows is None or not all(_is_usable(row, "id") for row in rows):
        return None
    return decode.decode_attendees(answer.body, event_id=event_id, full=mode == "full").records
