"""The `syncd` program: parses its arguments, sets up logging, and turns errors into exit codes."""

import argparse
import faulthandler
import gc
import os
import re
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TextIO, get_args

import msgspec
import stamina.instrumentation
from loguru import logger
from msgspec import structs

from syncd import text, threads, typed, usage, web
from syncd.billetweb.client import tell_retry
from syncd.config import Config, load
from syncd.database import engine
from syncd.errors import AlreadyRunning, ConfigError, StoreError, SyncdError
from syncd.log import setup as log
from syncd.log.redact import Redactor, of_basic_auth
from syncd.model import AttendeeMode

EXIT_CODES = """exit codes:
  0   done; a clean stop by SIGTERM or SIGINT
  1   the run of `once` failed, or an unexpected error
  2   wrong usage
  69  `once`, `check`: the database cannot be opened
  75  another syncd holds this database or this socket
  78  bad configuration, or no credentials; `check --online`, `setup`: they are refused
  130 interrupted, with nothing done
"""
EXIT_OF: dict[type[SyncdError], int] = {ConfigError: 78, StoreError: 69, AlreadyRunning: 75}
TOKEN_CHARACTERS = 16
"""A token has at least 16 characters: 64 bits as hexadecimal digits."""
_AFTER_HOST = re.compile(r"^[^:]*://[^/?]*[/?]?")
SWITCH_S = 0.001
"""How long a busy thread may delay the loop, a few times in each answer; with Python's default of 5 ms one
status in a hundred takes 30 ms."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `syncd`; return its exit code. Raises KeyboardInterrupt before anything was done."""
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - closed, it is None
    text.any_alphabet()
    redact = Redactor()
    try:
        arguments = parser().parse(sys.argv[1:] if argv is None else argv)
    except OSError as error:  # of a help or a version
        _complain([f"cannot write the answer: {error.strerror}"], redact)
        return 1
    log.configure(level="INFO", format="auto", redact=redact)
    stamina.instrumentation.set_on_retry_hooks([tell_retry])
    try:
        code: int = arguments.command(arguments, redact)
    except SyncdError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        if arguments.command is _setup:  # a dialogue, and no log
            _complain(problems, redact)
        else:
            for problem in problems:
                logger.bind(event=f"error.{error.kind}").critical("{}", problem)
        return next((code for kind, code in EXIT_OF.items() if isinstance(error, kind)), 1)
    except Exception as error:  # noqa: BLE001  # the last place: nothing may leave unredacted
        record = logger.bind(event="error.internal").opt(exception=error)
        record.critical("unexpected {}; please report this", type(error).__name__)
        return 1
    return code


def parser() -> usage.Program:
    """Return the parser of `syncd`'s arguments."""
    top = usage.Program(
        "syncd",
        "Mirrors a Billetweb account into a SQL database, every 15 minutes, by itself.",
        f"{EXIT_CODES}\nexample:\n  syncd check --online",
        first="`syncd demo` shows what it does, and needs no key",
    )
    run = top.add(
        "run", "Run the daemon, in the foreground (systemd starts this).", "syncd run --config config.toml"
    )
    run.set_defaults(command=_run)
    once = top.add(
        "once", "Carry one run out, without the daemon: for cron and first imports.", "syncd once --full"
    )
    once.add_argument("--full", action="store_true", help="reread everything")
    once.add_argument("--quiet", action="store_true", help="print nothing where all went well, for cron")
    once.set_defaults(command=_once)
    check = top.add(
        "check", "Tell every problem of the configuration and the database.", "syncd check --online"
    )
    check.add_argument("--online", action="store_true", help="also ask Billetweb once, with the credentials")
    check.set_defaults(command=_check)
    setup = top.add(
        "setup",
        "Ask for account and key, try them, write configuration and key.",
        "syncd setup --user 12345 --key-file - --attendees none < key.txt",
        "Asks for the account number and the API key, tries them, and writes the configuration and the\n"
        "key's file. Every answer may be an option instead; nothing is overwritten unasked.",
    )
    _take_answers(setup)
    for command in (run, once, check, setup):
        command.add_argument(
            "--config",
            type=Path,
            default=Path(os.environ.get("SYNCD_CONFIG") or typed.USUAL),
            metavar="FILE",
            help=f"the configuration (default: $SYNCD_CONFIG, else {typed.USUAL})",
        )
    help_ = "Try it: the real daemon against a built-in Billetweb stand-in; needs no key."
    demo = top.add("demo", help_, "syncd demo --events 20")
    demo.add_argument("--dir", type=Path, help="where to keep its files (default: a folder that is removed)")
    help_ = "time between runs (default: 10s)"
    demo.add_argument("--interval", type=_duration, default="10s", metavar="DUR", help=help_)
    demo.add_argument("--events", type=_count, default=6, metavar="N", help="how many events (default: 6)")
    demo.add_argument(
        "--seed", type=int, default=1, metavar="N", help="another seed, other sales (default: 1)"
    )
    help_ = "whether attendees are mirrored, who are invented too (default: none)"
    demo.add_argument("--attendees", choices=get_args(AttendeeMode), default="none", help=help_)
    help_ = "also keep a small site's table and feeds true, and show the page on a port of this machine"
    demo.add_argument("--site", action="store_true", help=help_)
    demo.set_defaults(command=_demo)
    return top


