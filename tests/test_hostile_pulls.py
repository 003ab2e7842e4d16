"""Documents by which a registry would lead a pull astray: refused in one sentence, and nothing has come of them.

Whatever is asked for, one platform, several or all, and by the plan as by the pull.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    LINUX_AMD64,
    ContentMismatch,
    InvalidDocument,
    Limits,
    Platform,
    PlatformChoice,
    Store,
    StoreError,
)
from minibox_store.limits import DEFAULT_LIMITS
from tests.support.compression import grows_by_less_than
from tests.support.images import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    digest_of,
    encode_document,
)
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.registries import quick_client
from tests.support.scripted_registry import Answer, ScriptedRegistry, blob_target, manifest_target, serve_image
from tests.support.snapshots import snapshot
from tests.support.sources import image_of, root_document
from tests.support.stores import open_store, put

AMD64 = build_image()
ARM64 = build_image(platform="linux/arm64/v8")
KEPT = build_image(salt="kept")
NAME = "app:1"
HEX = digest_of(b"x").partition(":")[2]
CHOICES: dict[str, PlatformChoice] = {
    "one": LINUX_AMD64,
    "two": (LINUX_AMD64, Platform.parse("linux/arm64")),
    "all": "all",
    "everything": None,
}

Harm = Callable[[dict[str, Any]], None]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A store with an image, which keeps every rule, and that image, whatever a test has done."""
    folder = tmp_path / "store"
    put(folder, KEPT, NAME)
    yield folder
    check_invariants(folder)
    assert read_names(folder) == {NAME: KEPT.digest}


def harmed(place: str, harm: Harm, *, nested: int = 0) -> BuiltImage:
    """Return an index of two images of which the first manifest, or the index itself, has been harmed."""
    manifest = AMD64.document()
    if place != "index":
        harm(manifest)
    content = encode_document(manifest)
    entry = root_document(content, OCI_MANIFEST) | {"platform": AMD64.platform}
    index = build_index([AMD64, ARM64]).document()
    index["manifests"][0] = entry
    if place == "index":
        harm(index)
    blobs = {**AMD64.blobs, **ARM64.blobs, digest_of(content): content}
    types = {**AMD64.media_types, **ARM64.media_types, digest_of(content): OCI_MANIFEST}
    media_type = OCI_INDEX
    for _ in range(nested + 1):
        content = encode_document(index)
        blobs[digest_of(content)], types[digest_of(content)] = content, media_type
        root = root_document(content, media_type)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]}
    return image_of(blobs, root, types)


def alone(image: BuiltImage) -> BuiltImage:
    """Return the manifest of such an index by itself."""
    root = {**image.document()["manifests"][0]}
    return image_of(image.blobs, root, image.media_types)


def refused(root: Path, image: BuiltImage, choice: PlatformChoice, limits: Limits = DEFAULT_LIMITS) -> list[StoreError]:
    """Plan and pull an image that may not come in; return both errors once it is sure that nothing has come of it."""
    store = Store(root, durability="none", settle_seconds=0.0, limits=limits)
    errors = []
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        for verb in (store.plan_pull, store.pull):
            before = snapshot(root)
            with pytest.raises(StoreError) as caught:
                verb(registry.reference("team/app", "1"), platform=choice, client=quick_client())
            errors.append(caught.value)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000
            assert snapshot(root) == before
        targets = {request.target for request in registry.requests}
    assert all(re.fullmatch(r"/v2/team/app/manifests/(1|sha256:[0-9a-f]{64})", target) for target in targets)
    return errors


# S4: what is no digest is nowhere asked for, and becomes no path

