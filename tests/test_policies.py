"""What a program lets into its store: each rule holds, and is asked before the first byte of a config or layer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minibox_store import (
    LINUX_AMD64,
    BlobNotFound,
    Cancellation,
    Cancelled,
    ContentMismatch,
    Descriptor,
    Digest,
    InvalidArgument,
    Limits,
    OfferedImage,
    Platform,
    PlatformNotFound,
    Policy,
    PolicyRefused,
    Reference,
    Store,
)
from minibox_store.offers import check_node, check_reference
from tests.support.images import BuiltImage, build_image, build_index, digest_of
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.layouts import blob_path
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, document_answer, manifest_target, serve_image
from tests.support.sources import ChangingSource, MovingImages, RecordingSource, blobs_of, memory_of, root_of
from tests.support.stores import open_store

ARM64 = Platform.parse("linux/arm64")
AMD64_IMAGE = build_image()
ARM64_IMAGE = build_image(platform="linux/arm64/v8")
INDEX = build_index([AMD64_IMAGE, ARM64_IMAGE], attestations=True)
NAME = "app:1"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store, which keeps every rule whatever a test has done."""
    yield tmp_path / "store"
    check_invariants(tmp_path / "store")


class Source(MovingImages):
    """An image source that remembers what of its one image was opened."""

    def __init__(self, image: BuiltImage) -> None:
        self.recorded = RecordingSource(memory_of({"": image}))
        super().__init__(self.recorded, [root_of(image)])

    @property
    def opened(self) -> set[str]:
        """The digests that were opened."""
        return set(map(str, self.recorded.opened_digests))


