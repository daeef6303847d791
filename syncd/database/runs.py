"""The recorded runs: inserted when they begin, updated when they end; and what they say of the past."""

from datetime import datetime

import msgspec
from msgspec import Struct, structs
from sqlalchemy import Connection, RowMapping, Select, func, or_, select

from syncd.database import schema
from syncd.model import Counts, Outcome, Run, RunError

LATEST = 8
"""How many latest outcomes a status shows: two hours of them at the usual interval."""
COUNTS = Counts.__struct_fields__


class History(Struct, frozen=True):
    """What the recorded runs say: status and the schedule start from it."""

    run_count: int = 0
    last_run: Run | None = None
    last_success_at: datetime | None = None
    last_synced_at: datetime | None = None
    last_full_at: datetime | None = None
    whole_outcome: Outcome | None = None
    consecutive_failures: int = 0
    latest_outcomes: tuple[Outcome, ...] = ()


def put(connection: Connection, run: Run) -> int:
    """Record the present state of a run; return its id, which the database gives to a new one."""
    values = _values(run)
    runs = schema.runs
    if run.id > 0:
        connection.execute(runs.update().where(runs.c.id == run.id).values(values))
        return run.id
    if connection.dialect.name == "sqlite":  # otherwise it would continue from 0.3's negative ids
        values["id"] = (
            select(func.coalesce(func.max(runs.c.id), 0) + 1).where(runs.c.id > 0).scalar_subquery()
        )
    run_id: int = connection.execute(runs.insert().values(values).returning(runs.c.id)).scalar_one()
    return run_id


def id_of(connection: Connection, run: Run) -> int:
    """Return a run's id, even if the answer to the commit that recorded its beginning or end was lost."""
    runs = schema.runs.c
    has_ended = runs.finished_at == run.finished_at
    is_it = (runs.started_at == run.started_at, or_(runs.state == "running", has_ended))
    return run.id if run.id > 0 else connection.scalar(select(runs.id).where(*is_it)) or run.id


def has_ended(connection: Connection, run: Run) -> bool:
    """Return whether this very end of a run is recorded: not another's, who took it for interrupted."""
    runs = schema.runs.c
    is_it = (runs.id == run.id, runs.state == "done", runs.finished_at == run.finished_at)
    return connection.scalar(select(runs.id).where(*is_it)) is not None


def close_interrupted(connection: Connection, at: datetime) -> list[Run]:
    """Close the runs that an earlier process left unfinished: as failed if running, else as cancelled.

    Return the failed ones.
    """
    interrupted = RunError("run", "interrupted", "syncd ended in the middle of this run")
    errors = {"errors": [msgspec.to_builtins(interrupted)], "errors_total": 1}
    runs = schema.runs
    end = runs.update().values(state="done", finished_at=at)
    connection.execute(end.where(runs.c.state == "queued").values(outcome="cancelled"))
    running = connection.scalars(select(runs.c.id).where(runs.c.state == "running").order_by(runs.c.id)).all()
    for run_id in running:
        more = errors | _changes_by(connection, run_id)
        connection.execute(end.where(runs.c.id == run_id).values(outcome="failed", **more))
    found = (find(connection, run_id) for run_id in running)
    return [run for run in found if run]


def _changes_by(connection: Connection, run_id: int) -> dict[str, int]:
    """Return how many rows the last run changed, by kind; reads only its part of the log."""
    columns = schema.changes.c
    before = select(columns.seq).where(columns.run_id != run_id).order_by(columns.seq.desc()).limit(1)
    query = select(columns.kind, func.count()).where(
        columns.seq > func.coalesce(before.scalar_subquery(), 0), columns.run_id == run_id
    )
    found = connection.execute(query.group_by(columns.kind)).all()
    return dict.fromkeys(COUNTS, 0) | {row[0]: row[1] for row in found}


def latest_outcome(connection: Connection, but: int = 0) -> tuple[int, Outcome | None]:
    """Return id and outcome of the latest run of the whole account, `but` one, that was not cancelled.

    0 and None if there is none. The latest by id: a run of a clock that was ahead would be the latest by time
    for years.
    """
    runs = schema.runs.c
    ended = (runs.state == "done", runs.whole, runs.outcome != "cancelled", runs.id != but)
    query = select(runs.id, runs.outcome).where(*ended).order_by(runs.id.desc()).limit(1)
    found = connection.execute(query).first()
    return (found.id, found.outcome) if found else (0, None)


def find(connection: Connection, run_id: int) -> Run | None:
    """Return one recorded run."""
    return _first(connection, select(schema.runs).where(schema.runs.c.id == run_id))


def latest(connection: Connection, limit: int, before: int | None) -> list[Run]:
    """Return the latest runs that began, newest first by their ids; those before the run `before`."""
    runs = schema.runs.c
    query = select(schema.runs).where(runs.started_at.is_not(None)).order_by(runs.id.desc()).limit(limit)
    if before is not None:
        query = query.where(runs.id < before)
    return [_run(row) for row in connection.execute(query).mappings().all()]


def history(connection: Connection, at: datetime) -> History:
    """Return what the record says up to `at`."""
    runs = schema.runs.c
    past = runs.finished_at <= at  # or a run of a clock that was ahead would be the latest for years
    done = select(schema.runs).where(runs.state == "done", runs.started_at.is_not(None), past)
    whole = (runs.whole, runs.outcome != "cancelled", past)
    good = runs.outcome.in_(("ok", "partial"))
    last = func.max(runs.finished_at)
    ends = select(last.filter(runs.outcome == "ok"), last.filter(good), last.filter(good, runs.full))
    last_success_at, last_good_at, last_full_at = connection.execute(ends.where(*whole)).one()
    failures = select(func.count()).where(*whole, runs.outcome == "failed")
    if last_good_at:
        failures = failures.where(runs.finished_at > last_good_at)
    latest_first = (runs.finished_at.desc(), runs.id.desc())
    outcomes = done.with_only_columns(runs.outcome).order_by(*latest_first)
    ended = select(func.count()).where(runs.state == "done", runs.started_at.is_not(None))
    return History(
        run_count=connection.scalar(ended) or 0,
        last_run=_first(connection, done.order_by(*latest_first)),
        last_success_at=last_success_at,
        last_synced_at=last_good_at,
        last_full_at=last_full_at,
        whole_outcome=connection.scalar(outcomes.where(*whole).limit(1)),
        consecutive_failures=connection.scalar(failures) or 0,
        latest_outcomes=tuple(connection.scalars(outcomes.limit(LATEST))),
    )


def _first(connection: Connection, query: Select[tuple[object, ...]]) -> Run | None:
    row = connection.execute(query.limit(1)).mappings().first()
    return _run(row) if row else None


def _values(run: Run) -> dict[str, object]:
    values: dict[str, object] = msgspec.to_builtins(run, builtin_types=[datetime])
    for name in ("id", "progress", "counts"):
        del values[name]
    return values | structs.asdict(run.counts)


def _run(row: RowMapping) -> Run:
    values: dict[str, object] = {str(name): value for name, value in row.items()}
    values["counts"] = {name: values.pop(name) for name in COUNTS}
    return msgspec.convert(values, Run)
