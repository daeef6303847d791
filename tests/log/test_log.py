"""The log by real sinks: files, a terminal, and a datagram socket that stands as the journal."""

import base64
import contextlib
import io
import json
import logging
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO
from urllib.parse import quote, quote_plus

import httpx
import pytest
from loguru import logger
from sqlalchemy import create_engine, text

from syncd.log.redact import Redactor
from syncd.log.setup import configure, message_id

CANARY = "canary/é?k&y 'q\" tail-end"
TOKEN = base64.b64encode(f"12345:{CANARY}".encode()).decode()


class Journal:
    """A datagram socket in journald's place."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.bind()

    def bind(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(1)

    def close(self) -> None:
        self.socket.close()
        Path(self.path).unlink(missing_ok=True)

    def entry(self) -> dict[str, str]:
        return decode(self.socket.recv(1 << 20))

    def everything(self) -> Iterator[str]:
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.socket.recv(1 << 20).decode(errors="replace")


def decode(datagram: bytes) -> dict[str, str]:
    """Give back the fields of a datagram in the journal's native form."""
    fields = {}
    while datagram:
        line, datagram = datagram.split(b"\n", 1)
        name, is_short, value = line.partition(b"=")
        if not is_short:
            (length,) = struct.unpack_from("<Q", datagram)
            value, end, datagram = datagram[8 : 8 + length], datagram[8 + length], datagram[9 + length :]
            assert end == ord("\n")
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Heed no setting of the caller's; leave no sink, no bridge and no level behind."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logger.remove()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "socket")
    yield found
    found.close()


@pytest.fixture
def err(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "err").open("w+", encoding="utf-8") as stream:
        yield stream


def written(stream: TextIO) -> str:
    return Path(stream.name).read_text(encoding="utf-8")


def entry_of(stream: TextIO) -> dict[str, object]:
    found: dict[str, object] = json.loads(written(stream))
    return found


def fail(why: str, say: Callable[[str], None] = logger.exception) -> None:
    """Log an exception whose text ends in `why`, quoted."""
    try:
        int(why)
    except ValueError:
        say("what")


def speak_of_everything(secret: str, token: str) -> None:
    """Say the secret by every way into the log."""
    logger.info(f"message {secret}")
    logger.bind(event="test.field", url=f"https://host/?key={quote(secret)}", count=1).info("field")
    fail(secret)
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with httpx.Client(transport=transport) as client:
        client.get("https://host/api/events", params={"key": secret})
    logging.getLogger("uvicorn").warning("arguments that do not fit", secret[::-1])
    logging.getLogger("apscheduler").error("token %s, %r", token, {"args": [secret]})
    warnings.simplefilter("always")
    warnings.warn(f"warning {quote_plus(secret)}", stacklevel=1)


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_key_readable_in_log(form: Literal["text", "json", "journal"], journal: Journal, err: TextIO) -> None:
    """No way into the log leads a secret out of it, quoted or not, in any form."""
    redact = Redactor([CANARY, TOKEN])
    configure(level="TRACE", format=form, redact=redact, stream=err, journal_path=journal.path)
    speak_of_everything(CANARY, TOKEN)
    output = "".join(journal.everything()) if form == "journal" else written(err)
    said = {"message ***", "?key=***", "base 10: '***'", "HTTP Request: GET", "token ***", "warning ***"}
    assert {words for words in said if words not in output} == set()
    spelled = {TOKEN, quote(CANARY), "canary", "tail-end", "yranac"}  # the last: arguments that did not fit
    assert {words for words in spelled if words in output} == set()


