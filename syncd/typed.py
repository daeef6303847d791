"""What a person types next, as it works where they are. Imports nothing of syncd."""

import shlex
import shutil
import sys
from pathlib import Path

USUAL = Path("/etc/syncd/config.toml")
"""The configuration that the service reads, and whoever names no other."""
USUAL_SOCKET = Path("/run/syncd/syncd.sock")
"""Where the service answers, and whom `syncctl` asks that is told of no other."""


def program(name: str) -> str:
    """Return how `syncd` or `syncctl` is typed: by its path, where it is not found by its name."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    is_found = not beside.is_file() or shutil.which(name) == str(beside)
    return name if is_found else shlex.quote(str(beside))


def syncd(command: str, path: Path) -> str:
    """Return how a command of `syncd` is typed for the configuration at a path."""
    named = "" if path == USUAL else f" --config {shlex.quote(f'{path}')}"
    return f"{program('syncd')} {command}{named}"


def syncctl(command: str, socket: Path) -> str:
    """Return how a command of `syncctl` is typed for the daemon on a socket."""
    named = "" if socket == USUAL_SOCKET else f" --socket {shlex.quote(f'{socket}')}"
    return f"{program('syncctl')}{named} {command}"


def unit(path: Path) -> str | None:
    """Return the unit that reads the configuration at a path; None: a person runs syncd as themselves."""
    if path.parent != USUAL.parent or path.suffix != ".toml":
        return None
    return "syncd" if path == USUAL else f"syncd@{path.stem}"
