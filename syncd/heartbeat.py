"""A dead man's switch: tells a monitor of every run, so that silence is noticed (form of healthchecks.io)."""

import httpx
import stamina
from loguru import logger

from syncd.model import Run

TIMEOUT_S = 5.0
ATTEMPTS = 2


async def ping(url: str, run: Run) -> None:
    """Ask for the URL after an ok run, for its `/fail` after any other; `rid` is the run's id. Never raises.

    The URL is a secret of its own (who knows it can silence the monitor), so that no message names it.
    """
    target = url if run.outcome == "ok" else f"{url.rstrip('/')}/fail"
    try:
        async for attempt in stamina.retry_context(
            on=httpx.HTTPError, attempts=ATTEMPTS, timeout=TIMEOUT_S * 2
        ):
            with attempt:
                async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
                    (await client.get(target, params={"rid": str(run.id)})).raise_for_status()
    except httpx.HTTPError as error:
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        logger.bind(event="heartbeat.failed", run=run.id, status=status).warning(
            "the heartbeat was not received ({}); run {} is not affected",
            status or type(error).__name__,
            run.id,
        )
