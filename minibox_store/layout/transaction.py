"""A transaction on the store: everything that it relies on is pinned, and its names appear in one step or never.

``ingest/<id>/`` holds a lock file, locked while the transaction lives, and a hard link to every blob that it has
found, finished or staged. A collection leaves those alone. The order is always: pin, then publish, then name.
Whatever happens, a transaction that fails removes its own folder and nothing under ``blobs/``.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from minibox_store import _files, _locks, _signatures, media_types
from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.errors import BlobNotFound, ContentMismatch, IncompleteImage, StoreBusy, StoreUnavailable
from minibox_store.layout.partials import PartialClaim
from minibox_store.layout.paths import LayoutPaths, pin_name
from minibox_store.layout_index import with_name
from minibox_store.protocols import BlobSource, BlobStream, Waiting
from minibox_store.reference import check_image_name

if TYPE_CHECKING:
    from minibox_store.layout.layout import Layout

_BLOB_MODE = 0o444
LOCK = "lock"
_ATTEMPTS = 1000
_POLL_SECONDS = 0.05


@contextmanager
def living_folder(paths: LayoutPaths) -> Iterator[str]:
    """Make a folder in ``ingest/``, its lock held for the block; remove it, and all that is in it, behind the block."""
    folder = os.path.join(paths.ingest, _files.fresh_name())
    lock = _begin(folder)
    try:
        yield folder
    finally:
        # The lock goes last: while it is there, nobody else touches what is left. What cannot be removed is left to the
        # next collection: the work itself is done, or has failed already.
        with suppress(OSError):
            _files.remove_flat(folder, last=LOCK)
        _locks.release(lock)


def _begin(folder: str) -> int:
    path = os.path.join(folder, LOCK)
    os.stat(os.path.dirname(folder))  # where there is no store, there is nothing to try again
    for _ in range(_ATTEMPTS):
        # Between these steps a collection may take the folder for an abandoned one: then begin again.
        with suppress(FileNotFoundError):
            _files.make_directory(folder)
            lock = _files.open_shared(path)
            with _files.closing_on_error(lock):
                if _locks.try_lock(lock, path):
                    return lock
            os.close(lock)
        time.sleep(0.001)
    raise StoreBusy(path, None, None, "collecting")


class Transaction:
    """One transaction: an ImageWriter, and a BlobStage. Safe for several threads.

    Where the file system has no hard links, a lock that keeps collections out for the whole of its life takes the
    place of the pins, and a finished blob is moved to where it belongs instead of being linked.
    """

    def __init__(self, layout: "Layout") -> None:
        self._layout = layout
        self._paths = layout.paths
        self._hard_links = layout.has_hard_links()
        self._folder = ""
        self._guard = threading.Lock()
        self._held: dict[Digest, int] = {}
        self._reached: set[Digest] = set()
        self._finished: set[Digest] = set()
        self._wrong: dict[Digest, _signatures.Signature | None] = {}
        self._changes: list[Callable[[LayoutIndex], LayoutIndex]] = []

    # ---- life

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Keep the transaction's folder and its lock for the block; remove them, and all in them, behind it."""
        with ExitStack() as stack:
            if not self._hard_links:
                stack.enter_context(
                    _locks.holding_lock(
                        self._paths.life_lock,
                        doing="writing images",
                        timeout_seconds=self._layout.lock_timeout_seconds,
                        shared=True,
                    )
                )
            self._folder = stack.enter_context(living_folder(self._paths))
            yield

    def commit(self) -> None:
        """Publish what the transaction's names reach, make it durable, and write the names, under the store lock.

        Raises:
            StoreBusy: when the lock was not to be had; nothing has changed then.
        """
        if not self._changes:
            return
        with self._layout.store_lock("committing an image"):
            index = self._layout.read_index()
            for change in self._changes:
                index = change(index)
            with self._layout.replacing_index(index):
                for digest in sorted(self._reached):
                    self._publish_locked(digest)
                if self._layout.durable:
                    for algorithm in sorted({digest.algorithm for digest in self._reached}):
                        _files.sync_directory(self._paths.blobs(algorithm))

    # ---- ImageWriter

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the store holds the blob, in its full size; if so it is pinned, and stays.

        A document's content is verified too: it is small, and everything below it hangs on it.
        """
        digest = descriptor.digest
        size_bytes = self._held.get(digest)
        if size_bytes is None:
            size_bytes = self._pin(digest)
        is_good = size_bytes == descriptor.size_bytes
        if is_good and media_types.is_document(descriptor.media_type):
            is_good = self._is_whole(descriptor)
        if is_good:
            self._check_against_store(digest)
            with self._guard:
                self._reached.add(digest)
        elif size_bytes is not None and digest not in self._finished and digest not in self._reached:
            self._unpin(digest)
        return is_good

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Make the store hold the blob: found, waited for, gone on with, or fetched; verified in every case.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others.
        """
        claim = PartialClaim(self._paths.partial(descriptor.digest), self._pin_path(descriptor.digest) + ".own")
        while not self.has_blob(descriptor):
            partial = claim.take(descriptor.size_bytes)
            if partial is None:
                source.wait(_POLL_SECONDS) if isinstance(source, Waiting) else time.sleep(_POLL_SECONDS)
                continue
            with partial:
                if self.has_blob(descriptor):
                    partial.discard_empty()  # it was finished between our look and our turn
                    break
                partial.fetch(descriptor, source)
                if not self._finish(partial.file_descriptor, partial.path, descriptor, keep_name=self._hard_links):
                    continue
                # Until the blob has its place the partial has its name, and its lock: who wants it too waits.
                is_placed = self._place(descriptor.digest)
                with suppress(OSError):
                    partial.discard()
            if not is_placed:
                self._publish(descriptor.digest)

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Let ``name`` stand for ``descriptor`` when the transaction commits.

        Raises:
            InvalidReference: when an image may not have this name.
            IncompleteImage: when the transaction has not made the store hold the descriptor's blob.
        """
        check_image_name(name)
        if descriptor.digest not in self._reached:
            raise IncompleteImage(name, (str(descriptor.digest),))
        self._changes.append(functools.partial(with_name, name=name, descriptor=descriptor))

    def write_change(self, change: Callable[[LayoutIndex], LayoutIndex]) -> None:
        """Let ``change`` be made to the index when the transaction commits, under the store lock.

        The caller has seen to it that :meth:`has_blob` holds for all that it adds. An error that it raises aborts.
        """
        self._changes.append(change)

    # ---- BlobStage

    def stage_blob(self, stream: BlobStream, size_bytes: int, digest: Digest | None = None) -> Digest:
        """Keep the stream's bytes in the transaction, and return the digest of what was kept.

        Nothing of it is published unless an image that the transaction names reaches it.

        Raises:
            ContentMismatch: when there are fewer or more bytes, or ``digest`` is another.
        """
        path = os.path.join(self._folder, f"staged-{_files.fresh_name()}")
        opened = _files.open_new(path)
        try:
            verifier = Verifier(digest, size_bytes)
            _files.append_stream(stream, opened, verifier)
            found = verifier.finish()
            if not self._finish(opened, path, Descriptor(media_type="", digest=found, size_bytes=size_bytes)):
                raise StoreUnavailable(path, "somebody has taken it away")
        except BaseException:
            with suppress(OSError):  # it goes with the transaction
                _files.discard_file(path)
            raise
        finally:
            os.close(opened)
        return found

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the bytes of a blob that was staged.

        Raises:
            BlobNotFound: when it was not.
            ContentMismatch: when what was staged has another size.
        """
        size_bytes = self._held.get(descriptor.digest)
        if size_bytes is None:
            raise BlobNotFound(str(descriptor.digest))
        if size_bytes != descriptor.size_bytes:
            raise ContentMismatch(str(descriptor.digest), f"{descriptor.size_bytes} bytes", f"{size_bytes} bytes")
        opened = _files.open_regular(self._where(descriptor.digest))
        return _files.FileStream(opened, offset, size_bytes - offset)

    # ---- pins

    def _pin_path(self, digest: Digest) -> str:
        return os.path.join(self._folder, pin_name(digest))

    def _where(self, digest: Digest) -> str:
        """Return where the transaction's copy lies: without hard links a blob that was found stays where it is."""
        path = self._pin_path(digest)
        return path if self._hard_links or os.path.lexists(path) else self._paths.blob(digest)

    def _pin(self, digest: Digest) -> int | None:
        """Pin a blob of the store and return its size; None where it has none that is a regular file."""
        blob = self._paths.blob(digest)
        try:
            if self._hard_links:
                with suppress(FileExistsError):
                    _files.link_file(blob, self._pin_path(digest))
                blob = self._pin_path(digest)
            opened = _files.open_regular(blob)
        except FileNotFoundError:
            return None
        except OSError as error:
            # A link to a folder is refused with EPERM, as is any link where there are none.
            if error.errno not in _files.NOT_REGULAR and not os.path.isdir(self._paths.blob(digest)):
                raise
            self._note_wrong(digest, self._paths.blob(digest))
            return None
        try:
            size_bytes = os.fstat(opened).st_size
        finally:
            os.close(opened)
        with self._guard:
            return self._held.setdefault(digest, size_bytes)

    def _is_whole(self, descriptor: Descriptor) -> bool:
        opened = _files.open_regular(self._where(descriptor.digest))
        try:
            return _is_content(opened, descriptor.digest, descriptor.size_bytes)
        finally:
            os.close(opened)

    def _finish(self, opened: int, path: str, descriptor: Descriptor, *, keep_name: bool = False) -> bool:
        """Make a verified file this transaction's own, and durable, in place of a wrong one it may have pinned.

        Return False where ``path`` has become another file than the one that was verified: all is to be done again.
        """
        pin = self._pin_path(descriptor.digest)
        if self._layout.durable:
            _files.sync_file(opened)
        with self._guard:
            if descriptor.digest in self._finished:
                # Another thread of this transaction was first. Its copy must keep its name: it may be linked just now.
                _files.discard_file(path)
                return True
            try:
                if keep_name:  # a second name, put in place of whatever was pinned
                    _files.link_file(path, f"{pin}.new")
                    path = f"{pin}.new"
                _files.rename_file(path, pin)
            except FileNotFoundError:
                return False
            if not _files.is_same_file(opened, pin):
                _files.discard_file(pin)
                return False
            _files.set_mode(opened, _BLOB_MODE)
            self._held[descriptor.digest] = descriptor.size_bytes
            self._finished.add(descriptor.digest)
        return True

    # ---- publishing

    def _unpin(self, digest: Digest) -> None:
        """Let go of a blob that is not what a descriptor says, and remember which file it was."""
        self._note_wrong(digest, self._where(digest))
        if self._hard_links:
            _files.discard_file(self._pin_path(digest))
        with self._guard:
            self._held.pop(digest, None)

    def _note_wrong(self, digest: Digest, path: str) -> None:
        """Remember which file was found to be no such blob, so that another one in its place is not taken for it."""
        with self._guard:
            self._wrong[digest] = _signatures.signature(path)

    def _check_against_store(self, digest: Digest) -> None:
        """See whether the store's own blob, where there is one beside a copy that was verified here, is any good."""
        blob = self._paths.blob(digest)
        if digest not in self._finished:
            with self._guard:
                self._wrong.pop(digest, None)  # a descriptor that lied may have called it wrong
            return
        if digest in self._reached:
            return
        try:
            opened = _files.open_regular(blob)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _files.NOT_REGULAR:
                raise
            self._note_wrong(digest, blob)
            return
        try:
            is_own = self._hard_links and _files.is_same_file(opened, self._pin_path(digest))
            if not is_own and not _is_content(opened, digest, self._held[digest]):
                self._note_wrong(digest, blob)
        finally:
            os.close(opened)

    def _publish(self, digest: Digest) -> None:
        """Let the blob appear in the store before the commit, so that others, and a next try, have it."""
        if not self._place(digest):
            with self._layout.store_lock("replacing a wrong blob"):
                self._publish_locked(digest)

    def _publish_locked(self, digest: Digest) -> None:
        if self._place(digest):
            return
        # What is there is no good: it is kept for whoever wants to know, and the verified bytes take its place.
        pin, blob = self._pin_path(digest), self._paths.blob(digest)
        _files.make_directory(self._paths.quarantine)
        aside = os.path.join(self._paths.quarantine, f"{pin_name(digest)}.{_files.fresh_name()}")
        if self._hard_links and not os.path.isdir(blob):
            new = f"{pin}.new"
            _files.link_file(blob, aside)
            _files.link_file(pin, new)
            _files.rename_file(new, blob)
        else:
            _files.rename_file(blob, aside)
            if not self._place(digest):
                raise BlobNotFound(str(digest))
        with self._guard:
            self._wrong.pop(digest, None)

    def _place(self, digest: Digest) -> bool:
        """Link (or move) the transaction's copy to where the blob belongs; False where something wrong is there."""
        pin, blob = self._pin_path(digest), self._paths.blob(digest)
        self._layout.make_blob_folder(digest.algorithm)
        try:
            if self._hard_links:
                _files.link_file(pin, blob)
            elif not _files.exists(blob):
                _files.rename_file(pin, blob)
            else:
                return self._is_good(digest)
        except FileExistsError:
            return self._is_good(digest)
        return True

    def _is_good(self, digest: Digest) -> bool:
        """Whether what lies where the blob belongs may stay: a file of its size that nobody here has found wrong."""
        found = _signatures.signature(self._paths.blob(digest))
        return (
            found is not None
            and found.is_regular
            and found.size_bytes == self._held[digest]
            and found != self._wrong.get(digest)
        )


def _is_content(opened: int, digest: Digest, size_bytes: int) -> bool:
    """Whether an open file has this size and digest."""
    if os.fstat(opened).st_size != size_bytes:
        return False
    verifier = Verifier(digest, size_bytes)
    try:
        _files.hash_range(opened, 0, size_bytes, verifier)
        verifier.finish()
    except ContentMismatch:
        return False
    return True
