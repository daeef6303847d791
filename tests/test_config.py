"""The configuration: what is refused, where it says so, and that no message holds a secret."""

import base64
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import as_nobody

from syncd import typed
from syncd.config import Config, Secret, load
from syncd.errors import ConfigError

SAMPLE = Path(__file__).parent.parent / "config.toml"
CANARY = "c0ffee5ecre7c0ffee5ecre7"
CREDENTIALS = {"BILLETWEB_USER": "12345", "BILLETWEB_KEY": CANARY}
SETUP = f"`{typed.program('syncd')} setup --config config.toml`"
NO_SECRET = 'no secret: give the systemd credential "webhook-NAME", or use webhooks.secret_file'
PLACES = 'set $BILLETWEB_KEY, give the systemd credential "billetweb-key", or use billetweb.key_file'
LISTS = ["publish", "feeds", "webhooks"]
NOT_IN_IT = ("key", "key_from", "path", "webhook_secrets", "credentials")
TABLES = [name for name in Config.__struct_fields__ if name not in (*NOT_IN_IT, *LISTS)]
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OTHER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TAKEN = '"{}" is another one\'s name already: give each its own with `name = "…"`'
PUBLISH = """
[[publish]]
table = "Formation"
match = { billetwebId = ["ext_id", "id"] }
set = { isFull = "is_full" }
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a configuration and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path: Path, environ: Mapping[str, str] = CREDENTIALS) -> list[str]:
    """Return what `load` refuses, with the file's folder left out; no line may be broken or tell the key."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    for problem in caught.value.problems:
        assert problem.isprintable()
        assert CANARY not in problem
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def read(path: Path, key: str, environ: Mapping[str, str] = CREDENTIALS) -> Any:
    table, field = key.split(".")
    return getattr(getattr(load(path, environ), table), field)


def credential(folder: Path, name: str, text: str) -> dict[str, str]:
    """Write a systemd credential and return the environment that leads to it."""
    (folder / name).write_text(text)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


# The sample


def sample_keys(pattern: str) -> set[str]:
    """Return table.key of every line of the sample that matches, the key being the pattern's group."""
    table, found = "", set()
    for line in SAMPLE.read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"(?:# )?\[+(\w+)\]+", line):
            table = header[1]
        elif table in LISTS:  # a list has an example alone
            continue
        elif key := re.match(pattern, line):
            found.add(f"{table}.{key[1]}")
    return found


def record_keys(*, with_default: bool) -> set[str]:
    hints = Config.__annotations__
    assert set(TABLES) < set(hints)
    import syncd.config

    return {
        f"{table}.{field.name}"
        for table in TABLES
        for field in msgspec.structs.fields(getattr(syncd.config, hints[table]))
        if (field.default is not None) is with_default
    }


def test_sample_shows_other_values_than_the_defaults(write: Write) -> None:
    """The sample, loaded, is equal to a file that says nothing."""
    sample, empty = load(SAMPLE, CREDENTIALS), load(write(""), CREDENTIALS)
    assert [getattr(sample, table) for table in TABLES] == [getattr(empty, table) for table in TABLES]


def test_key_is_missing_in_the_sample_or_only_there() -> None:
    """Keys with a value stand in the sample as they are, keys without one as a comment, and no others."""
    assert sample_keys(r"(\w+) = ") == record_keys(with_default=True)
    assert sample_keys(r"# (\w+) = ") == record_keys(with_default=False)


def test_commented_keys_of_the_sample_are_refused_when_used(write: Write, tmp_path: Path) -> None:
    """With its comment signs taken away each example value is accepted."""
    environ = CREDENTIALS | credential(tmp_path, "webhook-site", SECRET)
    path = write(re.sub(r"(?m)^# (\w+ = |\[\[)", r"\1", SAMPLE.read_text(encoding="utf-8")))
    assert None not in {read(path, key, environ) for key in record_keys(with_default=False)}
    (target,) = load(path, environ).publish
    assert {field for field in target.__struct_fields__ if getattr(target, field) in (None, "")} == set()
    assert load(path, environ).feeds
    (endpoint,) = load(path, environ).webhooks
    assert endpoint.secret_file
    assert not endpoint.private


# Problems and their places


def test_second_mistake_is_only_seen_after_the_first_is_mended(write: Write) -> None:
    """Problems of every kind come in one error, in the order of the lines, credentials last."""
    path = write(
        """\
[billetweb]
concurrency = 17
[sync]  # a comment
intervall = "15m"
run_on_start = "yes"
interval = "5s"
[surprise]
x = 1
[[publish]]
table = "Formation"
[[webhooks]]
name = "site"
[[webhooks]]
name = "other"
"""
    )
    assert problems(path, {}) == [
        f"config.toml:1: billetweb.user: missing: {SETUP} asks for it; or write the account number here",
        "config.toml:2: billetweb.concurrency: must be a whole number from 1 to 16, not 17",
        'config.toml:4: sync.intervall: unknown; did you mean "interval"?',
        'config.toml:5: sync.run_on_start: must be true or false, not "yes"',
        'config.toml:6: sync.interval: must be at least 10s, not "5s"',
        "config.toml:7: surprise: unknown",
        "config.toml:9: publish[1].match: missing",
        "config.toml:9: publish[1].set: missing",
        "config.toml:11: webhooks[1].url: missing",
        "config.toml:11: webhooks[1].on: missing",
        f"config.toml:12: webhooks[1].name: {NO_SECRET}".replace("NAME", "site"),
        "config.toml:13: webhooks[2].url: missing",
        "config.toml:13: webhooks[2].on: missing",
        f"config.toml:14: webhooks[2].name: {NO_SECRET}".replace("NAME", "other"),
        f"API key: missing: {SETUP} writes it into credentials/billetweb-key; or {PLACES}",
    ]


