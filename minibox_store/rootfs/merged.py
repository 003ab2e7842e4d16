"""The merged view of an image's layers, as it is kept: a section for each directory, read when it is looked into.

So to find one file costs what the directories on the way to it hold, and not what the image holds.
"""

import bisect
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from minibox_store.reports.file_status import FileKind, FileStatus
from minibox_store.rootfs.layer_entries import NO_DIGEST, decode_extras, encode_extras
from minibox_store.rootfs.merging import MergedFile
from minibox_store.rootfs.sidecar import Sidecar, WrongSidecar
from minibox_store.tar.member import NO_XATTRS, MemberKind, Segments

_KINDS = (
    (MemberKind.FILE, FileKind.FILE),
    (MemberKind.DIRECTORY, FileKind.DIRECTORY),
    (MemberKind.SYMLINK, FileKind.SYMLINK),
    (MemberKind.CHARACTER_DEVICE, FileKind.CHARACTER_DEVICE),
    (MemberKind.BLOCK_DEVICE, FileKind.BLOCK_DEVICE),
    (MemberKind.FIFO, FileKind.FIFO),
)
_FILE_KINDS = tuple(kind for _, kind in _KINDS)
_NUMBERS: Mapping[MemberKind, int] = {kind: number for number, (kind, _) in enumerate(_KINDS)}
_NANOSECONDS = 10**9
# Inode, kind, whether the content's digest is known, mode, uid, gid, size, mtime (seconds, and the rest), link count,
# layer, data offset, directory, where the extras lie and how long they are, the content's digest.
_RECORD = struct.Struct("<QB?HQQQqIIHQIII32s")
_EXTRA_BYTES = 14  # of these, how long the extras are
_BLOCK = struct.Struct("<II")
_EXTRAS = struct.Struct("<QQI")
_CACHED_BYTES = 32 * 1024 * 1024
_MOST_XATTR_NAMES = 256
_TOO_MANY = b"\0"


class FileNode(NamedTuple):
    """A file of the merged view; good as long as the view is open.

    Attributes:
        status: what the image says of it.
        layer: which layer its content lies in, from 0 on, as the manifest has them; of a file without content, which
            one says last what it is.
        data_offset: where in that layer's tar.
        content: the sha256 of a regular file's content, its 32 bytes; empty where it is not known.
        segments: which parts of the content are stored there; None where all of it is.
        directory: the number of a directory, -1 for anything else.
    """

    status: FileStatus
    layer: int
    data_offset: int
    content: bytes
    segments: Segments | None
    directory: int


class _Block(NamedTuple):
    """A directory: the names, sorted by their bytes, and what is known of each."""

    names: list[bytes]
    content: bytes
    records_at: int

    def node(self, number: int) -> FileNode:
        at = self.records_at + number * _RECORD.size
        return _decode_node(self.content, at, self.records_at + len(self.names) * _RECORD.size)


class MergedView:
    """The files of one image by name, from a sidecar. Its methods may be called from several threads.

    Args:
        sidecar: as :func:`encode_view` has made it.
        rebuild: gives another one, when it is found to be wrong; that one is not.

    Attributes:
        root: the image's root.
        xattr_names: those of all extended attributes of all files; None where there are too many to tell.
    """

    def __init__(self, sidecar: Sidecar, rebuild: Callable[[], Sidecar]) -> None:
        self._sidecar = sidecar
        self._rebuild = rebuild
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._cached_bytes = 0
        content = self._section(0)
        self.root = _decode_node(content, 0, _RECORD.size)
        extra_bytes = _RECORD.unpack_from(content)[_EXTRA_BYTES]
        self.xattr_names = _decode_xattr_names(content[_RECORD.size + extra_bytes :])

    def names(self, directory: FileNode) -> list[str]:
        """Return the names in a directory, sorted by their bytes."""
        return [name.decode("utf-8", "surrogateescape") for name in self._block(directory).names]

    def child(self, directory: FileNode, name: str) -> FileNode | None:
        """Return what a directory has under a name; None where it has nothing."""
        block = self._block(directory)
        try:
            wanted = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return None  # no bytes of a name are read as such a text
        number = bisect.bisect_left(block.names, wanted)
        if number == len(block.names) or block.names[number] != wanted:
            return None
        return block.node(number)

    def children(self, directory: FileNode, start: int = 0) -> Iterator[tuple[str, FileNode]]:
        """Return each name of a directory with what it stands for, sorted by the names' bytes; from a position on."""
        block = self._block(directory)
        return (
            (block.names[number].decode("utf-8", "surrogateescape"), block.node(number))
            for number in range(start, len(block.names))
        )

    def close(self) -> None:
        """Close the sidecar."""
        with self._lock:  # another one may be being made in its place
            self._sidecar.close()

    def _block(self, directory: FileNode) -> _Block:
        number = directory.directory
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
                return block
        block = _decode_block(self._section(1 + number))
        with self._lock:
            if number not in self._blocks:
                self._blocks[number] = block
                self._cached_bytes += len(block.content)
            while self._cached_bytes > _CACHED_BYTES and len(self._blocks) > 1:
                self._cached_bytes -= len(self._blocks.popitem(last=False)[1].content)
        return block

    def _section(self, number: int) -> bytes:
        sidecar = self._sidecar
        try:
            return sidecar.section(number)
        except WrongSidecar:
            with self._lock:
                if self._sidecar is sidecar:
                    self._sidecar = self._rebuild()
                    sidecar.close()
            return self._sidecar.section(number)


