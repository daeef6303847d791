"""What an answer of Billetweb means as a whole: an array, or an error in one of its many forms. Pure.

Nothing that holds a secret link (`key=…`) gets into an error.
"""

import codecs
import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from syncd.billetweb.fields import KEY_IN_LINK
from syncd.errors import (
    AuthError,
    BilletwebError,
    ChallengeError,
    DecodeError,
    RateLimited,
    RestrictedError,
    StatusError,
    TransportError,
)

CHALLENGE_MARKER = b"cdn-cgi/challenge-platform"
RATE_LIMIT_WAIT_S = 60.0  # the limit is counted per minute, and no Retry-After was ever seen
DATE_TOLERANCE = timedelta(seconds=5)  # the header counts whole seconds, and an answer may take some
DATE_MAX = timedelta(days=1)
RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 3600.0
SAID_MAX_CHARS = 160
BLANKS = b" \t\n\r"
DIGITS_MAX = 40  # twice what any number here may have, and few enough to be counted with

_TOKEN_STATUS = {"unauthorized": 401, "rate_limiting": 429}  # what an error means, sent with 200 or not
_CREDENTIAL = re.compile(KEY_IN_LINK + r"\S*|\b[0-9a-f]{16,}\b", re.IGNORECASE)  # Billetweb's keys are hex
_SECONDS = re.compile(r"[+-]?[0-9]{1,15}")


def rows(body: bytes) -> list[object]:
    """Return the rows of an answer: every list of Billetweb is a bare array.

    A UTF-8 byte order mark is tolerated. Raises DecodeError for anything else, also for an error object:
    call `classify` first.
    """
    found = document(body)
    if not isinstance(found, list):
        raise DecodeError(_not_an_array(found))
    return found


def classify(
    body: bytes,
    status: int,
    retry_after: str | None,
    *,
    now: datetime,
    redact: Callable[[str], str] = str,
) -> BilletwebError | None:
    """Return the error that an answer means, or None for a success: 2xx and the beginning of an array.

    The error's token decides first, then the challenge page's marker, then the status, whatever the content
    type says: Billetweb sends errors with 200 too. Only decoding shows whether the array is complete.
    `retry_after` is the header's text; upstream's text passes `redact` before it is cut.
    """
    is_success = status in range(200, 300)
    if is_success and body.removeprefix(codecs.BOM_UTF8).lstrip(BLANKS).startswith(b"["):
        return None
    try:
        found, malformed = document(body), ""
    except DecodeError as error:
        found, malformed = None, str(error)
    said = found if isinstance(found, dict) and "error" in found else {}
    token, description = (_line(said.get(name), redact) for name in ("error", "description"))
    detail = ", ".join(filter(None, (f"HTTP {status}", token, description)))
    meant = _TOKEN_STATUS.get(token, status)
    failure: BilletwebError
    if malformed and (CHALLENGE_MARKER in body or status == 403):  # noqa: PLR2004  # Billetweb speaks JSON
        failure = ChallengeError(f"Billetweb's protection answered with a page for browsers ({detail})")
    elif token == "unauthorized" and "limited rights" in str(said.get("description")).lower():  # noqa: S105 a word
        failure = RestrictedError(f"the key has limited rights and may not read this ({detail})")
    elif said or meant not in range(200, 300):
        failure = _refusal(meant, detail, retry_after_s(retry_after, now=now))
    else:
        failure = DecodeError(malformed or _not_an_array(found))
    failure.status = status
    return failure


def retry_after_s(header: str | None, *, now: datetime, most_s: float = RETRY_AFTER_MAX_S) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, from 1 to `most_s`; None if unusable.

    Both forms of RFC 9110 §10.2.3 are read: seconds, and an HTTP date, compared with `now` (aware).
    """
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        wait_s = float(text)
    else:
        try:
            until = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        wait_s = (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()
    return min(max(wait_s, RETRY_AFTER_MIN_S), most_s)


def ahead(date: str | None, *, now: datetime) -> timedelta:
    """Return how far `now` (aware) is ahead of the clock that wrote a Date header, if it clearly is.

    At most a day: a larger difference is not credible.
    """
    try:
        gap = now - parsedate_to_datetime(date or "").astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return timedelta(0)
    return min(gap, DATE_MAX) if gap > DATE_TOLERANCE else timedelta(0)


def document(body: bytes | bytearray, kind: Any = Any) -> Any:
    """Return an answer's content, as `kind`. Raises DecodeError if it is not well-formed JSON."""
    text = body.removeprefix(codecs.BOM_UTF8).strip(BLANKS)
    if not text:
        raise DecodeError("Billetweb's answer is empty where a JSON array is due")
    if text.startswith(b"<"):
        raise DecodeError("Billetweb's answer is a page where a JSON array is due")
    try:
        if kind is not Any:
            text.decode()  # the parser does not check what it passes on raw
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    with suppress(ValueError, RecursionError):
        return msgspec.json.decode(_spelled_out(text), type=kind)
    # Raised outside the handler, because the cause may hold a piece of the body.
    raise DecodeError(f"Billetweb's answer is not well-formed JSON: {reason}")


def _spelled_out(body: bytes | bytearray) -> bytes:
    """Return JSON in which invalid numbers (1e400, NaN, 5,000 digits) are texts.

    So one odd value is unreadable, not the whole answer. Half of a surrogate pair becomes "?". Raises
    ValueError for what is not JSON, RecursionError if it is too deep.
    """
    document = json.loads(
        body.decode(),
        parse_float=lambda digits: number if math.isfinite(number := float(digits)) else digits,
        parse_int=lambda digits: int(digits) if len(digits) <= DIGITS_MAX else digits,
        parse_constant=str,
    )
    return json.dumps(document, ensure_ascii=False).encode(errors="replace")


def _not_an_array(document: object) -> str:
    found = "null" if document is None else "an object" if isinstance(document, dict) else "a single value"
    return f"Billetweb's answer is {found} where a JSON array is due"


def _line(value: object, redact: Callable[[str], str]) -> str:
    """Return a text of upstream for a message: one short line, without what looks like a credential."""
    if not isinstance(value, str):
        return ""
    text = _CREDENTIAL.sub("…", " ".join(redact(value).split()))
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= SAID_MAX_CHARS else text[: SAID_MAX_CHARS - 1] + "…"


def _refusal(status: int, detail: str, wait_s: float | None) -> BilletwebError:
    match status // 100, status:
        case _, 401 | 403:
            return AuthError(f"Billetweb refused the user or the key ({detail})")
        case _, 429:
            wait_s = wait_s or RATE_LIMIT_WAIT_S
            message = f"Billetweb refused for too many requests ({detail}); it wants {wait_s:.0f} s of rest"
            return RateLimited(message, wait_s=wait_s)
        case (5, _) | (_, 408):
            return TransportError(f"Billetweb cannot answer now ({detail})", wait_s=wait_s)
        case 3, _:
            advice = "a redirect is not followed; check billetweb.base_url"
            return StatusError(f"Billetweb sends the request elsewhere ({detail}): {advice}")
    return StatusError(f"Billetweb refused the request ({detail})")
