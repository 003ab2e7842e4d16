"""What the entries of a store take: whose the bytes are, counted so that very many blobs take little memory.

The one walk visits each document once. What it points at is kept by numbers alone: four bytes for each of its blobs,
and some thirteen for each blob that there is, beside its place among the sizes. No more is known of any but the largest
blobs, which are told one by one. Pure.
"""

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator
from itertools import groupby

import attrs

from minibox_store import media_types
from minibox_store.blob_sizes import BlobSizes, zeros
from minibox_store.codec import decode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Identity, Links, Role, children, identity
from minibox_store.graph import walk_links
from minibox_store.layout_index import name_of
from minibox_store.limits import Limits
from minibox_store.protocols import BlobSource
from minibox_store.reports.store import BlobUsage, ImageUsage, StoreUsage

# A base image's layer may be needed by every image there is, and be told with each of many layers.
_MOST_NAMES = 100
_TYPES = tuple(sorted(media_types.DOCUMENTS))


@attrs.define
class _Told:
    """What is told of one of the largest blobs: its kinds, by each size and type of document that is said of it."""

    kinds: dict[Identity, tuple[Role, str]] = attrs.field(factory=dict)
    names: list[str] = attrs.field(factory=list)

    def add_kind(self, descriptor: Descriptor, role: Role) -> None:
        """Take note of what a blob is to somebody: who comes first is believed."""
        is_document = media_types.is_document(descriptor.media_type)
        self.kinds.setdefault(identity(descriptor), ("manifest" if is_document else role, descriptor.media_type))

    def add_names(self, names: Iterable[str]) -> None:
        """Add names, which are sorted; the first ones of all are kept."""
        for name in names:
            if len(self.names) == _MOST_NAMES and name >= self.names[-1]:
                return
            place = bisect_left(self.names, name)
            if name not in self.names[place : place + 1]:
                self.names.insert(place, name)
                del self.names[_MOST_NAMES:]


class _Read:
    """The documents that a walk need not read again, as what it has seen. Nothing else is ever met twice."""

    def __init__(self, weights: "Weights") -> None:
        self._weights = weights

    def __contains__(self, key: Identity) -> bool:
        return self._weights.has_read(key)

    def add(self, key: Identity) -> None:
        """Do nothing: a document is noted when it has been read."""


