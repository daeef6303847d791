"""What is told: each thing that happens, once, as it stands in the database, and nothing of people."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, rig_on
from msgspec import structs
from sqlalchemy.event import listen
from support import faults as fault
from support.faults import with_rows
from support.real_databases import allow, refuse
from support.receiver import Receiver
from support.telling import ByHand, configure, events, sent, telling

from syncd.account import record
from syncd.database import attendees, deliveries, runs
from syncd.database.deliveries import Message
from syncd.errors import StoreError
from syncd.model import AttendeeMode, Peer, Run
from syncd.standin.server import StandIn

CONCERT, FESTIVAL = "900006", "900001"


@pytest.fixture
def rig(make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that puts on record what is to be told to one endpoint, and sends nothing."""
    config = make_config(billetweb__concurrency=1, sync__attendees="full")
    with rig_on(telling(config, Receiver("http://127.0.0.1:1/")), ByHand()) as rig:
        yield rig


def told(rig: Rig, *kinds: str) -> list[dict[str, Any]]:
    """Return what is told of these types, in order."""
    return [json.loads(body) for kind, body in sent(rig, "type, body") if kind in kinds]


def test_a_delivery_that_another_syncd_sent_waits_again(rig: Rig, standin: StandIn) -> None:
    """An attempt that failed, and is put on record after another's that did not, changes nothing."""
    rig.run()
    standin.sell(CONCERT, 3)
    rig.run()
    ((key,),) = rig.sql("SELECT id FROM syncd_deliveries WHERE state = 'pending' ORDER BY seq LIMIT 1")
    due = rig.query(deliveries.due, key, rig.clock.now())
    for state in ("delivered", "pending"):
        tried = deliveries.Tried(rig.clock.now(), state)
        rig.portal.call(rig.account.database.write, deliveries.conclude, due, tried)
    assert rig.sql("SELECT state FROM syncd_deliveries WHERE id = ?", due.id) == [("delivered",)]


def test_a_sold_out_event_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """The last place sold, and one refunded, are told with the Event as the API shows it then."""
    rig.run()
    standin.sell(CONCERT, 3)
    rig.run()
    changed, full = told(rig, "event.changed", "event.full")
    shown = {row["id"]: row for row in events(rig)}[CONCERT]
    assert full["data"] == shown | {"age_s": full["data"]["age_s"], "changed": full["data"]["changed"]}
    assert full["data"]["age_s"] < 60
    assert (full["data"]["is_full"], full["data"]["places_left"]) == (True, 0)
    assert {"is_full", "places_left", "sale_status"} <= {*full["data"]["changed"]}
    assert changed == full | {"type": "event.changed"}
    standin.refund(CONCERT, 1)
    rig.run()
    assert [one["type"] for one in told(rig, "event.full", "event.reopened")] == [
        "event.full",
        "event.reopened",
    ]
    rig.run()
    assert len(told(rig, "event.changed")) == 2


def test_an_event_that_may_have_places_passes_for_full(rig: Rig, standin: StandIn) -> None:
    """Where a full event's places become unknown that is told as reopened, and without a number."""
    standin.sell(CONCERT, 3)
    rig.run()
    standin.fail(f"/event/{CONCERT}/avail", with_rows(lambda rows: [row | {"avail": ""} for row in rows]))
    rig.run()
    (reopened,) = told(rig, "event.reopened")
    assert (reopened["data"]["places_left"], reopened["data"]["unlimited"]) == (None, False)


def test_a_new_event_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """Each event is new once; one that is full when it is first seen is told as full too."""
    standin.sell(CONCERT, 3)
    rig.run()
    assert sorted(one["data"]["id"] for one in told(rig, "event.new")) == sorted(standin.events)
    assert [one["data"]["id"] for one in told(rig, "event.full")] == [CONCERT]
    rig.run(full=True)
    assert len(told(rig, "event.new")) == len(standin.events)
    assert told(rig, "event.changed") == []


def test_an_event_that_is_gone_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """It is told when it is believed gone, and that it changed when it is back."""
    rig.run()
    gone = standin.events.pop(CONCERT)
    rig.run()
    assert told(rig, "event.vanished") == []
    rig.run()
    (vanished,) = told(rig, "event.vanished")
    assert (vanished["data"]["id"], vanished["data"]["changed"]) == (CONCERT, ["vanished_at"])
    assert vanished["data"]["vanished_at"] is not None
    standin.events[CONCERT] = gone
    rig.run()
    assert [one["data"]["changed"] for one in told(rig, "event.changed")] == [["vanished_at"]]


