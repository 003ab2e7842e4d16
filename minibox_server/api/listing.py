"""GET /images as bytes: made anew only when the store's listing is another one, and looked for only when it may be.

Whether index.json is still the file that it was is asked on each request, in the event loop: that is one call of the
system, which waits for no disk since it was made a moment ago. Whatever has changed is so seen at once, by whichever
process it was done. What is not in index.json, such as a document that was damaged since, is looked at by the listing
itself, a few times a second at most.
"""

import os
import time

import attrs
from starlette.responses import JSONResponse

from minibox_server.api.descriptions import describe_image
from minibox_server.shared_calls import SharedCall
from minibox_server.workers import Workers
from minibox_store import Image, Store

_TRUSTED_SECONDS = 0.25
# Within so much the clock of files may stand still: a second change would not show in their times. Some file systems
# tell whole seconds.
_RACY_SECONDS = 0.1
_COARSE_RACY_SECONDS = 2.5
_NANOSECONDS = 1_000_000_000

_Signature = tuple[int, int, int, int, int]


@attrs.frozen
class _Listed:
    """The answer, when the listing was asked for it, and what index.json was just before."""

    body: bytes
    asked: float
    signature: _Signature | None


class ImageList:
    """The answer to GET /images of one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._index = os.path.join(store.root, "index.json")
        self._shared = SharedCall(workers, workers.reading, self._list)
        self._encoded: tuple[tuple[Image, ...], bytes] | None = None
        self._last: _Listed | None = None

    async def read(self) -> bytes:
        """Return the JSON array of the images, as they are now."""
        last = self._last
        is_fresh = last is not None and time.monotonic() - last.asked < _TRUSTED_SECONDS
        if last is not None and is_fresh and last.signature is not None and last.signature == self._signature():
            return last.body
        return await self._shared.result()

    def _list(self) -> bytes:
        signature, asked = self._signature(), time.monotonic()
        self._last = _Listed(self._encode(self._store.images()), asked, signature)
        return self._last.body

    def _signature(self) -> _Signature | None:
        """Return what tells one index.json from another; None where nothing does."""
        try:
            status = os.stat(self._index)
        except OSError:
            return None
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        racy_seconds = _RACY_SECONDS if changed % _NANOSECONDS else _COARSE_RACY_SECONDS
        if abs(time.time_ns() - changed) < racy_seconds * _NANOSECONDS:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _encode(self, images: tuple[Image, ...]) -> bytes:
        encoded = self._encoded
        if encoded is not None and encoded[0] is images:
            return encoded[1]
        body = bytes(JSONResponse([describe_image(image) for image in images]).body)
        self._encoded = (images, body)
        return body
