"""What runs may do to the mirror: judged by what Billetweb's stand-in told them, not by syncd's own logic.

`Truth` follows the mirror from run to run (`witness.py` remembers the answers): it fails where a row changes
to what was not told, where one vanishes that either of its last two reads showed or while its run lacked
most, and where the log of changes, replayed from an empty mirror, does not give the mirror's public columns.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from decimal import Decimal
from itertools import combinations
from typing import Any, NamedTuple

from conftest import Rig
from msgspec import structs
from sqlalchemy import select

from support.witness import ATTENDEES, EVENTS, GAUGES, SESSIONS, TICKETS, Place, Told
from syncd.database import schema
from syncd.mirror.availability import with_figures
from syncd.model import PERSONAL, Gauge, Run, Session, Ticket

Row = dict[str, Any]
BOOKKEEPING = {"first_seen_at", "changed_at", "vanished_at", "availability_at"}
FIGURES = {"places_total", "places_left", "unlimited", "is_full", "sale_status"}
FEW = 3
"""So few rows are no most of an account."""
Scope = tuple[str, str]
"""Table and event, "" for the list of events."""


class Lacked(NamedTuple):
    """Of a scope that was read: the rows that the read should have held, and those that it lacked."""

    of: set[str]
    rows: set[str]


class Truth:
    """The mirror as the runs so far left it, and what they may do next."""

    def __init__(self) -> None:
        self.rows: dict[Place, Row] = {}
        self._replayed: dict[Place, Row] = {}
        self._lacking = Counter[Place]()
        self._seq = 0
        self._seen_at = datetime.min.replace(tzinfo=UTC)

    def follow(self, rig: Rig, run: Run, told: Told) -> None:
        """Fail unless the run did to the mirror what it may after these answers, and put it on record."""
        before, self.rows = self.rows, look(rig)
        assert before.keys() <= self.rows.keys()
        told.keep(before)
        self._now = rig.clock.now()
        for place, row in self.rows.items():
            _assert_told(place, before.get(place), row, told, self._now)
        for event_id in told.read:
            _assert_figures(event_id, before, self.rows, told, self._now)
        lacked = self._lacked(before, told)
        self._assert_gone(before, run, lacked)
        if run.outcome == "ok":
            self._assert_current(run, told)
        self._replay(rig, run)
        self._remember(told, lacked)

    def _lacked(self, before: dict[Place, Row], told: Told) -> dict[Scope, Lacked]:
        """Return what the complete reads of this run should have held, and what none of them held."""
        shown = {(table, key) for table, _, complete in _judged(told) for key in complete}
        found = {}
        for table, event_id, _ in _judged(told):
            of = self._present(before, table, event_id, told)
            found[table, event_id] = Lacked(of, {key for key in of if (table, key) not in shown})
        return found

    def _assert_gone(self, before: dict[Place, Row], run: Run, lacked: dict[Scope, Lacked]) -> None:
        """Fail where a row vanished that one of the last two reads showed, or while the run lacked most.

        Somebody who says that rows are gone is believed of those that were lacking before, too.
        """
        gone = {place for place, row in self.rows.items() if _vanished_now(before.get(place), row)}
        for table, key in gone:
            row = before[table, key]
            scope = (table, _scope(table, row))
            assert key in lacked[scope].rows, f"{table} {key} vanished though nothing lacked it"
            assert self._lacking[table, key], f"{table} {key} vanished after one read that lacked it"
            accepts = run.accept and (
                not run.accepted or (key if table == EVENTS else scope[1]) in run.accepted
            )
            if accepts:
                continue
            assert run.whole, f"{table} {key} vanished in a run of named events"
            rows = sum(len(one.of) for (name, _), one in lacked.items() if name == table)
            missing = sum(len(one.rows) for (name, _), one in lacked.items() if name == table)
            assert rows <= FEW or missing <= rows - missing, f"most of {table} vanished by itself"
            assert table != EVENTS or missing < rows, "the account was emptied by itself"
        doubted = {error.subject for error in run.errors if error.kind == "doubted"}
        assert doubted <= {_subject(*scope) for scope, one in lacked.items() if one.rows}

    def _present(self, before: dict[Place, Row], table: str, event_id: str, told: Told) -> set[str]:
        """Return the rows that a read of a scope should have held: those that stood in it before."""
        there = {
            key
            for (name, key), row in before.items()
            if (name, _scope(name, row)) == (table, event_id)
            and not row["vanished_at"]
            and (table != EVENTS or not is_over(row, self._now))
        }
        if table == ATTENDEES:  # the account's were read before those of its events
            there |= {key for key, one in told.everybody.items() if one.event_id == event_id}
            there -= {key for key, one in told.everybody.items() if one.event_id != event_id}
        return there

    def _assert_current(self, run: Run, told: Told) -> None:
        """Fail unless all that a good run was told stands in the mirror."""
        scopes = [(EVENTS, "")] if run.whole else []
        people = {(ATTENDEES, one.event_id) for one in told.people.values()}
        for table, event_id in {*scopes, *told.scopes, *people}:
            complete = told.scopes.get((table, event_id))
            for key, record in told.of(table, event_id).items():
                row = self.rows[table, key]
                assert _own(table, row) == _own(table, structs.asdict(record))
                # The account's answer may hold an attendee that the event's own, which is asked later, lacks.
                lacking = table == ATTENDEES and complete is not None and key not in complete
                assert row["vanished_at"] is None or lacking
        for event_id in told.read:
            assert self.rows[EVENTS, event_id]["availability_at"] >= run.started_at

    def _replay(self, rig: Rig, run: Run) -> None:
        """Fail unless the changes, in their order, lead from the rows before to the rows now."""
        changes = schema.changes
        with rig.account.database.begin() as connection:
            query = select(changes).where(changes.c.seq > self._seq).order_by(changes.c.seq)
            found = connection.execute(query).mappings().all()
        kinds = dict.fromkeys(("inserted", "updated", "vanished", "returned"), 0)
        for change in found:
            assert change["run_id"] == run.id
            assert change["seen_at"] >= self._seen_at, "the order of the log is not that of time"
            self._seq, self._seen_at = change["seq"], change["seen_at"]
            kinds[change["kind"]] += 1
            self._apply(change)
        assert kinds == {kind: getattr(run.counts, kind) for kind in kinds}
        for place, row in self.rows.items():
            held = self._replayed[place]
            assert held.keys() == row.keys() - _unsaid(place[0])
            unlike = {name: (held[name], row[name]) for name in held if not _same(held[name], row[name])}
            assert not unlike, f"replayed {place}"
        assert self._replayed.keys() == self.rows.keys()

    def _apply(self, change: Any) -> None:
        table, seen_at = schema.MIRRORED[change["table_name"]], change["seen_at"]
        place, diff = (table.name, change["row_id"]), change["diff"]
        row = self._replayed.get(place)
        if change["kind"] == "inserted":
            assert row is None, f"{place} was inserted twice"
            row = dict.fromkeys((column.name for column in table.c), None) | {"first_seen_at": seen_at}
            row = {name: value for name, value in row.items() if name not in _unsaid(table.name)}
            self._replayed[place] = row
        assert row
        assert (row["vanished_at"] is not None) == (change["kind"] == "returned")
        for name, (old, new) in diff.items():
            assert _same(row[name], old) or _same(old, row[name]), f"{place} had another {name} before"
            row[name] = new
        row["changed_at"] = seen_at
        assert (row["vanished_at"] is not None) == (change["kind"] == "vanished")
        assert diff or (table.name == ATTENDEES and change["kind"] == "updated")  # what changed is personal

    def _remember(self, told: Told, lacked: dict[Scope, Lacked]) -> None:
        """Count the complete reads in a row that lacked each row; a read that failed says nothing."""
        for place, row in self.rows.items():
            scope = (place[0], _scope(place[0], row))
            if scope in lacked and place[1] in lacked[scope].rows:
                self._lacking[place] += 1
            elif scope in lacked or (place[0] == ATTENDEES and place[1] in told.people):
                del self._lacking[place]


def look(rig: Rig) -> dict[Place, Row]:
    """Return every row of the mirror."""
    rows = {}
    with rig.account.database.begin() as connection:
        for name, table in schema.MIRRORED.items():
            for row in connection.execute(select(table)).mappings().all():
                rows[name, "/".join(row[column.name] for column in table.primary_key)] = dict(row)
    return rows


def is_over(row: Row, now: datetime) -> bool:
    """Tell whether an event has ended: such a one may leave the list without being gone."""
    end = row["ends_at"] or row["starts_at"]
    return end is not None and end <= now


def _scope(table: str, row: Row) -> str:
    return "" if table == EVENTS else str(row["event_id"])


def _own(table: str, row: Row) -> Row:
    """Return the columns that come from the row's own read, not from other rows."""
    derived = set() if table == GAUGES else FIGURES
    return {name: value for name, value in row.items() if name not in BOOKKEEPING | derived}


