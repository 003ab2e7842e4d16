"""Which file something is, and in which state: how it is told that a file has been replaced or changed since."""

import os
import stat

import attrs


@attrs.frozen
class Signature:
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


def is_unchanged(path: str, known: Signature | None) -> bool:
    """Whether what is at ``path`` has this signature still; asked thousands of times for one listing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return known is None
    return (
        known is not None
        and status.st_mtime_ns == known.mtime_nanoseconds
        and status.st_ino == known.inode
        and status.st_size == known.size_bytes
        and status.st_dev == known.device
    )