class Hook:
    """A hook that remembers what it was shown, every byte of it."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.offers: list[OfferedImage] = []
        self.contents: dict[str, bytes] = {}

    def __call__(self, offer: OfferedImage) -> object:
        self.offers.append(offer)
        self.contents.update({str(each.digest): offer.read(each) for each in offer.documents})
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def import_refused(root: Path, image: BuiltImage, policy: Policy, **options: Any) -> tuple[PolicyRefused, set[str]]:
    """Import an image that a policy refuses; return the error, and what had been opened by then."""
    source = Source(image)
    with pytest.raises(PolicyRefused) as caught:
        open_store(root).import_image(source, NAME, checked_by=policy, **options)
    assert read_names(root) == {}
    assert stored(root) == set()
    return caught.value, source.opened


# Where an image may come from


@pytest.mark.parametrize(
    ("allowed", "reference", "is_allowed"),
    [
        (["quay.io"], "quay.io/team/app:1", True),
        (["quay.io"], "QUAY.IO/team/app:1", True),
        (["Quay.IO"], "quay.io/team/app:1", True),
        (["quay.io"], "quay.io.example.org/team/app:1", False),
        (["quay.io"], "quay.io:443/team/app:1", False),
        (["quay.io"], "example.org/quay.io/app:1", False),
        (["example.org:5000"], "example.org:5000/app:1", True),
        (["example.org:5000"], "example.org:50/app:1", False),
        (["quay.io/team"], "quay.io/team/app:1", True),
        (["quay.io/team"], "quay.io/team:1", True),
        (["quay.io/team"], "quay.io/team/sub/app:1", True),
        (["quay.io/team"], "quay.io/teams/app:1", False),
        (["quay.io/team/app"], "quay.io/team/app-evil:1", False),
        (["quay.io/team/app"], "quay.io/team:1", False),
        (["docker.io/library"], "alpine", True),
        (["docker.io/library"], "index.docker.io/alpine", True),
        (["docker.io/library"], "somebody/alpine", False),
        (["docker.io"], "somebody/alpine", True),
        (["quay.io", "docker.io/library"], "alpine", True),
        (["[::1]:5000"], "[::1]:5000/app:1", True),
        ([], "alpine", False),
        (None, "alpine", True),
    ],
)
def test_a_reference_is_allowed_by_its_whole_host_and_by_whole_segments(
    allowed: list[str] | None, reference: str, is_allowed: bool
) -> None:
    policy, parsed = Policy(allow_registries=allowed), Reference.parse(reference)
    if is_allowed:
        check_reference(policy, parsed, None, NAME)
    else:
        with pytest.raises(PolicyRefused, match="none of the places that are allowed") as caught:
            check_reference(policy, parsed, None, NAME)
        assert caught.value.rule == "allow_registries"


@pytest.mark.parametrize(
    "allowed",
    [
        *("quay.io", ["quay"], ["*"], ["*.example.org"], ["quay.io/"], ["quay.io/Team"], ["https://quay.io"], [""]),
        *(["/a"], ["index.docker.io"], ["quay.io/a/../b"], ["quay.io/team:1"], ["quay.io//a"], ["quay.io", "q y"]),
        *([None], [5]),
    ],
)
def test_a_place_that_no_reference_can_name_is_refused_as_the_policy_is_made(allowed: Any) -> None:
    with pytest.raises(InvalidArgument, match="invalid allow_registries"):
        Policy(allow_registries=allowed)


def test_what_is_allowed_once_does_not_change_with_the_list_that_it_was_given_in() -> None:
    allowed = ["quay.io"]
    policies = [Policy(allow_registries=allowed), Policy(allow_registries=iter(["quay.io"]))]  # type: ignore[arg-type]  # as a caller may
    allowed[:] = ["docker.io"]
    for policy in policies * 2:
        check_reference(policy, Reference.parse("quay.io/team/app:1"), None, NAME)
        with pytest.raises(PolicyRefused):
            check_reference(policy, Reference.parse("alpine"), None, NAME)


@pytest.mark.parametrize("field", ["max_image_bytes", "max_layers"])
@pytest.mark.parametrize("bound", [-1, 1.5, True, "5"])
def test_a_bound_that_is_no_number_is_refused_as_the_policy_is_made(field: str, bound: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"invalid {field}"):
        Policy(**{field: bound})


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Policy(allow_registries=["quay.io"]), "allow_registries"),
        (Policy(require_digest=True), "require_digest"),
    ],
)
def test_what_a_reference_alone_gives_away_is_refused_before_anything_is_sent(
    root: Path, policy: Policy, rule: str
) -> None:
    with ScriptedRegistry() as registry:  # which fails over every request
        reference = registry.reference("team/app", "1")
        with pytest.raises(PolicyRefused) as caught:
            open_store(root).pull(reference, checked_by=policy, client=quick_client())
        assert not registry.requests
    assert (caught.value.name, caught.value.rule) == (reference, rule)
    assert not root.exists()


def test_a_reference_with_a_digest_is_pulled_where_one_is_required(root: Path) -> None:
    hook = Hook()
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", INDEX)
        policy = Policy(allow_registries=[registry.host], require_digest=True, verify=hook)
        reference = registry.reference("team/app", "1", digest=INDEX.digest)
        image = open_store(root).pull(reference, name=NAME, checked_by=policy, client=quick_client())
    assert str(image.digest) == AMD64_IMAGE.digest
    (offer,) = hook.offers
    assert (offer.reference, str(offer.resolved.digest)) == (Reference.parse(reference), INDEX.digest)


@pytest.mark.parametrize(
    ("name", "is_let_in"),
    [
        (f"app@{AMD64_IMAGE.digest}", True),
        (f"app:1@{AMD64_IMAGE.digest}", True),
        (f"app@{ARM64_IMAGE.digest}", False),
        ("app:1", False),
        ("odd!name", False),
    ],
)
def test_an_import_by_digest_is_of_what_has_that_digest(root: Path, name: str, is_let_in: bool) -> None:
    store = open_store(root)
    source = memory_of({name: AMD64_IMAGE})
    if is_let_in:
        store.import_image(source, name, as_name=NAME, checked_by=Policy(require_digest=True))
        return
    with pytest.raises(PolicyRefused) as caught:
        store.import_image(source, name, as_name=NAME, checked_by=Policy(require_digest=True))
    assert caught.value.rule == "require_digest"
    assert read_names(root) == {}


def test_nobody_can_tell_from_which_registry_an_import_is(root: Path) -> None:
    error, opened = import_refused(root, AMD64_IMAGE, Policy(allow_registries=["docker.io"]))
    assert error.rule == "allow_registries"
    assert opened == set()


# How large it may be


def graph_bytes(*images: BuiltImage) -> int:
    return sum(map(len, blobs_of(*images).values()))


@pytest.mark.parametrize("image", [AMD64_IMAGE, INDEX], ids=["a manifest", "an index"])
@pytest.mark.parametrize("wanted", [None, LINUX_AMD64, (LINUX_AMD64,)], ids=["all of it", "one", "an index of one"])
def test_an_image_has_as_many_bytes_as_all_its_blobs_each_once_and_no_layer_or_config_is_read_for_that(
    root: Path, image: BuiltImage, wanted: Any
) -> None:
    kept = open_store(root / "kept").import_image(memory_of({NAME: image}), NAME, platform=wanted)
    size_bytes = sum(blob_path(root / "kept", digest).stat().st_size for digest in stored(root / "kept"))
    let_in = open_store(root / "let in").import_image(
        memory_of({NAME: image}), NAME, platform=wanted, checked_by=Policy(max_image_bytes=size_bytes)
    )
    assert let_in.digest == kept.digest
    error, opened = import_refused(root, image, Policy(max_image_bytes=size_bytes - 1), platform=wanted)
    assert error.rule == "max_image_bytes"
    assert opened <= set(image.document_digests)


def test_S26_sizes_that_no_image_has_are_added_up_and_refused(root: Path) -> None:
    layers = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(b"%d" % number)}
        for number in range(4)
    ]
    document = AMD64_IMAGE.document() | {"layers": [{**layer, "size": 2**53 - 1} for layer in layers]}
    memory = memory_of({})
    memory.names[NAME] = memory.add_blob(json.dumps(document).encode(), AMD64_IMAGE.media_type)
    with pytest.raises(PolicyRefused, match="it is larger than 9007199254740993 bytes"):
        open_store(root).import_image(memory, NAME, checked_by=Policy(max_image_bytes=2**53 + 1))


def test_a_manifest_has_at_most_so_many_layers_whichever_of_an_index_it_is(root: Path) -> None:
    many = build_image([{"a": b"%d" % number} for number in range(3)], platform="linux/s390x")
    index = build_index([AMD64_IMAGE, many])
    store = open_store(root / "other")
    assert store.import_image(memory_of({NAME: index}), NAME, platform=LINUX_AMD64, checked_by=Policy(max_layers=2))
    assert store.import_image(memory_of({NAME: index}), NAME, checked_by=Policy(max_layers=3))
    error, opened = import_refused(root, index, Policy(max_layers=2))
    assert str(error) == (f"image 'app:1' is refused by max_layers: {many.digest} has 3 layers, and 2 are allowed")
    assert opened <= set(index.document_digests)


# The program's own hook


@pytest.mark.parametrize("wanted", [None, LINUX_AMD64, (LINUX_AMD64, ARM64), "all"])
def test_S27_the_hook_is_shown_the_exact_bytes_of_each_document_that_is_stored_and_of_no_other(
    root: Path, wanted: Any
) -> None:
    hook = Hook()
    image = open_store(root).import_image(
        memory_of({NAME: INDEX}), NAME, platform=wanted, checked_by=Policy(verify=hook)
    )
    (offer,) = hook.offers
    assert (offer.name, offer.reference) == (NAME, None)
    assert (offer.root.digest, offer.documents[-1], offer.resolved) == (image.digest, offer.root, root_of(INDEX))
    assert offer.content == blob_path(root, str(image.digest)).read_bytes()
    assert offer.read(offer.resolved) == INDEX.blobs[INDEX.digest]
    kept = stored(root)
    assert set(hook.contents) == kept & {*INDEX.document_digests, str(image.digest)}
    assert hook.contents == {digest: blob_path(root, digest).read_bytes() for digest in hook.contents}


def test_S27_a_tag_that_moves_while_the_hook_looks_changes_nothing_of_what_is_stored(root: Path) -> None:
    moved = build_image(salt="moved")
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", None, AMD64_IMAGE)
        registry.expect("GET", manifest_target("team/app", "1"), document_answer(AMD64_IMAGE))

        def verify(offer: OfferedImage) -> None:
            assert digest_of(offer.content) == AMD64_IMAGE.digest
            serve_image(registry, "team/app", "1", moved)

        reference = registry.reference("team/app", "1")
        policy = Policy(verify=verify)
        image = open_store(root).pull(reference, name=NAME, checked_by=policy, client=quick_client())
    assert str(image.digest) == AMD64_IMAGE.digest
    assert stored(root) == set(AMD64_IMAGE.blobs)


def test_S27_a_source_that_changes_its_documents_once_they_were_verified_is_not_asked_again(root: Path) -> None:
    hook = Hook()
    source = MovingImages(ChangingSource(memory_of({"": INDEX})), [root_of(INDEX)])
    open_store(root).import_image(source, NAME, checked_by=Policy(verify=hook))
    assert stored(root) == set(INDEX.blobs)
    assert len(hook.contents) == len(INDEX.document_digests)


def test_S27_documents_that_are_too_many_to_be_remembered_are_the_same_bytes_all_the_same(tmp_path: Path) -> None:
    # The bytes that a hook is shown, and those that are stored, are then fetched twice: by one digest, verified twice.
    limits = Limits(document_bytes=3000)
    index = build_index([build_image(platform=f"linux/a{n}", annotations={"a": "x" * 1500}) for n in range(12)])
    source = MovingImages(ChangingSource(memory_of({"": index})), [root_of(index)])
    hook = Hook()
    store = Store(tmp_path / "store", durability="none", limits=limits)
    with pytest.raises(ContentMismatch):
        store.import_image(source, NAME, checked_by=Policy(verify=hook))
    assert read_names(tmp_path / "store") == {}
    store.import_image(memory_of({NAME: index}), NAME, checked_by=Policy(verify=hook))
    assert hook.contents == {digest: index.blobs[digest] for digest in index.document_digests}


class SignatureError(Exception):
    """What a program's own code raises."""


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (SignatureError("no signature of ours\n[pull] Done"), r"no signature of ours\x0a[pull] Done"),
        (SignatureError(), "SignatureError"),
        (KeyError("key"), "'key'"),
        (False, "it was not verified"),
        (0, "it was not verified"),
        ("", "it was not verified"),
        ("no", "it was not verified"),
    ],
)
def test_whatever_the_hook_raises_or_returns_but_none_and_true_refuses_the_image_before_a_config_or_layer_is_read(
    root: Path, answer: object, problem: str
) -> None:
    for image in (AMD64_IMAGE, INDEX):
        error, opened = import_refused(root, image, Policy(verify=Hook(answer)), platform=LINUX_AMD64)
        assert str(error) == f"image 'app:1' is refused by verify: {problem}"
        assert error.__cause__ is (answer if isinstance(answer, Exception) else None)
        assert opened <= set(image.document_digests)


