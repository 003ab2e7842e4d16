"""A connection that has to agree on TLS first: it counts as one from its first moment, and may not take its time.

A server that agrees on TLS by itself shows a connection only when that is done; until then nobody counts it, and
whoever opens thousands and says nothing takes every descriptor.
"""

import asyncio
import ssl
from collections.abc import Callable, Hashable
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from minibox_server.connections import Connections
from minibox_server.protocol import Protocol

# How long the other side may take to say that it has heard the end.
_SHUTDOWN_SECONDS = 5.0


class TlsFirst(asyncio.Protocol):
    """What stands on a connection until TLS is agreed on; then the protocol of HTTP takes its place."""

    context: ssl.SSLContext
    inner: type[Protocol]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Do as uvicorn's protocols, whose arguments these are."""
        self._make: Callable[[], Protocol] = lambda: self.inner(config, server_state, app_state, _loop)
        self._connections: Connections = self.inner.connections_of_process
        self._transport: asyncio.Transport | None = None
        self._agreeing: asyncio.Task[None] | None = None
        self._early = bytearray()
        self._is_lost = False

    @classmethod
    def before(cls, inner: type[Protocol], context: ssl.SSLContext) -> "type[TlsFirst]":
        """Return this protocol for one that follows it, and what TLS is spoken with."""
        return type("TlsFirst", (cls,), {"inner": inner, "context": context})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to agree; where there are too many connections, there is nobody to tell it to yet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._connections.admit(self):
            self._agreeing = asyncio.get_running_loop().create_task(self._agree(transport))
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of it."""
        self._is_lost = True
        self._connections.forget(self)

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the one that it is for."""
        self._early += data

    def owes(self) -> Hashable:
        """Return what the client is waited for."""
        return "agreement"

    def time_out(self) -> None:
        """End it."""
        self.make_room()

    def make_room(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()

    async def _agree(self, transport: asyncio.Transport) -> None:
        try:
            agreed = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self.context,
                server_side=True,
                ssl_handshake_timeout=self._connections.idle_seconds,
                ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            )
        except OSError:
            transport.abort()
            return
        finally:
            self._connections.forget(self)
        if agreed is None or self._is_lost:
            transport.abort()
            return
        protocol = self._make()
        agreed.set_protocol(protocol)
        protocol.connection_made(agreed)
        if self._early:
            protocol.data_received(bytes(self._early))