def test_target_without_a_name_is_told_by_none(write: Write, tmp_path: Path) -> None:
    """The table's name is the target's, so that its credential is found; no two have one name."""
    environ = CREDENTIALS | credential(tmp_path, "publish-Formation", "postgresql://u:secret@h/site\n")
    (target,) = load(write(PUBLISH.replace('"Formation"', '"site.Formation"')), environ).publish
    assert (target.name, target.database) == ("Formation", "postgresql://u:secret@h/site")
    assert problems(write(PUBLISH * 2), environ) == [
        f"config.toml:7: publish[2].name: {TAKEN.format('Formation')}",
    ]
    assert problems(write(PUBLISH.replace('"Formation"', '"Ma table"')), environ) == [
        'config.toml:2: publish[1].name: missing, and the table\'s cannot be one: give `name = "…"`',
    ]
    assert problems(write(PUBLISH), credential(tmp_path, "publish-Formation", CANARY) | CREDENTIALS)[
        0
    ].startswith('credential publish-Formation: must be "sqlite:///" and')


def test_problem_of_a_list_is_shown_on_another_table_s_line(write: Write) -> None:
    """What is wrong with one of several tables of a name is told with its number, from 1, and its line."""
    second = PUBLISH.replace("ext_id", "ex_id").replace("table", "tables")
    path = write(f"{PUBLISH}{second}[sync]\nintervall = 1\n[[publish]]\n[publish.set]\nisFull = 'full'\n")
    assert problems(path) == [
        "config.toml:7: publish[2].table: missing",
        'config.toml:8: publish[2].tables: unknown; did you mean "table"?',
        'config.toml:9: publish[2].match: "ex_id" is no column to match by: did you mean "ext_id"?',
        'config.toml:12: sync.intervall: unknown; did you mean "interval"?',
        "config.toml:13: publish[3].table: missing",
        "config.toml:13: publish[3].match: missing",
        'config.toml:14: publish[3].set: "full" is no column of an event: did you mean "is_full"?',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("publish = 5", "publish: must be tables, each begun with [[publish]], not 5"),
        ("[publish]", "publish: must be tables, each begun with [[publish]], not a table"),
        ("publish = [5]", "publish: must be tables, each begun with [[publish]], not a list"),
        ("webhooks = 'https://x'", "webhooks: must be tables, each begun with [[webhooks]], not a text"),
    ],
)
def test_list_written_as_something_else_is_taken(write: Write, text: str, expected: str) -> None:
    """A list's name that stands for no tables is refused with the way in which it is written."""
    assert problems(write(text))[0] == f"config.toml:1: {expected}"


def test_list_arrives_changed(write: Write) -> None:
    """Each table of a list arrives, in its order, with what it leaves out filled in."""
    first, second = load(write(PUBLISH + PUBLISH.replace("Formation", "Stage")), CREDENTIALS).publish
    assert (first.table, second.table) == ("Formation", "Stage")
    assert first.match == {"billetwebId": ("ext_id", "id")}
    assert (first.set, first.unless, first.database) == ({"isFull": "is_full"}, None, "")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("table = 'a.b.c'", "must be a table's name"),
        ("table = '\"Formation\"'", "must be the table's name without quotes of its own"),
        ("table = 'site.`Formation`'", "must be the table's name without quotes of its own"),
        ("match = { a = 'id', b = 'id' }", "must be one column of the site's table, not 2"),
        ("match = {}", '{ billetwebId = ["ext_id", "id"] }: it names none'),
        ("match = 'id'", "must be one column"),
        ("match = { a = [] }", "is no column to match by"),
        ("match = { a = { b = 1 } }", "a table is no column to match by"),
        ("match = { a = 'place' }", '"place" is no column to match by: there are id, ext_id, name, shop_url'),
        ("set = {}", '{ placesLeft = "places_left" }: it names none'),
        ("set = { a = 'places' }", "is no column of an event: did you mean"),
        ("name = '../x'", "must be of letters"),
        ("unless = 1", "must be text"),
        ("unless = 'isFull'", '"isFull" is the column of publish.set already'),
        ("touch = 'isFull'", '"isFull" is the column of publish.set already'),
        ("touch = 'billetwebId'", '"billetwebId" is the column of publish.match already'),
        ("set = { isFull = 'is_full', billetwebId = 'ext_id' }", "is the column of publish.match already"),
        ("database = 'mysql://h'", 'must be as "mysql://user:password@host:3306/database"'),
        ("database = 'mysql://u:p@p@h/d'", "is written %2F %40 %3A %3F %23"),
        ("database = 'mariadb://h:65536/d'", 'must be as "mysql://user:password@host:3306/database"'),
        ("database = 'mysql+mysqldb://h/d'", 'must be as "mysql://user:password@host:3306/database"'),
        ("database = 'mysql+PyMySQL://h/d'", 'must be as "mysql://user:password@host:3306/database"'),
        ("database = 'mysql://h/d?sslaccept=strict'", "only unix_socket, ssl_ca, ssl_cert"),
        ("database = 'sqlite:///a.db'", "must have the absolute path of the file, and so four slashes"),
        ("database = 'a.db'", 'must be "sqlite:///" and the path of a file'),
        ("password = 'x'", '"publish-NAME"'),
    ],
)
def test_published_table_is_taken_as_it_never_works(write: Write, line: str, what: str) -> None:
    """What no table of a site's can be is refused with its key, and alone."""
    key = line.partition(" ")[0]
    kept = [one for one in PUBLISH.splitlines() if not one.startswith(f"{key} ")]
    [problem] = problems(write("\n".join([*kept, line])))
    assert f": publish[1].{key}: " in problem
    assert what in problem


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:p%40@db.example.org:3306/site",
        "mariadb://u@/site?unix_socket=/run/mysqld/mysqld.sock",
        "mysql+pymysql://[::1]/site?ssl_ca=/etc/ssl/ca.pem&ssl_check_hostname=true",
        "mariadb+pymysql://h/d",
    ],
)
def test_mysql_is_refused_for_a_site_s_table(write: Write, url: str) -> None:
    """A table of a site's may be in MySQL or MariaDB; syncd's own database may not, see below."""
    config = load(write(f"{PUBLISH}\ndatabase = '{url}'"), CREDENTIALS)
    assert config.publish[0].database == url


