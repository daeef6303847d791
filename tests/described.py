"""Hold the description of the control API true: schemathesis asks a real daemon all that it allows, and more.

    python tests/described.py SCHEMATHESIS [SECONDS]

SCHEMATHESIS is that program, which is in no environment of ours: it brings twenty packages, and .ci/run alone
needs it. Every answer must fit its schema and status, and none be a fault of the server's. Exits as it does.
"""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from support.processes import DaemonProcess, short_folder

from syncd.standin.server import StandIn, serving

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "positive_data_acceptance", "unsupported_method"),
)
SECONDS = "35"
"""Some hundred requests; with start and end it stays below a minute."""


@contextlib.contextmanager
def bridge(path: Path) -> Iterator[int]:
    """Lead a port of the loopback to a Unix socket, which schemathesis cannot ask; give its number."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, path), daemon=True).start()
        yield server.getsockname()[1]


def _accept(server: socket.socket, path: Path) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            one, _ = server.accept()
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            other = socket.socket(socket.AF_UNIX)
            other.connect(str(path))
            for ends in ((one, other), (other, one)):
                threading.Thread(target=_copy, args=ends, daemon=True).start()


def _copy(source: socket.socket, into: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one of both hung up
        while piece := source.recv(65536):
            into.sendall(piece)
    with contextlib.suppress(OSError):
        into.shutdown(socket.SHUT_WR)


def main(program: str, seconds: str = SECONDS) -> int:
    """Start a daemon on a stand-in, and have it asked."""
    standin = StandIn(events=2)  # so that runs are short
    with short_folder() as folder, serving(standin) as base_url:
        site = '[[publish]]\ntable = "Formation"\nmatch = { key = "id" }\nset = { full = "is_full" }\n'
        daemon = DaemonProcess(folder, base_url, {"sync": {"run_timeout": "1h"}})
        daemon.config.write_text(
            f'{daemon.config.read_text()}{site}database = "sqlite:///{folder}/none.db"\n'
        )
        with daemon, bridge(daemon.socket) as port:
            daemon.ran()
            command = [
                program,
                "run",
                f"http://127.0.0.1:{port}/v1/openapi.json",
                "--checks",
                ",".join(CHECKS),
            ]
            command += ["--phases", "examples,coverage,fuzzing", "--max-time", seconds, "--workers", "2"]
            command += ["--request-timeout", "70"]  # who waits for a run does so for a minute
            done = subprocess.run(command, cwd=folder, check=False, timeout=600)
            # By chance the last run so far names events that nobody knows, which is no good health.
            assert daemon.ctl("run-now").returncode == 0, daemon.log
            status = daemon.status()
            assert status["health"] == "ok", f"else /healthz answers 503: {status}\n{daemon.log}"
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
