"""The one rule of absence: when rows that complete reads lacked are believed gone. Pure.

Presence is believed at once; absence only when it lasts, the longer the more rows would go; if most of an
account would go, a person must say so. An error upstream can look like an empty account: consumers of this
API have lost data that way.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Literal

from msgspec import Struct

from syncd.model import EVENTS

FEW_ROWS = 3
"""Among this few rows it is normal that most go: one tariff stays, two are replaced."""
READS = 2
"""How many reads in a row, in as many runs, must lack a row. One odd answer proves nothing, and a second one
is seldom odd in the same way."""


class Absence(Struct, frozen=True):
    """Since when a row has been absent, and in how many reads in a row."""

    since: datetime
    reads: int


class Size(Struct, frozen=True):
    """How many rows a complete read of a scope should have held, and how many the mirror `held` before it.

    They differ if rows came with the loss of most others: these are no evidence for it, but an event that has
    others now is not empty. In the list of events they do not count: another account's brings its own.
    """

    of: int
    held: int


class Scope(Struct, frozen=True, kw_only=True):
    """What one run's complete read of a scope lacked: `absent` rows. `event_id` is None for the list."""

    table: str
    event_id: str | None
    size: Size
    absent: int = 0


class Ruling(Struct, frozen=True):
    """The decision on the absent rows of a scope.

    `gone`: which of them have vanished. `waits_for`: what the others wait for, None if only for their next
    read.
    """

    gone: Literal["none", "again", "lasting"]
    waits_for: Literal["time", "accept"] | None = None


def note(
    present: AbstractSet[str], read: AbstractSet[str], before: Mapping[str, Absence], at: datetime
) -> dict[str, Absence]:
    """Return the absences after a complete read of a scope.

    `present`: the scope's rows that have not vanished; `read`: those that the read held; `before`: the
    scope's absences so far. A row that is not in the result is no longer absent. An instant in the future
    came from a wrong clock.
    """
    found = {}
    for row in sorted(present - read):
        old = before.get(row, Absence(at, 0))
        found[row] = Absence(min(old.since, at), old.reads + 1)
    return found


def is_most(absent: int, of: int) -> bool:
    """Return whether `absent` rows are most of many."""
    return of > FEW_ROWS and 2 * absent > of


def is_mostly_absent(absent: int, of: int) -> bool:
    """Return whether a read lacked so much of its scope that the scope's absences must last."""
    return is_most(absent, of) or absent == of > 0


def rule(scopes: Sequence[Scope], *, whole: bool, accepted: Callable[[Scope], bool]) -> list[Ruling]:
    """Return the rulings on the scopes that a run read, in their order.

    A run that is not `whole`, of named events, lets rows vanish only where somebody `accepted` that.
    """
    doubted = _doubted_tables(scopes) if whole else frozenset()
    return [
        _rule(scope, whole=whole, accepted=accepted(scope), doubted=scope.table in doubted)
        for scope in scopes
    ]


def _doubted_tables(scopes: Iterable[Scope]) -> frozenset[str]:
    """Return the tables in which most rows of the account were absent in this run."""
    held, absent = Counter[str](), Counter[str]()
    for scope in scopes:
        held[scope.table] += scope.size.held
        absent[scope.table] += scope.absent
    is_doubted = {EVENTS: is_mostly_absent}  # the list of events is the whole account
    return frozenset(table for table in held if is_doubted.get(table, is_most)(absent[table], held[table]))


def _rule(scope: Scope, *, whole: bool, accepted: bool, doubted: bool) -> Ruling:
    if doubted:
        ruling = Ruling("none", "accept")
    elif is_mostly_absent(scope.absent, scope.size.of):
        ruling = Ruling("lasting", "time")
    else:
        ruling = Ruling("again")
    if accepted:  # except what nobody had seen absent before
        return Ruling("again", ruling.waits_for)
    return ruling if whole else Ruling("none", ruling.waits_for)
