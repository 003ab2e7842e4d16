"""Where a compressed stream can be entered, found by reading all of it once more.

The blocks of gzip are found by indexed_gzip, the frames of zstd by decoding them. Both are let at a stream only when
all of it has been decoded within the bounds of unpacking, and has been found to be what it should be.
"""

import io
import struct
from collections.abc import Iterator

from minibox_store.decompressing import Compression
from minibox_store.errors import InvalidArchive, MissingLibrary
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobStream
from minibox_store.rootfs.restarting import BEGINNING, ZSTD_SPACING_BYTES, OpenAt, Place, ZstdDecoder

# What is decoded in vain at most. A place costs 32 KiB, less what they can be compressed by: 1.6 percent of the tar.
GZIP_SPACING_BYTES = 2 * MEBIBYTE
# In a tar of more than 2 GiB they lie farther apart: indexed_gzip has the windows of all of them in memory, twice.
_MOST_PLACES = 1024
# It keeps a place for each member of the stream, which may have 20 bytes, and for each it reads some more.
_MOST_MEMBERS = 1 << 18

_INPUT_BYTES = 64 * 1024
_WINDOW_BYTES = 32 * 1024
_ZRAN_HEAD = struct.Struct("<5sBBQQIII")
_ZRAN_POINT = struct.Struct("<QQBB")
_ZRAN_MAGIC = b"GZIDX"


def find_places(
    compression: Compression, open_at: OpenAt, *, input_bytes: int, output_bytes: int, window_log: int = 27
) -> tuple[list[Place], Iterator[bytes]]:
    """Return where decoders of a stream can begin, in order and the beginning first, and the window of each.

    Args:
        compression: of the stream, all of which was decoded before and is what it should be.
        open_at: gives its bytes; what it raises passes unchanged.
        input_bytes: how long it is.
        output_bytes: how long what it decodes to is.
        window_log: the logarithm of the largest window of a zstd frame.

    Raises:
        MissingLibrary: for a gzip stream that is long enough for a second place, without indexed_gzip.
    """
    if compression == "gzip" and output_bytes > GZIP_SPACING_BYTES:
        return _find_blocks(open_at, input_bytes, max(GZIP_SPACING_BYTES, output_bytes // _MOST_PLACES))
    if compression == "zstd" and output_bytes > ZSTD_SPACING_BYTES:
        decoder = ZstdDecoder(open_at, window_log=window_log)
        try:
            while decoder.read(MEBIBYTE):
                pass
        finally:
            decoder.close()
        places = [BEGINNING, *(place for place in decoder.frames if place.output_offset < output_bytes)]
        return places, iter([b""] * len(places))
    return [BEGINNING], iter([b""])


def _find_blocks(open_at: OpenAt, input_bytes: int, spacing_bytes: int) -> tuple[list[Place], Iterator[bytes]]:
    try:
        import indexed_gzip  # type: ignore[import-untyped]  # it has no types
    except ImportError as error:
        raise MissingLibrary("looking inside a layer in gzip", "files") from error
    exported = io.BytesIO()
    with _SeekableBlob(open_at, input_bytes) as blob:
        file = indexed_gzip.IndexedGzipFile(
            fileobj=blob, spacing=spacing_bytes, skip_crc_check=True, buffer_size=_INPUT_BYTES
        )
        try:
            file.build_full_index()
            file.export_index(fileobj=exported)
        except Exception:
            # What the library makes of a blob that ended is not what was wrong with it: that is raised below.
            if blob.failure is None:
                raise
        finally:
            file.close()
        if isinstance(blob.failure, _TooManyMembersError):
            return [BEGINNING], iter([b""])
        if blob.failure is not None:
            raise blob.failure
    return _decode_exported(exported.getbuffer(), spacing_bytes)


def _decode_exported(index: memoryview, spacing_bytes: int) -> tuple[list[Place], Iterator[bytes]]:
    """Return the places that are far enough apart, and the window of each, of an index as indexed_gzip writes it."""
    magic, version, _, _, _, _, window_bytes, count = _ZRAN_HEAD.unpack_from(index)
    if magic != _ZRAN_MAGIC or version > 1:
        raise InvalidArchive("indexed_gzip has written an index of a form that is not known here")
    at = _ZRAN_HEAD.size + _ZRAN_POINT.size * count
    places, windows = [BEGINNING], [slice(0)]
    for source, output, bits, has_window in _ZRAN_POINT.iter_unpack(index[_ZRAN_HEAD.size : at]):
        at += window_bytes if has_window else 0
        if output - places[-1].output_offset >= spacing_bytes:
            places.append(Place(output, source, bits))
            windows.append(slice(at - _WINDOW_BYTES, at) if has_window else slice(0))
    return places, (bytes(index[window]) for window in windows)


class _TooManyMembersError(Exception):
    """There are more than can be kept."""


class _SeekableBlob(io.RawIOBase):
    """A blob as a file that can seek, for a library that wants one.

    Attributes:
        failure: what a read met, behind which there is nothing more. It is not raised through the library, which runs
            code while it passes an error on: with a debugger or a profiler Python makes another one of it.
    """

    def __init__(self, open_at: OpenAt, size_bytes: int) -> None:
        self._open_at = open_at
        self._stream: BlobStream | None = None
        self._at = 0
        self._size_bytes = size_bytes
        self._reads_left = _MOST_MEMBERS + size_bytes // _INPUT_BYTES
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Let the next read begin elsewhere."""
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            offset += self._size_bytes
        if offset != self._at:
            self._drop()
        self._at = offset
        return offset

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end: what takes it for a file of the system wants that."""
        if size < 0:
            raise io.UnsupportedOperation("a blob is not read without a limit")
        try:
            return b"" if self.failure is not None else self._read(size)
        except BaseException as error:  # noqa: BLE001  # whoever made the library read raises it
            self.failure = error
            return b""

    def _read(self, size: int) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise _TooManyMembersError
        if self._stream is None:
            self._stream = self._open_at(self._at)
        buffer = memoryview(bytearray(size))
        filled = 0
        while filled < size and (count := self._stream.readinto(buffer[filled:])):
            filled += count
        self._at += filled
        return bytes(buffer[:filled])

    def close(self) -> None:
        """Close the blob."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
