"""One blob by several ranges at once: the same bytes in the same order, none fetched twice, and nothing left behind."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from minibox_store import (
    BlobAdvanced,
    BlobStarted,
    Cancellation,
    Cancelled,
    ContentMismatch,
    Event,
    InvalidArgument,
    RegistryError,
)
from minibox_store.copying import ObservedSource
from minibox_store.documents import Descriptor, Node
from minibox_store.errors import BlobNotFound
from minibox_store.graph import RememberingSource
from minibox_store.layout import pieces, ranged_fetch
from minibox_store.layout.pace import Pace, Sight
from minibox_store.protocols import BlobStream, RangedSource
from tests.support.cutting_proxy import CuttingProxy
from tests.support.filled import take_room
from tests.support.forks import forked, kill, sleep_for_ever
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants, find_leftovers, read_names
from tests.support.nginx import nginx
from tests.support.os_proxy import replaced_os
from tests.support.peers import docker_registry, push_image
from tests.support.registries import open_repository, quick_client
from tests.support.scripted_registry import (
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    blob_target,
    ranged,
    registry_error,
    serve_image,
)
from tests.support.small_pieces import make_pieces_small
from tests.support.sources import (
    LyingSource,
    PiecewiseStream,
    RangedPlace,
    descriptor_for,
    memory_of,
    read_stream,
    root_of,
)
from tests.support.stores import blob, layer_of, mounted, open_layout, open_store
from tests.support.traced_memory import peak_of
from tests.support.waiting import SOON_SECONDS

KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20
IMAGE = build_image([random_layer(3 * MEBIBYTE, salt="ranges")], salt="ranges")
LAYER = layer_of(IMAGE)
CONTENT = IMAGE.blobs[str(LAYER.digest)]
SIZE = len(CONTENT)
BLOB = blob_target("team/app", str(LAYER.digest))
CUT = RegistryError("GET", "https://example.org/", None, (), "the line was cut")
RANGES = 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store."""
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("minibox")]


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few MiB be a large blob."""
    make_pieces_small(monkeypatch)


small_pieces = pytest.mark.usefixtures("_small_pieces")


def partial_of(root: Path) -> Path:
    return root / "ingest" / "partial" / str(LAYER.digest).replace(":", "-")


def pieces_of(root: Path) -> list[Path]:
    return list(root.glob("ingest/*/range-*"))


def place(**options: object) -> RangedPlace:
    return RangedPlace(memory_of({"x": IMAGE}), **options)  # type: ignore[arg-type]


def fetch(root: Path, source: RangedPlace, *, ranges: int | None = RANGES) -> None:
    with open_layout(root).open_writer(ranges=ranges) as writer:
        writer.write_blob(LAYER, source)


def check_fetched(root: Path) -> None:
    assert blob(root, str(LAYER.digest)).read_bytes() == CONTENT
    assert not partial_of(root).exists()
    check_invariants(root)


def check_once(source: RangedPlace, begins_at: int = 0) -> None:
    """Check that the ranges that were asked for are all of the blob from an offset on, and none twice."""
    position = begins_at
    for offset, size_bytes in sorted(source.ranges):
        assert offset == position
        position += size_bytes
    assert position == SIZE


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


# By as many as are asked for


@small_pieces
@pytest.mark.parametrize("ranges", [2, 3, 8])
@pytest.mark.parametrize("step_bytes", [10_000, 1 << 30])
def test_a_blob_comes_by_as_many_ranges_as_are_asked_for_and_each_byte_once(
    root: Path, ranges: int, step_bytes: int
) -> None:
    barrier = threading.Barrier(ranges)

    def meet(offset: int, given_bytes: int) -> None:
        if not given_bytes and len(source.ranges) > 1 and not barrier.broken and offset < SIZE // 2:
            try:
                barrier.wait(0.5)
            except threading.BrokenBarrierError:
                return

    source = place(step_bytes=step_bytes, before_read=meet)
    fetch(root, source, ranges=ranges)
    assert source.opened == []
    assert source.most_open_ranges == ranges
    check_once(source)
    check_fetched(root)


@small_pieces
def test_one_range_is_one_stream_and_so_is_a_small_blob(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place()
    fetch(root, source, ranges=1)
    assert (source.opened, source.ranges) == ([0], [])
    check_fetched(root)
    monkeypatch.setattr(ranged_fetch, "LEAST_BLOB_BYTES", SIZE + 1)
    fetch(root / "other", source)
    assert (source.opened, source.ranges) == ([0, 0], [])


@small_pieces
def test_what_an_older_download_left_is_gone_on_with_by_ranges(root: Path) -> None:
    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(CONTENT[:1_000_001])
    source = place()
    fetch(root, source)
    assert source.opened == []
    check_once(source, 1_000_001)
    check_fetched(root)


@small_pieces
def test_the_partial_is_the_contiguous_prefix_at_every_moment_and_what_is_ahead_waits_beside_it(root: Path) -> None:
    gate = threading.Event()

    def hold(offset: int, given_bytes: int) -> None:
        if offset == 0 and given_bytes:
            assert gate.wait(15)

    source = place(before_read=hold, step_bytes=100_000)
    seen: list[int] = []
    worker = threading.Thread(target=fetch, args=(root, source))
    worker.start()
    try:
        # Seven pieces are whole, the first is not.
        most = pieces.WAITING * RANGES
        wait_until(lambda: len(source.ranges) == most and len(pieces_of(root)) == most)
        wait_until(lambda: sum(path.stat().st_size for path in pieces_of(root)) >= sum(n for _, n in source.ranges[1:]))
        wait_until(lambda: partial_of(root).stat().st_size == 100_000)
        assert partial_of(root).read_bytes() == CONTENT[:100_000]
        time.sleep(0.1)
        assert len(source.ranges) == most, "no more may wait"
    finally:
        gate.set()
        while worker.is_alive():
            with suppress(FileNotFoundError):  # it has not begun, or has become the blob
                found = partial_of(root).read_bytes()
                assert CONTENT.startswith(found)
                seen.append(len(found))
        worker.join()
    check_once(source)
    check_fetched(root)


@small_pieces
def test_pieces_need_little_memory(root: Path) -> None:
    with open_layout(root).open_writer(ranges=8) as writer:
        writer.has_blob(LAYER)
        peak = peak_of(lambda: writer.write_blob(LAYER, _Lean(CONTENT)))
    assert peak < 8 * MEBIBYTE
    check_fetched(root)


class _Lean:
    """A source of one blob that copies nothing."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def open_blob(self, descriptor: object, offset: int = 0) -> "_LeanStream":
        return _LeanStream(self._content[offset:])

    def open_range(self, descriptor: object, offset: int, size_bytes: int, /) -> "_LeanStream":
        return _LeanStream(self._content[offset : offset + size_bytes])


