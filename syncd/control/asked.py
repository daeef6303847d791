"""What a request brings: who sent it, its body and its parameters. What does not fit is refused."""

import asyncio
import pwd
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Struct, structs
from starlette.requests import ClientDisconnect, Request

from syncd.model import Peer
from syncd.text import names_an_event
from syncd.threads import in_own_thread

B = TypeVar("B", bound=Struct)
MAX_BODY_BYTES = 64 * 1024  # some thousand ids; nobody types more
NAME_WITHIN_S = 1.0  # of a user; if the machine that keeps the names is away, the number must do
RunId = Annotated[int, msgspec.Meta(ge=1 - 2**63, le=2**63 - 1, description="the number of a run")]
"""As large as databases have them."""


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


def query(request: Request, kind: type[B]) -> B:
    """Return the record that a request's parameters are; what fits one is told by its description."""
    given: dict[str, object] = {}
    for parameter in structs.fields(kind):
        if parameter.name in request.query_params:
            text = request.query_params[parameter.name]
            try:
                given[parameter.name] = _read(text, parameter.type)
            except msgspec.ValidationError as error:
                _, records = msgspec.json.schema_components([kind])
                fits = records[kind.__name__]["properties"][parameter.name]["description"]
                raise Refusal(400, "bad_request", f"{parameter.name}: {fits}") from error
    return kind(**given)


def run_id(given: str) -> int | None:
    """Return the id of a run that a text is, None if it can be none."""
    try:
        return int(_read(given, RunId))
    except msgspec.ValidationError:
        return None


def _read(text: str, kind: Any) -> Any:
    """Return the value that a text is. Raises ValidationError; also for 1e2, which would be read as 100."""
    value = msgspec.convert(text, kind, strict=False)
    if type(value) is int and not re.fullmatch("-?[0-9]+", text):
        raise msgspec.ValidationError("a whole number has digits alone")
    return value
