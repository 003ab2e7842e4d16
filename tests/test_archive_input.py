"""What an archive is read from: files, pipes and streams, plain and compressed, whole, damaged, cut off and endless."""

import bz2
import contextlib
import functools
import gc
import gzip
import io
import lzma
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from minibox_store import Store
from minibox_store.archive import ArchiveReader
from minibox_store.archive.input import ArchiveInput, open_input
from minibox_store.errors import InvalidArchive, InvalidArgument, MissingLibrary, StoreError, StoreUnavailable
from minibox_store.limits import DEFAULT_LIMITS, Limits, TarLimits
from minibox_store.protocols import FileRange, ReadableFile
from tests.support.archives import members_of, pack, piped
from tests.support.compression import (
    gzip_with_fields,
    gzipped,
    skippable_frame,
    xz_of_window,
    xz_streams,
    zstd_frame_of_window,
    zstd_frames,
    zstd_of_window,
)
from tests.support.images import OCI_LAYER, Layer, build_image, digest_of
from tests.support.invariants import find_leftovers
from tests.support.layouts import read_layout_blobs, read_layout_names
from tests.support.peers import require_peer
from tests.support.tars import ForwardOnly
from tests.support.trials import drawing, trial_count

MEBIBYTE = 1 << 20
NAME = "quay.io/team/app:1.0"
IMAGE = build_image()
GOOD = pack(members_of(IMAGE, NAME))
RAW = random.Random(1).randbytes(300_000) + bytes(3 * MEBIBYTE) + b"end"

WHOLE = {
    "plain": RAW,
    "gzip": gzipped(RAW),
    "gzip of several members": gzipped(RAW[:1], b"", RAW[1:300_000], RAW[300_000:]),
    "gzip with every field in its header": gzip_with_fields(RAW),
    "gzip with zeros behind its end": gzipped(RAW) + bytes(1_000_000),
    "zstd": zstd_frames(RAW),
    "zstd of several frames": zstd_frames(RAW[:1], b"", RAW[1:300_000], RAW[300_000:]),
    "zstd with skippable frames": skippable_frame(b"1") + zstd_frames(RAW) + skippable_frame(bytes(2000), 15),
    "xz": xz_streams(RAW),
    "xz of several streams": xz_streams(RAW[:1], b"", RAW[1:300_000], RAW[300_000:]),
    "xz of many small streams": xz_streams(*[RAW[start : start + 60] for start in range(0, 30_000, 60)], RAW[30_000:]),
    "xz with padding": xz_streams(RAW[:9]) + bytes(4) + xz_streams(RAW[9:]) + bytes(1_000_000),
    "xz with its check left out": lzma.compress(RAW, check=lzma.CHECK_NONE, preset=0),
    "xz with a filter for programs": lzma.compress(
        RAW, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_DELTA, "dist": 3}, {"id": lzma.FILTER_LZMA2}]
    ),
}
NOT_WHOLE = {
    "gzip, a byte behind it": (gzipped(RAW) + b"x", "data behind the end of the gzip stream of the archive"),
    "gzip, cut off": (gzipped(RAW)[:-1], "the gzip stream of the archive is cut off"),
    "gzip of a wrong CRC": (gzipped(RAW)[:-5] + b"xxxxx", "the gzip stream of the archive is damaged"),
    "zstd, zeros behind it": (zstd_frames(RAW) + bytes(512), "data behind the end of the zstd stream"),
    "zstd, cut off": (zstd_frames(RAW)[:-1], "the zstd stream of the archive is cut off"),
    "zstd of a wrong checksum": (zstd_frames(RAW)[:-1] + b"x", "the zstd stream of the archive is damaged"),
    "xz, a byte behind it": (xz_streams(RAW) + b"x", "data behind the end of the xz stream"),
    "xz, gzip behind it": (xz_streams(RAW) + gzipped(RAW), "data behind the end of the xz stream"),
    "xz, padding and a byte behind it": (xz_streams(RAW) + bytes(8) + b"x", "data behind the end of the xz stream"),
    "xz, padded by three": (xz_streams(RAW) + bytes(3), "no multiple of four zeros"),
    "xz, padded by 4,097": (xz_streams(RAW) + bytes(4097), "no multiple of four zeros"),
    "xz, two streams with three zeros between": (
        xz_streams(RAW) + bytes(3) + xz_streams(RAW),
        "no multiple of four zeros",
    ),
    "xz, cut off in its footer": (xz_streams(RAW)[:-1], "the xz stream of the archive is cut off"),
    "xz, cut off inside": (xz_streams(RAW)[:10_000], "the xz stream of the archive is cut off"),
    "xz, nothing but its magic": (b"\xfd7zXZ\0", "the xz stream of the archive is cut off"),
    "xz, less than its magic": (b"\xfd7zX", "the xz stream of the archive is cut off"),
    "xz of another magic": (b"\xfd7zXY\0" + bytes(100), "the xz stream of the archive is damaged"),
    "xz of a wrong byte": (
        xz_streams(RAW)[:100_000] + b"\0\xff\0\xff" + xz_streams(RAW)[100_004:],
        "the xz stream of the archive is damaged",
    ),
}


