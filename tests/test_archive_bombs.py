"""Row S8: an archive that becomes too much, by any way there is, is refused within bounds of bytes, time and memory."""

import gzip
import hashlib
import io
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from minibox_store import Store
from minibox_store.archive import ArchiveReader
from minibox_store.archive.input import ArchiveInput, open_input
from minibox_store.errors import InvalidArchive
from minibox_store.limits import DEFAULT_LIMITS, Limits, TarLimits
from minibox_store.tar import Member, MemberKind, TarReader, encode_header, padding
from tests.support.archives import members_of, pack, piped
from tests.support.compression import (
    grows_by_less_than,
    gzip_bomb,
    gzipped,
    skippable_frame,
    xz_bomb,
    xz_of_window,
    xz_streams,
    zstd_bomb,
    zstd_frames,
)
from tests.support.images import build_image, random_layer
from tests.support.layouts import read_layout_blobs
from tests.support.tars import Joined

KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
FLOOR = 32 * MEBIBYTE
LIMITS = Limits(archive_ratio_floor_bytes=FLOOR)
DEFAULT_FLOOR = 1 << 30
NAME = "quay.io/team/app:1.0"
READ_AHEAD = 512 * KIBIBYTE

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzipped, "zstd": zstd_frames, "xz": xz_streams}
BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip_bomb(96 * MEBIBYTE),
    "gzip of several members": lambda: gzip_bomb(16 * MEBIBYTE) * 6,
    "zstd": lambda: zstd_bomb(256 * MEBIBYTE),
    "zstd of several frames": lambda: zstd_bomb(16 * MEBIBYTE) * 16,
    "xz": lambda: xz_bomb(96 * MEBIBYTE),
    "xz of several streams": lambda: xz_bomb(16 * MEBIBYTE) * 6,
}


def drained_bytes(source: ArchiveInput) -> int:
    """Return how many bytes come before the refusal for becoming too many."""
    given: list[int] = []
    with pytest.raises(InvalidArchive, match="which is the limit"):
        given.extend(iter(lambda: len(source.read(MEBIBYTE)), 0))
    return sum(given)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_S8_a_bomb_is_refused_by_its_ratio_in_little_memory(
    bomb: Callable[[], bytes], in_file: bool, tmp_path: Path
) -> None:
    blob = bomb()
    (tmp_path / "file").write_bytes(blob)
    assert len(blob) < FLOOR // 250

    def refuse() -> None:
        if in_file:
            with open(tmp_path / "file", "rb", buffering=0) as file:
                assert FLOOR - MEBIBYTE <= drained_bytes(open_input(file, LIMITS)) <= FLOOR
        else:
            with piped(blob) as file:
                assert FLOOR - MEBIBYTE <= drained_bytes(open_input(file, LIMITS)) <= FLOOR

    assert grows_by_less_than(16 * MEBIBYTE, refuse)


@pytest.mark.parametrize("blob", [zstd_bomb(64 * MEBIBYTE) * 17, xz_bomb(64 * MEBIBYTE) * 17], ids=["zstd", "xz"])
def test_S8_the_usual_limits_refuse_a_bomb_too(blob: bytes) -> None:
    def refuse() -> None:
        with pytest.raises(InvalidArchive, match=f"becomes more than {DEFAULT_FLOOR} bytes"):
            drain(open_input(io.BytesIO(blob)))

    assert grows_by_less_than(16 * MEBIBYTE, refuse)


def drain(source: ArchiveInput) -> int:
    buffer = memoryview(bytearray(MEBIBYTE))
    return sum(iter(lambda: source.readinto(buffer), 0))


