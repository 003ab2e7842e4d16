"""An image's layers into a directory that is seen when it is whole, or never.

A tree grows beside its place, in ``.NAME.<hex>.tmp``, for its owner alone, and is locked while somebody works on it: so
whoever comes to the same place next knows what a killed process has left there. It is put in its place by one rename,
or by one exchange where a tree is there already, so at every moment, and after any crash, the old one is there or the
new one.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress

from minibox_store import _files, _locks, _trees
from minibox_store._trees import OPEN_DIRECTORY
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidPath
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.reports.unpacked import DEFAULT_UNPACK_POLICY, UnpackedLayers, UnpackPolicy
from minibox_store.rootfs.decoding import LayerClock, open_layer
from minibox_store.rootfs.layers import LayerSource
from minibox_store.rootfs.tree import Form, TreeWriter, check_nothing

_LONGEST_NAME_BYTES = 255 - 22  # two dots, sixteen digits and .tmp


LayerListener = Callable[[int, Descriptor], None]


def ignore_layer(position: int, descriptor: Descriptor) -> None:
    """Take no notice of a layer."""


def unpack_layers(
    root_descriptor: int,
    layers: Iterable[LayerSource],
    *,
    policy: UnpackPolicy = DEFAULT_UNPACK_POLICY,
    form: Form = "flat",
    limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
    on_layer: LayerListener = ignore_layer,
    check: Callable[[], None] = check_nothing,
) -> UnpackedLayers:
    """Put layers into an open, empty directory, and verify each by its diffID.

    Args:
        root_descriptor: of the directory; nobody else may work in it.
        layers: the lowest first; each is asked for when the one before it is done, and may be waited for.
        policy: what becomes of owners, devices and privileges.
        form: as for :class:`minibox_store.rootfs.tree.TreeWriter`.
        limits: on what is decompressed and unpacked.
        on_layer: called as each layer begins, with its number from 1 on.
        check: called often; what it raises ends the work.

    Raises:
        InvalidArchive: when a layer is no tar, or passes a limit.
        ContentMismatch: when a layer is not what the config promises; it is in the directory then.
        OSError: what the system says of the directory.

    Guarantees: nothing outside the directory changes. What is in it counts only once this has returned.
    """
    clock: LayerClock | None = None

    def check_all() -> None:
        check()
        if clock is not None:
            clock.check()

    with closing(TreeWriter(root_descriptor, policy=policy, form=form, limits=limits, check=check_all)) as writer:
        for position, layer in enumerate(layers, 1):
            on_layer(position, layer.descriptor)
            with open_layer(layer.source, layer.descriptor, layer.diff_id, limits) as decoded:
                clock = decoded.clock
                writer.apply_layer(decoded)
                decoded.finish()
        clock = None  # what comes at the end of all is part of no layer
        return writer.finish()


# ---- the place


@contextmanager
def growing_tree(path: str, *, replace: bool = False, durable: bool = False) -> Iterator[int]:
    """Yield an open, empty directory; leaving the block without an error puts it at ``path``, whole.

    With an error it is removed again. What killed processes have left beside ``path`` is removed first.

    Args:
        path: where the tree goes, absolute; nothing, or an empty directory, is there.
        replace: whether a directory that is there may have something in it; it is removed once the new one is there.
        durable: whether the tree survives a loss of power once the block is left.

    Raises:
        InvalidPath: when something else is there, or the folder around it is not.
        OSError: what the system says.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if not name:
        raise InvalidPath(path, "the root of the file system cannot be replaced")
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_place(parent, name, path, replace)
        _remove_leftovers(parent, name, durable=durable)
        temporary, root = _begin(parent, name)
        try:
            try:
                yield root
                if durable:
                    _files.sync_file_system(root)
                _check_folder(parent, folder, path)
                replaced = _put_in_place(parent, temporary, name, path, replace)
            except BaseException:
                with suppress(OSError):  # what went wrong first is what is told
                    _files.remove_tree(temporary, dir_fd=parent)
                raise
            if durable:
                _files.sync_file(parent)
            if replaced:
                # The new tree is in its place; what of the old one cannot be removed now is left to whoever comes next.
                with suppress(OSError):
                    _files.remove_tree(temporary, dir_fd=parent)
        finally:
            _locks.release(root)
    finally:
        os.close(parent)


def _begin(parent: int, name: str) -> tuple[str, int]:
    """Make a directory for the tree, and return its name and its descriptor, by which it is locked."""
    while True:
        temporary = f"{_stem(name)}{_files.fresh_name()}.tmp"
        # Until it is locked, somebody else may take it for a leftover: then begin again.
        with suppress(FileNotFoundError):
            root = _trees.make_tree(temporary, dir_fd=parent)
            with _files.closing_on_error(root):
                if _locks.try_lock(root, temporary, dir_fd=parent):
                    return temporary, root
            os.close(root)


def _stem(name: str) -> str:
    return f".{name}." if len(os.fsencode(name)) <= _LONGEST_NAME_BYTES else ".tree."


def _check_place(parent: int, name: str, path: str, replace: bool) -> None:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidPath(path, "it is there, and is no directory")
    if not replace:
        opened = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        try:
            with os.scandir(opened) as entries:
                if any(entries):
                    raise InvalidPath(path, "it is a directory that is not empty")
        finally:
            os.close(opened)


def _check_folder(parent: int, folder: str, path: str) -> None:
    """Refuse to put a tree where nobody would look for it."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.stat(folder), os.fstat(parent)):
            return
    raise InvalidPath(path, "the folder around it was moved meanwhile")


def _put_in_place(parent: int, temporary: str, name: str, path: str, replace: bool) -> bool:
    """Give the tree its name; return whether another tree has the temporary name now."""
    try:
        # The place may be empty, or an empty directory: the system looks, and nobody comes between.
        _files.rename_file(temporary, name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.EISDIR):
            raise InvalidPath(path, "it is there, and is no directory") from error
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not replace:
            raise InvalidPath(path, "it is a directory that is not empty") from error
        _files.exchange_trees(temporary, name, dir_fd=parent)
        return True
    return False


def _remove_leftovers(parent: int, name: str, *, durable: bool) -> None:
    """Remove what unpackings to the same place have left that were killed: nobody holds its lock."""
    ours = re.compile(re.escape(_stem(name)) + r"[0-9a-f]{16}\.tmp")
    for each in os.listdir(parent):
        if not ours.fullmatch(each):
            continue
        with suppress(OSError):
            opened = os.open(each, OPEN_DIRECTORY, dir_fd=parent)
            try:
                if _locks.try_lock(opened, each, dir_fd=parent):
                    if durable:  # it may be what has just lost the place, and what a disk would give that back to
                        _files.sync_file(parent)
                    _files.remove_tree(each, dir_fd=parent)
            finally:
                _locks.release(opened)
