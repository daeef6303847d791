"""The lock's file, in a folder where somebody else may have put something in its place."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import short_folder

from syncd.control.server import ControlServer
from syncd.database.engine import Database
from syncd.database.lock import FileLock
from syncd.errors import AlreadyRunning, ConfigError, StoreError

PRECIOUS = "a letter of somebody's\n"
NOBODY = 65534


def symbolic_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def link_of_a_link(path: Path, precious: Path) -> None:
    step = path.with_name(path.name + ".step")
    step.symlink_to(precious)
    path.symlink_to(step)


def hard_link(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def the_file_itself(path: Path, precious: Path) -> None:
    path.write_text(precious.read_text())


def link_to_nothing(path: Path, precious: Path) -> None:
    path.symlink_to(precious.with_name("made"))


def pipe(path: Path, _precious: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _precious: Path) -> None:
    path.mkdir()


WAYS = [symbolic_link, link_of_a_link, hard_link, the_file_itself, link_to_nothing, pipe, folder]


@pytest.mark.parametrize(
    ("put", "content"),
    [(put, PRECIOUS) for put in WAYS] + [(put, "42\n") for put in (symbolic_link, hard_link)],
)
def test_a_lock_writes_into_somebodys_file(
    tmp_path: Path, put: Callable[[Path, Path], None], content: str
) -> None:
    """Database and socket are refused with the reason, and what is there stays as it is."""
    precious = tmp_path / "letter"
    precious.write_text(content)
    before = precious.read_bytes()
    for name in ("syncd.db.lock", "s.lock"):
        put(tmp_path / name, precious)
    with pytest.raises(StoreError, match="cannot lock the database"):
        Database(f"sqlite:///{tmp_path}/syncd.db").open()
    with pytest.raises(ConfigError, match="cannot make"):
        ControlServer(tmp_path / "s", mode=0o660, group=None)
    assert precious.read_bytes() == before
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "syncd.db").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away, and become another user")
def test_a_lock_empties_a_file_of_another_user() -> None:
    """A file that is not the user's own is none of its locks, though it may be written."""
    with short_folder() as folder:
        folder.chmod(0o777)
        _is_not_taken(folder / "lock")


def _is_not_taken(path: Path) -> None:
    path.write_text("1\n")
    path.chmod(0o666)
    script = (
        "import os, sys; from pathlib import Path; from syncd.database.lock import FileLock;"
        f"os.setuid({NOBODY}); FileLock(Path(sys.argv[1]), 'it').acquire()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert "is there and no lock of this user's" in done.stderr
    assert path.read_text() == "1\n"


def test_two_hold_a_lock_whose_file_was_removed(tmp_path: Path) -> None:
    """Whoever holds a file that nobody finds any more knows; whoever comes next gets one that is found."""
    path = tmp_path / "lock"
    first, second = FileLock(path, "it"), FileLock(path, "it")
    assert not first.is_held
    first.acquire()
    assert first.is_held
    path.unlink()
    assert not first.is_held
    second.acquire()
    assert second.is_held
    assert not first.is_held
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
        FileLock(path, "it").acquire()
    second.release()
    first.release()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_lock_is_open_to_all(tmp_path: Path, umask: int) -> None:
    """Its file is the user's alone, whatever the umask."""
    path = tmp_path / "lock"
    before = os.umask(umask)
    try:
        lock = FileLock(path, "it")
        lock.acquire()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    lock.release()
