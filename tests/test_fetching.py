"""Images that come piece by piece, for a store that hands them on: an index first, and a manifest when it is wanted."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from minibox_store import (
    BlobNotFound,
    ContentMismatch,
    Digest,
    Event,
    ImageNotFound,
    IncompleteImage,
    InvalidReference,
    RegistryBlocked,
    RegistryError,
    RegistryRule,
    StoreFull,
)
from minibox_store.layout.sweeping import Sweep
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.sources import memory_of
from tests.support.stores import mounted, open_layout, open_store, put_dead

AMD64, ARM64 = build_image(), build_image(platform="linux/arm64")
INDEX = build_index([AMD64, ARM64])
NESTED = build_index([INDEX, build_image(platform="linux/s390x")])


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store, which keeps every rule whatever a test has done."""
    yield tmp_path / "store"
    check_invariants(tmp_path / "store", absent_manifests=True)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


def serve(registry: ScriptedRegistry, image: BuiltImage, at_most: int | None = 1) -> str:
    """Serve an image, each document and blob so often, and return its reference."""
    serve_image(registry, "team/app", "1", image, at_most=at_most)
    return registry.reference("team/app", "1")


def asked_of(registry: ScriptedRegistry) -> list[str]:
    return [request.target.rpartition("/")[2] for request in registry.requests]


def test_a_single_manifest_is_fetched_whole_under_its_reference(root: Path, registry: ScriptedRegistry) -> None:
    reference = serve(registry, AMD64)
    events: list[Event] = []
    image = open_store(root).fetch(reference, client=quick_client(), on_event=events.append)
    assert (image.name, str(image.digest)) == (reference, AMD64.digest)
    assert read_names(root) == {reference: AMD64.digest}
    assert stored(root) == set(AMD64.blobs)
    assert [type(each).__name__ for each in events if "Blob" not in type(each).__name__] == [
        *("ResolvingName", "ManifestChosen", "RegisteringName", "ImageCopied")
    ]


def test_an_index_is_fetched_alone_and_a_manifest_of_it_whole_when_it_is_wanted(
    root: Path, registry: ScriptedRegistry
) -> None:
    reference = serve(registry, INDEX)
    store = open_store(root)
    image = store.fetch(reference, client=quick_client())
    assert (str(image.digest), asked_of(registry), stored(root)) == (INDEX.digest, ["1"], {INDEX.digest})
    part = store.fetch_part(reference, Digest.parse(ARM64.digest), client=quick_client())
    assert str(part.digest) == ARM64.digest
    assert stored(root) == {INDEX.digest, *ARM64.blobs}
    assert sorted(asked_of(registry)) == sorted(["1", *ARM64.blobs])
    assert read_names(root) == {reference: INDEX.digest}
    store.fetch_part(reference, Digest.parse(AMD64.digest), client=quick_client())
    assert stored(root) == set(INDEX.blobs)
    assert store.verify() == ()


def test_an_index_in_an_index_is_fetched_alone_too(root: Path, registry: ScriptedRegistry) -> None:
    reference = serve(registry, NESTED)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    with pytest.raises(BlobNotFound):  # nobody knows of it yet
        store.fetch_part(reference, Digest.parse(AMD64.digest), client=quick_client())
    store.fetch_part(reference, Digest.parse(INDEX.digest), client=quick_client())
    assert stored(root) == {NESTED.digest, INDEX.digest}
    store.fetch_part(reference, Digest.parse(AMD64.digest), client=quick_client())
    assert stored(root) == {NESTED.digest, INDEX.digest, *AMD64.blobs}


