"""The other units: a socket that systemd holds, two accounts on one machine, runs by a timer, lost keys."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import (
    CONFIG,
    DATABASE,
    GOOD,
    KEY,
    KEY_FILE,
    PROJECT,
    SOCKET,
    Json,
    configured,
    cursor,
    eventually,
    follow,
    graver,
    journal,
    make_user,
    pid,
    query,
    run,
    run_as,
    shown,
    status,
    systemctl,
)

UNITS = Path("/etc/systemd/system")
VARIANTS = ["syncd.socket", "syncd@.service", "syncd-once.service", "syncd-once.timer"]
README = (PROJECT / "systemd/README.md").read_text("utf-8")
(PLACING,) = re.findall(r"^install .* systemd/UNIT .*", README, re.MULTILINE)
TMPFILES = Path("/usr/lib/tmpfiles.d/syncd.conf")
QUIET = configured(GOOD, run_on_start="false")
"""Runs are few: these tests start syncd often, and it keeps to its limit of requests over all of them."""


@pytest.fixture(scope="module", autouse=True)
def variants() -> Iterator[None]:
    """Install the other units as systemd/README.md says; in the end, take them away again."""
    make_user("marie", "syncd")
    make_user("eve")
    before = CONFIG.read_text()
    CONFIG.write_text(QUIET)
    for name in VARIANTS:
        follow(PLACING.replace("UNIT", name))
    yield
    for name in VARIANTS:
        (UNITS / name).unlink()
    CONFIG.write_text(before)
    systemctl("daemon-reload")
    systemctl("reset-failed")
    systemctl("restart", "syncd")


@pytest.fixture(autouse=True)
def starts_forgotten() -> None:
    """Let no test count towards the limit of starts of the next."""
    systemctl("reset-failed")


def drop_in(unit: str, text: str) -> None:
    """Add lines to a unit until `take_back`."""
    folder = Path("/run/systemd/system", f"{unit}.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text(text)
    systemctl("daemon-reload")


def take_back(unit: str) -> None:
    """Remove the lines that were added."""
    shutil.rmtree(Path("/run/systemd/system", f"{unit}.d"))
    systemctl("daemon-reload")


def advised(unit: str) -> str:
    """Return the command line that a unit's first lines say to use it with."""
    text = (PROJECT / "systemd" / unit).read_text("utf-8")
    (line,) = re.findall(r"^#.*: (systemctl .*enable --now .*)", text, re.MULTILINE)
    return str(line)


def stat(path: Path) -> str:
    """Return a path's owner, group and mode."""
    return run("stat", "--format=%U:%G %a", str(path)).stdout.strip()


def same(path: Path) -> tuple[int, int]:
    """Return what is another if a path is made anew or written to."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns


def seen_by(unit: str) -> Path:
    """Return the root folder as the process of a unit sees it."""
    return Path("/proc", shown("MainPID", unit), "root")


# --- the socket


@pytest.fixture
def held_socket() -> Iterator[None]:
    """Give a service whose socket systemd holds; in the end, one without."""
    systemctl("stop", "syncd")
    systemctl("start", "syncd.socket", "syncd.service")
    yield
    systemctl("stop", "syncd.socket", "syncd.service")
    systemctl("start", "syncd")


def test_advice_for_socket_fails_where_syncd_runs() -> None:
    """What the socket's first lines advise works on a machine on which syncd is running already."""
    systemctl("start", "syncd")
    try:
        run("bash", "-e", "-c", advised("syncd.socket"))
        for unit in ("syncd.socket", "syncd.service"):
            assert (shown("ActiveState", unit), shown("UnitFileState", unit)) == ("active", "enabled")
    finally:
        systemctl("disable", "--now", "syncd.socket")
        systemctl("restart", "syncd")


