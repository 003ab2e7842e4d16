"""Tokens are fetched where the registry says, shared, renewed in time; credentials are told to nobody else."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from minibox_store.digest import Digest
from minibox_store.errors import AuthenticationRefused, RateLimited, RegistryError
from minibox_store.limits import Limits
from minibox_store.reference import Reference
from minibox_store.registry import Credentials, RegistryRepository
from minibox_store.registry.tokens import Authorizer, Grant, TokenCache, TokenQuestion, asked_scopes
from minibox_store.registry.urls import Origin, Url
from tests.support.images import build_image
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import (
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    TokenServer,
    basic_credentials,
    blob_target,
    document_answer,
    manifest_target,
    pull_scope,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all, root_of

IMAGE = build_image()
REPOSITORY = "team/app"
SCOPE = pull_scope(REPOSITORY)
MANIFEST = manifest_target(REPOSITORY, "1")
ALICE = Credentials("alice", "pass-word-1")
HOME = Origin("https", "registry.test", 443)


@contextmanager
def registry_with_tokens(token: str = "good-token") -> Iterator[tuple[ScriptedRegistry, TokenServer, str]]:
    """A registry that serves the image to one token alone, its token server, and its challenge."""
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = tokens.challenge(service="registry", scope=SCOPE)
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization=f"Bearer {token}", challenge=challenge)
        yield registry, tokens, challenge


def open_here(registry: ScriptedRegistry, **options: object) -> RegistryRepository:
    return open_repository(registry.reference(REPOSITORY, "1"), **options)


def as_alice(registry: ScriptedRegistry, *tokens: TokenServer) -> dict[str, object]:
    """Options for a client that has credentials, and tells them to these token servers."""
    return {"credentials": {registry.host: ALICE}, "realms": {registry.host: [server.host for server in tokens]}}


# Getting a token


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_an_anonymous_token_is_fetched_once_for_a_whole_pull(field: str) -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", service="registry", scope=SCOPE, field=field)
        with open_here(registry) as repository:
            assert repository.resolve("1") == root_of(IMAGE)
            for descriptor in descriptors_of(IMAGE):
                assert Digest.of(read_all(repository, descriptor)) == descriptor.digest


def test_credentials_go_to_a_configured_token_server_and_never_to_the_registry_that_wants_a_token() -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", service="registry", scope=SCOPE, credentials=("alice", "pass-word-1"))
        with open_here(registry, **as_alice(registry, tokens)) as repository:
            assert repository.resolve("1") == root_of(IMAGE)
        sent = {request.header("Authorization") for request in registry.requests}
    assert sent == {None, "Bearer good-token"}


def test_sessions_of_one_client_share_their_tokens() -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", service="registry", scope=SCOPE)
        client = quick_client()
        for _ in range(3):
            with client.open_repository(Reference.parse(registry.reference(REPOSITORY, "1"))) as repository:
                repository.resolve("1")


def test_the_registrys_own_origin_is_a_token_server_that_may_see_its_credentials() -> None:
    with ScriptedRegistry() as registry:
        challenge = f'Bearer realm="{registry.url}/service/token",service="harbor",scope="{SCOPE}"'
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good-token", challenge=challenge)
        target = f"/service/token?service=harbor&scope={SCOPE}"
        headers = {"Authorization": basic_credentials("alice", "pass-word-1")}
        registry.expect("GET", target, Answer(body=b'{"token": "good-token"}'), requires=headers)
        with open_here(registry, credentials={registry.host: ALICE}) as repository:
            assert repository.resolve("1") == root_of(IMAGE)


@pytest.mark.parametrize(
    ("parameters", "target"),
    [
        (',service="SUSE Linux Docker Registry",scope="a:b:c"', "/?service=SUSE+Linux+Docker+Registry&scope=a:b:c"),
        (f",service=registry,scope={SCOPE}", f"/?service=registry&scope={SCOPE}"),
        ('/token?tenant=1",service="s",scope="a:b:c d:e:f"', "/token?tenant=1&service=s&scope=a:b:c&scope=d:e:f"),
        ("", f"/?scope={SCOPE}"),
    ],
    ids=["service with spaces", "scope without quotes", "realm with a query, two scopes", "no scope, no service"],
)
def test_challenges_of_registries_in_use_lead_to_the_right_question(parameters: str, target: str) -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        quote = "" if parameters.startswith("/") else '"'
        challenge = f'Bearer realm="{tokens.url}{quote}{parameters}'
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good-token", challenge=challenge)
        tokens.expect("GET", target, Answer(body=b'{"token": "good-token"}'))
        with open_here(registry) as repository:
            repository.resolve("1")


@pytest.mark.parametrize("scheme", ["Basic", "BASIC"])
def test_a_basic_challenge_is_answered_with_the_credentials_and_once(scheme: str) -> None:
    """ECR and Artifactory ask for Basic."""
    with ScriptedRegistry() as registry:
        challenge = f'{scheme} realm="https://1234.dkr.ecr.eu.amazonaws.com/",service="ecr.amazonaws.com"'
        authorization = basic_credentials("alice", "pass-word-1")
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization=authorization, challenge=challenge)
        with open_here(registry, credentials={registry.host: ALICE}) as repository:
            repository.resolve("1")
            for descriptor in descriptors_of(IMAGE):
                read_all(repository, descriptor)
        refused = [request for request in registry.requests if request.status == 401]
    assert len(refused) == 1


def test_of_a_bearer_and_a_basic_challenge_the_bearer_is_answered() -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = 'Basic realm="x", ' + tokens.challenge(service="registry", scope=SCOPE)
        serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good-token", challenge=challenge)
        tokens.expect_token("good-token", service="registry", scope=SCOPE)
        with open_here(registry) as repository:
            repository.resolve("1")


# Being refused


def test_without_credentials_a_basic_challenge_is_a_refusal() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, unauthorized('Basic realm="x"'))
        with open_here(registry) as repository, pytest.raises(AuthenticationRefused) as caught:
            repository.resolve("1")
    assert caught.value.codes == ("UNAUTHORIZED",)
    assert caught.value.problem == "authentication required, and no credentials are known for it"


def test_wrong_credentials_are_sent_once() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, unauthorized('Basic realm="x"'), forbids=["Authorization"])
        for _ in range(2):  # once for each thing that is asked
            registry.expect("GET", MANIFEST, unauthorized('Basic realm="x"'), requires={"Authorization": ALICE.basic})
        with open_here(registry, credentials={registry.host: ALICE}) as repository:
            for _ in range(2):
                with pytest.raises(AuthenticationRefused) as caught:
                    repository.resolve("1")
                assert caught.value.problem == "authentication required"
        assert len(registry.requests) == 3


@pytest.mark.parametrize("header", ["", "Negotiate", "Bearer service=x", 'Bearer realm=""', '"'])
def test_a_challenge_that_cannot_be_answered_is_a_refusal(header: str) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, unauthorized(header))
        with (
            open_here(registry, credentials={registry.host: ALICE}) as repository,
            pytest.raises(AuthenticationRefused),
        ):
            repository.resolve("1")


def test_a_token_that_is_refused_is_renewed_once_and_then_it_is_a_refusal() -> None:
    """Docker Hub answers 401 for what does not exist, whatever the token."""
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = tokens.challenge(service="registry", scope=SCOPE)
        tokens.expect_token("one", service="registry", scope=SCOPE)
        registry.expect("GET", MANIFEST, unauthorized(challenge), unauthorized(challenge))
        with open_here(registry) as repository, pytest.raises(AuthenticationRefused) as caught:
            repository.resolve("1")
    assert caught.value.status == 401
    assert caught.value.problem.endswith(", and no credentials are known for it")


def test_a_forbidden_repository_is_a_refusal_at_once() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(403, "DENIED", "requested access is denied"))
        with open_here(registry) as repository, pytest.raises(AuthenticationRefused, match="DENIED"):
            repository.resolve("1")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (registry_error(401, "UNAUTHORIZED"), AuthenticationRefused),  # GHCR, for what is private or missing
        (registry_error(403, "DENIED"), AuthenticationRefused),
        (Answer(status=404), RegistryError),
        (Answer(status=503), RegistryError),
        (registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "3600"}), RateLimited),
        (Answer(body=b"not json"), RegistryError),
        (Answer(body=b'{"token": 5}'), RegistryError),
        (Answer(body=b'{"token": "a\\r\\nX: y"}'), RegistryError),
        (Answer(body=b'{"token": ""}'), RegistryError),
        (Answer(body=b"{}"), RegistryError),
    ],
)
def test_a_token_server_that_gives_no_token_is_one_error(answer: Answer, kind: type[RegistryError]) -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        registry.allow("GET", MANIFEST, unauthorized(tokens.challenge(service="registry", scope=SCOPE)))
        tokens.allow("GET", f"/token?service=registry&scope={SCOPE}", answer)
        with open_here(registry) as repository, pytest.raises(kind) as caught:
            repository.resolve("1")
    assert type(caught.value) is kind
    assert caught.value.url == tokens.realm


def test_a_token_server_that_fails_for_a_moment_is_asked_again() -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect("GET", f"/token?service=registry&scope={SCOPE}", Answer(status=502))
        tokens.expect_token("good-token", service="registry", scope=SCOPE)
        with open_here(registry) as repository:
            repository.resolve("1")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b'{"token": "' + b"a" * (1 << 20) + b'"}'),
        Answer(endless=True, framing="chunked"),
        Answer(endless=True, framing="until_close"),
        Answer(endless=True, content_length=1 << 60),
    ],
    ids=["too long", "chunked", "until close", "announced"],
)
def test_s7_a_token_answer_is_read_up_to_one_mebibyte(answer: Answer) -> None:
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        registry.allow("GET", MANIFEST, unauthorized(tokens.challenge(service="registry", scope=SCOPE)))
        listed = tokens.expect("GET", f"/token?service=registry&scope={SCOPE}", answer)
        with open_here(registry) as repository, pytest.raises(RegistryError, match="larger than 1048576 bytes"):
            repository.resolve("1")
        assert listed.requests[0].body_bytes_sent < 16 << 20


# Renewal


def test_three_threads_that_are_refused_at_once_fetch_one_token() -> None:
    layers = [descriptor for descriptor in descriptors_of(IMAGE) if "layer" in descriptor.media_type]
    layers = [*layers, *layers][:3]
    together = threading.Barrier(3)

    def refuse_together(challenge: str) -> Scripted:
        def answer(_: Request) -> Answer:
            together.wait(60)
            return unauthorized(challenge)

        return answer

    with registry_with_tokens("new-token") as (registry, tokens, challenge):
        registry.allow("GET", MANIFEST, document_answer(IMAGE), requires={"Authorization": "Bearer old-token"})
        for layer in layers[:2]:
            target = blob_target(REPOSITORY, str(layer.digest))
            old = {"Authorization": "Bearer old-token"}
            registry.allow("GET", target, refuse_together(challenge), requires=old)
        tokens.expect_token("old-token", "new-token", service="registry", scope=SCOPE)
        with open_here(registry) as repository, ThreadPoolExecutor(3) as threads:
            repository.resolve("1")
            for content, layer in zip(
                threads.map(lambda each: read_all(repository, each), layers), layers, strict=True
            ):
                assert Digest.of(content) == layer.digest


def test_threads_that_wait_for_a_token_server_in_vain_wait_for_it_once() -> None:
    count, held = 6, threading.Event()
    together = threading.Barrier(count)

    def refuse(_: Request) -> Answer:
        together.wait(60)
        return unauthorized(challenge)

    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = tokens.challenge(service="registry", scope=SCOPE)
        registry.allow("GET", MANIFEST, refuse)
        tokens.allow("GET", f"/token?service=registry&scope={SCOPE}", Answer(hold=held))

        def resolve(_: int) -> Exception | None:
            with pytest.raises(RegistryError, match="/token: no answer came in time") as caught:
                repository.resolve("1")
            return caught.value

        with open_here(registry, silence_seconds=1.0, attempts=1) as repository, ThreadPoolExecutor(count) as threads:
            errors = list(threads.map(resolve, range(count)))
        assert len(set(map(id, errors))) == count
        held.set()
        assert len(tokens.requests) == 1


class Clock:
    """The time by which tokens grow old, which passes as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("minibox_store.registry.tokens.time", clock)
    return clock


