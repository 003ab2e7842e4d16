"""The builders make images that real tools accept, and the peers and the daemon's process start and end as told."""

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.certificates import Certificate, make_certificate
from tests.support.daemon import run_daemon_to_its_end, running_daemon
from tests.support.engines import running_containerd, running_docker
from tests.support.images import (
    DOCKER_MANIFEST_LIST,
    BuiltImage,
    build_image,
    build_index,
    digest_of,
    random_layer,
)
from tests.support.layouts import read_layout_blobs, read_layout_names, write_layout, write_random_layout
from tests.support.peers import PeerFailed, docker_registry, push_image, require_peer, run_skopeo, run_umoci
from tests.support.processes import ProcessFailed
from tests.support.served_trees import is_mounted
from tests.support.stores import bound, require_root
from tests.support.trials import part_of


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


# Images


def test_equal_arguments_build_equal_bytes_and_another_salt_builds_others() -> None:
    assert build_image(salt="a") == build_image(salt="a")
    assert build_image(salt="a").digest != build_image(salt="b").digest
    assert not set(build_image(salt="a").blobs) & set(build_image(salt="b").blobs)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("docker", [False, True])
def test_each_descriptor_of_an_image_tells_the_truth(docker: bool, algorithm: str) -> None:
    image = build_image(docker=docker, algorithm=algorithm, platform="linux/arm/v7")
    manifest = image.document()
    for descriptor in [image.root, manifest["config"], *manifest["layers"]]:
        content = image.blobs[descriptor["digest"]]
        assert digest_of(content, algorithm) == descriptor["digest"]
        assert len(content) == descriptor["size"]
        assert image.media_types[descriptor["digest"]] == descriptor["mediaType"]
        assert ("docker" in descriptor["mediaType"]) == docker
    assert image.platform == {"architecture": "arm", "os": "linux", "variant": "v7"}
    assert len(image.blobs) == 4


def test_the_diff_ids_of_an_image_are_the_digests_of_its_uncompressed_layers() -> None:
    image = build_image()
    config = json.loads(image.blobs[image.config_digest])
    plain = [gzip.decompress(image.blobs[digest]) for digest in image.layer_digests]
    assert config["rootfs"]["diff_ids"] == [digest_of(tar) for tar in plain]
    with tarfile.open(fileobj=io.BytesIO(plain[0])) as tar:
        assert tar.getnames() == ["etc", "etc/hostname", "etc/platform"]


def test_an_index_holds_its_images_their_attestations_and_as_many_levels_as_asked() -> None:
    amd64, arm64 = build_image(), build_image(platform="linux/arm64")
    index = build_index([amd64, arm64], attestations=True, nested=2)
    level = index.document()
    for _ in range(2):
        assert len(level["manifests"]) == 1
        level = index.document(level["manifests"][0]["digest"])
    architectures = [entry["platform"]["architecture"] for entry in level["manifests"]]
    assert architectures == ["amd64", "arm64", "unknown", "unknown"]
    assert level["manifests"][2]["annotations"]["vnd.docker.reference.digest"] == amd64.digest
    assert len(index.document_digests) == 7
    assert set(amd64.blobs) | set(arm64.blobs) < set(index.blobs)
    assert build_index([amd64], docker=True).media_type == DOCKER_MANIFEST_LIST


def test_an_image_can_lack_a_blob_or_hold_wrong_bytes_of_the_right_length() -> None:
    image = build_image()
    layer = image.layer_digests[0]
    assert layer not in image.without(layer).blobs
    wrong = image.corrupted(layer).blobs[layer]
    assert len(wrong) == len(image.blobs[layer])
    assert digest_of(wrong) != layer


def test_a_random_layer_has_exactly_the_size_asked_for_and_is_a_tar() -> None:
    layer = random_layer(3 * 1024 * 1024, salt="x")
    assert len(layer.content) == 3 * 1024 * 1024
    with tarfile.open(fileobj=io.BytesIO(layer.content)) as tar:
        assert [member.size for member in tar] == [3 * 1024 * 1024 - 1536]
    assert layer.diff_id == digest_of(layer.content)
    with pytest.raises(ValueError, match="no tar has 1000 bytes"):
        random_layer(1000)


# Real peers


