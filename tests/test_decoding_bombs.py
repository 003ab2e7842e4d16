"""Row S8: a layer that becomes too much, by any way there is, is refused within bounds of bytes, time and memory."""

import gzip
import time
from collections.abc import Callable

import pytest

from minibox_store.errors import InvalidArchive
from minibox_store.limits import UnpackLimits
from minibox_store.tar import TarReader
from tests.support.compression import (
    KIBIBYTE,
    MEBIBYTE,
    grows_by_less_than,
    gzip_bomb,
    gzipped,
    opened,
    read_layer,
    skippable_frame,
    zstd_bomb,
    zstd_frame_of_window,
    zstd_frames,
    zstd_of_window,
)
from tests.support.sources import PiecewiseStream

FLOOR = 32 * MEBIBYTE
LIMITS = UnpackLimits(ratio_floor_bytes=FLOOR)
_DEFAULT_FLOOR = 1 << 30

BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip_bomb(96 * MEBIBYTE),
    "gzip of several members": lambda: gzip_bomb(16 * MEBIBYTE) * 6,
    "zstd": lambda: zstd_bomb(256 * MEBIBYTE),
    "zstd of several frames": lambda: zstd_bomb(16 * MEBIBYTE) * 16,
    "zstd that ends with what does not shrink": lambda: zstd_bomb(64 * MEBIBYTE) + zstd_frames(bytes(range(256)) * 10),
}


def drained_bytes(blob: bytes, limits: UnpackLimits) -> int:
    """Return how many bytes a layer gives before it is refused for becoming too many."""
    given: list[int] = []
    with opened(blob, limits=limits) as layer, pytest.raises(InvalidArchive, match="which is the limit"):
        given.extend(iter(lambda: len(layer.read(MEBIBYTE)), 0))
    return sum(given)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_S8_a_bomb_is_refused_by_its_ratio_in_little_memory(bomb: Callable[[], bytes]) -> None:
    blob = bomb()

    def refuse() -> None:
        assert FLOOR - 2 * MEBIBYTE <= drained_bytes(blob, LIMITS) <= FLOOR

    assert grows_by_less_than(24 * MEBIBYTE, refuse)


def test_S8_the_usual_limits_refuse_a_bomb_too() -> None:
    blob = zstd_bomb(64 * MEBIBYTE) * 32

    def refuse() -> None:
        with opened(blob) as layer, pytest.raises(InvalidArchive, match=f"more than {_DEFAULT_FLOOR} bytes"):
            layer.finish()

    assert grows_by_less_than(24 * MEBIBYTE, refuse)


def test_S8_the_sentence_names_the_layer_and_the_bound() -> None:
    blob = gzip_bomb(4 * MEBIBYTE)
    with (
        opened(blob, limits=UnpackLimits(ratio_floor_bytes=1, ratio=10)) as layer,
        pytest.raises(InvalidArchive) as told,
    ):
        layer.finish()
    assert f"becomes more than {10 * len(blob)} bytes, which is the limit for one of {len(blob)} bytes" in str(
        told.value
    )
    assert "layer sha256:" in str(told.value)


def test_S8_what_shrinks_well_is_taken_up_to_the_very_bound() -> None:
    tar = bytes(4 * MEBIBYTE)
    blob = gzipped(tar)
    ratio = len(tar) // len(blob)
    exact = UnpackLimits(ratio_floor_bytes=1, ratio=ratio + 1)
    assert read_layer(opened(blob, tar, exact)) == tar
    with pytest.raises(InvalidArchive, match="which is the limit"):
        read_layer(opened(blob, tar, UnpackLimits(ratio_floor_bytes=1, ratio=ratio)))
    assert read_layer(opened(blob, tar, UnpackLimits(ratio_floor_bytes=len(tar), ratio=1))) == tar


@pytest.mark.parametrize("compress", [bytes, gzipped, zstd_frames], ids=["plain", "gzip", "zstd"])
def test_S8_a_layer_larger_than_the_limit_is_refused_in_each_compression(compress: Callable[[bytes], bytes]) -> None:
    tar = bytes(range(256)) * 4096
    for most, is_taken in ((len(tar), True), (len(tar) - 1, False)):
        layer = opened(compress(tar), tar, UnpackLimits(output_bytes=most))
        if is_taken:
            assert read_layer(layer) == tar
        else:
            with pytest.raises(InvalidArchive, match=f"larger than {most} bytes, which is the limit"):
                read_layer(layer)


