"""Peers that say nothing, say half of it, or do not listen: on real sockets."""

import asyncio
import contextlib
import json
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from conftest import LogLines
from support.control_stub import Client, Stub, ask, serving
from support.processes import short_folder
from support.variants import mostly_slow

from syncd.control import peers, server
from syncd.model import Run

STATUS = b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HALVES = {
    "nothing": b"",
    "a letter": b"G",
    "half a header": b"GET /v1/status HTTP/1.1\r\nHost",
    "half a body": b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
    "half a chunk": b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    "a request, and half a one": STATUS.replace(b"Connection: close\r\n", b"") + b"GET ",
}


@pytest.fixture
def path() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder / "syncd.sock"


async def raw(path: Path, sent: bytes) -> bytes:
    """Return all that comes back for these bytes, until the server hangs up."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def is_well(path: Path) -> bool:
    return (await asyncio.wait_for(raw(path, STATUS), 30)).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a request be waited for a moment only."""
    monkeypatch.setattr(peers, "REQUEST_WITHIN_S", 0.2)


@pytest.mark.parametrize("case", mostly_slow(HALVES, "each waits", always=3))
def test_half_a_request_is_waited_for(path: Path, impatient: None, case: str) -> None:
    """A request has a deadline for its first and its last byte; who misses it is told, and hung up on."""
    stub = Stub()

    async def use(_client: Client) -> None:
        answer = await asyncio.wait_for(raw(path, HALVES[case]), 30)
        head, _, said = answer.rpartition(b"\r\n\r\n")
        assert b"HTTP/1.1 408 " in head
        assert json.loads(said)["error"]["code"] == "too_slow"
        assert await is_well(path)

    ask(path, stub, use)
    assert stub.asked == []


def test_slow_letters_make_a_request(path: Path, impatient: None) -> None:
    """A byte now and then does not put the deadline off."""

    def letters() -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            while not select.select([peer], [], [], 0.01)[0]:
                with contextlib.suppress(BrokenPipeError):  # hung up this moment; what was told can be read
                    peer.send(b"X")
            return peer.recv(65536)

    async def use(_: Client) -> None:
        assert b" 408 " in await asyncio.to_thread(letters)

    ask(path, Stub(), use)


def test_a_stop_that_cuts_requests_off_is_a_failure(path: Path, log_lines: LogLines) -> None:
    """Who still waits when a stop is over is hung up on, without a word of the library's in the log."""
    stub = Stub()
    stub.known[43].state = "running"
    with socket.socket(socket.AF_UNIX) as waiting:

        def waits() -> bytes:
            waiting.connect(str(path))
            waiting.send(b"GET /v1/runs/43/progress HTTP/1.1\r\nHost: a\r\n\r\n")
            return waiting.recv(12)

        async def use(_: Client) -> None:
            assert await asyncio.to_thread(waits) == b"HTTP/1.1 200"

        ask(path, stub, use)
        assert stub.asked
    assert "Traceback" not in log_lines.text
    assert "running task" not in log_lines.text


def test_who_waits_for_a_run_is_hung_up_on(path: Path, impatient: None) -> None:
    """The deadline is for requests: an answer may take longer, and so may a stream."""
    stub = Stub()
    stub.known[43].state = "running"

    async def use(client: Client) -> None:
        async with client.stream("GET", "/v1/runs/43/progress") as answer:
            await asyncio.sleep(0.3)
            stub.known[43].state = "done"
            stub.steps.put_nowait(None)
            lines = [line async for line in answer.aiter_lines() if line]
        assert msgspec.json.decode(lines[-1], type=Run).id == 43

    ask(path, stub, use)


