"""A Billetweb that costs next to nothing: `upstream.py EVENTS ATTENDEES` prints its port and serves.

In a process of its own, with answers rendered beforehand and no library between socket and bytes, so that
what is measured is the reader. No limit of calls, no check of the key. All rows were last updated more than a
day ago, until `/bench/change`:

    /bench/reset?latency_ms=20  the account as it was at first; each answer waits so long; counts from zero
    /bench/change               1 % of the attendees: a tenth of those of a tenth of the events
    /bench/requests             which requests were answered since the reset
    /bench/attendees            how many attendees there are, and how many of them were refunded
"""

import asyncio
import bisect
import gc
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

PARIS = ZoneInfo("Europe/Paris")
ZERO_DATE = "0000-00-00 00:00:00"
FIRST_NAMES = ("Ada", "Zoé", "Élodie", "Jean-Noël", "Maëlle", "Anaïs", "Hugo", "Océane", "Benoît", "Inès")
TARIFFS = (("Plein tarif", 12.5, 0.65), ("Tarif réduit", 8, 0.5), ("Moins de 12 ans", 0, False))
SESSIONS = 4
EVERY_WITH_SESSIONS = 4
"""One event in so many has sessions."""
ONE_IN = 10
"""What changes: one row in so many, of one event in so many."""
WRITE_AT_ONCE = 256 * 1024


def php(value: object) -> bytes:
    """Return JSON as PHP writes it."""
    return json.dumps(value, separators=(",", ":")).replace("/", "\\/").encode()


def wall(instant: float) -> str:
    """Return the wall time in Paris."""
    return datetime.fromtimestamp(instant, PARIS).strftime("%Y-%m-%d %H:%M:%S")


def _array(rows: list[bytes]) -> bytes:
    return b"[" + b",".join(rows) + b"]"


