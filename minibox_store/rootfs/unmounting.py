"""Taking away what a FUSE server has mounted, whether it lives or not; and asking whether it lives, without waiting."""

import errno
import os
import sys
from typing import Literal

from minibox_store._mount_views import parse_mountinfo
from minibox_store._trees import mount_of

_DETACH = 2  # MNT_DETACH: out of sight at once, gone when nobody has anything of it open
_NO_LINKS = 8  # UMOUNT_NOFOLLOW
_PROGRAMS = ("fusermount3", "fusermount")
# The status of the root the kernel may have kept, and give for a server that is dead; of the file system it never is.
_ASK = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)  # the latter while it is dying
_ANSWER_SECONDS = 5.0
_END_SECONDS = 1.0

ServerState = Literal["answers", "dead", "silent"]


def mount_at(path: str) -> int:
    """Return the number of the mount that a directory lies on, without asking its server.

    Raises:
        OSError: when it is no directory, or a link.
    """
    opened = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return mount_of(opened)
    finally:
        os.close(opened)


def point_of(number: int) -> str | None:
    """Return where a mount is now, by its number: a folder above it may have been renamed.

    Returns:
        None where it is nowhere in this namespace, or something lies over it.
    """
    with open("/proc/self/mountinfo", "rb") as table:
        points = [mount.point for mount in parse_mountinfo(table.read()) if mount.number == number]
    return points[0] if points and mount_at(points[0]) == number else None


def unmount(path: str, *, dir_fd: int | None = None) -> bool:
    """Unmount what is mounted at a path, following no link; lazily, where somebody has something of it open.

    Args:
        path: of the mount point; who is not root needs its whole path.
        dir_fd: an open directory in which the last part of the path lies.

    Returns:
        Whether somebody has.

    Raises:
        OSError: EINVAL when nothing is mounted there; EPERM when this process may not.
    """
    where = path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{os.path.basename(path)}"
    try:
        try:
            _umount(where, _NO_LINKS)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _umount(where, _NO_LINKS | _DETACH)
            return True
        return False
    except PermissionError:
        return _unmount_as_user(path)


def _umount(path: str, flags: int) -> None:
    import ctypes  # it is seldom needed

    library = ctypes.CDLL(None, use_errno=True)
    if library.umount2(os.fsencode(path), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def _unmount_as_user(path: str) -> bool:
    """Let the program do it that may: it unmounts what the same user has mounted."""
    import shutil  # both are seldom needed, and slow to load
    import subprocess

    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        raise OSError(errno.EPERM, "only root may unmount it, and there is no fusermount3", path)
    said = ""
    for flags in ("-u", "-uz"):
        try:
            done = subprocess.run(
                [program, flags, "--", path],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_ANSWER_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OSError(errno.EPERM, f"{program} does not unmount it: {error}", path) from error
        if not done.returncode:
            return flags != "-u"
        said = done.stderr.decode("utf-8", "replace").strip()
    raise OSError(errno.EPERM, said or f"{program} does not unmount it", path)


def ask_server(path: str, *, answer_seconds: float = _ANSWER_SECONDS) -> ServerState:
    """Return whether the server of a FUSE mount answers, has died, or lets whoever asks wait.

    A process of its own asks: who waits for a server that stands still cannot be interrupted in any other way.
    """
    import subprocess  # it is seldom needed, and slow to load

    asking = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ASK, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return "dead" if asking.wait(answer_seconds) in _DEAD else "answers"
    except subprocess.TimeoutExpired:
        asking.kill()
        try:
            asking.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "silent"  # it ends when the server does
        return "silent"
