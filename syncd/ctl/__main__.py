"""The start of `syncctl`, which is `python -m syncd.ctl` too."""

import sys


def main() -> int:
    """Run the program; return its exit code."""
    try:
        from syncd.ctl.main import main as run  # noqa: PLC0415 - Ctrl-C meanwhile is no traceback

        return run()
    except KeyboardInterrupt:
        import os  # noqa: PLC0415
        import signal  # noqa: PLC0415 - loads enum, which no other way needs

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # by the signal itself, which stops a shell's loop too
        return 130


if __name__ == "__main__":
    sys.exit(main())
