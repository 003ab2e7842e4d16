"""The bytes of a blob on their way out: read from wherever the registry lacks them, and hashed once.

The bytes of a source are not trusted: the last of them are held back until all have been hashed. But what lies in the
file of a store, verified as it was stored, the kernel sends unseen where it can, as it does into archives: whether it
is still right the registry says, and where it says no, all is hashed after all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import attrs

from minibox_store.digest import Verifier
from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import BlobSource, BlobStream, Distrusting, FileRange, RangeStream
from minibox_store.registry.failures import SourceFailed
from minibox_store.values import Value

_BUFFER_BYTES = MEBIBYTE


class OutgoingBody(Protocol):
    """What a request carries, read while it is sent."""

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        ...

    def pieces(self) -> Iterator[memoryview]:
        """Yield all of it, from its beginning each time this is called; each piece is used up before the next."""
        ...

    def ranges(self) -> Iterator[FileRange] | None:
        """Return all of it as ranges of an open file, which the kernel may send; None where it lies in none."""
        ...


class BlobReader:
    """The bytes of a blob, read from any offset on, and hashed as they are read for the first time. For one thread.

    Of the file of a store, whose bytes were verified as they were stored, whole ranges may be had, which are not hashed
    again: a registry does so too, and where it finds something wrong, ``is_trusted`` is taken back.

    Attributes:
        given_bytes: how many were given away, those that were asked for again counted again.
        seen_bytes: how many have ever been read.
        is_trusted: whether ranges may be given.
    """

    def __init__(self, source: BlobSource, descriptor: Descriptor) -> None:
        self._source = source
        self._descriptor = descriptor
        self._verifier = Verifier(descriptor.digest, descriptor.size_bytes)
        self._buffer = memoryview(bytearray(min(_BUFFER_BYTES, descriptor.size_bytes + 1)))
        self._stream: BlobStream | None = None
        self._position = 0
        self.given_bytes = 0
        self.seen_bytes = 0
        self.is_trusted = True

    def distrust(self) -> bool:
        """Hash everything from now on; return False where that was done already."""
        was_trusted, self.is_trusted = self.is_trusted, False
        self._begin_anew()
        return was_trusted

    def turns_elsewhere(self) -> bool:
        """Take note that the bytes were wrong; return whether a source of several places has others for all of them."""
        if not isinstance(self._source, Distrusting) or not self._source.distrust(self._descriptor):
            return False
        self.close()
        self._begin_anew()
        return True

    def ranges(self, offset: int, size_bytes: int) -> Iterator[FileRange] | None:
        """Return some of the bytes as ranges of an open file; None where they lie in none."""
        if not self.is_trusted or not size_bytes:
            return None
        with _source_errors():
            self._open_at(offset)
        return self._iter_ranges(size_bytes) if isinstance(self._stream, RangeStream) else None

    def _iter_ranges(self, size_bytes: int) -> Iterator[FileRange]:
        assert isinstance(self._stream, RangeStream)
        while size_bytes:
            with _source_errors():
                found = self._stream.next_range(min(size_bytes, _BUFFER_BYTES))
                if not found.size_bytes:
                    self._refuse_short()
            self._note_given(found.size_bytes)
            size_bytes -= found.size_bytes
            yield found

    def pieces(self, offset: int, size_bytes: int) -> Iterator[memoryview]:
        """Yield some of the bytes; the blob's last ones only once all of it is known to be right.

        Raises:
            SourceFailed: with ContentMismatch when the bytes are short, long or others, or what the source raised.
        """
        end = offset + size_bytes
        while True:
            with _source_errors():
                piece = self._next(offset, end)
            if piece:
                self.given_bytes += len(piece)
                yield piece
            offset += len(piece)
            if offset == end:
                return

    def close(self) -> None:
        """Close the source's stream. A second call does nothing."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _begin_anew(self) -> None:
        self._verifier = Verifier(self._descriptor.digest, self._descriptor.size_bytes)
        self.seen_bytes = 0

    def _open_at(self, offset: int) -> BlobStream:
        if self._stream is None or self._position != offset:
            self.close()
            self._stream = self._source.open_blob(self._descriptor, offset)
            self._position = offset
        return self._stream

    def _next(self, offset: int, end: int) -> memoryview:
        stream = self._open_at(offset)
        piece = self._buffer[: stream.readinto(self._buffer[: min(len(self._buffer), end - offset)])]
        self._position += len(piece)
        self.seen_bytes = max(self.seen_bytes, self._position)
        if not piece and offset < end:
            self._refuse_short()
        # What is read again after a cut was hashed before; what was given as ranges was not, and is not now.
        if offset <= self._verifier.seen_bytes:
            fresh_bytes = max(0, self._position - self._verifier.seen_bytes)
            self._verifier.update(piece[len(piece) - fresh_bytes :])
            if self._position == self._descriptor.size_bytes:
                excess = memoryview(bytearray(1))
                self._verifier.update(excess[: stream.readinto(excess)])
                self._verifier.finish()
        return piece

    def _note_given(self, size_bytes: int) -> None:
        self._position += size_bytes
        self.given_bytes += size_bytes
        self.seen_bytes = max(self.seen_bytes, self._position)

    def _refuse_short(self) -> None:
        expected, actual = f"{self._descriptor.size_bytes} bytes", f"{self._position} bytes"
        raise ContentMismatch(str(self._descriptor.digest), expected, actual)


@contextmanager
def _source_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise SourceFailed(error) from error


@attrs.frozen(repr=False)
class BlobPart(Value):
    """Some of a blob, as the body of a request."""

    reader: BlobReader
    offset: int
    size_bytes: int

    def pieces(self) -> Iterator[memoryview]:
        """Yield it, from its beginning each time."""
        return self.reader.pieces(self.offset, self.size_bytes)

    def ranges(self) -> Iterator[FileRange] | None:
        """Return it as ranges of an open file; None where it lies in none."""
        return self.reader.ranges(self.offset, self.size_bytes)
