"""syncd beside the least that its work could cost, and beside dlt: time, requests and memory, as ratios.

    python tests/bench/run.py [--events 50,200] [--attendees 40,500] [--latency 0,20]
                              [--database sqlite|postgresql] [--json FILE] [--against REV]

Each account (50 events × 40 attendees, 200 × 500) is imported into a new database, over each network (0 and
20 ms per request), then read with nothing changed, then with 1 % changed: by the floor (`floor.py`), by dlt
(`pipeline.py`; installed by pip for this alone, left out where that fails) and by syncd, each in processes of
their own, from the same upstream (`upstream.py`), in turns. Times are from the first request to the last
commit, the best of three (of dlt: one); the start of the programs is not in them. Two more floors stand for
what the first does not do: a first import that fills the log of changes too, and the requests that syncd
sends where nothing changed, by themselves (`again.py`).

Billetweb's 100 calls a minute bound all three alike, and would hide what they cost. So nobody waits for them
here: the upstream has no limit, and syncd keeps its ceiling by a clock that jumps (`no_ceiling.py`).

Then syncd alone: how its memory grows with the account, how soon `status` answers during a first import, what
it needs at rest, and how `syncctl status` compares with the start of Python.

Prints Markdown for README.md in this folder. Other work on the machine changes the figures; the ratios
less than the times.

With `--against REV`, any revision that git knows and that has this benchmark, that version's syncd is
measured too, from a temporary copy of it, in turns with the present one (which is the working tree, committed
or not). Only what is imported differs: Python, the installed packages, the upstream and the configuration are
the same. The table then shows syncd ÷ REV for the best and the median of five times, for the CPU time of the
whole process, for requests and for the peak of memory. dlt and what is of syncd alone are left out.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import measure
import report
from databases import NewDatabase, databases
from sqlalchemy import create_engine, text

ATTENDEES = "full"
TURNS = 3
TURNS_AGAINST = 5
HERE = Path(__file__).resolve().parents[2]
"""The checkout that this script is of, as the one of another version is given where that is measured."""
COPIED = "syncd", "tests/bench"
SYNCD = [sys.executable, "-m", "syncd"]
OVERLAP_S = 600
"""How much earlier than its last run the floor asks for modifications, as syncd does."""
REST_S = 10.0
STATUS_EVERY_S = 0.01
STARTS = 20
PHASES = FIRST, UNCHANGED, CHANGED = "first import", "nothing changed", "1 % changed"
Figures = dict[str, float]
Measured = dict[str, Figures]
"""Figures by phase."""


def script(name: str, root: Path = HERE) -> list[str]:
    """Return the command that runs a script of the benchmark, of this checkout or of another."""
    return [sys.executable, str(root / "tests" / "bench" / name)]


@dataclass
class Upstream:
    """The server that all read from; `asked` holds what the latest program asked it for, by phase."""

    base_url: str
    asked: dict[str, list[str]] = field(default_factory=dict)

    def ask(self, path: str) -> Any:
        """Return what the server says to a `/bench/` path."""
        with urllib.request.urlopen(f"{self.base_url}/bench/{path}") as answer:
            return json.load(answer)


@contextlib.contextmanager
def upstream(events: int, attendees: int) -> Iterator[Upstream]:
    """Serve an account of this size."""
    command = [*script("upstream.py"), str(events), str(attendees)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Upstream(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


@dataclass
class Bench:
    """Where and with what it is measured. `old` is the checkout of the version to be measured against."""

    folder: Path
    new_database: NewDatabase
    dlt: str | None
    old: Path | None

    def environ(self, root: Path = HERE) -> dict[str, str]:
        """Return the environment of a process that imports syncd from this checkout."""
        return {
            "PYTHONPATH": str(root),
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONWARNINGS": "ignore",
            "BENCH_FIGURES": str(self.folder / "figures.json"),
            "BILLETWEB_KEY": "bench-key",
        }

    def figures(self, *command: str, given: str = "", root: Path = HERE) -> Figures:
        """Return what a finished process told of itself."""
        environ = self.environ(root)
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, input=given, text=True)
        found: Figures = json.loads((self.folder / "figures.json").read_text())
        return found

    def config(self, server: Upstream, database: str) -> Path:
        """Return the file of a syncd that reads the upstream into the database, when it is asked to."""
        url = database.replace("postgresql:", "postgresql+psycopg:")
        tables: dict[str, dict[str, object]] = {
            "billetweb": {"user": "12345", "base_url": f"{server.base_url}/api", "requests_per_minute": 100},
            "sync": {"attendees": ATTENDEES, "run_timeout": "24h", "run_on_start": False},
            "database": {"url": url},
            "control": {"socket": str(self.folder / "socket")},
            "log": {"level": "WARNING", "format": "text"},
        }
        path = self.folder / "config.toml"
        lines = []
        for name, keys in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        path.write_text("\n".join(lines) + "\n")
        return path

    def with_tables(self, server: Upstream, root: Path = HERE) -> tuple[str, Path]:
        """Return a new database with the tables that syncd makes, and a configuration that leads to it.

        A daemon makes them before it answers, whatever the modules of its version are called.
        """
        database = self.new_database()
        config = self.config(server, database)
        with daemon(self, script("no_ceiling.py", root), config, root):
            return database, config


# --- those that are compared


def by_floor(bench: Bench, server: Upstream) -> Measured:
    """Return what the floor takes."""
    database, _ = bench.with_tables(server)
    command = [*script("floor.py"), f"{server.base_url}/api", database]

    def read(phase: str) -> Figures:
        since = [] if phase == FIRST else [str(int(time.time()) - OVERLAP_S)]
        return bench.figures(*command, *since)

    return in_phases(server, read, database, "billetweb_attendees")


def by_floor_with_log(bench: Bench, server: Upstream) -> Measured:
    """Return what the floor's first import takes with the log of changes."""
    database, _ = bench.with_tables(server)
    return {FIRST: bench.figures(*script("floor.py"), f"{server.base_url}/api", database, "log")}