def test_a_token_is_renewed_before_it_ends(clock: Clock) -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", "good-token", service="registry", scope=SCOPE, expires_in_seconds=10)
        with open_here(registry) as repository:
            repository.resolve("1")
            clock.now += 9
            repository.resolve("1")
        refused = [request for request in registry.requests if request.status == 401]
    assert len(refused) == 1


def test_a_session_may_begin_with_the_renewal_of_a_token_that_an_earlier_one_got(clock: Clock) -> None:
    """The token server, on this machine as the registry is, is asked before the registry then."""
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", "good-token", service="registry", scope=SCOPE, expires_in_seconds=10)
        client = quick_client()
        for pause in (9, 0):
            with client.open_repository(Reference.parse(registry.reference(REPOSITORY, "1"))) as repository:
                repository.resolve("1")
            clock.now += pause
        refused = [request for request in registry.requests if request.status == 401]
    assert len(refused) == 1


def test_a_token_without_a_life_is_good_for_a_minute() -> None:
    with registry_with_tokens() as (registry, tokens, _):
        tokens.expect_token("good-token", service="registry", scope=SCOPE, expires_in_seconds=None)
        with open_here(registry) as repository:
            for _ in range(3):
                repository.resolve("1")


def test_a_token_that_ends_during_a_pull_is_renewed_at_the_refusal() -> None:
    layer = descriptors_of(IMAGE)[0]
    with registry_with_tokens("second") as (registry, tokens, challenge):
        registry.expect("GET", MANIFEST, document_answer(IMAGE), requires={"Authorization": "Bearer first"})
        target = blob_target(REPOSITORY, str(layer.digest))
        registry.expect("GET", target, unauthorized(challenge), requires={"Authorization": "Bearer first"})
        tokens.expect_token("first", "second", service="registry", scope=SCOPE)
        with open_here(registry) as repository:
            repository.resolve("1")
            assert Digest.of(read_all(repository, layer)) == layer.digest


