"""The stand-in for Billetweb, asked over real HTTP: what it gets wrong, every other test believes."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from support import faults as wire
from support.limited import Limited
from support.odd_wire import as_numbers, with_empty_lists, without_dates
from support.standin_client import CONCERT, FESTIVAL, NOW, OPEN_DAY, OUTING, WEEKEND, client_of

from syncd.standin import server
from syncd.standin.life import FAULT_EVERY, Life
from syncd.standin.server import Fault, StandIn, serving
from syncd.standin.world import ZERO_DATE, Row, StandInEvent, instant, number


@pytest.fixture
def standin() -> StandIn:
    return StandIn(now=NOW)


@pytest.fixture
def client(standin: StandIn) -> Iterator[httpx.Client]:
    with serving(standin) as base_url, client_of(standin, base_url) as client:
        yield client


def received(standin: StandIn, count: int) -> None:
    """Wait until the stand-in has so many requests on record."""
    deadline = time.monotonic() + 5
    while len(standin.requests) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lived(standin: StandIn, steps: int, *, seed: int) -> None:
    """Let so many steps of a life pass."""
    life = Life(standin, seed=seed)
    for _ in range(steps):
        life.step()


def sold_under(event: StandInEvent, gauge: Row) -> int:
    """Return the places sold that count against a gauge, by the event's own book."""
    categories = {str(ticket["id"]): ticket["category"] for ticket in event.tickets}
    kind, wanted = gauge["type"], str(gauge.get("id"))
    return sum(
        count
        for (session, ticket), count in event.sold.items()
        if kind == "event"
        or (kind == "ticket" and ticket == wanted)
        or (kind == "session" and session == wanted)
        or (kind == "category" and gauge["name"] in categories[ticket].strip().split(" > "))
    )


def test_a_decoder_that_knows_one_type_per_field_would_pass() -> None:
    """Counts come as text, number or false; ids and flags as text; dates as zero; the empty tag is there."""
    events = StandIn(events=24, now=NOW).events.values()
    gauges = [row for event in events for row in event.gauges]
    tickets = [row for event in events for row in event.tickets]
    sessions = [row for event in events for row in event.sessions]
    named = [*(event.row for event in events), *tickets, *sessions, *gauges]
    assert {type(row["id"]) for row in named if "id" in row} == {str}
    for name in ("multiple", "online"):
        assert {event.row[name] for event in events} == {"0", "1"}
    assert {row["quota"].isdigit() for row in sessions} == {True}
    for name in ("image", "cover"):
        assert all(event.row[name].startswith("https://www.billetweb.fr/") for event in events)
    assert {type(row["avail"]) for row in gauges} == {str, int}
    assert {type(row["quota"]) for row in gauges} == {str, int, bool}
    assert {type(row["commission"]) for row in tickets} == {float, bool}
    assert {type(row["price"]) for row in tickets} == {float, int}
    assert {row["quota"] for row in tickets} >= {"", "0", "-1", False}
    assert {type(row.get("tickets")) for row in sessions} == {dict, type(None)}
    assert ZERO_DATE in {row["last_update"] for row in sessions}
    assert any("" in event.row["tags"] for event in events)
    assert any(str(row["start_time"]).isdigit() for row in tickets)


def test_every_rule_of_availability_has_an_event(standin: StandIn) -> None:
    """The six kinds differ in the level at which they are limited, as `World` says."""
    limited = [
        {row["type"] for row in event.gauges if row["quota"] is not False}
        for event in standin.events.values()
    ]
    assert limited == [{"event", "ticket"}, {"category", "ticket"}, {"ticket"}, set(), {"session"}, {"event"}]
    assert "id" not in standin.events[CONCERT].gauges[0]
    assert number(standin.events[CONCERT].gauges[0]["avail"]) == 3
    assert number(standin.events[OUTING].row["multiple"]) == 1


