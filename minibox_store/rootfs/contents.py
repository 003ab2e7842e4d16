"""The bytes of a member into a new file: small ones at once, large ones through one buffer, and holes as holes."""

import os
from collections.abc import Callable

from minibox_store import _moving
from minibox_store.limits import MEBIBYTE
from minibox_store.tar import Member, TarReader
from minibox_store.tar.member import Segments, refusal

_SMALL_BYTES = 128 * 1024
_DISK_BLOCK_BYTES = 4096


class ContentWriter:
    """Writes the data of members, one after the other.

    Args:
        check: called for every piece of a large file; what it raises ends the work.
        most_unused_bytes: how much room the pieces of sparse files may take on a disk beyond what is in them.

    Attributes:
        size_bytes: how many bytes were written so far, without holes.
    """

    def __init__(self, check: Callable[[], None], most_unused_bytes: int) -> None:
        self.size_bytes = 0
        self._check = check
        self._most_unused_bytes = most_unused_bytes
        self._unused_bytes = 0
        self._buffer = memoryview(bytearray(MEBIBYTE))

    def write(self, opened: int, member: Member, reader: TarReader) -> None:
        """Write the data of the member at which ``reader`` stands into an empty, open file."""
        if member.segments is None:
            self._move(opened, member.size_bytes, reader)
            return
        self._count_unused(member.segments, member.name)
        for offset, size_bytes in member.segments:
            if size_bytes:
                os.lseek(opened, offset, os.SEEK_SET)
                self._move(opened, size_bytes, reader)
        os.ftruncate(opened, member.size_bytes)

    def _count_unused(self, segments: Segments, name: str) -> None:
        """Refuse what takes far more room on a disk than in a layer: no limit on the layer would hold it."""
        counted = 0  # blocks, from the beginning of the file
        for offset, size_bytes in segments:
            end = -(-(offset + size_bytes) // _DISK_BLOCK_BYTES)
            self._unused_bytes += (end - max(counted, offset // _DISK_BLOCK_BYTES)) * _DISK_BLOCK_BYTES - size_bytes
            counted = end
        if self._unused_bytes > self._most_unused_bytes:
            problem = f"the sparse files up to it waste more than {self._most_unused_bytes} bytes, which is the limit"
            raise refusal(problem, name)

    def _move(self, opened: int, size_bytes: int, reader: TarReader) -> None:
        self.size_bytes += size_bytes
        while size_bytes > _SMALL_BYTES:
            count = reader.readinto(self._buffer[:size_bytes])
            _moving.write_all(opened, self._buffer[:count])
            size_bytes -= count
            self._check()
        while size_bytes:
            data = reader.read(size_bytes)
            _moving.write_all(opened, data)
            size_bytes -= len(data)
