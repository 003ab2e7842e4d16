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
from collections.abc import Callable, Iterable
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
# How far the files that were chosen may run ahead of their part of all bytes; which part of all, where those are few:
# large files would leave no room for the others.
_AHEAD_BYTES = 4 * 1024 * 1024
_AHEAD_PART = 16
# Which part of all files one directory may have: a machine with all manuals has more than ten thousand in one.
_LARGEST_PART = 10

Adds = Callable[[tarfile.TarFile], None]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A file or link of this machine that is a member of a layer: ``name`` in the image, ``path`` here."""

    name: str
    path: str
    size_bytes: int


def choose_files(count: int, total_bytes: int, *, with_usr: bool = True, scattered: bool = False) -> list[Chosen]:
    """Return so many files of about so many bytes together, of this Python installation and, with it, /usr, by name.

    They are those of whole directories, each with all that lies directly in it, so that the directories are filled as
    those of a root filesystem are; the last one is cut off where there are enough. The same machine gives the same
    choice: the directories are taken in the order of the digests of their names. What cannot be read is passed over,
    and so is a directory with so many files or bytes that too little room were left for others.

    Args:
        count: how many files.
        total_bytes: the most that they may have together.
        with_usr: whether /usr is looked through.
        scattered: choose each file by itself, as if it were a directory: then there is hardly a directory of the
            machine that is not there, and few have more than two files. No root filesystem is like that.

    Raises:
        BenchmarkFailed: when there are not so many.
    """
    chosen: list[Chosen] = []
    taken_bytes = 0
    ahead_bytes = min(_AHEAD_BYTES, total_bytes // _AHEAD_PART)
    for _, folder in sorted(_installed_files(with_usr, scattered).items()):
        files = [
            Chosen(name=name, path=path, size_bytes=size)
            for name, path in folder
            if (size := _size_of(path)) is not None
        ]
        size_bytes = sum(file.size_bytes for file in files)
        allowed_bytes = min(total_bytes * (len(chosen) + len(files)) // count + ahead_bytes, total_bytes)
        if len(files) > count // _LARGEST_PART or taken_bytes + size_bytes > allowed_bytes:
            continue
        chosen += files
        taken_bytes += size_bytes
        if len(chosen) >= count:
            return sorted(chosen[:count], key=lambda file: file.name)
    raise BenchmarkFailed(f"this machine has {len(chosen)} files to choose from, not {count}")


def write_root_filesystem(
    root: Path, *, files: int, layers: int, total_bytes: int, with_usr: bool = True, scattered: bool = False
) -> int:
    """Write a layout with an image of this machine's files in gzip layers, and return how many entries it has."""
    chosen = choose_files(files, total_bytes, with_usr=with_usr, scattered=scattered)
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


def _installed_files(with_usr: bool, scattered: bool) -> dict[bytes, list[tuple[str, str]]]:
    """Return what is no directory, its name in the image and its path; by the digest of its directory's name.

    Where they are to be scattered, it is the digest of its own name.
    """
    found: dict[bytes, list[tuple[str, str]]] = {}
    bases = {"opt/python": os.path.realpath(sys.base_prefix), **({"usr": "/usr"} if with_usr else {})}
    for below, base in bases.items():
        for folder, subfolders, names in os.walk(base):
            # The installation may be below /usr, and is a base by itself.
            subfolders[:] = [each for each in subfolders if os.path.join(folder, each) not in bases.values()]
            named = f"{below}{folder.removeprefix(base)}"
            for file in sorted(names):
                name = f"{named}/{file}"
                key = hashlib.sha256(os.fsencode(name if scattered else named)).digest()
                found.setdefault(key, []).append((name, os.path.join(folder, file)))
    return found


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
