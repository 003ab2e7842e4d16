"""A local store as an end: an OCI image layout on disk that may be read from, written to and listed.

index.json is read whole and anew by every call, and changed only under the store lock, in one step.

Spec: OCI image-spec 1.1, image-layout.md.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from minibox_store import _files, _locks, _moving, _signatures
from minibox_store.codec import decode_layout_index, decode_layout_marker, encode_layout_index, encode_layout_marker
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.errors import (
    ContentMismatch,
    InvalidDocument,
    StoreBusy,
    StoreDamaged,
    StoreUnavailable,
)
from minibox_store.layout.activity import Activity
from minibox_store.layout.ground import Ground
from minibox_store.layout.history import History
from minibox_store.layout.journal import Journal
from minibox_store.layout.living import LOCK, living_folder
from minibox_store.layout.origins import Origins
from minibox_store.layout.paths import ALGORITHMS, LayoutPaths
from minibox_store.layout.quarantine import naming_set_aside
from minibox_store.layout.replacing import FILE_MODE, replacing_content
from minibox_store.layout.settling import open_settled, open_settled_stream, read_settled
from minibox_store.layout.transaction import Transaction
from minibox_store.layout_index import Provenance, find_name, names_of
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobStream

_EMPTY = LayoutIndex()


def _damage(path: str, error: OSError) -> Exception:
    return StoreDamaged(path, error.strerror or str(error)) if error.errno in _files.DAMAGE else error


@contextmanager
def _naming_size(path: str) -> Iterator[None]:
    try:
        yield
    except ContentMismatch as error:
        raise StoreDamaged(path, f"it has {error.actual} where its descriptor says {error.expected}") from error


class Layout:
    """The store at ``root``. Objects are cheap, safe for several threads, and hold no file open.

    Args:
        root: its folder; made, with mode 0700, by the first change if it is not there.
        durable: whether a change survives a loss of power once the call that made it returns.
        lock_timeout_seconds: how long any call waits for another process at most, before StoreBusy.
        limits: the bounds on what is read.
        settle_seconds: how long index.json, oci-layout, or a document, that is not what it should be is read again
            before that is an error: another tool may be writing it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        durable: bool = True,
        lock_timeout_seconds: float = 30.0,
        limits: Limits = DEFAULT_LIMITS,
        settle_seconds: float = 1.0,
    ) -> None:
        self.paths = LayoutPaths(os.path.abspath(root))
        self.durable = durable
        self.lock_timeout_seconds = lock_timeout_seconds
        self.limits = limits
        self.settle_seconds = settle_seconds
        self.history = History(paths=self.paths, durable=durable, limit_bytes=limits.index_bytes)
        self.activity = Activity(Journal(self.paths.activity, durable), self.paths.index)
        self.origins = Origins(Journal(self.paths.origins))
        self._ground = Ground(self.paths, durable=durable)
        self._hard_links: bool | None = None
        self._last_index: tuple[bytes | None, LayoutIndex] = (None, _EMPTY)

    # ---- reading

    def read_index(self) -> LayoutIndex:
        """Return index.json as it is now, an empty one where no store has been made yet.

        As long as the file's bytes are equal, it is the very same object.

        Raises:
            StoreDamaged: when it cannot be read as an index, or is gone while blobs are there.
        """
        return self.read_content()[1]

    def read_content(self) -> tuple[bytes | None, LayoutIndex]:
        """Return the bytes of index.json too, None where no store has been made yet; raises as :meth:`read_index`."""
        try:
            return read_settled(self._read_content, self.paths.index, InvalidDocument, self.settle_seconds)
        except InvalidDocument as error:
            raise StoreDamaged(self.paths.index, str(error)) from error

    def _read_content(self) -> tuple[bytes | None, LayoutIndex]:
        try:
            content = _files.read_whole(self.paths.index, self.limits.index_bytes)
        except FileNotFoundError:
            # Blobs come before the index does: a store that is just being made has both by now, in this order.
            if self._has_blobs() and not _files.exists(self.paths.index):
                raise StoreDamaged(self.paths.index, "it is missing, though the store holds blobs") from None
            return (None, _EMPTY) if not _files.exists(self.paths.index) else self._read_content()
        except OSError as error:
            raise _damage(self.paths.index, error) from error
        last = self._last_index
        if content != last[0]:
            self._last_index = last = (content, decode_layout_index(content, limit_bytes=self.limits.index_bytes))
        return last

    def _has_blobs(self) -> bool:
        for algorithm in ALGORITHMS:
            try:
                with os.scandir(self.paths.blobs(algorithm)) as entries:
                    if any(entries):
                        return True
            except (FileNotFoundError, NotADirectoryError):
                continue
        return False

    def resolve(self, name: str) -> Descriptor:
        """Return the descriptor that ``name`` stands for.

        Raises:
            ImageNotFound: when no entry means it.
        """
        return find_name(self.read_index(), name)[1]

    def iter_names(self) -> Iterator[str]:
        """Yield each name once."""
        return (name for name, _ in names_of(self.read_index()))

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on; raises as :meth:`open_file`.

        A document that was set aside is damage, and not just absent: nobody knows what it leads to.
        """
        path = self.paths.blob(descriptor.digest)
        with _naming_size(path), naming_set_aside(self.paths, descriptor):
            return open_settled_stream(path, descriptor, offset, self.settle_seconds, self.limits.document_bytes)

    def open_file(self, descriptor: Descriptor) -> int:
        """Return an open file that has the descriptor's size; the caller closes it.

        Raises:
            BlobNotFound: when there is nothing.
            StoreDamaged: when it is a link, no file, or of another size.
        """
        path = self.paths.blob(descriptor.digest)
        with _naming_size(path):
            return open_settled(path, descriptor, self.settle_seconds)

    def blob_size(self, digest: Digest) -> int | None:
        """Return the size of what lies in the place of a blob; None where that is no regular file."""
        return _signatures.regular_size(self.paths.blob(digest))

    @contextmanager
    def naming_damage(self) -> Iterator[None]:
        """Turn a document that is wrong in this store into StoreDamaged, with the path of its file."""
        try:
            yield
        except ContentMismatch as error:
            raise StoreDamaged(self._path_of(error.what), str(error)) from error
        except InvalidDocument as error:
            raise StoreDamaged(self._path_of(error.document), str(error)) from error

    def _path_of(self, digest: str) -> str:
        return self.paths.blob(Digest.parse(digest)) if ":" in digest else self.paths.root

    def busy_index(self) -> StoreBusy:
        """Return the error for an index.json that changes each time before what it leads to was read."""
        return StoreBusy(self.paths.index, None, None, "changing index.json all the time")

    # ---- changing

    @contextmanager
    def open_writer(
        self,
        *,
        origin: str | None = None,
        verify_content: bool = False,
        provenance: Provenance | None = None,
        ranges: int | None = None,
    ) -> Iterator[Transaction]:
        """Begin a transaction; leaving it without an error commits it, with one aborts it.

        The arguments are those of :class:`Transaction`.
        """
        self.prepare()
        self.read_index()  # one that cannot be read is told before anything is fetched, and not at the end
        transaction = Transaction(
            self, origin=origin, verify_content=verify_content, provenance=provenance, ranges=ranges
        )
        with transaction.alive():
            yield transaction
            transaction.commit()

    def prepare_folders(self) -> None:
        """Make the folders that locks lie in; check that the store is ours to change.

        Raises:
            StoreUnavailable: when its folder belongs to another user.
        """
        paths = self.paths
        self._ground.make_root()
        if os.stat(paths.root).st_uid != os.geteuid():
            raise StoreUnavailable(paths.root, "it belongs to another user")
        for path in (paths.ingest, paths.partials):
            _files.make_directory(path)
        # A collection is what a full disk needs, and there may be no room for its locks then.
        if not _files.exists(paths.prune_lock):
            os.close(_files.open_shared(paths.prune_lock))
        if _files.exists(paths.base_layers) and not _files.exists(paths.base_layers_lock):
            os.close(_files.open_shared(paths.base_layers_lock))

    def prepare(self) -> None:
        """Make the store where it is not there yet; check that it is ours to change where it is.

        Raises:
            StoreUnavailable: when its folder belongs to another user.
            StoreDamaged: when it is a layout of a version that this library does not know.
        """
        self.prepare_folders()
        paths = self.paths
        if not self.has_marker() or not _files.exists(paths.index):
            with self.store_lock("making the store"):
                if not self.has_marker():
                    with _files.replacing_file(paths.marker, mode=FILE_MODE, durable=self.durable) as opened:
                        _moving.write_all(opened, encode_layout_marker())
                if not _files.exists(paths.index):
                    # A missing index beside blobs is damage, never "empty": the reading says so.
                    with self.replacing_index(self.read_index()):
                        pass
        self._ground.hold_marker()
        self.make_blob_folder("sha256")

    def has_marker(self) -> bool:
        """Whether there is an ``oci-layout``; raises StoreDamaged where it is none of a version that is known."""
        try:
            read_settled(self._read_marker, self.paths.marker, InvalidDocument, self.settle_seconds)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _damage(self.paths.marker, error) from error
        except InvalidDocument as error:
            raise StoreDamaged(self.paths.marker, str(error)) from error
        return True

    def _read_marker(self) -> None:
        decode_layout_marker(_files.read_whole(self.paths.marker, self.limits.error_bytes))

    def make_blob_folder(self, algorithm: str) -> None:
        """Make the folder of an algorithm's blobs where it is not there yet."""
        self._ground.make_blob_folder(algorithm)

    def make_folder(self, path: str) -> None:
        """Make a folder of our own, for its owner alone, where it is not there yet."""
        self._ground.make_folder(path)

    def change_index(
        self, change: Callable[[LayoutIndex], LayoutIndex], doing: str, *, names: Iterable[str] = ()
    ) -> None:
        """Replace index.json by what ``change`` makes of it, under the store lock, in one step; it writes ``names``."""
        with self.store_lock(doing):
            changed = change(self.read_index())
            self.activity.note_written(frozenset(names), changed)
            with self.replacing_index(changed):
                pass

    @contextmanager
    def replacing_index(self, index: LayoutIndex) -> Iterator[None]:
        """Write index.json anew, and let it take effect when the block is left without an error. Under the store lock.

        All that can fail for want of space has succeeded when the block begins. An index that says what the present
        one says is not written, but made durable: whoever wrote it may have died before it was.

        Raises:
            StoreUnavailable: when it would be larger than can be read again.
        """
        present, present_index = self.read_content()
        if present is not None and index == present_index:
            yield
            self.sync_index()
            return
        with self.writing_index(index, present):
            yield

    @contextmanager
    def writing_index(self, index: LayoutIndex, present: bytes | None) -> Iterator[None]:
        """Do as :meth:`replacing_index`, whatever is there; ``present`` is what is to be kept in the history of it."""
        content = encode_layout_index(index)
        if len(content) > self.limits.index_bytes:
            raise StoreUnavailable(self.paths.index, f"it would be larger than {self.limits.index_bytes} bytes")
        with replacing_content(self.history, present, content):
            yield

    def sync_index(self) -> None:
        """Let what index.json says now survive a loss of power, whoever has written it. Under the store lock."""
        if self.durable:
            _files.sync_regular(self.paths.index)
            _files.sync_directory(self.paths.root)

    @contextmanager
    def store_lock(self, doing: str, *, most_seconds: float = math.inf) -> Iterator[None]:
        """Hold the store lock.

        Locks are waited for in this order: prune lock, life lock, a transaction's own, that of the base layers, an
        upload's, the turn, the store lock. A partial's, and that of a tree, is only ever tried, so whoever holds it
        keeps nobody waiting; under a partial's nothing is waited for.

        Who waits holds the turn meanwhile, so that a prune, which lets the lock go between its batches, cannot
        take it again before whoever came in between.

        Raises:
            StoreBusy: after ``lock_timeout_seconds``, or ``most_seconds`` where that is less.
        """
        timeout_seconds = min(self.lock_timeout_seconds, most_seconds)
        deadline = time.monotonic() + timeout_seconds
        with ExitStack() as stack:
            try:
                with _locks.holding_lock(self.paths.store_turn, doing=doing, timeout_seconds=timeout_seconds):
                    rest_seconds = max(0.0, deadline - time.monotonic())
                    stack.enter_context(
                        _locks.holding_lock(self.paths.store_lock, doing=doing, timeout_seconds=rest_seconds)
                    )
            except StoreBusy as busy:
                # Who has the turn waits too: what is of use is who has the lock.
                raise _locks.holder_of(self.paths.store_lock) or busy from None
            yield

    def quarantine_path(self, name: str) -> str:
        """Return a path that nothing has yet, for what was found to be wrong and is to be kept."""
        self._ground.make_folder(self.paths.quarantine)
        return os.path.join(self.paths.quarantine, f"{name}.{_files.fresh_name()}")

    def is_there(self) -> bool:
        """Whether there is anything at the store's place."""
        return _files.exists(self.paths.root)

    def has_hard_links(self) -> bool:
        """Whether the file system of an existing store has hard links; tried once."""
        if self._hard_links is None:
            try:
                with living_folder(self.paths) as folder:
                    self._hard_links = _files.can_link(os.path.join(folder, LOCK), os.path.join(folder, "probe"))
            except OSError as error:
                if error.errno not in _files.NO_SPACE:
                    raise
                # A full disk has room for a further name sooner than for a folder.
                self._hard_links = self._can_link_when_full()
        return self._hard_links

    def _can_link_when_full(self) -> bool:
        probe = f"{self.paths.prune_lock}.{_files.fresh_name()}"
        try:
            return _files.can_link(self.paths.prune_lock, probe)
        except OSError as error:
            if error.errno not in _files.NO_SPACE:
                raise
            return True  # there are links where one was refused for want of room: a tmpfs counts them as files
        finally:
            _files.discard_file(probe)