def test_an_order_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """A paid order is told as a whole, once, as the view shows it; so is its refund; the past is not."""
    rig.run()
    assert told(rig, "order.paid", "order.refunded") == []
    standin.sell(CONCERT, 2)
    rig.run()
    rig.run(full=True)
    paid = told(rig, "order.paid")
    assert paid
    columns = "order_id, order_ext_id, event_id, places, refunded"
    for one in paid:
        order = one["data"]
        ((*shown, price),) = rig.sql(
            f"SELECT {columns}, order_price FROM syncd_orders WHERE order_id = ?", order["order_id"]
        )
        assert [order[name] for name in columns.split(", ")] == shown
        assert float(order["order_price"]) == float(price)
    assert sum(one["data"]["places"] for one in paid) == 2
    standin.refund(CONCERT, 1)
    rig.run()
    (refunded,) = told(rig, "order.refunded")
    assert refunded["data"]["refunded"] >= 1
    assert len(told(rig, "order.paid")) == len(paid)


def test_the_first_order_of_an_event_is_told_only_to_who_named_its_id(rig: Rig, standin: StandIn) -> None:
    """Whoever names an event by its slug is told of an order that is found before the event itself is."""
    concert = standin.events.pop(CONCERT)
    rig.run()
    endpoint = structs.replace(rig.config.webhooks[0], events=("a-concert",))
    configure(rig, structs.replace(rig.config, webhooks=(endpoint,)))
    concert.row["ext_id"] = "a-concert"
    standin.events[CONCERT] = concert
    standin.sell(CONCERT)
    rig.run()
    assert paid_in(rig) == [CONCERT]
    concert.row["ext_id"], endpoint = "renamed", structs.replace(endpoint, events=("renamed",))
    configure(rig, structs.replace(rig.config, webhooks=(endpoint,)))
    standin.sell(CONCERT)
    rig.run()
    assert paid_in(rig) == [CONCERT, CONCERT]


def pauses_the_import(rig: Rig) -> fault.Fault:
    """Return what answers after the time that a run gives the import."""

    def takes_long(answer: fault.Answer) -> fault.Answer:
        """Answer, late."""
        rig.clock.now_s += 3600
        return answer

    return takes_long


def test_an_old_order_is_told_while_attendees_are_imported(rig: Rig, standin: StandIn) -> None:
    """What somebody edits before the import comes to it is new to the mirror and no news; a sale is."""
    standin.fail("/attendees", pauses_the_import(rig))
    rig.run()
    known = {key for (key,) in rig.sql("SELECT id FROM billetweb_attendees")}
    old = standin.attendees(FESTIVAL).keys() - known
    assert old
    for attendee_id in old:
        standin.attendance[FESTIVAL].touch(attendee_id, datetime.now(UTC))
    standin.sell(CONCERT)
    standin.fail("/attendees", pauses_the_import(rig))
    rig.run()
    assert old <= {key for (key,) in rig.sql("SELECT id FROM billetweb_attendees")}
    assert paid_in(rig) == [CONCERT]
    rig.run()
    standin.refund(FESTIVAL)
    rig.run()
    assert len(told(rig, "order.paid")) == len(told(rig, "order.refunded")) == 1


def test_a_sale_before_the_import_is_done_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """What was sold since attendees are mirrored is told, once, whichever run comes to it."""
    standin.fail("/attendees", fault.status(503), times=3)
    rig.run()
    standin.sell(CONCERT)
    rig.run()
    rig.run()
    assert paid_in(rig) == [CONCERT]


def test_a_sale_that_a_limited_key_hid_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """So are those of an event that is new to it, and those before it was given all rights."""
    standin.restricted = True
    concert = standin.events.pop(CONCERT)
    rig.run()
    standin.events[CONCERT] = concert
    standin.sell(CONCERT)
    rig.run()
    assert paid_in(rig) == [CONCERT]
    standin.sell(FESTIVAL)
    standin.restricted = False
    rig.run("manual")
    assert paid_in(rig) == [CONCERT, FESTIVAL]


