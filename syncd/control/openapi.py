"""The description of the control API, as OpenAPI 3.1, generated from the routes and the types they return.

`described` states what each handler takes and returns; the records are the schemas. The document cannot be
made if a route lacks it, which a test shows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct
from starlette.routing import BaseRoute, Route

from syncd import __version__
from syncd.model import Json, RunError

H = TypeVar("H", bound=Callable[..., Any])
Method = Literal["GET", "POST"]
JSON, TEXT, HTML, LINES = "application/json", "text/plain", "text/html", "application/x-ndjson"
REF = "#/components/schemas/{name}"
ABOUT = (
    "The control API of syncd, on its Unix socket: whoever may open that may do all of this. Instants are"
    " RFC 3339 in UTC, durations are seconds. Later versions may add routes and fields, and take none away."
)
REFUSALS = {
    400: "Something in the request does not fit.",
    403: "It came from another site's page.",
    404: "There is no such thing.",
    409: "Not now: syncd is stopping, or more events are named than one run takes.",
    413: "The body is too large.",
    422: "The configuration is bad; the old one stays in force.",
    503: "The database cannot be read or written now.",
}
"""What an error of this status means. All have the same form."""
IN_PATH: Mapping[str, Json] = {"id": {"type": "integer", "format": "int64"}}
"""The schemas of the parameters in paths."""


class What(Struct, frozen=True):
    """What went wrong: a stable word for programs, a sentence for people."""

    code: str
    message: str


class Error(Struct, frozen=True):
    """The answer to a request that was not carried out."""

    error: What


class described(Struct, frozen=True):  # noqa: N801 - it stands before handlers, as a decorator
    """What a route does for one method, attached to its handler.

    `answer` is the type of the answer, or a dict of its fields' types; `query` is the record of the
    parameters, `refused` the statuses of errors, `also` other statuses with an answer of the same media type;
    `media` is None for an answer without a body.
    """

    summary: str
    answer: Any = str
    method: Method = "GET"
    status: int = 200
    media: str | None = JSON
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    refused: tuple[int, ...] = ()
    also: Mapping[int, str] = {}

    def __call__(self, handler: H) -> H:
        """Return the handler, with this description attached."""
        handler.__dict__.setdefault("operations", {})[self.method] = self
        return handler


def document(routes: Iterable[BaseRoute]) -> Json:
    """Return the description of these routes. Raises LookupError if one has none."""
    operations = {
        (path, method): operation for route in routes for path, method, operation in _operations(route)
    }
    schemas = _schemas(operations.values())
    paths: dict[str, Json] = {}
    for (path, method), operation in operations.items():
        paths.setdefault(path, {})[method.lower()] = _described(path, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "syncd", "version": __version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": {"Syncd-Version": {"schema": {"type": "string"}, "required": True}},
        },
    }


def _operations(route: BaseRoute) -> Iterator[tuple[str, str, described]]:
    assert isinstance(route, Route)  # each is for one path, so that nothing escapes
    known: Mapping[str, described] = getattr(route.endpoint, "operations", {})
    for method in sorted((route.methods or set()) - {"HEAD"}):
        if method not in known:
            raise LookupError(f"{method} {route.path} is not described")
        yield route.path, method, known[method]


def _described(path: str, operation: described) -> Json:
    in_path = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": IN_PATH[name]} for name in in_path
    ]
    if operation.query:
        _, records = msgspec.json.schema_components([operation.query])
        in_query = records[operation.query.__name__]["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in in_query.items()]
    responses = {str(operation.status): _response("Done.", operation.media, _schema(operation.answer))}
    for status, text in operation.also.items():
        responses[str(status)] = _response(text, operation.media, _schema(operation.answer))
    # What comes from another site's page is refused by the gate, before any route.
    for status in sorted({*operation.refused, *([403] if operation.method == "POST" else [])}):
        responses[str(status)] = _response(REFUSALS[status], JSON, _schema(Error))
    found: Json = {"summary": operation.summary, "parameters": parameters, "responses": responses}
    if operation.body:
        found["requestBody"] = {"content": {JSON: {"schema": _schema(operation.body)}}}
    return found


def _response(text: str, media: str | None, schema: Json) -> Json:
    told: Json = {
        "description": text,
        "headers": {"Syncd-Version": {"$ref": "#/components/headers/Syncd-Version"}},
    }
    return told if media is None else told | {"content": {media: {"schema": schema}}}


def _schema(kind: Any) -> Json:
    """Return the schema of a type, whose records are among the components, or of a dict of types."""
    if isinstance(kind, dict):
        properties = {name: _schema(each) for name, each in kind.items()}
        return {"type": "object", "properties": properties, "required": [*properties]}
    ((schema,), _) = msgspec.json.schema_components([kind], ref_template=REF)
    return schema


def _schemas(operations: Iterable[described]) -> Json:
    """Return the schemas of all records. What syncd returns has all its fields, except in a few records."""
    given: list[Any] = [Error]
    taken: list[Any] = []
    for operation in operations:
        given += operation.answer.values() if isinstance(operation.answer, dict) else [operation.answer]
        taken += [operation.body] if operation.body else []
    _, schemas = msgspec.json.schema_components([*given, *taken], ref_template=REF)
    _, whole = msgspec.json.schema_components(given, ref_template=REF)
    for name in whole.keys() - {RunError.__name__}:  # which leaves out what it does not have
        schemas[name]["required"] = [*schemas[name]["properties"]]
    return schemas
