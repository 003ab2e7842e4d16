"""What a plan says of a pull is what the pull then does: manifests, blobs, bytes and requests, each counted."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minibox_store import (
    LINUX_AMD64,
    AuthenticationRefused,
    Cancellation,
    Cancelled,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    ManifestUnknown,
    Mirror,
    Platform,
    PlatformChoice,
    PlatformNotFound,
    Policy,
    PolicyRefused,
    PullPlan,
    RegistryRule,
    StoreDamaged,
    StoreUnavailable,
    render_line,
)
from tests.support.images import BuiltImage, Layer, build_image, build_index, digest_of, encode_document
from tests.support.invariants import check_invariants, stored
from tests.support.layouts import blob_path
from tests.support.peers import docker_registry, push_image
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    manifest_target,
    registry_error,
    serve_image,
)
from tests.support.snapshots import snapshot
from tests.support.sources import image_of, root_document, root_of
from tests.support.stores import blob, open_store, put
from tests.support.waiting import SOON_SECONDS

NAMES = ["linux/amd64", "linux/arm64/v8", "linux/arm/v6"]
BUILT = {name: build_image(platform=name) for name in NAMES}
INDEX = build_index(list(BUILT.values()), attestations=True)
NESTED = build_index(list(BUILT.values()), attestations=True, nested=2)
SINGLE = BUILT["linux/amd64"]
ARTIFACT = build_image(config={"os": "", "architecture": ""})


def unnamed(index: BuiltImage) -> BuiltImage:
    """Return an index whose entries name no platforms, so that the configs have to be read for them."""
    listed = [{key: each[key] for key in each if key != "platform"} for each in index.document()["manifests"]]
    return rewritten(index, listed)


def rewritten(index: BuiltImage, listed: list[dict[str, Any]]) -> BuiltImage:
    """Return an index with other entries."""
    content = encode_document({**index.document(), "manifests": listed})
    root = root_document(content, index.media_type)
    blobs = {**index.without(index.digest).blobs, str(root["digest"]): content}
    return image_of(blobs, root, {**index.media_types, str(root["digest"]): index.media_type})


UNNAMED = unnamed(INDEX)
CHOICES: dict[str, PlatformChoice] = {
    "one": LINUX_AMD64,
    "an older variant": Platform.parse("linux/arm/v7"),
    "two": (Platform.parse("linux/arm64"), LINUX_AMD64),
    "all": "all",
    "everything": None,
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store, which keeps every rule whatever a test has done."""
    yield tmp_path / "store"
    check_invariants(tmp_path / "store")


class Counted:
    """A registry's image, and what was asked for of it."""

    def __init__(self, registry: ScriptedRegistry, image: BuiltImage) -> None:
        self._registry = registry
        self._image = image
        serve_image(registry, "team/app", "1", image, ranges=True)
        self.reference = registry.reference("team/app", "1")

    def requests(self) -> tuple[int, int, int]:
        """Return how many requests have come since the last call, how many for manifests, and what they brought."""
        targets = [(each.target, each.header("Range")) for each in self._registry.requests]
        self._registry.requests.clear()
        size_bytes = 0
        for target, wanted in targets:
            name = target.rpartition("/")[2]
            content = self._image.blobs[self._image.digest if name == "1" else name]
            size_bytes += len(content) - (int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0)
        return len(targets), sum("/manifests/" in target for target, _ in targets), size_bytes


def plan_and_pull(root: Path, image: BuiltImage, platform: PlatformChoice) -> PullPlan:
    """Plan a pull, pull, and see that it has done what was planned; return the plan."""
    store = open_store(root)
    with ScriptedRegistry() as registry:
        counted = Counted(registry, image)
        before, had = snapshot(root), stored(root)
        plan = store.plan_pull(counted.reference, platform=platform, client=quick_client())
        assert snapshot(root) == before
        documents = counted.requests()
        assert documents[1] == plan.manifest_requests
        pulled = store.pull(counted.reference, platform=platform, client=quick_client())
        assert counted.requests() == (plan.requests, plan.manifest_requests, plan.fetch_bytes)
    assert pulled.digest == plan.root.digest
    assert str(plan.resolved.digest) == image.digest
    assert {str(each.descriptor.digest) for each in plan.blobs if each.is_present} <= had
    assert stored(root) - had == {str(each.descriptor.digest) for each in plan.blobs if not each.is_present}
    sizes = {str(each.descriptor.digest): each.descriptor.size_bytes for each in plan.blobs}
    assert sizes == {digest: blob_path(root, digest).stat().st_size for digest in sizes}
    assert plan.size_bytes == sum(sizes.values())
    return plan