def test_orders_are_told_when_attendees_are_wanted_again(rig: Rig, standin: StandIn) -> None:
    """What was sold while nobody was mirrored is no news."""
    rig.run()
    mirror(rig, "none")
    standin.sell(CONCERT, 2)
    rig.clock.now_s += 3600
    mirror(rig, "full")
    rig.run()
    assert paid_in(rig) == []


def paid_in(rig: Rig) -> list[str]:
    """Return of which events orders were told as paid."""
    return [one["data"]["event_id"] for one in told(rig, "order.paid")]


def mirror(rig: Rig, mode: AttendeeMode) -> None:
    """Carry a run out with this setting of `sync.attendees`."""
    configure(rig, structs.replace(rig.config, sync=structs.replace(rig.config.sync, attendees=mode)))
    rig.run()


def test_orders_of_another_account_are_told_from_before_it_was_mirrored(rig: Rig, standin: StandIn) -> None:
    """All attendees of another account are imported from the beginning, and its old orders are no news."""
    rig.run()
    (before,) = rig.sql("SELECT count(*) FROM billetweb_attendees")
    rig.sql("DELETE FROM billetweb_attendees")  # another account's are not in there
    standin.user = "67890"
    configure(
        rig,
        structs.replace(rig.config, billetweb=structs.replace(rig.config.billetweb, user=standin.user)),
    )
    assert rig.run().outcome == "ok"
    assert rig.sql("SELECT count(*) FROM billetweb_attendees") == [before]
    assert paid_in(rig) == []
    standin.sell(CONCERT)
    rig.run()
    assert paid_in(rig) == [CONCERT]


def test_a_run_of_one_event_keeps_its_orders_from_being_told(rig: Rig, standin: StandIn) -> None:
    """An order that a run of its event finds is told, also where only the import read its attendees yet."""
    rig.run()
    standin.sell(CONCERT, 1)
    standin.refund(FESTIVAL, 1)
    rig.run("manual", events=(CONCERT, FESTIVAL))
    rig.run()
    assert len(told(rig, "order.paid")) == 1
    assert len(told(rig, "order.refunded")) == 1


def test_an_order_that_lost_a_place_before_it_was_seen_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """It was paid, and one of its places was refunded: both are told."""
    rig.run()
    standin.sell(CONCERT, 3)
    standin.refund(CONCERT, 1)
    rig.run()
    paid, refunded = told(rig, "order.paid", "order.refunded")
    assert [paid["type"], refunded["type"]] == ["order.paid", "order.refunded"]
    assert [paid["data"]["places"], paid["data"]["refunded"]] == [2, 1]


def test_a_place_that_comes_to_a_paid_order_is_told_as_a_payment(rig: Rig, standin: StandIn) -> None:
    """An order is paid once: a place that is in it later changes its event, and is no payment."""
    rig.run()
    standin.sell(CONCERT, 1)
    rig.run()
    (paid,) = told(rig, "order.paid")
    before = {*standin.attendees(CONCERT)}
    standin.sell(CONCERT, 1)
    ((_, row),) = [item for item in standin.attendees(CONCERT).items() if item[0] not in before]
    row["order_id"] = paid["data"]["order_id"]
    rig.run()
    assert rig.sql("SELECT places FROM syncd_orders WHERE order_id = ?", row["order_id"]) == [(2,)]
    assert told(rig, "order.paid") == [paid]


def test_people_are_told_of(rig: Rig, standin: StandIn) -> None:
    """Where names and addresses are mirrored none of them is in a body."""
    rig.run()
    standin.sell(CONCERT, 3)
    rig.run()
    names = "firstname, name, email, order_email, order_name, barcode"
    people = {value for row in rig.sql(f"SELECT {names} FROM billetweb_attendees") for value in row if value}
    bodies = " ".join(sent(rig, "body"))
    assert "order.paid" in bodies
    assert {value for value in people if f'"{value}"' in bodies} == set()
    assert "@" not in bodies


def test_orders_outlive_the_wish_for_attendees(rig: Rig, standin: StandIn) -> None:
    """What tells of orders goes with the attendees that are mirrored no more."""
    rig.run()
    standin.sell(CONCERT, 2)
    rig.run()
    assert told(rig, "order.paid")
    mirror(rig, "none")
    assert told(rig, "order.paid") == []


