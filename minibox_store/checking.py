"""The check of what a store holds: every image is walked, and every byte of every blob is read once.

Nothing is believed and nothing is changed. What is wrong becomes a finding, and the check goes on; what says
nothing of the blob it was met at (a cancel, no memory, no file left to open) ends it.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from queue import SimpleQueue

from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, ObservedSource, ignore_events
from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor, Node, identity
from minibox_store.errors import (
    BlobNotFound,
    ContentMismatch,
    InvalidDocument,
    StoreDamaged,
    StoreError,
)
from minibox_store.events import BlobsCounted
from minibox_store.graph import is_of_the_blob
from minibox_store.image_map import ImageMap
from minibox_store.kinds import check_count
from minibox_store.limits import MEBIBYTE
from minibox_store.listeners import is_of_listener
from minibox_store.protocols import BlobSource
from minibox_store.reports.store import Finding, FindingKind

_BUFFER_BYTES = MEBIBYTE

_Met = tuple[Descriptor, Exception]


def check_images(
    source: BlobSource,
    roots: Iterable[Descriptor],
    images: ImageMap,
    *,
    path_of: Callable[[Digest], str],
    parallel: int,
    on_event: EventListener = ignore_events,
    cancellation: Cancellation | None = None,
) -> Iterator[Finding]:
    """Walk every root, read every blob that one of them reaches, and yield what is wrong, each thing once.

    Args:
        source: where the blobs are. It may say StoreDamaged for what is no file.
        roots: the entries of the store.
        images: is filled with what they reach, all of it before the first finding is yielded.
        path_of: where a blob lies, as findings say it.
        parallel: how many blobs are read at once, each with a buffer of 1 MiB.
        on_event: told of each blob that is no document as its reading begins and goes on, from several threads.
        cancellation: ends the check when it is cancelled.

    Raises:
        Cancelled: when ``cancellation`` was cancelled.
        StoreError, OSError: for what says nothing of the blob it was met at.

    Guarantees: a document that cannot be read hides nothing but what it alone leads to. No thread is left behind.
    """
    check_count("parallel", parallel, "at least one blob has to be read")
    cancellation = checked_cancellation(cancellation)
    told: set[tuple[Digest, FindingKind]] = set()
    with cancellation.interrupting(source):
        documents: list[_Met] = []
        for root in roots:
            cancellation.check()
            images.add_root(source, root, on_unreadable=lambda *met: documents.append(met))
        documents.extend((each, BlobNotFound(str(each.digest))) for each in images.absent.values())
        # The largest first, so that no thread ends long before the others.
        leaves = sorted(images.leaves.values(), key=lambda node: -node.descriptor.size_bytes)
        on_event(BlobsCounted(count=len(leaves), size_bytes=sum(node.descriptor.size_bytes for node in leaves)))
        with closing(_Reading(source, leaves, on_event, cancellation).run(parallel)) as met:
            for descriptor, error in chain(documents, met):
                cancellation.check()  # an error may be how an interrupted read ends
                kind = "absent" if identity(descriptor) in images.absent else _kind_of(descriptor, error)
                digest = descriptor.digest
                if (digest, kind) not in told:
                    told.add((digest, kind))
                    names = images.names_of(digest)
                    yield Finding(kind=kind, path=path_of(digest), digest=digest, names=names, problem=str(error))


def _kind_of(descriptor: Descriptor, error: Exception) -> FindingKind:
    """Return what an error says of the blob; raise it where it says nothing."""
    match error:
        case BlobNotFound():
            return "missing"
        case ContentMismatch(expected=expected):
            return "wrong digest" if expected == str(descriptor.digest) else "wrong size"
        case StoreDamaged():
            return "not a file"
        case InvalidDocument():
            return "unreadable"
        case OSError() if is_of_the_blob(error):
            return "unreadable"
    raise error


class _Reading:
    """Some blobs that several threads read, each the next one that nobody has taken; and what they met."""

    def __init__(
        self, source: BlobSource, leaves: list[Node], on_event: EventListener, cancellation: Cancellation
    ) -> None:
        self._source = source
        self._leaves = leaves
        self._on_event = on_event
        self._cancellation = cancellation
        self._todo = iter(range(len(leaves)))
        self._stopped = threading.Event()
        self._met: SimpleQueue[_Met | None] = SimpleQueue()

    def run(self, parallel: int) -> Generator[_Met, None, None]:
        """Yield each blob that cannot be read, or is another, as soon as that is known."""
        count = min(parallel, len(self._leaves))  # whoever is one more would have nothing to read, and a buffer
        pool = ThreadPoolExecutor(max_workers=max(count, 1), thread_name_prefix="minibox-check")
        try:
            readers = [pool.submit(self._read_on) for _ in range(count)]
            for _ in readers:
                while (met := self._met.get()) is not None:
                    yield met
            for reader in readers:
                reader.result()
        finally:
            self._stopped.set()
            pool.shutdown(wait=True)

    def _read_on(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        try:
            for place in self._todo:  # next() of a range's iterator is one step, whoever else takes one
                node = self._leaves[place]._replace(position=place + 1, total=len(self._leaves))
                try:
                    self._read(node, buffer)
                except (StoreError, OSError) as error:
                    if is_of_listener(error):
                        raise
                    if not self._stopped.is_set():
                        self._met.put((node.descriptor, error))
                if self._stopped.is_set():
                    return
        except BaseException:
            self._stopped.set()
            raise
        finally:
            self._met.put(None)

    def _read(self, node: Node, buffer: memoryview) -> None:
        verifier = Verifier(node.descriptor.digest, node.descriptor.size_bytes)
        observed = ObservedSource(self._source, node, self._on_event, self._is_stopped, self._cancellation)
        stream = observed.open_blob(node.descriptor)
        try:
            while count := stream.readinto(buffer):
                verifier.update(buffer[:count])
        finally:
            stream.close()
        verifier.finish()

    def _is_stopped(self) -> bool:
        return self._stopped.is_set() or self._cancellation.is_cancelled
