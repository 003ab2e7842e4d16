"""Stores for tests: brought into a state by the library, damaged and read by other means, on disks of all sorts."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minibox_store import Descriptor, IndexRepair, Store
from minibox_store.layout import Layout
from tests.support.forks import not_possible
from tests.support.images import BuiltImage
from tests.support.layouts import blob_path
from tests.support.sources import descriptors_of, memory_of


def open_store(root: Path, *, lock_timeout_seconds: float = 10.0) -> Store:
    """Return a store that waits neither for the disk nor for other tools to write what is damaged to its end."""
    return Store(root, durability="none", lock_timeout_seconds=lock_timeout_seconds, settle_seconds=0.0)


def open_layout(root: Path, *, lock_timeout_seconds: float = 10.0) -> Layout:
    """Return the same folder as an end of copies."""
    return Layout(root, durable=False, lock_timeout_seconds=lock_timeout_seconds, settle_seconds=0.0)


def put(root: Path, image: BuiltImage, *names: str) -> None:
    """Bring an image into a store under some names."""
    for name in names:
        open_store(root).import_image(memory_of({name: image}), name)


def put_dead(root: Path, image: BuiltImage) -> None:
    """Bring the blobs of an image into a store, and no name."""
    put(root, image, "dead:1")
    open_store(root).remove("dead:1")


def blob(root: Path, digest: str) -> Path:
    """Return where a store keeps a blob."""
    return blob_path(root, digest)


def layer_of(image: BuiltImage, number: int = 0) -> Descriptor:
    """Return the descriptor of a layer."""
    return next(each for each in descriptors_of(image) if str(each.digest) == image.layer_digests[number])


def mend_index(store: Store) -> IndexRepair:
    """Repair a store whose index.json cannot be read, and return what was done about that."""
    report = store.repair().index
    assert report is not None
    return report


def rot(path: Path) -> None:
    """Change one byte of a file, and neither its size nor its mode."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(mode)


@contextmanager
def mounted(
    folder: Path, *options: str, kind: str = "tmpfs", device: str = "none", is_possible: bool = False
) -> Iterator[Path]:
    """Mount something at a folder for the block. Where that is not permitted the test is skipped.

    Where MINIBOX_REQUIRE_PEERS is 1 it fails instead, and where it is known to be possible: then the options are wrong.
    """
    folder.mkdir(exist_ok=True)
    command = ("mount", "-t", kind, *(["-o", ",".join(options)] if options else []), device, str(folder))
    _run_mount(*command, is_possible=is_possible)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


@contextmanager
def whole_second_disk(folder: Path) -> Iterator[Path]:
    """Mount an ext4 that tells the times of its files in whole seconds, below a folder, as :func:`mounted`."""
    require_root()
    if shutil.which("mkfs.ext4") is None:
        not_possible("mkfs.ext4 is not installed")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    # Inodes of 128 bytes have no room for parts of a second.
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", image], check=True, capture_output=True, timeout=30)
    with mounted(folder / "disk", "loop", kind="ext4", device=str(image)) as disk:
        yield disk


@contextmanager
def bound(source: Path, folder: Path) -> Iterator[Path]:
    """Let a folder show another one for the block, as :func:`mounted`."""
    folder.mkdir(exist_ok=True)
    _run_mount("mount", "--bind", str(source), str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def remount(folder: Path, option: str) -> None:
    """Change an option of what is mounted at a folder."""
    _run_mount("mount", "-o", f"remount,{option}", str(folder))


def require_root() -> None:
    """Skip the test unless it runs as root; fail where MINIBOX_REQUIRE_PEERS is 1 and root would be needed."""
    if os.geteuid() != 0:
        not_possible("only root can do this")


def _run_mount(*command: str, is_possible: bool = False) -> None:
    if shutil.which(command[0]) is None:
        not_possible(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        assert not is_possible, done.stderr
        not_possible(f"mounting is not permitted: {done.stderr.strip()}")
