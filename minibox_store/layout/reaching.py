"""What a root of the store reaches, for whoever is asked for one blob of many: remembered, since it never changes.

Nothing is remembered of a root of which a document was absent or wrong: it may come, or be mended. Of very many roots
the descriptors are not kept, but an outline is: what a root is known not to reach, it need not be read again for.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import attrs

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Identity, Referrer, identity
from minibox_store.graph import walk
from minibox_store.layout.layout import Layout
from minibox_store.limits import MEBIBYTE
from minibox_store.referring import referrer_of
from minibox_store.values import Value

# Of so many blobs the descriptors are remembered, some 600 bytes each.
_MOST_BLOBS = 50_000
# So much of each digest is in an outline: one that is taken for another costs a look at the documents, and no more.
_MARK_DIGITS = 16
_MOST_OUTLINE_BYTES = 32 * MEBIBYTE
_OUTLINE_OWN_BYTES = 400


@attrs.frozen(kw_only=True, repr=False)
class Reach(Value):
    """What one root reaches.

    Attributes:
        blobs: each blob, the root and documents among them, as what names it describes it.
        referrers: those documents among them that refer to something.
        is_whole: whether every document was there.
    """

    blobs: Mapping[Digest, Descriptor]
    referrers: tuple[Referrer, ...]
    is_whole: bool


class _Outline(NamedTuple):
    """The beginnings of digests: of the blobs that a root reaches, and of what documents among them refer to."""

    blobs: bytes
    subjects: bytes


class Reaches:
    """What the roots of one store reach. Safe for several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._guard = threading.Lock()
        self._known: OrderedDict[Identity, Reach] = OrderedDict()
        self._blobs = 0
        self._outlines: OrderedDict[str, _Outline] = OrderedDict()
        self._outline_bytes = 0

    def reaching(self, roots: Iterable[Descriptor], digest: Digest) -> Iterator[Descriptor]:
        """Yield those roots that are not known not to reach a blob."""
        mark = _mark(digest)
        for root in roots:
            outline = self._outlines.get(root.digest.hex)
            if outline is None or mark in outline.blobs:
                yield root

    def referring(self, roots: Iterable[Descriptor], subject: Digest) -> Iterator[Descriptor]:
        """Yield those roots that are not known to reach nothing which refers to a manifest or index."""
        mark = _mark(subject)
        for root in roots:
            outline = self._outlines.get(root.digest.hex)
            if outline is None or mark in outline.subjects:
                yield root

    def of(self, root: Descriptor) -> Reach:
        """Return what a root reaches; manifests below an index may be absent.

        Raises:
            BlobNotFound: when the root is not there.
            StoreDamaged: when a document is wrong.
        """
        key = identity(root)
        with self._guard:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        found = self._walk(root)
        if found.is_whole:
            self._remember(key, found)
        return found

    def _walk(self, root: Descriptor) -> Reach:
        blobs: dict[Digest, Descriptor] = {}
        referrers = []
        is_whole = True
        with self._layout.naming_damage():
            for node in walk(self._layout, root, limits=self._layout.limits, allow_absent_manifests=True):
                # What is named as a document, and by another one as a layer, is a document.
                if node.descriptor.digest not in blobs or media_types.is_document(node.descriptor.media_type):
                    blobs[node.descriptor.digest] = node.descriptor
                if node.document is not None:
                    found = referrer_of(node.descriptor, node.document)
                    referrers += [] if found is None else [found]
                elif media_types.is_document(node.descriptor.media_type):
                    is_whole = False
        return Reach(blobs=blobs, referrers=tuple(referrers), is_whole=is_whole)

    def _remember(self, key: Identity, found: Reach) -> None:
        with self._guard:
            self._outline(key[0], found)
            if key in self._known or len(found.blobs) > _MOST_BLOBS:
                return
            self._known[key] = found
            self._blobs += len(found.blobs)
            while self._blobs > _MOST_BLOBS:
                self._blobs -= len(self._known.popitem(last=False)[1].blobs)

    def _outline(self, key: str, found: Reach) -> None:
        if key in self._outlines:
            return
        subjects = b"".join(_mark(each.subject) for each in found.referrers)
        self._outlines[key] = outline = _Outline(b"".join(map(_mark, found.blobs)), subjects)
        self._outline_bytes += _size_of(outline)
        while self._outline_bytes > _MOST_OUTLINE_BYTES:
            self._outline_bytes -= _size_of(self._outlines.popitem(last=False)[1])


def _mark(digest: Digest) -> bytes:
    return bytes.fromhex(digest.hex[:_MARK_DIGITS])


def _size_of(outline: _Outline) -> int:
    return len(outline.blobs) + len(outline.subjects) + _OUTLINE_OWN_BYTES
