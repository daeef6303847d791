"""Every fault known of Billetweb, through real HTTP into a real database: old data kept, told, healed."""

import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, mirrors, rig_on
from msgspec import structs
from support import faults as fault
from support.faults import with_rows
from support.variants import mostly_slow

from syncd.model import Run
from syncd.standin.server import Answer, Fault, StandIn, php_json

FESTIVAL, VICTIM, CONCERT = KEPT = ("900001", "900005", "900006")  # the second has sessions
WHAT_NEXT = {
    "transport": "the old availability stays, the next run asks again",
    "rate_limited": "the old availability stays, the next run asks again",
    "challenge": "no request is sent for some minutes",
    "credentials": "nothing is asked for a day, or until there is a new key",
    "restricted": "give the key the right to all events",
    "refused": "the old availability stays, the next run asks again",
    "malformed": "nothing of that was used",
    "too_large": "nothing of this answer was used",
    "doubted": "nothing of it is marked vanished",
}


@dataclass(frozen=True)
class Case:
    """A fault, and what is to be said of it.

    `asked`: how often the faulty address is asked in that run. `rest_s`: how long nothing at all is asked
    after each such answer.
    """

    fault: Fault
    kind: str
    status: int | None = 200
    asked: int = 1
    rest_s: float = 0.0
    spreads: bool = False  # once it struck, the events that follow are not asked for either


def error(token: str, status: int) -> Fault:
    return fault.error_object(token, "for a reason", status)


def third(row: object) -> Fault:
    """Return a fault that puts this in the third row's place, or last where there are fewer."""
    return with_rows(lambda rows: [*rows[:2], row, *rows[3:]])


def without_id(rows: list[Any]) -> list[Any]:
    """Take from the last row what it cannot be told by: its id, or a gauge's type."""
    last = {name: value for name, value in rows[-1].items() if name not in ("id", "type")}
    return [*rows[:-1], last]


def as_object(answer: Answer) -> Answer:
    rows = json.loads(answer.body)
    return structs.replace(answer, body=php_json({str(index): row for index, row in enumerate(rows)}))


def one_object(answer: Answer) -> Answer:
    return structs.replace(answer, body=php_json(json.loads(answer.body)[0]))


def broken_gzip(answer: Answer) -> Answer:
    return structs.replace(
        answer, body=gzip.compress(answer.body)[:-9] + b"\xff" * 9, headers={"content-encoding": "gzip"}
    )


CHALLENGE_200 = fault.html('<script src="/cdn-cgi/challenge-platform/x"></script>', 200)
RETRIED = 3

EVERYWHERE = {
    "empty body": Case(fault.empty, "malformed"),
    "null": Case(fault.null, "malformed"),
    "truncated": Case(fault.truncated, "malformed"),
    "page for people": Case(fault.html_page, "malformed"),
    "rows in an object": Case(as_object, "malformed"),
    "one bare row": Case(one_object, "malformed"),
    "a single value": Case(fault.raw(b"false"), "malformed"),
    "broken gzip": Case(broken_gzip, "malformed"),
    "over 64 MiB": Case(fault.oversized(), "too_large"),
    "challenge page": Case(fault.challenge, "challenge", 403, spreads=True),
    "challenge page with 200": Case(CHALLENGE_200, "challenge", 200, spreads=True),
    "challenge page with 503": Case(
        fault.html("cdn-cgi/challenge-platform", 503), "challenge", 503, spreads=True
    ),
    "credentials refused with 200": Case(fault.unauthorized, "credentials", 200, spreads=True),
    "credentials refused with 401": Case(fault.unauthorized_401, "credentials", 401, spreads=True),
    "credentials refused without words": Case(error("forbidden", 403), "credentials", 403, spreads=True),
    "limited rights": Case(fault.restricted, "restricted"),
    "limited calls": Case(fault.rate_limiting(), "rate_limited", 429, RETRIED, rest_s=60),
    "limited calls with 503": Case(error("rate_limiting", 503), "rate_limited", 503, RETRIED, rest_s=60),
    "limited calls with 200": Case(error("rate_limiting", 200), "rate_limited", 200, RETRIED, rest_s=60),
    "limited calls for two minutes": Case(
        fault.rate_limiting("120"), "rate_limited", 429, RETRIED, rest_s=120
    ),
    "unknown with 200": Case(error("not_found", 200), "refused"),
    "unknown with 404": Case(error("not_found", 404), "refused", 404),
    "gone": Case(fault.status(404), "refused", 404),
    "redirect to another host": Case(fault.redirect(), "refused", 302),
    "server error": Case(fault.status(500), "transport", 500, RETRIED),
    "bad gateway": Case(fault.status(502), "transport", 502, RETRIED),
    "overloaded": Case(fault.status(503), "transport", 503, RETRIED),
    "time-out of theirs": Case(fault.status(504), "transport", 504, RETRIED),
    "connection reset": Case(fault.reset, "transport", None, RETRIED),
    "connection cut in mid-body": Case(fault.cut, "transport", None, RETRIED),
    "no answer": Case(fault.hang, "transport", None, RETRIED),
}
OF_ONE_EVENT = {
    "third row null": Case(third(None), "malformed"),
    "a row without id": Case(with_rows(without_id), "malformed"),
    "a row that is a list": Case(third([]), "malformed"),
    "no rows where rows were": Case(with_rows(lambda _: []), "doubted", None),
}
READS = ("avail", "tickets", "dates")


@pytest.fixture
def standin() -> StandIn:
    """Return an account of three events, for speed."""
    standin = StandIn()
    standin.events = {event_id: standin.events[event_id] for event_id in KEPT}
    return standin


