"""The start of `syncd`, which is `python -m syncd` too."""

import gc
import sys
from collections.abc import Callable

GARBAGE_AFTER = 10_000, 20, 50
"""After so many new objects, rounds, and rounds of rounds, cycles are looked for. Rows come by the thousand
and hold none: with Python's own 700, 10, 10 the search took a tenth of the time of a first import."""


def load() -> Callable[[], int]:
    """Import the program, and return what runs it."""
    gc.disable()  # what is imported stays: to look for garbage in it took a fifth of the time of a start
    from syncd.cli.main import main as run  # noqa: PLC0415

    gc.freeze()
    gc.set_threshold(*GARBAGE_AFTER)
    gc.enable()
    return run


def main() -> int:
    """Run the program; return its exit code."""
    return load()()


if __name__ == "__main__":
    sys.exit(main())
