"""Inspects a site's own table: the types of its columns, and what is wrong. Changes nothing.

The table is another program's: the values that each column allows are checked before anything is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from sqlalchemy import (
    CHAR,
    Boolean,
    ColumnClause,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    TableClause,
    Text,
    cast,
    column,
    func,
    inspect,
    select,
    table,
    text,
)
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import JSON, TypeEngine

from syncd.config import PublishConfig
from syncd.database import mysql, schema
from syncd.database.engine import VERSION_TABLE
from syncd.text import alike

LARGE = 10_000
"""From this many rows on, a key without an index is slow: each write scans the table."""
KNOWN = (String, Integer, Numeric, Float, Boolean, DateTime, Date, LargeBinary, JSON)
"""Types that are checked for a column; others, such as domains, are just tried."""
OURS = {*schema.metadata.tables, *schema.VIEWS, VERSION_TABLE}
"""The tables of syncd's own database, which nobody else writes."""
NUMBER = (Integer, Numeric, Float)


class Form(Struct):
    """What was found of a site's table: the types of its columns, what is wrong, and what is only slow.

    `instants`: in a SQLite file, an existing value of each column of instants, if there is one.
    """

    settings: PublishConfig
    dialect: str
    types: dict[str, TypeEngine[Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    instants: dict[str, object] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Whether it is in a SQLite file, whose columns hold values of any type."""
        return self.dialect == "sqlite"

    @property
    def is_mysql(self) -> bool:
        """Whether it is in MySQL or MariaDB, which compares texts case-insensitively."""
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


def look(connection: Connection, settings: PublishConfig) -> Form:
    """Return the form of the table. Changes nothing."""
    form = Form(settings, connection.dialect.name)
    found = inspect(connection)
    if form.is_mysql and (refusal := mysql.hidden(connection, form.table)):
        form.problems.append(f"{refusal}{_visible(settings, found)}")
        return form
    if missing := _missing(form, found):
        form.problems.append(missing)
        return form
    schema_name, name = _names(settings)
    columns = {each["name"]: each for each in found.get_columns(name, schema_name)}
    form.types = {each: columns[each]["type"] for each in _columns(settings) if each in columns}
    form.problems += [
        f'the table "{settings.table}" has no column "{each}"{_meant(each, columns)}'
        for each in _columns(settings)
        if each not in columns
    ]
    if not form.problems:
        form.problems += [*_misfits(form, columns), *_forbidden(connection, form)]
    if not form.problems:
        form.warnings += _slow(connection, form, found)
        form.instants.update(_instants(connection, form))
    return form


def _visible(settings: PublishConfig, found: Inspector) -> str:
    """Return the table that may be meant instead: MySQL hides a missing one like one that is forbidden."""
    close = alike(_names(settings)[1], found.get_table_names())
    return f'; or did you mean "{close}"?' if close and close != settings.table else ""


def _missing(form: Form, found: Inspector) -> str | None:
    """Return a message if there is no such table, or it is one of syncd's own; else None."""
    schema_name, name = _names(form.settings)
    is_there = _has(found, name, schema_name)
    if not is_there and schema_name and schema_name not in found.get_schema_names():
        schema_name = None
    if is_there and form.is_file:  # it finds a table in other case, but then not its columns
        is_there = name in {*found.get_table_names(schema_name), *found.get_view_names(schema_name)}
    if not is_there:
        return f'there is no table "{form.settings.table}"{_meant(name, found.get_table_names(schema_name))}'
    if name.lower() in OURS and found.has_table(VERSION_TABLE, schema_name):
        return f'the table "{form.settings.table}" is syncd\'s own'
    return None


def _has(found: Inspector, name: str, schema_name: str | None) -> bool:
    try:
        return found.has_table(name, schema_name)
    except OperationalError:  # of a schema that SQLite does not know
        return False


def _names(settings: PublishConfig) -> tuple[str | None, str]:
    schema_name, _, name = settings.table.rpartition(".")
    return schema_name or None, name


def _columns(settings: PublishConfig) -> list[str]:
    """Return the site's columns that are named, each once."""
    named = [*settings.match, *settings.set, settings.unless, settings.touch]
    return list(dict.fromkeys(name for name in named if name))


def _meant(name: str, known: Iterable[str]) -> str:
    close = alike(name, known)
    return f': did you mean "{close}"?' if close else ""


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
    kind = _kind(ours)
    if isinstance(kind, schema.Instant):
        return "an instant", (DateTime, String, Integer) if is_file else (DateTime,)
    if isinstance(kind, Boolean):
        return "true or false", (Boolean, Integer)
    if isinstance(kind, Integer | schema.Money):
        return "a number", NUMBER
    return "text", (String,)


def _kind(ours: str) -> TypeEngine[Any]:
    return schema.events.c[ours].type


def _forbidden(connection: Connection, form: Form) -> Iterable[str]:
    """Yield what this user may not do."""
    if form.is_file:
        return
    written = [*form.settings.set, *filter(None, [form.settings.touch])]
    if form.is_mysql:
        yield from filter(None, [mysql.forbidden(connection, form.table, written)])
        return
    preparer = connection.dialect.identifier_preparer
    quoted = preparer.format_table(form.table).replace("%%", "%")  # it is a value here, not a statement
    may = "SELECT current_user, has_column_privilege(:table, :column, :right)"
    for right, columns in (("SELECT", _columns(form.settings)), ("UPDATE", written)):
        for each in columns:
            values = {"table": quoted, "column": each, "right": right}
            user, is_allowed = connection.execute(text(may), values).one()
            if not is_allowed:
                grant = f"GRANT SELECT, UPDATE ON {quoted} TO {preparer.quote(user)}"
                yield f"the user {user} may not {right} {quoted}: {grant}"
                break


def _instants(connection: Connection, form: Form) -> Iterable[tuple[str, object]]:
    """Yield a value of each column of instants in a SQLite file, whose type says little of their form."""
    settings = form.settings
    named = [theirs for theirs, ours in settings.set.items() if isinstance(_kind(ours), schema.Instant)]
    for name in [*named, *filter(None, [settings.touch])] if form.is_file else []:
        one = form.table.c[name]
        some = select(one).where(one.is_not(None)).limit(1)
        found = connection.scalar(some.where(one != 0)) or connection.scalar(some)  # 0 shows no unit
        if found is not None:
            yield name, found


def repeated(connection: Connection, form: Form) -> list[str]:
    """Return a message on keys that several rows have, for the first three."""
    key = form.table.c[form.key]
    query = select(as_said(form, key), func.count()).where(key.is_not(None))
    query = query.group_by(same(form, form.key, key)).having(func.count() > 1)
    return [several(form, row[0], row[1]) for row in connection.execute(query.limit(3)).all()]


def same(form: Form, name: str, value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column's value in a form that compares exactly."""
    return mysql.exact(value) if form.is_mysql and isinstance(form.types[name], String) else value


def as_said(form: Form, said: ColumnClause[Any]) -> ColumnElement[Any]:
    """Return a column with its values as written: PostgreSQL's char(n) pads them with spaces."""
    is_padded = form.dialect == "postgresql" and isinstance(form.types[said.name], CHAR)
    return cast(said, Text()).label(said.name) if is_padded else said


def several(form: Form, key: object, count: int) -> str:
    """Return a message on a key that several rows have."""
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
