"""The start of `syncd`, which is `python -m syncd` too."""

import gc
import sys


def main() -> int:
    """Import the program and run it; return its exit code."""
    gc.disable()  # what is imported stays: to look for garbage in it took a fifth of the time of a start
    from syncd.cli.main import main as run  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
