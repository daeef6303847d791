"""What becomes a webhook: records deliveries in the transaction of the change that they report.

Each body is encoded here, once: whatever happens later, every attempt sends the same bytes. They hold no
personal data.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import msgspec
from msgspec import structs
from sqlalchemy import Connection

from syncd.config import WebhookConfig
from syncd.database import attendees, deliveries, rows
from syncd.database.deliveries import Message
from syncd.database.rows import Writing
from syncd.mirror.diff import FIELDS, Change
from syncd.model import ATTENDEES, EVENTS, Doubt, Json, Run

OF_ORDER = ("order_id", "order_ext_id", "event_id", "places", "refunded", "order_price")
"""The fields that are sent of an order."""


class Outbox:
    """Records the deliveries for each endpoint of an account, in the threads of transactions.

    `has_news`: whether anything was recorded since this was last reset.
    """

    def __init__(self) -> None:
        self.endpoints: tuple[WebhookConfig, ...] = ()
        self.has_news = False

    def follow(self, connection: Connection, writing: Writing, changes: Sequence[Change]) -> None:
        """Record what follows from changes of events, and of attendees for orders."""
        if not self.endpoints:
            return
        if of_events := [change for change in changes if change.table == EVENTS]:
            self._follow_events(connection, writing.at, of_events)
        if of_people := [change for change in changes if change.table == ATTENDEES]:
            self._follow_orders(connection, writing, of_people)

    def doubted(self, connection: Connection, at: datetime, doubt: Doubt) -> None:
        """Record that something is doubted."""
        if self.endpoints:
            event_id = doubt.event_id or ""
            ext_id = rows.ext_ids(connection, [event_id]).get(event_id)
            self._put(connection, at, [("doubt", event_id, ext_id, doubt)])

    def ended(self, connection: Connection, run: Run, before: str | None, at: datetime) -> None:
        """Record that runs fail, or no longer fail; `before`: the outcome of the previous run."""
        run = structs.replace(run, requested_by=None)  # a person's name
        if run.whole and run.outcome == "failed" and before != "failed":
            self._put(connection, at, [("run.failed", "", None, run)])
        elif run.whole and run.outcome in ("ok", "partial") and before == "failed":
            self._put(connection, at, [("run.recovered", "", None, run)])

    def _follow_events(self, connection: Connection, at: datetime, changes: Sequence[Change]) -> None:
        shown = rows.shown_by_id(connection, {change.row_id for change in changes}, at)
        self._put(
            connection,
            at,
            (
                (kind, change.row_id, shown[change.row_id]["ext_id"], told)
                for change in changes
                for told in [shown[change.row_id] | {"changed": sorted(change.diff)}]
                for kind in _kinds(change)
            ),
        )

    def _follow_orders(self, connection: Connection, writing: Writing, changes: Sequence[Change]) -> None:
        news = _orders(changes)
        if not news:
            return
        order_ids, event_ids = map(set, zip(*news, strict=True))
        found = attendees.orders(connection, order_ids, event_ids)
        ext_ids = {each: writing.ext_ids[each] for each in event_ids if each in writing.ext_ids}
        if unlisted := event_ids - ext_ids.keys():
            ext_ids |= rows.ext_ids(connection, unlisted)
        told = []
        for key, (paid, refunded, held) in news.items():
            if order := found.get(key):
                data = {name: getattr(order, name) for name in OF_ORDER}
                # A place added to an order that was already paid is not a payment.
                kinds = ["order.paid"] if held and order.paid <= paid else []
                kinds += ["order.refunded"] if refunded else []
                told += [(kind, key[1], ext_ids.get(key[1]), data) for kind in kinds]
        self._put(connection, writing.at, told)

    def _put(
        self, connection: Connection, at: datetime, told: Iterable[tuple[str, str, object, object]]
    ) -> None:
        """Record for each endpoint what it wants of `told`: type, event, the event's `ext_id`, data."""
        messages = []
        for kind, event_id, ext_id, data in told:
            wanted = [each for each in self.endpoints if _wants(each, kind, event_id, ext_id)]
            body = _body(kind, at, data) if wanted else ""
            messages += [Message(_new_id(), each.name, kind, event_id, body) for each in wanted]
        if messages:
            deliveries.put(connection, messages, at)
            self.has_news = True


def _kinds(change: Change) -> Iterator[str]:
    """Yield the types under which a change of an event is sent."""
    if change.kind == "vanished":
        yield "event.vanished"
        return
    yield "event.new" if change.kind == "inserted" else "event.changed"
    was_full, is_full = change.diff.get("is_full", (None, None))
    if is_full and not was_full:
        yield "event.full"
    if was_full and not is_full:
        yield "event.reopened"


def _orders(changes: Iterable[Change]) -> dict[tuple[str, str], list[int]]:
    """Return, by order and event, how many places are newly paid, newly refunded, and newly paid and kept."""
    news: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for change in changes:
        if change.kind == "vanished" or not change.values[ORDER_ID]:
            continue
        order = change.values[ORDER_ID], change.event_id
        if change.diff.get("order_paid", (None, None))[1] is True:
            news[order][0] += 1
            news[order][2] += not change.values[DISABLED]
        if change.diff.get("disabled", (None, None))[1] is True:
            news[order][1] += 1
    return news


ORDER_ID, DISABLED = (FIELDS[ATTENDEES].index(name) for name in ("order_id", "disabled"))
"""Their positions among an attendee's values."""


def _wants(endpoint: WebhookConfig, kind: str, event_id: str, ext_id: object) -> bool:
    """Return whether an endpoint wants this; its `events` do not limit what concerns no single event."""
    is_meant = not (endpoint.events and event_id) or not {event_id, ext_id}.isdisjoint(endpoint.events)
    return kind in endpoint.on and is_meant


def _body(kind: str, at: datetime, data: object) -> str:
    told: Json = {"type": kind, "timestamp": at, "data": data}
    return msgspec.json.encode(told).decode()


def _new_id() -> str:
    """Return a unique id: 96 random bits, without the dot that the signature uses."""
    return f"msg_{secrets.token_hex(12)}"
