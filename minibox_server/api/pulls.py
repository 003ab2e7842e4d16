"""A pull, and the answer that tells of it line by line."""

from collections.abc import Mapping

import attrs
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minibox_server.api.descriptions import describe_image
from minibox_server.api.operations import Operations
from minibox_server.api.progress import Progress
from minibox_server.api.running import Listener, ProgressingCall, Running
from minibox_server.responses import RequestError
from minibox_server.transfers import Transfers
from minibox_store import (
    Cancellation,
    Event,
    EventListener,
    ManifestChosen,
    Platform,
    Store,
    StoreError,
    one_sentence,
)


@attrs.frozen(kw_only=True)
class Pull:
    """The pull of an image, which is described then as GET /images does.

    Attributes:
        name: what is pulled, and what it is called.
        platform: which manifest of an index.
        unpack: whether it is unpacked too.
    """

    name: str
    platform: Platform
    unpack: bool

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it."""
        pulled = store.pull(
            self.name, platform=self.platform, unpack=self.unpack, on_event=on_event, cancellation=cancellation
        )
        return describe_image(pulled)


def pull_call(transfers: Transfers, operations: Operations, pull: Pull) -> ProgressingCall:
    """Return what pulls an image, in its turn."""

    def call(progress: Progress, cancellation: Cancellation) -> Mapping[str, object]:
        with operations.pull_turns.taking(cancellation) as turn:

            def on_event(event: Event) -> None:
                progress.on_event(event)
                if isinstance(event, ManifestChosen):  # from here on bytes move
                    turn.wait(progress.wait_behind)

            return transfers.run(pull, on_event, cancellation)

    return call


class PullAnswer(Response):
    """A pull as the answer that tells of it: each line is sent as it happens, and the last one says how it ended."""

    def __init__(self, running: Running) -> None:
        super().__init__(media_type="text/plain")
        del self.headers["content-length"]
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer while the pull goes on."""
        with self._running.listening(receive) as listener:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._tell(listener, send)
                last = "[pull] Done"
            except (StoreError, RequestError) as error:
                last = one_sentence(f"[error] pull failed: {error}")
            await send({"type": "http.response.body", "body": f"{last}\n".encode(), "more_body": False})

    async def _tell(self, listener: Listener, send: Send) -> None:
        running, seen = self._running, 0
        while True:
            is_done, lines, seen = running.is_done, running.lines.since(seen), running.lines.count
            for line in lines:
                await send({"type": "http.response.body", "body": f"{line}\n".encode(), "more_body": True})
            if lines:
                continue
            if is_done:
                running.result()
                return
            await listener.wait()
