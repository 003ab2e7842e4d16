"""What registries say of their limits, and their warnings: read as they write them, told once, never trusted."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store import Event, RateLimit, RateLimited, RateLimitSeen, RegistryWarning, render_line
from minibox_store.reference import Reference
from minibox_store.registry.notices import parse_warnings
from minibox_store.registry.rate_limits import parse_rate_limit
from tests.support.images import build_image, build_index
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import (
    Answer,
    Request,
    ScriptedRegistry,
    TokenServer,
    blob_target,
    document_answer,
    manifest_target,
    pull_scope,
    redirect,
    registry_error,
    serve_image,
    unauthorized,
)
from tests.support.sources import descriptors_of, read_all
from tests.support.stores import open_store

IMAGE = build_image()
MANIFEST = manifest_target("team/app", "1")
HUB = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "76;w=21600", "Docker-RateLimit-Source": "192.0.2.1"}
NOW = time.time()
DATE = {"Date": formatdate(NOW, usegmt=True)}


def parsed(headers: dict[str, str]) -> RateLimit | None:
    return parse_rate_limit(headers.get)


# What the headers say


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (HUB, RateLimit(limit=100, remaining=76, window_seconds=21600.0, source="192.0.2.1")),
        (
            {**HUB, "RateLimit-Remaining": "0;w=21600", "Docker-RateLimit-Source": "2600:3c00::"},
            RateLimit(limit=100, remaining=0, window_seconds=21600.0, source="2600:3c00::"),
        ),
        (
            {"RateLimit-Limit": "100, 10;w=1, 100;w=60", "RateLimit-Remaining": "9", "RateLimit-Reset": "50"},
            RateLimit(limit=100, remaining=9, window_seconds=60.0, reset_seconds=50.0),
        ),
        (
            {"RateLimit-Limit": '10;w=1;comment="burst"', "RateLimit-Remaining": "9"},
            RateLimit(limit=10, remaining=9, window_seconds=1.0),
        ),
        (
            {
                "X-RateLimit-Limit": "5000",
                "X-RateLimit-Remaining": "4999",
                "X-RateLimit-Used": "1",
                "X-RateLimit-Reset": str(int(NOW) + 90),
                **DATE,
            },
            RateLimit(limit=5000, remaining=4999, reset_seconds=90.0),
        ),
        (
            {"RateLimit-Limit": "60", "RateLimit-Observed": "67", "RateLimit-Remaining": "0", "RateLimit-Reset": "30"},
            RateLimit(limit=60, remaining=0, reset_seconds=30.0),
        ),
        ({"RateLimit-Remaining": "3;w=10"}, RateLimit(remaining=3, window_seconds=10.0)),
        ({"RateLimit-Limit": " 7 ; w = 5 "}, RateLimit(limit=7, window_seconds=5.0)),
        (
            {**HUB, "X-RateLimit-Limit": "1", "Docker-RateLimit-Source": ""},
            parsed(HUB | {"Docker-RateLimit-Source": ""}),
        ),
    ],
)
def test_the_forms_in_use_are_read(headers: dict[str, str], found: RateLimit) -> None:
    assert parsed(headers) == found


@pytest.mark.parametrize(
    "text", ["", "many", "-1", "1.5", "1e3", "9" * 16, "\u0661", ";w=1", "100;w=21600" + " " * 300, "0x10", "1 2"]
)
def test_what_is_no_number_says_nothing(text: str) -> None:
    assert parsed({"RateLimit-Limit": text}) is None
    assert parsed({**HUB, "RateLimit-Remaining": text}) == RateLimit(
        limit=100, window_seconds=21600.0, source="192.0.2.1"
    )
    assert parsed({**HUB, "RateLimit-Reset": text}) == parsed(HUB)


def test_a_source_that_no_line_may_hold_says_nothing() -> None:
    for source in ("a\x1b[2J", "\u202e", "x" * 257):
        assert parsed({**HUB, "Docker-RateLimit-Source": source}) == parsed({**HUB, "Docker-RateLimit-Source": ""})


def test_a_time_that_is_over_is_no_time_to_wait() -> None:
    found = parsed({"X-RateLimit-Limit": "1", "X-RateLimit-Reset": str(int(NOW) - 500), **DATE})
    assert found == RateLimit(limit=1, reset_seconds=0.0)


def test_a_time_since_1970_without_a_date_is_measured_by_the_clock() -> None:
    found = parsed({"X-RateLimit-Limit": "1", "X-RateLimit-Reset": str(int(time.time()) + 100)})
    assert found is not None
    assert found.reset_seconds is not None
    assert 90 <= found.reset_seconds <= 101


@pytest.mark.parametrize(
    ("rate_limit", "seconds"),
    [
        (RateLimit(limit=1, remaining=1, window_seconds=5.0, reset_seconds=3.0), None),
        (RateLimit(limit=1, window_seconds=5.0), None),
        (RateLimit(remaining=0), None),
        (RateLimit(remaining=0, window_seconds=5.0), 5.0),
        (RateLimit(remaining=0, window_seconds=5.0, reset_seconds=3.0), 3.0),
    ],
)
def test_nobody_waits_while_something_is_left(rate_limit: RateLimit, seconds: float | None) -> None:
    assert rate_limit.wait_seconds == seconds


NAMES = [f"{family}-{name}" for family in ("RateLimit", "X-RateLimit") for name in ("Limit", "Remaining", "Reset")]


@given(st.dictionaries(st.sampled_from([*NAMES, "Docker-RateLimit-Source", "Date"]), st.text(max_size=40)))
def test_any_headers_are_read_without_an_error(headers: dict[str, str]) -> None:
    found = parsed(headers)
    assert found is None or found.limit is not None or found.remaining is not None


# Events


def seen(events: list[Event]) -> list[RateLimit]:
    return [each.rate_limit for each in events if isinstance(each, RateLimitSeen)]


def warnings(events: list[Event]) -> list[str]:
    return [each.text for each in events if isinstance(each, RegistryWarning)]


def with_headers(headers: dict[str, str] | list[tuple[str, str]]) -> Answer:
    """The manifest, with these headers besides."""
    answer = document_answer(IMAGE)(Request(method="GET", target=MANIFEST, headers=ACCEPTS, body=b"", client_port=0))
    return Answer(headers=[*answer.header_items(), *Answer(headers=headers).header_items()], body=answer.body)


ACCEPTS = (("Accept", IMAGE.media_type),)


def resolve(registry: ScriptedRegistry, *answers: Answer) -> list[Event]:
    """Resolve a tag once for each answer, in one session, and return what was told."""
    registry.expect("GET", MANIFEST, *answers)
    events: list[Event] = []
    reference = Reference.parse(registry.reference("team/app", "1"))
    with quick_client().open_repository(reference, on_event=events.append) as repository:
        for _ in answers:
            repository.resolve("1")
    return events


def test_a_limit_is_told_when_it_is_another_and_not_for_the_time_that_passes() -> None:
    limits = [
        {**HUB, "RateLimit-Reset": "90"},
        {**HUB, "RateLimit-Reset": "80"},
        {},
        {**HUB, "RateLimit-Reset": "70"},
        {**HUB, "RateLimit-Remaining": "75;w=21600"},
        {**HUB},
    ]
    with ScriptedRegistry() as registry:
        events = resolve(registry, *map(with_headers, limits))
        assert [(each.remaining, each.reset_seconds) for each in seen(events)] == [(76, 90.0), (75, None), (76, None)]
        assert {each.host for each in events if isinstance(each, RateLimitSeen)} == {registry.host}
    assert [render_line(each) for each in events] == [None] * 3


def test_a_pull_tells_what_is_left_of_the_limit(tmp_path: Path) -> None:
    index = build_index([IMAGE])
    left = iter([76, 75])

    def counted(digest: str) -> object:
        def answer(request: Request) -> Answer:
            honest = document_answer(index, digest)(request)
            headers = {**HUB, "RateLimit-Remaining": f"{next(left)};w=21600"}
            return Answer(headers=[*honest.header_items(), *headers.items()], body=honest.body)

        return answer

    events: list[Event] = []
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", index)
        for name, digest in (("1", index.digest), (IMAGE.digest, IMAGE.digest)):
            registry.expect("GET", manifest_target("team/app", name), counted(digest))  # type: ignore[arg-type]
        open_store(tmp_path).pull(
            registry.reference("team/app", "1"), name="app:1", client=quick_client(), on_event=events.append
        )
    assert [each.remaining for each in seen(events)] == [76, 75]


def test_a_refusal_tells_the_limit_as_an_event_and_in_the_error() -> None:
    headers = {**HUB, "RateLimit-Remaining": "0;w=21600", "Retry-After": "3600"}
    with ScriptedRegistry() as registry, pytest.raises(RateLimited) as caught:
        resolve(registry, registry_error(429, "TOOMANYREQUESTS", "too many", headers=headers))
    expected = RateLimit(limit=100, remaining=0, window_seconds=21600.0, source="192.0.2.1")
    assert caught.value.rate_limit == expected
    assert caught.value.retry_after_seconds == 3600
    assert str(caught.value).endswith(
        "(429): too many [TOOMANYREQUESTS]; try again in 3600 s; 0 of 100 requests are left"
    )


def test_where_nothing_is_left_for_hours_nothing_is_tried_again() -> None:
    """Docker Hub's own words, which come without Retry-After; each further try would be counted too."""
    words = b'{"message":"toomanyrequests: You have reached your pull rate limit."}'
    headers = {**HUB, "RateLimit-Remaining": "0;w=21600"}
    with ScriptedRegistry() as registry:
        listed = registry.expect("GET", MANIFEST, Answer(status=429, headers=headers, body=words))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(RateLimited, match="You have reached your pull rate limit") as caught,
        ):
            repository.resolve("1")
        assert len(listed.requests) == 1
    assert caught.value.retry_after_seconds is None
    assert caught.value.rate_limit is not None
    assert caught.value.rate_limit.wait_seconds == 21600.0