def _take_answers(setup: argparse.ArgumentParser) -> None:
    """Add the options that answer what `setup` would ask."""
    setup.add_argument("--user", metavar="NUMBER", help="the account number")
    setup.add_argument("--key-file", metavar="FILE", help="the file that holds the key; `-`: standard input")
    modes = get_args(AttendeeMode)
    setup.add_argument("--attendees", choices=modes, help="whether attendees are mirrored (default: none)")
    setup.add_argument("--database", metavar="URL", help="the database (default: a SQLite file)")
    setup.add_argument("--base-url", metavar="URL", help="where the API answers, if not at Billetweb's")
    setup.add_argument("--offline", action="store_true", help="do not try the key")
    setup.add_argument(
        "--overwrite", action="store_true", help="put another account in place of the one there"
    )
    setup.set_defaults(command=_setup)


def _setup(arguments: argparse.Namespace, redact: Redactor) -> int:
    from syncd.cli.setup import Options, setup  # noqa: PLC0415

    return setup(msgspec.convert(arguments, Options, from_attributes=True), redact)


def _run(arguments: argparse.Namespace, redact: Redactor) -> int:
    # Imported here because `--help` and wrong usage need neither the server nor the scheduler.
    from syncd.daemon import watchdog  # noqa: PLC0415
    from syncd.daemon.activation import inherited_socket, turn_away  # noqa: PLC0415
    from syncd.daemon.daemon import Daemon  # noqa: PLC0415
    from syncd.daemon.notify import Notifier  # noqa: PLC0415

    faulthandler.enable()
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # loaded objects stay: no collection needs to scan them again

    def load_config() -> Config:
        return _configured(load(arguments.config, os.environ), redact)

    async def run() -> int:
        """Run the daemon, on systemd's socket if there is one; return the exit code."""
        listening = inherited_socket(os.environ)
        try:
            daemon = Daemon(
                load_config(),
                load_config=load_config,
                redact=redact,
                notifier=Notifier(os.environ.get("NOTIFY_SOCKET")),
                listening=listening and listening.dup(),  # the daemon closes its own
                feed_every_s=watchdog.interval_s(os.environ, os.getpid()),
            )
            return await daemon.run()
        except ConfigError:
            if listening:
                turn_away(listening)
            raise

    return threads.run(run())


def _once(arguments: argparse.Namespace, redact: Redactor) -> int:
    from syncd.cli.once import once  # noqa: PLC0415

    config = load(arguments.config, os.environ)
    if arguments.quiet:  # the summary has the errors too; what recovers on its own is worth no mail
        config = structs.replace(config, log=structs.replace(config.log, level="ERROR"))
    config = _configured(config, redact)
    run = threads.run(
        once(config, redact, lambda to: _log(config, redact, to), full=arguments.full, quiet=arguments.quiet)
    )
    if not arguments.quiet or run.outcome != "ok":
        _say(text.run_summary(msgspec.to_builtins(run)))
    return 0 if run.outcome in ("ok", "partial") else 1


