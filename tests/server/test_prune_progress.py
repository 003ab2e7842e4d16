"""POST /system/prune, told of as it goes on: what is said of it, and who ends it by going away."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it comes without types

from minibox_server.api.event_schemas import told_as_it_goes_on
from minibox_server.api.progress import OVERALL, Progress
from minibox_server.app import create_app
from minibox_server.schemas import PRUNE_SCHEMA
from minibox_server.settings import Settings
from minibox_store import PruneAdvanced
from minibox_store import _locks as locks
from tests.server.clients import client_of
from tests.support.asgi import Exchange, asking
from tests.support.images import build_image
from tests.support.invariants import check_invariants, stored
from tests.support.layouts import blob_path
from tests.support.snapshots import snapshot
from tests.support.stores import put, put_dead

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
LIVING = build_image(salt="living")
DEAD = build_image(salt="dead")
_WAIT_SECONDS = 60.0
_REMOVING = '"phase":"removing"'
_NOTHING_GONE = {
    "event": "progress",
    "phase": "removing",
    "done_bytes": 0,
    "total_bytes": DEAD.size_bytes,
    "done_count": 0,
    "total_count": len(DEAD.blobs),
}

Release = Callable[[], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of one image, and of the blobs of another."""
    put(tmp_path / "data", LIVING, "living:1")
    put_dead(tmp_path / "data", DEAD)
    return tmp_path / "data"


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def is_pruning(root: Path) -> bool:
    return locks.is_locked(str(root / "ingest" / "prune.lock"))


async def eventually(holds: Callable[[], bool]) -> None:
    """Return when something holds."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def pruning(root: Path, accept: str | None, *, reads: bool = True) -> AsyncIterator[tuple[Exchange, Release]]:
    """Ask for a prune, which has begun, and removes nothing before it is released; behind the block it is over."""
    app = create_app(Settings(data_root=str(root)))
    with contextlib.ExitStack() as stack:
        # Somebody else has what it needs for the first removal.
        path = str(root / "ingest" / "store.lock")
        stack.enter_context(locks.holding_lock(path, doing="testing", timeout_seconds=10))
        async with asking(app, "POST", "/system/prune", accept=accept, reads=reads) as exchange:
            await eventually(lambda: is_pruning(root))
            yield exchange, stack.close
    await eventually(lambda: not is_pruning(root))


def check_events(events: list[dict[str, Any]]) -> None:
    """Check that each event is as it is described, and that the last one alone is a result or an error."""
    answer, *_ = told_as_it_goes_on(PRUNE_SCHEMA)
    assert answer.schema is not None
    for event in events:
        Draft202012Validator(answer.schema).validate(event)
    assert [each["event"] for each in events].index(events[-1]["event"]) == len(events) - 1
    assert events[-1]["event"] in ("result", "error")


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_it_is_told_what_will_go_before_it_goes_and_in_the_end_what_has_gone(root: Path, accept: str) -> None:
    async def test() -> None:
        async with pruning(root, accept) as (exchange, release):
            await exchange.until(_REMOVING)
            assert exchange.events()[-1] == _NOTHING_GONE
            assert stored(root) == {*LIVING.blobs, *DEAD.blobs}
            release()
            await exchange.end()
        events = exchange.events()
        check_events(events)
        *_, last, result = events
        gone = {"done_count": len(DEAD.blobs), "done_bytes": DEAD.size_bytes}
        assert last == {**_NOTHING_GONE, **gone}
        assert (result["event"], result["blobs_removed"], result["bytes_freed"]) == ("result", *gone.values())

    run(test)
    assert stored(root) == set(LIVING.blobs)


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_a_plan_is_told_of_as_something_that_does_not_go(root: Path, accept: str) -> None:
    before = snapshot(root)

    async def test() -> None:
        app = create_app(Settings(data_root=str(root)))
        async with asking(app, "POST", "/system/prune", {"dry_run": "1"}, accept=accept) as exchange:
            await exchange.end()
        check_events(exchange.events())
        *_, last, result = exchange.events()
        assert last == _NOTHING_GONE
        assert (result["event"], len(result["plan"])) == ("result", len(DEAD.blobs))

    run(test)
    assert snapshot(root) == before


def test_while_it_marks_nobody_knows_the_bytes() -> None:
    progress = Progress("prune", lambda _: None)
    assert not progress.is_resolved
    progress.on_event(PruneAdvanced(phase="marking", done_count=2, total_count=5))
    assert progress.is_resolved
    told = {"phase": "marking", "done_bytes": 0, "total_bytes": None, "done_count": 2, "total_count": 5}
    assert progress.take_state() == [(OVERALL, {"event": "progress", **told})]
    assert progress.take_state() == []
    assert progress.take_lines() == []


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_who_is_told_of_it_ends_it_by_going_away(root: Path, accept: str) -> None:
    async def test() -> None:
        async with pruning(root, accept) as (exchange, release):
            await exchange.until(_REMOVING)
            exchange.leave()
            await exchange.end()
            release()

    run(test)
    assert stored(root) == {*LIVING.blobs, *DEAD.blobs}
    check_invariants(root)
    assert client_of(root).post("/system/prune").json()["blobs_removed"] == len(DEAD.blobs)


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_who_just_asked_for_it_may_go_away_and_it_is_done(root: Path, accept: str | None) -> None:
    async def test() -> None:
        async with pruning(root, accept) as (exchange, release):
            exchange.leave()
            await exchange.end()
            assert stored(root) == {*LIVING.blobs, *DEAD.blobs}
            release()

    run(test)
    assert stored(root) == set(LIVING.blobs)


def test_who_reads_nothing_delays_it_not_and_holds_no_lock(root: Path) -> None:
    async def test() -> None:
        async with pruning(root, NDJSON, reads=False) as (exchange, release):
            await exchange.started()
            release()
            await eventually(lambda: not is_pruning(root))
            assert stored(root) == set(LIVING.blobs)
            assert not exchange.is_whole

    run(test)


def test_a_root_that_cannot_be_read_ends_what_was_begun_and_an_index_that_cannot_is_a_status(root: Path) -> None:
    blob_path(root, LIVING.digest).unlink()
    before = snapshot(root)
    answer = client_of(root).post("/system/prune", headers={"Accept": NDJSON})
    events = [json.loads(line) for line in answer.text.splitlines()]
    check_events(events)
    assert (answer.status_code, events[-1]["event"], events[-1]["status"]) == (200, "error", 409)
    assert snapshot(root) == before
    (root / "index.json").write_bytes(b"{")
    assert client_of(root).post("/system/prune", headers={"Accept": NDJSON}).status_code == 500
