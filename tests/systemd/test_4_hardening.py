"""The hardening of the unit: each line is in force, forbids what it is there for, and is in nobody's way."""

import json
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from inside import (
    BASE_URL,
    CONFIG,
    DATABASE,
    GOOD,
    PROJECT,
    SOCKET,
    Json,
    configured,
    cursor,
    graver,
    idle,
    journal,
    make_user,
    next_run,
    pid,
    query,
    run,
    run_as,
    shown,
    status,
    systemctl,
)
from probe import ATTEMPTS, KERNEL_LOG, LEFT_BEHIND, MODULES, OPEN, OTHERS_FILE, SUID

UNITS = Path("/run/systemd/system")
UNIT = PROJECT / "systemd/syncd.service"
BLOCK = re.compile(r"^# Hardening\..*?(?=^\[Install\])", re.DOTALL | re.MULTILINE)
CONTROL_GROUP = re.compile(r"(?<=drop-in \(`systemctl edit syncd`\) with )(\S+) and (.+)\.$", re.MULTILINE)
BELOW_HOME = re.compile(r"\(below `/home`: `(ProtectHome=\w+)` and `(BindPaths=)` with the folder")
(HARDENING,) = BLOCK.findall(UNIT.read_text("utf-8"))
LINES = re.findall(r"^\w+=.*", HARDENING, re.MULTILINE)
PROGRAM = ["/opt/syncd/bin/python", str(PROJECT / "tests/systemd/probe.py")]

SHOWN = {
    "MemoryMax": str(2**30),
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallErrorNumber": "1",
}
"""What systemctl writes in another way than the unit: bytes, an order of its own, EPERM."""
FILTER = [line for line in LINES if line.startswith("SystemCallFilter=")]

FORBIDS = {
    "CapabilityBoundingSet=": {"give a file away", "rename the machine", "schedule in real time"},
    "ProtectSystem=strict": {"write to /usr", "write to /etc", "write where all may"},
    "ReadOnlyPaths=/run": {"write where all may in /run"},
    "ProtectHome=yes": {"see homes"},
    "PrivateTmp=yes": {"see others' temporary files"},
    "PrivateMounts=yes": {"mount for everybody"},
    "PrivateDevices=yes": {"see hardware"},
    "DevicePolicy=closed": {"use a device"},
    "ProtectControlGroups=yes": {"make a control group"},
    "ProtectHostname=yes": {"rename the machine"},
    "ProtectKernelLogs=yes": {"see the kernel's log"},
    "ProtectKernelModules=yes": {"see kernel modules"},
    "ProtectKernelTunables=yes": {"set a kernel parameter"},
    "ProcSubset=pid": {"see what is no process"},
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6": {"make a netlink socket"},
    "RestrictNamespaces=yes": {"make a user namespace", "make a network namespace"},
    "RestrictRealtime=yes": {"schedule in real time"},
    "RestrictSUIDSGID=yes": {"make a set-user-ID file"},
    "LockPersonality=yes": {"change the execution domain"},
    "MemoryDenyWriteExecute=yes": {"map writable code", "make data code"},
    "SystemCallArchitectures=native": {"run a 32-bit program"},
    "SystemCallFilter=@system-service": {"be traced"},
    "SystemCallFilter=~@privileged @resources": {"change an owner", "change its priority"},
}
"""What root can no longer do with one of the lines, and with no other.

The machine has no kernel log and no modules: files in their places show what hides them. The calls for
both, as all that sets the clock, it refuses to everybody.
"""
FORBIDS_OTHERS = {
    "NoNewPrivileges=yes": {"gain by a set-user-ID program"},
    "ProtectProc=invisible": {"see others' processes"},
}
"""The same for the user syncd, where root is exempt."""
SHOWN_OTHERWISE = {
    "MemoryMax=1G",
    "PrivateUsers=no",
    "ProtectClock=yes",
    "RemoveIPC=yes",
    "SystemCallErrorNumber=EPERM",
}
"""Lines that have a test of their own below; of the memory systemd's own word is enough."""

DENIED = "denied|not permitted|read-only"

