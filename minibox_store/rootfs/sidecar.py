"""The files in which indexes are kept beside a store's blobs: a head, sections, and a checksum of each.

A sidecar is a help and no more: whatever is wrong with one, it is made anew. The head is verified when the file is
opened and each section when it is read, so that a large one costs what is used of it. Its name is that of the blob
which it speaks of; its subject says so once more, and whatever else must not have changed.
"""

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from minibox_store import _files, _moving
from minibox_store.digest import Digest

_MAGIC = b"minibox files 1\n"
_HEAD = struct.Struct("<II")  # the lengths of subject and table
_SECTION = struct.Struct("<QQ32s")
_CHECKSUM_BYTES = 32
_MODE = 0o600
_PARTS_AT_ONCE = 512  # mostly small ones; all of them would be a copy of what may be large
_LARGEST_HEAD_BYTES = 1 << 30
_MOST_UNNAMED_BYTES = 8 << 30


class WrongSidecar(Exception):
    """A sidecar that is not what was written, or speaks of something else. It never leaves this package."""


class _Bytes(Protocol):
    def read_at(self, offset: int, size_bytes: int) -> bytes: ...

    def close(self) -> None: ...


class _InMemory:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        return self._content[offset : offset + size_bytes]

    def close(self) -> None:
        self._content = b""


class _InFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        if offset + size_bytes > os.fstat(self._descriptor).st_size:
            raise WrongSidecar("it is cut off")
        return os.pread(self._descriptor, size_bytes, offset)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Sidecar:
    """One that was opened; its sections are read when they are asked for, by any thread.

    Raises:
        WrongSidecar: unless it has this subject and its head is whole.
    """

    def __init__(self, content: _Bytes, subject: bytes) -> None:
        self._content = content
        start = len(_MAGIC) + _HEAD.size
        head = content.read_at(0, start)
        if len(head) < start or not head.startswith(_MAGIC):
            raise WrongSidecar("it is of another form")
        subject_bytes, table_bytes = _HEAD.unpack_from(head, len(_MAGIC))
        rest_bytes = subject_bytes + table_bytes + _CHECKSUM_BYTES
        if subject_bytes != len(subject) or rest_bytes > _LARGEST_HEAD_BYTES:
            raise WrongSidecar("it speaks of something else")
        rest = content.read_at(start, rest_bytes)
        checked = head + rest[:-_CHECKSUM_BYTES]
        if len(rest) != rest_bytes or hashlib.sha256(checked).digest() != rest[-_CHECKSUM_BYTES:]:
            raise WrongSidecar("its head is damaged")
        if rest[:subject_bytes] != subject:
            raise WrongSidecar("it speaks of something else")
        self._table = rest[subject_bytes:-_CHECKSUM_BYTES]
        self._data_offset = start + rest_bytes

    def __len__(self) -> int:
        return len(self._table) // _SECTION.size

    def section(self, number: int) -> bytes:
        """Return what was written as this section, verified now.

        Raises:
            WrongSidecar: when it is something else by now, or cannot be read.
        """
        offset, size_bytes, checksum = _SECTION.unpack_from(self._table, number * _SECTION.size)
        try:
            content = self._content.read_at(self._data_offset + offset, size_bytes)
        except OSError as error:
            raise WrongSidecar(str(error)) from error
        if hashlib.sha256(content).digest() != checksum:
            raise WrongSidecar(f"its section {number} is damaged")
        return content

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._content.close()


def _parts_of(subject: bytes, sections: Sequence[bytes]) -> list[bytes]:
    """Return what a sidecar has, one behind another."""
    table, offset = [], 0
    for section in sections:
        table.append(_SECTION.pack(offset, len(section), hashlib.sha256(section).digest()))
        offset += len(section)
    packed = b"".join(table)
    head = _MAGIC + _HEAD.pack(len(subject), len(packed)) + subject + packed
    return [head, hashlib.sha256(head).digest(), *sections]


class Sidecars:
    """The sidecars of one store.

    Args:
        folder: where they lie, below the store's root, which is not made if it is not there; None keeps them in memory.
        most_unnamed_bytes: how large all files without a name may be together.
    """

    def __init__(self, folder: str | None, *, most_unnamed_bytes: int = _MOST_UNNAMED_BYTES) -> None:
        self.folder = folder
        self._most_unnamed_bytes = most_unnamed_bytes
        self._unnamed_bytes = 0
        self._held: int | None = None
        self._lock = threading.Lock()

    def open(self, digest: Digest, subject: bytes) -> Sidecar | None:
        """Return the sidecar of a blob; None where there is none that is whole, ours, and of this subject."""
        if self.folder is None:
            return None
        try:
            descriptor = _files.open_regular(self._path(self.folder, digest))
        except OSError:
            return None
        opened = _InFile(descriptor)
        try:
            # Whoever may write into the store may write sidecars, and nobody else.
            if os.fstat(descriptor).st_uid == os.stat(os.path.dirname(self.folder)).st_uid:
                return Sidecar(opened, subject)
        except (WrongSidecar, OSError):
            pass
        opened.close()
        return None

    def write(self, digest: Digest, subject: bytes, sections: Sequence[bytes], *, in_memory: bool = False) -> Sidecar:
        """Return a new sidecar of a blob, kept beside the store for the next one where that may be written.

        Args:
            digest: of the blob.
            subject: what it speaks of.
            sections: of it.
            in_memory: whether what is returned has nothing to do with that file: it cannot be found to be wrong.
        """
        parts = _parts_of(subject, sections)
        if self._put(digest, parts) and not in_memory:
            opened = self.open(digest, subject)
            if opened is not None:
                return opened
        return Sidecar(_InMemory(b"".join(parts)), subject)

    @contextmanager
    def holding_folder(self) -> Iterator[None]:
        """Let files without a name need no path during the block, which may lead elsewhere by then."""
        self._held = -1
        with suppress(OSError):
            self._held = os.open(self._made_folder(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held >= 0:
                os.close(held)

    def open_unnamed(self, size_bytes: int) -> int | None:
        """Return a descriptor of a new file without a name, on the store's disk.

        Args:
            size_bytes: what it will hold; half of what was free there before the first one is left to others.

        Returns:
            None where there can be no such file.
        """
        try:
            if self._held is None:
                descriptor = _files.open_unnamed(self._made_folder())
            else:
                descriptor = _files.open_unnamed(".", dir_fd=self._held)
        except OSError:
            return None
        with self._lock:
            before, after = self._unnamed_bytes, self._unnamed_bytes + size_bytes
            free = os.fstatvfs(descriptor)
            if after <= self._most_unnamed_bytes and 2 * after <= before + free.f_bavail * free.f_frsize:
                self._unnamed_bytes = after
                return descriptor
        os.close(descriptor)
        return None

    def _put(self, digest: Digest, parts: Sequence[bytes]) -> bool:
        try:
            folder = self._made_folder()
            _files.make_directory(os.path.join(folder, digest.algorithm))
            with _files.replacing_file(self._path(folder, digest), mode=_MODE, durable=False) as opened:
                for first in range(0, len(parts), _PARTS_AT_ONCE):
                    _moving.write_all(opened, b"".join(parts[first : first + _PARTS_AT_ONCE]))
        except OSError:
            return False
        return True

    def _made_folder(self) -> str:
        if self.folder is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        root = os.path.dirname(self.folder)
        if os.stat(root).st_uid != os.geteuid():
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), root)
        _files.make_directory(self.folder)
        return self.folder

    @staticmethod
    def _path(folder: str, digest: Digest) -> str:
        return os.path.join(folder, digest.algorithm, digest.hex)
