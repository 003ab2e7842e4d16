"""Which files a client may name: settled by what the kernel has opened, never by how a path is spelt.

A path is opened first, without reading or writing (``O_PATH``), and then it is asked where that lies: its folder is
followed upwards, ``..`` by ``..``, and each folder on the way is known by its device and inode. One of them must be
an allowed prefix, and none a folder of the store's own. So links, ``..`` and bind mounts say nothing that counts,
and whoever moves a file between the question and the answer moves it away from under nobody.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import attrs

from minibox_server.responses import RequestError
from minibox_store import StoreUnavailable

Identity = tuple[int, int]

# What lies directly below DataRoot and is the store's own, or its neighbours': by name, and by how a name begins.
_OWN_NAMES = frozenset(
    {
        *("blobs", "lazy", "cache", "extracted", "base_layers", "layers", "containers", "volumes", "images"),
        *("ingest", "quarantine", "history", "journal", "files", "tmp"),
    }
)
_OWN_BEGINNINGS = (
    *("index.json", "oci-layout", "state.json", "listing.cache"),
    *(".index.json.", ".oci-layout.", ".listing.cache.", "tmp-pull-", "tmp-layer-"),
)

_PINNED = os.O_PATH | os.O_CLOEXEC
_FOLDER = _PINNED | os.O_DIRECTORY
_DEEPEST = 4096
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)


@attrs.frozen
class ArchivePaths:
    """The rule about paths of one daemon.

    Raises:
        RequestError: from each method: 400 for a path that is none or leads nowhere, 403 for one that leads to
            where the daemon may not read or write.
        StoreUnavailable: from each method, when DataRoot cannot be read, so that nobody can tell what is its own.
    """

    prefixes: tuple[str, ...]
    data_root: str

    @contextmanager
    def open_archive(self, path: str) -> Iterator[BinaryIO]:
        """Open the regular file at ``path`` for reading; nothing else is ever opened, and no FIFO waited for."""
        _check_form(path)
        with self._pinned(path, _PINNED) as pinned:
            self._check_file(path, pinned)
            try:
                # The very file that was looked at, whatever stands at its path by now. It is regular, so that this
                # cannot wait; O_NONBLOCK is for a lease that somebody holds on it.
                opened = os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (PermissionError, BlockingIOError) as error:
                raise _unusable(path, error) from error
        with open(opened, "rb", buffering=0) as file:
            yield file

    @contextmanager
    def open_target(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the folder in which ``path`` may be created or replaced, and yield it with the name in it."""
        _check_form(path)
        folder, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            raise RequestError(400, f"parameter path must name a file, and {path} names a folder")
        with self._pinned(folder or "/", _FOLDER, path) as pinned:
            self._check_place(path, pinned, name)
            try:
                existing = os.stat(name, dir_fd=pinned, follow_symlinks=False)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _unusable(path, error) from error
            else:
                if not stat.S_ISREG(existing.st_mode) or _identity(existing) in self._own_identities():
                    raise _refused(path)
            try:
                # What was only pinned cannot be synced.
                target = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=pinned)
            except PermissionError as error:
                raise _unusable(path, error) from error
        with _closing(target):
            yield target, name

    @contextmanager
    def _pinned(self, path: str, flags: int, named: str | None = None) -> Iterator[int]:
        try:
            pinned = os.open(path, flags)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            self._check_nearest_folder(path, named or path)
            raise _unusable(named or path, error) from error
        with _closing(pinned):
            yield pinned

    def _check_nearest_folder(self, path: str, named: str) -> None:
        # Whether something exists outside is nobody's business either.
        while path.strip("/"):
            path = os.path.dirname(path)
            try:
                folder = os.open(path, _FOLDER)
            except OSError:
                continue
            with _closing(folder):
                self._check_place(named, folder, "")
            return

    def _check_file(self, path: str, pinned: int) -> None:
        found = os.fstat(pinned)
        real = os.readlink(f"/proc/self/fd/{pinned}")
        try:
            with _closing(os.open(os.path.dirname(real), _FOLDER)) as folder:
                beside = os.stat(os.path.basename(real), dir_fd=folder, follow_symlinks=False)
                if _identity(beside) != _identity(found):
                    raise _refused(path)
                self._check_place(path, folder, os.path.basename(real))
        except OSError:
            # It has no place (a pipe, a socket, a deleted file), or lost it meanwhile.
            raise _refused(path) from None
        if not stat.S_ISREG(found.st_mode) or _identity(found) in self._own_identities():
            raise _refused(path)

    def _check_place(self, path: str, folder: int, name: str) -> None:
        """Let ``name`` in the open ``folder`` pass, or refuse."""
        above = list(_iter_folders_above(path, folder))
        own = self._own_identities()
        # Compared while the folder is held: a file system may give inodes anew to what nobody holds.
        prefixes = {_identity(found) for prefix in self.prefixes if (found := _found(prefix)) is not None}
        if own.intersection(above) or not prefixes.intersection(above):
            raise _refused(path)
        root = _found(self.data_root)
        if root is not None and above[0] == _identity(root) and _is_own(name):
            raise _refused(path)

    def _own_identities(self) -> set[Identity]:
        """Return what lies below DataRoot by this project's names, and the folders of blobs below that."""
        try:
            names = [name for name in os.listdir(self.data_root) if _is_own(name)]
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except PermissionError as error:
            raise StoreUnavailable(self.data_root, error.strerror or "permission denied") from error
        paths = [os.path.join(self.data_root, name) for name in names]
        paths += [os.path.join(self.data_root, "blobs", name) for name in _listed(self.data_root, "blobs")]
        return {_identity(found) for path in paths if (found := _found(path)) is not None}


def _check_form(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise RequestError(400, "parameter path must be an absolute path without a NUL in it")


def _is_own(name: str) -> bool:
    # Some file systems take INDEX.JSON for the same name.
    folded = name.casefold()
    return folded in _OWN_NAMES or folded.startswith(_OWN_BEGINNINGS)


def _iter_folders_above(path: str, folder: int) -> Iterator[Identity]:
    """Yield the identity of an open folder and of each one above it, up to the root."""
    root = _identity(os.stat("/"))
    current = _open_beside(path, ".", folder)
    try:
        for _ in range(_DEEPEST):
            here = _identity(os.fstat(current))
            yield here
            above = _open_beside(path, "..", current)
            os.close(current)
            current = above
            # A folder may be mounted inside itself; only of the root is it true that above it is itself.
            if here == root and _identity(os.fstat(current)) == root:
                return
    finally:
        os.close(current)
    raise _refused(path)


def _open_beside(path: str, name: str, folder: int) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        # This user may not enter it, so that nobody can tell where it lies; or it has just been removed.
        raise _refused(path) from error


@contextmanager
def _closing(opened: int) -> Iterator[int]:
    try:
        yield opened
    finally:
        os.close(opened)


def _found(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _listed(root: str, name: str) -> list[str]:
    try:
        return os.listdir(os.path.join(root, name))
    except OSError:
        return []


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _refused(path: str) -> RequestError:
    allowed = "an archive is a regular file below MINIBOX_ARCHIVE_PREFIXES, and none of the store's own"
    return RequestError(403, f"the daemon may not read or write {path}: {allowed}")


def _unusable(path: str, error: OSError) -> RequestError:
    return RequestError(400, f"cannot use path {path}: {error.strerror}")
