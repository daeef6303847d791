"""The `syncd` commands that are no daemon: `check`, `once`, usage."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.faults import hang
from support.processes import (
    FORKED,
    PATIENCE_S,
    SYNCD,
    DaemonProcess,
    Process,
    environment,
    eventually,
    forked_after,
    started,
    stopped_at,
    syncd,
    write_config,
)
from support.real_databases import query, url_at
from support.receiver import SECRET
from support.variants import mostly_slow

from syncd import __version__, typed, usage
from syncd.__main__ import main as whole_program
from syncd.cli.main import main, parser
from syncd.ctl import main as ctl
from syncd.database.engine import Database, masked
from syncd.standin.server import Fault, StandIn, error_object, restricted, truncated, unauthorized

Capsys = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("log_lines", "instant_retries")


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=2)


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the environment what would stand in for a setting."""
    for name in ("BILLETWEB_KEY", "BILLETWEB_USER", "CREDENTIALS_DIRECTORY", "SYNCD_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def check(path: Path, capsys: Capsys, *options: str) -> tuple[int, list[str]]:
    """Return the exit code of `check` and the problems it printed."""
    path.write_text(path.read_text().replace('"DEBUG"', '"ERROR"'))
    code = main(["check", "--config", str(path), *options])
    return code, capsys.readouterr().err.splitlines()


# --- check


@pytest.mark.parametrize(
    ("path", "unit"),
    [("/etc/syncd/config.toml", "syncd"), ("/etc/syncd/a.toml", "syncd@a"), ("/etc/syncd/a.conf", None)],
)
def test_another_account_s_service_is_started(path: str, unit: str | None) -> None:
    """What comes next names the unit that reads this configuration, if any does."""
    assert typed.unit(Path(path)) == unit


def test_advice_is_a_command_not_found(tmp_path: Path) -> None:
    """Where syncd is no command of the shell's, it is typed by its path; usual settings need not be named."""
    program = Path(sys.executable).with_name("syncd")
    done = subprocess.run(
        [program, "check", "--config", "its.toml"],
        env=environment(PATH="/usr/bin"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"`{shlex.quote(f'{program}')} setup --config its.toml` " in done.stderr
    assert typed.syncd("setup", typed.USUAL) == f"{typed.program('syncd')} setup"


def test_advice_leads_to_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who named the usual settings against the shell's variables has them named in what comes next, too."""
    monkeypatch.setenv("SYNCD_CONFIG", "other.toml")
    monkeypatch.setenv("SYNCD_SOCKET", "other.sock")
    asked, status = typed.syncd("check", typed.USUAL), typed.syncctl("status", typed.USUAL_SOCKET)
    assert asked.endswith("syncd check --config /etc/syncd/config.toml")
    assert status.endswith("syncctl --socket /run/syncd/syncd.sock status")


def test_check_of_good_settings_complains(
    home: Path, base_url: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good settings are called good; nothing is created, and Billetweb is asked only by `--online`."""
    monkeypatch.setattr(sys, "argv", ["syncd"])  # it is found by its name
    path = write_config(home, base_url)
    assert main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path} is good",
        f"  account   12345, with the key from {home}/key",
        f"  database  {masked(url_at(home / 'syncd.db'))}: empty yet; the first run fills it",
        f"  socket    {home}/syncd.sock",
        f"  next      `syncd run --config {path}`; then `syncctl --socket {home}/syncd.sock status`",
    ]
    assert sorted(file.name for file in home.iterdir()) == ["config.toml", "key"]
    assert main(["check", "--online", "--config", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path} is good, and Billetweb answers\n")


WITH_PASSWORD = {"database": {"url": "postgresql://a:pass-word@127.0.0.1:9/a"}}
WITHOUT = {"database": {"url": "postgresql://a@127.0.0.1:9/a"}}
WITH_TOKEN = {"heartbeat": {"url": "https://hc.example/token"}}


def open_to_all(path: Path) -> None:
    """Let every user read a file in one of the tests' own folders."""
    path.parent.chmod(0o755)
    path.chmod(0o644)


@pytest.mark.sqlite_only("about URLs of its own")
@pytest.mark.parametrize(
    ("said", "mode", "is_told"),
    [
        (WITH_PASSWORD, 0o644, True),
        (WITH_TOKEN, 0o604, True),
        (WITH_TOKEN, 0o640, False),
        (WITHOUT, 0o644, False),
    ],
)
def test_password_lies_open_to_all(
    home: Path, capsys: Capsys, said: dict[str, dict[str, str]], mode: int, is_told: bool
) -> None:
    """A warning names a configuration with a secret that every user may read, and nothing of the secret."""
    path = write_config(home, "http://127.0.0.1:9", said)
    open_to_all(path)
    path.chmod(mode)
    main(["check", "--config", str(path)])
    told = capsys.readouterr().err
    assert told.count(f"`chmod o= {path}`") == is_told
    assert "pass-word" not in told
    assert "token" not in told
    home.chmod(0o700)
    main(["check", "--config", str(path)])
    assert "chmod" not in capsys.readouterr().err


@pytest.mark.sqlite_only("about URLs of its own")
def test_password_of_a_credential_counts_as_one_in_the_configuration(home: Path, capsys: Capsys) -> None:
    """A URL that a credential replaces says nothing about who may read the configuration."""
    path = write_config(home, "http://127.0.0.1:9", WITHOUT)
    open_to_all(path)
    credential = home / "credentials/database-url"
    credential.parent.mkdir()
    credential.touch(mode=0o600)
    credential.write_text(WITH_PASSWORD["database"]["url"])
    main(["check", "--config", str(path)])
    assert "chmod" not in capsys.readouterr().err


@pytest.mark.sqlite_only("about URLs of its own")
@pytest.mark.parametrize(
    ("address", "is_told"),
    [
        ("https://hooks.example.org/services/T0/B0/canary", True),
        ("https://example.org/?to=canary-0123456789", True),
        ("https://example.org/api/revalidate", False),
    ],
)
def test_token_of_a_webhook_lies_open_to_all(home: Path, capsys: Capsys, address: str, is_told: bool) -> None:
    """So does an address of a webhook that is long enough to hold a token; one's path alone is none."""
    path = write_config(home, "http://127.0.0.1:9", WITHOUT)
    (home / "secret").touch(mode=0o600)
    (home / "secret").write_text(SECRET)
    with path.open("a") as file:
        file.write(f'[[webhooks]]\nname = "a"\nurl = "{address}"\nsecret_file = "secret"\non = ["doubt"]\n')
    open_to_all(path)
    main(["check", "--config", str(path)])
    told = capsys.readouterr().err
    assert told.count(f"`chmod o= {path}`") == is_told
    assert "canary" not in told


@pytest.mark.sqlite_only("about what is said of credentials")
def test_credential_that_the_unit_does_not_load_passes_for_one(
    home: Path, base_url: str, capsys: Capsys
) -> None:
    """What came from a credential, and not from the file, is told with its place."""
    path = write_config(home, base_url)
    with path.open("a") as file:
        file.write('[[webhooks]]\nname = "site"\nurl = "http://127.0.0.1:9/"\non = ["doubt"]\n')
    (home / "credentials").mkdir()
    said = {
        "database-url": f"sqlite:///{home}/a.db",
        "webhook-site": SECRET,
    }
    for name, text in said.items():
        (home / "credentials" / name).touch(mode=0o600)
        (home / "credentials" / name).write_text(text)
    assert main(["check", "--config", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"a.db: empty yet; the first run fills it (credential {home}/credentials/database-url)\n" in told
    assert f"  webhooks  site (credential {home}/credentials/webhook-site)\n" in told


@pytest.mark.sqlite_only("about settings")
def test_problems_come_one_at_a_time(home: Path, base_url: str, capsys: Capsys) -> None:
    """Every mistake in the file is told at once; so is every one outside of it: folders and key together."""
    bad = {"sync": {"interval": "1s", "jitterr": "1s"}, "control": {"mode": "0666"}}
    code, problems = check(write_config(home, base_url, bad), capsys)
    assert (code, len(problems)) == (78, 3)

    elsewhere = {
        "database": {"url": f"sqlite:///{home}/none/syncd.db"},
        "control": {"socket": f"{home}/none/syncd.sock"},
    }
    path = write_config(home, base_url, elsewhere, key="wrong-key")
    code, problems = check(path, capsys, "--online")
    assert code == 78
    assert [problem.partition(":")[0] for problem in problems] == [
        "database.url",
        "control.socket",
        "Billetweb",
    ]
    assert f"{typed.program('syncd')} setup --overwrite --config {path}` asks for another" in problems[-1]


@pytest.mark.sqlite_only("about settings")
def test_a_refused_key_of_the_environment_is_replaced_in_a_file(
    home: Path, base_url: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`setup` writes a file, which the variable would go on winning over: it is named instead."""
    monkeypatch.setenv("BILLETWEB_KEY", "wrong-key")
    code, [problem] = check(write_config(home, base_url), capsys, "--online")
    assert code == 78
    assert problem.endswith("; the key is that in $BILLETWEB_KEY, which wins over any file")


@pytest.mark.sqlite_only("about files; a server that is none is in test_postgresql.py")
def test_unusable_database_passes_check(home: Path, base_url: str, capsys: Capsys) -> None:
    """A database that cannot be opened is exit code 69: a missing folder, and a file that is none."""
    missing = {"database": {"url": f"sqlite:///{home}/none/syncd.db"}}
    code, [problem] = check(write_config(home, base_url, missing), capsys)
    assert code == 69
    assert f"{home}/none does not exist" in problem

    (home / "syncd.db").write_bytes(b"This is a letter to my aunt. " * 100)
    code, [problem] = check(write_config(home, base_url), capsys)
    assert code == 69
    assert "not a database" in problem
    assert (home / "syncd.db").read_bytes().startswith(b"This is a letter")


@pytest.mark.sqlite_only("about files")
def test_socket_that_cannot_be_made_passes_check(home: Path, base_url: str, capsys: Capsys) -> None:
    """What would keep the daemon from making its socket is told by `check` already."""
    (home / "plain").touch()
    for control, said in (
        ({"socket": f"{home}/plain"}, "control.socket: {}/plain is there and no socket"),
        ({"socket": f"{home}/none/s"}, "control.socket: the folder {}/none does not exist"),
        ({"group": "no-such-group"}, "control.group: there is no group no-such-group"),
    ):
        code, problems = check(write_config(home, base_url, {"control": control}), capsys)
        assert (code, len(problems)) == (78, 1)
        assert problems[0].startswith(said.format(home))


@pytest.mark.sqlite_only("about files")
def test_feed_that_cannot_be_written_passes_check(home: Path, base_url: str, capsys: Capsys) -> None:
    """Each file that could not be written is told with its reason, and none is written by asking."""
    path = write_config(home, base_url)
    good, bad = f"{home}/events.json", f"{home}/missing/events.csv"
    with path.open("a") as file:
        file.write(f'[[feeds]]\npath = "{good}"\nformat = "json"\n')
        file.write(f'[[feeds]]\npath = "{bad}"\nformat = "csv"\n')
    assert check(path, capsys) == (78, [f"{bad}: the folder {home}/missing is missing"])
    assert not Path(good).exists()


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (
            "DROP VIEW syncd_orders; DROP TABLE billetweb_attendees",
            "table billetweb_attendees, the view syncd_orders",
        ),
        ("DROP TABLE syncd_cursors", "the table syncd_cursors"),
        ("DROP TABLE syncd_state; CREATE TABLE syncd_state (name TEXT)", "the column syncd_state.value"),
        ("ALTER TABLE syncd_runs DROP COLUMN accepted", "the column syncd_runs.accepted"),
        ("DROP VIEW syncd_availability", "the view syncd_availability"),
    ],
)
def test_dropped_table_passes_check(
    home: Path, base_url: str, capsys: Capsys, statement: str, what: str
) -> None:
    """Each table, column and view that syncd made and that is not there is told."""
    path = write_config(home, base_url)
    database = Database(url_at(home / "syncd.db"))
    database.open()
    database.close()
    assert check(path, capsys) == (0, [])
    for each in statement.split("; "):
        query(url_at(home / "syncd.db"), each)
    code, [problem] = check(path, capsys)
    assert code == 69
    assert problem.startswith("database.url: missing, though syncd made it: the ")
    assert what in problem


@pytest.mark.sqlite_only("about the name of a folder")
def test_secret_in_problem_of_check(home: Path, base_url: str, capsys: Capsys) -> None:
    """No problem is printed with a secret, whichever part of syncd tells it."""
    tables = {
        "database": {"url": f"sqlite:///{home}/canary-key/x.db"},
        "control": {"socket": f"{home}/canary-key/s"},
    }
    code, problems = check(write_config(home, base_url, tables, key="canary-key"), capsys)
    assert (code, len(problems)) == (78, 2)
    for problem in problems:
        assert f"{home}/*** does not exist" in problem


def test_later_version_wrote_the_database(home: Path, base_url: str, capsys: Capsys) -> None:
    """A database of a later syncd is refused with that advice, by `check` and by `once`."""
    path = write_config(home, base_url)
    assert main(["once", "--config", str(path)]) == 0
    query(url_at(home / "syncd.db"), "UPDATE syncd_schema SET version_num = '9999'")
    capsys.readouterr()
    code, [problem] = check(path, capsys)
    assert code == 69
    assert "a later syncd wrote the database" in problem
    assert main(["once", "--config", str(path)]) == 69


@pytest.mark.sqlite_only("about answers")
@pytest.mark.parametrize(("fault", "expected"), [(unauthorized, 78), (restricted, 1)])
def test_refused_key_passes_check(
    home: Path, standin: StandIn, base_url: str, fault: Fault, expected: int
) -> None:
    """A refused key is exit code 78, as a missing one is; one without the rights is 1."""
    standin.fail("/events", fault)
    done = syncd("check", "--online", "--config", write_config(home, base_url))
    assert done.returncode == expected
    assert "\nBilletweb: GET /events: " in f"\n{done.stderr}"


@pytest.mark.sqlite_only("about answers")
def test_dead_billetweb_passes_check(home: Path, capsys: Capsys) -> None:
    """Where nothing listens `--online` says so and exits with 1: the settings may be good."""
    code, [problem] = check(write_config(home, "http://127.0.0.1:1/api"), capsys, "--online")
    assert code == 1
    assert "ConnectError" in problem


# --- once


def test_once_does_not_sync(home: Path, standin: StandIn, base_url: str, capsys: Capsys) -> None:
    """One run, its summary, exit code 0; no socket is made; the key comes from the file."""
    path = write_config(home, base_url)
    assert main(["once", "--config", str(path)]) == 0
    assert "2 events synced, 0 failed" in capsys.readouterr().out
    assert not (home / "syncd.sock").exists()
    assert query(url_at(home / "syncd.db"), "SELECT count(*) FROM billetweb_events") == [(2,)]
    assert query(url_at(home / "syncd.db"), 'SELECT "trigger", "full" FROM syncd_runs') == [("once", 1)]


@pytest.mark.sqlite_only("about pings")
def test_monitor_hears_nothing_of_once(home: Path, standin: StandIn, base_url: str) -> None:
    """A run of cron's is told to the monitor like any other; the stand-in plays the monitor here."""
    path = write_config(home, base_url, {"heartbeat": {"url": f"{base_url}/monitor"}})
    assert main(["once", "--config", str(path)]) == 0
    assert standin.requests[-1].path == "/monitor"
    assert standin.requests[-1].query["rid"].endswith("-000000000001")


def test_full_is_forgotten(home: Path, base_url: str) -> None:
    """`--full` makes a full run of one that would not have been."""
    path = str(write_config(home, base_url))
    for options in ([], [], ["--full"]):
        assert main(["once", "--config", path, *options]) == 0
    assert query(url_at(home / "syncd.db"), 'SELECT "full" FROM syncd_runs ORDER BY id') == [(1,), (0,), (1,)]


def test_cron_mails_each_good_run(home: Path, standin: StandIn, base_url: str) -> None:
    """With --quiet a good run prints nothing anywhere; one that went wrong is summed up with its errors."""
    path = write_config(home, base_url, {"log": {"level": "INFO"}, "heartbeat": {"url": f"{base_url}/ping"}})
    open_to_all(path)
    done = syncd("once", "--quiet", "--config", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    standin.fail("/event/900001/avail", error_object("odd", "is odd"))
    done = syncd("once", "--quiet", "--config", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Run 2 partial: 1 event synced, 1 failed")
    assert "error: event 900001: " in done.stdout
    standin.fail("/events", truncated, times=None)
    done = syncd("once", "--quiet", "--config", path)
    assert done.returncode == 1
    assert "Run 3 failed" in done.stdout
    assert "run 3 failed" in done.stderr


def test_failed_once_looks_like_success(home: Path, standin: StandIn, base_url: str, capsys: Capsys) -> None:
    """A failed run is exit code 1 and prints the error; a partial one is not a failure."""
    path = str(write_config(home, base_url))
    standin.fail("/event/900001/avail", truncated, times=None)
    assert main(["once", "--config", path]) == 0
    assert "partial" in capsys.readouterr().out
    standin.fail("/events", unauthorized)
    assert main(["once", "--config", path]) == 1
    assert "failed" in capsys.readouterr().out


def test_once_without_database_asks_billetweb(home: Path, standin: StandIn, base_url: str) -> None:
    """Where the database cannot be opened `once` exits with 69 and asks for nothing."""
    missing = {"database": {"url": f"sqlite:///{home}/none/syncd.db"}}
    assert main(["once", "--config", str(write_config(home, base_url, missing))]) == 69
    assert standin.requests == []


def test_once_beside_daemon_writes(
    home: Path, standin: StandIn, base_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a daemon holds the database `once` exits with 75, as a second daemon does, with who to ask."""
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran()
        before = len(standin.requests)
        assert main(["once", "--config", str(daemon.config)]) == 75
        assert f"syncctl --socket {daemon.socket} run-now`" in capsys.readouterr().err
        assert len(standin.requests) == before


UNDER_NOHUP = forked_after("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")


@contextmanager
def once(config: Path, program: Sequence[str] = FORKED) -> Iterator[Process]:
    """Give `syncd once` at its work."""
    with Path(os.devnull).open("r+") as nothing:
        process = started([*program, "once", "--config", str(config)], {}, [nothing.fileno()] * 3)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


_HANGING = """
import pathlib, sys, time, syncd.cli.main as program
from syncd.database import attendees
def hang(*_):
    pathlib.Path({place!r}).touch()
    time.sleep(60)
attendees.is_other = hang
sys.exit(program.main())
"""


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow("a stop's whole time"))])
@pytest.mark.sqlite_only("about signals")
def test_nobody_can_end_a_once_that_hangs(home: Path, base_url: str, *, again: bool) -> None:
    """The first signal waits for a transaction, but not for ever; the second ends it now."""
    hangs = home / "hangs"
    program = [sys.executable, "-c", _HANGING.format(place=f"{hangs}")]
    with once(write_config(home, base_url), program) as process:
        eventually(hangs.exists)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        if again:
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 1


@pytest.mark.slow("starts several processes")
@pytest.mark.sqlite_only("about streams")
def test_a_closed_stderr_keeps_syncd_from_its_work(home: Path, base_url: str) -> None:
    """Without it there is nobody to tell, and the exit code says the same."""
    config = write_config(home, base_url)
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", *SYNCD]
    assert syncd("once", "--config", config, program=closed).returncode == 0
    assert query(f"sqlite:///{home}/syncd.db", "SELECT outcome FROM syncd_runs") == [("ok",)]
    assert syncd("check", "--config", config, program=closed).returncode == 0
    config.write_text("[billetweb]")
    assert syncd("check", "--config", config, program=closed).returncode == 78


@pytest.mark.sqlite_only("about signals")
def test_nohup_ends_with_its_terminal(home: Path, standin: StandIn, base_url: str) -> None:
    """Where SIGHUP is ignored from outside, a run goes on over one, and ends by itself."""
    standin.fail("/event/900001/avail", hang)
    with once(write_config(home, base_url), UNDER_NOHUP) as process:
        eventually(lambda: any(each.path == "/event/900001/avail" for each in standin.requests))
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        standin.heal()
        assert process.wait(PATIENCE_S) == 0
    assert query(url_at(home / "syncd.db"), "SELECT outcome FROM syncd_runs") == [("ok",)]


@pytest.mark.sqlite_only("about signals")
@pytest.mark.parametrize(("command", "code"), [("once", 130), ("check", 130), ("run", 0)])
def test_run_that_never_began_looks_like_success(
    home: Path, base_url: str, monkeypatch: pytest.MonkeyPatch, command: str, code: int
) -> None:
    """Ctrl-C before anything is done is no success, but for the daemon, which was only to be stopped."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("syncd.cli.main.load", interrupted)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["syncd", command, "--config", str(write_config(home, base_url))])
    assert whole_program() == code


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("once", "SIGINT", 130), ("run", "SIGINT", 0), ("run", "SIGTERM", 0), ("demo", "SIGTERM", 0)],
)
def test_a_stop_at_loading_is_a_traceback(command: str, number: str, code: int) -> None:
    """While libraries are loaded there is nothing to stop, and nothing to report."""
    # A variable that Python reads while it loads: it is not forked, where all is loaded.
    done = syncd(command, program=stopped_at("sqlalchemy", number, "syncd"), PYTHONUTF8="1")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_help_that_nobody_reads_is_an_error() -> None:
    """A closed pipe is no fault; a full disk is one, told in a line."""
    for argv, target, code in (
        ("--help", "| true", 0),
        ("--version", "| true", 0),
        ("--help", "> /dev/full", 1),
    ):
        line = f"{shlex.join([*SYNCD, argv])} {target}"
        piped = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(piped, capture_output=True, text=True, check=False, env=environment())
        assert (done.returncode, "Exception ignored" in done.stderr) == (code, False), done.stderr


@pytest.mark.sqlite_only("about pings")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_silent_monitor_outlasts_a_signal(
    home: Path, standin: StandIn, base_url: str, number: signal.Signals
) -> None:
    """A heartbeat that hangs ends with the first signal; the run before it was a good one."""
    standin.fail("/monitor", hang)
    with once(write_config(home, base_url, {"heartbeat": {"url": f"{base_url}/monitor"}})) as process:
        eventually(lambda: standin.requests and standin.requests[-1].path == "/monitor")
        process.send_signal(number)
        assert process.wait(3) == 0
    standin.heal()


# All capabilities are given up by this process itself: version 3 of their form, none in any of the sets.
WITHOUT_RIGHTS = forked_after(
    "import ctypes; none = (ctypes.c_uint32 * 6)(); "
    "assert not ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none)"
)
ODD_PATHS = ("", "/fifo", "/loop", "/loop/x", "/plain/x", "/closed/x", "/" + "x" * 300)


@pytest.fixture
def odd(home: Path) -> Path:
    """Give a folder that holds what is no file to read or write, and a file that is no folder."""
    folder = home / "odd"
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o600)
    (folder / "loop").symlink_to("loop")
    (folder / "plain").touch(mode=0o600)
    (folder / "closed").mkdir(mode=0)
    return folder


def unprivileged(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Return a finished `syncd` for which closed folders are closed, though the tests' user be root."""
    return syncd(*arguments, program=WITHOUT_RIGHTS)


@pytest.mark.sqlite_only("about files")
@pytest.mark.parametrize(
    "tail",
    mostly_slow([*ODD_PATHS, "/dev/null", "/dev/zero", "/proc/x"], "each starts two processes"),
)
@pytest.mark.parametrize("key", mostly_slow(["key_file", "url", "socket"], "each starts two processes"))
def test_path_of_a_setting_is_a_traceback(home: Path, base_url: str, odd: Path, tail: str, key: str) -> None:
    """Whatever stands at a path of the settings, `check` and `once` say in one line that it is no good."""
    path = tail if tail.startswith(("/dev/", "/proc/")) else f"{odd}{tail}"
    table, value = {
        "key_file": ("billetweb", path),
        "url": ("database", f"sqlite:///{path}"),
        "socket": ("control", path),
    }[key]
    config = write_config(home, base_url, {table: {key: value}})
    done = unprivileged("check", "--config", config)
    (line,) = done.stderr.splitlines()
    assert done.returncode == (69 if key == "url" else 78)
    assert f"{table}.{key}" in line
    if key != "socket":  # `once` makes none
        done = unprivileged("once", "--config", config)
        (line,) = done.stderr.splitlines()
        assert done.returncode == (69 if key == "url" else 78)
        assert "Traceback" not in line


@pytest.mark.sqlite_only("about files")
@pytest.mark.parametrize("tail", mostly_slow(ODD_PATHS, "each starts a process"))
@pytest.mark.parametrize("command", mostly_slow(["run", "check", "once"], "they read it alike"))
def test_configuration_that_is_no_file_is_a_traceback(home: Path, odd: Path, tail: str, command: str) -> None:
    """Whatever stands at `--config`, and is no file that can be read, is one line and exit code 78."""
    done = unprivileged(command, "--config", f"{odd}{tail}")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (78, "")
    assert "cannot be read: " in line


@pytest.mark.sqlite_only("about files")
def test_missing_configuration_is_a_traceback(home: Path) -> None:
    """No file: 78 and a line with its name, for each command that reads one."""
    for command in ("run", "check"):
        done = syncd(command, "--config", home / "none.toml")
        assert done.returncode == 78
        assert f"{home}/none.toml: cannot be read" in done.stderr
        assert "Traceback" not in done.stderr


# --- output

OTHER_ALPHABETS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"},
]


@pytest.mark.slow("each starts two processes")
@pytest.mark.sqlite_only("about what is printed")
@pytest.mark.parametrize("environ", OTHER_ALPHABETS)
def test_alphabet_of_the_terminal_ends_a_program(
    home: Path, standin: StandIn, base_url: str, environ: dict[str, str]
) -> None:
    """What stdout's encoding lacks is escaped, in a run's summary and in the path of the settings."""
    config = write_config(home, base_url)
    odd = config.with_name("odd ☂ \x9b.toml")
    config.rename(odd)
    done = syncd("check", "--config", odd, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2602" in done.stdout or "\\udce2" in done.stdout  # by the encoding of the argument
    standin.fail("/event/900001/avail", error_object("no", "der Schirm ☂ fehlt"), times=None)
    done = syncd("once", "--config", odd, **environ)
    assert done.returncode == 0
    assert "der Schirm \\u2602 fehlt" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow("starts six processes")
def test_reader_that_left_ends_a_program(home: Path, base_url: str) -> None:
    """That nobody reads the summary, or that there is no room for it, is no failure of the run."""
    config = str(write_config(home, base_url))
    for redirection in ("| true", ">/dev/full", ">&-"):
        script = f'{{ "$@"; echo $? >{home}/code; }} {redirection}'
        for command in (["once"], ["check"]):
            done = subprocess.run(
                ["sh", "-c", script, "sh", *SYNCD, *command, "--config", config],
                env=environment(PYTHONUNBUFFERED="1"),  # or an empty write would not be tried
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (home / "code").read_text() == "0\n"
            assert "Traceback" not in done.stderr
            assert "report this" not in done.stderr


# --- usage


def test_usage_is_not_told(capsys: Capsys) -> None:
    """`--help` names every command and exit code; `--version` is one line; wrong usage is 2."""
    helped = syncd("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    for word in ("run", "once", "check", "demo", "69", "75", "78"):
        assert word in helped.stdout
    for wrong in (
        [],
        ["frobnicate"],
        ["once", "--fulll"],
        ["demo", "--interval", "0s"],
        ["demo", "--interval", "8d"],
        ["demo", "--events", "0"],
    ):
        with pytest.raises(SystemExit) as left:
            main(wrong)
        assert left.value.code == 2
        assert "usage: syncd" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"syncd {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "no command given; `syncd demo` shows what it does"),
        ("chekc", "there is no command 'chekc'; did you mean `check`?"),
        ("CHECK", "there is no command 'CHECK'; did you mean `check`?"),
        ("frobnicate", "there is no command 'frobnicate'; `syncd --help` lists them"),
        ("status", "there is no command 'status'; did you mean `syncctl status`?"),
        ("once --fulll", "once has no --fulll; did you mean `--full`?"),
        ("--fulll once", "once has no --fulll; did you mean `--full`?"),
        ("once -- x", "once takes no 'x'"),
        ("once a=b", "once takes no 'a=b'"),
        ("demo --config x", "demo has no --config; run and once and check and others have"),
        ("--verison", "there is no option --verison; did you mean `--version`?"),
        ("--config=my.toml once", "--config belongs after the command: `syncd once --config`"),
        ("--config my.toml run", "--config belongs after the command: `syncd run --config`"),
        ("--full", "--full belongs after the command: `syncd once --full`"),
        ("check --full", "check has no --full; once has"),
        ("check --x", "check has no --x; `syncd check --help` lists what it has"),
    ],
)
def test_a_slip_is_told_without_what_was_meant(argv: str, said: str, capsys: Capsys) -> None:
    """A wrong word is named, with the one that was meant where one is alike."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(argv.split())
    assert said in capsys.readouterr().err


def test_a_command_moves_and_the_other_program_points_at_its_old_place() -> None:
    """What each program knows of the other's commands is what that has."""
    assert {name: known.split() for name, known in usage.COMMANDS.items()} == {
        made.prog: list(made.commands) for made in (parser(), ctl.build_parser())
    }


@pytest.mark.parametrize("command", [*parser().commands, None])
def test_a_help_leaves_its_reader_without_an_example(command: str | None, capsys: Capsys) -> None:
    """Every help opens with a sentence and ends with a line to copy, which is a command line that parses."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"] if command else ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"[A-Z][a-z]+ .*", lines[0])
    assert lines[-2] == "example:"
    program, word, *options = shlex.split(lines[-1].partition("<")[0])
    assert program == "syncd"
    assert word == (command or "check")
    parser().parse([word, *options])


@pytest.mark.sqlite_only("about files")
def test_configuration_of_the_environment_is_ignored(
    home: Path, base_url: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$SYNCD_CONFIG names the file where `--config` does not."""
    path = write_config(home, base_url)
    monkeypatch.setenv("SYNCD_CONFIG", str(path))
    assert main(["check"]) == 0
    assert str(path) in capsys.readouterr().out
