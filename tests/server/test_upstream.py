"""The daemon before another registry: what it lacks comes from there, is verified and kept, and is asked for once."""

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
from starlette.testclient import TestClient

from minibox_server.app import create_app
from minibox_server.settings import Settings, SettingsError, parse_settings
from minibox_server.transfers import ThreadTransfers, Transfer
from minibox_store import Cancellation, EventListener, Store
from tests.server.clients import BASE_URL, client_of, code_of
from tests.support.answers import Answer, Request, basic_credentials
from tests.support.builders import opening_builder
from tests.support.daemon import Daemon, running_daemon
from tests.support.distribution import ABSENT, DistributionClient
from tests.support.images import build_image, build_index, digest_of
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.layouts import blob_path, read_layout_blobs, write_layout
from tests.support.os_proxy import replaced_os
from tests.support.peers import docker_registry, push_image, run_skopeo
from tests.support.pushes import pins_in
from tests.support.scripted_registry import (
    ScriptedRegistry,
    blob_headers,
    blob_target,
    manifest_target,
    serve_image,
)

TOKEN = "a-token-of-more-than-22-characters"
AMD64, ARM64 = build_image(salt="upstream"), build_image(platform="linux/arm64", salt="upstream")
INDEX = build_index([ARM64, AMD64])
OWN = build_image(salt="the daemon's own")
OTHER = build_image(salt="another")


@pytest.fixture
def upstream() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The daemon's store, with an image of its own."""
    write_layout(tmp_path / "data", {"own/app:1": OWN})
    yield tmp_path / "data"
    check_invariants(tmp_path / "data", absent_manifests=True, history_behind=True)


# ---- with the clients that people have


def test_skopeo_and_podman_pull_through_the_daemon_and_from_it_once_the_upstream_is_gone(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "upstream") as upstream:
        push_image(upstream, "team/app", "1", INDEX)
        environment = {"MINIBOX_UPSTREAM": upstream.host}
        with running_daemon(tmp_path / "daemon", environment=environment) as daemon, opening_builder("vfs") as builder:
            name = f"{upstream.host}/team/app:1"
            # The index is fetched for the choice, and of what it names this machine's platform alone.
            builder.pull(f"{daemon.host}/team/app:1", "--tls-verify=false", "--arch=amd64")
            assert builder.configs()[f"{daemon.host}/team/app:1"] == AMD64.config_digest
            assert stored(daemon.data_root) == {INDEX.digest, *AMD64.blobs}
            [listed] = daemon.get("/images").json()
            assert (listed["name"], listed["digest"]) == (name, INDEX.digest)
            source = f"docker://{daemon.host}/team/app:1"
            run_skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path / 'first'}:1")
            assert read_layout_blobs(tmp_path / "first") == INDEX.blobs
            assert daemon.post("/system/prune").status == 200
            asked = upstream.read_log().count('"GET /v2/team/app/')
            run_skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path / 'second'}:1")
            assert upstream.read_log().count('"GET /v2/team/app/') == asked
    with running_daemon(tmp_path / "daemon", environment=environment) as daemon:
        source = f"docker://{daemon.host}/team/app:1"
        run_skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path / 'third'}:1")
        assert read_layout_blobs(tmp_path / "third") == INDEX.blobs
        assert read_names(daemon.data_root) == {name: INDEX.digest}
        missing = DistributionClient(host=daemon.host).get("/v2/team/app/manifests/2")
        assert (missing.status, missing.json()["errors"][0]["code"]) == (502, "UNKNOWN")
        assert "\n" not in missing.json()["errors"][0]["message"]
    check_invariants(daemon.data_root)


# ---- what is asked for there, and what is kept


