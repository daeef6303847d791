"""The runner's promises: never two runs at once, and a run asked for begins after the asking."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest
from conftest import LogLines, WaitedFor
from support.runner_bench import KEY, LONG_S, Bench, bench

from syncd.errors import RunCancelled, StoreError, TransportError
from syncd.model import Peer, Progress, Run, RunError
from syncd.run.runner import MOST_EVENTS, RECENT, Stopping, TooManyEvents
from syncd.threads import in_thread


def test_a_run_in_progress_is_passed_off_as_fresh() -> None:
    """A request while a run is in progress gets another one, which begins when that has ended."""

    async def scene() -> None:
        async with bench() as it:
            old = await it.busy()
            asked_at = datetime.now(UTC)
            new = it.runner.request("manual")
            assert new is not old
            assert new.state == "queued"
            assert new.id != old.id
            it.let.set()
            await it.done(new)
            assert old.finished_at
            assert new.started_at
            assert asked_at <= old.finished_at <= new.started_at

    asyncio.run(scene())


def test_ten_requests_at_once_give_ten_runs() -> None:
    """However many ask while one is in progress, one more run serves them all; the next asks anew."""

    async def scene() -> None:
        async with bench() as it:
            await it.busy()
            runs = [it.runner.request("manual") for _ in range(10)]
            assert len({id(run) for run in runs}) == 1
            it.let.set()
            await it.done(runs[0])
            assert it.began == [1, 2]
            assert it.runner.request("manual") is not runs[0]

    asyncio.run(scene())


def test_ten_requests_of_an_idle_daemon_give_eleven_runs() -> None:
    """Ten at once on an idle runner share the one that has not begun yet."""

    async def scene() -> None:
        async with bench() as it:
            runs = [it.runner.request("manual") for _ in range(10)]
            await it.done(runs[0])
            assert it.began == [1]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("requests", "full", "whole", "events"),
    [
        ([(False, ["1", "2"]), (False, ["2", "3"])], False, False, ["1", "2", "3"]),
        ([(False, ["1"]), (False, [])], False, True, ["1"]),
        ([(False, []), (False, ["1"])], False, True, ["1"]),
        ([(False, ["1"]), (True, []), (False, ["2"])], True, True, ["1", "2"]),
        ([(True, []), (False, [])], True, True, []),
        ([(True, ["1"]), (False, ["2"])], True, False, ["1", "2"]),
        ([(False, ["2", "1", "2"])], False, False, ["2", "1"]),
    ],
)
def test_a_shared_run_does_less_than_somebody_asked_for(
    requests: list[tuple[bool, list[str]]], full: bool, whole: bool, events: list[str]
) -> None:
    """It is full if any request was, and covers the union of the events, all if any named none."""

    async def scene() -> None:
        async with bench() as it:
            await it.busy()
            for wants_full, wanted in requests:
                run = it.runner.request("manual", full=wants_full, events=wanted)
            assert (run.full, run.whole, run.events) == (full, whole, events)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("requests", "accept", "accepted", "whole"),
    [
        ([(False, ["1"])], False, [], False),
        ([(True, ["1", "2", "1"])], True, ["1", "2"], False),
        ([(True, [])], True, [], True),
        ([(True, ["1"]), (False, ["2"])], True, ["1"], False),
        ([(False, ["2"]), (True, ["1"])], True, ["1"], False),
        ([(True, ["1"]), (False, [])], True, ["1"], True),
        ([(False, []), (True, ["1"])], True, ["1"], True),
        ([(True, ["1"]), (True, ["2", "1"])], True, ["1", "2"], False),
        ([(True, ["1"]), (True, [])], True, [], True),
        ([(True, []), (True, ["1"])], True, [], True),
    ],
)
def test_consent_to_one_event_is_taken_for_all(
    requests: list[tuple[bool, list[str]]], accept: bool, accepted: list[str], whole: bool
) -> None:
    """A shared run accepts what those asked for who accept, all if one of these named none; no more."""

    async def scene() -> None:
        async with bench() as it:
            await it.busy()
            for accepts, wanted in requests:
                run = it.runner.request("manual", accept=accepts, events=wanted)
            assert (run.accept, run.accepted, run.whole) == (accept, accepted, whole)

    asyncio.run(scene())


def test_a_run_by_hand_is_skipped_as_a_scheduled_one() -> None:
    """A request by hand makes a queued scheduled run its own, with its name; not the other way round."""

    async def scene() -> None:
        peer = Peer(uid=0, user="root", pid=1)
        async with bench() as it:
            await it.busy()
            run = it.runner.request("interval")
            assert it.runner.request("manual", requested_by=peer) is run
            assert (run.trigger, run.requested_by) == ("manual", peer)
            assert it.runner.request("interval") is run
            assert (run.trigger, run.requested_by) == ("manual", peer)

    asyncio.run(scene())


def test_joining_waits_for_a_run_too_many() -> None:
    """With join the run in progress is returned; a new one where none is, or where its end goes on record."""

    async def scene() -> None:
        async with bench() as it:
            old = await it.busy()
            assert it.runner.request("manual", join=True) is old
            assert it.runner.queued is None
            it.may_record.clear()
            it.let.set()
            while old.state == "running":  # noqa: ASYNC110  # as an outsider would see it
                await asyncio.sleep(0)
            assert it.runner.current is old
            new = it.runner.request("manual", join=True)
            assert new is not old
            it.may_record.set()
            await it.done(new)
            assert it.runner.current is None
            assert it.runner.request("manual", join=True) not in (old, new)

    asyncio.run(scene())


def test_a_slow_end_lets_two_runs_overlap() -> None:
    """The next run does not begin before the last one's end is on record."""

    async def scene() -> None:
        async with bench() as it:
            hold = asyncio.Event()

            async def conclude() -> None:
                await hold.wait()

            it.conclude = conclude
            first = it.runner.request("interval")
            await it.begun(first)
            second = it.runner.request("manual")
            for _ in range(20):
                await asyncio.sleep(0)
            assert it.began == [1]
            hold.set()
            await it.done(second)
            assert it.began == [1, 2]

    asyncio.run(scene())


