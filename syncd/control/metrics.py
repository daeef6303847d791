"""Prometheus text from what the daemon remembers, made anew at each scrape: nothing is counted twice."""

from collections.abc import Iterator, Mapping

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncd.account.status import Facts, Status

HEALTHS = ("ok", "degraded", "failing")


class Sources(Struct, frozen=True, kw_only=True):
    """What the metrics are made of. `requests` counts answers by HTTP status."""

    status: Status
    facts: Facts
    requests: Mapping[str, int]
    clock_jumps: int


def exposition(sources: Sources) -> bytes:
    """Return the Prometheus text exposition, every name prefixed `syncd_`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(sources))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        yield from _gauges(self._sources.status)
        yield from _counters(self._sources)


def _gauges(status: Status) -> Iterator[Metric]:
    yield _labelled("info", "The version that runs, as a label.", "version", {status.version: 1})
    yield _labelled(
        "health",
        "1 for the health that status shows.",
        "health",
        {name: name == status.health for name in HEALTHS},
    )
    last = status.last_run
    values = {
        "paused": (
            "Whether scheduled runs are paused.",
            not status.is_running and status.state != "stopping",
        ),
        "run_in_progress": ("Whether a run is in progress.", status.current_run is not None),
        "start_time_seconds": ("When the daemon started.", status.started_at.timestamp()),
        "interval_seconds": ("Time between scheduled runs.", status.interval_s),
        "consecutive_failures": ("Failed runs in a row.", status.consecutive_failures),
        "events_live": ("Live events in the mirror.", status.events_live),
        "events_full": ("Live events with no place left.", status.events_full),
        "doubts": (
            "Scopes that lack more than is believed yet: see `syncctl doubts`.",
            # None counted yet is not none: nothing is known before the database is open.
            None if status.events_live is None else status.doubts,
        ),
        "feeds": ("Files that are written for others.", status.feeds.files),
        "feeds_failing": ("Those of them that could not be written the last time.", status.feeds.failing),
        "next_run_timestamp_seconds": (
            "When the next scheduled run is.",
            status.next_run_at.timestamp() if status.next_run_at else None,
        ),
        "last_success_timestamp_seconds": (
            "End of the latest run with outcome ok.",
            status.last_success_at.timestamp() if status.last_success_at else None,
        ),
        "oldest_figure_timestamp_seconds": (
            "When the figures of the live event that was not read for longest were read.",
            status.oldest_figure_at.timestamp() if status.oldest_figure_at else None,
        ),
        "events_unread": ("Live events of which no figure was read yet.", status.events_unread),
        "last_run_requests": ("Requests of the latest run.", last.requests if last else None),
        "last_run_duration_seconds": ("How long the latest run took.", last.duration_s if last else None),
    }
    budget = status.budget
    if budget:
        values |= {
            "budget_requests": ("Requests a run may send for events in turn.", budget.requests),
            "budget_full_requests": ("Requests that reading all live events takes.", budget.full_requests),
            "budget_refresh_seconds": ("So old a figure gets at most, by its turns.", budget.refresh_s),
            "budget_waiting": ("Events with a reason to be read that wait for the next run.", budget.waiting),
            "increment_permitted": (
                "Whether the key may read the attendees of the whole account.",
                budget.increment != "not permitted",
            ),
        }
    for name, (text, value) in values.items():
        if value is not None:
            yield GaugeMetricFamily(f"syncd_{name}", text, value=float(value))


def _counters(sources: Sources) -> Iterator[Metric]:
    runs = CounterMetricFamily("syncd_runs", "Ended runs of this process.", labels=["trigger", "outcome"])
    for labels, count in sorted(sources.facts.totals.items()):
        runs.add_metric(list(labels), count)
    yield runs
    for name, text, label, counts in (
        ("rows", "Rows of the mirror by what became of them in runs.", "kind", sources.facts.rows),
        ("slots_skipped", "Scheduled runs not started, by reason.", "reason", sources.status.slots_skipped),
        ("upstream_requests", "Requests to Billetweb by HTTP status.", "status", sources.requests),
    ):
        family = CounterMetricFamily(f"syncd_{name}", text, labels=[label])
        for value, count in sorted(counts.items()):
            family.add_metric([value], count)
        yield family
    yield CounterMetricFamily(
        "syncd_slots_missed", "Scheduled runs that went by unseen.", value=sources.status.slots_missed
    )
    yield CounterMetricFamily("syncd_clock_jumps", "Steps of the machine's clock.", value=sources.clock_jumps)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"syncd_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family