def test_a_single_manifest_comes_whole_and_is_named_after_the_upstream(root: Path, upstream: ScriptedRegistry) -> None:
    serve_image(upstream, "team/app", "1", AMD64, at_most=1)
    with client_of(root, upstream=upstream.host) as client:
        head = client.head("/v2/team/app/manifests/1")
        assert head.status_code == 200
        assert head.headers["docker-content-digest"] == AMD64.digest
        assert head.headers["content-length"] == str(len(AMD64.blobs[AMD64.digest]))
        assert client.get("/v2/team/app/manifests/1").content == AMD64.blobs[AMD64.digest]
        for digest, content in AMD64.blobs.items():
            assert client.get(f"/v2/team/app/blobs/{digest}").content == content
        assert client.get("/v2/team/app/tags/list").json()["tags"] == ["1"]
    assert read_names(root) == {"own/app:1": OWN.digest, f"{upstream.host}/team/app:1": AMD64.digest}
    assert {request.method for request in upstream.requests} == {"GET"}


def test_an_index_comes_alone_and_a_manifest_of_it_when_it_is_asked_for(root: Path, upstream: ScriptedRegistry) -> None:
    serve_image(upstream, "team/app", "1", INDEX, at_most=1)
    with client_of(root, upstream=upstream.host) as client:
        assert client.get("/v2/team/app/manifests/1").content == INDEX.blobs[INDEX.digest]
        assert stored(root) == {*OWN.blobs, INDEX.digest}
        layer = f"/v2/team/app/blobs/{ARM64.layer_digests[0]}"
        assert code_of(client.get(layer)) == "BLOB_UNKNOWN"  # nobody has named it yet
        assert client.head(f"/v2/team/app/manifests/{ARM64.digest}").status_code == 200
        assert client.get(layer).content == ARM64.blobs[ARM64.layer_digests[0]]
        assert client.get(f"/v2/team/app/manifests/{INDEX.digest}").status_code == 200
    assert stored(root) == {*OWN.blobs, INDEX.digest, *ARM64.blobs}


def test_a_digest_that_nothing_here_names_comes_under_a_name_of_its_own(root: Path, upstream: ScriptedRegistry) -> None:
    serve_image(upstream, "team/app", "1", INDEX, at_most=1)
    with client_of(root, upstream=upstream.host) as client:
        answer = client.get(f"/v2/team/app/manifests/{AMD64.digest}")
        assert answer.content == AMD64.blobs[AMD64.digest]
        assert client.get(f"/v2/team/app/blobs/{AMD64.config_digest}").status_code == 200
    assert read_names(root)[f"{upstream.host}/team/app@{AMD64.digest}"] == AMD64.digest


def test_what_is_here_is_not_asked_for(root: Path, upstream: ScriptedRegistry) -> None:
    with client_of(root, upstream=upstream.host) as client:
        for target in ("manifests/1", f"manifests/{OWN.digest}", f"blobs/{OWN.config_digest}", "tags/list"):
            assert client.get(f"/v2/own/app/{target}").status_code == 200
        assert code_of(client.get(f"/v2/own/app/blobs/{ABSENT}")) == "BLOB_UNKNOWN"
    assert upstream.requests == []


def test_a_blob_that_is_asked_for_is_pinned_for_nobody(root: Path, upstream: ScriptedRegistry) -> None:
    with client_of(root, upstream=upstream.host) as client:
        assert client.head(f"/v2/own/app/blobs/{OWN.config_digest}").status_code == 200
    assert pins_in(root) == []


def test_what_has_no_form_is_not_asked_for(root: Path, upstream: ScriptedRegistry) -> None:
    with client_of(root, upstream=upstream.host) as client:
        for target, status in (
            ("App/manifests/1", 400),
            ("app/manifests/sha256:abc", 400),
            ("app/manifests/-tag", 404),
            ("app/manifests/1@sha256", 404),
            ("a%0d%0ab/manifests/1", 400),
            ("..%2f..%2fetc/manifests/1", 400),
        ):
            assert client.get(f"/v2/{target}").status_code == status, target
    assert upstream.requests == []


def test_a_blob_that_was_lost_comes_again(root: Path, upstream: ScriptedRegistry) -> None:
    serve_image(upstream, "team/app", "1", AMD64)
    with client_of(root, upstream=upstream.host) as client:
        client.get("/v2/team/app/manifests/1")
        lost = AMD64.layer_digests[1]
        blob_path(root, lost).unlink()
        assert client.get(f"/v2/team/app/blobs/{lost}").content == AMD64.blobs[lost]


