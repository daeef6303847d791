"""The configuration: one TOML file and the credentials, read and checked in one go.

`load` gives a `Config` of frozen records, one per table, whose field names are the keys. The annotation of
each field ends in its reader (see `readers.py`), with the limits that it is to hold.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from syncd import consistency, readers, typed
from syncd.credentials import Credentials
from syncd.model import AttendeeMode, Event, FeedFormat
from syncd.text import alike
from syncd.toml import Problems, parse


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

    user: Annotated[str, readers.user_or_none]
    key_file: Annotated[Path | None, readers.path] = None
    base_url: Annotated[str, readers.web_address] = "https://www.billetweb.fr/api"
    # Billetweb refuses above 100 a minute; the rest is left to other users of the account.
    requests_per_minute: Annotated[int, readers.whole, 1, 100] = 60
    concurrency: Annotated[int, readers.whole, 1, 16] = 4
    timeout: Annotated[timedelta, readers.duration, "1s", "5m"] = timedelta(seconds=30)


class SyncConfig(Struct, frozen=True, kw_only=True):
    """When runs happen and what they cover."""

    # How short it may be is an argument of `load`; a long one is for whoever asks for each run by hand.
    interval: Annotated[timedelta, readers.duration, "0s", "3653d"] = timedelta(minutes=15)
    jitter: Annotated[timedelta, readers.duration, "0s", "3653d"] = timedelta(0)
    run_on_start: Annotated[bool, readers.flag] = True
    run_timeout: Annotated[timedelta, readers.duration, "5s", "24h"] = timedelta(minutes=10)
    keep_past: Annotated[timedelta, readers.duration, "0s", "3653d"] = timedelta(days=30)  # at most ten years
    full_every: Annotated[timedelta, readers.duration, "1m", "30d"] = timedelta(hours=24)
    # A year and some.
    keep_changes: Annotated[timedelta, readers.duration, "1d", "3653d"] = timedelta(days=400)
    attendees: Annotated[AttendeeMode, readers.choice, "none", "minimal", "full"] = "none"
    count_carts: Annotated[bool, readers.flag] = False
    not_places: Annotated[tuple[str, ...], readers.texts] = ()


class DatabaseConfig(Struct, frozen=True, kw_only=True):
    """The database, as a SQLAlchemy URL of a SQLite file or a PostgreSQL server."""

    url: Annotated[str, readers.database] = "sqlite:////var/lib/syncd/syncd.db"


class ControlConfig(Struct, frozen=True, kw_only=True):
    """The control socket: where it is and who may use it. `group` None is the daemon's own group."""

    socket: Annotated[Path, readers.socket] = typed.USUAL_SOCKET
    mode: Annotated[int, readers.mode] = 0o660
    group: Annotated[str | None, readers.text] = None


