"""Sparse files in tars, made by hand: each of GNU tar's four ways, byte for byte.

Nothing here knows ``minibox_store``.
"""

from tests.support.tars import BLOCK, GNU, base256, padded, pax, raw_header, with_checksum

Map = list[tuple[int, int]]

# What stands below GNU.sparse. in version 1.0; and in 0.0 and 0.1, for one segment in a file of 1,000 bytes.
VERSION = ((b"major", b"1"), (b"minor", b"0"))
PAX_0 = ((b"size", b"1000"), (b"numblocks", b"1"))
TEN = b"0123456789"


def octal(number: int) -> bytes:
    """Return the field of twelve bytes for a number."""
    return b"%011o\0" % number


def gnu_sparse(
    entries: list[bytes], *, stored: bytes = b"", size: bytes = octal(1000), more: bytes = b"\0", magic: bytes = GNU
) -> bytes:
    """Return a header of type "S" with these entries of 24 bytes, and the data."""
    header = bytearray(raw_header(flag=b"S", magic=magic, size=len(stored)))
    header[386:482] = b"".join(entries).ljust(96, b"\0")
    header[482:483] = more
    header[483:495] = size
    return with_checksum(bytes(header)) + padded(stored)


def entry(offset: int, count: int) -> bytes:
    """Return an entry of old GNU's map."""
    return octal(offset) + octal(count)


def sparse_pax(*records: tuple[bytes, bytes], stored: bytes = b"", flag: bytes = b"0") -> bytes:
    """Return a PAX header of records below ``GNU.sparse.``, and the member."""
    header = pax([(b"GNU.sparse." + key, value) for key, value in records])
    return header + raw_header(b"own", flag=flag, size=len(stored)) + padded(stored)


def data_map(text: bytes, *, stored: bytes = b"", size: bytes = b"1000") -> bytes:
    """Return a sparse file of version 1.0 with this text for its map."""
    return sparse_pax(*VERSION, (b"realsize", size), stored=padded(text) + stored)


def all_ways(segments: Map, size_bytes: int) -> list[bytes]:
    """Return a member with these segments of zeros as old GNU, 0.0, 0.1 and 1.0 have it."""
    stored = bytes(sum(count for _, count in segments))
    numbers = [b"%d" % number for segment in segments for number in segment]
    keys = [b"offset", b"numbytes"] * len(segments)
    head = ((b"size", b"%d" % size_bytes), (b"numblocks", b"%d" % len(segments)))
    lines = b"".join(line + b"\n" for line in (b"%d" % len(segments), *numbers))
    return [
        _old_gnu(segments, size_bytes, stored),
        sparse_pax(*head, *zip(keys, numbers, strict=True), stored=stored),
        sparse_pax(*head, (b"map", b",".join(numbers)), stored=stored),
        data_map(lines, stored=stored, size=b"%d" % size_bytes),
    ]


def _old_gnu(segments: Map, size_bytes: int, stored: bytes) -> bytes:
    entries = [base256(offset, 12) + base256(count, 12) for offset, count in segments]
    later = [b"".join(entries[start : start + 21]).ljust(504, b"\0") for start in range(4, len(entries), 21)]
    flags = [b"\1"] * len(later) + [b"\0"]
    whole = gnu_sparse(entries[:4], size=base256(size_bytes, 12), more=flags[0], stored=stored)
    blocks = [block + flag + bytes(7) for block, flag in zip(later, flags[1:], strict=True)]
    return whole[:BLOCK] + b"".join(blocks) + whole[BLOCK:]
