"""The copy: what it tells, what it moves and what it leaves, and how it ends when it is cancelled or fails."""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minibox_store import Store, _files, _moving, staging
from minibox_store.archive import ArchiveFile
from minibox_store.cancellation import Cancellation
from minibox_store.copying import copy_graph, copy_image
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, Cancelled, ContentMismatch, InvalidDocument, StoreError
from minibox_store.events import (
    BlobAdvanced,
    BlobPresent,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    Event,
    ImageCopied,
    RegisteringName,
)
from minibox_store.graph import RememberingSource, read_content
from minibox_store.layout import Layout
from minibox_store.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from minibox_store.memory import MemoryImages, MemoryWriter
from minibox_store.platforms import LINUX_AMD64
from minibox_store.protocols import ArchivedBlob, BlobSource, BlobStream, ImageTarget, ImageWriter, RangeStream
from minibox_store.staging import stage_blobs
from tests.support.images import OCI_LAYER, BuiltImage, build_image, build_index, digest_of, encode_document
from tests.support.snapshots import snapshot
from tests.support.sources import (
    BlockingSource,
    BreakingSource,
    ChangingSource,
    LackingSource,
    LyingSource,
    MovingImages,
    PiecewiseStream,
    RecordingSource,
    copy_into,
    descriptor_for,
    descriptors_of,
    memory_of,
    root_of,
)
from tests.support.system_calls import OtherOs
from tests.support.waiting import SOON_SECONDS

NAME = "app:1"
LAYERS = [{f"file-{number}": bytes([number]) * 5000} for number in range(6)]
MEBIBYTE = 1 << 20

TARGETS: dict[str, Callable[[Path], ImageTarget]] = {
    "memory": lambda folder: MemoryImages(),
    "layout": lambda folder: Layout(folder / "store", durable=False),
    "archive": lambda folder: ArchiveFile(str(folder / "image.tar"), durable=False),
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> ImageTarget:
    return TARGETS[request.param](tmp_path)


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("minibox")]


def names_at(target: ImageTarget, folder: Path) -> list[str]:
    if isinstance(target, ArchiveFile):
        return [path.name for path in folder.iterdir()]
    assert isinstance(target, MemoryImages | Layout)
    return list(target.iter_names())


def events_of(source: BlobSource, target: ImageTarget, image: BuiltImage, *names: str) -> list[Event]:
    events: list[Event] = []
    copy_image(source, target, root_of(image), names, parallel=1, on_event=events.append)
    return events


# ---- progress


def test_a_copy_tells_each_blob_as_it_begins_advances_and_then_the_name() -> None:
    image = build_image(LAYERS[:2])
    config, first, second = (Digest.parse(digest) for digest in (image.config_digest, *image.layer_digests))
    sizes = {each.digest: each.size_bytes for each in descriptors_of(image)}
    events = events_of(memory_of({"": image}), MemoryImages(), image, NAME, "app:latest")
    told: list[Any] = []
    for event in events:
        match event:
            case BlobStarted():
                told.append((event.descriptor.digest, event.role, event.position, event.total, event.offset_bytes))
            case BlobAdvanced():
                told.append((event.digest, event.done_bytes, event.size_bytes))
            case BlobStored():
                told.append((event.descriptor.digest, event.role, event.position, event.total))
            case _:
                told.append(event)
    assert told == [
        BlobsCounted(count=3, size_bytes=sizes[config] + sizes[first] + sizes[second]),
        (config, "config", 1, 1, 0),
        (config, sizes[config], sizes[config]),
        (config, "config", 1, 1),
        (first, "layer", 1, 2, 0),
        (first, sizes[first], sizes[first]),
        (first, "layer", 1, 2),
        (second, "layer", 2, 2, 0),
        (second, sizes[second], sizes[second]),
        (second, "layer", 2, 2),
        RegisteringName(name=NAME),
        RegisteringName(name="app:latest"),
        ImageCopied(name=NAME),
        ImageCopied(name="app:latest"),
    ]


