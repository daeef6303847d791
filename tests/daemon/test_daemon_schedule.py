"""Runs that happen by themselves: the real daemon in this process, with an interval of an instant."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs
from support.faults import hang
from support.processes import PATIENCE_S, short_folder, write_config

from syncd.config import Config, load
from syncd.daemon.daemon import Daemon
from syncd.daemon.notify import Notifier
from syncd.errors import ConfigError
from syncd.log.redact import Redactor
from syncd.model import Peer, Run
from syncd.standin.server import StandIn, unauthorized

pytestmark = pytest.mark.usefixtures("log_lines", "instant_retries")
INTERVAL = timedelta(milliseconds=150)
BY_HAND = Peer(uid=0, user="root", pid=1)


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=1)


@pytest.fixture
def settings(base_url: str) -> Iterator[Callable[[], Config]]:
    """Return a reader of settings whose interval is shorter than any file may ask for."""
    with short_folder() as folder:
        path = write_config(folder, base_url, {"sync": {"run_on_start": False}, "log": {"level": "ERROR"}})

        def read() -> Config:
            config = load(path, {})
            return structs.replace(config, sync=structs.replace(config.sync, interval=INTERVAL))

        yield read


class Living:
    """A daemon at work, and the runs that have ended in it."""

    def __init__(self, load_config: Callable[[], Config], **sync: Any) -> None:
        config = load_config()
        config = structs.replace(config, sync=structs.replace(config.sync, **sync))
        self.runs: list[Run] = []
        self.daemon = Daemon(
            config,
            load_config=load_config,
            redact=Redactor(),
            notifier=Notifier(None),
            on_run=self.runs.append,
        )

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition, on the loop."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for is in the daemon
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def at_work(self) -> Any:
        """Run until the block ends, then stop as SIGTERM does; the exit code must be 0."""
        task = asyncio.create_task(self.daemon.run())
        await self.until(lambda: task.done() or self.daemon.account.status().next_run_at)
        try:
            yield self.daemon
        finally:
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            assert await task == 0


async def by_request(daemon: Daemon) -> Run:
    """Return the run that serves a request made by hand."""
    return await daemon.account.request(requested_by=BY_HAND)


def test_nothing_runs_by_itself(settings: Callable[[], Config]) -> None:
    """Slot after slot has its run, the first only after an interval where no start-up run is wanted."""

    async def scenario() -> None:
        living, began_at = Living(settings), datetime.now(UTC)
        async with living.at_work() as daemon:
            assert daemon.account.status().last_run is None
            await living.until(lambda: len(living.runs) >= 3)
        assert {run.trigger for run in living.runs} == {"interval"}
        assert [run.id for run in living.runs[:3]] == [1, 2, 3]
        for number, run in enumerate(living.runs, 1):  # a slow machine begins late, but none too early
            assert run.started_at
            assert run.started_at >= began_at + number * INTERVAL

    asyncio.run(scenario())


def test_first_run_is_an_interval_away(settings: Callable[[], Config]) -> None:
    """By default the daemon begins with a run of its own accord."""

    async def scenario() -> None:
        living = Living(settings, run_on_start=True, interval=timedelta(hours=1))
        async with living.at_work():
            await living.until(lambda: living.runs)
        assert living.runs[0].trigger == "startup"

    asyncio.run(scenario())


def test_late_slot_after_restart(settings: Callable[[], Config]) -> None:
    """Without a start-up run the slots go on in step with the last success, not with the start."""

    async def finished_at() -> datetime:
        living = Living(settings, run_on_start=True, interval=timedelta(hours=1))
        async with living.at_work():
            await living.until(lambda: living.runs)
        assert living.runs[0].finished_at
        return living.runs[0].finished_at

    async def next_run_at() -> datetime | None:
        async with Living(settings, interval=timedelta(hours=1)).at_work() as daemon:
            at: datetime | None = daemon.account.status().next_run_at
            return at

    before = asyncio.run(finished_at())  # a daemon and its loop end together
    assert asyncio.run(next_run_at()) == before + timedelta(hours=1)


@pytest.mark.slow("waits for seconds")
def test_slow_run_is_joined_by_a_second(settings: Callable[[], Config], standin: StandIn) -> None:
    """Slots that come while a run is in progress, by whomever it was asked for, are skipped and counted."""

    async def scenario(by_hand: bool) -> None:
        standin.fail("*", hang, times=None)
        before = len(standin.requests)
        # Who asks by hand must come before the first slot, on a busy machine too.
        living = Living(settings, interval=timedelta(seconds=1)) if by_hand else Living(settings)
        async with living.at_work() as daemon:
            if by_hand:
                await by_request(daemon)
            reason = "busy" if by_hand else "overrun"
            await living.until(lambda: daemon.account.status().slots_skipped.get(reason, 0) >= 2)
            assert len(standin.requests) == before + 1
            assert daemon.account.status().queued_runs == 0
            standin.heal()
            await living.until(lambda: len(living.runs) >= 2)  # and then they go on

    for by_hand in (False, True):
        asyncio.run(scenario(by_hand))


def test_pause_runs_on(settings: Callable[[], Config], standin: StandIn) -> None:
    """While paused the slots go by, counted; run-now works; after resume they are used again."""

    async def scenario() -> None:
        living = Living(settings)
        async with living.at_work() as daemon:
            await daemon.account.pause(paused=True)
            await living.until(lambda: daemon.account.status().slots_skipped.get("paused", 0) >= 2)
            assert living.runs == []
            assert standin.requests == []
            run = await by_request(daemon)
            await daemon.account.runner.wait(run, PATIENCE_S)
            assert run.outcome == "ok"
            await daemon.account.pause(paused=False)
            await living.until(lambda: "interval" in {run.trigger for run in living.runs})

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["reload", "run-now"])
def test_refused_key_is_tried_for_ever(settings: Callable[[], Config], standin: StandIn, way: str) -> None:
    """After refused credentials no slot asks again, which could lock the account, until somebody says so."""

    async def scenario() -> None:
        standin.fail("*", unauthorized, times=None)
        living = Living(settings)
        async with living.at_work() as daemon:
            await living.until(lambda: daemon.account.status().slots_skipped.get("credentials", 0) >= 2)
            status = daemon.account.status()
            assert (status.health, len(standin.requests)) == ("failing", 1)
            assert status.health_reason == "Billetweb refused the user or the key"
            standin.heal()
            if way == "reload":
                await daemon.reload()
            else:
                run = await by_request(daemon)
                await daemon.account.runner.wait(run, PATIENCE_S)
                assert run.outcome == "ok"
            before = len(living.runs)
            await living.until(lambda: len(living.runs) > before)
            assert (living.runs[-1].trigger, living.runs[-1].outcome) == ("interval", "ok")
            assert daemon.account.status().health == "ok"

    asyncio.run(scenario())


@pytest.mark.parametrize("part", ["runner", "schedule"])
def test_crash_of_a_part_leaves_a_zombie(settings: Callable[[], Config], part: str) -> None:
    """When what carries runs out or plans them dies, the process ends with 1, and systemd starts it again."""

    async def scenario() -> int:
        living = Living(settings)
        task = asyncio.create_task(living.daemon.run())
        await living.until(lambda: living.daemon.account.status().next_run_at)
        account = living.daemon.account
        (account.runner if part == "runner" else account.schedule).task.cancel()
        return await asyncio.wait_for(task, PATIENCE_S)

    assert asyncio.run(scenario()) == 1


def test_socket_of_a_failed_start_stays(settings: Callable[[], Config]) -> None:
    """A start that ends in an error leaves neither a socket nor a lock behind."""

    async def start() -> int:
        return await Living(settings).daemon.run()

    async def start_and_stop() -> bool:
        async with Living(settings).at_work():
            return path.is_socket()

    path = settings().control.socket
    path.touch()  # in the way, and not a socket
    with pytest.raises(ConfigError, match="is there and no socket"):
        asyncio.run(start())
    assert path.is_file()
    path.unlink()
    assert asyncio.run(start_and_stop())
    assert not path.exists()