def test_file_that_root_may_read_is_closed_to_nobody_knows_whom(home: Path) -> None:
    """`check` by root finds no fault with a secret that the daemon may not read: it says as whom it tried."""
    path, key = home / "config.toml", home / "key"
    path.write_text("[billetweb]\nuser = '12345'\nkey_file = 'key'\n")
    key.write_text(CANARY)
    home.chmod(0o755)
    path.chmod(0o644)
    key.chmod(0o600)
    load(path, {})
    for closed, what in ((key, "config.toml:3: billetweb.key_file"), (path, "config.toml: cannot be read")):
        closed.chmod(0)
        with as_nobody():
            user = pwd.getpwuid(os.geteuid()).pw_name
            assert problems(path, {}) == [f"{what}: Permission denied for the user {user}"]


def test_closed_folder_of_a_site_s_stops_the_daemon(home: Path) -> None:
    """A file below a folder that this user may not enter is that target's problem, not the settings'."""
    url = f"sqlite:///{home}/closed/prisma/site.db"
    (home / "closed/prisma").mkdir(parents=True)
    path = home / "config.toml"
    path.write_text(f"{PUBLISH}\ndatabase = '{url}'")
    home.chmod(0o755)
    path.chmod(0o644)
    load(path, CREDENTIALS)  # which nobody may need parts of Python for that only root can read
    (home / "closed").chmod(0)
    with as_nobody():
        config = load(path, CREDENTIALS)
    assert config.publish[0].database == url


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("path = 'events.json'", "must be the absolute path of a file"),
        ("path = '/'", "must be the absolute path of a file"),
        ("format = 'xml'", 'must be one of "json", "jsonld", "ics", "csv"'),
        ("mode = '0666'", "no write for others"),
        ("mode = 644", "must be octal"),
        ("tags = 'site'", "must be a list of texts"),
    ],
)
def test_feed_that_cannot_be_written_is_taken(write: Write, line: str, what: str) -> None:
    """What no feed can be is refused with its key, and alone."""
    key = line.partition(" ")[0]
    kept = [one for one in ("path = '/a/b'", "format = 'json'") if not one.startswith(f"{key} ")]
    [problem] = problems(write("\n".join(["[[feeds]]", *kept, line])))
    assert f": feeds[1].{key}: " in problem
    assert what in problem


def test_two_feeds_overwrite_each_other(write: Write) -> None:
    """A second feed of the same path is refused; others arrive in their order, readable for all."""
    feeds = [f"[[feeds]]\npath = '/a/{name}'\nformat = '{name}'\n" for name in ("json", "csv")]
    first, second = load(write("".join(feeds)), CREDENTIALS).feeds
    assert (str(first.path), first.format, first.mode, first.tags) == ("/a/json", "json", 0o644, ())
    assert second.format == "csv"
    for again in (feeds[0], feeds[0].replace("/a/", "/a/b/../"), feeds[0].replace("/a/", "//a/")):
        assert problems(write("".join([*feeds, again]))) == [
            "config.toml:8: feeds[3].path: is the path of another feed too"
        ]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "config.toml",
            "x/../config.toml",
            "key",
            "secret",
            "s",
            "a.db",
            "a.db-wal",
            "a.db-shm",
            "a.db.lock",
        ),
        *("site.db", "site.db-journal", "credentials/billetweb-key"),
    ],
)
def test_feed_takes_the_place_of_the_database(write: Write, tmp_path: Path, name: str) -> None:
    """A feed at the path of a file that syncd itself reads or writes is refused; one beside it is not."""
    text = (
        f"billetweb.key_file = 'key'\ncontrol.socket = '{tmp_path}/s'\ndatabase.url = 'sqlite:///{tmp_path}/a.db'\n"
        f"{PUBLISH}database = 'sqlite:///{tmp_path}/site.db'\n{WEBHOOK}[[feeds]]\nformat = 'json'\npath = "
    )
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    [problem] = problems(write(f"{text}'{tmp_path}/{name}'"))
    assert problem.endswith(": feeds[1].path: is a file that syncd uses itself")
    assert load(write(f"{text}'{tmp_path}/{Path(name).name}.json'"), CREDENTIALS).feeds


WEBHOOK = """
[[webhooks]]
name = "site"
url = "https://example.org/api/hook/?token=x"
secret_file = "secret"
on = ["event.full", "event.full", "doubt"]
"""


def test_endpoint_arrives_changed(write: Write, tmp_path: Path) -> None:
    """An endpoint arrives with its address to the letter, and with its secrets, the credential's first."""
    path = write(WEBHOOK)
    (tmp_path / "secret").write_text(f"{SECRET}\n{OTHER_SECRET}\n")
    (tmp_path / "secret").chmod(0o640)
    config = load(path, CREDENTIALS)
    (endpoint,) = config.webhooks
    assert (endpoint.url, endpoint.on) == ("https://example.org/api/hook/?token=x", ("event.full", "doubt"))
    assert (endpoint.events, endpoint.private) == ((), False)
    assert config.webhook_secrets == {"site": (Secret(SECRET), Secret(OTHER_SECRET))}
    assert SECRET not in repr(config)
    environ = CREDENTIALS | credential(tmp_path, "webhook-site", OTHER_SECRET)
    assert load(path, environ).webhook_secrets == {"site": (Secret(OTHER_SECRET),)}


