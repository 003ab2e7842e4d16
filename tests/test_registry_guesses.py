"""A registry on this machine that speaks TLS, though plain HTTP is the guess: found out by whatever is asked first."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from minibox_store import Store
from minibox_store.digest import Digest
from minibox_store.errors import RegistryError
from minibox_store.registry import RegistryRepository
from tests.support.answers import Answer, registry_error
from tests.support.certificates import Certificate, make_certificate
from tests.support.images import OCI_INDEX, build_artifact, build_image, build_index, encode_document
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import ScriptedRegistry, serve_image
from tests.support.sources import descriptors_of, read_all, read_stream, root_of

IMAGE = build_image([{"a": b"a" * 3000}, {"b": b"b"}])
INDEX = build_index([IMAGE, build_image(platform="linux/arm64")])
LAYER = descriptors_of(IMAGE)[0]
SIGNATURE = build_artifact(IMAGE.root)
LISTED = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [SIGNATURE.root]})

FIRST: dict[str, Callable[[RegistryRepository], object]] = {
    "resolve": lambda repository: str(repository.resolve("1").digest) == INDEX.digest,
    "head": lambda repository: repository.head("1") is not None,
    "blob": lambda repository: read_all(repository, LAYER) == IMAGE.blobs[str(LAYER.digest)],
    "document": lambda repository: read_all(repository, root_of(IMAGE)) == IMAGE.blobs[IMAGE.digest],
    "referrers": lambda repository: (
        [str(each.digest) for each in repository.referrers(root_of(IMAGE))] == [SIGNATURE.digest]
    ),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def serve(registry: ScriptedRegistry) -> None:
    serve_image(registry, "team/app", "1", INDEX, ranges=True)
    listed = Answer(headers={"Content-Type": OCI_INDEX}, body=LISTED)
    registry.allow("GET", f"/v2/team/app/referrers/{IMAGE.digest}", listed)


@pytest.mark.parametrize("first", FIRST)
def test_whatever_is_asked_first_finds_out_that_a_registry_here_wants_tls(first: str, certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        serve(registry)
        reference = registry.reference("team/app", "1")
        with open_repository(reference, ca_file=certificate.chain, attempts=2) as repository:
            assert FIRST[first](repository)
            assert all(each(repository) for each in FIRST.values())


def test_a_range_that_is_asked_for_first_finds_it_out_too(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        serve(registry)
        reference = registry.reference("team/app", "1")
        with open_repository(reference, ca_file=certificate.chain, attempts=2) as repository:
            stream = repository.open_range(LAYER, 1, 5)
            assert stream is not None
            with closing(stream):
                assert read_stream(stream) == IMAGE.blobs[str(LAYER.digest)][1:6]


@contextmanager
def refusing_plain_http(registry: ScriptedRegistry) -> Iterator[str]:
    """Yield the host of who leads to a registry with TLS, and answers whatever is no TLS as servers in Go do."""

    def carry(giver: socket.socket, taker: socket.socket) -> None:
        with suppress(OSError):
            while piece := giver.recv(65536):
                taker.sendall(piece)
        with suppress(OSError):
            taker.shutdown(socket.SHUT_WR)

    def serve_one(client: socket.socket) -> None:
        with client, suppress(OSError):
            if client.recv(1, socket.MSG_PEEK) != b"\x16":
                client.recv(65536)
                client.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
                return
            with socket.create_connection(("127.0.0.1", registry.port)) as server:
                back = threading.Thread(target=carry, args=(server, client))
                back.start()
                carry(client, server)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                serving.append(threading.Thread(target=serve_one, args=(client,)))
                serving[-1].start()

    serving: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *serving):
                thread.join(10)


@pytest.mark.parametrize("first", FIRST)
def test_a_server_that_answers_plain_http_by_a_refusal_is_understood(first: str, certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        serve(registry)
        registry.allow("GET", f"/v2/team/app/manifests/sha256-{IMAGE.digest[7:]}", registry_error(404, "UNKNOWN"))
        with (
            refusing_plain_http(registry) as host,
            open_repository(f"{host}/team/app:1", ca_file=certificate.chain) as repository,
        ):
            assert FIRST[first](repository)


def test_many_that_ask_at_once_all_find_it_out(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        serve(registry)
        with (
            refusing_plain_http(registry) as host,
            open_repository(f"{host}/team/app:1", ca_file=certificate.chain) as repository,
            ThreadPoolExecutor(max_workers=8) as pool,
        ):
            found = list(pool.map(lambda _: read_all(repository, LAYER), range(8)))
        assert found == [IMAGE.blobs[str(LAYER.digest)]] * 8


def test_a_bad_request_stays_one_where_plain_http_is_spoken() -> None:
    with ScriptedRegistry() as registry:
        registry.allow("GET", f"/v2/team/app/blobs/{LAYER.digest}", registry_error(400, "DIGEST_INVALID", "what is it"))
        with open_repository(registry.reference("team/app", "1"), attempts=1) as repository:
            for _ in range(2):
                with pytest.raises(RegistryError, match="what is it"):
                    repository.open_blob(LAYER)


def test_what_was_pulled_from_a_registry_here_with_tls_is_repaired_from_there(
    certificate: Certificate, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store", durability="none")
    with ScriptedRegistry(certificate=certificate) as registry:
        serve(registry)
        name, client = registry.reference("team/app", "1"), quick_client(ca_file=certificate.chain, attempts=2)
        store.pull(name, client=client)
        blob = Path(store.root) / "blobs" / "sha256" / LAYER.digest.hex
        os.chmod(blob, 0o644)
        blob.write_bytes(b"x" * LAYER.size_bytes)
        report = store.repair(client=client)
        assert (len(report.mended), report.unmended) == (1, ())
        other = Store(tmp_path / "other", durability="none")
        other.fetch(name, client=client)
        assert str(other.fetch_part(name, Digest.parse(IMAGE.digest), client=client).digest) == IMAGE.digest
