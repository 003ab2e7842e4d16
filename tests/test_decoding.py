"""A layer's blob to its tar: every compression, every way to be damaged, and the thread that runs ahead."""

import gzip
import random
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store.decompressing import compression_of
from minibox_store.digest import Digest
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidArchive, MissingLibrary, StoreError
from minibox_store.limits import UnpackLimits
from minibox_store.memory import MemoryImages
from minibox_store.rootfs.decoding import open_layer
from minibox_store.rootfs.reading_ahead import ReadingAhead
from minibox_store.tar import Member, TarReader
from tests.support.compression import (
    LAYER,
    MEBIBYTE,
    gzip_with_fields,
    gzipped,
    opened,
    read_layer,
    skippable_frame,
    xz_streams,
    zstd_frames,
)
from tests.support.members import read_data, write_tar
from tests.support.peers import require_peer
from tests.support.sources import PiecewiseStream, descriptor_for
from tests.support.trials import drawing, trial_count

RAW = random.Random(1).randbytes(300_000) + bytes(3 * MEBIBYTE) + b"end"
_SHORT_SECONDS = 2.0

WHOLE = {
    "plain": RAW,
    "gzip": gzipped(RAW),
    "gzip of several members": gzipped(RAW[:1], b"", RAW[1:300_000], RAW[300_000:]),
    "gzip of many small members": gzipped(*[RAW[start : start + 60] for start in range(0, 60_000, 60)], RAW[60_000:]),
    "gzip with every field in its header": gzip_with_fields(RAW),
    "gzip with zeros behind its end": gzipped(RAW) + bytes(1_000_000),
    "stored gzip": gzip.compress(RAW, 0),
    "zstd": zstd_frames(RAW),
    "zstd of several frames": zstd_frames(RAW[:1], b"", RAW[1:300_000], RAW[300_000:]),
    "zstd with skippable frames": skippable_frame(b"first")
    + zstd_frames(RAW[:100_000])
    + skippable_frame(b"", 15)
    + zstd_frames(RAW[100_000:])
    + skippable_frame(bytes(200_000), 7),
}
NOT_WHOLE = {
    "gzip, a byte behind it": (gzipped(RAW) + b"x", "data behind the end of the gzip stream"),
    "gzip, zeros and a byte behind it": (gzipped(RAW) + bytes(600_000) + b"x", "data behind the end of the gzip"),
    "gzip, zeros and a member behind it": (gzipped(RAW) + b"\0" + gzipped(b"more"), "data behind the end of the gzip"),
    "gzip, half a magic behind it": (gzipped(RAW) + b"\x1f", "data behind the end of the gzip stream"),
    "gzip, half a member behind it": (gzipped(RAW) + gzipped(b"more")[:9], "gzip stream of layer .* is cut off"),
    "gzip, cut off in its trailer": (gzipped(RAW)[:-1], "gzip stream of layer .* is cut off"),
    "gzip, nothing but its magic": (b"\x1f\x8b\x08", "gzip stream of layer .* is cut off"),
    "gzip of a wrong CRC": (gzipped(RAW)[:-5] + b"xxxxx", "gzip stream of layer .* is damaged: .*incorrect"),
    "gzip of a wrong length": (gzipped(RAW)[:-1] + b"x", "gzip stream of layer .* is damaged: .*incorrect length"),
    "gzip of reserved flags": (b"\x1f\x8b\x08\xe0" + gzipped(RAW)[4:], "damaged: .*unknown header flags"),
    "gzip of a wrong header checksum": (gzip_with_fields(RAW).replace(b"comment", b"Comment"), "damaged: .*header crc"),
    "zstd, a byte behind it": (zstd_frames(RAW) + b"x", "data behind the end of the zstd stream"),
    "zstd, zeros behind it": (zstd_frames(RAW) + bytes(512), "data behind the end of the zstd stream"),
    "zstd, gzip behind it": (zstd_frames(RAW) + gzipped(RAW), "data behind the end of the zstd stream"),
    "zstd, cut off in its checksum": (zstd_frames(RAW)[:-1], "zstd stream of layer .* is cut off"),
    "zstd, cut off in a skippable frame": (skippable_frame(b"abc")[:-1], "zstd stream of layer .* is cut off"),
    "zstd, nothing but its magic": (b"\x28\xb5\x2f\xfd", "zstd stream of layer .* is cut off"),
    "zstd of a wrong checksum": (zstd_frames(RAW)[:-1] + b"x", "zstd stream of layer .* is damaged: .*checksum"),
    "zstd of a reserved block": (b"\x28\xb5\x2f\xfd\0\x58\x07\0\0", "zstd stream of layer .* is damaged"),
    "zstd that wants a dictionary": (b"\x28\xb5\x2f\xfd\x01\x58\x07\x01\0\0", "zstd stream of layer .* is damaged"),
}


