"""The log of changes: written with the rows that it tells of, and shortened after a while."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, select

from syncd.database import bulk, schema
from syncd.mirror.diff import Change

COLUMNS = ("run_id", "seen_at", "table_name", "row_id", "event_id", "kind", "diff")
PRUNED_AT_ONCE = 10_000
"""So many rows are removed in one transaction: a tenth of a second or so, in which nobody else writes."""


def log(connection: Connection, run_id: int, at: datetime, changes: Iterable[Change]) -> None:
    """Write a line for each change, in their order."""
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
    """Return what holds for the changes that are older than `keep`; for other rows by their `seq` and `at`.

    Finding it out may take long.

    A wrong clock must not empty the log. So their age counts from the earliest of three instants: now, the
    whole reading before the latest (`read_at`), and the latest change; and what stands behind a change that
    is young enough stays, for it came later, whatever instant it bears.
    """
    latest = connection.scalar(select(at).order_by(seq.desc()).limit(1))
    since = min(now, read_at, latest or now) - keep
    young = select(seq).where(at.between(since, now))
    first_young = connection.scalar(young.order_by(seq).limit(1))
    return at < since if first_young is None else and_(at < since, seq < first_young)


def prune(connection: Connection, table: Table, doomed: ColumnElement[bool]) -> int:
    """Remove the first rows for which that holds, PRUNED_AT_ONCE at most; return how many."""
    seq = table.c.seq
    first = select(seq).where(doomed).order_by(seq).limit(PRUNED_AT_ONCE)
    return connection.execute(table.delete().where(seq.in_(first))).rowcount
