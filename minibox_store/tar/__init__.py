"""The tar format, strict and pure: an archive has exactly one reading here, or it is refused.

Read are old v7, ustar, PAX, and GNU's long names and base-256 numbers; written is ustar, with a PAX header only where
ustar cannot hold a value. Where GNU tar, Go, libarchive and Python's tarfile take the same bytes for different members,
the archive is refused: through that gap a member is smuggled past a check. So is an archive without its two closing
zero blocks, and a sparse file unless the caller takes such. Names are bytes on Linux: what is not UTF-8 is kept by
``surrogateescape``.
"""

from minibox_store.limits import TarLimits
from minibox_store.tar.encoding import encode_header, padding
from minibox_store.tar.format import BLOCK_BYTES, END_OF_ARCHIVE
from minibox_store.tar.member import Member, MemberKind
from minibox_store.tar.reader import ByteStream, TarReader

__all__ = [
    "BLOCK_BYTES",
    "END_OF_ARCHIVE",
    "ByteStream",
    "Member",
    "MemberKind",
    "TarLimits",
    "TarReader",
    "encode_header",
    "padding",
]