def test_two_endpoints_share_a_name(write: Write, tmp_path: Path) -> None:
    """A second endpoint of the same name is refused: it would have the first one's deliveries."""
    environ = CREDENTIALS | credential(tmp_path, "webhook-site", SECRET)
    assert problems(write(WEBHOOK * 2), environ) == [
        f"config.toml:9: webhooks[2].name: {TAKEN.format('site')}",
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("url = 'http://example.org/hook'", "plain http is only for this machine"),
        ("url = 'https://192.0.2.256/hook'", "as four numbers from 0 to 255"),
        ("url = 'https://2130706433/hook'", "as four numbers from 0 to 255"),
        ("url = 'https://user:pass@example.org/hook'", "without user, password"),
        ("url = 'https://example.org/hook?a b'", "has characters in its query"),
        ("url = 'https://example.org/hook#part'", "without user, password"),
        ("name = '../x'", "must be of letters"),
        ("on = []", "must name at least one of event.new"),
        ("on = 'event.full'", "must be a list of some of event.new"),
        ("on = ['event.ful']", '"event.ful" is nothing that is told: did you mean "event.full"?'),
        ("on = [['doubt']]", "a list is nothing that is told"),
        ("events = 'e1'", "must be a list of texts"),
        ("events = ['Fête du pain']", '"Fête du pain" is no event\'s id or ext_id'),
        ("private = 1", "must be true or false"),
        ("secret = 'x'", "no secret is read from here"),
    ],
)
def test_endpoint_that_can_never_be_told_is_taken(write: Write, tmp_path: Path, line: str, what: str) -> None:
    """What no endpoint can be is refused with its key, and alone."""
    key = line.partition(" ")[0]
    environ = CREDENTIALS | credential(tmp_path, "webhook-site", SECRET)
    kept = [one for one in WEBHOOK.splitlines() if not one.startswith(f"{key} ")]
    [problem] = problems(write("\n".join([*kept, line])), environ)
    assert f": webhooks[1].{key}: " in problem
    assert what in problem


def test_orders_are_waited_for_that_nobody_reads(write: Write, tmp_path: Path) -> None:
    """An endpoint is told of orders only where attendees are mirrored: else it is refused."""
    environ = CREDENTIALS | credential(tmp_path, "webhook-site", SECRET)
    orders = WEBHOOK.replace('"doubt"', '"order.refunded"')
    [problem] = problems(write(orders), environ)
    assert problem.startswith(
        "config.toml:6: webhooks[1].on: order.refunded is told only where sync.attendees"
    )
    assert load(write(f"sync.attendees = 'minimal'\n{orders}"), environ).webhooks


@pytest.mark.parametrize(
    "text",
    [
        *("short", "whsec_", "whsec_AAAA", "C2FVsBQIhrscChlQIMV+b5sSYspob7oD", f"{SECRET}!", f"x{SECRET}"),
        *(f"{SECRET}\n{SECRET}\n{OTHER_SECRET}", "whsec_" + "A" * 88, SECRET.replace("V", "é")),
    ],
)
def test_secret_that_signs_nothing_is_taken(write: Write, tmp_path: Path, text: str) -> None:
    """What is no secret of the specification is refused, from either place, and not shown."""
    path = write(WEBHOOK)
    (tmp_path / "secret").write_text(text)
    (tmp_path / "secret").chmod(0o640)
    environ = CREDENTIALS | credential(tmp_path, "webhook-site", text)
    for found, where in (
        (problems(path), "webhooks[1].secret_file"),
        (problems(path, environ), "webhook-site: "),
    ):
        [problem] = found
        assert where in problem
        assert text[6:] not in problem or not text[6:]


def test_secret_that_everybody_can_read_is_taken(write: Write, tmp_path: Path) -> None:
    """A file that every user may open is refused, and so is one that is not there."""
    path = write(WEBHOOK)
    assert problems(path) == ["config.toml:5: webhooks[1].secret_file: No such file or directory"]
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o644)
    [problem] = problems(path)
    assert "every user of this machine" in problem


def test_problem_is_shown_on_another_line(write: Write) -> None:
    """Dotted, quoted and inline keys are found; what only looks like a key, inside a value, is not."""
    path = write(
        '''\
sync.interval = "1s"  # sync.jitter = 1
"sync" . 'jitter' = 1
control = { mode = 1, group = 2 }
database.url = """
log = 1
[log]
level = 1"""
extra = [  # ]
  "[log]", """
level = 2""",
  { level = 3 },
]
  [ log ]
format = """no
level = 5
such"""

\t"level" = 4
[log.level2]
level = 6
[heartbeat]\r
url = 7\r
'''
    )
    found = [problem.split(": ")[:2] for problem in problems(path)]
    assert found == [
        ["config.toml:1", "sync.interval"],
        ["config.toml:2", "sync.jitter"],
        ["config.toml:3", "control.mode"],
        ["config.toml:3", "control.group"],
        ["config.toml:4", "database.url"],
        ["config.toml:8", "extra"],
        ["config.toml:14", "log.format"],
        ["config.toml:18", "log.level"],
        ["config.toml:19", "log.level2"],
        ["config.toml:22", "heartbeat.url"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval = '5m'", 'config.toml:1: interval: unknown; did you mean "sync.interval"?'),
        ("[snyc]", 'config.toml:1: snyc: unknown; did you mean "sync"?'),
        ("[log]\ninterval = 1", 'config.toml:2: log.interval: unknown; did you mean "sync.interval"?'),
        ("[log]\nLEVEL = 'INFO'", 'config.toml:2: log.LEVEL: unknown; did you mean "level"?'),
        ("sync = 5", "config.toml:1: sync: must be a table, written [sync], not 5"),
        ("[[sync]]", "config.toml:1: sync: must be a table, written [sync], not a list"),
        ("log = 'a-key'", "config.toml:1: log: must be a table, written [log], not a text"),
        ('"a\\nb" = 1', "config.toml:1: a\\nb: unknown"),
        ("sync.run_timeout = '2s'", 'config.toml:1: sync.run_timeout: must be at least 5s, not "2s"'),
        (
            "sync.keep_past = 5",
            'config.toml:1: sync.keep_past: must be a duration in quotes, such as "15m", not 5',
        ),
        ("log.level = 0x" + "f" * 5000, "number that big"),
        ("log.level = '" + "x" * 99 + "'", "a longer text"),
        ("database.url = 'postgresql://u:p@h'", 'must be as "postgresql://user@host:5432/database"'),
        ("database.url = 'postgresql://u:p@p@h/d'", "is written %2F %40 %3A %3F %23"),
        ("database.url = 'postgresql://h/d?password=p'", "a password stands before the host"),
        ("database.url = 'mysql://h/d'", 'as in "postgresql://user@host/database"'),
    ],
)
def test_message_does_not_say_what_to_do(write: Write, text: str, expected: str) -> None:
    """A single mistake gives a single line that says what is expected."""
    [problem] = problems(write(text))
    assert expected in problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = 1\nb = = 2\n", "config.toml:2: cannot be read: Invalid value"),
        (b"a = 1\nb = {\n  c = 1,\n}\n", "config.toml:2: b: what stands in { } is one line, without a comma"),
        (b"b = { c = 1, }\n", "config.toml:1: b: what stands in { } is one line, without a comma"),
        (b"a = \xff\n", "config.toml:1: cannot be read: that file is not UTF-8 text"),
        (b"a = " + b"[" * 20_000, "config.toml: cannot be read: "),
        (b"a = " + b"1" * 5_000, "config.toml: cannot be read: "),
        (
            None,
            f"config.toml: cannot be read: No such file or directory; {SETUP} makes one",
        ),
    ],
)
def test_unreadable_file_is_a_traceback(tmp_path: Path, content: bytes | None, expected: str) -> None:
    """A file that is missing or not TOML is one problem, with the line where there is one."""
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    [problem] = problems(path)
    assert problem.startswith(expected)


