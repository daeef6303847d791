"""Webhooks of the real daemon: killed at any moment it loses no delivery and sends none with another body."""

import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, DaemonProcess, Tables, eventually, syncd, write_config
from support.real_databases import query
from support.receiver import SECRET, Answer, Receiver, receiving

from syncd.standin.server import StandIn

CONCERT, FESTIVAL = "900006", "900001"
KILLS = 6
"""More would need more requests than a minute has."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    with receiving() as receiver:
        yield receiver


def tell(config: Path, url: str, more: str = "", name: str = "site") -> None:
    """Add an endpoint to a configuration."""
    secret = config.with_name("secret")
    secret.write_text(SECRET)
    secret.chmod(0o600)
    block = f'[[webhooks]]\nname = "{name}"\nurl = "{url}"\nsecret_file = "secret"\n'
    on = 'on = ["event.changed", "event.full", "event.reopened", "run.failed"]\n'
    with config.open("a") as file:
        file.write(block + (more or on))


def daemon_of(home: Path, base_url: str, url: str) -> DaemonProcess:
    """Return a daemon that tells an endpoint."""
    process = DaemonProcess(home, base_url, {"sync": {"run_on_start": False}})
    tell(process.config, url)
    return process


def on_record(daemon: DaemonProcess) -> dict[str, tuple[str, str]]:
    """Return body and state of each delivery."""
    rows = query(daemon.database, "SELECT id, body, state FROM syncd_deliveries ORDER BY seq")
    return {row[0]: (row[1], row[2]) for row in rows}


def test_a_kill_between_record_and_delivery_loses_it(
    home: Path, base_url: str, standin: StandIn, receiver: Receiver
) -> None:
    """What was on record when the process was killed is sent by the next one, as it stood there."""
    go_on = threading.Event()
    receiver.answers = [Answer(waits=go_on)]
    with daemon_of(home, base_url, receiver.url) as daemon:
        assert daemon.ctl("run-now").returncode == 0
        standin.sell(CONCERT, 3)
        assert daemon.ctl("run-now").returncode == 0
        eventually(lambda: receiver.got)
        before = on_record(daemon)
        assert {state for _, state in before.values()} == {"pending"}
        daemon.stop(signal.SIGKILL)
    go_on.set()
    with daemon_of(home, base_url, receiver.url) as daemon:
        eventually(lambda: len(receiver.got) == 3)
        eventually(lambda: {state for _, state in on_record(daemon).values()} == {"delivered"})
        assert {key: body for key, (body, _) in on_record(daemon).items()} == {
            key: body for key, (body, _) in before.items()
        }
    assert [got.id for got in receiver.got] == [next(iter(before)), *before]
    for got in receiver.got:
        assert got.body.decode() == before[got.id][0]
        got.verified()


@pytest.mark.slow("many kills of a process")
def test_kills_lose_or_change_deliveries(
    home: Path, base_url: str, standin: StandIn, receiver: Receiver
) -> None:
    """However often it is killed, whatever is on record arrives, in its order, and nothing else does."""
    chance = random.Random(11)
    with daemon_of(home, base_url, receiver.url) as daemon:
        assert daemon.ctl("run-now").returncode == 0
    receiver.choose = lambda _: Answer(503) if chance.random() < 0.1 else None
    for _ in range(KILLS):
        with daemon_of(home, base_url, receiver.url) as daemon:
            for _ in range(3):
                (standin.sell if chance.random() < 0.6 else standin.refund)(CONCERT, chance.randint(1, 3))
                daemon.ask("POST", "/v1/runs", {"events": [CONCERT]})
                time.sleep(chance.random() * 0.3)
            daemon.stop(signal.SIGKILL)
    receiver.choose = lambda _: None
    with daemon_of(home, base_url, receiver.url) as daemon:
        assert daemon.ctl("run-now", "--event", CONCERT).returncode == 0
        assert daemon.ctl("webhooks", "retry", "--endpoint", "site").returncode == 0
        eventually(lambda: {state for _, state in on_record(daemon).values()} == {"delivered"})
        recorded = on_record(daemon)
    first = list(dict.fromkeys(got.id for got in receiver.got))
    assert set(first) == recorded.keys()
    for got in receiver.got:
        assert got.body.decode() == recorded[got.id][0]
    of_concert = [key for key, (body, _) in recorded.items() if CONCERT in body]
    assert len(of_concert) >= KILLS
    assert [key for key in first if key in of_concert] == of_concert


def test_a_receiver_that_hangs_holds_the_stop(
    home: Path, base_url: str, standin: StandIn, receiver: Receiver
) -> None:
    """A daemon that is told to stop while an attempt is under way stops at once, cleanly."""
    go_on = threading.Event()
    receiver.answers = [Answer(waits=go_on)] * 3
    try:
        with daemon_of(home, base_url, receiver.url) as daemon:
            assert daemon.ctl("run-now").returncode == 0
            standin.sell(CONCERT, 3)
            assert daemon.ctl("run-now").returncode == 0
            eventually(lambda: receiver.got)
            assert daemon.stop() == 0
            assert "ending at once" not in daemon.log
    finally:
        go_on.set()


def test_nobody_sees_what_waits(home: Path, base_url: str, standin: StandIn, receiver: Receiver) -> None:
    """`syncctl` shows what waits and why, and sends it again; what is asked wrongly is refused."""
    receiver.choose = lambda _: Answer(503)
    with daemon_of(home, base_url, receiver.url) as daemon:
        assert daemon.ctl("run-now").returncode == 0
        assert "1 endpoint\n" in daemon.ctl("status").stdout
        standin.sell(CONCERT, 3)
        assert daemon.ctl("run-now").returncode == 0
        eventually(lambda: receiver.got and "1 endpoint, 2 waiting\n" in daemon.ctl("status").stdout)
        eventually(lambda: "HTTP 503" in daemon.ctl("webhooks").stdout)
        shown = daemon.ctl("webhooks").stdout
        assert shown.splitlines()[1].split()[:4] == ["site", "127.0.0.1", "2", "0"]
        answer = json.loads(daemon.ctl("webhooks", "--json").stdout)
        assert [each["type"] for each in answer["deliveries"]] == ["event.full", "event.changed"]
        newest = answer["deliveries"][0]["id"]
        assert newest in shown
        receiver.choose = lambda _: None
        asked = daemon.ctl("webhooks", "retry", newest, answer["deliveries"][1]["id"])
        assert (asked.returncode, asked.stdout) == (
            0,
            "Being sent again: 2; `syncctl webhooks` shows how that goes.\n",
        )
        eventually(lambda: daemon.status()["webhooks"] == {"endpoints": 1, "pending": 0, "parked": 0})
        assert json.loads(daemon.ctl("webhooks", "--json").stdout)["deliveries"] == []
        everything = json.loads(daemon.ask("GET", "/v1/webhooks?all=1&limit=1")[1])
        assert [each["state"] for each in everything["deliveries"]] == ["delivered"]
        for arguments, code in (
            (["retry"], 2),
            (["retry", "x", "--endpoint", "y"], 2),
            (["retry", "msg_0"], 6),
        ):
            assert daemon.ctl("webhooks", *arguments).returncode == code
        assert daemon.ctl("webhooks", "retry", "--endpoint", "nobody").returncode == 6
        assert daemon.ask("POST", "/v1/webhooks/retry", {}) == (200, b'{"retried":0}')
        assert daemon.ask("POST", "/v1/webhooks/retry", {"ids": ["msg_0"]})[0] == 404


def test_a_reload_tells_nobody_new(home: Path, base_url: str, standin: StandIn, receiver: Receiver) -> None:
    """An endpoint that comes with a reload is told from then on; a bad one changes nothing."""
    process = DaemonProcess(home, base_url, {"sync": {"run_on_start": False}})
    with process as daemon:
        assert daemon.ctl("run-now").returncode == 0
        tell(daemon.config, receiver.url)
        assert daemon.ctl("reload").returncode == 0
        standin.sell(CONCERT, 3)
        assert daemon.ctl("run-now").returncode == 0
        eventually(lambda: receiver.types() == ["event.changed", "event.full"])
        tell(daemon.config, receiver.url)
        assert daemon.ctl("reload").returncode == 6
        assert "is another one's name already" in daemon.log


@pytest.mark.slow("waits for a receiver")
def test_once_tells_nobody(home: Path, base_url: str, standin: StandIn, receiver: Receiver) -> None:
    """Without the daemon each run sends what is due then, its own and what an earlier one left."""
    config = write_config(home, base_url)
    tell(config, receiver.url)
    assert syncd("once", "--config", config).returncode == 0
    receiver.answers = [Answer(503)]
    standin.sell(CONCERT, 3)
    assert syncd("once", "--config", config).returncode == 0
    assert len(receiver.got) == 1
    (first,) = receiver.got
    deadline = time.monotonic() + PATIENCE_S
    while len(receiver.got) < 3 and time.monotonic() < deadline:  # 5 s later it is due again
        time.sleep(1)  # or the request limit would hold it up
        assert syncd("once", "--config", config).returncode == 0
    assert [got.type for got in receiver.got] == ["event.changed", "event.changed", "event.full"]
    assert (receiver.got[1].id, receiver.got[1].body) == (first.id, first.body)


def test_once_waits_for_a_run_of_another_process(
    home: Path, base_url: str, standin: StandIn, receiver: Receiver
) -> None:
    """Each process of its own finds a file's failure new, and tells of its run all the same."""
    config = write_config(home, base_url)
    (home / "events.json").mkdir()
    with config.open("a") as file:
        file.write(f"\n[[feeds]]\npath = '{home}/events.json'\nformat = 'json'\n")
    tell(config, receiver.url)
    for _ in range(2):
        assert syncd("once", "--config", config).returncode == 0
        standin.sell(CONCERT, 1)
    assert [got.type for got in receiver.got] == ["event.changed"]


