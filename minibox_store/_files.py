"""Every change to a file system that the library makes: the only replace, link, unlink and fsync.

Each operation is one call of ``os`` from this module, and from ``_trees`` where whole trees go, so that a test can make
any of them fail, or be the last. Nothing here knows of images. Paths are the store's own; none comes from outside.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store import _trees
from minibox_store._moving import naming_errors, write_all
from minibox_store.limits import MEBIBYTE

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OWNERS = 0o600
_RENAME_EXCHANGE = 2
_LONGEST_NAME_BYTES = 255
_SUFFIX_BYTES = 22  # two dots, sixteen digits and .tmp
NOT_REGULAR = (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What is not a readable file of the size that such a file may have; anything else says nothing of the file.
DAMAGE = (*NOT_REGULAR, errno.ENOTDIR, errno.EFBIG, errno.EIO)


# ---- opening -----------------------------------------------------------------------------------------------


@contextmanager
def closing_on_error(descriptor: int) -> Iterator[None]:
    """Close an open file when the block fails: nobody is left then who would."""
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def open_regular(path: str, *, follow_links: bool = False) -> int:
    """Return a descriptor of the regular file at ``path``; never waits on a FIFO, and takes no link unless told.

    Raises:
        FileNotFoundError: when there is nothing.
        OSError: ELOOP for a link, EINVAL for any other thing that is no regular file.
    """
    descriptor = os.open(path, _REGULAR & ~os.O_NOFOLLOW if follow_links else _REGULAR)
    with closing_on_error(descriptor):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor


def open_new(path: str, flags: int = 0) -> int:
    """Create a file that only its owner may use, whatever the umask; return a descriptor to read and write."""
    descriptor = os.open(path, _NEW | flags, _OWNERS)
    with closing_on_error(descriptor):
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != _OWNERS:
            os.fchmod(descriptor, _OWNERS)
    return descriptor


def open_unnamed(folder: str, mode: int = _OWNERS, *, dir_fd: int | None = None) -> int:
    """Create a file that has no name, on the disk of ``folder``; return a descriptor to read and write."""
    return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dir_fd)


def open_shared(path: str) -> int:
    """Open a file for reading and writing, creating it for the owner alone where it is not there.

    A file that is there is not touched: it may be somebody's by the time it is open.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(FileExistsError):
            return open_new(path)


def open_readable(path: str) -> int:
    """Do as :func:`open_regular`; a file that the disk does not give, or that is closed to us, is none."""
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EACCES):
            raise OSError(errno.EINVAL, "it cannot be read", path) from error
        raise


def read_whole(path: str, limit_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: EFBIG when it is larger than ``limit_bytes``; else as :func:`open_regular`.
    """
    descriptor = open_regular(path)
    with naming_errors(path), open(descriptor, "rb", buffering=0) as file:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > limit_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {limit_bytes} bytes", path)
        # One byte more than there is, to see the end: a read takes memory for all that it might return.
        content = file.read(size_bytes + 1) or b""
        while len(content) <= limit_bytes and (more := file.read(min(MEBIBYTE, limit_bytes + 1 - len(content)))):
            content += more
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {limit_bytes} bytes", path)
    return content


def read_end(path: str, limit_bytes: int) -> bytes:
    """Return the last bytes of a regular file, at most so many; raises as :func:`open_regular`."""
    descriptor = open_regular(path)
    with naming_errors(path), open(descriptor, "rb", buffering=0) as file:
        file.seek(max(0, os.fstat(descriptor).st_size - limit_bytes))
        content = b""
        while len(content) < limit_bytes and (more := file.read(limit_bytes - len(content))):
            content += more
    return content


def fresh_name() -> str:
    """Return sixteen hexadecimal digits that nobody has seen before."""
    return os.urandom(8).hex()


# ---- names and directories ---------------------------------------------------------------------------------


def make_directory(path: str, mode: int = 0o700) -> bool:
    """Make a directory of exactly this mode, whatever the umask; return False where there is one already."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it is a link, or no folder", path) from None
        return False
    os.chmod(path, mode)
    return True


def make_directories(path: str) -> bool:
    """Make a directory for its owner alone, and every one above it that is not there; return whether one was made."""
    missing = []
    while not exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    made = [make_directory(each) for each in reversed(missing)]
    return any(made)


def exists(path: str) -> bool:
    """Whether there is something at ``path``, a link included; OSError where that cannot be told."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def size_of(path: str) -> int:
    """Return the size of what is at ``path``, 0 where there is nothing."""
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of an open file."""
    os.fchmod(descriptor, mode)


def link_file(source: str, target: str) -> None:
    """Make a hard link; FileExistsError where ``target`` exists."""
    os.link(source, target, follow_symlinks=False)


def link_open_file(descriptor: int, target: str, *, dir_fd: int | None) -> None:
    """Give an open file that has no name this one; FileExistsError where ``target`` exists."""
    # Only with a directory among its arguments, which has no part in it, does Python follow the link that /proc has.
    os.link(f"/proc/self/fd/{descriptor}", target, src_dir_fd=descriptor, dst_dir_fd=dir_fd, follow_symlinks=True)


