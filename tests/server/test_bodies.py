"""The body of a request as a file: what a thread reads of it while it comes, and how its wait ends."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from minibox_server import bodies
from minibox_server.bodies import QUEUE_BYTES, RequestBody, streamed_body
from minibox_server.responses import RequestError
from minibox_store import Cancelled
from tests.support.waiting import SOON_SECONDS

WAIT_SECONDS = 3600.0


class Refused(Exception):
    """What an endpoint raises that wants no more of a body."""


class Client:
    """What a server would give the application: messages, as they are sent."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.taken_bytes = 0
        self.bodies: list[RequestBody] = []

    def send(self, *pieces: bytes, more: bool = True) -> None:
        """Send some pieces; without ``more`` the last one ends the body."""
        for number, piece in enumerate(pieces, 1):
            message = {"type": "http.request", "body": piece, "more_body": more or number < len(pieces)}
            self._messages.put_nowait(message)

    def leave(self) -> None:
        """Go away."""
        self._messages.put_nowait({"type": "http.disconnect"})

    def refuse(self, error: Exception) -> None:
        """Let the next receive raise, as the guard does."""
        self._messages.put_nowait(error)

    async def receive(self) -> Message:
        """Return the next message."""
        message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        self.taken_bytes += len(message.get("body", b""))
        return message

    async def wait_until_taken(self, size_bytes: int) -> None:
        """Return once so much has been taken, and what is ready then is done."""
        while self.taken_bytes < size_bytes:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)

    @asynccontextmanager
    async def body(self) -> AsyncIterator[RequestBody]:
        """Give the body that the application reads."""
        async with streamed_body(Request({"type": "http"}, self.receive)) as body:
            self.bodies.append(body)
            yield body


def run(scenario: Callable[[Client], Any]) -> Any:
    """Run a scenario in a loop of its own, within a bound; no thread may be left of it."""
    threads = set(threading.enumerate())

    async def bounded() -> Any:
        client = Client()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await scenario(client)
        finally:
            for body in client.bodies:  # else a reader that was forgotten would be waited for without a bound
                body.interrupt()

    result = asyncio.run(bounded())
    assert set(threading.enumerate()) <= threads
    return result


def read_all(body: RequestBody, sizes: Sequence[int] = (65536,)) -> bytes:
    """Read to the end, by reads of these sizes in turn."""
    content = b""
    while piece := body.read(sizes[len(content) % len(sizes)]):
        content += piece
    return content


@given(st.lists(st.binary(max_size=50), min_size=1), st.lists(st.integers(1, 70), min_size=1))
def test_what_is_read_is_what_was_sent_however_it_was_cut(pieces: list[bytes], sizes: list[int]) -> None:
    async def scenario(client: Client) -> bytes:
        async with client.body() as body:
            reading = asyncio.create_task(asyncio.to_thread(read_all, body, sizes))
            for piece in pieces:
                client.send(piece)
                await asyncio.sleep(0)
            client.send(b"", more=False)
            return await reading

    assert run(scenario) == b"".join(pieces)


def test_a_body_is_not_kept_whole_and_a_slow_reader_lets_its_client_wait() -> None:
    piece = bytes(64 * 1024)
    count = 4 * QUEUE_BYTES // len(piece)

    async def scenario(client: Client) -> None:
        async with client.body() as body:
            client.send(*[piece] * count, more=False)
            await asyncio.sleep(0.05)
            assert client.taken_bytes == QUEUE_BYTES
            assert len(await asyncio.to_thread(body.read, len(piece))) == len(piece)
            await client.wait_until_taken(QUEUE_BYTES + len(piece))
            assert client.taken_bytes == QUEUE_BYTES + len(piece)
            rest = await asyncio.to_thread(read_all, body)
            assert len(rest) == (count - 1) * len(piece)

    run(scenario)


def test_a_client_that_goes_away_ends_the_reader_and_who_watches_it() -> None:
    async def scenario(client: Client) -> None:
        async with client.body() as body:
            client.send(b"some")
            assert await asyncio.to_thread(body.read, 10) == b"some"
            reading = asyncio.create_task(asyncio.to_thread(body.read, 10))
            watching = asyncio.create_task(body.receive())
            await asyncio.sleep(0.05)
            assert not reading.done()
            assert not watching.done()
            client.leave()
            with pytest.raises(Cancelled):
                await reading
            assert await watching == {"type": "http.disconnect"}

    run(scenario)


def test_a_client_that_goes_away_after_the_whole_body_is_seen_to_go() -> None:
    async def scenario(client: Client) -> None:
        async with client.body() as body:
            client.send(b"all", more=False)
            assert await asyncio.to_thread(read_all, body) == b"all"
            client.leave()
            assert (await body.receive())["type"] == "http.disconnect"

    run(scenario)


def test_a_body_that_is_too_large_ends_the_reader_with_the_refusal() -> None:
    async def scenario(client: Client) -> None:
        async with client.body() as body:
            client.refuse(RequestError(413, "the body is longer than 5 bytes"))
            with pytest.raises(RequestError, match="longer than 5 bytes"):
                await asyncio.to_thread(body.read, 10)

    run(scenario)


def test_an_interrupt_from_a_thread_ends_the_reader_and_all_later_reads() -> None:
    async def scenario(client: Client) -> None:
        async with client.body() as body:
            reading = asyncio.create_task(asyncio.to_thread(body.read, 10))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(body.interrupt)
            with pytest.raises(Cancelled):
                await reading
            client.send(b"more", more=False)
            with pytest.raises(Cancelled):
                await asyncio.to_thread(body.read, 10)

    run(scenario)


def test_leaving_the_block_ends_a_reader_that_still_waits() -> None:
    async def scenario(client: Client) -> None:
        async with client.body() as body:
            reading = asyncio.create_task(asyncio.to_thread(body.read, 10))
            await asyncio.sleep(0.05)
            assert not reading.done()
        with pytest.raises(Cancelled):
            await reading

    run(scenario)


def test_a_task_that_is_cancelled_waits_for_nothing_and_ends_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PASSED_OVER_SECONDS", 2 * SOON_SECONDS)

    async def scenario(client: Client) -> float:
        reading: list[asyncio.Task[bytes]] = []

        async def hold() -> None:
            async with client.body() as body:
                reading.append(asyncio.create_task(asyncio.to_thread(body.read, 10)))
                await asyncio.sleep(10 * WAIT_SECONDS)

        holding = asyncio.create_task(hold())
        await asyncio.sleep(0.05)
        started = time.monotonic()
        holding.cancel()
        await asyncio.wait({holding})
        with pytest.raises(Cancelled):
            await reading[0]
        return time.monotonic() - started

    assert run(scenario) < SOON_SECONDS


def test_what_still_comes_of_a_body_that_nobody_wants_is_passed_over() -> None:
    async def scenario(client: Client) -> int:
        with suppress(Refused):
            async with client.body():
                client.send(*[bytes(QUEUE_BYTES)] * 8, more=False)
                raise Refused
        return client.taken_bytes

    assert run(scenario) == 8 * QUEUE_BYTES


def test_a_body_that_does_not_end_is_not_passed_over_for_ever() -> None:
    async def scenario(client: Client) -> float:
        started = time.monotonic()
        with suppress(Refused):
            async with client.body():
                raise Refused
        return time.monotonic() - started

    assert run(scenario) < SOON_SECONDS
