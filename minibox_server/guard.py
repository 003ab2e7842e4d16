"""The wrapper around the whole application: what holds for every request and for every answer.

Each request passes :mod:`minibox_server.security` before anything else sees it. Each answer carries the headers that
all answers carry, an error that nobody caught becomes one sentence, and one line goes to the log: the path without
its query, and no header, so that no secret can be in it.
"""

import asyncio
import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minibox_server.declarations import EndpointTable
from minibox_server.responses import DISTRIBUTION_VERSION, RequestError, error_response, is_distribution
from minibox_server.security import Security, body_too_large, headers_of
from minibox_server.settings import Settings
from minibox_store import one_line

_ACCESS = logging.getLogger("minibox_server.access")
LOGGER = logging.getLogger("minibox_server")

_PIECE_BYTES = 128 * 1024


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, settings: Settings, endpoints: EndpointTable) -> None:
        self._app = app
        self._security = Security(settings)
        self._endpoints = endpoints
        self._most_requests = settings.max_requests
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it; other kinds of connections are not served."""
        if scope["type"] == "http":
            # What is open is quickly answered; and who asks whether the daemon lives must not hear that it is busy.
            is_full = self._requests >= self._most_requests and not self._endpoints.is_open(scope)
            self._requests += 1
            try:
                exchange = _Exchange(scope, receive, send, self._endpoints)
                await exchange.run(_say_busy if is_full else self._app, self._security)
            finally:
                self._requests -= 1
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
        self._status: int | None = None
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
            LOGGER.exception("unexpected error in %s %s", self._scope["method"], one_line(self._scope["path"]))
            # An answer that has begun is cut short: whoever reads it sees that it is not whole.
            if self._status is None:
                await self._answer(error)
        finally:
            self._log()

    async def receive(self) -> Message:
        message = await self._receive()
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
            if is_distribution(self._scope["path"]):
                name, value = DISTRIBUTION_VERSION
                headers[name] = value
        body = message.get("body", b"") if message["type"] == "http.response.body" else b""
        if len(body) <= _PIECE_BYTES:
            await self._send(message)
            return
        # Between two pieces a client that is slow is waited for: no connection has more than one of its own in memory.
        for offset in range(0, len(body), _PIECE_BYTES):
            is_last = offset + _PIECE_BYTES >= len(body)
            piece = body[offset : offset + _PIECE_BYTES]
            await self._send({**message, "body": piece, "more_body": not is_last or message.get("more_body", False)})

    async def _answer(self, error: Exception) -> None:
        response = error_response(error, self._scope)
        if self._has_body():
            # Its body is still on the way; who was refused need not be listened to.
            response.headers["Connection"] = "close"
        await response(self._scope, self._receive, self.send)

    def _has_body(self) -> bool:
        lengths = headers_of(self._scope, b"content-length")
        return bool(headers_of(self._scope, b"transfer-encoding")) or any(length != b"0" for length in lengths)

    def _log(self) -> None:
        client = self._scope.get("client") or ("-",)
        _ACCESS.info(
            '%s "%s %s" %s %.0f ms',
            client[0],
            one_line(self._scope["method"]),
            one_line(self._scope["path"]),
            self._status,
            (time.monotonic() - self._started) * 1000,
        )