class _LeanStream:
    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        return


@small_pieces
def test_progress_is_told_from_the_beginning_to_the_whole_and_never_goes_back(root: Path) -> None:
    told: list[Event] = []
    node = Node(descriptor=LAYER, role="layer", position=1, total=1)
    source = ObservedSource(place(step_bytes=10_000), node, told.append, lambda: False, Cancellation())
    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(CONTENT[:500_000])
    with open_layout(root).open_writer(ranges=RANGES) as writer:
        writer.write_blob(LAYER, source)
    assert [event.offset_bytes for event in told if isinstance(event, BlobStarted)] == [500_000]
    done = [event.done_bytes for event in told if isinstance(event, BlobAdvanced)]
    assert done == sorted(done)
    assert done[0] > 500_000
    assert done[-1] == SIZE


# What goes wrong


@small_pieces
@pytest.mark.parametrize("fails_at", [0, 1_500_000])
def test_when_a_range_fails_one_stream_brings_the_rest(root: Path, fails_at: int) -> None:
    def fail(offset: int, given_bytes: int) -> None:
        if offset >= fails_at and given_bytes:
            raise CUT

    source = place(before_read=fail, step_bytes=50_000)
    fetch(root, source)
    (position,) = source.opened
    assert position >= fails_at
    assert position == 50_000 or fails_at
    check_fetched(root)


