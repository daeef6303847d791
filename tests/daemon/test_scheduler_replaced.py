"""README's guide for a Next.js application, in Node word for word: scheduler replaced, pages made anew."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook
from support import site
from support.processes import DaemonProcess, environment, eventually
from support.project import README
from support.real_databases import url_at
from support.receiver import OTHER_SECRET, SECRET

from syncd.standin.server import StandIn, error_object, status

pytestmark = [
    pytest.mark.sqlite_only("it is about Node, and the guide has the site in SQLite"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="Node and npm are not installed"),
]
CONCERT, SLUG = "900006", "concert-a-la-grange"
CACHE = "export const told = []; export const revalidatePath = (...path) => told.push(path);"
"""What stands for Next.js' own cache: it remembers what it was told."""
APPLICATION = """
import http from "node:http";
import { told } from "next/cache";
import * as route from "./route.js";
import * as scheduler from "./sync-scheduler.js";

http.createServer(async (from, to) => {
  let answer;
  try {
    const name = new URL(from.url, "http://site").pathname.slice(1);
    if (name === "api/revalidate") {
      const body = Buffer.concat(await from.toArray());
      const init = { method: from.method, headers: from.headers, body };
      answer = await route[from.method](new Request("http://site/", init));
    } else answer = Response.json(name === "told" ? told : await scheduler[name]());
  } catch (error) {
    answer = Response.json({ thrown: error.message }, { status: 500 });
  }
  to.writeHead(answer.status, Object.fromEntries(answer.headers));
  to.end(Buffer.from(await answer.arrayBuffer()));
}).listen(0, "127.0.0.1", function () { console.log(this.address().port); });
"""
OK = {"failed": 0, "errors": []}


def examples(**instead: str) -> list[str]:
    """Return the guide's blocks of code, in their order, with other places in them."""
    section = README.partition("### Next.js: the scheduler replaced\n")[2].partition("\n### ")[0]
    blocks = "\0".join(re.findall(r"```(?:toml|js)\n(.*?)```", section, re.DOTALL))
    for name, place in instead.items():
        before = PLACES[name]
        assert blocks.count(before) == 1
        blocks = blocks.replace(before, place)
    return blocks.split("\0")


PLACES = {
    "socket": "/run/syncd/syncd.sock",
    "database": "sqlite:////srv/site/prisma/prod.db",
    "url": "http://127.0.0.1:3000/",
    "secret": "/etc/syncd/webhook-site",
}
"""Where the guide has what the tests have elsewhere."""


