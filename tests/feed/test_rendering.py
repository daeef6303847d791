"""What stands in feeds: the whole content of each format, and what must never get into one."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import icalendar
import jsonschema
import pytest
from conftest import MakeConfig, Rig, WaitedFor, rig_on
from msgspec import structs
from support.sized import Sized

from syncd.database import rows
from syncd.database.rows import PublicEvent
from syncd.feed.rendering import COLUMNS, render
from syncd.model import FeedFormat, Ticket
from syncd.standin.server import StandIn

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
GOLDEN = Path(__file__).parent / "golden"
FORMATS: tuple[FeedFormat, ...] = ("json", "jsonld", "ics", "csv")
CONCERT = "900006"
URL = {"type": "string", "pattern": "^https://"}
INSTANT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def exactly(required: tuple[str, ...], **properties: object) -> dict[str, object]:
    """Return the schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


OFFER = exactly(
    ("@type", "name", "price", "priceCurrency", "availability", "url"),
    **{"@type": {"const": "Offer"}},
    name=TEXT,
    price={"type": "string", "pattern": r"^\d+\.\d\d$"},
    priceCurrency={"const": "EUR"},
    availability={"enum": ["https://schema.org/InStock", "https://schema.org/SoldOut"]},
    url=URL,
)
PLACE = exactly(("@type", "name", "address"), **{"@type": {"const": "Place"}}, name=TEXT, address=TEXT)
EVENT = exactly(
    ("@context", "@type", "name", "startDate", "location", "eventStatus", "offers"),
    **{"@context": {"const": "https://schema.org"}, "@type": {"const": "Event"}},
    identifier=TEXT,
    name=TEXT,
    url=URL,
    startDate=INSTANT,
    endDate=INSTANT,
    location=PLACE,
    maximumAttendeeCapacity=COUNT,
    remainingAttendeeCapacity=COUNT,
    eventStatus={"const": "https://schema.org/EventScheduled"},
    offers={"type": "array", "items": OFFER},
)
"""What search engines ask of an event (schema.org/Event, and Google's "required" and "recommended")."""


@pytest.fixture
def standin() -> StandIn:
    """Return the six events as they stand at a fixed time."""
    return StandIn(now=NOON)


@pytest.fixture
def rig(make_config: MakeConfig) -> Iterator[Rig]:
    """Give a rig at that time, with the first run behind it."""
    with rig_on(make_config(), WaitedFor(NOON)) as rig:
        assert rig.run().outcome == "ok"
        yield rig


def public(rig: Rig) -> list[PublicEvent]:
    events: list[PublicEvent] = rig.query(rows.public_events, rig.clock.now())
    return events


def event(**shown: Any) -> PublicEvent:
    """Return an event of which little is known but what is given here."""
    values = dict.fromkeys(rows.PUBLIC) | {"id": "1", "online": True, "unlimited": False, "is_full": False}
    return PublicEvent(values | shown, "12345", [], NOON, [])


def cells(content: bytes) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(content.decode(), newline=""))]


@pytest.mark.parametrize("form", FORMATS)
def test_a_feed_has_another_content(rig: Rig, form: FeedFormat) -> None:
    """Of the stand-in's six events each format holds this and nothing else, the same in every run."""
    expected = (GOLDEN / f"events.{form}").read_bytes()
    if form in ("ics", "csv"):  # both end their lines in CR LF
        expected = expected.replace(b"\n", b"\r\n")
    assert render(form, public(rig)) == expected
    rig.clock.now_s += 3600
    assert rig.run(full=True).outcome == "ok"
    assert render(form, public(rig)) == expected


def test_a_search_engine_refuses_the_events(rig: Rig, standin: StandIn) -> None:
    """All that is written in schema.org's words fits the schema, also when the last place is sold."""
    schema = {"type": "array", "items": EVENT, "minItems": 6, "maxItems": 6}
    jsonschema.validate(json.loads(render("jsonld", public(rig))), schema)
    standin.sell(CONCERT, 3)
    rig.run()
    document = json.loads(render("jsonld", public(rig)))
    jsonschema.validate(document, schema)
    assert {offer["availability"] for offer in document[-1]["offers"]} == {"https://schema.org/SoldOut"}
    assert {offer["availability"] for offer in document[0]["offers"]} == {"https://schema.org/InStock"}


