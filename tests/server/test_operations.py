"""An operation and its answer: in each form, joined, left, and ended exactly once."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minibox_server.api.feeds import SERVER_SENT
from minibox_server.api.operations import Operations, StreamAnswer
from minibox_server.api.pulls import PullAnswer
from minibox_server.api.running import Call, Running
from minibox_server.responses import RequestError, error_response
from minibox_server.workers import Workers
from minibox_store import (
    BlobAdvanced,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    Cancellation,
    Cancelled,
    Descriptor,
    Digest,
    Event,
    EventListener,
    ImageNotFound,
    ManifestChosen,
    RegistryWarning,
    ResolvingName,
    StoreError,
    StoreFull,
)
from tests.support.asgi import asking

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
MANIFEST = Descriptor(media_type="application/x", digest=Digest.of(b"manifest"), size_bytes=8)
LAYER = Descriptor(media_type="application/y", digest=Digest.of(b"layer"), size_bytes=500)
CHOSEN = ManifestChosen(name="app:1", descriptor=MANIFEST)
COUNTED = BlobsCounted(count=1, size_bytes=500)
STARTED = BlobStarted(descriptor=LAYER, role="layer", position=1, total=1, offset_bytes=0)
STORED = BlobStored(descriptor=LAYER, role="layer", position=1, total=1)


def application(call: Call, *, key: str | None = None, workers: Workers | None = None) -> ASGIApp:
    """Return an application of one operation, whatever the path."""
    workers = workers or Workers()
    operations = Operations(workers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await operations.answer(
                request,
                doing="pull",
                limiter=workers.pulling,
                call=call,
                plain=lambda result: JSONResponse({"plainly": result}),
                key=key,
            )
        except (StoreError, RequestError) as error:
            response = error_response(error, scope)
        await response(scope, receive, send)

    return app


class Script:
    """A call that tells events as the test lets it, and counts how often it was begun."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.begun = 0
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        self._listener: EventListener
        self._error = error
        self._is_there = threading.Event()
        self._may_end = threading.Event()

    def __call__(self, on_event: EventListener, cancellation: Cancellation) -> dict[str, object]:
        self.begun += 1
        self._listener = on_event
        self._is_there.set()
        try:
            while not self._may_end.wait(0.01):
                if cancellation.is_cancelled:
                    self.cancelled.set()
                    raise Cancelled
            if self._error is not None:
                raise self._error
            return {"name": "app:1"}
        finally:
            self.ended.set()

    async def tell(self, *events: Event) -> None:
        await asyncio.to_thread(self._is_there.wait, 10)
        for event in events:
            await asyncio.to_thread(self._listener, event)

    def end(self) -> None:
        self._may_end.set()


def at_once(*events: Event, error: Exception | None = None) -> Call:
    """Return a call that tells these and ends."""

    def call(on_event: EventListener, cancellation: Cancellation) -> dict[str, object]:
        for event in events:
            on_event(event)
        if error is not None:
            raise error
        return {"name": "app:1"}

    return call


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html, application/x-ndjson;q=0"])
def test_a_client_that_wants_no_stream_gets_the_result_when_it_is_there(accept: str | None) -> None:
    async def test() -> None:
        async with asking(application(at_once(CHOSEN)), "POST", "/", accept=accept) as exchange:
            await exchange.end()
        assert (exchange.status, exchange.body) == (200, b'{"plainly":{"name":"app:1"}}')

    run(test)


@pytest.mark.parametrize("accept", [NDJSON, SSE, f"application/json;q=0.5, {NDJSON}", f"{SSE}, {NDJSON}"])
def test_a_stream_tells_what_was_resolved_then_each_blob_and_last_the_result(accept: str) -> None:
    async def test() -> None:
        call = at_once(ResolvingName(name="app:1"), CHOSEN, COUNTED, STARTED, STORED)
        async with asking(application(call), "POST", "/", accept=accept) as exchange:
            await exchange.end()
        assert exchange.status == 200
        form = SSE if accept.startswith(SSE) else NDJSON
        assert exchange.headers["content-type"].partition(";")[0] == form
        assert exchange.headers["cache-control"] == "no-store"
        assert "content-length" not in exchange.headers
        assert exchange.events() == [
            {
                "event": "resolved",
                "name": "app:1",
                "digest": str(MANIFEST.digest),
                "media_type": "application/x",
            },
            {
                "event": "blob",
                "digest": str(LAYER.digest),
                "role": "layer",
                "position": 1,
                "total": 1,
                "phase": "stored",
                "done_bytes": 500,
                "size_bytes": 500,
                "resumed_bytes": 0,
                "attempt": 1,
            },
            {"event": "progress", "phase": "moving", "done_bytes": 500, "total_bytes": 500},
            {"event": "result", "name": "app:1"},
        ]

    run(test)


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_what_fails_before_it_is_resolved_has_a_status_of_its_own(accept: str) -> None:
    async def test() -> None:
        call = at_once(ResolvingName(name="app"), RegistryWarning(host="a", text="b"), error=ImageNotFound(name="app"))
        async with asking(application(call), "POST", "/", accept=accept) as exchange:
            await exchange.end()
        assert exchange.status == 404
        assert exchange.headers["content-type"] == "application/problem+json"
        assert b'"status":404' in exchange.body

    run(test)


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_what_fails_later_ends_the_stream_with_the_same_words(accept: str) -> None:
    async def test() -> None:
        call = at_once(CHOSEN, error=StoreFull("/data"))
        async with asking(application(call), "POST", "/", accept=accept) as exchange:
            await exchange.end()
        assert exchange.status == 200
        last = exchange.events()[-1]
        assert last == {
            "event": "error",
            "status": 507,
            "title": "Insufficient Storage",
            "detail": str(StoreFull("/data")),
        }
        assert [each["event"] for each in exchange.events()] == ["resolved", "error"]

    run(test)


