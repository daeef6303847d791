"""`syncctl` and plain HTTP against the real daemon, over its real socket."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.faults import hang, with_rows
from support.processes import (
    PATIENCE_S,
    SYNCCTL,
    DaemonProcess,
    Json,
    asked,
    environment,
    eventually,
    short_folder,
    syncd,
)

from syncd import __version__
from syncd.standin.server import StandIn, serving, truncated

AS_NOBODY = """
import grp, os, sys
from syncd.ctl.main import parse, perform
arguments = parse(None)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(perform(arguments))
"""
"""All is imported as root, whose interpreter may be out of reach for others."""


@pytest.fixture(scope="module")
def standin() -> StandIn:
    return StandIn(events=3)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def daemon(home: Path, standin: StandIn) -> Iterator[DaemonProcess]:
    """Give a daemon that has done its first run; the tests share it, and each leaves it idle and well."""
    with serving(standin) as base_url, DaemonProcess(home, base_url) as process:
        process.ran()
        yield process
        assert process.stop() == 0


def answer(daemon: DaemonProcess, *arguments: str) -> Json:
    """Return the JSON document of a `syncctl` command that succeeds."""
    done = daemon.ctl(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document: Json = json.loads(done.stdout)
    return document


def started(daemon: DaemonProcess, *arguments: str) -> subprocess.Popen[str]:
    """Start a `syncctl` that will wait."""
    command = [*SYNCCTL, "--socket", str(daemon.socket), *arguments]
    return subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def waiting_on(daemon: DaemonProcess) -> int:
    """Return how many connections the daemon's socket has."""
    return Path("/proc/net/unix").read_text().count(f" {daemon.socket}\n") - 1


def test_run_now_shows_old_data(daemon: DaemonProcess, standin: StandIn) -> None:
    """The run that is returned began after it was asked for, knows who asked, and brought the change in."""
    [event, *_] = standin.events.values()
    event.row["name"] = "Renamed a moment ago"
    before = datetime.now(UTC)
    run = answer(daemon, "run-now")
    assert datetime.fromisoformat(run["started_at"]) >= before
    assert (run["trigger"], run["state"], run["outcome"], run["full"]) == ("manual", "done", "ok", False)
    assert run["requested_by"]["uid"] == os.getuid()
    assert run["requested_by"]["pid"] > 0
    assert run["counts"]["updated"] == 1
    names = [event["name"] for event in answer(daemon, "events")["events"]]
    assert "Renamed a moment ago" in names
    assert "Renamed a moment ago" in daemon.ctl("events").stdout


def test_ten_impatient_people_start_ten_runs(daemon: DaemonProcess, standin: StandIn) -> None:
    """Ten at once, while a run is in progress, share one further run; `--join` is content with the first."""
    before = len(standin.requests)
    standin.fail("/events", hang)
    first = answer(daemon, "run-now", "--no-wait")
    asked(standin, before + 1)
    joined = started(daemon, "run-now", "--join", "--json")
    many = [started(daemon, "run-now", "--json", *(["--full"] * (number == 3))) for number in range(10)]
    eventually(lambda: daemon.status()["queued_runs"] == 1)
    eventually(lambda: waiting_on(daemon) >= 11)
    standin.heal()
    ended = [json.loads(process.communicate(timeout=15)[0]) for process in many]
    assert {run["id"] for run in ended} == {first["id"] + 1}
    assert {run["full"] for run in ended} == {True}
    assert json.loads(joined.communicate(timeout=15)[0])["id"] == first["id"]
    last, one_before, *_ = answer(daemon, "history")["runs"]
    assert (last["id"], one_before["id"]) == (first["id"] + 1, first["id"])
    assert last["started_at"] >= one_before["finished_at"]  # never two at once


def test_run_of_named_events(daemon: DaemonProcess) -> None:
    """`--event` reads just that one; an id that Billetweb does not know is that subject's error: exit 1."""
    run = answer(daemon, "run-now", "--event", "900002")
    assert (run["synced"], run["requests"], run["events"]) == (1, 3, ["900002"])
    assert daemon.ctl("run-now", "--event", "1").returncode == 1
    assert daemon.status()["health"] == "ok"


def test_exit_codes_do_not_tell(daemon: DaemonProcess, home: Path, standin: StandIn) -> None:
    """Each exit code that scripts rely on is the one that the contract names."""
    assert daemon.ctl("run-now").returncode == 0
    assert daemon.ctl("status", "--check").returncode == 0
    assert daemon.ctl("run-now", "--timeout", "never").returncode == 2
    assert daemon.ctl("frobnicate").returncode == 2
    assert daemon.ctl("--socket", str(home / "none.sock"), "status").returncode == 3
    refused = daemon.ctl("--socket", str(home / "none.sock"), "status", "--json")
    assert json.loads(refused.stdout)["error"]["code"] == "no_daemon"
    good = daemon.config.read_text()
    daemon.config.write_text("nonsense")
    assert daemon.ctl("reload").returncode == 6
    daemon.config.write_text(good)

    standin.fail("/event/900001/avail", truncated, times=None)
    partial = daemon.ctl("run-now")
    assert partial.returncode == 1
    assert "partial" in partial.stdout
    assert daemon.ctl("status", "--check").returncode == 1
    assert daemon.ctl("status").returncode == 0
    standin.heal()
    assert daemon.ctl("run-now").returncode == 0
    assert daemon.ctl("status", "--check").returncode == 0


