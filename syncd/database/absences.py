"""The recorded absences: rows that complete reads lacked and that have not vanished."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, case, func, null, or_, select

from syncd.database import bulk, schema
from syncd.mirror.absence import FEW_ROWS, READS, Absence, Scope, Size
from syncd.model import EVENTS, Doubt
from syncd.text import plain

ABSENT = schema.absences.c
SCOPE = case((ABSENT.table_name == EVENTS, null()), else_=ABSENT.event_id)
"""The event of an absence's scope; null for the list of events."""
EXAMPLES = 3
"""How many ids are shown: enough to know which rows are meant, and they fit a line."""
EXAMPLE_CHARACTERS = 80
"""Billetweb's ids have a dozen, those of several parts some more; an invented one may have any number."""
COLUMNS = ("table_name", "row_id", "event_id", "since", "reads", "run_id")


def of(connection: Connection, table: str, event_id: str | None = None) -> dict[str, Absence]:
    """Return the absences in a table, or in one event's part of it, by row id."""
    found = connection.execute(
        select(ABSENT.row_id, ABSENT.since, ABSENT.reads).where(_scope(table, event_id))
    ).all()
    return {row_id: Absence(since, reads) for row_id, since, reads in found}


def of_event(connection: Connection, event_id: str) -> dict[str, dict[str, Absence]]:
    """Return the absences inside an event, by table and row id."""
    here = ABSENT.event_id == event_id, ABSENT.table_name != EVENTS
    query = select(ABSENT.table_name, ABSENT.row_id, ABSENT.since, ABSENT.reads).where(*here)
    found: dict[str, dict[str, Absence]] = {table: {} for table in schema.MIRRORED}
    for table, row_id, since, reads in connection.execute(query).all():
        found[table][row_id] = Absence(since, reads)
    return found


def note(
    connection: Connection, run_id: int, table: str, event_id: str | None, absences: Mapping[str, Absence]
) -> None:
    """Record the absences of a scope, replacing the earlier ones."""
    rows = [
        (table, row_id, event_id or row_id, absence.since, absence.reads, run_id)
        for row_id, absence in absences.items()
    ]
    # That of a row that moved may still be under its old event.
    bulk.upsert(connection, schema.absences, COLUMNS, rows)
    earlier = ABSENT.run_id != run_id
    connection.execute(schema.absences.delete().where(_scope(table, event_id), earlier))


def end(connection: Connection, table: str, row_ids: Iterable[str]) -> None:
    """Forget the absences of rows that a read returned, or that have vanished."""
    if ids := [*row_ids]:
        here = ABSENT.table_name == table, bulk.is_among(connection, ABSENT.row_id, ids)
        connection.execute(schema.absences.delete().where(*here))


def forget_events(connection: Connection, event_ids: Iterable[str]) -> None:
    """Forget the absences inside vanished events: these are no longer read."""
    inside = bulk.is_among(connection, ABSENT.event_id, event_ids)
    connection.execute(schema.absences.delete().where(inside))


def forget_unread(connection: Connection, live_since: datetime) -> None:
    """Forget the absences inside events that are no longer live: no read would ever settle them."""
    # An offline event without dates is not live, but SQL gives NULL for it.
    unread = select(schema.events.c.id).where(schema.live(live_since).is_not(True))
    inside_them = and_(ABSENT.table_name != EVENTS, ABSENT.event_id.in_(unread))
    connection.execute(schema.absences.delete().where(inside_them))


def inside(connection: Connection, *, all_of_them: bool) -> dict[str, set[str]]:
    """Return the tables with absent rows, by event: all of them, or those without a doubt.

    The next read may settle absences without a doubt; a doubt waits for the turn of its event.
    """
    query = select(ABSENT.event_id, ABSENT.table_name).where(ABSENT.table_name != EVENTS).distinct()
    if not all_of_them:
        query = query.where(ABSENT.waits_for.is_(None))
    found: dict[str, set[str]] = defaultdict(set)
    for event_id, table in connection.execute(query).all():
        found[event_id].add(table)
    return dict(found)


def measure(connection: Connection, run_id: int, sizes: Mapping[tuple[str, str | None], Size]) -> list[Scope]:
    """Return the scopes that a run read, `sizes` by table and event, with the number of absent rows."""
    query = (
        select(ABSENT.table_name, SCOPE.label("scope"), func.count())
        .where(ABSENT.run_id == run_id)
        .group_by(ABSENT.table_name, SCOPE)
    )
    found = {(table, scope): absent for table, scope, absent in connection.execute(query).all()}
    return [
        Scope(table=table, event_id=scope, size=size, absent=found.get((table, scope), 0))
        for (table, scope), size in sizes.items()
    ]


