"""Which registries may be used at all: by the names of images, and by the addresses that are connected to."""

from collections.abc import Callable

import pytest

from minibox_store import Credentials, Mirror, Reference, RegistryBlocked, RegistryRule, RegistryRules, StoreError
from minibox_store.registry import RegistryClient
from minibox_store.registry.addresses import is_private
from minibox_store.registry.mirrors import MirroredRepository
from tests.support.images import build_image
from tests.support.registries import NamedNetwork, quick_client
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
# Of a public resolver: an address that the whole Internet reaches. Nothing is sent there.
GLOBAL_ADDRESS = "9.9.9.9"
PRIVATE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "169.254.169.254"),
    *("168.63.129.16", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
    *("::1", "::", "fd00::1", "fc00::1", "fe80::1%lo", "ff02::1", "2001:db8::1", "fd00:ec2::254"),
    *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "::10.0.0.1", "2002:0a00:0001::", "no address"),
]
RULES = RegistryRules(allowed=["docker.io/library", "ghcr.io/org", "quay.io", "*.example.net", "lan:5000"])


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_not_everybody_reaches_is_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", [GLOBAL_ADDRESS, "::ffff:9.9.9.9", "2620:fe::fe", "64:ff9b::9.9.9.9", "172.32.0.1"])
def test_an_address_that_everybody_reaches_is_not(address: str) -> None:
    assert not is_private(address)


@pytest.mark.parametrize(
    "name",
    [
        *("alpine", "registry-1.docker.io/library/alpine:1", "ghcr.io/org/app", "ghcr.io/org/a/b", "quay.io/x/y"),
        *("QUAY.io/x/y", "a.example.net/x", "a.b.example.net:5000/x", "lan:5000/x"),
    ],
)
def test_what_is_allowed_leads_somewhere(name: str) -> None:
    assert RULES.places(Reference.parse(name))
    assert RULES.named_place(Reference.parse(name))
    RULES.check(Reference.parse(name))


@pytest.mark.parametrize(
    "name",
    [
        *("team/alpine", "ghcr.io/organ/app", "ghcr.io/other/org/app", "quay.io:443/x/y", "quay.io.evil.example/x/y"),
        *("example.net/x", "lan:5001/x", "localhost/quay.io/x", "127.0.0.1:5000/x", "[::1]:5000/x"),
        "docker.io.evil/library/x",
    ],
)
def test_every_other_name_is_blocked_before_anybody_is_asked(name: str) -> None:
    network = NamedNetwork({}, {})
    client = quick_client(registries=RULES, network=network)
    reference = Reference.parse(name)
    for open_it in (client.open_repository, client.open_origin, RULES.check):
        with pytest.raises(RegistryBlocked, match="is blocked: no rule allows it"):
            open_it(reference)
    assert network.asked == network.connected == []


def test_nothing_is_allowed_by_an_empty_list_and_everything_by_none() -> None:
    for name in ("alpine", "localhost:5000/app"):
        with pytest.raises(RegistryBlocked):
            RegistryRules(allowed=[]).check(Reference.parse(name))
        RegistryRules().check(Reference.parse(name))


def test_what_is_blocked_is_not_allowed_by_a_longer_prefix() -> None:
    rules = RegistryRules((RegistryRule(prefix="quay.io", blocked=True),), allowed=["quay.io/team"])
    with pytest.raises(RegistryBlocked, match=r"by the rule for quay\.io"):
        rules.check(Reference.parse("quay.io/team/app"))


def test_a_registry_of_which_some_is_allowed_may_be_logged_in_to_and_another_not() -> None:
    assert RULES.registry_place("ghcr.io").reference.domain == "ghcr.io"
    client = quick_client(registries=RULES, network=NamedNetwork({}, {}))
    with pytest.raises(RegistryBlocked, match=r"^evil\.example is blocked: no rule allows it$"):
        client.check_credentials("evil.example", Credentials("me", "secret"))
    with pytest.raises(RegistryBlocked):
        client.open_registry("evil.example")


def test_where_a_rule_of_an_allowed_name_leads_need_not_be_allowed_too() -> None:
    mirror = RegistryRule(prefix="quay.io", mirrors=[Mirror(location="mirror.test")], location="moved.test")
    rules = RegistryRules((mirror,), allowed=["quay.io"])
    places = rules.places(Reference.parse("quay.io/team/app:1"))
    assert [str(place.reference) for place in places] == ["mirror.test/team/app:1", "moved.test/team/app:1"]
    with pytest.raises(RegistryBlocked):
        rules.check(Reference.parse("mirror.test/team/app:1"))


def sheltered(addresses: dict[str, list[str]], *rules: RegistryRule, **servers: ScriptedServer) -> "Sheltered":
    """A client that may connect to no private address, in a network where names are at these."""
    return Sheltered(addresses, servers, rules)