CASES = [(image, choice) for image in (INDEX, NESTED, UNNAMED) for choice in CHOICES]
CASES += [(image, choice) for image in (SINGLE, ARTIFACT) for choice in ("one", "all", "everything")]


@pytest.mark.parametrize(("image", "choice"), CASES)
def test_a_pull_does_what_was_planned_and_again_when_all_is_there(root: Path, image: BuiltImage, choice: str) -> None:
    first = plan_and_pull(root, image, CHOICES[choice])
    assert first.present_bytes == 0
    again = plan_and_pull(root, image, CHOICES[choice])
    assert again.present_bytes == again.size_bytes == first.size_bytes
    assert all(each.is_present for each in again.blobs)
    assert again.manifest_requests == first.manifest_requests
    assert (again.root, again.manifests, again.is_new_index) == (first.root, first.manifests, first.is_new_index)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shared=st.lists(st.integers(0, 3), max_size=3),
    own=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=3),
    present=st.sets(st.integers(0, 20)),
    unfinished=st.dictionaries(st.integers(0, 20), st.integers(0, 400), max_size=4),
    choice=st.sampled_from(["all", "one", "everything"]),
    nested=st.integers(0, 1),
)
def test_whatever_is_there_already_the_plan_counts_what_the_pull_then_does(
    tmp_path_factory: pytest.TempPathFactory,
    shared: list[int],
    own: list[list[int]],
    present: set[int],
    unfinished: dict[int, int],
    choice: str,
    nested: int,
) -> None:
    layers = [[plain_layer(number) for number in [*shared, *each]] for each in own]
    images = [build_image(each, platform=name) for each, name in zip(layers, NAMES, strict=False)]
    image = build_index(images, nested=nested)
    root = tmp_path_factory.mktemp("planned") / "store"
    put(root, SINGLE, "something:1")
    digests = sorted(image.blobs)
    for number in sorted(present):
        if number < len(digests):
            folder = blob_path(root, digests[number])
            folder.write_bytes(image.blobs[digests[number]])
    for number, size_bytes in unfinished.items():
        if number < len(digests):
            write_partial(root, digests[number], image.blobs[digests[number]][:size_bytes])
    plan_and_pull(root, image, CHOICES[choice])
    check_invariants(root)


def plain_layer(number: int) -> Layer:
    """Return a layer of a few bytes, the first of none at all; nobody unpacks it."""
    content = bytes([number]) * 100 * number
    return Layer(content=content, media_type="application/vnd.oci.image.layer.v1.tar", diff_id=digest_of(content))


def write_partial(root: Path, digest: str, content: bytes) -> None:
    """Leave an unfinished download."""
    folder = root / "ingest" / "partial"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest.replace(":", "-")).write_bytes(content)


def test_an_unfinished_download_is_counted_as_far_as_it_has_come(root: Path) -> None:
    store = open_store(root)
    put(root, BUILT["linux/arm/v6"], "other:1")
    layer = SINGLE.layer_digests[1]
    content = SINGLE.blobs[layer]
    write_partial(root, layer, content[:-7])
    plan = plan_and_pull(root, SINGLE, LINUX_AMD64)
    (planned,) = [each for each in plan.blobs if str(each.descriptor.digest) == layer]
    assert (planned.is_present, planned.present_bytes, planned.fetch_bytes) == (False, len(content) - 7, 7)
    assert store.verify() == ()


def test_an_unfinished_download_of_more_than_there_is_does_not_count(root: Path) -> None:
    put(root, BUILT["linux/arm/v6"], "other:1")
    layer = SINGLE.layer_digests[1]
    write_partial(root, layer, SINGLE.blobs[layer] + b"more")
    plan = plan_and_pull(root, SINGLE, LINUX_AMD64)
    (planned,) = [each for each in plan.blobs if str(each.descriptor.digest) == layer]
    assert (planned.is_present, planned.present_bytes) == (False, 0)


