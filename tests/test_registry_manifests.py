"""A manifest is the one that was asked for, of the type that was announced, or it is refused."""

import json
import tracemalloc
from typing import Any

import pytest

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    ContentMismatch,
    InvalidDigest,
    InvalidDocument,
    InvalidReference,
    RegistryError,
)
from minibox_store.graph import RememberingSource, walk
from minibox_store.limits import Limits
from minibox_store.manifest_choice import select_manifest
from minibox_store.platforms import LINUX_AMD64
from tests.support.images import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, build_image, build_index
from tests.support.registries import open_repository
from tests.support.scripted_registry import Answer, ScriptedRegistry, document_answer, manifest_target, serve_image
from tests.support.sources import read_all, root_of

IMAGE = build_image()
BODY = IMAGE.blobs[IMAGE.digest]
MANIFEST = manifest_target("team/app", "1")
BY_DIGEST = manifest_target("team/app", IMAGE.digest)
FOUR_TYPES = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)


def resolve(answer: Answer, name: str = "1", **options: Any) -> Descriptor:
    """Resolve a name at a registry that gives this answer, once."""
    with ScriptedRegistry() as registry:
        registry.expect("GET", manifest_target("team/app", name), answer)
        with open_repository(registry.reference("team/app", "1"), **options) as repository:
            return repository.resolve(name)


def typed(content: bytes = BODY, media_type: str | None = IMAGE.media_type, digest: str | None = None) -> Answer:
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
    return Answer(headers={name: value for name, value in headers.items() if value is not None}, body=content)


def encoded(**fields: object) -> bytes:
    return json.dumps({**IMAGE.document(), **fields}).encode()


# Resolving


@pytest.mark.parametrize("docker", [False, True])
def test_a_tag_and_a_digest_are_resolved_by_one_request_that_names_four_types(docker: bool) -> None:
    image = build_image(docker=docker)
    for name in ("1", image.digest):
        with ScriptedRegistry() as registry:
            wanted = {"Accept": FOUR_TYPES, "User-Agent": "minibox-store/0.1.0"}
            target = manifest_target("team/app", name)
            registry.expect("GET", target, document_answer(image), requires=wanted)
            with open_repository(registry.reference("team/app", "1")) as repository:
                assert repository.resolve(name) == root_of(image)
                assert read_all(repository, root_of(image)) == image.blobs[image.digest]
                assert read_all(repository, root_of(image), 10) == image.blobs[image.digest][10:]


def test_the_user_agent_names_the_version_of_the_package() -> None:
    import minibox_store
    from minibox_store.registry.transport import USER_AGENT

    assert USER_AGENT.endswith(f"/{minibox_store.__version__}")


def test_a_nested_index_is_walked_to_the_manifest_and_each_document_crosses_once() -> None:
    amd64, arm64 = build_image(), build_image(platform="linux/arm64")
    index = build_index([arm64, amd64], attestations=True, nested=2)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", index, at_most=1)
        with open_repository(registry.reference("team/app", "1")) as repository:
            source = RememberingSource(repository)
            chosen = select_manifest(source, repository.resolve("1"), LINUX_AMD64, "team/app:1")
            assert str(chosen.digest) == amd64.digest
            assert {str(node.descriptor.digest) for node in walk(source, chosen)} == set(amd64.blobs)


def test_s27_what_was_resolved_is_what_is_opened_though_the_tag_moves_meanwhile() -> None:
    moved = build_image(salt="moved")
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", None, IMAGE)
        registry.expect("GET", MANIFEST, document_answer(IMAGE), document_answer(moved))
        with open_repository(registry.reference("team/app", "1")) as repository:
            descriptor = repository.resolve("1")
            assert repository.resolve("1") == root_of(moved)
            assert read_all(repository, descriptor) == BODY


@pytest.mark.parametrize("name", ["", "a b", "../../x", "a/b", "-a", "a" * 129, "a?x=y", "a#b", "a%2f"])
def test_s4_a_name_that_is_no_tag_is_refused_before_anything_is_sent(name: str) -> None:
    with open_repository("127.0.0.1:1/team/app:1") as repository, pytest.raises(InvalidReference):
        repository.resolve(name)


@pytest.mark.parametrize("name", ["sha256:../../x", "sha256:AB", "md5:" + "a" * 32, ":", "a:b"])
def test_s4_a_name_that_is_no_digest_is_refused_before_anything_is_sent(name: str) -> None:
    with open_repository("127.0.0.1:1/team/app:1") as repository, pytest.raises(InvalidDigest):
        repository.resolve(name)


# Digests


def test_a_digest_is_computed_where_the_registry_tells_none() -> None:
    """ECR may leave Docker-Content-Digest out."""
    assert resolve(typed()) == root_of(IMAGE)


def test_the_digest_that_the_registry_tells_must_be_the_bytes() -> None:
    other = str(Digest.of(b"other"))
    with pytest.raises(ContentMismatch) as caught:
        resolve(typed(digest=other))
    assert (caught.value.expected, caught.value.actual) == (other, IMAGE.digest)
    with pytest.raises(ContentMismatch, match="a digest"):
        resolve(typed(digest="sha256:short"))


