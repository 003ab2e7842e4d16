"""A layer's blob to its tar: within bounds, and at its end the very bytes that the image's config promises.

The bytes are handed out before they are verified, since they are too many to be kept: who builds something from them
shows it to nobody until :meth:`DecodedLayer.finish` has returned.
"""

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from minibox_store.decompressing import PIECE_BYTES, CompressedInput, iter_decompressed
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch, InvalidArchive, StoreError, StoreUnavailable
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.listeners import is_of_listener
from minibox_store.output_bounds import OutputBounds
from minibox_store.protocols import BlobSource, BlobStream
from minibox_store.rootfs.reading_ahead import ReadingAhead

_LEAST_PIECE_BYTES = PIECE_BYTES // 2
_PIECES_AHEAD = 4

_Item = TypeVar("_Item")


class LayerClock:
    """How long the work on one layer may take, whatever is done with it. The time runs from the first question on.

    Args:
        descriptor: of the layer's blob, for the error.
        limits: of which the time counts.
    """

    def __init__(self, descriptor: Descriptor, limits: UnpackLimits) -> None:
        self._what = f"layer {descriptor.digest}"
        self._seconds = limits.seconds
        self._deadline: float | None = None

    def seconds_left(self) -> float:
        """Return how long it may take still."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._seconds
        return self._deadline - now

    def check(self) -> None:
        """Return if there is time left.

        Raises:
            InvalidArchive: when there is none.
        """
        if self.seconds_left() < 0:
            raise self.too_slow()

    def too_slow(self) -> StoreError:
        """Return the error that says so."""
        return InvalidArchive(f"{self._what} takes longer than {self._seconds:g} seconds, which is the limit")

    def iter_in_time(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield each item as long as there is time for it, and for what was done with the one before."""
        for item in items:
            self.check()
            yield item
        self.check()


def open_layer(
    source: BlobSource, descriptor: Descriptor, diff_id: Digest, limits: UnpackLimits = DEFAULT_UNPACK_LIMITS
) -> "DecodedLayer":
    """Return the tar of a layer, whatever it is compressed with; the caller closes it.

    Args:
        source: holds the blob; neither its bytes nor its media type are trusted.
        descriptor: of the blob.
        diff_id: the digest of the tar, from the image's config.
        limits: the time runs from the first read on.

    Raises:
        BlobNotFound: when the source does not hold the blob.

    Spec: OCI image-spec 1.1, config.md, "Layer DiffID".
    """
    return DecodedLayer(source.open_blob(descriptor), descriptor, diff_id, limits)


