"""A small HTTP client for the daemon's Unix socket: the standard library's own takes longer to load."""

from __future__ import annotations

import io
import json
import os
import socket
import struct

from syncd import __version__
from syncd.text import Json

ANSWER_TIMEOUT_S = 10.0  # the daemon answers in milliseconds; a machine that swaps may take seconds
EXIT_USAGE = 2
EXIT_NO_DAEMON = 3
EXIT_NO_PERMISSION = 4
EXIT_REFUSED = 6


class Failure(Exception):
    """A command that failed: its exit code, a stable word, and what happened and what to do."""

    def __init__(self, exit_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


class NoDaemon(Failure):
    """No daemon accepted the request, or finished its answer. `is_absent`: nobody listens."""

    def __init__(self, message: str, *, is_absent: bool = False) -> None:
        super().__init__(EXIT_NO_DAEMON, "no_daemon", message)
        self.is_absent = is_absent


def ask_json(path: str, method: str, target: str, body: Json | None = None, **options: float) -> Json:
    """Return the daemon's JSON answer; arguments and exceptions are those of `ask`."""
    try:
        answer: Json = json.loads(ask(path, method, target, body, **options))
    except ValueError:
        raise Failure(EXIT_REFUSED, "malformed", f"The answer to {method} {target} is not JSON.") from None
    return answer


def ask(path: str, method: str, target: str, body: Json | None = None, *, timeout_s: float = 0) -> bytes:
    """Return the body of the daemon's answer. `timeout_s` is for each read, ANSWER_TIMEOUT_S if 0.

    HTTP/1.0, so that the answer is never chunked and ends with the connection. Raises NoDaemon if no whole
    answer comes; Failure for a refusal and for another syncd's answer.
    """
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {target} HTTP/1.0\r\nHost: syncd\r\nUser-Agent: syncctl/{__version__}\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    late = "" if method == "GET" else " It may still do what it was asked."
    with connect(path, timeout_s or ANSWER_TIMEOUT_S) as connection, connection.makefile("rb") as stream:
        try:
            connection.sendall(head.encode() + content)
            return _read(path, stream)
        except TimeoutError:
            advice = f": see `systemctl status {unit}`" if (unit := unit_at(path)) else ""
            raise NoDaemon(f"The daemon on {path} does not answer in time{advice}.{late}") from None
        except ConnectionError:
            raise NoDaemon(
                f"The daemon on {path} closed the connection before its answer was whole.{late}"
            ) from None


def connect(path: str, timeout_s: float) -> socket.socket:
    """Return a connection to the Unix socket at `path`. Raises NoDaemon, or Failure without permission."""
    connection = socket.socket(socket.AF_UNIX)
    # With the kernel's time-out it waits for a full queue; with Python's it would fail at once with EAGAIN.
    interval = struct.pack("ll", *divmod(max(1, round(timeout_s * 1_000_000)), 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
    try:
        connection.connect(path)
    except PermissionError:
        connection.close()
        raise Failure(EXIT_NO_PERMISSION, "no_permission", _permission_advice(path)) from None
    except OSError as error:
        connection.close()
        message = f"No daemon answers on {path} ({error.strerror or error})."
        raise NoDaemon(message, is_absent=True) from None
    connection.settimeout(timeout_s)
    return connection


def unit_at(path: str) -> str | None:
    """Return the unit with this socket; None if syncd does not run as one of the supplied units."""
    folder, _, rest = path.removeprefix("/run/syncd/").partition("/")
    if not path.startswith("/run/syncd/") or (rest or folder) != "syncd.sock" or not folder:
        return None
    return f"syncd@{folder}" if rest else "syncd"


def config_option(unit: str | None) -> str:
    """Return the option that gives `syncd` that unit's settings, "" for the default ones."""
    if unit is None:
        return " --config FILE"
    name = unit.partition("@")[2]
    return f" --config /etc/syncd/{name}.toml" if name else ""


def _permission_advice(path: str) -> str:
    import grp  # noqa: PLC0415 - for this sentence only

    try:
        group = f"the group {grp.getgrgid(os.stat(path).st_gid).gr_name}"  # noqa: PTH116 - pathlib starts slowly
    except (OSError, KeyError):
        group = "the daemon's group"
    return f"No permission for {path}: join {group} and log in again, or use sudo."


def _read(path: str, stream: io.BufferedReader) -> bytes:
    """Return an answer's body.

    Raises ConnectionError without a whole answer, Failure unless it is one of this version without an error.
    """
    protocol, _, status = stream.readline().decode("latin-1").partition(" ")
    if not protocol:
        raise ConnectionError
    headers = dict[str, str]()
    while protocol.startswith("HTTP/1.") and (line := stream.readline().decode("latin-1").strip()):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    version = headers.get("syncd-version")
    if version is None:
        raise Failure(EXIT_REFUSED, "version", f"What answers on {path} is not syncd.")
    if _compatible(version) != _compatible(__version__):
        raise Failure(
            EXIT_REFUSED,
            "version",
            f"The daemon is syncd {version}, this is syncctl {__version__}: "
            "use the same version, or restart a daemon that was updated.",
        )
    body = stream.read()
    if len(body) < int(headers.get("content-length", 0)):
        raise ConnectionError
    if not status.startswith("2"):
        raise _refusal(status.strip(), body)
    return body


def _compatible(version: str) -> list[str]:
    """Return the part of a version that both ends must share: the major number, and below 1.0 the minor."""
    numbers = version.split(".")
    return numbers[:2] if numbers[0] == "0" else numbers[:1]


def _refusal(status: str, body: bytes) -> Failure:
    try:
        error = json.loads(body)["error"]
        return Failure(EXIT_REFUSED, error["code"], error["message"])
    except (ValueError, LookupError, TypeError):
        return Failure(EXIT_REFUSED, "refused", f"The daemon answered with HTTP status {status}.")
