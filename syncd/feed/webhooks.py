"""Delivers webhooks by the Standard Webhooks specification: a task for each endpoint, none waits for another.

The database holds the deliveries (`outbox.py` records them) and their results: a killed process leaves the
next one all that it needs. An attempt without a recorded result is repeated, with the same id and the same
bytes: a receiver may get a delivery twice, but never a different one.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from loguru import logger
from msgspec import Struct
from sqlalchemy import Connection

from syncd.clock import Clock
from syncd.config import Config, Secret, WebhookConfig
from syncd.database import deliveries
from syncd.database.deliveries import Counts, Due, Remembered, Tried
from syncd.database.engine import Database
from syncd.errors import StoreError, UnknownDelivery
from syncd.feed.outbox import Outbox
from syncd.feed.sending import Attempt, Sender
from syncd.log import bugs
from syncd.text import format_duration, plain
from syncd.threads import in_thread

STEPS_S = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""The wait after each failed attempt; the last value repeats."""
KEEP_TRYING_S = deliveries.KEEP_TRYING.total_seconds()
LOOK_AGAIN_S = 60.0
"""How often a stepped clock is noticed, while something waits."""
AFTER_TROUBLE_S = 5.0
"""The wait after a database error. A lock of another program is usually gone by then."""
GONE = 410


class EndpointState(Struct, kw_only=True):
    """How an endpoint fares, as `GET /v1/webhooks` shows it. `host` is where it is: the rest may be secret.

    `pending` and `parked` count what stands in the database, `delivered` and `failed` attempts since the
    daemon started. `gone`: it answered so, and gets nothing until it is configured anew or retried.
    """

    name: str
    host: str
    pending: int = 0
    parked: int = 0
    delivered: int = 0
    failed: int = 0
    gone: bool = False
    last_delivered_at: datetime | None = None
    last_error: str | None = None


class WebhooksStatus(Struct, frozen=True):
    """How many endpoints there are, and how many deliveries to them wait and are parked."""

    endpoints: int = 0
    pending: int = 0
    parked: int = 0


class Shared(Struct):
    """What the endpoints of an account have in common.

    `thread`: sending takes at most one of those that work for runs. `held_since`: what is recorded from then
    on is kept back.
    """

    database: Database
    clock: Clock
    thread: asyncio.Lock
    held_since: datetime | None = None


