"""Where the fields of a header block lie, and which PAX keywords count: all that reading and writing share.

Spec: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar 1.35 manual, "Basic Tar Format".
"""

import struct
from zlib import adler32

BLOCK_BYTES = 512
ZERO_BLOCK = bytes(BLOCK_BYTES)
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)

HEADER = struct.Struct("100s8s8s8s12s12s8ss100s8s32s32s8s8s155s12x")
# The same, in the parts that a reader takes apart: mode, uid and gid in one, magic, uname and gname in another.
PARTS = struct.Struct("100s24s12s12s8sB100s72s8s8s155s12x")
CHECKSUM, SIZE, TYPE = slice(148, 156), slice(124, 136), 156
NAME_BYTES, PREFIX_BYTES, OWNER_NAME_BYTES = 100, 155, 31

USTAR_MAGIC, GNU_MAGIC, V7_MAGIC = b"ustar\x0000", b"ustar  \x00", bytes(8)
OCTAL_7_DIGITS, OCTAL_11_DIGITS = 8**7 - 1, 8**11 - 1
LARGEST_NUMBER = 2**63 - 1
NANOSECONDS = 10**9

XATTR_PREFIX = b"SCHILY.xattr."
GLOBAL_KEYS = frozenset((b"uid", b"gid", b"uname", b"gname", b"mtime"))
PAX_KEYS = GLOBAL_KEYS | {b"path", b"linkpath", b"size"}


def byte_sum(block: bytes, checksum: bytes) -> int:
    """Return what the checksum of a header block must be: the sum of its bytes, those of ``checksum`` as spaces."""
    # The low half of an Adler-32 is one more than the sum of the bytes while that is below 65,521, as 512 of ASCII
    # always are. It comes in a tenth of the time of sum(), which would be half of what a member takes.
    if block.isascii():
        return (adler32(block) & 0xFFFF) - (adler32(checksum) & 0xFFFF) + 8 * 32
    return sum(block) - sum(checksum) + 8 * 32
