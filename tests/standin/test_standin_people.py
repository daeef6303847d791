"""The stand-in's attendees: in step with its figures, in the wire style, and what queries show of them."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from support.people import check_in, delete_attendee, remove_order
from support.sized import Sized
from support.standin_client import CONCERT, FESTIVAL, NOW, OPEN_DAY, OUTING, WEEKEND, client_of

from syncd.standin.life import Life
from syncd.standin.people import FILTERS, PARIS, WALL, ZERO_DATE, Row
from syncd.standin.server import StandIn, serving
from syncd.standin.world import StandInEvent

MINUTE = timedelta(minutes=1)


@pytest.fixture
def standin() -> StandIn:
    return StandIn(now=NOW)


@pytest.fixture
def client(standin: StandIn) -> Iterator[httpx.Client]:
    with serving(standin) as base_url, client_of(standin, base_url) as client:
        yield client


def rows_of(standin: StandIn) -> list[Row]:
    return [row for event_id in standin.events for row in standin.attendees(event_id).values()]


def living(standin: StandIn, event_id: str) -> Counter[tuple[str, str]]:
    """Count the places that were not refunded, as an event's own book counts them."""
    rows = [row for row in standin.attendees(event_id).values() if row["disabled"] == "0"]
    slots = ((row["order_session"], row["ticket_id"]) for row in rows)
    return Counter(("" if session == "0" else session, ticket) for session, ticket in slots)


def figures(event: StandInEvent) -> str:
    return json.dumps([event.gauges, event.tickets, event.sessions])


def test_attendees_drift_apart_from_the_figures() -> None:
    """After a long life with deletions each place sold is an attendee who was not refunded, and no other."""
    standin = StandIn(events=12, seed=5, now=NOW)
    life = Life(standin, seed=5)
    for turn in range(400):
        life.step()
        standin.now += MINUTE
        if turn % 50 == 0:
            delete_attendee(standin, next(iter(standin.attendees(WEEKEND))))
            remove_order(standin, next(iter(standin.attendees(OUTING).values()))["order_id"])
    for event_id, event in standin.events.items():
        assert living(standin, event_id) == event.sold
    refunded = [row for row in rows_of(standin) if row["disabled"] == "1"]
    assert len(refunded) > 10
    assert all(row["last_update"] > row["order_date"] for row in refunded)


def test_a_decoder_meets_tame_attendees_alone(standin: StandIn) -> None:
    """Values are text but for the forms; the odd ones that are known are among them."""
    rows = rows_of(standin)
    assert {type(value) for row in rows for name, value in row.items() if "custom" not in name} == {str}
    for name in ("custom", "custom_order"):
        assert {type(row.get(name)) for row in rows} == {dict, type(None)}
    starts = {row["session_start"] for row in rows if row["order_session"] != "0"}
    assert "" in starts
    assert len(starts) > 1
    assert any(label.endswith(" ") for row in rows for label in row.get("custom") or [])
    assert any(row["barcode"].startswith("0") for row in rows)
    kinds = {row["order_payment_type"] for row in rows}
    assert kinds >= {"web", "free", "invitation", "reservation", "10549", ""}
    assert {row["order_session"] == "0" for row in rows} == {True, False}
    for row in rows:
        values = " ".join(map(str, row.values()))
        links = re.findall(r"https://www\.billetweb\.fr/\S+[?&]key=[0-9a-f]{32}", values)
        assert len(links) == 3
        assert (row["order_payment_date"] == ZERO_DATE) == (row["order_paid"] == "0")


def test_orders_are_single_places_or_add_up_wrong(standin: StandIn) -> None:
    """An order has one to four places of one event and session, and its price is theirs."""
    orders: dict[str, list[Row]] = {}
    for row in rows_of(standin):
        orders.setdefault(row["order_id"], []).append(row)
    assert {len(rows) for rows in orders.values()} == {1, 2, 3, 4}
    for rows in orders.values():
        assert len({(row["order_session"], row["order_price"], row["order_email"]) for row in rows}) == 1
        assert sum(float(row["price"]) for row in rows) == float(rows[0]["order_price"])
    assert len({row["id"] for row in rows_of(standin)}) == len(rows_of(standin))


def test_everything_was_sold_at_once(standin: StandIn) -> None:
    """The first places were sold over months, in the order of their ids, and none of them tomorrow."""
    days = {row["last_update"][:10] for row in rows_of(standin)}
    assert len(days) > 60
    assert min(days) > "2026-12-31"
    assert max(row["last_update"] for row in rows_of(standin)) <= NOW.astimezone(PARIS).strftime(WALL)
    for event_id in standin.events:
        sold_at = [row["order_date"] for row in standin.attendees(event_id).values()]
        assert sold_at == sorted(sold_at)