def test_skopeo_copies_a_layout_into_docker_registry_and_back_with_equal_digests(tmp_path: Path) -> None:
    image = build_image()
    index = build_index([build_image(salt="s"), build_image(salt="s", platform="linux/arm64")], attestations=True)
    write_layout(tmp_path / "here", {"single": image, "multi": index})
    with docker_registry(tmp_path / "registry") as registry:
        for name, built in (("single", image), ("multi", index)):
            remote = f"docker://{registry.reference('org/app', name)}"
            run_skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{tmp_path / 'here'}:{name}", remote)
            run_skopeo("copy", "--all", "--src-tls-verify=false", remote, f"oci:{tmp_path / name}:{name}")
            assert read_layout_names(tmp_path / name)[name]["digest"] == built.digest
            assert read_layout_blobs(tmp_path / name) == built.blobs


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(build_image(docker=True), id="docker-image"),
        pytest.param(build_index([build_image(docker=True)], docker=True), id="docker-list"),
        pytest.param(build_index([build_image()], nested=1), id="nested-index"),
        pytest.param(build_image([random_layer(512 * 1024)], salt="random"), id="plain-layer"),
    ],
)
def test_docker_registry_takes_what_is_pushed_byte_by_byte(tmp_path: Path, image: BuiltImage) -> None:
    with docker_registry(tmp_path / "registry", users={"alice": "secret"}) as registry:
        push_image(registry, "org/app", "1", image, credentials=("alice", "secret"))
        target = f"docker://{registry.reference('org/app', '1')}"
        access = ("--src-tls-verify=false", "--src-creds", "alice:secret")
        raw = run_skopeo("inspect", "--raw", "--tls-verify=false", "--creds", "alice:secret", target)
        assert digest_of(raw.encode()) == image.digest
        if not image.is_index:
            run_skopeo("copy", *access, target, f"dir:{tmp_path / 'copy'}")
            names = {path.name for path in (tmp_path / "copy").iterdir()}
            assert names >= {digest.partition(":")[2] for digest in image.layer_digests}
        with pytest.raises(PeerFailed, match="401"):
            push_image(registry, "org/app", "2", image)


def test_umoci_reads_a_written_layout(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"one": build_image(salt="1"), "two": build_image(salt="2")})
    assert run_umoci("ls", "--layout", tmp_path / "layout").split() == ["one", "two"]
    stat = json.loads(run_umoci("stat", "--json", "--image", f"{tmp_path / 'layout'}:two"))
    layers = [entry["layer"]["digest"] for entry in stat["history"]]
    assert layers == build_image(salt="2").layer_digests


def test_a_layout_of_big_random_layers_is_one_that_umoci_reads(tmp_path: Path) -> None:
    root = write_random_layout(tmp_path / "layout", [1024 * 1024, 2 * 1024 * 1024])
    blobs = read_layout_blobs(tmp_path / "layout")
    assert all(digest_of(content) == digest for digest, content in blobs.items())
    stat = json.loads(run_umoci("stat", "--json", "--image", f"{tmp_path / 'layout'}:latest"))
    assert [entry["layer"]["size"] for entry in stat["history"]] == [1024 * 1024, 2 * 1024 * 1024]
    assert root["digest"] in blobs


def test_docker_registry_asks_for_the_password_that_it_was_given(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"1": build_image()})
    with docker_registry(tmp_path / "registry", users={"alice": "secret"}) as registry:
        copy = ("copy", "--dest-tls-verify=false")
        target = f"docker://{registry.reference('app', '1')}"
        with pytest.raises(PeerFailed, match=r"unauthorized|authentication required"):
            run_skopeo(*copy, f"oci:{tmp_path / 'layout'}:1", target)
        run_skopeo(*copy, "--dest-creds", "alice:secret", f"oci:{tmp_path / 'layout'}:1", target)
        raw = run_skopeo("inspect", "--raw", "--tls-verify=false", "--creds", "alice:secret", target)
        assert digest_of(raw.encode()) == build_image().digest


def test_docker_registry_speaks_tls_with_the_certificate_it_was_given(tmp_path: Path, certificate: Certificate) -> None:
    write_layout(tmp_path / "layout", {"1": build_image()})
    with docker_registry(tmp_path / "registry", certificate=certificate) as registry:
        target = f"docker://{registry.reference('app', '1')}"
        with pytest.raises(PeerFailed, match="x509"):
            run_skopeo("inspect", target)
        run_skopeo("copy", "--dest-cert-dir", certificate.authorities, f"oci:{tmp_path / 'layout'}:1", target)
        raw = run_skopeo("inspect", "--raw", "--cert-dir", certificate.authorities, target)
        assert digest_of(raw.encode()) == build_image().digest


def test_a_registry_keeps_its_data_between_two_runs_and_leaves_no_process(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"1": build_image()})
    with docker_registry(tmp_path / "registry") as first:
        target = f"docker://{first.reference('app', '1')}"
        run_skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path / 'layout'}:1", target)
    assert not Path(f"/proc/{first.pid}").exists()
    with docker_registry(tmp_path / "registry") as second:
        target = f"docker://{second.reference('app', '1')}"
        raw = run_skopeo("inspect", "--raw", "--tls-verify=false", target)
        assert digest_of(raw.encode()) == build_image().digest


