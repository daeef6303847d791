"""Decides what a read means for the mirror: a pure diff, with no I/O and no clock.

Rows that were read are compared column by column. Rows that were *not* read are judged: a row is believed
gone only when two complete reads in two runs in a row lack it, and a read that lacks too much is doubted,
because an error upstream can look like an empty account (consumers of this API have lost data that way).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeVar

from msgspec import Struct, field, structs

from syncd import schema
from syncd.availability import with_figures
from syncd.model import Counts, Event, Gauge, Session, Ticket

Record = Event | Gauge | Ticket | Session
R = TypeVar("R", Gauge, Ticket, Session)
Row = dict[str, Any]
FIGURES = ("places_total", "places_left", "unlimited", "is_full")
ChangeKind = Literal["inserted", "updated", "vanished", "returned"]
DOUBT_ABOVE_ROWS = 3
"""From more than so many rows on, a read that lacks over half of them is doubted."""


class Stored(Struct, frozen=True):
    """A row as the mirror has it: its public columns, and since when it is marked vanished."""

    values: Row
    vanished_at: datetime | None


class Evidence(Struct, frozen=True):
    """What weight a run's reads have.

    `full`: the run reads everything. `by_hand`: somebody asked for that. `needs_hand`: rows are doubted in so
    many events that only runs asked for by hand may be believed. `mostly_suspected`: the tables of which most
    rows were lacking before, a few here and a few there, so that all of theirs that are lacking are doubted.
    """

    full: bool = False
    by_hand: bool = False
    needs_hand: bool = False
    mostly_suspected: frozenset[str] = frozenset()


class Suspicion(Struct, frozen=True):
    """Why a row that is still in the mirror may be gone.

    Not `doubted`: the latest read of its scope lacked it, among few. `doubted`: a full run's read lacked it,
    among too many. `by_hand`: somebody asked for the full run that lacked it last.
    """

    doubted: bool = False
    by_hand: bool = False


class Verdict(Struct, frozen=True):
    """What is believed of absent rows: those gone, those suspected from now on, and a doubt to report."""

    vanished: frozenset[str] = frozenset()
    suspects: dict[str, Suspicion] = field(default_factory=dict)
    doubt: str | None = None


class Change(Struct, frozen=True):
    """One row to write. `values`: the whole row, empty where it vanished. `diff`: column → [old, new]."""

    table: str
    row_id: str
    event_id: str
    kind: ChangeKind
    values: Row
    diff: dict[str, list[object]]


class EventRows(Struct):
    """All that the mirror holds of one event: by table name, rows and suspicions by row id."""

    rows: dict[str, dict[str, Stored]] = field(default_factory=dict)
    suspects: dict[str, dict[str, Suspicion]] = field(default_factory=dict)


class EventPlan(Struct, kw_only=True):
    """What one event's reads ask of the database.

    `suspects` holds the tables in which suspicions change. `read_at` is when the availability was read, None
    where it was not. `doubts` says which tables' reads are not believed, and why. `was_due`: what made the
    event due is read herewith. `apart` counts rows that are compared and written apart from the plan.
    `present` and `missing` count the rows by table that complete reads should hold, and that they lacked.
    """

    event_id: str
    changes: list[Change] = field(default_factory=list)
    unchanged: int = 0
    suspects: dict[str, dict[str, Suspicion]] = field(default_factory=dict)
    read_at: datetime | None = None
    doubts: dict[str, str] = field(default_factory=dict)
    was_due: bool = False
    apart: Counts = field(default_factory=Counts)
    present: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)

    @property
    def writes(self) -> bool:
        """Whether there is anything to write now; `read_at` alone can wait for the end of the run."""
        return bool(self.changes or self.suspects or self.was_due)

    def counts(self) -> Counts:
        """Return the rows by what becomes of them."""
        counts = Counts(unchanged=self.unchanged)
        counts.add(self.apart)
        for change in self.changes:
            setattr(counts, change.kind, getattr(counts, change.kind) + 1)
        return counts


class Fetched(Struct, frozen=True, kw_only=True):
    """What complete reads said of one event. `sessions` is None where they need not be read."""

    gauges: Mapping[str, Gauge]
    tickets: Mapping[str, Ticket]
    sessions: Mapping[str, Session] | None
    read_at: datetime


def row_id(record: Record) -> str:
    """Return the record's key as one text: its id, a gauge's four parts joined by `/`."""
    if isinstance(record, Gauge):
        return f"{record.event_id}/{record.session_id}/{record.type}/{record.gauge_id}"
    return record.id


def compare(table: str, stored: Stored | None, record: Record) -> Change | None:
    """Return the change that brings `stored` to `record`, None where they are equal."""
    fetched = structs.asdict(record)
    known = stored.values if stored else {}
    diff = {
        name: [known.get(name), value]
        for name, value in fetched.items()
        if not is_same(known.get(name), value)
    }
    kind: ChangeKind = "inserted" if stored is None else "returned" if stored.vanished_at else "updated"
    if not diff and kind == "updated":
        return None
    event_id = record.id if isinstance(record, Event) else record.event_id
    if stored and stored.vanished_at:
        diff["vanished_at"] = [stored.vanished_at, None]
    return Change(table, row_id(record), event_id, kind, fetched, diff)


def judge(
    present: AbstractSet[str],
    fetched: AbstractSet[str],
    suspects: Mapping[str, Suspicion],
    evidence: Evidence,
    *,
    are_mostly_suspected: bool = False,
) -> Verdict:
    """Return what a complete read of a scope says of the rows it lacks.

    `present`: the rows of the scope not yet vanished; `fetched`: those the read returned; `suspects`: what
    earlier runs suspected. Whatever is not in the verdict's suspects is no longer suspected.
    `are_mostly_suspected`: so are most rows of other scopes too.
    """
    missing = present - fetched
    if not missing:
        return Verdict()
    if fetched and not is_most(len(missing), len(present)):
        return _judge_few(present, missing, suspects, evidence, are_mostly_suspected=are_mostly_suspected)
    doubted = {row: suspects[row] for row in missing if row in suspects and suspects[row].doubted}
    needs_hand = evidence.needs_hand or are_mostly_suspected
    if not evidence.full:
        return Verdict(suspects=doubted, doubt=_doubt(present, missing, needs_hand=needs_hand))
    gone = frozenset(
        row
        for row, suspicion in doubted.items()
        if not needs_hand or (evidence.by_hand and suspicion.by_hand)
    )
    rest = missing - gone
    return Verdict(
        gone,
        {row: Suspicion(doubted=True, by_hand=evidence.by_hand) for row in rest},
        _doubt(present, rest, needs_hand=needs_hand) if rest else None,
    )


def _judge_few(
    present: AbstractSet[str],
    missing: AbstractSet[str],
    suspects: Mapping[str, Suspicion],
    evidence: Evidence,
    *,
    are_mostly_suspected: bool,
) -> Verdict:
    """Return what a read says that lacks a few rows among others."""
    lacked = {row: suspects[row] for row in missing if row in suspects and not suspects[row].doubted}
    if not are_mostly_suspected:
        gone = frozenset(lacked)
        return Verdict(gone, {row: Suspicion() for row in missing - gone})
    gone = frozenset(row for row, before in lacked.items() if evidence.by_hand and before.by_hand)
    rest = missing - gone
    now = Suspicion(by_hand=evidence.by_hand)
    return Verdict(
        gone,
        {row: now if evidence.full else lacked.get(row, now) for row in rest},
        _doubt(present, rest, needs_hand=True) if rest else None,
    )


def is_most(some: int, rows: int) -> bool:
    """Tell whether so many rows lacking are most of many: a fault rather than news."""
    return rows > DOUBT_ABOVE_ROWS and 2 * some > rows


def plan_event(event: Event, known: EventRows, fetched: Fetched, evidence: Evidence) -> EventPlan:
    """Return the plan for one live event whose scopes were all read.

    Figures are derived from the rows that stand in the mirror afterwards: a row that is merely suspected
    still counts, and a doubted read counts for nothing. So one odd answer never moves a figure by absence.
    """
    plan = EventPlan(event_id=event.id, read_at=fetched.read_at)
    gauges = _standing(
        plan, schema.gauges.name, Gauge, known=known, fetched=fetched.gauges, evidence=evidence
    )
    tickets = _standing(
        plan, schema.tickets.name, Ticket, known=known, fetched=fetched.tickets, evidence=evidence
    )
    sessions = _standing(
        plan, schema.sessions.name, Session, known=known, fetched=fetched.sessions or {}, evidence=evidence
    )
    event, new_tickets, new_sessions = with_figures(
        event, gauges.values(), [*tickets.values()], [*sessions.values()], now=fetched.read_at
    )
    _compare_all(plan, schema.events.name, known, [event])
    _compare_all(plan, schema.gauges.name, known, gauges.values())
    _compare_all(plan, schema.tickets.name, known, new_tickets)
    _compare_all(plan, schema.sessions.name, known, new_sessions)
    if schema.gauges.name in plan.doubts:
        plan.read_at = None
    return plan


def plan_listed(event: Event, stored: Stored | None) -> EventPlan:
    """Return the plan for an event of which only the list was read: its figures stay as they are."""
    if stored:
        figures = {name: stored.values[name] for name in FIGURES}
        event = structs.replace(event, **figures)
    plan = EventPlan(event_id=event.id)
    _compare_all(
        plan,
        schema.events.name,
        EventRows({schema.events.name: {event.id: stored}} if stored else {}),
        [event],
    )
    return plan


def plan_absent(
    event_ids: Iterable[str], verdict: Verdict, suspects: Mapping[str, Suspicion]
) -> list[EventPlan]:
    """Return the plans for what the list of events says of those that it lacks, or no longer lacks."""
    table = schema.events.name
    plans = []
    for event_id in sorted({*event_ids, *suspects}):
        suspicion = verdict.suspects.get(event_id)
        gone = event_id in verdict.vanished
        if gone or suspicion != suspects.get(event_id):
            plan = EventPlan(event_id=event_id, suspects={table: {event_id: suspicion} if suspicion else {}})
            plan.changes = [Change(table, event_id, event_id, "vanished", {}, {})] if gone else []
            plans.append(plan)
    return plans


def plan_missing(
    plan: EventPlan,
    table: str,
    present: AbstractSet[str],
    fetched: AbstractSet[str],
    *,
    suspects: Mapping[str, Suspicion],
    evidence: Evidence,
) -> Verdict:
    """Plan what a complete read of one event's rows means for those that it lacks; see `judge`."""
    verdict = judge(
        present, fetched, suspects, evidence, are_mostly_suspected=table in evidence.mostly_suspected
    )
    plan.present[table] += len(present)
    plan.missing[table] += len(present - fetched)
    plan.changes += [
        Change(table, row, plan.event_id, "vanished", {}, {}) for row in sorted(verdict.vanished)
    ]
    if verdict.suspects != suspects:
        plan.suspects[table] = verdict.suspects
    if verdict.doubt:
        plan.doubts[table] = verdict.doubt
    return verdict