ONLY_ROOT = {
    "give a file away",
    "write to /usr",
    "write to /etc",
    "mount for everybody",
    "make a control group",
    "rename the machine",
    "set a kernel parameter",
    "make a network namespace",
    "schedule in real time",
}
"""What the user syncd cannot do without any hardening either."""
if not Path("/dev/net/tun").stat().st_mode & stat.S_IWOTH:  # some machines leave it to everybody
    ONLY_ROOT.add("use a device")


@pytest.fixture(scope="module", autouse=True)
def tempting() -> Iterator[None]:
    """Put things in place that an unconfined program can see and use; leave syncd running as it was."""
    make_user("marie", "syncd")  # whose home is one to see
    CONFIG.write_text(GOOD)
    OPEN.mkdir(exist_ok=True)
    OPEN.chmod(0o1777)
    shutil.copy("/usr/bin/id", SUID)
    SUID.chmod(0o4755)
    (MODULES / "6.1").mkdir(parents=True)
    for file in (KERNEL_LOG, OTHERS_FILE):
        file.write_text("see")
        file.chmod(0o644)
    systemctl("restart", "syncd")
    yield
    for file in (KERNEL_LOG, OTHERS_FILE):
        file.unlink()
    shutil.rmtree(MODULES)
    shutil.rmtree(OPEN)
    systemctl("restart", "syncd")


@pytest.fixture(scope="module")
def stopped(tempting: None) -> Iterator[None]:
    """Stop syncd for a while: what its user leaves behind goes with the last process of that user."""
    systemctl("stop", "syncd")
    yield
    systemctl("start", "syncd")


# --- in force


def expanded(group: str) -> set[str]:
    """Return the system calls of a group, as systemd knows it."""
    lines = run("systemd-analyze", "syscall-filter", group).stdout.splitlines()[1:]
    names = {line.strip() for line in lines if not line.strip().startswith("#")}
    return {name for name in names if name[:1] != "@"}.union(*(expanded(n) for n in names if n[:1] == "@"))


@pytest.mark.parametrize("line", [line for line in LINES if line not in FILTER])
def test_line_is_ignored(line: str) -> None:
    """The running service has what the line states."""
    name, _, value = line.partition("=")
    assert shown(name) == SHOWN.get(name, value)


def test_filter_is_ignored() -> None:
    """The running service may use the system calls that the two lines together let it, and no others."""
    (allowed,), forbidden = (re.findall(r"@\S+", line) for line in FILTER)
    calls = expanded(allowed).difference(*map(expanded, forbidden))
    found = set(shown("SystemCallFilter").split())
    # systemd leaves out the few newest calls, which its library does not know.
    assert found <= calls
    assert len(calls - found) < 10


