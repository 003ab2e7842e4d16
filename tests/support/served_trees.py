"""A tree of files that is mounted without any image: what the kernel is told can be tested apart from layers.

It is its own server: the module is run in the process behind the mount.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minibox_store.errors import ContentMismatch
from minibox_store.reports.file_status import FileKind, FileStatus
from minibox_store.rootfs.mounting import Mount, mount_image
from tests.support.forks import not_possible

Files = Mapping[str, tuple[FileStatus, bytes]]

DAMAGED = b"damaged"  # a file of this content cannot be read
KILLED = "killed"  # opened instead of a tree, or the content of its root: the server dies of it
_WAIT_SECONDS = 60.0
_DETACH = 2


class ServedFile(NamedTuple):
    """One of them."""

    path: str
    status: FileStatus
    content: bytes


class ServedTree:
    """Files by their paths; the root is ``/``, and each directory has to be there."""

    def __init__(self, files: Files) -> None:
        self._files = {path: ServedFile(path, *file) for path, file in files.items()}
        self._children: dict[str, list[tuple[str, ServedFile]]] = {path: [] for path in files}
        for path, file in self._files.items():
            if path != "/":
                self._children[os.path.dirname(path)].append((os.path.basename(path), file))

    @property
    def xattr_names(self) -> frozenset[str]:
        return frozenset(name for file in self._files.values() for name in file.status.xattrs)

    @property
    def root(self) -> ServedFile:
        if self._files["/"].content == KILLED.encode():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._files["/"]

    def child(self, directory: ServedFile, name: str) -> ServedFile | None:
        return self._files.get(f"{directory.path.rstrip('/')}/{name}")

    def children(self, directory: ServedFile, start: int) -> list[tuple[str, ServedFile]]:
        return self._children[directory.path][start:]

    def read_at(self, node: ServedFile, offset: int, size_bytes: int) -> bytes:
        if node.content == DAMAGED:
            raise ContentMismatch("a layer", "sha256:aa", "sha256:bb")
        return node.content[offset : offset + size_bytes]


def main() -> None:
    """Serve such a tree; an error in place of one is what opening it raises."""
    from minibox_store.rootfs.serving import serve

    serve(_opened)


@contextlib.contextmanager
def _opened(files: Files | BaseException | str) -> Iterator[tuple[ServedTree, str]]:
    if isinstance(files, BaseException):
        raise files
    if isinstance(files, str):
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")
    yield ServedTree(files), digest_of(files)


def digest_of(files: Files) -> str:
    """Return what a tree calls itself."""
    return f"sha256:{hashlib.sha256(repr(sorted(files)).encode()).hexdigest()}"


def entry(kind: FileKind, inode: int, content: bytes = b"", **fields: Any) -> tuple[FileStatus, bytes]:
    """Return what is at a path; ``fields`` are those of FileStatus."""
    usual: dict[str, Any] = {"mode": 0o644, "size_bytes": len(content), "xattrs": {}}
    if kind is FileKind.DIRECTORY:
        usual.update(mode=0o755, link_count=2)
    return FileStatus(kind=kind, inode=inode, **{**usual, **fields}), content


def directory(inode: int, **fields: Any) -> tuple[FileStatus, bytes]:
    """Return a directory."""
    return entry(FileKind.DIRECTORY, inode, **fields)


def regular(inode: int, content: bytes, **fields: Any) -> tuple[FileStatus, bytes]:
    """Return a regular file."""
    return entry(FileKind.FILE, inode, content, **fields)


def small_tree() -> dict[str, tuple[FileStatus, bytes]]:
    """Return a root with a file and a directory that has one too."""
    return {
        "/": directory(1, link_count=3),
        "/hello": regular(2, b"hello, world\n"),
        "/below": directory(3),
        "/below/file": regular(4, b"deeper"),
    }


def mount_tree(files: Files | BaseException | str, at: Path) -> Mount:
    """Mount a tree; where FUSE is not to be had the test is skipped."""
    require_fuse()
    return mount_here(files, at)


def mount_here(files: Files | BaseException | str, at: Path) -> Mount:
    """Mount a tree."""
    return mount_image(str(at), entry=__name__, image=files, place=str)


def require_fuse() -> None:
    """Skip the test where nothing can be mounted through FUSE."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        not_possible(f"there is no FUSE: {os.strerror(error.errno or errno.ENODEV)}")


@contextlib.contextmanager
def mount_point(path: Path) -> Iterator[Path]:
    """Make a directory, and leave nothing mounted there."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        libc = ctypes.CDLL(None)
        while is_mounted(path) and libc.umount2(os.fsencode(path), _DETACH) == 0:
            pass


@contextlib.contextmanager
def mounted_as_root(mount: Mount, at: Path) -> Iterator[None]:
    """Make a mount the root of this process, and so of its server; in a process that ``run_alone`` has begun.

    A server that asks itself can be ended by nobody: after a while the kernel is told to answer in its place.
    """
    connections = at.with_name("connections")
    connections.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", connections], check=True, timeout=_WAIT_SECONDS)
    with open(connections / str(os.minor(at.stat().st_dev)) / "abort", "wb", buffering=0) as abort:
        ending = threading.Timer(_WAIT_SECONDS / 2, abort.write, (b"1",))
        subprocess.run(["pivot_root", ".", "."], cwd=at, check=True, timeout=_WAIT_SECONDS)
        os.chdir("/")
        ending.start()
        try:
            yield
        finally:
            ending.cancel()
            os.kill(mount.pid, signal.SIGKILL)


def mount_table() -> list[str]:
    """Return the lines of the table of mounts: others' mounts stand there too, whatever bytes their paths have."""
    return os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")


def mounts_at(path: Path) -> list[str]:
    """Return the lines of the table of mounts that speak of a path without blanks and backslashes."""
    # Where others mount at this moment a line may come in part.
    return [line for line in mount_table() if line.split(" ")[4:5] == [str(path)]]


def is_mounted(path: Path) -> bool:
    """Whether anything is mounted at a path, dead or alive."""
    return bool(mounts_at(path))


def is_running(pid: int) -> bool:
    """Whether a process is there, and more than what is left of one until it is waited for."""
    try:
        return " (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def encoded(value: object) -> bytes:
    """Return a pickle, as a server that was taken over might send it."""
    return pickle.dumps(value)
