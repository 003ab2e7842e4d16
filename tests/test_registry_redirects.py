"""Redirects are followed a few times: never with credentials, out of TLS, or to this machine by stealth."""

import os
from pathlib import Path

import pytest

from minibox_store.digest import Digest
from minibox_store.errors import BlobNotFound, InvalidPath, RegistryError, StoreError
from minibox_store.registry import Credentials
from tests.support.certificates import Certificate, make_certificate
from tests.support.images import build_image
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_repository
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    basic_credentials,
    blob_target,
    document_answer,
    manifest_target,
    pull_scope,
    ranged,
    redirect,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all, root_of

IMAGE = build_image()
REPOSITORY = "team/app"
MANIFEST = manifest_target(REPOSITORY, "1")
LAYER = descriptors_of(IMAGE)[0]
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target(REPOSITORY, str(LAYER.digest))
ALICE = Credentials("alice", "pass-word-1")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


# Following


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_blob_is_fetched_from_where_the_registry_says(status: int) -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, redirect(f"{storage.url}/signed?X-Amz-Signature=s%2Fx", status=status))
        storage.expect("GET", "/signed?X-Amz-Signature=s%2Fx", Answer(body=CONTENT))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_a_manifest_may_be_redirected_too() -> None:
    """GitLab's dependency proxy sends manifests to its storage."""
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", MANIFEST, redirect(f"{storage.url}/object"))
        storage.expect("GET", "/object", document_answer(IMAGE))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert repository.resolve("1") == root_of(IMAGE)


def test_a_location_may_be_relative_and_the_token_stays_within_the_registry() -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        scope = pull_scope(REPOSITORY)
        challenge = tokens.challenge(service="registry", scope=scope)
        tokens.expect_token("good-token", service="registry", scope=scope)
        registry.expect("GET", BLOB, unauthorized(challenge), forbids=["Authorization"])
        token = {"Authorization": "Bearer good-token"}
        registry.expect("GET", BLOB, redirect("/storage/x y"), requires=token)
        registry.expect("GET", "/storage/x%20y", Answer(body=CONTENT), requires=token)
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_five_redirects_are_followed_and_no_sixth() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, redirect("/1"), redirect("/1"))
        for number in range(1, 5):
            registry.expect("GET", f"/{number}", redirect(f"/{number + 1}"), redirect(f"/{number + 1}"))
        registry.expect("GET", "/5", Answer(body=CONTENT), redirect("/6"))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT
            with pytest.raises(RegistryError, match="more than 5 redirects"):
                repository.open_blob(LAYER)


@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://alice:x@127.0.0.1:1/x",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "http://a\x01b/",
        "mailto:alice@example.org",
    ],
)
def test_an_address_that_is_no_plain_url_is_not_followed(location: str) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, redirect(location))
        with (
            open_repository(registry.reference(REPOSITORY, "1")) as repository,
            pytest.raises(RegistryError, match="redirects to is refused") as caught,
        ):
            repository.open_blob(LAYER)
    assert "alice" not in str(caught.value)


def test_a_redirect_without_an_address_is_an_error() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(status=307))
        with (
            open_repository(registry.reference(REPOSITORY, "1")) as repository,
            pytest.raises(RegistryError, match="there is none"),
        ):
            repository.open_blob(LAYER)


def test_a_signed_address_that_has_run_out_is_asked_for_anew_and_once() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, redirect(f"{storage.url}/1"), redirect(f"{storage.url}/2"))
        storage.expect("GET", "/1", Answer(status=403, body=b"<Code>AccessDenied</Code>"))
        storage.expect("GET", "/2", Answer(body=CONTENT))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


@pytest.mark.parametrize(("status", "kind"), [(403, RegistryError), (404, BlobNotFound)])
def test_storage_that_refuses_twice_is_one_error(status: int, kind: type[StoreError]) -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, *[redirect(f"{storage.url}/1")] * 2)
        storage.expect("GET", "/1", *[registry_error(status, "X")] * 2)
        with open_repository(registry.reference(REPOSITORY, "1")) as repository, pytest.raises(kind) as caught:
            repository.open_blob(LAYER)
    assert type(caught.value) is kind