@small_pieces
@pytest.mark.parametrize("fails_at", [0, 1_500_000])
def test_an_error_of_the_program_in_a_range_is_told_and_not_met_by_another_stream(root: Path, fails_at: int) -> None:
    wrong = ZeroDivisionError("a mistake of whoever wrote this source")

    def fail(offset: int, given_bytes: int) -> None:
        if offset >= fails_at and given_bytes:
            raise wrong

    source = place(before_read=fail, step_bytes=50_000)
    with pytest.raises(ZeroDivisionError) as caught:
        fetch(root, source)
    assert caught.value is wrong
    assert source.opened == []
    assert CONTENT.startswith(partial_of(root).read_bytes())
    assert find_leftovers(root) == []
    check_invariants(root)


@small_pieces
def test_when_the_stream_fails_too_its_error_is_told_and_the_prefix_stays(root: Path) -> None:
    def fail(offset: int, given_bytes: int) -> None:
        if offset >= MEBIBYTE:
            raise CUT

    class Failing(RangedPlace):
        def open_blob(self, descriptor: object, offset: int = 0) -> object:  # type: ignore[override]
            raise RegistryError("GET", "https://example.org/", 503, (), "the registry is away")

    with pytest.raises(RegistryError, match="away"):
        fetch(root, Failing(memory_of({"x": IMAGE}), before_read=fail))
    found = partial_of(root).read_bytes()
    assert CONTENT.startswith(found)
    assert len(found) >= MEBIBYTE
    assert find_leftovers(root) == []
    check_invariants(root)


@small_pieces
def test_a_range_that_ends_before_it_should_is_not_waited_for(root: Path) -> None:
    source = place(lies={LAYER.digest: CONTENT[:2_000_000]})
    fetch(root, source)
    assert source.opened == [2_000_000]
    check_fetched(root)


@small_pieces
@pytest.mark.parametrize("is_cut_once", [True, False])
def test_a_stream_that_ends_before_the_pieces_ahead_of_it_begin_is_gone_on_with_and_then_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, is_cut_once: bool
) -> None:
    has_begun = threading.Event()
    cut = 1_000_000

    class Short(RangedPlace):
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            content = CONTENT[offset:] if self.opened and is_cut_once else CONTENT[offset:cut]
            self.opened.append(offset)
            return EndingStream(content)

    class EndingStream(PiecewiseStream):
        """Lets lanes begin before it ends."""

        def readinto(self, buffer: memoryview, /) -> int:
            count = super().readinto(buffer[:100_000])
            if not count:
                assert has_begun.wait(15)
            return count

    def begin(offset: int, given_bytes: int) -> None:
        has_begun.set()

    def look(pace: Pace, sight: Sight) -> int:
        pace.lanes = 2 if sight.received_bytes else 1
        return pace.lanes

    monkeypatch.setattr(Pace, "look", look)
    source = Short(memory_of({"x": IMAGE}), before_read=begin)
    if is_cut_once:
        fetch(root, source, ranges=None)
        check_fetched(root)
    else:
        with pytest.raises(ContentMismatch, match=str(LAYER.digest)):
            fetch(root, source, ranges=None)
        assert find_leftovers(root) == []
    assert has_begun.is_set()
    assert source.opened == [0, cut]


class Enough(BaseException):
    """What a program raises that wants no more."""


@small_pieces
@pytest.mark.parametrize("ranges", [1, RANGES])
@pytest.mark.parametrize("error", [Cancelled(), ValueError("no more"), Enough()])
def test_what_a_listener_raises_once_ends_the_fetch_however_the_bytes_come(
    root: Path, ranges: int, error: BaseException
) -> None:
    told: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            told.append(event.done_bytes)
            if len(told) == 12:
                raise error

    node = Node(descriptor=LAYER, role="layer", position=1, total=1)
    place_of_all = place(step_bytes=10_000)
    source = ObservedSource(place_of_all, node, listen, lambda: False, Cancellation())
    with pytest.raises(type(error)) as caught, open_layout(root).open_writer(ranges=ranges) as writer:
        writer.write_blob(LAYER, source)
    assert caught.value is error
    assert len(place_of_all.opened) == (ranges == 1)
    assert CONTENT.startswith(partial_of(root).read_bytes())
    assert find_leftovers(root) == []


