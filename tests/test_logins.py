"""Login proves, then writes, in one step; logout forgets; what else stood in config.json stays."""

import json
import os
import stat
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_store.errors import (
    AuthenticationRefused,
    CredentialHelperFailed,
    InvalidDocument,
    InvalidPath,
    InvalidReference,
    RegistryError,
)
from minibox_store.registry import Credentials, login, logout
from tests.support.certificates import make_certificate
from tests.support.homes import Home, auth, read_json, write_json
from tests.support.registries import PUBLIC_ADDRESS, NamedNetwork, quick_client
from tests.support.scripted_registry import (
    Answer,
    ScriptedRegistry,
    TokenServer,
    basic_credentials,
    registry_error,
    unauthorized,
)

ALICE = Credentials("alice", "pass-word-1")
BASIC = {"Authorization": basic_credentials("alice", "pass-word-1")}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def registry() -> ScriptedRegistry:
    """A registry, not started yet, that lets alice in by her password."""
    registry = ScriptedRegistry()
    registry.allow("GET", "/v2/", unauthorized('Basic realm="r"'))
    registry.allow("GET", "/v2/", Answer(body=b"{}"), requires=BASIC)
    return registry


def log_in(home: Home, registry: str, credentials: Credentials = ALICE, **options: object) -> None:
    login(registry, credentials, client=quick_client(attempts=1, **options), machine=home.machine())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_logged_in_with_is_found_by_the_next_operation(home: Home, registry: ScriptedRegistry) -> None:
    with registry:
        log_in(home, registry.host)
        assert read_json(home.docker) == {"auths": {registry.host: auth("alice", "pass-word-1")}}
        assert home.find(registry.host) == ALICE
    assert mode_of(home.docker) == 0o600
    assert mode_of(home.docker.parent) == 0o700
    assert os.listdir(home.docker.parent) == ["config.json"]


def test_what_else_stands_in_the_file_stays_in_its_order(home: Home, registry: ScriptedRegistry) -> None:
    before = {
        "HttpHeaders": {"X": "ü\u2028"},
        "auths": {"quay.io/team": auth("bob", "x"), "https://ghcr.io": {"auth": "!", "email": "e"}},
        "psFormat": "{{.ID}}",
        "plugins": {"a": {"n": 1, "f": 1.5, "z": None, "l": [True, False]}},
    }
    write_json(home.docker, before)
    home.docker.chmod(0o644)
    with registry:
        log_in(home, f"http://{registry.host}/v1/")
        after = read_json(home.docker)
        assert list(after) == list(before)
        assert after["auths"].pop(registry.host) == auth("alice", "pass-word-1")
        assert after == before
        assert mode_of(home.docker) == 0o600
        assert logout(registry.host, machine=home.machine())
    assert read_json(home.docker) == before


def test_docker_hub_is_written_under_its_old_url(home: Home, registry: ScriptedRegistry) -> None:
    host = "registry-1.docker.io"
    with registry:
        network = NamedNetwork({host: [[PUBLIC_ADDRESS]]}, {host: registry.port})
        log_in(home, "docker.io", network=network, plain_http=[host])
    assert read_json(home.docker) == {"auths": {"https://index.docker.io/v1/": auth("alice", "pass-word-1")}}
    assert home.find("docker.io") == ALICE
    assert logout("index.docker.io", machine=home.machine())
    assert home.find("docker.io") is None


@pytest.mark.parametrize(
    "name", ["docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v2/"]
)
def test_what_stood_for_docker_hub_under_another_name_does_not_hide_a_login(
    home: Home, registry: ScriptedRegistry, name: str
) -> None:
    host, team = "registry-1.docker.io", auth("bob", "of-the-team")
    write_json(home.docker, {"auths": {name: auth("old", "secret"), "docker.io/team": team}})
    with registry:
        network = NamedNetwork({host: [[PUBLIC_ADDRESS]]}, {host: registry.port})
        log_in(home, "docker.io", network=network, plain_http=[host])
    assert home.find("docker.io", "library/alpine") == ALICE
    assert home.find("docker.io", "team/app") == Credentials("bob", "of-the-team")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may log in for others")
def test_a_file_stays_its_owner_s_when_root_logs_in_for_him(home: Home, registry: ScriptedRegistry) -> None:
    write_json(home.docker, {"auths": {}})
    os.chown(home.docker, 12345, 23456)
    with registry:
        log_in(home, registry.host)
        assert logout(registry.host, machine=home.machine())
    status = home.docker.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o600)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_credentials_that_the_registry_does_not_take_are_not_written(home: Home, status: int) -> None:
    write_json(home.docker, {"auths": {"quay.io": {}}})
    before = home.docker.read_bytes()
    with ScriptedRegistry() as registry:
        registry.allow("GET", "/v2/", unauthorized('Basic realm="r"'), forbids=["Authorization"])
        refusal = registry_error(status, "DENIED", "bad pass-word-1")
        registry.expect("GET", "/v2/", refusal, requires={"Authorization": basic_credentials("alice", "pass-word-1")})
        with pytest.raises(RegistryError) as caught:
            log_in(home, registry.host)
    assert isinstance(caught.value, AuthenticationRefused) == (status in (401, 403))
    assert "pass-word-1" not in "".join(traceback.format_exception(caught.value))
    assert home.docker.read_bytes() == before


