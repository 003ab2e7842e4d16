"""The clients that people have push to the daemon and pull from it: what one of them sends, another one receives."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from minibox_store import Credentials, ManifestUnknown, Store, catalog, copy, delete, referrers, tags
from tests.support.answers import basic_credentials
from tests.support.builders import Builder, opening_builder
from tests.support.daemon import Daemon, running_daemon
from tests.support.distribution import DistributionClient
from tests.support.engines import Containerd, running_containerd, running_docker
from tests.support.images import build_artifact, build_image, build_index, digest_of, random_layer
from tests.support.invariants import check_invariants, stored
from tests.support.layouts import read_layout_blobs, write_layout
from tests.support.oras_client import run_oras
from tests.support.peers import PeerFailed, docker_registry, run_skopeo
from tests.support.pushes import HOUR_SECONDS, make_old, pins_in
from tests.support.registries import quick_client

TOKEN = "a-token-of-more-than-22-characters"
IMAGE = build_image(salt="clients")
INDEX = build_index([IMAGE, build_image(platform="linux/arm64", salt="clients")])
DOCKER_IMAGE = build_image(salt="docker", docker=True)
LARGE = build_image([random_layer(5 * 1024 * 1024), {"etc/motd": b"hello\n"}], salt="large")
SOURCES = {"image:1": IMAGE, "index:1": INDEX, "docker:1": DOCKER_IMAGE, "large:1": LARGE}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that skopeo reads images from."""
    folder = tmp_path_factory.mktemp("source") / "layout"
    write_layout(folder, SOURCES)
    return folder


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["without a token", "with a token"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), token=request.param) as running:
        yield running
        root = running.data_root
    check_invariants(root, leftovers=True)  # what was pushed, and no manifest needs, is kept for a day
    # Whatever these clients ask for, send and mount, nothing is left that is kept for a day but what lacks a manifest.
    left = {path.read_text().partition("\n")[0] for path in pins_in(root) if path.suffix != ".asked"}
    assert left <= {"kept/app"}


# What does not depend on who may ask is tried with one of them.
ONCE = pytest.mark.parametrize("daemon", [TOKEN], indirect=True, ids=["with a token"])


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with running_containerd() as running:
        yield running


@pytest.fixture
def builder() -> Iterator[Builder]:
    with opening_builder("vfs") as opened:
        yield opened


def credentials(daemon: Daemon, option: str) -> list[str]:
    return [option, f"anybody:{daemon.token}"] if daemon.token else []


def asking(daemon: Daemon) -> DistributionClient:
    headers = {"Authorization": basic_credentials("anybody", daemon.token)} if daemon.token else {}
    return DistributionClient(host=daemon.host, headers=headers)


def digest_at(daemon: Daemon, name: str) -> str:
    """Return the digest of the bytes that a tag stands for."""
    repository, _, tag = name.rpartition(":")
    answer = asking(daemon).get(f"/v2/{repository}/manifests/{tag}")
    assert answer.status == 200, answer
    return digest_of(answer.body)


def skopeo_push(daemon: Daemon, layout: Path, source: str, name: str, *options: str) -> None:
    target = f"docker://{daemon.host}/{name}"
    flags = ["--dest-tls-verify=false", *credentials(daemon, "--dest-creds"), *options]
    run_skopeo("copy", *flags, f"oci:{layout}:{source}", target)


def skopeo_pull(daemon: Daemon, name: str, layout: Path, *options: str) -> dict[str, bytes]:
    """Pull into a folder of its own, and return every blob that has come."""
    source = f"docker://{daemon.host}/{name}"
    flags = ["--src-tls-verify=false", "--preserve-digests", *credentials(daemon, "--src-creds"), *options]
    run_skopeo("copy", *flags, source, f"oci:{layout}:pulled")
    return dict(read_layout_blobs(layout))


def skopeo_asks(daemon: Daemon, command: str, *arguments: str) -> str:
    return run_skopeo(command, "--tls-verify=false", *credentials(daemon, "--creds"), *arguments)


