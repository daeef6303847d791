"""How the package is built: who may import whom, what syncctl may load, and how long things may be."""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import syncd

ROOT = Path(syncd.__file__).parent
ORDER = (
    # what imports nothing of syncd
    "__init__", "errors", "model", "redact", "text", "threads", "limiter", "schema", "notify", "schedule",
    "agenda",
    # small parts
    "activation", "availability", "config", "fields", "heartbeat", "lock", "log", "runner", "slices",
    "watchdog", "wire",
    # Billetweb and the database
    "billetweb", "sqlite", "postgresql", "database", "bulk", "reconcile", "store", "attendee_store",
    "attendees", "sync",
    # what is known of runs, and who may ask
    "runlog", "progress", "status", "metrics", "mirror", "control",
    # the programs
    "daemon", "standin_kinds", "standin_people", "standin_world", "standin", "demo", "cli", "__main__", "ctl",
)  # fmt: skip
"""Each module imports from earlier ones only: so there is no cycle, and each can be read before the next."""
MAY_IMPORT_NOTHING = {
    "agenda",
    "errors",
    "model",
    "redact",
    "text",
    "threads",
    "limiter",
    "schema",
    "schedule",
}
STANDIN = {"standin", "standin_kinds", "standin_people", "standin_world"}
PROGRAMS = {"ctl", "cli", "daemon", "demo", "__main__", *STANDIN}
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 80
OWN_WORDS_OVER_LINES = 6
"""A public function longer than this says in a docstring what it gives back."""
NAMED_BY_OTHERS = {"emit"}  # methods whose contract stands in the class that they override
NEEDLESS_WHEN_IDLE = {"alembic", "mako", "psycopg", "pygments", "rich"}
"""A daemon at rest stays below 60 MiB: the first three wait until needed, the others are for terminals."""
SLOW = {"msgspec", "httpx", "sqlalchemy", "rich", "loguru", "asyncio", "typing", "http", "email", "ssl"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of each module, migrations aside: those are records of the past."""
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.py"))}


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Return the modules of syncd that this one imports, at its head or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "syncd":
                found.add(rest[0] if rest and rest[0] in modules else "__init__")
    return found


GRAPH = {name: imports(tree, set(trees())) for name, tree in trees().items()}


def test_every_module_has_its_place_in_the_order() -> None:
    """A module that is not in the table escapes it; one that is gone makes it lie."""
    assert sorted(ORDER) == sorted(GRAPH)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_leans_only_on_earlier_ones(module: str) -> None:
    """No import goes against the order, so no two modules need each other."""
    assert GRAPH[module] <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", sorted(MAY_IMPORT_NOTHING))
def test_the_floor_stands_on_nothing(module: str) -> None:
    """The records, the errors and the plain helpers know nothing of the rest."""
    assert GRAPH[module] == set()


def test_the_programs_are_nobodys_library() -> None:
    """Only programs import programs, and nobody imports syncctl, which itself leans on text alone."""
    users = {name: GRAPH[name] & PROGRAMS for name in GRAPH}
    assert {name for name, used in users.items() if used} <= PROGRAMS
    assert not any("ctl" in used for used in users.values())
    assert GRAPH["ctl"] == {"__init__", "text"}


def test_one_library_has_one_border() -> None:
    """Each large library is known to the modules that wrap it and to no other."""
    borders = {
        "apscheduler": {"schedule"},
        "uvicorn": {"control", "standin"},
        "prometheus_client": {"metrics"},
        "alembic": {"database"},
        "httpx": {"billetweb", "heartbeat"},
        "sqlalchemy": {
            "sqlite",
            "postgresql",
            "database",
            "bulk",
            "schema",
            "store",
            "attendee_store",
            "attendees",
        },
    }
    for library, allowed in borders.items():
        users = {name for name, tree in trees().items() if library in libraries(tree)}
        assert users <= allowed, library
        assert users, library


def libraries(tree: ast.Module) -> set[str]:
    """Return the top-level packages that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("module", ["ctl", "text", "__init__"])
def test_syncctl_needs_nothing_installed(module: str) -> None:
    """The head of syncctl's modules imports the standard library and syncd alone."""
    head = ast.Module(
        [node for node in trees()[module].body if isinstance(node, ast.Import | ast.ImportFrom)], []
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
    loaded = loaded_by("import syncd.ctl", "-S")
    assert "syncd.ctl" in loaded
    assert loaded & SLOW == set()
    assert {name for name in loaded if name.startswith("syncd.")} == {"syncd.ctl", "syncd.text"}


def test_the_daemon_at_rest_keeps_needless_libraries_in_memory() -> None:
    """`syncd run` loads what draws on terminals, migrates or speaks to PostgreSQL no sooner than it must."""
    loaded = loaded_by("import syncd.cli, syncd.daemon, syncd.watchdog, syncd.activation")
    assert {"syncd.daemon", "httpx", "sqlalchemy"} <= loaded
    assert loaded & NEEDLESS_WHEN_IDLE == set()
    assert loaded & {"syncd.ctl", "syncd.demo", "syncd.progress", "syncd.standin"} == set()


def test_a_migration_loads_a_highlighter_of_source_code(tmp_path: Path) -> None:
    """A new database is made without pygments, which Mako would take for error pages that nobody sees."""
    loaded = loaded_by(
        f"from syncd.database import Database; Database('sqlite:///{tmp_path}/new.db').close()"
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


@pytest.mark.parametrize("module", ORDER)
def test_what_others_use_says_what_it_is(module: str) -> None:
    """Every module opens with its purpose; public classes, and functions of some length, have docstrings."""
    tree = trees()[module]
    assert ast.get_docstring(tree)
    mute = [
        node.name
        for node in public(tree)
        if not ast.get_docstring(node)
        and node.name not in NAMED_BY_OTHERS
        and (isinstance(node, ast.ClassDef) or lines(node) > OWN_WORDS_OVER_LINES)
    ]
    assert mute == []


@pytest.mark.parametrize("module", ORDER)
def test_nothing_is_too_long_to_read_at_once(module: str) -> None:
    """No module is over 500 lines, no function over 80."""
    assert len((ROOT / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES
    assert [node.name for node in functions(trees()[module]) if lines(node) > MAX_FUNCTION_LINES] == []
