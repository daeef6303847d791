"""Billetweb's answers into records, quirk by quirk."""

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.odd_values import (
    BAD_ROWS,
    BOM,
    CANARY,
    INSTANTS,
    LINKS,
    NO_ARRAYS,
    NO_ROWS,
    anything,
    body_of,
    known,
    utc,
)

from syncd import errors
from syncd.billetweb import answers, decode
from syncd.model import Event, Gauge, Session, Ticket, joined

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
ARRAY = b'[{"id": "1"}]'
PAGE = b'<!DOCTYPE html><script src="/cdn-cgi/challenge-platform/h/b/orchestrate"></script>'


def refusal(token: str, description: str = "Sorry") -> bytes:
    return json.dumps({"error": token, "description": description}, indent=4).encode()


def event(**fields: Any) -> Event:
    return decode.decode_events(body_of({"id": "1", **fields}), account="main").records["1"]


def ticket(**fields: Any) -> Ticket:
    return decode.decode_tickets(body_of({"id": "1", **fields}), event_id="9").records["1"]


def session(**fields: Any) -> Session:
    return decode.decode_sessions(body_of({"id": "1", **fields}), event_id="9").records["1"]


def gauge(**fields: Any) -> Gauge:
    gauges = decode.decode_gauges(body_of({"type": "ticket", **fields}), event_id="9").records
    return next(iter(gauges.values()))


DECODERS: list[Callable[[bytes], decode.Decoded[Any]]] = [
    lambda body: decode.decode_events(body, account="main"),
    lambda body: decode.decode_gauges(body, event_id="9"),
    lambda body: decode.decode_tickets(body, event_id="9"),
    lambda body: decode.decode_sessions(body, event_id="9"),
]


NO_ARRAYS += [b'{"0": {"id": "1"}}', b'["\xff"]', b"[" * 200_000 + b"]" * 200_000]
GOOD_ARRAYS = [ARRAY, BOM + ARRAY, b"[]", b'[{"error": "x"}]', body_of(PAGE.decode())]
RESTRICTED = "Key has Limited rights to specific events"

ANSWERS: list[tuple[bytes, int, type]] = [
    *[(refusal("unauthorized"), status, errors.AuthError) for status in (200, 403, 503)],
    *[(refusal("rate_limiting"), status, errors.RateLimited) for status in (200, 403, 429)],
    *[(refusal("no_such_event"), status, errors.StatusError) for status in (200, 404)],
    (refusal("unauthorized", RESTRICTED), 200, errors.RestrictedError),
    (refusal("unauthorized", "x" * 500 + RESTRICTED), 403, errors.RestrictedError),
    (refusal("other", RESTRICTED), 200, errors.StatusError),
    (refusal("maintenance"), 503, errors.TransportError),
    (refusal("bad_key"), 401, errors.AuthError),
    (refusal("odd", PAGE.decode()), 200, errors.StatusError),
    (b'{"error": null}', 200, errors.StatusError),
    (b'{"error": ["unauthorized"]}', 200, errors.StatusError),
    (b'{"error": "unauthorized"}', 200, errors.AuthError),
    (BOM + refusal("unauthorized"), 200, errors.AuthError),
    *[(PAGE, status, errors.ChallengeError) for status in (200, 403, 429, 503)],
    (b"oops " + PAGE, 503, errors.ChallengeError),
    (ARRAY, 404, errors.StatusError),
    (b"<html>Forbidden</html>", 403, errors.ChallengeError),
    (b"", 401, errors.AuthError),
    (b"", 429, errors.RateLimited),
    *[(b"", status, errors.StatusError) for status in (103, 302, 404, 418, 600)],
    *[(b"<html>", status, errors.TransportError) for status in (408, 500, 599)],
    *[(body, 200, errors.DecodeError) for body in NO_ARRAYS],
    (b"", 299, errors.DecodeError),
    *[(body, 200, type(None)) for body in GOOD_ARRAYS],
]


def outcome(body: bytes, status: int) -> errors.BilletwebError | None:
    """Give what stands in the way of an answer's rows: its meaning, or its form."""
    try:
        error = answers.classify(body, status, None, now=NOW)
        if error is None:
            answers.rows(body)
    except errors.DecodeError as malformed:
        return malformed
    return error


