"""Bytes of open files: read, written, hashed, and moved inside the kernel where both ends are files.

As in :mod:`minibox_store._files`, each operation is one call of ``os`` from this module.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minibox_store import _extents
from minibox_store.digest import Verifier
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobStream, FileRange, RangeStream

BUFFER_BYTES = MEBIBYTE
STEP_BYTES = 16 * MEBIBYTE
_WRITEBACK_BYTES = 8 * MEBIBYTE

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


class CutOff(OSError):
    """The file that is copied from became shorter while it was read: the disk is not to blame."""


class FileStream:
    """Part of an open regular file, as the bytes of a blob; the kernel may move them.

    Reads by position, so that several streams may share a descriptor; closes it only if it owns it. ``path`` is where
    the file lies, for errors of reads to say it.
    """

    def __init__(
        self, descriptor: int, offset: int, size_bytes: int, *, owns_descriptor: bool = True, path: str | None = None
    ) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._end = offset + size_bytes
        self._owned = owns_descriptor
        self._path = path

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer``; 0 at the end."""
        room = min(len(buffer), self._end - self._offset)
        try:
            # Of another buffer, such as a bytearray, a slice is a copy: what came would be lost with it.
            count = os.preadv(self._descriptor, [memoryview(buffer)[:room]], self._offset) if room > 0 else 0
        except OSError as error:
            if self._path is not None:
                name_error(error, self._path)
            raise
        self._offset += count
        return count

    def next_range(self, limit_bytes: int, /) -> FileRange:
        """Return the next bytes as a range of the file, and pass them."""
        size_bytes = max(0, min(limit_bytes, self._end - self._offset))
        found = FileRange(file_descriptor=self._descriptor, offset=self._offset, size_bytes=size_bytes)
        self._offset += size_bytes
        return found

    def close(self) -> None:
        """Close the descriptor, if the stream owns it."""
        if self._owned:
            self._owned = False
            os.close(self._descriptor)


def append_stream(
    stream: BlobStream,
    descriptor: int,
    verifier: Verifier | None = None,
    *,
    expected_bytes: int = BUFFER_BYTES,
    durable: bool = False,
) -> int:
    """Append the rest of ``stream`` to the open file, and return how many bytes that was.

    For few ``expected_bytes`` a small buffer is made; there may be more of them all the same. What is to be ``durable``
    is on its way to the disk while more of it comes; the caller syncs the file in the end.

    Where the stream's bytes lie in a file, the kernel moves them, and what the verifier sees is read back from
    the copy: the bytes verified are the bytes kept, whoever changes that file meanwhile. Where both files can share
    blocks, whole ones that lie alike in both are shared, and only the rest is copied; a block that somebody then
    changes is shared no longer.
    """
    position = start = os.lseek(descriptor, 0, os.SEEK_CUR)
    buffer = memoryview(bytearray(min(BUFFER_BYTES, max(expected_bytes, 1))))
    if isinstance(stream, RangeStream):
        while (source := stream.next_range(STEP_BYTES)).size_bytes:
            are_shared = _extents.prepare_copy(source, descriptor, position)
            # What was copied is hashed while it is still in the processor's cache; blocks are shared many at once.
            part_bytes = source.size_bytes if are_shared or verifier is None else BUFFER_BYTES
            for part in _parts(source, part_bytes):
                _copy_range(part, descriptor, position, buffer)
                if verifier is not None:
                    hash_range(descriptor, position, part.size_bytes, verifier, buffer)
                position += part.size_bytes
                if durable and not are_shared:  # blocks that are shared lie on the disk already
                    begin_writeback(descriptor, position - part.size_bytes, position)
        os.lseek(descriptor, position, os.SEEK_SET)
        return position - start
    while count := stream.readinto(buffer):
        if verifier is not None:
            verifier.update(buffer[:count])
        write_all(descriptor, buffer[:count])
        position += count
        if durable:
            begin_writeback(descriptor, position - count, position)
    return position - start


def begin_writeback(descriptor: int, before: int, position: int) -> None:
    """Let the disk begin with the steps of a file that were not all there ``before``, and are now: a sync waits less.

    Whoever appends to the file says so of each part, once it needs not be read back; so each step is sent once.
    """
    begin, end = (each - each % _WRITEBACK_BYTES for each in (before, position))
    if begin < end:
        # What the disk has not got yet is not dropped from memory by this: it is sent on its way.
        with suppress(OSError):  # it is advice; what the disk makes of it the sync says
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)


def hash_range(
    descriptor: int, offset: int, size_bytes: int, verifier: Verifier, buffer: memoryview | None = None
) -> None:
    """Let ``verifier`` see ``size_bytes`` of an open file from ``offset`` on, by bounded reads."""
    buffer = memoryview(bytearray(BUFFER_BYTES)) if buffer is None else buffer
    end = offset + size_bytes
    while offset < end:
        count = os.preadv(descriptor, [buffer[: min(len(buffer), end - offset)]], offset)
        if count == 0:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        verifier.update(buffer[:count])
        offset += count


def open_to_extend(path: str) -> int:
    """Return a descriptor to read and write what is at ``path``, which is not made where it is not there.

    Raises:
        FileNotFoundError: when there is nothing.
        OSError: ELOOP for a link.
    """
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def cut_to(descriptor: int, size_bytes: int) -> None:
    """Let an open file have no more than its first ``size_bytes``."""
    os.ftruncate(descriptor, size_bytes)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` where the descriptor stands."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _parts(source: FileRange, part_bytes: int) -> Iterator[FileRange]:
    """Yield a range in parts."""
    for start in range(0, source.size_bytes, part_bytes):
        size_bytes = min(part_bytes, source.size_bytes - start)
        yield FileRange(file_descriptor=source.file_descriptor, offset=source.offset + start, size_bytes=size_bytes)


def _copy_range(source: FileRange, descriptor: int, position: int, buffer: memoryview) -> None:
    """Copy a range inside the kernel where it can, else through ``buffer``."""
    offset, end = source.offset, source.offset + source.size_bytes
    while offset < end:
        try:
            count = os.copy_file_range(source.file_descriptor, descriptor, end - offset, offset, position)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            count = _send_range(source.file_descriptor, descriptor, offset, position, end - offset, buffer)
        if count == 0:
            raise CutOff(errno.EIO, "the file to copy from became shorter while it was read")
        offset += count
        position += count


def _send_range(source: int, target: int, offset: int, position: int, size_bytes: int, buffer: memoryview) -> int:
    os.lseek(target, position, os.SEEK_SET)
    try:
        return os.sendfile(target, source, offset, size_bytes)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    count = os.preadv(source, [buffer[: min(len(buffer), size_bytes)]], offset)
    write_all(target, buffer[:count])
    return count


def name_error(error: OSError, path: str) -> None:
    """Let an error say which file it was met at, if it does not: that of an open file bears its number, or nothing."""
    if not isinstance(error.filename, str):
        error.filename = path


@contextmanager
def naming_errors(path: str) -> Iterator[None]:
    """Do as :func:`name_error` with each error of the block."""
    try:
        yield
    except OSError as error:
        name_error(error, path)
        raise


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Return bytes of an open file from ``offset`` on, fewer than asked for only where the system gives no more."""
    return os.pread(descriptor, size_bytes, offset)


def read_beginning(descriptor: int, limit_bytes: int) -> bytes:
    """Return the first bytes of an open file: all of them, if they are not more than ``limit_bytes``."""
    content = os.pread(descriptor, limit_bytes, 0)
    while len(content) < limit_bytes and (more := os.pread(descriptor, limit_bytes - len(content), len(content))):
        content += more
    return content
