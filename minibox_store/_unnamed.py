"""A file that takes its place when it is whole, and has no name before: of whoever dies in between nothing is left.

Only where there is a file to be replaced has the new one a name of its own, for the moment between two calls: it is
that of a temporary file, and the file is whole by then. Where a file system has no files without a name, or a system
no ``/proc``, the file has such a name from the beginning, as any other has. Where it turns out at the end that it
cannot be given a name, it is copied to a file that has one.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store import _files, _moving

_OPEN_FILES = "/proc/self/fd"
_NOT_THERE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def holding_folder(path: str, *, dir_fd: int | None = None) -> Iterator[tuple[str, int | None]]:
    """Give the name of ``path`` in its folder, and the folder, for the block: wherever the process goes meanwhile.

    A relative path would lead elsewhere once the working directory has changed, by another thread perhaps.
    """
    folder, name = os.path.split(path)
    if not name:  # it names a folder, if anything
        yield path, dir_fd
        return
    directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield name, directory
    finally:
        os.close(directory)


@contextmanager
def replacing_large_file(path: str, *, dir_fd: int | None = None, durable: bool) -> Iterator[int]:
    """Do as :func:`minibox_store._files.replacing_file`, with such a file; its mode is as the umask says."""
    folder = os.path.dirname(path) or "."
    descriptor = _open(folder, dir_fd)
    if descriptor is None:
        with _files.replacing_file(path, dir_fd=dir_fd, durable=durable) as descriptor:
            yield descriptor
        return
    try:
        # Opened first: behind the replacement nothing may fail any more but the disk itself.
        with _files.opened_directory(folder, dir_fd) if durable else contextlib.nullcontext() as directory:
            yield descriptor
            if durable:
                _files.sync_file(descriptor)
            try:
                _name(descriptor, path, dir_fd)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _copy(descriptor, path, dir_fd=dir_fd, durable=durable)
            if directory is not None:
                _files.sync_file(directory)
    finally:
        os.close(descriptor)


def _open(folder: str, dir_fd: int | None) -> int | None:
    if not _files.exists(_OPEN_FILES):
        return None
    try:
        return _files.open_unnamed(folder, 0o666, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return None


def _copy(descriptor: int, path: str, *, dir_fd: int | None, durable: bool) -> None:
    stream = _moving.FileStream(descriptor, 0, os.fstat(descriptor).st_size, owns_descriptor=False)
    with _files.replacing_file(path, dir_fd=dir_fd, durable=durable) as named:
        _moving.append_stream(stream, named)


def _name(descriptor: int, path: str, dir_fd: int | None) -> None:
    try:
        _files.link_open_file(descriptor, path, dir_fd=dir_fd)
        return
    except FileExistsError:
        temporary = _files.temporary_path(path)
    _files.link_open_file(descriptor, temporary, dir_fd=dir_fd)
    try:
        _files.rename_file(temporary, path, dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            _files.remove_file(temporary, dir_fd=dir_fd)
        raise
