"""The views for those who only query: which rows they have, and what an order is made of."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from support.reading import Mirror
from support.real_databases import as_on_sqlite

from syncd.database import schema
from syncd.model import Event

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def mirror(shared_mirror: Mirror) -> Mirror:
    return shared_mirror


def test_vanished_event_is_offered(mirror: Mirror) -> None:
    """Each event that Billetweb still returns is a row, ended or not; one that vanished is none."""
    full = Event(id="1", account="1", name="Fête", places_total=9, places_left=0, is_full=True, starts_at=NOW)
    with mirror.run() as run:
        for event in (full, Event(id="2", account="1", unlimited=True), Event(id="3", account="1")):
            run.event_of_list(event)
    query = (
        "SELECT id, name, places_total, places_left, unlimited, is_full FROM syncd_availability ORDER BY id"
    )
    for _ in range(2):
        assert [event_id for event_id, *_ in mirror.sql(query)] == ["1", "2", "3"]
        with mirror.run() as run:
            run.listed("1", "2")
    assert mirror.sql(query) == [("1", "Fête", 9, 0, 0, 1), ("2", None, None, None, 1, 0)]


class Place(NamedTuple):
    """What matters here of an attendee."""

    order_id: str | None
    event_id: str
    disabled: bool | None
    order_paid: bool | None
    vanished_at: datetime | None


flags = st.sampled_from([None, False, True])
places = st.builds(
    Place,
    st.sampled_from([None, "a", "b"]),
    st.sampled_from("12"),
    flags,
    flags,
    st.sampled_from([None, NOW]),
)
COSTS = {"a": Decimal("9.50"), "b": Decimal(100), None: Decimal(1)}
"""So compared as text the order of the two would be another one."""


@given(st.lists(places, max_size=8))
def test_order_is_counted_wrong(mirror: Mirror, bought: list[Place]) -> None:
    """An order counts its present places once each, its price once, and is paid if it is said anywhere."""
    rows = [
        {
            "id": str(number),
            "order_price": COSTS[place.order_id],
            "ordered_at": NOW.replace(minute=number),
            "paid_at": NOW.replace(minute=number) if place.order_paid else None,
            "extra": {},
            "first_seen_at": NOW,
            "changed_at": NOW,
            **place._asdict(),
        }
        for number, place in enumerate(bought)
    ]
    with mirror.database.begin(write=True) as connection:
        connection.execute(schema.attendees.delete())
        if rows:
            connection.execute(schema.attendees.insert(), rows)
        found = {(row.order_id, row.event_id): row for row in connection.execute(ORDERS)}
    here = [
        (minute, place) for minute, place in enumerate(bought) if place.order_id and not place.vanished_at
    ]
    assert found.keys() == {(place.order_id, place.event_id) for _, place in here}
    for (order_id, event_id), row in found.items():
        of = [(minute, place) for minute, place in here if place[:2] == (order_id, event_id)]
        refunded = sum(place.disabled is True for _, place in of)
        said = [place.order_paid for _, place in of if place.order_paid is not None]
        paid = [minute for minute, place in of if place.order_paid]
        assert (row.places, row.refunded) == (len(of) - refunded, refunded)
        assert Decimal(str(row.order_price)) == COSTS[order_id]
        assert row.paid == (any(said) if said else None)
        assert as_on_sqlite(row.ordered_at) == instant(of[0][0])
        assert as_on_sqlite(row.paid_at) == (instant(paid[-1]) if paid else None)


ORDERS = text("SELECT * FROM syncd_orders")


def instant(minute: int) -> str:
    return f"2027-03-01 12:{minute:02}:00.000000"
