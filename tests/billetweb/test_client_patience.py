"""When the client asks again, when it holds back, and for how long; over real HTTP, by virtual time."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import freezegun
import pytest
import stamina
import stamina.instrumentation
from loguru import logger
from support import faults
from support.clients import KEY, NOW, Noted, VirtualTime, client_of, limiter_on, nothing, received
from support.limited import Limited

from syncd.billetweb.breaker import CHALLENGE_WAIT_MAX_S, CHALLENGE_WAIT_S, REFUSED_S, RETRY_WITHIN_S
from syncd.billetweb.client import Billetweb, tell_retry
from syncd.billetweb.limiter import WINDOW_S, RateLimiter
from syncd.errors import AuthError, BilletwebError, ChallengeError, RateLimited, TransportError
from syncd.standin.server import Fault, StandIn, serving

RetryHook = stamina.instrumentation.RetryHook
pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def standin() -> StandIn:
    return StandIn(now=NOW, key=KEY)


@contextmanager
def telling(hook: RetryHook) -> Iterator[None]:
    with ExitStack() as stack:
        stamina.instrumentation.set_on_retry_hooks([hook])
        stack.callback(stamina.instrumentation.set_on_retry_hooks, None)
        yield


def hanging(fault: Fault) -> Fault:
    """Give a fault that answers only when the stand-in heals."""
    return lambda answer: faults.hang(fault(answer))


async def fails(client: Billetweb, kind: type[BilletwebError]) -> BilletwebError:
    with pytest.raises(kind) as caught:
        await client.events()
    assert type(caught.value) is kind
    return caught.value


# -- asked again


def test_hiccup_would_fail_a_run(standin: StandIn, base_url: str) -> None:
    """What passes by itself is over by the third attempt, and the answer is the right one."""
    for fault in (faults.status(503), faults.reset):
        standin.fail("/events", fault)

    async def main() -> None:
        async with client_of(base_url) as client:
            assert (await client.events()).records.keys() == standin.events.keys()

    asyncio.run(main())
    assert len(standin.requests) == 3


@pytest.mark.parametrize(("header", "least_s", "most_s"), [({"retry-after": "7"}, 7, 7), ({}, 0.5, 1.5)])
def test_server_that_asks_for_rest_would_be_hammered(
    standin: StandIn, base_url: str, header: dict[str, str], least_s: float, most_s: float
) -> None:
    """A 503 is asked again after the seconds that it names, or after about one."""
    waits: list[float] = []
    virtual = VirtualTime()
    limiter = limiter_on(virtual)
    standin.fail("/events", faults.raw(b"", 503, header), times=None)

    async def main() -> None:
        async with client_of(base_url, virtual=virtual, limiter=limiter) as client:
            read = asyncio.create_task(client.events())
            deadline = time.monotonic() + 5
            while not waits:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
            read.cancel()
            await asyncio.gather(read, return_exceptions=True)

    def note(details: stamina.instrumentation.RetryDetails) -> None:
        waits.append(max(details.wait_for, limiter.paused_s))

    with telling(note), stamina.set_testing(False):
        asyncio.run(main())
    assert least_s <= waits[0] <= most_s


def test_rest_longer_than_a_run_would_hold_the_run(standin: StandIn, base_url: str) -> None:
    """A 503 that asks for more than the time of the retries fails its request at once, and is heeded."""
    header = {"retry-after": str(RETRY_WITHIN_S + 1)[:-2]}
    standin.fail("/events", faults.raw(b"", 503, header))
    virtual = VirtualTime()

    async def main() -> None:
        async with client_of(base_url, virtual=virtual) as client:
            assert (await fails(client, TransportError)).wait_s == RETRY_WITHIN_S + 1
            error = await fails(client, RateLimited)
            assert str(error).startswith("GET /events: not sent: ")
            assert error.status == 503
            assert len(standin.requests) == 1
            virtual.now_s += RETRY_WITHIN_S + 1
            await client.events()

    asyncio.run(main())
    assert len(standin.requests) == 2


def test_wait_for_the_ceiling_would_use_up_the_retries(standin: StandIn, base_url: str) -> None:
    """However long a request had to wait for its turn, a hiccup after that is asked again."""
    standin.fail("/events", faults.rate_limiting())

    with freezegun.freeze_time(real_asyncio=True) as frozen, stamina.set_testing(False):

        async def sleep(seconds: float) -> None:
            frozen.tick(seconds)

        async def main() -> None:
            limiter = RateLimiter(100, note=nothing, clock=time.monotonic, sleep=sleep)
            limiter.pause(RETRY_WITHIN_S)
            async with client_of(base_url, limiter=limiter) as client:
                await client.events()

        asyncio.run(main())
    assert len(standin.requests) == 2


def test_retries_would_go_on_for_ever(standin: StandIn, base_url: str) -> None:
    """When the time for retries is over, the attempt under way was the last."""
    standin.fail("/events", faults.rate_limiting(), times=None)

    with freezegun.freeze_time(real_asyncio=True) as frozen, stamina.set_testing(False):

        async def sleep(seconds: float) -> None:
            frozen.tick(RETRY_WITHIN_S)

        async def main() -> None:
            limiter = RateLimiter(100, note=nothing, clock=time.monotonic, sleep=sleep)
            async with client_of(base_url, limiter=limiter) as client:
                await fails(client, RateLimited)

        asyncio.run(main())
    assert len(standin.requests) == 2


def test_retry_would_go_unsaid_or_unnamed(standin: StandIn, base_url: str) -> None:
    """Each retry is a line with the request, the reason and the wait, the limiter's pause included."""
    standin.fail("/events", faults.rate_limiting("42"))
    standin.fail("/events", faults.status(503))
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")

    async def main() -> None:
        async with client_of(base_url) as client:
            await client.events()

    try:
        with telling(tell_retry):
            asyncio.run(main())
    finally:
        logger.remove(sink)
    limited, down = (line for line in lines if "asking again" in line)
    assert limited.startswith("GET /events: Billetweb refused for too many requests")
    assert "[rate_limited]; asking again in 42.0 s (attempt 2 of 3)" in limited
    assert down.startswith("GET /events: Billetweb cannot answer now (HTTP 503) [transport]; asking again in")
    assert "(attempt 3 of 3)" in down


