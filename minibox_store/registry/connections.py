"""Connections: a request and its answer, then perhaps the next; and those that wait to be used again.

urllib3 makes and secures each connection; what its pools add (redirects, retries, decoding, URLs with signed
queries in its log) is what this project does itself or wants none of, so the pool is our own.

Spec: RFC 9112, section 9.
"""

import errno
import http.client
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping

import urllib3  # noqa: F401  # the package before its parts, as in failures.py
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HeaderParsingError
from urllib3.util.response import assert_header_parsing

from minibox_store.protocols import FileRange
from minibox_store.registry.dialling import Address, Dialler, Network, OpenLines
from minibox_store.registry.failures import ProxyFailed, SourceFailed
from minibox_store.registry.outgoing import OutgoingBody
from minibox_store.registry.proxies import Proxy, open_tunnel
from minibox_store.registry.reading import Response
from minibox_store.registry.urls import Origin

_IDLE_PER_ORIGIN = 8
# A registry may send each request to another host.
_IDLE = 16
# How slowly a registry may put away what was sent to it.
_KEPT_BYTES_PER_SECOND = 8 * 1024 * 1024
# How what comes before an answer begins, asked for or not.
_INTERIM = b"HTTP/1.1 1"


class _Line:
    """The socket of one connection, as urllib3 asks for it."""

    def __init__(self, origin: Origin, dialler: Dialler, lines: OpenLines, proxy: Proxy | None) -> None:
        self.origin = origin
        self.proxy = proxy
        self._dialler = dialler
        self._lines = lines
        self._handle: socket.socket | None = None
        self._address: Address | None = None

    def open(self) -> socket.socket:
        self.hang_up()
        proxy = None if self.proxy is None else self.proxy.origin
        opened, self._handle, self._address = self._dialler.dial(self.origin, proxy)
        return opened

    @property
    def end(self) -> Origin:
        """Whom the socket itself is connected to."""
        return self.origin if self.proxy is None else self.proxy.origin

    def reached(self) -> None:
        if self._address is not None:
            self._dialler.reached(self.origin, self._address if self.proxy is None else None)

    def hang_up(self) -> None:
        if self._handle is not None:
            self._lines.remove(self._handle)
            self._handle = None


class _PlainConnection(HTTPConnection):
    """No TLS with the origin; but with a proxy that passes on there may be."""

    response_class = Response

    def __init__(self, line: _Line, silence_seconds: float, proxy_context: ssl.SSLContext | None) -> None:
        super().__init__(line.end.host, line.end.port, timeout=silence_seconds)
        self._line = line
        self._proxy_context = proxy_context

    def _new_conn(self) -> socket.socket:
        opened = self._line.open()
        return opened if self._proxy_context is None else _with_tls(opened, self._line.end, self._proxy_context)


class _TlsConnection(HTTPSConnection):
    """TLS with the origin, through a line that a proxy opens where there is one."""

    response_class = Response

    def __init__(
        self, line: _Line, silence_seconds: float, context: ssl.SSLContext, proxy_context: ssl.SSLContext | None
    ) -> None:
        super().__init__(line.end.host, line.end.port, timeout=silence_seconds, ssl_context=context)
        self._line = line
        self._proxy_context = proxy_context
        if line.proxy is not None:
            self.set_tunnel(line.origin.host, line.origin.port, scheme=line.end.scheme)

    def _new_conn(self) -> socket.socket:
        return self._line.open()

    def _connect_tls_proxy(self, hostname: str, sock: socket.socket) -> ssl.SSLSocket:
        # Not urllib3's own, of which some versions hold the proxy to what was asked for of the origin.
        assert self._proxy_context is not None
        return _with_tls(sock, self._line.end, self._proxy_context)

    def _tunnel(self) -> None:
        # Not urllib3's own, which reads a head without end, and makes of a refusal an error that cannot be told apart.
        assert self._line.proxy is not None
        open_tunnel(self.sock, self._line.origin, self._line.proxy)


