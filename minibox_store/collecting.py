"""Garbage collection, the thinking half: what is alive, and so what is not. Pure.

It fails closed: a root or a document that cannot be read ends the marking with an error, and nobody plans on half
a mark. What is alive is found by the same walk that copies images.
"""

from collections.abc import Container, Iterable
from typing import NamedTuple

import attrs

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.graph import Identity, walk
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource
from minibox_store.reports import Removal


@attrs.define
class Marks:
    """What has been found alive so far; roots may be added as long as it is used.

    ``absent`` are manifests named by an index that were never fetched: foreign tools keep such indexes.
    """

    limits: Limits = DEFAULT_LIMITS
    absent: dict[Digest, Descriptor] = attrs.field(factory=dict)
    _seen: set[Identity] = attrs.field(factory=set)

    def live_names(self) -> set[str]:
        """Return what the files of the blobs that are alive are called: the hexadecimal part of their digests.

        That tells them apart, as each algorithm has its length; and texts are compared faster than digests.
        """
        return {key[0] for key in self._seen}

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

    def forget(self, absent: Iterable[Descriptor]) -> None:
        """Forget that these were absent: they have come since, and what they reach is to be marked."""
        for descriptor in absent:
            del self.absent[descriptor.digest]
            self._seen -= {key for key in self._seen if key[0] == descriptor.digest.hex}


def mark_index(marks: Marks, source: BlobSource, index: LayoutIndex) -> None:
    """Mark from every entry of an index, named or not; entries that were marked before cost nothing.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when a document cannot be read.
    """
    for entry in index.entries:
        marks.add_root(source, entry.descriptor)


class StoredBlob(NamedTuple):
    """A file under ``blobs/``: its path below the root, its size in bytes, and how old it is."""

    path: str
    size_bytes: int
    age_seconds: float


def plan_blobs(blobs: Iterable[StoredBlob], live_names: Container[str]) -> list[Removal]:
    """Return the removal of each blob whose name is not among those of the blobs that are alive."""
    reason = "no image in the index needs it"
    return [
        Removal(kind="blob", path=path, size_bytes=size_bytes, reason=reason, age_seconds=age_seconds)
        for path, size_bytes, age_seconds in blobs
        if file_name(path) not in live_names
    ]


def file_name(path: str) -> str:
    """Return what the file of a blob is called."""
    return path.rpartition("/")[2]
