"""Who may change something: anybody with access to the socket, but of browsers' requests only the page's own.

A proxy or bridge in front of the socket knows its user by a cookie, which a browser also sends with a form of
any other site. So a browser's request must come from the page, and hold the token that only the page has.
"""

import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN_HEADER = "Syncd-Token"  # noqa: S105 - its name
HARMLESS_METHODS = {"GET", "HEAD", "OPTIONS"}
PAGE = "/"
"""Its form has the token in the body, and the page itself checks it."""
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Gate:
    """Refuses with 403 a browser's request that changes something but does not come from the page."""

    def __init__(self, app: ASGIApp, token: str, refuse: Callable[[int, str, str], Response]) -> None:
        self._app = app
        self._token = token
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["method"] not in HARMLESS_METHODS and scope["path"] != PAGE:
            headers = Headers(scope=scope)
            if why := objection(headers, headers.get(TOKEN_HEADER, ""), self._token):
                await self._refuse(403, "foreign", why)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def objection(headers: Headers, given: str, token: str) -> str | None:
    """Return why a request that changes something is refused, None if it is not.

    Programs send neither `Origin` nor `Sec-Fetch-Site`; browsers send at least one, except with a GET.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is None and site is None:
        return None
    if origin is not None and not _is_of(origin, headers.get("host", "")):
        return (
            f"the request comes from a page of {origin}, and was sent to {headers.get('host')}: "
            "only syncd's own page may ask for this; a proxy before it must pass Host on"
        )
    if site not in (None, "same-origin"):
        return "another site's page sent the request: only syncd's own page may ask for this"
    if not hmac.compare_digest(given.encode(), token.encode()):
        return "the page's token is missing or an older daemon's: load the page again"
    return None


def _is_of(origin: str, host: str) -> bool:
    """Return whether a page of this origin is the host's own, with or without the default port."""
    scheme, _, authority = origin.lower().partition("://")
    if not authority or scheme not in DEFAULT_PORTS:
        return False  # such as "null", of a page without an origin
    port = DEFAULT_PORTS[scheme]
    return authority.removesuffix(port) == host.lower().removesuffix(port)
