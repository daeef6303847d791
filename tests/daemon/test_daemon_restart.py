"""What survives the end of a daemon, however it came: the mirror, the runs on record, pause, the ceiling."""

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from support.faults import hang
from support.processes import DaemonProcess, Tables, asked, mirrored, short_folder, syncd, write_config
from support.real_databases import query, url_at

from syncd.standin.life import Life
from syncd.standin.server import Answer, Fault, StandIn, serving

NOW = datetime.now(UTC)
MORE = pytest.mark.slow("each moment takes three processes; one in the middle is always tried")
REQUESTS = 7
"""What a run of three events, none of them in session mode, asks for."""


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=3, now=NOW)


def live(standin: StandIn) -> None:
    """Let sales, refunds and edits go on for a while, the same on each twin."""
    life = Life(standin, seed=1)
    for _ in range(60):
        life.step()


def from_request(number: int) -> Fault:
    """Return a fault that holds back every answer from the so manyth request on."""
    received = 0

    def fault(answer: Answer) -> Answer:
        nonlocal received
        received += 1
        return hang(answer) if received >= number else answer

    return fault


class Undisturbed(NamedTuple):
    """What a twin that was never killed ends with, and its second run's requests."""

    content: dict[str, list[tuple[object, ...]]]
    requests: int


@pytest.fixture(scope="module")
def undisturbed(database_kind: str) -> Undisturbed:
    twin = StandIn(events=3, now=NOW)
    with serving(twin) as url, short_folder() as folder:
        config = write_config(folder, url)
        assert syncd("once", "--config", config).returncode == 0
        live(twin)
        before = len(twin.requests)
        assert syncd("once", "--config", config).returncode == 0
        content = mirrored(url_at(folder / "syncd.db"))
    assert any('"places_left"' in str(change) for change in content["changes"])
    return Undisturbed(content, len(twin.requests) - before)


@pytest.mark.parametrize("moment", [*(pytest.param(part, marks=MORE) for part in (0.0, 0.3, 0.9, 1.0)), 0.6])
def test_killed_run_leaves_another_mirror(
    home: Path, standin: StandIn, base_url: str, undisturbed: Undisturbed, moment: float
) -> None:
    """Killed early, late, or while the last event is written, the next start ends in the same rows."""
    assert syncd("once", "--config", write_config(home, base_url)).returncode == 0
    live(standin)
    before = len(standin.requests)
    number = max(1, int(undisturbed.requests * moment))
    if moment < 1:
        standin.fail("*", from_request(number), times=None)
    with DaemonProcess(home, base_url) as daemon:
        asked(standin, before + number)
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    standin.heal()
    with DaemonProcess(home, base_url) as daemon:
        daemon.told("STATUS=run 3 ok")
        last, killed, first = json.loads(daemon.ctl("history", "--json").stdout)["runs"]
        assert daemon.stop() == 0
    assert (first["outcome"], last["outcome"]) == ("ok", "ok")
    if moment < 1:  # else it may have ended just in time
        assert (killed["state"], killed["outcome"]) == ("done", "failed")
        assert killed["errors"][0]["kind"] == "interrupted"
    assert mirrored(daemon.database) == undisturbed.content


def test_clean_restart_forgets_runs(home: Path, base_url: str) -> None:
    """Ended runs stay as they ended, the count goes on, and an unchanged account is not written again."""
    with DaemonProcess(home, base_url) as daemon:
        before = daemon.ran()
        daemon.stop()
    with DaemonProcess(home, base_url) as daemon:
        after = daemon.ran(2)
        daemon.stop()
    assert after["last_run"]["id"] == 2
    assert after["last_run"]["counts"]["inserted"] == 0
    recorded = query(daemon.database, "SELECT id, state, outcome FROM syncd_runs ORDER BY id")
    assert recorded == [(1, "done", "ok"), (2, "done", "ok")]
    assert before["run_count"] == 1


def test_pause_is_forgotten_by_restart(home: Path, standin: StandIn, base_url: str) -> None:
    """A paused daemon that starts again asks for nothing by itself, until it is resumed."""
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran()
        assert daemon.ctl("pause").returncode == 0
        daemon.stop()
    before = len(standin.requests)
    with DaemonProcess(home, base_url) as daemon:
        status = daemon.status()
        assert (status["state"], status["is_running"], status["next_run_at"]) == ("paused", False, None)
        assert status["health"] == "ok"
        assert len(standin.requests) == before
        assert daemon.ctl("run-now").returncode == 0  # by hand it works all the same
        assert daemon.ctl("resume").returncode == 0
        resumed = daemon.status()
        assert (resumed["state"], resumed["is_running"]) == ("idle", True)
        assert resumed["next_run_at"] > status["started_at"]


@pytest.mark.slow("waits for a minute of requests")
def test_restart_doubles_the_requests_per_minute(home: Path, standin: StandIn, base_url: str) -> None:
    """A daemon killed and started again counts the requests of its predecessor."""
    tables: Tables = {"billetweb": {"requests_per_minute": REQUESTS + 2}}
    with DaemonProcess(home, base_url, tables) as daemon:
        daemon.ran()
        daemon.stop(signal.SIGKILL)
    assert len(standin.requests) == REQUESTS
    with DaemonProcess(home, base_url, tables) as daemon:
        asked(standin, REQUESTS + 2)
        with pytest.raises(AssertionError, match="waited in vain"):
            asked(standin, REQUESTS + 3, within_s=0.5)
        assert daemon.status()["state"] == "running"
        assert daemon.stop() == 0  # waiting for the minute's end is no reason to wait with the stop


def test_stale_socket_prevents_start(home: Path, base_url: str) -> None:
    """A killed daemon leaves its socket behind; the next one takes its place."""
    with DaemonProcess(home, base_url) as daemon:
        daemon.stop(signal.SIGKILL)
        assert daemon.socket.exists()
    with DaemonProcess(home, base_url) as daemon:
        assert msgspec.json.decode(daemon.ask("GET", "/v1/status")[1])["pid"] == daemon.pid
