"""What is known of a layer once all of it has been read: its members, where their bytes lie, and what they must be.

One pass decompresses the layer within the bounds of unpacking, compares all of it with its diffID, and takes the digest
of each chunk of the tar, and of each file. From then on any chunk can be read by itself, and is verified by itself.
Where a compressed stream can be entered is found by a second pass, over bytes that are known to be right by then.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from minibox_store.decompressing import BEGINNING_BYTES, Compression, compression_of
from minibox_store.limits import UnpackLimits
from minibox_store.protocols import BlobStream
from minibox_store.rootfs.decoding import LayerClock, open_layer
from minibox_store.rootfs.layer_entries import DIGEST_BYTES, NO_DIGEST, LayerEntry, encode_entries, iter_entries
from minibox_store.rootfs.layers import LayerSource
from minibox_store.rootfs.ownership import NEVER_SET, check_ids, device_number
from minibox_store.rootfs.places import find_places
from minibox_store.rootfs.placing import place
from minibox_store.rootfs.restarting import Place
from minibox_store.rootfs.sidecar import Sidecar, Sidecars, WrongSidecar
from minibox_store.rootfs.tree_bounds import TreeBounds
from minibox_store.tar.member import DEVICES, NO_XATTRS, Member, MemberKind
from minibox_store.tar.reader import TarReader

CHUNK_BYTES = 256 * 1024

_DEFLATED_PIECE_BYTES = 4096  # of which 4 MiB come at most
_READ_BYTES = 128 * 1024
# Holes cost an image nothing, so that they may not cost whoever hashes them much.
_MOST_ZEROS_BYTES = 64 * 1024 * 1024
_FACTS = struct.Struct("<4sQQ")  # the compression, the size of the tar, how many places
_PLACE = struct.Struct("<QQB")
_FACTS_SECTION, _ENTRIES_SECTION, _FIRST_WINDOW_SECTION = 0, 1, 2
_COMPRESSIONS: tuple[Compression, ...] = ("gzip", "zstd", "none")
# No file system that Linux knows has room for more.
_LONGEST_XATTR_NAME_BYTES = 255
_LARGEST_XATTR_BYTES = 64 * 1024


def _subject(layer: LayerSource) -> bytes:
    return f"layer {layer.descriptor.digest} {layer.diff_id} {CHUNK_BYTES}".encode()


class LayerIndex:
    """The index of one layer, from its sidecar. Its methods may be called from several threads.

    Attributes:
        compression: what its bytes are compressed with.
        tar_bytes: how long its tar is.
        places: where a decoder of it can begin, the beginning first.

    Raises:
        WrongSidecar: here or later, when the sidecar is found to be wrong.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        facts = sidecar.section(_FACTS_SECTION)
        try:
            compression, self.tar_bytes, count = _FACTS.unpack_from(facts)
            self.compression: Compression = next(
                each for each in _COMPRESSIONS if each.encode() == compression.rstrip(b"\0")
            )
            end = _FACTS.size + count * _PLACE.size
            self.places = [Place(*fields) for fields in _PLACE.iter_unpack(facts[_FACTS.size : end])]
        except (struct.error, StopIteration) as error:
            raise WrongSidecar("its facts are none") from error
        self._digests = facts[end:]
        if len(self._digests) != -(-self.tar_bytes // CHUNK_BYTES) * DIGEST_BYTES or len(sidecar) != count + 2:
            raise WrongSidecar("parts of it are missing")

    def chunk_digest(self, number: int) -> bytes:
        """Return the sha256 of a chunk of the tar."""
        return self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def window(self, number: int) -> bytes:
        """Return what the decoder of the ``number``-th place must know of the output before it."""
        return zlib.decompress(self._sidecar.section(_FIRST_WINDOW_SECTION + number))

    def iter_entries(self) -> Iterator[LayerEntry]:
        """Yield what its members mean, in their order."""
        return iter_entries(_inflate(self._sidecar.section(_ENTRIES_SECTION)))

    def close(self) -> None:
        """Close the sidecar."""
        self._sidecar.close()


def open_layer_index(layer: LayerSource, sidecars: Sidecars, limits: UnpackLimits) -> LayerIndex:
    """Return the index of a layer: from its sidecar, or else from the layer, with a sidecar for the next time.

    Raises:
        InvalidArchive, ContentMismatch, MissingLibrary: as :func:`build_layer_index`.
    """
    sidecar = sidecars.open(layer.descriptor.digest, _subject(layer))
    if sidecar is None:
        sidecar = _build_sidecar(layer, sidecars, limits)
    try:
        return LayerIndex(sidecar)
    except WrongSidecar:
        sidecar.close()
    return build_layer_index(layer, sidecars, limits)


def build_layer_index(layer: LayerSource, sidecars: Sidecars, limits: UnpackLimits) -> LayerIndex:
    """Read a layer, verify it, and return its index in memory; a sidecar is kept for the next one to read it.

    It is for who has found a sidecar to be wrong: the disk may spoil the next one as well.

    Raises:
        InvalidArchive: when it is no layer, or passes a bound.
        ContentMismatch: when its tar is not what the config says.
        MissingLibrary: when it is compressed in a way that nothing installed reads, or enters.
    """
    return LayerIndex(_build_sidecar(layer, sidecars, limits, in_memory=True))


def _build_sidecar(layer: LayerSource, sidecars: Sidecars, limits: UnpackLimits, *, in_memory: bool = False) -> Sidecar:
    with open_layer(layer.source, layer.descriptor, layer.diff_id, limits) as decoded:
        chunks = _ChunkHasher(decoded)
        bounds = TreeBounds(f"layer {layer.descriptor.digest}", limits)
        entries = _deflate(encode_entries(_within_bounds(_iter_members(chunks, bounds), bounds)))
        while chunks.read(_READ_BYTES):
            pass
        decoded.finish()
    tar_bytes, digests = chunks.finish()

    def open_at(offset: int) -> BlobStream:
        return _InTime(layer.source.open_blob(layer.descriptor, offset), decoded.clock)

    compression = _compression_at(open_at(0))
    places, windows = find_places(
        compression,
        open_at,
        input_bytes=layer.descriptor.size_bytes,
        output_bytes=tar_bytes,
        window_log=limits.window_log,
    )
    facts = [_FACTS.pack(compression.encode(), tar_bytes, len(places)), *(_PLACE.pack(*each) for each in places)]
    sections = [b"".join([*facts, digests]), entries, *(zlib.compress(each, 1) for each in windows)]
    return sidecars.write(layer.descriptor.digest, _subject(layer), sections, in_memory=in_memory)


def _deflate(parts: Iterator[bytes]) -> bytes:
    """Do as zlib.compress for what is never in memory as a whole."""
    compressor = zlib.compressobj(1)
    deflated = [piece for part in parts if (piece := compressor.compress(part))]
    return b"".join([*deflated, compressor.flush()])


def _inflate(deflated: bytes) -> Iterator[bytes]:
    decompressor = zlib.decompressobj()
    for at in range(0, len(deflated), _DEFLATED_PIECE_BYTES):
        yield decompressor.decompress(deflated[at : at + _DEFLATED_PIECE_BYTES])


def _compression_at(stream: BlobStream) -> Compression:
    buffer = memoryview(bytearray(BEGINNING_BYTES))
    filled = 0
    try:
        while filled < len(buffer) and (count := stream.readinto(buffer[filled:])):
            filled += count
    finally:
        stream.close()
    return compression_of(bytes(buffer[:filled]))


class _InTime:
    """A blob that is read once more, as long as there is time for its layer."""

    def __init__(self, stream: BlobStream, clock: LayerClock) -> None:
        self._stream = stream
        self._clock = clock

    def readinto(self, buffer: memoryview, /) -> int:
        self._clock.check()
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _ChunkHasher:
    """A stream that hashes what passes, chunk by chunk."""

    def __init__(self, stream: _Readable) -> None:
        self._stream = stream
        self._digests: list[bytes] = []
        self._hasher = hashlib.sha256()
        self._room_bytes = CHUNK_BYTES
        self._passed_bytes = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._passed_bytes += len(data)
        if len(data) < self._room_bytes:
            self._hasher.update(data)
            self._room_bytes -= len(data)
            return data
        view = memoryview(data)
        while view:
            self._hasher.update(view[: self._room_bytes])
            taken = min(len(view), self._room_bytes)
            self._room_bytes -= taken
            view = view[taken:]
            if not self._room_bytes:
                self._digests.append(self._hasher.digest())
                self._hasher, self._room_bytes = hashlib.sha256(), CHUNK_BYTES
        return data

    def finish(self) -> tuple[int, bytes]:
        """Return how many bytes passed, and the digests of their chunks."""
        if self._room_bytes < CHUNK_BYTES:
            self._digests.append(self._hasher.digest())
        return self._passed_bytes, b"".join(self._digests)


def _iter_members(stream: _Readable, bounds: TreeBounds) -> Iterator[LayerEntry]:
    reader = TarReader(stream, sparse=True)
    for member in reader:
        bounds.count_member()
        placement = place(member)
        if placement.meaning == "ignored":
            continue
        path = "/".join(placement.parts)
        if placement.meaning == "entry" and member.kind is not MemberKind.HARDLINK:
            check_ids(member)
            if member.kind in DEVICES:
                device_number(member)
        if placement.meaning != "entry":
            yield LayerEntry(placement.meaning, path, MemberKind.FILE)
            continue
        yield LayerEntry(
            "entry",
            path,
            member.kind,
            member.mode,
            member.uid,
            member.gid,
            member.size_bytes,
            member.mtime_nanoseconds,
            member.link_target,
            member.device_major,
            member.device_minor,
            _kept_xattrs(member),
            member.data_offset,
            _hash_content(member, reader) if member.kind is MemberKind.FILE else NO_DIGEST,
            member.segments,
        )


def _within_bounds(entries: Iterator[LayerEntry], bounds: TreeBounds) -> Iterator[LayerEntry]:
    for entry in entries:
        bounds.count_entry(entry)
        yield entry


def _hash_content(member: Member, reader: TarReader) -> bytes:
    hasher = hashlib.sha256()
    if member.segments is None:
        while data := reader.read(_READ_BYTES):
            hasher.update(data)
        return hasher.digest()
    if member.size_bytes - member.stored_bytes > _MOST_ZEROS_BYTES:
        return NO_DIGEST
    at = 0
    for start, size_bytes in member.segments:
        _hash_zeros(hasher, start - at)
        at = start + size_bytes
        rest_bytes = size_bytes
        while rest_bytes:
            data = reader.read(min(rest_bytes, _READ_BYTES))
            hasher.update(data)
            rest_bytes -= len(data)
    _hash_zeros(hasher, member.size_bytes - at)
    return hasher.digest()


def _hash_zeros(hasher: "hashlib._Hash", size_bytes: int) -> None:
    for at in range(0, size_bytes, _READ_BYTES):
        hasher.update(bytes(min(_READ_BYTES, size_bytes - at)))


def _kept_xattrs(member: Member) -> Mapping[str, bytes]:
    if not member.xattrs:
        return NO_XATTRS
    return {name: value for name, value in member.xattrs.items() if _is_kept(name, value)}


def _is_kept(name: str, value: bytes) -> bool:
    if name.startswith(NEVER_SET) or len(value) > _LARGEST_XATTR_BYTES:
        return False
    return len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_XATTR_NAME_BYTES
