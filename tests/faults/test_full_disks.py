"""Real disks that are full, too small, read-only or closed: told in a sentence, nothing lost, and room can be made."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from minibox_store import Digest, Store, StoreError, StoreFull, StoreUnavailable
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidPath
from minibox_store.memory import MemoryImages
from minibox_store.protocols import BlobStream
from tests.support.archives import members_of, pack
from tests.support.filled import fill, loop_disk, take_room
from tests.support.forks import run_forked
from tests.support.images import BuiltImage, build_image, random_layer
from tests.support.invariants import check_invariants, read_names, stored
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, blob_target, serve_image
from tests.support.snapshots import snapshot
from tests.support.sources import descriptor_of, memory_of
from tests.support.stores import bound, mounted, put, put_dead, remount, require_root

MEBIBYTE = 1 << 20
KEPT = build_image([random_layer(102_400, salt="kept")], salt="kept")
DEAD = build_image([random_layer(204_800, salt="dead")], salt="dead")
SMALL = build_image([random_layer(307_200, salt="small")], salt="small")
BIG = build_image([random_layer(3 * MEBIBYTE, salt="big"), random_layer(3 * MEBIBYTE, salt="big too")], salt="big")
NOBODY = 65534


@contextmanager
def small_disk(folder: Path, kind: str) -> Iterator[Path]:
    """Mount a disk of a kind with some 4 MiB of room."""
    require_root()
    if kind == "tmpfs":
        with mounted(folder, "size=4m") as disk:
            yield disk
        return
    # The least that mkfs.xfs makes is 300 MiB.
    with loop_disk(folder, kind, (16 if kind == "ext4" else 320) * MEBIBYTE) as disk:
        take_room(disk / "ballast", all_but_bytes=4 * MEBIBYTE)
        yield disk


@pytest.fixture(params=["tmpfs", "ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    with small_disk(tmp_path / "disk", request.param) as folder:
        yield folder


def make_store(disk: Path) -> Path:
    """Make a store with an image, and return its folder."""
    root = disk / "store"
    put(root, KEPT, "kept:1")
    return root


class FillingSource(MemoryImages):
    """Images of memory; once the first bytes of a blob have been given, somebody else fills the disk."""

    def __init__(self, image: BuiltImage, digest: str, filler: Path) -> None:
        super().__init__()
        memory = memory_of({"small:1": image})
        self.blobs.update(memory.blobs)
        self.names.update(memory.names)
        self._digest = Digest.parse(digest)
        self._filler = filler

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return a stream, and fill the disk if it is the one."""
        if descriptor.digest == self._digest:
            fill(self._filler)
        return super().open_blob(descriptor, offset)


