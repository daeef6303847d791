"""Updates the rows of a site's own table; creates and removes none.

Values bypass SQLAlchemy's types: the table is another program's, and a column in SQLite holds whatever type
that program wrote.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from msgspec import Struct, field
from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    RowMapping,
    Update,
    bindparam,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import NullType, TypeEngine

from syncd.config import PublishConfig
from syncd.database import mysql, schema
from syncd.database.engine import is_about_a_value, reason
from syncd.database.forms import Form, as_said, same, several
from syncd.mirror.diff import FIGURES

Mapped = RowMapping
"""A row, by its columns."""
KEYS_AT_ONCE = 500
"""How many keys one query has; SQLite takes 32,766 values, older versions 999."""
NUMBER = re.compile("0|[1-9][0-9]{0,17}")
"""A key in a column of numbers: in 64 bits, without a leading zero."""
AS_TEXT = re.compile(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\d(\.\d{1,9})?( ?)(Z|[+-]\d\d:?\d\d)?")
"""An instant in a form that SQLite's functions read, Sequelize's and Go's too; without an offset in UTC."""
LEAST_MS = 100_000_000_000
"""A whole number below it is in seconds, which reach it in the year 5138; in milliseconds it is in 1973."""
JULIAN_1970 = 2_440_587.5
LISTED = 10
"""How many keys without a match are shown; more would fill a screen."""
KEY = "the key"


class Done(Struct):
    """The result: how many rows of the site match, how many keys match nothing, rows of vanished events.

    `problems` are sentences on rows that could not be written.
    """

    matched: int = 0
    unmatched: int = 0
    examples: list[str] = field(default_factory=list)
    vanished: int = 0
    written: int = 0
    problems: list[str] = field(default_factory=list)


# --- what the mirror says


def events(
    connection: Connection, settings: PublishConfig, ids: Collection[str] | None = None
) -> Sequence[Mapped]:
    """Return the mirror's values for that table: of these events, and of those that share a key with them."""
    (ours,) = settings.match.values()
    columns = schema.events.c
    named = dict.fromkeys(["id", "vanished_at", "places_left", "unlimited", *ours, *settings.set.values()])
    query = select(*(columns[name] for name in named)).order_by(columns.id)
    if ids is None:
        return connection.execute(query).mappings().all()
    chosen = connection.execute(query.where(columns.id.in_(ids))).mappings().all()
    keys = [*keys_of(chosen, settings)]
    also = or_(*(columns[name].in_(keys) for name in ours))
    return connection.execute(query.where(also)).mappings().all()


def keys_of(some: Iterable[Mapped], settings: PublishConfig) -> dict[str, list[Mapped]]:
    """Return the events that each of the site's keys may mean: by the first of our columns that has it.

    A vanished event counts only if no other has the key.
    """
    found: dict[str, list[Mapped]] = {}
    some = [*some]
    (ours,) = settings.match.values()
    for name in ours:
        by_value: dict[str, list[Mapped]] = defaultdict(list)
        for event in some:
            if event[name] is not None:
                by_value[str(event[name])].append(event)
        for value, having in by_value.items():
            found.setdefault(value, [each for each in having if each["vanished_at"] is None] or having)
    return found


# --- what is written


def reconcile(
    connection: Connection, form: Form, some: Sequence[Mapped], at: datetime, *, all_of_them: bool
) -> Done:
    """Update the rows from these events, which are all of the mirror or those that changed."""
    done, meant = Done(), keys_of(some, form.settings)
    keys = _all_keys(connection, form, meant, done) if all_of_them else _typed(form, meant)
    writes: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(connection, form, keys, done):
        if news := _news(form, row, meant[str(row[form.key])], at, done):
            writes[tuple(news)].append({KEY: row[form.key]} | {_new(name): news[name] for name in news})
    for names, values in writes.items():
        statement = _statement(form, names)
        for first in range(0, len(values), KEYS_AT_ONCE):
            _write(connection, statement, values[first : first + KEYS_AT_ONCE], done)
    return done


def _typed(form: Form, keys: Iterable[str]) -> list[Any]:
    """Return the keys in the type of their column."""
    if isinstance(form.types[form.key], Integer):
        return [int(key) for key in keys if NUMBER.fullmatch(key)]
    return [*keys]


def _all_keys(connection: Connection, form: Form, meant: Mapping[str, object], done: Done) -> list[Any]:
    """Return the site's keys that match an event, and count the others."""
    key = form.table.c[form.key]
    query = select(as_said(form, key)).where(key.is_not(None))
    query = query.group_by(same(form, form.key, key)).order_by(key)
    found = []
    with connection.execute(query.execution_options(yield_per=1000)) as result:
        for (value,) in result:
            if str(value) in meant:
                found.append(value)
            else:
                done.unmatched += 1
                if len(done.examples) < LISTED:
                    done.examples.append(str(value))
    return found


def _rows(connection: Connection, form: Form, keys: Sequence[Any], done: Done) -> Iterator[Mapped]:
    """Yield the site's rows with these keys; of a key that several rows have, note that instead."""
    theirs = form.table
    query = select(*(as_said(form, each) for each in theirs.columns))
    for first in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[first : first + KEYS_AT_ONCE]
        here = theirs.c[form.key].in_([_bound(key) for key in some])
        wanted = {*some}  # MySQL ignores the case of a key
        found = [row for row in connection.execute(query.where(here)).mappings() if row[form.key] in wanted]
        counts = Counter(row[form.key] for row in found)
        done.problems += [several(form, key, count) for key, count in counts.items() if count > 1]
        yield from (row for row in found if counts[row[form.key]] == 1)


