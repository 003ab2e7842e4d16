"""Removing and measuring trees: all of it goes, nothing else does, however deep, odd or hostile it is."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibox_store import _files, _trees
from tests.support.forks import run_forked
from tests.support.os_proxy import replaced_os
from tests.support.snapshots import snapshot
from tests.support.stores import bound, mounted, require_root

DEPTH = 3000


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no removal may touch."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"precious")
    return folder


def make_deep(top: Path, depth: int) -> None:
    """Make directories in one another, deeper than any path can say."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here), "wb") as file:
        file.write(b"12345")
    os.close(here)


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_tree_deeper_than_a_path_can_be_is_measured_and_removed_with_few_open_files(tmp_path: Path) -> None:
    make_deep(tmp_path / "tree", DEPTH)
    most = open_count() + 8

    def work() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert _trees.measure_tree(str(tmp_path / "tree")).size_bytes == 5
        _files.remove_tree(str(tmp_path / "tree"))

    assert run_forked(work, timeout_seconds=60) == 0
    assert list(tmp_path.iterdir()) == []


def test_links_devices_and_sockets_go_themselves_and_lead_nowhere(tmp_path: Path, outside: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    for name, target in (("a", outside), ("b", outside / "deep" / "file"), ("c", "/nowhere"), ("d", ".."), ("e", "e")):
        (tree / "folder" / name).symlink_to(target)
    os.mkfifo(tree / "fifo")
    os.link(outside / "deep" / "file", tree / "hard")
    before = snapshot(outside)
    assert _trees.measure_tree(str(tree)).size_bytes == sum(
        each.lstat().st_size for each in (tree / "folder").iterdir()
    ), "what has another name elsewhere gives nothing back"
    _files.remove_tree(str(tree))
    assert not os.path.lexists(tree)
    assert snapshot(outside) == before


def test_a_link_in_the_place_of_a_tree_is_removed_and_not_followed(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "tree").symlink_to(outside)
    with pytest.raises(OSError, match="tree"):
        _trees.remove_tree(str(tmp_path / "tree"))
    before = snapshot(outside)
    _files.remove_tree(str(tmp_path / "tree"))
    assert not os.path.lexists(tmp_path / "tree")
    assert snapshot(outside) == before


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for remove in (_files.remove_tree, _trees.remove_tree):
        with pytest.raises(FileNotFoundError):
            remove(str(tmp_path / "tree"))
    assert _trees.measure_tree(str(tmp_path / "tree")) == _trees.Measure(size_bytes=0, changed_seconds=None)


def test_names_of_one_file_give_its_bytes_back_once_and_only_when_all_of_them_are_in_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "one").write_bytes(bytes(100))
    os.link(tree / "one", tree / "folder" / "two")
    os.link(tree / "one", tree / "folder" / "three")
    (tree / "shared").write_bytes(bytes(1000))
    os.link(tree / "shared", tmp_path / "elsewhere")
    (tree / "alone").write_bytes(bytes(7))
    assert _trees.measure_tree(str(tree)).size_bytes == 107


@pytest.mark.parametrize("kind", ["bind", "tmpfs", "file"])
def test_a_mount_deep_in_a_tree_ends_the_removal_and_loses_nothing(tmp_path: Path, outside: Path, kind: str) -> None:
    tree = tmp_path / "tree"
    point = tree / "a" / "b" / "c"
    point.parent.mkdir(parents=True)
    if kind == "file":
        point.touch()
        with bound_file(outside / "deep" / "file", point), pytest.raises(OSError, match="busy"):
            _files.remove_tree(str(tree))
    elif kind == "bind":
        # The very same file system: no device number tells.
        with bound(outside, point):
            assert point.stat().st_dev == tree.stat().st_dev
            with pytest.raises(OSError, match="mounted"):
                _files.remove_tree(str(tree))
            assert _trees.measure_tree(str(tree)) == _trees.Measure(size_bytes=0, changed_seconds=None)
    else:
        with mounted(point):
            (point / "file").write_bytes(b"precious")
            with pytest.raises(OSError, match="mounted"):
                _files.remove_tree(str(tree))
            assert (point / "file").read_bytes() == b"precious"
    assert (outside / "deep" / "file").read_bytes() == b"precious"
    _files.remove_tree(str(tree))


@contextmanager
def bound_file(source: Path, target: Path) -> Iterator[None]:
    """Let a file show another one for the block."""
    require_root()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=10)


