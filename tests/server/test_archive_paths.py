"""Which files a client may name: links, mounts, pipes and the store's own folders."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minibox_server.archive_paths import ArchivePaths
from minibox_server.responses import RequestError
from minibox_store import Store, StoreUnavailable
from tests.server.mounts import bind_mount
from tests.support.forks import not_possible, run_forked
from tests.support.images import build_image
from tests.support.sources import memory_of
from tests.support.stores import blob, rot

OWN = ["blobs", "lazy", "cache", "extracted", "base_layers", "ingest", "tmp", "layers", "containers", "volumes"]
OWN += ["images", "quarantine", "history", "journal", "files", "tmp-pull-1", "tmp-layer-abc"]
OWN_FILES = ["index.json", "oci-layout", "state.json", "listing.cache", "index.json.tmp-1"]
F_SETSIG = 10


class Place:
    """An allowed folder with a DataRoot in it, and a folder that is not allowed."""

    def __init__(self, folder: Path) -> None:
        self.allowed = folder / "allowed"
        self.outside = folder / "outside"
        self.data_root = self.allowed / "data"
        for name in OWN:
            (self.data_root / name).mkdir(parents=True)
        self.outside.mkdir()
        for file in (self.allowed / "in.tar", self.outside / "out.tar", *(self.data_root / name for name in OWN_FILES)):
            file.write_bytes(file.name.encode())
        self.paths = ArchivePaths((str(self.allowed), str(folder / "absent")), str(self.data_root))

    def load(self, path: Path | str) -> bytes:
        with self.paths.open_archive(str(path)) as file:
            return file.read()

    def save(self, path: Path | str, content: bytes = b"new") -> None:
        with self.paths.open_target(str(path)) as (folder, name):
            opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, dir_fd=folder)
            os.write(opened, content)
            os.close(opened)

    def statuses(self, path: Path | str) -> list[int]:
        """Return how a load and a save of the path are answered, 200 where they are let pass."""
        statuses = []
        for open_it in (self.paths.open_archive, self.paths.open_target):
            try:
                with open_it(str(path)):
                    statuses.append(200)
            except RequestError as error:
                statuses.append(error.status)
        return statuses


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    before = set(os.listdir("/proc/self/fd"))
    yield Place(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


def test_a_file_below_a_prefix_is_read(place: Place) -> None:
    assert place.load(place.allowed / "in.tar") == b"in.tar"


def test_a_file_below_a_prefix_is_created_and_replaced(place: Place) -> None:
    place.save(place.allowed / "new.tar")
    place.save(place.allowed / "new.tar", b"newer")
    assert (place.allowed / "new.tar").read_bytes() == b"newer"


@pytest.mark.parametrize("path", ["relative.tar", "./a", "", "~/a", "/tmp/a\0b", "\0"])
def test_a_path_that_is_not_absolute_or_has_a_nul_is_no_path(place: Place, path: str) -> None:
    assert place.statuses(path) == [400, 400]


def test_what_lies_outside_is_refused(place: Place) -> None:
    for path in ("out.tar", "new.tar"):
        assert place.statuses(place.outside / path) == [403, 403]
    assert place.statuses("/etc/passwd") == [403, 403]
    assert place.statuses("/new.tar") == [403, 403]
    with pytest.raises(RequestError, match="below MINIBOX_ARCHIVE_PREFIXES"):
        place.load("/etc/passwd")


def test_whether_something_exists_outside_is_not_told(place: Place) -> None:
    assert place.statuses(place.outside / "no" / "such" / "file") == [403, 403]
    assert place.statuses("/etc/no-such-file") == [403, 403]


def test_a_name_that_begins_like_a_prefix_is_not_below_it(place: Place) -> None:
    beside = Path(f"{place.allowed}-beside")
    beside.mkdir()
    (beside / "a.tar").write_bytes(b"")
    assert place.statuses(beside / "a.tar") == [403, 403]


def test_dots_are_followed_as_the_kernel_follows_them(place: Place) -> None:
    assert place.statuses(f"{place.allowed}/../outside/out.tar") == [403, 403]
    assert place.statuses(f"{place.outside}/../allowed/in.tar") == [200, 200]
    (place.allowed / "link").symlink_to(place.outside)
    assert place.statuses(f"{place.allowed}/link/../outside/out.tar") == [403, 403]


def test_a_missing_file_or_folder_is_named(place: Place) -> None:
    for path in (place.allowed / "no.tar", place.allowed / "no" / "such.tar", place.allowed / "in.tar" / "x"):
        with pytest.raises(RequestError, match=str(path)) as caught:
            place.load(path)
        assert caught.value.status == 400
    for path in (place.allowed / "no" / "such.tar", place.allowed / "in.tar" / "x"):
        with pytest.raises(RequestError, match=str(path)) as caught:
            place.save(path)
        assert caught.value.status == 400


def test_a_name_that_no_file_can_have_is_no_path(place: Place) -> None:
    assert place.statuses(place.allowed / ("n" * 300)) == [400, 400]
    assert place.statuses(f"{place.allowed}/{'n/' * 3000}n") == [400, 400]


@pytest.mark.parametrize("end", ["/", "/.", "/..", "/data/"])
def test_save_names_a_file_and_no_folder(place: Place, end: str) -> None:
    assert place.statuses(f"{place.allowed}{end}")[1] == 400


def test_a_link_to_outside_is_refused(place: Place) -> None:
    (place.allowed / "file").symlink_to(place.outside / "out.tar")
    (place.allowed / "folder").symlink_to(place.outside)
    (place.allowed / "dangling").symlink_to(place.outside / "new.tar")
    assert place.statuses(place.allowed / "file") == [403, 403]
    assert place.statuses(place.allowed / "folder" / "out.tar") == [403, 403]
    assert place.statuses(place.allowed / "dangling")[1] == 403
    assert not (place.outside / "new.tar").exists()


def test_a_link_inside_is_read_through_and_never_written_through(place: Place) -> None:
    (place.allowed / "link").symlink_to("in.tar")
    assert place.load(place.allowed / "link") == b"in.tar"
    assert place.statuses(place.allowed / "link") == [200, 403]


def test_a_link_from_outside_to_inside_is_as_good_as_its_target(place: Place) -> None:
    (place.outside / "way-in").symlink_to(place.allowed)
    assert place.statuses(place.outside / "way-in" / "in.tar") == [200, 200]


def test_a_loop_of_links_is_no_path(place: Place) -> None:
    (place.allowed / "loop").symlink_to("loop")
    assert place.statuses(place.allowed / "loop") == [400, 403]
    assert place.statuses(place.allowed / "loop" / "x") == [400, 400]


def test_a_prefix_may_itself_be_a_link(place: Place) -> None:
    (place.outside / "prefix").symlink_to(place.allowed)
    paths = ArchivePaths((str(place.outside / "prefix"),), str(place.data_root))
    with paths.open_archive(str(place.allowed / "in.tar")) as file:
        assert file.read() == b"in.tar"


def test_the_root_may_be_a_prefix(place: Place) -> None:
    everywhere = ArchivePaths(("/",), str(place.data_root))
    with everywhere.open_archive(str(place.outside / "out.tar")) as file:
        assert file.read() == b"out.tar"


def test_without_any_prefix_nothing_is_allowed(place: Place) -> None:
    paths = ArchivePaths((), str(place.data_root))
    with pytest.raises(RequestError) as caught, paths.open_archive(str(place.allowed / "in.tar")):
        pass
    assert caught.value.status == 403


@pytest.mark.parametrize("name", OWN)
def test_nothing_is_read_from_or_written_to_the_folders_of_the_store(place: Place, name: str) -> None:
    below = place.data_root / name / "below"
    below.mkdir()
    for path in (below / "file.tar", below.parent / "file.tar"):
        path.write_bytes(b"")
        assert place.statuses(path) == [403, 403]
        assert place.statuses(path.with_name("new.tar"))[1] == 403


@pytest.mark.parametrize("name", [*OWN_FILES, *OWN, "INDEX.JSON", "Blobs", "tmp-pull-new", "state.json.old"])
def test_nothing_is_created_or_replaced_under_the_names_of_the_store(place: Place, name: str) -> None:
    assert place.statuses(place.data_root / name)[1] == 403
    if name in OWN_FILES:
        assert place.statuses(place.data_root / name) == [403, 403]


def test_beside_the_names_of_the_store_archives_may_lie(place: Place) -> None:
    place.save(place.data_root / "backup.tar")
    (place.data_root / "archives").mkdir()
    place.save(place.data_root / "archives" / "index.json")
    assert place.statuses(place.data_root / "backup.tar") == [200, 200]


def test_links_and_hard_links_to_what_the_store_owns_are_refused(place: Place) -> None:
    (place.allowed / "store").symlink_to(place.data_root)
    (place.allowed / "blobs").symlink_to(place.data_root / "blobs")
    (place.allowed / "index").symlink_to(place.data_root / "index.json")
    os.link(place.data_root / "index.json", place.allowed / "hard")
    assert place.statuses(place.allowed / "store" / "index.json") == [403, 403]
    assert place.statuses(place.allowed / "blobs" / "new.tar")[1] == 403
    assert place.statuses(place.allowed / "index") == [403, 403]
    assert place.statuses(place.allowed / "hard") == [403, 403]


def test_a_folder_of_the_store_that_is_a_link_is_known_where_it_leads(place: Place) -> None:
    (place.data_root / "layers").rmdir()
    elsewhere = place.allowed / "big-disk"
    elsewhere.mkdir()
    (elsewhere / "a.tar").write_bytes(b"")
    (place.data_root / "layers").symlink_to(elsewhere)
    assert place.statuses(elsewhere / "a.tar") == [403, 403]


@pytest.mark.parametrize("name", ["", "blobs", "blobs/sha256", "containers"])
def test_bind_mounts_of_the_store_are_refused(place: Place, name: str) -> None:
    (place.data_root / "blobs" / "sha256").mkdir()
    (place.data_root / name / "inner").mkdir()
    target = place.allowed / "mounted"
    with bind_mount(place.data_root / name, target):
        below = target / "blobs" if name == "" else target
        (below / "inner").mkdir(exist_ok=True)
        (below / "a.tar").write_bytes(b"")
        (below / "inner" / "a.tar").write_bytes(b"")
        assert place.statuses(below / "a.tar") == [403, 403]
        assert place.statuses(below / "inner" / "a.tar") == [403, 403]


def test_a_bind_mount_of_an_outside_folder_lies_where_it_is_mounted(place: Place) -> None:
    target = place.allowed / "mounted"
    with bind_mount(place.outside, target):
        assert place.statuses(target / "out.tar") == [200, 200]
    with bind_mount(place.allowed, place.outside / "mounted"):
        assert place.statuses(place.outside / "mounted" / "in.tar") == [200, 200]


def test_a_folder_mounted_inside_itself_is_followed_to_the_root(place: Place) -> None:
    target = place.data_root / "blobs" / "again"
    with bind_mount(place.data_root / "blobs", target):
        (target / "a.tar").write_bytes(b"")
        assert place.statuses(target / "a.tar") == [403, 403]


def test_a_pipe_is_never_waited_for(place: Place) -> None:
    os.mkfifo(place.allowed / "pipe")
    statuses: list[int] = []
    asking = threading.Thread(target=lambda: statuses.extend(place.statuses(place.allowed / "pipe")), daemon=True)
    asking.start()
    asking.join(5)
    assert statuses == [403, 403]
    assert stat.S_ISFIFO((place.allowed / "pipe").lstat().st_mode)


def test_folders_sockets_and_devices_are_neither_read_nor_replaced(place: Place) -> None:
    (place.allowed / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.allowed / "socket"))
        for name in ("folder", "socket"):
            assert place.statuses(place.allowed / name) == [403, 403]
    everywhere = ArchivePaths(("/",), str(place.data_root))
    for path in ("/dev/null", "/dev/zero"):
        with pytest.raises(RequestError) as caught, everywhere.open_archive(path):
            pass
        assert caught.value.status == 403


def test_the_descriptors_of_the_daemon_are_no_files_of_a_client(place: Place) -> None:
    everywhere = ArchivePaths(("/",), str(place.data_root))
    reading, writing = os.pipe()
    memory = os.memfd_create("memory")
    deleted = os.open(place.allowed / "deleted", os.O_RDWR | os.O_CREAT)
    (place.allowed / "deleted").unlink()
    try:
        for descriptor in (reading, memory, deleted):
            with pytest.raises(RequestError) as caught, everywhere.open_archive(f"/proc/self/fd/{descriptor}"):
                pass
            assert caught.value.status == 403
    finally:
        for descriptor in (reading, writing, memory, deleted):
            os.close(descriptor)


def test_a_file_that_is_leased_is_not_waited_for(place: Place) -> None:
    with (place.allowed / "in.tar").open("rb+") as file:
        # Who breaks the lease is told to us by a signal; this one is ignored.
        fcntl.fcntl(file, F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(RequestError) as caught:
            place.load(place.allowed / "in.tar")
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert caught.value.status == 400


def test_a_file_that_is_swapped_after_it_was_opened_is_not_the_one_that_is_read(place: Place) -> None:
    path = place.allowed / "in.tar"
    with place.paths.open_archive(str(path)) as file:
        path.unlink()
        path.symlink_to(place.outside / "out.tar")
        assert file.read() == b"in.tar"


def test_a_folder_that_is_swapped_after_it_was_opened_is_not_written_to(place: Place) -> None:
    folder = place.allowed / "folder"
    folder.mkdir()
    with place.paths.open_target(str(folder / "new.tar")) as (opened, name):
        folder.rename(place.allowed / "moved")
        folder.symlink_to(place.outside)
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=opened))
    assert (place.allowed / "moved" / "new.tar").exists()
    assert not (place.outside / "new.tar").exists()


def test_while_links_are_swapped_nothing_outside_is_ever_reached(place: Place) -> None:
    (place.allowed / "real").mkdir()
    (place.allowed / "real" / "a.tar").write_bytes(b"inside")
    (place.outside / "a.tar").write_bytes(b"outside")
    swapped, done = place.allowed / "swapped", threading.Event()
    targets = [place.allowed / "real", place.outside]

    def swap() -> None:
        turn = 0
        while not done.is_set():
            (place.allowed / "next").symlink_to(targets[turn % 2])
            (place.allowed / "next").rename(swapped)
            turn += 1

    swapped.symlink_to(targets[0])
    swapping = threading.Thread(target=swap)
    swapping.start()
    seen = set()
    try:
        for _ in range(500):
            with contextlib.suppress(RequestError):
                seen.add(place.load(swapped / "a.tar"))
            with contextlib.suppress(RequestError):
                place.save(swapped / "written")
    finally:
        done.set()
        swapping.join()
    assert seen == {b"inside"}
    assert not (place.outside / "written").exists()


def test_where_the_daemons_user_may_not_look_is_refused_whatever_there_is() -> None:
    if os.getuid() != 0:
        not_possible("to become another user needs root")
    # A folder of pytest's own is for nobody but us.
    with tempfile.TemporaryDirectory(prefix="archives-") as top:
        os.chmod(top, 0o755)
        place = Place(Path(top))
        locked = [place.allowed / "locked", place.outside / "locked"]
        for folder in locked:
            folder.mkdir()
            (folder / "there.tar").write_bytes(b"theirs")
            folder.chmod(0o700)

        def look() -> None:
            os.setgroups([])
            os.setuid(65534)
            assert place.load(place.allowed / "in.tar") == b"in.tar"
            for folder in locked:
                for path in (folder / "there.tar", folder / "absent.tar", folder / "absent" / "new.tar"):
                    assert place.statuses(path) == [403, 403], path

        def look_without_store() -> None:
            os.setuid(65534)
            with pytest.raises(StoreUnavailable, match=re.escape(str(place.data_root))):
                place.load(place.allowed / "in.tar")

        assert run_forked(look) == 0
        place.data_root.chmod(0o700)
        assert run_forked(look_without_store) == 0


def test_before_the_store_exists_its_names_are_kept_free(tmp_path: Path) -> None:
    paths = ArchivePaths((str(tmp_path),), str(tmp_path / "data"))
    with pytest.raises(RequestError) as caught, paths.open_target(str(tmp_path / "data" / "index.json")):
        pass
    assert caught.value.status == 400
    (tmp_path / "data").mkdir()
    with pytest.raises(RequestError) as caught, paths.open_target(str(tmp_path / "data" / "index.json")):
        pass
    assert caught.value.status == 403


def test_nothing_that_a_store_makes_in_its_folder_may_be_read_or_written(place: Place) -> None:
    store = Store(place.data_root / "store", durability="none")
    image = build_image([{"etc/motd": b"hello"}])
    for number in range(70):  # so many that the listing is kept
        store.import_image(memory_of({"app:1": image}), "app:1", as_name=f"app:{number}")
    rot(blob(place.data_root / "store", image.layer_digests[0]))
    store.import_image(memory_of({"app:1": image}), "app:1", verify="content")
    store.images()
    store.prune()
    with store.open_files("app:1") as files:
        assert files.listdir("/etc") == ("motd",)
    made = {path.name for path in (place.data_root / "store").iterdir()}
    assert made >= {"index.json", "oci-layout", "blobs", "ingest", "history", "journal", "quarantine", "files"}
    for name in made:
        where = place.data_root / name
        if (place.data_root / "store" / name).is_dir():
            where.mkdir(exist_ok=True)
            (where / "file").write_bytes(b"ours")
            where /= "file"
        assert place.statuses(where) == [403, 403], where