def test_the_progress_of_each_blob_grows_to_its_size_and_no_further(target: ImageTarget) -> None:
    image = build_index([build_image(LAYERS, compressed=False), build_image(LAYERS[:3], platform="linux/arm64")])
    source = LyingSource(
        memory_of({"": image}), {Digest.parse(key): image.blobs[key] for key in image.blobs}, step_bytes=999
    )
    events = events_of(source, target, image, NAME)
    leaves = {each.digest: each.size_bytes for each in descriptors_of(image)}
    advanced: dict[Digest, list[int]] = {}
    for event in events:
        if isinstance(event, BlobAdvanced):
            assert event.size_bytes == leaves[event.digest]
            advanced.setdefault(event.digest, []).append(event.done_bytes)
    documents = {Digest.parse(digest) for digest in image.document_digests}
    assert set(advanced) == set(leaves) - documents
    for digest, steps in advanced.items():
        assert steps == sorted(set(steps))
        assert steps[-1] == leaves[digest]
        assert len(steps) >= leaves[digest] // 999


def blob_in_file(folder: Path, size_bytes: int) -> ArchivedBlob:
    with open(folder / "file", "wb") as file:
        file.truncate(size_bytes)
    opened = _files.open_regular(str(folder / "file"))
    digest = Digest.parse(digest_of(bytes(size_bytes)))
    descriptor = Descriptor(media_type=OCI_LAYER, digest=digest, size_bytes=size_bytes)
    return ArchivedBlob(descriptor=descriptor, stream=_moving.FileStream(opened, 0, size_bytes), position=1)


def test_progress_is_told_in_steps_where_the_kernel_moves_the_bytes(tmp_path: Path) -> None:
    blob = blob_in_file(tmp_path, 40 * MEBIBYTE)
    assert isinstance(blob.stream, RangeStream)
    events: list[Event] = []
    with Layout(tmp_path / "store", durable=False).open_writer() as writer:
        stage_blobs([blob], writer, parallel=1, on_event=events.append)
    steps = [event.done_bytes for event in events if isinstance(event, BlobAdvanced)]
    assert steps == [16 * MEBIBYTE, 32 * MEBIBYTE, 40 * MEBIBYTE]


def test_a_cancel_is_noticed_before_the_kernel_moves_the_next_bytes(tmp_path: Path) -> None:
    cancellation, steps = Cancellation(), []

    def on_event(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            steps.append(event.done_bytes)
            cancellation.cancel()

    blob = blob_in_file(tmp_path, 40 * MEBIBYTE)
    with pytest.raises(Cancelled), Layout(tmp_path / "store", durable=False).open_writer() as writer:
        stage_blobs([blob], writer, parallel=1, on_event=on_event, cancellation=cancellation)
    assert steps == [16 * MEBIBYTE]


def test_a_blob_that_is_there_is_told_as_present_and_none_of_its_bytes_move() -> None:
    image, again = build_image(LAYERS[:2]), build_image(LAYERS[:3], salt="again")
    target = MemoryImages()
    copy_into(target, image, NAME)
    source = RecordingSource(memory_of({"": again}))
    events = events_of(source, target, again, "again:1")
    present = [event for event in events if isinstance(event, BlobPresent)]
    assert [(str(event.descriptor.digest), event.role, event.position, event.total) for event in present] == [
        (again.layer_digests[0], "layer", 1, 3),
        (again.layer_digests[1], "layer", 2, 3),
    ]
    assert list(map(str, source.opened_digests)) == [again.digest, again.config_digest, again.layer_digests[2]]


def test_a_download_that_goes_on_tells_where_it_begins(tmp_path: Path) -> None:
    image = build_image([{"a": b"1" * 50_000}], compressed=False)
    layer = Digest.parse(image.layer_digests[0])
    layout = Layout(tmp_path, durable=False)
    broken = BreakingSource(memory_of({"": image}), {layer}, ConnectionResetError("gone"), after_bytes=20_000)
    with pytest.raises(ConnectionResetError):
        copy_image(broken, layout, root_of(image), [NAME])
    source = RecordingSource(memory_of({"": image}))
    events = events_of(source, layout, image, NAME)
    started = [event for event in events if isinstance(event, BlobStarted) and event.role == "layer"]
    assert [event.offset_bytes for event in started] == [20_000]
    assert (layer, 20_000) in source.opened
    steps = [event.done_bytes for event in events if isinstance(event, BlobAdvanced) and event.digest == layer]
    assert steps[0] > 20_000
    assert steps[-1] == len(image.blobs[str(layer)])


def test_whoever_is_told_that_a_leaf_is_stored_can_read_it_in_the_store(tmp_path: Path) -> None:
    image = build_image([*LAYERS[:2], LAYERS[0]])
    target = Layout(tmp_path, durable=False)
    copy_into(target, build_image(LAYERS[:1], salt="there already"), "other:1")
    read: dict[str, bytes] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, BlobStored):
            read[str(event.descriptor.digest)] = read_content(target, event.descriptor)

    copy_image(memory_of({"": image}), target, root_of(image), [NAME], on_event=on_event)
    leaves = {image.config_digest, *image.layer_digests}
    assert read == {digest: image.blobs[digest] for digest in leaves}


