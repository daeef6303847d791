"""A lock that dies with its process: the way in which a second syncd finds out that it is one too many."""

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from syncd.errors import AlreadyRunning

ATTEMPTS = 10
"""So often the file may be replaced between opening and locking it: once is chance, ten times is no lock."""
NUMBER = re.compile(rb"[0-9]{0,20}\n?")
"""What a lock's file holds: the process id of its latest holder, or nothing yet."""


class FileLock:
    """An exclusive flock on a file of its own, which stays: removing it would let two holders in.

    Whoever may write into the folder may put something else there: a link is not followed, and a file that
    is somebody else's, has another name too, or holds more than a process id, is left as it is. `what` it
    guards is named in the refusal.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise AlreadyRunning with the holder's process id; OSError as open(2)."""
        for _ in range(ATTEMPTS):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._take(fd)
                is_there = _is_at(fd, self._path)
            except BaseException:  # of a full disk, say: left open, the next attempt would meet its own lock
                os.close(fd)
                raise
            if is_there:
                self._fd = fd
                return
            os.close(fd)
        raise OSError(errno.EAGAIN, f"{self._path} is replaced again and again")

    def _take(self, fd: int) -> None:
        found = os.fstat(fd)
        is_ours = os.geteuid() in (0, found.st_uid)  # root may be anybody: `sudo syncd once`
        content = os.read(fd, 32) if stat.S_ISREG(found.st_mode) else b"none"
        if not is_ours or found.st_nlink > 1 or not NUMBER.fullmatch(content):
            raise OSError(errno.EPERM, f"{self._path} is there and no lock of this user's; remove it")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = content.decode().strip() or "unknown"
            raise AlreadyRunning(f"another syncd (process {holder}) holds {self._what}") from None
        if found.st_uid == 0:
            give_to_folder(fd, self._path.parent)
        os.fchmod(fd, 0o600)  # which a umask may have kept from being so
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def is_held(self) -> bool:
        """Whether the lock is held, by the file that whoever comes next would find."""
        return self._fd is not None and _is_at(self._fd, self._path)

    def release(self) -> None:
        """Let it go; does nothing where it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # a thread that gives up on a stop may come here too
            os.close(fd)


def give_to_folder(fd: int, folder: Path) -> None:
    """Have a file that root opened belong to the owner of its folder: the daemon may be another user.

    So does SQLite with the files that it makes beside a database.
    """
    owner = folder.stat()
    if os.geteuid() == 0 != owner.st_uid:
        with suppress(OSError):  # where root may not do so, it is as it was
            os.fchown(fd, owner.st_uid, owner.st_gid)


def identity(path: Path, *, follow_links: bool = True) -> tuple[int, int] | None:
    """Return which file is at a path, None where none can be found."""
    try:
        found = path.stat(follow_symlinks=follow_links)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_at(fd: int, path: Path) -> bool:
    """Tell whether a path still leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False