def test_an_endpoint_that_cannot_be_told_is_good(home: Path, base_url: str) -> None:
    """`check` names what can never work: no secret, an address inside, a name that is taken."""
    config = write_config(home, base_url)
    tell(config, "https://10.0.0.1/hook")
    done = syncd("check", "--config", config)
    assert done.returncode == 78
    assert (
        "webhooks site: 10.0.0.1 is no address of the public internet; `private = true` allows it"
        in done.stderr
    )
    config.with_name("secret").write_text("whsec_canary")
    done = syncd("check", "--config", config)
    assert done.returncode == 78
    assert "webhooks[1].secret_file: holds no secret of the form" in done.stderr
    assert "canary" not in done.stderr


@pytest.mark.slow("a daemon and all that it says")
def test_a_secret_is_told(home: Path, base_url: str, standin: StandIn) -> None:
    """Neither what signs nor an address's token is in a log, an answer, a metric or the database."""
    token = "canary-token-of-the-path"
    with receiving() as receiver:
        # In a spelling that is not httpx's.
        pulse = {"url": f"{receiver.url}/pulse/{token}".replace("127.0.0.1", "LOCALHOST")}
        tables: Tables = {"sync": {"run_on_start": False}, "log": {"level": "DEBUG"}, "heartbeat": pulse}
        process = DaemonProcess(home, base_url, tables)
        tell(process.config, f"http://127.0.0.1:1/{token}?token={token}", name="dead")
        tell(process.config, f"{receiver.url.removesuffix('/hook')}?code={token}", name="bare")
        with process as daemon:
            tell(daemon.config, f"{receiver.url}/{token}", name="alive")
            assert daemon.ctl("reload").returncode == 0
            assert daemon.ctl("run-now").returncode == 0
            standin.sell(CONCERT, 3)
            assert daemon.ctl("run-now").returncode == 0
            eventually(lambda: len([each for each in receiver.got if "webhook-id" in each.headers]) == 4)
            eventually(lambda: "no connection" in daemon.log)
            targets = ("/v1/status", "/v1/webhooks?all=1", "/metrics")
            said = [daemon.ask("GET", target)[1] for target in targets]
            said += [daemon.ctl(command).stdout.encode() for command in ("status", "webhooks")]
            tables_of_syncd = ("syncd_deliveries", "syncd_state")
            said += [
                repr(query(daemon.database, f"SELECT * FROM {each}")).encode() for each in tables_of_syncd
            ]
            assert daemon.stop() == 0
    assert "HTTP Request: GET http://localhost" in daemon.log
    said.append(daemon.log.encode())
    canaries = (SECRET.encode(), SECRET.removeprefix("whsec_").encode(), token.encode())
    assert [canary for canary in canaries for text in said if canary in text] == []


