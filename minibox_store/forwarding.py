"""A source that stands before another one: what it does not do in a way of its own it passes on, and loses nothing."""

from minibox_store.documents import Descriptor
from minibox_store.protocols import BlobSource, BlobStream, Distrusting, Interruptible, RangedSource


class ForwardingSource:
    """A source before another one, with all that the other one can.

    Whoever looks at the bytes that pass looks at those of a range, too.
    """

    def __init__(self, source: BlobSource) -> None:
        self._source = source

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on."""
        return self._source.open_blob(descriptor, offset)

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        """Return some bytes of the blob, where the source behind gives them."""
        source = self._source
        return source.open_range(descriptor, offset, size_bytes) if isinstance(source, RangedSource) else None

    def distrust(self, descriptor: Descriptor, /) -> bool:
        """Pass on that the bytes were wrong; return whether there is another place to be asked for them."""
        return isinstance(self._source, Distrusting) and self._source.distrust(descriptor)

    def interrupt(self) -> None:
        """Interrupt the source behind, where it can block."""
        if isinstance(self._source, Interruptible):
            self._source.interrupt()
