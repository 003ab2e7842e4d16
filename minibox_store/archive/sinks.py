"""What an archive is written to: a file of ours, whatever a program has open, or a compressor before one of these.

What goes wrong at a program's own file says so; its buffer is flushed, and it is not closed.
"""

import errno
import io
import math
import os
import select
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from minibox_store import _files, _moving
from minibox_store._room import check_room
from minibox_store.archive.sockets import socket_of
from minibox_store.digest import Verifier
from minibox_store.errors import Cancelled, InvalidArgument, MissingLibrary, StoreFull, StoreUnavailable
from minibox_store.latch import Latch
from minibox_store.protocols import BlobStream, WritableFile

if TYPE_CHECKING:
    import socket

_POLL_MILLISECONDS = 100
_ZSTD_LEVEL = 3
_DOES_NOT_WAIT = "it does not wait until it can be written to"


class Sink(Protocol):
    """Where the bytes of an archive go, in order."""

    def check_room(self, size_bytes: int) -> None:
        """Return if so many bytes fit, as far as can be told.

        Raises:
            StoreFull: when they do not.
        """

    def prepare(self, size_bytes: int) -> None:
        """Take note that exactly so many bytes will come; nothing has come yet."""

    def write(self, data: bytes | memoryview, /) -> None:
        """Take all of ``data``."""

    def append(self, stream: BlobStream, verifier: Verifier | None, /) -> int:
        """Take the rest of ``stream``, let the verifier see it, and return how many bytes it was."""
        ...

    def finish(self) -> None:
        """Pass on what is kept back still."""


class FileSink:
    """An open file of our own, which nobody else has: the kernel may move bytes into it.

    Args:
        descriptor: stands at its beginning.
        path: how errors call it.
        durable: whether it is synced behind the last byte.
    """

    def __init__(self, descriptor: int, path: str, *, durable: bool = False) -> None:
        self.descriptor = descriptor
        self._path = path
        self._durable = durable
        self._position = 0

    def check_room(self, size_bytes: int) -> None:
        """Refuse what does not fit."""
        check_room(self.descriptor, size_bytes, name=self._path)

    def prepare(self, size_bytes: int) -> None:
        """Do nothing: it is all the same to a file."""

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of ``data`` where the file stands."""
        _moving.write_all(self.descriptor, data)
        before, self._position = self._position, self._position + len(data)
        if self._durable:
            _moving.begin_writeback(self.descriptor, before, self._position)

    def append(self, stream: BlobStream, verifier: Verifier | None, /) -> int:
        """Write the rest of ``stream`` where the file stands, by the kernel where it can."""
        size_bytes = _moving.append_stream(stream, self.descriptor, verifier, durable=self._durable)
        self._position += size_bytes
        return size_bytes

    def finish(self) -> None:
        """Do nothing: nothing was kept back."""


def pump(stream: BlobStream, sink: Sink, verifier: Verifier | None) -> int:
    """Write the rest of ``stream`` to ``sink`` piece by piece, and return how many bytes it was."""
    buffer = memoryview(bytearray(_moving.BUFFER_BYTES))
    size_bytes = 0
    while count := stream.readinto(buffer):
        if verifier is not None:
            verifier.update(buffer[:count])
        sink.write(buffer[:count])
        size_bytes += count
    return size_bytes


class _Stream(ABC):
    """What the sinks have in common that know nothing of room, nor of files."""

    def check_room(self, size_bytes: int) -> None:
        return

    def prepare(self, size_bytes: int) -> None:
        return

    @abstractmethod
    def write(self, data: bytes | memoryview, /) -> None: ...

    def append(self, stream: BlobStream, verifier: Verifier | None, /) -> int:
        return pump(stream, self, verifier)

    def finish(self) -> None:
        return


class StreamSink(_Stream):
    """Whatever has a ``write`` for bytes.

    Args:
        file: it may take fewer bytes than it is given, as an unbuffered file does.
    """

    def __init__(self, file: WritableFile) -> None:
        self._file = file
        self._name = _name_of(file)

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of ``data``."""
        rest = memoryview(data)
        while rest:
            with file_errors_of(self._name), _waiting_only(self._name):
                count = self._file.write(rest)
            if count is None and isinstance(self._file, io.RawIOBase):
                raise StoreUnavailable(self._name, _DOES_NOT_WAIT)
            count = len(rest) if count is None else count
            # One that never takes a byte would be asked for ever, and one that counts wrongly would lose some.
            if type(count) is not int or not 0 < count <= len(rest):
                raise StoreUnavailable(self._name, f"it says that of {len(rest)} bytes it has taken {count!r}")
            rest = rest[count:]

    def finish(self) -> None:
        """Flush the file, where it keeps anything back."""
        with file_errors_of(self._name), _waiting_only(self._name):
            _flush(self._file)


