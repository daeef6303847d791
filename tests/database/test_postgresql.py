"""What only PostgreSQL has: a server that goes away and comes back, a lock that dies with its connection."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import pytest
from conftest import LogLines, MakeConfig, Rig, mirrors, rig_on
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url
from support.faults import hang
from support.processes import DaemonProcess, asked, eventually, syncd, write_config
from support.reading import NOW, past_the_lock
from support.real_databases import Server, locked, query
from support.receiver import Receiver
from support.telling import sent, telling

from syncd.ctl.http import ANSWER_TIMEOUT_S
from syncd.database import bulk, postgresql, runs, schema
from syncd.database.bulk import COPY_ABOVE_ROWS
from syncd.database.engine import VERSION_TABLE, Database, check, masked
from syncd.database.rows import ALSO
from syncd.errors import AlreadyRunning, StoreError
from syncd.model import Run
from syncd.standin.server import StandIn, error_object

pytestmark = [pytest.mark.postgresql_only, pytest.mark.usefixtures("database_kind")]
PASSWORD = "canary/8f3a@:#?é"
OURS = "application_name = 'syncd' AND datname = current_database()"
HOLDING = f"""
SELECT a.pid FROM pg_stat_activity AS a JOIN pg_locks AS l USING (pid)
WHERE {OURS} AND l.locktype = 'advisory' AND l.granted
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Give a server that asks for a password."""
    server = Server(PASSWORD)
    yield server
    server.close()


@pytest.fixture
def url(server: Server) -> str:
    """Give a new, empty database on it."""
    return server.new()


@pytest.fixture
def rig(url: str, make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    with rig_on(make_config(database__url=url)) as rig:
        yield rig


def leaks(text: str) -> bool:
    return "canary" in text or "8f3a" in text


def opened(url: str) -> Database:
    database = Database(url)
    database.open()
    return database


def cut_off(url: str) -> None:
    """End the connection that holds the lock, as an administrator does."""
    ((pid,),) = query(url, HOLDING)
    query(url, "SELECT pg_terminate_backend(?, 5000)", pid)


# --- the tables


def test_a_column_is_of_a_type_that_cannot_be_calculated_with(url: str) -> None:
    """Instants are timestamptz, JSON is jsonb, money is numeric; numbers count on beyond 32 bits."""
    opened(url).close()
    types = {
        (table, column): kind
        for table, column, kind in query(
            url,
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public'",
        )
    }
    expected: dict[type, str] = {
        schema.Instant: "timestamp with time zone",
        schema.Json: "jsonb",
        schema.Money: "numeric",
    }
    for table in schema.metadata.tables.values():
        for column in table.columns:
            if type(column.type) in expected:
                assert types[table.name, column.name] == expected[type(column.type)], column
    for place in (("syncd_changes", "seq"), ("syncd_changes", "run_id"), ("syncd_runs", "id")):
        assert types[place] == "bigint", place


def shape(url: str) -> dict[str, object]:
    """Describe every table as another program finds it: columns, key and indexes."""
    with past_the_lock(url) as engine, engine.connect() as connection:
        inspector = inspect(connection)
        return {
            table: (
                {
                    column["name"]: (str(column["type"]), column["nullable"])
                    for column in inspector.get_columns(table)
                },
                inspector.get_pk_constraint(table)["constrained_columns"],
                sorted((index["name"], index["column_names"]) for index in inspector.get_indexes(table)),
            )
            for table in inspector.get_table_names()
            if table != VERSION_TABLE
        }


def test_migrations_and_queries_disagree_about_a_column(server: Server) -> None:
    """The migrations build the very tables that the queries are written against."""
    migrated, declared = server.new(), server.new()
    opened(migrated).close()
    with past_the_lock(declared) as engine:
        schema.metadata.create_all(engine)
    assert shape(migrated) == shape(declared)
    assert set(shape(migrated)) == set(schema.metadata.tables)


def test_a_check_leaves_something_behind(url: str) -> None:
    """An empty database is good, and is as empty afterwards."""
    assert check(url) is None
    assert query(url, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []


# --- one holder


def test_two_daemons_write_one_database(url: str, home: Path, base_url: str) -> None:
    """A second one exits with 75 and says why, without the password; the first goes on."""
    other = home / "other"
    other.mkdir()
    tables = {"database": {"url": url}}
    with DaemonProcess(home, base_url, tables) as daemon:
        daemon.ran()
        second = syncd("run", "--config", write_config(other, base_url, tables))
        assert second.returncode == 75
        assert f"another syncd (server process {query(url, HOLDING)[0][0]}) holds" in second.stderr
        assert not leaks(second.stderr + second.stdout)
        assert daemon.ctl("run-now").returncode == 0


def test_a_lost_connection_loses_the_lock_for_good(url: str) -> None:
    """The next transaction that writes takes the lock again."""
    database = opened(url)
    before = query(url, HOLDING)
    cut_off(url)
    assert query(url, HOLDING) == []
    with database.begin(write=True):
        pass
    assert len(query(url, HOLDING)) == 1
    assert query(url, HOLDING) != before
    with pytest.raises(AlreadyRunning, match="server process"):
        opened(url)
    database.close()
    opened(url).close()


def test_one_that_was_cut_off_writes_beside_its_successor(url: str) -> None:
    """Where another syncd took the lock meanwhile, the first one writes nothing before it is opened again."""
    first = opened(url)
    cut_off(url)
    second = opened(url)
    with pytest.raises(StoreError, match="another syncd") as caught, first.begin(write=True):
        pytest.fail("it began")
    assert not leaks(str(caught.value))
    second.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="while this one was cut off"), first.begin(write=True):
            pass
    first.close()
    first.open()
    with first.begin(write=True):
        pass
    first.close()


def overtaken(rig: Rig, standin: StandIn, *, runs: int) -> Run:
    """Return a run in which the connection is cut, and another syncd has so many runs."""
    standin.fail("/event/900006/tickets", hang, times=1)
    before = len(standin.requests)
    run = rig.request()
    rig.until(lambda: any("900006/tickets" in f"{request}" for request in standin.requests[before:]))
    cut_off(rig.url)
    standin.sell("900006", 2)
    with rig_on(rig.config) as other:
        for _ in range(runs):
            assert other.run().outcome == "ok"
    standin.refund("900006")
    standin.heal()
    return rig.wait(run)


def test_a_run_overwrites_what_another_syncd_wrote(rig: Rig, standin: StandIn) -> None:
    """A run that was cut off while another syncd had one fails; the next begins from what that left."""
    rig.run()
    run = overtaken(rig, standin, runs=1)
    assert run.outcome == "failed"
    assert "another syncd held" in run.errors[-1].message
    assert rig.sql("SELECT places_left FROM billetweb_events WHERE id = '900006'") == [(1,)]
    assert rig.portal.call(lambda: rig.account.runs(1, None))[0].outcome == "ok", "it may be read meanwhile"
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)
    outcomes = rig.sql("SELECT outcome FROM syncd_runs ORDER BY id")
    assert outcomes == [("ok",), ("failed",), ("ok",), ("ok",)]
    assert rig.account.status().run_count == 4


def test_requests_count_twice_after_another_syncd_had_the_database(
    url: str, make_config: MakeConfig, instant_retries: None, standin: StandIn
) -> None:
    """Who opens the database again finds the own requests there, and waits for no minute because of them."""
    with rig_on(make_config(database__url=url, billetweb__requests_per_minute=30)) as rig:
        rig.run()
        sent = len(standin.requests)
        assert 30 / 3 < sent <= 30 / 2
        cut_off(rig.url)
        with rig_on(rig.config) as other:
            assert other.account.database.is_open
        assert rig.run().outcome == "ok"
        assert (len(standin.requests), rig.clock.slept_s) == (2 * sent, 0.0)


@pytest.mark.parametrize("others", [0, 1])
def test_a_run_that_was_overtaken_is_told_after_later_ones(
    url: str, make_config: MakeConfig, instant_retries: None, standin: StandIn, others: int
) -> None:
    """What an endpoint heard last of runs is true, whoever had them."""
    on = ("run.failed", "run.recovered")
    config = telling(make_config(database__url=url), Receiver("http://127.0.0.1:1/"), on=on)
    with rig_on(config) as rig:
        rig.run()
        overtaken(rig, standin, runs=others)
        assert rig.run().outcome == "ok"
        assert sent(rig, "type") == ["run.failed", "run.recovered"]


def test_a_pause_that_another_syncd_ended_stays(rig: Rig) -> None:
    """A slot finds out, though nothing else runs while scheduled runs are paused."""
    rig.run()
    rig.portal.call(lambda: rig.account.pause(paused=True))
    cut_off(rig.url)
    with rig_on(rig.config) as other:
        other.portal.call(lambda: other.account.pause(paused=False))
    with pytest.raises(StoreError, match="another syncd held"):
        rig.portal.call(lambda: rig.account.pause(paused=False))
    rig.portal.call(rig.account._fire)
    assert rig.account.status().state == "idle"
    assert rig.sql("SELECT outcome FROM syncd_runs ORDER BY id") == [("ok",), ("ok",)]


def test_what_another_syncd_was_told_meanwhile_is_forgotten(rig: Rig, log_lines: LogLines) -> None:
    """A pause, a run that it did not end: who was cut off and finds another's word goes by that."""
    rig.run()
    cut_off(rig.url)
    with rig_on(rig.config) as other:
        other.portal.call(lambda: other.account.pause(paused=True))
        cut = Run(id=-1, trigger="interval", state="running", started_at=datetime.now(UTC))
        other.portal.call(other.account.database.write, runs.put, cut)
    assert rig.run().outcome == "cancelled"
    assert rig.account.status().state == "paused"
    assert len(log_lines.of("database.displaced")) == 1
    assert rig.sql("SELECT outcome FROM syncd_runs WHERE id = 2") == [("failed",)]
    assert rig.portal.call(lambda: rig.account.pause(paused=False))
    assert rig.run().outcome == "ok"
    rig.restart()
    assert rig.account.status().state == "idle"
    assert len(log_lines.of("database.displaced")) == 1