def test_S8_a_gzip_in_a_gzip_is_undone_once_and_is_no_tar_then() -> None:
    inner = gzip_bomb(64 * MEBIBYTE)
    blob = gzip.compress(inner)

    def refuse() -> None:
        with opened(blob, inner) as layer, pytest.raises(InvalidArchive, match="no tar header at byte 0"):
            next(TarReader(layer))
        assert read_layer(opened(blob, inner)) == inner

    assert grows_by_less_than(8 * MEBIBYTE, refuse)


@pytest.mark.parametrize("window_log", [28, 31, 41])
def test_S8_a_huge_window_is_refused_before_it_is_made(window_log: int) -> None:
    blob = skippable_frame(b"innocent") + zstd_frames(b"innocent") + zstd_frame_of_window(window_log)

    def refuse() -> None:
        sentence = f"a window of more than {1 << 27} bytes"
        with opened(blob, b"innocent") as layer, pytest.raises(InvalidArchive, match=sentence):
            layer.finish()

    assert grows_by_less_than(8 * MEBIBYTE, refuse)


def test_S8_the_largest_window_that_is_taken_costs_no_more_than_itself() -> None:
    tar = bytes(range(256)) * 4096
    blob = zstd_of_window(tar, 27)

    def read() -> None:
        assert read_layer(opened(blob, tar)) == tar

    assert grows_by_less_than(150 * MEBIBYTE, read)
    with pytest.raises(InvalidArchive, match=f"a window of more than {1 << 26} bytes"):
        read_layer(opened(blob, tar, UnpackLimits(window_log=26)))


@pytest.mark.parametrize(
    "part",
    [gzipped(b""), zstd_frames(b""), skippable_frame(b"")],
    ids=["gzip members", "zstd frames", "skippable frames"],
)
def test_S8_empty_parts_without_number_take_time_by_their_number_and_no_memory(part: bytes) -> None:
    def seconds_for(count: int) -> float:
        blob = part * count
        started = time.process_time()
        assert read_layer(opened(blob)) == b""
        return time.process_time() - started

    def read() -> None:
        seconds_for(1_000)
        few, many = min(seconds_for(5_000) for _ in range(3)), seconds_for(40_000)
        assert many < 8 * 4 * few

    assert grows_by_less_than(16 * MEBIBYTE, read)


class _Trickle(PiecewiseStream):
    """A byte, and a pause."""

    def readinto(self, buffer: memoryview, /) -> int:
        time.sleep(0.002)
        return super().readinto(buffer[:1])


@pytest.mark.parametrize("compress", [bytes, gzipped, zstd_frames], ids=["plain", "gzip", "zstd"])
def test_S8_a_blob_that_trickles_is_refused_when_its_time_is_over(compress: Callable[[bytes], bytes]) -> None:
    blob = compress(bytes(range(256)) * 256)
    layer = opened(blob, limits=UnpackLimits(seconds=0.2), stream=_Trickle(blob))
    started = time.monotonic()
    with layer, pytest.raises(InvalidArchive, match=r"takes longer than 0\.2 seconds, which is the limit"):
        layer.finish()
    assert 0.2 <= time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "blob", [gzipped(b"") * 200_000, skippable_frame(b"") * 200_000], ids=["gzip members", "skippable frames"]
)
def test_S8_a_blob_that_gives_nothing_is_refused_when_its_time_is_over(blob: bytes) -> None:
    started = time.monotonic()
    with opened(blob, limits=UnpackLimits(seconds=0.05)) as layer, pytest.raises(InvalidArchive, match="longer than"):
        layer.finish()
    assert time.monotonic() - started < 2.0


def test_S8_the_time_of_who_unpacks_counts_and_begins_with_the_first_read() -> None:
    blob = zstd_bomb(64 * MEBIBYTE)
    with opened(blob, limits=UnpackLimits(seconds=0.3)) as layer:
        time.sleep(0.35)
        layer.read(64 * KIBIBYTE)
        time.sleep(0.35)
        with pytest.raises(InvalidArchive, match="longer than"):
            layer.finish()
