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
import urllib3  # noqa: F401  # the package first: who begins with a part of it and who begins with it wait for each other
from urllib3.exceptions import HTTPError

from minibox_store.codec import decode_registry_errors
from minibox_store.digest import Digest
from minibox_store.errors import (
    AuthenticationRefused,
    BlobNotFound,
    ManifestUnknown,
    RateLimited,
    RegistryBlocked,
    RegistryError,
    StoreError,
)
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.media_types import essence
from minibox_store.reports.rate_limits import RateLimit
from minibox_store.values import Value

Answerer = Literal["registry", "token server", "elsewhere"]

# The last ones are Cloudflare's, for a server behind it that cannot be reached or does not answer.
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

# Of an answer that is plain text, more than that is no sentence for an error.
_WORDS_BYTES = 200
# What is shorter stands in any text by chance.
_SECRET_LENGTH = 4
# That much of a secret in a message is enough to cut the message off.
_TELLING_LENGTH = 16
# More of a header is no help.
_QUOTED_LENGTH = 80
# What a handshake raises that the other side closes: Python 3.11.2, which Debian 12 has, the second.
_CLOSED_BY_PEER = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
# What openssl calls an answer that is not TLS.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"})
# What a server says of who should prove himself by a certificate. Spec: RFC 8446, section 6.2.
_CLIENT_REFUSED = frozenset(
    {
        *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        *("SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
        *("TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED"),
    }
)
_AT_PRIVATE_ADDRESS = "is at a private address, and private_addresses = true is not among the rules of registries"
_UNKNOWN_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@attrs.frozen(slots=False, repr=False)
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


class ProxyFailed(OSError):
    """The proxy cannot be used, or does not lead on: ``status`` is what it answered, None where it did not."""

    def __init__(self, problem: str, *, may_retry: bool, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.may_retry = may_retry
        self.status = status

    @classmethod
    def because(cls, proxy: str, error: Exception) -> "ProxyFailed":
        """Return the error for a proxy that cannot be connected to."""
        problem, may_retry = _problem_of(error)
        return cls(f"the proxy {proxy} cannot be used: {problem}", may_retry=may_retry)

    @classmethod
    def refused(cls, proxy: str, status: int, *, may_retry: bool) -> "ProxyFailed":
        """Return the error for a proxy that answered; nothing of the answer but its status is shown."""
        told = "wants another login than it got" if status == 407 else f"refuses ({status})"
        return cls(f"the proxy {proxy} {told}", may_retry=may_retry, status=status)


class AddressRefused(OSError):
    """A host resolves to nothing but addresses that it may not send us to."""


class AddressBlocked(OSError):
    """A host is at nothing but addresses that the rules let nobody be connected to at; ``host`` is its name."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} {_AT_PRIVATE_ADDRESS}")
        self.host = host


class LineCut(ConnectionError):
    """The peer closed the connection before the body's end."""


def shows_no_tls(error: OSError) -> bool:
    """Whether a failure to connect with TLS may mean that none is spoken there."""
    if isinstance(error, ssl.SSLError):
        return isinstance(error, _CLOSED_BY_PEER) or _reason(error) in _NO_TLS
    if isinstance(error, ProxyFailed):
        return error.status not in (None, 407)  # it tells of the host behind it, or has a rule for ports with TLS
    return isinstance(error, ConnectionRefusedError | ConnectionResetError | BrokenPipeError)


@contextmanager
def foreign_errors(method: str, url: str) -> Iterator[None]:
    """Turn every error of sockets, TLS and HTTP in this block into a :class:`Failure` that names ``url``."""
    try:
        yield
    except AddressBlocked as error:
        raise Failure(RegistryBlocked(error.host, "", _AT_PRIVATE_ADDRESS)) from error
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
        case ProxyFailed():
            return error.problem, error.may_retry
        case LineCut() | http.client.RemoteDisconnected() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return "the connection was closed before the answer's end", True
        case TimeoutError():
            return "no answer came in time", True
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}", False
        case ssl.SSLError() if _reason(error) in _NO_TLS:
            return "it does not speak TLS, and plain HTTP was not asked for", False
        case ssl.SSLError() if _reason(error) in _CLIENT_REFUSED:
            return f"it does not accept our certificate, or its absence: {_reason(error)}", False
        case ssl.SSLError():
            return f"TLS failed: {_reason(error) or 'for an unknown reason'}", True
        case socket.gaierror():
            return f"the host's address was not found: {error.strerror}", error.errno not in _UNKNOWN_HOST
        case OSError():
            return f"the connection failed: {error.strerror or type(error).__name__}", True
        case http.client.HTTPException():
            return f"the answer is not HTTP/1.1 ({type(error).__name__})", True
    return f"the request could not be made ({type(error).__name__})", False


def _reason(error: ssl.SSLError) -> str | None:
    # One that is raised in Python has none.
    found: str | None = getattr(error, "reason", None)
    return found


@attrs.frozen(kw_only=True, repr=False)
class Refusal(Value):
    """An answer that is not what was asked for.

    Attributes:
        url: without its query.
        body: of the answer, as far as it was read; not trusted.
        content_type: of the body.
        blob: what is missing if the status is 404; None where that is a manifest.
        answerer: who answered; elsewhere is a host that the registry redirects to.
        retry_after_seconds: how long it asks us to wait.
        rate_limit: what it said of its limit.
        secrets: what no message may show, should the answer repeat it.
        is_anonymous: whether it refuses somebody of whom no credentials are known.
        limits: how large the body may be.
    """

    method: str
    url: str
    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    content_type: str | None = None
    blob: Digest | None = None
    answerer: Answerer = "registry"
    retry_after_seconds: float | None = None
    rate_limit: RateLimit | None = None
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    is_anonymous: bool = False
    limits: Limits = DEFAULT_LIMITS

    def failure(self) -> Failure:
        """Return what this answer means to the caller, and whether to ask again."""
        codes, message = decode_registry_errors(self.body, limits=self.limits)
        codes = tuple(without_secrets(code, self.secrets) for code in codes)
        problem = without_secrets(message or self._plain_text(), self.secrets) or _phrase(self.status)
        fields = (self.method, self.url, self.status, codes, problem)
        after = self.retry_after_seconds
        pause = after
        if pause is None and self.status == 429 and self.rate_limit is not None:
            pause = self.rate_limit.wait_seconds  # where nothing is granted for hours, a few seconds are none
        error: StoreError = RegistryError(*fields)
        if self.status in (401, 403) and self.answerer != "elsewhere":
            lack = ", and no credentials are known for it" if self.is_anonymous else ""
            error = AuthenticationRefused(*fields[:-1], problem + lack)
        elif self.status == 404 and self.answerer != "token server":
            error = ManifestUnknown(*fields) if self.blob is None else BlobNotFound(str(self.blob))
        elif self.status == 429 or (self.status == 503 and after is not None):
            error = RateLimited(*fields, after, self.rate_limit)
        # Signed URLs run out: the registry gives a new one to who asks again.
        is_spent = self.answerer == "elsewhere" and self.status in (400, 401, 403, 404, 410)
        return Failure(error, is_spent or self.status in RETRIED_STATUSES, pause, only_once=is_spent)

    def _plain_text(self) -> str:
        """Return the few words that Docker Hub's limit against abuse answers with, in place of a document."""
        is_short = self.status == 429 and len(self.body) <= _WORDS_BYTES
        if not is_short or essence(self.content_type or "") != "text/plain":
            return ""
        return self.body.decode("ascii", "replace").strip()


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return ``text``, cut off where it begins to repeat one of ``secrets``."""
    for secret in secrets:
        position = text.find(secret[:_TELLING_LENGTH]) if len(secret) >= _SECRET_LENGTH else -1
        if position >= 0:
            text = text[:position] + "***"
    return text


def quoted(text: str, secrets: Iterable[str]) -> str:
    """Return how a message quotes a header that is not what it should be; it may repeat one of ``secrets``."""
    return repr(without_secrets(text, secrets)[:_QUOTED_LENGTH])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.lower()
    except ValueError:
        return "an unexpected answer"