@pytest.fixture
def rig(
    request: pytest.FixtureRequest, make_config: MakeConfig, instant_retries: None, log_lines: LogLines
) -> Iterator[Rig]:
    """Give a rig that soon loses patience where nothing will come."""
    config = make_config(billetweb__concurrency=1)
    if "no answer" in request.node.name:
        quick = structs.replace(config.billetweb, timeout=timedelta(seconds=0.4))
        config = structs.replace(config, billetweb=quick)
    with rig_on(config) as rig:
        yield rig


def is_told(log_lines: LogLines, run: Run, subject: str, case: Case) -> None:
    """Fail unless one line tells of the fault, and the run's end has the right level."""
    (told,) = [line for line in log_lines.of("error.") if line["subject"] == subject]
    assert (told["event"], told["kind"], told["level"]) == (f"error.{case.kind}", case.kind, "WARNING")
    assert told.get("status") == case.status
    assert WHAT_NEXT[case.kind] in told["message"]
    (end,) = log_lines.of("run.finished")
    assert (end["outcome"], end["level"]) == (
        run.outcome,
        {"failed": "ERROR"}.get(run.outcome or "", "WARNING"),
    )


def heals(rig: Rig, standin: StandIn, case: Case) -> None:
    """Fail unless the next run after the fault is over makes the mirror equal to the upstream."""
    standin.heal()
    rig.clock.now_s += 301  # a challenge page is respected for five minutes
    run = rig.run("manual" if case.kind == "credentials" else "interval")
    assert (run.outcome, run.errors) == ("ok", [])
    mirrors(rig, standin)


def doubted_table_stays(rig: Rig, before: dict[str, list[tuple[Any, ...]]], what: str) -> None:
    """Fail unless the rows that a doubted read lacks are as they were, and none is marked vanished."""
    table = {"avail": "billetweb_gauges", "tickets": "billetweb_tickets", "dates": "billetweb_sessions"}[what]
    ids = 4 if what == "avail" else 1
    assert [row[:ids] for row in rig.dump(VICTIM)[table]] == [row[:ids] for row in before[table]]
    assert not rig.sql(f"SELECT * FROM {table} WHERE vanished_at IS NOT NULL")
    assert not rig.sql("SELECT * FROM syncd_changes WHERE kind = 'vanished'")
    if what == "avail":
        assert rig.dump(VICTIM)[table] == before[table]


@pytest.mark.parametrize("name", mostly_slow(EVERYWHERE, "each takes three runs", always=5))
def test_a_fault_in_the_list_of_events_costs_data(
    rig: Rig, standin: StandIn, log_lines: LogLines, name: str
) -> None:
    """Where the list cannot be read nothing at all changes, the run is failed, and the next one heals."""
    case = EVERYWHERE[name]
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)
    before = rig.dump()
    assert (standin.sell(FESTIVAL), standin.sell(VICTIM)) == (1, 1)
    standin.requests.clear()
    log_lines.clear()
    rig.clock.slept_s = 0
    standin.fail("/events", case.fault, times=None)
    run = rig.run()
    assert run.outcome == "failed"
    assert [(error.subject, error.kind) for error in run.errors] == [("run", case.kind)]
    assert rig.dump() == before
    again = case.kind == "too_large"  # it is asked for without descriptions
    assert [request.path for request in standin.requests] == ["/events"] * (case.asked + again)
    assert rig.clock.slept_s == pytest.approx(case.rest_s * (case.asked - 1))
    is_told(log_lines, run, "run", case)
    heals(rig, standin, case)


@pytest.mark.parametrize(
    "fault_in",
    mostly_slow(
        [*zip(EVERYWHERE, itertools.cycle(READS), strict=False), *itertools.product(OF_ONE_EVENT, READS)],
        "each takes three runs",
        always=9,
    ),
    ids="-".join,
)
def test_a_fault_in_one_event_costs_its_data_or_the_others(
    rig: Rig, standin: StandIn, log_lines: LogLines, fault_in: tuple[str, str]
) -> None:
    """What failed stays byte for byte, every other event is brought up to date, and the next run heals."""
    name, what = fault_in
    case = (EVERYWHERE | OF_ONE_EVENT)[name]
    if case.kind == "credentials":  # they are good: the list of events came with them
        case = replace(case, kind="restricted", spreads=False)
    assert rig.run().outcome == "ok"
    before = rig.dump(VICTIM)
    assert (standin.sell(FESTIVAL), standin.sell(VICTIM)) == (1, 1)
    standin.events[VICTIM].row["name"] = "Renamed meanwhile"
    standin.requests.clear()
    log_lines.clear()
    rig.clock.slept_s = 0
    standin.fail(f"/event/{VICTIM}/{what}", case.fault, times=None)
    run = rig.run()
    assert run.outcome == "partial"
    asked = [request.path for request in standin.requests]
    assert asked.count(f"/event/{VICTIM}/{what}") == case.asked
    assert rig.clock.slept_s == pytest.approx(case.rest_s * case.asked)
    lost = {VICTIM, CONCERT} if case.spreads else {VICTIM}  # the concert comes after it
    assert {(error.subject, error.kind) for error in run.errors} == {
        (f"event {id_}", case.kind) for id_ in lost
    }
    assert (run.synced, run.failed) == (3 - len(lost), len(lost))
    mirrors(rig, standin, *lost)
    if case.kind == "doubted":
        doubted_table_stays(rig, before, what)
    else:
        assert rig.dump(VICTIM) == before
    is_told(log_lines, run, f"event {VICTIM}", case)
    heals(rig, standin, case)
