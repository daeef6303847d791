"""A file for node_exporter's textfile collector, which may read it at any moment."""

import contextlib
import os
import tempfile
from pathlib import Path

MODE = 0o644
"""The collector is another user."""


def replace(path: str, content: bytes) -> None:
    """Replace a file in one step: nobody sees half of it. Raises OSError; then the old one stays.

    Only a regular file is replaced: a mistake like /dev/null would cost root the device.
    """
    at = Path(path)
    if at.is_symlink() or (at.exists() and not at.is_file()):
        raise OSError(0, "it is no regular file")
    # The collector reads only names that end in .prom: not this one.
    number, name = tempfile.mkstemp(prefix=f".{at.name}.", dir=at.parent)
    beside = Path(name)
    try:
        with open(number, "wb") as file:  # noqa: PTH123 - of what is open
            file.write(content)
            os.fchmod(number, MODE)  # whatever the umask
        beside.replace(at)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
