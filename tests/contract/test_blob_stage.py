"""What every BlobStage promises: what was kept is what was hashed, and nobody sees it before it is named."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from minibox_store import _files, _moving
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, IncompleteImage
from minibox_store.protocols import BlobStage, BlobStream
from tests.contract.ends import STAGES, StageEnd, digest_text, open_stage
from tests.support.images import build_image
from tests.support.sources import PiecewiseStream, copy_into, descriptor_for, descriptors_of, read_all, root_of

MEBIBYTE = 1 << 20
CONTENTS = {
    "nothing": b"",
    "one byte": b"x",
    "a text": b"hello\n" * 1000,
    "a buffer": bytes(MEBIBYTE),
    "a buffer and a byte": bytes(range(256)) * 4096 + b"x",
}
LIES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "long": lambda content: content + b"x",
    "other": lambda content: bytes([content[0] ^ 1]) + content[1:],
}
CONTENT = CONTENTS["a text"]


@pytest.fixture(params=STAGES)
def end(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageEnd]:
    with ExitStack() as stack:
        yield open_stage(request.param, tmp_path, monkeypatch, stack)


@pytest.fixture
def stage(end: StageEnd) -> BlobStage:
    return end.stage


def in_file(path: Path, content: bytes) -> BlobStream:
    """Return content as a range of a file, with other bytes before and behind it."""
    path.write_bytes(b"before" + content + b"behind")
    return _moving.FileStream(_files.open_regular(str(path)), len(b"before"), len(content))


@pytest.mark.parametrize("name", CONTENTS)
def test_staging_returns_the_sha256_of_what_was_kept(stage: BlobStage, name: str) -> None:
    content = CONTENTS[name]
    digest = stage.stage_blob(PiecewiseStream(content), len(content))
    assert str(digest) == digest_text(content)
    assert read_all(stage, descriptor_for(content, "")) == content


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_blob_is_verified_by_the_algorithm_of_its_digest(stage: BlobStage, name: str, algorithm: str) -> None:
    content = CONTENTS[name]
    wanted = descriptor_for(content, "", algorithm)
    assert str(wanted.digest) == digest_text(content, algorithm)
    assert stage.stage_blob(PiecewiseStream(content), len(content), wanted.digest) == wanted.digest
    assert read_all(stage, wanted) == content


@pytest.mark.parametrize("name", CONTENTS)
def test_a_blob_may_come_from_a_range_of_a_file(stage: BlobStage, name: str, tmp_path: Path) -> None:
    content = CONTENTS[name]
    stream = in_file(tmp_path / "file", content)
    digest = stage.stage_blob(stream, len(content), Digest.of(content))
    stream.close()
    assert read_all(stage, Descriptor(media_type="", digest=digest, size_bytes=len(content))) == content


def test_a_blob_may_come_in_pieces_of_any_size(stage: BlobStage) -> None:
    digests = {stage.stage_blob(PiecewiseStream(CONTENT, step_bytes=step), len(CONTENT)) for step in (1, 7, 4096)}
    assert digests == {Digest.of(CONTENT)}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("from_file", [False, True], ids=["from a pipe", "from a file"])
def test_short_long_and_other_bytes_are_refused_and_nothing_is_kept_of_them(
    end: StageEnd, lie: str, algorithm: str, from_file: bool, tmp_path: Path
) -> None:
    wanted = descriptor_for(CONTENT, "", algorithm)
    told = LIES[lie](CONTENT)
    stream = in_file(tmp_path / "file", told) if from_file else PiecewiseStream(told)
    with pytest.raises(ContentMismatch) as caught:
        end.stage.stage_blob(stream, len(CONTENT), wanted.digest)
    stream.close()
    assert caught.value.what == str(wanted.digest)
    assert end.kept_bytes() == 0
    for content in (CONTENT, told):
        with pytest.raises(BlobNotFound):
            end.stage.open_blob(descriptor_for(content, "", algorithm))


@pytest.mark.parametrize("left_bytes", [0, 7, len(CONTENT)])
def test_a_file_that_becomes_shorter_before_it_is_read_is_refused_and_nothing_is_kept_of_it(
    end: StageEnd, left_bytes: int, tmp_path: Path
) -> None:
    stream = in_file(tmp_path / "file", CONTENT)
    os.truncate(tmp_path / "file", left_bytes)
    with pytest.raises(ContentMismatch, match=f"expected {len(CONTENT)} bytes"):
        end.stage.stage_blob(stream, len(CONTENT), Digest.of(CONTENT))
    stream.close()
    assert end.kept_bytes() == 0


@pytest.mark.parametrize("told", [b"", b"1234", b"123456"])
def test_another_number_of_bytes_is_refused_without_a_digest_too(end: StageEnd, told: bytes) -> None:
    with pytest.raises(ContentMismatch, match="expected 5 bytes"):
        end.stage.stage_blob(PiecewiseStream(told), 5)
    assert end.kept_bytes() == 0


def test_a_refused_blob_leaves_an_equal_one_that_was_kept_before(stage: BlobStage) -> None:
    digest = stage.stage_blob(PiecewiseStream(CONTENT), len(CONTENT))
    with pytest.raises(ContentMismatch):
        stage.stage_blob(PiecewiseStream(CONTENT[:-1]), len(CONTENT), digest)
    assert read_all(stage, descriptor_for(CONTENT, "")) == CONTENT


def test_the_error_of_a_stream_passes_and_nothing_is_kept(end: StageEnd) -> None:
    class Broken(PiecewiseStream):
        def readinto(self, buffer: memoryview, /) -> int:
            count = super().readinto(buffer)
            if not count:
                raise ConnectionResetError("gone")
            return count

    with pytest.raises(ConnectionResetError, match="gone"):
        end.stage.stage_blob(Broken(b"123"), 5)
    assert end.kept_bytes() == 0


def test_the_stream_is_left_for_the_caller_to_close(stage: BlobStage) -> None:
    stream = PiecewiseStream(CONTENT)
    stage.stage_blob(stream, len(CONTENT))
    assert stream.closed_times == 0


def test_staging_the_same_blob_twice_keeps_it_once(end: StageEnd) -> None:
    for _ in range(2):
        end.stage.stage_blob(PiecewiseStream(CONTENT), len(CONTENT))
        assert end.kept_bytes() == len(CONTENT)


def test_what_was_not_staged_is_not_found(stage: BlobStage) -> None:
    stage.stage_blob(PiecewiseStream(CONTENT), len(CONTENT))
    for missing in (descriptor_for(b"other", ""), descriptor_for(CONTENT, "", "sha512")):
        with pytest.raises(BlobNotFound) as caught:
            stage.open_blob(missing)
        assert caught.value.digest == str(missing.digest)


@pytest.mark.parametrize("size_bytes", [0, len(CONTENT) - 1, len(CONTENT) + 1])
def test_what_was_staged_is_not_given_under_another_size(stage: BlobStage, size_bytes: int) -> None:
    digest = stage.stage_blob(PiecewiseStream(CONTENT), len(CONTENT))
    with pytest.raises(ContentMismatch):
        stage.open_blob(Descriptor(media_type="", digest=digest, size_bytes=size_bytes))


def test_a_stage_may_be_used_by_several_threads_at_once(end: StageEnd) -> None:
    contents = [bytes([number]) * 50_000 for number in range(20)] * 2
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda content: end.stage.stage_blob(PiecewiseStream(content), len(content)), contents))
    assert digests == [Digest.of(content) for content in contents]
    assert end.kept_bytes() == 20 * 50_000


def test_nobody_sees_what_was_staged_and_not_named(end: StageEnd) -> None:
    end.stage.stage_blob(PiecewiseStream(CONTENT), len(CONTENT))
    assert end.end.read_blobs() == {}
    end.leave()
    assert end.end.read_blobs() == {}
    assert end.end.read_names() == {}


def test_what_was_staged_cannot_be_named_before_it_is_written(end: StageEnd) -> None:
    end.stage.stage_blob(PiecewiseStream(CONTENT), len(CONTENT))
    with pytest.raises(IncompleteImage):
        end.writer.write_name("app:1", descriptor_for(CONTENT, ""))
    end.leave()
    assert end.end.read_names() == {}


def test_what_a_name_reaches_is_published_and_nothing_else_that_was_staged(end: StageEnd) -> None:
    image = build_image()
    for content in [CONTENT, *image.blobs.values()]:
        end.stage.stage_blob(PiecewiseStream(content), len(content))
    for descriptor in descriptors_of(image):
        if not end.writer.has_blob(descriptor):
            end.writer.write_blob(descriptor, end.stage)
    end.writer.write_name("app:1", root_of(image))
    end.leave()
    assert end.end.read_names() == {"app:1": image.digest}
    assert end.end.read_blobs() == image.blobs


def test_staging_what_the_target_holds_already_leaves_it_as_it_was(end: StageEnd) -> None:
    image = build_image()
    copy_into(end.end.target, image, "app:1")
    for content in image.blobs.values():
        end.stage.stage_blob(PiecewiseStream(content), len(content))
    end.leave()
    assert end.end.read_names() == {"app:1": image.digest}
    assert end.end.read_blobs() == image.blobs