# ---- what is moved


def test_copying_twice_leaves_what_copying_once_does(tmp_path: Path) -> None:
    image = build_index([build_image(), build_image(platform="linux/arm64")], attestations=True)
    layout = Layout(tmp_path, durable=False)
    copy_into(layout, image, NAME)
    once = snapshot(tmp_path)
    copy_into(layout, image, NAME)
    assert snapshot(tmp_path) == once


def test_copying_twice_into_an_archive_gives_equal_bytes(tmp_path: Path) -> None:
    image = build_image(LAYERS)
    path = tmp_path / "image.tar"
    copy_into(ArchiveFile(str(path)), image, NAME)
    once = path.read_bytes()
    copy_into(ArchiveFile(str(path)), image, NAME)
    assert path.read_bytes() == once


@pytest.mark.parametrize("lost", ["layer", "config", "inner manifest", "layer below the inner manifest"])
def test_a_document_that_is_there_proves_nothing_of_what_lies_below_it(tmp_path: Path, lost: str) -> None:
    inner = build_image(salt="inner")
    image = build_index([build_image(), inner])
    first = build_image()
    digest = {
        "layer": first.layer_digests[1],
        "config": first.config_digest,
        "inner manifest": inner.digest,
        "layer below the inner manifest": inner.layer_digests[0],
    }[lost]
    layout = Layout(tmp_path, durable=False)
    copy_into(layout, image, NAME)
    whole = snapshot(tmp_path)
    Path(layout.paths.blob(Digest.parse(digest))).unlink()
    source = RecordingSource(memory_of({"": image}))
    copy_image(source, layout, root_of(image), [NAME])
    assert snapshot(tmp_path) == whole
    assert set(image.document_digests) | {digest} == set(map(str, source.opened_digests))


def test_copying_a_graph_names_nothing() -> None:
    image = build_image()
    target = MemoryImages()
    with target.open_writer() as writer:
        copy_graph(memory_of({"": image}), writer, root_of(image))
        assert all(writer.has_blob(descriptor) for descriptor in descriptors_of(image))
    assert target.names == {}


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_leaf_that_is_copied_by_itself_is_there_or_its_error_is_raised(parallel: int) -> None:
    image = build_image()
    layer = next(each for each in descriptors_of(image) if str(each.digest) == image.layer_digests[0])
    source = memory_of({"": image})
    with MemoryImages().open_writer() as writer:
        with pytest.raises(BlobNotFound):
            copy_graph(LackingSource(source, {layer.digest}), writer, layer, parallel=parallel)
        copy_graph(source, writer, layer, parallel=parallel)
        assert writer.has_blob(layer)


def test_no_more_leaves_move_at_once_than_was_asked_for() -> None:
    class Slow(LyingSource):
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> Any:
            time.sleep(0.01)
            return super().open_blob(descriptor, offset)

    image = build_image(LAYERS)
    for parallel in (1, 2, 4):
        source = RecordingSource(Slow(memory_of({"": image}), {}))
        copy_image(source, MemoryImages(), root_of(image), [NAME], parallel=parallel)
        assert 1 <= source.most_open_streams <= parallel
        assert source.open_streams == 0


def test_a_config_is_there_before_a_layer_begins_though_several_leaves_move_at_once() -> None:
    image, layer_has_begun = build_image(LAYERS[:2]), threading.Event()
    seen: list[bool] = []

    def on_event(event: Event) -> None:
        if isinstance(event, BlobStarted) and event.role == "config":
            seen.append(layer_has_begun.wait(0.3))
        elif isinstance(event, BlobStarted):
            layer_has_begun.set()

    copy_image(memory_of({"": image}), MemoryImages(), root_of(image), [NAME], parallel=3, on_event=on_event)
    assert seen == [False]


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_document_is_written_when_all_that_it_names_is_there_though_one_layer_is_late(parallel: int) -> None:
    image, is_written = build_image(LAYERS), threading.Event()
    named = [each for each in descriptors_of(image) if each.digest != root_of(image).digest]
    found: list[bool] = []

    class Late(MovingImages):
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
            if str(descriptor.digest) == image.layer_digests[-1]:
                is_written.wait(0.3)
            return super().open_blob(descriptor, offset)

    class Noting(MemoryWriter):
        def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
            super().write_blob(descriptor, source)
            if descriptor == root_of(image):
                found.extend(self.has_blob(each) for each in named)
                is_written.set()

    copy_graph(Late(memory_of({"": image}), []), Noting(MemoryImages()), root_of(image), parallel=parallel)
    assert found == [True] * len(named)


