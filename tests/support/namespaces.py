"""Processes that see other mounts than the test does."""

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.forks import forked, sleep_for_ever
from tests.support.stores import require_root

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE


@contextmanager
def another_namespace(
    *commands: list[str],
    root: Path | None = None,
    folder: Path | None = None,
    before: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Let a process that has a mount namespace of its own run some commands there, and yield its pid.

    Args:
        commands: what it runs first.
        root: which folder is its root then; a younger process stays in the namespace with the root that all have.
        folder: which folder it runs the commands in.
        before: what it does before all that.
    """
    require_root()

    def work(ready: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_NEW_MOUNTS) == 0
        assert libc.mount(b"none", b"/", None, _PRIVATE, None) == 0
        before()
        for command in commands:
            subprocess.run(command, check=True, timeout=10, cwd=folder)
        if root is None:
            ready()
            sleep_for_ever()
            return
        with forked(_stay):
            os.chroot(root)
            os.chdir("/")
            ready()
            sleep_for_ever()

    with forked(work) as pid:
        yield pid


def _stay(ready: Callable[[], None]) -> None:
    ready()
    sleep_for_ever()
