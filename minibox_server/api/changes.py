"""What happens in the store, told to whoever listens: by any process, and as the store itself shows it.

One task of each process looks at the store twice a second, as long as anybody listens. What it tells is kept for those
who read slowly, so much and no more; whoever has missed something is told so, and reads the list of images anew.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minibox_server.api.event_schemas import event
from minibox_server.api.feeds import NOTHING_NEW, SERVER_SENT, SILENCE_SECONDS, Form, accepted_form, encode_event
from minibox_server.api.operations import describe_failure
from minibox_server.declarations import Answer, Endpoint, NoQuery
from minibox_server.responses import RequestError
from minibox_server.schemas import DIGEST_SCHEMA, TEXT_SCHEMA, Schema, one_of
from minibox_server.workers import Workers, pass_over
from minibox_store import Cancellation, NameChange, Store, StoreChanges, StoreError, StoreState

LOGGER = logging.getLogger("minibox_server")

T = TypeVar("T")

# The first second of the year 1, and the last one of 9999.
_DATES = (-62135596800.0, 253402300799.0)
_LOOK_SECONDS = 0.5
_MOST_KEPT = 1000
_MOST_LISTENERS = 256
_ATTEMPTS = 5
_MISSED: Mapping[str, object] = {"event": "missed"}

# An event, and the position that whoever has seen it goes on from; None where more belongs to the same step.
_Told = tuple[Mapping[str, object], str | None]

CHANGES_SCHEMA: Schema = {
    "anyOf": [
        event(
            "image",
            {
                "action": one_of("created", "changed", "removed"),
                "name": TEXT_SCHEMA,
                "digest": DIGEST_SCHEMA,
                "time": TEXT_SCHEMA,
            },
        ),
        event("prune", {"time": TEXT_SCHEMA}),
        event("missed", {}),
        event("error", {"status": {"type": "integer"}, "title": TEXT_SCHEMA, "detail": TEXT_SCHEMA}),
    ]
}


class ChangesEndpoints:
    """The endpoint over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._watch = Watch(store, workers)

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return [
            Endpoint(
                method="GET",
                path="/events",
                what="Tell what happens in the store, by any process, from now on, or from what Last-Event-ID names.",
                call=self.events,
                answers=tuple(
                    Answer(what="an event for each change", media_type=form, schema=CHANGES_SCHEMA, headers=headers)
                    for form in ("text/event-stream", "application/x-ndjson")
                ),
                tag="system",
            ),
        ]

    async def events(self, request: Request, query: NoQuery) -> Response:
        """Tell what happens."""
        form = accepted_form(request.headers) or SERVER_SENT
        return ChangesAnswer(self._watch, form, request.headers.get("last-event-id"))


