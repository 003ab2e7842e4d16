"""A disk whose power is cut: what it surely holds of the changes that were made to a folder, and all that it may hold.

What the model assumes, which is less than what ext4 or XFS give:

- A file's content and mode are on the disk once that file has been synced; a name, or the lack of one, once the folder
  that it is in has been. A folder's sync says nothing of the files in it, nor of its own name in the folder above.
- Of everything else **any subset** may be there: each change is on the disk or is not, for itself. A later change may
  be there, and an earlier one not. No journal ties them together, no write waits for the one before it.
- A write may be lost, torn in its middle, or have changed the size alone: then there are zeros. A file whose name is
  there and that was never synced may thus be empty, short, full of zeros, or full of holes.
- A rename is two changes, the new name and the lack of the old one, and each may be there without the other, so that a
  file has both names, or none. A journal makes it one step; every disk that this allows is among those of this model.
- One name in one folder is one thing: it means what it meant before or what it was made to mean, never a mixture. So a
  replace leaves the old file or the new one under the name. This is what the whole library rests on; POSIX says it of
  running systems, ext4, XFS, Btrfs and F2FS say it of crashes too.
- Where two names are exchanged, that is one change: both are, or neither. No file system offers it without a journal.
- What a file or folder is given besides (owner, times, attributes) is on the disk as its mode is.
- What has been synced stays as it is: no disk lies about a flush, and no sector rots.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

ROOT = 0

_FILE_FATES = 4


class Fate(Enum):
    """What became of a change when the power went: only a write can be torn, or be zeros of the full length."""

    KEPT = "kept"
    LOST = "lost"
    TORN = "torn"
    ZEROED = "zeroed"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A name in a folder, and what it means from now on: None where it is removed."""

    folder: int
    name: str
    node: int | None


@dataclass(frozen=True, kw_only=True)
class Write:
    """Bytes of a file, or, where ``data`` is None, its new size."""

    offset: int
    data: bytes | None


@dataclass(frozen=True, kw_only=True)
class Detail:
    """Something else that a file or folder has: ``owner``, ``mtime``, or the name of an attribute; None for none."""

    name: str
    value: object


