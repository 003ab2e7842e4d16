"""Proxies: which hosts are reached through which, what a proxy is told and what it is not, and S1 to S3 behind one."""

import random
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Store
from minibox_store.errors import AuthenticationRefused, InvalidArgument, RegistryError
from minibox_store.registry import Credentials, Proxies, RegistryClient
from minibox_store.registry.dialling import Address, SystemNetwork
from tests.support.certificates import Authority, Certificate, make_authority, make_certificate, write_certificates
from tests.support.forwarding_proxy import ForwardingProxy
from tests.support.images import OCI_LAYER, build_image
from tests.support.layouts import read_layout_blobs
from tests.support.peers import docker_registry, push_image, run_peer, skopeo_command, skopeo_environment
from tests.support.processes import free_port
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_repository
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    basic_credentials,
    blob_target,
    pull_scope,
    redirect,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptor_for, descriptors_of, read_all
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
LAYER = descriptors_of(IMAGE)[0]
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target("team/app", str(LAYER.digest))
ALICE = Credentials("alice", "pass-word-1")
LOGIN = ("proxy-user", "proxy-secret")
REFERENCE = "registry.test/team/app:1"
PLAIN = {"plain_http": ["registry.test", "storage.test", "tokens.test"]}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def certificate(house: Authority) -> Certificate:
    return house.for_server()


class OnlyHere(SystemNetwork):
    """A network that resolves nothing but this machine's address: names are a matter of the proxy."""

    def resolve(self, host: str, port: int) -> Sequence[Address]:
        """Return the address that ``host`` is."""
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, f"{host} was to be resolved here")
        return super().resolve(host, port)


def behind(proxy: ForwardingProxy, **more: Any) -> dict[str, Any]:
    """Return the options of a client for which every host but this machine is behind a proxy."""
    return {"proxies": Proxies(http=proxy.url, https=proxy.url), "network": OnlyHere(), "attempts": 2, **more}


# What a proxy is told


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("has_tls", [False, True])
def test_a_request_without_tls_names_the_whole_url_to_the_proxy(
    certificate: Certificate, house: Authority, login: tuple[str, str] | None, *, has_tls: bool
) -> None:
    proxied = certificate if has_tls else None
    with (
        ScriptedRegistry() as registry,
        ForwardingProxy({"registry.test:80": registry.port}, login=login, certificate=proxied) as proxy,
    ):
        serve_image(registry, "team/app", "1", IMAGE)
        options = {**behind(proxy), **PLAIN, "ca_file": house.certificate}
        with open_repository(REFERENCE, **options) as repository:
            assert str(repository.resolve("1").digest) == IMAGE.digest
            assert read_all(repository, LAYER) == CONTENT
        assert proxy.asked == [f"GET http://registry.test{request.target}" for request in registry.requests]
        assert {request.header("Host") for request in registry.requests} == {"registry.test"}
        registry.assert_no_credentials()


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("has_tls", [False, True])
def test_a_request_with_tls_goes_through_a_line_that_the_proxy_opens(
    certificate: Certificate, house: Authority, login: tuple[str, str] | None, *, has_tls: bool
) -> None:
    proxied = certificate if has_tls else None
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        ForwardingProxy({"registry.test:443": registry.port}, login=login, certificate=proxied) as proxy,
    ):
        serve_image(registry, "team/app", "1", IMAGE)
        with open_repository(REFERENCE, **behind(proxy, ca_file=house.certificate)) as repository:
            assert str(repository.resolve("1").digest) == IMAGE.digest
            assert read_all(repository, LAYER) == CONTENT
        assert proxy.asked == ["CONNECT registry.test:443"]  # one line for both
        assert [name for name, _ in proxy.requests[0].headers] == ["Host", *(["Proxy-Authorization"] if login else [])]
        assert {request.header("Host") for request in registry.requests} == {"registry.test"}
        registry.assert_no_credentials()