class Endpoint:
    """One endpoint and what waits for it. Only its own task sends."""

    def __init__(self, settings: WebhookConfig, signers: Sequence[Secret], shared: Shared) -> None:
        self.settings = settings
        self._sender = Sender(settings, signers, shared.clock)
        self.state = EndpointState(name=settings.name, host=self._sender.url.host)
        self.secrets = tuple(signers)
        self._shared = shared
        self._clock, self._database = shared.clock, shared.database
        self._news = asyncio.Event()
        self._ahead = deque[str]()  # found to be due by the latest look at all that wait
        self._came: tuple[Due, Attempt] | None = None  # not recorded yet

    @property
    def fingerprint(self) -> Secret:
        """The settings that make it a different endpoint if they change."""
        return Secret("\n".join([self.settings.url, *(secret.value for secret in self.secrets)]))

    def wake(self) -> None:
        """Make its task look for what is due."""
        self._news.set()

    async def close(self) -> None:
        """Close its connections."""
        await self._sender.close()

    async def serve(self) -> None:
        """Send whatever is due, until cancelled; then close the connections."""
        try:
            while True:
                self._news.clear()
                await self._wait(await self._guarded())
        finally:
            await self.close()

    async def send_due(self) -> None:
        """Send what is due now, and no more."""
        while await self._guarded() == 0:
            pass

    async def _guarded(self) -> float | None:
        """Do a step; return as `_step`. Any failure is this endpoint's only, and is retried."""
        try:
            return await self._step() if self._database.is_open else LOOK_AGAIN_S
        except StoreError as error:
            logger.debug("webhook {}: {}; tried again", self.settings.name, error)
            return AFTER_TROUBLE_S
        except Exception as bug:  # noqa: BLE001 - which must not end the sending
            bugs.tell(f"webhook {self.settings.name}", bug)
            return LOOK_AGAIN_S

    async def _wait(self, seconds: float | None) -> None:
        """Return after so many seconds, or when there is news; None: only then."""
        if seconds == 0:
            return
        waits: set[asyncio.Task[Any]] = {asyncio.create_task(self._news.wait())}
        if seconds is not None:
            waits.add(asyncio.create_task(self._clock.sleep(min(seconds, LOOK_AGAIN_S))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _step(self) -> float | None:
        """Send the next delivery and return 0; else return the seconds until one is due, None for never."""
        if self._came is None:
            now = self._clock.now()
            async with self._shared.thread:
                found = await self._database.read(self._next, now)
            if found is None:
                return None
            if isinstance(found, datetime):
                return max((found - now).total_seconds(), 0.001)
            self._came = found, await self._sender.attempt(found)
        await self._conclude(*self._came)  # nothing is sent before: the backoff would be lost
        self._came = None
        return 0.0

    def _next(self, connection: Connection, now: datetime) -> Due | datetime | None:
        known = deliveries.remembered(connection, self.settings.name)
        self.state.gone = known.gone is not None
        if known.gone:
            return None
        if known.rests(now):
            return known.quiet_until
        if due := self._looked_up(connection, now):
            return due
        found = deliveries.first_due(connection, self.settings.name, now, self._shared.held_since)
        self.set_counts(deliveries.counts(connection))
        if not isinstance(found, list):
            return found
        self._ahead.extend(found)
        soon = now + timedelta(seconds=AFTER_TROUBLE_S)  # if all of them are another's since
        return self._looked_up(connection, now) or soon

    def _looked_up(self, connection: Connection, now: datetime) -> Due | None:
        """Return what the latest look found; each may have been retried, parked or erased since."""
        while self._ahead:
            if due := deliveries.due(connection, self._ahead.popleft(), now, self._shared.held_since):
                return due
        return None

    # --- results

    async def _conclude(self, due: Due, attempt: Attempt) -> None:
        """Record what came of an attempt, and what that means for the next one."""
        now, status, error = self._clock.now(), attempt.status, attempt.error
        is_gone = status == GONE
        if not error:
            tried = Tried(at=now, state="delivered", status=status)
        elif is_gone or now >= due.retry_until:
            tried = Tried(at=now, state="parked", status=status, error=error)
        else:
            step_s = max(STEPS_S[min(due.attempts, len(STEPS_S) - 1)], attempt.wait_s or 0.0)
            next_at = now + timedelta(seconds=step_s)
            tried = Tried(at=now, state="pending", status=status, error=error, next_at=next_at)
        digest = await in_thread(self.fingerprint.digest) if is_gone else ""

        def record(connection: Connection) -> dict[str, Counts] | None:
            """Record the attempt, and what it means for the endpoint; return the counts if that is more."""
            deliveries.conclude(connection, due, tried)
            if is_gone:
                deliveries.park(connection, self.settings.name, digest)
                return deliveries.counts(connection)
            if attempt.wait_s:
                until = now + timedelta(seconds=attempt.wait_s)
                rest = Remembered(quiet_until=until, quiet_since=now)
                deliveries.remember(connection, self.settings.name, rest)
            return None

        async with self._shared.thread:
            counts = await self._database.write(record)
        if counts is not None:
            self.set_counts(counts)
        elif tried.state != "pending":  # all are counted when more are looked for
            self.state.pending = max(self.state.pending - 1, 0)
            self.state.parked += tried.state == "parked"
        self._tell(due, tried)

    def set_counts(self, counts: dict[str, Counts]) -> None:
        """Remember how many deliveries wait and are parked."""
        mine = counts.get(self.settings.name, Counts())
        self.state.pending, self.state.parked = mine.pending, mine.parked

    def _tell(self, due: Due, tried: Tried) -> None:
        """Count an attempt, and log it if it is new: not each failure of a night."""
        state, name = self.state, self.settings.name
        if tried.state == "delivered":
            state.delivered += 1
            state.last_delivered_at = tried.at
            if state.last_error:
                logger.bind(event="webhook.works").info("webhook {}: deliveries arrive again", name)
            state.last_error = None
            return
        state.failed += 1
        error = plain(tried.error or "")
        if tried.status == GONE:
            state.gone = True
            logger.bind(event="webhook.gone", status=tried.status).error(
                "webhook {}: the endpoint is gone (HTTP 410); nothing more is sent to it until its settings"
                " change, or `syncctl webhooks retry --endpoint {}`",
                *(name, name),
            )
        elif tried.state == "parked":
            logger.bind(event="webhook.parked", status=tried.status).error(
                "webhook {}: {} {} was tried for {} in vain ({}); `syncctl webhooks retry {}` sends it again",
                *(name, due.type, due.id, format_duration(KEEP_TRYING_S), error, due.id),
            )
        elif error != state.last_error:
            logger.bind(event="webhook.failed", status=tried.status).warning(
                "webhook {}: {} {} was not delivered: {}; it is tried again for three days",
                *(name, due.type, due.id, error),
            )
        state.last_error = error


class Webhooks:
    """All endpoints of an account. `outbox` records what to send them."""

    def __init__(self, config: Config, database: Database, clock: Clock) -> None:
        self.outbox = Outbox()
        self.endpoints: list[Endpoint] = []
        self._database = database
        self._clock = clock
        self._shared = Shared(database, clock, asyncio.Lock())
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self._serves = False
        self._must_settle = True
        self._failing: AbstractSet[object] = frozenset()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Apply new settings. An unchanged endpoint continues undisturbed."""
        known = {(each.settings, each.secrets): each for each in self.endpoints}
        endpoints = []
        for settings in config.webhooks:
            secrets = tuple(config.webhook_secrets[settings.name])
            same = known.pop((settings, secrets), None)
            endpoints.append(same or Endpoint(settings, secrets, self._shared))
        self.endpoints = endpoints
        self.outbox.endpoints = config.webhooks
        self._must_settle = True
        if self._serves:
            self.start()

    def start(self) -> None:
        """Start sending, or adapt it to new settings."""
        self._serves = True
        for gone in self._tasks.keys() - {*self.endpoints}:
            self._tasks.pop(gone).cancel()
        for each in self.endpoints:
            if each not in self._tasks:
                serving = each.serve()
                self._tasks[each] = asyncio.create_task(serving, name=f"webhook {each.state.name}")

    @property
    def is_held(self) -> bool:
        """Whether anything is kept back."""
        return self._shared.held_since is not None

    def hold(self, since: datetime) -> None:
        """Hold back what is recorded from then on.

        A receiver reads the event in a table or file of the site, which must be up to date by then.
        """
        self._shared.held_since = min(since, self._shared.held_since or since)

    def release(self, since: datetime, failing: AbstractSet[object]) -> None:
        """Hold back what was recorded from then on, if a table or file fails that did not fail before.

        Otherwise hold back nothing: the next run retries what failed, and a lasting failure holds nothing.
        """
        is_news = not failing <= self._failing
        self._failing = failing
        self._shared.held_since = since if is_news else None
        for each in self.endpoints:
            each.wake()

    def wake(self) -> None:
        """Have what was put on record be sent, as far as it is committed."""
        if self.outbox.has_news:
            for each in self.endpoints:
                each.wake()

    async def refresh(self) -> None:
        """Look at what stands in the database, after a run or new settings, and have it sent."""
        self.outbox.has_news = False
        if not self._database.is_open or not (self.endpoints or self._must_settle):
            return
        endpoints = self.endpoints
        try:
            async with self._shared.thread:
                if self._must_settle and await self._database.read(self._is_unsettled):
                    for name, number in (await self._database.write(self._settle)).items():
                        logger.bind(event="webhook.removed").warning(
                            "webhook {}: it is configured no more, and {} that waited for it are parked; they"
                            " are sent if it is back within three days",
                            *(name, number),
                        )
                counts = await self._database.read(deliveries.counts)
            self._must_settle = self.endpoints is not endpoints  # others were configured meanwhile
            for each in self.endpoints:
                each.set_counts(counts)
        except StoreError as error:
            logger.debug("how many deliveries wait is not known yet: {}", error)
        for each in self.endpoints:
            each.wake()

    def _is_unsettled(self, connection: Connection) -> bool:
        names = {each.settings.name for each in self.endpoints}
        counts = deliveries.counts(connection).items()
        is_odd = any(some.parked if name in names else some.pending for name, some in counts)
        return is_odd or any(deliveries.remembered(connection, name).gone for name in names)

    def _settle(self, connection: Connection) -> dict[str, int]:
        """Let endpoints that are back, or others now, have what waits; park and count what waits for none."""
        names, now = [each.settings.name for each in self.endpoints], self._clock.now()
        deliveries.unpark_orphans(connection, names, now)
        for each in self.endpoints:
            gone = deliveries.remembered(connection, each.settings.name).gone
            if gone and not each.fingerprint.is_of(gone):
                deliveries.revive(connection, each.settings.name, now)
        return deliveries.park_orphans(connection, names)

    async def send_due(self, seconds: float) -> None:
        """Send what is due now, for so long at most: for a process that ends after its run."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.refresh()
                await asyncio.gather(*(each.send_due() for each in self.endpoints))

    async def stop(self) -> None:
        """End the sending. An attempt under way counts as not made, and is made again."""
        self._serves = False
        tasks, self._tasks = [*self._tasks.values()], {}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for each in self.endpoints:
            await each.close()

    # --- what may be asked

    def states(self) -> list[EndpointState]:
        """Return how each endpoint fares."""
        return [each.state for each in self.endpoints]

    def status(self) -> WebhooksStatus:
        """Return how many endpoints there are, and how many deliveries wait and are parked."""
        states = self.states()
        pending, parked = sum(each.pending for each in states), sum(each.parked for each in states)
        return WebhooksStatus(len(states), pending, parked)

    async def retry(self, *, ids: Sequence[str], endpoint: str | None) -> int:
        """Have deliveries sent again now; return how many. Raises StoreError, UnknownDelivery."""
        names = [each.settings.name for each in self.endpoints]
        if endpoint is not None and endpoint not in names:
            raise UnknownDelivery(
                f"there is no endpoint {endpoint}; configured: {', '.join(names) or 'none'}"
            )
        count, unknown = await self._database.write(
            deliveries.retry, self._clock.now(), ids=ids, endpoint=endpoint, configured=names
        )
        if unknown:
            raise UnknownDelivery(
                f"there is no delivery {', '.join(unknown[:3])} to an endpoint that is configured"
            )
        await self.refresh()
        return count