def _check(arguments: argparse.Namespace, redact: Redactor) -> int:
    from syncd.cli.check import check  # noqa: PLC0415

    found = check(lambda: _configured(load(arguments.config, os.environ), redact), online=arguments.online)
    _complain(found.problems, redact)
    if not found.problems:
        answers = ", and Billetweb answers" if arguments.online else ""
        lines = [f"{arguments.config} is good{answers}", *(f"  {line}" for line in found.good)]
        _say("\n".join(text.harmless(redact(line)) for line in lines))
    return EXIT_OF.get(found.kind, 1) if found.kind else 0


def _demo(arguments: argparse.Namespace, redact: Redactor) -> int:
    from syncd.cli.demo import Wishes, demo  # noqa: PLC0415

    return demo(
        arguments.dir,
        msgspec.convert(arguments, Wishes, from_attributes=True),
        configured=lambda config: _configured(config, redact),
        redact=redact,
    )


def _configured(config: Config, redact: Redactor) -> Config:
    """Return a configuration, and mask its secrets and apply its log settings from now on.

    Raises ConfigError, with nothing changed, also for an environment that cannot be used with it.
    """
    addresses = [config.billetweb.base_url, config.heartbeat.url]
    if problems := web.problems(filter(None, addresses), direct=[each.url for each in config.webhooks]):
        raise ConfigError(problems)
    for secret in secrets(config):
        redact.add(secret)
    _log(config, redact)
    if _is_open_to_all(config):
        logger.bind(event="config.open_to_all").warning(
            "every user of this machine may read {}, which holds a password, or an address that may be as"
            " good as one; `chmod o= {}` ends that",
            config.path,
            config.path,
        )
    return config


def _is_open_to_all(config: Config) -> bool:
    """Return whether every user may read secrets that stand in the configuration's own file."""
    urls = {"database-url": config.database.url}
    urls |= {f"publish-{target.name}": target.database for target in config.publish if target.database}
    written = [url for credential, url in urls.items() if credential not in config.credentials]
    passwords = [password for url in written for password in engine.secrets(url)]
    try:
        path = config.path.resolve()
        may_read = path.stat().st_mode & stat.S_IROTH
        may_reach = all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
    except OSError:  # gone since it was read
        return False
    return bool(may_read and may_reach) and any([config.heartbeat.url, *passwords, *_tokens(config)])


def _log(config: Config, redact: Redactor, to: TextIO | None = None) -> None:
    log.configure(level=config.log.level, format=config.log.format, redact=redact, stream=to)


def secrets(config: Config) -> list[str]:
    """Return what must never be shown.

    That is the key, the header made of it, databases' passwords, the heartbeat's address, webhooks' signing
    secrets, and the part of these addresses after the host, which may hold a token.
    """
    urls = [config.database.url, *(each.database for each in config.publish if each.database)]
    passwords = [password for url in urls for password in engine.secrets(url)]
    signing = [secret.value for some in config.webhook_secrets.values() for secret in some]
    signing += [secret.removeprefix("whsec_") for secret in signing]
    credentials = of_basic_auth(config.billetweb.user, config.key.value)
    return [*credentials, *passwords, config.heartbeat.url or "", *signing, *_tokens(config)]


def _tokens(config: Config) -> list[str]:
    """Return what may be a token in the addresses of heartbeat and webhooks: the part after the host.

    A shorter one holds none, and hiding it would cut other addresses to pieces. httpx spells hosts and ports
    its own way, so this part is also hidden alone.
    """
    urls = [config.heartbeat.url or "", *(each.url for each in config.webhooks)]
    return [told for url in urls if len(told := _AFTER_HOST.sub("", url)) >= TOKEN_CHARACTERS]


def _complain(problems: Sequence[str], redact: Redactor) -> None:
    """Write problems to stderr, a line each."""
    with suppress(OSError, AttributeError):  # stderr is full or missing: the exit code still says it
        sys.stderr.write("".join(f"{text.harmless(redact(problem))}\n" for problem in problems))


def _say(line: str) -> None:
    """Write to stdout; if that fails, the command still counts as done."""
    try:
        text.write(f"{line}\n")
    except OSError as error:
        logger.warning("cannot write to stdout: {}", error.strerror)


def _duration(value: str) -> timedelta:
    try:
        duration = text.parse_duration(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not timedelta(seconds=1) <= duration <= timedelta(days=7):
        raise argparse.ArgumentTypeError("from 1s to 7d")
    return duration


def _count(value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1")
    return int(value)
