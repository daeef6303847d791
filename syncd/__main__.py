"""The start of `syncd`, which is `python -m syncd` too."""

import gc
import signal
import sys
from collections.abc import Callable


def load() -> Callable[[], int]:
    """Import the program, and return what runs it."""
    gc.disable()  # what is imported stays: to look for garbage in it took a fifth of the time of a start
    from syncd.cli.main import main as run  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run


def main() -> int:
    """Run the program; return its exit code."""
    lasts = sys.argv[1:2] in (["run"], ["demo"])  # until it is stopped: that is a clean end from the start
    if lasts:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = load()()
    except KeyboardInterrupt:
        return 0 if lasts else 130
    from syncd.daemon.signals import hear_no_more  # noqa: PLC0415

    hear_no_more()  # what it ended with is settled, while Python takes itself down
    return code


if __name__ == "__main__":
    sys.exit(main())