class TestCompressions:
    @pytest.mark.parametrize("blob", WHOLE.values(), ids=WHOLE.keys())
    @pytest.mark.parametrize("step_bytes", [1 << 30, 1000], ids=["in one piece", "in small pieces"])
    def test_a_layer_gives_its_tar(self, blob: bytes, step_bytes: int) -> None:
        assert read_layer(opened(blob, RAW, step_bytes=step_bytes)) == RAW

    @pytest.mark.parametrize("blob", WHOLE.values(), ids=WHOLE.keys())
    def test_readinto_gives_the_same(self, blob: bytes) -> None:
        with opened(blob, RAW) as layer:
            found, buffer = bytearray(), bytearray(70_001)
            while count := layer.readinto(buffer):
                found += buffer[:count]
            assert layer.readinto(buffer) == 0
            assert layer.read(1) == b""
            layer.finish()
        assert found == RAW

    def test_a_layer_is_read_as_a_tar(self) -> None:
        contents = [
            (Member(name=f"f{number}", size_bytes=size), bytes(size)) for number, size in enumerate((0, 5, 9999))
        ]
        tar = write_tar(*contents)
        with opened(zstd_frames(tar), tar) as layer:
            reader = TarReader(layer)
            assert [(member, read_data(reader)) for member in reader] == contents
            layer.finish()

    def test_a_layer_in_xz_is_none_though_an_archive_may_be(self) -> None:
        packed = xz_streams(write_tar((Member(name="a"), b"")))
        assert compression_of(packed) == "none"
        assert read_layer(opened(packed, packed)) == packed
        with opened(packed, packed) as layer, pytest.raises(InvalidArchive, match=r"no tar header|cut off"):
            next(TarReader(layer))

    @pytest.mark.parametrize("blob", [b"", gzipped(b""), zstd_frames(b""), skippable_frame(b"")])
    def test_nothing_compressed_in_any_way_is_nothing(self, blob: bytes) -> None:
        assert read_layer(opened(blob)) == b""

    def test_the_compression_is_told_by_the_first_bytes_alone(self) -> None:
        assert [compression_of(blob) for blob in (gzipped(b""), zstd_frames(b""), skippable_frame(b"", 9))] == [
            "gzip",
            "zstd",
            "zstd",
        ]
        for plain in (b"", b"\x1f\x8b", b"\x1f\x8b\x07", b"(\xb5/", b"\x60*M\x18", b"BZh9", b"etc/passwd"):
            assert compression_of(plain) == "none"

    def test_what_gzip_itself_makes_is_read(self) -> None:
        done = subprocess.run([require_peer("gzip"), "-c"], input=RAW, stdout=subprocess.PIPE, check=True, timeout=60)
        assert read_layer(opened(done.stdout, RAW)) == RAW

    def test_what_zstd_itself_makes_is_read(self) -> None:
        command = [require_peer("zstd"), "-c", "-19", "--long=27"]
        done = subprocess.run(command, input=RAW, stdout=subprocess.PIPE, check=True, timeout=60)
        assert read_layer(opened(done.stdout, RAW)) == RAW

    @given(
        parts=st.lists(st.binary(max_size=3000), max_size=5),
        step_bytes=st.integers(1, 5000),
        read_bytes=st.integers(1, 5000),
        is_gzip=st.booleans(),
    )
    def test_parts_and_pieces_change_nothing(
        self, parts: list[bytes], step_bytes: int, read_bytes: int, is_gzip: bool
    ) -> None:
        whole = b"".join(parts)
        blob = gzipped(*parts) if is_gzip else zstd_frames(*parts)
        assert read_layer(opened(blob, whole, step_bytes=step_bytes), step_bytes=read_bytes) == whole