def test_two_accounts_with_one_seed_differ() -> None:
    """Who is there does not hang on who looked first, and looking leaves the figures alone."""
    one, other, third = StandIn(seed=3, now=NOW), StandIn(seed=3, now=NOW), StandIn(seed=4, now=NOW)
    before = [figures(event) for event in one.events.values()]
    backwards = {key: other.attendees(key) for key in reversed(other.events)}
    assert {key: one.attendees(key) for key in one.events} == backwards
    assert [figures(event) for event in one.events.values()] == before
    assert rows_of(one) != rows_of(third)


def test_a_sale_happens_in_the_past(standin: StandIn) -> None:
    """A change bears the present time: today's where it stands still, the real one elsewhere."""
    standin.now += 5 * MINUTE
    standin.sell(FESTIVAL)
    *_, sold = standin.attendees(FESTIVAL).values()
    assert sold["last_update"] == sold["order_date"] == "2027-05-02 10:35:00"
    real = StandIn()
    real.now += timedelta(days=1)
    before = datetime.now(UTC)
    real.sell(FESTIVAL)
    *_, sold = real.attendees(FESTIVAL).values()
    earliest, latest = ((at + timedelta(days=1)).astimezone(PARIS) for at in (before, datetime.now(UTC)))
    assert earliest.strftime(WALL) <= sold["last_update"] <= latest.strftime(WALL)


def test_a_refund_takes_the_row_away(standin: StandIn, client: httpx.Client) -> None:
    """The latest places of that ticket stay as refunded rows, which are shown to those who ask for them."""
    before = len(standin.attendees(CONCERT))
    ticket_id = str(standin.events[CONCERT].tickets[1]["id"])
    standin.sell(CONCERT, 1, str(standin.events[CONCERT].tickets[0]["id"]))
    standin.sell(CONCERT, 2, ticket_id)
    standin.now += MINUTE
    assert standin.refund(CONCERT, 2, ticket_id) == 2
    *_, other, first, second = standin.attendees(CONCERT).values()
    assert [row["disabled"] for row in (other, first, second)] == ["0", "1", "1"]
    assert first["last_update"] > first["order_date"]
    path = f"/event/{CONCERT}/attendees"
    assert len(client.get(path).json()) == before + 1
    assert len(client.get(path, params={"disabled": "1"}).json()) == before + 3


def test_a_deleted_place_comes_back(standin: StandIn, client: httpx.Client) -> None:
    """No read shows it again; its place is free, but for one that was given back before."""
    path, everything = f"/event/{OUTING}/attendees", {"disabled": "1"}
    before = figures(standin.events[OUTING])
    standin.sell(OUTING, 3)
    standin.refund(OUTING, 1)
    *_, last = standin.attendees(OUTING).values()
    assert remove_order(standin, last["order_id"]) == 3
    assert remove_order(standin, last["order_id"]) == 0
    assert figures(standin.events[OUTING]) == before
    first = client.get(path, params=everything).json()[0]
    delete_attendee(standin, first["id"])
    for query in (everything, everything | {"last_update": "0"}, {"session": first["order_session"]}):
        assert first["id"] not in {row["id"] for row in client.get(path, params=query).json()}
    assert figures(standin.events[OUTING]) != before
    assert living(standin, OUTING) == standin.events[OUTING].sold


def test_a_check_in_is_told_as_a_change(standin: StandIn) -> None:
    """A scan is in the row alone, whose last update stays: only a full read shows it."""
    key, row = next((key, dict(row)) for key, row in standin.attendees(WEEKEND).items())
    check_in(standin, key)
    changed = {name for name, value in standin.attendees(WEEKEND)[key].items() if value != row[name]}
    assert changed == {"used", "used_date", "lane"}


def asked(client: httpx.Client, path: str = "/attendees", **query: object) -> list[Any]:
    rows = client.get(path, params={name: str(value) for name, value in query.items()}).json()
    assert isinstance(rows, list)
    return rows


def test_an_increment_shows_too_much_or_too_little(standin: StandIn, client: httpx.Client) -> None:
    """`last_update` shows changes from its second on, `to` those before it, `since` the latest minutes."""
    everything = len(rows_of(standin))
    seconds = int(NOW.timestamp())
    for event_id in (FESTIVAL, WEEKEND, FESTIVAL):
        standin.now += 10 * MINUTE
        standin.sell(event_id)

    def events(**query: int) -> list[str]:
        return [row["event"] for row in asked(client, "/attendees", disabled=1, **query)]

    assert events(last_update=seconds + 601) == [FESTIVAL, WEEKEND]
    assert events(last_update=seconds + 600) == [FESTIVAL, FESTIVAL, WEEKEND]
    assert events(last_update=seconds + 1201) == [FESTIVAL]
    assert events(last_update=seconds + 1801) == []
    assert events(last_update=seconds + 600, to=seconds + 1200) == [FESTIVAL]
    assert events(since=9) == [FESTIVAL]
    assert len(events(to=seconds + 600)) == everything
    assert len(events()) == len(events(last_update=0)) == everything + 3
    assert len(asked(client, f"/event/{FESTIVAL}/attendees", last_update=seconds + 600)) == 2