def test_the_wire_is_not_php(client: httpx.Client) -> None:
    """Lists are bare arrays, in ASCII with escaped slashes; dates are wall times in Paris."""
    answer = client.get("/events")
    assert answer.content.isascii()
    assert b"https:\\/\\/www.billetweb.fr" in answer.content
    first = answer.json()[0]
    assert first["name"] == "Fête des lucioles"
    assert first["start"] == "2027-05-04 10:00:00"
    assert "description" not in first
    assert "description" in client.get("/events", params={"description": "1"}).json()[0]


def test_clients_with_the_key_in_the_query_are_refused(standin: StandIn, client: httpx.Client) -> None:
    """The first form that Billetweb documents serves as the header does, without it; wrong ones do not."""
    client.auth = None  # type: ignore[assignment]
    good = {"user": standin.user, "key": standin.key, "version": "1"}
    assert len(client.get("/events", params=good).json()) == 6
    assert client.get(f"/event/{FESTIVAL}/avail", params=good | {"temp": "1"}).json()[0]["type"] == "event"
    assert all(request.authorized for request in standin.requests)
    for wrong in ({"key": "other"}, {"user": "1"}, {"key": ""}):
        assert client.get("/events", params=good | wrong).json()["error"] == "unauthorized"
    assert client.get("/events", params={"key": standin.key}).json()["error"] == "unauthorized"
    assert not standin.requests[-1].authorized


@pytest.mark.parametrize("auth", [("12345", "other"), ("999", "demo-key"), None])
def test_wrong_credentials_would_be_served(
    client: httpx.Client, standin: StandIn, auth: tuple[str, str] | None
) -> None:
    """They get an error object with status 200, and the request is on record as not authorized."""
    client.auth = auth  # type: ignore[assignment]
    answer = client.get("/events")
    assert (answer.status_code, answer.json()["error"]) == (200, "unauthorized")
    assert not standin.requests[-1].authorized


def test_requests_are_not_on_record(standin: StandIn, client: httpx.Client) -> None:
    """Path, query, headers and method of the latest requests are kept, in order; no more than those."""
    client.get("/events")
    standin.requests *= server.MAX_REQUESTS
    client.get("/events", params={"past": "1"}, headers={"User-Agent": "syncd/1"})
    assert client.post(f"/event/{FESTIVAL}/avail").status_code == 405
    assert len(standin.requests) == server.MAX_REQUESTS
    *_, first, second = standin.requests
    assert (first.path, first.query, first.authorized) == ("/events", {"past": "1"}, True)
    assert first.headers["user-agent"] == "syncd/1"
    assert (second.path, second.method) == (f"/event/{FESTIVAL}/avail", "POST")
    assert first.at <= second.at


def test_two_demos_with_one_seed_differ() -> None:
    """Rows and life follow from seed, number and date alone; another seed gives another life."""

    def life(seed: int) -> list[StandInEvent]:
        standin = StandIn(events=9, seed=1, now=NOW)
        lived(standin, 400, seed=seed)
        return list(standin.events.values())

    assert life(3) == life(3)
    assert life(3) != life(4)


def test_gauges_drift_apart_from_the_sales() -> None:
    """After a long life each limited gauge and each session still shows quota less places sold."""
    standin = StandIn(events=12, seed=5, now=NOW)
    lived(standin, 400, seed=5)
    for event in standin.events.values():
        for gauge in event.gauges:
            if (quota := number(gauge["quota"])) is not None:
                left = quota - sold_under(event, gauge)
                assert number(gauge["avail"]) == left >= 0
        for session in event.sessions:
            assert number(session["total_sales"]) == sold_under(
                event, {"type": "session", "id": session["id"]}
            )


def test_a_full_event_sells_on(standin: StandIn) -> None:
    """A sale stops at the last place, a refund opens it again, and wire types stay."""
    gauge = standin.events[CONCERT].gauges[0]
    gauge["avail"] = "3"
    assert [standin.sell(CONCERT, count) for count in (2, 5, 1)] == [2, 1, 0]
    assert gauge["avail"] == "0"
    assert standin.refund(CONCERT, 2) == 2
    assert gauge["avail"] == "2"