def _unsaid(table: str) -> AbstractSet[str]:
    """Return the columns of which the log of changes never tells."""
    return PERSONAL if table == ATTENDEES else {"availability_at"}


def _vanished_now(old: Row | None, new: Row) -> bool:
    return bool(old and not old["vanished_at"] and new["vanished_at"])


def _assert_told(place: Place, old: Row | None, new: Row, told: Told, now: datetime) -> None:
    """Fail unless a row is what it was, or what was told of it."""
    table, key = place
    event_id = key if table == EVENTS else new["event_id"]
    if old:
        assert old["first_seen_at"] == new["first_seen_at"]
        read_at = (old.get("availability_at"), new.get("availability_at"))
        assert read_at[0] == read_at[1] or event_id in told.read
        if old | {"availability_at": None} == new | {"availability_at": None}:
            return
        assert new["changed_at"] > old["changed_at"]
    unlike = {name for name in new if old is None or old[name] != new[name]} - BOOKKEEPING
    is_ended = table == EVENTS and new["sale_status"] == "ended" and is_over(new, now)
    of_all = unlike & FIGURES - ({"sale_status"} if is_ended else set())  # its end is told by the list
    if table not in (EVENTS, ATTENDEES) or (of_all and old):
        assert event_id in told.read, f"{place} changed though not all of its event was told"
    record = told.of(table, _scope(table, new)).get(key)
    came_back = old is None or bool(old["vanished_at"] and not new["vanished_at"])
    if came_back or _own(table, new).keys() & unlike:
        assert record, f"{place} changed though nothing was told of it"
        assert _own(table, new) == _own(table, structs.asdict(record))
    if old and _vanished_now(old, new):
        # The figures of a row that is absent still follow its gauges, till it vanishes at the end of the run.
        own = unlike - FIGURES
        assert not own or (table == ATTENDEES and record), f"{place} changed as it vanished"


