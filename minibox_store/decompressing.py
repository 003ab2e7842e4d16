"""Compressed bytes to the bytes that they stand for, one layer of compression and no more: gzip, zstd, or none.

An archive as a whole may be xz too, which no layer is. What a library says of bytes that are no such stream becomes one
refusal. A stream is refused where it is cut off, and where anything stands behind its end: for gzip all but the zeros
that a tape leaves there, as gzip(1) has it, and for xz all but its own padding.

Spec: RFC 1952; RFC 8878; The .xz File Format 1.2.1.
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

from minibox_store.errors import InvalidArchive, MissingLibrary
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobStream

Compression = Literal["gzip", "zstd", "none"]

# A call into zlib or zstd, or for more input, costs about as much as some ten kilobytes: large steps hide that.
PIECE_BYTES = MEBIBYTE
INPUT_BYTES = 512 * 1024  # so much may have been read, and not looked at yet
# Each frame begins with a small step, and doubles it: what stands behind the end of a frame is handed back, and so
# many small frames would otherwise be copied over and over.
_FIRST_STEP_BYTES = 1024
BEGINNING_BYTES = 4  # by which compressions are told

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"
_XZ_MAGIC = b"\xfd7zX"  # four bytes of its six
_XZ_PADDING_UNIT_BYTES = 4
_XZ_STATE_BYTES = MEBIBYTE  # what its decoder needs beside the window, and more
GZIP_FORMAT = 31  # a header, the largest window, and a check of length and CRC


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
        self._buffer = memoryview(bytearray(INPUT_BYTES))
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
        while self._end - self._at < BEGINNING_BYTES:
            rest = bytes(self._buffer[self._at : self._end])
            self._buffer[: len(rest)] = rest
            self._at, self._end = 0, len(rest)
            count = self._read_into(self._buffer[len(rest) :])
            if not count:
                break
            self._end += count
        return bytes(self._buffer[self._at : min(self._end, self._at + BEGINNING_BYTES)])

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
        self._inflater = zlib.decompressobj(GZIP_FORMAT)

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


class _Decompressor(Protocol):
    """What zstd's and xz's libraries have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview | bytes, max_length: int) -> bytes: ...


class _KeepingFrame:
    """A frame whose decompressor keeps what it has not got to, until it is asked for more."""

    def __init__(self, decompressor: _Decompressor) -> None:
        self._decompressor = decompressor

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


def iter_decompressed(source: CompressedInput, what: str, window_log: int) -> Iterator[bytes]:
    """Yield the bytes that ``source`` stands for, in pieces of at most ``PIECE_BYTES``, empty ones among them.

    Args:
        source: at its beginning.
        what: what an error calls it.
        window_log: the logarithm of the largest window that it may ask for. How much comes out is for the caller to
            bound.

    Raises:
        InvalidArchive: when it is cut off, damaged, asks for too large a window, or has something behind its end.
        MissingLibrary: for zstd, where nothing installed reads it.
    """
    compression = compression_of(source.peek())
    if compression == "gzip":
        return _iter_gzip(source, what)
    if compression == "zstd":
        return _iter_zstd(source, what, window_log)
    return _iter_plain(source)


def is_compressed_archive(beginning: bytes) -> bool:
    """Return whether the first four bytes of an archive are those of gzip, zstd or xz."""
    return beginning.startswith(_XZ_MAGIC) or compression_of(beginning) != "none"


def iter_decompressed_archive(source: CompressedInput, what: str, window_log: int) -> Iterator[bytes]:
    """Do as :func:`iter_decompressed`, and read xz too."""
    if source.peek().startswith(_XZ_MAGIC):
        return _iter_xz(source, what, window_log)
    return iter_decompressed(source, what, window_log)


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
    while padding := source.take(INPUT_BYTES):
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
        step = min(2 * step, INPUT_BYTES)


def _iter_zstd(source: CompressedInput, what: str, window_log: int) -> Iterator[bytes]:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingLibrary(f"the zstd stream of {what}", "zstd") from error

    options: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: window_log}
    try:
        while compression_of(source.peek()) == "zstd":
            frame = _KeepingFrame(zstd.ZstdDecompressor(options=options))
            yield from _iter_frame(frame, source, f"the zstd stream of {what}")
    except zstd.ZstdError as error:
        # The library has one class of error for all, and no number in it.
        if "too much memory" in str(error):
            raise InvalidArchive(
                f"the zstd stream of {what} asks for a window of more than {1 << window_log} bytes"
            ) from error
        raise InvalidArchive(f"the zstd stream of {what} is damaged: {error}") from error
    if source.peek():
        raise InvalidArchive(f"there is data behind the end of the zstd stream of {what}")


def _iter_xz(source: CompressedInput, what: str, window_log: int) -> Iterator[bytes]:
    try:
        import lzma
    except ImportError as error:
        raise InvalidArchive(f"{what} is compressed with xz, which this Python was built without") from error
    memory_bytes = (1 << window_log) + _XZ_STATE_BYTES
    try:
        while source.peek().startswith(_XZ_MAGIC):
            frame = _KeepingFrame(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory_bytes))
            yield from _iter_frame(frame, source, f"the xz stream of {what}")
            yield from _iter_xz_padding(source, what)
    except lzma.LZMAError as error:
        # As with zstd, there is one class of error for all.
        if "limit exceeded" in str(error):
            raise InvalidArchive(
                f"the xz stream of {what} asks for a window of more than {1 << window_log} bytes"
            ) from error
        raise InvalidArchive(f"the xz stream of {what} is damaged: {error}") from error
    if source.peek():
        raise InvalidArchive(f"there is data behind the end of the xz stream of {what}")


def _iter_xz_padding(source: CompressedInput, what: str) -> Iterator[bytes]:
    """Pass the zeros behind a stream, of which there must be a multiple of four."""
    padding_bytes, rest_bytes, step = 0, 0, _FIRST_STEP_BYTES
    while not rest_bytes and (piece := source.take(step)):
        rest_bytes = len(bytes(piece).lstrip(b"\0"))
        source.put_back(rest_bytes)
        padding_bytes += len(piece) - rest_bytes
        step = min(2 * step, INPUT_BYTES)
        if padding_bytes:
            yield b""
    if padding_bytes % _XZ_PADDING_UNIT_BYTES:
        raise InvalidArchive(f"the xz stream of {what} is damaged: its padding is no multiple of four zeros")