def test_a_sale_forgets_a_gauge_above_it(standin: StandIn) -> None:
    """A place takes from its ticket, its category, its session and the event, and from no other."""
    weekend = standin.events[WEEKEND]
    before = {str(row["id"]): number(row["avail"]) for row in weekend.gauges}
    reduced = str(weekend.tickets[1]["id"])
    assert standin.sell(WEEKEND, 1, reduced) == 1
    after = {str(row["id"]): number(row["avail"]) for row in weekend.gauges}
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {str(weekend.gauges[0]["id"]), reduced}

    sales = [number(row["total_sales"]) or 0 for row in standin.events[OUTING].sessions]
    assert standin.sell(OUTING, 1) == 1
    sales[1] += 1
    assert [number(row["total_sales"]) for row in standin.events[OUTING].sessions] == sales


def test_refunds_exceed_the_sales(standin: StandIn) -> None:
    """No more places come back than were sold, limited or not."""
    for event_id in (FESTIVAL, OPEN_DAY):
        sold = standin.events[event_id].sold.total()
        assert [standin.refund(event_id, 10_000), standin.refund(event_id)] == [sold, 0]


def test_ended_and_hidden_events_are_listed(standin: StandIn, client: httpx.Client) -> None:
    """An ended event needs past=1 or its id, and online=1 leaves out what is not published."""
    standin.events[FESTIVAL].row["end"] = "2027-05-01 18:00:00"
    standin.events[WEEKEND].row["online"] = "0"

    def listed(**query: str) -> set[str]:
        return {str(row["id"]) for row in client.get("/events", params=query).json()}

    everything = set(standin.events)
    assert listed() == everything - {FESTIVAL}
    assert listed(past="1") == everything
    assert listed(past="1", online="1") == everything - {WEEKEND}
    assert listed(id=FESTIVAL) == {FESTIVAL}
    assert listed(id="1") == set()


def test_past_sessions_are_listed(client: httpx.Client) -> None:
    """Ended sessions and their gauges need past=1; `session` picks one by id or by start."""
    dates = client.get(f"/event/{OUTING}/dates", params={"past": "1"}).json()
    assert client.get(f"/event/{OUTING}/dates").json() == dates[1:]
    assert client.get(f"/event/{FESTIVAL}/dates").json() == []
    assert len(client.get(f"/event/{FESTIVAL}/tickets").json()) == 3

    def shown(**query: str) -> list[str]:
        rows = client.get(f"/event/{OUTING}/avail", params=query).json()
        return [row["id"] for row in rows if row["type"] == "session"]

    ids = [str(row["id"]) for row in dates]
    assert shown() == ids[1:]
    assert shown(past="1") == ids
    assert shown(session=ids[2]) == [ids[2]]
    assert shown(session=dates[2]["start"]) == [ids[2]]


def test_filters_of_sessions_are_not_heeded(standin: StandIn, client: httpx.Client) -> None:
    """Start, end, change and visibility narrow the sessions as documented; a past one can be asked for."""
    first, second, third, fourth = standin.events[OUTING].sessions
    second["disabled"], third["disabled"] = "1", "2"
    third["last_update"] = "2027-05-01 12:00:00"
    for row in (first, second, fourth):
        row["last_update"] = ZERO_DATE

    def at(row: Row) -> int:
        found = instant(row["start"])
        assert found
        return int(found.timestamp())

    def dates(**query: object) -> list[Row]:
        answer = client.get(
            f"/event/{OUTING}/dates", params={name: str(value) for name, value in query.items()}
        )
        return [row["id"] for row in answer.json()]

    ids = [row["id"] for row in (first, second, third, fourth)]
    assert dates() == ids[1:], "hidden ones too"
    assert dates(past=1) == dates(past_by=2) == ids
    assert dates(past_by=0) == ids[1:]
    assert dates(start_from=at(third)) == ids[2:]
    assert dates(start_to=at(third)) == ids[1:2]
    assert dates(past=1, start_from=at(first), start_to=at(third)) == ids[:2]
    changed = int(NOW.timestamp()) - 86_400
    assert dates(last_update=changed) == ids[2:3]
    assert dates(last_update=int(NOW.timestamp())) == []
    assert [dates(disabled=value) for value in (0, 1, 2, 3)] == [ids[3:], ids[1:2], ids[2:3], []]


