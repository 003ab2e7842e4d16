"""What an endpoint is: its path, its parameters, its body and its answers, declared once.

One declaration decodes the request, bounds its body, and is described in ``/openapi.json``: so none can say otherwise
than another. The parameters of an endpoint are the fields of an attrs class, each made by :func:`parameter`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import attrs
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from minibox_server.parameters import Parameters
from minibox_server.responses import RequestError, is_distribution
from minibox_server.schemas import DIGEST_SCHEMA
from minibox_store import Digest, InvalidInput, Platform

T = TypeVar("T")
Q = TypeVar("Q")

# Where an endpoint takes no body, one is passed over; it may be so large.
PASSED_OVER_BYTES = 64 * 1024

_DECLARED = "minibox_server.parameter"
_FOUND = "minibox_server.endpoint"
_SWITCH = {"1": True, "true": True, "0": False, "false": False}


@attrs.frozen(kw_only=True)
class Kind(Generic[T]):
    """What the text of a parameter means.

    Attributes:
        read: makes the value of the text, which is not trusted; the sentence of its ValueError goes on from the
            parameter's name: "must be 1 or 0".
        schema: what the text may be, as a JSON Schema.
    """

    read: Callable[[str], T]
    schema: Mapping[str, object]


def _read_switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ValueError("must be 1 or 0")
    return _SWITCH[text]


TEXT: Kind[str] = Kind(read=str, schema={"type": "string", "minLength": 1})
SWITCH: Kind[bool] = Kind(read=_read_switch, schema={"type": "string", "enum": list(_SWITCH)})
PLATFORM: Kind[Platform] = Kind(read=Platform.parse, schema={"type": "string", "examples": ["linux/arm64/v8"]})
DIGEST: Kind[Digest] = Kind(read=Digest.parse, schema=DIGEST_SCHEMA)


def choice(*texts: str) -> Kind[str]:
    """Return the kind of a parameter that is one of these texts."""

    def read(text: str) -> str:
        if text not in texts:
            raise ValueError(f"must be one of {', '.join(texts)}")
        return text

    return Kind(read=read, schema={"type": "string", "enum": list(texts)})


def counted(*, least: int = 0, most: int) -> Kind[int]:
    """Return the kind of a whole number; one above ``most`` is taken for ``most``."""

    def read(text: str) -> int:
        # However many zeros stand before it, the number is what follows them; and more digits than these are more than
        # any limit, of which Python refuses to read thousands.
        digits = text.lstrip("0") or "0"
        is_number = text.isascii() and text.isdigit()
        if not is_number or (len(digits) < 10 and int(digits) < least):
            raise ValueError(f"must be a whole number of at least {least}")
        return most if len(digits) > 9 else min(int(digits), most)

    return Kind(read=read, schema={"type": "integer", "minimum": least})


@attrs.frozen(kw_only=True)
class Parameter:
    """One declared parameter of a query.

    Attributes:
        kind: what its text means.
        what: what it is for, as the description says.
        missing: the sentence where it is needed and missing, or stands there and is empty; None for the usual one.
        code: what the distribution API calls a wrong one; None outside of it.
        repeated: whether it may stand there several times; the field is a tuple then, which may be empty unless there
            is a sentence for a missing one.
        name: what it is called in the query; None where that is what the field is called.
        may_be_empty: whether an empty one counts as missing.
    """

    kind: Kind[Any]
    what: str
    missing: str | None = None
    code: str | None = None
    repeated: bool = False
    name: str | None = None
    may_be_empty: bool = False


def parameter(
    kind: Kind[Any],
    what: str,
    *,
    default: Any = attrs.NOTHING,
    missing: str | None = None,
    code: str | None = None,
    repeated: bool = False,
    name: str | None = None,
    may_be_empty: bool = False,
) -> Any:
    """Return the attrs field of a parameter; one without ``default`` is needed. The arguments are of Parameter."""
    declared = Parameter(
        kind=kind, what=what, missing=missing, code=code, repeated=repeated, name=name, may_be_empty=may_be_empty
    )
    return attrs.field(default=() if repeated and default is attrs.NOTHING else default, metadata={_DECLARED: declared})


def parameters_of(query: type) -> Mapping[str, tuple[Parameter, bool]]:
    """Return each parameter that a class declares, by name, and whether it is needed."""
    declared = [(field, field.metadata[_DECLARED]) for field in attrs.fields(query)]
    return {each.name or field.name: (each, _is_needed(each, field.default)) for field, each in declared}


def _is_needed(declared: Parameter, default: object) -> bool:
    return default is attrs.NOTHING or (declared.repeated and declared.missing is not None)


def _fields_of(query: type) -> list[str]:
    return [field.name for field in attrs.fields(query)]


@attrs.frozen
class NoQuery:
    """The query of an endpoint that has no parameters."""


def decode_query(query: type[Q], text: bytes, *, may_have_others: bool = False) -> Q:
    """Return what the query string of a request says, as an object of the class that declares it.

    Args:
        query: the class.
        text: the query string; it is not trusted.
        may_have_others: whether parameters that the class does not declare are passed over.

    Raises:
        RequestError: 400, naming the parameter that is missing, empty, repeated, wrong or unknown.
    """
    if query is NoQuery and not text:
        return query()
    given = Parameters(text)
    known = parameters_of(query)
    values: dict[str, object] = {}
    for field_name, (name, (declared, is_needed)) in zip(_fields_of(query), known.items(), strict=True):
        try:
            if declared.repeated:
                values[field_name] = tuple(_read(declared, name, each) for each in given.all(name))
                if is_needed and not values[field_name]:
                    raise RequestError(400, declared.missing or "")
                continue
            is_asked_for = is_needed or (declared.missing is not None and given.has(name))
            if is_asked_for:
                found: str | None = given.required(name, missing=declared.missing)
            else:
                found = given.optional(name, may_be_empty=declared.may_be_empty)
            if found is not None:
                values[field_name] = _read(declared, name, found)
        except RequestError as error:
            raise attrs.evolve(error, code=error.code or declared.code) from error
    if not may_have_others:
        given.check_known(known)
    return query(**values)


def _read(declared: Parameter, name: str, text: str) -> object:
    try:
        return declared.kind.read(text)
    except InvalidInput as error:
        raise RequestError(400, f"parameter {name}: {error}", code=declared.code) from error
    except ValueError as error:
        raise RequestError(400, f"parameter {name} {error}", code=declared.code) from error


@attrs.frozen(kw_only=True)
class Body:
    """A body that an endpoint reads.

    Attributes:
        what: what it is, as the description says.
        media_types: what it may be called; nothing else is done with the name.
        most_bytes: how large it may be; None where only the store's own limits bound it.
        instead_of: the parameter that says otherwise where the content comes from: with it a body is passed over.
    """

    what: str
    media_types: tuple[str, ...]
    most_bytes: int | None
    instead_of: str | None = None

    def is_wanted(self, query: bytes) -> bool:
        """Whether a request with this query string has the body read."""
        return self.instead_of is None or not Parameters(query).has(self.instead_of)


@attrs.frozen(kw_only=True)
class Answer:
    """One answer that an endpoint gives.

    Attributes:
        what: what it says, as the description says.
        media_type: of its body; None where it has none.
        schema: of its body where that is JSON, or each line of it for ``application/x-ndjson``.
        headers: further headers that it has, by name, with what each says.
        may_have: further headers that it has at times.
    """

    what: str
    status: int = 200
    media_type: str | None = "text/plain"
    schema: Mapping[str, object] | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    may_have: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method: the method; with GET comes HEAD.
        path: in Starlette's words, such as ``/v2/{name:path}/blobs/{digest}``.
        what: what it does, in one sentence.
        call: answers a request, given its decoded query.
        query: the class that declares its parameters.
        body: the body that it reads; None where one is passed over.
        answers: what it answers when all is well; what may go wrong everywhere is not repeated.
        refusals: the statuses by which it refuses, beside those that every endpoint may answer.
        is_open: whether it is answered without a token: it tells nothing, and changes nothing.
        passes_others: whether parameters that it does not declare are passed over, since nothing depends on them.
        tag: the chapter of the description that it stands in.
    """

    method: str
    path: str
    what: str
    call: Callable[[Request, Any], Awaitable[Response]]
    query: type = NoQuery
    body: Body | None = None
    answers: tuple[Answer, ...]
    refusals: tuple[int, ...] = ()
    is_open: bool = False
    passes_others: bool = False
    tag: str = "images"

    @property
    def may_have_others(self) -> bool:
        """Whether its query may have parameters that it does not declare.

        Clients of the distribution API send some of their own (containerd ``ns``), and so do probes of what is open.
        """
        return self.passes_others or self.is_open or is_distribution(self.path)

    async def answer(self, request: Request) -> Response:
        """Answer a request for this endpoint."""
        text = request.scope["query_string"]
        return await self.call(request, decode_query(self.query, text, may_have_others=self.may_have_others))