@ONCE
def test_skopeo_pushes_each_sort_of_image_and_pulls_it_back(daemon: Daemon, layout: Path, tmp_path: Path) -> None:
    for source, image in SOURCES.items():
        name = f"skopeo/{source}"
        options = ["--all"] if image.is_index else []
        if image is DOCKER_IMAGE:  # a folder of an OCI layout would turn its types into others
            asking(daemon).push_image("skopeo/docker", image, "1")
        else:
            skopeo_push(daemon, layout, source, name, "--preserve-digests", *options)
        assert digest_at(daemon, name) == image.digest
        if image is not DOCKER_IMAGE:
            assert skopeo_pull(daemon, name, tmp_path / source.partition(":")[0], *options) == image.blobs
    raw = skopeo_asks(daemon, "inspect", "--raw", f"docker://{daemon.host}/skopeo/docker:1")
    assert json.loads(raw) == DOCKER_IMAGE.document()


def test_skopeo_copies_between_repositories_lists_inspects_and_deletes(daemon: Daemon, layout: Path) -> None:
    skopeo_push(daemon, layout, "index:1", "origin/app:1", "--all")
    both = [*credentials(daemon, "--src-creds"), *credentials(daemon, "--dest-creds")]
    for tag in ("1", "2"):
        run_skopeo(
            *("copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", *both),
            *(f"docker://{daemon.host}/origin/app:1", f"docker://{daemon.host}/copied/app:{tag}"),
        )
    assert digest_at(daemon, "copied/app:2") == INDEX.digest
    told = json.loads(skopeo_asks(daemon, "list-tags", f"docker://{daemon.host}/copied/app"))
    assert sorted(told["Tags"]) == ["1", "2"]
    inspected = json.loads(skopeo_asks(daemon, "inspect", f"docker://{daemon.host}/copied/app:1"))
    assert inspected["Layers"] == IMAGE.layer_digests
    skopeo_asks(daemon, "delete", f"docker://{daemon.host}/copied/app:1")
    with pytest.raises(PeerFailed, match=r"(?i)manifest unknown|not found|unknown"):
        skopeo_asks(daemon, "inspect", f"docker://{daemon.host}/copied/app:1")
    assert digest_at(daemon, "origin/app:1") == INDEX.digest


def test_podman_pushes_and_pulls_with_storage_of_its_own(
    daemon: Daemon, layout: Path, builder: Builder, tmp_path: Path
) -> None:
    skopeo_push(daemon, layout, "image:1", "podman/app:1")
    options = ["--tls-verify=false", *credentials(daemon, "--creds")]
    reference = f"{daemon.host}/podman/app:1"
    assert builder.pull(reference, *options) == IMAGE.digest
    config = builder.configs()[reference]
    pushed = builder.push(reference, f"{daemon.host}/podman/pushed:1", *options)
    assert digest_at(daemon, "podman/pushed:1") == pushed
    blobs = skopeo_pull(daemon, "podman/pushed:1", tmp_path / "pulled")
    assert config in {digest_of(content) for content in blobs.values()}
    builder.remove(reference)
    assert builder.pull(f"{daemon.host}/podman/pushed:1", *options) == pushed


@ONCE
def test_podman_pushes_a_list_of_platforms_that_it_has_made(
    daemon: Daemon, layout: Path, builder: Builder, tmp_path: Path
) -> None:
    skopeo_push(daemon, layout, "index:1", "podman/origin:1", "--all")
    options = ["--tls-verify=false", *credentials(daemon, "--creds")]
    pushed = builder.push_list(f"{daemon.host}/podman/origin:1", f"{daemon.host}/podman/list:1", *options)
    assert digest_at(daemon, "podman/list:1") == pushed
    blobs = skopeo_pull(daemon, "podman/list:1", tmp_path / "pulled", "--all")
    assert set(blobs) - {pushed} == set(INDEX.blobs) - {INDEX.digest}


