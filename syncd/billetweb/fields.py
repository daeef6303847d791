"""Billetweb's field values into column values. Pure.

The API page and its users show: nearly everything arrives as a string, `false` stands for a missing
number, `[]` for an empty object, `""` or a zero date for nothing, and times are the wall clock of Paris.
A converter returns None for a missing value and raises ValueError for one that cannot be read; a clear value
is read, however it is written: `"0.0"` is 0, `"12,50"` is 12.50, an ISO instant is an instant.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from syncd.errors import DecodeError

ZONE = "Europe/Paris"
EXTRA_MAX_DEPTH = 16  # well below what any JSON writer down the line can take
REMEMBERED_MAX = 2048
REMEMBERED_CHARS = 64

KEY_IN_LINK = r"key(?:=|%(?:25)*3d|&#(?:0*61|x0*3d);|&equals;)"
_SECRET_LINK = re.compile(KEY_IN_LINK, re.IGNORECASE)
ID_MAX = 32  # Billetweb's ids have 4 to 9 digits, and no index takes a key of any length
_DIGITS = re.compile(rf"[0-9]{{1,{ID_MAX}}}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}([.,]0{0,2})?")  # sums of such still fit a database's 64 bits
_DECIMAL = re.compile(r"[+-]?[0-9]{1,8}(\.[0-9]{1,20})?")
_THOUSANDS = re.compile(r"(?<=[0-9])[ \u00a0\u202f](?=[0-9]{3}(?![0-9]))")  # as French is written
_CENTS = re.compile(r",(?=[0-9]{1,2}$)")  # before three digits a comma may mean thousands
_LEAST_AMOUNT = Decimal("0.0001")  # of numeric(12, 4); PHP writes 12.6 as 12.600000000000001 at times
AMOUNT_BELOW = 10**8
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ]([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?)([Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_NO_DATE = re.compile(r"(0000-00-00|-0001-11-30)([Tt ].*)?")  # as MySQL has it, and as PHP writes that

_FLAGS = {"true": True, "false": False}

SCALARS = (str, int, float)
Table = dict[str, tuple[str, Callable[[object], object]]]  # wire name -> (column, converter)


class UnfitError(ValueError):
    """A value that does not fit its column."""


class Columns(NamedTuple):
    """A row's columns that have a value, with `extra`; and the names of the unreadable ones."""

    values: dict[str, Any]
    unreadable: tuple[str, ...]


def _matching(value: object, pattern: re.Pattern[str]) -> str | None:
    """Return a string or number as trimmed text of the pattern; None for "", null and PHP's false."""
    if value is None or value is False:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip() if isinstance(value, SCALARS) else "?"
    if text and not pattern.fullmatch(text):
        raise UnfitError
    return text or None


def to_id(value: object) -> str | None:
    """Return an id: digits."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= ID_MAX:
        return value
    return _matching(value, _DIGITS)


def to_text(value: object) -> str | None:
    """Return a text unchanged, spaces and entities included, but without NUL: PostgreSQL cannot store it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, SCALARS):
        raise UnfitError
    return str(value).replace("\0", "") or None


def to_code(value: object) -> str | None:
    """Return a value of an open enumeration, which also occurs as a flag."""
    return str(int(value)) if isinstance(value, bool) else to_safe_text(value)


def to_safe_text(value: object) -> str | None:
    """Return a text, None for one that holds a secret link: that is never stored."""
    if isinstance(value, str) and value.isprintable() and not _is_secret(value):  # nearly always
        return value or None
    text = to_text(value)
    return None if text is None or _is_secret(text) else text