@pytest.mark.usefixtures("held_socket")
def test_daemon_makes_socket_of_its_own() -> None:
    """It serves the one that was there before it, leaves it at each stop, and complains of nothing."""
    end, before = cursor(), same(SOCKET)
    assert status()["pid"] == pid()
    systemctl("restart", "syncd")
    assert status()["pid"] == pid()
    systemctl("stop", "syncd")
    assert same(SOCKET) == before
    assert (shown("Result"), shown("ActiveState", "syncd.socket")) == ("success", "active")
    assert graver(journal(end)) == []


@pytest.mark.usefixtures("held_socket")
def test_socket_is_open_to_others_or_closed_to_group() -> None:
    """Owner and mode are as those of a socket of syncd's own, and so is who may use it."""
    assert stat(SOCKET) == "syncd:syncd 660"
    assert run_as("marie", "syncctl", "status").returncode == 0
    assert run_as("eve", "syncctl", "status").returncode == 4


@pytest.mark.usefixtures("held_socket")
def test_question_does_not_start_it() -> None:
    """With the service stopped, whoever asks for the status starts it and gets the answer."""
    systemctl("stop", "syncd")
    answer: Json = json.loads(run_as("marie", "syncctl", "status", "--json").stdout)
    assert answer["pid"] == pid()


@pytest.mark.usefixtures("held_socket")
def test_question_during_restart_is_lost() -> None:
    """Who asks when the old process is gone and the new one not there yet hears from the new one."""
    drop_in("syncd.service", "[Service]\nExecStartPre=sleep 2\n")
    try:
        before = pid()
        systemctl("restart", "--no-block", "syncd")
        eventually(lambda: shown("SubState") == "start-pre")
        answer: Json = json.loads(run("syncctl", "status", "--json").stdout)
        assert answer["pid"] == pid() != before
    finally:
        take_back("syncd.service")


@pytest.mark.usefixtures("held_socket")
def test_question_without_key_starts_it_again_and_again() -> None:
    """Where syncd cannot run, one who asks is told so at once, and starts it once; the socket stays."""
    systemctl("stop", "syncd")
    end = cursor()
    KEY_FILE.rename(KEY_FILE.with_suffix(".away"))
    try:
        assert run("syncctl", "status", check=False).returncode == 3
        eventually(lambda: shown("ActiveState") == "failed")
        assert len(graver(journal(end))) == 1
        assert shown("ActiveState", "syncd.socket") == "active"
    finally:
        KEY_FILE.with_suffix(".away").rename(KEY_FILE)
    run("syncctl", "status")


@pytest.mark.usefixtures("held_socket")
def test_daemon_outlasts_its_socket() -> None:
    """With the socket's unit syncd stops too, and nobody finds a socket that would not answer."""
    systemctl("stop", "syncd.socket")
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert not SOCKET.exists()


# --- several accounts


def socket_of(name: str) -> Path:
    return SOCKET.parent / name / SOCKET.name


def database_of(name: str) -> Path:
    return DATABASE.parent / name / DATABASE.name


def settings_of(name: str, database: Path, socket: Path) -> None:
    """Write the settings of an instance."""
    CONFIG.with_name(f"{name}.toml").write_text(
        QUIET.replace(str(DATABASE), str(database)).replace(str(SOCKET), str(socket))
    )


def key_of(name: str) -> Path:
    return KEY_FILE.parent / name / KEY_FILE.name


@pytest.fixture
def accounts() -> Iterator[None]:
    """Give two instances beside the service, set up as the unit's first lines say."""
    systemctl("start", "syncd")
    for name in ("a", "b"):
        settings_of(name, database_of(name), socket_of(name))
        key_of(name).parent.mkdir(mode=0o700)
        key_of(name).touch(mode=0o600)
        key_of(name).write_text(f"{KEY}\n")
    systemctl("start", "syncd@a", "syncd@b")
    yield
    systemctl("stop", "syncd@a", "syncd@b")
    for name in ("a", "b"):
        for folder in (socket_of(name).parent, database_of(name).parent, key_of(name).parent):
            shutil.rmtree(folder)
        CONFIG.with_name(f"{name}.toml").unlink()