def test_a_download_that_is_cut_goes_on_at_the_registrys_own_address() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, redirect(f"{storage.url}/1"), redirect(f"{storage.url}/2"))
        storage.expect("GET", "/1", Answer(body=CONTENT, cut_after_bytes=10))
        storage.expect("GET", "/2", ranged(CONTENT), requires={"Range": f"bytes=10-{len(CONTENT) - 1}"})
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_storage_that_refuses_ranges_is_asked_for_the_whole_at_an_address_of_its_own() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, *[redirect(f"{storage.url}/1")] * 2, redirect(f"{storage.url}/2"))
        storage.expect("GET", "/1", *[registry_error(403, "X")] * 2, requires={"Range": f"bytes=10-{len(CONTENT) - 1}"})
        storage.expect("GET", "/2", Answer(body=CONTENT), forbids=["Range"])
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER, 10) == CONTENT[10:]


# S3: what crosses to another origin


def test_s3_no_credentials_cross_to_another_port() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        registry.expect("GET", BLOB, redirect(f"{storage.url}/1"), requires={"Authorization": ALICE.basic})
        storage.expect("GET", "/1", Answer(body=CONTENT))
        with open_repository(registry.reference(REPOSITORY, "1"), credentials={registry.host: ALICE}) as repository:
            assert read_all(repository, LAYER) == CONTENT
        storage.assert_no_credentials()


def test_s3_no_credentials_cross_to_another_name_of_the_same_machine() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        elsewhere = f"http://localhost:{registry.port}/1"
        registry.expect("GET", BLOB, redirect(elsewhere), requires={"Authorization": ALICE.basic})
        registry.expect("GET", "/1", Answer(body=CONTENT), forbids=["Authorization", "Cookie"])
        with open_repository(registry.reference(REPOSITORY, "1"), credentials={registry.host: ALICE}) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_s3_no_credentials_cross_when_the_scheme_changes(certificate: Certificate) -> None:
    with (
        ScriptedRegistry(hostname="localhost") as registry,
        ScriptedServer(certificate=certificate, hostname="localhost") as storage,
    ):
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        registry.expect("GET", BLOB, redirect(f"{storage.url}/1"), requires={"Authorization": ALICE.basic})
        storage.expect("GET", "/1", Answer(body=CONTENT))
        options = {"credentials": {registry.host: ALICE}, "ca_file": certificate.chain}
        with open_repository(registry.reference(REPOSITORY, "1"), **options) as repository:
            assert read_all(repository, LAYER) == CONTENT
        storage.assert_no_credentials()


def test_s3_credentials_that_were_dropped_do_not_come_back_with_the_way() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        registry.expect("GET", BLOB, redirect(f"{storage.url}/1"), requires={"Authorization": ALICE.basic})
        storage.expect("GET", "/1", redirect(f"{registry.url}/back"))
        registry.expect("GET", "/back", Answer(body=CONTENT), forbids=["Authorization"])
        with open_repository(registry.reference(REPOSITORY, "1"), credentials={registry.host: ALICE}) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_s3_a_challenge_of_another_host_is_not_answered() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, *[redirect(f"{storage.url}/1")] * 2)
        storage.expect("GET", "/1", *[unauthorized('Basic realm="x"')] * 2)
        with (
            open_repository(registry.reference(REPOSITORY, "1"), credentials={registry.host: ALICE}) as repository,
            pytest.raises(RegistryError),
        ):
            repository.open_blob(LAYER)
        storage.assert_no_credentials()


def test_s3_a_redirect_out_of_tls_is_refused(certificate: Certificate) -> None:
    with (
        ScriptedRegistry(certificate=certificate, hostname="localhost") as registry,
        ScriptedServer(hostname="localhost") as plain,
    ):
        registry.expect("GET", BLOB, redirect(f"{plain.url}/1"))
        options = {"https": [registry.host], "ca_file": certificate.chain}
        with (
            open_repository(registry.reference(REPOSITORY, "1"), **options) as repository,
            pytest.raises(RegistryError, match="from TLS to plain HTTP"),
        ):
            repository.open_blob(LAYER)
        assert not plain.requests


# S9: bodies nobody asked for


@pytest.mark.parametrize("framing", ["chunked", "until_close", "length"])
def test_s9_the_body_of_a_redirect_is_not_read(framing: str) -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        endless = Answer(
            status=307,
            headers={"Location": f"{storage.url}/1", "Content-Encoding": "gzip"},
            endless=True,
            framing=framing,  # type: ignore[arg-type]
            content_length=1 << 60,
        )
        listed = registry.expect("GET", BLOB, endless)
        storage.expect("GET", "/1", Answer(body=CONTENT))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT
    assert listed.requests[0].body_bytes_sent < 16 << 20


