"""The attendees that the stand-in serves, and those that the mirror holds."""

from conftest import Rig
from sqlalchemy import select

from syncd.billetweb import decode
from syncd.database import schema
from syncd.model import Attendee
from syncd.standin.people import FIRST_ATTENDEE, PARIS, PER_EVENT, WALL
from syncd.standin.server import StandIn, php_json
from syncd.standin.world import FIRST_IDS, _key, _move

WHOLE = {"disabled": "1"}
"""The query of a read that asks for all attendees of an event."""


def served(standin: StandIn, *, full: bool) -> dict[str, Attendee]:
    """Return what the stand-in has, as `sync.attendees` keeps it."""
    found: dict[str, Attendee] = {}
    for event_id in standin.events:
        body = php_json([*standin.attendees(event_id).values()])
        found |= decode.decode_attendees(body, event_id=event_id, full=full).records
    return found


def held(rig: Rig) -> dict[str, Attendee]:
    """Return the attendees in the mirror that are not marked vanished."""
    names = Attendee.__struct_fields__
    query = select(*(schema.attendees.c[name] for name in names)).where(
        schema.attendees.c.vanished_at.is_(None)
    )
    with rig.account.database.begin() as connection:
        return {row[0]: Attendee(**dict(zip(names, row, strict=True))) for row in connection.execute(query)}


def read(standin: StandIn) -> list[tuple[str, dict[str, str]]]:
    """Return the requests for attendees: path and query."""
    return [(each.path, each.query) for each in standin.requests if each.path.endswith("/attendees")]


def overlap(asked: list[dict[str, str]]) -> bool:
    """Return whether spans of time that were asked for overlap by ten minutes where one follows another."""
    sinces = [int(query["last_update"]) for query in asked if "last_update" in query]
    borders = [int(query["to"]) for query in asked if "to" in query]
    return bool(borders) and all(any(abs(to - since - 600) <= 1 for since in sinces) for to in borders)


def first_of(standin: StandIn, event_id: str) -> str:
    return next(iter(standin.attendees(event_id)))


def check_in(standin: StandIn, attendee_id: str) -> None:
    """Scan a ticket at the door, which Billetweb does not tell by `last_update`."""
    with standin.lock:
        wall = standin.present.astimezone(PARIS).strftime(WALL)
        of_event = next(each.rows for each in standin.attendance.values() if attendee_id in each.rows)
        of_event[attendee_id] |= {"used": "1", "used_date": wall, "lane": "scanner@example.org"}


def delete_attendee(standin: StandIn, attendee_id: str) -> None:
    """Delete one place: no read shows it again, and it can be sold once more."""
    with standin.lock:
        event_id = str(FIRST_IDS["event"] + (int(attendee_id) - FIRST_ATTENDEE) // PER_EVENT)
        row = standin.attendees(event_id).pop(attendee_id)
        event = standin.events[event_id]
        slots = standin._slots(event, row["ticket_id"], past=True)
        its = [slot for slot in slots if (_key(slot)[0] or "0") == row["order_session"]]
        if row["disabled"] == "0":
            _move(event, its, 1, refund=True)


def remove_order(standin: StandIn, order_id: str) -> int:
    """Delete an order, and return how many places it had; no read shows them again."""
    with standin.lock:
        rows = [row for each in standin.attendance.values() for row in each.rows.values()]
        gone = [row["id"] for row in rows if row["order_id"] == order_id]
        for attendee_id in gone:
            delete_attendee(standin, attendee_id)
        return len(gone)
