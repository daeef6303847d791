"""Reads and writes the tables: the mirror, the changes, the runs, and what must outlive a restart.

Every method is one transaction, blocks, and may be called from any thread. Errors leave as StoreError.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    true,
)

from syncd import bulk, schema
from syncd.database import Database
from syncd.model import Counts, Json, Outcome, Run, RunError
from syncd.reconcile import Change, EventPlan, EventRows, Row, Stored, Suspicion, is_most

BOOKKEEPING = {"first_seen_at", "changed_at", "vanished_at", "availability_at"}
CHANGE_COLUMNS = ("run_id", "seen_at", "table_name", "row_id", "event_id", "kind", "diff")
COUNTS = Counts.__struct_fields__
PRUNED_AT_ONCE = 10_000
"""So many changes are removed in one transaction, so that it is short."""
SHOWN = (
    *("id", "name", "starts_at", "ends_at", "place", "online", "shop_url"),
    *("places_total", "places_left", "unlimited", "is_full", "availability_at", "vanished_at"),
)
"""The columns of an event that the control API shows."""


class History(Struct, frozen=True):
    """What the runs on record say: what status and the schedule start from."""

    last_id: int = 0
    run_count: int = 0
    last_run: Run | None = None
    last_success_at: datetime | None = None
    last_synced_at: datetime | None = None
    last_full_at: datetime | None = None
    whole_outcome: Outcome | None = None
    consecutive_failures: int = 0


class Figures(Struct, frozen=True):
    """Of live events: how many there are, how many are full, and of how many figures were read.

    `oldest_at` is when the oldest of those were read, None where none were.
    """

    events: int
    full: int
    read: int
    oldest_at: datetime | None


class Store:
    """The queries on an open database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._transaction = database.begin

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # --- the mirror

    def present_events(self) -> dict[str, datetime | None]:
        """Return the events that are not marked vanished, and when their availability was last read."""
        events = schema.events.c
        with self._transaction() as connection:
            rows = _all(
                connection, select(events.id, events.availability_at).where(events.vanished_at.is_(None))
            )
            return {row["id"]: row["availability_at"] for row in rows}

    def events_with_sessions(self) -> set[str]:
        """Return the ids of the events that have a session not marked vanished."""
        sessions = schema.sessions.c
        with self._transaction() as connection:
            return set(
                connection.scalars(select(sessions.event_id).distinct().where(sessions.vanished_at.is_(None)))
            )

    def event_suspects(self) -> dict[str, Suspicion]:
        """Return the events that may be gone from the account."""
        with self._transaction() as connection:
            return suspects_in(connection, schema.suspects.c.table_name == schema.events.name)

    def doubted_events(self, live_since: datetime) -> int:
        """Return in how many live events a full run's read was doubted."""
        table = schema.suspects.c
        query = (
            select(func.count(table.event_id.distinct()))
            .join(schema.events, schema.events.c.id == table.event_id)
            .where(table.doubted, table.table_name != schema.events.name, _live(live_since))
        )
        with self._transaction() as connection:
            return connection.scalar(query) or 0

    def mostly_suspected(self) -> frozenset[str]:
        """Return the tables of which most rows, over all events, may have vanished."""
        suspects, found = schema.suspects.c, set()
        counted = select(suspects.table_name, func.count()).group_by(suspects.table_name)
        with self._transaction() as connection:
            inside = counted.where(suspects.table_name != schema.events.name)
            for name, some in connection.execute(inside).all():
                present = select(true()).where(schema.MIRRORED[name].c.vanished_at.is_(None))
                enough = present.limit(2 * some).subquery()  # counting them all would take its time
                if is_most(some, connection.scalar(select(func.count()).select_from(enough)) or 0):
                    found.add(name)
        return frozenset(found)

    def stored_events(self, ids: Iterable[str]) -> dict[str, Stored]:
        """Return the event rows of these ids, as far as there are any."""
        with self._transaction() as connection:
            rows = _all(connection, select(schema.events).where(schema.events.c.id.in_(list(ids))))
            return {row["id"]: _stored(row) for row in rows}

    def event_rows(self, event_id: str) -> EventRows:
        """Return all that the mirror holds of one event."""
        found = EventRows()
        with self._transaction() as connection:
            for name, table in schema.PLANNED.items():
                key = table.c.id if table is schema.events else table.c.event_id
                rows = _all(connection, select(table).where(key == event_id))
                found.rows[name] = {_row_id(table, row): _stored(row) for row in rows}
                found.suspects[name] = {}
            columns = schema.suspects.c
            here = select(schema.suspects).where(
                columns.event_id == event_id, columns.table_name.in_(schema.PLANNED)
            )
            for row in _all(connection, here):
                found.suspects[row["table_name"]][row["row_id"]] = _suspicion(row)
        return found

    def suspected_events(self) -> set[str]:
        """Return the events inside which rows may have vanished."""
        table = schema.suspects.c
        query = select(table.event_id).distinct().where(table.table_name != schema.events.name)
        with self._transaction() as connection:
            return set(connection.scalars(query).all())

    def apply(
        self,
        run_id: int,
        plan: EventPlan,
        at: datetime,
        also: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Write what `also` writes, and an event's plan, all or nothing."""
        with self._transaction(write=True) as connection:
            also(connection)
            write_plan(connection, run_id, plan, at)

    def forget_suspects(self, event_ids: Iterable[str]) -> None:
        """Drop suspicions inside events of which nothing was read: two runs in a row that is not."""
        table = schema.suspects.c
        inside = table.table_name != schema.events.name
        self._forget(and_(inside, table.event_id.in_(list(event_ids))))

    def forget_absent(self) -> None:
        """Suspect no event of being gone from the account: the list was no evidence."""
        self._forget(schema.suspects.c.table_name == schema.events.name)

    def forget_all_suspects(self) -> None:
        """Drop every suspicion: a run read nothing at all."""
        self._forget(true())

    def _forget(self, doomed: ColumnElement[bool]) -> None:
        with self._transaction() as connection:
            found = connection.scalar(select(func.count()).select_from(schema.suspects).where(doomed))
        if found:  # mostly there are none, and nothing is written
            with self._transaction(write=True) as connection:
                connection.execute(schema.suspects.delete().where(doomed))

    def figures(self, live_since: datetime, but: Iterable[str] = ()) -> Figures:
        """Return what is known of the figures of live events; those in `but` are left aside."""
        events = schema.events.c
        read_at = events.availability_at
        query = select(
            func.count(), func.count().filter(events.is_full), func.count(read_at), func.min(read_at)
        )
        with self._transaction() as connection:
            here = _live(live_since), events.id.not_in([*but])
            return Figures(*connection.execute(query.where(*here)).one())

    def events(self, live_since: datetime | None) -> list[Json]:
        """Return the events as the control API shows them, by start; all where `live_since` is None."""
        events = schema.events.c
        query = select(*(events[name] for name in SHOWN)).order_by(events.starts_at.nulls_first(), events.id)
        if live_since is not None:
            query = query.where(_live(live_since))
        now = datetime.now(UTC)
        with self._transaction() as connection:
            return [
                dict(row) | {"age_s": _age_s(row["availability_at"], now)} for row in _all(connection, query)
            ]

    # --- the change log

    def prune_changes(self, keep: timedelta, now: datetime, full_at: datetime, within_s: float) -> int:
        """Remove changes that are older than `keep`, as many as can be in a while; return how many.

        A wrong clock must not empty the log. So their age counts from the earliest of three instants: now,
        the full run before the present one (`full_at`), and the latest change; and what stands behind a
        change that is young enough stays, for it came later, whatever instant it bears.
        """
        deadline_s = time.monotonic() + within_s
        old = self._old_changes(keep, now, full_at)
        batch = select(schema.changes.c.seq).where(old).order_by(schema.changes.c.seq).limit(PRUNED_AT_ONCE)
        statement = schema.changes.delete().where(schema.changes.c.seq.in_(batch))
        removed = 0
        while True:
            with self._transaction(write=True) as connection:
                count = connection.execute(statement).rowcount
            removed += count
            if count < PRUNED_AT_ONCE or time.monotonic() >= deadline_s:
                return removed

    def _old_changes(self, keep: timedelta, now: datetime, full_at: datetime) -> ColumnElement[bool]:
        """Return what holds for those to be removed. Found once and without a lock: it may take long."""
        changes = schema.changes.c
        with self._transaction() as connection:
            latest = connection.scalar(select(changes.seen_at).order_by(changes.seq.desc()).limit(1))
            since = min(now, full_at, latest or now) - keep
            young = select(changes.seq).where(changes.seen_at.between(since, now))
            first_young = connection.scalar(young.order_by(changes.seq).limit(1))
        old = changes.seen_at < since
        return old if first_young is None else and_(old, changes.seq < first_young)

    # --- runs

    def open_history(self, at: datetime) -> History:
        """Close what an earlier process left running as failed; return what the record says up to `at`."""
        interrupted = RunError("run", "interrupted", "syncd ended in the middle of this run")
        with self._transaction(write=True) as connection:
            connection.execute(
                schema.runs.update()
                .where(schema.runs.c.state != "done")
                .values(
                    state="done",
                    outcome="failed",
                    finished_at=at,
                    errors=[msgspec.to_builtins(interrupted)],
                    errors_total=1,
                )
            )
            return _history(connection, at)

    def start_run(self, run: Run) -> None:
        """Put a run on record as running."""
        with self._transaction(write=True) as connection:
            connection.execute(schema.runs.insert().values(_run_values(run)))

    def finish_run(self, run: Run, read_at: Mapping[str, datetime]) -> None:
        """Put a run's end on record, and when the events in which nothing changed were read."""
        with self._transaction(write=True) as connection:
            _set_read_at(connection, read_at)
            connection.execute(schema.runs.delete().where(schema.runs.c.id == run.id))
            connection.execute(schema.runs.insert().values(_run_values(run)))

    def run(self, run_id: int) -> Run | None:
        """Return one run on record."""
        with self._transaction() as connection:
            return _first_run(connection, select(schema.runs).where(schema.runs.c.id == run_id))

    def runs(self, limit: int, before: int | None) -> list[Run]:
        """Return the latest runs, newest first; those that started before the run `before`."""
        runs = schema.runs.c
        query = select(schema.runs).order_by(runs.started_at.desc().nulls_last(), runs.id.desc()).limit(limit)
        if before is not None:
            start = select(runs.started_at).where(runs.id == before).scalar_subquery()
            query = query.where(
                or_(runs.started_at < start, and_(runs.started_at == start, runs.id < before))
            )
        with self._transaction() as connection:
            return [_run(row) for row in _all(connection, query)]

    # --- what must outlive a restart

    def paused(self) -> bool:
        """Return whether scheduled runs were paused."""
        state = schema.state.c
        with self._transaction() as connection:
            return bool(connection.scalar(select(state.value).where(state.name == "paused")))

    def set_paused(self, paused: bool) -> None:
        """Remember whether scheduled runs are paused."""
        with self._transaction(write=True) as connection:
            connection.execute(schema.state.delete().where(schema.state.c.name == "paused"))
            connection.execute(schema.state.insert().values(name="paused", value=paused))

    def note_request(self, window_s: float) -> None:
        """Note that a request is being sent now, and forget those older than the window."""
        now = time.time()
        sent_at = schema.requests.c.sent_at
        stale = or_(sent_at < now - window_s, sent_at > now + window_s)  # the clock may have been set back
        with self._transaction(write=True) as connection:
            connection.execute(schema.requests.delete().where(stale))
            bulk.upsert(connection, schema.requests, ("sent_at",), [(now,)])

    def request_ages_s(self, window_s: float) -> list[float]:
        """Return how long ago the requests within the window were sent. The clock may have been set back."""
        now = time.time()
        sent_at = schema.requests.c.sent_at
        with self._transaction() as connection:
            noted = connection.scalars(select(sent_at).where(sent_at > now - window_s)).all()
        return [max(now - at, 0.0) for at in noted]


def write_plan(connection: Connection, run_id: int, plan: EventPlan, at: datetime) -> None:
    """Write rows, changes and bookkeeping of a plan, in the caller's transaction."""
    _write_rows(connection, plan.changes, at)
    _write_changes(connection, run_id, plan.changes, at)
    _write_suspects(connection, plan)
    if plan.read_at:
        _set_read_at(connection, {plan.event_id: plan.read_at})
    if plan.was_due and not plan.doubts:
        reads = schema.reads
        connection.execute(reads.update().where(reads.c.event_id == plan.event_id).values(due_at=None))


def _all(connection: Connection, query: Select[Any]) -> Sequence[RowMapping]:
    """Return every row. Read to its end: a cursor left open keeps the connection's next user from writing."""
    return connection.execute(query).mappings().all()


def suspects_in(connection: Connection, *scope: ColumnElement[bool]) -> dict[str, Suspicion]:
    """Return the suspected rows of a scope within one table, by row id."""
    return {row["row_id"]: _suspicion(row) for row in _all(connection, select(schema.suspects).where(*scope))}


def _suspicion(row: RowMapping) -> Suspicion:
    return Suspicion(doubted=row["doubted"], by_hand=row["by_hand"])


def _stored(row: RowMapping) -> Stored:
    values = {name: value for name, value in row.items() if name not in BOOKKEEPING}
    return Stored(values, row["vanished_at"])


def _row_id(table: Table, row: RowMapping) -> str:
    return "/".join(row[column.name] for column in table.primary_key)


def _row_key(table: Table) -> ColumnElement[str]:
    """Return what equals `_row_id`. An id is not taken apart: any part of a composite one may hold a `/`."""
    first, *others = table.primary_key
    joined: ColumnElement[str] = first
    for column in others:
        joined = joined + "/" + column
    return joined


def _write_rows(connection: Connection, changes: list[Change], at: datetime) -> None:
    by_table: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_table[change.table].append(change)
    for name, of_table in by_table.items():
        table = schema.MIRRORED[name]
        _mark_vanished(connection, table, [change for change in of_table if change.kind == "vanished"], at)
        rows = [change.values for change in of_table if change.kind != "vanished"]
        if rows:  # one that stands under another event already moves to this one
            names = (*rows[0], "first_seen_at", "changed_at", "vanished_at")
            values = [(*row.values(), at, at, None) for row in rows]
            bulk.upsert(connection, table, names, values, keep=("first_seen_at",))


def _mark_vanished(connection: Connection, table: Table, changes: list[Change], at: datetime) -> None:
    if changes:
        first = next(iter(table.primary_key))
        here = _row_key(table) == bindparam("row")
        if len(table.primary_key) > 1:  # the key's index finds the event, whose id is its first part
            here = and_(here, first == bindparam("event"))
        statement = table.update().where(here).values(changed_at=at, vanished_at=at)
        connection.execute(statement, [{"row": each.row_id, "event": each.event_id} for each in changes])


def _write_changes(connection: Connection, run_id: int, changes: list[Change], at: datetime) -> None:
    if changes:
        marked = {"vanished_at": [None, at]}
        rows = [
            (
                *(run_id, at, change.table, change.row_id, change.event_id, change.kind),
                change.diff | marked if change.kind == "vanished" else change.diff,
            )
            for change in changes
        ]
        bulk.insert(connection, schema.changes, CHANGE_COLUMNS, rows)


def _write_suspects(connection: Connection, plan: EventPlan) -> None:
    table = schema.suspects
    names = ("table_name", "row_id", "event_id", "doubted", "by_hand")
    for name, suspects in plan.suspects.items():
        here = and_(table.c.table_name == name, table.c.event_id == plan.event_id)
        connection.execute(table.delete().where(here))
        rows = [
            (name, row_id, plan.event_id, suspicion.doubted, suspicion.by_hand)
            for row_id, suspicion in suspects.items()
        ]
        if rows:  # one of a row that moved may still stand under the event it left
            bulk.upsert(connection, table, names, rows)


def _set_read_at(connection: Connection, read_at: Mapping[str, datetime]) -> None:
    if read_at:
        events = schema.events
        at = bindparam("at", type_=schema.Instant)
        stored = events.c.availability_at
        # A run whose end comes to record late must not set back what a later one read; an instant that is
        # yet to come was read off a clock that was wrong.
        older = or_(stored.is_(None), stored < at, stored > datetime.now(UTC))
        statement = events.update().where(events.c.id == bindparam("event"), older).values(availability_at=at)
        connection.execute(statement, [{"event": event_id, "at": at} for event_id, at in read_at.items()])


def _live(since: datetime) -> ColumnElement[bool]:
    events = schema.events.c
    end = func.coalesce(events.ends_at, events.starts_at)
    return and_(events.vanished_at.is_(None), or_(end.is_(None), end > since))


def _age_s(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else round(max((now - at).total_seconds(), 0.0), 1)


def _run_values(run: Run) -> Row:
    values = {name: getattr(run, name) for name in run.__struct_fields__}
    del values["progress"], values["counts"]
    values |= {
        "requested_by": msgspec.to_builtins(run.requested_by),
        "errors": msgspec.to_builtins(run.errors),
    }
    return values | {name: getattr(run.counts, name) for name in COUNTS}


def _run(row: RowMapping) -> Run:
    values: Row = {str(name): value for name, value in row.items()}
    values["counts"] = {name: values.pop(name) for name in COUNTS}
    return msgspec.convert(values, Run)


def _first_run(connection: Connection, query: Select[Any]) -> Run | None:
    rows = _all(connection, query.limit(1))
    return _run(rows[0]) if rows else None


def _history(connection: Connection, at: datetime) -> History:
    runs = schema.runs.c
    past = runs.finished_at <= at  # or a clock that was ahead would be the latest for years
    done = select(schema.runs).where(runs.state == "done", past)
    whole = (runs.whole, runs.outcome != "cancelled", past)
    good = runs.outcome.in_(("ok", "partial"))

    def last_end(*conditions: ColumnElement[bool]) -> datetime | None:
        latest: datetime | None = connection.scalar(
            select(func.max(runs.finished_at)).where(*whole, *conditions)
        )
        return latest

    last_good_at = last_end(good)
    failures = select(func.count()).where(*whole, runs.outcome == "failed")
    if last_good_at:
        failures = failures.where(runs.finished_at > last_good_at)
    latest_first = (runs.finished_at.desc(), runs.id.desc())
    last_whole = _first_run(connection, done.where(*whole).order_by(*latest_first))
    return History(
        last_id=max(connection.scalar(select(func.max(runs.id))) or 0, 0),
        run_count=connection.scalar(select(func.count()).where(runs.state == "done")) or 0,
        last_run=_first_run(connection, done.order_by(*latest_first)),
        last_success_at=last_end(runs.outcome == "ok"),
        last_synced_at=last_good_at,
        last_full_at=last_end(good, runs.full),
        whole_outcome=last_whole.outcome if last_whole else None,
        consecutive_failures=connection.scalar(failures) or 0,
    )
