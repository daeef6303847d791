"""What the tests of webhooks stand on: a rig whose time passes by hand, and which tells receivers."""

import asyncio
import json
from typing import Any

import msgspec
from conftest import Rig, WaitedFor
from msgspec import structs

from support.receiver import SECRET, Receiver
from syncd.config import TOLD, Config, Secret, WebhookConfig


class ByHand(WaitedFor):
    """A time that passes only when a test says so; so many `sleepers` wait for it."""

    sleepers = 0

    async def sleep(self, seconds: float) -> None:
        until = self.now_s + seconds
        self.sleepers += 1
        try:
            while self.now_s < until:  # noqa: ASYNC110 - a test, from another thread, moves it
                await asyncio.sleep(0.002)
        finally:
            self.sleepers -= 1


def telling(config: Config, receiver: Receiver, **settings: Any) -> Config:
    """Return a configuration with one more endpoint."""
    secrets = settings.pop("secrets", (SECRET,))
    values = {"name": "site", "url": receiver.url, "on": TOLD} | settings
    endpoint = WebhookConfig(**values)
    return structs.replace(
        config,
        webhooks=(*config.webhooks, endpoint),
        webhook_secrets={**config.webhook_secrets, endpoint.name: tuple(map(Secret, secrets))},
    )


def configure(rig: Rig, config: Config) -> None:
    """Take settings over, and let the webhooks settle."""
    rig.config = config
    rig.portal.call(rig.account.configure, config)
    rig.portal.call(rig.account.outputs.webhooks.refresh)


def later(rig: Rig, seconds: float) -> None:
    """Let time pass, and have whatever is due then be sent."""
    rig.clock.now_s += seconds
    rig.portal.call(rig.account.outputs.webhooks.refresh)


def settled(rig: Rig, pending: int = 0, parked: int = 0) -> None:
    """Wait until so many deliveries wait and are parked."""

    def holds() -> bool:
        status = rig.account.outputs.webhooks.status()
        return (status.pending, status.parked) == (pending, parked)

    rig.until(holds)


def asleep(rig: Rig) -> ByHand:
    """Wait until nothing of the endpoints is under way, nor about to be; return the clock they wait for."""
    clock = rig.clock
    assert isinstance(clock, ByHand)

    def sleeps() -> bool:
        is_woken = any(each._news.is_set() for each in rig.account.outputs.webhooks.endpoints)
        return clock.sleepers > 0 and not is_woken

    rig.until(sleeps)
    rig.portal.call(asyncio.sleep, 0)  # one that was just woken is no sleeper any more
    rig.until(sleeps)
    return clock


def events(rig: Rig) -> list[dict[str, Any]]:
    """Return the events as the control API shows them."""

    async def ask() -> Any:
        return await rig.account.events(ended_too=True)

    found: list[dict[str, Any]] = json.loads(msgspec.json.encode(rig.portal.call(ask)))
    return found


def sent(rig: Rig, columns: str = "type") -> list[Any]:
    """Return a column, or several, of the deliveries on record, in their order."""
    rows = rig.sql(f"SELECT {columns} FROM syncd_deliveries ORDER BY seq")
    return [row[0] if len(row) == 1 else row for row in rows]
