"""What a manifest needs that was pushed to a repository: seen there, in the size it is said to have, and held.

Every blob of the graph is asked for, not the first ones alone: else somebody could push the bytes of a manifest as a
blob, name that in an index, and get at what it names in another repository.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, IncompleteImage, InvalidDocument
from minibox_store.graph import RememberingSource, walk
from minibox_store.protocols import BlobStream

if TYPE_CHECKING:
    from minibox_store.layout import Layout, Transaction

# Returns the descriptor of a blob that is seen in a repository; raises BlobNotFound.
Finder = Callable[[Digest], Descriptor]


def hold_graph(
    layout: "Layout", writer: "Transaction", root: Descriptor, content: bytes, find: Finder
) -> frozenset[Digest]:
    """Pin all that a document reaches and is seen; return the digests, its own among them.

    Args:
        layout: the store.
        writer: pins the blobs.
        root: of the document, which the store need not have.
        content: its bytes, which hash to that.
        find: says what is seen in the repository.

    Raises:
        IncompleteImage: when some of it is not; as much of it as could be told.
        InvalidDocument: when a document of it is wrong, or one has another size than is said.
    """
    source = RememberingSource(_SeenDocuments(layout, find), layout.limits)
    source.remember(root.digest, content)
    missing: list[str] = []
    reached = {root.digest}
    try:
        for node in walk(source, root, limits=layout.limits):
            descriptor = node.descriptor
            if descriptor.digest != root.digest:
                reached.add(descriptor.digest)
                if not (_is_seen(descriptor, find) and writer.has_blob(descriptor)):
                    missing.append(str(descriptor.digest))
    except BlobNotFound as error:
        missing.append(error.digest)
    if missing:
        raise IncompleteImage(str(root.digest), tuple(missing))
    return frozenset(reached)


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
