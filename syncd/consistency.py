"""Settings that are good each by itself, and not beside the others.

Each function is handed values as far as they are good, by their keys, and notes what is wrong between them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from syncd import readers
from syncd.toml import Problems

Values = Mapping[str, Any]
OF_A_DATABASE = ("", "-wal", "-shm", "-journal", ".lock")
"""How the names of a SQLite file, and of what SQLite and syncd keep beside it, end."""


def check_times(sync: Values, minimum_interval: timedelta, problems: Problems) -> None:
    """Refuse an interval that is too short, and a jitter that is too long for it."""
    interval, jitter = sync.get("interval"), sync.get("jitter", timedelta(0))
    if interval is None:
        return
    with problems.of("sync", "interval"):
        if interval < minimum_interval:
            least, given = minimum_interval.total_seconds(), interval.total_seconds()
            raise readers.must(f"be at least {least:g}s", f"{given:g}s")
    with problems.of("sync", "jitter"):
        if jitter * 2 > interval:
            raise ValueError("must be at most half of sync.interval")


def check_paths(
    path: Path,
    tables: Mapping[str, Values],
    lists: Mapping[str, Sequence[Values]],
    credentials: Path,
    problems: Problems,
) -> None:
    """Refuse a feed in the place of another, or of a file of syncd's own: it would replace that.

    `path` is that of the configuration, `credentials` the folder with the credentials.
    """
    own = {_place(each) for each in _own_files(path, tables, lists)}
    seen: set[Path] = set()
    for number, feed in enumerate(lists["feeds"], 1):
        if "path" not in feed:  # refused, and noted, already
            continue
        at = _place(feed["path"])
        with problems.of(f"feeds[{number}]", "path"):
            if at in own or at.parent == _place(credentials):
                raise ValueError("is a file that syncd uses itself")
            if at in seen:
                raise ValueError("is the path of another feed too")
        seen.add(at)


def _place(path: Path) -> Path:
    """Return a path without detours, by its letters alone: a disk that hangs is not to be asked."""
    return Path("/", os.path.normpath(path.absolute()).lstrip("/"))


def _own_files(
    path: Path, tables: Mapping[str, Values], lists: Mapping[str, Sequence[Values]]
) -> Iterator[Path]:
    """Yield what syncd reads and writes, but for its feeds."""
    yield path
    secrets = [tables["billetweb"].get("key_file"), *(each.get("secret_file") for each in lists["webhooks"])]
    yield from (path.parent / each for each in secrets if each)
    if "socket" in tables["control"]:
        yield tables["control"]["socket"]
    others = (each.get("database", "") for each in lists["publish"])
    for url in (tables["database"].get("url", ""), *others):
        if url.startswith("sqlite:"):
            yield from (Path(url.removeprefix("sqlite:///") + end) for end in OF_A_DATABASE)


def check_columns(rows: Iterable[Values], problems: Problems) -> None:
    """Refuse a column of theirs with two parts: one that finds or spares a row is not written."""
    for number, values in enumerate(rows, 1):
        parts: dict[str, str] = {}
        for key in ("match", "set", "unless", "touch"):
            named = values.get(key) or ()
            with problems.of(f"publish[{number}]", key):
                for each in [named] if isinstance(named, str) else named:
                    if each in parts:
                        raise ValueError(f'"{each}" is the column of publish.{parts[each]} already')
                    parts[each] = key


def check_kinds(rows: Iterable[Values], sync: Values, problems: Problems) -> None:
    """Refuse to tell an endpoint of orders that nobody reads."""
    for number, values in enumerate(rows, 1):
        orders = [each for each in values.get("on", ()) if each.startswith("order.")]
        with problems.of(f"webhooks[{number}]", "on"):
            if orders and sync.get("attendees") == "none":
                raise ValueError(f'{orders[0]} is told only where sync.attendees is "minimal" or "full"')
