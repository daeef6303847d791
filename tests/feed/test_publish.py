"""A site's own tables: kept true from end to end, in the mirror's database and in another."""

import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import LogLines, MakeConfig, Rig, rig_on
from msgspec import structs
from sqlalchemy import Engine, event
from support import site
from support.faults import hang
from support.mariadb import Server, obstacle
from support.processes import as_nobody
from support.real_databases import allow, connected, query, refuse, url_at
from support.variants import mostly_slow

from syncd.config import Config, PublishConfig
from syncd.database import target
from syncd.feed import publish
from syncd.feed.publish import TargetState
from syncd.standin.server import StandIn

CONCERT, SLUG = "900006", "concert-a-la-grange"
"""Three places of 180 are left."""
OPEN_DOORS = "900004"
"""Unlimited."""
SET = {"placesTotal": "places_total", "placesLeft": "places_left", "isFull": "is_full"}
FIGURES = ("placesTotal", "placesLeft", "isFull")
HERE, ELSEWHERE, MARIADB = "the same database", "another database", "MariaDB"

Start = Callable[..., Any]


class Site:
    """A rig that publishes into a table of a site, and where that is."""

    def __init__(self, rig: Rig, url: str) -> None:
        self.rig = rig
        self.url = url

    @property
    def state(self) -> TargetState:
        """How the only target fares."""
        (target,) = self.rig.account.outputs.publishing.targets
        return target.state

    def row(self, key: str, *columns: str) -> tuple[Any, ...]:
        """Return a row's figures, or other columns."""
        return site.row(self.url, key, *(columns or FIGURES))

    def settled(self) -> str | None:
        """Carry a run out, which must be good, and return the target's error."""
        assert self.rig.run().outcome == "ok"
        return self.state.last_error


def settings(**changed: Any) -> PublishConfig:
    values: dict[str, Any] = {
        "name": "formation",
        "table": "Formation",
        "match": {"billetwebId": ("ext_id", "id")},
        "set": SET,
    }
    return PublishConfig(**(values | changed))


@pytest.fixture
def urls(tmp_path: Path, database_kind: str) -> dict[str, str]:
    return {HERE: url_at(tmp_path / "syncd.db"), ELSEWHERE: url_at(tmp_path / "site.db")}


@pytest.fixture
def start(
    make_config: MakeConfig,
    urls: dict[str, str],
    mariadb: Callable[[], Server],
    instant_retries: None,
    log_lines: LogLines,
) -> Start:
    """Return a starter of a site: `where` its table is, with these changes of its settings."""

    @contextmanager
    def start(where: str, **changed: Any) -> Iterator[Site]:
        if where == MARIADB:
            urls[where] = mariadb().new()
        database = "" if where == HERE else urls[where]
        config = make_config(billetweb__concurrency=1)
        config = structs.replace(config, publish=(settings(database=database, **changed),))
        with rig_on(config) as rig:
            yield Site(rig, urls[where])

    return start


MORE = pytest.mark.slow("what is special about MariaDB is tried in test_mysql.py")
needs_mariadb = pytest.mark.skipif(bool(obstacle()), reason=obstacle())
PLACES = pytest.mark.parametrize(
    "where", [HERE, ELSEWHERE, pytest.param(MARIADB, marks=[needs_mariadb, MORE])]
)


@PLACES
@pytest.mark.parametrize("key", mostly_slow([SLUG, CONCERT], "they differ in how a row is found"))
def test_badge_says_that_there_are_places(start: Start, standin: StandIn, where: str, key: str) -> None:
    """A row found by slug or number is full with the last place sold, and is not when it is refunded."""
    with start(where, touch="updatedAt") as on:
        site.make(on.url)
        site.add(on.url, key)
        assert on.settled() is None
        assert on.row(key) == (180, 3, False)
        standin.sell(CONCERT, 3)
        assert on.settled() is None
        assert on.row(key) == (180, 0, True)
        standin.refund(CONCERT, 1)
        assert on.settled() is None
        assert on.row(key) == (180, 1, False)
        assert (on.state.matched, on.state.unmatched, on.state.written) == (1, 0, 3)


@pytest.mark.parametrize("where", [ELSEWHERE, pytest.param(MARIADB, marks=[needs_mariadb, MORE])])
def test_each_row_costs_a_statement(start: Start, where: str) -> None:
    """The rows of all events are brought up to date at once, each by its own event, also by other letters."""
    statements = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE") and "Formation" in statement and "1 = 0" not in statement:
            statements.append(statement)

    with start(where, touch="updatedAt") as on:
        site.make(on.url)
        if where == MARIADB:  # a list of values has the connection's
            query(
                on.url, 'ALTER TABLE "Formation" CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_swedish_ci'
            )
        on.rig.run()
        figures = on.rig.sql(
            "SELECT id, places_total, places_left, is_full FROM billetweb_events ORDER BY id"
        )
        for id_, *_ in figures:
            site.add(on.url, id_)
        event.listen(Engine, "before_cursor_execute", note)
        try:
            assert on.settled() is None
            assert on.settled() is None
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        assert site.rows(on.url, "billetwebId", *SET) == figures
        assert (len(statements), on.state.written) == (1, len(figures) - 1)  # one is unlimited, as it was


