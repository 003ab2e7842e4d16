"""Fetching again what was found wrong: from sources that the caller names, then from where the blob came.

Before them, what was set aside itself is asked: a disk may not have given it then, and give it now.

Whatever is wrong with one source is noted, and the next one is asked. What is wrong with the store itself, a cancel or
a full disk, ends the whole: no other source would help.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from minibox_store import media_types
from minibox_store.cancellation import Cancellation
from minibox_store.copying import EventListener, ObservedSource
from minibox_store.documents import Descriptor, Node, Role
from minibox_store.errors import ContentMismatch, RegistryError, StoreError
from minibox_store.forwarding import ForwardingSource
from minibox_store.layout import Layout
from minibox_store.layout.quarantine import find_right_one
from minibox_store.layout.transaction import Transaction
from minibox_store.listeners import is_of_listener
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.sentences import one_sentence

OpenOrigin = Callable[[str], AbstractContextManager[BlobSource]]

# So often in a row nobody was reached before a repository is not asked for further blobs.
_FAILURES = 2
_QUARANTINE = "quarantine"


@contextmanager
def refetching(
    layout: Layout,
    *,
    open_origin: OpenOrigin,
    sources: Sequence[BlobSource],
    on_event: EventListener,
    cancellation: Cancellation,
) -> Iterator["Refetcher"]:
    """Give what fetches blobs for the block, in one transaction; repositories stay open until its end."""
    with layout.open_writer(verify_content=True) as writer, ExitStack() as stack:
        yield Refetcher(layout, writer, sources, open_origin, stack, on_event, cancellation)


class Refetcher:
    """Fetches one blob after the other from wherever it is to be had."""

    def __init__(
        self,
        layout: Layout,
        writer: Transaction,
        sources: Sequence[BlobSource],
        open_origin: OpenOrigin,
        stack: ExitStack,
        on_event: EventListener,
        cancellation: Cancellation,
    ) -> None:
        self._paths = layout.paths
        self._writer = writer
        self._opened = {f"source {number}": source for number, source in enumerate(sources, 1)}
        self._own = tuple(self._opened)
        self._open_origin = open_origin
        self._stack = stack
        self._on_event = on_event
        self._cancellation = cancellation
        self._origins = layout.origins.read()
        self._failures: Counter[str] = Counter()

    def fetch(self, descriptors: Sequence[Descriptor], position: int, total: int) -> tuple[str | None, tuple[str, ...]]:
        """Put the right bytes in the place of a blob.

        Args:
            descriptors: all that is said of it; one of them may lie.
            position: of the blob among those that are fetched, for whoever looks on.
            total: how many these are, as far as is known by now.

        Returns:
            Where they were fetched from, or None; and what each that was asked in vain has said.

        Raises:
            Cancelled, OSError, StoreError: which no other source would help against.
        """
        problems: list[str] = []
        digest = descriptors[0].digest
        kept = find_right_one(self._paths, digest)
        if kept is not None:
            self._opened[_QUARANTINE] = kept
        places = (*([_QUARANTINE] if kept else []), *self._own, *self._origins.get(str(digest), ()))
        for origin in places:
            for descriptor in descriptors:
                node = Node(descriptor=descriptor, role=_role_of(descriptor), position=position, total=total)
                problem = self._fetch_from(origin, node)
                if problem is None:
                    return origin, tuple(problems)
                problems.append(one_sentence(f"{origin}: {problem}"))
        return None, tuple(problems) or ("nobody has noted where it came from",)

    def _open(self, origin: str) -> BlobSource:
        if origin not in self._opened:
            self._opened[origin] = self._stack.enter_context(self._open_origin(origin))
        return self._opened[origin]

    def _fetch_from(self, origin: str, node: Node) -> str | None:
        """Return what was wrong with a source; None where the store has the blob now."""
        if self._failures[origin] >= _FAILURES:
            return "it was not reached before"
        asked = None
        try:
            asked = _AskedSource(self._open(origin))
            observed = ObservedSource(
                asked, node, self._on_event, lambda: self._cancellation.is_cancelled, self._cancellation
            )
            with self._cancellation.interrupting(asked):
                self._writer.write_blob(node.descriptor, observed)
        except (StoreError, OSError) as error:
            is_of_source = asked is None or error is asked.trouble or isinstance(error, ContentMismatch)
            if is_of_listener(error) or not is_of_source:
                raise
            is_unreached = isinstance(error, RegistryError) and error.status is None
            self._failures[origin] = self._failures[origin] + 1 if is_unreached else 0
            return (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._failures[origin] = 0
        return None


def _role_of(descriptor: Descriptor) -> Role:
    if media_types.is_document(descriptor.media_type):
        return "manifest"
    return "config" if media_types.is_config(descriptor.media_type) else "layer"


class _AskedSource(ForwardingSource):
    """A source whose own trouble is told apart from that of the store that its bytes go to.

    What becomes of a range is no trouble: one stream has the last word.
    """

    def __init__(self, source: BlobSource) -> None:
        super().__init__(source)
        self.trouble: Exception | None = None

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        with self.noting():
            return _AskedStream(super().open_blob(descriptor, offset), self)

    @contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, OSError) as error:
            self.trouble = error
            raise


class _AskedStream:
    """A stream of such a source. Its bytes are read, and not moved by the kernel, which would not say whose trouble."""

    def __init__(self, stream: BlobStream, source: _AskedSource) -> None:
        self._stream = stream
        self._source = source

    def readinto(self, buffer: memoryview, /) -> int:
        with self._source.noting():
            return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
