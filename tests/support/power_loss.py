"""A recording of every change that work makes to a folder, and the disks that a loss of power may leave of it.

The recording stands where :mod:`tests.support.os_proxy` does: in the place of ``os`` in the modules that change a disk;
and, as two calls of the system have no function there, in that of the C library. What it would miss is shown by
:meth:`Recording.check_complete`: with nothing lost, the model must say just what lies in the folder. Only the notes in
lock files are written past it, and they mean nothing after a crash.
"""

import ctypes
import os
import pickle
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.disk_model import (
    ROOT,
    Change,
    Choice,
    Details,
    Disk,
    Entry,
    Fate,
    Node,
    Tree,
    extreme_choices,
    random_choices,
    single_choices,
)
from tests.support.forks import run_forked
from tests.support.os_proxy import DIED, MODULES, TREE_MODULES, OsProxy
from tests.support.recording_os import Library, RecordingOs, Written, device_of

_NOTED = ("store.lock", "store.turn", "prune.lock", "life.lock", "base_layers.lock")
_LOCKS = (*(f"/ingest/{name}" for name in _NOTED), "/lock")


class Recording:
    """What was done to ``folder`` since the recording began, when everything in it lay on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nodes: dict[int, Node] = {}
        self._entries: list[Entry] = []
        self._written = Written([], {}, ROOT - 1)
        self._scan(str(folder))

    def _scan(self, path: str) -> int:
        status = os.lstat(path)
        known = self._written.number_of(status)
        if known is not None:
            return known
        number = self._written.number_of(status, new=True)
        assert number is not None
        self._nodes[number] = _node_at(path, status)
        is_folder = stat.S_ISDIR(status.st_mode)
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
        is_explained = _comparable(said, said) == _comparable(found, said)
        assert is_explained, "the recording does not explain what lies in the folder"

    def _disk(self, length: int) -> Disk:
        disk = Disk(self._nodes, self._entries)
        for operation in self._written.operations[:length]:
            disk.apply(operation)
        return disk

    def rest_at(self, moment: int) -> Tree:
        """Return what is in the folder after so many operations, with nothing lost."""
        return self._disk(moment).tree(lambda _: Fate.KEPT)

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
        for path, found in sorted(self.tree.folders.items()):
            (folder / path).mkdir(exist_ok=True)
            (folder / path).chmod(found.mode)
            _detail(folder / path, found.details)
        links: dict[int, Path] = {}
        for path, file in self.tree.files.items():
            if file.node in links:
                os.link(links[file.node], folder / path, follow_symlinks=False)
                continue
            links[file.node] = folder / path
            if file.kind == "link":
                os.symlink(os.fsdecode(file.content), folder / path)
            else:
                if file.kind == "special":
                    kind, device = map(int, file.content.split())
                    os.mknod(folder / path, kind | 0o600, device)
                else:
                    (folder / path).write_bytes(file.content)
                (folder / path).chmod(file.mode)
            _detail(folder / path, file.details)


def _detail(path: Path, details: Details) -> None:
    """Give a file or folder its owner and attributes; its times say nothing here."""
    for name, value in details:
        if isinstance(value, tuple):
            os.chown(path, *value, follow_symlinks=False)
        elif isinstance(value, bytes):
            os.setxattr(path, name, value, follow_symlinks=False)


def _node_at(path: str, status: os.stat_result) -> Node:
    details: dict[str, object] = {"owner": (status.st_uid, status.st_gid), "mtime": status.st_mtime_ns}
    for name in os.listxattr(path, follow_symlinks=False):
        details[name] = os.getxattr(path, name, follow_symlinks=False)
    mode, kind = stat.S_IMODE(status.st_mode), "special"
    content = device_of(status)
    if stat.S_ISDIR(status.st_mode):
        kind, content = "folder", b""
    elif stat.S_ISREG(status.st_mode):
        kind, content = "file", Path(path).read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        kind, content = "link", os.fsencode(os.readlink(path))
    return Node(kind=kind, mode=mode, content=content, details=frozenset(details.items()))


def _comparable(tree: Tree, known: Tree) -> object:
    """Return what must be the same: all, but for times that the model does not know, and notes in locks."""
    numbers: dict[int, int] = {}
    files = {}
    for path, file in sorted(tree.files.items()):
        number = numbers.setdefault(file.node, len(numbers))
        is_lock = path.endswith(_LOCKS)
        content = b"" if is_lock else file.content
        details = _known(file.details, known.files[path].details if path in known.files and not is_lock else None)
        files[path] = (number, file.kind, file.mode, content, details)
    folders = {
        path: (found.mode, _known(found.details, known.folders[path].details if path in known.folders else None))
        for path, found in tree.folders.items()
    }
    return files, folders


def _known(details: Details, known: Details | None) -> Details:
    is_timed = known is not None and any(name == "mtime" for name, _ in known)
    return details if is_timed else frozenset(each for each in details if each[0] != "mtime")


@contextmanager
def _in_place(system: RecordingOs) -> Iterator[None]:
    """Put a recording in the place of the system below the library for a block."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (*MODULES, *TREE_MODULES):
            patch.setattr(module, "os", system)
        patch.setattr(ctypes, "CDLL", partial(Library, system, ctypes.CDLL))
        yield
