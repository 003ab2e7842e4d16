"""mfusepy, bound to libfuse 3, which is found as programs find their libraries.

mfusepy alone would start ldconfig to look for one, and take libfuse 2 where both are there.
"""

import ctypes
import os
from contextlib import suppress

_NAMES = ("libfuse3.so.4", "libfuse3.so.3")
_BY_PATH, _BY_NAME = "FUSE_LIBRARY_PATH", "FUSE_LIBRARY_NAME"


def _choose() -> None:
    for name in _NAMES:
        with suppress(OSError):
            ctypes.CDLL(name)
            os.environ[_BY_PATH] = name
            return
    os.environ[_BY_NAME] = "fuse3"  # wherever mfusepy finds one


if not os.environ.get(_BY_PATH):  # mfusepy takes an empty one for none
    _choose()

import mfusepy  # type: ignore[import-untyped]  # noqa: E402  # it has annotations, and does not say so

if mfusepy.fuse_version_major != 3:
    raise OSError(f"{os.environ[_BY_PATH]} is of version {mfusepy.fuse_version_major}")

__all__ = ["mfusepy"]
