"""The README's ways to put the page behind a site's own login: a real nginx, the route handler in Node."""

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.browser import PROGRAM, WHY_NOT, browser
from support.processes import DaemonProcess, environment, eventually, free_port, short_folder
from support.project import README

from syncd.standin.server import StandIn, serving

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")
NODE = shutil.which("node")
PAGE = "/admin/syncd"
LOGGED_IN = {"Cookie": "login=yes"}
NGINX_CONFIG = """\
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; {user}
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {example}
        location = /admin/check {{ if ($http_cookie !~ "login=yes") {{ return 401; }} return 204; }}
    }}
}}
"""
SITE_IN_NODE = """
import http from "node:http";
import * as route from "./route.mjs";

http.createServer(async (from, to) => {
  const url = `http://${from.headers.host}${from.url}`, body = await from.toArray();
  const init = { method: from.method, headers: from.headers };
  if (body.length) init.body = Buffer.concat(body);
  const found = new URL(url).pathname === "/admin/syncd" && route[from.method];
  const answer = found ? await found(new Request(url, init)) : new Response("", { status: 404 });
  to.writeHead(answer.status, Object.fromEntries(answer.headers));
  to.end(Buffer.from(await answer.arrayBuffer()));
}).listen(Number(process.argv[2]), "127.0.0.1");
"""


def example(language: str, socket_path: Path) -> str:
    """Return the README's example of the page in this language, with another socket."""
    section = README.partition("### A page\n")[2].partition("\n### ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    assert "/run/syncd/syncd.sock" in found[1]
    return found[1].replace("/run/syncd/syncd.sock", str(socket_path))


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    standin = StandIn(events=3)
    with short_folder() as folder, serving(standin) as base_url, DaemonProcess(folder, base_url) as daemon:
        daemon.ran()
        yield daemon


@contextlib.contextmanager
def site(port: int, *command: str | Path) -> Iterator[str]:
    """Run a web server; give its address once it answers."""
    process = subprocess.Popen([*map(str, command)], env=environment())
    try:
        eventually(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@pytest.fixture(params=["nginx", "js"])
def address(request: pytest.FixtureRequest, daemon: DaemonProcess, tmp_path: Path) -> Iterator[str]:
    """Give the address of a site that has the page behind its login."""
    port = free_port()
    if request.param == "nginx":
        if NGINX is None:
            pytest.skip("needs nginx: apt-get install nginx-light")
        config = tmp_path / "nginx.conf"
        values = {"folder": tmp_path, "port": port, "example": example("nginx", daemon.socket)}
        user = f"user {daemon.socket.owner()};" if daemon.socket.owner() == "root" else ""  # who may connect
        config.write_text(NGINX_CONFIG.format(user=user, **values))
        server = site(port, NGINX, "-c", config, "-p", tmp_path)
    else:
        if NODE is None:
            pytest.skip("needs Node.js: apt-get install nodejs")
        (tmp_path / "auth.mjs").write_text("export const auth = async () => globalThis.loggedIn;")
        route = example("js", daemon.socket).replace("@/auth", "./auth.mjs")
        (tmp_path / "route.mjs").write_text(route)
        # In Next.js `auth` looks into the cookies of the request in progress by itself.
        login = 'globalThis.loggedIn = /login=yes/.test(from.headers.cookie ?? "");\n  const url'
        (tmp_path / "site.mjs").write_text(SITE_IN_NODE.replace("const url", login))
        server = site(port, NODE, tmp_path / "site.mjs", str(port))
    with server as found:
        yield found


def test_who_is_not_logged_in_sees_the_page(address: str, daemon: DaemonProcess) -> None:
    """The site's login comes first, for looking and for asking; and no other route can be reached."""
    before = daemon.status()["run_count"]
    with httpx.Client(base_url=address, trust_env=False) as client:
        assert client.get(PAGE).status_code == 401
        assert client.post(PAGE).status_code == 401
        for route in ("/", "/v1/status", f"{PAGE}/v1/status", f"{PAGE}/../v1/status"):
            assert client.get(route, headers=LOGGED_IN).status_code == 404
        assert client.get(PAGE, headers=LOGGED_IN).status_code == 200
    assert daemon.status()["run_count"] == before


def test_the_page_does_not_work_behind_a_site(address: str, daemon: DaemonProcess) -> None:
    """The form asks for a run and leads back to the page, whose headers arrive; a foreign page's may not."""
    before = daemon.status()["run_count"]
    with httpx.Client(base_url=address, headers=LOGGED_IN, trust_env=False) as client:
        shown = client.get(PAGE)
        assert shown.headers["content-security-policy"].startswith("default-src 'none'")
        assert shown.headers["cache-control"] == "no-store"
        token = re.search('name="token" value="([^"]+)"', shown.text)
        assert token
        data = {"token": token[1]}
        for foreign in (
            {"Origin": "https://evil.example"},
            {"Origin": address, "Sec-Fetch-Site": "same-site"},
        ):
            assert client.post(PAGE, data=data, headers=foreign).status_code == 403
        assert client.post(PAGE, headers={"Origin": address}).status_code == 403
        assert daemon.status()["run_count"] == before
        answer = client.post(PAGE, data=data, headers={"Origin": address, "Sec-Fetch-Site": "same-origin"})
        assert answer.status_code == 303
        there = answer.headers["location"]
        assert re.fullmatch(r"\?run=\d+", there)
        daemon.ran(before + 1)
        assert f"Run {there.partition('=')[2]}" in client.get(PAGE + there).text


@pytest.mark.slow("starts a browser")
@pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)
def test_the_button_does_not_work_behind_a_site(address: str, daemon: DaemonProcess) -> None:
    """In a browser too, whose requests the page's script makes."""
    before = daemon.status()["run_count"]
    with browser() as tab:
        tab.order("Network.setCookie", name="login", value="yes", url=address)
        tab.open(address + PAGE)
        tab.click("#ask button")
        tab.until("/^Run [0-9]+ ok$/.test(document.getElementById('said').innerText)")
        assert daemon.ran(before + 1)["last_run"]["trigger"] == "manual"
        assert tab.run("location.pathname") == PAGE
        assert tab.complaints == []
