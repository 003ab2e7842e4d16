"""Who may ask, and from where: decided from the path and the raw headers alone, before anything is done.

A page in a browser can reach this daemon as easily as its user can, so a request must come under one of the
daemon's own names (a page's own name that was pointed here is none), and no other page may have sent it.
Nothing here builds a URL from what the client sent: an ``Host`` such as ``a/b?x=`` can therefore not move a request.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterator

import attrs
from starlette.types import Scope

from minibox_server.declarations import EndpointTable
from minibox_server.hosts import is_loopback, parse_host, parse_ip
from minibox_server.responses import RequestError, is_distribution
from minibox_server.settings import Settings

MAX_TARGET_BYTES = 16 * 1024
MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100

_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/?#@]+)")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VERSIONS = ("1.0", "1.1")
_OWN_SITES = (b"same-origin", b"none")


@attrs.frozen
class Security:
    """The checks of one daemon. A request that passes all of them comes from somebody who may ask."""

    settings: Settings

    def check(self, scope: Scope, endpoints: EndpointTable) -> None:
        """Let a request for one of the endpoints pass, or say no; no byte of its body has been read then.

        Raises:
            RequestError: 400, 401, 403, 413, 414 or 431.
        """
        check_version(scope)
        check_size_of_head(scope)
        host = self._check_host(scope)
        check_origin(scope, host)
        if not endpoints.is_open(scope):
            self._check_token(scope)
        check_size_of_body(scope, endpoints.most_body_bytes)

    def _check_host(self, scope: Scope) -> tuple[str, int | None]:
        values = headers_of(scope, b"host")
        host = parse_host(values[0].decode("latin-1")) if len(values) == 1 else None
        if host is None:
            raise RequestError(403, "the Host header is missing, repeated or malformed")
        if not self._is_own_host(host, scope):
            raise RequestError(403, f"host {host[0]} is not allowed; MINIBOX_ALLOWED_HOSTS lists further ones")
        return host

    def _is_own_host(self, host: tuple[str, int | None], scope: Scope) -> bool:
        name, _ = host
        if is_loopback(name) or name == self.settings.host.lower():
            return True
        server = scope.get("server")
        # No page can make a browser connect to a unix socket, and its clients say what they like.
        if server is not None and server[1] is None:
            return True
        # An address cannot be pointed elsewhere as a name can: the one that the connection came in on is ours.
        address = parse_ip(name)
        if address is not None and server is not None and address == parse_ip(str(server[0])):
            return True
        return host in self.settings.allowed_hosts or (name, None) in self.settings.allowed_hosts

    def _check_token(self, scope: Scope) -> None:
        if self.settings.token is None:
            return
        expected = self.settings.token.encode()
        if not any(hmac.compare_digest(expected, token) for token in given_tokens(scope)):
            scheme = "Basic" if is_distribution(scope["path"]) else "Bearer"
            raise RequestError(401, "Unauthorized", {"WWW-Authenticate": f'{scheme} realm="minibox"'})


def headers_of(scope: Scope, name: bytes) -> list[bytes]:
    """Return the values of all headers of this name, which is in lower case."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def given_tokens(scope: Scope) -> Iterator[bytes]:
    """Yield each token that a request carries; a header that is repeated carries none."""
    own = headers_of(scope, b"x-api-token")
    if len(own) == 1:
        yield own[0]
    authorization = headers_of(scope, b"authorization")
    if len(authorization) != 1:
        return
    scheme, _, credentials = authorization[0].partition(b" ")
    if scheme.lower() == b"bearer":
        yield credentials.strip(b" ")
    elif scheme.lower() == b"basic" and is_distribution(scope["path"]):
        try:
            user_and_password = base64.b64decode(credentials.strip(b" "), validate=True)
        except binascii.Error:
            return
        _, colon, password = user_and_password.partition(b":")
        if colon:
            yield password


def check_origin(scope: Scope, host: tuple[str, int | None]) -> None:
    """Refuse what another site's page sent; ``host`` is the request's own, as it was parsed.

    Raises:
        RequestError: 403.
    """
    for site in headers_of(scope, b"sec-fetch-site"):
        if site not in _OWN_SITES:
            raise RequestError(403, "requests from other sites are not allowed")
    for origin in headers_of(scope, b"origin"):
        if not _is_same_origin(origin.decode("latin-1"), host, scope["scheme"]):
            raise RequestError(403, "requests from another origin are not allowed")


def _is_same_origin(origin: str, host: tuple[str, int | None], scheme: str) -> bool:
    match = _ORIGIN.fullmatch(origin)
    # What came in plain text may be a proxy's, to which a page spoke TLS; what came over TLS is no plain page's.
    if match is not None and scheme == "https" and match["scheme"] != "https":
        return False
    parsed = parse_host(match["host"]) if match is not None else None
    if match is None or parsed is None:
        return False
    default = _DEFAULT_PORTS[match["scheme"]]
    return (parsed[0], parsed[1] or default) == (host[0], host[1] or default)


def check_version(scope: Scope) -> None:
    """Refuse what says of itself that it is another HTTP: whoever passed it on may have read something else in it.

    Raises:
        RequestError: 400.
    """
    version = scope.get("http_version", "1.1")
    if version not in _VERSIONS:
        raise RequestError(400, "only HTTP/1.1 and HTTP/1.0 are spoken here", {"Connection": "close"})
    if version == "1.0" and headers_of(scope, b"transfer-encoding"):
        raise RequestError(400, "in HTTP/1.0 a body has a Content-Length", {"Connection": "close"})


def check_size_of_head(scope: Scope) -> None:
    """Refuse a target that is none or too long, and headers that are too many.

    Raises:
        RequestError: 400, 414 or 431.
    """
    if len(scope["path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise RequestError(414, f"the path and the query are longer than {MAX_TARGET_BYTES} bytes")
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise RequestError(431, f"the headers are more than {MAX_HEADERS} or longer than {MAX_HEADER_BYTES} bytes")
    # A router that searches line by line would take a path with a newline at its end for the path without.
    if not scope["path"].startswith("/") or not scope["path"].isprintable():
        raise RequestError(400, "the target of a request must be a path of printable characters")


def check_size_of_body(scope: Scope, most_body_bytes: Callable[[Scope], int | None]) -> None:
    """Refuse a body that says of itself that it is too large, or that two readers could end at different places.

    Raises:
        RequestError: 400 or 413.
    """
    lengths = headers_of(scope, b"content-length")
    if lengths and headers_of(scope, b"transfer-encoding"):
        raise RequestError(400, "a body has either a Content-Length or a Transfer-Encoding")
    for value in lengths:
        if not value.isdigit():
            raise RequestError(400, "the Content-Length header is malformed")
        if len(value) > 18:
            raise body_too_large(10**18)
        most_bytes = most_body_bytes(scope) if int(value) else None
        if most_bytes is not None and int(value) > most_bytes:
            raise body_too_large(most_bytes)


def body_too_large(most_bytes: int) -> RequestError:
    """Return the answer to a body of which more came, or is to come, than anybody needs."""
    return RequestError(413, f"the body is longer than {most_bytes} bytes")