@ONCE
def test_skopeo_recompresses_converts_and_synchronises(daemon: Daemon, layout: Path, tmp_path: Path) -> None:
    skopeo_push(daemon, layout, "large:1", "changed/zstd:1", "--dest-compress-format=zstd")
    skopeo_push(daemon, layout, "image:1", "changed/docker:1", "--format=v2s2")
    for name, kind in (("zstd", "application/vnd.oci.image"), ("docker", "application/vnd.docker.distribution")):
        answer = asking(daemon).get(f"/v2/changed/{name}/manifests/1")
        assert answer.headers["content-type"].startswith(kind)
        layers = answer.json()["layers"]
        assert all(asking(daemon).head(f"/v2/changed/{name}/blobs/{each['digest']}").status == 200 for each in layers)
    both = [*credentials(daemon, "--src-creds"), *credentials(daemon, "--dest-creds")]
    run_skopeo(
        *("sync", "--all", "--src=docker", "--dest=docker", "--src-tls-verify=false", "--dest-tls-verify=false"),
        *(*both, f"{daemon.host}/changed/docker", f"{daemon.host}/synchronised"),
    )
    assert digest_at(daemon, "synchronised/docker:1") == digest_at(daemon, "changed/docker:1")


def test_buildah_pushes_what_it_has_built_and_podman_pulls_it(daemon: Daemon, builder: Builder) -> None:
    options = ["--tls-verify=false", *credentials(daemon, "--creds")]
    with builder.container() as (container, mounted):
        (mounted / "hello").write_text("built here\n")
        builder.commit(container, "localhost/built:1")
    pushed = builder.push("localhost/built:1", f"{daemon.host}/buildah/app:1", *options, program="buildah")
    assert digest_at(daemon, "buildah/app:1") == pushed
    layers = builder.layers("localhost/built:1")
    builder.remove("localhost/built:1")
    assert builder.pull(f"{daemon.host}/buildah/app:1", *options) == pushed
    assert builder.layers(f"{daemon.host}/buildah/app:1") == layers


def test_containerd_pulls_an_index_and_pushes_it_elsewhere(
    daemon: Daemon, layout: Path, containerd: Containerd, tmp_path: Path
) -> None:
    skopeo_push(daemon, layout, "index:1", "containerd/app:1", "--all")
    reference, pushed = f"{daemon.host}/containerd/app:1", f"{daemon.host}/containerd/pushed:1"
    user = credentials(daemon, "--user")
    containerd.pull(reference, "--all-platforms", *user)
    assert containerd.roots()[reference] == INDEX.digest
    assert containerd.digests() >= set(INDEX.blobs)
    containerd.push(pushed, reference, *user)
    assert digest_at(daemon, "containerd/pushed:1") == INDEX.digest
    assert skopeo_pull(daemon, "containerd/pushed:1", tmp_path / "pulled", "--all") == INDEX.blobs
    containerd.remove(reference)


def test_docker_pushes_and_pulls(tmp_path: Path, layout: Path) -> None:
    with ExitStack() as stack:
        docker = stack.enter_context(running_docker())
        daemon = stack.enter_context(running_daemon(tmp_path / "daemon", token=TOKEN))
        skopeo_push(daemon, layout, "image:1", "docker/app:1")
        docker.run("login", "--username", "anybody", "--password", TOKEN, daemon.host)
        reference, pushed = f"{daemon.host}/docker/app:1", f"{daemon.host}/docker/pushed:1"
        docker.run("pull", "--quiet", reference)
        config = docker.configs()[reference]
        assert config == IMAGE.config_digest
        docker.tag(reference, pushed)
        docker.run("push", "--quiet", pushed)
        digest = digest_at(daemon, "docker/pushed:1")
        docker.run("rmi", "--force", reference, pushed)
        docker.run("pull", "--quiet", f"{daemon.host}/docker/pushed@{digest}")
        assert docker.run("image", "inspect", "--format", "{{.Id}}", f"{daemon.host}/docker/pushed@{digest}") == (
            f"{config}\n"
        )
        client = asking(daemon)
        for name in ("docker/app", "docker/pushed"):
            assert client.delete(f"/v2/{name}/manifests/{digest_at(daemon, f'{name}:1')}").status == 202
        # It asks for each blob that it has just pushed or mounted, and so that is kept for a while.
        make_old(*pins_in(daemon.data_root), seconds=HOUR_SECONDS + 60)
        assert daemon.post("/system/prune").status == 200
        assert (stored(daemon.data_root), pins_in(daemon.data_root)) == (set(), [])


