"""Any bytes of a layer's tar, each verified before it is handed out, wherever in the layer they lie.

The tar is read in chunks, and a chunk is compared with the digest that it had when all of the layer was verified: what
has become of the blob since, or is wrong with a place to begin at, is an error and never other bytes. A decoder that
was left somewhere is gone on with, so that who reads in order decodes once. A stream that can be entered nowhere near
is decoded once into a file without a name: nobody else sees it, nothing of it stays whatever happens, and what is read
of it is verified as well.
"""

import bisect
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from minibox_store import _moving
from minibox_store.errors import ContentMismatch
from minibox_store.limits import MEBIBYTE, UnpackLimits
from minibox_store.protocols import BlobStream
from minibox_store.rootfs.layer_index import CHUNK_BYTES, LayerIndex
from minibox_store.rootfs.layers import LayerSource
from minibox_store.rootfs.restarting import Decoder, Place, PlainDecoder, open_decoder
from minibox_store.rootfs.sidecar import Sidecars, WrongSidecar

# What is decoded in vain at most, before all of a stream is written into a file.
_FARTHEST_BYTES = 16 * MEBIBYTE
# One of zstd holds up to 128 MiB, and mostly some.
_IDLE_DECODERS = 4


class ChunkCache:
    """The chunks that were read last, of all layers of an image, in bounded memory. For several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def find(self, layer: int, number: int) -> bytes | None:
        """Return a chunk of a layer, if it is there."""
        with self._lock:
            chunk = self._chunks.get((layer, number))
            if chunk is not None:
                self._chunks.move_to_end((layer, number))
            return chunk

    def put(self, layer: int, number: int, chunk: bytes) -> None:
        """Keep a chunk, for as long as no others take its room."""
        with self._lock:
            if (layer, number) not in self._chunks:
                self._chunks[layer, number] = chunk
                self._bytes += len(chunk)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._chunks.popitem(last=False)[1])


class IdleDecoders:
    """The decoders that were used last, of all layers of an image: a few, however many layers it has.

    Its methods may be called from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[int, Decoder]] = []

    def take(self, layer: int, start: int, offset: int) -> Decoder | None:
        """Return the decoder of a layer that stands nearest before ``offset``, if one stands behind ``start``."""
        with self._lock:
            near = [each for each in self._idle if each[0] == layer and start <= each[1].position <= offset]
            if not near:
                return None
            nearest = max(near, key=lambda each: each[1].position)
            self._idle.remove(nearest)
            return nearest[1]

    def put(self, layer: int, decoder: Decoder) -> None:
        """Keep a decoder until others take its room; then it is closed."""
        with self._lock:
            self._idle.append((layer, decoder))
            oldest = self._idle.pop(0)[1] if len(self._idle) > _IDLE_DECODERS else None
        if oldest is not None:
            oldest.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, decoder in idle:
            decoder.close()