def test_where_something_is_granted_again_soon_it_is_waited_for() -> None:
    headers = {"RateLimit-Limit": "60", "RateLimit-Remaining": "0", "RateLimit-Reset": "1"}
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(429, "X", headers=headers), document_answer(IMAGE))
        with open_repository(registry.reference("team/app", "1")) as repository:
            started = time.monotonic()
            repository.resolve("1")
            assert time.monotonic() - started >= 1


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_docker_hubs_words_against_abuse_are_told(end: bytes) -> None:
    lines = [b"HTTP/1.1 429 Too Many Requests", b"Retry-After: 60", b"Content-Type: text/plain", b"Content-Length: 6"]
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, Answer(raw=end.join([*lines, b"", b"HAP429"])))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(RateLimited, match=r"\(429\): HAP429; try again in 60 s") as caught,
        ):
            repository.resolve("1")
    assert caught.value.rate_limit is None


@pytest.mark.parametrize("body", [b"<html>", b"x" * 201])
def test_no_page_is_told_as_an_error(body: bytes) -> None:
    kind = "text/html" if body.startswith(b"<") else "text/plain"
    with ScriptedRegistry() as registry:
        headers = {"Retry-After": "60", "Content-Type": kind}
        registry.expect("GET", MANIFEST, Answer(status=429, headers=headers, body=body))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(RateLimited, match="too many requests; try again"),
        ):
            repository.resolve("1")


