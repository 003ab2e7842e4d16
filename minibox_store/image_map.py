"""What the entries of a store reach, kept to be asked afterwards: who needs a blob, and by which way.

It is filled by the one walk, with each blob once, and keeps descriptors alone. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import attrs

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Identity, Node, children, identity
from minibox_store.graph import UnreadableListener, walk
from minibox_store.layout_index import name_of
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource
from minibox_store.reports.store import Need


@attrs.define
class ImageMap:
    """The graphs below some roots.

    Attributes:
        limits: how deep and how large each may be.
        roots: in the order in which they were added.
        leaves: each blob that is no document.
        absent: the manifests below an index that are not there: foreign tools keep such indexes.
        unreadable: the documents that are missing or wrong; what they alone lead to is not in the map.
    """

    limits: Limits = DEFAULT_LIMITS
    roots: list[Descriptor] = attrs.field(factory=list)
    leaves: dict[Identity, Node] = attrs.field(factory=dict)
    absent: dict[Identity, Descriptor] = attrs.field(factory=dict)
    unreadable: set[Identity] = attrs.field(factory=set)
    _positions: defaultdict[Identity, list[int]] = attrs.field(factory=lambda: defaultdict(list))
    _seen: set[Identity] = attrs.field(factory=set)
    _children: dict[Identity, tuple[Descriptor, ...]] = attrs.field(factory=dict)
    _parents: defaultdict[Identity, list[Identity]] = attrs.field(factory=lambda: defaultdict(list))
    _digests: dict[str, Digest] = attrs.field(factory=dict)
    _identities: defaultdict[Digest, set[Identity]] = attrs.field(factory=lambda: defaultdict(set))

    def add_root(
        self, source: BlobSource, root: Descriptor, *, on_unreadable: UnreadableListener | None = None
    ) -> None:
        """Add everything that ``root`` reaches, and ``root``.

        Args:
            source: where documents are read from; leaves are not opened.
            root: an entry of an index.
            on_unreadable: told of each document that is missing or wrong, which counts as a leaf then.

        Raises:
            BlobNotFound, ContentMismatch, InvalidDocument: for such a document, where nobody is told; the map is
                worth nothing then.
        """
        if identity(root) in self.absent:  # a root may not be absent; and it may have come since
            del self.absent[identity(root)]
            self._seen.discard(identity(root))
        self._positions[identity(root)].append(len(self.roots))
        self.roots.append(root)

        def note(descriptor: Descriptor, error: Exception) -> None:
            if on_unreadable is None:
                raise error
            self.unreadable.add(identity(descriptor))
            on_unreadable(descriptor, error)

        for node in walk(
            source, root, limits=self.limits, seen=self._seen, allow_absent_manifests=True, on_unreadable=note
        ):
            key = identity(node.descriptor)
            self._identities[node.descriptor.digest].add(key)
            self._digests[key[0]] = node.descriptor.digest
            if node.document is not None:
                self._children[key] = tuple(child.descriptor for child in children(node.document))
                for below in {identity(child) for child in self._children[key]}:
                    self._parents[below].append(key)
            elif not media_types.is_document(node.descriptor.media_type):
                self.leaves[key] = node
            elif key not in self.unreadable:
                self.absent[key] = node.descriptor
            del node  # a large document is not kept while the next one is read

    def has(self, digest: Digest) -> bool:
        """Whether some root reaches the blob, or is it."""
        return digest in self._identities

    def needs_of(self, digest: Digest) -> Iterator[Need]:
        """Yield for each root that reaches the blob the shortest way to it, in the order of the roots."""
        nearer = self._ways_up(digest)
        for root in self._roots_among(nearer):
            yield Need(name=name_of(root), path=tuple(self._way_down(root, nearer)))

    def roots_of(self, digest: Digest) -> Iterator[Descriptor]:
        """Yield the roots that reach the blob, in their order."""
        return self._roots_among(self._ways_up(digest))

    def _ways_up(self, digest: Digest) -> dict[Identity, Identity]:
        """Return all that leads to a blob, and of each the next step down; of the blob itself, itself."""
        nearer: dict[Identity, Identity] = {key: key for key in self._identities.get(digest, ())}
        todo = list(nearer)
        for key in todo:  # grows as it is gone through: whoever is nearest comes first
            for parent in self._parents.get(key, ()):
                if parent not in nearer:
                    nearer[parent] = key
                    todo.append(parent)
        return nearer

    def _roots_among(self, keys: Iterable[Identity]) -> Iterator[Descriptor]:
        # Only those that are among them are looked at: where much is missing, that is asked for each blob.
        positions = sorted(position for key in keys for position in self._positions.get(key, ()))
        return (self.roots[position] for position in positions)

    def _way_down(self, root: Descriptor, nearer: Mapping[Identity, Identity]) -> Iterator[Descriptor]:
        yield root
        key = identity(root)
        while nearer[key] != key:
            below = nearer[key]
            yield next(each for each in self._children[key] if identity(each) == below)
            key = below

    def descriptors_of(self, digest: Digest) -> tuple[Descriptor, ...]:
        """Return what is said of a blob, by its parents or as a root: each size and type of document once, sorted."""
        found = {identity(root): root for root in self.roots if root.digest == digest}
        for key in self._identities.get(digest, ()):
            for parent in self._parents.get(key, ())[:1]:
                found.setdefault(key, next(each for each in self._children[parent] if identity(each) == key))
        return tuple(found[key] for key in sorted(found))

    def names_of(self, digest: Digest) -> tuple[str, ...]:
        """Return the names of the images that need the blob, sorted."""
        names = (name_of(root) for root in self.roots_of(digest))
        return tuple(sorted({name for name in names if name is not None}))

    def reached_from(self, root: Descriptor) -> set[Digest]:
        """Return the digest of each blob that a root reaches, and its own."""
        found = {identity(root)}
        todo = [identity(root)]
        while todo:
            below = {identity(child) for child in self._children.get(todo.pop(), ())} - found
            found |= below
            todo.extend(below)
        return {self._digests[key[0]] for key in found}
