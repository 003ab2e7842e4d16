"""The part of the store's face that shows an image as files."""

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.graph import RememberingSource
from minibox_store.inspecting import choose_manifest
from minibox_store.layout import Layout, opening_image
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.platforms import Platform

if TYPE_CHECKING:
    from minibox_store.rootfs.files import ImageFiles


class Filesystems:
    """What a :class:`minibox_store.Store` shows of the files in its images."""

    _layout: Layout

    def open_files(
        self, name: str, *, platform: Platform | None = None, limits: UnpackLimits = DEFAULT_UNPACK_LIMITS
    ) -> "ImageFiles":
        """Return the files of an image, to be looked at and read where they lie; the caller closes it.

        The first time, each layer is read once, and an index of it is kept below ``files/`` in the store where this
        process may write there. After that, to open the image and read from it costs what is read. The indexes may be
        removed at any time, and each part of one is verified before it is used.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            platform: which manifest of an index. Where it is None: the only one, or that for linux/amd64.
            limits: the bounds within which a layer is read that has no index yet.

        Raises:
            ImageNotFound, PlatformNotFound: when there is no such image.
            IncompleteImage: when blobs of it are missing.
            InvalidDocument: when it has no file system.
            InvalidArchive: when a layer is none, or passes a bound.
            ContentMismatch: when a layer is not what the image's config says.
            MissingLibrary: for a layer in gzip or zstd where the library that reads it at random is not installed.

        Guarantees: all blobs are open before the first byte is read, so that nobody can take them away; whatever is
            read from the image was verified.
        """
        from minibox_store.rootfs.files import ImageFiles
        from minibox_store.rootfs.image_layers import read_layers
        from minibox_store.rootfs.sidecar import Sidecars

        root = self._layout.paths.root
        with file_errors(root), ExitStack() as opened:
            image = opened.enter_context(opening_image(self._layout, name))
            source = RememberingSource(image, self._layout.limits)
            with self._layout.naming_damage():
                manifest = choose_manifest(source, image.root, platform, image.name, self._layout.limits)
                layers = read_layers(source, manifest, self._layout.limits)
            return ImageFiles(
                image,
                image.name,
                manifest,
                layers,
                sidecars=Sidecars(os.path.join(root, "files")),
                limits=limits,
                where=root,
                closing=opened,
            )
