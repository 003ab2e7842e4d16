"""The same thing is tried again a few times, after pauses, and never for long without a word."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.digest import Digest
from minibox_store.errors import BlobNotFound, ManifestUnknown, RateLimited, RegistryError, StoreError
from minibox_store.registry.failures import Failure
from minibox_store.registry.retries import Attempts, RetryPolicy, parse_retry_after
from tests.support.certificates import make_certificate
from tests.support.images import build_image
from tests.support.processes import free_port
from tests.support.registries import open_repository
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    Scripted,
    ScriptedRegistry,
    blob_target,
    document_answer,
    manifest_target,
    registry_error,
    serve_image,
)
from tests.support.sources import descriptors_of, read_all
from tests.support.waiting import SOON_SECONDS

IMAGE = build_image()
MANIFEST = manifest_target("team/app", "1")
GOOD = document_answer(IMAGE)
ERROR = RegistryError("GET", "https://registry.example/", 503, (), "busy")


class Pauses:
    """Notes every pause instead of making it; ``ends_after`` of them an interrupt comes."""

    def __init__(self, ends_after: int = 1_000) -> None:
        self.seconds: list[float] = []
        self._ends_after = ends_after

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) <= self._ends_after


# Attempts


def fail_until_it_raises(attempts: Attempts, failure: Failure, limit: int = 100) -> int:
    for count in range(1, limit):
        try:
            attempts.failed(failure)
        except StoreError:
            return count
    raise AssertionError("it never gave up")


def test_pauses_double_and_are_jittered_up_to_a_bound() -> None:
    pauses = Pauses()
    policy = RetryPolicy(attempts=8, back_off_seconds=1.0, longest_back_off_seconds=8.0)
    assert fail_until_it_raises(Attempts(policy, pauses), Failure(ERROR, True)) == 8
    bounds = [1, 2, 4, 8, 8, 8, 8]
    assert len(pauses.seconds) == len(bounds)
    assert all(bound / 2 <= pause <= bound for pause, bound in zip(pauses.seconds, bounds, strict=True))


def test_a_final_failure_is_raised_at_once() -> None:
    pauses = Pauses()
    with pytest.raises(RegistryError) as caught:
        Attempts(RetryPolicy(), pauses).failed(Failure(ERROR))
    assert caught.value is ERROR
    assert not pauses.seconds


def test_tries_count_anew_when_something_came_of_one() -> None:
    attempts = Attempts(RetryPolicy(attempts=3), Pauses())
    for _ in range(20):
        attempts.failed(Failure(ERROR, True))
        attempts.failed(Failure(ERROR, True))
        attempts.advanced()
    assert fail_until_it_raises(attempts, Failure(ERROR, True)) == 3


def test_what_may_be_tried_once_more_is_tried_once_more() -> None:
    assert fail_until_it_raises(Attempts(RetryPolicy(), Pauses()), Failure(ERROR, True, only_once=True)) == 2


def test_an_interrupted_pause_is_the_last() -> None:
    assert fail_until_it_raises(Attempts(RetryPolicy(attempts=50), Pauses(ends_after=2)), Failure(ERROR, True)) == 3


def test_after_long_silences_only_one_more_try_is_made() -> None:
    def silence(_: float) -> bool:
        time.sleep(0.05)
        return True

    attempts = Attempts(RetryPolicy(attempts=50, patience_seconds=0.01), silence)
    assert fail_until_it_raises(attempts, Failure(ERROR, True)) == 2


@pytest.mark.parametrize(("asked", "tries"), [(0.0, 5), (9.0, 5), (11.0, 1), (21_600.0, 1)])
def test_the_registry_may_ask_for_a_pause_up_to_a_bound(asked: float, tries: int) -> None:
    pauses = Pauses()
    assert fail_until_it_raises(Attempts(RetryPolicy(), pauses), Failure(ERROR, True, asked)) == tries
    assert all(pause >= asked for pause in pauses.seconds)


# Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 60 ", 60.0),
        ("60\x1f", 60.0),
        ("-1", None),
        ("1.5", None),
        ("9" * 5000, None),
        ("soon", None),
        ("\u0661", None),
        ("Fri, 31 Feb 2026 00:00:00 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_or_nothing(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


def test_a_date_is_measured_from_the_answers_own_date() -> None:
    now = time.time() + 86_400 * 365
    asked = parse_retry_after(formatdate(now + 30, usegmt=True), formatdate(now, usegmt=True))
    assert asked == 30.0
    without = parse_retry_after(formatdate(time.time() + 30, usegmt=True))
    assert without is not None
    assert 28 <= without <= 30


@given(st.text(), st.text() | st.none())
def test_any_retry_after_is_read_without_an_error(text: str, date: str | None) -> None:
    seconds = parse_retry_after(text, date)
    assert seconds is None or seconds >= 0


# What is tried again


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524])
def test_a_passing_error_is_passed_over(status: int) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(status, "UNAVAILABLE"), Answer(status=status), GOOD)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert str(repository.resolve("1").digest) == IMAGE.digest


@pytest.mark.parametrize("broken", [NO_ANSWER, Answer(raw=b"HTTP/1.1 200"), Answer(raw=b"SSH-2.0-x\r\n")])
def test_a_broken_answer_is_passed_over(broken: Scripted) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, broken, broken, GOOD)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert str(repository.resolve("1").digest) == IMAGE.digest


def test_a_manifest_that_is_cut_is_asked_for_again() -> None:
    def cut(request: object) -> Answer:
        return Answer(headers={"Content-Type": IMAGE.media_type}, body=IMAGE.blobs[IMAGE.digest], cut_after_bytes=10)

    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, cut, cut, GOOD)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert str(repository.resolve("1").digest) == IMAGE.digest


@pytest.mark.parametrize("status", [400, 402, 405, 410, 418, 451, 501, 505, 599, 226])
def test_any_other_status_is_an_error_at_once(status: int) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(status, "SOME_CODE", "some words"))
        with (
            open_repository(registry.reference("team/app", "1"), plain_http=[registry.host]) as repository,
            pytest.raises(RegistryError) as caught,
        ):
            repository.resolve("1")
    assert caught.value.status == status
    assert caught.value.codes == ("SOME_CODE",)
    assert caught.value.problem == "some words"


def test_a_plain_registry_that_calls_a_request_bad_is_quoted_without_delay() -> None:
    """Servers with TLS say the same to plain HTTP; so it is seen whether this one speaks TLS."""
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(400, "TAG_INVALID", "no such tag"))
        with open_repository(registry.reference("team/app", "1"), back_off_seconds=60.0) as repository:
            started = time.monotonic()
            with pytest.raises(RegistryError, match="no such tag"):
                repository.resolve("1")
            assert time.monotonic() - started < SOON_SECONDS


def test_an_error_that_stays_is_told_after_five_tries() -> None:
    with ScriptedRegistry() as registry:
        listed = registry.allow("GET", MANIFEST, registry_error(503, "UNAVAILABLE", "down for repairs"))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(RegistryError, match="down for repairs") as caught,
        ):
            repository.resolve("1")
    assert len(listed.requests) == 5
    assert (caught.value.status, caught.value.codes) == (503, ("UNAVAILABLE",))
    assert not isinstance(caught.value, RateLimited)


def test_a_registry_that_is_not_there_is_told_of_within_seconds() -> None:
    started = time.monotonic()
    with (
        open_repository(f"127.0.0.1:{free_port()}/team/app:1", back_off_seconds=0.2) as repository,
        pytest.raises(RegistryError, match="refused") as caught,
    ):
        repository.resolve("1")
    assert time.monotonic() - started < SOON_SECONDS
    assert caught.value.status is None


def test_a_name_that_does_not_resolve_is_told_of_at_once() -> None:
    with (
        open_repository("no-such-host.invalid/team/app:1") as repository,
        pytest.raises(RegistryError, match="address was not found"),
    ):
        repository.resolve("1")


def test_silence_is_told_of_after_its_time_and_one_more_try() -> None:
    with ScriptedRegistry() as registry:
        registry.allow("GET", MANIFEST, Answer(body=b"{}", drip_bytes=1, drip_seconds=60))
        reference = registry.reference("team/app", "1")
        with open_repository(reference, silence_seconds=0.3, attempts=2) as repository:
            started = time.monotonic()
            with pytest.raises(RegistryError, match="in time"):
                repository.resolve("1")
            assert time.monotonic() - started < SOON_SECONDS


def test_a_manifest_that_drips_has_to_come_within_the_time_of_silence() -> None:
    with ScriptedRegistry() as registry:
        drip = Answer(headers={"Content-Type": IMAGE.media_type}, body=bytes(100_000), drip_bytes=1, drip_seconds=0.05)
        registry.allow("GET", MANIFEST, drip)
        with open_repository(registry.reference("team/app", "1"), silence_seconds=0.5, attempts=1) as repository:
            started = time.monotonic()
            with pytest.raises(RegistryError, match="in time"):
                repository.resolve("1")
            assert time.monotonic() - started < SOON_SECONDS


# 404


def test_a_missing_manifest_and_a_missing_blob_are_told_apart() -> None:
    with ScriptedRegistry() as registry:
        missing = registry_error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        registry.expect("GET", MANIFEST, missing)
        for descriptor in descriptors_of(IMAGE):
            digest = str(descriptor.digest)
            is_document = digest in IMAGE.document_digests
            target = manifest_target("team/app", digest) if is_document else blob_target("team/app", digest)
            registry.expect("GET", target, registry_error(404, "BLOB_UNKNOWN"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            with pytest.raises(ManifestUnknown) as caught:
                repository.resolve("1")
            assert caught.value.codes == ("MANIFEST_UNKNOWN",)
            for descriptor in descriptors_of(IMAGE):
                with pytest.raises(BlobNotFound) as not_found:
                    repository.open_blob(descriptor)
                assert not_found.value.digest == str(descriptor.digest)


# 429 and 503


def test_a_rate_limit_that_ends_soon_is_waited_for() -> None:
    with ScriptedRegistry() as registry:
        limited = registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "1"})
        registry.expect("GET", MANIFEST, limited, GOOD)
        with open_repository(registry.reference("team/app", "1")) as repository:
            started = time.monotonic()
            repository.resolve("1")
            assert time.monotonic() - started >= 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_rate_limit_that_lasts_is_told_of_at_once(status: int, form: str) -> None:
    now = time.time()
    wait = "21600" if form == "seconds" else formatdate(now + 21_600, usegmt=True)
    headers = {"Retry-After": wait, "Date": formatdate(now, usegmt=True)}
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, registry_error(status, "TOOMANYREQUESTS", headers=headers))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(RateLimited, match="try again in 21600 s") as caught,
        ):
            repository.resolve("1")
    assert caught.value.retry_after_seconds == 21_600
    assert caught.value.status == status


def test_docker_hubs_abuse_limit_is_a_rate_limit_though_its_lines_end_oddly() -> None:
    raw = b"HTTP/1.1 429 Too Many Requests\nRetry-After: 60\nContent-Type: text/plain\nContent-Length: 6\n\nHAP429"
    with ScriptedRegistry() as registry:
        registry.expect("GET", MANIFEST, Answer(raw=raw))
        with open_repository(registry.reference("team/app", "1")) as repository, pytest.raises(RateLimited) as caught:
            repository.resolve("1")
    assert caught.value.retry_after_seconds == 60


def test_a_rate_limit_without_a_time_is_tried_again_and_then_told_of() -> None:
    with ScriptedRegistry() as registry:
        listed = registry.allow("GET", MANIFEST, registry_error(429, "TOOMANYREQUESTS"))
        with (
            open_repository(registry.reference("team/app", "1"), attempts=3) as repository,
            pytest.raises(RateLimited) as caught,
        ):
            repository.resolve("1")
    assert caught.value.retry_after_seconds is None
    assert len(listed.requests) == 3


# Connections


@pytest.mark.parametrize("with_tls", [False, True])
def test_one_connection_serves_one_request_after_the_other(with_tls: bool, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path) if with_tls else None
    with ScriptedRegistry(certificate=certificate, hostname="localhost") as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        options = {"https": [registry.host], "ca_file": certificate.chain} if certificate else {}
        with open_repository(registry.reference("team/app", "1"), **options) as repository:
            repository.resolve("1")
            for descriptor in descriptors_of(IMAGE):
                assert Digest.of(read_all(repository, descriptor)) == descriptor.digest
        assert len({request.client_port for request in registry.requests}) == 1


def test_a_connection_that_the_server_closed_while_it_was_idle_costs_no_try() -> None:
    layer = descriptors_of(IMAGE)[0]
    content = IMAGE.blobs[str(layer.digest)]
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", blob_target("team/app", str(layer.digest)), Answer(body=content, close_silently=True))
        with open_repository(registry.reference("team/app", "1"), attempts=1) as repository:
            for _ in range(5):
                assert read_all(repository, layer) == content
                repository.resolve("1")