@pytest.mark.parametrize(("body", "status", "kind"), ANSWERS, ids=[f"{a[1]} {a[0][:40]!r}" for a in ANSWERS])
def test_failure_mistaken_for_data(body: bytes, status: int, kind: type) -> None:
    """Only 2xx with a complete array is a success; the token, then the marker, then the status decide."""
    error = outcome(body, status)
    assert type(error) is kind
    assert error is None or (
        error.status in (status, None) and ("redirect" in str(error)) == (300 <= status < 400)
    )
    assert error is not None or answers.rows(body) == json.loads(body.decode("utf-8-sig"))


@pytest.mark.parametrize("body", [*NO_ARRAYS, refusal("unauthorized")], ids=range(len(NO_ARRAYS) + 1))
def test_broken_answer_read_as_empty(body: bytes) -> None:
    """A body that is no complete array raises, for an empty result would look like rows that vanished."""
    for decoder in (answers.rows, *DECODERS):
        with pytest.raises(errors.DecodeError):
            decoder(body)


def test_secret_or_flood_in_error_message() -> None:
    """What Billetweb says about an error arrives as one short line without keys."""
    description = f"No\n key\t{CANARY} for https://x.fr/?user=1&key=s3cr3t \x1b[31m" + "long " * 500
    message = str(answers.classify(refusal("odd\n", description), 200, None, now=NOW))
    assert "odd, No key … for https://x.fr/?user=1&…" in message
    assert "s3cr3t" not in message
    assert message.isprintable()
    assert len(message) < 300


WAITS = {None: 60, "": 60, "soon": 60, "1.5": 60, "9" * 5000: 60, "0": 1, "-5": 1, " 7 ": 7, "9999999": 3600}
WAITS |= {"Mon, 01 Mar 2027 12:01:30 GMT": 90, "Mon, 01 Mar 2027 12:01:30 -0000": 90}
WAITS |= {"Mon, 01 Mar 2027 13:01:30 +0100": 90, "Mon, 01 Mar 2027 11:00:00 GMT": 1}
WAITS |= {"Wed, 01 Mar 2028 12:00:00 GMT": 3600, "Wed, 01 Mar 99999 12:00:00 GMT": 60}


@pytest.mark.parametrize(("header", "wait_s"), WAITS.items(), ids=range(len(WAITS)))
def test_retry_after_ignored_or_boundless(header: str | None, wait_s: int) -> None:
    """Both forms of Retry-After set the wait, within a second and an hour; nonsense means a minute."""
    error = answers.classify(b"", 429, header, now=NOW)
    assert isinstance(error, errors.RateLimited)
    assert error.wait_s == wait_s


@given(st.binary(), st.integers(100, 999), st.text("0123456789 :,-+GMTaron"))
def test_odd_answer_crashes(body: bytes, status: int, header: str) -> None:
    """No bytes and no header make the judgement itself fail; a success is rows, or malformed."""
    if answers.classify(body, status, header, now=NOW) is None:
        with contextlib.suppress(errors.DecodeError):
            answers.rows(body)


def test_example_event_distorted() -> None:
    """An event in the live spelling arrives whole, its text word for word."""
    row = """{"id": "900001", "ext_id": "pain", "name": " Fête & <co> 🥖 l'été &amp; ", "place": "",
        "start": "2027-05-08 10:00:00", "end": "2027-05-08 18:00:00", "shop": "https://x.fr/?event=pain",
        "multiple": "0", "online": "1", "tax_rate": "20", "tags": ["", "pain"], "image": "",
        "cover": "https://x.fr/c", "confirmation_message": null, "description": "<p>\\u00e9</p>",
        "novelty": {"a": [1, "0"]}}"""
    record = """{"id": "900001", "account": "main", "ext_id": "pain", "name": " Fête & <co> 🥖 l'été &amp; ",
        "starts_at": "2027-05-08T08:00:00Z", "ends_at": "2027-05-08T16:00:00Z",
        "shop_url": "https://x.fr/?event=pain", "online": true, "tax_rate": "20", "tags": ["pain"],
        "cover_url": "https://x.fr/c", "description": "<p>é</p>", "extra": {"novelty": {"a": [1, "0"]}}}"""
    whole = msgspec.json.decode(record, type=Event)
    decoded = decode.decode_events(f"[{row}]".encode(), account="main")
    assert decoded == decode.Decoded(records={"900001": whole})


