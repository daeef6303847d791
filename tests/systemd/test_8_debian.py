"""The Debian package: what installing, upgrading, removing and purging it leave, in this order.

What the first boot installed by hand is taken away before. The package lies at /wheels, that of the version
before in /wheels/previous.
"""

import json
import pwd
import re
import shutil
from pathlib import Path

import pytest
from inside import (
    BASE_URL,
    CONFIG,
    DATABASE,
    KEY,
    KEY_FILE,
    PROJECT,
    SOCKET,
    USER,
    configured,
    follow,
    query,
    run,
    shown,
    status,
    systemctl,
)

import syncd

CATALOG = (PROJECT / "systemd/syncd.catalog").read_text("utf-8")
(BUILD,) = re.findall(r"^.*systemd/build-deb.*", (PROJECT / "README.md").read_text("utf-8"), re.MULTILINE)
LIBRARIES = Path("/usr/lib/syncd")
UNITS = ["syncd.service", "syncd.socket", "syncd-once.service", "syncd-once.timer"]
SERVICES = ["syncd.service", "syncd@second.service"]
SECOND = CONFIG.with_name("second.toml")
NEXT = f"{syncd.__version__}+next1"


def states(unit: str) -> tuple[str, str]:
    """Return whether a unit starts with the machine, and whether it runs."""
    return shown("UnitFileState", unit), shown("ActiveState", unit)


def run_ids() -> list[int]:
    """Return the ids of the runs on record, the newest first."""
    return [number for (number,) in query("SELECT id FROM syncd_runs ORDER BY id DESC")]


@pytest.fixture(scope="module")
def package() -> str:
    """Return the package that the project built."""
    (found,) = Path("/wheels").glob("syncd_*.deb")
    return str(found)