def test_the_digest_that_was_asked_for_must_be_the_bytes_whatever_the_registry_tells() -> None:
    other = build_image(salt="other")
    for told in (None, IMAGE.digest, other.digest):
        with pytest.raises(ContentMismatch) as caught:
            resolve(typed(other.blobs[other.digest], digest=told), IMAGE.digest)
        assert (caught.value.expected, caught.value.actual) == (IMAGE.digest, other.digest)


@pytest.mark.parametrize("by_tag", [True, False])
def test_a_manifest_may_be_known_by_its_sha512(by_tag: bool) -> None:
    image = build_image(algorithm="sha512")
    answer = typed(image.blobs[image.digest], digest=image.digest if by_tag else None)
    assert resolve(answer, "1" if by_tag else image.digest) == root_of(image)


# Types


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "text/plain; charset=utf-8", "application/octet-stream", "binary/octet-stream", None],
)
def test_a_generic_type_gives_way_to_the_documents_own(media_type: str | None) -> None:
    """Artifactory and Nexus send these."""
    assert resolve(typed(media_type=media_type)) == root_of(IMAGE)


def test_parameters_of_a_type_are_passed_over() -> None:
    """Quay adds the charset."""
    assert resolve(typed(media_type=f"{OCI_MANIFEST.upper()}; charset=utf-8")) == root_of(IMAGE)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (BODY, DOCKER_MANIFEST),
        (BODY, OCI_INDEX),
        (encoded(mediaType=OCI_INDEX), OCI_MANIFEST),
        (encoded(manifests=[]), OCI_MANIFEST),
        (encoded(manifests=[]), "application/json"),
        (encoded(mediaType="application/x"), "application/json"),
        (BODY[:-1] + b',"layers":[]}', OCI_MANIFEST),
        (BODY + b"{}", OCI_MANIFEST),
        (BODY[:-1], OCI_MANIFEST),
        (b"", OCI_MANIFEST),
        (b"<html>log in</html>", "text/html"),
        (b"<html>log in</html>", "text/plain"),
        (b"[]", OCI_MANIFEST),
        (b"\xff", OCI_MANIFEST),
        (b"[" * 100_000, OCI_MANIFEST),
    ],
)
def test_s5_a_document_that_is_not_what_it_is_announced_as_is_refused(content: bytes, media_type: str) -> None:
    with pytest.raises(InvalidDocument):
        resolve(typed(content, media_type))


@pytest.mark.parametrize("served", [DOCKER_MANIFEST, OCI_INDEX, "text/html", "x" * 5000])
def test_s5_a_document_served_as_another_type_than_its_descriptor_says_is_refused(served: str) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BY_DIGEST, typed(media_type=served))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(InvalidDocument, match="it is served as") as caught,
        ):
            repository.open_blob(root_of(IMAGE))
    assert len(str(caught.value)) < 500


def test_s5_what_was_resolved_as_one_type_is_not_given_for_a_descriptor_of_another() -> None:
    lying = Descriptor(media_type=OCI_INDEX, digest=root_of(IMAGE).digest, size_bytes=len(BODY))
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        with open_repository(registry.reference("team/app", "1")) as repository:
            repository.resolve("1")
            with pytest.raises(InvalidDocument):
                repository.open_blob(lying)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
    ],
)
def test_schema_1_is_refused_by_name(media_type: str) -> None:
    """Quay serves it to clients that accept nothing newer."""
    old = b'{"schemaVersion": 1, "name": "team/app", "tag": "1", "fsLayers": [], "history": []}'
    with pytest.raises(InvalidDocument, match="Docker schema 1 manifests are not supported"):
        resolve(typed(old, media_type))


def test_what_the_registry_cannot_give_in_our_types_is_an_error_of_the_registry() -> None:
    with pytest.raises(RegistryError) as caught:
        resolve(Answer(status=406))
    assert caught.value.status == 406


# S7: sizes


@pytest.mark.parametrize("framing", ["chunked", "until_close", "length"])
def test_s7_a_manifest_is_read_up_to_four_mebibytes(framing: str) -> None:
    endless = Answer(
        headers={"Content-Type": OCI_MANIFEST},
        endless=True,
        framing=framing,  # type: ignore[arg-type]
        content_length=1 << 40,
    )
    with ScriptedRegistry() as registry:
        listed = registry.expect("GET", MANIFEST, endless)
        with open_repository(registry.reference("team/app", "1")) as repository:
            tracemalloc.start()
            with pytest.raises(InvalidDocument, match="/team/app:1: it is larger than 4194304 bytes"):
                repository.resolve("1")
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert listed.requests[0].body_bytes_sent < 24 << 20
        assert peak < 16 << 20


def test_s7_a_manifest_of_just_the_limit_is_taken() -> None:
    annotations = {"filler": "x" * 1000}
    content = encoded(annotations=annotations)
    limits = Limits(document_bytes=len(content))
    assert resolve(typed(content), limits=limits).size_bytes == len(content)
    with pytest.raises(InvalidDocument, match="larger"):
        resolve(typed(content), limits=Limits(document_bytes=len(content) - 1))


