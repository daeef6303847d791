"""What happens on the stand-in's account while a demo runs: worth a look in its first minute, and for hours.

Each event fills up, loses places again, and so on. One event, which has the fewest places left at the start,
sells out and opens again every minute, at known times.
"""

import random

from syncd.standin.server import StandIn, drip, status, truncated
from syncd.standin.world import Row, number

STEP_S = 1.0
CYCLE = 60
"""So many steps, a minute: who tries the demo sees in it what syncd is for."""
SOLD_OUT_AT, OPEN_AT = 15, 40
"""After the first table was read; and late enough that a run every ten seconds has seen it."""
GIVEN_BACK = 3
EDIT_EVERY, FAULT_EVERY, END_EVERY = 25, 90, 300
"""In steps: something changes in between sales, a run in nine meets a fault, an event is over."""
TRADES = 0.5
"""Of the steps, those with a sale or a refund elsewhere: each of six events has one in about ten seconds."""
AGAINST_THE_TIDE = 0.2
"""Of the trades, refunds while an event fills up, and sales while it empties."""

FAULTS = (
    ("*", status(503), "Billetweb will answer once with status 503."),
    ("*", drip(1), "Billetweb will be slow once."),
    ("/event/*/avail", truncated, "Billetweb will break off one answer in the middle."),
)


class Life:
    """The life of an account, the same for the same stand-in and seed. `star` sells out every minute."""

    def __init__(self, standin: StandIn, *, seed: int) -> None:
        self._standin = standin
        self._random = random.Random(seed)  # noqa: S311  # to be repeatable is its point
        self._steps = 0
        self._down_to: dict[str, int] = {}
        self.star = min(filter(self._gauge, standin.live()), key=self._left)

    def step(self) -> str:
        """Let a step's time pass, and return a sentence where a fault is planned, else ""."""
        with self._standin.lock:
            self._steps += 1
            self._shine(self._steps % CYCLE)
            others = [event_id for event_id in self._standin.live() if event_id != self.star]
            if others and self._random.random() < TRADES:
                self._trade(self._random.choice(others))
            if self._steps % EDIT_EVERY == 0:
                self._standin.edit()
            if others and self._steps % END_EVERY == 0:
                self._standin.end(min(others, key=lambda each: str(self._standin.events[each].row["start"])))
                self._standin.publish_another()
            return self._plan_fault() if self._steps % FAULT_EVERY == 0 else ""

    def _plan_fault(self) -> str:
        """Plan a passing fault: a retry heals it, or it makes one event fail for one run."""
        path, fault, sentence = self._random.choice(FAULTS)
        self._standin.fail(path, fault)
        return sentence

    def _shine(self, at: int) -> None:
        if at == SOLD_OUT_AT:
            self._standin.sell(self.star, self._left(self.star))
        elif at == OPEN_AT:
            self._standin.refund(self.star, GIVEN_BACK)

    def _trade(self, event_id: str) -> None:
        """Sell or refund; whatever is sold out is given back by and by, until half of it is there again."""
        sold = self._standin.events[event_id].sold.total
        empties = event_id in self._down_to
        refunds = empties != (self._random.random() < AGAINST_THE_TIDE)
        places = self._random.choice((1, 1, 2, 2, 3, 4))
        moved = (self._standin.refund if refunds else self._standin.sell)(event_id, places)
        if not empties and not refunds and moved < places:
            self._down_to[event_id] = sold() // 2
        elif empties and sold() <= self._down_to[event_id]:
            del self._down_to[event_id]

    def _gauge(self, event_id: str) -> Row | None:
        """Return the gauge of an event as a whole, None where it has none."""
        gauges = self._standin.events[event_id].gauges
        return next((one for one in gauges if one["type"] == "event" and not one.get("id")), None)

    def _left(self, event_id: str) -> int:
        gauge = self._gauge(event_id)
        return number(gauge["avail"] if gauge else None) or 0
