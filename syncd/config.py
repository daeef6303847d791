"""The configuration: one TOML file and the credentials, read and checked in one go.

`load` gives a `Config` of frozen records, one per table, whose field names are the keys. The annotation of
each field ends in its *reader*: a function from the TOML value to the field's value, which raises ValueError
saying what the value must be. A reader shows the wrong value only where nobody would put a secret.

Leans on tomllib for the syntax. Line numbers come from a small scanner of our own: tomllib gives none.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from syncd.errors import ConfigError
from syncd.model import AttendeeMode
from syncd.text import parse_duration


class Secret:
    """A text that shows itself as `***`; `value` gives it. Not a record, so that no encoder writes it out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @property
    def value(self) -> str:
        """The text itself."""
        return self._value

    def digest(self) -> str:
        """Return a text by which this one is known again, and which does not tell it."""
        return self._salted(os.urandom(16))

    def is_of(self, digest: str) -> bool:
        """Tell whether a digest was made of this text."""
        try:
            return self._salted(bytes.fromhex(digest.partition("$")[0])) == digest
        except ValueError:
            return False

    def _salted(self, salt: bytes) -> str:
        return f"{salt.hex()}${hashlib.blake2b(self._value.encode(), salt=salt).hexdigest()}"

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class BilletwebConfig(Struct, frozen=True, kw_only=True):
    """Account and manners towards Billetweb. `base_url` has no slash at its end."""

    user: Annotated[str, _user]
    key_file: Annotated[Path | None, _path] = None
    base_url: Annotated[str, _web_address] = "https://www.billetweb.fr/api"
    # Billetweb refuses above 100 a minute; the rest is left to other users of the account.
    requests_per_minute: Annotated[int, _whole, 1, 100] = 60
    concurrency: Annotated[int, _whole, 1, 16] = 4
    timeout: Annotated[timedelta, _duration, "1s", "5m"] = timedelta(seconds=30)


class SyncConfig(Struct, frozen=True, kw_only=True):
    """When runs happen and what they cover."""

    # How short it may be is an argument of `load`; after more than a week nothing is a mirror any more.
    interval: Annotated[timedelta, _duration, "0s", "7d"] = timedelta(minutes=15)
    jitter: Annotated[timedelta, _duration, "0s", "7d"] = timedelta(0)
    run_on_start: Annotated[bool, _flag] = True
    run_timeout: Annotated[timedelta, _duration, "5s", "24h"] = timedelta(minutes=10)
    keep_past: Annotated[timedelta, _duration, "0s", "3653d"] = timedelta(days=30)  # at most ten years
    full_every: Annotated[timedelta, _duration, "1m", "30d"] = timedelta(hours=24)
    keep_changes: Annotated[timedelta, _duration, "1d", "3653d"] = timedelta(days=400)  # a year and some
    attendees: Annotated[AttendeeMode, _choice, "none", "minimal", "full"] = "none"
    count_carts: Annotated[bool, _flag] = False
    not_places: Annotated[tuple[str, ...], _texts] = ()


class DatabaseConfig(Struct, frozen=True, kw_only=True):
    """The database, as a SQLAlchemy URL of a SQLite file or a PostgreSQL server."""

    url: Annotated[str, _database] = "sqlite:////var/lib/syncd/syncd.db"


class ControlConfig(Struct, frozen=True, kw_only=True):
    """The control socket: where it is and who may use it. `group` None is the daemon's own group."""

    socket: Annotated[Path, _socket] = Path("/run/syncd/syncd.sock")
    mode: Annotated[int, _mode] = 0o660
    group: Annotated[str | None, _text] = None


