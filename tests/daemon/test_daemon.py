"""The daemon's life, in real processes: readiness, signals, reloads, and what it must outlast."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.faults import hang
from support.processes import (
    PATIENCE_S,
    DaemonProcess,
    Tables,
    asked,
    eventually,
    syncd,
    write_config,
)
from support.real_databases import locked, query, url_at

from syncd.daemon.signals import STOP_WITHIN_S
from syncd.database.engine import masked
from syncd.database.postgresql import LOCK_TIMEOUT_S
from syncd.database.sqlite import BUSY_TIMEOUT_MS
from syncd.standin.server import StandIn

NO_RUN: Tables = {"sync": {"run_on_start": False}}
GIVES_UP_S = min(LOCK_TIMEOUT_S, BUSY_TIMEOUT_MS / 1000)
"""Whoever waits for a locked database does so for as long as this."""
_PATIENT = """
import sys, syncd.cli.main
from syncd.daemon.notify import Notifier
assert Notifier.send.__defaults__ == (1.0,)
Notifier.send.__defaults__ = (3600.0,)
sys.exit(syncd.cli.main.main())
"""
PATIENT = [sys.executable, "-c", _PATIENT]
"""A syncd that hangs where it waits for the service manager."""


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=3)


@pytest.fixture
def daemon(home: Path, base_url: str) -> Iterator[DaemonProcess]:
    """Give a daemon that has done its first run."""
    with DaemonProcess(home, base_url) as process:
        process.ran()
        yield process


def in_mid_run(daemon: DaemonProcess, standin: StandIn) -> None:
    """Bring a run to where it waits for an event that Billetweb does not answer for."""
    before = len(standin.requests)
    standin.fail("/event/*/avail", hang, times=None)
    assert daemon.ctl("run-now", "--no-wait").returncode == 0
    asked(standin, before + 2)


# --- readiness


def test_service_manager_believes_too_early(home: Path, base_url: str) -> None:
    """READY comes first and when the socket answers already; then the runs' lines; STOPPING comes last."""
    with DaemonProcess(home, base_url) as daemon:
        assert daemon.status()["state"] in ("idle", "running")
        assert told_but_time(daemon) == ["READY=1\nSTATUS=up, runs every 15 min"]
        daemon.told("STATUS=run 1 ok: 3 events synced, 0 failed")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.told("RELOADING=1")
        daemon.told("READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.told("STOPPING=1")
        assert daemon.process.wait(PATIENCE_S) == 0
    firsts = [message.partition("=")[0] for message in told_but_time(daemon)]
    assert firsts == ["READY", "STATUS", "STATUS", "RELOADING", "READY", "STOPPING"]


def told_but_time(daemon: DaemonProcess) -> list[str]:
    """Return what systemd was told, but the requests for more time, which a slow machine takes."""
    return [message for message in daemon.notified if not message.startswith("EXTEND_TIMEOUT")]


@pytest.mark.slow("waits for seconds")
@pytest.mark.sqlite_only("about the service manager")
def test_busy_service_manager_holds_daemon_up(home: Path, base_url: str) -> None:
    """A manager that does not read for a while loses lines of status; the daemon waits for none of them."""
    daemon = DaemonProcess(home, base_url)
    daemon._program = PATIENT
    with daemon:
        for run in range(2, 10):  # two datagrams each: more than the kernel queues
            daemon.ask("POST", "/v1/runs", {})
            daemon.ran(run)


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_leaves_socket_or_looks_like_failure(daemon: DaemonProcess, number: int) -> None:
    """Both signals end the process with 0, and nobody finds a socket that would not answer."""
    assert daemon.stop(number) == 0
    assert not daemon.socket.exists()
    assert f"{signal.Signals(number).name}: stopping" in daemon.log
    assert daemon.log.rstrip().endswith("stopped")
    assert "WARNING" not in daemon.log


def test_stop_waits_for_hanging_billetweb(daemon: DaemonProcess, standin: StandIn) -> None:
    """A run that waits for Billetweb is cancelled, and is on record as cancelled."""
    in_mid_run(daemon, standin)
    assert daemon.stop() == 0
    assert "ending at once" not in daemon.log
    assert not daemon.socket.exists()
    assert query(daemon.database, "SELECT state, outcome FROM syncd_runs WHERE id = 2") == [
        ("done", "cancelled")
    ]


def test_stop_waits_for_locked_database(daemon: DaemonProcess, standin: StandIn) -> None:
    """Another program's lock holds no stop up for longer than 5 s, a run in progress or not."""
    assert STOP_WITHIN_S < 5
    in_mid_run(daemon, standin)
    with locked(daemon.database):
        assert daemon.stop() == 0
    assert not daemon.socket.exists()


def test_operator_waits_or_gets_lost_run(daemon: DaemonProcess) -> None:
    """While a stop waits for the database no run is taken on, and a second signal ends it at once."""
    with locked(daemon.database):
        assert daemon.ctl("run-now", "--no-wait").returncode == 0
        daemon.process.send_signal(signal.SIGTERM)
        daemon.told("STOPPING=1")
        assert daemon.status()["state"] == "stopping"
        status, body = daemon.ask("POST", "/v1/runs", {})
        assert (status, json.loads(body)["error"]["code"]) == (409, "stopping")
        assert daemon.ctl("run-now").returncode == 6
        daemon.stop()
    assert not daemon.socket.exists()
    assert "ending at once: a second signal" in daemon.log


def test_run_that_was_promised_is_forgotten(daemon: DaemonProcess, standin: StandIn) -> None:
    """Whoever asks in mid-run is told a lasting id, whose run is on record though the daemon is killed."""
    in_mid_run(daemon, standin)
    status, body = daemon.ask("POST", "/v1/runs", {})
    run = json.loads(body)
    assert (status, run["id"], run["state"]) == (202, 3, "queued")
    recorded = "SELECT state, outcome FROM syncd_runs WHERE id = 3"
    assert query(daemon.database, recorded) == [("queued", None)]
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    standin.heal()
    with DaemonProcess(daemon.folder, daemon.base_url) as following:
        following.ran(3)
        assert query(daemon.database, recorded) == [("done", "cancelled")]
        assert json.loads(following.ask("GET", "/v1/runs/3")[1])["outcome"] == "cancelled"
        assert following.status()["last_run"]["id"] == 4


# --- reloading


@pytest.mark.sqlite_only("about what is logged")
def test_reload_hides_what_it_did(home: Path, base_url: str) -> None:
    """A reload's answer names the keys that changed, those that wait for a restart, and no key's value."""
    with DaemonProcess(home, base_url, NO_RUN) as daemon:

        def reloaded() -> tuple[list[str], list[str]]:
            answer = json.loads(daemon.ask("POST", "/v1/reload")[1])
            return answer["changed"], answer["needs_restart"]

        assert reloaded() == ([], [])
        tables: Tables = {"sync": {"run_on_start": False, "interval": "20m"}, "control": {"mode": "0600"}}
        write_config(home, base_url, tables, key="another-key")
        assert reloaded() == (["sync.interval", "API key"], ["control.mode"])
        assert reloaded() == ([], ["control.mode"])
        assert "changed: sync.interval, API key" in daemon.log
        assert "another-key" not in daemon.log


def test_reload_hides_a_table_that_is_not_there(home: Path, base_url: str) -> None:
    """A target that was added, and cannot be published to, is told with the reload's answer."""
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran()
        with daemon.config.open("a") as config:
            config.write('[[publish]]\ntable = "Fromation"\nmatch = { key = "id" }\nset = { n = "name" }\n')
        told = daemon.ctl("reload").stdout
        assert told.endswith("changed.\nPublish: 1 target, 1 failing: see `syncctl publish`.\n")


def test_reload_restarts_or_ignores(home: Path, base_url: str) -> None:
    """SIGHUP takes the file over within the same process, and plans the next run anew."""
    with DaemonProcess(home, base_url) as daemon:
        before = daemon.ran()
        write_config(home, base_url, {"sync": {"interval": "20m"}})
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: daemon.status()["interval_s"] == 1200)
        after = daemon.status()
        assert after["pid"] == before["pid"]
        assert after["started_at"] == before["started_at"]
        assert after["next_run_at"] > before["next_run_at"]


