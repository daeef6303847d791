"""`syncctl page`: who gets anything through the bridge, and that all passes for whoever does."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.canned_daemon import ENDED, STATUS, STEPS, Daemon, serving, stream
from support.processes import eventually, free_port

from syncd.ctl.bridge import MOST_AT_ONCE, MOST_BYTES, Bridge
from syncd.ctl.main import main

PATIENCE_S = 20.0  # only what hangs takes longer
SYNCCTL = [sys.executable, "-m", "syncd.ctl"]
Headers = dict[str, str]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with serving() as daemon:
        daemon.answers["GET /"] = b"<h1>page</h1>"
        yield daemon


@pytest.fixture
def bridge(daemon: Daemon) -> Iterator[Bridge]:
    with Bridge(daemon.path) as bridge:
        thread = threading.Thread(target=bridge.serve_forever, args=(0.01,))
        thread.start()
        yield bridge
        bridge.shutdown()
        thread.join()


class Answer(NamedTuple):
    """What the bridge answered."""

    status: int
    headers: http.client.HTTPMessage
    body: str


def got(
    bridge: Bridge, target: str, headers: Headers | None = None, method: str = "GET", body: str | None = None
) -> Answer:
    """Return what the bridge answers; without a Host among the headers, as a browser asks that is here."""
    connection = http.client.HTTPConnection("127.0.0.1", bridge.server_address[1], timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read().decode())


def visit(bridge: Bridge) -> tuple[str, Headers]:
    """Spend the token: return the path behind which all is, and the cookie."""
    answer = got(bridge, bridge.address.partition(str(bridge.server_address[1]))[2])
    assert answer.status == 200
    path = re.search('url=(/[^/"]+/)"', answer.body)
    assert path
    return path[1], {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


def token(bridge: Bridge) -> str:
    return bridge.address.partition("token=")[2]


def test_the_first_visitor_gets_nothing(bridge: Bridge, daemon: Daemon) -> None:
    """Who spends the token gets a cookie that no script and no other site uses, and with it all routes."""
    answer = got(bridge, f"/?token={token(bridge)}")
    cookie = answer.headers["Set-Cookie"]
    path, _ = cookie.partition("Path=")[2].split(";", 1)
    assert cookie.endswith(f"; Path={path}; HttpOnly; SameSite=Strict")
    assert len(path) > 20
    assert token(bridge) not in answer.body
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert daemon.asked == []
    with_cookie = {"Cookie": f"other=1; {cookie.partition(';')[0]}"}
    assert got(bridge, path, with_cookie).body == "<h1>page</h1>"
    status = got(bridge, f"{path}v1/status", with_cookie)
    assert json.loads(status.body) == STATUS
    assert status.headers["Syncd-Version"]
    assert got(bridge, f"{path}v1/runs", with_cookie, "POST", '{"full": true}').status == 202
    assert daemon.asked[-1] == ("POST /v1/runs", {"full": True})


def test_another_user_of_the_machine_sees_something(bridge: Bridge, daemon: Daemon) -> None:
    """Without token, or cookie, or the path in front, all is 403 with a sentence; the daemon is not asked."""
    wrong = {"Cookie": f"syncd={'A' * 43}"}
    targets = ("/", "/?token=", "/?token=x", "/?token=%C3%A9", "/v1/status", "/favicon.ico", "//", "*")
    for target in targets:
        for headers in ({}, wrong):
            for method in ("GET", "POST", "HEAD"):
                answer = got(bridge, target, headers, method)
                assert answer.status == 403
                assert "Set-Cookie" not in answer.headers
                assert method == "HEAD" or answer.body.count(".") >= 1
    path, cookie = visit(bridge)
    for headers in ({}, wrong, {"Cookie": ""}, {"Cookie": "syncd="}, {"Cookie": "syncd"}):
        assert got(bridge, path, headers).status == 403
    for target in ("/v1/status", f"{path[:-1]}x/", path[:-1], f"/x{path}", path.swapcase()):
        assert got(bridge, target, cookie).status == 403
    assert daemon.asked == []


def test_a_token_works_twice(bridge: Bridge) -> None:
    """Of many who have it at once exactly one gets the cookie; the others are told why not."""
    target, answers = f"/?token={token(bridge)}", list[Answer]()
    threads = [threading.Thread(target=lambda: answers.append(got(bridge, target))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200] + [403] * 19
    refused = [answer for answer in answers if answer.status == 403]
    assert all("was used already" in answer.body for answer in refused)
    assert not any("Set-Cookie" in answer.headers for answer in refused)


def test_a_post_or_a_head_spends_the_token(bridge: Bridge) -> None:
    """Only a GET of the very address does: a program that looks whether a link is alive sends HEAD."""
    for method in ("HEAD", "POST"):
        assert got(bridge, f"/?token={token(bridge)}", method=method).status == 403
    assert got(bridge, f"/x?token={token(bridge)}").status == 403
    assert got(bridge, f"/?token={token(bridge)}").status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "0.0.0.0",
        "10.0.0.1",
        "localhost:x",
        "127.0.0.1@evil.example",
    ],
)
def test_a_name_of_somebody_elses_leads_to_the_bridge(bridge: Bridge, daemon: Daemon, host: str) -> None:
    """DNS may lead any name to 127.0.0.1: a page of that name gets nothing, with token and cookie too."""
    assert got(bridge, f"/?token={token(bridge)}", {"Host": host}).status == 403
    path, cookie = visit(bridge)
    assert got(bridge, path, cookie | {"Host": host}).status == 403
    assert daemon.asked == []


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1:8080", "127.0.0.1", "LOCALHOST", "[::1]:8080"])
def test_an_ssh_tunnel_is_refused(bridge: Bridge, host: str) -> None:
    """A tunnel's other end has another port, or is called localhost."""
    assert got(bridge, f"/?token={token(bridge)}", {"Host": host}).status == 200
    bridge._token = token(bridge)
    path, cookie = visit(bridge)
    assert got(bridge, path, cookie | {"Host": host}).status == 200