def test_a_full_event_looks_open(rig: Rig, standin: StandIn) -> None:
    """The last place sold makes it full in every format that tells of places, and a refund opens it again."""
    for trade, left, full in ((standin.sell, 0, True), (standin.refund, 3, False)):
        trade(CONCERT, 3)
        rig.run()
        shown = json.loads(render("json", public(rig)))["events"][-1]
        assert (shown["id"], shown["places_left"], shown["is_full"]) == (CONCERT, left, full)
        row = cells(render("csv", public(rig)))[-1]
        assert (row["id"], row["places_left"], row["is_full"]) == (CONCERT, str(left), str(full).lower())


def test_a_calendar_program_refuses_the_file(rig: Rig) -> None:
    """The calendar is read back with every event, its instants in UTC, and an id that stays for ever."""
    content = render("ics", public(rig))
    calendar = icalendar.Calendar.from_ical(content)
    shown = [each.shown for each in public(rig)]
    assert [
        (str(one["summary"]), one.decoded("dtstart"), one.decoded("dtend"), str(one["location"]))
        for one in calendar.walk("VEVENT")
    ] == [(one["name"], one["starts_at"], one["ends_at"], one["place"]) for one in shown]
    assert all(one.decoded("dtstart").utcoffset() == timedelta(0) for one in calendar.walk("VEVENT"))
    uids = [str(one["uid"]) for one in calendar.walk("VEVENT")]
    assert uids[0] == "de9cf7ec-c0a1-5823-8f8b-ca07e45457f7"
    assert len({*uids}) == 6
    assert max(map(len, content.split(b"\r\n"))) <= 75  # RFC 5545, 3.1
    assert rig.config.billetweb.user.encode() not in content


def test_the_table_has_other_columns(rig: Rig) -> None:
    """The columns are those of the description, every line ends in CR LF, and the values come back."""
    content = render("csv", public(rig))
    assert content.split(b"\r\n")[0].decode() == ",".join(COLUMNS)
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert [row["name"] for row in cells(content)] == [each.shown["name"] for each in public(rig)]


def test_an_event_that_is_not_public_is_shown(rig: Rig, standin: StandIn) -> None:
    """What is not published, unknown to be, over or gone stands in no feed."""
    for event_id, change in (
        ("900001", {"online": "0"}),
        ("900002", {"online": None}),
        ("900003", {"start": "2026-11-20 09:00:00", "end": "2026-11-20 12:59:59"}),  # Paris: a second ago
    ):
        standin.events[event_id].row |= change
    del standin.events["900004"]
    for _ in range(2):
        rig.run(full=True)
    assert [each.shown["id"] for each in public(rig)] == ["900005", CONCERT]


def test_a_tariff_that_nobody_can_buy_is_offered(rig: Rig, standin: StandIn) -> None:
    """A tariff that is hidden, over, yet to come or gone is no offer."""
    tickets = standin.events[CONCERT].tickets
    kept = tickets[0]
    for change in (
        {"visibility": "2"},
        {"end_time": "2026-11-20 12:59:59"},  # in Paris: a second ago
        {"start_time": "2026-11-20 13:00:01"},
    ):
        assert change.keys() <= kept.keys()
        before = dict(kept)
        kept |= change
        rig.run(full=True)
        kept |= before
        assert [offer.id for offer in public(rig)[-1].offers] == [tickets[1]["id"]], change
    rig.run(full=True)
    assert [offer.id for offer in public(rig)[-1].offers] == [one["id"] for one in tickets]


def test_a_person_is_shown(make_config: MakeConfig, tmp_path: Path) -> None:
    """With every attendee mirrored in full no feed tells of one."""
    from syncd.standin.server import serving

    standin = Sized(now=NOON, attendees=5)
    with serving(standin) as url:
        config = make_config(billetweb__base_url=url, sync__attendees="full")
        with rig_on(config, WaitedFor(NOON)) as rig:
            assert rig.run().outcome == "ok"
            people = rig.sql("SELECT id, email, order_id, barcode FROM billetweb_attendees")
            assert len(people) == 30
            for form in FORMATS:
                content = render(form, public(rig)).decode()
                assert not re.search("@[a-z]+[.]", content)
                assert not [value for row in people for value in row if value and str(value) in content]


@pytest.mark.parametrize("form", FORMATS)
def test_an_event_without_anything_breaks_the_feed(form: FeedFormat) -> None:
    """An event of which nothing is known is written as far as it goes, and no event at all is a file too."""
    content = render(form, [event()]).decode()
    assert form == "ics" or "1" in content
    assert "VEVENT" not in content  # a calendar has no place for what has no date
    assert render(form, [])


