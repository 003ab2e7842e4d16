"""How every answer that is no success looks: one table from errors to statuses, and the three forms of a sentence.

A person gets one line of text, a program that accepts JSON a problem document (RFC 9457), and a client of ``/v2/``
the error document of the OCI distribution API. No form ever shows more than the sentence.
"""

import math
import re
from collections.abc import Mapping
from http import HTTPStatus

import attrs
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

from minibox_store import (
    AuthenticationRefused,
    Cancelled,
    ContentMismatch,
    CredentialHelperFailed,
    IncompleteImage,
    InvalidArchive,
    InvalidDocument,
    InvalidInput,
    MissingLibrary,
    NotFound,
    NothingToDo,
    PolicyRefused,
    RateLimited,
    RegistryBlocked,
    RegistryError,
    StillNeeded,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    one_line,
    one_sentence,
)
from minibox_store import ManifestUnknown as RegistryManifestUnknown

DISTRIBUTION_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")

# The nearest class in an error's own order of ancestors decides.
_STATUSES: Mapping[type[Exception], int] = {
    RegistryManifestUnknown: 404,
    AuthenticationRefused: 403,
    RegistryBlocked: 403,
    RateLimited: 429,
    RegistryError: 502,
    ContentMismatch: 502,
    InvalidDocument: 502,
    InvalidArchive: 422,
    InvalidInput: 400,
    NotFound: 404,
    IncompleteImage: 409,
    NothingToDo: 409,
    MissingLibrary: 501,
    StoreBusy: 503,
    StoreFull: 507,
    StoreDamaged: 500,
    StoreUnavailable: 500,
    CredentialHelperFailed: 500,
    PolicyRefused: 403,
    StillNeeded: 409,
    Cancelled: 503,
    StoreError: 500,
}
# What the distribution API calls an answer for which no endpoint has a better word.
_CODES: Mapping[int, str] = {
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NAME_UNKNOWN",
    405: "UNSUPPORTED",
    413: "SIZE_INVALID",
    429: "TOOMANYREQUESTS",
}
_BUSY_SECONDS = 5
_RATE_LIMIT_SECONDS = 60
# A program that wants to be told of progress reads JSON too.
_JSON_TYPES = ("application/json", "application/problem+json", "application/x-ndjson", "text/event-stream")
# Spec: RFC 9110, section 12.4.2.
_NOT_AT_ALL = re.compile(r"q=0(?:\.0{0,3})?")


@attrs.frozen(slots=False)
class RequestError(Exception):
    """A request that is answered with this status and sentence, whatever else it asked for.

    ``code`` is that of the distribution API, None for the usual one of the status.
    """

    status: int
    sentence: str
    headers: Mapping[str, str] = attrs.field(factory=dict)
    code: str | None = None

    def __str__(self) -> str:
        return self.sentence


def is_distribution(path: str) -> bool:
    """Whether a path belongs to the distribution API.

    >>> is_distribution("/v2/app/tags/list"), is_distribution("/v20")
    (True, False)
    """
    return path == "/v2" or path.startswith("/v2/")


def status_of(error: StoreError) -> int:
    """Return the status that answers an error of the library.

    >>> status_of(StoreFull("/data"))
    507
    """
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def describe(error: Exception, scope: Scope) -> RequestError:
    """Return how ``error`` is answered; one that nobody expected is told as nothing more than that."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, StoreError):
        return RequestError(status_of(error), str(error), _retry_after(error))
    if isinstance(error, HTTPException):
        return _describe_routing(error, scope)
    return RequestError(500, "internal error")


def error_response(error: Exception, scope: Scope) -> Response:
    """Return the answer to ``error`` in the form that the request of ``scope`` asks for."""
    described = describe(error, scope)
    sentence = one_sentence(described.sentence)
    if is_distribution(scope["path"]):
        code = described.code or _CODES.get(described.status, "UNKNOWN")
        content = {"errors": [{"code": code, "message": sentence}]}
        return JSONResponse(content, described.status, dict(described.headers))
    if accepts_json(Headers(scope=scope)):
        title = HTTPStatus(described.status).phrase
        problem = {"type": "about:blank", "title": title, "status": described.status, "detail": sentence}
        return JSONResponse(problem, described.status, dict(described.headers), "application/problem+json")
    return text_response(sentence, described.status, described.headers)


def text_response(sentence: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return one line of text, whatever the sentence holds."""
    return PlainTextResponse(one_line(sentence) + "\n", status, dict(headers or {}))


def accepts_json(headers: Headers) -> bool:
    """Whether a client asks for JSON, of answers that are text to others."""
    for item in ",".join(headers.getlist("accept")).lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type in _JSON_TYPES and not any(map(_NOT_AT_ALL.fullmatch, parameters)):
            return True
    return False


def _retry_after(error: StoreError) -> dict[str, str]:
    if isinstance(error, RateLimited):
        seconds = error.retry_after_seconds
        return {"Retry-After": str(_RATE_LIMIT_SECONDS if seconds is None else max(0, math.ceil(seconds)))}
    if isinstance(error, StoreBusy | Cancelled):
        return {"Retry-After": str(_BUSY_SECONDS)}
    return {}


def _describe_routing(error: HTTPException, scope: Scope) -> RequestError:
    path, method = scope["path"], scope["method"]
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        return RequestError(405, f"{method} is not allowed for {path}; allowed: {allowed}", {"Allow": allowed})
    if error.status_code == 404:
        return RequestError(404, f"nothing is at {path}")
    return RequestError(error.status_code, str(error.detail), error.headers or {})
