"""The description of the control API: whole, and true of what a real daemon answers."""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.responses import Response
from starlette.routing import Mount, Route
from support.control_stub import Stub, answering
from support.processes import PATIENCE_S, DaemonProcess, short_folder
from support.project import README

from syncd.control.openapi import described, document
from syncd.standin.server import StandIn, serving

ROUTES = answering(Stub()).routes
DOCUMENT: dict[str, Any] = document(ROUTES)
COMPONENTS = DOCUMENT["components"]["schemas"]
GETS = sorted(path for path, methods in DOCUMENT["paths"].items() if "get" in methods)


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Give a daemon that has something to tell of everything: a run, a doubt, a target, a feed."""
    standin = StandIn(events=6)
    with short_folder() as folder, serving(standin) as base_url:
        process = DaemonProcess(folder, base_url)
        with process.config.open("a") as config:
            config.write(
                '[[publish]]\ntable = "Formation"\nmatch = { key = "id" }\nset = { full = "is_full" }\n'
            )
            config.write(f'[[feeds]]\npath = "{folder}/events.json"\nformat = "json"\n')
        with process:
            process.ran()
            for event in ("900001", "900002", "900003", "900004"):
                del standin.events[event]
            process.ask("POST", "/v1/runs", {})
            process.ran(2)
            yield process


def ask(daemon: DaemonProcess, method: str, target: str, content: bytes | None = None) -> httpx.Response:
    """Return the daemon's answer."""
    transport = httpx.HTTPTransport(uds=str(daemon.socket))
    with httpx.Client(transport=transport, base_url="http://syncd", timeout=PATIENCE_S) as client:
        return client.request(method, target, content=content)


def fits(schema: dict[str, Any], value: object) -> None:
    """Fail where a value does not fit a schema of the document."""
    whole = {"components": DOCUMENT["components"], "$ref": "#/schema", "schema": schema}
    Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


def test_route_that_nobody_describes() -> None:
    """The document has each route, with each of its methods."""
    served = {
        (route.path, method)
        for route in cast("list[Route]", ROUTES)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert told == served
    assert len(told) > 12


def test_route_without_a_description_passes() -> None:
    """A route whose handler, or one of its methods, is not described makes the document fail."""

    def plain(_: object) -> Response:
        return Response()

    @described("Get it.")
    def gets(_: object) -> Response:
        return Response()

    for route in (Route("/v1/more", plain), Route("/v1/more", gets, methods=["GET", "POST"])):
        with pytest.raises(LookupError, match="/v1/more is not described"):
            document([route])
    with pytest.raises(AssertionError):
        document([Mount("/v1/more", routes=[])])


def test_route_that_the_readme_hides() -> None:
    """README names each route."""
    assert [path for path in DOCUMENT["paths"] if path not in README] == []


def test_reference_leads_nowhere() -> None:
    """Each reference is to a component that there is, and each component is a JSON schema that is used."""
    text = json.dumps(DOCUMENT)
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) == COMPONENTS.keys()
    for schema in COMPONENTS.values():
        Draft202012Validator.check_schema(schema)


def test_clients_may_not_lean_on_a_field_that_is_always_there() -> None:
    """What is given has all of its fields; of what is taken none is needed."""
    assert set(COMPONENTS["Run"]["required"]) == COMPONENTS["Run"]["properties"].keys()
    assert set(COMPONENTS["RunError"]["required"]) == {"subject", "kind", "message"}
    assert not COMPONENTS["RunRequest"].get("required")


@pytest.mark.parametrize("path", GETS)
def test_answer_that_is_not_as_described(daemon: DaemonProcess, path: str) -> None:
    """The real daemon's answer to each GET has a status, a type and a form that its description has."""
    found = ask(daemon, "GET", path.replace("{id}", "2"))
    answer = DOCUMENT["paths"][path]["get"]["responses"][str(found.status_code)]
    media = found.headers["content-type"].partition(";")[0]
    assert media in answer["content"]
    value = found.json() if media == "application/json" else found.text
    fits(answer["content"][media]["schema"], value)
    if isinstance(value, dict) and len(value) == 1:
        assert all(value.values()), "nothing was shown that could be wrong"


def test_error_that_is_not_as_described(daemon: DaemonProcess) -> None:
    """Refusals fit the one schema of all errors."""
    for method, path, within in (
        ("GET", "/v1/runs?limit=0", "/v1/runs"),
        ("GET", "/v1/runs/777", "/v1/runs/{id}"),
        ("POST", "/v1/accept", "/v1/accept"),
    ):
        found = ask(daemon, method, path, b"nonsense")
        answer = DOCUMENT["paths"][within][method.lower()]["responses"][str(found.status_code)]
        fits(answer["content"]["application/json"]["schema"], found.json())


def test_description_is_another_one(daemon: DaemonProcess) -> None:
    """The socket gives the description that these tests hold."""
    assert ask(daemon, "GET", "/v1/openapi.json").json() == json.loads(json.dumps(DOCUMENT))
