"""One run after another on an account that lives: what is read, written, believed and left alone."""

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from conftest import LogLines, MakeConfig, Rig, mirrors, rig_on
from sqlalchemy import Engine
from sqlalchemy.event import listen, remove
from support import faults as fault
from support.events import CONCERT, FESTIVAL, HOUR_S, OPEN_DAY, OUTING, WEEKEND, WORKSHOP, asked, kinds
from support.faults import with_rows
from support.real_databases import allow, held_up, refuse

from syncd.database import schema
from syncd.model import MAX_ERRORS
from syncd.standin.server import StandIn, serving
from syncd.standin.world import PARIS, WALL, StandInEvent, number

MIRRORED = ("billetweb_events", "billetweb_gauges", "billetweb_tickets", "billetweb_sessions")


def vanished(rig: Rig) -> set[str]:
    return {row[0] for row in rig.sql("SELECT id FROM billetweb_events WHERE vanished_at IS NOT NULL")}


def end(event: StandInEvent, *, hours_ago: int) -> None:
    """Let an event be over since so long."""
    now = datetime.now(PARIS)
    event.row["start"] = (now - timedelta(hours=hours_ago + 2)).strftime(WALL)
    event.row["end"] = (now - timedelta(hours=hours_ago)).strftime(WALL)


def test_a_run_in_which_nothing_changed_writes(rig: Rig, standin: StandIn) -> None:
    """No row of the mirror and no change is written; only the age of the figures moves on."""
    rig.run()
    before = rig.sql("SELECT availability_at FROM billetweb_events ORDER BY id")
    columns = schema.metadata.tables["billetweb_events"].columns.keys()
    watched = ", ".join(f'"{name}"' for name in columns if name != "availability_at")
    for table in (*MIRRORED, "syncd_changes", "syncd_absences"):
        updates = f"UPDATE OF {watched}" if table == "billetweb_events" else "UPDATE"
        refuse(rig.url, *(f"{what} ON {table}" for what in ("INSERT", updates, "DELETE")))
    run = rig.run()
    assert (run.outcome, run.errors) == ("ok", [])
    assert (run.counts.inserted, run.counts.updated) == (0, 0)
    assert run.counts.unchanged == sum(
        1 + len(event.gauges) + len(event.tickets) + len(event.sessions) for event in standin.events.values()
    )
    after = rig.sql("SELECT availability_at FROM billetweb_events ORDER BY id")
    assert all(new > old for (old,), (new,) in zip(before, after, strict=True))
    standin.sell(FESTIVAL)
    assert rig.run().outcome == "failed"  # the triggers do bite


def test_the_counts_of_a_run_are_not_those_of_the_feed(rig: Rig, standin: StandIn) -> None:
    """A sale changes the event, its gauge and its tickets: as many rows as the feed of changes has."""
    first = rig.run()
    standin.sell(CONCERT)
    run = rig.run()
    assert run.counts.updated == 4
    for some in (first, run):
        ((changes,),) = rig.sql("SELECT count(*) FROM syncd_changes WHERE run_id = ?", some.id)
        assert some.counts.inserted + some.counts.updated == changes
    ((diff,),) = rig.sql(
        "SELECT diff FROM syncd_changes WHERE run_id = ? AND table_name = 'billetweb_events'", run.id
    )
    assert diff == '{"places_left":[3,2]}'


