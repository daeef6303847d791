"""The invented account behind the stand-in for Billetweb: its events, and what happens to them.

Data and chance; `server.py` is the HTTP side. Rows hold wire values exactly as served, as Billetweb's PHP
does: ids and flags as text, counts of gauges as text or not, `false` for no limit, no empty map at all, zero
dates, "" for missing. Wall times are Europe/Paris. Its people are `people.py`'s.
"""

import copy
import itertools
import random
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from msgspec import Struct, field

from syncd.standin.kinds import FURTHER_KINDS, KINDS, Kind, Tariff
from syncd.standin.people import PARIS, WALL, ZERO_DATE, Attendance, Row, Slot

__all__ = ["PARIS", "WALL", "ZERO_DATE", "Row", "StandInEvent", "World", "instant", "number"]

NO_LIMIT = ("", "0", "-1", False)  # each is to be understood in a ticket's quota
FIRST_IDS = {"event": 900001, "category": 501, "ticket": 7001, "session": 880001}
ALL_KINDS = KINDS + FURTHER_KINDS
PLAIN_TICKET = dict.fromkeys(("description", "label", "instructions"), "") | {"form": "3301"}
PLAIN_SESSION = {"name": "", "place": "", "description": "", "instructions": "", "disabled": "0"}
PLACES = (
    "Grange aux Hirondelles, Val-des-Saules",
    "Jardin des Simples, Val-des-Saules",
    "Maison de l'Étang, 4 chemin de l'Écluse, Val-des-Saules",
    "Clairière du Grand Chêne, Val-des-Saules",
)
FILES = "https://www.billetweb.fr/files/page"
EDITIONS = ("en famille", "version longue", "sous abri", "avec goûter", "édition spéciale")


class StandInEvent(Struct, kw_only=True):
    """One event as Billetweb would serve it; every list may be edited at will, best under `World.lock`.

    `carts` places are in baskets: taken only for those who ask with `temp=1`. `sold` counts places by
    (session id or "", ticket id).
    """

    row: Row
    gauges: list[Row] = field(default_factory=list)
    tickets: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    carts: int = 0
    sold: Counter[tuple[str, str]] = field(default_factory=Counter)