@pytest.mark.parametrize("answer", [None, True])
def test_a_hook_that_returns_none_or_true_lets_the_image_in(root: Path, answer: object) -> None:
    open_store(root).import_image(memory_of({NAME: AMD64_IMAGE}), NAME, checked_by=Policy(verify=Hook(answer)))
    assert read_names(root) == {NAME: AMD64_IMAGE.digest}


def test_a_hook_that_answers_only_when_it_is_awaited_lets_nothing_in(root: Path) -> None:
    async def verify(offer: object) -> bool:
        return True

    error, _ = import_refused(root, AMD64_IMAGE, Policy(verify=verify))
    assert error.rule == "verify"


def test_the_hook_is_asked_last_and_not_at_all_for_what_is_refused_anyway(root: Path) -> None:
    hook = Hook()
    for policy in (Policy(max_layers=1, verify=hook), Policy(max_image_bytes=10, verify=hook)):
        import_refused(root, INDEX, policy)
    with pytest.raises(PlatformNotFound):
        open_store(root).import_image(
            Source(INDEX), NAME, platform=Platform.parse("linux/386"), checked_by=Policy(verify=hook)
        )
    assert hook.offers == []


def test_the_hook_gets_no_config_and_no_layer(root: Path) -> None:
    asked: list[str] = []

    def verify(offer: OfferedImage) -> None:
        for digest in (AMD64_IMAGE.config_digest, *AMD64_IMAGE.layer_digests, ARM64_IMAGE.digest):
            content = INDEX.blobs[digest]
            descriptor = Descriptor(
                media_type=INDEX.media_types[digest], digest=Digest.parse(digest), size_bytes=len(content)
            )
            with pytest.raises(BlobNotFound, match=digest):
                offer.read(descriptor)
            asked.append(digest)

    open_store(root).import_image(
        memory_of({NAME: INDEX}), NAME, platform=LINUX_AMD64, checked_by=Policy(verify=verify)
    )
    assert len(asked) == 4


