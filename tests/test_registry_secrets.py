"""S28: no token, password or signed query reaches a log, an error, a traceback's text, or a printed value."""

import logging
import pickle
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import quote_plus

import pytest

from minibox_store.codec.registries_file import decode_registries_file
from minibox_store.errors import AuthenticationRefused, InvalidInput, StoreError
from minibox_store.events import Event, RegistryWarning
from minibox_store.reference import Reference, check_image_name
from minibox_store.registry import Credentials, Proxies
from minibox_store.registry.credential_keys import parse_registry
from minibox_store.registry.failures import without_secrets
from minibox_store.registry.tokens import Grant
from minibox_store.registry_rules import RegistryRule
from tests.support.images import build_image
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    basic_credentials,
    blob_target,
    manifest_target,
    pull_scope,
    redirect,
    registry_error,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all

IMAGE = build_image()
LAYER = descriptors_of(IMAGE)[0]
BLOB = blob_target("team/app", str(LAYER.digest))
SCOPE = pull_scope("team/app")
PASSWORD = "planted-password-5f2c"
TOKEN = "eyJplanted-token-91ab." + "x" * 900
SIGNATURE = "planted-signature-77de"
ODD_TOKEN = "pl+nt/d=token-08c4=="
PLANTED = (PASSWORD, TOKEN[:24], SIGNATURE, basic_credentials("alice", PASSWORD).partition(" ")[2])


def echo(status: int, place: str) -> Scripted:
    """An answer that repeats what it was sent."""

    def answer(request: Request) -> Answer:
        told = f"cannot take {request.header('Authorization')} for {request.target}"
        if place == "message":
            return registry_error(status, "DENIED", told)
        if place == "code":
            return registry_error(status, told.replace(" ", "_").upper() if status == 400 else told)
        return Answer(status=status, body=told.encode(), headers={"X-Odd Header": told, "Content-Type": "text/plain"})

    return answer


def echo_raw(head: bytes) -> Scripted:
    """No answer at all, but what was sent."""

    def answer(request: Request) -> Answer:
        return Answer(raw=head + (request.header("Authorization") or "").encode() + b"\r\n\r\n")

    return answer


def odd_head(_: Request) -> Answer:
    return Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n bad fold\r\n: none\r\nno colon\r\n\r\nhello")


BLOB_SCRIPTS: dict[str, Callable[[ScriptedServer], Scripted]] = {
    "refused, told in the message": lambda _: echo(403, "message"),
    "failed, told in the code": lambda _: echo(500, "code"),
    "failed, told in the body": lambda _: echo(418, "body"),
    "failed, told for a status": lambda _: echo_raw(b""),
    "failed, told for a version": lambda _: echo_raw(b"HTTP/7"),
    "failed, told for a chunk": lambda _: echo_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "odd head": lambda _: odd_head,
    "signed, refused": lambda storage: redirect(f"{storage.url}/refused?X-Amz-Signature={SIGNATURE}"),
    "signed, nobody there": lambda _: redirect(f"http://127.0.0.1:1/x?X-Amz-Signature={SIGNATURE}"),
    "signed, cut": lambda storage: redirect(f"{storage.url}/cut?X-Amz-Signature={SIGNATURE}"),
    "signed, odd head": lambda storage: redirect(f"{storage.url}/odd?X-Amz-Signature={SIGNATURE}"),
    "signed, again and again": lambda storage: redirect(f"{storage.url}/loop?X-Amz-Signature={SIGNATURE}"),
    "signed, a user in it": lambda _: redirect(f"https://u:{PASSWORD}@127.0.0.1/x?X-Amz-Signature={SIGNATURE}"),
    "signed, no URL": lambda _: redirect(f"https://[::1/x?X-Amz-Signature={SIGNATURE}"),
}


