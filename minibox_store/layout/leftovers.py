"""What interrupted work has left in a store, and the build cache: found, and removed unless somebody uses it.

Our own transactions and partials say by their lock whether they live. Of anything else, ``/proc`` is asked.
"""

import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from minibox_store import _files, _locks, _trees
from minibox_store._mount_views import is_below, resolve_folder
from minibox_store._trees import is_directory
from minibox_store.collecting import Ledger
from minibox_store.errors import StoreBusy
from minibox_store.layout.in_use import read_usage
from minibox_store.layout.layout import Layout
from minibox_store.layout.pushed import Pin, iter_pushed
from minibox_store.layout.uploads import is_upload
from minibox_store.mounts import served_points
from minibox_store.reports.removals import Removal

# So many go at most while the store lock is held.
BATCH = 1000
_TRANSACTION = re.compile(r"[0-9a-f]{16}")
_OUR_LOCKS = {"store.lock", "store.turn", "prune.lock", "life.lock", "base_layers.lock"}
_OUR_FOLDERS = {"partial", "uploads", "pushed"}
_ABANDONED = ("temporary", "left by interrupted work")
_UNNEEDED = "it was pushed, or asked for, and no manifest has come to need it"
_TEMPORARY = re.compile(r"tmp-pull-.+|tmp-layer-.+")
_UNFINISHED_WRITE = re.compile(
    r"\.(index\.json|oci-layout|[0-9]{10}\.json|origins|names|listing\.cache)\.[0-9a-f]{16}\.tmp"
)

_Thing = TypeVar("_Thing")


def is_alive(transaction: str) -> bool:
    """Whether the process that works in a transaction's folder holds its lock still."""
    return _locks.is_locked(os.path.join(transaction, "lock"))