def to_flag(value: object) -> bool | None:
    """Return a yes or no, written as 1 or 0, or in full."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (said := _FLAGS.get(value.strip().lower())) is not None:
        return said
    number = to_integer(value)
    if number not in (None, 0, 1):
        raise UnfitError
    return None if number is None else number == 1


def to_integer(value: object) -> int | None:
    """Return a whole number."""
    if isinstance(value, str):
        value = _THOUSANDS.sub("", value)
    text = _matching(value, _INTEGER)
    return None if text is None else int(text.replace(",", ".").partition(".")[0])


def to_count(value: object) -> int | None:
    """Return a number of places; a negative one means unknown."""
    number = to_integer(value)
    return None if number is None or number < 0 else number


def to_limit(value: object) -> int | None:
    """Return the quota of a ticket or session; 0 also means that no limit is known."""
    return to_count(value) or None


def to_decimal(value: object) -> Decimal | None:
    """Return an amount of money or a rate, exact to 4 decimals, with as many as it needs: so it is stored."""
    if isinstance(value, str):
        value = _CENTS.sub(".", _THOUSANDS.sub("", value.strip().removesuffix("€").rstrip()))
    text = _matching(value, _DECIMAL)
    if text is None:
        return None
    amount = Decimal(text).quantize(_LEAST_AMOUNT)
    if abs(amount) >= AMOUNT_BELOW:
        raise UnfitError
    return Decimal(f"{amount.normalize() + 0:f}")  # which is no longer -0, as a database has none


def to_instant(value: object) -> datetime | None:
    """Return the instant of a Paris wall time, in UTC; None for a zero date.

    In the repeated hour of autumn the first pass is meant (fold=0). In the skipped hour of spring the earlier
    offset counts: 02:30 is the instant of 03:30. An instant with an offset keeps it; a date without a time is
    midnight.
    """
    text = value.strip() if isinstance(value, str) else _matching(value, _INSTANT)
    if not text:
        return None
    found = _INSTANT.fullmatch(text)
    try:
        if not found:
            raise UnfitError
        day, time, offset = found.groups()
        at = datetime.fromisoformat(f"{day} {time or '00:00'}{(offset or 'Z').upper()}")
        return at.astimezone(UTC) if offset else at - (_paris().utcoffset(at) or timedelta(0))
    except OverflowError as error:  # at either end of the calendar
        raise UnfitError from error
    except ValueError:
        if _NO_DATE.fullmatch(text):
            return None
        raise


@cache
def _paris() -> ZoneInfo:
    return ZoneInfo(ZONE)


def to_sale_time(value: object) -> datetime | None:
    """Return an instant written as UNIX seconds (0 for none) or as a wall time: sales have both."""
    try:
        seconds = to_integer(value)
    except ValueError:
        return to_instant(value)
    if not seconds:
        return None
    if seconds < 0:
        raise UnfitError
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError) as error:
        raise UnfitError from error


def to_tags(value: object) -> list[str]:
    """Return a list of texts, without the empty ones."""
    if value is None or value is False or value == "":
        return []
    if not isinstance(value, list):
        raise UnfitError
    return [tag for tag in map(to_text, value) if tag is not None]


def to_map(value: object) -> dict[str, object] | None:
    """Return an object of any content, without what may not be stored; PHP writes an empty one as `[]`."""
    if value is None or value is False or value in ("", []):
        return None
    if not isinstance(value, dict):
        raise UnfitError
    return value if _is_plain(value) else storable_items(value)


class _Memory(dict[object, object]):
    """A converter's results for the latest texts.

    Other values are not kept: 1, 1.0 and True are one key to a dict. Nor are long texts.
    """

    def __init__(self, convert: Callable[[object], object]) -> None:
        self._convert = convert

    def __missing__(self, value: object) -> object:
        made = self._convert(value)
        if value is None or (isinstance(value, str) and len(value) <= REMEMBERED_CHARS):
            if len(self) >= REMEMBERED_MAX:
                self.clear()
            self[value] = made
        return made


def remembering(convert: Callable[[object], object]) -> Callable[[object], object]:
    """Return a converter with a cache, for columns in which few texts recur: 10 times as fast.

    Its results are shared, so they must be immutable. It raises TypeError for a list or an object.
    """
    return _Memory(convert).__getitem__


def columns_of(row: object, table: Table, subject: str, *, required: tuple[str, ...] = ("id",)) -> Columns:
    """Return a row's columns. Unreadable and unknown fields are in `extra`, under their wire names.

    Raises DecodeError if one of the `required` fields has no value.
    """
    if not isinstance(row, dict):
        raise DecodeError(f"{subject} is {'null' if row is None else 'not an object'}")
    columns: dict[str, Any] = {}
    read, unreadable = set(), []
    for name, (column, convert) in table.items():
        if name not in row or column in columns:
            continue
        try:
            value = convert(row[name])
        except (TypeError, ValueError):  # TypeError: a list or an object, from a converter with a cache
            unreadable.append(column)
            continue
        read.add(name)
        if value is not None:
            columns[column] = value
    for name in required:
        if table[name][0] not in columns:
            unusable = name in row and name not in read
            raise DecodeError(f"{subject}.{name} is {'unusable' if unusable else 'missing'}")
    left = {name: value for name, value in row.items() if name not in read}
    columns["extra"] = storable_items(left)
    return Columns(columns, tuple(column for column in unreadable if column not in columns))


def storable_items(values: dict[str, object], depth: int = EXTRA_MAX_DEPTH) -> dict[str, object]:
    """Return the items with what may be stored of each: a label stays even if its value may not."""
    return {
        name.replace("\0", ""): _storable(value, depth)
        for name, value in values.items()
        if not _is_secret(name)
    }


def _is_plain(values: dict[str, object]) -> bool:
    """Return whether the object holds only harmless texts, as nearly always, in a fifth of the time."""
    try:
        text = "".join((*values, *values.values()))  # type: ignore[arg-type]
    except TypeError:
        return False
    return text.isprintable() and not _may_be_secret(text)


def _storable(value: object, depth: int) -> object:
    """Return what may be stored of a value: no secret link, no NUL, nothing too deep."""
    if isinstance(value, str):
        return None if _is_secret(value) else value.replace("\0", "")
    if isinstance(value, dict | list) and depth <= 0:
        return None
    if isinstance(value, dict):
        return storable_items(value, depth - 1)
    return [_storable(item, depth - 1) for item in value] if isinstance(value, list) else value


def _is_secret(text: str) -> bool:
    return _may_be_secret(text) and bool(_SECRET_LINK.search(text))


def _may_be_secret(text: str) -> bool:
    return "=" in text or "%" in text or "&" in text