def test_no_image_is_read_again_for_a_blob_that_none_names(tmp_path: Path, upstream: ScriptedRegistry) -> None:
    names = {f"{upstream.host}/team/app:{number}": build_image(salt=str(number)) for number in range(5)}
    write_layout(tmp_path / "data", names)
    with client_of(tmp_path / "data", upstream=upstream.host) as client:
        assert client.head(f"/v2/team/app/blobs/{ABSENT}").status_code == 404
        with replaced_os() as system:
            assert client.head(f"/v2/team/app/blobs/{ABSENT}").status_code == 404
    assert system.count("open", path="/blobs/") == 0
    assert upstream.requests == []


@attrs.frozen
class CountedTransfers:
    """Transfers in the thread that asks for them, each of which is noted."""

    store: Store
    begun: list[Transfer] = attrs.field(factory=list)

    def run(self, transfer: Transfer, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        self.begun.append(transfer)
        return ThreadTransfers(self.store).run(transfer, on_event, cancellation)


def test_however_many_images_a_repository_has_one_transfer_looks_for_who_names_a_manifest(
    tmp_path: Path, upstream: ScriptedRegistry
) -> None:
    names = {f"{upstream.host}/team/app:{number}": build_image(salt=str(number)) for number in range(5)}
    write_layout(tmp_path / "data", names)
    serve_image(upstream, "team/app", "z", INDEX, at_most=1)
    transfers = CountedTransfers(Store(tmp_path / "data"))
    settings = Settings(data_root=str(tmp_path / "data"), upstream=upstream.host)
    client = TestClient(create_app(settings, store=transfers.store, transfers=transfers), base_url=BASE_URL)
    for name in ("z", AMD64.digest):
        transfers.begun.clear()
        assert client.get(f"/v2/team/app/manifests/{name}").status_code == 200
        assert len(transfers.begun) == 1


def test_what_the_upstream_has_not_is_not_found(root: Path, upstream: ScriptedRegistry) -> None:
    for name in ("2", ABSENT):
        body = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no"}]}
        upstream.allow("GET", manifest_target("team/app", name), Answer(status=404, body=json.dumps(body).encode()))
    with client_of(root, upstream=upstream.host) as client:
        for name in ("2", ABSENT):
            answer = client.get(f"/v2/team/app/manifests/{name}")
            assert (answer.status_code, code_of(answer)) == (404, "NAME_UNKNOWN")
    assert read_names(root) == {"own/app:1": OWN.digest}


@pytest.mark.parametrize(("status", "told"), [(401, 403), (403, 403), (500, 502), (418, 502)])
def test_what_the_upstream_refuses_is_told_and_nothing_is_kept(
    root: Path, upstream: ScriptedRegistry, status: int, told: int
) -> None:
    upstream.allow("GET", manifest_target("team/app", "1"), Answer(status=status, body=b"{}"))
    with client_of(root, upstream=upstream.host) as client:
        assert client.get("/v2/team/app/manifests/1").status_code == told
        assert client.get("/v2/own/app/manifests/1").status_code == 200
    assert read_names(root) == {"own/app:1": OWN.digest}


def test_without_an_upstream_what_is_not_here_is_not_found(root: Path) -> None:
    with client_of(root) as client:
        assert code_of(client.get("/v2/team/app/manifests/1")) == "NAME_UNKNOWN"


# ---- what is not trusted


@pytest.mark.parametrize("wrong", ["manifest", "config", "layer"])
def test_bytes_of_another_digest_are_never_answered(root: Path, upstream: ScriptedRegistry, wrong: str) -> None:
    digest = {"manifest": AMD64.digest, "config": AMD64.config_digest, "layer": AMD64.layer_digests[1]}[wrong]
    serve_image(upstream, "team/app", "1", AMD64.corrupted(digest))
    with client_of(root, upstream=upstream.host) as client:
        assert client.get("/v2/team/app/manifests/1").status_code == 502
        assert client.get(f"/v2/team/app/blobs/{digest}").status_code == 404
    assert digest not in stored(root)
    assert read_names(root) == {"own/app:1": OWN.digest}


def test_the_upstream_never_sees_what_the_client_proves_itself_with(root: Path, upstream: ScriptedRegistry) -> None:
    serve_image(upstream, "team/app", "1", INDEX)
    headers = {"Authorization": basic_credentials("anybody", TOKEN), "Cookie": "session=secret"}
    with client_of(root, upstream=upstream.host, token=TOKEN, headers=headers) as client:
        for name in ("1", AMD64.digest):
            assert client.get(f"/v2/team/app/manifests/{name}").status_code == 200
    assert upstream.requests
    for request in upstream.requests:
        assert request.header("Authorization") is None
        assert request.header("Cookie") is None
        assert TOKEN not in repr(request)


def test_the_upstream_sees_the_credentials_that_the_machine_has_for_it(
    root: Path, tmp_path: Path, upstream: ScriptedRegistry
) -> None:
    machine = basic_credentials("machine", "its-password")
    challenge = 'Basic realm="upstream"'
    serve_image(upstream, "team/app", "1", AMD64, authorization=machine, challenge=challenge)
    kept = base64.b64encode(b"machine:its-password").decode()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {upstream.host: {"auth": kept}}}))
    environment = {"MINIBOX_UPSTREAM": upstream.host, "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
    with running_daemon(tmp_path / "daemon", data_root=root, token=TOKEN, environment=environment) as daemon:
        client = DistributionClient(host=daemon.host, headers={"Authorization": basic_credentials("x", TOKEN)})
        assert client.get("/v2/team/app/manifests/1").body == AMD64.blobs[AMD64.digest]
        refused = DistributionClient(host=daemon.host).get("/v2/team/app/manifests/2")
        assert refused.status == 401
    assert {request.header("Authorization") for request in upstream.requests} <= {None, machine}


def test_a_registry_that_the_rules_block_is_not_asked(root: Path, tmp_path: Path, upstream: ScriptedRegistry) -> None:
    rules = tmp_path / "registries.toml"
    rules.write_text(f'[[registry]]\nprefix = "{upstream.host}"\nblocked = true\n')
    environment = {"MINIBOX_UPSTREAM": upstream.host, "MINIBOX_REGISTRIES": str(rules)}
    with running_daemon(tmp_path / "daemon", data_root=root, environment=environment) as daemon:
        assert DistributionClient(host=daemon.host).get("/v2/team/app/manifests/1").status == 403
    assert upstream.requests == []


# ---- at once


@pytest.fixture
def running(root: Path, tmp_path: Path, upstream: ScriptedRegistry) -> Iterator[Daemon]:
    environment = {"MINIBOX_UPSTREAM": upstream.host}
    with running_daemon(tmp_path / "daemon", data_root=root, environment=environment) as daemon:
        yield daemon


def test_clients_at_once_fetch_once(running: Daemon, upstream: ScriptedRegistry) -> None:
    serve_image(upstream, "team/app", "1", INDEX, at_most=1)
    client = DistributionClient(host=running.host)
    for name in ("1", AMD64.digest, ARM64.digest):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda name: client.get(f"/v2/team/app/manifests/{name}"), [name] * 8))
        digest = INDEX.digest if name == "1" else name
        assert {(each.status, digest_of(each.body)) for each in answers} == {(200, digest)}


