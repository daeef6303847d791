"""The whole story: the last place is sold, and all that show it say so, however often it is killed."""

import json
import random
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import site
from support.processes import SYNCCTL, DaemonProcess, eventually, forked_after
from support.real_databases import query, url_at
from support.receiver import SECRET, Receiver, receiving
from support.terminal import Terminal
from support.variants import mostly_slow

from syncd.standin.server import StandIn, serving

CONCERT, SLUG = "900006", "concert-a-la-grange"
SETTINGS = """
[[publish]]
table = "Formation"
match = { billetwebId = ["ext_id", "id"] }
set = { placesTotal = "places_total", placesLeft = "places_left", isFull = "is_full" }
touch = "updatedAt"
database = "DATABASE"

[[publish]]
table = "Stage"
match = { billetwebId = ["ext_id", "id"] }
set = { placesTotal = "places_total", placesLeft = "places_left", isFull = "is_full" }
touch = "updatedAt"

[[webhooks]]
name = "site"
url = "ENDPOINT"
secret_file = "secret"
on = ["event.full", "event.reopened"]

[[feeds]]
path = "HOME/events.json"
format = "json"

[[feeds]]
path = "HOME/events.jsonld"
format = "jsonld"
"""
FIGURES = ("placesTotal", "placesLeft", "isFull")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    with receiving() as receiver:
        yield receiver


def of_a_site(home: Path, base_url: str, receiver: Receiver, *keys: str, **sync: object) -> DaemonProcess:
    """Return a daemon, not yet started, of a site with a table beside the mirror and one elsewhere."""
    daemon = DaemonProcess(home, base_url, {"sync": sync})
    settings = {"DATABASE": url_at(home / "site.db"), "ENDPOINT": receiver.url, "HOME": f"{home}"}
    with daemon.config.open("a") as file:
        file.write(re.sub("|".join(settings), lambda found: settings[found[0]], SETTINGS))
    secret = daemon.config.with_name("secret")
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    for url, table in ((settings["DATABASE"], "Formation"), (daemon.database, "Stage")):
        site.make(url, table)
        for key in keys:
            site.add(url, key, table)
    return daemon


def feed(home: Path, name: str) -> Any:
    return json.loads((home / name).read_text())


def assert_told_everywhere(daemon: DaemonProcess, left: int) -> None:
    """Fail unless all that shows the concert's places shows these."""
    full = left == 0
    assert site.row(url_at(daemon.folder / "site.db"), SLUG, *FIGURES) == (180, left, full)
    ((total, in_mirror, is_full),) = site.rows(daemon.database, *FIGURES, table="Stage")
    assert (total, in_mirror, is_full) == (180, left, full)
    (event,) = [each for each in feed(daemon.folder, "events.json")["events"] if each["id"] == CONCERT]
    assert (event["places_left"], event["is_full"]) == (left, full)
    told = (daemon.folder / "events.jsonld").read_text()
    assert ("SoldOut" in told) == full
    page = daemon.ask("GET", "/")[1].decode()
    assert ('<span class="badge full">full</span>' in page) == full
    (line,) = [line for line in daemon.ctl("events").stdout.splitlines() if "Concert" in line]
    assert line.split()[-4:-2] == ["full" if full else f"{left}", "180"]
    assert f"{int(full)} full" in daemon.ctl("status").stdout


def test_a_badge_lags_behind_the_sale(
    home: Path, base_url: str, standin: StandIn, receiver: Receiver
) -> None:
    """The last place is sold: table, webhook, feed, page and screen say so; once more as it is given back."""
    command = [*SYNCCTL, "--socket", str(home / "syncd.sock"), "watch"]
    with of_a_site(home, base_url, receiver, SLUG, run_on_start=False) as daemon:
        assert daemon.ctl("run-now").returncode == 0
        assert_told_everywhere(daemon, 3)
        with Terminal(command) as screen:
            screen.shows("q quits")
            for trade, left, kind, shown in (
                (standin.sell, 0, "event.full", r"Concert à la grange +full +180 +▼ 3 "),
                (standin.refund, 3, "event.reopened", r"Concert à la grange +3 +180 +▲ 3 "),
            ):
                assert trade(CONCERT, 3) == 3
                receiver.got.clear()
                assert daemon.ctl("run-now").returncode == 0
                assert_told_everywhere(daemon, left)
                screen.shows(partial(re.search, shown))
                eventually(lambda: receiver.got and daemon.status()["webhooks"]["pending"] == 0)
                (got,) = receiver.got
                told = got.verified()
                assert told["type"] == kind
                event = told["data"]
                assert (event["id"], event["places_left"], event["is_full"]) == (CONCERT, left, left == 0)
                assert {"places_left", "is_full"} <= {*event["changed"]}
        assert daemon.stop() == 0


# --- killed at any moment of it

FESTIVAL, WEEKEND = "900001", "900002"
ROOM = {FESTIVAL: "event", WEEKEND: "category"}
"""Of each event, the type of the gauges that limit it."""
EVERY = 10
"""After so many kills, or less, a run may end, and everything is looked at."""
SLOW_S = 0.2
"""So long at most an answer of the receiver takes, a good part of what a daemon lives."""
MARGIN = 1.2
"""A part of the kills comes when all is done."""
SHORT_MINUTE = forked_after("from syncd.billetweb import limiter; limiter.WINDOW_S = 0.5")
"""The request limit outlives a kill; a minute that passes in half a second holds nobody up."""


