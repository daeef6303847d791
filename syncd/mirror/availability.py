"""How many places are left: gauges, tickets and sessions into the figures of an event and its parts. Pure.

A sold place uses the gauges of its tariff, its category, its session and its event at once (Billetweb help
on gauges): gauges of different levels overlap and are never added. A figure is *limited* if the places left
are known, else *unlimited* or *unknown*; only a limited one can be full.

The figures are what the public sees. A tariff is *on offer* if it is a place, is shown, and its sale has
begun and not ended; a session if it is shown and has not begun. If none is on offer, all that are places
(all that have not begun) count instead: a figure does not disappear with the end of a sale.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from syncd.model import Event, Gauge, SaleStatus, Session, Ticket

SHOWN = ("0", "1", "", None)
"""The `visibility` of tariffs that a known site shows; it hides all others. Their meaning is unknown."""
ENABLED = ("0", "", None)
"""The `disabled` of sessions that are not hidden."""
WITHIN = " > "
"""The separator between the names of a category and of one inside it, in Billetweb's own sample."""
LEVELS_MAX = 16
"""So many categories are looked for outside another, and inside: Billetweb's sample has one."""
_Record = TypeVar("_Record", Event, Ticket, Session)


class _Figure(NamedTuple):
    total: int | None = None
    left: int | None = None
    unlimited: bool = False


class _Levels(NamedTuple):
    """The gauges of one event, by what they count; and which of its tariffs are places."""

    event: _Figure | None
    sessions: dict[str, _Figure]
    categories: dict[str, list[_Figure]]  # by name: a ticket names its category only by that
    tickets: dict[str, _Figure]
    category_of: dict[str, str]  # ticket id -> name of its category
    above: dict[str, list[_Figure]]  # ticket id -> category gauges it counts in; of a name the tightest
    below: dict[str, list[str]]  # name of a category gauge -> ids of the tickets that count in it
    places: set[str]  # ids of tickets


def with_figures(
    event: Event,
    gauges: Iterable[Gauge],
    tickets: Sequence[Ticket],
    sessions: Sequence[Session],
    *,
    now: datetime,
) -> tuple[Event, list[Ticket], list[Session]]:
    """Return event, tickets and sessions with their `places_total`, `places_left`, `unlimited`, `is_full`.

    The event also gets its `sale_status`. Tickets and sessions come from `decode.py`, with their quota as
    `places_total`; one that a read lacked comes with the total of an earlier call. `now` is aware.
    """
    levels = _levels(gauges, tickets)
    counting = _counting(tickets, levels, now)
    event = _with(event, levels.event or _of_event(levels, counting, _coming(event, sessions, levels, now)))
    return (
        replace(event, sale_status=_sale_status(event, tickets, now)),
        [_with(ticket, _of_ticket(ticket, levels)) for ticket in tickets],
        [_with(session, _of_session(session, levels)) for session in sessions],
    )


def with_place(ticket: Ticket, not_places: Sequence[str]) -> Ticket:
    """Return a ticket with its `is_place`; `not_places` are ids, and names in which `*` means any text."""
    names = [name.strip().casefold() for name in (ticket.name, ticket.full_name) if name]
    is_place = not any(
        pattern == ticket.id or any(_is_like(name, pattern.strip().casefold()) for name in names)
        for pattern in not_places
    )
    return ticket if is_place == ticket.is_place else replace(ticket, is_place=is_place)


def _is_like(name: str, pattern: str) -> bool:
    """Return whether a name matches the pattern; only `*` is special."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


# --- what is on offer


def is_on_offer(ticket: Ticket, now: datetime) -> bool:
    """Return whether the public can buy a tariff at that instant, if places are left."""
    begins, ends = ticket.sale_starts_at, ticket.sale_ends_at
    return _is_public(ticket) and (begins is None or begins <= now) and (ends is None or ends > now)


def _is_public(ticket: Ticket) -> bool:
    return ticket.is_place and ticket.visibility in SHOWN


def _counting(tickets: Sequence[Ticket], levels: _Levels, now: datetime) -> dict[str, _Figure]:
    """Return the own gauges of the tariffs that count in the event's figure, by id."""
    on_offer = {ticket.id for ticket in tickets if is_on_offer(ticket, now)}
    # If no tariff is known, every gauge counts; else one whose tariff is not listed is not on offer.
    counting = on_offer or levels.places or levels.tickets.keys() - levels.category_of.keys()
    return {ticket_id: levels.tickets.get(ticket_id, _Figure()) for ticket_id in counting}


def _coming(event: Event, sessions: Sequence[Session], levels: _Levels, now: datetime) -> list[_Figure]:
    """Return the figures of the sessions that count: those on offer, else all that have not begun.

    A session without a known start has not begun.
    """
    coming = [
        session
        for session in sessions
        if event.multiple and (session.starts_at is None or session.starts_at > now)
    ]
    enabled = [session for session in coming if session.visibility in ENABLED]
    return [_of_session(session, levels) for session in enabled or coming]


def with_end(event: Event, now: datetime) -> Event:
    """Return an event of which only the list was read; if it is over, its sale has ended too."""
    is_ended = _is_over(event, now) and not event.is_full
    return replace(event, sale_status="ended") if is_ended else event


def _sale_status(event: Event, tickets: Sequence[Ticket], now: datetime) -> SaleStatus:
    if event.is_full:
        return "full"
    if _is_over(event, now):
        return "ended"
    if any(is_on_offer(ticket, now) for ticket in tickets):
        return "on_sale"
    if any(_is_public(one) and one.sale_starts_at and one.sale_starts_at > now for one in tickets):
        return "coming"
    return "ended" if tickets else "unknown"


