"""No fault and no history of an account makes the mirror wrong: properties over lives of small accounts.

A life is an account, some rounds (things happen upstream, faults are planned, a run), and an end in health.
After each run `Truth` judges what it did to the mirror; at the end the mirror equals the account.

Three sorts of lives are played: those of `lives.py`, which went wrong once; new ones, by the seed that a
failed run tells, in CI some hundreds; and, with `--everything`, a thousand that are the same each time.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from conftest import MakeConfig, Rig, WaitedFor, mirrors, rig_on
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from loguru import logger
from msgspec import structs
from support import real_databases as databases
from support.account import (
    ABOUT_PEOPLE,
    FAULTS,
    LIES,
    MAX_BODY_BYTES,
    PLACES_SOLD,
    POOL,
    Account,
    Happening,
    Life,
    Planned,
    Round,
)
from support.lives import ONCE_WRONG
from support.truth import BOOKKEEPING, Truth, is_over
from support.witness import ATTENDEES, EVENTS, Told, Witness

from syncd.billetweb import body as answers
from syncd.billetweb import decode
from syncd.database import schema
from syncd.model import AttendeeMode, Run
from syncd.run import attendees
from syncd.standin.server import php_json
from syncd.standin.world import Row

NEW = int(os.environ.get("SYNCD_EXAMPLES", "12"))
"""How many new lives in all."""
FIXED = 200 if databases.is_postgresql() else 1000
MOST_AT_ONCE = 25
"""So many lives a test plays at most: those of one kind are shared out."""
LONG_S = 4000.0
"""Longer than any rest that Billetweb asks for, and than increments overlap."""
BASE = datetime(2026, 3, 2, 12, tzinfo=UTC)
"""When every life begins: time is a value, so that a life that failed is the same when it is played again."""
DAY_S = 24 * 3600.0


class Player:
    """Plays lives, one after another, against one rig."""

    def __init__(self, rig: Rig, standin: Witness) -> None:
        self._rig = rig
        self._standin = standin
        self._mode = rig.config.sync.attendees

    def play(self, life: Life) -> None:
        """Fail where a property does not hold."""
        self._forget()
        self._truth = Truth()
        account = Account(self._standin, life)
        lies_about_people = False
        for round_ in (Round([], [], "interval"), *life.rounds):
            for happening in round_.happenings:
                if happening.what == RESTART:
                    self._rig.restart()
                else:
                    account.happen(happening)
            for planned in round_.faults:
                account.plan(planned)
                lies_about_people |= planned.operation in ABOUT_PEOPLE and planned.name in LIES
            lies_about_people |= self._standin.restricted
            run = self._run(round_.run, account)
            if self._mode != "none" and run.whole and run.outcome == "ok" and not lies_about_people:
                self._assert_nobody_missed(account)
        self._standin.heal()
        self._end()
        if account.bring_back_all():
            self._end()

    def _forget(self) -> None:
        """Begin with an empty database, at the beginning of time."""
        with self._rig.account.database.begin(write=True) as connection:
            for table in schema.metadata.sorted_tables:
                connection.execute(table.delete())
        self._rig.clock.now_s = 0.0
        self._rig.restart()

    def _run(self, how: str, account: Account | None = None) -> Run:
        rig, named = self._rig, account.name(0) if account else None
        rig.clock.now_s += DAY_S if "next day" in how else LONG_S
        self._standin.now = rig.clock.now()
        self._standin.told.clear()
        match how:
            case "named" if named:
                run = rig.run("manual", events=(named,))
            case "accept one" if named:
                run = rig.run("manual", accept=True, events=(named,))
            case "accept" | "accept, next day":
                run = rig.run("manual", accept=True)
            case "by hand" | "by hand, next day":
                run = rig.run("manual", full=True)
            case "full":
                run = rig.run("interval", full=True)
            case _:
                run = rig.run("interval")
        self._truth.follow(rig, run, self._told())
        return run

    def _told(self) -> Told:
        return Told(self._standin.told, self._standin.user, self._mode)

    def _assert_nobody_missed(self, account: Account) -> None:
        """Fail where an attendee is not mirrored as it is, though an increment told of every change."""
        for event_id in self._standin.events.keys() - account.untold:
            served = self._served(event_id)
            held = self._held(event_id)
            for key in served.keys() - account.untold:
                assert held.get(key) == served[key], f"attendee {key} was missed"

    def _served(self, event_id: str) -> dict[str, Row]:
        body = php_json([*self._standin.attendees(event_id).values()])
        found = decode.decode_attendees(body, event_id=event_id, full=self._mode == "full").records
        return {key: structs.asdict(attendee) for key, attendee in found.items()}

    def _held(self, event_id: str) -> dict[str, Row]:
        """Return an event's attendees in the mirror that have not vanished."""
        return {
            key: {name: value for name, value in row.items() if name not in BOOKKEEPING}
            for (table, key), row in self._truth.rows.items()
            if table == ATTENDEES and row["event_id"] == event_id and not row["vanished_at"]
        }

    def _end(self) -> None:
        """Fail unless the mirror equals the account after some days in health.

        What is lacking of a scope among few is gone after two runs, what is most of it after a day, and most
        of the account when somebody says so of what was seen twice.
        """
        for how in ("by hand", "by hand", "by hand, next day", "accept", "accept, next day"):
            run = self._run(how)
            doubts = [error for error in run.errors if error.kind == "doubted"]
            assert len(doubts) == len(run.errors), "a healthy account is no error"
            if not doubts and self._is_equal():
                return
        pytest.fail("not equal after days in health")

    def _is_equal(self) -> bool:
        now = self._rig.clock.now()
        live = {str(event.row["id"]) for event in self._standin.events.values()} & self._told().live(now)
        over = {
            key for (table, key), row in self._truth.rows.items() if table == EVENTS and is_over(row, now)
        }
        try:
            mirrors(self._rig, self._standin, *((self._standin.events.keys() | over) - live))
        except AssertionError:
            return False
        return self._mode == "none" or all(self._held(key) == self._served(key) for key in live)


