"""Reading what is mounted: wherever, by whoever, under whatever name; and what cannot be seen counts as used."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibox_store._mount_views import parse_mountinfo
from minibox_store.mounts import read_mounts
from tests.support.forks import run_forked
from tests.support.fuse import served
from tests.support.namespaces import another_namespace
from tests.support.stores import bound, mounted, require_root

# What is mounted here may be made of anything, and so whoever prunes meanwhile keeps what it would remove.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432  # the same on all machines
_AT_CWD, _CLONE, _FROM_ITSELF = -100, 1, 4
_SET_STRING, _SET_FD, _CREATE = 1, 5, 6
ODD_NAMES = ["a b", "a\tb", "a\nb", "a\\b", "a:b", "a,b", "a#b", "ä\r", "\\054", "a\udcffb"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder that may be part of a mount, beside another one that is not."""
    for name in ("tree", "other", "tree-longer"):
        (tmp_path / name / "usr" / "bin").mkdir(parents=True)
    return tmp_path / "tree"


def who(path: Path) -> str | None:
    """Return why a folder must stay now."""
    return read_mounts().who_mounts(str(path))


def overlay_options(*lower: Path) -> str:
    escaped = [str(each).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for each in lower]
    return "lowerdir=" + ":".join(escaped)


@contextmanager
def overlaid(folder: Path, *lower: Path) -> Iterator[Path]:
    """Mount an overlay by the system call: the program of that name has an opinion about commas."""
    import ctypes

    require_root()
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    lower = (*lower, folder.parent / "base")
    lower[-1].mkdir(exist_ok=True)
    options = os.fsencode(overlay_options(*lower))
    assert libc.mount(b"overlay", os.fsencode(folder), b"overlay", 0, options) == 0, os.strerror(ctypes.get_errno())
    try:
        yield folder
    finally:
        subprocess.run([b"umount", b"-l", os.fsencode(folder)], check=True, timeout=10)


# What a mountinfo says


def escaped(text: str) -> bytes:
    """Return a field as the kernel writes it."""
    return b"".join(b"\\%03o" % each if each in b" \t\n\\#" else bytes([each]) for each in os.fsencode(text))


paths = st.text(st.characters(blacklist_characters="\0", max_codepoint=0x2FF), max_size=20).map(lambda text: "/" + text)


@given(paths, paths)
def test_every_path_is_read_as_it_was_written(root: str, point: str) -> None:
    line = b"36 35 98:0 %s %s rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue" % (
        escaped(root),
        escaped(point),
    )
    (mount,) = parse_mountinfo(line + b"\n")
    assert (mount.number, mount.parent, mount.device, mount.kind) == (36, 35, "98:0", "ext3")
    assert (mount.root, mount.point) == (root, point)
    assert mount.made_of == ()


@given(st.lists(paths, min_size=1, max_size=4))
def test_every_part_of_an_overlay_is_read_as_it_was_meant(parts: list[str]) -> None:
    def option(text: str) -> bytes:
        return b"".join(b"\\%03o" % each if each in b", \t\n\\" else bytes([each]) for each in os.fsencode(text))

    joined = ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in parts)
    single = parts[0].replace("\\", "\\\\")
    line = b"1 2 0:9 / /m rw - overlay overlay rw,lowerdir=%s,upperdir=%s,workdir=%s,xino=off" % (
        option(joined),
        option(single),
        option(single),
    )
    (mount,) = parse_mountinfo(line)
    assert mount.made_of == (*parts, parts[0], parts[0])
    each = b",".join(b"lowerdir+=" + option(part.replace("\\", "\\\\")) for part in parts)
    (added,) = parse_mountinfo(b"1 2 0:9 / /m rw - overlay overlay rw," + each)
    assert (added.made_of, added.added, mount.added) == (tuple(parts), tuple(parts), ())


def test_what_the_options_of_other_file_systems_say_is_no_part_of_an_overlay() -> None:
    assert parse_mountinfo(b"1 2 0:9 / /m rw - tmpfs lowerdir=/x rw,lowerdir=/x")[0].made_of == ()


# What is in use


def test_what_nothing_mounts_is_in_nobodys_use(tree: Path) -> None:
    assert who(tree) is None
    assert who(tree / "nowhere") is None


@pytest.mark.parametrize("part", ["", "usr", "usr/bin"])
def test_a_folder_is_in_use_while_it_or_a_part_of_it_is_mounted_elsewhere(tree: Path, part: str) -> None:
    with bound(tree / part, tree.parent / "elsewhere"):
        assert who(tree) is not None
        assert who(tree.parent / "other") is None
        assert who(tree.parent / "tree-longer") is None
    assert who(tree) is None


