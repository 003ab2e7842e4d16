"""``os`` and the C library, their changes to a folder written down as operations of :mod:`tests.support.disk_model`."""

import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from tests.support.disk_model import Detail, Entry, Operation, Write
from tests.support.os_proxy import DIED, Call, OsProxy

_RENAME_EXCHANGE = 2
# What would change a disk, and is no operation that the model knows.
_UNKNOWN = {
    *("truncate", "rename", "renames", "removedirs", "makedirs", "mkfifo", "remove", "splice"),
    *("writev", "pwritev", "posix_fallocate", "lchown", "fdatasync", "sync"),
}


@dataclass
class Written:
    """What is known of the folder: grows with the recording, and travels from a process that dies to its parent."""

    operations: list[Operation]
    numbers: dict[tuple[int, int], int]  # device and inode -> node
    count: int

    def number_of(self, status: os.stat_result, *, new: bool = False) -> int | None:
        """Return the node of a file; None for one that lies elsewhere. Inodes are used again, nodes are not."""
        key = (status.st_dev, status.st_ino)
        if new:
            self.count += 1
            self.numbers[key] = self.count
        return self.numbers.get(key)


class RecordingOs(OsProxy):
    """All of ``os``, its changes written down as operations of the model, one after the other."""

    def __init__(self, written: Written, at_end: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._written = written
        self._one_by_one = threading.RLock()
        self.at_end = at_end

    def _call(self, real: Callable[..., Any], name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if name in _UNKNOWN:
            raise AssertionError(f"os.{name} changes a disk in a way that the model does not know")
        with self._one_by_one:
            describe = getattr(self, f"_describe_{name}", None)
            finish = describe(*arguments, **options) if describe else None
            result = super()._call(real, name, arguments, options)
            operation = finish(result) if finish else None
            if operation is not None:
                self._written.operations.append(operation)
        return result

    def _die(self, call: Call) -> NoReturn:
        self.at_end()
        os._exit(DIED)

    # Each describes a call before it is made, and returns what makes an operation of its result.

    def _describe_open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        assert not flags & os.O_TRUNC, "the model does not know it"
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            return lambda opened: self._creation("file", os.path.join(path, ""), dir_fd, os.fstat(opened))
        if not flags & os.O_CREAT:
            return None
        assert flags & os.O_EXCL, "the model does not know it"
        return lambda opened: self._creation("file", path, dir_fd, os.fstat(opened))

    def _describe_mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        return lambda _: self._creation("folder", path, dir_fd, _status(path, dir_fd))

    def _describe_symlink(self, target: str, path: str, *, dir_fd: int | None = None) -> Any:
        return lambda _: self._creation("link", path, dir_fd, _status(path, dir_fd), os.fsencode(target))

    def _describe_mknod(self, path: str, mode: int, device: int, *, dir_fd: int | None = None) -> Any:
        def finish(_: object) -> Operation | None:
            status = _status(path, dir_fd)
            return self._creation("special", path, dir_fd, status, device_of(status))

        return finish

    def _creation(
        self, kind: str, path: str, dir_fd: int | None, status: os.stat_result, content: bytes = b""
    ) -> Operation | None:
        folder = self._folder(path, dir_fd)
        if folder is None:
            return None
        node = self._written.number_of(status, new=True)
        assert node is not None
        name = os.path.basename(path)  # none where it was opened without one
        return Operation(
            text=f"create {kind} {_short(path)}",
            node=node,
            creates=kind,
            content=content,
            entries=(Entry(folder=folder, name=name, node=node),) if name else (),
            mode=stat.S_IMODE(status.st_mode),
            detail=Detail(name="owner", value=(status.st_uid, status.st_gid)),
        )

    def _describe_link(
        self,
        source: str,
        target: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool,
    ) -> Any:
        def finish(_: object) -> Operation | None:
            node = self._node(_status(target, dst_dir_fd))
            return self._naming("link", source, target, node, [(target, True, dst_dir_fd)])

        return finish

    def _describe_replace(
        self, source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> Any:
        before = os.stat(source, dir_fd=src_dir_fd, follow_symlinks=False)
        try:
            if os.path.samestat(before, os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)):
                return None  # POSIX: of two names of one file neither goes
        except FileNotFoundError:
            pass
        names = [(target, True, dst_dir_fd), (source, False, src_dir_fd)]
        return lambda _: self._naming("replace", source, target, self._node(before), names)

    def _describe_unlink(self, path: str, *, dir_fd: int | None = None) -> Any:
        return lambda _: self._naming("unlink", path, "", None, [(path, False, dir_fd)])

    def _describe_rmdir(self, path: str, *, dir_fd: int | None = None) -> Any:
        return lambda _: self._naming("rmdir", path, "", None, [(path, False, dir_fd)])

    def _naming(
        self, verb: str, source: str, target: str, node: int | None, names: list[tuple[str, bool, int | None]]
    ) -> Operation | None:
        entries = []
        for path, is_new, dir_fd in names:
            folder = self._folder(path, dir_fd)
            if folder is not None:
                entries.append(Entry(folder=folder, name=os.path.basename(path), node=node if is_new else None))
        text = f"{verb} {_short(source)} {_short(target)}".rstrip()
        return Operation(text=text, entries=tuple(entries)) if entries else None

    def _describe_chmod(self, path: str, mode: int) -> Any:
        return lambda _: self._about(os.stat(path), f"chmod {_short(path)} {mode:o}", mode=mode)

    def _describe_fchmod(self, opened: int, mode: int) -> Any:
        return lambda _: self._about(os.fstat(opened), f"chmod {_where(opened)} {mode:o}", mode=mode)

    def _describe_fchown(self, opened: int, uid: int, gid: int) -> Any:
        return lambda _: self._detail(os.fstat(opened), f"chown {_where(opened)}", "owner", (uid, gid))

    def _describe_chown(
        self, path: str, uid: int, gid: int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> Any:
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        return lambda _: self._detail(status, f"chown {_short(path)}", "owner", (uid, gid))

    def _describe_utime(
        self, target: int | str, *, ns: tuple[int, int], dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> Any:
        status = os.stat(target, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        return lambda _: self._detail(status, f"utime {_named(target)}", "mtime", ns[1])

    def _describe_setxattr(self, target: int | str, name: str, value: bytes, *, follow_symlinks: bool = True) -> Any:
        status = os.stat(target, follow_symlinks=follow_symlinks)
        return lambda _: self._detail(status, f"setxattr {_named(target)} {name}", name, value)

    def _describe_removexattr(self, target: int | str, name: str, *, follow_symlinks: bool = True) -> Any:
        status = os.stat(target, follow_symlinks=follow_symlinks)
        return lambda _: self._detail(status, f"removexattr {_named(target)} {name}", name, None)

    def _detail(self, status: os.stat_result, text: str, name: str, value: object) -> Operation | None:
        return self._about(status, text, detail=Detail(name=name, value=value))

    def _describe_syncfs(self, opened: int) -> Any:
        return lambda _: self._about(os.fstat(opened), f"sync all by {_where(opened)}", syncs=True, syncs_all=True)

    def _describe_renameat2(self, source_fd: int, source: bytes, target_fd: int, target: bytes, flags: int) -> Any:
        assert flags == _RENAME_EXCHANGE, "the model does not know it"
        assert os.path.sameopenfile(source_fd, target_fd), "the model does not know it"
        names = os.fsdecode(source), os.fsdecode(target)
        nodes = [self._node(_status(name, source_fd)) for name in names]
        folder = self._node(os.fstat(source_fd))
        if folder is None:
            return None
        entries = tuple(
            Entry(folder=folder, name=name, node=node) for name, node in zip(names, reversed(nodes), strict=True)
        )
        return lambda _: Operation(text=f"exchange {names[0]} {names[1]}", entries=entries, exchanges=True)

    def call_library(self, real: Callable[..., int], name: str, arguments: tuple[Any, ...]) -> int:
        """Call a function of the C library, and write it down as if it were one of ``os``."""

        def function(*given: Any) -> int:
            result = real(*given)
            if result:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return result

        try:
            return int(self._call(function, name, arguments, {}))
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
            return -1

    def _describe_fsync(self, opened: int) -> Any:
        return lambda _: self._about(os.fstat(opened), f"sync {_where(opened)}", syncs=True)

    def _describe_ftruncate(self, opened: int, size_bytes: int) -> Any:
        return lambda _: self._writing(opened, size_bytes, None)

    def _describe_write(self, opened: int, data: bytes | memoryview) -> Any:
        offset = _position(opened)
        return lambda count: self._writing(opened, offset, bytes(data[:count]))

    def _describe_pwrite(self, opened: int, data: bytes | memoryview, offset: int) -> Any:
        return lambda count: self._writing(opened, offset, bytes(data[:count]))

    def _describe_copy_file_range(self, source: int, opened: int, limit: int, offset: int, position: int) -> Any:
        return lambda count: self._writing(opened, position, os.pread(opened, count, position))

    def _describe_sendfile(self, opened: int, source: int, offset: int, limit: int) -> Any:
        position = _position(opened)
        return lambda count: self._writing(opened, position, os.pread(opened, count, position))

    def _writing(self, opened: int, offset: int, data: bytes | None) -> Operation | None:
        text = f"write {_where(opened)} {'to its end' if data is None else len(data)} at {offset}"
        return self._about(os.fstat(opened), text, write=Write(offset=offset, data=data))

    def _about(self, status: os.stat_result, text: str, **what: Any) -> Operation | None:
        node = self._node(status)
        return None if node is None else Operation(text=text, node=node, **what)

    def _node(self, status: os.stat_result) -> int | None:
        return self._written.number_of(status)

    def _folder(self, path: str, dir_fd: int | None) -> int | None:
        parent = os.path.dirname(path)
        if dir_fd is not None and not parent:
            return self._node(os.fstat(dir_fd))
        return self._node(os.stat(parent or ".", dir_fd=dir_fd))


def _position(opened: int) -> int:
    """Return where the next write goes: to the end, where the file was opened for that."""
    appends = fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_APPEND
    return os.fstat(opened).st_size if appends else os.lseek(opened, 0, os.SEEK_CUR)


def _where(opened: int) -> str:
    return _short(os.readlink(f"/proc/self/fd/{opened}"))


def _short(path: str) -> str:
    return "/".join(path.split("/")[-3:])


def _named(target: int | str) -> str:
    return _where(target) if isinstance(target, int) else _short(target)


def _status(path: str, dir_fd: int | None) -> os.stat_result:
    return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)


def device_of(status: os.stat_result) -> bytes:
    """Return what a special file is, in place of a content: its type, and the number of its device."""
    return f"{stat.S_IFMT(status.st_mode)} {status.st_rdev}".encode()


class Library:
    """The C library as the library below a test loads it, what changes a disk being recorded."""

    def __init__(self, system: RecordingOs, load: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self._system = system
        self._library = load(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._library, name)
        if name not in ("renameat2", "syncfs"):
            return real
        return lambda *arguments: self._system.call_library(real, name, arguments)
