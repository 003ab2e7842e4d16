"""A recording of every change that work makes to a folder, and the disks that a loss of power may leave of it.

The recording stands where :mod:`tests.support.os_proxy` does: in the place of ``os`` in ``_files``, ``_moving`` and
``_trees``. What it would miss is shown by :meth:`Recording.check_complete`: with nothing lost, the model must say
just what lies in the folder. Only the notes in lock files are written past it, and they mean nothing after a crash.
"""

import fcntl
import os
import pickle
import random
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from minibox_store import _files, _moving, _trees
from tests.support.disk_model import (
    ROOT,
    Change,
    Choice,
    Disk,
    Entry,
    Fate,
    Operation,
    Tree,
    Write,
    extreme_choices,
    random_choices,
    single_choices,
)
from tests.support.forks import run_forked
from tests.support.os_proxy import DIED, Call, OsProxy

_NOTED = ("store.lock", "store.turn", "prune.lock", "life.lock", "base_layers.lock")
_LOCKS = (*(f"/ingest/{name}" for name in _NOTED), "/lock")
# What would change a disk, and is no operation that the model knows.
_UNKNOWN = {
    *("truncate", "rename", "renames", "removedirs", "makedirs", "symlink", "mknod", "mkfifo", "remove", "splice"),
    *("writev", "pwritev", "posix_fallocate", "utime", "chown", "fchown", "lchown", "setxattr", "fdatasync", "sync"),
}


@dataclass
class _Written:
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