def test_readers_take_all_connections_of_the_server(url: str) -> None:
    """However many threads read at once, one connection writes and five read at most."""
    database = opened(url)
    threads = 12
    done = threading.Event()
    inside = threading.Semaphore(0)

    def read() -> None:
        with database.begin():
            inside.release()
            done.wait(10)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    with database.begin(write=True):
        for reader in readers:
            reader.start()
        for _ in range(5):
            assert inside.acquire(timeout=10)
        assert not inside.acquire(timeout=0.3)
        assert query(url, f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}") == [(6,)]
        done.set()
        for reader in readers:
            reader.join()
    database.close()
    ours = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}"
    eventually(lambda: query(url, ours) == [(0,)])  # the server takes note a little later


# --- a server that goes away


def test_a_transaction_that_was_cut_is_half_written(rig: Rig, standin: StandIn, log_lines: LogLines) -> None:
    """A run whose connection an administrator ends is failed, in clear words; the next one heals."""
    rig.run()
    standin.sell("900001")
    before = rig.dump()
    with locked(rig.url):
        run = rig.request()
        waiting = f"SELECT pid FROM pg_stat_activity WHERE {OURS} AND wait_event_type = 'Lock'"
        rig.until(lambda: bool(query(rig.url, waiting)))
        cut_off(rig.url)
        assert rig.wait(run).outcome == "failed"
    (error,) = run.errors
    assert error.kind == "database"
    assert "terminating connection due to administrator command" in error.message
    assert rig.dump() == before
    assert rig.run().outcome == "ok"
    mirrors(rig, standin)
    assert not leaks(log_lines.text + repr(run))


