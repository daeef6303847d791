"""What the tests of the control server stand on: a daemon of a few lines, and a server in front of it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Unpack, cast

import httpx
from starlette.applications import Starlette

import syncd
from syncd.account.account import Account
from syncd.account.status import Facts, Status, StatusAfter, after
from syncd.control.api import application
from syncd.control.server import ControlServer
from syncd.database.deliveries import Delivery
from syncd.errors import UnknownDelivery
from syncd.feed.publish import TargetState
from syncd.feed.webhooks import EndpointState
from syncd.log.redact import Redactor
from syncd.model import Doubt, Json, Peer, Progress, Run, RunError, Wish

Client = httpx.AsyncClient
SECRET = "canary-of-the-daemon"
START = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)
ENDED = Run(
    id=42,
    trigger="interval",
    state="done",
    outcome="partial",
    started_at=START,
    finished_at=START + timedelta(seconds=1.5),
    duration_s=1.5,
    errors=[RunError("event 9", "transport", "no « answer »")],
    errors_total=1,
)
DOUBT = Doubt(
    table="billetweb_tickets",
    event_id="900001",
    absent=3,
    of=4,
    since=START,
    reads=2,
    examples=["1", "2", "3"],
    waits_for="time",
    until=START + timedelta(days=1),
)
EVENT: Json = {
    "id": "900001",
    "ext_id": None,
    "name": "Fête du pain ☂",
    "starts_at": START,
    "ends_at": None,
    "place": None,
    "online": True,
    "shop_url": None,
    "places_total": 50,
    "places_left": 12,
    "unlimited": False,
    "is_full": False,
    "sale_status": "on_sale",
    "availability_at": START,
    "age_s": 3.5,
    "vanished_at": None,
}

DELIVERY = Delivery(
    id="msg_1",
    endpoint="site",
    type="event.full",
    event_id="900001",
    created_at=START,
    state="pending",
    attempts=0,
    next_at=START,
    attempted_at=None,
    retry_until=START,
    delivered_at=None,
    status=None,
    error=None,
)


class Stub:
    """An account of a few lines, with a reload: keeps what it was asked, answers what the test has set."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.health: tuple[Any, str] = ("ok", "")
        self.fault: Exception | None = None
        self.watchers = 0
        self.steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        self.facts = Facts(started_at=START)
        self.runner = self
        self.outputs = SimpleNamespace(
            publishing=SimpleNamespace(states=self.targets),
            webhooks=SimpleNamespace(states=self.endpoints, retry=self.retry),
        )
        self.client = SimpleNamespace(statuses={})
        self.schedule = SimpleNamespace(clock_jumps=0)
        self.known = {
            run.id: run for run in (ENDED, Run(id=43, trigger="manual"), Run(id=-7, trigger="manual"))
        }

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.fault:
            raise self.fault

    def status(self) -> Status:
        return Status(
            pid=os.getpid(),
            started_at=START,
            uptime_s=2.5,
            state="idle",
            health=self.health[0],
            health_reason=self.health[1],
            is_running=True,
            interval_s=900.0,
            next_run_at=START + timedelta(minutes=15),
            run_count=1,
            consecutive_failures=0,
            last_run=ENDED,
            last_success_at=None,
            last_error=None,
            current_run=None,
            queued_runs=0,
            database="sqlite:////var/lib/syncd/syncd.db",
            events_live=1,
            events_full=0,
            oldest_figure_at=None,
            oldest_figure_age_s=None,
            events_unread=None,
            doubts=1,
            budget=None,
            slots_skipped={},
            slots_missed=0,
        )

    async def request(self, **wish: Unpack[Wish]) -> Run:
        full, events, peer = wish.get("full", False), [*wish.get("events", ())], wish.get("requested_by")
        run = Run(id=43, trigger="manual", full=full, events=events, requested_by=peer)
        run.accept = wish.get("accept", False)
        self._note("accept" if run.accept else "run", full, events, wish.get("join", False), peer)
        return run

    async def find_run(self, run_id: int) -> Run | None:
        self._note("find", run_id)
        return self.known.get(run_id)

    async def wait(self, run: Run, seconds: float) -> None:
        self._note("wait", run.id, seconds)

    async def watch(self, run: Run, keep_alive_s: float) -> AsyncIterator[Progress | None]:
        self.watchers += 1
        try:
            while run.state != "done":
                try:
                    step = await asyncio.wait_for(self.steps.get(), keep_alive_s)
                except TimeoutError:
                    step = None
                yield step
        finally:
            self.watchers -= 1

    async def runs(self, limit: int, before: int | None) -> list[Run]:
        self._note("runs", limit, before)
        return [ENDED]

    async def events(self, *, ended_too: bool) -> list[Json]:
        self._note("events", ended_too)
        return [EVENT]

    async def doubts(self) -> list[Doubt]:
        self._note("doubts")
        return [DOUBT]

    def targets(self) -> list[TargetState]:
        self._note("publish")
        return [TargetState(name="formation", table="Formation", database=None, matched=3)]

    def endpoints(self) -> list[EndpointState]:
        self._note("webhooks")
        return [EndpointState(name="site", host="example.org", pending=1)]

    async def deliveries(self, limit: int, *, delivered_too: bool) -> list[Delivery]:
        self._note("deliveries", limit, delivered_too)
        return [DELIVERY]

    async def open(self) -> None:
        pass

    async def retry(self, *, ids: Sequence[str], endpoint: str | None) -> int:
        self._note("retry", ids, endpoint)
        if endpoint == "nobody":
            raise UnknownDelivery("there is no endpoint nobody: there are site")
        return 2

    async def pause(self, *, paused: bool, requested_by: Peer) -> bool:
        self._note("pause", paused, requested_by)
        return True

    async def reload(self) -> StatusAfter:
        self._note("reload")
        return after(self.status(), ["sync.interval"], ["database.url"])


MOST_WAITING = 300
"""So many may wait for a run, where a test does not say."""


def answering(
    stub: Stub, redact: Callable[[str], str] = str, *, most_waiting: int = MOST_WAITING
) -> Starlette:
    """Return the application that answers for a stub."""

    async def reload() -> StatusAfter:
        return await stub.reload()  # of the stub that a Switch has by then

    return application(cast("Account", stub), reload, redact, most_waiting=most_waiting)


@contextlib.asynccontextmanager
async def serving(path: Path, stub: Stub, *, most_waiting: int = MOST_WAITING) -> AsyncIterator[Client]:
    server = ControlServer(path, mode=0o600, group=None)
    task = asyncio.create_task(server.serve(answering(stub, Redactor([SECRET]), most_waiting=most_waiting)))
    await server.up.wait()
    try:
        async with Client(
            transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://syncd"
        ) as client:
            yield client
    finally:
        server.stop()
        await task
        server.remove()


def ask(
    path: Path, stub: Stub, use: Callable[[Client], Awaitable[None]], *, most_waiting: int = MOST_WAITING
) -> None:
    async def main() -> None:
        async with serving(path, stub, most_waiting=most_waiting) as client:
            await use(client)

    asyncio.run(main())


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the code of an answer that has the one shape of all errors."""
    assert answer.headers["syncd-version"] == syncd.__version__
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    return answer.status_code, body["error"]["code"]
