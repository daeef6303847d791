"""The metrics as Prometheus reads them."""

import shutil
import subprocess
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families
from support.project import METRICS

from syncd import __version__
from syncd.account.account import Account
from syncd.account.status import BudgetStatus, Facts, Status
from syncd.control.metrics import NAME_LENGTH, exposition
from syncd.database.rows import Places
from syncd.feed.files import FeedsStatus
from syncd.feed.publish import PublishStatus, TargetState
from syncd.feed.webhooks import EndpointState
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
    synced=5,
    failed=1,
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
    publish=PublishStatus(2, 1),
    feeds=FeedsStatus(files=3, failing=1, error=f"/srv/{CANARY}: Permission denied", written=5, errors=2),
    budget=BudgetStatus(
        requests=48, full_requests=2000, refresh_s=37800.0, waiting=6, increment="not permitted"
    ),
    slots_skipped={"overrun": 2, "paused": 5},
    slots_missed=7,
)
TARGETS = [
    TargetState(
        name="formation",
        table="Formation",
        database=CANARY,
        matched=4,
        unmatched=2,
        examples=[CANARY],
        written=9,
        last_write_at=START,
        errors=3,
        last_error=CANARY,
    ),
    TargetState(name="stage", table="Stage", database=None),
]
PLACES = [
    Places("900001", 'Fête "du\npain" \\ ☂', 120, 73, unlimited=False, is_full=False),
    Places("900002", "x" * 1000, 10, 0, unlimited=False, is_full=True),
    Places("900003", None, None, None, unlimited=True, is_full=False),
    Places("900004", "unknown", None, None, unlimited=False, is_full=False),
]
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


ENDPOINTS = [
    EndpointState(name="site", host=CANARY, pending=3, parked=1, delivered=8, failed=2, last_error=CANARY),
    EndpointState(name="crm", host=CANARY),
]


def scrape(status: Status = STATUS) -> bytes:
    facts = Facts(started_at=START, places=PLACES)
    facts.count(RUN)
    facts.count(structs.replace(RUN, trigger="interval", outcome="ok", events=[]))
    facts.count(structs.replace(RUN, trigger="interval", outcome="ok", events=[]))
    requests = Counter({"200": 31, "503": 2, 'odd "status"\n\\': 1})
    account = SimpleNamespace(
        status=lambda: status,
        facts=facts,
        outputs=SimpleNamespace(
            publishing=SimpleNamespace(states=lambda: TARGETS),
            webhooks=SimpleNamespace(states=lambda: ENDPOINTS),
        ),
        client=SimpleNamespace(statuses=requests),
        schedule=SimpleNamespace(clock_jumps=4),
    )
    return exposition(cast("Account", account))


def samples(status: Status = STATUS) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scrape(status).decode())
        for sample in family.samples
    }


def plain(status: Status = STATUS) -> dict[str, float]:
    return {
        name.removeprefix("syncd_"): value
        for (name, labels), value in samples(status).items()
        if not labels and not name.startswith("syncd_process_")
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
        "feeds_written_total": 5,
        "feeds_errors_total": 2,
        "publish_targets": 2,
        "publish_targets_failing": 1,
        "next_run_timestamp_seconds": START.timestamp() + 900,
        "last_success_timestamp_seconds": START.timestamp() - 900,
        "last_synced_timestamp_seconds": START.timestamp(),
        "oldest_figure_timestamp_seconds": START.timestamp(),
        "events_unread": 0,
        "last_run_timestamp_seconds": START.timestamp(),
        "last_run_events_synced": 5,
        "last_run_events_failed": 1,
        "last_run_requests": RUN.requests,
        "last_run_duration_seconds": 3.25,
        "budget_requests": 48,
        "budget_full_requests": 2000,
        "budget_refresh_seconds": 37800,
        "budget_waiting": 6,
        "increment_permitted": 0,
        "slots_missed_total": 7,
        "clock_jumps_total": 4,
        "webhooks_endpoints": 2,
    }


