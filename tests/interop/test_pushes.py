"""What is pushed to a real registry is read back by other tools, byte by byte, whoever asks for credentials."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_store import Store
from minibox_store.errors import AuthenticationRefused, BlobNotFound, RegistryError
from minibox_store.registry import Credentials
from tests.support.certificates import make_certificate
from tests.support.daemon import running_daemon
from tests.support.images import OCI_CONFIG, build_image, build_index, build_layer, random_layer
from tests.support.layouts import read_layout_blobs
from tests.support.peers import DockerRegistry, docker_registry, require_peer, run_peer, run_skopeo
from tests.support.processes import plain_environment
from tests.support.pushes import for_others
from tests.support.registries import quick_client
from tests.support.scripted_registry import TokenServer
from tests.support.signed_tokens import TokenSigner, grant_tokens
from tests.support.stores import open_store, put

ALICE = ("alice", "pass-word-1")
LAYERS = [random_layer(512 * 6000), build_layer({"a": b"a"})]
IMAGE = build_image(LAYERS)
DOCKER = build_image(docker=True)
INDEX = build_index([IMAGE, build_image(platform="linux/arm64")], attestations=True)
DOCKER_LIST = build_index([DOCKER], docker=True)
IMAGES = {"oci:1": IMAGE, "docker:1": DOCKER, "index:1": INDEX, "list:1": DOCKER_LIST}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("store")
    for name, image in IMAGES.items():
        put(root, image, name)
    return open_store(root)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def fetched(folder: Path, reference: str, *options: str | Path) -> dict[str, bytes]:
    """Return every blob that skopeo gets for a reference."""
    flags = options or ("--src-tls-verify=false",)
    run_skopeo("copy", "--all", "--preserve-digests", *flags, f"docker://{reference}", f"oci:{folder}:x")
    return read_layout_blobs(folder)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("chunk_bytes", [None, 1_000_000], ids=["whole", "in chunks"])
def test_skopeo_reads_what_was_pushed(
    tmp_path: Path, store: Store, registry: DockerRegistry, name: str, chunk_bytes: int | None
) -> None:
    repository = f"team/{name.partition(':')[0]}-{chunk_bytes or 0}"
    reference = registry.reference(repository, "1")
    store.push(name, reference, client=quick_client(), chunk_bytes=chunk_bytes)
    raw = run_skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
    assert raw.encode() == IMAGES[name].blobs[IMAGES[name].digest]
    if "docker" not in name and "list" not in name:  # an OCI layout takes OCI types alone
        assert fetched(tmp_path / "fetched", reference) == IMAGES[name].blobs


def test_podman_makes_an_image_of_what_was_pushed(store: Store, registry: DockerRegistry) -> None:
    podman = require_peer("podman")
    reference = registry.reference("team/podman", "1")
    store.push("oci:1", reference, client=quick_client())
    with tempfile.TemporaryDirectory(prefix="podman-") as short:  # it takes no folder of a longer name
        folder = Path(short)
        command = [podman, f"--root={folder}/root", f"--runroot={folder}/run", "--storage-driver=vfs"]
        environment = plain_environment(folder)
        run_peer([*command, "pull", "--tls-verify=false", reference], environment)
        (seen,) = json.loads(run_peer([*command, "image", "inspect", reference], environment))
        run_peer([*command, "rmi", reference], environment)
    assert seen["Digest"] == IMAGE.digest
    assert seen["RootFS"]["Layers"] == [layer.diff_id for layer in LAYERS]


def test_a_registry_that_knows_no_subjects_gets_a_list_of_referrers(tmp_path: Path, registry: DockerRegistry) -> None:
    signature = build_image([{"signature": b"s"}], subject=DOCKER.root)
    put(tmp_path, signature, "signature:1")
    reference = registry.reference("team/signed", "signature")
    open_store(tmp_path).push("signature:1", reference, client=quick_client())
    tag = DOCKER.digest.replace(":", "-")
    listed = json.loads(
        run_skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/team/signed:{tag}")
    )
    assert listed["manifests"] == [{**signature.root, "artifactType": OCI_CONFIG}]


def test_a_push_and_a_pull_are_inverse(tmp_path: Path, store: Store, registry: DockerRegistry) -> None:
    for name, image in IMAGES.items():
        reference = registry.reference("team/inverse", name.partition(":")[0])
        store.push(name, reference, client=quick_client())
        other = open_store(tmp_path / "other")
        assert str(other.pull(reference, platform=None, client=quick_client()).digest) == image.digest
    found = read_layout_blobs(tmp_path / "other")
    assert all(image.blobs.items() <= found.items() for image in IMAGES.values())


def test_a_registry_with_passwords_takes_a_push_with_the_right_one_alone(tmp_path: Path, store: Store) -> None:
    with docker_registry(tmp_path / "registry", users=dict([ALICE])) as registry:
        reference = registry.reference("team/app", "1")
        for wrong in (None, {registry.host: Credentials("alice", "other")}):
            with pytest.raises(AuthenticationRefused):
                store.push("oci:1", reference, client=quick_client(credentials=wrong))
        store.push("oci:1", reference, client=quick_client(credentials={registry.host: Credentials(*ALICE)}))
        credentials = ("--src-tls-verify=false", "--src-creds", ":".join(ALICE))
        assert fetched(tmp_path / "fetched", reference, *credentials) == IMAGE.blobs


def test_a_registry_with_tokens_takes_a_push_and_mounts_by_tokens_that_allow_it(tmp_path: Path, store: Store) -> None:
    signer = TokenSigner(tmp_path / "signer")
    write, read = "repository:team/app:pull,push", "repository:team/app:pull"
    other = "repository:team/other:pull,push"
    with TokenServer() as tokens:
        users = dict([ALICE])
        grant_tokens(tokens, signer, [write, other], users=users, refresh_tokens={})
        # The registry asks for the two rights in any order.
        both = [f"{other}&scope={read}", f"repository:team/other:push,pull&scope={read}"]
        grant_tokens(tokens, signer, both, users=users, refresh_tokens={})
        with docker_registry(tmp_path / "registry", tokens=signer.settings(tokens.realm)) as registry:
            client = quick_client(
                credentials={registry.host: Credentials(*ALICE)}, realms={registry.host: [tokens.url]}
            )
            with pytest.raises(AuthenticationRefused):
                store.push("oci:1", registry.reference("team/app", "1"), client=quick_client())
            store.push("oci:1", registry.reference("team/app", "1"), client=client)
            store.push("oci:1", registry.reference("team/other", "1"), client=client)
            mounts = [line for line in registry.read_log().splitlines() if '"POST' in line and "mount=" in line]
            assert len(mounts) >= len(IMAGE.blobs) - 1
            assert sum('HTTP/1.1" 201' in line for line in mounts) == len(IMAGE.blobs) - 1
    with docker_registry(tmp_path / "registry") as registry:
        assert fetched(tmp_path / "one", registry.reference("team/app", "1")) == IMAGE.blobs
        assert fetched(tmp_path / "other", registry.reference("team/other", "1")) == IMAGE.blobs


def test_a_registry_of_this_machine_that_wants_tls_gets_it_and_the_push(tmp_path: Path, store: Store) -> None:
    certificate = make_certificate(tmp_path / "certificate")
    with docker_registry(tmp_path / "registry", certificate=certificate) as registry:
        reference = registry.reference("team/app", "1")
        store.push("index:1", reference, client=quick_client(ca_file=certificate.chain))
        found = fetched(tmp_path / "fetched", reference, "--src-cert-dir", certificate.authorities)
        assert found == INDEX.blobs


# ---- layers that only others may give away

ELSEWHERE = for_others(build_image([{"a": b"elsewhere"}]), "https://layers.example/one")
(LAYER,) = ELSEWHERE.layer_digests


def test_a_layer_of_others_stays_out_of_docker_registry_where_that_allows_its_address(
    tmp_path: Path, registry: DockerRegistry
) -> None:
    put(tmp_path / "store", ELSEWHERE, "elsewhere:1")
    store = open_store(tmp_path / "store")
    with docker_registry(tmp_path / "registry", layers_at="^https://layers\\.example/") as allowing:
        store.push("elsewhere:1", allowing.reference("team/app", "1"), client=quick_client())
        raw = run_skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{allowing.reference('team/app', '1')}")
        assert raw.encode() == ELSEWHERE.blobs[ELSEWHERE.digest]
        with pytest.raises(BlobNotFound):
            open_store(tmp_path / "other").pull(allowing.reference("team/app", "1"), client=quick_client())
    # One that allows no address says that too: the layer would be of no use to it.
    with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN") as refused:
        store.push("elsewhere:1", registry.reference("team/elsewhere", "1"), client=quick_client())
    assert set(refused.value.codes) > {"MANIFEST_BLOB_UNKNOWN"}
    assert not [*registry.storage.rglob(LAYER.partition(":")[2])]


def test_a_layer_of_others_comes_to_a_store_with_its_image_for_there_each_image_is_whole(tmp_path: Path) -> None:
    put(tmp_path / "store", ELSEWHERE, "elsewhere:1")
    store = open_store(tmp_path / "store")
    with running_daemon(tmp_path / "daemon") as daemon:
        for _ in range(2):
            store.push("elsewhere:1", f"{daemon.host}/team/app:1", client=quick_client())
        open_store(tmp_path / "other").pull(f"{daemon.host}/team/app:1", client=quick_client())
    for each in (tmp_path / "other", daemon.data_root):
        assert read_layout_blobs(each) == ELSEWHERE.blobs
