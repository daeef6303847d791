"""A table of a site's own: looked at, never created or altered, and its rows brought up to date.

Values go past SQLAlchemy's types, as the driver has them: the table is another program's, and SQLite holds in
a column what that wrote there. What may be in which column is looked at before.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from difflib import get_close_matches
from itertools import islice
from typing import Any

from msgspec import Struct, field, structs
from sqlalchemy import (
    VARCHAR,
    Boolean,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    RowMapping,
    String,
    TableClause,
    Text,
    Update,
    bindparam,
    cast,
    column,
    func,
    inspect,
    or_,
    select,
    table,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import JSON, NullType, TypeEngine

from syncd.config import PublishConfig
from syncd.database import mysql, schema
from syncd.database.engine import VERSION_TABLE, is_about_a_value, reason
from syncd.mirror.diff import FIGURES

Mapped = RowMapping
"""A row, by its columns."""
LARGE = 10_000
"""Rows from which on a key without an index is felt: each write reads the table through."""
KEYS_AT_ONCE = 500
"""So many keys stand in one question; SQLite takes 32,766 values, and older ones 999."""
DIGITS = 19
"""So many has the largest number of 64 bits."""
LISTED = 10
"""So many keys that match nothing are shown; more would fill a screen."""
KNOWN = (String, Integer, Numeric, Float, Boolean, DateTime, Date, LargeBinary, JSON)
"""What is said to be wrong in a column; others, as domains are, are tried."""
OURS = {*schema.metadata.tables, *schema.VIEWS, VERSION_TABLE}
"""What a syncd's database holds, and nobody else writes."""
KEY = "the key"
NUMBER = (Integer, Numeric, Float)


class Form(Struct, frozen=True):
    """What was found of a site's table: how its columns are typed, what is wrong, and what only slow."""

    settings: PublishConfig
    dialect: str
    types: dict[str, TypeEngine[Any]]
    problems: list[str]
    warnings: list[str]

    @property
    def is_file(self) -> bool:
        """Whether it is in a SQLite file, which holds in a column what was written there."""
        return self.dialect == "sqlite"

    @property
    def is_mysql(self) -> bool:
        """Whether it is in MySQL or MariaDB, to which texts are equal that are the same but for capitals."""
        return self.dialect in ("mysql", "mariadb")

    @property
    def table(self) -> TableClause:
        """The table, with the columns that are named and no types."""
        schema_name, name = _names(self.settings)
        return table(name, *(column(each) for each in _columns(self.settings)), schema=schema_name)

    @property
    def key(self) -> str:
        """The name of the site's key column."""
        return next(iter(self.settings.match))


class Done(Struct):
    """What came of it: how many rows of theirs match, keys that match nothing, rows of vanished events.

    `problems` are sentences on rows that could not be written.
    """

    matched: int = 0
    unmatched: int = 0
    examples: list[str] = field(default_factory=list)
    vanished: int = 0
    written: int = 0
    problems: list[str] = field(default_factory=list)


# --- what is there


def look(connection: Connection, settings: PublishConfig) -> Form:
    """Return what is found of the table. Changes nothing."""
    schema_name, name = _names(settings)
    bare = Form(settings, connection.dialect.name, {}, [], [])
    if bare.is_mysql and (refusal := mysql.hidden(connection, bare.table)):
        return structs.replace(bare, problems=[refusal])
    found = inspect(connection)
    if not found.has_table(name, schema_name):
        lacking = f'there is no table "{settings.table}"{_meant(name, found.get_table_names(schema_name))}'
        return structs.replace(bare, problems=[lacking])
    if name.lower() in OURS and found.has_table(VERSION_TABLE, schema_name):
        return structs.replace(bare, problems=[f'the table "{settings.table}" is syncd\'s own'])
    columns = {each["name"]: each for each in found.get_columns(name, schema_name)}
    problems = [
        f'the table "{settings.table}" has no column "{each}"{_meant(each, columns)}'
        for each in _columns(settings)
        if each not in columns
    ]
    types = {each: columns[each]["type"] for each in _columns(settings) if each in columns}
    form = structs.replace(bare, types=types, problems=problems)
    if not problems:
        form.problems.extend(_misfits(form, columns))
        form.problems.extend(_forbidden(connection, form))
    if not form.problems:
        form.warnings.extend(_slow(connection, form, found))
    return form


