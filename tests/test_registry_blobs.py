"""Blobs arrive whole over lines that break, by exactly the range that is missing, or by one error."""

import resource
import threading
import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, RegistryError, StoreError
from minibox_store.media_types import OCI_CONFIG
from minibox_store.reference import Reference
from minibox_store.registry_rules import Mirror, RegistryRule
from tests.support.answers import Framing
from tests.support.images import OCI_LAYER
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    blob_target,
    partial_content,
    ranged,
    redirect,
    registry_error,
)
from tests.support.sources import descriptor_for, read_all, read_stream

CONTENT = bytes(range(256)) * 40
LAYER = descriptor_for(CONTENT, OCI_LAYER)
EMPTY = descriptor_for(b"", OCI_CONFIG)
SIZE = len(CONTENT)


def target_of(descriptor: Descriptor) -> str:
    return blob_target("team/app", str(descriptor.digest))


BLOB = target_of(LAYER)


def cut(after: int, *, reset: bool = False, ranges: bool = True) -> Callable[[Request], Answer]:
    """A registry that breaks off after so many bytes of what it was asked for."""

    def answer(request: Request) -> Answer:
        whole = ranged(CONTENT)(request) if ranges else Answer(body=CONTENT)
        return Answer(status=whole.status, headers=whole.headers, body=whole.body, cut_after_bytes=after, reset=reset)

    return answer


def expect(answers: Sequence[Scripted], ranges: Sequence[str | None], registry: ScriptedRegistry) -> None:
    for answer, asked in zip(answers, ranges, strict=True):
        wanted = {} if asked is None else {"Range": asked}
        registry.expect("GET", BLOB, answer, requires=wanted, forbids=["Range"] if asked is None else [])


# Whole


@pytest.mark.parametrize("framing", ["length", "chunked", "until_close"])
@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
def test_a_blob_arrives_by_every_framing_in_steps_of_any_size(framing: Framing, step: int) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, framing=framing))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, step_bytes=step) == CONTENT


@pytest.mark.parametrize("mirrors", [(), ("mirror",)])
def test_a_buffer_that_is_no_memoryview_is_filled_as_well(mirrors: tuple[str, ...]) -> None:
    buffer = bytearray(100)  # whose slices are copies
    with ScriptedRegistry() as registry:
        rule = RegistryRule(prefix=registry.host, mirrors=[Mirror(location=f"{registry.host}/{m}") for m in mirrors])
        repository = "/".join([*mirrors, "team/app"])
        registry.expect("GET", blob_target(repository, str(LAYER.digest)), Answer(body=CONTENT))
        reference = Reference.parse(registry.reference("team/app", "1"))
        with quick_client(registries=[rule]).open_repository(reference) as opened:
            stream = opened.open_blob(LAYER)
            assert stream.readinto(buffer) == 100  # type: ignore[arg-type]  # a caller without types
            stream.close()
    assert buffer == CONTENT[:100]


@pytest.mark.parametrize("framing", ["length", "chunked", "until_close"])
def test_a_blob_of_no_bytes_arrives(framing: Framing) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", target_of(EMPTY), Answer(framing=framing))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, EMPTY) == b""


def test_a_blob_that_is_not_there_is_told_of_when_it_is_opened() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, registry_error(404, "BLOB_UNKNOWN"))
        with open_repository(registry.reference("team/app", "1")) as repository, pytest.raises(BlobNotFound):
            repository.open_blob(LAYER)


def test_a_stream_that_was_read_gives_its_connection_back_and_one_that_was_not_closes_it() -> None:
    with ScriptedRegistry() as registry:
        registry.allow("GET", BLOB, Answer(body=CONTENT))
        with open_repository(registry.reference("team/app", "1")) as repository:
            for _ in range(3):
                assert read_all(repository, LAYER) == CONTENT
            half = repository.open_blob(LAYER)
            assert half.readinto(memoryview(bytearray(100))) == 100
            half.close()
            half.close()
            assert half.readinto(memoryview(bytearray(100))) == 0
            assert read_all(repository, LAYER) == CONTENT
        ports = [request.client_port for request in registry.requests]
    assert len(set(ports[:4])) == 1
    assert ports[4] != ports[3]