def test_answer_that_nobody_takes_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes nothing of an answer for a while is dropped; who takes it slowly gets it whole."""
    monkeypatch.setattr(peers, "STALLED_S", 0.2)
    large = "x" * 4_000_000

    class Large(Stub):
        async def events(self, *, ended_too: bool) -> list[dict[str, object]]:
            return [{"name": large, "all": ended_too}]

    request = b"GET /v1/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    async def use(_: Client) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as slow:
            for each in (deaf, slow):
                each.setblocking(False)
                each.connect(str(path))
                await loop.sock_sendall(each, request)
            size = 0
            while taken := await loop.sock_recv(slow, 65_536):
                size += len(taken)
                await asyncio.sleep(0.01)
            assert size > len(large)
            await asyncio.sleep(0.5)
            deaf_size = 0
            with contextlib.suppress(ConnectionError):
                while taken := await asyncio.wait_for(loop.sock_recv(deaf, 65_536), 30):
                    deaf_size += len(taken)
            assert deaf_size < len(large)

    ask(path, Large(), use)


def test_answer_that_somebody_stops_taking_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who took a part of an answer, and then takes nothing more, is dropped like who never took any."""
    monkeypatch.setattr(peers, "STALLED_S", 0.2)
    tired = socket.socket(socket.AF_UNIX)

    class Large(Stub):
        async def events(self, *, ended_too: bool) -> list[dict[str, object]]:
            return [{"name": "x" * 8_000_000, "all": ended_too}]

    def take_a_part() -> None:
        tired.connect(str(path))
        tired.sendall(b"GET /v1/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):  # for longer than one look at it, and not the whole
                tired.recv(65_536)
                time.sleep(0.01)
        hung_up = select.poll()
        hung_up.register(tired, 0)  # that is told without being asked for
        assert hung_up.poll(30_000)

    async def use(_: Client) -> None:
        await asyncio.to_thread(take_a_part)

    with tired:
        ask(path, Large(), use)


@pytest.mark.slow("many connections")
def test_silent_peers_starve_those_who_ask(
    path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    """However many connect and say nothing, who asks is answered; the log tells it once."""
    monkeypatch.setattr(peers, "MOST", 20)

    async def main() -> None:
        async with serving(path, Stub()):
            silent = [await asyncio.open_unix_connection(path) for _ in range(150)]
            assert await is_well(path)
            answered = await asyncio.gather(*(is_well(path) for _ in range(100)))
            assert all(answered)
            for _, writer in silent:
                writer.close()

    asyncio.run(main())
    assert len(log_lines.of("control.crowded")) == 1


def test_who_comes_drops_who_came_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room, who connected a moment ago may still ask; who comes next waits for a place."""
    monkeypatch.setattr(peers, "MOST", 2)
    monkeypatch.setattr(peers, "SILENT_S", 60.0)

    async def main() -> None:
        async with serving(path, Stub()):
            early = [await asyncio.open_unix_connection(path) for _ in range(2)]
            late = asyncio.create_task(is_well(path))
            for _ in range(20):  # turns of the loop in which it is let in, or is not
                await asyncio.sleep(0)
            for reader, writer in early:
                writer.write(STATUS)
                assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 200 ")
                writer.close()
            assert await late

    asyncio.run(main())


def test_slow_letters_keep_a_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends a byte now and then, and no request, is dropped for somebody who asks."""
    monkeypatch.setattr(peers, "MOST", 1)
    monkeypatch.setattr(peers, "SILENT_S", 0.1)

    def letters(has_come: threading.Event) -> bytes:
        with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(ConnectionError):
            peer.connect(str(path))
            has_come.set()
            while not select.select([peer], [], [], 0.01)[0]:
                peer.send(b"X")
            return peer.recv(65_536)
        return b""

    async def main() -> None:
        async with serving(path, Stub()):
            has_come = threading.Event()
            sending = asyncio.create_task(asyncio.to_thread(letters, has_come))
            await asyncio.to_thread(has_come.wait, 30)
            assert await is_well(path)
            assert await sending == b""  # nor told that it took too long

    asyncio.run(main())


class Waited(Stub):
    """A daemon that has whoever waits for a run wait."""

    async def wait(self, run: Run, seconds: float) -> None:
        await super().wait(run, seconds)
        while run.state == "running":  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.01)


def test_waiting_takes_the_last_place(path: Path) -> None:
    """So many may wait for a run; the others are told at once how it stands."""
    stub = Waited()
    stub.known[43].state = "running"

    async def use(_: Client) -> None:
        lines = b"GET /v1/runs/43/progress HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        wait_s = b"GET /v1/runs/43?wait=60 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        patient = [asyncio.create_task(raw(path, request)) for request in (lines, wait_s)]
        while stub.watchers + len(stub.asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for request in (lines, wait_s):
            assert b'"running"' in await asyncio.wait_for(raw(path, request), 30)
        assert not any(task.done() for task in patient)
        stub.known[43].state = "done"
        stub.steps.put_nowait(None)
        assert all(b'"done"' in answer for answer in await asyncio.gather(*patient))

    ask(path, stub, use, most_waiting=2)


def test_who_hung_up_keeps_a_place(path: Path) -> None:
    """Whoever waits for a run and leaves, makes room for another who waits."""
    stub = Waited()
    stub.known[43].state = "running"

    async def use(_client: Client) -> None:
        lines = b"GET /v1/runs/43/progress HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        for _ in range(3):
            left = asyncio.create_task(raw(path, lines))
            while not stub.watchers:  # noqa: ASYNC110  # it waits for the run
                await asyncio.sleep(0.01)
            left.cancel()
            while stub.watchers:  # noqa: ASYNC110  # its leaving is noticed
                await asyncio.sleep(0.01)
        last = asyncio.create_task(raw(path, lines))
        while not stub.watchers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stub.known[43].state = "done"
        stub.steps.put_nowait(None)
        assert b'"done"' in await last

    ask(path, stub, lambda client: asyncio.wait_for(use(client), 30), most_waiting=1)


@pytest.mark.parametrize(("files", "most"), [(64, 32), (256, 128), (1024, 512), (4096, 512)])
def test_connections_take_all_files(files: int, most: int) -> None:
    """Half of the files that a process may open are kept for the database and Billetweb."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        assert peers.connections_at_most() == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- the socket's file


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it be looked all the time whether the socket is still there."""
    monkeypatch.setattr(server, "LOOK_EVERY_S", 0.02)


@pytest.mark.parametrize("what", ["removed", "a stale one in its place", "its folder removed for a while"])
def test_removed_socket_stays_away(path: Path, watchful: None, what: str) -> None:
    """A socket that somebody removed is there again soon, with its mode; who is connected stays so."""
    socket_path = path.parent / "run" / "s"
    socket_path.parent.mkdir()

    async def main() -> None:
        async with serving(socket_path, Stub()) as client:
            assert (await client.get("/v1/status")).status_code == 200
            if what == "its folder removed for a while":
                for each in socket_path.parent.iterdir():
                    each.unlink()
                socket_path.parent.rmdir()
                await asyncio.sleep(0.2)
                socket_path.parent.mkdir()
            else:
                socket_path.unlink()
                if what == "a stale one in its place":
                    with socket.socket(socket.AF_UNIX) as stale:
                        stale.bind(str(socket_path))
            await answers(socket_path)
            assert socket_path.stat().st_mode & 0o777 == 0o600
            assert (await client.get("/v1/status")).status_code == 200  # on the connection of before
        assert not socket_path.exists()

    asyncio.run(main())


async def answers(path: Path) -> None:
    """Wait until somebody answers there."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                if await is_well(path):
                    return
            await asyncio.sleep(0.01)


def remove_again_and_again(path: Path) -> None:
    """Remove what is there, and what comes there, as soon as it does."""
    removed, deadline = 0, time.monotonic() + 30
    while removed < 20:
        assert time.monotonic() < deadline, "nothing comes there any more"
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed += 1


@pytest.mark.parametrize("kind", ["file", "another's socket"])
def test_what_took_the_sockets_place_is_removed(path: Path, watchful: None, kind: str) -> None:
    """Somebody's file, and a socket on which somebody answers, are left as they are, and served around."""

    def put() -> None:
        path.unlink()
        if kind == "file":
            path.write_text("precious")
        else:
            other.bind(str(path))
            other.listen()

    def identity() -> tuple[int, int, int]:
        found = path.lstat()
        return found.st_ino, found.st_mode, found.st_mtime_ns  # to connect to a socket changes st_atime

    async def main() -> None:
        async with serving(path, Stub()) as client:
            assert (await client.get("/v1/status")).status_code == 200
            put()
            before = await asyncio.to_thread(identity)
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(identity) == before
            assert (await client.get("/v1/status")).status_code == 200
            other.close()
            await asyncio.to_thread(remove_again_and_again, path)
            await answers(path)

    with socket.socket(socket.AF_UNIX) as other:
        asyncio.run(main())


def test_rest_of_a_refused_body_is_a_bug(path: Path, log_lines: LogLines) -> None:
    """What follows an answer, and is no HTTP, ends the connection without a word."""

    async def use(_client: Client) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 404 ")
        writer.write(b"zz\r\n")
        await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert await is_well(path)

    ask(path, Stub(), use)
    assert "Traceback" not in log_lines.text


def test_body_that_breaks_off_is_a_bug(path: Path, log_lines: LogLines) -> None:
    """Who leaves in the middle of a request has started nothing, and the log says nothing of it."""
    stub = Stub()

    async def use(_client: Client) -> None:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(HALVES["half a body"])
        await writer.drain()
        writer.close()
        assert await is_well(path)

    ask(path, stub, use)
    assert stub.asked == []
    assert "Traceback" not in log_lines.text
