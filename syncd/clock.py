"""The time, handed in as one value to all that waits or notes an instant. Imports nothing of syncd.

So a test can let a year pass, and a life that failed in it can be played again.
"""

import asyncio
import time
from datetime import UTC, datetime


class Clock:
    """This machine's time."""

    def now(self) -> datetime:
        """Return the wall clock's instant, aware, in UTC. It may be set back."""
        return datetime.now(UTC)

    def running_s(self) -> float:
        """Return seconds that only ever grow, from an unknown beginning."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)
