"""Images of several platforms, pulled and imported: what is fetched, what is kept, and what is said of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    LINUX_AMD64,
    ContentMismatch,
    Event,
    InvalidArgument,
    Platform,
    PlatformNotFound,
    render_line,
)
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.invariants import check_invariants, read_index, read_names, stored
from tests.support.peers import docker_registry, push_image, run_skopeo
from tests.support.registries import quick_client
from tests.support.scripted_registry import Answer, ScriptedRegistry, blob_target, manifest_target, serve_image
from tests.support.sources import MovingImages, memory_of, root_of
from tests.support.stores import open_store

ARM64 = Platform.parse("linux/arm64")
S390X = Platform.parse("linux/s390x")
BUILT = {name: build_image(platform=name) for name in ("linux/amd64", "linux/arm64/v8", "linux/s390x")}
INDEX = build_index(list(BUILT.values()), attestations=True)
NAME = "app:1"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store, which keeps every rule whatever a test has done."""
    yield tmp_path / "store"
    check_invariants(tmp_path / "store")


def serve(registry: ScriptedRegistry, image: BuiltImage = INDEX) -> str:
    """Serve an image, each document and blob once, and return its reference."""
    serve_image(registry, "team/app", "1", image, at_most=1)
    return registry.reference("team/app", "1")


def graph_of(*names: str) -> set[str]:
    return {digest for name in names for digest in BUILT[name].blobs}


def test_two_platforms_are_pulled_as_an_index_of_two_and_nothing_of_the_others_is_fetched(root: Path) -> None:
    store = open_store(root)
    events: list[Event] = []
    with ScriptedRegistry() as registry:
        reference = serve(registry)
        image = store.pull(
            reference, name=NAME, platform=[ARM64, LINUX_AMD64], client=quick_client(), on_event=events.append
        )
        asked = {request.target.rpartition("/")[2] for request in registry.requests}
    kept = graph_of("linux/amd64", "linux/arm64/v8")
    assert asked == {"1", *kept}
    assert stored(root) == {*kept, str(image.digest)}
    assert image.platform is None
    assert [str(each) for each in image.platforms] == ["linux/amd64", "linux/arm64/v8"]
    assert read_names(root) == {NAME: str(image.digest)}
    lines = [render_line(event) for event in events]
    new, old = image.digest.hex[:12], INDEX.digest[7:19]
    assert lines[:5] == [
        f"[pull] fetching {NAME} manifest...",
        f"[pull] {NAME} is a manifest list, resolving arm64/linux...",
        f"[pull] {NAME} is a manifest list, resolving amd64/linux...",
        f"[pull] new index {new} of {old} for linux/amd64, linux/arm64/v8",
        f"[pull] manifest: {new}",
    ]
    assert store.verify() == ()


def test_equal_choices_have_one_digest_whoever_makes_them_and_in_whatever_order(root: Path, tmp_path: Path) -> None:
    digests = set()
    for number, platforms in enumerate([(ARM64, S390X), (S390X, ARM64), (ARM64, S390X)]):
        store = open_store(root if number else tmp_path / "other")
        digests.add(store.import_image(memory_of({NAME: INDEX}), NAME, platform=platforms).digest)
    assert len(digests) == 1
    assert digests != {root_of(INDEX).digest}


def test_all_platforms_leave_the_attestations_out_and_none_keeps_them(root: Path) -> None:
    store = open_store(root)
    everything = store.import_image(memory_of({NAME: INDEX}), NAME, as_name="everything:1")
    everyone = store.import_image(memory_of({NAME: INDEX}), NAME, platform="all")
    assert str(everything.digest) == INDEX.digest
    assert everyone.digest != everything.digest
    assert [str(each) for each in everyone.platforms] == list(BUILT)
    store.remove("everything:1")
    store.prune()
    assert stored(root) == {*graph_of(*BUILT), str(everyone.digest)}
    assert store.verify() == ()


