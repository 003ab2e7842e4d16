"""What a file of an image is, as values: looked at where it lies, in layers, or in a tree."""

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from minibox_store.values import Value

_NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})


class FileKind(enum.Enum):
    """What a name of a file system stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "fifo"


@attrs.frozen(kw_only=True, repr=False)
class FileStatus(Value):
    """What an image says of one file.

    Attributes:
        kind: what it is.
        mode: the twelve permission bits.
        uid: the owner's number, as the image has it.
        gid: the group's number.
        size_bytes: of a regular file its size, of a symbolic link that of its target, else 0.
        mtime_nanoseconds: when it was changed, from the epoch.
        link_target: where a symbolic link points, as the image has it; else empty.
        device_major: of a device.
        device_minor: of a device.
        xattrs: extended attributes by name.
        link_count: how many names the file has; of a directory two more than the directories in it.
        inode: a number that the names of one file share, and no other file of the image has.
    """

    kind: FileKind
    mode: int
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    mtime_nanoseconds: int = 0
    link_target: str = ""
    device_major: int = 0
    device_minor: int = 0
    xattrs: Mapping[str, bytes] = attrs.field(default=_NO_XATTRS, hash=False)
    link_count: int = 1
    inode: int = 0


@attrs.frozen(kw_only=True, repr=False)
class FileChange(Value):
    """What differs at a path that both images have.

    Attributes:
        path: from the root, with a leading slash.
        before: what the first image has.
        after: what the second one has.
        what: which of ``content``, ``device``, ``kind``, ``link``, ``mode``, ``mtime``, ``owner``, ``size`` and
            ``xattrs`` differ, in this order.
    """

    path: str
    before: FileStatus
    after: FileStatus
    what: tuple[str, ...]


@attrs.frozen(kw_only=True, repr=False)
class FileChanges(Value):
    """How the files of one image differ from those of another one; each in the order of the paths.

    Attributes:
        added: paths that only the second image has.
        removed: paths that only the first one has.
        changed: paths that both have, and what differs there.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[FileChange, ...]
