"""`syncd demo`, the first thing that anybody sees: as a real process, with its own stand-in."""

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import PATIENCE_S, SYNCCTL, SYNCD, environment, eventually, short_folder

from syncd.standin.server import StandIn
from syncd.standin.world import number


def test_demo_left_alone_outgrows_its_ceiling() -> None:
    """However long the sales go on, six runs a minute stay below the ceiling of requests."""
    standin = StandIn(events=6, seed=1)
    for _ in range(5000):
        standin.tick()
        live = [event for event in standin.events.values() if not standin.is_over(event.row)]
        assert 6 * (1 + sum(3 if number(event.row["multiple"]) else 2 for event in live)) <= 100


class Screen:
    """A running demo and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.text += line

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows something."""
        found: re.Match[str] = eventually(lambda: re.search(pattern, self.text))
        return found

    def leave(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End whatever is left."""
        self.process.kill()
        self.process.wait()
        self._reader.join()


@contextmanager
def demo(*arguments: str) -> Iterator[Screen]:
    command = [*SYNCD, "demo", "--interval", "1s", "--events", "3", *arguments]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        screen = Screen(process)
        try:
            yield screen
        finally:
            screen.close()


def test_first_minute_disappoints() -> None:
    """The table comes by itself, further runs follow, syncctl works as printed, Ctrl-C leaves nothing."""
    with demo() as screen:
        folder = Path(screen.shows(r"mirrors it into (\S+)/syncd\.db every 1 s")[1])
        screen.shows("run 1 ok in")
        screen.shows(r"In another terminal:\n")
        line = screen.shows(r"  syncctl --socket (\S+) status\n")
        assert "Fête des lucioles" in screen.text  # the table of places
        screen.shows(r"run 3 \w+ in .* \(interval\)")

        command = [*SYNCCTL, "--socket", line[1]]
        done = subprocess.run(
            [*command, "run-now", "--json"], env=environment(), capture_output=True, text=True, check=False
        )
        assert json.loads(done.stdout)["state"] == "done"
        status = subprocess.run(
            [*command, "status"], env=environment(), capture_output=True, text=True, check=False
        )
        assert status.returncode == 0
        assert "every" not in status.stderr
        assert screen.leave(signal.SIGINT) == 0
        assert not folder.exists()
        assert "Traceback" not in screen.text
        assert screen.text.count("In another terminal:") == 1


def test_kept_folder_is_removed() -> None:
    """With `--dir` its files stay, and the next demo goes on from them; the key is for the owner alone."""
    with short_folder() as home:
        folder = home / "kept"
        for expected in (1, 2):
            with demo("--dir", str(folder)) as screen:
                screen.shows(r"In another terminal:\n")
                assert screen.leave(signal.SIGTERM) == 0
            assert screen.text.count("run 1 ok") == (expected == 1)
        assert {"config.toml", "billetweb.key", "syncd.db"} <= {path.name for path in folder.iterdir()}
        assert not (folder / "syncd.sock").exists()
        assert (folder / "billetweb.key").stat().st_mode & 0o077 == 0