def test_counts_are_told_apart_by_their_labels() -> None:
    """Runs, rows, slots, requests, health and version carry the label that tells them apart."""
    ended = labelled("runs_total")
    assert {labels: number for labels, number in ended.items() if number} == {
        (("outcome", "ok"), ("trigger", "interval")): 2,
        (("outcome", "partial"), ("trigger", "manual")): 1,
    }
    unseen = {("outcome", "failed"), ("outcome", "unknown_event")}
    assert {pair for labels in ended for pair in labels} >= unseen, "its first one would be no increase"
    assert labelled("rows_total") == {
        (("kind", "inserted"),): 12,
        (("kind", "updated"),): 0,
        (("kind", "unchanged"),): 24,
        (("kind", "vanished"),): 0,
        (("kind", "returned"),): 0,
    }
    assert labelled("slots_skipped_total") == {
        (("reason", "overrun"),): 2,
        (("reason", "busy"),): 0,
        (("reason", "paused"),): 5,
        (("reason", "credentials"),): 0,
    }
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
    assert labelled("last_run_outcome") == {
        (("outcome", "ok"),): 0,
        (("outcome", "partial"),): 1,
        (("outcome", "failed"),): 0,
        (("outcome", "cancelled"),): 0,
    }
    ((labels, value),) = labelled("build_info").items()
    assert (value, dict(labels)["version"], dict(labels)["database"]) == (1, __version__, "postgresql")


def test_targets_are_told_apart_by_their_names() -> None:
    """Each target has its rows, errors and last write; before the first run nothing is known of its rows."""
    formation, stage = (("target", "formation"),), (("target", "stage"),)
    assert labelled("publish_rows_matched") == {formation: 4}
    assert labelled("publish_rows_unmatched") == {formation: 2}
    assert labelled("publish_rows_vanished") == {formation: 0}
    assert labelled("publish_failing") == {formation: 1, stage: 0}
    assert labelled("publish_rows_written_total") == {formation: 9, stage: 0}
    assert labelled("publish_errors_total") == {formation: 3, stage: 0}
    assert labelled("publish_last_write_timestamp_seconds") == {formation: START.timestamp()}


def of_events(name: str) -> dict[str, float]:
    return {dict(labels)["event_id"]: value for labels, value in labelled(name).items()}


def test_places_of_an_event_are_made_up() -> None:
    """Unlimited has no number and is not full; what is unknown has no sample at all."""
    assert of_events("event_places_left") == {"900001": 73, "900002": 0}
    assert of_events("event_places") == {"900001": 120, "900002": 10}
    assert of_events("event_full") == {"900001": 0, "900002": 1, "900003": 0}


def test_name_of_an_event_breaks_the_text() -> None:
    """A name with quotes and line breaks is read back on one line, and a long one is cut."""
    names = [dict(labels)["name"] for labels in labelled("event_places")]
    assert names[0] == 'Fête "du pain" \\ ☂'
    assert names[1] == "x" * (NAME_LENGTH - 1) + "…"


def test_an_endpoint_is_told_of_without_its_name() -> None:
    """Deliveries that wait, are parked, were taken or refused are told for each endpoint."""
    site, crm = (("endpoint", "site"),), (("endpoint", "crm"),)
    assert labelled("webhooks_pending") == {site: 3, crm: 0}
    assert labelled("webhooks_parked") == {site: 1, crm: 0}
    assert labelled("webhooks_delivered_total") == {site: 8, crm: 0}
    assert labelled("webhooks_failed_total") == {site: 2, crm: 0}


def test_process_is_told_as_it_is() -> None:
    """Memory, processor time, threads and open files are those of this process."""
    process = {name: value for (name, _), value in samples().items() if name.startswith("syncd_process_")}
    assert 10e6 < process["syncd_process_resident_memory_bytes"] < 10e9
    assert 0 < process["syncd_process_open_fds"] < process["syncd_process_max_fds"]
    assert process["syncd_process_threads"] >= 1
    assert process["syncd_process_cpu_seconds_total"] > 0


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
        *(f"last_run_{name}" for name in ("timestamp_seconds", "duration_seconds", "requests")),
        *(f"last_run_events_{name}" for name in ("synced", "failed")),
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


def test_metric_that_nobody_can_find() -> None:
    """The table beside the alerts has each metric with its type, labels and help text, and no other."""
    found = {}
    for family in text_string_to_metric_families(scrape().decode()):
        labels = sorted({label for sample in family.samples for label in sample.labels})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels, family.documentation)
    assert {name: (kind, sorted(labels), text) for name, (kind, labels, text) in METRICS.items()} == found


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed: apt-get install prometheus"
)
@pytest.mark.parametrize("status", [STATUS, BEFORE_ALL])
def test_prometheus_finds_fault_with_the_metrics(status: Status) -> None:
    """Promtool has nothing to say of the text, names, types or helps."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(status), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
