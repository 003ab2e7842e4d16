"""What was pushed, or mounted, to a repository, and no manifest there needs yet: seen there, and safe, for a while.

``ingest/pushed/<digest of the repository's name>/<algorithm>-<hexadecimal>`` is a pin: a small file, whose time is when
the blob was pushed there last. A collection takes a pinned blob for held, as it takes one of a transaction, and takes
away pins that have become too old. A pin is no link to the blob: it has a time of its own, and is the same where a file
system has no links. It is made, renewed and taken for old under the store lock, before the blob has its place.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from minibox_store import _files
from minibox_store.digest import Digest
from minibox_store.layout.paths import LayoutPaths, pin_name, pinned_digest

if TYPE_CHECKING:
    from minibox_store.layout.layout import Layout


class PushedBlobs:
    """The pins of one store's repositories."""

    def __init__(self, layout: "Layout") -> None:
        self._layout = layout
        self._paths = layout.paths

    def pin(self, repository: str, digest: Digest) -> None:
        """Let a blob be seen in a repository, and be kept, from now on; its place it may have later."""
        folder = self._paths.pushed_to(repository)
        with self._layout.store_lock("pinning a blob that was pushed"):
            for each in (self._paths.ingest, self._paths.pushed, folder):
                self._layout.make_folder(each)
            # Each time it grows by a line, and so is as young as the last one; people can read whose it is.
            path = self._path(repository, digest)
            is_new = _files.append_bytes(path, f"{repository}\n".encode())
            if self._layout.durable:
                if not is_new:  # else it would be as old as before, once the power has gone
                    _files.sync_regular(path)
                _files.sync_directory(folder)  # whoever made it may have died before this

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether a blob is pinned in a repository."""
        return _files.exists(self._path(repository, digest))

    def has_any(self, repository: str) -> bool:
        """Whether anything is pinned in a repository."""
        return any(True for _ in _entries(self._paths.pushed_to(repository)))

    def unpin(self, repository: str, digests: Iterable[Digest]) -> None:
        """Let blobs be kept for the pin's sake no more; those that have none are no error."""
        if not _files.exists(self._paths.pushed_to(repository)):
            return
        for digest in digests:
            _files.discard_file(self._path(repository, digest))

    def _path(self, repository: str, digest: Digest) -> str:
        return os.path.join(self._paths.pushed_to(repository), pin_name(digest))


class Pin(NamedTuple):
    """One pin: its path, the blob that it pins, and whether it does so still."""

    path: str
    digest: Digest
    is_young: bool


def iter_pushed(paths: LayoutPaths, pushed_seconds: float) -> Iterator[Pin]:
    """Yield each pin in any repository; those that are older than ``pushed_seconds`` pin nothing any more."""
    now_seconds = time.time()
    for folder in _entries(paths.pushed):
        if folder.is_dir(follow_symlinks=False):
            for entry in _entries(folder.path):
                digest = pinned_digest(entry.name)
                if digest is not None:
                    with suppress(FileNotFoundError):
                        age_seconds = now_seconds - entry.stat(follow_symlinks=False).st_mtime
                        yield Pin(entry.path, digest, age_seconds <= pushed_seconds)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
