"""An operation under way: it runs in a thread, and has listeners, who wait for its end or are told how it goes on.

When the last of them has gone, it is cancelled.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import anyio
from starlette.types import Receive

from minibox_server.api.feeds import Feed, Lines
from minibox_server.api.progress import Doing, Progress
from minibox_server.responses import RequestError
from minibox_server.workers import Workers, pass_over
from minibox_store import Cancellation, Cancelled, EventListener, StoreError

LOGGER = logging.getLogger("minibox_server")

Result = Mapping[str, object]
Failure = StoreError | RequestError
Call = Callable[[EventListener, Cancellation], Result]
ProgressingCall = Callable[[Progress, Cancellation], Result]

# How often what changes all the time is told, and, for each who listens, how much more seldom: telling costs time.
_TICK_SECONDS = 0.1
_TICK_SECONDS_EACH = 0.0005


class Running:
    """One operation under way; all but ``progress`` belongs to the loop's thread.

    Attributes:
        doing: what it is called.
        progress: what its threads have told.
        feed: what its listeners are told.
        lines: what it has to say as text, line by line.
        is_over: whether it has ended, or nobody wants it any more.
    """

    def __init__(self, doing: Doing) -> None:
        self.doing = doing
        self.progress = Progress(doing, self._on_news)
        self.feed = Feed()
        self.lines = Lines()
        self.is_over = False
        self._cancellation = Cancellation()
        self._listeners = 0
        self._result: Result | None = None
        self._error: Failure | None = None
        self._loop = asyncio.get_running_loop()
        self._change: asyncio.Future[None] = self._loop.create_future()
        self._has_thread = False
        self._place = 0
        self._is_called = False
        self._is_ticking = False
        self._ended: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def begin(
        self, workers: Workers, limiter: anyio.CapacityLimiter, call: ProgressingCall, ended: Callable[[], None]
    ) -> None:
        """Run ``call`` in a thread; ``ended`` is called when nobody can join any more."""
        self._ended = ended
        self._task = self._loop.create_task(self._run(workers, limiter, call))

    @contextmanager
    def listening(self, receive: Receive) -> "Iterator[Listener]":
        """Listen while the block runs; ``receive`` is the request's, and tells when its client has gone."""
        self._listeners += 1
        listener = Listener(self, receive)
        try:
            yield listener
        finally:
            listener.close()
            self._listeners -= 1
            if not self._listeners:
                if not self.is_over:
                    self._leave_alone()
                self._forget()

    @property
    def has_begun(self) -> bool:
        """Whether it is known that there is something to be told of."""
        return self.is_done or self.progress.is_resolved

    @property
    def waits_for_thread(self) -> bool:
        """Whether nothing of it has begun, and somebody wants it."""
        return not self._has_thread and not self.is_over

    def tell_place(self, ahead: int) -> None:
        """Tell that so many come first."""
        if ahead != self._place:
            self._place = ahead
            self.progress.wait_behind(ahead)

    @property
    def is_done(self) -> bool:
        """Whether it is known how it ended."""
        return self._error is not None or self._result is not None

    def result(self) -> Result:
        """Return its result, once it is done.

        Raises:
            RequestError, StoreError: what went wrong with it.
        """
        if self._error is not None:
            raise self._error  # no frame that it passes has a name for it: it would be kept by its own traceback
        return self._result or {}

    @property
    def change(self) -> "asyncio.Future[None]":
        """What is done as soon as there is something new."""
        return self._change

    async def _run(self, workers: Workers, limiter: anyio.CapacityLimiter, call: ProgressingCall) -> None:
        def called() -> Result:
            self._has_thread = True
            self._cancellation.check()
            if self._place:
                self.progress.wait_behind(0)
            return call(self.progress, self._cancellation)

        try:
            with workers.cancellable(self._cancellation):
                result = await workers.run(limiter, called)
            self._end(result=result)
        except asyncio.CancelledError:
            # It is the end of the task in any case, which would keep the error, and that the task, by its traceback.
            self._end(error=Cancelled())
        except (StoreError, RequestError) as error:
            self._end(error=error)
        except Exception:
            LOGGER.exception("unexpected error in a %s", self.doing)
            self._end(error=RequestError(500, "internal error"))

    def _end(self, *, result: Result | None = None, error: Failure | None = None) -> None:
        self.is_over = True
        self._ended()
        self._publish(with_state=True)
        self._result, self._error = result, error
        self._tell_listeners()
        if not self._listeners:
            self._forget()

    def _forget(self) -> None:
        """Let go of what refers to this in its turn, so that the memory is free at once: nobody asks any more."""
        self._result = self._error = self._task = None
        self._ended = lambda: None
        self.progress.close()

    def _leave_alone(self) -> None:
        self.is_over = True
        self._ended()
        self._cancellation.cancel()
        if not self._has_thread and self._task is not None:
            self._task.cancel()  # it waits for a thread, and whoever comes after it need not

    def _on_news(self, is_urgent: bool) -> None:
        # Only the first of many wakes the loop; one that has ended wants no news, and no thread is to fail for that.
        with suppress(RuntimeError):
            if not self._is_ticking:
                self._is_ticking = True
                self._loop.call_soon_threadsafe(self._tick)
            if is_urgent and not self._is_called:
                self._is_called = True
                self._loop.call_soon_threadsafe(self._called)

    def _called(self) -> None:
        self._is_called = False
        self._publish(with_state=False)
        self._tell_listeners()

    def _tick(self) -> None:
        self._loop.call_later(_TICK_SECONDS + _TICK_SECONDS_EACH * self._listeners, self._ticked)

    def _ticked(self) -> None:
        self._is_ticking = False
        if self._result is None and self._error is None:
            self._publish(with_state=True)
            self._tell_listeners()

    def _publish(self, *, with_state: bool) -> None:
        self.lines.add(self.progress.take_lines())
        for key, event in self.progress.take_urgent() + (self.progress.take_state() if with_state else []):
            if event is None:
                self.feed.drop(key)
            else:
                self.feed.put(key, event, lasts=event["event"] not in ("blob", "message"))

    def _tell_listeners(self) -> None:
        change, self._change = self._change, self._loop.create_future()
        change.set_result(None)


class Listener:
    """Somebody who waits for what is new of an operation."""

    def __init__(self, running: Running, receive: Receive) -> None:
        self._running = running
        self._client = asyncio.ensure_future(pass_over(receive))

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Return when there is something new, or after the time.

        Raises:
            RequestError: when the client sends more of a body than it may.
            Cancelled: when the client has gone.
        """
        change = self._running.change
        await asyncio.wait((change, self._client), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._client.done() and not change.done():
            self._client.result()
            raise Cancelled

    async def result(self) -> Result:
        """Return the operation's result, when it has ended.

        Raises:
            RequestError, StoreError: what went wrong with it, or with the client.
        """
        while not self._running.is_done:
            await self.wait()
        return self._running.result()

    def close(self) -> None:
        """Stop watching the client."""
        client = self._client
        del self._client  # an error of the client refers to this, by its traceback
        client.cancel()
        if client.done() and not client.cancelled():
            client.exception()  # the operation ended first, and nobody asks any more
