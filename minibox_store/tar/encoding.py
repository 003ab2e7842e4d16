"""Members to bytes: the plainest header that holds a member exactly, the same for the same member everywhere."""

from minibox_store.limits import DEFAULT_TAR_LIMITS
from minibox_store.tar.format import (
    BLOCK_BYTES,
    CHECKSUM,
    HEADER,
    LARGEST_NUMBER,
    NAME_BYTES,
    NANOSECONDS,
    OCTAL_7_DIGITS,
    OCTAL_11_DIGITS,
    OWNER_NAME_BYTES,
    PAX_KEYS,
    PREFIX_BYTES,
    USTAR_MAGIC,
    XATTR_PREFIX,
    byte_sum,
)
from minibox_store.tar.member import DEVICES, LINKS, Member, MemberKind, refusal

_SHORTEST_FILLER_BYTES = len(b"12 comment=\n")


def encode_header(member: Member, *, offset: int = 0, align_bytes: int = BLOCK_BYTES) -> bytes:
    """Return all that precedes the data of ``member``: its ustar header, after a PAX one where ustar cannot hold it.

    Args:
        member: what to write; its ``data_offset`` counts for nothing.
        offset: where in the archive the header will stand, in bytes, a multiple of 512.
        align_bytes: the data then begins at a multiple of this, itself a multiple of 512, after a PAX comment of the
            length that it takes.

    Raises:
        InvalidArchive: for a member that ``TarReader`` would refuse, or take for another.

    Guarantees: the bytes depend on the arguments alone, and not on the order of ``xattrs``.

    Spec: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; star(5) for SCHILY.xattr.

    >>> len(encode_header(Member(name="a"))), len(encode_header(Member(name="é")))
    (512, 1536)
    """
    _check_writable(member)
    records = {XATTR_PREFIX + _raw(key, member): value for key, value in member.xattrs.items()}
    header = _encode_ustar(member, records)
    body = b"".join(_encode_record(key, records[key]) for key in sorted(records))
    if not all(_is_utf8(value) for key, value in records.items() if key in PAX_KEYS):
        body = _encode_record(b"hdrcharset", b"BINARY") + body
    headers_bytes = 2 * BLOCK_BYTES + len(body) + -len(body) % BLOCK_BYTES if body else BLOCK_BYTES
    if (offset + headers_bytes) % align_bytes:
        body += _encode_filler(offset + 2 * BLOCK_BYTES + len(body), align_bytes)
    if not body:
        return header
    if len(body) > DEFAULT_TAR_LIMITS.extension_bytes:
        raise refusal("its names and extended attributes are too long", member.name)
    return _encode_block(name=b"././@PaxHeader", flag=b"x", size_bytes=len(body)) + body + padding(len(body)) + header


def padding(size_bytes: int) -> bytes:
    """Return the zeros that follow data of ``size_bytes``, up to the next header."""
    return bytes(-size_bytes % BLOCK_BYTES)


def _check_writable(member: Member) -> None:
    is_file, is_device = member.kind is MemberKind.FILE, member.kind in DEVICES
    devices = (member.device_major, member.device_minor)
    problem = ""
    if not member.name or _has_lost_slash(member):
        problem = "it has no name, or one that ends with a slash"
    elif not 0 <= member.size_bytes <= (DEFAULT_TAR_LIMITS.member_bytes if is_file else 0):
        problem = f"it cannot have {member.size_bytes} bytes of data"
    elif member.segments is not None:
        problem = "it is a sparse file, and such are read only"
    elif bool(member.link_target) != (member.kind in LINKS):
        problem = "a link has a target, and nothing else has"
    elif not all(0 <= number <= (OCTAL_7_DIGITS if is_device else 0) for number in devices):
        problem = "a device has numbers of 21 bits, and nothing else has"
    elif not 0 <= member.mode <= 0o7777:
        problem = "its mode is not of 12 bits"
    elif not (0 <= member.uid <= LARGEST_NUMBER and 0 <= member.gid <= LARGEST_NUMBER):
        problem = "its uid or gid is out of range"
    elif abs(member.mtime_nanoseconds) // NANOSECONDS > LARGEST_NUMBER:
        problem = "its mtime is out of range"
    elif any(not key or "=" in key for key in member.xattrs):
        problem = "an extended attribute has no name, or one with an equals sign, where a record ends its key"
    if problem:
        raise refusal(problem, member.name)


