"""Prometheus text from the daemon's memory, built at each scrape: nothing is counted twice.

The table in monitoring/metrics.md has the type, the labels and the text of each metric; here is only the
source of its value. Names and labels are stable; an unknown value has no sample, because zero would be false.
"""

import os
import platform
import re
import resource
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncd.account.account import Account
from syncd.account.schedule import REASONS
from syncd.account.status import BudgetStatus, Facts, Health, Status
from syncd.feed.files import FeedsStatus
from syncd.feed.publish import TargetState
from syncd.feed.webhooks import EndpointState
from syncd.model import UNKNOWN_EVENT, Outcome, Run, Trigger
from syncd.text import plain

NAME_LENGTH = 100
"""The length of an event's name in a label: enough to recognise it, and few bytes at each scrape."""
FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
TABLE = Path(__file__).parents[1] / "monitoring/metrics.md"
ROW = re.compile(r"^\| `syncd_(\w+)` \| (gauge|counter) \| (.*?) \| (.*) \|$", re.MULTILINE)

Value = float | datetime | None
"""None: unknown. An instant is exported in seconds since 1970."""
Values = Mapping[str, Value] | Mapping[tuple[str, str], Value] | Mapping[tuple[str, str, str], Value]
"""By label, or by labels if there are two or three."""
Metrics = dict[str, Value | Values]


def exposition(account: Account) -> bytes:
    """Return the Prometheus text exposition of an account, every name prefixed `syncd_`."""
    return generate_latest(_Collector(account))


