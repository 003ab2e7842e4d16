"""GET /images/archive: what a save writes, its exact size first, ranges of it, each refusal before the first byte."""

import asyncio
import contextlib
import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.settings import Settings
from minibox_store import Store
from tests.server.clients import client_of, sentence_of
from tests.support.asgi import Exchange, asking
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import build_image, build_index, random_layer
from tests.support.invariants import check_invariants
from tests.support.layouts import blob_path, write_layout, write_named_text
from tests.support.stores import open_store

SHARED = random_layer(3 * 1024 * 1024)
IMAGES = {
    "app:1": build_image([SHARED, {"a": b"1"}]),
    "quay.io/team/app:2": build_image([SHARED], salt="second"),
    "index:1": build_index([build_image(), build_image(platform="linux/arm64")]),
    # A document that is no small piece.
    "words:1": build_image(annotations={"many": "words" * 40_000}),
}
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that no test changes."""
    root = tmp_path_factory.mktemp("store") / "data"
    write_layout(root, IMAGES)
    yield open_store(root)
    check_invariants(root, history_behind=True)


@pytest.fixture(scope="module")
def daemon(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon over it."""
    with running_daemon(tmp_path_factory.mktemp("daemon"), data_root=Path(store.root)) as daemon:
        yield daemon
    assert "did not end in time" not in daemon.read_log()
    assert "Traceback" not in daemon.read_log()


@pytest.fixture
def client(store: Store) -> TestClient:
    """A client of the application in this process, over the same store."""
    return client_of(Path(store.root))


def saved(store: Store, path: Path, *names: str, **options: Any) -> bytes:
    """Return what a save writes."""
    store.save(names, path, **options)
    return path.read_bytes()


def archive(client: TestClient, *names: str, headers: dict[str, str] | None = None, **query: str) -> httpx2.Response:
    return client.get("/images/archive", params=[*(("image", name) for name in names), *query.items()], headers=headers)


# ---- in this process


@pytest.mark.parametrize("form", [None, "minibox", "oci", "docker", "both"])
def test_it_is_what_a_save_writes_with_its_size(
    form: str | None, client: TestClient, store: Store, tmp_path: Path
) -> None:
    answer = archive(client, "app:1", format=form) if form else archive(client, "app:1")
    assert answer.status_code == 200
    assert answer.content == saved(store, tmp_path / "app.tar", "app:1", format=form or "minibox")
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-disposition"] == 'attachment; filename="app_1.tar"'


def test_several_images_and_a_platform_are_chosen(client: TestClient, store: Store, tmp_path: Path) -> None:
    names = ("quay.io/team/app:2", "app:1")
    answer = archive(client, *names, format="both")
    assert answer.content == saved(store, tmp_path / "all.tar", *names, format="both")
    assert answer.headers["content-disposition"] == 'attachment; filename="images.tar"'
    [arm64] = [each.platform for each in store.inspect("index:1").manifests if "arm64" in str(each.platform)]
    answer = archive(client, "index:1", format="docker", platform="linux/arm64")
    assert answer.content == saved(store, tmp_path / "arm.tar", "index:1", format="docker", platform=arm64)


def test_what_was_sent_is_loaded_by_another_daemon(client: TestClient, tmp_path: Path) -> None:
    other = client_of(tmp_path / "other")
    content = archive(client, *IMAGES, format="oci").content
    assert other.post("/images/load", content=content, headers={"Content-Type": "application/x-tar"}).status_code == 200
    assert [each["name"] for each in other.get("/images").json()] == sorted(IMAGES)