class Sheltered:
    """A client, its network, and what was connected to."""

    def __init__(
        self, addresses: dict[str, list[str]], servers: dict[str, ScriptedServer], rules: tuple[RegistryRule, ...]
    ) -> None:
        ports = {f"{name}.test": server.port for name, server in servers.items()}
        self.network = NamedNetwork({name: [found] for name, found in addresses.items()}, ports)
        hosts = [f"{name}.test" for name in servers]
        self.client: RegistryClient = quick_client(
            network=self.network, plain_http=hosts, registries=RegistryRules(rules, private_addresses=False)
        )


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "fd00::5"])
def test_a_registry_at_a_private_address_is_neither_read_nor_written(address: str) -> None:
    reference = Reference.parse("registry.test/team/app:1")
    with ScriptedRegistry() as registry:
        where = sheltered({"registry.test": [address]}, registry=registry)
        asked: list[Callable[[], object]] = [
            lambda: where.client.open_repository(reference).resolve("1"),
            lambda: where.client.open_origin(reference, access="pull,push").check_access(),
            lambda: where.client.check_credentials("registry.test", Credentials("me", "secret")),
        ]
        for ask in asked:
            with pytest.raises(
                RegistryBlocked, match=r"^registry\.test is at a private address, and private_addresses"
            ):
                ask()
        assert where.network.connected == []
        assert not registry.requests


def test_a_registry_that_is_spelled_as_a_private_address_is_not_connected_to() -> None:
    client = quick_client(registries=RegistryRules(private_addresses=False))
    with ScriptedRegistry() as registry:
        for host in ("127.0.0.1", "localhost"):
            with (
                client.open_repository(Reference.parse(f"{host}:{registry.port}/team/app:1")) as repository,
                pytest.raises(RegistryBlocked),
            ):
                repository.resolve("1")
        assert not registry.requests


def test_of_several_addresses_a_private_one_is_passed_over() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        where = sheltered({"registry.test": ["10.0.0.1", GLOBAL_ADDRESS, "127.0.0.1"]}, registry=registry)
        with where.client.open_repository(Reference.parse("registry.test/team/app:1")) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert where.network.connected == [GLOBAL_ADDRESS]


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1"])
def test_a_redirect_to_a_private_address_is_not_followed(address: str) -> None:
    with ScriptedRegistry() as registry, ScriptedServer() as inside:
        registry.expect("GET", BLOB, redirect("http://inside.test/1"))
        where = sheltered(
            {"registry.test": [GLOBAL_ADDRESS], "inside.test": [address]}, registry=registry, inside=inside
        )
        with (
            where.client.open_repository(Reference.parse("registry.test/team/app:1")) as repository,
            pytest.raises(RegistryBlocked, match=r"^inside\.test is at a private address"),
        ):
            repository.open_blob(LAYER)
        assert where.network.connected == [GLOBAL_ADDRESS]
        assert not inside.requests


def test_a_token_server_at_a_private_address_is_not_asked() -> None:
    with ScriptedRegistry() as registry, TokenServer() as inside:
        registry.expect("GET", BLOB, unauthorized('Bearer realm="http://inside.test/token"'))
        addresses = {"registry.test": [GLOBAL_ADDRESS], "inside.test": ["10.0.0.9"]}
        where = sheltered(addresses, registry=registry, inside=inside)
        with (
            where.client.open_repository(Reference.parse("registry.test/team/app:1")) as repository,
            pytest.raises(RegistryBlocked),
        ):
            repository.open_blob(LAYER)
        assert not inside.requests


def test_a_mirror_at_a_private_address_is_passed_over_for_what_it_stands_for() -> None:
    rule = RegistryRule(prefix="registry.test", mirrors=[Mirror(location="mirror.test")])
    with ScriptedRegistry() as registry, ScriptedRegistry() as mirror:
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        addresses = {"registry.test": [GLOBAL_ADDRESS], "mirror.test": ["192.168.7.7"]}
        where = sheltered(addresses, rule, registry=registry, mirror=mirror)
        with where.client.open_repository(Reference.parse("registry.test/team/app:1")) as repository:
            assert isinstance(repository, MirroredRepository)
            assert read_all(repository, LAYER) == CONTENT
        assert where.network.connected == [GLOBAL_ADDRESS]
        assert not mirror.requests


def test_where_mirror_and_registry_are_private_the_error_tells_of_both() -> None:
    rule = RegistryRule(prefix="registry.test", mirrors=[Mirror(location="mirror.test")])
    with ScriptedRegistry() as registry, ScriptedRegistry() as mirror:
        addresses = {"registry.test": ["10.0.0.1"], "mirror.test": ["10.0.0.2"]}
        where = sheltered(addresses, rule, registry=registry, mirror=mirror)
        with (
            where.client.open_repository(Reference.parse("registry.test/team/app:1")) as repository,
            pytest.raises(StoreError) as caught,
        ):
            repository.resolve("1")
    assert isinstance(caught.value, RegistryBlocked)
    assert "mirror.test" in str(caught.value)


def test_with_private_addresses_allowed_a_registry_may_be_at_one() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, *[Answer(body=CONTENT)] * 2)
        network = NamedNetwork({"registry.test": [["10.0.0.1"]]}, {"registry.test": registry.port})
        for private in (True, None):
            client = quick_client(
                network=network, plain_http=["registry.test"], registries=RegistryRules(private_addresses=private)
            )
            with client.open_repository(Reference.parse("registry.test/team/app:1")) as repository:
                assert read_all(repository, LAYER) == CONTENT
        assert network.connected == ["10.0.0.1"] * 2
