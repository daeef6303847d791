"""What is told again and again is told once in a while, with its count. Imports nothing of syncd."""

import time
from collections.abc import Callable, Hashable

EVERY_S = 3600.0
"""Often enough for whoever reads the last hour of the journal."""
MOST = 100
"""So many things are told apart; what is told of more than that in an hour, nobody reads."""
_OTHERS = object()


class Repeats:
    """Remembers what was told of late. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[Hashable, tuple[float, int]] = {}

    def untold(self, key: Hashable) -> int | None:
        """Return how often this was not told since it last was, if it is to be told now, else None."""
        now = self._clock()
        if key not in self._told and len(self._told) >= MOST:
            self._told = {each: told for each, told in self._told.items() if now - told[0] < EVERY_S}
            if len(self._told) >= MOST:
                key = _OTHERS
        told_at, count = self._told.get(key, (None, 0))
        if told_at is not None and now - told_at < EVERY_S:
            self._told[key] = told_at, count + 1
            return None
        self._told[key] = now, 0
        return count
