"""Readers: functions from a value of the TOML file, or of a credential, to the value that a setting has.

Each raises ValueError saying what the value must be; it shows the wrong one only where nobody would put a
secret.
"""

import base64
import codecs
import os
import re
import stat
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

from syncd.text import alike, names_an_event, parse_duration


def short_text(path: Path, *, private: bool = False) -> str:
    """Return the text of a small regular file. Raises OSError, and ValueError that shows nothing of it."""
    found = content(path, 4096, private=private)  # a key has dozens of bytes, a URL hundreds
    return utf8(found).strip()


def utf8(content: bytes) -> str:
    """Return the text of a file, which may begin with a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(
                "that file is UTF-16, as some editors on Windows save it: save it as UTF-8"
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"that file is not UTF-8 text (at line {line})") from None


def content(path: Path, most_bytes: int, *, private: bool = False) -> bytes:
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


def key(text: str, user: str | None) -> str:
    """Return the key: alone, as `user:key`, or as Billetweb's page prints both for a header, in Base64.

    It may be in quotes, which no key holds, but a file of variables does. Nothing of it is shown where it is
    refused, for the key may stand anywhere in it.
    """
    key = text.strip()
    if key[:1] in ("'", '"') and key[1:].endswith(key[0]):
        key = key[1:-1].strip()
    if not key:
        raise ValueError("is empty")
    of, separator, rest = _decoded(re.sub(r"(?i)^(authorization:\s*)?basic\s+", "", key)).partition(":")
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
        padding = "=" * (-len(text) % 4)  # a double click does not take it along
        clear = base64.b64decode(text + padding, validate=True).decode("ascii")
    except ValueError:
        return text
    return clear if ":" in clear else text


def text(value: object) -> str:
    """Return a text of one line, not an empty one."""
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")  # noqa: TRY004 - as every reader does
    if not value.strip() or not value.isprintable():
        raise ValueError("must be one line of text, and not an empty one")
    return value


def texts(value: object) -> tuple[str, ...]:
    """Return a list of such texts."""
    if not isinstance(value, list):
        raise must('be a list of texts in quotes, such as ["one", "two"]', value)
    return tuple(text(item) for item in value)


def event_names(value: object) -> tuple[str, ...]:
    """Return a list of ids or `ext_id`s of events."""
    names = texts(value)
    for name in names:
        if not names_an_event(name):
            raise ValueError(f"{_shown(name)} is no event's id or ext_id (behind event= in its address)")
    return names


def flag(value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise must("be true or false", value)
    return value


def whole(value: object, least: int, most: int) -> int:
    """Return a whole number within limits."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise must(f"be a whole number from {least} to {most}", value)
    return value


