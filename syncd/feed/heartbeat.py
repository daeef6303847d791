"""A dead man's switch: tells a monitor of every run, so that silence is noticed (form of healthchecks.io)."""

import asyncio
from uuid import UUID

import httpx
import stamina
from loguru import logger

from syncd import web
from syncd.errors import ConfigError
from syncd.model import Run
from syncd.text import run_name
from syncd.threads import in_thread

TIMEOUT_S = 5.0
ATTEMPTS = 2
"""A ping takes a moment or fails; the next run's makes up for a lost one."""


async def ping(url: str | None, run: Run) -> None:
    """Request the URL after an ok run, its `/fail` after any other. Never raises.

    Nothing is requested without a URL, or after a run that says nothing about the mirror: one that was
    cancelled, or failed only because of mistyped ids.
    `rid` is the run's id as a UUID, the only form that healthchecks.io takes
    (https://healthchecks.io/docs/http_api/): run 42 is 00000000-0000-0000-0000-000000000042.
    The URL is itself a secret (who knows it can silence the monitor), so no message names it.
    """
    if url is None or run.outcome == "cancelled" or run.is_slip:
        return
    target = url if run.outcome == "ok" else f"{url.rstrip('/')}/fail"
    try:
        async for attempt in stamina.retry_context(
            on=(httpx.HTTPError, TimeoutError), attempts=ATTEMPTS, timeout=TIMEOUT_S * 2
        ):
            with attempt:
                await _ask(target, rid=str(UUID(f"{abs(run.id):032d}")))
    except Exception as error:  # noqa: BLE001 - also what a proxy or certificate of the environment provokes
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        why = error if isinstance(error, ConfigError) else status or type(error).__name__
        logger.bind(event="heartbeat.failed", run=run.id, status=status).warning(
            "the heartbeat was not received ({}); {} is not affected", why, run_name(run.id)
        )


async def _ask(target: str, *, rid: str) -> None:
    made = await in_thread(web.client, target, timeout=TIMEOUT_S)  # reading certificates takes its time
    async with (
        made as client,
        asyncio.timeout(TIMEOUT_S),
        client.stream("GET", target, params={"rid": rid}) as answer,  # the body does not matter
    ):
        answer.raise_for_status()
