"""Reading what another tool may be writing at this moment: it rewrites files in place, and takes no lock of ours."""

import time
from collections.abc import Callable
from typing import TypeVar

from minibox_store import _signatures

_T = TypeVar("_T")
_PAUSE_SECONDS = 0.01
_NANOSECONDS = 1_000_000_000


def read_settled(read: Callable[[], _T], path: str, unsettled: type[Exception], seconds: float) -> _T:
    """Return what ``read`` returns, called again as long as somebody may be writing the file.

    Args:
        read: reads the file anew at each call.
        path: the file.
        unsettled: what ``read`` raises where the content may be half of what it will be.
        seconds: how long it is called again at most. A file that was last written longer ago than that is in nobody's
            hands any more: what is wrong with it is said at once, and a store full of damage costs no time.

    Raises:
        Exception: of the kind ``unsettled``, in the end; any other one at once.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return read()
        except unsettled:
            if time.monotonic() >= deadline or not _is_recent(path, seconds):
                raise
        time.sleep(_PAUSE_SECONDS)


def _is_recent(path: str, seconds: float) -> bool:
    found = _signatures.signature(path)
    return found is not None and found.mtime_nanoseconds > time.time_ns() - seconds * _NANOSECONDS
