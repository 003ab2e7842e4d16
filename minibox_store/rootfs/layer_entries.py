"""What a layer's members say, one after another, as an index keeps them: values, and their bytes.

Spec: OCI image-spec 1.1, layer.md.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from minibox_store.rootfs.placing import Meaning
from minibox_store.tar.member import NO_XATTRS, MemberKind, Segments

_MEANINGS: tuple[Meaning, ...] = ("entry", "whiteout", "opaque")
_KINDS = tuple(MemberKind)
_NANOSECONDS = 10**9
# Meaning, kind, whether segments are told, mode, uid, gid, size, mtime (seconds, and the rest), device, data offset.
_RECORD = struct.Struct("<BB?HQQQqIQQQHHII")
_PAIR = struct.Struct("<QQ")
_XATTR = struct.Struct("<HI")
NO_DIGEST = b""
DIGEST_BYTES = 32
_SEGMENT_BYTES = 128  # of a pair of numbers


class LayerEntry(NamedTuple):
    """One member that means something.

    Attributes:
        meaning: of the member; those that mean nothing have no entry.
        path: its components, joined by slashes; empty for the root.
        kind: what it is.
        mode: the twelve permission bits.
        uid: its owner.
        gid: its group.
        size_bytes: of its content, holes counted.
        mtime_nanoseconds: from the epoch.
        link_target: of a link, as the member has it.
        device_major: of a device.
        device_minor: of a device.
        xattrs: those that a tree would have.
        data_offset: where in the tar its content begins.
        content: the sha256 of its content; empty for what has none, and for one with holes that are too large to hash.
        segments: which parts of the content are stored, one behind another; None where all of it is.
    """

    meaning: Meaning
    path: str
    kind: MemberKind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    mtime_nanoseconds: int = 0
    link_target: str = ""
    device_major: int = 0
    device_minor: int = 0
    xattrs: Mapping[str, bytes] = NO_XATTRS
    data_offset: int = 0
    content: bytes = NO_DIGEST
    segments: Segments | None = None

    @property
    def extra_bytes(self) -> int:
        """What its extended attributes, its target and its map take in memory, about."""
        size_bytes = len(self.link_target) if self.kind is MemberKind.SYMLINK else 0
        if self.xattrs or self.segments:
            size_bytes += sum(len(name) + len(value) for name, value in self.xattrs.items())
            size_bytes += _SEGMENT_BYTES * len(self.segments or ())
        return size_bytes


def encode_entries(entries: Iterable[LayerEntry]) -> Iterator[bytes]:
    """Yield the bytes of each entry, in their order."""
    for entry in entries:
        path, target = _encoded(entry.path), _encoded(entry.link_target)
        extras = encode_extras(entry.xattrs, entry.segments) if entry.xattrs or entry.segments is not None else b""
        seconds, nanoseconds = divmod(entry.mtime_nanoseconds, _NANOSECONDS)
        record = _RECORD.pack(
            _MEANINGS.index(entry.meaning),
            _KINDS.index(entry.kind),
            bool(entry.content),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size_bytes,
            seconds,
            nanoseconds,
            entry.device_major,
            entry.device_minor,
            entry.data_offset,
            len(path),
            0,
            len(target),
            len(extras),
        )
        yield b"".join((record, path, target, extras, entry.content))


def iter_entries(pieces: Iterable[bytes]) -> Iterator[LayerEntry]:
    """Yield the entries of what :func:`encode_entries` yielded, cut into pieces anywhere."""
    content, at = b"", 0
    for piece in pieces:
        content, at = content[at:] + piece, 0
        while (found := _decode_entry(content, at)) is not None:
            entry, at = found
            yield entry


def _decode_entry(content: bytes, at: int) -> tuple[LayerEntry, int] | None:
    """Return the entry that begins at ``at``, and where it ends; None where the rest of it is still to come."""
    path_at = at + _RECORD.size
    if path_at > len(content):
        return None
    (
        meaning,
        kind,
        has_content,
        mode,
        uid,
        gid,
        size_bytes,
        seconds,
        nanoseconds,
        major,
        minor,
        data_offset,
        path_bytes,
        _,
        target_bytes,
        extra_bytes,
    ) = _RECORD.unpack_from(content, at)
    target_at = path_at + path_bytes
    extras_at = target_at + target_bytes
    digest_at = extras_at + extra_bytes
    end = digest_at + (DIGEST_BYTES if has_content else 0)
    if end > len(content):
        return None
    xattrs, segments = decode_extras(content[extras_at:digest_at]) if extra_bytes else (NO_XATTRS, None)
    entry = LayerEntry(
        _MEANINGS[meaning],
        content[path_at:target_at].decode("utf-8", "surrogateescape"),
        _KINDS[kind],
        mode,
        uid,
        gid,
        size_bytes,
        seconds * _NANOSECONDS + nanoseconds,
        content[target_at:extras_at].decode("utf-8", "surrogateescape"),
        major,
        minor,
        xattrs,
        data_offset,
        content[digest_at:end],
        segments,
    )
    return entry, end


def encode_extras(xattrs: Mapping[str, bytes], segments: Segments | None) -> bytes:
    """Return the bytes of what few files have."""
    parts = [struct.pack("<I", len(xattrs))]
    for name, value in xattrs.items():
        encoded = _encoded(name)
        parts += (_XATTR.pack(len(encoded), len(value)), encoded, value)
    if segments is not None:
        parts.append(b"".join(_PAIR.pack(*segment) for segment in segments) + b"s")
    return b"".join(parts)


def decode_extras(content: bytes) -> tuple[Mapping[str, bytes], Segments | None]:
    """Return what :func:`encode_extras` was given."""
    (count,) = struct.unpack_from("<I", content)
    at, xattrs = 4, {}
    for _ in range(count):
        name_bytes, value_bytes = _XATTR.unpack_from(content, at)
        at += _XATTR.size
        name = content[at : at + name_bytes].decode("utf-8", "surrogateescape")
        at += name_bytes
        xattrs[name] = content[at : at + value_bytes]
        at += value_bytes
    segments = None
    if at < len(content):
        segments = tuple((offset, size) for offset, size in _PAIR.iter_unpack(content[at:-1]))
    return xattrs or NO_XATTRS, segments


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