def _names(settings: PublishConfig) -> tuple[str | None, str]:
    schema_name, _, name = settings.table.rpartition(".")
    return schema_name or None, name


def _columns(settings: PublishConfig) -> list[str]:
    """Return the columns of theirs that are named, each once."""
    named = [*settings.match, *settings.set, settings.unless, settings.touch]
    return list(dict.fromkeys(name for name in named if name))


def _meant(name: str, known: Iterable[str]) -> str:
    by_case = {each.lower(): each for each in known}
    meant = get_close_matches(name.lower(), by_case, n=1, cutoff=0.6)
    return f': did you mean "{by_case[meant[0]]}"?' if meant else ""


def _misfits(form: Form, columns: Mapping[str, ReflectedColumn]) -> Iterable[str]:
    is_file = form.is_file
    wanted: list[tuple[str, str, str, tuple[type, ...]]] = [
        (form.key, "a key of the mirror", "text or a whole number", (String, Integer))
    ]
    for theirs, ours in form.settings.set.items():
        wanted.append((theirs, ours, *_fitting(ours, is_file=is_file)))
    if form.settings.unless:
        flags = (Boolean, *NUMBER) if is_file or form.is_mysql else (Boolean,)
        wanted.append((form.settings.unless, "unless", "true or false", flags))
    if form.settings.touch:
        wanted.append((form.settings.touch, "touch", *_fitting("starts_at", is_file=is_file)))
    for theirs, ours, what, fitting in wanted:
        kind = form.types[theirs]
        if (isinstance(kind, KNOWN) or kind.__visit_name__ == "BIT") and not isinstance(kind, fitting):
            yield (
                f'the column "{theirs}" of "{form.settings.table}" is of the type {kind},'
                f" and {ours} needs one for {what}"
            )
        elif columns[theirs].get("computed"):
            yield f'the column "{theirs}" of "{form.settings.table}" is computed by the database'


def _fitting(ours: str, *, is_file: bool) -> tuple[str, tuple[type, ...]]:
    kind = schema.events.c[ours].type
    if isinstance(kind, schema.Instant):
        return "an instant", (DateTime, String, Integer) if is_file else (DateTime,)
    if isinstance(kind, Boolean):
        return "true or false", (Boolean, Integer)
    if isinstance(kind, Integer | schema.Money):
        return "a number", NUMBER
    return "text", (String,)


def _forbidden(connection: Connection, form: Form) -> Iterable[str]:
    """Give back what this user may not do."""
    if form.is_file:
        return
    written = [*form.settings.set, *filter(None, [form.settings.touch])]
    if form.is_mysql:
        yield from filter(None, [mysql.forbidden(connection, form.table, written)])
        return
    preparer = connection.dialect.identifier_preparer
    quoted = preparer.format_table(form.table)
    may = "SELECT current_user, has_column_privilege(:table, :column, :right)"
    for right, columns in (("SELECT", _columns(form.settings)), ("UPDATE", written)):
        for each in columns:
            values = {"table": quoted, "column": each, "right": right}
            user, is_allowed = connection.execute(text(may), values).one()
            if not is_allowed:
                grant = f"GRANT SELECT, UPDATE ON {quoted} TO {preparer.quote(user)}"
                yield f"the user {user} may not {right} {quoted}: {grant}"
                break


def repeated(connection: Connection, form: Form) -> list[str]:
    """Return what is to be said of keys that several rows hold, of the first three."""
    key = form.table.c[form.key]
    query = select(key, func.count()).where(key.is_not(None)).group_by(_same(form, form.key, key))
    query = query.having(func.count() > 1)
    return [_several(form, row[0], row[1]) for row in connection.execute(query.limit(3)).all()]


