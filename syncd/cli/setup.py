"""`syncd setup`: asks for account number and key, tries them, and writes configuration and key.

Every answer may also be an option, so that a script needs no terminal. Existing files are replaced only on
request, and of a configuration only the lines in question.
"""

import errno
import getpass
import grp
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

from msgspec import Struct, structs

from syncd import readers, threads, typed, web
from syncd.billetweb.client import Billetweb
from syncd.cli.check import asking
from syncd.config import BilletwebConfig, ControlConfig, DatabaseConfig, Secret, SyncConfig
from syncd.credentials import credentials_beside
from syncd.errors import AuthError, BilletwebError, ConfigError, RestrictedError, reason
from syncd.feed.files import NotReplaced, replace
from syncd.log.redact import Redactor, of_basic_auth
from syncd.model import AttendeeMode
from syncd.run.listing import is_live
from syncd.text import count, harmless, is_terminal, write
from syncd.toml import key_lines, quoted

GROUP = "syncd"
KEY_NAME = "billetweb-key"
SAMPLE_USER = "12345"
"""The number in 0.3's sample, which belongs to nobody."""
OVERWRITE = "--overwrite puts another account and key in, and leaves all other settings as they are."
NO_TERMINAL = "standard input is no terminal, so that nobody can be asked: give {}"
ENDED = "the answers ended: nothing was written"
TRIES = 3
"""How often a key may be typed wrongly; then it is better looked up."""


class Options(Struct, frozen=True, kw_only=True):
    """The options of the command line. `key_file` "-" is standard input."""

    config: Path
    user: str | None = None
    key_file: str | None = None
    attendees: AttendeeMode | None = None
    database: str | None = None
    base_url: str | None = None
    offline: bool = False
    overwrite: bool = False


class _Ended(ConfigError):
    """The input ended."""


class Found(Struct, frozen=True, kw_only=True):
    """What Billetweb returned about the account."""

    events: int
    live: int
    attendees: bool


def setup(options: Options, redact: Redactor) -> int:
    """Ask, try and write; return the exit code.

    Raises ConfigError if the answers cannot be used or something is in the way, and BilletwebError if
    Billetweb cannot be asked. Then nothing is written.
    """
    path = options.config.absolute()
    before, base_url = _before(path, may_replace=options.overwrite)
    places = {} if before and options.overwrite else _places(path, before)
    if places and not typed.unit(path):
        _check_path(path)
    account = _account(options, base_url)
    if options.key_file is None and not _may_ask():
        raise ConfigError([NO_TERMINAL.format("--key-file" if options.user else "--user and --key-file")])
    if base_url and options.base_url is None and not options.offline:
        _say(f"The key is tried at {account.base_url}: billetweb.base_url in {path} says so.")
    user, key, found = _good_credentials(options, account, redact)
    if found:
        may = "may" if found.attendees else "may not"
        _say(f"The key is good. The account has {count(found.events, 'event')}, {found.live} of them live.")
        _say(f"Attendees {may} be read with it.")
    attendees = options.attendees
    if attendees is None and found and found.attendees and _may_ask():
        attendees = _asked_mode()
    config = _filled_in(before or _sample(), places | _values(options, user, attendees))
    key_path = credentials_beside(path) / KEY_NAME
    for each in (path, key_path):
        if each.is_symlink() or (each.exists() and not each.is_file()):
            raise ConfigError([f"{each} is no regular file: nothing was written"])
    _put(path, config, 0o640, group=GROUP)
    try:
        _put(key_path, f"{key.value}\n", 0o600)
    except BaseException:  # one of both would fit neither account
        if before is None:
            path.unlink()
        else:
            _put(path, before, 0o640, group=GROUP)
        raise
    following = _next(path, _socket(config), runs=options.overwrite)
    _say(f"\nWritten: {path}\n         {key_path}\n\nNext:\n{following}")
    return 0


def _check_path(path: Path) -> None:
    """Raise ConfigError if this path allows no database and socket beside it."""
    if path.suffix in (".db", ".sock"):
        raise ConfigError([f"--config: {path} would be its own database or socket; end it in .toml"])
    if {"?", "%"} & {*str(path)}:
        raise ConfigError(["--config: a ? or % in the path of the database means another thing"])
    beside = f"{path.with_suffix('.sock')}"
    _read("--config: the socket beside it", lambda: str(readers.socket(beside)))


def _account(options: Options, base_url: str | None) -> BilletwebConfig:
    """Return where to try the key: the given address, else that of the existing configuration."""
    if options.user is not None:
        _read("the account number", lambda: readers.user(options.user))
    if options.database is not None:
        _read("--database", lambda: readers.database(options.database))
    account = BilletwebConfig(user="")
    what, address = "--base-url", options.base_url
    if address is None:
        what, address = "billetweb.base_url", base_url
    if address is not None:
        account = structs.replace(account, base_url=_read(what, lambda: readers.web_address(address)))
    # Reported here, once, not with each key that is tried.
    if not options.offline and (problems := web.problems([account.base_url])):
        raise ConfigError(problems)
    return account


