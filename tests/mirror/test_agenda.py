"""Who is read in a run, and what that gives for accounts of any size."""

from datetime import UTC, datetime, timedelta

import pytest
from budget_simulation import FULL_EVERY, INTERVAL, PER_MINUTE, RUN_TIMEOUT, SIZES, row, simulate, table
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from support.project import MEASURED, README

from syncd.mirror.agenda import LEAST_REQUESTS, Budget, Candidate, budget, choose, waiting

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
LARGE = pytest.mark.slow("two days of 5,000 events, three times, are simulated in ten seconds")


def candidate(name: str, minutes: int | None = 0, cost: int = 2, **reasons: bool) -> Candidate:
    """Return an event that was read so many minutes ago; None: never."""
    read_at = None if minutes is None else NOW - timedelta(minutes=minutes)
    return Candidate(id=name, cost=cost, read_at=read_at, **reasons)


def allowed(capacity: int = 100, share: int = 100) -> Budget:
    return Budget(capacity=capacity, share=share)


def of(cost: int, *, interval: timedelta = INTERVAL, per_minute: int = PER_MINUTE) -> Budget:
    return budget(
        cost, per_minute=per_minute, interval=interval, run_timeout=RUN_TIMEOUT, full_every=FULL_EVERY
    )


def test_reasons_come_after_turns() -> None:
    """The suspected are first, then those to which something happened, the new ones, and the oldest."""
    candidates = [
        candidate("young", 5),
        candidate("old", 50),
        candidate("new", None),
        candidate("sold", 1, due=True),
        candidate("suspected", 1, suspected=True),
    ]
    assert choose(candidates, allowed()) == ["suspected", "sold", "new", "old", "young"]


def test_turns_take_more_than_their_share() -> None:
    """Those without a reason stay within the share, the last one apart; those with one do not count in it."""
    turns = [candidate(f"{age}", age) for age in range(9, 0, -1)]
    candidates = [*turns, candidate("sold", due=True)]
    chosen = choose(candidates, allowed(share=5))
    assert (chosen, waiting(candidates, chosen)) == (["sold", "9", "8", "7"], 0)


def test_many_new_events_without_a_date_fill_a_run() -> None:
    """They are within the share, read before or never: one apart, which is read beside the others."""
    candidates = [candidate(f"{number}", None, dated=False) for number in range(9)]
    assert choose(candidates, allowed(share=4)) == ["0", "1", "2"]


def test_a_run_plans_more_than_it_can_send() -> None:
    """What has a reason and does not fit waits and is counted; it takes what nobody's turn needs."""
    due = [candidate(f"{n}", due=True) for n in range(5)]
    chosen = choose(due, allowed(capacity=6))
    assert (chosen, waiting(due, chosen)) == (["0", "1", "2"], 2)
    chosen = choose([candidate("turn", 99), *due], allowed(capacity=6, share=2))
    assert (chosen, waiting(due, chosen)) == (["0", "1", "turn"], 3)


def test_an_event_that_costs_more_than_all_is_never_read() -> None:
    """One event is read in any case."""
    assert choose([candidate("dear", cost=9)], allowed(capacity=3, share=3)) == ["dear"]
    assert choose([], allowed()) == []


