"""How a manifest that was pushed comes into a repository: once all that it needs is seen there, and held.

Every blob of the graph is asked for, not the first ones alone: else somebody could push the bytes of a manifest as a
blob, name that in an index, and get at what it names in another repository. What the tag stood for before stays, by
its digest: clients that are just fetching it, or know it by that, go on.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, describe_document
from minibox_store.digest import Digest, check_digest
from minibox_store.documents import Descriptor, LayoutIndex, children
from minibox_store.errors import (
    BlobNotFound,
    ContentMismatch,
    ImageNotFound,
    IncompleteImage,
    InvalidDocument,
    StoreBusy,
    StoreDamaged,
)
from minibox_store.graph import ContentSource, RememberingSource, walk
from minibox_store.layout_index import find_exact_name
from minibox_store.limits import Limits
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.repositories import with_pushed
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.layout import Layout, Transaction

_ATTEMPTS = 5
# Returns the descriptor of a blob that is seen in a repository; raises BlobNotFound.
Finder = Callable[[Digest], Descriptor]


@attrs.frozen(kw_only=True, repr=False)
class Offered(Value):
    """A manifest or index that somebody wants to be taken, decoded.

    Attributes:
        descriptor: of it.
        content: its bytes, which have that digest.
        needed: what it names itself, each once.
        subject: what it refers to; None where that is nothing.
    """

    descriptor: Descriptor
    content: bytes
    needed: tuple[Digest, ...]
    subject: Digest | None


def read_offered(content: bytes, media_type: str | None, digest: Digest | None, limits: Limits) -> Offered:
    """Return a manifest or index by its bytes, which are not trusted; the arguments are those of ``put_manifest``.

    Raises:
        InvalidDocument: when it is none, or another one than it is said to be.
        ContentMismatch: when it has another digest.
    """
    if digest is not None:
        check_digest(digest)
    said = media_type or describe_document(content, limits=limits).media_type
    document = decode_document(content, said, limits=limits)
    actual = Digest.of(content, "sha256" if digest is None else digest.algorithm)
    if digest not in (None, actual):
        raise ContentMismatch("the manifest", str(digest), str(actual))
    return Offered(
        descriptor=Descriptor(media_type=said, digest=actual, size_bytes=len(content)),
        content=content,
        needed=tuple(dict.fromkeys(each.descriptor.digest for each in children(document))),
        subject=None if document.subject is None else document.subject.digest,
    )


class _TagMoved(Exception):
    """Another process has moved the tag since it was looked at."""


class Taking:
    """Takes manifests into one repository.

    Args:
        layout: the store.
        repository: its name.
        find: says what is seen in the repository.
        find_reached: says what its images reach; None where they do not.
    """

    def __init__(
        self, layout: "Layout", repository: str, find: Finder, find_reached: Callable[[Digest], Descriptor | None]
    ) -> None:
        self._layout = layout
        self._repository = repository
        self._find = find
        self._find_reached = find_reached

    def take(self, offered: Offered, *, tag: str | None) -> bool:
        """Take a document, and return whether no image of the repository had it before.

        Raises:
            IncompleteImage: when some of it is not seen; as much of it as could be told.
            InvalidDocument: when a document of it is wrong, or one has another size than is said.
            StoreBusy: when the tag is moved all the time.
        """
        is_new = self._is_new(offered.descriptor.digest)
        for _ in range(_ATTEMPTS):
            try:
                self._take(offered, tag)
            except _TagMoved:
                continue
            return is_new
        raise StoreBusy(self._layout.paths.index, None, None, "moving a tag all the time")

    def _is_new(self, digest: Digest) -> bool:
        try:
            return self._find_reached(digest) is None
        except StoreDamaged:
            return False  # nobody can tell

    def _take(self, offered: Offered, tag: str | None) -> None:
        descriptor, subject = offered.descriptor, offered.subject
        name = None if tag is None else f"{self._repository}:{tag}"
        with self._layout.open_writer() as writer:
            source = RememberingSource(_SeenDocuments(self._layout, self._find), self._layout.limits)
            source.remember(descriptor.digest, offered.content)
            reached = self._hold(writer, descriptor, source)
            writer.write_blob(descriptor, ContentSource(offered.content))
            earlier = None if name is None else _stands_for(self._layout.read_index(), name)
            is_kept_by_subject = subject is not None and self._hold_subject(writer, subject)
            is_earlier_whole = earlier is not None and self._holds_whole(writer, earlier)

            def change(index: LayoutIndex) -> LayoutIndex:
                if name is not None and _stands_for(index, name) != earlier:
                    raise _TagMoved
                return with_pushed(
                    index,
                    repository=self._repository,
                    descriptor=descriptor,
                    tag=tag,
                    is_kept_by_subject=is_kept_by_subject,
                    reached=reached,
                    earlier=earlier if is_earlier_whole else None,
                )

            writer.write_change(change, [] if name is None else [name])

    def _hold(self, writer: "Transaction", root: Descriptor, source: BlobSource) -> frozenset[Digest]:
        """Pin all that a document reaches and is seen; return the digests, its own among them."""
        missing: list[str] = []
        reached = {root.digest}
        try:
            for node in walk(source, root, limits=self._layout.limits):
                descriptor = node.descriptor
                if descriptor.digest != root.digest:
                    reached.add(descriptor.digest)
                    if not (_is_seen(descriptor, self._find) and writer.has_blob(descriptor)):
                        missing.append(str(descriptor.digest))
        except BlobNotFound as error:
            missing.append(error.digest)
        if missing:
            raise IncompleteImage(str(root.digest), tuple(missing))
        return frozenset(reached)

    def _hold_subject(self, writer: "Transaction", subject: Digest) -> bool:
        """Whether a manifest or index is there to be referred to; it is pinned then."""
        try:
            found = self._find_reached(subject)
        except (BlobNotFound, StoreDamaged):
            return False
        return found is not None and media_types.is_document(found.media_type) and writer.has_blob(found)

    def _holds_whole(self, writer: "Transaction", root: Descriptor) -> bool:
        """Whether an image is whole, but for manifests below an index; it is pinned then.

        One that is not would be a root which no collection can read.
        """
        try:
            nodes = walk(self._layout, root, limits=self._layout.limits, allow_absent_manifests=True)
            return all(
                writer.has_blob(node.descriptor)
                for node in nodes
                if node.document is not None or not media_types.is_document(node.descriptor.media_type)
            )
        except (BlobNotFound, StoreDamaged, InvalidDocument, ContentMismatch):
            return False


def _stands_for(index: LayoutIndex, name: str) -> Descriptor | None:
    try:
        return find_exact_name(index, name)
    except ImageNotFound:
        return None


def _is_seen(descriptor: Descriptor, find: Finder) -> bool:
    try:
        return find(descriptor.digest).size_bytes == descriptor.size_bytes
    except BlobNotFound:
        return False


class _SeenDocuments:
    """The documents of a repository, as a source: what is not seen in it is not there."""

    def __init__(self, layout: "Layout", find: Finder) -> None:
        self._layout = layout
        self._find = find

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        found = self._find(descriptor.digest)
        if found.size_bytes != descriptor.size_bytes:
            problem = f"it has {found.size_bytes} bytes, and is said to have {descriptor.size_bytes}"
            raise InvalidDocument("", problem, str(descriptor.digest))
        return self._layout.open_blob(descriptor, offset)
