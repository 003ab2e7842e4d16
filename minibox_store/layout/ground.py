"""What a durable change stands on: the folders and files of the store that it found there, and did not make itself.

Whoever made them may have died before they were on the disk, may have left that to the system, or may know nothing of
syncing. So the first time that an object of the store relies on one it syncs it, whoever has made it.
"""

import os
from contextlib import suppress

from minibox_store import _files
from minibox_store.layout.paths import LayoutPaths


class Ground:
    """The folders of one store. Safe for several threads.

    Args:
        paths: of the store.
        durable: whether anything is synced.
    """

    def __init__(self, paths: LayoutPaths, *, durable: bool) -> None:
        self._paths = paths
        self._durable = durable
        self._relied_on: set[str] = set()

    def make_root(self) -> None:
        """Make the store's folder, with mode 0700, and every one above it that is not there."""
        root = self._paths.root
        if self._is_to_be_synced(root, is_new=_files.make_directories(root)):
            _sync_above(root)
            self._relied_on.add(root)

    def make_blob_folder(self, algorithm: str) -> None:
        """Make the folder of an algorithm's blobs where it is not there yet."""
        for path in (os.path.join(self._paths.root, "blobs"), self._paths.blobs(algorithm)):
            self.make_folder(path, 0o755)

    def make_folder(self, path: str, mode: int = 0o700) -> None:
        """Make a folder of this mode where it is not there yet."""
        if self._is_to_be_synced(path, is_new=_files.make_directory(path, mode)):
            _files.sync_directory(os.path.dirname(path))
            self._relied_on.add(path)

    def hold_marker(self) -> None:
        """Make the content of oci-layout durable, which is there; its name is with that of ``blobs/``."""
        if self._is_to_be_synced(self._paths.marker, is_new=False):
            _files.sync_regular(self._paths.marker)
            self._relied_on.add(self._paths.marker)

    def _is_to_be_synced(self, path: str, *, is_new: bool) -> bool:
        return self._durable and (is_new or path not in self._relied_on)


def _sync_above(path: str) -> None:
    """Make the name of a folder durable, and the names of all above it on the same file system."""
    device = os.stat(path).st_dev
    while (above := os.path.dirname(path)) != path and os.stat(above).st_dev == device:
        with suppress(PermissionError):  # a folder that we may pass and not list is not one that we have made
            _files.sync_directory(above)
        path = above
