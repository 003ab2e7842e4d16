"""What every BlobSource and ImageSource promises: the bytes of a blob, from any offset, as often as asked."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, NotFound
from minibox_store.protocols import BlobSource, ImageSource, NamedImages, RangeStream
from tests.contract.ends import NAMED_SOURCES, SOURCES
from tests.support.images import OCI_LAYER, BuiltImage, Layer, build_image, build_index, digest_of
from tests.support.sources import descriptor_for, descriptors_of, read_all, read_stream, root_of

EMPTY = Layer(content=b"", media_type=OCI_LAYER, diff_id=digest_of(b""))
BIG = Layer(content=bytes(range(256)) * 8192, media_type=OCI_LAYER, diff_id=digest_of(b"x"))  # 2 MiB
NAME = "team/app:1"
IMAGES = {
    NAME: build_image([EMPTY, BIG, {"a": b"1"}]),
    "docker:1": build_image(docker=True),
    "sha512:1": build_image(algorithm="sha512", salt="sha512"),
    "index:1": build_index([build_image(), build_image(platform="linux/arm64")], attestations=True),
}
# Of what was opened, a source may hold one image alone.
IMAGE = IMAGES[NAME]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobSource]:
    with SOURCES[request.param](tmp_path, IMAGES, NAME) as opened:
        yield opened


@pytest.fixture(params=NAMED_SOURCES)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageSource]:
    with NAMED_SOURCES[request.param](tmp_path, IMAGES, NAME) as opened:
        yield opened


def open_all(folder: Path, images: Mapping[str, BuiltImage], stack: ExitStack) -> list[tuple[str, BlobSource]]:
    found = []
    for kind, make in SOURCES.items():
        for number, name in enumerate(images):
            found.append((name, stack.enter_context(make(folder / f"{kind} {number}", images, name))))
    return found


def test_every_source_gives_every_blob_of_every_kind_of_image_byte_for_byte(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for name, source in open_all(tmp_path, IMAGES, stack):
            for descriptor in descriptors_of(IMAGES[name]):
                assert read_all(source, descriptor) == IMAGES[name].blobs[str(descriptor.digest)]


@pytest.mark.parametrize("step_bytes", [1, 511, 65_537])
def test_a_blob_reads_the_same_in_steps_of_any_size(source: BlobSource, step_bytes: int) -> None:
    for descriptor in descriptors_of(IMAGE):
        if descriptor.size_bytes < 10_000 or step_bytes > 1:
            content = read_all(source, descriptor, step_bytes=step_bytes)
            assert content == IMAGE.blobs[str(descriptor.digest)]


def test_a_blob_can_be_read_from_any_offset_up_to_its_end(source: BlobSource) -> None:
    for descriptor in descriptors_of(IMAGE):
        content = IMAGE.blobs[str(descriptor.digest)]
        for offset in sorted({0, min(1, len(content)), len(content) // 2, max(0, len(content) - 1), len(content)}):
            assert read_all(source, descriptor, offset) == content[offset:]


def test_a_buffer_that_is_no_memoryview_is_filled_as_well(source: BlobSource) -> None:
    descriptor = descriptors_of(IMAGE)[1]
    buffer = bytearray(1000)  # whose slices are copies
    stream = source.open_blob(descriptor)
    count = stream.readinto(buffer)  # type: ignore[arg-type]  # a caller without types
    stream.close()
    assert count
    assert buffer[:count] == IMAGE.blobs[str(descriptor.digest)][:count]


def test_the_end_of_a_stream_stays_the_end(source: BlobSource) -> None:
    for descriptor in descriptors_of(IMAGE):
        stream = source.open_blob(descriptor)
        read_stream(stream)
        assert [stream.readinto(memoryview(bytearray(8))) for _ in range(3)] == [0, 0, 0]
        stream.close()


def test_a_stream_may_be_closed_at_any_point_and_more_than_once(source: BlobSource) -> None:
    for descriptor in descriptors_of(IMAGE):
        unread, half = source.open_blob(descriptor), source.open_blob(descriptor)
        half.readinto(memoryview(bytearray(1)))
        for stream in (unread, half, unread, half):
            stream.close()
        assert read_all(source, descriptor) == IMAGE.blobs[str(descriptor.digest)]


def test_several_streams_of_one_blob_do_not_disturb_each_other(source: BlobSource) -> None:
    descriptor = descriptors_of(IMAGE)[1]
    content = IMAGE.blobs[str(descriptor.digest)]
    first, second = source.open_blob(descriptor), source.open_blob(descriptor, 1000)
    buffer = memoryview(bytearray(100))
    assert (first.readinto(buffer), bytes(buffer)) == (100, content[:100])
    assert (second.readinto(buffer), bytes(buffer)) == (100, content[1000:1100])
    first.close()
    assert read_stream(second) == content[1100:]
    second.close()


def test_several_threads_may_read_at_once(source: BlobSource) -> None:
    wanted = descriptors_of(IMAGE) * 6
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda descriptor: read_all(source, descriptor), wanted))
    assert found == [IMAGE.blobs[str(descriptor.digest)] for descriptor in wanted]


def test_the_bytes_that_lie_in_a_file_are_those_that_are_read(source: BlobSource) -> None:
    for descriptor in descriptors_of(IMAGE):
        content = IMAGE.blobs[str(descriptor.digest)]
        for offset in (0, len(content) // 3):
            stream = source.open_blob(descriptor, offset)
            moved = b"".join(ranges_of(stream)) if isinstance(stream, RangeStream) else read_stream(stream)
            stream.close()
            assert moved == content[offset:]


def ranges_of(stream: RangeStream) -> Iterator[bytes]:
    while (found := stream.next_range(100_000)).size_bytes:
        assert found.size_bytes <= 100_000
        yield os.pread(found.file_descriptor, found.size_bytes, found.offset)


def test_a_blob_that_is_not_there_is_named(source: BlobSource) -> None:
    for missing in (descriptor_for(b"missing", OCI_LAYER), descriptor_for(BIG.content, OCI_LAYER, "sha512")):
        with pytest.raises(BlobNotFound) as caught:
            source.open_blob(missing)
        assert caught.value.digest == str(missing.digest)
        assert isinstance(caught.value, LookupError)


def test_a_name_resolves_to_the_root_of_its_image(named: ImageSource) -> None:
    for name, image in IMAGES.items():
        found = named.resolve(name)
        true = root_of(image)
        assert (found.digest, found.size_bytes, found.media_type) == (true.digest, true.size_bytes, true.media_type)
        assert read_all(named, found) == image.blobs[image.digest]


@pytest.mark.parametrize("name", ["missing", "team/app", "team/app:1 ", "", "TEAM/app:1", "../team/app:1", "\0"])
def test_a_name_that_is_not_there_is_not_found(named: ImageSource, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        named.resolve(name)
    assert repr(name)[1:-1] in str(caught.value)


def test_a_source_that_lists_its_names_yields_each_once_and_can_resolve_it(named: ImageSource) -> None:
    assert isinstance(named, NamedImages)
    assert sorted(named.iter_names()) == sorted(IMAGES)
    assert {str(named.resolve(name).digest) for name in named.iter_names()} == {
        image.digest for image in IMAGES.values()
    }


def test_the_identity_of_a_blob_is_its_digest_whatever_else_its_descriptor_says(source: BlobSource) -> None:
    true = descriptors_of(IMAGE)[2]
    other = Descriptor(
        media_type="application/x", digest=true.digest, size_bytes=true.size_bytes, annotations={"a": "b"}
    )
    assert Digest.of(read_all(source, other)) == true.digest
