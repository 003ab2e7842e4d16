"""Credentials of the machine at registries as they are: whom each of them sends for a token, and who sees what."""

import threading
import time
from pathlib import Path

import pytest

from minibox_store import Cancellation, Store
from minibox_store.errors import AuthenticationRefused, Cancelled
from tests.support.homes import Home, auth
from tests.support.images import build_image
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, open_repository, quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    TokenServer,
    basic_credentials,
    manifest_target,
    pull_scope,
    serve_image,
)
from tests.support.sources import root_of
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
ALICE = ("alice", "pass-word-1")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize(
    ("domain", "api", "token_host", "key"),
    [
        ("docker.io", "registry-1.docker.io", "auth.docker.io", "https://index.docker.io/v1/"),
        ("docker.io", "registry-1.docker.io", "auth.docker.io", "docker.io/team"),
        ("registry.gitlab.com", "registry.gitlab.com", "gitlab.com", "registry.gitlab.com"),
        ("registry.digitalocean.com", "registry.digitalocean.com", "api.digitalocean.com", "registry.digitalocean.com"),
        ("ghcr.io", "ghcr.io", "ghcr.io", "https://ghcr.io"),
    ],
)
def test_registries_with_token_servers_that_are_known_work_with_what_is_on_the_machine(
    home: Home, domain: str, api: str, token_host: str, key: str
) -> None:
    home.write(home.docker, {key: auth(*ALICE)})
    scope = pull_scope("team/app")
    with ScriptedRegistry() as registry, TokenServer() as elsewhere:
        server = registry if token_host == api else elsewhere
        realm = f"http://{token_host}/token"
        challenge = f'Bearer realm="{realm}",service="s",scope="{scope}"'
        serve_image(registry, "team/app", "1", IMAGE, authorization="Bearer good", challenge=challenge)
        server.expect(
            "GET",
            f"/token?service=s&scope={scope}",
            Answer(body=b'{"token": "good"}'),
            requires={"Authorization": basic_credentials(*ALICE)},
        )
        names = {api: registry.port, token_host: server.port}
        network = NamedNetwork({name: [[PUBLIC_ADDRESS]] for name in names}, names)
        options = {"credentials": home.machine(), "network": network, "plain_http": list(names)}
        with open_repository(f"{domain}/team/app:1", **options) as repository:
            assert repository.resolve("1") == root_of(IMAGE)


def test_ecr_gets_by_basic_what_its_helper_says(home: Home) -> None:
    with ScriptedRegistry() as registry:
        helper = home.add_helper("ecr-login", {registry.host: ("AWS", "twelve-hours")})
        home.write(home.docker, credHelpers={registry.host: "ecr-login", "public.ecr.aws": "ecr-login"})
        challenge = 'Basic realm="https://1234.dkr.ecr.eu-central-1.amazonaws.com/",service="ecr.amazonaws.com"'
        authorization = basic_credentials("AWS", "twelve-hours")
        serve_image(registry, "team/app", "1", IMAGE, authorization=authorization, challenge=challenge)
        with open_repository(registry.reference("team/app", "1"), credentials=home.machine()) as repository:
            assert repository.resolve("1") == root_of(IMAGE)
            assert repository.resolve("1") == root_of(IMAGE)
        assert [arguments for arguments, _, _, _ in helper.runs()] == [["get"]]


def test_s1_credentials_of_other_registries_stay_where_they_are(home: Home) -> None:
    with ScriptedRegistry() as registry, ScriptedRegistry() as other:
        near = [
            other.host,
            f"{registry.host}0",
            f"{registry.host}.example.org",
            f"{registry.host}/team/ap",
            "127.0.0.1",
        ]
        home.write(home.docker, {key: auth(*ALICE) for key in near})
        home.write(home.podman, {key: auth(*ALICE) for key in near})
        serve_image(registry, "team/app", "1", IMAGE, authorization="Basic x", challenge='Basic realm="r"')
        with (
            open_repository(registry.reference("team/app", "1"), credentials=home.machine()) as repository,
            pytest.raises(AuthenticationRefused),
        ):
            repository.resolve("1")
        registry.assert_no_credentials()
        assert not other.requests


def test_s1_what_is_on_the_machine_is_told_to_no_token_server_that_a_registry_makes_up(home: Home) -> None:
    with ScriptedRegistry() as registry, TokenServer() as evil:
        home.write(home.docker, {registry.host: {**auth(*ALICE), "identitytoken": "it"}, evil.host: auth(*ALICE)})
        challenge = evil.challenge(service="s", scope=pull_scope("team/app"))
        serve_image(registry, "team/app", "1", IMAGE, authorization="Bearer good", challenge=challenge)
        with (
            open_repository(registry.reference("team/app", "1"), credentials=home.machine()) as repository,
            pytest.raises(AuthenticationRefused, match="not configured"),
        ):
            repository.resolve("1")
        registry.assert_no_credentials()
        assert not evil.requests


def test_without_being_asked_for_them_a_client_is_anonymous(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedRegistry() as registry:
        home.write(home.docker, {registry.host: auth(*ALICE)})
        monkeypatch.setenv("DOCKER_CONFIG", str(home.docker.parent))
        serve_image(registry, "team/app", "1", IMAGE, authorization="Basic x", challenge='Basic realm="r"')
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(AuthenticationRefused),
        ):
            repository.resolve("1")
        registry.assert_no_credentials()
        assert registry.count("GET", manifest_target("team/app", "1")) == 1


def test_a_pull_that_waits_for_a_helper_ends_within_a_second_of_its_cancel(home: Home) -> None:
    home.add_helper("x", trouble="import time; time.sleep(100)")
    home.write(home.docker, credsStore="x")
    cancellation, cancelled_at = Cancellation(), []

    def cancel() -> None:
        cancelled_at.append(time.monotonic())
        cancellation.cancel()

    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE, authorization="Basic x", challenge='Basic realm="r"')
        timer = threading.Timer(0.7, cancel)
        timer.start()
        client = quick_client(credentials=home.machine())
        store = Store(home.folder / "store", durability="none")
        with pytest.raises(Cancelled):
            store.pull(registry.reference("team/app", "1"), client=client, cancellation=cancellation)
        assert time.monotonic() - cancelled_at[0] < SOON_SECONDS
        timer.join()
        registry.assert_no_credentials()
    assert not store.images()


def test_the_longest_key_decides_for_each_repository_of_one_client(home: Home) -> None:
    with ScriptedRegistry() as registry:
        home.write(home.podman, {registry.host: auth("bob", "x"), f"{registry.host}/team": auth(*ALICE)})
        for repository, user in (("team/app", ALICE), ("teams/app", ("bob", "x"))):
            challenge, authorization = 'Basic realm="r"', basic_credentials(*user)
            serve_image(registry, repository, "1", IMAGE, authorization=authorization, challenge=challenge)
            with open_repository(registry.reference(repository, "1"), credentials=home.machine()) as opened:
                assert opened.resolve("1") == root_of(IMAGE)
