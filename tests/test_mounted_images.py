"""Images that are mounted: the very files that unpacking gives, readable in any order, and never changed."""

import contextlib
import ctypes
import errno
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import minibox_store
from minibox_store import LINUX_AMD64, ImageNotFound, InvalidPath, Platform, PlatformNotFound, Store
from tests.support.compressions import layer_in
from tests.support.forks import run_alone, run_forked
from tests.support.hard_layers import CASES, folder, image_of, layer_of, member
from tests.support.images import BuiltImage, build_image, build_index
from tests.support.peers import require_peer
from tests.support.served_trees import is_mounted, is_running, mount_point, mounted_as_root, require_fuse
from tests.support.stores import blob, open_store, put, require_root, rot
from tests.support.tars import END
from tests.support.trees import assert_same_tree, read_tree
from tests.support.waiting import wait_for

NAME = "mounted:1"
MEBIBYTE = 1024 * 1024
REMOUNT_FOR_WRITING = 32  # MS_REMOUNT, without MS_RDONLY

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.fixture
def fuse() -> None:
    require_fuse()


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Path]:
    with mount_point(tmp_path / "mounted") as path:
        yield path


def stored(tmp_path: Path, image: BuiltImage) -> Store:
    put(tmp_path / "store", image, NAME)
    return open_store(tmp_path / "store")


@pytest.mark.parametrize(
    "case",
    [
        "the root itself",
        "modes",
        "owners",
        "times",
        "xattrs",
        "devices and FIFOs",
        "whiteouts",
        "links",
        "hard links",
        "long names by PAX",
        "names of other bytes",
        "members through a linked parent",
    ],
)
def test_a_mounted_image_is_what_unpacking_makes_of_it(case: str, tmp_path: Path, at: Path) -> None:
    require_root()
    store = stored(tmp_path, image_of(CASES[case]))
    store.unpack(NAME, tmp_path / "tree")
    with store.mount(NAME, at):
        assert_same_tree(read_tree(tmp_path / "tree"), read_tree(at))


def test_a_copy_of_a_mounted_image_is_what_unpacking_makes_of_it(tmp_path: Path, at: Path) -> None:
    require_root()
    members = [part for case in ("modes", "owners", "times", "hard links", "xattrs") for part in CASES[case]]
    store = stored(tmp_path, image_of(members))
    store.unpack(NAME, tmp_path / "tree")
    with store.mount(NAME, at):
        subprocess.run(["cp", "-a", str(at), str(tmp_path / "copy")], check=True, timeout=60)
    assert_same_tree(read_tree(tmp_path / "tree"), read_tree(tmp_path / "copy"))


# ---- reading


@pytest.fixture
def large(tmp_path: Path) -> tuple[Store, bytes]:
    """Return a store whose image has ``/large``, of bytes that differ everywhere, and what is in it."""
    content = random.Random(7).randbytes(9 * MEBIBYTE + 123)
    layers = [layer_of([member("before", content=b"b" * 5000), member("large", content=content)])]
    return stored(tmp_path, build_image(layers)), content


def test_a_file_is_read_from_anywhere_by_many_at_once(large: tuple[Store, bytes], at: Path) -> None:
    store, content = large

    def read_here_and_there(seed: int) -> Callable[[], None]:
        def run() -> None:
            choice = random.Random(seed)
            with open(at / "large", "rb", buffering=0) as file:
                for _ in range(40):
                    offset = choice.randrange(len(content) + 4096)
                    size = choice.choice([1, 511, 4096, 70_000, 300_000])
                    assert os.pread(file.fileno(), size, offset) == content[offset : offset + size]

        return run

    with store.mount(NAME, at), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run_forked, [read_here_and_there(seed) for seed in range(4)])) == [0, 0, 0, 0]
        assert (at / "large").read_bytes() == content


def test_a_mount_that_has_become_the_root_of_its_server_is_read_as_before(tmp_path: Path, at: Path) -> None:
    forms = ("plain", "gzip, stored", "zstd, one frame")
    contents = {form: random.Random(form).randbytes(20 * MEBIBYTE) for form in forms}
    layers = [layer_in(form, member(form, content=content) + END) for form, content in contents.items()]
    store = stored(tmp_path, build_image(layers))
    store.open_files(NAME).close()  # the server finds indexes, and makes none

    def read_all() -> None:
        with mounted_as_root(store.mount(NAME, at), at):
            for form, content in contents.items():
                with open(f"/{form}", "rb") as file:
                    assert os.pread(file.fileno(), 4096, 19 * MEBIBYTE) == content[19 * MEBIBYTE :][:4096]

    require_root()
    require_peer("pivot_root")
    assert run_alone(read_all) == 0


