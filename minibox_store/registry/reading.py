"""What comes on one connection: the lines of a head, and then the bytes of a body.

``io.BufferedReader``, which ``http.client`` would use, goes on to wait for the network while it has bytes in hand, and
loses them when that fails; and the end of a connection is to it the end of a line.
"""

import http.client
import io
import math
import socket
import ssl
import time
from http import HTTPStatus

from minibox_store.registry.failures import LineCut

_BUFFER_BYTES = 16 * 1024
# A read wakes up so often while nothing comes. A poll before each read would tell more, and take twice the time.
_TICK_SECONDS = 0.5


class NothingYet(Exception):
    """Nothing has come for a moment, and whoever reads has something in hand already."""


class LineReader(io.BufferedIOBase):
    """Reads lines that have an end, and bytes as they come. For one thread.

    Args:
        raw: what gives some bytes for each call, and none at its end; closed together with this.
        sock: where they come from; None where that is no socket. Its timeout is how long nothing may come.

    Attributes:
        is_patient: whether a read of bytes waits for as long as nothing may come.

    Guarantees: no byte is lost by a read that fails or is given up.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket | None = None) -> None:
        super().__init__()
        self._raw = raw
        # To read from it itself, since ``socket.SocketIO`` reads no more after one timeout.
        self._sock = sock if type(sock) in (socket.socket, ssl.SSLSocket) else None
        self._silence_seconds = None if self._sock is None else self._sock.gettimeout()
        if self._sock is not None and self._silence_seconds is not None:
            self._sock.settimeout(min(_TICK_SECONDS, self._silence_seconds))
        self.is_patient = True
        self._lines_until: float | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._start = 0
        self._end = 0

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line with its end, or the first ``size`` bytes of a longer one.

        Raises:
            LineCut: when the connection ends before the line.
            TimeoutError: when lines, one after the other, take as a whole longer than nothing may come: they are never
                so long that a slow line would need it.
        """
        limit = _BUFFER_BYTES if size is None or size < 0 else size
        line = bytearray()
        while len(line) < limit and not line.endswith(b"\n"):
            if self._start == self._end:
                if not self._fill():
                    raise LineCut
                self._check_lines()
            end = min(self._end, self._start + limit - len(line))
            found = self._buffer.find(b"\n", self._start, end)
            end = end if found < 0 else found + 1
            line += self._buffer[self._start : end]
            self._start = end
        return bytes(line)

    def read_some(self, view: memoryview) -> int:
        """Fill some of ``view`` with what is in hand, else with one read; return how many bytes, 0 at the end.

        Raises:
            NothingYet: when nothing comes for a moment, unless it is patient.
        """
        self._lines_until = None
        if self._start == self._end:
            if len(view) >= _BUFFER_BYTES:
                return self._receive(view, is_patient=self.is_patient)
            self._fill(is_patient=self.is_patient)
        count = min(len(view), self._end - self._start)
        view[:count] = memoryview(self._buffer)[self._start : self._start + count]
        self._start += count
        return count

    def close(self) -> None:
        """Close what lies below. A second call does nothing."""
        self._raw.close()
        super().close()

    def _fill(self, *, is_patient: bool = True) -> bool:
        self._start = self._end = 0
        self._end = self._receive(memoryview(self._buffer), is_patient=is_patient)
        return self._end > 0

    def _check_lines(self) -> None:
        now = time.monotonic()
        if self._lines_until is None:
            self._lines_until = now + (self._silence_seconds or math.inf)
        elif now > self._lines_until:
            raise TimeoutError

    def _receive(self, view: memoryview, *, is_patient: bool) -> int:
        if self._sock is None:
            return self._raw.readinto(view) or 0
        waited_seconds = 0.0
        while True:
            try:
                return self._sock.recv_into(view)
            except TimeoutError:
                if not is_patient:
                    raise NothingYet from None
                waited_seconds += self._sock.gettimeout() or 0.0
                if waited_seconds >= (self._silence_seconds or 0.0):
                    raise


class Response(http.client.HTTPResponse):
    """The head of an answer, behind all that came before it; ``reader`` has its body."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.reader = LineReader(self.fp.detach(), sock)
        self.fp = self.reader  # type: ignore[assignment]  # of it only readline and close are used

    def _read_status(self) -> tuple[str, int, str]:
        # The standard library passes over 100 alone. Spec: RFC 9110, section 15.2.
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]  # the stubs lack it
            if not 100 < found[1] < 200 or found[1] == HTTPStatus.SWITCHING_PROTOCOLS:
                return found
            http.client.parse_headers(self.reader)
