"""A site's table in MariaDB, where that differs from other databases: letters, types, rights, constraints."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pymysql
import pytest
from conftest import MakeConfig, Rig, rig_on
from msgspec import structs
from support import site
from support.mariadb import Server, obstacle
from support.real_databases import connected, query

from syncd.config import Config, PublishConfig
from syncd.database import mysql
from syncd.database.engine import Database
from syncd.feed import publish
from syncd.standin.server import StandIn

pytestmark = [
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
    pytest.mark.sqlite_only("the site's database is MariaDB's, whatever the mirror's is"),
]

CONCERT, SLUG = "900006", "concert-a-la-grange"
SET = {"placesTotal": "places_total", "placesLeft": "places_left", "isFull": "is_full"}
Start = Callable[..., Any]


@pytest.fixture
def url(mariadb: Callable[[], Server]) -> str:
    """Return the URL of a site's database, with its table."""
    made = mariadb().new()
    site.make(made)
    return made


@pytest.fixture
def configured(make_config: MakeConfig, url: str) -> Callable[..., Config]:
    """Return a maker of configurations that publish into the table, with these changes of the settings."""

    def configured(**changed: Any) -> Config:
        values = {"name": "formation", "table": "Formation", "match": {"billetwebId": ("ext_id", "id")}}
        target = PublishConfig(**(values | {"set": SET, "database": url} | changed))
        return structs.replace(make_config(billetweb__concurrency=1), publish=(target,))

    return configured


@pytest.fixture
def start(configured: Callable[..., Config], instant_retries: None) -> Start:
    @contextmanager
    def start(**changed: Any) -> Iterator[Rig]:
        with rig_on(configured(**changed)) as rig:
            yield rig

    return start


def settled(rig: Rig) -> str | None:
    """Carry a run out, which must be good, and return the target's error."""
    assert rig.run().outcome == "ok"
    return rig.account.outputs.publishing.targets[0].state.last_error


def problems(config: Config) -> list[str]:
    return publish.check(config)[0]


def test_key_in_other_letters_is_taken_for_the_event_s(start: Start, url: str) -> None:
    """To MariaDB texts are equal that differ in capitals or accents: here they are not."""
    query(url, 'DROP INDEX "Formation_billetwebId_key" ON "Formation"')
    for number, key in enumerate([SLUG, SLUG.upper(), SLUG.replace("a-la", "à-la"), f"{SLUG} "]):
        site.add(url, key, id=f"c{number}")
    with start() as rig:
        assert settled(rig) is None
        state = rig.account.outputs.publishing.targets[0].state
        assert (state.matched, state.unmatched, state.written) == (1, 3, 1)
    assert query(url, 'SELECT "id" FROM "Formation" WHERE "placesLeft" IS NOT NULL') == [("c0",)]


def test_name_that_changes_in_its_capitals_alone_stays(start: Start, standin: StandIn, url: str) -> None:
    """A text that differs only in its letters' form is written all the same."""
    with start(set={"billetwebUrl": "name"}) as rig:
        site.add(url, SLUG)
        settled(rig)
        standin.events[CONCERT].row["name"] = "CONCERT À LA GRANGE"
        assert settled(rig) is None
        assert site.row(url, SLUG, "billetwebUrl") == ("CONCERT À LA GRANGE",)


@pytest.mark.parametrize(
    "kind", ["DATETIME", "DATETIME(3)", "DATETIME(6)", "TIMESTAMP NULL", "TIMESTAMP(3) NULL"]
)
def test_instant_is_in_the_server_s_time(start: Start, url: str, kind: str) -> None:
    """Instants are written in UTC whatever the server's zone and the column's digits, and only once."""
    query(url, f'ALTER TABLE "Formation" MODIFY "startsAt" {kind}, MODIFY "updatedAt" {kind}')
    site.add(url, SLUG)
    with start(set={"startsAt": "starts_at"}, touch="updatedAt") as rig:
        assert settled(rig) is None
        starts_at, touched = site.row(url, SLUG, "startsAt", "updatedAt")
        ((ours,),) = rig.sql("SELECT starts_at FROM billetweb_events WHERE id = ?", CONCERT)
        assert str(starts_at) == ours[:19]
        assert abs(datetime.now(UTC) - touched.replace(tzinfo=UTC)) < timedelta(hours=1)
        assert settled(rig) is None
        assert rig.account.outputs.publishing.targets[0].state.written == 1