def test_a_crash_of_the_server_is_forgotten_half(
    server: Server, home: Path, base_url: str, standin: StandIn, make_config: MakeConfig
) -> None:
    """Gone in mid-run and back again: the run failed in clear words, the next one ends in the same rows."""
    url = server.new()
    tables = {"database": {"url": url}}
    with DaemonProcess(home, base_url, tables) as daemon:
        daemon.ran()
        standin.sell("900001")
        standin.fail("/event/*/tickets", hang, times=None)
        before = len(standin.requests)
        daemon.ask("POST", "/v1/runs", {})
        asked(standin, before + 3)
        server.stop()
        standin.heal()
        failed = daemon.ran(2)
        assert failed["last_run"]["outcome"] == "failed"
        assert {error["kind"] for error in failed["last_run"]["errors"]} == {"database"}
        assert daemon.ask("GET", "/v1/events")[0] >= 500
        server.start()
        assert daemon.ctl("run-now").returncode == 0
        told = daemon.log + daemon.ctl("status", "--json").stdout + daemon.ctl("history", "--json").stdout
        assert daemon.stop() == 0
    assert not leaks(told)
    with rig_on(make_config(database__url=url)) as rig:
        mirrors(rig, standin)
        *before_it, (after_it, outcome) = rig.sql("SELECT id, outcome FROM syncd_runs ORDER BY id")
        assert (before_it, outcome) == ([(1, "ok"), (2, "failed")], "ok")
        assert after_it > 2, "a server that crashed leaves some numbers out"


