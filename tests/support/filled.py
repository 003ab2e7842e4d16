"""Real file systems that are small, or full, in a file behind a loop device."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.forks import not_possible
from tests.support.stores import mounted

_MAKERS = {
    # No blocks that only root may use: what is full is full for everybody.
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}


@contextmanager
def loop_disk(folder: Path, kind: str, size_bytes: int) -> Iterator[Path]:
    """Make a file system of a kind and size in a file beside ``folder``, and mount it there for the block."""
    maker = _MAKERS[kind]
    if shutil.which(maker[0]) is None:
        not_possible(f"{maker[0]} is not installed")
    image = folder.with_name(f"{folder.name}.image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    made = subprocess.run([*maker, str(image)], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    with mounted(folder, "loop", kind=kind, device=str(image)):
        yield folder
    image.unlink()


def take_room(path: Path, *, all_but_bytes: int) -> None:
    """Make a file that takes all the room of its disk but for some."""
    with path.open("wb") as file:
        status = os.fstatvfs(file.fileno())
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - all_but_bytes)


def fill(path: Path) -> None:
    """Write to a file until its disk is full to the last byte."""
    for size_bytes in (1 << 20, 4096, 1):
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size_bytes)):
                pass
    with path.open("rb") as file:
        os.fsync(file.fileno())