def test_a_document_that_is_a_layer_of_another_image_too_is_asked_for_once(root: Path) -> None:
    arm64 = BUILT["linux/arm64/v8"]
    document = SINGLE.document()
    document["layers"].append({**arm64.root, "mediaType": "application/vnd.oci.image.layer.v1.tar"})
    content = encode_document(document)
    root_of_it = root_document(content, SINGLE.media_type)
    blobs = {**SINGLE.blobs, **arm64.blobs, str(root_of_it["digest"]): content}
    types = {**SINGLE.media_types, **arm64.media_types, str(root_of_it["digest"]): SINGLE.media_type}
    index = build_index([image_of(blobs, root_of_it, types), arm64])
    plan = plan_and_pull(root, index, None)
    assert len({each.descriptor.digest for each in plan.blobs}) == len(plan.blobs)
    assert plan.manifest_requests == 3


@pytest.mark.parametrize("kind", ["a link", "a folder", "another size"])
def test_what_is_no_blob_of_the_size_is_not_present(root: Path, kind: str) -> None:
    put(root, SINGLE, "there:1")
    store = open_store(root)
    path = blob(root, SINGLE.layer_digests[0])
    content = path.read_bytes()
    path.unlink()
    if kind == "a link":
        target = str(root / "elsewhere")
        (root / "elsewhere").write_bytes(content)
        os.symlink("/" * (len(content) - len(target)) + target, path)  # which is as long as the layer
        assert path.lstat().st_size == len(content)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content + b"more")
    with ScriptedRegistry() as registry:
        plan = store.plan_pull(Counted(registry, SINGLE).reference, client=quick_client())
        store.pull(registry.reference("team/app", "1"), name="there:1", client=quick_client())
    assert [each.is_present for each in plan.blobs] == [True, False, True, True]
    assert plan.fetch_bytes == len(content) + len(SINGLE.blobs[SINGLE.digest]) + len(SINGLE.blobs[SINGLE.config_digest])


def test_a_plan_makes_no_store_and_needs_no_right_to_write(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        plan = open_store(tmp_path / "none").plan_pull(Counted(registry, INDEX).reference, client=quick_client())
    assert plan.present_bytes == 0
    assert list(tmp_path.iterdir()) == []


# Which manifests, and why


def reasons(image: BuiltImage, platform: PlatformChoice, tmp_path: Path) -> list[tuple[str, str]]:
    """Return of each manifest of a plan the platform, and why it was chosen."""
    with ScriptedRegistry() as registry:
        reference = Counted(registry, image).reference
        plan = open_store(tmp_path / "none").plan_pull(reference, platform=platform, client=quick_client())
    return [(str(each.platform), each.reason) for each in plan.manifests]


def parsed(*texts: str) -> tuple[Platform, ...]:
    return tuple(map(Platform.parse, texts))


@pytest.mark.parametrize(
    ("image", "platform", "expected"),
    [
        (INDEX, LINUX_AMD64, [("linux/amd64", "linux/amd64 is wanted")]),
        (SINGLE, LINUX_AMD64, [("linux/amd64", "linux/amd64 is wanted")]),
        (NESTED, Platform.parse("linux/aarch64"), [("linux/arm64/v8", "linux/aarch64 is wanted")]),
        (INDEX, Platform.parse("linux/arm/v7"), [("linux/arm/v6", "it is the best on offer for linux/arm/v7")]),
        (
            INDEX,
            parsed("linux/arm/v7", "linux/arm/v6", "linux/amd64"),
            [
                ("linux/amd64", "linux/amd64 is wanted"),
                ("linux/arm/v6", "it is the best on offer for linux/arm/v7; linux/arm/v6 is wanted"),
            ],
        ),
        (INDEX, "all", [(name, "all platforms are wanted") for name in NAMES]),
        (SINGLE, None, [("None", "all that there is is wanted")]),
        (ARTIFACT, LINUX_AMD64, [("None", "nothing says what it is for, and nothing else is there")]),
    ],
)
def test_a_plan_says_which_manifests_and_why(
    tmp_path: Path, image: BuiltImage, platform: PlatformChoice, expected: list[tuple[str, str]]
) -> None:
    assert reasons(image, platform, tmp_path) == expected


def test_of_everything_the_attestations_are_told_too(tmp_path: Path) -> None:
    assert [platform for platform, _ in reasons(INDEX, None, tmp_path)] == [*NAMES, *["unknown/unknown"] * 3]


def test_a_plan_can_be_read(root: Path) -> None:
    put(root, BUILT["linux/arm/v6"], "other:1")
    write_partial(root, SINGLE.layer_digests[1], SINGLE.blobs[SINGLE.layer_digests[1]][:10])
    with ScriptedRegistry() as registry:
        reference = Counted(registry, INDEX).reference
        plan = open_store(root).plan_pull(
            reference, platform=parsed("linux/arm/v7", "linux/amd64"), client=quick_client()
        )
    lines = str(plan).splitlines()
    assert lines[:5] == [
        f"{reference} for linux/amd64,linux/arm/v7",
        f"  resolved: {INDEX.digest}",
        f"  stored: {plan.root.digest}, a new index of 2 of its manifests",
        f"  {SINGLE.digest}: linux/amd64, linux/amd64 is wanted",
        f"  {BUILT['linux/arm/v6'].digest}: linux/arm/v6, it is the best on offer for linux/arm/v7",
    ]
    assert f"  layer {SINGLE.layer_digests[0]}: {len(SINGLE.blobs[SINGLE.layer_digests[0]])} bytes, missing" in lines
    assert any(line.endswith("bytes, unfinished with 10 bytes") for line in lines)
    assert f"  manifest {BUILT['linux/arm/v6'].digest}: {plan.blobs[-2].descriptor.size_bytes} bytes, present" in lines
    assert lines[-1].endswith(f" KiB in {plan.requests} requests, 3 of them for manifests")
    assert len(lines) == 5 + len(plan.blobs) + 2


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (2**53 - 1, "8192.0 TiB")],
)
def test_bytes_are_told_in_a_unit_that_can_be_read(size_bytes: int, text: str) -> None:
    root = root_of(SINGLE)
    plan = PullPlan(
        reference="a",
        platforms="",
        resolved=root,
        root=root,
        is_new_index=False,
        manifests=(),
        blobs=(),
        fetch_bytes=size_bytes,
        requests=1,
        manifest_requests=1,
    )
    assert str(plan).splitlines()[-1] == f"  to fetch: {text} in 1 requests, 1 of them for manifests"