class Account:
    """The answers.

    `_rows` holds the attendees by event, each as an answer for the whole account shows it; `_order` lists
    (last update, event, place) of all, the oldest first.
    """

    def __init__(self, events: int, attendees: int) -> None:
        self._began = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        self._size = attendees
        self._ids = [str(900001 + index) for index in range(events)]
        self._places = {event_id: index for index, event_id in enumerate(self._ids)}
        rows = [self._event(index) for index in range(events)]
        self.events = php(rows)
        self._heads = [
            php({"event": row["id"], "event_name": row["name"], "event_start": row["start"]})[:-1] + b","
            for row in rows
        ]
        self._tickets = [php(self._tariffs(index)) for index in range(events)]
        self._dates = [php(self._sessions(index)) for index in range(events)]
        self._pristine = [
            [head + self._attendee(event, place)[1:] for place in range(attendees)]
            for event, head in enumerate(self._heads)
        ]
        self.reset()

    def reset(self) -> None:
        """Make everything as it was at first."""
        self._rows = [list(rows) for rows in self._pristine]
        self._refunded: set[tuple[int, int]] = set()
        self._order = sorted(
            (self._updated(event, place), event, place)
            for event in range(len(self._rows))
            for place in range(self._size)
        )
        self._avail = [php(self._gauges(event, self._size)) for event in range(len(self._rows))]
        self._whole = [self._narrow(event, range(self._size)) for event in range(len(self._rows))]

    def change(self) -> None:
        """Check in a tenth of the attendees of a tenth of the events, but refund every fifth of them."""
        now = int(datetime.now(UTC).timestamp())
        touched = {
            (event, place)
            for event in range(0, len(self._rows), ONE_IN)
            for place in range(0, self._size, ONE_IN)
        }
        self._refunded = {(event, place) for event, place in touched if place % (5 * ONE_IN) == 0}
        for event, place in touched:
            refunded = (event, place) in self._refunded
            row = self._attendee(event, place, updated=now, refunded=refunded)
            self._rows[event][place] = self._heads[event] + row[1:]
        for event in range(0, len(self._rows), ONE_IN):
            gone = sum(its == event for its, _ in self._refunded)
            self._avail[event] = php(self._gauges(event, self._size - gone))
            self._whole[event] = self._narrow(event, range(self._size))
        untouched = [each for each in self._order if each[1:] not in touched]
        self._order = untouched + [(now, event, place) for event, place in sorted(touched)]

    @property
    def attendees(self) -> tuple[int, int]:
        """How many there are, and how many of them were refunded."""
        return len(self._order), len(self._refunded)

    def answer(self, path: str, query: dict[str, str]) -> bytes | None:
        """Return the body for a path below /api; None for an unknown one."""
        match path.strip("/").split("/"):
            case ["events"]:
                return self.events
            case ["attendees"]:
                chosen = self._chosen(query)
                return _array([self._rows[event][place] for _, event, place in chosen])
            case ["event", event_id, kind] if event_id in self._places:
                return self._of_event(self._places[event_id], kind, query)
        return None

    def _of_event(self, event: int, kind: str, query: dict[str, str]) -> bytes | None:
        if kind == "attendees":
            if query.keys() == {"disabled"} and query["disabled"] == "1":
                return self._whole[event]
            return self._narrow(event, [place for _, its, place in self._chosen(query) if its == event])
        bodies = {"avail": self._avail, "tickets": self._tickets, "dates": self._dates}
        return bodies[kind][event] if kind in bodies else None

    def _chosen(self, query: dict[str, str]) -> list[tuple[int, int, int]]:
        since, until = (
            int(query.get(name) or default) for name, default in (("last_update", 0), ("to", 1 << 40))
        )
        chosen = self._order[
            bisect.bisect_left(self._order, (since,)) : bisect.bisect_left(self._order, (until,))
        ]
        if query.get("disabled") == "1":
            return chosen
        return [each for each in chosen if each[1:] not in self._refunded]

    def _narrow(self, event: int, places: Iterable[int]) -> bytes:
        """Return attendees of one event as they stand in an answer for it alone: without its name in them."""
        head = len(self._heads[event])
        return _array([b"{" + self._rows[event][place][head:] for place in places])

    def _updated(self, event: int, place: int) -> int:
        """Return when a place was sold: over three hundred days, up to a day ago, events mixed."""
        position = (place * len(self._ids) + event) / (self._size * len(self._ids))
        return int((self._began - timedelta(days=1 + 300 * (1 - position))).timestamp())

    def _event(self, index: int) -> dict[str, object]:
        start = (self._began + timedelta(days=10 + index % 200)).timestamp()
        slug = f"fete-du-village-{index}"
        return {
            "id": self._ids[index],
            "ext_id": slug,
            "name": f"Fête du village n° {index}",
            "start": wall(start),
            "end": wall(start + 6 * 3600),
            "multiple": str(int(index % EVERY_WITH_SESSIONS == 0)),
            "place": "1 place du Four, Val-des-Saules",
            "shop": f"https://www.billetweb.fr/shop.php?event={slug}",
            "online": "1",
            "tax_rate": "20",
            "tags": ["", "fête"],
            "image": "",
            "cover": f"https://www.billetweb.fr/files/page/thumb/{slug}.png",
            "confirmation_message": "",
            "description": "<p>Une journée entière à vivre ensemble.</p>" * 10,
        }

    def _tariffs(self, event: int) -> list[dict[str, object]]:
        empty = dict.fromkeys(("description", "label", "instructions", "start_time", "end_time", "tax"), "")
        return [
            {"id": f"7{event:05}{which}", "full_name": name, "name": name, "price": price, "category": ""}
            | {"commission": commission, "quota": "", "visibility": "0", "form": "3301"}
            | empty
            for which, (name, price, commission) in enumerate(TARIFFS)
        ]

    def _sessions(self, event: int) -> list[dict[str, object]]:
        if event % EVERY_WITH_SESSIONS:
            return []
        start = (self._began + timedelta(days=10 + event % 200)).timestamp()
        empty = dict.fromkeys(("name", "place", "description", "instructions"), "")
        rows: list[dict[str, object]] = [
            {
                "id": f"88{event:05}{which}",
                "start": wall(start + which * 3600),
                "end": wall(start + (which + 1) * 3600),
            }
            for which in range(SESSIONS)
        ]
        sold = {"quota": str(self._size), "total_sales": str(self._size // SESSIONS)}
        return [
            row | sold | empty | {"last_update": ZERO_DATE, "tickets": [], "disabled": "0"} for row in rows
        ]

    def _gauges(self, event: int, sold: int) -> list[dict[str, object]]:
        quota = 2 * self._size
        whole: dict[str, object] = {
            "type": "event",
            "avail": str(quota - sold),
            "quota": str(quota),
            "status": "active",
        }
        tickets: list[dict[str, object]] = [
            {
                "type": "ticket",
                "id": f"7{event:05}{which}",
                "name": name,
                "avail": "-1",
                "quota": False,
                "status": "active",
            }
            for which, (name, _, _) in enumerate(TARIFFS)
        ]
        return [whole, *tickets]

    def _attendee(
        self, event: int, place: int, *, updated: int | None = None, refunded: bool = False
    ) -> bytes:
        """Return a row; every two places are one order."""
        bought = wall(self._updated(event, place))
        number = event * self._size + place
        order = number // 2
        first, family = FIRST_NAMES[number % len(FIRST_NAMES)], f"EXEMPLE-{number % 997}"
        price = TARIFFS[place % len(TARIFFS)][1]
        link = "https://www.billetweb.fr/{}.php?{}={}&key=0123456789abcdef0123456789abcdef"
        row = {
            "id": str(300000001 + number),
            "ext_id": f"T{number % 1000:03}-{number // 1000:04}-E{self._ids[event]}",
            "barcode": f"{number:010}",
            "used": str(int(updated is not None and not refunded)),
            "lane": "",
            "used_date": ZERO_DATE if updated is None or refunded else wall(updated),
            "email": "",
            "firstname": first,
            "name": family,
            "ticket": TARIFFS[place % len(TARIFFS)][0],
            "category": "",
            "ticket_id": f"7{event:05}{place % len(TARIFFS)}",
            "price": f"{price:.2f}",
            "seating_location": "",
            "last_update": bought if updated is None else wall(updated),
            "reduction_code": "",
            "authorization_code": "",
            "pass": "0",
            "disabled": str(int(refunded)),
            "product_management": link.format("my_order", "product", number),
            "product_download": link.format("download", "product", number),
            "order_id": str(110000001 + order),
            "order_ext_id": f"C{order % 1000:03}-{order // 1000:04}-E{self._ids[event]}",
            "order_firstname": first,
            "order_name": family,
            "order_email": f"acheteur{order}@example.org",
            "order_date": bought,
            "order_paid": str(int(not refunded)),
            "order_payment_type": "web",
            "order_payment_date": bought,
            "order_origin": "web",
            "order_price": f"{2 * price:.2f}",
            "order_session": "0" if event % EVERY_WITH_SESSIONS else f"88{event:05}{place % SESSIONS}",
            "session_start": "",
            "order_accreditation": "0",
            "order_management": link.format("my_order", "order", order),
            "order_language": "fr",
            "custom": {"Repas ": "Végétarien" if number % 3 else "Normal"},
            "custom_order": [],
        }
        return php(row)


class Server(asyncio.Protocol):
    """One connection. `latency_s` and `requests` are the whole server's."""

    account: Account
    latency_s = 0.0
    requests: ClassVar[list[str]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""
        self._unsent: list[memoryview] = []
        self._may_write = True

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._handle(head.split(b" ", 2)[1].decode())

    def _handle(self, target: str) -> None:
        path, _, text = target.partition("?")
        query = dict(parse_qsl(text))
        if path.startswith("/bench/"):
            self._send(self._control(path, query))
            return
        Server.requests.append(target)
        if not Server.latency_s:
            self._send(self.account.answer(path.removeprefix("/api"), query))
            return
        loop = asyncio.get_running_loop()
        loop.call_later(
            Server.latency_s, lambda: self._send(self.account.answer(path.removeprefix("/api"), query))
        )

    def _control(self, path: str, query: dict[str, str]) -> bytes | None:
        match path:
            case "/bench/reset":
                self.account.reset()
                Server.latency_s = float(query["latency_ms"]) / 1000
                Server.requests.clear()
            case "/bench/change":
                self.account.change()
            case "/bench/requests":
                return php(Server.requests)
            case "/bench/attendees":
                return php(self.account.attendees)
            case _:
                return None
        return b"null"

    def _send(self, body: bytes | None) -> None:
        status = b"404 Not Found" if body is None else b"200 OK"
        body = body or b"[]"
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            status,
            len(body),
        )
        self._unsent.append(memoryview(head))
        view = memoryview(body)
        self._unsent += [view[start : start + WRITE_AT_ONCE] for start in range(0, len(body), WRITE_AT_ONCE)]
        self._pump()

    def _pump(self) -> None:
        while self._unsent and self._may_write and not self._transport.is_closing():
            self._transport.write(self._unsent.pop(0))

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._pump()


async def main(events: int, attendees: int) -> None:
    """Render, say the port, serve for ever."""
    Server.account = Account(events, attendees)
    gc.freeze()
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
