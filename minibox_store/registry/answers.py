"""An answer to one request: its head, and its body, read with a bound and as it comes.

However an answer is left, its connection is kept only if the body has been read to its very end; nothing is ever
read merely to get there.
"""

import http.client
import re
import time

from minibox_store.registry.bodies import Body, ChunkedBody, FixedBody, UntilCloseBody
from minibox_store.registry.connections import Connection, ConnectionPool
from minibox_store.registry.failures import Failure, foreign_errors
from minibox_store.registry.reading import NothingYet
from minibox_store.registry.urls import Url

# A buffer that is not full by then is given to the caller as it is: on a slow line bytes are seen as they come.
_FILL_SECONDS = 0.5
_PIECE_BYTES = 64 * 1024
_LENGTH = re.compile(r"[0-9]{1,20}")
# What says nothing of the body: S3 has kept an empty one of what came to it in chunks, and what imitates S3 keeps how
# these were framed; both give that back with the bytes as they were.
_NO_CODINGS = frozenset({"", "identity", "aws-chunked"})


class Answer:
    """What came back for a request. The caller closes it.

    Attributes:
        place: who answered, behind all redirects.
        status: three digits.
        secrets: what was sent for it, and no message may show.
        length_bytes: of the body, where it was announced.
        ends_with_connection: whether the body's end cannot be told from a cut.
    """

    def __init__(
        self, *, method: str, place: Url, secrets: tuple[str, ...], connection: Connection, pool: ConnectionPool
    ) -> None:
        """Wait for the answer on a connection that the request was sent on.

        Raises:
            OSError, HTTPException: when none comes.
        """
        self.method = method
        self.place = place
        self.secrets = (*secrets, *connection.secrets)
        self._connection = connection
        self._pool = pool
        self._response = connection.receive()
        self.status = self._response.status
        try:
            self.length_bytes = self._announced_length()
            self._body = self._framed()
        except http.client.HTTPException:
            self._response.close()
            raise
        self.ends_with_connection = self._body.ends_with_connection
        self._broken: Failure | None = None
        self._is_closed = False

    @property
    def url(self) -> str:
        """Return who answered, as messages may show it: without the query."""
        return self.place.shown

    @property
    def is_encoded(self) -> bool:
        """Whether the body is said not to be the very bytes that were asked for."""
        codings = ",".join(self.headers("Content-Encoding")).split(",")
        return not _NO_CODINGS.issuperset(coding.strip().lower() for coding in codings)

    def header(self, name: str) -> str | None:
        """Return a header's value, the first where there are several; not trusted."""
        values = self.headers(name)
        return values[0] if values else None

    def headers(self, name: str) -> list[str]:
        """Return every value of a header; not trusted."""
        return [str(value).strip() for value in self._response.headers.get_all(name) or ()]

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``, or what of it comes within half a second; return how many bytes, 0 at the end.

        Only where a server is silent in the line between two chunks it takes longer.

        Raises:
            Failure: when the connection breaks; what came before has been returned by then.
        """
        if self._broken is not None:
            raise self._broken
        filled = 0
        until = time.monotonic() + _FILL_SECONDS
        try:
            with foreign_errors(self.method, self.url):
                # What had come before an interrupt could still be read.
                self._pool.lines.check()
                while filled < len(buffer):
                    # What is in hand is not kept back until more comes: that may be never.
                    self._response.reader.is_patient = not filled
                    count = self._body.read_some(buffer[filled:])
                    filled += count
                    if not count or time.monotonic() > until:
                        break
        except NothingYet:
            return filled
        except Failure as failure:
            if not filled:
                raise
            self._broken = failure
        return filled

    def read_up_to(self, limit_bytes: int) -> bytes:
        """Return the whole body, or its first ``limit_bytes`` and one more, so that the excess is noticed.

        Raises:
            Failure: when the connection breaks, or all of it has not come within the time of silence.
        """
        deadline = time.monotonic() + self._pool.silence_seconds
        content = bytearray()
        piece = memoryview(bytearray(min(_PIECE_BYTES, limit_bytes + 1)))
        while len(content) <= limit_bytes:
            count = self.readinto(piece[: limit_bytes + 1 - len(content)])
            if not count:
                break
            content += piece[:count]
            if time.monotonic() > deadline:
                with foreign_errors(self.method, self.url):
                    raise TimeoutError
        return bytes(content)

    def close(self) -> None:
        """Let the connection serve the next request if the body was read to its end, else end it."""
        if self._is_closed:
            return
        self._is_closed = True
        may_stay = self.status >= 200 and self._body.is_finished and not self._response.will_close
        self._response.close()
        if may_stay:
            self._pool.give_back(self._connection)
        else:
            self._connection.close()

    def _announced_length(self) -> int | None:
        values = {part.strip() for value in self.headers("Content-Length") for part in value.split(",")}
        if not values or self.headers("Transfer-Encoding"):
            return None
        if len(values) > 1 or not _LENGTH.fullmatch(next(iter(values))):
            raise http.client.HTTPException("the Content-Length is no number")
        return int(values.pop())

    def _framed(self) -> Body:
        source = self._response.reader
        if self.method == "HEAD" or self.status in (204, 304) or self.status < 200:
            return FixedBody(source, 0)
        encodings = [value.lower() for value in self.headers("Transfer-Encoding")]
        if encodings == ["chunked"]:
            return ChunkedBody(source)
        if encodings:
            raise http.client.HTTPException("the Transfer-Encoding is unknown")
        return UntilCloseBody(source) if self.length_bytes is None else FixedBody(source, self.length_bytes)