def gone(connection: Connection, run_id: int, scope: Scope, since: datetime | None) -> list[str]:
    """Return the rows of a scope that a run found absent again; with `since`, only since then or before."""
    here = and_(_scope(scope.table, scope.event_id), ABSENT.run_id == run_id, ABSENT.reads >= READS)
    lasting = here if since is None else and_(here, ABSENT.since <= since)
    return [*connection.scalars(select(ABSENT.row_id).where(lasting).order_by(ABSENT.row_id))]


def set_waiting(connection: Connection, scope: Scope, waits_for: str | None, *, anew: bool = True) -> None:
    """Record what the absences of a scope wait for; unless `anew`, only if nothing is recorded yet."""
    other = ABSENT.waits_for.is_distinct_from(waits_for) if anew else ABSENT.waits_for.is_(None)
    here = and_(_scope(scope.table, scope.event_id), other)
    connection.execute(schema.absences.update().where(here).values(waits_for=waits_for))


def waits_for(connection: Connection, scope: Scope) -> str | None:
    """Return what the absences of a scope wait for, as recorded; None if nothing is doubted."""
    here = _scope(scope.table, scope.event_id)
    found: str | None = connection.scalar(select(func.min(ABSENT.waits_for)).where(here))
    return found


def doubts(
    connection: Connection, now: datetime, lasting: timedelta, scope: Scope | None = None
) -> list[Doubt]:
    """Return the current doubts, that of the list of events first; or that of one scope.

    An absence that waits for time must have lasted for `lasting`.
    """
    query = (
        select(
            ABSENT.table_name,
            SCOPE.label("scope"),
            func.count(),
            func.min(ABSENT.since),
            func.max(ABSENT.since),
            func.max(ABSENT.reads),
            func.min(ABSENT.waits_for),  # accept before time
        )
        .where(ABSENT.waits_for.is_not(None), *([_scope(scope.table, scope.event_id)] if scope else []))
        .group_by(ABSENT.table_name, SCOPE)
        .order_by(SCOPE.is_not(None), SCOPE, ABSENT.table_name)
    )

    def size(table: str, event_id: str | None) -> int:
        return list_size(connection, now) if event_id is None else size_in(connection, table, event_id)

    return [
        Doubt(
            table=table,
            event_id=scope_id,
            absent=absent,
            of=scope.size.of if scope else size(table, scope_id),
            since=first,
            reads=reads,
            examples=_examples(connection, table, scope_id),
            waits_for=waits_for,
            until=last + lasting if waits_for == "time" else None,
        )
        for table, scope_id, absent, first, last, reads, waits_for in connection.execute(query).all()
    ]


def count_doubts(connection: Connection) -> int:
    """Return the number of scopes with a doubt."""
    scopes = select(ABSENT.table_name, SCOPE).where(ABSENT.waits_for.is_not(None)).distinct().subquery()
    return connection.scalar(select(func.count()).select_from(scopes)) or 0


def _examples(connection: Connection, table: str, event_id: str | None) -> list[str]:
    here = select(ABSENT.row_id).where(_scope(table, event_id), ABSENT.waits_for.is_not(None))
    found = connection.scalars(here.order_by(ABSENT.row_id).limit(EXAMPLES))
    return [plain(row_id, EXAMPLE_CHARACTERS) for row_id in found]


def list_size(connection: Connection, now: datetime) -> int:
    """Return how many events the list should hold, if some are absent."""
    return _size(connection, EVENTS, None, schema.live(now))


def size_in(connection: Connection, table: str, event_id: str) -> int:
    """Return how many rows of a table a complete read of an event should hold, if some are absent."""
    rows = schema.MIRRORED[table].c
    return _size(connection, table, event_id, and_(rows.vanished_at.is_(None), rows.event_id == event_id))


def _size(connection: Connection, table: str, event_id: str | None, expected: ColumnElement[bool]) -> int:
    """Return how many rows a scope should hold of those that are `expected`.

    Rows first seen at or after the first absence do not count if there were many before: rows that come with
    a loss are no evidence for it, and another account's list brings its own. If there were few, it is normal
    that one replaces another. A row that returned or moved keeps its first instant, and counts.
    """
    rows, here = schema.MIRRORED[table], _scope(table, event_id)
    first = select(func.min(ABSENT.since)).where(here).scalar_subquery()
    is_absent = schema.row_key(rows).in_(select(ABSENT.row_id).where(here))
    was_there = or_(rows.c.first_seen_at < first, is_absent)
    query = select(func.count(), func.count().filter(was_there)).where(expected)
    every, before = connection.execute(query).one()
    return before if before > FEW_ROWS else every


def _scope(table: str, event_id: str | None) -> ColumnElement[bool]:
    inside = [] if event_id is None else [ABSENT.event_id == event_id]
    return and_(ABSENT.table_name == table, *inside)
