"""Decoders that begin in the middle of a compressed stream.

gzip: at the start of a deflate block, given the 32 KiB of output before it. zstd: at the start of a frame. What is
decoded from a place is trusted by nobody before it has been compared with what was verified as a whole, so a place that
is wrong costs an error and nothing more.

Spec: RFC 1951, section 3.2; RFC 1952; RFC 8878.
"""

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from minibox_store.decompressing import GZIP_FORMAT, Compression
from minibox_store.errors import MissingLibrary
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobStream

# Nearer to one another than this, the places in a zstd stream are not worth being kept.
ZSTD_SPACING_BYTES = MEBIBYTE // 2

_INPUT_BYTES = 64 * 1024
_RAW_FORMAT = -15
_GZIP_TRAILER_BYTES = 8

OpenAt = Callable[[int], BlobStream]


class Place(NamedTuple):
    """Where a decoder can begin.

    Attributes:
        output_offset: of the first byte that it then gives.
        input_offset: of the first byte that it wants; for gzip of the first whole one.
        bits: how many of the byte before that belong to it, for gzip.
    """

    output_offset: int
    input_offset: int
    bits: int = 0


BEGINNING = Place(0, 0)


class Decoder(Protocol):
    """Bytes of a layer's tar from some place on."""

    position: int

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes and none only at the end, or where the input is no such stream."""
        ...

    def close(self) -> None:
        """Close the blob."""
        ...


class _ZstdDecompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _zstd(window_log: int) -> tuple[Callable[[], _ZstdDecompressor], type[Exception]]:
    """Return what makes a decompressor for each frame, and what that raises of a frame that is damaged."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingLibrary("a layer in zstd", "zstd") from error
    options: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: window_log}
    return lambda: zstd.ZstdDecompressor(options=options), zstd.ZstdError


class _Input:
    def __init__(self, stream: BlobStream) -> None:
        self._stream = stream
        self._buffer = memoryview(bytearray(_INPUT_BYTES))
        self.passed_bytes = 0

    def read(self) -> bytes:
        count = self._stream.readinto(self._buffer)
        self.passed_bytes += count
        return bytes(self._buffer[:count])

    def close(self) -> None:
        self._stream.close()


class PlainDecoder:
    """The bytes as they are."""

    def __init__(self, open_at: OpenAt, place: Place) -> None:
        self._stream = open_at(place.input_offset)
        self.position = place.output_offset

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes, and none only at the end."""
        buffer = bytearray(size_bytes)
        count = self._stream.readinto(memoryview(buffer))
        self.position += count
        del buffer[count:]
        return bytes(buffer)

    def close(self) -> None:
        """Close the blob."""
        self._stream.close()


class GzipDecoder:
    """gzip from the beginning, or from a block on, through all members that follow.

    A block may begin at any bit, and zlib wants whole bytes: so blocks are put before it that are empty, and as many
    bits long as are missing.
    """

    def __init__(self, open_at: OpenAt, place: Place = BEGINNING, window: bytes = b"") -> None:
        self.position = place.output_offset
        if not place.input_offset:
            self._inflater, self._rest, self._is_raw = zlib.decompressobj(GZIP_FORMAT), b"", False
            self._input = _Input(open_at(0))
            return
        self._inflater = zlib.decompressobj(_RAW_FORMAT, zdict=window) if window else zlib.decompressobj(_RAW_FORMAT)
        self._is_raw = True
        self._input = _Input(open_at(place.input_offset - (1 if place.bits else 0)))
        self._rest = self._input.read()
        if place.bits:
            missing = 8 - place.bits
            count, value = EMPTY_BLOCKS[missing]
            value |= (self._rest[0] >> missing if self._rest else 0) << count
            self._rest = value.to_bytes((count + place.bits) // 8, "little") + self._rest[1:]

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes; none at the end, or where there is no gzip stream."""
        try:
            while True:
                if self._inflater.eof and not self._begin_member():
                    return b""
                self._rest = self._rest or self._input.read()
                if not self._rest:
                    return b""
                data = self._inflater.decompress(self._rest, size_bytes)
                self._rest = self._inflater.unconsumed_tail
                if data:
                    self.position += len(data)
                    return data
        except zlib.error:
            return b""

    def _begin_member(self) -> bool:
        rest = self._inflater.unused_data
        wanted = _GZIP_TRAILER_BYTES + 1 if self._is_raw else 1
        while len(rest) < wanted and (more := self._input.read()):
            rest += more
        self._rest = rest[wanted - 1 :]
        self._inflater, self._is_raw = zlib.decompressobj(GZIP_FORMAT), False
        return bool(self._rest)

    def close(self) -> None:
        """Close the blob."""
        self._input.close()


