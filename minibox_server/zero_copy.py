"""Bytes of a file that leave by the kernel alone: never in this process's memory, and by threads, beside each other.

A connection in plain text offers ``http.response.zerocopysend``; where TLS has to encrypt, nothing is offered, and the
application sends pieces. The threads have a descriptor of their own of the socket and of the file, so that whoever
closes either meanwhile cannot make them send another file's bytes, or to another client: numbers of descriptors are
given out again at once.

Of what goes to a quick client of this machine, little waits in the kernel at a time. What waits there is sent in the
client's own time, as it makes room, and that costs the two more than all that is done here.

Spec: ASGI, extension "Zero Copy Send"; ``file`` is the number of a descriptor, and ``offset`` and ``count`` are needed.
"""

import asyncio
import functools
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

T = TypeVar("T")

EXTENSION = "http.response.zerocopysend"

# A client that is quick is waited for in the thread, and one that is slow in the loop, where that costs nothing.
_POLL_MS = 20
# Others want the thread too.
_TURN_SECONDS = 0.25
_THREADS = 8
# So much waits for a quick client of this machine, beside what is under way to it.
_WAITING_BYTES = 32 * 1024
_AS_USUAL = 0


class ZeroCopyProtocol(H11Protocol):
    """uvicorn's protocol with the extension."""

    _waiting: "asyncio.Future[None] | None" = None
    _is_near = False
    _is_slow = False
    _application: ASGIApp | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Offer the extension where nothing stands between a file and the socket."""
        super().connection_made(transport)
        if not is_ssl(transport):
            self._application, self.app = self.app, self._answer
            ours, theirs = self.server, self.client
            self._is_near = ours is not None and theirs is not None and ours[0] == theirs[0]

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of whoever waits for the client, and of what would keep the connection in memory."""
        super().connection_lost(exc)
        self._wake()
        # What refers to itself stays until all of the memory is searched for such things, which is after thousands of
        # connections; and where they have lain the memory does not come back. asyncio's transport does so as well.
        if self._application is not None:
            self.app = self._application
        for callback in ("_read_ready_cb", "_write_ready"):  # the latter since Python 3.12
            vars(self.transport).pop(callback, None)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle, application = self.cycle, self._application
        assert application is not None

        async def send_also_files(message: Message) -> None:
            if message["type"] != EXTENSION:
                await send(message)
                return
            if scope["method"] != "HEAD":
                place = message["file"], message["offset"], message["count"]
                if not await self._send_file(cycle, *place):
                    # Nothing was waited for: whoever watches the client has to come to see that it is gone, and all
                    # others are not to wait until the whole of a large file has been said to nobody.
                    await asyncio.sleep(0)
            if not message.get("more_body", False):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        scope["extensions"] = {**scope.get("extensions", {}), EXTENSION: {}}
        await application(scope, receive, send_also_files)

    async def _send_file(self, cycle: RequestResponseCycle, file: int, offset: int, count: int) -> bool:
        """Send part of a file as part of the body; return False once the client is gone.

        Raises:
            EOFError: when the file is shorter: the answer is cut.
        """
        if cycle.disconnected:
            return False
        if not count:
            return True
        # h11 passes on what has a length, and never looks at it: such a thing is made for this.
        announced: Any = _Announced(count)
        for piece in self.conn.send_with_data_passthrough(h11.Data(data=announced)) or ():
            if piece is announced:
                if not await self._move(cycle, file, offset, count):
                    return False
            else:
                self.transport.write(piece)
        return True

    async def _move(self, cycle: RequestResponseCycle, file: int, offset: int, count: int) -> bool:
        """Move the bytes of the file; return False once the client is gone."""
        # Until what was written before has left, the socket is the transport's.
        self.transport.set_write_buffer_limits(high=0)
        try:
            await self.flow.drain()
            if cycle.disconnected or self.transport.is_closing():
                return False
            pipe = _Pipe(self.transport.get_extra_info("socket"), file, self._threads())
            return await self._move_all(cycle, pipe, offset, count)
        finally:
            self.transport.set_write_buffer_limits()

    async def _move_all(self, cycle: RequestResponseCycle, pipe: "_Pipe", offset: int, count: int) -> bool:
        end = offset + count
        try:
            while offset < end:
                turn = functools.partial(pipe.move, offset, end, sparingly=self._is_near and not self._is_slow)
                try:
                    moved, self._is_slow = await self._threads().run(turn)
                except (ConnectionError, TimeoutError):
                    self.transport.abort()
                    return False
                offset += moved
                if self._is_slow:
                    await self._wait_for_client(pipe.socket.fileno())
                if cycle.disconnected or self.transport.is_closing():
                    return False
            return True
        finally:
            pipe.close()

    async def _wait_for_client(self, descriptor: int) -> None:
        """Return once the socket takes more, or the connection is lost."""
        if self.transport.is_closing():
            return
        self._waiting = self.loop.create_future()
        self.loop.add_writer(descriptor, self._wake)
        try:
            await self._waiting
        finally:
            self.loop.remove_writer(descriptor)
            self._waiting = None

    def _threads(self) -> "_Threads":
        """Return what all connections of this server have in common."""
        threads: _Threads = self.app_state.setdefault(EXTENSION, _Threads())
        return threads

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class _Announced:
    """So many bytes that h11 counts and does not see."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes


class _Threads:
    """The threads of all connections of a server: so many, and who finds none free waits for one."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._asked_for = 0

    @property
    def are_scarce(self) -> bool:
        """Whether somebody waits; any thread may ask."""
        return self._asked_for > _THREADS

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, from a thread; a task that is cancelled leaves it behind."""
        self._asked_for += 1
        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            self._asked_for -= 1


class _Pipe:
    """A file and a socket, each by a descriptor of its own, which the last one who uses them closes."""

    def __init__(self, client: socket.socket, file: int, threads: _Threads) -> None:
        self._threads = threads
        self.socket = client.dup()
        try:
            self._file = os.dup(file)
        except BaseException:
            self.socket.close()
            raise
        self._lock = threading.Lock()
        self._is_used = False
        self._is_closed = False

    def move(self, offset: int, end: int, *, sparingly: bool) -> tuple[int, bool]:
        """Move bytes until they are all gone, the time is, or the client is slow; return how many, and whether it is.

        ``sparingly`` lets little of them wait in the kernel, as long as the client and this thread are quick.

        Raises:
            EOFError: when the file has no more bytes.
            OSError: when the client has gone.
        """
        with self._lock:
            if self._is_closed:
                return 0, False
            self._is_used = True
        try:
            return self._move(offset, end, sparingly)
        finally:
            with self._lock:
                self._is_used = False
                if self._is_closed:
                    self._release()

    def close(self) -> None:
        """Close both, now or when the thread that uses them is done with its turn."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if not self._is_used:
                self._release()

    def _move(self, offset: int, end: int, is_sparing: bool) -> tuple[int, bool]:
        begin, deadline = offset, time.monotonic() + _TURN_SECONDS
        waiting = select.poll()
        waiting.register(self.socket, select.POLLOUT)
        if is_sparing:
            self._let_wait(_WAITING_BYTES)
        try:
            while offset < end and time.monotonic() < deadline and not self._is_closed:
                try:
                    moved = os.sendfile(self.socket.fileno(), self._file, offset, end - offset)
                except BlockingIOError:
                    is_pressed = is_sparing and self._threads.are_scarce
                    if not is_pressed and waiting.poll(_POLL_MS):
                        continue
                    if not is_sparing:
                        return offset - begin, True
                    # The client will have enough to read until somebody comes back to it.
                    is_sparing = False
                    self._let_wait(_AS_USUAL)
                    continue
                if not moved:
                    raise EOFError(f"a file ends at {offset}, and not at {end}")
                offset += moved
            return offset - begin, False
        finally:
            if is_sparing:
                self._let_wait(_AS_USUAL)

    def _let_wait(self, size_bytes: int) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size_bytes)

    def _release(self) -> None:
        self.socket.close()
        os.close(self._file)
