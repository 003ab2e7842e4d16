"""What was found to be wrong, and taken from ``blobs/``: that it was there once is not forgotten.

A manifest that was never fetched leads to nothing that the store has; one that was set aside does, and as long as
nothing right has taken its place nobody knows to what. So it is damage, and whoever collects stops at it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store import media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, StoreDamaged
from minibox_store.layout.paths import LayoutPaths, pin_name


def was_set_aside(paths: LayoutPaths, digest: Digest) -> bool:
    """Whether something that lay in a blob's place is kept in ``quarantine/``."""
    try:
        names = os.listdir(paths.quarantine)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(name.startswith(f"{pin_name(digest)}.") for name in names)


@contextmanager
def naming_set_aside(paths: LayoutPaths, descriptor: Descriptor) -> Iterator[None]:
    """Turn the absence of a document that was set aside into StoreDamaged."""
    try:
        yield
    except BlobNotFound as error:
        if media_types.is_document(descriptor.media_type) and was_set_aside(paths, descriptor.digest):
            problem = "what was there was wrong, and is in quarantine/; nothing right has come in its place"
            raise StoreDamaged(paths.blob(descriptor.digest), problem) from error
        raise
