"""Trees of single layers, for overlayfs: ``extracted/<hex>``, where the hexadecimal part is that of the layer's digest.

A tree is there whole or not at all, is never changed, and serves every image that has the layer. It grows in a folder
of its own, which its maker holds a lock of, and is moved in one step; who builds one that another process has finished
meanwhile throws its own away.

Spec: Linux, overlayfs.rst, "whiteouts and opaque directories", "Multiple lower layers".
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

import attrs

from minibox_store import _files
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.rootfs.tree import check_nothing
from minibox_store.rootfs.unpacking import LayerSource, unpack_layers

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TREE = "tree"
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_OWNER_WRITES = 0o200


@attrs.frozen(kw_only=True)
class LayerTrees:
    """The trees of one store.

    Attributes:
        folder: where they are.
        workshop: gives a folder that is locked, and cleared by others once its maker has died; on the same file system.
        durable: whether a tree survives a loss of power once it is there.
    """

    folder: str
    workshop: Callable[[], AbstractContextManager[str]]
    durable: bool

    def find_or_make(
        self,
        layer: LayerSource,
        *,
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
        check: Callable[[], None] = check_nothing,
        on_begin: Callable[[], None] = check_nothing,
    ) -> str:
        """Return the path of a layer's tree, which is unpacked now where it is not there.

        Raises:
            InvalidArchive, ContentMismatch: when the layer cannot be unpacked, or is not what its config promises.
            OSError: what the system says.
        """
        path = os.path.join(self.folder, layer.descriptor.digest.hex)
        if _is_directory(path):
            self._keep_name()
            return path
        on_begin()
        if _files.make_directory(self.folder) and self.durable:
            _files.sync_directory(os.path.dirname(self.folder))
        with self.workshop() as workshop:
            tree = os.path.join(workshop, _TREE)
            _files.make_directory(tree)
            opened = os.open(tree, _DIRECTORY)
            try:
                unpack_layers(opened, [layer], form="overlay", limits=limits, check=check)
                if self.durable:
                    _files.sync_file_system(opened)
                _move(opened, tree, path)
                if self.durable:
                    _files.sync_directory(self.folder)
            finally:
                os.close(opened)
                _discard(workshop)
        return path

    def _keep_name(self) -> None:
        """Let a tree that was found survive a loss of power: who made it may have died between its name and a sync."""
        if self.durable:
            _files.sync_directory(self.folder)
            _files.sync_directory(os.path.dirname(self.folder))


def _move(opened: int, tree: str, path: str) -> None:
    """Give a tree its name, unless another process has made it meanwhile."""
    mode = stat.S_IMODE(os.fstat(opened).st_mode)
    may_move = os.geteuid() == 0 or mode & _OWNER_WRITES
    if not may_move:  # what is moved to another folder must be ours to write to
        _files.set_mode(opened, mode | _OWNER_WRITES)
    try:
        _files.rename_file(tree, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return
    if not may_move:
        _files.set_mode(opened, mode)


def _discard(workshop: str) -> None:
    with suppress(OSError):  # what is left goes with the workshop, now or in the next collection
        _files.remove_tree(os.path.join(workshop, _TREE))


def lower_directories(paths: Sequence[str]) -> str:
    r"""Return the value of overlayfs's option ``lowerdir`` for trees of layers, which are given the lowest first.

    The top layer comes first in it. A layer that an image has twice stands there once, at its highest place, as the
    lower one adds nothing; nothing is below a layer that hides all that is below it.

    >>> lower_directories(["/srv/a:b/1", "/srv/a:b/2"])
    '/srv/a\\:b/2:/srv/a\\:b/1'
    """
    chosen: list[str] = []
    for path in dict.fromkeys(reversed(paths)):
        chosen.append(path)
        if _is_opaque(path):
            break
    return ":".join(_escaped(path) for path in chosen)


def _escaped(path: str) -> str:
    return "".join(f"\\{character}" if character in "\\:," else character for character in path)


def _is_opaque(path: str) -> bool:
    for name in _OPAQUE:
        with suppress(OSError):
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
    return False


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
