"""Billetweb's answers into records: the only room that knows Billetweb's spelling. Pure.

The source of the shapes is the Billetweb API page (/events, /event/:id/avail, /tickets, /dates) and what
its users met: nearly everything arrives as a string, `false` stands for a missing number, `[]` for an
empty object, `""` or a zero date for nothing, and times are the wall clock of Paris.

Strict per row: a row needs an id (a gauge its type). Lenient per field: a value that does not fit leaves
its column at the default, and stays in `extra` under its wire name next to the fields unknown here.
Nothing that holds a secret link (`key=…`) gets into a record's `extra` or into an error.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

import msgspec

from syncd.errors import (
    AuthError,
    BilletwebError,
    ChallengeError,
    DecodeError,
    RateLimited,
    RestrictedError,
    StatusError,
    TransportError,
)
from syncd.model import Event, Gauge, Session, Ticket

ZONE = "Europe/Paris"
CHALLENGE_MARKER = b"cdn-cgi/challenge-platform"
RATE_LIMIT_WAIT_S = 60.0  # the limit is counted per minute, and no Retry-After was ever seen
RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 3600.0
SAID_MAX_CHARS = 160
EXTRA_MAX_DEPTH = 16  # well below what any JSON writer down the line can take

_TOKEN_STATUS = {"unauthorized": 401, "rate_limiting": 429}  # what an error means, sent with 200 or not
_SECRET_LINK = re.compile(r"key(?:=|%3d)", re.IGNORECASE)
_CREDENTIAL = re.compile(r"key(?:=|%3d)\S*|\b[0-9a-f]{16,}\b", re.IGNORECASE)  # Billetweb's keys are hex
_DIGITS = re.compile(r"[0-9]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")  # sums of such still fit a database's 64 bits
_DECIMAL = re.compile(r"[+-]?[0-9]{1,8}(\.[0-9]{1,4})?")  # numeric(12, 4)
_WALL_CLOCK = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")

K = TypeVar("K")
R = TypeVar("R")
GaugeKey = tuple[str, str, str, str]  # event_id, session_id, type, gauge_id
_Table = dict[str, tuple[str, Callable[[object], object]]]  # wire name -> (column, converter)


class Decoded(msgspec.Struct, Generic[K, R], frozen=True, kw_only=True):
    """The records of one answer, by key.

    `bad` names each row that could not be used, with the reason ("events[2].id is missing"): where there
    are any, the read is not complete. `duplicates` counts the rows replaced by a later one of their key.
    """

    records: dict[K, R]
    bad: list[str] = msgspec.field(default_factory=list)
    duplicates: int = 0


class _UnfitError(ValueError):
    """A value that does not fit its column."""


# -- whole answers


def rows(body: bytes) -> list[object]:
    """Give the rows of an answer: the bare array that every list of Billetweb is.

    A UTF-8 byte order mark is tolerated. Raises DecodeError for anything else, also for an error object:
    `classify` comes first.
    """
    document = _document(body)
    if not isinstance(document, list):
        raise DecodeError(_not_an_array(document))
    return document


def classify(body: bytes, status: int, retry_after: str | None, *, now: datetime) -> BilletwebError | None:
    """Give the error that an answer stands for, or None for a success: 2xx and the beginning of an array.

    Decided by the error's token first, then by the challenge page's marker, then by the status, whatever
    the content type says: Billetweb answers errors with 200 too. Whether the array is complete is found out
    by decoding it. `retry_after` is the header's text.
    """
    if 200 <= status < 300 and body.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):  # noqa: PLR2004
        return None
    try:
        document, malformed = _document(body), ""
    except DecodeError as error:
        document, malformed = None, str(error)
    said = document if isinstance(document, dict) and "error" in document else {}
    token, description = _line(said.get("error")), _line(said.get("description"))
    detail = ", ".join(filter(None, (f"HTTP {status}", token, description)))
    meant = _TOKEN_STATUS.get(token, status)
    failure: BilletwebError
    if malformed and (CHALLENGE_MARKER in body or status == 403):  # noqa: PLR2004  # Billetweb speaks JSON
        failure = ChallengeError(f"Billetweb's protection answered with a page for browsers ({detail})")
    elif token == "unauthorized" and "limited rights" in str(said.get("description")).lower():  # noqa: S105 a word
        failure = RestrictedError(f"the key has limited rights and may not read this ({detail})")
    elif said or meant not in range(200, 300):
        failure = _refusal(meant, detail, retry_after_s(retry_after, now=now))
    else:
        failure = DecodeError(malformed or _not_an_array(document))
    failure.status = status
    return failure


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Give the seconds that a Retry-After header asks to wait, within 1 s and 1 h; None if it is unusable.

    Both forms of RFC 9110 §10.2.3 are read: seconds, and an HTTP date, compared with `now` (aware).
    """
    text = (header or "").strip()
    if _INTEGER.fullmatch(text):
        wait_s = float(text)
    else:
        try:
            until = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        wait_s = (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()
    return min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)