class DecodedLayer:
    """The bytes of a layer's tar, forward only, decompressed and hashed ahead of who reads them. For one thread.

    Attributes:
        clock: runs from the first read on, and is looked at by each.

    Raises:
        InvalidArchive: by a read, and each read after it: when the blob is no whole gzip or zstd stream, has something
            behind its end, or passes a bound, which the error tells.
        ContentMismatch: by a read, when the blob is shorter or longer than its descriptor says.
        MissingLibrary: by the first read, for zstd where nothing installed reads it.
        StoreUnavailable: by a read, when the system does not give the blob's bytes.
    """

    def __init__(self, stream: BlobStream, descriptor: Descriptor, diff_id: Digest, limits: UnpackLimits) -> None:
        self._stream = stream
        self._diff_id = diff_id
        self.clock = LayerClock(descriptor, limits)
        self._bounds = _Bounds(descriptor, limits, self.clock)
        self._hasher = hashlib.new(diff_id.algorithm)
        self._ahead = ReadingAhead(self._iter_pieces(limits), _PIECES_AHEAD)
        self._piece = b""
        self._at = 0
        self._is_over = False
        self._error: Exception | None = None

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes, and none only at the end.

        Raises:
            ValueError: for a negative size, since nothing is read without a limit.
        """
        if size_bytes < 0:
            raise ValueError("the size to read is negative")
        self.clock.check()
        at, piece = self._at, self._piece
        if at == len(piece):
            at, piece = 0, self._next_piece()
        end = self._at = min(at + size_bytes, len(piece))
        return piece[at:end]

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill the front of ``buffer``; return the number of bytes, 0 only at the end."""
        self.clock.check()
        at, piece = self._at, self._piece
        if at == len(piece):
            at, piece = 0, self._next_piece()
        end = self._at = min(at + len(buffer), len(piece))
        buffer[: end - at] = memoryview(piece)[at:end]
        return end - at

    def finish(self) -> None:
        """Read what nobody has read, and return if all bytes together are what the config promises.

        Raises:
            ContentMismatch: when they are others.
        """
        while self._next_piece():
            pass
        self._at = 0
        actual = Digest(self._diff_id.algorithm, self._hasher.hexdigest())
        if actual != self._diff_id:
            raise ContentMismatch(f"{self._bounds.what}, decompressed", str(self._diff_id), str(actual))

    def close(self) -> None:
        """End what runs ahead, and close the blob. A second call does nothing; a read after it fails."""
        if self._error is None:
            self._error = ValueError("the layer is closed")
        self._piece, self._at = b"", 0
        self._ahead.close()
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_piece(self) -> bytes:
        if self._error is not None:
            raise self._error
        self._piece, self._at = b"", 0
        if self._is_over:
            return b""
        try:
            piece = self._ahead.next_piece(self.clock.seconds_left())
            if piece is None:
                raise self.clock.too_slow()
        except Exception as error:
            self._error = error
            raise
        self._piece, self._is_over = piece, not piece
        return piece

    def _iter_pieces(self, limits: UnpackLimits) -> Generator[bytes, None, None]:
        """Yield the tar, counted and hashed, in pieces that are large enough to be worth handing over."""
        bounds, hasher = self._bounds, self._hasher
        source = CompressedInput(self._stream, bounds.count_input)
        pieces: list[bytes] = []
        waiting_bytes = 0
        for data in _iter_told(source, bounds.what, limits):
            bounds.count_output(len(data))
            if not data:
                continue
            pieces.append(data)
            waiting_bytes += len(data)
            if waiting_bytes >= _LEAST_PIECE_BYTES:
                piece = b"".join(pieces)
                hasher.update(piece)
                yield piece
                pieces, waiting_bytes = [], 0
        if waiting_bytes:
            piece = b"".join(pieces)
            hasher.update(piece)
            yield piece


def _iter_told(source: CompressedInput, what: str, limits: UnpackLimits) -> Iterator[bytes]:
    """Do as iter_decompressed; what the system says of the blob is told of the layer, not of where its files go."""
    try:
        yield from iter_decompressed(source, what, limits.window_log)
    except OSError as error:
        if is_of_listener(error):
            raise
        raise StoreUnavailable(what, error.strerror or str(error)) from error


class _Bounds:
    """What one layer may cost, and what it has cost so far."""

    def __init__(self, descriptor: Descriptor, limits: UnpackLimits, clock: LayerClock) -> None:
        self.what = f"layer {descriptor.digest}"
        self._descriptor = descriptor
        self._clock = clock
        self._input_bytes = 0
        self._output = OutputBounds(
            self.what,
            most_bytes=limits.output_bytes,
            ratio=limits.ratio,
            ratio_floor_bytes=limits.ratio_floor_bytes,
            compressed_bytes=descriptor.size_bytes,
        )

    def count_input(self, count: int) -> None:
        """Take note of bytes of the blob."""
        self._input_bytes += count
        if self._input_bytes > self._descriptor.size_bytes:
            raise ContentMismatch(self.what, f"{self._descriptor.size_bytes} bytes", "more")
        if not count and self._input_bytes < self._descriptor.size_bytes:
            raise ContentMismatch(self.what, f"{self._descriptor.size_bytes} bytes", f"{self._input_bytes} bytes")
        self._clock.check()

    def count_output(self, count: int) -> None:
        """Take note of bytes of the tar."""
        self._output.count_output(count)
        self._clock.check()