def test_a_token_server_proves_them_with_no_scope_and_the_registry_takes_the_token(home: Home) -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        registry.expect("GET", "/v2/", unauthorized(f'Bearer realm="{tokens.realm}",service="s"'))
        registry.expect("GET", "/v2/", requires={"Authorization": "Bearer good"})
        tokens.expect("GET", "/token?service=s", Answer(body=b'{"token": "good"}'), requires=BASIC)
        log_in(home, registry.host, realms={registry.host: [tokens.host]})
        assert home.find(registry.host) == ALICE


def test_an_identity_token_is_proved_by_post_and_kept_as_such(home: Home) -> None:
    token = Credentials("0000", identity_token="refresh-token-1")
    assert Credentials("<token>", "refresh-token-1").refresh_token == token.refresh_token
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        registry.expect("GET", "/v2/", unauthorized(f'Bearer realm="{tokens.realm}",service="s"'))
        registry.expect("GET", "/v2/", requires={"Authorization": "Bearer good"})
        asked = tokens.expect("POST", "/token", Answer(body=b'{"access_token": "good"}'))
        log_in(home, registry.host, token, realms={registry.host: [tokens.host]})
        assert ("refresh_token", "refresh-token-1") in asked.requests[0].form()
        assert "scope" not in dict(asked.requests[0].form())
        assert read_json(home.docker)["auths"] == {registry.host: auth("0000", "", identitytoken="refresh-token-1")}
        assert home.find(registry.host) == token
        registry.allow("GET", "/v2/", unauthorized(f'Bearer realm="{tokens.realm}",service="s"'))
        registry.allow("GET", "/v2/", requires={"Authorization": "Bearer good"})
        tokens.expect("POST", "/token", Answer(body=b'{"access_token": "good"}'))
        by_name = Credentials("<token>", "refresh-token-1")
        log_in(home, registry.host, by_name, realms={registry.host: [tokens.host]})
        found = home.find(registry.host)
        assert found is not None
        assert (found.refresh_token, found.password) == ("refresh-token-1", "")


def test_s1_a_login_tells_no_token_server_of_another_host(home: Home) -> None:
    with ScriptedRegistry() as registry, TokenServer() as evil:
        registry.expect("GET", "/v2/", unauthorized(f'Bearer realm="{evil.realm}",service="s"'))
        with pytest.raises(AuthenticationRefused, match="not configured"):
            log_in(home, registry.host)
        registry.assert_no_credentials()
        assert not evil.requests
    assert not home.docker.exists()


def test_a_token_that_other_credentials_got_before_proves_nothing(home: Home) -> None:
    with ScriptedRegistry() as registry:
        challenge = f'Bearer realm="{registry.url}/token",service="s"'
        registry.allow("GET", "/v2/", unauthorized(challenge))
        registry.allow("GET", "/v2/", requires={"Authorization": "Bearer good"})
        registry.allow("GET", "/token?service=s", registry_error(401, "UNAUTHORIZED"))
        registry.allow("GET", "/token?service=s", Answer(body=b'{"token": "good"}'), requires=BASIC)
        client = quick_client(credentials={registry.host: ALICE}, attempts=1)
        login(registry.host, ALICE, client=client, machine=home.machine())
        with pytest.raises(AuthenticationRefused):
            login(registry.host, Credentials("alice", "wrong"), client=client, machine=home.machine())
        assert home.find(registry.host) == ALICE


def test_a_registry_on_this_machine_with_tls_is_logged_in_to_without_being_named(home: Home, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "certificate")
    with ScriptedRegistry(certificate=certificate) as registry:
        registry.allow("GET", "/v2/", unauthorized('Basic realm="r"'))
        registry.allow("GET", "/v2/", requires=BASIC)
        log_in(home, registry.host, https=[registry.host], ca_file=certificate.chain)
        assert home.find(registry.host) == ALICE


@pytest.mark.parametrize("name", ["quay", "quay.io/team", "https://a@quay.io", ""])
def test_what_is_no_registry_is_not_logged_in_to(home: Home, name: str) -> None:
    with pytest.raises(InvalidReference):
        log_in(home, name)
    with pytest.raises(InvalidReference):
        logout(name, machine=home.machine())


# Helpers


@pytest.mark.parametrize("place", ["credsStore", "credHelpers"])
def test_a_secret_goes_to_the_helper_that_is_configured_and_not_into_the_file(
    home: Home, registry: ScriptedRegistry, place: str
) -> None:
    helper = home.add_helper("kept")
    with registry:
        named = "kept" if place == "credsStore" else {registry.host: "kept"}
        write_json(home.docker, {"auths": {registry.host: auth("old", "secret")}, place: named})
        log_in(home, registry.host)
        assert helper.secrets() == {registry.host: ["alice", "pass-word-1"]}
        assert read_json(home.docker) == {"auths": {registry.host: {}}, place: named}
        assert home.find(registry.host) == ALICE
        assert logout(registry.host, machine=home.machine())
        assert helper.secrets() == {}
        assert read_json(home.docker) == {"auths": {}, place: named}
        assert not logout(registry.host, machine=home.machine())


