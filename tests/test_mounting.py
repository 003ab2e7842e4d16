"""The process behind a mount: what begins it, what ends it, and what is left then, which is nothing."""

import contextlib
import ctypes
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_store.errors import (
    ContentMismatch,
    ImageNotFound,
    IncompleteImage,
    InvalidPath,
    MissingLibrary,
    PlatformNotFound,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from minibox_store.reports.file_status import FileKind
from minibox_store.rootfs.mount_talk import decode_failure, encode_failure
from minibox_store.rootfs.mounting import Mount, mount_image
from tests.support.forks import RAISED, forked, kill, not_possible, run_forked, sleep_for_ever
from tests.support.peers import require_peer
from tests.support.served_trees import (
    KILLED,
    digest_of,
    encoded,
    entry,
    is_mounted,
    is_running,
    mount_here,
    mount_point,
    mount_tree,
    mounts_at,
    require_fuse,
    small_tree,
)
from tests.support.waiting import wait_for

NOBODY = 65534
NOT_POSSIBLE = 97
NEW_MOUNTS, PRIVATE, BIND = 0x20000, 0x44000, 0x1000
UNANSWERED = "not connected|Input/output error|connection abort"


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Path]:
    with mount_point(tmp_path / "mounted") as path:
        yield path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file, and let it be closed with an error: the server is asked of that too."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            os.close(file)


def assert_nothing_is_left(mount_pid: int, at: Path) -> None:
    wait_for(lambda: not is_mounted(at), "it is still mounted")
    wait_for(lambda: not is_running(mount_pid), "its server is still there")
    assert os.listdir(at) == []


def test_a_mount_answers_when_it_is_returned_and_is_gone_when_it_is_closed(at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        assert (at / "hello").read_bytes() == b"hello, world\n"
        assert sorted(os.listdir(at)) == ["below", "hello"]
        assert mount.directory == str(at)
        assert mount.digest == digest_of(small_tree())
        assert is_running(mount.pid)
    assert not is_running(mount.pid)
    assert not mount.was_busy
    assert_nothing_is_left(mount.pid, at)


def test_the_table_of_mounts_tells_which_image_it_is_and_what_it_may_not(at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        (line,) = mounts_at(at)
        own, _, rest = line.partition(" - ")
        kind, source, options = rest.split(" ")
        assert kind == "fuse.minibox"
        assert source == mount.digest
        assert {"ro", "nosuid", "nodev"} <= set(own.split(" ")[5].split(","))
        assert {"ro", "default_permissions"} <= set(options.split(","))
        assert ("allow_other" in options.split(",")) == (os.geteuid() == 0), "a user's is for that user alone"


def test_it_may_be_closed_twice(at: Path) -> None:
    mount = mount_tree(small_tree(), at)
    mount.close()
    with mount_tree(small_tree(), at):
        mount.close()  # and takes away nothing that was mounted after it
        assert (at / "below/file").read_bytes() == b"deeper"


def test_an_error_in_the_block_unmounts_too(at: Path) -> None:
    with pytest.raises(KeyError), mount_tree(small_tree(), at) as mount:
        raise KeyError
    assert_nothing_is_left(mount.pid, at)


def test_one_tree_is_mounted_in_two_places(at: Path, tmp_path: Path) -> None:
    with mount_point(tmp_path / "second") as second:
        with mount_tree(small_tree(), at), mount_tree(small_tree(), second):
            assert (at / "hello").read_bytes() == (second / "hello").read_bytes()
            assert os.stat(at).st_dev != os.stat(second).st_dev
        assert not is_mounted(second)


def test_a_mount_over_it_is_left_alone(at: Path) -> None:
    require_fuse()
    mount = mount_tree(small_tree(), at)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(at), b"tmpfs", 0, None):
        mount.close()
        not_possible("no right to mount")
    mount.close()
    assert " - tmpfs " in mounts_at(at)[-1]  # what lies below cannot be unmounted, but its server is gone
    assert not is_running(mount.pid)


def test_a_mount_goes_from_where_it_is_when_a_folder_above_it_was_renamed(tmp_path: Path) -> None:
    with mount_point(tmp_path / "before" / "mounted") as at:
        mount = mount_tree(small_tree(), at)
        (tmp_path / "before").rename(tmp_path / "after")
        try:
            mount.close()
            assert_nothing_is_left(mount.pid, tmp_path / "after" / "mounted")
        finally:
            (tmp_path / "after").rename(tmp_path / "before")


# ---- whoever mounted is no more


def mounts_and(ending: Callable[[Mount], None], at: Path, told: Path) -> Callable[[], None]:
    def run() -> None:
        mount = mount_tree(small_tree(), at)
        told.write_text(str(mount.pid))
        ending(mount)

    return run


def raise_an_error(_mount: Mount) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # the process ends of it
    raise RuntimeError


def kill_itself(_mount: Mount) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_mount: Mount) -> None:
    os._exit(0)


