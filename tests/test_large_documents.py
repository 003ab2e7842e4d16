"""Images of documents as large as documents may be: few are in memory at a time, and no byte of one is another."""

from functools import partial
from pathlib import Path

import pytest

from minibox_store import Store
from minibox_store.errors import ContentMismatch
from minibox_store.graph import ContentSource, walk, walk_contents
from minibox_store.layout import opening_image, opening_images
from minibox_store.limits import DEFAULT_LIMITS, MEBIBYTE
from minibox_store.media_types import OCI_MANIFEST
from tests.support.archives import read_archive
from tests.support.compression import grows_by_less_than
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.layouts import write_layout
from tests.support.sources import RecordingSource, memory_of, read_all
from tests.support.stores import blob, open_layout, open_store, rot
from tests.support.traced_memory import peak_of

LARGE_BYTES = 3 * MEBIBYTE
# The bytes of one document, the text that they are, and the value that this becomes; and what else an operation needs.
MOST_BYTES = 3 * LARGE_BYTES + 2 * MEBIBYTE


def index_of_large(count: int) -> BuiltImage:
    """Return an index of manifests that have much to say."""
    annotations = {"long": "x" * LARGE_BYTES}
    layers = [{"a": b"1"}]
    return build_index([build_image(layers, salt=str(number), annotations=annotations) for number in range(count)])


def digest_of_manifest(image: BuiltImage) -> str:
    """Return the digest of a manifest of an index."""
    return next(digest for digest, content in image.blobs.items() if b'"layers":[{' in content)


IMAGES = {"manifests": index_of_large(5), "small": build_index([build_image()])}


def read_offered(store: Store) -> None:
    with store.open_archive("app:1") as archive:
        for piece in archive.pieces():
            del piece


@pytest.mark.parametrize("is_saved", [True, False])
def test_an_archive_of_large_manifests_takes_the_memory_of_one(is_saved: bool, tmp_path: Path) -> None:
    def write(name: str) -> None:
        store = open_store(tmp_path / name)
        if is_saved:
            store.save("app:1", tmp_path / "a.tar")
        else:
            read_offered(store)

    for name in ("small", "manifests"):
        write_layout(tmp_path / name, {"app:1": IMAGES[name]})
    write("small")
    assert grows_by_less_than(MOST_BYTES, lambda: write("manifests"))


def test_a_load_of_large_manifests_takes_the_memory_of_two(tmp_path: Path) -> None:
    def load(name: str) -> object:
        return open_store(tmp_path / f"{name} loaded").load(tmp_path / f"{name}.tar")

    for name, image in IMAGES.items():
        write_layout(tmp_path / name, {"app:1": image})
        open_store(tmp_path / name).save("app:1", tmp_path / f"{name}.tar")
    load("small")
    assert peak_of(partial(load, "manifests")) < MOST_BYTES + LARGE_BYTES  # one of them is remembered


def test_large_manifests_of_a_store_are_verified_one_by_one(tmp_path: Path) -> None:
    def verify(name: str) -> None:
        assert open_store(tmp_path / name).verify() == ()

    for name, image in IMAGES.items():
        write_layout(tmp_path / name, {"app:1": image})
    verify("small")
    assert peak_of(partial(verify, "manifests")) < MOST_BYTES


def test_of_large_documents_the_files_are_open_and_their_bytes_are_verified(tmp_path: Path) -> None:
    image = IMAGES["manifests"]
    write_layout(tmp_path, {"app:1": image, "again:1": image})
    layout = open_layout(tmp_path)
    with opening_images(layout, ["app:1", "again:1"]) as opened:
        assert [sum(map(len, each.contents.values())) < MEBIBYTE for each in opened] == [True, True]
        for digest in image.blobs:
            blob(tmp_path, digest).unlink()
        for each in opened:
            for node in walk(each, each.root):
                assert read_all(each, node.descriptor) == image.blobs[str(node.descriptor.digest)]


def test_a_large_document_that_somebody_changes_is_not_told_as_what_it_was(tmp_path: Path) -> None:
    image = IMAGES["manifests"]
    write_layout(tmp_path, {"app:1": image})
    large = digest_of_manifest(image)
    path = blob(tmp_path, large)
    with opening_image(open_layout(tmp_path), "app:1") as opened, open_store(tmp_path).open_archive("app:1") as archive:
        rot(path)
        with pytest.raises(ContentMismatch, match=large):
            list(walk_contents(opened, opened.root, limits=DEFAULT_LIMITS))
        with pytest.raises(ContentMismatch, match=large):
            list(archive.pieces())


def test_large_documents_lie_in_an_archive_as_they_are_in_the_store(tmp_path: Path) -> None:
    image = IMAGES["manifests"]
    write_layout(tmp_path / "store", {"app:1": image})
    store = open_store(tmp_path / "store")
    store.save("app:1", tmp_path / "a.tar")
    saved = (tmp_path / "a.tar").read_bytes()
    assert read_archive(saved) == ("app:1", image.digest, image.blobs)
    with store.open_archive("app:1") as archive:
        assert archive.read(0, archive.size_bytes) == saved


def test_bytes_that_were_let_go_are_read_again_behind_if_they_are_many() -> None:
    memory = memory_of({})
    small, large = (memory.add_blob(bytes(size_bytes), OCI_MANIFEST) for size_bytes in (9, LARGE_BYTES))
    behind = RecordingSource(memory)
    for descriptor in (small, large):
        source = ContentSource(bytes(descriptor.size_bytes), behind)
        source.let_go()
        assert read_all(source, descriptor, 5) == bytes(descriptor.size_bytes - 5)
    assert behind.opened_digests == [large.digest]
