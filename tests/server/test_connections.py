"""How long a client is waited for, and how many there may be: over sockets, with an application of the test."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from starlette.types import Receive, Scope, Send

from minibox_server.connections import Connections, accepted_at_once
from tests.server.clients import exchange, read_reply
from tests.server.serving import serving

IDLE_SECONDS = 0.5
# In that time whoever keeps still has been noticed, also on a busy machine.
NOTICED_SECONDS = 60.0
BIG = bytes(64 * 1024)


@dataclass
class Application:
    """Reads bodies, sends without end, or works, as the path says; and notes what became of it."""

    sent_bytes: int = 0
    bodies: list[bytes] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    pieces: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/body":
            self.bodies.append(await read_body(receive))
        elif path == "/work":
            await asyncio.sleep(IDLE_SECONDS * 3)
        elif path == "/first":
            await self.begin(send)
            await read_body(receive)
            self.ended.append(path)
            return
        elif path == "/endless":
            await self.send_without_end(receive, send)
            self.ended.append(path)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def begin(self, send: Send) -> None:
        """Send the head of an answer, and one piece of it."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})

    async def send_without_end(self, receive: Receive, send: Send) -> None:
        """Send until the client has gone."""
        gone = asyncio.ensure_future(wait_for_end(receive))
        await self.begin(send)
        while not gone.done():
            await send({"type": "http.response.body", "body": BIG, "more_body": True})
            self.sent_bytes += len(BIG)
            await asyncio.sleep(0)


async def read_body(receive: Receive) -> bytes:
    """Return the body, or what came of it until the client had gone."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


async def wait_for_end(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def port(application: Application) -> Iterator[int]:
    with serving(application, most=8, idle_seconds=IDLE_SECONDS) as port:
        yield port


def connect(port: int, data: bytes = b"") -> socket.socket:
    """Return a connection over which some bytes have been sent."""
    opened = socket.create_connection(("127.0.0.1", port), timeout=NOTICED_SECONDS)
    opened.sendall(data)
    return opened


def read_to_end(connection: socket.socket) -> bytes:
    """Return everything that comes until the connection ends, in whatever way; to wait for longer is an error."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def dribble(connection: socket.socket, data: bytes, *, seconds: float) -> float:
    """Send byte by byte for so long at most; return how long the other side took that."""
    begin = time.monotonic()
    connection.settimeout(0.05)
    for byte in data:
        if time.monotonic() - begin > seconds:
            break
        try:
            connection.sendall(bytes([byte]))
            if connection.recv(1, socket.MSG_PEEK) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
        break
    connection.settimeout(NOTICED_SECONDS)
    return time.monotonic() - begin


def head(path: str = "/", *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def test_a_connection_that_asks_nothing_is_closed_without_a_word(port: int) -> None:
    with connect(port) as connection:
        begin = time.monotonic()
        assert read_to_end(connection) == b""
        assert time.monotonic() - begin >= IDLE_SECONDS * 0.9


def test_a_connection_that_was_answered_and_asks_no_more_is_closed(port: int) -> None:
    with connect(port, head()) as connection:
        assert read_reply(connection).body == b"ok"
        assert read_to_end(connection) == b""


def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_one_that_does_not_come(port: int) -> None:
    with connect(port) as connection:
        took = dribble(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + bytes([97] * 10_000), seconds=8)
        assert IDLE_SECONDS * 0.9 <= took < 6
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"\r\nConnection: close\r\n" in received
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in received
    assert received.endswith(b"the head of a request did not come within 0.5 s\n")


def test_a_second_head_on_one_connection_is_not_waited_for_either(port: int) -> None:
    with connect(port, head()) as connection:
        assert read_reply(connection).body == b"ok"
        connection.sendall(b"GET /")
        assert read_to_end(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"abc"])
def test_a_body_that_does_not_go_on_is_given_up(port: int, application: Application, sent: bytes) -> None:
    with connect(port, head("/body", "Content-Length: 10", method="POST") + sent) as connection:
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"the body of a request did not go on for 0.5 s" in received
    assert received.count(b"HTTP/1.1") == 1
    wait_for(lambda: application.bodies == [sent])


