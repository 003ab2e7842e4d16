"""Reading what another tool may be writing at this moment: it rewrites files in place, and takes no lock of ours."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from minibox_store import _files, _moving, _signatures, media_types
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, StoreDamaged
from minibox_store.graph import ContentStream
from minibox_store.protocols import BlobStream

_T = TypeVar("_T")
_PAUSE_SECONDS = 0.01
_NANOSECONDS = 1_000_000_000


def read_settled(read: Callable[[], _T], path: str, unsettled: type[Exception], seconds: float) -> _T:
    """Return what ``read`` returns, called again as long as somebody may be writing the file.

    Args:
        read: reads the file anew at each call.
        path: the file.
        unsettled: what ``read`` raises where the content may be half of what it will be.
        seconds: how long it is called again at most. A file that was last written longer ago than that is in nobody's
            hands any more: what is wrong with it is said at once, and a store full of damage costs no time.

    Raises:
        Exception: of the kind ``unsettled``, in the end; any other one at once.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return read()
        except unsettled:
            if time.monotonic() >= deadline or not is_recent(path, seconds):
                raise
        time.sleep(_PAUSE_SECONDS)


def open_settled(path: str, descriptor: Descriptor, seconds: float) -> int:
    """Return an open file that has the descriptor's size; the caller closes it. A document gets time to come to that.

    Raises:
        BlobNotFound: when there is nothing.
        StoreDamaged: when it is a link, or no file.
        ContentMismatch: when it has another size.
    """
    return read_settled(lambda: _open_sized(path, descriptor), path, ContentMismatch, _patience(descriptor, seconds))


def open_settled_stream(path: str, descriptor: Descriptor, offset: int, seconds: float, limit_bytes: int) -> BlobStream:
    """Return a blob's bytes from ``offset`` on; raises as :func:`open_settled`.

    A document of up to ``limit_bytes`` is read here, whole: its file may be emptied once it has been opened.
    """
    if not media_types.is_document(descriptor.media_type) or descriptor.size_bytes > limit_bytes:
        opened = _open_sized(path, descriptor)
        return _moving.FileStream(opened, offset, descriptor.size_bytes - offset, path=path)
    content = read_settled(lambda: _read_sized(path, descriptor), path, ContentMismatch, seconds)
    return ContentStream(content, offset)


def _patience(descriptor: Descriptor, seconds: float) -> float:
    return seconds if media_types.is_document(descriptor.media_type) else 0.0


def _open_sized(path: str, descriptor: Descriptor) -> int:
    try:
        opened = _files.open_regular(path)
    except FileNotFoundError:
        raise BlobNotFound(str(descriptor.digest)) from None
    except OSError as error:
        if error.errno in _files.NOT_REGULAR:
            raise StoreDamaged(path, "it is not a regular file") from error
        raise
    try:
        _check_size(os.fstat(opened).st_size, descriptor)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _read_sized(path: str, descriptor: Descriptor) -> bytes:
    opened = _open_sized(path, descriptor)
    try:
        content = _moving.read_beginning(opened, descriptor.size_bytes + 1)
    except OSError as error:
        _moving.name_error(error, path)
        raise
    finally:
        os.close(opened)
    _check_size(len(content), descriptor)
    return content


def _check_size(size_bytes: int, descriptor: Descriptor) -> None:
    if size_bytes != descriptor.size_bytes:
        raise ContentMismatch(str(descriptor.digest), f"{descriptor.size_bytes} bytes", f"{size_bytes} bytes")


def is_recent(path: str, seconds: float) -> bool:
    """Whether what is at a path was written within these seconds; where a clock was set back, nothing is recent.

    An empty file that was written longer ago may be in the midst of being emptied. So it is looked at again once that
    is done, and until these seconds have passed where it has blocks still.
    """
    found = _signatures.signature(path)
    if found is not None and found.size_bytes == 0 and seconds > 0 and not _is_young(found, seconds):
        found = _once_emptied(path, found, seconds)
    return found is not None and _is_young(found, seconds)


def _once_emptied(path: str, found: _signatures.Signature, seconds: float) -> _signatures.Signature | None:
    """Return the signature of an empty file, as it is once nobody is emptying it any more.

    ext4 sets the size to zero, then frees the blocks, and only then sets the time of the change: a fraction of a
    millisecond later, and some hundred on a busy machine.
    """
    deadline = time.monotonic() + seconds
    while True:
        had_blocks = _signatures.has_blocks(path)
        _wait_for_truncation(path)
        later = _signatures.signature(path)
        if later != found or not had_blocks or time.monotonic() >= deadline:
            return later
        time.sleep(_PAUSE_SECONDS)


def _wait_for_truncation(path: str) -> None:
    """Return once the system has done with whoever is emptying a file: at once where nobody is.

    A store may be full of empty files, once the power has gone, so no time is spent on each. The system holds the lock
    of a file until its time is set too. ext4 and tmpfs take it to look for a hole, XFS to read; btrfs sets the time
    first.
    """
    with suppress(OSError):  # it may be gone
        opened = _files.open_regular(path)
        try:
            with suppress(OSError):  # there is none in an empty file
                os.lseek(opened, 0, os.SEEK_HOLE)
            os.read(opened, 1)
        finally:
            os.close(opened)


def _is_young(found: _signatures.Signature, seconds: float) -> bool:
    return abs(time.time_ns() - found.mtime_nanoseconds) < seconds * _NANOSECONDS