@pytest.fixture(scope="module")
def next_package(package: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the same package under a higher version, of which its program knows; its settings differ."""
    folder = tmp_path_factory.mktemp("next")
    tree, built = folder / "tree", folder / "syncd-next.deb"
    run("dpkg-deb", "--raw-extract", package, str(tree))
    for path in (tree / "DEBIAN/control", tree / LIBRARIES.relative_to("/") / "syncd/__init__.py"):
        text = path.read_text("utf-8")
        assert text.count(syncd.__version__) == 1
        path.write_text(text.replace(syncd.__version__, NEXT), "utf-8")
    supplied = [*tree.rglob("config.toml")]
    assert supplied
    for path in supplied:
        path.write_text(f"{path.read_text('utf-8')}\n# One more comment.\n", "utf-8")
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(built))
    return str(built)


@pytest.fixture(scope="module", autouse=True)
def without_hand_made_installation() -> None:
    """Take away what was installed by README's commands: the package must stand alone."""
    run("systemctl", "disable", "--now", *UNITS, check=False)
    for folder in (CONFIG.parent, DATABASE.parent, SOCKET.parent, Path("/opt/syncd")):
        shutil.rmtree(folder, ignore_errors=True)
    for place in ("/etc/systemd/system", "/usr/local/bin", "/etc/sysusers.d", "/etc/tmpfiles.d"):
        for path in Path(place).glob("sync*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for place in ("/usr/local/share", "/usr/local/lib/systemd/catalog"):
        for path in [*Path(place).rglob("*sync[dc]*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run("journalctl", "--update-catalog")
    systemctl("daemon-reload")


def upgrade(package: str) -> None:
    """Do as an upgrade does that nobody looks at: there is nobody to answer a question."""
    run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes", "install", package)


def test_installation_starts_it_too_early_or_never(tmp_path: Path) -> None:
    """README's line puts the built package in place.

    The service comes with the next boot, and not before user and key are there; the rest is a choice.
    """
    (tmp_path / "dist").symlink_to("/wheels")
    said = follow(BUILD.rpartition(" && ")[2], tmp_path)
    assert "What is left to do, as root:\n  syncd setup " in said
    assert {unit: states(unit) for unit in UNITS} == {
        "syncd.service": ("enabled", "inactive"),
        "syncd.socket": ("disabled", "inactive"),
        "syncd-once.service": ("static", "inactive"),
        "syncd-once.timer": ("disabled", "inactive"),
    }


def test_every_start_compiles_anew() -> None:
    """The modules are compiled, also one that nothing has loaded yet, for the service cannot write there."""
    assert len(list(LIBRARIES.glob("rich/__pycache__/markdown.*.pyc"))) == 1


def test_unit_names_what_the_package_lacks() -> None:
    """Every program and man page that a unit names is there."""
    checked = run("systemd-analyze", "verify", "--recursive-errors=no", *UNITS, "syncd@name.service")
    assert checked.stderr == ""
    assert "/opt/" not in run("systemctl", "cat", *UNITS, "syncd@.service").stdout


def test_file_is_missing_or_in_the_wrong_place() -> None:
    """Man, the shells and the journal find what is theirs."""
    for page in ("syncd.8", "syncctl.1", "syncd.toml.5", "syncd-tables.7", "syncd-socket.7"):
        name, _, section = page.rpartition(".")
        assert run("man", "--where", section, name).stdout.endswith(f"/{page}.gz\n")
    for program in ("syncd", "syncctl"):
        assert Path(f"/usr/share/bash-completion/completions/{program}").is_file()
        assert Path(f"/usr/share/zsh/vendor-completions/_{program}").is_file()
        assert Path(f"/usr/share/fish/vendor_completions.d/{program}.fish").is_file()
    messages = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG, re.MULTILINE)
    assert messages
    assert set(messages) <= set(run("journalctl", "--list-catalog").stdout.split())


def test_libraries_mix_with_the_systems() -> None:
    """The programs run with the package's own libraries, which no other program sees."""
    for program in ("syncd", "syncctl"):
        assert run(program, "--version").stdout == f"{program} {syncd.__version__}\n"
    other = run("/usr/bin/python3", "-P", "-c", "import syncd", check=False)
    assert "ModuleNotFoundError" in other.stderr


def mode(path: Path) -> str:
    """Return a path's owner, group and mode."""
    return run("stat", "--format=%U:%G %a", str(path)).stdout.strip()


def test_key_lies_open() -> None:
    """The folder for keys is root's alone, the state the service's, the settings, all of them, for both."""
    modes = {KEY_FILE.parent: "root:root 700", DATABASE.parent: "syncd:syncd 750", CONFIG: "root:syncd 640"}
    assert {path: mode(path) for path in modes} == modes
    assert CONFIG.read_bytes() == (PROJECT / "config.toml").read_bytes()


def edited() -> str:
    """Fill the installed configuration in, and return it."""
    values = {"user": f'"{USER}"', "base_url": f'"{BASE_URL}"', "requests_per_minute": "100"}
    settings = configured(CONFIG.read_text("utf-8"), **values)
    CONFIG.write_text(settings, "utf-8")
    return settings


def test_configured_service_does_not_run() -> None:
    """With user and key filled in it starts, and mirrors; so does an instance beside it."""
    settings = edited()
    for folder in (DATABASE.parent, SOCKET.parent):
        settings = settings.replace(f"{folder}/", f"{folder}/second/")
    SECOND.write_text(settings, "utf-8")
    for key_file in (KEY_FILE, KEY_FILE.parent / "second" / KEY_FILE.name):
        key_file.parent.mkdir(mode=0o700, exist_ok=True)
        key_file.touch(0o600)
        key_file.write_text(KEY)
    systemctl("enable", "--now", *SERVICES)
    run("syncctl", "run-now")
    run("syncctl", "status", "--check")


def test_upgrade_loses_something(next_package: str) -> None:
    """An upgrade asks nothing and restarts what runs, with the admin's settings and all that was stored."""
    ids, settings = run_ids(), CONFIG.read_text("utf-8")
    CONFIG.chmod(0o644)
    pids = {service: shown("MainPID", service) for service in SERVICES}
    upgrade(next_package)
    assert (CONFIG.read_text("utf-8"), mode(CONFIG)) == (settings, "root:syncd 644")
    for service in SERVICES:
        assert (shown("ActiveState", service), shown("Result", service)) == ("active", "success")
        assert shown("MainPID", service) != pids[service]
    assert status()["version"] == NEXT
    run_now = json.loads(run("syncctl", "run-now", "--json").stdout)
    assert run_now["id"] > ids[0]
    assert run_ids()[-len(ids) :] == ids


def test_upgrade_starts_what_was_stopped(package: str) -> None:
    """A service that the admin stopped and disabled stays so, whatever version comes."""
    systemctl("disable", "--now", "syncd")
    run("dpkg", "--install", package)
    assert states("syncd.service") == ("disabled", "inactive")
    systemctl("enable", "--now", "syncd")


def test_removal_takes_data_or_leaves_programs() -> None:
    """Removing stops what runs and leaves settings, keys and database, and no program."""
    settings, ids = CONFIG.read_text("utf-8"), run_ids()
    processes = [Path("/proc", shown("MainPID", service)) for service in SERVICES]
    assert all(process.name != "0" and process.exists() for process in processes)
    run("dpkg", "--remove", "syncd")
    assert not any(process.exists() for process in processes)
    assert CONFIG.read_text("utf-8") == settings
    assert KEY_FILE.read_text() == KEY
    assert run_ids()[-len(ids) :] == ids
    assert not LIBRARIES.exists()
    assert shutil.which("syncd") is None
    assert shown("LoadState") == "not-found"


def test_what_was_removed_comes_back_without_a_word(package: str) -> None:
    """Installed again it has its settings, starts with the machine only, and says how it starts now."""
    said = run("dpkg", "--install", package).stdout
    assert "syncd does not run; `systemctl start syncd` starts it." in said
    assert "What is left to do" not in said
    assert states("syncd.service") == ("enabled", "inactive")
    systemctl("start", "syncd")
    assert "does not run" not in run("dpkg", "--install", package).stdout
    run("dpkg", "--remove", "syncd")


def test_purge_leaves_traces() -> None:
    """Purging takes settings, keys and databases too, but neither the user nor what the admin wrote anew."""
    run("dpkg", "--purge", "syncd")
    assert not DATABASE.parent.exists()
    assert not SOCKET.parent.exists()
    assert list(CONFIG.parent.iterdir()) == [SECOND]
    assert [*Path("/etc/systemd").rglob("*syncd*"), *Path("/var/lib/systemd").rglob("*syncd*")] == []
    assert pwd.getpwnam("syncd").pw_dir == str(DATABASE.parent)


def test_upgrade_from_the_version_before_stops_halfway(package: str) -> None:
    """From the last version's package it goes on, unasked, with what was edited and what was stored."""
    before = [*Path("/wheels/previous").glob("syncd_*.deb")]
    if not before:
        pytest.skip("NOT TESTED: no earlier version in this clone's history")
    run("dpkg", "--install", *map(str, before))
    settings = edited()
    KEY_FILE.touch(0o600)
    KEY_FILE.write_text(KEY)
    systemctl("start", "syncd")
    run("syncctl", "run-now")
    ids = run_ids()
    upgrade(package)
    assert (CONFIG.read_text("utf-8"), status()["version"]) == (settings, syncd.__version__)
    run("syncctl", "run-now")
    assert run_ids()[-len(ids) :] == ids
    run("dpkg", "--purge", "syncd")
    assert list(CONFIG.parent.iterdir()) == [SECOND]