# Ranges

RANGES: dict[str, tuple[list[object], list[object]]] = {
    "billetweb.user": (["1", "12345"], ["12a", "١٢", "-1", 12345]),
    "billetweb.requests_per_minute": ([1, 100], [0, 101, -1, True, "60", 60.0]),
    "billetweb.concurrency": ([1, 16], [0, 17]),
    "billetweb.timeout": (["1s", "5m"], ["0s", "5m1s", "fast", 30]),
    "billetweb.base_url": (
        ["https://a.example:8443/api", "http://localhost:1", "http://127.9.9.9/api", "http://[::1]:80/api"],
        [
            "",
            "ftp://a.example",
            "http://a.example",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "http://127.0.0.256",
            "http://127.0.0.1@a.example",
            "https://a.example?key=1",
            "https://a.example#x",
            "https://a.example:65536",
            "https://a..example",
            "https://a b",
            "https://",
        ],
    ),
    "sync.interval": (["10s", "8d", "3653d"], ["9s", "0s", "3653d1s"]),
    "sync.jitter": (["0s", "7m30s"], ["7m31s", "-1s"]),
    "sync.run_on_start": ([True, False], [1, "true"]),
    "sync.run_timeout": (["5s", "24h"], ["4s", "24h1s"]),
    "sync.keep_past": (["0s", "3653d"], ["3653d1s"]),
    "sync.full_every": (["1m", "30d"], ["59s", "30d1s"]),
    "sync.keep_changes": (["1d", "3653d"], ["23h59m59s", "3653d1s"]),
    "sync.attendees": (["none", "minimal", "full"], ["some", "None", False]),
    "sync.count_carts": ([True, False], [0]),
    "sync.not_places": ([[], ["7003", "Repas*"]], ["Repas*", [""], [7003], {"a": "b"}]),
    "database.url": (
        [
            "sqlite:////var/lib/syncd.db",
            "sqlite:///syncd.db",
            "postgresql:///site",
            "postgresql://syncd@/site?host=/run/postgresql&sslmode=require",
            "postgresql+psycopg://syncd:p%40ss%2F@db.example.org:5432/site",
            "postgresql://syncd:@[::1]:1/site?options=-csearch_path%3Dbilletweb",
            "postgresql://h/site?passfile=/p&require_auth=password",
        ],
        [
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///a.db?mode=memory",
            "mysql://h/d",
            "postgresql+asyncpg://h/site",
            "postgresql://h",
            "postgresql://h/",
            "postgresql://h:65536/site",
            "postgresql://h:port/site",
            "postgresql://u:p@ss@h/site",
            "postgresql://u:p/s@h/site",
            "postgresql://u:p#s@h/site",
            "postgresql://h/a/b",
            "postgresql://h/site?password=p",
            "postgresql://h/site?sslpassword=p",
            "postgresql://h/s ite",
            "a.db",
            "file:./dev.db",
            "sqlite:///tmp/syncd.db",
        ],
    ),
    "control.socket": (
        ["/run/s", "/" + "a" * 106, "/" + "é" * 53],
        ["/" + "a" * 107, "/" + "é" * 53 + "a", "syncd.sock", "", "/a\nb"],
    ),
    "control.mode": (["0600", "660", "0770"], ["0662", "0460", "01660", "0o660", "rw", "", 660]),
    "control.group": (["syncd"], ["", 5]),
    "log.level": (["DEBUG", "INFO", "WARNING", "ERROR"], ["info", "TRACE", "", 1]),
    "log.format": (["auto", "journal", "text", "json"], ["xml", []]),
    "heartbeat.url": (
        ["https://hc-ping.com/a-b", "http://127.0.0.1:8000/ping"],
        ["http://hc-ping.com/a", "", "https://u:p@hc-ping.com/a", False],
    ),
    "metrics.events": ([0, 10_000], [-1, 10_001, True, "all"]),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (accepted, _) in RANGES.items() for value in accepted]
)
def test_value_inside_the_range_is_refused(write: Write, key: str, value: object) -> None:
    """The outermost accepted values are accepted."""
    load(write(f"{key} = {toml(value)}"), CREDENTIALS)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (_, refused) in RANGES.items() for value in refused]
)
def test_value_outside_the_range_is_accepted(write: Write, key: str, value: object) -> None:
    """The innermost refused values are refused, and nothing else with them."""
    [problem] = problems(write(f"{key} = {toml(value)}"))
    assert problem.startswith(f"config.toml:1: {key}: ")