def test_a_sold_out_event_is_not_in_the_log(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """An event that sells out, or has places again, is a line, with its places before and now."""
    standin.events[CONCERT].row["name"] = 'Concert à la grange\x1b[2J\n"' + "x" * 90
    rig.run()
    standin.sell(CONCERT, 2)
    rig.run()
    assert not log_lines.of("event.")
    for change in (standin.sell, standin.refund):
        change(CONCERT, 1)
        change(CONCERT, 1)
        rig.run()
    shown = 'Concert à la grange\\x1b[2J "' + "x" * 31 + "…"
    assert [line["message"] for line in log_lines.of("event.")] == [
        f'event {CONCERT} "{shown}": sold out (1 → 0)',
        f'event {CONCERT} "{shown}": places again (0 → 2)',
    ]
    assert [line["event"] for line in log_lines.of("event.")] == ["event.full", "event.reopened"]


def test_a_first_import_is_news(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """What is full when it is first read sold out at some other time; nor is anything told twice."""
    standin.sell(CONCERT, 3)
    rig.run()
    rig.run(full=True)
    assert not log_lines.of("event.")


def test_news_is_told_that_is_not_on_record(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """What could not be written is told by the run that writes it."""
    rig.run()
    standin.sell(CONCERT, 3)
    refuse(rig.url, "UPDATE ON billetweb_tickets")
    assert rig.run().outcome == "failed"
    assert not log_lines.of("event.")
    allow(rig.url, "UPDATE ON billetweb_tickets")
    rig.run()
    (line,) = log_lines.of("event.")
    assert line["message"].endswith(": sold out (3 → 0)")


def test_a_run_of_named_events_reads_all_or_judges_the_others(rig: Rig, standin: StandIn) -> None:
    """Only what was named is read and written; that others are missing means nothing."""
    rig.run()
    standin.sell(FESTIVAL)
    standin.sell(CONCERT)
    del standin.events[OPEN_DAY]
    standin.requests.clear()
    for _ in range(3):
        run = rig.run("manual", events=(CONCERT,))
        assert (run.outcome, run.synced, run.failed) == ("ok", 1, 0)
    assert [request.path for request in standin.requests] == [
        "/events",
        f"/event/{CONCERT}/avail",
        f"/event/{CONCERT}/tickets",
    ] * 3
    assert not vanished(rig)
    mirrors(rig, standin, FESTIVAL, OPEN_DAY)
    with pytest.raises(AssertionError):
        mirrors(rig, standin, OPEN_DAY)  # the sale at the festival is not known yet


@pytest.mark.parametrize(("also", "outcome"), [((), "failed"), ((CONCERT,), "partial")])
def test_an_unknown_id_is_ignored(rig: Rig, also: tuple[str, ...], outcome: str) -> None:
    """An id that Billetweb does not know is an error of its own, and the others named are synced."""
    run = rig.run("manual", events=("404404", *also))
    assert (run.outcome, run.synced, run.failed) == (outcome, len(also), 1)
    assert kinds(run) == [("event 404404", "unknown_event")]


@pytest.mark.parametrize(
    ("also", "told"),
    [((), ("WARNING", "unknown_event")), ((CONCERT,), ("ERROR", "failed"))],
)
def test_a_typing_error_rings_the_alarm(
    rig: Rig, standin: StandIn, log_lines: LogLines, also: tuple[str, ...], told: tuple[str, str]
) -> None:
    """A run that failed for an unknown id alone is a warning, and no failed run; any other failure is one."""
    level, counted = told
    standin.fail(f"/event/{CONCERT}/avail", fault.status(500), times=None)
    run = rig.run("manual", events=("404404", *also))
    assert run.outcome == "failed"
    assert run.is_slip is (not also)
    assert [line["level"] for line in log_lines.of("run.finished")] == [level]
    assert rig.account.facts.totals == {("manual", counted): 1}
    assert rig.account.facts.consecutive_failures == 0
    (unknown,) = [error for error in run.errors if error.kind == "unknown_event"]
    assert "`syncctl events` lists the ids" in unknown.message


def test_a_script_that_names_only_wrong_ids_passes_for_a_typing_error(rig: Rig) -> None:
    """More unknown ids than a run's record keeps are no slip of a person's."""
    run = rig.run("manual", events=tuple(str(404_000 + number) for number in range(MAX_ERRORS + 1)))
    assert (run.outcome, run.is_slip) == ("failed", False)


def test_a_shared_run_forgets_the_events_named(rig: Rig, standin: StandIn) -> None:
    """A run of the whole account that somebody's named events were added to reads those too, ended or not."""
    rig.run()
    end(standin.events[CONCERT], hours_ago=31 * 24)
    standin.sell(CONCERT)
    run = rig.run("manual", events=(CONCERT, "404404"), also_whole=True)
    assert (run.outcome, run.synced, kinds(run)) == ("partial", 6, [("event 404404", "unknown_event")])
    mirrors(rig, standin)


def test_a_past_event_loses_its_figures(make_config: MakeConfig, standin: StandIn) -> None:
    """Of an event that ended long ago only the list is read: its figures and their age stay."""
    with rig_on(make_config(sync__keep_past="30d")) as rig:
        rig.run()
        end(standin.events[CONCERT], hours_ago=31 * 24)
        standin.sell(CONCERT)
        before = rig.dump(CONCERT)
        standin.requests.clear()
        run = rig.run()
        assert (run.outcome, run.synced) == ("ok", 5)
        assert CONCERT not in asked(standin, "avail")
        query = (
            "SELECT places_left, places_total, is_full, availability_at FROM billetweb_events WHERE id = ?"
        )
        left, total, full, at = rig.sql(query, CONCERT)[0]
        assert (left, total, full) == (3, 180, 0)
        assert at in before["billetweb_events"][0]
        assert rig.dump(CONCERT)["billetweb_gauges"] == before["billetweb_gauges"]
        assert not vanished(rig)
        assert rig.run("manual", events=(CONCERT,)).synced == 1  # by name it is read all the same
        assert rig.sql(query, CONCERT)[0][0] == 2


def test_a_run_of_a_past_event_cannot_be_agreed_with(make_config: MakeConfig, standin: StandIn) -> None:
    """What a run by name finds absent in an event that is over vanishes once somebody accepts it."""
    with rig_on(make_config(sync__keep_past="30d")) as rig:
        rig.run()
        end(standin.events[FESTIVAL], hours_ago=31 * 24)
        rig.run()
        standin.fail(f"/event/{FESTIVAL}/tickets", with_rows(lambda rows: rows[1:]), times=None)
        assert rig.run("manual", events=(FESTIVAL,)).counts.vanished == 0
        assert rig.run("manual", events=(FESTIVAL,), accept=True).counts.vanished == 1


def test_an_event_that_ended_between_two_runs_is_taken_for_deleted(rig: Rig, standin: StandIn) -> None:
    """It leaves Billetweb's default list, not ours: it stays live for a while, and is never marked."""
    rig.run()
    end(standin.events[CONCERT], hours_ago=1)
    for full in (False, True, True):
        assert rig.run(full=full).outcome == "ok"
    assert not vanished(rig)
    mirrors(rig, standin)


def test_sessions_are_asked_for_where_there_are_none(rig: Rig, standin: StandIn) -> None:
    """/dates is read for events in session mode only."""
    rig.run()
    rig.run(full=True)
    assert asked(standin, "dates") == [OUTING, OUTING]


def test_an_event_that_switches_to_sessions_keeps_showing_none(rig: Rig, standin: StandIn) -> None:
    """From the next run on its sessions are read, and its figure is theirs."""
    rig.run()
    event = standin.events[WORKSHOP]
    event.row["multiple"] = "1"
    event.sessions = [row | {"id": str(row["id"]) + "1"} for row in standin.events[OUTING].sessions]
    run = rig.run()
    assert (run.outcome, run.errors) == ("ok", [])
    mirrors(rig, standin)
    ((left,),) = rig.sql("SELECT places_left FROM billetweb_events WHERE id = ?", WORKSHOP)
    coming = [row for row in event.sessions if not standin.is_over(row)]
    assert left == sum((number(row["quota"]) or 0) - (number(row["total_sales"]) or 0) for row in coming)


def test_the_oldest_figures_wait_longest(rig: Rig, standin: StandIn) -> None:
    """What a failed or named run left behind comes first in the next one."""
    rig.run()
    for event_id in (CONCERT, FESTIVAL):
        rig.run("manual", events=(event_id,))
    standin.requests.clear()
    rig.run()
    assert asked(standin, "avail") == [WEEKEND, WORKSHOP, OPEN_DAY, OUTING, CONCERT, FESTIVAL]


def test_a_database_that_fails_costs_half_an_event(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """The run is given up as failed, that event's transaction is undone whole, and the next run heals."""
    rig.run()
    standin.sell(WORKSHOP)
    before = rig.dump()
    refuse(rig.url, "UPDATE ON billetweb_tickets")
    log_lines.clear()
    run = rig.run()
    assert (run.outcome, kinds(run)) == ("failed", [("run", "database")])
    after = rig.dump()
    assert {table: after[table] for table in (*MIRRORED[1:], "syncd_changes")} == {
        table: before[table] for table in (*MIRRORED[1:], "syncd_changes")
    }
    (told,) = log_lines.of("error.")
    assert (told["kind"], told["subject"]) == ("database", "run")
    assert "the run was given up, the next run tries again" in told["message"]
    allow(rig.url, "UPDATE ON billetweb_tickets")
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)


def test_a_run_that_is_cut_writes_more_than_it_counts(
    rig: Rig, standin: StandIn, log_lines: LogLines
) -> None:
    """A stop in the middle of a transaction waits for its end: what got in is counted, and told."""
    rig.run()
    standin.sell(CONCERT, 3)
    with held_up("INSERT INTO syncd_changes") as (begun, go_on):
        run = rig.request()
        assert begun.wait(10)
        stopped = rig.portal.start_task_soon(rig.runner.stop, 5.0)
        rig.until(lambda: rig.runner.is_stopping)
        go_on.set()
        assert stopped.result()
    assert run.outcome == "cancelled"
    ((logged,),) = rig.sql("SELECT count(*) FROM syncd_changes WHERE run_id = ?", run.id)
    assert run.counts.changed == logged > 0
    assert rig.sql("SELECT updated FROM syncd_runs WHERE id = ?", run.id) == [(run.counts.updated,)]
    assert [line["event_id"] for line in log_lines.of("event.full")] == [CONCERT]


def test_a_run_shows_no_progress(rig: Rig) -> None:
    """It tells of the list, then of each event done, up to all of them."""
    rig.run()
    assert rig.steps == [("listing", 0, 0), *(("events", done, 6) for done in range(7))]


@pytest.mark.parametrize("carts", [False, True])
def test_baskets_count_against_the_setting(make_config: MakeConfig, standin: StandIn, carts: bool) -> None:
    """With count_carts the places in baskets are taken (temp=1), without it they are left."""
    with rig_on(make_config(sync__count_carts=carts)) as rig:
        rig.run()
        mirrors(rig, standin, carts=carts)
        temps = {request.query["temp"] for request in standin.requests if "avail" in request.path}
        assert temps == {str(int(carts))}


def test_a_large_account_is_held_in_memory_at_once(make_config: MakeConfig, standin: StandIn) -> None:
    """No more events are in work than requests may be: the others are not begun."""
    with rig_on(make_config(billetweb__concurrency=2)) as rig:
        standin.fail("/event/*/tickets", fault.hang, times=None)
        run = rig.request()
        rig.until(lambda: len(asked(standin, "tickets")) == 2)
        assert len(asked(standin, "avail")) == 2
        standin.heal()
        assert rig.wait(run).outcome == "ok"
        mirrors(rig, standin)


def test_a_row_moves_between_an_events_plan_and_its_rows(
    make_config: MakeConfig, instant_retries: None
) -> None:
    """However many events are in work, each is planned and written before another one is."""
    standin, steps = StandIn(events=20), list[str]()

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO billetweb_events"):
            steps.append("written")
        elif re.search(r"FROM billetweb_events\s+WHERE billetweb_events\.id = ", statement):
            steps.append("planned")

    with serving(standin) as url:
        config = make_config(billetweb__base_url=url, billetweb__concurrency=16)
        with rig_on(config) as rig:
            listen(Engine, "before_cursor_execute", note)
            try:
                assert rig.run().synced == 20
            finally:
                remove(Engine, "before_cursor_execute", note)
    assert steps == ["planned", "written"] * 20


def test_the_loop_waits_for_a_slow_database(rig: Rig, standin: StandIn) -> None:
    """While another program holds the database for writing the event loop still answers."""
    rig.run()
    standin.sell(FESTIVAL)
    with rig.locked():
        run = rig.request()
        rig.until(lambda: run.state == "running")
        assert rig.portal.call(threading.get_ident)
        assert run.state == "running"
    assert rig.wait(run).outcome == "ok"


# --- rows that vanish


@pytest.fixture
def patient(make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that rereads everything each hour, so that time passes without an event's ending."""
    with rig_on(make_config(billetweb__concurrency=1, sync__full_every="1h")) as rig:
        yield rig


def only(event_id: str) -> fault.Fault:
    return with_rows(lambda rows: [row for row in rows if str(row["id"]) == event_id])


def test_a_key_suddenly_restricted_empties_the_account(
    patient: Rig, standin: StandIn, log_lines: LogLines
) -> None:
    """When all events but one are gone from the list, neither runs nor time take them away: a person does."""
    patient.run()
    others = patient.dump(FESTIVAL)
    standin.fail("/events", only(CONCERT), times=None)
    for trigger, full in (("interval", False), ("interval", True), ("manual", True), ("manual", True)):
        patient.clock.now_s += HOUR_S
        run = patient.run(trigger, full=full)  # type: ignore[arg-type]
        assert (run.outcome, run.synced, run.failed) == ("partial", 1, 5)
        assert kinds(run) == [("events", "doubted")]
        assert patient.dump(FESTIVAL) == others
    told = log_lines.of("error.doubted")[0]
    assert "lacks 5 of 6 rows" in told["message"]
    assert "`syncctl accept`" in told["message"]
    (doubt,) = patient.portal.call(patient.account.doubts)
    assert (doubt.table, doubt.event_id, doubt.absent, doubt.of) == ("billetweb_events", None, 5, 6)
    assert (doubt.reads, doubt.waits_for, doubt.until) == (4, "accept", None)
    assert doubt.examples == [FESTIVAL, WEEKEND, WORKSHOP]
    accepted = patient.run("manual", accept=True)
    assert (accepted.outcome, accepted.counts.vanished) == ("ok", 5)
    assert vanished(patient) == {FESTIVAL, WEEKEND, WORKSHOP, OPEN_DAY, OUTING}
    assert patient.portal.call(patient.account.doubts) == []
    standin.heal()
    run = patient.run()
    assert (run.outcome, run.counts.returned) == ("ok", 5)
    mirrors(patient, standin)


def test_a_word_about_one_event_is_taken_for_all(rig: Rig, standin: StandIn) -> None:
    """Who accepts one event accepts nothing of the others, whoever else asked for a run."""
    rig.run()
    standin.fail("/events", only(CONCERT), times=None)
    rig.run()
    run = rig.run("manual", accept=True, events=(FESTIVAL,), also_whole=True)
    assert (run.whole, run.outcome, vanished(rig)) == (True, "partial", {FESTIVAL})
    run = rig.run("manual", accept=True, events=(WEEKEND,))
    assert (run.outcome, vanished(rig)) == ("ok", {FESTIVAL, WEEKEND})


def test_a_word_covers_what_nobody_has_seen(rig: Rig, standin: StandIn) -> None:
    """What is absent for the first time in the accepting run was shown to nobody, and stays."""
    rig.run()
    standin.fail("/events", only(CONCERT), times=None)
    run = rig.run("manual", accept=True)
    assert (run.outcome, kinds(run), vanished(rig)) == ("partial", [("events", "doubted")], set())


def test_a_key_restricted_for_a_moment_leaves_a_trace(rig: Rig, standin: StandIn) -> None:
    """A good list in between ends the absence: the next odd one is the first again."""
    rig.run()
    for _ in range(3):
        standin.fail("/events", only(CONCERT))
        assert rig.run("manual", full=True).outcome == "partial"
        assert rig.run("manual", full=True).outcome == "ok"
        assert rig.portal.call(rig.account.doubts) == []
    assert not vanished(rig)
    mirrors(rig, standin)


def test_a_read_that_lacks_most_of_an_event_is_soon_believed(patient: Rig, standin: StandIn) -> None:
    """What it holds is written at once; what it lacks must be absent for `sync.full_every`."""
    patient.run()
    event = standin.events[WEEKEND]
    event.tickets, taken = event.tickets[:1], event.tickets[1:]
    event.tickets[0]["name"] = "Another name"
    assert len(taken) > 2
    for _ in range(3):
        run = patient.run()
        assert kinds(run) == [(f"event {WEEKEND}", "doubted")]
        assert (run.outcome, run.synced, run.failed, run.counts.vanished) == ("partial", 5, 1, 0)
    names = patient.sql("SELECT name FROM billetweb_tickets WHERE id = ?", str(event.tickets[0]["id"]))
    assert names == [("Another name",)]
    (doubt,) = patient.portal.call(patient.account.doubts)
    assert (doubt.event_id, doubt.waits_for, doubt.absent) == (WEEKEND, "time", len(taken))
    assert doubt.until == doubt.since + patient.account.config.sync.full_every
    patient.clock.now_s += HOUR_S
    run = patient.run()
    assert (run.outcome, run.counts.vanished) == ("ok", len(taken))


def test_half_of_an_account_is_most_of_it(rig: Rig, standin: StandIn) -> None:
    """More than half must be lacking to be doubted, over the account as in an event."""
    rig.run()
    rows = sum(len(event.tickets) for event in standin.events.values())
    taken = 0
    for event in standin.events.values():
        while 2 * (taken + 1) <= rows and len(event.tickets) > 1:
            event.tickets.pop()
            taken += 1
    assert 2 * taken in (rows, rows - 1), "the account is of another shape"
    rig.run()
    assert not [doubt for doubt in rig.portal.call(rig.account.doubts) if doubt.waits_for == "accept"]


def test_a_deleted_event_stays_or_never_comes_back(rig: Rig, standin: StandIn) -> None:
    """It is marked when two runs in a row lack it, kept with all its rows, and returns when it is back."""
    rig.run()
    rows = rig.dump(WORKSHOP)
    gone = standin.events.pop(WORKSHOP)
    assert (rig.run().outcome, vanished(rig)) == ("ok", set())
    run = rig.run()
    assert (run.outcome, run.counts.vanished, vanished(rig)) == ("ok", 1, {WORKSHOP})
    assert {table: rig.dump(WORKSHOP)[table] for table in MIRRORED[1:]} == {
        table: rows[table] for table in MIRRORED[1:]
    }
    assert rig.run().counts.vanished == 0
    standin.events[WORKSHOP] = gone
    run = rig.run()
    assert (run.outcome, run.counts.returned, vanished(rig)) == ("ok", 1, set())
    mirrors(rig, standin)
    feed = rig.sql("SELECT kind FROM syncd_changes WHERE row_id = ? ORDER BY seq", WORKSHOP)
    assert feed == [("inserted",), ("vanished",), ("returned",)]


@pytest.mark.parametrize(("left", "joined"), [(FESTIVAL, WORKSHOP), (WORKSHOP, FESTIVAL)])
def test_a_ticket_that_moved_counts_where_it_was(rig: Rig, standin: StandIn, left: str, joined: str) -> None:
    """It stands under its new event at once; the event it left, read before, follows with the next run."""
    rig.run()
    ticket = standin.events[left].tickets.pop(0)
    standin.events[joined].tickets.append(ticket)
    first, second = rig.run(), rig.run()
    assert (first.outcome, second.outcome) == ("ok", "ok")
    assert first.counts.vanished == second.counts.vanished == 0
    mirrors(rig, standin)
    rows = rig.sql("SELECT event_id, vanished_at FROM billetweb_tickets WHERE id = ?", str(ticket["id"]))
    assert rows == [(joined, None)]


@pytest.mark.parametrize("failing", ["list", "time-out"])
def test_a_run_that_read_nothing_says_something(
    make_config: MakeConfig, instant_retries: None, standin: StandIn, failing: str
) -> None:
    """A run that never came to an event neither adds a read to its absences nor ends them."""
    with rig_on(make_config()) as rig:
        rig.run()
        standin.events[CONCERT].tickets.pop()
        assert rig.run().counts.vanished == 0
        if failing == "list":
            standin.fail("/events", fault.null)
        else:
            rig.runner.timeout = timedelta(milliseconds=300)
            standin.fail("/event/*/avail", fault.hang, times=None)
        assert rig.run().outcome == "failed"
        assert rig.sql("SELECT reads FROM syncd_absences") == [(1,)]
        standin.heal()
        rig.runner.timeout = timedelta(minutes=10)
        assert rig.run().counts.vanished == 1


@pytest.mark.parametrize("what", ["event", "ticket"])
def test_a_failed_read_says_something(rig: Rig, standin: StandIn, what: str) -> None:
    """It is none of the two reads that must lack a row, and ends no absence."""
    rig.run()
    if what == "event":
        path, _ = "/events", standin.events.pop(WORKSHOP)
    else:
        path, _ = f"/event/{CONCERT}/avail", standin.events[CONCERT].tickets.pop()
    assert rig.run().counts.vanished == 0
    for _ in range(2):
        standin.fail(path, fault.null)
        assert rig.run().counts.vanished == 0
    assert rig.run().counts.vanished == 1


def test_an_event_that_is_over_is_missed(rig: Rig, standin: StandIn) -> None:
    """One that left the list after its end is not absent, and not gone."""
    rig.run()
    end(standin.events[WORKSHOP], hours_ago=2)
    rig.run()
    del standin.events[WORKSHOP]
    for _ in range(3):
        assert (rig.run().outcome, vanished(rig)) == ("ok", set())
    assert rig.sql("SELECT count(*) FROM syncd_absences") == [(0,)]


def test_a_doubt_outlives_its_event(rig: Rig, standin: StandIn) -> None:
    """Nobody reads an event again that ended long ago: what was absent in it is doubted no more."""
    rig.run()
    standin.fail(f"/event/{FESTIVAL}/tickets", fault.raw(b"[]"), times=None)
    rig.run()
    assert [doubt.event_id for doubt in rig.portal.call(rig.account.doubts)] == [FESTIVAL]
    end(standin.events[FESTIVAL], hours_ago=31 * 24)
    for _ in range(2):
        assert rig.run().outcome == "ok"
    assert rig.portal.call(rig.account.doubts) == []
    assert (rig.account.status().doubts, vanished(rig)) == (0, set())


def test_a_run_keeps_its_instants_in_a_zone_of_its_own(rig: Rig) -> None:
    """What a run notes is UTC, and its figures were read within it."""
    run = rig.run()
    assert run.started_at
    assert run.finished_at
    ((oldest, newest),) = rig.sql("SELECT min(availability_at), max(availability_at) FROM billetweb_events")
    read = [datetime.fromisoformat(at).replace(tzinfo=UTC) for at in (oldest, newest)]
    assert run.started_at <= read[0] <= read[1] <= run.finished_at