@pytest.mark.parametrize("secret", ["plain-Key_1.0~x", "a+b/c=d", "p@ss:w%rd", "dès 4€", "back\\slash\"'"])
@pytest.mark.parametrize(
    "spell",
    [
        lambda s: s,
        lambda s: quote(s, safe=""),
        lambda s: re.sub("%..", lambda found: found[0].lower(), quote(s)),
        quote_plus,
        lambda s: repr(s)[1:-1],
        lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    ],
)
def test_quoted_secret_slips_through(secret: str, spell: Callable[[str], str]) -> None:
    """A held secret is found in every usual spelling."""
    assert Redactor([secret])(f"<{spell(secret)}>") == "<***>"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("GET /api/events?user=1&key=abc&past=1", "GET /api/events?user=1&key=***&past=1"),
        ("api_key=abc", "api_key=***"),
        ("dbname=x password='a b' host=h", "dbname=x password=*** host=h"),
        ("?token=abc'", "?token=***'"),
        ("Authorization: Basic MTIzOmFiYw==", "Authorization: Basic ***"),
        ("{'authorization': 'Bearer a.b.c', 'x': 1}", "{'authorization': 'Bearer ***', 'x': 1}"),
        ("[(b'Authorization', b'Basic YWJj')]", "[(b'Authorization', b'Basic ***')]"),
        ("postgresql+psycopg://syncd:p@ss@db:5432/x", "postgresql+psycopg://syncd:***@db:5432/x"),
        ("secret whsec_MfKQ9r+8/abc=, next", "secret whsec_***, next"),
        ("http://[::1]:80/a@b 12:30 monkey business", "http://[::1]:80/a@b 12:30 monkey business"),
    ],
)
def test_unannounced_secret_readable(said: str, shown: str) -> None:
    """What looks like a secret is hidden without having been announced, and nothing else is."""
    assert Redactor()(said) == shown


def test_short_secret_shreds_text() -> None:
    """A secret of three characters is ignored; one of four is hidden."""
    assert Redactor(["run", "four"])("run four") == "run ***"


def test_reload_uncovers_old_key() -> None:
    """After a new key is added the old one stays hidden, and one that begins like it is hidden whole."""
    redact = Redactor(["oldkey"])
    redact.add("oldkey-new")
    assert redact("oldkey oldkey-new") == "*** ***"


def test_reload_doubles_lines_or_keeps_level(err: TextIO) -> None:
    """Configured again, each record is written once, by the new level and form."""
    configure(level="DEBUG", format="json", redact=Redactor(), stream=err)
    logger.debug("first")
    configure(level="INFO", format="text", redact=Redactor(), stream=err)
    logger.debug("hidden")
    logger.info("second")
    logging.getLogger("httpx").warning("third")
    first, second, third = written(err).splitlines()
    assert json.loads(first)["message"] == "first"
    assert second.endswith("INFO    second")
    assert third.endswith("WARNING httpx: third")


def test_unknown_level_silences_daemon(err: TextIO) -> None:
    """A level that does not exist is refused, and the old sink goes on."""
    configure(level="INFO", format="text", redact=Redactor(), stream=err)
    with pytest.raises(ValueError, match="LOUD"):
        configure(level="LOUD", format="text", redact=Redactor(), stream=err)
    logger.info("still here")
    assert "still here" in written(err)


def test_libraries_chat_at_info(err: TextIO) -> None:
    """What libraries call information shows at DEBUG only, and with the place it came from."""
    library = logging.getLogger("apscheduler.scheduler")
    configure(level="INFO", format="text", redact=Redactor(), stream=err)
    library.info("hidden")
    configure(level="DEBUG", format="text", redact=Redactor(), stream=err)
    library.debug("hidden too")
    library.info("shown %d", 1)
    (line,) = written(err).splitlines()
    assert line.endswith("DEBUG   apscheduler.scheduler: shown 1")


def test_attendee_names_in_debug_log(err: TextIO) -> None:
    """Even the lowest level shows no SQL parameters, and a traceback no values of variables."""
    configure(level="TRACE", format="text", redact=Redactor(), stream=err)
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("select :name"), {"name": "Camille Martin"})
    engine.dispose()
    names = ["Camille Martin"]
    try:
        names.pop(1)
    except IndexError:
        logger.exception("done")
    assert "IndexError: pop index out of range" in written(err)
    assert "Camille" not in written(err)


def test_text_line_changes_form(err: TextIO) -> None:
    """A line is local time, level padded to seven, message; the traceback follows; no colour in a file."""
    configure(level="INFO", format="text", redact=Redactor(), stream=err)
    before = datetime.now().astimezone().replace(microsecond=0, tzinfo=None)
    fail("why")
    first, *rest = written(err).splitlines()
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ERROR   what", first)
    assert found
    assert abs((datetime.fromisoformat(found[1]) - before).total_seconds()) < 5
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ValueError: invalid literal for int() with base 10: 'why'"