def by_requests(bench: Bench, server: Upstream) -> Measured:
    """Return what the requests take that the latest program sent where nothing had changed."""
    asked = server.asked[UNCHANGED]
    return {UNCHANGED: bench.figures(*script("again.py"), server.base_url, given="\n".join(asked))}


def by_dlt(bench: Bench, server: Upstream) -> Measured:
    """Return what dlt takes."""
    assert bench.dlt
    folder = bench.folder / "dlt"
    database = bench.new_database()
    command = [bench.dlt, *script("pipeline.py")[1:], f"{server.base_url}/api", database, str(folder)]
    found = in_phases(server, lambda _: bench.figures(*command), database, "main.attendees")
    shutil.rmtree(folder)
    return found


def by_syncd(bench: Bench, server: Upstream, root: Path = HERE) -> Measured:
    """Return what `syncd once` takes, the present one or that of another checkout."""
    database, config = bench.with_tables(server, root)
    command = [*script("no_ceiling.py", root), "once", "--config", str(config)]

    def read(phase: str) -> Figures:
        figures = bench.figures(*command, *(["--full"] if phase == FIRST else []), root=root)
        run = rows(database, "SELECT outcome, duration_s FROM syncd_runs ORDER BY id DESC LIMIT 1")[0]
        assert run.outcome == "ok", "a run that failed measures nothing"
        return figures | {"seconds": run.duration_s}

    return in_phases(server, read, database, "billetweb_attendees")


def in_phases(server: Upstream, read: Callable[[str], Figures], database: str, attendees: str) -> Measured:
    """Return the figures of each phase. Fails unless the table then holds all attendees and refunds."""
    found = {}
    for phase in PHASES:
        if phase == CHANGED:
            server.ask("change")
        before = len(server.ask("requests"))
        found[phase] = read(phase)
        server.asked[phase] = server.ask("requests")[before:]
        found[phase]["requests"] = len(server.asked[phase])
    refunded = "CASE WHEN CAST(disabled AS TEXT) IN ('1', 'true') THEN 1 ELSE 0 END"
    count, refunds = rows(database, f"SELECT COUNT(*), SUM({refunded}) FROM {attendees}")[0]
    assert [count, refunds] == server.ask("attendees"), f"{count}, {refunds}: not what the upstream holds"
    return found


def rows(database: str, query: str) -> Sequence[Any]:
    """Return what a query finds."""
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        found = connection.execute(text(query)).all()
    engine.dispose()
    return found