def test_a_folder_is_in_use_while_something_is_mounted_in_it(tree: Path) -> None:
    with mounted(tree / "usr"):
        assert who(tree) is not None
        assert who(tree / "usr" / "bin") is None
        assert who(tree.parent / "other") is None
    assert who(tree) is None


def test_a_folder_is_not_in_use_because_one_above_it_is_mounted_elsewhere(tree: Path) -> None:
    with bound(tree.parent / "other", tree.parent / "shown"), bound(tree, tree.parent / "elsewhere"):
        assert who(tree / "usr") is None


@pytest.mark.parametrize("part", ["", "usr"])
def test_a_folder_is_in_use_while_an_overlay_is_made_of_it(tree: Path, part: str) -> None:
    with overlaid(tree.parent / "merged", tree.parent / "other", tree / part):
        assert who(tree) is not None
        assert who(tree.parent / "other") is not None
        assert who(tree.parent / "tree-longer") is None
    assert who(tree) is None


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_characters_in_paths_hide_nothing(tmp_path: Path, name: str) -> None:
    odd, plain = tmp_path / name, tmp_path / "plain"
    odd.mkdir()
    plain.mkdir()
    with overlaid(tmp_path / "merged", odd):
        assert who(odd) is not None
        assert who(plain) is None
    with bound(odd, tmp_path / "elsewhere"):
        assert who(odd) is not None
    with bound(plain, odd):
        assert who(odd) is not None