def test_a_copy_in_turn_tells_everything_in_the_thread_of_whoever_copies() -> None:
    image = build_image(LAYERS)
    source, threads = memory_of({NAME: image}), []

    def listen(_: Event) -> None:
        threads.append(threading.current_thread())

    copy_image(source, MemoryImages(), root_of(image), [NAME], parallel=1, on_event=listen)
    assert set(threads) == {threading.current_thread()}
    copy_image(source, MemoryImages(), root_of(image), [NAME], parallel=2, on_event=listen)
    assert len(set(threads)) > 1


def test_several_copies_into_one_store_at_once_leave_each_image_whole(tmp_path: Path) -> None:
    images = {f"app:{number}": build_image([*LAYERS[:3], LAYERS[number]], salt=str(number)) for number in range(6)}
    layout = Layout(tmp_path, durable=False)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: copy_into(layout, pair[1], pair[0]), images.items()))
    for name, image in images.items():
        assert str(layout.resolve(name).digest) == image.digest
        again = RecordingSource(memory_of({"": image}))
        copy_image(again, layout, root_of(image), [name])
        assert list(map(str, again.opened_digests)) == [image.digest]


@pytest.mark.parametrize("kind", ["memory", "layout"])
def test_an_image_that_gives_one_blob_two_sizes_is_refused(tmp_path: Path, kind: str) -> None:
    # One of them is a lie: a store that took it would hold a layer that nobody can read as its manifest says.
    layer = {"mediaType": OCI_LAYER, "digest": digest_of(b"12345"), "size": 5}
    config = {"mediaType": "application/x", "digest": digest_of(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config}
    content = encode_document({**document, "layers": [layer, {**layer, "size": 999}]})
    source = MemoryImages()
    for blob in (b"12345", b"{}"):
        source.add_blob(blob, OCI_LAYER)
    root = source.add_blob(content, OCI_MANIFEST)
    target = TARGETS[kind](tmp_path)
    with pytest.raises((ContentMismatch, InvalidDocument)):
        copy_image(source, target, root, [NAME])
    assert names_at(target, tmp_path) == []


def test_S5_an_index_that_gives_one_document_two_types_is_refused() -> None:
    image = build_image()
    lying = {**image.root, "mediaType": DOCKER_MANIFEST}
    source = memory_of({"": image})
    root = source.add_blob(
        encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [image.root, lying]}), OCI_INDEX
    )
    with pytest.raises(InvalidDocument, match="was announced as"):
        copy_image(source, MemoryImages(), root, [NAME])
    assert source.names == {"": root_of(image)}


def test_S27_a_name_is_resolved_once_and_what_it_was_then_is_what_is_copied(tmp_path: Path) -> None:
    first, second = build_image(salt="first"), build_image(salt="second")
    both = memory_of({"first": first, "second": second})
    for platform in (None, LINUX_AMD64):
        source = MovingImages(both, [root_of(first), root_of(second)])
        store = Store(tmp_path / str(platform is None), durability="none")
        assert str(store.import_image(source, NAME, platform=platform).digest) == first.digest
        assert source.resolved_times == 1
        assert [str(image.digest) for image in store.images()] == [first.digest]


def test_S27_the_bytes_that_were_verified_are_the_bytes_that_are_kept(tmp_path: Path) -> None:
    # What the source says the second time no longer counts.
    image = build_index([build_image(), build_image(platform="linux/arm64")])
    target = MemoryImages()
    source = RememberingSource(ChangingSource(memory_of({"": image})))
    for descriptor in descriptors_of(image):
        if str(descriptor.digest) in image.document_digests:
            source.read(descriptor)
    copy_image(source, target, root_of(image), [NAME])
    assert {str(digest): content for digest, content in target.blobs.items()} == image.blobs