def test_the_public_sees_all_that_there_is() -> None:
    """Further kinds hide a tariff or a session, have sales that are over or to come, and halls with parts."""
    night, walk, visit, theatre = list(StandIn(events=10, now=NOW).events.values())[6:]
    assert [row["visibility"] for row in night.tickets] == ["0", "1", "2"]
    assert [number(row["avail"]) == -1 for row in night.gauges] == [False, False, True]
    over, now, to_come = ((instant(row["start_time"]), instant(row["end_time"])) for row in walk.tickets)
    assert over[1]
    assert over[1] < NOW
    assert now[1] is None
    assert to_come[0]
    assert to_come[0] > NOW
    assert number(walk.gauges[0]["avail"]) != 0, "places are left of the sale that is over"
    assert [row["disabled"] for row in visit.sessions] == ["0", "0", "1"]
    assert {row["category"].strip() for row in theatre.tickets} == {"Salle > Balcon", "Salle > Parterre"}
    assert {row["name"] for row in theatre.gauges if row["type"] == "category"} == {"Balcon", "Parterre"}


def test_a_sale_that_is_over_goes_on() -> None:
    """Who names no ticket gets one whose sale goes on; places of a part of the hall are taken from it."""
    standin = StandIn(events=10, now=NOW)
    walk, theatre = standin.events["900008"], standin.events["900010"]
    early, *_, last_minute = (str(row["id"]) for row in walk.tickets)
    before = walk.sold.copy()
    assert standin.sell("900008", 5) == 5
    assert {ticket for (_, ticket), count in (walk.sold - before).items() if count} == {walk.tickets[1]["id"]}
    assert before["", early] == walk.sold["", early]
    assert last_minute not in {ticket for _, ticket in walk.sold - before}
    figures = [number(row["avail"]) for row in theatre.gauges[:2]]
    assert standin.sell("900010", 1, theatre.tickets[1]["id"]) == 1
    assert [number(row["avail"]) for row in theatre.gauges[:2]] == [figures[0], (figures[1] or 0) - 1]


def test_odd_spellings_are_not_at_hand(standin: StandIn, client: httpx.Client) -> None:
    """Numbers, empty lists and zero dates, where Billetweb has others, are faults of their own."""
    standin.fail("/events", as_numbers)
    assert {type(row[name]) for row in client.get("/events").json() for name in ("id", "multiple")} == {int}
    standin.fail("/events", without_dates)
    assert {(row["start"], row["end"]) for row in client.get("/events").json()} == {(ZERO_DATE, ZERO_DATE)}
    standin.fail("*", with_empty_lists, times=None)
    assert client.get(f"/event/{OUTING}/dates").json()[-1]["tickets"] == []
    rows = client.get("/attendees").json()
    assert {type(row[name]) for row in rows for name in ("custom", "custom_order")} == {dict, list}


def test_baskets_count_without_being_asked_for(standin: StandIn, client: httpx.Client) -> None:
    """Places in baskets are taken for temp=1 only, and nothing is sold by asking."""
    standin.events[CONCERT].carts = 2
    rows = [client.get(f"/event/{CONCERT}/avail", params={"temp": temp}).json() for temp in "10"]
    assert [number(row[0]["avail"]) for row in rows] == [1, 3]


@pytest.mark.parametrize("path", ["/event/1/avail", "/event/1/tickets", "/event/1/attendees", "/guests"])
def test_an_unknown_event_looks_empty(client: httpx.Client, path: str) -> None:
    """What does not exist gets an error object, not an empty array."""
    assert client.get(path).json()["error"] == "not_found"


