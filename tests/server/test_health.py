"""GET /healthz and /readyz: what is wrong is said in a word, to anybody, and nothing else is."""

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minibox_server.health import Health, HealthCheck
from minibox_server.workers import Workers
from minibox_store import Store
from tests.server.clients import TOKEN, client_of
from tests.support.images import build_image
from tests.support.layouts import write_layout
from tests.support.stores import mounted

JSON = {"Accept": "application/json"}


def test_the_daemon_is_live_and_ready_before_anything_is_in_its_store(tmp_path: Path) -> None:
    client = client_of(tmp_path / "data")
    assert (client.get("/healthz").status_code, client.get("/healthz").text) == (200, "ok\n")
    assert (client.get("/readyz").status_code, client.get("/readyz").text) == (200, "ready\n")
    assert not (tmp_path / "data").exists(), "to look makes nothing"


def test_anybody_may_ask_and_learns_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.json").write_text("{ a secret")
    client = client_of(tmp_path / "data", token=TOKEN)
    assert client.get("/images").status_code == 401
    for path in ("/healthz", "/readyz"):
        for headers in ({}, JSON, {"Authorization": "Bearer wrong"}):
            answer = client.get(path, headers=headers)
            assert answer.status_code == (200 if path == "/healthz" else 503)
            assert str(tmp_path) not in answer.text
            assert "secret" not in answer.text
    assert client.get("/healthz", headers={"Host": "evil.example.com"}).status_code == 403


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    (tmp_path / "data" / "index.json").write_text("{")
    client = client_of(tmp_path / "data")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "not ready: index\n")
    assert int(answer.headers["retry-after"]) > 0
    problem = client.get("/readyz", headers=JSON)
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json()["detail"] == "not ready: index"
    assert client.get("/healthz").status_code == 200


def test_a_store_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    answer = client_of(tmp_path / "data").get("/readyz")
    assert answer.status_code == 503
    assert "store" in answer.text


def test_a_store_without_room_is_named_and_is_ready_when_there_is_some(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=4m") as folder:
        write_layout(folder / "data", {"app:1": build_image()})
        client = client_of(folder / "data", ready_free_bytes=2 * 1024 * 1024)
        assert client.get("/readyz").status_code == 200
        (folder / "filling").write_bytes(bytes(3 * 1024 * 1024))
        assert client_of(folder / "data", ready_free_bytes=2 * 1024 * 1024).get("/readyz").text == "not ready: space\n"


def test_a_store_that_is_mounted_to_be_read_alone_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=4m,ro") as folder:
        assert client_of(folder, ready_free_bytes=0).get("/readyz").text == "not ready: store\n"


class Counting(Store):
    """A store that counts who asks, and lets each wait."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def images(self, *arguments: object) -> tuple[()]:
        self.asked += 1
        assert self.may_answer.wait(30)
        return ()


@contextmanager
def silent(store: Counting) -> Iterator[None]:
    store.may_answer.clear()
    try:
        yield
    finally:
        store.may_answer.set()


def test_many_who_ask_at_once_are_told_what_one_look_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibox_server.health._BELIEVED_SECONDS", math.inf)
    store = Counting(tmp_path / "data")
    check = HealthCheck(store, Workers(), free_bytes=0)

    async def ask() -> list[Health]:
        return await asyncio.gather(*(check.look() for _ in range(100)))

    assert {each.failed for each in asyncio.run(ask())} == {()}
    assert store.asked == 1


def test_a_store_that_does_not_answer_is_not_ready_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibox_server.health._PATIENCE_SECONDS", 0.2)
    store = Counting(tmp_path / "data")
    check = HealthCheck(store, Workers(), free_bytes=0)

    async def ask() -> Health:
        with silent(store):
            return await asyncio.wait_for(check.look(), 10)

    assert asyncio.run(ask()).failed == ("store", "index", "space")


def test_a_store_that_does_not_answer_keeps_one_thread_however_often_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minibox_server.health._PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("minibox_server.health._BELIEVED_SECONDS", 0)
    store = Counting(tmp_path / "data")
    workers = Workers()
    check = HealthCheck(store, workers, free_bytes=0)

    async def ask() -> Health:
        with silent(store):
            for _ in range(10):
                assert (await check.look()).failed
            assert workers.running == 1
        monkeypatch.setattr("minibox_server.health._PATIENCE_SECONDS", 60)
        return await check.look()

    assert asyncio.run(ask()).failed == ()
    assert store.asked == 1
