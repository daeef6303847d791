"""Values that cannot be read, and rows that two endpoints spell differently: nothing gets worse by them."""

from collections import Counter
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, rig_on
from support.events import CONCERT, FESTIVAL, OUTING, kinds
from support.faults import with_rows
from support.variants import mostly_slow

from syncd.database import rows
from syncd.mirror.diff import KINDS
from syncd.standin.server import Fault, StandIn

Row = dict[str, Any]


def changed(**values: object) -> Fault:
    """Give every row of an answer these values."""
    return with_rows(lambda rows: [row | values for row in rows])


def in_event(event_id: str, **values: object) -> Fault:
    return with_rows(lambda rows: [row | values if row["id"] == event_id else row for row in rows])


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/events", in_event(CONCERT, start="soon", online="yes", tags="a", multiple=[])),
        (f"/event/{CONCERT}/avail", changed(avail="many", quota="a few")),
        (f"/event/{CONCERT}/tickets", changed(price="free", tax={}, start_time="soon")),
        (f"/event/{OUTING}/dates", changed(start="soon", quota="many", total_sales=[], last_update="?")),
    ],
    ids=["event", "gauges", "tickets", "sessions"],
)
def test_a_value_that_cannot_be_read_replaces_a_good_one(
    rig: Rig, standin: StandIn, log_lines: LogLines, path: str, fault: Fault
) -> None:
    """Each column keeps what it had, the raw value is in `extra`; the run says so once, and is ok."""
    event_id = OUTING if path.endswith("dates") else CONCERT
    standin.sell(CONCERT, 3)  # sold out
    rig.run()
    before = held(rig, event_id)
    standin.fail(path, fault, times=None)
    log_lines.clear()
    for _ in range(2):
        run = rig.run()
        assert (run.outcome, run.failed, kinds(run)) == ("ok", 0, [("run", "unreadable")])
        assert f"{run.unreadable} values cannot be read" in run.errors[0].message
    assert len(log_lines.of("error.unreadable")) == 1
    assert held(rig, event_id) == before
    assert rig.account.status().last_error is None
    assert rig.account.status().health == "ok"
    (extra,) = rig.sql("SELECT extra FROM billetweb_events WHERE id = ?", CONCERT)[0]
    assert ("soon" in extra) is (path == "/events")
    standin.heal()
    assert rig.run().errors == []


def test_a_gauge_of_some_seats_is_taken_for_that_of_the_whole_event(rig: Rig, standin: StandIn) -> None:
    """A row whose id is no number has an id: it is not the gauge of the event, in no later run either."""
    rig.run()
    figures = "SELECT places_total, places_left FROM billetweb_events WHERE id = ?"
    before = rig.sql(figures, FESTIVAL)
    zone = {"type": "zone", "id": "A1", "name": "Balcon", "avail": "0", "quota": "1"}
    standin.events[FESTIVAL].gauges.append(zone)
    rig.run()
    assert rig.sql("SELECT places_left FROM billetweb_gauges WHERE type = 'zone'") == [(0,)]
    assert rig.sql(figures, FESTIVAL) == before
    standin.events[FESTIVAL].gauges.remove(zone)
    rig.run()
    assert rig.sql(figures, FESTIVAL) == before


def held(rig: Rig, event_id: str) -> dict[str, Any]:
    """Return the columns of an event's rows in the mirror, but `extra`."""
    known = rig.query(rows.of_event, event_id)
    return {
        table: {
            key: dict(zip(KINDS[table].__struct_fields__[:-1], stored.values, strict=False))
            for key, stored in of_table.items()
        }
        for table, of_table in known.rows.items()
    }


def test_a_new_row_with_a_value_that_cannot_be_read_is_lost(rig: Rig, standin: StandIn) -> None:
    """A row that is not known yet has nothing to keep: the column is empty."""
    standin.fail(f"/event/{CONCERT}/tickets", changed(price="free"), times=None)
    run = rig.run()
    assert (run.outcome, [error.kind for error in run.errors]) == ("ok", ["unreadable"])
    prices = rig.sql("SELECT DISTINCT price, extra FROM billetweb_tickets WHERE event_id = ?", CONCERT)
    assert [(price, '"price":"free"' in extra) for price, extra in prices] == [(None, True)] * len(prices)


@pytest.mark.parametrize("empty", ["", None, "0000-00-00 00:00:00"])
def test_an_empty_value_is_taken_for_one_that_cannot_be_read(
    rig: Rig, standin: StandIn, empty: object
) -> None:
    """Empty is a value: the date is gone."""
    rig.run()
    standin.fail("/events", in_event(CONCERT, end=empty), times=None)
    assert rig.run().errors == []
    assert rig.sql("SELECT ends_at FROM billetweb_events WHERE id = ?", CONCERT) == [(None,)]


def test_a_link_takes_the_old_answer_with_it(make_config: MakeConfig, standin: StandIn) -> None:
    """An address that holds a secret is not stored, and no reason to call the value unreadable."""
    with rig_on(make_config()) as rig:
        standin.fail(
            "/events", in_event(CONCERT, image="https://x.example/i?key=0123456789abcdef"), times=None
        )
        assert rig.run().errors == []
        assert rig.sql("SELECT image_url FROM billetweb_events WHERE id = ?", CONCERT) == [(None,)]


# --- rows that two endpoints spell differently


def account_wide(fields: Row) -> Fault:
    """Give the rows of the account's attendees fields that an event's own do not have."""
    return with_rows(lambda rows: [row | fields for row in rows])


@pytest.mark.parametrize("mode", mostly_slow(["full", "minimal"], "each takes five runs"))
@pytest.mark.parametrize(
    "fields",
    mostly_slow(
        [{"event_novelty": "x", "tags": []}, {"event_tags": "concert, pain"}, {"novelty": {"a": 1}}],
        "each takes five runs",
    ),
    ids=["several", "tags", "unknown"],
)
def test_a_row_goes_back_and_forth_between_two_spellings(
    make_config: MakeConfig, standin: StandIn, fields: Row, mode: str
) -> None:
    """What only the account's answer has of an attendee changes it once at most, whatever is read."""
    standin.fail("/attendees", account_wide(fields), times=None)
    with rig_on(make_config(sync__attendees=mode)) as rig:
        rig.run()
        rig.run("manual", full=True)
        seen = rig.sql("SELECT max(seq) FROM syncd_changes")
        for full in (False, True, False, True):
            standin.sell(FESTIVAL)
            run = rig.run("manual", full=full)
            assert run.outcome == "ok"
        changes = rig.sql(
            "SELECT row_id, kind FROM syncd_changes WHERE table_name = 'billetweb_attendees' AND seq > ?",
            *seen[0],
        )
        new = {row for row, kind in changes if kind == "inserted"}
        updated = Counter(row for row, kind in changes if kind != "inserted")
        assert new
        assert updated.keys() <= new
        assert {*updated.values()} <= {1}
