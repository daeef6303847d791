"""The entry point of `syncctl`, also as `python -m syncd.ctl`."""

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
        os.kill(os.getpid(), signal.SIGINT)  # the signal itself also stops a shell's loop
        return 130


if __name__ == "__main__":
    sys.exit(main())
