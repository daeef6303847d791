"""Attendees: the first import, increments, what only a full read shows, and what must never be kept."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, mirrors, rig_on
from support import faults as fault
from support.events import CONCERT, FESTIVAL, WORKSHOP, kinds
from support.faults import with_rows
from support.people import WHOLE, check_in, delete_attendee, first_of, held, overlap, read, served
from support.processes import eventually
from support.real_databases import url_at
from support.variants import mostly_slow

from syncd.account import upkeep
from syncd.billetweb import body as answers
from syncd.billetweb import fields
from syncd.config import Config
from syncd.database import schema, state
from syncd.mirror.diff import LOGGED
from syncd.model import ATTENDEES, PERSONAL, Attendee
from syncd.run import attendees
from syncd.standin.people import FIRSTNAMES, NAMES
from syncd.standin.server import StandIn

TABLE = schema.attendees.name


@pytest.fixture(params=mostly_slow(["full", "minimal"], "they differ in the columns that are kept"))
def config(request: pytest.FixtureRequest, make_config: MakeConfig) -> Config:
    """Return settings that mirror attendees, in both ways."""
    return make_config(billetweb__concurrency=1, sync__attendees=request.param)


@pytest.fixture
def people(config: Config, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that mirrors attendees."""
    with rig_on(config) as rig:
        yield rig


@pytest.fixture
def full(make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that has imported attendees with their personal data."""
    with rig_on(make_config(billetweb__concurrency=1, sync__attendees="full")) as rig:
        assert rig.run().outcome == "ok"
        yield rig


# --- the first import


def test_an_import_lacks_somebody(people: Rig, config: Config, standin: StandIn) -> None:
    """The first run brings every attendee, refunded ones too, as Billetweb has them."""
    standin.refund(FESTIVAL, 2)
    run = people.run()
    assert run.outcome == "ok"
    everybody = served(standin, full=config.sync.attendees == "full")
    assert held(people) == everybody
    assert sum(attendee.disabled or False for attendee in everybody.values()) == 2
    mirrors(people, standin)
    ((changes,),) = people.sql("SELECT count(*) FROM syncd_changes WHERE run_id = ?", run.id)
    assert run.counts.inserted == changes
    assert {path for path, _ in read(standin)} == {"/attendees"}  # not once more, event by event


def test_an_answer_that_is_too_large_stops_the_import(
    full: Rig, make_config: MakeConfig, standin: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """What cannot be had at once is asked for in shorter spans of time."""
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 60_000)
    standin.requests.clear()
    config = make_config(sync__attendees="full", database__url=url_at(tmp_path / "other.db"))
    with rig_on(config) as rig:
        assert rig.run().outcome == "ok"
        assert held(rig) == held(full) == served(standin, full=True)
    spans = [query for _, query in read(standin)]
    assert len(spans) > 8
    assert [query for query in spans if "last_update" not in query] == spans[-1:]
    unbounded = [query for query in spans if "to" not in query]
    assert spans[: len(unbounded)] == unbounded  # till one was small enough
    assert overlap(spans)


def test_an_import_that_was_cut_starts_again(people: Rig, standin: StandIn, config: Config) -> None:
    """What was imported stays, and the next run goes on behind it."""
    standin.fail("/attendees", lambda answer: answer)
    standin.fail("/attendees", fault.status(503), times=3)
    standin.fail("/event/*/attendees", fault.status(503), times=None)
    run = people.run()
    failed = [(f"event {event_id}", "transport") for event_id in sorted(standin.events)]
    assert (run.outcome, kinds(run)) == ("failed", [("attendees", "transport"), *failed])
    some = held(people)
    assert 0 < len(some) < len(served(standin, full=False))
    standin.heal()
    standin.requests.clear()
    assert people.run().outcome == "ok"
    assert held(people) == served(standin, full=config.sync.attendees == "full")
    increment, *others = [query for path, query in read(standin) if path == "/attendees"]
    assert "to" not in increment
    assert all("to" in query for query in others)


# --- increments


def test_an_increment_costs_more_than_one_request(people: Rig, config: Config, standin: StandIn) -> None:
    """A sale and a refund come with one request, which asks for little more than is new."""
    people.run()
    standin.requests.clear()
    standin.sell(WORKSHOP, 2)
    standin.refund(FESTIVAL)
    run = people.run()
    assert run.outcome == "ok"
    assert held(people) == served(standin, full=config.sync.attendees == "full")
    [(path, query)] = read(standin)
    assert (path, query["disabled"]) == ("/attendees", "1")
    since = datetime.fromtimestamp(int(query["last_update"]), UTC)
    assert timedelta(0) < datetime.now(UTC) - since - attendees.OVERLAP < timedelta(minutes=1)
    rows = people.sql("SELECT kind FROM syncd_changes WHERE run_id = ? AND table_name = ?", run.id, TABLE)
    assert sorted(kind for (kind,) in rows) == ["inserted", "inserted", "updated"]
    mirrors(people, standin)


def test_an_increment_that_is_too_large_is_given_up(
    people: Rig, standin: StandIn, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long time without runs it comes in parts, and not all is imported again for it."""
    people.run()
    ((text,),) = people.sql("SELECT value FROM syncd_cursors")
    cursor = (json.loads(text) if isinstance(text, str) else text) | {"since": "2026-01-01T00:00:00Z"}
    people.sql("UPDATE syncd_cursors SET value = ?", json.dumps(cursor))
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 60_000)
    standin.sell(WORKSHOP)
    standin.requests.clear()
    assert people.run().outcome == "ok"
    assert held(people) == served(standin, full=config.sync.attendees == "full")
    assert len(read(standin)) > 5
    assert all("last_update" in query for path, query in read(standin))
    standin.requests.clear()
    assert people.run().outcome == "ok"
    assert len(read(standin)) == 1


