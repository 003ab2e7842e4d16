"""A real registry, of the distribution project: plain, with passwords, and with TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import AuthenticationRefused, BlobNotFound, ManifestUnknown, RegistryError
from minibox_store.graph import walk
from minibox_store.registry import Credentials
from tests.support.certificates import Certificate, make_certificate
from tests.support.images import OCI_LAYER, BuiltImage, build_image, build_index, random_layer
from tests.support.peers import DockerRegistry, docker_registry, push_image
from tests.support.registries import open_repository
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.sources import descriptor_for, read_all

ALICE = ("alice", "pass-word-1")
IMAGE = build_image([random_layer(512 * 600), {"a": b"b"}])
DOCKER_IMAGE = build_image(docker=True)
INDEX = build_index([build_image(platform="linux/arm64"), IMAGE], attestations=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        push_image(running, "team/app", "oci", IMAGE)
        push_image(running, "team/app", "docker", DOCKER_IMAGE)
        push_image(running, "team/app", "index", INDEX)
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def pulled(reference: str, name: str, **options: object) -> dict[str, bytes]:
    """Return every blob of the graph that a name stands for, each verified."""
    found = {}
    with open_repository(reference, **options) as repository:
        for node in walk(repository, repository.resolve(name)):
            content = read_all(repository, node.descriptor)
            assert Digest.of(content) == node.descriptor.digest
            found[str(node.descriptor.digest)] = content
    return found


@pytest.mark.parametrize(("tag", "image"), [("oci", IMAGE), ("docker", DOCKER_IMAGE), ("index", INDEX)])
def test_images_of_both_kinds_and_indexes_arrive_byte_by_byte(
    registry: DockerRegistry, tag: str, image: BuiltImage
) -> None:
    assert pulled(registry.reference("team/app", tag), tag) == image.blobs
    assert pulled(registry.reference("team/app", digest=image.digest), image.digest) == image.blobs


def test_a_blob_is_continued_by_its_range(registry: DockerRegistry) -> None:
    digest = IMAGE.layer_digests[0]
    layer = descriptor_for(IMAGE.blobs[digest], OCI_LAYER)
    with open_repository(registry.reference("team/app", "oci")) as repository:
        for offset in (1, 100_000, layer.size_bytes - 1, layer.size_bytes):
            assert read_all(repository, layer, offset) == IMAGE.blobs[digest][offset:]


def test_what_is_not_there_is_told_of(registry: DockerRegistry) -> None:
    missing = descriptor_for(b"nobody has this", OCI_LAYER)
    document = Descriptor(media_type=IMAGE.media_type, digest=missing.digest, size_bytes=15)
    with open_repository(registry.reference("team/app", "oci")) as repository:
        with pytest.raises(ManifestUnknown, match="MANIFEST_UNKNOWN"):
            repository.resolve("nothing")
        with pytest.raises(BlobNotFound):
            repository.open_blob(missing)
        with pytest.raises(BlobNotFound):
            repository.open_blob(document)
    with open_repository(registry.reference("no/such", "oci")) as repository, pytest.raises(ManifestUnknown):
        repository.resolve("oci")


def test_a_registry_with_passwords_is_read_with_the_right_one_alone(tmp_path: Path) -> None:
    with docker_registry(tmp_path, users=dict([ALICE])) as registry:
        push_image(registry, "team/app", "1", IMAGE, credentials=ALICE)
        reference = registry.reference("team/app", "1")
        assert pulled(reference, "1", credentials={registry.host: Credentials(*ALICE)}) == IMAGE.blobs
        for wrong in (None, {registry.host: Credentials("alice", "other")}):
            with (
                open_repository(reference, credentials=wrong) as repository,
                pytest.raises(AuthenticationRefused, match="UNAUTHORIZED"),
            ):
                repository.resolve("1")


def test_a_registry_with_tls_is_read_when_its_authority_is_trusted(tmp_path: Path, certificate: Certificate) -> None:
    with docker_registry(tmp_path, certificate=certificate) as registry:
        push_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")
        assert pulled(reference, "1", https=[registry.host], ca_file=certificate.chain) == IMAGE.blobs
        with (
            open_repository(reference, https=[registry.host]) as repository,
            pytest.raises(RegistryError, match="certificate is not trusted"),
        ):
            repository.resolve("1")


def test_a_registry_of_this_machine_that_wants_tls_gets_it_without_being_named(
    tmp_path: Path, certificate: Certificate
) -> None:
    with docker_registry(tmp_path, certificate=certificate) as registry:
        push_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")
        assert pulled(reference, "1", ca_file=certificate.chain) == IMAGE.blobs
        with open_repository(reference, ca_file=certificate.chain) as repository:
            assert repository.head("1") == repository.resolve("1")
        with open_repository(reference) as repository, pytest.raises(RegistryError, match="certificate is not trusted"):
            repository.resolve("1")
        with (
            open_repository(reference, plain_http=[registry.host], ca_file=certificate.chain) as repository,
            pytest.raises(RegistryError) as caught,
        ):
            repository.resolve("1")
        assert caught.value.status == 400


def test_a_registry_of_this_machine_that_hangs_up_on_what_is_no_tls_gets_it_too(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")
        assert pulled(reference, "1", ca_file=certificate.chain) == IMAGE.blobs
        with (
            open_repository(reference, plain_http=[registry.host], ca_file=certificate.chain, attempts=1) as repository,
            pytest.raises(RegistryError, match="http://"),
        ):
            repository.resolve("1")


def test_a_plain_registry_that_was_said_to_speak_tls_is_told_of(registry: DockerRegistry) -> None:
    with (
        open_repository(registry.reference("team/app", "oci"), https=[registry.host]) as repository,
        pytest.raises(RegistryError, match="does not speak TLS"),
    ):
        repository.resolve("oci")