def _document(body: bytes) -> object:
    text = body.removeprefix(codecs.BOM_UTF8).strip()
    if not text:
        raise DecodeError("Billetweb's answer is empty where a JSON array is due")
    if text.startswith(b"<"):
        raise DecodeError("Billetweb's answer is a page where a JSON array is due")
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    # Raised outside the handler, for the cause may hold a piece of the body.
    raise DecodeError(f"Billetweb's answer is not well-formed JSON: {reason}")


def _not_an_array(document: object) -> str:
    found = "null" if document is None else "an object" if isinstance(document, dict) else "a single value"
    return f"Billetweb's answer is {found} where a JSON array is due"


def _line(value: object) -> str:
    """Make a text of upstream fit for a message: one short line, without what looks like a credential."""
    if not isinstance(value, str):
        return ""
    text = _CREDENTIAL.sub("…", " ".join(value.split()))
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= SAID_MAX_CHARS else text[: SAID_MAX_CHARS - 1] + "…"


def _refusal(status: int, detail: str, wait_s: float | None) -> BilletwebError:
    match status // 100, status:
        case _, 401 | 403:
            return AuthError(f"Billetweb refused the user or the key ({detail})")
        case _, 429:
            wait_s = wait_s or RATE_LIMIT_WAIT_S
            message = f"Billetweb refused for too many requests ({detail}); it wants {wait_s:.0f} s of rest"
            return RateLimited(message, wait_s=wait_s)
        case (5, _) | (_, 408):
            return TransportError(f"Billetweb cannot answer now ({detail})", wait_s=wait_s)
        case 3, _:
            advice = "a redirect is not followed; check billetweb.base_url"
            return StatusError(f"Billetweb sends the request elsewhere ({detail}): {advice}")
    return StatusError(f"Billetweb refused the request ({detail})")


# -- fields: a converter gives None for a missing value and raises ValueError for one that does not fit


def _matching(value: object, pattern: re.Pattern[str]) -> str | None:
    """Give a string or number as trimmed text of the pattern; None for "", null and PHP's false."""
    if value is None or value is False:
        return None
    text = str(value).strip() if isinstance(value, str | int | float) else "?"
    if text and not pattern.fullmatch(text):
        raise _UnfitError
    return text or None


def _id(value: object) -> str | None:
    return _matching(value, _DIGITS)


