"""A proxy for HTTP: it opens lines by CONNECT, and passes on requests that name a whole URL.

It resolves the names that a test gives it, all to ports of 127.0.0.1, and nothing else.
"""

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support.answers import Request, basic_credentials
from tests.support.certificates import Certificate
from tests.support.wire import BadRequest, TlsHello, read_request

_WAIT_SECONDS = 60.0
_JOIN_SECONDS = 30.0
_PIECE_BYTES = 64 * 1024
_OWN_HEADERS = ("proxy-authorization", "connection", "proxy-connection")


class ForwardingProxy:
    """A proxy on a free port of 127.0.0.1, as a context manager.

    Args:
        ports: By ``host:port`` the port of 127.0.0.1 that is behind it; whatever is not listed cannot be reached.
        login: User and password that each request to the proxy must carry.
        certificate: Speak TLS with clients.
        answer: What is answered to every request instead of what it asks for.
        refused_lines: The status that every CONNECT is refused with.

    Attributes:
        requests: What came to the proxy itself; not what went through its lines.
        problems: What a client did that no client may do.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        *,
        login: tuple[str, str] | None = None,
        certificate: Certificate | None = None,
        answer: bytes | None = None,
        refused_lines: int | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.failed_handshakes: list[str] = []
        self._ports = dict(ports)
        self._authorization = None if login is None else basic_credentials(*login)
        self._login = login
        self._context = None if certificate is None else certificate.server_context()
        self._answer = answer
        self._refused_lines = refused_lines
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def host(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """What a variable such as ``HTTPS_PROXY`` names, the login included."""
        user = "" if self._login is None else f"{':'.join(self._login)}@"
        return f"{'http' if self._context is None else 'https'}://{user}{self.host}"

    @property
    def asked(self) -> list[str]:
        """Method and target of each request, in the order of arrival."""
        return [f"{request.method} {request.target}" for request in self.requests]

    def __enter__(self) -> Self:
        self._start(threading.Thread(target=self._accept, daemon=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        if error is None:
            assert not self.problems, self.problems
            assert not any(thread.is_alive() for thread in self._threads)

    def _start(self, thread: threading.Thread) -> None:
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(0.5)
        while not self._closing.is_set():
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._start(threading.Thread(target=self._serve, args=(connection, address[1]), daemon=True))

    def _serve(self, connection: socket.socket, client_port: int) -> None:
        connection.settimeout(_WAIT_SECONDS)
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
        except OSError as error:
            connection.close()
            self.failed_handshakes.append(str(error))
            return
        with connection:
            try:
                # Unbuffered: what follows the head of a CONNECT is not the proxy's.
                with connection.makefile("rb", buffering=0) as stream:
                    request = read_request(stream, client_port)  # type: ignore[arg-type]  # it reads lines too
                if request is not None:
                    self.requests.append(request)
                    self._handle(connection, request)
            except (TlsHello, BadRequest) as error:
                self.problems.append(repr(error))
            except OSError:
                return  # the client has left, or what is behind

    def _handle(self, connection: socket.socket, request: Request) -> None:
        if self._answer is not None:
            connection.sendall(self._answer)
            return
        if request.header("Proxy-Authorization") != self._authorization:
            told = (request.header("Proxy-Authorization") or "").encode()
            connection.sendall(_refusal("407 Proxy Authentication Required", b"you said " + told))
            return
        is_line = request.method == "CONNECT"
        if not is_line and not request.target.startswith("http://"):
            self.problems.append(f"{request} is no request to a proxy")
            return
        if is_line and self._refused_lines is not None:
            connection.sendall(_refusal(f"{self._refused_lines} no"))
            return
        authority = request.target if is_line else _authority(request.target)
        if request.header("Host") != (authority if is_line else urlsplit(request.target).netloc):
            self.problems.append(f"{request} has another Host")
        if authority not in self._ports:
            connection.sendall(_refusal("502 Bad Gateway"))
            return
        with socket.create_connection(("127.0.0.1", self._ports[authority]), timeout=_WAIT_SECONDS) as behind:
            if is_line:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\nX-Proxy: test\r\n\r\n")
            else:
                behind.sendall(_passed_on(request))
            self._pump(connection, behind)

    def _pump(self, first: socket.socket, second: socket.socket) -> None:
        others = {first: second, second: first}
        while not self._closing.is_set():
            ready = [each for each in others if isinstance(each, ssl.SSLSocket) and each.pending()]
            for each in ready or select.select(list(others), [], [], 0.1)[0]:
                data = each.recv(_PIECE_BYTES)
                if not data:
                    return
                others[each].sendall(data)


def _authority(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 80}"


def _passed_on(request: Request) -> bytes:
    parts = urlsplit(request.target)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [(name, value) for name, value in request.headers if name.lower() not in _OWN_HEADERS]
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in kept), "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + request.body


def _refusal(status: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
