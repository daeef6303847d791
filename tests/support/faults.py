"""Faults of Billetweb that only tests meet, beside those that the stand-in itself knows."""

import asyncio
import codecs
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from syncd.standin.server import *  # noqa: F403 - a test names all faults from here
from syncd.standin.server import (
    Answer,
    Exchange,
    Fault,
    error_object,
    html,
    php_json,
    raw,
    send_head,
    send_whole,
)

MIB = 1024 * 1024
LOOK_EVERY_S = 0.005


def rate_limiting(retry_after: str | None = None) -> Fault:
    """Return a fault that refuses for too many calls, spread over lines as the real one is."""
    sentence = "You exceed the global rate limiter : 100 hits per minute"
    body = json.dumps({"error": "rate_limiting", "description": sentence}, indent=4).encode()
    return raw(body, 429, {} if retry_after is None else {"retry-after": retry_after})


def redirect(host: str = "localhost", path: str = "/api/elsewhere") -> Fault:
    """Return a fault that sends the client to another name of this same server."""

    async def elsewhere(answer: Answer, by: Exchange) -> None:
        """Send the address, with this server's port."""
        port = by.transport.get_extra_info("sockname")[1]
        await send_whole(replace(answer, headers={"location": f"http://{host}:{port}{path}"}), by)

    return lambda _: Answer(b"", 302, delivery=elsewhere)


def oversized(mib: int = 65) -> Fault:
    """Return a fault that adds so many MiB of blanks to the right body, gzip-encoded: little on the wire."""

    def add_blanks(answer: Answer) -> Answer:
        """Return the answer with its blanks, packed piece by piece."""
        packer = zlib.compressobj(level=1, wbits=zlib.MAX_WBITS | 16)
        packed = [
            packer.compress(answer.body),
            *(packer.compress(b" " * MIB) for _ in range(mib)),
            packer.flush(),
        ]
        return replace(answer, body=b"".join(packed), headers={**answer.headers, "content-encoding": "gzip"})

    return add_blanks


def with_rows(edit: Callable[[list[Any]], list[Any]]) -> Fault:
    """Return a fault that edits the rows of an answer: null, repeated or missing rows, rows without id."""

    def edited(answer: Answer) -> Answer:
        rows = json.loads(answer.body)
        return replace(answer, body=php_json(edit(rows))) if isinstance(rows, list) else answer

    return edited


def bom(answer: Answer) -> Answer:
    """Return the right body behind a UTF-8 byte order mark."""
    return replace(answer, body=codecs.BOM_UTF8 + answer.body)


def gzipped(answer: Answer) -> Answer:
    """Return the right body, compressed: no fault at all."""
    headers = {**answer.headers, "content-encoding": "gzip"}
    return replace(answer, body=gzip.compress(answer.body), headers=headers)


def cut(answer: Answer) -> Answer:
    """Return an answer whose connection ends in mid-body."""
    return replace(answer, delivery=_half)


def reset(answer: Answer) -> Answer:
    """Return no answer: the connection is reset."""
    return replace(answer, delivery=_none)


def hang(answer: Answer) -> Answer:
    """Return nothing before `StandIn.heal`; then the right answer."""
    return replace(answer, delivery=_once_healed)


async def _half(answer: Answer, by: Exchange) -> None:
    await send_head(answer, by)
    half = answer.body[: len(answer.body) // 2]
    await by.send({"type": "http.response.body", "body": half, "more_body": True})
    by.transport.close()
    await by.gone


async def _none(_answer: Answer, by: Exchange) -> None:
    # A linger of zero seconds makes the kernel send RST instead of FIN.
    linger = struct.pack("ii", 1, 0)
    by.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    by.transport.abort()
    await by.gone


async def _once_healed(answer: Answer, by: Exchange) -> None:
    while not (by.healed.is_set() or by.gone.done()):
        await asyncio.wait({by.gone}, timeout=LOOK_EVERY_S)
    await send_whole(answer, by)


unauthorized_401 = error_object("unauthorized", "Wrong user or key", 401)
challenge = html('Just a moment...<script src="/cdn-cgi/challenge-platform/h/b/orchestrate"></script>', 403)
html_page = html("<h1>Billetweb</h1>")
empty = raw(b"")
null = raw(b"null")