def test_waiting_ends_the_run(daemon: DaemonProcess, standin: StandIn) -> None:
    """Giving up (5) and Ctrl-C (130) end the waiting only: the run goes on and ends well."""
    count = daemon.status()["run_count"]
    standin.fail("/events", hang)
    gave_up = daemon.ctl("run-now", "--timeout", "1s")
    assert gave_up.returncode == 5
    assert "goes on" in gave_up.stderr
    eventually(lambda: waiting_on(daemon) == 0)
    with started(daemon, "run-now", "--join") as waiting:
        eventually(lambda: waiting_on(daemon) == 1)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(PATIENCE_S) == -signal.SIGINT
    standin.heal()
    assert daemon.ran(count + 1)["last_run"]["outcome"] == "ok"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_stranger_is_told_to_start_a_daemon(daemon: DaemonProcess, home: Path) -> None:
    """Somebody without permission for the socket gets 4, where "no daemon" would mislead."""
    home.chmod(0o711)
    command = [sys.executable, "-c", AS_NOBODY, "--socket", str(daemon.socket), "status"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 4
    assert "No permission" in done.stderr


def test_daemon_that_goes_away_is_waited_for(standin: StandIn) -> None:
    """A stop in mid-run ends those who wait: the run was cancelled (1), or the daemon is gone (3)."""
    with serving(standin) as url, short_folder() as folder, DaemonProcess(folder, url) as daemon:
        daemon.ran()
        before = len(standin.requests)
        standin.fail("/events", hang)
        with started(daemon, "run-now") as waiting:
            asked(standin, before + 1)
            assert daemon.stop() == 0
            assert waiting.wait(PATIENCE_S) in (1, 3)


@pytest.fixture
def full_account() -> StandIn:
    return StandIn(events=6)


@pytest.fixture
def other_daemon(full_account: StandIn) -> Iterator[DaemonProcess]:
    """Give a daemon that has mirrored six events, and may be left with fewer."""
    with serving(full_account) as url, short_folder() as folder, DaemonProcess(folder, url) as process:
        process.ran()
        yield process
        assert process.stop() == 0


def vanished(daemon: DaemonProcess) -> set[str]:
    """Return the events that are marked vanished."""
    events = answer(daemon, "events", "--all")["events"]
    return {event["id"] for event in events if event["vanished_at"]}


def test_account_empties_without_consent(other_daemon: DaemonProcess, full_account: StandIn) -> None:
    """A list of events cut to one is doubted, however often it is read in full, until `accept`."""
    daemon, before = other_daemon, datetime.now(UTC)
    assert answer(daemon, "doubts") == {"doubts": []}
    assert daemon.ctl("doubts").stdout == "Nothing is doubted.\n"
    full_account.fail("/events", with_rows(lambda rows: rows[:1]), times=None)
    for reads in (1, 2, 3):
        done = daemon.ctl("run-now", "--full")
        assert (done.returncode, "events: the answer lacks 5 of 6 rows" in done.stdout) == (1, True)
        [doubt] = answer(daemon, "doubts")["doubts"]
        assert before <= datetime.fromisoformat(doubt.pop("since")) < datetime.now(UTC)
        assert doubt == {
            "table": "billetweb_events",
            "event_id": None,
            "absent": 5,
            "of": 6,
            "reads": reads,
            "examples": ["900002", "900003", "900004"],
            "waits_for": "accept",
            "until": None,
        }
        assert vanished(daemon) == set()
    assert daemon.status()["doubts"] == 1
    assert "\ndoubts       1, shown by `syncctl doubts`\n" in daemon.ctl("status").stdout
    assert "list of events  5 of 6  " in daemon.ctl("doubts").stdout
    assert "\nsyncd_doubts 1.0\n" in daemon.ctl("metrics").stdout

    done = daemon.ctl("accept")
    assert (done.returncode, "accepting what is absent; 5 changes (5 vanished)" in done.stdout) == (0, True)
    assert ", accepting what is absent)\n" in daemon.log
    assert vanished(daemon) == {f"90000{number}" for number in range(2, 7)}
    assert answer(daemon, "doubts") == {"doubts": []}
    assert daemon.status()["doubts"] == 0
    assert "doubt" not in daemon.ctl("status").stdout
    run = answer(daemon, "run-now")
    assert (run["outcome"], run["accept"], run["counts"]["vanished"]) == ("ok", False, 0)


def test_consent_to_one_event_takes_the_others(other_daemon: DaemonProcess, full_account: StandIn) -> None:
    """`accept --event` lets that event vanish alone: of the others it says nothing."""
    daemon = other_daemon
    full_account.fail("/events", with_rows(lambda rows: rows[:1]), times=None)
    assert daemon.ctl("run-now").returncode == 1
    run = answer(daemon, "accept", "--event", "900003")
    assert (run["accept"], run["accepted"], run["counts"]["vanished"]) == (True, ["900003"], 1)
    assert vanished(daemon) == {"900003"}
    [doubt] = answer(daemon, "doubts")["doubts"]
    assert (doubt["absent"], doubt["of"], doubt["waits_for"]) == (4, 5, "accept")
    assert daemon.ctl("run-now").returncode == 1
    assert vanished(daemon) == {"900003"}


def test_consent_inside_one_event_goes_further(other_daemon: DaemonProcess, full_account: StandIn) -> None:
    """Where events lack all their tickets, `accept --event` believes it of that event alone."""
    daemon = other_daemon
    for event_id in ("900001", "900003"):
        full_account.fail(f"/event/{event_id}/tickets", with_rows(lambda _: []), times=None)
    assert daemon.ctl("run-now").returncode == 1
    of_1, of_3 = answer(daemon, "doubts")["doubts"]
    assert (of_1["table"], of_1["event_id"], of_1["waits_for"]) == ("billetweb_tickets", "900001", "time")
    assert of_1["absent"] == of_1["of"] == len(full_account.events["900001"].tickets)
    lasts = datetime.fromisoformat(of_1["until"]) - datetime.fromisoformat(of_1["since"])
    assert lasts == timedelta(hours=24)
    run = answer(daemon, "accept", "--event", "900001")
    assert run["counts"]["vanished"] == of_1["absent"]
    assert answer(daemon, "doubts")["doubts"] == [of_3]


def test_commands_say_another_thing_than_the_daemon_does(daemon: DaemonProcess) -> None:
    """Status, events, history, pause, resume, reload and metrics are what the contract says."""
    status = answer(daemon, "status")
    assert (status["version"], status["pid"], status["state"]) == (__version__, daemon.pid, "idle")
    assert (status["health"], status["is_running"], status["interval_s"]) == ("ok", True, 900)
    assert (status["events_live"], status["last_error"]) == (3, None)
    assert f"ok  syncd {__version__}, up " in daemon.ctl("status").stdout

    [first, *_] = answer(daemon, "events")["events"]
    wanted = {
        "id",
        "ext_id",
        "sale_status",
        "name",
        "starts_at",
        "ends_at",
        "place",
        "online",
        "shop_url",
        "places_total",
        "places_left",
    }
    assert set(first) == wanted | {"unlimited", "is_full", "availability_at", "age_s", "vanished_at"}
    assert 0 <= first["age_s"] < 60

    assert answer(daemon, "pause")["state"] == "paused"
    paused = answer(daemon, "status")
    assert (paused["is_running"], paused["next_run_at"]) == (False, None)
    assert "paused" in daemon.ctl("status").stdout
    assert answer(daemon, "resume")["is_running"]
    assert answer(daemon, "reload")["interval_s"] == 900

    assert daemon.ctl("run-now").returncode == 0
    assert [run["id"] for run in answer(daemon, "history", "-n", "1")["runs"]] == [status["run_count"] + 1]
    metrics = daemon.ctl("metrics").stdout
    assert metrics.endswith("\n")
    assert 'syncd_event_places_left{event_id="900001",name="' in metrics
    assert "syncd_process_resident_memory_bytes" in metrics


def test_other_clients_are_shut_out(daemon: DaemonProcess) -> None:
    """Plain HTTP/1.1 by any client is answered; errors are JSON with a code; each answer has the version."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(5)
        connection.connect(str(daemon.socket))
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        raw = b""
        while chunk := connection.recv(4096):
            raw += chunk
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert f"syncd-version: {__version__}".encode() in head.lower()
    assert body == b"ok\n"

    for method, target, body_, wanted in (
        ("GET", "/v1/nothing", None, (404, "unknown_route")),
        ("GET", "/v1/runs/777", None, (404, "unknown_run")),
        ("POST", "/v1/status", None, (405, "wrong_method")),
        ("POST", "/v1/runs", {"ful": True}, (400, "bad_request")),
        ("POST", "/v1/doubts", {}, (405, "wrong_method")),
        ("GET", "/v1/accept", None, (405, "wrong_method")),
        ("POST", "/v1/accept", {"full": True}, (400, "bad_request")),
        ("POST", "/v1/accept", {"events": ["fête"]}, (400, "bad_request")),
        ("POST", "/v1/accept", {"events": 900001}, (400, "bad_request")),
        ("GET", "/v1/runs?limit=0", None, (400, "bad_request")),
    ):
        code, refusal = daemon.ask(method, target, body_)
        assert (code, json.loads(refusal)["error"]["code"]) == wanted

    code, content = daemon.ask("POST", "/v1/runs", {"full": True})
    run = json.loads(content)
    assert (code, run["full"]) == (202, True)
    assert run["state"] in ("queued", "running")
    code, content = daemon.ask("GET", f"/v1/runs/{run['id']}?wait=10")
    assert json.loads(content)["outcome"] == "ok"
    code, content = daemon.ask("GET", f"/v1/runs/{run['id']}/progress")
    assert json.loads(content.splitlines()[-1])["id"] == run["id"]
    assert syncd("--version").stdout == f"syncd {__version__}\n"
