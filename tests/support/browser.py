"""A real Chromium without a window, told what to do over two pipes by its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_NOT = "needs a browser: apt-get install chromium"
PATIENCE_S = 45.0
"""Only what hangs takes longer, on a slow and busy machine too."""
OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ),
    "--disable-dev-shm-usage",  # that of a container is small
    "--lang=en-GB",
)
TROUBLE = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}


class Browser:
    """One tab. `complaints` holds what its console has told so far: errors, and all that a policy forbade."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._numbers = itertools.count(1)
        self._unread = b""
        self._session: str | None = None
        self._events: list[Json] = []
        self.complaints: list[str] = []
        target = self.order("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.order(f"{domain}.enable")

    def order(self, method: str, **parameters: Any) -> Json:
        """Return the result of a command of the protocol."""
        number = next(self._numbers)
        message: Json = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result: Json = answer["result"]
                return result

    def _read(self) -> Json:
        while b"\0" not in self._unread:
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "the browser is gone"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\0")
        message: Json = json.loads(line)
        if message.get("method") in TROUBLE:
            self.complaints.append(json.dumps(message["params"])[:1000])
        if "method" in message:
            self._events.append(message)
        return message

    def open(self, address: str) -> None:
        """Show an address, and return once it is loaded."""
        self._events.clear()
        self.order("Page.navigate", url=address)
        self.loaded()

    def loaded(self) -> None:
        """Return once a page has been loaded."""
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return what an expression gives; a promise is waited for."""
        result = self.order(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """Return what an expression gives once that is true."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(AssertionError):  # the page is being exchanged
                if found := self.run(script):
                    return found
            assert time.monotonic() < deadline, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)

    def text(self, selector: str = "body") -> str:
        """Return what is to be read in an element."""
        found: str = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    def press(self, key: str) -> None:
        """Press a key, such as Tab or Enter."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        options: Json = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.order("Input.dispatchKeyEvent", type="keyDown", text=text, **options)
        self.order("Input.dispatchKeyEvent", type="keyUp", **options)

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        where = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y, width, height = self.run(f"(({{x, y, width, height}}) => [x, y, width, height])({where})")
        for kind in ("mousePressed", "mouseReleased"):
            self.order(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x + width / 2,
                y=y + height / 2,
                button="left",
                clickCount=1,
            )

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Be a screen of this size, with this preference of colours."""
        self.order(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.order("Emulation.setEmulatedMedia", features=[scheme])

    def without_scripts(self) -> None:
        """Run no script of a page's own from the next one on."""
        self.order("Emulation.setScriptExecutionDisabled", value=True)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is to be seen, or of the whole page."""
        shot = self.order("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Give a browser that knows nothing from before."""
    assert PROGRAM
    their_orders, orders = os.pipe()
    answers, their_answers = os.pipe()
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as home:
        # It reads orders from its descriptor 3 and answers on 4, wherever ours are.
        place = f'exec "$@" 3<&{their_orders} 4>&{their_answers}'
        process = subprocess.Popen(
            ["bash", "-c", place, "bash", PROGRAM, *OPTIONS, *sandbox, f"--user-data-dir={home}"],
            pass_fds=(their_orders, their_answers),
            env={"HOME": home, "PATH": os.environ["PATH"], "TZ": "UTC", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(their_orders)
        os.close(their_answers)
        try:
            yield Browser(orders, answers)
        finally:
            os.close(orders)
            os.close(answers)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
