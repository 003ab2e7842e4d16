"""How large the store is, for whoever asks often: counted anew only when something can have changed, and seldom.

To count every blob is to read the documents of every image. So it is done at most once a minute, and not at all where
the names are what they were and no blob was taken away here; the number of images is always that of now.
"""

import asyncio
import logging
import time

import attrs

from minibox_server.workers import Workers
from minibox_store import Image, Store, StoreError

LOGGER = logging.getLogger("minibox_server")

_COUNTED_SECONDS = 60.0
# Another process may have pruned, which changes no name.
_BELIEVED_SECONDS = 3600.0


@attrs.frozen(kw_only=True)
class Size:
    """How large a store is.

    Attributes:
        images: how many names it has.
        size_bytes: of all blobs.
    """

    images: int
    size_bytes: int


class StoreSize:
    """The look at one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._looking = asyncio.Lock()
        self._counted: tuple[float, tuple[Image, ...], int] | None = None

    async def look(self) -> Size | None:
        """Return how large the store is; None where it cannot be read."""
        async with self._looking:
            try:
                return await self._workers.run(self._workers.reading, self._look)
            except StoreError as error:
                LOGGER.warning("the size of the store is not known: %s", error)
                return None

    def _look(self) -> Size:
        images = self._store.images()
        now = time.monotonic()
        last = self._counted
        if last is not None:
            age_seconds = now - last[0]
            if age_seconds < _COUNTED_SECONDS or (last[1] is images and age_seconds < _BELIEVED_SECONDS):
                return Size(images=len(images), size_bytes=last[2])
        size_bytes = self._store.usage().total_bytes
        self._counted = (now, images, size_bytes)
        return Size(images=len(images), size_bytes=size_bytes)