def test_an_increment_passes_over_what_nobody_looked_at(client: httpx.Client) -> None:
    """Places that were sold before are shown by the time of their sale, though nobody asked for them yet."""
    month_ago = NOW - timedelta(days=30)
    lately = asked(client, "/attendees", last_update=int(month_ago.timestamp()))
    everything = asked(client)
    wall = month_ago.astimezone(PARIS).strftime(WALL)
    assert lately == [row for row in everything if row["last_update"] >= wall]
    assert 0 < len(lately) < len(everything)


def test_a_query_is_not_heeded(standin: StandIn, client: httpx.Client) -> None:
    """Session, use, ticket, buyer and unfinished events narrow the answer, alone and together."""
    row = next(iter(standin.attendees(OUTING).values()))
    check_in(standin, row["id"])
    everything = rows_of(standin)
    for query, name in FILTERS.items():
        found = {each["id"] for each in asked(client, **{query: row[name]})}
        assert found == {each["id"] for each in everything if each[name] == row[name]}
        assert 0 < len(found) < len(everything)
    assert [each["id"] for each in asked(client, session=row["order_session"], used=1)] == [row["id"]]
    standin.events[OPEN_DAY].row["end"] = "2027-05-01 18:00:00"
    assert {each["event"] for each in asked(client, futur=1)} == set(standin.events) - {OPEN_DAY}
    assert {each["event"] for each in asked(client)} == set(standin.events)


def test_a_door_admits_anybody(standin: StandIn, client: httpx.Client) -> None:
    """One barcode, reference or id asked for gives that place alone, an unknown one none; of each event."""
    for event_id in standin.events:
        path = f"/event/{event_id}/attendees"
        row = list(asked(client, path))[-1]
        for query in ({"barcode": row["barcode"]}, {"ext_id": row["ext_id"]}, {"product_id": row["id"]}):
            assert asked(client, path, **query) == [row]
            assert [each["id"] for each in asked(client, **query)] == [row["id"]]
            assert asked(client, path, **dict.fromkeys(query, "0")) == []
    other = next(iter(standin.attendees(FESTIVAL).values()))
    assert asked(client, f"/event/{CONCERT}/attendees", barcode=other["barcode"]) == []


def test_coming_sessions_and_tags_are_not_heeded(standin: StandIn, client: httpx.Client) -> None:
    """`futur_sessions` leaves out who has been there, `tag` narrows the account to events that have it."""
    over = str(standin.events[OUTING].sessions[0]["id"])
    path = f"/event/{OUTING}/attendees"
    everything = asked(client, path)
    coming = asked(client, path, futur_sessions=1)
    assert coming == [row for row in everything if row["order_session"] != over]
    assert 0 < len(coming) < len(everything)
    festival = f"/event/{FESTIVAL}/attendees"
    assert asked(client, festival, futur_sessions=1) == asked(client, festival)
    standin.events[FESTIVAL].row["end"] = "2027-05-01 18:00:00"
    assert asked(client, festival, futur_sessions=1) == []
    assert {row["event"] for row in asked(client, tag="concert")} == {CONCERT}
    assert asked(client, tag="opéra") == []


def test_seats_are_nowhere() -> None:
    """In a hall each place is one seat of its part, from the largest part to the number."""
    standin = StandIn(events=10, now=NOW)
    rows = list(standin.attendees("900010").values())
    assert all(
        re.fullmatch(r"Salle > (Balcon|Parterre) > \d+ > \d+", row["seating_location"]) for row in rows
    )
    assert len({row["seating_location"] for row in rows}) == len(rows) > 0


def test_an_attendee_of_the_account_has_no_event(standin: StandIn, client: httpx.Client) -> None:
    """Rows of the account name their event, with its name and start; an event's own rows do not."""
    of_event = asked(client, f"/event/{FESTIVAL}/attendees")[0]
    event = standin.events[FESTIVAL].row
    event["tags"] = ["", "festival", "été"]
    row = asked(client)[0]
    added = {
        "event": FESTIVAL,
        "event_name": event["name"],
        "event_start": event["start"],
        "event_tags": "festival,été",
    }
    assert row == of_event | added
    assert not added.keys() & of_event.keys()


def test_a_restricted_key_reads_the_account(standin: StandIn, client: httpx.Client) -> None:
    """A key for chosen events is refused with 200 for the account's attendees, and for nothing else."""
    standin.restricted = True
    answer = client.get("/attendees")
    assert (answer.status_code, answer.json()["error"]) == (200, "unauthorized")
    assert "limited rights to specific events" in answer.json()["description"]
    assert asked(client, f"/event/{FESTIVAL}/attendees")
    assert asked(client, "/events")


def test_a_benchmark_gets_another_number_than_it_asked_for() -> None:
    """Each event of whatever kind has just so many attendees, room for more, and figures that agree."""
    for attendees in (0, 1, 40, 500):
        standin = Sized(events=12, now=NOW, attendees=attendees)
        for event_id, event in standin.events.items():
            assert len(standin.attendees(event_id)) == attendees
            assert living(standin, event_id) == event.sold
            assert standin.sell(event_id) == 1
