"""The endpoints of the contract, byte for byte, over the application in this process."""

import fcntl
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path
from types import FrameType
from urllib.parse import quote, urlencode

import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from minibox_server.app import create_app
from minibox_server.declarations import EndpointTable
from minibox_server.guard import Guard
from minibox_server.settings import Settings
from minibox_store import Store
from tests.server.clients import BASE_URL, client_of, sentence_of
from tests.server.mounts import small_disk
from tests.support.archives import pack
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.layouts import REFERENCE_NAME, blob_path, read_layout_blobs, read_layout_names, write_layout
from tests.support.tool_archives import docker_members, entry_of, named_oci_members, oci_members

NAME = "app:1"
JSON = {"Accept": "application/json"}


@pytest.fixture
def image() -> BuiltImage:
    return build_image()


@pytest.fixture
def client(tmp_path: Path, image: BuiltImage) -> TestClient:
    """A client of a store with one image."""
    write_layout(tmp_path / "data", {NAME: image})
    return client_of(tmp_path / "data")


def post(client: TestClient, endpoint: str, /, **query: str) -> httpx2.Response:
    return client.post(f"{endpoint}?{urlencode(query)}")


def break_index(data_root: Path) -> None:
    (data_root / "index.json").write_bytes(b"{")


# ---- GET /ping


def test_ping_says_that_the_daemon_runs(client: TestClient) -> None:
    response = client.get("/ping")
    assert (response.status_code, response.content) == (200, b"Daemon is running")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


# ---- GET /images


def test_the_list_of_an_empty_store_is_an_empty_array(tmp_path: Path) -> None:
    response = client_of(tmp_path / "data").get("/images")
    assert (response.status_code, response.content) == (200, b"[]")
    assert response.headers["content-type"] == "application/json"
    assert not (tmp_path / "data").exists()


def test_an_image_is_listed_with_its_size_and_what_else_is_known(client: TestClient, image: BuiltImage) -> None:
    assert client.get("/images").json() == [
        {
            "name": NAME,
            "size_bytes": image.size_bytes,
            "digest": image.digest,
            "media_type": image.media_type,
            "platform": "linux/amd64",
            "created": "2024-01-01T00:00:00Z",
            "layers": 2,
        }
    ]


def test_an_index_is_listed_with_its_platforms(tmp_path: Path) -> None:
    index = build_index([build_image(platform=platform) for platform in ("linux/amd64", "linux/arm/v7")])
    write_layout(tmp_path / "data", {"multi": index})
    [listed] = client_of(tmp_path / "data").get("/images").json()
    assert listed["platforms"] == ["linux/amd64", "linux/arm/v7"]
    assert (listed["platform"], listed["created"]) == (None, None)
    assert (listed["layers"], listed["size_bytes"]) == (4, index.size_bytes)


def test_the_list_is_sorted_by_name_and_follows_the_store(tmp_path: Path, image: BuiltImage) -> None:
    write_layout(tmp_path / "data", dict.fromkeys(("b:2", "team/app", "a:1"), image))
    client = client_of(tmp_path / "data")
    assert [each["name"] for each in client.get("/images").json()] == ["a:1", "b:2", "team/app"]
    post(client, "/images/remove", image="b:2")
    assert [each["name"] for each in client.get("/images").json()] == ["a:1", "team/app"]


def test_an_image_whose_manifest_is_damaged_is_listed_as_damaged(
    client: TestClient, tmp_path: Path, image: BuiltImage
) -> None:
    blob_path(tmp_path / "data", image.digest).write_bytes(b"{}")
    [listed] = client.get("/images").json()
    assert listed["damaged"] is True
    assert (listed["name"], listed["digest"]) == (NAME, image.digest)


def test_a_warm_list_takes_as_many_steps_of_five_thousand_images_as_of_fifty(tmp_path: Path, image: BuiltImage) -> None:
    few, many = (steps_of_a_warm_list(tmp_path / str(count), image, count) for count in (50, 5000))
    assert many < few + 100, "how long that takes is measured by the benchmark"


