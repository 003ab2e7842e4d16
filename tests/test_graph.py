"""The walk over an image's graph, and the choice of one manifest from an index."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from minibox_store.documents import Descriptor, Node
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDocument, PlatformNotFound
from minibox_store.graph import ContentSource, RememberingSource, read_content, walk
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.manifest_choice import manifests_below, select_manifest
from minibox_store.media_types import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from minibox_store.memory import MemoryImages
from minibox_store.platforms import LINUX_AMD64, Platform
from tests.support.images import OCI_LAYER, BuiltImage, build_image, build_index, encode_document
from tests.support.sources import (
    EndlessSource,
    LackingSource,
    LyingSource,
    RecordingSource,
    blobs_of,
    descriptor_for,
    memory_of,
    read_all,
    root_of,
)

ARM64 = Platform(os="linux", architecture="arm64")


def digests(nodes: Sequence[Node]) -> list[str]:
    return [str(node.descriptor.digest) for node in nodes]


def walked(image: BuiltImage, **options: Any) -> list[Node]:
    return list(walk(memory_of({"": image}), root_of(image), **options))


class Images(MemoryImages):
    """Documents written by hand."""

    def json(self, descriptor: Descriptor) -> dict[str, Any]:
        value: dict[str, Any] = {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size_bytes,
        }
        return value

    def config(self, **fields: str) -> Descriptor:
        return self.add_blob(encode_document(fields), OCI_CONFIG)

    def manifest(
        self, *layers: Descriptor, config: Descriptor | None = None, annotations: dict[str, str] | None = None
    ) -> Descriptor:
        config = config or self.config(os="linux", architecture="amd64")
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.json(config),
            "layers": [self.json(layer) for layer in layers],
            "annotations": annotations or {},
        }
        return self.add_blob(encode_document(document), OCI_MANIFEST)

    def index(self, *entries: Descriptor | dict[str, Any]) -> Descriptor:
        listed = [self.json(entry) if isinstance(entry, Descriptor) else entry for entry in entries]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        return self.add_blob(encode_document(document), OCI_INDEX)

    def layer(self, content: bytes) -> Descriptor:
        return self.add_blob(content, OCI_LAYER)


# ---- the walk


def test_a_manifest_is_walked_config_layers_and_then_itself() -> None:
    image = build_image()
    nodes = walked(image)
    assert digests(nodes) == [image.config_digest, *image.layer_digests, image.digest]
    assert [(node.role, node.position, node.total) for node in nodes] == [
        ("config", 1, 1),
        ("layer", 1, 2),
        ("layer", 2, 2),
        ("manifest", 1, 1),
    ]
    assert [node.content for node in nodes] == [None, None, None, image.blobs[image.digest]]
    assert [node.document is None for node in nodes] == [True, True, True, False]


def test_every_node_of_an_index_comes_behind_its_children_and_the_root_last() -> None:
    first, second = build_image(), build_image(platform="linux/arm64")
    index = build_index([first, second], attestations=True, nested=2)
    order = digests(walked(index))
    assert sorted(order) == sorted(index.blobs)
    assert order[-1] == index.digest
    for digest in index.document_digests:
        document = index.document(digest)
        below = document.get("manifests", [*document.get("layers", []), document.get("config")])
        assert all(order.index(child["digest"]) < order.index(digest) for child in below)


def test_what_several_images_share_comes_once() -> None:
    shared = {"shared": b"1"}
    index = build_index([build_image([shared, shared, {"a": b"1"}]), build_image([shared], platform="linux/arm64")])
    order = digests(walked(index))
    assert len(order) == len(set(order)) == len(index.blobs)


def test_what_an_earlier_walk_has_yielded_is_passed_over() -> None:
    shared = {"shared": b"1"}
    first, second = build_image([shared, {"a": b"1"}]), build_image([shared, {"b": b"1"}], salt="second")
    source = memory_of({"first": first, "second": second})
    seen: set[Any] = set()
    both = [*walk(source, root_of(first), seen=seen), *walk(source, root_of(second), seen=seen)]
    assert sorted(digests(both)) == sorted({**first.blobs, **second.blobs})
    assert list(walk(source, root_of(first), seen=seen)) == []


def test_leaves_are_never_opened() -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64")], attestations=True)
    source = RecordingSource(memory_of({"": index}))
    assert len(list(walk(source, root_of(index)))) == len(index.blobs)
    assert sorted(map(str, source.opened_digests)) == sorted(index.document_digests)


def test_a_subject_is_no_child() -> None:
    base = build_image(salt="base")
    image = build_image(subject=base.root)
    assert base.digest not in digests(walked(image))
    assert len(walked(image)) == 4


@pytest.mark.parametrize("leaf_first", [True, False])
def test_a_digest_that_is_named_as_a_leaf_and_as_a_document_is_walked_as_both(leaf_first: bool) -> None:
    images = Images()
    inner = images.manifest(images.layer(b"below the document"))
    as_leaf = Descriptor(media_type=OCI_LAYER, digest=inner.digest, size_bytes=inner.size_bytes)
    outer = images.manifest(as_leaf, annotations={"outer": "1"})
    root = images.index(*([outer, inner] if leaf_first else [inner, outer]))
    nodes = list(walk(images, root))
    assert [node.document is None for node in nodes if node.descriptor.digest == inner.digest] == (
        [True, False] if leaf_first else [False, True]
    )
    assert {node.descriptor.digest for node in nodes} == set(images.blobs)


@pytest.mark.parametrize("kind", [OCI_LAYER, "application/vnd.oci.empty.v1+json", "text/plain"])
def test_a_root_that_is_no_document_is_a_leaf(kind: str) -> None:
    images = Images()
    leaf = images.add_blob(b"data", kind)
    assert [(node.descriptor, node.document) for node in walk(images, leaf)] == [(leaf, None)]


# ---- bounds


@pytest.mark.parametrize(("nested", "is_taken"), [(0, True), (6, True), (7, False), (40, False)])
def test_S7_an_image_is_at_most_8_documents_deep(nested: int, is_taken: bool) -> None:
    image = build_index([build_image()], nested=nested)
    if is_taken:
        assert len(walked(image)) == len(image.blobs)
    else:
        with pytest.raises(InvalidDocument, match="the image is nested more than 8 deep"):
            walked(image)


@pytest.mark.parametrize("others", [1023, 1024])
def test_S7_an_image_has_at_most_1024_documents(others: int) -> None:
    images = Images()
    config = images.config(os="linux", architecture="amd64")
    entries = [images.manifest(config=config, annotations={"number": str(number)}) for number in range(others)]
    root = images.index(*entries)
    if others < 1024:
        assert len(list(walk(images, root))) == others + 2
    else:
        with pytest.raises(InvalidDocument, match="the image has more than 1024 documents"):
            list(walk(images, root))


def test_documents_that_an_earlier_walk_has_seen_do_not_count_again() -> None:
    images = Images()
    manifests = [images.manifest(annotations={"number": str(number)}) for number in range(6)]
    seen: set[Any] = set()
    limits = Limits(documents=4)
    for start in range(0, 6, 2):
        nodes = list(walk(images, images.index(*manifests[: start + 2]), limits=limits, seen=seen))
        assert sum(node.document is not None for node in nodes) == 3


@pytest.mark.parametrize("layers", [512, 513])
def test_S7_a_manifest_has_at_most_512_layers(layers: int) -> None:
    images = Images()
    layer = images.layer(b"1")
    root = images.manifest(*[layer] * layers)
    if layers <= 512:
        assert len(list(walk(images, root))) == 3
    else:
        with pytest.raises(InvalidDocument, match="at layers: there are more than 512"):
            list(walk(images, root))


def test_S7_a_document_larger_than_4_mib_is_not_even_opened() -> None:
    source = RecordingSource(MemoryImages())
    huge = Descriptor(media_type=OCI_MANIFEST, digest=root_of(build_image()).digest, size_bytes=(4 << 20) + 1)
    with pytest.raises(InvalidDocument, match="it is larger than 4194304 bytes"):
        list(walk(source, huge))
    assert source.opened == []


def test_S7_a_document_without_an_end_is_read_one_byte_too_far_and_no_further() -> None:
    image = build_image()
    with pytest.raises(ContentMismatch, match="got more"):
        read_content(EndlessSource(memory_of({"": image}), {root_of(image).digest}), root_of(image))


@pytest.mark.parametrize("lie", [b"", b"{}", b"short", b"x" * 10_000])
def test_a_document_that_is_not_what_its_descriptor_says_is_refused_before_it_is_decoded(lie: bytes) -> None:
    image = build_image()
    root = root_of(image)
    with pytest.raises(ContentMismatch) as caught:
        list(walk(LyingSource(memory_of({"": image}), {root.digest: lie}), root))
    assert caught.value.what == image.digest


def test_S5_a_descriptor_whose_type_is_not_the_documents_is_refused() -> None:
    image = build_image()
    lying = Descriptor(media_type=DOCKER_MANIFEST, digest=root_of(image).digest, size_bytes=root_of(image).size_bytes)
    with pytest.raises(InvalidDocument, match="was announced as") as caught:
        list(walk(memory_of({"": image}), lying))
    assert caught.value.document == image.digest


# ---- what is absent


def test_a_document_that_is_missing_is_named() -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64")])
    missing = index.document()["manifests"][1]["digest"]
    for image in (index.without(missing), build_image().without(build_image().digest)):
        lost = (set(index.blobs) | {build_image().digest}) - set(image.blobs)
        with pytest.raises(BlobNotFound) as caught:
            walked(image)
        assert caught.value.digest in lost


def test_a_manifest_that_was_never_fetched_is_a_leaf_where_that_is_allowed() -> None:
    first, second = build_image(), build_image(platform="linux/arm64")
    index = build_index([first, second])
    nodes = walked(index.without(*second.blobs), allow_absent_manifests=True)
    assert digests(nodes)[-2:] == [second.digest, index.digest]
    assert nodes[-2].document is None
    assert nodes[-2].content is None
    assert sorted(digests(nodes)) == sorted([*first.blobs, second.digest, index.digest])


def test_a_nested_index_that_was_never_fetched_is_a_leaf_too() -> None:
    inner = build_index([build_image()])
    outer = build_index([inner], nested=1)
    nodes = walked(outer.without(*inner.blobs), allow_absent_manifests=True)
    assert digests(nodes)[0] == inner.digest
    assert len(nodes) == 3


def test_a_root_is_never_allowed_to_be_absent() -> None:
    image = build_image()
    for source in (LackingSource(memory_of({"": image}), {root_of(image).digest}), MemoryImages()):
        with pytest.raises(BlobNotFound):
            list(walk(source, root_of(image), allow_absent_manifests=True))


def test_a_manifest_that_cannot_be_read_is_not_absent() -> None:
    image = build_image()
    index = build_index([image])
    with pytest.raises(ContentMismatch) as caught:
        walked(index.corrupted(image.digest), allow_absent_manifests=True)
    assert caught.value.what == image.digest


def test_a_document_that_cannot_be_read_is_told_and_the_walk_goes_on_where_somebody_listens() -> None:
    good, wrong, gone = (build_image(salt=salt) for salt in ("good", "wrong", "gone"))
    image = build_index([wrong, gone, good])
    told: list[tuple[str, type]] = []
    source = memory_of({"": image.without(gone.digest).corrupted(wrong.digest)})
    nodes = list(
        walk(source, root_of(image), on_unreadable=lambda each, error: told.append((str(each.digest), type(error))))
    )
    assert told == [(wrong.digest, ContentMismatch), (gone.digest, BlobNotFound)]
    assert digests(nodes) == [wrong.digest, gone.digest, *digests(walked(good)), image.digest]
    assert [node.document is None for node in nodes if str(node.descriptor.digest) in (wrong.digest, gone.digest)]


def test_S7_documents_beyond_the_bounds_are_told_and_not_read_where_somebody_listens() -> None:
    images = [build_image(salt=str(number)) for number in range(5)]
    index = build_index(images)
    source = RecordingSource(memory_of({"": index}))
    told: list[str] = []
    limits = Limits(documents=3)
    list(walk(source, root_of(index), limits=limits, on_unreadable=lambda each, _: told.append(str(each.digest))))
    assert told == [image.digest for image in images[2:]]
    assert source.opened_digests == [root_of(each).digest for each in (index, *images[:2])]


# ---- reading documents once


def test_a_document_crosses_the_wire_once_however_often_it_is_read() -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64")])
    behind = RecordingSource(memory_of({"": index}))
    source = RememberingSource(behind)
    select_manifest(source, root_of(index), ARM64, "app:1")
    for _ in range(2):
        assert len(list(walk(source, root_of(index)))) == len(index.blobs)
        assert read_all(source, root_of(index), 3) == index.blobs[index.digest][3:]
    assert sorted(map(str, behind.opened_digests)) == sorted(index.document_digests)


def test_what_is_remembered_has_been_verified() -> None:
    image = build_image()
    source = RememberingSource(memory_of({"": image.corrupted(image.digest)}))
    for _ in range(2):
        with pytest.raises(ContentMismatch):
            source.read(root_of(image))


def test_no_more_is_remembered_than_the_largest_document() -> None:
    limits = Limits(document_bytes=100)
    images = Images()
    blobs = [images.add_blob(bytes([number]) * 100, OCI_CONFIG) for number in range(6)]
    behind = RecordingSource(images)
    source = RememberingSource(behind, limits)
    for descriptor in [*blobs, *blobs]:
        assert source.read(descriptor) == images.blobs[descriptor.digest]
    assert behind.opened_digests == [each.digest for each in [*blobs, *blobs[1:]]]


def test_content_at_hand_is_a_source_from_any_offset() -> None:
    descriptor = descriptor_for(b"12345", OCI_LAYER)
    assert [read_all(ContentSource(b"12345"), descriptor, offset) for offset in (0, 2, 5)] == [b"12345", b"345", b""]


# ---- the choice of a platform


def chosen(image: BuiltImage, platform: Platform, *, name: str = "app:1") -> Descriptor:
    return select_manifest(RememberingSource(memory_of({"": image})), root_of(image), platform, name)


@pytest.mark.parametrize("nested", [0, 1, 5])
@pytest.mark.parametrize("docker", [False, True])
def test_the_manifest_for_a_platform_is_found_however_deep_it_lies(nested: int, docker: bool) -> None:
    amd64, arm64 = build_image(docker=docker), build_image(platform="linux/arm64/v8", docker=docker)
    index = build_index([amd64, arm64], attestations=True, docker=docker, nested=nested)
    assert str(chosen(index, LINUX_AMD64).digest) == amd64.digest
    assert str(chosen(index, ARM64).digest) == arm64.digest
    assert chosen(index, ARM64).platform == Platform(os="linux", architecture="arm64", variant="v8")


def test_silent_first_platform_an_index_without_the_platform_is_an_error_that_names_what_is_on_offer() -> None:
    index = build_index([build_image(platform="linux/arm64"), build_image(platform="linux/s390x")], attestations=True)
    with pytest.raises(PlatformNotFound) as caught:
        chosen(index, LINUX_AMD64, name="quay.io/app:1")
    assert caught.value.available[:2] == ("linux/arm64", "linux/s390x")
    assert str(caught.value) == (
        "quay.io/app:1 has no image for platform linux/amd64; on offer: linux/arm64, linux/s390x"
    )


def test_silent_first_platform_a_single_manifest_of_another_platform_is_an_error_too() -> None:
    with pytest.raises(PlatformNotFound) as caught:
        chosen(build_image(platform="linux/arm64/v8"), LINUX_AMD64)
    assert str(caught.value) == "app:1 has no image for platform linux/amd64; on offer: linux/arm64/v8"


def test_an_index_that_offers_thousands_of_platforms_is_quoted_only_so_far() -> None:
    images = Images()
    entry = images.json(images.manifest())
    offered = [{"os": "linux", "architecture": f"{number}" + "x" * 200} for number in range(9_000)]
    root = images.index(*({**entry, "platform": platform} for platform in offered))
    with pytest.raises(PlatformNotFound) as caught:
        select_manifest(RememberingSource(images), root, LINUX_AMD64, "app:1")
    assert str(caught.value).startswith("app:1 has no image for platform linux/amd64; on offer: linux/0x")
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("image", [build_index([]), build_index([build_index([])])])
def test_silent_first_platform_an_index_of_nothing_offers_nothing(image: BuiltImage) -> None:
    with pytest.raises(PlatformNotFound, match="on offer: none"):
        chosen(image, LINUX_AMD64)


def test_a_single_manifest_of_the_platform_is_the_root_itself() -> None:
    image = build_image()
    assert chosen(image, LINUX_AMD64) == root_of(image)


@pytest.mark.parametrize("fields", [{}, {"os": "linux"}, {"os": "", "architecture": ""}])
def test_a_single_manifest_whose_config_names_no_platform_is_what_was_asked_for(fields: dict[str, str]) -> None:
    images = Images()
    root = images.manifest(config=images.config(**fields))
    assert select_manifest(RememberingSource(images), root, LINUX_AMD64, "app:1") == root


def test_an_artifact_has_no_platform_and_its_config_is_not_read() -> None:
    images = Images()
    root = images.manifest(config=images.add_blob(b"no JSON", "application/vnd.example+json"))
    assert select_manifest(RememberingSource(images), root, LINUX_AMD64, "app:1") == root


def test_an_attestation_is_never_chosen_whatever_platform_it_claims() -> None:
    images = Images()
    image = images.manifest(config=images.config(os="linux", architecture="arm64"))
    attestation = images.manifest(annotations={"attests": "1"})
    platform = {"os": "linux", "architecture": "amd64"}
    marked = {
        **images.json(attestation),
        "platform": platform,
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    root = images.index(marked, image)
    with pytest.raises(PlatformNotFound) as caught:
        select_manifest(RememberingSource(images), root, LINUX_AMD64, "app:1")
    assert caught.value.available == ("linux/arm64",)


def test_an_unknown_platform_is_never_chosen_not_even_by_who_asks_for_it() -> None:
    images = Images()
    unknown = {**images.json(images.manifest()), "platform": {"os": "unknown", "architecture": "unknown"}}
    root = images.index(unknown)
    for wanted in (LINUX_AMD64, Platform(os="unknown", architecture="unknown")):
        with pytest.raises(PlatformNotFound):
            select_manifest(RememberingSource(images), root, wanted, "app:1")


def test_the_platform_of_an_entry_that_has_none_is_read_from_its_config() -> None:
    images = Images()
    arm64 = images.manifest(config=images.config(os="linux", architecture="arm64"))
    amd64 = images.manifest(config=images.config(os="linux", architecture="amd64"))
    root = images.index(arm64, amd64)
    found = select_manifest(RememberingSource(images), root, LINUX_AMD64, "app:1")
    assert (found.digest, found.platform) == (amd64.digest, LINUX_AMD64)
    assert select_manifest(RememberingSource(images), root, ARM64, "app:1").digest == arm64.digest


def test_what_an_entry_says_of_its_platform_is_not_looked_up_in_the_config() -> None:
    index = build_index([build_image(), build_image(platform="linux/arm64")])
    source = RecordingSource(memory_of({"": index}))
    select_manifest(RememberingSource(source), root_of(index), ARM64, "app:1")
    assert list(map(str, source.opened_digests)) == [index.digest]


def test_of_equal_platforms_the_first_is_chosen_and_of_several_variants_the_best() -> None:
    images = Images()

    def entry(number: str, **platform: str) -> dict[str, Any]:
        return {**images.json(images.manifest(annotations={"number": number})), "platform": platform}

    arm = {"os": "linux", "architecture": "arm"}
    listed = [
        entry("0", **arm, variant="v5"),
        entry("1", **arm, variant="v6"),
        entry("2", **arm, variant="v6"),
        entry("3", **arm, variant="v8"),
    ]
    source = RememberingSource(images)
    found = select_manifest(source, images.index(*listed), Platform(os="linux", architecture="arm", variant="v7"), "")
    assert str(found.digest) == listed[1]["digest"]
    with pytest.raises(PlatformNotFound, match="on offer: linux/arm/v8"):
        select_manifest(source, images.index(listed[3]), Platform.parse("linux/arm/v7"), "app:1")


def test_entries_that_are_no_images_are_passed_over() -> None:
    images = Images()
    image = images.manifest()
    other = {**images.json(images.layer(b"x")), "platform": {"os": "linux", "architecture": "amd64"}}
    found = select_manifest(RememberingSource(images), images.index(other, image), LINUX_AMD64, "app:1")
    assert found.digest == image.digest


@pytest.mark.parametrize("kind", [OCI_LAYER, "application/json", "text/html"])
def test_a_root_that_is_no_document_offers_no_choice(kind: str) -> None:
    images = Images()
    with pytest.raises(InvalidDocument, match="is no manifest or index"):
        select_manifest(RememberingSource(images), images.add_blob(b"x", kind), LINUX_AMD64, "app:1")


def test_a_choice_reads_within_the_same_bounds_as_the_walk() -> None:
    deep = build_index([build_image()], nested=20)
    with pytest.raises(InvalidDocument, match="nested more than 8 deep"):
        chosen(deep, LINUX_AMD64)
    images = Images()
    bare = [images.manifest(annotations={"number": str(number)}) for number in range(1030)]
    with pytest.raises(InvalidDocument, match="more than 1024 documents"):
        select_manifest(RememberingSource(images), images.index(*bare), LINUX_AMD64, "app:1")


def test_an_index_that_names_itself_through_others_many_times_is_read_once_each() -> None:
    images = Images()
    level = images.index(images.manifest())
    for _ in range(5):
        level = images.index(level, level, level, level)
    behind = RecordingSource(images)
    found = select_manifest(RememberingSource(behind), level, LINUX_AMD64, "app:1")
    assert found.platform == LINUX_AMD64
    assert len(behind.opened) == 8
    assert len(list(walk(images, level))) == 8


def refuse(odd: InvalidDocument) -> None:
    raise odd


def test_a_config_that_is_odd_hides_no_other_platform_and_is_named_where_nothing_fits() -> None:
    images = Images()
    content = encode_document({"os": "linux", "architecture": "amd64", "created": 5})
    odd = images.manifest(config=images.add_blob(content, OCI_CONFIG))
    large = images.manifest(config=images.add_blob(b"{}".ljust((4 << 20) + 1), OCI_CONFIG))
    arm64 = images.manifest(config=images.config(os="linux", architecture="arm64"))
    root = images.index(odd, large, arm64)
    assert select_manifest(RememberingSource(images), root, ARM64, "app:1").digest == arm64.digest
    for wrong, where in ((root, "created"), (odd, "created"), (images.index(large, arm64), "")):
        with pytest.raises(InvalidDocument) as caught:
            select_manifest(RememberingSource(images), wrong, LINUX_AMD64, "app:1")
        assert caught.value.where == where


def test_a_manifest_that_an_index_names_again_is_offered_once_for_each_platform() -> None:
    images = Images()
    image = images.json(images.manifest(config=images.config(os="linux", architecture="arm64")))
    arm64, arm64_again, amd64 = (
        {**image, "platform": {"os": "linux", **more}}
        for more in ({"architecture": "arm64"}, {"architecture": "aarch64", "variant": "v8"}, {"architecture": "amd64"})
    )
    bare = images.json(images.manifest(config=images.config()))
    root = images.index(arm64, arm64_again, image, amd64, image, bare, bare, arm64)
    offered = list(manifests_below(RememberingSource(images), root, DEFAULT_LIMITS, refuse))
    assert [str(each.platform) for each in offered] == ["linux/arm64", "linux/amd64", "None"]
    many = images.index(*[image] * 2000)
    assert len(list(manifests_below(RememberingSource(images), many, DEFAULT_LIMITS, refuse))) == 1


def test_a_document_of_the_choice_that_is_wrong_or_missing_ends_it() -> None:
    index = build_index([build_image()], nested=1)
    inner = index.document()["manifests"][0]["digest"]
    with pytest.raises(ContentMismatch):
        chosen(index.corrupted(inner), LINUX_AMD64)
    with pytest.raises(BlobNotFound):
        chosen(index.without(inner), LINUX_AMD64)
    assert json.loads(blobs_of(index)[root_of(index).digest])["manifests"][0]["digest"] == inner
