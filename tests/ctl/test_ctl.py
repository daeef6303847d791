"""`syncctl` against a real HTTP server on a real Unix socket: every command, every exit code."""

import grp
import json
import os
import re
import shlex
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.canned_daemon import (
    DOUBT,
    ENDED,
    ERROR,
    EVENT,
    QUEUED,
    RUNNING,
    STATUS,
    TARGET,
    WEBHOOKS,
    Daemon,
    Json,
    serving,
    stream,
)

import syncd
from syncd import text
from syncd.ctl import http
from syncd.ctl import main as ctl

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a directory with a path short enough for sockets; no socket is named by the environment."""
    monkeypatch.delenv("SYNCD_SOCKET", raising=False)
    path = Path(tempfile.mkdtemp(prefix="ctl"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """Give a control server that answers every command; $SYNCD_SOCKET names its socket."""
    with serving() as daemon:
        monkeypatch.setenv("SYNCD_SOCKET", daemon.path)
        yield daemon


@pytest.mark.parametrize(
    ("argv", "request_", "body"),
    [
        ("status", "GET /v1/status", None),
        ("run-now --no-wait", "POST /v1/runs", {"full": False, "events": [], "join": False}),
        (
            "run-now --no-wait --full --event 7 --event 8 --join",
            "POST /v1/runs",
            {"full": True, "events": ["7", "8"], "join": True},
        ),
        ("history", "GET /v1/runs?limit=20", None),
        ("history -n 3", "GET /v1/runs?limit=3", None),
        ("events", "GET /v1/events?all=0", None),
        ("events --all", "GET /v1/events?all=1", None),
        ("doubts", "GET /v1/doubts", None),
        ("publish", "GET /v1/publish", None),
        ("webhooks", "GET /v1/webhooks", None),
        (
            "webhooks retry msg_7f msg_80",
            "POST /v1/webhooks/retry",
            {"ids": ["msg_7f", "msg_80"], "endpoint": None},
        ),
        ("webhooks retry --json 123", "POST /v1/webhooks/retry", {"ids": ["123"], "endpoint": None}),
        (
            "webhooks --json retry 1 --no-trunc 2",
            "POST /v1/webhooks/retry",
            {"ids": ["1", "2"], "endpoint": None},
        ),
        ("webhooks retry --endpoint site", "POST /v1/webhooks/retry", {"ids": [], "endpoint": "site"}),
        ("accept --no-wait", "POST /v1/accept", {"events": []}),
        ("accept --no-wait --event 7 --event 8", "POST /v1/accept", {"events": ["7", "8"]}),
        ("pause", "POST /v1/pause", None),
        ("resume", "POST /v1/resume", None),
        ("reload", "POST /v1/reload", None),
        ("metrics", "GET /metrics", None),
    ],
)
def test_a_command_asks_for_nothing_else(daemon: Daemon, argv: str, request_: str, body: object) -> None:
    """Each command is one request to its own route, and done is exit code 0."""
    daemon.answers |= {"GET /v1/runs?limit=3": {"runs": []}, "GET /v1/events?all=1": {"events": []}}
    assert ctl.main(argv.split()) == 0
    assert daemon.asked == [(request_, body)]


@pytest.mark.parametrize(
    ("argv", "printed"),
    [
        ("status", "✓ ok  syncd "),
        (
            "run-now",
            "Run 43 ok: 12 events synced, 0 failed, in 3.2 s\n  manual by alice; 1 change (1 inserted); ",
        ),
        ("run-now --no-wait", "Run 43 is queued"),
        ("history", "43  May "),
        ("events", "Fête du pain ☂    12  50  1 min"),
        ("doubts", "event 900003, tickets  3 of 4  "),
        ("publish", "formation     3         12        2  "),
        (
            "publish",
            '\nformation: no event has the key "old-1", "old-2" and 10 more\nformation: 1 row of vanished',
        ),
        ("webhooks", "site      example.org        1       0  "),
        ("webhooks", "\n    2 attempts since May 08 10:00: HTTP 503; again in "),
        ("webhooks retry msg_7f", "Being sent again: 2; `syncctl webhooks` shows how that goes.\n"),
        ("accept", "Run 43 ok: 12 events synced, 0 failed, in 3.2 s\n"),
        ("accept --no-wait", "Run 43 is queued"),
        ("pause", "Scheduled runs are paused, "),
        ("resume", "Scheduled runs are on again; the next one "),
        (
            "reload",
            "read again; sync.interval changed.\nA restart is needed for database.url.",
        ),
        ("metrics", "# TYPE syncd_paused gauge\nsyncd_paused 0.0\n"),
    ],
)
def test_people_get_words_on_stdout(daemon: Daemon, argv: str, printed: str, capsys: Capsys) -> None:
    """Without --json every command prints something readable, without colour where there is no terminal."""
    assert ctl.main(argv.split()) == 0
    out, err = capsys.readouterr()
    assert printed in out
    assert "\x1b" not in out
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "document"),
    [
        ("status", STATUS),
        ("run-now", ENDED),
        ("run-now --no-wait", QUEUED),
        ("history", {"runs": [ENDED]}),
        ("events", {"events": [EVENT]}),
        ("doubts", {"doubts": [DOUBT]}),
        ("publish", {"publish": [TARGET]}),
        ("webhooks", WEBHOOKS),
        ("webhooks retry msg_7f", {"retried": 2}),
        ("accept", ENDED),
        ("accept --no-wait", QUEUED | {"accept": True}),
        ("resume", STATUS | {"changed": ["paused"]}),
    ],
)
def test_scripts_get_the_answer_untouched(daemon: Daemon, argv: str, document: Json, capsys: Capsys) -> None:
    """--json prints the daemon's answer as one JSON document and nothing else."""
    assert ctl.main([*argv.split(), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == document
    assert err == ""


@pytest.mark.parametrize(
    ("options", "ids"),
    [("", "1234"), ("--full", "2"), ("--free", "13"), ("--full --all", "2"), ("--free --json", "13")],
)
def test_a_full_event_hides_among_hundreds(daemon: Daemon, options: str, ids: str, capsys: Capsys) -> None:
    """--full shows the full ones alone, --free those with places left for somebody; with --json too."""
    coming = EVENT | {"starts_at": "2999-05-08T08:00:00Z", "ends_at": None}
    kinds: list[Json] = [{}, {"places_left": 0, "is_full": True}, {"unlimited": True}, {"places_left": None}]
    told = {"events": [coming | {"id": str(number)} | kind for number, kind in enumerate(kinds, 1)]}
    daemon.answers |= {"GET /v1/events?all=0": told, "GET /v1/events?all=1": told}
    assert ctl.main(["events", *options.split()]) == 0
    shown = capsys.readouterr().out
    if "--json" in options:
        assert [event["id"] for event in json.loads(shown)["events"]] == [*ids]
    else:
        assert [line[0] for line in shown.split("\n\n")[0].splitlines()[1:]] == [*ids]


@pytest.mark.parametrize(
    ("command", "cut"),
    [("status", "sqlite"), ("history", "no answer"), ("events", "Fête"), ("doubts", "900")],
)
def test_what_is_shortened_cannot_be_seen(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, command: str, cut: str, capsys: Capsys
) -> None:
    """What a narrow output shortens is whole with --no-trunc."""
    monkeypatch.setenv("COLUMNS", "60")
    long = f"{cut} {'and so on ' * 20}end"
    daemon.answers |= {
        "GET /v1/status": STATUS | {"database": long},
        "GET /v1/runs?limit=20": {"runs": [ENDED | {"errors": [ERROR | {"message": long}]}]},
        "GET /v1/events?all=0": {"events": [EVENT | {"name": long}]},
        "GET /v1/doubts": {"doubts": [DOUBT | {"examples": [long]}]},
    }
    assert ctl.main([command]) == 0
    shown = capsys.readouterr().out
    assert "…" in shown
    assert max(map(text.cell_width, shown.splitlines())) <= 60
    assert ctl.main([command, "--no-trunc"]) == 0
    assert long in capsys.readouterr().out


@pytest.mark.parametrize(("health", "exit_code"), [("ok", 0), ("degraded", 1), ("failing", 1)])
def test_a_monitor_learns_of_bad_health(daemon: Daemon, health: str, exit_code: int) -> None:
    """--check turns bad health into exit code 1; without it status is always done."""
    daemon.answers["GET /v1/status"] = STATUS | {"health": health}
    assert ctl.main(["status"]) == 0
    assert ctl.main(["status", "--check"]) == exit_code
    assert ctl.main(["status", "--check", "--json"]) == exit_code


@pytest.mark.parametrize("command", ["run-now", "accept"])
@pytest.mark.parametrize("outcome", ["partial", "failed", "cancelled"])
def test_a_run_that_went_wrong_is_not_success(
    daemon: Daemon, outcome: str, command: str, capsys: Capsys
) -> None:
    """A run that ends partial, failed or cancelled is exit code 1, and its errors are printed."""
    ended = ENDED | {"outcome": outcome, "errors": [ERROR], "errors_total": 1}
    daemon.answers["GET /v1/runs/43?wait=1"] = ended
    assert ctl.main([command]) == 1
    assert "error: event 9: no answer (transport)" in capsys.readouterr().out


def test_a_run_is_printed_before_its_end(daemon: Daemon, capsys: Capsys) -> None:
    """A run is asked for until it has ended."""
    rounds = iter([QUEUED, RUNNING, ENDED | {"outcome": "cancelled"}])

    def answer(handler: Any) -> None:
        handler.head()
        handler.wfile.write(json.dumps(next(rounds)).encode())

    daemon.answers["GET /v1/runs/43?wait=1"] = answer
    assert ctl.main(["run-now"]) == 1
    assert "Run 43 cancelled" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run-now", "accept"])
def test_a_daemon_killed_in_mid_run_is_reported(daemon: Daemon, command: str, capsys: Capsys) -> None:
    """A daemon that goes away while a run is waited for is exit code 3, and where to look is said."""
    daemon.answers["GET /v1/runs/43?wait=1"] = lambda _: daemon.vanish()
    assert ctl.main([command]) == 3
    assert "went away during run 43. Once it is back `syncctl history`" in capsys.readouterr().err


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every --timeout be over in a moment."""
    monkeypatch.setattr(text, "parse_duration", lambda _: timedelta(milliseconds=150))


@pytest.mark.parametrize("hangs", [True, False])
def test_waiting_ends_when_its_time_is_up(
    daemon: Daemon, brief: None, capsys: Capsys, *, hangs: bool
) -> None:
    """--timeout bounds the wait, on an answer too, and says that the run goes on."""
    hanging = stream(until=daemon.closing)
    daemon.answers["GET /v1/runs/43?wait=1"] = hanging if hangs else QUEUED
    begin = time.monotonic()
    assert ctl.main(["run-now", "--timeout", "1s"]) == 5
    assert 0.14 < time.monotonic() - begin < 10
    assert "Gave up waiting. Run 43 goes on: `syncctl status`" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "request_"), [("run-now", "/v1/runs"), ("accept", "/v1/accept")])
def test_an_unanswered_request_is_not_a_missing_daemon(
    daemon: Daemon, brief: None, command: str, request_: str, capsys: Capsys
) -> None:
    """--timeout bounds the request for a run too, and nobody claims to know whether it was queued."""
    daemon.answers[f"POST {request_}"] = stream(until=daemon.closing)
    assert ctl.main([command, "--timeout", "1s"]) == 5
    assert "may have queued the run" in capsys.readouterr().err


def no_socket(path: Path) -> None:
    """Leave `path` empty."""


def dead_socket(path: Path) -> None:
    """Leave a socket at `path` that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as forgotten:
        forgotten.bind(str(path))


def test_a_collector_reads_half_the_metrics(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """--textfile puts the text beside and renames it over, for every user to read, whatever the umask."""
    path = tmp_path / "syncd.prom"
    path.write_text("old")
    renamed = []
    replace = Path.replace

    def watched(source: Path, target: Path) -> Path:
        renamed.append((source.name.endswith(".prom"), source.read_bytes() == daemon.answers["GET /metrics"]))
        assert target.read_text() == "old"
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", watched)
    before = os.umask(0o177)
    try:
        assert ctl.main(["metrics", "--textfile", str(path)]) == 0
    finally:
        os.umask(before)
    assert renamed == [(False, True)]
    assert path.read_bytes() == daemon.answers["GET /metrics"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [*tmp_path.iterdir()] == [path]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stands", ["a link", "a pipe", "a folder", "no folder"])
def test_a_slip_costs_root_a_device(daemon: Daemon, tmp_path: Path, stands: str, capsys: Capsys) -> None:
    """What is no regular file stays, as does the old file where the new one cannot be renamed over it."""
    path = tmp_path / "syncd.prom"
    match stands:
        case "a link":
            path.symlink_to(tmp_path / "elsewhere")
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case _:
            path = tmp_path / "missing/syncd.prom"
    before = [each.lstat() for each in tmp_path.iterdir()]
    assert ctl.main(["metrics", "--textfile", str(path)]) == 1
    assert f"Cannot write {path}: " in capsys.readouterr().err
    assert [each.lstat() for each in tmp_path.iterdir()] == before


def test_a_stopped_daemon_empties_the_textfile(directory: Path) -> None:
    """Without an answer the old file stays, so that its age tells."""
    path = directory / "syncd.prom"
    path.write_text("old")
    assert ctl.main(["metrics", "--textfile", str(path), "--socket", str(directory / "s")]) == 3
    assert path.read_text() == "old"


@pytest.mark.parametrize("left", [no_socket, dead_socket, Path.touch])
@pytest.mark.parametrize(
    "command", ["status", "run-now", "history", "events", "doubts", "accept", "pause", "metrics"]
)
def test_a_stopped_daemon_is_told_from_a_bad_answer(
    directory: Path, left: Callable[[Path], None], command: str, capsys: Capsys
) -> None:
    """Where nothing listens every command is exit code 3 and says how to start the daemon."""
    left(directory / "s")
    assert ctl.main([command, "--socket", str(directory / "s")]) == 3
    out, err = capsys.readouterr()
    assert "Start it with `syncd run`, or name its socket: --socket or $SYNCD_SOCKET." in err
    assert out == ""


def test_a_path_too_long_for_a_socket_is_no_traceback(capsys: Capsys) -> None:
    """A path that no socket can have is exit code 3."""
    assert ctl.main(["status", "--socket", "/" + "x" * 200]) == 3
    assert "path too long" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: None, "closed the connection"),
        (lambda handler: handler.head(length=10), "closed the connection"),
        (lambda handler: handler.server.stop.wait(10), "does not answer in time"),
    ],
)
def test_a_daemon_that_hangs_or_dies_does_not_hang_the_command(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str, capsys: Capsys
) -> None:
    """No answer, half an answer and an endless wait are exit code 3; what changes something may come late."""
    monkeypatch.setattr(http, "ANSWER_TIMEOUT_S", 0.1 if "in time" in said else 10.0)
    monkeypatch.setattr(daemon.server, "stop", daemon.closing, raising=False)
    for command, route, may_come in (("metrics", "GET /metrics", False), ("pause", "POST /v1/pause", True)):
        daemon.answers[route] = answer
        assert ctl.main([command]) == 3
        told = capsys.readouterr().err
        assert (said in told, "It may still do what it was asked." in told) == (True, may_come)


@pytest.mark.parametrize("served", [True, False])
def test_a_full_queue_is_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, served: bool
) -> None:
    """With many commands at once a connection waits for its turn, but not for ever."""
    monkeypatch.setattr(http, "ANSWER_TIMEOUT_S", 2.0 if served else 0.1)
    path = str(directory / "s")
    answer = f"HTTP/1.1 200 OK\r\nSyncd-Version: {syncd.__version__}\r\n\r\nsyncd_paused 0.0\n".encode()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)

        def serve() -> None:
            listener.accept()[0].close()
            with listener.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(answer)

        later = threading.Timer(0.05, serve if served else lambda: None)
        later.start()
        assert ctl.main(["metrics", "--socket", path]) == (0 if served else 3)
        later.join()