class Watch:
    """What one process has seen of a store since somebody listens; for the loop's thread.

    Attributes:
        told: how many events there were, those that are forgotten among them.
    """

    def __init__(self, store: Store, workers: Workers) -> None:
        self.told = 0
        self._store = store
        self._workers = workers
        self._kept: deque[_Told] = deque(maxlen=_MOST_KEPT)
        self._state: StoreState | None = None
        self._looking = asyncio.Lock()
        self._listeners = 0
        self._failure: StoreError | RequestError | None = None
        self._change: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Look at the store while the block runs.

        Raises:
            RequestError: 503 when too many listen.
        """
        if self._listeners >= _MOST_LISTENERS:
            raise RequestError(503, f"{_MOST_LISTENERS} clients listen already", {"Retry-After": "30"})
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = self._state = None

    async def begin(self, position: str | None) -> tuple[int, list[_Told], str]:
        """Return the number of the first event for who listens from now on, what it has missed, and where that is.

        Args:
            position: what it saw last, None for the present. Where nobody knows it any more, something was missed.

        Raises:
            StoreError: when the store cannot be read.
        """
        async with self._looking:
            for _ in range(_ATTEMPTS):
                state = await self._look()
                if position is None or position == state.position:
                    return self.told, [], state.position
                since = await self._ask(lambda: self._store.find_state(position))
                if since is None:
                    break
                changes = await self._ask(partial(self._store.changes, since))
                if changes.state.position == state.position:
                    missed = [] if changes.is_complete else [(_MISSED, None)]
                    return self.told, [*missed, *_describe(changes.names)], state.position
            return self.told, [(_MISSED, state.position)], state.position

    async def wait(self, number: int, timeout_seconds: float, gone: "asyncio.Future[None]") -> bool:
        """Return whether there are events from ``number`` on, once there are, or after the time, or for who is gone.

        Raises:
            StoreError, RequestError: what has ended the watch.
        """
        if self._task is None:
            self._failure = None
            self._task = asyncio.create_task(self._run())
        if self.told <= number and self._failure is None:
            if self._change is None:
                self._change = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._change, gone), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.told > number:
            return True
        if self._failure is not None:
            raise self._failure
        return False

    def since(self, number: int) -> list[_Told]:
        """Return the events from ``number`` on; where some are forgotten, that they were missed, and the others."""
        forgotten = self.told - len(self._kept)
        missed: list[_Told] = [(_MISSED, None)] if number < forgotten else []
        return [*missed, *islice(self._kept, max(0, number - forgotten), None)]

    async def _run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        cancellation = Cancellation()
        with self._workers.cancellable(cancellation), cancellation.interrupting(_Stopper(loop, stop)):
            while self._failure is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await stop.wait()
                if stop.is_set():
                    self._failure = RequestError(503, "the daemon is shutting down")
                else:
                    try:
                        async with self._looking:
                            await self._look()
                    except StoreError as error:
                        self._failure = error
                    except Exception:
                        # Whoever listens would never be told that nobody looks any more.
                        LOGGER.exception("unexpected error in the watch of the store")
                        self._failure = RequestError(500, "internal error")
        self._task = self._state = None
        self._tell()

    async def _look(self) -> StoreState:
        """Look at the store, tell what is new, and return what it is now."""
        since = self._state
        if since is None:
            self._state = await self._ask(self._store.state)
            return self._state
        changes: StoreChanges = await self._ask(lambda: self._store.changes(since))
        new: list[_Told] = [] if changes.is_complete else [(_MISSED, None)]
        new += _describe(changes.names)
        if changes.has_pruned(since) and changes.state.pruned_at is not None:
            new.append(({"event": "prune", "time": _text_of(changes.state.pruned_at)}, changes.state.position))
        self._state = changes.state
        if new:
            self._kept.extend(new)
            self.told += len(new)
            self._tell()
        return changes.state

    async def _ask(self, call: Callable[[], T]) -> T:
        return await self._workers.run(self._workers.reading, call)

    def _tell(self) -> None:
        if self._change is not None:
            self._change.set_result(None)
            self._change = None


class _Stopper:
    """Ends the watch with the daemon."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        self._loop = loop
        self._stop = stop

    def interrupt(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)


class ChangesAnswer(Response):
    """What happens in the store as an answer that ends with its client, or with the daemon."""

    def __init__(self, watch: Watch, form: Form, position: str | None) -> None:
        super().__init__(media_type=form, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._watch = watch
        self._form = form
        self._position = position

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what happens."""
        gone = asyncio.ensure_future(pass_over(receive))
        try:
            with self._watch.listening():
                number, before, position = await self._watch.begin(self._position)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if scope["method"] == "HEAD":
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                # So that who is cut off before anything has happened knows from where to go on.
                here = f"id: {position}\n\n".encode() if self._form == SERVER_SENT else b""
                await self._send(send, self._encode(before) + here)
                try:
                    await self._tell(number, send, gone)
                except (StoreError, RequestError) as error:
                    await self._send(send, encode_event(describe_failure(error, scope), self._form))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            if gone.done() and not gone.cancelled():
                gone.exception()

    async def _tell(self, number: int, send: Send, gone: "asyncio.Future[None]") -> None:
        while not gone.done():
            if await self._watch.wait(number, SILENCE_SECONDS, gone):
                news, number = self._watch.since(number), self._watch.told
                await self._send(send, self._encode(news))
            elif self._form == SERVER_SENT and not gone.done():
                await self._send(send, NOTHING_NEW)

    async def _send(self, send: Send, body: bytes) -> None:
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    def _encode(self, told: list[_Told]) -> bytes:
        return b"".join(encode_event(each, self._form, identity=position) for each, position in told)


def _describe(changes: tuple[NameChange, ...]) -> list[_Told]:
    told: list[_Told] = []
    for number, change in enumerate(changes):
        descriptor = change.after or change.before
        assert descriptor is not None  # one of the two there is
        is_last = number + 1 == len(changes) or changes[number + 1].position != change.position
        described = {
            "event": "image",
            "action": change.action,
            "name": change.name,
            "digest": str(descriptor.digest),
            "time": _text_of(change.time),
        }
        told.append((described, change.position if is_last else None))
    return told


def _text_of(seconds: float) -> str:
    """Return a time as RFC 3339 has it; a file may bear one that no date has, and the nearest is told then."""
    return (
        datetime.fromtimestamp(min(max(seconds, _DATES[0]), _DATES[1]), UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
