"""The walk over documents alone, by which a collection marks: it sees, and refuses, what every walk does."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from minibox_store import graph
from minibox_store.codec import decode_document
from minibox_store.documents import Descriptor, Identity, Manifest, identity
from minibox_store.documents import Document as Value
from minibox_store.errors import BlobNotFound, StoreError
from minibox_store.graph import walk, walk_contents, walk_documents
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.media_types import DOCKER_MANIFEST, OCI_MANIFEST, is_document
from minibox_store.protocols import BlobSource
from tests.support.images import OCI_LAYER, Document, build_image, build_index, encode_document
from tests.support.sources import LyingSource, descriptor_for, memory_of, root_of

Scene = tuple[BlobSource, Descriptor]
PLAIN = descriptor_for(b"layer", OCI_LAYER)


def all_there() -> Scene:
    image = build_index([build_image(salt="one"), build_image(platform="linux/arm64")], nested=2)
    return memory_of({"": image}), root_of(image)


def one_never_fetched() -> Scene:
    first, second = build_image(), build_image(platform="linux/arm64")
    index = build_index([first, second])
    return memory_of({"": index.without(*second.blobs)}), root_of(index)


def one_rotten() -> Scene:
    image = build_image()
    index = build_index([image])
    return memory_of({"": index.corrupted(image.digest)}), root_of(index)


def a_root_that_is_not_there() -> Scene:
    image = build_image()
    return memory_of({"": image.without(image.digest)}), root_of(image)


def a_root_that_is_a_leaf() -> Scene:
    return memory_of({}), PLAIN


def a_root_of_another_type() -> Scene:
    image = build_image()
    root = root_of(image)
    lie = Descriptor(media_type=DOCKER_MANIFEST, digest=root.digest, size_bytes=root.size_bytes)
    return memory_of({"": image}), lie


def a_root_of_other_bytes() -> Scene:
    image = build_image()
    return LyingSource(memory_of({"": image}), {root_of(image).digest: b"{}"}), root_of(image)


def as_json(descriptor: Descriptor) -> Document:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size_bytes}


def manifest(**fields: Any) -> Callable[[], Scene]:
    def scene() -> Scene:
        images = memory_of({})
        value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": as_json(PLAIN), "layers": [], **fields}
        return images, images.add_blob(encode_document(value), OCI_MANIFEST)

    return scene


def layers_that_are_documents() -> Scene:
    source, inner = manifest()()
    images = memory_of({})
    content = source.open_blob(inner)
    buffer = memoryview(bytearray(inner.size_bytes))
    assert content.readinto(buffer) == inner.size_bytes
    inner = images.add_blob(bytes(buffer), OCI_MANIFEST)
    value = {"schemaVersion": 2, "config": as_json(PLAIN), "layers": [as_json(PLAIN), as_json(inner)]}
    return images, images.add_blob(encode_document(value), OCI_MANIFEST)


SCENES: dict[str, Callable[[], Scene]] = {
    **{scene.__name__.replace("_", " "): scene for scene in (all_there, one_never_fetched, one_rotten)},
    **{scene.__name__.replace("_", " "): scene for scene in (a_root_that_is_not_there, a_root_that_is_a_leaf)},
    **{scene.__name__.replace("_", " "): scene for scene in (a_root_of_another_type, a_root_of_other_bytes)},
    "layers that are documents": layers_that_are_documents,
    "layers that may just be": manifest(layers=[as_json(PLAIN)] * 4),
    "too many layers": manifest(layers=[as_json(PLAIN)] * 5),
    "too many layers with annotations": manifest(layers=[{**as_json(PLAIN), "annotations": {"a": "b"}}] * 5),
    "a wrong size": manifest(layers=[as_json(PLAIN), {**as_json(PLAIN), "size": -1}]),
    "a wrong annotation": manifest(layers=[as_json(PLAIN)], annotations={"key": 5}),
}


def seen_by_walk(source: BlobSource, root: Descriptor, limits: Limits) -> tuple[set[Identity], set[Identity]]:
    seen: set[Identity] = set()
    nodes = walk(source, root, limits=limits, seen=seen, allow_absent_manifests=True)
    documents = [node for node in nodes if is_document(node.descriptor.media_type)]
    return seen, {identity(node.descriptor) for node in documents if node.document is None}


def seen_by_documents(source: BlobSource, root: Descriptor, limits: Limits) -> tuple[set[Identity], set[Identity]]:
    seen: set[Identity] = set()
    nodes = walk_documents(source, root, limits=limits, seen=seen)
    documents = [node for node in nodes if is_document(node.descriptor.media_type)]
    return seen, {identity(node.descriptor) for node in documents if node.content is None}


@pytest.mark.parametrize(
    "limits",
    [DEFAULT_LIMITS, Limits(layers=4), Limits(documents=2), Limits(depth=2), Limits(document_bytes=400)],
    ids=["the usual limits", "four layers", "two documents", "a depth of two", "400 bytes"],
)
@pytest.mark.parametrize("scene", SCENES)
def test_a_walk_over_documents_sees_and_refuses_what_every_walk_does(scene: str, limits: Limits) -> None:
    outcomes: list[object] = []
    for see in (seen_by_walk, seen_by_documents):
        try:
            outcomes.append(see(*SCENES[scene](), limits))
        except StoreError as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("see", [seen_by_walk, seen_by_documents])
def test_a_document_may_be_as_large_as_the_limits_say(
    see: Callable[[BlobSource, Descriptor, Limits], tuple[set[Identity], set[Identity]]],
) -> None:
    image = build_image(annotations={"long": "x" * DEFAULT_LIMITS.document_bytes})
    source, root = memory_of({"": image}), root_of(image)
    seen, absent = see(source, root, Limits(document_bytes=2 * DEFAULT_LIMITS.document_bytes))
    assert ({each[0] for each in seen}, absent) == ({digest.partition(":")[2] for digest in image.blobs}, set())


def test_a_walk_over_documents_yields_them_children_first_and_no_leaf() -> None:
    source, root = all_there()
    nodes = list(walk_documents(source, root, limits=DEFAULT_LIMITS, seen=set()))
    expected = [node for node in walk(source, root) if node.document is not None]
    assert [(node.descriptor, node.content) for node in nodes] == [(each.descriptor, each.content) for each in expected]


def test_a_walk_of_contents_yields_what_a_walk_does_but_for_values() -> None:
    source, root = all_there()
    expected = [node._replace(document=None) for node in walk(source, root)]
    assert list(walk_contents(source, root, limits=DEFAULT_LIMITS)) == expected
    source, root = one_never_fetched()
    with pytest.raises(BlobNotFound):
        list(walk_contents(source, root, limits=DEFAULT_LIMITS))


@pytest.mark.parametrize("is_value_wanted", [True, False])
def test_no_manifest_is_in_memory_while_another_one_is_decoded(
    is_value_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[weakref.ref[Value]] = []
    living: list[int] = []

    def noting(content: bytes, media_type: str, *rest: str, limits: Limits) -> Value:
        living.append(sum(isinstance(each(), Manifest) for each in noted))
        document = decode_document(content, media_type, *rest, limits=limits)
        noted.append(weakref.ref(document))
        return document

    monkeypatch.setattr(graph, "decode_document", noting)
    index = build_index([build_image(salt=str(number)) for number in range(3)])
    source, root = memory_of({"": index}), root_of(index)
    if is_value_wanted:
        for node in walk(source, root):
            del node
    else:
        for node in walk_contents(source, root, limits=DEFAULT_LIMITS):
            assert node.document is None
    assert living == [0, 0, 0, 0]
