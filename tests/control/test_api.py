"""The control server's routes, asked over a real Unix socket; a daemon of a few lines stands behind it."""

import asyncio
import os
import pwd
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from support.control_stub import SECRET, Stub, refused, serving
from support.processes import short_folder

import syncd
from syncd.control import asked
from syncd.control.api import FOLLOWED_WITHIN_S
from syncd.errors import AlreadyRunning, ConfigError, StoreError
from syncd.model import Peer
from syncd.run.runner import Stopping

BAD_REQUEST = (400, "bad_request")


class Switch:
    """Stands before the daemon of the test in progress, so that one server does for all of them."""

    stub = Stub()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stub, name)


SWITCH = Switch()


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    """Serve in a thread for as long as these tests last; give the socket's path."""
    stop, up = threading.Event(), threading.Event()

    async def serve(path: Path) -> None:
        async with serving(path, cast("Stub", SWITCH)):
            up.set()
            await asyncio.to_thread(stop.wait)

    with short_folder() as folder:
        thread = threading.Thread(target=lambda: asyncio.run(serve(folder / "syncd.sock")))
        thread.start()
        assert up.wait(10)
        yield folder / "syncd.sock"
        stop.set()
        thread.join()


def answers(path: Path, stub: Stub, *requests: tuple[str, str], **options: Any) -> list[httpx.Response]:
    """Return the answers of this daemon to these requests, each a method and a target."""
    SWITCH.stub = stub
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://syncd") as client:
        return [client.request(*request, **options) for request in requests]


# --- the routes


def test_every_route_of_the_contract_answers(path: Path) -> None:
    """Each route has its status, its type of body, its keys, and the version of syncd."""
    stub = Stub()
    wanted = {
        ("GET", "/v1/status"): (200, "application/json", {"version", "health", "next_run_at", "events_full"}),
        ("POST", "/v1/runs"): (202, "application/json", {"id", "requested_by", "state", "counts"}),
        ("GET", "/v1/runs"): (200, "application/json", {"runs"}),
        ("GET", "/v1/runs/42"): (200, "application/json", {"id", "outcome", "errors", "duration_s"}),
        ("GET", "/v1/events"): (200, "application/json", {"events"}),
        ("GET", "/v1/doubts"): (200, "application/json", {"doubts"}),
        ("GET", "/v1/publish"): (200, "application/json", {"publish"}),
        ("GET", "/v1/webhooks"): (200, "application/json", {"endpoints", "deliveries"}),
        ("POST", "/v1/accept"): (202, "application/json", {"id", "requested_by", "accept", "accepted"}),
        ("POST", "/v1/pause"): (200, "application/json", {"is_running"}),
        ("POST", "/v1/resume"): (200, "application/json", {"is_running"}),
        ("POST", "/v1/reload"): (200, "application/json", {"is_running"}),
    }
    for (request, (status, kind, keys)), answer in zip(
        wanted.items(), answers(path, stub, *wanted), strict=True
    ):
        assert (answer.status_code, answer.headers["content-type"]) == (status, kind), request
        assert answer.headers.get_list("syncd-version") == [syncd.__version__]
        assert keys <= answer.json().keys()
    assert [asked[:2] for asked in stub.asked if asked[0] == "pause"] == [("pause", True), ("pause", False)]
    assert [asked[2].uid for asked in stub.asked if asked[0] == "pause"] == [os.getuid()] * 2
    assert ("reload",) in stub.asked


def test_instants_are_in_utc_and_text_is_utf_8(path: Path) -> None:
    """Instants are written with a Z, durations as seconds, names as they are."""
    status, runs, events = answers(
        path, Stub(), ("GET", "/v1/status"), ("GET", "/v1/runs"), ("GET", "/v1/events")
    )
    assert status.json()["started_at"] == "2027-05-08T10:00:00Z"
    assert status.json()["last_success_at"] is None
    run = runs.json()["runs"][0]
    assert (run["finished_at"], run["duration_s"]) == ("2027-05-08T10:00:01.500000Z", 1.5)
    assert run["errors"] == [{"subject": "event 9", "kind": "transport", "message": "no « answer »"}]
    event = events.json()["events"][0]
    assert (event["starts_at"], event["name"]) == ("2027-05-08T10:00:00Z", "Fête du pain ☂")


def test_health_is_a_status_that_a_monitor_understands(path: Path) -> None:
    """The health route is 200 while all is well and 503 with the reason else."""
    stub = Stub()
    (answer,) = answers(path, stub, ("GET", "/healthz"))
    assert (answer.status_code, answer.text) == (200, "ok\n")
    stub.health = ("degraded", "no successful run yet")
    (answer,) = answers(path, stub, ("GET", "/healthz"))
    assert (answer.status_code, answer.text) == (503, "degraded: no successful run yet\n")
    assert answer.headers["syncd-version"] == syncd.__version__