def test_a_run_that_hangs_hangs_the_daemon() -> None:
    """After the time-out it is failed, says so, and the next run is carried out."""

    async def scene() -> None:
        async with bench(timedelta(milliseconds=20)) as it:
            it.let.clear()
            run = await it.done(it.runner.request("interval"))
            assert run.outcome == "failed"
            assert [(error.subject, error.kind) for error in run.errors] == [("run", "timeout")]
            assert "0.02 s" in run.errors[0].message
            it.let.set()
            it.runner.timeout = timedelta(seconds=LONG_S)
            assert (await it.done(it.runner.request("interval"))).outcome == "ok"

    asyncio.run(scene())


@pytest.mark.parametrize(("hung_s", "told"), [(4.9, ""), (40.2, "40 s more: the database did not answer")])
def test_a_run_ends_late_and_nobody_is_told_why(hung_s: float, told: str) -> None:
    """A run that ends long after its time-out says what it waited for: only a thread cannot be cut."""

    async def scene() -> None:
        clock = WaitedFor()
        let = threading.Event()

        def hang() -> None:
            assert let.wait(LONG_S)
            clock.now_s += 0.02 + hung_s

        async def work(run: Run) -> None:
            hanging = asyncio.ensure_future(in_thread(hang))
            try:
                await asyncio.shield(hanging)
            except asyncio.CancelledError:  # of the time-out
                let.set()
                await hanging
                raise

        async with bench(timedelta(milliseconds=20), clock) as it:
            it.instead = work
            (error,) = (await it.done(it.runner.request("interval"))).errors
            assert error.kind == "timeout"
            assert told in error.message
            assert ("more" in error.message) is bool(told)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("trouble", "kind", "status"),
    [
        (StoreError(f"no disk {KEY}"), "database", None),
        (TransportError(f"no answer to {KEY}", status=503), "transport", 503),
        (ZeroDivisionError(f"a bug near {KEY}"), "internal", None),
        (TimeoutError(f"another's, near {KEY}"), "internal", None),  # the run itself had time left
    ],
)
def test_a_failure_or_a_bug_ends_the_runner_or_shows_the_key(
    log_lines: LogLines, trouble: Exception, kind: str, status: int | None
) -> None:
    """Both make that run failed and nothing more; the key is in no message, the status beside it."""

    async def scene() -> None:
        async with bench() as it:
            it.trouble = trouble
            run = await it.done(it.runner.request("interval"))
            assert run.outcome == "failed"
            (error,) = run.errors
            assert (error.subject, error.kind, error.status) == ("run", kind, status)
            assert KEY not in error.message
            assert "***" in error.message
            assert it.ended == [(run.id, "failed", error)]
            it.trouble = None
            assert (await it.done(it.runner.request("interval"))).outcome == "ok"
            assert not it.runner.task.done()

    asyncio.run(scene())
    assert (f"unexpected {type(trouble).__name__}" in log_lines.text) == (kind == "internal")


