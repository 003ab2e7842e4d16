"""Directory trees, begun, measured and removed by descriptors: no link is followed, and no mount is crossed.

One directory is open at a time, however deep a tree is, and each step up must lead to where the step down began: a part
that somebody moves away meanwhile ends the work with an error, and nothing outside the tree is touched. Mounts are told
by their numbers, since a bind mount of the same file system has the same device.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from minibox_store.values import Value

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# How a directory is opened to be entered: itself, and no link to it.
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_USABLE = 0o700

# Of a file: its device and inode.
Identity = tuple[int, int]


@attrs.frozen(kw_only=True, repr=False)
class Measure(Value):
    """What a tree weighs.

    Attributes:
        size_bytes: what its removal gives back: a file that has a name outside of the tree as well gives nothing.
        changed_seconds: when anything in it changed last, in seconds since 1970; None where not all could be seen.
        problem: why the folder that it lies in could not even be opened, so that nothing can be removed from that.
    """

    size_bytes: int
    changed_seconds: float | None
    problem: str | None = None

    @property
    def age_seconds(self) -> float | None:
        """How long ago that change was; a clock that went back makes it no younger than now."""
        return None if self.changed_seconds is None else max(0.0, time.time() - self.changed_seconds)


def is_directory(path: str) -> bool:
    """Whether a directory lies there, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def mount_of(descriptor: int) -> int:
    """Return the number of the mount that an open file was opened through.

    Raises:
        OSError: where ``/proc`` does not tell.
    """
    try:
        opened = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ENOSYS, "there is no /proc to tell mounts apart") from None
    try:
        lines = os.read(opened, 4096).splitlines()
    finally:
        os.close(opened)
    for line in lines:
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    raise OSError(errno.ENOSYS, "the system does not tell mounts apart")


