"""How the files of two images differ: by path, in all that an image says of a file but its inode.

Both views are walked side by side, in the order of their names' bytes, so nothing is kept but the answer. A directory
that only one has is told with all that is below it.
"""

from collections.abc import Iterator
from itertools import chain

from minibox_store.limits import MEBIBYTE
from minibox_store.reports.file_status import FileChange, FileChanges, FileKind, FileStatus
from minibox_store.rootfs.files import ImageFiles
from minibox_store.rootfs.merged import FileNode

_DEVICES = (FileKind.CHARACTER_DEVICE, FileKind.BLOCK_DEVICE)

_Named = tuple[str, FileNode]


def compare_files(before: ImageFiles, after: ImageFiles) -> FileChanges:
    """Return what is added, removed and changed from one image to the other.

    Raises:
        ContentMismatch: when contents had to be read, and a blob has changed since it was stored.
    """
    added: list[str] = []
    removed: list[str] = []
    changed: list[FileChange] = []
    for path, first, second in _pairs(before, after):
        if first is None:
            added.append(path)
        elif second is None:
            removed.append(path)
        else:
            what = tuple(_differences(before, first, after, second))
            if what:
                changed.append(FileChange(path=path, before=first.status, after=second.status, what=what))
    return FileChanges(added=tuple(added), removed=tuple(removed), changed=tuple(changed))


def _pairs(before: ImageFiles, after: ImageFiles) -> Iterator[tuple[str, FileNode | None, FileNode | None]]:
    yield "/", before.root, after.root
    stack = [("", _zipped(before.children(before.root), after.children(after.root)))]
    while stack:
        above, rest = stack[-1]
        for name, first, second in rest:
            path = f"{above}/{name}"
            yield path, first, second
            of_first = before.children(first) if first is not None and first.directory >= 0 else iter(())
            of_second = after.children(second) if second is not None and second.directory >= 0 else iter(())
            stack.append((path, _zipped(of_first, of_second)))
            break
        else:
            stack.pop()


def _zipped(
    before: Iterator[_Named], after: Iterator[_Named]
) -> Iterator[tuple[str, FileNode | None, FileNode | None]]:
    first, second = next(before, None), next(after, None)
    while first is not None or second is not None:
        order = _order(first, second)
        if order <= 0 and first is not None:
            name, of_first = first
            of_second = second[1] if order == 0 and second is not None else None
            yield name, of_first, of_second
            first = next(before, None)
        elif second is not None:
            yield second[0], None, second[1]
        if order >= 0:
            second = next(after, None)


def _order(first: _Named | None, second: _Named | None) -> int:
    if first is None:
        return 1
    if second is None:
        return -1
    left, right = first[0].encode(errors="surrogateescape"), second[0].encode(errors="surrogateescape")
    return (left > right) - (left < right)


def _differences(before: ImageFiles, first: FileNode, after: ImageFiles, second: FileNode) -> Iterator[str]:
    old, new = first.status, second.status
    if old.kind is not new.kind:
        yield "kind"
    elif old.kind is FileKind.FILE and not _is_same_content(before, first, after, second):
        yield "content"
    if old.kind is new.kind and old.kind in _DEVICES and _device(old) != _device(new):
        yield "device"
    if old.link_target != new.link_target:
        yield "link"
    if old.mode != new.mode:
        yield "mode"
    if old.mtime_nanoseconds != new.mtime_nanoseconds:
        yield "mtime"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"
    if old.kind is new.kind is FileKind.FILE and old.size_bytes != new.size_bytes:
        yield "size"
    if dict(old.xattrs) != dict(new.xattrs):
        yield "xattrs"


def _device(status: FileStatus) -> tuple[int, int]:
    return status.device_major, status.device_minor


def _is_same_content(before: ImageFiles, first: FileNode, after: ImageFiles, second: FileNode) -> bool:
    size_bytes = first.status.size_bytes
    if size_bytes != second.status.size_bytes:
        return False
    if first.content and second.content:
        return first.content == second.content
    return all(
        before.read_at(first, at, min(MEBIBYTE, end - at)) == after.read_at(second, at, min(MEBIBYTE, end - at))
        for start, end in _stored(first, second)
        for at in range(start, end, MEBIBYTE)
    )


def _stored(*files: FileNode) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which one of the files has something stored: elsewhere all of them are zeros."""
    segments = [((0, file.status.size_bytes),) if file.segments is None else file.segments for file in files]
    reached = 0
    for start, size_bytes in sorted(chain.from_iterable(segments)):
        if start + size_bytes > reached:
            yield max(start, reached), start + size_bytes
            reached = start + size_bytes
