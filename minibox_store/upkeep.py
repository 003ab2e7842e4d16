"""The part of the store's face that keeps it in order: what is collected, and what is mended."""

from typing import TYPE_CHECKING

import attrs

from minibox_store._file_errors import file_errors
from minibox_store.errors import InvalidInput
from minibox_store.layout import Layout

if TYPE_CHECKING:
    from minibox_store.filters import ImageFilter
    from minibox_store.reports import PruneReport


class Upkeep:
    """How a :class:`minibox_store.Store` is kept in order."""

    _layout: Layout

    def prune(
        self,
        chosen_by: "ImageFilter | None" = None,
        /,
        *,
        build_cache: bool = False,
        dry_run: bool = False,
        keep_newer_than_seconds: float = 0.0,
    ) -> "PruneReport":
        """Remove what no entry of the index reaches and no running transaction holds; return what was removed.

        Args:
            chosen_by: whose names are removed first: exactly the images that ``images(chosen_by)`` shows. Without it
                no name is removed.
            build_cache: whether unpacked layers under ``layers/`` that nothing uses go too.
            dry_run: whether to return the plan, and change nothing.
            keep_newer_than_seconds: blobs whose files changed within that time stay: another tool, which takes no lock
                of ours, may be about to name what it has just written.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read, or what the filter asks about;
                nothing has been removed then.
            StoreBusy: when another prune runs for longer than the lock's timeout.

        Guarantees: names that the filter chose go in one step, before anything else does.
        """
        from minibox_store.choosing import choose, removals, remove_chosen, without_chosen
        from minibox_store.layout.sweeping import Sweep

        if not keep_newer_than_seconds >= 0:
            raise InvalidInput(f"keep_newer_than_seconds is {keep_newer_than_seconds}, and less than nothing")
        with file_errors(self._layout.paths.root):
            sweep = Sweep(
                self._layout,
                build_cache=build_cache,
                dry_run=dry_run,
                keep_newer_than_seconds=keep_newer_than_seconds,
            )
            if chosen_by is None:
                return sweep.run()
            if dry_run:
                chosen = choose(self._layout, chosen_by)
                report = sweep.run(lambda index: without_chosen(index, chosen))
                return attrs.evolve(report, removed=(*removals(chosen, chosen_by), *report.removed))
            gone = remove_chosen(self._layout, chosen_by)
            report = sweep.run()
            return attrs.evolve(report, removed=(*gone, *report.removed))
