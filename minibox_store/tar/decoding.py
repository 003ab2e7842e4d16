"""Bytes of one header to values: each function refuses what two readers of tar could take for different things.

All bytes here are untrusted. ``name`` is the member that an error names, where it is known already.
"""

import re
from collections.abc import Mapping

from minibox_store.errors import InvalidArchive
from minibox_store.tar.format import (
    GLOBAL_KEYS,
    GNU_MAGIC,
    LARGEST_NUMBER,
    NANOSECONDS,
    OCTAL_11_DIGITS,
    PAX_KEYS,
    USTAR_MAGIC,
    V7_MAGIC,
    XATTR_PREFIX,
    byte_sum,
)
from minibox_store.tar.member import DEVICES, LINKS, NO_XATTRS, MemberKind, refusal

Records = Mapping[bytes, bytes]
# Mode, uid, gid, uname and gname.
Owner = tuple[int, int, int, str, str]

# POSIX has the contiguous "7" read as a file; NUL is the file of old v7.
KINDS = {kind.value[0]: kind for kind in MemberKind} | {0: MemberKind.FILE, ord("7"): MemberKind.FILE}
SPARSE_TYPE = ord("S")
KINDS_AND_SPARSE = KINDS | {SPARSE_TYPE: MemberKind.FILE}
SPARSE_KEY = b"GNU.sparse."
_DIRECTORY_FLAGS = (0, ord("5"))
NOTHING_SPECIAL = ("", 0, 0)
_GLOBAL_VALUE_BYTES = 255
_CHARSETS = (b"", b"BINARY", b"ISO-IR 10646 2000 UTF-8")
_RECORD = re.compile(rb"([1-9][0-9]{0,9}) ([^=]+)=")
_SECONDS = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


def check_checksum(block: bytes, field: bytes, offset: int) -> None:
    """Refuse a block whose checksum, ``field``, is not that of its bytes; they count unsigned, as POSIX has it.

    Raises:
        InvalidArchive: naming the place, for what has no checksum may be anything.
    """
    try:
        claimed = decode_number(field, "checksum", None)
    except InvalidArchive:
        claimed = -1
    if claimed != byte_sum(block, field):
        raise refusal(f"there is no tar header at byte {offset}, for the checksum is wrong")


def decode_number(field: bytes, what: str, name: str | None) -> int:
    """Return the number in a field, octal or GNU's base 256, which may be negative; a blank field is zero."""
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit():
        digits = digits.lstrip(b" ")
    # int() by itself would take "0o7", "1_0" and "-1" too.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif not digits:
        return 0
    elif field[0] in (0x80, 0xFF):
        value = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
        if -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
            return value
    raise refusal(f"its {what} is no number that a tar can hold: {field!r}", name)


def decode_unsigned(field: bytes, what: str, name: str | None) -> int:
    """Return the number in a field where a negative one has no meaning."""
    value = decode_number(field, what, name)
    if value < 0:
        raise refusal(f"its {what} is negative", name)
    return value


def _text(raw: bytes, what: str, name: str | None = None) -> str:
    if b"\0" in raw:
        raise refusal(f"its {what} has a NUL inside", name)
    return raw.decode("utf-8", "surrogateescape")


def decode_name(field: bytes, prefix: bytes, magic_and_names: bytes, records: Records) -> str:
    """Return the member's name: of an extension header, or else of its own, with the prefix where it is POSIX's."""
    raw = field.rstrip(b"\0")
    # GNU tar keeps times and sparse maps in the prefix's place.
    if prefix[0] and magic_and_names.startswith(USTAR_MAGIC):
        raw = prefix.rstrip(b"\0") + b"/" + raw
    if records:
        raw = records.get(b"path") or raw
    if not raw or 0 in raw:
        raise refusal("a member has no name, or one with a NUL inside")
    return raw.decode("utf-8", "surrogateescape")


def decode_directory(flag: int, name: str) -> tuple[MemberKind, str]:
    """Return the kind and the name of a file or directory whose name ends with a slash."""
    # Old v7 marks a directory by the slash alone. On a file "0", GNU tar takes it for that mark, and Go does not.
    if flag not in _DIRECTORY_FLAGS:
        raise refusal("it is a file with the name of a directory", name)
    return MemberKind.DIRECTORY, name.rstrip("/") or "/"


def decode_special(
    kind: MemberKind, link: bytes, major: bytes, minor: bytes, records: Records, name: str
) -> tuple[str, int, int]:
    """Return the target of a link, which must have one, and the major and minor number of a device."""
    if kind in LINKS:
        target = records.get(b"linkpath") or link.rstrip(b"\0")
        if not target:
            raise refusal("it is a link without a target", name)
        return _text(target, "link target", name), 0, 0
    if kind in DEVICES:
        return "", decode_unsigned(major, "device number", name), decode_unsigned(minor, "device number", name)
    return NOTHING_SPECIAL


