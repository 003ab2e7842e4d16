"""Taking blobs in as they come, before anybody knows what needs them: from an archive into a stage.

Each is verified as it was kept. What the images reach of them is then moved by the copy, like everything else.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from minibox_store.copying import Cancellation, EventListener, ObservedSource, ignore_events
from minibox_store.documents import Descriptor, Node
from minibox_store.errors import Cancelled
from minibox_store.protocols import ArchivedBlob, BlobStage, BlobStream, RangeStream


def stage_blobs(
    blobs: Iterable[ArchivedBlob],
    stage: BlobStage,
    *,
    parallel: int,
    on_event: EventListener = ignore_events,
    cancellation: Cancellation | None = None,
) -> None:
    """Stage every blob, each verified as it was kept.

    Blobs that lie in a file are staged ``parallel`` at once (hashing is the cost, and it leaves the interpreter's
    lock); any other is staged before the next one is asked for.

    Raises:
        ContentMismatch: for the first blob that is not what its digest says; no further one is begun.
        Cancelled: when ``cancellation`` was cancelled.
    """
    cancellation = cancellation or Cancellation()
    failed = threading.Event()
    first: list[BaseException] = []  # what went wrong; the others were only told to stop

    def stage_one(blob: ArchivedBlob) -> None:
        descriptor = blob.descriptor
        node = Node(descriptor=descriptor, role="layer", position=blob.position, total=blob.position)
        observer = ObservedSource(
            _OpenedSource(blob.stream),
            node,
            on_event,
            lambda: failed.is_set() or cancellation.is_cancelled,
            cancellation,
        )
        stream = observer.open_blob(descriptor)
        try:
            stage.stage_blob(stream, descriptor.size_bytes, descriptor.digest)
        except BaseException as error:
            if not failed.is_set():
                first.append(error)
            failed.set()  # at once, so that no further one is begun
            raise
        finally:
            stream.close()

    pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="minibox-stage")
    moving: set[Future[None]] = set()
    try:
        for blob in blobs:
            cancellation.check()
            if not isinstance(blob.stream, RangeStream):
                stage_one(blob)
                continue
            # A bounded queue: an archive of a million members must not become a million futures.
            if len(moving) >= 2 * parallel:
                done, moving = wait(moving, return_when=FIRST_COMPLETED)
                for each in done:
                    each.result()
            moving.add(pool.submit(stage_one, blob))
        for each in moving:
            each.result()
    except Cancelled:
        failed.set()
        if first:
            raise first[0] from None
        raise
    except BaseException:
        failed.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _OpenedSource:
    """The stream of one blob, open already, as a source."""

    def __init__(self, stream: BlobStream) -> None:
        self._stream = stream

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        return self._stream