class EndpointTable:
    """All endpoints of an application, by path and method; where several paths match, the first one counts."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        by_path: dict[str, dict[str, Endpoint]] = {}
        for each in self.endpoints:
            by_path.setdefault(each.path, {})[each.method] = each
        self._methods = [(_route(path, methods), methods) for path, methods in by_path.items()]

    @property
    def routes(self) -> list[Route]:
        """The routes of the application."""
        return [route for route, _ in self._methods]

    def find(self, scope: Scope) -> Endpoint | None:
        """Return the endpoint that a request is for; None where there is none."""
        # It is asked for several times for each request, and is looked for once.
        if _FOUND not in scope:
            scope[_FOUND] = self._find(scope)
        found: Endpoint | None = scope[_FOUND]
        return found

    def _find(self, scope: Scope) -> Endpoint | None:
        for route, methods in self._methods:
            if route.matches(scope)[0] is not Match.NONE:
                return methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
        return None

    def is_open(self, scope: Scope) -> bool:
        """Whether a request is answered without a token."""
        endpoint = self.find(scope)
        return endpoint is not None and endpoint.is_open

    def most_body_bytes(self, scope: Scope) -> int | None:
        """Return how large the body of a request may be; None where nothing but the store bounds it."""
        endpoint = self.find(scope)
        if endpoint is None or endpoint.body is None or not endpoint.body.is_wanted(scope["query_string"]):
            return PASSED_OVER_BYTES
        return endpoint.body.most_bytes


def _route(path: str, methods: Mapping[str, Endpoint]) -> Route:
    async def answer(request: Request) -> Response:
        endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
        if endpoint is None:  # Starlette has asked already; the type checker has not
            raise HTTPException(405)
        return await endpoint.answer(request)

    return Route(path, answer, methods=list(methods))
