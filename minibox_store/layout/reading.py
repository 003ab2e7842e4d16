"""Reading a part of a store without a lock: again, where an image goes while it is read."""

from collections.abc import Callable
from typing import TypeVar

from minibox_store import _files
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, IncompleteImage, StoreDamaged
from minibox_store.layout.layout import Layout
from minibox_store.layout_index import find_name
from minibox_store.referring import KnownReferrers

_ATTEMPTS = 5
_T = TypeVar("_T")


def reading_again(layout: Layout, name: str, read: Callable[[str, Descriptor], _T]) -> _T:
    """Return what ``read`` makes of the image that ``name`` means, given its name as it stands and its root.

    Raises:
        ImageNotFound: when no entry means ``name``.
        IncompleteImage: when ``read`` found a blob missing, and the name still stands for the same image.
        StoreDamaged: when ``read`` found a file whose bytes are not what its descriptor says. What right bytes say is
            no matter of the store: an odd image is InvalidDocument, as ``read`` has it.
    """
    missing = ""
    last_root = None
    found = name
    for _ in range(_ATTEMPTS):
        # The name may have been removed or moved, and a collection come by, since the index was read the last time.
        found, root = find_name(layout.read_index(), name)
        if missing and last_root == root.digest and not _files.exists(layout.paths.blob(Digest.parse(missing))):
            break
        try:
            return read(found, root)
        except BlobNotFound as error:
            missing, last_root = error.digest, root.digest
        except ContentMismatch as error:
            raise StoreDamaged(layout.paths.blob(Digest.parse(error.what)), str(error)) from error
    raise IncompleteImage(found, (missing,))


def known_referrers(layout: Layout) -> KnownReferrers:
    """Return what refers to what among the entries of a store, named or not.

    Raises:
        BlobNotFound, StoreDamaged: when an entry cannot be read, though index.json is the same, or again and again.
    """
    for attempt in range(_ATTEMPTS):
        index = layout.read_index()
        try:
            with layout.naming_damage():
                return KnownReferrers(layout, [entry.descriptor for entry in index.entries], layout.limits)
        except BlobNotFound:
            if attempt + 1 == _ATTEMPTS or layout.read_index() is index:
                raise  # else a name has gone meanwhile, and its blobs with it
    raise AssertionError("the last attempt returns or raises")