@pytest.mark.parametrize("visible", [True, False])
def test_an_outsider_learns_which_group_to_join(daemon: Daemon, capsys: Capsys, *, visible: bool) -> None:
    """No permission is exit code 4 with the socket's group, where that can be seen."""
    path = Path(daemon.path)
    group = f"the group {grp.getgrgid(path.stat().st_gid).gr_name}" if visible else "the daemon's group"
    path.chmod(0)
    path.parent.chmod(0o755 if visible else 0)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(65_534)
        exit_code = ctl.main(["status"])
    finally:
        os.seteuid(me)
        path.parent.chmod(0o700)
    assert exit_code == 4
    assert f"join {group} and log in again" in capsys.readouterr().err


def refusal(code: str, message: str) -> Json:
    """Return the control API's error document."""
    return {"error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((409, refusal("stopping", "syncd is stopping")), "syncd is stopping"),
        ((404, refusal("not_found", "no such route")), "no such route"),
        ((422, refusal("configuration", "sync.interval: no")), "sync.interval: no"),
        ((500, b"Internal Server Error"), "HTTP status 500"),
        (b"<html>", "is not JSON"),
    ],
)
def test_a_refusal_says_what_the_daemon_said(daemon: Daemon, answer: Any, said: str, capsys: Capsys) -> None:
    """What the daemon refuses is exit code 6 with its own message."""
    daemon.answers["POST /v1/reload"] = answer
    assert ctl.main(["reload"]) == 6
    assert said in capsys.readouterr().err