def test_oras_pushes_attaches_and_pulls_artifacts(daemon: Daemon, tmp_path: Path) -> None:
    folder, home = tmp_path / "files", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    contents = {"a.txt": b"first\n", "b.bin": bytes(range(256)) * 20}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for step in ("push", "chunks"):
        run_oras(home, step, f"{daemon.host}/oras/{step}:1", folder, daemon.token)
        pulled = tmp_path / step
        pulled.mkdir()
        assert run_oras(home, "pull", f"{daemon.host}/oras/{step}:1", pulled, daemon.token) == list(contents)
        assert {name: (pulled / name).read_bytes() for name in contents} == contents
    client = asking(daemon)
    subject = client.get("/v2/oras/push/manifests/1")
    digest = digest_of(subject.body)
    described = {"mediaType": subject.headers["content-type"], "digest": digest, "size": len(subject.body)}
    run_oras(home, "attach", f"{daemon.host}/oras/push:attached", folder, daemon.token, json.dumps(described))
    attached = digest_at(daemon, "oras/push:attached")
    found = client.referrers("oras/push", digest).json()["manifests"]
    assert [each["digest"] for each in found] == [attached]


@ONCE
def test_this_library_pushes_copies_lists_pulls_and_deletes(daemon: Daemon, layout: Path, tmp_path: Path) -> None:
    known = {} if daemon.token is None else {daemon.host: Credentials(username="anybody", password=daemon.token)}
    client = quick_client(credentials=known)
    place = f"{daemon.host}/library/app"
    source = Store(layout)
    source.push("index:1", f"{place}:1", client=client)
    source.push("large:1", f"{place}:large", client=client, chunk_bytes=1024 * 1024)
    copied = copy(f"{place}:1", f"{daemon.host}/library/copied:2", client=client)
    assert str(copied.digest) == INDEX.digest
    assert tags(place, client=client) == ("1", "large")
    assert {"library/app", "library/copied"} <= set(catalog(daemon.host, client=client))
    artifact = build_artifact(IMAGE.root)
    asking(daemon).push_image("library/app", artifact)
    [found] = referrers(f"{place}@{IMAGE.digest}", client=client)
    assert str(found.descriptor.digest) == artifact.digest
    store = Store(tmp_path / "store", durability="none")
    assert str(store.pull(f"{place}:1", client=client, platform=None, referrers=True).digest) == INDEX.digest
    assert read_layout_blobs(Path(store.root)) == {**INDEX.blobs, **artifact.blobs}
    assert str(store.pull(f"{place}:large", client=client).digest) == LARGE.digest
    delete(f"{daemon.host}/library/copied:2", client=client)
    with pytest.raises(ManifestUnknown):
        store.pull(f"{daemon.host}/library/copied:2", client=client)


def test_docker_registry_mirrors_the_daemon(tmp_path: Path, layout: Path) -> None:
    with running_daemon(tmp_path / "daemon") as daemon:
        skopeo_push(daemon, layout, "index:1", "mirrored/app:1", "--all")
        with docker_registry(tmp_path / "mirror", mirror_of=f"http://{daemon.host}") as mirror:
            source = f"docker://{mirror.host}/mirrored/app:1"
            run_skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path / 'pulled'}:1")
    assert read_layout_blobs(tmp_path / "pulled") == INDEX.blobs


