"""A client of the stand-in, and its events by name."""

from datetime import UTC, datetime

import httpx

from syncd.standin.server import StandIn

NOW = datetime(2027, 5, 2, 8, 30, tzinfo=UTC)


FESTIVAL, WEEKEND, _, OPEN_DAY, OUTING, CONCERT = (str(900001 + turn) for turn in range(6))


def client_of(standin: StandIn, base_url: str) -> httpx.Client:
    """Return a client with the right credentials; without TLS, whose set-up would cost the most."""
    return httpx.Client(base_url=base_url, auth=(standin.user, standin.key), timeout=5, verify=False)
