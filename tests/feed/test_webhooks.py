"""Webhooks of an account: delivered as the specification says, in order, at least once, in nobody's way."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from conftest import LogLines, MakeConfig, Rig, rig_on
from msgspec import structs
from sqlalchemy import Engine
from sqlalchemy.event import listen, remove
from standardwebhooks import WebhookVerificationError
from support import faults as fault
from support import site
from support.disk import Watched
from support.real_databases import allow, held_up, query, refuse, url_at
from support.receiver import OTHER_SECRET, SECRET, Answer, Got, Receiver, receiving
from support.telling import ByHand, asleep, configure, later, sent, settled, telling
from support.variants import mostly_slow

from syncd.config import FeedConfig, PublishConfig
from syncd.database import changes, deliveries, schema
from syncd.database.deliveries import Message
from syncd.errors import StoreError, UnknownDelivery
from syncd.feed import files, sending, webhooks
from syncd.standin import server
from syncd.standin.server import StandIn

CONCERT, FESTIVAL, SLUG = "900006", "900001", "fete-des-lucioles"
ON = ("event.changed",)
BUSY = Answer(503)
ADDRESSES = ("127.0.0.2", "127.0.0.1", "127.0.0.3")  # at the second one receivers listen
AWAY, BACK = (
    f'ALTER TABLE "{before}" RENAME TO "{after}"'
    for before, after in (("Formation", "Away"), ("Away", "Formation"))
)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def other() -> Iterator[Receiver]:
    """Give another one."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def rig(
    make_config: MakeConfig, receiver: Receiver, instant_retries: None, log_lines: LogLines
) -> Iterator[Rig]:
    """Give a rig that tells one receiver of changes, with all events mirrored before."""
    with rig_on(make_config(billetweb__concurrency=1), ByHand(datetime.now(UTC))) as rig:
        rig.run()
        rig.portal.call(rig.account.outputs.webhooks.start)
        configure(rig, telling(rig.config, receiver, on=ON))
        yield rig


def sell(rig: Rig, standin: StandIn, event_id: str = CONCERT) -> None:
    """Have a place sold, and a run see it."""
    standin.sell(event_id, 1)
    assert rig.run().outcome == "ok"


def got(rig: Rig, receiver: Receiver, count: int) -> Got:
    """Return what the receiver got last, when it got so many and the sender has noted it."""
    rig.until(lambda: len(receiver.got) >= count)
    rig.until(lambda: sum(each.state.delivered + each.state.failed for each in endpoints(rig)) >= count)
    assert len(receiver.got) == count
    return receiver.got[-1]


def publish_to(rig: Rig, url: str) -> None:
    """Have places left be kept in a row of a site's, which is made there."""
    site.make(url)
    site.add(url, SLUG)
    match: dict[str, tuple[str, ...]] = {"billetwebId": ("ext_id",)}
    to = {"placesLeft": "places_left"}
    target = PublishConfig(name="badge", table="Formation", match=match, set=to, database=url)
    configure(rig, structs.replace(rig.config, publish=(target,)))


def refused_once(rig: Rig, receiver: Receiver, standin: StandIn) -> Got:
    """Have the news of a sale refused once, so that it waits; return what the receiver got."""
    receiver.answers = [BUSY]
    sell(rig, standin)
    first = got(rig, receiver, 1)
    settled(rig, pending=1)
    return first


def rows_when_told(rig: Rig, receiver: Receiver, url: str) -> list[int]:
    """Publish there, and return what will have stood in the row whenever the site was told."""
    publish_to(rig, url)
    rows = list[int]()
    receiver.choose = lambda _: rows.extend(site.row(url, SLUG, "placesLeft"))
    return rows


def sold_while_away(rig: Rig, receiver: Receiver, standin: StandIn, url: str) -> list[int]:
    """Sell a place that a table of the site's cannot show; return its places left as each delivery comes."""
    rows = rows_when_told(rig, receiver, url)
    query(url, AWAY)
    sell(rig, standin, FESTIVAL)
    return rows


def sold_and_back(rig: Rig, receiver: Receiver, standin: StandIn, url: str) -> list[int]:
    """As `sold_while_away`, with the table there again for whatever writes it next."""
    rows = sold_while_away(rig, receiver, standin, url)
    query(url, BACK)
    return rows


def written_to(rig: Rig, folder: Path) -> Path:
    """Have a file of the site's written there; return its path."""
    path = folder / "events.json"
    configure(rig, structs.replace(rig.config, feeds=(FeedConfig(path=path, format="json"),)))
    return path


def not_writable(folder: Path) -> FeedConfig:
    """Return a feed in whose place there is something else."""
    (folder / "f.json").mkdir()
    return FeedConfig(path=folder / "f.json", format="json")


def endpoints(rig: Rig) -> list[webhooks.Endpoint]:
    return rig.account.outputs.webhooks.endpoints