@PLACES
def test_row_without_news_is_written(start: Start, standin: StandIn, where: str) -> None:
    """A row is written, and its instant set to now, only where a value differs; the others are left."""
    with start(where, touch="updatedAt") as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        site.add(on.url, OPEN_DOORS, placesTotal=None, placesLeft=None, isFull=False)
        on.settled()
        (touched,) = on.row(SLUG, "updatedAt")
        at = datetime.fromisoformat(str(touched)).replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - at) < timedelta(hours=1)
        assert on.row(OPEN_DOORS, "updatedAt") != (touched,)
        on.rig.clock.now_s += 3600
        on.settled()
        assert on.row(SLUG, "updatedAt") == (touched,)
        assert on.state.written == 1


@PLACES
def test_column_of_fewer_digits_is_written_again_and_again(
    start: Start, standin: StandIn, where: str
) -> None:
    """What a column cuts or rounds is compared as the column has it."""
    columns = {"rate": "REAL", "tenths": "NUMERIC(4, 1)", "whole": "INTEGER", "long": "NUMERIC(65, 30)"}
    standin.events[CONCERT].row["tax_rate"] = "5.55"
    with start(where, set=dict.fromkeys(columns, "tax_rate") | {"startsAt": "availability_at"}) as on:
        site.make(on.url)
        for name, kind in columns.items():
            query(on.url, f'ALTER TABLE "Formation" ADD COLUMN "{name}" {kind}')
        site.add(on.url, SLUG)
        assert on.settled() is None
        written = on.state.written
        assert written > 0
        account = on.rig.account
        on.rig.portal.call(account.outputs.publishing.settle, datetime.now(UTC))
        assert on.state.last_error is None
        assert on.state.written == written