def test_an_unexpected_error_is_logged_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        for events in ((), (CHOSEN,)):
            call = at_once(*events, error=ZeroDivisionError("secret"))
            async with asking(application(call), "POST", "/", accept=NDJSON) as exchange:
                await exchange.end()
            assert exchange.status == (200 if events else 500)
            assert b"internal error" in exchange.body
            assert b"secret" not in exchange.body

    run(test)
    assert caplog.text.count("ZeroDivisionError: secret") == 2


def test_a_stream_tells_each_thing_while_it_happens() -> None:
    async def test() -> None:
        script = Script()
        async with asking(application(script), "POST", "/", accept=NDJSON) as exchange:
            await script.tell(ResolvingName(name="app:1"))
            await asyncio.sleep(0.05)
            assert exchange.status is None
            await script.tell(CHOSEN)
            await exchange.until("resolved")
            assert exchange.status == 200
            await script.tell(STARTED, BlobAdvanced(digest=LAYER.digest, done_bytes=200, size_bytes=500))
            await exchange.until('"done_bytes":200')
            script.end()
            await exchange.end()
        assert exchange.events()[-1] == {"event": "result", "name": "app:1"}

    run(test)


@pytest.mark.parametrize(
    "answer_of",
    [PullAnswer, lambda running: StreamAnswer(running, SERVER_SENT)],
    ids=["text", "events"],
)
def test_what_ends_while_a_client_takes_a_piece_is_told_of_right_after_it(
    answer_of: Callable[[Running], ASGIApp],
) -> None:
    async def test() -> None:
        script, workers = Script(), Workers()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            running = Operations(workers).join(
                doing="pull",
                limiter=workers.pulling,
                call=lambda progress, cancellation: script(progress.on_event, cancellation),
            )

            async def send_slowly(message: Message) -> None:
                await send(message)
                if message.get("more_body"):
                    script.end()
                    while not running.is_done:
                        await running.change

            await answer_of(running)(scope, receive, send_slowly)

        async with asking(app, "POST", "/") as exchange:
            await script.tell(CHOSEN)
            await exchange.end()
        assert exchange.is_whole
        assert b"nothing new" not in exchange.body, "it was waited for what had been"

    run(test)


def test_who_asks_for_the_same_joins_and_sees_the_state_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibox_server.api.operations.SILENCE_SECONDS", 3600)

    async def test() -> None:
        script = Script()
        app = application(script, key="same")
        async with asking(app, "POST", "/", accept=NDJSON) as first:
            await script.tell(CHOSEN, STARTED, BlobAdvanced(digest=LAYER.digest, done_bytes=200, size_bytes=500))
            await first.until('"done_bytes":200')
            async with asking(app, "POST", "/", accept=SSE) as second:
                await second.until('"done_bytes":200')
                state: list[dict[str, Any]] = second.events()
                await script.tell(STORED)
                script.end()
                await first.end()
                await second.end()
        assert [each["event"] for each in state] == ["resolved", "blob", "progress"]
        assert b"nothing new" not in second.body
        assert script.begun == 1
        for exchange in (first, second):
            assert exchange.events()[-1] == {"event": "result", "name": "app:1"}
            assert [each["event"] for each in exchange.events()].count("result") == 1
        async with asking(app, "POST", "/", accept=NDJSON) as third:
            await third.end()
        assert script.begun == 2

    run(test)


def test_an_operation_goes_on_while_anybody_listens_and_is_cancelled_with_the_last() -> None:
    async def test() -> None:
        script = Script()
        app = application(script, key="same")
        async with asking(app, "POST", "/", accept=NDJSON) as first:
            await script.tell(CHOSEN)
            async with asking(app, "POST", "/") as second:
                await first.until("resolved")
                first.leave()
                await first.end()
                await asyncio.sleep(0.1)
                assert not script.cancelled.is_set()
                second.leave()
                await second.end()
        assert await asyncio.to_thread(script.cancelled.wait, 60)
        assert script.begun == 1

    run(test)


