"""Faults of Billetweb that only tests meet, beside those that the stand-in itself knows."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from syncd.standin.server import *  # noqa: F403 - a test names all faults from here
from syncd.standin.server import Answer, Fault, error_object, html, php_json, raw

MIB = 1024 * 1024


def redirect(host: str = "localhost", path: str = "/api/elsewhere") -> Fault:
    """Return a fault that sends the client to another name of this same server."""
    return lambda answer: Answer(b"", 302, {"location": f"http://{host}:{answer.port}{path}"})


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
    return replace(answer, delivery="cut")


def reset(answer: Answer) -> Answer:
    """Return no answer: the connection is reset."""
    return replace(answer, delivery="reset")


unauthorized_401 = error_object("unauthorized", "Wrong user or key", 401)
challenge = html('Just a moment...<script src="/cdn-cgi/challenge-platform/h/b/orchestrate"></script>', 403)
html_page = html("<h1>Billetweb</h1>")
empty = raw(b"")
null = raw(b"null")
