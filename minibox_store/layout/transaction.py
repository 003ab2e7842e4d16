"""A transaction on the store: everything that it relies on is pinned, and its names appear in one step or never.

``ingest/<id>/`` holds a lock file, locked while the transaction lives, and a hard link to every blob that it has
found, finished or staged. A collection leaves those alone. The order is always: pin, then publish, then name.
Whatever happens, a transaction that fails removes its own folder and nothing under ``blobs/``.
"""

import errno
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from minibox_store import _files, _locks, _moving, media_types
from minibox_store._room import check_room
from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.errors import BlobNotFound, Cancelled, ContentMismatch, IncompleteImage, StoreUnavailable
from minibox_store.graph import ContentSource
from minibox_store.layout.contents import is_content, sync_contents, sync_unfinished
from minibox_store.layout.living import living_folder
from minibox_store.layout.partials import PartialClaim
from minibox_store.layout.paths import pin_name
from minibox_store.layout.publishing import Publisher
from minibox_store.layout.ranged_fetch import FetchPlan
from minibox_store.layout_index import Provenance, with_name, with_referrer
from minibox_store.protocols import BlobSource, BlobStream, Waiting
from minibox_store.reference import check_image_name

if TYPE_CHECKING:
    from minibox_store.layout.layout import Layout

_BLOB_MODE = 0o444
_POLL_SECONDS = 0.05


