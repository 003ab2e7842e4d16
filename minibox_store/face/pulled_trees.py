"""An image's root filesystem grows while its layers still come: unpacked as they are whole, and named with the image.

One thread unpacks; what moves the blobs is the copy, as ever. Whichever of the two fails ends the other, and what is
told is what went wrong first.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue

import attrs

from minibox_store.cancellation import Cancellation
from minibox_store.codec import BaseLayer, decode_document
from minibox_store.copying import EventListener
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Manifest
from minibox_store.errors import Cancelled
from minibox_store.events import BlobStored, Event, UnpackAdvanced, UnpackingLayer
from minibox_store.graph import RememberingSource
from minibox_store.layout import Layout, TransactionTarget
from minibox_store.layout.transaction import Transaction
from minibox_store.limits import Limits
from minibox_store.media_types import is_config, is_index, is_layer
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.rootfs.base_layers import BaseLayers, GrowingTree
from minibox_store.rootfs.layers import LayerPlan, LayerSource, read_layers
from minibox_store.rootfs.unpacking import unpack_layers
from minibox_store.values import Value


def read_filesystem(source: RememberingSource, root: Descriptor, limits: Limits) -> LayerPlan | None:
    """Return the layers of an image's root filesystem; None for an index, an artifact and an attestation.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when the manifest or the config is missing or wrong, or they do
            not agree on how many layers there are.
    """
    if is_index(root.media_type):
        return None
    manifest = decode_document(source.read(root), root.media_type, str(root.digest), limits=limits)
    if not isinstance(manifest, Manifest) or not is_config(manifest.config.media_type):
        return None
    if not all(is_layer(layer.media_type) for layer in manifest.layers):
        return None
    return read_layers(source, root, limits)


def base_layers_of(layout: Layout) -> BaseLayers:
    """Return the root filesystems of a store."""
    return BaseLayers(
        layout.paths.base_layers,
        layout.paths.base_layers_lock,
        durable=layout.durable,
        lock_timeout_seconds=layout.lock_timeout_seconds,
        read_names=lambda: frozenset(layout.iter_names()),
    )


class TreeTarget:
    """A store as an ImageTarget that unpacks what it is given, and puts the tree in its place as the name is written.

    The copy is handed :meth:`on_event` as its listener, :meth:`put_in_place` for when all is there, and
    ``cancellation``.

    Args:
        target: the store.
        trees: where root filesystems are.
        name: the image's.
        plan: its layers.
        on_event: is told of everything.

    Attributes:
        cancellation: ends both the copy and the unpacking.
    """

    def __init__(
        self, target: TransactionTarget, trees: BaseLayers, name: str, plan: LayerPlan, on_event: EventListener
    ) -> None:
        self._target = target
        self._trees = trees
        self._layer = BaseLayer(name=name, manifest_digest=plan.manifest.digest, config_digest=plan.config.digest)
        self._plan = plan
        self._tell = on_event
        self._arrivals = _Arrivals()
        self._until_committed = ExitStack()
        self._begin: Callable[[], _Unpacking]
        self._unpacking: _Unpacking | None = None
        self.cancellation = Cancellation()

    def interrupt(self) -> None:
        """End all of it. From any thread."""
        self.cancellation.cancel()

    def on_event(self, event: Event) -> None:
        """Pass on what is told, and take note of each blob that has come."""
        self._tell(event)
        if isinstance(event, BlobStored):
            self._arrivals.add(event.descriptor.digest)

    @contextmanager
    def open_writer(self) -> Iterator[Transaction]:
        """Begin a transaction, and the unpacking where the image has no tree that is current.

        Leaving it without an error commits both; with one, the tree that was in the place is there again.
        """
        is_current = self._trees.is_current(self._layer)
        # What is unpacked is read in any case: a wrong layer of the store is better replaced than told of.
        target = self._target if is_current else attrs.evolve(self._target, verify_content=True)
        with self._until_committed as stack, target.open_writer() as writer, ExitStack() as working:

            def begin() -> _Unpacking:
                tree = stack.enter_context(self._trees.growing(self._layer.name))
                return working.enter_context(self._unpacking_into(tree, writer))

            self._begin = begin
            if not is_current:
                self._unpacking = begin()
            yield writer

    def put_in_place(self) -> None:
        """Wait for the tree, and put it in its place; the lock of all places is kept until the transaction has ended.

        Raises:
            StoreError: what went wrong with the unpacking.
        """
        while True:
            if self._unpacking is not None:
                self._unpacking.done.result()
            with ExitStack() as held:
                held.enter_context(self._trees.locked())
                # Others pull and collect meanwhile: what is said of a place is true only under the lock.
                if self._trees.is_current(self._layer):
                    self._trees.keep_current()
                else:
                    if self._unpacking is None:
                        held.close()
                        self._unpacking = self._begin()
                        continue
                    held.enter_context(self._trees.putting_in_place(self._unpacking.tree, self._layer))
                self._until_committed.push(held.pop_all())
                return

    @contextmanager
    def telling_failures(self) -> Iterator[None]:
        """Tell what went wrong with the unpacking, and not that the copy was cancelled for it."""
        try:
            yield
        except Cancelled:
            done = None if self._unpacking is None else self._unpacking.done
            failure = done.exception() if done is not None and done.done() else None
            if failure is None or isinstance(failure, Cancelled):
                raise
            raise failure from None

    @contextmanager
    def _unpacking_into(self, tree: GrowingTree, source: BlobSource) -> "Iterator[_Unpacking]":
        def ended(done: "Future[None]") -> None:
            if done.exception() is not None and not self._arrivals.is_over:
                self.cancellation.cancel()

        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minibox-unpack")
        with self.cancellation.interrupting(self._arrivals):
            try:  # an interrupt may come as the thread has begun: it would wait for layers for ever, and Python for it
                done = pool.submit(self._unpack, tree, source)
                done.add_done_callback(ended)
                yield _Unpacking(tree=tree, done=done)
            finally:
                # Nothing may still read when the transaction closes, nor write when the tree goes.
                self._arrivals.interrupt()
                pool.shutdown(wait=True)

    def _unpack(self, tree: GrowingTree, source: BlobSource) -> None:
        assert tree.file_descriptor is not None
        unpack_layers(
            tree.file_descriptor,
            self._iter_layers(source),
            on_layer=self._tell_layer,
            check=self._arrivals.check,
        )
        self._trees.make_durable(tree)

    def _iter_layers(self, source: BlobSource) -> Iterator[LayerSource]:
        all_bytes = sum(descriptor.size_bytes for descriptor, _ in self._plan.layers)
        before_bytes = 0
        for descriptor, diff_id in self._plan.layers:
            self._arrivals.wait_for(descriptor.digest)
            advanced = partial(self._tell_advance, descriptor, before_bytes, all_bytes)
            watched = _WatchedSource(source, self._arrivals, advanced)
            yield LayerSource(descriptor=descriptor, diff_id=diff_id, source=watched)
            before_bytes += descriptor.size_bytes

    def _tell_layer(self, position: int, descriptor: Descriptor) -> None:
        self._tell(UnpackingLayer(position=position, total=len(self._plan.layers), descriptor=descriptor))

    def _tell_advance(self, descriptor: Descriptor, before_bytes: int, all_bytes: int, done_bytes: int) -> None:
        self._tell(
            UnpackAdvanced(
                digest=descriptor.digest,
                done_bytes=done_bytes,
                size_bytes=descriptor.size_bytes,
                all_done_bytes=before_bytes + done_bytes,
                all_bytes=all_bytes,
            )
        )


@attrs.frozen(kw_only=True, repr=False)
class _Unpacking(Value):
    """A tree that is being unpacked, and how that ends."""

    tree: GrowingTree
    done: "Future[None]"


class _Arrivals:
    """Which blobs have come; and whether there is any sense in waiting for more. One thread waits.

    They come through a queue, and no lock: a handler of signals, too, may interrupt, whatever it has interrupted.
    """

    def __init__(self) -> None:
        self._coming: SimpleQueue[Digest | None] = SimpleQueue()
        self._come: set[Digest | None] = set()
        self.is_over = False

    def add(self, digest: Digest) -> None:
        self._coming.put(digest)

    def interrupt(self) -> None:
        self.is_over = True
        self._coming.put(None)

    def check(self) -> None:
        if self.is_over:
            raise Cancelled

    def wait_for(self, digest: Digest) -> None:
        while not self.is_over and digest not in self._come:
            self._come.add(self._coming.get())
        self.check()


class _WatchedSource:
    """A source whose bytes are counted, and end, with an error, as soon as nobody wants the tree any more."""

    def __init__(self, source: BlobSource, arrivals: _Arrivals, advanced: Callable[[int], None]) -> None:
        self._source = source
        self._arrivals = arrivals
        self._advanced = advanced

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        return _WatchedStream(self._source.open_blob(descriptor, offset), self._arrivals, self._advanced, offset)


class _WatchedStream:
    def __init__(
        self, stream: BlobStream, arrivals: _Arrivals, advanced: Callable[[int], None], done_bytes: int
    ) -> None:
        self._stream = stream
        self._arrivals = arrivals
        self._advanced = advanced
        self._done_bytes = done_bytes

    def readinto(self, buffer: memoryview, /) -> int:
        self._arrivals.check()
        count = self._stream.readinto(buffer)
        if count:
            self._done_bytes += count
            self._advanced(self._done_bytes)
        return count

    def close(self) -> None:
        self._stream.close()
