"""`syncctl` as a process of its own: terminals, pipes, Ctrl-C, and what starting it costs."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.canned_daemon import ENDED, EVENT, RUNNING, STATUS, Daemon, serving, stream
from support.processes import stopped_at

import syncd

SOURCES = str(Path(syncd.__file__).parent.parent)
SYNCCTL = [sys.executable, "-m", "syncd.ctl"]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """Give a control server that answers every command; $SYNCD_SOCKET names its socket."""
    with serving() as daemon:
        monkeypatch.setenv("SYNCD_SOCKET", daemon.path)
        yield daemon


def start(*argv: str, shell: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
    """Start `syncctl` as a process of its own, through `shell` if given."""
    settings = {"PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "", "TERM": "xterm"}  # buffered, as for users
    environment = os.environ | settings | options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*shell, *SYNCCTL, *argv], env=environment, **pipes)


def on_a_terminal(name: str, *argv: str, env: dict[str, str]) -> str:
    """Return what `syncctl` writes to the stream `name` where that is a terminal."""
    ours, theirs = pty.openpty()
    written = b""
    streams: Any = {name: theirs}
    with start(*argv, env=env, **streams) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how Linux tells the end of a terminal
            while chunk := os.read(ours, 65_536):
                written += chunk
        process.communicate(timeout=10)
    os.close(ours)
    return written.decode()


@pytest.mark.parametrize(("command", "route"), [("run-now", "/v1/runs"), ("accept", "/v1/accept")])
def test_ctrl_c_leaves_the_run_alone(daemon: Daemon, command: str, route: str) -> None:
    """Ctrl-C while waiting says that the run goes on and dies of the signal; the daemon is asked nothing."""
    waiting = threading.Event()

    def answer(handler: Any) -> None:
        waiting.set()
        stream(until=daemon.closing)(handler)

    daemon.answers["GET /v1/runs/43?wait=1"] = answer
    with start(command, "--json") as process:
        assert waiting.wait(10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "Run 43 goes on" in out
    assert err == ""
    assert [request for request, _ in daemon.asked] == [f"POST {route}", "GET /v1/runs/43?wait=1"]


def test_ctrl_c_at_loading_is_a_traceback() -> None:
    """It ends by the signal, as later on, and without a word."""
    program = stopped_at("argparse", "SIGINT", "syncd.ctl")
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=SOURCES)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_loop_of_the_shell_goes_on_after_ctrl_c(daemon: Daemon) -> None:
    """A shell whose loop runs the command ends with it on Ctrl-C, which both get."""
    waiting = threading.Event()

    def answer(handler: Any) -> None:
        waiting.set()
        stream(until=daemon.closing)(handler)

    daemon.answers["GET /v1/runs/43?wait=1"] = answer
    loop = ("bash", "-c", 'while true; do "$@"; done; echo "went on"', "bash")
    with start("run-now", shell=loop, start_new_session=True) as shell:
        assert waiting.wait(10)
        os.killpg(shell.pid, signal.SIGINT)
        out, err = shell.communicate(timeout=10)
    assert shell.returncode == -signal.SIGINT
    told = "Stopped waiting. Run 43 goes on: `syncctl status` shows it, `syncctl history` how it ended."
    assert (out, err) == ("", f"syncctl: {told}\n")


@pytest.mark.parametrize("argv", [["history"], ["--help"]])
def test_a_reader_that_leaves_early_is_no_error(daemon: Daemon, argv: list[str]) -> None:
    """`syncctl … | head` ends quietly."""
    daemon.answers["GET /v1/runs?limit=20"] = {"runs": [ENDED] * 2000}
    reader, writer = os.pipe()
    os.close(reader)
    with start(*argv, stdout=writer) as process:
        os.close(writer)
        assert process.communicate(timeout=10)[1] == ""
    assert process.returncode == 0


def test_a_closed_stdout_is_no_error(daemon: Daemon) -> None:
    """With stdout closed the exit code still tells, and nothing is complained of."""
    daemon.answers["GET /v1/status"] = STATUS | {"health": "failing"}
    with start("status", "--check", shell=("sh", "-c", 'exec "$@" >&-', "sh")) as process:
        assert process.communicate(timeout=10)[1] == ""
    assert process.returncode == 1


def test_a_full_disk_is_not_success(daemon: Daemon) -> None:
    """An answer that could not be written is not exit code 0."""
    with Path("/dev/full").open("w") as full, start("metrics", stdout=full) as process:
        assert (
            process.communicate(timeout=10)[1]
            == "syncctl: cannot write the answer: No space left on device\n"
        )
    assert process.returncode == 1


def test_a_name_outside_the_terminals_alphabet_is_no_traceback(daemon: Daemon) -> None:
    """Where stdout is Latin-1 what it lacks is escaped, and JSON stays JSON."""
    env = {"PYTHONIOENCODING": "latin-1"}
    with (
        start("events", env=env, encoding="latin-1") as words,
        start("events", "--json", env=env, encoding="latin-1") as script,
    ):
        assert "Fête du pain \\u2602" in words.communicate(timeout=10)[0]
        assert json.loads(script.communicate(timeout=10)[0]) == {"events": [EVENT]}


@pytest.mark.parametrize("command", ["run-now", "accept"])
def test_somebody_who_watches_sees_the_run_advance(daemon: Daemon, command: str) -> None:
    """On a terminal the progress is drawn on stderr, with --json too."""
    rounds = iter([RUNNING, ENDED])

    def answer(handler: Any) -> None:
        document = next(rounds)
        if document is ENDED:
            time.sleep(0.5)  # the bar is drawn four times a second
        handler.head()
        handler.wfile.write(json.dumps(document).encode())

    daemon.answers["GET /v1/runs/43?wait=1"] = answer
    drawn = on_a_terminal("stderr", command, "--json", env={})
    assert "events" in drawn
    assert "3/12" in drawn


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_can_be_refused(daemon: Daemon, env: dict[str, str], *, coloured: bool) -> None:
    """Health is coloured on a terminal, but not with NO_COLOR or on a dumb one."""
    assert ("\x1b[32m✓ ok\x1b[0m" in on_a_terminal("stdout", "status", env=env)) is coloured


def test_starting_stays_cheap(daemon: Daemon) -> None:
    """No command but one that watches a run loads anything heavy."""
    heavy = "{'asyncio', 'dataclasses', 'http', 'logging', 'msgspec', 'rich', 'shutil', 'typing', 'urllib'}"
    code = (
        f"import sys; from syncd.ctl.main import main; main(); sys.exit(sorted({heavy} & set(sys.modules)))"
    )
    for command in ("status", "run-now", "events", "doubts", "accept"):
        done = subprocess.run(
            [sys.executable, "-c", code, command],
            env=os.environ | {"PYTHONPATH": SOURCES},
            capture_output=True,
            check=False,
        )
        assert (done.stderr, done.returncode) == (b"[]\n", 1)
