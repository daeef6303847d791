"""The journal's catalog explains each event that is logged, under the number that its record carries."""

import ast
import re
from pathlib import Path

import pytest

import syncd
from syncd.errors import SyncdError
from syncd.log.setup import message_id
from syncd.run import (  # noqa: F401 - so do these
    listing,
    runner,
    sweep,
)
from syncd.run.report import NEXT

PACKAGE = Path(syncd.__file__).parent
CATALOG = (PACKAGE.parent / "systemd/syncd.catalog").read_text("utf-8")
ENTRIES = dict(re.findall(r"^# (\S+)\n-- ([0-9a-f]{32})$", CATALOG, re.MULTILINE))
NEVER_LOGGED = {"billetweb", "stopping", "too_many_events", "unknown_delivery"}
"""Kinds of a class that only others derive from, and of answers on the socket."""


def kinds(error: type[SyncdError]) -> set[str]:
    """Return the kinds of an error and of all that derive from it."""
    return {error.kind}.union(*(kinds(child) for child in error.__subclasses__()))


def events_in_code() -> set[str]:
    """Return each constant that is bound as `event`."""
    calls = [
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bind"
    ]
    found = set()
    for keyword in (keyword for call in calls for keyword in call.keywords if keyword.arg == "event"):
        found |= {
            node.value
            for node in ast.walk(keyword.value)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return found


def test_event_without_explanation() -> None:
    """Every event has an entry, and no entry is for one that is never logged."""
    errors = {f"error.{kind}" for kind in (kinds(SyncdError) | NEXT.keys()) - NEVER_LOGGED}
    assert ENTRIES.keys() == (events_in_code() - {"error."}) | errors


@pytest.mark.parametrize("event", ENTRIES)
def test_entry_under_another_number(event: str) -> None:
    """The entry has the MESSAGE_ID that the event's records carry."""
    assert ENTRIES[event] == message_id(event)


def test_entry_the_journal_cannot_read() -> None:
    """Each entry has its headers, an empty line and a text, and mentions fields that records may have."""
    for entry in CATALOG.split("\n-- ")[1:]:
        head, _, text = entry.partition("\n\n")
        assert re.fullmatch(
            r"[0-9a-f]{32}\nSubject: .+\nDefined-By: syncd\nDocumentation: man:syncd\(8\)", head
        )
        assert text.strip()
        assert set(re.findall(r"@(\w+)@", entry)) <= {
            *("SYNCD_RUN", "SYNCD_TRIGGER", "SYNCD_OUTCOME", "SYNCD_KIND", "SYNCD_STATUS")
        }
