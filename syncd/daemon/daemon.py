"""The daemon's life: start, serve, stop. Wires the account, the control server and systemd.

Everything happens on one event loop; decoding and database work run in threads. A dead part ends the
process, so that systemd restarts it; a failed run is only an event and a status.
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from loguru import logger
from msgspec import structs

from syncd.account.account import Account
from syncd.account.status import StatusAfter, after
from syncd.config import Config, differing
from syncd.control.api import application
from syncd.control.peers import connections_at_most
from syncd.control.server import ControlServer
from syncd.daemon.notify import Notifier
from syncd.daemon.signals import STOP_WITHIN_S, Signals
from syncd.daemon.watchdog import Watchdog
from syncd.database.engine import masked
from syncd.errors import ConfigError, StoreError
from syncd.feed.heartbeat import ping
from syncd.log.redact import Redactor
from syncd.model import Run
from syncd.text import count, format_duration, run_name
from syncd.threads import Background, in_thread

RUN_GRACE_S = 3.0
"""How long a stop waits for the run in progress to be cancelled or its transaction to end."""
TIDY_WITHIN_S = 0.3
"""How long a forced end waits for the removal of its files: only a disk that hangs takes longer."""
LAST_WORD_S = 0.2
"""How long it waits for its log line: the reader of the log may be what hangs."""
WAITING_SHARE = 0.75
"""The share of connections that may wait for a run; the others are for requests that need an answer now."""
EXTEND_EVERY_S = 1.0
EXTEND_S = 10.0
"""How much more time a start or stop asks systemd for, each second while a transaction takes longer."""


class Daemon:
    """A long-running syncd. `run` returns the exit code.

    `load_config` rereads the configuration for a reload, masks its secrets and applies its log settings; it
    raises ConfigError, with nothing changed. `listening` is a socket to serve instead of creating one;
    `feed_every_s` is how often to feed systemd's watchdog. `on_run` is called with each ended run, `on_cut`,
    in a thread beside the loop, at a forced end. SIGHUP asks for a reload, or ends a daemon that
    `ends_with_terminal`.
    """

    def __init__(
        self,
        config: Config,
        *,
        load_config: Callable[[], Config],
        redact: Redactor,
        notifier: Notifier,
        listening: socket.socket | None = None,
        feed_every_s: float | None = None,
        on_run: Callable[[Run], None] = lambda _: None,
        on_cut: Callable[[], None] = lambda: None,
        ends_with_terminal: bool = False,
    ) -> None:
        self._config = config
        self._load_config = load_config
        self._redact = redact
        self._notifier = notifier
        self._listening = listening
        self._feed_every_s = feed_every_s
        self._on_run = on_run
        self._on_cut = on_cut
        self._ends_with_terminal = ends_with_terminal
        self.account = Account(config, redact, on_begin=self._began, on_end=self._ended)
        self._control: ControlServer | None = None
        self._watchdog: Watchdog | None = None
        self._stop_asked = asyncio.Event()
        self._is_guarded = False
        self._is_up = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._background = Background()
        self._pinging = asyncio.Lock()

    # --- life

    async def run(self) -> int:
        """Start, serve until a signal or a dead part, stop. The start raises AlreadyRunning, ConfigError."""
        self._loop = asyncio.get_running_loop()
        settings = self._config.control
        self._control = control = ControlServer(
            settings.socket, mode=settings.mode, group=settings.group, inherited=self._listening
        )
        self._signals = Signals(self._on_signal)
        try:
            most = int(WAITING_SHARE * connections_at_most())
            app = application(self.account, self.reload, self._redact, most_waiting=most)
            serving = asyncio.create_task(control.serve(app), name="control server")
            try:
                await self._start(control, serving)
            except BaseException:
                if control.up.is_set():
                    control.stop()
                else:
                    serving.cancel()
                await asyncio.wait({serving})
                await self.account.close()
                control.remove()
                raise
            code = await self._until_stopped(serving)
            await self._stop(serving, code)
        finally:
            self._signals.close()
        logger.bind(event="stopped").info("stopped")
        return code

    async def _start(self, control: ControlServer, serving: "asyncio.Task[None]") -> None:
        """Answer at once, from memory, then open the database, which may wait for others to release it."""
        up = asyncio.create_task(control.up.wait())
        await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
        with self._extending():
            try:
                await self.account.open()
            except StoreError as error:
                logger.bind(event="error.database").error("{}; tried again with each run", error)
        self.account.runner.serve()
        self.account.start()
        if self._stop_asked.is_set():
            return
        every = f"every {format_duration(self._config.sync.interval.total_seconds())}"
        logger.bind(event="started").info(
            "syncd {} is up: runs {}, answers on {}, writes to {}",
            *(self.account.status().version, every, control.path, masked(self._config.database.url)),
        )
        if control.up.is_set():
            without = (
                ""
                if self.account.database.is_open
                else "; the database cannot be opened, each run tries again"
            )
            self._notifier.ready(STATUS=f"up, runs {every}{without}")
            self._feed_watchdog(control.path)
        self._is_up.set()

    def _feed_watchdog(self, path: Path) -> None:
        if self._feed_every_s:
            self._watchdog = Watchdog(
                self._notifier,
                self._feed_every_s,
                path=path,
                is_inherited=self._listening is not None,
                schedule_is_alive=lambda: self.account.schedule.is_alive,
                slot_overdue_s=self.account.schedule.overdue_s,
                run_overdue_s=self.account.runner.overdue_s,
            )
            self._watchdog.start()

    @contextmanager
    def _extending(self) -> Iterator[None]:
        """Keep systemd from killing a start or stop while, and only while, a transaction is in progress.

        A stop ends within STOP_WITHIN_S anyway; this is for units with a shorter TimeoutStopSec=.
        """

        async def extend() -> None:
            while True:
                await asyncio.sleep(EXTEND_EVERY_S)
                if self.account.database.is_writing:
                    self._notifier.extend(EXTEND_S)

        task = asyncio.create_task(extend())
        try:
            yield
        finally:
            task.cancel()

    async def _until_stopped(self, serving: "asyncio.Task[None]") -> int:
        stopped = asyncio.create_task(self._stop_asked.wait())
        parts = {serving, self.account.runner.task, self.account.schedule.task}
        await asyncio.wait({stopped, *parts}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return 0
        dead = next(part for part in parts if part.done())
        reason = dead.exception() if not dead.cancelled() else None
        logger.bind(event="dead").critical("the {} died ({!r}): ending the process", dead.get_name(), reason)
        stopped.cancel()
        return 1

    async def _stop(self, serving: "asyncio.Task[None]", code: int) -> None:
        """Stop in this order: new runs, the run in progress, the socket, the connections."""
        if not self._stop_asked.is_set():
            self._begin_stop(code)
        if self._watchdog:
            self._watchdog.stop()
        self.account.schedule.stop()
        with self._extending():
            ended = await self.account.runner.stop(RUN_GRACE_S)
        assert self._control
        self._control.stop()
        await asyncio.wait({serving})
        self._control.remove()
        if not ended:
            self._give_up("the database did not answer, its transaction is rolled back", code)
        await self._background.cancel()
        await self.account.close()
        await self._loop.shutdown_default_executor()  # a hanging thread would keep the process, unguarded

    def _on_signal(self, number: signal.Signals) -> None:
        """Pass a signal to the loop; the time limit of a stop begins here, even if the loop is blocked.

        Called from a thread beside the loop.
        """
        if number == signal.SIGHUP and not self._ends_with_terminal:
            self._loop.call_soon_threadsafe(self._on_hangup)
        elif self._is_guarded:
            self._give_up("a second signal", 1)
        else:
            self._set_guard(0)
            self._loop.call_soon_threadsafe(self._on_stop_signal, number)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        self._begin_stop(0)
        logger.bind(event="stopping").info("{}: stopping", number.name)

    def _begin_stop(self, code: int) -> None:
        """Accept no more work; whatever the process is doing, it has STOP_WITHIN_S left."""
        self._stop_asked.set()
        self.account.runner.is_stopping = True
        if not self._is_guarded:
            self._set_guard(code)
        self._notifier.stopping()

    def _set_guard(self, code: int) -> None:
        self._is_guarded = True
        self._signals.limit(STOP_WITHIN_S, partial(self._give_up, "stopping took too long", code))

    def _give_up(self, why: str, code: int) -> None:
        """End the process now. Every transaction is all or nothing, so the next start repairs the rest."""

        def tidy() -> None:
            if self._control:
                self._control.remove()
            self._on_cut()

        def tell() -> None:
            logger.bind(event="cut").warning("ending at once: {}", why)

        for step, within_s in ((tidy, TIDY_WITHIN_S), (tell, LAST_WORD_S)):
            thread = threading.Thread(target=step, daemon=True)
            with suppress(RuntimeError):  # there is none left: the end must not wait for one
                thread.start()
                thread.join(within_s)
        os._exit(code)

    def _on_hangup(self) -> None:
        async def reload() -> None:
            try:
                await self.reload()
            except ConfigError:
                logger.debug("the reload was refused, see above")

        self._background.start(reload())

    # --- callbacks of the account

    def _began(self, run: Run) -> None:
        """Show systemd that a run is in progress."""
        self._notifier.status(f"{run_name(run.id)} ({run.trigger}) in progress")

    def _ended(self, run: Run) -> None:
        """Tell systemd, the heartbeat and the `on_run` callback how a run ended."""
        synced = count(run.synced, "event")
        self._notifier.status(f"{run_name(run.id)} {run.outcome}: {synced} synced, {run.failed} failed")
        self._background.start(self._ping(self._config.heartbeat.url, run))
        self._on_run(run)

    async def _ping(self, url: str | None, run: Run) -> None:
        async with self._pinging:  # one after the other: a monitor believes what comes last
            await ping(url, run)

    # --- a reload

    async def reload(self) -> StatusAfter:
        """Apply a changed configuration, once syncd is up. Raises ConfigError, with nothing changed."""
        await self._is_up.wait()  # it ends with READY, which would be too early
        async with self._reloading:  # log and redactor are changed in steps, in a thread
            self._notifier.reloading()
            try:
                changed, late = await self._apply(await in_thread(self._load_config))
            except ConfigError as error:
                for problem in error.problems:
                    logger.bind(event="reload.refused").error("reload refused, nothing changed: {}", problem)
                raise
            finally:
                self._notifier.ready()
        return after(self.account.status(), changed, late)

    async def _apply(self, config: Config) -> tuple[list[str], list[str]]:
        """Apply a configuration; return the keys that changed, and those that wait for a restart."""
        before = self._config
        effective = structs.replace(config, database=before.database, control=before.control)
        await self.account.configure(effective)
        self._config = effective
        if effective != config:
            logger.bind(event="reload.partly").warning(
                "[database] and [control] take effect at the next start; until then the old settings stay"
            )
        changed = differing(before, effective)
        said = ", ".join(changed) or "nothing"
        logger.bind(event="reloaded").info("the configuration was read again; changed: {}", said)
        return changed, differing(effective, config)