# -- too many calls


def test_rate_limit_would_be_met_again_at_once() -> None:
    """A refusal for too many calls costs one request: the next one comes with the next window."""
    virtual = VirtualTime()
    standin = Limited(now=NOW, key=KEY, calls_per_minute=4, clock=virtual.running_s)

    async def main(url: str) -> None:
        async with client_of(url, virtual=virtual, concurrency=1) as client:
            await asyncio.gather(*(client.tickets(event_id) for event_id in standin.events))

    with serving(standin) as url:
        asyncio.run(main(url))
    assert standin.asked_at == [1000.0] * 5 + [1060.0] * 2


@pytest.mark.parametrize(
    ("fault", "kind", "rest_s"),
    [
        (faults.rate_limiting(), RateLimited, 60),
        (faults.raw(b"", 503, {"retry-after": "120"}), TransportError, 120),
    ],
    ids=["rate limit", "maintenance"],
)
def test_other_requests_would_go_on_after_a_wish_for_rest(
    standin: StandIn, base_url: str, fault: Fault, kind: type[BilletwebError], rest_s: float
) -> None:
    """A rest is for every request, not only for the one that was refused."""
    virtual = VirtualTime()
    standin.fail("/events", fault)

    async def main() -> None:
        async with client_of(base_url, virtual=virtual) as client:
            with stamina.set_testing(True, attempts=1):
                await fails(client, kind)
                assert virtual.now_s == 1000
                await client.tickets("900001")
            assert virtual.now_s == 1000 + rest_s

    asyncio.run(main())


