"""The systemd files: what other parts rely on stands in them, and systemd takes them."""

import configparser
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNIT = SYSTEMD / "syncd.service"
SYSUSERS = SYSTEMD / "syncd.sysusers.conf"


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment] # directives have capitals
    parser.read(UNIT, encoding="utf-8")
    return parser


@pytest.mark.parametrize(
    ("section", "directive", "value"),
    [
        ("Unit", "After", "network-online.target time-set.target"),
        ("Unit", "Wants", "network-online.target"),
        ("Service", "Type", "notify"),
        ("Service", "User", "syncd"),
        ("Service", "Group", "syncd"),
        ("Service", "ExecStart", "/opt/syncd/bin/syncd run"),
        ("Service", "ExecReload", "/opt/syncd/bin/syncctl reload"),
        ("Service", "Restart", "on-failure"),
        ("Service", "RestartPreventExitStatus", "78"),
        ("Service", "LoadCredential", "billetweb-key:/etc/syncd/credentials/billetweb-key"),
        ("Service", "StateDirectory", "syncd"),
        ("Service", "StateDirectoryMode", "0750"),
        ("Service", "RuntimeDirectory", "syncd"),
        ("Service", "RuntimeDirectoryMode", "0755"),
        ("Service", "UMask", "0027"),
        ("Service", "PrivateUsers", "no"),
        ("Install", "WantedBy", "multi-user.target"),
    ],
)
def test_unit_drifts(unit: configparser.ConfigParser, section: str, directive: str, value: str) -> None:
    """What the daemon, its paths and its exit codes rely on is in the unit."""
    assert unit[section][directive] == value


@pytest.mark.parametrize(
    "directive", ["WatchdogSec", "Environment", "EnvironmentFile", "DynamicUser", "ConfigurationDirectory"]
)
def test_unit_promises_too_much(unit: configparser.ConfigParser, directive: str) -> None:
    """No watchdog that nobody feeds, no environment for secrets, no user that nobody can join."""
    assert directive not in unit["Service"]


def test_stop_cut_short(unit: configparser.ConfigParser) -> None:
    """The 5 s of an orderly stop fit into the time-out, and a crash loop into the limit that ends it."""
    assert int(unit["Service"]["TimeoutStopSec"].removesuffix("s")) > 5
    restart_s = int(unit["Service"]["RestartSec"].removesuffix("s"))
    assert unit["Unit"]["StartLimitIntervalSec"] == "10min"
    assert restart_s * int(unit["Unit"]["StartLimitBurst"]) < 600


def test_directive_said_twice() -> None:
    """No directive is named twice, which would override or add up; the filter's two lines are meant to."""
    names = Counter(re.findall(r"^(\w+)=", UNIT.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: count for name, count in names.items() if count > 1} == {"SystemCallFilter": 2}


def test_hardening_without_reason() -> None:
    """Each hardening line has a comment line of its own above it."""
    hardening = UNIT.read_text(encoding="utf-8").partition("# Hardening.")[2].partition("[Install]")[0]
    lines = hardening.splitlines()[1:]
    directives = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert len(directives) > 20
    assert [lines[number] for number in directives if not re.match(r"# \w|# … \w", lines[number - 1])] == []


@pytest.fixture
def startable(tmp_path: Path) -> Path:
    """Give back a copy of the unit whose programs exist here."""
    text, count = re.subn(
        r"^(ExecStart|ExecReload)=.*", r"\1=/bin/true", UNIT.read_text("utf-8"), flags=re.MULTILINE
    )
    assert count == 2
    copy = tmp_path / UNIT.name
    copy.write_text(text, encoding="utf-8")
    return copy


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of systemd's, or skip the test where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_systemd_ignores_line(startable: Path) -> None:
    """The manager knows every directive and takes every value."""
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(startable))
    assert (done.returncode, done.stderr) == (0, "")


def test_exposure_grows(startable: Path) -> None:
    """The exposure is at most 1.5 of 10."""
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=15", str(startable))
    assert done.returncode == 0, done.stdout[-200:]


@pytest.mark.skipif(os.geteuid() != 0, reason="writes account files as root, into a directory of its own")
def test_account_not_made(tmp_path: Path) -> None:
    """The sysusers file makes the user and its group, who cannot log in."""
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", str(SYSUSERS))
    assert done.returncode == 0, done.stderr
    name, _, _, _, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("syncd", "/var/lib/syncd", "/usr/sbin/nologin")
    assert (tmp_path / "etc/group").read_text().startswith("syncd:")
