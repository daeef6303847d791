"""What the public can buy changes by time alone; events without a date; events named by their slug."""

import random
import re
import string
from datetime import datetime, timedelta

import pytest
from conftest import LogLines, MakeConfig, Rig, WaitedFor, rig_on
from support.events import CONCERT, FESTIVAL, OUTING, WORKSHOP, asked, kinds
from support.faults import with_rows
from support.project import README
from support.variants import mostly_slow

from syncd.standin.server import StandIn, serving
from syncd.standin.world import PARIS, WALL

ZERO = "0000-00-00 00:00:00"


def wall(at: datetime) -> str:
    return at.astimezone(PARIS).strftime(WALL)


@pytest.fixture
def clock(standin: StandIn) -> WaitedFor:
    """Give a time that stands still unless a test moves it, at the stand-in's present."""
    return WaitedFor(standin.present)


@pytest.mark.parametrize(
    "what", mostly_slow(["start_time", "session", "end_time", "event"], "each takes five runs", always=2)
)
def test_a_sale_that_begins_or_ends_waits_for_its_turn(
    make_config: MakeConfig, standin: StandIn, clock: WaitedFor, instant_retries: None, what: str
) -> None:
    """Where events take turns, one whose sale or session begins or ends is read in the next run, once."""
    event_id = OUTING if what == "session" else CONCERT
    event, soon = standin.events[event_id], wall(clock.now() + timedelta(hours=1))
    if what == "session":
        event.sessions[0]["start"] = soon
    elif what == "event":
        event.row["end"] = soon
    else:
        event.tickets[0][what] = soon
    with rig_on(make_config(billetweb__concurrency=1, billetweb__requests_per_minute=5), clock) as rig:
        rig.run()
        for _ in range(3):  # all have had their turn, and the event in question is the last to have another
            rig.run()
        while event_id not in read_in(rig, standin):
            pass
        clock.now_s += 3600 - clock.now_s % 3600
        assert read_in(rig, standin)[0] == event_id
        assert event_id not in read_in(rig, standin)


def read_in(rig: Rig, standin: StandIn) -> list[str]:
    """Carry a run out; return the events that it read, in their order."""
    standin.requests.clear()
    assert rig.run().outcome == "ok"
    return asked(standin, "avail")


def test_a_sale_is_never_over(rig: Rig, standin: StandIn) -> None:
    """The sale of an early bird ends: its places are not on offer any more, and then nothing is."""
    early, normal = standin.events[WORKSHOP].tickets[:2]
    now = standin.present
    early["end_time"], normal["start_time"] = wall(now - timedelta(hours=1)), wall(now + timedelta(days=900))
    for ticket in standin.events[WORKSHOP].tickets[2:]:
        ticket["visibility"] = "2"
    rig.run()
    query = "SELECT sale_status FROM billetweb_events WHERE id = ?"
    assert rig.sql(query, WORKSHOP) == [("coming",)]
    normal["start_time"] = wall(now - timedelta(days=1))
    rig.run()
    assert rig.sql(query, WORKSHOP) == [("on_sale",)]
    normal["end_time"] = wall(now - timedelta(hours=1))
    rig.run()
    assert rig.sql(query, WORKSHOP) == [("ended",)]


def test_what_is_not_read_any_more_stays_on_sale(
    make_config: MakeConfig, standin: StandIn, instant_retries: None
) -> None:
    """An event that ended since its last read is not read again; the list tells that its sale is over."""
    row = standin.events[WORKSHOP].row
    with rig_on(make_config(sync__keep_past="0s")) as rig:
        rig.run()
        query = "SELECT sale_status, places_left FROM billetweb_events WHERE id = ?"
        ((_, left),) = before = rig.sql(query, WORKSHOP)
        row["start"] = row["end"] = wall(standin.present - timedelta(minutes=1))
        assert WORKSHOP not in read_in(rig, standin)
        assert before == [("on_sale", left)]
        assert rig.sql(query, WORKSHOP) == [("ended", left)]
        assert rig.run().counts.changed == 0


# --- events without a date


def undate(standin: StandIn, event_id: str, *, online: str) -> None:
    standin.events[event_id].row.update(start=ZERO, end=ZERO, online=online)


def test_an_old_series_is_live_for_ever(rig: Rig, standin: StandIn) -> None:
    """An event without any date is live while it is online, and only then."""
    undate(standin, CONCERT, online="0")
    undate(standin, FESTIVAL, online="1")
    assert (rig.run().synced, asked(standin, "avail").count(FESTIVAL)) == (5, 1)
    assert CONCERT not in asked(standin, "avail")
    assert rig.account.status().events_live == 5
    undate(standin, FESTIVAL, online="0")
    assert rig.run().synced == 4
    assert FESTIVAL not in [event["id"] for event in rig.portal.call(shown, rig)]


async def shown(rig: Rig) -> list[dict[str, object]]:
    return await rig.account.events(ended_too=False)


def test_old_series_keep_a_full_run_from_its_end(
    make_config: MakeConfig, log_lines: LogLines, instant_retries: None
) -> None:
    """A scheduled full run reads as many events without a date as fit; one by hand all."""
    standin = StandIn(events=30)
    for event_id in sorted(standin.events)[5:]:
        undate(standin, event_id, online="1")
    with serving(standin) as url:
        config = make_config(
            billetweb__base_url=url,
            billetweb__user=standin.user,
            billetweb__requests_per_minute=20,
            sync__run_timeout="1m",
        )
        with rig_on(config) as rig:
            run = rig.run()
            assert (run.full, run.outcome, run.failed) == (True, "ok", 0)
            assert 5 < run.synced < 30
            assert rig.clock.slept_s == 0  # so it ends in time
            assert not rig.run().full
            assert log_lines.of("run.long") == []
            assert rig.run("manual", full=True).synced == 30
            assert len(log_lines.of("run.long")) == 1


