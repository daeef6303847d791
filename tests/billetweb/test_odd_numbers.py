"""A value that is a number to Billetweb's programs and to nobody else: it alone is unreadable."""

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Rig, mirrors
from support.odd_values import BOM

from syncd.billetweb import answers, decode
from syncd.billetweb.slices import slices
from syncd.errors import DecodeError
from syncd.standin.server import StandIn, php_json, raw

ODD = [
    b"1e400",
    b"-1e400",
    b"123.5E+99999",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"9" * 5000,
    b"-" + b"9" * 100_000,
    b'"\\ud83d"',
]
LISTS: dict[str, tuple[str, Callable[[bytes], decode.Decoded[Any]]]] = {
    "events": ("tax_rate", lambda body: decode.decode_events(body, account="main")),
    "gauges": ("avail", lambda body: decode.decode_gauges(body, event_id="9")),
    "tickets": ("price", lambda body: decode.decode_tickets(body, event_id="9")),
    "sessions": ("total_sales", lambda body: decode.decode_sessions(body, event_id="9")),
    "attendees": ("price", lambda body: decode.decode_attendees(body, event_id="9", full=True)),
}


def rows_with(field: str, value: bytes) -> bytes:
    row = b'{"id": "%d", "type": "category", "event_id": "9", "name": "\xc3\xa9t\xc3\xa9", "%s": %s}'
    others = [row % (number, field.encode(), b'"4"') for number in (1, 3)]
    return b"[%s, %s, %s]" % (others[0], row % (2, field.encode(), value), others[1])


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12].decode())
@pytest.mark.parametrize("name", LISTS)
def test_one_odd_number_rejects_a_whole_list(name: str, value: bytes) -> None:
    """All rows are there, as they are with an odd text in its place."""
    field, decoded = LISTS[name]
    found = decoded(rows_with(field, value)).records
    expected = decoded(rows_with(field, b'"odd"')).records
    assert found.keys() == expected.keys()
    first, odd, last = found.values()
    assert [first, last] == [*expected.values()][::2]
    assert odd.extra[field]
    assert field not in first.extra
    assert field not in last.extra


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12].decode())
def test_one_odd_number_hides_who_sold(value: bytes) -> None:
    """Each row of the account's attendees tells of its event, and changes with it."""
    row = b'{"id": "1", "event": "900001", "price": %s}'
    body = BOM + b"[%s, %s]" % (row % value, row % b'"4"')
    sold = decode.sold(body)
    assert [event for event, _ in sold] == ["900001", "900001"]
    assert decode.sold(body) == sold
    assert sold[0][1] != sold[1][1]


@pytest.mark.parametrize("body", [b"[1e400", b"[NaN,]", b"[1e400}", b"{1e400: 1}", b"1e400 x", b"[" * 10**5])
def test_what_is_no_json_passes_for_one(body: bytes) -> None:
    """An answer that is cut off or malformed is refused as before, whatever numbers it holds."""
    with pytest.raises(DecodeError, match="not well-formed"):
        answers.rows(body)


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12].decode())
@pytest.mark.parametrize("name", LISTS)
def test_one_odd_number_fails_its_slice(name: str, value: bytes) -> None:
    """An answer that holds it is cut into slices as any other, also where it is all of one."""
    body = rows_with(LISTS[name][0], value)
    for about in (1, 300, 10**6):
        assert [row for _, piece in slices([body], most=9, about=about) for row in answers.rows(piece)] == (
            answers.rows(body)
        )


@pytest.mark.parametrize("odd", [b"1e400", b"NaN", b'"Ren\\ud83d"'])
def test_one_odd_number_fails_a_run(rig: Rig, standin: StandIn, odd: bytes) -> None:
    """A list of events with such a value is read, and all else of its events."""
    served = [event.row for event in standin.events.values()]
    body = php_json(served)
    assert body.endswith(b"}]")
    standin.fail("/events", raw(body[:-2] + b',"weight":%s}]' % odd), times=1)
    assert rig.run().outcome == "ok"
    assert rig.sql("SELECT count(*) FROM billetweb_events") == [(6,)]
    assert rig.run(full=True).outcome == "ok"
    mirrors(rig, standin)
