"""S1: a registry's credentials are told to nobody but the registry, and the token servers known for it."""

from pathlib import Path

import pytest

from minibox_store.errors import AuthenticationRefused, RegistryError
from tests.support.certificates import make_certificate
from tests.support.scripted_registry import ScriptedRegistry, TokenServer, redirect, unauthorized
from tests.test_registry_tokens import ALICE, MANIFEST, SCOPE, as_alice, open_here, registry_with_tokens


@pytest.mark.parametrize(
    "realm",
    [
        "{evil}/token",
        "http://alice:x@{host}/token",
        "http://{host}@{evil_host}/token",
        "ftp://{host}/token",
        "file:///etc/passwd",
        "//{host}/token",
        "/token",
        "http://{host}\\@{evil_host}/token",
        "http://{host}.evil.example/token",
        "http://{host}0/token",
    ],
)
def test_s1_credentials_are_told_to_no_token_server_that_is_not_the_registrys(realm: str) -> None:
    with ScriptedRegistry() as registry, TokenServer() as evil:
        named = realm.format(evil=evil.url, evil_host=evil.host, host=registry.host)
        registry.expect("GET", MANIFEST, unauthorized(f'Bearer realm="{named}",service="x",scope="{SCOPE}"'))
        with (
            open_here(registry, credentials={registry.host: ALICE}) as repository,
            pytest.raises(AuthenticationRefused) as caught,
        ):
            repository.resolve("1")
        registry.assert_no_credentials()
        assert not evil.requests
    assert "pass-word-1" not in str(caught.value)
    assert "alice" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"has_credentials": True}], ids=["anonymous", "alice"])
def test_s1_a_registry_with_tls_names_no_token_server_without(options: dict[str, bool], tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with ScriptedRegistry(certificate=certificate, hostname="localhost") as registry, TokenServer() as plain:
        registry.expect("GET", MANIFEST, unauthorized(plain.challenge(service="x", scope=SCOPE)))
        known = as_alice(registry, plain) if options else {}
        with (
            open_here(registry, ca_file=certificate.chain, https=[registry.host], **known) as repository,
            pytest.raises(AuthenticationRefused, match="without"),
        ):
            repository.resolve("1")
        registry.assert_no_credentials()
        assert not plain.requests


def test_s1_a_token_server_elsewhere_is_asked_anonymously_by_who_has_no_credentials() -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", service="registry", scope=SCOPE)
        with open_here(registry, credentials={"other.example": ALICE}) as repository:
            repository.resolve("1")
        tokens.assert_no_credentials()


def test_s1_a_configured_token_server_of_one_registry_is_none_of_anothers() -> None:
    with registry_with_tokens() as (registry, tokens, _):
        options = {"credentials": {registry.host: ALICE}, "realms": {"other.example": [tokens.host]}}
        with open_here(registry, **options) as repository, pytest.raises(AuthenticationRefused):
            repository.resolve("1")
        assert not tokens.requests


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_s2_a_token_server_that_redirects_is_not_followed(status: int) -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens, TokenServer() as elsewhere:
        registry.expect("GET", MANIFEST, unauthorized(tokens.challenge(service="registry", scope=SCOPE)))
        tokens.expect(
            "GET", f"/token?service=registry&scope={SCOPE}", redirect(f"{elsewhere.url}/token", status=status)
        )
        with (
            open_here(registry, **as_alice(registry, tokens, elsewhere)) as repository,
            pytest.raises(RegistryError, match="redirects, which is not followed"),
        ):
            repository.resolve("1")
        assert not elsewhere.requests
