"""Sparse files as they lie in a layer: their stored parts one behind another, and zeros for the rest.

A map may have tens of thousands of parts, and a file may be read in as many steps: none of them comes by all parts.
"""

import bisect
from itertools import accumulate

from minibox_store.rootfs.access import LayerReader
from minibox_store.tar.member import Segments


class SparseMap:
    """Where the stored parts of a sparse file are.

    Args:
        segments: ascending, lying apart, and none of them empty.

    Attributes:
        segments: as they were given.
    """

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._ends = [start + count for start, count in segments]
        self._stored = [0, *accumulate(count for _, count in segments)]

    def read(self, reader: LayerReader, data_offset: int, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file, those that are not stored as zeros.

        Args:
            reader: of the layer that it lies in.
            data_offset: where in the layer's tar its first stored part begins.
            offset: where in the file to begin.
            size_bytes: how many bytes; the file has as many from there on.

        Raises:
            ContentMismatch: when the blob is not what it was when it was verified.
        """
        content = bytearray(size_bytes)
        for number in range(bisect.bisect_right(self._ends, offset), len(self.segments)):
            start, count = self.segments[number]
            first, last = max(start, offset), min(start + count, offset + size_bytes)
            if first >= last:
                break
            part = reader.read_at(data_offset + self._stored[number] + first - start, last - first)
            content[first - offset : last - offset] = part
        return bytes(content)