def test_example_gauges_distorted() -> None:
    """The rows of /avail keep their level and the difference between unknown, none left and unlimited."""
    body = b"""[{"type": "event", "avail": "83", "quota": "120", "status": "ok"},
        {"type": "category", "id": "501", "name": "Samedi", "avail": 33, "quota": 50},
        {"type": "ticket", "id": 7001, "avail": "-1", "quota": false},
        {"type": "session", "id": "88", "avail": "0", "quota": "0"},
        {"type": "row from the future", "name": "Balcon", "avail": "", "colour": "red"}]"""

    def row(kind: str, gauge_id: str, **columns: Any) -> Gauge:
        return Gauge(event_id="9", type=kind, gauge_id=gauge_id, **{"session_id": "", **columns})

    assert list(decode.decode_gauges(body, event_id="9").records.values()) == [
        row("event", "", places_total=120, places_left=83, status="ok"),
        row("category", "501", name="Samedi", places_total=50, places_left=33),
        row("ticket", "7001", unlimited=True),
        row("session", "88", session_id="88", places_total=0, places_left=0),
        row("row from the future", "Balcon", name="Balcon", extra={"colour": "red"}),
    ]


def test_example_ticket_distorted() -> None:
    """A tariff arrives whole, its money as Decimal, its place in the array kept."""
    row = b"""{"id": "7001", "full_name": "Samedi > Plein tarif", "name": "Plein tarif ", "price": 12.5,
        "category": "Samedi", "description": "", "quota": "50", "label": "L", "visibility": "0",
        "instructions": "I", "start_time": "1804416000", "end_time": "2027-05-08 10:00:00", "form": 3301,
        "tax": "5.5", "commission": 0.65}"""
    record = b"""{"id": "7001", "event_id": "9", "position": 2, "name": "Plein tarif ", "category": "Samedi",
        "full_name": "Samedi > Plein tarif", "price": "12.5", "commission": "0.65", "tax": "5.5",
        "places_total": 50, "visibility": "0", "label": "L", "instructions": "I", "form": "3301",
        "sale_starts_at": "2027-03-07T10:40:00Z", "sale_ends_at": "2027-05-08T08:00:00Z"}"""
    decoded = decode.decode_tickets(b'[{"id": "7000"}, ' + row + b"]", event_id="9").records
    assert list(decoded) == ["7000", "7001"]
    assert decoded["7001"] == msgspec.json.decode(record, type=Ticket)


def test_example_session_distorted() -> None:
    """A session arrives whole, its zero date as none."""
    row = b"""{"id": "88", "start": "2027-05-08 14:00:00", "end": "2027-05-08 15:00:00", "name": "",
        "place": "Four", "description": "d", "instructions": "i", "disabled": "2", "quota": "20",
        "last_update": "0000-00-00 00:00:00", "total_sales": "7", "tickets": {"7001": "20"}}"""
    record = b"""{"id": "88", "event_id": "9", "starts_at": "2027-05-08T12:00:00Z",
        "ends_at": "2027-05-08T13:00:00Z", "place": "Four", "description": "d", "instructions": "i",
        "visibility": "2", "places_total": 20, "places_sold": 7, "tickets": {"7001": "20"}}"""
    decoded = decode.decode_sessions(b"[" + row + b"]", event_id="9").records
    assert decoded == {"88": msgspec.json.decode(record, type=Session)}


ODD_IDS: list[object] = [True, 7.5, "7" * 33, -7, "7a", "²", ["7"]]
BAD_ROWS += [({"id": value}, ".id is unusable") for value in ODD_IDS]
BAD_GAUGES = [*NO_ROWS, ({"id": "1"}, ".type is missing"), ({"type": True}, ".type is unusable")]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_row_without_id_costs_more_or_less_than_it_should(row: object, reason: str) -> None:
    """An event without an id is named and the others stand; such a tariff or session fails its event."""
    body = body_of({"id": "1"}, row, {"id": 3})
    events = decode.decode_events(body, account="main")
    assert (list(events.records), events.bad) == (["1", "3"], [f"events[1]{reason}"])
    with pytest.raises(errors.DecodeError) as raised:
        decode.decode_tickets(body, event_id="9")
    assert str(raised.value) == f"tickets[1]{reason}"
    with pytest.raises(errors.DecodeError) as raised:
        decode.decode_sessions(body, event_id="9")
    assert str(raised.value) == f"sessions[1]{reason}"


@pytest.mark.parametrize(("row", "reason"), BAD_GAUGES)
def test_gauge_without_type_becomes_event_gauge(row: object, reason: str) -> None:
    """A gauge row without a type fails the read, for it would count as the whole event's."""
    with pytest.raises(errors.DecodeError) as raised:
        decode.decode_gauges(body_of({"type": "x"}, row), event_id="9")
    assert str(raised.value) == f"gauges[1]{reason}"