def test_the_limiter_never_lets_go() -> None:
    """Beyond the limit in any 60 s the answer is 429, and the window slides by the clock."""
    clock = [0.0]
    standin = Limited(calls_per_minute=3, clock=lambda: clock[0])
    with serving(standin) as base_url, client_of(standin, base_url) as client:

        def call(at: float) -> httpx.Response:
            clock[0] = at
            return client.get("/events")

        assert [call(at).status_code for at in (0, 20, 40)] == [200, 200, 200]
        assert [call(at).status_code for at in (59, 60, 61, 80)] == [429, 200, 429, 200]
        refused = call(81)
    assert refused.json()["error"] == "rate_limiting"
    assert b'\n    "error"' in refused.content
    assert "retry-after" not in refused.headers


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (wire.unauthorized, 200, '{"error":"unauthorized",'),
        (wire.unauthorized_401, 401, '{"error":"unauthorized",'),
        (wire.restricted, 200, "limited rights to specific events"),
        (wire.rate_limiting(), 429, "100 hits per minute"),
        (wire.error_object("maintenance", "Back soon"), 200, '"description":"Back soon"'),
        (wire.challenge, 403, "cdn-cgi/challenge-platform"),
        (wire.html_page, 200, "<html"),
        (wire.empty, 200, ""),
        (wire.null, 200, "null"),
        (wire.status(503), 503, "503"),
        (wire.raw(b"odd", 418, {"x-odd": "1"}), 418, "odd"),
    ],
)
def test_a_refusal_is_not_as_announced(
    standin: StandIn, client: httpx.Client, fault: Fault, status: int, words: str
) -> None:
    """Each answer that is no array has its status and its words, and comes only once."""
    standin.fail("/events", fault)
    answer = client.get("/events")
    assert answer.status_code == status
    assert words in answer.text
    assert bool(words) == bool(answer.content)
    assert isinstance(client.get("/events").json(), list)


def test_the_headers_of_a_fault_are_lost(standin: StandIn, client: httpx.Client) -> None:
    """Retry-After comes where the test wants one, and headers of a raw answer replace the usual."""
    standin.fail("/events", wire.rate_limiting("7"))
    assert client.get("/events").headers["retry-after"] == "7"
    standin.fail("/events", wire.raw(b"[]", headers={"content-type": "text/plain"}))
    assert client.get("/events").headers["content-type"] == "text/plain"


