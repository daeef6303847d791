"""Removal of what the first boot installed; then an upgrade from the version before, with a full database.

All by README's own lines, those of the version before included: its files lie in /wheels/previous.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from inside import (
    BASE_URL,
    CONFIG,
    DATABASE,
    PROJECT,
    USER,
    configured,
    cursor,
    follow,
    graver,
    idle,
    install_steps,
    journal,
    query,
    run,
    shown,
    status,
    systemctl,
)

import syncd

PREVIOUS = Path("/wheels/previous")
SECTION = (PROJECT / "README.md").read_text("utf-8").partition("### Upgrade, remove")[2].partition("\n##")[0]
UPGRADE, REMOVAL = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
KEYS = {
    "billetweb_events": "id",
    "billetweb_gauges": "event_id, session_id, type, gauge_id",
    "billetweb_tickets": "id",
    "billetweb_sessions": "id",
}
MANY = 100_000
FILL = f"""
INSERT INTO syncd_changes (run_id, seen_at, table_name, row_id, event_id, kind, diff)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY})
SELECT run_id, seen_at, table_name, row_id, event_id, kind, diff
FROM n, (SELECT * FROM syncd_changes ORDER BY seq LIMIT 1)
"""


def assert_nothing_is_left() -> None:
    """Fail where there is a process, a file, a user or an entry of the catalog yet."""
    assert shown("LoadState") == "not-found"
    assert run("pgrep", "--full", "bin/syncd run", check=False).stdout == ""
    for database in ("passwd", "group"):
        assert run("getent", database, "syncd", check=False).returncode == 2
    places = ("/etc", "/opt", "/run", "/usr", "/var")
    found = run("find", *places, "-name", "sync[dc]*", "-o", "-name", "_sync[dc]*").stdout.split()
    ours = ("/opt/tests/", "/opt/boots/", "/var/lib/syncd-")  # the last: of the daemons beside the service
    assert [path for path in found if not path.startswith(ours)] == []
    assert "syncd" not in run("journalctl", "--list-catalog").stdout


def kept(table: str) -> str:
    """Return the query for what no later run changes in a mirrored table."""
    return f"SELECT {KEYS[table]}, first_seen_at, vanished_at FROM {table} ORDER BY {KEYS[table]}"


@pytest.fixture(scope="module")
def before() -> dict[str, list[Any]]:
    """Return the rows that the version before left: those of a real mirror; its change log is long."""
    if not PREVIOUS.is_dir():
        pytest.skip("NOT TESTED: no earlier version in this clone's history")
    install, start = install_steps(PREVIOUS)
    (enable,) = (line for line in start if "enable --now" in line)
    for line in install:
        follow(line, PREVIOUS)
    text = (PREVIOUS / "config.toml").read_text("utf-8")
    values = {"user": USER, "base_url": BASE_URL, "interval": "1h"}
    CONFIG.write_text(configured(text, **{key: f'"{value}"' for key, value in values.items()}))
    follow(enable, PREVIOUS)
    assert status()["version"] != syncd.__version__
    assert idle()["last_run"]["outcome"] == "ok"
    run("sqlite3", "-cmd", ".timeout 5000", str(DATABASE), FILL)
    return {table: query(kept(table)) for table in KEYS}


def test_removal_leaves_something() -> None:
    """What this version's installation brought is gone, with the daemon that ran."""
    systemctl("start", "syncd")
    follow(REMOVAL)
    assert_nothing_is_left()


def test_upgrade_loses_or_repeats_something(before: dict[str, list[Any]]) -> None:
    """The new version runs on with all that the old one knew, and without a complaint."""
    runs, end = status()["run_count"], cursor()
    follow(UPGRADE)
    found = status()
    assert (found["version"], shown("ActiveState"), shown("NRestarts")) == (syncd.__version__, "active", "0")
    assert idle(run_count=runs + 1)["health"] == "ok"
    assert query(f"SELECT count(*) > {MANY} FROM syncd_changes") == [(1,)]
    assert query("PRAGMA integrity_check") == [("ok",)]
    ids = [number for (number,) in query("SELECT id FROM syncd_runs ORDER BY id")]
    assert ids == list(range(1, len(ids) + 1))
    assert {table: query(kept(table)) for table in KEYS} == before
    entries = journal(end)
    assert graver(entries) == []
    assert [entry["MESSAGE"] for entry in entries if "SYNCD_EVENT" not in entry] == [], "nor a traceback"


@pytest.mark.usefixtures("before")
def test_removal_after_an_upgrade_leaves_something() -> None:
    """Nothing is left of either version."""
    follow(REMOVAL)
    assert_nothing_is_left()
