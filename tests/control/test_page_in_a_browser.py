"""The page in a real Chromium, through `syncctl page`, of a real daemon that mirrors the stand-in."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
from support.browser import PROGRAM, WHY_NOT, Browser, browser
from support.faults import hang
from support.processes import SYNCCTL, DaemonProcess, environment, eventually, short_folder

from syncd.standin.server import StandIn, serving

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT),
    pytest.mark.slow("a browser for each"),
]

HOSTILE = (
    "<script>document.title = 'harm'</script>",
    "<img src=x onerror=\"document.title = 'harm'\">",
    "\"'></a></p></script></style><svg onload=\"document.title = 'harm'\">",
    "{{ 7 * 7 }} &lt;b&gt; <b>bold</b>",
)
OVERFLOWS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
NOW = "document.querySelector('[data-part=now]')"
BUSY, IDLE = f"{NOW}.dataset.busy === 'yes'", f"{NOW}.dataset.busy === ''"


@pytest.fixture(scope="module")
def standin() -> StandIn:
    standin = StandIn(events=6)
    for event, name in zip(standin.events.values(), HOSTILE, strict=False):
        event.row["name"] = name
        event.row["place"] = f"{name} {'x' * 300}"
        event.row["shop"] = "javascript:document.title='harm'"
    return standin


@pytest.fixture(scope="module")
def daemon(standin: StandIn) -> Iterator[DaemonProcess]:
    with short_folder() as folder, serving(standin) as base_url, DaemonProcess(folder, base_url) as daemon:
        daemon.ran()
        yield daemon


@contextmanager
def address(daemon: DaemonProcess) -> Iterator[str]:
    """Give what `syncctl page` prints, for as long as it runs."""
    command = [*SYNCCTL, "--socket", str(daemon.socket), "page"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def tab(daemon: DaemonProcess) -> Iterator[Browser]:
    """Give a tab that shows the page."""
    with address(daemon) as url, browser() as tab:
        tab.look(1280, 900)
        tab.open(url)
        tab.until("!!document.getElementById('ask')")
        yield tab


def test_sync_now_does_nothing(tab: Browser, daemon: DaemonProcess, standin: StandIn) -> None:
    """The button starts a run by hand; the page shows its progress and its end, and never loads anew."""
    before = daemon.status()["run_count"]
    tab.run("window.same = true")
    standin.fail("/event/*/avail", hang, times=None)
    tab.click("#ask button")
    tab.until(BUSY)
    shown = tab.until(f"{NOW}.querySelector('progress[value]') && {NOW}.innerText")
    assert "(manual) began" in shown
    assert " of 6" in shown
    tab.until("document.getElementById('said').innerText.endsWith('running')")
    standin.heal()
    tab.until(IDLE)
    number = daemon.ran(before + 1)["last_run"]["id"]
    assert f"Run {number}:" in tab.text("[data-part=now]")
    assert tab.text("#said") == f"Run {number} ok"
    tab.until(f"document.querySelector('tbody td').innerText === '{number}'")
    assert tab.run("same && location.search") == f"?run={number}"
    assert tab.complaints == []


def test_the_button_needs_a_mouse(tab: Browser, daemon: DaemonProcess) -> None:
    """The button is the first stop of the keyboard, shows that it has the focus, and keeps it."""
    before = daemon.status()["run_count"]
    tab.press("Tab")
    assert tab.run("document.activeElement.innerText") == "Sync now"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter")
    daemon.ran(before + 1)
    tab.until("/^Run [0-9]+ ok$/.test(document.getElementById('said').innerText)")
    assert tab.run("document.activeElement.innerText") == "Sync now"


def test_names_run_scripts(tab: Browser) -> None:
    """What Billetweb says is seen letter for letter, does nothing, also when the page renews itself."""
    for _ in range(2):
        text = tab.text("[data-part=events]")
        for name in HOSTILE:
            assert name in text
        assert (
            tab.run("document.querySelectorAll('[data-part=events] :is(script, img, b, [onload])').length")
            == 0
        )
        assert tab.run("[...document.links].every(link => /^https?:$/.test(link.protocol))") is True
        assert len(tab.run("[...document.links].map(link => link.href)")) == 2
        tab.click("#ask button")
        tab.until("/^Run [0-9]+ ok$/.test(document.getElementById('said').innerText)")
    assert "harm" not in tab.run("document.title")
    assert tab.complaints == []


def test_a_script_of_somebody_elses_runs(tab: Browser) -> None:
    """The policy forbids what got into the page all the same: markup, styles, images, requests elsewhere."""
    tab.run(
        """
        const found = window.found = [];
        addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
        document.body.insertAdjacentHTML("beforeend", `<img src="https://example.org/x.png"
          onerror="document.title = 'harm'"><style>body { color: red }</style><p id="p" style="color: red">`);
        const script = document.createElement("script");
        script.textContent = "document.title = 'harm'";
        document.body.append(script);
        fetch("https://example.org/").catch(() => 0);
        """
    )
    wanted = ["connect-src", "img-src", "script-src-elem", "style-src-attr", "style-src-elem"]
    tab.until(f"{wanted}.every((each) => found.includes(each))")
    assert "harm" not in tab.run("document.title")


def test_a_telephone_scrolls_sideways(tab: Browser, tmp_path: Path) -> None:
    """All fits the width, whatever is in a name, in light and in dark; there is a picture to look at."""
    boxes = "[...document.querySelectorAll('main *')]"
    edge = "document.querySelector('main').getBoundingClientRect().right"
    boxes += f".filter(each => each.getBoundingClientRect().right > {edge} + 0.5)"
    for width, height in ((1280, 900), (768, 1024), (390, 844), (320, 568)):
        for dark in (False, True):
            tab.look(width, height, dark=dark, phone=width < 500)
            assert tab.run(OVERFLOWS) is False
            assert tab.run(f"{boxes}.map(each => each.outerHTML.slice(0, 200))") == []
            ground = tab.run("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, ground[4:-1].split(","))) < 150) is dark
            picture = tmp_path / f"{width}-{'dark' if dark else 'light'}.png"
            tab.picture(picture, whole=True)
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_flickers(tab: Browser, daemon: DaemonProcess) -> None:
    """What did not change keeps its very element, over a run too: the focus on a link stays where it was."""
    tab.run(
        "window.link = document.querySelector('.events a'); link.focus(); window.row = link.closest('li')"
    )
    count = daemon.status()["run_count"]
    assert daemon.ctl("run-now").returncode == 0
    daemon.ran(count + 1)
    number = daemon.status()["last_run"]["id"]
    tab.until(f"document.querySelector('tbody td').innerText === '{number}'")
    assert tab.run("document.activeElement === link && row.isConnected && link.isConnected") is True


def test_the_page_needs_a_script(daemon: DaemonProcess) -> None:
    """Without scripts the form is posted and the page tells of the run."""
    before = daemon.status()["run_count"]
    with address(daemon) as url, browser() as tab:
        tab.without_scripts()
        tab.open(url)
        tab.until("!!document.getElementById('ask')")
        tab.click("#ask button")
        tab.until("location.search.startsWith('?run=')")
        number = daemon.ran(before + 1)["last_run"]["id"]
        tab.until(f"document.body.innerText.includes('Run {number}:')")
        assert tab.run("document.querySelector('noscript meta').content") in ("2", "15")
        assert tab.complaints == []


def test_a_restart_leaves_a_dead_page(daemon: DaemonProcess, standin: StandIn) -> None:
    """While no daemon answers the page says so; with the next daemon it goes on, its button too."""
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    with serving(standin) as base_url, short_folder() as folder, browser() as tab:
        first = DaemonProcess(folder, base_url)
        with first, address(first) as url:
            first.ran()
            tab.open(url)
            tab.until("!!document.getElementById('ask')")
            token = tab.run("document.querySelector('input').value")
            assert first.stop() == 0
            tab.run(look)
            tab.until("document.getElementById('lost').innerText.includes('No daemon answers')")
            with DaemonProcess(folder, base_url) as second:
                count = second.ran(2)["run_count"]
                tab.run(look)
                tab.until("document.getElementById('lost').hidden")
                assert tab.run("document.querySelector('input').value") != token
                tab.click("#ask button")
                eventually(lambda: second.status()["run_count"] > count)
                tab.until("/^Run [0-9]+ ok$/.test(document.getElementById('said').innerText)")
                assert second.stop() == 0
            with DaemonProcess(folder, base_url) as third:  # the page has not noticed when it is asked
                count = third.ran(count + 2)["run_count"]
                tab.click("#ask button")
                eventually(lambda: third.status()["run_count"] > count)
                tab.until(f"{NOW}.innerText.includes('Run {count + 1}:')")
                assert tab.run("document.getElementById('lost').hidden") is True


def test_another_tab_uses_the_address(daemon: DaemonProcess) -> None:
    """Who comes second with the printed address, in another browser, gets a sentence."""
    with address(daemon) as url, browser() as first, browser() as second:
        first.open(url)
        first.until("!!document.getElementById('ask')")
        second.open(url)
        assert "was used already" in second.text()
        second.open(first.run("location.href"))
        assert "Nothing is shown without" in second.text()
        first.run("location.reload()")
        first.until("!!document.getElementById('ask')")


class Other:
    """Another program of this machine with a web server, and the cookies that browsers send to it."""

    def __init__(self, page: bytes = b"") -> None:
        self.page = page
        self.cookies: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 - http.server's name; it has a self
                self.cookies.append(handler.headers["Cookie"])
                handler.send_response(200)
                handler.send_header("Content-Type", "text/html")
                handler.send_header("Content-Length", str(len(self.page)))
                handler.end_headers()
                handler.wfile.write(self.page)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_program_of_the_machine_gets_the_cookie(tab: Browser, host: str) -> None:
    """A browser does not tell cookies of one port from those of another: the path does."""
    with Other() as other:
        for path in ("/", "/index.html"):
            tab.open(f"http://{host}:{other.port}{path}")
            tab.until(f"location.port === '{other.port}'")
        assert len(other.cookies) >= 2
        assert set(other.cookies) == {None}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_page_presses_the_button(tab: Browser, daemon: DaemonProcess, host: str) -> None:
    """A form on a page of another port is refused, even where that knows the path and the token."""
    page, token = tab.run("location.href"), tab.run("document.querySelector('input').value")
    before = daemon.status()["run_count"]
    form = f'<form method="post" action="{page}"><input name="token" value="{token}"></form>'
    with Other(f"{form}<script>document.forms[0].submit()</script>".encode()) as other:
        tab.open(f"http://{host}:{other.port}/")
        # SameSite keeps the cookie from localhost, and the Origin the daemon from another port's page.
        words = "only syncd" if host == "127.0.0.1" else "Nothing is shown"
        tab.until(f"document.body.innerText.includes({words!r})")
    assert daemon.status()["run_count"] == before