def test_text_from_a_registry_neither_breaks_a_line_of_a_plan_nor_makes_it_long(tmp_path: Path) -> None:
    image = build_image(platform="linux/amd64")
    listed = build_index([image]).document()["manifests"]
    listed[0]["platform"] = {"os": "linux", "architecture": "amd64\n[pull] Done", "variant": "\x1b[2J" * 1000}
    index = rewritten(build_index([image]), listed)
    with ScriptedRegistry() as registry:
        reference = Counted(registry, index).reference
        plan = open_store(tmp_path / "none").plan_pull(reference, platform="all", client=quick_client())
    lines = str(plan).split("\n")
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert len(lines) == 2 + 1 + len(plan.blobs) + 2


# Failing, as a pull does


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"platform": Platform.parse("linux/386")}, PlatformNotFound),
        ({"checked_by": Policy(max_layers=1)}, PolicyRefused),
        ({"checked_by": Policy(verify=lambda offer: False)}, PolicyRefused),
    ],
)
def test_a_plan_fails_as_the_pull_would_and_has_fetched_documents_alone(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with ScriptedRegistry() as registry:
        reference = Counted(registry, INDEX).reference
        for verb in (open_store(tmp_path / "none").plan_pull, open_store(tmp_path / "none").pull):
            with pytest.raises(error):
                verb(reference, client=quick_client(), **options)
        assert all("/manifests/" in request.target for request in registry.requests)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "options", "error"),
    [
        ("Not A Reference", {}, InvalidReference),
        ("127.0.0.1:1/app:1", {"platform": "amd64"}, InvalidArgument),
        ("127.0.0.1:1/app:1", {"checked_by": Policy(allow_registries=["quay.io"])}, PolicyRefused),
        ("127.0.0.1:1/app:1", {"checked_by": Policy(require_digest=True)}, PolicyRefused),
    ],
)
def test_a_plan_of_what_may_not_be_asked_for_asks_nobody(
    tmp_path: Path, reference: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        open_store(tmp_path / "none").plan_pull(reference, **options)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (registry_error(404, "MANIFEST_UNKNOWN", "no such tag"), ManifestUnknown),
        (registry_error(403, "DENIED", "no"), AuthenticationRefused),
        (Answer(headers={"Content-Type": SINGLE.media_type}, body=b"{"), InvalidDocument),
    ],
)
def test_a_registry_that_fails_ends_the_plan_with_the_error_of_a_pull(
    tmp_path: Path, answer: Answer, error: type[Exception]
) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", manifest_target("team/app", "1"), answer)
        with pytest.raises(error):
            open_store(tmp_path / "none").plan_pull(registry.reference("team/app", "1"), client=quick_client())