def test_a_server_that_is_down_keeps_the_daemon_down(
    server: Server, url: str, home: Path, base_url: str
) -> None:
    """It is up all the same; runs fail in clear words until the server is there; the next one is good."""
    server.stop()
    try:
        with DaemonProcess(home, base_url, {"database": {"url": url}}) as daemon:
            first = daemon.ran()
            assert (first["health"], first["last_run"]["outcome"]) == ("degraded", "failed")
            assert f"cannot open the database {masked(url)}" in first["last_error"]
            assert "Is the server running" in first["last_error"]
            said = syncd("check", "--config", daemon.config)
            assert said.returncode == 69
            assert "database.url: connection" in said.stderr
            server.start()
            assert daemon.ctl("run-now").returncode == 0
            assert daemon.status()["health"] == "ok"
            told = daemon.log + said.stderr + daemon.ctl("history", "--json").stdout
            assert daemon.stop() == 0
    finally:
        if server.process.poll() is not None:
            server.start()
    assert not leaks(told + repr(first))


@contextlib.contextmanager
def frozen(server: Server, url: str) -> Iterator[None]:
    """Have the server answer nobody, with every connection open, as where its disk hangs."""
    processes = [
        server.process.pid,
        *(pid for (pid,) in query(url, f"SELECT pid FROM pg_stat_activity WHERE {OURS}")),
    ]
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@contextlib.contextmanager
def suspended(url: str) -> Iterator[None]:
    """Have the server's process with the lock hang, so that it does not notice that its client is gone."""
    ((pid,),) = query(url, HOLDING)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an answer be overdue after 1.5 s."""
    monkeypatch.setitem(postgresql.CONNECTION, "connect_timeout", "2")
    monkeypatch.setitem(postgresql.SESSION, "statement_timeout", "1s")
    monkeypatch.setattr("syncd.database.patience.ON_THE_WAY_S", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_run_waits_for_ever_for_a_server_that_hangs(server: Server, rig: Rig) -> None:
    """The run fails, and the next one is good as soon as the server answers again."""
    assert rig.run().outcome == "ok"
    with frozen(server, rig.config.database.url):
        failed = rig.run()
    assert failed.outcome == "failed"
    assert "timeout expired" in failed.errors[-1].message, "the server is asked for a new connection"
    assert rig.run().outcome == "ok"


@pytest.mark.usefixtures("impatient")
def test_a_statement_waits_for_ever_for_an_answer(server: Server, url: str) -> None:
    """Its transaction fails, and the next one has a connection of its own."""
    database = opened(url)
    overdue = pytest.raises(StoreError, match=r"no answer for 1\.5 s")
    with overdue, database.begin(write=True) as connection, frozen(server, url):
        connection.execute(text("SELECT 1"))
    with database.begin(write=True) as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    database.close()


@pytest.mark.usefixtures("impatient")
def test_rows_in_bulk_wait_for_ever_for_an_answer(server: Server, url: str) -> None:
    """Why they fail is told, not that the rollback failed too."""
    database = opened(url)
    rows = [(f"{number}", NOW, NOW, None) for number in range(COPY_ABOVE_ROWS + 1)]
    overdue = pytest.raises(StoreError, match=r"no answer for 1\.5 s")
    with overdue, database.begin(write=True) as connection, frozen(server, url):
        bulk.insert(connection, schema.events, ("id", *ALSO), rows)
    database.close()


def test_who_looks_waits_for_a_server_that_hangs(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection at rest is tried for a moment; with the new one it takes less than syncctl waits."""
    patience = import_module("syncd.database.patience")
    connect_s = int(postgresql.CONNECTION["connect_timeout"])
    assert patience.PING_S + max(connect_s, patience.GREETING_S) < ANSWER_TIMEOUT_S
    monkeypatch.setattr(patience, "PING_S", 0.2)
    monkeypatch.setitem(postgresql.CONNECTION, "connect_timeout", "2")
    database = opened(url)
    with database.begin():
        pass
    with frozen(server, url), pytest.raises(StoreError, match="connection timeout"), database.begin():
        pass
    database.close()