def test_a_failed_delivery_comes_again_too_soon_or_as_another(
    rig: Rig, receiver: Receiver, standin: StandIn
) -> None:
    """It is sent again after 5 s, 30 s, 2 min, 10 min, 1 h, then hourly: the same id, the same bytes."""
    receiver.answers = [BUSY] * 7
    sell(rig, standin)
    for attempt, wait_s in enumerate((5, 30, 120, 600, 3600, 3600, 3600), 1):
        got(rig, receiver, attempt)
        assert sent(rig, "state, attempts, status, error") == [("pending", attempt, 503, "HTTP 503")]
        later(rig, wait_s - 1)
        assert len(receiver.got) == attempt
        later(rig, 1)
    assert got(rig, receiver, 8) == receiver.got[-1]
    settled(rig)
    assert sent(rig, "state, attempts") == [("delivered", 8)]
    assert len({each.body for each in receiver.got}) == len({each.id for each in receiver.got}) == 1
    stamps = [int(each.headers["webhook-timestamp"]) for each in receiver.got]
    assert [later - earlier for earlier, later in pairwise(stamps)] == [5, 30, 120, 600, 3600, 3600, 3600]
    with pytest.raises(WebhookVerificationError, match="too new"):
        receiver.got[-1].verified()  # the time of the attempt is signed, and this one comes from later