def make_tree(name: str, *, dir_fd: int) -> int:
    """Make an empty directory in an open one, for its owner alone, whatever the umask; return its descriptor.

    Raises:
        FileExistsError: when something is there.
        FileNotFoundError: when somebody has removed it again already.
    """
    os.mkdir(name, _USABLE, dir_fd=dir_fd)
    with _opened(name, dir_fd, os.O_NOFOLLOW) as found:
        # By the descriptor: a link that somebody has put in its place meanwhile leads to no other.
        if stat.S_IMODE(os.fstat(found).st_mode) & _USABLE != _USABLE:
            os.chmod(f"/proc/self/fd/{found}", _USABLE)
        return os.open(".", OPEN_DIRECTORY, dir_fd=found)


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Remove a directory and all below it.

    What is gone already, somewhere below, is no error. What the owner of a directory may not do in it, for its mode
    alone, is done all the same.

    Raises:
        FileNotFoundError: when there is nothing.
        OSError: ENOTDIR or ELOOP for anything else; EBUSY where something is mounted in the tree, of which a part may
            be gone by then.
    """
    with _opened(os.path.dirname(path) or ".", dir_fd) as parent:
        name = os.path.basename(path)
        with _Descent.into(parent, name, forcing=True) as descent:
            pending = [_remove_files(descent.directory)]
            while pending:
                if pending[-1]:
                    with contextlib.suppress(FileNotFoundError):
                        descent.down(pending[-1].pop())
                        pending.append([])
                        pending[-1] = _remove_files(descent.directory)
                    continue
                pending.pop()
                if pending:
                    emptied = descent.up()
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(emptied, dir_fd=descent.directory)
        os.rmdir(name, dir_fd=parent)


def measure_tree(path: str, *, dir_fd: int | None = None) -> Measure:
    """Return what removing a tree gives back, and since when nothing in it has changed. It changes nothing.

    What is gone, or cannot be seen, counts nothing: its removal tells.
    """
    scales = _Scales()
    try:
        with _opened(os.path.dirname(path) or ".", dir_fd) as parent:
            scales.problem = None
            name = os.path.basename(path)
            scales.add(os.stat(name, dir_fd=parent, follow_symlinks=False))
            if not scales.is_directory:
                return scales.measure()
            with _Descent.into(parent, name, forcing=False) as descent:
                pending = [scales.weigh(descent.directory)]
                while pending:
                    if pending[-1]:
                        with scales.passing_over():
                            descent.down(pending[-1].pop())
                            pending.append([])
                            pending[-1] = scales.weigh(descent.directory)
                        continue
                    pending.pop()
                    if pending:
                        descent.up()
    except OSError as error:
        scales.saw_all = False
        scales.note(error)
    return scales.measure()


class _Descent:
    """A way down a tree and up again, with one open directory.

    Args:
        directory: the top; it is closed at the end.
        mount: the mount that all of it lies on.
        forcing: whether directories that their owner, who this is, may not use are made usable.
    """

    def __init__(self, directory: int, mount: int, *, forcing: bool) -> None:
        self.directory = directory
        self._mount = mount
        self._forcing = forcing
        self._names: list[str] = []
        self._above: list[Identity] = []

    @classmethod
    @contextmanager
    def into(cls, parent: int, name: str, *, forcing: bool) -> "Iterator[_Descent]":
        mount = mount_of(parent)
        descent = cls(_open_below(parent, name, mount, forcing=forcing), mount, forcing=forcing)
        try:
            yield descent
        finally:
            os.close(descent.directory)

    def down(self, name: str) -> None:
        """Go into a directory.

        Raises:
            FileNotFoundError: when it is gone.
            OSError: EBUSY when something is mounted on it.
        """
        below = _open_below(self.directory, name, self._mount, forcing=self._forcing)
        self._above.append(identity_of(self.directory))
        self._names.append(name)
        os.close(self.directory)
        self.directory = below

    def up(self) -> str:
        """Go back to where the last step down began; return the name of what was left."""
        above = os.open("..", OPEN_DIRECTORY, dir_fd=self.directory)
        os.close(self.directory)
        self.directory = above
        name = self._names.pop()
        if identity_of(above) != self._above.pop():
            raise OSError(errno.ESTALE, "it was moved meanwhile", name)
        return name


def _open_below(parent: int, name: str, mount: int, *, forcing: bool) -> int:
    try:
        opened = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        if not forcing:
            raise
        return _open_forced(parent, name, mount)
    try:
        _check_mount(opened, name, mount)
        if forcing:
            status = os.fstat(opened)
            if status.st_mode & _USABLE != _USABLE and status.st_uid == os.geteuid() != 0:
                os.fchmod(opened, _USABLE)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _open_forced(parent: int, name: str, mount: int) -> int:
    """Open a directory that its owner may not read: its mode is changed by a descriptor that needs no right to read."""
    with _opened(name, parent, os.O_NOFOLLOW) as found:
        _check_mount(found, name, mount)
        os.chmod(f"/proc/self/fd/{found}", _USABLE)
        return os.open(f"/proc/self/fd/{found}", OPEN_DIRECTORY & ~os.O_NOFOLLOW)


def _check_mount(opened: int, name: str, mount: int) -> None:
    if mount_of(opened) != mount:
        raise OSError(errno.EBUSY, "something is mounted in it", name)


def _remove_files(directory: int) -> list[str]:
    """Remove what is no directory from a directory; return the names of those that are."""
    with os.scandir(directory) as entries:
        # All names first: what is removed while a directory is listed may hide others.
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory]


class _Scales:
    """Adds up what a tree weighs."""

    def __init__(self) -> None:
        self.saw_all = True
        self.is_directory = False
        self.problem: str | None = "not opened yet"
        self._size_bytes = 0
        self._changed_seconds = 0.0
        self._links_left: dict[Identity, int] = {}

    def note(self, error: OSError) -> None:
        """Take note of what ended the weighing; what is gone is no problem."""
        if self.problem is not None:
            self.problem = None if isinstance(error, FileNotFoundError) else error.strerror

    def add(self, status: os.stat_result) -> None:
        self.is_directory = stat.S_ISDIR(status.st_mode)
        # Another name for a directory is no change in it.
        changed = status.st_mtime if self.is_directory else max(status.st_ctime, status.st_mtime)
        self._changed_seconds = max(self._changed_seconds, changed)
        if self.is_directory:
            return
        if status.st_nlink > 1:
            inode = (status.st_dev, status.st_ino)
            left = self._links_left[inode] = self._links_left.get(inode, status.st_nlink) - 1
            if left:
                return  # the last of its names gives its bytes back
        self._size_bytes += status.st_size

    def weigh(self, directory: int) -> list[str]:
        """Add all that is in a directory; return the names of the directories in it."""
        found = []
        with os.scandir(directory) as entries:
            for entry in entries:
                with self.passing_over():
                    self.add(entry.stat(follow_symlinks=False))
                    if self.is_directory:
                        found.append(entry.name)
        return found

    @contextmanager
    def passing_over(self) -> Iterator[None]:
        """Go on without what cannot be seen."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise
            self.saw_all = False

    def measure(self) -> Measure:
        changed = self._changed_seconds if self.saw_all and self._changed_seconds else None
        return Measure(size_bytes=self._size_bytes, changed_seconds=changed, problem=self.problem)


def identity_of(opened: int) -> Identity:
    """Return which file something open is."""
    status = os.fstat(opened)
    return status.st_dev, status.st_ino


@contextmanager
def _opened(path: str, dir_fd: int | None, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER | flags, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