def test_row_that_the_table_refuses_keeps_others_from_theirs(start: Start, url: str) -> None:
    """A constraint, a number too large and a text too long are told with the row's key; others get theirs."""
    query(url, 'ALTER TABLE "Formation" ADD CONSTRAINT few CHECK ("placesTotal" < 150)')
    query(url, 'ALTER TABLE "Formation" MODIFY "placesLeft" TINYINT')
    site.add(url, SLUG)
    site.add(url, "fete-des-lucioles")
    with start() as rig:
        error = settled(rig)
        assert error
        assert f'the row with the key "{SLUG}" was refused: CONSTRAINT `few` failed' in error
        assert site.row(url, "fete-des-lucioles", *SET) == (120, 73, False)
    query(url, 'ALTER TABLE "Formation" DROP CONSTRAINT few, MODIFY "billetwebUrl" VARCHAR(5)')
    for ours, told in (("places_total", "Out of range value"), ("name", "Data too long")):
        column = "placesLeft" if ours == "places_total" else "billetwebUrl"
        with start(set={column: ours}) as rig:
            assert told in str(settled(rig))


@pytest.mark.slow("waits for a lock")
def test_lock_is_waited_for_without_end(start: Start, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row, or the whole table, that another program holds is that target's error until it is free."""
    monkeypatch.setattr("syncd.database.elsewhere.WAIT_S", 1)
    site.add(url, SLUG)
    with start() as rig, connected(url) as other, other.cursor() as cursor:
        for lock, free in (
            ('SELECT * FROM "Formation" FOR UPDATE', "ROLLBACK"),
            ('LOCK TABLES "Formation" WRITE', "UNLOCK TABLES"),
        ):
            cursor.execute("BEGIN")
            cursor.execute(lock)
            query(url, "SET @nothing = 1")
            assert settled(rig) == "another program holds a lock, which was waited for"
            cursor.execute(free)
        assert settled(rig) is None
        assert site.row(url, SLUG, "placesLeft") == (3,)


def test_missing_right_is_found_by_the_first_sale(
    configured: Callable[..., Config], url: str, mariadb: Callable[[], Server]
) -> None:
    """A user who may not read, or not write, the table is told what to grant; and then needs no more."""
    user, database = f"u{url.partition('?')[0].rpartition('_')[2]}", url.partition("?")[0].rpartition("/")[2]
    query(url, f"CREATE USER '{user}'@'localhost'")
    (shut,) = problems(configured(database=mariadb().url(database, user)))
    assert f"to database '{database}': is that its name? If so, this user needs GRANT SELECT, UPDATE" in shut
    query(url, f"GRANT SELECT (\"id\") ON \"Formation\" TO '{user}'@'localhost'")
    theirs = mariadb().url(database, user)
    for table in ("formation", "nowhere.Formation"):
        (hidden,) = problems(configured(database=theirs, table=table))
        assert f"the user {user} may not SELECT {table.partition('.')[0]}" in hidden
        assert hidden.endswith('; or did you mean "Formation"?')
    config = configured(database=theirs, unless="manualOverride", touch="updatedAt")
    grant = f"GRANT SELECT, UPDATE ON `Formation` TO '{user}'@'localhost'"
    for right in ("SELECT", "UPDATE"):
        found = problems(config)
        assert found == [f"publish formation: the user {user} may not {right} `Formation`: {grant}"]
        query(url, f"GRANT {right} ON \"Formation\" TO '{user}'@'localhost'")
    assert problems(config) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"table": "Formations"}, 'there is no table "Formations": did you mean "Formation"?'),
        ({"table": "formation"}, 'there is no table "formation": did you mean "Formation"?'),
        ({"touch": "updatedat"}, 'has no column "updatedat": did you mean "updatedAt"?'),
        ({"set": {"billetwebUrl": "places_left"}}, "and places_left needs one for a number"),
        ({"set": {"bits": "is_full"}}, "is of the type BIT, and is_full needs one for true or false"),
        ({"unless": "billetwebUrl"}, "and unless needs one for true or false"),
        ({"touch": "placesLeft"}, "and touch needs one for an instant"),
        (
            {"table": "elsewhere.Formation"},
            'there is no table "elsewhere.Formation": did you mean "Formation"?',
        ),
    ],
)
def test_setting_that_cannot_work_is_found_by_nobody(
    configured: Callable[..., Config], url: str, changed: dict[str, Any], sentence: str
) -> None:
    """What does not fit the table as it is has its own sentence, before anything is written."""
    query(url, 'ALTER TABLE "Formation" ADD "bits" BIT(1) NOT NULL DEFAULT 0')
    assert problems(configured(touch="updatedAt", unless="manualOverride")) == []
    (found,) = problems(configured(**changed))
    assert found.startswith("publish formation: ")
    assert sentence in found


