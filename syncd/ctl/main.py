"""`syncctl`: parse the command line, ask the daemon over its Unix socket, print, return an exit code.

It starts fast, because monitors and scripts call it often: it uses only light parts of the standard library,
its own small HTTP client, and rich only for `watch`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from syncd import text, usage
from syncd.ctl import http, panel, tables
from syncd.ctl.http import EXIT_USAGE, Failure, NoDaemon, ask, ask_json, config_option, unit_at
from syncd.text import Json, write

DEFAULT_SOCKET = "/run/syncd/syncd.sock"
LOOK_EVERY_S = 1  # how often to ask how far a run is; its end is answered at once
PAUSE_S = 0.1  # how soon to ask again a daemon that lets nobody wait, because too many do

SYSTEMD = "/run/systemd/system"  # exists if systemd runs the machine (sd_booted(3))
SYSTEMCTL_WITHIN_S = 2.0  # it answers at once, or systemd has a problem

EXIT_OK = 0
EXIT_BAD = 1
EXIT_GAVE_UP = 5
EXIT_INTERRUPTED = 130
EPILOG = """\
exit codes:
  0  done
  1  the run ended failed, partial or cancelled, --check found bad health, or a
     file or port cannot be used
  2  wrong usage
  3  no daemon answers on the socket
  4  no permission for the socket
  5  gave up waiting; the run goes on
  6  the daemon refused (stopping, bad configuration, other version)
  130  interrupted; the run goes on

Durations are written "90s", "15m", "1h30m". NO_COLOR switches colours off.

