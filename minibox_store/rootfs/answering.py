"""What the kernel is told of a mounted image: everything may be kept, for nothing in it ever changes.

A directory is told together with the status of all that is in it, so that listing a tree asks nothing file by file; a
file is read without being opened first. Nothing of the host is touched by a path of the image: paths are looked up in
the image alone, and where a link leads is for the kernel to say. What cannot be read is an input/output error of that
one read, and a sentence in the log.

Spec: libfuse 3, fuse.h.
"""

import errno
import itertools
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from minibox_store.errors import StoreError
from minibox_store.reports.file_status import FileKind, FileStatus
from minibox_store.rootfs.libfuse import mfusepy
from minibox_store.rootfs.wakefulness import Wakefulness

_LOGGER = logging.getLogger(__name__)
_KINDS = {
    FileKind.FILE: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.CHARACTER_DEVICE: stat.S_IFCHR,
    FileKind.BLOCK_DEVICE: stat.S_IFBLK,
    FileKind.FIFO: stat.S_IFIFO,
}
_FOR_EVER_SECONDS = 1e9
_MOST_KNOWN = 4096
_BLOCK_BYTES = 4096
_LONGEST_NAME_BYTES = 255
_READDIRPLUS_AUTO = 1 << 14  # FUSE_CAP_READDIRPLUS_AUTO
_CACHE_SYMLINKS = 1 << 23  # FUSE_CAP_CACHE_SYMLINKS
_PLUS = 1  # FUSE_READDIR_PLUS: the kernel takes the status of what is in a directory too
_FILL_PLUS = 2  # FUSE_FILL_DIR_PLUS: here it is
_SECOND = 10**9
_OF_THE_SYSTEM = ("system.", "security.selinux")

_Answer = TypeVar("_Answer")
Node = TypeVar("Node", bound="ServedNode")


class ServedNode(Protocol):
    """A file of a served image."""

    @property
    def status(self) -> FileStatus:
        """What the image says of it."""


class ServedImage(Protocol[Node]):
    """What is asked of an image: its files, from the root downwards."""

    @property
    def root(self) -> Node:
        """The root."""

    @property
    def xattr_names(self) -> frozenset[str] | None:
        """The names of the extended attributes that any file has; None where that is not known."""

    def child(self, directory: Node, name: str, /) -> Node | None:
        """Return what a directory has under a name; None where it has nothing."""

    def children(self, directory: Node, start: int, /) -> Iterable[tuple[str, Node]]:
        """Return the names in a directory, in an order that stays, and what they stand for; from a position on."""

    def read_at(self, node: Node, offset: int, size_bytes: int, /) -> bytes:
        """Return verified bytes of a regular file, fewer only at its end."""


def options(fsname: str, *, for_everybody: bool) -> dict[str, Any]:
    """Return the options of the mount.

    Args:
        fsname: what the table of mounts shows as its source.
        for_everybody: whether all users may see it, as the permissions in the image say.
    """
    return {
        "foreground": True,
        # One question at a time: what Python answers does not get quicker by several threads, but for the hashing.
        "nothreads": True,
        **dict.fromkeys(["ro", "nosuid", "nodev", "default_permissions", "kernel_cache", "use_ino"], True),
        **dict.fromkeys(["attr_timeout", "entry_timeout", "negative_timeout"], int(_FOR_EVER_SECONDS)),
        "allow_other": for_everybody,
        "fsname": fsname,
        "subtype": "minibox",
    }