def test_a_night_without_billetweb_is_told_a_hundred_times(rig: Rig, standin: StandIn) -> None:
    """The first run that fails is told, and the first that does not; restarts change nothing."""
    rig.run()
    standin.fail("/events", fault.status(503), times=None)
    failed = [rig.run(), rig.run()]
    rig.restart()
    failed.append(rig.run())
    assert {run.outcome for run in failed} == {"failed"}
    standin.heal()
    good = rig.run()
    rig.run()
    first, recovered = told(rig, "run.failed", "run.recovered")
    assert [first["type"], recovered["type"]] == ["run.failed", "run.recovered"]
    assert (first["data"]["id"], first["data"]["outcome"]) == (failed[0].id, "failed")
    assert first["data"]["errors"][0]["status"] == 503
    assert (recovered["data"]["id"], recovered["data"]["outcome"]) == (good.id, "ok")


@pytest.mark.parametrize("lost", [runs.put, record.finish])
def test_a_commit_whose_answer_is_lost_tells_of_a_run_twice(
    rig: Rig, standin: StandIn, monkeypatch: pytest.MonkeyPatch, lost: Callable[..., object]
) -> None:
    """A run whose beginning or end got on record unnoticed stands there once, and is told once."""
    write = rig.account.database.write
    answers = [lost]

    async def written(query: Any, *values: Any, **named: Any) -> Any:
        found = await write(query, *values, **named)
        if query in answers:
            answers.clear()
            raise StoreError("the server closed the connection")
        return found

    standin.fail("/events", fault.status(503), times=None)
    monkeypatch.setattr(rig.account.database, "write", written)
    ended = [rig.run(), rig.run()]
    assert rig.sql("SELECT id, state FROM syncd_runs ORDER BY id") == [(run.id, "done") for run in ended]
    assert [one["data"]["id"] for one in told(rig, "run.failed")] == [ended[0].id]


@pytest.mark.parametrize("beginning", ["refused", "unnoticed"])
def test_an_end_whose_commit_is_lost_too_is_another_run(
    rig: Rig, standin: StandIn, monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    """A run without an id, whose end got on record unnoticed, stands there once and is told once."""
    write = rig.account.database.write
    answers = [runs.put, record.finish]

    async def written(query: Any, *values: Any, **named: Any) -> Any:
        if query not in answers:
            return await write(query, *values, **named)
        answers.remove(query)
        if query is not runs.put or beginning == "unnoticed":
            await write(query, *values, **named)
        raise StoreError("the server closed the connection")

    monkeypatch.setattr(rig.account.database, "write", written)
    ended = [rig.run(), rig.run()]
    assert [run.outcome for run in ended] == ["failed", "ok"]
    assert rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY id") == [
        (run.id, run.outcome) for run in ended
    ]
    assert [one["data"]["id"] for one in told(rig, "run.failed")] == [ended[0].id]