@pytest.mark.sqlite_only("about what is logged")
def test_reloads_at_once_write_each_line_twice(home: Path, base_url: str) -> None:
    """Reloads follow one another, whoever asks for them: each is told once, and so is what comes later."""
    count = 12
    with DaemonProcess(home, base_url, NO_RUN) as daemon, ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(daemon.ask, "POST", "/v1/reload") for _ in range(count)]
        daemon.process.send_signal(signal.SIGHUP)
        for _ in range(count + 1):
            daemon.told("READY=1")
        assert {each.result()[0] for each in asked} == {200}
        firsts = [message.partition("=")[0] for message in told_but_time(daemon)]
        assert firsts == ["READY", *["RELOADING", "READY"] * (count + 1)]
        assert daemon.ask("POST", "/v1/pause")[0] == 200
        assert daemon.log.count("scheduled runs are paused") == 1
        assert daemon.log.count("was read again") == count + 1


@pytest.mark.sqlite_only("about settings")
@pytest.mark.parametrize("way", ["socket", "signal"])
def test_typo_in_reload_stops_service(home: Path, base_url: str, way: str) -> None:
    """A bad file is refused with every problem, by its lines, and the old settings stay in force."""
    with DaemonProcess(home, base_url, NO_RUN) as daemon:
        before = daemon.status()
        write_config(home, base_url, {"sync": {"interval": "20m", "jitterr": "1s"}, "log": {"level": "LOUD"}})
        if way == "socket":
            status, body = daemon.ask("POST", "/v1/reload")
            message = json.loads(body)["error"]["message"]
            assert status == 422
            assert "sync.jitterr" in message
            assert "log.level" in message
            assert daemon.ctl("reload").returncode == 6
        else:
            daemon.process.send_signal(signal.SIGHUP)
            daemon.told("RELOADING=1")
            daemon.told("READY=1")
        after = daemon.status()
        assert (after["interval_s"], after["pid"]) == (before["interval_s"], before["pid"])
        assert after["next_run_at"] == before["next_run_at"]
        assert daemon.log.count("reload refused, nothing changed:") == (2 if way == "signal" else 4)


