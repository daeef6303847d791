"""The log of changes: written together with the rows, and pruned after a while."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, select

from syncd.database import bulk, schema
from syncd.mirror.diff import Change

COLUMNS = ("run_id", "seen_at", "table_name", "row_id", "event_id", "kind", "diff")
PRUNED_AT_ONCE = 10_000
"""How many rows one transaction removes: about a tenth of a second, in which nobody else writes."""


def log(connection: Connection, run_id: int, at: datetime, changes: Iterable[Change]) -> None:
    """Write a line for each change, in order."""
    rows = [
        (run_id, at, change.table, change.row_id, change.event_id, change.kind, change.diff)
        for change in changes
    ]
    bulk.insert(connection, schema.changes, COLUMNS, rows)


def old(
    connection: Connection,
    keep: timedelta,
    now: datetime,
    read_at: datetime,
    *,
    seq: Column[int] = schema.changes.c.seq,
    at: Column[datetime] = schema.changes.c.seen_at,
) -> ColumnElement[bool]:
    """Return the condition for changes older than `keep`, or for other rows by their `seq` and `at`.

    Finding it may take long.

    A wrong clock must not empty the log. So ages count from the earliest of three instants: now, the whole
    reading before the latest (`read_at`), and the latest change. All rows after the first one that is young
    enough stay: they came later, whatever their instant says.
    """
    latest = connection.scalar(select(at).order_by(seq.desc()).limit(1))
    since = min(now, read_at, latest or now) - keep
    young = select(seq).where(at.between(since, now))
    first_young = connection.scalar(young.order_by(seq).limit(1))
    return at < since if first_young is None else and_(at < since, seq < first_young)


def prune(connection: Connection, table: Table, doomed: ColumnElement[bool]) -> int:
    """Remove the first rows that meet the condition, at most PRUNED_AT_ONCE; return how many."""
    seq = table.c.seq
    first = select(seq).where(doomed).order_by(seq).limit(PRUNED_AT_ONCE)
    return connection.execute(table.delete().where(seq.in_(first))).rowcount