def encode_view(root: MergedFile) -> list[bytes]:
    """Return the sections of a sidecar that has this view."""
    # Numbers go by the order in which a walk comes by, level by level: the same layers give the same numbers.
    directories = [root]
    root.inode = inodes = 1
    root.link_count = 2
    for directory in directories:
        for _, child in _sorted_children(directory):
            if not child.inode:
                child.inode = inodes = inodes + 1
            if child.children is not None:
                child.number, child.link_count = len(directories), 2
                directories.append(child)
                directory.link_count += 1
            else:
                child.link_count += 1
    extras = bytearray()
    sections = [_encode_record(root, extras) + extras + _encode_xattr_names(directories)]
    for directory in directories:
        extras = bytearray()
        children = _sorted_children(directory)
        names = b"/".join([name for name, _ in children])
        records = [_encode_record(child, extras) for _, child in children]
        sections.append(b"".join([_BLOCK.pack(len(records), len(names)), names, *records, extras]))
    return sections


def _encode_xattr_names(directories: list[MergedFile]) -> bytes:
    """Return which extended attributes there are at all, so that who asks for another one need not be looked for."""
    names = set(directories[0].entry.xattrs)
    for directory in directories:
        for child in (directory.children or {}).values():
            if child.entry.xattrs:
                names.update(child.entry.xattrs)
        if len(names) > _MOST_XATTR_NAMES:
            return _TOO_MANY
    return b"\0".join(sorted(name.encode("utf-8", "surrogateescape") for name in names))


def _decode_xattr_names(content: bytes) -> frozenset[str] | None:
    if content == _TOO_MANY:
        return None
    return frozenset(name.decode("utf-8", "surrogateescape") for name in content.split(b"\0") if name)


def _sorted_children(directory: MergedFile) -> list[tuple[bytes, MergedFile]]:
    assert directory.children is not None, "only directories are asked"
    return sorted(
        ((name.encode("utf-8", "surrogateescape"), child) for name, child in directory.children.items()),
        key=lambda item: item[0],
    )


def _encode_record(file: MergedFile, extras: bytearray) -> bytes:
    entry = file.entry
    at = len(extras)
    if entry.link_target or entry.device_major or entry.device_minor or entry.xattrs or entry.segments is not None:
        target = entry.link_target.encode("utf-8", "surrogateescape")
        extras += _EXTRAS.pack(entry.device_major, entry.device_minor, len(target)) + target
        extras += encode_extras(entry.xattrs, entry.segments)
    seconds, nanoseconds = divmod(entry.mtime_nanoseconds, _NANOSECONDS)
    return _RECORD.pack(
        file.inode,
        _NUMBERS[entry.kind],
        bool(entry.content),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size_bytes,
        seconds,
        nanoseconds,
        file.link_count,
        file.layer,
        entry.data_offset,
        file.number,
        at,
        len(extras) - at,
        entry.content,
    )


def _decode_block(content: bytes) -> _Block:
    count, names_bytes = _BLOCK.unpack_from(content)
    records_at = _BLOCK.size + names_bytes
    names = content[_BLOCK.size : records_at].split(b"/") if count else []
    return _Block(names, content, records_at)


def _decode_node(content: bytes, at: int, extras_at: int) -> FileNode:
    (
        inode,
        kind_number,
        has_content,
        mode,
        uid,
        gid,
        size_bytes,
        seconds,
        nanoseconds,
        link_count,
        layer,
        data_offset,
        directory,
        extra_offset,
        extra_bytes,
        digest,
    ) = _RECORD.unpack_from(content, at)
    kind = _FILE_KINDS[kind_number]
    target, major, minor, xattrs, segments = "", 0, 0, NO_XATTRS, None
    if extra_bytes:
        start = extras_at + extra_offset
        major, minor, target_bytes = _EXTRAS.unpack_from(content, start)
        middle = start + _EXTRAS.size + target_bytes
        target = content[start + _EXTRAS.size : middle].decode("utf-8", "surrogateescape")
        xattrs, segments = decode_extras(content[middle : start + extra_bytes])
        if kind is FileKind.SYMLINK:
            size_bytes = target_bytes
    status = FileStatus(
        kind=kind,
        mode=mode,
        uid=uid,
        gid=gid,
        size_bytes=size_bytes,
        mtime_nanoseconds=seconds * _NANOSECONDS + nanoseconds,
        link_target=target,
        device_major=major,
        device_minor=minor,
        xattrs=xattrs,
        link_count=link_count,
        inode=inode,
    )
    is_directory = kind is FileKind.DIRECTORY
    return FileNode(
        status, layer, data_offset, digest if has_content else NO_DIGEST, segments, directory if is_directory else -1
    )