def test_a_refusal_commands_the_terminal(daemon: Daemon, capsys: Capsys) -> None:
    """What a daemon answers, or a path holds, is shown without what commands a terminal."""
    daemon.answers["POST /v1/reload"] = (422, refusal("x", "no\x1b[2J \x9b2J \u202eevent\nnext"))
    assert ctl.main(["reload"]) == 6
    assert capsys.readouterr().err == "syncctl: no\\x1b[2J \\x9b2J \\u202eevent\nnext\n"
    assert ctl.main(["--socket", "/none/\x1b[2J", "status"]) == 3
    assert "/none/\\x1b[2J" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "ours", "exit_code"),
    [
        ("0.1.0", "0.1.9", 0),
        ("0.2.0", "0.1.9", 6),
        ("1.2.0", "1.3.1", 0),
        ("2.0.0", "1.3.1", 6),
        ("1.1.0", "0.1.0", 6),
        (None, "0.1.0", 6),
    ],
)
def test_another_version_is_not_misread(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, theirs: str | None, ours: str, exit_code: int
) -> None:
    """An answer of another major version, or below 1.0 another minor one, or of no syncd, is not believed."""
    daemon.version = theirs
    monkeypatch.setattr(http, "__version__", ours)
    assert ctl.main(["status"]) == exit_code


