"""One large JSON array into small ones, while it arrives. Pure.

The beginning of an array that ends behind a row is an array itself once it is closed; one that ends inside
a row or a text is not. So a place that looks like the border of two rows is tried, and taken where the
parser agrees; only where that fails are the bytes counted through.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from syncd.errors import DecodeError

SLICE_BYTES = 256 * 1024
"""Some hundred rows: enough for a statement each, little to hold in memory."""
TRIES = 3
"""So many places that look like a border are tried: three in a row inside texts are there on purpose."""

_BLANKS = b" \t\n\r"
_BORDER = re.compile(rb"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|["{}\[\]]', re.DOTALL)  # a quote alone begins a text cut short
_QUOTE = ord('"')
_DEPTH = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_ROWS = msgspec.json.Decoder(list[msgspec.Raw])


def slices(chunks: Iterable[bytes], about: int = SLICE_BYTES) -> Iterator[bytes]:
    """Give the rows of an array as arrays of at most `about` so many bytes; none for an empty array.

    A row that is larger makes its slice so. No more than a slice and a chunk are held. A UTF-8 byte order
    mark is tolerated. Raises DecodeError unless all chunks together are one complete, well-formed array:
    no slice is to be trusted before the last.
    """
    held, wanted, begun = bytearray(), about, False
    for chunk in chunks:
        held += chunk
        while len(held) >= wanted:
            begun = begun or _begin(held)
            if begun and (cut := _cut(held, wanted)):
                yield b"[" + held[: cut[0]] + b"]"
                del held[: cut[1]]
                wanted = about
            else:
                wanted *= 2
    if not begun and not _begin(held):
        raise DecodeError("Billetweb's answer is empty where a JSON array is due")
    if _rows(last := b"[" + held):
        yield last


def _begin(held: bytearray) -> bool:
    """Take away the bracket that opens the array; tell whether it has come."""
    text = held.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
    if codecs.BOM_UTF8.startswith(text):  # nothing yet, or a part of the mark
        return False
    if not text.startswith(b"["):
        raise DecodeError("Billetweb's answer is something else where a JSON array is due")
    held[:] = text[1:]
    return True


def _cut(held: bytearray, wanted: int) -> tuple[int, int] | None:
    """Give where the last row that ends within `wanted` bytes ends, and where the next begins."""
    borders = [(border.start() + 1, border.end()) for border in _BORDER.finditer(held, 0, wanted)]
    for end, after in reversed(borders[-TRIES:]):
        with suppress(DecodeError):
            _rows(b"[" + held[:end] + b"]")
            return end, after
    if found := _counted(held, wanted):
        _rows(b"[" + held[: found[0]] + b"]")
    return found


def _counted(held: bytearray, wanted: int) -> tuple[int, int] | None:
    """Give the same, found by counting brackets: right for every beginning of an array, and slow."""
    depth, found = 0, None
    for token in _TOKEN.finditer(held, 0, wanted):
        first = held[token.start()]
        if first == _QUOTE and token.end() == token.start() + 1:
            break
        depth += _DEPTH.get(first, 0)
        if depth < 0:
            break
        if depth == 0 and (border := _BORDER.match(held, token.start(), wanted)):
            found = border.start() + 1, border.end()
    return found


def _rows(text: bytes) -> list[msgspec.Raw]:
    try:
        text.decode()  # the parser does not look into what it hands over raw
        return _ROWS.decode(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    # Raised outside the handler, for the cause may hold a piece of the body.
    raise DecodeError(f"Billetweb's answer is not well-formed JSON: {reason}")
