"""README shows what its commands print: each is carried out on a daemon that mirrors the stand-in."""

import re

from readme_outputs import outputs, sessions, staged
from support.project import README


def plain(said: str) -> list[list[str]]:
    """Return the words of each line, without what differs from one time or machine to the next."""
    for pattern, name in (
        (r"\d{4}-\d\d-\d\d \d\d:\d\d", "INSTANT"),
        (r"[A-Z][a-z]{2} \d\d \d\d:\d\d", "INSTANT"),
        (r"\b\d+(\.\d+)? (ms|s|min|h|d)\b( \d+ (s|min|h)\b)*", "DURATION"),
        (r"\b\d+(\.\d+)? (kB|MB)", "SIZE"),
        (r"\bsyncd \d+\.\d+\.\d+", "syncd VERSION"),
        (r"\bby \w+", "by USER"),
    ):
        said = re.sub(pattern, name, said)
    return [line.split() for line in said.splitlines() if line]


def test_an_output_that_no_command_gives() -> None:
    """Every command of README prints what README shows below it; tests/readme_outputs.py writes it anew."""
    shown = [(command, plain(said)) for command, said in sessions()]
    with staged() as stage:
        assert [(command, plain(said)) for command, said in outputs(stage)] == shown


def test_an_output_that_is_not_looked_at() -> None:
    """The commands that README is read for are among those that are carried out."""
    found = {" ".join(command.split()[:2]) for command, _ in sessions()}
    assert {f"syncctl {word}" for word in ("events", "status", "run-now", "history", "doubts")} <= found
    assert {"syncctl publish", "syncd check", "sqlite3 /var/lib/syncd/syncd.db"} <= found


def test_a_first_screen_without_the_badge() -> None:
    """README's first 25 lines have both commands, places, a query, a site's table, and for whom."""
    screen = "\n".join(README.splitlines()[:25])
    for what in (
        "bin/syncd demo",
        "bin/pytest",
        "syncctl events",
        "WHERE places_left",
        "isFull",
        "**Not for you**",
    ):
        assert what in screen
