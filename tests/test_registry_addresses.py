"""S2: nobody leads a pull to this machine, or to what answers near it, unless the registry itself is there."""

import pytest

from minibox_store.errors import RegistryError
from tests.support.images import build_image
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_repository
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    blob_target,
    redirect,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all

IMAGE = build_image()
LAYER = descriptors_of(IMAGE)[0]
CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target("team/app", str(LAYER.digest))


def named(addresses: dict[str, list[list[str]]], **servers: ScriptedServer) -> NamedNetwork:
    """A network in which ``registry.test`` is at a public address, and others where the test says."""
    every = {"registry.test": [[PUBLIC_ADDRESS]], **addresses}
    return NamedNetwork(every, {f"{name}.test": server.port for name, server in servers.items()})


RESTRICTED = [
    "127.0.0.1",
    "169.254.169.254",
    "169.254.7.7",
    "0.0.0.0",
    "224.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "fe80::1",
]


@pytest.mark.parametrize("address", RESTRICTED)
def test_s2_a_redirect_to_a_restricted_address_is_refused_before_it_is_connected(address: str) -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as inside:
        registry.expect("GET", BLOB, redirect("http://inside.test/1"))
        network = named({"inside.test": [[address]]}, registry=registry, inside=inside)
        with (
            open_repository("registry.test/team/app:1", plain_http=["registry.test"], network=network) as repository,
            pytest.raises(RegistryError, match=r"inside\.test is at an address of this machine"),
        ):
            repository.open_blob(LAYER)
        assert network.connected == [PUBLIC_ADDRESS]
        assert not inside.requests


@pytest.mark.parametrize("address", RESTRICTED)
def test_s2_a_token_server_at_a_restricted_address_is_not_asked(address: str) -> None:
    with ScriptedRegistry() as registry, TokenServer() as inside:
        registry.expect("GET", BLOB, unauthorized('Bearer realm="http://inside.test/token"'))
        network = named({"inside.test": [[address]]}, registry=registry, inside=inside)
        with (
            open_repository("registry.test/team/app:1", plain_http=["registry.test"], network=network) as repository,
            pytest.raises(RegistryError, match=r"inside\.test is at an address of this machine"),
        ):
            repository.open_blob(LAYER)
        assert not inside.requests


def test_s2_a_name_that_rebinds_is_judged_by_the_address_that_is_connected() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, *[redirect("http://storage.test/1")] * 2)
        storage.expect("GET", "/1", Answer(body=CONTENT, headers={"Connection": "close"}))
        rebinding = {"storage.test": [[PUBLIC_ADDRESS], ["127.0.0.1"]]}
        network = named(rebinding, registry=registry, storage=storage)
        with open_repository("registry.test/team/app:1", plain_http=["registry.test"], network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
            with pytest.raises(RegistryError, match="address of this machine"):
                repository.open_blob(LAYER)
        assert network.asked.count("storage.test") == 2
        assert "127.0.0.1" not in network.connected


def test_s2_the_registrys_own_name_may_not_move_to_a_restricted_address_either() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, headers={"Connection": "close"}))
        network = named({"registry.test": [[PUBLIC_ADDRESS], ["127.0.0.1"]]}, registry=registry)
        with open_repository("registry.test/team/app:1", plain_http=["registry.test"], network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
            with pytest.raises(RegistryError, match="address of this machine"):
                repository.open_blob(LAYER)


def test_s2_of_several_addresses_the_restricted_ones_are_passed_over() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, redirect("http://storage.test/1"))
        storage.expect("GET", "/1", Answer(body=CONTENT))
        network = named(
            {"storage.test": [["127.0.0.1", "169.254.169.254", "198.51.100.9"]]}, registry=registry, storage=storage
        )
        with open_repository("registry.test/team/app:1", plain_http=["registry.test"], network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert network.connected == [PUBLIC_ADDRESS, "198.51.100.9"]


def test_s2_a_registry_on_this_machine_may_send_to_this_machine_but_not_to_its_neighbours() -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as storage:
        registry.expect("GET", BLOB, redirect("http://storage.test/1"), redirect("http://metadata.test/1"))
        storage.expect("GET", "/1", Answer(body=CONTENT))
        addresses = {
            "registry.test": [["127.0.0.1"]],
            "storage.test": [["127.0.0.2"]],
            "metadata.test": [["169.254.169.254"]],
        }
        network = named(addresses, registry=registry, storage=storage, metadata=storage)
        with open_repository("registry.test/team/app:1", plain_http=["registry.test"], network=network) as repository:
            assert read_all(repository, LAYER) == CONTENT
            with pytest.raises(RegistryError, match="address of this machine"):
                repository.open_blob(LAYER)
