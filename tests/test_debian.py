"""The Debian packaging names what the project has. What the package does is tested in a machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import syncd

ROOT = Path(__file__).parent.parent
SYSTEMD = ROOT / "systemd"
DEBIAN = SYSTEMD / "debian"
RULES = (DEBIAN / "rules").read_text(encoding="utf-8")
LISTS = [(DEBIAN / name).read_text(encoding="utf-8") for name in ("syncd.install", "syncd.manpages")]
UNITS = sorted(path.name for path in SYSTEMD.glob("*.*") if path.suffix in {".service", ".socket", ".timer"})
NOT_INSTALLED = {"build-deb", "generate.py"}


def files() -> set[str]:
    """Return the files that users of systemd, man and shells get, relative to the project."""
    found = {path for path in SYSTEMD.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    kept = {path for path in found if DEBIAN not in path.parents and path.name not in NOT_INSTALLED}
    return {str(path.relative_to(ROOT)) for path in kept}


def named() -> set[str]:
    """Return the files of `systemd/` that the packaging takes."""
    units = re.search(r"^units := (.+)$", RULES, re.MULTILINE)
    assert units
    words = {word for text in (RULES, *LISTS) for word in text.split() if word.startswith("systemd/")}
    return words - {"systemd/$$unit"} | {f"systemd/{unit}" for unit in units[1].split()}


def test_package_has_another_version() -> None:
    """The newest entry of the Debian changelog is of this version."""
    newest = re.match(r"syncd \((.+?)\) ", (DEBIAN / "changelog").read_text(encoding="utf-8"))
    assert newest
    assert newest[1] == syncd.__version__


def test_file_is_not_packaged_or_not_there() -> None:
    """The packaging takes each file that is to be installed, and no other."""
    assert named() == files()


@pytest.mark.parametrize("unit", UNITS)
def test_packaged_unit_leads_nowhere(unit: str) -> None:
    """With the paths rewritten as the packaging does it, a unit starts the package's programs."""
    rule = re.search(r"sed '(.+)' systemd/\$\$unit", RULES)
    assert rule
    text = subprocess.run(["sed", rule[1], SYSTEMD / unit], capture_output=True, text=True, check=True).stdout
    assert "/opt" not in text
    installed = {f"/usr/bin/{path.name}" for path in (DEBIAN / "bin").iterdir()}
    started = re.findall(r"^Exec\w+=(\S+)", text, re.MULTILINE)
    assert set(started) <= installed
    assert bool(started) == unit.endswith(".service")


def test_launcher_starts_something_else() -> None:
    """The package's programs are those that pip would make."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    launchers = {}
    for path in (DEBIAN / "bin").iterdir():
        started = re.search(r"^from (\S+) import (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert started
        launchers[path.name] = f"{started[1]}:{started[2]}"
    assert launchers == project["scripts"]
