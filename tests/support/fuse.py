"""A real FUSE server, small and in a process of its own, that a test may stop, or kill."""

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mfusepy  # type: ignore[import-untyped]  # it has no types

from tests.support.forks import forked, not_possible
from tests.support.stores import require_root

CONTENT = b"it is served\n"


class _Served(mfusepy.Operations):  # type: ignore[misc]  # for the same reason
    """A folder with one file in it."""

    use_ns = True

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready

    def init(self, path: str) -> None:
        self._ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path == "/file":
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": len(CONTENT)}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", "file"]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return CONTENT[offset : offset + size]


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Mount a server at a folder for the block, and yield its pid; at the end both are gone, whatever came of them.

    Where that is not permitted the test is skipped; where MINIBOX_REQUIRE_PEERS is 1 it fails.
    """
    require_root()
    if not os.path.exists("/dev/fuse"):
        not_possible("there is no /dev/fuse")
    folder.mkdir(parents=True, exist_ok=True)

    def serve(ready: Callable[[], None]) -> None:
        mfusepy.FUSE(_Served(ready), str(folder), foreground=True, nothreads=True, allow_other=True, fsname="test")

    try:
        with forked(serve) as pid:
            yield pid
    finally:
        while (
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, timeout=10, check=False).returncode == 0
        ):
            pass  # whatever a test has mounted on it as well
