"""How many places are left: gauges, tickets and sessions into the figures of an event and its parts. Pure.

A sold place uses the gauges of its tariff, its category, its session and its event at once (Billetweb help
on gauges): gauges of different levels overlap and are never added. A figure is *limited* where the places
left are known, else *unlimited* or *unknown*; only a limited one can be full.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from syncd.model import Event, Gauge, Session, Ticket

_Record = TypeVar("_Record", Event, Ticket, Session)


class _Figure(NamedTuple):
    total: int | None = None
    left: int | None = None
    unlimited: bool = False


class _Levels(NamedTuple):
    """The gauges of one event, by what they count."""

    event: _Figure | None
    sessions: dict[str, _Figure]
    categories: list[tuple[str | None, _Figure]]  # by name, which is all that a ticket tells of its own
    tickets: dict[str, _Figure]
    category_of: dict[str, str | None]  # ticket id -> name of its category

    def above(self, ticket_id: str) -> list[_Figure]:
        """Give the category gauges that the ticket counts in: one, or none."""
        category = self.category_of.get(ticket_id)
        return [figure for name, figure in self.categories if name == category and name is not None]


def with_figures(
    event: Event,
    gauges: Iterable[Gauge],
    tickets: Sequence[Ticket],
    sessions: Sequence[Session],
    *,
    now: datetime,
) -> tuple[Event, list[Ticket], list[Session]]:
    """Give event, tickets and sessions with their `places_total`, `places_left`, `unlimited`, `is_full`.

    Tickets and sessions come as `wire.py` decodes them, with their quota for `places_total`; of one that a
    read lacked, the total that an earlier call gave stands in for it. A session is coming if it starts after
    `now` (aware), or if nobody knows when.
    """
    levels = _levels(gauges, tickets)
    coming = [
        _of_session(session, levels)
        for session in sessions
        if event.multiple and (session.starts_at is None or session.starts_at > now)
    ]
    return (
        _with(event, levels.event or _of_event(levels, coming)),
        [_with(ticket, _of_ticket(ticket, levels)) for ticket in tickets],
        [_with(session, _of_session(session, levels)) for session in sessions],
    )


def _levels(gauges: Iterable[Gauge], tickets: Sequence[Ticket]) -> _Levels:
    quotas = {ticket.id: ticket.places_total for ticket in tickets}
    levels = _Levels(None, {}, [], {}, {ticket.id: ticket.category for ticket in tickets})
    whole_event = []
    for gauge in gauges:
        figure = _Figure(gauge.places_total, gauge.places_left, gauge.unlimited)
        match gauge.type:
            case "ticket":
                levels.tickets[gauge.gauge_id] = _with_total(figure, quotas.get(gauge.gauge_id))
            case "category":
                levels.categories.append((gauge.name, figure))
            case "session":
                levels.sessions[gauge.session_id] = figure
            case _ if gauge.gauge_id == (gauge.name or ""):  # what stands there for a row without an id
                whole_event.append(figure)
    return levels._replace(event=_tightest(whole_event))


def _of_event(levels: _Levels, coming: list[_Figure]) -> _Figure:
    """Give the figure of an event without a gauge of its own, by the first rule that applies."""
    tickets = list(levels.tickets.values())
    categories = [figure for _, figure in levels.categories]
    if _all_limited(coming):
        return _sum(coming)
    if _all_limited(tickets) and not _any_limited(categories):
        return _sum(tickets)
    if _all_limited(categories) and all(levels.above(ticket_id) for ticket_id in levels.tickets):
        return _sum(categories)
    unlimited = [ticket_id for ticket_id, figure in levels.tickets.items() if figure.unlimited]
    return _Figure(unlimited=any(not _any_limited(levels.above(ticket_id)) for ticket_id in unlimited))


def _of_ticket(ticket: Ticket, levels: _Levels) -> _Figure:
    """Give the tightest of the gauges that a sale of this ticket uses."""
    own = levels.tickets.get(ticket.id, _Figure())
    tightest = _tightest([own, *levels.above(ticket.id), levels.event or _Figure()])
    if tightest is not None and tightest.left is not None:
        return tightest
    return _Figure(ticket.places_total, unlimited=own.unlimited)


def _of_session(session: Session, levels: _Levels) -> _Figure:
    """Give the session's gauge, whatever it says; without one, what its quota and sales leave."""
    gauge = levels.sessions.get(session.id)
    if gauge is not None:
        return _with_total(gauge, session.places_total)
    if session.places_total is None or session.places_sold is None:
        return _Figure(session.places_total)
    return _Figure(session.places_total, max(0, session.places_total - session.places_sold))


def _tightest(figures: list[_Figure]) -> _Figure | None:
    """Give the one with the fewest places left; where none is limited, unknown before unlimited."""

    def tightness(figure: _Figure) -> tuple[bool, int, bool, bool, int]:
        unknown, untotalled = figure.left is None, figure.total is None
        return unknown, figure.left or 0, figure.unlimited, untotalled, figure.total or 0

    return min(figures, key=tightness, default=None)


def _any_limited(figures: list[_Figure]) -> bool:
    return any(figure.left is not None for figure in figures)


def _all_limited(figures: list[_Figure]) -> bool:
    return bool(figures) and all(figure.left is not None for figure in figures)


def _sum(figures: list[_Figure]) -> _Figure:
    totals = [figure.total for figure in figures if figure.total is not None]
    left = sum(figure.left for figure in figures if figure.left is not None)
    return _Figure(sum(totals) if len(totals) == len(figures) else None, left)


def _with_total(figure: _Figure, quota: int | None) -> _Figure:
    return figure if figure.total is not None else figure._replace(total=quota)


def _with(record: _Record, figure: _Figure) -> _Record:
    return replace(
        record,
        places_total=figure.total,
        places_left=figure.left,
        unlimited=figure.unlimited,
        is_full=figure.left == 0,
    )
