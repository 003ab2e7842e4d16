"""Refresh tokens become tokens of single scopes, by POST or by GET as the token server wants it; and who sees them."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlencode

import pytest

from minibox_store.errors import AuthenticationRefused, CredentialHelperFailed, RegistryError
from minibox_store.reference import Reference
from minibox_store.registry import Credentials, RegistryRepository
from tests.support.images import build_image, encode_document
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import (
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    TokenServer,
    basic_credentials,
    manifest_target,
    pull_scope,
    redirect,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import root_of

IMAGE = build_image()
REPOSITORY = "team/app"
SCOPE = pull_scope(REPOSITORY)
MANIFEST = manifest_target(REPOSITORY, "1")
REFRESH = "planted-refresh-token-4b1f"
TOKEN_TARGET = "/token?" + urlencode({"service": "registry", "scope": SCOPE})


def granting(token: str = "good-token", field: str = "token", **more: object) -> Answer:
    return Answer(headers={"Content-Type": "application/json"}, body=encode_document({field: token, **more}))


@contextmanager
def registry_with_tokens(scope: str = SCOPE) -> Iterator[tuple[ScriptedRegistry, TokenServer, dict[str, object]]]:
    """A registry that wants a token, its token server, and options for a client that has a refresh token."""
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = tokens.challenge(service="registry", scope=scope)
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good-token", challenge=challenge)
        yield (
            registry,
            tokens,
            {
                "credentials": {registry.host: Credentials("0000-0000", identity_token=REFRESH)},
                "realms": {registry.host: [tokens.host]},
                "attempts": 1,
            },
        )


def resolve(registry: ScriptedRegistry, options: dict[str, object]) -> None:
    with open_repository(registry.reference(REPOSITORY, "1"), **options) as repository:
        assert repository.resolve("1") == root_of(IMAGE)


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_a_refresh_token_is_told_to_the_token_server_in_the_body_of_a_post(field: str) -> None:
    with registry_with_tokens() as (registry, tokens, options):
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        asked = tokens.expect("POST", "/token", granting(field=field), requires=form, forbids=["Authorization"])
        resolve(registry, options)
        assert asked.requests[0].form() == [
            ("client_id", "minibox-store"),
            ("grant_type", "refresh_token"),
            ("refresh_token", REFRESH),
            ("scope", SCOPE),
            ("service", "registry"),
        ]
        assert not [request for request in registry.requests if REFRESH in str(request.headers)]


def test_acrs_scope_with_a_comma_stays_one_scope() -> None:
    scope = f"repository:{REPOSITORY}:pull,push"
    with registry_with_tokens(scope) as (registry, tokens, options):
        asked = tokens.expect("POST", "/token", granting(field="access_token"))
        resolve(registry, options)
        assert ("scope", scope) in asked.requests[0].form()


@pytest.mark.parametrize("status", [400, 401, 404, 405, 501])
def test_where_post_is_refused_the_token_is_the_password_of_a_get(status: int) -> None:
    with registry_with_tokens() as (registry, tokens, options):
        tokens.expect("POST", "/token", registry_error(status, "UNSUPPORTED"))
        basic = {"Authorization": basic_credentials("0000-0000", REFRESH)}
        tokens.expect("GET", TOKEN_TARGET, granting(), requires=basic)
        resolve(registry, options)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_any_other_failure_of_a_post_is_told_and_no_get_follows(status: int) -> None:
    with registry_with_tokens() as (registry, tokens, options):
        tokens.expect("POST", "/token", registry_error(status, "DENIED", "not now"))
        with pytest.raises(RegistryError, match="not now") as caught:
            resolve(registry, options)
        assert caught.value.status == status


def test_the_password_of_a_user_called_token_is_a_refresh_token() -> None:
    with registry_with_tokens() as (registry, tokens, options):
        asked = tokens.expect("POST", "/token", granting())
        resolve(registry, {**options, "credentials": {registry.host: Credentials("<token>", REFRESH)}})
        assert dict(asked.requests[0].form())["refresh_token"] == REFRESH


def test_a_password_is_never_posted() -> None:
    with registry_with_tokens() as (registry, tokens, options):
        basic = {"Authorization": basic_credentials("alice", "pass-word-1")}
        tokens.expect("GET", TOKEN_TARGET, granting(), requires=basic)
        resolve(registry, {**options, "credentials": {registry.host: Credentials("alice", "pass-word-1")}})


def test_a_registry_that_wants_basic_gets_the_token_for_a_password() -> None:
    with ScriptedRegistry() as registry:
        basic = basic_credentials("<token>", REFRESH)
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization=basic, challenge='Basic realm="x"')
        resolve(registry, {"credentials": {registry.host: Credentials("", identity_token=REFRESH)}})
        assert [request.header("Authorization") for request in registry.requests] == [None, basic]


def test_one_refresh_token_gives_one_token_for_each_scope_and_each_is_kept() -> None:
    with registry_with_tokens() as (registry, tokens, options):
        other = tokens.challenge(service="registry", scope=pull_scope("team/other"))
        serve_image(registry, "team/other", "1", IMAGE, authorization="Bearer other-token", challenge=other)
        given = {SCOPE: granting(), pull_scope("team/other"): granting("other-token")}

        def answer(request: Request) -> Answer:
            return given[dict(request.form())["scope"]]

        tokens.expect("POST", "/token", answer, answer)
        client = quick_client(**options)
        for repository_name in (REPOSITORY, "team/other") * 3:
            with client.open_repository(Reference.parse(registry.reference(repository_name, "1"))) as repository:
                repository.resolve("1")


def test_the_credentials_are_looked_for_once_however_many_threads_are_refused_and_not_before() -> None:
    asked: list[tuple[str, str]] = []
    together = threading.Barrier(3)

    class Source:
        def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials:
            asked.append((registry, repository))
            return Credentials("", identity_token=REFRESH)

    with registry_with_tokens() as (registry, tokens, options):
        challenge = tokens.challenge(service="registry", scope=SCOPE)

        def refuse_together(_: Request) -> Answer:
            together.wait(10)
            return unauthorized(challenge)

        registry.allow("GET", MANIFEST, refuse_together, forbids=["Authorization"])
        tokens.expect("POST", "/token", granting())
        reference = registry.reference(REPOSITORY, "1")
        with open_repository(reference, **{**options, "credentials": Source()}) as repository:
            assert not asked
            with ThreadPoolExecutor(3) as threads:
                list(threads.map(lambda _: repository.resolve("1"), range(3)))
        assert asked == [(registry.host, REPOSITORY)]


def test_what_fails_to_find_them_is_asked_once_however_many_threads_wait_for_it() -> None:
    """A helper that hangs takes thirty seconds, and not thirty for each blob."""
    asked: list[str] = []
    together = threading.Barrier(3)

    class Broken:
        def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials:
            asked.append(registry)
            raise CredentialHelperFailed("docker-credential-x", "it is in no folder")

    with registry_with_tokens() as (registry, tokens, options):
        challenge = tokens.challenge(service="registry", scope=SCOPE)

        def refuse_together(_: Request) -> Answer:
            together.wait(10)
            return unauthorized(challenge)

        registry.allow("GET", MANIFEST, refuse_together)
        reference = registry.reference(REPOSITORY, "1")

        def fails(repository: RegistryRepository) -> None:
            with pytest.raises(CredentialHelperFailed):
                repository.resolve("1")

        with (
            open_repository(reference, **{**options, "credentials": Broken()}) as repository,
            ThreadPoolExecutor(3) as threads,
        ):
            list(threads.map(fails, [repository] * 3))
        assert asked == [registry.host]
        assert not tokens.requests


def test_who_is_let_in_without_credentials_is_not_asked_for_any() -> None:
    class Broken:
        def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials:
            raise CredentialHelperFailed("docker-credential-x", "it is in no folder")

    with ScriptedRegistry() as registry:
        serve_image(registry, REPOSITORY, "1", IMAGE)
        resolve(registry, {"credentials": Broken()})
    with registry_with_tokens() as (registry, tokens, options):
        with pytest.raises(CredentialHelperFailed, match="in no folder"):
            resolve(registry, {**options, "credentials": Broken()})
        assert not tokens.requests


def test_s1_a_token_server_learnt_of_anonymously_is_told_no_credentials_that_come_later() -> None:
    known: list[Credentials] = []

    class Source:
        def find(self, registry: str, repository: str, check_interrupted: Callable[[], None], /) -> Credentials | None:
            return known[0] if known else None

    with registry_with_tokens() as (registry, evil, _):
        evil.expect("GET", TOKEN_TARGET, granting(expires_in=1))
        client = quick_client(credentials=Source(), attempts=1)
        reference = Reference.parse(registry.reference(REPOSITORY, "1"))
        with client.open_repository(reference) as repository:
            repository.resolve("1")
        known.append(Credentials("alice", "pass-word-1", identity_token=REFRESH))
        threading.Event().wait(1.1)
        with client.open_repository(reference) as repository, pytest.raises(AuthenticationRefused, match="configured"):
            repository.resolve("1")
        evil.assert_no_credentials()
        assert not [request for request in evil.requests if request.body]


@pytest.mark.parametrize("realm", ["{evil}/token", "http://{host}@{evil_host}/token", "http://{host}.evil.example/"])
def test_s1_a_refresh_token_goes_to_no_token_server_that_is_not_the_registrys(realm: str) -> None:
    with ScriptedRegistry() as registry, TokenServer() as evil:
        named = realm.format(evil=evil.url, evil_host=evil.host, host=registry.host)
        registry.expect("GET", MANIFEST, unauthorized(f'Bearer realm="{named}",service="x",scope="{SCOPE}"'))
        with pytest.raises(AuthenticationRefused):
            resolve(registry, {"credentials": {registry.host: Credentials("", identity_token=REFRESH)}})
        assert not evil.requests


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_s2_a_post_that_is_redirected_is_not_followed(status: int) -> None:
    with registry_with_tokens() as (registry, tokens, options), TokenServer() as elsewhere:
        tokens.expect("POST", "/token", redirect(f"{elsewhere.url}/token", status=status))
        with pytest.raises(RegistryError, match=r"POST .* redirects, which is not followed"):
            resolve(registry, options)
        assert not elsewhere.requests


def echo(status: int) -> Scripted:
    def answer(request: Request) -> Answer:
        told = f"{request.body.decode()} {request.header('Authorization')}"
        return registry_error(status, "DENIED", f"cannot take {REFRESH} of {told}")

    return answer


@pytest.mark.parametrize("status", [400, 403, 500])
def test_s28_a_token_server_that_repeats_a_refresh_token_is_not_quoted(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with registry_with_tokens() as (registry, tokens, options):
        tokens.allow("POST", "/token", echo(status))
        tokens.allow("GET", TOKEN_TARGET, echo(status))
        with pytest.raises(RegistryError) as caught:
            resolve(registry, options)
    shown = "".join([repr(caught.value), caplog.text, *traceback.format_exception(caught.value)])
    planted = (REFRESH, basic_credentials("0000-0000", REFRESH).partition(" ")[2])
    assert not [secret for secret in planted if secret in shown], shown
