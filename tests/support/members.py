"""Members of every kind, and archives of them by the code under test."""

import io

from minibox_store.tar import (
    END_OF_ARCHIVE,
    ByteStream,
    Member,
    MemberKind,
    TarLimits,
    TarReader,
    encode_header,
    padding,
)

LONG_FOLDER = "/".join(["a-directory-with-a-name"] * 12)
# Each fits into one ustar header.
EVERY_KIND = [
    Member(name="directory", kind=MemberKind.DIRECTORY, mode=0o755),
    Member(name="directory/file", size_bytes=5, mode=0o4711, uid=1000, gid=100, uname="user", gname="group"),
    Member(name="empty", mtime_nanoseconds=1_700_000_000 * 10**9),
    Member(name="symlink", kind=MemberKind.SYMLINK, link_target="../outside", mode=0o777),
    Member(name="hardlink", kind=MemberKind.HARDLINK, link_target="directory/file"),
    Member(name="null", kind=MemberKind.CHARACTER_DEVICE, device_major=1, device_minor=3),
    Member(name="disk", kind=MemberKind.BLOCK_DEVICE, device_major=8, device_minor=1048575),
    Member(name="queue", kind=MemberKind.FIFO),
    Member(name="/", kind=MemberKind.DIRECTORY),
]
# None does.
NEEDS_PAX = [
    Member(name=f"{LONG_FOLDER}/{'x' * 101}"),
    Member(name="grüße"),
    Member(name=b"not utf-8 \xff\xfe".decode("utf-8", "surrogateescape")),
    Member(name="link", kind=MemberKind.SYMLINK, link_target="t" * 101),
    Member(name="owner", uid=8**7, gid=2**40, uname="ü", gname="g" * 32),
    Member(name="before", mtime_nanoseconds=-1_500_000_000),
    Member(name="fraction", mtime_nanoseconds=1_234_567_890_123_456_789),
    Member(name="far", mtime_nanoseconds=8**11 * 10**9),
    Member(name="marked", xattrs={"security.capability": b"\x01\0\0\x02\n=\xff", "user.empty": b"", "user.ü": b"1"}),
]


def write_tar(*contents: tuple[Member, bytes]) -> bytes:
    """Return an archive of these members, written by the code under test."""
    parts = [encode_header(member) + data + padding(len(data)) for member, data in contents]
    return b"".join(parts) + END_OF_ARCHIVE


def read_data(reader: TarReader, step: int = 1 << 16) -> bytes:
    """Return all the data of the member at which the reader stands."""
    return b"".join(iter(lambda: reader.read(step), b""))


def read_tar(
    stream: ByteStream | bytes, limits: TarLimits | None = None, *, step: int = 1 << 16
) -> list[tuple[Member, bytes]]:
    """Return all members of an archive with their data, read in pieces of at most ``step`` bytes."""
    stream = io.BytesIO(stream) if isinstance(stream, bytes) else stream
    reader = TarReader(stream, limits or TarLimits())
    return [(member, read_data(reader, step)) for member in reader]


def only_member(archive: bytes) -> Member:
    """Return the member of an archive that has one."""
    [(member, _)] = read_tar(archive)
    return member