class _Collector(Collector):
    def __init__(self, account: Account) -> None:
        self._account = account

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of which something is known."""
        account = self._account
        status, facts = account.status(), account.facts
        metrics: Metrics = {
            **_daemon(status, account.schedule.clock_jumps),
            **_runs(status, facts, account.client.statuses),
            **(_last_run(status.last_run) if status.last_run else {}),
            **_mirror(status),
            **_events(facts),
            **(_budget(status.budget) if status.budget else {}),
            **_targets(status, account.outputs.publishing.states()),
            **_feeds(status.feeds),
            **_webhooks(account.outputs.webhooks.states()),
            **_process(),
        }
        return (_family(name, found) for name, found in metrics.items() if found is not None)


@cache
def _table() -> dict[str, tuple[str, list[str], str]]:
    """Return the type, the labels and the text of each metric, by its name."""
    return {
        name: (kind, re.findall("`(.*?)`", labels), text)
        for name, kind, labels, text in ROW.findall(TABLE.read_text("utf-8"))
    }


def _family(name: str, found: float | datetime | Values) -> Metric:
    kind, labels, text = _table()[name]
    family: GaugeMetricFamily | CounterMetricFamily = FAMILIES[kind](f"syncd_{name}", text, labels=labels)
    for key, value in found.items() if isinstance(found, Mapping) else [((), found)]:
        if value is not None:
            number = value.timestamp() if isinstance(value, datetime) else float(value)
            family.add_metric([key] if isinstance(key, str) else key, number)
    return family


def _daemon(status: Status, clock_jumps: int) -> Metrics:
    database = status.database.partition(":")[0].partition("+")[0]
    return {
        "build_info": {(status.version, platform.python_version(), database): 1},
        "info": {status.version: 1},
        "health": {name: name == status.health for name in get_args(Health)},
        "start_time_seconds": status.started_at,
        "paused": not status.is_running and status.state != "stopping",
        "interval_seconds": status.interval_s,
        "next_run_timestamp_seconds": status.next_run_at,
        "slots_skipped_total": dict.fromkeys(REASONS, 0) | status.slots_skipped,
        "slots_missed_total": status.slots_missed,
        "clock_jumps_total": clock_jumps,
    }


def _runs(status: Status, facts: Facts, requests: Mapping[str, int]) -> Metrics:
    # A count that appears with its first run, and not as 0 before, has no increase that Prometheus could see.
    none_yet = dict.fromkeys(product(get_args(Trigger), (*get_args(Outcome), UNKNOWN_EVENT)), 0)
    return {
        "runs_total": none_yet | facts.totals,
        "rows_total": facts.rows,
        "upstream_requests_total": requests,
        "run_in_progress": status.current_run is not None,
        "consecutive_failures": status.consecutive_failures,
        "last_success_timestamp_seconds": status.last_success_at,
        "last_synced_timestamp_seconds": facts.synced_at,
    }


def _last_run(run: Run) -> Metrics:
    return {
        "last_run_outcome": {outcome: outcome == run.outcome for outcome in get_args(Outcome)},
        "last_run_timestamp_seconds": run.finished_at,
        "last_run_duration_seconds": run.duration_s,
        "last_run_requests": run.requests,
        "last_run_events_synced": run.synced,
        "last_run_events_failed": run.failed,
    }


def _mirror(status: Status) -> Metrics:
    return {
        "events_live": status.events_live,
        "events_full": status.events_full,
        "events_unread": status.events_unread,
        "oldest_figure_timestamp_seconds": status.oldest_figure_at,
        # Not counted yet does not mean 0: nothing is known before the database is open.
        "doubts": None if status.events_live is None else status.doubts,
    }


def _events(facts: Facts) -> Metrics:
    """Yield the metrics of each live event, unless the configuration excludes them, without the unknown."""
    known = [event for event in facts.places if event.unlimited or event.places_left is not None]
    labelled = [((event.id, _short(event.name or "")), event) for event in known]
    return {
        "event_places_left": {labels: event.places_left for labels, event in labelled},
        "event_places": {labels: event.places_total for labels, event in labelled},
        "event_full": {labels: event.is_full for labels, event in labelled},
    }


def _short(name: str) -> str:
    shown = plain(name)
    return shown if len(shown) <= NAME_LENGTH else f"{shown[: NAME_LENGTH - 1]}…"


def _budget(budget: BudgetStatus) -> Metrics:
    return {
        "budget_requests": budget.requests,
        "budget_full_requests": budget.full_requests,
        "budget_refresh_seconds": budget.refresh_s,
        "budget_waiting": budget.waiting,
        "increment_permitted": budget.increment != "not permitted",
    }


def _targets(status: Status, targets: Sequence[TargetState]) -> Metrics:
    looked_at = [target for target in targets if target.matched is not None]
    return {
        "publish_targets": status.publish.targets,
        "publish_targets_failing": status.publish.failing,
        "publish_failing": {target.name: target.last_error is not None for target in targets},
        "publish_rows_matched": {target.name: target.matched for target in looked_at},
        "publish_rows_unmatched": {target.name: target.unmatched for target in looked_at},
        "publish_rows_vanished": {target.name: target.vanished for target in looked_at},
        "publish_last_write_timestamp_seconds": {target.name: target.last_write_at for target in targets},
        "publish_rows_written_total": {target.name: target.written for target in targets},
        "publish_errors_total": {target.name: target.errors for target in targets},
    }


def _feeds(feeds: FeedsStatus) -> Metrics:
    return {
        "feeds": feeds.files,
        "feeds_failing": feeds.failing,
        "feeds_written_total": feeds.written,
        "feeds_errors_total": feeds.errors,
    }


def _webhooks(endpoints: Sequence[EndpointState]) -> Metrics:
    return {
        "webhooks_endpoints": len(endpoints),
        "webhooks_pending": {each.name: each.pending for each in endpoints},
        "webhooks_parked": {each.name: each.parked for each in endpoints},
        "webhooks_delivered_total": {each.name: each.delivered for each in endpoints},
        "webhooks_failed_total": {each.name: each.failed for each in endpoints},
    }


def _process() -> Metrics:
    """Yield the process's metrics; the library's own need /proc/stat, which systemd's ProcSubset= hides."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "process_cpu_seconds_total": time.process_time(),
        "process_resident_memory_bytes": pages * os.sysconf("SC_PAGESIZE"),
        "process_threads": threading.active_count(),
        # Without the one that this listing opens.
        "process_open_fds": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
        "process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