def test_all_platforms_of_an_index_that_has_no_more_is_that_index(root: Path) -> None:
    index = build_index(list(BUILT.values()))
    events: list[Event] = []
    image = open_store(root).import_image(memory_of({NAME: index}), NAME, platform="all", on_event=events.append)
    assert str(image.digest) == index.digest
    assert not any("new index" in (render_line(event) or "") for event in events)


def test_one_platform_that_is_missing_keeps_all_of_them_out(root: Path) -> None:
    store = open_store(root)
    with ScriptedRegistry() as registry:
        reference = serve(registry)
        with pytest.raises(PlatformNotFound) as caught:
            store.pull(reference, platform=[LINUX_AMD64, Platform.parse("linux/386")], client=quick_client())
        assert registry.count("GET", manifest_target("team/app", "1")) == len(registry.requests) == 1
    assert caught.value.wanted == "linux/386"
    assert caught.value.available[:3] == tuple(BUILT)
    assert read_names(root) == {}


def test_a_blob_of_any_platform_that_is_wrong_leaves_the_name_as_it_was(root: Path) -> None:
    store = open_store(root)
    before = store.import_image(memory_of({NAME: BUILT["linux/amd64"]}), NAME)
    layer = BUILT["linux/s390x"].layer_digests[1]
    with ScriptedRegistry() as registry:
        reference = serve(registry)
        wrong = bytes(len(INDEX.blobs[layer]))
        registry.allow("GET", blob_target("team/app", layer), Answer(body=wrong))
        with pytest.raises(ContentMismatch):
            store.pull(reference, name=NAME, platform=[LINUX_AMD64, S390X], client=quick_client())
    assert read_names(root) == {NAME: str(before.digest)}


@pytest.mark.parametrize("wanted", [(), [], "any", "linux/amd64", ["linux/amd64"], [LINUX_AMD64, None], 5, {ARM64}])
def test_what_is_no_choice_is_refused_before_anything_is_asked(root: Path, wanted: Any) -> None:
    store = open_store(root)
    source = MovingImages(memory_of({NAME: INDEX}), [root_of(INDEX)])
    with pytest.raises(InvalidArgument, match="invalid platform"):
        store.pull("127.0.0.1:1/app:1", platform=wanted)
    with pytest.raises(InvalidArgument, match="invalid platform"):
        store.import_image(source, NAME, platform=wanted)
    assert source.resolved_times == 0
    assert not root.exists()


def test_an_index_of_several_has_no_root_filesystem(root: Path) -> None:
    store = open_store(root)
    with ScriptedRegistry() as registry:
        reference = serve(registry)
        store.pull(reference, name=NAME, platform="all", client=quick_client(), unpack=True)
    assert store.base_layer(NAME) is None


def test_S27_a_tag_that_moves_meanwhile_gives_no_mixture(root: Path) -> None:
    moved = build_index([build_image(platform=name, salt="moved") for name in BUILT])
    source = MovingImages(memory_of({"a": INDEX, "b": moved}), [root_of(INDEX), root_of(moved)])
    image = open_store(root).import_image(source, NAME, platform=[LINUX_AMD64, ARM64])
    assert source.resolved_times == 1
    assert stored(root) == {*graph_of("linux/amd64", "linux/arm64/v8"), str(image.digest)}


def test_an_index_of_several_goes_from_a_real_registry_to_skopeo_and_into_an_archive(
    root: Path, tmp_path: Path
) -> None:
    store = open_store(root)
    with docker_registry(tmp_path / "registry") as registry:
        push_image(registry, "team/app", "1", INDEX)
        image = store.pull(registry.reference("team/app", "1"), name=NAME, platform=[LINUX_AMD64, S390X])
    assert read_index(root)["manifests"][0]["digest"] == str(image.digest)
    run_skopeo("copy", "--all", f"oci:{root}:{NAME}", f"oci:{tmp_path / 'copied'}:{NAME}")
    assert stored(tmp_path / "copied") == stored(root) == {*graph_of("linux/amd64", "linux/s390x"), str(image.digest)}
    store.save(NAME, tmp_path / "app.tar")
    (loaded,) = open_store(tmp_path / "loaded").load(tmp_path / "app.tar")
    assert (loaded.digest, loaded.platforms) == (image.digest, image.platforms)