def cancelling(cancellation: Cancellation, error: Exception | None) -> Callable[[OfferedImage], None]:
    """Return a hook that cancels what it is asked about."""

    def verify(offer: OfferedImage) -> None:
        cancellation.cancel()
        if error is not None:
            raise error

    return verify


@pytest.mark.parametrize("error", [None, Cancelled(), SignatureError("too late")])
def test_a_pull_that_is_cancelled_while_the_hook_looks_is_cancelled(root: Path, error: Exception | None) -> None:
    cancellation = Cancellation()
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", AMD64_IMAGE)
        with pytest.raises(Cancelled):
            open_store(root).pull(
                registry.reference("team/app", "1"),
                checked_by=Policy(verify=cancelling(cancellation, error)),
                client=quick_client(),
                cancellation=cancellation,
            )
    assert read_names(root) == {}


def test_a_hook_may_cancel_an_import_itself(root: Path) -> None:
    with pytest.raises(Cancelled):
        open_store(root).import_image(
            memory_of({NAME: AMD64_IMAGE}), NAME, checked_by=Policy(verify=Hook(Cancelled("asking for a signature")))
        )
    assert read_names(root) == {}


def test_a_pull_that_is_refused_keeps_the_name_and_has_asked_for_documents_alone(root: Path) -> None:
    store = open_store(root)
    before = store.import_image(memory_of({NAME: ARM64_IMAGE}), NAME)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", INDEX, at_most=1)
        with pytest.raises(PolicyRefused):
            store.pull(
                registry.reference("team/app", "1"),
                name=NAME,
                checked_by=Policy(verify=Hook(False)),
                client=quick_client(),
            )
        targets = {request.target for request in registry.requests}
    assert targets == {manifest_target("team/app", "1"), manifest_target("team/app", AMD64_IMAGE.digest)}
    assert read_names(root) == {NAME: str(before.digest)}


