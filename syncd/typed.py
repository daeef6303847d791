"""The commands that a person types next, as they work where they are. Imports nothing of syncd."""

import shlex
import shutil
import sys
from pathlib import Path

USUAL = Path("/etc/syncd/config.toml")
"""The configuration that the service reads, and whoever names no other."""
USUAL_SOCKET = Path("/run/syncd/syncd.sock")
"""Where the service answers, and whom `syncctl` asks that is told of no other."""


def program(name: str) -> str:
    """Return how to type `syncd` or `syncctl`: by its path if it is not found by its name."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    is_found = not beside.is_file() or shutil.which(name) == str(beside)
    return name if is_found else shlex.quote(str(beside))


def syncd(command: str, path: Path) -> str:
    """Return how to type a command of `syncd` for the configuration at a path."""
    named = "" if path == USUAL else f" --config {shlex.quote(f'{path}')}"
    return f"{program('syncd')} {command}{named}"


def syncctl(command: str, socket: Path) -> str:
    """Return how to type a command of `syncctl` for the daemon on a socket."""
    named = "" if socket == USUAL_SOCKET else f" --socket {shlex.quote(f'{socket}')}"
    return f"{program('syncctl')}{named} {command}"


def unit(path: Path) -> str | None:
    """Return the unit that reads the configuration at a path, None if no unit does."""
    if path.parent != USUAL.parent or path.suffix != ".toml":
        return None
    return "syncd" if path == USUAL else f"syncd@{path.stem}"
