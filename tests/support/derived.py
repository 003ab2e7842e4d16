"""What is made of a store's images, by hand: trees, mount points and indexes, as the library and others leave them."""

import json
from pathlib import Path

from tests.support.images import BuiltImage

TREE_BYTES = 5 + 3
UNFINISHED = "0123456789abcdef.tmp"


def hex_of(digest: str) -> str:
    """Return the hexadecimal digits of a digest."""
    return digest.partition(":")[2]


def plant_tree(path: Path) -> Path:
    """Make a directory with TREE_BYTES in its files, and a link that leads out of it."""
    (path / "usr" / "bin").mkdir(parents=True)
    (path / "usr" / "bin" / "tool").write_bytes(b"12345")
    (path / "file").write_bytes(b"123")
    (path / "file").chmod(0o400)
    return path


def extracted(root: Path, digest: str) -> Path:
    """Make the tree of one layer."""
    return plant_tree(root / "extracted" / hex_of(digest))


def base_layer(root: Path, tag: str, name: str | None = None, image: BuiltImage | None = None) -> Path:
    """Make the tree of a whole image; with ``name`` also what a pull writes beside it."""
    tree = plant_tree(root / "base_layers" / tag)
    if name is not None and image is not None:
        write_sidecar(root, tag, name, image)
    return tree


def write_sidecar(root: Path, tag: str, name: str, image: BuiltImage) -> Path:
    """Write what a pull writes beside a tree."""
    described = {"name": name, "manifest_digest": image.digest, "config_digest": image.config_digest}
    path = root / "base_layers" / f"{tag}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(described))
    return path


def file_index(root: Path, digest: str) -> Path:
    """Make the index of one layer's files."""
    path = root / "files" / digest.replace(":", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1234567")
    return path
