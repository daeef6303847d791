"""Hides secrets in text that is about to leave the process. Imports nothing of syncd.

Two nets: the secrets that this process holds, however they are quoted, and the shapes in which a secret
usually appears in addresses, headers and messages, for the ones that nobody announced.
"""

import re
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import quote

_MASK = "***"
_IN_ADDRESSES = str.maketrans("+/", "-_")
_SHORTEST = 4  # a shorter secret would cut ordinary words to pieces, and by that give itself away

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    # https://host/path?key=…, and password='…' as libpq writes it
    (
        re.compile(r"""\b(\w*(?:key|password|token)=)(?:'[^']*'|"[^"]*"|[^&\s"'<>]+)""", re.IGNORECASE),
        rf"\1{_MASK}",
    ),
    # Authorization: Basic …, also as Python prints a dict or a list of header pairs
    (
        re.compile(
            r"""(authorization['"]?\s*[:=,]\s*b?['"]?(?:basic|bearer)\s+)[^\s"',]+""",
            re.IGNORECASE,
        ),
        rf"\1{_MASK}",
    ),
    # scheme://user:password@host; greedy, for a password may hold an @ that nobody quoted
    (re.compile(r"(://[^\s/:@?#]*:)[^\s/]+@"), rf"\1{_MASK}@"),
    # a secret by the Standard Webhooks specification
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), f"whsec_{_MASK}"),
)


class Redactor:
    """A text filter: called with a text, it gives the text back with every secret replaced by `***`.

    A secret is found as it is, URL-quoted (wholly or in part, hexadecimal in either case) and with the
    backslashes of a Python or JSON string. Secrets shorter than 4 characters are ignored. A token derived
    from a secret, such as base64 of `user:key`, has to be handed in as a secret of its own.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._held: re.Pattern[str] | None = None
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Hide one more secret from now on; the earlier ones stay hidden."""
        if len(secret) < _SHORTEST:
            return
        self._secrets |= {secret}
        # The longest first: one secret may be the beginning of another.
        ordered = sorted(self._secrets, key=len, reverse=True)
        self._held = re.compile("|".join("".join(map(_any_spelling, secret)) for secret in ordered))

    def __call__(self, text: str) -> str:
        """Return the text without its secrets."""
        if self._held is not None:
            text = self._held.sub(_MASK, text)
        for shape, replacement in _SHAPES:
            text = shape.sub(replacement, text)
        return text


def of_basic_auth(user: str, key: str) -> list[str]:
    """Return a key and what HTTP's Basic scheme makes of it, as someone may repeat it: without padding."""
    tokens = [b64encode(text.encode()).decode().rstrip("=") for text in (f"{user}:{key}", key)]
    return [key, *tokens, *(token.translate(_IN_ADDRESSES) for token in tokens)]


def _any_spelling(character: str) -> str:
    """Return a pattern for one character: bare, percent-encoded or after a backslash."""
    quoted = quote(character, safe="", errors="replace")
    if quoted == character:  # letters, digits and _.-~ are never quoted: the pattern stays a fast literal
        return re.escape(character)
    spellings = [rf"\\?{re.escape(character)}", f"(?i:{quoted})"]
    if character == " ":
        spellings.append(r"\+")
    return f"(?:{'|'.join(spellings)})"