# ---- failing


@pytest.mark.parametrize("kind", ["memory", "layout"])
def test_the_first_error_is_the_one_that_is_raised_and_what_else_moves_is_stopped(tmp_path: Path, kind: str) -> None:
    image = build_image(LAYERS)
    layers = [Digest.parse(digest) for digest in image.layer_digests]
    blocking = BlockingSource(memory_of({"": image}), layers[1:])
    source = BlockingSourceWithError(blocking, layers[0])
    target = TARGETS[kind](tmp_path)
    with pytest.raises(ConnectionResetError, match="the first"):
        copy_image(source, target, root_of(image), [NAME])
    assert names_at(target, tmp_path) == []


class BlockingSourceWithError:
    """One leaf breaks as soon as another one blocks."""

    def __init__(self, blocking: BlockingSource, breaks: Digest) -> None:
        self._blocking = blocking
        self._breaks = breaks

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> Any:
        if descriptor.digest == self._breaks:
            assert self._blocking.blocked.wait(60)
            raise ConnectionResetError("the first")
        return self._blocking.open_blob(descriptor, offset)

    def interrupt(self) -> None:
        self._blocking.interrupt()


def test_after_an_error_no_further_leaf_is_begun() -> None:
    image = build_image(LAYERS * 5)
    broken = LackingSource(memory_of({"": image}), {Digest.parse(image.config_digest)})
    source = RecordingSource(broken)
    with pytest.raises(BlobNotFound) as caught:
        copy_image(source, MemoryImages(), root_of(image), [NAME], parallel=1)
    assert caught.value.digest == image.config_digest
    assert list(map(str, source.opened_digests)) == [image.digest]


def test_a_source_that_gives_its_bytes_slowly_is_stopped_between_two_of_them() -> None:
    image = build_image([{"slow": b"1" * 200_000}, {"broken": b"2"}], compressed=False)
    slow, broken = (Digest.parse(digest) for digest in image.layer_digests)
    reads = 0

    class Slow(LackingSource):
        def open_blob(self, descriptor: Descriptor, offset: int = 0) -> Any:
            if descriptor.digest != slow:
                return super().open_blob(descriptor, offset)

            class Trickle(PiecewiseStream):
                def readinto(self, buffer: memoryview, /) -> int:
                    nonlocal reads
                    reads += 1
                    time.sleep(0.002)
                    return super().readinto(buffer)

            return Trickle(image.blobs[str(slow)], step_bytes=10)

    with pytest.raises(BlobNotFound) as caught:
        copy_image(Slow(memory_of({"": image}), {broken}), MemoryImages(), root_of(image), [NAME])
    assert caught.value.digest == str(broken)
    assert reads < 1000


@pytest.mark.parametrize("error", [ValueError("a fault of the listener"), KeyboardInterrupt()])
def test_an_error_of_the_listener_ends_the_copy_and_passes(
    target: ImageTarget, error: BaseException, tmp_path: Path
) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, RegisteringName):
            raise error

    image = build_image()
    with pytest.raises(type(error)):
        copy_image(memory_of({"": image}), target, root_of(image), [NAME], on_event=listen)
    assert names_at(target, tmp_path) == []


# ---- cancelling


def cancelled_after(cancellation: Cancellation, ready: threading.Event, copy: Callable[[], None]) -> float:
    """Run the copy, cancel it once it is ready for that, and return how many seconds it took to end then."""
    at: list[float] = []

    def cancel() -> None:
        assert ready.wait(60)
        time.sleep(0.02)
        at.append(time.monotonic())
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled) as caught:
        copy()
    ended = time.monotonic()
    thread.join()
    assert str(caught.value) == "operation was cancelled"
    return ended - at[0]


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_copy_whose_source_blocks_ends_within_a_second_of_a_cancel(
    target: ImageTarget, part: str, tmp_path: Path
) -> None:
    image = build_image(LAYERS)
    digest = {"manifest": image.digest, "config": image.config_digest, "layer": image.layer_digests[3]}[part]
    source = BlockingSource(memory_of({"": image}), {Digest.parse(digest)})
    cancellation = Cancellation()
    seconds = cancelled_after(
        cancellation,
        source.blocked,
        lambda: copy_image(source, target, root_of(image), [NAME], cancellation=cancellation),
    )
    assert seconds < SOON_SECONDS
    assert names_at(target, tmp_path) == []


