"""An archive that is read before it was ever written: its size is known, and any part of it can be had.

It has the very bytes that a save writes, for these too depend on the images alone. What lies in blobs is told as a
range of an open file, so that whoever sends it need not read it.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from minibox_store import _moving
from minibox_store.archive.formats import ArchiveForm
from minibox_store.archive.layout_plan import ArchivePlan, PlannedMember
from minibox_store.archive.writing import ArchiveMembers
from minibox_store.documents import Descriptor
from minibox_store.errors import ContentMismatch, InvalidArgument
from minibox_store.kinds import check_count
from minibox_store.protocols import BlobSource, FileRange, RangeStream
from minibox_store.reports.images import Image
from minibox_store.tar import END_OF_ARCHIVE

# One image: its name, what it stands for, the blobs of that, and where they can be read.
OfferedGraph = tuple[str, Descriptor, Iterable[Descriptor], BlobSource]


class OfferedArchive:
    """An archive of images, whole and open; made by :meth:`minibox_store.Store.open_archive`, and to be closed.

    Its methods may be called from several threads, and as often as wanted.

    Attributes:
        images: what is in it, as it is told of a save.
        size_bytes: how long it is.
        blob_count: how many blobs are in it; for each of them a file may be open.
        identity: a text that archives of equal bytes have, and no others; 64 hexadecimal digits.
    """

    def __init__(
        self, graphs: Iterable[OfferedGraph], form: ArchiveForm, images: tuple[Image, ...], closing: ExitStack
    ) -> None:
        """Plan the archive of ``graphs``, which is not compressed; what ``closing`` closes is its own from then on.

        Raises:
            InvalidArgument: when the form cannot hold an image, or its name.
        """
        self._members = ArchiveMembers(form)
        for name, root, blobs, source in graphs:
            for descriptor in blobs:
                if not self._members.has_blob(descriptor):
                    self._members.write_blob(descriptor, source)
            self._members.write_name(name, root)
        self._plan = self._members.plan()
        self._starts = [member.offset for member in self._plan.members]
        self.images = images
        self.size_bytes = self._plan.size_bytes
        self.blob_count = sum(member.descriptor is not None for member in self._plan.members)
        self.identity = _identity(self._plan)
        self._closing = closing.pop_all()

    def pieces(self, offset: int = 0, size_bytes: int | None = None) -> Iterator[bytes | FileRange]:
        """Yield the archive from ``offset`` on, at most ``size_bytes`` of it, piece after piece.

        A piece is bytes, or a range of a file that is open until the archive is closed; none is empty. The bytes of a
        file were verified when they were stored; a file that has become shorter since must not pass for a whole one.

        Raises:
            InvalidArgument: for a place that is not in the archive, and for less than nothing.
        """
        problem = f"the archive has {self.size_bytes} bytes"
        check_count("offset", offset, problem, least=0)
        if offset > self.size_bytes:
            raise InvalidArgument("offset", offset, problem)
        if size_bytes is not None:
            check_count("size_bytes", size_bytes, "it is less than nothing", least=0)
        rest = self.size_bytes - offset if size_bytes is None else min(size_bytes, self.size_bytes - offset)
        return self._pieces(offset, rest)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return the bytes from ``offset`` on, exactly so many, or fewer only at the archive's end.

        Raises:
            ContentMismatch: when a blob's file became shorter.
        """
        return b"".join(_bytes_of(piece) for piece in self.pieces(offset, size_bytes))

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self, offset: int, size_bytes: int) -> Iterator[bytes | FileRange]:
        for start, piece in self._parts(max(0, bisect_right(self._starts, offset) - 1)):
            length = len(piece) if isinstance(piece, bytes) else piece.size_bytes
            skipped = max(0, offset - start)
            taken = min(length - skipped, size_bytes)
            if taken > 0:
                yield _cut(piece, skipped, taken)
                size_bytes -= taken
            if size_bytes <= 0:
                return

    def _parts(self, first: int) -> Iterator[tuple[int, bytes | FileRange]]:
        """Yield all parts from a member on, each with its place."""
        for member in self._plan.members[first:]:
            yield member.offset, member.header
            yield from self._data(member)
            yield member.data_offset + member.size_bytes, member.padding
        yield self._plan.end_offset, END_OF_ARCHIVE

    def _data(self, member: PlannedMember) -> Iterator[tuple[int, bytes | FileRange]]:
        if member.descriptor is None:
            yield member.data_offset, member.content or b""
            return
        stream = self._members.open_member(member.descriptor)
        try:
            if isinstance(stream, RangeStream):
                yield member.data_offset, stream.next_range(member.size_bytes)
                return
        finally:
            stream.close()
        yield member.data_offset, self._members.read_document(member.descriptor)


def _identity(plan: ArchivePlan) -> str:
    """Return the hash of what the bytes of an archive follow from."""
    found = hashlib.sha256()
    for member in plan.members:
        found.update(member.header)  # in which a blob is called by its digest
        found.update(hashlib.sha256(member.content or b"").digest())
    return found.hexdigest()


def _cut(piece: bytes | FileRange, skipped: int, size_bytes: int) -> bytes | FileRange:
    if isinstance(piece, bytes):
        return piece[skipped : skipped + size_bytes]
    return FileRange(file_descriptor=piece.file_descriptor, offset=piece.offset + skipped, size_bytes=size_bytes)


def _bytes_of(piece: bytes | FileRange) -> bytes:
    if isinstance(piece, bytes):
        return piece
    content = b""
    while missing := piece.size_bytes - len(content):
        more = _moving.read_at(piece.file_descriptor, missing, piece.offset + len(content))
        if not more:
            raise ContentMismatch("a blob of the archive", f"{piece.size_bytes} bytes", f"{len(content)} bytes")
        content += more
    return content
