"""Layouts of very many small blobs: made once, in memory, and written as files as often as a run needs a fresh one."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.timing import BenchmarkFailed
from tests.support.images import OCI_LAYER, BuiltImage, Layer, build_image, digest_of
from tests.support.layouts import write_layout_files

DOCUMENTS = 2  # of each image: a manifest and a config

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@dataclass(frozen=True, kw_only=True)
class SmallBlobs:
    """Images of small blobs, and further blobs that none of them needs.

    Attributes:
        images: By name.
        live: What the images need, by the hexadecimal digits of its digest.
        dead: What they do not need, in the same way.
    """

    images: Mapping[str, BuiltImage]
    live: Mapping[str, bytes]
    dead: Mapping[str, bytes]

    def write(self, root: Path) -> None:
        """Write everything as a layout, which is not there yet."""
        self.write_live(root)
        self.write_dead(root)

    def write_live(self, root: Path) -> None:
        """Write the images alone as a layout, which is not there yet."""
        _blobs(root).mkdir(parents=True)
        _write_files(_blobs(root), self.live)
        write_layout_files(root, {name: image.root for name, image in self.images.items()})

    def write_dead(self, root: Path) -> None:
        """Write what nothing needs into a layout that does not have it."""
        _write_files(_blobs(root), self.dead)

    def check_collected(self, root: Path) -> None:
        """Raise BenchmarkFailed unless everything is there that an image needs, and nothing else."""
        found = {entry.name: entry.stat().st_size for entry in os.scandir(_blobs(root))}
        lost = sum(found.get(name) != len(content) for name, content in self.live.items())
        left = sum(name not in self.live for name in found)
        if lost or left:
            raise BenchmarkFailed(f"{lost} of {len(self.live)} live blobs are gone, and {left} dead ones are left")


def make_small_blobs(*, images: int, live_blobs: int, dead_blobs: int, blob_bytes: int) -> SmallBlobs:
    """Return so many blobs, each layer and each dead one of ``blob_bytes``, the live ones evenly in the images."""
    layers = live_blobs // images - DOCUMENTS
    named = {f"app:{number}": _image(number, layers, blob_bytes) for number in range(images)}
    return SmallBlobs(
        images=named,
        live=_by_hex(content for image in named.values() for content in image.blobs.values()),
        dead=_by_hex(_content("dead", number, blob_bytes) for number in range(dead_blobs)),
    )


def _image(number: int, layers: int, blob_bytes: int) -> BuiltImage:
    contents = [_content(f"layer {number}", layer, blob_bytes) for layer in range(layers)]
    # What lies in a layer is of no interest here, so it is no tar.
    return build_image(
        [Layer(content=content, media_type=OCI_LAYER, diff_id=digest_of(content)) for content in contents],
        salt=str(number),
    )


def _content(kind: str, number: int, size_bytes: int) -> bytes:
    return json.dumps([kind, number]).encode().ljust(size_bytes, b".")


def _by_hex(contents: Iterable[bytes]) -> dict[str, bytes]:
    return {digest_of(content).partition(":")[2]: content for content in contents}


def _blobs(root: Path) -> Path:
    return root / "blobs" / "sha256"


def _write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    # By the calls of the system alone: with 200,000 files, what is around them takes longer than they do.
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name, content in contents.items():
            file = os.open(name, _NEW, 0o644, dir_fd=opened)
            try:
                os.write(file, content)
            finally:
                os.close(file)
    finally:
        os.close(opened)
