"""Socket activation, by real processes that find the socket of another where systemd would pass it on."""

import http.client
import signal
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import (
    PATIENCE_S,
    SOCKET_ACTIVATED,
    SYNCD,
    DaemonProcess,
    Tables,
    environment,
    write_config,
)
from support.real_databases import locked

pytestmark = pytest.mark.sqlite_only("about sockets")
MORE = pytest.mark.slow("each starts a process, and one of the sort is always tried")
NO_RUN: Tables = {"sync": {"run_on_start": False}}
_CHILD = """
import os, subprocess
from syncd.daemon.activation import inherited_socket
found = inherited_socket(os.environ)
if found:
    print(found.getsockname(), flush=True)
subprocess.run(["sh", "-c", "env; ls -l /proc/self/fd"], close_fds=False)
"""


@pytest.fixture
def listening(home: Path) -> Iterator[socket.socket]:
    """Listen at the path of the settings' socket, with a mode that is not theirs."""
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(home / "syncd.sock"))
        (home / "syncd.sock").chmod(0o600)
        found.listen()
        yield found


def look(path: Path) -> tuple[int, int, int, str]:
    """Return what must not change: which file it is, whose, and its mode."""
    seen = path.lstat()
    return seen.st_ino, seen.st_uid, seen.st_gid, stat.filemode(seen.st_mode)


def asked(path: Path) -> socket.socket:
    """Return a connection on which the status has been asked for."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    connection.sendall(b"GET /v1/status HTTP/1.0\r\n\r\n")
    return connection


def activated(given: socket.socket, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Return a finished `syncd` that was passed a socket."""
    return passed_to(given, *SYNCD, *arguments, **environ)


