"""Notification of the service manager, by a real datagram socket in its place."""

import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@syncd-test-{uuid.uuid4()}"


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(address.replace("@", "\0"))
        found.settimeout(1)
        yield found


def test_manager_waits_for_readiness(manager: socket.socket, address: str) -> None:
    """Each message is one datagram of the assignments that sd_notify(3) names."""
    notifier = Notifier(address)
    notifier.ready(STATUS="idle, next run at 12:15")
    notifier.status("run 17: 3/8 événements")
    notifier.ready()
    notifier.extend(2.5)
    notifier.stopping()
    assert manager.recv(4096) == b"READY=1\nSTATUS=idle, next run at 12:15"
    assert manager.recv(4096).decode() == "STATUS=run 17: 3/8 événements"
    assert manager.recv(4096) == b"READY=1"
    assert manager.recv(4096) == b"EXTEND_TIMEOUT_USEC=2500000"
    assert manager.recv(4096) == b"STOPPING=1"


def test_reload_taken_for_stale(manager: socket.socket, address: str) -> None:
    """A reload carries its instant on the monotonic clock, which systemd compares."""
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier(address).reloading()
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reloading, instant = manager.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    name, value = instant.split("=")
    assert name == "MONOTONIC_USEC"
    assert before_us <= int(value) <= after_us


def test_status_forges_assignments(manager: socket.socket, address: str) -> None:
    """A line break in a status starts no assignment of its own, nor does a lone surrogate raise."""
    Notifier(address).status("failed:\nMAINPID=1\r\nREADY=1 \udcff")
    assert manager.recv(4096) == b"STATUS=failed: MAINPID=1 READY=1 ?"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_no_manager_ends_daemon(address: str | None) -> None:
    """Started by hand, or with an address of another family, nothing is sent and nothing raised."""
    Notifier(address).ready(STATUS="idle")


@pytest.mark.parametrize("name", ["missing", "x" * 200])
def test_lost_manager_ends_daemon(name: str, tmp_path: Path) -> None:
    """A socket that is gone, or whose path is too long, raises nothing."""
    Notifier(str(tmp_path / name)).stopping()
