"""An ASGI application asked in the running loop: its answer is read as it comes, and its client may go at any time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.types import ASGIApp, Message

_WAIT_SECONDS = 60.0


class Exchange:
    """One request, and what has come of its answer.

    Attributes:
        status: of the answer, None until it has begun.
        headers: of the answer, in lower case.
        pieces: of the body, as they were sent.
        task: the application's own.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.is_whole = False
        self.task: Awaitable[None]
        self._reads = reads
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._asked = False

    async def receive(self) -> Message:
        """Return an empty body once, and that the client has gone when it has."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message of the answer; never return from one of a body when nobody reads."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            assert not self.is_whole, "a server takes nothing behind the end of an answer"
            if not self._reads:
                await self._gone.wait()
            self.pieces.append(message["body"])
            self.is_whole = not message.get("more_body", False)
        self._news.set()

    def leave(self) -> None:
        """Let the client go away."""
        self._gone.set()

    @property
    def body(self) -> bytes:
        """What has come so far."""
        return b"".join(self.pieces)

    def events(self) -> list[dict[str, Any]]:
        """Return the whole lines of JSON, or the server-sent events, that have come so far."""
        if self.headers["content-type"].startswith("text/event-stream"):
            return [event for _, event in parse_server_sent(self.body.decode())]
        return [json.loads(line) for line in self.body.decode().split("\n")[:-1]]

    async def until(self, text: str) -> None:
        """Return when ``text`` has come in the body."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while text not in self.body.decode():
                self._news.clear()
                await self._news.wait()

    async def started(self) -> None:
        """Return when the status has come."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while self.status is None:
                self._news.clear()
                await self._news.wait()

    async def end(self) -> "Exchange":
        """Return this when the answer is whole, or the application has done with it."""
        async with asyncio.timeout(_WAIT_SECONDS):
            await self.task
        return self


@contextlib.asynccontextmanager
async def asking(
    app: ASGIApp,
    method: str,
    path: str,
    query: Mapping[str, str] | None = None,
    *,
    accept: str | None = None,
    headers: Mapping[str, str] | None = None,
    reads: bool = True,
) -> AsyncIterator[Exchange]:
    """Send a request, and let its client go away with the end of the block; one that does not read takes no body."""
    given = {"host": "127.0.0.1:8080", **({"accept": accept} if accept else {}), **(headers or {})}
    exchange = Exchange(reads=reads)
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query or {}).encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
    }
    exchange.task = asyncio.ensure_future(app(scope, exchange.receive, exchange.send))
    try:
        yield exchange
    finally:
        exchange.leave()
        await exchange.end()


def parse_server_sent(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the kind and the data of each event of a stream of server-sent events; what is not of its form fails."""
    parsed = []
    for block in text.split("\n\n")[:-1]:
        lines = block.split("\n")
        if all(line.startswith(":") for line in lines):
            continue
        if len(lines) == 1 and lines[0].startswith("id: "):
            continue  # of no kind, it only says where to go on
        fields = dict(line.split(": ", 1) for line in lines)
        assert set(fields) <= {"id", "event", "data"}, block
        parsed.append((fields["event"], json.loads(fields["data"])))
    return parsed
