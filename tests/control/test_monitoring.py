"""The alert rules and the dashboard: Prometheus takes them, and what they ask for is told by syncd."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.project import METRICS

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "syncd/monitoring"
ALERTS, DASHBOARD = FOLDER / "alerts.yml", FOLDER / "dashboard.json"
OF_OTHERS = {"node_textfile_mtime_seconds"}
"""Told by node_exporter, of the file that `syncctl metrics --textfile` writes."""

promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed: apt-get install prometheus"
)


def told(*arguments: str | Path) -> str:
    """Return what promtool says, which must be content."""
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> list[str]:
    """Return every query of the dashboard."""
    board: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


@promtool
def test_prometheus_refuses_the_rules() -> None:
    """Promtool finds nothing wrong with the alert rules."""
    assert re.search(r"SUCCESS: \d\d rules found", told("check", "rules", ALERTS))


@promtool
def test_alarm_that_does_not_ring_or_never_stops() -> None:
    """Each case of alerts_test.yml rings what it says and nothing else."""
    told("test", "rules", "alerts_test.yml")


@promtool
def test_prometheus_refuses_a_query_of_the_dashboard(tmp_path: Path) -> None:
    """Every query of the dashboard is one that Prometheus can read."""
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$instance", ".*")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # which is YAML too
    told("check", "rules", file)


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_metric_that_nobody_tells(path: Path) -> None:
    """Every metric of the rules and the dashboard is in the table, which has those that there are."""
    asked = set(re.findall(r"\b(?:syncd|node)_[a-z_]+\b", path.read_text(encoding="utf-8")))
    assert len(asked) > 10
    assert asked <= METRICS.keys() | OF_OTHERS


def test_panels_of_the_dashboard_overlap() -> None:
    """Each panel has an id and a place of its own, and its data source is the one that is chosen."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    sources = {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"}
    assert sources == {"${datasource}"}
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance"}


def test_rules_and_dashboard_are_not_installed() -> None:
    """The wheel and the Debian package bring both, and the table of metrics."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    listed = (ROOT / "systemd/debian/syncd.install").read_text(encoding="utf-8").splitlines()
    names = sorted(f"syncd/monitoring/{path.name}" for path in FOLDER.iterdir())
    assert names == [f"syncd/monitoring/{name}" for name in ("alerts.yml", "dashboard.json", "metrics.md")]
    for name in names:
        assert shared[name] == f"share/syncd/{Path(name).name}"
        assert f"{name} usr/share/syncd" in listed