class LayerReader:
    """The tar of one layer, at random. Its methods may be called from several threads.

    Args:
        layer: which one it is.
        number: tells it from others in the cache, and among the decoders.
        index: of the layer; closed with the reader.
        rebuild: gives another index, when this one's sidecar is found to be wrong.
        cache: of chunks.
        decoders: that stand somewhere.
        sidecars: where there is room for a file without a name.
        limits: of which the window's counts.
    """

    def __init__(
        self,
        layer: LayerSource,
        number: int,
        index: LayerIndex,
        rebuild: Callable[[], LayerIndex],
        cache: ChunkCache,
        decoders: IdleDecoders,
        sidecars: Sidecars,
        limits: UnpackLimits,
    ) -> None:
        self._layer = layer
        self._number = number
        self._index = index
        self._rebuild = rebuild
        self._cache = cache
        self._decoders = decoders
        self._sidecars = sidecars
        self._limits = limits
        self._lock = threading.Lock()
        self._starts = [place.output_offset for place in index.places]
        self._spilling = threading.Lock()
        self._spilled: int | None = None
        self._may_spill = True

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Return the bytes from ``offset`` on, all that were asked for.

        Raises:
            ContentMismatch: when the blob is not what it was when it was verified.
        """
        end = offset + size_bytes
        parts = []
        while offset < end:
            number, start = divmod(offset, CHUNK_BYTES)
            part = self._chunk(number)[start : start + end - offset]
            if not part:
                raise self._mismatch("more bytes", f"{self._index.tar_bytes} bytes")
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def prepare(self) -> None:
        """Load what decodes the layer.

        Raises:
            MissingLibrary: when nothing installed does.
        """
        open_decoder(self._index.compression, self._open_at, window_log=self._limits.window_log).close()

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            spilled, self._spilled, self._may_spill = self._spilled, None, False
        if spilled is not None:
            os.close(spilled)
        self._index.close()

    def _chunk(self, number: int) -> bytes:
        chunk = self._cache.find(self._number, number)
        if chunk is None:
            chunk = self._decode(number * CHUNK_BYTES)
            actual = hashlib.sha256(chunk).digest()
            expected = self._index.chunk_digest(number)
            if actual != expected:
                raise self._mismatch(f"sha256:{expected.hex()} at chunk {number}", f"sha256:{actual.hex()}")
            self._cache.put(self._number, number, chunk)
        return chunk

    def _mismatch(self, expected: str, actual: str) -> ContentMismatch:
        return ContentMismatch(f"layer {self._layer.descriptor.digest}, decompressed", expected, actual)

    def _decode(self, offset: int) -> bytes:
        """Return the chunk at ``offset``, not verified; too few bytes where there are no more."""
        decoder = self._take_decoder(offset)
        parts, missing = [], max(0, min(CHUNK_BYTES, self._index.tar_bytes - offset))
        try:
            while decoder.position < offset and decoder.read(min(CHUNK_BYTES, offset - decoder.position)):
                pass
            while missing and decoder.position >= offset and (part := decoder.read(missing)):
                parts.append(part)
                missing -= len(part)
        finally:
            if missing:
                decoder.close()  # it stands where there is nothing to be had
        if not missing:
            self._decoders.put(self._number, decoder)
        return b"".join(parts)

    def _take_decoder(self, offset: int) -> Decoder:
        number = bisect.bisect_right(self._starts, offset) - 1
        start = self._starts[number]
        if self._index.compression == "none":
            # Whatever bytes of it are wanted, they lie where the offset says.
            return PlainDecoder(self._open_at, Place(offset, offset))
        decoder = self._decoders.take(self._number, start, offset)
        in_vain_bytes = offset - (start if decoder is None else decoder.position)
        spilled = self._spill() if in_vain_bytes > _FARTHEST_BYTES else self._spilled
        if spilled is not None:
            if decoder is not None:
                decoder.close()
            return _FileDecoder(spilled, offset)
        return decoder or open_decoder(
            self._index.compression,
            self._open_at,
            self._index.places[number],
            self._window(number),
            window_log=self._limits.window_log,
        )

    def _open_at(self, offset: int) -> BlobStream:
        return self._layer.source.open_blob(self._layer.descriptor, offset)

    def _window(self, number: int) -> bytes:
        index = self._index
        try:
            return index.window(number)
        except WrongSidecar:
            with self._lock:
                if self._index is index:
                    self._index = self._rebuild()
                    index.close()
            return self._index.window(number)

    def _spill(self) -> int | None:
        """Return a descriptor of the decoded tar, which is decoded now if it was not; None where there is no room."""
        with self._spilling:
            if self._spilled is not None or not self._may_spill:
                return self._spilled
            self._may_spill = False
            missing = self._index.tar_bytes
            descriptor = self._sidecars.open_unnamed(missing)
            if descriptor is None:
                return None
            decoder = open_decoder(self._index.compression, self._open_at, window_log=self._limits.window_log)
            try:
                while missing and (data := decoder.read(min(MEBIBYTE, missing))):
                    _moving.write_all(descriptor, data)
                    missing -= len(data)
            except OSError:
                os.close(descriptor)
                return None
            finally:
                decoder.close()
            self._spilled = descriptor
            return descriptor


class _FileDecoder:
    def __init__(self, descriptor: int, position: int) -> None:
        self._descriptor = descriptor
        self.position = position

    def read(self, size_bytes: int, /) -> bytes:
        data = os.pread(self._descriptor, size_bytes, self.position)
        self.position += len(data)
        return data

    def close(self) -> None:
        """Do nothing: the file is that of all decoders of the layer."""