# --- a receiver in Node

NODE = """
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";
const webhook = new Webhook(process.argv[2]);
const server = createServer(async (request, response) => {
  let body = "";
  for await (const piece of request) body += piece;
  try {
    const told = webhook.verify(body, request.headers);
    console.log(JSON.stringify({ type: told.type, places: told.data.places_left }));
    response.writeHead(204).end();
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
    response.writeHead(400).end();
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"""


@pytest.mark.slow("installs a package for Node")
@pytest.mark.skipif(shutil.which("npm") is None, reason="Node and npm are not installed")
def test_a_receiver_in_node_cannot_verify(
    home: Path, base_url: str, standin: StandIn, tmp_path: Path
) -> None:
    """A receiver of a few lines, with the official library, takes what is told and nothing forged."""
    (tmp_path / "receiver.mjs").write_text(NODE)
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "standardwebhooks@1"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=150)
    command = ["node", "receiver.mjs", SECRET]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout
            port = int(node.stdout.readline())
            with daemon_of(home, base_url, f"http://127.0.0.1:{port}/hook") as daemon:
                assert daemon.ctl("run-now").returncode == 0
                standin.sell(CONCERT, 3)
                assert daemon.ctl("run-now").returncode == 0
                told = [json.loads(node.stdout.readline()) for _ in range(2)]
                assert told == [{"type": kind, "places": 0} for kind in ("event.changed", "event.full")]
                eventually(lambda: daemon.status()["webhooks"]["pending"] == 0)
                daemon.config.with_name("secret").write_text(SECRET.replace("C2F", "D2F"))
                assert daemon.ctl("reload").returncode == 0
                standin.refund(CONCERT, 1)
                assert daemon.ctl("run-now").returncode == 0
                assert "No matching signature" in json.loads(node.stdout.readline())["error"]
        finally:
            node.kill()
