"""What a process does with locks, seen where it asks the system for them: which it takes under which, and waits for.

It takes the place of ``fcntl`` in ``minibox_store._locks``, and of ``time`` where somebody may wait for a lock. To
sleep behind a lock that was not to be had is to wait for it; one that is asked for, shared, is only looked at.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minibox_store import _locks
from minibox_store.layout import transaction, uploads

Edge = tuple[str, str]

_KINDS = {
    "prune.lock": "prune",
    "life.lock": "life",
    "base_layers.lock": "base layers",
    "lock": "transaction",
    "store.turn": "turn",
    "store.lock": "store",
}


def kind_of(path: str) -> str:
    """Return which lock of a store a path is."""
    folder, name = os.path.split(path.removesuffix(" (deleted)"))
    if os.path.basename(folder) == "base_layers":
        return "tree"
    if os.path.basename(folder) == "uploads":
        return "upload"
    if name.startswith("sha") or len(name) in (64, 128):
        return "partial"  # wherever it has gone since it was opened
    return _KINDS[name]


class LockRecords:
    """All that was taken and waited for, as edges from what was held to what was wanted then.

    Args:
        by_thread: whether each thread is somebody of its own; else its helpers hold what it holds, but for partials.
    """

    LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN

    def __init__(self, *, by_thread: bool = False) -> None:
        self.taken: set[Edge] = set()
        self.waited: set[Edge] = set()
        self.kinds: set[str] = set()
        self.waited_for: set[str] = set()
        self._by_thread = by_thread
        self._guard = threading.Lock()
        self._held: dict[int, tuple[int, str]] = {}
        self._refused: dict[int, str] = {}

    def flock(self, descriptor: int, operation: int) -> None:
        """Do as ``fcntl.flock``, and write it down."""
        me = threading.get_ident()
        if operation == fcntl.LOCK_UN:
            with self._guard:
                self._held.pop(descriptor, None)
            fcntl.flock(descriptor, operation)
            return
        kind = kind_of(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert operation & fcntl.LOCK_NB, f"{kind}: a wait without an end"
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            self._refused[me] = kind
            raise
        self._refused.pop(me, None)
        if kind == "tree" or (operation & fcntl.LOCK_SH and kind != "life"):
            return  # it is only ever tried, by everybody; or somebody asks whether it is held
        with self._guard:
            self.kinds.add(kind)
            self.taken.update((held, kind) for held in self._held_by(me))
            self._held[descriptor] = (me, kind)

    def sleep(self, seconds: float) -> None:
        """Do as ``time.sleep``; who was refused a lock waits for it."""
        me = threading.get_ident()
        if (wanted := self._refused.get(me)) is not None:
            with self._guard:
                self.waited_for.add(wanted)
                self.waited.update((held, wanted) for held in self._held_by(me))
        time.sleep(seconds)

    def _held_by(self, me: int) -> set[str]:
        shared = not self._by_thread
        return {kind for owner, kind in self._held.values() if owner == me or (shared and kind != "partial")}


class _Clock:
    """All of ``time``, with the sleep of a record."""

    def __init__(self, records: LockRecords) -> None:
        self.sleep = records.sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def recorded_locks(*, by_thread: bool = False) -> Iterator[LockRecords]:
    """Write down what this process does with locks in the block."""
    records = LockRecords(by_thread=by_thread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_locks, "fcntl", records)
        patch.setattr(_locks, "time", _Clock(records))
        patch.setattr(transaction, "time", _Clock(records))
        patch.setattr(uploads, "time", _Clock(records))
        yield records
