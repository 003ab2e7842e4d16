"""An operation and its answer: plain when it is over, or told of as it goes on; joined by whoever asks for the same.

How it ends is told to each of those who listen (:mod:`minibox_server.api.running`) exactly once.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minibox_server.api.feeds import NOTHING_NEW, SERVER_SENT, SILENCE_SECONDS, Form, accepted_form, encode_event
from minibox_server.api.progress import Doing, Progress
from minibox_server.api.running import Call, Failure, Listener, ProgressingCall, Result, Running
from minibox_server.api.turns import Turns
from minibox_server.responses import RequestError, describe, error_response
from minibox_server.settings import DEFAULT_PULLS
from minibox_server.workers import Workers
from minibox_store import Cancellation, EventListener, StoreError, one_sentence

Observe = Callable[[str], AbstractContextManager[EventListener]]

# How often those that no thread has taken yet are told how many come first.
_FIRST_PLACE_SECONDS = 0.1
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
        doing: Doing,
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
        self, *, doing: Doing, limiter: anyio.CapacityLimiter, call: ProgressingCall, key: Hashable | None = None
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
                loop.call_later(_FIRST_PLACE_SECONDS, self._tell_places)
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
                if not running.progress.is_resolved:
                    running.result()
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
            is_done = running.is_done
            news, seen = running.feed.since(seen, self._form), running.feed.version
            if news:
                await send({"type": "http.response.body", "body": news, "more_body": True})
                continue
            if is_done:
                return {"event": "result", **running.result()}
            change = running.change
            await listener.wait(SILENCE_SECONDS)
            if not change.done() and self._form == SERVER_SENT:
                await send({"type": "http.response.body", "body": NOTHING_NEW, "more_body": True})


def describe_failure(error: Failure, scope: Scope) -> Mapping[str, object]:
    """Return the event that ends a stream with what went wrong."""
    described = describe(error, scope)
    title = HTTPStatus(described.status).phrase
    return {"event": "error", "status": described.status, "title": title, "detail": one_sentence(described.sentence)}
