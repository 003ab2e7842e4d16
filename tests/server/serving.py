"""An application of a test, served in this process by the daemon's protocol and within its limits."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from minibox_server.connections import Connections
from minibox_server.protocol import MAX_HEAD_BYTES, Protocol
from minibox_server.tls_connections import TlsFirst

_BEGIN_SECONDS = 60.0


@contextlib.contextmanager
def serving(
    app: ASGIApp, *, most: int = 100, idle_seconds: float = 60.0, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve an application on a port of 127.0.0.1 as long as the block runs, and give the port."""
    protocol = Protocol.within(Connections(most=most, idle_seconds=idle_seconds))
    config = uvicorn.Config(
        app,
        http=protocol if tls is None else TlsFirst.before(protocol, tls),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + _BEGIN_SECONDS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