def test_what_comes_slowly_is_given_as_it_comes() -> None:
    held = threading.Event()
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, hold=held, hold_after_bytes=100))
        with open_repository(registry.reference("team/app", "1")) as repository:
            stream = repository.open_blob(LAYER)
            assert 0 < stream.readinto(memoryview(bytearray(1 << 20))) <= 100
            stream.close()
        held.set()


# Ranges


@pytest.mark.parametrize("offset", [1, 100, SIZE - 1])
def test_what_is_missing_is_asked_for_by_its_range(offset: int) -> None:
    with ScriptedRegistry() as registry:
        expect([ranged(CONTENT)], [f"bytes={offset}-{SIZE - 1}"], registry)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, offset) == CONTENT[offset:]


@pytest.mark.parametrize("framing", ["length", "chunked", "until_close"])
@pytest.mark.parametrize("offset", [1, SIZE - 1, SIZE])
def test_an_answer_with_everything_is_read_from_where_we_are(framing: Framing, offset: int) -> None:
    with ScriptedRegistry() as registry:
        asked = f"bytes={offset}-" if offset == SIZE else f"bytes={offset}-{SIZE - 1}"
        expect([Answer(body=CONTENT, framing=framing)], [asked], registry)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, offset) == CONTENT[offset:]


@pytest.mark.parametrize("headers", [{"Content-Range": f"bytes */{SIZE}"}, {}])
def test_an_unsatisfiable_range_at_full_length_means_that_all_is_there(headers: dict[str, str]) -> None:
    with ScriptedRegistry() as registry:
        expect([Answer(status=416, headers=headers)], [f"bytes={SIZE}-"], registry)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, SIZE) == b""


def content_range(text: str | None, *, first: int = 100) -> Answer:
    headers = {} if text is None else {"Content-Range": text}
    return Answer(status=206, headers=headers, body=CONTENT[first:])


@pytest.mark.parametrize(
    "wrong",
    [
        content_range(None),
        content_range("nonsense"),
        content_range(f"bytes 0-{SIZE - 1}/{SIZE}"),
        content_range(f"bytes 101-{SIZE - 1}/{SIZE}", first=101),
        content_range(f"bytes 99-{SIZE - 1}/{SIZE}", first=99),
        content_range(f"bytes 100-{SIZE}/*"),
        partial_content(CONTENT, 100, 200),
        content_range(f"items 100-{SIZE - 1}/{SIZE}"),
        Answer(status=206, headers={"Content-Type": "multipart/byteranges; boundary=x"}, body=b"--x--"),
        Answer(status=416, headers={"Content-Range": f"bytes */{SIZE}"}),
        Answer(status=416),
    ],
)
def test_an_answer_with_another_range_is_not_used_but_asked_anew_from_the_beginning(wrong: Answer) -> None:
    with ScriptedRegistry() as registry:
        expect([wrong, Answer(body=CONTENT)], [f"bytes=100-{SIZE - 1}", None], registry)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, 100) == CONTENT[100:]


@pytest.mark.parametrize("status", [400, 403, 405, 418, 501, 505])
def test_a_registry_that_refuses_every_range_is_asked_once_for_the_whole(status: int) -> None:
    with ScriptedRegistry() as registry:
        expect([registry_error(status, "DENIED"), Answer(body=CONTENT)], [f"bytes=100-{SIZE - 1}", None], registry)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, 100) == CONTENT[100:]


@pytest.mark.parametrize("status", [408, 500, 503])
def test_a_registry_that_fails_at_every_range_is_asked_for_the_whole_when_the_tries_are_used_up(status: int) -> None:
    with ScriptedRegistry() as registry:
        expect([Answer(status=status)] * 3 + [Answer(body=CONTENT)], [f"bytes=100-{SIZE - 1}"] * 3 + [None], registry)
        with open_repository(registry.reference("team/app", "1"), attempts=3) as repository:
            assert read_all(repository, LAYER, 100) == CONTENT[100:]


def test_a_registry_that_refuses_the_whole_too_is_asked_no_more() -> None:
    with ScriptedRegistry() as registry:
        expect([registry_error(405, "A"), registry_error(403, "B")], [f"bytes=100-{SIZE - 1}", None], registry)
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(RegistryError, match=r"\(403\)"),
        ):
            repository.open_blob(LAYER, 100)


