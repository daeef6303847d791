"""The database at its path is not the one that is open: somebody removed it, or put another there."""

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import LogLines, Rig, mirrors
from support.faults import hang
from support.processes import DaemonProcess, mirrored
from support.project import README
from support.real_databases import query, refuse
from support.variants import mostly_slow

from syncd.database import schema
from syncd.database.engine import VERSION_TABLE
from syncd.errors import StoreError
from syncd.standin.server import StandIn

ON_A_FILE = pytest.mark.sqlite_only("PostgreSQL ends the connections of a database that is dropped")


def file_of(rig: Rig) -> Path:
    return Path(rig.url.removeprefix("sqlite:///"))


def backup(path: Path, to: Path) -> None:
    """Copy a database that may be in use."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink()


def remove_the_file_alone(path: Path) -> None:
    path.unlink()


def remove_the_log(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def empty_the_folder(path: Path) -> None:
    for file in path.parent.glob(path.name + "*"):
        file.unlink()


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.mkdir()


def replace_by_an_empty_file(path: Path) -> None:
    remove(path)
    path.touch()


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy.db")
    backup(path, copy)
    remove(path)
    copy.rename(path)


WAYS = [
    remove,
    remove_the_file_alone,
    remove_the_log,
    empty_the_folder,
    move_the_folder,
    replace_by_an_empty_file,
    replace_by_a_copy,
]


@ON_A_FILE
@pytest.mark.parametrize("displace", mostly_slow(WAYS, "each takes two runs", always=2))
def test_a_run_is_ok_into_a_file_that_nobody_finds(
    rig: Rig, standin: StandIn, log_lines: LogLines, displace: Callable[[Path], None]
) -> None:
    """Health says so at once; the next run opens what is there, and fills it with all that Billetweb has."""
    rig.run()
    assert rig.account.status().health == "ok"
    displace(file_of(rig))
    status = rig.account.status()
    assert status.health == "failing"
    assert re.search(r"(removed|replaced by another) while it was", status.health_reason)
    standin.sell("900001")
    run = rig.run()
    assert (run.outcome, run.synced) == ("ok", 6)
    mirrors(rig, standin)
    assert [(run.id, "ok")] == rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY id DESC LIMIT 1")
    assert rig.account.status().health == "ok"
    assert len(log_lines.of("database.displaced")) == 1
    assert rig.run().counts.updated == 0


@ON_A_FILE
def test_whoever_waits_for_a_run_gets_one_of_the_lost_file(rig: Rig) -> None:
    """An id that a new database gives again is the new run's, not that of the earlier run which had it."""
    rig.run()
    remove(file_of(rig))
    run = rig.run()
    assert run.id == 1
    assert rig.portal.call(rig.account.find_run, 1) is run


@ON_A_FILE
def test_a_run_that_lost_its_file_on_the_way_is_ok(rig: Rig, standin: StandIn) -> None:
    """It fails and says why; what was asked for meanwhile is another run, which fills what is there."""
    rig.run()
    standin.fail("/event/900003/tickets", hang, times=1)
    before = len(standin.requests)
    lost = rig.request()
    rig.until(lambda: any("900003/tickets" in target for target in map(str, standin.requests[before:])))
    remove(file_of(rig))
    standin.heal()
    rig.wait(lost)
    assert lost.outcome in ("failed", "partial")
    assert lost.errors[-1].kind == "database"
    assert "removed while it was open" in lost.errors[-1].message
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)


@ON_A_FILE
def test_a_run_is_on_record_in_a_file_that_it_did_not_fill(rig: Rig) -> None:
    """A good one whose end could not be put on record is forgotten with the file that it filled."""
    rig.run()
    refuse(rig.url, "UPDATE ON syncd_runs")
    assert rig.run().outcome == "ok"
    remove(file_of(rig))
    last = rig.run()
    assert rig.sql("SELECT id, outcome FROM syncd_runs") == [(last.id, "ok")]


@ON_A_FILE
def test_an_answer_comes_from_a_file_that_is_gone(rig: Rig) -> None:
    """Whoever asks for events hears that there is no database, and not that there are no events."""
    rig.run()
    remove(file_of(rig))
    with pytest.raises(StoreError, match="removed while it was open"):
        rig.portal.call(lambda: rig.account.events(ended_too=True))
    assert not file_of(rig).exists()


@ON_A_FILE
def test_a_link_that_leads_elsewhere_is_not_noticed(rig: Rig, standin: StandIn) -> None:
    """A path that leads through a link is the path that counts."""
    path = file_of(rig)
    rig.stop()
    path.rename(path.with_name("first.db"))
    path.symlink_to("first.db")
    rig.portal.call(rig._begin)
    rig.run()
    path.unlink()
    path.symlink_to("second.db")
    assert rig.account.status().health == "failing"
    assert rig.run().outcome == "ok"
    assert path.with_name("second.db").exists()
    mirrors(rig, standin)


