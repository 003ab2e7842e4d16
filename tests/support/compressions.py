"""One tar as a layer in all the forms that layers are found in."""

import gzip
import random
import sys
import zlib
from collections.abc import Callable, Mapping

from tests.support.images import OCI_LAYER, OCI_LAYER_GZIP, Layer, digest_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

_MEBIBYTE = 1024 * 1024
_BLOCK_BYTES = 256 * 1024  # more than zlib looks back, so that it finds nothing of the block before
_SKIPPED = b"\x5a\x2a\x4d\x18\x08\x00\x00\x00not data"


def half_random(size_bytes: int, *, salt: str = "") -> bytes:
    """Return bytes that can be compressed to about the half, as those of programs can."""
    source = random.Random(f"{salt}/{size_bytes}")
    words = [source.randbytes(source.randrange(2, 12)) for _ in range(1500)]
    block = b"".join(source.choices(words, k=_BLOCK_BYTES // 5))
    # Numbered, so that no two places are the same.
    blocks = (b"%d" % number + block for number in range(size_bytes // len(block) + 1))
    return b"".join(blocks)[:size_bytes]


def _pieces(tar: bytes, size_bytes: int) -> list[bytes]:
    return [tar[start : start + size_bytes] for start in range(0, len(tar), size_bytes)]


def _fixed_codes(tar: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31, 9, zlib.Z_FIXED)
    return compressor.compress(tar) + compressor.flush()


FORMS: Mapping[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": (OCI_LAYER, bytes),
    "gzip": (OCI_LAYER_GZIP, lambda tar: gzip.compress(tar, 6, mtime=0)),
    "gzip, stored": (OCI_LAYER_GZIP, lambda tar: gzip.compress(tar, 0, mtime=0)),
    "gzip, fixed codes": (OCI_LAYER_GZIP, _fixed_codes),
    "gzip, many members": (
        OCI_LAYER_GZIP,
        lambda tar: b"".join(gzip.compress(piece, 1, mtime=0) for piece in _pieces(tar, 700_001)),
    ),
    "gzip, with zeros behind it": (OCI_LAYER_GZIP, lambda tar: gzip.compress(tar, 1, mtime=0) + bytes(512)),
    "zstd, one frame": (OCI_LAYER_ZSTD, zstd.compress),
    "zstd, a frame for each file": (
        OCI_LAYER_ZSTD,
        lambda tar: b"".join(_SKIPPED + zstd.compress(piece) for piece in _pieces(tar, 100_003)) + _SKIPPED,
    ),
    "zstd, seekable": (
        OCI_LAYER_ZSTD,
        lambda tar: b"".join(zstd.compress(piece) for piece in _pieces(tar, _MEBIBYTE)) + _SKIPPED,
    ),
}


def layer_in(form: str, tar: bytes) -> Layer:
    """Return a tar as a layer in one of the :data:`FORMS`."""
    media_type, compress = FORMS[form]
    return Layer(content=compress(tar), media_type=media_type, diff_id=digest_of(tar))