def test_a_client_that_goes_ends_no_fetch_that_another_one_waits_for(
    running: Daemon, upstream: ScriptedRegistry
) -> None:
    held, arrived = threading.Event(), threading.Event()
    serve_image(upstream, "team/app", "1", AMD64, at_most=1)
    layer = AMD64.layer_digests[1]

    def slowly(_: Request) -> Answer:
        arrived.set()
        assert held.wait(20)
        return Answer(headers=blob_headers(layer), body=AMD64.blobs[layer])

    upstream.expect("GET", blob_target("team/app", layer), slowly)
    client = DistributionClient(host=running.host)
    # The first process of a daemon reads all of the library first, which takes longer than the impatient one waits.
    serve_image(upstream, "team/first", "1", OTHER)
    assert client.get("/v2/team/first/manifests/1").status == 200
    with ThreadPoolExecutor(2) as pool:
        impatient = pool.submit(client.get_for, "/v2/team/app/manifests/1", 2.0)
        assert arrived.wait(20)
        patient = pool.submit(client.get, "/v2/team/app/manifests/1")
        with pytest.raises(TimeoutError):
            impatient.result(20)
        # Others are answered meanwhile.
        assert client.get("/v2/own/app/manifests/1").status == 200
        held.set()
        assert patient.result(20).body == AMD64.blobs[AMD64.digest]