def choice(value: object, *allowed: str) -> str:
    """Return one of the words that are allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise must("be one of " + ", ".join(f'"{choice}"' for choice in allowed), value)
    return value


def duration(value: object, least: str, most: str) -> timedelta:
    """Return a duration within limits."""
    if not isinstance(value, str):
        raise must('be a duration in quotes, such as "15m"', value)
    duration = parse_duration(value)
    if duration < parse_duration(least):
        raise must(f"be at least {least}", value)
    if duration > parse_duration(most):
        raise must(f"be at most {most}", value)
    return duration


def user(value: object) -> str:
    """Return an account number."""
    user = text(value)
    if not (user.isascii() and user.isdigit()):  # not shown: the key may stand here by mistake
        raise ValueError("must be digits only, such as 12345")
    return user


def user_or_none(value: object) -> str:
    """Return an account number, or "" where none was filled in yet."""
    return "" if value == "" else user(value)


def path(value: object) -> Path:
    """Return a path."""
    return Path(text(value))


def absolute(value: object) -> Path:
    """Return the absolute path of a file."""
    at = path(value)
    if not at.is_absolute() or not at.name:
        raise ValueError("must be the absolute path of a file")
    return at


def socket(value: object) -> Path:
    """Return the absolute path of a Unix socket."""
    at = path(value)
    if not at.is_absolute() or len(os.fsencode(at)) > 107:  # noqa: PLR2004 - unix(7): 108 with the NUL
        raise ValueError("must be an absolute path of at most 107 bytes")
    return at


def mode(value: object) -> int:
    """Return the mode of a socket or a file, which is written in octal."""
    mode = int(value, 8) if isinstance(value, str) and re.fullmatch("0?[0-7]{3}", value) else 0
    if mode & 0o602 != 0o600:  # noqa: PLR2004 - chmod's own way of writing it
        raise must(
            'be octal in quotes like "0640", with read and write for the owner, no write for others', value
        )
    return mode


_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*|\[::1\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/[a-z0-9_.~!$&'()*+,;=:@%/-]*)?",
    re.IGNORECASE | re.ASCII,
)
_LOOPBACK = re.compile(r"localhost|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[::1\]", re.IGNORECASE)


def web_address(value: object) -> str:
    """Return a web address without a slash at its end. Not shown when refused: it may hold a password."""
    parts = _ADDRESS.fullmatch(text(value))
    if not parts or int(parts["port"] or 0) > 65_535:  # noqa: PLR2004 - the last port of TCP
        raise ValueError("must be an https address without user, password, query and fragment")
    if parts["host"].replace(".", "").isdecimal():
        _check_ipv4(parts["host"])
    if parts["scheme"].lower() == "http" and not _LOOPBACK.fullmatch(parts["host"]):
        raise ValueError("must be an https address: plain http is only for this machine itself")
    return parts[0].rstrip("/")


def _check_ipv4(host: str) -> None:
    """Raise ValueError where a host of digits is no address as httpx takes one."""
    try:
        IPv4Address(host)
    except ValueError:
        raise ValueError("must name a host, or its address as four numbers from 0 to 255") from None


def endpoint(value: object) -> str:
    """Return a web address that is sent to as it stands, with its query. Not shown when refused, as above."""
    address, _, query = text(value).partition("?")
    web_address(address)
    if not re.fullmatch(r"[a-z0-9_.~!$&'()*+,;=:@%/?-]*", query, re.IGNORECASE | re.ASCII):
        raise ValueError("has characters in its query that are written with % and two digits there")
    return text(value)


def kinds(value: object, *allowed: str) -> tuple[str, ...]:
    """Return some of the words that are allowed, each once."""
    if not isinstance(value, list):
        raise must(f"be a list of some of {', '.join(allowed)}", value)
    if not value:
        raise ValueError(f"must name at least one of {', '.join(allowed)}")
    return tuple(dict.fromkeys(_among(word, allowed, "nothing that is told") for word in value))


def signing_secrets(text: str) -> list[str]:
    """Return the secrets that sign webhooks, one a line, at most two. Nothing of them is shown when refused.

    Their form is that of the Standard Webhooks specification: 24 to 64 bytes in Base64 behind `whsec_`.
    """
    secrets = text.split()
    if not 1 <= len(secrets) <= 2:  # noqa: PLR2004 - the one in use, and one that comes or goes
        raise ValueError("must hold one secret, or two while it is changed, each on its line")
    for secret in secrets:
        coded = secret.removeprefix("whsec_")
        try:
            length = len(base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True))
        except ValueError:
            length = 0
        if coded == secret or not 24 <= length <= 64:  # noqa: PLR2004 - see above
            raise ValueError(
                'holds no secret of the form "whsec_" and 24 to 64 bytes in Base64:'
                " `printf whsec_; head -c 32 /dev/urandom | base64` makes one"
            )
    return secrets


PRISMA = (
    *("schema", "connection_limit", "pool_timeout", "pgbouncer", "socket_timeout", "statement_cache_size"),
    *("sslaccept", "sslidentity"),
)
"""Parameters of Prisma's own, which libpq refuses (prisma.io, "PostgreSQL database connector")."""


