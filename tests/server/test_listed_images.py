"""GET /images at once and again: what is kept is never older than a request, and shared by those who ask together."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from starlette.testclient import TestClient

from minibox_server.shared_calls import SharedCall
from minibox_server.workers import Workers
from minibox_store import Store
from tests.server.clients import client_of
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.stores import whole_second_disk
from tests.support.waiting import SOON_SECONDS


def names_at(client: TestClient) -> list[str]:
    return [each["name"] for each in client.get("/images").json()]


def test_what_another_process_changes_is_seen_by_the_next_request(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    client, other = client_of(tmp_path / "data"), Store(tmp_path / "data")
    for turn in range(40):
        # Sometimes at once, and sometimes once the answer is one that is kept.
        time.sleep(0.13 if turn % 4 == 0 else 0)
        assert names_at(client) == ["app:1"]
        other.tag("app:1", "app:2")
        assert names_at(client) == ["app:1", "app:2"]
        other.remove("app:2")
        assert names_at(client) == ["app:1"]


def test_what_is_changed_within_a_second_is_seen_where_the_file_system_tells_whole_seconds(tmp_path: Path) -> None:
    with whole_second_disk(tmp_path) as disk:
        write_layout(disk / "data", {"app:1": build_image()})
        client, index = client_of(disk / "data"), disk / "data" / "index.json"
        content = index.read_bytes()
        for _ in range(2):
            time.sleep(1 - time.time() % 1)
            index.write_bytes(content)
            time.sleep(0.15)  # until the answer might be one that is kept
            assert names_at(client) == ["app:1"]
            index.write_bytes(content.replace(b'"app:1"', b'"app:2"'))
            assert names_at(client) == ["app:2"]


def test_damage_is_seen_within_two_seconds(tmp_path: Path) -> None:
    image = build_image()
    write_layout(tmp_path / "data", {"app:1": image})
    client = client_of(tmp_path / "data")
    time.sleep(0.15)
    assert "damaged" not in client.get("/images").json()[0]
    path = tmp_path / "data" / "blobs" / "sha256" / image.digest.partition(":")[2]
    path.chmod(0o600)
    path.write_bytes(b"x" * path.stat().st_size)
    deadline = time.monotonic() + SOON_SECONDS
    while "damaged" not in client.get("/images").json()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- calls that are shared


class Slow:
    """A call that is held until it is let go, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.held = threading.Semaphore(0)

    def __call__(self) -> int:
        self.begun += 1
        begun = self.begun
        assert self.held.acquire(timeout=60)
        if begun == 3:
            raise LookupError("the third one fails")
        return begun


def run(test: Callable[[SharedCall[int], Slow], Awaitable[None]]) -> None:
    """Run a test of one shared call, with at most 20 s for it."""

    async def bounded() -> None:
        slow, workers = Slow(), Workers()
        with anyio.fail_after(60):
            await test(SharedCall(workers, workers.reading, slow), slow)

    asyncio.run(bounded())


async def begun(slow: Slow, count: int) -> None:
    while slow.begun < count:
        await asyncio.sleep(0.01)


def test_who_asks_while_a_call_runs_shares_the_next_one() -> None:
    async def test(call: SharedCall[int], slow: Slow) -> None:
        first = [asyncio.create_task(call.result()) for _ in range(5)]
        await begun(slow, 1)
        second = [asyncio.create_task(call.result()) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert slow.begun == 1, "one at a time"
        slow.held.release(2)
        assert await asyncio.gather(*first, *second) == [1] * 5 + [2] * 5

    run(test)


def test_an_error_is_for_all_who_asked_and_for_nobody_after_them() -> None:
    async def test(call: SharedCall[int], slow: Slow) -> None:
        slow.held.release(4)
        assert [await call.result(), await call.result()] == [1, 2]
        both = await asyncio.gather(call.result(), call.result(), return_exceptions=True)
        assert [type(each) for each in both] == [LookupError, LookupError]
        assert await call.result() == 4

    run(test)


def test_one_who_goes_away_takes_the_answer_from_nobody() -> None:
    async def test(call: SharedCall[int], slow: Slow) -> None:
        leaving, staying = asyncio.create_task(call.result()), asyncio.create_task(call.result())
        await begun(slow, 1)
        leaving.cancel()
        slow.held.release()
        assert await staying == 1
        with pytest.raises(asyncio.CancelledError):
            await leaving

    run(test)
