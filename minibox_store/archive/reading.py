"""Reading an archive, in one forward pass, from a file or a pipe, whatever its form. Nothing in it is believed.

What a member may be called, and what its name becomes, says ``member_names``; what the archive is made of, once all of
it was read, says ``contents``.
"""

import functools
from collections.abc import Iterator

from minibox_store import _moving
from minibox_store.archive.input import open_input
from minibox_store.archive.member_names import (
    META_JSON,
    MemberName,
    MemberRole,
    check_directory,
    parse_link,
    parse_member_name,
)
from minibox_store.archive.member_table import MemberTable
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidArchive
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.media_types import OCTET_STREAM
from minibox_store.protocols import ArchivedBlob, BlobStream, ReadableFile
from minibox_store.tar import Member, MemberKind, TarReader

_LINKS = (MemberKind.SYMLINK, MemberKind.HARDLINK)


class _MemberStream:
    """The data of the member that the reader stands at."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader

    def readinto(self, buffer: memoryview, /) -> int:
        return self._reader.readinto(buffer)

    def close(self) -> None:
        return


class ArchiveReader:
    """One pass over an archive: its blobs as they come; behind the last one ``members`` says what there was.

    Args:
        file: untrusted. Where it is an open regular file that is not compressed, each blob's stream is a range of it.
        limits: the bounds on what is read.
    """

    def __init__(self, file: ReadableFile, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._input = open_input(file, limits)
        self._tar = TarReader(self._input, limits.tar)
        self._position = 0
        self.members = MemberTable()

    @property
    def file_bytes(self) -> int:
        """How much there is to be read, where that is a regular file that is not compressed; else 0."""
        return 0 if self._input.file_range is None else self._input.file_range.size_bytes

    def interrupt(self) -> None:
        """End, with an error, a read that waits for a pipe, now and later. From any thread."""
        self._input.interrupt()

    def iter_blobs(self) -> Iterator[ArchivedBlob]:
        """Yield each blob; a stream that is no range of a file must be read before the next step.

        Raises:
            InvalidArchive: for a member that has no place in an archive, or bytes that are no tar.
        """
        for number, member in enumerate(self._tar, start=1):
            if number > self._limits.archive_members:
                raise InvalidArchive(f"it has more than {self._limits.archive_members} members", member.name)
            if member.kind is MemberKind.DIRECTORY:
                check_directory(member.name)
            elif member.kind in _LINKS:
                key, target = parse_link(member)
                self.members.check_new(key, member.name)
                self.members.add_link(key, target)
            elif member.kind is not MemberKind.FILE:
                raise InvalidArchive("an image archive holds no links and no devices", member.name)
            else:
                name = parse_member_name(member.name)
                if name.role is MemberRole.CONTROL:
                    self._read_control(member, name.key)
                elif name.role is not MemberRole.PASSED_OVER:
                    yield self._blob(member, name)
        self.members.check_links()

    def _read_control(self, member: Member, key: str) -> None:
        self.members.check_new(key, member.name)
        most_bytes = self._limits.archive_metadata_bytes if key == META_JSON else self._limits.document_bytes
        if member.size_bytes > most_bytes:
            raise InvalidArchive(f"it is larger than {most_bytes} bytes", member.name)
        content = bytearray()
        while chunk := self._tar.read(member.size_bytes - len(content)):
            content += chunk
        self.members.add_control(key, bytes(content))

    def _blob(self, member: Member, name: MemberName) -> ArchivedBlob:
        assert name.digest is not None
        if name.role is not MemberRole.BLOB:
            self.members.check_new(name.key, member.name)
        stream = self._stream(member)
        self.members.add(name, member.size_bytes)
        self._position += 1
        note_kept = None
        if name.role is MemberRole.LAYER:
            note_kept = functools.partial(self.members.note_kept, name.key, size_bytes=member.size_bytes)
        descriptor = Descriptor(media_type=OCTET_STREAM, digest=name.digest, size_bytes=member.size_bytes)
        return ArchivedBlob(descriptor=descriptor, stream=stream, position=self._position, note_kept=note_kept)

    def _stream(self, member: Member) -> BlobStream:
        lying = self._input.file_range
        if lying is None:
            return _MemberStream(self._tar)
        if member.data_offset + member.size_bytes > lying.size_bytes:
            raise InvalidArchive("the archive ends inside the data of this member", member.name)
        offset = lying.offset + member.data_offset
        return _moving.FileStream(lying.file_descriptor, offset, member.size_bytes, owns_descriptor=False)
