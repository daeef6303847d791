"""What the daemon knows of itself, in memory: status and health never wait for a run or the database."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from msgspec import Struct, field, structs

from syncd import __version__
from syncd.account.record import Past, Stock
from syncd.database.rows import Places, age_s
from syncd.database.runs import LATEST
from syncd.feed.files import FeedsStatus
from syncd.feed.publish import PublishStatus
from syncd.feed.webhooks import WebhooksStatus
from syncd.mirror.agenda import Increment, Pace
from syncd.model import UNKNOWN_EVENT, Outcome, Run
from syncd.text import about, format_duration

State = Literal["idle", "running", "paused", "stopping", "standby"]
Health = Literal["ok", "degraded", "failing"]
FAILING_AFTER = 3
"""This many failed runs in a row are more than bad luck."""
STALE_AFTER, LOST_AFTER = 2, 4
"""Intervals without a run that updated anything. One run may fail, or take long; a second missing run is
worth a look; after four nobody should trust the figures."""


class BudgetStatus(Struct, frozen=True, kw_only=True):
    """How the latest run of the whole account shared out its requests.

    `requests`: what it may send for events in turn; `full_requests`: what reading all live events with a date
    takes; `refresh_s`: so old a figure gets at most by that; `waiting`: events with a reason to be read that
    wait for the next run; `increment`: whether the account's attendees told who sold.
    """

    requests: int
    full_requests: int
    refresh_s: float
    waiting: int
    increment: Increment


class Status(Struct, kw_only=True):
    """The answer to `GET /v1/status`. Instants are UTC; `_s` is seconds.

    `events_nearly_full`: of how many live events a tenth of the places or less is left. `latest_outcomes`: of
    the latest runs, newest first. `skipping`: why the next scheduled runs will not be carried out.
    """

    version: str = __version__
    pid: int
    started_at: datetime
    uptime_s: float
    state: State
    health: Health
    health_reason: str
    is_running: bool
    interval_s: float
    next_run_at: datetime | None
    run_count: int
    consecutive_failures: int
    last_run: Run | None
    last_success_at: datetime | None
    last_error: str | None
    current_run: Run | None
    queued_runs: int
    database: str
    events_live: int | None
    events_full: int | None
    events_nearly_full: int | None = None
    oldest_figure_at: datetime | None
    oldest_figure_age_s: float | None
    events_unread: int | None
    doubts: int
    publish: PublishStatus = PublishStatus()
    feeds: FeedsStatus = FeedsStatus()
    webhooks: WebhooksStatus = WebhooksStatus()
    budget: BudgetStatus | None
    slots_skipped: dict[str, int]
    slots_missed: int
    latest_outcomes: list[Outcome] = field(default_factory=list)
    paused_since: datetime | None = None
    paused_by: str | None = None
    skipping: Literal["paused", "credentials"] | None = None
    database_bytes: int | None = None


class StatusAfter(Status, kw_only=True):
    """The answer to what changes how runs happen: the Status after it, and what is other than before.

    `changed`: "paused", or the keys of the configuration that differ. `needs_restart`: the keys that differ
    too, and take effect with the next start.
    """

    changed: list[str]
    needs_restart: list[str] = field(default_factory=list)


def after(status: Status, changed: Iterable[str], needs_restart: Iterable[str] = ()) -> StatusAfter:
    """Return a status with what changed before it."""
    return StatusAfter(**structs.asdict(status), changed=[*changed], needs_restart=[*needs_restart])


class Facts(Struct, kw_only=True):
    """What status shows of an account: loaded from the record, then kept up to date.

    `synced_at` is the end of the latest run that updated anything, `whole_outcome` the outcome of the latest
    run of the whole account; `totals` counts this process's runs by trigger and outcome, `unknown_event` for
    a mistyped id. `pace` is how the latest run of the whole account shared out its requests, `doubts` the
    number of scopes with a doubt, `places` what the metrics show of each live event.
    """

    started_at: datetime
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    run_count: int = 0
    consecutive_failures: int = 0
    last_run: Run | None = None
    last_success_at: datetime | None = None
    synced_at: datetime | None = None
    whole_outcome: Outcome | None = None
    events_live: int | None = None
    events_full: int | None = None
    events_nearly_full: int | None = None
    oldest_figure_at: datetime | None = None
    events_unread: int | None = None
    doubts: int = 0
    places: list[Places] = field(default_factory=list)
    pace: Pace | None = None
    totals: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    latest_outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=LATEST))
    database_bytes: int | None = None

    def anew(self, runs: Iterable[Run]) -> "Facts":
        """Return what remains after the record is lost: these runs, and this process's own counts."""
        fresh = Facts(started_at=self.started_at, now=self.now)
        for run in runs:
            fresh.count(run)
        fresh.totals, fresh.rows = self.totals, self.rows
        return fresh

    def load(self, past: Past) -> None:
        """Load what earlier processes recorded; this one's own runs so far stay counted."""
        history = past.history
        self.run_count += history.run_count
        self.last_run = self.last_run or history.last_run
        self.last_success_at = history.last_success_at
        self.synced_at = history.last_synced_at
        self.whole_outcome = self.whole_outcome or history.whole_outcome
        self.consecutive_failures += history.consecutive_failures
        self.pace = past.pace
        # The older ones come last; a full deque would drop its first.
        self.latest_outcomes.extend(history.latest_outcomes[: LATEST - len(self.latest_outcomes)])
        self.update(past.stock)

    def update(self, stock: Stock) -> None:
        """Remember what the database holds now."""
        figures = stock.figures
        self.events_live, self.events_full = figures.events, figures.full
        self.events_nearly_full, self.oldest_figure_at = figures.nearly_full, figures.oldest_at
        self.events_unread = max(self.pace.live - figures.read, 0) if self.pace else None
        self.places, self.doubts, self.database_bytes = stock.places, stock.doubts, stock.size_bytes

    def count(self, run: Run, pace: Pace | None = None) -> None:
        """Count an ended run. A run of named events, or a cancelled one, does not affect health."""
        self.run_count += 1
        self.last_run = run
        self.pace = pace or self.pace
        self.totals[run.trigger, UNKNOWN_EVENT if run.is_slip else run.outcome or ""] += 1
        if run.outcome:
            self.latest_outcomes.appendleft(run.outcome)
        self.rows.update(structs.asdict(run.counts))
        if not run.whole or run.outcome == "cancelled":
            return
        self.whole_outcome = run.outcome
        if run.outcome == "failed":
            self.consecutive_failures += 1
            return
        self.consecutive_failures = 0
        self.synced_at = run.finished_at
        if run.outcome == "ok":
            self.last_success_at = run.finished_at

    def told(self) -> dict[str, Any]:
        """Return the fields of Status that depend on these facts alone, by name."""
        same = {name: getattr(self, name) for name in self.__struct_fields__ if hasattr(Status, name)}
        return same | {
            "latest_outcomes": [*self.latest_outcomes],
            "oldest_figure_age_s": age_s(self.oldest_figure_at, self.now()),
            "last_error": last_error(self.last_run),
        }

    def health(  # noqa: PLR0911  # a ladder
        self, interval: timedelta, *, refused: bool, displaced: str | None = None
    ) -> tuple[Health, str]:
        """Return the health and the reason, "" if it is ok; `displaced`: how the database was lost."""
        if displaced:
            return "failing", f"{displaced}; the next run opens what is there"
        if refused:
            return "failing", "Billetweb refused the user or the key"
        if self.consecutive_failures >= FAILING_AFTER:
            return "failing", f"{self.consecutive_failures} runs in a row failed"
        age = self.now() - self.synced_at if self.synced_at else timedelta(0)

        def old(intervals: int) -> str:
            """Return the age of the data, in words."""
            return f"the data are {format_duration(age.total_seconds())} old, over {intervals} intervals"

        if age > LOST_AFTER * interval:
            return "failing", old(LOST_AFTER)
        if self.last_success_at is None:
            return "degraded", "no successful run yet"
        if self.whole_outcome != "ok":
            return "degraded", f"the last run ended {self.whole_outcome}"
        if age > STALE_AFTER * interval:
            return "degraded", old(STALE_AFTER)
        return "ok", ""


def budget_status(pace: Pace | None, interval: timedelta) -> BudgetStatus | None:
    """Return a run's budget as status shows it."""
    if pace is None:
        return None
    return BudgetStatus(
        requests=pace.budget.share,
        full_requests=pace.cost,
        refresh_s=pace.budget.bound(pace.cost, interval).total_seconds(),
        waiting=pace.waiting,
        increment=pace.increment,
    )


def last_error(run: Run | None) -> str | None:
    """Return a run's first error as one line; None after an ok run."""
    if run is None or run.outcome == "ok" or not run.errors:
        return None
    error = run.errors[0]
    more = f" (and {run.errors_total - 1} more)" if run.errors_total > 1 else ""
    return " ".join(f"{about(error.subject)}{error.message}{more}".split())
