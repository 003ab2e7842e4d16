"""What refers to an image: signatures, SBOMs and the like, which name it as their subject. And what refers to those.

Whoever lists referrers may be wrong, or lie: each document is read, and only one that has the subject counts.

Spec: OCI image-spec 1.1, manifest.md, "subject"; distribution-spec 1.1, "Listing Referrers".
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

from minibox_store import media_types
from minibox_store.codec import decode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, Manifest, Referrer
from minibox_store.errors import BlobNotFound, InvalidDocument
from minibox_store.graph import RememberingSource, read_content, walk
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.protocols import BlobSource, Referrers


def read_referrer(source: BlobSource, descriptor: Descriptor, limits: Limits = DEFAULT_LIMITS) -> Referrer | None:
    """Return what a manifest or index says that it refers to, and what it is; None where it refers to nothing.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when the document is missing or wrong.
    """
    if not media_types.is_document(descriptor.media_type):
        return None
    if isinstance(source, RememberingSource):
        content = source.read(descriptor)
    else:
        content = read_content(source, descriptor, limits)
    document = decode_document(content, descriptor.media_type, str(descriptor.digest), limits=limits)
    return referrer_of(descriptor, document)


def referrer_of(descriptor: Descriptor, document: Document) -> Referrer | None:
    """Return what a document, read already, says that it refers to, and what it is; None where that is nothing."""
    if document.subject is None:
        return None
    artifact_type = document.artifact_type
    if not artifact_type and isinstance(document, Manifest):
        artifact_type = document.config.media_type
    return Referrer(
        # Of what its lister says no more is taken over than was verified.
        descriptor=Descriptor(
            media_type=descriptor.media_type,
            digest=descriptor.digest,
            size_bytes=descriptor.size_bytes,
            artifact_type=artifact_type or None,
        ),
        subject=document.subject.digest,
        artifact_type=artifact_type or None,
        annotations=document.annotations,
    )


def find_referrers(
    source: RememberingSource,
    listing: Referrers,
    subject: Descriptor,
    *,
    artifact_type: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    looked_at: dict[Digest, Referrer | None] | None = None,
) -> Iterator[Referrer]:
    """Yield what refers to a manifest or index, each once. Left out is what is gone, or refers elsewhere.

    Args:
        source: where the documents are; it keeps those that were read, for a copy that follows.
        listing: who says what there is; it is not trusted.
        subject: what they refer to.
        artifact_type: which ones alone; those that are listed as something else are not read.
        limits: how large documents may be, and how many are read (``documents``).
        looked_at: what was read so far, which is not read again, and is added to.

    Raises:
        ContentMismatch, InvalidDocument: when a document is wrong, or too many are listed.
    """
    looked_at = {} if looked_at is None else looked_at
    listed = {each.digest: each for each in listing.referrers(subject)}
    for digest, descriptor in listed.items():
        if artifact_type and descriptor.artifact_type and descriptor.artifact_type != artifact_type:
            continue
        if digest not in looked_at:
            if len(looked_at) >= limits.documents:
                problem = f"more than {limits.documents} documents are said to refer to it"
                raise InvalidDocument("", problem, str(subject.digest))
            # Lists that everybody may write outlive what they name.
            looked_at[digest] = None
            with suppress(BlobNotFound):
                looked_at[digest] = read_referrer(source, descriptor, limits)
        found = looked_at[digest]
        if found is not None and found.subject == subject.digest and artifact_type in (None, found.artifact_type):
            yield found


def gather_referrers(
    source: RememberingSource,
    listing: Referrers,
    root: Descriptor,
    *,
    limits: Limits = DEFAULT_LIMITS,
    without: Collection[Digest] = (),
) -> tuple[Referrer, ...]:
    """Return all that refers to a document at or below ``root``, and what refers to that in turn, nearest first.

    Args:
        source: where the documents are; it keeps those that were read.
        listing: who says what there is; it is not trusted.
        root: of the image.
        limits: how many may be listed (``documents``), and how far from the image they may be (``depth``).
        without: documents of the image that are not asked for: nobody can refer to what was made just now.

    Raises:
        BlobNotFound: when the root is missing; other manifests of it may be.
        ContentMismatch, InvalidDocument: when a document is wrong, or there are too many.
    """
    nodes = walk(source, root, limits=limits, allow_absent_manifests=True)
    asked = [node.descriptor for node in nodes if node.document is not None]
    subjects = [each for each in reversed(asked) if each.digest not in without]  # the root first
    looked_at: dict[Digest, Referrer | None] = {}
    found: dict[Digest, Referrer] = {}
    for _ in range(limits.depth):
        # A document has one subject, so none is met twice.
        nearest = [
            each
            for subject in subjects
            for each in find_referrers(source, listing, subject, limits=limits, looked_at=looked_at)
        ]
        if not nearest:
            return tuple(found.values())
        found.update({each.descriptor.digest: each for each in nearest})
        subjects = [each.descriptor for each in nearest]
    raise InvalidDocument("", f"what refers to it is more than {limits.depth - 1} deep", str(root.digest))


class KnownReferrers:
    """What refers to what among some manifests and indexes, each of which is read once: it is :class:`Referrers`.

    Args:
        source: where they are.
        descriptors: their descriptors; what is no document refers to nothing.
        limits: how large they may be.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when one is missing or wrong: nobody knows to what it refers.
    """

    def __init__(self, source: BlobSource, descriptors: Iterable[Descriptor], limits: Limits = DEFAULT_LIMITS) -> None:
        self._by_subject: defaultdict[Digest, dict[Digest, Descriptor]] = defaultdict(dict)
        for descriptor in descriptors:
            found = read_referrer(source, descriptor, limits)
            if found is not None:
                self._by_subject[found.subject].setdefault(found.descriptor.digest, found.descriptor)

    def referrers(self, descriptor: Descriptor, /) -> tuple[Descriptor, ...]:
        """Return what refers to a manifest or index, in the order in which it was given."""
        return tuple(self._by_subject.get(descriptor.digest, {}).values())


def keep_living(
    referrers: Iterable[Referrer], is_alive: Callable[[Digest], bool], keep: Callable[[Descriptor], None]
) -> list[Referrer]:
    """Call ``keep`` for each whose subject is alive, also by what was kept before; return those that are not.

    What is kept, and all that it reaches, is to be alive from then on.
    """
    rest = list(referrers)
    while True:
        waiting, rest, is_over = rest, [], True
        for each in waiting:
            if is_alive(each.subject):
                keep(each.descriptor)
                is_over = False
            else:
                rest.append(each)
        if is_over:
            return rest
