"""The body of an answer: decompressed in steps while it arrives, stored, and read in slices.

However well it is compressed, and whatever it becomes, no step takes long, and memory is bounded. It is
decompressed here because httpx decompresses a piece in one step, as many times as the answer says.
"""

import os
import zlib
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Self, TypeVar

from syncd.billetweb import slices
from syncd.errors import BilletwebError, DecodeError, TooLargeError, TransportError
from syncd.threads import in_thread

T = TypeVar("T")
CODING = "gzip"
"""The only compression that an answer may have: every server has it."""
HTTP_OK, SUCCESS = 200, 2
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Decompressed: fifty thousand places sold, with all that is asked of their holders."""
IN_MEMORY_BYTES = 1024 * 1024
"""A larger answer goes to a file; a refusal is never longer."""
PIECE_BYTES = 256 * 1024
"""How much is read, or decompressed, in one step: a few milliseconds."""
LIST_MAX_ROWS = 50_000
"""Events, tariffs or sessions of one answer, all held at once: twenty events a day for seven years. They take
tens of MiB and some tenths of a second."""
PEOPLE_MAX_ROWS = 200_000
"""Attendees of one answer, of which only the ids are held: MAX_BODY_BYTES has room for a third of this."""


class Spooled:
    """An answer that is an array, or begins as one, stored to be read in slices; close it after use.

    The methods block, on disk and on parsing: call them in a worker thread.
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
        """Discard the answer."""
        self._file.close()

    @property
    def size(self) -> int:
        """The size of the answer in bytes."""
        return self._file.seek(0, os.SEEK_END)

    def decoded(self, decode: Callable[..., T]) -> Iterator[T]:
        """Yield the result of `decode` for each slice, a small array; it also gets the row count `before`.

        Raises DecodeError, which names the request, if the answer is not a whole array, or if `decode` does:
        then do not trust the earlier slices either. TooLargeError is a DecodeError.
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
    """A body without compression."""

    def feed(self, packed: bytes | bytearray, *, last: bool = False) -> Iterator[bytes | bytearray]:
        """Yield the bytes."""
        del last
        yield packed


class _Gzip:
    """A body that is compressed once."""

    def __init__(self, status: int) -> None:
        self._inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._has_begun = False
        self._status = status

    def feed(self, packed: bytes | bytearray, *, last: bool = False) -> Iterator[bytes | bytearray]:
        """Yield the decompressed bytes, in steps. What follows the end is ignored, as browsers do."""
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


async def spool(chunks: AsyncIterable[bytes], file: IO[bytes], *, coding: str, status: int) -> None:
    """Write a body to the file, decompressed, in steps and from a worker thread.

    `coding` is the compression by the answer's header. Raises DecodeError if it is not the requested one, or
    the data are broken, TooLargeError if the body is or becomes too large, and TransportError if there is no
    room for it.
    """
    unpacker = _unpacker(coding, status)
    if unpacker is None:
        if status // 100 != SUCCESS:
            return  # it says enough
        # Whole: of a key that was cut, nobody would know the rest again and hide it.
        raise DecodeError(f"the answer is packed in a way that was not asked for: {coding!r}", status=status)
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
    """Return the decompressor of a body that is plain or compressed once. None for any other coding."""
    codings = [each.strip() for each in coding.lower().split(",")]
    match [each for each in codings if each not in ("", "identity")]:
        case []:
            return _Plain()
        case ["gzip" | "x-gzip"]:
            return _Gzip(status)
    return None


def _write(file: IO[bytes], pieces: Iterator[bytes | bytearray], status: int) -> None:
    try:
        for piece in pieces:
            size = file.tell() + len(piece)
            if size > MAX_BODY_BYTES:
                raise _too_large(status)
            file.write(piece)
        file.flush()  # or what is still in memory would find no room later, where nobody expects it
    except OSError as error:
        with suppress(OSError):  # it tries again to write that
            file.close()
        reason = f"no room for the answer in the temporary folder: {error.strerror}"
        raise TransportError(reason) from error


def _too_large(status: int) -> TooLargeError:
    return TooLargeError(f"the answer is larger than {MAX_BODY_BYTES // 1024**2} MiB", status=status)


@contextmanager
def named(path: str, status: int | None = None) -> Iterator[None]:
    """Add to an error raised within the request that it is about, and the answer's status if it has none."""
    try:
        yield
    except BilletwebError as error:
        error.args = (f"GET {path}: {error}",)
        error.status = error.status or status
        raise
