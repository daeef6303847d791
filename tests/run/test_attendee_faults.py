"""What goes wrong while attendees are read: nothing is lost, and an event's figures do not wait for them."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, rig_on
from msgspec import structs
from support import faults as fault
from support.events import CONCERT, FESTIVAL, asked, kinds
from support.faults import with_rows
from support.people import WHOLE, check_in, delete_attendee, first_of, held, overlap, read, served
from support.sized import Sized
from support.variants import mostly_slow

from syncd.billetweb import body as answers
from syncd.config import Config
from syncd.run import attendees
from syncd.standin.server import StandIn, php_json, serving

At = Callable[[int], None]


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Return settings by which attendees are mirrored."""
    return make_config(billetweb__concurrency=1, sync__attendees="minimal")


@pytest.fixture
def clock() -> WaitedFor:
    """Return syncd's time."""
    return WaitedFor()


@pytest.fixture
def at(standin: StandIn, clock: WaitedFor) -> At:
    """Give what makes it so many minutes later, for syncd and for the stand-in."""

    def go(minutes: int) -> None:
        clock.now_s = 60.0 * minutes
        standin.now = standin._began + timedelta(minutes=minutes)

    return go


@pytest.fixture
def people(config: Config, clock: WaitedFor, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that has imported attendees."""
    with rig_on(config, clock) as rig:
        assert rig.run().outcome == "ok"
        yield rig


def missing(rig: Rig, standin: StandIn) -> set[str]:
    return served(standin, full=False).keys() - held(rig).keys()


def places_left(rig: Rig, event_id: str) -> int:
    ((left,),) = rig.sql("SELECT places_left FROM billetweb_events WHERE id = ?", event_id)
    return int(left)


def test_a_doubted_read_loses_a_sale(
    config: Config, standin: StandIn, clock: WaitedFor, at: At, instant_retries: None
) -> None:
    """An answer that lacks everybody is asked for again, also where events are read by themselves."""
    standin.restricted = True
    with rig_on(config, clock) as rig:
        rig.run()
        at(10)
        delete_attendee(standin, first_of(standin, FESTIVAL))
        at(15)
        assert rig.run(full=True).outcome == "ok"
        at(17)
        standin.sell(FESTIVAL)
        at(30)
        standin.fail(f"/event/{FESTIVAL}/attendees", fault.raw(b"[]"))
        assert kinds(rig.run()) == [(f"event {FESTIVAL}", "doubted")]
        at(45)
        assert rig.run().outcome == "ok"
        assert not missing(rig, standin)


@pytest.mark.parametrize(
    "broken", mostly_slow([fault.truncated, fault.status(503), fault.unauthorized], "each takes three runs")
)
def test_figures_wait_for_attendees(people: Rig, standin: StandIn, broken: fault.Fault) -> None:
    """Where an event's attendees cannot be used, its figures are written, and the run says so."""
    before, left = held(people), places_left(people, FESTIVAL)
    standin.sell(FESTIVAL, 3)
    standin.fail(f"/event/{FESTIVAL}/attendees", broken, times=3)
    run = people.run("manual", events=(FESTIVAL,))
    ((subject, _),) = kinds(run)
    assert (subject, run.synced, run.failed) == (f"event {FESTIVAL}", 0, 1)
    assert held(people) == before
    assert places_left(people, FESTIVAL) == left - 3
    assert not people.account.client.breaker.refused  # the key is good: it was given the list of events
    standin.heal()
    assert people.run("manual", events=(FESTIVAL,)).outcome == "ok"
    assert not missing(people, standin)


def test_broken_attendees_are_evidence(people: Rig, standin: StandIn) -> None:
    """A read that could not be used says nothing of a row that the one before it lacked."""
    key = first_of(standin, FESTIVAL)
    delete_attendee(standin, key)
    assert people.run(full=True).outcome == "ok"
    standin.fail(f"/event/{FESTIVAL}/attendees", fault.truncated)
    people.run()
    assert people.sql("SELECT row_id, reads FROM syncd_absences") == [(key, 1)]
    assert key in held(people)
    people.run()
    assert key not in held(people)


def test_one_large_event_is_never_read_whole(
    people: Rig, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More attendees than one answer may hold are read in spans of time; who was deleted is found out."""
    for _ in range(3):
        standin.sell(FESTIVAL, 20)
    people.run()
    gone = first_of(standin, FESTIVAL)
    delete_attendee(standin, gone)
    size = len(php_json([*standin.attendees(FESTIVAL).values()]))
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", size * 3 // 4)
    monkeypatch.setattr(attendees, "BEGINNING", datetime.now(UTC) - timedelta(days=400))
    for _ in range(2):
        standin.requests.clear()
        assert people.run("manual", events=(FESTIVAL,)).outcome == "ok"
        assert len(read(standin)) > 2
        assert overlap([query for _, query in read(standin)])
    assert gone in held(people), "runs of named events take nobody away"
    assert people.run().counts.vanished == 1
    assert gone not in held(people)
    assert not missing(people, standin)


@pytest.mark.parametrize("broken", mostly_slow([fault.status(504), fault.truncated], "each takes two runs"))
def test_attendees_of_the_account_that_never_come(
    config: Config, standin: StandIn, instant_retries: None, broken: fault.Fault
) -> None:
    """Each event is asked for its own, already in the same run, and in the next for what is new."""
    with rig_on(config) as rig:
        standin.fail("/attendees", broken, times=None)
        for attempt in range(2):
            standin.requests.clear()
            assert rig.run().outcome == "partial"
            assert not missing(rig, standin)
            whole = [path for path, query in read(standin) if query == WHOLE and path != "/attendees"]
            assert len(whole) == (0 if attempt else len(standin.events))


def test_a_long_import_leaves_no_time_for_events(
    config: Config, standin: StandIn, clock: WaitedFor, instant_retries: None, log_lines: LogLines
) -> None:
    """It stops after its part of the run's time, and the next run goes on with it."""

    def takes_its_part(answer: fault.Answer) -> fault.Answer:
        clock.now_s += attendees.IMPORT_SHARE * config.sync.run_timeout.total_seconds() + 1
        return answer

    standin.fail("/attendees", takes_its_part)
    with rig_on(config, clock) as rig:
        run = rig.run()
        assert (run.outcome, run.synced) == ("ok", 6)
        assert missing(rig, standin)
        assert len(read(standin)) == len(log_lines.of("import.paused")) == 1
        assert rig.run().outcome == "ok"
        assert not missing(rig, standin)


def test_told_of_and_taken_for_gone(people: Rig, standin: StandIn) -> None:
    """A row that the account's answer holds is absent no longer."""
    key = first_of(standin, FESTIVAL)
    lacks = with_rows(lambda rows: [row for row in rows if row["id"] != key])
    standin.fail(f"/event/{FESTIVAL}/attendees", lacks, times=2)
    people.run(full=True)
    check_in(standin, key)
    standin.attendance[FESTIVAL].touch(key, datetime.now(UTC))
    run = people.run()
    assert (run.counts.updated, run.counts.vanished) == (1, 0)
    assert key in held(people)


def test_a_shared_run_reads_less_than_was_asked_for(people: Rig, standin: StandIn) -> None:
    """Who names an event has all of its attendees read, also in a run of the whole account."""
    key = first_of(standin, CONCERT)
    check_in(standin, key)
    run = people.run("manual", events=(CONCERT,), also_whole=True)
    assert (run.whole, run.events, held(people)[key].used) == (True, [CONCERT], 1)


@pytest.mark.parametrize(
    ("events", "sold", "shown"),
    [(12, 3, 1), pytest.param(3, 40, 0, marks=pytest.mark.slow("many runs"))],
    ids=["many small", "few"],
)
def test_most_of_an_account_vanishes_by_itself(
    make_config: MakeConfig, instant_retries: None, events: int, sold: int, shown: int
) -> None:
    """Lost in all events, a few rows in each or all of few: only a person takes them for gone."""
    account = Sized(events=events, attendees=sold)
    with serving(account) as url:
        settings = make_config(
            sync__attendees="minimal", billetweb__base_url=url, billetweb__user=account.user
        )
        with rig_on(settings) as rig:
            rig.run()
            everybody = held(rig)
            account.fail("/event/*/attendees", with_rows(lambda rows: rows[:shown]), times=None)
            runs = [rig.run(full=True), rig.run(), rig.run("manual", full=True)]
            rig.clock.now_s += 2 * 24 * 3600
            runs += [rig.run(full=True), rig.run("manual", full=True)]
            assert {error.kind for run in runs for error in run.errors} == {"doubted"}
            assert "`syncctl accept`" in runs[-1].errors[0].message
            assert held(rig) == everybody
            rig.run("manual", accept=True)
            assert len(held(rig)) == events * shown


@pytest.mark.sqlite_only("on PostgreSQL a vacuum does that, some time")
def test_erased_data_stays_where_somebody_reads(
    make_config: MakeConfig, people: Rig, log_lines: LogLines
) -> None:
    """While a reader holds the write-ahead log the reload says so, and each run, which tries again."""
    path = Path(people.url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM billetweb_attendees").fetchall()
        config = make_config(sync__attendees="none", billetweb__concurrency=1)
        people.portal.call(people.account.configure, config)
        people.until(lambda: len(log_lines.of("attendees.traces")) == 1)
        for _ in range(2):
            log_lines.clear()
            people.run()
            assert len(log_lines.of("attendees.traces")) == 1
    log_lines.clear()
    people.run()
    assert not log_lines.of("attendees.traces")
    log = path.with_name(f"{path.name}-wal")
    assert b"billetweb_attendees" not in log.read_bytes()


# --- figures that a sale makes due


@pytest.fixture
def large(make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig whose mirror is complete, and whose next run reads events in turn."""
    config = make_config(
        billetweb__concurrency=1, billetweb__requests_per_minute=5, sync__attendees="minimal"
    )
    with rig_on(config) as rig:
        assert rig.run().synced == 6
        yield rig


def test_a_sale_during_the_read_is_no_news(large: Rig, standin: StandIn) -> None:
    """What is sold while an event is read makes it due in the next run."""
    left = places_left(large, CONCERT)

    def sell(answer: fault.Answer) -> fault.Answer:
        standin.sell(CONCERT)
        return answer

    standin.fail(f"/event/{CONCERT}/tickets", sell)
    large.run("manual", events=(CONCERT,))
    large.run()
    assert places_left(large, CONCERT) == left - 1


def test_attendees_that_never_fit_cost_an_event_its_place(large: Rig, standin: StandIn) -> None:
    """Its figures are read, so a sale in it is seen in the next run, as in any other."""
    left = places_left(large, CONCERT)
    standin.fail(f"/event/{CONCERT}/attendees", fault.truncated, times=None)
    for _ in range(4):
        assert large.run("manual", events=(CONCERT,)).outcome == "failed"
    standin.sell(CONCERT)
    large.run()
    assert places_left(large, CONCERT) == left - 1


def test_attendees_that_never_come_take_the_first_place_of_every_run(large: Rig, standin: StandIn) -> None:
    """A place that is absent has its event read first, but once where its attendees fail."""
    delete_attendee(standin, next(iter(standin.attendees(CONCERT))))
    large.run("manual", events=(CONCERT,))
    standin.fail(f"/event/{CONCERT}/attendees", fault.truncated, times=None)
    first = []
    for _ in range(3):
        standin.requests.clear()
        large.run()
        first.append(asked(standin, "avail")[0] == CONCERT)
    assert first == [True, False, False]


@pytest.mark.parametrize("ignored", mostly_slow(["everything", "to"], "each takes many requests"))
def test_an_answer_that_is_always_too_large_is_cut_for_ever(
    large: Rig, standin: StandIn, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """Where Billetweb does not heed the borders of a span the event is given up, and says so."""
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 4096)

    def ignore(answer: fault.Answer) -> fault.Answer:
        asked = standin.requests[-1].query
        is_small = ignored == "to" and "last_update" in asked and "to" not in asked
        return structs.replace(answer, body=b"[]" if is_small else b"[" + b" " * 8192 + b"]")

    standin.fail(f"/event/{CONCERT}/attendees", ignore, times=None)
    standin.requests.clear()
    run = large.run("manual", full=True, events=(CONCERT,))
    assert kinds(run) == [(f"event {CONCERT}", "too_large")]
    asked = [request.path for request in standin.requests]
    assert 4 < asked.count(f"/event/{CONCERT}/attendees") < 60


@pytest.mark.parametrize("how", mostly_slow(["reload", "clock"], "each takes many runs"))
def test_an_import_anew_makes_nobody_due(
    large: Rig, make_config: MakeConfig, standin: StandIn, how: str
) -> None:
    """Who sold since the last increment is read in the next run, also where all is imported again."""
    left = places_left(large, CONCERT)
    large.run()
    standin.sell(CONCERT)
    if how == "reload":
        changed = make_config(
            billetweb__concurrency=1, billetweb__requests_per_minute=5, sync__attendees="full"
        )
        large.portal.call(large.account.configure, changed)
    else:
        ((cursor,),) = large.sql("SELECT value FROM syncd_cursors")
        values = json.loads(cursor) if isinstance(cursor, str) else cursor
        ahead = json.dumps(values | {"since": "2999-01-01T00:00:00Z"})
        large.sql("UPDATE syncd_cursors SET value = ?", ahead)
    large.run()
    assert places_left(large, CONCERT) == left - 1


@pytest.mark.parametrize("size", mostly_slow([4096 * 2, 300], "each takes many requests"))
def test_an_import_asks_for_the_same_for_ever(
    make_config: MakeConfig,
    standin: StandIn,
    instant_retries: None,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """Where Billetweb heeds no border, each request of an import asks for less, and it ends."""
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 4096)
    monkeypatch.setattr(attendees, "LARGE_BYTES", 200)  # what is not refused is large all the same
    monkeypatch.setattr(attendees, "SMALL_BYTES", 100)
    monkeypatch.setattr(attendees, "BEGINNING", datetime.now(UTC) - timedelta(days=6))
    standin.events = {CONCERT: standin.events[CONCERT]}
    standin.fail(
        "/attendees", lambda answer: structs.replace(answer, body=b"[" + b" " * size + b"]"), times=None
    )
    config = make_config(sync__attendees="minimal", sync__run_timeout="24h")
    with rig_on(config) as rig:
        run = rig.run()
    asked = [request.query for request in standin.requests if request.path == "/attendees"]
    borders = [(float(query.get("to", "inf")), float(query.get("last_update", "-inf"))) for query in asked]
    assert len(set(borders)) == len(borders)
    tops = [top for top, _ in borders]
    assert tops == sorted(tops, reverse=True)
    if size > 4096:
        assert ("attendees", "too_large") in kinds(run)
        assert 2 < len(asked) < 10
    else:
        assert "attendees" not in dict(kinds(run))
        assert 50 < len(asked) <= 6 * 24 * 60 / 50 + 10  # an hour back each time, less the overlap
