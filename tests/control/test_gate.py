"""Who may change something: programs as before, of browsers the daemon's own page alone."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from support.control_stub import Client, Stub, ask, refused
from support.processes import short_folder

Headers = dict[str, str]
CHANGING = ("/v1/runs", "/v1/accept", "/v1/pause", "/v1/resume", "/v1/reload")
PAGE = {"Host": "example.org", "Origin": "https://example.org"}
"""What a browser sends along with a form of the page, behind a site that passes Host on."""
READING = {"events", "runs", "doubts", "publish"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
FOREIGN: tuple[Headers, ...] = (
    {"Host": "example.org", "Origin": "https://evil.example"},
    {"Host": "example.org", "Origin": "https://example.org.evil.example"},
    {"Host": "example.org", "Origin": "https://example.org:8443"},  # another program of the same machine
    {"Host": "example.org", "Origin": "https://sub.example.org"},
    {"Host": "example.org", "Origin": "null"},  # a sandboxed frame, a file
    {"Host": "example.org", "Origin": ""},
    {"Host": "example.org", "Origin": "example.org"},
    {"Host": "example.org", "Origin": "chrome-extension://example.org"},
    {"Host": "", "Origin": "https://"},
    {"Host": "syncd", "Origin": "https://example.org"},  # a proxy that does not pass Host on
    PAGE | {"Sec-Fetch-Site": "cross-site"},
    PAGE | {"Sec-Fetch-Site": "same-site"},
    {"Host": "example.org", "Sec-Fetch-Site": "cross-site"},  # a browser that tells no Origin
    {"Host": "example.org", "Sec-Fetch-Site": "none"},
)


def asked(use: Callable[[Client], object]) -> Stub:
    """Return the daemon behind the socket after this use of it."""
    stub = Stub()
    with short_folder() as folder:
        ask(folder / "syncd.sock", stub, use)  # type: ignore[arg-type]
    return stub


async def token(client: Client) -> str:
    """Return the token that the page holds."""
    page = (await client.get("/")).text
    found = re.search('name="token" value="([^"]{43})"', page)
    assert found
    return found[1]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_sites_page_changes_something(headers: Headers) -> None:
    """It is refused with 403, a token or none, and nothing is done."""

    async def use(client: Client) -> None:
        known = await token(client)
        for given in (headers, headers | {"Syncd-Token": known}):
            for route in CHANGING:
                assert refused(await client.post(route, headers=given)) == (403, "foreign")
        answer = await client.post("/", headers=headers | FORM, content=f"token={known}")
        assert refused(answer) == (403, "foreign")

    stub = asked(use)
    assert {kind for kind, *_ in stub.asked} <= READING


@pytest.mark.parametrize("headers", [PAGE, PAGE | {"Sec-Fetch-Site": "same-origin"}], ids=str)
@pytest.mark.parametrize("wrong", ["", "x", "é" * 43, "A" * 43])
def test_a_page_without_the_token_changes_something(headers: Headers, wrong: str) -> None:
    """The right origin is not enough: what does not know the token, or an older daemon's, is refused."""

    async def use(client: Client) -> None:
        given = [(name.encode(), value.encode("utf-8")) for name, value in headers.items()]
        for route in CHANGING:
            tried = [*given, (b"Syncd-Token", wrong.encode())]
            assert refused(await client.post(route, headers=tried)) == (403, "foreign")
        answer = await client.post("/", headers=headers, data={"token": wrong})
        assert refused(answer) == (403, "foreign")
        assert "load the page again" in answer.json()["error"]["message"]

    assert asked(use).asked == []


@pytest.mark.parametrize(
    "headers",
    [
        PAGE,
        PAGE | {"Sec-Fetch-Site": "same-origin"},
        {"Host": "example.org:443", "Origin": "https://example.org"},
        {"Host": "example.org", "Origin": "http://example.org:80"},
        {"Host": "EXAMPLE.org:8443", "Origin": "https://example.org:8443"},
        {"Host": "127.0.0.1:40611", "Origin": "http://127.0.0.1:40611"},
        {"Host": "[::1]:40611", "Origin": "http://[::1]:40611"},
    ],
    ids=str,
)
def test_the_page_is_refused(headers: Headers) -> None:
    """The page's own requests, with its token, do what they ask for."""

    async def use(client: Client) -> None:
        known = await token(client)
        for route in CHANGING:
            answer = await client.post(route, headers=headers | {"Syncd-Token": known})
            assert answer.status_code in (200, 202)
        answer = await client.post("/", headers=headers, data={"token": known})
        assert (answer.status_code, answer.headers["location"]) == (303, "?run=43")

    stub = asked(use)
    assert [kind for kind, *_ in stub.asked if kind not in READING] == [
        *("run", "accept", "pause", "pause", "reload", "run"),
    ]


def test_programs_need_a_token() -> None:
    """What comes without `Origin` and `Sec-Fetch-Site`, as from syncctl and curl, needs nothing more."""

    async def use(client: Client) -> None:
        for route in CHANGING:
            assert (await client.post(route)).status_code in (200, 202)
        assert (await client.post("/")).status_code == 303

    assert len(asked(use).asked) == len(CHANGING) + 1


def test_reading_needs_an_origin() -> None:
    """What changes nothing is answered whatever the origin: a browser keeps the answer from other pages."""

    async def use(client: Client) -> None:
        for route in ("/", "/v1/status", "/v1/events", "/healthz"):
            answer = await client.get(route, headers=FOREIGN[0])
            assert answer.status_code == 200
            assert "access-control-allow-origin" not in answer.headers

    asked(use)


def test_two_daemons_have_one_token() -> None:
    """Each process has a token of its own."""
    found = []

    async def use(client: Client) -> None:
        found.append(await token(client))

    asked(use)
    asked(use)
    assert found[0] != found[1]


def test_a_route_forgets_to_ask() -> None:
    """Every route that takes anything but reading is behind the gate, those to come too."""

    async def use(client: Client) -> None:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = await client.request(method, "/v1/some/new/route", headers=FOREIGN[0])
            assert refused(answer) == (403, "foreign")

    assert asked(use).asked == []


def test_a_large_form_is_read_whole() -> None:
    """What is no form of the page's is refused after 4 KiB."""

    async def use(client: Client) -> None:
        answer = await client.post("/", content=b"x" * 5000)
        assert refused(answer) == (413, "too_large")

    assert asked(use).asked == []


def test_a_form_that_breaks_off_starts_a_run() -> None:
    """A form whose end never comes asks for nothing."""

    async def use(client: Client) -> None:
        async def half() -> AsyncIterator[bytes]:  # a body that is announced and not sent
            yield b"tok"
            raise httpx.WriteError("gone")

        with pytest.raises(httpx.WriteError):
            await client.post("/", content=half(), headers={"Content-Length": "48"})
        await asyncio.sleep(0)

    assert asked(use).asked == []
