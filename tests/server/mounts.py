"""Mounts that a test makes and takes away again; without the right to, the test is skipped."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_MS_BIND = 4096
_MNT_DETACH = 2


@contextlib.contextmanager
def bind_mount(source: Path, target: Path) -> Iterator[None]:
    """Mount ``source`` at ``target`` as well."""
    with _mounted(str(source), target, None, _MS_BIND, None):
        yield


@contextlib.contextmanager
def small_disk(target: Path, size_bytes: int) -> Iterator[None]:
    """Mount a file system of this size at ``target``."""
    with _mounted("tmpfs", target, "tmpfs", 0, f"size={size_bytes}"):
        yield


@contextlib.contextmanager
def _mounted(source: str, target: Path, kind: str | None, flags: int, options: str | None) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(parents=True, exist_ok=True)
    encoded = [None if text is None else text.encode() for text in (source, str(target), kind, options)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        pytest.skip(f"no right to mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(encoded[1], _MNT_DETACH)
