"""A pull as the answer that tells of it."""

import asyncio
import logging

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minibox_server.responses import RequestError
from minibox_server.workers import Workers
from minibox_store import Cancellation, Event, Platform, Store, StoreError, one_line, render_line

LOGGER = logging.getLogger("minibox_server")


class PullAnswer(Response):
    """A pull as the answer that tells of it: each line is sent as it happens, and the last one says how it ended."""

    def __init__(self, store: Store, workers: Workers, name: str, platform: Platform, *, unpack: bool) -> None:
        super().__init__(media_type="text/plain")
        del self.headers["content-length"]
        self._store = store
        self._workers = workers
        self._name = name
        self._platform = platform
        self._unpack = unpack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pull, and send the answer."""
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        pulling = asyncio.create_task(self._pull(receive, lines))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (line := await lines.get()) is not None:
                await send({"type": "http.response.body", "body": f"{line}\n".encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            pulling.cancel()

    async def _pull(self, receive: Receive, lines: "asyncio.Queue[str | None]") -> None:
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            # Only what makes a line crosses into the loop: the steps of a blob's bytes are far too many.
            line = render_line(event)
            if line is not None:
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def call(cancellation: Cancellation) -> None:
            self._store.pull(
                self._name,
                platform=self._platform,
                unpack=self._unpack,
                on_event=on_event,
                cancellation=cancellation,
            )

        try:
            await self._workers.run_operation(self._workers.pulling, receive, call)
            lines.put_nowait("[pull] Done")
        except (StoreError, RequestError) as error:
            lines.put_nowait(one_line(f"[error] pull failed: {error}"))
        except Exception:
            LOGGER.exception("unexpected error in a pull")
            lines.put_nowait("[error] pull failed: internal error")
        finally:
            lines.put_nowait(None)
