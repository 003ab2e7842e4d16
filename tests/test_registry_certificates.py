"""Certificates of single registries: where they are looked for, whom they hold for, and real peers that want them."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from minibox_store import Store
from minibox_store.errors import InvalidPath, RegistryError
from minibox_store.registry import CertificateFolders, Certificates, RegistryClient
from minibox_store.registry.environment import auth_paths, certificate_folders, registries_path
from tests.support.certificates import (
    Authority,
    Certificate,
    ClientCertificate,
    make_authority,
    make_certificate,
    write_certificates,
)
from tests.support.forks import not_possible, run_forked
from tests.support.images import build_image
from tests.support.layouts import read_layout_blobs
from tests.support.peers import docker_registry, push_image, require_peer, run_peer, skopeo_command, skopeo_environment
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

IMAGE = build_image()
LAYER = descriptors_of(IMAGE)[0]
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target("team/app", str(LAYER.digest))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the servers."""
    return make_authority(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who vouches for the clients."""
    return make_authority(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def alice(clients: Authority) -> ClientCertificate:
    return clients.for_client("alice")


@pytest.fixture(scope="module")
def certificate(house: Authority, clients: Authority, alice: ClientCertificate) -> Certificate:
    """What a server presents that asks clients for theirs."""
    return house.for_server(clients=clients, client=alice)


# Where they are looked for


def test_a_users_folders_go_before_the_machines_and_podmans_before_dockers() -> None:
    assert certificate_folders({"HOME": "/home/me"}) == (
        "/home/me/.config/containers/certs.d",
        "/home/me/.config/docker/certs.d",
        "/home/me/.docker/certs.d",
        "/etc/containers/certs.d",
        "/etc/docker/certs.d",
    )
    assert certificate_folders({"HOME": "/home/me", "XDG_CONFIG_HOME": "/settings"})[:3] == (
        "/settings/containers/certs.d",
        "/home/me/.config/containers/certs.d",
        "/settings/docker/certs.d",
    )


def test_a_folder_gives_all_authorities_and_the_first_client_certificate(tmp_path: Path) -> None:
    place = tmp_path / "quay.io"
    place.mkdir()
    for name in ("b.crt", "a.crt", "z.cert", "z.key", "me.key", "me.cert", "readme.txt"):
        (place / name).touch()
    assert CertificateFolders(tmp_path).find("quay.io") == Certificates(
        authorities=(str(place / "a.crt"), str(place / "b.crt")), client=(str(place / "me.cert"), str(place / "me.key"))
    )


def test_the_first_folder_that_is_there_counts_alone(tmp_path: Path) -> None:
    folders = CertificateFolders(tmp_path / "missing", tmp_path / "mine", tmp_path / "machine")
    (tmp_path / "machine" / "quay.io").mkdir(parents=True)
    (tmp_path / "machine" / "quay.io" / "ca.crt").touch()
    assert folders.find("quay.io") == Certificates(authorities=(str(tmp_path / "machine" / "quay.io" / "ca.crt"),))
    (tmp_path / "mine" / "quay.io").mkdir(parents=True)
    assert folders.find("quay.io") == Certificates()


@pytest.mark.parametrize(
    "host",
    [*("quay.io:443", "quay.io:5000", "a.quay.io", "io", "QUAY.IO."), *("", ".", "..", "../x", "quay.io/../../x")],
)
def test_a_folder_is_for_exactly_the_host_and_port_in_its_name(tmp_path: Path, host: str) -> None:
    (tmp_path / "certs.d" / "quay.io").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    assert CertificateFolders(tmp_path / "certs.d").find("quay.io") is not None
    assert CertificateFolders(tmp_path / "certs.d").find(host) is None


def test_relative_paths_stay_what_they_were_when_the_working_directory_changes(
    certificate: Certificate, alice: ClientCertificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        registry.allow("GET", BLOB, Answer(body=CONTENT))
        monkeypatch.chdir(alice.chain.parent)
        authority = os.path.relpath(certificate.chain)
        named = Certificates(authorities=(authority,), client=(alice.chain.name, os.path.relpath(alice.key)))
        places: list[dict[str, object]] = [{"ca_file": authority}, {"certificates": {registry.host: named}}]
        for options in places:
            monkeypatch.chdir(alice.chain.parent)
            with open_repository(registry.reference("team/app", "1"), https=[registry.host], **options) as repository:
                monkeypatch.chdir(tmp_path)
                assert read_all(repository, LAYER) == CONTENT


@pytest.mark.parametrize("named", [{"authorities": ("a\0b",)}, {"client": ("a\0b", "c")}], ids=repr)
def test_a_path_that_none_can_be_is_told_of(named: dict[str, Any]) -> None:
    with pytest.raises(InvalidPath, match="NUL"):
        Certificates(**named)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RegistryClient(ca_file="a.crt"),
        lambda: Certificates(authorities=("a.crt",)),
        lambda: Certificates(client=("a.cert", "a.key")),
        lambda: CertificateFolders("certs.d"),
        lambda: certificate_folders({"HOME": "relative"}),
        lambda: auth_paths({"HOME": "relative"}),
        lambda: auth_paths({"HOME": "/", "DOCKER_CONFIG": "relative"}),
        lambda: auth_paths({"HOME": "/", "REGISTRY_AUTH_FILE": "relative"}),
        lambda: registries_path({"MINIBOX_REGISTRIES": "relative"}),
    ],
)
def test_a_relative_path_is_told_of_where_the_working_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InvalidPath, match="no such file or directory"):
        make()


@pytest.mark.parametrize(
    ("present", "problem"),
    [
        ("me.cert", r"its key, me\.key, is not beside it; an authority would be named \*\.crt"),
        ("me.key", r"its certificate, me\.cert, is not beside it"),
    ],
)
def test_half_a_client_certificate_is_told_of(tmp_path: Path, present: str, problem: str) -> None:
    (tmp_path / "quay.io").mkdir()
    (tmp_path / "quay.io" / present).touch()
    with pytest.raises(InvalidPath, match=problem):
        CertificateFolders(tmp_path).find("quay.io")


def test_a_link_that_leads_nowhere_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "quay.io").mkdir()
    (tmp_path / "quay.io" / "ca.crt").symlink_to(tmp_path / "nowhere")
    assert CertificateFolders(tmp_path).find("quay.io") == Certificates()


def test_a_folder_that_may_not_be_looked_into_is_passed_over_and_a_key_that_may_not_be_read_is_told_of(
    house: Authority, alice: ClientCertificate
) -> None:
    if os.getuid() != 0:
        not_possible("to become another user needs root")
    # A folder of pytest's own is for nobody but us.
    with tempfile.TemporaryDirectory(prefix="certificates-") as top:
        os.chmod(top, 0o755)
        hidden, shown = Path(top) / "hidden", Path(top) / "shown"
        for folder in (hidden, shown):
            place = write_certificates(folder, "registry.test", authority=house.certificate, client=alice)
            os.chmod(place / "client.key", 0o600)
        os.chmod(hidden / "registry.test", 0o700)

        def look() -> None:
            os.setgroups([])
            os.setuid(65534)
            found = CertificateFolders(hidden, shown).find("registry.test")
            assert found is not None
            assert found.authorities == (str(shown / "registry.test" / "ca.crt"),)
            with (
                open_repository("registry.test/a/b:1", certificates=CertificateFolders(shown)) as repository,
                pytest.raises(InvalidPath, match=r"client\.key.*permission denied"),
            ):
                repository.resolve("1")

        assert run_forked(look) == 0


# Real peers


def test_a_registry_that_wants_client_certificates_is_read_by_us_and_by_skopeo_from_one_folder(
    tmp_path: Path, house: Authority, certificate: Certificate, alice: ClientCertificate
) -> None:
    home = tmp_path / "home"
    certs = home / ".config" / "containers" / "certs.d"
    with docker_registry(tmp_path / "registry", certificate=certificate) as registry:
        push_image(registry, "team/app", "1", IMAGE)
        write_certificates(certs, registry.host, authority=house.certificate, client=alice)
        reference = registry.reference("team/app", "1")
        with open_repository(reference, certificates=CertificateFolders(certs)) as repository:
            repository.resolve("1")
            assert read_all(repository, LAYER) == CONTENT
        copied = skopeo_command(home, "copy", f"docker://{reference}", f"oci:{tmp_path / 'copied'}:1")
        run_peer(copied, skopeo_environment(home))
    assert read_layout_blobs(tmp_path / "copied")[str(LAYER.digest)] == CONTENT


def test_a_store_without_a_client_finds_the_certificates_of_the_user(
    tmp_path: Path,
    house: Authority,
    certificate: Certificate,
    alice: ClientCertificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME")
    with docker_registry(tmp_path / "registry", certificate=certificate) as registry:
        push_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")
        with pytest.raises(RegistryError, match="certificate is not trusted"):
            Store(tmp_path / "store").pull(reference)
        for tool in ("docker", "containers"):
            write_certificates(
                tmp_path / ".config" / tool / "certs.d", registry.host, authority=house.certificate, client=alice
            )
            store = Store(tmp_path / f"store-{tool}")
            assert str(store.pull(reference).digest) == IMAGE.digest


def test_a_registry_that_wants_client_certificates_refuses_none_and_a_wrong_one(
    tmp_path: Path, house: Authority, certificate: Certificate
) -> None:
    stranger = make_authority(tmp_path / "elsewhere").for_client("alice")
    with docker_registry(tmp_path / "registry", certificate=certificate) as registry:
        for client in (None, (str(stranger.chain), str(stranger.key))):
            known = Certificates(authorities=(str(house.certificate),), client=client)
            with (
                open_repository(
                    registry.reference("team/app", "1"),
                    https=[registry.host],
                    certificates={registry.host: known},
                    attempts=2,
                ) as repository,
                pytest.raises(RegistryError) as caught,
            ):
                repository.resolve("1")
            assert caught.value.status is None


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_variables_of_openssl_say_who_is_trusted(
    tmp_path: Path, house: Authority, certificate: Certificate, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [require_peer("openssl"), "x509", "-noout", "-hash", "-in", str(house.certificate)]
    name = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    (tmp_path / f"{name}.0").symlink_to(house.certificate)
    named = {"SSL_CERT_FILE": house.certificate, "SSL_CERT_DIR": tmp_path}
    with ScriptedRegistry(certificate=certificate, hostname="localhost") as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        reference = registry.reference("team/app", "1")
        with open_repository(reference, https=[registry.host]) as repository, pytest.raises(RegistryError):
            repository.resolve("1")
        monkeypatch.setenv(variable, os.fspath(named[variable]))
        with open_repository(reference, https=[registry.host]) as repository:
            assert read_all(repository, LAYER) == CONTENT


# Whom they hold for


def network_of(**servers: ScriptedServer) -> NamedNetwork:
    """Return a network in which each server is at a public address, under its name."""
    names = {f"{name}.test": server.port for name, server in servers.items()}
    return NamedNetwork({name: [[PUBLIC_ADDRESS]] for name in names}, names)


def folders_for(
    folder: Path, *hosts: str, house: Authority, client: ClientCertificate | None = None
) -> CertificateFolders:
    for host in hosts:
        write_certificates(folder, host, authority=house.certificate, client=client)
    return CertificateFolders(folder)


def test_what_a_registry_leads_to_is_trusted_like_it_and_does_not_see_its_client_certificate(
    tmp_path: Path, house: Authority, certificate: Certificate, alice: ClientCertificate
) -> None:
    with (
        ScriptedRegistry(certificate=certificate) as registry,
        TokenServer(certificate=certificate) as tokens,
        ScriptedServer(certificate=certificate) as storage,
    ):
        scope = pull_scope("team/app")
        challenge = f'Bearer realm="https://tokens.test/token",service="x",scope="{scope}"'
        registry.expect("GET", BLOB, unauthorized(challenge), redirect("https://storage.test/1"))
        tokens.expect_token("good-token", service="x", scope=scope)
        storage.expect("GET", "/1", Answer(body=CONTENT))
        folders = folders_for(tmp_path, "registry.test", house=house, client=alice)
        network = network_of(registry=registry, tokens=tokens, storage=storage)
        with open_repository("registry.test/team/app:1", certificates=folders, network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
    assert set(registry.clients) == {"alice"}
    assert tokens.clients == [None]
    assert storage.clients == [None]


def test_a_host_that_a_registry_leads_to_has_certificates_of_its_own(
    tmp_path: Path, house: Authority, clients: Authority, certificate: Certificate, alice: ClientCertificate
) -> None:
    with ScriptedRegistry(certificate=certificate) as registry, ScriptedServer(certificate=certificate) as storage:
        registry.expect("GET", BLOB, redirect("https://storage.test/1"))
        storage.expect("GET", "/1", Answer(body=CONTENT))
        folders_for(tmp_path, "registry.test", house=house, client=alice)
        folders = folders_for(tmp_path, "storage.test", house=house, client=clients.for_client("bob"))
        network = network_of(registry=registry, storage=storage)
        with open_repository("registry.test/team/app:1", certificates=folders, network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
    assert registry.clients == ["alice"]
    assert storage.clients == ["bob"]


def test_the_authority_of_one_registry_vouches_for_no_other(
    tmp_path: Path, house: Authority, certificate: Certificate
) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        folders = folders_for(tmp_path, "storage.test", "registry.test:5000", house=house)
        with (
            open_repository(
                "registry.test/team/app:1", certificates=folders, network=network_of(registry=registry)
            ) as repository,
            pytest.raises(RegistryError, match="certificate is not trusted"),
        ):
            repository.resolve("1")
    assert not registry.requests


def test_a_certificate_for_another_host_is_refused_though_its_authority_is_trusted(
    tmp_path: Path, house: Authority, certificate: Certificate
) -> None:
    with ScriptedRegistry(certificate=certificate) as registry:
        network = NamedNetwork({"other.test": [[PUBLIC_ADDRESS]]}, {"other.test": registry.port})
        folders = folders_for(tmp_path, "other.test", house=house)
        with (
            open_repository("other.test/team/app:1", certificates=folders, network=network) as repository,
            pytest.raises(RegistryError, match="certificate is not trusted: Hostname mismatch"),
        ):
            repository.resolve("1")
    assert not registry.requests


def test_a_certificate_that_was_put_there_itself_is_trusted_though_it_is_no_authority(
    tmp_path: Path, certificate: Certificate
) -> None:
    write_certificates(tmp_path, "registry.test", authority=certificate.chain)
    with ScriptedRegistry(certificate=certificate) as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        options = {"certificates": CertificateFolders(tmp_path), "network": network_of(registry=registry)}
        with open_repository("registry.test/team/app:1", **options) as repository:
            assert read_all(repository, LAYER) == CONTENT


# What cannot be used


def with_other_key(place: Path, stranger: ClientCertificate) -> None:
    (place / "client.key").write_bytes(stranger.key.read_bytes())


def with_a_password(place: Path, stranger: ClientCertificate) -> None:
    command = [require_peer("openssl"), "ec", "-aes128", "-passout", "pass:x", "-in", str(stranger.key)]
    secret = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    (place / "client.key").write_bytes(secret)
    (place / "client.cert").write_bytes(stranger.chain.read_bytes())


def with_no_authority(place: Path, stranger: ClientCertificate) -> None:
    (place / "ca.crt").write_text("not in PEM")


def with_a_fifo_as(name: str, place: Path, stranger: ClientCertificate) -> None:
    (place / name).unlink()
    os.mkfifo(place / name)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (with_other_key, "client.key"),
        (with_a_password, "client.key"),
        (with_no_authority, "ca.crt"),
        (partial(with_a_fifo_as, "ca.crt"), "ca.crt"),
        (partial(with_a_fifo_as, "client.key"), "client.key"),
        (partial(with_a_fifo_as, "client.cert"), "client.key"),
    ],
)
def test_files_that_cannot_be_used_are_told_of_before_anybody_is_connected_to(
    tmp_path: Path, house: Authority, alice: ClientCertificate, spoil: object, name: str
) -> None:
    assert callable(spoil)
    folders = folders_for(tmp_path / "certs.d", "registry.test", house=house, client=alice)
    stranger = make_authority(tmp_path / "elsewhere").for_client("alice")
    spoil(tmp_path / "certs.d" / "registry.test", stranger)
    network = NamedNetwork({}, {})
    with (
        open_repository("registry.test/team/app:1", certificates=folders, network=network) as repository,
        pytest.raises(InvalidPath) as caught,
    ):
        repository.resolve("1")
    assert caught.value.path == str(tmp_path / "certs.d" / "registry.test" / name)
    assert not network.asked


def test_a_missing_file_that_a_program_names_is_told_of(tmp_path: Path) -> None:
    known = Certificates(authorities=(str(tmp_path / "missing.crt"),))
    for spoiled in (known, attrs.evolve(known, authorities=(), client=(str(tmp_path / "a"), str(tmp_path / "b")))):
        with (
            open_repository("registry.test/team/app:1", certificates={"Registry.Test": spoiled}) as repository,
            pytest.raises(InvalidPath, match="no such file"),
        ):
            repository.resolve("1")


def test_certificates_that_are_given_are_for_their_registry_alone(tmp_path: Path) -> None:
    itself = make_certificate(tmp_path)
    known = Certificates(authorities=(str(itself.chain),))
    with ScriptedRegistry(certificate=itself) as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        for name, is_trusted in (("registry.test", True), ("storage.test", False)):
            network = network_of(registry=registry)
            options = {"certificates": {name: known}, "network": network}
            with open_repository("registry.test/team/app:1", **options) as repository:
                if is_trusted:
                    assert read_all(repository, LAYER) == CONTENT
                else:
                    with pytest.raises(RegistryError, match="certificate is not trusted"):
                        repository.open_blob(LAYER)
