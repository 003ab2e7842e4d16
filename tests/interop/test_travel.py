"""An image travels between this project and the tools of others, and every byte of it arrives."""

import json
from pathlib import Path

import pytest

from minibox_store import AuthenticationRefused, Credentials, RegistryClient, RegistryError, Store
from tests.support.certificates import make_certificate
from tests.support.daemon import Daemon, running_daemon
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.layouts import read_layout_blobs, write_layout
from tests.support.peers import docker_registry, push_image, require_peer, run_skopeo, run_umoci

TOKEN = "a-token-of-more-than-22-characters"
AMD64 = build_image(platform="linux/amd64")
ARM64 = build_image(platform="linux/arm64")
INDEX = build_index([ARM64, AMD64])
NAME = "team/app:1"


def graph_of(image: BuiltImage) -> dict[str, bytes]:
    """Return the blobs of an image of one platform, by digest."""
    return {digest: image.blobs[digest] for digest in (image.digest, image.config_digest, *image.layer_digests)}


def pull_by_daemon(daemon: Daemon, reference: str) -> list[str]:
    with daemon.stream("POST", "/images/pull", {"image": reference}) as stream:
        assert stream.status == 200
        return list(stream)


def test_what_skopeo_pushed_is_pulled_by_the_daemon_and_read_by_skopeo_and_umoci(tmp_path: Path) -> None:
    write_layout(tmp_path / "source", {NAME: INDEX})
    with docker_registry(tmp_path / "registry") as registry, running_daemon(tmp_path / "daemon") as daemon:
        reference = registry.reference("team/app", "1")
        run_skopeo(
            "copy",
            "--all",
            "--dest-tls-verify=false",
            f"oci:{tmp_path / 'source'}:{NAME}",
            f"docker://{reference}",
        )
        lines = pull_by_daemon(daemon, reference)
        assert lines[0] == f"[pull] fetching {reference} manifest..."
        assert lines[1] == f"[pull] {reference} is a manifest list, resolving amd64/linux..."
        assert lines[2] == f"[pull] manifest: {AMD64.digest.removeprefix('sha256:')[:12]}"
        assert lines[-1] == "[pull] Done"
        (listed,) = daemon.get("/images").json()
        root = daemon.data_root
    assert listed["digest"] == AMD64.digest
    assert read_layout_blobs(root) == graph_of(AMD64)
    inspected = json.loads(run_skopeo("inspect", "--raw", f"oci:{root}:{reference}"))
    assert inspected == AMD64.document()
    assert reference in run_umoci("ls", "--layout", root)
    assert AMD64.layer_digests[0] in run_umoci("stat", "--image", f"{root}:{reference}", "--json")


@pytest.mark.parametrize("token", [None, TOKEN], ids=["without a token", "with a token"])
def test_skopeo_pulls_from_the_daemon(tmp_path: Path, token: str | None) -> None:
    write_layout(tmp_path / "daemon-root", {NAME: INDEX, "single:2": AMD64})
    with running_daemon(tmp_path / "daemon", data_root=tmp_path / "daemon-root", token=token) as daemon:
        credentials = ("--src-creds", f"anybody:{token}") if token else ()
        for name, flags in ((NAME, ("--all",)), ("single:2", ())):
            run_skopeo(
                "copy",
                *flags,
                "--src-tls-verify=false",
                *credentials,
                f"docker://{daemon.host}/{name}",
                f"oci:{tmp_path / 'target'}:{name}",
            )
        tags = json.loads(
            run_skopeo(
                "list-tags",
                "--tls-verify=false",
                *(("--creds", f"anybody:{token}") if token else ()),
                f"docker://{daemon.host}/team/app",
            )
        )
    assert tags["Tags"] == ["1"]
    assert read_layout_blobs(tmp_path / "target") == INDEX.blobs


def test_skopeo_without_the_token_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path / "daemon-root", {NAME: AMD64})
    with running_daemon(tmp_path / "daemon", data_root=tmp_path / "daemon-root", token=TOKEN) as daemon:
        with pytest.raises(Exception, match=r"(?i)unauthorized|authentication required|401"):
            run_skopeo("inspect", "--tls-verify=false", f"docker://{daemon.host}/{NAME}")
        assert daemon.get("/images").status == 200


@pytest.mark.parametrize("docker", [False, True], ids=["OCI", "Docker schema 2"])
def test_an_image_arrives_with_the_bytes_and_types_it_has(tmp_path: Path, docker: bool) -> None:
    image = build_image(docker=docker)
    with docker_registry(tmp_path / "registry") as registry:
        push_image(registry, "team/app", "1", image)
        pulled = Store(tmp_path / "store").pull(registry.reference("team/app", "1"))
    assert str(pulled.digest) == image.digest
    assert pulled.descriptor.media_type == image.media_type
    assert read_layout_blobs(tmp_path / "store") == graph_of(image)


def test_a_nested_index_resolves_to_the_one_platform(tmp_path: Path) -> None:
    nested = build_index([ARM64, AMD64], attestations=True, nested=1)
    with docker_registry(tmp_path / "registry") as registry:
        push_image(registry, "team/app", "1", nested)
        pulled = Store(tmp_path / "store").pull(registry.reference("team/app", "1"))
    assert str(pulled.digest) == AMD64.digest


def test_a_registry_with_passwords_is_pulled_from_with_credentials_alone(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry", users={"alice": "secret"}) as registry:
        push_image(registry, "team/app", "1", AMD64, credentials=("alice", "secret"))
        reference = registry.reference("team/app", "1")
        with pytest.raises(AuthenticationRefused):
            Store(tmp_path / "store").pull(reference)
        client = RegistryClient(credentials={registry.host: Credentials(username="alice", password="secret")})
        pulled = Store(tmp_path / "store").pull(reference, client=client)
    assert str(pulled.digest) == AMD64.digest


def test_a_registry_with_a_certificate_of_its_own_is_pulled_from_when_that_is_trusted(tmp_path: Path) -> None:
    require_peer("openssl")
    certificate = make_certificate(tmp_path / "certificate")
    with docker_registry(tmp_path / "registry", certificate=certificate) as registry:
        push_image(registry, "team/app", "1", AMD64)
        reference = registry.reference("team/app", "1")
        with pytest.raises(RegistryError, match=r"(?i)certificate"):
            Store(tmp_path / "store").pull(reference, client=RegistryClient(https=[registry.host]))
        client = RegistryClient(ca_file=certificate.chain, https=[registry.host])
        pulled = Store(tmp_path / "store").pull(reference, client=client)
    assert str(pulled.digest) == AMD64.digest


def test_what_is_saved_here_is_listed_by_tar_and_loaded_into_a_store_that_skopeo_reads(tmp_path: Path) -> None:
    write_layout(tmp_path / "source", {NAME: AMD64})
    Store(tmp_path / "source").save(NAME, tmp_path / "image.tar")
    Store(tmp_path / "target").load(tmp_path / "image.tar")
    run_skopeo("copy", f"oci:{tmp_path / 'target'}:{NAME}", f"oci:{tmp_path / 'copied'}:{NAME}")
    assert read_layout_blobs(tmp_path / "copied") == graph_of(AMD64)