@pytest.mark.parametrize("text", ["=1+1", "+33", "-2", "@SUM(A1)"])
def test_a_spreadsheet_carries_a_name_out(text: str) -> None:
    """What would be a formula is led by an apostrophe; numbers and other texts are left alone."""
    (row,) = cells(render("csv", [event(name=text, place=f"a{text}", places_left=-1)]))
    assert (row["name"], row["place"], row["places_left"]) == (f"'{text}", f"a{text}", "-1")


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\t"])
def test_a_spreadsheet_carries_a_second_line_out(end: str) -> None:
    """A line may be a row of its own to who parts cells otherwise, and a tab may part them."""
    (row,) = cells(render("csv", [event(name=f"{end}=1", place=f"a{end}=1")]))
    assert (row["name"], row["place"]) == (f"'{end}'=1", f"a{end}'=1")


@pytest.mark.parametrize("between", ["\r\n", "\n\n", "\t\t", "\n\t", ";\n"])
def test_an_address_of_several_lines_gets_apostrophes(between: str) -> None:
    """A line's end before another is no formula."""
    (row,) = cells(render("csv", [event(place=f"Rue A{between}Ville")]))
    assert row["place"] == f"Rue A{between}Ville"


def test_a_french_spreadsheet_carries_a_name_out() -> None:
    """Where a semicolon parts cells, what is behind one is led by an apostrophe too."""
    content = render("csv", [event(name="Duo ; prix;=1+1;-2")])
    (row,) = cells(content)
    assert row["name"] == "Duo ; prix;'=1+1;'-2"
    (_, french) = csv.reader(io.StringIO(content.decode()), delimiter=";")
    assert french[1:3] == [" prix", "'=1+1"]
    for odd in ('x;"=1+1&"', "x\n=1+1"):
        (row,) = cells(render("csv", [event(name=odd)]))
        assert row["name"] == odd.replace(odd[2:], f"'{odd[2:]}")


def test_a_name_ends_the_script_of_a_page() -> None:
    """JSON that a page holds inside a script cannot be left by a text, and reads the same."""
    name = 'A </script><script>alert("1")</script> <!-- '
    plain, linked = (render(form, [event(name=name)]) for form in ("json", "jsonld"))
    assert b"<" not in plain + linked
    assert (json.loads(plain)["events"][0]["name"], json.loads(linked)[0]["name"]) == (name, name)


@pytest.mark.parametrize("key", ["name", "place", "shop_url"])
def test_a_text_begins_a_line_of_the_calendar(key: str) -> None:
    """A line break or another control character in a text adds nothing to the calendar."""
    text = "https://a.example/\r\nATTACH:x\nSTATUS:CANCELLED\x0b\x00\x85END:VEVENT"
    content = render("ics", [event(**{key: text, "starts_at": NOON})])
    (entry,) = icalendar.Calendar.from_ical(content).walk("VEVENT")
    assert not {"attach", "status"} & {name.lower() for name in entry}
    assert not re.search(rb"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]", content)


def test_a_calendar_without_events_is_none() -> None:
    """It has a component all the same, as RFC 5545 wants it (3.6), and the same bytes each time."""
    content = render("ics", [])
    (component,) = icalendar.Calendar.from_ical(content).subcomponents
    assert (component.name, render("ics", [])) == ("VTIMEZONE", content)


def test_an_end_before_the_start_spoils_the_calendar() -> None:
    """An end that is no end is left out."""
    content = render("ics", [event(starts_at=NOON, ends_at=NOON)])
    (entry,) = icalendar.Calendar.from_ical(content).walk("VEVENT")
    assert "dtend" not in entry


@pytest.mark.parametrize(
    ("price", "written"),
    [("12.5", "12.50"), ("0", "0.00"), ("1E+2", "100.00"), ("0.125", "0.125"), (None, None)],
)
def test_a_price_is_written_as_another(price: str | None, written: str | None) -> None:
    """An amount has its cents; one that is not known is left out."""
    ticket = Ticket(id="7", event_id="1", position=0, price=None if price is None else Decimal(price))
    (document,) = json.loads(render("jsonld", [structs.replace(event(), offers=[ticket])]))
    assert document["offers"][0].get("price") == written