def test_a_body_that_comes_byte_by_byte_goes_on_too_slowly(port: int) -> None:
    with connect(port, head("/body", "Content-Length: 100000", method="POST")) as connection:
        assert dribble(connection, bytes(10_000), seconds=8) < 6
        assert read_to_end(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_may_take_as_long_as_it_wants_while_it_goes_on(port: int, application: Application) -> None:
    pieces = 12
    with connect(port, head("/body", f"Content-Length: {pieces * 4096}", method="POST")) as connection:
        begin = time.monotonic()
        for _ in range(pieces):
            time.sleep(IDLE_SECONDS / 3)
            connection.sendall(bytes(4096))
        assert time.monotonic() - begin > IDLE_SECONDS * 3
        assert read_reply(connection).status == 200
    assert application.bodies == [bytes(pieces * 4096)]


def test_what_the_daemon_itself_takes_is_nobodys_fault(port: int) -> None:
    with connect(port, head("/work")) as connection:
        assert read_reply(connection).body == b"ok"


def test_who_waits_to_be_asked_for_a_body_is_not_timed_out_before_that(port: int) -> None:
    request = head("/work", "Content-Length: 10", "Expect: 100-continue", method="POST")
    with connect(port, request) as connection:
        assert read_reply(connection).body == b"ok"


def test_into_an_answer_under_way_nothing_is_said(port: int, application: Application) -> None:
    with connect(port, head("/first", "Content-Length: 10", method="POST")) as connection:
        received = read_to_end(connection)
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"5\r\nbegun\r\n")
    wait_for(lambda: application.ended == ["/first"])


@pytest.mark.parametrize("announced", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_request_that_has_its_answer_gets_no_second_one_though_its_body_goes_wrong(port: int, announced: str) -> None:
    is_chunked = "chunked" in announced
    with connect(port, head("/", announced, method="POST")) as connection:
        assert read_reply(connection).body == b"ok"
        if is_chunked:
            connection.sendall(b"not a chunk\r\n")
        else:
            dribble(connection, bytes(100), seconds=8)
        assert read_to_end(connection) == b""


def test_a_connection_goes_on_though_bodies_come_behind_their_answers_time_and_again(port: int) -> None:
    content = bytes(9000)
    with connect(port) as connection:
        for _ in range(20):
            connection.sendall(head("/", f"Content-Length: {len(content)}", method="POST"))
            assert read_reply(connection).body == b"ok"
            connection.sendall(content)


def test_a_body_behind_its_answer_is_cut_off_where_it_has_no_end(port: int) -> None:
    with connect(port) as connection, contextlib.suppress(ConnectionError):
        for size_bytes in (60_000, 10**9):
            connection.sendall(head("/", f"Content-Length: {size_bytes}", method="POST"))
            assert read_reply(connection).body == b"ok"
            for _ in range(min(size_bytes, 10**7) // 1000):
                connection.sendall(bytes(1000))
        pytest.fail("all of it was taken")


def test_a_client_that_takes_nothing_loses_its_answer_and_what_waits_for_it_is_little(
    port: int, application: Application
) -> None:
    with connect(port, head("/endless")):
        wait_for(lambda: application.ended == ["/endless"])
        # The kernel takes some megabytes; what is more than that has not been made at all.
        assert application.sent_bytes < 32 * 1024 * 1024


def test_a_client_that_takes_little_but_something_keeps_its_answer(port: int, application: Application) -> None:
    with connect(port, head("/endless")) as connection:
        end = time.monotonic() + IDLE_SECONDS * 4
        while time.monotonic() < end:
            time.sleep(IDLE_SECONDS / 4)
            received = 0
            while received < 512 * 1024:
                piece = connection.recv(128 * 1024)
                assert piece, "the connection was cut"
                received += len(piece)
        assert not application.ended


def wait_for(is_so: Callable[[], bool]) -> None:
    """Return when something is so; that it does not come is an error."""
    deadline = time.monotonic() + NOTICED_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_where_there_is_no_room_the_connection_that_asked_nothing_for_longest_goes(application: Application) -> None:
    with serving(application, most=3) as port, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(port)) for _ in range(3))
        for connection in (third, first, second):
            connection.sendall(head())
            assert read_reply(connection).body == b"ok"
        with connect(port, head()) as fourth:
            assert read_reply(fourth).body == b"ok"
            assert read_to_end(third) == b""
            for connection in (first, second):
                connection.sendall(head())
                assert read_reply(connection).body == b"ok"


