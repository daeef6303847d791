"""A ceiling on requests in any sliding minute. Imports nothing of syncd.

Billetweb refuses more than 100 calls a minute for the whole account and asks for fair use
(https://www.billetweb.fr/bo/api.php); other programs may share the key. The ceiling holds across a restart:
each request is noted where the next process finds it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta

from loguru import logger

WINDOW_S = 61.0
"""A second more than a minute: travel times differ, so requests may arrive closer together."""
WORTH_TELLING_S = 5.0
"""A shorter wait is over before a person has read about it."""


SHOWN_S = 1.0
"""Those who watch a run see shorter waits too, but less than this is over before it is read."""


class RateLimiter:
    """At most `per_minute` requests in any WINDOW_S seconds, and none before a pause is over.

    `note` is called for each request before it is sent, and returns whether that is on record then. `clock`
    is monotonic seconds; `sleep` waits. `waiting` is until when, by that clock, the next request waits, and
    for what; `on_wait` is called when a wait begins and ends.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        note: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.per_minute = per_minute
        self.waiting: tuple[float, str] | None = None
        self._on_wait = on_wait
        self._note = note
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[tuple[float, bool]] = deque()  # when, and whether that is on record
        self._paused_until = 0.0
        self._turn = asyncio.Lock()

    def remember(self, ages_s: Iterable[float]) -> None:
        """Count the requests on record, sent `ages_s` seconds ago: other processes', and this one's noted."""
        now = self._clock()
        unnoted = [sent for sent in self._sent if not sent[1]]
        self._sent = deque(sorted([*unnoted, *((now - age, True) for age in ages_s)]))

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long; a longer current pause stays."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    @property
    def paused_s(self) -> float:
        """How long the pause still lasts; 0 without one."""
        return max(self._paused_until - self._clock(), 0.0)

    def waits(self, now: datetime) -> tuple[datetime | None, str | None]:
        """Return until when the next request waits, and for what; None and None if none does."""
        if self.waiting is None:
            return None, None
        until_s, why = self.waiting
        return now + timedelta(seconds=until_s - self._clock()), why

    async def acquire(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait until a request may be sent, first come first served, and count it as sent.

        `check` is called before each wait; an exception that it raises ends the wait of this request.
        """
        async with self._turn:
            while (wait := self._due())[0] > 0:
                check()
                await self._wait(*wait)
            is_noted = await self._note()
            self._sent.append((self._clock(), is_noted))  # last: a note may take long in a busy database

    async def _wait(self, wait_s: float, why: str) -> None:
        if wait_s >= WORTH_TELLING_S:
            logger.info("the next request waits {:.0f} s: {}", wait_s, why)
        if wait_s >= SHOWN_S:
            self.waiting = self._clock() + wait_s, why
            self._on_wait()
        try:
            await self._sleep(wait_s)
        finally:
            if self.waiting:
                self.waiting = None
                self._on_wait()

    def _due(self) -> tuple[float, str]:
        """Return in how many seconds the next request may be sent, and what it waits for until then."""
        now = self._clock()
        while self._sent and self._sent[0][0] <= now - WINDOW_S:
            self._sent.popleft()
        rest_s = max(self._paused_until - now, 0.0)
        is_full = len(self._sent) >= self.per_minute
        full_s = self._sent[-self.per_minute][0] + WINDOW_S - now if is_full else 0.0
        if rest_s >= full_s:
            return rest_s, "Billetweb asked for a rest"
        if self.per_minute == 1:
            return full_s, "1 request a minute is spent"
        return full_s, f"{self.per_minute} requests a minute are spent"