example:
  syncctl status"""


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of the command in `argv`; wrong usage raises SystemExit(2), as argparse does."""
    text.any_alphabet()
    try:
        return perform(parse(argv))
    except OSError as error:  # the daemon's side never raises it
        complain(f"cannot write the answer: {error.strerror}")
        return EXIT_BAD


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line, `socket` filled in."""
    args = build_parser().parse(sys.argv[1:] if argv is None else argv)
    args.socket = args.socket or os.environ.get("SYNCD_SOCKET") or DEFAULT_SOCKET
    return args


def perform(args: argparse.Namespace) -> int:
    """Execute a parsed command, print any failure, return the exit code. Raises KeyboardInterrupt."""
    try:
        exit_code: int = args.function(args)
    except KeyboardInterrupt:
        is_usual = args.function in (watch, page)  # they end only this way
        failure = Failure(EXIT_INTERRUPTED, "interrupted", "" if is_usual else "Interrupted.")
    except Failure as error:
        failure = error
    else:
        return exit_code
    message = str(failure)
    if isinstance(failure, NoDaemon) and failure.is_absent:
        message = f"{message} {advice(args.socket)}"
    if message and args.json:
        write(as_json({"error": {"code": failure.code, "message": message}}))
    elif message:
        complain(message)
    if failure.exit_code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt  # it was printed; the program ends by the signal
    return failure.exit_code


def advice(socket: str) -> str:
    """Return what to do about a missing daemon: a failed service would only fail again."""
    import subprocess  # noqa: PLC0415 - for this sentence alone

    start = "syncd run"
    if unit := unit_at(socket):
        ask = ["systemctl", "is-active", unit]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(ask, capture_output=True, timeout=SYSTEMCTL_WITHIN_S, check=False)  # noqa: S603
            if found.stdout.strip() in (b"failed", b"activating"):
                check = f"syncd check{config_option(unit)}"
                return f"The service does not come up: `systemctl status {unit}` and `{check}` tell why."
        if os.path.isdir(SYSTEMD):  # noqa: PTH112 - starts fast
            start = f"systemctl start {unit}"
    return f"Start it with `{start}`, or name its socket: --socket or $SYNCD_SOCKET."


def build_parser() -> usage.Program:
    """Return the parser; `function` of its result executes the command and returns the exit code."""
    parser = usage.Program(
        "syncctl",
        "Ask the syncd daemon how it fares, and for what it can do.",
        EPILOG,
        first="`syncctl status` shows what the daemon does and how it fares",
    )
    socket_help = f"the daemon's socket, else $SYNCD_SOCKET, else {DEFAULT_SOCKET}"
    parser.add_argument("--socket", metavar="PATH", help=socket_help)
    parser.set_defaults(json=False)

    def add(
        name: str, function: Callable[[argparse.Namespace], int], help_: str, example: str = ""
    ) -> argparse.ArgumentParser:
        """Add a command with its help and the common options. `example` stands behind its name."""
        command = parser.add(name, help_, f"syncctl {name} {example}".rstrip())
        # Without SUPPRESS the default would overwrite a --socket given before the command.
        command.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help=socket_help)
        if function not in (metrics, watch):
            command.add_argument("--json", action="store_true", help="print one JSON document")
        if function in (status, history, events, doubts, publish, webhooks):
            help_ = "shorten nothing to the terminal's width"
            command.add_argument("--no-trunc", action="store_true", help=help_)
        command.set_defaults(function=function, command=name)
        return command

    help_ = "Show what the daemon does and how it fares."
    command = add("status", status, help_, "--check || echo 'syncd needs a look'")
    command.add_argument("--check", action="store_true", help="exit 1 unless health is ok")
    help_ = "Ask for a run that begins after this request, and wait for its end."
    command = add("run-now", run_now, help_, "--event 900003 --timeout 5m")
    help_ = "reread everything (this is no consent to anything)"
    command.add_argument("--full", action="store_true", help=help_)
    _take_events(command, "only this event; may be repeated")
    command.add_argument("--join", action="store_true", help="accept a run in progress instead of a new one")
    _take_patience(command)
    _take_limit(add("history", history, "Show the latest runs, newest first.", "-n 5"))
    _take_kinds(add("events", events, "Show live events and the places left.", "--free"))
    add("watch", watch, "Show all that live: health, the run in progress, latest runs, places left.")
    add("doubts", doubts, "Show what is absent upstream and not believed gone yet, and what that waits for.")
    add("publish", publish, "Show the site's own tables that are kept true, and how that goes.")
    help_ = "Show what is still to be told to endpoints of webhooks, or was given up; `retry` sends it again."
    _take_deliveries(add("webhooks", webhooks, help_, "retry --endpoint site"))
    help_ = "Say that what is absent is gone: a run lets it vanish unless it is back; waits for its end."
    command = add("accept", accept, help_, "--event 900003")
    _take_events(command, "only this event, and what is absent inside it; may be repeated")
    _take_patience(command)
    add("pause", change_state, "Start no more scheduled runs, also after a restart.")
    add("resume", change_state, "Start scheduled runs again.")
    add("reload", change_state, "Read the configuration again.")
    help_ = "Print metrics as Prometheus text, for node_exporter's textfile collector."
    example = "--textfile /var/lib/prometheus/node-exporter/syncd.prom"
    command = add("metrics", metrics, help_, example)
    help_ = "write it to this file, which is replaced as a whole, instead of stdout"
    command.add_argument("--textfile", metavar="PATH", help=help_)
    help_ = "Show the daemon's page on a port of this machine, until Ctrl-C; prints its address."
    command = add("page", page, help_, "--port 8080")
    help_ = "the port of 127.0.0.1; one that is free if not given"
    port = partial(_number, most=65_535, what="port")
    command.add_argument("--port", metavar="N", type=port, default=0, help=help_)
    return parser


def _take_events(command: argparse.ArgumentParser, help_: str) -> None:
    command.add_argument("--event", metavar="ID", type=_event_id, action="append", default=[], help=help_)


def _take_limit(command: argparse.ArgumentParser) -> None:
    help_ = "how many runs, 1 to 1000 (20)"
    number = partial(_number, most=1000)
    command.add_argument("-n", metavar="N", dest="limit", type=number, default=20, help=help_)


def _take_kinds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--all", action="store_true", help="ended and vanished events too")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--full", action="store_true", help="only those that are full")
    kind.add_argument("--free", action="store_true", help="only those with places left that are not over")


def _take_patience(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that waits for a run."""
    command.add_argument("--no-wait", action="store_true", help="return as soon as the run is queued")
    help_ = "wait no longer than this, such as 5m; the run goes on"
    command.add_argument("--timeout", metavar="DUR", type=_timeout_s, default=float("inf"), help=help_)


def _take_deliveries(command: argparse.ArgumentParser) -> None:
    command.add_argument("verb", choices=["retry"], nargs="?", help="send again now")
    command.add_argument("ids", metavar="ID", nargs="*", help="these deliveries")
    help_ = "all that waits for this endpoint, or was given up"
    command.add_argument("--endpoint", metavar="NAME", help=help_)


def _timeout_s(value: str) -> float:
    try:
        seconds = text.parse_duration(value).total_seconds()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not seconds:
        raise argparse.ArgumentTypeError("must be longer than 0s; --no-wait does not wait at all")
    return seconds


def _event_id(value: str) -> str:
    if not text.names_an_event(value):
        raise argparse.ArgumentTypeError(
            f"{value!r} is no event's id or ext_id; `syncctl events` lists the ids"
        )
    return value