def _same(form: Form, name: str, value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a value of a column so that only what is the same is equal to it."""
    return mysql.exact(value) if form.is_mysql and isinstance(form.types[name], String) else value


def _several(form: Form, key: object, count: int) -> str:
    rows = f'{count} rows of "{form.settings.table}"'
    return f'{rows} hold the key "{key}" in "{form.key}", so that none of them is written'


def _slow(connection: Connection, form: Form, found: Inspector) -> Iterable[str]:
    schema_name, name = _names(form.settings)
    keys: list[Sequence[str | None]] = [one["column_names"] for one in found.get_indexes(name, schema_name)]
    keys += [unique["column_names"] for unique in found.get_unique_constraints(name, schema_name)]
    keys.append(found.get_pk_constraint(name, schema_name)["constrained_columns"])
    if any(form.key in columns[:1] for columns in keys):
        return
    some = select(form.table.c[form.key]).limit(LARGE + 1).subquery()
    if (connection.scalar(select(func.count()).select_from(some)) or 0) > LARGE:
        named = form.settings.table
        yield f'"{named}" has over {LARGE} rows and no index on "{form.key}": each write reads it through'


# --- what the mirror says


def events(
    connection: Connection, settings: PublishConfig, ids: Collection[str] | None = None
) -> Sequence[Mapped]:
    """Return what stands in the mirror for that table; of these events, and of those with a key of theirs."""
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
    """Return what events each key of theirs may mean: by the first of our columns that has it.

    One that has vanished counts where no other has the key.
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


def bring(
    connection: Connection, form: Form, some: Sequence[Mapped], at: datetime, *, all_of_them: bool
) -> Done:
    """Bring the rows up to date with these events, which are all of the mirror or those that changed."""
    done, meant = Done(), keys_of(some, form.settings)
    keys = iter(_all_keys(connection, form, meant, done) if all_of_them else _typed(form, meant))
    writes: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    while part := [*islice(keys, KEYS_AT_ONCE)]:
        wanted = {*part}  # for MySQL a key in other letters is the same
        found = connection.execute(_theirs(form, part)).mappings().all()
        rows = [row for row in found if row[form.key] in wanted]
        counts = Counter(row[form.key] for row in rows)
        done.problems += [_several(form, key, count) for key, count in counts.items() if count > 1]
        for row in rows:
            if counts[row[form.key]] == 1 and (news := _news(form, row, meant[str(row[form.key])], at, done)):
                writes[tuple(news)].append({KEY: row[form.key]} | {_new(name): news[name] for name in news})
    for names, values in writes.items():
        for first in range(0, len(values), KEYS_AT_ONCE):
            _write(connection, form, names, values[first : first + KEYS_AT_ONCE], done)
    return done


def _typed(form: Form, keys: Iterable[str]) -> list[Any]:
    """Return the keys as their column holds them."""
    if isinstance(form.types[form.key], Integer):
        return [int(key) for key in keys if key.isascii() and key.isdecimal() and len(key) < DIGITS]
    return [*keys]


def _all_keys(connection: Connection, form: Form, meant: Mapping[str, object], done: Done) -> list[Any]:
    """Return the keys of theirs that mean an event, and count the others."""
    key = form.table.c[form.key]
    query = select(key).where(key.is_not(None)).group_by(_same(form, form.key, key)).order_by(key)
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


def _theirs(form: Form, keys: Sequence[Any]) -> Any:
    theirs = form.table
    return select(*theirs.columns).where(theirs.c[form.key].in_([_bound(key) for key in keys]))


def _bound(value: object) -> ColumnElement[Any]:
    """Return a value without a type of SQLAlchemy's: the server finds what it is to be."""
    return bindparam(None, value, type_=NullType())


def _news(form: Form, row: Mapped, meant: list[Mapped], at: datetime, done: Done) -> dict[str, Any]:
    """Return which of a row's columns get what."""
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
    """Whether a column is known: what follows from what is inside the event is while the places left are."""
    return ours not in FIGURES or event["places_left"] is not None or bool(event["unlimited"])


def _encoded(form: Form, name: str, value: Any, before: object) -> Any:
    """Return a value as their column takes it; in a file an instant as the row has had it `before`."""
    kind = form.types[name]
    if isinstance(value, datetime):
        if not form.is_file:
            return _instant(form, kind, value)
        # Prisma has had both in one column: milliseconds, and text of ISO 8601.
        in_ms = isinstance(kind, Integer) or isinstance(before, int)
        return round(value.timestamp() * 1000) if in_ms else value.isoformat(timespec="milliseconds")
    if isinstance(value, bool):
        return int(value) if isinstance(kind, Integer) else value
    return _number(form, kind, value) if isinstance(value, Decimal) else value


def _number(form: Form, kind: TypeEngine[Any], value: Decimal) -> Decimal | float:
    """Return an amount as a column takes it: with more digits than a server's has it would never be equal."""
    if form.is_file or isinstance(kind, Float):
        return float(value)
    scale = 0 if isinstance(kind, Integer) else getattr(kind, "scale", None)
    if scale is None or -int(value.as_tuple().exponent) <= scale:  # to pad it would take too many digits
        return value
    return value.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)