def test_a_server_that_says_nothing_holds_a_run(
    start: Start, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends, and so does the process; the table's error says why, and that it goes on."""
    monkeypatch.setattr(publish, "WAIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mysql+pymysql://u:p@127.0.0.1:{silent.getsockname()[1]}/site"
        with start(HERE) as on:
            site.make(on.url)
            site.add(on.url, SLUG)
            elsewhere = structs.replace(settings(), name="silent", database=url)
            config = structs.replace(on.rig.config, publish=(*on.rig.config.publish, elsewhere))
            on.rig.portal.call(on.rig.account.configure, config)
            for left in (2, 1):
                standin.sell(CONCERT)
                assert on.rig.run().outcome == "ok"
                assert on.row(SLUG) == (180, left, False)
                assert on.rig.account.outputs.publishing.failing == {"silent"}
            *_, state = [each.state for each in on.rig.account.outputs.publishing.targets]
            assert state.last_error == "it takes longer than 0.3 s; it goes on meanwhile"


@pytest.mark.postgresql_only
def test_a_locked_table_makes_another_fail(start: Start, standin: StandIn, brief: None) -> None:
    """They have one connection, which each waits for until it is free."""
    with start(HERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        query(on.url, 'CREATE TABLE "Other" (LIKE "Formation" INCLUDING ALL)')
        other = structs.replace(settings(), name="other", table="Other")
        config = structs.replace(on.rig.config, publish=(*on.rig.config.publish, other))
        on.rig.portal.call(on.rig.account.configure, config)
        on.rig.run()
        assert on.rig.account.outputs.publishing.failing == set()
        with connected(on.url) as site_itself:
            site_itself.execute('BEGIN; LOCK TABLE "Formation" IN ACCESS EXCLUSIVE MODE')
            standin.sell(CONCERT)
            on.rig.run()
            site_itself.execute("ROLLBACK")
        assert on.rig.account.outputs.publishing.failing == {"formation"}


@PLACES
def test_row_that_the_site_keeps_itself_is_overwritten(start: Start, where: str) -> None:
    """Rows in which `unless` is true stay; those in which it is null or false do not."""
    with start(where, unless="manualOverride") as on:
        site.make(on.url)
        site.add(on.url, SLUG, manualOverride=True, placesLeft=77)
        site.add(on.url, "fete-des-lucioles")
        assert on.settled() is None
        assert on.row(SLUG) == (None, 77, False)
        assert on.row("fete-des-lucioles") == (120, 73, False)


@PLACES
def test_unlimited_is_taken_for_unknown(start: Start, where: str) -> None:
    """Unlimited is known: nulls and false take the place of older figures."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, OPEN_DOORS, placesTotal=5, placesLeft=0, isFull=True)
        assert on.settled() is None
        assert on.row(OPEN_DOORS) == (None, None, False)


@PLACES
def test_site_shows_the_quota_of_an_unlimited_event_as_its_places(
    start: Start, standin: StandIn, where: str
) -> None:
    """An event's gauge that says unlimited beside a quota is unlimited like any other: null places."""
    standin.events[CONCERT].gauges[:] = [{"type": "event", "avail": "-1", "quota": "100"}]
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG, placesTotal=100, placesLeft=3)
        assert on.settled() is None
        assert on.row(SLUG) == (None, None, False)


@PLACES
def test_unknown_figure_takes_the_place_of_a_known_one(start: Start, standin: StandIn, where: str) -> None:
    """What is not known is not written, nor is that the event is not full. Whether it is on sale is."""
    standin.events[CONCERT].gauges.clear()
    for tariff in standin.events[CONCERT].tickets:
        tariff["quota"] = ""
        tariff["start_time"] = "2099-01-01 00:00:00"
    with start(where, set=SET | {"billetwebUrl": "shop_url", "status": "sale_status"}) as on:
        site.make(on.url)
        query(on.url, 'ALTER TABLE "Formation" ADD COLUMN "status" VARCHAR(9)')
        site.add(on.url, SLUG, placesTotal=9, placesLeft=0, isFull=True)
        assert on.settled() is None
        assert on.row(SLUG) == (9, 0, True)
        assert SLUG in on.row(SLUG, "billetwebUrl")[0]
        assert on.row(SLUG, "status") == ("coming",)


@PLACES
def test_keys_of_theirs_that_match_nothing_are_hidden(start: Start, where: str) -> None:
    """They are counted, the first ten are listed, and they are no error; null is no key."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        for number in range(12):
            site.add(on.url, f"old-{number:02} ")  # with a blank, as one that is typed may have it
        site.add(on.url, "none", billetwebId=None)
        assert on.settled() is None
        assert (on.state.matched, on.state.unmatched, len(on.state.examples)) == (1, 12, 10)
        assert on.state.examples[0] == "old-00 "


@PLACES
def test_row_of_a_vanished_event_is_emptied(
    start: Start, standin: StandIn, where: str, log_lines: LogLines
) -> None:
    """It stays as it was, which is said."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        on.settled()
        del standin.events[CONCERT]
        for _ in range(3):
            on.rig.run("manual", accept=True)
        on.settled()
        assert on.row(SLUG) == (180, 3, False)
        assert (on.state.matched, on.state.vanished) == (0, 1)
        assert len(log_lines.of("publish.vanished")) == 1


@PLACES
def test_row_added_later_waits_for_a_sale(start: Start, where: str) -> None:
    """A row that the site adds, or sets back, has its figures after the next run, without any change."""
    with start(where) as on:
        site.make(on.url)
        on.settled()
        site.add(on.url, SLUG)
        on.settled()
        assert on.row(SLUG) == (180, 3, False)


@PLACES
def test_key_that_several_rows_hold_is_written_at_random(
    start: Start, standin: StandIn, where: str, log_lines: LogLines
) -> None:
    """None of them is written, and the others are; it is told once, and again when it is mended."""
    with start(where) as on:
        site.make(on.url, unique=False)
        site.add(on.url, SLUG)
        site.add(on.url, SLUG, id="second")
        site.add(on.url, "fete-des-lucioles")
        for _ in range(2):
            error = on.settled()
        assert error
        assert f'2 rows of "Formation" hold the key "{SLUG}" in "billetwebId"' in error
        assert on.row("fete-des-lucioles") == (120, 73, False)
        assert problems(on.rig.account.config) == [f"publish formation: {error}"]
        assert on.state.errors == 2
        assert on.rig.account.status().publish.failing == 1
        assert len(log_lines.of("publish.failed")) == 1
        query(on.url, 'DELETE FROM "Formation" WHERE "id" = ?', "second")
        assert on.settled() is None
        assert on.row(SLUG) == (180, 3, False)
        assert len(log_lines.of("publish.works")) == 1


@PLACES
def test_column_dropped_meanwhile_stops_the_mirror(start: Start, standin: StandIn, where: str) -> None:
    """It is that target's error, in words; the mirror has the sale, and the column's return heals it."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        on.settled()
        query(on.url, 'ALTER TABLE "Formation" DROP COLUMN "placesLeft"')
        standin.sell(CONCERT, 3)
        error = on.settled()
        assert error
        assert error == 'the table "Formation" has no column "placesLeft": did you mean "placesTotal"?'
        assert on.rig.sql("SELECT places_left FROM billetweb_events WHERE id = ?", CONCERT) == [(0,)]
        query(on.url, 'ALTER TABLE "Formation" ADD COLUMN "placesLeft" INTEGER')
        assert on.settled() is None
        assert on.row(SLUG) == (180, 0, True)


def test_row_lags_behind_its_event(start: Start, standin: StandIn) -> None:
    """In the mirror's own database a row is written with the event, and does not wait for the run's end."""
    with start(HERE, touch="updatedAt") as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        on.settled()
        assert on.rig.run("manual", events=(OPEN_DOORS,)).outcome == "ok"  # so it comes last in the next run
        standin.sell(CONCERT, 3)
        standin.fail(f"/event/{OPEN_DOORS}/avail", hang)
        run = on.rig.request()
        on.rig.until(lambda: on.row(SLUG) == (180, 0, True))
        assert run.state == "running"
        standin.heal()
        assert on.rig.wait(run).outcome == "ok"


def test_event_that_cannot_be_written_fills_its_row(start: Start, standin: StandIn) -> None:
    """In the mirror's own database a row is rolled back with the event."""
    with start(HERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        on.settled()
        standin.sell(CONCERT, 3)
        refuse(on.url, "INSERT ON syncd_changes")
        assert on.rig.run().outcome == "failed"
        assert on.row(SLUG) == (180, 3, False)
        allow(on.url, "INSERT ON syncd_changes")
        on.settled()
        assert on.row(SLUG) == (180, 0, True)


@pytest.mark.sqlite_only("which can give a whole transaction up for one statement")
def test_a_transaction_that_a_trigger_ends_loses_the_event(start: Start, standin: StandIn) -> None:
    """The event is written all the same, once and with its changes; what the site's trigger did is told."""
    with start(HERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        on.settled()
        standin.sell(CONCERT, 3)
        query(
            on.url,
            """CREATE TRIGGER ends_it BEFORE UPDATE ON "Formation"
                         BEGIN SELECT RAISE(ROLLBACK, 'closed'); END""",
        )
        twice = (settings(), structs.replace(settings(), name="again"))
        on.rig.portal.call(on.rig.account.configure, structs.replace(on.rig.config, publish=twice))
        run = on.rig.run()
        assert (run.outcome, run.counts.updated > 0) == ("ok", True)
        told = on.rig.sql("SELECT count(*) FROM syncd_changes WHERE run_id = ?", run.id)
        assert told == [(run.counts.updated,)]
        assert on.rig.sql("SELECT is_full FROM billetweb_events WHERE id = ?", CONCERT) == [(1,)]
        assert "SQLite gave the transaction up: closed" in str(
            on.rig.account.outputs.publishing.targets[0].state.last_error
        )
        query(on.url, "DROP TRIGGER ends_it")
        on.rig.portal.call(on.rig.account.configure, on.rig.config)
        on.settled()
        assert on.row(SLUG) == (180, 0, True)


@pytest.mark.postgresql_only
def test_connection_that_a_trigger_cuts_is_the_end_of_the_run(start: Start, standin: StandIn) -> None:
    """Of an event whose transaction is gone with its connection the mirror's rows are written without it."""
    with start(HERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        query(
            on.url,
            """CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$""",
        )
        query(on.url, 'CREATE TRIGGER cuts BEFORE UPDATE ON "Formation" FOR EACH ROW EXECUTE FUNCTION cut()')
        run = on.rig.run()
        assert (run.outcome, run.counts.inserted > 0) == ("ok", True)
        told = on.rig.sql("SELECT count(*) FROM syncd_changes WHERE run_id = ?", run.id)
        assert told == [(run.counts.changed,)]
        assert "terminating connection" in str(on.state.last_error)
        query(on.url, 'DROP TRIGGER cuts ON "Formation"')
        assert on.settled() is None
        assert on.row(SLUG) == (180, 3, False)


@PLACES
def test_a_vanished_event_keeps_its_key(start: Start, standin: StandIn, where: str) -> None:
    """An event that takes the place of one that is gone, with its slug, is the one that the key means."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        assert on.settled() is None
        del standin.events[CONCERT]
        for _ in range(2):
            on.settled()
        assert on.state.vanished == 1
        standin.events["900001"].row["ext_id"] = SLUG
        assert on.settled() is None
        assert on.row(SLUG) == (120, 73, False)


@PLACES
def test_key_means_the_wrong_event(start: Start, standin: StandIn, where: str) -> None:
    """The first of our columns that has the key decides; one that several events have is an error."""
    standin.events["900001"].row["ext_id"] = CONCERT
    standin.events["900002"].row["ext_id"] = standin.events["900003"].row["ext_id"] = "twice"
    with start(where) as on:
        site.make(on.url)
        on.settled()  # all events are known from here on
        site.add(on.url, CONCERT)
        site.add(on.url, "twice")
        assert on.settled() == 'the key "twice" means several events (900002, 900003), so none is written'
        assert on.row(CONCERT) == (120, 73, False)
        assert on.row("twice") == (None, None, False)


def test_number_with_a_zero_before_it_is_taken_for_another(
    start: Start, standin: StandIn, log_lines: LogLines
) -> None:
    """A slug such as 0042 is not the 42 of their column: the row waits for no end of a run."""
    standin.events[CONCERT].row["ext_id"] = "0042"
    with start(HERE, match={"placesTotal": ("ext_id", "id")}, set={"placesLeft": "places_left"}) as on:
        site.make(on.url)
        site.add(on.url, "x", placesTotal=42)
        on.settled()
        log_lines.clear()
        standin.sell(CONCERT)
        assert on.settled() is None
        assert "tried again at the end of the run" not in log_lines.text
        assert on.state.unmatched == 1


@PLACES
def test_number_as_a_key_matches_nothing(start: Start, where: str) -> None:
    """A key column of numbers is found by the event's number, and an instant gets the event's."""
    changed = {
        "match": {"placesTotal": ("ext_id", "id")},
        "set": {"startsAt": "starts_at", "placesLeft": "places_left"},
    }
    with start(where, **changed) as on:
        site.make(on.url)
        site.add(on.url, "x", placesTotal=int(CONCERT))
        assert on.settled() is None
        starts_at, left = on.row("x", "startsAt", "placesLeft")
        ((ours,),) = on.rig.sql("SELECT starts_at FROM billetweb_events WHERE id = ?", CONCERT)
        assert (str(starts_at).replace("T", " ")[:19], left) == (ours[:19], 3)


@pytest.mark.postgresql_only
@pytest.mark.parametrize("where", [HERE, ELSEWHERE])
def test_a_key_of_a_fixed_length_matches_nothing(start: Start, standin: StandIn, where: str) -> None:
    """What char(n) pads with spaces is the same as without them."""
    with start(where, set=SET | {"billetwebUrl": "name"}) as on:
        site.make(on.url)
        for name in ("billetwebId", "billetwebUrl"):
            query(on.url, f'ALTER TABLE "Formation" ALTER COLUMN "{name}" TYPE char(80)')
        site.add(on.url, SLUG)
        assert on.settled() is None
        assert on.row(SLUG) == (180, 3, False)
        assert (on.state.matched, on.state.unmatched) == (1, 0)
        standin.sell(CONCERT, 3)
        assert on.settled() is None
        assert on.row(SLUG) == (180, 0, True)


@PLACES
def test_refused_value_keeps_other_rows_from_theirs(start: Start, standin: StandIn, where: str) -> None:
    """A constraint that refuses a value is told with the row's key; the other rows are written."""
    with start(where, set=SET | {"updatedAt": "ends_at"}) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        site.add(on.url, "fete-des-lucioles")
        standin.events[CONCERT].row["end"] = ""
        error = on.settled()
        assert error
        assert f'the row with the key "{SLUG}" was refused: ' in error
        assert "updatedAt" in error
        assert on.row("fete-des-lucioles") == (120, 73, False)


@PLACES
def test_row_that_a_trigger_refuses_keeps_others_from_theirs(start: Start, where: str) -> None:
    """What a trigger of the site's says is told with the row's key; the other rows are written."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        site.add(on.url, "fete-des-lucioles")
        site.refuse(on.url, SLUG)
        assert on.settled() == f'the row with the key "{SLUG}" was refused: closed by the office'
        assert on.row("fete-des-lucioles") == (120, 73, False)


@PLACES
def test_trigger_tells_a_password(start: Start, where: str) -> None:
    """What a site's server says is shown without secrets, as in the log: a trigger may ask others."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        site.refuse(on.url, SLUG, "no answer from postgresql://site:canary@db/crm")
        error = on.settled()
        assert error
        assert error.endswith("no answer from postgresql://site:***@db/crm")


@PLACES
def test_a_look_at_a_table_mends_its_rows(start: Start, where: str) -> None:
    """A reload, which writes nothing, does not say that a row works again that was refused."""
    with start(where) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        site.refuse(on.url, SLUG)
        error = on.settled()
        assert error
        on.rig.portal.call(on.rig.account.outputs.publishing.examine)
        assert on.state.last_error == error


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a lock of the site's be waited for a second."""
    monkeypatch.setattr("syncd.database.elsewhere.WAIT_S", 1)


def test_locked_table_stops_the_mirror(start: Start, standin: StandIn, brief: None) -> None:
    """A lock that lasts is that target's error; once it is gone the next run heals it."""
    with start(ELSEWHERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        with site.held(on.url):
            assert on.settled() == "another program holds a lock, which was waited for"
        assert on.settled() is None
        assert on.row(SLUG) == (180, 3, False)


@pytest.mark.postgresql_only
def test_locked_row_in_the_mirror_s_database_stops_the_mirror(
    start: Start, standin: StandIn, brief: None
) -> None:
    """A row that the site holds is waited for once, and the event's own rows are committed without it."""
    with start(HERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        with connected(on.url) as other:
            other.execute('BEGIN; UPDATE "Formation" SET "isFull" = true')
            assert on.settled() == "another program holds a lock, which was waited for"
            assert on.rig.sql("SELECT places_left FROM billetweb_events WHERE id = ?", CONCERT) == [(3,)]
            other.execute("ROLLBACK")
        assert on.settled() is None
        assert on.row(SLUG) == (180, 3, False)


@pytest.mark.sqlite_only("a server has no such modes")
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_file_that_the_site_keeps_open_changes_its_mode(start: Start, standin: StandIn, mode: str) -> None:
    """A file of another program, open there, is written, keeps its journal mode, and gets no table."""
    with start(ELSEWHERE, set=SET | {"startsAt": "starts_at"}) as on:
        site.make(on.url)
        site.add(on.url, SLUG, startsAt=0)  # as Prisma's own engine writes: milliseconds
        site.add(on.url, "fete-des-lucioles")
        with closing(sqlite3.connect(on.url.removeprefix("sqlite:///"), isolation_level=None)) as theirs:
            assert theirs.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
            theirs.execute('SELECT * FROM "Formation"').fetchall()
            assert on.settled() is None
            standin.sell(CONCERT, 3)
            assert on.settled() is None
            assert theirs.execute("PRAGMA journal_mode").fetchone() == (mode,)
            assert theirs.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
                ("Formation",)
            ]
        assert on.row(SLUG) == (180, 0, True)
        (concert,), (feast,) = on.row(SLUG, "startsAt"), on.row("fete-des-lucioles", "startsAt")
        assert (type(concert), type(feast)) == (int, int)


@pytest.mark.sqlite_only("a server's columns have a type")
@pytest.mark.parametrize(
    ("kind", "theirs", "form"),
    [
        ("INTEGER", 1577934245, r"1[0-9]{9}"),
        ("INTEGER DEFAULT 0", 1577934245, r"1[0-9]{9}"),
        ("DATETIME", 1577934245678, r"1[0-9]{12}"),
        ("INTEGER", None, r"1[0-9]{12}"),
        ("INTEGER", 0, r"1[0-9]{12}"),
        ("TEXT", "2020-01-02 03:04:05", r"20..-..-.. ..:..:.."),
        ("TEXT", "2020-01-02 03:04:05.678901", r"20..-..-.. ..:..:..\.[0-9]{6}"),
        ("DATETIME", "2020-01-02T03:04:05.678Z", r"20..-..-..T..:..:..\.[0-9]{3}Z"),
        ("DATETIME", "2020-01-02T03:04:05.678+02:00", r"20..-..-..T..:..:..\.[0-9]{3}\+00:00"),
        ("DATETIME", "2020-01-02 03:04:05.678 +00:00", r"20..-..-.. ..:..:..\.[0-9]{3} \+00:00"),  # Sequelize
        ("DATETIME", "2020-01-02 03:04:05.678901234+00:00", r"20..-..-.. ..:..:..\.[0-9]{6}\+00:00"),  # Go
        ("TIMESTAMP", 1577934245.5, r"1[0-9]{9}"),
        ("TIMESTAMP", 2458850.5, r"24[0-9]{5}\.[0-9]+"),  # days, as SQLite's julianday()
        ("DATETIME", None, r"20..-..-..T..:..:..\.[0-9]{3}\+00:00"),
    ],
)
def test_instant_in_a_form_of_ours(start: Start, kind: str, theirs: object, form: str) -> None:
    """What an application has written says how it reads instants, in rows without one too."""
    with start(ELSEWHERE, set=SET | {"startsAt": "starts_at"}) as on:
        query(on.url, site.SQLITE.format(table="Formation").replace("DATETIME", kind))
        site.add(on.url, SLUG)
        site.add(on.url, "fete-des-lucioles", startsAt=theirs)
        assert on.settled() is None
        (said,), (other,) = on.row(SLUG, "startsAt"), on.row("fete-des-lucioles", "startsAt")
        assert re.fullmatch(form, str(said))
        assert re.fullmatch(form, str(other))
        ((ours,),) = on.rig.sql("SELECT starts_at FROM billetweb_events WHERE id = ?", CONCERT)
        if isinstance(said, str):
            said = datetime.fromisoformat(said.replace(" +", "+")).replace(tzinfo=UTC).timestamp()
        elif isinstance(said, float):
            said = round((said - 2440587.5) * 86_400)
        assert said / (1000 if said > 10**11 else 1) == datetime.fromisoformat(ours + "Z").timestamp()
        written = on.state.written
        assert on.settled() is None
        assert on.state.written == written


@pytest.mark.sqlite_only("a server's texts have an encoding")
def test_a_text_that_is_not_utf8_keeps_others_from_theirs(start: Start) -> None:
    """What an old import left in a SQLite file is no key of ours, and is overwritten where ours goes."""
    with start(ELSEWHERE, set=SET | {"billetwebUrl": "name"}) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        site.add(on.url, "x")
        latin = "CAST(x'436166e9' AS TEXT)"
        query(on.url, f'UPDATE "Formation" SET "billetwebId" = {latin} WHERE "billetwebId" = \'x\'')
        query(on.url, f'UPDATE "Formation" SET "billetwebUrl" = {latin}')
        assert on.settled() is None
        assert on.row(SLUG, "placesLeft", "billetwebUrl") == (3, "Concert à la grange")
        assert on.state.unmatched == 1


def problems(config: Config) -> list[str]:
    """Return what `syncd check` would say of the targets."""
    return publish.check(config)[0]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"table": "Formations"}, 'there is no table "Formations": did you mean "Formation"?'),
        ({"table": "formation"}, 'there is no table "formation": did you mean "Formation"?'),
        ({"touch": "updateAt"}, 'has no column "updateAt": did you mean "updatedAt"?'),
        (
            {"set": {"placesLeft": "is_full", "isFull": "places_left"}},
            '"isFull" of "Formation" is of the type BOO',
        ),
        ({"set": {"billetwebUrl": "places_left"}}, "and places_left needs one for a number"),
        ({"match": {"isFull": ("id",)}}, "and a key of the mirror needs one for text or a whole number"),
        ({"unless": "billetwebUrl"}, "and unless needs one for true or false"),
        (
            {"table": "elsewhere.Formation"},
            'there is no table "elsewhere.Formation": did you mean "Formation"?',
        ),
    ],
)
def test_setting_that_cannot_work_is_found_by_nobody(
    make_config: MakeConfig, urls: dict[str, str], changed: dict[str, Any], sentence: str
) -> None:
    """What does not fit the table as it is has its own sentence, before anything is written."""
    site.make(urls[ELSEWHERE])
    config = make_config()
    good = settings(database=urls[ELSEWHERE], touch="updatedAt", unless="manualOverride")
    assert problems(structs.replace(config, publish=(good,))) == []
    bad = structs.replace(good, **changed)
    found = problems(structs.replace(config, publish=(bad,)))
    assert len(found) == 1
    assert found[0].startswith("publish formation: ")
    assert sentence in found[0]


@pytest.mark.parametrize(
    "table", mostly_slow(["billetweb_events", "syncd_state", "syncd_availability"], "each takes a run")
)
def test_the_mirror_is_published_into_itself(start: Start, table: str) -> None:
    """A table of syncd's own is refused, and stays as it is; a site's may have such a name elsewhere."""
    there = {"match": {"id": ("id",)}, "set": {"places_left": "places_total"}}
    with start(HERE, table=table, **there) as on:
        assert on.settled() == f'the table "{table}" is syncd\'s own'
        assert problems(on.rig.account.config) == [f"publish formation: {on.state.last_error}"]
        assert on.rig.sql("SELECT places_left FROM billetweb_events WHERE id = ?", CONCERT) == [(3,)]
    with start(ELSEWHERE, table=table) as on:
        site.make(on.url, table)
        assert on.settled() is None


def test_large_table_without_an_index_is_slow(make_config: MakeConfig, urls: dict[str, str]) -> None:
    """A match column without an index is a warning where the table is large, and none where it has one."""
    url = urls[ELSEWHERE]
    site.make(url, unique=False)
    several = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001)"
    values = "SELECT 'c' || i, 'old-' || i, CURRENT_TIMESTAMP FROM n"
    query(url, f'INSERT INTO "Formation" ("id", "billetwebId", "updatedAt") {several} {values}')
    config = structs.replace(make_config(), publish=(settings(database=url),))
    found, warnings = publish.check(config)
    assert found == []
    assert len(warnings) == 1
    assert 'no index on "billetwebId"' in warnings[0]
    query(url, 'CREATE INDEX key ON "Formation" ("billetwebId")')
    assert publish.check(config) == ([], [])


@pytest.mark.sqlite_only("a file's")
def test_file_that_is_not_there_is_made(make_config: MakeConfig, tmp_path: Path) -> None:
    """A site's file that is missing is an error, and stays missing."""
    config = make_config()
    lost = settings(database=f"sqlite:///{tmp_path}/lost.db")
    assert problems(structs.replace(config, publish=(lost,))) == [
        f"publish formation: there is no file {tmp_path}/lost.db"
    ]
    assert not (tmp_path / "lost.db").exists()


@pytest.mark.sqlite_only("a file's")
def test_closed_folder_ends_the_check(make_config: MakeConfig, home: Path) -> None:
    """A file that this user cannot reach, in a container's volume say, is that target's problem alone."""
    closed = home / "volumes"
    closed.mkdir()
    site.make(f"sqlite:///{closed}/site.db")
    away = settings(database=f"sqlite:///{closed}/site.db")
    config = structs.replace(make_config(), publish=(away,))
    home.chmod(0o755)
    closed.chmod(0)
    with as_nobody():
        found = problems(config)
    closed.chmod(0o700)
    assert found == [f"publish formation: cannot use {closed}/site.db: Permission denied"]


@pytest.mark.sqlite_only("a file's")
def test_open_file_in_a_closed_folder_is_refused(make_config: MakeConfig, home: Path) -> None:
    """Where the site has its file open the log is there, and nothing need be made in the folder."""
    closed = home / "volumes"
    closed.mkdir()
    url = f"sqlite:///{closed}/site.db"
    site.make(url)
    config = structs.replace(make_config(), publish=(settings(database=url),))
    home.chmod(0o755)
    closed.chmod(0o755)
    with connected(url) as held:
        held.execute("PRAGMA journal_mode = WAL")
        held.execute('SELECT * FROM "Formation"').fetchall()
        (closed / "site.db").chmod(0o666)
        with as_nobody():
            (found,) = problems(config)
        assert f"site.db-wal is not readable and writable for this user: `chmod g+s {closed}`" in found
        for path in closed.iterdir():
            path.chmod(0o666)
        with as_nobody():
            assert problems(config) == []


def test_bug_with_a_table_ends_the_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected of a table of the mirror's own database is that target's error alone."""
    with start(HERE) as on:
        site.make(on.url)
        site.add(on.url, SLUG)
        monkeypatch.setattr(target, "reconcile", lambda *_, **__: 1 / 0)
        run = on.rig.run()
        assert (run.outcome, run.synced) == ("ok", 6)
        assert on.state.last_error == "unexpected ZeroDivisionError, see the log; please report it"


def test_odd_name_of_a_table_is_no_table(make_config: MakeConfig, urls: dict[str, str]) -> None:
    """A percent sign is doubled in a statement, and stands once in what is asked of it."""
    url = urls[ELSEWHERE]
    site.make(url, "For%mation")
    config = structs.replace(make_config(), publish=(settings(database=url, table="For%mation"),))
    assert problems(config) == []


@pytest.mark.postgresql_only
def test_missing_right_is_found_by_the_first_sale(make_config: MakeConfig, urls: dict[str, str]) -> None:
    """A role that may not read, or not write, the table is told what to grant."""
    url = urls[ELSEWHERE]
    site.make(url)
    ((schema,),) = query(url, "SELECT current_schema()")
    role = f"r{schema}"
    query(url, f"CREATE ROLE {role} LOGIN")
    query(url, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    database = url.replace("://tester@", f"://{role}@")
    config = structs.replace(make_config(), publish=(settings(database=database),))
    grant = f'GRANT SELECT, UPDATE ON "Formation" TO {role}'
    assert problems(config) == [
        f'publish formation: the user {role} may not {right} "Formation": {grant}'
        for right in ("SELECT", "UPDATE")
    ]
    query(url, f'GRANT SELECT ON "Formation" TO {role}')
    assert problems(config) == [f'publish formation: the user {role} may not UPDATE "Formation": {grant}']
    query(url, f'GRANT UPDATE ON "Formation" TO {role}')
    assert problems(config) == []


@pytest.mark.sqlite_only("its words for a plan")
def test_all_events_are_read_for_one_that_changed(make_config: MakeConfig, instant_retries: None) -> None:
    """Which events share a key with it is found by indexes: else each would cost the whole account."""
    asked: list[tuple[str, Any]] = []
    with rig_on(make_config()) as rig:
        rig.run()
        with rig.account.database.begin() as connection:
            event.listen(connection, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
            found = target.events(connection, settings(), [CONCERT])
            steps = [
                str(step[-1])
                for statement, values in [*asked]
                for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            ]
    assert [each["id"] for each in found] == [CONCERT]
    assert [step for step in steps if step.startswith("SCAN")] == []
    assert sum("billetweb_events" in step for step in steps) == 3