NO_DIGESTS = [
    "sha256:../../../../etc/passwd",
    "../../../../etc/passwd",
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX.upper()}",
    f"sha256:{HEX[:-2]}/x",
    f"SHA256:{HEX}",
    f"md5:{HEX[:32]}",
    f"sha256+b64:{HEX}",
    f"sha256:{HEX[:-1]}\0",
    f"sha256:{HEX[:-1]}\n",
    f"sha256:{HEX[:-1]}\u0661",
    f" sha256:{HEX}",
    f"sha256:{HEX}?x=y",
    "",
    None,
    5,
]
PLACES: dict[str, Callable[[dict[str, Any], object], None]] = {
    "config": lambda document, value: document["config"].update(digest=value),
    "layer": lambda document, value: document["layers"][1].update(digest=value),
    "subject": lambda document, value: document.update(subject={**document["config"], "digest": value}),
    "index": lambda document, value: document["manifests"][1].update(digest=value),
    "index's subject": lambda document, value: document.update(subject={**document["manifests"][0], "digest": value}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("choice", CHOICES)
def test_S4_what_is_no_digest_is_refused_wherever_it_stands_before_anything_is_asked_for_by_it(
    root: Path, place: str, choice: str
) -> None:
    for text in NO_DIGESTS:
        image = harmed(place.partition("'")[0], lambda document, text=text: PLACES[place](document, text))  # type: ignore[misc]  # bound at once
        for error in refused(root, image, CHOICES[choice]):
            assert isinstance(error, InvalidDocument), text
            assert error.where.endswith("digest"), text


# S5: a document has one meaning, and the type by which it was named

HARMS: dict[str, tuple[str, Harm]] = {
    "a manifest that is an index too": ("manifest", lambda document: document.update(manifests=[])),
    "an index that is a manifest too": (
        "index",
        lambda document: document.update(AMD64.document() | {"mediaType": OCI_INDEX}),
    ),
    "an index that has layers": ("index", lambda document: document.update(layers=[])),
    "a manifest of Docker's, called one of OCI's": (
        "manifest",
        lambda document: document.update(mediaType=DOCKER_MANIFEST),
    ),
    "a manifest that calls itself an index": ("manifest", lambda document: document.update(mediaType=OCI_INDEX)),
    "an index that calls itself a manifest": ("index", lambda document: document.update(mediaType=OCI_MANIFEST)),
    "a manifest, called an index": ("index", lambda document: document["manifests"][0].update(mediaType=OCI_INDEX)),
    "a manifest of Docker's schema 1": ("manifest", lambda document: document.update(schemaVersion=1)),
    "a manifest with fields of schema 1": ("manifest", lambda document: document.update(fsLayers=[])),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("nested", [0, 1])
def test_S5_a_document_with_two_meanings_is_refused(root: Path, harm: str, choice: str, nested: int) -> None:
    for error in refused(root, harmed(*HARMS[harm], nested=nested), CHOICES[choice]):
        assert isinstance(error, InvalidDocument)


@pytest.mark.parametrize("harm", [harm for harm, (place, _) in HARMS.items() if place == "manifest"])
@pytest.mark.parametrize("choice", ["one", "all", "everything"])
def test_S5_it_is_refused_when_a_tag_stands_for_it_too(root: Path, harm: str, choice: str) -> None:
    for error in refused(root, alone(harmed(*HARMS[harm])), CHOICES[choice]):
        assert isinstance(error, InvalidDocument)


@pytest.mark.parametrize("rest", [b"{}", b',"layers":[]}', b"\0"])
@pytest.mark.parametrize("choice", CHOICES)
def test_S5_what_stands_twice_or_behind_the_end_of_a_manifest_is_refused(root: Path, rest: bytes, choice: str) -> None:
    content = AMD64.blobs[AMD64.digest]
    content = (content[:-1] if rest.startswith(b",") else content) + rest
    index = build_index([AMD64, ARM64]).document()
    index["manifests"][0] |= root_document(content, OCI_MANIFEST)
    encoded = encode_document(index)
    blobs = {**AMD64.blobs, **ARM64.blobs, digest_of(content): content, digest_of(encoded): encoded}
    types = {**AMD64.media_types, **ARM64.media_types, digest_of(content): OCI_MANIFEST, digest_of(encoded): OCI_INDEX}
    for error in refused(root, image_of(blobs, root_document(encoded, OCI_INDEX), types), CHOICES[choice]):
        assert isinstance(error, InvalidDocument)
        assert error.document == digest_of(content)


# S7: bounds, before anything is fetched beyond them


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("place", ["config", "index"])
def test_S7_a_document_or_config_that_says_to_be_larger_than_4_mib_is_not_asked_for(
    root: Path, place: str, choice: str
) -> None:
    def grow(document: dict[str, Any]) -> None:
        (document["config"] if place == "config" else document["manifests"][0]).update(size=(4 << 20) + 1)
        document.get("manifests", [{}])[0].pop("platform", None)

    image = harmed(place, grow)
    if place == "config":
        # Where a platform is to be read from it: of a manifest that a tag stands for.
        if choice in ("everything", "two"):
            return
        image = alone(image)
    for error in refused(root, image, CHOICES[choice]):
        assert isinstance(error, InvalidDocument)
        assert "larger than 4194304 bytes" in str(error)


@pytest.mark.parametrize("choice", CHOICES)
def test_S7_an_image_that_is_nested_too_deep_is_refused(root: Path, choice: str) -> None:
    for error in refused(root, build_index([AMD64, ARM64], nested=8), CHOICES[choice]):
        assert isinstance(error, InvalidDocument)
        assert "nested more than 8 deep" in str(error)


def test_S7_an_image_of_too_many_documents_is_refused_once_so_many_were_asked_for(root: Path) -> None:
    index = build_index([AMD64]).document()
    blobs, types = dict(AMD64.blobs), dict(AMD64.media_types)
    for number in range(16):
        content = encode_document(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"n": str(number)}}
        )
        blobs[digest_of(content)], types[digest_of(content)] = content, OCI_INDEX
        index["manifests"].append(root_document(content, OCI_INDEX))
    content = encode_document(index)
    blobs[digest_of(content)], types[digest_of(content)] = content, OCI_INDEX
    for error in refused(
        root, image_of(blobs, root_document(content, OCI_INDEX), types), LINUX_AMD64, Limits(documents=16)
    ):
        assert isinstance(error, InvalidDocument)
        assert "more than 16 documents" in str(error)


@pytest.mark.parametrize("choice", CHOICES)
def test_S7_a_manifest_of_too_many_layers_is_refused(root: Path, choice: str) -> None:
    image = harmed("manifest", lambda document: document.update(layers=document["layers"][:1] * 513))
    for error in refused(root, image, CHOICES[choice]):
        assert isinstance(error, InvalidDocument)
        assert "more than 512" in str(error)


@pytest.mark.parametrize("framing", ["chunked", "until_close"])
@pytest.mark.parametrize("what", ["index", "manifest", "config"])
@pytest.mark.parametrize("choice", CHOICES)
def test_S7_S26_a_body_without_an_end_is_cut_and_costs_no_memory(
    root: Path, framing: str, what: str, choice: str
) -> None:
    index = build_index([AMD64, ARM64])
    targets = {
        "index": manifest_target("team/app", "1"),
        "manifest": manifest_target("team/app", AMD64.digest),
        "config": blob_target("team/app", AMD64.config_digest),
    }
    kind = {"index": OCI_INDEX, "manifest": OCI_MANIFEST, "config": "application/octet-stream"}[what]
    # One of the few texts that a framing may be.
    endless = Answer(headers={"Content-Type": kind}, body=b"[" * 65536, endless=True, framing=framing)  # type: ignore[arg-type]
    store = open_store(root)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", index)
        listed = registry.allow("GET", targets[what], endless)

        def pull() -> None:
            with pytest.raises((InvalidDocument, ContentMismatch)):
                store.pull(registry.reference("team/app", "1"), platform=CHOICES[choice], client=quick_client())

        assert grows_by_less_than(40 << 20, pull)
        assert sum(request.body_bytes_sent for request in listed.requests) < 48 << 20
    assert stored(root) >= set(KEPT.blobs)
    assert not [path for path in (root / "ingest").rglob("*") if path.is_file() and path.stat().st_size > 4 << 20]


# S26: sizes


@pytest.mark.parametrize("size", [-1, 2**53, 2**64, 10**400, True, 1.0, "5", None, [5]])
@pytest.mark.parametrize("place", ["config", "layer", "index"])
def test_S26_a_size_that_none_can_be_is_refused_before_anything_is_asked_for_by_it(
    root: Path, place: str, size: object
) -> None:
    def harm(document: dict[str, Any]) -> None:
        entry = {"config": "config", "layer": "layers", "index": "manifests"}[place]
        (document[entry] if place == "config" else document[entry][1]).update(size=size)

    for choice in CHOICES.values():
        for error in refused(root, harmed(place, harm), choice):
            assert isinstance(error, InvalidDocument)


@pytest.mark.parametrize("difference", [-1, 1, 1000])
@pytest.mark.parametrize("choice", CHOICES)
def test_S26_a_manifest_of_another_size_than_the_index_says_is_refused(
    root: Path, difference: int, choice: str
) -> None:
    def harm(document: dict[str, Any]) -> None:
        document["manifests"][0]["size"] += difference

    for error in refused(root, harmed("index", harm), CHOICES[choice]):
        assert isinstance(error, ContentMismatch)


@pytest.mark.parametrize("choice", CHOICES)
def test_S26_a_layer_that_says_to_be_larger_than_any_disk_is_weighed_before_a_byte_of_it_comes(
    root: Path, choice: str
) -> None:
    image = harmed("manifest", lambda document: document["layers"][0].update(size=2**53 - 1))
    store = open_store(root)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", image)
        reference = registry.reference("team/app", "1")
        plan = store.plan_pull(reference, platform=CHOICES[choice], client=quick_client())
        assert plan.fetch_bytes > 2**53 - 1
        with pytest.raises(StoreError, match=r"not enough space for .*: 90071992547\d+ bytes are needed"):
            store.pull(reference, platform=CHOICES[choice], client=quick_client())
        assert not any("/blobs/" in request.target for request in registry.requests)
    assert OCI_LAYER_GZIP in image.media_types.values()