def test_a_large_blob_comes_through_tls_in_tls(certificate: Certificate, house: Authority) -> None:
    content = random.Random(1).randbytes(3 << 20)
    layer = descriptor_for(content, OCI_LAYER)
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        ForwardingProxy({"registry.test:443": registry.port}, certificate=certificate) as proxy,
    ):
        registry.expect("GET", blob_target("team/app", str(layer.digest)), Answer(body=content))
        with open_repository(REFERENCE, **behind(proxy, ca_file=house.certificate)) as repository:
            assert read_all(repository, layer) == content


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_registry_on_this_machine_is_reached_without(host: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with ScriptedRegistry(hostname=host) as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        options = {"proxies": Proxies(http=nobody, https=nobody)}
        with open_repository(registry.reference("team/app", "1"), **options) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_a_host_that_is_exempt_is_reached_without_and_the_next_one_with(certificate: Certificate) -> None:
    with (
        ScriptedRegistry() as registry,
        ScriptedServer() as storage,
        ForwardingProxy({"storage.test:80": storage.port}) as proxy,
    ):
        registry.expect("GET", BLOB, redirect("http://storage.test/1"))
        storage.expect("GET", "/1", Answer(body=CONTENT))
        network = NamedNetwork(
            {"registry.test": [[PUBLIC_ADDRESS]], "proxy.test": [["127.0.0.1"]]},
            {"registry.test": registry.port, "proxy.test": proxy.port},
        )
        proxies = Proxies(http="proxy.test:3128", no_proxy="registry.test")
        with open_repository(REFERENCE, **PLAIN, proxies=proxies, network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert proxy.asked == ["GET http://storage.test/1"]


def test_a_real_registry_behind_a_proxy_is_pulled_from_by_us_and_by_skopeo_with_the_same_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, clients = make_authority(tmp_path / "house"), make_authority(tmp_path / "clients")
    alice = clients.for_client("alice")
    home = tmp_path / "home"
    write_certificates(home / ".config/containers/certs.d", "registry.test", authority=house.certificate, client=alice)
    with docker_registry(
        tmp_path / "registry", certificate=house.for_server(clients=clients, client=alice)
    ) as registry:
        push_image(registry, "team/app", "1", IMAGE)
        port = int(registry.host.partition(":")[2])
        with ForwardingProxy({"registry.test:443": port}, login=LOGIN) as proxy:
            variables = {"HTTPS_PROXY": proxy.url, "NO_PROXY": "other.test"}
            for name, value in {**variables, "HOME": str(home)}.items():
                monkeypatch.setenv(name, value)
            monkeypatch.delenv("XDG_CONFIG_HOME")
            assert str(Store(tmp_path / "store").pull(REFERENCE).digest) == IMAGE.digest
            ours = len(proxy.requests)
            copy = skopeo_command(home, "copy", f"docker://{REFERENCE}", f"oci:{tmp_path / 'copied'}:1")
            run_peer(copy, {**skopeo_environment(home), **variables})
            assert set(proxy.asked) == {"CONNECT registry.test:443"}
            assert 0 < ours < len(proxy.requests)
    assert read_layout_blobs(tmp_path / "copied").keys() == read_layout_blobs(tmp_path / "store").keys()


def test_an_environment_with_a_proxy_that_is_none_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:secret@proxy.test")
    with pytest.raises(InvalidArgument, match="proxy for https") as caught:
        RegistryClient.for_machine()
    assert "secret" not in str(caught.value)


# S1 to S3


def test_s1_a_token_server_is_asked_through_the_proxy_and_another_told_nothing(
    certificate: Certificate, house: Authority
) -> None:
    scope = pull_scope("team/app")
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        TokenServer(certificate=certificate) as tokens,
        TokenServer(certificate=certificate) as evil,
    ):
        ports = {"registry.test:443": registry.port, "tokens.test:443": tokens.port, "mirror.test:443": evil.port}
        with ForwardingProxy(ports, login=LOGIN) as proxy:
            for name in ("tokens", "mirror"):
                challenge = f'Bearer realm="https://{name}.test/token",service="x",scope="{scope}"'
                registry.expect("GET", BLOB, unauthorized(challenge), forbids=["Authorization"])
            registry.expect("GET", BLOB, Answer(body=CONTENT), requires={"Authorization": "Bearer good-token"})
            tokens.expect_token("good-token", service="x", scope=scope, credentials=("alice", "pass-word-1"))
            known = {"credentials": {"registry.test": ALICE}, "realms": {"registry.test": ["tokens.test"]}}
            options = behind(proxy, ca_file=house.certificate, **known)
            with open_repository(REFERENCE, **options) as repository:
                assert read_all(repository, LAYER) == CONTENT
            with open_repository(REFERENCE, **options) as repository, pytest.raises(AuthenticationRefused):
                repository.open_blob(LAYER)
            assert not evil.requests
            assert "CONNECT mirror.test:443" not in proxy.asked
            assert not any(request.header("Authorization") for request in proxy.requests)


RESTRICTED = [
    "127.0.0.1",
    "2130706433",
    "0x7f.1",
    "169.254.169.254",
    "169.254.43518",
    "0.0.0.0",
    "[::1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "1.2.3.4.5",
]


@pytest.mark.parametrize("address", RESTRICTED)
def test_s2_a_redirect_to_a_restricted_address_is_not_given_to_the_proxy(address: str) -> None:
    with ScriptedRegistry() as registry, ForwardingProxy({"registry.test:80": registry.port}) as proxy:
        registry.expect("GET", BLOB, redirect(f"http://{address}/1"))
        options = behind(proxy, **PLAIN, network=SystemNetwork())
        with (
            open_repository(REFERENCE, **options) as repository,
            pytest.raises(RegistryError, match="address of this machine"),
        ):
            repository.open_blob(LAYER)
        assert proxy.asked == [f"GET http://registry.test{BLOB}"]


def test_a_redirect_to_a_name_that_tls_cannot_take_is_refused_before_the_proxy_is_asked(
    certificate: Certificate, house: Authority
) -> None:
    name = f"{'a' * 64}.test"
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        ForwardingProxy({f"{each}:443": registry.port for each in ("registry.test", name)}) as proxy,
    ):
        registry.expect("GET", BLOB, redirect(f"https://{name}/1"))
        with (
            open_repository(REFERENCE, **behind(proxy, ca_file=house.certificate)) as repository,
            pytest.raises(RegistryError, match="no valid host"),
        ):
            repository.open_blob(LAYER)
        assert proxy.asked == ["CONNECT registry.test:443"]