def _number(value: str, most: int, what: str = "number") -> int:
    if not value.isdecimal() or len(value) > 9 or not 1 <= int(value) <= most:  # noqa: PLR2004 - int has a limit
        raise argparse.ArgumentTypeError(f"{value!r} is not a {what} from 1 to {most}")
    return int(value)


def status(args: argparse.Namespace) -> int:
    """Print the Status; 1 if `--check` was given and health is not ok."""
    answer = ask_json(args.socket, "GET", "/v1/status")
    unit = unit_at(args.socket)
    write_answer(args, answer, lambda: panel.status_panel(answer, datetime.now(UTC), _width(args), unit))
    return EXIT_BAD if args.check and answer["health"] != "ok" else EXIT_OK


def run_now(args: argparse.Namespace) -> int:
    """Request a run, and wait for it."""
    return see_through(args, "/v1/runs", {"full": args.full, "events": args.event, "join": args.join})


def accept(args: argparse.Namespace) -> int:
    """Request a run that marks as vanished what it finds absent again, and wait for it."""
    return see_through(args, "/v1/accept", {"events": args.event})


def see_through(args: argparse.Namespace, target: str, wanted: Json) -> int:
    """Request a run, wait for its end and print it; return 1 if its outcome is not ok."""
    deadline = time.monotonic() + args.timeout
    timeout_s = min(args.timeout, http.ANSWER_TIMEOUT_S)
    try:
        run = ask_json(args.socket, "POST", target, wanted, timeout_s=timeout_s)
    except NoDaemon:
        if time.monotonic() < deadline:
            raise
        message = "Gave up waiting. The daemon may have queued the run: `syncctl history` shows it."
        raise Failure(EXIT_GAVE_UP, "gave_up", message) from None
    if not args.no_wait:
        run = wait_for(args.socket, run, deadline)
    write_answer(args, run, lambda: text.run_summary(run))
    return EXIT_OK if args.no_wait or run["outcome"] == "ok" else EXIT_BAD


def show(args: argparse.Namespace, target: str, name: str, table: Callable[..., str]) -> int:
    """Request a list, which the answer has under that name, and print it as a table."""
    answer = ask_json(args.socket, "GET", target)
    write_answer(args, answer, lambda: table(answer[name], datetime.now(UTC), _width(args)))
    return EXIT_OK


def history(args: argparse.Namespace) -> int:
    """Print the latest runs."""
    return show(args, f"/v1/runs?limit={args.limit}", "runs", tables.runs_table)


def events(args: argparse.Namespace) -> int:
    """Print the live events, or all; or only those that are full, or have places left."""
    answer, now = ask_json(args.socket, "GET", f"/v1/events?all={int(args.all)}"), datetime.now(UTC)
    if args.full:
        answer["events"] = [event for event in answer["events"] if event["is_full"]]
    if args.free:
        answer["events"] = [event for event in answer["events"] if text.has_places(event, now)]
    write_answer(args, answer, lambda: text.events_table(answer["events"], now, _width(args)))
    return EXIT_OK


def doubts(args: argparse.Namespace) -> int:
    """Print what is absent upstream and not believed gone yet."""
    return show(args, "/v1/doubts", "doubts", tables.doubts_table)


def publish(args: argparse.Namespace) -> int:
    """Print the state of each of the site's tables."""
    return show(args, "/v1/publish", "publish", tables.publish_table)


def webhooks(args: argparse.Namespace) -> int:
    """Print the waiting and parked deliveries of each endpoint, or have them sent again."""
    if bool(args.ids) + bool(args.endpoint) != bool(args.verb):
        message = "`retry` takes deliveries by their ids, or one endpoint by --endpoint; without it neither."
        raise Failure(EXIT_USAGE, "usage", message)
    if args.verb:
        wanted = {"ids": args.ids, "endpoint": args.endpoint}
        answer = ask_json(args.socket, "POST", "/v1/webhooks/retry", wanted)
        more = "`syncctl webhooks` shows how that goes"
        write_answer(args, answer, lambda: f"Being sent again: {answer['retried']}; {more}.")
    else:
        answer = ask_json(args.socket, "GET", "/v1/webhooks")
        write_answer(args, answer, lambda: tables.webhooks_table(answer, datetime.now(UTC), _width(args)))
    return EXIT_OK


def watch(args: argparse.Namespace) -> int:
    """Show the live screen until it is left."""
    from syncd.ctl.screen import watch  # noqa: PLC0415 - rich takes three times the whole start

    return watch(args.socket)


