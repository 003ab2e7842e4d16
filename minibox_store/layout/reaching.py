"""What a root of the store reaches, for whoever is asked for one blob of many: remembered, since it never changes.

Nothing is remembered of a root of which a document was absent or wrong: it may come, or be mended. Of very many roots
the descriptors are not kept, but an outline is: what a root is known not to reach, it need not be read again for. Where
very many are unknown, what an earlier listing left tells their outlines, and of the others they are read alone. A
listing is believed of what a root does not reach: what it does reach is read, and verified, before anybody sees it.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document
from minibox_store.digest import Digest, check_digest
from minibox_store.documents import Descriptor, Identity, Referrer, identity
from minibox_store.errors import NotFound, StoreDamaged
from minibox_store.graph import walk, walk_documents
from minibox_store.layout.layout import Layout
from minibox_store.layout.listing_cache import is_current, read_cache
from minibox_store.layout.resting import collector_at_rest
from minibox_store.limits import DEFAULT_LIMITS, KIBIBYTE, MEBIBYTE, Limits
from minibox_store.outlines import Outline, mark_of, outline_of
from minibox_store.referring import referrer_of
from minibox_store.values import Value

# Of so many blobs the descriptors are remembered, some 600 bytes each; what documents say of one may be far more.
_MOST_BLOBS = 50_000
_BLOB_BYTES = 600
_MOST_OUTLINE_BYTES = 32 * MEBIBYTE
_OUTLINE_OWN_BYTES = 400
# So many are remembered for which there can be no outline, a hundred bytes each.
_MOST_DOUBTFUL = 100_000
# To read fewer roots costs less than to ask what a listing left; and to decode so much of that costs as much time as to
# read one root does.
_WORTH_ASKING = 64
_WORTH_BYTES = 32 * KIBIBYTE


@attrs.frozen(kw_only=True, repr=False)
class Reach(Value):
    """What one root reaches.

    Attributes:
        blobs: each blob, the root and documents among them, as what names it describes it.
        referrers: those documents among them that refer to something.
        is_whole: whether every document was there.
        document_bytes: of its documents together.
    """

    blobs: Mapping[Digest, Descriptor]
    referrers: tuple[Referrer, ...]
    is_whole: bool
    document_bytes: int

    @property
    def weight(self) -> int:
        """How many usual blobs take as much memory to be remembered."""
        return max(len(self.blobs), self.document_bytes // _BLOB_BYTES)


class Reaches:
    """What the roots of one store reach. Safe for several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # What is just being written gets its time from whoever reads it then, and not twice.
        self._hasty = Layout(layout.paths.root, limits=layout.limits, settle_seconds=0.0)
        self._guard = threading.Lock()
        self._known: OrderedDict[Identity, Reach] = OrderedDict()
        self._blobs = 0
        self._outlines: OrderedDict[str, Outline] = OrderedDict()
        self._outline_bytes = 0
        self._doubtful: set[str] = set()  # roots that had no outline when they were read: whoever asks reads them once
        self._asking = threading.Lock()
        self._asked: frozenset[str] = frozenset()

    def reaching(self, roots: Iterable[Descriptor], digest: Digest) -> Iterator[Descriptor]:
        """Yield those roots that are not known not to reach a blob."""
        check_digest(digest)
        mark = mark_of(digest)
        return (root for root, outline in self._outlined(roots) if outline is None or mark in outline.blobs)

    def referring(self, roots: Iterable[Descriptor], subject: Digest) -> Iterator[Descriptor]:
        """Yield those roots that are not known to reach nothing which refers to a manifest or index."""
        check_digest(subject)
        mark = mark_of(subject)
        return (root for root, outline in self._outlined(roots) if outline is None or mark in outline.subjects)

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
        document_bytes = 0
        with self._layout.naming_damage():
            for node in walk(self._layout, root, limits=self._layout.limits, allow_absent_manifests=True):
                # What is named as a document, and by another one as a layer, is a document.
                if node.descriptor.digest not in blobs or media_types.is_document(node.descriptor.media_type):
                    blobs[node.descriptor.digest] = node.descriptor
                document_bytes += len(node.content or b"")
                if node.document is not None:
                    found = referrer_of(node.descriptor, node.document)
                    referrers += [] if found is None else [found]
                elif media_types.is_document(node.descriptor.media_type):
                    is_whole = False
        return Reach(blobs=blobs, referrers=tuple(referrers), is_whole=is_whole, document_bytes=document_bytes)

    def _remember(self, key: Identity, found: Reach) -> None:
        with self._guard:
            marks = outline_of((each.hex for each in found.blobs), (each.subject.hex for each in found.referrers))
            if key[2]:  # the type of a document
                self._outline(key[0], marks)
            if key in self._known or found.weight > _MOST_BLOBS:
                return
            self._known[key] = found
            self._blobs += found.weight
            while self._blobs > _MOST_BLOBS:
                self._blobs -= self._known.popitem(last=False)[1].weight

    def _outline(self, key: str, outline: Outline) -> None:
        if key in self._outlines:
            return
        self._outlines[key] = outline
        self._outline_bytes += outline.size_bytes + _OUTLINE_OWN_BYTES
        while self._outline_bytes > _MOST_OUTLINE_BYTES:
            self._outline_bytes -= self._outlines.popitem(last=False)[1].size_bytes + _OUTLINE_OWN_BYTES

    def _outlined(self, roots: Iterable[Descriptor]) -> Iterator[tuple[Descriptor, Outline | None]]:
        """Yield each root with its outline; with None where a document is not as it should be, or few are unknown."""
        roots = tuple(roots)
        are_many = len(self._unknown(roots)) >= _WORTH_ASKING
        if are_many:
            self._ask_listing(roots)
        for root in roots:
            # The same bytes may be a document to one entry and a leaf, which reaches itself alone, to another.
            if media_types.is_document(root.media_type):
                outline = self._outlines.get(root.digest.hex)
                if outline is None and are_many and root.digest.hex not in self._doubtful:
                    outline = self._read_outline(root)
            else:
                outline = outline_of([root.digest.hex], ())
            yield root, outline

    def _unknown(self, roots: Iterable[Descriptor]) -> list[Descriptor]:
        outlines, doubtful = self._outlines, self._doubtful
        unknown = [root for root in roots if root.digest.hex not in outlines and root.digest.hex not in doubtful]
        return [root for root in unknown if media_types.is_document(root.media_type)]

    def _ask_listing(self, roots: Iterable[Descriptor]) -> None:
        """Take over what a listing left of these roots, if it was not asked for so many of them just before."""
        # What is damaged depends on the limits, and of them a listing says nothing: it is for the usual ones alone.
        if self._layout.limits != DEFAULT_LIMITS:
            return
        with self._asking, collector_at_rest():  # who comes meanwhile finds that it was asked
            unknown = self._unknown(roots)
            if sum(root.digest.hex not in self._asked for root in unknown) < _WORTH_ASKING:
                return
            kept = read_cache(self._layout.paths, len(unknown) * _WORTH_BYTES)
            for root in unknown if kept else ():
                summary = kept.find(root)
                outline = None if summary is None or summary.outline is None else Outline.parse(summary.outline)
                if summary is not None and outline is not None and is_current(self._layout.paths, summary):
                    with self._guard:
                        self._outline(root.digest.hex, outline)
            self._asked = frozenset(root.digest.hex for root in unknown)

    def _read_outline(self, root: Descriptor) -> Outline | None:
        """Return the outline of a root by its documents, in half the time that :meth:`of` takes; None as above."""
        outline = self._outline_of(root)
        with self._guard:
            if outline is not None:
                self._outline(root.digest.hex, outline)
            elif len(self._doubtful) < _MOST_DOUBTFUL:
                self._doubtful.add(root.digest.hex)
        return outline

    def _outline_of(self, root: Descriptor) -> Outline | None:
        """Return the outline that the documents of a root tell; None as above."""
        seen: set[Identity] = set()
        subjects: list[Digest] = []
        try:
            with self._layout.naming_damage():
                for node in walk_documents(self._hasty, root, limits=self._layout.limits, seen=seen):
                    if node.content is not None:
                        subjects += _subjects_in(node.descriptor, node.content, self._layout.limits)
                    elif media_types.is_document(node.descriptor.media_type):
                        return None
        except (NotFound, StoreDamaged):
            return None  # whoever reads it is told why
        return outline_of((key for key, _, _ in seen), (each.hex for each in subjects))


def _subjects_in(descriptor: Descriptor, content: bytes, limits: Limits) -> list[Digest]:
    """Return what a document refers to: of nearly all the bytes tell that it is nothing, if they have no escapes."""
    if b"subject" not in content and b"\\" not in content:
        return []
    subject = decode_document(content, descriptor.media_type, str(descriptor.digest), limits=limits).subject
    return [] if subject is None else [subject.digest]
