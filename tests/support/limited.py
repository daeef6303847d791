"""A stand-in that takes only so many calls a minute."""

from collections import deque
from collections.abc import Callable
from typing import Any

from support.faults import rate_limiting
from syncd.standin.server import Fault, Request, StandIn

WINDOW_S = 60.0


class Limited(StandIn):
    """A stand-in that refuses more than so many answers in any 60 s of `clock`; `asked_at`: when by that."""

    def __init__(self, *, calls_per_minute: int, clock: Callable[[], float], **settings: Any) -> None:
        super().__init__(**settings)
        self.asked_at: list[float] = []
        self._calls_per_minute = calls_per_minute
        self._clock = clock
        self._answered_at: deque[float] = deque()

    def _refusal(self, request: Request) -> Fault | None:
        at = self._clock()
        self.asked_at.append(at)
        while self._answered_at and self._answered_at[0] <= at - WINDOW_S:
            self._answered_at.popleft()
        if len(self._answered_at) >= self._calls_per_minute:
            return rate_limiting()
        self._answered_at.append(at)
        return super()._refusal(request)
