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
TEMPLATE = SYSTEMD / "syncd@.service"
ONCE = SYSTEMD / "syncd-once.service"
SERVICES = [UNIT, TEMPLATE, ONCE]
UNITS = [*SERVICES, SYSTEMD / "syncd.socket", SYSTEMD / "syncd-once.timer"]
SYSUSERS = SYSTEMD / "syncd.sysusers.conf"
TMPFILES = SYSTEMD / "syncd.tmpfiles.conf"
OF_INSTANCE = (" --config /etc/syncd/%i.toml", " --socket /run/syncd/%i/syncd.sock", "/%i")
"""What a line of the template says more than that of the one service."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="writes as root, into a directory of its own")


def parsed(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment] # directives have capitals
    parser.read(path, encoding="utf-8")
    return parser


@pytest.fixture
def unit() -> configparser.ConfigParser:
    return parsed(UNIT)


def lines(path: Path, *, after: str) -> list[str]:
    """Return the lines between `after` and the next section, without comments and empty ones."""
    rest = path.read_text(encoding="utf-8").partition(after)[2].partition("\n[")[0]
    return [line for line in rest.splitlines()[1:] if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("section", "directive", "value"),
    [
        ("Unit", "After", "network-online.target time-set.target postgresql.service"),
        ("Unit", "Wants", "network-online.target"),
        ("Unit", "StartLimitIntervalSec", "10min"),
        ("Unit", "StartLimitBurst", "10"),
        ("Service", "Type", "notify"),
        ("Service", "User", "syncd"),
        ("Service", "Group", "syncd"),
        ("Service", "ExecStart", "/opt/syncd/bin/syncd run"),
        ("Service", "ExecReload", "/opt/syncd/bin/syncctl reload"),
        ("Service", "Restart", "on-failure"),
        ("Service", "RestartPreventExitStatus", "78"),
        ("Service", "WatchdogSec", "2min"),
        ("Service", "TimeoutStartSec", "60s"),
        ("Service", "TimeoutStopSec", "15s"),
        ("Service", "TimeoutAbortSec", "15s"),
        ("Service", "LimitCORE", "0"),
        ("Service", "MemoryMax", "1G"),
        ("Service", "LoadCredential", "billetweb-key:/etc/syncd/credentials/billetweb-key"),
        ("Service", "SetCredential", r"billetweb-key:\n"),
        ("Service", "StateDirectory", "syncd"),
        ("Service", "StateDirectoryMode", "0750"),
        ("Service", "RuntimeDirectory", "syncd"),
        ("Service", "RuntimeDirectoryMode", "0755"),
        ("Service", "RuntimeDirectoryPreserve", "yes"),
        ("Service", "UMask", "0027"),
        ("Service", "PrivateUsers", "no"),
        ("Install", "WantedBy", "multi-user.target"),
    ],
)
def test_unit_drifts(unit: configparser.ConfigParser, section: str, directive: str, value: str) -> None:
    """What the daemon, its paths and its exit codes rely on is in the unit."""
    assert unit[section][directive] == value


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "directive", ["Environment", "EnvironmentFile", "DynamicUser", "ConfigurationDirectory"]
)
def test_unit_promises_too_much(path: Path, directive: str) -> None:
    """No environment for secrets, no user that nobody can join."""
    assert directive not in parsed(path)["Service"]


def test_stop_cut_short(unit: configparser.ConfigParser) -> None:
    """The 5 s of an orderly stop fit into the time-out, and a crash loop into the limit that ends it."""
    assert int(unit["Service"]["TimeoutStopSec"].removesuffix("s")) > 5
    restart_s = int(unit["Service"]["RestartSec"].removesuffix("s"))
    assert restart_s * int(unit["Unit"]["StartLimitBurst"]) < 600


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_directive_said_twice(path: Path) -> None:
    """No directive is named twice, which would override or add up; the filter's two lines are meant to."""
    names = Counter(re.findall(r"^(\w+)=", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: count for name, count in names.items() if count > 1} == {"SystemCallFilter": 2}


def test_hardening_without_reason() -> None:
    """Each hardening line has a comment line of its own above it."""
    hardening = UNIT.read_text(encoding="utf-8").partition("# Hardening.")[2].partition("[Install]")[0]
    rows = hardening.splitlines()[1:]
    directives = [number for number, row in enumerate(rows) if row and not row.startswith("#")]
    assert len(directives) > 20
    assert [rows[number] for number in directives if not re.match(r"# \w|# … \w", rows[number - 1])] == []


@pytest.mark.parametrize("path", [TEMPLATE, ONCE], ids=lambda path: path.name)
def test_one_service_is_less_hardened(path: Path) -> None:
    """The hardening of each service is, line by line, that of the first."""
    hardening = lines(UNIT, after="\n# Hardening")
    assert len(hardening) > 20
    assert lines(path, after="\n# Hardening") == hardening


def test_template_drifts() -> None:
    """Apart from the instance's name, every line of the template's service is that of the one service."""
    told = []
    for line in lines(TEMPLATE, after="[Service]"):
        for part in OF_INSTANCE:
            line = line.replace(part, "")  # noqa: PLW2901  # one part after the other
        told.append(line)
    assert told == lines(UNIT, after="[Service]")


def test_instances_share_files() -> None:
    """The settings, the key, the folders and the socket of an instance are its own."""
    service = parsed(TEMPLATE)["Service"]
    of_files = ("ExecStart", "ExecReload", "LoadCredential", "StateDirectory", "RuntimeDirectory")
    assert [name for name, value in service.items() if "%i" in value] == list(of_files)


def test_single_run_drifts(unit: configparser.ConfigParser) -> None:
    """What `syncd once` has in common with the daemon it shares: user, key, folder, order of start."""
    once = parsed(ONCE)
    assert dict(once["Unit"]).items() - dict(unit["Unit"]).items() == {
        (name, once["Unit"][name]) for name in ("Description", "Documentation")
    }
    differ = dict(once["Service"]).items() - dict(unit["Service"]).items()
    assert differ == {
        ("Type", "oneshot"),
        ("ExecStart", "/opt/syncd/bin/syncd once"),
        ("TimeoutStartSec", "25h"),
    }
    assert {"User", "Group", "LoadCredential", "SetCredential", "StateDirectory"} <= set(once["Service"])


def test_socket_is_made_where_nobody_looks(unit: configparser.ConfigParser) -> None:
    """The socket unit makes the one socket of the service's folder, as open as the daemon would make it."""
    made = parsed(SYSTEMD / "syncd.socket")["Socket"]
    assert made["ListenStream"] == f"/run/{unit['Service']['RuntimeDirectory']}/syncd.sock"
    assert (made["SocketUser"], made["SocketGroup"]) == (unit["Service"]["User"], unit["Service"]["Group"])
    assert (made["SocketMode"], made["DirectoryMode"]) == ("0660", unit["Service"]["RuntimeDirectoryMode"])
    assert "Accept" not in made


@pytest.fixture
def startable(tmp_path: Path) -> list[Path]:
    """Give back copies of the units whose programs exist here."""
    copies = []
    for path in UNITS:
        text, count = re.subn(
            r"^(ExecStart|ExecReload)=.*", r"\1=/bin/true", path.read_text("utf-8"), flags=re.MULTILINE
        )
        assert count == {UNIT: 2, TEMPLATE: 2, ONCE: 1}.get(path, 0)
        copies.append(tmp_path / path.name)
        copies[-1].write_text(text, encoding="utf-8")
    return copies


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of systemd's, or skip the test where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("number", range(len(UNITS)), ids=[path.name for path in UNITS])
def test_systemd_ignores_line(startable: list[Path], number: int) -> None:
    """The manager knows every directive and takes every value."""
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(startable[number]))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_exposure_grows(path: Path) -> None:
    """The exposure is at most 1.2 of 10."""
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=12", str(path))
    assert done.returncode == 0, done.stdout[-200:]


