"""GET /system/df and /info, POST /system/verify, /repair and /prune: what the store tells of itself as a whole."""

import asyncio
import contextlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.settings import Settings
from minibox_store import Store, StoreUsage, __version__
from tests.server.clients import client_of, sentence_of
from tests.support.asgi import asking
from tests.support.images import build_image, build_layer
from tests.support.invariants import check_invariants
from tests.support.layouts import blob_path, read_layout_blobs, write_layout
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.snapshots import snapshot
from tests.support.stores import open_store, put, put_dead, rot

SHARED = build_layer({"srv/shared": b"shared" * 1000}, compressed=False)
ONE = build_image([SHARED, {"a": b"1"}])
OTHER = build_image([SHARED], salt="other")
DEAD = build_image([{"dead": b"1"}], salt="dead")
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A store with two images that share a layer, and blobs that none needs."""
    put(tmp_path / "data", ONE, "one:1")
    put(tmp_path / "data", OTHER, "other:1")
    put_dead(tmp_path / "data", DEAD)
    return tmp_path / "data"


@pytest.fixture
def client(data_root: Path) -> TestClient:
    return client_of(data_root)


def last_event(client: TestClient, path: str) -> dict[str, Any]:
    """Return the last event of an operation, without its name; nothing but events came before it."""
    answer = client.post(path, headers=NDJSON)
    assert answer.status_code == 200
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [each["event"] for each in events].index("result") == len(events) - 1
    return {key: value for key, value in events[-1].items() if key != "event"}


# ---- df


def test_the_bytes_are_told_of_each_image_and_of_each_blob(client: TestClient) -> None:
    told = client.get("/system/df").json()
    shared = len(SHARED.content)
    assert [(each["name"], each["own_bytes"], each["shared_bytes"]) for each in told["images"]] == [
        ("one:1", ONE.size_bytes - shared, shared),
        ("other:1", OTHER.size_bytes - shared, shared),
    ]
    assert told["reclaimable_bytes"] == DEAD.size_bytes
    assert told["total_bytes"] == ONE.size_bytes + OTHER.size_bytes - shared + DEAD.size_bytes
    assert sum(each["size_bytes"] for each in told["blobs"]) == told["total_bytes"]
    assert len(told["blobs"]) == told["blob_count"]
    assert told["blobs"][0] == {
        "digest": SHARED.diff_id,
        "size_bytes": shared,
        "kind": "layer",
        "media_type": SHARED.media_type,
        "needed_by": 2,
        "images": ["one:1", "other:1"],
    }
    dead = [each for each in told["blobs"] if each["digest"] in DEAD.blobs]
    assert {(each["kind"], each["needed_by"], tuple(each["images"])) for each in dead} == {(None, 0, ())}


def test_as_many_blobs_are_told_as_are_wanted(client: TestClient) -> None:
    whole = client.get("/system/df").json()
    for wanted in (0, 1, 3):
        told = client.get("/system/df", params={"blobs": str(wanted)}).json()
        assert told == {**whole, "blobs": whole["blobs"][:wanted]}
    assert client.get("/system/df", params={"blobs": "999999999999"}).json() == whole
    assert client.get("/system/df", params={"blobs": "-1"}).status_code == 400


def test_all_who_ask_for_the_bytes_at_once_share_the_answer(data_root: Path) -> None:
    all_have_come = threading.Event()

    class Weighed(Store):
        weighings = 0

        def usage(self, *, most_blobs: int = 0) -> StoreUsage:
            self.weighings += 1
            assert all_have_come.wait(60)
            return super().usage(most_blobs=most_blobs)

    store = Weighed(data_root)
    app = create_app(Settings(data_root=str(data_root)), store=store)

    async def ask() -> None:
        async with contextlib.AsyncExitStack() as asked:
            exchanges = [await asked.enter_async_context(asking(app, "GET", "/system/df")) for _ in range(20)]
            await asyncio.sleep(0.1)  # whatever is ready runs before that is over
            all_have_come.set()
            answers = {(await each.end()).body for each in exchanges}
        assert [json.loads(each)["blob_count"] for each in answers] == [open_store(data_root).usage().blob_count]

    asyncio.run(ask())
    assert store.weighings <= 2


def test_a_store_that_is_not_there_has_no_bytes_and_is_not_made(tmp_path: Path) -> None:
    told = client_of(tmp_path / "none").get("/system/df").json()
    assert told == {"total_bytes": 0, "reclaimable_bytes": 0, "blob_count": 0, "images": [], "blobs": []}
    info = client_of(tmp_path / "none").get("/system/info").json()
    assert (info["images"], info["hard_links"]) == (0, None)
    assert not (tmp_path / "none").exists()


def test_a_store_that_cannot_be_read_tells_no_bytes(client: TestClient, data_root: Path) -> None:
    blob_path(data_root, ONE.digest).unlink()
    answer = client.get("/system/df")
    assert (answer.status_code, ONE.digest in sentence_of(answer)) == (409, True)


# ---- info


def test_the_store_is_told_with_what_it_can_do(client: TestClient, data_root: Path) -> None:
    assert client.get("/system/info").json() == {
        "version": __version__,
        "data_root": str(data_root),
        "durable": True,
        "hard_links": True,
        "images": 2,
    }


def test_a_data_root_that_is_no_utf8_is_shown_as_such(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd-\xff"))
    assert client_of(root).get("/system/info").json()["data_root"] == f"{tmp_path}/odd-\\udcff"


# ---- verify


def test_what_is_wrong_is_found_and_nothing_is_changed(client: TestClient, data_root: Path) -> None:
    rot(blob_path(data_root, SHARED.diff_id))
    before = snapshot(data_root)
    told = client.post("/system/verify").json()
    assert told["is_whole"] is False
    [damage] = [each for each in told["findings"] if each["is_damage"]]
    path = f"blobs/sha256/{SHARED.diff_id.removeprefix('sha256:')}"
    assert (damage["kind"], damage["path"], damage["digest"]) == ("wrong digest", path, SHARED.diff_id)
    assert damage["names"] == ["one:1", "other:1"]
    unreferenced = {each["digest"] for each in told["findings"] if each["kind"] == "unreferenced"}
    assert unreferenced == set(DEAD.blobs)
    assert last_event(client, "/system/verify") == told
    assert snapshot(data_root) == before


def test_a_store_that_is_right_is_said_to_be_whole(tmp_path: Path) -> None:
    put(tmp_path / "data", ONE, "one:1")
    client = client_of(tmp_path / "data")
    assert client.post("/system/verify").json() == {"is_whole": True, "findings": []}
    events = [json.loads(line) for line in client.post("/system/verify", headers=NDJSON).text.splitlines()]
    assert {each["digest"] for each in events if each["event"] == "blob"} == {ONE.config_digest, *ONE.layer_digests}


def test_a_file_whose_name_is_no_text_is_told_all_the_same(client: TestClient, data_root: Path) -> None:
    os.mkdir(os.fsencode(data_root / "blobs" / "sha256") + b"/odd-\xff\n")
    told = client.post("/system/verify").json()
    [odd] = [each for each in told["findings"] if each["kind"] == "not a file"]
    assert odd["path"].startswith("blobs/sha256/odd-\\udcff")
    os.mkdir(os.fsencode(data_root) + b"/tmp-pull-\xff")
    # What stays, since a process that cannot be looked into may have it open, is named as what goes is.
    pruned = client.post("/system/prune?dry_run=1").json()
    named = [*(each["path"] for each in pruned["plan"]), *pruned["kept"]]
    assert any(each.startswith("tmp-pull-\\udcff") for each in named)


# ---- repair


def test_what_is_wrong_is_fetched_again_from_where_it_was_pulled(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", ONE)
        client = client_of(tmp_path / "data", unpack=False)
        assert client.post("/images/pull", params={"image": registry.reference("team/app", "1")}).status_code == 200
        for digest in ONE.layer_digests:
            rot(blob_path(tmp_path / "data", digest))
        told = client.post("/system/repair").json()
    assert told["is_whole"] is True
    assert sorted(each["finding"]["digest"] for each in told["mended"]) == sorted(ONE.layer_digests)
    assert {each["origin"] for each in told["mended"]} == {registry.reference("team/app", "1").rpartition(":")[0]}
    assert read_layout_blobs(tmp_path / "data") == ONE.blobs
    assert client.post("/system/verify").json()["is_whole"] is True


def test_a_repair_tells_of_each_blob_that_it_reads(client: TestClient) -> None:
    events = [json.loads(line) for line in client.post("/system/repair", headers=NDJSON).text.splitlines()]
    told = {each["digest"] for each in events if each["event"] == "blob"}
    assert told == {each for image in (ONE, OTHER) for each in (image.config_digest, *image.layer_digests)}
    assert [each["done_bytes"] == each["total_bytes"] for each in events if each["event"] == "progress"][-1]


def test_what_cannot_be_mended_is_told_and_set_aside(client: TestClient, data_root: Path) -> None:
    rot(blob_path(data_root, SHARED.diff_id))
    told = last_event(client, "/system/repair")
    assert told["is_whole"] is False
    [unmended] = told["unmended"]
    assert unmended["finding"]["digest"] == SHARED.diff_id
    assert unmended["is_needed"] is True
    assert (data_root / unmended["kept_aside"]).is_file()
    assert unmended["problems"]


def test_an_index_that_cannot_be_read_is_written_anew(client: TestClient, data_root: Path) -> None:
    client.post("/images/tag", params={"image": "one:1", "new_name": "two:1"})
    (data_root / "index.json").write_bytes(b"{")
    told = client.post("/system/repair").json()
    assert told["index"]["names"] == ["one:1", "other:1", "two:1"]
    assert (data_root / told["index"]["kept_aside"]).read_bytes() == b"{"
    check_invariants(data_root)


def test_names_that_were_lost_are_told(client: TestClient, data_root: Path) -> None:
    client.post("/images/remove", params={"image": "other:1"})
    told = client.post("/system/repair").json()
    lost = {each["name"]: each["digest"] for each in told["lost_names"]}
    assert lost == {"dead:1": DEAD.digest, "other:1": OTHER.digest}
    assert sorted(told["nameless"]) == sorted(lost.values())


# ---- prune


def test_a_prune_ends_in_one_result_for_a_program(client: TestClient, data_root: Path) -> None:
    plan = last_event(client, "/system/prune?dry_run=1")
    again = client.post("/system/prune?dry_run=1").json()
    for each in (*plan["plan"], *again["plan"]):
        assert each.pop("age_seconds") >= 0
    assert plan == again
    assert {each["path"] for each in plan["plan"] if each["kind"] == "blob"} == {
        f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in DEAD.blobs
    }
    done = last_event(client, "/system/prune")
    assert done["blobs_removed"] == len(DEAD.blobs)
    assert set(read_layout_blobs(data_root)) == {*ONE.blobs, *OTHER.blobs}


@pytest.mark.parametrize("headers", [{}, NDJSON])
@pytest.mark.parametrize("path", ["/system/verify", "/system/prune", "/system/repair"])
def test_a_store_whose_index_is_damaged_for_good_is_a_real_status(
    path: str, headers: dict[str, str], tmp_path: Path
) -> None:
    write_layout(tmp_path / "data", {"one:1": ONE})
    (tmp_path / "data" / "index.json").write_bytes(b"{")
    answer = client_of(tmp_path / "data").post(path, headers=headers)
    assert (answer.status_code, "index.json" in answer.text) == (500, True)
    assert re.search("traceback", answer.text, re.I) is None
