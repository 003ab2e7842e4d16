"""Connections by the thousand that are opened and left: others are served meanwhile, and nothing of them stays."""

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from minibox_server.protocol import Protocol
from tests.server.clients import TOKEN, read_reply
from tests.server.serving import serving
from tests.support.daemon import Daemon, Reply, running_daemon
from tests.support.images import build_image, random_layer
from tests.support.layouts import write_layout
from tests.support.trials import DEEP

CONNECTIONS = 10_000 if DEEP else 600
MOST = 1024 if DEEP else 60
IDLE_SECONDS = 1
# How long one request may take between those of all the others.
SERVED_SECONDS = 60
MIB = 1024 * 1024

LARGE = build_image([random_layer(24 * MIB)])

# What each connection sends before it keeps still: whoever it is, and who has the token.
AUTHORIZED = f"Host: localhost\r\nX-API-Token: {TOKEN}\r\n"
OF_STRANGERS = {
    "nothing": "",
    "half a head": "GET /images HTTP/1.1\r\nHost: local",
    "a head without a token": "GET /images HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nonsense": "\x00\r\n\r\n",
}
LEFT = {
    **OF_STRANGERS,
    "a body that does not come": f"POST /system/prune?dry_run=1 HTTP/1.1\r\n{AUTHORIZED}Content-Length: 100\r\n\r\nabc",
    "an answer that is not read": f"GET /images HTTP/1.1\r\n{AUTHORIZED}\r\n" * 3,
}
# How much memory more than before the first of them there may be then: what so many connections or requests took at
# once, for something that lasts comes to lie between them, and that part is not given back. It grows no further.
MOST_OF_STRANGERS_BYTES = (14 if DEEP else 2) * MIB
MOST_BYTES = (48 if DEEP else 8) * MIB
# Opens so many connections, as far as this process may, says how many, and leaves them until it is told to end.
OPENING = """
import resource, socket, sys
port, count, data = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode().decode("unicode_escape").encode("latin-1")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
opened = []
for _ in range(min(count, hard - 50)):
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        opened.append(connection)
        connection.sendall(data)
    except ConnectionError:
        pass
print(len(opened), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    images = {f"app:{number}": build_image() for number in range(19)}
    write_layout(folder / "data", {**images, "large:1": LARGE})
    limits = {"MINIBOX_IDLE_SECONDS": str(IDLE_SECONDS), "MINIBOX_MAX_CONNECTIONS": str(MOST)}
    with running_daemon(folder, token=TOKEN, environment=limits) as daemon:
        yield daemon
        log = daemon.read_log()
        assert "Traceback" not in log
        assert "out of system resource" not in log


def flood(daemon: Daemon, data: str) -> int:
    """Let another process open connections and leave them, ask for something meanwhile, and return how many it had."""
    escaped, always = data.encode("unicode_escape").decode(), TOKEN not in data
    command = [sys.executable, "-c", OPENING, str(daemon.port), str(CONNECTIONS), escaped]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            served(daemon, always=always)
            opened = int(process.stdout.readline())
            served(daemon, always=always)
            assert descriptors(daemon) < MOST + 400
        finally:
            process.stdin.close()
            process.wait(120)
    return opened


def served(daemon: Daemon, *, always: bool) -> None:
    """See that others are served, each soon; ``always`` at the first try: nobody who has a token takes their place."""
    for _ in range(10):
        deadline = time.monotonic() + SERVED_SECONDS
        while (reply := asked(daemon, always=always)) is None or (not always and reply.status == 503):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(reply.json()) == 20
        assert time.monotonic() < deadline


def asked(daemon: Daemon, *, always: bool) -> Reply | None:
    """Return an answer; None where the connection was cut, since each one was being served, and too many came."""
    try:
        return daemon.get("/images")
    except ConnectionError:
        if always:
            raise
        return None


def descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def resident_bytes(daemon: Daemon) -> int:
    """Return how much memory the daemon has."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    [found] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(found) * 1024


@pytest.fixture(scope="module")
def memory_before(daemon: Daemon) -> int:
    """How much memory it has once it has done everything for the first time."""
    for _ in range(3):
        assert daemon.get("/images").status == daemon.post("/system/prune", dry_run="1").status == 200
    return resident_bytes(daemon)


@pytest.mark.parametrize("what", list(LEFT))
def test_connections_that_are_opened_and_left_cost_nothing_that_stays(
    daemon: Daemon, memory_before: int, what: str
) -> None:
    descriptors_before = descriptors(daemon)
    opened = flood(daemon, LEFT[what])
    assert opened > CONNECTIONS * 0.9
    deadline = time.monotonic() + SERVED_SECONDS
    while descriptors(daemon) > descriptors_before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptors(daemon) <= descriptors_before
    most_bytes = MOST_OF_STRANGERS_BYTES if what in OF_STRANGERS else MOST_BYTES
    assert resident_bytes(daemon) < memory_before + most_bytes


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let nothing go but what nobody refers to any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def answered(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": b"a"})


def living(*kinds: type) -> int:
    """Return how many things of these kinds are in memory."""
    return sum(issubclass(type(each), kinds) for each in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("what", list(OF_STRANGERS))
def test_what_a_connection_has_taken_is_given_back_at_once_and_what_a_request_has_before_that(what: str) -> None:
    before = living(Protocol, asyncio.Transport), living(RequestResponseCycle)
    with serving(answered) as port, contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(OF_STRANGERS[what].encode())
            if "token" in what:
                assert read_reply(connection).status == 200
        deadline = time.monotonic() + SERVED_SECONDS
        while living(Protocol) == 0 or living(RequestResponseCycle) > before[1]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stack.close()
        while living(Protocol, asyncio.Transport) > before[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_connections_that_nobody_ends_are_ended_by_the_daemon(daemon: Daemon) -> None:
    before = descriptors(daemon)
    escaped = LEFT["half a head"].encode("unicode_escape").decode()
    command = [sys.executable, "-c", OPENING, str(daemon.port), str(MOST // 2), escaped]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert int(process.stdout.readline()) == MOST // 2
            deadline = time.monotonic() + SERVED_SECONDS
            while descriptors(daemon) > before and time.monotonic() < deadline:
                time.sleep(0.05)
            assert descriptors(daemon) <= before
        finally:
            process.stdin.close()
            process.wait(30)


def test_a_blob_that_nobody_takes_is_let_go_and_the_thread_that_sends_it_too(daemon: Daemon) -> None:
    digest = LARGE.document()["layers"][0]["digest"]
    request = f"GET /v2/large/blobs/{digest} HTTP/1.1\r\n{AUTHORIZED}\r\n".encode()
    before = descriptors(daemon)
    with contextlib.ExitStack() as stack:
        # More than there are threads that send.
        for _ in range(12):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), timeout=60))
            connection.sendall(request)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert descriptors(daemon) > before
        assert daemon.get(f"/v2/large/blobs/{digest}").body == LARGE.blobs[digest]
        deadline = time.monotonic() + SERVED_SECONDS
        while descriptors(daemon) > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert descriptors(daemon) <= before
