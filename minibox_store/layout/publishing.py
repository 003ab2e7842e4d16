"""How a transaction's blobs get their place under ``blobs/``: a verified file, in place of nothing or of a wrong one.

A good blob is never overwritten. One that is wrong is kept in ``quarantine/`` for whoever wants to know.
"""

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from minibox_store import _files, _signatures
from minibox_store.digest import Digest
from minibox_store.errors import BlobNotFound
from minibox_store.layout.contents import is_content
from minibox_store.layout.paths import pin_name

if TYPE_CHECKING:
    from minibox_store.layout.layout import Layout


class Publisher:
    """Publishes what one transaction has pinned, and knows what it has found wrong. Safe for several threads.

    Args:
        layout: the store.
        pin_path: where the transaction's own link, or copy, of a blob is.
        hard_links: whether there are hard links; else a finished blob is moved instead of being linked.

    Attributes:
        placed: the blobs whose place nothing had: what lies there is the transaction's own.
    """

    def __init__(self, layout: "Layout", pin_path: Callable[[Digest], str], *, hard_links: bool) -> None:
        self._layout = layout
        self._paths = layout.paths
        self._pin_path = pin_path
        self._hard_links = hard_links
        self._guard = threading.Lock()
        self._wrong: dict[Digest, _signatures.Signature | None] = {}
        self._right: dict[Digest, _signatures.Signature | None] = {}
        self.placed: set[Digest] = set()

    def note_wrong(self, digest: Digest, path: str) -> None:
        """Remember which file was found to be no such blob, so that another one in its place is not taken for it."""
        with self._guard:
            self._wrong[digest] = _signatures.signature(path)

    def forget_wrong(self, digest: Digest) -> None:
        """Forget what was found wrong about a blob."""
        with self._guard:
            self._wrong.pop(digest, None)

    def compare(self, digest: Digest, size_bytes: int) -> None:
        """Read the store's own blob, where there is one beside the transaction's; remember if it is right or wrong."""
        blob = self._paths.blob(digest)
        try:
            opened = _files.open_readable(blob)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _files.NOT_REGULAR:
                raise
            self.note_wrong(digest, blob)
            return
        try:
            seen = _signatures.signature(blob)
            is_own = self._hard_links and _files.is_same_file(opened, self._pin_path(digest))
            is_right = is_own or is_content(opened, digest, size_bytes)
        finally:
            os.close(opened)
        with self._guard:
            (self._right if is_right else self._wrong)[digest] = seen

    def publish(self, digest: Digest, size_bytes: int) -> None:
        """Let the blob appear in the store before the commit, so that others, and a next try, have it."""
        if not self.place(digest, size_bytes):
            with self._layout.store_lock("replacing a wrong blob"):
                self.publish_locked(digest, size_bytes)

    def publish_locked(self, digest: Digest, size_bytes: int) -> None:
        """Do so under the store lock, in place of whatever is there if that is no good."""
        if self.place(digest, size_bytes):
            return
        pin, blob = self._pin_path(digest), self._paths.blob(digest)
        aside = self._layout.quarantine_path(pin_name(digest))
        if self._layout.durable:
            _files.sync_directory(self._paths.root)
        if self._hard_links and _is_linked(blob, aside):
            self._sync_quarantine()
            new = f"{pin}.new"
            _files.link_file(pin, new)
            _files.rename_file(new, blob)
        else:
            _files.rename_file(blob, aside)
            self._sync_quarantine()
            if not self.place(digest, size_bytes):
                raise BlobNotFound(str(digest))
        self.forget_wrong(digest)

    def _sync_quarantine(self) -> None:
        """Let what was wrong be kept for good before something else takes its place."""
        if self._layout.durable:
            _files.sync_directory(self._paths.quarantine)

    def place(self, digest: Digest, size_bytes: int) -> bool:
        """Link (or move) the transaction's copy to where the blob belongs; False where something wrong is there."""
        pin, blob = self._pin_path(digest), self._paths.blob(digest)
        self._layout.make_blob_folder(digest.algorithm)
        try:
            if self._hard_links:
                _files.link_file(pin, blob)
            elif not _files.exists(blob):
                _files.rename_file(pin, blob)
            else:
                return self._is_good(digest, size_bytes)
        except FileExistsError:
            return self._is_good(digest, size_bytes)
        except FileNotFoundError:
            raise BlobNotFound(str(digest)) from None  # without links, what was found is not held
        self.placed.add(digest)
        return True

    def _is_good(self, digest: Digest, size_bytes: int) -> bool:
        """Whether what lies where the blob belongs may stay: the very file that is pinned, or one of equal content.

        Whoever has put another file there since has verified it, if that was one of us; it is read all the same.
        """
        blob = self._paths.blob(digest)
        found = _signatures.signature(blob)
        if found is None or not found.is_regular or found.size_bytes != size_bytes or found == self._wrong.get(digest):
            return False
        if not self._hard_links or found == self._right.get(digest) or _is_one_file(blob, self._pin_path(digest)):
            return True
        self.compare(digest, size_bytes)
        return found == self._right.get(digest)


def _is_one_file(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except FileNotFoundError:
        return False


def _is_linked(path: str, target: str) -> bool:
    """Whether a file has a second name now; not a folder's, and not where fs.protected_hardlinks forbids it."""
    if os.path.isdir(path):
        return False
    try:
        _files.link_file(path, target)
    except PermissionError:
        return False
    return True
