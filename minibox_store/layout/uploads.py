"""Unfinished uploads: blobs that come piece by piece, over any number of calls and processes.

An upload is one file, ``ingest/uploads/<id>-<digest of the repository's name>``: as much of it as has come, in order.
It is written only under its lock, by one at a time, and grows at its end alone; so it outlives the process that began
it, and belongs to one repository. What came before a loss of power may be lost with it, as of a download; a finished
blob is not. While a store's object lives it remembers the hash of what it has written itself: an upload that has
grown by another hand since is read again.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from minibox_store import _files, _locks, _moving
from minibox_store._room import check_room
from minibox_store.digest import Digest, check_digest
from minibox_store.errors import ContentMismatch, StoreBusy
from minibox_store.protocols import BlobStream
from minibox_store.reports.pushes import UploadNotFound, UploadOutOfOrder
from minibox_store.values import Value

if TYPE_CHECKING:
    from hashlib import _Hash

    from minibox_store.layout.layout import Layout

_IDENTIFIER = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FILE_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}", re.ASCII)
_USUAL = "sha256"
_POLL_SECONDS = 0.02
# Of so many uploads at once the hashes are remembered; each takes some hundred bytes.
_MOST_HASHES = 1024


def is_upload(file_name: str) -> bool:
    """Whether a file is called as uploads are."""
    return _FILE_NAME.fullmatch(file_name) is not None


# Which file it was, and how much of it was written when.
_Growth = tuple[int, int, int]


@attrs.frozen(repr=False)
class _Hashed(Value):
    """The hash of all that an upload had, when it was this file in this state."""

    state: _Growth
    hasher: "_Hash"


class Uploads:
    """The uploads of one store. Safe for several threads."""

    def __init__(self, layout: "Layout") -> None:
        self._layout = layout
        self._paths = layout.paths
        self._guard = threading.Lock()
        self._hashes: OrderedDict[str, _Hashed] = OrderedDict()

    def begin(self, repository: str) -> str:
        """Make an upload with nothing in it, and return its id."""
        self._layout.prepare()
        _files.make_directory(self._paths.uploads)
        identifier = secrets.token_hex(16)
        os.close(_files.open_new(self._paths.upload(identifier, repository)))
        return identifier

    def size_bytes(self, identifier: str, repository: str) -> int:
        """Return how much of an upload has come.

        Raises:
            UploadNotFound: when the repository has no such upload.
        """
        try:
            status = os.lstat(self._path(identifier, repository))
        except FileNotFoundError:
            raise UploadNotFound(identifier) from None
        return status.st_size

    def append(
        self, identifier: str, repository: str, stream: BlobStream, *, offset: int | None, size_bytes: int | None
    ) -> int:
        """Add what ``stream`` gives to an upload, and return how large it is then.

        Args:
            identifier: of the upload.
            repository: that it belongs to.
            stream: read to its end, or to the first error: what has come by then stays.
            offset: where the piece is to begin; None for the end of what is there.
            size_bytes: how many bytes it is to have; None where that is not known.

        Raises:
            UploadNotFound: when the repository has no such upload.
            UploadOutOfOrder: when the upload does not end at ``offset``; nothing is read then.
            ContentMismatch: when there are more bytes, of which none stay, or fewer, which do.
            StoreFull: when it does not fit; none of it stays.
            StoreBusy: when another one adds to it all the time.
        """
        with self._locked(identifier, repository) as (opened, _):
            status = os.fstat(opened)
            had_bytes = status.st_size
            if status.st_nlink != 1:  # whole, and a blob already: the process died that finished it
                raise UploadNotFound(identifier)
            if offset is not None and offset != had_bytes:
                raise UploadOutOfOrder(identifier, had_bytes, offset)
            if size_bytes is not None:
                check_room(opened, size_bytes, name=self._paths.root)
            hasher = self._hasher(identifier, opened, _USUAL)
            try:
                come_bytes = _append(stream, opened, hasher, size_bytes, durable=self._layout.durable)
            except OSError as error:  # nobody knows how much of the last bytes was written: they are hashed again
                if error.errno in _files.NO_SPACE:
                    _moving.cut_to(opened, had_bytes)
                raise
            except _TooMuch:
                _moving.cut_to(opened, had_bytes)
                raise ContentMismatch(f"upload {identifier}", f"{size_bytes} bytes", "more") from None
            except Exception:
                self._remember(identifier, opened, hasher)
                raise
            self._remember(identifier, opened, hasher)
        if size_bytes not in (None, come_bytes):
            raise ContentMismatch(f"upload {identifier}", f"{size_bytes} bytes", f"{come_bytes} bytes")
        return had_bytes + come_bytes

    @contextmanager
    def finishing(self, identifier: str, repository: str, digest: Digest) -> Iterator[tuple[int, str]]:
        """Give the open file of an upload that is all of a blob, and its path, for the block.

        It stays where it is, until :meth:`forget` removes it. Whoever adds to it meanwhile is told that there is none,
        once the file has become a blob.

        Raises:
            UploadNotFound: when the repository has no such upload.
            ContentMismatch: when it has another digest; it is removed then, for it grows to no other end.
            StoreBusy: when another one adds to it all the time.
        """
        check_digest(digest)
        # Nothing is written: what has become a blob as its process died is read-only, and its owner may be no root.
        with self._locked(identifier, repository, open_upload=_files.open_regular) as (opened, path):
            actual = Digest(digest.algorithm, self._hasher(identifier, opened, digest.algorithm).hexdigest())
            if actual != digest:
                _files.discard_file(path)
                raise ContentMismatch(f"upload {identifier}", str(digest), str(actual))
            yield opened, path

    def forget(self, identifier: str, repository: str) -> None:
        """Remove an upload that has become a blob."""
        _files.discard_file(self._path(identifier, repository))

    def cancel(self, identifier: str, repository: str) -> None:
        """Remove an upload; whoever adds to it now adds to nothing.

        Raises:
            UploadNotFound: when the repository has no such upload.
        """
        try:
            _files.remove_file(self._path(identifier, repository))
        except FileNotFoundError:
            raise UploadNotFound(identifier) from None

    def _path(self, identifier: str, repository: str) -> str:
        if _IDENTIFIER.fullmatch(identifier) is None:
            raise UploadNotFound(identifier)
        return self._paths.upload(identifier, repository)

    @contextmanager
    def _locked(
        self, identifier: str, repository: str, *, open_upload: Callable[[str], int] = _moving.open_to_extend
    ) -> Iterator[tuple[int, str]]:
        """Keep an upload open, and for oneself; whoever lost its connection may have to wait for what that left."""
        path = self._path(identifier, repository)
        deadline = time.monotonic() + self._layout.lock_timeout_seconds
        while True:
            try:
                opened = open_upload(path)
            except (FileNotFoundError, PermissionError):  # read-only is what a blob has become already
                raise UploadNotFound(identifier) from None
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise UploadNotFound(identifier) from None  # no regular file
            upload = _locks.locked_file(opened, path)
            if upload is not None:
                break
            if time.monotonic() >= deadline:
                raise StoreBusy(path, None, None, "adding to an upload")
            time.sleep(_POLL_SECONDS)
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise UploadNotFound(identifier)
            yield opened, path
        finally:
            upload.close()

    # ---- hashes

    def _hasher(self, identifier: str, opened: int, algorithm: str) -> "_Hash":
        """Return the hash of all that an upload has, which stands at its end then. Under its lock."""
        state = _growth(opened)
        with self._guard:
            known = self._hashes.pop(identifier, None)
        os.lseek(opened, state[1], os.SEEK_SET)
        if known is not None and known.state == state and algorithm == _USUAL:
            return known.hasher
        hasher = hashlib.new(algorithm)
        buffer = memoryview(bytearray(min(_moving.BUFFER_BYTES, max(state[1], 1))))
        offset = 0
        while count := os.preadv(opened, [buffer], offset):
            hasher.update(buffer[:count])
            offset += count
        return hasher

    def _remember(self, identifier: str, opened: int, hasher: "_Hash") -> None:
        with self._guard:
            self._hashes[identifier] = _Hashed(_growth(opened), hasher)
            while len(self._hashes) > _MOST_HASHES:
                self._hashes.popitem(last=False)


class _TooMuch(Exception):
    """More bytes came than were announced."""


def _growth(opened: int) -> _Growth:
    status = os.fstat(opened)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _append(stream: BlobStream, opened: int, hasher: "_Hash", size_bytes: int | None, *, durable: bool) -> int:
    """Write what a stream gives where the file stands; what was written was hashed, whatever ends this."""
    buffer = memoryview(bytearray(_moving.BUFFER_BYTES))
    begin = position = os.lseek(opened, 0, os.SEEK_CUR)
    while count := stream.readinto(buffer):
        position += count
        if size_bytes is not None and position - begin > size_bytes:
            raise _TooMuch
        _moving.write_all(opened, buffer[:count])
        hasher.update(buffer[:count])
        if durable:
            _moving.begin_writeback(opened, position - count, position)
    return position - begin