def member_bomb(size_bytes: int) -> Iterator[bytes]:
    """Yield a tar whose first blob is so many zeros."""
    zeros = bytes(MEBIBYTE)
    digest = hashlib.sha256(bytes(size_bytes)).hexdigest()
    yield encode_header(Member(name=f"blobs/sha256/{digest}", size_bytes=size_bytes))
    for _ in range(size_bytes // MEBIBYTE):
        yield zeros
    yield bytes(1024)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_S8_a_load_of_a_bomb_is_refused_and_leaves_nothing(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(compress(b"".join(member_bomb(64 * MEBIBYTE))))

    def refuse() -> None:
        store = Store(tmp_path / "store", durability="none", limits=LIMITS)
        with open(tmp_path / "file", "rb", buffering=0) as file, piped(file.read()) as pipe:
            for source in (tmp_path / "file", pipe):
                with pytest.raises(InvalidArchive, match=f"the archive becomes more than {FLOOR} bytes"):
                    store.load(source)
        assert read_layout_blobs(tmp_path / "store") == {}
        assert not list((tmp_path / "store" / "ingest").glob("[0-9a-f]*[0-9a-f]"))

    assert grows_by_less_than(20 * MEBIBYTE, refuse)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_S8_what_shrinks_well_is_taken_up_to_the_very_bound(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    tar = bytes(4 * MEBIBYTE)
    blob = compress(tar)
    ratio = len(tar) // len(blob)
    (tmp_path / "file").write_bytes(blob)
    for in_file in (False, True):
        with open(tmp_path / "file", "rb") as file:
            source = cast("BinaryIO", file if in_file else io.BytesIO(blob))
            taken = open_input(source, Limits(archive_ratio_floor_bytes=1, archive_ratio=ratio + 1))
            assert drain(taken) == len(tar)
        with open(tmp_path / "file", "rb") as file:
            source = cast("BinaryIO", file if in_file else io.BytesIO(blob))
            refused = open_input(source, Limits(archive_ratio_floor_bytes=1, archive_ratio=ratio))
            sentence = f"the archive becomes more than {ratio * len(blob)} bytes, .* for one of {len(blob)} bytes"
            with pytest.raises(InvalidArchive, match=sentence):
                drain(refused)
    assert drain(open_input(io.BytesIO(blob), Limits(archive_ratio_floor_bytes=len(tar), archive_ratio=1))) == len(tar)


def test_S8_zeros_at_the_beginning_of_a_file_are_no_bomb_and_in_a_pipe_they_are(tmp_path: Path) -> None:
    zero_bytes = 160 * MEBIBYTE  # more than what is read ahead may become
    incompressible = random_layer(2 * MEBIBYTE).content
    blob = zstd_bomb(zero_bytes) + zstd_frames(incompressible)
    (tmp_path / "file").write_bytes(blob)
    with open(tmp_path / "file", "rb") as file:
        assert drain(open_input(file, LIMITS)) == zero_bytes + len(incompressible)
    with piped(blob) as pipe:
        assert drained_bytes(open_input(pipe, LIMITS)) < zero_bytes


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_S8_an_archive_larger_than_the_limit_is_refused(compress: Callable[[bytes], bytes]) -> None:
    tar = bytes(range(256)) * 4096
    blob = compress(tar)
    assert drain(open_input(io.BytesIO(blob), Limits(archive_bytes=len(tar)))) == len(tar)
    with pytest.raises(InvalidArchive, match=f"the archive is larger than {len(tar) - 1} bytes, which is the limit"):
        drain(open_input(io.BytesIO(blob), Limits(archive_bytes=len(tar) - 1)))


IDLE = {
    "zeros behind gzip": (gzipped(b"x"), bytes(64 * KIBIBYTE)),
    "empty members of gzip": (gzipped(b"x"), gzipped(b"") * 3000),
    "skippable frames": (zstd_frames(b"x"), skippable_frame(bytes(64 * KIBIBYTE))),
    "empty frames": (zstd_frames(b"x"), zstd_frames(b"") * 3000),
    "padding of xz": (xz_streams(b"x"), bytes(64 * KIBIBYTE)),
    "empty streams of xz": (xz_streams(b"x"), (xz_streams(b"") + bytes(4)) * 3000),
}


@pytest.mark.parametrize(("beginning", "block"), IDLE.values(), ids=IDLE.keys())
def test_S8_what_nothing_comes_of_is_not_read_for_ever(beginning: bytes, block: bytes) -> None:
    def refuse() -> None:
        made: list[int] = []

        def pieces() -> Iterator[bytes]:
            yield beginning
            while True:
                made.append(len(block))
                yield block

        source = open_input(Joined(pieces()), Limits(tar=TarLimits(padding_bytes=MEBIBYTE)))
        assert source.read(10) == b"x"
        sentence = f"nothing comes of more than {MEBIBYTE + READ_AHEAD} bytes|in 65537 parts"
        with pytest.raises(InvalidArchive, match=sentence):
            source.read(10)
        assert sum(made) <= 3 * MEBIBYTE

    started = time.monotonic()
    assert grows_by_less_than(12 * MEBIBYTE, refuse)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_S8_parts_of_a_byte_are_refused_before_they_have_cost_much(compress: Callable[[bytes], bytes]) -> None:
    few, many = compress(b"x") * 60_000, compress(b"x") * 70_000
    assert drain(open_input(io.BytesIO(few))) == 60_000
    with pytest.raises(InvalidArchive, match=r"compressed in 65[0-9]{3} parts, too many for what comes of them"):
        drain(open_input(io.BytesIO(many)))


@pytest.mark.parametrize("part", [gzipped(b""), zstd_frames(b""), skippable_frame(b""), xz_streams(b"") + bytes(4)])
def test_S8_empty_parts_without_number_take_time_by_their_number(part: bytes) -> None:
    def seconds_for(count: int) -> float:
        blob = part * count
        started = time.process_time()
        assert drain(open_input(io.BytesIO(blob))) == 0
        return time.process_time() - started

    # Both fit into what is read at once: there each part that is handed back would cost all that lies behind it.
    count = 512 * KIBIBYTE // len(part)
    count = min(count, 60_000)
    few = min(seconds_for(count // 32) for _ in range(4))
    assert seconds_for(count) < 32 * 3 * few


def tiny_blobs(count: int) -> Iterator[bytes]:
    for number in range(count):
        content = b"%d" % number
        name = f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
        yield encode_header(Member(name=name, size_bytes=len(content))) + content + padding(len(content))


TINY = {
    "directories": Member(name="d", kind=MemberKind.DIRECTORY),
    "sidecars": Member(name=f"blobs/sha256/{'0' * 64}.index.json"),
}


@pytest.mark.parametrize("member", TINY.values(), ids=TINY.keys())
def test_S8_a_million_tiny_members_are_refused_in_little_memory(member: Member, tmp_path: Path) -> None:
    def refuse() -> None:
        store = Store(tmp_path / "store", durability="none")
        with pytest.raises(InvalidArchive, match=f"it has more than {DEFAULT_LIMITS.archive_members} members"):
            store.load(cast("BinaryIO", Joined(itertools.repeat(encode_header(member) * 100, 10_000))))

    assert grows_by_less_than(12 * MEBIBYTE, refuse, timeout_seconds=100)


def test_S8_each_tiny_blob_costs_little_memory_and_no_more_time_than_the_one_before(tmp_path: Path) -> None:
    def seconds_for(count: int) -> float:
        store = Store(tmp_path / f"store-{count}", durability="none", limits=Limits(archive_members=count))
        started = time.process_time()
        with pytest.raises(InvalidArchive, match=f"it has more than {count} members"):
            store.load(cast("BinaryIO", Joined(tiny_blobs(count + 1))))
        return time.process_time() - started

    def refuse() -> None:
        few = min(seconds_for(300) for _ in range(2))
        assert seconds_for(4800) < 16 * 3 * few

    # 131,072 of them, the usual limit, are a hundred mebibytes.
    assert grows_by_less_than(16 * MEBIBYTE, refuse, timeout_seconds=100)


@pytest.mark.parametrize("item", [b'"ab"', b"[]", b'{"":0}'])
@pytest.mark.parametrize("table", ["index.json", "manifest.json"])
def test_S8_a_table_of_tiny_values_is_refused_in_little_memory(table: str, item: bytes, tmp_path: Path) -> None:
    content = b"[" + b",".join([item] * (4 * MEBIBYTE // (len(item) + 1) - 8)) + b"]"
    if table == "index.json":
        content = b'{"manifests":' + content + b"}"
    archive = pack([("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), (table, content)])

    def refuse() -> None:
        store = Store(tmp_path / "store", durability="none")
        with pytest.raises(InvalidArchive, match=f"{table}: it has more than 65536 values"):
            store.load(io.BytesIO(archive))

    assert grows_by_less_than(16 * MEBIBYTE, refuse)


LOAD = """
import sys
from minibox_store import Store
store = Store(sys.argv[1], durability="none")
store.load(sys.argv[2] if sys.argv[2:] else sys.stdin.buffer)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
LARGE_BYTES = 96 * MEBIBYTE
MOST_BYTES = 48 * MEBIBYTE


FAST: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda tar: gzip.compress(tar, 1),
    "zstd": zstd_frames,
    "xz": lambda tar: xz_of_window(tar, 23),  # the window of the usual preset
}


@pytest.fixture(scope="module")
def large() -> bytes:
    """An archive of a layer that is much larger than what a load may take, and can be compressed fast."""
    block = random_layer(16 * KIBIBYTE).content
    image = build_image([random_layer(2560)])
    content = block * (LARGE_BYTES // len(block))
    members = members_of(image, NAME)
    return pack([members[0], (f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content), *members[1:]])


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("form", FAST)
def test_S8_a_load_of_any_size_takes_at_most_48_mebibytes(
    form: str, in_file: bool, large: bytes, tmp_path: Path
) -> None:
    packed = FAST[form](large)
    arguments = [str(tmp_path / "store")]
    if in_file:
        (tmp_path / "file").write_bytes(packed)
        arguments.append(str(tmp_path / "file"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        input=b"" if in_file else packed,
        stdout=subprocess.PIPE,
        check=True,
        timeout=100,
    )
    assert int(done.stdout) * KIBIBYTE <= MOST_BYTES


def test_S8_a_gzip_in_a_gzip_is_undone_once_and_is_no_tar_then() -> None:
    blob = gzipped(gzip_bomb(64 * MEBIBYTE))

    def refuse() -> None:
        for read in (
            lambda: list(ArchiveReader(io.BytesIO(blob)).iter_blobs()),
            lambda: list(TarReader(open_input(io.BytesIO(blob)))),
        ):
            with pytest.raises(InvalidArchive, match="no tar header at byte 0"):
                read()

    assert grows_by_less_than(8 * MEBIBYTE, refuse)