def test_kernel_knows_nothing_of_it() -> None:
    """The daemon's own process has no right of root's, can gain none, is filtered, and leaves no core."""
    text = Path(f"/proc/{pid()}/status").read_text()
    facts = dict(re.findall(r"^(\w+):\t(.*)", text, re.MULTILINE))
    assert {facts[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Umask"]) == ("1", "2", "0027")
    limits = Path(f"/proc/{pid()}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits


# --- what it forbids


def probed(*lines: str) -> Json:
    """Return what came of the attempts of a service with these lines and no others."""
    properties = [word for line in lines for word in ("-p", line)]
    done = run("systemd-run", "--quiet", "--wait", "--pipe", "--collect", *properties, *PROGRAM)
    run("ipcrm", "-M", str(LEFT_BEHIND), check=False)
    found: Json = json.loads(done.stdout)
    return found


def refused(found: Json) -> set[str]:
    """Return the attempts that failed, in whichever way."""
    return {name for name, result in found["came of"].items() if result in ("refused", "killed")}


@pytest.fixture(scope="module")
def as_root(stopped: None) -> Json:
    """Give what root can do without any hardening."""
    return probed()


@pytest.fixture(scope="module")
def as_syncd(stopped: None) -> Json:
    """Give what the user syncd can do without any hardening."""
    return probed("User=syncd")


def test_line_without_proof() -> None:
    """Each line is in exactly one of the lists above."""
    assert sorted([*FORBIDS, *FORBIDS_OTHERS, *SHOWN_OTHERWISE]) == sorted(LINES)


def test_attempt_fails_anyway(as_root: Json, as_syncd: Json) -> None:
    """Root could do everything, and the user syncd everything that is not for root alone."""
    assert as_root["came of"] == dict.fromkeys(ATTEMPTS, "done")
    assert as_syncd["came of"] == dict.fromkeys(ATTEMPTS, "done") | dict.fromkeys(ONLY_ROOT, "refused")


@pytest.mark.parametrize("line", FORBIDS)
def test_line_forbids_nothing(line: str, as_root: Json) -> None:
    """The line alone keeps root from what it is there for."""
    assert refused(probed(line)) - refused(as_root) >= FORBIDS[line]


@pytest.mark.parametrize("line", FORBIDS_OTHERS)
def test_line_forbids_user_nothing(line: str, as_syncd: Json) -> None:
    """The line alone keeps syncd's user from what it is there for."""
    assert refused(probed("User=syncd", line)) - refused(as_syncd) >= FORBIDS_OTHERS[line]


def test_clock_is_unprotected(as_root: Json) -> None:
    """ProtectClock= adds a filter. That is all to be seen where nobody may set the clock."""
    assert probed("ProtectClock=yes")["filters"] > as_root["filters"]


def test_forbidden_call_kills() -> None:
    """With SystemCallErrorNumber= a forbidden call is an error, and without it the end of the process."""
    assert probed(*FILTER)["came of"]["change its priority"] == "killed"
    assert probed(*FILTER, "SystemCallErrorNumber=EPERM")["came of"]["change its priority"] == "refused"


def probed_in_unit(unit: str) -> Json:
    """Return what came of the attempts in a service like syncd's with this unit, and in its stead."""
    name, output = "syncd-probe.service", Path("/run/syncd-probe.json")
    (UNITS / name).write_text(unit)
    drop_in = UNITS / f"{name}.d/probe.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(
        f"[Service]\nType=oneshot\nWatchdogSec=0\nExecStart=\nExecStart={' '.join(PROGRAM)}\n"
        "StateDirectory=\nStateDirectory=syncd-probe\nRuntimeDirectory=\nRuntimeDirectory=syncd-probe\n"
        f"Restart=no\nStandardOutput=truncate:{output}\n"
    )
    systemctl("daemon-reload")
    systemctl("start", name)
    shutil.rmtree(drop_in.parent)
    (UNITS / name).unlink()
    systemctl("daemon-reload")
    found: Json = json.loads(output.read_text())
    return found


def is_left_behind() -> bool:
    """Return whether the shared memory of the attempts is there, and remove it."""
    return run("ipcrm", "-M", str(LEFT_BEHIND), check=False).returncode == 0


@pytest.mark.usefixtures("stopped")
def test_unit_leaves_something_open() -> None:
    """In the unit itself no attempt succeeds; what was made before the service's end goes with it."""
    came_of = probed_in_unit(UNIT.read_text("utf-8"))["came of"]
    assert not is_left_behind()
    excused = {"leave shared memory": "done", "run a 32-bit program": "killed"}
    assert came_of == dict.fromkeys(ATTEMPTS, "refused") | excused


@pytest.mark.usefixtures("stopped")
def test_something_else_forbids_it() -> None:
    """In the same unit without its hardening, the user can do all that is not for root alone."""
    came_of = probed_in_unit(BLOCK.sub("", UNIT.read_text("utf-8")))["came of"]
    assert is_left_behind()
    assert {name for name, result in came_of.items() if result != "done"} == ONLY_ROOT


# --- what it does not forbid


def test_hardening_is_in_the_way() -> None:
    """From an empty folder to a clean stop, all that syncd does works, and nothing is denied."""
    systemctl("stop", "syncd")
    for path in DATABASE.parent.iterdir():
        path.unlink()
    end = cursor()
    systemctl("start", "syncd")
    first = idle()
    assert (first["last_run"]["trigger"], first["health"]) == ("startup", "ok")
    assert next_run()["outcome"] == "ok"
    systemctl("reload", "syncd")
    run("syncctl", "pause")
    assert status()["state"] == "paused"
    run("syncctl", "resume")
    # No user namespace hides who asked, for PrivateUsers= is off.
    asked = json.loads(run_as("marie", "syncctl", "run-now", "--full", "--json").stdout)
    assert (asked["outcome"], asked["requested_by"]["user"]) == ("ok", "marie")
    systemctl("stop", "syncd")
    assert (shown("Result"), shown("ExecMainStatus")) == ("success", "0")
    assert [path for path in DATABASE.parent.iterdir() if path.name.endswith(("-wal", "-shm"))] == []
    assert query("PRAGMA integrity_check") == [("ok",)]
    entries = journal(end)
    assert graver(entries) == []
    said = "\n".join(entry["MESSAGE"] for entry in entries)
    assert " is up" in said
    assert not re.search(DENIED, said, re.IGNORECASE)


def restart_with(**values: str) -> None:
    """Start syncd anew with these settings and its unit as it is now; the limit of starts begins anew too."""
    CONFIG.write_text(configured(GOOD, **values))
    systemctl("daemon-reload")
    systemctl("reset-failed", "syncd")
    systemctl("restart", "syncd")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        # Nobody here knows of that name; at the other, somebody speaks, and not TLS.
        pytest.param("https://billetweb.invalid/api", r"name resolution|not known", id="name"),
        pytest.param(BASE_URL.replace("http://127.0.0.1", "https://localhost"), r"SSL|TLS", id="tls"),
    ],
)
def test_hardening_is_in_the_way_of_the_network(address: str, why: str) -> None:
    """Names are looked up and TLS is spoken: what fails is said by the network, and nothing is denied."""
    end = cursor()
    try:
        restart_with(base_url=f'"{address}"', run_on_start="false")
        (error,) = next_run()["errors"]
        assert re.search(why, error["message"])
    finally:
        restart_with()
    said = "\n".join(entry["MESSAGE"] for entry in journal(end))
    assert not re.search(DENIED, said, re.IGNORECASE)


