"""A lock that ends with its process, by which a second syncd finds that another one runs."""

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from syncd.errors import AlreadyRunning

ATTEMPTS = 10
"""How often the file may be replaced between opening and locking: once is chance, ten times is no lock."""
NUMBER = re.compile(rb"[0-9]{0,20}\n?")
"""The content of a lock file: the process id of its latest holder, or nothing yet."""


class FileLock:
    """An exclusive flock on a file of its own, which is kept: removing it would allow two holders.

    Others who may write to the folder may put something else there: a link is not followed, and a file that
    belongs to somebody else, has another name too, or holds more than a process id, is left unchanged. The
    refusal names `what` is locked.
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
            except BaseException:  # a full disk, say: if left open, the next attempt would meet its own lock
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
        os.fchmod(fd, 0o600)  # a umask may have restricted it more
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def is_held(self) -> bool:
        """Whether the lock is held, on the file that the next process would find."""
        return self._fd is not None and _is_at(self._fd, self._path)

    def release(self) -> None:
        """Release it; does nothing if it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # a thread that gives up on a stop may come here too
            os.close(fd)


def give_to_folder(fd: int, folder: Path) -> None:
    """Give a file that root opened to the owner of its folder: the daemon may be another user.

    SQLite does the same with the files that it creates beside a database.
    """
    owner = folder.stat()
    if os.geteuid() == 0 != owner.st_uid:
        with suppress(OSError):  # if root may not do so, the owner stays
            os.fchown(fd, owner.st_uid, owner.st_gid)


def identity(path: Path, *, follow_links: bool = True) -> tuple[int, int] | None:
    """Return the identity of the file at a path, None if none can be found."""
    try:
        found = path.stat(follow_symlinks=follow_links)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_at(fd: int, path: Path) -> bool:
    """Return whether a path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False