def test_what_is_no_image_is_refused_by_its_type(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", IMAGES)
    digest = write_named_text(tmp_path / "data", "about")
    client = client_of(tmp_path / "data")
    path = str(tmp_path / "about.tar")
    for answer in (
        archive(client, "about"),
        archive(client, "about", "app:1", format="oci"),
        client.post("/images/save", params={"image": "about", "path": path}),
        client.get("/images/files", params={"image": "about"}),
        client.get("/images/inspect", params={"image": "about"}),
    ):
        assert answer.status_code == 422, answer.text
        assert digest in sentence_of(answer)
        assert "'application/xml' is no manifest or index" in sentence_of(answer)


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("", 400, "missing image"),
        ("image=", 400, "image"),
        ("image=app:1&format=zip", 400, "format"),
        ("image=app:1&format=oci&format=oci", 400, "format"),
        ("image=app:1&platform=what", 400, "platform"),
        ("image=app:1&image=index:1", 400, "'oci' holds as many"),
        ("image=index:1&format=docker", 400, "is an index of linux/amd64, linux/arm64"),
        ("image=none:1", 404, "not found"),
        ("image=a//b", 400, "image"),
        ("image=app:1&platform=linux/s390x", 404, "linux/amd64"),
    ],
)
def test_what_cannot_be_had_is_a_real_status(query: str, status: int, told: str, client: TestClient) -> None:
    answer = client.get(f"/images/archive?{query}")
    assert (answer.status_code, told in sentence_of(answer)) == (status, True), answer.text


