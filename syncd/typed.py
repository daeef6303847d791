"""The commands that a person types next, as they work where they are. Imports nothing of syncd."""

import os
import pwd
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
    return f"{program('syncd')} {command}{_option('--config', path, USUAL, 'SYNCD_CONFIG')}"


def syncctl(command: str, socket: Path) -> str:
    """Return how to type a command of `syncctl` for the daemon on a socket."""
    return f"{program('syncctl')}{_option('--socket', socket, USUAL_SOCKET, 'SYNCD_SOCKET')} {command}"


def _option(name: str, path: Path, usual: Path, variable: str) -> str:
    """Return the option that names a path, empty if that is found without it."""
    is_found = path == usual and not os.environ.get(variable)  # else the variable names another one
    return "" if is_found else f" {name} {shlex.quote(f'{path}')}"


def user() -> str | None:
    """Return the name of the user that this process is, None for one without a name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def unit(path: Path) -> str | None:
    """Return the unit that reads the configuration at a path, None if no unit does."""
    if path.parent != USUAL.parent or path.suffix != ".toml":
        return None
    return "syncd" if path == USUAL else f"syncd@{path.stem}"
