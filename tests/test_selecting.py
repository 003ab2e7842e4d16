"""What of an image is wanted: one manifest, an index of several, all of them; and the index that is made for that."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.documents import Descriptor, Index
from minibox_store.errors import BlobNotFound, InvalidDocument, PlatformNotFound
from minibox_store.graph import RememberingSource, walk
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import LINUX_AMD64, Platform, WantedPlatforms
from minibox_store.selecting import ChosenImage, select_image
from tests.support.images import (
    DOCKER_MANIFEST_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    encode_document,
)
from tests.support.sources import image_of, memory_of, root_document, root_of

NAMES = ["linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/s390x", "windows/amd64"]
IMAGES = {name: build_image(platform=name, salt="s") for name in NAMES}
ARM64 = Platform.parse("linux/arm64")


def select(image: BuiltImage, *wanted: str, limits: Limits = DEFAULT_LIMITS) -> tuple[ChosenImage, RememberingSource]:
    """Select several platforms, or all where none is named."""
    source = RememberingSource(memory_of({"": image}), limits)
    asked: tuple[Platform, ...] | Literal["all"] = tuple(map(Platform.parse, wanted)) or "all"
    return select_image(source, root_of(image), asked, "app:1", limits), source


def entries(source: RememberingSource, root: Descriptor) -> list[dict[str, Any]]:
    """Return the entries of an index as they stand in its bytes."""
    found: list[dict[str, Any]] = json.loads(source.read(root))["manifests"]
    return found


def with_fields(image: BuiltImage, **fields: object) -> BuiltImage:
    """Return an index with further fields."""
    content = encode_document({**image.document(), **fields})
    root = root_document(content, image.media_type)
    blobs = {**image.blobs, str(root["digest"]): content}
    return image_of(blobs, root, {**image.media_types, str(root["digest"]): image.media_type})


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("nested", [0, 2])
def test_several_platforms_give_a_new_index_of_their_entries_in_the_order_of_the_original(
    docker: bool, nested: int
) -> None:
    images = {name: build_image(platform=name, docker=docker) for name in NAMES}
    index = build_index(list(images.values()), attestations=True, docker=docker, nested=nested)
    chosen, source = select(index, "linux/arm64", "linux/amd64")
    assert chosen.made_from == root_of(index)
    assert [each["digest"] for each in entries(source, chosen.root)] == [
        images["linux/amd64"].digest,
        images["linux/arm64/v8"].digest,
    ]
    assert chosen.root.media_type == (DOCKER_MANIFEST_LIST if docker else OCI_INDEX)
    assert [(str(each.descriptor.platform), each.wanted) for each in chosen.manifests] == [
        ("linux/amd64", (LINUX_AMD64,)),
        ("linux/arm64/v8", (ARM64,)),
    ]
    wanted = {*images["linux/amd64"].blobs, *images["linux/arm64/v8"].blobs, str(chosen.root.digest)}
    assert {str(node.descriptor.digest) for node in walk(source, chosen.root)} == wanted


def test_an_entry_is_kept_as_the_original_has_it_with_its_annotations_and_so_is_what_the_index_says_of_itself() -> None:
    index = build_index([IMAGES[name] for name in NAMES])
    listed = index.document()["manifests"]
    for number, entry in enumerate(listed):
        entry["annotations"] = {"number": str(number), "a": "b"}
    listed[0]["platform"] |= {"os.version": "6.1", "os.features": ["one"]}
    annotations = {"org.opencontainers.image.version": "1"}
    index = with_fields(index, manifests=listed, annotations=annotations, artifactType="application/vnd.example")
    chosen, source = select(index, "linux(+one)/amd64", "linux/s390x")
    document = json.loads(source.read(chosen.root))
    assert document["manifests"] == [listed[0], listed[3]]
    assert document["annotations"] == annotations
    assert document["artifactType"] == "application/vnd.example"


@pytest.mark.parametrize("nested", [0, 1])
def test_all_are_the_known_platforms_and_no_attestation_no_unknown_one_and_no_artifact(nested: int) -> None:
    artifact = build_image(salt="artifact", config={"os": "", "architecture": ""})
    index = build_index([artifact, *IMAGES.values()], attestations=True)
    listed = index.document()["manifests"]
    del listed[0]["platform"]
    listed[-1]["annotations"] = {}  # an attestation that only its platform gives away
    listed[-2] |= {"platform": {"os": "Linux", "architecture": "UNKNOWN"}, "annotations": {}}
    index = build_index([with_fields(index, manifests=listed)], nested=nested)
    chosen, source = select(index)
    assert [each["digest"] for each in entries(source, chosen.root)] == [each.digest for each in IMAGES.values()]
    assert all(each.wanted == () for each in chosen.manifests)


@pytest.mark.parametrize("wanted", [(), NAMES, reversed(NAMES)])
def test_an_index_that_names_nothing_else_is_the_one_that_is_kept(wanted: Sequence[str]) -> None:
    index = build_index(list(IMAGES.values()))
    chosen, source = select(index, *wanted)
    assert (chosen.root, chosen.made_from) == (root_of(index), None)
    assert source.read(chosen.root) == index.blobs[index.digest]


def test_one_of_several_is_an_index_still() -> None:
    chosen, source = select(build_index(list(IMAGES.values())), "linux/amd64")
    assert [each["digest"] for each in entries(source, chosen.root)] == [IMAGES["linux/amd64"].digest]


def test_a_manifest_that_fits_several_of_the_platforms_stands_in_the_index_once() -> None:
    wanted = ["linux/arm/v8", "linux/arm/v6", "linux/arm", "linux/arm/v8"]
    chosen, source = select(build_index(list(IMAGES.values())), *wanted)
    assert [each["digest"] for each in entries(source, chosen.root)] == [IMAGES["linux/arm/v6"].digest]
    assert [each.wanted for each in chosen.manifests] == [tuple(map(Platform.parse, wanted[:3]))]


def test_silent_first_platform_each_platform_that_is_missing_is_named_with_what_is_on_offer() -> None:
    index = build_index([IMAGES["linux/amd64"], IMAGES["linux/s390x"]])
    with pytest.raises(PlatformNotFound) as caught:
        select(index, "linux/arm64", "linux/amd64", "linux/386")
    assert str(caught.value) == (
        "app:1 has no image for platform linux/arm64, linux/386; on offer: linux/amd64, linux/s390x"
    )


@pytest.mark.parametrize("wanted", ["unknown/unknown", "linux/unknown", "unknown/amd64"])
def test_an_unknown_platform_is_never_chosen_not_even_among_several(wanted: str) -> None:
    index = build_index([IMAGES["linux/amd64"]], attestations=True)
    listed = index.document()["manifests"]
    system, architecture = wanted.split("/")
    listed[1] |= {"platform": {"os": system, "architecture": architecture}, "annotations": {}}
    with pytest.raises(PlatformNotFound):
        select(with_fields(index, manifests=listed), "linux/amd64", wanted)


@pytest.mark.parametrize("index", [build_index([]), build_index([build_index([])])])
def test_all_of_nothing_is_an_error(index: BuiltImage) -> None:
    with pytest.raises(PlatformNotFound, match="no image for platform any; on offer: none"):
        select(index)


def test_a_manifest_that_fits_stays_the_manifest_that_it_is() -> None:
    image = IMAGES["linux/arm/v6"]
    for wanted in ((), ("linux/arm/v6",), ("linux/arm/v7", "linux/arm/v6")):
        chosen, _ = select(image, *wanted)
        assert (chosen.root, chosen.made_from) == (root_of(image), None)
    with pytest.raises(PlatformNotFound, match="platform linux/amd64; on offer: linux/arm/v6"):
        select(image, "linux/arm/v6", "linux/amd64")


def test_a_single_attestation_is_not_all_that_there_is_to_run() -> None:
    attestation = build_image(platform="unknown/unknown")
    with pytest.raises(PlatformNotFound):
        select(attestation)
    assert select_image(RememberingSource(memory_of({"": attestation})), root_of(attestation), None, "").manifests == ()


def test_what_an_index_elsewhere_said_of_a_manifest_does_not_count_when_that_is_asked_for_by_itself() -> None:
    image = IMAGES["linux/arm/v6"]
    marks = {"vnd.docker.reference.type": "attestation-manifest"}
    root = attrs.evolve(root_of(image), annotations=marks, platform=LINUX_AMD64)
    for wanted in ("all", Platform.parse("linux/arm/v6"), (Platform.parse("linux/arm/v7"),)):
        chosen = select_image(RememberingSource(memory_of({"": image})), root, wanted, "app:1")
        assert chosen.root == root
        assert [str(each.descriptor.platform) for each in chosen.manifests] == ["linux/arm/v6"]


def test_an_artifact_which_has_no_platform_is_what_was_asked_for() -> None:
    artifact = build_image(config={"os": "", "architecture": ""})
    for wanted in ((), ("linux/amd64", "linux/arm64")):
        chosen, _ = select(artifact, *wanted)
        assert chosen.root == root_of(artifact)


def test_the_platform_of_an_entry_that_has_none_is_read_and_written_into_the_new_index() -> None:
    index = build_index(list(IMAGES.values()))
    listed = index.document()["manifests"]
    for entry in listed:
        del entry["platform"]
    chosen, source = select(with_fields(index, manifests=listed), "linux/arm64", "linux/s390x")
    assert [each["platform"] for each in entries(source, chosen.root)] == [
        {"architecture": "arm64", "os": "linux", "variant": "v8"},
        {"architecture": "s390x", "os": "linux"},
    ]


def test_a_config_that_is_odd_is_told_where_a_platform_is_missing_or_all_are_wanted() -> None:
    odd = build_image(salt="odd", config={"os": 5})
    index = build_index([odd, IMAGES["linux/amd64"], IMAGES["linux/s390x"]])
    listed = index.document()["manifests"]
    del listed[0]["platform"]
    index = with_fields(index, manifests=listed)
    chosen, source = select(index, "linux/amd64")
    assert len(entries(source, chosen.root)) == 1
    for wanted in ((), ("linux/amd64", "linux/arm64")):
        with pytest.raises(InvalidDocument, match="at os: expected a string"):
            select(index, *wanted)


@pytest.mark.parametrize("kind", ["application/json", "application/vnd.oci.image.layer.v1.tar"])
def test_a_root_that_is_no_document_has_no_platforms(kind: str) -> None:
    image = image_of({}, {**root_document(b"{}", kind)})
    with pytest.raises(InvalidDocument, match="is no manifest or index"):
        select(image)


def test_an_index_that_is_not_there_is_named() -> None:
    index = build_index(list(IMAGES.values()))
    with pytest.raises(BlobNotFound, match=index.digest):
        select(index.without(index.digest))


def many(count: int, annotation: str = "") -> BuiltImage:
    """Return an index of three indexes, which name one manifest for many platforms."""
    entry = {**IMAGES["linux/amd64"].root, "annotations": {"a": annotation}}
    numbers = iter(range(count))
    blobs = dict(IMAGES["linux/amd64"].blobs)
    inner = []
    for _ in range(3):
        platforms = [{"os": "linux", "architecture": f"a{next(numbers)}"} for _ in range(count // 3)]
        listed = [{**entry, "platform": platform} for platform in platforms]
        content = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})
        inner.append(root_document(content, OCI_INDEX))
        blobs[str(inner[-1]["digest"])] = content
    content = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": inner})
    root = root_document(content, OCI_INDEX)
    return image_of({**blobs, str(root["digest"]): content}, root)


@pytest.mark.parametrize(("count", "is_taken"), [(1023, True), (1026, False)])
def test_S7_a_new_index_is_one_of_at_most_1024_documents(count: int, is_taken: bool) -> None:
    if is_taken:
        assert len(select(many(count))[0].manifests) == count
    else:
        with pytest.raises(InvalidDocument, match="more than 1024 documents"):
            select(many(count))


def test_S7_a_new_index_is_not_larger_than_may_be_read_again() -> None:
    index = many(600, "x" * 10_000)
    assert max(map(len, index.blobs.values())) < DEFAULT_LIMITS.document_bytes
    with pytest.raises(InvalidDocument, match="an index of what is wanted of it is larger than 4194304 bytes"):
        select(index)


@given(
    offered=st.lists(st.sampled_from(NAMES), unique=True, min_size=1),
    wanted=st.data(),
    nested=st.integers(0, 2),
    attestations=st.booleans(),
)
def test_whatever_is_chosen_is_closed_known_and_all_that_was_asked_for_and_equal_choices_give_equal_bytes(
    offered: list[str], wanted: st.DataObject, nested: int, attestations: bool
) -> None:
    asked = wanted.draw(st.lists(st.sampled_from(offered), unique=True))
    index = build_index([IMAGES[name] for name in offered], attestations=attestations, nested=nested)
    chosen, source = select(index, *asked)
    kept = [name for name in offered if name in asked or not asked]
    nodes = list(walk(source, chosen.root))
    assert {str(node.descriptor.digest) for node in nodes} == {
        str(chosen.root.digest),
        *(digest for name in kept for digest in IMAGES[name].blobs),
    }
    document = nodes[-1].document
    assert isinstance(document, Index)
    assert [str(each.platform) for each in document.manifests] == kept
    assert (chosen.made_from is None) == (not nested and not attestations and kept == offered)
    again, other = select(index, *reversed(asked))
    assert (again.root, other.read(again.root)) == (chosen.root, source.read(chosen.root))
    # What was chosen once is all that there is: it is kept as it is, by whoever has it as a source.
    for choice in ("all", tuple(map(Platform.parse, kept))):
        assert reselect(source, chosen.root, choice) == chosen.root


def reselect(source: RememberingSource, root: Descriptor, wanted: WantedPlatforms) -> Descriptor:
    """Select from what was selected."""
    assert root.media_type != OCI_MANIFEST
    return select_image(source, root, wanted, "").root