@small_pieces
def test_a_source_without_ranges_is_asked_for_one_once(root: Path) -> None:
    class Plain(RangedPlace):
        def open_range(self, descriptor: object, offset: int, size_bytes: int, /) -> None:
            self.ranges.append((offset, size_bytes))

    source = Plain(memory_of({"x": IMAGE}))
    fetch(root, source)
    assert len(source.ranges) == 1
    assert source.opened == [0]
    check_fetched(root)


@small_pieces
def test_wrong_bytes_in_ranges_are_fetched_once_more_by_one_stream_and_distrusted_only_then(root: Path) -> None:
    wrong = {LAYER.digest: bytes(SIZE)}
    source = place(lies=wrong)
    fetch(root, source)
    assert source.opened == [0]
    check_once(source)
    check_fetched(root)
    liar = RangedPlace(LyingSource(memory_of({"x": IMAGE}), wrong))
    with pytest.raises(ContentMismatch, match=str(LAYER.digest)):
        fetch(root / "other", liar)
    assert liar.opened == [0]
    check_once(liar)
    assert not (root / "other" / "ingest" / "partial" / partial_of(root).name).exists()
    check_invariants(root / "other")


@small_pieces
def test_a_disk_without_room_for_pieces_is_filled_by_one_stream(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m") as disk:
        take_room(disk / "ballast", all_but_bytes=SIZE + MEBIBYTE)
        source = place()
        fetch(disk / "store", source)
        assert (source.opened, source.ranges) == ([0], [])
        check_fetched(disk / "store")


@small_pieces
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_takes_no_piece_gets_the_blob_by_one_stream(root: Path, number: int) -> None:
    source = place(step_bytes=50_000)
    with replaced_os() as system:
        system.fail("write", number, path="/range-", skip=7)
        fetch(root, source)
    assert len(source.opened) == 1
    check_fetched(root)


@small_pieces
def test_when_the_file_cannot_be_written_no_lane_works_on_behind_the_error(root: Path) -> None:
    def linger(offset: int, given_bytes: int) -> None:
        if offset:
            time.sleep(0.2)

    with replaced_os() as system:
        for name in ("copy_file_range", "sendfile", "write"):
            system.fail(name, errno.EIO, path="/partial/")
        with pytest.raises(OSError, match="rror"):
            fetch(root, place(before_read=linger, step_bytes=20_000))
        assert not [thread.name for thread in threading.enumerate() if thread.name == "minibox-range"]
    assert find_leftovers(root) == []
    check_invariants(root)


@small_pieces
def test_when_the_file_cannot_be_written_that_is_told_though_a_lane_waits_for_a_silent_registry(root: Path) -> None:
    is_over = threading.Event()
    is_waiting = threading.Event()

    class Silent(RangedPlace):
        def interrupt(self) -> None:
            is_over.set()

    def wait(offset: int, given_bytes: int) -> None:
        if offset:
            is_waiting.set()
            assert is_over.wait(60)
            raise CUT
        if given_bytes:
            assert is_waiting.wait(60)

    node = Node(descriptor=LAYER, role="layer", position=1, total=1)
    silent = RememberingSource(Silent(memory_of({"x": IMAGE}), before_read=wait, step_bytes=50_000))
    source = ObservedSource(silent, node, lambda event: None, lambda: False, Cancellation())
    with replaced_os() as system:
        system.fail("copy_file_range", errno.ENOSPC, path="/partial/", skip=1)
        started = time.monotonic()
        with pytest.raises(OSError, match="space"), open_layout(root).open_writer(ranges=RANGES) as writer:
            writer.write_blob(LAYER, source)
        assert time.monotonic() - started < SOON_SECONDS
    assert not partial_of(root).exists()
    assert find_leftovers(root) == []


@small_pieces
def test_a_system_that_gives_no_more_threads_gets_the_blob_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source = place()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        fetch(root, source)
    assert source.opened == [0]
    check_fetched(root)


def test_a_pull_with_no_range_at_all_is_refused(root: Path) -> None:
    with pytest.raises(InvalidArgument, match="ranges"):
        open_store(root).pull("127.0.0.1:1/team/app:1", ranges=0)


# From a registry


def test_a_range_is_asked_for_by_its_ends_and_a_repository_is_a_ranged_source() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": "bytes=1000-2999"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert isinstance(repository, RangedSource)
            stream = repository.open_range(LAYER, 1000, 2000)
            assert stream is not None
            assert read_stream(stream) == CONTENT[1000:3000]
            assert stream.readinto(memoryview(bytearray(10))) == 0
            stream.close()
            stream.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_range_goes_on_by_itself(reset: bool) -> None:
    def cut(request: Request) -> Answer:
        whole = ranged(CONTENT)(request)
        return Answer(status=206, headers=whole.headers, body=whole.body, cut_after_bytes=500, reset=reset)

    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut, requires={"Range": "bytes=1000-2999"})
        registry.expect("GET", BLOB, Answer(status=503), requires={"Range": "bytes=1500-2999"})
        registry.expect("GET", BLOB, ranged(CONTENT), requires={"Range": "bytes=1500-2999"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            stream = repository.open_range(LAYER, 1000, 2000)
            assert stream is not None
            assert read_stream(stream) == CONTENT[1000:3000]
            stream.close()


def answer_206(text: str, body: bytes) -> Answer:
    return Answer(status=206, headers={"Content-Range": text}, body=body)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=CONTENT),
        Answer(status=416),
        answer_206(f"bytes 0-1999/{SIZE}", CONTENT[:2000]),
        answer_206(f"bytes 1000-{SIZE - 1}/{SIZE}", CONTENT[1000:]),
        answer_206(f"bytes 1000-2999/{SIZE}", CONTENT[1000:2000]),
        answer_206("nonsense", CONTENT[1000:3000]),
        Answer(status=206, body=CONTENT[1000:3000]),
        Answer(status=206, headers={"Content-Type": "multipart/byteranges; boundary=x"}, body=b"--x--"),
    ],
)
def test_whatever_is_not_the_range_is_none_and_is_asked_for_no_more(answer: Answer) -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, answer, requires={"Range": "bytes=1000-2999"})
        with open_repository(registry.reference("team/app", "1")) as repository:
            assert repository.open_range(LAYER, 1000, 2000) is None
            assert repository.open_range(LAYER, 0, 10) is None