class LogConfig(Struct, frozen=True, kw_only=True):
    """How much is logged and in which form."""

    level: Annotated[str, _choice, "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Annotated[str, _choice, "auto", "journal", "text", "json"] = "auto"


class HeartbeatConfig(Struct, frozen=True, kw_only=True):
    """The address to ping after each run, without a slash at its end; None pings nobody."""

    url: Annotated[str | None, _web_address] = None


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration. `path` is the file it came from, as it was given."""

    billetweb: BilletwebConfig
    sync: SyncConfig
    database: DatabaseConfig
    control: ControlConfig
    log: LogConfig
    heartbeat: HeartbeatConfig
    key: Secret
    path: Path


_TABLES: Mapping[str, type[Struct]] = {
    "billetweb": BilletwebConfig,
    "sync": SyncConfig,
    "database": DatabaseConfig,
    "control": ControlConfig,
    "log": LogConfig,
    "heartbeat": HeartbeatConfig,
}


def load(
    path: Path, environ: Mapping[str, str], *, minimum_interval: timedelta = timedelta(seconds=10)
) -> Config:
    """Return the configuration in the file at `path`, completed by the credentials that `environ` leads to.

    Raises ConfigError with every problem at once; only a file that cannot be read or is not TOML is reported
    alone, for then nothing more is certain. Opens nothing but the file and the credentials.
    """
    document, lines = _parse(path)
    problems = _Problems(path, lines)
    tables = _tables(document, problems)
    values = {name: _read_table(name, table, problems) for name, table in tables.items()}
    _check_times(values["sync"], minimum_interval, problems)
    _take_user(values["billetweb"], tables["billetweb"], environ, problems)
    _take_database(values["database"], environ, problems)
    key = _find_key(values["billetweb"], path.parent, environ, problems)
    problems.raise_any()
    records: dict[str, Any] = {name: record(**values[name]) for name, record in _TABLES.items()}
    return Config(**records, key=Secret(key), path=path)


class _Problems:
    """The problems found so far, a line of text each."""

    def __init__(self, path: Path, lines: Mapping[tuple[str, ...], int]) -> None:
        self._path = path
        self._lines = lines
        self._found: list[tuple[int, str]] = []

    @contextmanager
    def of(self, *key: str, outside: str = "") -> Iterator[None]:
        """Note what is raised inside as a problem of that table or key, or of a source outside the file."""
        try:
            yield
        except (OSError, ValueError) as error:
            line = self._lines.get(key) or self._lines.get(key[:1], 0)
            place = f"{self._path}:{line}" if line else f"{self._path}"
            source = outside or f"{place}: {'.'.join(key)}"
            self._found.append((line or sys.maxsize, f"{source}: {_reason(error)}"))

    def raise_any(self) -> None:
        """Raise ConfigError if there are problems, in the order of the file's lines."""
        if self._found:
            raise ConfigError([_one_line(text) for _, text in sorted(self._found, key=itemgetter(0))])


def _parse(path: Path) -> tuple[dict[str, object], dict[tuple[str, ...], int]]:
    try:
        text = _content(path, 1 << 20).decode("utf-8-sig")  # the commented sample has 10 KB
        return tomllib.loads(text), _key_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        at = re.search(r"\(at line (\d+)", str(error))
        place = f"{path}:{at[1]}" if at else f"{path}"
        raise ConfigError([_one_line(f"{place}: cannot be read: {_reason(error)}")]) from None


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each table and each key in valid TOML, by letting tomllib read single statements."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    statement, start = "", 1
    for number, row in enumerate(text.split("\n"), 1):
        statement += row + "\n"
        is_header = statement.lstrip().startswith("[")
        with suppress(tomllib.TOMLDecodeError):  # raised while a value goes on in the next line
            for path in _paths(tomllib.loads(statement), () if is_header else table):
                lines.setdefault(path, start)
                table = path if is_header else table
            statement, start = "", number + 1
    return lines


def _paths(found: dict[str, object], table: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, value in found.items():
        yield (*table, name)
        if isinstance(value, dict):
            yield from ((*table, name, inner) for inner in value)


_WHERE_KEYS_GO = 'set $BILLETWEB_KEY, give the systemd credential "billetweb-key", or use billetweb.key_file'


def _tables(document: dict[str, object], problems: _Problems) -> dict[str, dict[str, object]]:
    """Return the known tables, empty where absent or refused."""
    tables: dict[str, dict[str, object]] = {name: {} for name in _TABLES}
    for name, value in document.items():
        with problems.of(name):
            if name in ("publish", "webhooks"):
                raise ValueError("not supported by this version of syncd yet")
            if name not in _TABLES:
                raise ValueError(_unknown(name, "", _TABLES))
            if not isinstance(value, dict):
                raise _must(f"be a table, written [{name}]", value)
            tables[name] = value
    return tables


def _read_table(name: str, table: dict[str, object], problems: _Problems) -> dict[str, Any]:
    """Return the values of one record with the defaults filled in; refused ones are left out."""
    known = {field.name: field for field in fields(_TABLES[name])}
    values = {key: field.default for key, field in known.items() if field.default is not NODEFAULT}
    for key, value in table.items():
        with problems.of(name, key):
            if key not in known:
                raise ValueError(_unknown(key, name, known))
            values.pop(key, None)
            reader, *limits = known[key].type.__metadata__
            values[key] = reader(value, *limits)
    return values


def _unknown(name: str, table: str, known: Iterable[str]) -> str:
    """Return what to say of an unknown name: where its secret belongs, or what was probably meant."""
    elsewhere = [f"{other}.{name}" for other, record in _TABLES.items() if name in record.__struct_fields__]
    if meant := get_close_matches(name, known, n=1, cutoff=0.75) or elsewhere:
        return f'unknown; did you mean "{meant[0]}"?'
    if not re.search("key|pass|pwd|secret|token", name, re.IGNORECASE):
        return "unknown"
    if table == "database":
        return 'no password is read from here: put the whole URL into the systemd credential "database-url"'
    return f"no key is read from here: {_WHERE_KEYS_GO}"


def _check_times(sync: dict[str, Any], minimum_interval: timedelta, problems: _Problems) -> None:
    interval, jitter = sync.get("interval"), sync.get("jitter", timedelta(0))
    if interval is None:
        return
    with problems.of("sync", "interval"):
        if interval < minimum_interval:
            least, given = minimum_interval.total_seconds(), interval.total_seconds()
            raise _must(f"be at least {least:g}s", f"{given:g}s")
    with problems.of("sync", "jitter"):
        if jitter * 2 > interval:
            raise ValueError("must be at most half of sync.interval")


def _take_user(
    values: dict[str, Any], table: dict[str, object], environ: Mapping[str, str], problems: _Problems
) -> None:
    if "BILLETWEB_USER" in environ:
        with problems.of(outside="$BILLETWEB_USER"):
            values["user"] = _user(environ["BILLETWEB_USER"].strip())
    elif "user" not in table:
        with problems.of("billetweb", "user"):
            raise ValueError("missing: give the account number here or in $BILLETWEB_USER")


def _take_database(values: dict[str, Any], environ: Mapping[str, str], problems: _Problems) -> None:
    if credential := _credential("database-url", environ):
        with problems.of(outside='systemd credential "database-url"'):
            values["url"] = _database(_short_text(credential))


def _find_key(values: dict[str, Any], folder: Path, environ: Mapping[str, str], problems: _Problems) -> str:
    """Return the API key from the first place that has one, "" where that was noted as a problem."""
    user = values.get("user")
    if "BILLETWEB_KEY" in environ:
        with problems.of(outside="$BILLETWEB_KEY"):
            return _key(environ["BILLETWEB_KEY"], user)
    elif credential := _credential("billetweb-key", environ):
        with problems.of(outside='systemd credential "billetweb-key"'):
            return _key(_short_text(credential), user)
    elif values.get("key_file"):
        with problems.of("billetweb", "key_file"):
            return _key(_short_text(folder / values["key_file"], private=True), user)
    elif "key_file" in values:  # otherwise it was refused, and noted, already
        with problems.of(outside="API key"):
            raise ValueError(f"missing: {_WHERE_KEYS_GO}")
    return ""


def _credential(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return a systemd credential's file, if there is one. Source: systemd.exec(5), LoadCredential.

    One that holds a line break alone stands for none: the unit sets it where there is nothing to load.
    """
    path = Path(environ.get("CREDENTIALS_DIRECTORY") or os.devnull, name)
    try:
        return path if path.stat().st_size > 1 else None
    except OSError:  # none, or a closed folder
        return None


def _short_text(path: Path, *, private: bool = False) -> str:
    """Return the text of a small regular file. Raises OSError, and ValueError that shows nothing of it."""
    content = _content(path, 4096, private=private)  # a key has dozens of bytes, a URL hundreds
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("that file is not UTF-8 text") from None


def _content(path: Path, most_bytes: int, *, private: bool = False) -> bytes:
    """Return what a regular file holds. Raises OSError, and ValueError where it is none, or too long."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # a pipe would be waited for, a device may never end
        raise ValueError("that is not a regular file")
    if private and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ValueError("every user of this machine can open that file: run chmod o-rw on it")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"that file is longer than {most_bytes} bytes")
    return content


def _key(text: str, user: str | None) -> str:
    """Return the key: alone, as `user:key`, or as Billetweb's page prints both for a header, in Base64.

    Nothing of it is shown where it is refused, for the key may stand anywhere in it.
    """
    key = text.strip()
    if not key:
        raise ValueError("is empty")
    of, separator, rest = _decoded(re.sub(r"(?i)^basic\s+", "", key)).partition(":")
    if separator and of.isascii() and of.isdigit():
        if user and of != user:
            raise ValueError("is the key of another user than billetweb.user says: one of both is wrong")
        key = rest.strip()
    if len(key) < 4 or not key.isascii() or not key.isprintable() or " " in key:  # noqa: PLR2004 - see redact.py
        raise ValueError("is no API key: those are one word of at least 4 ASCII characters")
    return key


def _decoded(text: str) -> str:
    """Return a text that was written in Base64 in clear, any other one as it is."""
    try:
        clear = base64.b64decode(text, validate=True).decode("ascii")
    except ValueError:
        return text
    return clear if ":" in clear else text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")  # noqa: TRY004 - as every reader does
    if not value.strip() or not value.isprintable():
        raise ValueError("must be one line of text, and not an empty one")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _must('be a list of texts, such as ["7003", "Repas*"]', value)
    return tuple(_text(item) for item in value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _must("be true or false", value)
    return value


def _whole(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _must(f"be a whole number from {least} to {most}", value)
    return value


def _choice(value: object, *allowed: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise _must("be one of " + ", ".join(f'"{choice}"' for choice in allowed), value)
    return value


def _duration(value: object, least: str, most: str) -> timedelta:
    if not isinstance(value, str):
        raise _must('be a duration in quotes, such as "15m"', value)
    duration = parse_duration(value)
    if duration < parse_duration(least):
        raise _must(f"be at least {least}", value)
    if duration > parse_duration(most):
        raise _must(f"be at most {most}", value)
    return duration


def _user(value: object) -> str:
    user = _text(value)
    if not (user.isascii() and user.isdigit()):  # not shown: the key may stand here by mistake
        raise ValueError("must be the account number, digits only")
    return user


def _path(value: object) -> Path:
    return Path(_text(value))


def _socket(value: object) -> Path:
    path = _path(value)
    if not path.is_absolute() or len(os.fsencode(path)) > 107:  # noqa: PLR2004 - unix(7): 108 with the NUL
        raise ValueError("must be an absolute path of at most 107 bytes")
    return path


def _mode(value: object) -> int:
    mode = int(value, 8) if isinstance(value, str) and re.fullmatch("0?[0-7]{3}", value) else 0
    if mode & 0o602 != 0o600:  # noqa: PLR2004 - chmod's own way of writing it
        raise _must('be octal like "0660", with read and write for the owner and no write for others', value)
    return mode


_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*|\[::1\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/[a-z0-9_.~!$&'()*+,;=:@%/-]*)?",
    re.IGNORECASE | re.ASCII,
)
_LOOPBACK = re.compile(r"localhost|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[::1\]", re.IGNORECASE)


def _web_address(value: object) -> str:
    """Return a web address without a slash at its end. Not shown when refused: it may hold a password."""
    parts = _ADDRESS.fullmatch(_text(value))
    if not parts or int(parts["port"] or 0) > 65_535:  # noqa: PLR2004 - the last port of TCP
        raise ValueError("must be an https address without user, password, query and fragment")
    if parts["scheme"].lower() == "http" and not _LOOPBACK.fullmatch(parts["host"]):
        raise ValueError("must be an https address: plain http is only for this machine itself")
    return parts[0].rstrip("/")


_POSTGRESQL = re.compile(
    r"postgresql(?:\+psycopg)?://"
    r"(?:[^\s:@/?#]+(?::[^\s:@/?#]*)?@)?(?:[^\s:@/?#\[\]]*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"/[^\s/?#]+(?:\?(?P<parameters>[^\s#]*))?",
    re.IGNORECASE,
)


def _database(value: object) -> str:
    """Return the URL of a SQLite file or a PostgreSQL database. Not shown when refused: for its password."""
    url = _text(value)
    if url.startswith("postgres"):
        return _postgresql(url)
    if not re.fullmatch("sqlite:///(?!:memory:$)[^?]+", url):
        raise ValueError(
            'must name a SQLite file, not memory, as "sqlite:////var/lib/syncd/syncd.db" does, or a database '
            'of PostgreSQL, as "postgresql://user@host/database" does'
        )
    return url


def _postgresql(url: str) -> str:
    parts = _POSTGRESQL.fullmatch(url)
    if not parts or int(parts["port"] or 0) > 65_535:  # noqa: PLR2004 - the last port of TCP
        raise ValueError(
            'must be as "postgresql://user:password@host:5432/database": an / @ : ? or # in one of these is '
            "written %2F %40 %3A %3F %23"
        )
    if re.search("password", parts["parameters"] or "", re.IGNORECASE):  # only there it is known to be one
        raise ValueError(
            'a password stands before the host, as in "postgresql://user:password@host/database"'
        )
    return url


def _must(what: str, value: object) -> ValueError:
    return ValueError(f"must {what}, not {_shown(value)}")


def _shown(value: object) -> str:
    """Return a value as it stands in the file, or what it is where that would be long."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else "a longer text"  # noqa: PLR2004 - fits a line
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value) if abs(value) < 1e15 else "a number that big"  # noqa: PLR2004 - str() has a limit
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a date or time"


def _reason(error: Exception) -> str:
    """Return what went wrong, without the path that OSError adds: the key may stand there by mistake."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