def test_the_daemon_does_not_know_where_a_request_comes_from(bridge: Bridge, daemon: Daemon) -> None:
    """What the daemon judges by is passed on, one line each; the cookie is not, nor what else is sent."""
    seen: list[Any] = []

    def answer(handler: Any) -> None:
        seen.append(dict(handler.headers))
        handler.head(204)

    daemon.answers["POST /"] = answer
    path, cookie = visit(bridge)
    passed = {
        "Host": "localhost:9999",
        "Origin": "http://localhost:9999",
        "Sec-Fetch-Site": "same-origin",
        "Content-Type": "application/json",
        "Accept": "text/html",
        "Syncd-Token": "a\r\n b",
    }
    assert got(bridge, path, passed | cookie | {"X-Other": "x"}, "POST", "{}").status == 204
    assert seen == [passed | {"Syncd-Token": "a b", "Content-Length": "2"}]


def test_progress_waits_for_the_end(bridge: Bridge, daemon: Daemon) -> None:
    """A line of a run's progress arrives when it is written, not with the last one."""
    more = threading.Event()

    def answer(handler: Any) -> None:
        stream(STEPS[0], until=more)(handler)
        handler.wfile.write(json.dumps(ENDED).encode() + b"\n")

    daemon.answers["GET /v1/runs/43/progress"] = answer
    path, cookie = visit(bridge)
    connection = http.client.HTTPConnection("127.0.0.1", bridge.server_address[1], timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", f"{path}v1/runs/43/progress", headers=cookie)
        lines = connection.getresponse()
        assert (lines.readline(), json.loads(lines.readline())) == (b"\n", STEPS[0])
        more.set()
        assert json.loads(lines.readline()) == ENDED


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": "x"}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "²"}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": str(MOST_BYTES + 1)}, 413),
    ],
    ids=str,
)
def test_a_body_without_an_end_is_read(bridge: Bridge, daemon: Daemon, headers: Headers, status: int) -> None:
    """A body of no known, or of too great a length is refused unread."""
    path, cookie = visit(bridge)
    lines = [f"{name}: {value}" for name, value in ({"Host": "localhost"} | cookie | headers).items()]
    with socket.create_connection(("127.0.0.1", bridge.server_address[1]), PATIENCE_S) as connection:
        connection.sendall("\r\n".join([f"POST {path}v1/runs HTTP/1.1", *lines, "", ""]).encode("latin-1"))
        assert connection.makefile("rb").readline().split()[1] == str(status).encode()
    assert daemon.asked == []


@pytest.mark.parametrize("sent", ["", '{"events": ["90'])
def test_consent_to_one_event_that_breaks_off_is_consent_to_all(
    bridge: Bridge, daemon: Daemon, sent: str
) -> None:
    """Of a body that breaks off nothing is passed on: without its events it would mean all of them."""
    path, cookie = visit(bridge)
    with socket.create_connection(("127.0.0.1", bridge.server_address[1]), PATIENCE_S) as connection:
        head = f"POST {path}v1/accept HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie['Cookie']}\r\n"
        connection.sendall(f"{head}Content-Length: 22\r\n\r\n{sent}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").readline().split()[1] == b"400"
    assert daemon.asked == []


