"""Images in memory, as a program builds them: what the contract suites do not say."""

import json
from pathlib import Path

import pytest

from minibox_store import Store
from minibox_store.codec import encode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Manifest
from minibox_store.errors import ImageNotFound
from minibox_store.media_types import OCI_CONFIG, OCI_MANIFEST
from minibox_store.memory import MemoryImages
from tests.support.images import OCI_LAYER, build_image
from tests.support.sources import blobs_of, copy_into, descriptors_of, memory_of, root_of


def test_a_blob_that_is_added_is_described_truly() -> None:
    images = MemoryImages()
    for content in (b"", b"content"):
        found = images.add_blob(content, OCI_LAYER)
        assert found == Descriptor(media_type=OCI_LAYER, digest=Digest.of(content), size_bytes=len(content))
        assert images.blobs[found.digest] == content


def test_an_image_built_by_hand_goes_into_a_store_under_its_name(tmp_path: Path) -> None:
    images = MemoryImages()
    config = images.add_blob(json.dumps({"os": "linux", "architecture": "amd64"}).encode(), OCI_CONFIG)
    layer = images.add_blob(b"a layer", OCI_LAYER)
    manifest = encode_document(Manifest(media_type=OCI_MANIFEST, config=config, layers=(layer,)))
    images.names["app:1"] = images.add_blob(manifest, OCI_MANIFEST)
    image = Store(tmp_path / "store", durability="none").import_image(images, "app:1", as_name="mine:1")
    assert (image.name, image.layers, str(image.platform)) == ("mine:1", 1, "linux/amd64")
    assert image.size_bytes == sum(map(len, images.blobs.values()))


def test_a_name_that_is_not_there_is_not_found_by_another_spelling() -> None:
    images = memory_of({"alpine": build_image()})
    with pytest.raises(ImageNotFound) as caught:
        images.resolve("alpine:latest")
    assert caught.value.name == "alpine:latest"


def test_names_may_change_while_they_are_listed() -> None:
    images = memory_of({"a:1": build_image(), "b:1": build_image()})
    seen = []
    for name in images.iter_names():
        seen.append(name)
        del images.names[name]
    assert seen == ["a:1", "b:1"]


def test_what_a_transaction_wrote_and_did_not_name_is_not_kept() -> None:
    image = build_image()
    images = MemoryImages()
    with images.open_writer() as writer:
        for descriptor in descriptors_of(image):
            writer.write_blob(descriptor, memory_of({"": image}))
    assert images.blobs == {}
    copy_into(images, image, "app:1")
    assert images.blobs == blobs_of(image)
    assert images.resolve("app:1") == root_of(image)
