"""The body of a request as a file that a thread reads, while it comes: never more of it in memory than a little.

The loop takes what the client sends into a bounded queue, and a worker thread reads from that, waiting where it is
empty; a full queue lets the client wait. Who goes away, or sends too much, ends the reader with an error, and so does
whoever cancels it: no thread waits for a body that nobody wants any more. Of who sends next to nothing the connection
gets rid (:mod:`minibox_server.connections`).
"""

import asyncio
import io
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from minibox_server.responses import RequestError
from minibox_store import Cancelled

QUEUE_BYTES = 1024 * 1024
# A client that looks at no answer before it has sent all gets to see it, if the rest is not more than this.
PASSED_OVER_BYTES = 64 * 1024 * 1024
PASSED_OVER_SECONDS = 2.0


class RequestBody(io.RawIOBase, BinaryIO):
    """The body of one request: a binary file that is read forward, by one thread. It is made by :func:`streamed_body`.

    A read waits until something is there. It raises:

    - Cancelled: when the client has gone, :meth:`interrupt` was called, or the block of the body was left.
    - RequestError: 413 when the client sends more than the endpoint takes.
    """

    name = "the request"

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._pieces: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._is_whole = False
        self._error: Exception | None = None
        self._room = asyncio.Event()
        self._all_came = asyncio.Event()
        self._gone = asyncio.Event()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # of the buffers there are
        """Fill the front of ``buffer`` with what is there; return the number of bytes, 0 only at the body's end."""
        view = memoryview(buffer).cast("B")
        with self._changed:
            while not (self._pieces or self._is_whole or self._error):
                self._changed.wait()
            if self._error is not None:
                raise self._error
            count = 0
            while self._pieces and count < len(view):
                piece = self._pieces.popleft()
                taken = min(len(piece), len(view) - count)
                view[count : count + taken] = piece[:taken]
                count += taken
                if taken < len(piece):
                    self._pieces.appendleft(piece[taken:])
            was_full = self._queued_bytes >= QUEUE_BYTES
            self._queued_bytes -= count
            if was_full and self._queued_bytes < QUEUE_BYTES:
                self._tell_of_room()
            return count

    def interrupt(self) -> None:
        """End the read that waits, and each later one. From any thread."""
        self._fail(Cancelled())

    async def receive(self) -> Message:
        """Return once the client has gone: for who watches it, since the body is taken by this object alone."""
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def feed(self) -> None:
        """Take what the client sends, until it has gone."""
        try:
            await self._take_all()
            self._all_came.set()
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except RequestError as error:
            self._fail(error)
        else:
            self.interrupt()
            self._gone.set()
        finally:
            self._all_came.set()

    async def pass_over_rest(self) -> None:
        """Let the rest of the body come, as far as it is worth it; nothing of it is kept."""
        self.interrupt()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_came.wait(), PASSED_OVER_SECONDS)

    async def _take_all(self) -> None:
        """Take the whole body, or return early when the client has gone or too much is passed over.

        Raises:
            RequestError: what the request is refused with for its size.
        """
        passed_over_bytes = 0
        while passed_over_bytes <= PASSED_OVER_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.interrupt()
                self._gone.set()
                return
            piece = message.get("body", b"")
            if not self._put(piece, is_last=not message.get("more_body", False)):
                passed_over_bytes += len(piece)
            if self._is_whole:
                return
            await self._room.wait()

    def _put(self, piece: bytes, *, is_last: bool) -> bool:
        """Queue a piece, or return False where nobody will read it."""
        with self._changed:
            self._is_whole = self._is_whole or is_last
            is_wanted = self._error is None
            if is_wanted and piece:
                self._pieces.append(memoryview(piece))
                self._queued_bytes += len(piece)
            if self._queued_bytes < QUEUE_BYTES:
                self._room.set()
            else:
                self._room.clear()
            self._changed.notify_all()
            return is_wanted

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._pieces.clear()
            self._queued_bytes = 0
            self._changed.notify_all()
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._room.set)


@asynccontextmanager
async def streamed_body(request: Request) -> AsyncIterator[RequestBody]:
    """Give the body of a request as a file for one worker thread, as long as the block runs.

    Nothing of it has been read yet. In the block, ``body.receive`` stands for the ``receive`` of the request.

    Guarantees: when the block has been left, a thread that still reads gets an error, and nothing of the body is kept.
        Where the block is left early, what still comes is passed over within bounds, so that a client that sends all
        before it looks gets to see the answer.
    """
    body = RequestBody(request.receive)
    feeding = asyncio.create_task(body.feed())
    try:
        yield body
        await body.pass_over_rest()
    except Cancelled:  # nobody is there to look, or the daemon ends
        raise
    except Exception:
        await body.pass_over_rest()
        raise
    finally:
        body.interrupt()
        feeding.cancel()


class AnswerToBody(Response):
    """The answer of an endpoint that reads a body, which is there until the last byte of the answer has been sent."""

    def __init__(self, request: Request, answer: Callable[[RequestBody], Awaitable[Response]]) -> None:
        """Answer ``request`` with what ``answer`` returns, given the body."""
        super().__init__()
        self._request = request
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the answer, and send it."""
        async with streamed_body(self._request) as body:
            response = await self._answer(body)
            await response(scope, body.receive, send)
