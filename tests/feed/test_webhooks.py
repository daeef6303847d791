"""Webhooks of an account: what is told, signed as the specification says, in order, at least once."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, rig_on
from msgspec import structs
from support.receiver import SECRET, Receiver, receiving

from syncd.config import TOLD, Config, Secret, WebhookConfig
from syncd.feed.webhooks import WebhooksStatus
from syncd.standin.server import StandIn

CONCERT, FESTIVAL = "900006", "900001"


class ByHand(WaitedFor):
    """A time that passes only when a test says so."""

    async def sleep(self, seconds: float) -> None:
        until = self.now_s + seconds
        while self.now_s < until:  # noqa: ASYNC110 - a test, from another thread, moves it
            await asyncio.sleep(0.002)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    with receiving() as receiver:
        yield receiver


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
    rig.portal.call(rig.account.webhooks.refresh)


@pytest.fixture
def rig(make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig whose time passes by hand, with all events mirrored before anybody is told."""
    config = make_config(billetweb__concurrency=1, sync__attendees="minimal")
    with rig_on(config, ByHand()) as rig:
        rig.run()
        rig.portal.call(rig.account.webhooks.start)
        yield rig


def settled(rig: Rig, pending: int = 0, parked: int = 0) -> None:
    """Wait until so many deliveries wait and are parked."""
    rig.until(
        lambda: (
            (rig.account.webhooks.status().pending, rig.account.webhooks.status().parked) == (pending, parked)
        )
    )


def on_record(rig: Rig, *columns: str) -> list[tuple[Any, ...]]:
    """Return columns of the deliveries, in their order."""
    return rig.sql(f"SELECT {', '.join(columns)} FROM syncd_deliveries ORDER BY seq")


def events(rig: Rig) -> list[dict[str, Any]]:
    """Return the events as the control API shows them."""

    async def ask() -> Any:
        return await rig.account.events(ended_too=True)

    found: list[dict[str, Any]] = json.loads(msgspec.json.encode(rig.portal.call(ask)))
    return found


# --- what is told


def test_a_sold_out_event_is_told_to_nobody(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """The last place sold and refunded are told, signed, with the Event as the API shows it."""
    configure(rig, telling(rig.config, receiver))
    standin.sell(CONCERT, 3)
    rig.run()
    settled(rig)
    told = [got.verified() for got in receiver.got if got.type.startswith("event")]
    assert [each["type"] for each in told] == ["event.changed", "event.full"]
    changed, full = (each["data"] for each in told)
    shown = {row["id"]: row for row in events(rig)}[CONCERT]
    assert full == shown | {"age_s": full["age_s"], "changed": full["changed"]}
    assert (full["is_full"], full["places_left"], full["age_s"]) == (True, 0, 0.0)
    assert {"is_full", "places_left", "sale_status"} <= {*full["changed"]}
    assert changed == full
    assert told[0]["timestamp"] == told[1]["timestamp"]
    standin.refund(CONCERT, 1)
    rig.run()
    settled(rig)
    assert [got.type for got in receiver.got if got.type in ("event.full", "event.reopened")] == [
        "event.full",
        "event.reopened",
    ]
    assert rig.account.status().webhooks == WebhooksStatus(endpoints=1)
