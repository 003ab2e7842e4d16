"""The part of the store's face that keeps it in order: what is collected, and what is mended."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, heard, ignore_events
from minibox_store.face.arguments import DEFAULT_READERS, known_client
from minibox_store.kinds import check_count, check_method, check_seconds, check_switches, several
from minibox_store.layout import Layout

if TYPE_CHECKING:
    from minibox_store.filters import ImageFilter
    from minibox_store.protocols import BlobSource
    from minibox_store.registry import RegistryClient
    from minibox_store.reports.removals import PruneReport
    from minibox_store.reports.store import RepairReport


class Upkeep:
    """How a :class:`minibox_store.Store` is kept in order."""

    _layout: Layout
    _private_addresses: bool

    def prune(
        self,
        chosen_by: "ImageFilter | None" = None,
        /,
        *,
        build_cache: bool = False,
        dry_run: bool = False,
        keep_newer_than_seconds: float = 0.0,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> "PruneReport":
        """Remove what no entry of the index reaches and no running transaction holds; return what was removed.

        With the images goes what was made of them: trees under ``extracted/`` and ``base_layers/``, indexes under
        ``files/``, and FUSE mounts under ``lazy/`` and ``cache/``, also those whose server is dead. What somebody uses
        stays, and so does what nobody can tell of; the report says which.

        Args:
            chosen_by: whose names are removed first: exactly the images that ``images(chosen_by)`` shows. Without it
                no name is removed.
            build_cache: whether unpacked layers under ``layers/`` that nothing uses go too.
            dry_run: whether to return the plan, and change nothing.
            keep_newer_than_seconds: blobs whose files changed within that time stay: another tool, which takes no lock
                of ours, may be about to name what it has just written.
            on_event: called, from this thread, with :class:`minibox_store.PruneAdvanced` as marking, and removing,
                begins, each tenth of a second, and at the end. No lock is held then for which anybody waits but
                another prune, and, where there are no hard links, whoever brings an image in.
            cancellation: ends the prune between two things when it is cancelled.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read, or what the filter asks about;
                nothing has been removed then.
            StoreBusy: when another prune runs for longer than the lock's timeout, or names that the filter chose are
                written all the time.
            Cancelled: when ``cancellation`` was cancelled. Names that the filter chose have gone if anything has; the
                last event says how much, and the next prune takes the rest.

        Guarantees: names that the filter chose go in one step, before anything else does, and once all that will be
            left could be read.
        """
        from minibox_store.face.collection_progress import WatchedCollection
        from minibox_store.layout.sweeping import Sweep
        from minibox_store.rootfs.sweeping import sweep_trees

        check_seconds("keep_newer_than_seconds", keep_newer_than_seconds)
        check_switches(build_cache=build_cache, dry_run=dry_run)
        if chosen_by is not None:
            from minibox_store.filters import check_filter

            check_filter(chosen_by)
        with file_errors(self._layout.paths.root):
            sweep = Sweep(
                self._layout,
                build_cache=build_cache,
                dry_run=dry_run,
                keep_newer_than_seconds=keep_newer_than_seconds,
                sweep_trees=sweep_trees,
                watch=WatchedCollection(heard(on_event), checked_cancellation(cancellation)),
            )
            if chosen_by is None or not self._layout.is_there():
                return sweep.run()
            from minibox_store.face.choosing import prune_chosen

            return prune_chosen(self._layout, chosen_by, sweep)

    def repair(
        self,
        *,
        client: "RegistryClient | None" = None,
        sources: "Iterable[BlobSource]" = (),
        parallel: int = DEFAULT_READERS,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> "RepairReport":
        """Find what is wrong with the store, mend it where the right bytes are to be had, and tell what was done.

        An index.json that cannot be read is written anew, from the newest content before that can. Each blob that an
        image needs, and that is missing or wrong, is fetched again: from ``sources``, then from the repositories that
        it was pulled from. What was wrong is kept in ``quarantine/``, where nothing right was to be had, too; so is
        what no image needs and is wrong, as a pull might come to rely on it. What is closed to this user stays then.

        Args:
            client: how registries are spoken to; as for :meth:`pull`, where it is None. What the machine is set up for
                is asked once one is needed.
            sources: what is asked first; their bytes are not trusted.
            parallel: how many blobs are read at once.
            on_event: called as the reading, or the fetching, of each blob begins and goes on, from several threads.
            cancellation: ends the repair when it is cancelled; what was mended stays so.

        Raises:
            StoreDamaged: when index.json cannot be read, and no content before it can; nothing has changed then.
            StoreFull: when what is fetched does not fit.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: no name is removed or changed, but for entries of a damaged index.json of which a blob is gone; the
            report names them. Each blob is replaced in one step, by verified bytes. Repairing twice mends no more.
        """
        from minibox_store.face.repairing import repair
        from minibox_store.reference import Reference

        check_count("parallel", parallel, "at least one blob has to be read")
        sources = several("sources", sources)
        for each in sources:
            check_method("sources", each, "open_blob")
        opened = [] if client is None else [known_client(client)]

        def open_origin(origin: str) -> "AbstractContextManager[BlobSource]":
            if not opened:  # whatever is wrong with how the machine is set up for registries, the rest is mended
                limits, private = self._layout.limits, self._private_addresses
                opened.append(known_client(None, limits=limits, private_addresses=private))
            return opened[0].open_repository(Reference.parse(origin))

        with file_errors(self._layout.paths.root):
            return repair(
                self._layout,
                open_origin=open_origin,
                sources=sources,
                parallel=parallel,
                on_event=heard(on_event),
                cancellation=checked_cancellation(cancellation),
            )
