"""What a person types next, as it works where they are."""

import shlex
import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """Return how `syncd` or `syncctl` is typed: by its path, where it is not found by its name."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    is_found = not beside.is_file() or shutil.which(name) == str(beside)
    return name if is_found else shlex.quote(str(beside))
