"""The same with dlt, as its documentation does it: `pipeline.py BASE_URL DATABASE_URL FOLDER`.

Resources with merge disposition and primary keys; per-event ones are read in parallel; the first time all
attendees event by event, later those that were modified. It runs in an environment of its own, where dlt is
installed and syncd is not.
"""
# mypy: disable-error-code="import-not-found, untyped-decorator"

import sys
import time
from collections.abc import Iterator
from typing import Any

import dlt
import measure
from dlt.sources.helpers import requests

OVERLAP_S = 600
Rows = list[dict[str, Any]]


def read(base_url: str, path: str, **params: str) -> Rows:
    """Return an answer's rows."""
    rows: Rows = requests.get(base_url + path, params=params, auth=("12345", "key")).json()
    return rows


def figures_of(base_url: str, events: Any) -> Iterator[Any]:
    """Return a resource for each thing that is read event by event."""
    keys = {"avail": ["event", "type", "id"], "tickets": ["id"], "dates": ["id"]}
    for kind, key in keys.items():

        @dlt.defer
        def of_event(event: dict[str, Any], kind: str = kind) -> Rows:
            if kind == "dates" and event["multiple"] != "1":
                return []
            rows = read(base_url, f"/event/{event['id']}/{kind}", past="1")
            return [{"id": "", **row, "event": event["id"]} for row in rows]

        def of_events(page: Rows, of_event: Any = of_event) -> Iterator[Any]:
            for event in page:
                yield of_event(event)

        yield dlt.transformer(
            of_events,
            data_from=events,
            name=kind,
            primary_key=key,
            write_disposition="merge",
            max_table_nesting=0,
        )


@dlt.source
def billetweb(base_url: str) -> Iterator[Any]:
    """Return the account's resources."""

    @dlt.resource(primary_key="id", write_disposition="merge", max_table_nesting=0)
    def events() -> Iterator[Rows]:
        yield read(base_url, "/events", past="1", description="1")

    @dlt.defer
    def of_event(event: dict[str, Any]) -> Rows:
        rows = read(base_url, f"/event/{event['id']}/attendees", disabled="1")
        return [{**row, "event": event["id"]} for row in rows]

    @dlt.transformer(data_from=events, primary_key="id", write_disposition="merge", max_table_nesting=0)
    def attendees(page: Rows) -> Iterator[Any]:
        state = dlt.current.resource_state()
        since, state["since"] = state.get("since"), int(time.time()) - OVERLAP_S
        if since is not None:
            yield read(base_url, "/attendees", disabled="1", last_update=str(since))
            return
        for event in page:
            yield of_event(event)

    yield from (events, attendees, *figures_of(base_url, events))


def main(base_url: str, database: str, folder: str) -> None:
    """Carry one load out and tell how long it took, tables included."""
    engine = dlt.destinations.postgres
    dlt.config["runtime.dlthub_telemetry"] = False
    dlt.config["runtime.log_level"] = "CRITICAL"
    if database.startswith("sqlite"):
        engine = dlt.destinations.sqlalchemy
        dlt.config["load.workers"] = 1  # several would wait for each other's locks, and try again
    pipeline = dlt.pipeline("bench", pipelines_dir=folder, destination=engine(database), dataset_name="main")
    began = time.perf_counter()
    pipeline.run(billetweb(base_url)).raise_on_failed_jobs()
    measure.tell(seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