def test_a_former_connection_is_taken_for_another_syncd(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server has not noticed yet that it is gone, whoever reads the error looks for no other."""
    monkeypatch.setattr("syncd.database.patience.PING_S", 0.2)
    monkeypatch.setitem(postgresql.NEEDED, "lock_timeout", "200ms")
    database = opened(url)
    former = pytest.raises(StoreError, match="for this syncd's former connection")
    with suspended(url), former, database.begin(write=True):
        pass
    database.close()


@pytest.mark.usefixtures("impatient")
def test_what_takes_its_time_is_given_up(url: str) -> None:
    """The limit is back with the next transaction."""
    database = opened(url)
    with database.begin(write=True) as connection:
        postgresql.take_your_time(connection)
        connection.execute(text("SELECT pg_sleep(2)"))
    limited = pytest.raises(StoreError, match=r"statement timeout|no answer")  # whoever is first to see it
    with limited, database.begin(write=True) as connection:
        connection.execute(text("SELECT pg_sleep(2)"))
    database.close()


# --- what can be used, and what cannot


def test_a_password_must_stand_in_the_url(server: Server, url: str, tmp_path: Path) -> None:
    """It may also stand in a file of libpq's, which a parameter of the URL names."""
    passfile = tmp_path / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:tester:{PASSWORD.replace(':', chr(92) + ':')}\n")
    name = url.partition("/mirror")[2].partition("?")[0]
    assert check(f"postgresql://tester@/mirror{name}?host={server.folder}&passfile={passfile}") is None
    problem = check(f"postgresql://tester@/mirror{name}?host={server.folder}&passfile=/dev/null") or ""
    assert "no password supplied" in problem


def test_a_parameter_that_libpq_does_not_know_is_a_traceback(url: str) -> None:
    """It is told by its name."""
    assert check(f"{url}&frobnicate=1") == 'database.url: invalid connection option "frobnicate"'


def test_a_wrong_password_is_shown(url: str) -> None:
    """It is refused in the server's words."""
    problem = check(url.replace("canary", "canary-2")) or ""
    assert "password authentication failed for user" in problem
    assert not leaks(problem)


def test_a_database_that_cannot_hold_every_name_passes_for_a_good_one(
    server: Server, make_config: MakeConfig, standin: StandIn, instant_retries: None, log_lines: LogLines
) -> None:
    """One that is not encoded in UTF8 is refused by the check. It works for most texts, and says so.

    What is said of a text that it cannot hold gets into the run's record all the same.
    """
    query(server.url("postgres"), "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert check(server.url("latin")) == (
        "database.url: the database is encoded in LATIN1; syncd needs one in UTF8"
    )
    database = Database(server.url("latin"))
    database.open()
    database.close()
    (line,) = log_lines.of("database.encoding")
    assert "is encoded in LATIN1: what that cannot hold" in line["message"]
    standin.fail("/events", error_object("oops", "désolé…"), times=None)
    with rig_on(make_config(database__url=server.url("latin"))) as rig:
        assert rig.run().outcome == rig.run().outcome == "failed"
        standin.heal()
        assert rig.run().counts.inserted > 0
        _, *failed = rig.portal.call(rig.account.runs, 9, None)
        assert [["d\\xe9sol\\xe9\\u2026" in error.message for error in run.errors] for run in failed] == [
            [True],
            [True],
        ]


def test_a_user_who_may_create_nothing_passes_the_check(server: Server, url: str) -> None:
    """The check says that the tables cannot be created, and for whom."""
    query(url, f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    query(url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    problem = check(url.replace("tester", "guest"))
    assert problem == "database.url: the user guest may not create tables in the schema public"


def test_a_user_who_may_stage_nothing_passes_the_check(server: Server, url: str) -> None:
    """Many rows go through a temporary table: the check says where none may be made."""
    query(url, f"REVOKE TEMPORARY ON DATABASE {make_url(url).database} FROM PUBLIC")
    query(url, f"CREATE ROLE stranger LOGIN PASSWORD '{PASSWORD}'")
    query(url, "GRANT CREATE ON SCHEMA public TO stranger")
    problem = check(url.replace("tester", "stranger"))
    assert problem == "database.url: the user stranger lacks the right TEMPORARY on the database"


def test_missing_psycopg_is_a_traceback(url: str, home: Path, base_url: str) -> None:
    """Where it is not installed each command says what to install."""
    config = write_config(home, base_url, {"database": {"url": url}})
    hidden = "import sys; sys.modules['psycopg'] = None; from syncd.cli import main; sys.exit(main.main())"
    for command, code in (("check", 69), ("once", 78), ("run", 78)):
        done = syncd(command, "--config", config, program=[sys.executable, "-c", hidden])
        assert done.returncode == code, done.stderr
        assert "pip install --upgrade 'psycopg[binary]'" in done.stderr
        assert "Traceback" not in done.stderr
        assert not leaks(done.stderr)


def test_the_tests_leave_a_server_behind() -> None:
    """A server ends with the process that started it, however that ends."""
    script = (
        "from support.real_databases import Server; s = Server(); print(s.process.pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        folder = Path(f"/proc/{pid}/cwd").resolve()
        starter.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    shutil.rmtree(folder.parent)