def test_a_helper_that_fails_leaves_the_file_as_it_was(home: Home, registry: ScriptedRegistry) -> None:
    home.add_helper("kept", trouble="sys.exit(2)")
    write_json(home.docker, {"auths": {"quay.io": {}}, "credsStore": "kept"})
    before = home.docker.read_bytes()
    with registry, pytest.raises(CredentialHelperFailed, match="store ended with status 2"):
        log_in(home, registry.host)
    with pytest.raises(CredentialHelperFailed, match="get ended with status 2"):
        logout("quay.io", machine=home.machine())
    assert home.docker.read_bytes() == before


# The file


def test_logout_forgets_every_spelling_of_the_host_and_nothing_else(home: Home) -> None:
    other = {"quay.io/team": auth("b", "x"), "quay.io.example.org": auth("c", "x"), "quay.io:443": auth("d", "x")}
    mine = {"quay.io": auth("a", "x"), "https://quay.io": auth("a", "x"), "quay.io/v1/": auth("a", "x")}
    write_json(home.docker, {"auths": {**mine, **other}})
    assert logout("quay.io", machine=home.machine())
    assert read_json(home.docker) == {"auths": other}
    assert mode_of(home.docker) == 0o600
    assert not logout("quay.io", machine=home.machine())


def test_logout_where_nobody_logged_in_makes_nothing(home: Home) -> None:
    assert not logout("quay.io", machine=home.machine())
    assert not home.docker.parent.exists()


def test_a_link_to_the_file_stays_a_link(home: Home, registry: ScriptedRegistry) -> None:
    elsewhere = home.folder / "dotfiles" / "docker.json"
    write_json(elsewhere, {"auths": {}})
    home.docker.parent.mkdir()
    home.docker.symlink_to(elsewhere)
    with registry:
        log_in(home, registry.host)
        assert home.docker.is_symlink()
        assert list(read_json(elsewhere)["auths"]) == [registry.host]


@pytest.mark.parametrize("content", ['{"auths": []}', "no JSON", '{"a": 1, "a": 2}'])
def test_a_file_that_is_none_is_not_replaced(home: Home, registry: ScriptedRegistry, content: str) -> None:
    home.docker.parent.mkdir()
    home.docker.write_text(content)
    with registry, pytest.raises(InvalidDocument, match=r"config\.json"):
        log_in(home, registry.host)
    with pytest.raises(InvalidDocument, match=r"config\.json"):
        logout("quay.io", machine=home.machine())
    assert home.docker.read_text() == content


def test_a_folder_that_cannot_be_made_is_told_of(home: Home, registry: ScriptedRegistry) -> None:
    home.docker.parent.write_text("no folder")
    with registry, pytest.raises(InvalidPath):
        log_in(home, registry.host)


def test_the_file_is_the_old_or_the_new_one_wherever_writing_it_fails(
    home: Home, registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(home.docker, {"auths": {"quay.io": auth("a", "x")}})
    before = home.docker.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with registry:
        for name in ("fsync", "replace", "fchmod"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, fail)
                with pytest.raises(Exception, match="input/output error"):
                    log_in(home, registry.host)
            assert home.docker.read_bytes() == before
            assert os.listdir(home.docker.parent) == ["config.json"]


def test_logins_at_once_lose_none_of_each_other(home: Home) -> None:
    write_json(home.docker, {"auths": {}})
    registries = [ScriptedRegistry() for _ in range(8)]
    together = threading.Barrier(len(registries))

    def enter(registry: ScriptedRegistry) -> None:
        together.wait(10)
        log_in(home, registry.host)

    for registry in registries:
        registry.allow("GET", "/v2/", Answer(body=b"{}"))
        registry.__enter__()
    try:
        with ThreadPoolExecutor(len(registries)) as threads:
            list(threads.map(enter, registries))
    finally:
        for registry in registries:
            registry.__exit__(None, None, None)
    assert sorted(read_json(home.docker)["auths"]) == sorted(registry.host for registry in registries)


def test_a_reader_sees_whole_files_while_others_log_in_and_out(home: Home) -> None:
    write_json(home.docker, {"auths": {"quay.io": auth("alice", "pass-word-1")}})
    over = threading.Event()
    with ScriptedRegistry() as registry:
        registry.allow("GET", "/v2/", Answer(body=b"{}"))

        def change() -> None:
            for _ in range(20):
                log_in(home, registry.host)
                logout(registry.host, machine=home.machine())
            over.set()

        with ThreadPoolExecutor(1) as threads:
            changing = threads.submit(change)
            seen = 0
            while not over.is_set() and not changing.done():
                assert home.find("quay.io") == ALICE
                json.loads(home.docker.read_bytes())
                seen += 1
            changing.result(30)
    assert seen > 10