def test_advice_for_control_group_does_not_help() -> None:
    """With what the unit says beside its filter, the socket is for the group that control.group names."""
    make_user("webmaster", "www-data")
    (directives,) = CONTROL_GROUP.findall(UNIT.read_text("utf-8"))
    drop_in = UNITS / "syncd.service.d/group.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("\n".join(["[Service]", *directives]).replace("THAT-GROUP", "www-data"))
    try:
        restart_with(group='"www-data"')
        assert run("stat", "--format=%U:%G %a", str(SOCKET)).stdout == "syncd:www-data 660\n"
        assert run_as("webmaster", "syncctl", "status").returncode == 0
    finally:
        shutil.rmtree(drop_in.parent)
        restart_with()


def test_advice_for_a_site_below_home_does_not_help() -> None:
    """With README's lines the service writes a site's file below /home, also where that home is closed."""
    (directives,) = BELOW_HOME.findall((PROJECT / "README.md").read_text("utf-8"))
    make_user("gardener")
    folder = Path("/home/gardener/site")
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "prod.db")) as site:
        site.execute("CREATE TABLE t (id TEXT, total INTEGER)")
        site.execute("INSERT INTO t (id) VALUES ('900003')")
        site.commit()
    for path in (folder, folder / "prod.db"):
        shutil.chown(path, group="syncd")
        path.chmod(0o2775 if path == folder else 0o664)
    folder.parent.chmod(0o700)
    drop_in = UNITS / "syncd.service.d/home.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("\n".join(["[Service]", *directives]) + f"{folder}\n")
    publish = f"""
[[publish]]
table = "t"
match = {{ id = "id" }}
set = {{ total = "places_total" }}
database = "sqlite:///{folder}/prod.db"
"""
    try:
        restart_with()
        CONFIG.write_text(configured(GOOD) + publish)
        systemctl("reload", "syncd")
        assert next_run()["outcome"] == "ok"
        assert json.loads(run("syncctl", "publish", "--json").stdout)["publish"][0]["written"] == 1
    finally:
        shutil.rmtree(drop_in.parent)
        restart_with()


def test_systemd_does_not_understand_a_unit() -> None:
    """No line of the five units is unknown, and each program that they name is there."""
    names = ["syncd.service", "syncd@.service", "syncd.socket", "syncd-once.service", "syncd-once.timer"]
    try:
        for name in names:
            shutil.copy(PROJECT / "systemd" / name, UNITS)
        instances = [name.replace("@", "@name") for name in names]
        done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *instances)
        assert (done.stdout, done.stderr) == ("", "")
    finally:
        for name in names:
            (UNITS / name).unlink()
