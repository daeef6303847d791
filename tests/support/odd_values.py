"""Values and rows as Billetweb may send them, odd ones too."""

import json
import string
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import strategies as st

CANARY = "0123456789abcdef0123456789abcdef"


BOM = b"\xef\xbb\xbf"


def body_of(*found: object) -> bytes:
    return json.dumps(found).encode()


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NO_ARRAYS = [b"", BOM + b" ", b"null", b"{}", b'"1"', b"[1] [2]", b"<html>", b'[{"id": "1"}, {"id']


NO_ROWS: list[tuple[object, str]] = [
    (None, " is null"),
    ("7", " is not an object"),
    ([], " is not an object"),
]


NO_IDS: list[object] = ["", None, False]


BAD_ROWS = [*NO_ROWS, ({}, ".id is missing"), *(({"id": value}, ".id is missing") for value in NO_IDS)]


INSTANTS = {
    "2027-03-28 01:59:59": "2027-03-28 00:59:59",
    "2027-03-28 02:00:00": "2027-03-28 01:00:00",
    "2027-03-28 02:30:00": "2027-03-28 01:30:00",
    "2027-03-28 03:00:00": "2027-03-28 01:00:00",
    "2027-03-28 03:30:00": "2027-03-28 01:30:00",
    "2027-10-31 01:59:59": "2027-10-30 23:59:59",
    "2027-10-31 02:00:00": "2027-10-31 00:00:00",
    "2027-10-31 02:59:59": "2027-10-31 00:59:59",
    "2027-10-31 03:00:00": "2027-10-31 02:00:00",
    "2027-01-01 00:00:00": "2026-12-31 23:00:00",
    " 2027-07-01 00:00:00 ": "2027-06-30 22:00:00",
    "9999-12-31 23:59:59": "9999-12-31 22:59:59",
}


def known(decode: Callable[..., Any], name: str, column: str, pairs: list[Any]) -> list[Any]:
    return [pytest.param(decode, name, column, *pair, id=f"{name}={pair[0]!r}") for pair in pairs]


LINK = f"https://www.billetweb.fr/my_order.php?order=1&key={CANARY}"


LINKS = [
    LINK,
    LINK.replace("key=", "KEY="),
    LINK.replace("key=", "key%3D"),
    LINK.replace("key=", "key%253D"),
    LINK.replace("key=", "key&#61;"),
    {"a": [f"see {LINK}"]},
    {LINK: 1},
]


TRICKY = [
    "0",
    "1",
    "-1",
    "12.50",
    "NaN",
    "0001-01-01 00:00:00",
    "9999-12-31 23:59:59",
    "²",
    "?key=x",
    "session",
]


text = st.text(string.printable + "é🥖\0²", max_size=30)  # all of Unicode takes seconds to build


scalars = st.none() | st.booleans() | st.integers(-(10**25), 10**25) | text | st.sampled_from(TRICKY)


anything = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
