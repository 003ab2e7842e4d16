"""The directories of a tree that is being made, known by name, and held open by descriptors.

A tree begins empty and nobody else belongs in it, so every directory is known here: finding one asks the system
nothing. It is entered from its parent's descriptor, with O_NOFOLLOW, so that a link which somebody puts in a
directory's place leads nowhere. Links of the image are followed by this module alone, and inside the tree.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from minibox_store._trees import OPEN_DIRECTORY, identity_of
from minibox_store.rootfs.tree_bounds import TreeBounds
from minibox_store.tar.member import refusal

MOST_OPEN = 96
_MOST_LINKS = 40


class DirectoryEntry(NamedTuple):
    """What a member says of a directory, which that is given when all layers are there: a third of a whole member."""

    name: str
    mode: int
    uid: int
    gid: int
    mtime_nanoseconds: int
    xattrs: Mapping[str, bytes]


class Directory:
    """One directory of the tree. There may be millions, so each has of its own only what it needs.

    Attributes:
        parent: None for the root.
        children: the directories in it.
        descriptor: by which it is open; -1 while it is not.
        entry: of the member that named it last; None where none did.
        layer: the number of the last layer that put something into it; the next three speak of that layer.
        own: the names of what that layer put into it.
        whiteouts: the names that a whiteout device hides; only in the tree of a single layer.
        cleared: the number of the layer since which nothing of the layers below it is there.
        is_opaque: whether it is to hide what lower layers have; only in the tree of a single layer.
        is_hidden: whether a whiteout says that no lower layer has it; only in the tree of a single layer.
        identity: device and inode, of one that was open and is not, and had directories in it.
    """

    __slots__ = (
        *("children", "cleared", "descriptor", "entry", "entry_layer", "identity", "is_hidden", "is_opaque", "layer"),
        *("name", "own", "parent", "whiteouts"),
    )

    def __init__(self, parent: "Directory | None", name: str, cleared: int = 0) -> None:
        self.parent = parent
        self.name = name
        self.children = _NO_DIRECTORIES
        self.descriptor = -1
        self.entry: DirectoryEntry | None = None
        self.entry_layer = 0
        self.layer = 0
        self.own = _NO_NAMES
        self.whiteouts: set[str] | None = None
        self.cleared = cleared
        self.is_opaque = self.is_hidden = False
        self.identity = (0, 0)

    @property
    def path(self) -> str:
        """Where it is, below the root: for messages alone."""
        names = []
        directory = self
        while directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return "/".join(reversed(names)) or "/"


_NO_NAMES: set[str] = set()
_NO_DIRECTORIES: dict[str, Directory] = {}


class Directories:
    """All directories of a tree, of which so many are open at once as is reasonable.

    Args:
        root_descriptor: the tree's own, empty directory; it is not closed here.
        bounds: on what they may take together.
        check: called before each removal; what it raises ends the work.
        most_open: how many are open at once beside it, two at least.

    Attributes:
        steps: how many directories were made, opened, and gone through on a way, each as often as it was.
    """

    def __init__(
        self, root_descriptor: int, bounds: TreeBounds, check: Callable[[], None], most_open: int = MOST_OPEN
    ) -> None:
        self.root = Directory(None, "")
        self.root.descriptor = root_descriptor
        self._bounds = bounds
        self._check = check
        self._most_open = most_open
        self._open: OrderedDict[Directory, None] = OrderedDict()
        self.steps = 0

    def close(self) -> None:
        """Close all but the root."""
        while self._open:
            self._close(self._open.popitem()[0])

    def _close(self, directory: Directory) -> None:
        opened, directory.descriptor = directory.descriptor, -1
        os.close(opened)

    def open(self, directory: Directory) -> int:
        """Return the descriptor of a directory, good until the next call for another one."""
        if directory.descriptor >= 0:
            if directory.parent is not None:
                self._open.move_to_end(directory)
            return directory.descriptor
        way = []
        above = directory
        while above.descriptor < 0 and above.parent is not None:
            way.append(above)
            above = above.parent
        opened = above.descriptor
        self.steps += len(way)
        for below in reversed(way):
            opened = below.descriptor = os.open(below.name, OPEN_DIRECTORY, dir_fd=opened)
            self._open[below] = None
            self._close_oldest()
        return opened

    def open_above(self, directory: Directory) -> None:
        """Open the parent of an open directory from there: the way down from the root may be long."""
        above = directory.parent
        if above is None or above.descriptor >= 0:
            return
        opened = os.open("..", OPEN_DIRECTORY, dir_fd=self.open(directory))
        if identity_of(opened) != above.identity:
            os.close(opened)
            raise OSError(errno.ESTALE, "somebody has moved it", directory.name)
        above.descriptor = opened
        self._open[above] = None
        self._close_oldest()

    def _close_oldest(self) -> None:
        if len(self._open) > self._most_open:
            oldest = self._open.popitem(last=False)[0]
            if oldest.children is not _NO_DIRECTORIES:  # else nobody comes to it from below
                oldest.identity = identity_of(oldest.descriptor)
            self._close(oldest)

    def make(self, directory: Directory, name: str, cleared: int) -> Directory:
        """Make a directory in another one; FileExistsError where something is there that is none."""
        self.steps += 1
        self._bounds.count_directory(name)
        os.mkdir(name, 0o700, dir_fd=self.open(directory))
        if directory.children is _NO_DIRECTORIES:
            directory.children = {}
        made = directory.children[name] = Directory(directory, name, cleared)
        return made

    def find(self, parts: tuple[str, ...]) -> Directory | None:
        """Return the directory that is at ``parts`` itself, no link on the way; None where there is none."""
        directory = self.root
        for part in parts:
            child = directory.children.get(part)
            if child is None:
                return None
            directory = child
        return directory

    def descend(self, parts: tuple[str, ...]) -> tuple[Directory, list[str]] | None:
        """Return the directory at ``parts``, and what is missing below it; None where a link or file is on the way."""
        directory = self.root
        for position, part in enumerate(parts):
            child = directory.children.get(part)
            if child is None:
                is_there = (directory.whiteouts is None or part not in directory.whiteouts) and self._exists(
                    directory, part
                )
                return None if is_there else (directory, list(parts[position:]))
            directory = child
        return directory, []

    def _exists(self, directory: Directory, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.open(directory), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def follow(self, parts: tuple[str, ...], member_name: str) -> tuple[Directory, list[str]]:
        """Return the directory that ``parts`` lead to inside the tree, through links, and what is missing below it.

        Args:
            parts: the components of a path, without ``..``.
            member_name: for the error.

        Raises:
            InvalidArchive: for too many links, and for something on the way that is neither directory nor link.
        """
        directory = self.root
        rest = list(reversed(parts))
        missing: list[str] = []
        links = 0
        while rest:
            part = rest.pop()
            if part == "..":
                if missing:
                    missing.pop()
                else:
                    directory = directory.parent or directory
                continue
            child = directory.children.get(part)
            if missing or child is not None:
                if missing or child is None:
                    missing.append(part)
                else:
                    directory = child
                continue
            target = self._read_link(directory, part, member_name)
            if target is None:
                missing.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise refusal(f"its path leads through more than {_MOST_LINKS} links", member_name)
            if target.startswith("/"):
                directory = self.root
            steps = target.split("/")
            self.steps += len(steps)  # those that lead nowhere take their time too
            rest.extend([part for part in reversed(steps) if part not in ("", ".")])
        return directory, missing

    def _read_link(self, directory: Directory, name: str, member_name: str) -> str | None:
        """Return where a link leads, None where there is nothing."""
        if directory.whiteouts is not None and name in directory.whiteouts:
            return None
        try:
            return os.readlink(name, dir_fd=self.open(directory))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENAMETOOLONG):
                raise refusal("something on the way to it is no directory", member_name) from error
            raise

    def remove(self, directory: Directory, name: str) -> None:
        """Remove what has this name in a directory, with all that is below it."""
        self._check()
        child = directory.children.pop(name, None)
        if child is None:
            os.unlink(name, dir_fd=self.open(directory))
            return
        self._empty_of_files(child)
        stack = [child]
        while stack:
            last = stack[-1]
            if last.children:
                # The last one: a dict gives that, and takes it away, at once, however many there were.
                below = last.children.popitem()[1]
                self._empty_of_files(below)
                stack.append(below)
                continue
            stack.pop()
            self.open(last)
            self.open_above(last)
            del self._open[last]
            self._close(last)
            os.rmdir(last.name, dir_fd=self.open(last.parent or directory))

    def _empty_of_files(self, directory: Directory) -> None:
        opened = self.open(directory)
        for name in os.listdir(opened):
            if name not in directory.children:
                self._check()
                os.unlink(name, dir_fd=opened)
