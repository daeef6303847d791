"""A site's own table under the real daemon: looked at when it starts and is told to, and shown by syncctl."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import site
from support.processes import DaemonProcess, eventually, syncd
from support.real_databases import url_at

from syncd.standin.server import StandIn

PUBLISH = """
[[publish]]
name = "badge"
table = "Formation"
match = { billetwebId = ["ext_id", "id"] }
set = { placesTotal = "places_total", placesLeft = "places_left", isFull = "is_full" }
touch = "updatedAt"
"""
SLUG = "concert-a-la-grange"


@pytest.fixture
def daemon(home: Path, base_url: str) -> Iterator[DaemonProcess]:
    """Give a daemon that publishes into a table that is not there yet, and makes no run by itself."""
    process = DaemonProcess(home, base_url, {"sync": {"run_on_start": False}})
    with process.config.open("a") as file:
        file.write(PUBLISH + f'database = "{url_at(home / "site.db")}"\n')
    site.make(url_at(home / "site.db"), "Stage")
    with process:
        yield process


def failing(daemon: DaemonProcess) -> int:
    number: int = daemon.status()["publish"]["failing"]
    return number


@pytest.mark.slow("a daemon for each way")
def test_site_s_table_is_looked_at_by_the_first_sale(
    daemon: DaemonProcess, home: Path, standin: StandIn
) -> None:
    """What is wrong is known at start, by `check` and at a reload; then the badge follows the sales."""
    url = url_at(home / "site.db")
    sentence = 'publish badge: there is no table "Formation"'
    eventually(lambda: failing(daemon) == 1)
    assert sentence in daemon.log
    checked = syncd("check", "--config", str(daemon.config))
    assert checked.returncode == 78
    assert sentence in checked.stderr
    assert "1 target, 1 failing: see `syncctl publish`" in daemon.ctl("status").stdout
    site.make(url)
    site.add(url, SLUG)
    site.add(url, "no-such-event")
    assert syncd("check", "--config", str(daemon.config)).returncode == 0
    assert daemon.ctl("reload").returncode == 0
    eventually(lambda: failing(daemon) == 0)
    for trade, figures in (
        (None, (180, 3, False)),
        (standin.sell, (180, 0, True)),
        (standin.refund, (180, 3, False)),
    ):
        if trade:
            trade("900006", 3)
        assert daemon.ctl("run-now").returncode == 0
        assert site.row(url, SLUG, "placesTotal", "placesLeft", "isFull") == figures
    shown = daemon.ctl("publish").stdout
    assert shown.splitlines()[1].split()[:4] == ["badge", "1", "1", "3"]
    assert 'badge: no event has the key "no-such-event"\n' in shown
    (target,) = json.loads(daemon.ctl("publish", "--json").stdout)["publish"]
    assert (target["name"], target["matched"], target["unmatched"]) == ("badge", 1, 1)
    assert (target["last_error"], target["examples"]) == (None, ["no-such-event"])
    assert daemon.stop() == 0


def test_a_table_that_the_site_holds_outlasts_a_stop(daemon: DaemonProcess, home: Path) -> None:
    """A stop waits for no lock of the site's: the run has ended, and its end is on record."""
    url = url_at(home / "site.db")
    site.make(url)
    site.add(url, SLUG)
    with site.held(url):
        assert daemon.ctl("run-now", "--no-wait").returncode == 0
        eventually(lambda: daemon.status()["events_live"] == 6)  # the table's turn is next
        assert "running" not in daemon.ctl("status").stdout
        assert daemon.stop() == 0
    assert "ending at once" not in daemon.log
    assert "rolled back" not in daemon.log


def test_whoever_is_told_that_a_run_is_done_finds_the_table_written(
    daemon: DaemonProcess, home: Path, standin: StandIn
) -> None:
    """A script asks until the run is done, without `wait`, and then reads the site's table."""
    url = url_at(home / "site.db")
    site.make(url)
    site.add(url, SLUG)
    standin.sell("900006", 1)
    with ThreadPoolExecutor(1) as script, site.held(url):
        run_id = json.loads(daemon.ask("POST", "/v1/runs")[1])["id"]
        eventually(
            lambda: (daemon.status()["last_run"] or {}).get("id") == run_id
        )  # the table's turn is next
        answer = script.submit(daemon.ask, "GET", f"/v1/runs/{run_id}")
        time.sleep(0.3)
        assert not answer.done()
    assert json.loads(answer.result()[1])["state"] == "done"
    assert site.row(url, SLUG, "placesLeft") == (2,)


def test_a_site_s_server_that_says_nothing_outlasts_a_stop(home: Path, base_url: str) -> None:
    """A stop does not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mysql+pymysql://u:p@127.0.0.1:{silent.getsockname()[1]}/site"
        daemon = DaemonProcess(home, base_url, {"sync": {"run_on_start": False}})
        with daemon.config.open("a") as file:
            file.write(PUBLISH + f'database = "{url}"\n')
        with daemon:
            peer, _ = silent.accept()
            assert daemon.stop() == 0
            peer.close()
        assert "ending at once" not in daemon.log
