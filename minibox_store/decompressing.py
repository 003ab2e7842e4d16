"""Compressed bytes to the bytes that they stand for, one layer of compression and no more: gzip, zstd, or none.

What a library says of bytes that are no such stream becomes one refusal. A stream is refused where it is cut off, and
where anything stands behind its end: for gzip all but the zeros that a tape leaves there, as gzip(1) has it.

Spec: RFC 1952; RFC 8878.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from minibox_store.errors import InvalidArchive, MissingLibrary
from minibox_store.limits import MEBIBYTE, UnpackLimits
from minibox_store.protocols import BlobStream

Compression = Literal["gzip", "zstd", "none"]

# A call into zlib or zstd, or for more input, costs about as much as some ten kilobytes: large steps hide that.
PIECE_BYTES = MEBIBYTE
_INPUT_BYTES = 512 * 1024
# Each frame begins with a small step, and doubles it: what stands behind the end of a frame is handed back, and so
# many small frames would otherwise be copied over and over.
_FIRST_STEP_BYTES = 1024
_BEGINNING_BYTES = 4

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"
_GZIP_FORMAT = 31  # a header, the largest window, and a check of length and CRC


def compression_of(beginning: bytes) -> Compression:
    r"""Return what the first four bytes of a blob say: the media type has no part in it.

    >>> compression_of(b"\x1f\x8b\x08\x00"), compression_of(b"etc/")
    ('gzip', 'none')
    """
    if beginning.startswith(_GZIP_MAGIC):
        return "gzip"
    if beginning.startswith(_ZSTD_MAGIC):
        return "zstd"
    is_skippable = beginning[1:4] == _ZSTD_SKIPPABLE_MAGIC and beginning[0] & 0xF0 == 0x50
    return "zstd" if is_skippable else "none"


class CompressedInput:
    """The bytes of a blob, of which a decompressor takes some and hands back what it had no use for.

    Args:
        stream: not trusted, nor closed here.
        on_read: called with the number of bytes, 0 at the end, after each read of the stream.
    """

    def __init__(self, stream: BlobStream, on_read: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_read = on_read
        self._buffer = memoryview(bytearray(_INPUT_BYTES))
        self._at = self._end = 0

    def take(self, most: int) -> memoryview:
        """Return 1 to ``most`` bytes, and none only at the end; they hold until the next call."""
        if self._at == self._end:
            self._at, self._end = 0, self._read_into(self._buffer)
        view = self._buffer[self._at : min(self._end, self._at + most)]
        self._at += len(view)
        return view

    def put_back(self, count: int) -> None:
        """Let the last ``count`` bytes of what was taken last be taken once more."""
        self._at -= count

    def peek(self) -> bytes:
        """Return the next four bytes, fewer only at the end, and take none."""
        while self._end - self._at < _BEGINNING_BYTES:
            rest = bytes(self._buffer[self._at : self._end])
            self._buffer[: len(rest)] = rest
            self._at, self._end = 0, len(rest)
            count = self._read_into(self._buffer[len(rest) :])
            if not count:
                break
            self._end += count
        return bytes(self._buffer[self._at : min(self._end, self._at + _BEGINNING_BYTES)])

    def read_into(self, buffer: memoryview) -> int:
        """Fill the front of ``buffer``, with what was read already first; return the number of bytes, 0 at the end."""
        if self._at == self._end:
            return self._read_into(buffer)
        view = self.take(len(buffer))
        buffer[: len(view)] = view
        return len(view)

    def _read_into(self, buffer: memoryview) -> int:
        count = self._stream.readinto(buffer)
        self._on_read(count)
        return count


class _Frame(Protocol):
    """One frame or member of a stream, from its header to its end."""

    @property
    def eof(self) -> bool: ...

    def feed(self, source: CompressedInput, most: int) -> bytes | None:
        """Return up to PIECE_BYTES after taking at most ``most`` bytes; None when there were none to take."""


class _GzipMember:
    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_GZIP_FORMAT)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    def feed(self, source: CompressedInput, most: int) -> bytes | None:
        view = source.take(most)
        if not view:
            return None
        data = self._inflater.decompress(view, PIECE_BYTES)
        source.put_back(len(self._inflater.unused_data) or len(self._inflater.unconsumed_tail))
        return data


def iter_decompressed(source: CompressedInput, what: str, limits: UnpackLimits) -> Iterator[bytes]:
    """Yield the bytes that ``source`` stands for, in pieces of at most ``PIECE_BYTES``, empty ones among them.

    Args:
        source: at its beginning.
        what: what an error calls it.
        limits: of which the window's counts; how much comes out is for the caller to bound.

    Raises:
        InvalidArchive: when it is cut off, damaged, asks for too large a window, or has something behind its end.
        MissingLibrary: for zstd, where nothing installed reads it.
    """
    compression = compression_of(source.peek())
    if compression == "gzip":
        return _iter_gzip(source, what)
    if compression == "zstd":
        return _iter_zstd(source, what, limits.window_log)
    return _iter_plain(source)


def _iter_plain(source: CompressedInput) -> Iterator[bytes]:
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := source.read_into(buffer):
        yield bytes(buffer[:count])


def _iter_gzip(source: CompressedInput, what: str) -> Iterator[bytes]:
    try:
        while source.peek().startswith(_GZIP_MAGIC[:2]):
            yield from _iter_frame(_GzipMember(), source, f"the gzip stream of {what}")
    except zlib.error as error:
        raise InvalidArchive(f"the gzip stream of {what} is damaged: {error}") from error
    while padding := source.take(_INPUT_BYTES):
        if any(padding):
            raise InvalidArchive(f"there is data behind the end of the gzip stream of {what}")
        yield b""


def _iter_frame(frame: _Frame, source: CompressedInput, what: str) -> Iterator[bytes]:
    step = _FIRST_STEP_BYTES
    while not frame.eof:
        data = frame.feed(source, step)
        if data is None:
            raise InvalidArchive(f"{what} is cut off")
        yield data
        step = min(2 * step, _INPUT_BYTES)


def _iter_zstd(source: CompressedInput, what: str, window_log: int) -> Iterator[bytes]:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingLibrary("a layer in zstd", "zstd") from error

    class ZstdFrame:
        def __init__(self) -> None:
            self._decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})

        @property
        def eof(self) -> bool:
            return self._decompressor.eof

        def feed(self, source: CompressedInput, most: int) -> bytes | None:
            view = source.take(most) if self._decompressor.needs_input else b""
            if not view and self._decompressor.needs_input:
                return None
            data = self._decompressor.decompress(view, PIECE_BYTES)
            if self._decompressor.eof:
                source.put_back(len(self._decompressor.unused_data))
            return data

    try:
        while compression_of(source.peek()) == "zstd":
            yield from _iter_frame(ZstdFrame(), source, f"the zstd stream of {what}")
    except zstd.ZstdError as error:
        # The library has one class of error for all, and no number in it.
        if "too much memory" in str(error):
            raise InvalidArchive(
                f"the zstd stream of {what} asks for a window of more than {1 << window_log} bytes"
            ) from error
        raise InvalidArchive(f"the zstd stream of {what} is damaged: {error}") from error
    if source.peek():
        raise InvalidArchive(f"there is data behind the end of the zstd stream of {what}")
