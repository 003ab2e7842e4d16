"""Unfinished downloads: kept when a pull ends early, gone on with by the next, shared by those who want the same.

A partial belongs to a digest, not to where its bytes came from. Its file is always the contiguous prefix of the
blob, and is written only under its lock. It keeps its name until the blob, whole and read-only, has its own.
"""

import errno
import os
import stat
import time
from contextlib import suppress

import attrs

from minibox_store import _files, _locks, _moving
from minibox_store.digest import Verifier
from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch, StoreError
from minibox_store.layout.ranged_fetch import FetchPlan, RangedFetch, fetch_rest
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import MOST_PLACES, BlobSource, Distrusting, RangedSource, Waiting

_STALLED_SECONDS = 30.0
_SLOW_SECONDS = 10.0
_SLOW_BYTES = MEBIBYTE
_STEP_BYTES = 64 * MEBIBYTE


class Partial:
    """An unfinished download that is ours to write: its lock is held until the block is left."""

    def __init__(self, file_descriptor: int, path: str) -> None:
        self.file_descriptor = file_descriptor
        self.path = path

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, *_: object) -> None:
        _locks.release(self.file_descriptor)

    def fetch(self, descriptor: Descriptor, source: BlobSource, plan: FetchPlan) -> None:
        """Read what is missing from ``source``, by several ranges where ``plan`` allows that, and verify the whole.

        Bytes that an earlier attempt has left and that turn out wrong, or cannot be read, are dropped, and the blob is
        fetched once from its beginning. A source of several places is asked for the bytes of the next one, when those
        that it gave for all of the blob were wrong.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others; nothing is kept of them.
            StoreError: whatever the source raises; what has come so far is kept for the next try.
        """
        try:
            self._fetch_right(descriptor, source, plan)
        except OSError as error:
            if error.errno in _files.NO_SPACE:
                with suppress(OSError):
                    self.discard()  # a full disk needs the room more than the next try needs the bytes
            raise
        except StoreError:
            self.discard_empty()
            raise

    def _fetch_right(self, descriptor: Descriptor, source: BlobSource, plan: FetchPlan) -> None:
        had_bytes = os.fstat(self.file_descriptor).st_size
        places = 0
        while True:
            fetch = _Fetch(self.file_descriptor, descriptor, source, plan)
            try:
                return fetch.run(had_bytes)
            except ContentMismatch:
                _files.truncate_file(self.file_descriptor)
                # Of bytes that came from here and from there nobody knows yet which were wrong.
                is_of_one_piece = not had_bytes and not fetch.used_ranges
                places += is_of_one_piece
                if is_of_one_piece and (places == MOST_PLACES or not _has_another_place(source, descriptor)):
                    raise
                had_bytes, plan = 0, attrs.evolve(plan, ranges=1)

    def discard_empty(self) -> None:
        """Remove the file if nothing is in it."""
        if not os.fstat(self.file_descriptor).st_size:
            self.discard()

    def discard(self) -> None:
        """Remove the file, if it has its name still."""
        if _files.is_same_file(self.file_descriptor, self.path):
            _files.discard_file(self.path)