def test_what_overlaps_is_changed_again(people: Rig, standin: StandIn) -> None:
    """A row that an increment brings once more is no change."""
    people.run()
    standin.sell(WORKSHOP)
    assert people.run().counts.inserted == 1
    run = people.run()
    assert (run.outcome, run.counts.inserted, run.counts.updated) == ("ok", 0, 0)


@pytest.mark.parametrize(
    "broken",
    mostly_slow(
        [fault.truncated, fault.error_object("oops", "Something"), fault.empty, fault.null, fault.html_page],
        "each takes two runs",
        always=2,
    ),
)
def test_a_broken_answer_moves_the_cursor(
    people: Rig, config: Config, standin: StandIn, broken: fault.Fault
) -> None:
    """The next run asks for the same again; meanwhile each event is asked for its own."""
    people.run()
    standin.sell(WORKSHOP)
    standin.refund(FESTIVAL)
    cursor = people.sql("SELECT value FROM syncd_cursors")
    standin.fail("/attendees", broken, times=None)
    run = people.run()
    assert (run.outcome, [subject for subject, _ in kinds(run)]) == ("partial", ["attendees"])
    assert people.sql("SELECT value FROM syncd_cursors") == cursor
    assert held(people) == served(standin, full=config.sync.attendees == "full")
    standin.heal()
    standin.requests.clear()
    assert people.run().outcome == "ok"
    assert [path for path, _ in read(standin)] == ["/attendees"]


def row_without_id(rows: list[Any]) -> list[Any]:
    return [*rows[:-1], {**rows[-1], "id": ""}]


def test_one_bad_row_is_passed_over(people: Rig, standin: StandIn) -> None:
    """A row without an id makes the whole answer unusable: nobody knows who it was."""
    people.run()
    standin.sell(WORKSHOP, 2)
    before = held(people)
    standin.fail("*/attendees", with_rows(row_without_id), times=None)
    run = people.run()
    assert kinds(run)[0] == ("attendees", "malformed")
    assert held(people) == before


def test_a_bad_row_is_told_by_its_place_in_a_slice(full: Rig, standin: StandIn) -> None:
    """The error counts the rows from the answer's beginning, by which somebody finds the bad one."""
    standin.fail("/attendees", with_rows(lambda rows: [rows[0] | {"long": "x" * 1000}] * 600 + [None]))
    standin.sell(WORKSHOP)
    run = full.run()
    assert [error.message for error in run.errors] == ["GET /attendees: attendees[600] is null"]


def test_one_bad_row_keeps_everybody_out(people: Rig, config: Config, standin: StandIn) -> None:
    """An account whose attendees cannot be imported at once is imported event by event."""
    standin.fail("/attendees", with_rows(row_without_id), times=None)
    run = people.run()
    assert kinds(run) == [("attendees", "malformed")]
    assert held(people) == served(standin, full=config.sync.attendees == "full")
    standin.requests.clear()
    people.run()
    assert all("last_update" in query for _, query in read(standin)), "and only once whole"
    standin.heal()
    assert people.run().outcome == "ok"
    assert held(people) == served(standin, full=config.sync.attendees == "full")