# What is changed at once, or not at all.
What = Entry | Write | Detail | int | tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation on the disk. ``node`` is what it is about, a file or a folder; they are numbers, as inodes are."""

    text: str
    node: int = ROOT
    creates: str = ""  # "file", "folder", "link" or "special"
    content: bytes = b""  # of what it creates: where a link leads, which device it is
    entries: tuple[Entry, ...] = ()
    exchanges: bool = False  # the entries are one change
    write: Write | None = None
    mode: int | None = None
    detail: Detail | None = None
    syncs: bool = False
    syncs_all: bool = False  # all that is on the disk, not ``node`` alone


@dataclass(frozen=True, kw_only=True)
class Change:
    """A part of an operation that is on the disk or not, for itself."""

    number: int
    what: What  # an int is a mode
    node: int
    text: str

    @property
    def fates(self) -> tuple[Fate, ...]:
        """Everything that can become of it."""
        is_data = isinstance(self.what, Write) and self.what.data is not None
        return tuple(Fate)[:_FILE_FATES] if is_data else (Fate.KEPT, Fate.LOST)


Details = frozenset[tuple[str, object]]


@dataclass(frozen=True)
class FileOnDisk:
    """A file as it lies on the disk, or a link, or a device or FIFO; two names of one node are hard links."""

    node: int
    mode: int
    content: bytes
    kind: str
    details: Details


@dataclass(frozen=True)
class FolderOnDisk:
    """A folder as it lies on the disk."""

    mode: int
    details: Details


@dataclass(frozen=True)
class Tree:
    """What can be found from the root when the power is back: files, and folders, by relative path."""

    files: Mapping[str, FileOnDisk]
    folders: Mapping[str, FolderOnDisk]

    def key(self) -> tuple[object, ...]:
        """Return a value that is equal for equal trees."""
        return frozenset(self.files.items()), frozenset(self.folders.items())

    def below(self, path: str) -> "Tree | None":
        """Return the tree at a path; None where no folder is."""
        if path not in self.folders:
            return None
        start = f"{path}/"
        files = {name[len(start) :]: file for name, file in self.files.items() if name.startswith(start)}
        folders = {name[len(start) :]: folder for name, folder in self.folders.items() if name.startswith(start)}
        return Tree(files, {**folders, "": self.folders[path]})


@dataclass(kw_only=True)
class Node:
    """What is durable of a file or folder."""

    kind: str  # as Operation.creates says
    mode: int
    content: bytes = b""
    entries: dict[str, int] = field(default_factory=dict)
    details: Details = frozenset()


Choice = Callable[[Change], Fate]


class Disk:
    """The disk after some operations: its durable state, and the changes since that no sync has made durable."""

    def __init__(self, nodes: Mapping[int, Node], entries: list[Entry]) -> None:
        self._nodes = {number: replace(node, entries={}) for number, node in nodes.items()}
        for entry in entries:
            assert entry.node is not None
            self._nodes[entry.folder].entries[entry.name] = entry.node
        self._numbers = itertools.count()
        self.pending: list[Change] = []

    def apply(self, operation: Operation) -> None:
        """Let one more operation have happened."""
        text, node = operation.text, operation.node
        if operation.creates:
            made = Node(kind=operation.creates, mode=operation.mode or 0, content=operation.content)
            if operation.detail is not None:
                made.details = frozenset({(operation.detail.name, operation.detail.value)})
            self._nodes[node] = made
        else:
            for what in (operation.mode, operation.detail):
                if what is not None:
                    self._add(what, node, text)
        if operation.exchanges:
            self._add(operation.entries, operation.entries[0].folder, text)
        else:
            for entry in operation.entries:
                self._add(entry, entry.folder, text)
        if operation.write is not None:
            self._add(operation.write, node, text)
        if operation.syncs:
            for each in {change.node for change in self.pending} if operation.syncs_all else (node,):
                self._sync(each)

    def _sync(self, node: int) -> None:
        ours = [change for change in self.pending if change.node == node]
        self._nodes[node] = self._with(self._nodes[node], ours, lambda _: Fate.KEPT)
        self.pending = [change for change in self.pending if change.node != node]

    def _add(self, what: What, node: int, text: str) -> None:
        self.pending.append(Change(number=next(self._numbers), what=what, node=node, text=text))

    def tree(self, choice: Choice) -> Tree:
        """Return what the disk holds if that became of the changes."""
        changes: dict[int, list[Change]] = {}
        for change in self.pending:
            changes.setdefault(change.node, []).append(change)
        files: dict[str, FileOnDisk] = {}
        folders: dict[str, FolderOnDisk] = {}
        todo = [("", ROOT)]
        while todo:
            path, number = todo.pop()
            node = self._with(self._nodes[number], changes.get(number, []), choice)
            if node.kind != "folder":
                files[path] = FileOnDisk(number, node.mode, node.content, node.kind, node.details)
                continue
            folders[path] = FolderOnDisk(node.mode, node.details)
            todo.extend((f"{path}/{name}".lstrip("/"), child) for name, child in node.entries.items())
        return Tree(files, folders)

    @staticmethod
    def _with(node: Node, changes: list[Change], choice: Choice) -> Node:
        if not changes:
            return node
        left = replace(node, entries=dict(node.entries))
        details = dict(node.details)
        for change in changes:
            fate = choice(change)
            if fate is Fate.LOST:
                continue
            match change.what:
                case Detail(name=name, value=value):
                    details[name] = value
                    if value is None:
                        del details[name]
                    continue
                case int(mode):
                    left.mode = mode
                    continue
                case Write() as write:
                    left.content = _written(left.content, write, fate)
                case Entry() as entry:
                    _enter(left.entries, entry)
                case tuple() as exchanged:
                    for entry in exchanged:
                        _enter(left.entries, entry)
            details.pop("mtime", None)  # now it is some time of today
        left.details = frozenset(details.items())
        return left


def _enter(entries: dict[str, int], entry: Entry) -> None:
    if entry.node is None:
        entries.pop(entry.name, None)
    else:
        entries[entry.name] = entry.node


def _written(content: bytes, write: Write, fate: Fate) -> bytes:
    if write.data is None:
        return content[: write.offset].ljust(write.offset, b"\0")
    data = write.data
    if fate is Fate.TORN:
        data = data[: len(data) // 2]
    elif fate is Fate.ZEROED:
        # The size has grown to where the write ended; what lay there before is there still.
        return content.ljust(write.offset + len(data), b"\0")
    return content[: write.offset].ljust(write.offset, b"\0") + data + content[write.offset + len(data) :]


# ---- what may be there


def extreme_choices() -> Iterator[Choice]:
    """Yield: all is there; nothing is that was not synced; all names are, and contents are lost, torn or zeros.

    And all contents are, and no name; new names are, and what they replace too; what is gone is gone, and nothing new.
    """
    yield lambda _: Fate.KEPT
    yield lambda _: Fate.LOST
    for fate in (Fate.LOST, Fate.TORN, Fate.ZEROED):
        yield _with_contents(fate)
    yield lambda change: Fate.LOST if isinstance(change.what, Entry | tuple) else Fate.KEPT
    yield lambda change: Fate.LOST if _is_removal(change) else Fate.KEPT
    yield lambda change: Fate.KEPT if _is_removal(change) else Fate.LOST


def single_choices(pending: list[Change]) -> Iterator[Choice]:
    """Yield: each change alone has another fate than all the others, which are there, or which are not.

    And each moment since the first of them: all before it is there and nothing behind it, and the reverse.
    """
    for change in pending:
        for fate in change.fates[1:]:
            yield _fixed({change.number: fate}, Fate.KEPT)
        yield _fixed({change.number: Fate.KEPT}, Fate.LOST)
        yield _parted(change.number, Fate.KEPT, Fate.LOST)
        yield _parted(change.number, Fate.LOST, Fate.KEPT)


def random_choices(pending: list[Change], chance: random.Random, count: int) -> Iterator[Choice]:
    """Yield fates that were drawn, sometimes most of them good and sometimes most of them bad."""
    for _ in range(count if pending else 0):
        kept = chance.choice((0.15, 0.5, 0.85))
        fates = {
            change.number: Fate.KEPT if chance.random() < kept else chance.choice(change.fates[1:])
            for change in pending
        }
        yield _fixed(fates, Fate.KEPT)


def _is_removal(change: Change) -> bool:
    return isinstance(change.what, Entry) and change.what.node is None


def _with_contents(fate: Fate) -> Choice:
    def choice(change: Change) -> Fate:
        return fate if isinstance(change.what, Write) and fate in change.fates else Fate.KEPT

    return choice


def _fixed(fates: Mapping[int, Fate], other: Fate) -> Choice:
    return lambda change: fates.get(change.number, other)


def _parted(last: int, before: Fate, behind: Fate) -> Choice:
    return lambda change: before if change.number <= last else behind
