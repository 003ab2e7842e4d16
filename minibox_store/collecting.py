"""Garbage collection, the thinking half: what is alive, and so what is not. Pure.

It fails closed: a root or a document that cannot be read ends the marking with an error, and nobody plans on half
a mark. What is alive is found by the same walk that copies images.
"""

from collections.abc import Callable, Iterable

import attrs

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.graph import Seen, walk
from minibox_store.reports import Removal
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource


@attrs.define
class Marks:
    """What has been found alive so far; roots may be added as long as it is used.

    ``absent`` are manifests named by an index that were never fetched: foreign tools keep such indexes.
    """

    limits: Limits = DEFAULT_LIMITS
    live: set[Digest] = attrs.field(factory=set)
    absent: dict[Digest, Descriptor] = attrs.field(factory=dict)
    _seen: Seen = attrs.field(factory=set)

    def add_root(self, source: BlobSource, root: Descriptor) -> None:
        """Mark everything that ``root`` reaches, and ``root``.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument: when a document cannot be read; the marks are worth nothing.
        """
        if root.digest in self.absent:  # a root may not be absent; and it may have come since
            self.forget([self.absent[root.digest]])
        for node in walk(source, root, limits=self.limits, seen=self._seen, allow_absent_manifests=True):
            if node.document is None and media_types.is_document(node.descriptor.media_type):
                self.absent[node.descriptor.digest] = node.descriptor
            self.live.add(node.descriptor.digest)

    def forget(self, absent: Iterable[Descriptor]) -> None:
        """Forget that these were absent: they have come since, and what they reach is to be marked."""
        for descriptor in absent:
            del self.absent[descriptor.digest]
            self._seen -= {key for key in self._seen if key[0] == descriptor.digest}


def mark_index(marks: Marks, source: BlobSource, index: LayoutIndex) -> None:
    """Mark from every entry of an index, named or not; entries that were marked before cost nothing.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when a document cannot be read.
    """
    for entry in index.entries:
        marks.add_root(source, entry.descriptor)


@attrs.frozen(kw_only=True)
class StoredBlob:
    """A file under ``blobs/``: the digest that it is called by, and its size in bytes."""

    digest: Digest
    size_bytes: int


def plan_blobs(
    blobs: Iterable[StoredBlob], is_alive: Callable[[Digest], bool], path_of: Callable[[Digest], str]
) -> list[tuple[Digest, Removal]]:
    """Return the removal of each blob that is not alive."""
    reason = "no image in the index needs it"
    return [
        (blob.digest, Removal(kind="blob", path=path_of(blob.digest), size_bytes=blob.size_bytes, reason=reason))
        for blob in blobs
        if not is_alive(blob.digest)
    ]