def test_an_incomplete_image_is_a_real_status(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", IMAGES)
    digest = IMAGES["app:1"].layer_digests[1]
    blob_path(tmp_path / "data", digest).unlink()
    answer = archive(client_of(tmp_path / "data"), "app:1")
    assert (answer.status_code, digest in sentence_of(answer)) == (409, True)


@pytest.mark.parametrize("wanted", ["0-0", "0-", "-1", "-1000", "100-3000000", "3145000-3146000", "3000000-99999999"])
def test_a_range_is_what_lies_there(wanted: str, client: TestClient, store: Store, tmp_path: Path) -> None:
    whole = saved(store, tmp_path / "app.tar", "app:1")
    first, last = wanted.split("-")
    begin = int(first) if first else len(whole) - int(last)
    end = min(len(whole), int(last) + 1) if first and last else len(whole)
    answer = archive(client, "app:1", headers={"Range": f"bytes={wanted}"})
    assert (answer.status_code, answer.headers["content-range"]) == (206, f"bytes {begin}-{end - 1}/{len(whole)}")
    assert answer.content == whole[begin:end]
    assert answer.headers["content-length"] == str(end - begin)


def test_a_download_goes_on_only_where_it_is_the_same_archive(client: TestClient) -> None:
    whole = archive(client, "app:1")
    tag = whole.headers["etag"]
    resumed = archive(client, "app:1", headers={"Range": "bytes=1000-", "If-Range": tag})
    assert (resumed.status_code, resumed.content, resumed.headers["etag"]) == (206, whole.content[1000:], tag)
    for other in ('"something else"', archive(client, "app:1", format="oci").headers["etag"]):
        anew = archive(client, "app:1", headers={"Range": "bytes=1000-", "If-Range": other})
        assert (anew.status_code, anew.content) == (200, whole.content)


def test_what_a_client_has_already_is_not_sent(client: TestClient) -> None:
    tag = archive(client, "app:1").headers["etag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = archive(client, "app:1", headers={"If-None-Match": given})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert archive(client, "app:1", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_range_beyond_the_end_is_refused_with_the_size(client: TestClient) -> None:
    size = int(archive(client, "app:1").headers["content-length"])
    answer = archive(client, "app:1", headers={"Range": f"bytes={size}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")


def test_the_size_is_asked_for_alone(client: TestClient) -> None:
    answer = client.head("/images/archive?image=app:1")
    whole = archive(client, "app:1")
    assert (answer.status_code, answer.content) == (200, b"")
    for name in ("content-length", "etag", "content-disposition", "content-type"):
        assert answer.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ('a"b;c\\:1', "a_b_c_1.tar"),
        ("[::1]:5000/app", "1_5000_app.tar"),
        ("con~%2F..%2F", "con_2F.._2F.tar"),
        ("a" * 400, "a" * 100 + ".tar"),
        ("a~", "a.tar"),
    ],
)
def test_a_name_that_is_no_file_name_becomes_one(name: str, file: str, tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {name: build_image()})
    answer = archive(client_of(tmp_path / "data"), name)
    assert answer.headers["content-disposition"] == f'attachment; filename="{file}"'


def test_no_file_stays_open_whatever_was_answered(client: TestClient, store: Store) -> None:
    archive(client, "app:1")
    client.head("/images/archive?image=app:1")
    archive(client, "app:1", headers={"Range": "bytes=99999999-"})
    archive(client, "app:1", headers={"If-None-Match": "*"})
    check_invariants(Path(store.root), history_behind=True)


def test_archives_that_nobody_takes_keep_so_many_files_open_and_no_more(tmp_path: Path) -> None:
    many = build_image([random_layer(10_240, salt=str(number)) for number in range(300)])
    write_layout(tmp_path / "data", {"many:1": many, "few:1": build_image()})
    app = create_app(Settings(data_root=str(tmp_path / "data")))

    def asked(name: str, *, reads: bool = True) -> contextlib.AbstractAsyncContextManager[Exchange]:
        return asking(app, "GET", "/images/archive", {"image": name}, reads=reads)

    async def ask() -> None:
        async with asked("many:1", reads=False) as stalled:
            await stalled.started()
            async with asked("many:1") as refused, asked("few:1") as sent:
                await refused.end()
                await sent.end()
            assert (refused.status, refused.headers["retry-after"], sent.status) == (503, "5", 200)
        async with asked("many:1") as again:
            await again.end()
        assert (again.status, again.is_whole) == (200, True)

    asyncio.run(ask())
    assert not open_blobs(os.getpid())


# ---- over a connection


QUERY = [*(("image", name) for name in IMAGES), ("format", "oci")]


def test_the_daemon_sends_the_same_bytes_and_the_connection_goes_on(
    daemon: Daemon, store: Store, tmp_path: Path
) -> None:
    whole = saved(store, tmp_path / "all.tar", *IMAGES, format="oci")
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        for wanted in (None, (0, 100), (5000, 3_000_000), (len(whole) - 1, len(whole)), None):
            headers = {} if wanted is None else {"Range": f"bytes={wanted[0]}-{wanted[1] - 1}"}
            connection.request("GET", f"/images/archive?{urlencode(QUERY)}", headers=headers)
            answer = connection.getresponse()
            assert answer.read() == (whole if wanted is None else whole[slice(*wanted)])
            assert answer.status == (200 if wanted is None else 206)
            connection.request("HEAD", f"/images/archive?{urlencode(QUERY)}")
            answer = connection.getresponse()
            assert (answer.read(), answer.headers["Content-Length"]) == (b"", str(len(whole)))
    wait_until_closed(daemon)


def test_a_client_that_goes_away_midway_leaves_no_file_open(daemon: Daemon) -> None:
    with daemon.stream("GET", "/images/archive", QUERY) as stream:
        assert stream.response.read(1000)
        assert open_blobs(daemon.process.pid)
    wait_until_closed(daemon)
    assert daemon.get("/ping").status == 200


def test_a_download_that_was_cut_goes_on_where_it_was(daemon: Daemon, store: Store, tmp_path: Path) -> None:
    with daemon.stream("GET", "/images/archive", QUERY) as stream:
        begin = stream.response.read(1_000_000)
        tag = stream.headers["etag"]
    rest = daemon.request("GET", "/images/archive", QUERY, headers={"Range": f"bytes={len(begin)}-", "If-Range": tag})
    assert rest.status == 206
    assert begin + rest.body == saved(store, tmp_path / "all.tar", *IMAGES, format="oci")


def test_an_image_that_is_collected_midway_is_sent_whole(tmp_path: Path) -> None:
    layer = random_layer(32 * 1024 * 1024)  # more than lies between the daemon and a client that does not read
    write_layout(tmp_path / "data", {"app:1": build_image([layer])})
    expected = saved(open_store(tmp_path / "data"), tmp_path / "app.tar", "app:1")
    with (
        running_daemon(tmp_path, data_root=tmp_path / "data") as daemon,
        daemon.stream("GET", "/images/archive", {"image": "app:1"}) as stream,
    ):
        assert daemon.post("/images/remove", image="app:1").status == 200
        assert daemon.post("/system/prune").json()["blobs_removed"] == 3
        assert stream.response.read() == expected


def open_blobs(process: int) -> list[str]:
    """Return the blobs that a process has open."""
    found = []
    for each in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(each))
    return [path for path in found if "/blobs/" in path]


def wait_until_closed(daemon: Daemon) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while open_blobs(daemon.process.pid):
        assert time.monotonic() < deadline, "blobs stay open"
        time.sleep(0.02)