def test_a_good_answer_in_odd_clothes_is_lost(standin: StandIn, client: httpx.Client) -> None:
    """A byte order mark or gzip leave the rows as they are; truncation leaves the first half of them."""
    right = client.get("/events").content
    standin.fail("/events", wire.bom)
    assert client.get("/events").content == b"\xef\xbb\xbf" + right
    standin.fail("/events", wire.gzipped)
    assert client.get("/events").content == right
    standin.fail("/events", wire.truncated)
    assert client.get("/events").content == right[: len(right) // 2]


def test_an_oversized_body_is_honest_on_the_wire(standin: StandIn, client: httpx.Client) -> None:
    """A few kilobytes become megabytes that a client without a limit would take for a good answer."""
    standin.fail("/events", wire.oversized(4))
    answer = client.get("/events")
    assert int(answer.headers["content-length"]) < 50_000
    assert len(answer.content) > 4 * 1024 * 1024
    assert len(answer.json()) == 6


def test_a_connection_fault_looks_like_an_answer(standin: StandIn, client: httpx.Client) -> None:
    """A reset and a cut body are errors of the transport to httpx, and the next call is fine."""
    for fault, error in ((wire.reset, httpx.ReadError), (wire.cut, httpx.RemoteProtocolError)):
        standin.fail("/events", fault)
        with pytest.raises(error):
            client.get("/events")
    assert client.get("/events").status_code == 200


def test_a_hanging_request_is_never_released(standin: StandIn, client: httpx.Client) -> None:
    """It answers nothing, holds up no other request, and gets its answer when healed."""
    standin.fail("/events", wire.hang, times=None)
    with pytest.raises(httpx.ReadTimeout):
        client.get("/events", timeout=0.05)
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/events").status_code))
    asking.start()
    assert client.get(f"/event/{FESTIVAL}/avail").status_code == 200
    received(standin, 3)
    assert answers == []
    standin.heal()
    asking.join(5)
    assert answers == [200]


def test_a_slow_body_is_broken(standin: StandIn, client: httpx.Client) -> None:
    """The right body trickles for about the time given."""
    right = client.get("/events").content
    standin.fail("/events", wire.drip(0.3))
    started = time.monotonic()
    assert client.get("/events").content == right
    assert time.monotonic() - started >= 0.2


def test_a_redirect_stays_at_home(standin: StandIn, client: httpx.Client) -> None:
    """The redirect names another host, whose requests would be on record here."""
    standin.fail("/events", wire.redirect())
    answer = client.get("/events")
    location = httpx.URL(answer.headers["location"])
    assert (answer.status_code, location.host, location.port) == (302, "localhost", client.base_url.port)
    client.get(str(location.copy_with(host="127.0.0.1")))
    assert standin.requests[-1].path == "/elsewhere"


def test_an_edit_of_rows_spoils_the_account(standin: StandIn, client: httpx.Client) -> None:
    """Rows may be nulled, stripped of ids, doubled or dropped in one answer; an error object stays."""
    right = client.get("/events").json()
    edits: list[Callable[[list[Row]], list[Row | None]]] = [
        lambda rows: [*rows[:2], None, *rows[3:]],
        lambda rows: [{"name": row["name"]} for row in rows],
        lambda rows: [*rows, rows[0]],
        lambda _: [],
    ]
    for edit in edits:
        standin.fail("/events", wire.with_rows(edit))
        assert client.get("/events").json() == edit(right)
    assert client.get("/events").json() == right
    standin.fail("/event/1/avail", wire.with_rows(lambda _: []))
    assert client.get("/event/1/avail").json()["error"] == "not_found"


def test_faults_hit_the_wrong_requests(standin: StandIn, client: httpx.Client) -> None:
    """A fault keeps to its path or pattern and its number, in the order planned, until healed."""
    standin.fail("/event/*/avail", wire.status(500), times=2)
    standin.fail("*", wire.status(502), times=None)
    assert client.get(f"/event/{FESTIVAL}/tickets").status_code == 502
    assert [client.get(f"/event/{FESTIVAL}/avail").status_code for _ in range(3)] == [500, 500, 502]
    standin.heal()
    assert client.get("/events").status_code == 200


def test_a_passing_fault_does_not_pass(standin: StandIn, client: httpx.Client) -> None:
    """Each fault of the demo spoils one answer at most."""
    lived(standin, FAULT_EVERY, seed=1)
    first, second = (client.get(f"/event/{FESTIVAL}/avail").content for _ in range(2))
    assert first != second or standin.requests[-1].at - standin.requests[-2].at > 0.5
    assert isinstance(json.loads(second), list)


@pytest.mark.parametrize("fault", [wire.hang, wire.drip(60)])
def test_the_stop_waits_for_an_open_request(standin: StandIn, fault: Fault) -> None:
    """Leaving `serving` drops a request that hangs or trickles, at once, and the client sees an error."""
    standin.fail("*", fault)
    seen: list[Exception] = []

    def ask(client: httpx.Client) -> None:
        try:
            client.get("/events")
        except httpx.TransportError as error:
            seen.append(error)

    with ExitStack() as stop:
        client = client_of(standin, stop.enter_context(serving(standin)))
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        received(standin, 1)
        stop.close()
        asking.join()
    client.close()
    assert len(seen) == 1


def test_faults_litter_the_demo_screen(
    standin: StandIn, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken connections are meant here, so the server logs nothing about them."""
    with caplog.at_level(logging.WARNING):
        for fault in (wire.reset, wire.cut, wire.hang):
            standin.fail("/events", fault)
            with pytest.raises(httpx.TransportError):
                client.get("/events", timeout=0.05)
    assert caplog.messages == []


def test_a_large_account_repeats_itself() -> None:
    """Thousands of events are cheap, each with its own id, title and tickets."""
    events = list(StandIn(events=2000, now=NOW).events.values())
    assert len({event.row["name"] for event in events}) == len(events) == 2000
    tickets = [str(row["id"]) for event in events for row in event.tickets]
    assert len(set(tickets)) == len(tickets)
