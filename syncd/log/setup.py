"""Sets up the log: every record of the process leaves by one door, redacted, in one of three forms.

The other modules use loguru directly and bind fields, `event` above all: its value is the stable name
for machines (`run.finished`), the message is for people. The standard library's loggers (httpx,
APScheduler, uvicorn, warnings and the rest) are led to the same door, one step quieter: what they call
information is said at every request or tick.

The journal's native protocol is described at systemd.io/JOURNAL_NATIVE_PROTOCOL, its field names in
systemd.journal-fields(7).
"""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import select
import socket
import struct
import sys
import termios
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC
from typing import TextIO
from uuid import UUID, uuid5

import loguru
from loguru import logger

from syncd.log.redact import Redactor
from syncd.log.repeats import Repeats
from syncd.text import LONGEST, count, harmless, takes_colour

JOURNAL_SOCKET = "/run/systemd/journal/socket"

_EVENTS = UUID("bdc30c53-a11d-4ad0-98cb-3432d339d631")  # never to change: the message ids come from it
_SEND_TIMEOUT_S = 1.0  # a journal that does not read must not stop the daemon
_ALIKE_CHARACTERS = 200  # what is alike to here is the same message
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")
_LONGEST_TRACEBACK = 16_000  # characters: a traceback of some two hundred lines, and its two ends say most
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def configure(
    *,
    level: str,
    format: str,  # noqa: A002 - the name of the setting
    redact: Redactor,
    stream: TextIO | None = None,
    journal_path: str = JOURNAL_SOCKET,
) -> None:
    """Replace all logging of this process by one sink of this form; may be called again, as on a reload.

    `level` is a loguru level name, `format` one of auto, journal, text, json. `auto` is the journal when
    systemd connected `stream` (default: stderr) to it, else text. The journal form goes to the socket
    `journal_path`, and to `stream` while that cannot be reached.
    Raises ValueError, with nothing changed, for an unknown level.
    """
    stream = stream or sys.stderr
    threshold = logger.level(level).no
    if format == "auto":
        format = "journal" if _is_journal(stream) and _accepts(journal_path) else "text"  # noqa: A001 - as above
    sink: _Sink
    if format == "journal":
        sink = _JournalSink(redact, stream, journal_path)
    elif format == "json":
        sink = _JsonSink(redact, stream)
    else:
        sink = _TextSink(redact, stream)
    logger.remove()
    logger.add(
        sink,
        level=level,
        format=lambda _: "{exception}",  # the rest is in the record
        colorize=False,
        backtrace=False,
        diagnose=False,
        catch=False,  # loguru's own report of a failing sink prints the record unredacted
    )
    logging.basicConfig(handlers=[_Bridge()], level=_stdlib_level(threshold), force=True)
    logging.captureWarnings(capture=True)


def message_id(event: str) -> str:
    """Return the journal's MESSAGE_ID for an event name: the same 32 hexadecimal digits for ever."""
    return uuid5(_EVENTS, event).hex


class _Bridge(logging.Handler):
    """Hands the records of the standard library's logging to loguru, with the place they came from.

    Warnings and errors that differ in numbers alone are one: of these a library may write thousands a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a library's record on, unless it repeats what was told of late."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit: logging would print them
            text = str(record.msg)
        if record.levelno >= logging.WARNING:
            untold = self._told.untold((record.name, _NUMBER.sub("0", text[:_ALIKE_CHARACTERS])))
            if untold is None:
                return
            if untold:
                text = f"{text} (the same {count(untold, 'time')} more since it was last told)"

        def place(fields: "loguru.Record") -> None:
            fields["file"].path = record.pathname
            fields["line"] = record.lineno
            fields["function"] = record.funcName or ""

        # loguru refuses a record that arises while it writes another, as from a finaliser.
        with contextlib.suppress(RuntimeError):
            logger.patch(place).opt(exception=record.exc_info).log(
                _bridged_level(record.levelno), f"{record.name}: {text}".rstrip()
            )


def _bridged_level(number: int) -> str:
    """Return loguru's level for one of the standard library: lowered by one step below WARNING."""
    for least, name in ((50, "CRITICAL"), (40, "ERROR"), (30, "WARNING"), (20, "DEBUG")):
        if number >= least:
            return name
    return "TRACE"


def _stdlib_level(threshold: int) -> int:
    """Return the root logger's level below which nothing can pass loguru's threshold."""
    if threshold <= logger.level("TRACE").no:
        return logging.DEBUG
    return logging.INFO if threshold <= logger.level("DEBUG").no else logging.WARNING


class _Sink(ABC):
    """What loguru calls with each record; never raises."""

    def __init__(self, redact: Redactor, stream: TextIO) -> None:
        self._redact = redact
        self._stream = stream
        self._is_lost = False

    def __call__(self, message: "loguru.Message") -> None:
        self._emit(message.record, str(message).rstrip())

    @abstractmethod
    def _emit(self, record: "loguru.Record", traceback: str) -> None:
        """Write the record; `traceback` is empty or its exception's."""

    def _shown(self, text: str, most: int = LONGEST) -> str:
        """Return a text without secrets and with nothing that commands a terminal or goes on for ever."""
        return harmless(self._redact(text), most)

    def _message(self, record: "loguru.Record", traceback: str) -> str:
        """Return the message, and the traceback on the lines after it."""
        message = self._shown(record["message"].rstrip())
        return f"{message}\n{self._shown(traceback, _LONGEST_TRACEBACK)}".rstrip()

    def _write(self, line: str) -> None:
        # Closed, broken or full: there is nowhere left to say so.
        with contextlib.suppress(OSError, ValueError):
            if self._takes_more():
                self._stream.write(f"{line}\n")
                self._stream.flush()

    def _takes_more(self) -> bool:
        """Wait until a line can be written; not for long, and once only for a terminal that stands still."""
        ready = select.poll()
        try:
            ready.register(self._stream, select.POLLOUT)
        except (TypeError, ValueError, OSError):  # no file
            return True
        takes = bool(ready.poll(0 if self._is_lost else _SEND_TIMEOUT_S * 1000))
        self._is_lost = not takes
        return takes