class Application:
    """The site's own application, in Node."""

    def __init__(self, folder: Path, socket_path: Path) -> None:
        _, scheduler, route = examples(socket=str(socket_path))
        for name, text in {"sync-scheduler": scheduler, "route": route, "site": APPLICATION}.items():
            (folder / f"{name}.js").write_text(text)
        self.process = subprocess.Popen(
            ["node", "site.js"],
            cwd=folder,
            env=environment(SYNCD_WEBHOOK_SECRET=SECRET),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.address = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def ask(self, name: str) -> Any:
        """Return what one of the scheduler's functions gives, or `told`: what was told to the cache."""
        return httpx.get(f"{self.address}/{name}", timeout=60, trust_env=False).json()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the application needs."""
    folder = tmp_path_factory.mktemp("application")
    (folder / "package.json").write_text('{"type": "module"}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "standardwebhooks@1"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=150)
    package = folder / "node_modules/next"
    package.mkdir()
    (package / "package.json").write_text('{"name": "next", "exports": {"./cache": "./cache.mjs"}}')
    (package / "cache.mjs").write_text(CACHE)
    return folder


@pytest.fixture
def application(home: Path, folder: Path) -> Iterator[Application]:
    """Give the application, which asks the daemon of this test."""
    application = Application(folder, home / "syncd.sock")
    try:
        yield application
    finally:
        application.close()


@pytest.fixture
def daemon(home: Path, base_url: str, application: Application) -> Iterator[DaemonProcess]:
    """Give a daemon with the guide's configuration, which makes no run by itself and tries nothing twice."""
    url = url_at(home / "site.db")
    site.make(url)
    site.add(url, SLUG)
    secret = home / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    process = DaemonProcess(home, base_url, {"sync": {"run_on_start": False}}, instant_retries=True)
    with process.config.open("a") as file:
        file.write(examples(database=url, url=f"{application.address}/", secret=str(secret))[0])
    with process:
        yield process


@pytest.mark.slow("two runs, and what a site is told of each")
def test_a_site_s_page_stays_as_it_was(
    application: Application, daemon: DaemonProcess, home: Path, standin: StandIn
) -> None:
    """A sale is in the site's table, and its pages are made anew; what others sign does nothing."""
    assert application.ask("getStatus")["runCount"] == 0
    first = application.ask("runNow")
    assert first == OK | {"synced": 6, "duration": first["duration"]}
    assert 0 < first["duration"] < 60_000
    assert application.ask("told") == []
    standin.sell(CONCERT, 3)
    assert application.ask("runNow")["synced"] == 6
    pages = [["/formations"], ["/formations/[slug]", "page"]]
    eventually(lambda: application.ask("told") == pages * 2)  # it changed, and it is full
    assert site.row(url_at(home / "site.db"), SLUG, "placesLeft", "isFull") == (0, True)
    body, at = b'{"type": "event.changed"}', datetime.now(UTC)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(at.timestamp()))}
    forged = {"webhook-signature": Webhook(OTHER_SECRET).sign("msg_1", at, body.decode())}
    for more in ({}, forged):
        url = f"{application.address}/api/revalidate"
        assert httpx.post(url, content=body, headers=headers | more, trust_env=False).status_code == 400
    assert application.ask("told") == pages * 2
    eventually(lambda: daemon.status()["webhooks"]["pending"] == 0)


def test_a_failed_run_looks_like_a_success(
    application: Application, daemon: DaemonProcess, standin: StandIn
) -> None:
    """A run that failed before any event was tried has failed for the site too, and so has one in part."""
    standin.fail("/events", status(503), times=None)
    failed = application.ask("runNow")
    assert (failed["synced"], failed["failed"], len(failed["errors"])) == (0, 1, 1)
    shown = application.ask("getStatus")
    assert shown["lastResult"] == failed
    assert shown["lastError"] in failed["errors"][0]
    standin.heal()
    standin.fail(f"/event/{CONCERT}/avail", error_object("odd", "Odd."), times=None)
    partly = application.ask("runNow")
    assert (partly["synced"], partly["failed"]) == (5, 1)
    assert CONCERT in partly["errors"][0]
    standin.heal()
    assert application.ask("runNow") | {"duration": 0} == OK | {"synced": 6, "duration": 0}


@pytest.mark.slow("starts a site of its own")
def test_a_site_s_own_scheduler_is_missed(application: Application, daemon: DaemonProcess) -> None:
    """What it told is told from the daemon's status: whether it runs, when it ran and will, how it ended."""
    before = application.ask("getStatus")
    assert before | {"nextRun": None} == {
        "isRunning": True,
        "lastRun": None,
        "lastResult": None,
        "nextRun": None,
        "lastError": None,
        "runCount": 0,
    }
    ended = application.ask("runNow")
    stopped = application.ask("stop")
    assert (stopped["isRunning"], stopped["nextRun"]) == (False, None)
    assert daemon.status()["paused_since"]
    started = application.ask("start")
    shown = daemon.status()
    assert started["isRunning"] is True
    assert (started["lastResult"], started["runCount"]) == (ended, 1)
    instants = [started["lastRun"], started["nextRun"]]
    told = [shown["last_run"]["finished_at"], shown["next_run_at"]]
    assert [each[:19] for each in instants] == [each[:19] for each in told]
    assert daemon.stop() == 0
    for name in ("runNow", "getStatus", "start", "stop"):
        assert "syncd.sock" in application.ask(name)["thrown"]
