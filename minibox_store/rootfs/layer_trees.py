"""Trees of single layers, for overlayfs: ``extracted/<hex>``, where the hexadecimal part is that of the layer's digest.

A tree is there whole or not at all, is never changed, and serves every image that has the layer. It grows in a folder
of its own, which its maker holds a lock of, and is moved in one step; who builds one that another process has finished
meanwhile throws its own away.

An attribute of the tree, which overlayfs keeps to itself and no image can set, says by which diffID it was verified. So
an image whose config promises something else of the layer is refused, and what another program has left there is not
taken for a tree: it goes aside, named like what is unfinished, and a collection removes it once nobody mounts it.

Spec: Linux, overlayfs.rst, "whiteouts and opaque directories", "Multiple lower layers".
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

import attrs

from minibox_store import _files, _locks
from minibox_store._trees import OPEN_DIRECTORY
from minibox_store.digest import Digest
from minibox_store.errors import StoreUnavailable
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.rootfs.layers import LayerSource
from minibox_store.rootfs.ownership import OVERLAY_ATTRIBUTES, set_overlay_attribute
from minibox_store.rootfs.tree import check_nothing
from minibox_store.rootfs.unpacking import unpack_layers
from minibox_store.values import Value

_TREE = "tree"
_VERIFIED = "minibox.diff_id"
_OWNER_WRITES = 0o200


@attrs.frozen(kw_only=True, repr=False)
class LayerTrees(Value):
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
            StoreUnavailable: when something that is no directory has the tree's name.
            OSError: what the system says.
        """
        path = os.path.join(self.folder, layer.descriptor.digest.hex)
        if _is_verified(path, layer.diff_id):
            self._keep_name()
            return path
        on_begin()
        if _files.make_directory(self.folder) and self.durable:
            _files.sync_directory(os.path.dirname(self.folder))
        with self.workshop() as workshop:
            tree = os.path.join(workshop, _TREE)
            _files.make_directory(tree)
            opened = os.open(tree, OPEN_DIRECTORY)
            try:
                _set_verified(opened, layer.diff_id)  # now: by its mode the root may be closed to us then
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
        if error.errno == errno.ENOTDIR:
            raise StoreUnavailable(path, "it is there, and is no directory") from error
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if _read_attribute(path, _VERIFIED) is not None:
            return
        _replace(opened, tree, path)
    if not may_move:
        _files.set_mode(opened, mode)


def _replace(opened: int, tree: str, path: str) -> None:
    """Give a tree the name that another directory has, and leave that one aside."""
    folder, name = os.path.split(path)
    aside = f".{name}.{_files.fresh_name()}.tmp"
    _locks.try_lock(opened, tree)  # so that no collection takes it for one that was left behind
    _files.rename_file(tree, os.path.join(folder, aside))
    try:
        directory = os.open(folder, OPEN_DIRECTORY)
        try:
            _files.exchange_trees(aside, name, dir_fd=directory)
        finally:
            os.close(directory)
    except BaseException:
        _files.rename_file(os.path.join(folder, aside), tree)
        raise


def _set_verified(opened: int, diff_id: Digest) -> None:
    try:
        set_overlay_attribute(opened, _VERIFIED, str(diff_id).encode())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _is_verified(path: str, diff_id: Digest) -> bool:
    """Whether there is a tree that was verified by ``diff_id``; where no attributes are kept, whether there is one."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
        return _read_attribute(path, _VERIFIED) == str(diff_id).encode()
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return True


def _read_attribute(path: str, name: str) -> bytes | None:
    for prefix in OVERLAY_ATTRIBUTES:
        try:
            return os.getxattr(path, prefix + name, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
    return None


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
    with suppress(OSError):
        return _read_attribute(path, "opaque") == b"y"
    return False
