"""The command: read the settings, listen, serve until told to stop, and stop in time."""

import argparse
import asyncio
import contextlib
import logging
import logging.config
import math
import os
import signal
import socket
import ssl
import sys
from types import FrameType
from typing import NoReturn

import attrs
import uvicorn

from minibox_server.activation import Activation, take_activation
from minibox_server.app import create_app
from minibox_server.configuration import check_configuration, version
from minibox_server.connections import LISTEN_BACKLOG, Connections, accepted_at_once, room_for
from minibox_server.listening import Listening, listen
from minibox_server.logs import logging_settings
from minibox_server.processes import Processes
from minibox_server.protocol import MAX_HEAD_BYTES, Protocol
from minibox_server.settings import (
    DEFAULT_ADDRESS,
    DEFAULT_CONNECTIONS,
    DEFAULT_DATA_ROOT,
    DEFAULT_IDLE_SECONDS,
    DEFAULT_PREFIXES,
    DEFAULT_PULLS,
    DEFAULT_READY_FREE_BYTES,
    DEFAULT_REQUESTS,
    Settings,
    SettingsError,
    read_settings,
)
from minibox_server.tls import open_context, reload_context
from minibox_server.tls_connections import TlsFirst
from minibox_server.transfer_processes import Nursery, ProcessTransfers
from minibox_server.transfers import store_opener
from minibox_server.workers import Workers

LOGGER = logging.getLogger("minibox_server")

# Within ten seconds of SIGTERM everything has ended: what is cancelled ends within one, what commits is let finish.
_GRACE_SECONDS = 7
_ENDING = (signal.SIGTERM, signal.SIGINT)
_HEARD = (*_ENDING, signal.SIGHUP)
_MOST_PROCESSES = 256
_VARIABLES = f"""\
settings, all from the environment:
  MINIBOX_HTTP_ADDR         where to listen: host:port, :port, [IPv6]:port   ({DEFAULT_ADDRESS})
                            or unix:/path
  MINIBOX_DATA_ROOT         the folder of the store                          ({DEFAULT_DATA_ROOT})
  MINIBOX_API_TOKEN         what each request must carry                     (none)
  MINIBOX_ALLOW_ANONYMOUS   1: others than this machine may ask without it   (0)
  MINIBOX_ALLOWED_HOSTS     further names that Host may have, by comma       (none)
  MINIBOX_ARCHIVE_PREFIXES  folders that archives lie in, by colon           ({DEFAULT_PREFIXES})
  MINIBOX_TLS_CERTIFICATE   the file of a certificate chain: speak TLS       (none)
  MINIBOX_TLS_KEY           the file of its private key                      (none)
  MINIBOX_UNPACK            0: what is pulled is not unpacked to base_layers (1)
  MINIBOX_REGISTRIES        a file: what may be pulled from, mirrors, rules  (none)
  MINIBOX_UPSTREAM          a registry that /v2/ brings from what is missing (none)
  MINIBOX_LOG_FORMAT        text: lines for people; json: lines for programs (text)
  MINIBOX_READY_FREE_BYTES  with less room /readyz says 503                  ({DEFAULT_READY_FREE_BYTES})

limits, of each process; where one is passed the client is told so and has to go:
  MINIBOX_MAX_CONNECTIONS   how many connections there are at once; those
                            that ask nothing go first, then 503 is said      ({DEFAULT_CONNECTIONS})
  MINIBOX_MAX_REQUESTS      how many requests are answered at once; one more
                            gets 503 with Retry-After                        ({DEFAULT_REQUESTS})
  MINIBOX_IDLE_SECONDS      how long the head of a request may take, and how
                            long a client may ask nothing, send none of its
                            body, or take none of its answer                 ({DEFAULT_IDLE_SECONDS})
  MINIBOX_MAX_PULLS         how many pulls move at once; one more waits for
                            its turn, and says so                            ({DEFAULT_PULLS})
  A target has at most 16 KiB (414), headers 32 KiB and 100 in number (431), and a
  body that an endpoint does not ask for 64 KiB (413).
"""


@attrs.frozen(kw_only=True)
class Service:
    """What one process, or each of several, serves.

    Attributes:
        settings: what the operator decided.
        listening: the sockets.
        nursery: what begins processes for transfers.
        tls: what they speak TLS with; None where they do not.
        lifeline: a descriptor at whose end this process must end too; None where it is the only one.
        activation: whom it tells how it is.
    """

    settings: Settings
    listening: Listening
    nursery: Nursery
    tls: ssl.SSLContext | None = None
    lifeline: int | None = None
    activation: Activation = attrs.field(factory=Activation)

    def reads_certificate(self) -> bool:
        """Let new connections see the certificate that the files hold now; say why, and return False, if it is none."""
        if self.tls is None:
            return False
        try:
            reload_context(self.tls, self.settings)
        except SettingsError as error:
            LOGGER.error("the certificate stays what it was: %s", error)
            return False
        return True