def test_key_without_a_range_test() -> None:
    """Each key has its edges above, but for the one whose file is tested below."""
    keys = record_keys(with_default=True) | record_keys(with_default=False)
    assert keys - {"billetweb.key_file"} == set(RANGES)


@pytest.mark.parametrize(
    ("pasted", "url"),
    [
        ("postgres://u:p@h/site", "postgresql://u:p@h/site"),
        ("postgresql://u:p@h/site?schema=public", "postgresql://u:p@h/site?options=-csearch_path%3Dpublic"),
        (
            "postgres://h/d?schema=My&sslaccept=accept_invalid_certs",
            "postgresql://h/d?options=-csearch_path%3D%22My%22",
        ),
        (
            "postgres://h/site?sslmode=require&schema=app&connection_limit=5&pgbouncer=true",
            "postgresql://h/site?sslmode=require&options=-csearch_path%3Dapp",
        ),
        (
            "postgresql://h/site?schema=app&options=-csearch_path%3Dours",
            "postgresql://h/site?options=-csearch_path%3Dours",
        ),
    ],
)
def test_the_address_of_another_program_is_refused(write: Write, pasted: str, url: str) -> None:
    """What stands in a site's DATABASE_URL for Prisma, or is given by a host, leads to the same database."""
    assert read(write(f"database.url = '{pasted}'"), "database.url") == url


@pytest.mark.parametrize("line", ["url = postgresql://u:canary@h/d", "interval = 15m", "url = ‘canary’"])
def test_a_value_without_quotes_is_a_riddle(write: Write, line: str) -> None:
    """It is named with its line; what it is is not shown."""
    name = line.partition(" ")[0]
    assert problems(write(f"# one\n{line}")) == [
        f'config.toml:2: {name}: text must stand in quotes, as in {name} = "…"'
    ]


def test_a_key_that_stands_twice_is_to_be_quoted(write: Write) -> None:
    """A value that needs no quotes is not said to need them."""
    (problem,) = problems(write("requests_per_minute = 60\nrequests_per_minute = 50"))
    assert problem.startswith("config.toml:2: cannot be read: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "[sync]\n".encode("utf-16"),
            ": cannot be read: that file is UTF-16, as some editors on Windows save it",
        ),
        (b"# one\n# \xe9t\xe9\n", ":2: cannot be read: that file is not UTF-8 text (at line 2)"),
        (b'[sync]\ninterval = """15m', ":2: cannot be read: Unterminated string"),
    ],
)
def test_a_file_that_is_no_toml_is_a_riddle(write: Write, content: bytes, problem: str) -> None:
    """It is said what it is, and where."""
    path = write("")
    path.write_bytes(content)
    (told,) = problems(path)
    assert told.startswith(f"config.toml{problem}")


def test_values_arrive_changed(write: Write) -> None:
    """Durations, modes and addresses arrive in the form that the code reckons with."""
    path = write(
        "sync.interval = '1h30m'\ncontrol.mode = '0600'\nbilletweb.base_url = 'https://a.example/api/'"
    )
    assert read(path, "sync.interval") == timedelta(hours=1, minutes=30)
    assert read(path, "control.mode") == 0o600
    assert read(path, "billetweb.base_url") == "https://a.example/api"
    assert load(path, CREDENTIALS).path == path


def test_demo_cannot_run_every_second(write: Write) -> None:
    """A caller that allows shorter intervals gets them, with its own limit in the message."""
    second = timedelta(seconds=1)
    config = load(write("sync.interval = '1s'"), CREDENTIALS, minimum_interval=second)
    assert config.sync.interval == second
    with pytest.raises(ConfigError, match='must be at least 1s, not "0s"'):
        load(write("sync.interval = '0s'"), CREDENTIALS, minimum_interval=second)


# Credentials


def test_credential_of_a_lesser_place_wins(write: Write, tmp_path: Path) -> None:
    """The environment comes before the systemd credential, and that before the key file."""
    path = write("billetweb.user = '1'\nbilletweb.key_file = 'key'\n")
    key_file = tmp_path / "key"
    key_file.write_text(" from-file\n")
    key_file.chmod(0o640)
    systemd = credential(tmp_path, "billetweb-key", "from-systemd\n")
    assert load(path, systemd | {"BILLETWEB_KEY": " from-environment "}).key == Secret("from-environment")
    assert load(path, systemd).key == Secret("from-systemd")
    assert load(path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}).key == Secret("from-file")
    assert load(path, {}).key == Secret("from-file")
    assert read(path, "billetweb.user", systemd) == "1"
    assert read(path, "billetweb.user", {"BILLETWEB_USER": "2", "BILLETWEB_KEY": CANARY}) == "2"


def test_systemd_credential_does_not_replace_the_url(write: Write, tmp_path: Path) -> None:
    """The URL of the credential counts, and a bad one is refused without showing it."""
    path = write("database.url = 'sqlite:///a.db'")
    environ = CREDENTIALS | credential(tmp_path, "database-url", "sqlite:///b.db\n")
    assert read(path, "database.url", environ) == "sqlite:///b.db"
    url = f"postgresql://u:{CANARY}@h/d"
    assert read(path, "database.url", CREDENTIALS | credential(tmp_path, "database-url", url)) == url
    for bad in (f"mysql://u:{CANARY}@h/d", f"postgresql://u:{CANARY}@h", f"{url}?password={CANARY}"):
        [problem] = problems(path, CREDENTIALS | credential(tmp_path, "database-url", bad))
        assert problem.startswith("credential database-url: ")


