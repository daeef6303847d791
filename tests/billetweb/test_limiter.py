"""The ceiling on requests, by a clock of the tests' own."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from support.clients import nothing

from syncd.billetweb.limiter import WINDOW_S, RateLimiter

MINUTE_S = 60.0


class VirtualTime:
    """Seconds that pass only by `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds


def limiter_by(
    time: VirtualTime,
    per_minute: int,
    *,
    note: Callable[[], Awaitable[bool]] = nothing,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> RateLimiter:
    return RateLimiter(per_minute, note=note, clock=time.clock, sleep=sleep or time.sleep)


class Step(NamedTuple):
    """One request: what happens before it, how long its note takes, how long it travels."""

    idle_s: float
    pause_s: float
    restart: bool
    note_s: float
    travel_s: float


STEPS = st.builds(
    Step,
    idle_s=st.sampled_from([0, 0, 0, 0.5, 20, 59, 61, 200]),
    pause_s=st.sampled_from([0, 0, 0, 5, 60]),
    restart=st.sampled_from([False, False, False, True]),
    note_s=st.sampled_from([0, 0, 0.2, 30]),
    travel_s=st.floats(0, 0.99),
)


@given(
    per_minute=st.integers(1, 5),
    ages_s=st.lists(st.floats(0, 70), max_size=8),
    steps=st.lists(STEPS, min_size=1, max_size=25),
)
def test_billetweb_would_count_more_than_the_ceiling(
    per_minute: int, ages_s: list[float], steps: list[Step]
) -> None:
    """No 60 s that end with a request hold more than the ceiling: unequal travel, slow notes, restarts."""
    time = VirtualTime()
    sent = sorted(time.now - age for age in ages_s)
    arrived = list(sent)

    async def slowly(seconds: float) -> bool:
        await time.sleep(seconds)
        return False

    async def main() -> None:
        limiter = limiter_by(time, per_minute)
        limiter.remember(ages_s)
        for step in steps:
            time.now += step.idle_s
            if step.restart:
                limiter = limiter_by(time, per_minute)
                limiter.remember(time.now - at for at in reversed(sent))
            limiter.pause(step.pause_s)
            not_before = time.now + step.pause_s
            limiter._note = partial(slowly, step.note_s)
            await limiter.acquire()
            assert time.now >= not_before
            sent.append(time.now)
            arrived.append(time.now + step.travel_s)
            in_window = [at for at in arrived if arrived[-1] - MINUTE_S < at <= arrived[-1]]
            assert len(in_window) <= per_minute

    asyncio.run(main())


@given(per_minute=st.integers(1, 5), requests=st.integers(1, 30))
def test_ceiling_would_be_lower_than_configured(per_minute: int, requests: int) -> None:
    """A burst takes as many windows as it needs and not one more."""
    time = VirtualTime()

    async def main() -> None:
        limiter = limiter_by(time, per_minute)
        await asyncio.gather(*(limiter.acquire() for _ in range(requests)))

    asyncio.run(main())
    assert time.now == 1000 + (requests - 1) // per_minute * WINDOW_S


def test_latecomer_would_overtake_those_who_wait() -> None:
    """Requests go in the order in which they were asked for."""
    time = VirtualTime()
    order: list[int] = []

    async def main() -> None:
        limiter = limiter_by(time, 2)

        async def ask(number: int) -> None:
            await limiter.acquire()
            order.append(number)

        await asyncio.gather(*(ask(number) for number in range(9)))

    asyncio.run(main())
    assert order == list(range(9))


def test_request_would_go_out_in_a_pause() -> None:
    """A pause holds back what has room under the ceiling, and a shorter one does not cut it short."""
    time = VirtualTime()

    async def main() -> None:
        limiter = limiter_by(time, 5)
        limiter.pause(60)
        limiter.pause(10)
        await limiter.acquire()
        assert time.now == 1060
        await limiter.acquire()
        assert time.now == 1060

    asyncio.run(main())


def test_pause_would_not_reach_a_request_that_waits_already() -> None:
    """A pause that begins while a request waits for its turn holds that one back too."""
    time = VirtualTime()

    async def main() -> None:
        async def sleep(seconds: float) -> None:
            if not time.slept:
                limiter.pause(300)
            await time.sleep(seconds)

        limiter = limiter_by(time, 1, sleep=sleep)
        await limiter.acquire()
        await limiter.acquire()
        assert time.now == 1300

    asyncio.run(main())


def test_request_would_be_sent_before_it_is_noted() -> None:
    """Each request is noted once, before it goes: a crash right after leaves it on record."""
    noted: list[float] = []
    time = VirtualTime()

    async def main() -> None:
        async def note() -> bool:
            noted.append(time.now)
            return True

        limiter = limiter_by(time, 1, note=note)
        for number in range(1, 4):
            await limiter.acquire()
            assert len(noted) == number

    asyncio.run(main())
    assert noted == [1000, 1000 + WINDOW_S, 1000 + 2 * WINDOW_S]


def test_restart_would_hold_requests_longer_than_needed() -> None:
    """Requests of an earlier process count until their own minute is over, in whatever order they come."""
    time = VirtualTime()

    async def main() -> None:
        limiter = limiter_by(time, 2)
        limiter.remember([10, 50, 300])
        await limiter.acquire()
        assert time.now == 1000 + WINDOW_S - 50
        await limiter.acquire()
        assert time.now == 1000 + WINDOW_S - 10

    asyncio.run(main())


def test_silent_wait_would_look_like_a_hang() -> None:
    """A wait worth telling is a line with its length, once; a short one is not worth it."""
    time = VirtualTime()
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")

    async def main() -> None:
        limiter = limiter_by(time, 5)
        for pause_s in (4, 30):
            limiter.pause(pause_s)
            await limiter.acquire()

    try:
        asyncio.run(main())
    finally:
        logger.remove(sink)
    assert "".join(lines).count("waits") == 1
    assert "waits 30 s" in lines[-1]


def test_lowered_ceiling_would_wait_for_the_old_requests_to_be_forgotten() -> None:
    """A ceiling changed by a reload counts from the next request on, against those sent under the old one."""
    time = VirtualTime()

    async def main() -> None:
        limiter = limiter_by(time, 3)
        for _ in range(3):
            await limiter.acquire()
            time.now += 10
        limiter.per_minute = 2
        await limiter.acquire()
        assert time.now == 1010 + WINDOW_S  # one of the three may still count, not two
        limiter.per_minute = 3
        await limiter.acquire()
        assert time.now == 1010 + WINDOW_S

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [(0,), (1,), (0, 1), (2,), (0, 2)])
def test_cancelled_request_would_take_a_place_or_block_the_rest(cancelled: tuple[int, ...]) -> None:
    """Whoever is cancelled, sleeping or in the queue, the others go in order and without a gap."""
    time = VirtualTime()
    gone: list[tuple[int, float]] = []

    async def main() -> None:
        may_pass = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await may_pass.wait()
            await time.sleep(seconds)

        limiter = limiter_by(time, 1, sleep=sleep)
        await limiter.acquire()

        async def ask(number: int) -> None:
            await limiter.acquire()
            gone.append((number, time.now))

        tasks = [asyncio.create_task(ask(number)) for number in range(4)]
        await asyncio.sleep(0)  # the first sleeps, the others queue behind it
        for number in cancelled:
            tasks[number].cancel()
        may_pass.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    left = [number for number in range(4) if number not in cancelled]
    assert gone == [(number, 1000 + turn * WINDOW_S) for turn, number in enumerate(left, 1)]


def test_failing_note_would_block_every_later_request() -> None:
    """A note that raises fails its own request; the next one finds the way and the place free."""
    time = VirtualTime()

    async def main() -> None:
        trouble: list[Exception] = [OSError("disk full")]

        async def note() -> bool:
            if trouble:
                raise trouble.pop()
            return True

        limiter = limiter_by(time, 1, note=note)
        with pytest.raises(OSError, match="disk full"):
            await limiter.acquire()
        async with asyncio.timeout(5):
            await limiter.acquire()
        assert time.now == 1000

    asyncio.run(main())


def test_a_request_on_record_counts_twice_as_the_record_is_read_again() -> None:
    """What this process noted is among what it finds; what it could not note still counts beside that."""
    time = VirtualTime()

    async def main() -> None:
        on_record: list[float] = []

        async def note() -> bool:
            if is_noted := time.now < 1010:
                on_record.append(time.now)
            return is_noted

        limiter = RateLimiter(5, note=note, clock=time.clock, sleep=time.sleep)
        for at in (1000, 1010, 1020):
            time.now = at
            await limiter.acquire()
        limiter.remember([*(time.now - at for at in on_record), 5])
        await limiter.acquire()
        assert time.now == 1020
        await limiter.acquire()
        assert time.now == 1000 + WINDOW_S

    asyncio.run(main())


def test_nobody_knows_what_a_request_waits_for() -> None:
    """While one waits it is known until when and for what; both its beginning and its end are told."""

    async def main() -> list[tuple[float, tuple[float, str] | None]]:
        time = VirtualTime()
        told: list[tuple[float, tuple[float, str] | None]] = []
        limiter = RateLimiter(
            2,
            note=nothing,
            clock=time.clock,
            sleep=time.sleep,
            on_wait=lambda: told.append((time.clock() - began, limiter.waiting)),
        )
        began = time.clock()
        for _ in range(3):
            await limiter.acquire()
        limiter.pause(100)
        await limiter.acquire()
        assert limiter.waits(datetime.now(UTC)) == (None, None)
        return [(at, (wait[0] - began, wait[1]) if wait else None) for at, wait in told]

    assert asyncio.run(main()) == [
        (0, (WINDOW_S, "2 requests a minute are spent")),
        (WINDOW_S, None),
        (WINDOW_S, (WINDOW_S + 100, "Billetweb asked for a rest")),
        (WINDOW_S + 100, None),
    ]


def test_a_rest_is_taken_for_a_minute_that_is_spent() -> None:
    """What a request waits for is known by a clock that goes on between two looks at it too."""

    async def main() -> tuple[float, str] | None:
        time, ticks = VirtualTime(), itertools.count()
        limiter = RateLimiter(
            2, note=nothing, clock=lambda: time.clock() + next(ticks) / 1e6, sleep=lambda _: asyncio.sleep(9)
        )
        limiter.pause(100)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.01)
        waiting.cancel()
        return limiter.waiting

    wait = asyncio.run(main())
    assert wait
    assert wait[1] == "Billetweb asked for a rest"


def test_a_wait_that_is_cut_goes_on_being_shown() -> None:
    """A run that is stopped while it waits leaves no wait behind."""

    async def main() -> None:
        limiter = RateLimiter(1, note=nothing)
        await limiter.acquire()
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.01)
        assert limiter.waiting
        assert limiter.waiting[1] == "1 request a minute is spent"
        waiting.cancel()
        await asyncio.wait({waiting})
        assert limiter.waiting is None

    asyncio.run(main())
