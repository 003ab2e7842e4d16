"""Garbage collection, the doing half: takes from the store what nothing needs, and never what somebody uses.

Blobs go in batches, each under the store lock and each after reading index.json and the pins of live transactions
again; so a commit waits for one batch at most, and a pull for nothing. Links are removed, never followed. What this
project does not know is left alone.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby

from minibox_store import _files, _locks
from minibox_store.collecting import NOBODY, Ledger, TreeSweeper, Watch, file_name, plan_blobs, sweep_no_trees
from minibox_store.documents import LayoutIndex, Referrer
from minibox_store.errors import Cancelled, IncompleteImage, StoreBusy, StoreDamaged, StoreError
from minibox_store.layout.ages import Youth, age_seconds
from minibox_store.layout.dead_blobs import SIDECAR, DeadBlobs
from minibox_store.layout.layout import Layout
from minibox_store.layout.leftovers import BATCH as _BATCH
from minibox_store.layout.leftovers import Broom
from minibox_store.layout.marking import IndexView, Marking, plainly
from minibox_store.layout.needs import Needs
from minibox_store.layout.pins import live_pins
from minibox_store.layout.pushed import PinnedBlobs
from minibox_store.layout.resting import collector_at_rest
from minibox_store.layout_index import names_of, without_referrers
from minibox_store.reports.removals import PruneReport, Removal


class Sweep:
    """One collection of one store.

    Args:
        layout: the store.
        build_cache: whether unpacked layers (``layers/*``) that nobody uses go too.
        dry_run: whether to tell what would go, and remove nothing; takes no lock and writes nothing then.
        keep_newer_than_seconds: blobs whose files changed since stay, though nothing needs them.
        sweep_trees: removes what is derived from images, and is told by this what is alive.
        watch: who watches.

    Attributes:
        dry_run: as it was given.
        watch: as it was given.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        build_cache: bool,
        dry_run: bool,
        keep_newer_than_seconds: float = 0.0,
        sweep_trees: TreeSweeper = sweep_no_trees,
        watch: Watch = NOBODY,
    ) -> None:
        self._layout = layout
        self._paths = layout.paths
        self._build_cache = build_cache
        self.dry_run = dry_run
        self.watch = watch
        self._youth = Youth(layout.paths.root, keep_newer_than_seconds)
        self._marking = Marking(layout, watch)
        self._pinned = PinnedBlobs(layout.paths, layout.limits)
        self._sweep_trees = sweep_trees
        self._durable_index: LayoutIndex | None = None
        self._ledger = Ledger(dry_run=dry_run, watch=watch)
        self._removed, self._kept, self._errors = self._ledger.removed, self._ledger.kept, self._ledger.errors

    def run(self) -> PruneReport:
        """Collect.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read; nothing has been removed then.
            StoreBusy: when another collection runs, or, where there are no hard links, a pull or load.
        """
        if not self._layout.is_there():
            return PruneReport(dry_run=self.dry_run)
        with self.holding_locks():
            self.mark()
            return self.collect()

    @contextmanager
    def holding_locks(self) -> Iterator[None]:
        """Keep other collections out for the block; a dry run does not.

        Raises:
            StoreBusy: as :meth:`run`.
        """
        with ExitStack() as stack:
            if not self.dry_run:
                self._take_locks(stack)
            yield

    def mark(self, view: IndexView = plainly) -> None:
        """Find what is alive, anew.

        Args:
            view: what index.json will say when the collection begins; of a dry run, what it would say.

        Raises:
            IncompleteImage, StoreDamaged: as :meth:`run`.
        """
        with collector_at_rest():
            self._marking.begin(view)

    def collect(self, names: Iterable[Removal] = ()) -> PruneReport:
        """Remove what was not found alive, under the locks; ``names`` are those that have gone before that.

        Who watches is told what has gone also where an error ends it.
        """
        self._removed.extend(names)
        try:
            self._collect()
        except (OSError, StoreError):
            if self._removed:
                self.watch.ended(self._ledger)
            raise
        self.watch.ended(self._ledger)
        return PruneReport(
            removed=tuple(self._removed),
            kept=tuple(self._kept),
            absent=tuple(sorted(self._marking.marks.absent)),
            errors=tuple(self._errors),
            dry_run=self.dry_run,
        )

    def _collect(self) -> None:
        if not self.dry_run:
            self._marking.view_plainly()
        with collector_at_rest():
            plan, sidecars = self._look()  # before pins go, which changes when a blob's file was changed last
        self._ledger.expect(plan)
        self._ledger.pause()
        broom = Broom(self._layout, self._ledger)
        broom.sweep_transactions()
        broom.sweep_pushed()
        self._sweep_blobs(plan)
        self._sweep_sidecars(sidecars)
        self._sweep_derived()
        broom.sweep_leftovers(build_cache=self._build_cache)
        if not self.dry_run:
            self._tidy_journals()
            if self._layout.durable:
                self._sync_removals()

    def _take_locks(self, stack: ExitStack) -> None:
        self._layout.prepare()
        timeout = self._layout.lock_timeout_seconds
        stack.enter_context(_locks.holding_lock(self._paths.prune_lock, doing="collecting", timeout_seconds=timeout))
        if not self._layout.has_hard_links():
            stack.enter_context(_locks.holding_lock(self._paths.life_lock, doing="collecting", timeout_seconds=timeout))

    # ---- blobs

    def _look(self) -> tuple[list[Removal], list[str]]:
        """Return the removals of the blobs that are not alive, and the path of each sidecar of a layer that is not."""
        dead = DeadBlobs(self._paths, self._marking.live_names, self._youth, self.watch.check)
        plan = plan_blobs(dead.iter_blobs(), self._marking.live_names)
        return self._referrers_first(plan), dead.sidecars

    def _referrers_first(self, plan: list[Removal]) -> list[Removal]:
        """Return the plan with what refers to something, and what it refers to, in front: they go together."""
        dead = self._marking.dead_referrers
        names = {digest.hex for each in dead for digest in (each.subject, each.descriptor.digest)}
        return sorted(plan, key=lambda removal: file_name(removal.path) not in names) if names else plan

    def _drop_referrers(self) -> None:
        """Drop the entries that are kept for what they refer to alone, which is not alive; under the store lock."""
        dead = self._marking.dead_referrers
        if not dead:
            return
        index = without_referrers(self._marking.read_index(), {each.descriptor.digest for each in dead})
        try:
            with self._layout.replacing_index(index):
                pass
        except OSError as error:
            if error.errno not in _files.NO_SPACE:
                raise
            # Room is made by what goes now; who is still named keeps all that it has until the next collection.
            self._marking.spare_dead_referrers()
            self._kept.append("what refers to images that are gone: there is no room for an index.json without it")
            return
        self._removed.extend(map(_removal_of, dead))
        self._marking.mark_new_roots()

    def _sweep_blobs(self, plan: Sequence[Removal]) -> None:
        if self.dry_run:
            self._removed.extend(map(_removal_of, self._marking.dead_referrers))
            pins = live_pins(self._layout, self._pinned)
            plan = [removal for removal in plan if file_name(removal.path) not in pins]
            self._removed.extend(removal for removal in plan if not self._is_new(removal))
            return
        planned_by = self._marking.live_names
        for batch in self._locked_batches(plan, bool(self._marking.dead_referrers)):
            try:
                self._marking.mark_new_roots()
                self._drop_referrers()
            except (IncompleteImage, StoreDamaged) as error:
                if not self._removed:
                    raise
                self._errors.append(str(error))  # what was removed is told, and nothing more goes
                return
            # A name that is gone in memory alone comes back with a loss of power, and must find its blobs then.
            if self._durable_index is not self._marking.marked:
                self._layout.sync_index()
                self._durable_index = self._marking.marked
            live_names, pins = self._marking.live_names, live_pins(self._layout, self._pinned)
            spares_new = self._youth.keep_newer_than_seconds > 0
            if live_names is planned_by and not pins and not spares_new:
                self._remove(batch)  # what was not alive in the plan is not alive now
                continue
            self._remove(
                removal
                for removal in batch
                if (name := file_name(removal.path)) not in live_names
                and name not in pins
                and not (spares_new and self._is_new(removal))
            )

    def _is_new(self, removal: Removal) -> bool:
        reason = self._youth.reason_to_keep(removal)
        if reason is not None:
            self._kept.append(reason)
        return reason is not None

    def _locked_batches(self, plan: Sequence[Removal], is_needed: bool = False) -> Iterator[Sequence[Removal]]:
        """Yield the plan in pieces, each under the store lock; who waits for that comes in between."""
        for start in range(0, len(plan) or is_needed, _BATCH):
            self._ledger.pause()
            batch = plan[start : start + _BATCH]
            try:
                with self._layout.store_lock("collecting"):
                    yield batch
            except StoreBusy as busy:
                if not self._removed:
                    raise
                self._errors.append(str(busy))  # what was removed is told, and the next collection goes on
                return
            self._ledger.settle(batch)

    def _sweep_sidecars(self, paths: Sequence[str]) -> None:
        gone = {removal.path for removal in self._removed if removal.kind == "blob"} if paths else ()
        plan = []
        for path in paths:
            layer = path.removesuffix(SIDECAR)
            if layer in gone or not self._is_there(layer):
                try:
                    status = os.lstat(f"{self._paths.root}/{path}")
                except FileNotFoundError:
                    continue
                plan.append(
                    Removal(
                        kind="sidecar",
                        path=path,
                        size_bytes=status.st_size,
                        reason="its layer is gone",
                        age_seconds=age_seconds(status),
                    )
                )
        self._ledger.expect(plan)
        if self.dry_run:
            self._removed.extend(plan)
            return
        for batch in self._locked_batches(plan):
            # The layer may have come back since.
            self._remove(each for each in batch if not self._is_there(each.path.removesuffix(SIDECAR)))

    def _sweep_derived(self) -> None:
        """Remove what was made of images that are gone: trees, mounts, and indexes of layers."""
        self._ledger.expect(())
        try:
            self._sweep_trees(Needs(self._layout, self._marking, self._ledger), self._ledger)
        except (IncompleteImage, StoreDamaged, StoreBusy) as error:
            if not self._removed:
                raise
            self._errors.append(str(error))

    def _tidy_journals(self) -> None:
        """Forget what is of use for no name and no blob any more; nothing hangs on it, and so no failure does."""
        activity, origins = self._layout.activity, self._layout.origins
        name_count = 0 if self._marking.marked is None else len(self._marking.marked.entries)
        with self._telling_errors("journal"):
            if activity.is_untidy(name_count) or origins.is_untidy(len(self._marking.live_names)):
                with self._layout.store_lock("collecting"):
                    self._marking.mark_new_roots()  # a pull may have brought in more since the last blob went
                    activity.tidy({name for name, _ in names_of(self._layout.read_index())})
                    origins.tidy(self._marking.live_names)

    @contextmanager
    def _telling_errors(self, path: str) -> Iterator[None]:
        """Tell what went wrong with housekeeping in the report: what was removed is removed."""
        try:
            yield
        except Cancelled:
            raise
        except StoreError as error:
            self._errors.append(str(error))
        except OSError as error:
            self._errors.append(f"{path}: {error.strerror}")

    def _sync_removals(self) -> None:
        """Let what was removed stay away: once for each folder that had any of it."""
        folders = {_folder_of(removal) for removal in self._removed if removal.kind not in ("name", "referrer")}
        for folder in sorted(folders):
            with suppress(FileNotFoundError):
                _files.sync_directory(os.path.join(self._paths.root, folder))

    def _is_there(self, path: str) -> bool:
        return os.path.lexists(f"{self._paths.root}/{path}")

    def _remove(self, removals: Iterable[Removal]) -> None:
        gone_before = len(self._removed)
        try:
            for folder, together in groupby(removals, key=_folder_of):
                # By names in the open folder: the way to that is long, and would be gone for each of very many.
                path = f"{self._paths.root}/{folder}"
                with self._telling_errors(folder), suppress(FileNotFoundError), _files.opened_directory(path) as opened:
                    self._remove_in(opened, together)
        except Cancelled:
            self._ledger.settle(self._removed[gone_before:])
            raise

    def _remove_in(self, folder: int, removals: Iterable[Removal]) -> None:
        for removal in removals:
            self.watch.check()
            try:
                _files.remove_file(file_name(removal.path), dir_fd=folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._errors.append(f"{removal.path}: {error.strerror}")
            else:
                self._removed.append(removal)


def _folder_of(removal: Removal) -> str:
    return removal.path.rpartition("/")[0]


def _removal_of(referrer: Referrer) -> Removal:
    digest = str(referrer.descriptor.digest)
    return Removal(kind="referrer", path=digest, size_bytes=0, reason=f"what it refers to is gone: {referrer.subject}")