def test_another_host_says_nothing_of_the_registrys_limit() -> None:
    layer = IMAGE.layer_digests[0]
    events: list[Event] = []
    odd = {**HUB, "Warning": '299 - "storage speaks"'}
    with ScriptedRegistry() as registry, ScriptedRegistry(hostname="localhost") as storage:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow(
            "GET", blob_target("team/app", layer), redirect(f"{storage.url}/blob", headers={"Warning": '299 - "mine"'})
        )
        storage.allow("GET", "/blob", Answer(headers=odd, body=IMAGE.blobs[layer]))
        reference = Reference.parse(registry.reference("team/app", "1"))
        with quick_client().open_repository(reference, on_event=events.append) as repository:
            (descriptor,) = [each for each in descriptors_of(IMAGE) if str(each.digest) == layer]
            assert read_all(repository, descriptor) == IMAGE.blobs[layer]
    assert seen(events) == []
    assert warnings(events) == ["mine"]


# Warnings


@pytest.mark.parametrize(
    ("headers", "texts"),
    [
        (['299 - "this tag goes away"'], ("this tag goes away",)),
        (['299 - "one", 299 - "two"', '299 - "three"'], ("one", "two", "three")),
        (['299 example.com:5000 "with an agent" "Sat, 25 Aug 2012 23:34:45 GMT"'], ("with an agent",)),
        (['110 - "stale", 299 - "told", 199 - "not"'], ("told",)),
        ([r'299 - "a \"quoted\" \\ text, with a comma"'], ('a "quoted" \\ text, with a comma',)),
        (['299 - "gr\u00c3\u00bc\u00c3\u009fe"', '299 - "gr\u00fc\u00dfe"'], ("gr\u00fc\u00dfe", "gr\u00fc\u00dfe")),
        (['299 - ""', '299 - "  "', "299 - bare", "299", "", "x", '299 - "open', '299 "no agent"'], ()),
        (['299 - "told", rubbish, 299 - "behind"'], ("told",)),
        ([f'299 - "{"x" * 4000}"', f'299 - "{"y" * 100}"'], ("x" * 4000,)),
        ([f'299 - "{"x" * 5000}"'], ()),
    ],
)
def test_warnings_for_the_user_are_read(headers: list[str], texts: tuple[str, ...]) -> None:
    assert parse_warnings(headers) == texts