# --- lives

RUNS = ("interval", "interval", "interval", "next day", "full", "by hand", "named", "accept", "accept one")
RESTART = "restart"
EVERYDAY = (
    RESTART,
    "sell",
    "refund",
    "edit",
    "withdraw_row",
    "withdraw_most",
    "bring_back_rows",
    "move_ticket",
)
OF_THE_LIST = ("publish", "end", "begin_anew", "withdraw", "withdraw_all", "bring_back_events")
OF_PEOPLE = (
    "sell",
    "refund",
    "delete_place",
    "delete_places",
    "remove_order",
    "check_in",
    "edit_place",
    "restrict",
)
SALES = (RESTART, "sell", "refund", "edit_place")
OPERATIONS = ("/events", "avail", "tickets", "dates", "*")


class Kind(NamedTuple):
    """A kind of life: how many events are live, how many at most ended long ago, how many rounds at most.

    `share`: the part of all lives that are of this kind. `per_minute`: the ceiling of requests; where
    it is low, events are read in turn. `sales`: nothing else happens, every fault is one of increments and no
    lie, and runs are not full, so that nothing but the increments brings what was sold.
    """

    live: int
    past: int
    most: int
    mode: AttendeeMode
    share: float
    per_minute: int = 100
    sales: bool = False

    @property
    def id(self) -> str:
        """Return what a test and `lives.py` call it."""
        return f"{self.live}-{self.past}-{self.mode}-{self.per_minute}{'-sales' * self.sales}"


KINDS = (
    Kind(1, 0, 5, "none", 0.2),
    Kind(1, 0, 5, "minimal", 0.1),
    Kind(1, 0, 5, "full", 0.15),
    Kind(2, 0, 4, "none", 0.1),
    Kind(2, 0, 4, "full", 0.1),
    Kind(1, 4, 5, "none", 0.06),
    Kind(1, 4, 5, "minimal", 0.05),
    Kind(4, 0, 4, "none", 0.04),
    Kind(4, 0, 4, "full", 0.04),
    Kind(4, 0, 4, "none", 0.04, per_minute=5),
    Kind(4, 0, 4, "minimal", 0.02, per_minute=5),
    Kind(1, 1, 5, "minimal", 0.1, sales=True),
)


def lives(kind: Kind) -> SearchStrategy[Life]:
    chosen = st.lists(st.integers(0, 5), min_size=kind.live, max_size=kind.live, unique=True)
    return st.builds(Life, chosen, st.integers(0, kind.past), st.lists(rounds(kind), max_size=kind.most))


