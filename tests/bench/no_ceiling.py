"""`syncd`, without the waits that its ceiling of requests asks for; with its memory told at the end.

Billetweb allows 100 calls a minute, which is what a large import really takes its time for. Here the ceiling
stays in force, and each request is counted and noted in the database; but a wait for it only moves the clock
by which it is kept, as the tests' clock does. Nothing else of syncd knows.
"""

import asyncio
import sys
from typing import Any

import measure

from syncd.__main__ import load

RUN = load()  # before the rest of syncd, as a start has it

from syncd.account import account  # noqa: E402
from syncd.clock import Clock  # noqa: E402


class Jumps(Clock):
    """A time that waits move on instead of lasting; the wall clock goes as it does."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def running_s(self) -> float:
        return super().running_s() + self._ahead_s

    async def sleep(self, seconds: float) -> None:
        self._ahead_s += seconds
        await asyncio.sleep(0)


class Account(account.Account):
    """An account that waits for nothing; how long its runs take is real."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings, clock=Jumps())
        self.runner._clock = Clock()


def main() -> int:
    """Run `syncd` with this process's arguments."""
    account.Account = Account  # type: ignore[misc]
    try:
        return RUN()
    finally:
        measure.tell()


if __name__ == "__main__":
    sys.exit(main())
