"""The deliveries to webhook endpoints: recorded, found when due, concluded, sent again, removed.

A delivery is `pending` until it is `delivered`, or `parked` and no longer tried. Those of one endpoint and
event are sent in order: only the first of those that wait is sent.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, true

from syncd.database import bulk, changes, schema, state

COLUMNS = (
    *("id", "endpoint", "type", "event_id", "created_at", "body"),
    *("state", "next_at", "retry_until", "error"),
)
KEEP_TRYING = timedelta(days=3)
"""How long a delivery is tried. A receiver may be down over a weekend; older news would only mislead it."""
MOST_AHEAD = timedelta(days=1)
"""The longest wait. An instant further ahead, or after a beginning in the future, came from a wrong clock."""
STEP = timedelta(minutes=1)
"""So far a clock that is set right may step back, and nothing that began before then comes too early."""
LOOKED_UP = 100
"""How many deliveries one look at all that wait may find: it costs more, the more wait. After a long outage
of the receiver, a look for each would take most of the time."""
State = Literal["pending", "delivered", "parked"]
ORDERS = ("order.paid", "order.refunded")
"""The types that concern attendees."""
OPEN = ("pending", "parked")
D = schema.deliveries.c


class Message(Struct, frozen=True):
    """A message for one endpoint. `event_id` is "" if it concerns no event, or the list of events."""

    id: str
    endpoint: str
    type: str
    event_id: str
    body: str


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery as the control API shows it: all but the body, which may be long."""

    id: str
    endpoint: str
    type: str
    event_id: str
    created_at: datetime
    state: State
    attempts: int
    next_at: datetime | None
    attempted_at: datetime | None
    retry_until: datetime
    delivered_at: datetime | None
    status: int | None
    error: str | None


class Due(Struct, frozen=True):
    """A delivery to send. `attempts`: how often it was tried before."""

    id: str
    type: str
    body: str
    attempts: int
    retry_until: datetime


class Tried(Struct, frozen=True):
    """The result of an attempt. `next_at`: when the next one is due, None if there is none."""

    at: datetime
    state: State
    status: int | None = None
    error: str | None = None
    next_at: datetime | None = None


class Remembered(Struct, frozen=True):
    """What is remembered of an endpoint: that it is gone (a digest of its settings then), and its rest."""

    gone: str | None = None
    quiet_until: datetime | None = None
    quiet_since: datetime | None = None

    def rests(self, now: datetime) -> bool:
        """Whether it is still to be left alone."""
        until, since = self.quiet_until, self.quiet_since or now
        return until is not None and since <= now + STEP and now < until <= now + MOST_AHEAD


class Counts(Struct, frozen=True):
    """How many deliveries to an endpoint wait, and how many are parked."""

    pending: int = 0
    parked: int = 0


# --- put on record


def put(connection: Connection, messages: Iterable[Message], at: datetime) -> None:
    """Record messages, in order; nothing is sent to an endpoint that is gone."""
    rows = []
    gone: dict[str, bool] = {}
    for one in messages:
        if one.endpoint not in gone:
            gone[one.endpoint] = remembered(connection, one.endpoint).gone is not None
        tail = (
            ("parked", None, at + KEEP_TRYING, GONE)
            if gone[one.endpoint]
            else ("pending", at, at + KEEP_TRYING, None)
        )
        rows.append((one.id, one.endpoint, one.type, one.event_id, at, one.body, *tail))
    bulk.insert(connection, schema.deliveries, COLUMNS, rows)


GONE = "the endpoint answered that it is gone (410)"
ORPHAN = "the endpoint is not configured"


def remembered(connection: Connection, endpoint: str) -> Remembered:
    """Return what is remembered of an endpoint."""
    return state.get(connection, _name(endpoint), Remembered) or Remembered()


def remember(connection: Connection, endpoint: str, value: Remembered) -> None:
    """Store what to remember of an endpoint."""
    state.put(connection, _name(endpoint), value if value != Remembered() else None)


def _name(endpoint: str) -> str:
    return f"webhook {endpoint}"


# --- sent


def first_due(
    connection: Connection, endpoint: str, now: datetime, held_since: datetime | None = None
) -> list[str] | datetime | None:
    """Return the ids of deliveries to send now, at most LOOKED_UP, each the first that waits of its event.

    Else return when the next one is due; None if none waits. The one that waits longest goes first, so
    failing ones do not block others. Those recorded from `held_since` on are skipped.
    """
    pending = and_(D.endpoint == endpoint, schema.PENDING)
    # The first of each event in one pass: looking for an earlier one of each took quadratic time on SQLite.
    first = D.seq.in_(select(func.min(D.seq)).where(pending).group_by(D.event_id).correlate(None))
    waits = and_(first, _may_leave(held_since))
    query = select(D.id).where(waits, _is_due(now)).order_by(D.next_at, D.seq).limit(LOOKED_UP)
    if found := connection.scalars(query).all():
        return [*found]
    next_at: datetime | None = connection.scalar(select(func.min(D.next_at)).where(waits))
    return next_at


def due(connection: Connection, key: str, now: datetime, held_since: datetime | None = None) -> Due | None:
    """Return a delivery if it is still to be sent now, and the first that waits of its event."""
    other = schema.deliveries.alias().c
    same = (other.endpoint == D.endpoint, other.event_id == D.event_id, other.state == "pending")
    # As a minimum: SQLite would look for an earlier one among those of all events.
    is_first = D.seq == select(func.min(other.seq)).where(*same).scalar_subquery()
    columns = (D.id, D.type, D.body, D.attempts, D.retry_until)
    query = select(*columns).where(
        D.id == key, schema.PENDING, _may_leave(held_since), _is_due(now), is_first
    )
    found = connection.execute(query).first()
    return Due(*found) if found else None


