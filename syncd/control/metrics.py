"""Prometheus text from what the daemon remembers, made anew at each scrape: nothing is counted twice.

monitoring/metrics.md has the table of them. Names and labels stay; what is not known has no sample, for
zero would be a lie.
"""

import os
import platform
import resource
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from msgspec import Struct
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncd.account.status import BudgetStatus, Facts, FeedsStatus, Health, Status
from syncd.feed.publish import TargetState
from syncd.feed.webhooks import EndpointState
from syncd.model import Outcome, Run
from syncd.text import plain

NAME_LENGTH = 100
"""Of an event's name so much stands in a label: enough to know it, and few bytes at each scrape."""
Samples = Iterable[tuple[Sequence[str], float | None]]
Values = Mapping[str, tuple[str, float | None]]


class Sources(Struct, frozen=True, kw_only=True):
    """What the metrics are made of. `requests` counts answers by HTTP status."""

    status: Status
    facts: Facts
    targets: Sequence[TargetState]
    endpoints: Sequence[EndpointState]
    requests: Mapping[str, int]
    clock_jumps: int


def exposition(sources: Sources) -> bytes:
    """Return the Prometheus text exposition, every name prefixed `syncd_`."""
    return generate_latest(_Collector(sources))


class _Collector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Give every metric, part by part."""
        sources = self._sources
        yield from _daemon(sources.status, sources.clock_jumps)
        yield from _runs(sources)
        yield from _mirror(sources.status)
        yield from _events(sources.facts)
        yield from _budget(sources.status.budget)
        yield from _targets(sources.status, sources.targets)
        yield from _feeds(sources.status.feeds)
        yield from _webhooks(sources.endpoints)
        yield from _process()


# --- what is told


def _daemon(status: Status, clock_jumps: int) -> Iterator[Metric]:
    database = status.database.partition(":")[0].partition("+")[0]
    build = (status.version, platform.python_version(), database)
    yield _gauges(
        "build_info",
        "1, with the version of syncd, that of Python and the kind of database as labels.",
        ("version", "python", "database"),
        [(build, 1)],
    )
    yield _gauges("info", "1, as build_info: an older name of it.", ("version",), [((status.version,), 1)])
    yield _gauges(
        "health",
        "1 for the health that `syncctl status` shows, 0 for the others.",
        ("health",),
        [((name,), name == status.health) for name in get_args(Health)],
    )
    is_paused = not status.is_running and status.state != "stopping"
    next_at = status.next_run_at
    yield from _each_gauge(
        {
            "start_time_seconds": ("When the daemon started.", status.started_at.timestamp()),
            "paused": ("1 while scheduled runs are paused.", is_paused),
            "interval_seconds": ("Time between scheduled runs.", status.interval_s),
            "next_run_timestamp_seconds": (
                "When the next scheduled run is.",
                next_at.timestamp() if next_at else None,
            ),
        }
    )
    skipped = status.slots_skipped
    yield _counters("slots_skipped", "Scheduled runs that were not started, by reason.", "reason", skipped)
    yield from _each_counter(
        {
            "slots_missed": (
                "Scheduled runs whose time passed while the machine slept or was too busy.",
                status.slots_missed,
            ),
            "clock_jumps": ("Steps of the machine's clock.", clock_jumps),
        }
    )


def _runs(sources: Sources) -> Iterator[Metric]:
    status, facts = sources.status, sources.facts
    totals = CounterMetricFamily(
        "syncd_runs",
        "Runs that ended since the daemon started; unknown_event: for nothing but an event's id that somebody"
        " mistyped.",
        labels=("trigger", "outcome"),
    )
    for labels, count in sorted(facts.totals.items()):
        totals.add_metric(list(labels), count)
    yield totals
    yield _counters("rows", "Rows of the mirror by what became of them in runs.", "kind", facts.rows)
    yield _counters("upstream_requests", "Requests to Billetweb by HTTP status.", "status", sources.requests)
    yield from _each_gauge(
        {
            "run_in_progress": ("1 while a run is in progress.", status.current_run is not None),
            "consecutive_failures": (
                "Failed runs of the whole account in a row.",
                status.consecutive_failures,
            ),
            "last_success_timestamp_seconds": (
                "End of the latest run of the whole account with outcome ok.",
                status.last_success_at.timestamp() if status.last_success_at else None,
            ),
        }
    )
    if status.last_run:
        yield from _last_run(status.last_run)


def _last_run(run: Run) -> Iterator[Metric]:
    yield _gauges(
        "last_run_outcome",
        "1 for the outcome of the latest run, 0 for the others.",
        ("outcome",),
        [((outcome,), outcome == run.outcome) for outcome in get_args(Outcome)],
    )
    yield from _each_gauge(
        {
            "last_run_timestamp_seconds": (
                "End of the latest run, whatever its outcome.",
                run.finished_at.timestamp() if run.finished_at else None,
            ),
            "last_run_duration_seconds": ("How long the latest run took.", run.duration_s),
            "last_run_requests": ("Requests to Billetweb in the latest run.", run.requests),
            "last_run_events_synced": ("Events that the latest run brought up to date.", run.synced),
            "last_run_events_failed": ("Events that it could not bring up to date.", run.failed),
        }
    )


def _mirror(status: Status) -> Iterator[Metric]:
    oldest_at = status.oldest_figure_at
    yield from _each_gauge(
        {
            "events_live": ("Live events in the mirror.", status.events_live),
            "events_full": ("Live events with no place left.", status.events_full),
            "events_unread": (
                "Live events whose availability was not read yet.",
                status.events_unread,
            ),
            "oldest_figure_timestamp_seconds": (
                "When the availability of that live event was read that was not read for longest.",
                oldest_at.timestamp() if oldest_at else None,
            ),
            "doubts": (
                "Absences too large to be believed yet: see `syncctl doubts`.",
                # None counted yet is not none: nothing is known before the database is open.
                None if status.events_live is None else status.doubts,
            ),
        }
    )


def _events(facts: Facts) -> Iterator[Metric]:
    """Tell of each live event, where the configuration has not that left out. What is unknown is not told."""
    known = [event for event in facts.places if event.unlimited or event.places_left is not None]
    labelled = [((event.id, _short(event.name or "")), event) for event in known]
    labels = ("event_id", "name")
    yield _gauges(
        "event_places_left",
        "Places left of a live event; no sample where they are unlimited or unknown.",
        labels,
        [(values, event.places_left) for values, event in labelled],
    )
    yield _gauges(
        "event_places",
        "Places of a live event in all; no sample where they are unlimited or unknown.",
        labels,
        [(values, event.places_total) for values, event in labelled],
    )
    yield _gauges(
        "event_full",
        "1 where a live event has no place left, 0 where it has; no sample where that is unknown.",
        labels,
        [(values, event.is_full) for values, event in labelled],
    )


def _short(name: str) -> str:
    shown = plain(name)
    return shown if len(shown) <= NAME_LENGTH else f"{shown[: NAME_LENGTH - 1]}…"


def _budget(budget: BudgetStatus | None) -> Iterator[Metric]:
    if budget is None:
        return
    yield from _each_gauge(
        {
            "budget_requests": ("Requests that a run may send for the refresh rotation.", budget.requests),
            "budget_full_requests": (
                "Requests that reading all live events with a date takes.",
                budget.full_requests,
            ),
            "budget_refresh_seconds": (
                "Each live event is refreshed at least every so many seconds.",
                budget.refresh_s,
            ),
            "budget_waiting": (
                "Events with a reason to be read that wait for the next run.",
                budget.waiting,
            ),
            "increment_permitted": (
                "1 where the key may read the changes of the whole account since the last run.",
                budget.increment != "not permitted",
            ),
        }
    )


def _targets(status: Status, targets: Sequence[TargetState]) -> Iterator[Metric]:
    yield from _each_gauge(
        {
            "publish_targets": ("Tables of a site's own that are kept true.", status.publish.targets),
            "publish_targets_failing": ("Those of them that have an error.", status.publish.failing),
        }
    )

    def each(name: str, text: str, values: Iterable[float | None]) -> Metric:
        samples = zip([(target.name,) for target in targets], values, strict=True)
        return _gauges(f"publish_{name}", text, ("target",), samples)

    yield each(
        "failing",
        "1 while a target has an error: see `syncctl publish`.",
        [target.last_error is not None for target in targets],
    )
    yield each("rows_matched", "Rows of a target that belong to an event.", [t.matched for t in targets])
    yield each(
        "rows_unmatched",
        "Rows of a target whose key matches no event.",
        [None if target.matched is None else target.unmatched for target in targets],
    )
    yield each(
        "rows_vanished",
        "Rows of a target whose event vanished; they stay as they are.",
        [None if target.matched is None else target.vanished for target in targets],
    )
    yield each(
        "last_write_timestamp_seconds",
        "When a row of a target was last written.",
        [target.last_write_at.timestamp() if target.last_write_at else None for target in targets],
    )
    written = {target.name: target.written for target in targets}
    yield _counters("publish_rows_written", "Rows of a target that were written.", "target", written)
    errors = {target.name: target.errors for target in targets}
    yield _counters("publish_errors", "How often something was wrong with a target.", "target", errors)


def _feeds(feeds: FeedsStatus) -> Iterator[Metric]:
    yield from _each_gauge(
        {
            "feeds": ("Files that are written for others.", feeds.files),
            "feeds_failing": ("Those of them that could not be written the last time.", feeds.failing),
        }
    )
    yield from _each_counter(
        {
            "feeds_written": ("How often a file was written, for it had news.", feeds.written),
            "feeds_errors": ("How often a file could not be written.", feeds.errors),
        }
    )


def _webhooks(endpoints: Sequence[EndpointState]) -> Iterator[Metric]:
    yield from _each_gauge({"webhooks_endpoints": ("Endpoints that webhooks are sent to.", len(endpoints))})

    def each(name: str, text: str, values: Mapping[str, int]) -> Metric:
        return _gauges(name, text, ("endpoint",), [((key,), value) for key, value in values.items()])

    waiting, parked = (
        "Deliveries that wait to be sent, or to be sent again.",
        ("Deliveries that are not tried any more: see `syncctl webhooks`."),
    )
    yield each("webhooks_pending", waiting, {each.name: each.pending for each in endpoints})
    yield each("webhooks_parked", parked, {each.name: each.parked for each in endpoints})
    delivered = {each.name: each.delivered for each in endpoints}
    yield _counters("webhooks_delivered", "Deliveries that an endpoint took.", "endpoint", delivered)
    failed = {each.name: each.failed for each in endpoints}
    yield _counters("webhooks_failed", "Attempts that an endpoint did not take.", "endpoint", failed)


def _process() -> Iterator[Metric]:
    """Tell of the process itself; the library's own needs /proc/stat, which systemd's ProcSubset= hides."""
    yield from _each_counter(
        {"process_cpu_seconds": ("Processor time that the daemon took.", time.process_time())}
    )
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
        "SC_PAGESIZE"
    )
    yield from _each_gauge(
        {
            "process_resident_memory_bytes": ("Memory that the daemon holds.", resident),
            "process_threads": ("Threads of the daemon.", threading.active_count()),
            "process_open_fds": ("Files and connections that the daemon holds open.", _open_files()),
            "process_max_fds": (
                "How many it may hold open.",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ),
        }
    )


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the one that this listing opens


# --- how it is told


def _gauges(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"syncd_{name}", text, labels=labels)
    for values, number in samples:
        if number is not None:
            family.add_metric(values, float(number))
    return family


def _counters(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"syncd_{name}", text, labels=(label,))
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _each_gauge(values: Values) -> Iterator[Metric]:
    for name, (text, value) in values.items():
        if value is not None:
            yield GaugeMetricFamily(f"syncd_{name}", text, value=float(value))


def _each_counter(values: Values) -> Iterator[Metric]:
    for name, (text, value) in values.items():
        if value is not None:
            yield CounterMetricFamily(f"syncd_{name}", text, value=float(value))