def _standing(
    plan: EventPlan,
    table: str,
    record_type: type[R],
    *,
    known: EventRows,
    fetched: Mapping[str, R],
    evidence: Evidence,
) -> dict[str, R]:
    """Return the rows that stand in the mirror after this read; plan what vanished and is suspected."""
    stored = known.rows.get(table, {})
    present = {row for row, old in stored.items() if not old.vanished_at}
    suspects = known.suspects.get(table, {})
    verdict = plan_missing(plan, table, present, fetched.keys(), suspects=suspects, evidence=evidence)
    kept = present - verdict.vanished - (set() if verdict.doubt else fetched.keys())
    standing = {row: record_type(**stored[row].values) for row in sorted(kept)}
    return standing if verdict.doubt else {**standing, **fetched}


def _compare_all(plan: EventPlan, table: str, known: EventRows, records: Iterable[Record]) -> None:
    stored = known.rows.get(table, {})
    for record in records:
        change = compare(table, stored.get(row_id(record)), record)
        if change:
            plan.changes.append(change)
        else:
            plan.unchanged += 1


def is_same(old: object, new: object) -> bool:
    """Tell whether a column keeps its value; inside JSON 1 is neither true nor 1.0, as Python has it."""
    if isinstance(new, dict | list):
        return _canonical(old) == _canonical(new)
    return old == new


def _canonical(value: object) -> str:
    """Return JSON in one spelling, that of PostgreSQL's numbers: 1e300 is its digits, -0.0 is 0.0."""
    text = json.dumps(value, sort_keys=True)
    if "e+" in text or "-0.0" in text:  # mostly there are none
        text = json.dumps(json.loads(text, parse_float=_number))
    return text


def _number(text: str) -> float | int:
    return int(Decimal(text)) if "e+" in text else float(text) or 0.0


def _doubt(present: AbstractSet[str], missing: AbstractSet[str], *, needs_hand: bool) -> str:
    how = "`syncctl run-now --full` twice" if needs_hand else "two full runs in a row"
    named = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")  # noqa: PLR2004
    return (
        f"the answer lacks {len(missing)} of {len(present)} rows ({named}); nothing is marked vanished,"
        f" it would take {how} that agree"
    )
