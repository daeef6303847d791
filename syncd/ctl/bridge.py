"""`syncctl page`: a loopback port in front of the daemon's socket, for one browser of a user of that socket.

Any user of the machine can connect to the port, and any page in a browser can try to. So the printed address
holds a token that the first visitor exchanges for a cookie; without the cookie everything is refused. Cookies
do not know ports: the path prefix is random too, or the browser would send the cookie to another program on
127.0.0.1. The host's name must be this machine's, on any port, which may be an ssh tunnel's: an attacker's
name that resolves to 127.0.0.1 (DNS rebinding) is refused.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from syncd.ctl.http import ANSWER_TIMEOUT_S, Failure, connect

HOST = "127.0.0.1"
OUR_NAMES = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?")
PASSED_ON = ("Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Accept", "Syncd-Token")
"""The headers that the daemon's answer depends on; the cookie is only the bridge's."""
MOST_BYTES = 64 * 1024
"""The daemon accepts no larger body."""
SILENCE_S = 75.0
"""The daemon is silent for up to 60 s if it is asked to wait for a run's end."""
BROWSER_SILENCE_S = 30.0
"""A browser keeps connections open for later; if one is closed, it opens another."""
MOST_AT_ONCE = 64
"""A browser opens half a dozen connections; other users of the machine must not fill its memory."""
HANGING_UP_S = 1.0
"""A thread ends at once when its connection does, unless the machine is very busy."""
WELCOME = """\
<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>syncd</title>
<meta http-equiv="refresh" content="0;url={path}"><p><a href="{path}">To the page</a></p></html>
"""
"""Not a redirect: a browser that came by a link of another site would follow that without the cookie."""


class Bridge(socketserver.ThreadingTCPServer):
    """Listens on a port of 127.0.0.1, 0 for any that is free; `serve_forever` answers. Raises OSError."""

    allow_reuse_address = True  # else a port stays unusable for a minute after each use
    request_queue_size = MOST_AT_ONCE  # whoever finds the usual five places taken tries again after a second
    daemon_threads = True  # a stream in progress must not prevent the end of the program

    def __init__(self, path: str, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.path = path
        self.folder = f"/{secrets.token_urlsafe(16)}/"
        self.cookie = secrets.token_urlsafe(32)
        self._token = secrets.token_urlsafe(32)
        self._spending, self._listening = threading.Lock(), threading.Lock()
        self._silent: dict[socket.socket, threading.Thread] = {}  # the oldest first
        self.address = f"http://{HOST}:{self.server_address[1]}/?token={self._token}"

    def process_request(self, request: object, client_address: object) -> None:
        """Answer in a thread of its own; of too many, the one that is silent for longest makes room."""
        while threading.active_count() > MOST_AT_ONCE and self._hang_up():
            pass
        if threading.active_count() > MOST_AT_ONCE:
            self.shutdown_request(request)  # type: ignore[arg-type]
        else:
            super().process_request(request, client_address)  # type: ignore[arg-type]

    def _hang_up(self) -> bool:
        """End the oldest connection without a whole request, and its thread; return whether there was one."""
        with self._listening:
            oldest = next(iter(self._silent.items()), None)
        if oldest:
            self.heard(oldest[0])
            with contextlib.suppress(OSError):  # it went by itself
                oldest[0].shutdown(socket.SHUT_RDWR)
            oldest[1].join(HANGING_UP_S)
        return oldest is not None

    def accepted(self, connection: socket.socket) -> None:
        """Note that this thread waits for a request."""
        with self._listening:
            self._silent[connection] = threading.current_thread()

    def heard(self, connection: socket.socket) -> None:
        """Note that nobody waits for a request of this connection any more."""
        with self._listening:
            self._silent.pop(connection, None)

    def spend(self, token: str) -> bool:
        """Return whether this is the token, used for the first time."""
        with self._spending:
            fits = bool(self._token) and hmac.compare_digest(token.encode(), self._token.encode())
            if fits:
                self._token = ""
            return fits

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a browser that went away."""
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: Bridge
    server_version, sys_version = "syncctl", ""
    timeout = BROWSER_SILENCE_S

    def setup(self) -> None:
        super().setup()
        self.server.accepted(self.connection)

    def finish(self) -> None:
        self.server.heard(self.connection)
        super().finish()

    def _answer(self) -> None:
        """Refuse, or exchange the token for the cookie, or ask the daemon."""
        self.server.heard(self.connection)
        path, folder = urlsplit(self.path), self.server.folder
        tokens = parse_qs(path.query).get("token", []) if path.path == "/" else []
        if not OUR_NAMES.fullmatch(self.headers.get("Host", "").lower()):
            self._refuse(403, "This is for the address that syncctl printed, or a tunnel's on localhost.")
        elif tokens and self.command == "GET":
            if self.server.spend(tokens[0]):
                self._welcome()
            else:
                self._refuse(
                    403,
                    "This address was used already, or is an earlier one's: it opens the page once. "
                    "Go on in the tab that has it, or start `syncctl page` again.",
                )
        elif self.path.startswith(folder) and self._has_cookie():
            self._pass_on(self.path[len(folder) - 1 :])
        else:
            self._refuse(403, "Nothing is shown without the address that `syncctl page` printed.")

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - the names that http.server looks for

    def _has_cookie(self) -> bool:
        cookies = (each.strip().partition("=") for each in self.headers.get("Cookie", "").split(";"))
        ours = self.server.cookie.encode()
        return any(
            name == "syncd" and hmac.compare_digest(value.encode(), ours) for name, _, value in cookies
        )

    def _welcome(self) -> None:
        folder = self.server.folder
        cookie = f"syncd={self.server.cookie}; Path={folder}; HttpOnly; SameSite=Strict"
        self._say(200, "text/html", WELCOME.format(path=folder), {"Set-Cookie": cookie})

    def _refuse(self, status: int, sentence: str) -> None:
        self._say(status, "text/plain", f"{sentence}\n", {})

    def _say(self, status: int, kind: str, text: str, headers: dict[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        headers |= {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",  # the token is in the address
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _pass_on(self, target: str) -> None:
        """Forward the request to the daemon and its answer back, as the bytes arrive."""
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit() or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "A body needs its length.")
            return
        if int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is over {MOST_BYTES} bytes.")
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):  # what came may mean more: no list of events means all of them
            self._refuse(HTTPStatus.BAD_REQUEST, "The body broke off.")
            return
        # A folded header becomes one line, so that nobody can inject another.
        lines = [
            f"{name}: {' '.join(self.headers[name].split())}" for name in PASSED_ON if name in self.headers
        ]
        head = [f"{self.command} {target} HTTP/1.0", *lines, f"Content-Length: {len(body)}", "", ""]
        try:
            daemon = connect(self.server.path, ANSWER_TIMEOUT_S)
        except Failure as error:
            self._refuse(HTTPStatus.BAD_GATEWAY, str(error))
            return
        with daemon:
            daemon.settimeout(SILENCE_S)
            daemon.sendall("\r\n".join(head).encode("latin-1") + body)
            while chunk := daemon.recv(64 * 1024):
                self.wfile.write(chunk)

    def log_message(self, *_: object) -> None:
        """Log no requests: addresses hold the token."""