def steps_of_a_warm_list(root: Path, image: BuiltImage, count: int) -> int:
    """Return how many functions this project calls, its own and others, to list so many images once more."""
    write_layout(root, {NAME: image})
    index = json.loads((root / "index.json").read_bytes())
    [entry] = index["manifests"]
    names = [{REFERENCE_NAME: f"app{number}:1"} for number in range(count)]
    index["manifests"] = [{**entry, "annotations": name} for name in names]
    (root / "index.json").write_text(json.dumps(index))
    steps = []

    def note(frame: FrameType, event: str, _: object) -> None:
        # What the server and its loop do for each piece of the answer is theirs.
        if event in ("call", "c_call") and frame.f_globals.get("__name__", "").startswith("minibox_"):
            steps.append(event)

    threading.setprofile(note)  # of threads that begin from now on: the daemon's
    try:
        with client_of(root, is_held=False) as client:
            assert len(client.get("/images").json()) == count
            found = []
            for _ in range(4):
                time.sleep(0.3)  # until what was listed is asked of the store again
                steps.clear()
                assert client.get("/images").status_code == 200
                found.append(len(steps))
    finally:
        threading.setprofile(None)
    assert min(found) > 0, "nothing was counted"
    return min(found)


# ---- POST /images/save and /images/load


def test_an_image_is_saved_and_loaded_into_another_store(client: TestClient, tmp_path: Path, image: BuiltImage) -> None:
    path = tmp_path / "app.tar"
    saved = post(client, "/images/save", image=NAME, path=str(path))
    assert (saved.status_code, saved.text) == (200, f"Saved image {NAME} to {path}\n")
    other = client_of(tmp_path / "other")
    loaded = post(other, "/images/load", path=str(path))
    assert (loaded.status_code, loaded.text) == (200, f"Loaded image {NAME} from {path}\n")
    assert read_layout_blobs(tmp_path / "other") == image.blobs
    assert post(other, "/images/load", path=str(path)).text == loaded.text


@pytest.mark.parametrize("name", ["team/app:1", "quay.io:5000/a/b/c:1", "a/b", "[::1]:5000/app:1", "Odd~Name", "a%2F"])
def test_a_name_with_slashes_is_saved_loaded_and_removed(tmp_path: Path, image: BuiltImage, name: str) -> None:
    write_layout(tmp_path / "data", {name: image})
    client = client_of(tmp_path / "data")
    path = str(tmp_path / "app.tar")
    assert post(client, "/images/save", image=name, path=path).text == f"Saved image {name} to {path}\n"
    assert post(client, "/images/remove", image=name).text == f"Image {name} removed\n"
    assert post(client, "/images/load", path=path).text == f"Loaded image {name} from {path}\n"
    assert [each["name"] for each in client.get("/images").json()] == [name]


def test_all_images_of_an_archive_are_loaded_each_told_by_a_line(tmp_path: Path, image: BuiltImage) -> None:
    other, path = build_image(salt="other"), tmp_path / "images.tar"
    client = client_of(tmp_path / "data")
    path.write_bytes(pack(named_oci_members({"b:1": image, "a:1": other})))
    loaded = post(client, "/images/load", path=str(path))
    assert (loaded.status_code, loaded.text) == (200, f"Loaded image b:1 from {path}\nLoaded image a:1 from {path}\n")
    path.write_bytes(pack(docker_members(image, "c:1", style="docker")))
    assert post(client, "/images/load", path=str(path)).text == f"Loaded image c:1 from {path}\n"
    path.write_bytes(pack(oci_members([entry_of(image, "d:1"), entry_of(other)], image, other)))
    refused = post(client, "/images/load", path=str(path))
    assert (refused.status_code, "has no name in it" in sentence_of(refused)) == (422, True)
    assert [each["name"] for each in client.get("/images").json()] == ["a:1", "b:1", "c:1"]


