"""Pushes to the daemon: what the contract of the specification leaves open, restarts, and many at once."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from minibox_store.layout import uploads
from tests.server.clients import client_of, code_of
from tests.support.daemon import running_daemon
from tests.support.distribution import OCTETS, DistributionClient
from tests.support.images import BuiltImage, build_image, build_index, digest_of
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.pushes import HOUR_SECONDS, make_old, pins_in, push_blob, push_image
from tests.support.stores import blob, open_store

FIRST, SECOND = b"the first part, ", b"and the second"
BOTH = FIRST + SECOND
ABSENT = "sha256:" + "0" * 64
WAIT_SECONDS = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with client_of(root) as client:
        yield client


def begin(client: TestClient, repository: str = "team/app") -> str:
    response = client.post(f"/v2/{repository}/blobs/uploads/")
    assert response.status_code == 202
    return str(response.headers["location"])


# ---- what names an upload


@pytest.mark.parametrize(
    "identifier", ["0" * 32, "0" * 31, "A" * 32, "..", "%2e%2e", "..%2findex.json", "%00" * 32, "%d9%a1" * 32, "-"]
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_s4_what_is_no_id_of_an_upload_is_refused_and_touches_nothing(
    client: TestClient, root: Path, method: str, identifier: str
) -> None:
    begin(client)
    before = sorted(root.rglob("*"))
    content = None if method in ("GET", "DELETE") else b"x"
    response = client.request(
        method, f"/v2/team/app/blobs/uploads/{identifier}?digest={digest_of(b'x')}", content=content
    )
    assert response.status_code in (400, 404, 405)
    assert code_of(response)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("name", ["App", "a..b", "a//b", "..%2f..%2fetc", "a%20b", "a" * 256])
def test_s4_nothing_is_pushed_to_what_is_no_repository(client: TestClient, root: Path, name: str) -> None:
    for method, path, content in (
        ("POST", "blobs/uploads/", None),
        ("POST", f"blobs/uploads/?digest={digest_of(b'x')}", b"x"),
        ("PUT", "manifests/1", b"{}"),
        ("DELETE", "manifests/1", None),
        ("DELETE", f"blobs/{ABSENT}", None),
        ("PATCH", "blobs/uploads/" + "0" * 32, b"x"),
    ):
        response = client.request(method, f"/v2/{name}/{path}", content=content)
        assert (response.status_code, code_of(response)) == (400, "NAME_INVALID"), (method, path)
    assert not root.exists()


def test_a_location_is_a_path_of_this_host_and_is_not_made_of_what_the_client_says(client: TestClient) -> None:
    response = client.post("/v2/team/app/blobs/uploads/", headers={"X-Forwarded-Host": "evil.example"})
    assert response.headers["location"] == f"/v2/team/app/blobs/uploads/{response.headers['docker-upload-uuid']}"
    assert response.headers["range"] == "0-0"


# ---- pieces


def test_a_piece_out_of_order_is_answered_with_how_much_has_come(client: TestClient) -> None:
    location = begin(client)
    assert client.patch(location, content=FIRST).headers["range"] == f"0-{len(FIRST) - 1}"
    response = client.patch(location, content=SECOND, headers={"Content-Range": f"0-{len(SECOND) - 1}"})
    assert (response.status_code, code_of(response)) == (416, "RANGE_INVALID")
    assert response.headers["content-range"] == f"bytes */{len(FIRST)}"


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("bytes 0-15/*", 400, "BLOB_UPLOAD_INVALID"),
        ("15-0", 400, "BLOB_UPLOAD_INVALID"),
        ("0-" + "9" * 19, 400, "BLOB_UPLOAD_INVALID"),
        ("\u0661-\u0662", 400, "BLOB_UPLOAD_INVALID"),
        (f"0-{len(FIRST)}", 400, "SIZE_INVALID"),
        (f"0-{len(FIRST) - 2}", 400, "SIZE_INVALID"),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_range_that_is_none_or_of_another_length_is_refused_and_nothing_is_kept(
    client: TestClient, method: str, said: str, status: int, code: str
) -> None:
    location = begin(client)
    response = client.request(
        method,
        f"{location}?digest={digest_of(FIRST)}",
        content=FIRST,
        headers={b"Content-Range": said.encode()},
    )
    assert (response.status_code, code_of(response)) == (status, code)
    assert client.get(location).headers["range"] == "0-0"


def test_a_chunked_body_longer_than_its_range_is_refused_and_none_of_it_kept(client: TestClient) -> None:
    location = begin(client)
    response = client.patch(location, content=iter([FIRST, SECOND]), headers={"Content-Range": f"0-{len(FIRST) - 1}"})
    assert (response.status_code, code_of(response)) == (400, "SIZE_INVALID")
    assert client.get(location).headers["range"] == "0-0"


def test_a_blob_in_one_post_that_is_refused_leaves_no_upload(client: TestClient, root: Path) -> None:
    response = client.post(f"/v2/team/app/blobs/uploads/?digest={digest_of(FIRST)}", content=SECOND)
    assert (response.status_code, code_of(response)) == (400, "DIGEST_INVALID")
    assert list((root / "ingest" / "uploads").iterdir()) == []
    assert stored(root) == set()


def test_a_blob_in_one_post_that_cannot_be_kept_leaves_no_upload(client: TestClient, root: Path) -> None:
    begin(client, "team/other")  # the store is there
    with replaced_os() as system:
        system.fail("write", errno.ENOSPC, path="ingest/pushed")
        response = client.post(f"/v2/team/app/blobs/uploads/?digest={digest_of(BOTH)}", content=BOTH)
    assert response.status_code == 507
    assert len(list((root / "ingest" / "uploads").iterdir())) == 1


def test_a_blob_in_one_post_is_refused_before_it_comes_when_there_is_no_room(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[int] = []
    monkeypatch.setattr(uploads, "check_room", lambda opened, size_bytes, *, name: weighed.append(size_bytes))
    client.post(f"/v2/team/app/blobs/uploads/?digest={digest_of(BOTH)}", content=BOTH)
    assert weighed == [len(BOTH)]


def test_a_mount_from_what_is_no_repository_begins_an_upload(client: TestClient) -> None:
    for origin in ("App", "../..", "a" * 256):
        response = client.post("/v2/team/app/blobs/uploads/", params={"mount": ABSENT, "from": origin})
        assert response.status_code == 202


@pytest.mark.parametrize("query", ["digest=", "digest=sha256:abc", "mount=sha256:abc&from=a", "mount=latest&from=a"])
def test_what_is_no_digest_begins_no_upload(client: TestClient, root: Path, query: str) -> None:
    response = client.post(f"/v2/team/app/blobs/uploads/?{query}")
    assert (response.status_code, code_of(response)) == (400, "DIGEST_INVALID")
    assert not root.exists()


# ---- blobs that somebody was told of


def shared_image(client: TestClient, root: Path) -> BuiltImage:
    """Return an image with a layer that another one has too, which was deleted as soon as the client had asked for it.

    Everything else of it has been pushed.
    """
    earlier, image = (build_image([{"shared": b"s" * 1000}], salt=salt) for salt in ("earlier", "image"))
    pushing = open_store(root).repository("team/app")
    push_image(pushing, earlier, "1")
    [layer] = image.layer_digests
    told = client.head(f"/v2/team/app/blobs/{layer}")
    assert (told.status_code, told.headers["content-length"]) == (200, str(len(image.blobs[layer])))
    push_blob(pushing, image.blobs[image.config_digest])
    assert client.delete(f"/v2/team/app/manifests/{earlier.digest}").status_code == 202
    assert client.post("/system/prune").json()["blobs_removed"] == 2
    return image


def test_a_client_that_was_told_of_a_blob_needs_not_send_it_whatever_is_deleted(client: TestClient, root: Path) -> None:
    image = shared_image(client, root)
    response = client.put(
        "/v2/team/app/manifests/2",
        content=image.blobs[image.digest],
        headers={"Content-Type": image.media_type},
    )
    assert response.status_code == 201
    make_old(*pins_in(root))
    assert client.post("/system/prune").json()["blobs_removed"] == 0
    assert client.get(f"/v2/team/app/blobs/{image.layer_digests[0]}").status_code == 200


def test_of_a_client_that_asks_for_what_it_has_pushed_nothing_stays_after_an_hour(
    client: TestClient, root: Path
) -> None:
    image = build_image()
    for digest in (image.config_digest, *image.layer_digests):  # as Docker does
        assert client.head(f"/v2/team/app/blobs/{digest}").status_code == 404
        query = f"?digest={digest}"
        assert client.post(f"/v2/team/app/blobs/uploads/{query}", content=image.blobs[digest]).status_code == 201
        assert client.head(f"/v2/team/app/blobs/{digest}").status_code == 200
    headers = {"Content-Type": image.media_type}
    assert client.put("/v2/team/app/manifests/1", content=image.blobs[image.digest], headers=headers).status_code == 201
    assert client.delete(f"/v2/team/app/manifests/{image.digest}").status_code == 202
    make_old(*pins_in(root), seconds=HOUR_SECONDS + 60)
    assert client.post("/system/prune").json()["blobs_removed"] == len(image.blobs)
    assert (stored(root), pins_in(root)) == (set(), [])


def test_nothing_is_pinned_for_who_reads_or_is_told_that_there_is_nothing(client: TestClient, root: Path) -> None:
    image = build_image()
    push_image(open_store(root).repository("team/app"), image, "1")
    [manifest] = image.document_digests
    for reference in ("1", manifest):
        for method in ("HEAD", "GET"):
            assert client.request(method, f"/v2/team/app/manifests/{reference}").status_code == 200
    for digest in (image.config_digest, *image.layer_digests):
        assert client.get(f"/v2/team/app/blobs/{digest}").status_code == 200
        assert client.get(f"/v2/team/app/blobs/{digest}", headers={"Range": "bytes=0-0"}).status_code == 206
    assert client.head(f"/v2/team/app/blobs/{ABSENT}").status_code == 404
    assert client.head(f"/v2/team/other/blobs/{image.config_digest}").status_code == 404
    assert pins_in(root) == []
    blob(root, image.config_digest).unlink()
    assert client.head(f"/v2/team/app/blobs/{image.config_digest}").status_code == 404
    assert pins_in(root) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_blob_is_told_of_though_nothing_can_be_written(client: TestClient, root: Path, number: int) -> None:
    image = build_image()
    write_layout(root, {"team/app:1": image})
    with replaced_os() as system:
        for name in ("mkdir", "write", "ftruncate"):
            system.fail(name, number)
        response = client.head(f"/v2/team/app/blobs/{image.config_digest}")
    assert response.status_code == 200
    assert response.headers["content-length"] == str(len(image.blobs[image.config_digest]))


# ---- manifests, and what goes


def test_what_an_index_needs_is_not_deleted_before_it(client: TestClient, root: Path) -> None:
    image = build_image()
    index = build_index([image])
    push_image(open_store(root).repository("team/app"), index, "1")
    for path in (f"manifests/{image.digest}", f"blobs/{image.config_digest}"):
        response = client.delete(f"/v2/team/app/{path}")
        assert (response.status_code, code_of(response)) == (405, "UNSUPPORTED")
        assert response.headers["allow"] == "GET, HEAD"
        assert client.get(f"/v2/team/app/{path}").status_code == 200
    assert client.delete(f"/v2/team/app/manifests/{index.digest}").status_code == 202
    assert code_of(client.get(f"/v2/team/app/manifests/{image.digest}")) == "NAME_UNKNOWN"


def test_a_manifest_without_a_type_is_what_it_says_it_is(client: TestClient, root: Path) -> None:
    image = build_image(docker=True)
    repository = open_store(root).repository("team/app")
    for digest in (image.config_digest, *image.layer_digests):
        push_blob(repository, image.blobs[digest])
    response = client.put("/v2/team/app/manifests/1", content=image.blobs[image.digest])
    assert response.status_code == 201
    assert response.headers["location"] == f"/v2/team/app/manifests/{image.digest}"
    assert client.get("/v2/team/app/manifests/1").headers["content-type"] == image.media_type


def test_a_tag_that_may_be_none_is_refused(client: TestClient) -> None:
    response = client.put("/v2/team/app/manifests/-a", content=build_image().blobs[build_image().digest])
    assert (response.status_code, code_of(response)) == (400, "TAG_INVALID")


def test_the_catalogue_lists_repositories_in_pages_pushed_ones_too(client: TestClient, root: Path) -> None:
    write_layout(root, {"team/b:1": build_image(), "quay.io/team/a:1": build_image(salt="quay")})
    push_image(open_store(root).repository("team/c"), build_image(salt="c"))
    assert client.get("/v2/_catalog").json() == {"repositories": ["quay.io/team/a", "team/a", "team/b", "team/c"]}
    assert client.get("/v2/_catalog?last=&n=1").json() == {"repositories": ["quay.io/team/a"]}
    seen, path = [], "/v2/_catalog?n=3"
    while path:
        page = client.get(path)
        seen += page.json()["repositories"]
        target, _, _ = page.headers.get("link", "").partition(">; ")
        path = urljoin(path, target[1:]) if target else ""
    assert seen == ["quay.io/team/a", "team/a", "team/b", "team/c"]
    for query in ("n=x", "n=-1"):
        assert code_of(client.get(f"/v2/_catalog?{query}")) == "PAGINATION_NUMBER_INVALID"


def test_a_pushed_image_is_one_of_the_daemons_own(client: TestClient, root: Path) -> None:
    image = build_image()
    push_image(open_store(root).repository("team/app"), image, "1")
    assert [each["name"] for each in client.get("/images").json()] == ["team/app:1"]
    assert client.post("/images/remove?image=team/app:1").status_code == 200
    assert client.post("/system/prune").json()["blobs_removed"] == len(image.blobs)


def test_a_blob_that_is_being_sent_is_sent_to_its_end_whatever_is_deleted(client: TestClient, root: Path) -> None:
    content = os.urandom(3 * 1024 * 1024)
    image = build_image([{"large": content}])
    push_image(open_store(root).repository("team/app"), image, "1")
    layer = image.layer_digests[0]
    with client.stream("GET", f"/v2/team/app/blobs/{layer}") as response:
        parts = response.iter_bytes()
        received = next(parts)
        other = client_of(root)
        assert other.delete(f"/v2/team/app/manifests/{image.digest}").status_code == 202
        assert other.post("/system/prune").json()["blobs_removed"] == len(image.blobs)
        received += b"".join(parts)
    assert received == image.blobs[layer]


# ---- a daemon of its own


def test_an_upload_goes_on_after_the_daemon_was_started_again(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        registry = DistributionClient(host=daemon.host)
        location = registry.target_of(registry.patch(registry.start_upload("team/app"), FIRST, 0))
    with running_daemon(tmp_path) as daemon:
        registry = DistributionClient(host=daemon.host)
        assert registry.get(location).headers["range"] == f"0-{len(FIRST) - 1}"
        assert registry.patch(location, SECOND, len(FIRST)).status == 202
        assert registry.close_upload(location, digest_of(BOTH)).status == 201
        assert registry.get(f"/v2/team/app/blobs/{digest_of(BOTH)}").body == BOTH
        check_invariants(daemon.data_root)


def send_some(host: str, target: str, content: bytes, length: int) -> socket.socket:
    """Send the beginning of a PATCH whose body is to be longer, and return the open connection."""
    address, _, port = host.partition(":")
    connection = socket.create_connection((address, int(port)), timeout=WAIT_SECONDS)
    head = f"PATCH {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {OCTETS}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_what_came_before_the_client_went_stays_and_is_gone_on_with(tmp_path: Path) -> None:
    content = os.urandom(5 * 1024 * 1024)
    with running_daemon(tmp_path) as daemon:
        registry = DistributionClient(host=daemon.host)
        location = registry.start_upload("team/app")
        with send_some(daemon.host, location, content[: 4 * 1024 * 1024], len(content)):
            [path] = (daemon.data_root / "ingest" / "uploads").iterdir()
            deadline = time.monotonic() + WAIT_SECONDS
            while path.stat().st_size < 3 * 1024 * 1024:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        # Its lock goes once the daemon has seen that the client has gone: the next piece waits for that. More may have
        # come by then, so that the piece begins too early.
        answer = None
        while answer is None or answer.status == 416:
            assert time.monotonic() < deadline
            have = int(registry.get(location).headers["range"].removeprefix("0-")) + 1
            answer = registry.patch(location, content[have:], have)
        assert answer.status == 202
        assert registry.close_upload(location, digest_of(content)).status == 201
        assert registry.get(f"/v2/team/app/blobs/{digest_of(content)}").body == content


def test_many_push_one_image_at_once_while_a_prune_runs_again_and_again(tmp_path: Path) -> None:
    image = build_image([{"shared": b"s" * 100_000}, {"other": b"o" * 1000}])
    failures: list[BaseException] = []
    with running_daemon(tmp_path) as daemon:
        registry = DistributionClient(host=daemon.host)
        done = threading.Event()

        def watch(work: object, *arguments: object) -> None:
            try:
                assert callable(work)
                work(*arguments)
            except BaseException as error:  # noqa: BLE001  # it is raised where the test sees it
                failures.append(error)

        def push(number: int) -> None:
            for turn in range(4):
                registry.push_image(f"team/app-{number % 2}", image, f"{number}-{turn}")

        def prune() -> None:
            while not done.is_set():
                assert registry.request("POST", "/system/prune", body=b"").status == 200

        pruning = threading.Thread(target=watch, args=(prune,), daemon=True)
        pushing = [threading.Thread(target=watch, args=(push, number), daemon=True) for number in range(4)]
        for thread in (pruning, *pushing):
            thread.start()
        for thread in pushing:
            thread.join(60)
        done.set()
        pruning.join(30)
        assert not any(thread.is_alive() for thread in (pruning, *pushing))
        assert failures == []
        names = {f"team/app-{number % 2}:{number}-{turn}" for number in range(4) for turn in range(4)}
        assert read_names(daemon.data_root) == dict.fromkeys(names, image.digest)
        assert stored(daemon.data_root) == set(image.blobs)
        check_invariants(daemon.data_root)