def test_a_plan_asks_the_next_place_for_a_document_that_a_mirror_has_wrong_as_the_pull_does(root: Path) -> None:
    with ScriptedRegistry() as mirror, ScriptedRegistry() as home:
        for registry in (mirror, home):
            serve_image(registry, "team/app", "1", INDEX)
        content = SINGLE.blobs[SINGLE.digest]
        wrong = Answer(headers={"Content-Type": SINGLE.media_type}, body=content[::-1])
        mirror.allow("GET", manifest_target("team/app", SINGLE.digest), wrong)
        rule = RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host)])
        reference, store = home.reference("team/app", "1"), open_store(root)
        # A policy has to see the manifest before anything is copied, and the plan all of it.
        for policy in (None, Policy(max_layers=9)):
            plan = store.plan_pull(reference, checked_by=policy, client=quick_client(registries=[rule]))
            pulled = store.pull(reference, checked_by=policy, client=quick_client(registries=[rule]))
            assert plan.root.digest == pulled.digest
            assert str(plan.root.digest) == SINGLE.digest


def test_a_plan_that_waits_for_a_registry_is_cancelled_within_a_second(tmp_path: Path) -> None:
    held = threading.Event()
    target = manifest_target("team/app", SINGLE.digest)
    with ScriptedRegistry() as registry:
        cancellation = Cancellation()
        reference = Counted(registry, INDEX).reference
        registry.allow("GET", target, Answer(body=SINGLE.blobs[SINGLE.digest], hold=held))
        cancelled_at: list[float] = []

        def cancel() -> None:
            registry.wait_for("GET", target)
            cancelled_at.append(time.monotonic())
            cancellation.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            with pytest.raises(Cancelled):
                open_store(tmp_path / "none").plan_pull(
                    reference, client=quick_client(silence_seconds=60.0), cancellation=cancellation
                )
        finally:
            held.set()
            thread.join(10.0)
        assert time.monotonic() - cancelled_at[0] < SOON_SECONDS


@pytest.mark.parametrize("harm", ["index.json", "blobs"])
def test_a_store_that_cannot_be_read_says_so(root: Path, harm: str) -> None:
    put(root, SINGLE, "there:1")
    path = root / "index.json" if harm == "index.json" else root / "blobs" / "sha256"
    path.rename(root / "moved")
    path.write_bytes(b"{")
    try:
        with (
            ScriptedRegistry() as registry,
            pytest.raises(StoreDamaged if harm == "index.json" else StoreUnavailable, match=str(path)),
        ):
            open_store(root).plan_pull(Counted(registry, SINGLE).reference, client=quick_client())
    finally:
        path.unlink()
        (root / "moved").rename(path)


def test_how_it_was_chosen_is_told_as_by_a_pull(tmp_path: Path) -> None:
    lines: list[str | None] = []
    with ScriptedRegistry() as registry:
        reference = Counted(registry, INDEX).reference
        plan = open_store(tmp_path / "none").plan_pull(
            reference, client=quick_client(), on_event=lambda event: lines.append(render_line(event))
        )
    assert lines == [
        f"[pull] fetching {reference} manifest...",
        f"[pull] {reference} is a manifest list, resolving amd64/linux...",
        f"[pull] manifest: {plan.root.digest.hex[:12]}",
    ]


def test_a_real_registry_is_asked_for_as_many_manifests_as_were_planned(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    with docker_registry(tmp_path / "registry") as registry:
        push_image(registry, "team/app", "1", INDEX)
        reference = registry.reference("team/app", "1")
        plan = store.plan_pull(reference, platform="all")
        assert not root.exists()
        pulled = store.pull(f"{reference}@{plan.resolved.digest}", name="app:1", platform="all")
    assert pulled.digest == plan.root.digest
    assert plan.manifest_requests == 1 + len(NAMES)
    assert {str(each.descriptor.digest) for each in plan.blobs} == stored(root)
