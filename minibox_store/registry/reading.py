"""What comes on one connection: the lines of a head, and then the bytes of a body.

``io.BufferedReader``, which ``http.client`` would use, goes on to wait for the network while it has bytes in hand, and
loses them when that fails; and the end of a connection is to it the end of a line.
"""

import io
import select
import socket
import ssl

from minibox_store.registry.failures import LineCut

_BUFFER_BYTES = 16 * 1024


class LineReader(io.BufferedIOBase):
    """Reads lines that have an end, and bytes as they come. For one thread.

    Args:
        raw: what gives some bytes for each call, and none at its end; closed together with this.
        sock: where they come from; None where that is no socket.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket | None = None) -> None:
        super().__init__()
        self._raw = raw
        # What else a connection may be made of keeps bytes to itself, of which nobody can be told.
        self._sock = sock if type(sock) in (socket.socket, ssl.SSLSocket) else None
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
        """
        limit = _BUFFER_BYTES if size is None or size < 0 else size
        line = bytearray()
        while len(line) < limit and not line.endswith(b"\n"):
            if self._start == self._end and not self._fill():
                raise LineCut
            end = min(self._end, self._start + limit - len(line))
            found = self._buffer.find(b"\n", self._start, end)
            end = end if found < 0 else found + 1
            line += self._buffer[self._start : end]
            self._start = end
        return bytes(line)

    def read_some(self, view: memoryview) -> int:
        """Fill some of ``view`` with what is in hand, else with one read; return how many bytes, 0 at the end."""
        if self._start == self._end:
            if len(view) >= _BUFFER_BYTES:
                return self._raw.readinto(view) or 0
            self._fill()
        count = min(len(view), self._end - self._start)
        view[:count] = memoryview(self._buffer)[self._start : self._start + count]
        self._start += count
        return count

    def wait(self, seconds: float) -> bool:
        """Return whether there is something to be read, an end or an error included, within so many seconds.

        It is True where that cannot be told: then a read may block.
        """
        is_at_hand = self._start != self._end or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)
        if is_at_hand or self._sock is None:
            return True
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        return bool(waiting.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        """Close what lies below. A second call does nothing."""
        self._raw.close()
        super().close()

    def _fill(self) -> bool:
        self._start, self._end = 0, self._raw.readinto(memoryview(self._buffer)) or 0
        return self._end > 0
