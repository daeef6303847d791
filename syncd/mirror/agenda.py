"""Which events a run reads: those with a reason first, the others in turn. Pure: no I/O, no clock.

A read of an event costs two or three requests, so an account of a thousand events cannot be read whole every
15 minutes. What one cheap request shows (the list of events shows edits, the increment of attendees shows
sales and refunds) gives an event a *reason*; what no such request shows, such as a raised quota, is found
when the event's *turn* comes.
"""

import math
from collections.abc import Container, Iterable
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct

LEAST_REQUESTS = 20
"""A run may always send this many, enough for the list and half a dozen events: if the interval is very
short, only the ceiling limits it."""
USED = 0.8
"""The share of the ceiling that is planned: some requests are retried, some answers are slow."""


class Candidate(Struct, frozen=True, kw_only=True):
    """What is known of a live event before it is read.

    `cost`: requests that reading it takes. `read_at`: when it was last read or tried, None for never.
    `dated`: whether it has a date; one without comes last. `suspected`: rows of it may have vanished, which
    only a read in this run can show. `due`: something is known to have happened to it.
    """

    id: str
    cost: int
    read_at: datetime | None
    dated: bool = True
    suspected: bool = False
    due: bool = False

    @property
    def has_reason(self) -> bool:
        """Whether to read it before its turn."""
        return self.suspected or self.due or self.read_at is None


class Budget(Struct, frozen=True, kw_only=True):
    """How many requests a run may plan: `capacity` in all; for events in turn, until `share` is used up."""

    capacity: int
    share: int

    @property
    def kept(self) -> int:
        """How many of them are reserved for events in turn, however many others have a reason."""
        return max(min(self.share, self.capacity // 2), 1)

    def bound(self, cost: int, interval: timedelta) -> timedelta:
        """Return the greatest age of a figure, if `cost` requests read everything."""
        return (1 if cost <= self.share else math.ceil(cost / self.kept)) * interval


Increment = Literal["used", "not needed", "not permitted", "failed"]


class Pace(Struct, frozen=True, kw_only=True):
    """How a run of the whole account shared out its requests.

    `live`: the number of live events; `cost`: requests that reading those with a date takes; `waiting`:
    events with a reason to be read that wait for the next run; `increment`: whether the account's attendees
    showed which events sold.
    """

    budget: Budget
    live: int
    cost: int
    waiting: int = 0
    increment: Increment = "not needed"

    @property
    def in_turns(self) -> bool:
        """Whether a run reads only a part of the events."""
        return self.cost > self.budget.share

    @property
    def exceeds_a_run(self) -> bool:
        """Whether no run can read all events."""
        return self.cost > self.budget.capacity


def budget(
    cost: int, *, per_minute: int, interval: timedelta, run_timeout: timedelta, full_every: timedelta
) -> Budget:
    """Return what a run may plan in an account that `cost` requests read whole.

    Capacity is what the ceiling lets through before the next run is due, or this one times out. The share is
    what it lets through at once, or more if all turns together would otherwise exceed `full_every`.
    """
    minutes = min(interval, run_timeout) / timedelta(minutes=1)
    capacity = max(int(USED * per_minute * minutes), min(LEAST_REQUESTS, per_minute))
    turns = max(full_every // interval, 1)
    share = max(int(USED * per_minute), math.ceil(cost / turns), 1)
    return Budget(capacity=capacity, share=min(share, capacity))


def choose(candidates: Iterable[Candidate], allowed: Budget) -> list[str]:
    """Return the events that a run reads: the suspected, the due, those never read, then the oldest.

    Events with a reason leave to the others the requests that are reserved for them, if they need them. One
    event without a date is read besides: their own turns come last, and might never come. At least one event
    is read, whatever it costs.
    """
    ordered = sorted(candidates, key=_urgency)
    known = [candidate for candidate in ordered if candidate.suspected or candidate.due]
    others = [candidate for candidate in ordered if not (candidate.suspected or candidate.due)]
    chosen = fitting(known, allowed.capacity - allowed.kept)
    chosen |= fitting([candidate for candidate in others if not candidate.dated][:1], allowed.kept)
    spent, in_turn = sum(chosen.values()), 0
    for candidate in others:
        if candidate.id in chosen:
            continue
        if in_turn >= allowed.share or spent + candidate.cost > allowed.capacity:
            break
        chosen[candidate.id] = candidate.cost
        spent += candidate.cost
        in_turn += candidate.cost if candidate.read_at or not candidate.dated else 0
    left = [candidate for candidate in known if candidate.id not in chosen]
    chosen |= fitting(left, allowed.capacity - spent)
    if not chosen:
        chosen |= {candidate.id: candidate.cost for candidate in ordered[:1]}
    return [candidate.id for candidate in ordered if candidate.id in chosen]


def waiting(candidates: Iterable[Candidate], read: Container[str]) -> int:
    """Return how many events with a reason must wait for the next run, if this one reads these."""
    return sum(candidate.has_reason and candidate.id not in read for candidate in candidates)


def fitting(candidates: Iterable[Candidate], requests: int) -> dict[str, int]:
    """Return the events for which this many requests suffice, with their cost."""
    chosen: dict[str, int] = {}
    for candidate in candidates:
        if candidate.cost <= requests:
            chosen[candidate.id] = candidate.cost
            requests -= candidate.cost
    return chosen


def _urgency(candidate: Candidate) -> tuple[bool, bool, bool, float, str]:
    read_s = candidate.read_at.timestamp() if candidate.read_at else 0.0
    return (not candidate.suspected, not candidate.due, not candidate.dated, read_s, candidate.id)
