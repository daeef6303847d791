"""Answers that are small on the wire and large in memory, or packed in odd ways: over real HTTP."""

import asyncio
import functools
import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from support import faults
from support.clients import KEY, NOW, client_of
from support.variants import mostly_slow

from syncd.billetweb import body as answers
from syncd.billetweb import client as billetweb
from syncd.billetweb import slices
from syncd.billetweb.client import Billetweb
from syncd.errors import (
    BilletwebError,
    ChallengeError,
    DecodeError,
    RateLimited,
    TooLargeError,
    TransportError,
)
from syncd.standin.server import StandIn

MIB = 1024 * 1024
pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def standin() -> StandIn:
    return StandIn(now=NOW, key=KEY)


def fail_with(standin: StandIn, body: bytes, coding: str, status: int = 200) -> None:
    headers = {"content-encoding": coding} if coding else {}
    standin.fail("*", faults.raw(body, status, headers), times=None)


@functools.cache
def bomb(mib: int, filling: bytes = b" ") -> bytes:
    """Return an array of so many MiB in one thousandth of that, and that once more packed."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    pieces = [packer.compress(b"[")]
    pieces += [packer.compress(filling * (MIB // len(filling))) for _ in range(mib)]
    return gzip.compress(b"".join([*pieces, packer.flush()]))


class Cost:
    """What a read took: memory at its peak, and the most seconds that the loop worked between two looks."""

    peak_bytes = 0
    step_s = 0.0


def failure_of(base_url: str, cost: Cost | None = None) -> BilletwebError:
    """Ask for the events once, and return the error that this ends in."""
    cost = cost or Cost()

    async def watch() -> None:
        while True:
            before = time.thread_time()
            try:
                await asyncio.sleep(0.001)  # a loop that spins would fight with the thread that unpacks
            finally:
                cost.step_s = max(cost.step_s, time.thread_time() - before)

    async def main(client: Billetweb) -> BilletwebError:
        watching = asyncio.create_task(watch())
        with pytest.raises(BilletwebError) as caught:
            await client.events()
        watching.cancel()
        return caught.value

    async def with_client() -> BilletwebError:
        async with client_of(base_url, timeout_s=60) as client:
            return await main(client)

    tracemalloc.start()
    try:
        return asyncio.run(with_client())
    finally:
        cost.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@pytest.mark.slow("unpacks much")
@pytest.mark.parametrize(
    "coding",
    [
        "gzip, gzip",
        "gzip,gzip,gzip",
        "GZIP , x-gzip",
        "gzip, br",
        "deflate",
        "br",
        "zstd",
        "identity, br",
        "x",
    ],
)
def test_what_is_packed_twice_is_unpacked(standin: StandIn, base_url: str, coding: str) -> None:
    """One coding is read, gzip; an answer in any other, or in two, is refused before a byte is unpacked."""
    fail_with(standin, bomb(256), coding)
    cost = Cost()
    error = failure_of(base_url, cost)
    assert type(error) is DecodeError
    assert error.status == 200
    assert "packed in a way that was not asked for" in str(error)
    assert cost.peak_bytes < 8 * MIB
    assert standin.requests[0].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("status", "kind"), [(429, RateLimited), (503, TransportError), (403, ChallengeError)]
)
def test_refusal_in_a_strange_coding_is_no_refusal(
    standin: StandIn, base_url: str, status: int, kind: type[BilletwebError]
) -> None:
    """A refusal that cannot be read is taken by its status."""
    fail_with(standin, b"whatever", "br", status)
    assert type(failure_of(base_url)) is kind


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, lambda body: gzip.compress(body) + b"rest" * 100_000, lambda body: body],
    ids=["gzip", "gzip and more", "as it is"],
)
@pytest.mark.parametrize("size", [0, 1, 3 * answers.PIECE_BYTES])
def test_packed_answer_loses_its_end(
    standin: StandIn, base_url: str, pack: Callable[[bytes], bytes], size: int
) -> None:
    """An answer arrives whole, packed or not; what comes behind a packed one is none of it."""
    rows = faults.php_json([{"id": "7", "name": "x" * size}, {"id": "8", "name": "end"}])
    packed = pack(rows)
    fail_with(standin, packed, "" if packed == rows else "Gzip")

    async def main() -> list[str | None]:
        async with client_of(base_url) as client:
            return [event.name for event in (await client.events()).records.values()]

    assert asyncio.run(main()) == ["x" * size or None, "end"]


@pytest.mark.parametrize("end", [1, 9, 200])
def test_half_of_a_packed_answer_is_a_whole_one(standin: StandIn, base_url: str, end: int) -> None:
    """Where the packed bytes break off, also behind the last row, the answer is refused."""
    fail_with(standin, gzip.compress(b"[" + b" " * 300_000 + b"]")[:-end], "gzip")
    assert type(failure_of(base_url)) is DecodeError


def test_endless_stream_of_nothing_is_read(
    standin: StandIn, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that unpack to nothing count as well."""
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", MIB)
    fail_with(standin, gzip.compress(b"[]") + b"\0" * 2 * MIB, "gzip")
    assert type(failure_of(base_url)) is TooLargeError


HARMFUL = {
    "blanks": b" ",
    "empty rows": b"{},",
    "empty lists": b"[],",
    "numbers": b"1,",
    "nulls": b"null,",
    "rows without an id": b'{"name":"x"},',
    "rows with one id": b'{"id":"7"},',
    "one endless row": b'{"a":[[],[]],"b":',
    "one endless text": b"x",
}


@pytest.mark.parametrize("case", mostly_slow(HARMFUL, "each unpacks 60 MiB, traced"))
def test_small_answer_fills_the_memory_and_the_loop(
    standin: StandIn, base_url: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What 60 KB become is unpacked and read in bounded steps, beside the loop, and is given up early."""
    monkeypatch.setattr(slices, "ROW_MAX_BYTES", MIB)  # to trace all that is allocated takes its time
    monkeypatch.setattr(billetweb, "LIST_MAX_ROWS", 10_000)
    filling = HARMFUL[case]
    body = zlib.decompress(bomb(60, filling), wbits=zlib.MAX_WBITS | 16)
    if case == "one endless text":
        body = gzip.compress(b'["' + b"x" * 60 * MIB)
    fail_with(standin, body, "gzip")
    assert len(body) < MIB
    cost = Cost()
    error = failure_of(base_url, cost)
    assert isinstance(error, DecodeError)
    assert cost.peak_bytes < 64 * MIB
    assert cost.step_s < 1