class World:
    """An account of invented events, the same for the same (events, seed, now).

    The events come in the order of KINDS and FURTHER_KINDS, over and over: limited as a whole (an event gauge
    without an id); by category; by ticket only; unlimited; by session (the first of them ended yesterday); as
    a whole and nearly sold out; with a hidden tariff that is unlimited; with a sale that is over and one to
    come; with a hidden session; by category within a hall, with seats. Every seventh is not published.

    `now` is today, which stays; a sale and other changes of attendees happen at `present`, which is today
    where it was given and the real time else. Setting `now` moves both.
    """

    kinds: tuple[Kind, ...] = ALL_KINDS

    def __init__(self, *, events: int, seed: int, now: datetime | None) -> None:
        self.lock = threading.RLock()
        self.now = self._began = now or datetime.now(UTC)
        self._stands_still = now is not None
        self.events: dict[str, StandInEvent] = {}
        self.attendance: dict[str, Attendance] = {}
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311  # to be repeatable is its point
        self._ids = {kind: itertools.count(first) for kind, first in FIRST_IDS.items()}
        for index in range(events):
            self._publish(index, online=bool((index + 1) % 7))
        self._most_live = len(self.live())

    @property
    def present(self) -> datetime:
        """The time at which what is done now is done."""
        return self.now if self._stands_still else datetime.now(UTC) + (self.now - self._began)

    @property
    def now_wall(self) -> str:
        """The present wall time in Paris; wall times compare as text."""
        return self.now.astimezone(PARIS).strftime(WALL)

    def is_over(self, row: Row) -> bool:
        """Whether an event or a session has ended; one without an end has not."""
        return ZERO_DATE < str(row["end"]) < self.now_wall

    def live(self) -> list[str]:
        """Return the ids of the events that are published and not over."""
        published = [key for key, event in list(self.events.items()) if event.row["online"] in (1, "1")]
        return [key for key in published if not self.is_over(self.events[key].row)]

    def sell(self, event_id: str, count: int = 1, ticket_id: str | None = None) -> int:
        """Sell places and return how many there were; every gauge above them and total_sales follow.

        Without a ticket id the tickets are taken in their order; coming sessions always are.
        """
        with self.lock:
            event = self.events[event_id]
            return self._trade(event, self._slots(event, ticket_id), count)

    def refund(self, event_id: str, count: int = 1, ticket_id: str | None = None) -> int:
        """Give sold places back and return how many there were; the counterpart of `sell`."""
        with self.lock:
            event = self.events[event_id]
            return self._trade(event, self._slots(event, ticket_id), count, refund=True)

    def attendees(self, event_id: str) -> dict[str, Row]:
        """Return the rows of an event's attendees by id, refunded ones too; they may be edited at will.

        An edit alone is one of those that Billetweb does not tell by `last_update`.
        """
        with self.lock:
            return self.attendance[event_id].rows

    def _trade(self, event: StandInEvent, slots: list[Slot], count: int, *, refund: bool = False) -> int:
        moved = _move(event, slots, count, refund=refund)
        attendance = self.attendance[str(event.row["id"])]
        (attendance.refund if refund else attendance.sell)(moved, self.present)
        return sum(places for _, places in moved)

    def with_carts(self, event: StandInEvent) -> StandInEvent:
        """Return a copy of the event in which the places in baskets are taken."""
        taken = copy.deepcopy(event)
        _move(taken, self._slots(taken), taken.carts)
        return taken

    def edit(self) -> None:
        """Rename an event that is live, or move it to another place."""
        if not (live := self.live()):
            return
        row = self.events[self._random.choice(live)].row
        if self._random.choice((True, False)):
            edition = self._random.choice([other for other in EDITIONS if not row["name"].endswith(other)])
            row["name"] = f"{row['name'].partition(' · ')[0]} · {edition}"
        else:
            row["place"] = self._random.choice([other for other in PLACES if other != row["place"]])

    def publish_another(self) -> None:
        """Publish an event where fewer than at the start are live."""
        if len(self.live()) < self._most_live:
            self._publish(len(self.events), online=True)

    def end(self, event_id: str) -> None:
        """Have an event be over since a minute ago."""
        event, over = self.events[event_id], self.now.astimezone(PARIS) - timedelta(minutes=1)
        for row in (event.row, *event.sessions):
            row["start"] = min(row["start"], (over - timedelta(hours=2)).strftime(WALL))
            row["end"] = min(row["end"], over.strftime(WALL))

    def _slots(self, event: StandInEvent, ticket_id: str | None = None, *, past: bool = False) -> list[Slot]:
        """Return what can be bought: of one ticket, or of those on sale; `past` adds all that is over."""
        tickets = [row for row in event.tickets if ticket_id in (None, str(row["id"]))]
        if ticket_id is None and not past:
            tickets = [row for row in tickets if self._is_on_sale(row)]
        if not event.sessions:
            return [(ticket, None) for ticket in tickets]
        sessions = [row for row in event.sessions if past or not self.is_over(row)]
        # A session without a map of tickets offers them all.
        return [
            (ticket, session)
            for session in sessions
            for ticket in tickets
            if not session.get("tickets") or str(ticket["id"]) in session["tickets"]
        ]

    def _is_on_sale(self, ticket: Row) -> bool:
        starts, ends = instant(ticket.get("start_time")), instant(ticket.get("end_time"))
        return (starts is None or starts <= self.now) and (ends is None or self.now < ends)

    def _publish(self, index: int, *, online: bool) -> StandInEvent:
        lap, which = divmod(index, len(self.kinds))
        kind = self.kinds[which]
        round_, which_title = divmod(lap, len(kind.titles))
        title = kind.titles[which_title] + (f" n° {round_ + 1}" if round_ else "")
        start = self._at(kind, days=2 + index * 5 % 270)
        event = StandInEvent(row=self._event_row(kind, title, start, online), carts=index % 3)
        event_id = str(event.row["id"])
        self.attendance[event_id] = Attendance(event_id, index, self._seed, self.present, seated=kind.seated)
        self._add_tickets(event, kind)
        self._add_sessions(event, kind, start)
        self._presell(event, kind)
        self.events[event_id] = event
        return event

    def _event_row(self, kind: Kind, title: str, start: datetime, online: bool) -> Row:
        slug = _slug(title)
        return {
            "id": self._id("event"),
            "ext_id": slug,
            "name": title,
            "start": start.strftime(WALL),
            "end": (start + timedelta(hours=kind.hours)).strftime(WALL),
            "multiple": self._text(int(kind.sessions > 0)),
            "place": self._random.choice(PLACES),
            "shop": f"https://www.billetweb.fr/shop.php?event={slug}",
            "online": self._text(int(online)),
            "tax_rate": self._random.choice(("20", "5.5", "")),
            "tags": self._random.choice(([kind.tag], ["", kind.tag])),
            "image": f"{FILES}/thumb/{slug}.jpg",
            "cover": self._random.choice((f"{FILES}/cover/{slug}.png", f"{FILES}/cover/{slug}.jpg")),
            "confirmation_message": "",
            "description": f"<p>{title}&nbsp;: à vivre au Val-des-Saules, petits &amp; grands.</p>",
        }

    def _add_tickets(self, event: StandInEvent, kind: Kind) -> None:
        if kind.places and not kind.sessions:
            event.gauges.append(self._gauge("event", kind.places))
        for name, limit in kind.categories:
            event.gauges.append(self._gauge("category", limit, id=self._id("category"), name=name))
        for tariff in kind.tariffs:
            ticket_id = self._id("ticket")
            row = {
                "id": ticket_id,
                "full_name": " > ".join(filter(None, (tariff.category, tariff.name))),
                "name": tariff.name,
                "price": tariff.price,
                "category": tariff.category,
                "quota": str(tariff.quota) if tariff.quota else self._random.choice(NO_LIMIT),
                "visibility": tariff.visibility,
                "start_time": self._random.choice(self._begins(tariff)),
                "end_time": "" if tariff.ends_in is None else self._both_ways(tariff.ends_in)[1],
                "tax": self._random.choice(("", "5.5")),
                "commission": tariff.commission,
            }
            event.tickets.append(row | PLAIN_TICKET)
            event.gauges.append(self._gauge("ticket", tariff.quota, id=str(ticket_id), name=tariff.name))

    def _add_sessions(self, event: StandInEvent, kind: Kind, first: datetime) -> None:
        places = kind.places or 0
        offered = {str(row["id"]): str(places) for row in event.tickets}
        for turn in range(kind.sessions):
            start = first + timedelta(days=7 * (turn - 1)) if turn else self._at(kind, days=-1)
            end = (start + timedelta(hours=kind.hours)).strftime(WALL)
            row: Row = {
                "id": self._id("session"),
                "start": start.strftime(WALL),
                "end": end,
                "last_update": self._random.choice((ZERO_DATE, self.now_wall)),
                "quota": self._text(places),
                "total_sales": "0",
            }
            if turn == kind.sessions - 1:
                row["disabled"] = str(int(kind.hides_last))
            else:
                row["tickets"] = dict(offered)
            event.sessions.append(PLAIN_SESSION | row)
            event.gauges.append(self._gauge("session", places, id=str(row["id"]), name=row["start"]))
            event.row["end"] = end

    def _presell(self, event: StandInEvent, kind: Kind) -> None:
        slots = self._slots(event, past=True)
        sold: list[tuple[Slot, int]] = []
        if kind.left is not None:
            sold = _move(event, slots, kind.capacity - kind.left)
        else:
            for slot in slots:
                sold += _move(event, [slot], int(kind.capacity / len(slots) * self._random.uniform(0.2, 0.6)))
        self.attendance[str(event.row["id"])].presold = sold

    def _gauge(self, kind: str, limit: int | None, **names: object) -> Row:
        places = {"avail": self._mixed(-1), "quota": False}
        if limit is not None:
            places = {"avail": self._mixed(limit), "quota": self._mixed(limit)}
        return {"type": kind, **names, **places, "status": "active"}

    def _at(self, kind: Kind, *, days: int) -> datetime:
        today = self.now.astimezone(PARIS).replace(tzinfo=None)
        return today.replace(hour=kind.hour, minute=0, second=0, microsecond=0) + timedelta(days=days)

    def _begins(self, tariff: Tariff) -> tuple[str, ...]:
        """Return how the beginning of a tariff's sale may be written: long ago, unless it says when."""
        if tariff.begins_in is None:
            return ("", *self._both_ways(-30))
        return self._both_ways(tariff.begins_in)

    def _both_ways(self, days: int) -> tuple[str, str]:
        """Return an instant so many days from now as Unix time and as wall time."""
        at = self.now.astimezone(PARIS) + timedelta(days=days)
        return str(int(at.timestamp())), at.strftime(WALL)

    def _id(self, kind: str) -> str:
        return self._text(next(self._ids[kind]))

    def _text(self, value: int) -> str:
        return str(self._mixed(value))  # drawn all the same: the account of a seed stays what it was

    def _mixed(self, value: int) -> str | int:
        return self._random.choice((str(value), str(value), value))