# --- asking


def _may_ask() -> bool:
    """Whether a person is there; Python has no stdin if it is closed."""
    return is_terminal(sys.stdin)


def _asked(question: str, option: str) -> str:
    if not _may_ask():
        raise ConfigError([NO_TERMINAL.format(option)])
    write(harmless(question))
    answer = sys.stdin.readline()
    if not answer:
        raise _Ended([ENDED])
    return answer.strip()


def _asked_mode() -> AttendeeMode:
    _say("\nMirror attendees too? `none`, `minimal` (no personal data) or `full` (names, addresses).")
    while True:
        match _asked("Attendees [none]: ", "--attendees"):
            case "" | "none":
                return "none"
            case "minimal":
                return "minimal"
            case "full":
                return "full"
        _say("One of these three words, please.")


def _good_credentials(
    options: Options, account: BilletwebConfig, redact: Redactor
) -> tuple[str, Secret, Found | None]:
    """Return the account number, the key, and what they showed; typed answers may be retried."""
    user = options.user or ""
    for _ in range(TRIES):
        try:
            user = options.user or _number(before=user)
            key = Secret(_key(options.key_file, user))
            for secret in of_basic_auth(user, key.value):
                redact.add(secret)
            account = structs.replace(account, user=user)
            return user, key, None if options.offline else threads.run(_try(account, key))
        except _Ended:
            raise
        except (AuthError, ConfigError) as error:
            if options.key_file is not None:
                raise ConfigError([f"{error}: nothing was written"]) from None
            _say(redact(f"{error}; try again"))
        except BilletwebError as error:
            error.args = (f"{error}: nothing was written",)
            raise
    raise ConfigError([f"no good key in {TRIES} tries: nothing was written"])


def _number(*, before: str) -> str:
    """Ask for the account number; an empty answer means the one `before`."""
    known = f" [{before}]" if before else ""
    question = f"Account number, from the API page of Billetweb's back office{known}: "
    typed = _asked(question, "--user") or before
    return _read("the account number", lambda: readers.user(typed))


def _key(key_file: str | None, user: str) -> str:
    if key_file == "-":
        if sys.stdin is None:
            raise ConfigError(["--key-file: standard input is closed"])
        return _read("--key-file", lambda: readers.key(sys.stdin.readline(4096), user))
    if key_file is not None:
        return _read("--key-file", lambda: readers.key(readers.short_text(Path(key_file)), user))
    return _read("the key", lambda: readers.key(getpass.getpass("API key (is not shown): "), user))


def _read(what: str, reader: Callable[[], str]) -> str:
    try:
        return reader()
    except EOFError:
        raise _Ended([ENDED]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{what}: {reason(error)}"]) from None


async def _try(account: BilletwebConfig, key: Secret) -> Found:
    """Ask for the list of events and the latest attendees: at most three requests."""
    now = datetime.now(UTC)
    async with asking(account, key) as client:
        events = (await client.events()).records.values()
        # A key for chosen events may not read the account's attendees, only those of each event.
        is_open = await _may_read(client, None) or (
            bool(events) and await _may_read(client, next(iter(events)).id)
        )
    live = sum(is_live(event, now - SyncConfig().keep_past) for event in events)
    return Found(events=len(events), live=live, attendees=is_open)


async def _may_read(client: Billetweb, event_id: str | None) -> bool:
    """Return whether attendees may be read; asks only for the latest, which are few."""
    try:
        (await client.attendees(since=datetime.now(UTC) - timedelta(minutes=1), event_id=event_id)).close()
    except RestrictedError:
        return False
    return True


# --- writing


def _before(path: Path, *, may_replace: bool) -> tuple[str | None, str | None]:
    """Return the existing configuration and its `base_url`. Raises ConfigError if it is in use."""
    text: str | None = None
    try:
        text = readers.content(path, 1 << 20).decode("utf-8-sig")
        account = tomllib.loads(text).get("billetweb", {})
        user, base_url = account.get("user"), account.get("base_url")
    except FileNotFoundError:
        user = base_url = None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            [f"{path} is there and cannot be read ({reason(error)}); it is left as it is"]
        ) from None
    key = credentials_beside(path) / KEY_NAME
    if not may_replace:
        if user and user != SAMPLE_USER:
            raise ConfigError([f"{path} is for an account already: nothing was written. {OVERWRITE}"])
        if os.path.lexists(key):
            raise ConfigError([f"{key} is there already: nothing was written. {OVERWRITE}"])
    return text, base_url