def _is_due(now: datetime) -> ColumnElement[bool]:
    began_at = func.coalesce(D.attempted_at, D.created_at)
    is_odd = or_(D.next_at > now + MOST_AHEAD, began_at > now + STEP)
    return or_(D.next_at.is_(None), D.next_at <= now, is_odd)


def _may_leave(held_since: datetime | None) -> ColumnElement[bool]:
    return D.created_at < held_since if held_since else true()


def conclude(connection: Connection, due: Due, tried: Tried) -> None:
    """Record the result of an attempt."""
    values = {"attempted_at": tried.at, "attempts": due.attempts + 1, "next_at": tried.next_at}
    values |= {"state": tried.state, "status": tried.status, "error": tried.error}
    if tried.state == "delivered":
        values["delivered_at"] = tried.at
    here = and_(D.id == due.id, D.state != "delivered")  # by another syncd, while this one was cut off
    connection.execute(schema.deliveries.update().where(here).values(values))


def park(connection: Connection, endpoint: str, settings: str) -> None:
    """Park all that waits for an endpoint that is gone, until its settings change from these."""
    remember(connection, endpoint, Remembered(gone=settings))
    _park(connection, and_(D.endpoint == endpoint, schema.PENDING), GONE)


def park_orphans(connection: Connection, endpoints: Sequence[str]) -> dict[str, int]:
    """Park what waits for endpoints that are no longer configured; return how many, by endpoint."""
    waits = {name: some.pending for name, some in counts(connection).items() if some.pending}
    lost = {name: number for name, number in waits.items() if name not in endpoints}
    _park(connection, and_(D.endpoint.in_([*lost]), schema.PENDING), ORPHAN)
    return lost


def unpark_orphans(connection: Connection, endpoints: Sequence[str], now: datetime) -> None:
    """Unpark, for endpoints that are configured again, what may still be tried."""
    _unpark(connection, and_(D.endpoint.in_([*endpoints]), D.error == ORPHAN), now)


def _park(connection: Connection, here: ColumnElement[bool], error: str) -> None:
    connection.execute(
        schema.deliveries.update().where(here).values(state="parked", next_at=None, error=error)
    )


def revive(connection: Connection, endpoint: str, now: datetime) -> None:
    """Unpark, for an endpoint with new settings, what may still be tried."""
    remember(connection, endpoint, Remembered())
    _unpark(connection, D.endpoint == endpoint, now)


def _unpark(connection: Connection, here: ColumnElement[bool], now: datetime) -> None:
    parked = and_(here, D.state == "parked", D.retry_until > now)
    connection.execute(
        schema.deliveries.update().where(parked).values(state="pending", next_at=now, attempts=0, error=None)
    )


# --- asked for


def retry(
    connection: Connection,
    now: datetime,
    *,
    ids: Sequence[str],
    endpoint: str | None,
    configured: Sequence[str],
) -> tuple[int, list[str]]:
    """Make deliveries due now: these, and all of an endpoint that wait or are parked.

    Return how many, and the ids of no delivery to a `configured` endpoint; with such ids nothing is done.
    """
    named = bulk.is_among(connection, D.id, ids)
    found = connection.execute(select(D.id, D.endpoint).where(named)).all()
    known = {key: to for key, to in found if to in configured}
    if unknown := [one for one in ids if one not in known]:
        return 0, unknown
    for name in {*known.values(), *([endpoint] if endpoint is not None else [])}:
        remember(connection, name, Remembered())
    here = or_(named, and_(D.endpoint == endpoint, D.state.in_(OPEN)))
    values = {"state": "pending", "next_at": now, "retry_until": now + KEEP_TRYING}
    values |= {"attempts": 0, "error": None}
    return connection.execute(schema.deliveries.update().where(here).values(values)).rowcount, []


def latest(connection: Connection, limit: int, *, delivered_too: bool) -> list[Delivery]:
    """Return the latest deliveries that wait or are parked, newest first; or the latest of all."""
    query = select(*(D[name] for name in Delivery.__struct_fields__)).order_by(D.seq.desc()).limit(limit)
    if not delivered_too:
        query = query.where(D.state.in_(OPEN))
    return [Delivery(**row) for row in connection.execute(query).mappings().all()]


def counts(connection: Connection) -> dict[str, Counts]:
    """Return how many deliveries wait and are parked, by endpoint."""
    pending = func.count().filter(schema.PENDING)
    query = select(D.endpoint, pending, func.count() - pending).where(D.state.in_(OPEN)).group_by(D.endpoint)
    return {name: Counts(*numbers) for name, *numbers in connection.execute(query).all()}


# --- removed


def old(connection: Connection, keep: timedelta, now: datetime, read_at: datetime) -> ColumnElement[bool]:
    """Return the condition for deliveries older than `keep`, as for changes, that no longer wait."""
    is_old = changes.old(connection, keep, now, read_at, seq=D.seq, at=D.created_at)
    return and_(is_old, D.state != "pending")


def erase_orders(connection: Connection) -> None:
    """Remove the deliveries about attendees, when none are mirrored any more."""
    connection.execute(schema.deliveries.delete().where(D.type.in_(ORDERS)))