class Weights:
    """The graphs below some roots, and what they take of some blobs.

    Args:
        sizes: of the blobs; whatever else the roots reach weighs nothing, and is numbered behind them.
        limits: how deep and how large each graph may be.
        most_blobs: how many of the largest blobs are told one by one.

    Attributes:
        limits: the same.
        roots: in the order in which they were added.
    """

    def __init__(self, sizes: BlobSizes, *, limits: Limits, most_blobs: int) -> None:
        self.limits = limits
        self.roots: list[Descriptor] = []
        self._sizes = sizes
        self._numbers = sizes.numbers
        self._reached = bytearray(len(sizes))
        self._documents = zeros(len(sizes))  # of a document that was read, which one it is, from 1; of all others 0
        # Of each document its size, its type, and where that ends which it points at.
        self._sizes_bytes = array("Q")
        self._types = bytearray()
        self._ends = array("Q", [0])
        self._below = array("I")  # of each blob that is pointed at its number twice, and 1 if it is a document
        self._absent: set[Identity] = set()
        self._told = {number: _Told() for number in self._largest(most_blobs)}

    def add_root(self, source: BlobSource, root: Descriptor) -> None:
        """Add everything that ``root`` reaches, and ``root``.

        Args:
            source: where documents are read from; leaves are not opened.
            root: an entry of an index.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument: when a document is missing or wrong; the weights are worth
                nothing then.
        """
        self._absent.discard(identity(root))  # a root may not be absent; and it may have come since
        self.roots.append(root)
        for node in walk_links(source, root, limits=self.limits, seen=_Read(self), on_links=self._note):
            number = self._reach(node.descriptor.digest.hex)
            if number in self._told:
                self._told[number].add_kind(node.descriptor, node.role)
            if node.content is None and media_types.is_document(node.descriptor.media_type):
                self._absent.add(identity(node.descriptor))

    def has(self, digest: Digest) -> bool:
        """Whether some root reaches the blob, or is it."""
        number = self._numbers.find(digest.hex)
        return number is not None and self._reached[number] != 0

    def has_read(self, key: Identity) -> bool:
        """Whether a document, by its identity, was read, or was looked for and is absent."""
        if key in self._absent:
            return True
        encoded, size_bytes, media_type = key
        document = self._document_of(self._numbers.find(encoded))
        return (
            document is not None
            and self._sizes_bytes[document] == size_bytes
            and _TYPES[self._types[document]] == media_type
        )

    def usage(self, held: Container[Digest]) -> StoreUsage:
        """Return what each root takes, and all of them; of what none needs, what is not ``held`` is reclaimable."""
        own, whole, needed = self._weigh()
        places = sorted(range(len(self.roots)), key=self._order)
        images = [
            ImageUsage(
                name=name_of(self.roots[place]),
                digest=self.roots[place].digest,
                own_bytes=own[place],
                shared_bytes=whole[place] - own[place],
            )
            for place in places
        ]
        return StoreUsage(
            images=tuple(images),
            total_bytes=self._sizes.total_bytes,
            reclaimable_bytes=sum(self._unneeded(held)),
            blob_count=len(self._sizes),
            blobs=tuple(self._blob_usage(number, told, needed[number]) for number, told in self._told.items()),
        )

    def _note(self, descriptor: Descriptor, content: bytes, links: Links) -> None:
        """Take note of a document and of what it points at."""
        is_new_kind = False
        for key in links.leaves:
            number = self._reach(key[0])
            self._below.append(2 * number)
            is_new_kind |= number in self._told and key not in self._told[number].kinds
        for each in links.documents:
            self._below.append(2 * self._reach(each.digest.hex) + 1)
        self._ends.append(len(self._below))
        self._sizes_bytes.append(descriptor.size_bytes)
        self._types.append(_TYPES.index(descriptor.media_type))
        self._documents[self._reach(descriptor.digest.hex)] = len(self._types)
        if is_new_kind:
            self._note_kinds(descriptor, content)

    def _note_kinds(self, descriptor: Descriptor, content: bytes) -> None:
        document = decode_document(content, descriptor.media_type, str(descriptor.digest), limits=self.limits)
        for node in children(document):
            told = self._told.get(self._reach(node.descriptor.digest.hex))
            if told is not None and not media_types.is_document(node.descriptor.media_type):
                told.add_kind(node.descriptor, node.role)

    def _reach(self, encoded: str) -> int:
        """Return the number of a blob, which is reached now."""
        number = self._numbers.add(encoded)
        if number == len(self._reached):
            self._reached.append(1)
            self._documents.append(0)
        self._reached[number] = 1
        return number

    def _document_of(self, number: int | None) -> int | None:
        """Return which of the documents that were read a blob is, from 0; None where it is none."""
        found = 0 if number is None else self._documents[number]
        return found - 1 if found else None

    def _weigh(self) -> "tuple[list[int], list[int], array[int]]":
        """Return the own bytes of each root, all its bytes, and by how many roots each blob is needed."""
        own, whole = [0] * len(self.roots), [0] * len(self.roots)
        needed, last = zeros(len(self._reached)), zeros(len(self._reached))
        starts = [self._start(root) for root in self.roots]
        for start, alike in groupby(sorted(range(len(starts)), key=starts.__getitem__), starts.__getitem__):
            places = tuple(alike)  # of the entries that stand for one thing
            mark = places[0] + 1
            told = set[int]()
            size_bytes = 0
            for number in self._reached_from(start):
                if last[number] != mark:
                    last[number] = mark
                    needed[number] += len(places)
                    size_bytes += self._sizes.size_bytes(number)
                    if number in self._told:
                        told.add(number)
            for place in places:
                whole[place] = size_bytes
            self._name(told, places)
        for number, count in enumerate(needed):
            if count == 1:  # by whom it was met last
                own[last[number] - 1] += self._sizes.size_bytes(number)
        return own, whole, needed

    def _start(self, root: Descriptor) -> int:
        """Return what stands for a root as for whatever is pointed at."""
        number = self._reach(root.digest.hex)
        return 2 * number + (self._documents[number] != 0 and media_types.is_document(root.media_type))

    def _reached_from(self, start: int) -> Iterator[int]:
        """Yield the number of each blob that lies at or below a place in a graph; some more than once."""
        yield start >> 1
        documents = {start} if start & 1 else set()
        todo = list(documents)
        while todo:
            document = self._document_of(todo.pop() >> 1)
            if document is None:
                continue
            for below in self._below[self._ends[document] : self._ends[document + 1]]:
                yield below >> 1
                if below & 1 and below not in documents:
                    documents.add(below)
                    todo.append(below)

    def _name(self, numbers: Iterable[int], places: Iterable[int]) -> None:
        if numbers:
            names = (name_of(self.roots[place]) for place in places)
            first = heapq.nsmallest(_MOST_NAMES, {name for name in names if name is not None})
            for number in numbers:
                self._told[number].add_names(first)

    def _order(self, place: int) -> tuple[bool, str, Digest]:
        root = self.roots[place]
        name = name_of(root)
        return name is None, name or "", root.digest

    def _unneeded(self, held: Container[Digest]) -> Iterator[int]:
        """Yield the size of each blob that no root needs."""
        for number in range(len(self._sizes)):
            if not self._reached[number] and self._numbers.digest(number) not in held:
                yield self._sizes.size_bytes(number)

    def _largest(self, most: int) -> list[int]:
        """Return the numbers of the largest blobs, the largest first, and of equal ones by their digests."""

        def order(number: int) -> tuple[int, int, bytes]:
            content = self._numbers.content(number)
            return -self._sizes.size_bytes(number), len(content), content  # the longer digest has the later algorithm

        return heapq.nsmallest(most, range(len(self._sizes)), key=order)

    def _blob_usage(self, number: int, told: _Told, needed_by: int) -> BlobUsage:
        role, media_type = min(told.kinds.values()) if told.kinds else (None, None)
        return BlobUsage(
            digest=self._numbers.digest(number),
            size_bytes=self._sizes.size_bytes(number),
            role=role,
            media_type=media_type,
            needed_by=needed_by,
            names=tuple(told.names),
        )