@pytest.mark.usefixtures("accounts")
def test_accounts_mix() -> None:
    """Each has its own process, database and socket, is reloaded on its own, and sees its own key only."""
    before = {path: same(path) for path in (socket_of("b"), SOCKET)}
    pids = {shown("MainPID", unit) for unit in ("syncd", "syncd@a", "syncd@b")}
    assert len(pids - {"0"}) == 3
    for name in ("a", "b"):
        run("syncctl", "--socket", str(socket_of(name)), "run-now")
        asked = run("syncctl", "--socket", str(socket_of(name)), "status", "--json")
        answer: Json = json.loads(asked.stdout)
        assert str(answer["pid"]) == shown("MainPID", f"syncd@{name}")
        assert (answer["health"], answer["events_live"]) == ("ok", 3)
        assert answer["database"].endswith(f":///{database_of(name)}")
        assert stat(database_of(name).parent) == "syncd:syncd 750"
        seen = seen_by(f"syncd@{name}") / "run/credentials"
        assert [folder.name for folder in seen.iterdir()] == [f"syncd@{name}.service"]
        systemctl("reload", f"syncd@{name}")
    assert len(list(Path("/run/credentials").glob("syncd*.service"))) == 3
    systemctl("stop", "syncd@a")
    assert {path: same(path) for path in before} == before
    assert {shown("MainPID", unit) for unit in ("syncd", "syncd@b")} < pids


def files_of_others() -> dict[Path, tuple[int, int]]:
    """Return the files of the service and of the instance a, with what shows that somebody changed them."""
    roots = [DATABASE.parent, SOCKET.parent]
    paths = [path for root in roots for path in root.rglob("*") if root / "b" not in (path, *path.parents)]
    return {path: same(path) for path in paths if not path.is_dir()}


@pytest.mark.parametrize(
    ("other", "stopped"),
    [
        pytest.param(SOCKET, "syncd", id="default-stopped"),
        pytest.param(socket_of("a"), "syncd@b", id="a-in-use"),
    ],
)
@pytest.mark.usefixtures("accounts")
def test_forgotten_socket_line_takes_anothers(other: Path, stopped: str) -> None:
    """With another's socket in its settings an instance ends with 78, says which, and takes nothing."""
    systemctl("stop", "syncd@b", stopped)
    end, before = cursor(), files_of_others()
    settings_of("b", database_of("b"), other)
    assert run("systemctl", "start", "syncd@b", check=False).returncode == 1
    (error,) = graver(journal(end, "_SYSTEMD_UNIT=syncd@b.service"))
    assert error.startswith("control.socket: ")
    assert str(other) in error
    assert (shown("ExecMainStatus", "syncd@b"), shown("ActiveState", "syncd@b")) == ("78", "failed")
    assert files_of_others() == before


@pytest.mark.parametrize("other", [DATABASE, database_of("a")], ids=["default", "a"])
@pytest.mark.usefixtures("accounts")
def test_forgotten_database_line_writes_to_anothers(other: Path) -> None:
    """With another's database in its settings an instance mirrors nothing, says so, and changes nothing."""
    systemctl("stop", "syncd@b")
    end, before = cursor(), files_of_others()
    settings_of("b", other, socket_of("b"))
    run("systemctl", "start", "syncd@b", check=False)
    asked = run("syncctl", "--socket", str(socket_of("b")), "run-now", "--json", check=False)
    assert asked.returncode == 1
    errors = graver(journal(end, "_SYSTEMD_UNIT=syncd@b.service"))
    assert errors
    assert str(other) in errors[0]
    assert files_of_others() == before


# --- one run at a time


def runs() -> list[tuple[int, str, str]]:
    """Return the runs on record."""
    found: list[tuple[int, str, str]] = query("SELECT id, trigger, outcome FROM syncd_runs ORDER BY id")
    return found


