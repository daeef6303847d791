"""Events as files for others: JSON, schema.org's JSON-LD, a calendar, a table. Pure: events in, bytes out.

The same events give the same bytes: these do not show when they were written.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from syncd.database.rows import PublicEvent
from syncd.model import FeedFormat, Json, Ticket

if TYPE_CHECKING:
    import icalendar

COLUMNS = (
    *("id", "ext_id", "name", "starts_at", "ends_at", "place", "shop_url"),
    *("places_total", "places_left", "unlimited", "is_full", "sale_status"),
)
SCHEMA = "https://schema.org"
PRODUCT = "-//syncd//Billetweb//EN"
"""Without the version: a new one is not news of the events."""
FORMULA = re.compile(r"""\A(?="*[=+@\t\r\n-])|(?<=[;\t\n\r])(?="*[=+@-])""")
"""The place before what a spreadsheet takes for a formula (OWASP, CSV injection). If ";" separates cells, as
in France, or a tab, one may begin in the middle of a text."""


def render(form: FeedFormat, events: Sequence[PublicEvent]) -> bytes:
    """Return the content of a feed in this format."""
    return _FORMATS[form](events)


def _json(events: Sequence[PublicEvent]) -> bytes:
    return _document({"events": [event.shown for event in events]})


def _document(content: object) -> bytes:
    """Return JSON that is safe inside a page's `<script>`: no text in it can end that."""
    text = msgspec.json.format(msgspec.json.encode(content), indent=2)
    return text.replace(b"<", b"\\u003c") + b"\n"  # a "<" occurs only in strings


# --- schema.org


def _jsonld(events: Sequence[PublicEvent]) -> bytes:
    return _document([_schema_event(event) for event in events])


def _schema_event(event: PublicEvent) -> Json:
    """Return an event in schema.org's words, without what is unknown."""
    shown = event.shown
    place = shown["place"]
    return {
        "@context": SCHEMA,
        "@type": "Event",
        "identifier": shown["id"],
        **_known(
            name=shown["name"],
            url=shown["shop_url"],
            startDate=shown["starts_at"],
            endDate=shown["ends_at"],
            location=place and {"@type": "Place", "name": place, "address": place},
            maximumAttendeeCapacity=shown["places_total"],
            remainingAttendeeCapacity=shown["places_left"],
        ),
        "eventStatus": f"{SCHEMA}/EventScheduled",
        "offers": [_schema_offer(shown, ticket) for ticket in event.offers],
    }


def _schema_offer(shown: Mapping[str, Any], ticket: Ticket) -> Json:
    price = None if ticket.price is None else _amount(ticket.price)
    return {
        "@type": "Offer",
        **_known(name=(ticket.full_name or ticket.name or "").strip(), price=price, url=shown["shop_url"]),
        "priceCurrency": "EUR",
        "availability": f"{SCHEMA}/{'SoldOut' if shown['is_full'] or ticket.is_full else 'InStock'}",
    }


def _known(**values: Any) -> Json:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _amount(price: Decimal) -> str:
    """Return an amount with cents, or with more digits if it has them."""
    return str(price.quantize(Decimal("0.01")) if price == round(price, 2) else price)


# --- calendar


def _ics(events: Sequence[PublicEvent]) -> bytes:
    """Return a calendar of the events whose start is known: others have no place in it."""
    from icalendar import Calendar, Timezone  # noqa: PLC0415 - megabytes that only this format needs

    calendar = Calendar()
    calendar.add("prodid", PRODUCT)
    calendar.add("version", "2.0")
    for event in events:
        if event.shown["starts_at"]:
            calendar.add_component(_calendar_event(event))
    if not calendar.subcomponents:  # RFC 5545 requires one (section 3.6)
        calendar.add_component(Timezone.from_tzid("UTC"))
    content: bytes = calendar.to_ical()
    return content


def _calendar_event(event: PublicEvent) -> "icalendar.Event":
    from icalendar import Event  # noqa: PLC0415

    shown, entry = event.shown, Event()
    # It never changes, as RFC 7986 requires, and does not show the account's number.
    entry.add("uid", str(uuid5(NAMESPACE_URL, f"https://www.billetweb.fr/{event.account}/{shown['id']}")))
    entry.add("dtstamp", event.changed_at.replace(microsecond=0))
    entry.add("dtstart", shown["starts_at"])
    texts = {"summary": shown["name"], "location": shown["place"], "url": shown["shop_url"]}
    for name, text in texts.items():
        if text:
            entry.add(name, _printable(text))
    if shown["ends_at"] and shown["ends_at"] > shown["starts_at"]:  # RFC 5545 allows no other end
        entry.add("dtend", shown["ends_at"])
    return entry


def news(form: FeedFormat, content: bytes) -> bytes:
    """Return the part of a content that is about events: DTSTAMP also changes with what is not shown."""
    return re.sub(rb"(?m)^DTSTAMP:.*$", b"", content) if form == "ics" else content


def _printable(text: str) -> str:
    """Return a text on one line: control characters are not allowed in a calendar, and could begin a line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# --- table


def _csv(events: Sequence[PublicEvent]) -> bytes:
    """Return a table by RFC 4180, in UTF-8."""
    import csv  # noqa: PLC0415 - only this format needs it

    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(COLUMNS)
    writer.writerows([_cell(event.shown[name]) for name in COLUMNS] for event in events)
    return rows.getvalue().encode()


def _cell(value: object) -> str:
    """Return a value as a cell. Text that a spreadsheet would execute gets a leading apostrophe."""
    if value is None:
        return ""
    if isinstance(value, str):
        return FORMULA.sub(r"\g<0>'", value)
    if isinstance(value, datetime):
        return str(msgspec.to_builtins(value))  # RFC 3339, as in JSON
    return str(value).lower()


_FORMATS: Mapping[FeedFormat, Callable[[Sequence[PublicEvent]], bytes]] = {
    "json": _json,
    "jsonld": _jsonld,
    "ics": _ics,
    "csv": _csv,
}
