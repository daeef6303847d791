"""The client, over real HTTP against the stand-in: what each answer means, and what goes over the wire."""

import asyncio
import base64
import inspect
import socket
import tracemalloc

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from support import faults
from support.clients import KEY, NOW, client_of, received

from syncd import __version__
from syncd.billetweb import body as answers
from syncd.billetweb.client import Billetweb
from syncd.errors import (
    AuthError,
    BilletwebError,
    ChallengeError,
    DecodeError,
    RateLimited,
    RestrictedError,
    StatusError,
    TooLargeError,
    TransportError,
)
from syncd.standin.server import Answer, Fault, StandIn, serving

EVENT_ID = "900005"  # with sessions
pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def standin() -> StandIn:
    return StandIn(now=NOW, key=KEY)


def failure_of(base_url: str, *, timeout_s: float = 5) -> BilletwebError:
    """Ask for the events once, and give the error that this ends in."""

    async def main() -> BilletwebError:
        async with client_of(base_url, timeout_s=timeout_s) as client:
            with pytest.raises(BilletwebError) as caught:
                await client.events()
            return caught.value

    return asyncio.run(main())


def broken_gzip(answer: Answer) -> Answer:
    return msgspec.structs.replace(answer, headers={**answer.headers, "content-encoding": "gzip"})


def cut_gzip(answer: Answer) -> Answer:
    return faults.truncated(faults.gzipped(answer))


def as_status(code: int) -> Fault:
    return lambda answer: msgspec.structs.replace(answer, status=code)


CHALLENGE_503 = faults.html('<script src="/cdn-cgi/challenge-platform/h/g"></script>', 503)
ROWS: dict[str, tuple[Fault, type[BilletwebError], int | None, int]] = {
    # case: what Billetweb does, the error, its status, how often the request is sent in all
    "too many calls": (faults.rate_limiting(), RateLimited, 429, 3),
    "too many calls, as 200": (faults.error_object("rate_limiting", "…"), RateLimited, 200, 3),
    "challenge page": (faults.challenge, ChallengeError, 403, 1),
    "challenge page, as 503": (CHALLENGE_503, ChallengeError, 503, 1),
    "block page without its marker": (faults.status(403), ChallengeError, 403, 1),
    "wrong key, as 200": (faults.unauthorized, AuthError, 200, 1),
    "wrong key, as 401": (faults.unauthorized_401, AuthError, 401, 1),
    "bare 401": (faults.status(401), AuthError, 401, 1),
    "restricted key": (faults.restricted, RestrictedError, 200, 1),
    "unknown event, as 200": (faults.error_object("not_found", "Unknown event"), StatusError, 200, 1),
    "unknown event, as 404": (faults.status(404), StatusError, 404, 1),
    "list with 404": (as_status(404), StatusError, 404, 1),
    "list with 302": (as_status(302), StatusError, 302, 1),
    "server error": (faults.status(500), TransportError, 500, 3),
    "maintenance": (faults.status(503), TransportError, 503, 3),
    "list with 500": (as_status(500), TransportError, 500, 3),
    "connection reset": (faults.reset, TransportError, None, 3),
    "connection cut in mid-body": (faults.cut, TransportError, None, 3),
    "page for browsers": (faults.html_page, DecodeError, 200, 1),
    "nothing": (faults.empty, DecodeError, 200, 1),
    "null": (faults.null, DecodeError, 200, 1),
    "half a list": (faults.truncated, DecodeError, 200, 1),
    "object without error": (faults.raw(b'{"id": "1"}'), DecodeError, 200, 1),
    "text": (faults.raw(b'"[]"'), DecodeError, 200, 1),
    "broken compression": (broken_gzip, DecodeError, 200, 1),
    "truncated compression": (cut_gzip, DecodeError, 200, 1),
    "oversized answer": (faults.oversized(65), TooLargeError, 200, 1),
}


@pytest.mark.parametrize("case", ROWS)
def test_failure_would_be_taken_for_another_or_for_data(standin: StandIn, base_url: str, case: str) -> None:
    """Each way to fail has its type; only what may pass by itself is asked again, three times in all."""
    fault, kind, status, sent = ROWS[case]
    standin.fail("/events", fault, times=None)
    error = failure_of(base_url)
    assert (type(error), error.status) == (kind, status)
    assert str(error).startswith("GET /events: ")
    assert str(error).count("GET") == 1
    assert len(standin.requests) == sent


