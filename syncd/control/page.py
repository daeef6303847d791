"""`GET /`: one page for people, with the status, the events, the latest runs, and a button for one more.

It is one resource, which shows itself (GET) and accepts its own form (POST), so a site that puts it behind
its own login forwards only one address. It contains all that it needs: no other file, no other route. Its
script reloads the page and replaces what differs; without the script the browser reloads it.
"""

import base64
import functools
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from syncd import text
from syncd.account.account import Account
from syncd.control import asked
from syncd.control.asked import Refusal
from syncd.control.gate import objection
from syncd.control.openapi import HTML, described
from syncd.errors import StoreError, SyncdError
from syncd.model import Json, Run
from syncd.threads import in_thread

if TYPE_CHECKING:
    from jinja2 import Template

RUNS_SHOWN = 12
"""Three hours at the usual interval, and no longer than a screen."""
EVENTS_SHOWN = 300
"""More than a person looks through; each takes 1 KiB of a page that is loaded again and again."""
MAX_FORM_BYTES = 4096
"""The form has one field, a token of 43 letters."""
Decoded = dict[str, Any]
"""A record as the routes return it: in builtin types, instants as text."""
SECURITY = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not no-referrer: with that a browser sends the page's own form with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
HERE = Path(__file__).parent


class PageQuery(msgspec.Struct, frozen=True):
    """The parameters of the page."""

    run: str = ""
    only: str = ""


class Page:
    """The page and its form. `start` requests a run in the name of a request's sender."""

    def __init__(self, account: Account, token: str, start: Callable[[Request], Awaitable[Run]]) -> None:
        self._account = account
        self._token = token
        self._start = start

    @described(
        "The page for people; `run` is one that it asked for, `only=now` leaves out what the database tells.",
        media=HTML,
        query=PageQuery,
    )
    @described(
        "Ask for a run by the page's form, and lead back to the page.",
        method="POST",
        status=303,
        media=None,
        refused=(403, 409, 413),
    )
    async def answer(self, request: Request) -> Response:
        """Show the page; a POST requests a run and redirects to the page, which then shows it."""
        if request.method != "POST":
            return await self._show(request)
        form = await asked.body(request, MAX_FORM_BYTES)
        token = parse_qs(form.decode("latin-1")).get("token", [""])[0]
        if why := objection(request.headers, token, self._token):
            raise Refusal(403, "foreign", why)
        run = await self._start(request)
        # Relative to the browser's address, which may be a proxy's.
        return Response(status_code=303, headers={"Location": f"?run={run.id}"} | SECURITY)

    async def _show(self, request: Request) -> Response:
        """Answer with the page, or only with what is in memory (`?only=now`), which is requested often."""
        wish, status = asked.query(request, PageQuery), self._account.status()
        run = await self._asked(wish.run)
        context: Json = {
            "status": status,
            "asked": None if run and _is_past(run, status.last_run) else run,
            "token": self._token,
            "whole": wish.only != "now",
            "trouble": None,
        }
        if context["whole"]:
            try:
                context |= {
                    "events": await self._account.events(ended_too=False),
                    "runs": await self._account.runs(RUNS_SHOWN, None),
                    "doubts": await self._account.doubts(),
                }
            except SyncdError as error:  # people look at the page when something is wrong
                context["trouble"] = request.app.state.redact(str(error))
            context["targets"] = self._account.outputs.publishing.states()
        html = await in_thread(_render, context, datetime.now(UTC))
        return HTMLResponse(html, headers=SECURITY | {"Content-Security-Policy": _policy()})

    async def _asked(self, run_id: str) -> Run | None:
        number = asked.run_id(run_id)
        try:
            return None if number is None else await self._account.find_run(number)
        except StoreError:
            return None


def _is_past(run: Run, last: Run | None) -> bool:
    """Return whether a later run has ended too: then an open page no longer shows the earlier one."""
    return bool(run.finished_at and last and last.finished_at and last.finished_at > run.finished_at)


@functools.cache
def _part(name: str) -> str:
    """Return the page's style or script, exactly as in the page."""
    return (HERE / name).read_text(encoding="utf-8")


@functools.cache
def _policy() -> str:
    """Return what the page may load and do: exactly its own style and script, and nothing else."""
    style, script = (
        base64.b64encode(hashlib.sha256(_part(name).encode()).digest()).decode()
        for name in ("page.css", "page.js")
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


@functools.cache
def _template() -> "Template":
    # Imported here: a daemon whose page nobody opens does not need it.
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"plain": text.plain, "span": text.format_duration, "local": text.local_time}
    environment.filters |= {"about": text.about, "run_name": text.run_name}
    environment.filters |= {"count": text.count, "address": _address, "places": _places}
    return environment.from_string(_part("page.html"))


def _render(context: Json, now: datetime) -> str:
    """Return the page's HTML, from the account's records."""
    from markupsafe import Markup  # noqa: PLC0415 - jinja2's

    def coarse(instant: str) -> str:
        """Return how long ago an instant is, in one unit: it is in many rows, which should change seldom."""
        age_s = (now - datetime.fromisoformat(instant)).total_seconds()
        return "just now" if age_s < 60 else f"{text.format_duration(age_s, units=1)} ago"  # noqa: PLR2004 - a minute

    events: list[Decoded] = context.get("events", [])  # type: ignore[assignment]
    shown = {"runs": [], "doubts": [], "targets": []} | context
    shown["events"] = _in_order(events, now)[:EVENTS_SHOWN]
    return _template().render(
        msgspec.to_builtins(shown),
        more_events=len(events) - EVENTS_SHOWN,
        style=Markup(_part("page.css")),  # noqa: S704 - ours
        script=Markup(_part("page.js")),  # noqa: S704 - ours
        since=functools.partial(text.away, now=now),
        coarse=coarse,
        zone=text.zone(),
    )


def _in_order(events: list[Decoded], now: datetime) -> list[Decoded]:
    """Return the events by their start; those that are over come last, the latest of them first."""
    for event in events:
        end = event["ends_at"] or event["starts_at"]
        event["over"] = end is not None and end <= now
    over = [event for event in events if event["over"]]
    return [event for event in events if not event["over"]] + over[::-1]


def _address(url: str | None) -> str | None:
    """Return a web address that may be a link, None for anything else, such as a script."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None


class Places(msgspec.Struct, frozen=True):
    """How an event's places are shown: a style, a text, and the share of the bar."""

    kind: str
    words: str
    taken: float | None = None


def _places(event: Decoded) -> Places:
    """Return how to show an event's places."""
    left, total = event["places_left"], event["places_total"]
    if event["unlimited"]:
        return Places("unlimited", "unlimited")
    if left is None:
        return Places("unknown", "unknown")
    if not total or total < left:
        return Places("full", "full", 100) if event["is_full"] else Places("some", f"{left} left")
    kind = "full" if event["is_full"] else "few" if text.is_nearly_full(left, total) else "some"
    return Places(kind, f"{left} of {total} left", round(100 * (total - left) / total, 1))