class ZstdDecoder:
    """zstd from the beginning of a frame on, through all that follow.

    Attributes:
        frames: where the frames began that were come by, and decode to something.
    """

    def __init__(self, open_at: OpenAt, place: Place = BEGINNING, *, window_log: int = 27) -> None:
        self.position = place.output_offset
        self.frames: list[Place] = []
        self._start = place.input_offset
        self._input = _Input(open_at(place.input_offset))
        self._begin_frame, self._error = _zstd(window_log)
        self._decompressor = self._begin_frame()
        self._rest = b""

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes; none at the end, or where there is no zstd stream."""
        while True:
            if self._decompressor.eof:
                self._rest = self._decompressor.unused_data or self._input.read()
                if not self._rest:
                    return b""
                self._decompressor = self._begin_frame()
                self._note_frame(self._start + self._input.passed_bytes - len(self._rest))
            if self._decompressor.needs_input:
                self._rest = self._rest or self._input.read()
                if not self._rest:
                    return b""
            try:
                data = self._decompressor.decompress(self._rest, size_bytes)
            except self._error:
                return b""
            self._rest = b""
            if data:
                self.position += len(data)
                return data

    def _note_frame(self, input_offset: int) -> None:
        if self.frames and self.frames[-1].output_offset == self.position:
            self.frames.pop()  # it was empty, or one to be skipped
        last = self.frames[-1].output_offset if self.frames else 0
        if self.position - last >= ZSTD_SPACING_BYTES:
            self.frames.append(Place(self.position, input_offset))

    def close(self) -> None:
        """Close the blob."""
        self._input.close()


def open_decoder(
    compression: Compression, open_at: OpenAt, place: Place = BEGINNING, window: bytes = b"", *, window_log: int = 27
) -> Decoder:
    """Return a decoder that begins at ``place``, with the output before it where it is gzip."""
    if compression == "gzip":
        return GzipDecoder(open_at, place, window)
    if compression == "zstd":
        return ZstdDecoder(open_at, place, window_log=window_log)
    return PlainDecoder(open_at, place)


def _empty_blocks() -> tuple[tuple[int, int], ...]:
    """Return blocks without content that are 0 to 7 bits longer than whole bytes: how many bits, and the bits."""
    fixed = (10, 0b010)  # not the last one, fixed codes, and the end at once
    dynamic = (0, 0)
    # A block of dynamic codes is odd. 257 literals and lengths, 1 distance, 18 lengths of code lengths in an order
    # that has "zeros, 11 to 138" third and "1" eighteenth; then: 1, 138 zeros, 117 zeros, 1, and 1 for the distance.
    lengths = [1 if number in (2, 17) else 0 for number in range(18)]
    parts = [(1, 0), (2, 2), (5, 0), (5, 0), (4, 14), *((3, length) for length in lengths)]
    parts += [(1, 0), (1, 1), (7, 127), (1, 1), (7, 106), (1, 0), (1, 0), (1, 1)]
    for part in parts:
        dynamic = _joined(dynamic, part)
    found = {}
    for first in ((0, 0), dynamic):
        block = first
        for _ in range(4):
            found[block[0] % 8] = block
            block = _joined(block, fixed)
    return tuple(found[number] for number in range(8))


def _joined(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return first[0] + second[0], first[1] | second[1] << first[0]


EMPTY_BLOCKS = _empty_blocks()