@as_root
def test_account_not_made(tmp_path: Path) -> None:
    """The sysusers file makes the user and its group, who cannot log in."""
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", str(SYSUSERS))
    assert done.returncode == 0, done.stderr
    name, _, _, _, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("syncd", "/var/lib/syncd", "/usr/sbin/nologin")
    assert (tmp_path / "etc/group").read_text().startswith("syncd:")


@as_root
def test_folder_not_made(tmp_path: Path) -> None:
    """The tmpfiles file makes the folders, for their owners, and closes the keys that lie there already."""
    keys = tmp_path / "etc/syncd/credentials"
    (keys / "choir").mkdir(parents=True)
    for key in (keys / "billetweb-key", keys / "choir/billetweb-key"):
        key.write_text("canary")
        key.chmod(0o644)
        os.chown(key, 65534, 65534)
    for program, path in (("systemd-sysusers", SYSUSERS), ("systemd-tmpfiles", TMPFILES)):
        more = ["--create"] if path == TMPFILES else []
        done = run(program, f"--root={tmp_path}", *more, str(path))
        assert done.returncode == 0, done.stderr
    _, _, uid, gid, *_ = (tmp_path / "etc/passwd").read_text().strip().split(":")
    folders = ("run/syncd", "var/lib/syncd", "etc/syncd/credentials", "etc/syncd/credentials/choir")
    found = {name: (tmp_path / name).stat() for name in folders}
    found |= {str(key.relative_to(tmp_path)): key.stat() for key in keys.rglob("*-key")}
    assert {name: (f"{seen.st_mode:o}", seen.st_uid, seen.st_gid) for name, seen in found.items()} == {
        "run/syncd": ("40755", int(uid), int(gid)),
        "var/lib/syncd": ("40750", int(uid), int(gid)),
        "etc/syncd/credentials": ("40700", 0, 0),
        "etc/syncd/credentials/choir": ("40700", 0, 0),
        "etc/syncd/credentials/billetweb-key": ("100600", 0, 0),
        "etc/syncd/credentials/choir/billetweb-key": ("100600", 0, 0),
    }
