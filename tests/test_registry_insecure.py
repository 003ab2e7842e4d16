"""Insecure registries: TLS is tried first, unchecked, and plain HTTP where there is none; all that for them alone."""

import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from minibox_store.errors import AuthenticationRefused, RegistryError
from minibox_store.registry import Credentials
from minibox_store.registry.connections import ConnectionPool
from minibox_store.registry.dialling import Address, OpenLines, SystemNetwork
from minibox_store.registry.failures import shows_no_tls
from minibox_store.registry.hosts import Schemes, api_origin
from minibox_store.registry.urls import Origin
from tests.support.certificates import Certificate, make_certificate
from tests.support.images import build_image
from tests.support.peers import docker_registry, push_image, run_skopeo
from tests.support.processes import free_port
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_repository
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    blob_target,
    pull_scope,
    redirect,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
LAYER = descriptors_of(IMAGE)[0]
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target("team/app", str(LAYER.digest))
ALICE = Credentials("alice", "pass-word-1")
REFERENCE = "registry.test/team/app:1"
INSECURE = {"insecure": ["Registry.test"]}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """One that nobody trusts."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


class PortedNetwork(NamedNetwork):
    """A network in which ``registry.test`` listens at some ports, each a port of 127.0.0.1, and at no other."""

    def __init__(self, ports: dict[int, int], **others: ScriptedServer) -> None:
        names = {f"{name}.test": server.port for name, server in others.items()}
        super().__init__({name: [[PUBLIC_ADDRESS]] for name in names}, names)
        self._at = ports

    def resolve(self, host: str, port: int) -> list[Address]:
        """Return the one address, with the port."""
        if host != "registry.test":
            return list(super().resolve(host, port))
        return [Address(socket.AF_INET, (PUBLIC_ADDRESS, port, host))]

    def begin_connect(self, opened: socket.socket, address: Address) -> None:
        """Connect to the port behind, or be refused."""
        if address.sockaddr[2] != "registry.test":
            super().begin_connect(opened, address)
            return
        port = self._at.get(int(address.sockaddr[1]))
        if port is None:
            code = errno.ECONNREFUSED if address.sockaddr[1] == 443 else errno.EHOSTUNREACH
            raise OSError(code, os.strerror(code))
        code = opened.connect_ex(("127.0.0.1", port))
        assert code in (0, errno.EINPROGRESS)


def test_insecure_registries_are_tried_with_tls_wherever_they_are() -> None:
    schemes = Schemes.of(["both.test"], [], ["Registry.test:5000", "127.0.0.1:5000", "both.test"])
    assert str(api_origin("registry.test:5000", schemes)) == "https://registry.test:5000"
    assert str(api_origin("127.0.0.1:5000", schemes)) == "https://127.0.0.1:5000"
    assert str(api_origin("both.test", schemes)) == "http://both.test"
    assert [schemes.may_be_plain(host) for host in ("127.0.0.1:5000", "both.test", "127.0.0.1:5001")] == [
        *(True, False, False)
    ]
    assert not schemes.is_guess("127.0.0.1:5000")


# Real peers


@pytest.mark.parametrize("has_tls", [True, False])
def test_a_real_registry_is_read_with_a_certificate_that_nobody_trusts_and_without_one(
    tmp_path: Path, certificate: Certificate, *, has_tls: bool
) -> None:
    with docker_registry(tmp_path / "registry", certificate=certificate if has_tls else None) as registry:
        push_image(registry, "team/app", "1", IMAGE)
        with open_repository(registry.reference("team/app", "1"), insecure=[registry.host]) as repository:
            assert str(repository.resolve("1").digest) == IMAGE.digest
            assert read_all(repository, LAYER) == CONTENT
        # What skopeo calls the same reads the same.
        source = f"docker://{registry.reference('team/app', '1')}"
        run_skopeo("copy", "--src-tls-verify=false", source, f"oci:{tmp_path / 'copied'}:1")


# The way down


def test_tls_is_spoken_unchecked_where_there_is_some(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        registry.expect("GET", BLOB, Answer(body=CONTENT), requires={"Authorization": ALICE.basic})
        options = {"credentials": {"registry.test": ALICE}, "network": PortedNetwork({443: registry.port})}
        with open_repository(REFERENCE, **INSECURE, **options) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_the_connection_that_was_tried_is_the_one_that_is_used(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        with open_repository(REFERENCE, **INSECURE, network=PortedNetwork({443: registry.port})) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert len(registry.clients) == 1


def test_a_connection_is_used_though_what_tls_sends_behind_a_handshake_was_never_read(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        pool = ConnectionPool(
            home=Origin("https", "127.0.0.1", registry.port),
            network=SystemNetwork(),
            lines=OpenLines(),
            tls_context=lambda _: certificate.client_context(),
            connect_seconds=5,
            silence_seconds=5,
        )
        with closing(pool):
            pool.meet_home()
            time.sleep(0.2)
            connection, was_used = pool.take(Origin("https", "127.0.0.1", registry.port))
            connection.close()
        assert was_used


def test_plain_http_is_spoken_credentials_included_where_the_port_speaks_no_tls() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        registry.expect("GET", BLOB, Answer(body=CONTENT), requires={"Authorization": ALICE.basic})
        network = PortedNetwork({5000: registry.port})
        options = {"credentials": {"registry.test:5000": ALICE}, "network": network}
        with open_repository("registry.test:5000/team/app:1", insecure=["registry.test:5000"], **options) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert registry.failed_handshakes == ["TLS on a plain port"]


def test_plain_http_is_spoken_at_its_own_port_where_nobody_is_at_that_of_tls() -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        with open_repository(REFERENCE, **INSECURE, network=PortedNetwork({80: registry.port})) as repository:
            repository.resolve("1")
            assert read_all(repository, LAYER) == CONTENT
        assert not registry.failed_handshakes


def test_a_registry_in_plain_http_may_redirect_to_itself_and_name_itself_as_its_token_server() -> None:
    scope = pull_scope("team/app")
    with TokenServer() as registry:
        challenge = f'Bearer realm="http://registry.test/token",service="x",scope="{scope}"'
        registry.expect("GET", BLOB, unauthorized(challenge))
        registry.expect_token("good-token", service="x", scope=scope, credentials=("alice", "pass-word-1"))
        registry.expect("GET", BLOB, redirect("http://registry.test/1"))
        registry.expect("GET", "/1", Answer(body=CONTENT), requires={"Authorization": "Bearer good-token"})
        options = {"credentials": {"registry.test": ALICE}, "network": PortedNetwork({80: registry.port})}
        with open_repository(REFERENCE, **INSECURE, **options) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_several_threads_that_begin_at_once_find_out_once() -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        found = []
        with open_repository(REFERENCE, **INSECURE, network=PortedNetwork({443: registry.port, 80: registry.port})) as (
            repository
        ):
            threads = [
                threading.Thread(target=lambda: found.append(read_all(repository, LAYER)), daemon=True)
                for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
        assert found == [CONTENT] * 6
        assert registry.failed_handshakes == ["TLS on a plain port"]


def test_where_nobody_is_the_first_error_is_told() -> None:
    with (
        open_repository(REFERENCE, **INSECURE, network=PortedNetwork({}), attempts=1) as repository,
        pytest.raises(RegistryError, match=r"https://registry\.test.*refused"),
    ):
        repository.resolve("1")


@contextmanager
def failing_listener(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Listen, note what each connection begins with, answer it with ``answer`` and close."""
    came: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    came.append(connection.recv(1000))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], came
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def test_tls_that_fails_in_another_way_is_not_taken_for_plain_http() -> None:
    handshake_failure = b"\x15\x03\x03\x00\x02\x02\x28"
    with failing_listener(handshake_failure) as (port, came):
        with (
            open_repository(REFERENCE, **INSECURE, network=PortedNetwork({443: port, 80: port}), attempts=2) as (
                repository
            ),
            pytest.raises(RegistryError, match="TLS failed"),
        ):
            repository.resolve("1")
        assert len(came) == 2
        assert all(each.startswith(b"\x16\x03") for each in came)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ssl.SSLEOFError(8, "eof"), True),
        (ssl.SSLZeroReturnError(6, "closed"), True),
        (ConnectionRefusedError(), True),
        (ConnectionResetError(), True),
        (TimeoutError(), False),
        (socket.gaierror(), False),
        (ssl.SSLCertVerificationError(), False),
        (OSError(errno.EHOSTUNREACH, "no route"), False),
    ],
)
def test_what_shows_that_no_tls_is_spoken(error: OSError, *, expected: bool) -> None:
    assert shows_no_tls(error) == expected