def compare(bench: Bench, server: Upstream, latency_ms: int) -> dict[str, Measured]:
    """Return the figures of each program, measured in turns, with so much network in between."""
    programs: dict[str, Callable[[Bench, Upstream], Measured]] = {
        "floor": by_floor,
        "floor with log": by_floor_with_log,
        **({"old": partial(by_syncd, root=bench.old)} if bench.old else {}),
        "syncd": by_syncd,
        "requests alone": by_requests,  # of syncd, whom it follows
        **({"dlt": by_dlt} if bench.dlt else {}),
    }
    found: dict[str, list[Measured]] = {name: [] for name in programs}
    for turn in range(TURNS_AGAINST if bench.old else TURNS):
        for name, measure_it in programs.items():
            if name != "dlt" or not turn:  # far from the others: once is enough
                server.ask(f"reset?latency_ms={latency_ms}")
                found[name].append(measure_it(bench, server))
    return {
        name: {phase: summed_up([each[phase] for each in all_]) for phase in all_[0]}
        for name, all_ in found.items()
    }


def summed_up(turns: list[Figures]) -> Figures:
    """Return the figures of the quickest turn, with the median of all times."""
    quickest = min(turns, key=itemgetter("seconds"))
    return quickest | {"median_s": statistics.median(each["seconds"] for each in turns)}


# --- syncd alone


@contextlib.contextmanager
def daemon(bench: Bench, program: list[str], config: Path, root: Path = HERE) -> Iterator[int]:
    """Give the process id of a `syncd run` that answers on its socket."""
    process = subprocess.Popen([*program, "run", "--config", str(config)], env=bench.environ(root))
    try:
        while not ask(bench, "GET", "/healthz"):
            assert process.poll() is None, "syncd did not start"
            time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(bench: Bench, method: str, path: str, body: bytes | None = None) -> bytes:
    """Return the body of the daemon's answer, on a connection of its own; nothing where none listens."""
    connection = http.client.HTTPConnection("syncd")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(bench.folder / "socket"))
    except (FileNotFoundError, ConnectionRefusedError):
        return b""
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().read()


def status_meanwhile(bench: Bench, server: Upstream) -> Figures:
    """Return how soon `status` answers during a first import, to one who asks 100 times a second."""
    server.ask("reset?latency_ms=0")
    _, config = bench.with_tables(server)
    times_ms = []
    with daemon(bench, script("no_ceiling.py"), config) as process:
        run = json.loads(ask(bench, "POST", "/v1/runs", b'{"full": true}'))
        while run["state"] != "done":
            began = time.perf_counter()
            ask(bench, "GET", "/v1/status")
            times_ms.append(1000 * (time.perf_counter() - began))
            time.sleep(STATUS_EVERY_S)
            if len(times_ms) % 20 == 0:
                run = json.loads(ask(bench, "GET", f"/v1/runs/{run['id']}"))
        assert run["outcome"] == "ok", run
        time.sleep(REST_S)
        after_mib = measure.memory_mib("VmRSS", process)
    cuts = statistics.quantiles(times_ms, n=100)
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "asked": len(times_ms), "after_mib": after_mib}


def at_rest(bench: Bench, server: Upstream) -> Figures:
    """Return the memory of a `syncd run` some time after its start, and what `syncctl status` costs there."""
    _, config = bench.with_tables(server)
    with daemon(bench, SYNCD, config) as process:
        time.sleep(REST_S)
        idle_mib = measure.memory_mib("VmRSS", process)
        program = Path(sys.executable).with_name("syncctl")
        syncctl = [str(program), "--socket", str(bench.folder / "socket"), "status"]
        starts = [(_seconds(sys.executable, "-c", "pass"), _seconds(*syncctl)) for _ in range(STARTS)]
    python_s, syncctl_s = (statistics.median(times) for times in zip(*starts, strict=True))
    return {"idle_mib": idle_mib, "python_s": python_s, "syncctl_s": syncctl_s}


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


# --- the whole