def leave_a_fork(_mount: Mount) -> None:
    """End, while a fork that has everything open lives on."""
    if os.fork() == 0:
        time.sleep(20)
    os._exit(0)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (lambda _: None, 0),
        (raise_an_error, RAISED),
        (leave, 0),
        (kill_itself, -signal.SIGKILL),
        (leave_a_fork, 0),
    ],
    ids=["returns", "raises", "leaves", "is-killed", "leaves-a-fork"],
)
def test_a_mount_goes_with_the_process_that_made_it(
    ending: Callable[[Mount], None], status: int, at: Path, tmp_path: Path
) -> None:
    require_fuse()
    told = tmp_path / "pid"
    assert run_forked(mounts_and(ending, at, told)) == status
    assert_nothing_is_left(int(told.read_text()), at)


def test_a_fork_of_the_process_that_mounted_takes_nothing_away(at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        assert run_forked(mount.close) == 0
        assert (at / "hello").read_bytes() == b"hello, world\n"


def test_a_mount_that_somebody_works_in_goes_with_the_process_that_made_it(at: Path, tmp_path: Path) -> None:
    require_fuse()
    told = tmp_path / "pid"

    def mount_for_ever(ready: Callable[[], None]) -> None:
        told.write_text(str(mount_tree(small_tree(), at).pid))
        ready()
        sleep_for_ever()

    with forked(mount_for_ever) as pid, opened(at / "hello") as file:
        kill(pid)
        assert_nothing_is_left(int(told.read_text()), at)
        with pytest.raises(OSError, match=UNANSWERED):
            os.pread(file, 1, 0)


# ---- the server is told to end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_server_unmounts(number: signal.Signals, at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        os.kill(mount.pid, number)
        assert_nothing_is_left(mount.pid, at)
    assert not mount.was_busy


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_process_ignores_or_blocks_reaches_the_server(number: signal.Signals, at: Path) -> None:
    require_fuse()

    def run() -> None:
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        with mount_tree(small_tree(), at) as mount:
            os.kill(mount.pid, number)
            assert_nothing_is_left(mount.pid, at)

    assert run_forked(run) == 0


def test_an_interrupt_at_the_terminal_is_for_the_program_alone(at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        assert os.getpgid(mount.pid) != os.getpgid(0)
        assert os.getsid(mount.pid) != os.getsid(0)


def test_the_server_ends_when_somebody_else_unmounts(at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        subprocess.run(["umount", str(at)], check=True, timeout=10)
        assert_nothing_is_left(mount.pid, at)


def test_what_a_killed_server_leaves_is_taken_away_by_closing(at: Path) -> None:
    with mount_tree(small_tree(), at) as mount:
        os.kill(mount.pid, signal.SIGKILL)
        wait_for(lambda: not is_running(mount.pid), "it is not dead")
        with pytest.raises(OSError, match=UNANSWERED):
            os.statvfs(at)
        assert is_mounted(at)
    assert_nothing_is_left(mount.pid, at)


def test_closing_a_server_that_does_not_answer_ends_it(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibox_store.rootfs.mounting._END_SECONDS", 0.3)
    mount = mount_tree(small_tree(), at)
    os.kill(mount.pid, signal.SIGSTOP)
    mount.close()
    assert_nothing_is_left(mount.pid, at)


def test_a_mount_in_use_is_closed_all_the_same_and_told(at: Path, caplog: pytest.LogCaptureFixture) -> None:
    mount = mount_tree(small_tree(), at)
    with opened(at / "hello") as file:
        with caplog.at_level(logging.WARNING):
            mount.close()
        assert_nothing_is_left(mount.pid, at)
        with pytest.raises(OSError, match=UNANSWERED):
            os.pread(file, 4, 0)
    assert mount.was_busy
    assert f"{at} is unmounted though it is in use" in caplog.text


# ---- what cannot be mounted


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPath, match="no such file or directory"):
        mount_tree(small_tree(), tmp_path / "nowhere")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidPath, match="not a directory"):
        mount_tree(small_tree(), tmp_path / "file")


def test_a_link_to_a_directory_is_refused(at: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(at)
    with pytest.raises(InvalidPath, match="symbolic link"):
        mount_tree(small_tree(), tmp_path / "link")
    assert not is_mounted(at)


def test_a_directory_that_holds_something_is_refused(at: Path) -> None:
    (at / "kept").write_bytes(b"")
    with pytest.raises(InvalidPath, match="not empty"):
        mount_tree(small_tree(), at)
    assert os.listdir(at) == ["kept"]


def test_a_directory_at_which_something_empty_is_mounted_is_refused(at: Path) -> None:
    require_fuse()
    if ctypes.CDLL(None, use_errno=True).mount(b"none", os.fsencode(at), b"tmpfs", 0, None):
        not_possible("no right to mount")
    with pytest.raises(InvalidPath, match="something is mounted there already"):
        mount_tree(small_tree(), at)
    (line,) = mounts_at(at)
    assert " - tmpfs " in line


def test_of_many_who_mount_at_one_directory_at_once_one_does(at: Path) -> None:
    require_fuse()

    def mount(_: int) -> Mount | InvalidPath:
        try:
            return mount_here(small_tree(), at)
        except InvalidPath as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(mount, range(4)))
    assert sum("something is mounted there already" in str(each) for each in found) == 3
    (mounted,) = [each for each in found if isinstance(each, Mount)]
    with mounted:
        assert len(mounts_at(at)) == 1
        assert (at / "hello").exists()
    assert not is_mounted(at)


def test_a_directory_that_is_made_anew_for_each_mount_does_not_go_while_somebody_mounts_there(at: Path) -> None:
    require_fuse()

    def place(_: str) -> str:
        with contextlib.suppress(FileExistsError):
            at.mkdir()
        return str(at)

    def mount_and_close(_: int) -> str:
        try:
            with mount_image(None, entry=mount_here.__module__, image=small_tree(), place=place):
                return "mounted"
        except InvalidPath as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(mount_and_close, range(24)))
    assert "mounted" in found
    assert not [each for each in found if "No such file" in each or "not empty" in each], found
    assert not is_mounted(at)


def test_a_mount_whose_server_is_dead_is_refused_and_named(at: Path) -> None:
    mount = mount_tree(small_tree(), at)
    os.kill(mount.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(mount.pid), "it is not dead")
    with pytest.raises(InvalidPath, match=UNANSWERED):
        mount_tree(small_tree(), at)
    mount.close()


@pytest.mark.parametrize(
    "error",
    [
        ImageNotFound("alpine"),
        IncompleteImage("alpine", ("sha256:aa", "sha256:bb")),
        PlatformNotFound("alpine", "linux/arm64", ("linux/amd64",)),
        ContentMismatch("a layer", "sha256:aa", "sha256:bb"),
        StoreBusy("/store", 12, 34.5, "pruning"),
        StoreDamaged("/store", "it is damaged"),
    ],
)
def test_what_opening_the_image_raises_is_raised_here(error: StoreError, at: Path) -> None:
    with pytest.raises(type(error)) as raised:
        mount_tree(error, at)
    assert raised.value.args == error.args
    assert str(raised.value) == str(error)
    assert not is_mounted(at)


def test_another_error_of_the_server_is_told_with_its_name(at: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"ZeroDivisionError\('by nothing'\)"):
        mount_tree(ZeroDivisionError("by nothing"), at)


def test_a_server_that_dies_of_the_first_question_leaves_no_mount(at: Path) -> None:
    require_fuse()
    with pytest.raises((StoreError, OSError), match=UNANSWERED):
        mount_tree({"/": entry(FileKind.DIRECTORY, 1, KILLED.encode())}, at)
    assert not is_mounted(at)
    assert os.listdir(at) == []


def test_a_directory_that_was_made_for_a_mount_goes_when_there_is_none(at: Path) -> None:
    require_fuse()
    tree = {"/": entry(FileKind.DIRECTORY, 1, KILLED.encode())}
    with pytest.raises((StoreError, OSError), match=UNANSWERED):
        mount_image(None, entry=mount_here.__module__, image=tree, place=lambda _: str(at))
    assert not is_mounted(at)
    assert not at.exists()


def test_a_server_that_dies_early_is_told(at: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"the server of the mount ended with status -9"):
        mount_tree(KILLED, at)


class Harm:
    """What makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_an_answer_that_would_do_something_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no error of this library"):
        decode_failure(encoded(Harm(tmp_path / "harm")))
    assert not (tmp_path / "harm").exists()


def test_an_answer_that_is_no_error_of_this_library_is_not_taken() -> None:
    for harmful in (encoded(os.system), encoded(ValueError("no")), encoded([1]), encoded(StoreError), b"", b"\x80"):
        with pytest.raises(ValueError, match="no error of this library"):
            decode_failure(harmful)
    assert pickle.loads(encode_failure(ImageNotFound("a"))).args == ("a",)


def test_without_fuse_in_the_kernel_the_sentence_of_libfuse_is_told(at: Path) -> None:
    require_fuse()

    def run() -> None:
        if not bind_privately("/dev/null", "/dev/fuse"):
            os._exit(NOT_POSSIBLE)
        with pytest.raises(StoreUnavailable, match=r"fuse: .*mount") as raised:
            mount_here(small_tree(), at)
        assert raised.value.path == str(at)

    status = run_forked(run)
    if status == NOT_POSSIBLE:
        not_possible("no right to mount")
    assert status == 0
    assert not is_mounted(at)


def bind_privately(source: Path | str, target: str) -> bool:
    """Let another file be at a path, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    apart = not libc.unshare(NEW_MOUNTS) and not libc.mount(b"none", b"/", None, PRIVATE, None)
    return apart and not libc.mount(os.fsencode(source), target.encode(), None, BIND, None)


def test_without_mfusepy_it_is_said_what_to_install(at: Path) -> None:
    def run() -> None:
        sys.modules.pop("mfusepy", None)
        sys.path[:] = [folder for folder in sys.path if "site-packages" not in folder]
        sys.path_importer_cache.clear()
        with pytest.raises(MissingLibrary, match=r"minibox-store\[fuse\]"):
            mount_here(small_tree(), at)

    assert run_forked(run) == 0


# ---- who mounts, and where from


def test_without_libfuse_3_it_is_said_what_is_needed(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "/nowhere/libfuse3.so.3")
    with pytest.raises(StoreUnavailable, match="libfuse 3 is needed to mount an image: /nowhere/libfuse3"):
        mount_tree(small_tree(), at)
    assert not is_mounted(at)


def test_without_libfuse_3_no_image_is_opened(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "/nowhere/libfuse3.so.3")
    with pytest.raises(StoreUnavailable, match="libfuse 3 is needed"):
        mount_tree(KILLED, at)


def test_another_library_in_its_place_is_told_as_one(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_LIBRARY_PATH", "libc.so.6")
    with pytest.raises(StoreUnavailable, match=r"libfuse 3 is needed to mount an image: .*fuse_version"):
        mount_tree(small_tree(), at)
    assert not is_mounted(at)


def test_an_empty_path_of_libfuse_is_none() -> None:
    require_fuse()
    # What the tools of the system find first may be libfuse 2; here they find nothing.
    program = "import ctypes.util; ctypes.util.find_library = lambda name: None\n"
    program += "from minibox_store.rootfs.libfuse import mfusepy; print(mfusepy.fuse_version_major)"
    environment = {**os.environ, "FUSE_LIBRARY_PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, timeout=30, capture_output=True
    )
    assert found.stdout == b"3\n"


def test_neither_the_working_directory_nor_the_environment_leads_the_server_astray(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    (trap / "minibox_store").mkdir(parents=True)
    for name in ("minibox_store/__init__.py", "sitecustomize.py", "mfusepy.py", "pickle.py", "attrs.py"):
        (trap / name).write_text(f"open({str(tmp_path / 'caught')!r}, 'w')\nraise ImportError('caught')")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", str(trap))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with mount_tree(small_tree(), at):
        assert (at / "hello").exists()
    assert not (tmp_path / "caught").exists()


AS_A_USER = """
import os, sys
from tests.support.served_trees import is_mounted, mount_here, mounts_at, small_tree
from pathlib import Path

at = Path(sys.argv[1])
assert os.getuid() == 65534
with mount_here(small_tree(), at) as mount:
    assert (at / "hello").read_bytes() == b"hello, world\\n"
    (line,) = mounts_at(at)
    assert "user_id=65534" in line and "allow_other" not in line and " ro,nosuid,nodev" in line, line
    print(Path(f"/proc/{mount.pid}/status").read_text().split("Uid:")[1].split()[0], flush=True)
    sys.stdin.readline()
assert not is_mounted(at)
with mount_here(small_tree(), at) as mount:
    opened = os.open(at / "hello", os.O_RDONLY)
    mount.close()
    assert mount.was_busy
assert not is_mounted(at)
mount_here(small_tree(), at)
"""


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that every user may enter; pytest closes its own to others again whenever it begins."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_user_mounts_what_that_user_alone_sees(for_all: Path) -> None:
    require_fuse()
    require_peer("fusermount3")
    setpriv = require_peer("setpriv")

    def run() -> None:
        # Where users may not open the device, as they may where udev is at work, it gets a name that they may.
        os.mknod(for_all / "fuse", stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        os.chmod(for_all / "fuse", 0o666)
        if not bind_privately(for_all / "fuse", "/dev/fuse"):
            os._exit(NOT_POSSIBLE)
        with mount_point(for_all / "mounted") as at:
            os.chown(at, NOBODY, NOBODY)
            mount_as_a_user(setpriv, at)

    status = run_forked(run, timeout_seconds=60) if os.geteuid() == 0 else NOT_POSSIBLE
    if status == NOT_POSSIBLE:
        not_possible("only root can become a user here")
    assert status == 0


def mount_as_a_user(setpriv: str, at: Path) -> None:
    # The Python may lie where users cannot read; nothing else of what root may do is left.
    right = "-all,+dac_read_search"
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    become += [f"--inh-caps={right}", f"--ambient-caps={right}"]
    command = [*become, sys.executable, "-c", AS_A_USER, str(at)]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"65534\n"
        with pytest.raises(PermissionError):
            os.listdir(at)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait(30) == 0
    wait_for(lambda: not is_mounted(at), "it is still mounted")
