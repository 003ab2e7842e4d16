"""Tars made by hand, block for block, and streams that give them as files and pipes do.

Nothing here knows ``minibox_store``: the headers are those of POSIX, written down once more.
"""

import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.peers import require_peer
from tests.support.processes import plain_environment

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
_HEADER = struct.Struct("100s8s8s8s12s12s8ss100s8s32s32s8s8s155s12x")


def raw_header(
    name: bytes = b"a",
    *,
    flag: bytes = b"0",
    size: int | bytes = 0,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    link: bytes = b"",
    magic: bytes = USTAR,
    uname: bytes = b"",
    gname: bytes = b"",
    device: bytes = b"0000000\0",
    minor: bytes | None = None,
    prefix: bytes = b"",
) -> bytes:
    """Return one header block; each field as it is given, and the checksum that belongs to them."""
    octal = b"%011o\0" % size if isinstance(size, int) else size
    devices = (device, device if minor is None else minor)
    fields = (name, mode, uid, gid, octal, mtime, b"", flag, link, magic, uname, gname, *devices, prefix)
    return with_checksum(_HEADER.pack(*fields))


def with_checksum(block: bytes) -> bytes:
    """Return a header block with the checksum of its other bytes."""
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32) + block[156:]


def padded(content: bytes) -> bytes:
    """Return data, with the zeros up to the next block."""
    return content + bytes(-len(content) % BLOCK)


def extension(flag: bytes, body: bytes, *, size: int | bytes | None = None, magic: bytes = USTAR) -> bytes:
    """Return an extension header (``x``, ``g``, ``L`` or ``K``), which may lie about its size."""
    return raw_header(b"ext", flag=flag, size=len(body) if size is None else size, magic=magic) + padded(body)


def pax(records: Iterable[tuple[bytes, bytes]], *, flag: bytes = b"x") -> bytes:
    """Return a PAX header with these records."""
    return extension(flag, b"".join(pax_record(key, value) for key, value in records))


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return one record, its length found by trying."""
    rest = b" " + key + b"=" + value + b"\n"
    length = next(n for n in range(len(rest), len(rest) + 10) if n == len(rest) + len(str(n)))
    return str(length).encode() + rest


def negative_base256(value: int, width: int) -> bytes:
    """Return GNU's field for a number below zero."""
    return (value % (1 << 8 * width)).to_bytes(width, "big")


def base256(value: int, width: int) -> bytes:
    """Return GNU's field for a number that octal has no room for."""
    return b"\x80" + value.to_bytes(width - 1, "big")


class ForwardOnly:
    """A stream like a pipe: no seek, and never more than ``most`` bytes at once. It counts what it gives."""

    def __init__(self, content: bytes, most: int = 1 << 30) -> None:
        self._content = memoryview(content)
        self._most = most
        self.given_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, fewer than asked for where that is more than ``most``."""
        piece = bytes(self._content[self.given_bytes : self.given_bytes + min(size, self._most)])
        self.given_bytes += len(piece)
        return piece


class Joined:
    """A stream of pieces that are made when they are wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Return what is left of the piece at hand, or of the next one."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


class Endless:
    """A stream that repeats ``block`` for ever behind its beginning. It counts what it gives."""

    def __init__(self, beginning: bytes, block: bytes = bytes(BLOCK)) -> None:
        self._beginning = beginning
        self._block = block
        self.given_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Return ``size`` bytes."""
        if self._beginning:
            piece, self._beginning = self._beginning[:size], self._beginning[size:]
        else:
            piece = (self._block * (size // len(self._block) + 1))[:size]
        self.given_bytes += len(piece)
        return piece


def run_gnu_tar(folder: Path, *arguments: str | bytes, stdin: bytes = b"") -> bytes:
    """Run GNU tar in ``folder``, in UTF-8, and return its stdout.

    Raises:
        CalledProcessError: when it ends with an error.
    """
    environment = {**plain_environment(folder), "LC_ALL": "C.UTF-8", "TZ": "UTC0"}
    command = [require_peer("tar"), *arguments]
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, check=True, stdout=subprocess.PIPE, timeout=60
    )
    return done.stdout