def _bound(value: object) -> ColumnElement[Any]:
    """Return a value without SQLAlchemy's type: the server determines it."""
    return bindparam(None, value, type_=NullType())


def _news(form: Form, row: Mapped, meant: list[Mapped], at: datetime, done: Done) -> dict[str, Any]:
    """Return the new values of a row, by column."""
    settings = form.settings
    if len(meant) > 1:
        ids = ", ".join(event["id"] for event in meant[:3])
        done.problems.append(f'the key "{row[form.key]}" means several events ({ids}), so none is written')
        return {}
    (event,) = meant
    if event["vanished_at"] is not None:
        done.vanished += 1
        return {}
    done.matched += 1
    if settings.unless and row[settings.unless]:
        return {}
    values = {
        theirs: _encoded(form, theirs, event[ours], row[theirs])
        for theirs, ours in settings.set.items()
        if _is_known(event, ours)
    }
    if all(row[theirs] == value for theirs, value in values.items()):
        return {}
    if settings.touch:
        values[settings.touch] = _encoded(form, settings.touch, at, row[settings.touch])
    return values


def _is_known(event: Mapped, ours: str) -> bool:
    """Whether a column's value is known: derived figures are known if the places left are."""
    if ours == "sale_status":
        return bool(event[ours] != "unknown")
    return ours not in FIGURES or event["places_left"] is not None or bool(event["unlimited"])


def _encoded(form: Form, name: str, value: Any, before: object) -> Any:
    """Return a value in the form of the site's column; in a file an instant in the form of `before`."""
    kind = form.types[name]
    if isinstance(value, datetime):
        if not form.is_file:
            return _instant(form, kind, value)
        return _in_file(kind, value, before or form.instants.get(name, before))
    if isinstance(value, bool):
        return int(value) if isinstance(kind, Integer) else value
    return _number(form, kind, value) if isinstance(value, Decimal) else value


def _number(form: Form, kind: TypeEngine[Any], value: Decimal) -> Decimal | float:
    """Return an amount rounded to a column: with more digits than the server's it would never be equal."""
    if form.is_file or isinstance(kind, Float):
        return float(value)
    scale = 0 if isinstance(kind, Integer) else getattr(kind, "scale", None)
    if scale is None or -int(value.as_tuple().exponent) <= scale:  # padding would take too many digits
        return value
    return value.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)


def _instant(form: Form, kind: TypeEngine[Any], value: datetime) -> datetime:
    """Return an instant with the precision of a server's column."""
    digits = (getattr(kind, "fsp", None) or 0) if form.is_mysql else getattr(kind, "precision", None)
    if digits is not None:
        unit = 10 ** (6 - digits)
        value = value.replace(microsecond=value.microsecond // unit * unit)
    return value if getattr(kind, "timezone", False) else value.replace(tzinfo=None)


def _in_file(kind: TypeEngine[Any], value: datetime, like: object) -> float | str:
    """Return an instant in the form of another one, which the site's program has written.

    Prisma has had milliseconds and text in one column, Drizzle has seconds, SQLite's own clock no offset.
    """
    if isinstance(like, int | float) or (like is None and isinstance(kind, Integer)):
        in_seconds = like is not None and 0 < abs(like) < LEAST_MS
        if isinstance(like, float) and 1e6 < like < 1e7:  # noqa: PLR2004 - Julian days
            return value.timestamp() / 86_400 + JULIAN_1970
        if isinstance(like, float):
            return value.timestamp() * (1 if in_seconds else 1000)
        return int(value.timestamp()) if in_seconds else round(value.timestamp() * 1000)
    form = AS_TEXT.fullmatch(str(like))
    between, fraction, blank, offset = form.groups() if form else ("T", ".000", "", "+00:00")
    digits = "seconds" if not fraction else "milliseconds" if len(fraction) <= len(".000") else "microseconds"
    said = value.replace(tzinfo=None).isoformat(between, digits)
    return said + (f"{blank}{'Z' if offset == 'Z' else '+00:00'}" if offset else "")


def _write(connection: Connection, statement: Update, values: list[dict[str, Any]], done: Done) -> None:
    """Write many rows by one statement; if one is refused, write each alone, so that the others succeed."""
    try:
        with connection.begin_nested():
            done.written += max(connection.execute(statement, values).rowcount, 0)
    except DBAPIError as error:
        if not (is_about_a_value(error) or mysql.code(error) in mysql.REFUSED):
            raise
        if len(values) == 1:
            done.problems.append(f'the row with the key "{values[0][KEY]}" was refused: {reason(error)}')
        else:
            for each in values:
                _write(connection, statement, [each], done)


def _new(name: str) -> str:
    return f"new {name}"


def _statement(form: Form, names: Sequence[str]) -> Update:
    """Return the statement that writes these columns of the row with a key, if one of them differs."""
    theirs, settings = form.table, form.settings
    wanted = bindparam(KEY, type_=NullType())
    news = {name: bindparam(_new(name), type_=NullType()) for name in names}
    differs = [
        same(form, name, theirs.c[name]).is_distinct_from(same(form, name, new))
        for name, new in news.items()
        if name in settings.set
    ]
    key = same(form, form.key, theirs.c[form.key])
    statement = update(theirs).where(key == same(form, form.key, wanted), or_(*differs))
    if form.is_mysql:  # its index does not serve exact comparisons
        statement = statement.where(theirs.c[form.key] == wanted)
    if settings.unless:
        statement = statement.where(theirs.c[settings.unless].is_not(true()))
    return statement.values({theirs.c[name]: new for name, new in news.items()})