def _sample() -> str:
    """Return the commented configuration that comes with syncd."""
    packaged = files("syncd") / "config.toml"
    where = packaged if packaged.is_file() else Path(__file__).parents[2] / "config.toml"  # of a checkout
    return where.read_text("utf-8")


def _places(path: Path, before: str | None) -> dict[tuple[str, str], str]:
    """Return where database and socket are to be: for a configuration that no unit reads, beside it.

    In such a one that is there `before`, only the sample's own places are replaced, if this user cannot use
    them.
    """
    values = {
        ("database", "url"): f"sqlite:///{path.with_suffix('.db')}",
        ("control", "socket"): f"{path.with_suffix('.sock')}",
    }
    if typed.unit(path):
        values = {
            ("database", "url"): f"sqlite:////var/lib/syncd/{path.stem}/syncd.db",
            ("control", "socket"): f"/run/syncd/{path.stem}/syncd.sock",
        }
        return values if not before and path.stem != "config" else {}
    if not before:
        return values
    samples = {("database", "url"): DatabaseConfig().url, ("control", "socket"): f"{ControlConfig().socket}"}
    return {
        (table, key): value
        for (table, key), value in values.items()
        if f"{key} = {quoted(samples[table, key])}" in before.splitlines()
        and not os.access(Path(samples[table, key].removeprefix("sqlite:///")).parent, os.W_OK)
    }


def _values(options: Options, user: str, attendees: AttendeeMode | None) -> dict[tuple[str, str], str]:
    """Return the other values for the configuration, by table and key."""
    values = {("billetweb", "user"): user}
    if options.database is not None:
        values["database", "url"] = options.database
    if options.base_url is not None:
        values["billetweb", "base_url"] = options.base_url
    if attendees is not None:
        values["sync", "attendees"] = attendees
    return values


def _filled_in(text: str, values: Mapping[tuple[str, str], str]) -> str:
    """Return a configuration with these values and everything else unchanged."""
    for (table, key), value in values.items():
        lines, at = text.removesuffix("\n").split("\n"), key_lines(text)
        line = f"{key} = {quoted(value)}"
        if (table, key) in at:
            lines[at[table, key] - 1] = line
        elif (table,) in at:
            lines.insert(at[table,], line)
        else:
            lines += ["", f"[{table}]", line]
        text = "\n".join(lines) + "\n"
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        document = {}
    if any(document.get(table, {}).get(key) != value for (table, key), value in values.items()):
        raise ConfigError(
            ["the configuration is written in a way that cannot be changed here: edit it by hand"]
        )
    return text


def _make_folder(path: Path, mode: int) -> None:
    """Create a folder and its missing parents: whatever the umask, no other user may write there."""
    before = os.umask(0o022)
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    finally:
        os.umask(before)


def _put(path: Path, text: str, mode: int, *, group: str | None = None) -> None:
    """Write a file in one step; readable for the group too if this is root and the group exists."""
    gid = None
    if group is not None and os.geteuid() == 0:
        with suppress(KeyError):
            gid = grp.getgrnam(group).gr_gid
    try:
        _make_folder(path.parent, 0o700 if path.name == KEY_NAME else 0o755)
        replace(path, text.encode(), mode if gid is not None else mode & 0o700)
        if gid is not None:
            os.chown(path, 0, gid, follow_symlinks=False)
    except NotReplaced as error:
        raise ConfigError([f"cannot write {path}: {error}"]) from None
    except OSError as error:
        hint = "; run it as root, or give --config a path of your own" if error.errno == errno.EACCES else ""
        raise ConfigError([f"cannot write {path}: {error.strerror}{hint}"]) from None


def _socket(config: str) -> Path:
    """Return the socket of a configuration."""
    control = tomllib.loads(config).get("control")
    named = control.get("socket") if isinstance(control, dict) else None
    return Path(f"{named or ControlConfig().socket}")


def _next(path: Path, socket: Path, *, runs: bool) -> str:
    """Return the next commands, a line each; a daemon that already `runs` must take the new key."""
    status = typed.syncctl("status", socket)
    if unit := typed.unit(path):
        restart = f"\n  systemctl restart {unit}" if runs else ""
        return f"  systemctl enable --now {unit}{restart}\n  {status}"
    check, run = typed.syncd("check --online", path), typed.syncd("run", path)
    first = f"  {check}\n  {run}\n\nand in another terminal:\n  {status}"
    if not runs:
        return first
    reload, again = typed.syncctl("reload", socket), typed.syncctl("run-now", socket)
    return f"  {reload}\n  {again}\n\nor, where it does not run yet:\n{first}"


def _say(line: str) -> None:
    write(f"{harmless(line)}\n")