def passed_to(given: socket.socket, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Return a finished program that was passed a socket as systemd does it."""
    return subprocess.run(
        [*SOCKET_ACTIVATED, *command],
        env=environment(**environ),
        stdin=given.fileno(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# --- serving it


@pytest.mark.slow("waits for the look at the socket")
def test_socket_of_systemd_is_made_anew_or_removed(
    home: Path, base_url: str, listening: socket.socket
) -> None:
    """The daemon serves on the very socket it was given, leaves it as it was, and makes no other."""
    before = look(home / "syncd.sock")
    elsewhere: Tables = {**NO_RUN, "control": {"socket": f"{home}/other.sock"}}
    for tables in (NO_RUN, elsewhere):
        with DaemonProcess(home, base_url, tables, listening=listening) as daemon:
            assert daemon.status()["pid"] == daemon.pid
            assert look(home / "syncd.sock") == before
            assert not (home / "other.sock").exists()
            assert f"answers on {home}/syncd.sock" in daemon.log
            assert daemon.stop() == 0
        assert look(home / "syncd.sock") == before
    assert "WARNING" not in daemon.log


@MORE
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=MORE)])
def test_client_during_restart_is_refused(
    home: Path, base_url: str, listening: socket.socket, number: signal.Signals
) -> None:
    """Who connects before a daemon is there, or between two, waits and gets the next one's answer."""
    with asked(home / "syncd.sock") as early:
        with DaemonProcess(home, base_url, NO_RUN, listening=listening) as daemon:
            assert b"200 OK" in early.recv(100)
            daemon.process.send_signal(number)
            daemon.process.wait(PATIENCE_S)
        with (
            asked(home / "syncd.sock") as late,
            DaemonProcess(home, base_url, NO_RUN, listening=listening) as successor,
        ):
            answer = http.client.HTTPResponse(late)
            answer.begin()
            assert f'"pid":{successor.pid},'.encode() in answer.read()


@pytest.mark.slow("starts several processes")
def test_failed_start_removes_socket_of_systemd(home: Path, base_url: str, listening: socket.socket) -> None:
    """A start that is refused, since another daemon holds the database, leaves the socket in place."""
    before = look(home / "syncd.sock")
    with DaemonProcess(home, base_url, {**NO_RUN, "control": {"socket": f"{home}/own.sock"}}):
        done = activated(listening, "run", "--config", str(write_config(home, base_url, NO_RUN)))
        assert done.returncode == 75, done.stderr
        assert look(home / "syncd.sock") == before


@MORE
def test_second_signal_removes_socket_of_systemd(home: Path, base_url: str, listening: socket.socket) -> None:
    """A stop cut short leaves the socket in place."""
    before = look(home / "syncd.sock")
    with (
        DaemonProcess(home, base_url, NO_RUN, listening=listening) as daemon,
        locked(daemon.database),
    ):
        daemon.ask("POST", "/v1/runs", {})
        daemon.process.send_signal(signal.SIGTERM)
        daemon.told("STOPPING=1")
        daemon.stop()
    assert "ending at once: a second signal" in daemon.log
    assert look(home / "syncd.sock") == before


@pytest.mark.parametrize(
    "variables",
    [
        {"LISTEN_PID": "1"},
        *(pytest.param(odd, marks=MORE) for odd in ({"LISTEN_PID": ""}, {"LISTEN_FDS": "0"})),
    ],
)
@MORE
def test_socket_of_another_process_is_served(
    home: Path, base_url: str, listening: socket.socket, variables: dict[str, str]
) -> None:
    """Variables that are meant for another process, or count no socket, are ignored: it makes its own."""
    tables: Tables = {**NO_RUN, "control": {"socket": f"{home}/own.sock"}}
    with DaemonProcess(home, base_url, tables, listening=listening, environ=variables) as daemon:
        daemon.socket = home / "own.sock"
        assert daemon.status()["pid"] == daemon.pid
        assert daemon.stop() == 0
    assert not (home / "own.sock").exists()


# --- what is refused


def unix(kind: socket.SocketKind, *, listens: bool) -> Callable[[Path], socket.socket]:
    def make(home: Path) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(str(home / "given"))
        if listens:
            made.listen()
        return made

    return make


def abstract(_home: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"\0syncd-test-{uuid.uuid4()}")
    made.listen()
    return made


def tcp(_home: Path) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


NOT_ONE_THAT_LISTENS = "systemd passed no Unix socket that listens: see ListenStream= in syncd.socket"


@pytest.mark.parametrize(
    ("make", "count", "problem"),
    [
        pytest.param(
            unix(socket.SOCK_STREAM, listens=True),
            "2",
            "systemd passed 2 sockets: syncd.socket must have one ListenStream=",
            id="two",
        ),
        pytest.param(unix(socket.SOCK_DGRAM, listens=False), "1", NOT_ONE_THAT_LISTENS, id="datagram"),
        pytest.param(
            unix(socket.SOCK_SEQPACKET, listens=True), "1", NOT_ONE_THAT_LISTENS, id="packets", marks=MORE
        ),
        pytest.param(
            unix(socket.SOCK_STREAM, listens=False), "1", NOT_ONE_THAT_LISTENS, id="deaf", marks=MORE
        ),
        pytest.param(tcp, "1", NOT_ONE_THAT_LISTENS, id="tcp", marks=MORE),
        pytest.param(abstract, "1", NOT_ONE_THAT_LISTENS, id="abstract", marks=MORE),
    ],
)
def test_socket_of_a_wrong_kind_is_served(
    home: Path, base_url: str, make: Callable[[Path], socket.socket], count: str, problem: str
) -> None:
    """Two sockets, a datagram one, one on the network and one that does not listen end the start with 78."""
    config = write_config(home, base_url, NO_RUN)
    with make(home) as given:
        done = activated(given, "run", "--config", str(config), LISTEN_FDS=count)
    assert done.returncode == 78, done.stderr
    assert next(line for line in done.stderr.splitlines() if "CRITICAL" in line).endswith(problem)
    assert not (home / "syncd.db").exists()


def test_bad_configuration_is_started_again_for_each_who_waits(
    home: Path, base_url: str, listening: socket.socket
) -> None:
    """Whoever waits on the socket is hung up on: systemd would start it for them again and again."""
    config = write_config(home, base_url, {"sync": {"interval": "5s"}})
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in waiting:
        client.settimeout(PATIENCE_S)
        client.connect(f"{home}/syncd.sock")
    assert activated(listening, "run", "--config", str(config)).returncode == 78
    assert [client.recv(1) for client in waiting] == [b""] * 3
    for client in waiting:
        client.close()


@MORE
def test_missing_psycopg_is_a_crash_that_is_tried_again(
    home: Path, base_url: str, listening: socket.socket
) -> None:
    """What is found wrong once it serves ends the start with 78 too, and whoever waits is hung up on."""
    config = write_config(home, base_url, {"database": {"url": "postgresql:///mirror"}})
    hidden = "import sys; sys.modules['psycopg'] = None; from syncd.cli import main; sys.exit(main.main())"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(f"{home}/syncd.sock")
        done = passed_to(listening, sys.executable, "-c", hidden, "run", "--config", str(config))
        assert done.returncode == 78, done.stderr
        assert "PostgreSQL needs psycopg" in done.stderr
        assert client.recv(1) == b""


# --- what is passed on


@pytest.mark.parametrize("pid", [None, "1"])
def test_child_takes_the_socket_for_its_own(home: Path, listening: socket.socket, pid: str | None) -> None:
    """Neither the variables, whomever they are for, nor the socket reach a program that syncd starts."""
    more = {"LISTEN_FDNAMES": "syncd.socket"} | ({"LISTEN_PID": pid} if pid else {})
    done = passed_to(listening, sys.executable, "-c", _CHILD, **more)
    assert done.returncode == 0, done.stderr
    assert "PATH=" in done.stdout
    assert "LISTEN_" not in done.stdout
    if not pid:
        assert done.stdout.startswith(f"{home}/syncd.sock\n")
        assert "socket:[" not in done.stdout
