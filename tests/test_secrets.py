"""A canary for a key: after good and bad runs of a real daemon it must be found nowhere."""

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from support import faults as wire
from support.processes import (
    WITH_INSTANT_RETRIES,
    DaemonProcess,
    Tables,
    eventually,
    syncd,
    write_config,
)
from support.real_databases import is_postgresql, query

from syncd.database import schema
from syncd.standin.server import Fault, StandIn, serving

KEY = "canary/k3y+with%20signs&=#~"
PULSE = "canary-pulse-7741"
PULSE_URL = f"http://127.0.0.1:1/{PULSE}"  # nothing listens: a failed heartbeat has something to say
TOKEN = base64.b64encode(f"12345:{KEY}".encode()).decode()
ALONE = base64.b64encode(KEY.encode()).decode().rstrip("=")
ECHO = f"Wrong key {KEY} for https://www.billetweb.fr/api/events?user=12345&key={quote(KEY, safe='')}"
FAULTS: dict[str, Fault] = {
    "an error object that repeats the key": wire.error_object("maintenance", ECHO),
    "a page that repeats the header": wire.html(f"Authorization: Basic {TOKEN}", 500),
    "a redirect that repeats the key": wire.redirect(path=f"/api/events?key={quote(KEY, safe='')}"),
    "not JSON, with the key": wire.raw(f'{{"error": "{KEY}'.encode()),
    "rows with the key": wire.raw(json.dumps([{"id": KEY, "name": TOKEN}, KEY]).encode()),
    "a sentence that is cut in the token": wire.error_object(
        "gateway", f"{'please send this to support: ' * 4}Authorization; Basic: {TOKEN}", 400
    ),
    "a sentence with the key in base64": wire.error_object("maintenance", f"Odd credentials {ALONE}", 400),
    "a header that repeats the header": wire.raw(b"[]", headers={"content-encoding": f"Basic {TOKEN}"}),
    "a broken connection": wire.reset,
    "refused, with the key": wire.error_object("unauthorized", ECHO, 401),
}
"""The last one ends the asking, so it comes last."""
CANARIES = (
    KEY,
    TOKEN[:12],
    ALONE[:12],
    quote(KEY),
    quote(KEY, safe=""),
    json.dumps(KEY)[1:-1],
    PULSE,
    "canary",
)


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=2, key=KEY)


def leaks(content: bytes) -> list[str]:
    """Return the canaries in some bytes, in whatever way they are quoted."""
    return [canary for canary in CANARIES if canary.encode() in content]


def everything_said(daemon: DaemonProcess) -> dict[str, bytes]:
    """Return all that a person or a program can read of a daemon."""
    targets = ("/v1/status", "/v1/events?all=1", "/v1/runs", "/metrics", "/healthz")
    said = {target: daemon.ask("GET", target)[1] for target in targets}
    said |= {command: daemon.ctl(command).stdout.encode() for command in ("status", "events", "history")}
    files = [
        path for path in daemon.folder.iterdir() if path.is_file() and path.name not in ("key", "config.toml")
    ]
    said |= {path.name: path.read_bytes() for path in files}
    said["cmdline"] = Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
    tables = schema.metadata.tables
    said["database"] = repr([query(daemon.database, f"SELECT * FROM {table}") for table in tables]).encode()
    said["told to systemd"] = "\n".join(daemon.notified).encode()
    return said


@pytest.mark.parametrize(
    ("form", "faults"),
    [
        ("text", list(FAULTS)),
        pytest.param("json", list(FAULTS)[:2], marks=pytest.mark.slow("a daemon and all its faults again")),
    ],
)
def test_key_in_what_is_said(
    home: Path, standin: StandIn, base_url: str, form: str, faults: list[str]
) -> None:
    """No fault, however rude, brings key, header or heartbeat address into log, answers or database."""
    tables: Tables = {"log": {"level": "DEBUG", "format": form}, "heartbeat": {"url": PULSE_URL}}
    with DaemonProcess(home, base_url, tables, key=KEY, instant_retries=True) as daemon:
        assert daemon.ran()["last_run"]["outcome"] == "ok"
        for count, name in enumerate(faults, 2):
            standin.fail("/events", FAULTS[name], times=None)
            assert daemon.ask("POST", "/v1/runs", {})[0] == 202
            assert daemon.ran(count)["last_run"]["errors"]
            standin.heal()
        standin.fail("/event/*", FAULTS["an error object that repeats the key"], times=None)
        assert daemon.ctl("run-now").returncode == 1
        eventually(lambda: "the heartbeat was not received" in daemon.log)
        daemon.config.write_text(daemon.config.read_text() + f'\n[webhooks]\nkey = "{KEY}"\n')
        assert daemon.ctl("reload").returncode == 6
        said = everything_said(daemon)
        assert is_postgresql() or "syncd.db-wal" in said
        assert daemon.stop() == 0
    said["log at the end"] = daemon.log.encode()
    assert "***" in daemon.log  # the faults did bring it up
    assert {place: leaks(content) for place, content in said.items() if leaks(content)} == {}


def test_new_key_after_reload_in_what_is_said(home: Path, base_url: str, standin: StandIn) -> None:
    """A key that comes with a reload is as secret as the first, in each of its forms."""
    tables: Tables = {"log": {"level": "DEBUG"}, "heartbeat": {"url": PULSE_URL}}
    with DaemonProcess(home, base_url, key="a-first-key") as daemon:
        daemon.ran()
        write_config(home, base_url, tables, key=KEY)
        assert daemon.ctl("reload").returncode == 0
        token_only = wire.error_object("maintenance", f"Odd header {TOKEN}, see {PULSE_URL}")
        standin.fail("/events", token_only, times=None)
        assert daemon.ctl("run-now").returncode == 1
        said = everything_said(daemon)
    assert "Odd header ***" in daemon.log
    assert {place: leaks(content) for place, content in said.items() if leaks(content)} == {}


@pytest.mark.slow("a process for each fault")
def test_key_in_what_once_and_check_print(home: Path, standin: StandIn) -> None:
    """Nor does it get out by the commands without a daemon, refused connections included."""
    with serving(standin) as base_url:
        config = write_config(home, base_url, {"log": {"level": "DEBUG"}}, key=KEY)
        standin.fail("/events", FAULTS["refused, with the key"], times=None)
        done = [syncd("check", "--online", "--config", config), syncd("once", "--config", config)]
    assert [process.returncode for process in done] == [78, 1]
    done.append(
        syncd("check", "--online", "--config", config, program=WITH_INSTANT_RETRIES)
    )  # nothing listens
    assert done[-1].returncode == 1
    for process in done:
        assert leaks((process.stdout + process.stderr).encode()) == []
