"""The client of Billetweb's API (https://www.billetweb.fr/bo/api.php): bytes over HTTP, records out.

An answer is stored, in a temporary file if it is large, and read from there in slices (`body.py`).

The key travels in the Authorization header, never in a URL: URLs end up in logs and error texts. httpx's
exceptions are raised as `errors.BilletwebError`. `answers.py` and `decode.py` know what the answers mean.
"""

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import IO, TypeVar

import httpx
import stamina
import stamina.instrumentation
from loguru import logger

from syncd import __version__, web
from syncd.billetweb import answers, decode
from syncd.billetweb.body import CODING, IN_MEMORY_BYTES, LIST_MAX_ROWS, Spooled, named, spool
from syncd.billetweb.breaker import RETRY_WITHIN_S, Breaker
from syncd.billetweb.decode import Decoded
from syncd.billetweb.limiter import RateLimiter
from syncd.clock import Clock
from syncd.config import BilletwebConfig, Secret
from syncd.errors import AuthError, BilletwebError, RestrictedError, StatusError, TransportError
from syncd.log.redact import Redactor, of_basic_auth
from syncd.model import Event, Gauge, Quiet, Session, Ticket
from syncd.threads import in_thread

R = TypeVar("R")
EVENTS = "/events"
HTTP_NOT_FOUND = 404
ATTEMPTS = 3
"""A second one helps against most momentary faults, a third against nearly all; the next run is near."""


