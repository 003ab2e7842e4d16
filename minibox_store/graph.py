"""The walk over an image's graph, children first: the only one there is.

Pull, push, save, load, collection, checking and sizing all see an image through :func:`walk`. A document is
verified and decoded before anything that it names is believed.
"""

import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from minibox_store.codec import decode_document, decode_links
from minibox_store.digest import Digest, Verifier
from minibox_store.documents import Descriptor, Document, Identity, Links, Manifest, Node, children, identity
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDocument, StoreError
from minibox_store.forwarding import ForwardingSource
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.media_types import is_document
from minibox_store.protocols import MOST_PLACES, BlobSource, BlobStream


class Seen(Protocol):
    """What walks have yielded: a set, or whatever else knows it."""

    def __contains__(self, key: Identity, /) -> bool: ...

    def add(self, key: Identity, /) -> None:
        """Take note of one more."""


UnreadableListener = Callable[[Descriptor, Exception], None]

# Told of a document, by its descriptor and its content, what it points at.
LinksListener = Callable[[Descriptor, bytes, Links], None]

# What a source may meet at any blob, so that it says nothing of that one: no file left to open, no memory.
_NOT_OF_THE_BLOB = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# A document that is larger is read once more, rather than kept while something else is done.
_LARGE_BYTES = 512 * 1024


def is_of_the_blob(error: OSError) -> bool:
    """Whether an error says that the very blob which it was met at cannot be read, and not that nothing can be now."""
    return error.errno not in _NOT_OF_THE_BLOB


class ContentStream:
    """Bytes that are in memory already, as a stream."""

    def __init__(self, content: bytes, offset: int = 0) -> None:
        self._content = content
        self._rest = memoryview(content)[offset:]

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer``; 0 at the end."""
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def verified(self, descriptor: Descriptor) -> bytes:
        """Return all of the rest at once, if it is what a descriptor says: a document is seldom anywhere else.

        Raises:
            ContentMismatch: when it is something else.
        """
        is_whole = len(self._rest) == len(self._content)
        content = self._content if is_whole else bytes(self._rest)
        verifier = Verifier(descriptor.digest, descriptor.size_bytes)
        verifier.update(content)
        verifier.finish()
        return content

    def close(self) -> None:
        """Do nothing: memory needs no closing."""


class ContentSource:
    """The one blob whose bytes are at hand, as a source.

    Args:
        content: the bytes.
        behind: where they are read again, by whoever wants them once they were let go.
    """

    def __init__(self, content: bytes, behind: BlobSource | None = None) -> None:
        self._content: bytes | None = content
        self._behind = behind

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the bytes from ``offset`` on."""
        if self._content is not None:
            return ContentStream(self._content, offset)
        assert self._behind is not None
        return self._behind.open_blob(descriptor, offset)

    def let_go(self) -> None:
        """Keep no large document in memory for a writer that reads it much later, if it can be read again."""
        if self._behind is not None and self._content is not None and len(self._content) > _LARGE_BYTES:
            self._content = None


