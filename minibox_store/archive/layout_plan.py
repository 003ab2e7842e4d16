"""Where everything in an archive will lie, decided before its first byte, from names and sizes alone. Pure.

The data of a member of 64 KiB and more begins at a multiple of 4 KiB, on every file system: there files share whole
blocks, or do not, but the bytes of an archive depend on its images alone.
"""

from collections.abc import Iterable

import attrs

from minibox_store.documents import Descriptor
from minibox_store.tar import BLOCK_BYTES, END_OF_ARCHIVE, Member, encode_header, padding
from minibox_store.values import Value

ALIGNED_FROM_BYTES = 64 * 1024
ALIGN_BYTES = 4096


@attrs.frozen(kw_only=True, repr=False)
class PlannedMember(Value):
    """One member, and its place.

    Attributes:
        name: what it is called.
        size_bytes: of its data.
        offset: of its header, from the beginning of the archive.
        data_offset: of its data.
        content: the data, where it is made here; None for a blob.
        descriptor: of the blob; None where the data is made here.
    """

    name: str
    size_bytes: int
    offset: int
    data_offset: int
    content: bytes | None = None
    descriptor: Descriptor | None = None

    @property
    def header(self) -> bytes:
        """All that precedes the data; made when it is asked for, since there may be very many members."""
        return _header(self.name, self.size_bytes, self.offset)

    @property
    def padding(self) -> bytes:
        """The zeros that follow the data."""
        return padding(self.size_bytes)

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.data_offset + self.size_bytes + -self.size_bytes % BLOCK_BYTES


@attrs.frozen(kw_only=True, repr=False)
class ArchivePlan(Value):
    """A whole archive: its members one after the other, and then its end."""

    members: tuple[PlannedMember, ...]

    @property
    def end_offset(self) -> int:
        """Where the end of the archive begins."""
        return self.members[-1].end if self.members else 0

    @property
    def size_bytes(self) -> int:
        """Of the archive, its end included."""
        return self.end_offset + len(END_OF_ARCHIVE)


def plan_archive(controls: Iterable[tuple[str, bytes]], blobs: Iterable[Descriptor]) -> ArchivePlan:
    """Return the plan of an archive that has these members in this order.

    Args:
        controls: the name and the content of each member that is made here.
        blobs: what follows them, each called by its digest.
    """
    members: list[PlannedMember] = []
    offset = 0
    for name, content in controls:
        members.append(_planned(name, len(content), offset, content=content))
        offset = members[-1].end
    for descriptor in blobs:
        members.append(_planned(blob_name(descriptor), descriptor.size_bytes, offset, descriptor=descriptor))
        offset = members[-1].end
    return ArchivePlan(members=tuple(members))


def blob_name(descriptor: Descriptor) -> str:
    """Return what a blob is called in an archive of any form."""
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


def _planned(
    name: str, size_bytes: int, offset: int, *, content: bytes | None = None, descriptor: Descriptor | None = None
) -> PlannedMember:
    return PlannedMember(
        name=name,
        size_bytes=size_bytes,
        offset=offset,
        data_offset=offset + len(_header(name, size_bytes, offset)),
        content=content,
        descriptor=descriptor,
    )


def _header(name: str, size_bytes: int, offset: int) -> bytes:
    align_bytes = ALIGN_BYTES if size_bytes >= ALIGNED_FROM_BYTES else BLOCK_BYTES
    return encode_header(Member(name=name, size_bytes=size_bytes), offset=offset, align_bytes=align_bytes)