@given(
    st.lists(
        st.tuples(st.none() | st.integers(0, 500), st.integers(1, 4), st.booleans(), st.booleans()),
        max_size=60,
    ),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_a_choice_breaks_its_budget(
    drawn: list[tuple[int | None, int, bool, bool]], capacity: int, share: int
) -> None:
    """No choice exceeds capacity but by a first event, nor the share but by the last; who waits counts."""
    candidates = {
        f"{number:03}": candidate(f"{number:03}", age, cost, due=due, suspected=suspected)
        for number, (age, cost, due, suspected) in enumerate(drawn)
    }
    chosen = choose(candidates.values(), allowed(capacity, share))
    assert len(set(chosen)) == len(chosen)
    read = [candidates[name] for name in chosen]
    assert sum(each.cost for each in read) <= capacity or len(read) == 1
    turns = [each for each in read if not (each.due or each.suspected or each.read_at is None)]
    assert sum(each.cost for each in turns[:-1]) < share
    left = [
        each
        for name, each in candidates.items()
        if name not in chosen and (each.due or each.suspected or each.read_at is None)
    ]
    assert len(left) == waiting(candidates.values(), chosen)
    assert bool(read) == bool(candidates)


def test_turns_starve_an_event() -> None:
    """However the costs lie, every event is read within the bound that the budget tells."""
    costs = {f"{number:03}": 2 + number % 3 for number in range(200)}
    limits = of(sum(costs.values()))
    read_at = {name: NOW - timedelta(days=1) for name in costs}
    rounds = limits.bound(sum(costs.values()), INTERVAL) // INTERVAL
    for turn in range(rounds):
        candidates = [Candidate(id=name, cost=cost, read_at=read_at[name]) for name, cost in costs.items()]
        for name in choose(candidates, limits):
            read_at[name] = NOW + turn * INTERVAL
    assert min(read_at.values()) >= NOW


@pytest.mark.slow("hundreds of runs are simulated")
def test_an_event_without_a_date_is_never_read_again() -> None:
    """Where not all can be read at once one of them is read in each run; the others keep their bound."""
    dated, undated = ([f"{kind}{number:03}" for number in range(300)] for kind in "du")
    read_at: dict[str, datetime | None] = dict.fromkeys([*dated, *undated])
    limits, order, runs = of(2 * len(dated)), list[str](), 400
    for turn in range(runs):
        candidates = [
            Candidate(id=key, cost=2, read_at=at, dated=key in dated) for key, at in read_at.items()
        ]
        for name in choose(candidates, limits):
            read_at[name] = NOW + turn * INTERVAL
            order.append(name)
    assert {order.count(name) for name in undated} == {1, 2}
    oldest = min(read_at[name] or NOW for name in dated)
    assert oldest >= NOW + (runs - 1) * INTERVAL - limits.bound(2 * len(dated), INTERVAL)


def test_events_that_sell_all_the_time_starve_the_others() -> None:
    """However many sell in each interval, a new event is read, and the others within the bound."""
    limits = of(10_000)
    events = {f"{number:04}": candidate(f"{number:04}", 1) for number in range(4999)} | {
        "new": candidate("new", None)
    }
    rounds = limits.bound(10_000, INTERVAL) // INTERVAL
    for turn in range(rounds):
        events |= {name: structs.replace(events[name], due=True) for name in list(events)[:300]}
        for name in choose(events.values(), limits):
            events[name] = structs.replace(events[name], due=False, read_at=NOW + turn * INTERVAL)
    assert all(event.read_at and event.read_at >= NOW for event in events.values())


@pytest.mark.parametrize(
    ("interval", "per_minute"),
    [
        (timedelta(seconds=1), 100),
        (timedelta(seconds=10), 60),
        (timedelta(days=7), 1),
        (INTERVAL, 1),
        (timedelta(minutes=1), 1),
    ],
)
def test_a_short_interval_or_a_low_ceiling_allows_nothing(interval: timedelta, per_minute: int) -> None:
    """Some requests are always allowed, and never more than run_timeout lets through; each has its bound."""
    limits = of(10_000, interval=interval, per_minute=per_minute)
    assert 1 <= limits.share <= limits.capacity
    assert min(LEAST_REQUESTS, per_minute) <= limits.capacity <= per_minute * 10
    assert interval <= limits.bound(10_000, interval) <= 10_000 * interval


@pytest.mark.parametrize("events", [*SIZES[:-1], pytest.param(SIZES[-1], marks=LARGE)])
def test_what_nobody_promised(events: int) -> None:
    """Simulated for two days: figures within their bound, sales within two runs, five requests at rest."""
    busy = simulate(events)
    slack_s = RUN_TIMEOUT.total_seconds()  # within its run an event is read sooner or later
    assert busy.oldest_s <= busy.bound_s + slack_s <= FULL_EVERY.total_seconds() + 2 * slack_s
    assert max(busy.sale_s) <= INTERVAL.total_seconds() + slack_s
    share = of(2 * events).share
    assert simulate(events, selling=0).idle_requests <= 5 + share
    untold = simulate(events, told=False)
    assert max(untold.sale_s) <= untold.bound_s + slack_s
    assert row(events) in MEASURED.splitlines()


@LARGE
def test_the_measurements_show_another_table() -> None:
    """The table of the budget beside the benchmark is what the command prints."""
    assert table() in MEASURED


def test_readme_shows_other_sizes_than_measured() -> None:
    """README's rows of the budget, with their head, are those of the whole table."""
    shown = README.partition("| live events |")[2].partition("\n\n")[0].splitlines()
    assert len(shown) > 2
    assert {f"| live events |{shown[0]}", *shown[1:]} <= {*MEASURED.splitlines()}
