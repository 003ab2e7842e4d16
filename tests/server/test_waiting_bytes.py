"""How much of a file waits in the kernel: little for a quick client of this machine, and as much as ever for others."""

import contextlib
import fcntl
import os
import socket
import stat
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.types import Receive, Scope, Send

from minibox_server.zero_copy import EXTENSION
from tests.server.serving import serving

KIB = 1024
FILE_BYTES = 24 * KIB * KIB
# More than is read in the time that something may take to come.
ENDLESS_BYTES = 4 * KIB * KIB * KIB
# What may wait for a quick client, and what one call adds: a pipe of sixteen pages.
LITTLE_BYTES = (32 + 64) * KIB
MUCH_BYTES = KIB * KIB
PIECE_BYTES = 64 * KIB
# More than there are threads that send.
MANY_CLIENTS = 12
WAIT_SECONDS = 60.0
# Spec: Linux, linux/sockios.h: how much of what was written has not been sent.
SIOCOUTQNSD = 0x894B


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serve a file that takes no room: a part of it, or all, which nobody comes to the end of."""
    path = tmp_path_factory.mktemp("files") / "zeros"
    path.touch()
    os.truncate(path, ENDLESS_BYTES)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        count = ENDLESS_BYTES if scope["path"] == "/endless" else FILE_BYTES
        headers = [(b"content-length", str(count).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with path.open("rb") as file:
            place = {"file": file.fileno(), "offset": 0, "count": count}
            await send({"type": EXTENSION, **place, "more_body": False})

    with serving(app) as port:
        yield port


@contextlib.contextmanager
def asking(port: int, address: str, path: str = "/") -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ask for it from an address; once the answer begins, give the client's end of the connection and ours."""
    with socket.socket() as client:
        client.settimeout(WAIT_SECONDS)
        # So that what is under way is little, and the rest waits.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * KIB)
        client.bind((address, 0))
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.recv(1, socket.MSG_PEEK), "there is no answer"
        with other_end(client) as server:
            yield client, server


def other_end(client: socket.socket) -> socket.socket:
    """Return what this process has at the other end of a connection of its own."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found = socket.socket(fileno=os.dup(int(name)))
                with contextlib.suppress(OSError):
                    if found.getpeername() == client.getsockname():
                        return found
                found.close()
    raise AssertionError("nobody has accepted it")


def waiting_bytes(server: socket.socket) -> int:
    """Return how much of what the kernel was given it has not sent."""
    return int.from_bytes(fcntl.ioctl(server, SIOCOUTQNSD, bytes(4)), "little")


def limit_of(server: socket.socket) -> int:
    return server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)


def read_all(client: socket.socket, server: socket.socket, seen: Callable[[], object] = lambda: None) -> list[int]:
    """Take all that comes, as fast as that is, and return how much waited after each piece, behind which one looks."""
    received, waiting = 0, []
    while received < FILE_BYTES:
        piece = client.recv(PIECE_BYTES)
        assert piece, "it breaks off"
        received += len(piece)
        waiting.append(waiting_bytes(server))
        seen()
    return waiting


def comes(seen: Callable[[], bool]) -> bool:
    """Whether something is so in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_little_waits_for_a_client_of_this_machine_that_reads(port: int) -> None:
    with asking(port, "127.0.0.1") as (client, server):
        # Not each time: who is given no processor for a moment looks slow.
        assert statistics.median(read_all(client, server)) <= LITTLE_BYTES
        assert comes(lambda: limit_of(server) == 0)  # what follows on this connection is as ever


def test_as_much_as_ever_waits_for_one_that_does_not_read_now(port: int) -> None:
    with asking(port, "127.0.0.1") as (client, server):
        assert comes(lambda: waiting_bytes(server) > MUCH_BYTES and limit_of(server) == 0)
        read_all(client, server)


def test_as_much_as_ever_waits_for_a_client_of_another_address(port: int) -> None:
    with asking(port, "127.0.0.2") as (client, server):
        limits = set()
        # How much waits on the way hangs on which of the two is quicker; what may wait does not.
        waiting = read_all(client, server, seen=lambda: limits.add(limit_of(server)))
        assert limits == {0}
        assert max(waiting) > MUCH_BYTES


def test_as_much_as_ever_waits_for_those_who_read_where_they_are_more_than_the_threads(port: int) -> None:
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(asking(port, "127.0.0.1", "/endless")) for _ in range(MANY_CLIENTS)]
        for client, _ in ends:
            client.setblocking(False)

        def read_some() -> bool:
            for client, _ in ends:
                with contextlib.suppress(BlockingIOError):
                    client.recv(PIECE_BYTES)
            return all(waiting_bytes(server) > MUCH_BYTES for _, server in ends)

        assert comes(read_some)
