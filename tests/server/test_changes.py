"""GET /events: what happens in the store, whoever does it, told to all who listen, and gone on with after a cut."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from minibox_server.app import create_app
from minibox_server.settings import Settings
from minibox_server.workers import Workers
from tests.support.asgi import Exchange, asking
from tests.support.daemon import running_daemon
from tests.support.forks import run_forked
from tests.support.images import build_image
from tests.support.stores import open_store, put
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image(salt="image")
OTHER = build_image(salt="other")
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


def app_of(root: Path, workers: Workers | None = None) -> ASGIApp:
    return create_app(Settings(data_root=str(root)), workers=workers)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def told(exchange: Exchange) -> list[tuple[str, ...]]:
    """Return what came, without digests and times."""
    return [tuple(str(each[key]) for key in ("event", "action", "name") if key in each) for each in exchange.events()]


def last_id(exchange: Exchange) -> str:
    return [line for line in exchange.body.decode().split("\n") if line.startswith("id: ")][-1].removeprefix("id: ")


@pytest.mark.parametrize("accept", [SSE, NDJSON, "*/*"])
def test_what_another_process_does_is_told_within_a_second(tmp_path: Path, accept: str) -> None:
    root = tmp_path / "data"
    put(root, IMAGE, "app:1")

    async def test() -> None:
        async with asking(app_of(root), "GET", "/events", accept=accept) as exchange:
            await exchange.started()
            await asyncio.sleep(0.1)
            loop = asyncio.get_running_loop()
            begin = loop.time()
            await asyncio.to_thread(run_forked, lambda: put(root, OTHER, "app:1", "new:1"))
            await exchange.until("new:1")
            assert loop.time() - begin < SOON_SECONDS
            await asyncio.to_thread(open_store(root).remove, "app:1")
            await exchange.until("removed")
            await asyncio.to_thread(open_store(root).prune)
            await exchange.until("prune")
        assert exchange.headers["content-type"].startswith(NDJSON if accept == NDJSON else SSE)
        changed = [each for each in told(exchange) if each[0] == "image"]
        assert sorted(changed[:2]) == [("image", "changed", "app:1"), ("image", "created", "new:1")]
        assert changed[2:] == [("image", "removed", "app:1")]
        assert told(exchange)[-1] == ("prune",)
        assert exchange.events()[0]["digest"] == OTHER.digest
        assert exchange.events()[0]["time"].endswith("Z")

    run(test)


def test_who_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(root, IMAGE, "app:1")
    app = app_of(root)

    async def test() -> None:
        async with asking(app, "GET", "/events", accept=SSE) as first:
            await first.until("id: ")
        position = last_id(first)
        await asyncio.to_thread(put, root, OTHER, "app:1")
        await asyncio.to_thread(open_store(root).tag, "app:1", "new:1")
        async with asking(app, "GET", "/events", accept=SSE, headers={"last-event-id": position}) as second:
            await second.until("new:1")
            await asyncio.to_thread(open_store(root).remove, "new:1")
            await second.until("removed")
        assert told(second) == [
            ("image", "changed", "app:1"),
            ("image", "created", "new:1"),
            ("image", "removed", "new:1"),
        ]
        async with asking(app, "GET", "/events", accept=SSE, headers={"last-event-id": last_id(second)}) as third:
            await third.until("id: ")
        assert told(third) == []
        # An identity of an older release named the content alone.
        for unknown in ("who knows", last_id(third).partition("-")[0]):
            async with asking(app, "GET", "/events", accept=SSE, headers={"last-event-id": unknown}) as fourth:
                await fourth.until("missed")
            assert told(fourth) == [("missed",)]

    run(test)


def test_what_is_taken_back_at_once_is_told_to_who_listens_and_to_who_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(root, IMAGE, "app:1")
    app = app_of(root)

    def change() -> None:
        open_store(root).tag("app:1", "new:1")
        open_store(root).remove("new:1")

    async def test() -> None:
        async with asking(app, "GET", "/events", accept=SSE) as first:
            await first.until("id: ")
            position = last_id(first)
            await asyncio.to_thread(change)
            await first.until("removed")
        async with asking(app, "GET", "/events", accept=SSE, headers={"last-event-id": position}) as second:
            await second.until("removed")
        assert told(first) == told(second) == [("image", "created", "new:1"), ("image", "removed", "new:1")]
        assert last_id(first) == last_id(second) != position
        assert len(position) < 50

    run(test)


def test_all_who_listen_are_told_the_same_and_one_who_reads_nothing_stops_nobody(tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(root, IMAGE, "app:1")
    app = app_of(root)

    async def test() -> None:
        async with (
            asking(app, "GET", "/events", accept=SSE) as first,
            asking(app, "GET", "/events", accept=NDJSON) as second,
            asking(app, "GET", "/events", accept=NDJSON, reads=False) as deaf,
        ):
            for exchange in (first, second, deaf):
                await exchange.started()
            await first.until("id: ")
            await asyncio.sleep(0.1)
            await asyncio.to_thread(put, root, OTHER, "new:1")
            await first.until("new:1")
            await second.until("new:1")
        assert told(first) == told(second) == [("image", "created", "new:1")]

    run(test)


def test_a_store_that_cannot_be_read_ends_the_stream_and_who_comes_then_has_a_status(tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(root, IMAGE, "app:1")
    app = app_of(root)

    async def test() -> None:
        async with asking(app, "GET", "/events", accept=NDJSON) as exchange:
            await exchange.started()
            await asyncio.sleep(0.1)
            content = (root / "index.json").read_bytes()
            (root / "index.json").write_bytes(b"{")
            await exchange.until("error")
            await exchange.end()
        assert exchange.events()[-1]["status"] == 500
        async with asking(app, "GET", "/events", accept=NDJSON) as refused:
            await refused.end()
        assert refused.status == 500
        (root / "index.json").write_bytes(content)
        async with asking(app, "GET", "/events", accept=NDJSON) as again:
            await again.started()
            await asyncio.sleep(0.1)
            await asyncio.to_thread(put, root, OTHER, "new:1")
            await again.until("new:1")

    run(test)


def test_the_end_of_the_daemon_ends_the_stream(tmp_path: Path) -> None:
    workers = Workers()

    async def test() -> None:
        async with asking(app_of(tmp_path / "data", workers), "GET", "/events", accept=SSE) as exchange:
            await exchange.until("id: ")
            await asyncio.sleep(0.1)
            workers.cancel_operations()
            await exchange.end()
        assert exchange.events()[-1]["status"] == 503

    run(test)


def test_the_head_of_it_comes_and_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with asking(app_of(tmp_path / "data"), "HEAD", "/events") as exchange:
            await exchange.end()
        assert (exchange.status, exchange.body) == (200, b"")

    run(test)


def test_a_daemon_that_is_told_to_end_lets_nobody_wait(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "daemon") as daemon:
        with daemon.stream("GET", "/events", headers={"Accept": NDJSON}) as stream:
            assert stream.status == 200
            assert daemon.post("/images/remove", image="app:1").status == 404
            daemon.process.terminate()
            rest = list(stream)
        assert rest[-1].startswith('{"event":"error","status":503')
        daemon.process.wait(10)
    assert "Traceback" not in daemon.read_log()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no tmpfs, which bears such times")
@pytest.mark.parametrize(
    ("seconds", "told_time"), [(2**40, "9999-12-31T23:59:59.000Z"), (-(2**40), "0001-01-01T00:00:00.000Z")]
)
def test_a_time_that_no_date_has_is_told_as_the_nearest(seconds: int, told_time: str) -> None:
    async def test(root: Path) -> None:
        put(root, IMAGE, "app:1")
        async with asking(app_of(root), "GET", "/events", accept=NDJSON) as exchange:
            await exchange.started()
            await asyncio.sleep(0.1)
            written = root.with_name("written")
            written.write_bytes((root / "index.json").read_bytes().replace(b"app:1", b"new:1"))
            os.utime(written, (0, seconds))
            written.rename(root / "index.json")
            await exchange.until("new:1")
        assert {each["time"] for each in exchange.events()} == {told_time}

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run(lambda: test(Path(folder) / "data"))


def test_whoever_listens_is_told_when_the_watch_ends_for_a_reason_that_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    put(root, IMAGE, "app:1")
    store = open_store(root)
    app = create_app(Settings(data_root=str(root)), store=store)

    def broken(since: object) -> None:
        raise ArithmeticError

    async def test() -> None:
        async with asking(app, "GET", "/events", accept=NDJSON) as exchange:
            await exchange.started()
            monkeypatch.setattr(store, "changes", broken)
            await exchange.until("internal error")
        assert exchange.events()[-1]["status"] == 500
        monkeypatch.undo()
        async with asking(app, "GET", "/events", accept=NDJSON) as exchange:
            await exchange.started()
            await asyncio.sleep(0.1)
            await asyncio.to_thread(open_store(root).tag, "app:1", "new:1")
            await exchange.until("new:1")

    run(test)