def test_s7_a_descriptor_of_a_document_beyond_the_limit_is_refused_before_anything_is_sent() -> None:
    huge = Descriptor(media_type=OCI_MANIFEST, digest=root_of(IMAGE).digest, size_bytes=(4 << 20) + 1)
    with (
        open_repository("127.0.0.1:1/team/app:1") as repository,
        pytest.raises(InvalidDocument, match="larger than 4194304 bytes"),
    ):
        repository.open_blob(huge)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_s7_an_error_is_read_up_to_64_kibibytes(status: int) -> None:
    endless = Answer(status=status, endless=True, framing="chunked", body=b'{"errors": [')
    with ScriptedRegistry() as registry:
        registry.allow("GET", MANIFEST, endless)
        options = {"plain_http": [registry.host], "attempts": 1}
        with (
            open_repository(registry.reference("team/app", "1"), **options) as repository,
            pytest.raises(RegistryError) as caught,
        ):
            repository.resolve("1")
        assert registry.requests[0].body_bytes_sent < 16 << 20
    assert caught.value.status == status
    assert caught.value.codes == ()


# Lengths of documents by digest


@pytest.mark.parametrize("difference", [-1, 1])
def test_s26_a_document_of_another_length_is_refused_before_it_is_read(difference: int) -> None:
    with ScriptedRegistry() as registry:
        answer = Answer(headers={"Content-Type": OCI_MANIFEST}, body=BODY, content_length=len(BODY) + difference)
        registry.expect("GET", BY_DIGEST, answer)
        with open_repository(registry.reference("team/app", "1")) as repository, pytest.raises(ContentMismatch):
            repository.open_blob(root_of(IMAGE))


def test_s26_a_longer_document_in_chunks_is_read_to_its_size_and_one_byte() -> None:
    with ScriptedRegistry() as registry:
        endless = Answer(headers={"Content-Type": OCI_MANIFEST}, body=b" ", endless=True, framing="chunked")
        registry.expect("GET", BY_DIGEST, endless)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert len(read_all(repository, root_of(IMAGE))) == len(BODY) + 1


# Heads


def head(answer: Answer, name: str = "1", **options: Any) -> Descriptor | None:
    """Ask a registry that gives this answer, once, what it would give."""
    with ScriptedRegistry() as registry:
        registry.expect("HEAD", manifest_target("team/app", name), answer)
        with open_repository(registry.reference("team/app", "1"), **options) as repository:
            return repository.head(name)


@pytest.mark.parametrize("docker", [False, True])
def test_a_head_says_what_a_get_would_bring_and_names_the_same_types(docker: bool) -> None:
    image = build_image(docker=docker)
    for name in ("1", image.digest):
        with ScriptedRegistry() as registry:
            target = manifest_target("team/app", name)
            registry.expect("HEAD", target, document_answer(image), requires={"Accept": FOUR_TYPES})
            registry.expect("GET", target, document_answer(image))
            with open_repository(registry.reference("team/app", "1")) as repository:
                assert repository.head(name) == repository.resolve(name)


def test_a_head_and_the_get_behind_it_use_one_connection() -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        with open_repository(registry.reference("team/app", "1")) as repository:
            repository.head("1")
            repository.resolve("1")
        assert len({request.client_port for request in registry.requests}) == 1


def test_a_head_that_says_another_digest_than_was_asked_for_says_nothing() -> None:
    other = build_image(salt="other").digest
    assert head(typed(digest=IMAGE.digest), IMAGE.digest) is not None
    assert head(typed(digest=other), IMAGE.digest) is None
    assert head(typed(digest=other)) is not None


@pytest.mark.parametrize(
    "answer",
    [
        typed(),
        typed(digest="sha256:short"),
        typed(digest=""),
        typed(digest=IMAGE.digest, media_type=None),
        typed(digest=IMAGE.digest, media_type="application/json"),
        typed(digest=IMAGE.digest, media_type="application/vnd.oci.image.config.v1+json"),
        typed(digest=IMAGE.digest, media_type="application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_a_head_that_does_not_say_all_of_a_descriptor_says_nothing(answer: Answer) -> None:
    assert head(answer) is None


@pytest.mark.parametrize("name", ["", "a b", "../x", "1/2", "x" * 129])
def test_a_head_is_asked_of_a_tag_or_a_digest_alone(name: str) -> None:
    with ScriptedRegistry() as registry, open_repository(registry.reference("team/app", "1")) as repository:
        with pytest.raises(InvalidReference):
            repository.head(name)
        with pytest.raises(InvalidDigest):
            repository.head("sha256:short")


def test_s26_a_body_behind_a_head_is_not_read() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"x" * 5
    with ScriptedRegistry() as registry:
        registry.expect("HEAD", MANIFEST, Answer(raw=raw))
        registry.expect("GET", MANIFEST, document_answer(IMAGE))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert repository.head("1") is None
            assert str(repository.resolve("1").digest) == IMAGE.digest