class Transaction:
    """One transaction: an ImageWriter, and a BlobStage. Safe for several threads.

    Where the file system has no hard links, a lock that keeps collections out for the whole of its life takes the
    place of the pins, and a finished blob is moved to where it belongs instead of being linked.

    Args:
        layout: the store.
        origin: the repository that blobs are fetched from, to be remembered; None where it is none.
        verify_content: whether a blob that the store holds is read, and hashed, before it is relied on; else its size
            is looked at, and of a document the content.
        provenance: what its names were pulled as; None where they were not.
        ranges: how many ranges of a large blob are fetched at once; as many as pay where it is None.
    """

    def __init__(
        self,
        layout: "Layout",
        *,
        origin: str | None,
        verify_content: bool,
        provenance: Provenance | None,
        ranges: int | None,
    ) -> None:
        self._layout = layout
        self._origin = origin
        self._provenance = provenance
        self._verify_content = verify_content
        self._paths = layout.paths
        self._hard_links = layout.has_hard_links()
        self._folder = ""
        self._plan = FetchPlan(folder="", ranges=ranges, durable=layout.durable)
        self._publisher = Publisher(layout, self._pin_path, hard_links=self._hard_links)
        self._guard, self._is_interrupted = threading.Lock(), False
        self._held: dict[Digest, int] = {}
        self._reached: set[Digest] = set()
        self._finished: set[Digest] = set()
        self._verified: set[Digest] = set()
        self._fetched: set[Digest] = set()
        self._names: list[str] = []
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
            self._plan = attrs.evolve(self._plan, folder=self._folder)
            yield

    def commit(self) -> None:
        """Publish what the transaction's names reach, make it durable, and write the names, under the store lock.

        What was fetched and has its place already is made durable though there is no name to write: a repair has none.

        Raises:
            StoreBusy: when the lock was not to be had; nothing has changed then.
            BlobNotFound: when somebody has taken away what was found, and it was no such blob.
        """
        if self._layout.durable:
            found = sorted((self._reached if self._changes else self._finished) - self._publisher.placed)
            sync_contents(self._paths.blob(each) if each in self._finished else self._where(each) for each in found)
        if not self._changes:
            self._sync_folders(self._finished)
            return
        origins, noted = self._layout.origins, set(self._fetched)
        if self._origin is not None and self._reached - noted:
            # What was found here may have come from nowhere: out of an archive, or by a pull that was cut off.
            noted |= origins.unknown(self._reached - noted, self._origin)
        with self._layout.store_lock("committing an image"):
            index = self._layout.read_index()
            for change in self._changes:
                index = change(index)
            self._layout.activity.note_written(frozenset(self._names), index)
            if self._origin is not None:
                origins.note(sorted(noted), self._origin)
            with self._layout.replacing_index(index):
                for digest in sorted(self._reached):
                    self._publish_locked(digest)
                self._sync_folders(self._reached)

    def _publish_locked(self, digest: Digest) -> None:
        size_bytes = self._held[digest]
        is_gone = digest not in self._finished and not _files.exists(self._paths.blob(digest))
        if is_gone and not self._is_whole(Descriptor(media_type="", digest=digest, size_bytes=size_bytes)):
            raise BlobNotFound(str(digest))  # it was found by its size, and somebody who has read it has set it aside
        self._publisher.publish_locked(digest, size_bytes)

    def _sync_folders(self, digests: Iterable[Digest]) -> None:
        if self._layout.durable:
            for algorithm in sorted({digest.algorithm for digest in digests}):
                _files.sync_directory(self._paths.blobs(algorithm))

    def interrupt(self) -> None:
        """End, with an error, the reading of what the store holds, now and later. From any thread."""
        self._is_interrupted = True

    def _check(self) -> None:
        if self._is_interrupted:
            raise Cancelled

    # ---- ImageWriter

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the store holds the blob, in its full size; if so it is pinned, and stays.

        A document's content is verified in any case: it is small, and everything below it hangs on it.
        """
        digest = descriptor.digest
        size_bytes = self.pinned_bytes(digest)
        is_good = is_sized = size_bytes == descriptor.size_bytes
        if is_good and (self._verify_content or media_types.is_document(descriptor.media_type)):
            is_good = self._is_whole(descriptor)
        if is_good:
            self._check_against_store(digest)
            with self._guard:
                self._reached.add(digest)
        elif size_bytes is not None and digest not in self._finished:
            if digest not in self._reached:
                self._unpin(digest)
            elif is_sized:  # found as a layer, by its size, and read as a document only now
                self._publisher.note_wrong(digest, self._where(digest))
        return is_good

    def pinned_bytes(self, digest: Digest) -> int | None:
        """Return the size of a blob that is pinned, or is now; None where the store has none that is a file."""
        size_bytes = self._held.get(digest)
        return self._pin(digest) if size_bytes is None else size_bytes

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Make the store hold the blob: found, waited for, gone on with, or fetched; verified in every case.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others.
        """
        claim = PartialClaim(self._paths.partial(descriptor.digest), self._pin_path(descriptor.digest) + ".own")
        while not self.has_blob(descriptor):
            # Nobody waits for bytes that are in memory already.
            partial = claim.take(descriptor.size_bytes, may_wait=not isinstance(source, ContentSource))
            if partial is None:
                source.wait(_POLL_SECONDS) if isinstance(source, Waiting) else time.sleep(_POLL_SECONDS)
                continue
            with partial:
                if self.has_blob(descriptor):
                    partial.discard_empty()  # it was finished between our look and our turn
                    break
                partial.fetch(descriptor, source, self._plan)
                if not self._finish(partial.file_descriptor, partial.path, descriptor, keep_name=self._hard_links):
                    continue
                with self._guard:
                    self._fetched.add(descriptor.digest)
                # Until the blob has its place the partial has its name, and its lock: who wants it too waits.
                is_placed = self._publisher.place(descriptor.digest, descriptor.size_bytes)
                with suppress(OSError):
                    partial.discard()
            if not is_placed:
                self._publisher.publish(descriptor.digest, descriptor.size_bytes)

    def keep_file(self, opened: int, path: str, descriptor: Descriptor) -> None:
        """Make a file of the store's disk, open and verified, a blob; it is removed only where it cannot be synced."""
        if not self._finish(opened, path, descriptor, keep_name=self._hard_links):
            raise BlobNotFound(str(descriptor.digest))
        self._publisher.publish(descriptor.digest, descriptor.size_bytes)

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Let ``name`` stand for ``descriptor`` when the transaction commits.

        Raises:
            InvalidReference: when an image may not have this name.
            IncompleteImage: when the transaction has not made the store hold the descriptor's blob.
        """
        self._check_reached(check_image_name(name), descriptor)
        change = functools.partial(with_name, name=name, descriptor=descriptor, provenance=self._provenance)
        self.write_change(change, [name])

    def write_referrer(self, descriptor: Descriptor, /) -> None:
        """Let ``descriptor`` be kept as long as its subject; raises IncompleteImage as :meth:`write_name`."""
        self._check_reached(str(descriptor.digest), descriptor)
        self.write_change(functools.partial(with_referrer, descriptor=descriptor), [])

    def _check_reached(self, name: str, descriptor: Descriptor) -> None:
        if descriptor.digest not in self._reached:
            raise IncompleteImage(name, (str(descriptor.digest),))

    def write_change(self, change: Callable[[LayoutIndex], LayoutIndex], names: Iterable[str]) -> None:
        """Let ``change`` write these names into the index when the transaction commits, under the store lock.

        The caller has seen to it that :meth:`has_blob` holds for all that it adds. An error that it raises aborts.
        """
        self._changes.append(change)
        self._names.extend(names)

    def check_room(self, descriptors: Iterable[Descriptor]) -> None:
        """Return if what is missing of these blobs fits; what a download has left behind is there already.

        Raises:
            StoreFull: with the bytes that are needed, and those that are free.
        """
        needed_bytes = 0  # sizes are looked at, and nothing is read: what turns out wrong is weighed as it is fetched
        weighed: set[Digest] = set()
        for descriptor in descriptors:  # one at a time: whoever gives them may end it between two
            if descriptor.digest not in weighed and self.pinned_bytes(descriptor.digest) != descriptor.size_bytes:
                had_bytes = _files.size_of(self._paths.partial(descriptor.digest))
                needed_bytes += max(0, descriptor.size_bytes - had_bytes)
            weighed.add(descriptor.digest)
        check_room(self._folder, needed_bytes, name=self._paths.root)

    # ---- BlobStage

    def stage_blob(self, stream: BlobStream, size_bytes: int, digest: Digest | None = None) -> Digest:
        """Keep the stream's bytes in the transaction, and return the digest of what was kept.

        Nothing of it is published unless an image that the transaction names reaches it.

        Raises:
            ContentMismatch: when there are fewer or more bytes, or ``digest`` is another.
        """
        check_room(self._folder, size_bytes, name=self._paths.root)
        path = os.path.join(self._folder, f"staged-{_files.fresh_name()}")
        opened = _files.open_new(path)
        try:
            verifier = Verifier(digest, size_bytes)
            durable = self._layout.durable
            _moving.append_stream(stream, opened, verifier, expected_bytes=size_bytes, durable=durable)
            found = verifier.finish()
            if not self._finish(opened, path, Descriptor(media_type="", digest=found, size_bytes=size_bytes)):
                raise StoreUnavailable(path, "somebody has taken it away")
        except BaseException as error:
            with suppress(OSError):  # it goes with the transaction
                _files.discard_file(path)
            if isinstance(error, _moving.CutOff):
                actual = "fewer: where they came from became shorter meanwhile"
                raise ContentMismatch(str(digest or "a blob"), f"{size_bytes} bytes", actual) from error
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
        return _moving.FileStream(opened, offset, size_bytes - offset)

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
            opened = _files.open_readable(blob)
        except FileNotFoundError:
            return None
        except OSError as error:
            # A link to a folder is refused with EPERM. So is one to a file of another user that we may not write to, by
            # fs.protected_hardlinks: what we cannot pin we do not rely on, and it is no worse for that.
            if error.errno == errno.EPERM and os.path.isfile(self._paths.blob(digest)):
                return None
            if error.errno not in _files.NOT_REGULAR and not os.path.isdir(self._paths.blob(digest)):
                raise
            self._publisher.note_wrong(digest, self._paths.blob(digest))
            return None
        try:
            size_bytes = os.fstat(opened).st_size
        finally:
            os.close(opened)
        with self._guard:
            return self._held.setdefault(digest, size_bytes)

    def _is_whole(self, descriptor: Descriptor) -> bool:
        if descriptor.digest in self._verified or descriptor.digest in self._finished:
            return True  # what a transaction has pinned is not read twice
        try:
            opened = _files.open_regular(self._where(descriptor.digest))
        except FileNotFoundError:
            return False  # without links, what was found is not held
        try:
            is_whole = is_content(opened, descriptor.digest, descriptor.size_bytes, self._check)
        finally:
            os.close(opened)
        if is_whole:
            with self._guard:
                self._verified.add(descriptor.digest)
        return is_whole

    def _finish(self, opened: int, path: str, descriptor: Descriptor, *, keep_name: bool = False) -> bool:
        """Make a verified file this transaction's own, and durable, in place of a wrong one it may have pinned.

        Return False where ``path`` has become another file than the one that was verified: all is to be done again.
        """
        pin = self._pin_path(descriptor.digest)
        if self._layout.durable:
            sync_unfinished(opened, path)
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

    def _unpin(self, digest: Digest) -> None:
        """Let go of a blob that is not what a descriptor says, and remember which file it was."""
        self._publisher.note_wrong(digest, self._where(digest))
        if self._hard_links:
            _files.discard_file(self._pin_path(digest))
        with self._guard:
            self._held.pop(digest, None)

    def _check_against_store(self, digest: Digest) -> None:
        """See whether the store's own blob, where there is one beside a copy that was verified here, is any good."""
        if digest not in self._finished:
            self._publisher.forget_wrong(digest)  # a descriptor that lied may have called it wrong
        elif digest not in self._reached:
            self._publisher.compare(digest, self._held[digest])