class Answers(Generic[Node]):
    """What mfusepy calls for each question of the kernel.

    Args:
        image: what is mounted.
        when_mounted: called once, when the kernel has begun to ask.
    """

    use_ns = True

    def __init__(self, image: ServedImage[Node], when_mounted: Callable[[], None]) -> None:
        self._image = image
        self._when_mounted = when_mounted
        self._known: dict[str, Node] = {}
        self._wakefulness = Wakefulness()

    def init_with_config(self, connection: Any, _config: Any) -> None:
        """Say which of the kernel's abilities are used."""
        connection.want &= ~_READDIRPLUS_AUTO
        connection.want |= connection.capable & _CACHE_SYMLINKS
        self._when_mounted()

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, Any]:
        """Return the status of a path."""
        return _fields(self.status(path))

    def readlink(self, path: str) -> str:
        """Return where a link points."""
        return self.status(path).link_target

    def open(self, _path: str, _flags: int) -> NoReturn:
        """Tell the kernel that files need not be opened: it does not ask again, and keeps what it has read."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def read(self, path: str, size_bytes: int, offset: int, _handle: int) -> bytes:
        """Return bytes of a file."""
        return self._ask(path, lambda node: self._image.read_at(node, offset, size_bytes))

    def opendir(self, _path: str) -> NoReturn:
        """Be there, for the session to be asked: a directory has no handle."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def readdir(self, path: str, offset: int) -> Iterator[tuple[bytes, FileStatus]]:
        """Return what a directory holds from an offset on, for the session to tell.

        Nothing is kept of it: whoever may look may open a directory as often as the system lets him.
        """
        names = self._ask(path, lambda node: self._image.children(node, max(0, offset - 2)))
        told = ((os.fsencode(name), child.status) for name, child in names)
        if offset >= 2:  # the kernel asks again until nothing comes
            return told
        dots = [(b".", self.status(path)), (b"..", self.status(path.rpartition("/")[0] or "/"))]
        return itertools.chain(dots[offset:], told)

    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        """Return an extended attribute."""
        try:
            return self.status(path).xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

    def absence(self, name: str) -> int:
        """Return the error for an attribute that no file has; 0 where some file may have it.

        Where none has any, the kernel is told that there are none here, and does not ask again. Of access lists and
        labels, which ``ls -l`` asks for with each file, it is said that this file system has no such thing: then it
        asks for the first file alone.
        """
        names = self._image.xattr_names
        if names is None or name in names:
            return 0
        if not names:
            return errno.ENOSYS
        return errno.EOPNOTSUPP if name.startswith(_OF_THE_SYSTEM) else errno.ENODATA

    def listxattr(self, path: str) -> list[str]:
        """Return the names of the extended attributes."""
        return list(self.status(path).xattrs)

    def statfs(self, _path: str) -> dict[str, int]:
        """Return what is known without looking at every file; nothing is free."""
        return {"f_bsize": _BLOCK_BYTES, "f_frsize": _BLOCK_BYTES, "f_namemax": _LONGEST_NAME_BYTES}

    def refuse(self, *_arguments: object) -> NoReturn:
        """Say no to a change, which the kernel lets through only where somebody has mounted it anew for writing."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    mknod = mkdir = unlink = rmdir = symlink = rename = link = chmod = chown = truncate = utimens = refuse
    create = write = fallocate = setxattr = removexattr = refuse

    def status(self, path: str) -> FileStatus:
        """Return what the image says of a path."""
        return self._ask(path, _status_of)

    def _find(self, path: str) -> Node | None:
        """Return what is at a path, looked for from what is known on the way; None where there is nothing."""
        cut = len(path) if path != "/" else 0
        while cut and path[:cut] not in self._known:
            cut = path.rindex("/", 0, cut)
        node = self._known[path[:cut]] if cut else self._image.root
        while cut < len(path.rstrip("/")):
            name = path[cut + 1 :].partition("/")[0]
            found = self._image.child(node, name) if node.status.kind is FileKind.DIRECTORY else None
            if found is None:
                return None
            node = found
            cut += 1 + len(name)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[path[:cut]] = node
        return node

    def _ask(self, path: str, question: Callable[[Node], _Answer]) -> _Answer:
        self._wakefulness.note_question()
        try:
            node = self._find(path)
            if node is not None:
                return question(node)
        except (StoreError, OSError) as error:
            _LOGGER.warning("cannot read %s in the mounted image: %s", path, error)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


class Session(mfusepy.FUSE):  # type: ignore[misc]  # the library is not typed
    """mfusepy's binding, which ends when the mount does; what it lacks, or does slowly, is here."""

    operations: Answers[Any]

    def opendir(self, _path: bytes, file: Any) -> int:
        """Let the kernel keep the names of a directory too."""
        file.contents.cache_readdir = file.contents.keep_cache = 1
        return 0

    def readdir_fuse_3(self, path: bytes, buffer: Any, fill: Any, offset: int, _file: Any, flags: int) -> int:
        """Tell names from an offset on, as many as there is room for, with the status of each if that is wanted."""
        told = mfusepy.c_stat()
        plus = _FILL_PLUS if flags & _PLUS else 0
        listing = self.operations.readdir(os.fsdecode(path), offset)
        for position, (name, status) in enumerate(listing, offset + 1):
            _fill(told, status)
            if fill(buffer, name, told, position, plus):
                break
        return 0

    def getxattr(self, path: bytes, name: bytes, value: Any, size_bytes: int, *rest: Any) -> int:
        """Return an attribute. What ``ls -l`` asks for each file, and none has, is answered without looking for it."""
        absent = self.operations.absence(os.fsdecode(name))
        if absent:
            return -absent
        found: int = super().getxattr(path, name, value, size_bytes, *rest)
        return found


def _status_of(node: ServedNode) -> FileStatus:
    return node.status


def _fields(status: FileStatus) -> dict[str, Any]:
    times = dict.fromkeys(["st_mtime", "st_ctime", "st_atime"], status.mtime_nanoseconds)
    return {
        "st_ino": status.inode,
        "st_mode": _KINDS[status.kind] | status.mode,
        "st_nlink": status.link_count,
        "st_uid": status.uid,
        "st_gid": status.gid,
        "st_rdev": os.makedev(status.device_major, status.device_minor),
        "st_size": status.size_bytes,
        "st_blksize": _BLOCK_BYTES,
        "st_blocks": (status.size_bytes + 511) // 512,
        **times,
    }


def _fill(told: Any, status: FileStatus) -> None:
    """Do as ``_fields``, for what is asked ten thousand times: into the C structure."""
    told.st_ino = status.inode
    told.st_mode = _KINDS[status.kind] | status.mode
    told.st_nlink = status.link_count
    told.st_uid = status.uid
    told.st_gid = status.gid
    told.st_rdev = os.makedev(status.device_major, status.device_minor)
    told.st_size = status.size_bytes
    told.st_blksize = _BLOCK_BYTES
    told.st_blocks = (status.size_bytes + 511) // 512
    seconds, nanoseconds = divmod(status.mtime_nanoseconds, _SECOND)
    for time in (told.st_mtimespec, told.st_ctimespec, told.st_atimespec):
        time.tv_sec = seconds
        time.tv_nsec = nanoseconds