def test_reload_in_mid_run_breaks_the_run(daemon: DaemonProcess, standin: StandIn) -> None:
    """A run in progress keeps its connections; the settings are for the next one."""
    in_mid_run(daemon, standin)
    assert daemon.ctl("reload").returncode == 0
    standin.heal()
    assert daemon.ran(2)["last_run"]["outcome"] == "ok"


def test_new_database_is_taken_over_half(daemon: DaemonProcess, home: Path, base_url: str) -> None:
    """Database and socket stay until the next start, and the log says so."""
    other = url_at(home / "other.db")
    write_config(home, base_url, {"database": {"url": other}})
    assert daemon.ctl("reload").returncode == 0
    assert daemon.ctl("run-now").returncode == 0
    assert daemon.status()["database"] == masked(daemon.database)
    with pytest.raises(Exception, match="billetweb_events"):  # there is no such table
        query(other, "SELECT * FROM billetweb_events")
    assert "[database] and [control] take effect at the next start" in daemon.log


# --- refusing to start


@pytest.mark.parametrize("shared", ["database", "socket"])
def test_two_daemons_write(
    daemon: DaemonProcess, home: Path, base_url: str, shared: str, database_kind: str
) -> None:
    """A second daemon on the same database or socket exits with 75; the first goes on, and still answers."""
    other = home / "other"
    other.mkdir()
    tables = {
        "database": {"url": url_at((home if shared == "database" else other) / "syncd.db")},
        "control": {"socket": f"{home if shared == 'socket' else other}/syncd.sock"},
    }
    second = syncd("run", "--config", write_config(other, base_url, tables))
    assert second.returncode == 75
    by_server = shared == "database" and database_kind == "postgresql"
    assert ("(server process " if by_server else f"process {daemon.pid}") in second.stderr
    assert not (other / "syncd.sock").exists()
    assert daemon.ctl("run-now").returncode == 0
    assert daemon.process.poll() is None


@pytest.mark.sqlite_only("about settings")
def test_bad_configuration_is_found_mistake_by_mistake(home: Path, base_url: str) -> None:
    """Exit code 78, and each problem on a line of its own with its key."""
    tables: Tables = {
        "sync": {"interval": "1s", "jitterr": "1s"},
        "billetweb": {"requests_per_minute": 500, "key_file": "none"},
    }
    done = syncd("run", "--config", write_config(home, base_url, tables))
    assert done.returncode == 78
    lines = [line for line in done.stderr.splitlines() if "CRITICAL" in line]
    keys = ["billetweb.key_file", "billetweb.requests_per_minute", "sync.interval", "sync.jitterr"]
    assert sorted(key for key in keys for line in lines if key in line) == keys
    assert len(lines) == len(keys)


@pytest.mark.sqlite_only("about credentials")
def test_missing_credentials_start_without(home: Path, base_url: str) -> None:
    """No key anywhere: exit code 78, so that systemd does not try again for ever."""
    path = write_config(home, base_url)
    path.write_text(path.read_text().replace('key_file = "key"\n', ""))
    done = syncd("run", "--config", path)
    assert done.returncode == 78
    assert "API key: missing" in done.stderr
    assert not (home / "syncd.sock").exists()


@pytest.mark.sqlite_only("about credentials")
def test_key_in_environment_is_not_needed_in_a_file(home: Path, base_url: str) -> None:
    """The environment gives user and key too; `check` says that the file is good."""
    path = write_config(home, base_url)
    path.write_text(path.read_text().replace('key_file = "key"\n', "").replace('user = "12345"\n', ""))
    assert syncd("check", "--config", path, BILLETWEB_KEY="demo-key", BILLETWEB_USER="12345").returncode == 0


