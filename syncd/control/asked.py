"""What a request brings: who sent it, its body and its parameters. What does not fit is refused."""

import asyncio
import pwd
import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from syncd.model import Peer
from syncd.text import names_an_event
from syncd.threads import in_own_thread

B = TypeVar("B")
MAX_BODY_BYTES = 64 * 1024  # some thousand ids; nobody types more
NAME_WITHIN_S = 1.0  # of a user; if the machine that keeps the names is away, the number must do
MAX_ID = 2**63 - 1


class Refusal(Exception):  # an answer, not a fault
    """An answer other than success: HTTP status, stable code, a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


async def peer(request: Request) -> Peer:
    """Return who sent the request. If another machine keeps the names, a lookup may take long."""
    client = request.client
    assert client is not None
    uid = int(client.host)
    try:
        user = (await asyncio.wait_for(in_own_thread(pwd.getpwuid, uid), NAME_WITHIN_S)).pw_name
    except (KeyError, TimeoutError):
        user = str(uid)
    return Peer(uid, user, client.port)


async def body(request: Request, most_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Return a request's body."""
    found = b""
    try:
        async for chunk in request.stream():
            found += chunk
            if len(found) > most_bytes:
                raise Refusal(413, "too_large", f"the body is over {most_bytes} bytes")
    except ClientDisconnect as error:  # nobody is left to read this
        raise Refusal(400, "bad_request", "the body broke off") from error
    return found


async def record(request: Request, kind: type[B]) -> B:
    """Return the record that a request's body is in JSON."""
    found = await body(request)
    try:
        return msgspec.json.decode(found or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "bad_request", f"the body does not fit: {error}") from error


def check_ids(events: Sequence[str]) -> None:
    """Refuse what can be no event's name."""
    for event_id in events:
        if not names_an_event(event_id):
            raise Refusal(400, "bad_request", f"events: {event_id!r} is no event's id or ext_id")


def seconds(request: Request, name: str, most: float) -> float:
    """Return a parameter that is a time, 0 if it is not given."""
    try:
        found = float(request.query_params.get(name, 0.0))
    except ValueError:
        found = -1.0
    if not 0 <= found <= most:  # refuses nan too
        raise Refusal(400, "bad_request", f"{name}: from 0 to {most:g} seconds")
    return found


def flag(request: Request, name: str) -> bool:
    """Return a parameter that is 0 or 1, 0 if it is not given."""
    wanted = request.query_params.get(name, "0")
    if wanted not in ("0", "1"):
        raise Refusal(400, "bad_request", f"{name}: 0 or 1")
    return wanted == "1"


def integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return a parameter that is a whole number."""
    number = whole(request.query_params.get(name, f"{default}"), least, most)
    if number is None:
        raise Refusal(400, "bad_request", f"{name}: a whole number from {least} to {most}")
    return number


def whole(given: str, least: int = -MAX_ID, most: int = MAX_ID) -> int | None:
    """Return the whole number that a text is, None if it is none within these limits."""
    number = int(given) if re.fullmatch(r"-?[0-9]{1,20}", given) else most + 1
    return number if least <= number <= most else None