def test_a_folder_is_in_use_while_another_name_for_it_is_part_of_an_overlay(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    with overlaid(tree.parent / "merged", tree.parent / "link" / "usr"):
        assert who(tree) is not None
        assert who(tree.parent / "other") is None


def test_a_link_is_in_use_while_an_overlay_is_made_of_what_it_leads_to_by_its_name(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    with overlaid(tree.parent / "merged", tree.parent / "link"):
        assert who(tree.parent / "link") is not None


def test_a_folder_is_in_use_though_its_parent_is_seen_in_two_places(tree: Path) -> None:
    with bound(tree.parent, tree.parent.with_name("twice")) as twice, mounted(twice / "tree" / "usr"):
        assert who(tree) is not None
        assert who(tree.parent / "other") is None


def test_what_another_namespace_has_mounted_counts(tree: Path) -> None:
    elsewhere = tree.parent / "elsewhere"
    elsewhere.mkdir()
    for command in (
        ["mount", "--bind", str(tree / "usr"), str(elsewhere)],
        ["mount", "-t", "tmpfs", "none", str(tree / "usr")],
        ["mount", "-t", "overlay", "-o", f"lowerdir={tree}:{tree.parent}/other", "overlay", str(elsewhere)],
    ):
        with another_namespace(command):
            assert not os.path.ismount(elsewhere)
            assert who(tree) is not None, command
            assert who(tree.parent / "tree-longer") is None
        assert who(tree) is None


def test_an_overlay_of_another_namespace_counts_by_what_it_means_there(tree: Path) -> None:
    """There the folder has another name, under which this namespace has nothing."""
    hidden = tree.parent / "hidden"
    hidden.mkdir()
    with another_namespace(
        ["mount", "--bind", str(tree.parent), "/mnt"],
        ["mount", "-t", "overlay", "-o", "lowerdir=/mnt/tree/usr:/mnt/other", "overlay", str(hidden)],
    ):
        assert who(tree) is not None
        assert who(tree.parent / "tree-longer") is None


@pytest.mark.parametrize(
    "after",
    [
        # Its namespace has left the root in which the paths were meant, or has hidden them.
        ["mount", "-t", "tmpfs", "none", "{parent}"],
        ["umount", "-l", "/mnt"],
    ],
)
def test_an_overlay_counts_though_its_paths_lead_nowhere_any_more_where_it_lives(tree: Path, after: list[str]) -> None:
    merged = tree.parent / "merged"
    merged.mkdir()
    lower = "lowerdir={0}/tree:{0}/other".format("/mnt" if after[0] == "umount" else tree.parent)
    with another_namespace(
        ["mount", "--bind", str(tree.parent), "/mnt"],
        ["mount", "-t", "overlay", "-o", lower, "overlay", str(merged)],
        [part.format(parent=tree.parent) for part in after],
    ):
        assert who(tree) is not None
        assert who(tree.parent / "tree-longer") is None
    assert who(tree) is None


@pytest.mark.parametrize(
    "lower", ["{parent}/away/link/../tree", "away/short", "../{name}/away/short", "{parent}/away/short"]
)
def test_an_overlay_counts_by_where_the_links_in_its_paths_lead(tree: Path, lower: str) -> None:
    away = tree.parent / "away"
    away.mkdir()
    (away / "link").symlink_to(tree.parent / "other")
    (away / "short").symlink_to("../tree")
    merged = tree.parent / "merged"
    merged.mkdir()
    text = lower.format(parent=tree.parent, name=tree.parent.name)
    with another_namespace(
        ["mount", "-i", "-t", "overlay", "-o", f"lowerdir={text}:other", "overlay", str(merged)], folder=tree.parent
    ):
        assert who(tree) is not None
        assert who(tree.parent / "tree-longer") is None


def test_a_path_of_an_overlay_that_may_not_be_looked_at_leads_somewhere(tree: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        overlaid(tree.parent / "merged", tree.parent / "tree-longer"),
    ):
        tree.parent.chmod(0o700)
        os.chmod(folder, 0o755)
        Path(folder, "tree-longer").mkdir()

        def work() -> None:
            os.setgid(65534)
            os.setuid(65534)
            assert who(Path(folder, "tree-longer")) is None

        assert run_forked(work) == 0


def test_what_only_whoever_mounted_an_overlay_could_name_is_a_doubt(tree: Path) -> None:
    merged = tree.parent / "merged"
    merged.mkdir()
    script = f"exec 7<{tree}; exec mount -t overlay -o lowerdir=/proc/self/fd/7:{tree.parent}/other overlay {merged}"
    with another_namespace(["sh", "-c", script]):
        assert any("/proc/self/fd/7" in doubt for doubt in read_mounts().doubts)
    assert read_mounts().doubts == []


@pytest.mark.parametrize(("cloned", "opened"), [("tree", "."), ("tree", "usr"), (".", "tree")])
def test_an_overlay_of_open_folders_counts_though_their_mount_lies_nowhere(
    tree: Path, cloned: str, opened: str
) -> None:
    """What is shown of such a folder is its path on that mount: for its root a mere slash."""
    merged = tree.parent / "merged"
    merged.mkdir()
    with ExitStack() as stack:
        try:
            clone = call_mount_system(_OPEN_TREE, _AT_CWD, os.fsencode(tree.parent / cloned), _CLONE | os.O_CLOEXEC)
            stack.callback(os.close, clone)
            lower = os.open(opened, os.O_PATH, dir_fd=clone)
            stack.callback(os.close, lower)
            context = call_mount_system(_FSOPEN, b"overlay", 0)
            stack.callback(os.close, context)
            call_mount_system(_FSCONFIG, context, _SET_FD, b"lowerdir+", None, lower)
            call_mount_system(_FSCONFIG, context, _SET_STRING, b"lowerdir+", os.fsencode(tree.parent / "other"), 0)
            call_mount_system(_FSCONFIG, context, _CREATE, None, None, 0)
            mount = call_mount_system(_FSMOUNT, context, 0, 0)
            stack.callback(os.close, mount)
            call_mount_system(_MOVE_MOUNT, mount, b"", _AT_CWD, os.fsencode(merged), _FROM_ITSELF)
        except OSError as error:
            pytest.skip(f"this system makes no overlay of open folders: {error}")
        stack.callback(subprocess.run, ["umount", "-l", str(merged)], check=True, timeout=10)
        assert who(tree) is not None
    assert who(tree) is None


def call_mount_system(*arguments: int | bytes | None) -> int:
    """Do one of the system calls by which mounts are made of parts; the C library need not know them."""
    import ctypes

    require_root()
    libc = ctypes.CDLL(None, use_errno=True)
    returned = libc.syscall(*arguments)
    if returned < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(returned)


def test_a_link_into_what_a_server_that_stands_still_serves_is_not_followed(tree: Path) -> None:
    merged = tree.parent / "merged"
    (tree.parent / "link").symlink_to(tree / "usr" / "served")
    with served(tree / "usr" / "served") as pid, overlaid(merged, tree.parent / "link"):
        os.kill(pid, signal.SIGSTOP)
        try:

            def work() -> None:
                assert who(tree) is not None
                assert who(tree.parent / "other") is None

            assert run_forked(work, timeout_seconds=10) == 0
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_process_with_another_root_hides_nothing_that_its_namespace_has(tree: Path) -> None:
    """It sees less than there is, and is asked before another one that sees all."""
    elsewhere = tree.parent / "elsewhere"
    elsewhere.mkdir()
    with another_namespace(["mount", "--bind", str(tree), str(elsewhere)], root=tree.parent / "other") as pid:
        assert b"tree" not in Path(f"/proc/{pid}/mountinfo").read_bytes()
        assert who(tree) is not None
        assert who(tree.parent / "tree-longer") is None


@pytest.mark.parametrize(("folder", "text"), [("", "tree"), ("tree", "usr"), ("..", "{name}/tree")])
def test_an_overlay_of_relative_paths_counts_wherever_they_may_lead(tree: Path, folder: str, text: str) -> None:
    merged = tree.parent / "merged"
    merged.mkdir()
    option = text.format(name=tree.parent.name)
    code = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); os.chdir(sys.argv[1]);"
        "sys.exit(libc.mount(b'overlay', os.fsencode(sys.argv[2]), b'overlay', 0, os.fsencode(sys.argv[3])))"
    )
    lower = f"lowerdir={option}:{tree.parent / 'other'}"
    require_root()
    with another_namespace([sys.executable, "-c", code, str(tree.parent / folder), str(merged), lower]) as pid:
        if os.fsencode(f"lowerdir={option}") not in Path(f"/proc/{pid}/mountinfo").read_bytes():
            pytest.skip("this system makes relative paths whole")
        assert who(tree) is not None


