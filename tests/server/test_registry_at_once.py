"""Clients of the registry at once, and clients that go in the middle: nothing that was acknowledged is lost."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_store import Store
from tests.support.daemon import Daemon, running_daemon
from tests.support.distribution import DistributionClient
from tests.support.images import BuiltImage, build_image, digest_of, random_layer
from tests.support.invariants import check_invariants

SHARED = random_layer(200 * 1024, salt="shared")
CONTENT = random.Random("an upload").randbytes(2_000_000)
PUSHES = 400 if os.environ.get("MINIBOX_DEEP") == "1" else 24
REPOSITORIES = 3


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running
    assert "Traceback" not in running.read_log()
    check_invariants(running.data_root, leftovers=True)


@pytest.fixture
def client(daemon: Daemon) -> DistributionClient:
    return DistributionClient(host=daemon.host)


def wait_for_bytes(client: DistributionClient, location: str, count: int) -> None:
    """Wait until so much of an upload has come, and no more does."""
    deadline = time.monotonic() + 20
    while client.get(location).headers["range"] != f"0-{count - 1}":
        assert time.monotonic() < deadline, client.get(location)
        time.sleep(0.05)


def push_as_clients_do(client: DistributionClient, number: int, image: BuiltImage) -> str:
    """Push an image: what is there is not sent, and what another repository has is mounted; return the repository."""
    repository, other = (f"at-once/app{(number + step) % REPOSITORIES}" for step in (0, 1))
    for digest, content in image.blobs.items():
        if digest == image.digest or client.head(f"/v2/{repository}/blobs/{digest}").status == 200:
            continue
        answer = client.post_upload(repository, mount=digest, **{"from": other})
        if answer.status == 202:
            answer = client.close_upload(client.target_of(answer), digest, content)
        assert answer.status == 201, answer
    answer = client.put_manifest(repository, f"t{number % 4}", image.blobs[image.digest], image.media_type)
    assert answer.status == 201, answer
    return repository


def test_pushes_mounts_deletions_and_prunes_at_once_lose_nothing(daemon: Daemon, client: DistributionClient) -> None:
    over = threading.Event()

    def prune() -> int:
        count = 0
        while not over.is_set():
            answer = daemon.post("/system/prune")
            assert answer.status == 200, answer.text
            assert not answer.json().get("errors"), answer.text
            count += 1
        return count

    def push(number: int) -> None:
        image = build_image([SHARED, {"number": b"%d\n" % number * 500}], salt=str(number))
        repository = push_as_clients_do(client, number, image)
        for digest, content in image.blobs.items():
            kind = "manifests" if digest == image.digest else "blobs"
            answer = client.get(f"/v2/{repository}/{kind}/{digest}")
            assert (answer.status, answer.body) == (200, content), (kind, digest)
        if number % 5 == 0:
            assert client.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202

    with ThreadPoolExecutor(7) as pool:
        pruning = pool.submit(prune)
        try:
            list(pool.map(push, range(PUSHES)))
        finally:
            over.set()
        assert pruning.result(60) > 0
    assert [each for each in Store(daemon.data_root).verify() if each.kind != "unreferenced"] == []


def test_what_came_before_a_client_went_stays_and_the_upload_goes_on_behind_it(
    daemon: Daemon, client: DistributionClient
) -> None:
    location = client.start_upload("cut/app")
    head = (
        f"PATCH {location} HTTP/1.1\r\nHost: {daemon.host}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Range: 0-{len(CONTENT) - 1}\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as connection:
        connection.sendall(head.encode() + CONTENT[:1_000_000])
    wait_for_bytes(client, location, 1_000_000)
    answer = client.patch(location, CONTENT[1_000_000:], 1_000_000)
    assert (answer.status, answer.headers["range"]) == (202, f"0-{len(CONTENT) - 1}")
    answer = client.close_upload(client.target_of(answer), digest_of(CONTENT))
    assert answer.status == 201
    assert client.get(client.target_of(answer)).body == CONTENT


def test_of_several_who_send_the_same_chunk_one_does(client: DistributionClient) -> None:
    location = client.start_upload("same/app")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.patch(location, CONTENT, 0), range(6)))
    assert sorted(each.status for each in answers) == [202, 416, 416, 416, 416, 416]
    assert client.get(location).headers["range"] == f"0-{len(CONTENT) - 1}"
    assert client.close_upload(location, digest_of(CONTENT)).status == 201


def test_the_same_blob_is_pushed_by_several_at_once(client: DistributionClient) -> None:
    content = CONTENT[::-1]
    with ThreadPoolExecutor(6) as pool:
        digests = set(pool.map(lambda number: client.push_blob(f"several/app{number % 2}", content), range(6)))
    assert digests == {digest_of(content)}
    for number in range(2):
        assert client.get(f"/v2/several/app{number}/blobs/{digest_of(content)}").body == content


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_who_pulls_when_the_tag_goes_gets_what_began(
    daemon: Daemon, client: DistributionClient, how: str, tmp_path: Path
) -> None:
    """A blob that is on its way is sent to its end; a tag that is moved leaves all of the earlier image there."""
    layer = random_layer(8 * 1024 * 1024, salt=how)
    image, repository = build_image([layer], salt=how), f"pulled/{how}"
    client.push_image(repository, image, "1")
    digest = image.layer_digests[0]
    with daemon.stream("GET", f"/v2/{repository}/blobs/{digest}") as stream:
        begin = stream.response.read(1024)
        if how == "moved":
            client.push_image(repository, build_image(salt="another"), "1")
        else:
            assert client.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
        assert daemon.post("/system/prune").status == 200
        assert digest_of(begin + stream.response.read()) == digest
    expected = 200 if how == "moved" else 404
    assert client.get(f"/v2/{repository}/blobs/{image.config_digest}").status == expected
