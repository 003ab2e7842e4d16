"""A line that breaks: a relay of TCP to another port of 127.0.0.1 that cuts what it carries after so many bytes.

It knows nothing of HTTP: what is cut may be a head, a body, or the silence between two answers.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

_IDLE_SECONDS = 60.0
_JOIN_SECONDS = 30.0
_PIECE_BYTES = 64 * 1024
# Small, so that what is cut has not been on its way for long.
_BUFFER_BYTES = 64 * 1024


class CuttingProxy:
    """Relays to ``port``, as a context manager.

    Args:
        port: Of 127.0.0.1, where everything is relayed to.
        cuts: After how many bytes of answers, counted over all lines since the last cut, the line is cut that has just
            carried them. When they are used up nothing more is cut.
        reset: Cut with a TCP reset instead of an orderly end.
        goes_down: The last cut is of every line, and nobody is let in any more.

    Attributes:
        sent_bytes: How many bytes of answers were carried.
        cuts_made: How many lines were cut.
        connections: How many lines were opened.
    """

    def __init__(self, port: int, *, cuts: Iterable[int] = (), reset: bool = False, goes_down: bool = False) -> None:
        self.sent_bytes = 0
        self.cuts_made = 0
        self.connections = 0
        self._upstream = port
        self._cuts = list(cuts)
        self._left_bytes = self._cuts.pop(0) if self._cuts else None
        self._reset = reset
        self._goes_down = goes_down
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def host(self) -> str:
        """``127.0.0.1:port``, as it stands in references."""
        return f"127.0.0.1:{self.port}"

    def go_down(self) -> None:
        """Cut every line, and let nobody in any more."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_down()
        deadline = time.monotonic() + _JOIN_SECONDS
        with self._guard:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads), "a line did not end when the relay was closed"

    def _start(self, target: object, *arguments: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._guard:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream), timeout=_IDLE_SECONDS)
            except OSError:
                return
            with server:
                client.settimeout(_IDLE_SECONDS)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                with self._guard:
                    self._sockets |= {client, server}
                if self._closing.is_set():
                    return
                asking = threading.Thread(target=self._carry_requests, args=(client, server), daemon=True)
                asking.start()
                try:
                    self._carry_answers(client, server)
                finally:
                    with self._guard:
                        self._sockets -= {client, server}
                    for each in (client, server):
                        with contextlib.suppress(OSError):
                            each.shutdown(socket.SHUT_RDWR)
                    asking.join(_JOIN_SECONDS)

    def _carry_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := client.recv(_PIECE_BYTES):
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)

    def _carry_answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(_PIECE_BYTES):
                allowed, is_cut = self._allowed(len(piece))
                client.sendall(piece[:allowed])
                if is_cut:
                    self._cut(client)
                    return

    def _allowed(self, size_bytes: int) -> tuple[int, bool]:
        """Return how many of so many bytes are carried, and whether the line is cut behind them."""
        with self._guard:
            is_cut = self._left_bytes is not None and self._left_bytes <= size_bytes
            allowed = size_bytes if self._left_bytes is None else min(size_bytes, self._left_bytes)
            self.sent_bytes += allowed
            if is_cut:
                self.cuts_made += 1
                self._left_bytes = self._cuts.pop(0) if self._cuts else None
            elif self._left_bytes is not None:
                self._left_bytes -= allowed
            return allowed, is_cut

    def _cut(self, client: socket.socket) -> None:
        if self._reset:
            # An end without patience is a reset: close() then drops what was not sent.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._goes_down and self._left_bytes is None:
            self.go_down()