def rename_file(source: str, target: str, *, dir_fd: int | None = None) -> None:
    """Rename, replacing ``target``: a file, or an empty directory by a directory; both relative to ``dir_fd``."""
    os.replace(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def exchange_trees(source: str, target: str, *, dir_fd: int) -> None:
    """Let two directories have each other's name in one step; in three, where the file system has none for it.

    ``source`` is called ``.NAME.<16 hexadecimal digits>.tmp``.
    """
    import ctypes  # which few need

    system = ctypes.CDLL(None, use_errno=True)
    if system.renameat2(dir_fd, os.fsencode(source), dir_fd, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), target)
    # Called as what is unfinished is: whoever collects that knows it, if the process dies between two of these.
    aside = f"{source[: -len('0123456789abcdef.tmp')]}{fresh_name()}.tmp"
    rename_file(target, aside, dir_fd=dir_fd)
    try:
        rename_file(source, target, dir_fd=dir_fd)
        try:
            rename_file(aside, source, dir_fd=dir_fd)
        except BaseException:
            rename_file(target, source, dir_fd=dir_fd)
            raise
    except BaseException:
        rename_file(aside, target, dir_fd=dir_fd)
        raise


def sync_file_system(descriptor: int) -> None:
    """Return when everything on the file system of an open file will survive a loss of power."""
    import ctypes

    system = ctypes.CDLL(None, use_errno=True)
    if system.syncfs(descriptor):
        raise OSError(number := ctypes.get_errno(), os.strerror(number))


def remove_file(path: str, *, dir_fd: int | None = None) -> None:
    """Remove a file, or a link itself; FileNotFoundError where there is none."""
    os.unlink(path, dir_fd=dir_fd)


def discard_file(path: str) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def truncate_file(descriptor: int, size_bytes: int = 0) -> None:
    """Let an open file end there, and be written on from there."""
    os.ftruncate(descriptor, size_bytes)
    os.lseek(descriptor, size_bytes, os.SEEK_SET)


def remove_directory(path: str, *, dir_fd: int | None = None) -> None:
    """Remove an empty directory, or leave one that is not empty, or gone."""
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def remove_flat(path: str, *, last: str) -> None:
    """Remove a directory of files, the one called ``last`` at the end; what is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        for name in (each for each in os.listdir(path) if each != last):
            discard_file(os.path.join(path, name))
        discard_file(os.path.join(path, last))
    remove_directory(path)


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Remove a directory and all below it, following no link and crossing no mount; of a link, the link itself.

    Raises:
        FileNotFoundError: when there is nothing.
        OSError: EBUSY where something is mounted in it.
    """
    if stat.S_ISDIR(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        _trees.remove_tree(path, dir_fd=dir_fd)
    else:
        os.unlink(path, dir_fd=dir_fd)


def sync_file(descriptor: int) -> None:
    """Return when the content of an open file will survive a loss of power."""
    os.fsync(descriptor)


def sync_regular(path: str) -> None:
    """Do as :func:`sync_file` for the regular file at ``path``; raises as :func:`open_regular`."""
    descriptor = open_regular(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Return when the names in a directory will survive a loss of power."""
    with opened_directory(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def opened_directory(path: str, dir_fd: int | None = None) -> Iterator[int]:
    """Keep a directory open for the block: what begins there is found by a shorter way."""
    descriptor = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def temporary_path(path: str) -> str:
    """Return where what is to have this path lies for as long as it is unfinished, beside it."""
    folder, name = os.path.split(path)
    if len(os.fsencode(name)) > _LONGEST_NAME_BYTES - _SUFFIX_BYTES:
        name = "file"
    return os.path.join(folder, f".{name}.{fresh_name()}.tmp")


@contextmanager
def replacing_file(path: str, *, dir_fd: int | None = None, mode: int | None = None, durable: bool) -> Iterator[int]:
    """Yield a descriptor to write a new file by; leaving the block without an error puts it at ``path``, whole.

    At every moment, and after any crash, ``path`` is the old file or the new one. With an error the new file is gone,
    and whatever was at ``path`` is untouched.

    Args:
        path: where it goes; relative to ``dir_fd`` where that is given.
        dir_fd: an open directory.
        mode: of the new file, whatever the umask; where it is None the umask decides.
        durable: whether it survives a loss of power once the block is left.
    """
    folder, temporary = os.path.dirname(path), temporary_path(path)
    # Opened first: behind the replacement nothing may fail any more but the disk itself.
    with opened_directory(folder or ".", dir_fd) if durable else contextlib.nullcontext() as directory:
        descriptor = os.open(temporary, _NEW, 0o666 if mode is None else 0o600, dir_fd=dir_fd)
        try:
            yield descriptor
            if mode is not None:
                os.fchmod(descriptor, mode)
            if durable:
                os.fsync(descriptor)
            os.replace(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                os.unlink(temporary, dir_fd=dir_fd)
            raise
        finally:
            os.close(descriptor)
        if directory is not None:
            os.fsync(directory)


def append_bytes(path: str, content: bytes, *, durable: bool = False) -> bool:
    """Add to a regular file, by one write, creating it for its owner alone; return whether it was not there.

    Args:
        path: of the file.
        content: what is added.
        durable: whether it survives a loss of power once this returns; the file's name is another matter.

    Raises:
        OSError: as :func:`open_regular`, but for a file that is not there; nothing has been written then.
    """
    descriptor = _open_to_append(path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        write_all(descriptor, content)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return status.st_size == 0


def _open_to_append(path: str) -> int:
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, _APPEND)
        with contextlib.suppress(FileExistsError):
            return open_new(path, os.O_APPEND)


def is_same_file(descriptor: int, path: str, *, dir_fd: int | None = None) -> bool:
    """Whether ``path``, relative to ``dir_fd`` where that is given, is the open file still."""
    try:
        named = os.lstat(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


def can_link(source: str, target: str) -> bool:
    """Whether the file ``source`` can have the second name ``target``, which it has if so."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        return False
    return True