@pytest.mark.parametrize(
    ("synced", "errors", "outcome"), [(0, 0, "ok"), (2, 0, "ok"), (2, 1, "partial"), (0, 1, "failed")]
)
def test_an_outcome_is_better_or_worse_than_it_was(synced: int, errors: int, outcome: str) -> None:
    """Partial: some failed; failed: nothing was synced and something failed; an empty account is ok."""

    async def scene() -> None:
        async with bench() as it:
            run = await it.busy()
            run.synced = synced
            for _ in range(errors):
                run.add_error(RunError("event 1", "malformed", "half an answer"))
            it.let.set()
            assert (await it.done(run)).outcome == outcome

    asyncio.run(scene())


def test_a_stop_waits_for_the_work_or_leaves_runs_open() -> None:
    """The run in progress and the queued one are cancelled, told as ended, and nothing more is taken on."""

    async def scene() -> None:
        it = Bench(timedelta(seconds=LONG_S))
        it.runner.serve()
        running = await it.busy()
        queued = it.runner.request("manual")
        waiting = [asyncio.create_task(it.done(run)) for run in (running, queued)]
        await asyncio.sleep(0)
        assert await it.runner.stop(LONG_S)
        for run in await asyncio.gather(*waiting):
            assert (run.state, run.outcome) == ("done", "cancelled")
        assert [error.kind for error in running.errors] == ["cancelled"]
        assert it.ended == [(running.id, "cancelled", None)]
        assert it.began == [running.id]
        assert it.runner.queued is None
        with pytest.raises(Stopping):
            it.runner.request("manual")
        with pytest.raises(Stopping):
            it.runner.request("manual", join=True)

    asyncio.run(scene())


def test_a_run_that_is_not_to_be_counts_as_failed() -> None:
    """Work that finds out that the run is not wanted cancels it, and says why."""

    async def scene() -> None:
        async with bench() as it:
            it.trouble = RunCancelled("scheduled runs are paused")
            run = await it.done(it.runner.request("interval"))
            assert (run.outcome, [error.kind for error in run.errors]) == ("cancelled", ["cancelled"])

    asyncio.run(scene())


def test_who_ends_the_task_stops_nothing() -> None:
    """As `syncd once` does on a signal: what is seen to at a run's end knows that all stops."""

    async def scene() -> None:
        async with bench() as it:
            run = await it.busy()
            it.runner.task.cancel()
            await it.done(run)
            assert (run.outcome, it.runner.is_stopping) == ("cancelled", True)

    asyncio.run(scene())


def test_who_ends_the_task_before_it_began_waits_for_ever() -> None:
    """A run that was asked for before ends as cancelled, and whoever waits for it hears so."""

    async def scene() -> None:
        it = Bench(timedelta(seconds=LONG_S))
        run = it.runner.request("once")
        it.runner.serve()
        it.runner.task.cancel()
        await it.done(run)
        assert (run.outcome, it.began) == ("cancelled", [])

    asyncio.run(scene())


def test_a_stop_that_is_announced_takes_runs_on() -> None:
    """From the first word of a stop on no request is taken, while the run in progress goes on."""

    async def scene() -> None:
        async with bench() as it:
            run = await it.busy()
            it.runner.is_stopping = True
            for join in (False, True):
                with pytest.raises(Stopping):
                    it.runner.request("manual", join=join)
            it.let.set()
            assert (await it.done(run)).outcome == "ok"

    asyncio.run(scene())


def test_a_stopped_runner_takes_runs_on() -> None:
    """After a stop, which nobody need have announced, none is taken that would never begin."""

    async def scene() -> None:
        async with bench() as it:
            assert await it.runner.stop(LONG_S)
            with pytest.raises(Stopping):
                it.runner.request("manual")

    asyncio.run(scene())