def test_a_range_of_a_blob_of_another_size_or_of_none_is_an_error() -> None:
    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, answer_206(f"bytes 0-9/{SIZE + 1}", CONTENT[:10]))
        registry.expect("GET", BLOB, registry_error(404, "BLOB_UNKNOWN"))
        with open_repository(registry.reference("team/app", "1")) as repository:
            with pytest.raises(ContentMismatch):
                repository.open_range(LAYER, 0, 10)
            with pytest.raises(BlobNotFound):
                repository.open_range(LAYER, 0, 10)


def test_what_is_no_part_of_a_blob_is_not_asked_for() -> None:
    with ScriptedRegistry() as registry, open_repository(registry.reference("team/app", "1")) as repository:
        for offset, size_bytes in ((-1, 2), (0, 0), (SIZE, 1), (SIZE - 1, 2), (0, -1)):
            assert repository.open_range(LAYER, offset, size_bytes) is None
        assert repository.open_range(root_of(IMAGE), 0, 10) is None


def test_a_registry_that_gives_no_ranges_any_more_is_told_of() -> None:
    def cut(request: Request) -> Answer:
        whole = ranged(CONTENT)(request)
        return Answer(status=206, headers=whole.headers, body=whole.body, cut_after_bytes=500)

    with ScriptedRegistry() as registry:
        registry.expect("GET", BLOB, cut, Answer(body=CONTENT))
        with open_repository(registry.reference("team/app", "1")) as repository:
            stream = repository.open_range(LAYER, 0, 2000)
            assert stream is not None
            with pytest.raises(RegistryError, match="no ranges any more"):
                read_stream(stream)
            stream.close()


