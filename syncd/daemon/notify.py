"""Tells systemd the state of the service, by the datagrams of sd_notify(3). Imports nothing of syncd."""

import contextlib
import socket
import time

_SEND_TIMEOUT_S = 1.0  # a service manager that does not read must not stop the daemon


class Notifier:
    """A channel to the service manager; does nothing if there is none, and never raises.

    `address` is the value of $NOTIFY_SOCKET: a path or an abstract name written `@name`; others are ignored.
    """

    def __init__(self, address: str | None) -> None:
        self._address = None
        if address and address[0] in "/@":
            self._address = address if address[0] == "/" else f"\0{address[1:]}"

    def ready(self, **more: str) -> None:
        """Report that starting, or reloading, is over."""
        self.send(READY="1", **more)

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows; it is dropped if it cannot be sent at once."""
        self.send(0.0, STATUS=text)

    def reloading(self) -> None:
        """Report that a reload begins; `ready` must follow, even if the reload failed."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send(RELOADING="1", MONOTONIC_USEC=str(now_us))

    def extend(self, seconds: float) -> None:
        """Extend the time-out of the start or stop in progress to this many seconds from now."""
        self.send(0.0, EXTEND_TIMEOUT_USEC=str(round(seconds * 1e6)))

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self.send(STOPPING="1")

    def send(self, timeout_s: float = _SEND_TIMEOUT_S, /, **fields: str) -> None:
        """Send the assignments in one datagram; line breaks in values become spaces.

        This blocks the caller: a busy manager may not read for seconds.
        """
        if self._address is None:
            return
        text = "\n".join(f"{name}={' '.join(value.splitlines())}" for name, value in fields.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(timeout_s)
            channel.sendto(text.encode(errors="replace"), self._address)
