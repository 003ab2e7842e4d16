"""The part of the store's face that turns images into files, and shows those in them."""

import os
from functools import partial
from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors, path_errors, path_text
from minibox_store.cancellation import Cancellation, checked_cancellation
from minibox_store.copying import EventListener, heard, ignore_events
from minibox_store.documents import Descriptor
from minibox_store.events import UnpackingLayer
from minibox_store.kinds import check_kind, check_switches
from minibox_store.layout import Layout
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.platforms import Platform
from minibox_store.reports.unpacked import DEFAULT_UNPACK_POLICY, UnpackPolicy, UnpackReport

if TYPE_CHECKING:
    from minibox_store.reports.file_status import FileChanges
    from minibox_store.rootfs.files import ImageFiles


class Filesystems:
    """What a :class:`minibox_store.Store` makes of the files in an image."""

    _layout: Layout

    def unpack(
        self,
        name: str,
        directory: str | os.PathLike[str],
        *,
        policy: UnpackPolicy = DEFAULT_UNPACK_POLICY,
        platform: Platform | None = None,
        replace: bool = False,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> UnpackReport:
        """Make the tree of an image, all its layers one on the other, and return what came of it.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            directory: where the tree goes; nothing is there, or an empty directory. The folder around it is there.
            policy: what becomes of owners, devices and privileges.
            platform: which manifest of an index; None is the only one that it has, or of several the one for
                linux/amd64.
            replace: whether a directory may be there that is not empty; it is removed once the new tree has its place.
            limits: on what is decompressed and unpacked.
            on_event: called as each layer begins.
            cancellation: ends it when it is cancelled.

        Raises:
            ImageNotFound: when there is no such image.
            PlatformNotFound: when it has no manifest for the platform.
            IncompleteImage: when blobs of it are missing.
            InvalidDocument: when it is no image of files, or its config and its layers do not belong together.
            InvalidArchive: when a layer cannot be unpacked, or passes a limit.
            ContentMismatch: when a layer is not what the image's config promises.
            InvalidArgument: for a policy, a platform, or anything else, that none may be; nothing is made then.
            InvalidPath: when something else is where the tree should go, or it cannot be made there.
            StoreFull: when the tree does not fit.
            MissingLibrary: for zstd where nothing installed reads it.
            Cancelled: when ``cancellation`` was cancelled.

        Guarantees: whoever looks at ``directory`` meanwhile, or after a crash, sees what was there before or the whole
            tree, of which every byte was verified; where the file system cannot exchange two directories, nothing for
            a moment. Nothing outside it is changed, whatever the layers say: links are followed inside the tree alone.
            What an interrupted unpacking has left beside it goes with the next one to the same place. Time grows with
            the number and the size of the members and with nothing else.

        Spec: OCI image-spec 1.1, layer.md, "Applying Changesets".
        """
        from minibox_store.face.opened_layers import opening_layers
        from minibox_store.rootfs.unpacking import growing_tree, unpack_layers

        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        check_kind("policy", policy, UnpackPolicy)
        check_switches(replace=replace)
        path = path_text("directory", directory)
        opening = opening_layers(self._layout, name, platform, limits)
        with file_errors(self._layout.paths.root), opening as (_, plan, layers):
            with path_errors(path):
                path = os.path.abspath(path)
                with growing_tree(path, replace=replace, durable=self._layout.durable) as root:
                    done = unpack_layers(
                        root,
                        layers,
                        policy=policy,
                        limits=limits,
                        on_layer=partial(_tell, on_event, len(plan.layers)),
                        check=cancellation.check,
                    )
                    cancellation.check()
            return UnpackReport(
                directory=path,
                manifest_digest=str(plan.manifest.digest),
                config_digest=str(plan.config.digest),
                layers=done.layers,
                entries=done.entries,
                size_bytes=done.size_bytes,
                left_out=done.left_out,
                left_out_count=done.left_out_count,
            )

    def rootfs(
        self,
        name: str,
        *,
        platform: Platform | None = None,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
        on_event: EventListener = ignore_events,
        cancellation: Cancellation | None = None,
    ) -> str:
        r"""Return an image as the value of overlayfs's option ``lowerdir``: a tree for each layer, the top one first.

        Each layer is unpacked once, into ``extracted/`` of the store, and serves every image that has it. Nobody may
        change what is in there.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            platform: as for :meth:`unpack`.
            limits: as for :meth:`unpack`.
            on_event: called as a layer begins to be unpacked.
            cancellation: ends it when it is cancelled; trees that are whole by then stay.

        Raises:
            ImageNotFound, PlatformNotFound, IncompleteImage, InvalidDocument, InvalidArchive, ContentMismatch,
                MissingLibrary, StoreFull, Cancelled: as :meth:`unpack`.

        Guarantees: every tree is whole and verified. In the paths ``:``, ``,`` and ``\`` stand behind a backslash, as
            overlayfs reads them. For an image without layers it is an empty text.

        A mount of a single tree wants an upper directory, or a second tree, beside it. The text is as long as all
        paths together, and mount(2) takes 4,095 bytes: some thirty layers. For more, ``fsconfig`` takes the trees one
        by one, as ``lowerdir+`` (Linux 6.5). Made by another user than root, the trees are for a mount with
        ``userxattr``. A directory that a layer has something in, and does not name itself, has mode 0755 and belongs to
        root in it, whatever lower layers say; makers of layers name them. A prune takes trees that no mount uses.
        """
        from minibox_store.face.opened_layers import opening_layers
        from minibox_store.layout.living import living_folder
        from minibox_store.rootfs.layer_trees import LayerTrees, lower_directories

        on_event, cancellation = heard(on_event), checked_cancellation(cancellation)
        root = self._layout.paths.root
        with file_errors(root), opening_layers(self._layout, name, platform, limits) as (_, _, layers):
            self._layout.prepare_folders()
            trees = LayerTrees(
                folder=os.path.join(root, "extracted"),
                workshop=partial(living_folder, self._layout.paths),
                durable=self._layout.durable,
            )
            paths = []
            for position, layer in enumerate(layers, 1):
                cancellation.check()
                tell = partial(_tell, on_event, len(layers), position, layer.descriptor)
                paths.append(trees.find_or_make(layer, limits=limits, check=cancellation.check, on_begin=tell))
            return lower_directories(paths)

    def open_files(
        self, name: str, *, platform: Platform | None = None, limits: UnpackLimits = DEFAULT_UNPACK_LIMITS
    ) -> "ImageFiles":
        """Return the files of an image, to be looked at and read where they lie; the caller closes it.

        The first time, each layer is read once, and an index of it is kept below ``files/`` in the store where this
        process may write there. After that, to open the image and read from it costs what is read. The indexes may be
        removed at any time, and each part of one is verified before it is used.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            platform: as for :meth:`unpack`.
            limits: the bounds within which a layer is read that has no index yet.

        Raises:
            ImageNotFound, PlatformNotFound, IncompleteImage, InvalidDocument, InvalidArchive, ContentMismatch: as
                :meth:`unpack`.
            MissingLibrary: for a layer in gzip or zstd where the library that reads it at random is not installed.

        Guarantees: all blobs are open before the first byte is read, so that nobody can take them away; whatever is
            read from the image was verified.
        """
        from minibox_store.face.opened_layers import open_files

        return open_files(self._layout, name, platform, limits)

    def diff(
        self,
        before: str,
        after: str,
        /,
        *,
        platform: Platform | None = None,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
    ) -> "FileChanges":
        """Return how the files of one image differ from those of another one: added, removed, and changed in what.

        Contents are compared by the digests that the indexes have, and read only where they have none.

        Args:
            before: an image, as for :meth:`minibox_store.Store.get`.
            after: another one, or the same.
            platform: as for :meth:`unpack`, of both.
            limits: as for :meth:`open_files`.

        Raises:
            ImageNotFound, PlatformNotFound, IncompleteImage, InvalidDocument, InvalidArchive, ContentMismatch,
                MissingLibrary: as :meth:`open_files`.
        """
        from minibox_store.rootfs.differing import compare_files

        with (
            file_errors(self._layout.paths.root),
            self.open_files(before, platform=platform, limits=limits) as first,
            self.open_files(after, platform=platform, limits=limits) as second,
        ):
            return compare_files(first, second)


def _tell(on_event: EventListener, total: int, position: int, descriptor: Descriptor) -> None:
    on_event(UnpackingLayer(position=position, total=total, descriptor=descriptor))