def test_an_edit_of_an_old_series_waits_for_its_turn(
    make_config: MakeConfig, standin: StandIn, instant_retries: None
) -> None:
    """What the list says of an event without a date is written with every run, whether it is read or not."""
    for event_id in standin.events:
        undate(standin, event_id, online="1")
    late = [(event_id, standin.events.pop(event_id)) for event_id in (CONCERT, FESTIVAL, OUTING)]
    with rig_on(make_config(billetweb__requests_per_minute=5)) as rig:
        rig.run()
        standin.events.update(late)
        for event in standin.events.values():
            event.row["name"] = "Another name"
        run = rig.run()
        assert (run.outcome, run.synced < 3) == ("ok", True)
        assert rig.sql("SELECT name, count(*) FROM billetweb_events GROUP BY name") == [("Another name", 6)]


def test_an_old_series_is_never_read_where_the_others_take_all(
    make_config: MakeConfig, standin: StandIn, instant_retries: None
) -> None:
    """Where those with a date leave no request over, one without is read besides in every run, in turn."""
    for event_id in (OUTING, CONCERT):
        undate(standin, event_id, online="1")
    with rig_on(make_config(billetweb__concurrency=1, billetweb__requests_per_minute=10)) as rig:
        rig.run("manual", full=True)
        read = [read_in(rig, standin)[4:] for _ in range(4)]
        pace = rig.account.facts.pace
    assert read == [[OUTING], [CONCERT]] * 2
    assert pace
    assert pace.cost == pace.budget.share


@pytest.mark.slow("many runs")
def test_old_series_make_an_account_take_turns(make_config: MakeConfig, instant_retries: None) -> None:
    """25 events without a date keep no other from being read in every run, and get what is left."""
    standin = StandIn(events=30)
    dated = sorted(standin.events)[:5]
    for event_id in standin.events.keys() - {*dated}:
        undate(standin, event_id, online="1")
    with serving(standin) as url:
        config = make_config(
            billetweb__base_url=url, billetweb__user=standin.user, billetweb__requests_per_minute=40
        )
        with rig_on(config) as rig:
            rig.run("manual", full=True)
            seen: set[str] = set()
            for _ in range(12):
                read = read_in(rig, standin)
                assert [event_id for event_id in read if event_id in dated] == read[: len(dated)]
                seen |= {*read}
            assert seen == standin.events.keys()
            assert not rig.account.facts.pace.in_turns  # type: ignore[union-attr]


# --- named by their slug


def test_an_event_cannot_be_named_as_its_shop_is(rig: Rig, standin: StandIn) -> None:
    """`ext_id` names an event as its id does, also beside an id; the run is put on record with ids."""
    slug = str(standin.events[CONCERT].row["ext_id"])
    run = rig.run("manual", events=(slug, CONCERT, OUTING))
    assert (run.outcome, run.events, run.synced) == ("ok", [CONCERT, OUTING], 2)
    run = rig.run("manual", events=("no-such-shop",))
    assert (run.outcome, kinds(run)) == ("failed", [("event no-such-shop", "unknown_event")])
    assert "`syncctl events`" in run.errors[0].message


def test_a_slug_of_thousands_of_letters_fails_its_event(rig: Rig, standin: StandIn) -> None:
    """It is stored, as any text is: no index has a limit that a column has not."""
    slug = "".join(random.Random(1).choices(string.ascii_letters, k=6000))  # which nothing packs
    standin.events[CONCERT].row["ext_id"] = slug
    assert rig.run().outcome == "ok"
    assert rig.sql("SELECT ext_id FROM billetweb_events WHERE id = ?", CONCERT) == [(slug,)]


def test_an_absent_event_cannot_be_accepted_by_its_slug(rig: Rig, standin: StandIn) -> None:
    """Of an event that the list lacks the mirror knows the slug."""
    rig.run()
    slug = str(standin.events[CONCERT].row["ext_id"])
    alone = with_rows(lambda rows: [row for row in rows if row["id"] == FESTIVAL])
    standin.fail("/events", alone, times=None)
    assert kinds(rig.run()) == [("events", "doubted")]
    run = rig.run("manual", accept=True, events=(slug,))
    assert (run.outcome, run.accepted) == ("ok", [CONCERT])
    assert rig.sql("SELECT id FROM billetweb_events WHERE vanished_at IS NOT NULL") == [(CONCERT,)]


def test_a_query_of_the_readme_shows_what_nobody_can_buy(make_config: MakeConfig) -> None:
    """The cheapest tariff of an event is one on offer, though hidden ones are cheaper, or old ones."""
    (query,) = re.findall(r"to be had:\n\n```sql\n(.*?);\n```", README, re.DOTALL)
    standin = StandIn(events=10)
    with serving(standin) as base_url, rig_on(make_config(billetweb__base_url=base_url)) as rig:
        rig.run()
        names = [name for _, name, _ in rig.sql(query)]
        assert len(names) > 5
        assert not {"Équipe", "Guide", "Prévente"} & {*names}