def number(value: object) -> int | None:
    """Return the whole number that a wire value stands for; None for `false`, "", null and text."""
    digits = str(value)
    return int(digits) if re.fullmatch(r"-?[0-9]+", digits) else None


def _left(gauge: Row) -> int | None:
    left = number(gauge.get("avail"))
    return left if left is not None and left >= 0 else None


def _limits_above(event: StandInEvent, slot: Slot) -> Iterator[Row]:
    ticket, session = slot
    for gauge in event.gauges:
        match gauge.get("type"):
            case "ticket":
                above = str(gauge.get("id")) == str(ticket["id"])
            case "category":
                above = _is_within(ticket["category"].strip(), str(gauge.get("name")))
            case "session":
                above = session is not None and str(gauge.get("id")) == str(session["id"])
            case _:
                above = not gauge.get("id")
        if above and _left(gauge) is not None:
            yield gauge


def _is_within(category: str, name: str) -> bool:
    """Tell whether a category is one of this name, inside one, or one of this name inside another."""
    return category == name or category.startswith(f"{name} > ") or category.endswith(f" > {name}")


def instant(value: object) -> datetime | None:
    """Return the instant that a wire value stands for, Unix time or wall time; None where it is none."""
    text = str(value)
    try:
        if text.isdecimal():
            return datetime.fromtimestamp(int(text), UTC)
        return datetime.strptime(text, WALL).replace(tzinfo=PARIS)
    except ValueError:  # "", a zero date
        return None


