"""PostgreSQL: what roles, databases, poolers and failovers make of a session is looked at, not trusted."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import MakeConfig, Rig, mirrors, rig_on
from sqlalchemy import text
from sqlalchemy.engine import make_url
from support.pooler import NEEDS_POOLER, pooled
from support.processes import DaemonProcess, as_nobody, syncd, write_config
from support.real_databases import Server, query

from syncd.database import runs, schema, state
from syncd.database.engine import Database, check
from syncd.database.postgresql import POOLED, advice
from syncd.errors import AlreadyRunning, StoreError
from syncd.standin.server import StandIn

pytestmark = [pytest.mark.postgresql_only, pytest.mark.usefixtures("database_kind")]
LEFT_BEHIND = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
ROLE = 'the role that is named as this user: `createuser {0}` makes "{0}"'
ODD = {
    "timezone": "'America/St_Johns'",
    "datestyle": "'German, DMY'",
    "extra_float_digits": "-15",
    "client_encoding": "'LATIN1'",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
    "lock_timeout": "0",
    "statement_timeout": "'1h'",
    "bytea_output": "escape",
    "intervalstyle": "sql_standard",
}
"""Settings that somebody may have given a role or a database, for other programs."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Give a server of this module's own, which is stopped and changed."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def url(server: Server) -> str:
    """Give a new, empty database on it."""
    return server.new()


@contextmanager
def on(url: str, make_config: MakeConfig) -> Iterator[Rig]:
    with rig_on(make_config(database__url=url)) as rig:
        yield rig


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    database.open()
    try:
        yield database
    finally:
        database.close()


def name_of(url: str) -> str:
    return str(make_url(url).database)


def refusal(url: str) -> str:
    """Return why a database is not opened, which is what the check says too."""
    with pytest.raises(StoreError) as caught, opened(url):
        pytest.fail("it was opened")
    assert check(url) == f"database.url: {caught.value}"
    return str(caught.value)


# --- settings of roles and databases


def test_a_role_that_is_missing_is_a_riddle(url: str) -> None:
    """Where the server knows no such role, it is said which one it lets in, and how that is made."""
    strange = make_url(url).set(username="syncd-canary").render_as_string(hide_password=False)
    told = check(strange) or ""
    assert 'role "syncd-canary" does not exist; ' in told
    with as_nobody():
        user = pwd.getpwuid(os.geteuid()).pw_name
        assert advice(told) == f"; by its socket it lets in {ROLE.format(user)}"


@pytest.mark.skipif(os.geteuid() != 0, reason="as root")
def test_root_is_told_to_make_a_role_of_its_own(url: str) -> None:
    """What `check` finds as root says nothing of the service, which the server lets in as its own user."""
    strange = make_url(url).set(username="syncd-canary").render_as_string(hide_password=False)
    assert "this was asked as root: the service asks as its own user" in (check(strange) or "")


@pytest.mark.parametrize("of", ["DATABASE", "ROLE"])
def test_settings_for_other_programs_change_what_is_stored(
    url: str, make_config: MakeConfig, standin: StandIn, instant_retries: None, of: str
) -> None:
    """Whatever a session begins with, the mirror is true, and nothing is updated by the next run."""
    if of == "ROLE":
        query(url, "CREATE ROLE odd LOGIN SUPERUSER")
        subject, address = "ROLE odd", url.replace("tester", "odd")
    else:
        subject, address = f"DATABASE {name_of(url)}", url
    for name, value in ODD.items():
        query(url, f"ALTER {subject} SET {name} = {value}")
    assert check(address) is None
    with on(address, make_config) as rig:
        assert rig.run().outcome == "ok"
        mirrors(rig, standin)
        counts = rig.run(full=True).counts
        assert (counts.updated, counts.inserted, counts.vanished) == (0, 0, 0)
        stored = "to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
        ((began,),) = query(url, f"SELECT {stored} FROM syncd_runs WHERE id = 1")
        first = rig.query(runs.find, 1)
        assert first.started_at == datetime.fromisoformat(f"{began}+00:00")
        found = rig.query(lambda connection: connection.execute(text("SHOW lock_timeout")).scalar())
        assert found == "3s"
    query(url, f"ALTER {subject} RESET ALL")
    if of == "ROLE":
        query(url, "REASSIGN OWNED BY odd TO tester; DROP OWNED BY odd; DROP ROLE odd")


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/St_Johns", "UTC"])
def test_an_instant_is_relabelled(zone: str) -> None:
    """What a database gives in its own zone is the same instant in UTC."""
    at = datetime(2027, 7, 1, 12, 0, tzinfo=ZoneInfo(zone))
    found = schema.Instant().process_result_value(at, None)  # type: ignore[arg-type]  # it looks at none
    assert found == at
    assert found.tzinfo is UTC


