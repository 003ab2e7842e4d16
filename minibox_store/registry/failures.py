"""The one edge where errors of sockets, TLS, HTTP and registries become errors of this library.

Inside the registry end they travel as :class:`Failure`, which also says whether trying again may help; whoever
gives up raises what it carries. No message shows credentials, or a URL's query.
"""

import http.client
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Literal

import attrs
from urllib3.exceptions import HTTPError

from minibox_store.codec import decode_registry_errors
from minibox_store.digest import Digest
from minibox_store.errors import (
    AuthenticationRefused,
    BlobNotFound,
    ManifestUnknown,
    RateLimited,
    RegistryError,
    StoreError,
)
from minibox_store.limits import DEFAULT_LIMITS, Limits

Answerer = Literal["registry", "token server", "elsewhere"]

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

# What is shorter stands in any text by chance.
_SECRET_LENGTH = 4
# That much of a secret in a message is enough to cut the message off.
_TELLING_LENGTH = 16
_UNKNOWN_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@attrs.frozen(slots=False)
class Failure(Exception):
    """Something that went wrong with one try.

    Attributes:
        error: what the caller is told when nobody tries again.
        may_retry: whether the same request may succeed a little later.
        retry_after_seconds: how long the registry asks us to wait.
        only_once: whether one more try is all that makes sense.
    """

    error: StoreError
    may_retry: bool = False
    retry_after_seconds: float | None = None
    only_once: bool = False


class SourceFailed(Exception):
    """What went wrong with the source of a body, on its way through what takes care of connections."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class LineInterrupted(OSError):
    """The socket was shut down from this side, on purpose."""


class AddressRefused(OSError):
    """A host resolves to nothing but addresses that it may not send us to."""


class LineCut(ConnectionError):
    """The peer closed the connection before the body's end."""


@contextmanager
def foreign_errors(method: str, url: str) -> Iterator[None]:
    """Turn every error of sockets, TLS and HTTP in this block into a :class:`Failure` that names ``url``."""
    try:
        yield
    except (OSError, http.client.HTTPException, HTTPError) as error:
        problem, may_retry = _problem_of(error)
        # Errors of HTTP itself quote what came, which may be what was sent; those of the system do not.
        cause = error if isinstance(error, OSError) else None
        raise Failure(RegistryError(method, url, None, (), problem), may_retry) from cause


def _problem_of(error: Exception) -> tuple[str, bool]:
    match error:
        case LineInterrupted():
            return "the connection was interrupted", False
        case AddressRefused():
            return str(error), False
        case LineCut() | http.client.RemoteDisconnected() | ssl.SSLEOFError():
            return "the connection was closed before the answer's end", True
        case TimeoutError():
            return "no answer came in time", True
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}", False
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE" | "UNKNOWN_PROTOCOL"):
            return "it does not speak TLS, and plain HTTP was not asked for", False
        case ssl.SSLError():
            return f"TLS failed: {error.reason or 'for an unknown reason'}", True
        case socket.gaierror():
            return f"the host's address was not found: {error.strerror}", error.errno not in _UNKNOWN_HOST
        case OSError():
            return f"the connection failed: {error.strerror or type(error).__name__}", True
        case http.client.HTTPException():
            return f"the answer is not HTTP/1.1 ({type(error).__name__})", True
    return f"the request could not be made ({type(error).__name__})", False


@attrs.frozen(kw_only=True)
class Refusal:
    """An answer that is not what was asked for.

    Attributes:
        url: without its query.
        body: of the answer, as far as it was read; not trusted.
        blob: what is missing if the status is 404; None where that is a manifest.
        answerer: who answered; elsewhere is a host that the registry redirects to.
        secrets: what no message may show, should the answer repeat it.
        limits: how large the body may be.
    """

    method: str
    url: str
    status: int
    body: bytes = b""
    blob: Digest | None = None
    answerer: Answerer = "registry"
    retry_after_seconds: float | None = None
    secrets: tuple[str, ...] = ()
    limits: Limits = DEFAULT_LIMITS

    def failure(self) -> Failure:
        """Return what this answer means to the caller, and whether to ask again."""
        codes, message = decode_registry_errors(self.body, limits=self.limits)
        codes = tuple(without_secrets(code, self.secrets) for code in codes)
        problem = without_secrets(message, self.secrets) or _phrase(self.status)
        fields = (self.method, self.url, self.status, codes, problem)
        after = self.retry_after_seconds
        error: StoreError = RegistryError(*fields)
        if self.status in (401, 403) and self.answerer != "elsewhere":
            error = AuthenticationRefused(*fields)
        elif self.status == 404 and self.answerer != "token server":
            error = ManifestUnknown(*fields) if self.blob is None else BlobNotFound(str(self.blob))
        elif self.status == 429 or (self.status == 503 and after is not None):
            error = RateLimited(*fields, after)
        # Signed URLs run out: the registry gives a new one to who asks again.
        is_spent = self.answerer == "elsewhere" and self.status in (400, 401, 403, 404, 410)
        return Failure(error, is_spent or self.status in RETRIED_STATUSES, after, only_once=is_spent)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return ``text``, cut off where it begins to repeat one of ``secrets``."""
    for secret in secrets:
        position = text.find(secret[:_TELLING_LENGTH]) if len(secret) >= _SECRET_LENGTH else -1
        if position >= 0:
            text = text[:position] + "***"
    return text


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.lower()
    except ValueError:
        return "an unexpected answer"