def _room(event: StandInEvent, slot: Slot, count: int, *, refund: bool) -> int:
    rooms = [count]
    for gauge in _limits_above(event, slot):
        left, quota = _left(gauge) or 0, number(gauge.get("quota"))
        rooms += ([quota - left] if quota else []) if refund else [left]
    if session := slot[1]:
        sales, quota = number(session["total_sales"]) or 0, number(session["quota"]) or 0
        rooms += [sales] if refund else [quota - sales] if quota > 0 else []
    if refund:
        rooms.append(event.sold[_key(slot)])
    return max(0, min(rooms))


def _move(
    event: StandInEvent, slots: list[Slot], count: int, *, refund: bool = False
) -> list[tuple[Slot, int]]:
    """Sell at most so many places in these slots or give them back; return how many in each."""
    moved = []
    for slot in slots:
        if not (places := _room(event, slot, count, refund=refund)):
            continue
        sold = -places if refund else places
        for gauge in _limits_above(event, slot):
            _add(gauge, "avail", -sold)
        if session := slot[1]:
            _add(session, "total_sales", sold)
        event.sold[_key(slot)] += sold
        count -= places
        moved.append((slot, places))
    return moved


def _key(slot: Slot) -> tuple[str, str]:
    ticket, session = slot
    return (str(session["id"]) if session else "", str(ticket["id"]))


def _add(row: Row, name: str, places: int) -> None:
    """Add to a number in its own wire type; leave alone what is no number."""
    old = row.get(name)
    if (value := number(old)) is not None:
        row[name] = str(value + places) if isinstance(old, str) else value + places


def _slug(title: str) -> str:
    ascii_title = unicodedata.normalize("NFKD", title.lower()).encode("ascii", "ignore").decode()
    return "-".join(re.findall("[a-z0-9]+", ascii_title))