def test_metrics_come_as_prometheus_asks(path: Path) -> None:
    """The metrics route answers with the exposition under its own type."""
    (answer,) = answers(path, Stub(), ("GET", "/metrics"))
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\nsyncd_paused 0.0\n" in answer.content


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", ("runs", 20, None)),
        ("?limit=1", ("runs", 1, None)),
        ("?limit=1000&before=42", ("runs", 1000, 42)),
        ("?before=-7", ("runs", 20, -7)),
        ("?before=9007199254740993", ("runs", 20, 9007199254740993)),
        *(
            (f"?limit={bad}", None)
            for bad in ("0", "-1", "1001", "nan", "NaN", "inf", "1.5", "1_0", "1e2", "", "x")
        ),
        *((f"?before={bad}", None) for bad in ("nan", "inf", "-inf", "1.5", "", "x", "9" * 30, "9" * 5000)),
    ],
)
def test_a_bad_limit_is_refused_and_asks_nothing(
    path: Path, query: str, asked: tuple[Any, ...] | None
) -> None:
    """`limit` and `before` are whole numbers within bounds; all else is the client's mistake."""
    stub = Stub()
    (answer,) = answers(path, stub, ("GET", f"/v1/runs{query}"))
    if asked:
        assert (answer.status_code, stub.asked) == (200, [asked])
    else:
        assert (refused(answer), stub.asked) == (BAD_REQUEST, [])


@pytest.mark.parametrize(
    ("query", "waited_s"),
    [
        ("", []),
        ("?wait=0", []),
        ("?wait=0.25", [0.25]),
        ("?wait=60", [60.0]),
        *((f"?wait={bad}", None) for bad in ("60.001", "-1", "nan", "NaN", "inf", "-inf", "1e999", "", "1s")),
    ],
)
def test_a_wait_has_bounds(path: Path, query: str, waited_s: list[float] | None) -> None:
    """A wait is from 0 to 60 seconds; no other number holds a connection.

    This run is over when the wait is: the answer waits also, for a moment at most, for what follows the run.
    """
    stub = Stub()
    (answer,) = answers(path, stub, ("GET", f"/v1/runs/42{query}"))
    waits = [asked for asked in stub.asked if asked[0] == "wait"]
    if waited_s is None:
        assert (refused(answer), waits) == (BAD_REQUEST, [])
    else:
        assert answer.json()["id"] == 42
        assert waits == [("wait", 42, each) for each in (*waited_s, FOLLOWED_WITHIN_S)]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/v1/runs?limit=many", "limit: a whole number from 1 to 1000"),
        ("/v1/runs?limit=1&before=", "before: the number of a run"),
        ("/v1/runs/42?wait=61", "wait: from 0 to 60 seconds"),
        ("/v1/webhooks?limit=0", "limit: a whole number from 1 to 1000"),
        ("/v1/events?all=yes", "all: 0 or 1"),
    ],
)
def test_a_refused_parameter_is_told_in_the_words_of_a_library(path: Path, target: str, told: str) -> None:
    """Whoever typed it reads which parameter it is and what fits."""
    (answer,) = answers(path, Stub(), ("GET", target))
    assert answer.json() == {"error": {"code": "bad_request", "message": told}}


@pytest.mark.parametrize(("query", "ended_too"), [("", False), ("?all=0", False), ("?all=1", True)])
def test_ended_events_come_only_when_asked_for(path: Path, query: str, ended_too: bool) -> None:
    """`all=1` adds the ended events, `all=0` is the default, and anything else is refused."""
    stub = Stub()
    answer, bad = answers(path, stub, ("GET", f"/v1/events{query}"), ("GET", "/v1/events?all=yes"))
    assert (answer.status_code, stub.asked) == (200, [("events", ended_too)])
    assert refused(bad) == BAD_REQUEST


@pytest.mark.parametrize(
    "run_id",
    [
        "1",
        "abc",
        "4_2",
        "4.2",
        "4.2e1",
        "42.0",
        "nan",
        "%00",
        "%ff",
        "-0x1",
        "9" * 19,
        "-" + "9" * 30,
        "9" * 5000,
    ],
)
@pytest.mark.parametrize("rest", ["", "/progress"])
def test_an_id_that_no_run_has_is_not_found(path: Path, run_id: str, rest: str) -> None:
    """Ids that are unknown, huge or no numbers at all are 404, and never asked of the database."""
    stub = Stub()
    (answer,) = answers(path, stub, ("GET", f"/v1/runs/{run_id}{rest}"))
    assert refused(answer) == (404, "unknown_run")
    assert all(abs(asked[1]) < 2**63 for asked in stub.asked)


