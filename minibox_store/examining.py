"""The half of a store's face that examines: what is wrong with it, who needs a blob, and what takes how much.

Nothing here changes anything or takes a lock, so all of it works on a store that may only be read.
"""

from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.copying import Cancellation, EventListener, ignore_events
from minibox_store.digest import Digest
from minibox_store.layout import Layout

if TYPE_CHECKING:
    from minibox_store.reports import Finding, Need, StoreUsage


class ExaminedStore:
    """What :class:`minibox_store.Store` tells of itself, beyond its images."""

    _layout: Layout

    def verify(
        self,
        *,
        parallel: int = 2,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> "tuple[Finding, ...]":
        """Walk every entry of index.json, read every byte that one of them needs, and return what was found.

        It is sorted by path, and empty where all is well; ``finding.is_damage`` tells damage from mere news.

        Args:
            parallel: how many blobs are read at once, each with a buffer of 1 MiB.
            on_event: called as the reading of each config and layer begins and goes on, from several threads;
                ``position`` and ``total`` count the blobs of the whole store.
            cancellation: ends the check when it is cancelled.

        Raises:
            StoreDamaged: when index.json cannot be read: nobody knows what should be there.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: changes nothing. An image that is removed, and collected, meanwhile is not called damaged; one that
            comes meanwhile is not looked at. What is unreferenced was so at the beginning; where a document cannot be
            read, nothing is called that.
        """
        from minibox_store.checking import check_images
        from minibox_store.image_map import ImageMap
        from minibox_store.layout.inventory import Inventory
        from minibox_store.layout.paths import relative_path

        with file_errors(self._layout.paths.root):
            inventory = Inventory(self._layout)
            images = ImageMap(limits=self._layout.limits)
            found = check_images(
                inventory,
                inventory.roots,
                images,
                path_of=relative_path,
                parallel=parallel,
                on_event=on_event,
                cancellation=cancellation,
            )
            return inventory.confirmed([*found, *inventory.findings(images)], images)

    def why(self, digest: Digest) -> "tuple[Need, ...]":
        """Return why the store keeps a blob: for each entry that needs it, in their order, the shortest way to it.

        Entries without a name count: they keep blobs alive too. It is empty where nothing needs the blob, whether
        the store holds it or not: a prune takes it, unless a running transaction holds it.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read, as the answer might lack a way.
        """
        from minibox_store.layout.inventory import map_images

        with file_errors(self._layout.paths.root):
            return tuple(map_images(self._layout)[1].needs_of(digest))

    def usage(self) -> "StoreUsage":
        """Return the bytes that the blobs of each entry take, own and shared, of all, and of those nobody needs.

        Files are counted as they are: what is missing weighs nothing.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read.
        """
        from minibox_store.image_map import weigh_images
        from minibox_store.layout.inventory import map_images
        from minibox_store.reports import StoreUsage

        with file_errors(self._layout.paths.root):
            inventory, images = map_images(self._layout)
            return StoreUsage(
                images=weigh_images(images, inventory.sizes_bytes),
                total_bytes=sum(inventory.sizes_bytes.values()),
                reclaimable_bytes=sum(inventory.unneeded(images).values()),
            )