def _has_lost_slash(member: Member) -> bool:
    # The slash says "directory" in the archive, where each has one; only the root has no other name.
    if member.kind is MemberKind.DIRECTORY:
        return member.name.endswith("/") and member.name != "/"
    return member.kind is MemberKind.FILE and member.name.endswith("/")


def _encode_ustar(member: Member, records: dict[bytes, bytes]) -> bytes:
    path = _raw(member.name, member)
    if member.kind is MemberKind.DIRECTORY and path != b"/":
        path += b"/"
    prefix, name = _split_path(path)
    if not name:
        name = _field(path, NAME_BYTES, b"path", records)
    seconds, fraction = divmod(member.mtime_nanoseconds, NANOSECONDS)
    if fraction or not 0 <= seconds <= OCTAL_11_DIGITS:
        records[b"mtime"] = _decimal_seconds(member.mtime_nanoseconds)
    return _encode_block(
        prefix=prefix,
        name=name,
        flag=member.kind.value,
        size_bytes=_number(member.size_bytes, OCTAL_11_DIGITS, b"size", records),
        mode=member.mode,
        uid=_number(member.uid, OCTAL_7_DIGITS, b"uid", records),
        gid=_number(member.gid, OCTAL_7_DIGITS, b"gid", records),
        mtime_seconds=min(max(seconds, 0), OCTAL_11_DIGITS),
        link=_field(_raw(member.link_target, member), NAME_BYTES, b"linkpath", records),
        uname=_field(_raw(member.uname, member), OWNER_NAME_BYTES, b"uname", records),
        gname=_field(_raw(member.gname, member), OWNER_NAME_BYTES, b"gname", records),
        device_major=member.device_major,
        device_minor=member.device_minor,
    )


def _encode_block(
    *,
    name: bytes,
    flag: bytes,
    size_bytes: int,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime_seconds: int = 0,
    link: bytes = b"",
    uname: bytes = b"",
    gname: bytes = b"",
    device_major: int = 0,
    device_minor: int = 0,
    prefix: bytes = b"",
) -> bytes:
    ids = (b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid)
    sizes = (b"%011o\0" % size_bytes, b"%011o\0" % mtime_seconds)
    devices = (b"%07o\0" % device_major, b"%07o\0" % device_minor)
    block = HEADER.pack(name, *ids, *sizes, b"", flag, link, USTAR_MAGIC, uname, gname, *devices, prefix)
    return block[: CHECKSUM.start] + b"%06o\0 " % byte_sum(block, block[CHECKSUM]) + block[CHECKSUM.stop :]


def _split_path(path: bytes) -> tuple[bytes, bytes]:
    if not path.isascii():
        return b"", b""
    if len(path) <= NAME_BYTES:
        return b"", path
    # The slash itself is not stored, so it can be neither the first byte nor the last.
    slash = path.rfind(b"/", max(1, len(path) - NAME_BYTES - 1), min(PREFIX_BYTES + 1, len(path) - 1))
    return (path[:slash], path[slash + 1 :]) if slash > 0 else (b"", b"")


def _field(raw: bytes, width: int, key: bytes, records: dict[bytes, bytes]) -> bytes:
    if len(raw) <= width and raw.isascii():
        return raw
    records[key] = raw
    return raw[:width].decode("ascii", "replace").encode("ascii", "replace")


def _number(value: int, largest: int, key: bytes, records: dict[bytes, bytes]) -> int:
    if value <= largest:
        return value
    records[key] = b"%d" % value
    return 0


def _decimal_seconds(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), NANOSECONDS)
    text = f"{'-' if nanoseconds < 0 else ''}{seconds}.{fraction:09}"
    return text.rstrip("0").rstrip(".").encode()


def _encode_record(key: bytes, value: bytes) -> bytes:
    rest = b" %b=%b\n" % (key, value)
    # The length counts its own digits, and to write them may take one more.
    return b"%d%b" % (len(rest) + len(str(len(rest) + len(str(len(rest))))), rest)


def _encode_filler(data_offset: int, align_bytes: int) -> bytes:
    size_bytes = _SHORTEST_FILLER_BYTES + -(data_offset + _SHORTEST_FILLER_BYTES) % align_bytes
    return (b"%d comment=" % size_bytes).ljust(size_bytes - 1) + b"\n"


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _raw(text: str, member: Member) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = b"\0"
    if b"\0" in raw or raw.decode("utf-8", "surrogateescape") != text:
        raise refusal(f"{text[:64]!a} is no text that a tar can hold", member.name)
    return raw
