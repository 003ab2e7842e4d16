"""The body of an answer, by each way HTTP/1.1 has to say where it ends.

Bytes go from the socket straight into the caller's buffer. ``http.client`` reads bodies too, but it loses what came
before an error, takes a body that was cut for a whole one, and reads trailers without end.

Spec: RFC 9112, sections 6 and 7.1.
"""

import re
from http.client import HTTPException
from typing import Protocol

from minibox_store.registry.failures import LineCut
from minibox_store.registry.reading import LineReader

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_LINE_BYTES = 4096
_TRAILER_LINES = 64


class Body(Protocol):
    """Reads one body and nothing behind it. For one thread."""

    @property
    def is_finished(self) -> bool:
        """Whether all of it has been read, so that the connection can serve another request."""
        ...

    @property
    def ends_with_connection(self) -> bool:
        """Whether its end cannot be told from a cut."""
        ...

    def read_some(self, buffer: memoryview) -> int:
        """Fill some of ``buffer`` with at most one wait for the network; return how many bytes, 0 at the end.

        Raises:
            OSError, HTTPException: when the connection breaks or the framing is wrong; no byte is lost by it.
        """
        ...


class FixedBody:
    """A body whose length was announced."""

    ends_with_connection = False

    def __init__(self, source: LineReader, length_bytes: int) -> None:
        self._source = source
        self._left = length_bytes

    @property
    def is_finished(self) -> bool:
        """Whether the announced length has been read."""
        return self._left == 0

    def read_some(self, buffer: memoryview) -> int:
        """Fill some of ``buffer``; 0 at the announced end alone."""
        if not self._left:
            return 0
        count = self._source.read_some(buffer[: self._left])
        if not count:
            raise LineCut
        self._left -= count
        return count


class ChunkedBody:
    """A body in chunks, each with its length before it."""

    ends_with_connection = False

    def __init__(self, source: LineReader) -> None:
        self._source = source
        self._left = 0
        self._is_first = True
        self._is_finished = False

    @property
    def is_finished(self) -> bool:
        """Whether the last chunk and the trailer have been read."""
        return self._is_finished

    def read_some(self, buffer: memoryview) -> int:
        """Fill some of ``buffer`` from one chunk; 0 after the last chunk alone."""
        if self._is_finished:
            return 0
        if not self._left:
            self._begin_chunk()
            if not self._left:
                self._pass_trailer()
                self._is_finished = True
                return 0
        count = self._source.read_some(buffer[: self._left])
        if not count:
            raise LineCut
        self._left -= count
        return count

    def _begin_chunk(self) -> None:
        if not self._is_first and self._line() not in (b"\r\n", b"\n"):
            raise HTTPException("a chunk is longer than announced")
        self._is_first = False
        size = _CHUNK_SIZE.fullmatch(self._line())
        if size is None:
            raise HTTPException("a chunk has no size")
        self._left = int(size[1], 16)

    def _pass_trailer(self) -> None:
        for _ in range(_TRAILER_LINES):
            if self._line() in (b"\r\n", b"\n"):
                return
        raise HTTPException("the trailer is too long")

    def _line(self) -> bytes:
        return self._source.readline(_LINE_BYTES)


class UntilCloseBody:
    """A body that ends where the connection does."""

    ends_with_connection = True

    def __init__(self, source: LineReader) -> None:
        self._source = source
        self._is_finished = False

    @property
    def is_finished(self) -> bool:
        """Whether the connection has ended."""
        return self._is_finished

    def read_some(self, buffer: memoryview) -> int:
        """Fill some of ``buffer``; 0 once the connection is closed."""
        count = 0 if self._is_finished else self._source.read_some(buffer)
        self._is_finished = not count
        return count