def test_a_missing_peer_skips_the_test_and_fails_where_peers_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIBOX_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-peer is not installed"):
        require_peer("no-such-peer")
    monkeypatch.setenv("MINIBOX_REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-peer is not installed"):
        require_peer("no-such-peer")


@pytest.mark.parametrize(("name", "opening"), [("dockerd", running_docker), ("containerd", running_containerd)])
def test_an_engine_that_does_not_start_skips_the_test_and_fails_where_peers_are_required(
    name: str, opening: Callable[[], AbstractContextManager[object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_root()
    for program in (name, "docker", "ctr"):
        (tmp_path / program).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("MINIBOX_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"{name} does not start"), opening():
        pass
    monkeypatch.setenv("MINIBOX_REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match=f"{name} does not start"), opening():
        pass


# Parts of a run


@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_parts_of_what_there_is_are_all_of_it_and_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.delenv("MINIBOX_TEST_PART", raising=False)
    assert list(part_of(range(10))) == list(range(10))
    parts: list[int] = []
    for number in range(1, count + 1):
        monkeypatch.setenv("MINIBOX_TEST_PART", f"{number}/{count}")
        parts += part_of(range(10))
    assert sorted(parts) == list(range(10))


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "1/x"])
def test_a_part_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setenv("MINIBOX_TEST_PART", part)
    with pytest.raises(ValueError, match=r"MINIBOX_TEST_PART|invalid literal"):
        list(part_of(range(10)))


# Mounts


def test_a_mount_is_found_whatever_bytes_its_path_has(tmp_path: Path) -> None:
    with bound(tmp_path, Path(os.fsdecode(os.fsencode(tmp_path / "at") + b"\xff"))) as at:
        assert is_mounted(at)
    assert not is_mounted(at)


# The daemon's process

_STUB = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        token = os.environ.get("MINIBOX_API_TOKEN")
        allowed = token is None or self.headers["Authorization"] == "Bearer " + token
        body = (self.path + "\\nline two\\n").encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
host, _, port = os.environ["MINIBOX_HTTP_ADDR"].partition(":")
if os.environ.get("REFUSE"):
    sys.exit("refusing to start")
if os.environ.get("DEAF"):
    import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def stub_command(tmp_path: Path) -> tuple[str, str]:
    script = tmp_path / "stub.py"
    script.write_text(_STUB)
    return sys.executable, str(script)


def test_a_daemon_is_asked_with_its_token_and_ended_by_sigterm(tmp_path: Path, stub_command: tuple[str, str]) -> None:
    with running_daemon(tmp_path / "daemon", token="t" * 22, command=stub_command) as daemon:
        reply = daemon.get("/images", name="a/b:1")
        assert (reply.status, reply.text.splitlines()[0]) == (200, "/images?name=a%2Fb%3A1")
        assert daemon.request("GET", "/images", with_token=False).status == 401
        with daemon.stream("GET", "/x", [("a", "1"), ("a", "2")]) as stream:
            assert list(stream) == ["/x?a=1&a=2", "line two"]
    assert daemon.obeyed_sigterm
    assert daemon.exit_status == -15
    assert "GET /ping" in daemon.read_log()


def test_a_daemon_that_ends_at_once_is_an_error_that_tells_why(tmp_path: Path, stub_command: tuple[str, str]) -> None:
    refuse = {"REFUSE": "1"}
    daemon = running_daemon(tmp_path / "daemon", environment=refuse, command=stub_command)
    with pytest.raises(ProcessFailed, match="ended with status 1:\nrefusing to start"):
        daemon.__enter__()
    ended = run_daemon_to_its_end(tmp_path / "other", environment=refuse, command=stub_command)
    assert ended == (1, "refusing to start\n")


def test_a_daemon_that_ignores_sigterm_is_killed_and_fails_the_test(
    tmp_path: Path, stub_command: tuple[str, str]
) -> None:
    def runs() -> None:
        deaf = {"DEAF": "1"}
        with running_daemon(tmp_path / "daemon", environment=deaf, command=stub_command, end_seconds=0.3) as daemon:
            pids.append(daemon.process.pid)

    pids: list[int] = []
    with pytest.raises(ProcessFailed, match=r"did not end within 0\.3 s of SIGTERM"):
        runs()
    assert not Path(f"/proc/{pids[0]}").exists()