def decode_owner(mode_and_ids: bytes, magic_and_names: bytes, name: str) -> Owner:
    """Return mode, ids and names; what old v7 has in the place of the names means nothing."""
    magic, uname, gname = magic_and_names[:8], magic_and_names[8:40], magic_and_names[40:]
    if magic == V7_MAGIC:
        uname = gname = b""
    elif magic not in (USTAR_MAGIC, GNU_MAGIC):
        raise refusal(f"its header is of the unknown format {magic!r}", name)
    return (
        decode_unsigned(mode_and_ids[:8], "mode", name) & 0o7777,
        decode_unsigned(mode_and_ids[8:16], "uid", name),
        decode_unsigned(mode_and_ids[16:], "gid", name),
        _text(uname.rstrip(b"\0"), "user name", name),
        _text(gname.rstrip(b"\0"), "group name", name),
    )


def decode_long_name(body: bytes) -> bytes:
    """Return the name in the body of GNU's "L" or "K", which may not be empty: that would bring back the short one."""
    name = body.rstrip(b"\0")
    if not name:
        raise refusal("a GNU long name is empty")
    return name


def decode_records(body: bytes, sparse_records: list[tuple[bytes, bytes]] | None = None) -> dict[bytes, bytes]:
    """Return the records of a PAX header that count; the last of equal keys wins, as all readers have it.

    Those of a sparse file are refused, or added to ``sparse_records`` in their order, the equal ones too.
    """
    records = {}
    position = 0
    while position < len(body):
        start = _RECORD.match(body, position)
        end = position + int(start[1]) if start else 0
        # The length alone moves the reader on: zero would loop (CVE-2019-20907), a wrong one would hide records.
        if start is None or end <= start.end() or end > len(body) or body[end - 1] != ord("\n"):
            raise refusal(f"a PAX header has a malformed record at its byte {position}")
        key, value = start[2], body[start.end() : end - 1]
        if key in PAX_KEYS or key.startswith(XATTR_PREFIX):
            records[key] = value
        elif key.startswith(SPARSE_KEY):
            if sparse_records is not None:
                sparse_records.append((key, value))
            else:
                raise refusal("a PAX header announces a sparse file, which is not supported")
        elif key == b"hdrcharset" and value not in _CHARSETS:
            raise refusal(f"a PAX header is in the character set {value[:64]!r}, which is not supported")
        position = end
    return records


def decode_global_records(body: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX header for all members to come, few and short ones."""
    records = decode_records(body)
    for key, value in records.items():
        # Go ignores a global path or size and tarfile obeys it; and a long value would cost its length at every member.
        if key not in GLOBAL_KEYS or len(value) > _GLOBAL_VALUE_BYTES:
            raise refusal(f"a global PAX header gives all members one {key[:64]!r}, or one that is too long")
    return records


def _decimal(records: Records, key: bytes, default: int, name: str) -> int:
    value = records.get(key)
    if not value:
        return default
    if not value.isdigit() or len(value) > 19 or int(value) > LARGEST_NUMBER:
        raise refusal(f"its PAX {key.decode()} is no number that a tar can hold: {value[:64]!r}", name)
    return int(value)


def override_owner(owner: Owner, records: Records, name: str) -> Owner:
    """Return ``owner`` with what the records say; the mode has no record."""
    mode, uid, gid, uname, gname = owner
    raw_uname, raw_gname = records.get(b"uname"), records.get(b"gname")
    return (
        mode,
        _decimal(records, b"uid", uid, name),
        _decimal(records, b"gid", gid, name),
        _text(raw_uname, "user name", name) if raw_uname else uname,
        _text(raw_gname, "group name", name) if raw_gname else gname,
    )


def override_size(size_bytes: int, records: Records, name: str) -> int:
    """Return the size that the records say; the header must say the same, unless it cannot hold it."""
    actual = _decimal(records, b"size", size_bytes, name)
    # A reader that goes by the other size finds other members inside the data (CVE-2025-62518).
    if size_bytes != actual and (actual <= OCTAL_11_DIGITS or size_bytes not in (0, OCTAL_11_DIGITS)):
        raise refusal(f"its header gives it {size_bytes} bytes and its PAX record {actual}", name)
    return actual


def override_mtime(nanoseconds: int, records: Records, name: str) -> int:
    """Return the time that the records say, without what is finer than a nanosecond."""
    value = records.get(b"mtime")
    if not value:
        return nanoseconds
    match = _SECONDS.fullmatch(value)
    if match is None or int(match[2]) > LARGEST_NUMBER:
        raise refusal(f"its PAX mtime is no time: {value[:64]!r}", name)
    nanoseconds = int(match[2]) * NANOSECONDS + int((match[3] or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if match[1] else nanoseconds


def decode_xattrs(records: Records, name: str) -> Mapping[str, bytes]:
    """Return the extended attributes among the records, each value as it is, an empty one too."""
    raw = {key[len(XATTR_PREFIX) :]: value for key, value in records.items() if key.startswith(XATTR_PREFIX)}
    if b"" in raw:
        raise refusal("one of its extended attributes has no name", name)
    return {_text(key, "extended attribute", name): value for key, value in raw.items()} or NO_XATTRS
