"""How the bytes of archives move on each kind of disk: shared where it can be, else copied; and whoever changes an
archive meanwhile, what was verified is what is kept.
"""

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minibox_store import ArchiveFormat, Store, _moving
from minibox_store.errors import InvalidArchive
from minibox_store.tar import END_OF_ARCHIVE, Member, encode_header, padding
from tests.support.archives import blob_name, members_of
from tests.support.extents import shared_bytes
from tests.support.filled import loop_disk
from tests.support.images import build_image, random_layer
from tests.support.invariants import check_invariants, find_leftovers, read_names, stored
from tests.support.layouts import blob_path
from tests.support.meddling import changing_all_the_time, meddling_with
from tests.support.stores import mounted, open_store, put
from tests.support.system_calls import OtherOs

MEBIBYTE = 1 << 20
BLOCK_BYTES = 4096
NAME = "app:1"
FORMATS: tuple[ArchiveFormat, ...] = ("minibox", "oci", "docker", "both")
DISKS = ("tmpfs", "ramfs", "ext4", "xfs")
# A layer that is copied in more than one step, one that ends with a piece of a block, and one of whole blocks.
IMAGE = build_image([random_layer(17 * MEBIBYTE + 512), random_layer(MEBIBYTE + 1536), random_layer(2 * MEBIBYTE)])
LARGE, ODD, EVEN = IMAGE.layer_digests
SMALL = build_image([random_layer(3 * MEBIBYTE + 512, salt="small")])
(ONLY,) = SMALL.layer_digests


