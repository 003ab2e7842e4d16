"""The bytes of a member into a new file: small ones at once, large ones through one buffer, and holes as holes."""

import os
from collections.abc import Callable

from minibox_store import _moving
from minibox_store.limits import MEBIBYTE
from minibox_store.tar import Member, TarReader

_SMALL_BYTES = 128 * 1024


class ContentWriter:
    """Writes the data of members, one after the other.

    Args:
        check: called for every piece of a large file; what it raises ends the work.

    Attributes:
        size_bytes: how many bytes were written so far, without holes.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.size_bytes = 0
        self._check = check
        self._buffer = memoryview(bytearray(MEBIBYTE))

    def write(self, opened: int, member: Member, reader: TarReader) -> None:
        """Write the data of the member at which ``reader`` stands into an empty, open file."""
        if member.segments is None:
            self._move(opened, member.size_bytes, reader)
            return
        for offset, size_bytes in member.segments:
            if size_bytes:
                os.lseek(opened, offset, os.SEEK_SET)
                self._move(opened, size_bytes, reader)
        os.ftruncate(opened, member.size_bytes)

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