def test_a_run_that_no_database_took_note_of_is_found(path: Path) -> None:
    """Negative ids are real ones."""
    (answer,) = answers(path, Stub(), ("GET", "/v1/runs/-7"))
    assert answer.json()["id"] == -7


def test_a_doubt_is_shown_by_halves(path: Path) -> None:
    """Each doubt has all that the contract names; its instants are in UTC."""
    (answer,) = answers(path, Stub(), ("GET", "/v1/doubts"))
    assert answer.json()["doubts"] == [
        {
            "table": "billetweb_tickets",
            "event_id": "900001",
            "absent": 3,
            "of": 4,
            "since": "2027-05-08T10:00:00Z",
            "reads": 2,
            "examples": ["1", "2", "3"],
            "waits_for": "time",
            "until": "2027-05-09T10:00:00Z",
        }
    ]


# --- runs by request


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b"", (False, [], False)),
        (b"{}", (False, [], False)),
        (b'{"full": true, "join": true}', (True, [], True)),
        (b'{"events": ["900001", "900002"]}', (False, ["900001", "900002"], False)),
    ],
)
def test_a_request_for_a_run_is_taken_at_its_word(
    path: Path, body: bytes, asked: tuple[bool, list[str], bool]
) -> None:
    """What the body says is asked of the daemon, in the name of the process at the other end."""
    stub = Stub()
    (answer,) = answers(path, stub, ("POST", "/v1/runs"), content=body)
    me = Peer(os.getuid(), pwd.getpwuid(os.getuid()).pw_name, os.getpid())
    assert stub.asked == [("run", *asked, me)]
    assert answer.status_code == 202
    assert answer.json()["requested_by"] == {"uid": me.uid, "user": me.user, "pid": me.pid}


@pytest.mark.parametrize(("body", "events"), [(b"", []), (b'{"events": ["900001"]}', ["900001"])])
def test_consent_is_taken_for_a_plain_request(path: Path, body: bytes, events: list[str]) -> None:
    """What is accepted is asked of the daemon, of those events alone, in the name of who says so."""
    stub = Stub()
    (answer,) = answers(path, stub, ("POST", "/v1/accept"), content=body)
    me = Peer(os.getuid(), pwd.getpwuid(os.getuid()).pw_name, os.getpid())
    assert stub.asked == [("accept", False, events, False, me)]
    assert (answer.status_code, answer.json()["accept"]) == (202, True)


@pytest.mark.parametrize("target", ["/v1/runs", "/v1/accept"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"full",
        b"[]",
        b"null",
        b'"full"',
        b'{"full": 1}',
        b'{"full": "true"}',
        b'{"join": null}',
        b'{"events": "900001"}',
        b'{"events": [900001]}',
        b'{"events": null}',
        b'{"all": true}',
        b'{"events": [""]}',
        b'{"events": ["1", "../2"]}',
        '{"events": ["१२"]}'.encode(),
        b'{"events": ["-1"]}',
        b'{"full": true} {}',
        b'{"\xff": true}',
        b'{"events": ["\xff"]}',
        b'{"events": ["\\ud800"]}',
        b"\x00",
    ],
)
def test_a_bad_body_starts_no_run(path: Path, target: str, body: bytes) -> None:
    """Text that is no JSON, wrong types, unknown keys and odd event ids are refused with 400."""
    stub = Stub()
    (answer,) = answers(path, stub, ("POST", target), content=body)
    assert (refused(answer), stub.asked) == (BAD_REQUEST, [])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size_kib", "is_read"), [(64, True), (65, False), (4096, False)])
def test_a_huge_body_is_refused_before_it_fills_the_memory(
    path: Path, size_kib: int, is_read: bool, chunked: bool
) -> None:
    """More than 64 KiB are refused, whether the length is told beforehand or not; 64 KiB are read."""
    stub = Stub()
    body = b"{}".ljust(size_kib * 1024)
    pieces = (body[at : at + 1024] for at in range(0, len(body), 1024))
    (answer,) = answers(path, stub, ("POST", "/v1/runs"), content=pieces if chunked else body)
    assert answer.status_code == 202 if is_read else refused(answer) == (413, "too_large")
    assert len(stub.asked) == is_read


