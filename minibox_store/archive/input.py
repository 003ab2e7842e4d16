"""What an archive is read from: whatever the caller has, told by its content alone, forward only and within bounds.

Of an open regular file that is not compressed, the kernel may move the data of members; of everything else the bytes
come through here. They may be compressed as a whole, by gzip, zstd or xz, once.
"""

import io
import math
import os
import select
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from minibox_store import _moving
from minibox_store.archive.sockets import socket_of
from minibox_store.decompressing import (
    BEGINNING_BYTES,
    INPUT_BYTES,
    CompressedInput,
    is_compressed_archive,
    iter_decompressed_archive,
)
from minibox_store.errors import Cancelled, InvalidArchive, InvalidArgument, StoreUnavailable
from minibox_store.limits import DEFAULT_LIMITS, MEBIBYTE, Limits
from minibox_store.output_bounds import OutputBounds
from minibox_store.protocols import BlobStream, FileRange, ReadableFile

if TYPE_CHECKING:
    import socket

_WHAT = "the archive"
_POLL_MILLISECONDS = 200
_DECOMPRESSORS = (
    ("gzip", "BadGzipFile"),
    ("lzma", "LZMAError"),
    ("compression.zstd", "ZstdError"),
    ("backports.zstd", "ZstdError"),
)


