"""Where the bytes of files lie on a disk: in blocks that two of them share, or in room that is taken at once.

A hint to the file system and no more: what is in a file is decided by who copies. Where nothing comes of it, be it that
the file system knows nothing of such things or that the disk is full, the copy says so or does without.
"""

import fcntl
import struct

from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import FileRange

BLOCK_BYTES = 4096  # of most file systems; on others nothing is shared

# FICLONERANGE of linux/fs.h and its argument: the source, where in it, how much, and where in the target. A few
# processors spell it otherwise; there it is a request that no file system knows.
_CLONE_RANGE = 0x4020940D
_CLONE_ARGUMENT = struct.Struct("=qQQQ")
# FS_IOC_FIEMAP of linux/fiemap.h: from where, how much, and of the extents none but their number.
_MAP_EXTENTS = 0xC020660B
_MAP_ARGUMENT = struct.Struct("=QQIIII")
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
# Less is found room for as it is written out, as well and as soon.
_LARGE_BYTES = MEBIBYTE


def prepare_copy(source: FileRange, descriptor: int, position: int) -> bool:
    """Prepare a file for a range that will be copied to ``position`` by the kernel; return whether blocks are shared.

    Where the two files can share blocks, the copy will let them, and there is nothing to prepare. Elsewhere the room
    is taken at once, where the file system has extents; the size of the file does not change by that.
    """
    if source.size_bytes < _LARGE_BYTES:
        return False
    if _shares_block(source, descriptor, position):
        return True
    if _has_extents(descriptor):
        _take_room(descriptor, position, source.size_bytes)
    return False


def _shares_block(source: FileRange, descriptor: int, position: int) -> bool:
    """Whether the first block of the range could be shared, which it is then."""
    argument = _CLONE_ARGUMENT.pack(source.file_descriptor, source.offset, BLOCK_BYTES, position)
    try:
        fcntl.ioctl(descriptor, _CLONE_RANGE, argument)
    except OSError:
        return False
    return True


def _has_extents(descriptor: int) -> bool:
    """Whether the file lies in extents: in memory nothing comes of room that is taken at once, but more work."""
    try:
        fcntl.ioctl(descriptor, _MAP_EXTENTS, _MAP_ARGUMENT.pack(0, BLOCK_BYTES, 0, 0, 0, 0))
    except OSError:
        return False
    return True


def _take_room(descriptor: int, position: int, size_bytes: int) -> None:
    import ctypes  # posix_fallocate writes to each block where the file system does not know how to take room

    system = ctypes.CDLL(None)
    # As glibc calls the one that takes 64 bits everywhere; other libraries have no other.
    take = getattr(system, "fallocate64", None) or system.fallocate
    take(descriptor, _KEEP_SIZE, ctypes.c_int64(position), ctypes.c_int64(size_bytes))