class TestDamage:
    @pytest.mark.parametrize(("blob", "sentence"), NOT_WHOLE.values(), ids=NOT_WHOLE.keys())
    @pytest.mark.parametrize("step_bytes", [1 << 30, 997], ids=["in one piece", "in small pieces"])
    def test_what_is_no_whole_stream_is_refused(self, blob: bytes, sentence: str, step_bytes: int) -> None:
        with pytest.raises(InvalidArchive, match=sentence):
            read_layer(opened(blob, RAW, step_bytes=step_bytes))

    @pytest.mark.parametrize("blob", WHOLE.values(), ids=WHOLE.keys())
    def test_a_blob_that_is_shorter_or_longer_than_its_descriptor_says_is_refused(self, blob: bytes) -> None:
        for given_bytes in (blob[:-1], blob[:3], b""):
            with pytest.raises(ContentMismatch, match=f"expected {len(blob)} bytes, got {len(given_bytes)} bytes"):
                read_layer(opened(blob, RAW, stream=PiecewiseStream(given_bytes)))
        with pytest.raises(ContentMismatch, match=f"expected {len(blob)} bytes, got more"):
            read_layer(opened(blob, RAW, stream=PiecewiseStream(blob + b"\0")))

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_a_tar_that_the_config_does_not_promise_is_refused_at_its_end(self, algorithm: str) -> None:
        layer = opened(gzipped(RAW), RAW[:-1], algorithm=algorithm)
        with layer:
            assert b"".join(iter(lambda: layer.read(1 << 20), b"")) == RAW
            for _ in range(2):
                with pytest.raises(ContentMismatch) as refused:
                    layer.finish()
        assert refused.value.expected == str(Digest.of(RAW[:-1], algorithm))
        assert refused.value.actual == str(Digest.of(RAW, algorithm))

    def test_finish_reads_what_nobody_has_read(self) -> None:
        for read_bytes in (0, 1, 400_000):
            with opened(gzipped(RAW), RAW) as layer:
                layer.read(read_bytes)
                layer.finish()
                layer.finish()
                assert layer.read(10) == b""
        with opened(gzipped(RAW)[:-1], RAW) as layer, pytest.raises(InvalidArchive, match="cut off"):
            layer.finish()

    def test_an_error_is_repeated_by_each_read_after_it(self) -> None:
        with opened(gzipped(RAW) + b"x", RAW) as layer:
            for call in (layer.finish, layer.finish, lambda: layer.read(1), lambda: layer.readinto(bytearray(1))):
                with pytest.raises(InvalidArchive, match="data behind"):
                    call()

    def test_a_blob_that_is_not_there_is_told_before_anything_is_read(self) -> None:
        with pytest.raises(BlobNotFound):
            open_layer(MemoryImages(), descriptor_for(b"x", LAYER), Digest.of(b""))

    def test_zstd_without_its_library_is_told_by_the_first_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for package in ("backports", "compression"):
            monkeypatch.setitem(sys.modules, f"{package}.zstd", None)
            if package in sys.modules:
                monkeypatch.delattr(sys.modules[package], "zstd", raising=False)
        with opened(zstd_frames(RAW), RAW) as layer, pytest.raises(MissingLibrary, match=r"minibox-store\[zstd\]"):
            layer.read(1)
        assert read_layer(opened(gzipped(RAW), RAW)) == RAW

    def test_a_read_of_no_limit_is_refused(self) -> None:
        with opened(RAW, RAW) as layer, pytest.raises(ValueError, match="negative"):
            layer.read(-1)

    @pytest.mark.timeout(600)
    def test_S10_changed_bytes_of_a_blob_give_the_tar_or_one_of_our_errors(self) -> None:
        tar = write_tar((Member(name="a", size_bytes=5000), bytes(range(250)) * 20), (Member(name="b"), b""))
        intact = [
            gzip_with_fields(tar),
            gzipped(tar[:700], tar[700:]),
            zstd_frames(tar),
            zstd_frames(tar[:700], tar[700:]),
        ]
        outcomes = {"whole": 0, "refused": 0}
        with drawing() as seed:
            chance = random.Random(seed)
            for _ in range(trial_count(3_000, 100_000)):
                blob = bytearray(chance.choice(intact))
                for _ in range(chance.choice((1, 1, 2, 8))):
                    place = chance.randrange(len(blob))
                    blob[place : place + chance.choice((0, 1, 1, 1, 5))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
                try:
                    assert read_layer(opened(bytes(blob), tar)) == tar
                    outcomes["whole"] += 1
                except StoreError:
                    outcomes["refused"] += 1
        assert min(outcomes.values()) > 30


class _Slow:
    """A stream that gives little at a time, and takes its time for that. It counts its reads."""

    def __init__(self, content: bytes, seconds: float) -> None:
        self._stream = PiecewiseStream(content, step_bytes=1)
        self._seconds = seconds
        self.reads = 0
        self.is_closed = False

    def readinto(self, buffer: memoryview, /) -> int:
        self.reads += 1
        time.sleep(self._seconds)
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self.is_closed = True


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "minibox-decode"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not decoding_threads()


class TestTheThread:
    def test_a_layer_that_nobody_reads_has_none(self) -> None:
        stream = PiecewiseStream(b"")
        with opened(gzipped(RAW), RAW, stream=stream):
            assert not decoding_threads()
        assert stream.closed_times == 1

    @pytest.mark.parametrize("read_bytes", [1, 700_000])
    def test_it_ends_with_a_reader_that_fails(self, read_bytes: int) -> None:
        class Failure(Exception):
            pass

        def fail() -> None:
            with opened(zstd_frames(bytes(64 * MEBIBYTE))) as layer:
                layer.read(read_bytes)
                raise Failure

        started = time.monotonic()
        with pytest.raises(Failure):
            fail()
        assert not decoding_threads()
        assert time.monotonic() - started < _SHORT_SECONDS

    def test_it_ends_by_itself_where_the_layer_does(self) -> None:
        with opened(gzipped(b"small"), b"small") as layer:
            layer.finish()
            deadline = time.monotonic() + _SHORT_SECONDS
            while decoding_threads() and time.monotonic() < deadline:
                time.sleep(0.001)
            assert not decoding_threads()

    def test_it_ends_with_the_read_of_the_blob_that_it_is_at(self) -> None:
        stream = _Slow(gzipped(RAW), 0.1)
        layer = opened(gzipped(RAW), RAW, UnpackLimits(seconds=0.15), stream=stream)
        with pytest.raises(InvalidArchive, match=r"longer than 0\.15 seconds"):
            layer.read(1)
        layer.close()
        assert not decoding_threads()
        assert stream.is_closed
        assert stream.reads <= 3

    def test_a_closed_layer_gives_nothing_more(self) -> None:
        stream = PiecewiseStream(gzipped(RAW))
        layer = opened(gzipped(RAW), RAW, stream=stream)
        layer.read(1)
        layer.close()
        layer.close()
        assert stream.closed_times >= 1
        for call in (layer.finish, lambda: layer.read(1), lambda: layer.readinto(bytearray(1))):
            with pytest.raises(ValueError, match="closed"):
                call()

    def test_a_system_that_gives_no_thread_gets_its_layer_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with opened(gzipped(RAW), RAW) as layer:
            assert layer.read(3) == RAW[:3]
            layer.finish()
        stream = PiecewiseStream(gzipped(RAW))
        with opened(gzipped(RAW), RAW, stream=stream) as layer:
            layer.read(1)
        assert stream.closed_times == 1

    def test_it_runs_ahead_by_no_more_than_its_depth(self) -> None:
        made: list[int] = []

        def pieces() -> Generator[bytes, None, None]:
            for number in range(100):
                made.append(number)
                yield b"%d" % number

        ahead = ReadingAhead(pieces(), 3)
        assert ahead.next_piece(_SHORT_SECONDS) == b"0"
        time.sleep(0.05)
        # One was taken, three wait, and one is in hand.
        assert len(made) <= 5
        assert [ahead.next_piece(_SHORT_SECONDS) for _ in range(99)] == [b"%d" % number for number in range(1, 100)]
        assert ahead.next_piece(_SHORT_SECONDS) == b""
        ahead.close()

    def test_an_error_comes_behind_the_pieces_that_were_made_before_it(self) -> None:
        def pieces() -> Generator[bytes, None, None]:
            yield b"1"
            yield b"2"
            raise KeyboardInterrupt

        ahead = ReadingAhead(pieces(), 4)
        assert [ahead.next_piece(_SHORT_SECONDS), ahead.next_piece(_SHORT_SECONDS)] == [b"1", b"2"]
        with pytest.raises(KeyboardInterrupt):
            ahead.next_piece(_SHORT_SECONDS)
        ahead.close()

    def test_a_piece_that_does_not_come_in_time_is_none_at_all_and_comes_later(self) -> None:
        go_on = threading.Event()

        def pieces() -> Generator[bytes, None, None]:
            go_on.wait(_SHORT_SECONDS)
            yield b"late"

        ahead = ReadingAhead(pieces(), 1)
        assert ahead.next_piece(0.01) is None
        go_on.set()
        assert ahead.next_piece(_SHORT_SECONDS) == b"late"
        ahead.close()

    @pytest.mark.parametrize("read_pieces", [0, 1, 5])
    def test_the_generator_is_closed_with_it(self, read_pieces: int) -> None:
        closed = threading.Event()

        def pieces() -> Generator[bytes, None, None]:
            try:
                while True:
                    yield b"piece"
            finally:
                closed.set()

        generator = pieces()
        next(generator)
        ahead = ReadingAhead(generator, 2)
        for _ in range(read_pieces):
            ahead.next_piece(_SHORT_SECONDS)
        ahead.close()
        assert closed.is_set()
        assert not decoding_threads()
