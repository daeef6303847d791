"""Billetweb's answers into records. Only this, `answers.py` and `fields.py` know its spelling. Pure.

The source of the shapes is the Billetweb API page (/events, /event/:id/avail, /tickets, /dates, /attendees)
and what its users met.

Strict per row: a row needs an id (a gauge its type). Lenient per field: a value that cannot be read leaves
its column at the default and named in `unreadable`, so that the mirror keeps what it has; the value itself
stays in `extra` under its wire name, next to the fields unknown here. Nothing that holds a secret link
(`key=…`) gets into a record's `extra` or into an error.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Generic, TypeVar

import msgspec

from syncd.billetweb.answers import document, rows
from syncd.billetweb.fields import (
    Columns,
    Table,
    UnfitError,
    columns_of,
    remembering,
    storable_items,
    to_code,
    to_count,
    to_decimal,
    to_flag,
    to_id,
    to_instant,
    to_integer,
    to_limit,
    to_map,
    to_safe_text,
    to_sale_time,
    to_tags,
    to_text,
)
from syncd.errors import DecodeError
from syncd.model import Attendee, Event, Gauge, Session, Ticket

BAD_AT_MOST = 20
"""How many unusable rows are named, as many as a run keeps errors; the others are counted."""

AT_ONCE = 32
"""How many attendees are read column by column: enough to be quick, and if one of them is odd, few enough to
be read one by one."""

R = TypeVar("R")
ReadAttendee = tuple[str, Attendee, tuple[str, ...]]  # id, record, the columns that could not be read


class Decoded(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """The records of one answer, by id.

    `bad` names the first unusable rows, with the reason ("events[2].id is missing"), and `bad_total` counts
    them all: if there are any, the read is not complete. `duplicates` counts the rows replaced by a later one
    with the same key. `unreadable`: by key, the columns of a record whose values could not be read.
    """

    records: dict[str, R]
    unreadable: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    bad: list[str] = msgspec.field(default_factory=list)
    bad_total: int = 0
    duplicates: int = 0

    def joined(self, later: "Decoded[R]") -> "Decoded[R]":
        """Return this and what came after it as one; do not use this one afterwards."""
        again = self.records.keys() & later.records.keys()
        self.records.update(later.records)
        unreadable = {key: columns for key, columns in self.unreadable.items() if key not in later.records}
        return Decoded(
            records=self.records,
            unreadable=unreadable | later.unreadable,
            bad=[*self.bad, *later.bad][:BAD_AT_MOST],
            bad_total=self.bad_total + later.bad_total,
            duplicates=self.duplicates + later.duplicates + len(again),
        )


def _same(convert: Callable[[object], object], *names: str) -> Table:
    """Return the table of fields whose column has their wire name."""
    return {name: (name, convert) for name in names}


_EVENT = _same(to_text, "ext_id", "name", "place", "description", "confirmation_message") | {
    "id": ("id", to_id),
    "start": ("starts_at", to_instant),
    "end": ("ends_at", to_instant),
    "multiple": ("multiple", to_flag),
    "shop": ("shop_url", to_safe_text),
    "online": ("online", to_flag),
    "tax_rate": ("tax_rate", to_decimal),
    "tax": ("tax_rate", to_decimal),  # the name in the API page's example
    "tags": ("tags", to_tags),
    "image": ("image_url", to_safe_text),
    "cover": ("cover_url", to_safe_text),
}
_GAUGE = _same(to_text, "type", "name", "status") | {
    "id": ("id", to_id),
    "quota": ("places_total", to_count),
    "avail": ("places_left", to_integer),
}
_TICKET = _same(to_text, "name", "full_name", "category", "label", "description", "instructions", "form") | {
    "id": ("id", to_id),
    **_same(to_decimal, "price", "commission", "tax"),
    "quota": ("places_total", to_limit),
    "visibility": ("visibility", to_code),
    "start_time": ("sale_starts_at", to_sale_time),
    "end_time": ("sale_ends_at", to_sale_time),
}
_SESSION = _same(to_text, "name", "place", "description", "instructions") | {
    "id": ("id", to_id),
    "start": ("starts_at", to_instant),
    "end": ("ends_at", to_instant),
    "disabled": ("visibility", to_code),
    "quota": ("places_total", to_limit),
    "total_sales": ("places_sold", to_count),
    "tickets": ("tickets", to_map),
    "last_update": ("last_update_at", to_instant),
}


def _session_id(value: object) -> str | None:
    """Return the session of an order, "0" if it has none."""
    session_id = to_id(value)
    return session_id if session_id and session_id.strip("0") else None


def _use(value: object) -> int | None:
    """Return how far a place was used, "0" to "3"; a number too large for a small integer is unreadable."""
    number = to_integer(value)
    if number is not None and not 0 <= number < 2**15:
        raise UnfitError
    return number


# In the order of the record's fields. One memory each: an order's dates are alike, and so are its rows.
_id, _word, _price, _date = map(remembering, (to_id, to_safe_text, to_decimal, to_instant))
_state, _yes = map(remembering, (to_code, to_flag))
_ATTENDEE: Table = {
    "id": ("id", to_id),
    "event": ("event_id", _id),
    "ticket_id": ("ticket_id", _id),
    "order_session": ("session_id", remembering(_session_id)),
    "order_id": ("order_id", _id),
    "order_ext_id": ("order_ext_id", _word),
    "ext_id": ("ext_id", to_safe_text),
    "barcode": ("barcode", to_safe_text),
    "category": ("category", _word),
    "price": ("price", _price),
    "order_price": ("order_price", _price),
    "used": ("used", remembering(_use)),
    "used_date": ("used_at", _date),
    "disabled": ("disabled", _yes),
    "order_paid": ("order_paid", _yes),
    "order_payment_type": ("order_payment_type", _word),
    "order_origin": ("order_origin", _word),
    "order_accreditation": ("order_accreditation", _state),
    "pass": ("pass_id", _state),
    "seating_location": ("seating_location", _word),
    "order_date": ("ordered_at", _date),
    "order_payment_date": ("paid_at", _date),
    "last_update": ("last_update_at", _date),
}
_FULL = {
    **_ATTENDEE,
    **_same(to_safe_text, "firstname", "name", "email"),
    **_same(_word, "order_firstname", "order_name", "order_email", "order_language"),
    **_same(_word, "reduction_code", "authorization_code"),
    **_same(to_map, "custom", "custom_order"),
}
# A scanner's address, and links that open the order, are never stored; the rest stands in other tables.
_LEFT_OUT = {"lane", "product_management", "product_download", "order_management"}
_LEFT_OUT |= {"event", "event_name", "event_start", "event_tags", "session_start", "ticket"}
_HANDLED = _LEFT_OUT | _FULL.keys()


class _Sale(msgspec.Struct):
    event: object = None


_SALE = msgspec.json.Decoder(_Sale)


# -- rows


# `before` is how many rows of the answer came before this part of it. Each function raises DecodeError for a
# body that is not an array, and all but the first one for an unusable row, naming row and field: one that is
# not an object, has no id (a gauge: no type), or must name its event and does not.


def decode_events(body: bytes, *, account: str, before: int = 0) -> Decoded[Event]:
    """Return the events of `/events` by id; an unusable row is counted as `bad`, the others are kept."""
    found, bad, bad_total = [], [], 0
    for index, row in enumerate(rows(body), before):
        try:
            columns = columns_of(row, _EVENT, f"events[{index}]")
        except DecodeError as error:
            bad_total += 1
            if bad_total <= BAD_AT_MOST:
                bad.append(str(error))
        else:
            event = Event(account=account, **columns.values)
            found.append((event.id, event, columns.unreadable))
    return _keyed(found, bad, bad_total)


def decode_gauges(body: bytes, *, event_id: str, before: int = 0) -> Decoded[Gauge]:
    """Return the gauges of `/event/:id/avail` by id."""
    found = (_gauge(row, event_id) for row in _each(body, _GAUGE, "gauges", before, required="type"))
    return _keyed((gauge.id, gauge, unreadable) for gauge, unreadable in found)


def decode_tickets(body: bytes, *, event_id: str, before: int = 0) -> Decoded[Ticket]:
    """Return the tariffs of `/event/:id/tickets` by id; `position` counts from 1 in the answer's order.

    `places_total` is the quota, the other figures come from `availability.py`.
    """
    return _keyed(
        (row.values["id"], Ticket(event_id=event_id, position=n, **row.values), row.unreadable)
        for n, row in enumerate(_each(body, _TICKET, "tickets", before), before + 1)
    )


def decode_sessions(body: bytes, *, event_id: str, before: int = 0) -> Decoded[Session]:
    """Return the sessions of `/event/:id/dates` by id, with their figures as in `decode_tickets`."""
    return _keyed(
        (row.values["id"], Session(event_id=event_id, **row.values), row.unreadable)
        for row in _each(body, _SESSION, "sessions", before)
    )


def decode_attendees(
    body: bytes, *, event_id: str | None = None, full: bool, before: int = 0
) -> Decoded[Attendee]:
    """Return the attendees of `/event/:id/attendees` by id, or those of `/attendees`, without an `event_id`.

    The columns of PERSONAL are filled only if `full`; links and `lane` never are.
    """
    return _keyed(_attendees(rows(body), before, event_id, full=full))


def sold(body: bytes, *, before: int = 0) -> list[tuple[str, int]]:
    """Return the event and a digest of each row of `/attendees`, and nothing else.

    A digest has 64 bits, is the same in every process and changes with any byte of the row.
    """
    found: list[tuple[str, int]] = []
    for index, raw in enumerate(document(body, list[msgspec.Raw]), before):
        try:
            event_id = to_id(_SALE.decode(raw).event)
        except ValueError:
            event_id = None
        if event_id is None:
            row, subject = document(bytes(raw)), f"attendees[{index}]"
            event_id = columns_of(row, _ATTENDEE, subject, required=("event",)).values["event_id"]
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        found.append((event_id, int.from_bytes(digest)))
    return found


def _attendees(found: list[object], before: int, event_id: str | None, *, full: bool) -> list[ReadAttendee]:
    """Return attendees; where some are odd, they are read one by one."""
    read: list[ReadAttendee] = []
    for start in range(0, len(found), AT_ONCE):
        some = found[start : start + AT_ONCE]
        try:
            read += _quickly(some, event_id, full=full)
        except (TypeError, ValueError):
            read += [
                _carefully(row, f"attendees[{index}]", event_id, full=full)
                for index, row in enumerate(some, before + start)
            ]
    return read


def _quickly(found: list[object], event_id: str | None, *, full: bool) -> list[ReadAttendee]:
    """Return attendees, column by column, in a third of the time.

    Raises ValueError or TypeError if a value does not fit, or a row is not an object.
    """
    table = _FULL if full else _ATTENDEE
    wire = zip(*[map(dict.get, repeat(row), table) for row in found], strict=True)  # type: ignore[arg-type]
    columns: list[Sequence[Any]] = [
        [*map(convert, values)] for (_, convert), values in zip(table.values(), wire, strict=True)
    ]
    if event_id:
        columns[1] = [event_id] * len(found)
    if not all(map(all, columns[:2])):
        raise UnfitError
    if full:
        columns.append([_unknown(row) for row in found])
    return [*zip(columns[0], map(Attendee, *columns), repeat(()))]


def _unknown(row: Any) -> dict[str, object]:
    """Return the fields of an attendee that are unknown here."""
    if _HANDLED.issuperset(row):
        return {}
    return storable_items({name: row[name] for name in sorted(row.keys() - _HANDLED)})


def _carefully(row: object, subject: str, event_id: str | None, *, full: bool) -> ReadAttendee:
    required = ("id",) if event_id else ("id", "event")
    columns, unreadable = columns_of(row, _FULL if full else _ATTENDEE, subject, required=required)
    left = columns.pop("extra")
    if full:
        columns["extra"] = {name: value for name, value in left.items() if name not in _LEFT_OUT}
    if event_id:
        columns["event_id"] = event_id
    return columns["id"], Attendee(**columns), unreadable


def _keyed(
    rows: Iterable[tuple[str, R, tuple[str, ...]]], bad: Iterable[str] = (), bad_total: int = 0
) -> Decoded[R]:
    """Return the records by key, with the unreadable columns; of several with one key the last."""
    found = list(rows)
    records = {key: record for key, record, _ in found}
    last = {key: columns for key, _, columns in found}
    return Decoded(
        records=records,
        unreadable={key: columns for key, columns in last.items() if columns},
        bad=list(bad),
        bad_total=bad_total,
        duplicates=len(found) - len(records),
    )


def _gauge(row: Columns, event_id: str) -> tuple[Gauge, tuple[str, ...]]:
    """Return a gauge; its name replaces a missing or unreadable id."""
    columns, unreadable = row.values, tuple(column for column in row.unreadable if column != "id")
    row_id = columns.pop("id", "")
    if columns.get("places_left", 0) < 0:
        columns.update(places_left=None, unlimited=True)
    session_id = row_id if columns["type"] == "session" else ""
    gauge_id = row_id or columns.get("name", "")
    return Gauge(event_id=event_id, session_id=session_id, gauge_id=gauge_id, **columns), unreadable


def _each(body: bytes, table: Table, kind: str, before: int, *, required: str = "id") -> Iterator[Columns]:
    for index, row in enumerate(rows(body), before):
        yield columns_of(row, table, f"{kind}[{index}]", required=(required,))
