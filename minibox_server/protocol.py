"""HTTP/1.1 as bytes: what is answered where no application answers, and who is not waited for any longer.

Bytes that are no request, a head or a body that does not come, and a connection too many are told so in one line, and
the connection is closed; who does not take its answer loses it. Where an answer is under way, or was sent before the
body had come, nothing is said: it would stand in the middle of that, or answer nothing. What the limits are,
:mod:`minibox_server.connections` knows.
"""

import asyncio
import socket
import sys
from collections.abc import Hashable
from http import HTTPStatus

import h11

from minibox_server.connections import Connections
from minibox_server.declarations import PASSED_OVER_BYTES
from minibox_server.listening import peer_of
from minibox_server.zero_copy import ZeroCopyProtocol

# Together with the limits of security.py: what is longer than this is not even collected.
MAX_HEAD_BYTES = 64 * 1024
# Whoever sends less of a body in the time of silence sends nothing.
_LEAST_BODY_BYTES = 1024
# So long, and so much, a client that was refused may still send before the connection is cut: it has not looked yet,
# and what comes to a closed connection takes the answer away from it.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 256 * 1024
# Where the kernel says how much the other side has got. Spec: Linux, struct tcp_info.
_TCP_INFO_BYTES = 128
_BYTES_ACKED = slice(120, 128)


class Protocol(ZeroCopyProtocol):
    """uvicorn's protocol, with this daemon's words for requests that are none, and an end to waiting for clients."""

    connections_of_process: Connections
    _received_bytes = 0
    _answered = 0
    _moves = 0
    _surplus_bytes = 0
    _lingered_bytes: int | None = None

    @classmethod
    def within(cls, connections: Connections) -> "type[Protocol]":
        """Return this protocol for one process's connections."""
        return type("Protocol", (cls,), {"connections_of_process": connections})

    # ---- what happens

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take a connection in, or say that there are too many."""
        super().connection_made(transport)
        if self.client is None:  # a user of this machine, and not an address
            self.client = peer_of(transport.get_extra_info("socket"))
        if not self.connections_of_process.admit(self):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections", "Retry-After: 1")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.connections_of_process.forget(self)

    def data_received(self, data: bytes) -> None:
        """Take what comes; where the answer is complete and the body is not, only so much more of it."""
        if self._lingered_bytes is not None:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        self._received_bytes += len(data)
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._surplus_bytes += len(data)
            if self._surplus_bytes > PASSED_OVER_BYTES:
                self.transport.close()
                return
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._answered += 1
        self._surplus_bytes = 0  # so much may follow each answer: a connection that goes on is no attack
        if not self.cycle.more_body:
            # A client that keeps its connection, as most do, is not to keep its request in memory. As in uvicorn, which
            # has None there until the first request.
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # uvicorn declares what comes
        super().on_response_complete()
        self._note()

    def resume_writing(self) -> None:
        """Take note that the client has taken something."""
        self._moves += 1
        super().resume_writing()

    def _wake(self) -> None:
        self._moves += 1
        super()._wake()

    def _note(self) -> None:
        is_served = self.cycle is not None and not self.cycle.response_complete
        self.connections_of_process.note(self, asks=is_served)

    def _should_upgrade(self) -> bool:
        # Nothing else is spoken here, and a client that offers to is answered as any other.
        return False

    # ---- how long it is waited for

    def owes(self) -> Hashable | None:
        """Return what the client is waited for, which is another value when it has gone on; None where it is not."""
        buffered = self.transport.get_write_buffer_size()
        if buffered or self.flow.write_paused or self._waiting is not None:
            return "answer", buffered, self._moves, self._acknowledged()
        if self.conn.their_state is h11.IDLE:
            return "head", self._answered, bool(self._received_head())
        if self.conn.their_state is not h11.SEND_BODY:
            return None
        # Who is not read from has sent enough for now, and who asks whether to send has not been told yet.
        if self.flow.read_paused or (self.cycle.waiting_for_100_continue and not self.cycle.response_started):
            return None
        return "body", self._answered, self._received_bytes // _LEAST_BODY_BYTES

    def time_out(self) -> None:
        """End it: the client has let the daemon wait for too long."""
        seconds = f"{self.connections_of_process.idle_seconds:g} s"
        owed = self.owes()
        match owed:
            case ("head", _, True):
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the head of a request did not come within {seconds}")
            case ("body", _, _):
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the body of a request did not go on for {seconds}")
            case _:
                self.transport.abort()

    def make_room(self) -> None:
        """End it: it asks nothing, and another one wants its place."""
        self.transport.abort()

    def _received_head(self) -> bytes:
        received, _ = self.conn.trailing_data
        return received

    def _acknowledged(self) -> bytes:
        """Return how much the other side has got, in whatever way the kernel says it; nothing where it does not."""
        opened = self.transport.get_extra_info("socket")
        if opened is None or opened.family not in (socket.AF_INET, socket.AF_INET6):
            return b""
        try:
            found: bytes = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return b""
        return found[_BYTES_ACKED]

    # ---- what is said

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, or one whose head is too long, and close the connection."""
        error = sys.exc_info()[1]
        if error is not None:
            error.__traceback__ = None  # in h11 a frame refers to it, and so all of this would refer to itself
        self._refuse(*self._describe())

    def _refuse(self, status: HTTPStatus, sentence: str, *headers: str) -> None:
        """Say no, unless the request has its answer, or that is under way, and close the connection."""
        # A second answer to one request would be taken for that to the next one, where a proxy stands in between.
        answered = self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE)
        if self.cycle is not None and not self.cycle.response_complete:
            # What the application still has to say would follow, and belong to nothing.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._wake()
        self._unset_keepalive_if_required()
        if answered:
            self.transport.close()
            return
        if not self.connections_of_process.may_linger(self):
            self.transport.abort()
            return
        self.transport.write(_refusal(status, sentence, headers))
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # it has broken off since, of which asyncio will hear only later
            self.transport.abort()
            return
        self._lingered_bytes = 0
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _describe(self) -> tuple[HTTPStatus, str]:
        received = self._received_head()
        if len(received) <= MAX_HEAD_BYTES:
            return HTTPStatus.BAD_REQUEST, "the request is not valid HTTP"
        if b"\n" in received:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are longer than {MAX_HEAD_BYTES} bytes"
        return HTTPStatus.REQUEST_URI_TOO_LONG, f"the target is longer than {MAX_HEAD_BYTES} bytes"


def _refusal(status: HTTPStatus, sentence: str, headers: tuple[str, ...]) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(sentence) + 1}",
        *headers,
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        "",
        sentence,
    ]
    return ("\r\n".join(lines) + "\n").encode("ascii")