def test_foreign_text_forges_records(err: TextIO) -> None:
    """A line break or an escape sequence in a message neither starts a record nor reaches a terminal."""
    configure(level="INFO", format="text", redact=Redactor(), stream=err)
    logger.info("name\n2026-11-23 22:11:05 INFO    forged\x1b[2J\r")
    assert written(err).splitlines()[1:] == ["    2026-11-23 22:11:05 INFO    forged\\x1b[2J"]


ODD = "a\x1b[2Jb\x9bc\x85d\u2028e\u202ef\u2066g\u200fh\ud800i\x00j"
SHOWN = r"a\x1b[2Jb\x9bc\x85d\u2028e\u202ef\u2066g\u200fh\ud800i\x00j"
Form = Literal["text", "json", "journal"]


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_foreign_text_commands_whoever_reads(form: Form, journal: Journal, err: TextIO) -> None:
    """In every form what commands a terminal or turns the writing is escaped: message, fields, exception."""
    configure(level="INFO", format=form, redact=Redactor(), stream=err, journal_path=journal.path)
    logger.bind(subject=ODD).opt(exception=ValueError(ODD)).error("said: {}", ODD)
    told: dict[str, object] = {}
    match form:
        case "text":
            told["line"] = written(err)
        case "json":
            told |= entry_of(err)
        case "journal":
            told |= journal.entry()
    values = [str(value) for value in told.values()]
    assert sum(value.count(SHOWN) for value in values) == (2 if form == "text" else 3)
    assert not (set(ODD) - set(SHOWN)) & set("".join(values))


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_foreign_text_fills_the_log(form: Form, journal: Journal, err: TextIO) -> None:
    """A message and a field of a million characters are cut in every form, and say so."""
    configure(level="INFO", format=form, redact=Redactor(), stream=err, journal_path=journal.path)
    logger.bind(subject="é" * 10**6).error("begin {} end", "x" * 10**6)
    told = repr(journal.entry()) if form == "journal" else written(err)
    assert len(told) < 10_000
    assert "begin xxx" in told
    assert "characters cut" in told


def test_json_line_is_none_in_another_alphabet(tmp_path: Path) -> None:
    """Where stderr's encoding lacks a character, the line is JSON all the same."""
    with (tmp_path / "log").open("w", encoding="latin-1", errors="backslashreplace") as stream:
        configure(level="INFO", format="json", redact=Redactor(), stream=stream)
        logger.bind(subject="Fête 🌱").info("à 12 €")
    entry = json.loads((tmp_path / "log").read_bytes().decode("latin-1"))
    assert (entry["message"], entry["subject"]) == ("à 12 €", "Fête 🌱")


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_colour_against_no_color(monkeypatch: pytest.MonkeyPatch, no_color: str, is_coloured: bool) -> None:
    """The level has colour on a terminal, unless NO_COLOR is set."""
    monkeypatch.setenv("NO_COLOR", no_color)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        configure(level="INFO", format="text", redact=Redactor(), stream=terminal)
        logger.warning("look")
        output = os.read(master, 1000)
    os.close(master)
    assert b"look" in output
    assert (b"\x1b[33mWARNING\x1b[0m" in output) is is_coloured


def test_json_fields_lost(err: TextIO) -> None:
    """A JSON line holds the instant in UTC, the bound fields as they are, and no null."""
    configure(level="INFO", format="json", redact=Redactor(), stream=err)
    fields = {"subject": Path("é"), "kind": None, "rate": float("nan"), "ts": "mine"}
    logger.bind(event="run.finished", run=17, duration_s=2.5, **fields).info("run 17\nfinished")
    found = entry_of(err)
    ts = str(found.pop("ts"))
    assert ts.endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(ts)).total_seconds()) < 5
    assert found == {
        "level": "INFO",
        "message": "run 17\nfinished",
        "event": "run.finished",
        "run": 17,
        "duration_s": 2.5,
        "subject": "é",
        "rate": "nan",
    }


