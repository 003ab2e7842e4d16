"""The description of the HTTP interface: OpenAPI 3.1, made of the declarations that decode the requests.

Nothing is said twice: an endpoint that is declared is described, and what is not declared is not there. What every
endpoint may answer when it refuses is said here, once, as :mod:`minibox_server.responses` forms it.

Spec: OpenAPI 3.1.1.
"""

import re
from collections.abc import Iterable, Mapping

from minibox_server.declarations import Answer, Endpoint, EndpointTable, Parameter, parameters_of
from minibox_server.responses import is_distribution
from minibox_server.schemas import DIGEST_SCHEMA, DISTRIBUTION_ERRORS_SCHEMA, PROBLEM_SCHEMA, TEXT_SCHEMA, Schema

# What is said in the head, the size or the source of a request is refused alike everywhere.
COMMON_REFUSALS = (400, 401, 403, 413, 414, 431, 500, 503)

_PLACE = re.compile(r"\{(\w+)(?::(\w+))?\}")
_COMPONENT = "[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*"
# What the parts of a path may be, by their names in the declared paths.
PLACES: Mapping[str, tuple[str, Schema]] = {
    "file": ("the name of a file", {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]*$"}),
    "name": (
        "the name of a repository",
        {"type": "string", "pattern": f"^{_COMPONENT}(?:/{_COMPONENT})*$", "maxLength": 251},
    ),
    "digest": ("the digest of a blob", DIGEST_SCHEMA),
    "reference": (
        "a tag, or the digest of a manifest",
        {
            "type": "string",
            "pattern": "^(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$",
        },
    ),
    "upload": ("which upload", {"type": "string", "minLength": 1}),
}
_REFUSALS: Mapping[int, str] = {
    400: "A parameter is missing, empty, repeated, wrong or unknown, or the request is not valid.",
    401: "The token is missing or wrong.",
    403: "The Host, the Origin, a path or a registry is not allowed, or a registry refuses the credentials.",
    404: "What the request names is not there.",
    405: "The path has no such method.",
    408: "The request did not come in time.",
    409: "What is there does not allow it: an image is incomplete, or something is in use.",
    411: "The length of the body is not said.",
    413: "The body is longer than it may be.",
    414: "The path and the query are longer than they may be.",
    416: "The range lies beyond the end.",
    422: "The archive is none, is incomplete, or does not hold what it says.",
    429: "A registry limits the rate.",
    431: "The headers are too many or too long.",
    500: "Something is wrong with the store or the daemon; nothing has changed.",
    501: "A library that is needed is not installed.",
    502: "A registry failed, or answered wrongly.",
    503: "The daemon or the store is busy, or the daemon ends.",
    507: "There is no space left.",
}
_REFUSED_WITH: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": "which scheme proves who asks"},
    405: {"Allow": "the methods that the path has"},
    416: {"Content-Range": "how long the blob is"},
    429: {"Retry-After": "after how many seconds it may be tried again"},
    503: {"Retry-After": "after how many seconds it may be tried again"},
}
# What the connection refuses before anybody knows whom it is for is one line of text.
_REFUSED_BEFORE = (400, 408, 414, 431, 503)
_EVERYWHERE: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Request-ID": "the id of this request in the daemon's log; the client's own where it sent one of the usual form",
}
_IN_DISTRIBUTION: Mapping[str, str] = {"Docker-Distribution-Api-Version": "registry/2.0"}
_OF_LINES = ("application/x-ndjson", "text/event-stream")
_ABOUT = """\
The daemon over one store of container images, and the OCI distribution API over the same store.

Whoever asks carries the token, where the daemon has one. A part of a path that is the name of a repository may have
slashes, and they are sent as they are. An error is one line of text, or with `Accept: application/json` a problem
document (RFC 9457); below /v2/ it is the error document of the distribution API. A path that is not described here is
answered by 404, and a method that is not by 405 with `Allow`. A parameter that is not described is refused, but not
below /v2/, where no token is needed, and by /ping and /images/load: there it is passed over. A record may get further
keys."""


def describe_api(endpoints: EndpointTable, *, version: str) -> Mapping[str, object]:
    """Return the description of all endpoints, as what is encoded as JSON."""
    paths: dict[str, dict[str, object]] = {}
    for each in endpoints.endpoints:
        operations = paths.setdefault(plain_path(each.path), {})
        operations[each.method.lower()] = _operation(each, each.method)
        if each.method == "GET":
            operations["head"] = _operation(each, "HEAD")
    return {
        "openapi": "3.1.1",
        "info": {"title": "minibox-store", "version": version, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(each.tag for each in endpoints.endpoints)],
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM_SCHEMA, "DistributionErrors": DISTRIBUTION_ERRORS_SCHEMA},
            "responses": {
                _refusal_name(status, path): _refusal(status, path) for path in ("/", "/v2/") for status in _REFUSALS
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "token": {"type": "apiKey", "in": "header", "name": "X-API-Token"},
                "basic": {"type": "http", "scheme": "basic", "description": "the token is the password"},
            },
        },
    }


def plain_path(path: str) -> str:
    """Return a declared path in the words of OpenAPI.

    >>> plain_path("/v2/{name:path}/tags/list")
    '/v2/{name}/tags/list'
    """
    return _PLACE.sub(r"{\1}", path)