def _text(value: object) -> str | None:
    """Give a text as it is, spaces and entities included; NUL alone goes: PostgreSQL cannot store it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _UnfitError
    return str(value).replace("\0", "") or None


def _code(value: object) -> str | None:
    """Give a value of an open enumeration, which is also met as a flag."""
    return str(int(value)) if isinstance(value, bool) else _text(value)


def _url(value: object) -> str | None:
    text = _text(value)
    if text is not None and _SECRET_LINK.search(text):
        raise _UnfitError
    return text


def _flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    number = _integer(value)
    if number not in (None, 0, 1):
        raise _UnfitError
    return None if number is None else number == 1


def _integer(value: object) -> int | None:
    text = _matching(value, _INTEGER)
    if text is None:
        return None
    return int(text)


def _count(value: object) -> int | None:
    """Give a number of places; a negative one says that none is known."""
    number = _integer(value)
    return None if number is None or number < 0 else number


def _limit(value: object) -> int | None:
    """Give the quota of a ticket or session, where 0 too says that no limit is known."""
    return _count(value) or None


def _decimal(value: object) -> Decimal | None:
    text = _matching(value, _DECIMAL)
    return None if text is None else Decimal(text)


def _wall_clock(value: object) -> datetime | None:
    """Give the instant of a Paris wall time, in UTC; None for a zero date.

    In the doubled hour of autumn the first pass is meant (fold=0). In the hour that spring leaves out the
    offset of before counts: 02:30 is the instant of 03:30.
    """
    text = _matching(value, _WALL_CLOCK)
    if text is None or text.startswith("0000-00-00"):
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZONE)).astimezone(UTC)
    except OverflowError as error:  # at either end of the calendar
        raise _UnfitError from error


def _sale_time(value: object) -> datetime | None:
    """Give an instant written as UNIX seconds (0 for none) or as a wall time: sales were met with both."""
    try:
        seconds = _integer(value)
    except ValueError:
        return _wall_clock(value)
    if not seconds:
        return None
    if seconds < 0:
        raise _UnfitError
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError) as error:
        raise _UnfitError from error


def _tags(value: object) -> list[str]:
    if value is None or value is False or value == "":
        return []
    if not isinstance(value, list):
        raise _UnfitError
    return [tag for tag in map(_text, value) if tag is not None]


def _map(value: object) -> dict[str, object] | None:
    """Give an object of any content; PHP writes an empty one as `[]`."""
    if value is None or value is False or value in ("", []):
        return None
    if not isinstance(value, dict) or not _is_storable(value):
        raise _UnfitError
    return value


def _texts(*names: str) -> _Table:
    """Give the table of those text fields whose column has their wire name."""
    return {name: (name, _text) for name in names}


_EVENT = _texts("ext_id", "name", "place", "description", "confirmation_message") | {
    "id": ("id", _id),
    "start": ("starts_at", _wall_clock),
    "end": ("ends_at", _wall_clock),
    "multiple": ("multiple", _flag),
    "shop": ("shop_url", _url),
    "online": ("online", _flag),
    "tax_rate": ("tax_rate", _decimal),
    "tax": ("tax_rate", _decimal),  # the name in the API page's example
    "tags": ("tags", _tags),
    "image": ("image_url", _url),
    "cover": ("cover_url", _url),
}
_GAUGE = _texts("type", "name", "status") | {
    "id": ("id", _id),
    "quota": ("places_total", _count),
    "avail": ("places_left", _integer),
}
_TICKET = _texts("name", "full_name", "category", "label", "description", "instructions", "form") | {
    "id": ("id", _id),
    "price": ("price", _decimal),
    "commission": ("commission", _decimal),
    "tax": ("tax", _decimal),
    "quota": ("places_total", _limit),
    "visibility": ("visibility", _code),
    "start_time": ("sale_starts_at", _sale_time),
    "end_time": ("sale_ends_at", _sale_time),
}
_SESSION = _texts("name", "place", "description", "instructions") | {
    "id": ("id", _id),
    "start": ("starts_at", _wall_clock),
    "end": ("ends_at", _wall_clock),
    "disabled": ("visibility", _code),
    "quota": ("places_total", _limit),
    "total_sales": ("places_sold", _count),
    "tickets": ("tickets", _map),
    "last_update": ("last_update_at", _wall_clock),
}


# -- rows


def decode_events(body: bytes, *, account: str) -> Decoded[str, Event]:
    """Give the events of `/events` by id; an unusable row is named in `bad`, and the others stand.

    Raises DecodeError for a body that is no array.
    """
    events, bad = [], []
    for index, row in enumerate(rows(body)):
        try:
            events.append(Event(account=account, **_columns(row, _EVENT, f"events[{index}]")))
        except DecodeError as error:
            bad.append(str(error))
    return _keyed(((event.id, event) for event in events), bad)


def decode_gauges(body: bytes, *, event_id: str) -> Decoded[GaugeKey, Gauge]:
    """Give the gauges of `/event/:id/avail`, by (event_id, session_id, type, gauge_id).

    Raises DecodeError, naming row and field, for a row that is no object or has no type.
    """
    found = [_gauge(row, event_id) for row in _each(body, _GAUGE, "gauges", required="type")]
    return _keyed(((gauge.event_id, gauge.session_id, gauge.type, gauge.gauge_id), gauge) for gauge in found)


def decode_tickets(body: bytes, *, event_id: str) -> Decoded[str, Ticket]:
    """Give the tariffs of `/event/:id/tickets` by id; `position` counts from 1 in the answer's order.

    `places_total` is the quota, the other figures come from `availability.py`. Raises DecodeError, naming
    row and field, for a row that is no object or has no id.
    """
    found = [
        Ticket(event_id=event_id, position=n, **row)
        for n, row in enumerate(_each(body, _TICKET, "tickets"), 1)
    ]
    return _keyed((ticket.id, ticket) for ticket in found)


def decode_sessions(body: bytes, *, event_id: str) -> Decoded[str, Session]:
    """Give the sessions of `/event/:id/dates` by id.

    `places_total` is the quota, the other figures come from `availability.py`. Raises DecodeError, naming
    row and field, for a row that is no object or has no id.
    """
    found = [Session(event_id=event_id, **row) for row in _each(body, _SESSION, "sessions")]
    return _keyed((session.id, session) for session in found)


def _keyed(pairs: Iterable[tuple[K, R]], bad: Iterable[str] = ()) -> Decoded[K, R]:
    """Give the records by key; of several with one key the last wins."""
    found = list(pairs)
    records = dict(found)
    return Decoded(records=records, bad=list(bad), duplicates=len(found) - len(records))


def _gauge(columns: dict[str, Any], event_id: str) -> Gauge:
    row_id = columns.pop("id", "")
    if columns.get("places_left", 0) < 0:
        columns.update(places_left=None, unlimited=True)
    session_id = row_id if columns["type"] == "session" else ""
    gauge_id = row_id or columns.get("name", "")
    return Gauge(event_id=event_id, session_id=session_id, gauge_id=gauge_id, **columns)


def _each(body: bytes, table: _Table, kind: str, *, required: str = "id") -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows(body)):
        yield _columns(row, table, f"{kind}[{index}]", required=required)


def _columns(row: object, table: _Table, subject: str, *, required: str = "id") -> dict[str, Any]:
    """Give a row's columns, those that have a value, and `extra`. Raises DecodeError without `required`."""
    if not isinstance(row, dict):
        raise DecodeError(f"{subject} is {'null' if row is None else 'not an object'}")
    columns: dict[str, Any] = {}
    read = set()
    for name, (column, convert) in table.items():
        if name not in row or column in columns:
            continue
        try:
            value = convert(row[name])
        except ValueError:
            continue
        read.add(name)
        if value is not None:
            columns[column] = value
    if required not in columns:
        unusable = required in row and required not in read
        raise DecodeError(f"{subject}.{required} is {'unusable' if unusable else 'missing'}")
    left = {name: value for name, value in row.items() if name not in read}
    columns["extra"] = {name: value for name, value in left.items() if _is_storable([name, value])}
    return columns


def _is_storable(value: object, depth: int = EXTRA_MAX_DEPTH) -> bool:
    """Tell whether no part of the value is a secret link, a NUL, or too deep for a database's JSON."""
    if isinstance(value, str):
        return "\0" not in value and not _SECRET_LINK.search(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return depth > 0 and all(_is_storable(item, depth - 1) for item in value)
    return True
