"""Room: what does not fit is refused before anything is fetched, in both figures, and what is there counts as there."""

import errno
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minibox_store import Store, StoreFull, StoreUnavailable
from minibox_store.copying import copy_image
from minibox_store.platforms import LINUX_AMD64
from tests.support.archives import members_of, pack, piped, read_archive
from tests.support.failing_system import failing_system
from tests.support.filled import fill, take_room
from tests.support.images import build_image, build_index, random_layer
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.os_proxy import replaced_os
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, blob_target, manifest_target, serve_image
from tests.support.snapshots import snapshot
from tests.support.sources import RecordingSource, memory_of, root_of
from tests.support.stores import mounted, open_layout, open_store, put

MEBIBYTE = 1 << 20
KEPT = build_image([random_layer(102_400, salt="kept")], salt="kept")
HALF = random_layer(2 * MEBIBYTE, salt="half")
BIG = build_image([HALF, random_layer(3 * MEBIBYTE, salt="big")], salt="big")
ARM64 = build_image([HALF], salt="arm64", platform="linux/arm64")
MULTI = build_index([BIG, ARM64])
LAYERS_BYTES = 5 * MEBIBYTE


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    with mounted(tmp_path / "disk", "size=16m") as folder:
        yield folder


@pytest.fixture
def root(disk: Path) -> Path:
    """The folder of a store on it, with a small image."""
    put(disk / "store", KEPT, "kept:1")
    return disk / "store"


def leave(disk: Path, free_bytes: int) -> None:
    """Leave so much room."""
    take_room(disk / "ballast", all_but_bytes=free_bytes)


def check_refused(root: Path, action: Callable[[], object], *, place: Path | None = None) -> StoreFull:
    """Check that something is refused in both figures, and that nothing has changed by it."""
    before = snapshot(root)
    with pytest.raises(StoreFull) as caught:
        action()
    error = caught.value
    assert error.needed_bytes is not None
    assert error.free_bytes is not None
    assert error.needed_bytes > error.free_bytes
    assert str(error) == (
        f"not enough space for {place or root}: {error.needed_bytes} bytes are needed, and {error.free_bytes} are free"
    )
    assert snapshot(root) == before
    check_invariants(root)
    return error


# Pull


@pytest.mark.parametrize("is_whole_index", [False, True])
def test_a_pull_that_does_not_fit_is_refused_when_only_documents_were_asked_for(
    root: Path, disk: Path, is_whole_index: bool
) -> None:
    leave(disk, 4 * MEBIBYTE)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", MULTI, at_most=1)
        reference = registry.reference("team/app", "1")
        platform = None if is_whole_index else LINUX_AMD64
        store = open_store(root)
        error = check_refused(root, lambda: store.pull(reference, client=quick_client(), platform=platform))
        for digest in MULTI.blobs:
            if digest not in MULTI.document_digests and digest not in (BIG.config_digest, ARM64.config_digest):
                assert registry.count("GET", blob_target("team/app", digest)) == 0
        assert registry.count("GET", manifest_target("team/app", BIG.digest)) == 1
    expected = MULTI.size_bytes if is_whole_index else BIG.size_bytes
    assert error.needed_bytes == expected
    assert error.free_bytes is not None
    assert error.free_bytes <= 4 * MEBIBYTE