def test_more_than_fits_in_the_least_span_keeps_everybody_out(
    people: Rig, config: Config, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be divided by time is, by event."""
    for event_id in standin.events:
        for key in standin.attendees(event_id):
            standin.attendance[event_id].touch(key, datetime.now(UTC) - timedelta(days=3))
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 250_000)
    run = people.run()
    assert kinds(run) == [("attendees", "too_large")]
    assert held(people) == served(standin, full=config.sync.attendees == "full")


def test_a_clock_that_was_ahead_hides_sales(people: Rig, standin: StandIn, config: Config) -> None:
    """A cursor that lies in the future tells nothing, so all is imported again."""
    people.run()
    ahead = json.dumps({"since": "2999-01-01T00:00:00Z", "before": None, "imported_at": None})
    people.sql("UPDATE syncd_cursors SET value = ?", ahead)
    standin.sell(WORKSHOP)
    assert people.run().outcome == "ok"
    assert held(people) == served(standin, full=config.sync.attendees == "full")


# --- what only a full read of an event shows


def test_a_deleted_place_stays_for_ever(people: Rig, standin: StandIn, config: Config) -> None:
    """It is absent in a full run and gone with the next; a refund is something else."""
    people.run()
    gone = first_of(standin, FESTIVAL)
    delete_attendee(standin, gone)
    assert people.run().counts.vanished == 0  # nothing tells
    assert gone in held(people)
    assert people.run(full=True).counts.vanished == 0
    standin.requests.clear()
    assert people.run().counts.vanished == 1  # the event is looked at again, unasked
    assert [path for path, query in read(standin) if query == WHOLE] == [f"/event/{FESTIVAL}/attendees"]
    assert held(people) == served(standin, full=config.sync.attendees == "full")
    [(disabled, vanished_at)] = people.sql(
        "SELECT disabled, vanished_at FROM billetweb_attendees WHERE id = ?", gone
    )
    assert not disabled
    assert vanished_at


def test_a_place_that_comes_back_stays_away(full: Rig, standin: StandIn) -> None:
    """A vanished row that Billetweb returns is one that returned."""
    rows = standin.attendees(FESTIVAL)
    key = first_of(standin, FESTIVAL)
    kept = rows.pop(key)
    full.run(full=True)
    assert full.run(full=True).counts.vanished == 1
    rows[key] = kept
    assert full.run(full=True).counts.returned == 1
    assert held(full) == served(standin, full=True)


def test_an_edit_that_nothing_tells_of_is_never_seen(full: Rig, standin: StandIn) -> None:
    """A check-in that left `last_update` alone comes with the full read of its event."""
    key = first_of(standin, CONCERT)
    check_in(standin, key)
    full.run()
    assert held(full)[key].used == 0
    run = full.run(full=True)
    assert (run.counts.updated, held(full)[key].used) == (1, 1)
    assert held(full) == served(standin, full=True)


def test_full_reads_happen_with_every_run(full: Rig, standin: StandIn) -> None:
    """Between full runs no event's attendees are read whole, unless it is named."""
    standin.requests.clear()
    full.run()
    assert {path for path, _ in read(standin)} == {"/attendees"}
    full.run("manual", events=(CONCERT,))
    assert read(standin)[-1] == (f"/event/{CONCERT}/attendees", WHOLE)


@pytest.mark.parametrize(
    "lacking", mostly_slow([with_rows(lambda rows: rows[:2]), fault.raw(b"[]")], "each takes three runs")
)
def test_an_answer_that_lacks_most_is_believed(full: Rig, standin: StandIn, lacking: fault.Fault) -> None:
    """Of a full read without most of an event's attendees nothing is marked, and the run says so."""
    before = held(full)
    standin.fail(f"/event/{FESTIVAL}/attendees", lacking, times=None)
    for _ in range(2):
        run = full.run("manual", events=(FESTIVAL,))
        assert kinds(run) == [(f"event {FESTIVAL}", "doubted")]
        assert TABLE in run.errors[0].message
        assert held(full) == before


def test_an_answer_that_lacks_most_takes_anybody_away(full: Rig, standin: StandIn) -> None:
    """What it holds is written, what it lacks stays, and who sold meanwhile is still asked for."""
    before = held(full)
    key = first_of(standin, FESTIVAL)
    edited = {**standin.attendees(FESTIVAL)[key], "price": "999.00"}
    standin.fail(f"/event/{FESTIVAL}/attendees", with_rows(lambda _: [edited]))
    known = full.sql("SELECT attendees_full_at FROM syncd_reads WHERE event_id = ?", FESTIVAL)
    run = full.run("manual", events=(FESTIVAL,))
    assert kinds(run) == [(f"event {FESTIVAL}", "doubted")]
    assert (run.counts.inserted, run.counts.updated, run.counts.vanished) == (0, 1, 0)
    assert held(full).keys() == before.keys()
    assert held(full)[key].price == Decimal("999.00")
    assert full.sql("SELECT attendees_full_at FROM syncd_reads WHERE event_id = ?", FESTIVAL) == known
    assert full.run(full=True).outcome == "ok"
    assert held(full) == served(standin, full=True) == before


def test_rows_of_another_event_stay_there(full: Rig, standin: StandIn) -> None:
    """Those that an answer mixes up are read right again with the next answers."""
    rows = [*standin.attendees(CONCERT).values()]
    standin.fail(f"/event/{FESTIVAL}/attendees", with_rows(lambda _: rows))
    full.run("manual", events=(FESTIVAL,))
    assert full.run(full=True).counts.vanished == 0
    assert held(full) == served(standin, full=True)


def test_somebody_who_moved_to_another_event_is_taken_for_gone(full: Rig, standin: StandIn) -> None:
    """Who is absent from an event for good, and in the same run is found in another, stays there."""
    moved = first_of(standin, FESTIVAL)
    row = standin.attendees(FESTIVAL).pop(moved)
    full.run(full=True)
    standin.attendees(CONCERT)[moved] = row
    standin.requests.clear()
    run = full.run(full=True)
    whole = [path for path, query in read(standin) if query == WHOLE]
    assert whole.index(f"/event/{FESTIVAL}/attendees") < whole.index(f"/event/{CONCERT}/attendees")
    assert run.counts.vanished == 0
    assert held(full)[moved].event_id == CONCERT


def test_half_an_event_is_written(full: Rig, standin: StandIn) -> None:
    """An event whose figures cannot be used keeps its attendees too: they commit together."""
    before = full.dump(FESTIVAL)
    standin.sell(FESTIVAL, 3)
    standin.fail(f"/event/{FESTIVAL}/tickets", fault.truncated)
    run = full.run("manual", events=(FESTIVAL,))
    assert kinds(run) == [(f"event {FESTIVAL}", "malformed")]
    assert full.dump(FESTIVAL) == before


# --- a key that is limited to some events


def test_a_limited_key_mirrors_nobody(people: Rig, standin: StandIn, config: Config) -> None:
    """Attendees are read event by event: first all, then what was modified; and no run fails for it."""
    standin.restricted = True
    assert people.run().outcome == "ok"
    is_full = config.sync.attendees == "full"
    assert held(people) == served(standin, full=is_full)
    standin.requests.clear()
    standin.sell(WORKSHOP)
    standin.refund(FESTIVAL)
    run = people.run()
    assert (run.outcome, run.counts.inserted) == ("ok", 1)
    assert held(people) == served(standin, full=is_full)
    assert len(read(standin)) == len(standin.events)
    sinces = [datetime.fromtimestamp(int(query["last_update"]), UTC) for _, query in read(standin)]
    assert all(timedelta(minutes=10) < datetime.now(UTC) - since < timedelta(minutes=12) for since in sinces)


def test_a_clock_that_was_ahead_hides_sales_from_a_limited_key(
    people: Rig, standin: StandIn, config: Config
) -> None:
    """An event that was read in the future is read whole."""
    standin.restricted = True
    people.run()
    people.sql("UPDATE syncd_reads SET attendees_at = ?", "2999-01-01 00:00:00.000000")
    standin.sell(WORKSHOP)
    assert people.run().outcome == "ok"
    assert held(people) == served(standin, full=config.sync.attendees == "full")


@pytest.mark.parametrize("limited", [False, True])
def test_clock_that_is_fast_loses_sales(
    make_config: MakeConfig, standin: StandIn, instant_retries: None, limited: bool
) -> None:
    """By how much this clock is ahead of Billetweb's, by so much earlier increments begin."""
    standin.restricted = limited
    fast = WaitedFor()
    fast.now_s = 20 * 60.0
    with rig_on(make_config(billetweb__concurrency=1, sync__attendees="minimal"), fast) as rig:
        assert rig.run().outcome == "ok"
        standin.sell(WORKSHOP)
        assert rig.run().counts.inserted == 1
        assert held(rig) == served(standin, full=False)


def test_json_of_another_type_is_no_change(full: Rig, standin: StandIn) -> None:
    """Inside JSON 1 is not true; and a value that a database spells its own way is no change."""
    row = standin.attendees(CONCERT)[first_of(standin, CONCERT)]
    row["custom"] = {"a": 1, "b": 1e23, "c": -0.0}
    assert full.run(full=True).counts.updated == 1
    assert full.run(full=True).counts.updated == 0
    row["custom"] = {"a": True, "b": 1e23, "c": -0.0}
    assert full.run(full=True).counts.updated == 1


# --- what must not be kept


def test_a_change_of_somebody_is_told_to_all(full: Rig, standin: StandIn) -> None:
    """The log of changes holds no personal data; a change of nothing else has an empty diff."""
    key = first_of(standin, CONCERT)
    row = standin.attendees(CONCERT)[key]
    row["firstname"], row["custom"] = "Nobody", {"Diet ": "none"}
    standin.attendance[CONCERT].touch(key, datetime.now(UTC))
    last_update_at = fields.to_instant(row["last_update"])
    run = full.run()
    assert (run.counts.updated, held(full)[key].firstname) == (1, "Nobody")
    diffs = full.sql("SELECT diff FROM syncd_changes WHERE table_name = ?", TABLE)
    text = "".join(diff if isinstance(diff, str) else json.dumps(diff) for (diff,) in diffs)
    assert not [name for name in (*FIRSTNAMES, *NAMES, "Nobody", "example.org", "Diet") if name in text]
    changed = json.loads(diffs[-1][0]) if isinstance(diffs[-1][0], str) else diffs[-1][0]
    assert changed.keys() == {"last_update_at"}
    assert not changed.keys() & PERSONAL
    assert last_update_at


def test_a_link_with_a_key_is_kept(full: Rig, standin: StandIn) -> None:
    """No bearer link and no scanner's address gets into the database, in whatever column."""
    check_in(standin, first_of(standin, CONCERT))
    full.run(full=True)
    rows = full.sql("SELECT * FROM billetweb_attendees") + full.sql("SELECT diff FROM syncd_changes")
    text = repr(rows)
    assert "key=" not in text
    assert "scanner@" not in text
    assert "EXEMPLE" in text  # the search does find what is there


def test_minimal_keeps_personal_data(make_config: MakeConfig, full: Rig, standin: StandIn) -> None:
    """From full to minimal the personal columns are emptied with the next run, which says so."""
    everybody = served(standin, full=True)
    assert held(full) == everybody
    full.portal.call(full.account.configure, make_config(sync__attendees="minimal", billetweb__concurrency=1))
    assert full.run().outcome == "ok"
    assert held(full) == served(standin, full=False)
    columns = ", ".join(sorted(PERSONAL - {"extra"}))
    assert set(full.sql(f"SELECT {columns} FROM billetweb_attendees")) == {(None,) * (len(PERSONAL) - 1)}


def test_minimal_keeps_what_is_unknown_of_somebody_without_a_name(full: Rig, make_config: MakeConfig) -> None:
    """What syncd does not know of somebody may be personal, and goes though all other columns are empty."""
    empty = ", ".join(f"{name} = NULL" for name in sorted(PERSONAL - {"extra"}))
    full.sql(f"UPDATE billetweb_attendees SET {empty}, extra = ?", '{"mobile": "0600000000"}')
    full.portal.call(full.account.configure, make_config(sync__attendees="minimal"))
    eventually(partial(is_kept, full, "minimal"))
    found = full.sql("SELECT DISTINCT CAST(extra AS TEXT) FROM billetweb_attendees")
    assert found == [("{}",)]


def test_erasing_goes_unsaid(
    make_config: MakeConfig, full: Rig, standin: StandIn, log_lines: LogLines
) -> None:
    """Each step back is told once, with how many it concerned; a step forward imports again."""
    count = len(held(full))
    for mode, expected in (("minimal", count), ("none", count), ("none", None), ("full", None)):
        log_lines.clear()
        config = make_config(sync__attendees=mode, billetweb__concurrency=1)
        full.portal.call(full.account.configure, config)
        assert full.run().outcome == "ok"
        told = [line["erased"] for line in log_lines.of("attendees.erased")]
        assert told == ([expected] if expected else [])
        if mode == "none":
            assert held(full) == {}
            assert full.sql("SELECT * FROM syncd_changes WHERE table_name = ?", TABLE) == []
            ((cursor,),) = full.sql("SELECT value FROM syncd_cursors")  # by it who sells is still told
            assert "since" in cursor
    assert held(full) == served(standin, full=True)


def is_kept(rig: Rig, mode: str) -> bool:
    return bool(rig.query(state.get, state.KEPT, str) == mode)


@pytest.mark.parametrize("paused", [True, False])
def test_a_pause_keeps_personal_data(full: Rig, make_config: MakeConfig, paused: bool) -> None:
    """What is no longer wanted goes with the reload that says so, whether runs come or not."""
    full.portal.call(lambda: full.account.pause(paused=paused))
    for mode in ("minimal", "none"):
        assert held(full) != {}
        full.portal.call(full.account.configure, make_config(sync__attendees=mode))
        eventually(partial(is_kept, full, mode))
    assert held(full) == {}


@pytest.mark.parametrize("why", ["paused", "no run at the start"])
def test_a_start_without_a_run_keeps_personal_data(full: Rig, make_config: MakeConfig, why: str) -> None:
    """What is no longer wanted goes with the start that finds it, though no run comes soon."""
    full.portal.call(lambda: full.account.pause(paused=why == "paused"))
    assert held(full) != {}
    full.config = make_config(sync__attendees="none", sync__run_on_start=why == "paused")
    full.restart()

    async def start() -> None:
        full.account.start()

    full.portal.call(start)
    eventually(partial(is_kept, full, "none"))
    assert held(full) == {}
    full.portal.call(full.account.schedule.stop)


@pytest.mark.parametrize(("mode", "emails"), [("minimal", 0), ("none", 0), ("full", 1)])
def test_a_run_in_progress_brings_back_what_a_reload_erased(
    full: Rig, make_config: MakeConfig, standin: StandIn, mode: str, emails: int
) -> None:
    """What a reload says of attendees is done when the run is over that began before; paused or not."""
    full.portal.call(lambda: full.account.pause(paused=True))
    standin.fail("/events", fault.hang)
    before = len(standin.requests)
    run = full.request("manual", full=True)
    eventually(lambda: len(standin.requests) > before)
    full.portal.call(full.account.configure, make_config(billetweb__concurrency=1, sync__attendees=mode))
    standin.heal()
    assert full.wait(run).outcome == "ok"
    eventually(partial(is_kept, full, mode))
    found = full.sql("SELECT count(*) FROM billetweb_attendees WHERE order_email IS NOT NULL")
    assert min(found[0][0], 1) == emails
    assert bool(held(full)) is (mode != "none")


@pytest.mark.sqlite_only("on PostgreSQL a vacuum does that, some time")
def test_erased_data_stays_in_the_file(full: Rig, make_config: MakeConfig, standin: StandIn) -> None:
    """After the erasing no byte of a name is left in the database's file, nor in the log beside it."""
    config = make_config(sync__attendees="none")
    full.portal.call(full.account.configure, config)
    full.run()
    file = Path(full.url.removeprefix("sqlite:///"))
    content = file.read_bytes() + file.with_name(f"{file.name}-wal").read_bytes()
    assert b"ada" not in content.lower().replace(b"unreadable", b"")  # a column's name
    assert "Désiré".encode() not in content
    assert FESTIVAL.encode() in content


def test_a_reload_during_the_erasing_keeps_personal_data(
    full: Rig, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run erases and reads by the same settings, whatever is configured meanwhile."""
    minimal, everything = (
        make_config(billetweb__concurrency=1, sync__attendees=mode) for mode in ("minimal", "full")
    )
    full.portal.call(full.account.configure, minimal)
    retain = upkeep.retain

    async def retain_and_reload(*arguments: Any) -> None:
        await retain(*arguments)
        await full.account.configure(everything)

    monkeypatch.setattr(upkeep, "retain", retain_and_reload)
    full.run(full=True)
    assert full.sql("SELECT count(*) FROM billetweb_attendees WHERE order_email IS NOT NULL") == [(0,)]


def test_public_columns_are_those_in_front() -> None:
    """The diffs of the change log take the first columns of a row: no personal one may be among them."""
    logged = LOGGED[ATTENDEES]
    assert Attendee.__struct_fields__[: len(logged)] == logged
    assert not set(logged) & PERSONAL