def test_server_that_hangs_is_waited_for(
    mariadb: Callable[[], Server], configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first word must come in the time for a connection, not in that for an answer."""
    monkeypatch.setattr(mysql, "CONNECT_S", 0.5)
    monkeypatch.setattr(mysql, "ANSWER_S", 3600)
    config, server = configured(), mariadb().process
    server.send_signal(signal.SIGSTOP)
    try:
        (problem,) = problems(config)
    finally:
        server.send_signal(signal.SIGCONT)
    assert "timed out" in problem


def test_large_table_without_an_index_is_slow(configured: Callable[..., Config], url: str) -> None:
    """A match column without an index is a warning where the table is large, and none where it has one."""
    query(url, 'DROP INDEX "Formation_billetwebId_key" ON "Formation"')
    values = "SELECT CONCAT('c', seq), CONCAT('old-', seq), NOW() FROM seq_1_to_10001"
    query(url, f'INSERT INTO "Formation" ("id", "billetwebId", "updatedAt") {values}')
    found, warnings = publish.check(configured())
    assert found == []
    assert 'no index on "billetwebId"' in warnings[0]
    query(url, 'CREATE INDEX a_key ON "Formation" ("billetwebId")')
    assert publish.check(configured()) == ([], [])


def test_many_rows_are_written_badly(start: Start, standin: StandIn, url: str) -> None:
    """Several keys of one kind and thousands that match nothing are one run's work; numbers are keys too."""
    query(url, 'ALTER TABLE "Formation" MODIFY "billetwebId" BIGINT')
    query(
        url,
        'INSERT INTO "Formation" ("id", "billetwebId", "updatedAt")'
        " SELECT CONCAT('c', seq), seq, NOW() FROM seq_899001_to_901000",
    )
    with start(match={"billetwebId": ("id",)}) as rig:
        assert settled(rig) is None
        state = rig.account.outputs.publishing.targets[0].state
        assert (state.matched, state.unmatched, state.written) == (6, 1994, 5)  # one is unlimited, as it was


@pytest.mark.parametrize(
    ("database", "told"),
    [
        ("mysql://u:canary-pw@127.0.0.1:1/site", "Can't connect to MySQL server on '127.0.0.1'"),
        (
            "mysql://u:canary-pw@127.0.0.1:1/site?ssl_ca=/none.pem",
            "(No such file or directory): are the files",
        ),
        ("mysql://u:canary-pw@/site?unix_socket={folder}/socket", "Access denied for user 'u'@'localhost'"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PyMySQL's socket
def test_password_is_told(
    configured: Callable[..., Config], mariadb: Callable[[], Server], database: str, told: str
) -> None:
    """A server that is not there, or does not let us in, is told in its words, and without the password."""
    config = configured(database=database.format(folder=mariadb().folder))
    (found,) = problems(config)
    assert told in found
    assert "canary" not in found
    publishing = publish.Publishing(config, Database(config.database.url), str)
    assert "canary" not in str(publishing.targets[0].state)


def test_password_with_an_accent_is_a_wrong_one(
    configured: Callable[..., Config], mariadb: Callable[[], Server], url: str
) -> None:
    """A password is known by the server as UTF-8, and so it is sent, whatever its letters."""
    password = "été à 5 €"
    query(url, f"CREATE USER accent@localhost IDENTIFIED BY '{password}'")
    query(url, "GRANT SELECT, UPDATE ON *.* TO accent@localhost")
    database = url.replace("//root@", f"//accent:{quote(password)}@")
    assert problems(configured(database=database)) == []


def test_library_that_is_missing_is_named_badly(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PyMySQL the target says how to install it."""
    monkeypatch.setitem(sys.modules, "pymysql", None)
    (found,) = problems(configured())
    assert "pip install 'PyMySQL[rsa]'" in found


def test_way_to_ask_for_a_password_is_a_bug(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL's own way without TLS needs a library that may be missing, which is said."""

    def connect(*_: object, **__: object) -> None:
        raise RuntimeError("'cryptography' package is required for caching_sha2_password auth methods")

    monkeypatch.setattr(pymysql, "connect", connect)
    (found,) = problems(configured())
    assert "needs the package cryptography" in found
