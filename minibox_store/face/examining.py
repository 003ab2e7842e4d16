"""The part of the store's face that examines: what an image says, what is wrong, who needs a blob, what takes how much.

Nothing here changes anything or takes a lock, so all of it works on a store that may only be read.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.cancellation import Cancellation
from minibox_store.copying import EventListener, heard, ignore_events
from minibox_store.digest import Digest, check_digest
from minibox_store.documents import Descriptor, HistoryEntry, Referrer
from minibox_store.errors import BlobNotFound
from minibox_store.face.arguments import DEFAULT_READERS
from minibox_store.kinds import check_count, check_kind
from minibox_store.layout import Layout, Listing
from minibox_store.layout_index import nameless
from minibox_store.platforms import Platform, checked_platform
from minibox_store.reports.images import Image

if TYPE_CHECKING:
    from minibox_store.graph import RememberingSource
    from minibox_store.inspecting import ReadImage
    from minibox_store.reports.inspection import ImageDetails
    from minibox_store.reports.store import Finding, Need, StoreUsage


class ExaminedStore:
    """What :class:`minibox_store.Store` tells of itself, beyond its images."""

    _layout: Layout
    _listing: Listing

    def inspect(self, name: str, *, platform: Platform | None = None) -> "ImageDetails":
        """Return all that the documents and configs of an image say.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            platform: which manifest of an index alone; None for every one, attestations too.

        Raises:
            ImageNotFound: when there is no such image.
            PlatformNotFound: when it has no manifest for the platform; with those that it has.
            IncompleteImage: when a document or config of it is missing.
            InvalidDocument: when a config has the bytes that it should have, and yet says what none may, such as a
                label that is no text; ``document`` is its digest, and ``where`` the place in it. An image may be
                pulled, saved and removed for all that. The same for a document, for a name that stands for
                something else than an image, and for an image that says more than ``limits`` let be told at once.
            StoreDamaged: when the store has other bytes than it should have.

        Guarantees: every byte that it goes by was verified now; layers are not read, and may be missing. Changes
            nothing.

        Spec: OCI image-spec 1.1, manifest.md, image-index.md, config.md.
        """
        checked_platform(platform)
        from minibox_store.inspecting import describe_manifests
        from minibox_store.manifest_choice import select_manifest
        from minibox_store.reports.inspection import ImageDetails

        def choose(source: "RememberingSource", root: Descriptor, found: str) -> Descriptor:
            if platform is None:
                return root
            return select_manifest(source, root, platform, found, self._layout.limits)

        image, read = self._read(name, choose)
        return ImageDetails(
            image=image,
            document=read.document,
            manifests=describe_manifests(read, self._layout.limits),
            absent=read.absent,
        )

    def history(self, name: str, *, platform: Platform | None = None) -> tuple[HistoryEntry, ...]:
        """Return how an image was made, the oldest step first, each with the descriptor of the layer that it made.

        A step that made none has ``empty_layer``. Every layer of the manifest is in it once, whatever the config says:
        where that speaks of another number of layers, its steps come first, without layers, and then the layers, of
        which nothing is said.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            platform: which manifest of an index. None is the only one that it has, attestations aside, or, of several,
                the one for linux/amd64, as for a pull; a name that stands for a manifest means that one.

        Raises:
            ImageNotFound, IncompleteImage, InvalidDocument: as for :meth:`inspect`.
            PlatformNotFound: when the image has no manifest for the platform; with those that it has.

        Guarantees: the texts stand as the image's maker wrote them, control characters included, and nobody has
            checked them.

        Spec: OCI image-spec 1.1, config.md, "history".
        """
        checked_platform(platform)
        from minibox_store.inspecting import describe_manifest
        from minibox_store.manifest_choice import choose_manifest

        def choose(source: "RememberingSource", root: Descriptor, found: str) -> Descriptor:
            return choose_manifest(source, root, platform, found, self._layout.limits)

        read = self._read(name, choose)[1]
        return describe_manifest(read.manifests[0], self._layout.limits).history

    def referrers(self, name: str, *, artifact_type: str | None = None) -> "tuple[Referrer, ...]":
        """Return what the store has that refers to an image: to a manifest or index of it, and to such things in turn.

        What was pulled along with an image counts, and so does what has a name of its own; the nearest comes first.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            artifact_type: which ones alone.

        Raises:
            ImageNotFound: when there is no such image.
            IncompleteImage, StoreDamaged: when a manifest or index of some image cannot be read: nobody knows to what
                it refers.

        Guarantees: each was verified now, and says that it refers to its ``subject``; whether what it says is true,
            nobody has looked. Its blobs are read by :meth:`minibox_store.Store.open_blob`.

        Spec: OCI image-spec 1.1, manifest.md, "subject".
        """
        if artifact_type is not None:
            check_kind("artifact_type", artifact_type, str)
        from minibox_store.graph import RememberingSource
        from minibox_store.layout.reading import known_referrers, reading_again
        from minibox_store.referring import gather_referrers

        def read(_: str, root: Descriptor) -> "tuple[Referrer, ...]":
            known = known_referrers(self._layout)
            source = RememberingSource(self._layout, self._layout.limits)
            return gather_referrers(source, known, root, limits=self._layout.limits)

        with file_errors(self._layout.paths.root):
            found = reading_again(self._layout, name, read)
        return tuple([each for each in found if artifact_type in (None, each.artifact_type)])

    def _read(
        self, name: str, choose: "Callable[[RememberingSource, Descriptor, str], Descriptor]"
    ) -> "tuple[Image, ReadImage]":
        """Read what lies at and below the manifest or index that is chosen from an image, and the root."""
        from minibox_store.graph import RememberingSource
        from minibox_store.inspecting import read_image
        from minibox_store.layout.reading import reading_again

        def read(found: str, entry: Descriptor) -> "tuple[Image, ReadImage]":
            source = RememberingSource(self._layout, self._layout.limits)
            root = nameless(entry)
            image = read_image(source, root, choose(source, root, found), self._layout.limits)
            if image.absent and self._layout.resolve(name).digest != root.digest:
                raise BlobNotFound(str(image.absent[0].digest))  # collected meanwhile, and not just never fetched
            return self._listing.image(found, entry, source), image

        with file_errors(self._layout.paths.root):
            return reading_again(self._layout, name, read)

    def verify(
        self,
        *,
        parallel: int = DEFAULT_READERS,
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
        from minibox_store.layout.marker import find_marker_damage
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
                on_event=heard(on_event),
                cancellation=cancellation,
            )
            # In this order: what is unreferenced is known once everything was walked.
            together = [*found, *inventory.findings(images), *find_marker_damage(self._layout)]
            return inventory.confirmed(together, images)

    def why(self, digest: Digest) -> "tuple[Need, ...]":
        """Return why the store keeps a blob: for each entry that needs it, in their order, the shortest way to it.

        Entries without a name count: they keep blobs alive too. It is empty where nothing needs the blob, whether
        the store holds it or not: a prune takes it, unless a running transaction holds it.

        Raises:
            InvalidArgument: for anything but a Digest, such as the text of one.
            IncompleteImage, StoreDamaged: when a root or a document cannot be read, as the answer might lack a way.
        """
        check_digest(digest)
        from minibox_store.layout.inventory import map_images

        with file_errors(self._layout.paths.root):
            return tuple(map_images(self._layout)[1].needs_of(digest))

    def usage(self, *, most_blobs: int = 0) -> "StoreUsage":
        """Return the bytes that the blobs of each entry take, own and shared, of all, and of those nobody needs.

        Files are counted as they are: what is missing weighs nothing.

        Args:
            most_blobs: how many of the largest blobs are told one by one, each with the images that need it.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read.
            InvalidArgument: for less than no blobs.
        """
        check_count("most_blobs", most_blobs, "it is less than nothing", least=0)
        from minibox_store.layout.inventory import weigh_images

        with file_errors(self._layout.paths.root):
            inventory, weights = weigh_images(self._layout, most_blobs=most_blobs)
            return weights.usage(inventory.pinned)
