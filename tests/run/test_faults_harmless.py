"""What looks odd but is right, passing faults, and what becomes of an account: nothing of it is an error."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, mirrors, rig_on
from support import faults as fault
from support.faults import with_rows
from support.variants import mostly_slow

from syncd.standin.server import Answer, Fault, StandIn
from syncd.standin.world import ZERO_DATE, StandInEvent, number

FESTIVAL, WEEKEND, WORKSHOP, OPEN_DAY, OUTING, CONCERT = (str(900001 + turn) for turn in range(6))
Edit = Callable[[StandInEvent], None]
ODD_NAME = " L'été <b>en</b> fête & co &amp; 🌱 "


def every_number(convert: Callable[[int], object]) -> Edit:
    """Return an edit that writes all whole numbers of an event in one of PHP's ways."""

    def edit(event: StandInEvent) -> None:
        for row in (event.row, *event.gauges, *event.tickets, *event.sessions):
            for name in (
                "id",
                "multiple",
                "online",
                "avail",
                "quota",
                "disabled",
                "total_sales",
                "visibility",
            ):
                value = number(row.get(name))
                if value is not None:
                    row[name] = convert(value)

    return edit


def flags_as_booleans(event: StandInEvent) -> None:
    event.row["multiple"] = bool(number(event.row["multiple"]))
    event.row["online"] = bool(number(event.row["online"]))
    for row in event.sessions:
        row["disabled"] = False


def setting(where: str, **values: object) -> Edit:
    """Return an edit that sets these fields in every row of a kind."""

    def edit(event: StandInEvent) -> None:
        rows: list[dict[str, Any]] = [event.row] if where == "row" else getattr(event, where)
        for row in rows:
            row.update(values)

    return edit


def adding_gauges(*rows: dict[str, object]) -> Edit:
    return lambda event: event.gauges.extend(dict(row) for row in rows)


ODD_ROWS: dict[str, tuple[Edit, str, object]] = {
    "numbers as text": (every_number(str), "SELECT multiple FROM billetweb_events WHERE id = ?", 1),
    "numbers as numbers": (every_number(int), "SELECT multiple FROM billetweb_events WHERE id = ?", 1),
    "flags as booleans": (flags_as_booleans, "SELECT multiple FROM billetweb_events WHERE id = ?", 1),
    "no quota": (
        setting("gauges", quota=False),
        "SELECT count(places_total) FROM billetweb_gauges WHERE event_id = ?",
        0,
    ),
    "no commission": (
        setting("tickets", commission=False),
        "SELECT count(commission) FROM billetweb_tickets WHERE event_id = ?",
        0,
    ),
    "a price as text": (
        setting("tickets", price="12.50"),
        "SELECT min(price) FROM billetweb_tickets WHERE event_id = ?",
        12.5,
    ),
    "an empty list for an empty object": (
        setting("sessions", tickets=[]),
        "SELECT max(CAST(tickets AS text)) FROM billetweb_sessions WHERE event_id = ?",
        "{}",
    ),
    "zero dates": (
        setting("row", start=ZERO_DATE, end=ZERO_DATE),
        "SELECT starts_at FROM billetweb_events WHERE id = ?",
        None,
    ),
    "no dates": (
        setting("row", start="", end=""),
        "SELECT ends_at FROM billetweb_events WHERE id = ?",
        None,
    ),
    "a date in the hour that spring leaves out": (
        setting("row", end="2027-03-28 02:30:00"),
        "SELECT ends_at FROM billetweb_events WHERE id = ?",
        "2027-03-28 01:30:00.000000",
    ),
    "a date in the hour that autumn doubles": (
        setting("row", end="2027-10-31 02:30:00"),
        "SELECT ends_at FROM billetweb_events WHERE id = ?",
        "2027-10-31 00:30:00.000000",
    ),
    "a sale that starts in UNIX seconds": (
        setting("tickets", start_time="1800000000"),
        "SELECT min(sale_starts_at) FROM billetweb_tickets WHERE event_id = ?",
        "2027-01-15 08:00:00.000000",
    ),
    "an odd name": (
        setting("row", name=ODD_NAME),
        "SELECT name FROM billetweb_events WHERE id = ?",
        ODD_NAME,
    ),
    "empty tags": (
        setting("row", tags=["", "pain"]),
        "SELECT tags FROM billetweb_events WHERE id = ?",
        '["pain"]',
    ),
    "gauges of unknown types": (
        adding_gauges({"type": "seat", "id": "3", "avail": "2"}, {"type": "hall", "avail": 1, "quota": "9"}),
        "SELECT count(*) FROM billetweb_gauges WHERE event_id = ? AND type IN ('seat', 'hall')",
        2,
    ),
    "a gauge that counts nothing known": (
        adding_gauges({"type": "seat", "id": "3", "avail": "", "quota": None}),
        "SELECT count(places_left) FROM billetweb_gauges WHERE event_id = ? AND type = 'seat'",
        0,
    ),
    "unknown fields": (
        setting("row", seats={"rows": [1, 2]}),
        "SELECT extra FROM billetweb_events WHERE id = ?",
        '{"seats":{"rows":[1,2]}}',
    ),
}


