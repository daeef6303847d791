"""`syncd once`: one run without the daemon, and what follows from it."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import TextIO

from loguru import logger

from syncd import typed
from syncd.account.account import Account
from syncd.cli.progress import shown
from syncd.config import Config
from syncd.daemon.signals import STOP_WITHIN_S
from syncd.errors import AlreadyRunning
from syncd.feed.heartbeat import ping
from syncd.lastline import erase
from syncd.log.redact import Redactor
from syncd.model import Run

SENDING_S = 30.0
"""How long `once` sends webhooks after its run: two attempts that time out. The next one continues."""
SETTLING_S = 60.0
"""How long `once` waits for the site's tables and files: as long as a driver waits for a silent server."""


async def once(
    config: Config, redact: Redactor, log_to: Callable[[TextIO | None], None], *, full: bool, quiet: bool
) -> Run:
    """Carry a run out, tell others what follows from it, and return it. `log_to` is as for `shown`."""
    gc.freeze()  # loaded objects stay: no collection needs to scan them again
    progress = shown(config.billetweb.requests_per_minute, log_to)
    with nullcontext(lambda _: None) if quiet else progress as show:
        account = Account(config, redact, on_progress=show)
        stop = _Stop()
        try:
            try:
                await account.open()
            except AlreadyRunning as error:
                asked = typed.syncctl("run-now", config.control.socket)
                raise AlreadyRunning(f"{error}; a daemon is asked for a run by `{asked}`") from None
            run = account.runner.request("once", full=full)
            account.runner.serve()
            stop.ends(account.runner.task)
            await account.runner.wait(run)
            if run.outcome != "cancelled":
                await stop.awaited(account.outputs.finish(SETTLING_S))
                account.outputs.release(account.clock.now(), whatever_fails=True)  # no run follows here
                await stop.awaited(account.outputs.webhooks.send_due(SENDING_S))
        finally:
            await account.close()
    await stop.awaited(ping(config.heartbeat.url, run))
    return run


class _Stop:
    """Ends the current work, and all later work, once a signal came; and the process, if a thread hangs."""

    def __init__(self) -> None:
        self._under_way: asyncio.Task[None] | None = None
        self._came = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                asyncio.get_running_loop().add_signal_handler(number, self._come)

    def ends(self, task: asyncio.Task[None]) -> None:
        """Let the signal end this task."""
        self._under_way = task
        if self._came:
            task.cancel()

    async def awaited(self, work: Coroutine[None, None, None]) -> None:
        """Do this work, unless the signal came."""
        task = asyncio.create_task(work)
        self.ends(task)
        await asyncio.wait({task})

    def _come(self) -> None:
        if self._came:
            self._give_up("a second signal")
        self._came = True
        asyncio.get_running_loop().call_later(STOP_WITHIN_S, self._give_up, "stopping took too long")
        if self._under_way:
            self._under_way.cancel()

    def _give_up(self, why: str) -> None:
        logger.bind(event="cut").error("ending at once: {}", why)  # an error, for --quiet
        erase()
        os._exit(1)
