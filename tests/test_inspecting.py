"""What a store tells of one image: all that its documents and configs say, and how it was made."""

import json
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    Digest,
    HistoryEntry,
    ImageDetails,
    ImageNotFound,
    IncompleteImage,
    Index,
    InvalidDocument,
    Manifest,
    ManifestDetails,
    Platform,
    PlatformNotFound,
    Store,
    StoreDamaged,
)
from minibox_store.graph import RememberingSource
from minibox_store.inspecting import read_image
from tests.support.images import (
    OCI_CONFIG,
    BuiltImage,
    Document,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.layouts import write_layout
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.sources import image_of, memory_of, root_document, root_of
from tests.support.stores import blob, open_store, put, rot
from tests.support.traced_memory import peak_of

AMD64, ARM64, ARM = (build_image(platform=each, salt="1") for each in ("linux/amd64", "linux/arm64", "linux/arm/v7"))
SUBJECT = build_image(salt="subject")
ARTIFACT_CONFIG = "application/vnd.oci.empty.v1+json"
LAYERS = [{"a": b"1"}, {"b": b"2"}, {"c": b"3"}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def inspected(root: Path, image: BuiltImage, platform: str | None = None) -> ImageDetails:
    put(root, image, "app:1")
    before = snapshot(root)
    found = open_store(root).inspect("app:1", platform=None if platform is None else Platform.parse(platform))
    assert snapshot(root) == before
    return found


def test_a_manifest_that_is_told_whole_is_decoded_once() -> None:
    read = read_image(RememberingSource(memory_of({"app:1": AMD64})), root_of(AMD64), root_of(AMD64))
    assert read.document is read.manifests[0].manifest


def history_of(root: Path, image: BuiltImage, platform: str | None = None) -> tuple[HistoryEntry, ...]:
    put(root, image, "app:1")
    before = snapshot(root)
    found = open_store(root).history("app:1", platform=None if platform is None else Platform.parse(platform))
    assert snapshot(root) == before
    return found


def with_config_type(image: BuiltImage, media_type: str, content: bytes | None = None) -> BuiltImage:
    """Return an image whose config is of another type, or is other bytes; its layers stay."""
    document = image.document()
    content = image.blobs[image.config_digest] if content is None else content
    document["config"] = root_document(content, media_type)
    manifest = encode_document(document)
    layers = image.without(image.digest, image.config_digest).blobs
    blobs = {digest_of(content): content, **layers, digest_of(manifest): manifest}
    return image_of(blobs, root_document(manifest, image.media_type))


def agrees(found: ManifestDetails, image: BuiltImage) -> None:
    """Check what is told of a manifest against what its builder wrote, read by json alone."""
    document = image.document()
    config = json.loads(image.blobs[image.config_digest])
    assert str(found.descriptor.digest) == image.digest
    assert found.config is not None
    assert str(found.config_descriptor.digest) == image.config_digest
    assert [str(each.descriptor.digest) for each in found.layers] == image.layer_digests
    assert [each.descriptor.size_bytes for each in found.layers] == [each["size"] for each in document["layers"]]
    assert [str(each.diff_id) for each in found.layers] == config["rootfs"]["diff_ids"]
    assert found.platform is not None
    assert found.platform == found.config.platform
    assert (found.platform.os, found.platform.architecture) == (config["os"], config["architecture"])
    assert found.config.labels == config["config"]["Labels"]
    assert list(found.config.env) == config["config"]["Env"]
    assert [each.created_by for each in found.config.history] == [each["created_by"] for each in config["history"]]
    assert [each.layer for each in found.config.history] == [None] * len(config["history"])
    assert found.annotations == document.get("annotations", {})


# ---- one manifest


@pytest.mark.parametrize(
    "image",
    [
        build_image(salt="x"),
        build_image(docker=True, salt="x"),
        build_image(algorithm="sha512", salt="x"),
        build_image(platform="linux/arm/v7", annotations={"key": "value"}),
        build_image([], salt="no layers"),
        build_image([LAYERS[0], LAYERS[0]], salt="one layer twice"),
    ],
)
def test_an_image_is_told_as_it_was_built(root: Path, image: BuiltImage) -> None:
    found = inspected(root, image)
    (manifest,) = found.manifests
    agrees(manifest, image)
    assert found.image == open_store(root).get("app:1")
    assert manifest.descriptor == found.image.descriptor
    assert isinstance(found.document, Manifest)
    assert found.document.layers == tuple(each.descriptor for each in manifest.layers)
    assert (found.absent, manifest.subject, manifest.artifact_type, manifest.is_attestation) == ((), None, None, False)


def test_what_a_manifest_refers_to_is_told_and_need_not_be_there(root: Path) -> None:
    (manifest,) = inspected(root, build_image(subject=SUBJECT.root, annotations={"a": "b"})).manifests
    assert manifest.subject is not None
    assert str(manifest.subject.digest) == SUBJECT.digest
    assert manifest.annotations == {"a": "b"}


def test_a_name_is_meant_as_by_every_other_method(root: Path) -> None:
    put(root, AMD64, "docker.io/library/alpine:latest")
    assert open_store(root).inspect("alpine").image.name == "docker.io/library/alpine:latest"
    assert len(open_store(root).history("alpine")) == 2
    for ask in (open_store(root).inspect, open_store(root).history):
        with pytest.raises(ImageNotFound, match="missing:1"):
            ask("missing:1")


def test_asking_in_no_store_makes_none(root: Path) -> None:
    with pytest.raises(ImageNotFound):
        open_store(root).inspect("app:1")
    with pytest.raises(ImageNotFound):
        open_store(root).history("app:1")
    assert not root.exists()


def test_the_config_of_an_artifact_is_none_that_is_read(root: Path) -> None:
    artifact = with_config_type(AMD64, ARTIFACT_CONFIG, b"not JSON")
    (manifest,) = inspected(root, artifact).manifests
    assert manifest.config is None
    assert manifest.platform is None
    assert manifest.config_descriptor.media_type == ARTIFACT_CONFIG
    assert [each.diff_id for each in manifest.layers] == [None, None]
    assert history_of(root, artifact) == tuple(HistoryEntry(layer=each.descriptor) for each in manifest.layers)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_layer_has_no_diff_id_where_nobody_can_tell_which(root: Path, count: int) -> None:
    diff_ids = [digest_of(str(number).encode()) for number in range(count)]
    image = build_image(config={"rootfs": {"type": "layers", "diff_ids": diff_ids}})
    (manifest,) = inspected(root, image).manifests
    assert manifest.config is not None
    assert manifest.config.diff_ids == tuple(map(Digest.parse, diff_ids))
    assert [each.diff_id for each in manifest.layers] == [None, None]


# ---- an index


@pytest.mark.parametrize("docker", [False, True])
def test_each_manifest_of_an_index_is_told_attestations_as_such(root: Path, docker: bool) -> None:
    images = [build_image(platform=each, docker=docker) for each in ("linux/amd64", "linux/arm64", "linux/arm/v7")]
    index = build_index(images, attestations=True, docker=docker)
    found = inspected(root, index)
    assert isinstance(found.document, Index)
    assert tuple(each.descriptor for each in found.manifests) == found.document.manifests
    assert [each.is_attestation for each in found.manifests] == [False] * 3 + [True] * 3
    for manifest, image in zip(found.manifests, images, strict=False):
        agrees(manifest, image)
    for manifest in found.manifests[3:]:
        assert str(manifest.platform) == "unknown/unknown"
        assert manifest.config is not None


def test_the_manifests_of_an_index_in_an_index_come_first(root: Path) -> None:
    inner = build_index([ARM64, ARM])
    found = inspected(root, build_index([AMD64, inner], nested=1))
    assert [str(each.descriptor.digest) for each in found.manifests] == [ARM64.digest, ARM.digest, AMD64.digest]


def test_a_manifest_that_an_index_has_for_two_platforms_is_told_for_each(root: Path) -> None:
    bare = build_image(config={"os": "", "architecture": ""})
    platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64")]
    entries = [{**bare.root, "platform": platform} for platform in platforms]
    found = inspected(root, index_over([bare], entries))
    assert [str(each.platform) for each in found.manifests] == ["linux/amd64", "linux/arm64"]
    assert {str(each.descriptor.digest) for each in found.manifests} == {bare.digest}


def index_over(images: list[BuiltImage], entries: list[Document]) -> BuiltImage:
    """Return an index with these very entries."""
    plain = build_index(images)
    content = encode_document({**plain.document(), "manifests": entries})
    blobs = {**plain.without(plain.digest).blobs, digest_of(content): content}
    return image_of(blobs, root_document(content, plain.media_type))


@pytest.mark.parametrize(
    "image", [build_index([AMD64, ARM64, ARM], attestations=True), build_index([ARM, ARM64], nested=2)]
)
def test_one_platform_of_an_index_may_be_asked_for(root: Path, image: BuiltImage) -> None:
    found = inspected(root, image, "linux/aarch64")
    (manifest,) = found.manifests
    agrees(manifest, ARM64)
    assert isinstance(found.document, Index)
    assert str(found.image.digest) == image.digest
    assert history_of(root, image, "linux/arm64") == manifest.history
    for ask in (inspected, history_of):
        with pytest.raises(PlatformNotFound, match="linux/s390x") as caught:
            ask(root, image, "linux/s390x")
        assert {"linux/arm64", "linux/arm/v7"} <= set(caught.value.available)
        assert "unknown/unknown" not in caught.value.available


def test_a_platform_that_a_single_manifest_has_not_is_refused(root: Path) -> None:
    agrees(inspected(root, ARM64, "linux/arm64").manifests[0], ARM64)
    for ask in (inspected, history_of):
        with pytest.raises(PlatformNotFound) as caught:
            ask(root, ARM64, "linux/amd64")
        assert caught.value.available == ("linux/arm64",)


def test_what_a_foreign_tool_never_fetched_is_told_as_absent(root: Path) -> None:
    index = build_index([AMD64, ARM64])
    write_layout(root, {"app:1": index.without(*ARM64.blobs)})
    store = open_store(root)
    found = store.inspect("app:1")
    assert [str(each.digest) for each in found.absent] == [ARM64.digest]
    (manifest,) = found.manifests
    agrees(manifest, AMD64)
    assert store.history("app:1") == manifest.history
    for ask in (store.inspect, store.history):
        with pytest.raises(IncompleteImage, match=ARM64.digest):
            ask("app:1", platform=Platform.parse("linux/arm64"))


# ---- what is missing, wrong or odd


def test_layers_are_not_needed_to_tell_what_an_image_says(root: Path) -> None:
    put(root, AMD64, "app:1")
    whole = open_store(root).inspect("app:1")
    blob(root, AMD64.layer_digests[0]).unlink()
    rot(blob(root, AMD64.layer_digests[1]))
    assert open_store(root).inspect("app:1") == whole
    assert open_store(root).history("app:1") == whole.manifests[0].history


@pytest.mark.parametrize("ask", [Store.inspect, Store.history])
@pytest.mark.parametrize("lost", [AMD64.digest, AMD64.config_digest])
def test_what_is_missing_is_named(root: Path, lost: str, ask: Callable[[Store, str], object]) -> None:
    put(root, AMD64, "app:1")
    blob(root, lost).unlink()
    with pytest.raises(IncompleteImage) as caught:
        ask(open_store(root), "app:1")
    assert (caught.value.root, caught.value.missing) == ("app:1", (lost,))


@pytest.mark.parametrize("ask", [Store.inspect, Store.history])
@pytest.mark.parametrize("rotten", [AMD64.digest, AMD64.config_digest])
def test_what_is_rotten_is_never_told(root: Path, rotten: str, ask: Callable[[Store, str], object]) -> None:
    put(root, AMD64, "app:1")
    rot(blob(root, rotten))
    with pytest.raises(StoreDamaged) as caught:
        ask(open_store(root), "app:1")
    assert caught.value.path == str(blob(root, rotten))


ODD: list[tuple[Document, str]] = [
    ({"history": [{"created": 5}, {}]}, "history[0].created"),
    ({"config": {"Labels": {"a": None}}}, "config.Labels"),
    ({"config": {"Cmd": "sh"}}, "config.Cmd"),
    ({"author": ["a"]}, "author"),
]


@pytest.mark.parametrize(("odd", "where"), ODD, ids=[where for _, where in ODD])
def test_an_odd_config_is_named_with_its_place_and_the_image_can_still_be_used(
    root: Path, odd: Document, where: str
) -> None:
    image = build_image(config=odd)
    source = memory_of({"app:1": image})
    store = open_store(root)
    store.import_image(source, "app:1", platform=Platform.parse("linux/amd64"))
    for ask in (store.inspect, store.history):
        with pytest.raises(InvalidDocument) as caught:
            ask("app:1")
        assert (caught.value.document, caught.value.where) == (image.config_digest, where)
    (listed,) = store.images()
    assert (str(listed.platform), listed.created, listed.damaged) == ("linux/amd64", "2024-01-01T00:00:00Z", False)
    assert store.verify() == ()
    store.save("app:1", root.parent / "a.tar")
    assert store.load(root.parent / "a.tar") == (listed,)


def bomb_of(count: int, config: bytes) -> BuiltImage:
    """Return an index of many small manifests that all have one config, and name no platform."""
    shared = root_document(config, OCI_CONFIG)
    images = []
    for number in range(count):
        content = encode_document(
            {**AMD64.document(), "config": shared, "layers": [], "annotations": {"n": str(number)}}
        )
        blobs = {shared["digest"]: config, digest_of(content): content}
        images.append(image_of(blobs, root_document(content, AMD64.media_type)))
    return build_index(images)


@pytest.mark.parametrize("distinct", [False, True])
def test_S7_a_config_that_many_manifests_have_is_told_at_the_cost_of_one(root: Path, distinct: bool) -> None:
    config = encode_document({"os": "linux", "architecture": "amd64", "config": {"Env": ["a=b"] * 50_000}})
    one = bomb_of(1, config)
    many = bomb_of(60, config) if distinct else index_over([one], one.document()["manifests"] * 60)
    write_layout(root, {"one:1": one, "many:1": many})
    found = open_store(root).inspect("many:1").manifests
    assert len(found) == 60
    assert len({id(each.config) for each in found}) == 1
    peaks = [peak_of(partial(open_store(root).inspect, name)) for name in ("one:1", "many:1")]
    assert peaks[1] < 2 * peaks[0]


def test_S7_what_may_be_told_at_once_has_a_bound_and_one_platform_is_told_all_the_same(root: Path) -> None:
    images = [build_image(platform=f"linux/{name}", config={"author": "x" * ((4 << 20) - 1000)}) for name in "abcde"]
    write_layout(root, {"app:1": build_index(images)})
    store = open_store(root)
    with pytest.raises(InvalidDocument, match="its documents and configs have more than 16777216 bytes") as caught:
        store.inspect("app:1")
    assert caught.value.document == str(store.get("app:1").digest)
    (manifest,) = store.inspect("app:1", platform=Platform.parse("linux/c")).manifests
    agrees(manifest, images[2])
    assert store.verify() == ()


def test_S7_an_index_that_names_its_manifests_thousands_of_times_is_refused(root: Path) -> None:
    entries = [{**AMD64.root, "annotations": {"n": str(number)}} for number in range(1025)]
    write_layout(root, {"full:1": index_over([AMD64], entries[:-1]), "over:1": index_over([AMD64], entries)})
    store = open_store(root)
    assert len(store.inspect("full:1").manifests) == 1024
    with pytest.raises(InvalidDocument, match="at manifests: it names more than 1024 of them"):
        store.inspect("over:1")


def test_an_odd_config_hides_no_other_platform(root: Path) -> None:
    index = build_index([AMD64, build_image(platform="linux/arm64", config={"history": 5})])
    put(root, index, "app:1")
    store = open_store(root)
    with pytest.raises(InvalidDocument, match="at history"):
        store.inspect("app:1")
    agrees(store.inspect("app:1", platform=Platform.parse("linux/amd64")).manifests[0], AMD64)
    assert len(store.history("app:1")) == 2


def test_S7_a_config_that_is_too_large_to_read_is_not_read(root: Path) -> None:
    image = with_config_type(AMD64, OCI_CONFIG, b"{}".ljust((4 << 20) + 1))
    put(root, image, "app:1")
    for ask in (open_store(root).inspect, open_store(root).history):
        with pytest.raises(InvalidDocument, match="too large for a config") as caught:
            ask("app:1")
        assert caught.value.document == image.config_digest


def test_a_name_for_what_is_no_image_is_refused_and_the_store_not_called_damaged(root: Path) -> None:
    content = b"just bytes"
    descriptor = root_document(content, "application/octet-stream")
    write_layout(root, {"app:1": image_of({descriptor["digest"]: content}, descriptor)})
    store = open_store(root)
    assert store.verify() == ()
    for ask in (store.inspect, store.history):
        for platform in (None, Platform.parse("linux/amd64")):
            with pytest.raises(InvalidDocument, match="is no manifest or index"):
                ask("app:1", platform=platform)


@pytest.mark.parametrize("odd", [{"created": 5}, {"rootfs": {"diff_ids": ["sha256:a"]}}])
def test_an_odd_config_is_no_damage_however_it_is_asked_for(root: Path, odd: Document) -> None:
    image = build_image(config=odd)
    bare = index_over([image, ARM64], [image.root, ARM64.root])  # the configs alone say for which platform each is
    write_layout(root, {"app:1": image, "index:1": build_index([image, ARM64]), "bare:1": bare})
    store = open_store(root)
    assert store.verify() == ()
    for name in ("app:1", "index:1", "bare:1"):
        for ask, platform in product((store.inspect, store.history), (None, Platform.parse("linux/amd64"))):
            with pytest.raises(InvalidDocument) as caught:
                ask(name, platform=platform)
            assert caught.value.document == image.config_digest
    for name in ("index:1", "bare:1"):
        (manifest,) = store.inspect(name, platform=Platform.parse("linux/arm64")).manifests
        agrees(manifest, ARM64)
        assert store.history(name, platform=Platform.parse("linux/arm64")) == manifest.history


def test_a_config_that_has_rotten_is_damage_when_a_platform_is_looked_for_too(root: Path) -> None:
    write_layout(root, {"bare:1": index_over([AMD64, ARM64], [AMD64.root, ARM64.root])})
    rot(blob(root, AMD64.config_digest))
    for ask in (open_store(root).inspect, open_store(root).history):
        with pytest.raises(StoreDamaged) as caught:
            ask("bare:1", platform=Platform.parse("linux/amd64"))
        assert caught.value.path == str(blob(root, AMD64.config_digest))


@pytest.mark.parametrize("ask", [Store.inspect, Store.history])
def test_an_image_that_goes_while_it_is_read_is_not_called_incomplete(
    root: Path, ask: Callable[[Store, str], object]
) -> None:
    index = build_index([AMD64])
    for victim in (AMD64.digest, AMD64.config_digest):
        put(root, index, "app:1")
        put(root, ARM64, "other:1")
        with replaced_os() as system:

            def collect() -> None:
                open_store(root).remove("app:1")
                open_store(root).prune()

            system.before("open", collect, path=victim.removeprefix("sha256:"))
            with pytest.raises(ImageNotFound, match="app:1"):
                ask(open_store(root), "app:1")


def test_a_name_that_moves_while_its_image_is_read_is_read_again(root: Path) -> None:
    put(root, build_index([AMD64]), "app:1")
    put(root, ARM64, "other:1")
    with replaced_os() as system:

        def move() -> None:
            open_store(root).tag("other:1", "app:1")
            open_store(root).prune()

        system.before("open", move, path=AMD64.digest.removeprefix("sha256:"))
        found = open_store(root).inspect("app:1")
    assert str(found.image.digest) == ARM64.digest
    agrees(found.manifests[0], ARM64)


# ---- history


def steps(text: str) -> list[Document]:
    """Return a history, from a letter for each step: ``L`` for one that made a layer, ``e`` for an empty one."""
    return [
        {"created_by": f"step {number}", **({"empty_layer": True} if letter == "e" else {})}
        for number, letter in enumerate(text)
    ]


@pytest.mark.parametrize("text", ["LLL", "eLLL", "LeeLLe", "eLeLeLe", "LLLeee"])
def test_each_step_of_a_history_has_the_layer_that_it_made(root: Path, text: str) -> None:
    image = build_image(LAYERS, config={"history": steps(text)})
    found = history_of(root, image)
    assert [step.created_by for step in found] == [f"step {number}" for number in range(len(text))]
    assert [step.empty_layer for step in found] == [letter == "e" for letter in text]
    assert [step.layer is None for step in found] == [letter == "e" for letter in text]
    assert [str(step.layer.digest) for step in found if step.layer is not None] == image.layer_digests


@pytest.mark.parametrize("text", ["", "LL", "LLLL", "e", "eLe", "LLeLL"])
def test_a_history_of_another_number_of_layers_is_given_to_none_and_no_layer_is_left_out(root: Path, text: str) -> None:
    image = build_image(LAYERS, config={"history": steps(text)})
    found = history_of(root, image)
    said, rest = found[: len(text)], found[len(text) :]
    assert [step.created_by for step in said] == [f"step {number}" for number in range(len(text))]
    assert all(step.layer is None for step in said)
    assert [str(step.layer.digest) for step in rest if step.layer is not None] == image.layer_digests
    assert {(step.created_by, step.created, step.empty_layer) for step in rest} == {(None, None, False)}


def test_the_words_of_a_history_stand_as_they_are(root: Path) -> None:
    step = {"created": "yesterday", "created_by": "RUN \x1b[2J\n#", "author": "Ä", "comment": ""}
    (found,) = history_of(root, build_image([LAYERS[0]], config={"history": [step]}))
    assert (found.created, found.created_by, found.author, found.comment) == tuple(step.values())


@pytest.mark.parametrize("attestations", [False, True])
@pytest.mark.parametrize("nested", [0, 2])
def test_the_only_platform_of_an_index_needs_no_asking_for(root: Path, attestations: bool, nested: int) -> None:
    index = build_index([ARM64], attestations=attestations, nested=nested)
    assert [str(step.layer.digest) for step in history_of(root, index) if step.layer] == ARM64.layer_digests


def test_an_index_that_names_its_only_manifest_twice_has_one_platform_all_the_same(root: Path) -> None:
    entry = {**ARM64.root, "platform": ARM64.platform}
    assert history_of(root, index_over([ARM64], [entry, entry])) == history_of(root, build_index([ARM64]))


@pytest.mark.parametrize("others", [*combinations([ARM64, ARM], 1), (ARM64, ARM)])
def test_of_several_platforms_linux_amd64_is_meant_as_by_a_pull(root: Path, others: tuple[BuiltImage, ...]) -> None:
    found = history_of(root, build_index([*others, AMD64], attestations=True))
    assert [str(step.layer.digest) for step in found if step.layer] == AMD64.layer_digests


def test_of_several_platforms_without_linux_amd64_none_is_chosen(root: Path) -> None:
    with pytest.raises(PlatformNotFound) as caught:
        history_of(root, build_index([ARM64, ARM], attestations=True))
    assert (caught.value.name, caught.value.wanted) == ("app:1", "linux/amd64")
    assert caught.value.available == ("linux/arm64", "linux/arm/v7")


def test_what_is_told_can_be_compared_and_hashed(root: Path) -> None:
    found: Any = inspected(root, build_index([AMD64, ARM64], attestations=True))
    again = open_store(root).inspect("app:1")
    assert found == again
    assert hash(found) == hash(again)
    assert hash(found.manifests[0].config) == hash(again.manifests[0].config)