def refusals_of(endpoint: Endpoint) -> tuple[int, ...]:
    """Return every status by which an endpoint may refuse."""
    common = {status for status in COMMON_REFUSALS if status != 401 or not endpoint.is_open}
    body = {408} if endpoint.body is not None else set()
    return tuple(sorted(common | body | set(endpoint.refusals)))


def _operation(endpoint: Endpoint, method: str) -> Mapping[str, object]:
    path = endpoint.path
    described: dict[str, object] = {
        "operationId": _operation_id(method, path),
        "tags": [endpoint.tag],
        "summary": endpoint.what,
        "parameters": [*_path_parameters(path), *_query_parameters(endpoint.query)],
        "responses": {
            **_answers(endpoint, with_body=method != "HEAD"),
            **{str(status): _reference(status, path) for status in refusals_of(endpoint)},
        },
        "security": _security(endpoint),
    }
    if endpoint.body is not None:
        limit = endpoint.body.most_bytes
        bound = "of any size" if limit is None else f"at most {limit} bytes"
        described["requestBody"] = {
            "description": f"{endpoint.body.what}; {bound}",
            "content": {name: {"schema": _binary()} for name in endpoint.body.media_types},
        }
    return described


def _operation_id(method: str, path: str) -> str:
    words = re.findall(r"\w+", plain_path(path))
    ending = ["", "slash"] if path.endswith("/") and len(path) > 1 else [""]
    return "_".join([method.lower(), *words, *ending]).rstrip("_")


def _security(endpoint: Endpoint) -> list[Mapping[str, list[str]]]:
    if endpoint.is_open:
        return []
    schemes = ["bearer", "token", *(["basic"] if is_distribution(endpoint.path) else [])]
    return [{name: []} for name in schemes]


def _path_parameters(path: str) -> Iterable[Mapping[str, object]]:
    for name, kind in _PLACE.findall(path):
        what, schema = PLACES.get(name, (name, TEXT_SCHEMA))
        note = "; it may have slashes, which are sent as they are" if kind == "path" else ""
        yield {"name": name, "in": "path", "required": True, "description": what + note, "schema": schema}


def _query_parameters(query: type) -> Iterable[Mapping[str, object]]:
    for name, (declared, is_needed) in parameters_of(query).items():
        yield {
            "name": name,
            "in": "query",
            "required": is_needed,
            "description": declared.what,
            "schema": _parameter_schema(declared),
        }


def _parameter_schema(declared: Parameter) -> Schema:
    return {"type": "array", "items": declared.kind.schema} if declared.repeated else declared.kind.schema


def _answers(endpoint: Endpoint, *, with_body: bool) -> Mapping[str, object]:
    by_status: dict[int, list[Answer]] = {}
    for each in endpoint.answers:
        by_status.setdefault(each.status, []).append(each)
    return {str(status): _answer(answers, endpoint.path, with_body=with_body) for status, answers in by_status.items()}


def _answer(answers: list[Answer], path: str, *, with_body: bool) -> Mapping[str, object]:
    headers: dict[str, str] = {}
    for each in answers:
        headers.update({**each.headers, **each.may_have})
    everywhere = frozenset.intersection(*(frozenset(each.headers) for each in answers))
    described: dict[str, object] = {
        "description": "; ".join(dict.fromkeys(each.what for each in answers)),
        "headers": _headers(headers, path, needed=everywhere),
    }
    content = {each.media_type: _content(each) for each in answers if each.media_type is not None}
    if content and with_body:
        described["content"] = content
    return described


def _content(answer: Answer) -> Mapping[str, object]:
    if answer.media_type in _OF_LINES:
        # OpenAPI 3.1 has no word for the schema of one item of a stream, which 3.2 calls itemSchema.
        return {"x-item-schema": answer.schema or {}}
    if answer.schema is not None:
        return {"schema": answer.schema}
    return {"schema": TEXT_SCHEMA if (answer.media_type or "").startswith("text/") else _binary()}


def _binary() -> Schema:
    return {}


def _headers(headers: Mapping[str, str], path: str, *, needed: Iterable[str]) -> Mapping[str, object]:
    always = {**_EVERYWHERE, **(_IN_DISTRIBUTION if is_distribution(path) else {})}
    needed = {*always, *needed}
    return {
        name: {"description": what, "required": name in needed, "schema": TEXT_SCHEMA}
        for name, what in {**headers, **always}.items()
    }


def _reference(status: int, path: str) -> Mapping[str, object]:
    return {"$ref": f"#/components/responses/{_refusal_name(status, path)}"}


def _refusal_name(status: int, path: str) -> str:
    return f"{'DistributionRefused' if is_distribution(path) else 'Refused'}{status}"


def _refusal(status: int, path: str) -> Mapping[str, object]:
    text = {"text/plain": {"schema": TEXT_SCHEMA}}
    if is_distribution(path):
        errors = {"application/json": {"schema": {"$ref": "#/components/schemas/DistributionErrors"}}}
        content = {**errors, **(text if status in _REFUSED_BEFORE else {})}
    else:
        content = {**text, "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = _REFUSED_WITH.get(status, {})
    return {
        "description": _REFUSALS[status],
        "headers": _headers(headers, path, needed=headers),
        "content": content,
    }
