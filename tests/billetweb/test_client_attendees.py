"""The client's read of attendees, over real HTTP: what is asked for, and an answer taken in slices."""

import asyncio
import resource
import signal
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import pytest
from support import faults
from support.clients import KEY, NOW, client_of
from support.sized import Sized

from syncd.billetweb import answers, decode
from syncd.billetweb import body as bodies
from syncd.billetweb.body import Spooled
from syncd.billetweb.client import Billetweb
from syncd.errors import (
    BilletwebError,
    ChallengeError,
    DecodeError,
    RateLimited,
    RestrictedError,
    StatusError,
    TooLargeError,
    TransportError,
)
from syncd.standin.server import Answer, Fault, StandIn
from syncd.threads import in_thread

T = TypeVar("T")
FESTIVAL = "900001"
SINCE = datetime(2027, 5, 1, 12, 0, 0, 900_000, tzinfo=UTC)
decoder = partial(decode.decode_attendees, full=True)
pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def standin() -> StandIn:
    return StandIn(now=NOW, key=KEY)


def read(base_url: str, make: Callable[[Spooled], T], *, timeout_s: float = 5, **asked: object) -> T:
    """Ask for attendees, and return what `make` makes of the answer."""

    async def main() -> T:
        async with client_of(base_url, timeout_s=timeout_s) as client:
            return await with_answer(client)

    async def with_answer(client: Billetweb) -> T:
        with await client.attendees(**{"since": None, **asked}) as answer:  # type: ignore[arg-type]
            return await in_thread(make, answer)

    return asyncio.run(main())


def as_is(piece: bytes, *, before: int) -> bytes:
    del before
    return piece


def ids(answer: Spooled) -> list[str]:
    return [key for decoded in answer.decoded(decoder) for key in decoded.records]


def test_refunds_would_never_be_seen(standin: StandIn, base_url: str) -> None:
    """Refunded places are asked for always, a time where it is given: none of it is cut off by rounding."""
    until = SINCE + timedelta(seconds=1)
    read(base_url, Spooled.close)
    read(base_url, Spooled.close, since=SINCE, until=until)
    read(base_url, Spooled.close, since=SINCE, event_id=FESTIVAL)
    seconds = 1_809_172_800
    assert [(request.path, request.query) for request in standin.requests] == [
        ("/attendees", {"disabled": "1"}),
        ("/attendees", {"disabled": "1", "last_update": f"{seconds}", "to": f"{seconds + 2}"}),
        (f"/event/{FESTIVAL}/attendees", {"disabled": "1", "last_update": f"{seconds}"}),
    ]


def test_attendee_lost_on_the_way(standin: StandIn, base_url: str) -> None:
    """The account's attendees arrive, all of them, each with its event; an event's are given theirs."""
    held = {key: event_id for event_id in standin.events for key in standin.attendees(event_id)}
    standin.refund(FESTIVAL, 3)

    def found(answer: Spooled) -> dict[str, str]:
        return {row.id: row.event_id for part in answer.decoded(decoder) for row in part.records.values()}

    assert read(base_url, found) == held
    of_event = partial(decode.decode_attendees, event_id=FESTIVAL, full=False)
    rows = read(base_url, lambda answer: list(answer.decoded(of_event)), event_id=FESTIVAL)[0].records
    assert rows.keys() == standin.attendees(FESTIVAL).keys()
    assert sum(row.disabled is True for row in rows.values()) == 3
    assert {row.event_id for row in rows.values()} == {FESTIVAL}


def test_answer_is_used_up_by_reading(base_url: str) -> None:
    """An answer may be read again from its start, as bytes and decoded, also after a read broken off."""

    def twice(answer: Spooled) -> tuple[list[str], list[str], int]:
        next(answer.decoded(as_is))
        first = ids(answer)
        rows = sum(len(answers.rows(piece)) for piece in answer.decoded(as_is))
        return first, ids(answer), rows

    first, second, rows = read(base_url, twice)
    assert first == second
    assert len(first) == rows > 300


