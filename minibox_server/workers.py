"""Where calls of the store run: in threads, of which each kind of call has its own number.

Who waits for a registry, a disk or a lock takes a place from none that only looks: a hundred slow pulls leave every
thread of ``GET /images`` free. And an operation that may be long ends when its client has gone, or when the daemon
ends.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

import anyio.to_thread
import attrs
from starlette.types import Receive

from minibox_server.responses import RequestError
from minibox_server.settings import DEFAULT_PULLS
from minibox_store import Cancellation

T = TypeVar("T")

_READING = 16
_STREAMING = 8
_RECEIVING = 32
_CHANGING = 16
_PUSHING = 16
# So many wait for their turn in a thread; whoever comes then waits for that first.
_WAITING_PULLS = 28


class Workers:
    """The threads of one daemon, and what runs in them.

    Attributes:
        reading: for calls that read a little and wait for nobody.
        streaming: for reading the next piece of a blob.
        receiving: for bodies, which come as slowly as their clients send them.
        changing: for calls that may wait for a lock or move files: save, load, remove, prune.
        pulling: for pulls, those that move and those that wait for their turn; one more waits until another has ended.
        pushing: for pushes; one more waits until another has ended.
    """

    def __init__(self, *, max_pulls: int = DEFAULT_PULLS) -> None:
        self.reading = anyio.CapacityLimiter(_READING)
        self.streaming = anyio.CapacityLimiter(_STREAMING)
        self.receiving = anyio.CapacityLimiter(_RECEIVING)
        self.changing = anyio.CapacityLimiter(_CHANGING)
        self.pulling = anyio.CapacityLimiter(max_pulls + _WAITING_PULLS)
        self.pushing = anyio.CapacityLimiter(_PUSHING)
        self._lock = threading.Lock()
        self._running = 0
        self._operations: set[Cancellation] = set()
        self._closing = False

    @property
    def running(self) -> int:
        """How many calls run in threads now."""
        with self._lock:
            return self._running

    async def run(self, limiter: anyio.CapacityLimiter, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, from a thread; a task that is cancelled leaves it behind."""
        outcome = await anyio.to_thread.run_sync(self._counted, call, abandon_on_cancel=True, limiter=limiter)
        return outcome.take()

    @contextmanager
    def operation(self, receive: Receive) -> Iterator["Operation"]:
        """Watch the client of an operation while the block runs, and cancel the operation when an error ends it."""
        cancellation = Cancellation()
        with self.cancellable(cancellation):
            operation = Operation(cancellation)
            watcher = asyncio.create_task(operation.watch(receive))
            try:
                yield operation
            except BaseException:
                cancellation.cancel()
                raise
            finally:
                watcher.cancel()

    @contextmanager
    def cancellable(self, cancellation: Cancellation) -> Iterator[None]:
        """Let the daemon's end cancel what runs in the block."""
        with self._lock:
            self._operations.add(cancellation)
            if self._closing:
                cancellation.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._operations.discard(cancellation)

    def cancel_operations(self) -> None:
        """Cancel every operation that runs, and each one that is still to begin: the daemon ends."""
        with self._lock:
            self._closing = True
            operations = list(self._operations)
        for cancellation in operations:
            cancellation.cancel()

    def _counted(self, call: Callable[[], T]) -> "_Outcome[T]":
        with self._lock:
            self._running += 1
        try:
            return _Outcome(returned=[call()])
        except Exception as error:  # noqa: BLE001  # it is raised in the loop
            return _Outcome(raised=error)
        finally:
            with self._lock:
                self._running -= 1


@attrs.define(kw_only=True)
class _Outcome(Generic[T]):
    """What came of a call: it passes between the threads as a value.

    An error that is raised through the threads' own machinery is kept by a frame of its traceback, and keeps all that
    it has passed, until the collector comes. After hundreds of requests that are refused at once that is much.
    """

    returned: list[T] = attrs.field(factory=list)
    raised: Exception | None = None

    def take(self) -> T:
        if self.raised is not None:
            try:
                raise self.raised
            finally:
                self.raised = None
        return self.returned[0]


class Operation:
    """An operation, which its client ends by going away."""

    def __init__(self, cancellation: Cancellation) -> None:
        self.cancellation = cancellation

    async def watch(self, receive: Receive) -> None:
        """Wait until the client goes away, and cancel the operation then."""
        with suppress(RequestError):  # more of a body than there may be: its client is not served on
            await pass_over(receive)
        self.cancellation.cancel()


async def pass_over(receive: Receive) -> None:
    """Return when the client has gone; what it sends until then is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass
