"""What clients of a repository were told is there: seen there, and safe for their manifests, for a while.

``ingest/pushed/<digest of the repository's name>/<algorithm>-<hexadecimal>`` is a pin: a small file, with a line for
each time that the blob was pushed, or mounted, to the repository. A manifest that is new there takes one line away, so
that what one client was promised does not go with what another one has used. Its time is when a line came or went last.

The same name with ``.asked`` behind it is a pin too, of a blob that somebody only asked for. It has no lines to take:
who asks may go on to upload all the same, or ask twice, or never come back, and nobody can tell two clients apart. It
lasts until time takes it, which is soon once nothing is pushed to the repository any more.

A collection takes a pinned blob for held, as it takes one of a transaction, and takes away pins that have become too
old. A pin is no link to the blob: it has a time of its own, and is the same where a file system has no links. It is
made, renewed and taken for old under the store lock: of a push before the blob has its place, of a question while it
is there.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from minibox_store import _files, _moving
from minibox_store.digest import Digest
from minibox_store.layout.paths import LayoutPaths, pin_name, pinned_digest
from minibox_store.layout.uploads import is_upload
from minibox_store.limits import Limits

if TYPE_CHECKING:
    from minibox_store.layout.layout import Layout

_ASKED = ".asked"
# Who asks does not wait for the store as long as who pushes: the answer is as good as it was before there were pins.
_MOST_WAIT_SECONDS = 5.0
# A pin of what was asked for is renewed once this part of its time has gone by: whoever asks in between finds it.
_RENEWED_PART = 1 / 60


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
            is_new = _files.append_bytes(path, _line(repository))
            if self._layout.durable:
                if not is_new:  # else it would be as old as before, once the power has gone
                    _files.sync_regular(path)
                _files.sync_directory(folder)  # whoever made it may have died before this

    def hold(self, repository: str, digest: Digest, is_reached: Callable[[], bool]) -> bool:
        """Let a blob that is seen in a repository be kept for whoever asked for it; return whether it is there.

        Nothing is synced: whoever was told by a machine that lost its power asks again.

        Args:
            repository: its name.
            digest: of the blob.
            is_reached: whether an image has it, asked under the store lock where it has no pin: then it was deleted.

        Raises:
            StoreError, OSError: when that cannot be noted; nothing is known of the blob then.
        """
        path = self._path(repository, digest, _ASKED)
        if self._is_fresh(path):  # no collection that began since it was made takes the blob
            return True
        self._layout.prepare()
        with self._layout.store_lock("pinning a blob that was asked for", most_seconds=_MOST_WAIT_SECONDS):
            # Under the lock alone is a blob, or its pin, taken away: what is there now stays.
            if self._layout.blob_size(digest) is None or not (self.has(repository, digest) or is_reached()):
                return False
            for each in (self._paths.pushed, os.path.dirname(path)):
                _files.make_directory(each)
            opened = _files.open_shared(path)
            try:
                _files.truncate_file(opened)
                _moving.write_all(opened, _line(repository))
            finally:
                os.close(opened)
        return True

    def _is_fresh(self, path: str) -> bool:
        try:
            age_seconds = time.time() - os.lstat(path).st_mtime
        except FileNotFoundError:
            return False
        return 0 <= age_seconds < self._layout.limits.asked_seconds * _RENEWED_PART

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether a blob is pinned in a repository."""
        return any(_files.exists(self._path(repository, digest, each)) for each in ("", _ASKED))

    def has_any(self, repository: str) -> bool:
        """Whether anything is pinned in a repository."""
        return any(True for _ in _entries(self._paths.pushed_to(repository)))

    def unpin(self, repository: str, digest: Digest) -> None:
        """Let a blob be kept for no pin's sake any more, whoever was promised it; one that has none is no error."""
        with self._layout.store_lock("deleting a blob"):  # else somebody who just asks for it might pin it behind this
            for each in ("", _ASKED):
                _files.discard_file(self._path(repository, digest, each))

    def let_go(self, repository: str, digests: Iterable[Digest], is_kept: Callable[[], bool]) -> None:
        """Let the pins of what a manifest needs have one line less, if that manifest keeps it by then.

        Args:
            repository: its name.
            digests: what the manifest needs, each once.
            is_kept: asked under the store lock: one that has been deleted meanwhile keeps nothing.
        """
        pinned = [path for path in (self._path(repository, each) for each in digests) if _files.exists(path)]
        if not pinned:
            return
        with self._layout.store_lock("taking away what pinned a manifest's blobs"):
            for path in pinned if is_kept() else ():
                _take_line(path, len(_line(repository)))

    def _path(self, repository: str, digest: Digest, ending: str = "") -> str:
        return os.path.join(self._paths.pushed_to(repository), pin_name(digest) + ending)


def _line(repository: str) -> bytes:
    return f"{repository}\n".encode()


def _take_line(path: str, line_bytes: int) -> None:
    """Take a line from a pin, and the pin with its last one; a line that was not written to its end is one too."""
    left = (_files.size_of(path) - 1) // line_bytes
    if left <= 0:
        _files.discard_file(path)
        return
    opened = _files.open_shared(path)
    try:
        _files.truncate_file(opened, left * line_bytes)
    finally:
        os.close(opened)


class Pin(NamedTuple):
    """One pin: its path, the blob that it pins, whether it does so still, and how old it may be at least."""

    path: str
    digest: Digest
    is_young: bool
    limit_seconds: float


def iter_pushed(paths: LayoutPaths, limits: Limits) -> Iterator[Pin]:
    """Yield each pin in any repository; those that are too old pin nothing any more.

    What was asked for is kept as long as its repository is being pushed to: whoever was told of it sends the rest.
    """
    grown = _uploads_grown(paths)
    for folder in _folders(paths):
        yield from _pins_in(folder.path, grown.get(folder.name, 0.0), limits)


class PinnedBlobs:
    """Which blobs are pinned, for whoever asks again and again, and must not look at each pin each time.

    A pin that was found young counts as long as it is there. So where a folder has the same names again, and all were
    young, nothing has to be looked at: a pin that is renewed was young, and one that comes has a new name.
    """

    def __init__(self, paths: LayoutPaths, limits: Limits) -> None:
        self._paths = paths
        self._limits = limits
        self._known: dict[str, tuple[frozenset[str], dict[str, Digest]]] = {}

    def read(self) -> dict[str, Digest]:
        """Return the blobs that are pinned now, by what their files are called."""
        found: dict[str, Digest] = {}
        grown: dict[str, float] | None = None
        for folder in _folders(self._paths):
            names = frozenset(entry.name for entry in _entries(folder.path))
            known, pinned = self._known.get(folder.name, (None, {}))
            if names != known:
                grown = _uploads_grown(self._paths) if grown is None else grown
                pins = list(_pins_in(folder.path, grown.get(folder.name, 0.0), self._limits))
                pinned = {pin.digest.hex: pin.digest for pin in pins if pin.is_young}
                if all(pin.is_young for pin in pins):
                    self._known[folder.name] = names, pinned
            found.update(pinned)
        return found


def _folders(paths: LayoutPaths) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(paths.pushed) if entry.is_dir(follow_symlinks=False))


def _pins_in(folder: str, grown_seconds: float, limits: Limits) -> Iterator[Pin]:
    """Yield the pins in the folder of a repository, to which an upload has grown last at this time."""
    now_seconds = time.time()
    times = dict(_times_in(folder))
    pushed = (seconds for name, seconds in times.items() if not name.endswith(_ASKED))
    active_seconds = max(max(pushed, default=0.0), grown_seconds)
    for name, seconds in times.items():
        digest = pinned_digest(name.removesuffix(_ASKED))
        if digest is not None:
            is_young, limit_seconds = now_seconds - seconds <= limits.pushed_seconds, limits.pushed_seconds
            if name.endswith(_ASKED):
                limit_seconds = min(limit_seconds, limits.asked_seconds)
                is_young &= now_seconds - max(seconds, active_seconds) <= limit_seconds
            yield Pin(os.path.join(folder, name), digest, is_young, limit_seconds)


def _uploads_grown(paths: LayoutPaths) -> dict[str, float]:
    """Return when an upload to a repository has grown last, by the digest of the repository's name."""
    found: dict[str, float] = {}
    for name, seconds in _times_in(paths.uploads):
        if is_upload(name):
            repository = name.partition("-")[2]
            found[repository] = max(seconds, found.get(repository, 0.0))
    return found


def _times_in(folder: str) -> Iterator[tuple[str, float]]:
    for entry in _entries(folder):
        with suppress(FileNotFoundError):
            yield entry.name, entry.stat(follow_symlinks=False).st_mtime


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