def test_another_processes_word_takes_the_place_of_a_runs_own_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that somebody closed as interrupted, while it was cut off, stands as it ended."""
    put = runs.put

    def closed_first(connection: Any, run: Run) -> int:
        run_id = put(connection, run)
        if run.state == "running":
            runs.close_interrupted(connection, rig.clock.now() - timedelta(seconds=1))
        return run_id

    monkeypatch.setattr(runs, "put", closed_first)
    run = rig.run()
    assert rig.sql("SELECT id, outcome FROM syncd_runs") == [(run.id, "ok")]


def test_whoever_asked_for_a_run_is_told_of(rig: Rig, standin: StandIn) -> None:
    """A run is told of without the name of who asked for it, which its record keeps."""
    standin.fail("/events", fault.status(503), times=3)

    async def ask() -> Run:
        return await rig.account.request(requested_by=Peer(1000, "canary", 4711))

    for _ in range(2):
        run = rig.wait(rig.portal.call(ask))
        assert rig.query(runs.find, run.id).requested_by == Peer(1000, "canary", 4711)
    told_of = told(rig, "run.failed", "run.recovered")
    assert [one["data"]["requested_by"] for one in told_of] == [None, None]


def test_a_run_of_one_event_is_told(rig: Rig) -> None:
    """A run of named events says nothing of the account; nor does an id that somebody mistyped."""
    rig.run()
    run = rig.run("manual", events=("no-such-event",))
    assert (run.outcome, run.is_slip) == ("failed", True)
    assert rig.run().outcome == "ok"
    assert told(rig, "run.failed", "run.recovered") == []


def test_a_doubt_is_told_to_nobody(rig: Rig, standin: StandIn) -> None:
    """A doubt is told once, as the API shows it."""
    rig.run()
    standin.fail("/events", with_rows(lambda rows: rows[:1]), times=None)
    rig.run()
    rig.run()
    rig.run()
    (doubt,) = told(rig, "doubt")
    assert (doubt["data"]["table"], doubt["data"]["event_id"]) == ("billetweb_events", None)
    assert (doubt["data"]["waits_for"], doubt["data"]["absent"]) == ("accept", 5)


def test_a_change_that_was_not_made_is_told(rig: Rig, standin: StandIn) -> None:
    """What is told goes on record with its change, or not at all."""
    rig.run()
    standin.sell(CONCERT, 3)
    del standin.events[CONCERT].tickets[-1]  # that it is absent goes on record after what is told
    refuse(rig.url, "INSERT ON syncd_absences")
    assert rig.run().outcome == "failed"
    assert told(rig, "event.changed", "event.full") == []
    allow(rig.url, "INSERT ON syncd_absences")
    rig.run()
    assert len(told(rig, "event.full")) == 1


def test_a_run_that_was_killed_is_told_to_nobody(rig: Rig) -> None:
    """A run that an earlier process left unfinished is told as failed by the next, and that it is over."""
    rig.run()
    cut = rig.run()
    rig.sql("UPDATE syncd_runs SET state = 'running', outcome = NULL WHERE id = ?", cut.id)
    rig.restart()
    rig.run()
    failed, recovered = told(rig, "run.failed", "run.recovered")
    assert (failed["type"], failed["data"]["id"]) == ("run.failed", cut.id)
    assert failed["data"]["errors"][0]["kind"] == "interrupted"
    assert recovered["type"] == "run.recovered"


@pytest.mark.sqlite_only("its words for a plan")
def test_all_attendees_are_read_for_one_order(rig: Rig) -> None:
    """What is told of an order is found among the attendees of its event, by their index."""
    rig.run()
    asked: list[tuple[str, Any]] = []
    with rig.account.database.begin() as connection:
        listen(connection, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
        attendees.orders(connection, ["1"], [CONCERT])
        ((statement, values),) = asked
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    steps = [str(step[-1]) for step in plan if "billetweb_attendees" in step[-1]]
    assert steps == ["SEARCH billetweb_attendees USING INDEX ix_billetweb_attendees_event_id (event_id=?)"]


@pytest.mark.sqlite_only("counts its steps")
def test_what_is_due_is_looked_for_anew_for_each_that_waits(rig: Rig) -> None:
    """Four times as many events in wait take some four times as long to find the next in, and not sixteen."""
    at, steps = rig.clock.now(), list[int]()
    for more in (200, 600):
        ids = [f"{more}{one}" for one in range(more)]
        messages = [Message(f"msg_{each}", "site", "event.new", each, "") for each in ids]
        with rig.account.database.begin(write=True) as connection:
            deliveries.put(connection, messages, at)
        with rig.account.database.begin() as connection:
            counted = list[None]()
            driver: Any = connection.connection.driver_connection
            driver.set_progress_handler(lambda counted=counted: counted.append(None), 100)
            found = deliveries.first_due(connection, "site", at)
            driver.set_progress_handler(None, 0)
        assert isinstance(found, list)
        assert found[0] == "msg_2000"
        steps.append(len(counted))
    assert steps[0] > 5
    assert steps[1] < 7 * steps[0]


@pytest.mark.sqlite_only("its words for a plan")
def test_whether_a_delivery_is_first_is_looked_for_among_all_that_wait(rig: Rig) -> None:
    """What waits of its own event is found by their index."""
    asked: list[tuple[str, Any]] = []
    with rig.account.database.begin() as connection:
        listen(connection, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
        deliveries.due(connection, "msg_1", rig.clock.now())
        ((statement, values),) = asked
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    steps = [str(step[-1]) for step in plan if "SEARCH" in step[-1] or "SCAN" in step[-1]]
    assert steps == [
        "SEARCH syncd_deliveries USING INDEX sqlite_autoindex_syncd_deliveries_1 (id=?)",
        "SEARCH syncd_deliveries_1 USING INDEX ix_syncd_deliveries_pending (endpoint=? AND event_id=?)",
    ]
