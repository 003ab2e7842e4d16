"""Which file something is, and in which state: how it is told that a file has been replaced or changed since."""

import os
import stat
from collections.abc import Iterable

import attrs

from minibox_store.reports.summaries import FileState
from minibox_store.values import Value

# Device, inode, and the times of the last change of its entries and of itself, in nanoseconds.
FolderState = tuple[int, int, int, int]


@attrs.frozen(repr=False)
class Signature(Value):
    """Which file something is, and in which state: another one, or a changed one, has another."""

    device: int
    inode: int
    size_bytes: int
    mtime_nanoseconds: int
    is_regular: bool


def signature(path: str) -> Signature | None:
    """Return the signature of what is at ``path``, a link itself; None where there is nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    is_regular = stat.S_ISREG(status.st_mode)
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, is_regular)


def regular_size(path: str) -> int | None:
    """Return the size of what is at ``path``; None where that is no regular file."""
    found = signature(path)
    return found.size_bytes if found is not None and found.is_regular else None


def has_blocks(path: str) -> bool:
    """Whether what is at ``path`` takes room on its disk, beside that of its entry; an empty file seldom does."""
    try:
        return os.lstat(path).st_blocks > 0
    except FileNotFoundError:
        return False


def file_states(path: str) -> tuple[FileState, FileState] | None:
    """Return the state of what is at ``path``, a link itself, and the strict one; None where there is nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    size_bytes, inode = status.st_size, status.st_ino
    return (size_bytes, inode, status.st_mtime_ns), (size_bytes, inode, status.st_ctime_ns)


def are_unchanged(files: Iterable[tuple[str, FileState | None]], *, strictly: bool = False) -> bool:
    """Whether each of these paths has the state, or the strict one, still that is told with it; asked of thousands."""
    lstat, moment = os.lstat, "st_ctime_ns" if strictly else "st_mtime_ns"
    for path, known in files:
        try:
            status = lstat(path)
        except FileNotFoundError:
            if known is None:
                continue
            return False
        except OSError:
            return False  # nobody can tell
        if known != (status.st_size, status.st_ino, getattr(status, moment)):
            return False
    return True


def folder_state(path: str) -> FolderState | None:
    """Return the state of a folder, through links; None where there is none.

    It changes whenever an entry is added, renamed or removed, or the folder itself is another one.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