@pytest.mark.parametrize(("retry_after", "rest_s"), [(None, 60), ("7", 7), ("0", 1), ("soon", 60)])
def test_wish_for_rest_would_be_ignored(
    standin: StandIn, base_url: str, retry_after: str | None, rest_s: float
) -> None:
    """The rest after too many calls is the one asked for, and a minute where none is."""
    virtual = VirtualTime()
    standin.fail("/events", faults.rate_limiting(retry_after))

    async def main() -> None:
        async with client_of(base_url, virtual=virtual) as client:
            await client.events()

    asyncio.run(main())
    assert virtual.now_s == 1000 + rest_s


def queue_of_one(virtual: VirtualTime) -> tuple[asyncio.Event, RateLimiter]:
    """Give a limiter of one request a minute; in it no time passes before the event that comes with it."""
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await go_on.wait()
        await virtual.sleep(seconds)

    return go_on, RateLimiter(1, note=nothing, clock=virtual.running_s, sleep=sleep)


def test_request_in_the_queue_would_sit_a_long_rest_out(standin: StandIn, base_url: str) -> None:
    """One that waits for the ceiling when Billetweb asks for more than a run waits is given up after that."""
    virtual = VirtualTime()
    standin.fail("/events", faults.rate_limiting("1800"))

    async def main() -> None:
        first_has_failed, limiter = queue_of_one(virtual)
        async with client_of(base_url, virtual=virtual, limiter=limiter) as client:
            first, *others = (asyncio.create_task(client.events()) for _ in range(3))
            with pytest.raises(RateLimited):
                await first
            first_has_failed.set()
            for other in others:
                with pytest.raises(RateLimited, match="not sent"):
                    await other

    asyncio.run(main())
    assert virtual.now_s == 1000 + WINDOW_S
    assert len(standin.requests) == 1


# -- credentials refused


def test_refused_credentials_would_lock_the_account(standin: StandIn, base_url: str) -> None:
    """After a refusal nothing is sent, whatever is asked, until `reset`; then the mended key works."""
    virtual = VirtualTime()

    async def main() -> None:
        limiter = limiter_on(virtual, per_minute=1)
        async with client_of(base_url, key="not-yet-known", limiter=limiter) as client:
            assert not client.breaker.refused
            assert "not sent" not in str(await fails(client, AuthError))
            assert client.breaker.refused
            for _ in range(3):
                assert "GET /events: not sent: " in str(await fails(client, AuthError))
            with pytest.raises(AuthError, match=r"^GET /event/900001/avail: not sent"):
                await client.gauges("900001")
            assert len(standin.requests) == client.requests == 1
            assert virtual.now_s == 1000  # nor did any of them wait for its turn
            client.breaker.reset()
            await fails(client, AuthError)
            assert len(standin.requests) == 2
            standin.key = "not-yet-known"
            client.breaker.reset()
            assert not client.breaker.refused
            await client.events()
            assert len(standin.requests) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "kind"), [(faults.unauthorized, AuthError), (faults.challenge, ChallengeError)]
)
def test_request_in_the_queue_would_follow_a_refused_one(
    standin: StandIn, base_url: str, fault: Fault, kind: type[BilletwebError]
) -> None:
    """A request that was waiting for its turn when another was refused is not sent any more."""
    standin.fail("*", fault, times=None)
    virtual = VirtualTime()

    async def main() -> None:
        first_has_failed, limiter = queue_of_one(virtual)
        async with client_of(base_url, virtual=virtual, limiter=limiter) as client:
            first, second = (asyncio.create_task(client.events()) for _ in range(2))
            with pytest.raises(kind):
                await first
            first_has_failed.set()
            with pytest.raises(kind, match="not sent"):
                await second

    asyncio.run(main())
    assert len(standin.requests) == 1


# -- the challenge page


def test_challenge_page_would_be_provoked_again_within_seconds(standin: StandIn, base_url: str) -> None:
    """After a challenge nothing is sent for minutes, doubled each time up to an hour; success starts anew."""
    virtual = VirtualTime()
    waits_s = [300, 600, 1200, 2400, 3600, 3600]
    assert (waits_s[0], waits_s[-1]) == (CHALLENGE_WAIT_S, CHALLENGE_WAIT_MAX_S)

    async def main() -> None:
        async with client_of(base_url, virtual=virtual) as client:
            for number, wait_s in enumerate(waits_s, 1):
                standin.fail("/events", faults.challenge)
                assert "not sent" not in str(await fails(client, ChallengeError))
                assert len(standin.requests) == number
                virtual.now_s += wait_s - 1
                error = await fails(client, ChallengeError)
                assert "not sent" in str(error)
                assert error.status == 403
                assert len(standin.requests) == number
                virtual.now_s += 1
            await client.events()
            standin.fail("/events", faults.challenge)
            await fails(client, ChallengeError)
            virtual.now_s += 300
            await client.events()

    asyncio.run(main())


