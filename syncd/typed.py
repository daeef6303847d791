"""What a person types next, as it works where they are."""

import shlex
import shutil
import sys
from pathlib import Path

from syncd.config import ControlConfig
from syncd.toml import USUAL


def program(name: str) -> str:
    """Return how `syncd` or `syncctl` is typed: by its path, where it is not found by its name."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    is_found = not beside.is_file() or shutil.which(name) == str(beside)
    return name if is_found else shlex.quote(str(beside))


def syncd(command: str, path: Path) -> str:
    """Return how a command of `syncd` is typed for the configuration at a path."""
    return f"{program('syncd')} {command} --config {shlex.quote(f'{path}')}"


def syncctl(command: str, socket: Path) -> str:
    """Return how a command of `syncctl` is typed for the daemon on a socket."""
    named = "" if socket == ControlConfig().socket else f" --socket {shlex.quote(f'{socket}')}"
    return f"{program('syncctl')}{named} {command}"


def unit(path: Path) -> str | None:
    """Return the unit that reads the configuration at a path; None: a person runs syncd as themselves."""
    if path.parent != USUAL.parent or path.suffix != ".toml":
        return None
    return "syncd" if path == USUAL else f"syncd@{path.stem}"
