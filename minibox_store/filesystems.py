"""The part of the store's face that shows an image as files."""

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from minibox_store import _files
from minibox_store._file_errors import file_errors
from minibox_store.digest import Digest
from minibox_store.graph import RememberingSource
from minibox_store.inspecting import choose_manifest
from minibox_store.layout import Layout, opening_image
from minibox_store.layout_index import find_name
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.platforms import Platform

if TYPE_CHECKING:
    from minibox_store.rootfs.files import ImageFiles
    from minibox_store.rootfs.mounting import Mount


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

    def mount(
        self,
        name: str,
        directory: str | os.PathLike[str] | None = None,
        *,
        platform: Platform | None = None,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
    ) -> "Mount":
        """Mount an image, read-only, through FUSE; nothing is unpacked. Return once the mount answers.

        A process of its own answers for the mount. It reads as :meth:`open_files` does, from the same indexes, and
        holds the image's blobs open. As root the mount is for everybody, within the permissions that the image gives;
        as a user it is for that user alone. What cannot be read as it was stored gives an input/output error to who
        reads it, and a sentence in the log of the process.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            directory: an empty directory. Where it is None: ``lazy/<hex of the manifest's digest>`` in the store, made
                for it, and removed with it.
            platform: as for :meth:`open_files`.
            limits: as for :meth:`open_files`.

        Raises:
            ImageNotFound and others: as :meth:`open_files`.
            InvalidPath: when the directory is none, is a link, is not empty, or has a mount already.
            MissingLibrary: when mfusepy is not installed.
            StoreUnavailable: when nothing can be mounted here, with the reason that libfuse gives.

        Guarantees: it is unmounted when it is closed, and when this process ends, in whatever way; also when the server
            gets SIGTERM, SIGINT or SIGHUP. A server that is killed outright leaves a mount that nobody answers for,
            which the next prune takes away where it is below ``lazy/``.
        """
        from minibox_store.mount_server import StoredImage
        from minibox_store.rootfs.mounting import mount_image

        layout = self._layout
        with file_errors(layout.paths.root):
            name, _ = find_name(layout.read_index(), name)
            image = StoredImage(
                root=layout.paths.root,
                name=name,
                platform=platform,
                store_limits=layout.limits,
                unpack_limits=limits,
                settle_seconds=layout.settle_seconds,
            )
            where = None if directory is None else os.path.abspath(os.fspath(directory))
            mount = mount_image(where, entry=StoredImage.__module__, image=image, place=self._place_for_mount)
            layout.activity.note_used(name)
            return mount

    def _place_for_mount(self, digest: str) -> str:
        """Make the directory at which the image with this manifest is mounted by itself."""
        lazy = os.path.join(self._layout.paths.root, "lazy")
        _files.make_directory(lazy)
        place = os.path.join(lazy, Digest.parse(digest).hex)
        _files.make_directory(place)
        return place
