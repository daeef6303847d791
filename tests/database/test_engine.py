"""Opening the database: schema, migrations, one holder, and a look that changes nothing."""

import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import BigInteger, Boolean, Float, Integer, Text, create_engine, inspect
from support.processes import as_nobody, short_folder

from syncd.database import schema, sqlite
from syncd.database.engine import VERSION_TABLE, Database, check, masked, secrets, upgrade
from syncd.database.lock import FileLock
from syncd.errors import AlreadyRunning, StoreError

HOLDER = """
import sys
from syncd.database.engine import Database
database = Database(sys.argv[1])
database.open()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def sql(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement past all of syncd's own code."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def tables(path: Path) -> set[str]:
    return {name for (name,) in sql(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}


def open_at(path: Path) -> Database:
    """Open the database."""
    database = Database(url_of(path))
    database.open()
    return database


def opened(path: Path) -> Path:
    """Open and close the database, so that its tables are there."""
    open_at(path).close()
    return path


def shape(path: Path) -> dict[str, object]:
    """Describe every table as another program finds it: columns, key and indexes."""
    engine = create_engine(url_of(path))
    try:
        inspector = inspect(engine)
        return {
            table: (
                {
                    column["name"]: (type(column["type"]).__name__, column["nullable"])
                    for column in inspector.get_columns(table)
                },
                inspector.get_pk_constraint(table)["constrained_columns"],
                sorted((index["name"], index["column_names"]) for index in inspector.get_indexes(table)),
            )
            for table in inspector.get_table_names()
            if table not in (VERSION_TABLE, "sqlite_sequence")
        }
    finally:
        engine.dispose()


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "syncd:database/migrations")
    return ScriptDirectory.from_config(config)


@contextmanager
def held_by_a_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Have another process hold the database."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url_of(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- schema and migrations


def test_migrations_and_queries_do_not_disagree_about_a_column(tmp_path: Path) -> None:
    """The migrations build the very tables that the queries are written against."""
    migrated, declared = opened(tmp_path / "migrated.db"), tmp_path / "declared.db"
    engine = create_engine(url_of(declared))
    schema.metadata.create_all(engine)
    engine.dispose()
    assert shape(migrated) == shape(declared)
    assert set(shape(migrated)) == set(schema.metadata.tables)
    counted = "SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%' ORDER BY name"
    assert sql(migrated, counted) == sql(declared, counted) == [("syncd_changes",), ("syncd_deliveries",)]


def test_a_readers_place_in_the_feed_is_never_given_out_twice(path: Path) -> None:
    """The numbers of changes go on counting when the latest change was deleted."""
    opened(path)
    change = (
        "INSERT INTO syncd_changes (run_id, seen_at, table_name, row_id, event_id, kind, diff)"
        " VALUES (1, '', '', '', '', '', '{}') RETURNING seq"
    )
    [(first,)] = sql(path, change)
    sql(path, "DELETE FROM syncd_changes")
    [(second,)] = sql(path, change)
    assert second > first


def test_a_migration_is_not_forgotten_in_the_code() -> None:
    """The revision that the code works with is the last one of the scripts, and there is one line of them."""
    assert scripts().get_heads() == [schema.REVISION]
    assert all(re.fullmatch("[0-9]{4}", script.revision) for script in scripts().walk_revisions())


def test_an_installed_package_does_not_lack_its_migrations() -> None:
    """The scripts and their environment are data of the package."""
    folder = resources.files("syncd") / "database" / "migrations"
    assert (folder / "env.py").is_file()
    assert any(file.name.startswith(schema.REVISION) for file in (folder / "versions").iterdir())


def test_a_migration_that_fails_half_way_leaves_nothing_behind(path: Path) -> None:
    """Where one of the last tables cannot be created, the earlier ones are not left either."""
    sql(path, "CREATE TABLE syncd_absences (theirs TEXT)")
    with pytest.raises(StoreError, match="table syncd_absences already exists"):
        open_at(path)
    assert tables(path) == {"syncd_absences"}
    sql(path, "DROP TABLE syncd_absences")
    opened(path)
    assert VERSION_TABLE in tables(path)


def first_version(path: Path) -> None:
    """Make a database as the first version left it, with a row in each table."""
    engine = create_engine(url_of(path))
    with engine.begin() as connection:
        upgrade(connection, "0001")
        inspector = inspect(connection)
        for table in schema.metadata.sorted_tables:
            if inspector.has_table(table.name):  # others came with a later version, as did columns
                there = {column["name"] for column in inspector.get_columns(table.name)}
                columns = [column for column in table.columns if column.name in there]
                row = {column.name: SAMPLES[type(column.type)] for column in columns}
                connection.execute(table.insert().values(row))
        connection.exec_driver_sql("INSERT INTO syncd_suspects VALUES ('a table', 'a row', '9', 1, 0)")
    engine.dispose()


SAMPLES = {
    schema.Instant: datetime(2027, 3, 1, 12, tzinfo=UTC),
    schema.Money: Decimal("12.50"),
    schema.Json: {"été": [1]},
    BigInteger: 10**15,
    Boolean: True,
    Float: 1.5,
    Integer: 7,
    Text: "été",
}


def content(path: Path) -> dict[str, list[dict[str, object]]]:
    """Return every table's rows by columns, but for the number of the schema."""
    found = {}
    with closing(sqlite3.connect(path)) as connection:
        for table in sorted(tables(path) - {VERSION_TABLE, "sqlite_sequence"}):
            rows = connection.execute(f"SELECT * FROM {table}")
            names = [column for column, *_ in rows.description]
            found[table] = [dict(zip(names, row, strict=True)) for row in rows]
    return found