def test_a_daemon_that_is_gone_ends_the_bridge(bridge: Bridge, daemon: Daemon) -> None:
    """The bridge says that no daemon answers, and goes on when one is back."""
    path, cookie = visit(bridge)
    there = Path(daemon.path)
    there.rename(there.with_name("away"))
    answer = got(bridge, path, cookie)
    assert answer.status == 502
    assert "No daemon answers" in answer.body
    there.with_name("away").rename(there)
    assert got(bridge, path, cookie).status == 200


def test_a_browser_that_leaves_is_complained_of(bridge: Bridge, daemon: Daemon, capsys: Any) -> None:
    """A browser that hangs up amid an answer is no error, and others are served on."""
    cut = threading.Event()

    def answer(handler: Any) -> None:
        handler.head()
        with contextlib.suppress(OSError):
            while True:  # until nobody takes any more of it
                handler.wfile.write(b"x" * 65536)
        cut.set()

    daemon.answers["GET /v1/large"] = answer
    path, cookie = visit(bridge)
    with socket.create_connection(("127.0.0.1", bridge.server_address[1]), PATIENCE_S) as connection:
        head = f"GET {path}v1/large HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie['Cookie']}\r\n\r\n"
        connection.sendall(head.encode())
        connection.recv(100)
    assert got(bridge, path, cookie).status == 200
    assert cut.wait(PATIENCE_S)
    assert capsys.readouterr().err == ""


@pytest.mark.slow("many connections")
def test_another_user_fills_the_memory(bridge: Bridge, daemon: Daemon) -> None:
    """Of those who connect and ask nothing only so many are waited for; the oldest make room for others."""
    path, cookie = visit(bridge)
    address = "127.0.0.1", bridge.server_address[1]
    with contextlib.ExitStack() as stack:
        some = [
            stack.enter_context(socket.create_connection(address, PATIENCE_S))
            for _ in range(3 * MOST_AT_ONCE)
        ]
        assert some[0].recv(1) == b""  # hung up on
        assert threading.active_count() <= MOST_AT_ONCE + 1
        some[-1].sendall(b"GET / HTTP/1.1\r\nHost: ")  # and no more
        for _ in range(MOST_AT_ONCE + 1):
            assert got(bridge, path, cookie).status == 200
        assert threading.active_count() <= MOST_AT_ONCE + 1
    eventually(lambda: threading.active_count() < MOST_AT_ONCE)
    assert got(bridge, path, cookie).status == 200


# --- the command


@contextlib.contextmanager
def command(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start `syncctl page` as a process of its own."""
    with subprocess.Popen(
        [*SYNCCTL, "--socket", daemon.path, "page", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def fetched(address: str) -> int:
    """Return the status of an answer from this address."""
    found = re.fullmatch(r"http://(127\.0\.0\.1):([0-9]+)(/\?token=[\w-]{43})", address)
    assert found
    connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", found[3])
        return connection.getresponse().status


def test_ctrl_c_is_a_traceback(daemon: Daemon) -> None:
    """The address is all of stdout, it works, and Ctrl-C ends it as it ends the other commands."""
    with command(daemon) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert fetched(address) == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == ("", -signal.SIGINT)
    assert "Ctrl-C ends it" in err
    assert err.count("\n") == 1
    assert address.partition("token=")[2] not in err


def test_the_address_is_no_json(daemon: Daemon) -> None:
    """With `--json` it is one document, and `--port` is the port."""
    port = free_port()
    with command(daemon, "--json", "--port", str(port)) as process:
        assert process.stdout
        document = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert document["address"].startswith(f"http://127.0.0.1:{port}/?token=")
        assert fetched(document["address"]) == 200
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == ("", -signal.SIGINT)


def test_a_port_in_use_is_a_traceback(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said which port cannot be had, and why, with exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--socket", daemon.path, "page", "--port", str(port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"syncctl: Cannot listen on port {port} (Address already in use): choose another with --port.\n"
    )


@pytest.mark.parametrize("port", ["0", "65536", "9" * 5000, "-1", "http", "²", ""])
def test_an_odd_port_is_a_traceback(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no port is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        main(["page", "--port", port])
    assert ended.value.code == 2
    assert "is not a port from 1 to 65535" in capsys.readouterr().err


def test_a_page_of_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon no address is printed: exit code 3, as of any command."""
    assert main(["--socket", str(tmp_path / "none"), "page"]) == 3
    assert capsys.readouterr().out == ""


def test_a_port_is_closed_for_a_minute(daemon: Daemon) -> None:
    """A port that was just used can be used again at once."""
    with Bridge(daemon.path) as first:
        thread = threading.Thread(target=first.serve_forever, args=(0.01,))
        thread.start()
        visit(first)
        first.shutdown()
        thread.join()
    Bridge(daemon.path, first.server_address[1]).server_close()
