"""How real registries differ, a script for each: a whole pull or push, through the store, with the registry's name.

What is shown of one request alone, and is the same for whoever does it, stands where that request is tested:

test_registry_redirects
    Docker Hub's names: test_docker_hub_is_reached_by_its_names_and_tells_credentials_to_its_token_server
    five hops: test_five_redirects_are_followed_and_no_sixth
test_registry_tokens
    Docker Hub's 401: test_a_token_that_is_refused_is_renewed_once_and_then_it_is_a_refusal
    one refusal, one renewal: test_three_threads_that_are_refused_at_once_fetch_one_token
    a life of 60 s: test_a_token_without_a_life_is_good_for_a_minute
test_registry_rate_limits
    Docker Hub's HAP429: test_docker_hubs_words_against_abuse_are_told
    Warning: 299: test_a_warning_is_told_once_and_on_one_line
test_registry_manifests
    Quay's schema 1: test_schema_1_is_refused_by_name
test_registry_blobs
    206: test_an_answer_with_another_range_is_not_used_but_asked_anew_from_the_beginning
    416: test_an_unsatisfiable_range_at_full_length_means_that_all_is_there
    attempts: test_tries_are_counted_anew_whenever_bytes_came
test_registry_retries
    Retry-After: test_a_rate_limit_that_lasts_is_told_of_at_once, test_a_retry_after_is_seconds_or_a_date_or_nothing
test_registry_identity_tokens
    the user <token>: test_the_password_of_a_user_called_token_is_a_refresh_token
test_credential_keys
    by whole segments: test_a_key_fits_when_its_segments_begin_the_path_and_only_then
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Store
from minibox_store.errors import AuthenticationRefused, InvalidDocument, RegistryError
from minibox_store.events import Event, RateLimitSeen, RegistryWarning
from minibox_store.registry import Credentials
from minibox_store.reports.rate_limits import RateLimit
from tests.support.answers import (
    Answer,
    Request,
    Scripted,
    basic_credentials,
    ranged,
    redirect,
    registry_error,
    unauthorized,
)
from tests.support.images import BuiltImage, build_image, build_index, random_layer
from tests.support.invariants import check_invariants, read_names
from tests.support.registries import quick_client
from tests.support.scripted_registry import (
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    blob_target,
    document_answer,
    manifest_target,
    pull_scope,
    serve_image,
)
from tests.support.stores import blob, layer_of, open_store, put
from tests.support.upload_registry import UploadRegistry

REPOSITORY = "team/app"
SCOPE = pull_scope(REPOSITORY)
IMAGE = build_image([{"a": b"a"}, random_layer(102_400, salt="real registries")])
DOCKER = build_image([{"a": b"docker"}], docker=True)
INDEX = build_index([build_image(platform="linux/arm64"), IMAGE])
MANIFEST = manifest_target(REPOSITORY, "1")
LAYER = layer_of(IMAGE, 1)
LAYER_CONTENT = IMAGE.blobs[str(LAYER.digest)]
BLOB = blob_target(REPOSITORY, str(LAYER.digest))
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/"
FOUR_TYPES = re.compile(
    r"application/vnd\.oci\.image\.index\.v1\+json, ?"
    r"application/vnd\.oci\.image\.manifest\.v1\+json, ?"
    r"application/vnd\.docker\.distribution\.manifest\.list\.v2\+json, ?"
    r"application/vnd\.docker\.distribution\.manifest\.v2\+json"
)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with ScriptedRegistry() as running:
        yield running


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as running:
        yield running


@pytest.fixture
def storage() -> Iterator[ScriptedServer]:
    """Where a registry sends for blobs."""
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield open_store(tmp_path / "store")
    check_invariants(tmp_path / "store", leftovers=True)


def pull(store: Store, registry: ScriptedServer, image: BuiltImage = IMAGE, **options: Any) -> None:
    """Pull to where every test does, and check that it is all there."""
    pull_settings = {name: options.pop(name) for name in ("policy", "on_event", "platform") if name in options}
    store.pull(f"{registry.host}/{REPOSITORY}:1", name="app:1", client=quick_client(**options), **pull_settings)
    check_there(store, image)


def check_there(store: Store, image: BuiltImage) -> None:
    root = Path(store.info().root)
    assert read_names(root)["app:1"] == image.digest
    for digest, content in image.blobs.items():
        assert blob(root, digest).read_bytes() == content


def with_headers(headers: dict[str, str], scripted: Scripted) -> Callable[[Request], Answer]:
    """Return a script whose answers carry further headers."""

    def answer(request: Request) -> Answer:
        found = scripted(request) if callable(scripted) else scripted
        return Answer(status=found.status, headers=[*found.header_items(), *headers.items()], body=found.body)

    return answer


# Docker Hub


def test_docker_hub_counts_each_get_of_a_manifest_and_no_head_and_what_is_left_is_told(
    store: Store, registry: ScriptedRegistry
) -> None:
    serve_image(registry, REPOSITORY, "1", INDEX)
    left = count(99, -1)
    last = 100

    def counted(digest: str) -> Callable[[Request], Answer]:
        def answer(request: Request) -> Answer:
            nonlocal last
            last = next(left) if request.method == "GET" else last
            limits = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": f"{last};w=21600"}
            source = {"Docker-RateLimit-Source": "203.0.113.7"}
            return with_headers({**limits, **source}, document_answer(INDEX, digest))(request)

        return answer

    for method in ("GET", "HEAD"):
        registry.allow(method, MANIFEST, counted(INDEX.digest))
        for digest in INDEX.document_digests:
            registry.allow(method, manifest_target(REPOSITORY, digest), counted(digest))
    events: list[Event] = []
    pull(store, registry, on_event=events.append)
    seen = [event.rate_limit for event in events if isinstance(event, RateLimitSeen)]
    assert seen[-1] == RateLimit(limit=100, remaining=98, window_seconds=21600.0, source="203.0.113.7")
    pull(store, registry, policy="if-newer")
    assert last == 98
    assert registry.requests[-1].method == "HEAD"


# GHCR


def test_ghcr_wants_an_anonymous_token_too(store: Store, registry: ScriptedRegistry, tokens: TokenServer) -> None:
    challenge = tokens.challenge(service="ghcr.io", scope=SCOPE)
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer anonymous", challenge=challenge)
    tokens.expect_token("anonymous", service="ghcr.io", scope=SCOPE)
    pull(store, registry)


def test_ghcr_gives_no_token_for_what_is_private_or_missing_and_that_is_a_refusal(
    store: Store, registry: ScriptedRegistry, tokens: TokenServer
) -> None:
    registry.expect("GET", MANIFEST, unauthorized(tokens.challenge(service="ghcr.io", scope=SCOPE)))
    refusal = registry_error(401, "UNAUTHORIZED", "authentication required")
    tokens.expect("GET", f"/token?service=ghcr.io&scope={SCOPE}", refusal)
    with pytest.raises(AuthenticationRefused, match="authentication required"):
        pull(store, registry)
    assert store.images() == ()


@pytest.mark.parametrize("image", [IMAGE, DOCKER, INDEX], ids=["OCI", "Docker", "index"])
def test_ghcr_and_nexus_see_one_accept_of_four_types_without_weights_and_nobody_may_compress(
    image: BuiltImage, store: Store, registry: ScriptedRegistry
) -> None:
    serve_image(registry, REPOSITORY, "1", image)
    pull(store, registry, image if image is not INDEX else IMAGE)
    assert len([each for each in registry.requests if "/manifests/" in each.target]) >= 1
    for request in registry.requests:
        names = [name.lower() for name, _ in request.headers]
        assert names.count("accept") <= 1
        assert request.header("Accept-Encoding") == "identity"
        if "/manifests/" in request.target:
            assert FOUR_TYPES.fullmatch(request.header("Accept") or "")


# GHCR, S3, CloudFront: where blobs are kept


def test_cloudfront_refuses_a_head_and_a_blob_that_a_get_finds_is_not_pushed_again(tmp_path: Path) -> None:
    put(tmp_path / "store", IMAGE, "app:1")
    with UploadRegistry() as registry, ScriptedServer() as storage:
        storage.expect("GET", "/signed?X-Amz-Signature=s", Answer(body=LAYER_CONTENT), forbids=["Authorization"])
        storage.allow("HEAD", "/signed?X-Amz-Signature=s", Answer(status=403))
        registry.blobs[REPOSITORY, str(LAYER.digest)] = LAYER_CONTENT
        for method in ("HEAD", "GET"):
            registry.allow(method, BLOB, redirect(f"{storage.url}/signed?X-Amz-Signature=s"))
        open_store(tmp_path / "store").push("app:1", registry.reference(REPOSITORY, "1"), client=quick_client())
        assert registry.holds(REPOSITORY, IMAGE)
        # The other layer and the config.
        assert registry.sent("POST") == [f"POST {UPLOADS}"] * 2


def test_cloudfront_cuts_a_download_whose_signed_address_runs_out_meanwhile_and_the_registry_gives_another(
    store: Store, registry: ScriptedRegistry, storage: ScriptedServer
) -> None:
    serve_image(registry, REPOSITORY, "1", IMAGE)
    places = [redirect(f"{storage.url}/{number}?X-Amz-Expires=300") for number in range(3)]
    registry.expect("GET", BLOB, *places)
    storage.expect("GET", "/0?X-Amz-Expires=300", Answer(body=LAYER_CONTENT, cut_after_bytes=1000))
    storage.expect("GET", "/1?X-Amz-Expires=300", Answer(status=403, body=b"<Code>AccessDenied</Code>"))
    rest = {"Range": f"bytes=1000-{len(LAYER_CONTENT) - 1}"}
    storage.expect("GET", "/2?X-Amz-Expires=300", ranged(LAYER_CONTENT), requires=rest, forbids=["Authorization"])
    pull(store, registry)


# ECR


def without_digests(image: BuiltImage, digest: str | None = None) -> Callable[[Request], Answer]:
    """Return a script of a manifest that does not say its digest."""

    def answer(request: Request) -> Answer:
        found = document_answer(image, digest)(request)
        headers = [item for item in found.header_items() if item[0] != "Docker-Content-Digest"]
        return Answer(status=found.status, headers=headers, body=found.body)

    return answer


def test_ecr_wants_basic_and_tells_no_digests_so_that_they_are_computed(
    store: Store, registry: ScriptedRegistry
) -> None:
    challenge = 'Basic realm="https://1234.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com"'
    authorization = basic_credentials("AWS", "twelve-hours")
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization=authorization, challenge=challenge)
    for method in ("GET", "HEAD"):
        token = {"Authorization": authorization}
        registry.allow(method, MANIFEST, without_digests(IMAGE), requires=token)
    credentials = {registry.host: Credentials("AWS", "twelve-hours")}
    pull(store, registry, credentials=credentials)
    before = len(registry.requests)
    pull(store, registry, credentials=credentials, policy="if-newer")
    # The HEAD says nothing that could be compared; the GET behind it does.
    asked = [(each.method, each.target) for each in registry.requests[before:] if each.status == 200]
    assert asked == [("HEAD", MANIFEST), ("GET", MANIFEST)]


def test_ecr_takes_a_push_by_basic_and_is_shown_the_password_from_its_challenge_on(tmp_path: Path) -> None:
    put(tmp_path / "store", IMAGE, "app:1")
    with UploadRegistry() as registry:
        registry.challenge = 'Basic realm="https://1234.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com"'
        registry.authorization = basic_credentials("AWS", "twelve-hours")
        client = quick_client(credentials={registry.host: Credentials("AWS", "twelve-hours")})
        open_store(tmp_path / "store").push("app:1", registry.reference(REPOSITORY, "1"), client=client)
        assert registry.holds(REPOSITORY, IMAGE)
        assert registry.requests[0].header("Authorization") is None


def test_ecr_public_says_400_of_a_token_that_ended_before_its_time_and_the_blob_comes_with_a_new_one(
    store: Store, registry: ScriptedRegistry, tokens: TokenServer
) -> None:
    challenge = tokens.challenge(service="public.ecr.aws", scope=SCOPE)
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer second", challenge=challenge)
    ended = threading.Event()
    first = {"Authorization": "Bearer first"}

    def later(request: Request) -> Answer:
        ended.wait(1.2)
        return registry_error(400, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")

    registry.allow("GET", MANIFEST, document_answer(IMAGE), requires=first)
    for digest in IMAGE.blobs:
        if digest not in IMAGE.document_digests:
            registry.allow("GET", blob_target(REPOSITORY, digest), later, requires=first)
    tokens.expect_token("first", "second", service="public.ecr.aws", scope=SCOPE, expires_in_seconds=2)
    pull(store, registry)


# Quay


def test_quay_quotes_no_scope_and_says_a_charset_of_its_manifests(
    store: Store, registry: ScriptedRegistry, tokens: TokenServer
) -> None:
    challenge = f'Bearer realm="{tokens.realm}",service="quay.io",scope={SCOPE}'
    tokens.expect_token("good", service="quay.io", scope=SCOPE)
    good = {"Authorization": "Bearer good"}
    serve_image(registry, REPOSITORY, "1", DOCKER, authorization="Bearer good", challenge=challenge)
    headers = {"Content-Type": f"{DOCKER.media_type}; charset=utf-8"}
    registry.allow("GET", MANIFEST, Answer(headers=headers, body=DOCKER.blobs[DOCKER.digest]), requires=good)
    pull(store, registry, DOCKER)


# Artifactory, Nexus, Harbor


@pytest.mark.parametrize("image", [IMAGE, DOCKER, INDEX], ids=["OCI", "Docker", "index"])
def test_artifactory_and_nexus_call_a_manifest_json_and_its_own_type_counts(
    image: BuiltImage, store: Store, registry: ScriptedRegistry
) -> None:
    serve_image(registry, REPOSITORY, "1", image)
    for digest in image.document_digests:
        answer = Answer(headers={"Content-Type": "application/json"}, body=image.blobs[digest])
        registry.allow("GET", manifest_target(REPOSITORY, digest), answer)
        if digest == image.digest:
            registry.allow("GET", MANIFEST, answer)
    brought = image if image is not INDEX else IMAGE
    pull(store, registry, brought)
    assert store.resolve("app:1").media_type == brought.media_type


def test_s5_artifactory_and_nexus_are_not_believed_where_a_documents_own_type_is_another(
    store: Store, registry: ScriptedRegistry
) -> None:
    document = json.loads(IMAGE.blobs[IMAGE.digest])
    document["mediaType"] = INDEX.media_type
    body = json.dumps(document).encode()
    registry.expect("GET", MANIFEST, Answer(headers={"Content-Type": "application/json"}, body=body))
    with pytest.raises(InvalidDocument):
        pull(store, registry)
    assert store.images() == ()


def test_nexus_says_406_and_that_is_one_error_of_the_registry(store: Store, registry: ScriptedRegistry) -> None:
    registry.expect("GET", MANIFEST, Answer(status=406, body=b"<html>Not Acceptable</html>"))
    with pytest.raises(RegistryError) as caught:
        pull(store, registry)
    assert caught.value.status == 406


def test_artifactory_spells_basic_in_capitals(store: Store, registry: ScriptedRegistry) -> None:
    authorization = basic_credentials("alice", "pass-word-1")
    challenge = 'BASIC realm="Artifactory Realm"'
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization=authorization, challenge=challenge)
    pull(store, registry, credentials={registry.host: Credentials("alice", "pass-word-1")})
    assert [request.header("Authorization") for request in registry.requests[:2]] == [None, authorization]


def test_artifactory_and_nexus_name_a_token_server_without_a_path(
    store: Store, registry: ScriptedRegistry, tokens: TokenServer
) -> None:
    challenge = f'Bearer realm="{tokens.url}",service="artifactory",scope="{SCOPE}"'
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good", challenge=challenge)
    tokens.expect("GET", f"/?service=artifactory&scope={SCOPE}", Answer(body=b'{"access_token": "good"}'))
    pull(store, registry)


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_harbor_gives_only_a_token_and_others_only_an_access_token(
    field: str, store: Store, registry: ScriptedRegistry, tokens: TokenServer
) -> None:
    challenge = tokens.challenge(service="harbor-registry", scope=SCOPE)
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good", challenge=challenge)
    tokens.expect_token("good", service="harbor-registry", scope=SCOPE, field=field)
    pull(store, registry)


# SUSE


def test_suse_has_a_service_with_spaces(store: Store, registry: ScriptedRegistry, tokens: TokenServer) -> None:
    service = "SUSE Linux Docker Registry"
    challenge = tokens.challenge(service=service, scope=SCOPE)
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good", challenge=challenge)
    tokens.expect_token("good", service=service, scope=SCOPE)
    pull(store, registry)


# GitLab


def test_gitlabs_dependency_proxy_answers_a_head_first_and_later_sends_it_to_where_none_is_answered(
    store: Store, registry: ScriptedRegistry, storage: ScriptedServer
) -> None:
    serve_image(registry, REPOSITORY, "1", IMAGE)
    pull(store, registry)
    honest = document_answer(IMAGE)
    registry.expect("HEAD", MANIFEST, honest, redirect(f"{storage.url}/object?X-Amz-Signature=s"))
    pull(store, registry, policy="if-newer")
    registry.expect("GET", MANIFEST, redirect(f"{storage.url}/object?X-Amz-Signature=s"))
    storage.allow("HEAD", "/object?X-Amz-Signature=s", Answer(status=403))
    storage.expect("GET", "/object?X-Amz-Signature=s", honest, forbids=["Authorization"])
    pull(store, registry, policy="if-newer")


# ACR


def test_acr_has_a_scope_with_a_comma_and_takes_a_refresh_token_of_nobody(
    store: Store, registry: ScriptedRegistry
) -> None:
    scope = f"repository:{REPOSITORY}:pull,push"
    challenge = f'Bearer realm="{registry.url}/oauth2/token",service="acr.example",scope="{scope}"'
    serve_image(registry, REPOSITORY, "1", IMAGE, authorization="Bearer good", challenge=challenge)
    listed = registry.expect("POST", "/oauth2/token", Answer(body=b'{"access_token": "good"}'))
    nobody = Credentials("00000000-0000-0000-0000-000000000000", identity_token="refresh-token-of-acr")
    pull(store, registry, credentials={registry.host: nobody})
    form = dict(listed.requests[0].form())
    assert form["grant_type"] == "refresh_token"
    assert form["refresh_token"] == "refresh-token-of-acr"
    assert form["scope"] == scope


# All of them


def test_a_long_pull_outlives_its_tokens(store: Store, registry: ScriptedRegistry, tokens: TokenServer) -> None:
    """Each token opens one blob and no more, whatever was said of its life."""
    challenge = tokens.challenge(service="registry", scope=SCOPE)
    guard, used = threading.Lock(), set[str]()
    given = (f"token-{number}" for number in count())
    serve_image(registry, REPOSITORY, "1", IMAGE)

    def give(_: Request) -> Answer:
        with guard:
            return Answer(body=json.dumps({"token": next(given)}).encode())

    def guarded(digest: str, content: bytes) -> Callable[[Request], Answer]:
        def answer(request: Request) -> Answer:
            token = request.header("Authorization")
            with guard:
                if token is None or token in used:
                    return unauthorized(challenge)
                used.add(token)
            return Answer(body=content)

        return answer

    for digest, content in IMAGE.blobs.items():
        if digest not in IMAGE.document_digests:
            registry.allow("GET", blob_target(REPOSITORY, digest), guarded(digest, content))
    tokens.allow("GET", f"/token?service=registry&scope={SCOPE}", give)
    store.pull(registry.reference(REPOSITORY, "1"), name="app:1", client=quick_client(), parallel=1)
    check_there(store, IMAGE)
    assert len(used) == len(IMAGE.blobs) - 1


@pytest.mark.parametrize("request_line", ["GET", "PUT"])
def test_a_warning_of_any_registry_is_shown_by_a_pull_and_by_a_push(
    request_line: str, tmp_path: Path, store: Store
) -> None:
    put(tmp_path / "store", IMAGE, "app:1")
    events: list[Event] = []
    with UploadRegistry() as registry:
        warning = {"Warning": '299 - "this registry closes in May"'}
        if request_line == "PUT":
            created = {"Location": MANIFEST, "Docker-Content-Digest": IMAGE.digest}
            registry.expect("PUT", MANIFEST, Answer(status=201, headers={**created, **warning}))
            reference = registry.reference(REPOSITORY, "1")
            store.push("app:1", reference, client=quick_client(), on_event=events.append)
        else:
            serve_image(registry, REPOSITORY, "1", IMAGE)
            registry.allow("GET", MANIFEST, with_headers(warning, document_answer(IMAGE)))
            pull(store, registry, on_event=events.append)
        told = [event for event in events if isinstance(event, RegistryWarning)]
        assert told == [RegistryWarning(host=registry.host, text="this registry closes in May")]