@pytest.mark.parametrize("script", BLOB_SCRIPTS)
def test_s28_no_secret_reaches_a_log_or_an_error(script: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ExitStack() as servers:
        registry = servers.enter_context(ScriptedRegistry())
        tokens = servers.enter_context(TokenServer())
        storage = servers.enter_context(ScriptedServer())
        challenge = tokens.challenge(service="x", scope=SCOPE)
        registry.allow("GET", BLOB, unauthorized(challenge), forbids=["Authorization"])
        registry.allow("GET", BLOB, BLOB_SCRIPTS[script](storage), requires={"Authorization": f"Bearer {TOKEN}"})
        tokens.expect_token(TOKEN, service="x", scope=SCOPE, credentials=("alice", PASSWORD))
        stored: dict[str, Scripted] = {
            "/refused": registry_error(403, "DENIED", f"bad signature {SIGNATURE}"),
            "/cut": NO_ANSWER,
            "/odd": odd_head,
            "/loop": redirect(f"/loop?X-Amz-Signature={SIGNATURE}"),
        }
        for path, answer in stored.items():
            storage.allow("GET", f"{path}?X-Amz-Signature={SIGNATURE}", answer)
        options = {
            "credentials": {registry.host: Credentials("alice", PASSWORD)},
            "realms": {registry.host: [tokens.host]},
            "attempts": 2,
        }
        repository = servers.enter_context(open_repository(registry.reference("team/app", "1"), **options))
        with pytest.raises(StoreError) as caught:
            read_all(repository, LAYER)
        shown = told_by(caught.value) + caplog.text + repr(repository) + repr(vars(repository))
    assert not [secret for secret in PLANTED if secret in shown], shown


@pytest.mark.parametrize("header", ["Content-Type", "Docker-Content-Digest"])
def test_s28_an_accepted_answer_that_repeats_the_password_which_only_the_token_server_was_sent_is_not_quoted(
    header: str,
) -> None:
    target = manifest_target("team/app", "1")
    told = Answer(body=IMAGE.blobs[IMAGE.digest], headers={"Content-Type": IMAGE.media_type, header: f"x/{PASSWORD}"})
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        registry.allow(
            "GET", target, unauthorized(tokens.challenge(service="x", scope=SCOPE)), forbids=["Authorization"]
        )
        registry.allow("GET", target, told, requires={"Authorization": f"Bearer {TOKEN}"})
        tokens.expect_token(TOKEN, service="x", scope=SCOPE, credentials=("alice", PASSWORD))
        alice, realms = {registry.host: Credentials("alice", PASSWORD)}, {registry.host: [tokens.host]}
        with (
            open_repository(registry.reference("team/app", "1"), credentials=alice, realms=realms) as repository,
            pytest.raises(StoreError, match="x/") as caught,
        ):
            repository.resolve("1")
    assert PASSWORD not in told_by(caught.value)


def test_s28_a_signed_query_of_the_registry_itself_is_shown_no_more_than_that_of_another_host() -> None:
    told, signed = list[Event](), f"/signed?X-Amz-Signature={SIGNATURE}"

    def answer(request: Request) -> Answer:
        warning = {"Warning": f'299 - "asked for {request.target}"'}
        return registry_error(403, "DENIED", f"cannot take {request.target}", headers=warning)

    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, redirect(signed))
        registry.expect("GET", signed, answer)
        reference = Reference.parse(registry.reference("team/app", "1"))
        with (
            quick_client().open_repository(reference, on_event=told.append) as repository,
            pytest.raises(AuthenticationRefused, match="cannot take") as caught,
        ):
            read_all(repository, LAYER)
    assert [type(event) for event in told] == [RegistryWarning]
    assert SIGNATURE not in told_by(caught.value) + repr(told)


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_s28_a_token_server_that_repeats_the_password_is_not_quoted(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = f'Bearer realm="{tokens.realm}?key={SIGNATURE}",scope="{SCOPE}"'
        registry.allow("GET", manifest_target("team/app", "1"), unauthorized(challenge))
        tokens.allow("GET", f"/token?key={SIGNATURE}&scope={SCOPE}", echo(status, "message"))
        options = {
            "credentials": {registry.host: Credentials("alice", PASSWORD)},
            "realms": {registry.host: [tokens.host]},
            "attempts": 1,
        }
        with (
            open_repository(registry.reference("team/app", "1"), **options) as repository,
            pytest.raises(StoreError) as caught,
        ):
            repository.resolve("1")
    shown = told_by(caught.value) + caplog.text
    assert not [secret for secret in PLANTED if secret in shown], shown


@pytest.mark.parametrize(
    "credentials", [Credentials("alice", identity_token=ODD_TOKEN), Credentials("<token>", ODD_TOKEN)]
)
def test_s28_a_token_server_that_repeats_the_form_of_a_refresh_token_is_not_quoted(credentials: Credentials) -> None:
    def answer(request: Request) -> Answer:
        return registry_error(403, "DENIED", f"cannot take {request.body.decode()}")

    with ScriptedRegistry() as registry, TokenServer() as tokens:
        challenge = unauthorized(tokens.challenge(service="x", scope=SCOPE))
        registry.allow("GET", manifest_target("team/app", "1"), challenge)
        tokens.allow("POST", "/token", answer)
        known, realms = {registry.host: credentials}, {registry.host: [tokens.host]}
        with (
            open_repository(registry.reference("team/app", "1"), credentials=known, realms=realms) as repository,
            pytest.raises(AuthenticationRefused, match="cannot take") as caught,
        ):
            repository.resolve("1")
    shown = told_by(caught.value)
    assert not [each for each in (ODD_TOKEN, quote_plus(ODD_TOKEN)) if each[:12] in shown], shown


@pytest.mark.parametrize("scheme", ["https", "http", "oci"])
def test_s28_a_user_in_a_url_that_is_taken_for_something_else_is_not_shown(scheme: str) -> None:
    url = f"{scheme}://alice:{PASSWORD}@quay.example/app"
    rules = f'[[registry]]\nprefix = "quay.io"\nmirrors = [{{ location = "{url}" }}]'
    made: list[Callable[[], object]] = [
        lambda: Reference.parse(url),
        lambda: Reference.parse(url * 100),
        lambda: check_image_name(url),
        lambda: parse_registry(url),
        lambda: RegistryRule(prefix=url),
        lambda: RegistryRule(prefix="quay.io", realms=[url]),
        lambda: quick_client(realms={"quay.io": [url]}),
        lambda: decode_registries_file(rules.encode(), "registries.toml"),
    ]
    for make in made:
        with pytest.raises(InvalidInput) as caught:
            make()
        assert PASSWORD not in told_by(caught.value)


def told_by(error: BaseException) -> str:
    """Everything that an error says: by itself, printed, as a traceback with what caused it, and after a pickle."""
    again = pickle.loads(pickle.dumps(error))
    return "".join([str(error), repr(error), str(again), repr(again), *traceback.format_exception(error)])


def test_s28_values_that_carry_secrets_print_none() -> None:
    assert TOKEN[:24] not in repr(Grant(f"Bearer {TOKEN}", 0.0, 60.0))
    assert PASSWORD not in repr(Credentials("alice", PASSWORD))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"bad token {TOKEN} sent", "bad token ***"),
        (f"bad token {TOKEN[:40]}", "bad token ***"),
        (f"{PASSWORD}", "***"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_s28_a_text_is_cut_off_where_a_secret_begins(text: str, expected: str) -> None:
    assert without_secrets(text, (TOKEN, PASSWORD, "", "ing")) == expected


ODD = f"{PASSWORD}\udcff"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Credentials("alice", ODD),
        lambda: Credentials(ODD),
        lambda: Credentials("", identity_token=ODD),
        lambda: Proxies(http=f"http://alice:{ODD}@proxy.test:3128"),
        lambda: Proxies(https=f"http://{ODD}@proxy.test:3128"),
    ],
)
def test_a_secret_that_no_header_can_carry_is_refused_before_it_is_used_and_not_shown(
    make: Callable[[], object],
) -> None:
    with pytest.raises(ValueError, match="a character that is none") as caught:
        make()
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in repr(error)
        assert type(error) is not UnicodeEncodeError  # it has all of the text in it
        error = error.__context__
