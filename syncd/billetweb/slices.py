"""Cuts one large JSON array into small ones, while it arrives. Pure.

The beginning of an array that ends after a row becomes an array when it is closed; one that ends inside a row
or a text does not. So a place that looks like the border of two rows is tried, and used if the parser agrees;
only if that fails are the brackets counted.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from syncd.billetweb.answers import BLANKS, document
from syncd.errors import DecodeError, TooLargeError, TooManyRows

SLICE_BYTES = 256 * 1024
"""Some hundred rows: enough for a statement each, little to hold in memory."""
ROW_MAX_BYTES = 2 * 1024 * 1024
"""The largest row: a description with a picture in it. It is parsed in one step that nothing interrupts; one
of nothing but empty lists takes thirty times its bytes and up to a second."""
TRIES = 3
"""How many places that look like a border are tried: three in a row inside texts are there on purpose."""

_BORDER = re.compile(rb"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")
_TOKEN = re.compile(  # a quote alone begins a text cut short
    rb'"(?:[^"\\]|\\.)*+"|["{}\[\]]|,(?=[ \t\n\r]*[^ \t\n\r\]])', re.DOTALL
)
_QUOTE, _COMMA = ord('"'), ord(",")
_DEPTH = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}


def slices(chunks: Iterable[bytes], *, most: int, about: int = SLICE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of an array as arrays of at most `about` so many bytes; none for an empty array.

    Each comes with the number of rows before it.

    A larger row makes its slice larger. At most a slice and a chunk are held. A UTF-8 byte order mark is
    tolerated. Raises DecodeError unless all chunks together are one complete, well-formed array: trust no
    slice before the last one has come. Raises TooManyRows for more than `most` rows, and TooLargeError for a
    row over ROW_MAX_BYTES.
    """
    held, wanted, begun, before = bytearray(), about, False, 0
    for chunk in chunks:
        held += chunk
        while len(held) >= wanted:
            begun = begun or _begin(held)
            if begun and (cut := _cut(held, wanted)):
                end, after, rows = cut
                yield _bearable(before, rows, most), b"[" + held[:end] + b"]"
                before += rows
                del held[:after]
                wanted = about
            elif wanted >= ROW_MAX_BYTES:
                limit = f"{ROW_MAX_BYTES // 1024**2} MiB"
                raise TooLargeError(f"a row of Billetweb's answer is larger than {limit}")
            else:
                wanted = min(4 * wanted, ROW_MAX_BYTES)  # each time all of it is counted again
    if not begun and not _begin(held):
        raise DecodeError("Billetweb's answer is empty where a JSON array is due")
    if rows := _rows(last := b"[" + held):
        yield _bearable(before, rows, most), last


def _bearable(before: int, rows: int, most: int) -> int:
    """Return `before`. Raises TooManyRows if the total is too large."""
    if before + rows > most:
        raise TooManyRows(f"Billetweb's answer has more than {most} rows")
    return before


def _begin(held: bytearray) -> bool:
    """Remove the bracket that opens the array; return whether it has come."""
    text = held.removeprefix(codecs.BOM_UTF8).lstrip(BLANKS)
    if codecs.BOM_UTF8.startswith(text):  # nothing yet, or a part of the mark
        return False
    if not text.startswith(b"["):
        raise DecodeError("Billetweb's answer is something else where a JSON array is due")
    held[:] = text[1:]
    return True


def _cut(held: bytearray, wanted: int) -> tuple[int, int, int] | None:
    """Return where the last row within `wanted` bytes ends, where the next begins, and how many rows end."""
    borders = [(border.start() + 1, border.end()) for border in _BORDER.finditer(held, 0, wanted)]
    for end, after in reversed(borders[-TRIES:]):
        with suppress(DecodeError):
            return end, after, _rows(b"[" + held[:end] + b"]")
    if found := _counted(held, wanted):
        return *found, _rows(b"[" + held[: found[0]] + b"]")
    return None


def _counted(held: bytearray, wanted: int) -> tuple[int, int] | None:
    """Return both ends by counting brackets: correct for every beginning of an array, but slow."""
    depth, found = 0, None
    for token in _TOKEN.finditer(held, 0, wanted):
        first = held[token.start()]
        if first == _QUOTE and token.end() == token.start() + 1:
            break
        depth += _DEPTH.get(first, 0)
        if depth < 0:
            break
        if depth == 0 and first == _COMMA:
            found = token.start(), token.end()
    return found


def _rows(text: bytes | bytearray) -> int:
    """Return the number of rows of an array. Raises DecodeError for anything else."""
    return len(document(text, list[msgspec.Raw]))
