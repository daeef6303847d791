"""How the package is built: who may import whom, what syncctl may load, and how long things may be."""

import ast
import functools
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import syncd

ROOT = Path(syncd.__file__).parent
ROOMS = (
    *("__init__", "errors", "model", "text", "usage", "lastline", "clock", "threads", "typed", "web"),
    *("readers", "toml", "credentials", "consistency", "config"),
    *("log", "billetweb", "mirror", "database", "feed", "run", "account", "control", "daemon"),
    *("standin", "cli", "__main__", "ctl"),
)
"""Each folder, and each module in none, imports from earlier ones only."""
FLOOR = {"errors", "model", "text", "clock", "threads", "config"}
ONLY = {name: set[str]() for name in ("errors", "model", "text", "clock", "threads", "typed")} | {
    "web": {"errors"},
    "readers": {"text"},
    "toml": {"errors", "readers", "typed"},
    "credentials": {"readers"},
    "consistency": {"readers", "toml"},
    "mirror": {"model"},
    "usage": {"__init__", "text"},
    "lastline": {"text"},
    "ctl": {"__init__", "text", "usage", "lastline"},
}
"""What some of them import at most."""
PROGRAMS = {"ctl", "cli", "daemon", "__main__"}
STANDIN = {"standin"}
BORDERS = {
    "apscheduler": {"account.schedule"},
    "uvicorn": {"control.peers", "control.server", "standin.server"},
    "prometheus_client": {"control.metrics"},
    "alembic": {"database.engine"},
    "icalendar": {"feed.rendering"},
    "jinja2": {"control.page"},
    "httpx": {"billetweb.client", "feed.heartbeat", "feed.sending", "web"},
    "standardwebhooks": {"feed.sending"},
}
"""Who knows each large library; of SQLAlchemy, who knows more than a connection's type."""
HANDED_ON = {"sqlalchemy.Connection"}
NO_RULE_NEEDS = {"asyncio", "os", "pathlib", "random", "socket", "threading", "time"}
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 80
OWN_WORDS_OVER_LINES = 6
"""A public function longer than this says in a docstring what it gives back."""
NAMED_BY_OTHERS = {"emit"}  # methods whose contract stands in the class that they override
NEEDLESS_WHEN_IDLE = {
    *("alembic", "mako", "psycopg", "pymysql", "icalendar", "dateutil", "jinja2"),
    *("sqlalchemy.dialects.postgresql", "pygments", "rich"),
}
"""A daemon at rest stays below 60 MiB: most wait until needed, the last two are for terminals."""
SLOW = {"msgspec", "httpx", "sqlalchemy", "rich", "loguru", "asyncio", "typing", "http", "email", "ssl"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if "migrations" not in path.parts  # records of the past
}
MODULES = sorted(PATHS)


@functools.cache
def parsed(module: str) -> ast.Module:
    """Return a module as Python reads it."""
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def room(module: str) -> str:
    """Return the folder that a module is in; itself where it is in none."""
    return module.partition(".")[0]


@functools.cache
def names(module: str) -> set[str]:
    """Return all that a module imports, at its head or inside a function, by full names."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def imports(module: str) -> set[str]:
    """Return the modules of syncd that this one imports."""
    found = set()
    for name in names(module):
        package, *rest = name.split(".")
        if package == "syncd":
            paths = (".".join(rest[:length]) for length in range(len(rest), 0, -1))
            found.add(next((path for path in paths if path in PATHS), "__init__"))
    return found


def rooms_of(module: str) -> set[str]:
    """Return the rooms, other than its own, that a module imports from."""
    return {room(each) for each in imports(module)} - {room(module)}


def test_every_module_has_its_place_in_the_order() -> None:
    """A room that is not in the table escapes it; one that is gone makes it lie."""
    assert sorted(ROOMS) == sorted({room(module) for module in MODULES})


def test_a_room_leans_only_on_earlier_ones() -> None:
    """No import goes against the order, and those rooms that are to know little import no more."""
    for module in MODULES:
        before = set(ROOMS[: ROOMS.index(room(module))])
        assert rooms_of(module) <= before & ONLY.get(room(module), before), module


def test_two_modules_need_each_other() -> None:
    """There is no cycle within a room either: each module can be read before those that need it."""
    order = [*TopologicalSorter({module: imports(module) for module in MODULES}).static_order()]
    assert len(order) == len(MODULES)


def test_the_programs_are_nobodys_library() -> None:
    """Only programs import programs or the stand-in, and nobody imports syncctl."""
    users = {room(module) for module in MODULES if rooms_of(module) & (PROGRAMS | STANDIN)}
    assert users <= PROGRAMS | STANDIN
    assert not any("ctl" in rooms_of(module) for module in MODULES)
    assert not any(rooms_of(module) & PROGRAMS for module in MODULES if room(module) in STANDIN)


@pytest.mark.parametrize("library", BORDERS)
def test_one_library_has_one_border(library: str) -> None:
    """Each large library is known to the modules that wrap it and to no other."""
    users = {module for module in MODULES if library in {name.partition(".")[0] for name in names(module)}}
    assert users == BORDERS[library]


def test_sql_is_written_outside_its_room() -> None:
    """Others hand a connection on: they import its type alone."""
    used = {module: {name for name in names(module) if name.startswith("sqlalchemy")} for module in MODULES}
    assert {room(module) for module, some in used.items() if some - HANDED_ON} == {"database"}


def test_a_rule_waits_reads_or_asks_the_time() -> None:
    """What decides about rows is a function of what it is handed."""
    for module in MODULES:
        if room(module) == "mirror":
            used = {name.partition(".")[0] for name in names(module)}
            assert used <= {*sys.stdlib_module_names, "syncd", "msgspec"} - NO_RULE_NEEDS, module


def libraries(tree: ast.Module) -> set[str]:
    """Return the top-level packages that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize(
    "module",
    [
        "ctl.main",
        "ctl.http",
        "ctl.bridge",
        "ctl.panel",
        "ctl.tables",
        "usage",
        "ctl.__init__",
        "text",
        "__init__",
    ],
)
def test_syncctl_needs_nothing_installed(module: str) -> None:
    """The head of syncctl's modules imports the standard library and syncd alone."""
    head = ast.Module(
        [node for node in parsed(module).body if isinstance(node, ast.Import | ast.ImportFrom)], []
    )
    assert libraries(head) <= {*sys.stdlib_module_names, "syncd"}