def test_who_comes_after_the_last_has_gone_begins_anew() -> None:
    async def test() -> None:
        script = Script()
        app = application(script, key="same")
        async with asking(app, "POST", "/", accept=NDJSON):
            await script.tell(CHOSEN)
        async with asking(app, "POST", "/", accept=NDJSON) as second:
            script.end()
            await second.end()
        assert second.events()[-1]["event"] == "result"
        assert script.begun == 2

    run(test)


def test_an_error_goes_to_all() -> None:
    async def test() -> None:
        script = Script(error=StoreFull("/data"))
        app = application(script, key="same")
        async with (
            asking(app, "POST", "/", accept=NDJSON) as first,
            asking(app, "POST", "/", accept=SSE) as second,
            asking(app, "POST", "/") as third,
        ):
            await script.tell(CHOSEN)
            script.end()
            for exchange in (first, second, third):
                await exchange.end()
        assert first.events()[-1] == second.events()[-1]
        assert first.events()[-1]["status"] == third.status == 507

    run(test)


def test_the_end_of_the_daemon_ends_the_stream_with_an_error() -> None:
    async def test() -> None:
        script, workers = Script(), Workers()
        async with asking(application(script, workers=workers), "POST", "/", accept=NDJSON) as exchange:
            await script.tell(CHOSEN)
            await exchange.until("resolved")
            workers.cancel_operations()
            await exchange.end()
        assert exchange.events()[-1]["event"] == "error"
        assert exchange.events()[-1]["status"] == 503

    run(test)


def test_pulls_for_which_there_is_no_thread_say_how_many_come_first_until_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minibox_server.api.operations._PLACE_SECONDS", 0.01)
    script = Script()
    workers = Workers()
    workers.pulling.total_tokens = 2
    operations = Operations(workers)

    def join() -> Running:
        return operations.join(
            doing="pull",
            limiter=workers.pulling,
            call=lambda progress, cancellation: script(progress.on_event, cancellation),
        )

    async def test() -> None:
        async def disconnect() -> Message:
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        with ExitStack() as stack:
            pulls = [join() for _ in range(4)]
            listeners = [stack.enter_context(pull.listening(disconnect)) for pull in (pulls[0], pulls[1], pulls[3])]
            leaving = stack.enter_context(ExitStack())
            leaving.enter_context(pulls[2].listening(disconnect))
            while not pulls[3].lines.count:
                await listeners[2].wait(1)
            assert [pull.lines.since(0) for pull in pulls] == [
                [],
                [],
                ["[pull] waiting: 2 pulls are ahead"],
                ["[pull] waiting: 3 pulls are ahead"],
            ]
            leaving.close()
            del pulls[2]
            while pulls[2].lines.count == 1:
                await listeners[2].wait(1)
            assert pulls[2].lines.since(1) == ["[pull] waiting: 2 pulls are ahead"]
            script.end()
            for pull, listener in zip(pulls, listeners, strict=True):
                assert await listener.result() == {"name": "app:1"}
                assert b"waiting" not in pull.feed.since(0, "application/x-ndjson")

    run(test)


@pytest.mark.parametrize("ending", ["done", "failed", "gone", "refused", "gone before it had a thread"])
def test_nothing_of_an_operation_waits_for_the_collector_once_it_is_over(ending: str) -> None:
    """Hundreds may end at once: what refers to itself would keep the memory of all of them for long."""

    def call(on_event: EventListener, cancellation: Cancellation) -> dict[str, object]:
        on_event(CHOSEN)
        if ending == "failed":
            raise ImageNotFound("app:1")
        if ending in ("gone", "refused"):
            with pytest.raises(Cancelled):
                cancellation.wait(60)
        return {}

    async def receive() -> Message:
        if ending == "refused":
            raise RequestError(408, "too slow")
        if ending.startswith("gone"):
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}
        await asyncio.sleep(60)
        raise AssertionError("nobody came")

    async def send(message: Message) -> None:
        pass

    async def ask() -> None:
        workers = Workers()
        if ending.endswith("thread"):
            workers.pulling.total_tokens = 1
            workers.pulling.acquire_on_behalf_of_nowait(workers)
        await application(call, workers=workers)(
            {"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send
        )

    def running() -> int:
        return sum(isinstance(each, Running) for each in gc.get_objects())

    async def count() -> int:
        await ask()
        await asyncio.sleep(0.3)  # the thread, and the last tick
        gc.collect()
        gc.disable()
        try:
            before = running()
            await ask()
            async with asyncio.timeout(60):
                while running() > before:  # the thread, and the last tick
                    await asyncio.sleep(0.05)
            return running() - before
        finally:
            gc.enable()

    assert asyncio.run(count()) == 0