def test_json_exception_breaks_line(err: TextIO) -> None:
    """An exception is one field of its line."""
    configure(level="INFO", format="json", redact=Redactor(), stream=err)
    fail("why")
    found = entry_of(err)
    assert found["message"] == "what"
    assert str(found["exception"]).endswith("base 10: 'why'")


def test_journal_fields_lost(journal: Journal, err: TextIO) -> None:
    """The journal gets message, priority, place, message id and the bound fields, and the stream nothing."""
    configure(level="INFO", format="journal", redact=Redactor(), stream=err, journal_path=journal.path)
    logger.bind(event="run.finished", run=17, outcome="ok", kind=None).info("first\nsecond = é")
    found = journal.entry()
    place = (found.pop("CODE_FILE"), found.pop("CODE_FUNC"))
    assert place == (__file__, "test_journal_fields_lost")
    assert int(found.pop("CODE_LINE")) > 0
    assert int(found.pop("TID")) == threading.get_native_id()
    assert found == {
        "MESSAGE": "first\nsecond = é",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "syncd",
        "MESSAGE_ID": message_id("run.finished"),
        "SYNCD_EVENT": "run.finished",
        "SYNCD_RUN": "17",
        "SYNCD_OUTCOME": "ok",
    }
    assert written(err) == ""


def test_message_ids_move() -> None:
    """The id of an event name is fixed: filters and catalogues of sites are written against it."""
    assert message_id("run.finished") == "ac3c8cb389d454b3b078877020fa0275"
    assert message_id("run.started") != message_id("run.finished")


@pytest.mark.parametrize(
    ("level", "priority"),
    [("DEBUG", "7"), ("INFO", "6"), ("WARNING", "4"), ("ERROR", "3"), ("CRITICAL", "2")],
)
def test_journal_priority_wrong(level: str, priority: str, journal: Journal, err: TextIO) -> None:
    """Each level has syslog's priority."""
    configure(level="DEBUG", format="journal", redact=Redactor(), stream=err, journal_path=journal.path)
    logger.log(level, "said")
    assert journal.entry()["PRIORITY"] == priority


def test_journal_blames_bridge(journal: Journal, err: TextIO) -> None:
    """A library's record carries its own place, and its traceback the record's priority."""
    configure(level="INFO", format="journal", redact=Redactor(), stream=err, journal_path=journal.path)
    fail("why", logging.getLogger("uvicorn.error").exception)
    found = journal.entry()
    assert (found["CODE_FILE"], found["CODE_FUNC"], found["PRIORITY"]) == (__file__, "fail", "3")
    assert found["MESSAGE"].startswith("uvicorn.error: what\nTraceback")
    assert found["MESSAGE"].endswith("base 10: 'why'")
    assert "MESSAGE_ID" not in found


def test_odd_field_name_forges_fields(journal: Journal, err: TextIO) -> None:
    """A key with other characters than the journal allows stays one field."""
    configure(level="INFO", format="journal", redact=Redactor(), stream=err, journal_path=journal.path)
    logger.bind(**{"a=b\nPRIORITY": "0"}).info("said")
    found = journal.entry()
    assert (found["SYNCD_A_B_PRIORITY"], found["PRIORITY"]) == ("0", "6")


def test_long_message_lost(journal: Journal, err: TextIO) -> None:
    """A record too large for a datagram arrives with long values cut, its two ends kept, and says so."""
    configure(level="INFO", format="journal", redact=Redactor(), stream=err, journal_path=journal.path)
    logger.bind(run=17, subject="é" * 10**6).error(f"begin {'x' * 10**6} end")
    found = journal.entry()
    assert re.fullmatch(r"begin x{1994} \[…996010 characters cut…\] x{1996} end", found["MESSAGE"])
    assert found["SYNCD_RUN"] == "17"
    assert len(found["SYNCD_SUBJECT"]) < 5000


def test_vanished_journal_ends_daemon(journal: Journal, err: TextIO) -> None:
    """While the journal is away each line goes to the stream with its priority; then it is used again."""
    configure(level="INFO", format="journal", redact=Redactor(), stream=err, journal_path=journal.path)
    journal.close()
    logger.error("first\nsecond")
    assert written(err) == "<3>first\n<3>second\n"
    journal.bind()
    logger.error("third")
    assert journal.entry()["MESSAGE"] == "third"
    assert "third" not in written(err)