def test_a_process_that_has_ended_and_waits_to_be_asked_about_is_in_nobodys_way(tree: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        assert read_mounts().doubts == []


def test_a_namespace_that_only_a_file_keeps_is_a_doubt(tree: Path) -> None:
    require_root()
    keeping = tree.parent / "keeping"
    keeping.mkdir()
    with mounted(keeping):
        subprocess.run(["mount", "--make-private", str(keeping)], check=True, timeout=10)
        (keeping / "namespace").touch()
        command = ["unshare", f"--mount={keeping / 'namespace'}", "true"]
        if subprocess.run(command, timeout=10, check=False).returncode:
            pytest.skip("a file cannot keep a namespace here")
        assert any("namespace" in doubt for doubt in read_mounts().doubts)
        subprocess.run(["umount", str(keeping / "namespace")], check=True, timeout=10)
    assert read_mounts().doubts == []


def test_what_a_user_cannot_look_into_is_a_doubt_only_where_it_has_what_nobody_else_shows(tree: Path) -> None:
    require_root()
    merged = tree.parent / "merged"
    merged.mkdir()
    command = ["mount", "-t", "overlay", "-o", f"lowerdir={tree}:{tree.parent}/other", "overlay", str(merged)]

    def check(expected: bool) -> None:
        def work() -> None:
            os.setgid(65534)
            os.setuid(65534)
            assert bool(read_mounts().doubts) == expected

        assert run_forked(work) == 0

    check(expected=False)
    with another_namespace(["mount", "-t", "tmpfs", "none", str(merged)]):
        check(expected=False)  # what is mounted on what is told to everybody
    with another_namespace(command):
        check(expected=True)


def test_a_server_that_stands_still_is_not_asked_for_anything(tree: Path) -> None:
    merged = tree.parent / "merged"
    with served(tree / "usr" / "served") as pid, overlaid(merged, tree / "usr" / "served"):
        os.kill(pid, signal.SIGSTOP)
        try:

            def work() -> None:
                assert who(tree) is not None
                assert who(tree.parent / "other") is None

            assert run_forked(work, timeout_seconds=10) == 0
        finally:
            os.kill(pid, signal.SIGCONT)


def test_what_is_mounted_while_it_is_read_is_no_doubt(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot be looked into shows an overlay that was not there when this process looked at its own."""
    merged = tree.parent / "merged"
    merged.mkdir()
    command = ["mount", "-t", "overlay", "-o", f"lowerdir={tree}:{tree.parent}/other", "overlay", str(merged)]
    require_root()
    real = os.readlink

    def look(path: str) -> str:
        if path == "/proc/1/ns/mnt":
            if not merged.is_mount():
                subprocess.run(command, check=True, timeout=10)
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.readlink", look)
            table = read_mounts()
        assert merged.is_mount()
        assert table.doubts == []
        assert table.who_mounts(str(tree)) is not None
    finally:
        subprocess.run(["umount", str(merged)], check=True, timeout=10)