def test_a_stop_cuts_the_record_of_an_end_short() -> None:
    """A run that ended by itself, and is being recorded as the stop comes, is over when it is recorded."""

    async def scene() -> None:
        async with bench() as it:
            it.may_record.clear()
            run = it.runner.request("manual")
            while run.state != "done":  # noqa: ASYNC110  # each turn of the loop
                await asyncio.sleep(0)
            stopping = asyncio.create_task(it.runner.stop(LONG_S))
            for _ in range(5):
                await asyncio.sleep(0)
            assert it.runner.current is run
            it.may_record.set()
            assert await stopping
            assert it.ended == [(1, "ok", None)]

    asyncio.run(scene())


@pytest.mark.parametrize("cut", ["in its work", "at its end"])
def test_a_stop_waits_for_what_a_run_left(cut: str) -> None:
    """What a run left may wait for others: a stop lets it, for a moment, wherever it cuts the run."""

    async def scene() -> None:
        at_its_end = asyncio.Event()

        async def conclude() -> None:
            at_its_end.set()
            await asyncio.Event().wait()

        async with bench() as it:
            it.conclude = conclude
            run = await it.busy()
            if cut == "at its end":
                it.let.set()
                await at_its_end.wait()
            assert await it.runner.stop(LONG_S / 2)
            assert run.state == "done"

    asyncio.run(scene())


def test_a_stop_is_lost_in_a_run_that_fails() -> None:
    """A stop also ends a run that just fails, and waits for its other requests to end: no run follows.

    A group of tasks that ends for an error keeps a cancellation that comes meanwhile to itself.
    """

    async def scene() -> None:
        begun, go_on = threading.Event(), threading.Event()

        def held_up() -> None:
            begun.set()
            assert go_on.wait(LONG_S)

        async def fail() -> None:
            assert await asyncio.to_thread(begun.wait, LONG_S)
            raise StoreError("locked")

        async def work(_: Run) -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(in_thread(held_up))
                    failing.append(group.create_task(fail()))
            except ExceptionGroup as faults:
                raise faults.exceptions[0] from None

        failing: list[asyncio.Task[None]] = []
        async with bench() as it:
            it.instead = work
            run = it.runner.request("manual")
            while not (failing and failing[0].done()):  # noqa: ASYNC110  # each turn of the loop
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # the group knows
            stopping = asyncio.create_task(it.runner.stop(LONG_S / 2))
            await asyncio.sleep(0)
            go_on.set()
            assert await stopping
            assert (run.state, [error.kind for error in run.errors]) == ("done", ["database"])

    asyncio.run(scene())


def test_a_stop_waits_for_ever() -> None:
    """Work that cannot be cancelled within the grace is reported, not waited for."""

    async def scene() -> None:
        hold = asyncio.Event()

        async def conclude() -> None:
            await hold.wait()

        it = Bench(timedelta(seconds=LONG_S))
        it.conclude = conclude
        it.runner.serve()
        await it.busy()
        assert not await it.runner.stop(0.01)
        hold.set()
        await asyncio.wait([it.runner.task])

    asyncio.run(scene())


async def watched(it: Bench, run: Run) -> list[Progress | None]:
    return [step async for step in it.runner.watch(run, LONG_S)]


def test_a_watcher_misses_steps_or_never_ends() -> None:
    """Whoever watches sees each step in order, also the last ones of a quick run, and then the end."""

    async def scene() -> None:
        async with bench() as it:
            await it.busy()
            it.steps = 5
            run = it.runner.request("manual")
            watching = [asyncio.create_task(watched(it, run)) for _ in range(2)]
            await asyncio.sleep(0)
            it.let.set()
            for steps in await asyncio.gather(*watching):
                assert steps == [Progress("events", done, 5) for done in range(1, 6)]

    asyncio.run(scene())


def test_a_late_watcher_sees_nothing_or_waits_for_ever() -> None:
    """In mid-run it begins with the step in progress; after the end there is nothing to wait for."""

    async def scene() -> None:
        async with bench() as it:
            it.steps = 3
            run = await it.busy()
            watching = asyncio.create_task(watched(it, run))
            await asyncio.sleep(0)
            it.let.set()
            assert await watching == [Progress("events", 3, 3)]
            await it.done(run)
            assert await watched(it, run) == []
            assert not any(entry.watchers for entry in it.runner._recent)

    asyncio.run(scene())