def read_content(source: BlobSource, descriptor: Descriptor, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the verified bytes of a document or config, whole.

    Raises:
        InvalidDocument: when it is larger than ``limits.document_bytes``; nothing is read then.
        ContentMismatch: when the bytes are not the ones that the descriptor names.
        BlobNotFound: when the source does not hold it.
    """
    if descriptor.size_bytes > limits.document_bytes:
        raise InvalidDocument("", f"it is larger than {limits.document_bytes} bytes", str(descriptor.digest))
    stream = source.open_blob(descriptor)
    if isinstance(stream, ContentStream):
        return stream.verified(descriptor)
    verifier = Verifier(descriptor.digest, descriptor.size_bytes)
    try:
        # One byte more than there should be, so that a source with too many is noticed.
        content = memoryview(bytearray(descriptor.size_bytes + 1))
        filled = 0
        while filled < len(content) and (count := stream.readinto(content[filled:])):
            verifier.update(content[filled : filled + count])
            filled += count
    finally:
        stream.close()
    verifier.finish()
    return bytes(content[:filled])


class RememberingSource(ForwardingSource):
    """A source that keeps the documents it has read, so that each crosses the wire once.

    As many bytes are kept as one document may have: of an image with more, some are read again.
    """

    def __init__(self, source: BlobSource, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(source)
        self._limits = limits
        self._room_bytes = limits.document_bytes
        self._contents: dict[Digest, bytes] = {}

    def read(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a document or config, from memory the second time."""
        content = self._contents.get(descriptor.digest)
        if content is None:
            content = self._read_right(descriptor)
            self.remember(descriptor.digest, content)
        return content

    def remember(self, digest: Digest, content: bytes) -> None:
        """Keep a document or config that was read, and verified, elsewhere."""
        if digest not in self._contents and len(content) <= self._room_bytes:
            self._room_bytes -= len(content)
            self._contents[digest] = content

    def add_made(self, content: bytes, media_type: str) -> Descriptor:
        """Keep a document that was made here, which the source behind does not have, and return its descriptor."""
        descriptor = Descriptor(media_type=media_type, digest=Digest.of(content), size_bytes=len(content))
        self._contents[descriptor.digest] = content
        return descriptor

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes, from memory where they were read before."""
        content = self._contents.get(descriptor.digest)
        if content is not None:
            return ContentStream(content, offset)
        return super().open_blob(descriptor, offset)

    def _read_right(self, descriptor: Descriptor) -> bytes:
        for _ in range(MOST_PLACES):
            try:
                return read_content(self._source, descriptor, self._limits)
            except ContentMismatch:
                if not self.distrust(descriptor):
                    raise
        return read_content(self._source, descriptor, self._limits)


class _Pending(NamedTuple):
    """A document whose children are being walked; None above the root."""

    node: Node | None
    rest: Iterator[Node]


def walk(
    source: BlobSource,
    root: Descriptor,
    *,
    limits: Limits = DEFAULT_LIMITS,
    seen: Seen | None = None,
    allow_absent_manifests: bool = False,
    on_unreadable: UnreadableListener | None = None,
) -> Iterator[Node]:
    """Yield every blob of the graph below ``root``: children before their parents, each once, the root last.

    A node of a document's type with no ``document`` is one that is absent, or cannot be read, where that is allowed.

    Args:
        source: where documents are read from; leaves are not opened.
        root: trusted as to what is wanted, not as to what it leads to.
        limits: how deep and how large the graph may be.
        seen: what earlier walks have yielded; it is skipped here, and added to. A blob that is named with two
            sizes, with two types of document, or both as a document and as a leaf, counts as two.
        allow_absent_manifests: whether a manifest below an index may be missing (not: unreadable). It is
            yielded as a node without a document then.
        on_unreadable: told of each document that is missing or wrong, and why; it is yielded as a node without a
            document then, and the walk goes on. None ends the walk with the error.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: for a document that is missing or wrong.
    """

    def read(node: Node, may_be_absent: bool) -> _Pending | None:
        found = read_document(source, node.descriptor, limits, may_be_absent and allow_absent_manifests)
        if found is None:
            return None
        return _Pending(node._replace(document=found[0], content=found[1]), iter(children(found[0])))

    return _walk(root, read, limits, set() if seen is None else seen, on_unreadable)


def walk_contents(
    source: BlobSource, root: Descriptor, *, limits: Limits, on_unreadable: UnreadableListener | None = None
) -> Iterator[Node]:
    """Do as :func:`walk`, for whoever moves what it yields: documents have their content, and no value.

    So none is in memory while the next one is decoded: a value may take ten times the bytes.
    """

    def read(node: Node, _: bool) -> _Pending | None:
        found = read_document(source, node.descriptor, limits, may_be_absent=False)
        assert found is not None
        return _Pending(node._replace(content=found[1]), iter(children(found[0])))

    return _walk(root, read, limits, set(), on_unreadable)


def walk_documents(source: BlobSource, root: Descriptor, *, limits: Limits, seen: set[Identity]) -> Iterator[Node]:
    """Do as :func:`walk`, absent manifests allowed, for whoever asks no more than what there is.

    Leaves are added to ``seen``, and not yielded. Documents are, with their content and without their value; one that
    is absent has neither. A root that is a leaf is yielded.
    """
    return walk_links(source, root, limits=limits, seen=seen, on_links=lambda *told: seen.update(told[2].leaves))


def walk_links(
    source: BlobSource, root: Descriptor, *, limits: Limits, seen: Seen, on_links: LinksListener
) -> Iterator[Node]:
    """Do as :func:`walk_documents`, but leave it to ``on_links`` to note leaves.

    It is told of each document that was read, before what lies below that is walked.
    """

    def read(node: Node, may_be_absent: bool) -> _Pending | None:
        content = _content_of(source, node.descriptor, limits, may_be_absent)
        if content is None:
            return None
        name = str(node.descriptor.digest)
        links = decode_links(content, node.descriptor.media_type, name, limits=limits)
        _check_layers(links.layers, name, limits)
        on_links(node.descriptor, content, links)
        below = [Node(each, "manifest", 1, 1) for each in links.documents]
        return _Pending(node._replace(content=content), iter(below))

    return _walk(root, read, limits, seen, None)


def _walk(
    root: Descriptor,
    read: Callable[[Node, bool], _Pending | None],
    limits: Limits,
    seen: Seen,
    on_unreadable: UnreadableListener | None,
) -> Iterator[Node]:
    documents = 0
    opened = None
    stack = [_Pending(None, iter((Node(descriptor=root, role="manifest", position=1, total=1),)))]
    while stack:
        for node in stack[-1].rest:
            descriptor = node.descriptor
            key = identity(descriptor)
            if key in seen:
                continue
            seen.add(key)
            if key[2]:  # the type of a document
                documents += 1
                opened = None
                try:
                    check_bounds(root, documents, len(stack), limits)
                    opened = read(node, len(stack) > 1)
                except (StoreError, OSError) as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(descriptor, error)
                if opened is not None:
                    stack.append(opened)
                    break
            yield node
        else:
            done = stack.pop().node
            if done is not None:
                yield done
                done = opened = None  # values that take much are not kept while the next one is read


def check_is_document(root: Descriptor) -> None:
    """Return if an image can lie at ``root``; index.json may name other things, such as "application/xml".

    Raises:
        InvalidDocument: when it is no manifest and no index.
    """
    if not is_document(root.media_type):
        raise InvalidDocument("mediaType", f"{root.media_type!r} is no manifest or index", str(root.digest))


def check_bounds(root: Descriptor, documents: int, depth: int, limits: Limits) -> None:
    """Return if one more document, so deep below a root, may be read.

    Raises:
        InvalidDocument: when not.
    """
    if documents > limits.documents:
        raise InvalidDocument("", f"the image has more than {limits.documents} documents", str(root.digest))
    if depth > limits.depth:
        raise InvalidDocument("", f"the image is nested more than {limits.depth} deep", str(root.digest))


def read_document(
    source: BlobSource, descriptor: Descriptor, limits: Limits, may_be_absent: bool
) -> tuple[Document, bytes] | None:
    """Return a document and its verified bytes; None where it is absent and may be.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: when it is missing or wrong, or has more layers than may be.
    """
    content = _content_of(source, descriptor, limits, may_be_absent)
    if content is None:
        return None
    document = decode_document(content, descriptor.media_type, str(descriptor.digest), limits=limits)
    if isinstance(document, Manifest):
        _check_layers(len(document.layers), str(descriptor.digest), limits)
    return document, content


def _content_of(source: BlobSource, descriptor: Descriptor, limits: Limits, may_be_absent: bool) -> bytes | None:
    try:
        content = source.read(descriptor) if isinstance(source, RememberingSource) else None
        return read_content(source, descriptor, limits) if content is None else content
    except BlobNotFound:
        if may_be_absent:
            return None
        raise


def _check_layers(count: int, document: str, limits: Limits) -> None:
    if count > limits.layers:
        raise InvalidDocument("layers", f"there are more than {limits.layers}", document)