def test_one_challenge_would_count_for_each_request_under_way(standin: StandIn, base_url: str) -> None:
    """Four requests that meet the same challenge together wait five minutes, not forty."""
    standin.fail("*", hanging(faults.challenge), times=4)
    virtual = VirtualTime()

    async def main() -> None:
        async with client_of(base_url, virtual=virtual) as client:
            reads = [asyncio.create_task(client.events()) for _ in range(4)]
            await received(standin, 4)
            standin.heal()
            errors = await asyncio.gather(*reads, return_exceptions=True)
            assert [type(error) for error in errors] == [ChallengeError] * 4
            virtual.now_s += 300
            standin.fail("/events", faults.challenge)
            await fails(client, ChallengeError)  # asked again, and now it is the second challenge
            virtual.now_s += 599
            assert "not sent" in str(await fails(client, ChallengeError))
            virtual.now_s += 1
            await client.events()

    asyncio.run(main())


def test_late_answer_would_end_a_rest(standin: StandIn, base_url: str) -> None:
    """What was asked before a challenge, and is answered after it, says nothing of what may be asked now."""
    standin.fail("/event/900001/tickets", faults.hang)
    standin.fail("/events", faults.challenge)
    noted = Noted()

    async def main() -> None:
        async with client_of(base_url, noted=noted) as client:
            early = asyncio.create_task(client.tickets("900001"))
            await received(standin, 1)
            await fails(client, ChallengeError)
            standin.heal()
            await early
            assert "not sent" in str(await fails(client, ChallengeError))

    asyncio.run(main())
    assert [quiet and quiet.kind for quiet in noted.quiet] == ["challenge"]


def test_short_rest_would_take_the_place_of_a_longer_one(standin: StandIn, base_url: str) -> None:
    """A challenge to an earlier request asks for less than what is noted already, which stays."""
    standin.fail("/event/900001/tickets", hanging(faults.challenge))
    standin.fail("/events", faults.rate_limiting("3000"))
    noted = Noted()

    async def main() -> None:
        async with client_of(base_url, noted=noted) as client:
            early = asyncio.create_task(client.tickets("900001"))
            await received(standin, 1)
            await fails(client, RateLimited)
            standin.heal()
            with pytest.raises(ChallengeError):
                await early

    asyncio.run(main())
    assert [quiet and quiet.kind for quiet in noted.quiet] == ["rate_limited"]


# -- over the end of the process

RESTS: dict[str, tuple[Fault, type[BilletwebError], int, float]] = {
    # case: what Billetweb does, the error, its status, how long nothing is sent then
    "too many calls": (faults.rate_limiting("3600"), RateLimited, 429, 3600),
    "maintenance": (faults.raw(b"", 503, {"retry-after": "3600"}), TransportError, 503, 3600),
    "challenge": (faults.challenge, ChallengeError, 403, CHALLENGE_WAIT_S),
    "refused key": (faults.unauthorized_401, AuthError, 401, REFUSED_S),
}