# Archives


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Policy(allow_registries=["docker.io"]), "allow_registries"),
        (Policy(require_digest=True), "require_digest"),
        (Policy(max_layers=1), "max_layers"),
        (Policy(max_image_bytes=10), "max_image_bytes"),
        (Policy(verify=Hook(SignatureError("no signature"))), "verify"),
    ],
)
def test_an_archive_that_is_refused_leaves_nothing_behind(root: Path, policy: Policy, rule: str) -> None:
    open_store(root / "source").import_image(memory_of({NAME: INDEX}), NAME)
    open_store(root / "source").save(NAME, root / "app.tar")
    with pytest.raises(PolicyRefused) as caught:
        open_store(root / "loaded").load(root / "app.tar", checked_by=policy)
    assert caught.value.rule == rule
    assert read_names(root / "loaded") == {}
    assert stored(root / "loaded") == set()
    check_invariants(root / "loaded")


def test_S27_an_archive_is_let_in_by_the_bytes_that_are_stored(root: Path) -> None:
    hook = Hook()
    name = f"app@{INDEX.digest}"
    open_store(root / "source").import_image(memory_of({name: INDEX}), name)
    open_store(root / "source").save(name, root / "app.tar")
    policy = Policy(require_digest=True, max_layers=2, max_image_bytes=INDEX.size_bytes, verify=hook)
    (loaded,) = open_store(root / "loaded").load(root / "app.tar", names=lambda _: NAME, checked_by=policy)
    assert (str(loaded.digest), loaded.name) == (INDEX.digest, NAME)
    assert hook.contents == {digest: INDEX.blobs[digest] for digest in INDEX.document_digests}
    assert hook.offers[0].name == NAME


def test_an_image_of_an_archive_is_walked_once_and_each_of_its_names_is_decided_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def counting(*arguments: Any) -> None:
        counted.append(arguments[-1])
        check_node(*arguments)

    monkeypatch.setattr("minibox_store.offers.check_node", counting)
    names = ["app:1", "app:2", "app:3"]
    source = open_store(root / "source")
    source.import_image(memory_of(dict.fromkeys(names, INDEX)), names[0])
    for name in names[1:]:
        source.tag(names[0], name)
    source.save(names, root / "app.tar", format="oci")
    hook = Hook()
    open_store(root / "loaded").load(root / "app.tar", checked_by=Policy(verify=hook))
    assert counted == ["app:1"] * len(INDEX.blobs)
    assert [offer.name for offer in hook.offers] == names
    assert {offer.documents for offer in hook.offers} == {hook.offers[0].documents}
    with pytest.raises(PolicyRefused) as caught:
        open_store(root / "refused").load(
            root / "app.tar", checked_by=Policy(verify=lambda offer: offer.name != "app:2")
        )
    assert (caught.value.name, read_names(root / "refused")) == ("app:2", {})
