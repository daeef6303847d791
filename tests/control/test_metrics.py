"""The metrics as Prometheus reads them."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from syncd import __version__
from syncd.account.status import BudgetStatus, Facts, FeedsStatus, Status
from syncd.control.metrics import Sources, exposition
from syncd.model import Counts, Peer, Progress, Run, RunError

START = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)
CANARY = "canary-key-5f1d"
Labels = tuple[tuple[str, str], ...]

RUN = Run(
    id=42,
    trigger="manual",
    requested_by=Peer(1000, CANARY, 7),
    events=[CANARY],
    state="done",
    outcome="partial",
    finished_at=START,
    duration_s=3.25,
    counts=Counts(inserted=4, unchanged=8),
    errors=[RunError(CANARY, "transport", CANARY)],
    errors_total=1,
)
STATUS = Status(
    pid=77,
    started_at=START,
    uptime_s=12.5,
    state="idle",
    health="degraded",
    health_reason=CANARY,
    is_running=True,
    interval_s=900.0,
    next_run_at=datetime(2027, 5, 8, 10, 15, tzinfo=UTC),
    run_count=120,
    consecutive_failures=2,
    last_run=RUN,
    last_success_at=datetime(2027, 5, 8, 9, 45, tzinfo=UTC),
    last_error=CANARY,
    current_run=None,
    queued_runs=0,
    database=f"postgresql+psycopg://syncd:{CANARY}@localhost/syncd",
    events_live=12,
    events_full=3,
    oldest_figure_at=START,
    oldest_figure_age_s=12.5,
    events_unread=0,
    doubts=2,
    feeds=FeedsStatus(files=3, failing=1, error=f"/srv/{CANARY}: Permission denied"),
    budget=BudgetStatus(
        requests=48, full_requests=2000, refresh_s=37800.0, waiting=6, increment="not permitted"
    ),
    slots_skipped={"overrun": 2, "paused": 5},
    slots_missed=7,
)
BEFORE_ALL = structs.replace(
    STATUS,
    next_run_at=None,
    last_run=None,
    last_success_at=None,
    events_live=None,
    events_full=None,
    oldest_figure_at=None,
    oldest_figure_age_s=None,
    events_unread=None,
    doubts=0,
    budget=None,
)


def scrape(status: Status = STATUS) -> bytes:
    facts = Facts(started_at=START)
    facts.take(RUN)
    facts.take(structs.replace(RUN, trigger="interval", outcome="ok", events=[]))
    facts.take(structs.replace(RUN, trigger="interval", outcome="ok", events=[]))
    requests = Counter({"200": 31, "503": 2, 'odd "status"\n\\': 1})
    return exposition(Sources(status=status, facts=facts, requests=requests, clock_jumps=4))


def samples(status: Status = STATUS) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scrape(status).decode())
        for sample in family.samples
    }


def plain(status: Status = STATUS) -> dict[str, float]:
    return {
        name.removeprefix("syncd_"): value for (name, labels), value in samples(status).items() if not labels
    }


def labelled(name: str) -> dict[Labels, float]:
    return {labels: value for (found, labels), value in samples().items() if found == f"syncd_{name}"}


def test_figures_are_those_of_the_status() -> None:
    """Every gauge and counter without a label has the value that the status or the facts have."""
    assert plain() == {
        "paused": 0,
        "run_in_progress": 0,
        "start_time_seconds": START.timestamp(),
        "interval_seconds": 900,
        "consecutive_failures": 2,
        "events_live": 12,
        "events_full": 3,
        "doubts": 2,
        "feeds": 3,
        "feeds_failing": 1,
        "next_run_timestamp_seconds": START.timestamp() + 900,
        "last_success_timestamp_seconds": START.timestamp() - 900,
        "oldest_figure_timestamp_seconds": START.timestamp(),
        "events_unread": 0,
        "last_run_requests": RUN.requests,
        "last_run_duration_seconds": 3.25,
        "budget_requests": 48,
        "budget_full_requests": 2000,
        "budget_refresh_seconds": 37800,
        "budget_waiting": 6,
        "increment_permitted": 0,
        "slots_missed_total": 7,
        "clock_jumps_total": 4,
    }


def test_counts_are_told_apart_by_their_labels() -> None:
    """Runs, rows, slots, requests, health and version carry the label that tells them apart."""
    assert labelled("runs_total") == {
        (("outcome", "ok"), ("trigger", "interval")): 2,
        (("outcome", "partial"), ("trigger", "manual")): 1,
    }
    assert labelled("rows_total") == {
        (("kind", "inserted"),): 12,
        (("kind", "updated"),): 0,
        (("kind", "unchanged"),): 24,
        (("kind", "vanished"),): 0,
        (("kind", "returned"),): 0,
    }
    assert labelled("slots_skipped_total") == {(("reason", "overrun"),): 2, (("reason", "paused"),): 5}
    assert labelled("upstream_requests_total") == {
        (("status", "200"),): 31,
        (("status", "503"),): 2,
        (("status", 'odd "status"\n\\'),): 1,
    }
    assert labelled("health") == {
        (("health", "ok"),): 0,
        (("health", "degraded"),): 1,
        (("health", "failing"),): 0,
    }
    assert labelled("info") == {(("version", __version__),): 1}


def test_names_cannot_clash_with_those_of_others() -> None:
    """Every metric is named syncd_…, has a help text and a type."""
    for family in text_string_to_metric_families(scrape().decode()):
        assert family.name.startswith("syncd_")
        assert family.documentation
        assert family.type in ("gauge", "counter")


def test_what_is_not_known_is_left_out_rather_than_zero() -> None:
    """Before the first run there is no duration, no success and no number of events: zero would be a lie."""
    unknown = plain(STATUS).keys() - plain(BEFORE_ALL).keys()
    assert unknown == {
        "events_live",
        "events_full",
        "doubts",
        "next_run_timestamp_seconds",
        "last_success_timestamp_seconds",
        "last_run_duration_seconds",
        "last_run_requests",
        "events_unread",
        "oldest_figure_timestamp_seconds",
        "increment_permitted",
        *(f"budget_{name}" for name in ("requests", "full_requests", "refresh_seconds", "waiting")),
    }


@pytest.mark.parametrize(
    ("state", "is_running", "paused"),
    [
        ("idle", True, 0),
        ("running", True, 0),
        ("paused", False, 1),
        ("running", False, 1),
        ("stopping", False, 0),
    ],
)
def test_a_pause_is_seen_also_while_a_run_asked_for_by_hand_is_under_way(
    state: str, is_running: bool, paused: int
) -> None:
    """A forgotten pause stays visible whatever else the daemon is doing; a stop is no pause."""
    assert plain(structs.replace(STATUS, state=state, is_running=is_running))["paused"] == paused


def test_a_run_in_progress_is_seen() -> None:
    """The gauge is 1 while a run is under way."""
    current = Run(id=43, trigger="interval", state="running", progress=Progress("events", 1, 2))
    assert plain(structs.replace(STATUS, state="running", current_run=current))["run_in_progress"] == 1


def test_no_secret_and_no_text_from_elsewhere_is_told() -> None:
    """Neither errors nor users, event ids or the database's address are in the metrics."""
    assert CANARY.encode() not in scrape()