def database(value: object, *, others: str = "") -> str:
    """Return the URL of a SQLite file or a PostgreSQL database. Not shown when refused: for its password.

    A PostgreSQL URL may be one of Prisma's or Heroku's.
    """
    url = text(value)
    if url.startswith("postgres"):
        return _postgresql(_of_prisma(url))
    if url.startswith("file:"):
        raise ValueError('is written as Prisma does: write "sqlite:///" and the absolute path of the file')
    if not re.fullmatch("sqlite:///(?!:memory:$)[^?]+", url):
        raise ValueError(
            'must be "sqlite:///" and the path of a file, as in "sqlite:////var/lib/syncd/syncd.db", or name '
            f'a database of PostgreSQL, as in "postgresql://user@host/database"{others}'
        )
    path = url.removeprefix("sqlite:///")
    # Only what may be a slip is looked at: what is wrong with the file itself is told where it is opened.
    if not path.startswith("/") and _is_folder(Path("/", path).parent) and not _is_folder(Path(path).parent):
        raise ValueError(f'is a path from this folder on; did you mean "sqlite:////{path}"?')
    return url


def _is_folder(path: Path) -> bool:
    """Tell whether that is a folder, as far as this user can see."""
    return os.path.isdir(path)  # noqa: PTH112  # whereas `is_dir` raises for a closed one above it


def _of_prisma(url: str) -> str:
    """Return a URL for PostgreSQL in libpq's words."""
    base, _, query = re.sub("^postgres://", "postgresql://", url).partition("?")
    words = [word for word in query.split("&") if word]
    schema = next((word.partition("=")[2] for word in words if word.startswith("schema=")), "")
    if "sslaccept=strict" in words:  # which libpq would not hold by itself
        raise ValueError(
            "has sslaccept=strict: write sslmode=verify-full instead, with sslrootcert=… where needed"
        )
    words = [word for word in words if word.partition("=")[0] not in PRISMA]
    if schema and not any(word.startswith("options=") for word in words):
        # In quotes PostgreSQL takes capitals for what they are, as Prisma does.
        bare = schema.replace("%22", "")
        name = bare if re.fullmatch("[a-z_][a-z0-9_]*", bare) else f"%22{bare}%22"
        words.append(f"options=-csearch_path%3D{name}")
    return f"{base}?{'&'.join(words)}" if words else base