class Tale:
    """Two events that sell out and open again, as chance will have it, and what is left of them on a site."""

    def __init__(self, standin: StandIn, daemon: DaemonProcess, receiver: Receiver) -> None:
        self._standin = standin
        self._receiver = receiver
        self._database, self._home = daemon.database, daemon.folder

    def left(self, event_id: str) -> int:
        """Return how many places an event has."""
        gauges = self._standin.events[event_id].gauges
        return sum(int(gauge["avail"]) for gauge in gauges if gauge["type"] == ROOM[event_id])

    def flip(self, *events: str) -> None:
        """Sell events out where they have places, else open them again."""
        for event_id in events:
            if left := self.left(event_id):
                assert self._standin.sell(event_id, left) == left
            else:
                assert self._standin.refund(event_id, 5)

    def assert_whole(self) -> None:
        """Fail where the site's rows in the mirror's database are not what the mirror holds."""
        mirror = "SELECT id, ext_id, places_total, places_left, is_full FROM billetweb_events"
        held = {}
        for event_id, ext_id, *figures in query(self._database, mirror):
            held[event_id] = held[ext_id] = figures
        for key, *figures in site.rows(self._database, "billetwebId", *FIGURES, table="Stage"):
            assert figures == held[key]

    def is_told(self) -> bool:
        """Tell whether all is as it is at Billetweb: the mirror, tables, the feed, and nothing waits."""
        wanted = {event_id: (self.left(event_id), not self.left(event_id)) for event_id in ROOM}
        mirror = "SELECT id, places_left, is_full FROM billetweb_events"
        if {key: tuple(rest) for key, *rest in query(self._database, mirror)} != wanted:
            return False
        self.assert_whole()
        beside = site.rows(url_at(self._home / "site.db"), "placesLeft", "isFull")
        shown = feed(self._home, "events.json")["events"]
        return (
            sorted(beside) == sorted(wanted.values())
            and {each["id"]: (each["places_left"], each["is_full"]) for each in shown} == wanted
            and {state for _, _, _, state in self._deliveries()} <= {"delivered"}
        )

    def told_in(self, daemon: DaemonProcess) -> float:
        """Flip both, wait until a daemon has told it, and kill that one; return how many seconds it took."""
        self.flip(*ROOM)
        began = time.monotonic()
        with daemon:
            eventually(self.is_told)
            return time.monotonic() - began

    def _deliveries(self) -> list[tuple[Any, ...]]:
        return query(self._database, "SELECT id, type, body, state FROM syncd_deliveries ORDER BY seq")

    def assert_delivered(self) -> int:
        """Fail unless each change was told, in order, as it is on record; return how often one came again."""
        recorded = self._deliveries()
        body = {key: text for key, _, text, _ in recorded}
        for got in self._receiver.got:
            assert got.body.decode() == body[got.id]
        first = list(dict.fromkeys(got.id for got in self._receiver.got))
        told = [(json.loads(text)["data"]["id"], kind, key) for key, kind, text, _ in recorded]
        for event_id in ROOM:
            of_event = [key for event, _, key in told if event == event_id]
            assert [key for key in first if key in of_event] == of_event
        assert len(first) == len(recorded)
        changes = "SELECT event_id, diff FROM syncd_changes WHERE table_name = ? AND kind = ? ORDER BY seq"
        flipped = [
            (event_id, "event.full" if flip[1] else "event.reopened")
            for event_id, diff in query(self._database, changes, "billetweb_events", "updated")
            if (flip := json.loads(diff).get("is_full"))
        ]
        assert [(event_id, kind) for event_id, kind, _ in told] == flipped
        return len(self._receiver.got) - len(told)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", mostly_slow([8, 200], "200 kills take two minutes"))
def test_a_kill_spoils_the_story(home: Path, receiver: Receiver, kills: int) -> None:
    """However often it is killed, no delivery is lost or changed, and the next run puts all figures right."""
    chance = random.Random(kills)
    standin = StandIn(events=2)
    slug = str(standin.events[FESTIVAL].row["ext_id"])
    receiver.choose = lambda _: time.sleep(chance.uniform(0, SLOW_S))  # many a kill comes in an attempt
    with serving(standin) as base_url:
        first = of_a_site(home, base_url, receiver, slug, WEEKEND)
        tale = Tale(standin, first, receiver)
        with first as daemon:
            eventually((home / "events.json").exists)  # which a stop may leave to the next start
            assert daemon.stop() == 0
        first._program, first._awaits = SHORT_MINUTE, ""
        span_s = min(tale.told_in(first) for _ in range(3)) * MARGIN
        for number in range(1, kills + 1):
            tale.flip(*chance.choice(([FESTIVAL], [WEEKEND], [FESTIVAL, WEEKEND])))
            with first as daemon:
                time.sleep(chance.uniform(0, span_s))
                assert daemon.process.poll() is None, first.log
            tale.assert_whole()
            if number % EVERY == 0 or number == kills:
                tale.told_in(first)
    assert tale.assert_delivered() >= kills // 100  # else no kill came in an attempt