def check_full(action: Callable[[], object], root: Path, *, place: Path | None = None) -> None:
    """Check that a disk is said to be full, in a sentence that says where, and that nothing has changed."""
    names = read_names(root)
    with pytest.raises(StoreFull) as caught:
        action()
    assert str(place or root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_names(root) == names
    check_invariants(root, history_behind=True)


def check_well(root: Path, **names: BuiltImage) -> None:
    """Check that a store has these names besides its first, whole, and that it can be written to."""
    store = Store(root)
    assert store.prune().errors == ()
    assert read_names(root) == {"kept:1": KEPT.digest, **{name: image.digest for name, image in names.items()}}
    assert store.verify() == ()
    check_invariants(root)


# Disks that fill


def test_what_is_larger_than_the_disk_is_refused_and_leaves_the_disk_as_it_was(disk: Path, tmp_path: Path) -> None:
    root = make_store(disk)
    store = Store(root)
    (tmp_path / "big.tar").write_bytes(pack(members_of(BIG, "big:1")))
    with ScriptedRegistry() as registry:
        serve_image(registry, "big", "1", BIG, at_most=1)
        check_full(lambda: store.pull(registry.reference("big", "1"), name="big:1", client=quick_client()), root)
        for digest in BIG.layer_digests:
            assert registry.count("GET", blob_target("big", digest)) <= 1, "what cannot succeed is tried again"
    check_full(lambda: store.import_image(memory_of({"big:1": BIG}), "big:1"), root)
    check_full(lambda: store.load(tmp_path / "big.tar"), root)
    assert Store(root).prune().errors == ()
    assert list((root / "ingest" / "partial").iterdir()) == [], "a full disk needs the room"
    put(root, SMALL, "small:1")
    check_well(root, **{"small:1": SMALL})


@pytest.mark.parametrize("verb", ["import", "pull", "load"])
def test_a_disk_that_fills_while_an_image_comes_is_said_to_be_full_and_the_next_try_succeeds(
    disk: Path, tmp_path: Path, verb: str
) -> None:
    root = make_store(disk)
    store = Store(root)
    filler = disk / "filler"
    (tmp_path / "small.tar").write_bytes(pack(members_of(SMALL, "small:1")))
    with ScriptedRegistry() as registry:
        serve_image(registry, "small", "1", SMALL)

        def pull(fill_first: bool) -> object:
            def see(event: object) -> None:
                if fill_first and type(event).__name__ == "BlobStarted":
                    fill(filler)

            return store.pull(registry.reference("small", "1"), name="small:1", client=quick_client(), on_event=see)

        def load(fill_first: bool) -> object:
            def see(event: object) -> None:
                if fill_first and type(event).__name__ == "BlobStarted":
                    fill(filler)

            return store.load(tmp_path / "small.tar", on_event=see)

        def import_image(fill_first: bool) -> object:
            source = (
                FillingSource(SMALL, SMALL.layer_digests[0], filler) if fill_first else memory_of({"small:1": SMALL})
            )
            return store.import_image(source, "small:1")

        work = {"import": import_image, "pull": pull, "load": load}[verb]
        check_full(lambda: work(True), root)
        filler.unlink()
        work(False)
    check_well(root, **{"small:1": SMALL})


def test_an_archive_that_does_not_fit_is_not_there_and_the_one_before_it_is(disk: Path) -> None:
    root = make_store(disk)
    store = Store(root)
    out = disk / "out.tar"
    store.save("kept:1", out)
    before = out.read_bytes()
    fill(disk / "filler")
    check_full(lambda: store.save("kept:1", out), root, place=out)
    check_full(lambda: store.save("kept:1", disk / "other.tar"), root, place=disk / "other.tar")
    assert out.read_bytes() == before
    assert sorted(path.name for path in disk.iterdir() if "tar" in path.name) == ["out.tar"]


def test_on_a_full_disk_names_are_taken_away_and_a_prune_works_and_what_finds_no_room_changes_nothing(
    disk: Path,
) -> None:
    root = make_store(disk)
    put_dead(root, DEAD)
    put(root, SMALL, "going:1", "gone:1")
    store = Store(root)
    fill(disk / "filler")
    for action in (lambda: store.tag("kept:1", "t" * 400), lambda: store.import_image(memory_of({"b:1": BIG}), "b:1")):
        check_full(action, root)
    store.remove("going:1")
    fill(disk / "filler")
    store.untag("gone:1")
    check_invariants(root, history_behind=True)
    assert read_names(root) == {"kept:1": KEPT.digest}
    assert store.prune().errors == ()
    assert stored(root) == set(KEPT.blobs), "the room that a prune makes is what a full disk needs"
    (disk / "filler").unlink()
    put(root, SMALL, "small:1")
    check_well(root, **{"small:1": SMALL})


def test_on_a_full_disk_one_name_after_another_is_taken_away(disk: Path) -> None:
    root = make_store(disk)
    for number in range(10):
        put(root, SMALL, f"going:{number}")
    for number in range(5):
        fill(disk / "filler")
        Store(root).remove(f"going:{number}")
        check_invariants(root, history_behind=True)
    (disk / "filler").unlink()
    put(root, SMALL, "small:1")
    check_well(root, **dict.fromkeys(["small:1", *(f"going:{number}" for number in range(5, 10))], SMALL))


def test_where_no_further_file_fits_not_even_a_link_a_prune_works(tmp_path: Path) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=4m,nr_inodes=100") as disk:
        root = make_store(disk)
        put_dead(root, DEAD)
        with suppress(OSError):
            for number in range(1000):
                (disk / f"file-{number}").touch()
        fill(disk / "file-0")
        assert os.statvfs(disk).f_favail == 0
        check_full(lambda: Store(root).tag("kept:1", "again:1"), root)
        report = Store(root).prune()
        assert report.blobs_removed == len(set(DEAD.blobs) - set(KEPT.blobs))
        assert report.errors == ()
        Store(root).tag("kept:1", "again:1")
        check_well(root, **{"kept:1": KEPT, "again:1": KEPT})


def test_on_a_full_disk_everything_can_be_read(disk: Path, tmp_path: Path) -> None:
    root = make_store(disk)
    put_dead(root, DEAD)
    fill(disk / "filler")
    read_in_every_way(Store(root), tmp_path / "out.tar")
    assert Store(root).prune(dry_run=True).blobs_removed == len(DEAD.blobs)


def read_in_every_way(store: Store, archive: Path) -> None:
    """Do all that reads, and write an archive elsewhere."""
    assert "kept:1" in [image.name for image in store.images()]
    assert store.get("kept:1").damaged is False
    assert [each for each in store.verify() if each.is_damage] == []
    assert "kept:1" in [need.name for need in store.why(Digest.parse(KEPT.layer_digests[0]))]
    assert store.usage().total_bytes >= KEPT.size_bytes
    assert store.find_blob("kept:1", Digest.parse(KEPT.config_digest)).media_type
    assert store.read_document(descriptor_of(KEPT.root)) == KEPT.blobs[KEPT.digest]
    store.open_blob(descriptor_of(KEPT.root)).close()
    store.lost_names()
    assert store.info().root == store.root
    assert store.save("kept:1", archive).name == "kept:1"
    assert archive.stat().st_size > KEPT.size_bytes


# Disks and folders that may not be written


@pytest.mark.parametrize("how", ["bind mount", "disk"])
def test_a_read_only_store_is_read_in_every_way_and_each_change_is_refused_in_one_sentence(
    tmp_path: Path, how: str
) -> None:
    require_root()
    with mounted(tmp_path / "disk", "size=8m") as disk:
        make_store(disk)
        put_dead(disk / "store", DEAD)
        Store(disk / "store").tag("kept:1", "going:1")
        Store(disk / "store").remove("going:1")
        if how == "disk":
            remount(disk, "ro")
            check_read_only(disk / "store", tmp_path)
            return
        with bound(disk, tmp_path / "view") as view:
            remount(view, "bind,ro")
            check_read_only(view / "store", tmp_path)
            Store(disk / "store").tag("kept:1", "beside:1")  # by its other name it is written to
            assert "beside:1" in read_names(view / "store")


def check_read_only(root: Path, folder: Path) -> None:
    before = snapshot(root)
    store = Store(root)
    read_in_every_way(store, folder / "a.tar")
    assert store.prune(dry_run=True).blobs_removed == len(DEAD.blobs)
    check_refused(root, folder / "a.tar", r"[Rr]ead-only")
    with pytest.raises(InvalidPath, match=rf"{root}/out\.tar.*read-only"):
        store.save("kept:1", root / "out.tar")
    assert snapshot(root) == before


def check_refused(root: Path, archive: Path, problem: str) -> None:
    """Check that every verb that changes a store says in one sentence which folder refuses, and how."""
    store = Store(root)
    with ScriptedRegistry() as registry:
        serve_image(registry, "small", "1", SMALL, at_most=2)
        for action in (
            lambda: store.pull(registry.reference("small", "1"), client=quick_client()),
            lambda: store.import_image(memory_of({"b:1": SMALL}), "b:1"),
            lambda: store.load(archive),
            lambda: store.tag("kept:1", "b:1"),
            lambda: store.remove("kept:1"),
            store.undo,
            store.prune,
        ):
            with pytest.raises(StoreUnavailable, match=f"^cannot use {root}.*{problem}"):
                action()
        for digest in SMALL.layer_digests:
            assert registry.count("GET", blob_target("small", digest)) == 0, "it was fetched for nothing"


@pytest.mark.parametrize("closed", ["", "ingest", "blobs/sha256", "history"])
def test_who_may_not_write_to_a_folder_of_the_store_is_told_which_and_nothing_changes(closed: str) -> None:
    require_root()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "home").mkdir()
        root = folder / "home" / "store"
        (folder / "small.tar").write_bytes(pack(members_of(SMALL, "small:1")))
        for path in (folder / "home", folder / "small.tar"):
            os.chown(path, NOBODY, NOBODY)

        def work() -> None:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            put(root, KEPT, "kept:1", "going:1")
            put_dead(root, DEAD)
            place = root / closed
            place.chmod(0o500)
            before, store = snapshot(root), Store(root)
            read_in_every_way(store, folder / "home" / "out.tar")
            for action in (
                lambda: store.import_image(memory_of({"b:1": SMALL}), "b:1"),
                lambda: store.load(folder / "small.tar"),
                # Names need no room beside the blobs, nor a new file beside the locks.
                *(
                    (lambda: store.tag("kept:1", "b:1"), lambda: store.remove("going:1"))
                    if closed in ("", "history")
                    else ()
                ),
            ):
                with pytest.raises(StoreUnavailable, match=rf"^cannot use {root}.*[Pp]ermission denied"):
                    action()
            names = read_names(root)
            check_invariants(root, leftovers=True)
            with suppress(StoreError):
                assert [error for error in store.prune().errors if "ermission denied" not in error] == []
            place.chmod(0o700 if closed != "blobs/sha256" else 0o755)
            assert read_names(root) == names
            assert before.keys() - snapshot(root).keys() <= {path for path in before if path.startswith("blobs/")}
            Store(root).remove("going:1")
            check_well(root)

        assert run_forked(work, timeout_seconds=30) == 0
