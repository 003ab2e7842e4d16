"""A stream of untrusted bytes to members, forward only: nothing is read twice, and no step reads past its member."""

import re
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from minibox_store.errors import InvalidArchive
from minibox_store.limits import DEFAULT_TAR_LIMITS, TarLimits
from minibox_store.tar.decoding import (
    KINDS,
    KINDS_AND_SPARSE,
    NOTHING_SPECIAL,
    SPARSE_TYPE,
    Owner,
    Records,
    check_checksum,
    decode_directory,
    decode_global_records,
    decode_long_name,
    decode_name,
    decode_number,
    decode_owner,
    decode_records,
    decode_special,
    decode_xattrs,
    override_mtime,
    override_owner,
    override_size,
)
from minibox_store.tar.format import (
    BLOCK_BYTES,
    CHECKSUM,
    NANOSECONDS,
    PARTS,
    SIZE,
    TYPE,
    ZERO_BLOCK,
)
from minibox_store.tar.member import NO_XATTRS, Member, MemberKind, refusal
from minibox_store.tar.sparse import decode_sparse

_CHUNK_BYTES = 64 * 1024
_SEEK_CURRENT = 1
_FILE, _DIRECTORY = MemberKind.FILE, MemberKind.DIRECTORY
# GNU tar, Go and tarfile differ on which of two names counts, and on a PAX header beside a long name.
_EXTENSIONS = re.compile(rb"g*(x|L?K?|KL)")


class ByteStream(Protocol):
    """What a reader needs of its input: a file, a pipe, a decompressor."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, and none only at the end."""
        ...


@runtime_checkable
class _Seekable(Protocol):
    def seekable(self) -> bool: ...
    def seek(self, offset: int, whence: int, /) -> int: ...