def _with_tls(opened: socket.socket, proxy: Origin, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Agree with a proxy on TLS; raises ProxyFailed when it cannot be trusted, or speaks none."""
    try:
        return context.wrap_socket(opened, server_hostname=proxy.host.rstrip("."))
    except OSError as error:
        opened.close()
        raise ProxyFailed.because(str(proxy), error) from error


class Connection:
    """One connection to one origin: a request, its answer, and then perhaps the next. For one thread at a time.

    Attributes:
        is_spent: whether a request was not sent to its end, so that no other one can follow it.
    """

    def __init__(self, line: _Line, made: HTTPConnection, silence_seconds: float) -> None:
        self._line = line
        self._silence_seconds = silence_seconds
        self._made = made
        self._watched = 0
        self.is_spent = False

    @property
    def origin(self) -> Origin:
        """Whom it is with."""
        return self._line.origin

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and the other side has said nothing unasked, such as that it closes."""
        return self._made.is_connected

    def connect(self) -> None:
        """Connect, and agree on TLS where that is spoken. Where that has happened, do nothing."""
        if self._made.sock is None:
            self._made.connect()
            self._line.reached()

    def has_only_tickets(self) -> bool:
        """Whether all that came is of TLS itself: behind a handshake servers send what would resume the session.

        What is more than that is lost: to be asked of a connection that waits, and is closed where this is not so.
        """
        opened = self._made.sock
        if opened is None:
            return False
        opened.settimeout(0.0)
        try:
            opened.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except OSError:
            return False
        finally:
            opened.settimeout(self._made.timeout)
        return False

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is sent with each request, and no message may show."""
        return () if self._line.proxy is None else self._line.proxy.secrets

    @property
    def _passes_on(self) -> Proxy | None:
        """The proxy that reads each request, and passes it on."""
        return self._line.proxy if self._line.origin.scheme == "http" else None

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | OutgoingBody | None = None
    ) -> None:
        """Send a request; of one whose body is refused while it is being sent, no more than that."""
        self.connect()
        opened: socket.socket = self._made.sock
        opened.settimeout(self._silence_seconds)
        if self._passes_on is not None:
            target, headers = f"{self._line.origin}{target}", {**headers, **self._passes_on.headers}
        if body is None or isinstance(body, bytes):
            self._made.request(method, target, body=body, headers=headers)
            return
        self._watched = select.POLLIN
        self._made.putrequest(method, target, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(body.size_bytes)}.items():
            self._made.putheader(name, value)
        self._made.endheaders()
        ranges = body.ranges() if type(opened) is socket.socket else None
        is_sent = map(self._send_piece, body.pieces()) if ranges is None else map(self._send_range, ranges)
        if not all(is_sent):
            self.is_spent = True
            return
        # Whoever has got all of it hashes and stores it before there is an answer.
        opened.settimeout(self._silence_seconds + body.size_bytes / _KEPT_BYTES_PER_SECOND)

    def _send_piece(self, piece: memoryview) -> bool:
        """Send some of a body; return False where the other side does not want it, and has perhaps said why."""
        opened: socket.socket = self._made.sock
        try:
            # Each step may take the time of silence, where sendall would give it to the whole piece.
            while piece:
                if type(opened) is socket.socket and self._is_answered(opened):
                    return False
                piece = piece[opened.send(piece) :]
        except (BrokenPipeError, ConnectionResetError):
            return False
        except TimeoutError:
            # Over TLS, too, that nothing is read any more may have been answered.
            waiting = select.poll()
            waiting.register(opened, select.POLLIN)
            if not waiting.poll(0):
                raise
            return False
        return True

    def _send_range(self, found: FileRange) -> bool:
        """The same for some of a file, which does not come by here."""
        opened: socket.socket = self._made.sock
        offset, end = found.offset, found.offset + found.size_bytes
        try:
            while offset < end:
                if self._is_answered(opened):
                    return False
                try:
                    count = os.sendfile(opened.fileno(), found.file_descriptor, offset, end - offset)
                except BlockingIOError:
                    continue
                if not count:
                    raise SourceFailed(OSError(errno.EIO, "the file became shorter while it was read"))
                offset += count
        except (BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise SourceFailed(error) from error
        return True

    def _is_answered(self, opened: socket.socket) -> bool:
        """Wait until more can be sent, or an answer has come: over TLS there may be something to read that is none."""
        waiting = select.poll()
        waiting.register(opened, self._watched | select.POLLOUT)
        found = waiting.poll(self._silence_seconds * 1000)
        if not found:
            raise TimeoutError
        if not found[0][1] & select.POLLIN:
            return False
        if opened.recv(len(_INTERIM), socket.MSG_PEEK) == _INTERIM:
            self._watched = 0  # that is no answer, and hides whatever comes behind it
        return bool(self._watched)

    def receive(self) -> Response:
        """Return the answer's head; the caller closes it.

        Raises:
            ProxyFailed: when a proxy would not pass the request on for who we are.
            OSError, HTTPException: when none comes, or it is malformed.
        """
        # Not urllib3's own, which would decode the body, and log the URL of an answer whose headers are odd.
        response = http.client.HTTPConnection.getresponse(self._made)
        assert isinstance(response, Response)
        try:
            # A line that is no header would hide all those behind it.
            assert_header_parsing(response.headers)
        except HeaderParsingError:
            response.close()
            raise http.client.HTTPException("the head has lines that are no headers") from None
        if self._passes_on is not None and response.status == http.HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            raise ProxyFailed.refused(str(self._passes_on.origin), response.status, may_retry=False)
        return response

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._made.close()
        self._line.hang_up()


class ConnectionPool:
    """The connections of one session with a registry.

    Args:
        home: the registry.
        network: how it is reached.
        lines: where all that is opened is known.
        tls_context: asked for each connection with TLS.
        connect_seconds: how long connecting may take, by all addresses of a host together, and each step of TLS.
        silence_seconds: how long nothing may come while something should.
        proxy_for: through whom a host is reached; None for no proxy at all.
        proxy_context: how TLS is spoken with proxies.
        private_addresses: whether any host may be at a private address.
    """

    def __init__(
        self,
        *,
        home: Origin,
        network: Network,
        lines: OpenLines,
        tls_context: Callable[[Origin], ssl.SSLContext],
        connect_seconds: float,
        silence_seconds: float,
        proxy_for: Callable[[Origin], Proxy | None] | None = None,
        proxy_context: Callable[[], ssl.SSLContext] | None = None,
        private_addresses: bool = True,
    ) -> None:
        self.lines = lines
        self.silence_seconds = silence_seconds
        self._home = home
        self._dialler = Dialler(home, network, self.lines, connect_seconds, private_addresses=private_addresses)
        self._tls_context = tls_context
        self._proxy_for = proxy_for
        self._proxy_context = proxy_context
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._is_closed = False

    def take(self, origin: Origin, *, fresh: bool = False) -> tuple[Connection, bool]:
        """Return a connection, and whether it was used before; ``fresh`` asks for one that was not.

        Raises:
            LineInterrupted: when the pool was interrupted or closed.
        """
        self.lines.check()
        while not fresh and (waiting := self._pop(origin)) is not None:
            if waiting.is_usable or waiting.has_only_tickets():
                return waiting, True
            waiting.close()
        proxy = None if self._proxy_for is None else self._proxy_for(origin)
        return self._made(_Line(origin, self._dialler, self.lines, proxy)), False

    def _made(self, line: _Line) -> Connection:
        seconds = self.silence_seconds
        has_tls_proxy = line.proxy is not None and line.end.scheme == "https"
        proxy_context = self._proxy_context() if has_tls_proxy and self._proxy_context is not None else None
        if line.origin.scheme == "http":
            return Connection(line, _PlainConnection(line, seconds, proxy_context), seconds)
        return Connection(line, _TlsConnection(line, seconds, self._tls_context(line.origin), proxy_context), seconds)

    def meet_home(self) -> None:
        """Connect to the registry if nobody has yet: where it is decides where the hosts may be that it names."""
        if not self._dialler.knows_home:
            connection, _ = self.take(self._home)
            try:
                connection.connect()
            except BaseException:
                connection.close()
                raise
            self.give_back(connection)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection, whose last answer has been read to its end, for the next request."""
        surplus: Connection | None = connection
        with self._lock:
            count = sum(each.origin == connection.origin for each in self._idle)
            if not self._is_closed and not connection.is_spent and count < _IDLE_PER_ORIGIN:
                self._idle.append(connection)
                surplus = self._idle.pop(0) if len(self._idle) > _IDLE else None
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        """Close what waits, and whatever is given back from now on."""
        with self._lock:
            self._is_closed = True
            waiting, self._idle = self._idle, []
        for connection in waiting:
            connection.close()

    def _pop(self, origin: Origin) -> Connection | None:
        with self._lock:
            for position in reversed(range(len(self._idle))):
                if self._idle[position].origin == origin:
                    return self._idle.pop(position)
            return None