def test_a_directory_that_is_moved_out_while_it_is_emptied_takes_nothing_with_it(tmp_path: Path, outside: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_bytes(b"x")
    before = snapshot(outside)
    with replaced_os(trees=True) as system:
        system.after("unlink", lambda: os.rename(tree / "a" / "b", outside / "b"), path="b/file")
        with pytest.raises(OSError, match="moved") as caught:
            _files.remove_tree(str(tree))
    assert caught.value.errno == errno.ESTALE
    (outside / "b").rmdir()
    assert snapshot(outside) == before


def test_a_directory_that_is_swapped_for_a_link_before_it_is_gone_into_is_not_followed(
    tmp_path: Path, outside: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    before = snapshot(outside)

    def swap() -> None:
        (tree / "a").rmdir()
        (tree / "a").symlink_to(outside)

    with replaced_os(trees=True) as system:
        system.before("open", swap, path="tree/a")
        with pytest.raises(NotADirectoryError):
            _files.remove_tree(str(tree))
    assert snapshot(outside) == before


def test_what_somebody_else_removes_meanwhile_is_no_error(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("a", "b", "c"):
        (tree / name / "deep").mkdir(parents=True)
        (tree / name / "file").write_bytes(b"x")

    def remove_all() -> None:
        for name in ("a", "b", "c"):
            shutil.rmtree(tree / name)

    with replaced_os(trees=True) as system:
        system.before("unlink", remove_all, path="/file")
        _files.remove_tree(str(tree))
    assert not tree.exists()


def test_a_user_removes_what_the_modes_of_his_own_directories_forbid(tmp_path: Path) -> None:
    require_root()
    top = Path("/tmp") / f"minibox-{os.getpid()}-modes"
    tree = top / "tree"
    for mode in (0o000, 0o111, 0o400, 0o500, 0o555):
        (tree / oct(mode) / "below").mkdir(parents=True)
        (tree / oct(mode) / "below" / "file").write_bytes(b"x")
        (tree / oct(mode) / "file").write_bytes(b"x")
    for path in [top, *top.rglob("*")]:
        os.chown(path, 65534, 65534)
    for mode in (0o000, 0o111, 0o400, 0o500, 0o555):
        (tree / oct(mode) / "below").chmod(mode)
        (tree / oct(mode)).chmod(mode)
    tree.chmod(0o555)

    def work() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        _files.remove_tree(str(tree))

    try:
        assert run_forked(work) == 0
        assert list(top.iterdir()) == []
    finally:
        shutil.rmtree(top)


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
trees = st.recursive(
    st.one_of(st.binary(max_size=20), st.just("link")),
    lambda below: st.dictionaries(names, below, max_size=4),
    max_leaves=12,
)


def build(path: Path, tree: object, target: Path) -> int:
    """Make what a value says, and return what its removal gives back."""
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return len(tree)
    if isinstance(tree, dict):
        path.mkdir()
        return sum(build(path / name, below, target) for name, below in tree.items())
    path.symlink_to(target)
    return path.lstat().st_size


@given(trees)
@settings(max_examples=60, deadline=None)
def test_any_tree_goes_whole_and_was_as_heavy_as_what_is_in_it(
    tmp_path_factory: pytest.TempPathFactory, tree: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    size_bytes = build(folder / "tree", tree, outside)
    measure = _trees.measure_tree(str(folder / "tree"))
    assert measure.size_bytes == size_bytes
    assert measure.changed_seconds is not None
    _files.remove_tree(str(folder / "tree"))
    assert [path.name for path in folder.iterdir()] == ["outside"]
    assert (outside / "file").read_bytes() == b"precious"


def test_the_number_of_system_calls_grows_with_the_tree_and_not_faster(tmp_path: Path) -> None:
    counts = []
    for size in (200, 400, 800):
        tree = tmp_path / str(size)
        for number in range(size):
            (tree / f"d{number}").mkdir(parents=True)
            (tree / f"d{number}" / "file").touch()
        with replaced_os(trees=True) as system:
            _files.remove_tree(str(tree))
        counts.append(len(system.calls))
    assert counts[1] / counts[0] < 2.1
    assert counts[2] / counts[1] < 2.1


def test_a_mode_is_not_changed_through_a_link(tmp_path: Path, outside: Path) -> None:
    outside.chmod(0o500)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    _files.remove_tree(str(tree))
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500
    outside.chmod(0o700)