def test_a_source_behind_one_that_remembers_is_interrupted_too() -> None:
    image = build_image()
    source = BlockingSource(memory_of({"": image}), {Digest.parse(image.layer_digests[0])})
    cancellation = Cancellation()
    seconds = cancelled_after(
        cancellation,
        source.blocked,
        lambda: copy_image(
            RememberingSource(source), MemoryImages(), root_of(image), [NAME], cancellation=cancellation
        ),
    )
    assert seconds < SOON_SECONDS


class StuckWriter(MemoryWriter):
    """A writer that looks for a blob until it is interrupted."""

    def __init__(self) -> None:
        super().__init__(MemoryImages())
        self.blocked = threading.Event()
        self._interrupted = threading.Event()

    def has_blob(self, descriptor: Descriptor) -> bool:
        self.blocked.set()
        assert self._interrupted.wait(60), "nobody has interrupted a look that takes long"
        raise ConnectionAbortedError("the look was interrupted")

    def interrupt(self) -> None:
        self._interrupted.set()


class TargetOf:
    """A target that has one writer, and cannot be interrupted itself."""

    def __init__(self, writer: ImageWriter) -> None:
        self._writer = writer

    @contextmanager
    def open_writer(self) -> Iterator[ImageWriter]:
        yield self._writer


def test_a_copy_whose_writer_looks_for_long_ends_within_a_second_of_a_cancel() -> None:
    image, writer, cancellation = build_image(), StuckWriter(), Cancellation()
    source = memory_of({"": image})
    seconds = cancelled_after(
        cancellation,
        writer.blocked,
        lambda: copy_image(source, TargetOf(writer), root_of(image), [NAME], cancellation=cancellation),
    )
    assert seconds < SOON_SECONDS


@pytest.mark.parametrize("blocks", ["source", "writer"])
def test_a_copy_of_a_graph_whose_ends_block_ends_within_a_second_of_a_cancel(blocks: str) -> None:
    image, stuck, cancellation = build_image(), StuckWriter(), Cancellation()
    source = BlockingSource(memory_of({"": image}), {Digest.parse(image.digest)} if blocks == "source" else set())
    seconds = cancelled_after(
        cancellation,
        source.blocked if blocks == "source" else stuck.blocked,
        lambda: copy_graph(source, stuck, root_of(image), cancellation=cancellation),
    )
    assert seconds < SOON_SECONDS


def test_a_copy_that_waits_for_somebody_elses_download_ends_within_a_second_of_a_cancel(tmp_path: Path) -> None:
    image = build_image()
    layout = Layout(tmp_path, durable=False)
    layout.prepare()
    cancellation = Cancellation()
    ready = threading.Event()
    ready.set()
    with open(layout.paths.partial(Digest.parse(image.layer_digests[0])), "wb") as partial:
        fcntl.flock(partial, fcntl.LOCK_EX)
        seconds = cancelled_after(
            cancellation,
            ready,
            lambda: copy_image(memory_of({"": image}), layout, root_of(image), [NAME], cancellation=cancellation),
        )
    assert seconds < SOON_SECONDS
    assert list(layout.iter_names()) == []


