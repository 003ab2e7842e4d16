"""What was found to be wrong, and taken from ``blobs/``: that it was there once is not forgotten.

What the disk did not give for a while was right all the same: it is asked first when the blob is wanted again.

A manifest that was never fetched leads to nothing that the store has; one that was set aside does, and as long as
nothing right has taken its place nobody knows to what. So it is damage, and whoever collects stops at it.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from minibox_store import _files, _moving, media_types
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, StoreDamaged
from minibox_store.layout.contents import is_content
from minibox_store.layout.paths import LayoutPaths, pin_name
from minibox_store.protocols import BlobStream
from minibox_store.values import Value


def was_set_aside(paths: LayoutPaths, digest: Digest) -> bool:
    """Whether something that lay in a blob's place is kept in ``quarantine/``."""
    return bool(_names(paths, digest))


def _names(paths: LayoutPaths, digest: Digest) -> list[str]:
    try:
        names = os.listdir(paths.quarantine)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.startswith(f"{pin_name(digest)}.")]


def find_right_one(paths: LayoutPaths, digest: Digest) -> "SetAside | None":
    """Return what was set aside of a blob and has the right bytes after all; None where nothing has."""
    for name in _names(paths, digest):
        found = SetAside(os.path.join(paths.quarantine, name))
        try:
            opened = _files.open_readable(found.path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_files.NOT_REGULAR):
                raise
            continue
        try:
            if is_content(opened, digest, os.fstat(opened).st_size):
                return found
        finally:
            os.close(opened)
    return None


@attrs.frozen(repr=False)
class SetAside(Value):
    """A file in ``quarantine/``, as a source of the one blob that it was set aside from."""

    path: str

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return its bytes from ``offset`` on, which are not trusted."""
        opened = _files.open_regular(self.path)
        return _moving.FileStream(opened, offset, os.fstat(opened).st_size - offset)


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
