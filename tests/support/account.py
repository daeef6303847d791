"""The account that lives are played on: what may happen to it, and the faults in what it answers."""

from datetime import timedelta
from typing import NamedTuple

from msgspec import structs

from support import faults as fault
from support.faults import with_rows
from support.people import check_in, delete_attendee
from support.witness import Witness
from syncd.standin.server import Fault
from syncd.standin.world import PARIS, WALL, Row, StandInEvent

POOL = 12
PLACES_SOLD = 5
"""So many places each event has sold when a life begins."""
MAX_BODY_BYTES = 128 * 1024
FAULTS: dict[str, Fault] = {
    "503": fault.status(503),
    "reset": fault.reset,
    "cut": fault.cut,
    "truncated": fault.truncated,
    "no bytes": fault.empty,
    "null": fault.null,
    "page": fault.html_page,
    "challenge": fault.challenge,
    "unauthorized": fault.unauthorized,
    "restricted": fault.restricted,
    "not found": fault.error_object("not_found", "Unknown event"),
    "too many": fault.rate_limiting(),
    "[]": fault.raw(b"[]"),
    "[] and 500": fault.raw(b"[]", 500),
    "first row missing": with_rows(lambda rows: rows[1:]),
    "too large": lambda answer: structs.replace(answer, body=answer.body + b" " * MAX_BODY_BYTES),
    "most rows missing": with_rows(lambda rows: rows[:1]),
    "rows twice": with_rows(lambda rows: [*rows, *rows]),
    "rows reversed": with_rows(lambda rows: rows[::-1]),
    "null row": with_rows(lambda rows: [*rows, None]),
    "row without id": with_rows(
        lambda rows: (
            [{name: row[name] for name in row if name not in ("id", "type")} for row in rows[:1]] + rows[1:]
        )
    ),
}
LIES = ("[]", "first row missing", "most rows missing", "restricted", "unauthorized")
"""After these faults it stays unsaid who sold: untrue answers, and that the account's are not permitted."""
LISTINGS = ("/events", "/attendees")
ABOUT_PEOPLE = ("/attendees", "attendees", "*")
LISTS = ("gauges", "tickets", "sessions")


class Happening(NamedTuple):
    """Something that changes the account: `what` is a method of `Account`; the numbers choose where."""

    what: str
    event: int
    row: int


class Planned(NamedTuple):
    """A fault for the next requests, for one of LISTINGS or of each event (`event` None) or one of them."""

    name: str
    operation: str
    event: int | None
    times: int | None


class Round(NamedTuple):
    """What happens between two runs, and how the second one is asked for."""

    happenings: list[Happening]
    faults: list[Planned]
    run: str


class Life(NamedTuple):
    """An account: which of the pool's events are live, how many ended long ago; and what happens to it."""

    events: list[int]
    past: int
    rounds: list[Round]


