"""A pull that need not bring anything: what it asks the registry, and that the store has what a pull would bring."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import (
    Digest,
    Event,
    Image,
    ImagePresent,
    Platform,
    PlatformChoice,
    Policy,
    PolicyRefused,
    Store,
    render_line,
)
from minibox_store.errors import (
    AuthenticationRefused,
    InvalidArgument,
    ManifestUnknown,
    NothingToDo,
    RateLimited,
    RegistryError,
)
from minibox_store.events import BlobStarted, ImageCopied, NothingToUnpack
from minibox_store.face.arguments import PullPolicy
from tests.support.images import OCI_INDEX, BuiltImage, build_image, build_index
from tests.support.invariants import check_invariants
from tests.support.layouts import read_layout_names
from tests.support.processes import free_port
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    Answer,
    Scripted,
    ScriptedRegistry,
    TokenServer,
    manifest_target,
    pull_scope,
    redirect,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import memory_of
from tests.support.stores import blob, open_layout, open_store, put, rot
from tests.support.trials import DEEP, trial_count

NAME = "team/app:1"
TAG = manifest_target("team/app", "1")
AMD64 = build_image(salt="amd64")
ARM64 = build_image(platform="linux/arm64")
INDEX = build_index([AMD64, ARM64])
MOVED = build_index([build_image(salt="moved"), ARM64])
# Another index, and the same image for amd64 in it.
GROWN = build_index([AMD64, ARM64, build_image(platform="linux/s390x")])
SINGLE = build_image(salt="single")
SOURCE = "dev.minibox.store.source-"


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as registry:
        yield registry


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    check_invariants(tmp_path / "store")


def serve(registry: ScriptedRegistry, image: BuiltImage) -> None:
    """Let a tag stand for an image from now on."""
    serve_image(registry, "team/app", "1", image)


def pull(root: Path, registry: ScriptedRegistry, policy: PullPolicy = "always", **options: Any) -> Image:
    options = {"name": NAME, "client": quick_client(), **options}
    return open_store(root).pull(registry.reference("team/app", "1"), policy=policy, **options)


def asked(registry: ScriptedRegistry, during: Callable[[], object]) -> list[tuple[str, str]]:
    """Return method and name of what was asked of a registry meanwhile: manifests by tag or digest, and blobs."""
    before = len(registry.requests)
    during()
    return [(each.method, each.path.removeprefix("/v2/team/app/")) for each in registry.requests[before:]]


def annotations(root: Path, name: str = NAME) -> dict[str, str]:
    """Return what an entry of index.json says of where it came from."""
    said: Mapping[str, str] = read_layout_names(root)[name]["annotations"]
    return {key.removeprefix(SOURCE): text for key, text in said.items() if key.startswith(SOURCE)}


# What is written down


@pytest.mark.parametrize(
    ("platform", "image", "said"),
    [
        (Platform.parse("linux/x86_64"), AMD64, {"platform": "linux/amd64"}),
        (Platform.parse("linux/arm64/v8"), ARM64, {"platform": "linux/arm64"}),
        (None, INDEX, {}),
    ],
)
def test_an_entry_says_what_it_was_pulled_as(
    platform: Platform | None, image: BuiltImage, said: dict[str, str], root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    assert str(pull(root, registry, platform=platform).digest) == image.digest
    reference = registry.reference("team/app", "1")
    assert annotations(root) == {"reference": reference, "digest": INDEX.digest, **said}


def test_pulling_the_same_again_writes_nothing(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    before = (root / "index.json").stat()
    pull(root, registry)
    after = (root / "index.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_others_wrote_into_the_entry_stays_when_it_is_pulled_as_something_else(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    index = json.loads((root / "index.json").read_bytes())
    index["manifests"][0]["annotations"]["org.example"] = "theirs"
    index["manifests"][0]["x-theirs"] = [1]
    (root / "index.json").write_text(json.dumps(index))
    serve(registry, GROWN)
    pull(root, registry)
    (entry,) = json.loads((root / "index.json").read_bytes())["manifests"]
    assert (entry["x-theirs"], entry["annotations"]["org.example"]) == ([1], "theirs")
    assert annotations(root)["digest"] == GROWN.digest


@pytest.mark.parametrize("key", ["source-reference", "source-digest", "source-platform", "referrer", "anything"])
def test_S6_nobody_outside_says_in_this_projects_words_what_an_image_was_pulled_as(
    key: str, root: Path, registry: ScriptedRegistry
) -> None:
    """Who could say so would have an image kept for ever, whatever its tag stands for."""
    document = INDEX.document()
    for entry in document["manifests"]:
        entry["annotations"] = {f"dev.minibox.store.{key}": "forged", "org.example": "kept"}
    content = json.dumps(document).encode()
    forged = Answer(headers={"Content-Type": OCI_INDEX}, body=content)
    serve(registry, INDEX)
    registry.allow("GET", TAG, forged)
    pull(root, registry)
    assert "forged" not in (root / "index.json").read_text()
    assert read_layout_names(root)[NAME]["annotations"]["org.example"] == "kept"


def test_what_another_store_knows_of_an_image_is_not_brought_along(
    root: Path, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    other = Store(tmp_path / "other", durability="none")
    other.import_image(open_store(root), NAME)
    assert annotations(tmp_path / "other") == {}


def test_a_tag_takes_along_what_its_image_was_pulled_as(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    open_store(root).tag(NAME, "base:current")
    assert annotations(root, "base:current") == annotations(root)
    assert asked(registry, lambda: pull(root, registry, "if-newer", name="base:current")) == [("HEAD", "manifests/1")]


def test_a_name_that_is_given_to_another_image_does_not_keep_what_the_old_one_was_pulled_as(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    put(root, SINGLE, "other:1")
    open_store(root).tag("other:1", NAME)
    assert annotations(root) == {}
    pulled: list[Image] = []
    assert ("GET", "manifests/1") in asked(registry, lambda: pulled.append(pull(root, registry, "if-newer")))
    assert str(pulled[0].digest) == AMD64.digest


def test_an_image_that_is_only_pulled_as_something_else_was_not_lost(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    serve(registry, GROWN)
    pull(root, registry)
    assert annotations(root)["digest"] == GROWN.digest
    assert open_store(root).lost_names() == ()
    with pytest.raises(NothingToDo):
        open_store(root).undo()


# if-newer


@pytest.mark.parametrize("image", [INDEX, SINGLE], ids=["index", "manifest"])
@pytest.mark.parametrize("platform", [Platform.parse("linux/amd64"), None], ids=["chosen", "whole"])
def test_an_unchanged_image_costs_one_head_and_changes_nothing(
    image: BuiltImage, platform: Platform | None, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, image)
    pulled = pull(root, registry, platform=platform)
    content = (root / "index.json").read_bytes()
    events: list[Event] = []
    found: list[Image] = []

    def again() -> None:
        found.append(pull(root, registry, "if-newer", platform=platform, on_event=events.append))

    assert asked(registry, again) == [("HEAD", "manifests/1")]
    assert found == [pulled]
    assert (root / "index.json").read_bytes() == content
    assert [render_line(each) for each in events] == [
        f"[pull] fetching {NAME} manifest...",
        f"[pull] {NAME} is already here",
    ]


def test_a_registry_with_tokens_is_asked_for_one_head_besides(root: Path, registry: ScriptedRegistry) -> None:
    scope, authorization = pull_scope("team/app"), "Bearer token-1"
    with TokenServer() as tokens:
        challenge = tokens.challenge(service="registry", scope=scope)
        tokens.expect_token("token-1", "token-1", service="registry", scope=scope)
        serve_image(registry, "team/app", "1", INDEX, authorization=authorization, challenge=challenge)
        pull(root, registry)
        assert asked(registry, lambda: pull(root, registry, "if-newer")) == [("HEAD", "manifests/1")] * 2
        assert len(tokens.requests) == 2


def test_one_client_asks_for_no_second_token(root: Path, registry: ScriptedRegistry) -> None:
    scope, client = pull_scope("team/app"), quick_client()
    with TokenServer() as tokens:
        challenge = tokens.challenge(service="registry", scope=scope)
        tokens.expect_token("token-1", service="registry", scope=scope)
        serve_image(registry, "team/app", "1", INDEX, authorization="Bearer token-1", challenge=challenge)
        pull(root, registry, client=client)
        assert asked(registry, lambda: pull(root, registry, "if-newer", client=client)) == [("HEAD", "manifests/1")]


@pytest.mark.parametrize("policy", ["if-newer", "if-missing"])
def test_an_image_that_is_not_there_is_pulled_without_a_question(
    policy: PullPolicy, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    asked_for = asked(registry, lambda: pull(root, registry, policy))
    assert [each for each in asked_for if each[0] == "HEAD"] == []
    assert asked_for[0] == ("GET", "manifests/1")


def test_a_tag_that_moved_is_followed(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    serve(registry, MOVED)
    found: list[Image] = []
    asked_for = asked(registry, lambda: found.append(pull(root, registry, "if-newer")))
    assert asked_for[:2] == [("HEAD", "manifests/1"), ("GET", "manifests/1")]
    assert str(found[0].digest) == MOVED.document()["manifests"][0]["digest"]
    assert annotations(root)["digest"] == MOVED.digest
    assert asked(registry, lambda: pull(root, registry, "if-newer")) == [("HEAD", "manifests/1")]


def test_an_index_that_grew_is_fetched_once_for_an_image_that_stayed(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    before = pull(root, registry)
    serve(registry, GROWN)
    assert ("GET", "manifests/1") in asked(registry, lambda: pull(root, registry, "if-newer"))
    assert open_store(root).get(NAME).digest == before.digest
    assert asked(registry, lambda: pull(root, registry, "if-newer")) == [("HEAD", "manifests/1")]


def test_another_platform_is_pulled_though_the_tag_stayed(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    for policy in ("if-newer", "if-missing"):
        for platform, image in (("linux/arm64", ARM64), ("linux/amd64", AMD64)):
            wanted = Platform.parse(platform)
            assert str(pull(root, registry, policy, platform=wanted).digest) == image.digest
        assert str(pull(root, registry, policy, platform=None).digest) == INDEX.digest
        assert str(pull(root, registry, policy).digest) == AMD64.digest


def test_an_older_variant_does_not_stand_in_for_the_one_that_is_asked_for(
    root: Path, registry: ScriptedRegistry
) -> None:
    v6, v7 = build_image(platform="linux/arm/v6"), build_image(platform="linux/arm/v7")
    serve(registry, build_index([v6, v7]))
    assert str(pull(root, registry, platform=Platform.parse("linux/arm/v6")).digest) == v6.digest
    for policy in ("if-missing", "if-newer"):
        pulled = pull(root, registry, policy, platform=Platform.parse("linux/arm/v7"))
        assert str(pulled.digest) == v7.digest
        pull(root, registry, platform=Platform.parse("linux/arm/v6"))


def test_an_image_that_came_from_elsewhere_is_known_by_its_own_digest(root: Path, registry: ScriptedRegistry) -> None:
    put(root, SINGLE, NAME)
    serve(registry, SINGLE)
    assert asked(registry, lambda: pull(root, registry, "if-newer")) == [("HEAD", "manifests/1")]
    put(root, AMD64, NAME)
    serve(registry, INDEX)
    assert ("GET", "manifests/1") in asked(registry, lambda: pull(root, registry, "if-newer"))
    assert annotations(root)["digest"] == INDEX.digest


HEADERS = {"Content-Type": OCI_INDEX, "Docker-Content-Digest": INDEX.digest}


def headed(**headers: str | None) -> Answer:
    """An answer to a HEAD that has other headers than an honest one."""
    found = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    body = INDEX.blobs[INDEX.digest]
    return Answer(headers={name: value for name, value in found.items() if value is not None}, body=body)


HEADS: dict[str, Scripted] = {
    "no digest, as from ECR": headed(Docker_Content_Digest=None),
    "no digest that is one": headed(Docker_Content_Digest="latest"),
    "a generic type": headed(Content_Type="application/json"),
    "no length": Answer(headers=HEADERS, framing="chunked", body=b"x"),
    "405": Answer(status=405),
    "404": Answer(status=404),
    "403": Answer(status=403),
    "400": Answer(status=400),
    "406": Answer(status=406),
    "501": Answer(status=501),
}


@pytest.mark.parametrize("answer", HEADS.values(), ids=HEADS.keys())
def test_where_a_head_is_no_answer_one_get_is(answer: Scripted, root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    registry.allow("HEAD", TAG, answer)
    client = quick_client(plain_http=[registry.host])
    again = asked(registry, lambda: pull(root, registry, "if-newer", client=client))
    assert again == [("HEAD", "manifests/1"), ("GET", "manifests/1")]


def test_a_head_that_is_sent_to_where_none_is_answered_is_followed_by_a_get(
    root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    with ScriptedRegistry(hostname="localhost") as storage:
        registry.allow("HEAD", TAG, redirect(f"{storage.url}/signed?X-Amz-Signature=secret"))
        storage.expect("HEAD", "/signed?X-Amz-Signature=secret", Answer(status=403))
        again = asked(registry, lambda: pull(root, registry, "if-newer"))
    assert again == [("HEAD", "manifests/1"), ("GET", "manifests/1")]


@pytest.mark.parametrize(
    ("status", "kind", "count"), [(429, RateLimited, 1), (503, RegistryError, 3), (401, AuthenticationRefused, 1)]
)
def test_a_head_that_fails_ends_the_pull(
    status: int, kind: type[RegistryError], count: int, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    content = (root / "index.json").read_bytes()
    headers = {"Retry-After": "3600"} if status == 429 else {}
    registry.allow("HEAD", TAG, Answer(status=status, headers=headers))
    client = quick_client(attempts=3)

    def again() -> None:
        with pytest.raises(kind) as caught:
            pull(root, registry, "if-newer", client=client)
        assert type(caught.value) is kind

    assert asked(registry, again) == [("HEAD", "manifests/1")] * count
    assert (root / "index.json").read_bytes() == content


def test_a_head_that_no_token_opens_is_not_asked_again_as_a_get(root: Path, registry: ScriptedRegistry) -> None:
    put(root, SINGLE, NAME)
    scope = pull_scope("team/app")
    with TokenServer() as tokens:
        tokens.expect_token("token-1", service="registry", scope=scope)
        registry.allow("HEAD", TAG, unauthorized(tokens.challenge(service="registry", scope=scope)))

        def again() -> None:
            with pytest.raises(AuthenticationRefused):
                pull(root, registry, "if-newer")

        assert asked(registry, again) == [("HEAD", "manifests/1")] * 2


def test_a_name_that_the_registry_has_no_more_is_told_of(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    registry.allow("HEAD", TAG, Answer(status=404))
    registry.allow("GET", TAG, registry_error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(ManifestUnknown):
        pull(root, registry, "if-newer")
    assert str(open_store(root).get(NAME).digest) == AMD64.digest


def test_a_registry_that_is_not_there_is_told_of(root: Path) -> None:
    put(root, SINGLE, NAME)
    reference = f"127.0.0.1:{free_port()}/team/app:1"
    with pytest.raises(RegistryError, match="refused"):
        open_store(root).pull(reference, name=NAME, policy="if-newer", client=quick_client())


# if-missing, and digests


def test_nothing_is_asked_where_the_name_is_there(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pulled = pull(root, registry)
    serve(registry, MOVED)
    events: list[Event] = []
    found: list[Image] = []
    assert asked(registry, lambda: found.append(pull(root, registry, "if-missing", on_event=events.append))) == []
    assert found == [pulled]
    assert [type(each) for each in events] == [ImagePresent]


@pytest.mark.parametrize("name", ["alpine:3", "docker.io/library/alpine:3"])
def test_a_name_is_there_under_each_spelling(name: str, root: Path) -> None:
    put(root, SINGLE, name)
    for asked_for in ("alpine:3", "docker.io/library/alpine:3", "index.docker.io/library/alpine:3"):
        assert open_store(root).pull(asked_for, policy="if-missing", client=quick_client()).name == name


def test_an_image_that_was_loaded_is_there_for_its_own_platform_alone(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, build_index([ARM64, AMD64]))
    put(root, ARM64, NAME)
    assert asked(registry, lambda: pull(root, registry, "if-missing", platform=None)) == []
    assert asked(registry, lambda: pull(root, registry, "if-missing", platform=Platform.parse("linux/arm64"))) == []
    assert str(pull(root, registry, "if-missing").digest) == AMD64.digest


def test_an_index_that_was_loaded_is_there_as_a_whole_alone(root: Path, registry: ScriptedRegistry) -> None:
    put(root, INDEX, NAME)
    serve(registry, INDEX)
    assert asked(registry, lambda: pull(root, registry, "if-missing", platform=None)) == []
    assert str(pull(root, registry, "if-missing").digest) == AMD64.digest


@pytest.mark.parametrize("policy", ["if-missing", "if-newer"])
@pytest.mark.parametrize("harm", ["a layer is gone", "a layer was cut", "the manifest rots", "the manifest is gone"])
def test_an_image_that_is_not_whole_is_not_there(
    harm: str, policy: PullPolicy, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    digest = AMD64.digest if "manifest" in harm else AMD64.layer_digests[0]
    path = blob(root, digest)
    path.chmod(0o600)
    if "gone" in harm:
        path.unlink()
    elif "cut" in harm:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        rot(path)
    assert ("GET", "manifests/1") in asked(registry, lambda: pull(root, registry, policy))
    assert path.read_bytes() == AMD64.blobs[digest]


@pytest.mark.parametrize("policy", ["if-missing", "if-newer"])
def test_a_digest_that_is_there_needs_no_request_and_another_one_does(
    policy: PullPolicy, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    serve_image(registry, "team/app", None, MOVED)
    store, client = open_store(root), quick_client()
    fixed, moved = (registry.reference("team/app", digest=each.digest) for each in (INDEX, MOVED))
    store.pull(fixed, name=NAME, client=client)
    assert asked(registry, lambda: store.pull(fixed, name=NAME, client=client, policy=policy)) == []
    own = registry.reference("team/app", digest=AMD64.digest)
    assert asked(registry, lambda: store.pull(own, name=NAME, client=client, policy=policy)) == []
    again = asked(registry, lambda: store.pull(moved, name=NAME, client=client, policy=policy))
    assert again[0] == ("GET", f"manifests/{MOVED.digest}")


def test_there_is_no_other_policy(root: Path) -> None:
    with pytest.raises(InvalidArgument, match="policy"):
        open_store(root).pull("app:1", policy="never")  # type: ignore[arg-type]  # as a caller may


# What else a pull does, where nothing is fetched


@pytest.mark.parametrize(("policy", "requests"), [("if-missing", []), ("if-newer", [("HEAD", "manifests/1")])])
def test_an_image_that_has_no_tree_is_unpacked_from_the_store(
    policy: PullPolicy, requests: list[tuple[str, str]], root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    assert asked(registry, lambda: pull(root, registry, policy, unpack=True)) == requests
    tree = open_store(root).base_layer(NAME)
    assert tree is not None
    assert any(Path(tree).iterdir())
    events: list[Event] = []
    assert asked(registry, lambda: pull(root, registry, policy, unpack=True, on_event=events.append)) == requests
    assert [each for each in events if isinstance(each, ImagePresent | ImageCopied)] == events[-1:]
    assert isinstance(events[-1], ImagePresent)


def test_an_index_has_nothing_to_unpack_and_needs_no_request_for_that(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry, platform=None)
    events: list[Event] = []

    def again() -> None:
        pull(root, registry, "if-missing", platform=None, unpack=True, on_event=events.append)

    assert asked(registry, again) == []
    assert [each for each in events if isinstance(each, NothingToUnpack)]


@pytest.mark.parametrize("policy", ["if-missing", "if-newer"])
def test_what_is_read_and_wrong_is_fetched_again_and_nothing_else_is(
    policy: PullPolicy, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    digest = AMD64.layer_digests[1]
    rot(blob(root, digest))
    assert all(method == "HEAD" for method, _ in asked(registry, lambda: pull(root, registry, policy)))
    events: list[Event] = []
    again = asked(registry, lambda: pull(root, registry, policy, verify="content", on_event=events.append))
    assert [each for each in again if each[0] == "GET"] == [("GET", f"blobs/{digest}")]
    assert [str(each.descriptor.digest) for each in events if isinstance(each, BlobStarted)] == [digest]
    assert blob(root, digest).read_bytes() == AMD64.blobs[digest]
    assert annotations(root)["digest"] == INDEX.digest


@pytest.mark.parametrize("policy", ["if-missing", "if-newer"])
def test_an_image_that_is_kept_counts_as_used(policy: PullPolicy, root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    layout = open_layout(root)
    Path(layout.paths.activity).unlink()  # what was used within the hour is not noted again
    pull(root, registry, policy)
    assert NAME in Path(layout.paths.activity).read_text()


# The cost of a pull, where registries count the GETs of manifests


def test_each_document_of_an_image_costs_one_get(root: Path, registry: ScriptedRegistry) -> None:
    deep = build_index([build_index([ARM64]), AMD64, ARM64], attestations=True)
    for platform in (Platform.parse("linux/amd64"), None):
        serve_image(registry, "team/app", "1", deep)
        found = asked(registry, lambda wanted=platform: pull(root / str(wanted), registry, platform=wanted))  # type: ignore[misc]
        gets = [name for method, name in found if name.startswith("manifests/")]
        assert all(method == "GET" for method, _ in found)
        assert len(gets) == len(set(gets))
        assert gets[0] == "manifests/1"
        assert f"manifests/{deep.digest}" not in gets
        if platform is None:
            assert len(gets) == len(deep.document_digests)
        else:
            assert set(gets[1:]) <= {f"manifests/{digest}" for digest in deep.document_digests}


def test_one_manifest_of_an_index_costs_two_gets(root: Path, registry: ScriptedRegistry) -> None:
    serve(registry, INDEX)
    found = asked(registry, lambda: pull(root, registry))
    assert [name for _, name in found if "manifests" in name] == ["manifests/1", f"manifests/{AMD64.digest}"]


# The law

IMAGES = {"index": INDEX, "moved": MOVED, "grown": GROWN, "single": SINGLE}
PLATFORMS = {"linux/amd64": Platform.parse("linux/amd64"), "linux/arm64": Platform.parse("linux/arm64"), "all": None}
CHOICES: dict[str, PlatformChoice] = {
    "as it is": None,
    "all": "all",
    "one": PLATFORMS["linux/amd64"],
    "one of several": [Platform.parse("linux/amd64")],
    "two": [Platform.parse("linux/amd64"), Platform.parse("linux/arm64")],
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(IMAGES)),
        st.sampled_from(sorted(PLATFORMS)),
        st.sampled_from(["always", "if-newer", "if-missing"]),
        st.sampled_from(["nothing", "nothing", "remove", "import", "lose", "no digest"]),
    ),
    min_size=2,
    max_size=6,
)


@pytest.mark.timeout(900 if DEEP else 120)
@settings(max_examples=trial_count(30, 300))
@given(STEPS)
def test_if_newer_leaves_what_always_would_whatever_came_before(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, PullPolicy, str]]
) -> None:
    root = tmp_path_factory.mktemp("law") / "store"
    with ScriptedRegistry() as registry:
        for tag, wanted, policy, before in steps:
            image, platform = IMAGES[tag], PLATFORMS[wanted]
            serve(registry, image)
            if before == "no digest":
                registry.allow("HEAD", TAG, Answer(headers={"Content-Type": image.media_type}))
            expected = chosen(image, wanted)
            if expected is None:
                continue
            happen(before, root)
            held = {each.name: each.digest for each in open_store(root).images()}.get(NAME)
            count = len(registry.requests)
            pulled = pull(root, registry, policy, platform=platform)
            assert open_store(root).get(NAME).digest == pulled.digest
            if policy != "if-missing" or len(registry.requests) > count:
                assert str(pulled.digest) == expected
            else:
                assert pulled.digest == held
            assert not [finding for finding in open_store(root).verify() if finding.is_damage]
    check_invariants(root)


def chosen(image: BuiltImage, wanted: str) -> str | None:
    """Return what a pull brings, None where it brings nothing."""
    if wanted == "all":
        return image.digest
    if not image.is_index:
        return image.digest if wanted == "linux/amd64" else None
    found = [
        entry["digest"]
        for entry in image.document()["manifests"]
        if "/".join([entry["platform"]["os"], entry["platform"]["architecture"]]) == wanted
    ]
    return str(found[0])


def happen(what: str, root: Path) -> None:
    """Let something come between two pulls."""
    store = open_store(root)
    names = [each.name for each in store.images()]
    if what == "import":
        store.import_image(memory_of({NAME: AMD64}), NAME)
    elif what == "remove" and names:
        store.remove(names[0])
    elif what == "lose" and names:
        manifest = next((blob(root, str(each.digest)) for each in store.images()), None)
        if manifest is not None:
            manifest.unlink()


# ---- with a policy of the program, and several platforms


@pytest.mark.parametrize("policy", ["if-newer", "if-missing"])
def test_a_policy_is_asked_about_an_image_that_is_there_too(
    policy: PullPolicy, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, SINGLE)
    pull(root, registry)
    seen: list[bytes] = []
    pull(root, registry, policy, checked_by=Policy(verify=lambda offer: seen.append(offer.content)))
    assert seen == [SINGLE.blobs[SINGLE.digest]]
    with pytest.raises(PolicyRefused, match="max_layers"):
        pull(root, registry, policy, checked_by=Policy(max_layers=0))


@pytest.mark.parametrize("policy", ["if-newer", "if-missing"])
def test_S27_what_is_verified_is_what_the_registry_has_where_the_store_has_less(
    policy: PullPolicy, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, INDEX)
    pull(root, registry)
    seen: list[Digest] = []
    pull(root, registry, policy, checked_by=Policy(verify=lambda offer: seen.append(offer.resolved.digest)))
    assert list(map(str, seen)) == [INDEX.digest]


@pytest.mark.parametrize("platform", ["all", [Platform.parse("linux/amd64"), Platform.parse("linux/arm64")]])
def test_several_platforms_that_are_there_cost_one_head(
    platform: PlatformChoice, root: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, GROWN)
    first = pull(root, registry, platform=platform)
    again: list[Image] = []
    requests = asked(registry, lambda: again.append(pull(root, registry, "if-newer", platform=platform)))
    assert [method for method, _ in requests] == ["HEAD"]
    assert again == [first]
    pull(root, registry, "if-newer", platform=Platform.parse("linux/s390x"))
    assert annotations(root)["platform"] == "linux/s390x"


@pytest.mark.parametrize("policy", ["if-newer", "if-missing"])
@pytest.mark.parametrize("image", [INDEX, GROWN])
def test_what_one_choice_of_platforms_brought_stands_in_for_no_other_that_brings_something_else(
    image: BuiltImage, policy: PullPolicy, tmp_path: Path, registry: ScriptedRegistry
) -> None:
    serve(registry, image)
    brought = {each: pull(tmp_path / each, registry, platform=choice).digest for each, choice in CHOICES.items()}
    for before, first in CHOICES.items():
        for each, choice in CHOICES.items():
            pull(tmp_path / "store", registry, platform=first)
            pulled = pull(tmp_path / "store", registry, policy, platform=choice)
            assert pulled.digest == brought[each], f"{each} after {before}"