FAILURES: dict[str, tuple[Fault, type[BilletwebError], int | None, int]] = {
    # case: what Billetweb does, the error, its status, how often the request is sent in all
    "too many calls": (faults.rate_limiting(), RateLimited, 429, 3),
    "challenge page": (faults.challenge, ChallengeError, 403, 1),
    "refused key": (faults.unauthorized, RestrictedError, 200, 1),  # that was good for the list of events
    "restricted key": (faults.restricted, RestrictedError, 200, 1),
    "unknown event": (faults.error_object("not_found", "Unknown event"), StatusError, 200, 1),
    "maintenance": (faults.status(503), TransportError, 503, 3),
    "connection reset": (faults.reset, TransportError, None, 3),
    "connection cut in mid-body": (faults.cut, TransportError, None, 3),
    "page for browsers": (faults.html_page, DecodeError, 200, 1),
    "nothing": (faults.empty, DecodeError, 200, 1),
    "null": (faults.null, DecodeError, 200, 1),
    "oversized answer": (faults.oversized(65), TooLargeError, 200, 1),
    "oversized refusal": (faults.raw(b'{"error": "' + b"x" * 2_000_000), DecodeError, 200, 1),
    "half a list": (faults.truncated, DecodeError, 200, 1),
    "row without id": (faults.with_rows(lambda rows: [*rows, {"event": "1"}]), DecodeError, 200, 1),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_would_be_taken_for_another_or_for_data(standin: StandIn, base_url: str, case: str) -> None:
    """Each way to fail has its type as with other reads, at the latest when the slices are read."""
    fault, kind, status, sent = FAILURES[case]
    standin.fail("/attendees", fault, times=None)
    with pytest.raises(BilletwebError) as caught:
        read(base_url, ids)
    assert (type(caught.value), caught.value.status) == (kind, status)
    assert str(caught.value).startswith("GET /attendees: ")
    assert str(caught.value).count("GET") == 1
    assert len(standin.requests) == sent


def test_one_fault_would_spoil_a_second_answer(standin: StandIn, base_url: str) -> None:
    """What was received before a retry is not found in the answer after it."""
    standin.fail("/attendees", faults.cut)
    once = read(base_url, ids)
    assert len(once) == len(set(once)) == sum(len(standin.attendees(event_id)) for event_id in standin.events)


def test_restricted_key_would_end_the_run(standin: StandIn, base_url: str) -> None:
    """A key for chosen events is refused the account's attendees, and reads those of an event."""
    standin.restricted = True
    with pytest.raises(RestrictedError):
        read(base_url, ids)
    of_event = partial(decode.decode_attendees, event_id=FESTIVAL, full=False)
    assert list(read(base_url, lambda answer: list(answer.decoded(of_event)), event_id=FESTIVAL)[0].records)


@pytest.mark.slow("waits for a slow answer")
def test_large_answer_would_be_given_no_time(standin: StandIn, base_url: str) -> None:
    """These reads have twice the time of others, and then no more."""
    standin.fail("/attendees", faults.drip(2.5))
    assert read(base_url, ids, timeout_s=2.0)
    standin.fail("/attendees", faults.hang, times=None)
    with pytest.raises(TransportError, match=r"no complete answer within 0\.4 s"):
        read(base_url, ids, timeout_s=0.2)
    assert len(standin.requests) == 1 + 3  # attempts


@pytest.mark.slow("unpacks an answer of many MiB")
def test_large_answer_would_be_held_whole(standin: StandIn, base_url: str) -> None:
    """An answer of many megabytes is never in memory as one, neither on its way nor in slices."""
    large = Sized(events=1, attendees=8_000, now=NOW)
    body = faults.php_json([row | {"event": FESTIVAL} for row in large.attendees(FESTIVAL).values()])
    assert len(body) > 9 * 1024 * 1024
    packed = faults.gzipped(Answer(body))  # or the server would hold it whole, in this same process
    standin.fail("/attendees", lambda _: packed)

    def count(answer: Spooled) -> int:
        return sum(piece.count(b'"barcode"') for piece in answer.decoded(as_is))

    tracemalloc.start()
    try:
        assert read(base_url, count) == 8_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * 1024 * 1024


def test_small_answer_would_fill_the_disk(
    standin: StandIn, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that unpacks to more than is allowed is given up on the way."""
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 1024 * 1024)
    packed = faults.oversized(96)(Answer(b"[]"))
    standin.fail("/attendees", lambda _: packed)
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="larger than 1 MiB"):
            read(base_url, ids)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * 1024 * 1024


@pytest.mark.parametrize("lacking", [bodies.IN_MEMORY_BYTES, 100], ids=["half of it", "its last bytes"])
def test_full_disk_would_be_a_crash(standin: StandIn, base_url: str, lacking: int) -> None:
    """Where there is no room for a large answer the read fails as one that may be asked again."""
    body = b"[" + b" " * (bodies.IN_MEMORY_BYTES + lacking - 2) + b"]"
    standin.fail("/attendees", lambda _: Answer(body), times=None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # or the process would end
    resource.setrlimit(resource.RLIMIT_FSIZE, (bodies.IN_MEMORY_BYTES, limits[1]))
    try:
        with pytest.raises(TransportError, match="no room for the answer in the temporary folder: File too"):
            read(base_url, ids)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(standin.requests) == 3