def test_what_comes_takes_its_turn_among_the_pulls_and_an_index_does_not_wait(
    root: Path, tmp_path: Path, upstream: ScriptedRegistry
) -> None:
    held, arrived = threading.Event(), threading.Event()
    serve_image(upstream, "team/app", "1", AMD64, at_most=1)
    serve_image(upstream, "team/other", "1", OTHER, at_most=1)
    serve_image(upstream, "team/index", "1", INDEX, at_most=1)
    layer = AMD64.layer_digests[1]

    def slowly(_: Request) -> Answer:
        arrived.set()
        assert held.wait(20)
        return Answer(headers=blob_headers(layer), body=AMD64.blobs[layer])

    upstream.expect("GET", blob_target("team/app", layer), slowly)
    environment = {"MINIBOX_UPSTREAM": upstream.host, "MINIBOX_MAX_PULLS": "1"}
    with running_daemon(tmp_path / "daemon", data_root=root, environment=environment) as daemon:
        client = DistributionClient(host=daemon.host)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.get, "/v2/team/app/manifests/1")
            assert arrived.wait(20)
            second = pool.submit(client.get, "/v2/team/other/manifests/1")
            assert client.get("/v2/team/index/manifests/1").status == 200
            assert not [each for each in upstream.requests if "/v2/team/other/blobs/" in each.target]
            held.set()
            assert (first.result(20).status, second.result(20).status) == (200, 200)


# ---- settings


@pytest.mark.parametrize("text", ["docker.io", "registry.example.org:5000", "[::1]:5000", "localhost"])
def test_an_upstream_is_a_registry(text: str) -> None:
    assert parse_settings({"MINIBOX_UPSTREAM": text}).upstream == text
    assert parse_settings({"MINIBOX_UPSTREAM": ""}).upstream is None


def test_an_upstream_may_be_beside_the_daemon() -> None:
    protected = {"MINIBOX_API_TOKEN": "0123456789abcdefghijkl"}
    for text, address in (("localhost:5000", "0.0.0.0:8080"), ("127.0.0.1", ":8080"), ("cache.example", "[::]:443")):
        assert parse_settings({"MINIBOX_UPSTREAM": text, "MINIBOX_HTTP_ADDR": address, **protected}).upstream == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://docker.io", "127.0.0.1:8080"),
        ("docker.io/library", "127.0.0.1:8080"),
        ("nothost", "127.0.0.1:8080"),
        ("a b", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("localhost:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "127.0.0.1:8080"),
        ("cache.example.org:80", "cache.example.org:80"),
        ("127.0.0.1:8080", ":8080"),
        ("127.0.0.1:8080", "0.0.0.0:8080"),
        ("localhost:8080", "[::]:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "[::]:8080"),
        ("localhost", "127.0.0.1:80"),
        ("127.0.0.1", "0.0.0.0:443"),
        ("cache.example.org", "cache.example.org:443"),
    ],
)
def test_an_upstream_is_nothing_else_and_not_the_daemon_itself(text: str, address: str) -> None:
    with pytest.raises(SettingsError, match="MINIBOX_UPSTREAM"):
        parse_settings(
            {"MINIBOX_UPSTREAM": text, "MINIBOX_HTTP_ADDR": address, "MINIBOX_API_TOKEN": "0123456789abcdefghijkl"}
        )


@pytest.mark.parametrize("text", ["https://alice:planted@registry.test", "https://alice:1/planted@registry.test"])
def test_s28_an_upstream_that_is_a_url_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(SettingsError, match="MINIBOX_UPSTREAM") as caught:
        parse_settings({"MINIBOX_UPSTREAM": text})
    assert "planted" not in str(caught.value)
