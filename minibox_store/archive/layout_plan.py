"""Where everything in an archive will lie, decided before its first byte, from names and sizes alone. Pure.

The data of a member of 64 KiB and more begins at a multiple of 4 KiB, on every file system: there files share whole
blocks, or do not, but the bytes of an archive depend on its images alone.
"""

from collections.abc import Iterable, Sequence

import attrs

from minibox_store.documents import Descriptor
from minibox_store.tar import BLOCK_BYTES, END_OF_ARCHIVE, Member, MemberKind, encode_header, padding
from minibox_store.values import Value

ALIGNED_FROM_BYTES = 64 * 1024
ALIGN_BYTES = 4096

_BLOBS = "blobs"


@attrs.frozen(kw_only=True, repr=False)
class PlannedMember(Value):
    """One member, and its place.

    Attributes:
        name: what it is called.
        size_bytes: of its data.
        offset: of its header, from the beginning of the archive.
        data_offset: of its data.
        kind: a file, or a directory, which has no data.
        content: the data, where it is made here; None for anything else.
        descriptor: of the blob; None for anything else.
    """

    name: str
    size_bytes: int
    offset: int
    data_offset: int
    kind: MemberKind = MemberKind.FILE
    content: bytes | None = None
    descriptor: Descriptor | None = None

    @property
    def header(self) -> bytes:
        """All that precedes the data; made when it is asked for, since there may be very many members."""
        return _header(self.name, self.kind, self.size_bytes, self.offset)

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


def plan_archive(
    controls: Iterable[tuple[str, bytes]], blobs: Sequence[Descriptor], *, has_directories: bool
) -> ArchivePlan:
    """Return the plan of an archive that has these members in this order.

    Args:
        controls: the name and the content of each member that is made here.
        blobs: what follows them, each called by its digest.
        has_directories: whether the directories of blobs come before those. Tools that extract an archive make what is
            missing, and give it to root, which who is not root may not: skopeo refuses the whole archive then.
    """
    members: list[PlannedMember] = []
    offset = 0
    for name, content in controls:
        members.append(_planned(name, len(content), offset, content=content))
        offset = members[-1].end
    for name in _directories(blobs) if has_directories else ():
        members.append(_planned(name, 0, offset, kind=MemberKind.DIRECTORY))
        offset = members[-1].end
    for descriptor in blobs:
        members.append(_planned(blob_name(descriptor), descriptor.size_bytes, offset, descriptor=descriptor))
        offset = members[-1].end
    return ArchivePlan(members=tuple(members))


def blob_name(descriptor: Descriptor) -> str:
    """Return what a blob is called in an archive of any form."""
    return f"{_BLOBS}/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


def _directories(blobs: Iterable[Descriptor]) -> tuple[str, ...]:
    algorithms = sorted({descriptor.digest.algorithm for descriptor in blobs})
    return (_BLOBS, *(f"{_BLOBS}/{algorithm}" for algorithm in algorithms))


def _planned(
    name: str,
    size_bytes: int,
    offset: int,
    *,
    kind: MemberKind = MemberKind.FILE,
    content: bytes | None = None,
    descriptor: Descriptor | None = None,
) -> PlannedMember:
    return PlannedMember(
        name=name,
        size_bytes=size_bytes,
        offset=offset,
        data_offset=offset + len(_header(name, kind, size_bytes, offset)),
        kind=kind,
        content=content,
        descriptor=descriptor,
    )


def _header(name: str, kind: MemberKind, size_bytes: int, offset: int) -> bytes:
    align_bytes = ALIGN_BYTES if size_bytes >= ALIGNED_FROM_BYTES else BLOCK_BYTES
    mode = 0o755 if kind is MemberKind.DIRECTORY else 0o644
    member = Member(name=name, kind=kind, size_bytes=size_bytes, mode=mode)
    return encode_header(member, offset=offset, align_bytes=align_bytes)
