"""What the tests of the client stand on: a client of the stand-in, whose waits take no time."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from syncd.billetweb.client import Billetweb
from syncd.billetweb.limiter import RateLimiter
from syncd.clock import Clock
from syncd.config import BilletwebConfig, Secret
from syncd.model import Quiet
from syncd.standin.server import StandIn

NOW = datetime(2027, 5, 2, 8, 30, tzinfo=UTC)
KEY = "0123canary4567"


class VirtualTime(Clock):
    """A time that passes only by `sleep`; `set_back_s` is how far somebody has set the wall clock back."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.set_back_s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.now_s - 1000 - self.set_back_s)

    def running_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


class Noted:
    """What a client wants to be remembered of when it keeps quiet, the latest last."""

    def __init__(self) -> None:
        self.quiet: list[Quiet | None] = []

    async def note(self, quiet: Quiet | None) -> None:
        self.quiet.append(quiet)


async def nothing() -> bool:
    """Put no request on record."""
    return False


@asynccontextmanager
async def client_of(
    base_url: str,
    *,
    key: str = KEY,
    timeout_s: float = 5,
    concurrency: int = 4,
    count_carts: bool = False,
    virtual: VirtualTime | None = None,
    limiter: RateLimiter | None = None,
    quiet: Quiet | None = None,
    noted: Noted | None = None,
) -> AsyncIterator[Billetweb]:
    """Give a client whose waits are virtual, and whose time-out may be shorter than a configured one."""
    virtual = virtual or VirtualTime()
    config = BilletwebConfig(
        user="12345", base_url=base_url, concurrency=concurrency, timeout=timedelta(seconds=timeout_s)
    )
    client = Billetweb(
        config,
        Secret(key),
        limiter or limiter_on(virtual),
        count_carts=count_carts,
        clock=virtual,
        on_quiet=noted.note if noted else None,
    )
    client.breaker.restore(quiet)
    try:
        yield client
    finally:
        await client.aclose()


def limiter_on(virtual: VirtualTime, per_minute: int = 100) -> RateLimiter:
    """Return a ceiling on requests by virtual time."""
    return RateLimiter(per_minute, note=nothing, clock=virtual.running_s, sleep=virtual.sleep)


async def received(account: StandIn, count: int) -> None:
    """Wait until the stand-in has so many requests on record."""
    deadline = time.monotonic() + 5
    while len(account.requests) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
