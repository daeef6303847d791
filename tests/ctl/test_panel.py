"""What `syncctl status` shows, and what `pause`, `resume` and `reload` answer."""

import contextlib
import functools
import io
import operator
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from support.canned_daemon import ENDED, ERROR, STATUS

from syncd.ctl.panel import answer, hint, status_panel
from syncd.text import cell_width

NOW = datetime(2027, 5, 8, 10, 2, 3, tzinfo=UTC)
PAUSED = {
    "state": "paused",
    "skipping": "paused",
    "next_run_at": None,
    "paused_since": "2027-05-08T09:42:03Z",
    "paused_by": "alice",
}
REFUSED = {
    "health": "failing",
    "health_reason": "Billetweb refused the user or the key",
    "skipping": "credentials",
}


pytestmark = pytest.mark.usefixtures("paris")


def panel(*changes: dict[str, Any], width: int | None = 80) -> list[str]:
    """Return the panel of a status, line by line."""
    return status_panel(functools.reduce(operator.or_, changes, STATUS), NOW, width).split("\n")


def degraded(*errors: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return what differs after a run that ended partial, with these errors."""
    run = ENDED | {"outcome": "partial", "synced": 11, "failed": 1, "errors": [*errors]}
    reason = "the last run ended partial"
    return {
        "health": "degraded",
        "health_reason": reason,
        "last_run": run,
        "last_error": "event 9: no",
    } | changes


def test_the_panel_is_more_than_a_screen() -> None:
    """The daemon stands on the first line, and one subject on each line below."""
    budget = {"refresh_s": 900, "waiting": 3, "increment": "used"}
    more = {
        "latest_outcomes": ["ok", "partial", "failed", "cancelled", "ok"],
        "events_nearly_full": 1,
        "oldest_figure_age_s": 240,
        "budget": budget,
        "database_bytes": 1_234_567,
    }
    assert panel(more) == [
        "✓ ok  syncd 0.3.0, up 3 d 4 h, a run every 15 min",
        "",
        "last run     #43 ok, 2 min ago: 12 events, 1 change, in 3.2 s",
        "latest runs  ✓ – ✗ ! ✓",
        "next run     in 12 min 57 s (2027-05-08 12:15)",
        "events       12 live, 2 full, 1 nearly full",
        "freshness    oldest availability 4 min old, read every 15 min; 3 more to read",
        "database     sqlite:////var/lib/syncd/syncd.db, 1.2 MB",
    ]


def test_the_panel_of_an_older_daemon() -> None:
    """A daemon that tells less, and has done nothing yet, has a panel too."""
    shown = panel({"last_run": None, "events_live": None, "events_full": None, "last_success_at": None})
    assert shown[2:] == [
        "last run     none yet",
        "next run     in 12 min 57 s (2027-05-08 12:15)",
        "database     sqlite:////var/lib/syncd/syncd.db",
    ]


def test_a_bad_health_has_no_way_out() -> None:
    """Where health is not ok, why and what mends it stand below the first line."""
    assert panel(degraded(ERROR))[:5] == [
        "! degraded  syncd 0.3.0, up 3 d 4 h, a run every 15 min",
        "  the last run ended partial",
        "  hint: `syncctl history` and `journalctl -u syncd -p warning` tell more",
        "",
        "last run     #43 partial, 2 min ago: 11 events, 1 failed, 1 change, in 3.2 s",
    ]


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (
            "syncd@site",
            [
                "setup --overwrite --config /etc/syncd/site.toml`, then `systemctl restart syncd@site`",
                "syncd check --config /etc/syncd/site.toml` tells",
                "journalctl -u syncd@site -p warning",
            ],
        ),
        (
            None,
            [
                "setup --overwrite --config FILE`, then `syncctl reload`",
                "syncd check --config FILE` tells",
                "syncd's log tell more",
            ],
        ),
    ],
)
def test_a_hint_leads_to_another_daemon(unit: str | None, told: list[str]) -> None:
    """It names the unit that syncd runs as, and none where it runs otherwise."""
    ill = [REFUSED, *(degraded(ERROR | {"kind": kind}) for kind in ("database", "unreadable"))]
    hints = [hint(STATUS | changes, unit) for changes in ill]
    assert [sentence in found for sentence, found in zip(told, hints, strict=True)] == [True, True, True]


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, None),
        (REFUSED, "systemctl restart syncd"),
        (degraded(ERROR | {"kind": "doubted"}), "syncctl accept"),
        (degraded(ERROR | {"kind": "database"}), "syncd check"),
        (degraded(ERROR | {"kind": "timeout"}), "syncctl reload"),
        (degraded(ERROR | {"kind": "unreadable"}), "journalctl -u syncd -p warning"),
        (degraded(ERROR | {"kind": "restricted"}), ""),
        (degraded(), "syncctl history"),
        (degraded(**PAUSED), "syncctl resume"),
        ({"health": "degraded", "last_run": None}, "syncctl run-now"),
        ({"health": "degraded", "last_run": None, "current_run": ENDED}, ""),
        ({"health": "failing"}, "syncctl run-now"),
        ({"health": "failing", "current_run": ENDED}, ""),
    ],
)
def test_a_hint_names_no_command(changes: dict[str, Any], command: str | None) -> None:
    """The hint is the command that mends just this; where health is ok there is none."""
    found = hint(STATUS | changes)
    assert (not found) if command is None else (f"`{command}`" in found if command else found)
    assert len(f"  hint: {found}") <= 80


def test_a_pause_passes_for_an_illness() -> None:
    """Paused says since when and by whom; it is no bad health by itself, and promises no run."""
    shown = panel(PAUSED)
    assert shown[0].startswith("✓ ok  ")
    assert "next run     paused 20 min ago (2027-05-08 11:42) by alice; `syncctl resume`" in shown


def test_a_refused_key_promises_a_run() -> None:
    """While the key is refused the panel says that runs are skipped."""
    assert "next run     skipped, as all are while Billetweb refuses the user or the key" in panel(REFUSED)


def test_the_panel_shows_a_run_in_progress_and_missed_slots() -> None:
    """A busy daemon's panel adds the current run, the queue, and what was skipped."""
    current = ENDED | {"state": "running", "progress": {"phase": "events", "done": 3, "total": 12}}
    missed = {"slots_skipped": {"busy": 2, "paused": 0}, "slots_missed": 1}
    shown = panel({"current_run": current, "queued_runs": 1}, missed)
    assert "running      #43 manual by alice, for 2 min 3 s: events 3/12" in shown
    assert "queued       1 run" in shown
    wait = {"waits_until": "2027-05-08T10:02:12Z", "waits_for": "60 requests a minute are spent"}
    waiting = current | {"progress": current["progress"] | wait}
    told = "#43 manual by alice, for 2 min 3 s: events 3/12, waits 9 s more: 60 requests a minute are spent"
    assert f"running      {told}" in panel({"current_run": waiting}, width=None)
    assert "skipped      2 scheduled runs (busy), 1 missed while asleep" in shown


def test_the_panel_keeps_trouble_to_itself() -> None:
    """Doubts, failing targets and files, and parked webhooks have a line with a command."""
    trouble = {
        "doubts": 2,
        "publish": {"targets": 2, "failing": 1},
        "webhooks": {"endpoints": 1, "pending": 4, "parked": 3},
        "feeds": {"files": 2, "failing": 1, "error": "/srv/a.csv: the folder /srv is missing"},
    }
    shown = panel(trouble)
    assert "doubts       2, shown by `syncctl doubts`" in shown
    assert "publish      2 targets, 1 failing: see `syncctl publish`" in shown
    assert "webhooks     1 endpoint, 4 waiting, 3 parked: see `syncctl webhooks`" in shown
    assert "feeds        1 of 2 not written: /srv/a.csv: the folder /srv is missing" in shown
    good = {"publish": None, "feeds": {"files": 2, "failing": 0, "error": None}, "webhooks": None}
    assert "feeds        2 files" in panel(good)
    assert not re.search("doubts|publish|webhooks|feeds", "\n".join(panel(good | {"feeds": None})))


@pytest.mark.parametrize("width", [40, 80, 200, None])
def test_a_line_is_wider_than_the_terminal(width: int | None) -> None:
    """No subject's line is wider than the terminal; without a width nothing is cut."""
    shown = panel(degraded(last_error="event 9: " + "no answer " * 30), {"database": "x" * 300}, width=width)
    assert all(cell_width(line) <= (width or 999) for line in shown if not line.startswith("  "))
    assert any("x" * 300 in line for line in shown) is (width is None)


def test_marks_that_the_output_cannot_take() -> None:
    """Where the output's encoding is not UTF-8 the marks are ASCII."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "ascii")):
        shown = panel({"latest_outcomes": ["ok", "partial", "failed", "cancelled"]})
    assert shown[0].startswith("+ ok  ")
    assert "latest runs  - x ! +" in shown


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        (
            "pause",
            PAUSED | {"changed": ["paused"]},
            "Scheduled runs are paused, also over a restart; `syncctl resume` starts them again.",
        ),
        (
            "pause",
            PAUSED | {"changed": []},
            "Scheduled runs were paused already, 20 min ago (2027-05-08 11:42) by alice; `syncctl resume`.",
        ),
        (
            "resume",
            {"changed": ["paused"]},
            "Scheduled runs are on again; the next one in 12 min 57 s (2027-05-08 12:15).",
        ),
        (
            "resume",
            {"changed": []},
            "Scheduled runs are on already; the next one in 12 min 57 s (2027-05-08 12:15).",
        ),
        ("reload", {}, "The configuration was read again; nothing changed."),
        (
            "reload",
            {"changed": ["sync.interval", "API key"], "needs_restart": ["database.url"]},
            (
                "The configuration was read again; sync.interval, API key changed.\n"
                "`systemctl restart syncd` is needed for database.url.\n"
                "`syncctl run-now` tries the key."
            ),
        ),
    ],
)
def test_a_command_does_not_say_what_it_did(command: str, changes: dict[str, Any], said: str) -> None:
    """`pause` and `resume` say whether they changed something, `reload` what changed and what waits."""
    assert answer(command, STATUS | changes, NOW) == said