def test_what_is_there_in_part_is_listed_verified_described_kept_and_collected(
    root: Path, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    reference = serve(registry, INDEX)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    for kept in ({INDEX.digest}, {INDEX.digest, *ARM64.blobs}):
        [listed] = store.images()
        assert (str(listed.digest), listed.damaged) == (INDEX.digest, False)
        assert {each.kind for each in store.verify()} == {"absent"}
        assert store.usage().reclaimable_bytes == 0
        assert len(store.inspect(reference).manifests) == (len(kept) > 1)
        store.prune()
        assert stored(root) == kept
        with pytest.raises(IncompleteImage):
            store.save(reference, tmp_path / "image.tar")
        if len(kept) == 1:
            store.fetch_part(reference, Digest.parse(ARM64.digest), client=quick_client())
    store.remove(reference)
    store.prune()
    assert stored(root) == set()


def test_a_prune_on_the_way_takes_nothing_of_what_comes(root: Path, registry: ScriptedRegistry) -> None:
    reference = serve(registry, INDEX)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    seen: list[str] = []

    def prune(event: Event) -> None:
        seen.append(type(event).__name__)
        if type(event).__name__ in ("BlobStarted", "BlobStored"):
            open_store(root).prune()

    store.fetch_part(reference, Digest.parse(ARM64.digest), client=quick_client(), on_event=prune)
    assert "BlobStored" in seen
    store.prune()
    assert stored(root) == {INDEX.digest, *ARM64.blobs}


def test_a_collection_that_has_marked_already_sees_what_has_come_since(root: Path, registry: ScriptedRegistry) -> None:
    reference = serve(registry, INDEX)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    put_dead(root, build_image(salt="dead"))
    sweep = Sweep(open_layout(root), build_cache=False, dry_run=False)
    with sweep.holding_locks():
        sweep.mark()
        store.fetch_part(reference, Digest.parse(ARM64.digest), client=quick_client())
        report = sweep.collect()
    assert report.blobs_removed
    assert stored(root) == {INDEX.digest, *ARM64.blobs}


def test_what_comes_for_an_image_that_has_gone_meanwhile_has_a_name_of_its_own(
    root: Path, registry: ScriptedRegistry
) -> None:
    reference = serve(registry, INDEX)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    gone = threading.Event()

    def remove(event: Event) -> None:
        if not gone.is_set():
            gone.set()
            open_store(root).remove(reference)

    store.fetch_part(reference, Digest.parse(ARM64.digest), client=quick_client(), on_event=remove)
    assert read_names(root) == {f"{registry.host}/team/app@{ARM64.digest}": ARM64.digest}
    store.prune()
    assert stored(root) == set(ARM64.blobs)


def test_a_blob_that_was_lost_is_fetched_again(root: Path, registry: ScriptedRegistry) -> None:
    reference = serve(registry, AMD64, at_most=2)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    layer = Digest.parse(AMD64.layer_digests[0])
    (root / "blobs" / layer.algorithm / layer.hex).unlink()
    store.fetch_part(reference, layer, client=quick_client())
    assert stored(root) == set(AMD64.blobs)


def test_a_tag_that_was_moved_is_followed_by_the_next_fetch(root: Path) -> None:
    store = open_store(root)
    other = build_image(salt="other")
    with ScriptedRegistry() as registry:
        for image in (AMD64, other):
            serve_image(registry, "team/app", None, image)
        reference = registry.reference("team/app", "1")
        for image in (AMD64, other):
            serve_image(registry, "team/app", "1", image, at_most=1)
            assert str(store.fetch(reference, client=quick_client()).digest) == image.digest
    assert read_names(root) == {reference: other.digest}


def test_a_reference_by_digest_is_the_name_of_what_it_brings(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    reference = registry.reference("team/app", digest=ARM64.digest)
    open_store(root).fetch(reference, client=quick_client())
    assert read_names(root) == {reference: ARM64.digest}
    assert stored(root) == set(ARM64.blobs)


@pytest.mark.parametrize("wrong", ["manifest", "config", "layer"])
def test_what_is_not_of_its_digest_gives_no_name(root: Path, registry: ScriptedRegistry, wrong: str) -> None:
    digest = {"manifest": AMD64.digest, "config": AMD64.config_digest, "layer": AMD64.layer_digests[1]}[wrong]
    serve_image(registry, "team/app", "1", AMD64.corrupted(digest))
    with pytest.raises(ContentMismatch):
        open_store(root).fetch(registry.reference("team/app", "1"), client=quick_client(attempts=1))
    assert read_names(root) == {}
    assert digest not in stored(root)


def test_what_cannot_be_fetched_changes_nothing(root: Path, registry: ScriptedRegistry) -> None:
    reference = serve(registry, INDEX)
    store = open_store(root)
    store.fetch(reference, client=quick_client())
    digest = Digest.parse(ARM64.digest)
    rule = RegistryRule(prefix=registry.host, blocked=True)
    with pytest.raises(RegistryBlocked):
        store.fetch_part(reference, digest, client=quick_client(registries=[rule]))
    with pytest.raises(RegistryBlocked):
        store.fetch(reference, client=quick_client(registries=[rule]))
    with pytest.raises(BlobNotFound):
        store.fetch_part(reference, Digest.of(b"another"), client=quick_client())
    with pytest.raises(ImageNotFound):
        store.fetch_part("another:1", digest, client=quick_client())
    with pytest.raises(InvalidReference):
        store.fetch("Not a reference", client=quick_client())
    assert (read_names(root), stored(root)) == ({reference: INDEX.digest}, {INDEX.digest})


def test_a_registry_that_is_down_is_told_and_what_is_there_stays(root: Path) -> None:
    store = open_store(root)
    with ScriptedRegistry() as registry:
        reference = serve(registry, INDEX)
        store.fetch(reference, client=quick_client())
    with pytest.raises(RegistryError):
        store.fetch_part(reference, Digest.parse(ARM64.digest), client=quick_client(attempts=1))
    with pytest.raises(RegistryError):
        store.fetch(reference, client=quick_client(attempts=1))
    assert stored(root) == {INDEX.digest}


@pytest.mark.parametrize("of_an_index", [False, True])
def test_what_does_not_fit_is_refused_before_a_layer_is_asked_for(
    tmp_path: Path, registry: ScriptedRegistry, of_an_index: bool
) -> None:
    large = build_image([random_layer(3 * 1024 * 1024)])
    reference = serve(registry, build_index([large]) if of_an_index else large)
    with mounted(tmp_path / "disk", "size=2m") as disk:
        store = open_store(disk / "store")
        fetch: Callable[[], object] = partial(store.fetch, reference, client=quick_client())
        if of_an_index:
            fetch()
            fetch = partial(store.fetch_part, reference, Digest.parse(large.digest), client=quick_client())
        with pytest.raises(StoreFull) as caught:
            fetch()
    assert caught.value.needed_bytes is not None
    assert large.layer_digests[0] not in asked_of(registry)


def test_an_image_of_which_nobody_knows_whence_it_came_gets_no_part(root: Path) -> None:
    store = open_store(root)
    store.import_image(memory_of({"Not a reference": AMD64}), "Not a reference", as_name="Upper/Case")
    with pytest.raises(InvalidReference):
        store.fetch_part("Upper/Case", Digest.parse(AMD64.config_digest), client=quick_client())