class LogConfig(Struct, frozen=True, kw_only=True):
    """How much is logged and in which form."""

    level: Annotated[str, readers.choice, "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Annotated[str, readers.choice, "auto", "journal", "text", "json"] = "auto"


class HeartbeatConfig(Struct, frozen=True, kw_only=True):
    """The address to ping after each run, without a slash at its end; None pings nobody."""

    url: Annotated[str | None, readers.web_address] = None


class MetricsConfig(Struct, frozen=True, kw_only=True):
    """What the metrics tell. `events`: of each live event, where there are no more of them than so many."""

    # Three series an event are no burden for Prometheus up to there; a switch, too: 0 tells of none.
    events: Annotated[int, readers.whole, 0, 10_000] = 500


EVENT_COLUMNS = (
    *(name for name in Event.__struct_fields__ if name not in ("tags", "extra")),
    "availability_at",
)
"""What a site's own columns may be set to."""
KEY_COLUMNS = ("id", "ext_id", "name", "shop_url")
"""What its rows may be found by."""


class PublishConfig(Struct, frozen=True, kw_only=True):
    """A table of a site's own that is kept true.

    `match`: the site's key column, with the columns of an event that may stand in it. `set`: the site's
    columns, with the column of an event that each gets. `database` "" is that of `database.url`.
    """

    name: Annotated[str, readers.name] = ""
    table: Annotated[str, readers.table]
    match: Annotated[dict[str, tuple[str, ...]], readers.matched, *KEY_COLUMNS]
    set: Annotated[dict[str, str], readers.assigned, *EVENT_COLUMNS]
    unless: Annotated[str | None, readers.text] = None
    touch: Annotated[str | None, readers.text] = None
    database: Annotated[str, readers.other_database] = ""


TOLD = (
    *("event.new", "event.changed", "event.full", "event.reopened", "event.vanished"),
    *("order.paid", "order.refunded", "run.failed", "run.recovered", "doubt"),
)
"""What an endpoint may be told."""


class FeedConfig(Struct, frozen=True, kw_only=True):
    """A file that the events are written to for others; with `tags`, those that have one of them alone."""

    path: Annotated[Path, readers.absolute]
    format: Annotated[FeedFormat, readers.choice, "json", "jsonld", "ics", "csv"]
    mode: Annotated[int, readers.mode] = 0o644  # a web server is another user
    tags: Annotated[tuple[str, ...], readers.texts] = ()


class WebhookConfig(Struct, frozen=True, kw_only=True):
    """An endpoint that is told what happens; with `events`, of those alone, by id or `ext_id`.

    `private`: it may be at an address of a private network, or of this machine.
    """

    name: Annotated[str, readers.name]
    url: Annotated[str, readers.endpoint]
    secret_file: Annotated[Path | None, readers.path] = None
    on: Annotated[tuple[str, ...], readers.kinds, *TOLD]
    events: Annotated[tuple[str, ...], readers.event_names] = ()
    private: Annotated[bool, readers.flag] = False


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration. `path` is its file, as it was given; `key_from` where the key is.

    `webhook_secrets`: by the name of an endpoint, what signs what it is told. `credentials`: those that were
    used, by their names, and where they are.
    """

    billetweb: BilletwebConfig
    sync: SyncConfig
    database: DatabaseConfig
    control: ControlConfig
    log: LogConfig
    heartbeat: HeartbeatConfig
    key: Secret
    key_from: str
    path: Path
    metrics: MetricsConfig = MetricsConfig()
    publish: tuple[PublishConfig, ...] = ()
    feeds: tuple[FeedConfig, ...] = ()
    webhooks: tuple[WebhookConfig, ...] = ()
    webhook_secrets: Mapping[str, tuple[Secret, ...]] = {}
    credentials: Mapping[str, Path] = {}


def differing(before: Config, now: Config) -> list[str]:
    """Return what differs between two configurations: paths of keys, names of lists, and the API key."""
    found = []
    for table in fields(Config):
        old, new = getattr(before, table.name), getattr(now, table.name)
        if isinstance(old, Struct):
            keys = (key.name for key in fields(old) if getattr(old, key.name) != getattr(new, key.name))
            found += [f"{table.name}.{key}" for key in keys]
        elif old != new and table.name not in _PLACES:
            found.append(_SECRETS.get(table.name, f"[[{table.name}]]"))
    return found


_SECRETS = {"key": "API key", "webhook_secrets": "secrets of [[webhooks]]"}
_PLACES = ("path", "key_from", "credentials")
"""Where a setting stands, which is none."""


_TABLES: Mapping[str, type[Struct]] = {
    table.name: table.type for table in fields(Config) if hasattr(table.type, "__struct_config__")
}
_LISTS: Mapping[str, type[Struct]] = {
    table.name: get_args(table.type)[0] for table in fields(Config) if get_origin(table.type) is tuple
}
"""Those of which there may be several, each written with two brackets."""


def load(
    path: Path, environ: Mapping[str, str], *, minimum_interval: timedelta = timedelta(seconds=10)
) -> Config:
    """Return the configuration in the file at `path`, completed by the credentials that `environ` leads to.

    Raises ConfigError with every problem at once; only a file that cannot be read or is not TOML is reported
    alone, for then nothing more is certain. Opens nothing but the file and the credentials.
    """
    document, lines = parse(path)
    problems = Problems(path, lines)
    credentials = Credentials(path, environ)
    tables = _tables(document, problems)
    values = {name: _read_table(name, _TABLES[name], table, problems) for name, table in tables.items()}
    lists = {name: _read_list(name, document.get(name, []), problems) for name in _LISTS}
    consistency.check_times(values["sync"], minimum_interval, problems)
    _take_user(values["billetweb"], tables["billetweb"], path, environ, problems)
    _take_database(values["database"], credentials, problems)
    _complete_publish(lists["publish"], credentials, problems)
    consistency.check_columns(lists["publish"], problems)
    consistency.check_kinds(lists["webhooks"], values["sync"], problems)
    consistency.check_paths(path, values, lists, credentials.folder, problems)
    secrets = _find_secrets(lists["webhooks"], path.parent, credentials, problems)
    key, key_from = _find_key(values["billetweb"], path, environ, credentials, problems)
    problems.raise_any()
    records: dict[str, Any] = {name: record(**values[name]) for name, record in _TABLES.items()}
    many: dict[str, Any] = {name: tuple(_LISTS[name](**row) for row in rows) for name, rows in lists.items()}
    return Config(
        **records,
        **many,
        webhook_secrets=secrets,
        key=Secret(key),
        key_from=key_from,
        credentials=credentials.used,
        path=path,
    )


KEY_VARIABLE = "$BILLETWEB_KEY"
_WHERE_KEYS_GO = f'set {KEY_VARIABLE}, give the systemd credential "billetweb-key", or use billetweb.key_file'


def _tables(document: dict[str, object], problems: Problems) -> dict[str, dict[str, object]]:
    """Return the known tables, empty where absent or refused."""
    tables: dict[str, dict[str, object]] = {name: {} for name in _TABLES}
    for name, value in document.items():
        with problems.of(name):
            if name in _LISTS:
                continue
            if name not in _TABLES:
                raise ValueError(_unknown(name, "", [*_TABLES, *_LISTS]))
            if not isinstance(value, dict):
                raise readers.must(f"be a table, written [{name}]", value, is_secret=True)
            tables[name] = value
    return tables


def _read_list(name: str, tables: object, problems: Problems) -> list[dict[str, Any]]:
    """Return the values of each record of a list, as far as they are good."""
    found: list[dict[str, Any]] = []
    with problems.of(name):
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise readers.must(f"be tables, each begun with [[{name}]]", tables, is_secret=True)
        for number, table in enumerate(tables, 1):
            found.append(_read_table(f"{name}[{number}]", _LISTS[name], table, problems))
            for field in fields(_LISTS[name]):
                with problems.of(f"{name}[{number}]", field.name):
                    if field.required and field.name not in table:
                        raise ValueError("missing")
    return found


def _read_table(
    name: str, record: type[Struct], table: dict[str, object], problems: Problems
) -> dict[str, Any]:
    """Return the values of one record with the defaults filled in; refused ones are left out."""
    known = {field.name: field for field in fields(record)}
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
    elsewhere = (f"{other}.{name}" for other, record in _TABLES.items() if name in record.__struct_fields__)
    # A secret itself is no slip for `secret_file`, though two thirds of the letters are the same.
    if meant := alike(name, known, likeness=0.75) or next(elsewhere, None):
        return f'unknown; did you mean "{meant}"?'
    if not re.search("key|pass|pwd|secret|token", name, re.IGNORECASE):
        return "unknown"
    if table.startswith("publish"):
        return 'no password is read from here: put the whole URL into the systemd credential "publish-NAME"'
    if table.startswith("webhooks"):
        return 'no secret is read from here: use secret_file, or the systemd credential "webhook-NAME"'
    if table == "database":
        return 'no password is read from here: put the whole URL into the systemd credential "database-url"'
    return f"no key is read from here: {_WHERE_KEYS_GO}"


def _take_user(
    values: dict[str, Any],
    table: dict[str, object],
    path: Path,
    environ: Mapping[str, str],
    problems: Problems,
) -> None:
    if "BILLETWEB_USER" in environ:
        with problems.of(outside="$BILLETWEB_USER"):
            values["user"] = readers.user(environ["BILLETWEB_USER"].strip())
    elif table.get("user", "") == "":
        with problems.of("billetweb", "user"):
            raise ValueError(
                f"missing: `{typed.syncd('setup', path)}` asks for it; or write the account number here"
            )


def _take_database(values: dict[str, Any], credentials: Credentials, problems: Problems) -> None:
    if "database-url" in credentials:
        with problems.of(outside=credentials.place("database-url")):
            values["url"] = readers.database(credentials.text("database-url"))


_TAKEN = '"{}" is another one\'s name already: give each its own with `name = "…"`'


def _complete_publish(rows: list[dict[str, Any]], credentials: Credentials, problems: Problems) -> None:
    """Give each target its name and what its credential says; no two have one name."""
    names: set[str] = set()
    for number, values in enumerate(rows, 1):
        with problems.of(f"publish[{number}]", "name"):
            if not values.get("name"):
                if "name" not in values or "table" not in values:  # refused, and noted, already
                    continue
                try:
                    values["name"] = readers.name(values["table"].rpartition(".")[2])
                except ValueError:
                    raise ValueError('missing, and the table\'s cannot be one: give `name = "…"`') from None
            name = values["name"]
            if name in names:
                raise ValueError(_TAKEN.format(name))
            names.add(name)
            if (credential := f"publish-{name}") in credentials:
                with problems.of(outside=credentials.place(credential)):
                    values["database"] = readers.other_database(credentials.text(credential))


def _find_secrets(
    rows: list[dict[str, Any]], folder: Path, credentials: Credentials, problems: Problems
) -> dict[str, tuple[Secret, ...]]:
    """Return what signs for each endpoint, by its name: of its credential, else of its file."""
    found: dict[str, tuple[Secret, ...]] = {}
    for number, row in enumerate(rows, 1):
        if "name" not in row:  # refused, and noted, already
            continue
        name, table = row["name"], f"webhooks[{number}]"
        with problems.of(table, "name"):
            if name in found:
                raise ValueError(_TAKEN.format(name))
            found[name] = ()
            if (credential := f"webhook-{name}") in credentials:
                with problems.of(outside=credentials.place(credential)):
                    found[name] = _secrets(credentials.text(credential))
            elif row.get("secret_file"):
                with problems.of(table, "secret_file"):
                    found[name] = _secrets(readers.short_text(folder / row["secret_file"], private=True))
            elif "secret_file" in row:  # otherwise it was refused too
                raise ValueError(
                    f'no secret: give the systemd credential "webhook-{name}", or use webhooks.secret_file'
                )
    return found


def _secrets(text: str) -> tuple[Secret, ...]:
    return tuple(map(Secret, readers.signing_secrets(text)))


def _find_key(
    values: dict[str, Any],
    path: Path,
    environ: Mapping[str, str],
    credentials: Credentials,
    problems: Problems,
) -> tuple[str, str]:
    """Return the API key from the first place that has one, and that place; "" where that was noted."""
    user = values.get("user")
    if "BILLETWEB_KEY" in environ:
        with problems.of(outside=KEY_VARIABLE):
            return readers.key(environ["BILLETWEB_KEY"], user), KEY_VARIABLE
    elif "billetweb-key" in credentials:
        with problems.of(outside=credentials.place("billetweb-key")):
            key = readers.key(credentials.text("billetweb-key"), user)
            return key, f"{credentials.used['billetweb-key']}"
    elif values.get("key_file"):
        with problems.of("billetweb", "key_file"):
            file = path.parent / values["key_file"]
            return readers.key(readers.short_text(file, private=True), user), f"{file}"
    elif "key_file" in values:  # otherwise it was refused, and noted, already
        with problems.of(outside="API key"):
            raise ValueError(f"missing: {_where_the_key_goes(path, credentials.beside)}")
    return "", ""


def _where_the_key_goes(path: Path, folder: Path) -> str:
    """Return what to do where no key was found; a credential's file would be in that folder."""
    is_closed = os.path.lexists(folder) and not os.access(folder, os.X_OK)
    hint = f"; this user may not look into {folder}" if is_closed else ""
    return (
        f"`{typed.syncd('setup', path)}` writes it into {folder / 'billetweb-key'}; or {_WHERE_KEYS_GO}{hint}"
    )