@pytest.mark.parametrize(
    "refusal",
    [
        registry_error(401, "UNAUTHORIZED"),
        registry_error(404, "BLOB_UNKNOWN"),
        registry_error(410, "GONE"),
        registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "60"}),
        registry_error(503, "UNAVAILABLE", headers={"Retry-After": "60"}),
        redirect("ftp://example.org/"),
        Answer(status=206, headers={"Content-Encoding": "gzip"}, body=CONTENT),
    ],
)
def test_what_is_refused_for_more_than_its_range_is_not_asked_for_without(refusal: Answer) -> None:
    with ScriptedRegistry() as registry:
        expect([refusal], [f"bytes=100-{SIZE - 1}"], registry)
        with open_repository(registry.reference("team/app", "1")) as repository, pytest.raises(StoreError):
            repository.open_blob(LAYER, 100)


def test_a_cut_download_whose_rest_is_refused_begins_again_and_asks_for_no_range_any_more() -> None:
    answers: list[Scripted] = [cut(1000), registry_error(501, "X"), cut(500), Answer(body=CONTENT)]
    with ScriptedRegistry() as registry:
        expect(answers, [None, f"bytes=1000-{SIZE - 1}", None, None], registry)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_a_partial_answer_that_was_not_asked_for_is_an_error() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, partial_content(CONTENT, 0))
        with open_repository(registry.reference("team/app", "1")) as repository, pytest.raises(RegistryError):
            repository.open_blob(LAYER)


# Lengths


@pytest.mark.parametrize("difference", [-1, 1, -SIZE, 1 << 40])
def test_s26_a_length_that_is_not_the_descriptors_is_refused_before_the_first_byte(difference: int) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, content_length=SIZE + difference))
        with (
            open_repository(registry.reference("team/app", "1")) as repository,
            pytest.raises(ContentMismatch) as caught,
        ):
            repository.open_blob(LAYER)
    assert caught.value.expected == f"{SIZE} bytes"
    assert caught.value.actual == f"{SIZE + difference} bytes"


@pytest.mark.parametrize(
    "wrong",
    [
        Answer(status=206, headers={"Content-Range": f"bytes 100-{SIZE}/{SIZE + 1}"}, body=CONTENT[100:] + b"x"),
        Answer(status=206, headers={"Content-Range": f"bytes 100-{SIZE - 1}/{SIZE}"}, body=CONTENT[101:]),
        Answer(status=416, headers={"Content-Range": "bytes */50"}),
        Answer(body=CONTENT[1:]),
    ],
)
def test_s26_a_range_of_a_blob_of_another_size_is_refused(wrong: Answer) -> None:
    with ScriptedRegistry() as registry:
        expect([wrong], [f"bytes=100-{SIZE - 1}"], registry)
        with open_repository(registry.reference("team/app", "1")) as repository, pytest.raises(ContentMismatch):
            repository.open_blob(LAYER, 100)


@pytest.mark.parametrize("length", ["-1", "+10240", "1_0", "10240, 5", "0x10", "ten", "\u00b2"])
def test_a_length_that_is_no_number_is_no_answer(length: str) -> None:
    with ScriptedRegistry() as registry:
        answer = Answer(headers={"Content-Length": length}, body=CONTENT, close_silently=True)
        registry.allow("GET", BLOB, answer)
        with (
            open_repository(registry.reference("team/app", "1"), attempts=2) as repository,
            pytest.raises(RegistryError, match="not HTTP"),
        ):
            repository.open_blob(LAYER)


@pytest.mark.parametrize("framing", ["chunked", "until_close"])
@pytest.mark.parametrize("offset", [0, 100])
def test_s26_an_endless_body_is_read_to_the_size_and_one_byte(framing: Framing, offset: int) -> None:
    with ScriptedRegistry() as registry:
        endless = Answer(endless=True, framing=framing, body=b"x")
        listed = registry.expect("GET", BLOB, endless)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert len(read_all(repository, LAYER, offset)) == SIZE - offset + 1
        assert listed.requests[0].body_bytes_sent < 16 << 20


def test_s26_a_descriptor_without_an_honest_size_bounds_what_is_read_too() -> None:
    none = Descriptor(media_type=OCI_LAYER, digest=LAYER.digest, size_bytes=0)
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(endless=True, framing="chunked"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert len(read_all(repository, none)) == 1


def test_a_short_body_in_chunks_is_an_end_that_the_verifier_sees() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT[:-1], framing="chunked"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT[:-1]


def test_wrong_bytes_are_given_as_they_are_for_the_verifier_to_see() -> None:
    wrong = bytes(SIZE)
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=wrong))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == wrong