class PipeSink(_Stream):
    """A pipe or FIFO, by a way of its own into it: whoever waits for its reader is not kept there by a cancel.

    Only so much is written at a time as a pipe takes at once, when it takes anything: so no write waits, even by a
    descriptor that may block.

    Args:
        descriptor: of the pipe; closed by whoever opened it.
        name: how errors call it.
        interrupted: ends a write that waits, once it is set.
        most_bytes: how much is written at once.
    """

    def __init__(self, descriptor: int, name: str, interrupted: Latch, most_bytes: int) -> None:
        self._descriptor = descriptor
        self._name = name
        self._interrupted = interrupted
        self._most_bytes = most_bytes
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of ``data``, as it is taken."""
        rest = memoryview(data)
        while rest:
            if self._interrupted.is_set():
                raise Cancelled
            if not self._poll.poll(_POLL_MILLISECONDS):
                continue
            with suppress(BlockingIOError), file_errors_of(self._name):
                rest = rest[os.write(self._descriptor, rest[: self._most_bytes]) :]


class SocketSink(_Stream):
    """A plain socket: whoever waits for its peer is not kept there by a cancel.

    Args:
        peer: the caller's, with the caller's time limit.
        name: how errors call it.
        interrupted: ends a write that waits, once it is set.
    """

    def __init__(self, peer: "socket.socket", name: str, interrupted: Latch) -> None:
        from socket import MSG_DONTWAIT  # the module is there already: somebody has a socket

        self._peer = peer
        self._name = name
        self._interrupted = interrupted
        self._flags = MSG_DONTWAIT
        self._poll = select.poll()
        self._poll.register(peer.fileno(), select.POLLOUT)

    def write(self, data: bytes | memoryview, /) -> None:
        """Write all of ``data``, as it is taken."""
        rest = memoryview(data)
        while rest:
            with file_errors_of(self._name), suppress(BlockingIOError):
                self._wait()
                rest = rest[self._peer.send(rest[: _moving.BUFFER_BYTES], self._flags) :]

    def _wait(self) -> None:
        seconds = self._peer.gettimeout()
        until = math.inf if seconds is None else time.monotonic() + seconds
        while not self._interrupted.is_set():
            left_milliseconds = max(0.0, (until - time.monotonic()) * 1000)
            if self._poll.poll(min(_POLL_MILLISECONDS, left_milliseconds)):
                return
            if not left_milliseconds:
                raise TimeoutError("timed out")  # as the socket says it
        raise Cancelled


class ZstdSink(_Stream):
    """Compresses what comes, and passes it on.

    Each piece that is compressed has the same size, however the bytes come: what comes out depends on them alone, and
    on the version of the library.

    Raises:
        MissingLibrary: when nothing installed compresses so.
    """

    def __init__(self, sink: Sink) -> None:
        try:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
        except ImportError as error:
            raise MissingLibrary("an archive in zstd", "zstd") from error
        self._sink = sink
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: _ZSTD_LEVEL,
            zstd.CompressionParameter.checksum_flag: 1,
        }
        self._compressor = zstd.ZstdCompressor(options=options)
        self._kept = bytearray()

    def prepare(self, size_bytes: int) -> None:
        """Let the frame say how large its content is; how much room it will take nobody knows."""
        self._compressor.set_pledged_input_size(size_bytes)

    def write(self, data: bytes | memoryview, /) -> None:
        """Compress ``data``, as soon as there is a whole piece of it."""
        rest = memoryview(data)
        while rest:
            count = min(len(rest), _moving.BUFFER_BYTES - len(self._kept))
            self._kept += rest[:count]
            rest = rest[count:]
            if len(self._kept) == _moving.BUFFER_BYTES:
                self._pass_on()

    def _pass_on(self) -> None:
        compressed = self._compressor.compress(self._kept)
        self._kept.clear()
        if compressed:
            self._sink.write(compressed)

    def finish(self) -> None:
        """Compress the rest, and end the frame."""
        self._pass_on()
        self._sink.write(self._compressor.flush())
        self._sink.finish()


@contextmanager
def opened_sink(file: WritableFile, interrupted: Latch) -> Iterator[Sink]:
    """Give the way into what a program has open; it is not closed.

    A write to a pipe, or to a plain socket, ends once ``interrupted`` is set.

    Raises:
        InvalidArgument: when bytes cannot be written to it.
        StoreUnavailable: when it refuses, such as a pipe whose other end is closed.
    """
    if isinstance(file, io.TextIOBase) or not callable(getattr(file, "write", None)):
        raise InvalidArgument("file", file, "it is neither a path nor a file that bytes can be written to")
    pipe = _own_way(file)
    if pipe is None:
        peer = _peer_of(file)
        yield StreamSink(file) if peer is None else SocketSink(peer, _name_of(file), interrupted)
        return
    try:
        descriptor, most_bytes = pipe
        yield PipeSink(descriptor, _name_of(file), interrupted, most_bytes)
    finally:
        os.close(pipe[0])


def _peer_of(file: WritableFile) -> "socket.socket | None":
    """Return the socket that ``file`` writes to; None where that is none, or does not wait."""
    raw = file.raw if type(file) is io.BufferedWriter else file
    peer = socket_of(raw)
    if peer is None or peer.gettimeout() == 0 or not isinstance(raw, io.RawIOBase) or not raw.writable():
        return None
    with file_errors_of(_name_of(file)):
        _flush(file)
    return peer


def _own_way(file: WritableFile) -> tuple[int, int] | None:
    """Return a descriptor of the pipe that ``file`` is, and how much of it is written at once; None where it is none.

    It does not block, where it can be had so: to set that on the file's own would change it for all who share it.
    """
    with file_errors_of(_name_of(file)), _waiting_only(_name_of(file)):
        raw = file.raw if isinstance(file, io.BufferedWriter) else file
        if not isinstance(raw, io.FileIO) or raw.closed or not raw.writable():
            return None
        if not stat.S_ISFIFO(os.fstat(raw.fileno()).st_mode):
            return None
        _flush(file)
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{raw.fileno()}", flags), _moving.BUFFER_BYTES
    except OSError:  # the pipe of another user, one that nobody reads from, or a system without /proc
        return os.dup(raw.fileno()), select.PIPE_BUF


def _flush(file: WritableFile) -> None:
    if hasattr(file, "flush"):
        file.flush()


def _name_of(file: object) -> str:
    name = None
    with suppress(ValueError):  # what a file says from which another one was detached
        name = getattr(file, "name", None)
    return name if isinstance(name, str) else "the file that the archive is written to"


@contextmanager
def _waiting_only(name: str) -> Iterator[None]:
    """Refuse a file that would block: what it has taken of a piece only it knows."""
    try:
        yield
    except BlockingIOError as error:
        raise StoreUnavailable(name, _DOES_NOT_WAIT) from error


@contextmanager
def file_errors_of(name: str) -> Iterator[None]:
    """Turn what is said of a program's own file into an error that names it; that it would block passes."""
    try:
        yield
    except BlockingIOError:
        raise
    except io.UnsupportedOperation as error:  # which says "write" at times, and no more
        raise InvalidArgument("file", name, "it is not open for writing") from error
    except (TypeError, ValueError) as error:  # TypeError: one that takes text
        raise InvalidArgument("file", name, str(error)) from error
    except OSError as error:
        if error.errno in _files.NO_SPACE:
            raise StoreFull(name) from error
        problem = "whoever read from it has closed it" if error.errno == errno.EPIPE else error.strerror or str(error)
        raise StoreUnavailable(name, problem) from error