def _is_over(event: Event, now: datetime) -> bool:
    return bool(event.end and event.end <= now)


# --- levels


def _levels(gauges: Iterable[Gauge], tickets: Sequence[Ticket]) -> _Levels:
    quotas = {ticket.id: ticket.places_total for ticket in tickets}
    category_of = {ticket.id: (ticket.category or "").strip() for ticket in tickets}
    places = {ticket.id for ticket in tickets if ticket.is_place}
    levels = _Levels(None, {}, {}, {}, category_of, {}, {}, places)
    whole_event = []
    for gauge in gauges:
        figure = _Figure(gauge.places_total, gauge.places_left, gauge.unlimited)
        match gauge.type:
            case "ticket":
                levels.tickets[gauge.gauge_id] = _with_total(figure, quotas.get(gauge.gauge_id))
            case "category":
                levels.categories.setdefault((gauge.name or "").strip(), []).append(figure)
            case "session":
                levels.sessions[gauge.session_id] = figure
            # The value for a row without an id, but also for one with an id that could not be read.
            case _ if gauge.gauge_id == (gauge.name or "") and "id" not in gauge.extra:
                # A quota beside "unlimited" limits nothing, so that an unlimited event has no total.
                whole_event.append(_Figure(unlimited=True) if figure.unlimited else figure)
    _connect(levels)
    return levels._replace(event=_tightest(whole_event))


def _connect(levels: _Levels) -> None:
    """Note which tickets count in which category gauges: in their own category's, outer and inner ones.

    By name, for to compare each ticket with each gauge would take minutes for some ten thousands of both.
    """
    tightest = {name: min(figures, key=_tightness) for name, figures in levels.categories.items() if name}
    for ticket_id, category in levels.category_of.items():
        names = {category, *_outer(category), *_inner(category)} & tightest.keys()
        levels.above[ticket_id] = [tightest[name] for name in names]
        for name in names:
            levels.below.setdefault(name, []).append(ticket_id)


def _outer(category: str) -> list[str]:
    """Return the names of the categories that a category is inside."""
    return [category[:at] for at in _separators(category)[:LEVELS_MAX]]


def _inner(category: str) -> list[str]:
    """Return the names that a category may have without outer ones."""
    return [category[at + len(WITHIN) :] for at in _separators(category)[-LEVELS_MAX:]]


def _separators(category: str) -> list[int]:
    return [found.start() for found in re.finditer(f"(?={WITHIN})", category)]  # also where two overlap


def _of_event(levels: _Levels, tickets: dict[str, _Figure], coming: list[_Figure]) -> _Figure:
    """Return the figure of an event without its own gauge, by the first rule that applies."""
    own, named = [*tickets.values()], _of_places(levels)
    categories = [figure for figures in named.values() for figure in figures]
    if _all_limited(coming):
        return _sum(coming)
    if _all_limited(own) and not _any_limited(categories):
        return _sum(own)
    if _all_limited(categories) and all(levels.above.get(ticket_id) for ticket_id in tickets):
        whole = [figures for name, figures in named.items() if not _is_inside(name, levels)]
        return _sum([figure for figures in whole for figure in figures])
    is_unlimited = any(
        figure.unlimited and not _any_limited(levels.above.get(ticket_id, []))
        for ticket_id, figure in tickets.items()
    )
    # A limited category gauge without tariffs limits something, but it is unknown what.
    is_certain = all(name in levels.below for name, figures in named.items() if _any_limited(figures))
    return _Figure(unlimited=is_unlimited and is_certain)


def _of_places(levels: _Levels) -> dict[str, list[_Figure]]:
    """Return the category gauges that count at least one place."""
    return {
        name: figures
        for name, figures in levels.categories.items()
        if name not in levels.below or not levels.places.isdisjoint(levels.below[name])
    }


def _is_inside(name: str, levels: _Levels) -> bool:
    """Whether a category is inside another with a gauge: a place in both is one place."""
    below = {levels.category_of[ticket_id] for ticket_id in levels.below.get(name, ())}
    within = [category for category in below if category == name or category.endswith(WITHIN + name)]
    outer = {other for inner in (name, *within) for other in _outer(inner)}
    return not levels.categories.keys().isdisjoint(outer - {name, ""})


def _of_ticket(ticket: Ticket, levels: _Levels) -> _Figure:
    """Return the tightest of the gauges that a sale of this ticket uses."""
    own = levels.tickets.get(ticket.id, _Figure())
    tightest = _tightest([own, *levels.above[ticket.id], levels.event or _Figure()])
    if tightest is not None and tightest.left is not None:
        return tightest
    return _Figure(ticket.places_total, unlimited=own.unlimited)


def _of_session(session: Session, levels: _Levels) -> _Figure:
    """Return the session's gauge, whatever it says; without one, its quota minus its sales."""
    gauge = levels.sessions.get(session.id)
    if gauge is not None:
        return _with_total(gauge, session.places_total)
    if session.places_total is None or session.places_sold is None:
        return _Figure(session.places_total)
    return _Figure(session.places_total, max(0, session.places_total - session.places_sold))


def _tightest(figures: list[_Figure]) -> _Figure | None:
    """Return the figure with the fewest places left; if none is limited, unknown before unlimited."""
    return min(figures, key=_tightness, default=None)


def _tightness(figure: _Figure) -> tuple[bool, int, bool, bool, int]:
    unknown, untotalled = figure.left is None, figure.total is None
    return unknown, figure.left or 0, figure.unlimited, untotalled, figure.total or 0


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