def checked_out(revision: str, folder: Path) -> tuple[Path, str]:
    """Return a copy of a revision's syncd and benchmark, below the folder, and the commit's short name.

    Ends the program where there are none. An archive, not a worktree: the repository is left as it is.
    """
    git = ["git", "-C", str(HERE)]
    archive = subprocess.run([*git, "archive", revision, *COPIED], capture_output=True, check=False)
    if archive.returncode:
        sys.exit(f"--against {revision}: {archive.stderr.decode().strip()}")
    root = folder / "old"
    root.mkdir()
    subprocess.run(["tar", "-x", "-C", root], input=archive.stdout, check=True)
    name = [*git, "rev-parse", "--short", f"{revision}^{{commit}}"]
    return root, subprocess.run(name, capture_output=True, text=True, check=True).stdout.strip()


def version(root: Path) -> str:
    """Return the version of a checkout's syncd. Fails where another one would be imported.

    It is compiled from now on: in a measured process that would cost memory, the first time.
    """
    subprocess.run([sys.executable, "-m", "compileall", "-q", *COPIED], cwd=root, check=True)
    tell = [sys.executable, "-P", "-c", "import syncd; print(syncd.__version__, syncd.__file__)"]
    environ = {"PYTHONPATH": str(root)}
    told = subprocess.run(tell, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    number, path = told.strip().split(maxsplit=1)
    assert Path(path).is_relative_to(root), f"{path} would be measured instead of what is in {root}"
    return number


def with_dlt(folder: Path) -> str | None:
    """Return the Python of an environment with dlt in it; None, and a line that says so, where that fails."""
    environment = str(folder / "environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = f"{environment}/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = subprocess.run(
        [*install, "dlt[postgres,sqlalchemy]"], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        reason = (installed.stderr.strip() or "no reason given").splitlines()[-1]
        print(f"dlt is left out: pip could not install it ({reason})", file=sys.stderr)  # noqa: T201
        return None
    return python


def numbers(value: str) -> list[int]:
    """Return the whole numbers of a list with commas."""
    return [int(each) for each in value.split(",")]


def main() -> None:
    """Measure, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--events", type=numbers, default=[50, 200], help="accounts: events (default: 50,200)"
    )
    parser.add_argument(
        "--attendees", type=numbers, default=[40, 500], help="of each event (default: 40,500)"
    )
    parser.add_argument("--latency", type=numbers, default=[0, 20], help="ms per request (default: 0,20)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument(
        "--against",
        metavar="REV",
        help="also measure the syncd of this git revision (v0.3, a commit), in turns with the present one",
    )
    arguments = parser.parse_args()
    if len(arguments.events) != len(arguments.attendees):
        parser.error("--events and --attendees need as many numbers each: together they name the accounts")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-")))
        engine, new_database = stack.enter_context(databases(arguments.database, folder))
        old, versions = None, {}
        if arguments.against:
            old, commit = checked_out(arguments.against, folder)
            versions = {"old": f"{version(old)}, {commit}", "syncd": version(HERE)}
        bench = Bench(folder, new_database, None if old else with_dlt(folder), old)
        found = measure_all(
            bench, list(zip(arguments.events, arguments.attendees, strict=True)), arguments.latency
        )
    found["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "database": engine,
        "attendees": ATTENDEES,
        "against": arguments.against,
        "versions": versions,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(report.markdown(found))  # noqa: T201


def measure_all(bench: Bench, accounts: list[tuple[int, int]], latencies: list[int]) -> dict[str, Any]:
    """Return all figures."""
    found: dict[str, Any] = {"comparisons": []}
    for events, attendees in accounts:
        with upstream(events, attendees) as server:
            for latency_ms in latencies:
                _say(f"{events} × {attendees}, {latency_ms} ms per request")
                figures = compare(bench, server, latency_ms)
                account = {"events": events, "attendees": attendees, "latency_ms": latency_ms}
                found["comparisons"].append({**account, "figures": figures})
            if (events, attendees) == accounts[-1] and not bench.old:
                _say("status during a first import, memory at rest, syncctl")
                found["status"] = status_meanwhile(bench, server)
                found["rest"] = at_rest(bench, server)
    if bench.old:
        return found
    events, attendees = accounts[-1]
    with upstream(events // 10, attendees) as server:
        _say("memory for a tenth of it")
        server.ask("reset?latency_ms=0")
        found["tenth"] = {
            "events": events // 10,
            "attendees": attendees,
            **by_syncd(bench, server)[FIRST],
        }
    return found


def _say(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
