"""The command: read the settings, listen, serve until told to stop, and stop in time."""

import argparse
import errno
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from minibox_server.app import create_app
from minibox_server.connections import LISTEN_BACKLOG, Connections, accepted_at_once, room_for
from minibox_server.protocol import MAX_HEAD_BYTES, Protocol
from minibox_server.settings import (
    DEFAULT_ADDRESS,
    DEFAULT_CONNECTIONS,
    DEFAULT_DATA_ROOT,
    DEFAULT_IDLE_SECONDS,
    DEFAULT_PREFIXES,
    DEFAULT_REQUESTS,
    Settings,
    SettingsError,
    read_settings,
)
from minibox_server.workers import Workers

LOGGER = logging.getLogger("minibox_server")

# Within ten seconds of SIGTERM everything has ended: what is cancelled ends within one, what commits is let finish.
_GRACE_SECONDS = 7
_VARIABLES = f"""\
settings, all from the environment:
  MINIBOX_HTTP_ADDR         where to listen: host:port, :port, [IPv6]:port   ({DEFAULT_ADDRESS})
  MINIBOX_DATA_ROOT         the folder of the store                          ({DEFAULT_DATA_ROOT})
  MINIBOX_API_TOKEN         what each request must carry                     (none)
  MINIBOX_ALLOW_ANONYMOUS   1: others than this machine may ask without it   (0)
  MINIBOX_ALLOWED_HOSTS     further names that Host may have, by comma       (none)
  MINIBOX_ARCHIVE_PREFIXES  folders that archives lie in, by colon           ({DEFAULT_PREFIXES})
  MINIBOX_UNPACK            0: what is pulled is not unpacked to base_layers (1)
  MINIBOX_REGISTRIES        a file: what may be pulled from, mirrors, rules  (none)

limits, of each process; where one is passed the client is told so and has to go:
  MINIBOX_MAX_CONNECTIONS   how many connections there are at once; those
                            that ask nothing go first, then 503 is said      ({DEFAULT_CONNECTIONS})
  MINIBOX_MAX_REQUESTS      how many requests are answered at once; one more
                            gets 503 with Retry-After                        ({DEFAULT_REQUESTS})
  MINIBOX_IDLE_SECONDS      how long the head of a request may take, and how
                            long a client may ask nothing, send none of its
                            body, or take none of its answer                 ({DEFAULT_IDLE_SECONDS})
  A target has at most 16 KiB (414), headers 32 KiB and 100 in number (431), and a
  body that an endpoint does not ask for 64 KiB (413).
"""
_LOGGING: Mapping[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "loggers": {
        "minibox_server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "minibox_store": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}


class Server(uvicorn.Server):
    """uvicorn, which cancels what runs before it waits for it, and lets many connections wait to be accepted."""

    def __init__(self, config: uvicorn.Config, workers: Workers) -> None:
        super().__init__(config)
        self._workers = workers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve; what waits to be accepted may be more than what is accepted at once."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(LISTEN_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every operation, and then the server."""
        self._workers.cancel_operations()
        await super().shutdown(sockets)


def main() -> None:
    """Run the daemon; the exit status is 2 when it may not or cannot start, and 0 when it was told to stop."""
    parser = argparse.ArgumentParser(
        prog="minibox-server",
        description="The image store as a daemon.",
        epilog=_VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = read_settings()
        sockets = open_sockets(settings)
    except SettingsError as error:
        sys.stderr.write(f"minibox-server: {error}\n")
        sys.exit(2)
    serve(settings, sockets)


def serve(settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT, and end the process's work within ten seconds of it."""
    workers = Workers()
    most_connections = room_for(settings.max_connections)
    connections = Connections(most=most_connections, idle_seconds=settings.idle_seconds)
    config = uvicorn.Config(
        create_app(settings, workers=workers),
        http=Protocol.within(connections),
        ws="none",
        loop="asyncio",
        lifespan="off",
        workers=1,
        log_config=dict(_LOGGING),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=accepted_at_once(most_connections),
        timeout_keep_alive=math.ceil(settings.idle_seconds),
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    # uvicorn repeats the signal that ended it, for whoever was to have it otherwise: that is the regular end here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    protection = "a token is needed" if settings.token else "no token is needed"
    LOGGER.info("listening on %s, store in %s, %s", settings.address, settings.data_root, protection)
    if most_connections < settings.max_connections:
        LOGGER.warning("there are descriptors for %d connections only (ulimit -n)", most_connections)
    try:
        Server(config, workers).run(sockets)
    finally:
        if workers.running:
            # Threads that wait for something which cannot be cancelled; the store bears it, as it bears a crash.
            LOGGER.warning("%d calls did not end in time", workers.running)
            logging.shutdown()
            os._exit(0)


def open_sockets(settings: Settings) -> list[socket.socket]:
    """Return sockets that listen where the settings say.

    Raises:
        SettingsError: when the address cannot be had.
    """
    try:
        if not settings.host:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            return [_hurried(socket.create_server(("", settings.port), family=family, dualstack_ipv6=dual))]
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets = [_listen(family, address) for family, _, _, _, address in found]
        if not any(sockets):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return [each for each in sockets if each is not None]
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen on {settings.address} (MINIBOX_HTTP_ADDR): {problem}") from error


def _listen(family: int, address: Any) -> socket.socket | None:
    try:
        return _hurried(socket.create_server(address, family=family))
    except OSError as error:
        # The other address of a name such as localhost may be of a family that this machine does not have.
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise


def _hurried(listening: socket.socket) -> socket.socket:
    """Let each connection that is accepted send what it has at once: asyncio does so with its own sockets alone."""
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