@ON_A_FILE
def test_what_was_asked_of_the_process_is_forgotten_with_its_file(rig: Rig) -> None:
    """A pause holds on, in the new file too; figures of the record begin anew, those of the process go on."""
    for _ in range(2):
        rig.run()
    rig.portal.call(lambda: rig.account.pause(paused=True))
    empty_the_folder(file_of(rig))
    run = rig.run("manual")
    assert (run.outcome, run.id) == ("ok", 1)
    status = rig.account.status()
    assert (status.run_count, status.state, status.last_run) == (1, "paused", run)
    assert rig.account.facts.totals.total() == 3
    rig.restart()
    assert rig.account.paused
    assert rig.account.status().run_count == 1


@ON_A_FILE
def test_a_pause_keeps_a_lost_file_open(rig: Rig) -> None:
    """A slot opens what is there, though scheduled runs are paused; the next ones are skipped again."""
    rig.run()
    rig.portal.call(lambda: rig.account.pause(paused=True))
    remove(file_of(rig))
    rig.portal.call(rig.account._fire)
    assert not rig.account.database.displacement()
    last = rig.account.status().last_run
    assert last
    assert last.outcome == "cancelled"
    rig.portal.call(rig.account._fire)
    assert rig.account.status().slots_skipped == {"paused": 1}


@ON_A_FILE
def test_a_run_overwrites_another_in_a_restored_record(rig: Rig, tmp_path: Path) -> None:
    """A run that had its number from the file that is gone gets a new one, and is found by either."""
    rig.run()
    backup(file_of(rig), tmp_path / "backup.db")
    query(f"sqlite:///{tmp_path}/backup.db", "UPDATE syncd_runs SET id = 2, synced = 77")
    run = rig.portal.call(rig.account.request)
    numbered = run.id
    rig.wait(run)
    assert numbered == 2
    remove(file_of(rig))
    shutil.copy(tmp_path / "backup.db", file_of(rig))
    second = rig.portal.call(rig.account.request)
    rig.wait(second)
    assert rig.sql("SELECT id, synced FROM syncd_runs ORDER BY id") == [(2, 77), (3, 6)]
    assert second.id == 3


def test_tables_that_were_dropped_are_never_made_again(rig: Rig, standin: StandIn) -> None:
    """A database made anew while it was open, on a server too, is migrated and filled by the next run."""
    rig.run()
    before = rig.sql("SELECT count(*) FROM billetweb_events")
    for view in ("syncd_orders", "syncd_availability"):
        rig.sql(f"DROP VIEW {view}")
    for table in (VERSION_TABLE, *schema.metadata.tables):
        rig.sql(f"DROP TABLE {table}")
    assert rig.run().outcome == "ok"
    assert rig.sql("SELECT count(*) FROM billetweb_events") == before
    mirrors(rig, standin)


# --- README's way


def commands(after: str) -> list[str]:
    """Return the lines of README's first block of commands after a word of its own."""
    return README.partition(after)[2].partition("```sh\n")[2].partition("```")[0].splitlines()


def carry_out(lines: list[str], home: Path) -> None:
    """Carry README's commands out, in a folder of the test's and as its user."""
    script = "\n".join(lines).replace("/var/lib/syncd/", f"{home}/").replace("/var/backups/", f"{home}/")
    done = subprocess.run(
        ["sh", "-ec", script.replace("-o syncd -g syncd ", "")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@ON_A_FILE
def test_a_backup_cannot_be_restored_as_readme_says(home: Path, base_url: str, standin: StandIn) -> None:
    """A copy made while the daemon runs, put back after a crash, is brought up to date by the first run."""
    making, restoring = commands("### Back up and restore"), commands("To restore one")
    path = home / "syncd.db"
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran()
        carry_out(making, home)
        (copy,) = home.glob("syncd-*.db")
        assert copy.stat().st_mode & 0o077 == 0
        standin.sell("900001")
        assert daemon.ctl("run-now").returncode == 0
        truth = mirrored(daemon.database)
        daemon.process.kill()  # what it had not brought into the file yet lies beside it
        daemon.process.wait()
    path.write_bytes(b"no database any more")
    stop, *lines, start = [line.replace("2027-03-01-0400", copy.stem[6:]) for line in restoring]
    assert (stop, start) == ("systemctl stop syncd", "systemctl start syncd")
    carry_out(lines, home)
    with DaemonProcess(home, base_url) as daemon:
        assert daemon.ran(2)["health"] == "ok"
        assert mirrored(daemon.database) == truth
        assert daemon.stop() == 0
