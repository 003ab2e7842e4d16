"""Taking blobs in as they come, before anybody knows what needs them: from an archive into a stage.

Each is verified as it was kept. What the images reach of them is then moved by the copy, like everything else.
"""

import os
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from minibox_store.cancellation import Cancellation
from minibox_store.copying import EventListener, ObservedSource, ignore_events
from minibox_store.documents import Descriptor, Node
from minibox_store.errors import Cancelled
from minibox_store.protocols import ArchivedBlob, BlobStage, BlobStream, RangeStream

_MOST_AT_ONCE = 16  # each has a buffer of 1 MiB


def stage_blobs(
    blobs: Iterable[ArchivedBlob],
    stage: BlobStage,
    *,
    parallel: int | None = None,
    on_event: EventListener = ignore_events,
    cancellation: Cancellation | None = None,
) -> None:
    """Stage every blob, each verified as it was kept.

    Blobs that lie in a file are staged ``parallel`` at once, by default as many as there are processors for this
    process, up to 16: hashing is the cost, and it leaves the interpreter's lock, as copying in the kernel does. Any
    other blob is staged before the next one is asked for.

    Raises:
        ContentMismatch: for the first blob that is not what its digest says; no further one is begun.
        Cancelled: when ``cancellation`` was cancelled.
    """
    if parallel is None:
        parallel = min(len(os.sched_getaffinity(0)), _MOST_AT_ONCE)
    _Staging(stage, on_event, cancellation or Cancellation()).run(blobs, parallel)


class _Staging:
    """One staging under way: what has gone wrong with it first, which the others are only told to stop by."""

    def __init__(self, stage: BlobStage, on_event: EventListener, cancellation: Cancellation) -> None:
        self._stage = stage
        self._on_event = on_event
        self._cancellation = cancellation
        self._failed = threading.Event()
        self._first: list[BaseException] = []

    def run(self, blobs: Iterable[ArchivedBlob], parallel: int) -> None:
        pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="minibox-stage")
        moving: set[Future[None]] = set()
        try:
            for blob in blobs:
                self._cancellation.check()
                if not isinstance(blob.stream, RangeStream):
                    self._stage_one(blob)
                    continue
                # A bounded queue: an archive of a million members must not become a million futures.
                if len(moving) >= 2 * parallel:
                    done, moving = wait(moving, return_when=FIRST_COMPLETED)
                    for each in done:
                        each.result()
                moving.add(pool.submit(self._stage_one, blob))
            for each in moving:
                each.result()
        except Cancelled:
            self._failed.set()
            if self._first:
                raise self._first[0] from None
            raise
        except BaseException:
            self._failed.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stage_one(self, blob: ArchivedBlob) -> None:
        descriptor = blob.descriptor
        node = Node(descriptor=descriptor, role="layer", position=blob.position, total=blob.position)
        source = _OpenedSource(blob.stream)
        observer = ObservedSource(source, node, self._on_event, self._is_stopped, self._cancellation)
        stream = observer.open_blob(descriptor)
        try:
            if blob.note_kept is None:
                self._stage.stage_blob(stream, descriptor.size_bytes, descriptor.digest)
            else:
                blob.note_kept(self._stage.stage_blob(stream, descriptor.size_bytes))
        except BaseException as error:
            if not self._failed.is_set():
                self._first.append(error)
            self._failed.set()  # at once, so that no further one is begun
            raise
        finally:
            stream.close()

    def _is_stopped(self) -> bool:
        return self._failed.is_set() or self._cancellation.is_cancelled


class _OpenedSource:
    """The stream of one blob, open already, as a source."""

    def __init__(self, stream: BlobStream) -> None:
        self._stream = stream

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        return self._stream
