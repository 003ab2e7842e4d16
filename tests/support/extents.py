"""What the disk says of where the bytes of a file lie: which of its blocks it shares with other files.

Spec: Linux, Documentation/filesystems/fiemap.rst.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FIEMAP = 0xC020660B
_SYNC = 1
_LAST, _SHARED = 0x1, 0x2000
_REQUEST = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_MOST_EXTENTS = 64


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A run of blocks of a file; the last one may end behind the end of the file."""

    offset: int
    size_bytes: int
    is_shared: bool


def extents_of(path: Path) -> list[Extent]:
    """Return where the bytes of a file lie, once it has been written out."""
    with path.open("rb") as file:
        return list(_iter_extents(file.fileno()))


def shared_bytes(path: Path, offset: int = 0, size_bytes: int | None = None) -> int:
    """Return how many bytes of a part of a file lie in blocks that it shares; of all of it, if no size is given."""
    end = path.stat().st_size if size_bytes is None else offset + size_bytes
    shared = (each for each in extents_of(path) if each.is_shared)
    return sum(max(0, min(end, each.offset + each.size_bytes) - max(offset, each.offset)) for each in shared)


def _iter_extents(descriptor: int) -> Iterator[Extent]:
    start = 0
    while True:
        request = bytearray(_REQUEST.size + _MOST_EXTENTS * _EXTENT.size)
        _REQUEST.pack_into(request, 0, start, os.fstat(descriptor).st_size - start, _SYNC, 0, _MOST_EXTENTS, 0)
        fcntl.ioctl(descriptor, _FIEMAP, request)
        count = _REQUEST.unpack_from(request)[3]
        if not count:
            return
        for number in range(count):
            offset, _, size_bytes, *_, flags, _, _, _ = _EXTENT.unpack_from(
                request, _REQUEST.size + number * _EXTENT.size
            )
            yield Extent(offset=offset, size_bytes=size_bytes, is_shared=bool(flags & _SHARED))
            start = offset + size_bytes
            if flags & _LAST:
                return