def test_finding_out_is_interrupted(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as accepted:
        network = PortedNetwork({443: silent.getsockname()[1]})
        patient = {"connect_seconds": 60.0, "silence_seconds": 60.0}
        with open_repository(REFERENCE, **INSECURE, network=network, **patient) as repository:
            errors: list[RegistryError] = []

            def resolve() -> None:
                try:
                    repository.resolve("1")
                except RegistryError as error:
                    errors.append(error)

            threads = [threading.Thread(target=resolve, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            accepted.enter_context(silent.accept()[0])
            time.sleep(0.1)
            repository.interrupt()
            for thread in threads:
                thread.join(SOON_SECONDS)
            assert len(errors) == 3


# For them alone


def test_a_registry_that_was_not_named_is_spoken_to_in_tls_alone() -> None:
    with ScriptedRegistry() as registry:
        network = PortedNetwork({443: registry.port, 80: registry.port, 5000: registry.port})
        options = {"credentials": {"registry.test": ALICE}, "network": network, "insecure": ["registry.test:5000"]}
        with (
            open_repository(REFERENCE, **options) as repository,
            pytest.raises(RegistryError),
        ):
            repository.resolve("1")
    assert not registry.requests


def test_a_certificate_of_a_registry_that_was_not_named_is_checked(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        options = {"network": PortedNetwork({443: registry.port}), "insecure": ["registry.test:443", "test"]}
        with (
            open_repository(REFERENCE, **options) as repository,
            pytest.raises(RegistryError, match="certificate is not trusted"),
        ):
            repository.resolve("1")
    assert not registry.requests


def test_s1_a_token_server_is_checked_though_its_registry_is_not(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry, TokenServer(certificate=certificate) as tokens:
        challenge = 'Bearer realm="https://tokens.test/token",service="x",scope="y"'
        registry.expect("GET", BLOB, unauthorized(challenge))
        network = PortedNetwork({443: registry.port}, tokens=tokens)
        known = {"credentials": {"registry.test": ALICE}, "realms": {"registry.test": ["tokens.test"]}}
        with (
            open_repository(REFERENCE, **INSECURE, **known, network=network) as repository,
            pytest.raises(RegistryError, match=r"tokens\.test.*certificate is not trusted"),
        ):
            repository.open_blob(LAYER)
    assert not tokens.requests


def test_s1_a_token_server_of_a_registry_in_plain_http_is_told_no_credentials_without_tls() -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = f'Bearer realm="http://tokens.test/token",service="x",scope="{pull_scope("team/app")}"'
        registry.expect("GET", BLOB, unauthorized(challenge))
        network = PortedNetwork({80: registry.port}, tokens=tokens)
        known = {"credentials": {"registry.test": ALICE}, "realms": {"registry.test": ["tokens.test"]}}
        with (
            open_repository(REFERENCE, **INSECURE, **known, network=network) as repository,
            pytest.raises(AuthenticationRefused),
        ):
            repository.open_blob(LAYER)
        assert not tokens.requests
        registry.assert_no_credentials()


@pytest.mark.parametrize("elsewhere", ["https://storage.test/1", "https://registry.test:8443/1"])
def test_s3_where_an_insecure_registry_redirects_to_is_checked(certificate: Certificate, elsewhere: str) -> None:
    with ScriptedRegistry(certificate=certificate) as registry, ScriptedServer(certificate=certificate) as storage:
        registry.expect("GET", BLOB, redirect(elsewhere))
        network = PortedNetwork({443: registry.port, 8443: storage.port}, storage=storage)
        with (
            open_repository(REFERENCE, **INSECURE, network=network, attempts=1) as repository,
            pytest.raises(RegistryError, match="certificate is not trusted"),
        ):
            repository.open_blob(LAYER)
    assert not storage.requests


def test_s3_an_insecure_registry_with_tls_may_not_redirect_to_plain_http(certificate: Certificate) -> None:
    with ScriptedRegistry(certificate=certificate) as registry, ScriptedServer() as plain:
        registry.expect("GET", BLOB, redirect("http://storage.test/1"))
        network = PortedNetwork({443: registry.port}, storage=plain)
        with (
            open_repository(REFERENCE, **INSECURE, network=network) as repository,
            pytest.raises(RegistryError, match="from TLS to plain HTTP"),
        ):
            repository.open_blob(LAYER)
    assert not plain.requests


def test_an_insecure_registry_on_this_machine_that_is_not_there_is_told_of() -> None:
    host = f"127.0.0.1:{free_port()}"
    with (
        open_repository(f"{host}/team/app:1", insecure=[host], attempts=1) as repository,
        pytest.raises(RegistryError, match="refused"),
    ):
        repository.resolve("1")