@small_pieces
def test_a_pull_by_ranges_that_is_cut_again_and_again_arrives_with_hardly_a_byte_twice(
    root: Path, tmp_path: Path
) -> None:
    with docker_registry(tmp_path / "registry") as registry:
        push_image(registry, "team/app", "1", IMAGE)
        port = int(registry.host.rpartition(":")[2])
        with CuttingProxy(port, cuts=[IMAGE.size_bytes // 11] * 10) as line:
            reference = f"{line.host}/team/app:1"
            open_store(root).pull(reference, name="app:1", client=quick_client(), ranges=RANGES)
            assert line.cuts_made == 10
            assert line.sent_bytes <= 1.05 * IMAGE.size_bytes
    assert read_names(root)["app:1"] == IMAGE.digest
    check_fetched(root)


@small_pieces
@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_pull_by_ranges_asks_for_each_byte_once_where_they_are_given(root: Path, with_ranges: bool) -> None:
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE, ranges=with_ranges)
        open_store(root).pull(registry.reference("team/app", "1"), name="a:1", client=quick_client(), ranges=RANGES)
        asked = [request for request in registry.requests if request.target == BLOB]
        assert sum(request.status == 206 for request in asked) == (len(asked) if with_ranges else 0)
        assert len(asked) > RANGES if with_ranges else len(asked) == 2
    check_fetched(root)


@small_pieces
def test_a_pull_by_ranges_is_cancelled_within_a_second_though_the_registry_is_silent(root: Path) -> None:
    held = threading.Event()

    def silent(request: Request) -> Answer:
        whole = ranged(CONTENT)(request)
        is_first = "bytes=0-" in (request.header("Range") or "")
        return Answer(
            status=206, headers=whole.headers, body=whole.body, hold=held, hold_after_bytes=10_000 if is_first else 0
        )

    cancellation = Cancellation()
    ended_at: list[float] = []
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", BLOB, silent)
        reference = registry.reference("team/app", "1")

        def pull() -> None:
            client = quick_client(silence_seconds=30.0)
            with pytest.raises(Cancelled):
                open_store(root).pull(reference, client=client, ranges=RANGES, cancellation=cancellation)
            ended_at.append(time.monotonic())

        thread = threading.Thread(target=pull, daemon=True)
        thread.start()
        registry.wait_for("GET", BLOB, count=RANGES)
        cancelled_at = time.monotonic()
        cancellation.cancel()
        thread.join(SOON_SECONDS)
        held.set()
    assert ended_at[0] - cancelled_at < SOON_SECONDS
    assert CONTENT.startswith(partial_of(root).read_bytes())
    assert find_leftovers(root) == []
    check_invariants(root)


@small_pieces
def test_a_process_that_is_killed_leaves_the_prefix_and_a_prune_takes_its_pieces(root: Path) -> None:
    held = threading.Event()

    def silent_at_first(request: Request) -> Answer:
        whole = ranged(CONTENT)(request)
        if "bytes=0-" not in (request.header("Range") or ""):
            return whole
        return Answer(status=206, headers=whole.headers, body=whole.body, hold=held, hold_after_bytes=100_000)

    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", BLOB, silent_at_first)
        reference = registry.reference("team/app", "1")

        def pull(ready: Callable[[], None]) -> None:
            ready()
            open_store(root).pull(reference, client=quick_client(silence_seconds=30.0), ranges=RANGES)
            sleep_for_ever()

        with forked(pull) as pid:
            wait_until(lambda: len(pieces_of(root)) == pieces.WAITING * RANGES)
            wait_until(lambda: partial_of(root).exists() and partial_of(root).stat().st_size == 100_000)
            kill(pid)
        held.set()
        assert partial_of(root).read_bytes() == CONTENT[:100_000]
        assert pieces_of(root)
        check_invariants(root, leftovers=True)
        before = len(registry.requests)
        open_store(root).pull(reference, name="app:1", client=quick_client(), ranges=RANGES)
        firsts = [request.header("Range") or "" for request in registry.requests[before:] if request.target == BLOB]
        assert min(int(first.removeprefix("bytes=").partition("-")[0]) for first in firsts) == 100_000
    report = open_store(root).prune()
    assert report.errors == ()
    assert [each.kind for each in report.removed] == ["transaction"]
    assert pieces_of(root) == []
    check_fetched(root)


# As many as pay


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A real registry with a layer of 64 MiB: where its blobs lie, its host, and the image's digest."""
    image = build_image([random_layer(64 * MEBIBYTE, salt="large")], salt="large")
    folder = tmp_path_factory.mktemp("large")
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, content in image.blobs.items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    with docker_registry(folder / "registry") as registry:
        push_image(registry, "team/app", "1", image)
        yield folder / "blobs", registry.host, image.digest


def test_a_line_that_is_slow_for_each_connection_is_asked_for_several_ranges(
    root: Path, tmp_path: Path, large: tuple[Path, str, str]
) -> None:
    blobs, host, digest = large
    rate = 8 * MEBIBYTE
    with nginx(tmp_path / "nginx", registry_host=host, blobs=blobs, bytes_per_second=rate) as front:
        open_store(root).pull(front.reference("team/app", "1"), name="large:1", client=quick_client())
        # That one stream is left alone where it is as fast as it gets, is for what measures the pace to show.
        assert front.count('" 206 ') > 3
    assert read_names(root)["large:1"] == digest
    assert find_leftovers(root) == []
    assert open_store(root).verify() == ()


def test_a_registry_without_ranges_is_left_to_one_stream(
    root: Path, tmp_path: Path, large: tuple[Path, str, str]
) -> None:
    blobs, host, digest = large
    front_folder = tmp_path / "nginx"
    with nginx(front_folder, registry_host=host, blobs=blobs, bytes_per_second=20 * MEBIBYTE, ranges=False) as front:
        open_store(root).pull(front.reference("team/app", "1"), name="large:1", client=quick_client())
        # The one stream, that it was asked for a range too, and the small ones.
        assert front.count("/blobs/sha256:") <= 4
        assert front.count('" 206 ') == 0
    assert read_names(root)["large:1"] == digest


SCRIPTS: dict[str, Scripted] = {
    "429": registry_error(429, "TOOMANYREQUESTS", headers={"Retry-After": "0"}),
    "wrong range": Answer(status=206, headers={"Content-Range": f"bytes 1-2/{SIZE}"}, body=b"ab"),
    "endless": Answer(endless=True, framing="chunked"),
    "cut head": Answer(raw=b"HTTP/1.1 206 Partial"),
    "404": registry_error(404, "BLOB_UNKNOWN"),
}


@small_pieces
@pytest.mark.parametrize("fault", SCRIPTS)
@pytest.mark.parametrize("which", ["all", "later"])
def test_whatever_a_registry_does_to_ranges_the_image_arrives(root: Path, fault: str, which: str) -> None:
    scripted = SCRIPTS[fault]

    def answer(request: Request) -> Answer:
        asked = request.header("Range")
        # One stream brings what is missing, to the end.
        if asked is None or asked.endswith(f"-{SIZE - 1}") or (which == "later" and "bytes=0-" in asked):
            return ranged(CONTENT)(request)
        return scripted if isinstance(scripted, Answer) else scripted(request)

    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", BLOB, answer)
        client = quick_client(attempts=3)
        started = time.monotonic()
        open_store(root).pull(registry.reference("team/app", "1"), name="app:1", client=client, ranges=RANGES)
        assert time.monotonic() - started < SOON_SECONDS
    check_fetched(root)


@small_pieces
def test_a_partial_is_finished_by_one_stream_where_every_range_is_refused(root: Path) -> None:
    def answer(request: Request) -> Answer:
        return registry_error(501, "UNSUPPORTED") if request.header("Range") else Answer(body=CONTENT)

    partial_of(root).parent.mkdir(parents=True)
    partial_of(root).write_bytes(CONTENT[:MEBIBYTE])
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", IMAGE)
        registry.allow("GET", BLOB, answer)
        client = quick_client()
        open_store(root).pull(registry.reference("team/app", "1"), name="app:1", client=client, ranges=RANGES)
    check_fetched(root)


def test_the_source_of_a_small_descriptor_is_what_it_was() -> None:
    tiny = descriptor_for(b"tiny", LAYER.media_type)
    assert not ranged_fetch.FetchPlan(folder=os.devnull, ranges=8).suits(tiny)
