"""What every ImageTarget promises: nothing is named before it is complete, nothing is kept that is wrong."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, IncompleteImage
from minibox_store.protocols import BlobSource, ImageTarget, ImageWriter
from tests.contract.ends import TARGETS, TargetEnd
from tests.support.images import BuiltImage, Layer, build_image, build_index, digest_of
from tests.support.sources import (
    BreakingSource,
    EndlessSource,
    LackingSource,
    LyingSource,
    blobs_of,
    copy_into,
    descriptors_of,
    memory_of,
    root_of,
)

NAME = "quay.io/team/app:1.0"
EMPTY = Layer(content=b"", media_type="application/vnd.oci.image.layer.v1.tar", diff_id=digest_of(b""))
BIG = Layer(content=bytes(range(256)) * 12_288, media_type=EMPTY.media_type, diff_id=digest_of(b"x"))  # 3 MiB
SHAPES: dict[str, Callable[[], BuiltImage]] = {
    "OCI": build_image,
    "docker": lambda: build_image(docker=True),
    "sha512": lambda: build_image(algorithm="sha512"),
    "an empty layer": lambda: build_image([EMPTY, {"a": b"1"}]),
    "no layers": lambda: build_image([]),
    "one layer twice": lambda: build_image([{"a": b"1"}, {"a": b"1"}]),
    "a layer of 3 MiB": lambda: build_image([BIG]),
    "index": lambda: build_index([build_image(), build_image(platform="linux/arm64")], attestations=True),
    "nested docker list": lambda: build_index([build_image(docker=True)], docker=True, nested=2),
}
LIES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "long": lambda content: content + b"x",
    "other": lambda content: bytes([content[0] ^ 1]) + content[1:],
}
HOLDING_MANY = [kind for kind in TARGETS if kind != "archive"]


@pytest.fixture(params=TARGETS)
def end(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TargetEnd]:
    with closing(TARGETS[request.param](tmp_path, monkeypatch)) as opened:
        yield opened


@pytest.fixture(params=HOLDING_MANY)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TargetEnd]:
    with closing(TARGETS[request.param](tmp_path, monkeypatch)) as opened:
        yield opened


def write_all(writer: ImageWriter, image: BuiltImage, source: BlobSource | None = None) -> None:
    for descriptor in descriptors_of(image):
        writer.write_blob(descriptor, source or memory_of({"": image}))


def write_image(target: ImageTarget, image: BuiltImage, source: BlobSource | None = None, name: str = NAME) -> None:
    with target.open_writer() as writer:
        write_all(writer, image, source)
        writer.write_name(name, root_of(image))


def holds(end: TargetEnd, image: BuiltImage) -> bool:
    """Whether every blob of the image is there, byte for byte."""
    return image.blobs.items() <= end.read_blobs().items()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_and_named_is_there_once_the_writer_is_left(end: TargetEnd, shape: str) -> None:
    image = SHAPES[shape]()
    write_image(end.target, image)
    assert end.read_names() == {NAME: image.digest}
    assert end.read_blobs() == image.blobs


@pytest.mark.parametrize("shape", SHAPES)
def test_writing_an_image_twice_leaves_what_writing_it_once_does(end: TargetEnd, shape: str) -> None:
    image = SHAPES[shape]()
    for _ in range(2):
        write_image(end.target, image)
        assert end.read_names() == {NAME: image.digest}
        assert end.read_blobs() == image.blobs


def test_writing_a_blob_twice_in_one_transaction_is_writing_it_once(end: TargetEnd) -> None:
    image = build_image()
    with end.target.open_writer() as writer:
        write_all(writer, image)
        write_all(writer, image)
        writer.write_name(NAME, root_of(image))
    assert end.read_names() == {NAME: image.digest}
    assert end.read_blobs() == image.blobs


def test_a_name_moves_to_another_image_in_one_step(end: TargetEnd) -> None:
    first, second = build_image(salt="first"), build_image(salt="second")
    write_image(end.target, first)
    with end.target.open_writer() as writer:
        write_all(writer, second)
        assert end.read_names() == {NAME: first.digest}
        writer.write_name(NAME, root_of(second))
        assert end.read_names() == {NAME: first.digest}
    assert end.read_names() == {NAME: second.digest}
    assert holds(end, second)


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("named_before", [False, True])
def test_leaving_with_an_error_changes_no_name(end: TargetEnd, error: BaseException, named_before: bool) -> None:
    before, image = build_image(salt="before"), build_image()
    if named_before:
        write_image(end.target, before)

    def leave() -> None:
        with end.target.open_writer() as writer:
            write_all(writer, image)
            writer.write_name(NAME, root_of(image))
            raise error

    with pytest.raises(type(error)):
        leave()
    assert end.read_names() == ({NAME: before.digest} if named_before else {})
    assert not named_before or holds(end, before)
    write_image(end.target, image)
    assert end.read_names() == {NAME: image.digest}


def test_a_name_before_its_blob_is_refused(end: TargetEnd) -> None:
    image = build_image()

    def name_first() -> None:
        with end.target.open_writer() as writer:
            for descriptor in descriptors_of(image)[:-1]:
                writer.write_blob(descriptor, memory_of({"": image}))
            writer.write_name(NAME, root_of(image))

    with pytest.raises(IncompleteImage) as caught:
        name_first()
    assert (caught.value.root, caught.value.missing) == (NAME, (image.digest,))
    assert end.read_names() == {}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("part", [0, -2, -1], ids=["layer", "config", "manifest"])
@pytest.mark.parametrize("step_bytes", [7, 1 << 30], ids=["in pieces", "at once"])
def test_short_long_and_other_bytes_are_refused_and_nothing_of_them_is_kept(
    end: TargetEnd, lie: str, part: int, step_bytes: int
) -> None:
    image = build_image()
    digest = descriptors_of(image)[part].digest
    lies = {digest: LIES[lie](image.blobs[str(digest)])}
    source = LyingSource(memory_of({"": image}), lies, step_bytes=step_bytes)
    with pytest.raises(ContentMismatch) as caught:
        write_image(end.target, image, source)
    assert caught.value.what == str(digest)
    assert end.read_names() == {}
    assert str(digest) not in end.read_blobs()
    write_image(end.target, image)
    assert end.read_names() == {NAME: image.digest}
    assert end.read_blobs() == image.blobs


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_bytes_of_another_digest_are_refused_whatever_the_algorithm(end: TargetEnd, algorithm: str) -> None:
    image = build_image(algorithm=algorithm)
    lying = memory_of({"": image.corrupted(image.layer_digests[0])})
    with pytest.raises(ContentMismatch):
        write_image(end.target, image, lying)
    assert end.read_names() == {}


def test_a_descriptor_with_another_size_than_its_blob_is_refused(end: TargetEnd) -> None:
    image = build_image()
    true = root_of(image)

    def write(size_bytes: int) -> None:
        lying = Descriptor(media_type=true.media_type, digest=true.digest, size_bytes=size_bytes)
        with end.target.open_writer() as writer:
            for descriptor in descriptors_of(image)[:-1]:
                writer.write_blob(descriptor, memory_of({"": image}))
            writer.write_blob(lying, memory_of({"": image}))
            writer.write_name(NAME, lying)

    for size_bytes in (0, true.size_bytes - 1, true.size_bytes + 1):
        with pytest.raises(ContentMismatch):
            write(size_bytes)
        assert end.read_names() == {}


def test_a_source_without_an_end_is_read_no_further_than_the_size_of_the_blob(end: TargetEnd) -> None:
    image = build_image()
    digest = Digest.parse(image.layer_digests[0])
    with pytest.raises(ContentMismatch):
        write_image(end.target, image, EndlessSource(memory_of({"": image}), {digest}))
    assert end.read_names() == {}


def test_a_blob_that_the_source_lacks_is_named(end: TargetEnd) -> None:
    image = build_image()
    digest = Digest.parse(image.layer_digests[1])
    with pytest.raises(BlobNotFound) as caught:
        write_image(end.target, image, LackingSource(memory_of({"": image}), {digest}))
    assert caught.value.digest == str(digest)
    assert end.read_names() == {}


@pytest.mark.parametrize("after_bytes", [0, 1, 100])
def test_the_error_of_a_source_that_breaks_off_passes_and_the_next_try_succeeds(
    end: TargetEnd, after_bytes: int
) -> None:
    image = build_image()
    error = ConnectionResetError("the registry is gone")
    digest = Digest.parse(image.layer_digests[0])
    source = BreakingSource(memory_of({"": image}), {digest}, error, after_bytes=after_bytes)
    with pytest.raises(ConnectionResetError, match="the registry is gone"):
        write_image(end.target, image, source)
    assert end.read_names() == {}
    assert str(digest) not in end.read_blobs()
    write_image(end.target, image)
    assert end.read_blobs() == image.blobs


def test_a_refused_blob_can_be_written_again_in_the_same_transaction(end: TargetEnd) -> None:
    image = build_image()
    lying = memory_of({"": image.corrupted(image.digest).corrupted(image.layer_digests[0])})
    with end.target.open_writer() as writer:
        for descriptor in descriptors_of(image):
            with suppress(ContentMismatch):
                writer.write_blob(descriptor, lying)
        write_all(writer, image)
        writer.write_name(NAME, root_of(image))
    assert end.read_names() == {NAME: image.digest}
    assert end.read_blobs() == image.blobs


def test_a_blob_that_was_not_written_is_not_said_to_be_held(end: TargetEnd) -> None:
    image = build_image()
    with suppress(IncompleteImage), end.target.open_writer() as writer:
        assert not any(writer.has_blob(descriptor) for descriptor in descriptors_of(image))
    assert end.read_names() == {}


def test_a_blob_is_not_said_to_be_held_in_another_size(end: TargetEnd) -> None:
    image = build_image()
    write_image(end.target, image)
    root = root_of(image)
    with suppress(IncompleteImage), end.target.open_writer() as writer:
        for size_bytes in (0, root.size_bytes + 1):
            other = Descriptor(media_type=root.media_type, digest=root.digest, size_bytes=size_bytes)
            assert not writer.has_blob(other)
        # and a lie about it takes nothing away from the truth
        if writer.has_blob(root):
            writer.write_name(NAME, root)
    assert end.read_names() == {NAME: image.digest}
    assert holds(end, image)


def test_a_blob_that_is_said_to_be_held_stays_until_the_writer_is_left(end: TargetEnd) -> None:
    image = build_image()
    write_image(end.target, image, name="old:1")
    with end.target.open_writer() as writer:
        held = [descriptor for descriptor in descriptors_of(image) if writer.has_blob(descriptor)]
        end.forget("old:1")
        for descriptor in descriptors_of(image):
            if descriptor not in held:
                writer.write_blob(descriptor, memory_of({"": image}))
        writer.write_name(NAME, root_of(image))
    assert end.read_names() == {NAME: image.digest}
    assert end.read_blobs() == image.blobs


def test_a_writer_may_be_used_by_several_threads_at_once(end: TargetEnd) -> None:
    layers = [{f"file-{number}": bytes([number]) * 100_000} for number in range(12)]
    image = build_image([*layers, *layers], compressed=False)
    start = threading.Barrier(8)
    *parts, root = descriptors_of(image)

    def write(descriptor: Descriptor) -> None:
        if not writer.has_blob(descriptor):
            writer.write_blob(descriptor, memory_of({"": image}))

    def write_all_parts(_: int) -> None:
        start.wait(10)
        for descriptor in parts:
            write(descriptor)

    with end.target.open_writer() as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(write_all_parts, range(8)))
        write(root)
        writer.write_name(NAME, root)
    assert end.read_names() == {NAME: image.digest}
    assert end.read_blobs() == image.blobs


def test_several_names_appear_together(store: TargetEnd) -> None:
    first, second = build_image(salt="first"), build_image(salt="second")
    with store.target.open_writer() as writer:
        for name, image in {"a:1": first, "b:1": second, "c:1": first}.items():
            write_all(writer, image)
            writer.write_name(name, root_of(image))
        assert store.read_names() == {}
    assert store.read_names() == {"a:1": first.digest, "b:1": second.digest, "c:1": first.digest}
    assert holds(store, first)
    assert holds(store, second)


def test_a_second_image_leaves_the_first_as_it_was(store: TargetEnd) -> None:
    first, second = build_image([{"shared": b"1"}, {"a": b"1"}]), build_image([{"shared": b"1"}], salt="second")
    copy_into(store.target, first, "first:1")
    copy_into(store.target, second, "second:1")
    assert store.read_names() == {"first:1": first.digest, "second:1": second.digest}
    assert store.read_blobs() == {**first.blobs, **second.blobs}


def test_a_transaction_that_names_nothing_changes_no_name(store: TargetEnd) -> None:
    before, image = build_image(salt="before"), build_image()
    copy_into(store.target, before, NAME)
    with store.target.open_writer() as writer:
        write_all(writer, image)
    assert store.read_names() == {NAME: before.digest}
    assert holds(store, before)


def test_two_transactions_at_once_do_not_lose_each_others_names(store: TargetEnd) -> None:
    first, second = build_image(salt="first"), build_image(salt="second")
    with store.target.open_writer() as one, store.target.open_writer() as other:
        for writer, image, name in ((one, first, "first:1"), (other, second, "second:1")):
            write_all(writer, image)
            writer.write_name(name, root_of(image))
    assert store.read_names() == {"first:1": first.digest, "second:1": second.digest}
    assert blobs_of(first, second) == {Digest.parse(key): content for key, content in store.read_blobs().items()}


def test_a_transaction_that_fails_takes_nothing_from_one_that_succeeds(store: TargetEnd) -> None:
    image = build_image()

    def fail() -> None:
        with store.target.open_writer() as failing:
            write_all(failing, image)
            with store.target.open_writer() as writer:
                for descriptor in descriptors_of(image):
                    if not writer.has_blob(descriptor):
                        writer.write_blob(descriptor, memory_of({"": image}))
                writer.write_name(NAME, root_of(image))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert store.read_names() == {NAME: image.digest}
    assert store.read_blobs() == image.blobs