def test_duplicate_row_kept_in_its_old_state() -> None:
    """Of rows with one key the last wins, and they are counted."""
    x = {"type": "x"}
    found = [x | {"id": "1", "name": "old"}, x | {"id": 1, "name": "new"}, x | {"id": "2"}]
    events = decode.decode_events(body_of(*found, None), account="main")
    assert (events.records["1"].name, events.duplicates, len(events.bad)) == ("new", 1, 1)
    tickets = decode.decode_tickets(body_of(*found), event_id="9")
    assert (tickets.records["1"].name, tickets.records["1"].position, tickets.duplicates) == ("new", 2, 1)
    sessions = decode.decode_sessions(body_of(*found), event_id="9")
    assert (sessions.records["1"].name, sessions.duplicates) == ("new", 1)
    gauges = decode.decode_gauges(body_of(*found), event_id="9")
    assert (gauges.records["9//x/1"].name, gauges.duplicates) == ("new", 1)


KEYS: list[tuple[object, tuple[str, ...]]] = [
    ({"type": "event", "id": "", "name": ""}, ("9", "", "event", "")),
    ({"type": "category", "id": False, "name": "Samedi"}, ("9", "", "category", "Samedi")),
    ({"type": "category", "id": "501", "name": "Samedi"}, ("9", "", "category", "501")),
    ({"type": "session", "name": "soir"}, ("9", "", "session", "soir")),
]


@pytest.mark.parametrize(("row", "key"), KEYS)
def test_gauges_fall_on_one_key(row: object, key: tuple[str, ...]) -> None:
    """A gauge's key is made of its session, type and id, else its name, else nothing."""
    assert list(decode.decode_gauges(body_of(row), event_id="9").records) == [joined(key)]


@pytest.mark.parametrize(("wall", "expected"), INSTANTS.items())
def test_paris_hour_shifted(wall: str, expected: str) -> None:
    """Wall times are of Paris on both nights of change: the first of two hours, the old offset in the gap."""
    starts_at = event(start=wall).starts_at
    assert starts_at == utc(expected)
    assert starts_at.utcoffset() == timedelta(0)


ODD_DATES = [
    "0001-01-01 00:00:00",
    "2027-02-30 10:00:00",
    "2027-05-08 25:00:00",
    "2027-05-08T10:00:00+02:00 CET",
]
ODD_DATES += ["2027-05-08 10:00 CEST", "08/05/2027", "tomorrow"]


@pytest.mark.parametrize(
    "value", [*ODD_DATES, "²", True, 1.5, {"date": "2027-05-08"}, -1, 10**30, 9 * 10**18]
)
def test_odd_date_crashes_or_is_lost(value: object) -> None:
    """A date that is none of the known forms leaves its column empty and stays in extra."""
    assert (event(start=value).starts_at, event(start=value).extra) == (None, {"start": value})
    assert (ticket(end_time=value).sale_ends_at, ticket(end_time=value).extra) == (None, {"end_time": value})


FLAGS = [("0", False), ("1", True), (0, False), (1, True), (True, True), (False, False)]
FLAGS += [("1.0", True), (0.0, False), ("True", True), (" false", False)]
MONEY: list[tuple[object, Decimal | None]] = [
    ("12,50", Decimal("12.50")),
    ("1 234,5 €", Decimal("1234.5")),
    ("1\u202f234", Decimal(1234)),
]
MONEY += [("12.50", Decimal("12.50")), (12.5, Decimal("12.5")), ("-3", Decimal(-3)), (False, None)]
NO_DATE = [("", None), (None, None), (False, None), ("0000-00-00 00:00:00", None), (" ", None)]
MAY_8 = ("2027-05-08 10:00:00", utc("2027-05-08 08:00"))
ISO = [
    ("2027-05-08T10:00:00+02:00", utc("2027-05-08 08:00")),
    ("2027-05-08T10:00:00Z", utc("2027-05-08 10:00")),
    ("2027-05-08T10:00:00.25-0100", utc("2027-05-08 11:00") + timedelta(milliseconds=250)),
    ("2027-05-08 10:00", utc("2027-05-08 08:00")),
    ("2027-05-08", utc("2027-05-07 22:00")),
    ("2027-05-08t10:00:00.0000000z", utc("2027-05-08 10:00")),
    ("2027-05-08 10:00:00+02", utc("2027-05-08 08:00")),
    ("-0001-11-30 00:00:00", None),
    ("0000-00-00", None),
]
MARCH_7 = utc("2027-03-07 10:40")
LIMIT = [("50", 50), (50, 50), ("0", None), (0, None), ("-1", None), (False, None), ("", None), (None, None)]
TEXT = [("", None), (None, None), (" l'été & &amp; ", " l'été & &amp; "), (1.5, "1.5"), ("a\0b", "ab")]
LEFT = [
    ("1 234", 1234),
    ("0.0", 0),
    (10.0, 10),
    ("5.00", 5),
    ("7,0", 7),
    ("5", 5),
    (0, 0),
    ("", None),
    (None, None),
    ("-1", None),
    (False, None),
]