class _TextSink(_Sink):
    """Lines for people: local time, level, message; later lines of a message are indented."""

    def __init__(self, redact: Redactor, stream: TextIO) -> None:
        super().__init__(redact, stream)
        self._has_colour = takes_colour(stream)

    def _emit(self, record: "loguru.Record", traceback: str) -> None:
        name = record["level"].name
        label = f"{name:<7}"
        if self._has_colour and name in _COLOURS:
            label = f"\x1b[{_COLOURS[name]}m{label}\x1b[0m"
        # Text from elsewhere must not pass for a record of its own.
        text = self._message(record, traceback).replace("\n", "\n    ")
        self._write(f"{record['time']:%Y-%m-%d %H:%M:%S} {label} {text}")


class _JsonSink(_Sink):
    """One JSON object a line: `ts`, `level`, `message`, the bound fields, `exception`."""

    def __init__(self, redact: Redactor, stream: TextIO) -> None:
        super().__init__(redact, stream)
        self._is_unicode = (stream.encoding or "utf-8").lower().startswith("utf")

    def _emit(self, record: "loguru.Record", traceback: str) -> None:
        ts = record["time"].astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, object] = {
            "ts": ts,
            "level": record["level"].name,
            "message": self._shown(record["message"]),
        }
        for key, value in _bound(record):
            is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
            entry.setdefault(key, value if is_number else self._shown(_text(value)))
        if traceback:
            entry["exception"] = self._shown(traceback, _LONGEST_TRACEBACK)
        # What the stream's encoding lacks would be escaped in a way that JSON does not know.
        self._write(json.dumps(entry, ensure_ascii=not self._is_unicode))


class _JournalSink(_Sink):
    """Records with fields in the journal; lines with a priority on the stream while it is away."""

    def __init__(self, redact: Redactor, stream: TextIO, path: str) -> None:
        super().__init__(redact, stream)
        self._path = path
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.settimeout(_SEND_TIMEOUT_S)
        weakref.finalize(self, _close_when_read, self._channel)

    def _emit(self, record: "loguru.Record", traceback: str) -> None:
        text = self._message(record, traceback)
        priority = _priority(record["level"].no)
        fields = {
            "MESSAGE": text,
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": "syncd",
            "CODE_FILE": record["file"].path,
            "CODE_LINE": str(record["line"]),
            "CODE_FUNC": record["function"],
            "TID": str(threading.get_native_id()),
        }
        for key, value in _bound(record):
            if key == "event":
                fields["MESSAGE_ID"] = message_id(_text(value))
            fields[_journal_name(key)] = self._shown(_text(value))
        try:
            self._send(fields)
        except OSError:
            for line in text.split("\n"):  # each with its priority: systemd reads it line by line
                self._write(f"<{priority}>{line}")

    def _send(self, fields: dict[str, str]) -> None:
        """Send the fields as one datagram, with long values cut if it would be too large."""
        try:
            self._channel.sendto(_datagram(fields), self._path)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            shorter = {name: harmless(value) for name, value in fields.items()}
            self._channel.sendto(_datagram(shorter), self._path)


def _close_when_read(channel: socket.socket) -> None:
    """Close the socket once the journal has read all that was sent, at the process's end at the latest.

    The journal asks the kernel of which unit a sender is, and finds nothing of one that has ended by then:
    the last words of a start that failed would be missing under `journalctl -u` (systemd issue 2913).
    """
    over = time.monotonic() + _SEND_TIMEOUT_S
    with channel, contextlib.suppress(OSError):
        while any(fcntl.ioctl(channel, termios.TIOCOUTQ, bytes(4))) and time.monotonic() < over:
            time.sleep(0.001)


def _bound(record: "loguru.Record") -> Iterator[tuple[str, object]]:
    """Return the bound fields that have a value."""
    return ((key, value) for key, value in record["extra"].items() if value is not None)


def _text(value: object) -> str:
    """Return the value as text, or what kept it from being one."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a field that cannot be printed must not end a run
        return f"({type(value).__name__}: {type(error).__name__} while printing it)"


def _priority(number: int) -> int:
    """Return the syslog priority of a loguru level, as in syslog(3)."""
    for least, priority in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if number >= least:
            return priority
    return 7


def _journal_name(key: str) -> str:
    """Return a field name that the journal takes: at most 64 of A-Z, 0-9 and the underscore."""
    return re.sub(r"[^A-Z0-9_]", "_", f"SYNCD_{key.upper()}")[:64]


def _datagram(fields: dict[str, str]) -> bytes:
    """Return the fields in the journal's native form; values of several lines carry their length."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _is_journal(stream: TextIO) -> bool:
    """Tell whether $JOURNAL_STREAM (device:inode, systemd.exec(5)) names this stream."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _accepts(path: str) -> bool:
    """Tell whether this process may send to the datagram socket `path`, and somebody listens."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(path)
    except OSError:
        return False
    return True
