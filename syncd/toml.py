"""A TOML file with the line of each table and key, and what is wrong with it, each problem with its place.

Leans on tomllib for the syntax. Line numbers come from a small scanner of our own: tomllib gives none.
"""

import json
import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path

from syncd import readers, typed
from syncd.errors import ConfigError, reason


def quoted(text: str) -> str:
    """Return a text as TOML has it: a string of JSON is one, unless it names surrogates."""
    return json.dumps(text, ensure_ascii=False)


class Problems:
    """The problems found so far, a line of text each."""

    def __init__(self, path: Path, lines: Mapping[tuple[str, ...], int]) -> None:
        self._path = path
        self._lines = lines
        self._found: list[tuple[int, str]] = []

    @contextmanager
    def of(self, *key: str, outside: str = "") -> Iterator[None]:
        """Note what is raised inside as a problem of that table or key, or of a source outside the file."""
        try:
            yield
        except (OSError, ValueError) as error:
            table = (re.sub(r"\[[0-9]+\]$", "", key[0]),) if key else ()  # of a list written in one value
            line = self._lines.get(key) or self._lines.get(key[:1]) or self._lines.get(table, 0)
            place = f"{self._path}:{line}" if line else f"{self._path}"
            source = outside or f"{place}: {'.'.join(key)}"
            self._found.append((line or sys.maxsize, f"{source}: {_why(error)}"))

    def raise_any(self) -> None:
        """Raise ConfigError if there are problems, in the order of the file's lines."""
        if self._found:
            raise ConfigError([_one_line(text) for _, text in sorted(self._found, key=itemgetter(0))])


def _why(error: Exception) -> str:
    """Return what went wrong; whom a file is closed to, for it may be open to root, who checks it."""
    whom = f" for the user {typed.user() or os.geteuid()}" if isinstance(error, PermissionError) else ""
    return f"{reason(error)}{whom}"


def parse(path: Path) -> tuple[dict[str, object], dict[tuple[str, ...], int]]:
    """Return what a file holds, and the line of each table and key. Raises ConfigError with its place."""
    text = ""
    try:
        text = readers.utf8(readers.content(path, 1 << 20))  # the commented sample has 10 KB
        return tomllib.loads(text), key_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        at = re.search(r"at line (\d+)", str(error))
        line = int(at[1]) if at else text.count("\n") + 1 if "at end of document" in str(error) else 0
        place = f"{path}:{line}" if line else f"{path}"
        row = text.split("\n")[line - 1] if text and line else ""
        why = _unquoted(row) or _spread(row) or f"cannot be read: {_why(error)}"
        if isinstance(error, FileNotFoundError):
            why += f"; `{typed.syncd('setup', path)}` makes one, --config or $SYNCD_CONFIG names another"
        raise ConfigError([_one_line(f"{place}: {why}")]) from None


def _unquoted(row: str) -> str:
    """Return what to say where a line fails for want of quotes, "" otherwise. The value may be a secret."""
    found = re.match(r"""\s*([\w.-]+)\s*=\s*([^\s"'\[{#=].*)""", row)
    if found:
        try:
            tomllib.loads(f"value = {found[2]}")
        except tomllib.TOMLDecodeError:
            return f'{found[1]}: text must stand in quotes, as in {found[1]} = "…"'
    return ""


def _spread(row: str) -> str:
    """Return what to say where a line fails for a table in braces that is written as JavaScript has it."""
    found = re.match(r"\s*([\w.-]+)\s*=\s*\{([^}]*|.*,\s*\}.*)$", row)
    if not found:
        return ""
    return f"{found[1]}: what stands in {{ }} is one line, without a comma at its end"


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each table and each key in valid TOML, by letting tomllib read single statements."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    counts: Counter[str] = Counter()
    statement, start = "", 1
    for number, row in enumerate(text.split("\n"), 1):
        statement += row + "\n"
        if row.rstrip().endswith((",", "[")) and "#" not in row:
            continue  # a list goes on: to try each of its lines would take as long as it is, squared
        is_header = statement.lstrip().startswith("[")
        with suppress(tomllib.TOMLDecodeError):  # raised while a value goes on in the next line
            found = tomllib.loads(statement)
            if is_header:  # for what is said of a whole list
                lines.setdefault((next(iter(found)),), start)
            for path in _paths(_numbered(found, counts) if is_header else found, () if is_header else table):
                lines.setdefault(path, start)
                table = path if is_header else table
            statement, start = "", number + 1
    return lines


def _numbered(header: dict[str, object], counts: Counter[str]) -> dict[str, object]:
    """Return a header that is one of a list's tables, or inside one, with the number of that: from 1."""
    ((name, value),) = header.items()
    if isinstance(value, list):
        counts[name] += 1
        value = value[0]
    return {f"{name}[{counts[name]}]" if counts[name] else name: value}


def _paths(found: dict[str, object], table: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, value in found.items():
        yield (*table, name)
        if isinstance(value, dict):
            yield from ((*table, name, inner) for inner in value)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
