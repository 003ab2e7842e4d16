"""Credentials between tools: what one of them logs in with, the other finds; and registries that really check."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_store import Store
from minibox_store.errors import AuthenticationRefused
from minibox_store.registry import Credentials, login, logout
from tests.support.daemon import running_daemon
from tests.support.homes import Home, auth, read_json
from tests.support.images import build_image
from tests.support.layouts import read_layout_names
from tests.support.peers import (
    DockerRegistry,
    PeerFailed,
    docker_registry,
    push_image,
    require_peer,
    run_peer,
    skopeo_command,
)
from tests.support.registries import quick_client
from tests.support.scripted_registry import TokenServer, pull_scope
from tests.support.signed_tokens import TokenSigner, grant_tokens

ALICE = ("alice", "pass-word-1")
REFRESH = "refresh-token-of-alice"
IMAGE = build_image()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry that asks for a password by Basic."""
    with docker_registry(tmp_path_factory.mktemp("registry"), users=dict([ALICE])) as running:
        push_image(running, "team/app", "1", IMAGE, credentials=ALICE)
        yield running


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> TokenSigner:
    return TokenSigner(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def with_tokens(
    tmp_path_factory: pytest.TempPathFactory, signer: TokenSigner
) -> Iterator[tuple[DockerRegistry, TokenServer]]:
    """A registry that takes signed tokens alone, and the server that gives them."""
    folder = tmp_path_factory.mktemp("token-registry")
    with docker_registry(folder) as everybodys:
        push_image(everybodys, "team/app", "1", IMAGE)
    scope = pull_scope("team/app")
    with TokenServer() as tokens:
        grant_tokens(tokens, signer, [scope], users=dict([ALICE]), refresh_tokens={REFRESH: "alice"})
        with docker_registry(folder, tokens=signer.settings(tokens.realm)) as running:
            yield running, tokens


def run_skopeo_at(home: Home, *arguments: str) -> str:
    """Run skopeo as the user whose home that is."""
    environment = {**home.environment, "CONTAINERS_REGISTRIES_CONF": str(home.folder / "registries.conf")}
    (home.folder / "registries.conf").write_text("")
    return run_peer(skopeo_command(home.folder / "skopeo", *arguments), environment)


def pull(home: Home, reference: str, **options: object) -> None:
    client = quick_client(credentials=home.machine(), attempts=1, **options)
    store = Store(home.folder / "store", durability="none")
    assert str(store.pull(reference, client=client, platform=None).digest) == IMAGE.digest


# Other tools


@pytest.mark.parametrize("place", ["a session", "REGISTRY_AUTH_FILE", "Docker's own"])
def test_what_skopeo_logged_in_with_is_found(home: Home, registry: DockerRegistry, place: str) -> None:
    arguments = ["login", "--tls-verify=false", "-u", ALICE[0], "-p", ALICE[1], registry.host]
    variables: dict[str, str] = {}
    (home.folder / "run").mkdir()
    if place == "REGISTRY_AUTH_FILE":
        arguments.append(f"--authfile={home.named}")
        variables = {"REGISTRY_AUTH_FILE": str(home.named)}
    elif place == "Docker's own":
        home.docker.parent.mkdir()
        arguments.append(f"--authfile={home.docker}")
    run_skopeo_at(home, *arguments)
    assert home.find(registry.host, **variables) == Credentials(*ALICE)
    if not variables:
        pull(home, registry.reference("team/app", "1"))


def test_what_podman_logged_in_with_for_a_repository_is_found_for_it_alone(
    home: Home, registry: DockerRegistry
) -> None:
    podman = require_peer("podman")
    (home.folder / "run").mkdir()
    environment = {**home.environment, "REGISTRY_AUTH_FILE": str(home.named)}
    where = f"{registry.host}/team/app"
    run_peer([podman, "login", "--tls-verify=false", "-u", ALICE[0], "-p", ALICE[1], where], environment)
    assert list(read_json(home.named)["auths"]) == [where]
    named = str(home.named)
    assert home.find(registry.host, "team/app", REGISTRY_AUTH_FILE=named) == Credentials(*ALICE)
    assert home.find(registry.host, "team/apple", REGISTRY_AUTH_FILE=named) is None
    assert home.find(registry.host, "team", REGISTRY_AUTH_FILE=named) is None


def test_what_was_logged_in_with_here_is_found_by_skopeo_until_the_logout(home: Home, registry: DockerRegistry) -> None:
    inspect = ["inspect", "--raw", "--tls-verify=false", f"docker://{registry.reference('team/app', '1')}"]
    with pytest.raises(PeerFailed, match=r"authentication required|unauthorized"):
        run_skopeo_at(home, *inspect)
    login(registry.host, Credentials(*ALICE), client=quick_client(), machine=home.machine())
    assert run_skopeo_at(home, *inspect)
    assert logout(registry.host, machine=home.machine())
    with pytest.raises(PeerFailed, match=r"authentication required|unauthorized"):
        run_skopeo_at(home, *inspect)


def test_skopeo_reads_from_a_helper_what_was_logged_in_with_here(home: Home, registry: DockerRegistry) -> None:
    helper = home.add_helper("kept")
    home.write(home.docker, credHelpers={registry.host: "kept"})
    login(registry.host, Credentials(*ALICE), client=quick_client(), machine=home.machine())
    assert helper.secrets() == {registry.host: list(ALICE)}
    assert read_json(home.docker)["auths"] == {registry.host: {}}
    environment = {**home.environment, "PATH": f"{home.programs}:{home.environment['PATH']}"}
    arguments = ["inspect", "--raw", "--tls-verify=false", f"docker://{registry.reference('team/app', '1')}"]
    assert run_peer(skopeo_command(home.folder / "skopeo", *arguments), environment)
    pull(home, registry.reference("team/app", "1"))


# Registries that check


def test_a_wrong_password_is_neither_taken_nor_written(home: Home, registry: DockerRegistry) -> None:
    with pytest.raises(AuthenticationRefused, match="UNAUTHORIZED"):
        login(registry.host, Credentials("alice", "wrong"), client=quick_client(), machine=home.machine())
    assert not home.docker.exists()


@pytest.mark.parametrize("kind", ["password", "identity token"])
def test_a_registry_with_signed_tokens_is_logged_in_to_and_pulled_from(
    home: Home, with_tokens: tuple[DockerRegistry, TokenServer], kind: str
) -> None:
    registry, tokens = with_tokens
    good, wrong = Credentials(*ALICE), Credentials("alice", "wrong")
    if kind == "identity token":
        good, wrong = (Credentials("alice", identity_token=token) for token in (REFRESH, "wrong"))
    realms = {registry.host: [tokens.host]}
    with pytest.raises(AuthenticationRefused):
        login(registry.host, wrong, client=quick_client(realms=realms), machine=home.machine())
    with pytest.raises(AuthenticationRefused):
        pull(home, registry.reference("team/app", "1"), realms=realms)
    login(registry.host, good, client=quick_client(realms=realms), machine=home.machine())
    pull(home, registry.reference("team/app", "1"), realms=realms)


def test_a_signed_token_that_runs_out_is_renewed_in_time(home: Home, tmp_path: Path, signer: TokenSigner) -> None:
    with docker_registry(tmp_path / "r") as everybodys:
        push_image(everybodys, "team/app", "1", IMAGE)
    scope = pull_scope("team/app")
    with TokenServer() as tokens:
        grant_tokens(tokens, signer, [scope], users=dict([ALICE]), refresh_tokens={}, life_seconds=1)
        with docker_registry(tmp_path / "r", tokens=signer.settings(tokens.realm)) as registry:
            home.write(home.docker, {registry.host: auth(*ALICE)})
            client = quick_client(credentials=home.machine(), realms={registry.host: [tokens.host]}, attempts=1)
            for number in range(3):
                store = Store(tmp_path / f"store{number}", durability="none")
                store.pull(registry.reference("team/app", "1"), client=client, platform=None)
                time.sleep(0.9)
            assert len(tokens.requests) == 3
            refused = [line for line in registry.read_log().splitlines() if "token is expired" in line.lower()]
    assert not refused


# The store and the daemon


def test_a_pull_without_a_client_uses_the_credentials_of_the_machine(
    home: Home, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = registry.reference("team/app", "1")
    store = Store(home.folder / "store", durability="none")
    with pytest.raises(AuthenticationRefused):
        store.pull(reference, platform=None)
    home.write(home.docker, {registry.host: auth(*ALICE)})
    monkeypatch.setenv("DOCKER_CONFIG", str(home.docker.parent))
    assert str(store.pull(reference, platform=None).digest) == IMAGE.digest


def test_a_repair_without_a_client_uses_them_too(
    home: Home, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write(home.docker, {registry.host: auth(*ALICE)})
    monkeypatch.setenv("DOCKER_CONFIG", str(home.docker.parent))
    root = home.folder / "store"
    store = Store(root, durability="none", settle_seconds=0.0)
    store.pull(registry.reference("team/app", "1"), platform=None)
    layer = root / "blobs" / "sha256" / IMAGE.layer_digests[0].partition(":")[2]
    layer.unlink()
    report = store.repair()
    assert len(report.mended) == 1
    assert layer.exists()


def test_the_daemon_pulls_with_the_credentials_of_its_user(home: Home, registry: DockerRegistry) -> None:
    reference = registry.reference("team/app", "1")
    with running_daemon(home.folder / "daemon", environment={"DOCKER_CONFIG": str(home.docker.parent)}) as daemon:
        query = f"/images/pull?image={reference}"
        assert "[error] pull failed" in daemon.request("POST", query).text
        home.write(home.docker, {registry.host: auth(*ALICE)})
        told = daemon.request("POST", query).text
        assert told.endswith("[pull] Done\n")
        assert ALICE[1] not in told + daemon.read_log()
    assert read_layout_names(daemon.data_root)


def test_s28_the_daemon_tells_of_a_bad_file_in_one_line_without_its_secret(
    home: Home, registry: DockerRegistry
) -> None:
    home.write(home.docker, {registry.host: {"auth": "!planted-secret-11"}})
    with running_daemon(home.folder / "daemon", environment={"DOCKER_CONFIG": str(home.docker.parent)}) as daemon:
        told = daemon.request("POST", f"/images/pull?image={registry.reference('team/app', '1')}").text
        assert f"[error] pull failed: invalid {home.docker} at auths" in told
        assert "planted-secret" not in told + daemon.read_log()