class Server(uvicorn.Server):
    """uvicorn, which cancels what runs before it waits for it, and lets many connections wait to be accepted."""

    def __init__(self, config: uvicorn.Config, workers: Workers, service: Service) -> None:
        super().__init__(config)
        self._workers = workers
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, hear from now on what the daemon is told, and tell whoever started it."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._service.lifeline is not None:
            loop.add_reader(self._service.lifeline, self._end_alone, loop, self._service.lifeline)
        for each in sockets or ():
            each.listen(LISTEN_BACKLOG)  # what waits to be accepted may be more than what is accepted at once
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        self._service.activation.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every operation, and then the server."""
        self._service.activation.notify("STOPPING=1")
        self._workers.cancel_operations()
        await super().shutdown(sockets)

    def _reload(self) -> None:
        if self._service.reads_certificate():
            LOGGER.info("the certificate was read anew")

    def _end_alone(self, loop: asyncio.AbstractEventLoop, lifeline: int) -> None:
        loop.remove_reader(lifeline)
        LOGGER.warning("the process that began this one is gone")
        self.should_exit = True


def main() -> None:
    """Run the daemon; the exit status is 2 when it may not or cannot start, and 0 when it was told to stop."""
    options = _parse_arguments()
    if options.check_config:
        findings = check_configuration()
        sys.stdout.write(findings.text)
        sys.exit(2 if findings.problems else 0)
    activation = take_activation()
    try:
        settings = read_settings()
        logging.config.dictConfig(dict(logging_settings(settings.log_format)))
        # No line says which thread or process wrote it, and to find that out costs as much as the rest of a line.
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        nursery = Nursery(inherited=activation.descriptors)
        tls = open_context(settings)
        listening = listen(settings, activation.sockets)
    except SettingsError as error:
        sys.stderr.write(f"minibox-server: {error}\n")
        sys.exit(2)
    if listening.inherited and listening.is_reached_by_others:
        # The address of the settings is not the one, and others are not to reach through it what only this one does.
        settings = attrs.evolve(settings, host="")
    service = Service(settings=settings, listening=listening, nursery=nursery, tls=tls, activation=activation)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Until the server hears them they wait: an event loop that is ended while it is made leaves a traceback, and a
    # certificate that is renewed meanwhile is not to be missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    # uvicorn repeats the signal that ended it, for whoever was to have it otherwise: that is the regular end here.
    for number in _ENDING:
        signal.signal(number, _end)
    _announce(service, options.workers)
    with contextlib.closing(listening):
        if options.workers > 1:
            serve_by_several(service, options.workers)
        else:
            serve(service)


def serve_by_several(service: Service, count: int) -> None:
    """Serve by so many processes until SIGTERM or SIGINT; all have ended within ten seconds of it."""
    activation = service.activation

    def work(lifeline: int) -> None:
        service.reads_certificate()  # what the first process has is as old as that
        serve(attrs.evolve(service, lifeline=lifeline, activation=Activation(), listening=service.listening.shared()))

    try:
        Processes(count, work).run(on_start=lambda: activation.notify("READY=1"))
    finally:
        activation.notify("STOPPING=1")


def serve(service: Service) -> None:
    """Serve until SIGTERM or SIGINT, and end the process's work within ten seconds of it."""
    settings, tls = service.settings, service.tls
    workers = Workers(max_pulls=settings.max_pulls)
    most_connections = room_for(settings.max_connections)
    connections = Connections(most=most_connections, idle_seconds=settings.idle_seconds)
    protocol = Protocol.within(connections)
    config = uvicorn.Config(
        create_app(settings, workers=workers, transfers=ProcessTransfers(service.nursery, store_opener(settings))),
        http=protocol if tls is None else TlsFirst.before(protocol, tls),
        ws="none",
        loop="asyncio",
        lifespan="off",
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.idle_seconds),
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        # asyncio takes as many connections at once as it lets wait; so that each process gets some, one at a time.
        backlog=accepted_at_once(most_connections) if service.lifeline is None else 1,
    )
    if most_connections < settings.max_connections:
        LOGGER.warning("there are descriptors for %d connections only (ulimit -n)", most_connections)
    try:
        Server(config, workers, service).run(service.listening.sockets)
    finally:
        service.listening.close()
        if workers.running:
            # Threads that wait for something which cannot be cancelled; the store bears it, as it bears a crash.
            LOGGER.warning("%d calls did not end in time", workers.running)
            logging.shutdown()
            os._exit(0)


def _announce(service: Service, count: int) -> None:
    settings = service.settings
    LOGGER.info(
        "listening on %s, store in %s, %s, %s%s",
        service.listening.describe(),
        settings.data_root,
        "a token is needed" if settings.token else "no token is needed",
        "TLS" if service.tls else "plain HTTP",
        f", {count} processes" if count > 1 else "",
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="minibox-server",
        description="The image store as a daemon.",
        epilog=_VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="how many processes serve (1)")
    parser.add_argument("--check-config", action="store_true", help="say what is set and what is wrong, and end")
    parser.add_argument("--version", action="version", version=f"minibox-server {version()}")
    return parser.parse_args()


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 3 and 1 <= int(text) <= _MOST_PROCESSES):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {_MOST_PROCESSES}")
    return int(text)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