def test_a_setting_is_only_asked_for_at_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the URL are set by statements, which no pooler refuses; the environment's are not used."""
    query(url, "CREATE SCHEMA billetweb")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=pg_catalog")
    asked = "options=-csearch_path%3Dbilletweb,public --work-mem%3D5MB -c application_name%3Da%5C%20b -f s"
    with opened(f"{url}&{asked}") as database, database.begin() as connection:
        where = "('search_path', 'work_mem', 'application_name', 'enable_seqscan')"
        found = connection.execute(
            text(f"SELECT name, setting, source FROM pg_settings WHERE name IN {where}")
        )
        assert {tuple(row) for row in found} == {
            ("search_path", "billetweb,public", "session"),
            ("work_mem", "5120", "session"),
            ("application_name", "a b", "session"),
            ("enable_seqscan", "off", "client"),  # what is no setting is libpq's affair
        }
    assert query(url, "SELECT schemaname FROM pg_tables WHERE tablename = 'syncd_runs'") == [("billetweb",)]


def test_tables_go_to_another_schema_than_the_one_asked_for(url: str) -> None:
    """A schema of the URL that is not there is told, though another of its search_path is."""
    address = f"{url}&options=-csearch_path%3DBilletweb,public"
    assert refusal(address) == (
        "the schema billetweb of search_path is not there, or not for the user tester:"
        " CREATE SCHEMA billetweb AUTHORIZATION tester;"
    )
    query(url, "CREATE SCHEMA billetweb")
    assert check(address) is None
    assert refusal(f"{url}&options=-csearch_path%3D%22No%22,public").startswith(
        "the schema No of search_path"
    )


def test_two_syncds_write_the_same_tables(url: str) -> None:
    """Each has its own in the first schema of its search_path; those of a later one are another's."""
    query(url, "CREATE SCHEMA billetweb")
    alone, beside = (f"{url}&options=-csearch_path%3D{path}" for path in ("billetweb", "billetweb,public"))
    with opened(url):
        assert refusal(beside) == (
            "search_path begins with billetweb, and syncd's tables are in public: let it begin with public to"
            " go on with them, or leave public out to begin anew in billetweb"
        )
        with opened(alone):
            pass
        with opened(beside) as database, database.begin(write=True) as connection:
            state.put(connection, "who", "another")
        assert query(url, "SELECT * FROM public.syncd_state WHERE name = 'who'") == []
        assert check(beside) is None
        query(url, "DROP TABLE billetweb.syncd_state")
        assert "missing, though syncd made it: the table syncd_state" in (check(beside) or "")