@ONCE
def test_what_was_pushed_is_listed_and_a_prune_takes_nothing_of_it(
    daemon: Daemon, layout: Path, tmp_path: Path
) -> None:
    skopeo_push(daemon, layout, "index:1", "kept/app:1", "--all")
    client = asking(daemon)
    untagged = build_image(salt="by its digest alone")
    client.push_image("kept/app", untagged)
    loose = client.push_blob("kept/app", b"a blob that no manifest needs yet")
    listed = {each["name"]: each["digest"] for each in daemon.get("/images").json()}
    assert listed["kept/app:1"] == INDEX.digest
    assert daemon.post("/system/prune").status == 200
    assert skopeo_pull(daemon, "kept/app:1", tmp_path / "pulled", "--all") == INDEX.blobs
    assert client.get(f"/v2/kept/app/manifests/{untagged.digest}").body == untagged.blobs[untagged.digest]
    for digest in (*untagged.layer_digests, loose):
        assert client.get(f"/v2/kept/app/blobs/{digest}").status == 200


@ONCE
def test_what_was_deleted_is_taken_by_a_prune_and_nothing_else_is(daemon: Daemon, layout: Path) -> None:
    image = build_image(salt="deleted")
    client = asking(daemon)
    client.push_image("gone/app", image, "1")
    assert client.delete(f"/v2/gone/app/manifests/{image.digest}").status == 202
    before = {str(each.name) for each in Store(daemon.data_root).images()}
    daemon.post("/system/prune")
    assert {str(each.name) for each in Store(daemon.data_root).images()} == before
    left = read_layout_blobs(daemon.data_root)
    assert image.digest not in left
    assert [each for each in Store(daemon.data_root).verify() if each.kind != "unreferenced"] == []


@pytest.mark.parametrize("how", ["no token", "a wrong token"])
def test_nobody_pushes_without_the_token(tmp_path: Path, layout: Path, how: str) -> None:
    with running_daemon(tmp_path / "daemon", token=TOKEN) as daemon:
        wrong = [] if how == "no token" else ["--dest-creds", "anybody:another-token-of-22-characters"]
        with pytest.raises(PeerFailed, match=r"(?i)unauthorized|authentication required|401"):
            run_skopeo(
                *("copy", "--dest-tls-verify=false", *wrong, f"oci:{layout}:image:1"),
                f"docker://{daemon.host}/team/app:1",
            )
        assert daemon.get("/images").json() == []


# ---- restarts


def test_an_upload_survives_a_daemon_that_is_killed(tmp_path: Path) -> None:
    content = hashlib.sha256(b"killed").digest() * 5000
    with running_daemon(tmp_path / "daemon") as daemon:
        client = DistributionClient(host=daemon.host)
        location = client.target_of(client.patch(client.start_upload("team/app"), content[:100_000], 0))
        blob = client.push_blob("team/app", b"acknowledged")
        daemon.process.kill()
        daemon.process.wait(10)
    with running_daemon(tmp_path / "daemon") as daemon:
        client = DistributionClient(host=daemon.host)
        assert client.get(f"/v2/team/app/blobs/{blob}").body == b"acknowledged"
        status = client.get(location)
        assert (status.status, status.headers["range"]) == (204, "0-99999")
        answer = client.close_upload(location, digest_of(content), content[100_000:], Content_Range="100000-159999")
        assert answer.status == 201, answer
        assert client.get(client.target_of(answer)).body == content


def test_what_was_pushed_before_a_restart_is_pulled_after_it(tmp_path: Path, layout: Path) -> None:
    artifact_of = build_image(salt="by its digest alone")
    with running_daemon(tmp_path / "daemon") as daemon:
        skopeo_push(daemon, layout, "index:1", "team/app:1", "--all")
        DistributionClient(host=daemon.host).push_image("team/app", artifact_of)
    with running_daemon(tmp_path / "daemon") as daemon:
        assert skopeo_pull(daemon, "team/app:1", tmp_path / "pulled", "--all") == INDEX.blobs
        answer = DistributionClient(host=daemon.host).get(f"/v2/team/app/manifests/{artifact_of.digest}")
        assert answer.body == artifact_of.blobs[artifact_of.digest]
        root = daemon.data_root
    check_invariants(root, leftovers=True)
