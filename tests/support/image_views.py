"""What a store shows of the files in an image, as the value that a tree on disk is read as."""

import hashlib
import os
import stat
from pathlib import Path

from minibox_store import FileKind, FileStatus, ImageFiles
from tests.support.trees import TreeEntry

_KINDS = {FileKind.SYMLINK: "link", FileKind.FIFO: "FIFO"}


def view_tree(image: ImageFiles) -> dict[str, TreeEntry]:
    """Return every entry of an image, the root as ``.``, by its path from there; all content is read."""
    found = {path[1:] or ".": status for path, status in image.walk()}
    names: dict[int, list[str]] = {}
    for path, status in found.items():
        names.setdefault(status.inode, []).append(path)
    return {path: _entry(image, path, status, names[status.inode]) for path, status in found.items()}


def _entry(image: ImageFiles, path: str, status: FileStatus, names: list[str]) -> TreeEntry:
    is_file = status.kind is FileKind.FILE
    is_link, is_directory = status.kind is FileKind.SYMLINK, status.kind is FileKind.DIRECTORY
    content = b""
    if is_file:
        with image.open(path) as file:
            content = file.read()
    if is_directory:
        assert status.link_count == 2 + sum(
            image.stat(f"{path}/{name}", follow_links=False).kind is FileKind.DIRECTORY for name in image.listdir(path)
        )
    return TreeEntry(
        kind=_KINDS.get(status.kind, status.kind.value),
        mode=0 if is_link else status.mode,
        uid=status.uid,
        gid=status.gid,
        size_bytes=status.size_bytes if is_file else 0,
        sha256=hashlib.sha256(content).hexdigest() if is_file else "",
        link_target=status.link_target,
        device=(status.device_major, status.device_minor) if status.kind.value.endswith("device") else None,
        xattrs=dict(sorted(status.xattrs.items())),
        mtime_nanoseconds=status.mtime_nanoseconds,
        same_file=tuple(sorted(names)) if len(names) > 1 else (),
        link_count=0 if is_directory else status.link_count,
    )


def sidecar_of(root: Path, digest: str) -> Path:
    """Return where a store keeps what it knows of the files in a blob."""
    algorithm, _, encoded = digest.partition(":")
    return root / "files" / algorithm / encoded


def mode_of(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(os.lstat(path).st_mode)