def test_where_every_connection_is_being_served_one_more_is_told_so(application: Application) -> None:
    with serving(application, most=3) as port, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(port, head("/endless"))).recv(1)
        for _ in range(5):
            reply = exchange(port, head())
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
            assert reply.headers["connection"] == "close"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.body == b"there are too many connections\n"
        stack.close()
        wait_for(lambda: exchange(port, head()).status == 200)


def send_often(connection: socket.socket, data: bytes, count: int) -> None:
    for _ in range(count):
        connection.sendall(data)


def test_a_connection_too_many_costs_little_even_if_it_sends_a_lot(application: Application) -> None:
    with serving(application, most=1) as port, connect(port, head("/endless")) as served:
        served.recv(1)
        with connect(port) as surplus:
            surplus.settimeout(5)
            with pytest.raises(ConnectionError):  # else it was listened to
                send_often(surplus, BIG, 1000)


def test_a_head_that_trickles_does_not_protect_a_connection_from_making_room(application: Application) -> None:
    with serving(application, most=2) as port, connect(port, b"GET /") as old, connect(port) as young:
        time.sleep(0.1)
        old.sendall(b"a")
        with connect(port, head()) as new:
            assert read_reply(new).body == b"ok"
        assert read_to_end(old) == b""
        young.sendall(head())
        assert read_reply(young).body == b"ok"


@dataclass(eq=False)
class Waiting:
    """A connection by the count of what it has done."""

    done: int | None = 0
    ended: list[str] = field(default_factory=list)

    def owes(self) -> int | None:
        return self.done

    def time_out(self) -> None:
        self.ended.append("timed out")

    def make_room(self) -> None:
        self.ended.append("made room")


def test_a_connection_is_timed_out_when_it_has_owed_the_same_for_the_whole_time() -> None:
    still, moving, owing_nothing = Waiting(), Waiting(), Waiting(done=None)

    async def run() -> None:
        connections = Connections(most=10, idle_seconds=0.2)
        for each in (still, moving, owing_nothing):
            assert connections.admit(each)
        for _ in range(20):
            await asyncio.sleep(0.05)
            assert moving.done is not None
            moving.done += 1
            if still.ended:
                connections.forget(still)
        for each in (moving, owing_nothing):
            connections.forget(each)

    asyncio.run(run())
    assert set(still.ended) == {"timed out"}
    assert moving.ended == owing_nothing.ended == []


def test_only_so_many_that_were_refused_are_listened_to_for_a_moment() -> None:
    async def run() -> int:
        connections = Connections(most=1, idle_seconds=60)
        served = Waiting()
        assert connections.admit(served)
        connections.note(served, asks=True)
        surplus = [Waiting() for _ in range(200)]
        assert not any(connections.admit(each) for each in surplus)
        lingering = sum(connections.may_linger(each) for each in surplus)
        for each in surplus:
            connections.forget(each)
        assert connections.may_linger(Waiting())
        return lingering

    assert asyncio.run(run()) == 64


@pytest.mark.parametrize(
    ("hard", "wanted", "expected"), [(256, 1024, 128), (4096, 1024, 1024), (4096, 3073, 2048), (64, 10, 10)]
)
def test_a_process_has_no_more_connections_than_it_has_descriptors_for(hard: int, wanted: int, expected: int) -> None:
    asking = (
        "import resource, sys; from minibox_server.connections import room_for\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (min({hard}, 200), {hard}))\n"
        f"print(room_for({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    told = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=True, timeout=30)
    room, soft = map(int, told.stdout.split())
    assert room == expected
    assert soft == min(hard, wanted + 1024)


def test_of_few_connections_fewer_are_accepted_at_once() -> None:
    assert [accepted_at_once(most) for most in (1, 4, 60, 1024, 100_000)] == [1, 1, 15, 256, 256]