def test_an_upgrade_loses_something(path: Path) -> None:
    """A database of the first version gets the views, and every row of every table stays as it was."""
    first_version(path)
    before = content(path)
    assert all(before.values())
    opened(path)
    after = content(path)
    assert after.keys() == set(schema.metadata.tables)
    del before["syncd_suspects"]  # which are absences now
    for table, rows in before.items():
        assert [{name: row[name] for name in rows[0]} for row in after[table]] == rows
    assert after.keys() - before.keys() == {"syncd_reads", "syncd_absences", "syncd_deliveries"}
    assert (after["syncd_reads"], len(after["syncd_absences"])) == ([], 1)
    assert sql(path, f"SELECT version_num FROM {VERSION_TABLE}") == [(schema.REVISION,)]
    assert sql(path, "SELECT name FROM sqlite_master WHERE type = 'view' ORDER BY name") == [
        ("syncd_availability",),
        ("syncd_orders",),
    ]


def test_an_upgrade_that_fails_half_way_leaves_a_mixture(path: Path) -> None:
    """Where a view's name is taken the database stays as it was, for the version that it came from."""
    first_version(path)
    sql(path, "CREATE TABLE syncd_orders (theirs TEXT)")
    before = content(path)
    with pytest.raises(StoreError, match="table syncd_orders already exists"):
        open_at(path)
    assert content(path) == before
    assert sql(path, f"SELECT version_num FROM {VERSION_TABLE}") == [("0001",)]
    assert sql(path, "SELECT name FROM sqlite_master WHERE type = 'view'") == []


def test_a_sites_own_tables_and_migrations_are_left_alone(path: Path) -> None:
    """The mirror lives beside a site's tables, and its revision is not written into the site's own record."""
    sql(path, "CREATE TABLE alembic_version (version_num TEXT)")
    sql(path, "INSERT INTO alembic_version VALUES ('f00d')")
    sql(path, "CREATE TABLE Formation (billetwebId TEXT, placesLeft INTEGER)")
    sql(path, "INSERT INTO Formation VALUES ('1', 7)")
    opened(path)
    assert sql(path, "SELECT * FROM alembic_version") == [("f00d",)]
    assert sql(path, "SELECT * FROM Formation") == [("1", 7)]
    assert sql(path, f"SELECT version_num FROM {VERSION_TABLE}") == [(schema.REVISION,)]


def test_a_restart_does_not_lose_what_is_stored(path: Path) -> None:
    """Opening a database of this version runs no migration and keeps the rows."""
    opened(path)
    sql(path, "INSERT INTO syncd_state VALUES ('paused', 'true')")
    opened(path)
    assert sql(path, "SELECT * FROM syncd_state") == [("paused", "true")]