# --- outlasting


@pytest.mark.sqlite_only("about a folder; a server that is away is in test_postgresql.py")
def test_missing_database_ends_daemon(home: Path, base_url: str) -> None:
    """Without its folder the daemon stays up and says so; it heals when the folder appears."""
    folder = home / "later"
    with DaemonProcess(home, base_url, {"database": {"url": f"sqlite:///{folder}/syncd.db"}}) as daemon:
        first = daemon.ran()
        assert (first["health"], first["last_run"]["outcome"]) == ("degraded", "failed")
        assert f"the folder {folder} does not exist" in first["last_error"]
        assert daemon.ctl("events").returncode == 6
        for _ in range(2):
            assert daemon.ctl("run-now").returncode == 1
        assert daemon.status()["health"] == "failing"
        assert daemon.ctl("status", "--check").returncode == 1
        promised = json.loads(daemon.ask("POST", "/v1/runs", {})[1])["id"]
        assert promised < 0
        daemon.ran(4)
        folder.mkdir()
        assert daemon.ctl("run-now").returncode == 0
        healed = daemon.status()
        assert (healed["health"], healed["events_live"], healed["run_count"]) == ("ok", 3, 5)
        run = json.loads(daemon.ask("GET", f"/v1/runs/{promised}")[1])
        assert (run["id"] > 0, run["outcome"]) == (True, "failed")
        assert json.loads(daemon.ask("GET", f"/v1/runs/{run['id']}")[1]) == run
    runs = "SELECT outcome, count(*) FROM syncd_runs GROUP BY outcome ORDER BY outcome"
    assert query(f"sqlite:///{folder}/syncd.db", runs) == [("failed", 4), ("ok", 1)]


@pytest.mark.slow("waits for seconds")
def test_dead_billetweb_ends_daemon(home: Path) -> None:
    """Where nothing listens the run fails, with a line that says so, and the daemon stays up."""
    with DaemonProcess(home, "http://127.0.0.1:1/api", instant_retries=True) as daemon:
        status = daemon.ran()
        assert (status["health"], status["last_run"]["outcome"]) == ("degraded", "failed")
        assert status["last_run"]["errors"][0]["kind"] == "transport"
        assert "[transport]; the old availability stays, the next run asks again" in daemon.log
        assert daemon.stop() == 0


def test_status_waits_for_run_or_database(daemon: DaemonProcess, standin: StandIn) -> None:
    """Status, health and metrics answer from memory: in mid-run, and while the database is locked."""
    in_mid_run(daemon, standin)
    for target in ("/v1/status", "/healthz", "/metrics"):
        assert daemon.ask("GET", target)[0] == 200  # it hangs where it waits for the run
    progress = daemon.status()["current_run"]["progress"]
    assert progress == {"phase": "events", "done": 0, "total": 3, "waits_for": None, "waits_until": None}
    with locked(daemon.database):
        standin.heal()
        began = time.monotonic()
        while time.monotonic() - began < 0.4:  # spans the moment in which the run wants to write
            asked_at = time.monotonic()
            assert daemon.status()["state"] == "running"
            assert time.monotonic() - asked_at < GIVES_UP_S


def test_who_asks_during_a_stop_meets_an_unexpected_error(daemon: DaemonProcess) -> None:
    """A request that the stop cuts off is told so, and there is no traceback."""
    with locked(daemon.database), ThreadPoolExecutor() as beside:
        asked = beside.submit(daemon.ask, "POST", "/v1/pause")
        eventually(lambda: "POST" in daemon.log or asked.running())
        time.sleep(0.2)
        assert daemon.stop() == 0
        status, body = asked.result()
    assert (status, json.loads(body)["error"]["code"]) in ((409, "stopping"), (503, "database"))
    assert "Traceback" not in daemon.log


_HANGING_FILE = """
import sys, time, syncd.cli.main as program
load, times = program.load, []
def hang(*given):
    times.append(given)
    return load(*given) if len(times) == 1 else time.sleep(60)
program.load = hang
sys.exit(program.main())
"""


@pytest.mark.slow("waits for the end of a stop")
def test_a_thread_that_hangs_keeps_a_stopped_daemon(home: Path, base_url: str) -> None:
    """However a thread of it hangs, it ends in the time of a stop."""
    daemon = DaemonProcess(home, base_url)
    daemon._program = [sys.executable, "-c", _HANGING_FILE]
    with daemon:
        daemon.ran()
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert daemon.stop() == 0
        assert "ending at once: stopping took too long" in daemon.log