_SERVER = (
    r"://(?:[^\s:@/?#]+(?::[^\s:@/?#]*)?@)?(?:[^\s:@/?#\[\]]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"/[^\s/?#]+(?:\?(?P<parameters>[^\s#]*))?"
)


def _parameters(url: str, scheme: str, example: str) -> str:
    """Return the parameters in the URL of a server's database, whose scheme is as this pattern."""
    parts = re.fullmatch(scheme + _SERVER, url)
    if not parts or int(parts["port"] or 0) > 65_535:  # noqa: PLR2004 - the last port of TCP
        raise ValueError(
            f'must be as "{example}": an / @ : ? or # in one of these is written %2F %40 %3A %3F %23'
        )
    return parts["parameters"] or ""


_PASSWORD = re.compile(r"(?:^|&)[^=&]*(?:pass(?!file)|pwd)[^=&]*=", re.IGNORECASE)
"""A parameter that holds a password, in whatever program's word; a `passfile` holds the path of one."""


def _postgresql(url: str) -> str:
    parameters = _parameters(url, r"(?i:postgresql(?:\+psycopg)?)", "postgresql://user@host:5432/database")
    if _PASSWORD.search(parameters):  # only there it is known to be one
        raise ValueError(
            'a password stands before the host, as in "postgresql://user:password@host/database"'
        )
    return url


def other_database(value: object) -> str:
    """Return such a URL, or "" for none. Not shown when refused, as above."""
    if value == "":
        return ""
    if re.match("mysql|mariadb", text(value)):
        return _mysql(text(value))
    url = database(value, others=', or of MySQL, as in "mysql://user@host/database"')
    if url.startswith("sqlite:") and not url.startswith("sqlite:////"):
        raise ValueError('must have the absolute path of the file, and so four slashes: "sqlite:////…"')
    return url


_MYSQL_PARAMETERS = ("unix_socket", "ssl_ca", "ssl_cert", "ssl_key", "ssl_check_hostname")


def _mysql(url: str) -> str:
    parameters = _parameters(
        url, r"(?:mysql|mariadb)(?:\+pymysql)?", "mysql://user:password@host:3306/database"
    )
    for parameter in filter(None, parameters.split("&")):
        if parameter.partition("=")[0] not in _MYSQL_PARAMETERS:  # others' programs have others
            raise ValueError(
                f"of the parameters behind the question mark only {', '.join(_MYSQL_PARAMETERS)} do"
            )
    return url


def name(value: object) -> str:
    """Return a name for status, log and credentials."""
    name = text(value)
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise must("be of letters of ASCII, digits and . _ -, at most 64", value)
    return name


def table(value: object) -> str:
    """Return the name of a table, its schema before it where that is given."""
    table = text(value)
    if not re.fullmatch(r"[^.]+(\.[^.]+)?", table):
        raise must('be a table\'s name, as "Formation", or with its schema, as "site.Formation"', value)
    if any(re.fullmatch(r"""(["'`]).*\1""", part) for part in table.split(".")):
        raise must('be the table\'s name without quotes of its own, as "Formation"', value)
    return table


_NO_COLUMN = "no column of an event"
_NO_KEY = "no column to match by"


def matched(value: object, *allowed: str) -> dict[str, tuple[str, ...]]:
    """Return one column of theirs, with the columns of ours that may stand in it."""
    columns = _columns(value, 'one column of the site\'s table, as { billetwebId = ["ext_id", "id"] }')
    if len(columns) != 1:
        raise ValueError(f"must be one column of the site's table, not {len(columns)}")
    ((theirs, ours),) = columns.items()
    names = ours if isinstance(ours, list) and ours else [ours]
    return {text(theirs): tuple(_among(name, allowed, _NO_KEY) for name in names)}


def assigned(value: object, *allowed: str) -> dict[str, str]:
    """Return columns of theirs, each with the one of ours that it gets."""
    columns = _columns(value, 'columns of the site\'s table, as { placesLeft = "places_left" }')
    return {text(theirs): _among(ours, allowed, _NO_COLUMN) for theirs, ours in columns.items()}


def _columns(value: object, what: str) -> dict[str, object]:
    """Return the columns of theirs that a table names, with what is said of each."""
    if not isinstance(value, dict):
        raise must(f"be {what}", value)
    if not value:
        raise ValueError(f"must be {what}: it names none")
    return value


def _among(value: object, allowed: tuple[str, ...], otherwise: str) -> str:
    """Return a word that is allowed; one that is not is `otherwise`, and the error says what was meant."""
    if isinstance(value, str) and value in allowed:
        return value
    close = alike(value, allowed) if isinstance(value, str) else None
    hint = f'did you mean "{close}"?' if close else f"there are {', '.join(allowed)}"
    raise ValueError(f"{_shown(value)} is {otherwise}: {hint}")


def must(what: str, value: object, *, is_secret: bool = False) -> ValueError:
    """Return the error that says what a value must be, and what it is; no text that may be a secret."""
    shown = "a text" if is_secret and isinstance(value, str) else _shown(value)
    return ValueError(f"must {what}, not {shown}")


def _shown(value: object) -> str:
    """Return a value as it stands in the file, or what it is where that would be long."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else "a longer text"  # noqa: PLR2004 - fits a line
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value) if abs(value) < 1e15 else "a number that big"  # noqa: PLR2004 - str() has a limit
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a date or time"
