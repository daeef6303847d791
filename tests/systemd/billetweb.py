"""The stand-in for Billetweb as a service of the machine, on a fixed port; a file says how it fails."""

import os
import socket
from contextlib import suppress
from fnmatch import fnmatchcase

import uvicorn
from inside import FAULT, KEY, PORT, USER
from msgspec.structs import replace

from syncd.daemon.notify import Notifier
from syncd.standin import server as standin
from syncd.standin.world import Row


async def nothing(_answer: standin.Answer, by: standin.Exchange) -> None:
    """Send nothing for as long as anybody waits."""
    await by.gone


FAULTS: dict[str, standin.Fault] = {
    "hang": lambda answer: replace(answer, delivery=nothing),
    "503": standin.status(503),
    "unauthorized": standin.unauthorized,
}


class Billetweb(standin.StandIn):
    """An account whose sales go on with each list that is asked for, and that fails as the file says."""

    def events_shown(self, query: dict[str, str]) -> list[Row]:
        for event_id in self.live():
            self.sell(event_id)
        return super().events_shown(query)

    def _next_fault(self, path: str) -> standin.Fault | None:
        with suppress(FileNotFoundError):
            pattern, name = FAULT.read_text().split()
            if fnmatchcase(path, pattern):
                return FAULTS[name]
        return None


def main() -> None:
    """Serve until the end; systemd hears of it once the port answers."""
    account = Billetweb(events=3, user=USER, key=KEY)
    config = uvicorn.Config(
        account.app, http=standin._Connection, ws="none", lifespan="off", log_config=None, access_log=False
    )
    with socket.create_server(("127.0.0.1", PORT)) as listening:
        Notifier(os.environ.get("NOTIFY_SOCKET")).send(READY="1")
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
