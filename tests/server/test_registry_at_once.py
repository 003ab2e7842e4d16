"""Clients of the registry at once: nothing that was acknowledged is lost."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from minibox_store import Store
from tests.support.daemon import Daemon, running_daemon
from tests.support.distribution import DistributionClient
from tests.support.images import BuiltImage, build_image, digest_of, random_layer
from tests.support.invariants import check_invariants
from tests.support.trials import DEEP

SHARED = random_layer(200 * 1024, salt="shared")
CONTENT = random.Random("an upload").randbytes(2_000_000)
PUSHES = 400 if DEEP else 24
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


class Deletions:
    """When images were deleted and a prune had run behind that, so that it is known how often a push met both.

    Attributes:
        met: the pushes between whose being told of a blob, and whose manifest, that has happened in their repository.
    """

    def __init__(self) -> None:
        self.met = 0
        self._guard = threading.Lock()
        self._deleted: list[tuple[str, float]] = []
        self._pruned: list[float] = []

    def note_deleted(self, repository: str) -> None:
        """Note that an image of a repository has just been deleted."""
        with self._guard:
            self._deleted.append((repository, time.monotonic()))

    def note_pruned(self, began: float) -> None:
        """Note that a prune that began then has just ended."""
        with self._guard:
            self._pruned.append(began)

    def note_pushed(self, repository: str, told: float) -> None:
        """Note that a manifest was taken, whose client was first told of a blob then."""
        with self._guard:
            since = [when for where, when in self._deleted if where == repository and when > told]
            self.met += any(began > when for when in since for began in self._pruned)


def push_as_clients_do(client: DistributionClient, number: int, image: BuiltImage, deletions: Deletions) -> str:
    """Push an image: what is there is not sent, and what another repository has is mounted; return the repository."""
    repository, other = (f"at-once/app{(number + step) % REPOSITORIES}" for step in (0, 1))
    told: float | None = None
    for digest, content in image.blobs.items():
        if digest == image.digest:
            continue
        asked = time.monotonic()
        if client.head(f"/v2/{repository}/blobs/{digest}").status == 200:
            told = asked if told is None else told
            continue
        answer = client.post_upload(repository, mount=digest, **{"from": other})
        if answer.status == 202:
            answer = client.close_upload(client.target_of(answer), digest, content)
        assert answer.status == 201, answer
    answer = client.put_manifest(repository, f"t{number % 4}", image.blobs[image.digest], image.media_type)
    assert answer.status == 201, answer
    if told is not None:
        deletions.note_pushed(repository, told)
    return repository


def test_pushes_mounts_deletions_and_prunes_at_once_lose_nothing(daemon: Daemon, client: DistributionClient) -> None:
    over = threading.Event()
    deletions = Deletions()

    def prune() -> int:
        count = 0
        while not over.is_set():
            began = time.monotonic()
            answer = daemon.post("/system/prune")
            deletions.note_pruned(began)
            assert answer.status == 200, answer.text
            assert not answer.json().get("errors"), answer.text
            count += 1
        return count

    def push(number: int) -> None:
        # What stays does not need the layer that the others have: else it would always be there, once one has stayed.
        stays = number % 5 == 0
        own = {"number": b"%d\n" % number * 500}
        image = build_image([own] if stays else [SHARED, own], salt=str(number))
        repository = push_as_clients_do(client, number, image, deletions)
        for digest, content in image.blobs.items():
            kind = "manifests" if digest == image.digest else "blobs"
            answer = client.get(f"/v2/{repository}/{kind}/{digest}")
            assert (answer.status, answer.body) == (200, content), (kind, digest)
        if not stays:
            assert client.delete(f"/v2/{repository}/manifests/{image.digest}").status == 202
            deletions.note_deleted(repository)

    with ThreadPoolExecutor(7) as pool:
        pruning = pool.submit(prune)
        try:
            list(pool.map(push, range(PUSHES)))
        finally:
            over.set()
        assert pruning.result(60) > 0
    if PUSHES > 100:
        assert deletions.met > 0
    assert [each for each in Store(daemon.data_root).verify() if each.kind != "unreferenced"] == []


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


def test_who_pulls_when_the_tag_is_moved_gets_all_of_what_began(daemon: Daemon, client: DistributionClient) -> None:
    image = build_image([random_layer(8 * 1024 * 1024, salt="moved")], salt="moved")
    client.push_image("pulled/app", image, "1")
    [layer] = image.layer_digests
    with daemon.stream("GET", f"/v2/pulled/app/blobs/{layer}") as stream:
        begin = stream.response.read(1024)
        client.push_image("pulled/app", build_image(salt="another"), "1")
        assert daemon.post("/system/prune").status == 200
        assert digest_of(begin + stream.response.read()) == layer
    for digest in (image.config_digest, layer):
        assert client.get(f"/v2/pulled/app/blobs/{digest}").status == 200
