"""An HTTP server that answers by a script, and fails the test over anything that the script does not list.

It is no kinder than real servers: HTTP/1.1 with connections that stay open, true lengths, no body after HEAD,
and no range or redirect that was not scripted.
"""

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Self

from tests.support.answers import Answer, Listed, Request, Scripted
from tests.support.certificates import Certificate
from tests.support.wire import ENDLESS_BYTES, BadRequest, Sending, TlsHello, read_request

# Bounds that a test never meets unless something hangs.
_IDLE_SECONDS = 60.0
_HOLD_SECONDS = 60.0
_JOIN_SECONDS = 30.0


class ScriptBroken(AssertionError):
    """The requests that came are not those of the script."""


class ScriptedServer:
    """A server on a free port of 127.0.0.1, as a context manager that fails over what was not scripted.

    Attributes:
        requests: Every request in the order of arrival, also those that were refused.
        peak_requests: How many requests were being answered at once, at most.
        failed_handshakes: Clients that refused the certificate, spoke no TLS, or spoke it where it is not spoken;
            no failure by itself, because clients that may use either probe for TLS first.
        clients: By connection with TLS the name in the client's certificate, None for who showed none.
    """

    def __init__(self, *, certificate: Certificate | None = None, hostname: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.peak_requests = 0
        self.failed_handshakes: list[str] = []
        self.clients: list[str | None] = []
        self._certificate = certificate
        self._hostname = hostname
        self._listed: list[Listed] = []
        self._problems: list[str] = []
        self._active_requests = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._context = certificate.server_context() if certificate else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def host(self) -> str:
        """``name:port``, as it stands in references and in the Host header."""
        return f"{self._hostname}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"{'https' if self._certificate else 'http'}://{self.host}"

    def expect(
        self,
        method: str,
        target: str,
        *answers: Scripted,
        requires: Mapping[str, str | re.Pattern[str] | None] | None = None,
        forbids: Iterable[str] = (),
    ) -> Listed:
        """List a request that must come once for each answer, in that order, and not again.

        Where several fit, expected requests go before allowed ones, so that an exception may be scripted over
        what is allowed otherwise.
        """
        return self._list(
            Listed(
                method=method,
                target=target,
                answers=list(answers) or [Answer()],
                requires=requires or {},
                forbids=tuple(forbids),
                must_come=True,
                at_most=None,
            )
        )

    def allow(
        self,
        method: str,
        target: str,
        *answers: Scripted,
        at_most: int | None = None,
        requires: Mapping[str, str | re.Pattern[str] | None] | None = None,
        forbids: Iterable[str] = (),
    ) -> Listed:
        """List a request that may come, ``at_most`` so often; the last answer is repeated.

        Where several fit, the one listed last is taken, so that a test may replace what a layer below has listed.
        """
        return self._list(
            Listed(
                method=method,
                target=target,
                answers=list(answers) or [Answer()],
                requires=requires or {},
                forbids=tuple(forbids),
                must_come=False,
                at_most=at_most,
            )
        )

    def count(self, method: str, target: str) -> int:
        """Return how many requests came with exactly this method and target."""
        with self._changed:
            return sum((request.method, request.target) == (method, target) for request in self.requests)

    def wait_for(self, method: str, target: str, *, count: int = 1, timeout_seconds: float = 60.0) -> None:
        """Return once so many such requests have arrived, answered or not.

        Raises:
            ScriptBroken: when they have not within the time.
        """
        deadline = time.monotonic() + timeout_seconds
        while self.count(method, target) < count:
            if time.monotonic() > deadline:
                raise ScriptBroken(f"{method} {target} did not come {count} times\n{self._report()}")
            with self._changed:
                self._changed.wait(0.05)

    def assert_no_credentials(self) -> None:
        """Fail if any request so far carried Authorization, Cookie or Proxy-Authorization."""
        names = ("Authorization", "Cookie", "Proxy-Authorization")
        with self._changed:
            told = [f"{name} in {request}" for request in self.requests for name in names if request.header(name)]
        if told:
            raise ScriptBroken("credentials reached a server that must not see them:\n" + "\n".join(told))

    def check(self) -> None:
        """Fail if anything came that is not listed, or did not come that must; called at exit too."""
        with self._changed:
            is_broken = self._problems or any(listed.missing for listed in self._listed)
        if is_broken:
            raise ScriptBroken(self._report())

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        try:
            self.check()
        except ScriptBroken as broken:
            # The first error is the test's own; what came to the server explains it.
            if error is None:
                raise
            error.add_note(str(broken))

    def _list(self, listed: Listed) -> Listed:
        with self._changed:
            self._listed.append(listed)
        return listed

    def _report(self) -> str:
        with self._changed:
            missing = [
                f"{listed} was listed {len(listed.answers)} times and came {len(listed.requests)} times"
                for listed in self._listed
                if listed.missing
            ]
            came = [f"  {request}" for request in self.requests] or ["  nothing"]
            return "\n".join([f"script of {self.url}:", *self._problems, *missing, "what came:", *came])

    def _note_problem(self, problem: str) -> None:
        with self._changed:
            self._problems.append(problem)
            self._changed.notify_all()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._changed:
            self._threads.append(thread)
        thread.start()

    def _close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._changed:
            for connection in self._connections:
                _shut(connection)
            threads = list(self._threads)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        if any(thread.is_alive() for thread in threads):
            self._note_problem("a connection did not end when the server was closed")

    def _accept(self) -> None:
        # The timeout serves where a shutdown of the listener does not wake this thread.
        self._listener.settimeout(0.5)
        while not self._closing.is_set():
            try:
                connection, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._start(self._serve, connection, address[1])

    def _serve(self, connection: socket.socket, client_port: int) -> None:
        try:
            with self._opened(connection) as opened, opened.makefile("rb") as stream:
                while not self._closing.is_set():
                    request = self._read(stream, client_port)
                    if request is None or not self._answer_request(opened, request):
                        return
        except TlsHello:
            self._note_handshake("TLS on a plain port")
        except BadRequest as error:
            self._note_problem(f"no HTTP/1.1 request: {error}")
        except (OSError, ValueError):
            # The client has left, or the server is closing; either is part of some scripts.
            return
        except Exception as error:  # noqa: BLE001 - a script that raises must fail the test, not end unseen in a thread
            self._note_problem(f"the script itself failed: {error!r}")

    def _read(self, stream: BinaryIO, client_port: int) -> Request | None:
        return read_request(stream, client_port)

    @contextlib.contextmanager
    def _opened(self, connection: socket.socket) -> Iterator[socket.socket]:
        connection.settimeout(_IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with connection:
            with self._changed:
                self._connections.add(connection)
            # Closing may have passed by before this connection was known to it.
            if self._closing.is_set():
                _shut(connection)
            try:
                if isinstance(connection, ssl.SSLSocket):
                    self._shake_hands(connection)
                yield connection
            finally:
                with self._changed:
                    self._connections.discard(connection)

    def _shake_hands(self, connection: ssl.SSLSocket) -> None:
        try:
            connection.do_handshake()
        except OSError as error:
            self._note_handshake(str(error))
            raise
        with self._changed:
            self.clients.append(_common_name(connection.getpeercert()))

    def _note_handshake(self, problem: str) -> None:
        with self._changed:
            self.failed_handshakes.append(problem)

    def _answer_request(self, connection: socket.socket, request: Request) -> bool:
        """Answer, and return whether the connection stays open."""
        with self._changed:
            self.requests.append(request)
            self._active_requests += 1
            self.peak_requests = max(self.peak_requests, self._active_requests)
            scripted = self._choose(request)
            self._changed.notify_all()
        try:
            answer = scripted if isinstance(scripted, Answer) else scripted(request)
            stays = Sending(self, connection, request, answer).send()
            request.was_answered = True
            return stays and (request.header("Connection") or "").lower() != "close"
        finally:
            with self._changed:
                self._active_requests -= 1
                self._changed.notify_all()

    def _choose(self, request: Request) -> Scripted:
        same = [listed for listed in self._listed if listed.has_same_target(request)]
        fitting = [listed for listed in same if listed.header_problem(request) is None]
        allowed = [listed for listed in reversed(fitting) if not listed.must_come]
        for listed in [listed for listed in fitting if listed.must_come] + allowed:
            if not listed.is_used_up:
                return listed.take(request)
        if fitting:
            problem = "came more often than listed"
        elif same:
            problem = "; ".join(str(listed.header_problem(request)) for listed in same)
        else:
            problem = "is not listed"
        self._problems.append(f"{request.method} {request.target}: {problem}")
        return Answer(status=501, body=f"not in the script: {problem}\n".encode(), headers={"Connection": "close"})

    def wait_while_held(self, event: threading.Event) -> None:
        """Wait for a scripted event, until the server closes; one that never comes is a problem of the test."""
        deadline = time.monotonic() + _HOLD_SECONDS
        while not self._closing.is_set() and not event.wait(0.02):
            if time.monotonic() > deadline:
                self._note_problem("an answer was held, and its event never set")
                return

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than the server lives."""
        self._closing.wait(seconds)

    def note_endless(self, request: Request) -> None:
        """Note that a client read an endless body further than any limit may allow."""
        self._note_problem(f"{request.method} {request.target}: the client read {ENDLESS_BYTES} bytes without end")


def _common_name(certificate: Mapping[str, Any] | None) -> str | None:
    """Return the name of whom a certificate is for, as the ssl module gives it."""
    parts = [part for each in (certificate or {}).get("subject", ()) for part in each]
    return next((str(value) for name, value in parts if name == "commonName"), None)


def _shut(connection: socket.socket) -> None:
    # An SSLSocket's own shutdown takes its TLS state away from the thread that is reading.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