def test_s9_a_redirect_without_a_body_leaves_the_connection_for_the_next_request() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, redirect("/1"))
        registry.expect("GET", "/1", Answer(body=CONTENT))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert len({request.client_port for request in registry.requests}) == 1


def test_a_registry_that_sends_each_request_to_another_host_leaves_few_connections_open() -> None:
    names = [f"storage-{number}.test" for number in range(40)]
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        ports = {"registry.test": registry.port, **dict.fromkeys(names, storage.port)}
        network = NamedNetwork({name: [[PUBLIC_ADDRESS]] for name in ports}, ports)
        storage.allow("GET", "/blob", Answer(body=CONTENT))
        with open_repository("registry.test/team/app:1", network=network, plain_http=ports) as repository:
            before = len(os.listdir("/proc/self/fd"))
            for name in names:
                registry.expect("GET", BLOB, redirect(f"http://{name}/blob"))
                assert read_all(repository, LAYER) == CONTENT
            # Each has a handle besides its socket, and the server's own ends lie in this process too.
            left = len(os.listdir("/proc/self/fd")) - before
        assert len(network.connected) == 1 + len(names)
    assert left < 2 * len(names)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip", "zstd", "br", "x", "aws-chunked, gzip", ",br"])
def test_s9_a_content_encoding_is_refused(encoding: str) -> None:
    with ScriptedRegistry() as registry:
        headers = {"Content-Encoding": encoding, "Content-Type": IMAGE.media_type}
        registry.expect("GET", BLOB, Answer(headers=headers, body=CONTENT))
        registry.expect("GET", MANIFEST, Answer(headers=headers, body=IMAGE.blobs[IMAGE.digest]))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            with pytest.raises(RegistryError, match="compressed on its way"):
                repository.open_blob(LAYER)
            with pytest.raises(RegistryError, match="compressed on its way"):
                repository.resolve("1")
        assert {request.header("Accept-Encoding") for request in registry.requests} == {"identity"}


@pytest.mark.parametrize("encoding", ["Identity", "", "aws-chunked", "aws-chunked,"])
def test_s9_what_storage_says_of_bytes_that_are_as_they_were_is_no_encoding(encoding: str) -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, redirect(f"{storage.url}/1"))
        storage.expect("GET", "/1", Answer(headers={"Content-Encoding": encoding}, body=CONTENT))
        with open_repository(registry.reference(REPOSITORY, "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


# Docker Hub


def test_docker_hub_is_reached_by_its_names_and_tells_credentials_to_its_token_server() -> None:
    repository_name = "library/alpine"
    scope = pull_scope(repository_name)
    with ScriptedRegistry() as hub, TokenServer() as tokens:
        challenge = f'Bearer realm="http://auth.docker.io/token",service="registry.docker.io",scope="{scope}"'
        serve_image(hub, repository_name, "latest", IMAGE, authorization="Bearer good-token", challenge=challenge)
        tokens.expect_token(
            "good-token", service="registry.docker.io", scope=scope, credentials=("alice", "pass-word-1")
        )
        network = NamedNetwork(
            {"registry-1.docker.io": [[PUBLIC_ADDRESS]], "auth.docker.io": [["198.51.100.9"]]},
            {"registry-1.docker.io": hub.port, "auth.docker.io": tokens.port},
        )
        options = {
            "network": network,
            "plain_http": ["registry-1.docker.io", "auth.docker.io"],
            "credentials": {"https://index.docker.io/v1/": ALICE},
        }
        with open_repository("alpine", **options) as repository:
            descriptor = repository.resolve("latest")
            assert descriptor == root_of(IMAGE)
            assert Digest.of(read_all(repository, LAYER)) == LAYER.digest
        assert {request.header("Host") for request in hub.requests} == {"registry-1.docker.io"}
        assert basic_credentials("alice", "pass-word-1") not in {
            request.header("Authorization") for request in hub.requests
        }


def test_a_file_of_authorities_that_is_none_is_told_of(tmp_path: Path) -> None:
    with ScriptedRegistry() as registry:
        missing = tmp_path / "missing.crt"
        reference = registry.reference(REPOSITORY, "1")
        with (
            open_repository(reference, https=[registry.host], ca_file=missing) as repository,
            pytest.raises(InvalidPath, match="holds no certificates"),
        ):
            repository.resolve("1")