def test_s2_a_registry_that_is_at_such_an_address_may_send_to_its_kind_alone() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        ports = {"169.254.7.7:5000": registry.port, "169.254.9.9:80": storage.port}
        with ForwardingProxy(ports) as proxy:
            registry.expect("GET", BLOB, redirect("http://169.254.9.9/1"), redirect("http://169.254.169.254/1"))
            storage.expect("GET", "/1", Answer(body=CONTENT))
            options = behind(proxy, plain_http=["169.254.7.7:5000"])
            with open_repository("169.254.7.7:5000/team/app:1", **options) as repository:
                assert read_all(repository, LAYER) == CONTENT
                with pytest.raises(RegistryError, match="address of this machine"):
                    repository.open_blob(LAYER)


def test_s2_a_registry_behind_a_proxy_may_not_send_past_it_to_this_machine() -> None:
    with (
        ScriptedRegistry() as registry,
        ScriptedServer() as inside,
        ForwardingProxy({"registry.test:80": registry.port}) as proxy,
    ):
        registry.expect("GET", BLOB, redirect("http://inside.test/1"), redirect(f"http://localhost:{inside.port}/1"))
        network = NamedNetwork(
            {"inside.test": [["127.0.0.1"]], "proxy.test": [["127.0.0.1"]], "localhost": [["127.0.0.1"]]},
            {"inside.test": inside.port, "proxy.test": proxy.port, "localhost": inside.port},
        )
        proxies = Proxies(http="proxy.test", no_proxy="inside.test")
        with open_repository(REFERENCE, **PLAIN, proxies=proxies, network=network) as repository:
            for _ in range(2):
                with pytest.raises(RegistryError, match="address of this machine"):
                    repository.open_blob(LAYER)
        assert not inside.requests