class Account:
    """The stand-in's account, and what was taken out of it for the time being.

    `untold` names the attendees and events with a change that no increment tells of, and never will.
    """

    def __init__(self, standin: Witness, life: Life) -> None:
        self.standin = standin
        standin.begin_anew()
        pool = [*standin.events.items()]
        kept = {*life.events, *range(POOL - life.past, POOL)}
        self._unused = [pool[index] for index in range(POOL) if index not in kept]
        past = [pool[index] for index in range(POOL - life.past, POOL)]
        standin.events.clear()
        standin.events |= [*(pool[index] for index in life.events), *past]
        for _, event in past:
            _end(event, standin, 60)
        self.untold = {name for name, _ in self._unused}
        self._withdrawn: dict[str, StandInEvent] = {}
        self._rows: list[tuple[StandInEvent, str, Row]] = []
        self._places: list[tuple[str, Row]] = []

    def name(self, index: int) -> str | None:
        """Return the id of an event of the account."""
        ids = list(self.standin.events)
        return ids[index % len(ids)] if ids else None

    def happen(self, happening: Happening) -> None:
        """Let it happen, where there is an event for it."""
        name = self.name(happening.event)
        with self.standin.lock:
            if name is None:
                self.bring_back_events()
            else:
                getattr(self, happening.what)(self.standin.events[name], happening.row)

    def sell(self, event: StandInEvent, count: int) -> None:
        """Sell some places."""
        self.standin.sell(str(event.row["id"]), count + 1)

    def refund(self, event: StandInEvent, count: int) -> None:
        """Give some places back."""
        self.standin.refund(str(event.row["id"]), count + 1)

    def edit(self, event: StandInEvent, number: int) -> None:
        """Rename the event and the first row of each kind in it."""
        for row in (event.row, *event.gauges[:1], *event.tickets[:1], *event.sessions[:1]):
            row["name"] = f"{row.get('name', '')} {number}"

    def publish(self, _event: StandInEvent, _number: int) -> None:
        """Add an event to the account."""
        if self._unused:
            name, event = self._unused.pop(0)
            self.standin.events[name] = event

    def end(self, event: StandInEvent, number: int) -> None:
        """Let the event be over, since yesterday or since long ago."""
        _end(event, self.standin, 60 if number % 2 else 1)

    def begin_anew(self, event: StandInEvent, number: int) -> None:
        """Put the event off into the future."""
        _end(event, self.standin, -40 - number)

    def withdraw(self, event: StandInEvent, _number: int) -> None:
        """Take the event out of the account."""
        name = str(event.row["id"])
        self._withdrawn[name] = self.standin.events.pop(name)
        self.untold.add(name)

    def withdraw_all(self, _event: StandInEvent, _number: int) -> None:
        """Empty the account."""
        self._withdrawn |= self.standin.events
        self.untold |= self.standin.events.keys()
        self.standin.events.clear()

    def bring_back_events(self, *_: object) -> None:
        """Put withdrawn events back."""
        self.standin.events |= self._withdrawn
        self._withdrawn.clear()

    def withdraw_row(self, event: StandInEvent, number: int) -> None:
        """Take a row out of the event; with a ticket or session its gauge goes."""
        rows = getattr(event, LISTS[number % 3])
        if rows:
            self._take(event, LISTS[number % 3], rows[number // 3 % len(rows)])

    def withdraw_most(self, event: StandInEvent, number: int) -> None:
        """Take all rows of one kind out of the event, but for one at times."""
        kind = LISTS[number % 3]
        for row in getattr(event, kind)[number // 3 % 2 :]:
            self._take(event, kind, row)

    def bring_back_all(self) -> bool:
        """Put back all that was taken out; tell whether that was anything."""
        taken = bool(self._withdrawn or self._rows or self._places)
        self.bring_back_events()
        self.bring_back_rows()
        return taken

    def bring_back_rows(self, *_: object) -> None:
        """Put withdrawn rows and deleted places back."""
        for event, kind, row in self._rows:
            getattr(event, kind).append(row)
        self._rows.clear()
        for event_id, place in self._places:
            attendance = self.standin.attendance[event_id]
            attendance.rows[place["id"]] = place
            attendance._changed_at[place["id"]] = self.standin._began
        self._places.clear()

    def move_ticket(self, event: StandInEvent, number: int) -> None:
        """Move a ticket to another event."""
        others = [other for other in self.standin.events.values() if other is not event]
        if event.tickets and others:
            ticket = event.tickets.pop(number % len(event.tickets))
            others[number % len(others)].tickets.append(ticket)

    def delete_place(self, event: StandInEvent, number: int) -> None:
        """Delete a place, which no increment tells of."""
        if row := self._attendee(event, number):
            self._delete(event, [row])

    def delete_places(self, event: StandInEvent, number: int) -> None:
        """Delete all places of an event, but for one at times."""
        self._delete(event, self._attendees(event)[number % 2 :])

    def remove_order(self, event: StandInEvent, number: int) -> None:
        """Delete the places of an order."""
        if row := self._attendee(event, number):
            rows = self._attendees(event)
            self._delete(event, [each for each in rows if each["order_id"] == row["order_id"]])

    def check_in(self, event: StandInEvent, number: int) -> None:
        """Scan a ticket at the door, which no increment tells of."""
        if row := self._attendee(event, number):
            self.untold.add(row["id"])
            check_in(self.standin, row["id"])

    def edit_place(self, event: StandInEvent, number: int) -> None:
        """Change what is told to all of an attendee, or what is personal."""
        if row := self._attendee(event, number):
            row["barcode" if number % 2 else "firstname"] = f"Number {number}"
            self.standin.attendance[str(event.row["id"])].touch(row["id"], self.standin.present)

    def restrict(self, *_: object) -> None:
        """Limit the key to some events, or no longer."""
        self.standin.restricted = not self.standin.restricted

    def _delete(self, event: StandInEvent, rows: list[Row]) -> None:
        for row in rows:
            self.untold.add(row["id"])
            delete_attendee(self.standin, row["id"])
            self._places.append((str(event.row["id"]), row))

    def _attendees(self, event: StandInEvent) -> list[Row]:
        return [*self.standin.attendees(str(event.row["id"])).values()]

    def _attendee(self, event: StandInEvent, number: int) -> Row | None:
        rows = self._attendees(event)
        return rows[number % len(rows)] if rows else None

    def _take(self, event: StandInEvent, kind: str, row: Row) -> None:
        gauges = [
            gauge
            for gauge in event.gauges
            if f"{gauge['type']}s" == kind and str(gauge.get("id")) == str(row["id"])
        ]
        for name, one in [(kind, row), *(("gauges", gauge) for gauge in gauges)]:
            if one in getattr(event, name):
                getattr(event, name).remove(one)
                self._rows.append((event, name, one))

    def plan(self, planned: Planned) -> None:
        """Plan a fault at the stand-in."""
        name = "*" if planned.event is None else self.name(planned.event) or "*"
        path = planned.operation if planned.operation in LISTINGS else f"/event/{name}/{planned.operation}"
        self.standin.fail(path, FAULTS[planned.name], times=planned.times)


def _end(event: StandInEvent, standin: Witness, days_ago: int) -> None:
    over = standin.present.astimezone(PARIS) - timedelta(days=days_ago)
    event.row["start"] = (over - timedelta(hours=2)).strftime(WALL)
    event.row["end"] = over.strftime(WALL)