def test_harbor_asks_for_basic_where_a_token_has_ended_and_who_has_none_gets_another_token() -> None:
    with registry_with_tokens("second") as (registry, tokens, _):
        registry.expect("GET", MANIFEST, document_answer(IMAGE), requires={"Authorization": "Bearer first"})
        ended = {"Authorization": "Bearer first"}
        registry.expect("GET", MANIFEST, unauthorized('Basic realm="harbor"'), requires=ended)
        tokens.expect_token("first", "second", service="registry", scope=SCOPE)
        with open_here(registry) as repository:
            repository.resolve("1")
            repository.resolve("1")


def test_a_bad_request_with_an_old_token_is_tried_with_a_new_one(clock: Clock) -> None:
    """ECR Public answers 400 where a token has expired."""
    with registry_with_tokens("second") as (registry, tokens, _):
        registry.expect("GET", MANIFEST, document_answer(IMAGE), requires={"Authorization": "Bearer first"})
        registry.expect("GET", MANIFEST, registry_error(400, "DENIED"), requires={"Authorization": "Bearer first"})
        tokens.expect_token("first", "second", service="registry", scope=SCOPE, expires_in_seconds=20)
        with open_here(registry) as repository:
            repository.resolve("1")
            clock.now += 12
            repository.resolve("1")