@pytest.mark.parametrize(
    "key", ["", " \n", f"{CANARY} x", f"{CANARY}\tx", f"{CANARY}é", f"{CANARY}\0", "abc"]
)
def test_broken_key_is_used(write: Write, tmp_path: Path, key: str) -> None:
    """A key that is empty, in two words or not ASCII is refused wherever it comes from."""
    path = write("billetweb.user = '1'\nbilletweb.key_file = 'key'")
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    [problem] = problems(path, {})
    assert problem.startswith("config.toml:2: billetweb.key_file: ")
    if key:  # an empty credential stands for none, see below
        [problem] = problems(path, credential(tmp_path, "billetweb-key", key))
        assert problem.startswith("credential billetweb-key: ")
    [problem] = problems(path, {"BILLETWEB_KEY": key})
    assert problem.startswith("$BILLETWEB_KEY: ")


HEADER = base64.b64encode(f"12345:{CANARY}".encode()).decode()


@pytest.mark.parametrize(
    "spelling",
    [
        CANARY,
        f"12345:{CANARY}",
        HEADER,
        f"Basic {HEADER}",
        f"Authorization: Basic {HEADER}\n",
        f" Basic 12345:{CANARY}",
        f'"{CANARY}"\n',
        f"' {CANARY} '",
        f'"Basic {HEADER}"',
    ],
)
def test_key_as_billetweb_prints_it_is_refused(write: Write, tmp_path: Path, spelling: str) -> None:
    """The key alone, with its user, or as both stand in the header, in quotes too: each gives the key."""
    (tmp_path / "key").write_text(spelling)
    (tmp_path / "key").chmod(0o600)
    path = write("billetweb.user = '12345'\nbilletweb.key_file = 'key'")
    assert load(path, {}).key == Secret(CANARY)
    assert load(path, {"BILLETWEB_KEY": spelling}).key == Secret(CANARY)
    assert load(path, credential(tmp_path, "billetweb-key", spelling)).key == Secret(CANARY)


def test_certificate_that_prisma_would_check_is_not(write: Write) -> None:
    """What libpq would not hold is refused, with its own word for it."""
    (problem,) = problems(write("database.url = 'postgres://h/d?sslaccept=strict'"))
    assert "write sslmode=verify-full instead" in problem


def test_padding_that_a_double_click_leaves_out_is_missed(write: Write) -> None:
    """The key is understood without the signs of equality at its end."""
    coded = base64.b64encode(f"1234:{CANARY}".encode()).decode()
    assert coded.endswith("=")
    environ = {"BILLETWEB_USER": "1234", "BILLETWEB_KEY": coded.rstrip("=")}
    assert load(write(""), environ).key == Secret(CANARY)


@pytest.mark.parametrize("spelling", [f"99999:{CANARY}", base64.b64encode(f"7:{CANARY}".encode()).decode()])
def test_key_of_another_user_is_used(write: Write, spelling: str) -> None:
    """A user beside the key who is not billetweb.user is told of, and nothing of the key."""
    [problem] = problems(write(""), {"BILLETWEB_USER": "12345", "BILLETWEB_KEY": spelling})
    assert problem.startswith("$BILLETWEB_KEY: is the key of another user than billetweb.user")
    assert "99999" not in problem


@pytest.mark.parametrize("key", ["a:b-c-d", "c2VjcmV0", "Basic c2VjcmV0", "YTpi"])
def test_key_that_only_looks_like_another_spelling_is_taken_apart(write: Write, key: str) -> None:
    """A key with a colon, or one that could be Base64, is a key unless a number stands before a colon."""
    if " " in key:
        assert "one word" in problems(write(""), {"BILLETWEB_USER": "1", "BILLETWEB_KEY": key})[0]
    else:
        assert load(write(""), {"BILLETWEB_USER": "1", "BILLETWEB_KEY": key}).key == Secret(key)


@pytest.mark.parametrize("blank", ["", "\n"])
def test_blank_credential_hides_what_is_missing(write: Write, tmp_path: Path, blank: str) -> None:
    """A credential of a line break alone, the unit's own where there is no file, is as good as none."""
    environ = {"BILLETWEB_USER": "1"} | credential(tmp_path, "billetweb-key", blank)
    credential(tmp_path, "database-url", blank)
    assert problems(write("database.url = 'sqlite:///a.db'"), environ) == [
        f"API key: missing: {SETUP} writes it into credentials/billetweb-key; or {PLACES}"
    ]
    path = write("billetweb.key_file = 'key'\ndatabase.url = 'sqlite:///a.db'")
    (tmp_path / "key").write_text(CANARY)
    (tmp_path / "key").chmod(0o600)
    assert load(path, environ).key == Secret(CANARY)
    assert read(path, "database.url", environ) == "sqlite:///a.db"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
def test_key_that_everybody_can_read_is_used(write: Write, tmp_path: Path, mode: int) -> None:
    """A key file open to all users of the machine is refused, with the way to mend it."""
    path = write("billetweb.key_file = 'key'")
    (tmp_path / "key").write_text(CANARY)
    (tmp_path / "key").chmod(mode)
    [problem] = problems(path, {"BILLETWEB_USER": "1"})
    assert problem.endswith("every user of this machine can open that file: run chmod o-rw on it")


@pytest.mark.parametrize("name", ["billetweb-key", "database-url", "publish-Formation", "webhook-site"])
def test_credential_that_everybody_can_read_is_used(write: Write, tmp_path: Path, name: str) -> None:
    """One beside the configuration is refused, whichever it is; of systemd's it is not asked."""
    text = {"billetweb-key": CANARY, "webhook-site": SECRET}.get(name, "sqlite:////a.db")
    path = write(f"{PUBLISH}{WEBHOOK}".replace("secret_file", "# secret_file"))
    folder = tmp_path / "credentials"
    folder.mkdir()
    for each, good in {"billetweb-key": CANARY, "webhook-site": SECRET, name: text}.items():
        (folder / each).write_text(good)
        (folder / each).chmod(0o600)
    environ = {"BILLETWEB_USER": "1"}
    assert load(path, environ).credentials[name] == folder / name
    (folder / name).chmod(0o604)
    assert problems(path, environ) == [
        f"credential credentials/{name}: every user of this machine can open that file: run chmod o-rw on it"
    ]
    of_systemd = folder.rename(tmp_path / "run")
    assert (
        load(path, environ | {"CREDENTIALS_DIRECTORY": f"{of_systemd}"}).credentials[name]
        == of_systemd / name
    )


