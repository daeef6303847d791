"""Sends one delivery once, by the Standard Webhooks specification: signed, and only to where it may go."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress

import httpx
from msgspec import Struct
from standardwebhooks import Webhook

from syncd import __version__, web
from syncd.billetweb.answers import retry_after_s
from syncd.clock import Clock
from syncd.config import Secret, WebhookConfig
from syncd.database import deliveries
from syncd.database.deliveries import Due
from syncd.errors import ConfigError
from syncd.feed.addresses import Address, Unreachable, allowed_addresses
from syncd.log import bugs
from syncd.text import plain
from syncd.threads import in_thread

CONNECT_S = 5.0
"""How long one address may take to connect; then the host's next one is tried."""
KEEP_ALIVE_S = 1.0
"""How long a connection is kept for the next delivery. Many receivers, Node's among them, close theirs after
5 s, and what is sent at that moment fails."""
DEADLINE_S = 15.0
"""How long an attempt may take in all. The specification advises 15 to 30; a slower endpoint delays only its
own other deliveries."""
MOST_BYTES = 64 * 1024
"""How much of an answer is read, out of politeness: only its status matters."""
RETRY_AFTER_MOST_S = deliveries.MOST_AHEAD.total_seconds()
"""The longest Retry-After that is respected: a longer one would leave too few attempts in three days."""
HEADERS = {"User-Agent": f"syncd/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


class Attempt(Struct, frozen=True):
    """What came of an attempt: the answer's status, if any; the error, "" for none; the requested wait."""

    status: int | None
    error: str
    wait_s: float | None = None


class Sender:
    """Sends deliveries to one endpoint."""

    def __init__(self, settings: WebhookConfig, signers: Sequence[Secret], clock: Clock) -> None:
        self.settings = settings
        self.url = httpx.URL(settings.url)
        self._signers = [Webhook(secret.value) for secret in signers]
        self._clock = clock
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.aclose()

    async def attempt(self, due: Due) -> Attempt:
        """Send a delivery once."""
        status: int | None = None
        wait_s: float | None = None
        try:
            async with asyncio.timeout(DEADLINE_S), aclosing(await self._send(due)) as answer:
                status = answer.status_code
                if not answer.is_success:
                    header, now = answer.headers.get("Retry-After"), self._clock.now()
                    wait_s = retry_after_s(header, now=now, most_s=RETRY_AFTER_MOST_S)
                await _read_out(answer)
        except Exception as trouble:  # noqa: BLE001 - one delivery must not keep the others from their turn
            if status is None:
                return Attempt(None, self._reason(trouble))
        assert status is not None
        match status // 100:
            case 2:
                error = ""
            case 3:
                error = f"HTTP {status}: redirects are not followed, `url` must be the address itself"
            case _:
                error = f"HTTP {status}"
        return Attempt(status, error, wait_s)

    def _reason(self, trouble: Exception) -> str:
        """Return why there was no answer. httpx's texts may hold the address, but not connection errors'."""
        if isinstance(trouble, TimeoutError):
            return f"no answer within {DEADLINE_S:g} s"
        if isinstance(trouble, Unreachable | ConfigError):
            return str(trouble)
        if isinstance(trouble, httpx.ConnectError):
            return f"no connection: {plain(str(trouble), 200) or 'it was closed as it was made'}"
        if isinstance(trouble, httpx.HTTPError | httpx.StreamError | OSError):
            return f"no answer ({type(trouble).__name__})"
        return bugs.tell(f"webhook {self.settings.name}", trouble)

    async def _send(self, due: Due) -> httpx.Response:
        """Return the answer, still open, of the first address that accepts a connection."""
        if self._client is None:  # reading certificates takes its time
            timeout = httpx.Timeout(DEADLINE_S, connect=CONNECT_S)
            limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)
            self._client = await in_thread(
                web.client, self.settings.url, direct=True, timeout=timeout, limits=limits, headers=HEADERS
            )
        is_local = web.is_loopback(self.url.host)
        port = self.url.port or {"http": 80, "https": 443}[self.url.scheme]
        addresses = await allowed_addresses(
            self.url.host, port, private=self.settings.private, loopback=is_local
        )
        for address in addresses[:-1]:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._client.send(self._request(due, address), stream=True)
        return await self._client.send(self._request(due, addresses[-1]), stream=True)

    def _request(self, due: Due, address: Address) -> httpx.Request:
        """Return the request to one address, in the name of the endpoint's host."""
        assert self._client
        at = self._clock.now().replace(microsecond=0)
        headers = {
            "Host": self.url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "webhook-id": due.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(each.sign(due.id, at, due.body) for each in self._signers),
        }
        extensions = {"sni_hostname": self.url.host} if str(address) != self.url.host else {}
        url = self.url.copy_with(host=str(address))
        return self._client.build_request(
            "POST", url, content=due.body.encode(), headers=headers, extensions=extensions
        )


async def _read_out(answer: httpx.Response) -> None:
    """Read an answer up to the limit; a receiver that is cut off may fail."""
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        if size > MOST_BYTES:
            return
