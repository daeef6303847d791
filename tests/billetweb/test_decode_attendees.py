"""Attendees' answers into records: which columns they fill, what is never kept, and what fails."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.odd_values import (
    BAD_ROWS,
    CANARY,
    INSTANTS,
    LINK,
    LINKS,
    NO_ARRAYS,
    anything,
    body_of,
    known,
    utc,
)
from support.people import check_in

from syncd import errors
from syncd.billetweb import decode, fields
from syncd.database import schema
from syncd.model import PERSONAL, Attendee
from syncd.standin.server import StandIn, php_json

ROW = """{"id": "300000001", "ext_id": "T111-2222-E900001", "barcode": "0012345678", "used": "1",
  "lane": "Porte B, eve@example.org", "used_date": "2027-05-08 10:02:03", "email": "ada@example.org",
  "firstname": "Ada", "name": "EXEMPLE", "ticket": "Plein tarif", "category": "Samedi", "ticket_id": "7001",
  "price": "12.50", "seating_location": "C 4", "last_update": "2027-03-02 10:41:36", "reduction_code": "AMI",
  "authorization_code": "a1", "pass": "-1", "disabled": "0",
  "product_management": "https:\\/\\/www.billetweb.fr\\/my_order.php?product=1&key=CANARY",
  "product_download": "https://www.billetweb.fr/download.php?product=1&key=CANARY",
  "order_id": "110000001", "order_ext_id": "C333-4444-E900001", "order_firstname": "Bea",
  "order_name": "D'ESSAI", "order_email": "bea@example.org", "order_date": "2027-03-02 10:41:35",
  "order_paid": "1", "order_payment_type": "10549", "order_payment_date": "2027-03-02 10:41:36",
  "order_origin": "web", "order_price": "25.00", "order_session": "880001",
  "session_start": "2027-05-08 10:00:00", "order_accreditation": "3",
  "order_management": "https://www.billetweb.fr/my_order.php?order=1&key=CANARY", "order_language": "fr",
  "custom": {"Repas ": "Normal"}, "custom_order": {"Téléphone": ["01", null]}, "event": "900001",
  "event_name": "Fête", "event_start": "2027-05-08 10:00:00", "novelty": {"a": 1}}"""
ROW = ROW.replace("CANARY", CANARY)
PUBLIC = """{"id": "300000001", "event_id": "900001", "ticket_id": "7001", "session_id": "880001",
  "order_id": "110000001", "order_ext_id": "C333-4444-E900001",
  "ext_id": "T111-2222-E900001", "barcode": "0012345678", "category": "Samedi",
  "price": "12.50", "order_price": "25.00", "used": 1, "used_at": "2027-05-08T08:02:03Z", "disabled": false,
  "order_paid": true, "order_payment_type": "10549", "order_origin": "web", "order_accreditation": "3",
  "pass_id": "-1", "seating_location": "C 4", "ordered_at": "2027-03-02T09:41:35Z",
  "paid_at": "2027-03-02T09:41:36Z", "last_update_at": "2027-03-02T09:41:36Z" """
PRIVATE = """, "firstname": "Ada", "name": "EXEMPLE", "email": "ada@example.org", "order_firstname": "Bea",
  "order_name": "D'ESSAI", "order_email": "bea@example.org", "order_language": "fr",
  "reduction_code": "AMI", "authorization_code": "a1", "custom": {"Repas ": "Normal"},
  "custom_order": {"Téléphone": ["01", null]},
  "extra": {"novelty": {"a": 1}}"""
BOOKKEEPING = {"first_seen_at", "changed_at", "vanished_at"}


def attendee(*, full: bool = True, **row: Any) -> Attendee:
    decoded = decode.decode_attendees(body_of({"id": "1", **row}), event_id="9", full=full)
    return decoded.records["1"]


def test_record_does_not_fit_its_table() -> None:
    """The fields are the table's columns, in their order; the personal ones are among them."""
    columns = [column.name for column in schema.attendees.columns if column.name not in BOOKKEEPING]
    assert list(Attendee.__struct_fields__) == columns
    assert set(columns) > PERSONAL


def test_example_attendee_distorted() -> None:
    """An attendee in the live spelling arrives whole, and without a person in it unless `full`."""
    body = f"[{ROW}]".encode()
    for full, record in ((True, PUBLIC + PRIVATE + "}"), (False, PUBLIC + "}")):
        whole = msgspec.json.decode(record, type=Attendee)
        assert decode.decode_attendees(body, full=full) == decode.Decoded(records={whole.id: whole})
        assert decode.decode_attendees(body, event_id="7", full=full).records[whole.id].event_id == "7"


def test_person_in_a_record_without_people() -> None:
    """Without `full` exactly the personal columns are at their defaults, as is what does not fit."""
    body = f"[{ROW}]".encode()
    whole, public = (decode.decode_attendees(body, full=full).records["300000001"] for full in (True, False))
    differing = {name for name in Attendee.__struct_fields__ if getattr(whole, name) != getattr(public, name)}
    assert differing == PERSONAL
    odd = attendee(full=False, used="eve@example.org", novelty="eve@example.org", email=["eve@example.org"])
    assert odd == Attendee(id="1", event_id="9")


def test_secret_of_the_stand_in_stored() -> None:
    """Of an account's attendees no link and no lane arrives, though each row has three links."""
    account = StandIn(now=datetime(2027, 5, 2, tzinfo=UTC))
    for event_id in account.events:
        for attendee_id in list(account.attendees(event_id))[::2]:
            check_in(account, attendee_id)
    body = php_json([row for event_id in account.events for row in account.attendees(event_id).values()])
    assert body.count(b"key=") == 3 * body.count(b'"barcode"') > 600
    assert b"scanner@example.org" in body
    for decoded in (decode.decode_attendees(body, event_id="9", full=full) for full in (True, False)):
        assert len(decoded.records) == body.count(b'"barcode"')
        assert not any(secret in repr(decoded) for secret in ("key=", "scanner@example.org", "https:"))


@pytest.mark.parametrize("link", LINKS)
def test_secret_link_in_an_unexpected_place_stored(link: object) -> None:
    """A link with a key is dropped wherever it stands, and the rest of the row stays."""
    names = {*decode._FULL, "novelty", "lane", "event_name"} - {"id"}
    for name in names:
        row: dict[str, Any] = {"price": "1", "disabled": "0", name: link}
        found = attendee(**row)
        assert CANARY not in repr(found), name
        assert [found.price, found.disabled].count(None) == (name in ("price", "disabled"))
    assert attendee(firstname=f"Ada {LINK}").extra == {}


def test_answer_lost_for_the_one_beside_it() -> None:
    """Of the answers to a form only one with a link is dropped, and of its label nothing."""
    answers = {
        "Repas ": "Normal",
        "Site": [LINK, "a"],
        "Photo": LINK,
        "Nom\0": "Ada\0",
        "Taille": {"T": LINK},
    }
    kept = {"Repas ": "Normal", "Site": [None, "a"], "Photo": None, "Nom": "Ada", "Taille": {"T": None}}
    found = attendee(custom=answers, custom_order={LINK: "a"})
    assert (found.custom, found.custom_order, found.extra) == (kept, {}, {})


TEXT = [("", None), (None, None), (" l'été & &amp; ", " l'été & &amp; "), ("a\0b", "ab"), (15, "15")]
PRICE = [("12.50", Decimal("12.50")), (12.5, Decimal("12.5")), ("", None), (False, None)]
PRICE += [(12.600000000000001, Decimal("12.6")), (0.1 + 0.2, Decimal("0.3")), ("1.00005", Decimal(1))]
FLAG = [("0", False), ("1", True), (0, False), (1, True), (True, True), (False, False), ("", None)]
DATE = [("", None), ("0000-00-00 00:00:00", None), ("2027-05-08 10:00:00", utc("2027-05-08 08:00"))]
LABELS = {"Repas ": "", "Repas": {"a": [1]}}
MAP = [([], None), ("", None), (None, None), (LABELS, LABELS)]
NO_SESSION = [("0", None), ("", None), (0, None)]
OF_TEXT = ("category", "firstname", "name", "email", "order_email", "order_payment_type", "reduction_code")

FITS = [
    *(each for name in OF_TEXT for each in known(attendee, name, name, TEXT)),
    *known(attendee, "price", "price", PRICE),
    *known(attendee, "order_price", "order_price", PRICE),
    *known(attendee, "disabled", "disabled", FLAG),
    *known(attendee, "order_paid", "order_paid", FLAG),
    *known(attendee, "custom", "custom", MAP),
    *known(attendee, "custom_order", "custom_order", MAP),
    *known(attendee, "order_date", "ordered_at", DATE),
    *known(attendee, "used_date", "used_at", DATE),
    *known(attendee, "barcode", "barcode", [("0012", "0012"), ("A-1", "A-1"), ("", None), (12, "12")]),
    *known(attendee, "used", "used", [("0", 0), (3, 3), ("", None), ("32767", 32767)]),
    *known(attendee, "pass", "pass_id", [("0", "0"), ("-1", "-1"), (300000001, "300000001"), (False, "0")]),
    *known(attendee, "order_session", "session_id", [*NO_SESSION, ("10", "10"), (7, "7")]),
    *known(attendee, "order_accreditation", "order_accreditation", [("0", "0"), (3, "3"), ("", None)]),
    *known(attendee, "ticket_id", "ticket_id", [("7001", "7001"), (7001, "7001"), ("", None)]),
]
NO_TEXT: list[object] = [["a"], {}, True]
NO_DATE: list[object] = ["08/05/2027", 1804416000, {"a": 1}]
UNFIT = [
    *known(attendee, "category", "category", [(value, None) for value in NO_TEXT]),
    *known(attendee, "email", "email", [(value, None) for value in NO_TEXT]),
    *known(attendee, "price", "price", [("12,505", None), ("NaN", None), ([1], None), (True, None)]),
    *known(attendee, "disabled", "disabled", [("2", None), (["1"], None), (1.5, None)]),
    *known(attendee, "used", "used", [("-1", None), ("32768", None), ("yes", None), (True, None)]),
    *known(attendee, "custom", "custom", [("Normal", None), (["a"], None), (7, None)]),
    *known(attendee, "last_update", "last_update_at", [(value, None) for value in NO_DATE]),
    *known(attendee, "order_session", "session_id", [("-1", None), ("a", None), ([], None)]),
]


@pytest.mark.parametrize(("decode", "name", "column", "value", "expected"), FITS)
def test_field_in_another_type_lost(
    decode: Callable[..., Attendee], name: str, column: str, value: object, expected: object
) -> None:
    """A field is understood in every type it was met in, and then leaves nothing in extra."""
    found = decode(**{name: value})
    assert (getattr(found, column), found.extra) == (expected, {})
    assert type(getattr(found, column)) is type(expected)


@pytest.mark.parametrize(("decode", "name", "column", "value", "default"), UNFIT)
def test_unfit_value_fails_the_row_or_is_lost(
    decode: Callable[..., Attendee], name: str, column: str, value: object, default: object
) -> None:
    """A value that does not fit leaves its column empty, and stays in extra where people do."""
    found = decode(**{name: value}, firstname="Ada")
    assert (getattr(found, column), found.extra, found.firstname) == (default, {name: value}, "Ada")
    assert decode(**{name: value}, full=False) == Attendee(id="1", event_id="9")


@pytest.mark.parametrize(("wall", "expected"), INSTANTS.items())
def test_paris_hour_shifted(wall: str, expected: str) -> None:
    """A remembered date is the date that it is, the second time too."""
    for _ in range(2):
        assert attendee(last_update=wall).last_update_at == utc(expected)


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_row_without_id_passed_over(row: object, reason: str) -> None:
    """A row that cannot be told from others fails the read, which names it."""
    good = [{"id": str(number)} for number in range(1, 100)]
    for place in (1, 70):
        body = body_of(*good[:place], row, *good[place:])
        with pytest.raises(errors.DecodeError) as raised:
            decode.decode_attendees(body, event_id="9", full=True)
        assert str(raised.value) == f"attendees[{place}]{reason}"


NO_EVENTS: list[tuple[object, str]] = [
    (None, "missing"),
    ("", "missing"),
    ("x", "unusable"),
    ([], "unusable"),
]


@pytest.mark.parametrize(("event", "reason"), NO_EVENTS)
def test_row_given_to_no_event(event: object, reason: str) -> None:
    """In an answer for the account a row without its event fails the read, for all who read it."""
    good = {"id": "1", "event": "900001", "key": "x"}
    for row in ({"id": "2", "event": event}, *([{"id": "2"}] if event is None else [])):
        body = body_of(good, row)
        with pytest.raises(errors.DecodeError, match=rf"^attendees\[1\]\.event is {reason}$"):
            decode.decode_attendees(body, full=False)
        with pytest.raises(errors.DecodeError, match=rf"^attendees\[1\]\.event is {reason}$"):
            decode.sold(body)


@pytest.mark.parametrize("body", NO_ARRAYS, ids=range(len(NO_ARRAYS)))
def test_broken_answer_read_as_empty(body: bytes) -> None:
    """A body that is no complete array raises, for an empty result would look like rows that vanished."""
    with pytest.raises(errors.DecodeError):
        decode.decode_attendees(body, event_id="9", full=True)
    with pytest.raises(errors.DecodeError):
        decode.sold(body)


def test_duplicate_row_kept_in_its_old_state() -> None:
    """Of rows with one id the last wins, and they are counted."""
    found = [{"id": "1", "disabled": "0"}, {"id": 1, "disabled": "1"}, {"id": "2"}]
    decoded = decode.decode_attendees(body_of(*found), event_id="9", full=False)
    assert (decoded.records["1"].disabled, len(decoded.records), decoded.duplicates) == (True, 2, 1)


def test_change_of_a_row_without_a_trace() -> None:
    """A digest is one row's alone: the same in another process, another after any change of the row."""
    first, second = json.loads(ROW), json.loads(ROW) | {"disabled": "1", "event": 900002}
    (one, digest), (two, other) = decode.sold(body_of(first, second))
    assert (one, two) == ("900001", "900002")
    assert digest != other
    assert decode.sold(body_of(second, first)) == [(two, other), (one, digest)]
    ask = "import sys; from syncd.billetweb import decode; print(decode.sold(sys.stdin.buffer.read()))"
    command = [sys.executable, "-c", ask]
    answer = subprocess.run(command, input=body_of(first), stdout=subprocess.PIPE, check=True)
    assert answer.stdout.decode().strip() == repr([(one, digest)])
    assert 0 <= digest < 2**64


def test_memory_without_bounds() -> None:
    """Of many texts the converter remembers some, and of long ones none."""
    made: list[object] = []

    def convert(value: object) -> object:
        made.append(value)
        return value

    memory = fields._Memory(convert)
    for number in range(3 * fields.REMEMBERED_MAX):
        assert memory[str(number)] == str(number)
        assert len(memory) <= fields.REMEMBERED_MAX
    long = "x" * (fields.REMEMBERED_CHARS + 1)
    made.clear()
    for value in (long, 1, True, 1.0, "1", None):
        assert memory[value] is value
        assert memory[value] is value
    assert made == [long, long, 1, 1, True, True, 1.0, 1.0, "1", None]


NAMES = sorted({"novelty", "lane", "event_name", *decode._FULL} - {"id", "event"})
fitting = st.sampled_from(["", "0", "1", "12.50", "0012", "2027-05-08 10:00:00", "0000-00-00 00:00:00", None])


@given(st.dictionaries(st.sampled_from(NAMES), fitting | anything, max_size=12), st.booleans())
def test_surprising_value_crashes_the_run(row: dict[str, Any], full: bool) -> None:
    """Whatever JSON stands in a field, a record has its declared types, no secret, and no hidden person."""
    found = attendee(full=full, **row)
    assert msgspec.convert(msgspec.to_builtins(found), Attendee) == found
    assert "key=" not in repr(found)
    assert full or all(not getattr(found, name) for name in PERSONAL)
    assert not {"lane", "event_name"} & found.extra.keys()


odd_rows = st.dictionaries(st.sampled_from(NAMES), fitting | anything, max_size=12)


@given(st.lists(odd_rows | st.just({}), max_size=40), st.booleans())
def test_quick_way_leads_elsewhere(odd: list[dict[str, Any]], full: bool) -> None:
    """Rows become what the careful way makes of each, however many of them have odd values."""
    rows: list[object] = [{"id": str(n), "event": "9", **row} for n, row in enumerate(odd, 1)]
    careful = [decode._carefully(row, "row", None, full=full) for row in rows]
    assert decode._attendees(rows, 0, None, full=full) == careful


@given(odd_rows, st.booleans())
def test_quick_way_is_never_gone(row: dict[str, Any], full: bool) -> None:
    """A row whose values all fit is read in the quick way."""
    row = {"id": "1", "event": "9", **row}
    _, careful, unreadable = decode._carefully(row, "row", None, full=full)
    columns = [decode._FULL[name][0] for name in row.keys() & decode._FULL.keys()]
    if not unreadable and all(getattr(careful, column) is not None for column in columns):
        assert decode._quickly([row], None, full=full) == [("1", careful, ())]
