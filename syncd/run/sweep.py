"""The end of a run: its rulings on what it found absent, and what follows from them.

Only what this run itself read counts; see `mirror/absence.py` for the rule and its reasons.
"""

from collections import defaultdict
from datetime import datetime, timedelta

from sqlalchemy import Connection

from syncd.database import absences, rows, state
from syncd.database.rows import Writing
from syncd.errors import SyncdError
from syncd.mirror.absence import Ruling, Scope, rule
from syncd.mirror.diff import plan_vanished, vanished
from syncd.model import ATTENDEES, EVENTS, GAUGES, Doubt, Run
from syncd.run.work import OnDoubt, Work
from syncd.text import count, format_duration

Gone = list[tuple[Scope, set[str]]]
"""The ids of the rows believed gone, with the scope in which they were absent."""


class Doubted(SyncdError):
    """A read that lacks too much to be believed soon."""

    kind = "doubted"


async def sweep(work: Work) -> None:
    """Mark as vanished what is believed gone; record and report what is doubted."""
    run, database = work.run, work.database
    since = work.clock.now() - work.config.sync.full_every
    scopes = await database.read(absences.measure, run.id, work.report.sizes)
    ruled = rule(scopes, whole=run.whole, accepted=lambda scope: _is_accepted(run, scope))
    rulings = [(scope, ruling) for scope, ruling in zip(scopes, ruled, strict=True) if scope.absent]
    for event_id, gone in (await database.read(_gone, run, rulings, since)).items():
        await work.write(_vanish, event_id, gone)
        no_gauge_is_absent = any(scope.table == GAUGES and len(ids) == scope.absent for scope, ids in gone)
        if event_id in work.report.odd and no_gauge_is_absent:
            work.report.settled(event_id)
    # A run of named events says nothing about the list and the account.
    waiting = rulings if run.whole else [pair for pair in rulings if pair[0].table != EVENTS]
    if waiting:
        lasting = work.config.sync.full_every
        found = await database.write(
            _wait, waiting, work.clock.now(), lasting, rules=run.whole, doubted=work.doubted
        )
        for doubt in found:
            _tell(work, doubt)


def _is_accepted(run: Run, scope: Scope) -> bool:
    return run.accept and (not run.accepted or scope.event_id in run.accepted)


def _gone(
    connection: Connection, run: Run, rulings: list[tuple[Scope, Ruling]], since: datetime
) -> dict[str | None, Gone]:
    """Return the rows believed gone, by event."""
    found = defaultdict[str | None, Gone](list)
    for scope, ruling in rulings:
        if ruling.gone == "none" and not (scope.table == EVENTS and run.accepted):
            continue
        ids = {*absences.gone(connection, run.id, scope, since if ruling.gone == "lasting" else None)}
        if ruling.gone == "none":  # somebody may accept single events of the list
            ids &= {*run.accepted}
        if ids:
            found[scope.event_id].append((scope, ids))
    return found


def _vanish(connection: Connection, writing: Writing, event_id: str | None, gone: Gone) -> None:
    """Mark rows of one event, or events, vanished in one transaction."""
    found = {scope.table: ids for scope, ids in gone}
    if event_id is None:
        changes = [
            change for row in sorted(found[EVENTS]) for change in vanished(EVENTS, row, [row], writing.at)
        ]
        rows.write(connection, writing, changes)
        absences.forget_events(connection, found[EVENTS])
        return
    changes = vanished(ATTENDEES, event_id, found.pop(ATTENDEES, ()), writing.at)
    rows.write(connection, writing, changes)
    if found:
        plan = plan_vanished(rows.of_event(connection, event_id), found, writing.at)
        rows.write_plan(connection, writing, plan)
        if found.get(GAUGES):  # a tariff's own quota may count again, which only a read shows
            state.mark_due(connection, [event_id], writing.at)


def _wait(
    connection: Connection,
    rulings: list[tuple[Scope, Ruling]],
    now: datetime,
    lasting: timedelta,
    *,
    rules: bool,
    doubted: OnDoubt,
) -> list[Doubt]:
    """Record what absences wait for, and return the doubts; `doubted` is called with new ones.

    A run that does not rule, one of named events, leaves what is already recorded.
    """
    found = []
    for scope, ruling in rulings:
        before = absences.waits_for(connection, scope)
        absences.set_waiting(connection, scope, ruling.waits_for, anew=rules)
        if ruling.waits_for or not rules:  # there may be a doubt from before
            doubts = absences.doubts(connection, now, lasting, scope)
            found += doubts
            for doubt in doubts:
                if doubt.waits_for != before:
                    doubted(connection, now, doubt)
    return found


def _tell(work: Work, doubt: Doubt) -> None:
    """Report a doubt: its event, or the events that the list lacks, are not up to date."""
    run = work.run
    if doubt.event_id is None:
        subject, what = "events", ""
        run.failed += doubt.absent
    else:
        subject, what = f"event {doubt.event_id}", f"{doubt.table}: "
        if not any(error.subject == subject for error in work.report.failures):
            run.synced -= 1
            run.failed += 1
    named = ", ".join(doubt.examples) + (", …" if doubt.absent > len(doubt.examples) else "")
    message = (
        f"{what}the answer lacks {doubt.absent} of {count(doubt.of, 'row')} ({named});"
        f" nothing of it is marked vanished{_until(doubt, work.clock.now())}"
    )
    work.report.fail(subject, Doubted(message))


def _until(doubt: Doubt, now: datetime) -> str:
    if doubt.until is None:
        return " until somebody says that they are gone: `syncctl accept`"
    which = f" --event {doubt.event_id}" if doubt.event_id else ""
    left_s = max((doubt.until - now).total_seconds(), 0.0)
    return f" before {format_duration(round(left_s))} are over, or until `syncctl accept{which}`"
