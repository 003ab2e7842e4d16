"""Where an archive goes: a file that is whole or not there, whatever takes bytes, and a pipe that nobody empties."""

import errno
import gzip
import io
import os
import re
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from minibox_store import (
    BlobAdvanced,
    BlobStarted,
    Cancellation,
    Cancelled,
    ContentMismatch,
    Event,
    InvalidArgument,
    MissingLibrary,
    Store,
    StoreFull,
    StoreUnavailable,
    _files,
    _unnamed,
)
from minibox_store.archive import ArchiveFile, ArchiveForm, ArchiveStream
from minibox_store.copying import copy_image
from minibox_store.memory import MemoryImages
from tests.support.forks import forked, sleep_for_ever
from tests.support.images import build_image, random_layer
from tests.support.layouts import blob_path, write_layout
from tests.support.snapshots import snapshot
from tests.support.sources import copy_into, memory_of, root_of
from tests.support.system_calls import Failing, OtherOs
from tests.support.waiting import SOON_SECONDS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NAME = "app:1"
IMAGE = build_image([random_layer(3 << 20), {"a": b"1"}])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_layout(tmp_path / "store", {NAME: IMAGE})
    return Store(tmp_path / "store", durability="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def expected(store: Store, tmp_path: Path) -> bytes:
    """The bytes of the archive, as a file has them."""
    store.save(NAME, tmp_path / "expected.tar", format="oci")
    return (tmp_path / "expected.tar").read_bytes()


# ---- a file at a path


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("durability", ["none", "full"])
def test_of_a_save_that_is_killed_nothing_is_left(
    old: bytes | None, durability: Any, store: Store, folder: Path
) -> None:
    if old is not None:
        (folder / "a.tar").write_bytes(old)

    def save(ready: Callable[[], None]) -> None:
        def listen(event: Event) -> None:
            if isinstance(event, BlobAdvanced):
                ready()
                sleep_for_ever()

        Store(store.root, durability=durability).save(NAME, folder / "a.tar", on_event=listen)

    with forked(save):  # who is killed when the block is left
        assert [each.name for each in folder.iterdir()] == ([] if old is None else ["a.tar"])
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == ({} if old is None else {"a.tar": old})
    store.save(NAME, folder / "a.tar")
    assert [each.name for each in folder.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    "system",
    [
        {"open": errno.EOPNOTSUPP},
        {"open": errno.EISDIR},
        {"open": errno.EINVAL},
        {"link": errno.EPERM},
        {"link": errno.EOPNOTSUPP},
        {"lstat": errno.ENOENT},
    ],
    ids=str,
)
def test_where_files_have_names_from_the_beginning_the_archive_is_the_same(
    old: bytes | None,
    system: dict[str, int],
    store: Store,
    folder: Path,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if old is not None:
        (folder / "a.tar").write_bytes(old)
    failing = {name: _OnlyUnnamed(name, number) for name, number in system.items()}
    monkeypatch.setattr(_files, "os", OtherOs(**failing))
    before = os.umask(0o027)
    try:
        store.save(NAME, folder / "a.tar", format="oci")
    finally:
        os.umask(before)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == {"a.tar": expected}
    assert stat.S_IMODE((folder / "a.tar").stat().st_mode) == 0o640
    assert all(each.calls for each in failing.values())


class _OnlyUnnamed:
    """A call of ``os`` that fails for files without a name, and for ``/proc``."""

    def __init__(self, name: str, number: int) -> None:
        self._real = getattr(os, name)
        self._number = number
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        is_unnamed = any(isinstance(each, int) and each & os.O_TMPFILE == os.O_TMPFILE for each in arguments[1:])
        if is_unnamed or str(arguments[0]).startswith("/proc/self/fd"):
            self.calls += 1
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*arguments, **options)


@pytest.mark.parametrize(("call", "number"), [("replace", errno.EIO), ("fsync", errno.EIO), ("link", errno.ENOSPC)])
def test_what_fails_at_the_end_leaves_the_old_file_and_nothing_else(
    call: str, number: int, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.tar").write_bytes(b"old")
    before = snapshot(folder)
    monkeypatch.setattr(_files, "os", OtherOs(**{call: Failing(number)}))
    with pytest.raises(StoreFull if number == errno.ENOSPC else StoreUnavailable):
        Store(store.root).save(NAME, folder / "a.tar")
    assert snapshot(folder) == before


def test_a_file_has_no_name_before_it_is_whole(store: Store, folder: Path) -> None:
    seen = []

    def listen(event: Event) -> None:
        if isinstance(event, BlobAdvanced):
            seen.append(list(folder.iterdir()))

    store.save(NAME, folder / "a.tar", on_event=listen)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_relative_path_leads_to_where_it_did_at_the_beginning(
    old: bytes | None, durability: Any, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_bytes(b"of somebody else")
    if old is not None:
        (folder / "a").write_bytes(old)
    store = Store(store.root, durability=durability)
    store.save(NAME, folder / "expected", format="oci")
    monkeypatch.chdir(folder)

    def go_away(event: Event) -> None:
        os.chdir(elsewhere)

    store.save(NAME, "a", format="oci", on_event=go_away)
    assert Path.cwd() == elsewhere
    assert snapshot(elsewhere).keys() == {"a"}
    assert (elsewhere / "a").read_bytes() == b"of somebody else"
    assert (folder / "a").read_bytes() == (folder / "expected").read_bytes()
    assert {each.name for each in folder.iterdir()} == {"a", "expected"}


def test_only_one_name_is_given_at_a_time(folder: Path) -> None:
    def write(content: bytes) -> None:
        with _unnamed.replacing_large_file(str(folder / "a"), durable=True) as opened:
            os.write(opened, content)

    threads = [threading.Thread(target=write, args=(bytes([number]) * 1000,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [each.name for each in folder.iterdir()] == ["a"]
    assert len(set((folder / "a").read_bytes())) == 1


# ---- something that is open


class Trickle(io.RawIOBase):
    """Takes a few bytes of what it is given, as any unbuffered file may."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(memoryview(data)[:70_001])
        self.taken += piece
        return len(piece)


class Silent:
    """Takes everything, and says nothing of it, as some that are no files do."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: Any, /) -> None:
        self.taken += data


def test_what_takes_bytes_is_given_the_very_archive_and_left_open(store: Store, folder: Path, expected: bytes) -> None:
    memory, trickle, silent = io.BytesIO(b"before"), Trickle(), Silent()
    memory.seek(0, os.SEEK_END)
    store.save(NAME, memory, format="oci")
    assert memory.getvalue() == b"before" + expected
    store.save(NAME, trickle, format="oci")
    assert bytes(trickle.taken) == expected
    store.save(NAME, silent, format="oci")
    assert bytes(silent.taken) == expected
    for buffering in (0, -1):
        with (folder / "a.tar").open("wb", buffering=buffering) as file:
            file.write(b"before")
            store.save(NAME, file, format="oci")
            assert (folder / "a.tar").read_bytes() == b"before" + expected
            file.write(b"behind")
        assert (folder / "a.tar").read_bytes() == b"before" + expected + b"behind"
    with gzip.open(folder / "a.tar.gz", "wb") as packed:
        store.save(NAME, packed, format="oci")
    assert gzip.decompress((folder / "a.tar.gz").read_bytes()) == expected


def closed() -> BinaryIO:
    file = io.BytesIO()
    file.close()
    return file


NO_BYTES: dict[str, Callable[[Path], Any]] = {
    "a text": lambda path: path.open("w", encoding="utf-8"),
    "for reading": lambda path: path.open("rb"),
    "for reading, unbuffered": lambda path: path.open("rb", buffering=0),
    "closed": lambda _: closed(),
    "no file": lambda _: object(),
}


@pytest.mark.parametrize("kind", NO_BYTES)
def test_what_takes_no_bytes_is_refused(kind: str, store: Store, folder: Path) -> None:
    (folder / "a").write_bytes(b"")
    file = NO_BYTES[kind](folder / "a")
    with pytest.raises(InvalidArgument) as caught:
        store.save(NAME, file)
    assert caught.value.name == "file"
    if hasattr(file, "close"):
        file.close()
    assert (folder / "a").read_bytes() == b""


def test_only_a_path_can_be_relative_to_a_directory(store: Store) -> None:
    memory = io.BytesIO()
    with pytest.raises(InvalidArgument, match="invalid dir_fd"):
        store.save(NAME, memory, dir_fd=0)
    assert memory.getvalue() == b""


def test_a_disk_that_is_full_is_told_by_the_name_of_the_file(store: Store) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(StoreFull) as caught:
            store.save(NAME, full)
        assert caught.value.path == "/dev/full"


def test_nothing_is_written_of_what_cannot_be_saved(store: Store) -> None:
    memory = io.BytesIO()
    with pytest.raises(InvalidArgument):
        store.save([NAME, "docker.io/library/app:1"], memory, format="tar")  # type: ignore[call-overload]  # it is none
    (Path(store.root) / "blobs" / "sha256" / IMAGE.layer_digests[1].partition(":")[2]).unlink()
    with pytest.raises(Exception, match="incomplete"):
        store.save(NAME, memory)
    assert memory.getvalue() == b""


# ---- pipes


@contextmanager
def pipe(*, buffering: int = 0) -> Iterator[tuple[int, BinaryIO]]:
    """Give the reading descriptor of a pipe, and a file that writes to it."""
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=buffering) as file:
        try:
            yield reading, file
        finally:
            with suppress(BrokenPipeError):  # of what a failed save left in a buffer
                file.close()
            os.close(reading)


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_pipe_is_given_the_very_archive(
    buffering: int, compress: Any, store: Store, folder: Path, expected: bytes
) -> None:
    received = bytearray()
    with pipe(buffering=buffering) as (reading, file):

        def read() -> None:
            while piece := os.read(reading, 1 << 16):
                received.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        file.write(b"before")
        store.save(NAME, file, format="oci", compress=compress)
        file.write(b"behind")
        file.close()
        reader.join(30)
    assert received.startswith(b"before")
    assert received.endswith(b"behind")
    content = bytes(received[6:-6])
    assert (content if compress is None else zstd.decompress(content)) == expected


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("after_bytes", [0, 1, 100_000])
def test_a_pipe_that_is_closed_at_its_other_end_is_a_clear_error(
    buffering: int, after_bytes: int, store: Store
) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb", buffering=buffering) as file:

        def read() -> None:
            left = after_bytes
            while left:
                left -= len(source.read(left))
            source.close()

        reader = threading.Thread(target=read)
        reader.start()
        with pytest.raises(StoreUnavailable, match="whoever read from it has closed it"):
            store.save(NAME, file)
        reader.join(30)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_cancel_ends_a_save_to_a_pipe_that_nobody_empties(
    is_ours: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_ours:
        from minibox_store.archive import sinks

        monkeypatch.setattr(sinks, "os", OtherOs(open=Failing(errno.EACCES)))
    cancellation = Cancellation()
    caught: list[BaseException] = []
    with pipe() as (reading, file):

        def save() -> None:
            try:
                store.save(NAME, file, cancellation=cancellation)
            except BaseException as error:  # noqa: BLE001  # whatever it is, the test looks at it
                caught.append(error)

        saving = threading.Thread(target=save)
        saving.start()
        deadline = time.monotonic() + 30
        while not os.get_blocking(reading) or not _is_full(file):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cancellation.cancel()
        saving.join(SOON_SECONDS)
        assert not saving.is_alive()
        assert os.get_blocking(file.fileno())
    assert [type(error) for error in caught] == [Cancelled]


@contextmanager
def peers(buffering: int, timeout_seconds: float | None = None) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """Give a socket, and a file that writes to it."""
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(timeout_seconds)
        file: Any = here.makefile("wb", buffering=buffering)
        here.close()  # which the file outlives
        yield there, file
        file.close()


@pytest.mark.parametrize("buffering", [0, 8192])
@pytest.mark.parametrize("timeout_seconds", [None, 100.0])
def test_a_socket_is_given_the_very_archive(
    buffering: int, timeout_seconds: float | None, store: Store, expected: bytes
) -> None:
    received = bytearray()
    with peers(buffering, timeout_seconds) as (there, file):

        def read() -> None:
            while piece := there.recv(1 << 16):
                received.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        file.write(b"before")
        store.save(NAME, file, format="oci")
        file.write(b"behind")
        file.close()
        reader.join(30)
    assert bytes(received) == b"before" + expected + b"behind"


@pytest.mark.parametrize("buffering", [0, 8192])
@pytest.mark.parametrize("timeout_seconds", [None, 100.0])
def test_a_cancel_ends_a_save_to_a_socket_that_nobody_reads_from(
    buffering: int, timeout_seconds: float | None, store: Store
) -> None:
    cancellation = Cancellation()
    caught: list[BaseException] = []
    with peers(buffering, timeout_seconds) as (_, file):

        def save() -> None:
            try:
                store.save(NAME, file, cancellation=cancellation)
            except BaseException as error:  # noqa: BLE001  # whatever it is, the test looks at it
                caught.append(error)

        saving = threading.Thread(target=save, daemon=True)
        saving.start()
        deadline = time.monotonic() + 30
        while not _is_full(file):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cancellation.cancel()
        saving.join(SOON_SECONDS)
        assert not saving.is_alive()
    assert [type(error) for error in caught] == [Cancelled]


@pytest.mark.parametrize("buffering", [0, 8192])
def test_what_is_wrong_with_a_socket_is_told(buffering: int, store: Store) -> None:
    with peers(buffering, 0.1) as (_, file), pytest.raises(StoreUnavailable, match="timed out"):
        store.save(NAME, file)
    with peers(buffering) as (there, file):
        there.close()
        with pytest.raises(StoreUnavailable, match="whoever read from it has closed it"):
            store.save(NAME, file)


def _is_full(file: BinaryIO) -> bool:
    import select

    return not select.select([], [file], [], 0)[1]


def test_the_pipe_of_another_user_is_written_to_as_well(
    store: Store, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minibox_store.archive import sinks

    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).startswith("/proc/self/fd"):
            raise PermissionError(errno.EACCES, "permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(sinks, "os", OtherOs(open=refuse))
    test_a_pipe_is_given_the_very_archive(0, None, store, Path(store.root), expected)


# ---- compressed


def test_an_archive_in_zstd_is_the_plain_one_compressed_however_its_bytes_come(
    store: Store, folder: Path, expected: bytes
) -> None:
    store.save(NAME, folder / "a.tar.zst", format="oci", compress="zstd")
    content = (folder / "a.tar.zst").read_bytes()
    assert zstd.decompress(content) == expected
    memory = io.BytesIO()
    copy_into(ArchiveStream(memory, form=ArchiveForm(format="oci", compress="zstd")), IMAGE, NAME)
    assert memory.getvalue() == content
    assert Store(folder / "loaded", durability="none").load(folder / "a.tar.zst")[0].name == NAME


def test_a_frame_says_how_large_its_content_is(store: Store, folder: Path, expected: bytes) -> None:
    store.save(NAME, folder / "a.tar.zst", format="oci", compress="zstd")
    assert zstd.get_frame_info((folder / "a.tar.zst").read_bytes()).decompressed_size == len(expected)


def test_where_nothing_compresses_the_extra_is_named(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.tar").write_bytes(b"old")
    for module in ("backports.zstd", "compression.zstd", "backports", "compression"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibrary) as caught:
        store.save(NAME, folder / "a.tar", compress="zstd")
    assert caught.value.extra == "zstd"
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == {"a.tar": b"old"}


# ---- the target by itself


def test_a_writer_that_is_left_with_an_error_writes_nothing(folder: Path) -> None:
    memory = io.BytesIO()
    for target in (ArchiveStream(memory), ArchiveFile(str(folder / "a.tar"))):
        with pytest.raises(RuntimeError, match="stop"), target.open_writer():
            raise RuntimeError("stop")
    assert memory.getvalue() == b""
    assert list(folder.iterdir()) == []


def test_what_a_source_in_memory_gives_is_verified_as_it_passes(folder: Path) -> None:
    lying: MemoryImages = memory_of({"": IMAGE.corrupted(IMAGE.layer_digests[0])})
    memory = io.BytesIO()
    for target in (ArchiveStream(memory), ArchiveFile(str(folder / "a.tar"))):
        with pytest.raises(Exception, match="does not match"):
            copy_image(lying, target, root_of(IMAGE), [NAME])
    assert list(folder.iterdir()) == []


def test_a_blob_that_is_cut_off_while_it_is_saved_is_named_and_not_the_archive(store: Store, folder: Path) -> None:
    blob = blob_path(Path(store.root), IMAGE.layer_digests[0])

    def cut(event: Event) -> None:
        if isinstance(event, BlobStarted) and str(event.descriptor.digest) == IMAGE.layer_digests[0]:
            blob.chmod(0o600)
            os.truncate(blob, 1000)

    with pytest.raises(ContentMismatch, match=IMAGE.layer_digests[0]):
        store.save(NAME, folder / "a.tar", on_event=cut)
    assert not [*folder.iterdir()]


# ---- files that are none


class _Counting:
    """Takes what it is given, and says something else."""

    def __init__(self, told: object) -> None:
        self.told = told

    def write(self, data: bytes) -> object:
        return self.told


@pytest.mark.parametrize("told", [0, -1, 1 << 40, "512", True])
def test_a_file_that_miscounts_what_it_takes_ends_the_save(told: object, store: Store) -> None:
    file: Any = _Counting(told)
    with pytest.raises(StoreUnavailable, match=re.escape(f"it says that of 512 bytes it has taken {told!r}")):
        store.save(NAME, file)


def test_a_file_that_takes_text_and_does_not_say_so_is_refused(store: Store, tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile("w", dir=tmp_path) as text:
        file: Any = text
        with pytest.raises(InvalidArgument, match=re.escape(text.name)):
            store.save(NAME, file)


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_file_that_is_not_open_for_writing_is_refused_by_its_name(
    store: Store, tmp_path: Path, buffering: int
) -> None:
    (tmp_path / "kept.tar").write_bytes(b"kept")
    with (
        (tmp_path / "kept.tar").open("rb", buffering=buffering) as file,
        pytest.raises(InvalidArgument, match=r"kept\.tar': it is not open for writing"),
    ):
        store.save(NAME, file)
    assert (tmp_path / "kept.tar").read_bytes() == b"kept"


def test_a_file_that_was_detached_or_closed_beneath_is_refused_by_its_name(store: Store, tmp_path: Path) -> None:
    file = (tmp_path / "detached.tar").open("wb")
    raw: Any = file.detach()
    with pytest.raises(InvalidArgument, match="detached"):
        store.save(NAME, file)
    os.close(raw.fileno())
    with pytest.raises(StoreUnavailable, match=r"detached\.tar: Bad file descriptor"):
        store.save(NAME, raw)
    with suppress(OSError):
        raw.close()


def test_a_buffered_file_that_does_not_wait_is_named_and_not_the_store(store: Store) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb"), suppress(BlockingIOError), open(writing, "wb") as file:
        with suppress(BlockingIOError):
            file.write(bytes(1 << 17))  # some of which it keeps back
        with pytest.raises(StoreUnavailable, match="it does not wait until it can be written to") as caught:
            store.save(NAME, file)
        assert caught.value.path != store.root
