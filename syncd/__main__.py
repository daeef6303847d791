"""The entry point of `syncd`, also as `python -m syncd`."""

import gc
import signal
import sys
from collections.abc import Callable


def load() -> Callable[[], int]:
    """Import the program, and return its main function."""
    gc.disable()  # imported objects stay: collecting among them took a fifth of a start's time
    from syncd.cli.main import main as run  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run


def main() -> int:
    """Run the program; return its exit code."""
    lasts = sys.argv[1:2] in (["run"], ["demo"])  # these run until stopped: a stop is always a clean end
    if lasts:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = load()()
    except KeyboardInterrupt:  # before there was anything to stop: `once` has done nothing yet
        return 0 if lasts else 130
    from syncd.daemon.signals import hear_no_more  # noqa: PLC0415

    hear_no_more()  # the exit code is settled while Python shuts down
    return code


if __name__ == "__main__":
    sys.exit(main())
