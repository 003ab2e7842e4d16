"""How it is told that no file of a store was added, replaced or removed, without looking at each of them.

A folder's times change with its entries. So after every file was looked at, one look at the folder is enough for a
while, on two conditions. The times a file system writes are coarse: a change within the same tick leaves no trace, so
the look that is relied on must have begun well after the folder was first seen in its state. That is measured by this
process's own clock: the file system's may be another machine's. And a file that was changed in place, which nobody may
do, leaves no trace in its folder at all: so every file is looked at again once a second.
"""

import time

import attrs

from minibox_store import _signatures
from minibox_store._signatures import FolderState
from minibox_store.layout.paths import ALGORITHMS, LayoutPaths
from minibox_store.values import Value

_LONGEST_SECONDS = 1.0
# Kernels keep their coarse clock by ticks of 1 to 10 ms; other file systems tell whole seconds, FAT every other one.
_TICK_SECONDS = 0.05
_COARSE_TICK_SECONDS = 2.5
_NANOSECONDS = 1_000_000_000

FolderStates = tuple[FolderState | None, ...]


@attrs.frozen(repr=False)
class Glance(Value):
    """The folders of the blobs as they were at one moment, before each file was looked at.

    Attributes:
        folders: their states.
        seconds: when that was, by the monotonic clock.
        is_settled: whether what changed the folders last can have changed nothing more since unseen.
    """

    folders: FolderStates
    seconds: float
    is_settled: bool

    def covers(self, later: "Glance") -> bool:
        """Whether the look that followed this glance is recent enough to be relied on at a later one."""
        return self.is_settled and self.folders == later.folders and later.seconds - self.seconds < _LONGEST_SECONDS


class BlobFolders:
    """The folders of one store's blobs. Safe for several threads."""

    def __init__(self, paths: LayoutPaths) -> None:
        self._paths = tuple(paths.blobs(algorithm) for algorithm in ALGORITHMS)
        self._first_seen: tuple[FolderStates, float] = ((), 0.0)

    def glance(self) -> Glance:
        """Look at the folders now."""
        folders = tuple([_signatures.folder_state(path) for path in self._paths])
        now = time.monotonic()
        known, since = self._first_seen
        if folders != known:
            self._first_seen = (folders, since := now)
        return Glance(folders, now, now - since >= _tick_seconds(folders))


def _tick_seconds(folders: FolderStates) -> float:
    """Return how far apart two changes of the folders must lie to be told apart by their times."""
    is_coarse = any(state is not None and state[2] % _NANOSECONDS == 0 for state in folders)
    return _COARSE_TICK_SECONDS if is_coarse else _TICK_SECONDS
