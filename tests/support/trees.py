"""A directory tree as a value: everything of it that an image can say, read by descriptors and without any link's help.

Nothing here knows ``minibox_store``.
"""

import hashlib
import os
import stat
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: what was a file may be a FIFO by now.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TreeEntry:
    """What is at one path.

    Attributes:
        kind: ``file``, ``directory``, ``link``, ``FIFO``, ``character device``, ``block device`` or ``socket``; and
            ``name of nothing`` where a directory lists what is not there, as an overlay may.
        mode: With setuid, setgid and sticky; 0 of a link, which has none.
        uid: The owner.
        gid: The group.
        size_bytes: Of a file; else 0.
        sha256: Of a file's content; else empty.
        link_target: Of a link; else empty.
        device: Major and minor number of a device; else None.
        xattrs: By name, file capabilities among them.
        mtime_nanoseconds: When it was last changed.
        same_file: All paths of the tree that are this file, sorted; empty where this is the only one.
        link_count: How many names it has, within the tree and without; 0 of a directory, of which each file system
            counts others.
    """

    kind: str
    mode: int
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    sha256: str = ""
    link_target: str = ""
    device: tuple[int, int] | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    mtime_nanoseconds: int = 0
    same_file: tuple[str, ...] = ()
    link_count: int = 1


def read_tree(root: Path | str) -> dict[str, TreeEntry]:
    """Return every entry below ``root``, and ``root`` itself as ``.``, by its path from there.

    Bytes of a name that are no UTF-8 are as ``os.fsdecode`` gives them.
    """
    found: list[tuple[str, os.stat_result, TreeEntry]] = []
    descriptor = os.open(root, _DIRECTORY)
    status = os.fstat(descriptor)
    found.append((".", status, _entry(status, descriptor)))
    _read_folder(descriptor, "", found)
    names: dict[tuple[int, int], list[str]] = {}
    for path, status, entry in found:
        if entry.link_count > 1:
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    groups = {path: tuple(sorted(group)) for group in names.values() if len(group) > 1 for path in group}
    return {path: _with_names(entry, groups[path]) if path in groups else entry for path, _, entry in found}


class Difference(NamedTuple):
    """What is not the same in two trees: a field of what is at a path, or ``entry`` where one has nothing there."""

    path: str
    what: str
    first: object
    second: object

    def __str__(self) -> str:
        first, second = (f"{value:04o}" if self.what == "mode" else repr(value) for value in self[2:])
        return f"{self.path!r}: {self.what} {first}, {second}"


def tree_differences(
    first: Mapping[str, TreeEntry], second: Mapping[str, TreeEntry], *, but: Container[str] = ()
) -> list[Difference]:
    """Return everything that is not the same, in the order of the paths; nothing when the trees are equal.

    Args:
        first: One tree.
        second: The other.
        but: Names of fields of :class:`TreeEntry` that do not count.
    """
    return list(_iter_differences(first, second, but))


def assert_same_tree(
    first: Mapping[str, TreeEntry], second: Mapping[str, TreeEntry], *, but: Container[str] = ()
) -> None:
    """Fail, with a line for each difference, unless two trees are equal."""
    differences = tree_differences(first, second, but=but)
    assert not differences, "\n".join(["the trees differ:", *map(str, differences)])


def _iter_differences(
    first: Mapping[str, TreeEntry], second: Mapping[str, TreeEntry], but: Container[str]
) -> Iterator[Difference]:
    for path in sorted(first.keys() | second.keys()):
        one, other = first.get(path), second.get(path)
        if one is None or other is None:
            yield Difference(path, "entry", one and one.kind, other and other.kind)
            continue
        for each in fields(TreeEntry):
            ours, theirs = getattr(one, each.name), getattr(other, each.name)
            if each.name not in but and ours != theirs:
                yield Difference(path, each.name, ours, theirs)


def _read_folder(descriptor: int, prefix: str, found: list[tuple[str, os.stat_result, TreeEntry]]) -> None:
    """Read what is in an open directory, and close it; a folder in it is opened when all its names are read."""
    try:
        with os.scandir(descriptor) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            path = prefix + name
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                found.append((path, os.fstat(descriptor), TreeEntry(kind="name of nothing", mode=0)))
                continue
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFDIR:
                below = os.open(name, _DIRECTORY, dir_fd=descriptor)
                found.append((path, status, _entry(status, below)))
                _read_folder(below, f"{path}/", found)
            elif kind == stat.S_IFREG:
                opened = os.open(name, _FILE, dir_fd=descriptor)
                try:
                    found.append((path, status, _entry(status, opened)))
                finally:
                    os.close(opened)
            else:
                # Neither may be opened: but by the open directory, nothing before the name can be another.
                there = f"/proc/self/fd/{descriptor}/{name}"
                found.append((path, status, _entry(status, there)))
    finally:
        os.close(descriptor)


def _entry(status: os.stat_result, opened: int | str) -> TreeEntry:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_file, is_link = kind == "file", kind == "link"
    follows = isinstance(opened, int)
    names = os.listxattr(opened) if follows else os.listxattr(opened, follow_symlinks=False)
    return TreeEntry(
        kind=kind,
        mode=0 if is_link else stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size_bytes=status.st_size if is_file else 0,
        sha256=_sha256(opened) if is_file and isinstance(opened, int) else "",
        link_target=os.readlink(opened) if is_link and isinstance(opened, str) else "",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind.endswith("device") else None,
        xattrs={name: os.getxattr(opened, name, follow_symlinks=follows) for name in sorted(names)},
        mtime_nanoseconds=status.st_mtime_ns,
        link_count=0 if kind == "directory" else status.st_nlink,
    )


def _sha256(descriptor: int) -> str:
    hasher = hashlib.sha256()
    while piece := os.read(descriptor, _PIECE_BYTES):
        hasher.update(piece)
    return hasher.hexdigest()


def _with_names(entry: TreeEntry, names: tuple[str, ...]) -> TreeEntry:
    return TreeEntry(**{each.name: getattr(entry, each.name) for each in fields(entry)} | {"same_file": names})
