"""What the budget of requests gives for accounts of any size: prints the table of tests/bench/README.md.

The real planner (`agenda.py`) and the real ceiling (`limiter.py`) at work on a clock that only waiting moves:
two days at the default settings, each request taking REQUEST_S, and so many sales that one event in a hundred
sells in an interval. Nothing but the answers of Billetweb is simulated.
"""

import asyncio
import functools
import random
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from loguru import logger

from syncd.billetweb.limiter import RateLimiter
from syncd.mirror import agenda
from syncd.mirror.agenda import Candidate
from syncd.text import format_duration

SIZES = (10, 25, 100, 300, 1000, 5000)
INTERVAL = timedelta(minutes=15)
RUN_TIMEOUT = timedelta(minutes=10)
FULL_EVERY = timedelta(hours=24)
PER_MINUTE = 60
REQUEST_S = 0.25
RUNS = 2 * FULL_EVERY // INTERVAL
COST = 2
SELLING = 0.01
START = datetime(2027, 1, 1, tzinfo=UTC)


class Result(NamedTuple):
    """What two days showed, from the moment on when every event had been read once; times in seconds.

    `first_s`: until then. `idle_requests`: of a run without sales. `requests`: of a run, on average.
    `sale_s`: how long sales took to be seen. `oldest_s`: the oldest figure met; `bound_s`: what was promised.
    """

    first_s: float
    idle_requests: int
    requests: float
    sale_s: list[float]
    oldest_s: float
    bound_s: float


class Clock:
    """Seconds that pass only by being waited for."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Account:
    """An account whose events sell, and what a mirror knows of it. `told`: an increment names who sold."""

    def __init__(self, events: int, *, told: bool, selling: float) -> None:
        self.clock = Clock()
        self.budget = agenda.budget(
            COST * events,
            per_minute=PER_MINUTE,
            interval=INTERVAL,
            run_timeout=RUN_TIMEOUT,
            full_every=FULL_EVERY,
        )
        self.ids = [f"{number:05}" for number in range(events)]
        self.in_turns = COST * events > self.budget.share
        self.told = told and self.in_turns
        self.read_s: dict[str, float] = {}
        self.due: set[str] = set()
        self._candidates: dict[str, Candidate] = {}
        self.unseen: dict[str, list[float]] = {}
        self.sale_s: list[float] = []
        self._sales = self._coming(selling)
        self._next = next(self._sales)
        self._limiter = RateLimiter(PER_MINUTE, note=self._note, clock=self.clock, sleep=self.clock.sleep)
        self.requests = 0

    async def run(self, start_s: float) -> int:
        """Carry the run out that is due at `start_s`; return its requests."""
        self.clock.now_s = max(self.clock.now_s, start_s)
        before = self.requests
        for _ in range(1 + self.told):
            await self._request()
        self._sell_until_now()
        if self.told:
            self.due |= self.unseen.keys()
        for event in self._chosen():
            for _ in range(COST):
                await self._request()
            self._sell_until_now()
            now_s = self.clock.now_s
            self.sale_s += [now_s - sold_s for sold_s in self.unseen.pop(event, ())]
            self.read_s[event] = now_s
            self.due.discard(event)
            self._candidates.pop(event, None)
        return self.requests - before

    def oldest_s(self) -> float:
        """Return the age of the oldest figure; infinite while some event has none."""
        if len(self.read_s) < len(self.ids):
            return float("inf")
        return self.clock.now_s - min(self.read_s.values())

    def _chosen(self) -> list[str]:
        if not self.in_turns:
            return self.ids
        return agenda.choose(map(self._candidate, self.ids), self.budget)

    def _candidate(self, event: str) -> Candidate:
        known, due = self._candidates.get(event), event in self.due
        if known is None or known.due != due:
            read_s = self.read_s.get(event)
            read_at = None if read_s is None else START + timedelta(seconds=read_s)
            known = self._candidates[event] = Candidate(id=event, cost=COST, read_at=read_at, due=due)
        return known

    async def _request(self) -> None:
        await self._limiter.acquire()
        self.requests += 1
        await self.clock.sleep(REQUEST_S)

    async def _note(self) -> bool:
        """Put nothing on record: nobody restarts."""
        return False

    def _coming(self, selling: float) -> Iterator[tuple[float, str]]:
        chance = random.Random(len(self.ids))
        at_s = 0.0
        while selling:
            at_s += chance.expovariate(selling * len(self.ids) / INTERVAL.total_seconds())
            yield at_s, chance.choice(self.ids)
        yield float("inf"), ""

    def _sell_until_now(self) -> None:
        while self._next[0] <= self.clock.now_s:
            sold_s, event = self._next
            if event in self.read_s:
                self.unseen.setdefault(event, []).append(sold_s)
            self._next = next(self._sales)


@functools.cache
def simulate(events: int, *, told: bool = True, selling: float = SELLING) -> Result:
    """Return what the mirror of such an account is like."""
    account = Account(events, told=told, selling=selling)

    async def live() -> tuple[float, list[int], float]:
        requests, first_s, oldest_s = [], float("inf"), 0.0
        for number in range(RUNS):
            start_s = number * INTERVAL.total_seconds()
            before_s = account.oldest_s() + max(start_s - account.clock.now_s, 0)
            sent = await account.run(start_s)
            if before_s != float("inf"):
                requests.append(sent)
                oldest_s = max(oldest_s, before_s)
            elif account.oldest_s() != float("inf"):
                first_s = account.clock.now_s
        return first_s, requests, oldest_s

    first_s, requests, oldest_s = asyncio.run(live())
    return Result(
        first_s=first_s,
        idle_requests=min(requests),
        requests=statistics.fmean(requests),
        sale_s=account.sale_s,
        oldest_s=oldest_s,
        bound_s=account.budget.bound(COST * events, INTERVAL).total_seconds(),
    )


def table() -> str:
    """Return the whole table."""
    head = (
        *("live events", "all read once after", "requests a run: nothing sold", "1 % sold"),
        *(
            "a sale is seen after: median",
            "at most",
            "oldest availability",
            "a sale, without changes since the last run: at most",
        ),
    )
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(row, SIZES)])


def row(events: int) -> str:
    """Return the table's line for accounts of this size."""
    idle, busy, untold = simulate(events, selling=0), simulate(events), simulate(events, told=False)
    cells = (
        f"{events:,}",
        _time(idle.first_s),
        str(idle.idle_requests),
        f"{busy.requests:.0f}",
        _time(statistics.median(busy.sale_s)),
        _time(max(busy.sale_s)),
        _time(busy.oldest_s),
        _time(max(untold.sale_s)),
    )
    return f"| {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    return format_duration(round(seconds / 60) * 60 if seconds > 60 else round(seconds))


if __name__ == "__main__":
    logger.remove()  # of the ceiling's waits, which there are thousands of
    print(table())  # noqa: T201