def test_another_program_on_the_socket_is_not_taken_for_syncd(directory: Path, capsys: Capsys) -> None:
    """What does not speak HTTP is exit code 6 at once."""
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def greet() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                while connection.recv(65_536):
                    pass

        thread = threading.Thread(target=greet)
        thread.start()
        assert ctl.main(["status", "--socket", path]) == 6
        thread.join()
    assert "is not syncd" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "request_"), [("run-now", "/v1/runs"), ("accept", "/v1/accept")])
def test_an_error_is_one_json_document_for_a_script(
    daemon: Daemon, command: str, request_: str, capsys: Capsys
) -> None:
    """With --json an error is a JSON document on stdout, and the exit code stays."""
    daemon.answers[f"POST {request_}"] = (409, refusal("stopping", "syncd is stopping"))
    assert ctl.main([command, "--json"]) == 6
    out, err = capsys.readouterr()
    assert json.loads(out) == refusal("stopping", "syncd is stopping")
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "no command given; `syncctl status` shows what the daemon does"),
        ("", "Commands: status, run-now, history, events, "),
        ("statsu", "there is no command 'statsu'; did you mean `status`?"),
        ("STATUS", "there is no command 'STATUS'; did you mean `status`?"),
        ("check --online", "there is no command 'check'; did you mean `syncd check`?"),
        ("--socket status frobnicate", "there is no command 'frobnicate'; `syncctl --help`"),
        ("--json status", "--json belongs after the command: `syncctl status --json`"),
        ("-n 3 history", "-n belongs after the command: `syncctl history -n`"),
        ("--timeout=5m accept", "--timeout belongs after the command: `syncctl accept --timeout`"),
        ("--frobnicate", "there is no option --frobnicate; `syncctl --help`"),
        ("--frobnicate status", "status has no --frobnicate; `syncctl status --help`"),
        ("status --free", "status has no --free; events has"),
        ("history --timeout 5m", "history has no --timeout; run-now and accept have"),
        ("status --chek", "status has no --chek; did you mean `--check`?"),
        ("events 7", "events takes no '7'"),
        ("run-now 900003", "run-now takes no '900003'; did you mean `--event 900003`?"),
        ("webhooks retry --jsno 7", "webhooks has no --jsno; did you mean `--json`?"),
    ],
)
def test_a_slip_is_told_without_what_was_meant(argv: str, said: str, capsys: Capsys) -> None:
    """A wrong word is named, with the command or the place that it was meant for."""
    with pytest.raises(SystemExit, match=r"^2$"):
        ctl.main(argv.split())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [*ctl.build_parser().commands, None])
