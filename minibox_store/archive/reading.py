"""Reading the minibox archive, in one forward pass, from a file or a pipe. Nothing in it is believed.

A member's name becomes a digest or nothing at all, never a path. Which members there may be is written here; any
other is refused, and so is every link and device.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from minibox_store import _moving
from minibox_store.archive.input import Archive, open_input
from minibox_store.codec import decode_archive_metadata
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidArchive, InvalidDigest, InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.media_types import OCTET_STREAM
from minibox_store.protocols import ArchivedBlob, BlobStream
from minibox_store.tar import Member, MemberKind, TarReader

_BLOB = re.compile(r"blobs/([a-z0-9]+)/([^/]+)")
# Other tools put these beside the blobs; nothing is read from them, and nothing of them is kept.
_PASSED_OVER = re.compile(
    r"""
      oci-layout | index\.json | manifest\.json | repositories
    | [0-9a-f]{64}/(VERSION | json)
    | blobs/(sha256|sha512)/[0-9a-f]+\.index\.json
    """,
    re.VERBOSE,
)


class _MemberStream:
    """The data of the member that the reader stands at."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader

    def readinto(self, buffer: memoryview, /) -> int:
        return self._reader.readinto(buffer)

    def close(self) -> None:
        return


class ArchiveReader:
    """One pass over an archive: its blobs as they come, and behind the last one the images it holds.

    Args:
        file: untrusted. Where it is an open regular file that is not compressed, each blob's stream is a range of it.
        limits: the bounds on what is read.
    """

    def __init__(self, file: Archive | BinaryIO, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._input = open_input(file, limits)
        self._tar = TarReader(self._input, limits.tar)
        self._metadata: bytes | None = None
        self.sizes: dict[Digest, int] = {}

    @property
    def file_bytes(self) -> int:
        """How much there is to be read, where that is a regular file that is not compressed; else 0."""
        return 0 if self._input.file_range is None else self._input.file_range.size_bytes

    def iter_blobs(self) -> Iterator[ArchivedBlob]:
        """Yield each blob; a stream that is no range of a file must be read before the next step.

        Raises:
            InvalidArchive: for a member that has no place in an archive, or bytes that are no tar.
        """
        for number, member in enumerate(self._tar, start=1):
            if number > self._limits.archive_members:
                raise InvalidArchive(f"it has more than {self._limits.archive_members} members", member.name)
            name = member.name.removeprefix("./")
            if member.kind is MemberKind.DIRECTORY:
                if name.startswith("/") or ".." in name.split("/"):
                    raise InvalidArchive("its name leads out of the archive", member.name)
                continue
            if member.kind is not MemberKind.FILE:
                raise InvalidArchive("an image archive holds no links and no devices", member.name)
            if name == "meta.json":
                self._read_metadata(member)
            elif _PASSED_OVER.fullmatch(name) is None:
                yield self._blob(member, name)

    def image(self) -> tuple[str, Digest]:
        """Return the name and the manifest's digest of the image; call it behind the last blob.

        Raises:
            InvalidArchive: when the archive names none, or the manifest is not in it.
        """
        if self._metadata is None:
            raise InvalidArchive("there is no meta.json in it")
        try:
            metadata = decode_archive_metadata(self._metadata, limits=self._limits)
        except InvalidDocument as error:
            raise InvalidArchive(str(error), "meta.json") from error
        if metadata.manifest_digest not in self.sizes:
            raise InvalidArchive(f"it lacks {metadata.manifest_digest}, its manifest")
        return metadata.image, metadata.manifest_digest

    def _read_metadata(self, member: Member) -> None:
        if self._metadata is not None:
            raise InvalidArchive("it stands twice", member.name)
        if member.size_bytes > self._limits.archive_metadata_bytes:
            raise InvalidArchive(f"it is larger than {self._limits.archive_metadata_bytes} bytes", member.name)
        content = b""
        while chunk := self._tar.read(member.size_bytes - len(content)):
            content += chunk
        self._metadata = content

    def _blob(self, member: Member, name: str) -> ArchivedBlob:
        match = _BLOB.fullmatch(name)
        if match is None:
            raise InvalidArchive("an image archive has no such member", member.name)
        try:
            digest = Digest(match[1], match[2])
        except InvalidDigest as error:
            raise InvalidArchive(str(error), member.name) from error
        self.sizes[digest] = member.size_bytes
        descriptor = Descriptor(media_type=OCTET_STREAM, digest=digest, size_bytes=member.size_bytes)
        return ArchivedBlob(descriptor=descriptor, stream=self._stream(member), position=len(self.sizes))

    def _stream(self, member: Member) -> BlobStream:
        lying = self._input.file_range
        if lying is None:
            return _MemberStream(self._tar)
        if member.data_offset + member.size_bytes > lying.size_bytes:
            raise InvalidArchive("the archive ends inside the data of this member", member.name)
        offset = lying.offset + member.data_offset
        return _moving.FileStream(lying.file_descriptor, offset, member.size_bytes, owns_descriptor=False)
