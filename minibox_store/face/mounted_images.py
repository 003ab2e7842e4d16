"""The part of the store's face that mounts images."""

import os
from typing import TYPE_CHECKING

from minibox_store import _files
from minibox_store._file_errors import file_errors, path_text
from minibox_store.digest import Digest
from minibox_store.kinds import check_kind
from minibox_store.layout import Layout
from minibox_store.layout_index import find_name
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.platforms import Platform, checked_platform

if TYPE_CHECKING:
    from minibox_store.rootfs.mounting import Mount


class MountedImages:
    """How images of a :class:`minibox_store.Store` are mounted."""

    _layout: Layout

    def mount(
        self,
        name: str,
        directory: str | os.PathLike[str] | None = None,
        *,
        platform: Platform | None = None,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
    ) -> "Mount":
        """Mount an image, read-only, through FUSE; nothing is unpacked. Return once the mount answers.

        A process of its own answers for the mount. It reads as ``open_files`` does, from the same indexes, and
        holds the image's blobs open. As root the mount is for everybody, within the permissions that the image gives;
        as a user it is for that user alone. What cannot be read as it was stored gives an input/output error to who
        reads it, and a sentence in the log of the process.

        Args:
            name: which image, as for :meth:`minibox_store.Store.get`.
            directory: an empty directory. Where it is None: ``lazy/<hex of the manifest's digest>`` in the store, made
                for it, and removed with it.
            platform: as for ``open_files``.
            limits: as for ``open_files``.

        Raises:
            ImageNotFound and others: as ``open_files``.
            InvalidPath: when the directory is none, is a link, is not empty, or has a mount already.
            MissingLibrary: when mfusepy is not installed.
            StoreUnavailable: when nothing can be mounted here, with the reason that libfuse gives.

        Guarantees: it is unmounted when it is closed, and when this process ends, in whatever way; also when the server
            gets SIGTERM, SIGINT or SIGHUP. A server that is killed outright leaves a mount that nobody answers for,
            which the next prune takes away where it is below ``lazy/``.
        """
        from minibox_store.face.mount_server import StoredImage
        from minibox_store.rootfs.mounting import mount_image

        layout = self._layout
        check_kind("limits", limits, UnpackLimits)
        checked_platform(platform)
        where = None if directory is None else path_text("directory", directory)
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
            where = None if where is None else os.path.abspath(where)
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