def test_a_file_is_mapped_into_memory(large: tuple[Store, bytes], at: Path) -> None:
    store, content = large
    with (
        store.mount(NAME, at),
        open(at / "large", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert mapped[-500:] == content[-500:]
        assert mapped[MEBIBYTE - 7 : MEBIBYTE + 7] == content[MEBIBYTE - 7 : MEBIBYTE + 7]
        assert mapped[:] == content


def test_the_server_needs_little_memory(large: tuple[Store, bytes], at: Path) -> None:
    store, content = large
    with store.mount(NAME, at) as mount:
        assert len((at / "large").read_bytes()) == len(content)
        status = Path(f"/proc/{mount.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 150 * 1024


def test_many_names_are_listed_whole_and_each_is_found(tmp_path: Path, at: Path) -> None:
    names = [f"{number:05}-{'n' * (number % 200)}" for number in range(5000)]
    store = stored(tmp_path, image_of([[folder("many"), *(member(f"many/{name}") for name in names)]]))
    with store.mount(NAME, at):
        assert sorted(os.listdir(at / "many")) == names
        with os.scandir(at / "many") as entries:
            inodes = {entry.name: (entry.inode(), entry.is_file(follow_symlinks=False)) for entry in entries}
        assert all(inodes[name] == (os.stat(at / "many" / name).st_ino, True) for name in names[::50])
        assert len({inode for inode, _ in inodes.values()}) == len(names)
        with pytest.raises(FileNotFoundError):
            os.stat(at / "many" / "00000-none")


def test_a_directory_that_is_opened_often_takes_no_more_memory(tmp_path: Path, at: Path) -> None:
    many = [member(f"many/{number}") for number in range(20_000)]
    store = stored(tmp_path, image_of([[*many, folder("other")]]))
    with store.mount(NAME, at) as mount, contextlib.ExitStack() as opened:
        before = 0
        for _ in range(12):
            # Not to its end, so that the kernel has nothing kept for the next one.
            next(opened.enter_context(os.scandir(at / "many")))
            status = Path(f"/proc/{mount.pid}/status").read_text()
            resident_kib = int(status.split("VmRSS:")[1].split()[0])
            before = before or resident_kib
        assert resident_kib < before + 16 * 1024
        assert len(os.listdir(at / "many")) == len(many)


def test_names_of_one_file_share_its_inode(tmp_path: Path, at: Path) -> None:
    layers = [
        [member("a", content=b"same"), member("d/b", "hard link", target="a")],
        [member("c", "hard link", target="a")],
    ]
    store = stored(tmp_path, image_of(layers))
    with store.mount(NAME, at):
        found = {(os.stat(at / name).st_ino, os.stat(at / name).st_nlink) for name in ("a", "d/b", "c")}
        assert len(found) == 1
        assert found.pop()[1] == 3
        assert (at / "c").read_bytes() == b"same"


def test_attributes_are_listed_and_those_that_are_not_there_are_said_to_be_missing(tmp_path: Path, at: Path) -> None:
    require_root()
    long = bytes(range(256)) * 8
    xattrs = {"user.short": b"", "user.long": long, "trusted.mine": b"t"}
    store = stored(tmp_path, image_of([[member("file", xattrs=xattrs), member("bare")]]))
    with store.mount(NAME, at):
        assert sorted(os.listxattr(at / "file")) == sorted(xattrs)
        assert {name: os.getxattr(at / "file", name) for name in xattrs} == xattrs
        assert os.listxattr(at / "bare") == []
        for name in ("user.none", "security.capability"):
            with pytest.raises(OSError, match="No data available"):
                os.getxattr(at / "file", name)


# ---- what is damaged


def test_a_damaged_layer_spoils_its_own_files_alone_and_is_told(
    tmp_path: Path, at: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = random.Random(3).randbytes(2 * MEBIBYTE)
    image = image_of([[member("sound", content=noise)], [member("spoilt", content=noise[::-1])]])
    store = stored(tmp_path, image)
    store.open_files(NAME).close()
    rot(blob(tmp_path / "store", image.layer_digests[1]))
    with store.mount(NAME, at):
        assert sorted(os.listdir(at)) == ["sound", "spoilt"]
        with pytest.raises(OSError) as raised:  # noqa: PT011  # its number is asked below
            (at / "spoilt").read_bytes()
        assert raised.value.errno == errno.EIO
        assert (at / "sound").read_bytes() == noise
        assert (at / "spoilt").stat().st_size == len(noise)
    told = capfd.readouterr().err
    assert "cannot read /spoilt in the mounted image: " in told
    assert image.layer_digests[1] in told
    assert "/sound" not in told


def test_what_is_pruned_stays_readable_as_long_as_it_is_mounted(large: tuple[Store, bytes], at: Path) -> None:
    store, content = large
    with store.mount(NAME, at):
        store.remove(NAME)
        assert store.prune().blobs_removed > 0
        assert (at / "large").read_bytes() == content


# ---- changing


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda at: os.open(at / "file", os.O_WRONLY),
    "truncate": lambda at: os.truncate(at / "file", 1),
    "create": lambda at: os.open(at / "new", os.O_WRONLY | os.O_CREAT, 0o600),
    "remove": lambda at: os.unlink(at / "file"),
    "remove a directory": lambda at: os.rmdir(at / "folder"),
    "make a directory": lambda at: os.mkdir(at / "new"),
    "make a device": lambda at: os.mknod(at / "new", stat.S_IFIFO | 0o600),
    "make a link": lambda at: os.symlink("file", at / "new"),
    "make a hard link": lambda at: os.link(at / "file", at / "new"),
    "rename": lambda at: os.rename(at / "file", at / "new"),
    "chmod": lambda at: os.chmod(at / "file", 0o777),
    "chown": lambda at: os.chown(at / "file", 1, 1),
    "set times": lambda at: os.utime(at / "file"),
    "set an attribute": lambda at: os.setxattr(at / "file", "user.new", b"x"),
    "remove an attribute": lambda at: os.removexattr(at / "file", "user.old"),
}


def change_by_writing(at: Path) -> None:
    """Write into an opened file: opening it is not refused where the kernel thinks that the mount may be written to."""
    file = os.open(at / "file", os.O_WRONLY)
    try:
        os.write(file, b"changed")
        os.fsync(file)
    finally:
        os.close(file)


@pytest.mark.parametrize("how", ["as it is mounted", "mounted anew for writing"])
def test_nothing_can_be_changed(how: str, tmp_path: Path, at: Path) -> None:
    require_root()
    store = stored(tmp_path, image_of([[member("file", content=b"kept", xattrs={"user.old": b"o"}), folder("folder")]]))
    with store.mount(NAME, at):
        before = read_tree(at)
        changes = CHANGES
        if how != "as it is mounted":
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.mount(None, os.fsencode(at), None, REMOUNT_FOR_WRITING, None) == 0
            changes = {**CHANGES, "write": change_by_writing}
        for name, change in changes.items():
            with pytest.raises(OSError) as raised:  # noqa: PT011  # its number is asked below
                change(at)
            assert raised.value.errno == errno.EROFS, name
        assert read_tree(at) == before


def test_other_users_see_what_the_image_lets_them(tmp_path: Path) -> None:
    require_root()
    members = [member("open", content=b"o"), member("secret", content=b"s", mode=0o600), folder("closed", mode=0o700)]
    store = stored(tmp_path, image_of([members]))

    def look_as_a_user(at: Path) -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        assert (at / "open").read_bytes() == b"o"
        with pytest.raises(PermissionError):
            (at / "secret").read_bytes()
        with pytest.raises(PermissionError):
            os.listdir(at / "closed")

    # Whoever begins to run tests closes pytest's own folders to others.
    with tempfile.TemporaryDirectory() as top, mount_point(Path(top) / "mounted") as at, store.mount(NAME, at):
        os.chmod(top, 0o755)
        assert run_forked(lambda: look_as_a_user(at)) == 0


# ---- the store's side


def test_an_image_is_mounted_in_the_store_and_the_directory_goes_with_it(tmp_path: Path) -> None:
    image = build_image()
    store = stored(tmp_path, image)
    place = tmp_path / "store" / "lazy" / image.digest.removeprefix("sha256:")
    with store.mount(NAME) as mount:
        assert mount.directory == str(place)
        assert mount.digest == image.digest
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        assert os.listdir(place) != []
        with pytest.raises(InvalidPath, match="something is mounted there already"):
            store.mount(NAME)
        assert is_mounted(place)
    assert not place.exists()
    with store.mount(NAME) as mount:
        assert mount.directory == str(place)
    assert not is_running(mount.pid)


def test_a_prune_leaves_a_mount_alone_and_takes_away_what_a_killed_server_leaves(tmp_path: Path) -> None:
    image = build_image()
    store = stored(tmp_path, image)
    place = tmp_path / "store" / "lazy" / image.digest.removeprefix("sha256:")
    with store.mount(NAME) as mount:
        os.stat(place)  # the kernel keeps the answer, and gives it when the server is dead, too
        assert store.prune().fuse_mounts_killed == 0
        assert os.listdir(place) != []
        os.kill(mount.pid, signal.SIGKILL)
        wait_for(lambda: not is_running(mount.pid), "it is not dead")
        assert is_mounted(place)
        report = store.prune()
        assert (report.fuse_mounts_killed, report.errors) == (1, ())
        assert not is_mounted(place)
        assert store.prune().fuse_mounts_killed == 0
    with store.mount(NAME) as mount:
        assert mount.directory == str(place)
    assert not is_mounted(place)


def test_a_relative_directory_is_one_of_here_and_now(tmp_path: Path, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path, build_image())
    monkeypatch.chdir(tmp_path)
    mount = store.mount(NAME, "mounted")
    monkeypatch.chdir("/")
    assert mount.directory == str(at)
    mount.close()
    assert not is_mounted(at)


FROM_A_ZIP_FILE = """
import sys

sys.path.insert(0, "library.zip")
from minibox_store import Store

with Store("store").mount("mounted:1", "mounted") as mount:
    sys.stdout.write(open(f"/proc/{mount.pid}/cmdline").read())
"""


def test_the_server_is_of_the_library_that_mounts_also_where_that_lies_in_a_zip_file_of_here(
    tmp_path: Path, at: Path
) -> None:
    stored(tmp_path, image_of([[member("file")]]))
    package = Path(minibox_store.__file__).parent
    with zipfile.ZipFile(tmp_path / "library.zip", "w") as library:
        for path in package.rglob("*.py"):
            library.write(path, path.relative_to(package.parent))
    done = subprocess.run(
        [sys.executable, "-c", FROM_A_ZIP_FILE], cwd=tmp_path, capture_output=True, check=True, text=True, timeout=60
    )
    folders = done.stdout.split("\0")
    assert str(tmp_path / "library.zip") in folders, folders
    assert at.is_dir()


def test_the_platform_is_chosen_as_for_files(tmp_path: Path, at: Path) -> None:
    images = {name: build_image([{name: b""}], platform=f"linux/{name}") for name in ("amd64", "arm64")}
    put(tmp_path / "store", build_index(list(images.values())), NAME)
    store = open_store(tmp_path / "store")
    with store.mount(NAME, at) as mount:
        assert os.listdir(at) == ["amd64"]
        assert mount.digest == images["amd64"].digest
    with store.mount(NAME, at, platform=Platform.parse("linux/arm64")):
        assert os.listdir(at) == ["arm64"]
    with pytest.raises(PlatformNotFound, match="linux/s390x"):
        store.mount(NAME, at, platform=Platform.parse("linux/s390x"))
    with store.mount(NAME, at, platform=LINUX_AMD64):
        assert os.listdir(at) == ["amd64"]


def test_an_image_that_is_not_there_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    store = stored(tmp_path, build_image())
    with pytest.raises(ImageNotFound):
        store.mount("other:1")
    assert not (tmp_path / "store" / "lazy").exists()


def test_a_mount_is_a_use_of_the_image(tmp_path: Path, at: Path) -> None:
    store = stored(tmp_path, build_image())
    names = tmp_path / "store" / "journal" / "names"
    names.write_text("")
    store.mount(NAME, at).close()
    assert NAME in names.read_text()


def test_of_access_lists_no_file_has_any_and_of_other_attributes_this_one_has_not(tmp_path: Path, at: Path) -> None:
    image = image_of([[member("with", xattrs={"user.x": b"1"}), member("without")]])
    with stored(tmp_path, image).mount(NAME, at):
        assert os.getxattr(at / "with", "user.x") == b"1"
        refused = {}
        for name in ("user.x", "user.y", "system.posix_acl_access", "security.selinux"):
            with pytest.raises(OSError, match="without") as error:
                os.getxattr(at / "without", name)
            refused[name] = error.value.errno
    # Who lists a tree asks no second file for what the file system has not.
    assert refused == {
        "user.x": errno.ENODATA,
        "user.y": errno.ENODATA,
        "system.posix_acl_access": errno.EOPNOTSUPP,
        "security.selinux": errno.EOPNOTSUPP,
    }