def test_a_bad_request_with_a_young_token_is_an_error() -> None:
    good = {"Authorization": "Bearer good-token"}
    with registry_with_tokens() as (registry, tokens, _):
        registry.expect("GET", MANIFEST, document_answer(IMAGE), requires=good)
        registry.expect("GET", MANIFEST, registry_error(400, "NAME_INVALID"), requires=good)
        tokens.expect_token("good-token", service="registry", scope=SCOPE)
        with open_repository(registry.reference(REPOSITORY, "1"), plain_http=[registry.host]) as repository:
            repository.resolve("1")
            with pytest.raises(RegistryError, match="NAME_INVALID"):
                repository.resolve("1")
        assert len(tokens.requests) == 1


# What threads of one session know of each other's tokens


def authorizer_over(cache: TokenCache, check_interrupted: Callable[[], None] = lambda: None) -> Authorizer:
    """One that has no credentials, and asks nobody."""

    def fetch(url: Url, authorization: str | None, form: bytes | None) -> bytes:
        raise AssertionError("a token was fetched")

    return Authorizer(
        registry=HOME,
        scope=SCOPE,
        find_credentials=lambda: None,
        realms=frozenset(),
        cache=cache,
        fetch=fetch,
        check_interrupted=check_interrupted,
        limits=Limits(),
    )