@given(st.lists(st.text(max_size=60) | st.from_regex(r'[0-9]{3} - "[^"]*"', fullmatch=True), max_size=5))
def test_any_warnings_are_read_without_an_error(headers: list[str]) -> None:
    assert all(text.strip() for text in parse_warnings(headers))


def test_a_header_of_nothing_but_quotes_costs_no_more_than_its_length() -> None:
    started = time.thread_time()
    for text in ('299 - "' + "\\" * 4000, '299 - "a" "' * 300, '299 - "' + '\\"' * 2000, "299 - " + "," * 4000):
        parse_warnings([text[:4096]])
    assert time.thread_time() - started < 1


def test_what_a_registry_warns_of_is_told_also_where_no_repository_is_asked() -> None:
    events: list[Event] = []
    with ScriptedRegistry() as registry:
        registry.allow("GET", "/v2/", Answer(headers={"Warning": '299 - "closing soon"'}))
        with quick_client().open_registry(registry.host, on_event=events.append) as opened:
            opened.check_access()
        assert events == [RegistryWarning(host=registry.host, text="closing soon")]


def test_a_warning_is_told_once_and_on_one_line() -> None:
    again = [("Warning", '299 - "this tag\x1b[2J goes away"'), ("Warning", '299 - "so does this"')]
    with ScriptedRegistry() as registry:
        events = resolve(registry, with_headers(again), with_headers([]), with_headers(again[:1]))
        lines = [render_line(each) for each in events]
        assert lines == [
            f"[pull] warning from {registry.host}: this tag\\x1b[2J goes away",
            f"[pull] warning from {registry.host}: so does this",
        ]


def test_a_long_warning_is_a_line_that_is_not_longer_than_others_may_be() -> None:
    line = render_line(RegistryWarning(host="quay.io", text="\u2028" * 4000))
    assert line is not None
    assert len(line) < 1000
    assert line.startswith("[pull] warning from quay.io: \\u2028")


def test_who_warns_of_something_else_each_time_is_not_listened_to_for_ever() -> None:
    with ScriptedRegistry() as registry:
        events = resolve(registry, *[with_headers({"Warning": f'299 - "number {each}"'}) for each in range(40)])
    assert warnings(events) == [f"number {each}" for each in range(16)]


def test_S28_what_was_sent_is_told_in_no_event() -> None:
    token = "planted-token-91ab-" + "x" * 40
    scope = pull_scope("team/app")

    def echo(request: Request) -> Answer:
        sent = (request.header("Authorization") or "").partition(" ")[2]
        headers = {**HUB, "Docker-RateLimit-Source": sent, "Warning": f'299 - "you sent {sent}"'}
        return with_headers(headers)

    events: list[Event] = []
    with ScriptedRegistry() as registry, TokenServer() as tokens:
        tokens.expect_token(token, service="x", scope=scope)
        registry.expect("GET", MANIFEST, unauthorized(tokens.challenge(service="x", scope=scope)), echo)
        reference = Reference.parse(registry.reference("team/app", "1"))
        with quick_client().open_repository(reference, on_event=events.append) as repository:
            repository.resolve("1")
    assert seen(events)
    assert warnings(events)
    assert token[:16] not in repr(events)


def test_a_listener_that_fails_ends_the_request() -> None:
    class Odd(Exception):
        pass

    def fail(_: Event) -> None:
        raise Odd

    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, with_headers(HUB))
        reference = Reference.parse(registry.reference("team/app", "1"))
        with quick_client().open_repository(reference, on_event=fail) as repository, pytest.raises(Odd):
            repository.resolve("1")
