"""Whatever a registry does, a pull ends in the very image, or in one error that leaves no trace, and soon."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from minibox_store.copying import copy_image
from minibox_store.errors import StoreError
from minibox_store.memory import MemoryImages
from tests.support.images import OCI_INDEX, build_image
from tests.support.registries import open_repository
from tests.support.scripted_registry import (
    NO_ANSWER,
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    blob_target,
    manifest_target,
    redirect,
    registry_error,
    unauthorized,
)
from tests.support.scripted_registry import ranged as ranged_answer
from tests.support.sources import root_of

IMAGE = build_image([{"a": b"b" * 3000}, {"c": b"d"}])
DEADLINE_SECONDS = 10.0
# Each example has a bound of its own; how slow the answers of all of them are together is drawn.
pytestmark = pytest.mark.timeout(600)

Fault = Callable[[bytes, str], Scripted]
FRAMINGS = st.sampled_from(["length", "chunked", "until_close"])
STATUSES = [
    204,
    206,
    300,
    304,
    400,
    401,
    402,
    403,
    404,
    405,
    406,
    408,
    416,
    418,
    429,
    451,
    500,
    501,
    502,
    503,
    504,
    599,
]
RAW = [
    b"",
    b"\x00" * 100,
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.1 307 X\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 9999 OK\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16",
]
LOCATIONS = ["/loop", "", "http://127.0.0.1:1/", "https://127.0.0.1:1/", "ftp://x/", "//", "http://a b/", "\x01", "?x"]


def cut(after: int, framing: str, reset: bool) -> Fault:
    return lambda content, media_type: Answer(
        headers={"Content-Type": media_type},
        body=content,
        framing=framing,  # type: ignore[arg-type]
        cut_after_bytes=after,
        reset=reset,
    )


def wrong_bytes(framing: str, difference: int) -> Fault:
    def fault(content: bytes, media_type: str) -> Answer:
        body = (content[:-1] + b"?") if not difference else content[:difference] if difference < 0 else content + b"?"
        return Answer(headers={"Content-Type": media_type}, body=body, framing=framing)  # type: ignore[arg-type]

    return fault


def endless(framing: str) -> Fault:
    return lambda content, media_type: Answer(
        headers={"Content-Type": media_type},
        body=content,
        endless=True,
        framing=framing,  # type: ignore[arg-type]
        content_length=1 << 50,
    )


def drip(pieces: int, pause_seconds: float) -> Fault:
    def fault(content: bytes, media_type: str) -> Answer:
        headers, drip_bytes = {"Content-Type": media_type}, max(1, len(content) // pieces)
        return Answer(headers=headers, body=content, drip_bytes=drip_bytes, drip_seconds=pause_seconds)

    return fault


def constant(answer: Answer) -> Fault:
    return lambda content, media_type: answer


def honest(content: bytes, media_type: str) -> Scripted:
    serve = ranged_answer(content, headers={"Content-Type": media_type})

    def answer(request: Request) -> Answer:
        return serve(request)

    return answer


class Slowness:
    """What registries spend between the pieces of their answers, which no client saves.

    So many places are tried, so often, that a few slow answers take longer than all that the client does.

    Attributes:
        seconds: how long all slow answers took together.
        answers: how many there were.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.answers = 0
        self._lock = threading.Lock()

    def noted(self, scripted: Scripted) -> Scripted:
        """Return what answers the same, and is counted here."""

        def answer(request: Request) -> Answer:
            given = scripted(request) if callable(scripted) else scripted
            if given.drip_bytes is not None and request.method != "HEAD":
                with self._lock:
                    self.seconds += given.drip_seconds * -(-len(given.body) // given.drip_bytes)
                    self.answers += 1
            return given

        return answer


FAULTS: st.SearchStrategy[Fault] = st.one_of(
    st.builds(cut, st.integers(0, 400), FRAMINGS, st.booleans()),
    st.builds(wrong_bytes, FRAMINGS, st.integers(-3, 1)),
    st.builds(endless, FRAMINGS),
    st.sampled_from(STATUSES).map(lambda status: constant(Answer(status=status))),
    st.sampled_from(STATUSES).map(lambda status: constant(registry_error(status, "CODE", "words"))),
    st.sampled_from(["0", "1", "7200", "x", "Fri, 31 Dec 9999 23:59:59 GMT"]).map(
        lambda wait: constant(registry_error(503, "BUSY", headers={"Retry-After": wait}))
    ),
    st.sampled_from(RAW).map(lambda raw: constant(NO_ANSWER if not raw else Answer(raw=raw))),
    st.sampled_from(LOCATIONS).map(lambda location: constant(redirect(location))),
    st.sampled_from(["Basic", 'Bearer realm="http://127.0.0.1:1/t"', 'Bearer realm="/t"', "x"]).map(
        lambda challenge: constant(unauthorized(challenge))
    ),
    st.sampled_from(["gzip", "text/html", OCI_INDEX, "application/json"]).map(
        lambda media_type: lambda content, _: Answer(headers={"Content-Type": media_type}, body=content)
    ),
    st.just(lambda content, media_type: Answer(headers={"Content-Encoding": "gzip"}, body=content)),
    st.just(
        lambda content, media_type: Answer(
            status=206, headers={"Content-Range": "bytes 1-2/3", "Content-Type": media_type}, body=content
        )
    ),
    st.just(
        lambda content, media_type: Answer(
            headers={"Content-Type": media_type, "Docker-Content-Digest": "sha256:" + "0" * 64}, body=content
        )
    ),
    st.builds(drip, st.integers(1, 20), st.sampled_from([0.001, 0.02])),
    # Slower than a document may come.
    st.builds(drip, st.just(8), st.just(0.3)),
    st.just(honest),
)


@settings(max_examples=100)
@given(
    scripts=st.fixed_dictionaries(
        {digest: st.tuples(st.lists(FAULTS, max_size=4), st.booleans()) for digest in IMAGE.blobs}
    )
)
def test_a_pull_through_any_faults_ends_in_the_image_or_in_one_error(
    scripts: dict[str, tuple[list[Fault], bool]],
) -> None:
    target, slowness = MemoryImages(), Slowness()
    with ScriptedRegistry() as registry:
        registry.allow("GET", "/loop", redirect("/loop"))
        for digest, (faults, ends_well) in scripts.items():
            content, media_type = IMAGE.blobs[digest], IMAGE.media_types[digest]
            chosen = [*faults, honest] if ends_well or not faults else faults
            answers = [slowness.noted(fault(content, media_type)) for fault in chosen]
            is_root = digest == IMAGE.digest
            asked = manifest_target("team/app", "1") if is_root else blob_target("team/app", digest)
            registry.allow("GET", asked, *answers)
            registry.allow("GET", f"{asked}?x", *answers)
        started = time.monotonic()
        options = {"attempts": 3, "back_off_seconds": 0.001, "silence_seconds": 2.0, "longest_wait_seconds": 0.5}
        try:
            with open_repository(registry.reference("team/app", "1"), **options) as repository:
                root = repository.resolve("1")
                copy_image(repository, target, root, ["app"])
        except StoreError as error:
            event(type(error).__name__)
            assert not target.names
        else:
            event("the image")
            assert target.names == {"app": root_of(IMAGE)}
            assert {str(digest): bytes(content) for digest, content in target.blobs.items()} == IMAGE.blobs
        assert time.monotonic() - started < DEADLINE_SECONDS + slowness.seconds
        assert slowness.answers <= options["attempts"] * len(IMAGE.blobs)