def test_a_silent_connection_cannot_be_told_from_a_dead_one() -> None:
    """While nothing happens the watcher gets a sign of life, and a step is not lost by it."""

    async def scene() -> None:
        async with bench() as it:
            run = await it.busy()
            steps = it.runner.watch(run, 0.001)
            assert [await anext(steps), await anext(steps)] == [None, None]
            run.progress = Progress("events", 1, 1)
            it.runner.advance(run)
            it.let.set()
            assert Progress("events", 1, 1) in [step async for step in steps]

    asyncio.run(scene())


def test_waiting_ends_the_run_or_outlasts_the_time() -> None:
    """When the time is over the waiting ends and the run goes on; an ended run is not waited for."""

    async def scene() -> None:
        async with bench() as it:
            run = await it.busy()
            await it.runner.wait(run, 0.001)
            assert run.state == "running"
            it.let.set()
            await it.done(run)
            await it.runner.wait(run, LONG_S)

    asyncio.run(scene())


def test_a_run_is_lost_with_its_first_id() -> None:
    """Before it is on record a run has an id of its own; by that it is found afterwards too."""

    async def scene() -> None:
        async with bench() as it:
            await it.busy()
            run = it.runner.request("manual")
            first = run.id
            assert first < 0
            assert it.runner.find(first) is run
            it.let.set()
            await it.done(run)
            assert run.id == 2
            assert it.runner.find(first) is it.runner.find(2) is run
            another = it.runner.request("manual")
            assert another.id not in (first, 2)
            await it.done(another)

    asyncio.run(scene())


def test_times_of_a_run_are_read_off_another_clock() -> None:
    """Beginning, end, duration and deadline are those of the clock that was handed in."""

    async def scene() -> None:
        clock = WaitedFor()
        async with bench(clock=clock) as it:
            clock.now_s = 86_400
            run = await it.busy()
            assert run.started_at
            assert run.started_at - datetime.now(UTC) > timedelta(hours=23)
            clock.now_s += LONG_S + 5
            assert it.runner.overdue_s() == 5
            it.let.set()
            await it.done(run)
            assert run.finished_at
            assert run.finished_at - run.started_at >= timedelta(seconds=LONG_S + 5)
            assert run.duration_s == LONG_S + 5

    asyncio.run(scene())


def test_the_runs_of_a_year_stay_in_memory() -> None:
    """The latest runs can be found, the older ones are forgotten, and so is who waited for them."""

    async def scene() -> None:
        async with bench() as it:
            for _ in range(RECENT + 3):
                await it.done(it.runner.request("interval"))
            assert it.runner.find(3) is None
            found = it.runner.find(4)
            assert found
            assert found.id == 4
            assert len(it.runner._recent) == RECENT

    asyncio.run(scene())


def ids(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]


@pytest.mark.parametrize("accept", [False, True])
def test_a_run_is_asked_for_ever_more_events(*, accept: bool) -> None:
    """Who names more events than a run takes, alone or with those before, is refused and told what to do."""

    async def main() -> None:
        async with bench() as it:
            with pytest.raises(
                TooManyEvents, match=f"{MOST_EVENTS + 1} events are named.*name fewer, or none"
            ):
                it.runner.request("manual", events=ids(0, MOST_EVENTS + 1), accept=accept)
            assert it.runner.queued is None
            await it.busy()
            queued = it.runner.request("manual", events=ids(0, MOST_EVENTS) * 3, accept=accept)
            with pytest.raises(
                TooManyEvents, match=f"queued run has {MOST_EVENTS} events.*ask again once it has"
            ):
                it.runner.request("manual", events=ids(1, MOST_EVENTS + 1), accept=accept)
            assert (queued.events, queued.whole) == (ids(0, MOST_EVENTS), False)
            assert len(queued.accepted) == MOST_EVENTS * accept
            assert it.runner.request("manual", events=ids(7, 9), accept=accept) is queued
            assert it.runner.request("manual") is queued
            assert queued.whole
            assert len(queued.events) == MOST_EVENTS
            it.let.set()
            await it.done(queued)
            assert it.runner.request("manual", events=ids(1, MOST_EVENTS + 1)) is not queued

    asyncio.run(main())