def test_save_replaces_a_file_in_one_step(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        assert post(client, "/images/save", image=NAME, path=str(path)).status_code == 200
        assert reader.read() == b"old"
    assert len(path.read_bytes()) > 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["app.tar", "data"]


@pytest.mark.parametrize("query", ["", "image=a", "path=/tmp/x", "image=&path=/tmp/x", "image=a&path=", "images=a"])
def test_save_needs_an_image_and_a_path(client: TestClient, query: str) -> None:
    response = client.post(f"/images/save?{query}")
    assert (response.status_code, response.text) == (400, "missing image or path\n")


@pytest.mark.parametrize("query", ["", "path=", "image=a"])
def test_load_needs_a_path(client: TestClient, query: str) -> None:
    response = client.post(f"/images/load?{query}")
    assert (response.status_code, response.text) == (400, "missing path\n")


@pytest.mark.parametrize("path", ["/images/save?image=a&path=x", "/images/load?path=x", "/images/load?path=/a%00b"])
def test_a_path_that_is_not_absolute_names_its_parameter(client: TestClient, path: str) -> None:
    response = client.post(path)
    assert response.status_code == 400
    assert "path" in sentence_of(response)


def test_a_repeated_parameter_is_named(client: TestClient) -> None:
    for path in ("/images/load?path=/a&path=/b", "/images/save?image=a&path=/a&path=/b"):
        assert client.post(path).text == "parameter path is repeated\n"
    for path in (
        "/images/pull?image=a&image=a",
        "/images/remove?image=a&image=a",
        "/images/save?image=a&image=b&path=/a",
    ):
        assert client.post(path).text == "parameter image is repeated\n"


def test_what_does_not_exist_is_named(client: TestClient, tmp_path: Path) -> None:
    missing = tmp_path / "no-such.tar"
    response = post(client, "/images/load", path=str(missing))
    assert response.status_code == 400
    assert str(missing) in sentence_of(response)
    response = post(client, "/images/save", image=NAME, path=str(missing / "a.tar"))
    assert response.status_code == 400
    assert str(missing) in sentence_of(response)
    response = post(client, "/images/save", image="other:1", path=str(missing))
    assert response.status_code == 404
    assert "other:1" in sentence_of(response)
    assert not missing.exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/etc/minibox-test.tar", "/dev/null"])
def test_paths_outside_are_refused(client: TestClient, path: str) -> None:
    for response in (
        post(client, "/images/load", path=path),
        post(client, "/images/save", image=NAME, path=path),
    ):
        assert response.status_code == 403
        assert path in sentence_of(response)
    assert not Path("/etc/minibox-test.tar").exists()


def test_the_files_of_the_store_are_refused(client: TestClient, tmp_path: Path, image: BuiltImage) -> None:
    before = (tmp_path / "data" / "index.json").read_bytes()
    for path in (tmp_path / "data" / "index.json", blob_path(tmp_path / "data", image.digest)):
        assert post(client, "/images/load", path=str(path)).status_code == 403
        assert post(client, "/images/save", image=NAME, path=str(path)).status_code == 403
    assert (tmp_path / "data" / "index.json").read_bytes() == before


def test_a_pipe_is_refused_and_left_as_it_is(client: TestClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert post(client, "/images/load", path=str(tmp_path / "pipe")).status_code == 403
    assert post(client, "/images/save", image=NAME, path=str(tmp_path / "pipe")).status_code == 403
    assert (tmp_path / "pipe").is_fifo()


def test_what_is_no_archive_is_refused_and_leaves_nothing_behind(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    post(client, "/images/save", image=NAME, path=str(path))
    whole = path.read_bytes()
    corrupted = bytearray(whole)
    corrupted[whole.index(b"schemaVersion") + 5] ^= 1
    renamed = whole.replace(NAME.encode(), b"//a:1"[: len(NAME)])
    post(client_of(tmp_path / "other"), "/images/load", path=str(path))
    post(client_of(tmp_path / "other"), "/images/remove", image=NAME)
    client_of(tmp_path / "other").post("/system/prune")
    kept = {path.name for path in (tmp_path / "other").rglob("*") if path.is_file()}
    for content in (b"", b"no tar at all", whole[: len(whole) // 2], bytes(corrupted), renamed):
        path.write_bytes(content)
        response = post(client_of(tmp_path / "other"), "/images/load", path=str(path))
        assert response.status_code == 422
        assert sentence_of(response)
        assert read_layout_names(tmp_path / "other") == {}
        assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file() and path.name not in kept]


def test_an_image_that_is_incomplete_is_not_saved(client: TestClient, tmp_path: Path, image: BuiltImage) -> None:
    layer = image.document()["layers"][0]["digest"]
    blob_path(tmp_path / "data", layer).unlink()
    response = post(client, "/images/save", image=NAME, path=str(tmp_path / "app.tar"))
    assert response.status_code == 409
    assert layer in sentence_of(response)
    assert not (tmp_path / "app.tar").exists()


def test_control_characters_in_a_path_cannot_make_a_line_of_their_own(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "a\n[pull] Done\x1b[2J.tar"
    shown = f"{tmp_path}/a\\x0a[pull] Done\\x1b[2J.tar"
    assert post(client, "/images/save", image=NAME, path=str(path)).text == f"Saved image {NAME} to {shown}\n"
    assert post(client, "/images/load", path=str(path)).text == f"Loaded image {NAME} from {shown}\n"
    assert path.is_file()
    path.unlink()
    assert shown in sentence_of(post(client, "/images/load", path=str(path)))


# ---- POST /images/remove


def test_a_name_is_removed_and_its_blobs_stay(client: TestClient, tmp_path: Path, image: BuiltImage) -> None:
    response = post(client, "/images/remove", image=NAME)
    assert (response.status_code, response.text) == (200, f"Image {NAME} removed\n")
    assert read_layout_names(tmp_path / "data") == {}
    assert read_layout_blobs(tmp_path / "data") == image.blobs


def test_an_image_that_is_not_there_is_not_found(client: TestClient, tmp_path: Path) -> None:
    for name in ("app:2", "other", "appx"):
        response = post(client, "/images/remove", image=name)
        assert (response.status_code, response.text) == (404, "image not found\n")
    assert list(read_layout_names(tmp_path / "data")) == [NAME]
    assert client.post("/images/remove?image=app:2", headers=JSON).json()["detail"] == "image not found"


def test_another_spelling_of_a_name_removes_it_where_only_one_is_meant(tmp_path: Path, image: BuiltImage) -> None:
    write_layout(tmp_path / "data", {"docker.io/library/app:latest": image})
    client = client_of(tmp_path / "data")
    assert post(client, "/images/remove", image="app").text == "Image docker.io/library/app:latest removed\n"
    assert read_layout_names(tmp_path / "data") == {}


@pytest.mark.parametrize("name", [" ", "a b", "../a", "a//b", "-a", "a\nb", "\u00e9", "a" * 513])
def test_what_no_image_may_be_called_is_no_name(client: TestClient, tmp_path: Path, name: str) -> None:
    for response in (
        post(client, "/images/remove", image=name),
        post(client, "/images/save", image=name, path=str(tmp_path / "app.tar")),
    ):
        assert response.status_code == 400
        assert sentence_of(response).startswith("parameter image: ")
    assert not (tmp_path / "app.tar").exists()


def test_remove_needs_a_name(client: TestClient) -> None:
    for query in ("", "image="):
        response = client.post(f"/images/remove?{query}")
        assert (response.status_code, response.text) == (400, "missing image\n")


# ---- POST /system/prune


def test_a_prune_counts_what_it_removed(client: TestClient, tmp_path: Path, image: BuiltImage) -> None:
    post(client, "/images/remove", image=NAME)
    plan = client.post("/system/prune?dry_run=1").json()
    assert plan["dry_run"] is True
    assert {f"sha256:{Path(each['path']).name}" for each in plan["plan"]} == set(image.blobs)
    assert read_layout_blobs(tmp_path / "data") == image.blobs
    response = client.post("/system/prune")
    assert response.headers["content-type"] == "application/json"
    report = response.json()
    assert report["blobs_removed"] == plan["blobs_removed"] == len(image.blobs)
    assert report["bytes_freed"] == plan["bytes_freed"] == image.size_bytes
    assert report["fuse_mounts_killed"] == 0
    assert "build_cache_removed" not in report
    assert read_layout_blobs(tmp_path / "data") == {}


def test_a_prune_with_build_cache_counts_that_too(client: TestClient, tmp_path: Path) -> None:
    unpacked = tmp_path / "data" / "layers" / "one"
    unpacked.mkdir(parents=True)
    (unpacked / "file").write_bytes(bytes(1000))
    assert client.post("/system/prune").json()["blobs_removed"] == 0
    assert unpacked.exists()
    report = client.post("/system/prune?build_cache=1").json()
    # Where processes cannot be looked into, it stays, and the answer says why.
    assert report["build_cache_removed"] + len(report["kept"]) == 1
    assert report["build_cache_removed"] == (not unpacked.exists())
    assert (report["build_cache_bytes_freed"] >= 1000) == (not unpacked.exists())


@pytest.mark.parametrize("query", ["build_cache=", "build_cache=maybe", "dry_run=2", "dry_run=1&dry_run=1"])
def test_a_switch_of_a_wrong_form_is_named(client: TestClient, query: str) -> None:
    response = client.post(f"/system/prune?{query}")
    assert response.status_code == 400
    assert query.partition("=")[0] in sentence_of(response)


def test_a_prune_that_cannot_read_a_root_removes_nothing_and_names_it(
    client: TestClient, tmp_path: Path, image: BuiltImage
) -> None:
    (tmp_path / "data" / "blobs" / "sha256" / ("0" * 64)).write_bytes(b"dead")
    blob_path(tmp_path / "data", image.digest).write_bytes(b"{}")
    response = client.post("/system/prune")
    assert response.status_code == 500
    assert image.digest.removeprefix("sha256:") in sentence_of(response)
    assert (tmp_path / "data" / "blobs" / "sha256" / ("0" * 64)).exists()


# ---- what holds for all


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/images"),
        ("POST", "/images/remove?image=a"),
        ("POST", f"/images/save?image=a&path={quote('/tmp/minibox-never.tar')}"),
        ("POST", "/system/prune"),
        ("GET", "/v2/app/tags/list"),
    ],
)
def test_a_damaged_index_is_named_and_left_alone(client: TestClient, tmp_path: Path, method: str, path: str) -> None:
    break_index(tmp_path / "data")
    response = client.request(method, path)
    assert response.status_code == 500
    assert "index.json" in response.text
    assert "Traceback" not in response.text
    assert (tmp_path / "data" / "index.json").read_bytes() == b"{"


def test_a_full_disk_has_a_status_of_its_own(tmp_path: Path) -> None:
    image = build_image([random_layer(1024 * 1024)])
    write_layout(tmp_path / "data", {NAME: image})
    client = client_of(tmp_path / "data")
    assert post(client, "/images/save", image=NAME, path=str(tmp_path / "app.tar")).status_code == 200
    with small_disk(tmp_path / "small", 512 * 1024):
        saved = post(client, "/images/save", image=NAME, path=str(tmp_path / "small" / "app.tar"))
        loaded = post(client_of(tmp_path / "small" / "data"), "/images/load", path=str(tmp_path / "app.tar"))
        for response in (saved, loaded):
            assert response.status_code == 507
            assert re.search(r"not enough space .* [0-9]+ bytes are needed, and [0-9]+ are free", sentence_of(response))
        assert not (tmp_path / "small" / "app.tar").exists()
        assert client_of(tmp_path / "small" / "data").get("/images").json() == []


def test_a_busy_store_has_a_status_of_its_own(tmp_path: Path, image: BuiltImage) -> None:
    write_layout(tmp_path / "data", {NAME: image})
    store = Store(tmp_path / "data", lock_timeout_seconds=0.2)
    busy = TestClient(create_app(Settings(data_root=store.root), store=store), base_url=BASE_URL)
    (tmp_path / "data" / "ingest").mkdir(exist_ok=True)
    with (tmp_path / "data" / "ingest" / "store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        response = post(busy, "/images/remove", image=NAME)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "busy" in sentence_of(response)


def test_other_methods_are_not_allowed_and_the_answer_says_which_are(client: TestClient) -> None:
    for method, path, allowed in [
        ("POST", "/ping", "GET, HEAD"),
        ("DELETE", "/images", "GET, HEAD"),
        ("GET", "/images/pull", "POST"),
        ("PUT", "/images/save", "POST"),
        ("GET", "/images/load", "POST"),
        ("HEAD", "/images/remove", "POST"),
        ("PATCH", "/system/prune", "POST"),
    ]:
        response = client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_other_paths_are_not_found_in_the_form_that_was_asked_for(client: TestClient) -> None:
    assert client.get("/nowhere").text == "nothing is at /nowhere\n"
    response = client.get("/nowhere", headers=JSON)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"] == "nothing is at /nowhere"


def test_a_body_and_its_type_are_ignored(client: TestClient, tmp_path: Path) -> None:
    path = str(tmp_path / "app.tar")
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        headers = {"Content-Type": kind}
        query = urlencode({"image": NAME, "path": path})
        assert client.post(f"/images/save?{query}", headers=headers, content=b"image=x&path=y").status_code == 200
        assert client.post(f"/images/load?path={path}", headers=headers).status_code == 200
        assert client.post("/system/prune", headers=headers, content=b"{").status_code == 200


def test_the_store_is_found_again_where_its_folder_was_replaced(client: TestClient, tmp_path: Path) -> None:
    assert len(client.get("/images").json()) == 1
    shutil.rmtree(tmp_path / "data")
    assert client.get("/images").json() == []


def test_an_unexpected_error_is_logged_and_told_as_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("what only the log may say")

    client = TestClient(Guard(broken, Settings(), EndpointTable([])), base_url=BASE_URL)
    response = client.get("/images")
    assert (response.status_code, response.text) == (500, "internal error\n")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "what only the log may say" in caplog.text
    assert client.get("/images", headers=JSON).json()["detail"] == "internal error"


def test_the_log_has_one_line_for_each_request_and_no_query(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client.post("/images/remove?image=a-secret-name", headers={"X-API-Token": "a-secret-token"})
    client.get("/nowhere")
    client.get("/a%0aline")
    lines = [record.getMessage() for record in caplog.records if record.name == "minibox_server.access"]
    assert [re.sub(r" \d+ ms$", "", line) for line in lines] == [
        'testclient "POST /images/remove" 404',
        'testclient "GET /nowhere" 404',
        'testclient "GET /a\\x0aline" 400',
    ]
    own = [record.getMessage() for record in caplog.records if record.name.startswith("minibox")]
    assert not any("secret" in line for line in own)


def test_the_list_is_json_that_any_reader_takes(client: TestClient) -> None:
    assert json.loads(client.get("/images").content)[0]["name"] == NAME