def test_once_does_not_run() -> None:
    """With the daemon stopped, the start of the unit is one good run, which is over when it returns."""
    systemctl("stop", "syncd")
    before = runs()
    systemctl("start", "syncd-once")
    ((_, trigger, outcome),) = runs()[len(before) :]
    assert (trigger, outcome) == ("once", "ok")
    assert shown("Result", "syncd-once.service") == "success"


def test_once_meddles_with_daemon() -> None:
    """Beside the daemon it ends with 75, and the daemon's database and process are as before."""
    systemctl("restart", "syncd")
    before = pid(), same(DATABASE), runs()
    assert run("systemctl", "start", "syncd-once", check=False).returncode == 1
    assert shown("ExecMainStatus", "syncd-once.service") == "75"
    assert (pid(), same(DATABASE), runs()) == before
    assert status()["health"] == "ok"


def test_timer_does_not_come_again() -> None:
    """What its first lines advise ends the daemon and begins runs, one at once and more after it."""
    before = len(runs())
    drop_in("syncd-once.timer", "[Timer]\nOnUnitActiveSec=1s\n")
    try:
        run("bash", "-e", "-c", advised("syncd-once.timer"))
        assert shown("ActiveState") == "inactive"
        eventually(lambda: len(runs()) > before + 2)  # so that two are over
        assert {run[1:] for run in runs()[before : before + 2]} == {("once", "ok")}
    finally:
        systemctl("disable", "--now", "syncd-once.timer")
        systemctl("stop", "syncd-once.service")
        take_back("syncd-once.timer")
        systemctl("enable", "--now", "syncd")


# --- keys and folders


def test_key_stays_open() -> None:
    """The folders are made as the service needs them, and keys are root's alone, however they lay there."""
    wanted = {
        SOCKET.parent: "syncd:syncd 755",
        DATABASE.parent: "syncd:syncd 750",
        KEY_FILE.parent: "root:root 700",
        KEY_FILE: "root:root 600",
        key_of("c").parent: "root:root 700",
        key_of("c"): "root:root 600",
    }
    systemctl("stop", "syncd")
    shutil.rmtree(SOCKET.parent)
    key_of("c").parent.mkdir()
    key_of("c").write_text("key")
    for path, mode in {DATABASE.parent: 0o777, KEY_FILE: 0o644, key_of("c"): 0o664}.items():
        path.chmod(mode)
        shutil.chown(path, "eve", "eve")
    for folder in (KEY_FILE.parent, key_of("c").parent):
        folder.chmod(0o755)
    shutil.copy(PROJECT / "systemd/syncd.tmpfiles.conf", TMPFILES)
    try:
        run("systemd-tmpfiles", "--create", str(TMPFILES))
        assert {path: stat(path) for path in wanted} == wanted
    finally:
        TMPFILES.unlink()
        shutil.rmtree(key_of("c").parent)
    systemctl("start", "syncd")


@pytest.mark.parametrize("unit", ["syncd.service", "syncd@c.service", "syncd-once.service"])
def test_missing_key_is_no_clear_error(unit: str) -> None:
    """Without the file, each of the units ends with 78, once, and one line that says what to do."""
    systemctl("stop", "syncd")
    settings_of("c", database_of("c"), socket_of("c"))
    KEY_FILE.rename(KEY_FILE.with_suffix(".away"))
    end = cursor()
    try:
        assert run("systemctl", "start", unit, check=False).returncode == 1
        facts = [shown(name, unit) for name in ("ActiveState", "Result", "ExecMainStatus", "NRestarts")]
        assert facts == ["failed", "exit-code", "78", "0"]
        (error,) = graver(journal(end, f"_SYSTEMD_UNIT={unit}"))
        assert error.startswith("API key: missing: ")
        assert "billetweb-key" in error
    finally:
        KEY_FILE.with_suffix(".away").rename(KEY_FILE)
        CONFIG.with_name("c.toml").unlink()
        for folder in (socket_of("c").parent, database_of("c").parent):
            shutil.rmtree(folder, ignore_errors=True)
