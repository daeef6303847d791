"""What runs may do to the mirror: judged by what Billetweb's stand-in told them, not by syncd's own logic.

`Truth` follows the mirror from run to run (`witness.py` remembers the answers): it fails where a row changes
to what was not told, where one vanishes that was not lacked twice, and where the log of changes, replayed
from an empty mirror, does not give the mirror's public columns.
"""

import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from conftest import Rig
from msgspec import structs
from sqlalchemy import select
from witness import ATTENDEES, EVENTS, GAUGES, SESSIONS, TICKETS, Place, Told

from syncd import schema
from syncd.availability import with_figures
from syncd.model import PERSONAL, Gauge, Run, Session, Ticket

Row = dict[str, Any]
BOOKKEEPING = {"first_seen_at", "changed_at", "vanished_at", "availability_at"}
FIGURES = {"places_total", "places_left", "unlimited", "is_full"}


class Mark(NamedTuple):
    """A complete read that lacked a row: what weight its run had."""

    full: bool
    by_hand: bool


class Truth:
    """The mirror as the runs so far left it, and what they may do next."""

    def __init__(self) -> None:
        self.rows: dict[Place, Row] = {}
        self._replayed: dict[Place, Row] = {}
        self._lacking: dict[Place, list[Mark]] = {}
        self._lacked_most: set[str] = set()
        self._seq = 0
        self._seen_at = datetime.min.replace(tzinfo=UTC)

    def follow(self, rig: Rig, run: Run, told: Told) -> None:
        """Fail unless the run did to the mirror what it may after these answers, and put it on record."""
        before, self.rows = self.rows, look(rig)
        assert before.keys() <= self.rows.keys()
        for place, row in self.rows.items():
            _assert_told(place, before.get(place), row, told)
        for event_id in told.read:
            _assert_figures(event_id, before, self.rows, told)
        self._assert_gone(before, run, told)
        if run.outcome == "ok":
            self._assert_current(run, told)
        self._replay(rig, run)
        self._remember(run, told)

    def _assert_gone(self, before: dict[Place, Row], run: Run, told: Told) -> None:
        """Fail where a row vanished too early, or a doubt and a read that lacks too much are not one."""
        mark, emptied, by_hand_all, doubtful = _mark(run), set(), True, set()
        most, few = self._mostly_lacking(before), Counter[str]()
        lacking, rows_of = Counter[str](), Counter[str]()
        for table, event_id, complete in _judged(run, told):
            present = self._present(before, table, event_id, told)
            missing = present - complete
            lacking[table] += len(missing)
            rows_of[table] += len(present)
            gone = {key for key in missing if self.rows[table, key]["vanished_at"]}
            for key in gone:
                marks = self._lacking.get((table, key))
                assert marks, f"{table} {key} vanished after one read that lacked it"
                few[table] += not _is_massive(present, complete) and not (mark.by_hand and marks[-1].by_hand)
                if _is_massive(present, complete):
                    fully = [*[one for one in marks if one.full][-1:], mark] if mark.full else []
                    assert len(fully) == 2, f"{table} {key} vanished among many without two full runs"
                    by_hand = all(one.by_hand for one in fully)
                    assert by_hand or table != EVENTS, f"event {key} vanished among many by itself"
                    emptied.add(event_id)
                    by_hand_all = by_hand_all and by_hand
            moved = self._present(before, table, event_id, told, moved=True)
            # A row that moves is lacking where it was read last, before it is found where it is now.
            lacked = moved - complete
            if _is_massive(present, complete) or _is_massive(moved, complete) or (lacked and table in most):
                doubtful.add(_subject(table, event_id))
            if _is_massive(present, complete) and missing > gone:
                doubted = missing - gone
                _assert_doubted(run, table, event_id, len(doubted), len(present - doubted))
        assert {error.subject for error in run.errors if error.kind == "doubted"} <= doubtful
        self._lacked_most = _mostly(lacking, rows_of) if run.whole else self._lacked_most
        for table in few:
            rows = sum(name == table and not row["vanished_at"] for (name, _), row in before.items())
            assert table == EVENTS or rows <= 3 or 2 * few[table] <= rows, (
                f"most of {table} vanished by itself"
            )
        live = told.live()
        assert by_hand_all or 2 * len(emptied & live) <= len(live)
        everywhere = {place for place, row in self.rows.items() if _vanished_now(before.get(place), row)}
        assert everywhere <= {
            (table, key) for table, _, complete in _judged(run, told) for key in self._keys(table) - complete
        }

    def _mostly_lacking(self, before: dict[Place, Row]) -> set[str]:
        """Return the tables of which most rows were lacking before: in the latest run, or over all."""
        present = [place for place, row in before.items() if not row["vanished_at"]]
        lacking = Counter(table for table, key in present if (table, key) in self._lacking)
        return self._lacked_most | _mostly(lacking, Counter(table for table, _ in present))

    def _present(
        self, before: dict[Place, Row], table: str, event_id: str, told: Told, *, moved: bool = False
    ) -> set[str]:
        """Return the rows that stood in a scope when it was read; if `moved` with those that left it then."""
        there = {
            key
            for (name, key), row in before.items()
            if (name, _scope(name, row)) == (table, event_id)
            and not row["vanished_at"]
            and (moved or _scope(name, self.rows[name, key]) == event_id)
        }
        if table == ATTENDEES:  # the account's were read before those of its events
            there |= {key for key, one in told.everybody.items() if one.event_id == event_id}
        return there

    def _keys(self, table: str) -> set[str]:
        return {key for name, key in self.rows if name == table}

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
        store, changes = rig.mirror.store, schema.changes
        assert store
        with store._database.begin() as connection:
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
            first = row["first_seen_at"] if row else seen_at
            row = dict.fromkeys((column.name for column in table.c), None) | {"first_seen_at": first}
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

    def _remember(self, run: Run, told: Told) -> None:
        """Count the complete reads in a row that lacked each row."""
        judged = {(table, event_id): complete for table, event_id, complete in _judged(run, told)}
        for place, row in self.rows.items():
            scope = (place[0], _scope(place[0], row))
            told_of = told.of(*scope)
            if scope in judged and place[1] not in judged[scope]:
                self._lacking.setdefault(place, []).append(_mark(run))
            elif place[1] in told_of or told.events is None or run.whole or scope[1] in told.asked:
                self._lacking.pop(place, None)