def rounds(kind: Kind) -> SearchStrategy[Round]:
    events = st.integers(0, kind.live + kind.past - 1)
    what: tuple[str, ...] = EVERYDAY + OF_THE_LIST
    paths: tuple[str, ...] = OPERATIONS
    names, how = [*FAULTS], [*RUNS]
    if kind.sales:
        what, paths, names, how = SALES, ("/attendees",), [*FAULTS.keys() - LIES], ["interval"]
    elif kind.mode != "none":
        what, paths = what + OF_PEOPLE, OPERATIONS + 2 * ABOUT_PEOPLE[:2]
    happenings = st.builds(Happening, st.sampled_from(what), events, st.integers(0, 11))
    times = st.sampled_from((1, 2, 3, 4, 6, None))
    faults = st.builds(
        Planned, st.sampled_from(sorted(names)), st.sampled_from(paths), st.none() | events, times
    )
    return st.builds(
        Round, st.lists(happenings, max_size=3), st.lists(faults, max_size=1), st.sampled_from(how)
    )


@pytest.fixture
def standin() -> Witness:
    """Return a stand-in that remembers what it told."""
    return Witness(events=POOL, attendees=PLACES_SOLD, now=BASE)


@pytest.fixture
def play(
    make_config: MakeConfig, standin: Witness, instant_retries: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Kind], Player]]:
    """Give a maker of players of lives, and log nothing meanwhile."""
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", MAX_BODY_BYTES)
    # An import in a few requests: one span of time, and all that is older.
    monkeypatch.setattr(attendees, "BEGINNING", BASE - 2 * attendees.FIRST_SPAN)
    logger.disable("syncd")
    logging.disable()
    with ExitStack() as stack:

        def make(kind: Kind) -> Player:
            config = make_config(
                billetweb__concurrency=1,
                billetweb__requests_per_minute=kind.per_minute,
                sync__attendees=kind.mode,
            )
            return Player(stack.enter_context(rig_on(config, WaitedFor(BASE))), standin)

        try:
            yield make
        finally:
            logging.disable(logging.NOTSET)
            logger.enable("syncd")


def once_wrong() -> Iterator[pytest.ParameterSet]:
    """Yield the lives of `lives.py`, each with its kind."""
    for kind in KINDS:
        for number, life in enumerate(ONCE_WRONG.get(kind.id, [])):
            yield pytest.param(kind, life, id=f"{kind.id}-{number}")


def shared_out(total: int, name: str, *marks: pytest.MarkDecorator) -> Iterator[pytest.ParameterSet]:
    """Yield a kind, the name of a part of its lives, and how many these are."""
    for kind in KINDS:
        count = math.ceil(total * kind.share)
        parts = math.ceil(count / MOST_AT_ONCE)
        for part in range(parts):
            size = count // parts + (part < count % parts)
            yield pytest.param(kind, f"{name}{part}", size, id=f"{kind.id}-{name}{part}", marks=marks)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "life"), [*once_wrong()])
def test_life_that_went_wrong_once_does_so_again(
    play: Callable[[Kind], Player], kind: Kind, life: Life
) -> None:
    """What was mended stays mended."""
    play(kind).play(life)


def test_life_that_went_wrong_once_is_of_no_kind() -> None:
    """Each life of `lives.py` is played."""
    assert ONCE_WRONG.keys() <= {kind.id for kind in KINDS}


@pytest.mark.lives
@pytest.mark.timeout(1800)  # with the search for the smallest life that fails too
@pytest.mark.parametrize(
    ("kind", "part", "count"),
    [*shared_out(NEW, "new"), *shared_out(FIXED, "fixed", pytest.mark.slow("a thousand lives"))],
)
def test_life_of_an_account_makes_its_mirror_wrong(
    play: Callable[[Kind], Player], kind: Kind, part: str, count: int, pytestconfig: pytest.Config
) -> None:
    """No run writes what it was not told or takes rows for gone too soon; in the end the mirror is right."""
    player = play(kind)
    chosen = pytestconfig.getoption("hypothesis_seed") if part.startswith("new") else "the same each time"

    @seed(f"{chosen} {kind.id} {part}")
    @settings(max_examples=count)
    @given(lives(kind))
    def plays(life: Life) -> None:
        player.play(life)

    plays()