def test_an_older_syncd_does_not_write_into_a_later_schema(path: Path) -> None:
    """A database of a later version is refused, by opening and by checking, with what to do."""
    opened(path)
    sql(path, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    problem = "a later syncd wrote the database (schema 9999); install that version"
    with pytest.raises(StoreError, match=re.escape(problem)):
        open_at(path)
    assert check(url_of(path)) == f"database.url: {problem}"


# --- open or not


def test_a_database_that_is_not_open_is_used(path: Path) -> None:
    """It is opened when it can be, says whether it is, and may be closed and opened again."""
    database = Database(url_of(path))
    for _ in range(2):
        assert not database.is_open
        with pytest.raises(StoreError, match="the database is not open"), database.begin():
            pytest.fail("it began")
        database.open()
        database.open()
        assert database.is_open
        with database.begin() as connection:
            assert inspect(connection).has_table("syncd_runs")
        database.close()
    assert not path.with_name("none.db").exists()


def test_a_database_that_could_not_be_opened_passes_for_open(path: Path) -> None:
    """What failed is tried again, and the lock is not kept meanwhile."""
    path.write_bytes(b"not a database at all" * 100)
    database = Database(url_of(path))
    for _ in range(2):
        with pytest.raises(StoreError, match="file is not a database"):
            database.open()
        assert not database.is_open
    path.unlink()
    opened(path)
    database.open()
    assert database.is_open
    database.close()


def test_a_stop_does_not_know_of_a_transaction(path: Path) -> None:
    """Whether somebody writes can be asked; reading is not writing, and one that failed is over."""
    database = open_at(path)
    assert not database.is_writing
    with database.begin():
        assert not database.is_writing
    with database.begin(write=True):
        assert database.is_writing
    assert not database.is_writing
    with pytest.raises(StoreError, match="no such table"), database.begin(write=True) as connection:
        connection.exec_driver_sql("DELETE FROM nowhere")
    assert not database.is_writing
    database.close()


def test_a_reading_transaction_changes_rows_half_way(path: Path) -> None:
    """What is read in one transaction is of one instant, whoever writes meanwhile."""
    database = open_at(path)
    with database.begin() as connection:
        before = connection.exec_driver_sql("SELECT * FROM syncd_state").fetchall()
        sql(path, "INSERT INTO syncd_state VALUES ('paused', 'true')")
        assert connection.exec_driver_sql("SELECT * FROM syncd_state").fetchall() == before == []
    with database.begin() as connection:
        assert len(connection.exec_driver_sql("SELECT * FROM syncd_state").fetchall()) == 1
    database.close()


# --- what cannot be opened


def test_a_readers_query_does_not_make_the_mirror_wait(path: Path) -> None:
    """The file is in WAL mode: a reader in the middle of a query keeps no writer out."""
    database = open_at(path)
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]
    database.close()


def test_a_site_cannot_read_while_the_daemon_is_down(path: Path) -> None:
    """A closed database has no write-ahead log, which somebody who may only read could not open."""
    opened(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
    assert path.read_bytes()[18:20] == b"\x01\x01"  # the file's own word for: no write-ahead log


def test_a_file_that_is_no_database_is_not_overwritten(path: Path) -> None:
    """Any other file is refused and stays as it was, and the lock is free again."""
    path.write_bytes(b"not a database at all" * 100)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match="file is not a database"):
            open_at(path)
    assert check(url_of(path)) == "database.url: file is not a database"
    assert path.read_bytes() == before


def test_a_missing_folder_is_not_a_riddle(tmp_path: Path) -> None:
    """The message names the folder that is missing."""
    url = url_of(tmp_path / "missing" / "mirror.db")
    with pytest.raises(StoreError, match=f"the folder {tmp_path}/missing does not exist"):
        Database(url).open()
    assert check(url) == f"database.url: the folder {tmp_path}/missing does not exist"


def test_a_folder_that_takes_no_file_is_not_a_riddle() -> None:
    """The message says what could not be created, and where: `/proc` refuses root too."""
    with pytest.raises(StoreError, match=r"cannot lock the database /proc/mirror\.db|/proc is not writable"):
        Database("sqlite:////proc/mirror.db").open()


def test_a_folder_without_permission_is_found_by_the_check() -> None:
    """The check finds a folder and a file that this user may not write, a file's own folder too."""
    with short_folder() as folder:
        path = opened(folder / "mirror.db")
        folder.chmod(0o777)
        path.chmod(0o400)
        with as_nobody():
            found = [check(url_of(path))]
        path.chmod(0o666)
        folder.chmod(0o555)
        with as_nobody():
            found += [check(url_of(each)) for each in (path, folder / "new.db")]
        folder.chmod(0o700)
    assert found == [
        f"database.url: {path} is not readable and writable for this user",
        *[f"database.url: the folder {folder} is not writable"] * 2,
    ]