def _mostly(lacking: Counter[str], rows: Counter[str]) -> set[str]:
    return {table for table in rows if rows[table] > 3 and 2 * lacking[table] > rows[table]}


def look(rig: Rig) -> dict[Place, Row]:
    """Return every row of the mirror."""
    store = rig.mirror.store
    assert store
    rows = {}
    with store._database.begin() as connection:
        for name, table in schema.MIRRORED.items():
            for row in connection.execute(select(table)).mappings().all():
                rows[name, "/".join(row[column.name] for column in table.primary_key)] = dict(row)
    return rows


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


def _assert_told(place: Place, old: Row | None, new: Row, told: Told) -> None:
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
    if table not in (EVENTS, ATTENDEES) or (unlike & FIGURES and old):
        assert event_id in told.read, f"{place} changed though not all of its event was told"
    record = told.of(table, _scope(table, new)).get(key)
    came_back = old is None or bool(old["vanished_at"] and not new["vanished_at"])
    if came_back or _own(table, new).keys() & unlike:
        assert record, f"{place} changed though nothing was told of it"
        assert _own(table, new) == _own(table, structs.asdict(record))
    if old and _vanished_now(old, new):
        assert not unlike or (table == ATTENDEES and record), f"{place} changed as it vanished"


def _assert_figures(event_id: str, before: dict[Place, Row], rows: dict[Place, Row], told: Told) -> None:
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
    possible = [
        with_figures(event, gauges, some, others, now=datetime.now(UTC))
        for some in tickets
        for others in sessions
    ]
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
    """Give the rows that figures are derived for: as told, else as they were; or all as they were."""
    standing = [key for key, _ in _standing(step.rows, table, event_id)]
    earlier = dict(_standing(step.before, table, event_id))
    left = [key for key in earlier if step.rows[table, key]["event_id"] != event_id]
    held = {
        key: kind(**_values(step.before[table, key]))
        for key in [*standing, *left]
        if (table, key) in step.before
    }
    for known in (held | step.told.of(table, event_id), held):
        if known.keys() >= set(standing):
            yield [known[key] for key in standing]
            if left:
                yield [known[key] for key in [*standing, *left]]


def _values(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in BOOKKEEPING}


def _figures_of(event: Row, tickets: Any, sessions: Any) -> list[Row]:
    chosen = [(row["id"], *(row[name] for name in sorted(FIGURES))) for row in (event, *tickets, *sessions)]
    return [dict(zip(("id", *sorted(FIGURES)), values, strict=True)) for values in chosen]


def _mark(run: Run) -> Mark:
    return Mark(run.full, run.full and run.trigger == "manual")


def _judged(run: Run, told: Told) -> Iterator[tuple[str, str, set[str]]]:
    """Give the scopes that were told completely, and what they hold: what they lack may be gone."""
    if run.whole and told.listed:
        yield EVENTS, "", set(told.of(EVENTS, ""))
    for (table, event_id), records in told.scopes.items():
        if event_id in told.read and (table != ATTENDEES or records is not None):
            yield table, event_id, set(records or ())


def _is_massive(present: set[str], told: set[str]) -> bool:
    """Tell whether a read is to be doubted: it is empty where rows were, or lacks most of many."""
    return bool(present) and (not told or (len(present) > 3 and 2 * len(present - told) > len(present)))


def _subject(table: str, event_id: str) -> str:
    return "events" if table == EVENTS else f"event {event_id}"


def _assert_doubted(run: Run, table: str, event_id: str, doubted: int, others: int) -> None:
    """Fail unless the run reports a read that it did not believe, and how many rows that concerns.

    Rows that move to another event in the same run may be among them.
    """
    subject = _subject(table, event_id)
    said = [error.message for error in run.errors if (error.subject, error.kind) == (subject, "doubted")]
    numbers = [re.search(r"(\d+) of (\d+) rows", message) for message in said]
    found = [(int(match[1]), int(match[2])) for match in numbers if match]
    assert any(some >= doubted and whole == some + others for some, whole in found), f"{subject}: {said}"
    assert run.outcome != "ok"


def _same(told: object, held: object) -> bool:
    """Tell whether a value out of a diff, which is JSON, is that of a column."""
    match held:
        case datetime() if isinstance(told, str):
            return datetime.fromisoformat(told) == held
        case Decimal() if isinstance(told, str):
            return Decimal(told) == held
        case _:
            return type(told) is type(held) and told == held
