"""Takes over the socket that systemd listens on for the daemon, by sd_listen_fds(3)."""

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

from syncd.errors import ConfigError

FIRST_FD = 3


def inherited_socket(environ: MutableMapping[str, str]) -> socket.socket | None:
    """Return the listening socket that systemd passed to this process, or None.

    Removes the variables that describe it from `environ`. Raises ConfigError for anything but one listening
    Unix stream socket.
    """
    pid, count, _ = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise ConfigError([f"systemd passed {count} sockets: syncd.socket must have one ListenStream="])
    try:
        os.set_inheritable(FIRST_FD, False)
        passed = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise ConfigError([f"$LISTEN_FDS: no socket was passed ({error.strerror})"]) from None
    is_stream = passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM
    has_path = str(passed.getsockname()).startswith("/")  # an abstract name is bytes
    if not (is_stream and has_path and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        passed.detach()
        raise ConfigError(["systemd passed no Unix socket that listens: see ListenStream= in syncd.socket"])
    return passed


def turn_away(listening: socket.socket) -> None:
    """Close all waiting connections: otherwise systemd would start syncd for them again and again."""
    listening.setblocking(False)
    with suppress(OSError):  # nobody is left
        while True:
            listening.accept()[0].close()
