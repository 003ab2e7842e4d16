"""An operation and its answer: plain when it is over, or told of as it goes on; joined by whoever asks for the same.

The operation runs in a thread. Who waits for its end, and who is told how it goes on, are its listeners; when the last
one has gone, it is cancelled. How it ends is told to each of them exactly once.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from http import HTTPStatus

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minibox_server.api.feeds import SERVER_SENT, Feed, Form, Lines, accepted_form, encode_event
from minibox_server.api.progress import Progress
from minibox_server.api.turns import Turns
from minibox_server.responses import RequestError, describe, error_response
from minibox_server.settings import DEFAULT_PULLS
from minibox_server.workers import Workers
from minibox_store import Cancellation, Cancelled, EventListener, StoreError, one_line

LOGGER = logging.getLogger("minibox_server")

Result = Mapping[str, object]
Failure = StoreError | RequestError
Call = Callable[[EventListener, Cancellation], Result]
ProgressingCall = Callable[[Progress, Cancellation], Result]
Observe = Callable[[str], AbstractContextManager[EventListener]]

# How often what changes all the time is told, and, for each who listens, how much more seldom: telling costs time.
_TICK_SECONDS = 0.1
_TICK_SECONDS_EACH = 0.0005
_SILENCE_SECONDS = 15.0
# How often those that no thread has taken yet are told how many come first.
_PLACE_SECONDS = 1.0


class Operations:
    """The operations of one process, those that others may join by their key.

    Args:
        workers: where they run.
        observe: is entered, in the operation's thread, with what it is called, while it runs: it gives a listener that
            is told each event, and sees how it ends.
        max_pulls: how many pulls move at once.

    Attributes:
        pull_turns: which pulls move, and which wait until those have ended.
    """

    def __init__(self, workers: Workers, observe: Observe | None = None, *, max_pulls: int = DEFAULT_PULLS) -> None:
        self._workers = workers
        self._observe = observe
        self.pull_turns = Turns(max_pulls)
        self._joinable: dict[Hashable, Running] = {}
        self._without_thread: list[Running] = []
        self._telling_in: asyncio.AbstractEventLoop | None = None

    async def answer(
        self,
        request: Request,
        *,
        doing: str,
        limiter: anyio.CapacityLimiter,
        call: Call,
        plain: Callable[[Result], Response],
        key: Hashable | None = None,
    ) -> Response:
        """Return the answer to a request for an operation, in the form that its client accepts.

        Args:
            request: the request; nobody else reads its body from now on.
            doing: what the operation is called in sentences: "pull".
            limiter: whose place the call takes.
            call: is run in a thread, told where to tell of its events and how it is cancelled, and returns the fields
                of ``result``.
            plain: makes the answer of these for a client that accepts none of the streams; errors are answered as
                everywhere.
            key: what two requests have in common that may share one call; None where this one is always its own.
        """
        running = self.join(
            doing=doing,
            limiter=limiter,
            call=lambda progress, cancellation: call(progress.on_event, cancellation),
            key=key,
        )
        form = accepted_form(request.headers)
        if form is not None:
            return StreamAnswer(running, form)
        with running.listening(request.receive) as listener:
            return plain(await listener.result())

    def join(
        self, *, doing: str, limiter: anyio.CapacityLimiter, call: ProgressingCall, key: Hashable | None = None
    ) -> "Running":
        """Return the operation that runs under this key, or one that is begun now.

        The arguments are those of :meth:`answer`, but that ``call`` is given the whole of its progress.
        """
        found = None if key is None else self._joinable.get(key)
        if found is not None:
            return found
        running = Running(doing)
        if key is not None:
            self._joinable[key] = running

        def ended() -> None:
            # Who comes from now on begins anew: this one is over, or was given up.
            if key is not None and self._joinable.get(key) is running:
                del self._joinable[key]

        observed = call if self._observe is None else _observed(call, self._observe, doing)
        running.begin(self._workers, limiter, observed, ended)
        if limiter is self._workers.pulling:
            self._without_thread.append(running)
            loop = asyncio.get_running_loop()
            if self._telling_in is not loop:
                self._telling_in = loop
                loop.call_later(_TICK_SECONDS, self._tell_places)
        return running

    def _tell_places(self) -> None:
        """Tell pulls how many come first, where the threads are taken in which they would see that themselves."""
        self._without_thread = [each for each in self._without_thread if each.waits_for_thread]
        taken = self._workers.pulling.borrowed_tokens
        if taken >= self._workers.pulling.total_tokens:
            for place, running in enumerate(self._without_thread):
                running.tell_place(taken + place)
        if self._without_thread:
            asyncio.get_running_loop().call_later(_PLACE_SECONDS, self._tell_places)
        else:
            self._telling_in = None


def _observed(call: ProgressingCall, observe: Observe, doing: str) -> ProgressingCall:
    def observed(progress: Progress, cancellation: Cancellation) -> Result:
        with observe(doing) as listener:
            progress.observe(listener)
            return call(progress, cancellation)

    return observed


class Running:
    """One operation under way; all but ``progress`` belongs to the loop's thread.

    Attributes:
        doing: what it is called.
        progress: what its threads have told.
        feed: what its listeners are told.
        lines: what it has to say as text, line by line.
        is_over: whether it has ended, or nobody wants it any more.
    """

    def __init__(self, doing: str) -> None:
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
            if not self._listeners and not self.is_over:
                self._leave_alone()

    @property
    def has_begun(self) -> bool:
        """Whether it is known that there is something to be told of."""
        return self._error is not None or self._result is not None or self.progress.is_resolved

    @property
    def waits_for_thread(self) -> bool:
        """Whether nothing of it has begun, and somebody wants it."""
        return not self._has_thread and not self.is_over

    def tell_place(self, ahead: int) -> None:
        """Tell that so many come first."""
        if ahead != self._place:
            self._place = ahead
            self.progress.wait_behind(ahead)

    def outcome(self) -> Result | Failure | None:
        """Return its result, or what went wrong; None while it runs."""
        return self._error or self._result

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
            self._end(error=Cancelled())
            raise
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
        while (outcome := self._running.outcome()) is None:
            await self.wait()
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    def close(self) -> None:
        """Stop watching the client."""
        self._client.cancel()
        if self._client.done() and not self._client.cancelled():
            self._client.exception()  # the operation ended first, and nobody asks any more


async def pass_over(receive: Receive) -> None:
    """Return when the client has gone; what it sends until then is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamAnswer(Response):
    """An operation as the answer that tells of it, one event after another; the last one says how it ended.

    The status is sent when it is known that there is something to tell of: what is not there, or may not be had, is an
    error like any other.
    """

    def __init__(self, running: Running, form: Form) -> None:
        super().__init__(media_type=form, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._running = running
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the beginning, and send the answer."""
        running = self._running
        with running.listening(receive) as listener:
            try:
                while not running.has_begun:
                    await listener.wait()
                outcome = running.outcome()
                if isinstance(outcome, Failure) and not running.progress.is_resolved:
                    raise outcome
            except (StoreError, RequestError) as error:
                await error_response(error, scope)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                last = await self._tell(listener, send)
            except (StoreError, RequestError) as error:
                last = describe_failure(error, scope)
            await send({"type": "http.response.body", "body": encode_event(last, self._form), "more_body": False})

    async def _tell(self, listener: Listener, send: Send) -> Result:
        running, seen = self._running, 0
        while True:
            outcome = running.outcome()
            news, seen = running.feed.since(seen, self._form), running.feed.version
            if news:
                await send({"type": "http.response.body", "body": news, "more_body": True})
                continue
            if isinstance(outcome, Failure):
                raise outcome
            if outcome is not None:
                return {"event": "result", **outcome}
            change = running.change
            await listener.wait(_SILENCE_SECONDS)
            if not change.done() and self._form == SERVER_SENT:
                await send({"type": "http.response.body", "body": b": nothing new\n\n", "more_body": True})


def describe_failure(error: Failure, scope: Scope) -> Mapping[str, object]:
    """Return the event that ends a stream with what went wrong."""
    described = describe(error, scope)
    title = HTTPStatus(described.status).phrase
    return {"event": "error", "status": described.status, "title": title, "detail": one_line(described.sentence)}
