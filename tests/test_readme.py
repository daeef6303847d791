"""The README is held against the code: keys, commands, tables, queries."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import fields
from sqlalchemy import Connection, create_engine, inspect, text
from support.project import DEVELOPMENT, MEASURED, README, ROOT
from support.real_databases import query as query_past_syncd
from support.real_databases import url_at

from syncd import config
from syncd.cli import main as cli
from syncd.ctl import main as ctl
from syncd.database import schema
from syncd.database.engine import Database

QUERIES = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)


def words(program: str) -> set[str]:
    """Return what the README's table of commands names after `program`, alternatives included."""
    found: set[str] = set()
    for row in re.findall(rf"^\| `{program} ([^|]*)\|", README, re.MULTILINE):
        found.update(re.findall(r"(?:^|/ `)([a-z-]+)", row))
    return found


def subcommands(help_text: str) -> set[str]:
    """Return the commands that a program's own help lists."""
    return set(re.findall(r"^    ([a-z][a-z-]+) ", help_text, re.MULTILINE))


def test_key_that_nobody_can_find() -> None:
    """Every key of the configuration stands in the README's table, those of lists too."""
    keys = [
        f"`{table.name}.{key.name}`"
        for table in fields(config.Config)
        for record in (table.type, *get_args(table.type))  # one, or a list of them
        if hasattr(record, "__struct_fields__")
        for key in fields(record)
    ]
    sample = (Path(__file__).parent.parent / "config.toml").read_text()
    assert {key[1:].partition(".")[0] for key in keys} == {
        *re.findall(r"^(?:# )?\[+(\w+)\]+$", sample, re.MULTILINE)
    }
    assert [key for key in keys if key not in README] == []


def test_command_that_nobody_can_find() -> None:
    """The README's table of commands names those that the programs have, and no others."""
    assert words("syncd") == subcommands(cli.parser().format_help())
    assert words("syncctl") == subcommands(ctl.build_parser().format_help())


@pytest.fixture
def connection(tmp_path: Path, database_kind: str) -> Iterator[Connection]:
    """Connect to a database as the migrations make it."""
    url = url_at(tmp_path / "syncd.db")
    database = Database(url)
    database.open()
    database.close()
    engine = create_engine(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def rows_of(kind: str) -> dict[str, str]:
    """Return the rows of the README's table with this head: name and description."""
    table = README.partition(f"\n| {kind} | a row is |\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))


def test_table_that_nobody_can_find() -> None:
    """Every public table stands in the README, and no other does."""
    private = {schema.absences.name, schema.reads.name, schema.requests.name}
    private |= {schema.state.name, schema.cursors.name}
    assert rows_of("table").keys() == schema.metadata.tables.keys() - private


def test_view_that_is_not_as_described(connection: Connection) -> None:
    """Every view stands in the README with all its columns in their order, and no other does."""
    views = inspect(connection)
    described = {name: re.findall("`(.*?)`", text) for name, text in rows_of("view").items()}
    assert described == {
        name: [column["name"] for column in views.get_columns(name)] for name in views.get_view_names()
    }


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_query_that_does_not_run(query: str, connection: Connection) -> None:
    """The README's example queries run on the tables and views as the migrations make them."""
    connection.execute(text(query)).all()


@pytest.mark.postgresql_only
def test_a_grant_that_does_not_suffice(tmp_path: Path, database_kind: str) -> None:
    """After README's statements syncd makes its tables in a schema of its own, and the site reads them."""
    url = url_at(tmp_path / "site.db")
    (statements,) = re.findall(r"```pgsql\n(.*?)```", README, re.DOTALL)
    for role in ("syncd", "site"):
        query_past_syncd(url, f"CREATE ROLE {role} LOGIN")
    query_past_syncd(url, statements)
    own = re.sub(r"search_path%3D\w+", "search_path%3Dbilletweb", url)
    database = Database(own.replace("://tester@", "://syncd@"))
    database.open()
    database.close()
    as_site = url.replace("://tester@", "://site@")
    assert query_past_syncd(as_site, "SELECT * FROM billetweb.syncd_availability") == []


def test_there_are_queries() -> None:
    """The pattern above still finds the README's queries."""
    assert len(QUERIES) >= 3


@pytest.mark.parametrize(
    "page", ["README.md", "tests/README.md", "tests/bench/README.md", "systemd/README.md"]
)
def test_link_that_leads_nowhere(page: str) -> None:
    """Every link to a file or a heading of the project leads there."""
    text = (ROOT / page).read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
    for path, heading in links:
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not heading or heading in headings(target.read_text("utf-8")), heading


def headings(text: str) -> set[str]:
    """Return the headings of a page as links name them."""
    found = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_readme_shows_other_times_than_measured() -> None:
    """README's row of the benchmark, with its head, is one of those in tests/bench/README.md."""
    shown = README.partition("| events × attendees, network |")[2].partition("\n\n")[0].splitlines()
    assert len(shown) == 3
    assert {f"| events × attendees, network |{shown[0]}", *shown[1:]} <= {*MEASURED.splitlines()}


def test_module_that_nobody_explains() -> None:
    """Every module stands in the table of modules of tests/README.md, in the row of its folder."""
    package = Path(__file__).parent.parent / "syncd"
    paths = [path.relative_to(package) for path in package.rglob("*.py") if "migrations" not in path.parts]
    modules = {(str(path.parent), path.stem) for path in paths if not path.stem.startswith("__")}
    table = DEVELOPMENT.partition("| modules |")[2].replace("`migrations/`", "")
    named = [
        (re.match(r"\| in `([a-z]+)/`", row), re.findall(r"`([a-z_]+)`", row)) for row in table.splitlines()
    ]
    assert modules == {(folder[1] if folder else ".", name) for folder, names in named for name in names}
