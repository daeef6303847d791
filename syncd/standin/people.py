"""The invented people behind the stand-in for Billetweb: who bought the places of an event.

Rows hold wire values exactly as served: text throughout, zero dates, no form where nothing was answered,
links with a secret key, labels with a trailing space. Nobody in them exists. Leans on nothing else of syncd.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]
Slot = tuple[Row, Row | None]  # what can be bought: a ticket, and the session where the event has some

PARIS = ZoneInfo("Europe/Paris")
WALL = "%Y-%m-%d %H:%M:%S"
ZERO_DATE = "0000-00-00 00:00:00"
SOLD_OVER = timedelta(days=120)
FIRST_ATTENDEE, FIRST_ORDER = 300_000_001, 110_000_001
PER_EVENT = 100_000
"""So many ids each event has for itself: which it has does not depend on who looks first."""
PLACES_PER_ORDER = (1, 2, 2, 2, 3, 4)
FIRSTNAMES = ("Ada", "Basile", "Chloé", "Désiré", "Élise", "Firmin", "Garance", "Hyacinthe", "Inès", "Zoé")
NAMES = ("EXEMPLE", "D'ESSAI", "MODÈLE-TYPE", "LE FICTIF", "ÉCHANTILLON", "de l'INVENTÉ", "Ünwahr & Fils")
PAYMENTS = ("web",) * 12 + ("card", "cash", "check", "invitation", "reservation", "10549", "")
MEALS = ("Normal", "Végétarien", 'Sans "gluten", {merci}')
NOTHING = dict.fromkeys(("lane", "seating_location", "reduction_code", "authorization_code"), "")
FILTERS = {
    "session": "order_session",
    "used": "used",
    "ticket": "ticket_id",
    "email": "order_email",
    "barcode": "barcode",
    "ext_id": "ext_id",
    "product_id": "id",
}
STARTLESS_EVERY = 5
"""Of so many orders for a session one does not tell when that starts."""


class Attendance:
    """The sold places of one event, in the order of their sale.

    Those `presold` before `opened` are invented when somebody first looks: an account of thousands of events
    is cheap. The same for the same (seed, event id, sales).
    """

    def __init__(
        self, event_id: str, index: int, seed: int, opened: datetime, *, seated: bool = False
    ) -> None:
        self._event_id = event_id
        self._seated = seated
        self._opened = opened
        self.presold: list[tuple[Slot, int]] = []
        self._rows: dict[str, Row] = {}
        self._changed_at: dict[str, datetime] = {}
        self._random = random.Random(f"{seed} {event_id}")  # noqa: S311  # to be repeatable is its point
        self._ids = itertools.count(FIRST_ATTENDEE + index * PER_EVENT)
        self._orders = itertools.count(FIRST_ORDER + index * PER_EVENT)

    @property
    def rows(self) -> dict[str, Row]:
        """All of them by id, refunded ones too; to be edited at will. `touch` makes an edit a known one."""
        if self.presold:
            presold, self.presold = self.presold, []
            self._invent(presold)
        return self._rows

    def sell(self, sales: Iterable[tuple[Slot, int]], at: datetime) -> None:
        """Add the places of a sale, as one order if they are few."""
        _ = self.rows  # the earlier ones come first
        for slots in _in_fours(_places(sales)):
            self._order(slots, at)

    def refund(self, sales: Iterable[tuple[Slot, int]], at: datetime) -> None:
        """Mark as many places as refunded, the latest sold first."""
        for slot, count in sales:
            held = [row for row in self.rows.values() if row["disabled"] == "0" and _is_of(row, slot)]
            for row in held[-count:]:
                row["disabled"] = "1"
                self.touch(row["id"], at)

    def touch(self, attendee_id: str, at: datetime) -> None:
        """Make a row one that was changed then."""
        self.rows[attendee_id]["last_update"] = at.astimezone(PARIS).strftime(WALL)
        self._changed_at[attendee_id] = at

    def asked(self, query: dict[str, str], now: datetime) -> list[Row]:
        """Return the rows that a query asks for, and those changed in the second of `last_update` too."""
        since, until = _number(query, "last_update"), _number(query, "to")
        if (minutes := _number(query, "since")) is not None:
            since = max(since or 0, int(now.timestamp()) - 60 * minutes)
        if self.presold and since is not None and since > self._opened.timestamp():
            return []
        wanted = [(FILTERS[name], value) for name, value in query.items() if name in FILTERS]
        if query.get("disabled") != "1":
            wanted.append(("disabled", "0"))
        return [
            row
            for key, row in self.rows.items()
            if (since is None or int(self._changed_at[key].timestamp()) >= since)
            and (until is None or int(self._changed_at[key].timestamp()) < until)
            and all(row[name] == value for name, value in wanted)
        ]

    def _invent(self, presold: list[tuple[Slot, int]]) -> None:
        orders = []
        for _, sales in itertools.groupby(presold, lambda sale: _session_id(sale[0])):
            places = _places(sales)
            self._random.shuffle(places)
            while places:
                size = self._random.choice(PLACES_PER_ORDER)
                orders.append(places[:size])
                del places[:size]
        self._random.shuffle(orders)
        ages = sorted((self._random.random() ** 2 for _ in orders), reverse=True)
        for slots, age in zip(orders, ages, strict=True):
            self._order(slots, self._opened - age * SOLD_OVER)

    def _order(self, slots: list[Slot], at: datetime) -> None:
        order = self._order_fields(slots, at)
        for ticket, session in slots:
            row = self._place_fields(ticket, order) | order
            has_start = session and int(order["order_id"]) % STARTLESS_EVERY
            row["session_start"] = session["start"] if session and has_start else ""
            if self._seated:
                seat = int(row["id"]) % 1000
                row["seating_location"] = f"{ticket['category'].strip()} > {seat // 20 + 1} > {seat % 20 + 1}"
            self._rows[row["id"]] = row
            self.touch(row["id"], at)

    def _order_fields(self, slots: list[Slot], at: datetime) -> Row:
        chance = self._random
        when = at.astimezone(PARIS).strftime(WALL)
        firstname, name = chance.choice(FIRSTNAMES), chance.choice(NAMES)
        total = sum(_price(ticket) for ticket, _ in slots)
        payment = chance.choice(PAYMENTS) if total else "free"
        paid = payment != "reservation"
        number = str(next(self._orders))
        ext_id = f"C{chance.randrange(1000):03}-{chance.randrange(10_000):04}-E{self._event_id}"
        return {
            "order_id": number,
            "order_ext_id": ext_id,
            "order_firstname": firstname,
            "order_name": name,
            "order_email": f"acheteur{number}@example.org",
            "order_date": when,
            "order_paid": str(int(paid)),
            "order_payment_type": payment,
            "order_payment_date": when if paid else ZERO_DATE,
            "order_origin": "web" if payment in ("web", "free") else chance.choice(("", "Guichet")),
            "order_price": f"{0 if payment == 'invitation' else total:.2f}",
            "order_session": _session_id(slots[0]),
            "order_accreditation": "0",
            "order_management": self._link("my_order.php?order", ext_id),
            "order_language": chance.choice(("fr", "fr", "fr", "")),
            **({"custom_order": {"Téléphone": "01 99 00 00 00"}} if chance.random() < 0.1 else {}),  # noqa: PLR2004
        }

    def _place_fields(self, ticket: Row, order: Row) -> Row:
        chance = self._random
        ext_id = f"T{chance.randrange(1000):03}-{chance.randrange(10_000):04}-E{self._event_id}"
        is_free = order["order_payment_type"] == "invitation"
        custom = {"custom": {"Repas ": chance.choice(MEALS)}} if chance.randrange(4) == 0 else {}
        return {
            "id": str(next(self._ids)),
            "ext_id": ext_id,
            "barcode": f"{chance.randrange(3 * 10**9):010}",
            "used": "0",
            "used_date": ZERO_DATE,
            "email": "",
            "firstname": chance.choice(FIRSTNAMES),
            "name": order["order_name"],
            "ticket": ticket["name"],
            "category": ticket["category"],
            "ticket_id": str(ticket["id"]),
            "price": f"{0 if is_free else _price(ticket):.2f}",
            "pass": "0",
            "disabled": "0",
            "product_management": self._link("my_order.php?product", ext_id),
            "product_download": self._link("download.php?product", ext_id),
            **NOTHING,
            **custom,
        }

    def _link(self, page: str, ext_id: str) -> str:
        return f"https://www.billetweb.fr/{page}={ext_id}&key={self._random.getrandbits(128):032x}"


def _places(sales: Iterable[tuple[Slot, int]]) -> list[Slot]:
    return [slot for slot, count in sales for _ in range(count)]


def _in_fours(slots: list[Slot]) -> Iterator[list[Slot]]:
    """Give orders: places of one session, at most four."""
    for _, same in itertools.groupby(slots, _session_id):
        held = list(same)
        yield from (held[start : start + 4] for start in range(0, len(held), 4))


def _session_id(slot: Slot) -> str:
    return str(slot[1]["id"]) if slot[1] else "0"


def _price(ticket: Row) -> float:
    return float(ticket["price"] or 0)


def _is_of(row: Row, slot: Slot) -> bool:
    return (row["ticket_id"], row["order_session"]) == (str(slot[0]["id"]), _session_id(slot))


def _number(query: dict[str, str], name: str) -> int | None:
    text = query.get(name, "")
    return int(text) if text.isdecimal() else None