@runtime_checkable
class _ReadableInto(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class TarReader(Iterator[Member]):
    """Yields the members of a tar in their order; between two steps, ``read`` gives the data of the last one.

    Args:
        stream: untrusted bytes, read forward only, and ahead of what was asked for. Where it can seek, data that nobody
            reads is sought over. Nobody else may move its position (``copy_file_range`` with an offset does not). Its
            own errors pass unchanged.
        limits: how much the archive may claim.
        sparse: whether sparse files are taken, as members with ``segments``. Of these, ``read`` and ``readinto`` give
            the stored bytes.

    Raises:
        InvalidArchive: by a step or a read that meets bytes which are no well-formed archive, and each step after that.

    Guarantees: time is linear in the bytes read, memory is that of one extension header. The iteration ends without an
    error only where every member, its data and the end of the archive were there, and nothing but zeros behind it.

    Spec: POSIX.1-2017 pax, "ustar Interchange Format", "pax Extended Header"; GNU tar 1.35 manual, "Basic Tar Format".

    >>> import io
    >>> from minibox_store.tar import END_OF_ARCHIVE, encode_header
    >>> [member.name for member in TarReader(io.BytesIO(encode_header(Member(name="a")) + END_OF_ARCHIVE))]
    ['a']
    """

    def __init__(self, stream: ByteStream, limits: TarLimits = DEFAULT_TAR_LIMITS, *, sparse: bool = False) -> None:
        self._stream = stream
        self._limits = limits
        self._seek = stream.seek if isinstance(stream, _Seekable) and stream.seekable() else None
        self._readinto = stream.readinto if isinstance(stream, _ReadableInto) else None
        self._buffer = b""
        self._buffer_offset = 0
        self._data_at = 0
        self._data_end = 0
        self._next_header = 0
        self._name: str | None = None
        self._ids, self._names, self._time = b"", b"", b""
        self._owner: Owner = (0, 0, 0, "", "")
        self._mtime = 0
        self._global_records: dict[bytes, bytes] = {}
        self._takes_sparse = sparse
        # Set between the extension headers of a sparse file and the member: its records, none for old GNU's type.
        self._sparse_records: list[tuple[bytes, bytes]] | None = None
        self._over: Exception | None = None

    def __next__(self) -> Member:
        """Return the next member; what was not read of the last one's data is skipped."""
        if self._over is not None:
            raise self._over
        self._data_end = self._data_at
        offset = self._next_header
        start = offset - self._buffer_offset
        block = self._buffer[start : start + BLOCK_BYTES]
        records: Records = self._global_records
        try:
            if len(block) < BLOCK_BYTES:
                block = self._fetch(offset, BLOCK_BYTES)
            if block[TYPE] not in KINDS:
                offset, block, records = self._read_extensions(offset, block)
            elif not block[0] and block == ZERO_BLOCK:
                self._read_end(offset)
                raise StopIteration
            member = self._decode_member(block, records, offset)
            size_bytes = member.size_bytes
            if self._sparse_records is not None:
                member = decode_sparse(member, block, self._sparse_records, self._bytes_at, self._limits)
                size_bytes = member.stored_bytes
                self._sparse_records = None
        except Exception as error:
            # Where the stream stands then is not known: to go on would be to read something else as a header.
            self._over = error
            raise
        self._name = member.name
        self._data_at = data_at = member.data_offset
        self._data_end = data_end = data_at + size_bytes
        self._next_header = data_end + -data_end % BLOCK_BYTES
        return member

    def read(self, size_bytes: int, /) -> bytes:
        """Return 1 to ``size_bytes`` bytes of the current member's data, and none only at its end.

        Raises:
            InvalidArchive: when the stream ends before the data does.
            ValueError: for a negative size, since nothing is read without a limit.
        """
        if size_bytes < 0:
            raise ValueError("the size to read is negative")
        size_bytes = min(size_bytes, self._data_end - self._data_at)
        start = self._data_at - self._buffer_offset
        data = self._buffer[start : start + size_bytes]
        if size_bytes and not data:
            data = self._stream.read(size_bytes)
            self._pass_by(len(data))
        self._data_at += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill the front of ``buffer`` with data of the current member; return the number of bytes, 0 only at its end.

        Raises:
            InvalidArchive: when the stream ends before the data does.
        """
        view = memoryview(buffer)[: self._data_end - self._data_at]
        held_bytes = self._buffer_offset + len(self._buffer) - self._data_at
        if not view or held_bytes or self._readinto is None:
            data = self.read(len(view))
            view[: len(data)] = data
            return len(data)
        count = self._readinto(view) or 0
        self._pass_by(count)
        self._data_at += count
        return count

    def _pass_by(self, count: int) -> None:
        if not count:
            raise self._cut_off()
        self._buffer_offset += len(self._buffer) + count
        self._buffer = b""

    def _cut_off(self) -> InvalidArchive:
        return refusal("the archive is cut off before its two closing zero blocks", self._name)

    def _bytes_at(self, offset: int, size_bytes: int) -> bytes:
        start = offset - self._buffer_offset
        data = self._buffer[start : start + size_bytes]
        return data if len(data) == size_bytes else self._fetch(offset, size_bytes)

    def _fetch(self, offset: int, size_bytes: int) -> bytes:
        held = self._buffer[offset - self._buffer_offset :]
        self._skip(offset - self._buffer_offset - len(self._buffer))
        pieces, count = [held] if held else [], len(held)
        while count < size_bytes and (chunk := self._stream.read(_CHUNK_BYTES)):
            pieces.append(chunk)
            count += len(chunk)
        self._buffer, self._buffer_offset = b"".join(pieces), offset
        if count < size_bytes:
            raise self._cut_off()
        return self._buffer[:size_bytes]

    def _skip(self, size_bytes: int) -> None:
        # A seek past the end of a cut-off file succeeds. It is noticed all the same: something must follow whatever is
        # skipped, if only the end of the archive, and that is read.
        if size_bytes > _CHUNK_BYTES and self._seek is not None:
            self._seek(size_bytes, _SEEK_CURRENT)
            self._pass_by(size_bytes)
            return
        while size_bytes > 0:
            count = len(self._stream.read(min(size_bytes, _CHUNK_BYTES)))
            self._pass_by(count)
            size_bytes -= count

    def _read_end(self, offset: int) -> None:
        if self._bytes_at(offset + BLOCK_BYTES, BLOCK_BYTES) != ZERO_BLOCK:
            raise refusal("one zero block stands alone, where two end an archive", self._name)
        rest = self._buffer[offset + 2 * BLOCK_BYTES - self._buffer_offset :] or self._stream.read(_CHUNK_BYTES)
        padding_bytes = 0
        while rest:
            padding_bytes += len(rest)
            if rest.strip(b"\0"):
                raise refusal("there is data behind the end of the archive")
            if padding_bytes > self._limits.padding_bytes:
                raise refusal(f"more than {self._limits.padding_bytes} bytes follow the end of the archive")
            rest = self._stream.read(_CHUNK_BYTES)

    def _read_extensions(self, offset: int, block: bytes) -> tuple[int, bytes, Records]:
        own: dict[bytes, bytes] = {}
        sparse_records: list[tuple[bytes, bytes]] = []
        flags = b""
        while block[TYPE] not in KINDS:
            check_checksum(block, block[CHECKSUM], offset)
            flag = block[TYPE : TYPE + 1]
            if flag == b"S" and self._takes_sparse and b"x" not in flags:
                break
            flags += flag
            if flag not in (b"g", b"x", b"L", b"K"):
                what = "a sparse file" if flag == b"S" else f"a member of type {flag!r}"
                what += " behind a PAX header" if flag == b"S" and self._takes_sparse else ""
                raise refusal(f"{what}, at byte {offset}, is not supported")
            if len(flags) > self._limits.extension_headers or not _EXTENSIONS.fullmatch(flags):
                raise refusal(f"too many or conflicting extension headers precede byte {offset}", self._name)
            body = self._extension_body(block, offset)
            if flag == b"g":
                self._global_records |= decode_global_records(body)
            elif flag == b"x":
                own = decode_records(body, sparse_records if self._takes_sparse else None)
            else:
                own[b"path" if flag == b"L" else b"linkpath"] = decode_long_name(body)
            offset += BLOCK_BYTES + len(body) + -len(body) % BLOCK_BYTES
            block = self._bytes_at(offset, BLOCK_BYTES)
        if block == ZERO_BLOCK:
            raise refusal(f"no member follows the extension header before byte {offset}", self._name)
        if sparse_records or block[TYPE] == SPARSE_TYPE:
            self._sparse_records = sparse_records
        return offset, block, self._global_records | own

    def _extension_body(self, block: bytes, offset: int) -> bytes:
        size_bytes = decode_number(block[SIZE], "size of an extension header", self._name)
        limit = self._limits.extension_bytes
        if not 0 <= size_bytes <= limit:
            raise refusal(f"the extension header at byte {offset} claims {size_bytes} bytes, of at most {limit}")
        return self._bytes_at(offset + BLOCK_BYTES, size_bytes)

    def _decode_member(self, block: bytes, records: Records, offset: int) -> Member:
        field, ids, size, time, checksum, flag, link, names, major, minor, prefix = PARTS.unpack(block)
        check_checksum(block, checksum, offset)
        name = decode_name(field, prefix, names, records)
        kind = KINDS_AND_SPARSE[flag]
        size_bytes = decode_number(size, "size", name)
        # Neighbours mostly share owner and time: with both decoded anew, a member would take half as long again.
        if ids != self._ids or names != self._names:
            self._owner, self._ids, self._names = decode_owner(ids, names, name), ids, names
        if time != self._time:
            self._mtime, self._time = decode_number(time, "mtime", name) * NANOSECONDS, time
        owner, mtime, xattrs, special = self._owner, self._mtime, NO_XATTRS, NOTHING_SPECIAL
        if records:
            owner = override_owner(owner, records, name)
            size_bytes = override_size(size_bytes, records, name)
            mtime = override_mtime(mtime, records, name)
            xattrs = decode_xattrs(records, name)
        if name[-1] == "/" and (kind is _FILE or kind is _DIRECTORY):
            kind, name = decode_directory(flag, name)
        if kind is not _FILE:
            special = decode_special(kind, link, major, minor, records, name)
        # A negative size would move a reader backwards for ever (CVE-2025-8194).
        if size_bytes and not (kind is _FILE and 0 < size_bytes <= self._limits.member_bytes):
            raise refusal(f"it cannot have {size_bytes} bytes of data", name)
        mode, uid, gid, uname, gname = owner
        target, device_major, device_minor = special
        at = offset + BLOCK_BYTES
        return Member(
            name, kind, size_bytes, mode, uid, gid, uname, gname, mtime, target, device_major, device_minor, xattrs, at
        )