@pytest.mark.parametrize("case", RESTS)
def test_next_process_would_not_keep_quiet(standin: StandIn, base_url: str, case: str) -> None:
    """A rest is told once as it begins and once when it is over; a client that is given it sends nothing."""
    fault, kind, status, rest_s = RESTS[case]
    standin.fail("/events", fault)
    virtual, noted = VirtualTime(), Noted()

    async def main() -> None:
        async with client_of(base_url, virtual=virtual, noted=noted) as client:
            assert "not sent" not in str(await fails(client, kind))
        (quiet,) = noted.quiet
        assert quiet
        assert ((quiet.until - quiet.since).total_seconds(), quiet.status) == (rest_s, status)
        for waited_s in (0.0, rest_s - RETRY_WITHIN_S - 1):
            virtual.now_s += waited_s
            async with client_of(base_url, virtual=virtual, quiet=quiet, noted=noted) as client:
                with pytest.raises(BilletwebError, match=r"^GET /events: not sent: ") as caught:
                    await client.events()
                assert caught.value.status == status
        assert len(standin.requests) == 1
        virtual.now_s += RETRY_WITHIN_S + 1
        async with client_of(base_url, virtual=virtual, quiet=quiet, noted=noted) as client:
            for _ in range(2):
                await client.events()
        assert noted.quiet == [quiet, None]

    asyncio.run(main())


@pytest.mark.parametrize("case", RESTS)
@pytest.mark.parametrize("set_back_s", [86_400.0, 600.0, -600.0, -86_400.0])
def test_clock_that_is_set_would_prolong_or_end_a_rest(
    standin: StandIn, base_url: str, case: str, set_back_s: float
) -> None:
    """Whatever is done to the wall clock, a rest lasts as long as it was meant to, within the process."""
    fault, kind, _, rest_s = RESTS[case]
    standin.fail("/events", fault)
    virtual = VirtualTime()

    async def main() -> None:
        async with client_of(base_url, virtual=virtual) as client:
            await fails(client, kind)
            virtual.set_back_s = set_back_s
            virtual.now_s += rest_s - RETRY_WITHIN_S - 1
            with pytest.raises(BilletwebError, match="not sent"):
                await client.events()
            virtual.now_s += RETRY_WITHIN_S + 1
            await client.events()

    asyncio.run(main())
    assert len(standin.requests) == 2


def test_challenge_after_a_restart_would_count_as_the_first(standin: StandIn, base_url: str) -> None:
    """A client that is given a challenge's rest, over or not, waits twice as long after the next one."""
    standin.fail("/events", faults.challenge, times=2)
    virtual, noted = VirtualTime(), Noted()

    async def main() -> None:
        for wait_s in (CHALLENGE_WAIT_S, 2 * CHALLENGE_WAIT_S):
            quiet = noted.quiet[-1] if noted.quiet else None
            async with client_of(base_url, virtual=virtual, quiet=quiet, noted=noted) as client:
                assert "not sent" not in str(await fails(client, ChallengeError))
            latest = noted.quiet[-1]
            assert latest
            assert latest.lasts_s(virtual.now()) == wait_s
            virtual.now_s += wait_s

    asyncio.run(main())


def test_refusal_of_one_key_would_be_that_of_another(standin: StandIn, base_url: str) -> None:
    """A refusal is known by the digest of user and key, which does not tell them; another key is tried."""
    standin.fail("/events", faults.unauthorized, times=2)
    virtual, noted = VirtualTime(), Noted()

    async def main() -> None:
        for _ in range(2):
            async with client_of(base_url, virtual=virtual, noted=noted) as client:
                await fails(client, AuthError)
        one, other = noted.quiet
        assert one
        assert other
        assert one.key != other.key  # each has a salt of its own
        assert not any(secret in f"{one} {other}" for secret in (KEY, "12345:"))
        for quiet in (one, other):
            async with client_of(base_url, virtual=virtual, quiet=quiet) as client:
                assert client.breaker.refused
        standin.key = "another-key"
        async with client_of(base_url, virtual=virtual, key="another-key", quiet=one, noted=noted) as client:
            assert not client.breaker.refused
            await client.events()
        assert noted.quiet == [one, other, None]

    asyncio.run(main())


# -- a stop


def test_stop_would_wait_for_an_answer(standin: StandIn, base_url: str) -> None:
    """A cancelled request ends at once, and its place is free for the next one."""
    standin.fail("/events", faults.hang)

    async def main() -> None:
        async with client_of(base_url, concurrency=1, timeout_s=3600) as client:
            read = asyncio.create_task(client.events())
            await received(standin, 1)
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
            await client.events()

    asyncio.run(main())