def test_odd_key_file_hangs_the_start(write: Write, tmp_path: Path) -> None:
    """A pipe, a device, a folder, a big file and no file at all are refused at once."""
    import os

    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "big").write_text("x" * 4097)
    (tmp_path / "big").chmod(0o600)
    (tmp_path / "bytes").write_bytes(CANARY.encode() + b"\xff")
    (tmp_path / "bytes").chmod(0o600)
    for name in ("pipe", "/dev/zero", ".", "big", "bytes", "absent", f"{CANARY}"):
        [problem] = problems(write(f"billetweb.key_file = '{name}'"), {"BILLETWEB_USER": "1"})
        assert problem.startswith("config.toml:1: billetweb.key_file: ")


@pytest.mark.parametrize(
    "text",
    [
        f"billetweb.key = '{CANARY}'",
        f"billetweb.api_key = ['{CANARY}']",
        f"billetweb.password.x = '{CANARY}'",
        f"api_token = '{CANARY}'",
        f"[database]\npassword = '{CANARY}'",
        f"billetweb.user = '{CANARY}'",
        f"billetweb.key_file = ['{CANARY}']",
        f"billetweb.base_url = 'https://u:{CANARY}@a.example'",
        f"billetweb.base_url = 'https://a.example?key={CANARY}'",
        f"heartbeat.url = 'https://a.example?key={CANARY}'",
        f"database.url = 'mysql://u:{CANARY}@h/d'",
        f"database.url = 'postgresql://u:{CANARY}@{CANARY}@h/d'",
        f"database.url = 'postgresql://h/d?sslpassword={CANARY}'",
        f"database.url = 'postgresql://h/d?sslmode=require&pwd={CANARY}'",
        f"database.url = 'postgresql://h/d?Pass={CANARY}'",
        f"[billetweb]\n{CANARY}",
        f"[billetweb]\nkey = {CANARY}",
    ],
)
def test_misplaced_secret_is_printed(write: Write, text: str) -> None:
    """A secret in the file, wherever it was put, is refused without repeating it."""
    assert len(problems(write(text))) == 1


@pytest.mark.parametrize("name", ["key", "api_key", "password", "Token", "secret"])
def test_key_in_the_file_is_refused_without_advice(write: Write, name: str) -> None:
    """A key written in the file is answered with the places where it belongs."""
    [problem] = problems(write(f"billetweb.{name} = '{CANARY}'"))
    assert problem.endswith(PLACES)
    [problem] = problems(write(f"database.{name} = '{CANARY}'"))
    assert '"database-url"' in problem


def test_bad_environment_is_printed(write: Write) -> None:
    """Environment variables that got swapped are refused without repeating them."""
    [problem] = problems(write(""), {"BILLETWEB_USER": CANARY, "BILLETWEB_KEY": "12345"})
    assert problem == "$BILLETWEB_USER: must be digits only, such as 12345"


def test_key_shows_itself(write: Write) -> None:
    """Neither printing nor encoding the configuration, or its key, gives the key away."""
    config = load(write(""), CREDENTIALS)
    assert config.key.value == CANARY
    for text in (repr(config), str(config), f"{config.key}", f"{config.key!r}", "%s" % config.key):  # noqa: UP031
        assert "***" in text
        assert CANARY not in text
    with pytest.raises(TypeError):
        msgspec.json.encode(config)
    assert config.key == Secret(CANARY)
    assert config.key != Secret("other")
    assert config.key != CANARY


# Anything at all


def toml(value: object) -> str:
    """Return a value as TOML, tables inline."""
    if isinstance(value, str):
        return (
            '"' + "".join(f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in value) + '"'
        )
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


names = st.sampled_from([*sorted({key for path in RANGES for key in path.split(".")}), "key_file", "key"])
texts = st.text("ab1 .=#[]{}'\"\\\n\t\0\x7f\u2028é😀", max_size=20)
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.datetimes(),
    st.dates(),
    texts,
    st.lists(st.tuples(st.integers(0, 10**12), st.sampled_from("dhms"))).map(
        lambda parts: "".join(f"{number}{unit}" for number, unit in parts)
    ),
    st.tuples(st.sampled_from(["https", "http", "sqlite"]), st.text("a1@:/?#[].", max_size=12)).map(
        "://".join
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | texts, inner, max_size=3),
    max_leaves=5,
)
documents = st.dictionaries(names | texts, values | st.dictionaries(names, values, max_size=4), max_size=4)


@pytest.fixture(scope="module")
def junk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("junk") / "config.toml"


def refused(path: Path) -> list[str]:
    """Return what `load` refuses, nothing if it accepts the file."""
    try:
        load(path, CREDENTIALS)
    except ConfigError as error:
        return error.problems
    return []


@given(document=documents)
def test_odd_values_raise_something_else(junk: Path, document: dict[str, object]) -> None:
    """Any TOML gives a configuration or a ConfigError, and each problem stands on the line of its key."""
    rows = [f"{toml(name)} = {toml(value)}" for name, value in document.items()]
    junk.write_text("\n".join(rows), encoding="utf-8")
    for problem in refused(junk):
        assert problem.isprintable()
        line = problem.removeprefix(f"{junk}:").split(":")[0]
        [name] = tomllib.loads(rows[int(line) - 1])
        if name.isprintable():
            assert problem.startswith(f"{junk}:{line}: {name}")


@given(content=st.binary() | texts.map(str.encode) | st.text("[]{}=.,'\"#\n ab1").map(str.encode))
def test_odd_files_raise_something_else(junk: Path, content: bytes) -> None:
    """Any bytes give a configuration or a ConfigError."""
    junk.write_bytes(content)
    assert all(problem.isprintable() for problem in refused(junk))
