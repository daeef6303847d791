"""The life of the demo's account: something to see in its first minute, and an hour later."""

from datetime import UTC, datetime

import pytest

from syncd.standin.life import CYCLE, END_EVERY, FAULT_EVERY, OPEN_AT, SOLD_OUT_AT, Life
from syncd.standin.server import StandIn
from syncd.standin.world import PARIS, WALL

HOUR = 3600
STAR = "900006"


def left(standin: StandIn, event_id: str) -> int:
    return int(next(gauge["avail"] for gauge in standin.events[event_id].gauges if gauge["type"] == "event"))


@pytest.mark.slow("an hour of the demo")
def test_demo_is_sold_out_for_good() -> None:
    """In every minute of an hour one event sells out and opens again, and in five all have news."""
    standin = StandIn(seed=1)
    life = Life(standin, seed=1)
    assert life.star == STAR
    sold: dict[str, set[int]] = {}
    for step in range(1, HOUR + 1):
        life.step()
        if step % CYCLE in (SOLD_OUT_AT, OPEN_AT):
            assert (left(standin, STAR) == 0) == (step % CYCLE == SOLD_OUT_AT)
        if step % END_EVERY == 0:  # one is over, and another published
            assert [key for key, seen in sold.items() if len(seen) < 3 and key != STAR] == []
            sold.clear()
        for event_id in standin.live():
            sold.setdefault(event_id, set()).add(standin.events[event_id].sold.total())


@pytest.mark.slow("many days of sales")
def test_demo_shows_what_is_long_over() -> None:
    """As many events are coming after an hour as at the start, others among them; each is yet to begin."""
    standin = StandIn(seed=1)
    life, before = Life(standin, seed=1), standin.live()
    for _ in range(HOUR):
        life.step()
    after = standin.live()
    assert len(after) == len(before) == 6
    assert STAR in after
    assert not set(before) & set(after) - {STAR}
    now = datetime.now(UTC).astimezone(PARIS).strftime(WALL)
    assert min(str(standin.events[event_id].row["start"]) for event_id in after) > now


@pytest.mark.parametrize("events", [1, 2, 10])
def test_small_account_has_no_life(events: int) -> None:
    """Whatever the number of events, one sells out in the first minute, and faults come when they should."""
    standin = StandIn(events=events)
    life = Life(standin, seed=3)
    told = [life.step() for _ in range(2 * FAULT_EVERY)]
    assert [step for step, sentence in enumerate(told, 1) if sentence] == [FAULT_EVERY, 2 * FAULT_EVERY]
    assert len(standin.live()) == min(events, 9)
    for _ in range(CYCLE - 2 * FAULT_EVERY % CYCLE + SOLD_OUT_AT):
        life.step()
    assert left(standin, life.star) == 0