class _Fetch:
    """One try to have a blob in a file that has its beginning."""

    def __init__(self, opened: int, descriptor: Descriptor, source: BlobSource, plan: FetchPlan) -> None:
        self._opened = opened
        self._descriptor = descriptor
        self._source = source
        self._plan = plan
        self.used_ranges = False

    def run(self, had_bytes: int) -> None:
        descriptor, source = self._descriptor, self._source
        verifier = Verifier(descriptor.digest, descriptor.size_bytes)
        self._hash_had(had_bytes, verifier)
        os.lseek(self._opened, had_bytes, os.SEEK_SET)
        if had_bytes < descriptor.size_bytes or not had_bytes:
            if self._plan.suits(descriptor) and isinstance(source, RangedSource):
                self._run_ranged(source, verifier)
            else:
                fetch_rest(source, descriptor, self._opened, verifier, durable=self._plan.durable)
        verifier.finish()

    def _hash_had(self, had_bytes: int, verifier: Verifier) -> None:
        for start in range(0, had_bytes, _STEP_BYTES):
            if isinstance(self._source, Waiting):
                self._source.wait(0)  # a cancel does not wait for gigabytes to be hashed
            try:
                _moving.hash_range(self._opened, start, min(_STEP_BYTES, had_bytes - start), verifier)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                # What the disk does not give back is as good as wrong; kept, it would fail every further try.
                raise ContentMismatch(str(self._descriptor.digest), f"{had_bytes} bytes", "fewer") from error

    def _run_ranged(self, source: RangedSource, verifier: Verifier) -> None:
        fetch = RangedFetch(self._plan, source, self._descriptor, self._opened, verifier)
        try:
            fetch.run()
        finally:
            self.used_ranges = fetch.used_ranges


def _has_another_place(source: BlobSource, descriptor: Descriptor) -> bool:
    return isinstance(source, Distrusting) and source.distrust(descriptor)


class PartialClaim:
    """Somebody's wish for a blob that may be on its way already.

    It is met by the shared partial when that is free, by patience while its holder gets on with it, and by a copy of
    one's own when the holder does not.

    Args:
        shared: the path of the partial that all share.
        own: how the path of a copy of one's own begins.
    """

    def __init__(self, shared: str, own: str) -> None:
        self._shared = shared
        self._own = f"{own}.{_files.fresh_name()}"
        self._growth: _Growth | None = None

    def take(self, size_bytes: int, *, may_wait: bool = True) -> Partial | None:
        """Return a partial to write, or None while it is better to wait: then look for the blob and ask again."""
        try:
            opened = _files.open_shared(self._shared)
        except OSError as error:
            # Nobody downloads to a link, to a folder, or to a read-only blob that appeared as its process died.
            if error.errno not in (*_files.NOT_REGULAR, errno.EACCES):
                raise
            # While that process lives the blob is about to appear; who is no root cannot open it to see so.
            if error.errno == errno.EACCES and may_wait and _locks.is_locked(self._shared):
                return self._wait_or_take_own(_files.size_of(self._shared))
            return self._take_own()
        with _files.closing_on_error(opened):
            is_locked = _locks.try_lock(opened, self._shared)
            status = os.fstat(opened)
        if is_locked:
            is_ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if is_ours and status.st_size <= size_bytes:
                return Partial(opened, self._shared)
            _locks.release(opened)
            return self._take_own()
        grown_bytes = status.st_size
        os.close(opened)
        if not may_wait or grown_bytes > size_bytes:  # larger than the blob is, it is on its way to something else
            return self._take_own()
        return self._wait_or_take_own(grown_bytes)

    def _wait_or_take_own(self, grown_bytes: int) -> Partial | None:
        if self._growth is None:
            self._growth = _Growth(grown_bytes)
        return self._take_own() if self._growth.is_too_slow(grown_bytes) else None

    def _take_own(self) -> Partial:
        _files.discard_file(self._own)
        return Partial(_files.open_new(self._own), self._own)


class _Growth:
    """How a partial grows in other hands."""

    def __init__(self, size_bytes: int) -> None:
        now = time.monotonic()
        self._seen_bytes = self._window_bytes = size_bytes
        self._grew_at = self._window_at = now

    def is_too_slow(self, size_bytes: int) -> bool:
        now = time.monotonic()
        if size_bytes != self._seen_bytes:
            self._seen_bytes, self._grew_at = size_bytes, now
        if now - self._grew_at >= _STALLED_SECONDS:
            return True
        if now - self._window_at < _SLOW_SECONDS:
            return False
        grown_bytes = size_bytes - self._window_bytes
        self._window_bytes, self._window_at = size_bytes, now
        return 0 < grown_bytes < _SLOW_BYTES
