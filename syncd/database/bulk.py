"""Writes many rows at once, or none: all rows get into the tables this way.

Rows are tuples of Python values in the order of the column names. The types' own processors encode them,
column by column, and the driver gets its own tuples: SQLAlchemy's way with a dict for each row takes twice as
long. On PostgreSQL many rows are written with COPY, which takes a third of that again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from itertools import islice, repeat, starmap
from operator import itemgetter
from typing import Any

from msgspec import Struct
from sqlalchemy import ARRAY, JSON, ColumnElement, Connection, Dialect, Table, Text, func, literal, select
from sqlalchemy.exc import DBAPIError, StatementError

Rows = Sequence[tuple[Any, ...]]
Columns = Sequence[tuple[Any, ...]]
Encoder = Callable[[Any], Any]
AT_ONCE = 500
"""How many rows are encoded at once: few enough for a processor's cache."""
COPY_ABOVE_ROWS = 30
"""Above this many rows, COPY is worth its additional statements."""


class _Statement(Struct, frozen=True):
    """How to write rows of some columns into a table: the SQL texts, and an encoder for each column."""

    values: str
    copy: str
    stage: str
    copy_staged: str
    take_staged: str
    encoders: list[Encoder | None]


def upsert(
    connection: Connection, table: Table, names: tuple[str, ...], rows: Rows, keep: tuple[str, ...] = ()
) -> None:
    """Insert rows, or overwrite those whose key exists, except the columns in `keep`.

    Of several rows with one key the last is written. Columns that are not named keep their values.
    """
    if _is_worth_copying(connection, rows):
        statement = _statement(connection.dialect, table, names, keep)
        key = itemgetter(*(names.index(column.name) for column in table.primary_key))
        last = {key(row): row for row in rows}  # PostgreSQL refuses to write a row twice
        with _copying(connection) as cursor:
            cursor.execute(statement.stage)
            _copy(cursor, statement.copy_staged, statement, [*last.values()])
            cursor.execute(statement.take_staged)
    else:
        for columns in _columns(rows):
            _execute(connection, _statement(connection.dialect, table, names, keep), columns)


def insert(connection: Connection, table: Table, names: tuple[str, ...], rows: Rows) -> None:
    """Insert new rows, in order."""
    if _is_worth_copying(connection, rows):
        statement = _statement(connection.dialect, table, names, None)
        with _copying(connection) as cursor:
            _copy(cursor, statement.copy, statement, rows)
        return
    for columns in _columns(rows):
        # A column without values is left out: a NULL takes SQLite's driver longer than a number.
        named = {name: values for name, values in zip(names, columns, strict=True) if not _is_empty(values)}
        _execute(connection, _statement(connection.dialect, table, tuple(named), None), [*named.values()])


def is_among(
    connection: Connection, column: ColumnElement[Any], values: Iterable[str]
) -> ColumnElement[bool]:
    """Return the condition that a text column has one of many values; IN takes a parameter for each."""
    if connection.dialect.name == "postgresql":  # hashed, as ANY is not before 14
        return column.in_(select(func.unnest(literal([*values], ARRAY(Text)))))
    return column.in_(select(func.json_each(literal([*values], JSON)).table_valued("value").c.value))


def _is_worth_copying(connection: Connection, rows: Rows) -> bool:
    return connection.dialect.name == "postgresql" and len(rows) > COPY_ABOVE_ROWS


def _execute(connection: Connection, statement: _Statement, columns: Columns) -> None:
    connection.exec_driver_sql(statement.values, _encoded(statement.encoders, columns))


@contextmanager
def _copying(connection: Connection) -> Iterator[Any]:
    """Yield the driver's own cursor; its errors are raised as SQLAlchemy's."""
    theirs = connection.dialect.loaded_dbapi.Error
    try:
        with closing(connection.connection.cursor()) as cursor:
            yield cursor
    except theirs as error:
        driver: Any = connection.connection.dbapi_connection
        if driver.closed:  # else the rollback on it would fail too, and be what is told
            connection.invalidate(error)
        raise DBAPIError.instance(None, None, error, theirs) from None


def _copy(cursor: Any, to: str, statement: _Statement, rows: Rows) -> None:
    with cursor.copy(to) as copy:
        for columns in _columns(rows):
            for row in _encoded(statement.encoders, columns):
                copy.write_row(row)


def _columns(rows: Rows) -> Iterator[Columns]:
    """Yield the rows column by column, some at a time."""
    remaining = iter(rows)
    while batch := [*islice(remaining, AT_ONCE)]:
        yield [*zip(*batch, strict=True)]


def _is_empty(values: tuple[Any, ...]) -> bool:
    return values[0] is None and values.count(None) == len(values)


def _encoded(encoders: list[Encoder | None], columns: Columns) -> list[tuple[Any, ...]]:
    """Return rows in the driver's form."""
    try:
        return [*zip(*starmap(_encode, zip(encoders, columns, strict=True)), strict=True)]
    except (ValueError, TypeError, ArithmeticError) as error:
        raise StatementError(str(error), None, None, error) from None


def _encode(encode: Encoder | None, values: tuple[Any, ...]) -> Iterable[Any]:
    if encode is None:
        return values
    if values[0] is values[-1] and len({*map(id, values)}) == 1:  # an instant of the run's
        return repeat(encode(values[0]), len(values))
    return map(encode, values)


@lru_cache(maxsize=100)
def _statement(
    dialect: Dialect, table: Table, names: tuple[str, ...], keep: tuple[str, ...] | None
) -> _Statement:
    """Return how to write rows; with `keep` None they are new."""
    quote = dialect.identifier_preparer.quote
    target, staged, columns = quote(table.name), quote(f"{table.name}_staged"), ", ".join(map(quote, names))
    conflict = ""
    if keep is not None:
        key = [column.name for column in table.primary_key]
        moved = [f"{name} = excluded.{name}" for name in map(quote, names) if name not in (*keep, *key)]
        does = f"UPDATE SET {', '.join(moved)}" if moved else "NOTHING"
        conflict = f" ON CONFLICT ({', '.join(map(quote, key))}) DO {does}"
    mark = "?" if dialect.paramstyle == "qmark" else "%s"
    into = f"INSERT INTO {target} ({columns})"
    staging = f"CREATE TEMPORARY TABLE IF NOT EXISTS {staged} ON COMMIT DELETE ROWS"
    return _Statement(
        values=f"{into} VALUES ({', '.join([mark] * len(names))}){conflict}",
        copy=f"COPY {target} ({columns}) FROM STDIN",
        stage=f"{staging} AS SELECT * FROM {target} WITH NO DATA; DELETE FROM {staged}",  # noqa: S608 - names
        copy_staged=f"COPY {staged} ({columns}) FROM STDIN",
        take_staged=f"{into} SELECT {columns} FROM {staged}{conflict}",  # noqa: S608 - of the schema
        encoders=[table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names],
    )