@pytest.mark.parametrize("name", mostly_slow(ODD_ROWS, "each takes two runs", always=6))
def test_an_odd_value_is_an_error_or_is_lost(rig: Rig, standin: StandIn, name: str) -> None:
    """PHP's ways of writing are understood: the run is good, and the mirror holds what was meant."""
    edit, query, meant = ODD_ROWS[name]
    rig.run()
    edit(standin.events[OUTING])
    run = rig.run()
    assert (run.outcome, run.errors) == ("ok", [])
    mirrors(rig, standin)
    assert rig.sql(query, OUTING) == [(meant,)]


ODD_ANSWERS: dict[str, Fault] = {
    "a byte order mark": fault.bom,
    "gzip": fault.gzipped,
    "rows twice": with_rows(lambda rows: [*rows, *rows][-len(rows) - 1 :]),
    "called a page": lambda answer: Answer(answer.body, 200, {"content-type": "text/html"}),
    "in another order": with_rows(lambda rows: rows[::-1]),
}


@pytest.mark.parametrize("name", mostly_slow(ODD_ANSWERS, "each takes two runs", always=2))
def test_an_odd_answer_is_an_error_or_changes_something(rig: Rig, standin: StandIn, name: str) -> None:
    """An answer that says the same in another way is good, and nothing of the mirror changes."""
    rig.run()
    before = rig.sql("SELECT count(*) FROM syncd_changes WHERE table_name != 'billetweb_tickets'")
    standin.fail("*", ODD_ANSWERS[name], times=None)
    run = rig.run()
    assert (run.outcome, run.errors) == ("ok", [])
    assert rig.sql("SELECT count(*) FROM syncd_changes WHERE table_name != 'billetweb_tickets'") == before
    standin.heal()
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)


PASSING: dict[str, Fault] = {
    "one 503": fault.status(503),
    "one reset": fault.reset,
    "one cut": fault.cut,
    "slow for a moment": fault.drip(0.2),
}


@pytest.mark.parametrize("path", ["/events", f"/event/{OUTING}/avail"])
@pytest.mark.parametrize("name", mostly_slow(PASSING, "each takes a run", always=2))
def test_a_passing_fault_fails_a_run(
    rig: Rig, standin: StandIn, log_lines: LogLines, name: str, path: str
) -> None:
    """What a second request heals is no error of the run."""
    standin.fail(path, PASSING[name])
    run = rig.run()
    assert (run.outcome, run.errors) == ("ok", [])
    mirrors(rig, standin)
    assert not log_lines.of("error.")


@pytest.mark.parametrize("row", mostly_slow([None, {"name": "no id"}, []], "each takes two runs"))
def test_one_bad_row_of_the_list_costs_the_others(
    rig: Rig, standin: StandIn, log_lines: LogLines, row: object
) -> None:
    """The other events are synced, the one without a good row stays, and nothing is taken for gone."""
    rig.run()
    before = rig.dump(WORKSHOP)
    standin.sell(FESTIVAL)
    standin.sell(WORKSHOP)
    standin.fail("/events", with_rows(lambda rows: [*rows[:2], row, *rows[3:]]), times=2)
    for _ in range(2):
        run = rig.run()
        assert (run.outcome, run.synced, run.failed) == ("partial", 5, 1)
        assert [(error.subject, error.kind) for error in run.errors] == [("events", "malformed")]
        assert "events[2]" in run.errors[0].message
    assert rig.dump(WORKSHOP) == before
    mirrors(rig, standin, WORKSHOP)
    (told,) = log_lines.of("error.malformed")
    assert (told["subject"], told["level"]) == ("events", "WARNING")
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)


@pytest.mark.parametrize(("retry_after", "least_s"), [(None, 60), ("90", 90), ("0", 1), ("soon", 60)])
def test_a_refusal_for_too_many_calls_is_answered_by_another_call(
    rig: Rig, standin: StandIn, retry_after: str | None, least_s: float
) -> None:
    """Nothing at all is asked until the time named is over, a minute where none is; then the run is good."""
    standin.fail("/event/*/avail", fault.rate_limiting(retry_after))
    run = rig.run()
    assert run.outcome == "ok"
    assert rig.clock.slept_s == pytest.approx(least_s)
    mirrors(rig, standin)


def test_a_burst_above_the_limit_starts_the_run_over(make_config: MakeConfig, standin: StandIn) -> None:
    """At the ceiling the run waits for the window and goes on where it was: no request is sent twice."""
    with rig_on(make_config(billetweb__requests_per_minute=10)) as rig:
        standin.requests.clear()
        run = rig.run()
        assert run.outcome == "ok"
        assert (
            run.requests == len(standin.requests) == len({request.path for request in standin.requests}) == 14
        )
        assert rig.clock.slept_s == pytest.approx(61)
        mirrors(rig, standin)


@pytest.mark.parametrize("answer", ["unknown", "empty"])
def test_an_unknown_event_empties_what_is_known_of_it(rig: Rig, standin: StandIn, answer: str) -> None:
    """Whether it is answered by an error or by nothing, the rows of the event stay, in full runs too."""
    rig.run()
    faults = {"unknown": fault.error_object("not_found", "Unknown event"), "empty": fault.raw(b"[]")}
    standin.fail(f"/event/{CONCERT}/*", faults[answer], times=None)
    for full in (False, True):
        assert rig.run(full=full).outcome == "partial"
        assert not rig.sql("SELECT * FROM syncd_changes WHERE kind = 'vanished'")
    assert json.loads(rig.sql("SELECT errors FROM syncd_runs ORDER BY id DESC")[0][0])[0]["subject"] == (
        f"event {CONCERT}"
    )
