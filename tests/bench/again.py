"""What a run's requests cost by themselves: `again.py BASE_URL` sends what stands on its standard input.

A path a line, by httpx, four at a time, as syncd sends them; the answers are read and not looked at.
"""

import asyncio
import sys
import time

import httpx
import measure

WORKERS = 4


async def main(base_url: str, paths: list[str]) -> None:
    """Send them and tell how long it took."""
    waiting = iter(paths)
    async with httpx.AsyncClient(base_url=base_url, auth=("12345", "key"), trust_env=False) as http:

        async def work() -> None:
            for path in waiting:
                (await http.get(path)).raise_for_status()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())
        measure.tell(seconds=time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.stdin.read().split()))