@pytest.mark.parametrize("fault", [as_status(203), faults.bom, faults.gzipped])
def test_unusual_success_would_be_refused(standin: StandIn, base_url: str, fault: Fault) -> None:
    """Any 2xx with an array is a success, compressed or behind a byte order mark too."""
    standin.fail("/events", fault, times=None)

    async def main() -> None:
        async with client_of(base_url) as client:
            assert len((await client.events()).records) == len(standin.events)

    asyncio.run(main())


def test_nobody_listening_would_be_a_crash() -> None:
    """A connection refused is a TransportError that says so."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    error = failure_of(f"http://127.0.0.1:{port}/api")
    assert type(error) is TransportError
    assert "ConnectError" in str(error)


def test_exception_of_httpx_would_escape(base_url: str) -> None:
    """Whatever httpx can raise leaves the client as a BilletwebError with httpx's as its cause."""
    classes = [
        found
        for name in httpx.__all__
        if inspect.isclass(found := getattr(httpx, name)) and issubclass(found, Exception)
    ]
    assert len(classes) > 20
    request = httpx.Request("GET", base_url)
    facts = {"message": "trouble", "request": request, "response": httpx.Response(500, request=request)}

    async def main(raised: Exception) -> BilletwebError:
        def handler(_: httpx.Request) -> httpx.Response:
            raise raised

        async with client_of(base_url) as client:
            await client._http.aclose()
            client._http = httpx.AsyncClient(base_url=base_url, transport=httpx.MockTransport(handler))
            with pytest.raises(BilletwebError) as caught:
                await client.events()
            assert client.statuses["none"] == client.requests > 0
            return caught.value

    for kind in classes:
        taken = inspect.signature(kind).parameters
        raised = kind(**{name: fact for name, fact in facts.items() if name in taken})
        error = asyncio.run(main(raised))
        assert error.__cause__ is raised
        assert type(error) is TransportError


# -- what goes over the wire


async def read_everything(client: Billetweb) -> None:
    await client.events()
    await client.gauges(EVENT_ID)
    await client.tickets(EVENT_ID)
    await client.sessions(EVENT_ID)


def test_key_would_end_up_in_a_log_of_urls(standin: StandIn, base_url: str) -> None:
    """Credentials travel in the Authorization header alone, and each request names syncd and its version."""

    async def main() -> None:
        async with client_of(base_url) as client:
            await read_everything(client)

    asyncio.run(main())
    token = base64.b64encode(f"12345:{KEY}".encode()).decode()
    assert len(standin.requests) == 4
    for request in standin.requests:
        assert request.authorized
        assert request.headers["authorization"] == f"Basic {token}"
        assert request.headers["user-agent"] == f"syncd/{__version__}"
        in_url = request.path + repr(request.query)
        assert not any(secret in in_url for secret in ("user", "key", "12345", KEY, token))


@pytest.mark.parametrize("count_carts", [False, True])
def test_ended_events_would_vanish_from_the_mirror(
    standin: StandIn, base_url: str, count_carts: bool
) -> None:
    """Past events and sessions are asked for by name, and carts are counted where that was chosen."""

    async def main() -> None:
        async with client_of(base_url, count_carts=count_carts) as client:
            await read_everything(client)

    asyncio.run(main())
    assert [(request.path, request.query) for request in standin.requests] == [
        ("/events", {"past": "1", "description": "1"}),
        (f"/event/{EVENT_ID}/avail", {"past": "1", "temp": "1" if count_carts else "0"}),
        (f"/event/{EVENT_ID}/tickets", {}),
        (f"/event/{EVENT_ID}/dates", {"past": "1"}),
    ]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_credentials_would_follow_a_redirect(standin: StandIn, base_url: str, code: int) -> None:
    """A redirect is an error: the other host hears nothing, nor does this one a second time."""
    elsewhere = StandIn(now=NOW, key=KEY)
    with serving(elsewhere) as other_url:
        standin.fail("/events", faults.raw(b"", code, {"location": f"{other_url}/events"}))
        error = failure_of(base_url)
    assert type(error) is StatusError
    assert elsewhere.requests == []
    assert len(standin.requests) == 1


