"""The body of an answer: unpacked in steps while it arrives, laid down, and read in slices.

However little of it travels, and whatever it becomes, no step takes long, and what is held is bounded. It is
unpacked here and not by httpx, which unpacks a piece in one step, as often as the answer says it is packed.
"""

import os
import zlib
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Self, TypeVar

from syncd.billetweb import slices
from syncd.errors import BilletwebError, DecodeError, TooLargeError, TransportError
from syncd.threads import in_thread

T = TypeVar("T")
CODING = "gzip"
"""The one way in which an answer may be packed: what every server has."""
CODING_MAX_CHARS = 40
HTTP_OK, SUCCESS = 200, 2
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Unpacked: fifty thousand places sold, with all that is asked of their holders."""
IN_MEMORY_BYTES = 1024 * 1024
"""An answer goes to a file from here on; a refusal has no more than this to say."""
PIECE_BYTES = 256 * 1024
"""So much is read, or unpacked, in one step: a few milliseconds."""
LIST_MAX_ROWS = 50_000
"""Events, tariffs or sessions of one answer, all held at once: twenty events a day for seven years. What they
take is then tens of MiB and some tenths of a second."""
PEOPLE_MAX_ROWS = 200_000
"""Attendees of one answer, of which the ids alone are held: MAX_BODY_BYTES has room for a third as many."""


class Spooled:
    """An answer that is an array, or begins as one, laid down to be read in slices; close it after use.

    The methods block, on a disk and on parsing: they are for a worker thread.
    """

    def __init__(self, file: IO[bytes], path: str, max_rows: int = PEOPLE_MAX_ROWS) -> None:
        self._file = file
        self._path = path
        self._max_rows = max_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the answer."""
        self._file.close()

    @property
    def size(self) -> int:
        """How many bytes the answer has."""
        return self._file.seek(0, os.SEEK_END)

    def decoded(self, decode: Callable[..., T]) -> Iterator[T]:
        """Give what `decode` makes of each slice, a small array of the rows, told how many came `before`.

        Raises DecodeError, which names the request, where the answer turns out to be no whole array, or
        where `decode` does: what came before is then not to be believed either. TooLargeError is one.
        """
        self._file.seek(0)
        chunks = iter(partial(self._file.read, PIECE_BYTES), b"")
        parts = slices.slices(chunks, most=self._max_rows)
        while True:
            with named(self._path, HTTP_OK):  # or `answers.classify` would have refused it
                if (found := next(parts, None)) is None:
                    return
                before, piece = found
                made = decode(piece, before=before)
            yield made


class _Plain:
    """A body that is as it is."""

    def feed(self, packed: bytes | bytearray, *, last: bool = False) -> Iterator[bytes | bytearray]:
        """Give the bytes."""
        del last
        yield packed


class _Gzip:
    """A body that is packed once."""

    def __init__(self, status: int) -> None:
        self._inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._has_begun = False
        self._status = status

    def feed(self, packed: bytes | bytearray, *, last: bool = False) -> Iterator[bytes | bytearray]:
        """Give what becomes of the bytes, in steps. What comes after the end is left out, as browsers do."""
        self._has_begun = self._has_begun or bool(packed)
        is_full = bool(packed)
        while is_full and not self._inflater.eof:
            try:
                piece = self._inflater.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise self._broken() from error
            packed = self._inflater.unconsumed_tail
            is_full = bool(packed) or len(piece) == PIECE_BYTES
            yield piece
        if last and self._has_begun and not self._inflater.eof:
            raise self._broken()

    def _broken(self) -> DecodeError:
        return DecodeError("the answer's compression is broken", status=self._status)


async def lay_down(chunks: AsyncIterable[bytes], file: IO[bytes], *, coding: str, status: int) -> None:
    """Write a body to the file, unpacked, in steps and from a worker thread.

    `coding` is what the answer's header says of how it is packed. Raises DecodeError where that is not as it
    was asked for, or broken, TooLargeError where it is or becomes too large, and TransportError where there
    is no room for it.
    """
    unpacker = _unpacker(coding, status)
    if unpacker is None:
        if status // 100 != SUCCESS:
            return  # it says enough
        said = coding[:CODING_MAX_CHARS]
        raise DecodeError(f"the answer is packed in a way that was not asked for: {said!r}", status=status)
    size, piece = 0, bytearray()
    async for chunk in chunks:
        piece += chunk
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _too_large(status)
        if len(piece) >= PIECE_BYTES:
            await in_thread(_write, file, unpacker.feed(piece), status)
            piece = bytearray()
    await in_thread(_write, file, unpacker.feed(piece, last=True), status)
    file.seek(0)


def _unpacker(coding: str, status: int) -> _Plain | _Gzip | None:
    """Return what unpacks a body: it is as it is or packed once. None for any other coding, and for two."""
    codings = [each.strip() for each in coding.lower().split(",")]
    match [each for each in codings if each not in ("", "identity")]:
        case []:
            return _Plain()
        case ["gzip" | "x-gzip"]:
            return _Gzip(status)
    return None


def _write(file: IO[bytes], pieces: Iterator[bytes | bytearray], status: int) -> None:
    for piece in pieces:
        try:
            size = file.tell() + len(piece)
            if size > MAX_BODY_BYTES:
                raise _too_large(status)
            file.write(piece)
        except OSError as error:
            reason = f"no room for the answer in the temporary folder: {error.strerror}"
            raise TransportError(reason) from error


def _too_large(status: int) -> TooLargeError:
    return TooLargeError(f"the answer is larger than {MAX_BODY_BYTES // 1024**2} MiB", status=status)


@contextmanager
def named(path: str, status: int | None = None) -> Iterator[None]:
    """Say of an error within which request it is about, and the answer's status where it has none."""
    try:
        yield
    except BilletwebError as error:
        error.args = (f"GET {path}: {error}",)
        error.status = error.status or status
        raise