# --- errors


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/v1", (404, "unknown_route")),
        ("GET", "/v2/status", (404, "unknown_route")),
        ("GET", "/v1/runs/42/steps", (404, "unknown_route")),
        ("GET", "/v1/status/", (404, "unknown_route")),
        ("POST", "/v1/runs/", (404, "unknown_route")),
        ("POST", "/v1/status", (405, "wrong_method")),
        ("GET", "/v1/pause", (405, "wrong_method")),
        ("GET", "/v1/reload", (405, "wrong_method")),
        ("GET", "/v1/accept", (405, "wrong_method")),
        ("POST", "/v1/doubts", (405, "wrong_method")),
        ("DELETE", "/v1/runs", (405, "wrong_method")),
        ("PUT", "/v1/runs/42", (405, "wrong_method")),
    ],
)
def test_an_unknown_route_is_an_error_of_the_usual_shape(
    path: Path, method: str, target: str, expected: tuple[int, str]
) -> None:
    """Wrong paths and methods are told apart, and change nothing."""
    stub = Stub()
    (answer,) = answers(path, stub, (method, target))
    assert (refused(answer), stub.asked) == (expected, [])


def test_an_error_names_the_socket(path: Path) -> None:
    """It names the route that was asked for, also where the host is none."""
    (answer,) = answers(path, Stub(), ("GET", "/v1/nothing"), headers={"Host": "["})
    assert answer.json()["error"]["message"] == "GET /v1/nothing: Not Found"


@pytest.mark.parametrize(
    ("request_", "fault", "expected"),
    [
        (("POST", "/v1/runs"), Stopping("syncd is stopping"), (409, "stopping")),
        (("POST", "/v1/accept"), Stopping("syncd is stopping"), (409, "stopping")),
        (("GET", "/v1/doubts"), StoreError("the database is locked"), (503, "database")),
        (("POST", "/v1/reload"), ConfigError(["sync.interval: too short"]), (422, "configuration")),
        (("GET", "/v1/events"), StoreError("the database is locked"), (503, "database")),
        (("POST", "/v1/pause"), StoreError("the database is locked"), (503, "database")),
        (("GET", "/v1/runs/42"), StoreError("the database is locked"), (503, "database")),
    ],
)
def test_what_the_daemon_refuses_is_told_with_its_reason(
    path: Path, request_: tuple[str, str], fault: Exception, expected: tuple[int, str]
) -> None:
    """Each refusal has its status, its stable code and its sentence."""
    stub = Stub()
    stub.fault = fault
    (answer,) = answers(path, stub, request_)
    assert refused(answer) == expected
    assert answer.json()["error"]["message"] == str(fault)


@pytest.mark.parametrize(
    "fault",
    [
        StoreError(f"no such table: {SECRET}"),
        StoreError("connection failed: host=db password=hunter2-is-secret"),
        StoreError("cannot open postgresql://syncd:hunter2-is-secret@db/x"),
        ConfigError([f"billetweb.base_url: https://b/?key={SECRET}", f"and {SECRET}"]),
        AlreadyRunning(f"another syncd holds {SECRET}"),
        Stopping(f"stopping {SECRET}"),
    ],
)
def test_the_words_of_a_database_hold_a_secret(path: Path, fault: Exception) -> None:
    """What went wrong is told without the secrets that the words of another program may repeat."""
    stub = Stub()
    stub.fault = fault
    (answer,) = answers(path, stub, ("GET", "/v1/events"))
    assert "***" in answer.json()["error"]["message"]
    assert SECRET not in answer.text
    assert "hunter2" not in answer.text


def test_a_bug_is_one_clients_error_and_tells_no_secret(path: Path) -> None:
    """An unexpected exception is a 500 without its text, which nothing has redacted; the server goes on."""
    stub = Stub()
    stub.fault = ZeroDivisionError("canary-key")
    bug, status = answers(path, stub, ("GET", "/v1/events"), ("GET", "/v1/status"))
    assert refused(bug) == (500, "internal")
    assert "canary" not in bug.text
    assert bug.headers["connection"] == "close"  # what the server does: no client asks there again
    assert status.status_code == 200


def test_a_name_that_nobody_tells_holds_a_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the names of users are not to be had, a number does."""
    told = threading.Event()
    monkeypatch.setattr(asked, "NAME_WITHIN_S", 0.05)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: told.wait(30))
    stub = Stub()
    try:
        (answer,) = answers(path, stub, ("POST", "/v1/pause"))
    finally:
        told.set()
    assert answer.status_code == 200
    assert stub.asked == [("pause", True, Peer(os.getuid(), f"{os.getuid()}", os.getpid()))]