def _instant(form: Form, kind: TypeEngine[Any], value: datetime) -> datetime:
    """Return an instant as a column of a server's takes it, which has so many digits of a second."""
    digits = (getattr(kind, "fsp", None) or 0) if form.is_mysql else getattr(kind, "precision", None)
    if digits is not None:
        unit = 10 ** (6 - digits)
        value = value.replace(microsecond=value.microsecond // unit * unit)
    return value if getattr(kind, "timezone", False) else value.replace(tzinfo=None)


def _write(
    connection: Connection, form: Form, names: Sequence[str], values: list[dict[str, Any]], done: Done
) -> None:
    """Write many rows in one go; where one is refused one after the other, so that the others get theirs."""
    alone = _alone(form, names)
    try:
        with connection.begin_nested():
            together = _together(form, names, values)
            result = connection.execute(alone, values) if together is None else connection.execute(together)
            done.written += max(result.rowcount, 0)
    except DBAPIError as refused:
        if not _is_about_a_value(refused):
            raise
        for each in values:
            try:
                with connection.begin_nested():
                    done.written += connection.execute(alone, each).rowcount
            except DBAPIError as error:
                if not _is_about_a_value(error):
                    raise
                done.problems.append(f'the row with the key "{each[KEY]}" was refused: {reason(error)}')


def _is_about_a_value(error: DBAPIError) -> bool:
    """Whether it is a value that the table refuses, and not what the database was asked to do."""
    return is_about_a_value(error) or mysql.code(error) in mysql.REFUSED


def _new(name: str) -> str:
    return f"new {name}"


def _alone(form: Form, names: Sequence[str]) -> Update:
    """Return what writes these columns of one row."""
    wanted = bindparam(KEY, type_=NullType())
    statement = _statement(form, {name: bindparam(_new(name), type_=NullType()) for name in names}, wanted)
    # What is compared exactly is no use to MySQL's index.
    return statement.where(statement.table.c[form.key] == wanted) if form.is_mysql else statement


def _together(form: Form, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Update | None:
    """Return one statement that writes these columns of many rows, None where each is to be written alone.

    So it is in a file, where a statement costs no journey, and for columns of other types than numbers and
    flags: a server takes a text or an instant in a list of rows for another thing than by itself.
    """
    touch, kinds = form.settings.touch, form.types
    figures = [name for name in names if name != touch]
    if (
        len(rows) == 1
        or form.is_file
        or not isinstance(kinds[form.key], Integer | Text | VARCHAR)
        or not all(isinstance(kinds[name], Integer | Boolean) for name in figures)
    ):
        return None

    def typed(name: str, value: object) -> ColumnElement[Any]:
        kind = kinds[name] if isinstance(kinds[name], Integer | Boolean) else Text()
        return _bound(value) if form.is_mysql else cast(_bound(value), kind)  # PostgreSQL's would be text

    news = union_all(
        *(
            select(
                typed(form.key, row[KEY]).label(KEY),
                *(typed(name, row[_new(name)]).label(_new(name)) for name in figures),
            )
            for row in rows
        )
    ).subquery("news")
    values: dict[str, ColumnElement[Any]] = {name: news.c[_new(name)] for name in figures}
    if touch and touch in names:
        values[touch] = _bound(rows[0][_new(touch)])
    statement = _statement(form, values, news.c[KEY])
    keys = [_bound(row[KEY]) for row in rows]
    return statement.where(statement.table.c[form.key].in_(keys)) if form.is_mysql else statement


def _statement(form: Form, news: Mapping[str, ColumnElement[Any]], wanted: ColumnElement[Any]) -> Update:
    """Return what writes these columns of the row with a key, where one of them differs."""
    theirs, settings = form.table, form.settings
    differs = [
        _same(form, name, theirs.c[name]).is_distinct_from(_same(form, name, new))
        for name, new in news.items()
        if name in settings.set
    ]
    key = _same(form, form.key, theirs.c[form.key])
    statement = update(theirs).where(key == _same(form, form.key, wanted), or_(*differs))
    if settings.unless:
        statement = statement.where(theirs.c[settings.unless].is_not(true()))
    return statement.values({theirs.c[name]: new for name, new in news.items()})
