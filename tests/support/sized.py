"""A stand-in whose events have sold just so many places."""

from math import ceil
from typing import Any

from msgspec.structs import replace

from syncd.standin.kinds import Kind
from syncd.standin.server import StandIn
from syncd.standin.world import ALL_KINDS, StandInEvent, _move


class Sized(StandIn):
    """A stand-in of which each event has this number of attendees, and room for more."""

    def __init__(self, *, attendees: int, **settings: Any) -> None:
        self._attendees = attendees
        if attendees:
            self.kinds = tuple(times(kind, ceil(3 * attendees / kind.capacity)) for kind in ALL_KINDS)
        super().__init__(**settings)

    def _presell(self, event: StandInEvent, kind: Kind) -> None:
        slots = self._slots(event, past=True)
        sold = [each for slot in slots for each in _move(event, [slot], self._attendees // len(slots))]
        sold += _move(event, slots, self._attendees - sum(places for _, places in sold))
        self.attendance[str(event.row["id"])].presold = sold


def times(kind: Kind, factor: int) -> Kind:
    """Return the same kind with so many times the places."""
    return replace(
        kind,
        places=kind.places and kind.places * factor,
        categories=tuple((name, limit * factor) for name, limit in kind.categories),
        tariffs=tuple(replace(each, quota=each.quota and each.quota * factor) for each in kind.tariffs),
        left=None,
    )
