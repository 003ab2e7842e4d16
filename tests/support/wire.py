"""HTTP/1.1 as bytes on a socket: reads requests strictly, and writes answers as they are scripted, right or wrong.

Spec: RFC 9112.
"""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import BinaryIO, Protocol

from tests.support.answers import Answer, Request

# Where a client that would read for ever is stopped.
ENDLESS_BYTES = 1024**3
_REQUEST_BODY_BYTES = 256 * 1024 * 1024
_LINE_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024

_TLS_HANDSHAKE = b"\x16\x03"
_LINGER_RESET = struct.pack("ii", 1, 0)


class BadRequest(Exception):
    """Bytes that are no HTTP/1.1 request."""


class TlsHello(Exception):
    """The first bytes of a TLS handshake."""


class Pace(Protocol):
    """What decides how long an answer may stand still, and hears of one that had no end."""

    def wait_while_held(self, event: threading.Event) -> None:
        """Wait for a scripted event."""

    def pause(self, seconds: float) -> None:
        """Sleep."""

    def note_endless(self, request: Request) -> None:
        """Take note of a client that read ``ENDLESS_BYTES``."""


class Sending:
    """Carries out one answer."""

    def __init__(self, pace: Pace, connection: socket.socket, request: Request, answer: Answer) -> None:
        self._pace = pace
        self._connection = connection
        self._request = request
        self._answer = answer

    def send(self) -> bool:
        """Send the answer, and return whether the connection can serve another request."""
        answer = self._answer
        if answer.hold is not None and answer.hold_after_bytes is None:
            self._pace.wait_while_held(answer.hold)
        if answer.raw is not None:
            self._connection.sendall(answer.raw)
            return False
        self._request.status = answer.status
        self._connection.sendall(self._head())
        has_body = self._request.method != "HEAD" and answer.status not in (204, 304)
        if has_body:
            self._send_body()
            if answer.cut_after_bytes is not None:
                if answer.reset:
                    self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                return False
        says_close = any((name.lower(), value.lower()) == ("connection", "close") for name, value in self._headers())
        return not (
            says_close
            or answer.close_silently
            or (has_body and (answer.framing == "until_close" or answer.content_length is not None))
        )

    def _headers(self) -> list[tuple[str, str]]:
        answer = self._answer
        headers = answer.header_items()
        names = {name.lower() for name, _ in headers}
        if answer.status in (204, 304):
            return headers
        if answer.framing == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
        elif answer.framing == "until_close":
            headers.append(("Connection", "close"))
        elif "content-length" not in names:
            length = len(answer.body) if answer.content_length is None else answer.content_length
            headers.append(("Content-Length", str(length)))
        return headers

    def _head(self) -> bytes:
        status = self._answer.status
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in self._headers())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _send_body(self) -> None:
        answer = self._answer
        chunked = answer.framing == "chunked"
        for piece in self._pieces():
            self._connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self._request.body_bytes_sent += len(piece)
            if answer.drip_bytes is not None:
                self._pace.pause(answer.drip_seconds)
        if chunked and answer.cut_after_bytes is None:
            self._connection.sendall(b"0\r\n\r\n")

    def _pieces(self) -> Iterator[bytes]:
        """Yield the body up to where it is cut; a hold falls between two pieces."""
        answer = self._answer
        body = answer.body or (bytes(_PIECE_BYTES) if answer.endless else b"")
        total = ENDLESS_BYTES if answer.endless else len(body)
        end = total if answer.cut_after_bytes is None else min(total, answer.cut_after_bytes)
        hold_at = answer.hold_after_bytes if answer.hold is not None else None
        sent = 0
        while sent < end or sent == hold_at:
            if sent == hold_at and answer.hold is not None:
                hold_at = None
                self._pace.wait_while_held(answer.hold)
                continue
            start = sent % len(body)
            stop = min(end - sent, answer.drip_bytes or _PIECE_BYTES, len(body) - start)
            if hold_at is not None and sent < hold_at:
                stop = min(stop, hold_at - sent)
            yield body[start : start + stop]
            sent += stop
        if answer.endless and answer.cut_after_bytes is None:
            self._pace.note_endless(self._request)


def read_request(stream: BinaryIO, client_port: int) -> Request | None:
    """Return the next request, None where the client has closed."""
    request = read_head(stream, client_port)
    if request is not None:
        request.body = read_body(stream, request)
    return request


def read_head(stream: BinaryIO, client_port: int) -> Request | None:
    """Return the next request without its body, None where the client has closed."""
    line = stream.readline(_LINE_BYTES)
    if not line:
        return None
    match = re.fullmatch(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n", line)
    if match is None:
        raise TlsHello if line.startswith(_TLS_HANDSHAKE) else BadRequest(f"{line[:80]!r}")
    headers = tuple(_iter_headers(stream))
    request = Request(
        method=match[1].decode(), target=match[2].decode("latin-1"), headers=headers, body=b"", client_port=client_port
    )
    if sum(name.lower() == "host" for name, _ in headers) != 1:
        raise BadRequest(f"{request.method} {request.target} has not one Host")
    return request


def _iter_headers(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    while (line := stream.readline(_LINE_BYTES)) != b"\r\n":
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not line.endswith(b"\r\n") or name != name.strip():
            raise BadRequest(f"header {line[:80]!r}")
        yield name, value.strip()


def read_body(stream: BinaryIO, request: Request) -> bytes:
    """Return the body of a request whose head was read."""
    if (request.header("Transfer-Encoding") or "").lower() != "chunked":
        return _read_exactly(stream, int(request.header("Content-Length") or 0))
    body = b""
    while size := int(stream.readline(_LINE_BYTES).partition(b";")[0], 16):
        body += _read_exactly(stream, size)
        stream.readline(_LINE_BYTES)
    stream.readline(_LINE_BYTES)
    return body


def _read_exactly(stream: BinaryIO, size_bytes: int) -> bytes:
    if size_bytes > _REQUEST_BODY_BYTES:
        raise BadRequest(f"a body of {size_bytes} bytes")
    body = stream.read(size_bytes)
    if len(body) != size_bytes:
        raise ConnectionError("the client left within its body")
    return body
