"""Copies, lists and deletions at real registries, and what other tools see of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_store import catalog, copy, delete, tags
from minibox_store.errors import ManifestUnknown, RegistryError
from minibox_store.registry import Credentials
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.layouts import read_layout_blobs
from tests.support.peers import DockerRegistry, PeerFailed, docker_registry, push_image, run_skopeo
from tests.support.registries import quick_client

ALICE = ("alice", "pass-word-1")
IMAGE = build_image([random_layer(512 * 4000), {"a": b"a"}])
DOCKER = build_image(docker=True)
INDEX = build_index([IMAGE, build_image(platform="linux/arm64")], attestations=True)
IMAGES = {"oci": IMAGE, "docker": DOCKER, "index": INDEX}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("source")) as running:
        for tag, image in IMAGES.items():
            push_image(running, "team/app", tag, image)
        yield running


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry that asks for a password."""
    with docker_registry(tmp_path_factory.mktemp("target"), users=dict([ALICE])) as running:
        yield running


def raw(reference: str, *options: str) -> bytes:
    """Return the manifest or index that skopeo sees."""
    return run_skopeo("inspect", "--raw", "--tls-verify=false", *options, f"docker://{reference}").encode()


@pytest.mark.parametrize(("tag", "image"), IMAGES.items())
def test_skopeo_reads_what_was_copied_to_another_registry(
    tmp_path: Path, source: DockerRegistry, target: DockerRegistry, tag: str, image: BuiltImage
) -> None:
    client = quick_client(credentials={target.host: Credentials(*ALICE)})
    place = target.reference(f"copies/{tag}", "1")
    assert str(copy(source.reference("team/app", tag), place, client=client).digest) == image.digest
    credentials = ":".join(ALICE)
    assert raw(place, f"--creds={credentials}") == image.blobs[image.digest]
    if tag != "docker":  # an OCI layout takes OCI types alone
        options = ("--all", "--preserve-digests", "--src-tls-verify=false", f"--src-creds={credentials}")
        run_skopeo("copy", *options, f"docker://{place}", f"oci:{tmp_path / 'layout'}:x")
        assert read_layout_blobs(tmp_path / "layout") == image.blobs


def test_within_one_registry_blobs_are_mounted(source: DockerRegistry) -> None:
    before = len(source.read_log())
    copy(source.reference("team/app", "index"), source.reference("team/other", "1"), client=quick_client())
    assert raw(source.reference("team/other", "1")) == INDEX.blobs[INDEX.digest]
    log = source.read_log()[before:]
    assert "mount=" in log
    assert '"PUT /v2/team/other/blobs' not in log
    assert '"GET /v2/team/app/blobs' not in log


def test_tags_and_repositories_are_those_that_skopeo_lists(tmp_path: Path) -> None:
    with docker_registry(tmp_path) as registry:
        for tag in ("1", "2.0", "latest"):
            push_image(registry, "team/app", tag, DOCKER)
        push_image(registry, "other", "1", DOCKER)
        listed = json.loads(
            run_skopeo("list-tags", "--tls-verify=false", f"docker://{registry.reference('team/app')}")
        )["Tags"]
        assert sorted(tags(registry.reference("team/app"), client=quick_client())) == sorted(listed)
        assert catalog(registry.host, client=quick_client()) == ("other", "team/app")


def test_what_was_deleted_is_gone_for_skopeo_too(tmp_path: Path) -> None:
    with docker_registry(tmp_path) as registry:
        push_image(registry, "team/app", "1", DOCKER)
        push_image(registry, "team/app", "2", IMAGE)
        with pytest.raises(RegistryError, match=DOCKER.digest):
            delete(registry.reference("team/app", "1"), client=quick_client())
        assert raw(registry.reference("team/app", "1")) == DOCKER.blobs[DOCKER.digest]
        delete(registry.reference("team/app", digest=DOCKER.digest), client=quick_client())
        with pytest.raises(PeerFailed, match="manifest unknown"):
            raw(registry.reference("team/app", "1"))
        assert tags(registry.reference("team/app"), client=quick_client()) == ("2",)
        with pytest.raises(ManifestUnknown):
            delete(registry.reference("team/app", digest=DOCKER.digest), client=quick_client())