def _mount(kind: str, folder: Path) -> Any:
    match kind:
        case "tmpfs":
            return mounted(folder, "size=256m")
        case "ramfs":  # which knows neither of room nor of sharing
            return mounted(folder, kind="ramfs")
        case _:
            return loop_disk(folder, kind, (128 if kind == "ext4" else 384) * MEBIBYTE)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Give a disk of a kind, the same for all tests."""
    folder = tmp_path_factory.mktemp("disks")
    found: dict[str, Path] = {}
    with ExitStack() as stack:

        def disk(kind: str) -> Path:
            if kind not in found:
                found[kind] = stack.enter_context(_mount(kind, folder / kind))
            return found[kind]

        yield disk


@pytest.fixture
def folder(request: pytest.FixtureRequest, disks: Callable[[str], Path]) -> Iterator[Path]:
    """An empty folder on a disk, which is empty again behind the test."""
    disk = disks(getattr(request, "param", "tmpfs"))
    here = disk / "here"
    here.mkdir()
    yield here
    shutil.rmtree(here)


on_each_disk = pytest.mark.parametrize("folder", DISKS, indirect=True)
on_xfs = pytest.mark.parametrize("folder", ["xfs"], indirect=True)


def write_archive(path: Path, members: list[tuple[str, bytes]], align_bytes: int) -> dict[str, int]:
    """Write an archive whose large members have their data at multiples of ``align_bytes``; return where that is."""
    places = {}
    with path.open("wb") as file:
        for name, content in members:
            member = Member(name=name, size_bytes=len(content))
            aligned = align_bytes if len(content) >= 64 * 1024 else 512
            file.write(encode_header(member, offset=file.tell(), align_bytes=aligned))
            places[name] = file.tell()
            file.write(content + padding(len(content)))
        file.write(END_OF_ARCHIVE)
    os.sync()
    return places


def whole_blocks(size_bytes: int) -> int:
    return size_bytes // BLOCK_BYTES * BLOCK_BYTES


def check_loaded(root: Path, image: Any = IMAGE) -> None:
    check_invariants(root)
    assert find_leftovers(root) == []
    assert read_names(root) == {NAME: image.digest}
    for digest, content in image.blobs.items():
        assert blob_path(root, digest).read_bytes() == content


def check_refused(root: Path) -> None:
    check_invariants(root)
    assert find_leftovers(root) == []
    assert read_names(root) == {}
    assert stored(root) == set()


# ---- on each disk


@on_each_disk
@pytest.mark.parametrize("align_bytes", [512, BLOCK_BYTES])
def test_an_archive_is_loaded_whole_wherever_its_members_begin(folder: Path, align_bytes: int) -> None:
    write_archive(folder / "image.tar", members_of(IMAGE, NAME), align_bytes)
    open_store(folder / "store").load(folder / "image.tar")
    check_loaded(folder / "store")


@on_each_disk
def test_an_archive_on_another_disk_is_loaded_whole(folder: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "image.tar", members_of(IMAGE, NAME), BLOCK_BYTES)
    open_store(folder / "store").load(tmp_path / "image.tar")
    check_loaded(folder / "store")


@on_xfs
def test_a_load_shares_the_whole_blocks_of_aligned_members_and_copies_the_rest(folder: Path) -> None:
    places = write_archive(folder / "image.tar", members_of(IMAGE, NAME), BLOCK_BYTES)
    open_store(folder / "store").load(folder / "image.tar")
    check_loaded(folder / "store")
    for digest in (LARGE, ODD, EVEN):
        size_bytes = len(IMAGE.blobs[digest])
        assert shared_bytes(blob_path(folder / "store", digest)) >= whole_blocks(size_bytes)
        assert shared_bytes(folder / "image.tar", places[blob_name(digest)], size_bytes) >= whole_blocks(size_bytes)


@on_each_disk
@pytest.mark.parametrize("form", FORMATS)
def test_a_save_gives_the_same_bytes_on_each_disk(folder: Path, form: ArchiveFormat, tmp_path: Path) -> None:
    put(folder / "store", IMAGE, NAME)
    store = open_store(folder / "store")
    store.save(NAME, folder / "image.tar", format=form)
    with (tmp_path / "written").open("wb") as file:
        store.save(NAME, file, format=form)
    assert (folder / "image.tar").read_bytes() == (tmp_path / "written").read_bytes()


@on_xfs
@pytest.mark.parametrize("form", FORMATS)
def test_a_save_shares_the_whole_blocks_of_large_blobs_and_copies_the_rest(folder: Path, form: ArchiveFormat) -> None:
    put(folder / "store", IMAGE, NAME)
    os.sync()
    open_store(folder / "store").save(NAME, folder / "image.tar", format=form)
    with tarfile.open(folder / "image.tar") as archive:
        places = {member.name: member.offset_data for member in archive}
    for digest in (LARGE, ODD, EVEN):
        size_bytes = len(IMAGE.blobs[digest])
        assert shared_bytes(blob_path(folder / "store", digest)) >= whole_blocks(size_bytes)
        assert shared_bytes(folder / "image.tar", places[blob_name(digest)], size_bytes) >= whole_blocks(size_bytes)


@on_each_disk
def test_what_another_process_writes_into_a_saved_archive_is_not_in_the_store(folder: Path) -> None:
    put(folder / "store", IMAGE, NAME)
    open_store(folder / "store").save(NAME, folder / "image.tar")
    with meddling_with(folder / "image.tar") as other:
        other.write(0, bytes((folder / "image.tar").stat().st_size))
    os.sync()
    check_loaded(folder / "store")


@on_xfs
def test_what_is_shared_is_not_sent_to_the_disk_again_and_stays_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder / "store", IMAGE, NAME)
    sent: list[object] = []
    monkeypatch.setattr(_moving, "os", OtherOs(posix_fadvise=lambda *given: sent.append(given)))
    Store(folder / "store", durability="full").save(NAME, folder / "image.tar")
    Store(folder / "loaded", durability="full").load(folder / "image.tar")
    check_loaded(folder / "loaded")
    assert sent == []


@on_xfs
def test_what_was_saved_is_loaded_without_room_for_a_second_copy(folder: Path) -> None:
    put(folder / "store", IMAGE, NAME)
    os.sync()
    before = os.statvfs(folder).f_bavail
    for number in range(3):
        open_store(folder / "store").save(NAME, folder / f"image-{number}.tar")
        open_store(folder / f"loaded-{number}").load(folder / f"image-{number}.tar")
        check_loaded(folder / f"loaded-{number}")
    os.sync()
    taken_bytes = (before - os.statvfs(folder).f_bavail) * os.statvfs(folder).f_frsize
    assert taken_bytes < 2 * MEBIBYTE


@pytest.mark.parametrize(
    ("folder", "align_bytes"), [("ext4", BLOCK_BYTES), ("xfs", 512)], indirect=["folder"], ids=["ext4", "unaligned"]
)
def test_nothing_is_shared_where_blocks_do_not_lie_alike_or_the_disk_does_not_share(
    folder: Path, align_bytes: int
) -> None:
    write_archive(folder / "image.tar", members_of(IMAGE, NAME), align_bytes)
    open_store(folder / "store").load(folder / "image.tar")
    check_loaded(folder / "store")
    for digest in (LARGE, ODD, EVEN):
        assert shared_bytes(blob_path(folder / "store", digest)) == 0


@pytest.mark.parametrize(("folder", "is_taken"), [("ext4", True), ("tmpfs", False)], indirect=["folder"])
def test_the_room_for_what_is_copied_is_taken_before_the_first_byte_of_it_where_there_are_extents(
    folder: Path, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(folder / "image.tar", members_of(SMALL, NAME), BLOCK_BYTES)
    found = []

    def look(source: int, target: int, size_bytes: int, offset: int, position: int) -> int:
        if size_bytes >= MEBIBYTE and position == 0:
            status = os.fstat(target)
            found.append((status.st_size, status.st_blocks * 512 >= len(SMALL.blobs[ONLY])))
        return os.copy_file_range(source, target, size_bytes, offset, position)

    monkeypatch.setattr(_moving, "os", OtherOs(copy_file_range=look))
    open_store(folder / "store").load(folder / "image.tar")
    assert found == [(0, is_taken)]


# ---- who changes the archive meanwhile


class Meanwhile:
    """Something that happens once: before the step that begins at a place of an archive, or behind one that ends there.

    Where blocks are shared a step has 16 MiB, else one.
    """

    def __init__(
        self, place: int, *, before: Callable[[], None] | None = None, behind: Callable[[], None] | None = None
    ) -> None:
        self._place = place
        self._before = before
        self._behind = behind
        self.happened = 0

    def copy_file_range(self, source: int, target: int, size_bytes: int, offset: int, position: int) -> int:
        """Copy, and let it happen."""
        if offset == self._place and self._before is not None:
            self.happened += 1
            self._before()
        done = 0
        while done < size_bytes:
            count = os.copy_file_range(source, target, size_bytes - done, offset + done, position + done)
            if not count:
                break
            done += count
        if offset + size_bytes == self._place and self._behind is not None:
            self.happened += 1
            self._behind()
        return done


def load_meanwhile(store: Store, path: Path, meanwhile: Meanwhile) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_moving, "os", OtherOs(copy_file_range=meanwhile.copy_file_range))
        try:
            store.load(path)
        finally:
            assert meanwhile.happened == 1


@on_each_disk
@pytest.mark.parametrize("align_bytes", [512, BLOCK_BYTES])
def test_what_another_process_writes_once_the_bytes_are_copied_changes_nothing(folder: Path, align_bytes: int) -> None:
    path = folder / "image.tar"
    place = write_archive(path, members_of(SMALL, NAME), align_bytes)[blob_name(ONLY)]
    size_bytes = len(SMALL.blobs[ONLY])
    others = b"\xff" * size_bytes  # no zeros: a tar ends with such
    with meddling_with(path) as other:
        meanwhile = Meanwhile(place + size_bytes, behind=lambda: other.write(place, others))
        load_meanwhile(open_store(folder / "store"), path, meanwhile)
    assert path.read_bytes()[place : place + size_bytes] == others
    check_loaded(folder / "store", SMALL)


@on_each_disk
@pytest.mark.parametrize("align_bytes", [512, BLOCK_BYTES])
def test_what_another_process_writes_before_the_bytes_are_copied_is_refused(folder: Path, align_bytes: int) -> None:
    path = folder / "image.tar"
    place = write_archive(path, members_of(SMALL, NAME), align_bytes)[blob_name(ONLY)]
    for at in (0, 5000, len(SMALL.blobs[ONLY]) - 1):
        with meddling_with(path) as other:
            right = SMALL.blobs[ONLY][at : at + 1]
            meanwhile = Meanwhile(place, before=partial(other.write, place + at, bytes([right[0] ^ 1])))
            with pytest.raises(InvalidArchive, match=ONLY):
                load_meanwhile(open_store(folder / "store"), path, meanwhile)
            other.write(place + at, right)
        check_refused(folder / "store")


@on_each_disk
def test_a_blob_of_which_half_was_copied_when_another_process_wrote_the_other_half_is_refused(folder: Path) -> None:
    path = folder / "image.tar"
    place = write_archive(path, members_of(IMAGE, NAME), BLOCK_BYTES)[blob_name(LARGE)]
    with meddling_with(path) as other:
        # Sixteen mebibytes have been copied by now, and the rest has not.
        middle = place + 16 * MEBIBYTE
        meanwhile = Meanwhile(middle, behind=lambda: other.write(middle + 5, b"something else"))
        with pytest.raises(InvalidArchive, match=LARGE):
            load_meanwhile(open_store(folder / "store"), path, meanwhile)
    check_refused(folder / "store")


@on_each_disk
def test_what_another_process_writes_into_the_archive_later_is_not_in_the_store(folder: Path) -> None:
    path = folder / "image.tar"
    write_archive(path, members_of(IMAGE, NAME), BLOCK_BYTES)
    open_store(folder / "store").load(path)
    with meddling_with(path) as other:
        other.write(0, bytes(path.stat().st_size))
    os.sync()
    check_loaded(folder / "store")


@on_each_disk
def test_an_archive_that_another_process_cuts_off_meanwhile_is_refused(folder: Path) -> None:
    path = folder / "image.tar"
    place = write_archive(path, members_of(SMALL, NAME), BLOCK_BYTES)[blob_name(ONLY)]
    for left_bytes in (place + 2 * MEBIBYTE + 100, place):
        write_archive(path, members_of(SMALL, NAME), BLOCK_BYTES)
        with meddling_with(path) as other:
            meanwhile = Meanwhile(place, before=partial(other.truncate, left_bytes))
            # Who looks for the next member may be the first to see it.
            with pytest.raises(InvalidArchive, match=r"became shorter|is cut off"):
                load_meanwhile(open_store(folder / "store"), path, meanwhile)
        check_refused(folder / "store")


@on_each_disk
def test_an_archive_that_another_process_changes_all_the_time_is_refused_or_the_very_image(folder: Path) -> None:
    path = folder / "image.tar"
    places = write_archive(path, members_of(IMAGE, NAME), BLOCK_BYTES)
    changes = []
    for digest in (ODD, EVEN):
        content, place = IMAGE.blobs[digest], places[blob_name(digest)]
        changes += [(place + BLOCK_BYTES, bytes(64)), (place + BLOCK_BYTES, content[BLOCK_BYTES : BLOCK_BYTES + 64])]
    with changing_all_the_time(path, changes):
        for _ in range(10):
            try:
                open_store(folder / "store").load(path)
            except InvalidArchive:
                check_refused(folder / "store")
            else:
                check_loaded(folder / "store")
            shutil.rmtree(folder / "store")