@pytest.mark.parametrize("has_tls", [False, True])
def test_s3_no_credentials_cross_to_another_host_behind_the_same_proxy(
    certificate: Certificate, house: Authority, *, has_tls: bool
) -> None:
    served = certificate if has_tls else None
    scheme, port = ("https", 443) if has_tls else ("http", 80)
    with (
        ScriptedRegistry(certificate=served) as registry,
        ScriptedServer(certificate=served) as storage,
        ForwardingProxy(
            {f"registry.test:{port}": registry.port, f"storage.test:{port}": storage.port}, login=LOGIN
        ) as proxy,
    ):
        registry.expect("GET", BLOB, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        forbids = ["Proxy-Authorization"]
        moved = redirect(f"{scheme}://storage.test/1?signature=very-secret")
        registry.expect("GET", BLOB, moved, requires={"Authorization": ALICE.basic}, forbids=forbids)
        storage.expect("GET", "/1?signature=very-secret", Answer(body=CONTENT))
        known = {"credentials": {"registry.test": ALICE}, "ca_file": house.certificate}
        with open_repository(REFERENCE, **behind(proxy, **known), **({} if has_tls else PLAIN)) as repository:
            assert read_all(repository, LAYER) == CONTENT
        storage.assert_no_credentials()
        to_proxy = [request for request in proxy.requests if request.header("Authorization")]
        assert len(to_proxy) == (0 if has_tls else 1)


def test_s3_a_redirect_out_of_tls_is_refused_behind_a_proxy_too(certificate: Certificate, house: Authority) -> None:
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        ForwardingProxy({"registry.test:443": registry.port}) as proxy,
    ):
        registry.expect("GET", BLOB, redirect("http://storage.test/1"))
        with (
            open_repository(REFERENCE, **behind(proxy, ca_file=house.certificate)) as repository,
            pytest.raises(RegistryError, match="from TLS to plain HTTP"),
        ):
            repository.open_blob(LAYER)
        assert proxy.asked == ["CONNECT registry.test:443"]


def test_the_certificate_of_a_host_behind_a_proxy_is_checked(certificate: Certificate) -> None:
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        ForwardingProxy({"registry.test:443": registry.port}) as proxy,
        open_repository(REFERENCE, **behind(proxy)) as repository,
        pytest.raises(RegistryError, match="its certificate is not trusted") as caught,
    ):
        repository.resolve("1")
    assert "proxy" not in str(caught.value)
    assert not registry.requests


# Proxies that fail


def refused(proxy: ForwardingProxy, **options: Any) -> RegistryError:
    """Return the error that a pull through a proxy ends in, having seen that it tells no secret."""
    with (
        open_repository(REFERENCE, **{**behind(proxy), **options}) as repository,
        pytest.raises(RegistryError) as caught,
    ):
        repository.open_blob(LAYER)
    told = "".join(traceback.format_exception(caught.value))
    for secret in ("proxy-secret", "proxy-user", basic_credentials(*LOGIN).partition(" ")[2]):
        assert secret not in told
    assert caught.value.url == f"{'http' if 'plain_http' in options else 'https'}://registry.test{BLOB}"
    return caught.value


@pytest.mark.parametrize("options", [{}, PLAIN], ids=["line", "passed-on"])
def test_a_proxy_that_wants_another_login_is_told_of_and_not_asked_again(options: dict[str, Any]) -> None:
    with ForwardingProxy({}, login=("other", "login")) as proxy:
        wrong = f"http://{':'.join(LOGIN)}@{proxy.host}"
        error = refused(proxy, proxies=Proxies(http=wrong, https=wrong), **options)
        assert f"the proxy http://{proxy.host} wants another login than it got" in str(error)
        assert len(proxy.requests) == 1


@pytest.mark.parametrize(("status", "times"), [(403, 1), (502, 2), (503, 2)])
def test_a_proxy_that_does_not_lead_on_is_told_of(status: int, times: int) -> None:
    answer = f"HTTP/1.1 {status} proxy-secret\r\nContent-Length: 0\r\n\r\n".encode()
    with ForwardingProxy({}, login=LOGIN, answer=answer) as proxy:
        assert f"the proxy http://{proxy.host} refuses ({status})" in str(refused(proxy))
        assert len(proxy.requests) == times


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "closed before the answer's end"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", "closed before the answer's end"),
        (b"SSH-2.0-x\r\n\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, "answers without end"),
        (b"HTTP/1.1 200 OK\r\n\r\nno TLS at all here", "does not speak TLS"),
    ],
)
def test_a_proxy_that_answers_wrongly_is_told_of(answer: bytes, problem: str) -> None:
    with ForwardingProxy({}, answer=answer) as proxy:
        assert re.search(problem, str(refused(proxy)))


def test_a_passed_on_answer_that_repeats_the_login_is_not_shown_whole() -> None:
    body = registry_error(403, "DENIED", f"you said {basic_credentials(*LOGIN)}").body
    answer = b"HTTP/1.1 403 x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
    with ForwardingProxy({}, login=LOGIN, answer=answer) as proxy:
        assert "you said Basic ***" in str(refused(proxy, **PLAIN))