def test_proxy_would_see_the_requests_of_the_demo(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not for loopback, but for every other host it is."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, base_url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def main() -> None:
        async with client_of(base_url) as client:
            await client.events()
        async with client_of("http://billetweb.invalid/api") as client:
            with pytest.raises(StatusError, match="HTTP 404"):  # the proxy's answer: no name server has it
                await client.events()

    asyncio.run(main())


def test_cookies_pile_up(standin: StandIn, base_url: str) -> None:
    """No cookie is sent back, however it is set: a client that never ends would send more in each request."""
    sent = 0

    def set_cookie(answer: Answer) -> Answer:
        nonlocal sent
        sent += 1
        scope = ("", "; Path=/", "; Path=/api; HttpOnly", "; Max-Age=86400", "; Domain=127.0.0.1")[sent % 5]
        return replace(answer, headers={**answer.headers, "set-cookie": f"c{sent}={'x' * 4000}{scope}"})

    standin.fail("*", set_cookie, times=None)

    async def main() -> None:
        async with client_of(base_url) as client:
            for _ in range(20):  # of 4 KB each: more than servers take, this one too
                await client.events()
                await client.tickets(EVENT_ID)

    asyncio.run(main())
    assert sent == len(standin.requests) == 40
    assert not any("cookie" in request.headers for request in standin.requests)


# -- limits


@pytest.mark.parametrize("fault", [faults.hang, faults.drip(30)], ids=["hang", "drip"])
def test_slow_answer_would_hold_the_run(standin: StandIn, base_url: str, fault: Fault) -> None:
    """An answer that does not begin, and one whose next byte always comes in time, end by the time-out."""
    standin.fail("/events", fault, times=None)
    error = failure_of(base_url, timeout_s=0.2)
    assert type(error) is TransportError
    assert "no complete answer within 0.2 s" in str(error)
    assert len(standin.requests) == 3


def test_small_answer_would_fill_the_memory(
    standin: StandIn, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that unpacks to more than is allowed is given up on the way, not when it is whole."""
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 1024 * 1024)
    packed = faults.oversized(96)(Answer(b"[]"))
    standin.fail("/events", lambda _: packed)
    tracemalloc.start()
    try:
        error = failure_of(base_url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(error) is TooLargeError
    assert "larger than 1 MiB" in str(error)
    assert peak < 48 * 1024 * 1024


@pytest.mark.parametrize("concurrency", [1, 3])
def test_burst_would_wake_the_protection(standin: StandIn, base_url: str, concurrency: int) -> None:
    """No more requests are under way at once than configured, and all are served in the end."""
    standin.fail("*", faults.hang, times=None)

    async def main() -> None:
        async with client_of(base_url, concurrency=concurrency) as client:
            reads = [asyncio.create_task(client.tickets(event_id)) for event_id in standin.events]
            await received(standin, concurrency)
            await asyncio.sleep(0.1)  # time enough for all of them
            assert len(standin.requests) == concurrency
            standin.heal()
            await asyncio.gather(*reads)
            assert len(standin.requests) == len(standin.events)

    asyncio.run(main())


def test_counters_would_not_tell_what_happened(standin: StandIn, base_url: str) -> None:
    """Requests are counted as sent, answers by their status, and a missing one as none."""
    for fault in (faults.status(503), faults.reset):
        standin.fail("/events", fault)

    async def main() -> None:
        async with client_of(base_url) as client:
            await client.events()
            standin.fail("/events", faults.restricted)
            with pytest.raises(RestrictedError):
                await client.events()
            assert client.requests == len(standin.requests) == 4
            assert client.statuses == {"503": 1, "none": 1, "200": 2}

    asyncio.run(main())


def test_malformed_row_would_not_say_where_it_was(standin: StandIn, base_url: str) -> None:
    """A row without its id is named with its request, as an unusable event or as the failure of a read."""
    without_id: Fault = faults.with_rows(lambda rows: [{"name": "no id"}, *rows[1:]])
    standin.fail("/events", without_id)
    standin.fail(f"/event/{EVENT_ID}/tickets", without_id)

    async def main() -> None:
        async with client_of(base_url) as client:
            assert (await client.events()).bad == ["events[0].id is missing"]
            with pytest.raises(DecodeError, match=rf"^GET /event/{EVENT_ID}/tickets: tickets\[0\].id is"):
                await client.tickets(EVENT_ID)

    asyncio.run(main())