def test_a_reader_follows_a_changed_search_path(url: str, make_config: MakeConfig) -> None:
    """Sessions of one daemon are of one schema: where the role's changed, the run fails and says so."""
    query(url, "CREATE SCHEMA elsewhere")
    with on(url, make_config) as rig:
        assert rig.run().outcome == "ok"
        query(url, f"ALTER DATABASE {name_of(url)} SET search_path = elsewhere")
        query(
            url,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'syncd'",
        )
        run = rig.run()
        assert run.outcome == "failed"
        assert "search_path leads to the schema elsewhere now, and not to public" in run.errors[-1].message
        assert query(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'elsewhere'") == [(0,)]
        query(url, f"ALTER DATABASE {name_of(url)} RESET search_path")
        assert rig.run().outcome == "ok"


# --- servers that take no writes


def test_a_database_that_is_read_only_is_a_riddle(server: Server, url: str) -> None:
    """Where somebody, or a service whose disk is full, made it so, that is said; afterwards all is well."""
    query(url, f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only = on")
    assert "is read-only for the user tester (default_transaction_read_only is on)" in refusal(url)
    query(server.url("postgres"), f"ALTER DATABASE {name_of(url)} RESET ALL")
    with opened(url):
        assert check(url) is None


def test_a_session_stays_read_only_until_a_restart(
    url: str, make_config: MakeConfig, standin: StandIn, instant_retries: None
) -> None:
    """A session that has become read-only costs a run; the next one has a new session."""
    with on(url, make_config) as rig:
        rig.run()
        with rig.account.database.begin(write=True) as connection:
            before = connection.scalar(text("SELECT pg_backend_pid()"))
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
        standin.sell("900001")
        run = rig.run()
        assert run.outcome == "failed"
        assert "read-only transaction" in run.errors[-1].message
        assert rig.run().outcome == "ok"
        mirrors(rig, standin)
        with rig.account.database.begin(write=True) as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != before


def test_a_failover_needs_a_restart(make_config: MakeConfig, standin: StandIn, instant_retries: None) -> None:
    """Against a standby runs fail and say so, the check too; once that is the primary all is well."""
    server = Server()
    try:
        url = server.new()
        with on(url, make_config) as rig:
            rig.run()
            server.stop()
            signal = server.folder / "data" / "standby.signal"
            signal.touch()
            signal.chmod(0o666)
            server.start()
            run = rig.run()
            assert run.outcome == "failed"
            assert "the server is a standby, which takes no writes" in run.errors[-1].message
            assert "the server is a standby" in (check(url) or "")
            assert query(url, "SELECT pg_promote()") == [(True,)]
            standin.sell("900001")
            assert rig.run().outcome == "ok"
            mirrors(rig, standin)
    finally:
        server.close()


# --- poolers


@NEEDS_POOLER
@pytest.mark.usefixtures("instant_retries")
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}])
def test_a_pooler_in_session_mode_cannot_be_used(
    server: Server, url: str, make_config: MakeConfig, standin: StandIn, settings: dict[str, str]
) -> None:
    """Whether it refuses `options` or ignores them: instants, schema and lock are what they should be."""
    query(url, "CREATE SCHEMA billetweb")
    query(url, f"ALTER DATABASE {name_of(url)} SET timezone = 'Europe/Paris'")
    with pooled(server, f"{url}&options=-csearch_path%3Dbilletweb", "session", **settings) as through:
        with on(through, make_config) as rig:
            assert rig.run().outcome == "ok"
            mirrors(rig, standin)
            assert rig.run(full=True).counts.updated == 0
            with pytest.raises(AlreadyRunning), opened(through):
                pytest.fail("a second one")
        assert check(through) is None
        tables = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'syncd%'"
        assert query(url, tables) == [("billetweb",)]


@NEEDS_POOLER
@pytest.mark.parametrize("pool_size", ["1", "20"])
def test_a_pooler_in_transaction_mode_passes_for_a_server(server: Server, url: str, pool_size: str) -> None:
    """It is refused with the reason, by the check too, and no lock and no setting stays behind."""
    with pooled(server, url, "transaction", default_pool_size=pool_size) as through:
        for _ in range(3):
            assert refusal(through) == POOLED
        assert query(url, LEFT_BEHIND) == [(0,)]
        assert query(through, "SHOW lock_timeout") == [("0",)]
        assert query(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


@NEEDS_POOLER
def test_a_busy_pooler_in_transaction_mode_passes_for_a_server(server: Server, url: str) -> None:
    """Also where other programs take its sessions meanwhile."""
    with pooled(server, url, "transaction", default_pool_size="3", server_round_robin="1") as through:
        warm = [Database(through) for _ in range(2)]
        for database in warm:
            with pytest.raises(StoreError):
                database.open()
        for _ in range(5):
            assert refusal(through) == POOLED


@NEEDS_POOLER
def test_a_daemon_behind_a_wrong_pooler_is_silent(
    server: Server, url: str, home: Path, base_url: str
) -> None:
    """It stays up, and says why each run fails; `check` exits with 69."""
    with pooled(server, url, "transaction") as through:
        tables = {"database": {"url": through}}
        with DaemonProcess(home, base_url, tables) as daemon:
            assert POOLED in daemon.ran()["last_error"]
            said = syncd("check", "--config", write_config(home, base_url, tables))
            assert said.returncode == 69
            assert POOLED in said.stderr
            assert daemon.stop() == 0