def test_a_proxy_that_is_not_there_is_told_of() -> None:
    with ForwardingProxy({}, login=LOGIN) as proxy:
        nobody = f"http://{':'.join(LOGIN)}@127.0.0.1:{free_port()}"
        error = refused(proxy, proxies=Proxies(https=nobody))
    assert re.search(r"the proxy http://127\.0\.0\.1:\d+ cannot be used: the connection failed", str(error))


def test_a_proxy_whose_certificate_is_not_trusted_is_not_told_the_login(tmp_path: Path) -> None:
    with ForwardingProxy({}, login=LOGIN, certificate=make_certificate(tmp_path)) as proxy:
        for options in ({}, PLAIN):
            error = refused(proxy, **options)
            assert f"the proxy https://{proxy.host} cannot be used: its certificate is not trusted" in str(error)
        assert not proxy.requests
        assert proxy.failed_handshakes


@pytest.mark.parametrize("drips", [False, True])
def test_a_proxy_that_does_not_answer_has_a_deadline(*, drips: bool) -> None:
    with slow_listener(drips=drips) as port:
        nobody = Proxies(https=f"127.0.0.1:{port}")
        started = time.monotonic()
        with (
            open_repository(
                REFERENCE, proxies=nobody, attempts=1, connect_seconds=0.5, silence_seconds=0.5
            ) as repository,
            pytest.raises(RegistryError, match="in time"),
        ):
            repository.resolve("1")
        assert time.monotonic() - started < SOON_SECONDS


def test_waiting_for_a_proxy_is_interrupted() -> None:
    with slow_listener(drips=False) as port:
        nobody = Proxies(https=f"127.0.0.1:{port}")
        options = {"proxies": nobody, "connect_seconds": 60.0, "silence_seconds": 60.0}
        with open_repository(REFERENCE, **options) as repository:
            timer = threading.Timer(0.3, repository.interrupt)
            timer.start()
            started = time.monotonic()
            with pytest.raises(RegistryError):
                repository.resolve("1")
            assert time.monotonic() - started < SOON_SECONDS
            timer.join(5)


@contextmanager
def slow_listener(*, drips: bool) -> Iterator[int]:
    """Listen, and say nothing, or one byte of a head now and then."""
    closing = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    while not closing.wait(0.1):
                        if drips:
                            connection.sendall(b"H")
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        closing.set()
        thread.join(5)


# Insecure registries


@pytest.mark.parametrize("status", [403, 502])
def test_an_insecure_registry_without_tls_is_reached_through_a_proxy(status: int) -> None:
    with (
        ScriptedRegistry() as registry,
        ForwardingProxy({"registry.test:80": registry.port}, refused_lines=status) as proxy,
    ):
        serve_image(registry, "team/app", "1", IMAGE)
        with open_repository(REFERENCE, **behind(proxy, insecure=["registry.test"])) as repository:
            repository.resolve("1")
            assert read_all(repository, LAYER) == CONTENT
        assert proxy.asked[0] == "CONNECT registry.test:443"
        with (
            open_repository(REFERENCE, **behind(proxy)) as repository,
            pytest.raises(RegistryError, match="refuses"),
        ):
            repository.resolve("1")


def test_an_insecure_registry_with_tls_is_reached_through_a_proxy_unchecked(certificate: Certificate) -> None:
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        ForwardingProxy({"registry.test:443": registry.port}) as proxy,
    ):
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        with open_repository(REFERENCE, **behind(proxy, insecure=["registry.test"])) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert proxy.asked == ["CONNECT registry.test:443"]


def test_that_a_registry_is_insecure_says_nothing_of_a_proxy_with_tls(
    certificate: Certificate, house: Authority, tmp_path: Path
) -> None:
    with (
        ScriptedRegistry(certificate=make_certificate(tmp_path)) as registry,
        ForwardingProxy({"registry.test:443": registry.port}, login=LOGIN, certificate=certificate) as proxy,
    ):
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        insecure = behind(proxy, insecure=["registry.test"])
        with open_repository(REFERENCE, **insecure, ca_file=house.certificate) as repository:
            assert read_all(repository, LAYER) == CONTENT
        with (
            open_repository(REFERENCE, **insecure) as repository,
            pytest.raises(RegistryError, match=r"the proxy .* its certificate is not trusted"),
        ):
            repository.open_blob(LAYER)
        assert proxy.asked == ["CONNECT registry.test:443"]