class Recording:
    """What was done to ``folder`` since the recording began, when everything in it lay on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nodes: dict[int, tuple[int, bytes | None]] = {}
        self._entries: list[Entry] = []
        self._written = _Written([], {}, ROOT - 1)
        self._scan(str(folder))

    def _scan(self, path: str) -> int:
        status = os.lstat(path)
        known = self._written.number_of(status)
        if known is not None:
            return known
        number = self._written.number_of(status, new=True)
        assert number is not None
        is_folder = stat.S_ISDIR(status.st_mode)
        assert is_folder or stat.S_ISREG(status.st_mode)
        self._nodes[number] = (stat.S_IMODE(status.st_mode), None if is_folder else Path(path).read_bytes())
        for name in os.listdir(path) if is_folder else ():
            self._entries.append(Entry(folder=number, name=name, node=self._scan(os.path.join(path, name))))
        return number

    @property
    def length(self) -> int:
        """How many operations there are so far."""
        return len(self._written.operations)

    def run(self, work: Callable[[OsProxy], object]) -> None:
        """Record work to its end. It is given the proxy, to say what should fail."""
        system = RecordingOs(self._written)
        with _in_place(system):
            work(system)
        self.check_complete()

    def run_until(self, work: Callable[[OsProxy], object], position: int, notes: Path) -> bool:
        """Record work in a process that dies before its change number ``position``; return whether it came so far."""
        status = run_forked(partial(self._run_and_die, work, position, notes))
        assert status in (0, DIED), "an error instead of a death"
        self._written = pickle.loads(notes.read_bytes())
        self.check_complete()
        return status == DIED

    def _run_and_die(self, work: Callable[[OsProxy], object], position: int, notes: Path) -> None:
        system = RecordingOs(self._written, at_end=lambda: notes.write_bytes(pickle.dumps(self._written)))
        system.die_at(position)
        with _in_place(system):
            work(system)
        system.at_end()

    def check_complete(self) -> None:
        """Fail where the folder is not what the recording says: something has changed it by another way."""
        said = self._disk(self.length).tree(lambda _: Fate.KEPT)
        found = Recording(self.folder)._disk(0).tree(lambda _: Fate.KEPT)
        assert _comparable(said) == _comparable(found), "the recording does not explain what lies in the folder"

    def _disk(self, length: int) -> Disk:
        disk = Disk(self._nodes, self._entries)
        for operation in self._written.operations[:length]:
            disk.apply(operation)
        return disk

    def disks(
        self, chance: random.Random, *, start: int = 0, drawn: int = 8, brief: bool = False
    ) -> "Iterator[LeftDisk]":
        """Yield the disks that may be left from the moment ``start`` on; at each moment each tree once.

        The moments are those before a sync, and the last. What may be left at any other moment may be left at the next
        of these too: what comes between only adds changes, each of which may be lost.

        Args:
            chance: draws some of the disks.
            start: so many operations have happened at the first moment.
            drawn: how many are drawn for each moment.
            brief: whether only the last moment is looked at in full, and the extremes alone at the others.
        """
        disk = self._disk(start)
        operations = self._written.operations
        for moment in range(start, self.length + 1):
            if moment == self.length or operations[moment].syncs:
                is_whole = moment == self.length or not brief
                yield from self._disks_at(moment, disk, chance, drawn if is_whole else None)
            if moment < self.length:
                disk.apply(operations[moment])

    def _disks_at(self, moment: int, disk: Disk, chance: random.Random, drawn: int | None) -> "Iterator[LeftDisk]":
        seen = set()
        pending = disk.pending
        last = self._written.operations[moment - 1].text if moment else "the beginning"
        choices = [("extreme", extreme_choices())]
        if drawn is not None:
            choices += [("single", single_choices(pending)), ("drawn", random_choices(pending, chance, drawn))]
        for kind, some in choices:
            for choice in some:
                tree = disk.tree(choice)
                key = tree.key()
                if key not in seen:
                    seen.add(key)
                    yield LeftDisk(moment=moment, tree=tree, kind=kind, last=last, pending=pending, choice=choice)


@dataclass(frozen=True, kw_only=True)
class LeftDisk:
    """One disk that a loss of power may have left behind the operation ``last``, the ``moment``-th."""

    moment: int
    tree: Tree
    kind: str
    last: str
    pending: list[Change]
    choice: Choice

    def __str__(self) -> str:
        lines = [f"power lost at {self.moment}, behind: {self.last}; of what was not synced:"]
        return "\n  ".join([*lines, *(f"{self.choice(each).value}: {each.text}" for each in self.pending)])

    def write_to(self, folder: Path) -> None:
        """Make the folder what the disk says, hard links included."""
        for path, mode in sorted(self.tree.folders.items()):
            (folder / path).mkdir(exist_ok=True)
            (folder / path).chmod(mode)
        links: dict[int, Path] = {}
        for path, file in self.tree.files.items():
            if file.node in links:
                os.link(links[file.node], folder / path)
                continue
            links[file.node] = folder / path
            (folder / path).write_bytes(file.content)
            (folder / path).chmod(file.mode)


def _comparable(tree: Tree) -> object:
    numbers: dict[int, int] = {}
    files = {
        path: (numbers.setdefault(file.node, len(numbers)), file.mode, b"" if path.endswith(_LOCKS) else file.content)
        for path, file in sorted(tree.files.items())
    }
    return files, dict(tree.folders)


@contextmanager
def _in_place(system: OsProxy) -> Iterator[None]:
    """Put a recording in the place of the system below the library for a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "os", system)
        patch.setattr(_moving, "os", system)
        patch.setattr(_trees, "os", system)
        yield


class RecordingOs(OsProxy):
    """All of ``os``, its changes written down as operations of the model, one after the other."""

    def __init__(self, written: _Written, at_end: Callable[[], object] = lambda: None) -> None:
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
        if not flags & os.O_CREAT:
            return None
        assert flags & os.O_EXCL, "the model does not know it"
        return lambda opened: self._creation("file", path, dir_fd, os.fstat(opened))

    def _describe_mkdir(self, path: str, mode: int = 0o777) -> Any:
        return lambda _: self._creation("folder", path, None, os.lstat(path))

    def _creation(self, kind: str, path: str, dir_fd: int | None, status: os.stat_result) -> Operation | None:
        folder = self._folder(path, dir_fd)
        if folder is None:
            return None
        node = self._written.number_of(status, new=True)
        assert node is not None
        entries = (Entry(folder=folder, name=os.path.basename(path), node=node),)
        mode = stat.S_IMODE(status.st_mode)
        return Operation(text=f"create {kind} {_short(path)}", node=node, creates=kind, entries=entries, mode=mode)

    def _describe_link(self, source: str, target: str, *, follow_symlinks: bool) -> Any:
        return lambda _: self._naming("link", source, target, self._node(os.lstat(target)), [(target, True, None)])

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
