"""Runs of an account too large to be read whole: who is read, what is seen of others, what is remembered."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, mirrors, rig_on
from msgspec import structs
from support import faults as fault
from support.events import CONCERT, FESTIVAL, OUTING, WEEKEND, WORKSHOP, asked, kinds
from support.faults import with_rows
from support.variants import mostly_slow

from syncd.config import Config
from syncd.database import rows, state
from syncd.model import Run, Trigger
from syncd.standin.server import StandIn, serving

NEVER = datetime.min.replace(tzinfo=UTC)
SHARE = 4
"""Requests for events in turn: two events, of the six that cost 13."""


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Return settings by which six events are too many for one run."""
    return make_config(billetweb__concurrency=1, billetweb__requests_per_minute=5)


@pytest.fixture
def minute(make_config: MakeConfig) -> Config:
    """Return settings by which no run can read six events, for a run has a minute."""
    return make_config(
        billetweb__concurrency=1,
        billetweb__requests_per_minute=5,
        sync__run_timeout="1m",
        sync__interval="1m",
    )


@pytest.fixture
def large(config: Config, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig whose mirror is complete, and whose next run reads events in turn."""
    with rig_on(config) as rig:
        assert rig.run().synced == 6
        yield rig


def turn(rig: Rig, standin: StandIn) -> tuple[Run, list[str]]:
    """Carry a run out; return it and the events that were read, in their order."""
    standin.requests.clear()
    run = rig.run()
    return run, asked(standin, "avail")


def test_every_run_costs_as_much_as_the_account(large: Rig, standin: StandIn) -> None:
    """A run at rest takes the list, the increment and its share; the turns pass over every event."""
    seen: list[str] = []
    for _ in range(3):
        run, read = turn(large, standin)
        assert run.outcome == "ok"
        assert run.requests == len(standin.requests) <= 5 + SHARE
        assert run.synced == len(read) < 6
        seen += read
    assert set(seen) == set(standin.events)
    mirrors(large, standin)


def test_a_quota_waits_where_its_gauge_is_gone(large: Rig, standin: StandIn) -> None:
    """An event of which gauges vanished is read in the next run: its tariffs' own quotas count again."""
    standin.events[CONCERT].gauges.clear()
    large.run("manual", events=(CONCERT,))
    large.run("manual", accept=True, events=(CONCERT,))
    assert (
        large.sql("SELECT 1 FROM billetweb_gauges WHERE event_id = ? AND vanished_at IS NULL", CONCERT) == []
    )
    assert turn(large, standin)[1][0] == CONCERT
    assert turn(large, standin)[1][0] != CONCERT


def test_a_sale_waits_for_its_turn(large: Rig, standin: StandIn) -> None:
    """The events that sold and refunded are read in the next run, before all others."""
    _, next_in_turn = turn(large, standin)
    standin.sell(CONCERT)
    assert CONCERT not in next_in_turn
    run, read = turn(large, standin)
    assert (run.outcome, read[0]) == ("ok", CONCERT)
    assert large.sql("SELECT places_left FROM billetweb_events WHERE id = ?", CONCERT) == [(2,)]
    assert large.account.facts.pace.increment == "used"  # type: ignore[union-attr]
    standin.refund(WORKSHOP)
    assert turn(large, standin)[1][0] == WORKSHOP


def test_a_sale_is_forgotten_with_a_list_that_lacks_its_event(large: Rig, standin: StandIn) -> None:
    """An event that sold while the list lacked it is read as soon as that holds it again."""
    while CONCERT in turn(large, standin)[1]:
        pass
    standin.sell(CONCERT)
    standin.fail("/events", with_rows(lambda rows: [row for row in rows if row["id"] != CONCERT]), times=1)
    _, read = turn(large, standin)
    assert CONCERT not in read
    assert turn(large, standin)[1][0] == CONCERT


def test_an_event_that_was_not_asked_loses_its_turn(large: Rig, standin: StandIn) -> None:
    """Where nothing more is sent in a run, those that were not reached come first in the next."""
    read = {*turn(large, standin)[1], *turn(large, standin)[1]}
    standin.fail("/event/*/avail", fault.challenge, times=1)
    _, (refused,) = turn(large, standin)
    large.clock.now_s += 3600.0
    (not_asked,) = standin.events.keys() - read - {refused}
    assert turn(large, standin)[1][0] == not_asked


def test_a_sale_is_read_again_and_again(large: Rig, standin: StandIn) -> None:
    """Increments overlap: a row that was told before makes its event due no second time."""
    standin.sell(CONCERT)
    assert turn(large, standin)[1][0] == CONCERT
    assert turn(large, standin)[1][0] != CONCERT
    assert large.sql("SELECT event_id FROM syncd_reads WHERE due_at IS NOT NULL") == []


def test_attendees_are_kept_that_nobody_asked_for(large: Rig, standin: StandIn) -> None:
    """With `sync.attendees` at none the increment leaves no row behind."""
    standin.sell(CONCERT)
    turn(large, standin)
    assert large.sql("SELECT count(*) FROM billetweb_attendees") == [(0,)]


def test_an_edit_waits_for_its_turn(large: Rig, standin: StandIn) -> None:
    """What the list of events shows is written at once, and its event is read first."""
    standin.events[OUTING].row["name"] = "Another name"
    run, read = turn(large, standin)
    assert (run.counts.updated, read[0]) == (1, OUTING)
    assert large.sql("SELECT name FROM billetweb_events WHERE id = ?", OUTING) == [("Another name",)]


def test_who_does_not_fit_is_forgotten(config: Config, standin: StandIn, instant_retries: None) -> None:
    """Where more sold than a run can read, the others come first in the next, after a restart too."""
    clock = WaitedFor()
    with rig_on(config, clock) as rig:
        rig.run()
    tight = structs.replace(config, sync=structs.replace(config.sync, run_timeout=config.sync.interval / 180))
    sold = {FESTIVAL, WEEKEND, WORKSHOP, CONCERT}
    for event_id in sold:
        assert standin.sell(event_id) == 1
    with rig_on(tight, clock) as rig:
        _, first = turn(rig, standin)
        assert rig.account.facts.pace.waiting == len(sold - set(first)) > 0  # type: ignore[union-attr]
    with rig_on(tight, clock) as rig:
        later = [turn(rig, standin)[1] for _ in range(3)]
    assert {events[0] for events in (first, *later)} == sold, "each comes first once, before any twice"


def test_an_edit_that_does_not_fit_is_forgotten(
    config: Config, standin: StandIn, instant_retries: None
) -> None:
    """Of more edits than a run can read the others come first in the next: the list shows them no more."""
    with rig_on(config) as rig:
        rig.run()
    tight = structs.replace(config, sync=structs.replace(config.sync, run_timeout=config.sync.interval / 180))
    edited = {FESTIVAL, WEEKEND, WORKSHOP, CONCERT}
    for event_id in edited:
        standin.events[event_id].row["name"] = "Another name"
    with rig_on(tight) as rig:
        firsts = [turn(rig, standin)[1][0] for _ in range(4)]
    assert {*firsts} == edited


def test_a_suspicion_waits_for_its_turn(large: Rig, standin: StandIn) -> None:
    """A row that is missing once is looked for in the very next run, and then is gone."""
    run, read = turn(large, standin)
    event = standin.events[WORKSHOP]
    while read[0] != WORKSHOP:
        event.tickets, kept = event.tickets[:1], event.tickets
        run, read = turn(large, standin)
        if WORKSHOP not in read:
            event.tickets = kept
            continue
        break
    assert run.counts.vanished == 0
    run, read = turn(large, standin)
    assert (read[0], run.counts.vanished) == (WORKSHOP, 1)


def test_an_event_that_fails_keeps_the_others_from_their_turn(large: Rig, standin: StandIn) -> None:
    """Who failed goes to the end of the line."""
    _, read = turn(large, standin)
    waiting = [event_id for event_id in sorted(standin.events) if event_id not in read]
    standin.fail(f"/event/{waiting[0]}/avail", fault.status(404), times=None)
    seen = [turn(large, standin)[1] for _ in range(3)]
    assert {event_id for some in seen for event_id in some} == set(standin.events)


def test_a_limited_key_stops_the_mirror(large: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """Where the increment is not permitted the events take turns all the same, which is said once."""
    standin.restricted = True
    standin.sell(CONCERT)
    runs = [turn(large, standin) for _ in range(4)]
    assert [run.outcome for run, _ in runs] == ["ok"] * 4
    assert {event_id for _, read in runs for event_id in read} == set(standin.events)
    mirrors(large, standin)
    assert len(log_lines.of("increment.refused")) == 1
    assert large.account.facts.pace.increment == "not permitted"  # type: ignore[union-attr]
    asked_again = [request.path for request in standin.requests].count("/attendees")
    assert asked_again == 0
    standin.restricted = False
    standin.requests.clear()
    large.run("manual")
    assert [request.path for request in standin.requests].count("/attendees") == 1
    assert large.account.facts.pace.increment == "used"  # type: ignore[union-attr]


def test_the_first_event_of_a_run_is_never_the_one_that_fails(large: Rig, standin: StandIn) -> None:
    """Where others are read after it, it fails as much as where they were before: it waits for its turn."""
    standin.sell(CONCERT)
    standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
    assert [CONCERT in turn(large, standin)[1] for _ in range(4)] == [True, True, True, False]


def test_an_event_that_never_answers_goes_first_where_others_lack_their_attendees(
    config: Config, standin: StandIn, instant_retries: None
) -> None:
    """Others had an answer, be it only for their figures: it waits for its turn."""
    standin.restricted = True
    with rig_on(structs.replace(config, sync=structs.replace(config.sync, attendees="minimal"))) as rig:
        rig.run()
        rig.portal.call(rig.account.database.write, state.mark_due, [CONCERT], rig.clock.now())
        standin.fail("/event/*/attendees", fault.truncated, times=None)
        standin.fail(f"/event/{CONCERT}/avail", fault.status(503), times=None)
        assert [CONCERT in turn(rig, standin)[1] for _ in range(4)] == [True, True, True, False]


def test_a_failed_increment_fails_the_run(large: Rig, standin: StandIn) -> None:
    """An answer that is no array makes the run partial; the sale is told of by the next increment."""
    standin.sell(CONCERT)
    standin.fail("/attendees", fault.truncated)
    run, read = turn(large, standin)
    assert (run.outcome, kinds(run)) == ("partial", [("attendees", "malformed")])
    assert read[0] != CONCERT
    assert turn(large, standin)[1][0] == CONCERT


def test_an_event_that_is_over_is_noted_for_ever(large: Rig, standin: StandIn) -> None:
    """One that ended after its last read, and is no longer live, is not marked to be read."""
    over = large.clock.now() - large.config.sync.keep_past - timedelta(days=1)
    standin.events[CONCERT].row.update(start=str(over)[:19], end=str(over)[:19])
    before = over - timedelta(days=1)
    large.run()
    large.sql("UPDATE billetweb_events SET availability_at = ? WHERE id = ?", str(before)[:19], CONCERT)
    _, read = turn(large, standin)
    assert CONCERT not in read
    assert (
        large.sql("SELECT due_at FROM syncd_reads WHERE event_id = ? AND due_at IS NOT NULL", CONCERT) == []
    )


def test_no_run_that_takes_turns_claims_to_be_full(
    minute: Config, standin: StandIn, log_lines: LogLines
) -> None:
    """However long ago all was read: not even one that fails before it knows how much there is to read."""
    with rig_on(minute) as rig:
        rig.run()
        log_lines.clear()
        standin.fail("/events", fault.status(404))
        run = rig.run()
    assert (run.outcome, run.full) == ("failed", False)
    assert "in full" not in log_lines.of("run.started")[0]["message"]


def test_a_run_by_hand_takes_turns(large: Rig, standin: StandIn) -> None:
    """A full run that somebody asked for reads everything."""
    standin.requests.clear()
    run = large.run("manual", full=True)
    assert (run.full, run.synced) == (True, 6)


def test_turns_never_count_as_a_full_run(minute: Config, standin: StandIn) -> None:
    """Where no run can read everything none claims to; when all had their turn, that is as good as one."""
    with rig_on(minute) as rig:
        runs = [rig.run()]
        assert rig.account.recorder.last_full_at is None
        runs += [rig.run() for _ in range(4)]
        assert rig.account.recorder.last_full_at
        assert not any(run.full for run in runs)
        mirrors(rig, standin)


def test_turns_count_as_a_full_run_while_who_sold_waits(minute: Config, standin: StandIn) -> None:
    """Though all had their turn: while news waits to be read, not all was read."""
    with rig_on(minute) as rig:
        while rig.query(rows.figures, NEVER).read < 6:
            rig.run()
        for _ in range(9):
            for event_id in (FESTIVAL, OUTING, WEEKEND):
                standin.sell(event_id)
            before = rig.account.recorder.last_full_at
            rig.run()
            assert rig.account.facts.pace
            assert rig.account.facts.pace.waiting > 0
            assert rig.account.recorder.last_full_at == before
        for _ in range(9):
            rig.run()
        assert rig.account.recorder.last_full_at
        assert rig.account.recorder.last_full_at != before


def test_a_full_run_that_cannot_end_is_not_told(
    make_config: MakeConfig, standin: StandIn, log_lines: LogLines
) -> None:
    """Somebody who asks for more than fits is told so at once."""
    with rig_on(make_config(billetweb__requests_per_minute=5, sync__run_timeout="1m")) as rig:
        run = rig.run("manual", full=True)
    assert run.full
    [told] = log_lines.of("run.long")
    assert (told["run"], told["requests"]) == (run.id, 13)


def test_the_oldest_figure_is_unknown(large: Rig, standin: StandIn) -> None:
    """What the mirror remembers of the oldest figure is what stands in the database."""
    turn(large, standin)
    ages = [at for at in large.query(rows.present_events).values() if at]
    assert large.account.facts.oldest_figure_at == min(ages)


def test_an_event_without_a_figure_is_not_told(make_config: MakeConfig, standin: StandIn) -> None:
    """The oldest figure says nothing of a live event that was never read; their number does."""
    standin.fail(f"/event/{CONCERT}/avail", fault.status(404), times=None)
    with rig_on(make_config(billetweb__concurrency=1)) as rig:
        rig.run()
        assert rig.account.facts.events_unread == 1
        standin.heal()
        rig.run()
        assert rig.account.facts.events_unread == 0


@pytest.mark.parametrize(
    "refusal",
    mostly_slow(
        [
            fault.error_object("unauthorized", "Your key may not access this resource"),
            fault.error_object("unauthorized", "Cette clé est limitée à certains événements", 403),
        ],
        "each takes two runs",
    ),
)
def test_a_refusal_in_other_words_stops_the_mirror(
    large: Rig, standin: StandIn, refusal: fault.Fault
) -> None:
    """A key that just read the list of events is good, whatever is said of the account's attendees."""
    standin.fail("/attendees", refusal, times=None)
    runs = [turn(large, standin) for _ in range(3)]
    assert [run.outcome for run, _ in runs] == ["ok"] * 3
    assert not large.account.client.breaker.refused
    assert large.account.facts.pace.increment == "not permitted"  # type: ignore[union-attr]


def test_a_doubted_read_ends_the_waiting(large: Rig, standin: StandIn) -> None:
    """An event that sold stays due until it was read with an answer that is believed."""
    standin.sell(CONCERT)
    standin.fail(f"/event/{CONCERT}/avail", fault.raw(b"[]"))
    run, read = turn(large, standin)
    assert (read[0], kinds(run)) == (CONCERT, [(f"event {CONCERT}", "doubted")])
    assert turn(large, standin)[1][0] == CONCERT
    assert large.sql("SELECT places_left FROM billetweb_events WHERE id = ?", CONCERT) == [(2,)]
    assert large.sql("SELECT event_id FROM syncd_reads WHERE due_at IS NOT NULL") == []


def test_a_full_run_forgets_who_it_did_not_read(large: Rig, standin: StandIn) -> None:
    """An event that fails in a full run, which asks nobody who sold, comes first in the next."""
    standin.sell(CONCERT)
    standin.attendance[CONCERT].touch([*standin.attendees(CONCERT)][-1], standin.present - timedelta(hours=1))
    standin.fail(f"/event/{CONCERT}/avail", fault.status(404))
    large.account.recorder.last_full_at = None
    run, _ = turn(large, standin)
    assert (run.full, run.outcome) == (True, "partial")
    assert turn(large, standin)[1][0] == CONCERT


def test_a_figure_of_a_fast_clock_is_never_read_again(large: Rig, standin: StandIn) -> None:
    """What was read "in the future" is read as if it never was."""
    ahead = "2999-01-01 00:00:00.000000"
    large.sql("UPDATE billetweb_events SET availability_at = ? WHERE id = ?", ahead, CONCERT)
    assert turn(large, standin)[1][0] == CONCERT


def test_an_event_that_always_fails_holds_the_full_runs_up(minute: Config, standin: StandIn) -> None:
    """It had its turn, as the others had; so old changes are removed in time."""
    with rig_on(minute) as rig:
        for _ in range(5):
            rig.run()
        before = rig.account.recorder.last_full_at
        standin.fail(f"/event/{CONCERT}/avail", fault.status(404), times=None)
        for _ in range(9):
            rig.run()
        assert before
        assert rig.account.recorder.last_full_at
        assert rig.account.recorder.last_full_at > before


def test_new_events_that_fail_starve_the_others(config: Config, instant_retries: None) -> None:
    """An event that is tried a few times in vain takes its turn like the others."""
    account = StandIn(events=30)
    failing = sorted(account.events)[:20]
    with serving(account) as url:
        where = structs.replace(config.billetweb, base_url=url, user=account.user)
        with rig_on(structs.replace(config, billetweb=where)) as rig:
            for event_id in failing:
                account.fail(f"/event/{event_id}/avail", fault.status(404), times=None)
            runs = [turn(rig, account) for _ in range(12)]
    assert account.events.keys() == {event_id for _, read in runs for event_id in read}
    assert all(run.requests <= 5 + SHARE for run, _ in runs[4:])  # three tries each take the first four


def test_an_outage_costs_the_events_that_sold_their_place(large: Rig, standin: StandIn) -> None:
    """However long nothing can be read, who sold comes first as soon as it can."""
    standin.fail("/event/*/avail", fault.status(503), times=None)
    standin.sell(CONCERT)
    for _ in range(5):
        assert large.run().outcome == "failed"
    standin.heal()
    assert turn(large, standin)[1][0] == CONCERT


def test_a_sale_waits_where_attendees_are_mirrored(
    make_config: MakeConfig, standin: StandIn, instant_retries: None
) -> None:
    """There too the increment names the events that sold, and those are read first."""
    config = make_config(
        billetweb__concurrency=1, billetweb__requests_per_minute=5, sync__attendees="minimal"
    )
    with rig_on(config) as rig:
        rig.run()
        _, next_in_turn = turn(rig, standin)
        standin.sell(CONCERT)
        assert CONCERT not in next_in_turn
        assert turn(rig, standin)[1][0] == CONCERT
        assert rig.sql("SELECT places_left FROM billetweb_events WHERE id = ?", CONCERT) == [(2,)]


def fresh(config: Config, clock: WaitedFor, trigger: Trigger = "once") -> Run:
    """Carry a run out in a process of its own, as far as what it remembers goes."""
    with rig_on(config, clock) as rig:
        return rig.run(trigger)


@pytest.fixture
def sixty(make_config: MakeConfig, instant_retries: None) -> Iterator[tuple[StandIn, Config]]:
    """Give an account of sixty events, and settings by which they take turns."""
    account = StandIn(events=60)
    with serving(account) as url:
        config = make_config(billetweb__requests_per_minute=40)
        yield account, structs.replace(config, billetweb=structs.replace(config.billetweb, base_url=url))


@pytest.mark.parametrize("how", mostly_slow(["daemon", "once", "daemon, in full"], "many runs"))
def test_a_lasting_fault_wears_the_mirror_down(sixty: tuple[StandIn, Config], how: str) -> None:
    """Answers cut to their first row, whatever that is of each event: nothing vanishes by itself."""
    account, config = sixty
    clock = WaitedFor()
    with rig_on(config, clock) as rig:
        for _ in range(8):
            rig.run()
        present = "SELECT id FROM billetweb_tickets WHERE vanished_at IS NULL ORDER BY id"
        before = rig.sql(present)
        assert len(before) == sum(len(event.tickets) for event in account.events.values())
        account.fail("/event/*/tickets", with_rows(lambda rows: rows[:1]), times=None)
        runs = [rig.run(full="full" in how) for _ in range(12)] if how != "once" else []
    if how == "once":
        runs = [fresh(config, clock) for _ in range(12)]
    with rig_on(config, clock) as rig:
        assert rig.sql(present) == before
    assert all(run.outcome in ("partial", "failed") for run in runs[1:])


@pytest.mark.slow("many runs")
@pytest.mark.parametrize("once", [False, True], ids=["daemon", "once"])
def test_events_that_fail_for_ever_take_more_than_their_turn(
    config: Config, standin: StandIn, instant_retries: None, once: bool
) -> None:
    """Two of six that always fail are tried no more often than the others are read."""
    clock = WaitedFor()
    failing = (FESTIVAL, WEEKEND)
    with rig_on(config, clock) as rig:
        rig.run()
        for event_id in failing:
            standin.fail(f"/event/{event_id}/avail", fault.status(404), times=None)
        standin.requests.clear()
        for _ in range(0 if once else 12):
            rig.run()
    for _ in range(12 if once else 0):
        fresh(config, clock)
    tried = Counter(asked(standin, "avail"))
    assert set(tried) == set(standin.events)
    most, least = max(tried[key] for key in failing), min(tried.values())
    assert most <= least + 1


@pytest.mark.slow("many runs")
def test_old_changes_of_a_large_account_stay_under_once(minute: Config, instant_retries: None) -> None:
    """Where no run can read everything the turns of many processes are together a whole reading."""
    clock = WaitedFor()
    keep = structs.replace(minute, sync=structs.replace(minute.sync, keep_changes=timedelta(days=1)))
    for _ in range(5):
        fresh(keep, clock)
    with rig_on(keep, clock) as rig:
        assert rig.account.recorder.last_full_at
        old = "UPDATE syncd_changes SET seen_at = ? WHERE seq <= 5"
        at = datetime.now(UTC) - timedelta(days=400)
        rig.sql(old, at.strftime("%Y-%m-%d %H:%M:%S.%f"))
    for _ in range(9):
        clock.now_s += 60
        fresh(keep, clock)
    with rig_on(keep, clock) as rig:
        assert rig.sql("SELECT count(*) FROM syncd_changes WHERE seq <= 5") == [(0,)]
        assert rig.sql("SELECT count(*) FROM syncd_changes WHERE seq = 6") == [(1,)]


def test_what_sold_is_read_again_after_a_restart(config: Config, standin: StandIn) -> None:
    """Increments overlap: what an earlier process saw of them makes no event due again."""
    clock = WaitedFor()
    with rig_on(config, clock) as rig:
        rig.run()
        standin.sell(CONCERT)
        assert turn(rig, standin)[1][0] == CONCERT
    with rig_on(config, clock) as rig:
        turn(rig, standin)
        assert rig.sql("SELECT event_id FROM syncd_reads WHERE due_at IS NOT NULL") == []
        assert asked(standin, "avail")[0] != CONCERT


@pytest.mark.slow("many runs")
def test_accepting_takes_longer_than_a_run(minute: Config, instant_retries: None) -> None:
    """Of more events than fit, one run settles some, says how many are left, and the next goes on."""
    account = StandIn(events=30)
    with serving(account) as url:
        where = structs.replace(minute.billetweb, base_url=url, user=account.user)
        with rig_on(structs.replace(minute, billetweb=where)) as rig:
            while rig.query(rows.figures, NEVER).read < len(account.events):
                assert rig.run().outcome == "ok"
            account.fail("/event/*/tickets", fault.raw(b"[]"), times=None)
            while absent_in(rig) < len(account.events):
                rig.run()
            left = []
            while doubts := rig.portal.call(rig.account.doubts):
                left.append(len(doubts))
                run = rig.run("manual", accept=True)
                assert "timeout" not in [error.kind for error in run.errors]
                told = [error for error in run.errors if "`syncctl accept` once again" in error.message]
                assert bool(told) is (run.outcome == "partial")
                assert rig.account.facts.pace.waiting == len(rig.portal.call(rig.account.doubts))  # type: ignore[union-attr]
    assert len(left) > 1
    assert left == sorted(left, reverse=True)
    assert rig.sql("SELECT count(*) FROM billetweb_tickets WHERE vanished_at IS NULL") == [(0,)]


def absent_in(rig: Rig) -> int:
    """Return in how many events a row is absent."""
    return int(rig.sql("SELECT count(DISTINCT event_id) FROM syncd_absences")[0][0])


def test_an_absence_in_an_event_that_fails_takes_every_run(large: Rig, standin: StandIn) -> None:
    """Where the second read never succeeds, the event waits for its turn like any other that fails."""
    while WORKSHOP not in turn(large, standin)[1]:
        pass
    standin.events[WORKSHOP].tickets = standin.events[WORKSHOP].tickets[:1]
    while not absent_in(large):
        turn(large, standin)
    standin.fail(f"/event/{WORKSHOP}/avail", fault.status(404), times=None)
    turn(large, standin)
    read = [event_id for _ in range(6) for event_id in turn(large, standin)[1]]
    assert Counter(read)[WORKSHOP] <= 6 * SHARE / 2 / 6 + 1
    assert set(read) == set(standin.events)