FITS = [
    *known(event, "start", "starts_at", [*NO_DATE, *ISO]),
    *known(event, "multiple", "multiple", [*FLAGS, ("", False), (None, False)]),
    *known(event, "online", "online", [*FLAGS, ("", None), (None, None)]),
    *known(event, "tax_rate", "tax_rate", MONEY),
    *known(event, "tax", "tax_rate", MONEY),
    *known(event, "tags", "tags", [([], []), ("", []), (None, []), (["", "a ", None, 7], ["a ", "7"])]),
    *known(event, "name", "name", TEXT),
    *known(event, "image", "image_url", [("https://x.fr/i.png", "https://x.fr/i.png"), ("", None)]),
    *known(ticket, "price", "price", [*MONEY, (0, Decimal(0)), (0.1, Decimal("0.1"))]),
    *known(ticket, "commission", "commission", MONEY),
    *known(ticket, "tax", "tax", [("", None), ("5.5", Decimal("5.5"))]),
    *known(ticket, "quota", "places_total", LIMIT),
    *known(ticket, "visibility", "visibility", [("0", "0"), (1, "1"), ("", None)]),
    *known(ticket, "start_time", "sale_starts_at", [*NO_DATE, *ISO, MAY_8, ("0", None), (0, None)]),
    *known(ticket, "start_time", "sale_starts_at", [("1804416000", MARCH_7), (1804416000, MARCH_7)]),
    *known(session, "disabled", "visibility", [(True, "1"), (False, "0"), ("3", "3")]),
    *known(session, "quota", "places_total", [*LIMIT, ("9" * 15, 10**15 - 1)]),
    *known(session, "total_sales", "places_sold", [("0", 0), (7, 7), ("-2", None), (False, None)]),
    *known(session, "tickets", "tickets", [([], {}), (None, {}), ({"1": {"x": [1]}}, {"1": {"x": [1]}})]),
    *known(session, "last_update", "last_update_at", [*NO_DATE, MAY_8]),
    *known(gauge, "avail", "places_left", LEFT),
    *known(gauge, "avail", "unlimited", [("-1", True), (-7, True), (0, False), ("5", False), ("", False)]),
    *known(gauge, "quota", "places_total", [("0", 0), ("450", 450), (False, None), ("", None), ("-1", None)]),
]
NO_FLAGS: list[object] = ["2", -1, 1.5, "yes", []]
WORDS: list[object] = [True, "many", "1e3", "NaN", "Infinity", "5,555", "5,5,5", [], {}]
UNFIT = [
    *known(event, "multiple", "multiple", [(value, False) for value in NO_FLAGS]),
    *known(event, "online", "online", [(value, None) for value in NO_FLAGS]),
    *known(event, "tax_rate", "tax_rate", [(value, None) for value in WORDS]),
    *known(event, "tags", "tags", [("pain", []), (["pain", {}], []), ({"1": "pain"}, [])]),
    *known(event, "name", "name", [(True, None), (False, None), (["a"], None)]),
    *known(
        ticket,
        "price",
        "price",
        [(value, None) for value in (*WORDS, 1e22, "12 $", "1.234,50", "99999999.99999")],
    ),
    *known(ticket, "quota", "places_total", [(value, None) for value in (*WORDS, 5.5)]),
    *known(session, "total_sales", "places_sold", [(10**15, None), ("1" + "0" * 30, None)]),
    *known(session, "tickets", "tickets", [(["7001"], {}), ("7001", {})]),
    *known(gauge, "avail", "places_left", [(value, None) for value in (*WORDS, "beaucoup")]),
    *known(gauge, "avail", "unlimited", [(-(2**63) - 1, False), ("-", False)]),
    *known(gauge, "id", "gauge_id", [("a1", ""), (True, "")]),
]


