"""The copy: the only code that moves an image. Pull, push, save, load and import are this with other ends.

Also the one place that knows of progress and of cancelling: both are a wrapper around the source, and no end
has heard of either.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Node
from minibox_store.errors import Cancelled, InvalidArgument
from minibox_store.events import (
    BlobAdvanced,
    BlobPresent,
    BlobRetried,
    BlobsCounted,
    BlobStarted,
    BlobStored,
    Event,
    ImageCopied,
    RegisteringName,
)
from minibox_store.forwarding import ForwardingSource
from minibox_store.graph import ContentSource, RememberingSource, walk_contents
from minibox_store.kinds import check_count, check_kind, check_method, each_of
from minibox_store.leaves import LeavesAtOnce, LeavesInTurn
from minibox_store.limits import DEFAULT_LIMITS, MEBIBYTE, Limits
from minibox_store.listeners import checked_listener, marking_errors
from minibox_store.protocols import (
    BlobSource,
    BlobStream,
    FileRange,
    ImageTarget,
    ImageWriter,
    Interruptible,
    RangeStream,
    ReferrerWriter,
    RoomChecking,
    Waiting,
)

DEFAULT_PARALLEL = 3
_STEP_BYTES = 16 * MEBIBYTE


class EventListener(Protocol):
    """What an operation tells its progress to: any function that takes an event.

    It is called by the threads that do the work, several at once where its operation says so, and they wait until it
    returns. What it raises ends the operation, as an error of that would, and is raised as it is.
    """

    def __call__(self, event: Event, /) -> None:
        """Take note of ``event``."""


def ignore_events(event: Event) -> None:
    """Take no notice of ``event``."""


def heard(on_event: EventListener) -> EventListener:
    """Return a listener whose errors are told from those of the operation that it listens to.

    Raises:
        InvalidArgument: for what cannot be called.
    """
    return on_event if on_event is ignore_events else marking_errors(checked_listener(on_event))


class _ObservedStream:
    """Bytes on their way: counted, and refused once the copy has stopped."""

    def __init__(self, stream: BlobStream, observer: "ObservedSource", descriptor: Descriptor) -> None:
        self._stream = stream
        self._observer = observer
        self._descriptor = descriptor

    def readinto(self, buffer: memoryview, /) -> int:
        self._observer.check()
        count = self._stream.readinto(buffer)
        self._observer.advanced(self._descriptor, count)
        return count

    def close(self) -> None:
        self._stream.close()


class _ObservedRangeStream(_ObservedStream):
    """The same for bytes that the kernel moves: a cancel is noticed between the steps."""

    def next_range(self, limit_bytes: int, /) -> FileRange:
        self._observer.check()
        assert isinstance(self._stream, RangeStream)
        found = self._stream.next_range(min(limit_bytes, _STEP_BYTES))
        self._observer.advanced(self._descriptor, found.size_bytes)
        return found


class ObservedSource(ForwardingSource):
    """A source of one blob whose bytes are counted, and stop when the work is cancelled or has failed elsewhere.

    Args:
        source: where the bytes are.
        node: the blob, and its place among the others.
        on_event: told of the blob's beginning and of its progress.
        stopped: whether to go on has become pointless.
        pause: what waits until it has.
    """

    def __init__(
        self, source: BlobSource, node: Node, on_event: EventListener, stopped: Callable[[], bool], pause: Waiting
    ) -> None:
        super().__init__(source)
        self._node = node
        self._on_event = on_event
        self._stopped = stopped
        self._pause = pause
        self._guard = threading.Lock()
        self._done_bytes = 0
        self._refusal: BaseException | None = None
        self.was_opened = False

    def check(self) -> None:
        """Raise :class:`Cancelled` if the work has stopped; what the listener has raised, if it ever has."""
        if self._refusal is not None:
            raise self._refusal
        if self._stopped():
            raise Cancelled

    def started(self, offset: int) -> None:
        """Tell that the bytes begin to move; a second time, nothing."""
        if not self.was_opened:
            self.was_opened = True
            node = self._node
            self._tell(
                BlobStarted(
                    descriptor=node.descriptor,
                    role=node.role,
                    position=node.position,
                    total=node.total,
                    offset_bytes=offset,
                )
            )

    def stored(self) -> None:
        """Tell that the target holds the blob."""
        node = self._node
        self._on_event(BlobStored(descriptor=node.descriptor, role=node.role, position=node.position, total=node.total))

    def advanced(self, descriptor: Descriptor, count: int) -> None:
        """Tell how far the bytes have come, now that there are so many more: of one stream, or of several at once."""
        with self._guard:
            self._done_bytes += count
            if count:
                done_bytes, size_bytes = self._done_bytes, descriptor.size_bytes
                self._tell(BlobAdvanced(digest=descriptor.digest, done_bytes=done_bytes, size_bytes=size_bytes))

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except BaseException as error:
            # A target that goes on in another way, whatever a source raises, takes no bytes after this one.
            self._refusal = error
            raise

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on, observed: all that is before them is there."""
        self.check()
        is_again = self.was_opened
        self.started(offset)
        stream = super().open_blob(descriptor, offset)
        with self._guard:
            self._done_bytes = offset
            if is_again:
                self._tell(BlobRetried(digest=descriptor.digest, offset_bytes=offset))
        kind = _ObservedRangeStream if isinstance(stream, RangeStream) else _ObservedStream
        return kind(stream, self, descriptor)

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        """Return some bytes of the blob, observed, where the source gives them."""
        self.check()
        stream = super().open_range(descriptor, offset, size_bytes)
        if stream is None:
            return None
        if not self.was_opened:
            self._done_bytes = offset
            self.started(offset)
        return _ObservedStream(stream, self, descriptor)

    def distrust(self, descriptor: Descriptor, /) -> bool:
        """Pass on that the bytes were wrong; return whether there is another place to be asked for them."""
        self.check()
        return super().distrust(descriptor)

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or raise :class:`Cancelled` as soon as it is cancelled."""
        self.check()
        self._pause.wait(seconds)


class _Copy:
    """One copy under way: the blobs that are moving, and the first thing that went wrong.

    Attributes:
        unmoved: the sources of which the writer has taken nothing; it may still want one before it commits.
    """

    def __init__(
        self, source: BlobSource, writer: ImageWriter, on_event: EventListener, cancellation: Cancellation
    ) -> None:
        self.unmoved: list[ObservedSource] = []
        self._source = source
        self._writer = writer
        self._on_event = on_event
        self._cancellation = cancellation
        self._failed = threading.Event()

    def run(self, root: Descriptor, limits: Limits, parallel: int) -> None:
        leaves = LeavesInTurn(self._copy_leaf) if parallel == 1 else LeavesAtOnce(self._copy_leaf, parallel)
        try:
            for node in walk_contents(self._source, root, limits=limits):
                self._cancellation.check()
                if node.role == "config":
                    self._copy_leaf(node)  # small, and told of before the layers
                elif node.content is None:
                    leaves.move(node)
                else:
                    leaves.settle()
                    document = ContentSource(node.content, self._source)
                    self._writer.write_blob(node.descriptor, document)
                    document.let_go()
                del node  # what it has should not be in memory while the next document is decoded
            leaves.settle()
        except BaseException:
            self._failed.set()
            for end in (self._source, self._writer):
                if isinstance(end, Interruptible):
                    end.interrupt()
            raise
        finally:
            # Nothing may still write when the transaction closes behind us.
            leaves.close()

    def _copy_leaf(self, node: Node) -> None:
        source = ObservedSource(self._source, node, self._on_event, self._stopped, self._cancellation)
        source.check()
        if self._writer.has_blob(node.descriptor):
            self._on_event(
                BlobPresent(descriptor=node.descriptor, role=node.role, position=node.position, total=node.total)
            )
        else:
            self._writer.write_blob(node.descriptor, source)
            if not source.was_opened:
                self.unmoved.append(source)
        source.stored()

    def _stopped(self) -> bool:
        return self._failed.is_set() or self._cancellation.is_cancelled


def copy_graph(
    source: BlobSource,
    writer: ImageWriter,
    root: Descriptor,
    *,
    limits: Limits = DEFAULT_LIMITS,
    parallel: int = DEFAULT_PARALLEL,
    on_event: EventListener = ignore_events,
    cancellation: Cancellation | None = None,
) -> None:
    """Make the writer's target hold everything below ``root``, and ``root``; names are left alone.

    Documents are always walked; a leaf that the target holds is not moved. ``parallel`` leaves move at once.
    ``on_event`` is called from several threads, or from this one alone where ``parallel`` is 1.

    Raises:
        Cancelled: when ``cancellation`` was cancelled.
        StoreError: the first thing that went wrong at either end; what else was moving is stopped before it is raised.

    Guarantees: idempotent; each document is written after its children.
    """
    cancellation = checked_cancellation(cancellation)
    with cancellation.interrupting(source), cancellation.interrupting(writer):
        _Copy(source, writer, on_event, cancellation).run(root, limits, parallel)


def copy_image(
    source: BlobSource,
    target: ImageTarget,
    root: Descriptor,
    names: Iterable[str],
    *,
    limits: Limits = DEFAULT_LIMITS,
    parallel: int = DEFAULT_PARALLEL,
    on_event: EventListener = ignore_events,
    cancellation: Cancellation | None = None,
    when_whole: Callable[[], object] | None = None,
    referrers: Iterable[Descriptor] = (),
) -> None:
    """Copy the graph below ``root`` to ``target`` and let ``names`` stand for it there, in one transaction.

    What of its ``referrers`` is to come along comes before it, so that no name is without them; only a target that
    keeps such things may be given any.

    ``when_whole`` is called when the target holds all of it, before a name is written: what fails then changes none.

    Raises:
        InvalidArgument: when there are ``referrers``, and the target keeps none; for whatever is of another kind.
        Cancelled, StoreError: as :func:`copy_graph`; no name has changed then.
        StoreFull: before a byte has moved, when the target has not the room for what it lacks.

    Guarantees: atomic as to names; copying twice leaves what copying once does.
    """
    names, referrers = each_of("names", names, str), each_of("referrers", referrers, Descriptor)
    check_kind("root", root, Descriptor)
    check_kind("limits", limits, Limits)
    check_count("parallel", parallel, "at least one layer has to move")
    check_method("source", source, "open_blob")
    check_method("target", target, "open_writer")
    on_event, cancellation = checked_listener(on_event), checked_cancellation(cancellation)
    # Each document is walked twice. A target may read from the source until it commits.
    source = source if isinstance(source, RememberingSource) else RememberingSource(source, limits)
    with cancellation.interrupting(source), cancellation.interrupting(target), target.open_writer() as writer:
        if referrers and not isinstance(writer, ReferrerWriter):
            raise InvalidArgument("referrers", len(referrers), "the target keeps none")
        _check_room(source, writer, (*referrers, root), limits, cancellation)
        if on_event is not ignore_events:
            on_event(count_blobs(((source, each) for each in (*referrers, root)), limits, cancellation))
        copy = _Copy(source, writer, on_event, cancellation)
        with cancellation.interrupting(writer):
            for each in (*referrers, root):
                copy.run(each, limits, parallel)
        for referrer in referrers:
            assert isinstance(writer, ReferrerWriter)  # as was seen above
            writer.write_referrer(referrer)
        if when_whole is not None:
            when_whole()
        for name in names:
            on_event(RegisteringName(name=name))
            writer.write_name(name, root)
        cancellation.check()
    for late in copy.unmoved:
        if late.was_opened:
            late.stored()  # it was told that it is left out, and then the target wanted it
    for name in names:
        on_event(ImageCopied(name=name))


def count_blobs(
    roots: Iterable[tuple[BlobSource, Descriptor]], limits: Limits, cancellation: Cancellation
) -> BlobsCounted:
    """Return how many configs and layers there are below ``roots``, each root with where it is, and how large."""
    sizes: dict[Digest, int] = {}
    for source, root in roots:
        for node in walk_contents(source, root, limits=limits):
            cancellation.check()
            if node.content is None:
                sizes[node.descriptor.digest] = node.descriptor.size_bytes
            del node  # with what it has
    return BlobsCounted(count=len(sizes), size_bytes=sum(sizes.values()))


def _check_room(
    source: BlobSource,
    writer: ImageWriter,
    roots: Iterable[Descriptor],
    limits: Limits,
    cancellation: Cancellation,
) -> None:
    """Let a writer that can say so weigh the whole against the room that there is, before a byte of it moves."""

    def weighed() -> Iterator[Descriptor]:
        for root in roots:
            for node in walk_contents(source, root, limits=limits):
                cancellation.check()  # the writer may read what it holds of each
                yield node.descriptor
                del node  # with what it has

    if isinstance(writer, RoomChecking):
        writer.check_room(weighed())