def test_an_error_ends_the_wait_for_somebody_elses_download(tmp_path: Path) -> None:
    image = build_image(LAYERS[:2])
    awaited, lacking = map(Digest.parse, image.layer_digests)
    layout = Layout(tmp_path, durable=False)
    layout.prepare()
    source = LackingSource(memory_of({"": image}), [lacking])
    with open(layout.paths.partial(awaited), "wb") as partial:
        fcntl.flock(partial, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(BlobNotFound):
            copy_image(source, layout, root_of(image), [NAME], parallel=2)
    assert time.monotonic() - began < SOON_SECONDS


def test_a_copy_that_was_cancelled_before_it_began_reads_nothing(target: ImageTarget, tmp_path: Path) -> None:
    image = build_image()
    source = RecordingSource(memory_of({"": image}))
    cancellation = Cancellation()
    cancellation.cancel()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        copy_image(source, target, root_of(image), [NAME], cancellation=cancellation)
    assert source.opened == []
    assert names_at(target, tmp_path) == []


@pytest.mark.parametrize("kind", [BlobStarted, BlobAdvanced, RegisteringName])
def test_a_cancel_at_any_event_before_the_commit_changes_no_name(
    target: ImageTarget, kind: type[Event], tmp_path: Path
) -> None:
    image = build_image()
    cancellation = Cancellation()

    def listen(event: Event) -> None:
        if isinstance(event, kind):
            cancellation.cancel()

    with pytest.raises(Cancelled):
        copy_image(memory_of({"": image}), target, root_of(image), [NAME], on_event=listen, cancellation=cancellation)
    assert names_at(target, tmp_path) == []


def test_a_cancel_behind_the_commit_changes_nothing(target: ImageTarget, tmp_path: Path) -> None:
    image = build_image()
    cancellation = Cancellation()

    def listen(event: Event) -> None:
        if isinstance(event, ImageCopied):
            cancellation.cancel()

    copy_image(memory_of({"": image}), target, root_of(image), [NAME], on_event=listen, cancellation=cancellation)
    assert {NAME, "image.tar"} & set(names_at(target, tmp_path))
    assert cancellation.is_cancelled


def test_a_cancelled_copy_keeps_what_has_come_for_the_next_try(tmp_path: Path) -> None:
    image = build_image([{"a": b"1" * 90_000}, {"b": b"2"}], compressed=False)
    layout = Layout(tmp_path, durable=False)
    cancellation = Cancellation()
    layer = Digest.parse(image.layer_digests[0])
    lies = {layer: image.blobs[str(layer)]}

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced) and event.digest == layer and event.done_bytes >= 30_000:
            cancellation.cancel()

    slow = LyingSource(memory_of({"": image}), lies, step_bytes=10_000)
    with pytest.raises(Cancelled):
        copy_image(slow, layout, root_of(image), [NAME], on_event=listen, cancellation=cancellation, parallel=1)
    source = RecordingSource(memory_of({"": image}))
    copy_image(source, layout, root_of(image), [NAME])
    offsets = [offset for digest, offset in source.opened if digest == layer]
    assert len(offsets) == 1
    assert offsets[0] >= 30_000