def test_what_a_download_has_left_counts_as_there_and_so_do_the_blobs_of_others(root: Path, disk: Path) -> None:
    first, second = BIG.layer_digests
    put(root, build_image([HALF], salt="other"), "other:1")
    partial = root / "ingest" / "partial" / second.replace(":", "-")
    leave(disk, MEBIBYTE + MEBIBYTE // 2)
    with ScriptedRegistry() as registry:
        serve_image(registry, "team/app", "1", BIG, ranges=True)
        reference = registry.reference("team/app", "1")
        error = check_refused(root, lambda: open_store(root).pull(reference, name="big:1", client=quick_client()))
        assert error.needed_bytes == BIG.size_bytes - 2 * MEBIBYTE
        (disk / "ballast").unlink()
        partial.write_bytes(BIG.blobs[second][: 2 * MEBIBYTE])
        leave(disk, MEBIBYTE + MEBIBYTE // 2)
        open_store(root).pull(reference, name="big:1", client=quick_client())
        assert registry.count("GET", blob_target("team/app", first)) == 0
    assert read_names(root)["big:1"] == BIG.digest
    assert open_store(root).verify() == ()


def test_an_image_that_is_there_needs_no_room_whatever_it_is_called(root: Path, disk: Path) -> None:
    put(root, BIG, "big:1")
    leave(disk, 256 * 1024)
    put(root, BIG, "again:1", "third:1")
    open_store(root).tag("big:1", "tagged:1")
    assert set(read_names(root)) == {"kept:1", "big:1", "again:1", "third:1", "tagged:1"}


# Import


def test_an_import_that_does_not_fit_reads_nothing_but_documents(root: Path, disk: Path) -> None:
    leave(disk, 4 * MEBIBYTE)
    memory = memory_of({"multi:1": MULTI})
    source = RecordingSource(memory)

    class Images:
        resolve = staticmethod(memory.resolve)
        open_blob = staticmethod(source.open_blob)

    error = check_refused(root, lambda: open_store(root).import_image(Images(), "multi:1"))
    assert {str(digest) for digest in source.opened_digests} == set(MULTI.document_digests)
    assert error.needed_bytes == MULTI.size_bytes


def test_several_names_for_one_image_need_its_room_once(root: Path, disk: Path) -> None:
    leave(disk, LAYERS_BYTES + MEBIBYTE)
    names = ["one:1", "two:1", "three:1"]
    copy_image(memory_of({"": BIG}), open_layout(root), root_of(BIG), names)
    assert {read_names(root)[name] for name in names} == {BIG.digest}


def test_weighing_reads_none_of_the_blobs_that_are_there(root: Path, disk: Path) -> None:
    put(root, BIG, "big:1")
    leave(disk, 4 * MEBIBYTE)
    more = build_image([random_layer(8 * MEBIBYTE, salt="more")])
    both = build_index([BIG, more])
    with replaced_os() as system, pytest.raises(StoreFull):
        open_store(root).import_image(memory_of({"both:1": both}), "both:1", verify="content")
    assert [system.count("preadv", digest.partition(":")[2]) for digest in BIG.layer_digests] == [0, 0]


# Load


def test_an_archive_that_does_not_fit_is_refused_before_a_byte_of_it_is_kept(
    root: Path, disk: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "big.tar"
    archive.write_bytes(pack(members_of(BIG, "big:1")))
    leave(disk, 4 * MEBIBYTE)
    with replaced_os() as system:
        error = check_refused(root, lambda: open_store(root).load(archive))
        assert [call for call in system.changes if "staged" in "".join(call.paths)] == []
    assert error.needed_bytes == archive.stat().st_size
    with archive.open("rb") as file:
        check_refused(root, lambda: open_store(root).load(file))
        assert file.tell() == 0, "nothing was read"
    (disk / "ballast").unlink()
    open_store(root).load(archive)
    assert read_names(root)["big:1"] == BIG.digest


def test_an_archive_of_which_the_store_has_everything_needs_its_room_all_the_same(
    root: Path, disk: Path, tmp_path: Path
) -> None:
    put(root, BIG, "big:1")
    (tmp_path / "big.tar").write_bytes(pack(members_of(BIG, "big:1")))
    leave(disk, 4 * MEBIBYTE)
    check_refused(root, lambda: open_store(root).load(tmp_path / "big.tar"))


def test_an_archive_with_holes_is_weighed_by_what_it_unfolds_to(root: Path, disk: Path, tmp_path: Path) -> None:
    archive = tmp_path / "big.tar"
    archive.write_bytes(pack(members_of(KEPT, "again:1")))
    with archive.open("ab") as file:
        file.truncate(1 << 40)
    assert archive.stat().st_blocks * 512 < MEBIBYTE
    assert check_refused(root, lambda: open_store(root).load(archive)).needed_bytes == 1 << 40


def test_what_lies_before_the_archive_in_an_open_file_is_not_weighed(root: Path, disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.tar"
    path.write_bytes(bytes(8 * MEBIBYTE) + pack(members_of(build_image(salt="small"), "small:1")))
    leave(disk, MEBIBYTE)
    with path.open("rb") as file:
        file.seek(8 * MEBIBYTE)
        open_store(root).load(file)
    assert "small:1" in read_names(root)


def test_what_comes_through_a_pipe_is_weighed_member_by_member(root: Path, disk: Path) -> None:
    leave(disk, 4 * MEBIBYTE)
    first, second = BIG.layer_digests
    with replaced_os() as system, piped(pack(members_of(BIG, "big:1"))) as pipe:
        error = check_refused(root, lambda: open_store(root).load(pipe))
        staged = {path for call in system.changes if call.name == "open" for path in call.paths if "staged" in path}
    assert error.needed_bytes == len(BIG.blobs[second])
    assert error.free_bytes is not None
    assert error.free_bytes <= 2 * MEBIBYTE, "the first layer had come already"
    assert len(staged) == len(BIG.blobs) - 1, "of the second none was kept"
    assert first not in stored(root)


def test_a_member_that_says_that_it_is_larger_than_any_disk_is_refused_by_its_size(root: Path, disk: Path) -> None:
    member = tarfile.TarInfo(f"blobs/sha256/{'a' * 64}")
    member.size = 1 << 40
    with piped(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)) as pipe:
        error = check_refused(root, lambda: open_store(root).load(pipe))
    assert error.needed_bytes == 1 << 40


# Save


def test_an_archive_for_which_there_is_no_room_is_not_begun(root: Path, disk: Path) -> None:
    put(root, BIG, "big:1")
    target = disk / "out.tar"
    open_store(root).save("kept:1", target)
    before = target.read_bytes()
    leave(disk, 4 * MEBIBYTE)
    with replaced_os() as system:
        error = check_refused(root, lambda: open_store(root).save("big:1", target), place=target)
        assert {call.name for call in system.changes} & {"write", "copy_file_range", "sendfile"} == set()
    assert error.needed_bytes == BIG.size_bytes
    assert target.read_bytes() == before
    assert sorted(path.name for path in disk.iterdir()) == ["ballast", "out.tar", "store"]
    (disk / "ballast").unlink()
    open_store(root).save("big:1", target)
    assert read_archive(target.read_bytes())[2] == BIG.blobs


def test_a_save_is_weighed_where_the_archive_goes_and_not_where_the_store_is(
    root: Path, disk: Path, tmp_path: Path
) -> None:
    put(root, BIG, "big:1")
    fill(disk / "filler")
    open_store(root).save("big:1", tmp_path / "out.tar")
    assert read_archive((tmp_path / "out.tar").read_bytes())[2] == BIG.blobs


# What the disk says


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_disk_that_cannot_be_asked_is_told_of(root: Path, number: int) -> None:
    before = snapshot(root)
    with failing_system() as system:
        system.fail("statvfs", number)
        with pytest.raises(StoreUnavailable, match=str(root)):
            Store(root, durability="none").import_image(memory_of({"big:1": BIG}), "big:1")
    assert snapshot(root) == before


def test_what_fills_the_disk_after_the_look_is_told_too(root: Path, disk: Path) -> None:
    """The look promises nothing: others write meanwhile."""
    names = read_names(root)
    with failing_system() as system:
        system.after("statvfs", lambda: fill(disk / "filler"))
        with pytest.raises(StoreFull, match=str(root)):
            open_store(root).import_image(memory_of({"big:1": BIG}), "big:1")
    assert read_names(root) == names
    os.unlink(disk / "filler")
    put(root, BIG, "big:1")
    assert open_store(root).verify() == ()
