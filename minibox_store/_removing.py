"""The removal of trees that strangers have filled: by descriptors, through no link, however deep they are.

No other mount is entered: what is mounted there belongs to somebody, whether by another file system or by the same.
As in :mod:`minibox_store._files`, each operation is one call of ``os`` from this module.
"""

import errno
import os
import re
import stat

import attrs

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNERS = 0o700
_MOST_OPEN = 64
_MOUNT = re.compile(rb"^mnt_id:\s*([0-9]+)$", re.MULTILINE)


@attrs.define(eq=False)
class _Level:
    """A directory that is being emptied: what it is called, how it is open, and the directories left in it."""

    name: str
    descriptor: int
    identity: tuple[int, int]
    below: list[str]


def remove_directory_tree(parent: int, name: str) -> None:
    """Remove a directory and all below it; what somebody else removes meanwhile is no error.

    Args:
        parent: an open directory, in which ``name`` is.
        name: no path.

    Raises:
        OSError: EBUSY when something is mounted in it; ENOTDIR or ELOOP when it is no directory. What could be removed
            before is gone.
    """
    stack: list[_Level] = []
    try:
        _enter(stack, parent, name, _mount_of(parent))
        while stack:
            last = stack[-1]
            if last.below:
                _enter(stack, last.descriptor, last.below.pop(), None)
            else:
                _leave(stack, parent)
    finally:
        for level in stack:
            if level.descriptor >= 0:
                os.close(level.descriptor)


def _enter(stack: list[_Level], parent: int, name: str, mount: bytes | None) -> None:
    """Open a directory of the last level and remove the files in it."""
    try:
        opened = _open(parent, name)
    except FileNotFoundError:
        return
    level = _Level(name, opened, _identity(opened), [])
    stack.append(level)
    if _mount_of(opened) != (mount or _mount_of(parent)):
        raise OSError(errno.EBUSY, "something is mounted there", name)
    with os.scandir(opened) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for each, is_directory in found:
        if is_directory:
            level.below.append(each)
        else:
            _remove(each, opened)
    if len(stack) > _MOST_OPEN:
        far = stack[-1 - _MOST_OPEN]
        if far.descriptor >= 0:
            os.close(far.descriptor)
            far.descriptor = -1


def _leave(stack: list[_Level], parent: int) -> None:
    """Remove the last level's directory, which is empty."""
    last = stack.pop()
    try:
        if stack and stack[-1].descriptor < 0:
            stack[-1].descriptor = os.open("..", _OPEN, dir_fd=last.descriptor)
            if _identity(stack[-1].descriptor) != stack[-1].identity:
                raise OSError(errno.EBUSY, "somebody has moved it while it was removed", last.name)
    finally:
        os.close(last.descriptor)
    try:
        os.rmdir(last.name, dir_fd=stack[-1].descriptor if stack else parent)
    except FileNotFoundError:
        return


def _remove(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _open(parent: int, name: str) -> int:
    """Return a directory's descriptor; one that its owner may not use is given back to them first."""
    try:
        opened = os.open(name, _OPEN, dir_fd=parent)
    except PermissionError:
        _permit(parent, name)
        opened = os.open(name, _OPEN, dir_fd=parent)
    if os.geteuid() != 0:  # root needs no permission
        mode = stat.S_IMODE(os.fstat(opened).st_mode)
        if mode & _OWNERS != _OWNERS:
            os.fchmod(opened, mode | _OWNERS)
    return opened


def _permit(parent: int, name: str) -> None:
    opened = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{opened}", _OWNERS)
    finally:
        os.close(opened)


def _identity(opened: int) -> tuple[int, int]:
    status = os.fstat(opened)
    return status.st_dev, status.st_ino


def _mount_of(opened: int) -> bytes:
    """Return which mount a descriptor is on; a bind mount has the device of its file system, and its own number."""
    try:
        with open(f"/proc/self/fdinfo/{opened}", "rb", buffering=0) as file:
            found = _MOUNT.search(file.read(1024) or b"")
    except FileNotFoundError:  # no /proc
        found = None
    return found[1] if found else str(os.fstat(opened).st_dev).encode()