@pytest.mark.parametrize(("decode", "name", "column", "value", "expected"), FITS)
def test_field_in_another_type_lost(
    decode: Callable[..., Any], name: str, column: str, value: object, expected: object
) -> None:
    """A field is understood in every type it was met in, and then leaves nothing in extra."""
    found = decode(**{name: value})
    assert (getattr(found, column), found.extra) == (expected, {})
    assert type(getattr(found, column)) is type(expected)


@pytest.mark.parametrize(("decode", "name", "column", "value", "default"), UNFIT)
def test_unfit_value_fails_the_row_or_is_lost(
    decode: Callable[..., Any], name: str, column: str, value: object, default: object
) -> None:
    """A value that does not fit leaves its column at the default and stays in extra, word for word."""
    found = decode(**{name: value})
    assert (getattr(found, column), found.extra) == (default, {name: value})


def test_tax_rate_overruled_by_its_old_name() -> None:
    """The live field's name goes first; the one of the API page's example stands in for it."""
    both = event(tax="5", tax_rate="20")
    assert (both.tax_rate, both.extra) == (Decimal(20), {"tax": "5"})
    assert event(tax="5", tax_rate="").tax_rate == Decimal(5)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("decode", [event, ticket, session, gauge])
def test_secret_link_stored(decode: Callable[..., Any], link: object) -> None:
    """A link with a key is dropped: as an unknown field, as an unfit one, nested, and as an address."""
    found = [decode(novelty=link, start=link, quota=link, tickets={"1": link}), event(shop=link, cover=link)]
    assert CANARY not in repr(found)


def test_extra_that_no_database_takes() -> None:
    """A NUL is dropped from unknown fields, and what is nested without end; all else stays."""
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    extra = event(novelty=deep, other="a\0b", third=[[1]]).extra
    assert repr(extra.pop("novelty")).strip("[]") == "None"
    assert extra == {"other": "ab", "third": [[1]]}


NAMES = sorted({"novelty", *decode._EVENT, *decode._GAUGE, *decode._TICKET, *decode._SESSION})


@given(
    st.dictionaries(st.sampled_from(NAMES), anything, max_size=10),
    st.sampled_from([{}, {"id": "1", "type": "x"}]),
)
@settings(deadline=None)
def test_surprising_value_crashes_the_run(row: dict[str, Any], key: dict[str, Any]) -> None:
    """Whatever JSON stands in a field, records have their declared types, or DecodeError is raised."""
    for decoder in DECODERS:
        try:
            decoded = decoder(body_of(row | key))
        except errors.DecodeError:
            assert not key
            continue
        assert len(decoded.records) + len(decoded.bad) == 1
        for record in decoded.records.values():
            assert msgspec.convert(msgspec.to_builtins(record), type(record)) == record
            assert "key=" not in json.dumps(record.extra)


def dump(rows: object) -> bytes:
    return json.dumps(rows).encode()


def test_every_bad_row_is_kept() -> None:
    """The first twenty unusable rows are named, and all are counted, also over several parts of an answer."""
    parts = [decode.decode_events(dump([{}] * 15 + [{"id": "7"}]), account="1", before=n) for n in (0, 16)]
    whole = parts[0].joined(parts[1])
    assert (whole.bad_total, whole.duplicates, len(whole.records)) == (30, 1, 1)
    assert whole.bad == [f"events[{index}].id is missing" for index in (*range(15), *range(16, 21))]
    many = decode.decode_events(dump([None] * 1000), account="1")
    assert (len(many.bad), many.bad_total, many.records) == (20, 1000, {})


def test_position_begins_anew_with_each_part() -> None:
    """A tariff's position is that in the whole answer."""
    body = dump([{"id": "7"}, {"id": "8"}])
    found = decode.decode_tickets(body, event_id="1", before=10).records
    assert [ticket.position for ticket in found.values()] == [11, 12]
    people = partial(decode.decode_attendees, full=False)
    for decode_rows in (decode.decode_tickets, decode.decode_sessions, decode.decode_gauges, people):
        with pytest.raises(errors.DecodeError, match=r"\[10\]"):
            decode_rows(dump([{}]), event_id="1", before=10)
    with pytest.raises(errors.DecodeError, match=r"\[10\]"):
        decode.sold(dump([{}]), before=10)