def loaded_by(code: str, *options: str) -> set[str]:
    """Return the modules that a process of its own has loaded after this code."""
    ask = f"{code}; import json, sys; print(json.dumps([name for name, it in sys.modules.items() if it]))"
    command = [sys.executable, *options, "-c", ask]
    answer = subprocess.run(command, capture_output=True, check=True, cwd=ROOT.parent)
    return set(json.loads(answer.stdout))


def test_syncctl_starts_without_loading_the_daemons_libraries() -> None:
    """In a process of its own, importing syncctl loads none of the slow modules."""
    loaded = loaded_by("import syncd.ctl.main", "-S")
    assert "syncd.ctl.main" in loaded
    assert loaded & SLOW == set()
    assert {name for name in loaded if name.startswith("syncd.")} == {
        *("syncd.ctl", "syncd.ctl.http", "syncd.ctl.main", "syncd.ctl.panel", "syncd.ctl.tables"),
        *("syncd.text", "syncd.usage"),
    }


def test_the_daemon_at_rest_keeps_needless_libraries_in_memory() -> None:
    """`syncd run` loads what draws on terminals, migrates or speaks to PostgreSQL no sooner than it must."""
    loaded = loaded_by("import syncd.cli.main; from syncd.daemon import activation, daemon, watchdog")
    assert {"syncd.daemon.daemon", "httpx", "sqlalchemy"} <= loaded
    assert loaded & NEEDLESS_WHEN_IDLE == set()
    assert (
        loaded & {"syncd.ctl.main", "syncd.cli.demo", "syncd.cli.progress", "syncd.standin.server"} == set()
    )


@pytest.mark.slow("starts a process")
def test_a_migration_loads_a_highlighter_of_source_code(tmp_path: Path) -> None:
    """A new database is made without pygments, which Mako would take for error pages that nobody sees."""
    loaded = loaded_by(
        f"from syncd.database.engine import Database; Database('sqlite:///{tmp_path}/new.db').open()"
    )
    assert "mako.exceptions" in loaded
    assert loaded & {"pygments", "rich"} == set()


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def lines(node: Function) -> int:
    assert node.end_lineno
    return node.end_lineno - node.lineno + 1


def public(tree: ast.Module) -> list[Function | ast.ClassDef]:
    """Return what other modules may use: public classes and functions, and the public methods of those."""
    shown: list[Function | ast.ClassDef] = []
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            shown.append(node)
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, Function)]
                shown += [method for method in methods if not method.name.startswith("_")]
    return shown


def test_what_others_use_says_what_it_is() -> None:
    """Every module opens with its purpose; public classes, and functions of some length, have docstrings."""
    assert [module for module in MODULES if not ast.get_docstring(parsed(module))] == []
    mute = [
        f"{module}: {node.name}"
        for module in MODULES
        for node in public(parsed(module))
        if not ast.get_docstring(node)
        and node.name not in NAMED_BY_OTHERS
        and (isinstance(node, ast.ClassDef) or lines(node) > OWN_WORDS_OVER_LINES)
    ]
    assert mute == []


def test_nothing_is_too_long_to_read_at_once() -> None:
    """No module is over 500 lines, no function over 80."""
    for module in MODULES:
        assert len(PATHS[module].read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES, module
        too_long = [node.name for node in functions(parsed(module)) if lines(node) > MAX_FUNCTION_LINES]
        assert too_long == [], module