class Billetweb:
    """Reads one account.

    A request that failed for a transient reason is retried, ATTEMPTS times in all and within RETRY_WITHIN_S.
    While the `breaker` forbids to send any, each raises its error at once.
    `ahead` is how far this machine's clock is ahead of Billetweb's, by its latest answer.
    `requests` counts what was sent; `statuses` counts the answers by HTTP status, "none" where none came.
    """

    def __init__(
        self,
        config: BilletwebConfig,
        key: Secret,
        limiter: RateLimiter,
        *,
        count_carts: bool = False,
        clock: Clock | None = None,
        on_quiet: Callable[[Quiet | None], Awaitable[None]] | None = None,
    ) -> None:
        self._account = config.user
        self._timeout_s = config.timeout.total_seconds()
        self._limiter = limiter
        self._count_carts = count_carts
        self._clock = clock or Clock()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._decoding = asyncio.Lock()  # one after the other is as fast, and only one is in memory
        self.credentials = Secret(f"{config.user}:{key.value}")
        self._redact = Redactor(of_basic_auth(config.user, key.value))
        self.breaker = Breaker(self.credentials, limiter, self._clock, on_quiet)
        self.ahead = timedelta(0)
        self.requests = 0
        self.statuses: Counter[str] = Counter()
        self._http = web.client(  # it follows no redirect: the credentials are for this host alone
            config.base_url,
            base_url=config.base_url.rstrip("/"),
            auth=httpx.BasicAuth(config.user, key.value),
            headers={
                "User-Agent": f"syncd/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": CODING,
            },
        )

    def succeed(self, before: "Billetweb") -> None:
        """Continue from the client of earlier settings, but retry a key that was refused to it."""
        self.statuses = before.statuses  # the same counter: a run in progress still counts there
        self.breaker.succeed(before.breaker)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def events(self, *, descriptions: bool = True) -> Decoded[Event]:
        """Return all events of the account, ended ones too. Raises BilletwebError, as all reads do."""
        read = partial(decode.decode_events, account=self._account)
        return await self._read(EVENTS, read, past="1", description="1" if descriptions else "0")

    async def gauges(self, event_id: str) -> Decoded[Gauge]:
        """Return the availability rows of one event, past sessions' too."""
        read = partial(decode.decode_gauges, event_id=event_id)
        temp = "1" if self._count_carts else "0"
        return await self._read(f"/event/{event_id}/avail", read, past="1", temp=temp)

    async def tickets(self, event_id: str) -> Decoded[Ticket]:
        """Return the tariffs of one event."""
        return await self._read(
            f"/event/{event_id}/tickets", partial(decode.decode_tickets, event_id=event_id)
        )

    async def sessions(self, event_id: str) -> Decoded[Session]:
        """Return the sessions of one event, past ones too."""
        read = partial(decode.decode_sessions, event_id=event_id)
        return await self._read(f"/event/{event_id}/dates", read, past="1")

    async def attendees(
        self, *, since: datetime | None, until: datetime | None = None, event_id: str | None = None
    ) -> Spooled:
        """Return attendees of an event or of the account, refunded ones too; all or those changed recently.

        The rows are for `decode.decode_attendees`. Raises RestrictedError if the key may not read them, and
        TooLargeError if the caller should ask for a shorter time, or for an event.
        """
        params = {"disabled": "1"}
        if since is not None:
            params["last_update"] = str(math.floor(since.timestamp()))
        if until is not None:
            params["to"] = str(math.ceil(until.timestamp()))
        path = "/attendees" if event_id is None else f"/event/{event_id}/attendees"
        async with self._slots:
            return Spooled(await self._get(path, params, self._timeout_s * 2), path)

    async def _read(self, path: str, decode: Callable[..., Decoded[R]], **params: str) -> Decoded[R]:
        """Return the rows of a list; `decode` is for a slice of it, as in `Spooled.decoded`."""
        async with self._slots:
            file = await self._get(path, params)
        whole: Decoded[R] = Decoded(records={})
        with Spooled(file, path, LIST_MAX_ROWS) as answer:
            parts = answer.decoded(decode)

            def more() -> bool:
                nonlocal whole
                if part := next(parts, None):
                    whole = whole.joined(part)
                return part is not None

            async with self._decoding:
                # In steps, so that a stop need not wait for the last; a short answer in one step.
                while await in_thread(lambda: more() and more()):
                    pass
        return whole

    async def _get(self, path: str, params: dict[str, str], timeout_s: float | None = None) -> IO[bytes]:
        with named(path):
            await self._turn()  # outside the retries: their time must not run while a request is held back
        async for attempt in stamina.retry_context(
            on=_backoff, attempts=ATTEMPTS, timeout=RETRY_WITHIN_S, wait_initial=0.5, wait_max=10.0
        ):
            with attempt, named(path):
                if attempt.num > 1:
                    await self._turn()
                file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115
                try:
                    await self._attempt(path, params, file, timeout_s or self._timeout_s)
                except BaseException as error:
                    file.close()
                    if isinstance(error, BilletwebError):
                        await self.breaker.failed(error)
                    raise
                await self.breaker.answered()
                return file
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _turn(self) -> None:
        self.breaker.check()
        await self._limiter.acquire(self.breaker.check)
        self.breaker.check()  # another request may have found out meanwhile

    async def _attempt(self, path: str, params: dict[str, str], file: IO[bytes], timeout_s: float) -> None:
        self.requests += 1
        status: int | None = None
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream("GET", path, params=params, timeout=_timeouts(timeout_s)) as answer,
            ):
                status = answer.status_code
                coding = answer.headers.get("Content-Encoding", "")
                await spool(answer.aiter_raw(), file, coding=coding, status=status)
        except TimeoutError as error:
            raise TransportError(f"no complete answer within {timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, httpx.CookieConflict) as error:
            said = str(error) or "no answer"
            raise TransportError(f"{self._http.base_url.host}: {type(error).__name__}: {said}") from error
        finally:
            self.statuses[str(status or "none")] += 1
        retry_after, now = answer.headers.get("Retry-After"), self._clock.now()
        self.ahead = answers.ahead(answer.headers.get("Date"), now=now)
        refusal = await in_thread(self._refusal, file, answer.status_code, retry_after, now)
        if isinstance(refusal, AuthError) and path != EVENTS:
            # The key is good: it was given the list of events, with which every run begins.
            raise RestrictedError(str(refusal), status=answer.status_code)
        if isinstance(refusal, StatusError) and (path, refusal.status) == (EVENTS, HTTP_NOT_FOUND):
            raise StatusError(
                f"{refusal}; check billetweb.base_url, which ends with /api", status=refusal.status
            )
        if refusal:
            raise refusal

    def _refusal(
        self, file: IO[bytes], status: int, retry_after: str | None, now: datetime
    ) -> BilletwebError | None:
        body = file.read(IN_MEMORY_BYTES)
        file.seek(0)
        return answers.classify(body, status, retry_after, now=now, redact=self._redact)


def _backoff(error: Exception) -> bool | float:
    """Return to stamina whether to retry, and after how many seconds if the error says so."""
    if not isinstance(error, BilletwebError) or not error.retry:
        return False
    if error.wait_s is None:
        return True
    # The limiter is paused and holds back every request.
    return 0.0 if error.wait_s <= RETRY_WITHIN_S else False


def _timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(connect=min(10.0, seconds), read=seconds, write=10.0, pool=seconds)


def tell_retry(details: stamina.instrumentation.RetryDetails) -> None:
    """Log that a request is retried; for stamina's hooks, instead of its own.

    Only for Billetweb's errors: httpx's own, raised in the heartbeat, have the address in their text.
    """
    error = details.caused_by
    if isinstance(error, BilletwebError):
        logger.info(
            "{} [{}]; asking again in {:.1f} s (attempt {} of {})",
            error,
            error.kind,
            max(details.wait_for, error.wait_s or 0.0),  # the limiter's pause counts too
            details.retry_num + 1,
            ATTEMPTS,
        )