def test_who_waits_while_another_thread_renews_the_token_takes_it_and_asks_for_none(clock: Clock) -> None:
    cache, is_waited_for = TokenCache(), threading.Event()
    slot = cache.slot(HOME, SCOPE)
    slot.source = TokenQuestion(realm=Url.parse("https://token.test/"), service=None, scopes=(SCOPE,))
    slot.grant = Grant("Bearer old", clock.now - 60, 60)
    with ThreadPoolExecutor(1) as pool:
        with slot.lock:
            waiting = pool.submit(authorizer_over(cache, is_waited_for.set).authorization)
            assert is_waited_for.wait(60)
            slot.grant = Grant("Bearer new", clock.now, 60)
        assert waiting.result() == "Bearer new"


@pytest.mark.parametrize(
    ("refused", "age_seconds", "has_source", "is_worn"),
    [
        ("Bearer old", 0, True, True),  # another thread has renewed it since
        ("Bearer mine", 29, True, False),
        ("Bearer mine", 31, True, True),
        ("Bearer mine", 31, False, False),
        (None, 31, True, False),
    ],
)
def test_what_was_refused_may_have_been_too_old_if_it_is_another_or_half_over(
    refused: str | None, age_seconds: int, has_source: bool, is_worn: bool, clock: Clock
) -> None:
    cache = TokenCache()
    slot = cache.slot(HOME, SCOPE)
    slot.grant = Grant("Bearer mine", clock.now - age_seconds, 60)
    if has_source:
        slot.source = TokenQuestion(realm=Url.parse("https://token.test/"), service=None, scopes=())
    assert authorizer_over(cache).is_worn(refused) is is_worn


def test_what_is_secret_about_a_grant_is_all_of_it_that_is_not_empty() -> None:
    def secrets_of(authorization: str) -> tuple[str, ...]:
        return Grant(authorization, 0, 60).secrets

    assert secrets_of("Bearer a-token") == ("a-token",)
    alice = Credentials("alice", "pass-word-1").basic
    assert secrets_of(alice) == (alice.removeprefix("Basic "), "pass-word-1")
    nobody = Credentials("alice", "").basic
    assert secrets_of(nobody) == (nobody.removeprefix("Basic "),)


def test_a_challenge_may_name_very_many_actions() -> None:
    # With a look at all of them for each this would take a quarter of an hour.
    named = ",".join(map(str, range(400_000)))
    [scope] = asked_scopes([f"repository:app:{named}", "repository:app:7,pull"], ["repository:app:pull,push"])
    assert scope == f"repository:app:{named},pull,push"


def test_gitea_has_a_scope_without_a_type_and_gets_it_back_as_it_is() -> None:
    assert asked_scopes(["*"], ["repository:app:pull,push"]) == ("*", "repository:app:pull,push")
