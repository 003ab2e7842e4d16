"""Whether the daemon is well: what is looked at, and that whoever asks learns no more than which look failed.

Anybody may ask, as often as they like, so what was found is believed for a second, and asked for by one at a time.
"""

import asyncio
import errno
import logging
import os
import time

import attrs

from minibox_server.workers import Workers
from minibox_store import Store, StoreError

LOGGER = logging.getLogger("minibox_server")

_BELIEVED_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0


@attrs.frozen(kw_only=True)
class Health:
    """What was found.

    Attributes:
        store: whether the store's folder can be read and written, or made.
        index: whether what it lists can be read.
        space: whether the file system has room.
    """

    store: bool
    index: bool
    space: bool

    @property
    def failed(self) -> tuple[str, ...]:
        """The looks that failed, by name."""
        return tuple(name for name, is_well in attrs.asdict(self).items() if not is_well)


_SILENT = Health(store=False, index=False, space=False)


class HealthCheck:
    """The look at one store.

    Args:
        store: it is only read.
        workers: where it is read.
        free_bytes: how much room there has to be.
    """

    def __init__(self, store: Store, workers: Workers, *, free_bytes: int) -> None:
        self._store = store
        self._workers = workers
        self._free_bytes = free_bytes
        self._looking = asyncio.Lock()
        self._last: tuple[float, Health] | None = None
        self._running: asyncio.Task[Health] | None = None

    async def look(self) -> Health:
        """Return how the daemon is; a store that does not answer in time is not well."""
        async with self._looking:
            if self._last is None or time.monotonic() - self._last[0] > _BELIEVED_SECONDS:
                found = await self._find()
                if found.failed and (self._last is None or self._last[1] != found):
                    LOGGER.warning("not ready: %s", ", ".join(found.failed))
                self._last = (time.monotonic(), found)
            return self._last[1]

    async def _find(self) -> Health:
        """Return what a look finds; where one has not come to its end yet, none is begun beside it.

        A store that hangs keeps one thread so, however often anybody asks.
        """
        if self._running is None or self._running.get_loop() is not asyncio.get_running_loop():
            self._running = asyncio.create_task(self._workers.run(self._workers.reading, self._look))
        await asyncio.wait((self._running,), timeout=_PATIENCE_SECONDS)
        if not self._running.done():
            return _SILENT
        ended, self._running = self._running, None
        return ended.result()

    def _look(self) -> Health:
        folder = _nearest_folder(self._store.root)
        return Health(
            store=os.access(folder, os.R_OK | os.W_OK | os.X_OK) and os.path.isdir(folder),
            index=self._has_index(),
            space=self._has_space(folder),
        )

    def _has_index(self) -> bool:
        try:
            self._store.images()
        except StoreError as error:
            LOGGER.warning("the store cannot be read: %s", error)
            return False
        return True

    def _has_space(self, folder: str) -> bool:
        try:
            found = os.statvfs(folder)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize >= self._free_bytes


def _nearest_folder(path: str) -> str:
    """Return the folder, or the one that it would be made in: a store is made when something is first put into it."""
    while path != "/":
        try:
            os.stat(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return path
            path = os.path.dirname(path)
        else:
            return path
    return path
