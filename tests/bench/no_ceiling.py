"""`syncd`, without the waits that its ceiling of requests asks for; with its memory told at the end.

Billetweb allows 100 calls a minute, which is what a large import really takes its time for. Here the ceiling
stays in force, and each request is counted and noted in the database; but a wait for it only moves the clock
by which it is kept, as the tests' clock does. Nothing else of syncd knows.
"""

import asyncio
import functools
import sys
import time

import measure

from syncd import cli, mirror


class Clock:
    """Monotonic seconds that waits move on instead of lasting."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_s

    async def sleep(self, seconds: float) -> None:
        """Return at once, that much later."""
        self._ahead_s += seconds
        await asyncio.sleep(0)


def main() -> int:
    """Run `syncd` with this process's arguments."""
    clock = Clock()
    mirror.Mirror = functools.partial(mirror.Mirror, clock=clock, sleep=clock.sleep)  # type: ignore[assignment, misc]
    try:
        return cli.main(sys.argv[1:])
    finally:
        measure.tell()


if __name__ == "__main__":
    sys.exit(main())
