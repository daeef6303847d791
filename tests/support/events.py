"""The stand-in's six events by name, and what runs did about them."""

from syncd.model import Run
from syncd.standin.server import StandIn

HOUR_S = 3600.0


FESTIVAL, WEEKEND, WORKSHOP, OPEN_DAY, OUTING, CONCERT = (str(900001 + turn) for turn in range(6))


def kinds(run: Run) -> list[tuple[str, str]]:
    return [(error.subject, error.kind) for error in run.errors]


def asked(standin: StandIn, what: str) -> list[str]:
    """Return the events of which this was asked, in order."""
    paths = [request.path.split("/") for request in standin.requests]
    return [path[2] for path in paths if path[1] == "event" and path[3] == what]