def test_news_waits_for_the_end_of_a_long_run(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """What an event's transaction recorded is told while the run still reads others."""
    standin.sell(FESTIVAL, 1)
    standin.fail(f"/event/{CONCERT}/avail", fault.hang)
    run = rig.request()
    assert got(rig, receiver, 1).told["data"]["id"] == FESTIVAL
    assert run.state == "running"
    standin.heal()
    rig.wait(run)


def test_a_later_change_overtakes_an_earlier_one(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """What is told of an event comes in its order, however often an earlier one fails; others do not wait."""
    receiver.choose = lambda each: BUSY if each.told["data"]["id"] == CONCERT else None
    sell(rig, standin)
    got(rig, receiver, 1)
    sell(rig, standin)
    sell(rig, standin, FESTIVAL)
    assert got(rig, receiver, 2).told["data"]["id"] == FESTIVAL
    settled(rig, pending=2)
    receiver.choose = lambda _: None
    later(rig, 5)
    got(rig, receiver, 4)
    settled(rig)
    of_concert = [
        each.told["data"]["places_left"] for each in receiver.got if FESTIVAL not in each.body.decode()
    ]
    assert of_concert == [2, 2, 1]


def test_a_site_is_told_before_its_table_is_written(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """A site with its table in another database is told when its row is written; older news does not wait."""
    url = url_at(tmp_path / "site.db")
    publish_to(rig, url)
    receiver.answers = [BUSY]
    sell(rig, standin)
    got(rig, receiver, 1)
    rig.clock.now_s += 1
    rows = list[int]()
    receiver.choose = lambda _: rows.extend(site.row(url, SLUG, "placesLeft"))
    standin.sell(FESTIVAL, 1)
    with site.held(url):
        run = rig.request()
        rig.until(lambda: len(sent(rig)) == 2)
        later(rig, 5)
        assert got(rig, receiver, 2).id == receiver.got[0].id
        rig.portal.call(asyncio.sleep, 0.2)
        assert rows == [73]
    rig.wait(run)
    assert got(rig, receiver, 3).told["data"]["id"] == FESTIVAL
    assert rows == [73, 72]
    settled(rig)


def test_a_site_is_told_before_a_table_that_a_reload_adds(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """A run that began without the table tells of what it finds afterwards when the row is written too."""
    url = url_at(tmp_path / "site.db")
    standin.sell(FESTIVAL, 1)
    standin.fail("/events", fault.hang)
    before = len(standin.requests)
    run = rig.request()
    rig.until(lambda: len(standin.requests) > before)
    rows = rows_when_told(rig, receiver, url)
    with site.held(url):
        standin.heal()
        rig.until(lambda: bool(sent(rig)))
        rig.until(lambda: run.state == "done")
        assert rows == []
    rig.wait(run)
    got(rig, receiver, 1)
    assert rows == [72]


def test_a_site_is_told_before_its_file_is_written(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """A site that reads a file is told when the news is in there."""
    left = list[int]()

    def look(each: Got) -> None:
        (event,) = (one for one in json.loads(path.read_text())["events"] if one["id"] == FESTIVAL)
        left.append(event["places_left"])

    path = written_to(rig, tmp_path)
    rig.run()
    receiver.choose = look
    sell(rig, standin, FESTIVAL)
    got(rig, receiver, 1)
    assert left == [72]


def test_a_clock_that_steps_back_lets_news_out_before_its_file(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """What a run notes at an earlier time than it began at waits for its end too."""

    def step_back(answer: server.Answer) -> server.Answer:
        rig.clock.now_s -= 3600
        return answer

    path = written_to(rig, tmp_path)
    standin.sell(FESTIVAL, 1)
    standin.fail("/events", step_back)
    standin.fail(f"/event/{CONCERT}/*", fault.hang, times=None)
    run = rig.request()
    rig.until(lambda: bool(sent(rig)))
    rig.portal.call(asyncio.sleep, 0.2)
    assert (receiver.got, path.exists()) == ([], False)
    standin.heal()
    rig.wait(run)
    got(rig, receiver, 1)


@pytest.mark.parametrize(
    "name", mostly_slow(["another database", "the same database"], "each takes several runs")
)
def test_a_site_is_told_of_a_row_that_was_not_written(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path, name: str
) -> None:
    """It is told with the next run; of a table that goes on failing at once, and where no run comes."""
    url = rig.url if name == "the same database" else url_at(tmp_path / "site.db")
    rows = sold_while_away(rig, receiver, standin, url)
    later(rig, 60)  # the request limit's too
    rig.portal.call(asyncio.sleep, 0.1)
    assert receiver.got == []
    query(url, BACK)
    rig.run()
    got(rig, receiver, 1)
    assert rows == [72]
    receiver.choose = lambda _: None
    query(url, AWAY)
    sell(rig, standin, FESTIVAL)
    later(rig, 60)
    sell(rig, standin, FESTIVAL)
    got(rig, receiver, 3)
    later(rig, 60)
    sell(rig, standin, FESTIVAL)
    got(rig, receiver, 4)


def test_a_later_run_lets_out_what_waits_for_its_end(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """What a table did not show at the end of its run waits for the end of the next, not its beginning."""
    url = url_at(tmp_path / "site.db")
    rows = sold_while_away(rig, receiver, standin, url)
    later(rig, 60)
    query(url, BACK)
    standin.sell(CONCERT, 1)
    with site.held(url):
        run = rig.request()
        rig.until(lambda: len(sent(rig)) == 2)
        rig.portal.call(asyncio.sleep, 0.2)
        assert receiver.got == []
    rig.wait(run)
    got(rig, receiver, 2)
    assert rows == [72, 72]


@pytest.mark.sqlite_only("about a file that is away")
def test_a_failed_start_lets_old_news_out(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """A run that cannot open the database writes no table, so nobody is told before one that can."""
    url = url_at(tmp_path / "site.db")
    rows = sold_while_away(rig, receiver, standin, url)
    file = Path(rig.url.removeprefix("sqlite:///"))
    rig.stop()
    file.rename(tmp_path / "away.db")
    file.mkdir()
    rig.portal.call(rig._begin)
    query(url, BACK)
    rig.portal.call(rig.account.start)
    rig.until(lambda: rig.account.facts.consecutive_failures == 1)
    file.rmdir()
    (tmp_path / "away.db").rename(file)
    rig.portal.call(lambda: rig.account.deliveries(1, delivered_too=False))  # as does `syncctl webhooks`
    got(rig, receiver, 1)
    assert rows == [72]
    rig.portal.call(rig.account.schedule.stop)


def test_a_pause_holds_webhooks_for_ever(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """Where no run comes by itself a site is told, though a file could not be written."""
    configure(rig, structs.replace(rig.config, feeds=(not_writable(tmp_path),)))
    rig.portal.call(lambda: rig.account.pause(paused=True))
    standin.sell(CONCERT, 1)
    rig.run("manual")
    got(rig, receiver, 1)


def test_a_mirror_that_cannot_be_read_holds_webhooks_for_ever(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no file shows yet is told with the next run; at once where no run comes by itself."""

    def fail(*_: object) -> None:
        raise StoreError("database is locked")

    written_to(rig, tmp_path)
    monkeypatch.setattr(files, "_look_up", fail)
    sell(rig, standin)
    rig.portal.call(asyncio.sleep, 0.1)
    assert receiver.got == []
    rig.portal.call(lambda: rig.account.pause(paused=True))
    got(rig, receiver, 1)
    standin.sell(CONCERT, 1)
    rig.run("manual")
    got(rig, receiver, 2)


def test_a_pause_lets_out_what_is_not_written_yet(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """While a table of the site's is still being written nobody is told, for all that no run is to come."""
    url = url_at(tmp_path / "site.db")
    rows = rows_when_told(rig, receiver, url)
    standin.sell(FESTIVAL, 1)
    with site.held(url):
        rig.portal.call(rig.account.request)
        rig.until(lambda: rig.account.runner.current is None and rig.account.facts.run_count == 2)
        rig.portal.call(lambda: rig.account.pause(paused=True))
        rig.portal.call(asyncio.sleep, 0.5)
        assert receiver.got == []
    got(rig, receiver, 1)
    assert rows == [72]


def test_a_stop_lets_out_what_is_not_written_yet(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """A run that a stop cuts writes no table elsewhere: nobody is told before the next start."""
    publish_to(rig, url_at(tmp_path / "site.db"))
    rig.portal.call(lambda: rig.account.pause(paused=True))
    standin.sell(FESTIVAL, 1)
    standin.fail(f"/event/{CONCERT}/*", fault.hang, times=None)
    run = rig.request("manual")
    rig.until(lambda: len(sent(rig)) == 1)
    assert rig.portal.call(rig.runner.stop, 5.0)
    rig.portal.call(asyncio.sleep, 0.2)
    assert (run.outcome, receiver.got) == ("cancelled", [])


def test_a_later_pause_holds_webhooks_for_ever(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """What waits for the next run is told as soon as somebody says that none is to come."""
    configure(rig, structs.replace(rig.config, feeds=(not_writable(tmp_path),)))
    sell(rig, standin)
    rig.portal.call(asyncio.sleep, 0.1)
    assert receiver.got == []
    rig.portal.call(lambda: rig.account.pause(paused=True))
    got(rig, receiver, 1)


def test_a_refused_key_holds_its_own_alarm(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """After a refusal no run comes by itself for a day: that runs fail is told at once."""
    endpoint = structs.replace(rig.config.webhooks[0], on=("run.failed",))
    configure(rig, structs.replace(rig.config, webhooks=(endpoint,), feeds=(not_writable(tmp_path),)))
    standin.fail("/events", fault.unauthorized, times=None)
    assert rig.run().outcome == "failed"
    assert got(rig, receiver, 1).told["type"] == "run.failed"


def test_a_file_lets_out_what_a_run_brought_meanwhile(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """What a run found while a file of before was written is told when that run's table is written."""
    url = url_at(tmp_path / "site.db")
    rows = sold_and_back(rig, receiver, standin, url)
    path = written_to(rig, tmp_path)
    with held_up("JOIN billetweb_events ON billetweb_tickets") as (begun, may_go_on):
        rig.portal.call(lambda: rig.account.pause(paused=True))
        assert begun.wait(30)
        standin.sell(FESTIVAL, 1)
        with site.held(url):
            rig.request("manual")
            rig.until(lambda: rig.account.runner.current is None and rig.account.facts.run_count == 3)
            may_go_on.set()
            rig.until(path.exists)
            rig.portal.call(asyncio.sleep, 0.2)
            assert receiver.got == []
    got(rig, receiver, 2)
    assert rows == [71, 71]


def test_a_pause_lets_out_what_the_next_run_brings(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path
) -> None:
    """A table that was written for a pause lacks what a run by hand found meanwhile: its end tells of it."""
    url = url_at(tmp_path / "site.db")
    rows = sold_and_back(rig, receiver, standin, url)
    standin.sell(FESTIVAL, 1)
    standin.fail(f"/event/{CONCERT}/*", fault.hang, times=None)
    with site.held(url):
        rig.portal.call(lambda: rig.account.pause(paused=True))
        rig.portal.call(asyncio.sleep, 0.1)
        run = rig.request("manual")
        rig.until(lambda: len(sent(rig)) == 2)
    rig.until(lambda: site.row(url, SLUG, "placesLeft") == (72,))
    rig.portal.call(asyncio.sleep, 0.2)
    assert receiver.got == []
    standin.heal()
    rig.wait(run)
    got(rig, receiver, 2)
    assert rows == [71, 71]


def test_a_slow_disk_holds_webhooks_for_ever(
    rig: Rig, receiver: Receiver, standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run did not write in its time is told with the next one, though that comes no further."""
    path, go_on = Watched(tmp_path / "f.json"), threading.Event()
    configure(rig, structs.replace(rig.config, feeds=(FeedConfig(path=path, format="json"),)))
    rig.run()
    monkeypatch.setattr(files, "WAIT_S", 0.05)
    path.meanwhile = lambda: go_on.wait(30)
    try:
        sell(rig, standin)
        rig.portal.call(asyncio.sleep, 0.1)
        assert receiver.got == []
        sell(rig, standin)
        got(rig, receiver, 2)
    finally:
        go_on.set()


def test_a_dead_endpoint_is_tried_for_ever(
    rig: Rig, receiver: Receiver, standin: StandIn, log_lines: LogLines
) -> None:
    """After three days a delivery is parked and said so; by hand it is sent again, for as long, as it was."""
    receiver.answers = [BUSY, BUSY, BUSY]
    sell(rig, standin)
    got(rig, receiver, 1)
    later(rig, timedelta(days=3).total_seconds())
    got(rig, receiver, 2)
    settled(rig, parked=1)
    (record,) = log_lines.of("webhook.parked")
    assert record["level"] == "ERROR"
    ((delivery, state, next_at),) = sent(rig, "id, state, next_at")
    assert (state, next_at) == ("parked", None)
    assert delivery in record["message"]
    later(rig, 86_400)
    assert len(receiver.got) == 2
    rig.portal.call(lambda: rig.account.outputs.webhooks.retry(ids=[delivery], endpoint=None))
    assert got(rig, receiver, 3).body == receiver.got[0].body
    settled(rig, pending=1)
    later(rig, 5)
    got(rig, receiver, 4)
    settled(rig)
    assert sent(rig, "state") == ["delivered"]


def test_an_outage_fills_the_journal(
    rig: Rig, receiver: Receiver, standin: StandIn, log_lines: LogLines
) -> None:
    """A failure is told where it is another one than before, and once that it is over."""
    receiver.answers = [BUSY, BUSY, BUSY, Answer(500), BUSY]
    sell(rig, standin)
    for attempt, wait_s in enumerate((5, 30, 120, 600, 3600), 1):
        got(rig, receiver, attempt)
        later(rig, wait_s)
    got(rig, receiver, 6)
    settled(rig)
    assert [record["status"] for record in log_lines.of("webhook.failed")] == [503, 500, 503]
    assert len(log_lines.of("webhook.works")) == 1


def test_an_endpoint_that_is_gone_is_asked_again(
    rig: Rig, receiver: Receiver, standin: StandIn, log_lines: LogLines
) -> None:
    """After a 410 it gets nothing, over a reload and a restart too, until it is configured anew."""
    receiver.answers = [Answer(410)]
    sell(rig, standin)
    got(rig, receiver, 1)
    settled(rig, parked=1)
    assert len(log_lines.of("webhook.gone")) == 1
    configure(rig, rig.config)
    rig.restart()
    rig.portal.call(rig.account.outputs.webhooks.start)
    sell(rig, standin)
    settled(rig, parked=2)
    rig.until(lambda: rig.account.outputs.webhooks.endpoints[0].state.gone)
    assert len(receiver.got) == 1
    moved = structs.replace(rig.config.webhooks[0], url=receiver.url + "/new")
    configure(rig, structs.replace(rig.config, webhooks=(moved,)))
    settled(rig)
    assert [each.path for each in receiver.got] == ["/hook", "/hook/new", "/hook/new"]
    assert not rig.account.outputs.webhooks.endpoints[0].state.gone


@pytest.mark.parametrize("by", mostly_slow(["both", "id", "endpoint"], "they differ in the request"))
def test_nobody_can_have_a_gone_endpoint_asked(
    rig: Rig, receiver: Receiver, standin: StandIn, by: str
) -> None:
    """By hand it gets what is named, or all that it missed, and what comes from then on."""
    receiver.answers = [Answer(410)]
    sell(rig, standin)
    got(rig, receiver, 1)
    sell(rig, standin)
    settled(rig, parked=2)
    first, second = sent(rig, "id")
    ids, endpoint = [] if by == "endpoint" else [second], None if by == "id" else "site"
    count = rig.portal.call(lambda: rig.account.outputs.webhooks.retry(ids=ids, endpoint=endpoint))
    assert count == (1 if by == "id" else 2)
    settled(rig, parked=2 - count)
    assert [each.id for each in receiver.got][1:] == ([second] if by == "id" else [first, second])
    sell(rig, standin)
    settled(rig, parked=2 - count)
    assert len(receiver.got) == 2 + count


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("7200", 7200),
        ("1", 5),
        *(
            pytest.param(*more, marks=pytest.mark.slow("each takes two attempts"))
            for more in (("999999", 86_400), ("soon", 5))
        ),
    ],
)
def test_a_receiver_that_asks_for_rest_gets_none(
    rig: Rig, receiver: Receiver, standin: StandIn, header: str, wait_s: int
) -> None:
    """`Retry-After` holds for all that waits for the endpoint, over a restart, for a day at most."""
    receiver.answers = [Answer(429, {"Retry-After": header})]
    sell(rig, standin)
    got(rig, receiver, 1)
    settled(rig, pending=1)
    (waiting,) = rig.portal.call(lambda: rig.account.deliveries(9, delivered_too=False))
    assert waiting.next_at
    assert waiting.attempted_at
    assert waiting.next_at - waiting.attempted_at == timedelta(seconds=wait_s)
    rig.restart()
    rig.portal.call(rig.account.outputs.webhooks.start)
    if wait_s > 60:
        sell(rig, standin, FESTIVAL)
        settled(rig, pending=2)
    later(rig, wait_s - 2)
    assert len(receiver.got) == 1
    later(rig, 3)
    settled(rig)
    assert len(receiver.got) == (3 if wait_s > 60 else 2)


@pytest.mark.sqlite_only("about answers")
def test_a_receiver_that_is_content_gets_nothing_for_an_hour(
    rig: Rig, receiver: Receiver, standin: StandIn
) -> None:
    """A `Retry-After` beside a success, as some servers send with each answer, asks for no rest."""
    receiver.answers = [Answer(200, {"Retry-After": "3600"})]
    for count in (1, 2):
        sell(rig, standin)
        got(rig, receiver, count)
        settled(rig)


@pytest.mark.sqlite_only("about answers")
def test_an_answer_that_breaks_off_is_none(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """What was taken is not sent again because the rest of the answer did not come: its status counts."""
    receiver.answers = [Answer(200, {"Transfer-Encoding": "chunked"}, b"no length\r\n")]
    sell(rig, standin)
    got(rig, receiver, 1)
    settled(rig)
    (endpoint,) = endpoints(rig)
    assert (endpoint.state.delivered, endpoint.state.failed) == (1, 0)


@pytest.mark.sqlite_only("about addresses")
def test_a_receiver_with_a_dead_address_gets_nothing(
    rig: Rig, receiver: Receiver, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody listens at one address of its name, the next one is tried in the same attempt."""
    port = httpx.URL(receiver.url).port
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ADDRESSES]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    url = f"http://many.localhost:{port}/hook"
    configure(rig, telling(structs.replace(rig.config, webhooks=()), receiver, on=ON, url=url))
    sell(rig, standin)
    assert got(rig, receiver, 1).headers["host"] == f"many.localhost:{port}"
    settled(rig)
    assert endpoints(rig)[0].state.failed == 0


@pytest.mark.sqlite_only("about answers")
def test_a_change_of_secret_loses_deliveries(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """With two secrets both sign; with one it alone does."""
    config = structs.replace(rig.config, webhooks=(), webhook_secrets={})
    configure(rig, telling(config, receiver, on=ON, secrets=(OTHER_SECRET, SECRET)))
    sell(rig, standin)
    both = got(rig, receiver, 1)
    assert both.verified(SECRET) == both.verified(OTHER_SECRET) == both.told
    configure(rig, telling(config, receiver, on=ON, secrets=(SECRET,)))
    sell(rig, standin)
    settled(rig)
    _, one = receiver.got
    one.verified(SECRET)
    with pytest.raises(WebhookVerificationError):
        one.verified(OTHER_SECRET)


@pytest.mark.sqlite_only("about answers")
def test_a_redirect_leads_elsewhere(rig: Rig, receiver: Receiver, other: Receiver, standin: StandIn) -> None:
    """It is a failure like any other: the body goes to nobody else."""
    receiver.answers = [Answer(307, {"Location": other.url})]
    sell(rig, standin)
    got(rig, receiver, 1)
    settled(rig, pending=1)
    told = "HTTP 307: redirects are not followed, `url` must be the address itself"
    assert sent(rig, "state, error") == [("pending", told)]
    assert other.got == []


@pytest.mark.sqlite_only("about answers")
def test_a_slow_receiver_holds_up_others(
    rig: Rig, receiver: Receiver, other: Receiver, standin: StandIn
) -> None:
    """While one does not answer runs end, and another endpoint is told."""
    go_on = threading.Event()
    receiver.answers = [Answer(waits=go_on)]
    configure(rig, telling(rig.config, other, on=ON, name="other"))
    try:
        sell(rig, standin)
        sell(rig, standin)
        rig.until(lambda: len(other.got) == 2)
        assert len(receiver.got) == 1
    finally:
        go_on.set()
    settled(rig)
    assert len(receiver.got) == 2


@pytest.mark.sqlite_only("about answers")
def test_a_receiver_that_never_answers_is_waited_for(
    rig: Rig, receiver: Receiver, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt has its time, in all, and then counts as failed."""
    monkeypatch.setattr(sending, "DEADLINE_S", 0.2)
    go_on = threading.Event()
    receiver.answers = [Answer(waits=go_on)]
    try:
        sell(rig, standin)
        settled(rig, pending=1)
        rig.until(lambda: sent(rig, "error") == ["no answer within 0.2 s"])
    finally:
        go_on.set()


@pytest.mark.sqlite_only("about answers")
def test_an_answer_without_end_is_read(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """Of an answer so much is read as is allowed; its status counts all the same."""
    receiver.answers = [Answer(200, body=bytes(32 * 1024 * 1024))]  # more than the kernel takes by itself
    sell(rig, standin)
    settled(rig)
    assert sent(rig, "state, status") == [("delivered", 200)]
    rig.until(lambda: receiver.cut_off == 1)


@pytest.mark.sqlite_only("about answers")
def test_a_receiver_that_is_down_is_a_mystery(rig: Rig, standin: StandIn, receiver: Receiver) -> None:
    """That nobody listens is said, and nothing of the address but its host."""
    nobody = structs.replace(rig.config.webhooks[0], url="http://127.0.0.1:1/canary/of/the/path?token=canary")
    configure(rig, structs.replace(rig.config, webhooks=(nobody,)))
    sell(rig, standin)
    settled(rig, pending=1)
    rig.until(lambda: sent(rig, "attempts") == [1])
    ((error,),) = rig.sql("SELECT error FROM syncd_deliveries")
    assert error.startswith("no connection: ")
    assert "canary" not in error


def test_a_delivery_that_cannot_be_noted_is_sent_for_ever(
    rig: Rig, receiver: Receiver, standin: StandIn, log_lines: LogLines
) -> None:
    """While the database takes no writes, what came of an attempt is kept, and nothing is sent again."""
    refuse(rig.url, "UPDATE ON syncd_deliveries")
    sell(rig, standin)
    for count in (1, 2, 3):
        rig.until(lambda: log_lines.text.count("; tried again") >= count)  # noqa: B023 - called at once
        later(rig, 60)
    assert len(receiver.got) == 1
    allow(rig.url, "UPDATE ON syncd_deliveries")
    later(rig, 60)
    settled(rig)
    assert len(receiver.got) == 1


def test_a_delivery_that_meets_a_bug_holds_up_others(
    rig: Rig, receiver: Receiver, standin: StandIn, log_lines: LogLines
) -> None:
    """It counts as a failed attempt, is tried again like any other, and the log says what to report."""
    receiver.answers = [BUSY]
    sell(rig, standin)
    first = got(rig, receiver, 1)
    rig.sql("UPDATE syncd_deliveries SET id = 'é'")  # which nobody thought of: no header can hold it
    later(rig, 5)
    sell(rig, standin, FESTIVAL)
    assert got(rig, receiver, 2).told["data"]["id"] == FESTIVAL
    settled(rig, pending=1)
    rig.until(lambda: sent(rig, "attempts") == [2, 1])
    assert len(log_lines.of("error.internal")) == 1
    rig.sql("UPDATE syncd_deliveries SET id = ? WHERE id = 'é'", first.id)
    later(rig, 30)
    settled(rig)
    assert (receiver.got[2].id, receiver.got[2].body) == (first.id, first.body)


def test_a_restart_forgets_what_waits(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """What waits stands in the database alone: another process sends it, when it is due."""
    first = refused_once(rig, receiver, standin)
    rig.restart()
    rig.portal.call(rig.account.outputs.webhooks.start)
    rig.portal.call(rig.account.outputs.webhooks.refresh)
    settled(rig, pending=1)
    later(rig, 6)
    settled(rig)
    assert (receiver.got[1].id, receiver.got[1].body) == (first.id, first.body)


def test_a_clock_that_was_ahead_keeps_deliveries_for_years(
    rig: Rig, receiver: Receiver, standin: StandIn
) -> None:
    """An instant further ahead than anything waits is none to wait for."""
    refused_once(rig, receiver, standin)
    rig.sql("UPDATE syncd_deliveries SET next_at = '2090-01-02 03:04:05'")
    rig.run()
    settled(rig)
    assert len(receiver.got) == 2


def test_a_clock_that_was_ahead_makes_a_rest_last_for_years(
    rig: Rig, receiver: Receiver, standin: StandIn
) -> None:
    """A rest that ends further ahead than anybody may ask for is none."""
    refused_once(rig, receiver, standin)
    rest = deliveries.Remembered(quiet_until=rig.clock.now() + timedelta(days=900))
    rig.portal.call(rig.account.database.write, deliveries.remember, endpoints(rig)[0].state.name, rest)
    later(rig, 5)
    got(rig, receiver, 2)


def test_a_reload_at_the_end_of_a_run_is_forgotten(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """An endpoint that was gone is asked at its new address, whenever that is configured."""
    receiver.answers = [Answer(410)]
    sell(rig, standin)
    settled(rig, parked=1)

    async def reload_meanwhile(counting: threading.Event, may_go_on: threading.Event) -> None:
        """Take the address over while a run's end looks at what waits."""
        webhooks = rig.account.outputs.webhooks
        end = asyncio.create_task(webhooks.refresh())
        await asyncio.to_thread(counting.wait, 30)
        moved = structs.replace(rig.config.webhooks[0], url=receiver.url + "/new")
        webhooks.configure(structs.replace(rig.config, webhooks=(moved,)))
        may_go_on.set()
        await end
        await webhooks.refresh()

    with held_up("GROUP BY syncd_deliveries.endpoint") as count:
        rig.portal.call(reload_meanwhile, *count)
    settled(rig)
    assert [each.path for each in receiver.got] == ["/hook", "/hook/new"]


def test_a_gone_endpoint_with_a_new_address_waits_for_a_run(
    rig: Rig, receiver: Receiver, standin: StandIn
) -> None:
    """A reload alone lets it have what is parked, though no run comes."""
    receiver.answers = [Answer(410)]
    sell(rig, standin)
    settled(rig, parked=1)
    moved = structs.replace(rig.config.webhooks[0], url=receiver.url + "/new")
    rig.portal.call(rig.account.configure, structs.replace(rig.config, webhooks=(moved,)))
    rig.until(lambda: len(receiver.got) == 2)
    assert [each.path for each in receiver.got] == ["/hook", "/hook/new"]


def test_deliveries_to_nobody_wait_for_ever(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """What waits for an endpoint that was taken out of the configuration is parked, and says why."""
    refused_once(rig, receiver, standin)
    config = rig.config
    configure(rig, structs.replace(config, webhooks=()))
    assert sent(rig, "state, error") == [("parked", "the endpoint is not configured")]
    later(rig, timedelta(days=3).total_seconds())
    configure(rig, config)
    settled(rig, parked=1)
    assert rig.portal.call(lambda: rig.account.outputs.webhooks.retry(ids=[], endpoint="site")) == 1
    settled(rig)


@pytest.mark.parametrize("gone", mostly_slow([False, True], "they differ in why it was parked"))
def test_an_endpoint_that_is_back_waits_as_one_that_failed_long(
    rig: Rig, receiver: Receiver, standin: StandIn, gone: bool
) -> None:
    """What was parked is sent at once to an endpoint that is back, and if it fails again after 5 s."""
    receiver.answers = [BUSY, BUSY, Answer(410) if gone else BUSY, BUSY]
    sell(rig, standin)
    for attempt, wait_s in enumerate((5, 30), 1):
        got(rig, receiver, attempt)
        later(rig, wait_s)
    got(rig, receiver, 3)
    config, site = rig.config, rig.config.webhooks[0]
    configure(rig, structs.replace(config, webhooks=()))
    configure(rig, structs.replace(config, webhooks=(structs.replace(site, url=receiver.url + "/new"),)))
    rig.until(lambda: endpoints(rig)[0].state.failed == 1)
    later(rig, 4)
    settled(rig, pending=1)
    assert len(receiver.got) == 4
    later(rig, 1)
    settled(rig)
    assert len(receiver.got) == 5


def test_a_delivery_waits_by_a_clock_that_was_put_right(
    rig: Rig, receiver: Receiver, standin: StandIn
) -> None:
    """When the clock is stepped, what is due by it is sent within a minute, though nothing else happens."""
    receiver.answers = [Answer(429, {"Retry-After": "7200"})]
    sell(rig, standin)
    got(rig, receiver, 1)
    settled(rig, pending=1)
    clock = asleep(rig)
    assert clock._at
    clock._at += timedelta(hours=2)
    clock.now_s += 60
    got(rig, receiver, 2)
    settled(rig)


@pytest.mark.parametrize("refusal", [BUSY, Answer(429, {"Retry-After": "60"})], ids=["retry", "rest"])
def test_a_clock_that_was_hours_ahead_puts_a_retry_off_by_hours(
    rig: Rig, receiver: Receiver, standin: StandIn, refusal: Answer
) -> None:
    """What a clock that is set back had made wait, as of a machine that just began, does not wait so long."""
    receiver.answers = [refusal]
    sell(rig, standin)
    got(rig, receiver, 1)
    settled(rig, pending=1)
    clock = asleep(rig)
    assert clock._at
    clock._at -= timedelta(hours=2)
    clock.now_s += 60
    got(rig, receiver, 2)
    settled(rig)


def test_an_endpoint_under_another_name_loses_deliveries(
    rig: Rig, receiver: Receiver, standin: StandIn, log_lines: LogLines
) -> None:
    """That they are parked is said, and when the name is back in time they are sent, in their order."""
    receiver.choose = lambda _: BUSY
    for _ in range(2):
        sell(rig, standin)
    settled(rig, pending=2)
    config = rig.config
    renamed = structs.replace(config.webhooks[0], name="new")
    secrets = {"new": config.webhook_secrets["site"]}
    configure(rig, structs.replace(config, webhooks=(renamed,), webhook_secrets=secrets))
    (record,) = log_lines.of("webhook.removed")
    assert (record["level"], "webhook site: " in record["message"]) == ("WARNING", True)
    assert " 2 that waited " in record["message"]
    rig.restart()
    rig.portal.call(rig.account.outputs.webhooks.start)
    receiver.choose = lambda _: None
    before = len(receiver.got)
    configure(rig, config)
    settled(rig)
    assert [each.id for each in receiver.got][before:] == sent(rig, "id")
    assert len(log_lines.of("webhook.removed")) == 1


def test_a_delivery_that_is_none_is_sent_again(rig: Rig, receiver: Receiver) -> None:
    """An id or a name that is not there is refused, and nothing is done."""
    retry = rig.account.outputs.webhooks.retry
    with pytest.raises(UnknownDelivery, match="no delivery msg_0"):
        rig.portal.call(lambda: retry(ids=["msg_0"], endpoint=None))
    with pytest.raises(UnknownDelivery, match="no endpoint nobody; configured: site"):
        rig.portal.call(lambda: retry(ids=[], endpoint="nobody"))
    with pytest.raises(UnknownDelivery):
        rig.portal.call(lambda: retry(ids=["msg_0"], endpoint="site"))


def test_deliveries_pile_up_for_ever(rig: Rig, receiver: Receiver, standin: StandIn) -> None:
    """What is done and older than `sync.keep_changes` is removed; what waits, or is younger, stays."""
    sell(rig, standin)
    settled(rig)
    receiver.choose = lambda _: BUSY
    sell(rig, standin)
    settled(rig, pending=1)
    rig.until(lambda: sent(rig, "attempts") == [1, 1])
    keep, day = rig.config.sync.keep_changes, timedelta(days=1)

    def prune(later: timedelta) -> int:
        at = rig.clock.now() + later
        with rig.account.database.begin(write=True) as connection:
            old = deliveries.old(connection, keep, at, at)
            return changes.prune(connection, schema.deliveries, old)

    assert prune(10 * keep) == 0  # a clock that is ahead: the latest is as old
    rig.sql("UPDATE syncd_deliveries SET created_at = '2020-01-02 03:04:05' WHERE seq = 1")
    assert prune(-20 * keep) == 0
    assert prune(day) == 1
    assert sent(rig, "state") == ["pending"]


def test_an_endpoint_is_told_of_what_it_does_not_want(
    rig: Rig, receiver: Receiver, other: Receiver, standin: StandIn
) -> None:
    """It gets the types that it names, of the events that it names by id or `ext_id`."""
    slug = rig.sql(f"SELECT ext_id FROM billetweb_events WHERE id = '{CONCERT}'")[0][0]
    config = structs.replace(rig.config, webhooks=(), webhook_secrets={})
    config = telling(config, receiver, on=("event.full",), events=(slug,))
    configure(rig, telling(config, other, on=("event.changed",), events=(FESTIVAL,), name="other"))
    standin.sell(CONCERT, 3)
    sell(rig, standin, FESTIVAL)
    rig.until(lambda: (receiver.types(), other.types()) == (["event.full"], ["event.changed"]))
    assert other.got[0].told["data"]["id"] == FESTIVAL
    assert len(sent(rig)) == 2


def put(rig: Rig, *told: tuple[str, str]) -> None:
    """Put deliveries on record, each with its id and its event, and have them sent."""
    messages = [Message(key, "site", "event.changed", event_id, "{}") for key, event_id in told]
    with rig.account.database.begin(write=True) as connection:
        deliveries.put(connection, messages, rig.clock.now())
    rig.portal.call(rig.account.outputs.webhooks.refresh)


def test_each_delivery_after_an_outage_looks_at_all_that_wait(rig: Rig, receiver: Receiver) -> None:
    """Of hundreds of deliveries each is sent once, in their order, for a few looks at all of them."""
    looks = list[str]()

    def note(*told: object) -> None:
        statement = str(told[2])
        looks.extend([statement] if "syncd_deliveries" in statement and "GROUP BY" in statement else [])

    listen(Engine, "before_cursor_execute", note)
    try:
        put(rig, *((f"msg_{one}", str(one)) for one in range(350)))
        got(rig, receiver, 350)
    finally:
        remove(Engine, "before_cursor_execute", note)
    assert [each.id for each in receiver.got] == [f"msg_{one}" for one in range(350)]
    settled(rig)
    assert 0 < len(looks) < 35


def test_a_delivery_that_was_found_first_overtakes_an_earlier_one(rig: Rig, receiver: Receiver) -> None:
    """What was found to be due is looked at again as it is sent: an earlier one may be due by then."""
    goes_on = threading.Event()
    put(rig, ("msg_1", "1"))
    got(rig, receiver, 1)
    rig.sql("UPDATE syncd_deliveries SET state = 'parked'")
    receiver.answers = [Answer(waits=goes_on)]
    put(rig, ("msg_2", "2"), ("msg_3", "1"), ("msg_4", "4"))
    rig.until(lambda: len(receiver.got) == 2)
    rig.portal.call(lambda: rig.account.outputs.webhooks.retry(ids=["msg_1"], endpoint=None))
    rig.sql("DELETE FROM syncd_deliveries WHERE id = 'msg_4'")
    goes_on.set()
    settled(rig)
    assert [each.id for each in receiver.got] == ["msg_1", "msg_2", "msg_1", "msg_3"]
