"""The wrapper around the whole application: what holds for every request and for every answer.

Each request passes :mod:`minibox_server.security` before anything else sees it. Each answer carries the headers that
all answers carry, the request's id among them, an error that nobody caught becomes one sentence, and one line goes to
the log, as :mod:`minibox_server.logs` has it.
"""

import asyncio
import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minibox_server.declarations import EndpointTable
from minibox_server.logs import REQUEST_ID_HEADER, RequestRecord, choose_request_id, set_request_id
from minibox_server.metrics import Metrics
from minibox_server.responses import DISTRIBUTION_VERSION, RequestError, error_response, is_distribution
from minibox_server.security import Security, body_too_large, headers_of
from minibox_server.settings import Settings
from minibox_server.zero_copy import EXTENSION as ZERO_COPY
from minibox_store import one_sentence

LOGGER = logging.getLogger("minibox_server")

_PIECE_BYTES = 128 * 1024


class Guard:
    """An ASGI application around another one; ``metrics`` counts the requests."""

    def __init__(
        self, app: ASGIApp, settings: Settings, endpoints: EndpointTable, metrics: Metrics | None = None
    ) -> None:
        self._app = app
        self._security = Security(settings)
        self._endpoints = endpoints
        self._most_requests = settings.max_requests
        self._requests = 0
        self._metrics = metrics or Metrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it; other kinds of connections are not served."""
        if scope["type"] == "http":
            # What is open is quickly answered; and who asks whether the daemon lives must not hear that it is busy.
            is_full = self._requests >= self._most_requests and not self._endpoints.is_open(scope)
            self._requests += 1
            self._metrics.request_began()
            exchange = _Exchange(scope, receive, send, self._endpoints)
            try:
                await exchange.run(_say_busy if is_full else self._app, self._security)
            finally:
                self._requests -= 1
                record = exchange.record()
                record.log()
                self._metrics.request_ended(record)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._app(scope, receive, send)


async def _say_busy(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(503, "there are too many requests at once", {"Retry-After": "1"})


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, endpoints: EndpointTable) -> None:
        self._endpoints = endpoints
        self._most_body_bytes: int | None = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_bytes = 0
        self._sent_bytes = 0
        self._is_whole = False
        self._has_gone = False
        self._status: int | None = None
        self._id = choose_request_id(scope)
        set_request_id(self._id)
        self._started = time.monotonic()

    async def run(self, app: ASGIApp, security: Security) -> None:
        try:
            security.check(self._scope, self._endpoints)
            if self._has_body():
                self._most_body_bytes = self._endpoints.most_body_bytes(self._scope)
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            # The server ends, and waits for nobody any more; with this the task has ended as well as it can.
            if self._status is None:
                await self._answer(RequestError(503, "the daemon is shutting down", {"Retry-After": "5"}))
        except RequestError as error:
            await self._answer(error)
        except Exception as error:
            LOGGER.exception(
                "unexpected error in %s %s", one_sentence(self._scope["method"]), one_sentence(self._scope["path"])
            )
            # An answer that has begun is cut short: whoever reads it sees that it is not whole.
            if self._status is None:
                await self._answer(error)

    async def receive(self) -> Message:
        message = await self._receive()
        self._has_gone |= message["type"] == "http.disconnect" and not self._is_whole
        # A body that is passed over costs nothing; but nobody may keep the daemon reading for ever.
        self._body_bytes += len(message.get("body", b""))
        if self._most_body_bytes is not None and self._body_bytes > self._most_body_bytes:
            raise body_too_large(self._most_body_bytes)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers[REQUEST_ID_HEADER] = self._id
            if is_distribution(self._scope["path"]):
                name, value = DISTRIBUTION_VERSION
                headers[name] = value
        if message["type"] != "http.response.body":
            await self._send(message)
            if message["type"] == ZERO_COPY:
                self._note_sent(message["count"], is_last=not message.get("more_body", False))
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        # Between two pieces a client that is slow is waited for: no connection has more than one of its own in memory.
        for offset in range(0, len(body) or 1, _PIECE_BYTES):
            piece = body[offset : offset + _PIECE_BYTES]
            is_end = is_last and offset + _PIECE_BYTES >= len(body)
            await self._send({**message, "body": piece, "more_body": not is_end})
            self._note_sent(len(piece), is_last=is_end)

    def _note_sent(self, count: int, *, is_last: bool) -> None:
        self._sent_bytes += 0 if self._scope["method"] == "HEAD" else count
        self._is_whole = is_last

    async def _answer(self, error: Exception) -> None:
        response = error_response(error, self._scope)
        if self._has_body():
            # Its body is still on the way; who was refused need not be listened to.
            response.headers["Connection"] = "close"
        await response(self._scope, self._receive, self.send)

    def record(self) -> RequestRecord:
        """Return what is told of it, once it is over."""
        endpoint = self._endpoints.find(self._scope)
        return RequestRecord(
            client=(self._scope.get("client") or ("-",))[0],
            method=self._scope["method"],
            path=self._scope["path"],
            route=None if endpoint is None else endpoint.path,
            status=self._status,
            bytes_in=self._body_bytes,
            bytes_out=self._sent_bytes,
            seconds=time.monotonic() - self._started,
            is_whole=self._is_whole and not self._has_gone,
        )

    def _has_body(self) -> bool:
        lengths = headers_of(self._scope, b"content-length")
        return bool(headers_of(self._scope, b"transfer-encoding")) or any(length != b"0" for length in lengths)
