"""The folder of one transaction: it is somebody's as long as the lock in it is held, and a crash lets that go."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minibox_store import _files, _locks
from minibox_store.errors import StoreBusy
from minibox_store.layout.paths import LayoutPaths

LOCK = "lock"
_ATTEMPTS = 1000


@contextmanager
def living_folder(paths: LayoutPaths) -> Iterator[str]:
    """Make a folder in ``ingest/``, its lock held for the block; remove it, and all that is in it, behind the block."""
    folder = os.path.join(paths.ingest, _files.fresh_name())
    lock = _begin(folder)
    try:
        yield folder
    finally:
        try:
            # The lock goes last: while it is there, nobody else touches what is left. What cannot be removed is left to
            # the next collection: the work itself is done, or has failed already.
            with suppress(OSError):
                _files.remove_flat(folder, last=LOCK)
        finally:
            lock.close()  # also where an interrupt ends that: what is left would be somebody's for ever


def _begin(folder: str) -> _locks.LockFile:
    path = os.path.join(folder, LOCK)
    os.stat(os.path.dirname(folder))  # where there is no store, there is nothing to try again
    for _ in range(_ATTEMPTS):
        # Between these steps a collection may take the folder for an abandoned one: then begin again.
        with suppress(FileNotFoundError):
            _files.make_directory(folder)
            try:
                lock = _locks.locked_file(_files.open_shared(path), path)
                if lock is not None:
                    return lock
            except OSError:
                _files.remove_directory(folder)  # empty, or not ours to remove
                raise
        time.sleep(0.001)
    raise StoreBusy(path, None, None, "collecting")