def test_a_help_leaves_its_reader_without_an_example(command: str | None, capsys: Capsys) -> None:
    """Every help opens with a sentence and ends with a line to copy, which is a command line that parses."""
    with pytest.raises(SystemExit, match=r"^0$"):
        ctl.main([command, "--help"] if command else ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"[A-Z][a-z]+ .*[^.]", lines[0])
    assert lines[-2] == "example:"
    program, *argv = shlex.split(lines[-1].partition("||")[0])
    assert program == "syncctl"
    assert ctl.parse(argv).command == (command or "status")


FAILED = "`systemctl status syncd@nobody` and `syncd check --config /etc/syncd/nobody.toml` tell why"


@pytest.mark.parametrize(
    ("machine", "advice"),
    [  # where systemd's folder is, and what systemd says
        (
            (".", "failed"),
            FAILED,
        ),
        (
            (".", "activating"),
            FAILED,
        ),
        ((".", "inactive"), "`systemctl start syncd@nobody`"),
        ((".", ""), "`systemctl start syncd@nobody`"),
        (("none", ""), "`syncd run`"),
    ],
)
def test_a_failed_service_is_to_be_started_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch, machine: tuple[str, str], advice: str, capsys: Capsys
) -> None:
    """Where systemd says that the service failed, or is tried again, what tells why is named instead.

    Where there is none, in a container say, the daemon is started by hand.
    """
    systemd, state = machine
    systemctl = directory / "systemctl"
    systemctl.write_text(f'#!/bin/sh\n[ "$*" = "is-active syncd@nobody" ] && echo "{state}"\nexit 3\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(ctl, "SYSTEMD", str(directory / systemd))
    assert ctl.main(["status", "--socket", "/run/syncd/nobody/syncd.sock"]) == 3
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "restart",
        "status --what",
        "metrics --json",
        "history -n 0",
        "history -n 1001",
        "history -n ten",
        "run-now --event",
        "run-now --event -1",
        "run-now --event=",
        "run-now --timeout 0s",
        "run-now --timeout 5",
        "run-now --no-w",
        "accept --full",
        "accept --join",
        "accept --event fete/pain",
        "accept --timeout 0s",
        "events --full --free",
        "pause --no-trunc",
        "doubts --event 7",
    ],
)
def test_wrong_usage_reaches_no_daemon(daemon: Daemon, argv: str, capsys: Capsys) -> None:
    """Wrong usage is exit code 2, told on stderr before anything is asked."""
    with pytest.raises(SystemExit, match=r"^2$"):
        ctl.main(argv.split())
    assert "usage: syncctl" in capsys.readouterr().err
    assert daemon.asked == []