def change_state(args: argparse.Namespace) -> int:
    """Execute `pause`, `resume` or `reload` and print the state after it."""
    answer = ask_json(args.socket, "POST", f"/v1/{args.command}")
    unit = unit_at(args.socket)
    write_answer(args, answer, lambda: panel.answer(args.command, answer, datetime.now(UTC), unit))
    return EXIT_OK


def metrics(args: argparse.Namespace) -> int:
    """Print the daemon's Prometheus text, or write it into a file."""
    exposition = ask(args.socket, "GET", "/metrics")
    if args.textfile is None:
        write(exposition.decode(errors="backslashreplace"))
    else:
        from syncd.ctl.textfile import replace  # noqa: PLC0415 - no other command needs it

        try:
            replace(args.textfile, exposition)
        except OSError as error:
            message = f"Cannot write {args.textfile}: {error.strerror}. What stood there stays."
            raise Failure(EXIT_BAD, "textfile", message) from None
    return EXIT_OK


def page(args: argparse.Namespace) -> int:
    """Print the address of the daemon's page and serve it until Ctrl-C."""
    from syncd.ctl.bridge import Bridge  # noqa: PLC0415 - no other command needs it

    ask(args.socket, "GET", "/v1/status")  # so that it fails like any command, not in the browser
    try:
        bridge = Bridge(args.socket, args.port)
    except OSError as error:
        message = f"Cannot listen on port {args.port} ({error.strerror}): choose another with --port."
        raise Failure(EXIT_BAD, "port", message) from None
    with bridge:
        write(as_json({"address": bridge.address}) if args.json else f"{bridge.address}\n")
        complain(
            "open this address in a browser: it lets the first visitor in, and nobody else; Ctrl-C ends it"
        )
        bridge.serve_forever()
    return EXIT_OK


def _width(args: argparse.Namespace) -> int | None:
    return None if args.no_trunc else text.columns()


def write_answer(args: argparse.Namespace, answer: Json, readable: Callable[[], str]) -> None:
    """Print an answer: as JSON with `--json`, else in the form of `readable`."""
    write(as_json(answer) if args.json else readable() + "\n")


def as_json(document: Json) -> str:
    """Return JSON in ASCII, which is valid whatever the terminal's encoding."""
    return json.dumps(document, indent=2) + "\n"


def complain(message: str) -> None:
    """Write a message to stderr, if that is open."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"syncctl: {text.harmless(message)}\n")


def wait_for(path: str, run: Json, deadline: float) -> Json:
    """Return the run once it has ended, showing its progress on a terminal.

    Raises Failure when `deadline` (time.monotonic) passes, on Ctrl-C, and when the daemon goes away.
    """
    from syncd.lastline import last_line  # noqa: PLC0415 - threading takes a tenth of the start

    def told(elapsed_s: float) -> tuple[Json, str]:
        none_yet = {"phase": run["state"], "done": 0, "total": 0}
        return run["progress"] or none_yet, text.format_duration(int(elapsed_s))

    try:
        with last_line(told) if text.can_be_drawn_on(sys.stderr) else contextlib.nullcontext():
            soonest = 0.0
            while run["state"] != "done":
                time.sleep(max(soonest - time.monotonic(), 0))
                soonest = time.monotonic() + PAUSE_S
                run = look(path, run["id"], deadline)
    except KeyboardInterrupt:
        raise Failure(EXIT_INTERRUPTED, "interrupted", f"Stopped waiting. {_goes_on(run['id'])}") from None
    return run


def look(path: str, run_id: int, deadline: float) -> Json:
    """Return a run as it is after LOOK_EVERY_S, or as soon as it has ended. Raises Failure as `wait_for`."""
    left_s = deadline - time.monotonic()
    timeout_s = min(LOOK_EVERY_S + http.ANSWER_TIMEOUT_S, left_s)
    try:
        if left_s > 0:
            return ask_json(path, "GET", f"/v1/runs/{run_id}?wait={LOOK_EVERY_S}", timeout_s=timeout_s)
    except NoDaemon:
        if time.monotonic() < deadline:
            raise NoDaemon(
                f"The daemon went away during {text.run_name(run_id)}. "
                "Once it is back `syncctl history` shows how the run ended."
            ) from None
    raise Failure(EXIT_GAVE_UP, "gave_up", f"Gave up waiting. {_goes_on(run_id)}")


def _goes_on(run_id: int) -> str:
    name = text.run_name(run_id).capitalize()
    return f"{name} goes on: `syncctl status` shows it, `syncctl history` how it ended."