def test_a_locked_database_at_the_start_is_a_store_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that holds the file makes opening fail in time, and a later attempt succeeds."""
    monkeypatch.setattr("syncd.database.sqlite.BUSY_TIMEOUT_MS", 20)
    opened(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="database is locked"):
            open_at(path)
    opened(path)


# --- one holder


def test_two_daemons_do_not_write_one_database(path: Path) -> None:
    """A second process is refused with the first one's number; a killed one's lock is free."""
    with held_by_a_process(path) as holder:
        with pytest.raises(AlreadyRunning, match=rf"another syncd \(process {holder.pid}\) holds"):
            open_at(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        opened(path)


def test_a_link_is_not_a_way_around_the_lock(path: Path) -> None:
    """Two names of one file are one database."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    database = open_at(path)
    with pytest.raises(AlreadyRunning):
        open_at(link)
    database.close()
    opened(link)


def test_a_refused_second_holder_does_not_free_the_lock(path: Path) -> None:
    """An attempt that was refused leaves the first holder's lock and number, and no open file of its own."""
    database = open_at(path)
    files = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(2):
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
            open_at(path)
    assert len([*Path("/proc/self/fd").iterdir()]) == files
    database.close()
    database.close()
    opened(path)


def test_a_shorter_process_number_is_not_mixed_with_the_last_ones(tmp_path: Path) -> None:
    """What an earlier holder wrote into the lock's file is gone."""
    path = tmp_path / "lock"
    path.write_text("99999999999999\n")
    lock = FileLock(path, "it")
    lock.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    lock.release()
    assert path.exists()


def test_a_full_disk_does_not_lock_syncd_out_of_its_own_database(path: Path) -> None:
    """A lock whose file cannot be written is given back: the next attempt does not meet it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(StoreError, match="cannot lock the database"):
            open_at(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    opened(path)


# --- the check


def test_a_check_creates_nothing_where_nothing_is(tmp_path: Path) -> None:
    """A database that is yet to be created is no problem, and is not created."""
    assert check(url_of(tmp_path / "mirror.db")) is None
    assert snapshot(tmp_path) == {}


def test_a_full_disk_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run can write there."""
    monkeypatch.setattr(sqlite, "LEAST_FREE_BYTES", 1 << 62)
    trouble = check(url_of(tmp_path / "mirror.db")) or ""
    assert re.fullmatch(rf"database.url: the disk of {tmp_path} is full: \d+ KiB are free", trouble)


def test_a_check_changes_nothing_in_a_database(tmp_path: Path) -> None:
    """A site's own database keeps every byte, its journal mode among them, and so does syncd's."""
    opened(tmp_path / "mirror.db")
    sql(tmp_path / "site.db", "CREATE TABLE Formation (id TEXT)")
    (tmp_path / "empty.db").touch()
    before = snapshot(tmp_path)
    for name in ("mirror.db", "site.db", "empty.db"):
        assert check(url_of(tmp_path / name)) is None
    assert snapshot(tmp_path) == before


def test_a_check_does_not_disturb_a_running_daemon(path: Path) -> None:
    """The check needs no lock: it may be asked while the daemon holds the database."""
    with held_by_a_process(path):
        assert check(url_of(path)) is None


def test_a_password_is_not_shown() -> None:
    """The URL that status and logs show has its password masked."""
    assert masked("postgresql+psycopg://site:canary@db/site") == "postgresql+psycopg://site:***@db/site"
    url = "postgresql://site@db/site?sslmode=require&password=canary&sslpassword=canary-2"
    assert masked(url) == "postgresql://site@db/site?password=***&sslmode=require&sslpassword=***"
    assert [*filter(None, secrets(url))] == ["canary", "canary-2"]
    assert [*filter(None, secrets("postgresql://a:b%40c@db/x"))] == ["b@c"]
    assert masked("sqlite:////var/lib/syncd/syncd.db") == "sqlite:////var/lib/syncd/syncd.db"


@pytest.mark.postgresql_only
@pytest.mark.usefixtures("database_kind")
def test_lines_of_libpq_run_together() -> None:
    """What a driver says in several lines, one for each address of a host, is told as sentences."""
    with socket.socket() as taken:  # bound, and listening to nobody
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        hosts = f"host=127.0.0.1,localhost&port={port},{port}&gssencmode=disable"
        told = check(f"postgresql://syncd@/none?{hosts}") or ""
    assert "\n" not in told
    assert "Connection refused. Is the server running on that host" in told
    assert "- host" not in told
    assert told.count("Connection refused") >= 2