def _assert_figures(
    event_id: str, before: dict[Place, Row], rows: dict[Place, Row], told: Told, now: datetime
) -> None:
    """Fail unless the figures of an event that was read follow from its rows.

    Those stand now; and those that moved to another event in this run may have counted here before.
    """
    gauges = [Gauge(**_values(row)) for _, row in _standing(rows, GAUGES, event_id)]
    shown = _figures_of(
        rows[EVENTS, event_id],
        [row for _, row in _standing(rows, TICKETS, event_id)],
        [row for _, row in _standing(rows, SESSIONS, event_id)],
    )
    ids = {figures["id"] for figures in shown}
    event = (told.events or {})[event_id]
    step = Step(before, rows, told)
    tickets: Any = [*_bases(step, TICKETS, Ticket, event_id)]
    sessions: Any = [*_bases(step, SESSIONS, Session, event_id)]
    possible = [with_figures(event, gauges, some, others, now=now) for some in tickets for others in sessions]
    assert shown in [
        [
            figures
            for figures in _figures_of(
                structs.asdict(event), map(structs.asdict, some), map(structs.asdict, others)
            )
            if figures["id"] in ids
        ]
        for event, some, others in possible
    ], f"the figures of event {event_id} do not follow from its rows"


class Step(NamedTuple):
    """The rows before a run and after it, and what it was told."""

    before: dict[Place, Row]
    rows: dict[Place, Row]
    told: Told


def _standing(rows: dict[Place, Row], table: str, event_id: str) -> Iterator[tuple[str, Row]]:
    for (name, key), row in sorted(rows.items()):
        if name == table and row["event_id"] == event_id and not row["vanished_at"]:
            yield key, row


def _bases(step: Step, table: str, kind: Any, event_id: str) -> Iterator[list[Any]]:
    """Give the rows that figures are derived for: as told, else as they were; or all as they were.

    Any of those that moved to another event in this run may be among them.
    """
    standing = [key for key, _ in _standing(step.rows, table, event_id)]
    earlier = dict(_standing(step.before, table, event_id))
    left = [key for key in earlier if step.rows[table, key]["event_id"] != event_id]
    held = {
        key: kind(**_values(step.before[table, key]))
        for key in [*standing, *left]
        if (table, key) in step.before
    }
    now = {key: kind(**_values(step.rows[table, key])) for key in standing}  # where others vanished
    for known in (held | step.told.of(table, event_id), held, now):
        if known.keys() >= set(standing):
            for number in range(len(left) + 1):  # some may have moved before the event was read, others later
                for some in combinations(left, number):
                    if known.keys() >= {*some}:
                        yield [known[key] for key in [*standing, *some]]


def _values(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in BOOKKEEPING}


def _figures_of(event: Row, tickets: Any, sessions: Any) -> list[Row]:
    chosen = [
        (row["id"], *(row.get(name) for name in sorted(FIGURES))) for row in (event, *tickets, *sessions)
    ]
    return [dict(zip(("id", *sorted(FIGURES)), values, strict=True)) for values in chosen]


def _judged(told: Told) -> Iterator[tuple[str, str, set[str]]]:
    """Give the scopes that were told completely, and what they hold: what they lack may be gone."""
    if told.listed:
        yield EVENTS, "", set(told.of(EVENTS, ""))
    for (table, event_id), records in told.scopes.items():
        if event_id in told.read and (table != ATTENDEES or records is not None):
            yield table, event_id, set(records or ())


def _subject(table: str, event_id: str) -> str:
    return "events" if table == EVENTS else f"event {event_id}"


def _same(told: object, held: object) -> bool:
    """Tell whether a value out of a diff, which is JSON, is that of a column."""
    match held:
        case datetime() if isinstance(told, str):
            return datetime.fromisoformat(told) == held
        case Decimal():
            return told == str(held)
        case _:
            return type(told) is type(held) and told == held
