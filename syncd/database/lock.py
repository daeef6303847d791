"""A lock that dies with its process: the way in which a second syncd finds out that it is one too many."""

import fcntl
import os
from pathlib import Path

from syncd.errors import AlreadyRunning


class FileLock:
    """An exclusive flock on a file of its own, which stays: removing it would let two holders in."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise AlreadyRunning with the holder's process id; OSError as open(2)."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            holder = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyRunning(f"another syncd (process {holder}) holds {self._what}") from None
        except OSError:  # of a full disk, say: left open, the next attempt would meet its own lock
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Let it go; does nothing where it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # a thread that gives up on a stop may come here too
            os.close(fd)