LAST_WORDS = """
import sys
from loguru import logger
from syncd.log import setup
from syncd.log.redact import Redactor
setup.configure(level="INFO", format="journal", redact=Redactor(), journal_path=sys.argv[1])
logger.error("no key")
"""


@pytest.mark.parametrize("is_read", [True, False])
def test_last_words_belong_to_no_unit(journal: Journal, *, is_read: bool) -> None:
    """A process ends when the journal has read what it said, and so can ask whose it was; or soon."""
    with subprocess.Popen([sys.executable, "-c", LAST_WORDS, journal.path]) as process:
        select.select([journal.socket], [], [], 30)
        if is_read:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            assert journal.entry()["MESSAGE"] == "no key"
        assert process.wait(30) == 0


def journal_stream(stream: TextIO) -> str:
    status = os.fstat(stream.fileno())
    return f"{status.st_dev}:{status.st_ino}"


def test_journal_not_recognised(journal: Journal, err: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is the journal where $JOURNAL_STREAM names the stream."""
    monkeypatch.setenv("JOURNAL_STREAM", journal_stream(err))
    configure(level="INFO", format="auto", redact=Redactor(), stream=err, journal_path=journal.path)
    logger.info("said")
    assert journal.entry()["MESSAGE"] == "said"


@pytest.mark.parametrize("obstacle", ["unset", "another stream", "no socket", "nobody listens"])
def test_log_into_nowhere(
    obstacle: str, journal: Journal, err: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is text where the variable is missing or inherited, or the journal takes nothing."""
    monkeypatch.setenv("JOURNAL_STREAM", journal_stream(err))
    if obstacle == "unset":
        monkeypatch.delenv("JOURNAL_STREAM")
    elif obstacle == "another stream":
        with Path(os.devnull).open() as other:
            monkeypatch.setenv("JOURNAL_STREAM", journal_stream(other))
    elif obstacle == "no socket":
        journal.close()
    else:
        journal.socket.close()
    configure(level="INFO", format="auto", redact=Redactor(), stream=err, journal_path=journal.path)
    logger.info("said")
    assert written(err).endswith("INFO    said\n")


def test_full_disk_ends_run() -> None:
    """A full disk under the log, or a closed stream, is no error of the run."""
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as stream:
        configure(level="INFO", format="text", redact=Redactor(), stream=stream)
        logger.info("lost")
        with pytest.raises(OSError, match="No space"):
            stream.write("so full is it")
    logger.info("lost")


class Unprintable:
    """A value whose text cannot be had, and that logs about it."""

    def __str__(self) -> str:
        logging.getLogger("library").error("inner")
        raise KeyError


def test_unprintable_field_ends_run(err: TextIO) -> None:
    """A field whose text raises, and logs meanwhile, is named; the record is written."""
    configure(level="INFO", format="json", redact=Redactor(), stream=err)
    logger.bind(subject=Unprintable()).info("said")
    found = entry_of(err)
    assert found["message"] == "said"
    assert found["subject"] == "(Unprintable: KeyError while printing it)"


def test_stderr_not_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a stream the log goes to what is standard error when `configure` is called."""
    configure(level="INFO", format="text", redact=Redactor())
    logger.info("said")
    assert capsys.readouterr().err.endswith("INFO    said\n")


def test_a_pipe_that_nobody_reads_stops_the_daemon() -> None:
    """Lines that nothing takes are lost, the first after a second; once it takes lines again it has them."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    with os.fdopen(writer, "w", encoding="utf-8") as stream, os.fdopen(reader, "rb", 0) as pipe:
        configure(level="INFO", format="text", redact=Redactor(), stream=stream)
        began = time.monotonic()
        for _ in range(100):
            logger.info("lost")
        assert 0.9 < time.monotonic() - began < 10
        while pipe.read(1 << 16)[-1:] == b"x" and select.select([pipe], [], [], 0)[0]:
            pass
        logger.info("taken")
        assert pipe.read(1 << 16).endswith(b"taken\n")
