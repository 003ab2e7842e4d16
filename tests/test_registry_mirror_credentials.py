"""S1 with mirrors: each place sees what is known for its own host, and what a rule says that it may see, no more."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Literal

import pytest

from minibox_store import Credentials, Mirror, RegistryClient, RegistryRule
from minibox_store.errors import AuthenticationRefused, StoreError
from minibox_store.reference import Reference
from tests.support.images import build_image
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_mirrored, quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    TokenServer,
    basic_credentials,
    manifest_target,
    pull_scope,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all, root_of

REPOSITORY = "team/app"
IMAGE = build_image()
MANIFEST = manifest_target(REPOSITORY, "1")
HOME_SECRET = ("alice", "secret-of-home")
MIRROR_SECRET = ("bob", "secret-of-mirror")
BASIC = 'Basic realm="x"'


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def mirror(stack: ExitStack) -> ScriptedRegistry:
    return stack.enter_context(ScriptedRegistry())


@pytest.fixture
def home(stack: ExitStack) -> ScriptedRegistry:
    return stack.enter_context(ScriptedRegistry())


def credentials(secret: tuple[str, str]) -> Credentials:
    return Credentials(*secret)


def rule(
    mirror: ScriptedRegistry, home: ScriptedRegistry, whose: Literal["own", "shared"] = "own", *realms: str
) -> RegistryRule:
    return RegistryRule(prefix=home.host, mirrors=[Mirror(location=mirror.host, credentials=whose)], realms=realms)


def assert_reads_all(client: RegistryClient, reference: str) -> None:
    with client.open_repository(Reference.parse(reference)) as repository:
        assert repository.resolve("1") == root_of(IMAGE)
        for descriptor in descriptors_of(IMAGE):
            assert read_all(repository, descriptor) == IMAGE.blobs[str(descriptor.digest)]


def assert_unseen(secret: tuple[str, str], *places: ScriptedRegistry | TokenServer) -> None:
    for place in places:
        for request in place.requests:
            assert request.header("Authorization") != basic_credentials(*secret)
            assert secret[1] not in str(request.headers)
            assert secret[1].encode() not in request.body


def test_s1_a_mirror_never_sees_the_credentials_of_what_it_stands_for(
    mirror: ScriptedRegistry, home: ScriptedRegistry
) -> None:
    mirror.allow("GET", MANIFEST, unauthorized(BASIC))
    for descriptor in descriptors_of(IMAGE):
        for target in (
            f"/v2/{REPOSITORY}/blobs/{descriptor.digest}",
            manifest_target(REPOSITORY, str(descriptor.digest)),
        ):
            mirror.allow("GET", target, unauthorized(BASIC))
    authorization = basic_credentials(*HOME_SECRET)
    serve_image(home, REPOSITORY, "1", IMAGE, authorization=authorization, challenge=BASIC)
    client = quick_client(registries=[rule(mirror, home)], credentials={home.host: credentials(HOME_SECRET)})
    assert_reads_all(client, home.reference(REPOSITORY, "1"))
    mirror.assert_no_credentials()


def test_s1_each_place_sees_its_own_credentials_and_no_others(mirror: ScriptedRegistry, home: ScriptedRegistry) -> None:
    known = {home.host: credentials(HOME_SECRET), mirror.host: credentials(MIRROR_SECRET)}
    lacking = IMAGE.layer_digests[0]
    serve_image(
        mirror,
        REPOSITORY,
        "1",
        IMAGE.without(lacking),
        authorization=basic_credentials(*MIRROR_SECRET),
        challenge=BASIC,
    )
    mirror.allow("GET", f"/v2/{REPOSITORY}/blobs/{lacking}", registry_error(404, "BLOB_UNKNOWN"))
    serve_image(home, REPOSITORY, None, IMAGE, authorization=basic_credentials(*HOME_SECRET), challenge=BASIC)
    assert_reads_all(quick_client(registries=[rule(mirror, home)], credentials=known), home.reference(REPOSITORY, "1"))
    assert_unseen(HOME_SECRET, mirror)
    assert_unseen(MIRROR_SECRET, home)


def test_credentials_for_a_path_at_the_mirror_are_those_for_where_it_is_there(
    mirror: ScriptedRegistry, home: ScriptedRegistry
) -> None:
    known = {
        f"{mirror.host}/cache/team": credentials(MIRROR_SECRET),
        mirror.host: credentials(("nobody", "not-this-one")),
        f"{mirror.host}/team": credentials(("nobody", "nor-this-one")),
    }
    authorization = basic_credentials(*MIRROR_SECRET)
    serve_image(mirror, f"cache/{REPOSITORY}", "1", IMAGE, authorization=authorization, challenge=BASIC)
    moved = RegistryRule(prefix=home.host, mirrors=[Mirror(location=f"{mirror.host}/cache")])
    assert_reads_all(quick_client(registries=[moved], credentials=known), home.reference(REPOSITORY, "1"))


def test_a_rule_that_says_so_shows_a_mirror_the_credentials_of_what_it_stands_for(
    mirror: ScriptedRegistry, home: ScriptedRegistry
) -> None:
    known = {home.host: credentials(HOME_SECRET), mirror.host: credentials(MIRROR_SECRET)}
    serve_image(mirror, REPOSITORY, "1", IMAGE, authorization=basic_credentials(*HOME_SECRET), challenge=BASIC)
    shared = rule(mirror, home, "shared")
    assert_reads_all(quick_client(registries=[shared], credentials=known), home.reference(REPOSITORY, "1"))
    assert_unseen(MIRROR_SECRET, mirror)


@pytest.mark.parametrize("whose_first", ["own", "shared"])
def test_what_a_mirror_gave_for_the_credentials_of_another_is_not_used_for_its_own(
    mirror: ScriptedRegistry, stack: ExitStack, whose_first: str
) -> None:
    one, other = (stack.enter_context(ScriptedRegistry()) for _ in range(2))
    known = {each.host: credentials(HOME_SECRET) for each in (one, other)}
    known[mirror.host] = credentials(MIRROR_SECRET)
    rules = [rule(mirror, one, "shared"), rule(mirror, other)]
    client = quick_client(registries=rules, credentials=known)
    expected = {one.host: HOME_SECRET, other.host: MIRROR_SECRET}
    places = [one, other] if whose_first == "shared" else [other, one]
    for place in places:
        authorization = basic_credentials(*expected[place.host])
        mirror.expect("GET", MANIFEST, unauthorized(BASIC), forbids=["Authorization"])
        content = IMAGE.blobs[IMAGE.digest]
        answer = Answer(headers={"Content-Type": IMAGE.media_type}, body=content)
        mirror.expect("GET", MANIFEST, answer, requires={"Authorization": authorization})
        with client.open_repository(Reference.parse(place.reference(REPOSITORY, "1"))) as repository:
            assert repository.resolve("1") == root_of(IMAGE)


@pytest.mark.parametrize(("whose", "has_realm"), [("own", True), ("shared", False)])
def test_s1_a_token_server_elsewhere_sees_credentials_only_where_a_rule_names_it(
    mirror: ScriptedRegistry, home: ScriptedRegistry, whose: Literal["own", "shared"], has_realm: bool
) -> None:
    with TokenServer() as tokens:
        challenge = tokens.challenge(service="s", scope=pull_scope(REPOSITORY))
        mirror.allow("GET", MANIFEST, unauthorized(challenge))
        home.allow("GET", MANIFEST, unauthorized(BASIC))
        # For the credentials of another nobody has named it; for its own only the other's rule has.
        known = {(home if whose == "shared" else mirror).host: credentials(HOME_SECRET)}
        named = [tokens.host] if has_realm else []
        with (
            open_mirrored(
                home.reference(REPOSITORY, "1"), rule(mirror, home, whose, *named), credentials=known
            ) as opened,
            pytest.raises(AuthenticationRefused, match="its credentials go to no token server of another host"),
        ):
            opened.resolve("1")
        assert tokens.requests == []


def test_a_token_server_that_a_rule_names_for_the_mirror_sees_the_mirrors_credentials(
    mirror: ScriptedRegistry, home: ScriptedRegistry
) -> None:
    with TokenServer() as tokens:
        scope = pull_scope(REPOSITORY)
        tokens.expect_token("good", service="s", scope=scope, credentials=MIRROR_SECRET)
        challenge = tokens.challenge(service="s", scope=scope)
        serve_image(mirror, REPOSITORY, "1", IMAGE, authorization="Bearer good", challenge=challenge)
        rules = [rule(mirror, home), RegistryRule(prefix=mirror.host, realms=[tokens.host])]
        known = {mirror.host: credentials(MIRROR_SECRET), home.host: credentials(HOME_SECRET)}
        assert_reads_all(quick_client(registries=rules, credentials=known), home.reference(REPOSITORY, "1"))


def test_shared_credentials_go_to_the_token_servers_that_may_see_them_anyway(
    mirror: ScriptedRegistry, home: ScriptedRegistry
) -> None:
    with TokenServer() as tokens:
        scope = pull_scope(REPOSITORY)
        tokens.expect_token("good", service="s", scope=scope, credentials=HOME_SECRET)
        challenge = tokens.challenge(service="s", scope=scope)
        serve_image(mirror, REPOSITORY, "1", IMAGE, authorization="Bearer good", challenge=challenge)
        shared = rule(mirror, home, "shared", tokens.host)
        client = quick_client(registries=[shared], credentials={home.host: credentials(HOME_SECRET)})
        assert_reads_all(client, home.reference(REPOSITORY, "1"))


def test_s1_the_credentials_for_a_name_do_not_go_where_its_rule_leads() -> None:
    with ScriptedRegistry() as moved, ScriptedRegistry() as named:
        moved.allow("GET", MANIFEST, unauthorized(BASIC))
        away = RegistryRule(prefix=named.host, location=moved.host)
        client = quick_client(registries=[away], credentials={named.host: credentials(HOME_SECRET)})
        with (
            client.open_repository(Reference.parse(named.reference(REPOSITORY, "1"))) as repository,
            pytest.raises(AuthenticationRefused),
        ):
            repository.resolve("1")
        moved.assert_no_credentials()


def test_s28_what_a_mirror_repeats_of_the_secrets_it_was_shown_stands_in_no_error(
    mirror: ScriptedRegistry, home: ScriptedRegistry
) -> None:
    mirror.expect("GET", MANIFEST, unauthorized(BASIC))
    repeated = registry_error(403, "DENIED", f"not {MIRROR_SECRET[1]}")
    mirror.allow("GET", MANIFEST, repeated, requires={"Authorization": None})
    home.allow("GET", MANIFEST, registry_error(404, "MANIFEST_UNKNOWN"))
    known = {mirror.host: credentials(MIRROR_SECRET)}
    with (
        open_mirrored(home.reference(REPOSITORY, "1"), rule(mirror, home), credentials=known) as opened,
        pytest.raises(StoreError) as caught,
    ):
        opened.resolve("1")
    assert f"{mirror.host} (403: not ***)" in str(caught.value)
    assert MIRROR_SECRET[1] not in str(caught.value) + repr(caught.value)


def test_docker_hubs_own_token_server_serves_a_mirror_that_shares(mirror: ScriptedRegistry) -> None:
    with TokenServer() as tokens:
        scope = pull_scope("library/alpine")
        tokens.expect_token("good", service="s", scope=scope, credentials=HOME_SECRET)
        challenge = f'Bearer realm="http://auth.docker.io/token",service="s",scope="{scope}"'
        serve_image(mirror, "library/alpine", "3", IMAGE, authorization="Bearer good", challenge=challenge)
        ports = {"mirror.example": mirror.port, "auth.docker.io": tokens.port}
        network = NamedNetwork({name: [[PUBLIC_ADDRESS]] for name in ports}, ports)
        hub = RegistryRule(prefix="docker.io", mirrors=[Mirror(location="mirror.example", credentials="shared")])
        client = quick_client(
            registries=[hub],
            network=network,
            plain_http=list(ports),
            credentials={"docker.io": credentials(HOME_SECRET)},
        )
        with client.open_repository(Reference.parse("alpine:3")) as repository:
            assert repository.resolve("3") == root_of(IMAGE)