def test_wrong_usage_is_no_json_for_a_script(daemon: Daemon, capsys: Capsys) -> None:
    """With --json it is the one document on stdout, as every error."""
    for argv in ("history -n 0 --json", "histroy --json", "status --json --what"):
        with pytest.raises(SystemExit, match=r"^2$"):
            ctl.main(argv.split())
        out, err = capsys.readouterr()
        assert (json.loads(out)["error"]["code"], err, daemon.asked) == ("usage", "", [])


@pytest.mark.parametrize(
    ("option", "said"), [("--version", f"syncctl {syncd.__version__}\n"), ("--help", "130")]
)
def test_help_needs_no_daemon(option: str, said: str, capsys: Capsys) -> None:
    """The version and the help, with its table of exit codes, are printed without a daemon."""
    with pytest.raises(SystemExit, match=r"^0$"):
        ctl.main([option])
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--socket", "{}", "status"], ["status", "--socket", "{}"]])
def test_the_named_socket_wins(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    """--socket counts before and after the command, and more than $SYNCD_SOCKET."""
    monkeypatch.setenv("SYNCD_SOCKET", "/nonexistent")
    assert ctl.main([word.format(daemon.path) for word in argv]) == 0
    assert ctl.main(["status"]) == 3


def test_without_a_name_the_packaged_socket_is_asked(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither --socket nor a filled $SYNCD_SOCKET: the socket is the one of the systemd unit."""
    assert ctl.parse(["status"]).socket == "/run/syncd/syncd.sock"
    monkeypatch.setenv("SYNCD_SOCKET", "")
    assert ctl.parse(["status"]).socket == "/run/syncd/syncd.sock"
