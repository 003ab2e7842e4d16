"""Garbage collection, the doing half: takes from the store what nothing needs, and never what somebody uses.

Blobs go in batches, each under the store lock and each after reading index.json and the pins of live transactions
again; so a commit waits for one batch at most, and a pull for nothing. Links are removed, never followed. What this
project does not know is left alone.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

from minibox_store import _files, _locks
from minibox_store.collecting import Marks, StoredBlob, mark_index, plan_blobs
from minibox_store.digest import Digest
from minibox_store.documents import LayoutIndex
from minibox_store.errors import BlobNotFound, IncompleteImage, InvalidDigest, StoreBusy
from minibox_store.images import PruneReport, Removal
from minibox_store.layout.inventory import iter_entries, live_pins
from minibox_store.layout.layout import Layout
from minibox_store.layout.leftovers import Broom
from minibox_store.layout.paths import ALGORITHMS, HEX_LENGTHS, pinned_digest, relative_path
from minibox_store.layout_index import name_of

_T = TypeVar("_T")
_BATCH = 1000
_ATTEMPTS = 5
_SIDECAR = ".index.json"


class Sweep:
    """One collection of one store.

    Args:
        layout: the store.
        build_cache: whether unpacked layers (``layers/*``) that nobody uses go too.
        dry_run: whether to tell what would go, and remove nothing; takes no lock and writes nothing then.
    """

    def __init__(self, layout: Layout, *, build_cache: bool, dry_run: bool) -> None:
        self._layout = layout
        self._paths = layout.paths
        self._build_cache = build_cache
        self._dry_run = dry_run
        self._marks = Marks(limits=layout.limits)
        self._marked: LayoutIndex | None = None
        self._durable_index: LayoutIndex | None = None
        self._removed: list[Removal] = []
        self._errors: list[str] = []

    def run(self) -> PruneReport:
        """Collect.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read; nothing has been removed then.
            StoreBusy: when another collection runs, or, where there are no hard links, a pull or load.
        """
        if not self._layout.is_there():
            return PruneReport(dry_run=self._dry_run)
        with ExitStack() as stack:
            if not self._dry_run:
                self._take_locks(stack)
            self._mark_new_roots()
            broom = Broom(self._layout, self._removed, self._errors, dry_run=self._dry_run)
            broom.sweep_transactions()
            self._sweep_blobs()
            self._sweep_sidecars()
            broom.sweep_leftovers(build_cache=self._build_cache)
            if self._layout.durable and not self._dry_run:
                self._sync_removals()
        return PruneReport(
            removed=tuple(self._removed),
            kept=tuple(broom.kept),
            absent=tuple(sorted(self._marks.absent)),
            errors=tuple(self._errors),
            dry_run=self._dry_run,
        )

    def _take_locks(self, stack: ExitStack) -> None:
        self._layout.prepare()
        timeout = self._layout.lock_timeout_seconds
        stack.enter_context(_locks.holding_lock(self._paths.prune_lock, doing="collecting", timeout_seconds=timeout))
        if not self._layout.has_hard_links():
            stack.enter_context(_locks.holding_lock(self._paths.life_lock, doing="collecting", timeout_seconds=timeout))

    # ---- marking

    def _mark_new_roots(self) -> None:
        for _ in range(_ATTEMPTS):
            index = self._layout.read_index()
            come = [each for each in self._marks.absent.values() if _files.exists(self._paths.blob(each.digest))]
            if index is self._marked and not come:
                return
            try:
                with self._layout.naming_damage():
                    self._marks.forget(come)
                    for descriptor in come:
                        self._marks.add_root(self._layout, descriptor)
                    mark_index(self._marks, self._layout, index)
            except BlobNotFound as error:
                # A walk that stopped half-way has marked half of a graph: such marks are worth nothing.
                self._marks, self._marked = Marks(limits=self._layout.limits), None
                if self._layout.read_index() != index:
                    continue  # the name has gone meanwhile, and its blobs with it
                raise IncompleteImage(_name_of_missing(index, error.digest), (error.digest,)) from error
            self._marked = index
            return
        raise StoreBusy(self._paths.index, None, None, "changing index.json all the time")

    # ---- blobs

    def _stored_blobs(self) -> Iterator[StoredBlob]:
        live = self._marks.live
        for algorithm in ALGORITHMS:
            alive = {digest.hex for digest in live if digest.algorithm == algorithm}
            length = HEX_LENGTHS[algorithm]
            for entry in iter_entries(self._paths.blobs(algorithm)):
                # Most blobs are alive: they are passed over before a digest is made of their names.
                if len(entry.name) != length or entry.name in alive:
                    continue
                try:
                    digest = Digest(algorithm, entry.name)
                except InvalidDigest:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    yield StoredBlob(digest=digest, size_bytes=entry.stat(follow_symlinks=False).st_size)

    def _sweep_blobs(self) -> None:
        plan = plan_blobs(self._stored_blobs(), lambda digest: digest in self._marks.live, relative_path)
        if self._dry_run:
            pins = live_pins(self._paths)
            self._removed.extend(removal for digest, removal in plan if digest not in pins)
            return
        for batch in self._locked_batches(plan):
            self._mark_new_roots()
            # A name that is gone in memory alone comes back with a loss of power, and must find its blobs then.
            if self._durable_index is not self._marked:
                self._layout.sync_index()
                self._durable_index = self._marked
            pins = live_pins(self._paths)
            for digest, removal in batch:
                if digest not in self._marks.live and digest not in pins:
                    self._remove(removal)

    def _locked_batches(self, plan: Sequence[_T]) -> Iterator[Sequence[_T]]:
        """Yield the plan in pieces, each under the store lock; who waits for that comes in between."""
        for start in range(0, len(plan), _BATCH):
            try:
                with self._layout.store_lock("collecting"):
                    yield plan[start : start + _BATCH]
            except StoreBusy as busy:
                if not self._removed:
                    raise
                self._errors.append(str(busy))  # what was removed is told, and the next collection goes on
                return

    def _sweep_sidecars(self) -> None:
        gone = {removal.path for removal in self._removed}
        plan = []
        for entry in iter_entries(self._paths.blobs("sha256")):
            layer = entry.name.removesuffix(_SIDECAR)
            if layer == entry.name or pinned_digest(f"sha256-{layer}") is None or entry.is_dir(follow_symlinks=False):
                continue
            path = f"blobs/sha256/{layer}"
            if path in gone or not os.path.lexists(os.path.join(self._paths.root, path)):
                size_bytes = entry.stat(follow_symlinks=False).st_size
                reason = "its layer is gone"
                plan.append(Removal(kind="sidecar", path=path + _SIDECAR, size_bytes=size_bytes, reason=reason))
        if self._dry_run:
            self._removed.extend(plan)
            return
        for batch in self._locked_batches(plan):
            for removal in batch:
                # The layer may have come back since.
                if not os.path.lexists(os.path.join(self._paths.root, removal.path.removesuffix(_SIDECAR))):
                    self._remove(removal)

    def _sync_removals(self) -> None:
        """Let what was removed stay away: once for each folder that had any of it."""
        for folder in sorted({os.path.dirname(removal.path) for removal in self._removed}):
            with suppress(FileNotFoundError):
                _files.sync_directory(os.path.join(self._paths.root, folder))

    def _remove(self, removal: Removal) -> None:
        try:
            _files.remove_file(f"{self._paths.root}/{removal.path}")
        except FileNotFoundError:
            return
        except OSError as error:
            self._errors.append(f"{removal.path}: {error.strerror}")
            return
        self._removed.append(removal)


def _name_of_missing(index: LayoutIndex, digest: str) -> str:
    for entry in index.entries:
        if str(entry.descriptor.digest) == digest:
            return name_of(entry.descriptor) or digest
    return digest