def test_a_long_download_needs_no_memory_of_its_own() -> None:
    size = 64 << 20
    zeros = Descriptor(media_type=OCI_LAYER, digest=Digest.of(b"zeros"), size_bytes=size)
    with ScriptedRegistry() as registry:
        registry.expect("GET", target_of(zeros), Answer(endless=True, framing="chunked"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            stream = repository.open_blob(zeros)
            buffer = memoryview(bytearray(1 << 20))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tracemalloc.start()
            total = 0
            while total <= size and (count := stream.readinto(buffer)):
                total += count
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            stream.close()
    assert total == size + 1
    assert peak < 2 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


# Cuts


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_download_goes_on_where_it_was(reset: bool) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut(1000), forbids=["Range"])
        registry.expect("GET", BLOB, cut(2000), requires={"Range": f"bytes=1000-{SIZE - 1}"})
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes=3000-{SIZE - 1}"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_where_no_range_without_an_end_is_understood_a_cut_download_goes_on_too() -> None:
    def answer(request: Request) -> Answer:
        is_open = (request.header("Range") or "").endswith("-")
        return Answer(status=416, headers={"Content-Range": f"bytes */{SIZE}"}) if is_open else cut(3000)(request)

    with ScriptedRegistry() as registry:
        registry.allow("GET", BLOB, answer)
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert sum(request.body_bytes_sent for request in registry.requests) == SIZE


def test_a_reset_line_costs_at_most_what_was_on_it() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut(5000, reset=True))
        registry.allow("GET", BLOB, ranged(CONTENT))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


@pytest.mark.parametrize("framing", ["chunked", "until_close"])
def test_a_cut_is_noticed_in_every_framing(framing: Framing) -> None:
    first = Answer(body=CONTENT, framing=framing, cut_after_bytes=1000)
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, first)
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes=1000-{SIZE - 1}"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_a_cut_behind_the_last_byte_is_settled_by_one_question() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, Answer(body=CONTENT, framing="chunked", cut_after_bytes=SIZE))
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes={SIZE}-"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_a_registry_without_ranges_sends_all_again_and_what_is_known_is_passed() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut(1000, ranges=False), cut(500, ranges=False), cut(9000, ranges=False))
        registry.expect("GET", BLOB, Answer(body=CONTENT))
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER, step_bytes=300) == CONTENT


def test_tries_are_counted_anew_whenever_bytes_came() -> None:
    with ScriptedRegistry() as registry:
        registry.allow("GET", BLOB, cut(SIZE // 30))
        with open_repository(registry.reference("team/app", "1"), attempts=2, back_off_seconds=0.001) as repository:
            assert read_all(repository, LAYER) == CONTENT
        assert len(registry.requests) > 30


def test_a_line_that_is_cut_again_and_again_without_a_byte_is_given_up() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut(1000))
        registry.allow("GET", BLOB, cut(0), requires={"Range": f"bytes=1000-{SIZE - 1}"})
        with open_repository(registry.reference("team/app", "1"), attempts=4) as repository:
            stream = repository.open_blob(LAYER)
            with pytest.raises(RegistryError, match="closed before the answer's end"):
                read_stream(stream)
            stream.close()
        # The fourth failure in a row is the last: the first was the cut itself.
        assert len(registry.requests) == 4


@pytest.mark.parametrize("broken", [NO_ANSWER, Answer(status=503), Answer(status=500)])
def test_an_error_while_going_on_is_tried_again(broken: Scripted) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut(1000), broken, broken)
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes=1000-{SIZE - 1}"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert read_all(repository, LAYER) == CONTENT


def test_a_blob_that_vanishes_while_it_is_read_is_told_of() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut(1000), registry_error(404, "BLOB_UNKNOWN"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            stream = repository.open_blob(LAYER)
            with pytest.raises(BlobNotFound):
                read_stream(stream)
            stream.close()


def test_silence_in_the_middle_of_a_body_ends_in_going_on() -> None:
    silent = Answer(body=CONTENT, drip_bytes=1000, drip_seconds=30)
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, silent)
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": f"bytes=1000-{SIZE - 1}"})
        with open_repository(registry.reference("team/app", "1"), silence_seconds=0.3) as repository:
            assert read_all(repository, LAYER) == CONTENT
