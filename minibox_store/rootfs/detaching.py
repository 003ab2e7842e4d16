"""Taking a mount away: which mount is at a directory, and how it is unmounted, by root and by a user.

Nobody is asked but the kernel: a server that hangs or is dead keeps nobody waiting.
"""

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

from minibox_store.errors import StoreUnavailable

_DETACH = 2  # MNT_DETACH
_NO_FOLLOW = 8  # UMOUNT_NOFOLLOW
_PROGRAM_FOLDERS = "/usr/local/bin:/usr/bin:/bin"
_PROGRAM_SECONDS = 10.0


def mount_id(directory: str) -> int:
    """Return which mount a directory belongs to, without asking the server of that."""
    opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{opened}").read_text().splitlines()
    finally:
        os.close(opened)
    return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def unmount(directory: str, *, lazily: bool) -> bool:
    """Unmount; return False when that is not possible because it is in use.

    Raises:
        StoreUnavailable: when it is not possible for another reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), _NO_FOLLOW | (_DETACH if lazily else 0)) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EPERM:
        return _unmount_as_user(directory, lazily=lazily)
    if number == errno.EBUSY:
        return False
    if number == errno.EINVAL:
        return True  # it is no mount any more
    raise StoreUnavailable(directory, os.strerror(number))


def _unmount_as_user(directory: str, *, lazily: bool) -> bool:
    program = shutil.which("fusermount3", path=_PROGRAM_FOLDERS)
    if program is None:
        raise StoreUnavailable(directory, "fusermount3, by which users unmount, is not installed")
    command = [program, "-u", *(["-z"] if lazily else []), "--", directory]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROGRAM_SECONDS, check=False, cwd="/"
    )
    if ended.returncode == 0:
        return True
    problem = ended.stderr.decode(errors="replace").strip()
    if os.strerror(errno.EBUSY) in problem:
        return False
    raise StoreUnavailable(directory, problem or "fusermount3 failed")
