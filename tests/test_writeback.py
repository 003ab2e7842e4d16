"""What is to be durable is on its way to the disk while more of it comes: a sync at the end has little to wait for."""

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store import Store, _extents, _moving
from minibox_store.digest import Digest, Verifier
from minibox_store.layout.layout import Layout
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants
from tests.support.small_pieces import make_pieces_small
from tests.support.sources import PiecewiseStream, RangedPlace, memory_of
from tests.support.stores import blob, layer_of
from tests.support.system_calls import Failing, OtherOs

KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20
STEP_BYTES = 8 * MEBIBYTE
IMAGE = build_image([random_layer(20 * MEBIBYTE, salt="writeback")], salt="writeback")
LAYER = layer_of(IMAGE)
CONTENT = IMAGE.blobs[str(LAYER.digest)]
NAME = "app:1"

Durability = Literal["full", "none"]


class Sent(NamedTuple):
    """A part of a file that was sent to the disk, and how large the file was then."""

    file: int
    begin: int
    size_bytes: int
    had_bytes: int


class Disk:
    """Takes note of what is sent to it ahead of a sync, and sends it."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def posix_fadvise(self, opened: int, offset: int, size_bytes: int, advice: int) -> None:
        """Do so."""
        assert advice == os.POSIX_FADV_DONTNEED
        status = os.fstat(opened)
        self.sent.append(Sent(status.st_ino, offset, size_bytes, status.st_size))
        os.posix_fadvise(opened, offset, size_bytes, advice)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """What the library's files lie on."""
    disk = Disk()
    monkeypatch.setattr(_moving, "os", OtherOs(posix_fadvise=disk.posix_fadvise))
    return disk


def pull(folder: Path, durability: Durability) -> Path:
    Store(folder / "store", durability=durability).import_image(memory_of({NAME: IMAGE}), NAME)
    return blob(folder / "store", str(LAYER.digest))


def pull_ranges(folder: Path, durability: Durability) -> Path:
    source = RangedPlace(memory_of({NAME: IMAGE}))
    with Layout(folder / "store", durable=durability == "full").open_writer(ranges=4) as writer:
        writer.write_blob(LAYER, source)
    assert len(source.ranges) > 2
    return blob(folder / "store", str(LAYER.digest))


def load(folder: Path, durability: Durability) -> Path:
    source = Store(folder / "source", durability="none")
    source.import_image(memory_of({NAME: IMAGE}), NAME)
    source.save(NAME, folder / "image.tar")
    Store(folder / "store", durability=durability).load(folder / "image.tar")
    return blob(folder / "store", str(LAYER.digest))


def save(folder: Path, durability: Durability) -> Path:
    Store(folder / "store", durability="none").import_image(memory_of({NAME: IMAGE}), NAME)
    Store(folder / "store", durability=durability).save(NAME, folder / "image.tar")
    return folder / "image.tar"


def save_compressed(folder: Path, durability: Durability) -> Path:
    Store(folder / "store", durability="none").import_image(memory_of({NAME: IMAGE}), NAME)
    Store(folder / "store", durability=durability).save(NAME, folder / "image.tar", compress="zstd")
    return folder / "image.tar"


def receive(folder: Path, durability: Durability) -> Path:
    repository = Store(folder / "store", durability=durability).repository("app")
    upload = repository.begin_upload()
    for start in range(0, len(CONTENT), 3 * MEBIBYTE):  # each is less than a step
        repository.append_upload(upload.id, PiecewiseStream(CONTENT[start : start + 3 * MEBIBYTE]))
    repository.finish_upload(upload.id, LAYER.digest)
    return blob(folder / "store", str(LAYER.digest))


WAYS = [pull, pull_ranges, load, save, save_compressed, receive]
Way = Callable[[Path, Durability], Path]


@pytest.fixture(autouse=True)
def _a_disk_that_shares_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extents, "prepare_copy", lambda *_: False)


@pytest.fixture(autouse=True)
def _ranges_of_a_smaller_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch, most_bytes=2 * MEBIBYTE)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_to_be_durable_is_sent_to_the_disk_as_it_comes(way: Way, tmp_path: Path, disk: Disk) -> None:
    path = way(tmp_path, "full")
    sent = [each for each in disk.sent if each.file == path.stat().st_ino]
    assert sent
    assert all(each.size_bytes >= STEP_BYTES for each in sent)
    assert all(each.begin + each.size_bytes <= each.had_bytes for each in sent), "what was not there yet"
    places = [each.begin for each in sent]
    assert places == sorted(places)
    assert all(one.begin + one.size_bytes <= other.begin for one, other in pairwise(sent))
    check_invariants(tmp_path / "store")


@pytest.mark.parametrize("way", WAYS)
def test_no_more_than_a_step_waits_for_the_sync(way: Way, tmp_path: Path, disk: Disk) -> None:
    path = way(tmp_path, "full")
    sent = [each for each in disk.sent if each.file == path.stat().st_ino]
    assert path.stat().st_size - sum(each.size_bytes for each in sent) < STEP_BYTES
    assert sent[0].begin == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_need_not_be_durable_stays_in_memory(way: Way, tmp_path: Path, disk: Disk) -> None:
    path = way(tmp_path, "none")
    assert path.stat().st_size >= len(CONTENT)
    assert disk.sent == []


@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_takes_no_advice_gets_it_all_by_the_sync(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = Failing(errno.EIO)
    monkeypatch.setattr(_moving, "os", OtherOs(posix_fadvise=deaf))
    path = way(tmp_path, "full")
    assert deaf.calls > 0
    assert way is save_compressed or CONTENT in path.read_bytes()
    check_invariants(tmp_path / "store")


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_read_back_is_read_before_it_is_sent(
    is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    verifier, seen = Verifier(Digest.of(CONTENT), len(CONTENT)), []
    monkeypatch.setattr(
        _moving,
        "os",
        OtherOs(posix_fadvise=lambda _, begin, count, __: seen.append(verifier.seen_bytes - begin - count)),
    )
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "w+b", buffering=0) as target:
        file = _moving.FileStream(source.fileno(), 0, len(CONTENT), owns_descriptor=False)
        stream = file if is_file else PiecewiseStream(CONTENT)
        _moving.append_stream(stream, target.fileno(), verifier, durable=True)
    verifier.finish()
    assert seen == [0, 0]


@given(st.lists(st.integers(min_value=0, max_value=3 * STEP_BYTES), max_size=20), st.integers(0, 2 * STEP_BYTES))
def test_each_byte_is_sent_once_in_order_and_in_whole_steps(grown: list[int], begin: int) -> None:
    sent: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        advise = OtherOs(posix_fadvise=lambda _, start, size_bytes, __: sent.append((start, size_bytes)))
        patch.setattr(_moving, "os", advise)
        position = begin
        for size_bytes in grown:
            position += size_bytes
            _moving.begin_writeback(0, position - size_bytes, position)
    reached = begin - begin % STEP_BYTES
    for start, size_bytes in sent:
        assert start == reached
        assert size_bytes > 0
        assert size_bytes % STEP_BYTES == 0
        reached += size_bytes
    assert 0 <= position - reached < STEP_BYTES
