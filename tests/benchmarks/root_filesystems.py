"""Images of files: a root filesystem of what this machine has installed, and trees of shapes that are easily slow.

Each layer is written as it is compressed and hashed, so that none is ever in memory.
"""

import hashlib
import io
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from tests.benchmarks.timing import BenchmarkFailed
from tests.support.images import OCI_LAYER_GZIP, Document, build_image_over
from tests.support.layouts import blob_path, write_layout

NAME = "latest"

_GZIP = 16 + zlib.MAX_WBITS
_USUAL_LEVEL = 6
# How far the files that were chosen may run ahead of their part of all bytes.
_AHEAD_BYTES = 4 * 1024 * 1024

Adds = Callable[[tarfile.TarFile], None]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A file or link of this machine that is a member of a layer: ``name`` in the image, ``path`` here."""

    name: str
    path: str
    size_bytes: int


def choose_files(count: int, total_bytes: int, *, with_usr: bool = True) -> list[Chosen]:
    """Return so many files of about so many bytes together, of this Python installation and, with it, /usr, by name.

    The same machine gives the same choice: the files are taken in the order of the digests of their names. What cannot
    be read is passed over.

    Raises:
        BenchmarkFailed: when there are not so many.
    """
    chosen: list[Chosen] = []
    taken_bytes = 0
    for _, name, path in sorted(_installed_files(with_usr)):
        size_bytes = _size_of(path)
        allowed_bytes = min(total_bytes * (len(chosen) + 1) // count + _AHEAD_BYTES, total_bytes)
        if size_bytes is None or taken_bytes + size_bytes > allowed_bytes:
            continue
        chosen.append(Chosen(name=name, path=path, size_bytes=size_bytes))
        taken_bytes += size_bytes
        if len(chosen) == count:
            return sorted(chosen, key=lambda file: file.name)
    raise BenchmarkFailed(f"this machine has {len(chosen)} files to choose from, not {count}")


def write_root_filesystem(root: Path, *, files: int, layers: int, total_bytes: int, with_usr: bool = True) -> int:
    """Write a layout with an image of this machine's files in gzip layers, and return how many entries it has."""
    chosen = choose_files(files, total_bytes, with_usr=with_usr)
    seen: set[str] = set()
    cuts = [files * number // layers for number in range(layers + 1)]
    # They are written one after the other, and each knows which directories those below it have made.
    write_image(root, [partial(_add_files, chosen[begin:end], seen) for begin, end in pairwise(cuts)])
    return len(seen) + files


def write_image(root: Path, layers: Iterable[Adds], *, level: int = _USUAL_LEVEL) -> None:
    """Write a layout with one image, each layer of the members that a function adds."""
    (root / "blobs" / "sha256").mkdir(parents=True)
    written = [_write_layer(root, adds, level) for adds in layers]
    image = build_image_over([descriptor for descriptor, _ in written], [diff_id for _, diff_id in written])
    write_layout(root, {NAME: image})


def add_file(tar: tarfile.TarFile, name: str, content: bytes = b"") -> None:
    """Add a regular file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def add_directory(tar: tarfile.TarFile, name: str) -> None:
    """Add a directory."""
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(member)


def _installed_files(with_usr: bool) -> Iterator[tuple[bytes, str, str]]:
    """Yield of all that is no directory the digest of its name in the image, that name, and its path."""
    bases = {"opt/python": os.path.realpath(sys.base_prefix), **({"usr": "/usr"} if with_usr else {})}
    for below, base in bases.items():
        for folder, subfolders, names in os.walk(base):
            # The installation may be below /usr, and is a base by itself.
            subfolders[:] = [each for each in subfolders if os.path.join(folder, each) not in bases.values()]
            for file in names:
                path = os.path.join(folder, file)
                name = f"{below}{path.removeprefix(base)}"
                yield hashlib.sha256(os.fsencode(name)).digest(), name, path


def _size_of(path: str) -> int | None:
    """Return how many bytes a regular file has, and a link 0; None for what is neither, or cannot be read."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else None


def _add_files(files: Iterable[Chosen], seen: set[str], tar: tarfile.TarFile) -> None:
    for file in files:
        for parent in reversed(Path(file.name).parents[:-1]):
            if str(parent) not in seen:
                seen.add(str(parent))
                add_directory(tar, str(parent))
        member = tar.gettarinfo(file.path, arcname=file.name)
        # As most builders write it; a fraction would need a header of its own for each file.
        member.mtime = int(member.mtime)
        if member.islnk():
            # Which one comes first is a matter of what was chosen.
            member.type, member.linkname, member.size = tarfile.REGTYPE, "", file.size_bytes
        if member.isreg():
            with open(file.path, "rb") as content:
                tar.addfile(member, content)
        else:
            tar.addfile(member)


class _LayerFile(io.RawIOBase):
    """What tarfile writes to: the bytes are hashed, compressed, and hashed again."""

    def __init__(self, path: Path, level: int) -> None:
        self._file = path.open("wb")
        self._compressor = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
        self._plain, self._stored = hashlib.sha256(), hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile gives bytes
        self._plain.update(data)
        self._keep(self._compressor.compress(data))
        return len(data)

    def finish(self) -> tuple[str, str]:
        """Return the digest of what is stored, and the diffID."""
        self._keep(self._compressor.flush())
        self._file.close()
        return f"sha256:{self._stored.hexdigest()}", f"sha256:{self._plain.hexdigest()}"

    def _keep(self, data: bytes) -> None:
        self._stored.update(data)
        self._file.write(data)


def _write_layer(root: Path, adds: Adds, level: int) -> tuple[Document, str]:
    unnamed = root / "blobs" / "unnamed"
    layer = _LayerFile(unnamed, level)
    with tarfile.open(fileobj=layer, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
        adds(tar)
    digest, diff_id = layer.finish()
    unnamed.rename(blob_path(root, digest))
    return {"mediaType": OCI_LAYER_GZIP, "digest": digest, "size": blob_path(root, digest).stat().st_size}, diff_id