def test_waiting_ends_with_the_cancel_and_else_with_the_time() -> None:
    cancellation = Cancellation()
    cancellation.wait(0.01)
    cancellation.check()
    timer = threading.Timer(0.02, cancellation.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        cancellation.wait(60)
    assert time.monotonic() - began < SOON_SECONDS
    with pytest.raises(Cancelled):
        cancellation.check()
    timer.join()


def test_an_error_that_a_cancel_brought_about_is_told_as_the_cancel_and_keeps_its_cause() -> None:
    cancellation = Cancellation()
    error = ConnectionAbortedError("interrupted")

    def fail(cancel: bool) -> None:
        with cancellation.interrupting(object()):
            if cancel:
                cancellation.cancel()
            raise error

    with pytest.raises(ConnectionAbortedError):
        fail(False)
    with pytest.raises(Cancelled) as caught:
        fail(True)
    assert caught.value.__cause__ is error


# ---- staging


def archived(contents: list[bytes], folder: Path | None = None) -> list[ArchivedBlob]:
    found = []
    for position, content in enumerate(contents, 1):
        stream: Any = PiecewiseStream(content)
        if folder is not None:
            path = folder / f"member-{position}"
            path.write_bytes(content)
            stream = _moving.FileStream(_files.open_regular(str(path)), 0, len(content))
        found.append(ArchivedBlob(descriptor=descriptor_for(content, ""), stream=stream, position=position))
    return found


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_blob_of_an_archive_is_staged(tmp_path: Path, in_files: bool, count: int) -> None:
    contents = [bytes([number]) * number * 100 for number in range(count)]
    with MemoryImages().open_writer() as writer:
        stage_blobs(archived(contents, tmp_path if in_files else None), writer, parallel=2)
        assert writer.staged == {Digest.of(content): content for content in contents}


@pytest.mark.parametrize("in_files", [False, True])
def test_the_first_wrong_blob_of_an_archive_ends_the_staging(tmp_path: Path, in_files: bool) -> None:
    blobs = archived([bytes([number]) * 100 for number in range(100)], tmp_path if in_files else None)
    blobs[3] = ArchivedBlob(descriptor=descriptor_for(b"other" * 20, ""), stream=blobs[3].stream, position=4)
    taken = []

    def one_by_one() -> Iterator[ArchivedBlob]:
        for blob in blobs:
            taken.append(blob)
            yield blob

    with MemoryImages().open_writer() as writer, pytest.raises(ContentMismatch) as caught:
        stage_blobs(one_by_one(), writer, parallel=2)
    assert caught.value.what == str(Digest.of(b"other" * 20))
    assert len(taken) <= 12
    for blob in blobs:
        blob.stream.close()


def test_what_lies_in_no_file_is_staged_before_the_next_blob_is_asked_for() -> None:
    blobs = archived([b"1", b"2", b"3"])
    staged: list[int] = []
    with MemoryImages().open_writer() as writer:

        def one_by_one() -> Iterator[ArchivedBlob]:
            for blob in blobs:
                staged.append(len(writer.staged))
                yield blob

        stage_blobs(one_by_one(), writer, parallel=4)
    assert staged == [0, 1, 2]


class _CrowdedStage:
    """A stage that keeps everybody waiting until no more come for a while."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self.most_inside = 0

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> PiecewiseStream:
        raise BlobNotFound(str(descriptor.digest))

    def stage_blob(self, stream: BlobStream, size_bytes: int, digest: Digest | None = None) -> Digest:
        assert digest is not None
        with self._changed:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
            self._changed.notify_all()
            while self._changed.wait(0.2):
                pass
            self._inside -= 1
        return digest


@pytest.mark.parametrize(("processors", "at_once"), [(1, 1), (3, 3), (64, 16)])
def test_blobs_in_a_file_are_staged_by_as_many_threads_as_there_are_processors_for_the_process(
    processors: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "os", OtherOs(sched_getaffinity=lambda process: set(range(processors))))
    blobs, stage = archived([bytes([number]) for number in range(2 * at_once)], tmp_path), _CrowdedStage()
    stage_blobs(blobs, stage)
    assert stage.most_inside == at_once
    for blob in blobs:
        blob.stream.close()


def test_an_error_of_the_archive_itself_passes_and_ends_the_staging() -> None:
    def broken() -> Iterator[ArchivedBlob]:
        yield from archived([b"1"])
        raise StoreError("cut off")

    with MemoryImages().open_writer() as writer, pytest.raises(StoreError, match="cut off"):
        stage_blobs(broken(), writer, parallel=2)


@pytest.mark.parametrize("in_files", [False, True])
def test_a_cancel_ends_the_staging(tmp_path: Path, in_files: bool) -> None:
    cancellation = Cancellation()
    blobs = archived([bytes([number]) * 100 for number in range(50)], tmp_path if in_files else None)

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            cancellation.cancel()

    with MemoryImages().open_writer() as writer:
        with pytest.raises(Cancelled):
            stage_blobs(blobs, writer, parallel=2, on_event=listen, cancellation=cancellation)
        assert len(writer.staged) < 10
    for blob in blobs:
        blob.stream.close()


def test_a_cancel_ends_the_staging_in_the_middle_of_a_blob() -> None:
    cancellation, content = Cancellation(), bytes(1000)
    stream = PiecewiseStream(content, step_bytes=1)
    blob = ArchivedBlob(descriptor=descriptor_for(content, ""), stream=stream, position=1)
    advanced: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            advanced.append(event.done_bytes)
            cancellation.cancel()

    with MemoryImages().open_writer() as writer, pytest.raises(Cancelled):
        stage_blobs([blob], writer, on_event=listen, cancellation=cancellation)
    assert advanced == [1]
    assert stream.closed_times == 1


@pytest.mark.parametrize("root", ["missing", "corrupted"])
def test_an_image_whose_root_cannot_be_read_is_not_begun(target: ImageTarget, root: str, tmp_path: Path) -> None:
    image = build_image()
    source = memory_of({"": image.without(image.digest) if root == "missing" else image.corrupted(image.digest)})
    with pytest.raises((BlobNotFound, ContentMismatch)) as caught:
        copy_image(source, target, root_of(image), [NAME])
    assert image.digest in str(caught.value)
    assert names_at(target, tmp_path) == []


class _CancellingInItsTurn:
    """What takes an interrupt for a reason to cancel all."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._cancellation = cancellation
        self.interrupted_times = 0

    def interrupt(self) -> None:
        self.interrupted_times += 1
        self._cancellation.cancel()


def test_what_is_interrupted_may_cancel_in_its_turn() -> None:
    cancellation = Cancellation()
    chained = _CancellingInItsTurn(cancellation)
    with cancellation.interrupting(chained):
        cancellation.cancel()
    with pytest.raises(Cancelled):
        cancellation.check()
    assert chained.interrupted_times == 1