def from_bytes(content: bytes, _: Path) -> contextlib.AbstractContextManager[ReadableFile]:
    return io.BytesIO(content)


def from_pipe(content: bytes, _: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    return piped(content)


@contextmanager
def from_bare_pipe(content: bytes, _: Path) -> Iterator[BinaryIO]:
    with piped(content) as pipe, open(os.dup(pipe.fileno()), "rb", buffering=0) as bare:
        yield bare


@contextmanager
def from_file(content: bytes, folder: Path, *, buffering: int = 0) -> Iterator[BinaryIO]:
    (folder / "archive").write_bytes(b"before" + content)
    with open(folder / "archive", "rb", buffering=buffering) as file:
        file.seek(6)
        yield file


@contextmanager
def from_one_byte_at_a_time(content: bytes, _: Path) -> Iterator[ReadableFile]:
    # The beginning by bytes; all of it would take too long.
    head, rest = ForwardOnly(content[:3000], 1), ForwardOnly(content[3000:], 70_001)

    class Stream:
        def read(self, size: int, /) -> bytes:
            return head.read(size) or rest.read(size)

    yield Stream()


Opener = Callable[[bytes, Path], contextlib.AbstractContextManager[ReadableFile]]
SOURCES: dict[str, Opener] = {
    "bytes": from_bytes,
    "a pipe": from_pipe,
    "a bare pipe": from_bare_pipe,
    "a bare file": from_file,
    "a buffered file": functools.partial(from_file, buffering=-1),
    "one byte at a time": from_one_byte_at_a_time,
}


def read_all(source: ArchiveInput, step_bytes: int = 70_001) -> bytes:
    return b"".join(iter(lambda: source.read(step_bytes), b""))


def input_of(content: bytes, limits: Limits = DEFAULT_LIMITS) -> ArchiveInput:
    return open_input(io.BytesIO(content), limits)


class TestTelling:
    @pytest.mark.parametrize("opener", SOURCES.values(), ids=SOURCES.keys())
    @pytest.mark.parametrize("packed", WHOLE.values(), ids=WHOLE.keys())
    def test_the_bytes_come_out_whatever_they_are_read_from(
        self, packed: bytes, opener: Opener, tmp_path: Path
    ) -> None:
        with opener(packed, tmp_path) as file:
            source = open_input(file)
            assert read_all(source) == RAW
            assert source.read(1) == b""

    @pytest.mark.parametrize("packed", WHOLE.values(), ids=WHOLE.keys())
    def test_readinto_gives_the_same(self, packed: bytes) -> None:
        source = input_of(packed)
        found, buffer = bytearray(), memoryview(bytearray(70_001))
        while count := source.readinto(buffer):
            found += buffer[:count]
        assert found == RAW

    @pytest.mark.parametrize("packed", [b"", gzipped(b""), zstd_frames(b""), xz_streams(b""), skippable_frame(b"")])
    @pytest.mark.parametrize("opener", SOURCES.values(), ids=SOURCES.keys())
    def test_nothing_compressed_in_any_way_is_nothing(self, packed: bytes, opener: Opener, tmp_path: Path) -> None:
        with opener(packed, tmp_path) as file:
            assert open_input(file).read(10) == b""

    @pytest.mark.parametrize("opener", SOURCES.values(), ids=SOURCES.keys())
    @pytest.mark.parametrize("beginning", [b"\x1f", b"\x1f\x8b", b"\xfd7z", b"\x28\xb5\x2f", b"x"])
    def test_what_is_shorter_than_any_compression_is_passed_on(
        self, beginning: bytes, opener: Opener, tmp_path: Path
    ) -> None:
        with opener(beginning, tmp_path) as file:
            assert read_all(open_input(file)) == beginning

    @pytest.mark.parametrize("opener", SOURCES.values(), ids=SOURCES.keys())
    @pytest.mark.parametrize(("packed", "sentence"), NOT_WHOLE.values(), ids=NOT_WHOLE.keys())
    def test_what_is_damaged_is_refused_by_that_read_and_by_each_after_it(
        self, packed: bytes, sentence: str, opener: Opener, tmp_path: Path
    ) -> None:
        with opener(packed, tmp_path) as file:
            source = open_input(file)
            for _ in range(3):
                with pytest.raises(InvalidArchive, match=sentence):
                    read_all(source)

    @pytest.mark.parametrize("pack_twice", [gzipped, zstd_frames, xz_streams])
    def test_S8_one_compression_is_undone_and_no_second(self, pack_twice: Callable[[bytes], bytes]) -> None:
        inner = pack_twice(GOOD)
        assert read_all(input_of(pack_twice(inner))) == inner
        with pytest.raises(InvalidArchive, match="no tar header at byte 0"):
            list(ArchiveReader(io.BytesIO(pack_twice(inner))).iter_blobs())


class TestFiles:
    @pytest.mark.parametrize("buffering", [0, -1, 64])
    def test_a_plain_file_is_a_range_and_its_position_stays(self, buffering: int, tmp_path: Path) -> None:
        with from_file(RAW, tmp_path, buffering=buffering) as file:
            source = open_input(file)
            assert source.file_range == FileRange(file_descriptor=file.fileno(), offset=6, size_bytes=len(RAW))
            assert read_all(source) == RAW
            assert file.tell() == 6

    def test_bytes_of_a_plain_file_can_be_passed_unread_and_never_back(self, tmp_path: Path) -> None:
        with from_file(RAW, tmp_path) as file:
            source = open_input(file)
            assert source.seekable()
            assert source.read(2) == RAW[:2]
            source.seek(299_000, os.SEEK_CUR)
            assert source.read(1000) == RAW[299_002:300_002]
            for offset, whence in ((0, os.SEEK_SET), (-1, os.SEEK_CUR), (0, os.SEEK_END)):
                with pytest.raises(ValueError, match="forward only"):
                    source.seek(offset, whence)
            source.seek(len(RAW), os.SEEK_CUR)
            assert source.read(1) == b""

    @pytest.mark.parametrize("packed", [gzipped(RAW), zstd_frames(RAW), xz_streams(RAW)], ids=["gzip", "zstd", "xz"])
    @pytest.mark.parametrize("buffering", [0, -1])
    def test_a_compressed_file_is_none(self, packed: bytes, buffering: int, tmp_path: Path) -> None:
        with from_file(packed, tmp_path, buffering=buffering) as file:
            source = open_input(file)
            assert source.file_range is None
            assert not source.seekable()
            with pytest.raises(ValueError, match="forward only"):
                source.seek(1, os.SEEK_CUR)
            assert ArchiveReader(file).file_bytes == 0

    def test_what_is_derived_from_a_file_is_asked_for_its_bytes(self, tmp_path: Path) -> None:
        class Turned(io.FileIO):
            def readinto(self, buffer: object, /) -> int:
                view = memoryview(cast("bytearray", buffer))
                count = super().readinto(view) or 0
                view[:count] = bytes(view[:count])[::-1]
                return count

        (tmp_path / "file").write_bytes(b"321")
        with Turned(str(tmp_path / "file")) as file:
            source = open_input(cast("BinaryIO", file))
            assert source.file_range is None
            assert source.read(10) == b"123"

    def test_what_the_system_makes_up_as_it_is_read_is_read(self) -> None:
        with open("/proc/self/stat", "rb", buffering=0) as file:
            source = open_input(file)
            assert source.file_range is None
            assert source.read(10).startswith(str(os.getpid()).encode())

    def test_a_file_that_nobody_else_holds_stays_open(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(RAW)
        source = open_input(open(tmp_path / "file", "rb"))  # noqa: SIM115  # that nobody holds it is what is tried
        gc.collect()
        others = [open(os.devnull, "rb") for _ in range(3)]  # noqa: SIM115  # they would get its number
        assert read_all(source) == RAW
        for each in others:
            each.close()
        cast("BinaryIO", source._file).close()  # or else it would warn of what it did not close

    def test_a_file_that_becomes_shorter_ends_there(self, tmp_path: Path) -> None:
        with from_file(RAW, tmp_path) as file:
            source = open_input(file)
            os.truncate(tmp_path / "archive", 1000)
            assert read_all(source) == RAW[:994]

    def test_a_file_that_grows_is_read_as_far_as_it_went(self, tmp_path: Path) -> None:
        with from_file(RAW, tmp_path) as file:
            source = open_input(file)
            with open(tmp_path / "archive", "ab") as more:
                more.write(b"more")
            assert read_all(source) == RAW


class TestWhatACallerReadsThrough:
    @pytest.mark.parametrize(
        ("opener", "compress"), [(gzip.open, gzip.compress), (bz2.open, bz2.compress), (lzma.open, lzma.compress)]
    )
    def test_errors_of_its_compression_are_those_of_an_archive(
        self,
        opener: Callable[[BinaryIO], contextlib.AbstractContextManager[BinaryIO]],
        compress: Callable[[bytes], bytes],
    ) -> None:
        whole = compress(GOOD)
        wrong = whole[: len(whole) // 2] + b"\xff" * 20 + whole[len(whole) // 2 + 20 :]
        for damaged in (whole[:-9], wrong, b"none at all"):
            with opener(io.BytesIO(damaged)) as file, pytest.raises(InvalidArchive, match="compression is damaged"):
                read_all(open_input(file))
        with opener(io.BytesIO(whole)) as file:
            assert read_all(open_input(file)) == GOOD

    @pytest.mark.parametrize("buffering", [0, -1])
    def test_what_is_not_open_for_reading_is_told_so(self, buffering: int, tmp_path: Path) -> None:
        for path in (os.devnull, tmp_path / "file"):
            with (
                open(path, "wb", buffering=buffering) as file,
                pytest.raises(InvalidArgument, match="not open for reading"),
            ):
                open_input(file).read(1)

    def test_what_stands_at_its_beginning_but_is_not_open_for_reading_is_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(GOOD)
        opened = os.open(tmp_path / "file", os.O_WRONLY)
        with open(opened, "wb", buffering=0) as file, pytest.raises(InvalidArgument, match="not open for reading"):
            open_input(file).read(1)

    @pytest.mark.parametrize(
        "file", [None, 5, b"image.tar", io.StringIO("image")], ids=["None", "a number", "bytes", "a text"]
    )
    def test_what_gives_no_bytes_is_refused_by_the_load_too(self, file: Any, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="neither a path nor a file that bytes can be read from"):
            Store(tmp_path / "store").load(file)
        assert find_leftovers(tmp_path / "store") == []

    def test_what_is_closed_is_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(GOOD)
        for file in (io.BytesIO(GOOD), (tmp_path / "file").open("rb"), (tmp_path / "file").open("rb", buffering=0)):
            file.close()
            with pytest.raises(InvalidArgument, match="it is closed"):
                Store(tmp_path / "store").load(file)

    def test_what_the_system_says_of_the_file_names_it_and_not_the_store(self, tmp_path: Path) -> None:
        # There is nothing at the address 0.
        with (
            open("/proc/self/mem", "rb", buffering=0) as file,
            pytest.raises(StoreUnavailable, match="cannot use /proc/self/mem: Input/output error"),
        ):
            Store(tmp_path / "store").load(file)

    @pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError("the other side is gone")])
    def test_what_a_socket_says_of_its_connection_is_no_damage_of_the_archive(
        self, error: OSError, tmp_path: Path
    ) -> None:
        class Cut:
            def read(self, size: int) -> bytes:
                raise error

        with pytest.raises(StoreUnavailable, match=str(error)):
            Store(tmp_path / "store").load(Cut())

    def test_a_peer_that_keeps_still_for_too_long_is_no_damage(self, store: Store) -> None:
        here, there = socket.socketpair()
        with here, there:
            there.sendall(GOOD[:700])
            here.settimeout(0.1)
            with here.makefile("rb") as file, pytest.raises(StoreUnavailable, match="timed out"):
                store.load(file)

    @pytest.mark.parametrize("given", ["abc", b"more than was asked for", 7])
    def test_a_file_that_gives_no_bytes_or_too_many_is_told_so(self, given: object, tmp_path: Path) -> None:
        class Odd:
            def read(self, size: int) -> object:
                return given * size if isinstance(given, bytes) else given

        with pytest.raises(InvalidArgument, match="it gives something else"):
            Store(tmp_path / "store").load(Odd())  # type: ignore[arg-type]  # a file that breaks the rules of its type is what is tried

    @pytest.mark.parametrize("told", [-1, 1 << 30, True, 1.0, "x"])
    def test_a_file_that_miscounts_what_it_gives_is_told_so(self, told: object, store: Store) -> None:
        class Odd:
            def readinto(self, buffer: memoryview) -> object:
                return told

        with pytest.raises(InvalidArgument, match="it says that it has given"):
            store.load(Odd())  # type: ignore[arg-type]  # a file that breaks the rules of its type is what is tried

    def test_a_file_that_another_was_detached_from_is_told_so(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(GOOD)
        file = (tmp_path / "file").open("rb")
        with file.detach(), pytest.raises(InvalidArgument, match="detached"):
            store.load(file)

    def test_a_path_of_bytes_is_told_so(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(GOOD)
        with os.scandir(os.fsencode(tmp_path)) as entries:
            file: Any = next(entry for entry in entries if entry.name == b"file")
        with pytest.raises(InvalidArgument, match="its path is no text"):
            store.load(file)

    @pytest.mark.parametrize("names", [{NAME: "b:1"}, lambda _: 5, lambda _: b"b:1", lambda _: True])
    def test_names_that_are_none_are_refused_by_the_name_of_the_argument(self, names: Any, store: Store) -> None:
        with pytest.raises(InvalidArgument) as caught:
            store.load(io.BytesIO(GOOD), names=names)
        assert caught.value.name == "names"
        assert not store.images()

    @pytest.mark.parametrize("buffering", [0, -1])
    def test_a_pipe_that_does_not_wait_is_told_so(self, buffering: int) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with (
            open(writing, "wb", buffering=0),
            open(reading, "rb", buffering=buffering) as file,
            pytest.raises(InvalidArgument, match="does not wait"),
        ):
            open_input(file).read(1)

    def test_what_lies_in_a_pipe_is_given_though_its_buffer_is_not_full(self) -> None:
        reading, writing = os.pipe()
        with open(writing, "wb", buffering=0) as other, open(reading, "rb") as file:
            source = open_input(file)
            for piece in (b"tar!", b"more", b"x"):
                other.write(piece)
                assert source.read(1000) == piece


class TestMissingLibraries:
    def test_zstd_is_told_by_the_load(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for package in ("backports", "compression"):
            monkeypatch.setitem(sys.modules, f"{package}.zstd", None)
            if package in sys.modules:
                monkeypatch.delattr(sys.modules[package], "zstd", raising=False)
        store = Store(tmp_path / "store", durability="none")
        with pytest.raises(MissingLibrary, match=r"of the archive needs .*minibox-store\[zstd\]"):
            store.load(io.BytesIO(zstd_frames(GOOD)))
        store.load(io.BytesIO(xz_streams(GOOD)))

    def test_a_python_without_xz_reads_everything_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lzma", None)
        with pytest.raises(InvalidArchive, match="this Python was built without"):
            input_of(b"\xfd7zXZ\0" + bytes(100)).read(1)
        assert read_all(input_of(gzipped(RAW))) == RAW


class TestWindows:
    @pytest.mark.parametrize("window_log", [28, 31, 41])
    def test_S8_a_huge_window_of_zstd_is_refused(self, window_log: int) -> None:
        with pytest.raises(InvalidArchive, match=f"the archive asks for a window of more than {1 << 27} bytes"):
            read_all(input_of(zstd_frames(b"innocent") + zstd_frame_of_window(window_log)))

    @pytest.mark.parametrize("of_window", [zstd_of_window, xz_of_window], ids=["zstd", "xz"])
    def test_S8_the_largest_window_is_what_the_limits_say(self, of_window: Callable[[bytes, int], bytes]) -> None:
        packed = of_window(RAW, 22)
        assert read_all(input_of(packed, Limits(archive_window_log=22))) == RAW
        with pytest.raises(InvalidArchive, match=f"the archive asks for a window of more than {1 << 21} bytes"):
            read_all(input_of(packed, Limits(archive_window_log=21)))


PACKINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzipped, "zstd": zstd_frames, "xz": xz_streams}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store", durability="none")


class TestLoading:
    @pytest.mark.parametrize("opener", SOURCES.values(), ids=SOURCES.keys())
    @pytest.mark.parametrize("compress", PACKINGS.values(), ids=PACKINGS.keys())
    def test_a_compressed_archive_is_loaded(
        self, compress: Callable[[bytes], bytes], opener: Opener, store: Store, tmp_path: Path
    ) -> None:
        with opener(compress(GOOD), tmp_path) as file:
            (loaded,) = store.load(cast("BinaryIO", file))
        assert (loaded.name, str(loaded.digest)) == (NAME, IMAGE.digest)
        assert read_layout_blobs(Path(store.root)) == IMAGE.blobs

    @pytest.mark.parametrize("compress", PACKINGS.values(), ids=PACKINGS.keys())
    def test_a_path_is_told_by_its_content_whatever_it_is_called(
        self, compress: Callable[[bytes], bytes], store: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "image.tar").write_bytes(compress(GOOD))
        store.load(tmp_path / "image.tar")
        assert list(read_layout_names(Path(store.root))) == [NAME]

    @pytest.mark.parametrize("compress", PACKINGS.values(), ids=PACKINGS.keys())
    def test_one_that_is_cut_off_anywhere_or_followed_by_more_leaves_nothing(
        self, compress: Callable[[bytes], bytes], store: Store
    ) -> None:
        packed = compress(GOOD)
        lengths = {*range(0, len(packed), max(1, len(packed) // 40)), *range(len(packed) - 20, len(packed))}
        for damaged in (*(packed[:length] for length in sorted(lengths)), packed + b"x", packed + packed):
            with pytest.raises(InvalidArchive):
                store.load(io.BytesIO(damaged))
        assert read_layout_blobs(Path(store.root)) == {}
        assert not store.images()
        assert not list((Path(store.root) / "ingest").glob("[0-9a-f]*[0-9a-f]"))

    @pytest.mark.timeout(600)
    def test_S10_changed_bytes_of_an_archive_give_the_image_or_one_of_our_errors(self, tmp_path: Path) -> None:
        small = build_image([Layer(content=b"", media_type=OCI_LAYER, diff_id=digest_of(b""))])
        packed = [compress(pack(members_of(small, NAME))) for compress in PACKINGS.values()]
        outcomes = {"whole": 0, "refused": 0}
        with drawing() as seed:
            chance = random.Random(seed)
            for number in range(trial_count(600, 20_000)):
                content = bytearray(chance.choice(packed))
                for _ in range(chance.choice((0, 1, 1, 2, 8))):
                    place = chance.randrange(len(content))
                    content[place : place + chance.choice((0, 1, 1, 5))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
                store = Store(tmp_path / str(number % 50), durability="none")
                try:
                    (loaded,) = store.load(io.BytesIO(bytes(content)))
                except StoreError:
                    outcomes["refused"] += 1
                else:
                    assert (loaded.name, str(loaded.digest)) == (NAME, small.digest)
                    outcomes["whole"] += 1
        assert min(outcomes.values()) > 30


def test_an_archive_has_no_more_members_than_the_limits_say() -> None:
    count = len(members_of(IMAGE, NAME))
    assert len(list(ArchiveReader(io.BytesIO(GOOD), Limits(archive_members=count)).iter_blobs())) == count - 1
    with pytest.raises(InvalidArchive, match=f"it has more than {count - 1} members"):
        list(ArchiveReader(io.BytesIO(GOOD), Limits(archive_members=count - 1)).iter_blobs())


def test_the_limits_on_the_tar_are_those_of_the_store() -> None:
    with pytest.raises(InvalidArchive, match="cannot have"):
        list(ArchiveReader(io.BytesIO(GOOD), Limits(tar=TarLimits(member_bytes=10))).iter_blobs())


@pytest.mark.parametrize(
    "command",
    [("gzip", "-9"), ("xz", "-T2", "--block-size=1KiB"), ("zstd", "-19"), ("zstd", "--format=xz")],
    ids=" ".join,
)
def test_real_programs_compress_what_is_read(command: tuple[str, ...]) -> None:
    program, *options = command
    done = subprocess.run(
        [require_peer(program), *options, "-c"], input=GOOD, stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert read_all(input_of(done.stdout)) == GOOD