@runtime_checkable
class _ReadableInto(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class ArchiveInput:
    """The bytes of the tar, forward only: what a :class:`~minibox_store.tar.TarReader` reads. For one thread.

    It holds nothing that must be closed: the file is the caller's.

    Attributes:
        file_range: the whole of it, where it is the rest of an open regular file as it lies there; else None.
    """

    def __init__(self, file: "_CallersStream", stream: BlobStream, file_range: FileRange | None) -> None:
        self._file = file.file  # which would close a descriptor that is read here, were nobody else to hold it
        self._callers = file
        self._stream = stream
        self.file_range = file_range
        self._at = 0

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes, of at most a mebibyte, and none only at the end.

        Raises:
            InvalidArchive: and by each read after that, when its compression is damaged, cut off, or passes a bound.
            MissingLibrary: for zstd, where nothing installed reads it.
        """
        buffer = bytearray(min(size_bytes, MEBIBYTE))
        count = self.readinto(memoryview(buffer))
        return bytes(memoryview(buffer)[:count])

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; return the number of bytes, 0 only at the end. Raises as :meth:`read` does."""
        return self._stream.readinto(buffer)

    def interrupt(self) -> None:
        """End, with an error, a read that waits for a pipe or a socket, now and later. From any thread."""
        self._callers.interrupt()

    def seekable(self) -> bool:
        """Whether bytes can be passed without being read."""
        return self.file_range is not None

    def seek(self, offset: int, whence: int, /) -> int:
        """Pass ``offset`` bytes, forward from here; there may be fewer.

        Raises:
            ValueError: for any other way to seek.
        """
        if whence != os.SEEK_CUR or offset < 0 or not isinstance(self._stream, _moving.FileStream):
            raise ValueError("an archive is read forward only")
        self._at += self._stream.next_range(offset).size_bytes
        return self._at


def open_input(file: ReadableFile, limits: Limits = DEFAULT_LIMITS) -> ArchiveInput:
    """Return what ``file`` holds from where it stands; nothing is read of a pipe before the first read.

    Args:
        file: untrusted. Of an open regular file the position stays where it is, unless it is compressed.
        limits: how much a compressed archive may become, and what its decompression may cost.

    Raises:
        InvalidArgument: when no bytes can be read from it.

    Spec: OCI image-spec 1.1, image-layout.md, says nothing of compression; skopeo, podman and docker read gzip, zstd
        and xz by content.
    """
    _check_readable(file)
    lying = _regular_file(file)
    if lying is not None and not is_compressed_archive(
        _moving.read_at(lying.file_descriptor, BEGINNING_BYTES, lying.offset)
    ):
        stream = _moving.FileStream(lying.file_descriptor, lying.offset, lying.size_bytes, owns_descriptor=False)
        return ArchiveInput(_CallersStream(file), stream, lying)
    bounds = OutputBounds(
        _WHAT,
        most_bytes=limits.archive_bytes,
        ratio=limits.archive_ratio,
        ratio_floor_bytes=limits.archive_ratio_floor_bytes,
        compressed_bytes=None if lying is None else lying.size_bytes,
        idle_bytes=limits.tar.padding_bytes + INPUT_BYTES,
    )
    callers = _CallersStream(file)
    return ArchiveInput(callers, _ToldStream(callers, bounds, limits.archive_window_log), None)


class _ToldStream:
    """Bytes that are passed on as they are, or decompressed: the first read tells which."""

    def __init__(self, stream: BlobStream, bounds: OutputBounds, window_log: int) -> None:
        self._source = CompressedInput(stream, bounds.count_input)
        self._bounds = bounds
        self._window_log = window_log
        self._is_told = False
        self._pieces: Iterator[bytes] | None = None
        self._piece = memoryview(b"")
        self._error: Exception | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; return the number of bytes, 0 only at the end."""
        if self._error is not None:
            # Where the decompressor stands then is not known, and a generator that failed says that it is at its end.
            raise self._error
        try:
            if not self._is_told:
                self._tell()
            if self._pieces is None:
                return self._source.read_into(buffer)
            while not self._piece:
                piece = next(self._pieces, None)
                if piece is None:
                    return 0
                self._bounds.count_output(len(piece))
                self._piece = memoryview(piece)
        except Exception as error:
            self._error = error
            raise
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def close(self) -> None:
        """Do nothing: the file is the caller's."""

    def _tell(self) -> None:
        if is_compressed_archive(self._source.peek()):
            self._pieces = iter_decompressed_archive(self._source, _WHAT, self._window_log)
        self._is_told = True


class _CallersStream:
    """What the caller reads from, with its errors and its ways to say nothing in one form."""

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        self._into: Callable[[memoryview], int | None] | None = None
        if type(file) is io.BufferedReader:
            self._into = file.readinto1  # what is there: of a pipe, the rest of a buffer may be long in coming
        elif isinstance(file, _ReadableInto):
            self._into = file.readinto
        self._peer = _peer_of(file)
        self._waiting = _waiting_for(file, self._peer)
        self._is_interrupted = False

    def interrupt(self) -> None:
        """End, with an error, the wait for a pipe or a socket, now and later."""
        self._is_interrupted = True

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; return the number of bytes, 0 only at the end."""
        try:
            self._wait()
            count = self._fill(buffer)
        except _compression_errors() as error:
            raise _damaged(error) from error
        except io.UnsupportedOperation as error:
            raise InvalidArgument("file", self.file, "it is not open for reading") from error
        except OSError as error:
            # What a socket says of its time or its connection has no number either.
            if error.errno is not None or type(error) is not OSError:
                raise StoreUnavailable(_name_of(self.file), error.strerror or str(error)) from error
            raise _damaged(error) from error  # as bz2 says it
        if count is None:
            raise InvalidArgument("file", self.file, "it has nothing to give yet, and does not wait until it has")
        return count

    def close(self) -> None:
        """Do nothing: the file is the caller's."""

    def _wait(self) -> None:
        # What the file has read ahead may wait too: nothing is whole before the end of a pipe has come.
        seconds = None if self._peer is None else self._peer.gettimeout()
        until = math.inf if seconds is None else time.monotonic() + seconds
        while self._waiting is not None and not self._is_interrupted:
            left_milliseconds = max(0.0, (until - time.monotonic()) * 1000)
            if self._waiting.poll(min(_POLL_MILLISECONDS, left_milliseconds)):
                break
            if not left_milliseconds:
                raise TimeoutError("timed out")  # as the socket says it
        if self._is_interrupted:
            raise Cancelled

    def _fill(self, buffer: memoryview) -> int | None:
        if self._into is not None:
            count = self._into(buffer)
            if count is None or (type(count) is int and 0 <= count <= len(buffer)):
                return count
            raise InvalidArgument("file", self.file, f"of {len(buffer)} bytes it says that it has given {count!r}")
        data = self.file.read(len(buffer))
        if data is None:
            return None
        if not isinstance(data, bytes | bytearray | memoryview) or len(data) > len(buffer):
            raise InvalidArgument("file", self.file, "it gives something else than as many bytes as it is asked for")
        buffer[: len(data)] = data
        return len(data)


def _name_of(file: object) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else "what the archive is read from"


def _check_readable(file: object) -> None:
    gives = callable(getattr(file, "read", None)) or isinstance(file, _ReadableInto)
    if isinstance(file, io.TextIOBase) or not gives:
        raise InvalidArgument("file", file, "it is neither a path nor a file that bytes can be read from")
    try:
        is_closed = isinstance(file, io.IOBase) and file.closed
    except ValueError as error:  # another file was detached from it
        raise InvalidArgument("file", file, str(error)) from error
    if is_closed:
        raise InvalidArgument("file", file, "it is closed")
    if isinstance(file, io.FileIO) and not file.readable():
        raise InvalidArgument("file", file, "it is not open for reading")


def _damaged(error: Exception) -> InvalidArchive:
    return InvalidArchive(f"its compression is damaged: {error}")


def _compression_errors() -> tuple[type[Exception], ...]:
    """Return what the decompressors that a caller may read through raise; looked up when something has gone wrong."""
    found: list[type[Exception]] = [EOFError, zlib.error]
    for name, error in _DECOMPRESSORS:
        if name in sys.modules:  # or else nobody reads through it
            found.append(getattr(sys.modules[name], error))
    return tuple(found)


def _raw_of(file: ReadableFile) -> object:
    # This very type, and below of the others too: what is derived from them may give other bytes than lie there.
    return file.raw if type(file) is io.BufferedReader else file


def _descriptor_of(file: ReadableFile) -> io.FileIO | None:
    raw = _raw_of(file)
    return raw if type(raw) is io.FileIO else None


def _peer_of(file: ReadableFile) -> "socket.socket | None":
    """Return the socket that a file reads from, if it does."""
    raw = _raw_of(file)
    peer = socket_of(raw)
    return peer if isinstance(raw, io.RawIOBase) and raw.readable() else None


def _waiting_for(file: ReadableFile, peer: "socket.socket | None") -> "select.poll | None":
    """Return what tells whether a pipe, or the like, has something to give; None for what never waits, or others."""
    if peer is not None:
        source, may_wait = peer.fileno(), peer.gettimeout() != 0
    elif (raw := _descriptor_of(file)) is not None:
        source = raw.fileno()
        may_wait = not stat.S_ISREG(os.fstat(source).st_mode) and os.get_blocking(source)
    else:
        return None
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    return waiting if may_wait else None


def _regular_file(file: ReadableFile) -> FileRange | None:
    """Return what is left of a regular file as ``open`` gives it.

    Many another thing that has a ``fileno`` (a decompressor, say) does not read the bytes that lie there.
    """
    raw = _descriptor_of(file)
    if raw is None:
        return None
    status = os.fstat(raw.fileno())
    if not stat.S_ISREG(status.st_mode):
        return None
    offset = file.tell() if type(file) is io.BufferedReader else raw.tell()
    # What the kernel makes up as it is read, below /proc say, has no size.
    size_bytes = status.st_size - offset
    return FileRange(file_descriptor=raw.fileno(), offset=offset, size_bytes=size_bytes) if size_bytes > 0 else None
