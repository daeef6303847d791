"""A ceiling on requests in any sliding minute. Imports nothing of syncd.

Billetweb refuses more than 100 calls a minute for the whole account and asks for fair use
(https://www.billetweb.fr/bo/api.php); other programs may share the key. The ceiling holds across a restart:
each request is noted where the next process finds it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from loguru import logger

WINDOW_S = 61.0
"""A second more than the minute meant: requests travel for unequal times and may arrive closer together."""
WORTH_TELLING_S = 5.0
"""A shorter wait is over before a person has read of it."""


class RateLimiter:
    """At most `per_minute` requests in any WINDOW_S seconds, and none before a pause is over.

    `note` is called for each request before it is sent. `clock` is monotonic seconds; `sleep` waits.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        note: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.per_minute = per_minute
        self._note = note
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[float] = deque()
        self._paused_until = 0.0
        self._turn = asyncio.Lock()

    def remember(self, ages_s: Iterable[float]) -> None:
        """Count requests that an earlier process sent `ages_s` seconds ago."""
        now = self._clock()
        self._sent = deque(sorted([*self._sent, *(now - age for age in ages_s)]))

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long; a longer pause that is under way stays."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    @property
    def paused_s(self) -> float:
        """How long a pause still lasts; 0 without one."""
        return max(self._paused_until - self._clock(), 0.0)

    async def acquire(self) -> None:
        """Return when a request may be sent, first come first served; it is counted as sent then."""
        async with self._turn:
            while (wait_s := self._wait_s()) > 0:
                if wait_s >= WORTH_TELLING_S:
                    rests = wait_s <= self.paused_s
                    why = "Billetweb asked for it" if rests else "the ceiling of requests is reached"
                    logger.info("the next request waits {:.0f} s: {}", wait_s, why)
                await self._sleep(wait_s)
            await self._note()
            self._sent.append(self._clock())  # last of all: a note may take its time in a busy database

    def _wait_s(self) -> float:
        now = self._clock()
        while self._sent and self._sent[0] <= now - WINDOW_S:
            self._sent.popleft()
        wait_s = self.paused_s
        if len(self._sent) >= self.per_minute:
            wait_s = max(wait_s, self._sent[-self.per_minute] + WINDOW_S - now)
        return wait_s
