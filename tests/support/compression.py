"""Layers as blobs: compressed in every way that a stranger may choose, and opened as the library opens them."""

import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from minibox_store.digest import Digest
from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.protocols import BlobStream
from minibox_store.rootfs.decoding import DecodedLayer
from tests.support.forks import run_forked
from tests.support.sources import PiecewiseStream, descriptor_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
LAYER = "application/vnd.oci.image.layer.v1.tar"
_CHUNK = bytes(MEBIBYTE)
_EMPTY_LAST_BLOCK = b"\x01\0\0"


def opened(
    blob: bytes,
    tar: bytes = b"",
    limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
    *,
    step_bytes: int = 1 << 30,
    stream: BlobStream | None = None,
    algorithm: str = "sha256",
) -> DecodedLayer:
    """Return the layer ``blob``, whose config promises ``tar``; its bytes come from ``stream``, if there is one."""
    descriptor = descriptor_for(blob, LAYER)
    stream = PiecewiseStream(blob, step_bytes=step_bytes) if stream is None else stream
    return DecodedLayer(stream, descriptor, Digest.of(tar, algorithm), limits)


def read_layer(layer: DecodedLayer, *, step_bytes: int = 1 << 16) -> bytes:
    """Return all bytes of a layer, held against its config; and close it."""
    with layer:
        content = b"".join(iter(lambda: layer.read(step_bytes), b""))
        layer.finish()
    return content


def gzipped(*parts: bytes) -> bytes:
    """Return a gzip stream of one member for each part."""
    return b"".join(gzip.compress(part, 6, mtime=0) for part in parts)


def gzip_with_fields(content: bytes) -> bytes:
    """Return a gzip stream whose header has all that one may have: extra field, name, comment, and a checksum."""
    header = b"\x1f\x8b\x08\x1f" + bytes(6) + b"\x03\0abc" + b"a-name\0" + b"a comment\0"
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    return header + gzipped(content)[10:]


def zstd_frames(*parts: bytes) -> bytes:
    """Return a zstd stream of one frame for each part, each with a checksum."""
    options: Mapping[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    return b"".join(zstd.compress(part, options=options) for part in parts)


def skippable_frame(content: bytes, kind: int = 0) -> bytes:
    """Return a zstd frame that means nothing."""
    return (0x184D2A50 + kind).to_bytes(4, "little") + len(content).to_bytes(4, "little") + content


def zstd_frame_of_window(window_log: int) -> bytes:
    """Return an empty zstd frame that asks for a window of 2 to the power of ``window_log`` bytes."""
    return b"\x28\xb5\x2f\xfd\0" + bytes([(window_log - 10) << 3]) + _EMPTY_LAST_BLOCK


def zstd_of_window(content: bytes, window_log: int) -> bytes:
    """Return a zstd frame that asks for such a window, and holds something."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
    return compressor.compress(content, zstd.ZstdCompressor.FLUSH_BLOCK) + compressor.flush()


def xz_streams(*parts: bytes) -> bytes:
    """Return an xz stream for each part."""
    return b"".join(lzma.compress(part, preset=1) for part in parts)


def xz_of_window(content: bytes, window_log: int) -> bytes:
    """Return an xz stream that asks for such a window."""
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << window_log}])


def gzip_bomb(size_bytes: int) -> bytes:
    """Return one gzip member of so many zeros."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    return b"".join(compressor.compress(_CHUNK) for _ in range(size_bytes // MEBIBYTE)) + compressor.flush()


def zstd_bomb(size_bytes: int) -> bytes:
    """Return one zstd frame of so many zeros."""
    compressor = zstd.ZstdCompressor()
    return b"".join(compressor.compress(_CHUNK) for _ in range(size_bytes // MEBIBYTE)) + compressor.flush()


def xz_bomb(size_bytes: int) -> bytes:
    """Return one xz stream of so many zeros."""
    compressor = lzma.LZMACompressor(preset=1)
    return b"".join(compressor.compress(_CHUNK) for _ in range(size_bytes // MEBIBYTE)) + compressor.flush()


def grows_by_less_than(most_bytes: int, function: Callable[[], None], *, timeout_seconds: float = 60.0) -> bool:
    """Run a function in a process of its own; return whether it ends well, at no time larger by ``most_bytes``."""

    def measured() -> None:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        function()
        growth = _status_bytes("VmHWM") - before
        if growth >= most_bytes:
            raise AssertionError(f"it grew by {growth} bytes")

    return run_forked(measured, timeout_seconds=timeout_seconds) == 0


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