class Broom:
    """Removes what nobody works on any more.

    Args:
        layout: the store.
        ledger: what is done is told there.
    """

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        self._layout = layout
        self._ledger = ledger
        self._removed = ledger.removed
        self._errors = ledger.errors
        self._dry_run = ledger.dry_run

    def sweep_leftovers(self, *, build_cache: bool) -> None:
        """Remove partials, unfinished writes, other programs' temporaries, and the build cache if that is asked for."""
        paths = self._layout.paths
        with self._telling_errors(paths.partials):
            self._sweep_partials()
        with self._telling_errors(paths.root):
            there = list(_children(paths.root))
            self._sweep_unfinished_writes(there)
            beside = (path for path in there if _TEMPORARY.fullmatch(os.path.basename(path)))
            self._sweep_foreign(beside, *_ABANDONED)
        for each in (_children(os.path.join(paths.root, "tmp")), _foreign_in(paths.ingest)):
            with self._telling_errors(paths.root):
                self._sweep_foreign(each, *_ABANDONED)
        if build_cache:
            layers = os.path.join(paths.root, "layers")
            with self._telling_errors(layers):
                gone = {removal.path for removal in self._removed}
                linked = _links_below(os.path.join(paths.root, "extracted"), layers, but=gone, served=served_points())
                self._sweep_foreign(_children(layers), "build cache", "nothing uses this unpacked layer", linked)

    def sweep_transactions(self) -> None:
        """Remove the transactions of processes that have ended, so that they pin nothing any more."""
        for path in _children(self._layout.paths.ingest):
            if _TRANSACTION.fullmatch(os.path.basename(path)) and is_directory(path):
                self._ledger.pause()
                self._remove_locked(path, os.path.join(path, "lock"), "transaction", "its process has ended")

    def sweep_pushed(self) -> None:
        """Remove uploads that have not grown for too long, and pins of blobs that no manifest has come to need.

        What was written while the clock was ahead would last until that time: it begins to age now.
        """
        paths, limit_seconds = self._layout.paths, self._layout.limits.pushed_seconds
        with self._telling_errors(paths.uploads):
            for path in _children(paths.uploads):
                if not _is_upload(path):
                    self._sweep_foreign(iter((path,)), *_ABANDONED)
                elif _is_older(path, limit_seconds):
                    self._ledger.pause()
                    self._remove_locked(
                        path,
                        path,
                        "upload",
                        "it has not grown for too long",
                        lambda path: _is_older(path, limit_seconds),
                    )
        old = [pin for pin in iter_pushed(paths, self._layout.limits) if not pin.is_young]
        if self._dry_run:
            self._removed.extend(self._removal(pin.path, "pin", _UNNEEDED) for pin in old)
            return
        folders = list(filter(is_directory, _children(paths.pushed)))
        try:
            with self._telling_errors(paths.ingest):
                there = itertools.chain(_children(paths.uploads), *map(_children, folders))
                self._in_batches(list(filter(_is_ahead, there)), _renew)
            with self._telling_errors(paths.pushed):
                self._in_batches(old, self._remove_pin)
                self._in_batches(folders, _files.remove_directory)
        except StoreBusy as busy:
            if not self._removed:
                raise
            self._errors.append(str(busy))

    def _in_batches(self, things: Sequence[_Thing], remove: Callable[[_Thing], None]) -> None:
        """Remove each under the store lock; who waits for that comes in between."""
        for start in range(0, len(things), BATCH):
            self._ledger.pause()
            with self._layout.store_lock("collecting"):
                for each in things[start : start + BATCH]:
                    remove(each)

    def _remove_pin(self, pin: Pin) -> None:
        if _is_older(pin.path, pin.limit_seconds):  # it may have been pushed, or asked for, again since
            self._take(pin.path, "pin", _UNNEEDED)

    def _sweep_partials(self) -> None:
        for path in _children(self._layout.paths.partials):
            if _is_regular(path):
                self._ledger.pause()
                self._remove_locked(path, path, "partial", "nobody goes on with this download")
            else:
                self._sweep_foreign(iter((path,)), *_ABANDONED)

    def _sweep_unfinished_writes(self, there: Sequence[str]) -> None:
        paths = self._layout.paths
        for path in itertools.chain(there, *map(_children, (paths.history, paths.journal))):
            name = os.path.basename(path)
            if _UNFINISHED_WRITE.fullmatch(name) and not is_directory(path):
                self._ledger.pause()
                # Files are written anew under the store lock alone, so under it they are nobody's. A listing's cache is
                # written without: whoever is just writing one goes without it.
                if self._dry_run:
                    self._removed.append(self._removal(path, *_ABANDONED))
                    continue
                try:
                    with self._layout.store_lock("collecting"):
                        self._take(path, *_ABANDONED)
                except StoreBusy as busy:
                    if not self._removed:
                        raise
                    self._errors.append(str(busy))
                    return

    def _sweep_foreign(
        self, paths: Iterator[str], kind: str, reason: str, linked: frozenset[str] = frozenset()
    ) -> None:
        for path in paths:
            self._ledger.pause()
            # Asked anew for each: what was begun while the others went is seen too.
            user = self._who_needs(path, linked, is_cache=kind == "build cache")
            if user is not None:
                self._ledger.kept.append(f"{self._relative(path)}: {user}")
            elif self._dry_run:
                self._removed.append(self._removal(path, kind, reason))
            else:
                self._take(path, kind, reason)

    @contextmanager
    def _telling_errors(self, path: str) -> Iterator[None]:
        """Tell what the system says against a part of the work, and go on with the next: what was removed is told."""
        try:
            yield
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) and os.path.isabs(error.filename) else path
            self._errors.append(f"{self._relative(where)}: {error.strerror or error}")

    def _who_needs(self, path: str, linked: frozenset[str], *, is_cache: bool) -> str | None:
        if resolve_folder(path) in served_points():
            return "something is mounted there"  # nothing is asked of it: it may never answer
        if _is_pointed_at(path, linked):
            return "extracted/ points into it"
        usage = read_usage(self._layout.paths.root)
        return usage.who_mounts(path) if is_cache else usage.who_uses(path)

    def _remove_locked(
        self, path: str, lock_path: str, kind: str, reason: str, is_meant: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Remove what nobody holds the lock of, if it is meant still once that is held."""
        if self._dry_run:
            if not _locks.is_locked(lock_path):
                self._removed.append(self._removal(path, kind, reason))
            return
        try:
            # A transaction may have died before it made its lock; a partial is its own.
            opened = _files.open_regular(path) if path == lock_path else _files.open_shared(lock_path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._errors.append(f"{self._relative(path)}: {error.strerror}")
            return
        try:
            if _locks.try_lock(opened, lock_path) and is_meant(path):
                self._take(path, kind, reason)
        finally:
            _locks.release(opened)

    def _take(self, path: str, kind: str, reason: str) -> None:
        measure = _trees.measure_tree(path)
        if measure.problem is not None:
            self._errors.append(f"{self._relative(path)}: {measure.problem}")
        else:
            self._remove(path, self._removal(path, kind, reason, measure))

    def _remove(self, path: str, removal: Removal) -> None:
        try:
            _files.remove_tree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            # Somebody may have begun a transaction in a folder that looked abandoned, and begins again if it goes.
            if removal.kind != "transaction" or error.errno != errno.ENOTEMPTY:
                self._errors.append(f"{removal.path}: {error.strerror}")
            return
        self._removed.append(removal)

    def _removal(self, path: str, kind: str, reason: str, measure: _trees.Measure | None = None) -> Removal:
        measure = measure or _trees.measure_tree(path)
        return Removal(
            kind=kind,
            path=self._relative(path),
            size_bytes=measure.size_bytes,
            reason=reason,
            age_seconds=measure.age_seconds,
        )

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._layout.paths.root)


def _foreign_in(ingest: str) -> Iterator[str]:
    """Yield what lies there and is not ours: what other programs leave."""
    for path in _children(ingest):
        name = os.path.basename(path)
        is_transaction = _TRANSACTION.fullmatch(name) and is_directory(path)
        is_folder = name in _OUR_FOLDERS and is_directory(path)
        if not is_folder and name not in _OUR_LOCKS and not is_transaction:
            yield path


def _is_upload(path: str) -> bool:
    return is_upload(os.path.basename(path)) and _is_regular(path)


def _is_older(path: str, seconds: float) -> bool:
    """Whether a file was last written longer ago than that; where a clock was set back, none was."""
    try:
        return time.time() - os.lstat(path).st_mtime > seconds
    except FileNotFoundError:
        return False


def _is_ahead(path: str) -> bool:
    """Whether a file was last written at a time that is still to come."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime > time.time()


def _renew(path: str) -> None:
    if _is_ahead(path):  # it may have been written again
        with suppress(FileNotFoundError):  # an upload may be done
            os.utime(path, follow_symlinks=False)


def _children(folder: str) -> Iterator[str]:
    if is_directory(folder):
        yield from (os.path.join(folder, name) for name in sorted(os.listdir(folder)))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _links_below(folder: str, target: str, *, but: Container[str], served: Container[str]) -> frozenset[str]:
    """Return where the links at any depth of a folder lead, of those that lead below ``target``.

    What ``but`` has of it is gone, or would be: a dry run plans on without it. Where something ``served`` is mounted
    nothing is asked.

    Raises:
        OSError: when a part of it cannot be read: that may point anywhere.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    inside = os.path.realpath(target) + "/"
    found = set()
    top = os.path.realpath(folder)
    for base, folders, files in os.walk(top, onerror=fail):
        for names in (folders, files):
            names[:] = [name for name in names if os.path.join(base, name) not in served]
            if base == top:
                names[:] = [name for name in names if f"extracted/{name}" not in but]
        for path in (os.path.join(base, name) for name in (*folders, *files)):
            if os.path.islink(path) and (led := os.path.realpath(path)).startswith(inside):
                found.add(led)
    return frozenset(found)


def _is_pointed_at(path: str, targets: frozenset[str]) -> bool:
    resolved = os.path.realpath(path)
    return any(is_below(target, resolved) for target in targets)
