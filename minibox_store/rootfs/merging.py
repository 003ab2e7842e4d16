"""Layers put over one another, by their entries alone: what a tree would be into which they had been unpacked in order.

Paths are resolved as in such a tree, inside the image's root: a parent may be a symbolic link, the last component is
never followed. What a whiteout hides is what lower layers have, never what its own layer has put there.

Spec: OCI image-spec 1.1, layer.md, "Applying Changesets".
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.rootfs.layer_entries import LayerEntry
from minibox_store.rootfs.placing import StepBounds, check_part, split
from minibox_store.rootfs.tree_bounds import TreeBounds
from minibox_store.tar.member import MemberKind, refusal

MOST_LINKS = 40
_LONGEST_TARGET_BYTES = 4096

_DIRECTORY, _SYMLINK, _HARDLINK = MemberKind.DIRECTORY, MemberKind.SYMLINK, MemberKind.HARDLINK
_NO_NAMES: set[str] = set()
_UNNAMED_DIRECTORY = LayerEntry("entry", "", _DIRECTORY, mode=0o755)


class MergedFile:
    """A file of the merged view, whatever it is; its names share it.

    Attributes:
        entry: what the layer that had the last word says of it.
        layer: which one that is, from 0.
        children: of a directory, by name; None for anything else.
        inode: 0, until who keeps the view numbers it; the same holds of the next two.
        link_count: how many names it has.
        number: of a directory.
    """

    __slots__ = (
        *("_cleared_by", "_named_by", "_own_names", "children", "entry", "inode", "layer", "link_count", "number"),
    )

    def __init__(self, entry: LayerEntry, layer: int) -> None:
        self.entry = entry
        self.layer = layer
        self.children: dict[str, MergedFile] | None = {} if entry.kind is _DIRECTORY else None
        self.inode = self.link_count = self.number = 0
        self._named_by = -1
        self._cleared_by = -1
        self._own_names = _NO_NAMES  # most are asked for none, and a set of their own would be a fifth of them

    @property
    def names(self) -> "dict[str, MergedFile]":
        """What is in it; it must be a directory."""
        assert self.children is not None, "nothing but a directory has names in it"
        return self.children

    def forget_entry(self, layer: int) -> None:
        """Let a directory that holds things of a layer be one that nobody has named, if only lower ones have."""
        if self.layer != layer:
            self.entry = _UNNAMED_DIRECTORY

    def touch(self, name: str, layer: int) -> None:
        """Take note that a layer has put something at, or below, a name of this directory."""
        if self._named_by != layer:
            self._named_by, self._own_names = layer, set()
        self._own_names.add(name)

    def is_own(self, name: str, layer: int) -> bool:
        """Whether a layer has put something at, or below, a name of this directory."""
        return self._named_by == layer and name in self._own_names

    def is_cleared(self, layer: int) -> bool:
        """Return whether this was asked before for this layer: nothing of lower ones is below any more then."""
        was, self._cleared_by = self._cleared_by == layer, layer
        return was


class _Step(NamedTuple):
    """A directory on the way down, and its name in the one before."""

    name: str
    directory: MergedFile


class Merger:
    """A merged view that grows layer by layer.

    Args:
        limits: on the members of all layers together.

    Attributes:
        root: the image's root.
    """

    def __init__(self, limits: UnpackLimits = DEFAULT_UNPACK_LIMITS) -> None:
        self.root = MergedFile(_UNNAMED_DIRECTORY, 0)
        self._bounds = TreeBounds("the image", limits)
        self._step_bounds = StepBounds()
        self._steps = 0  # directories that links lead through, and those that were made where no member names them
        self._layer = -1
        self._folder: str | None = None  # where the last member was put, and which directory that is
        self._at = self.root

    def apply_layer(self, entries: Iterable[LayerEntry]) -> None:
        """Put the next layer over what is there.

        Raises:
            InvalidArchive: when a member cannot be where it should; the view is of no use then.
        """
        self._layer += 1
        self._folder = None
        for entry in entries:
            self._bounds.count_member()
            self._step_bounds.count_member(entry.path.count("/") + 1)
            if entry.meaning == "entry":
                self._put(entry)
                self._step_bounds.check(self._steps, entry.path)
                continue
            self._folder = None
            if entry.meaning == "whiteout":
                self._hide(entry.path)
            else:
                directory = self._real_directory(entry.path.split("/") if entry.path else [])
                if directory is not None:
                    self._clear(directory)

    def _put(self, entry: LayerEntry) -> None:
        if not entry.path:
            self.root.entry, self.root.layer = entry, self._layer
            return
        if entry.kind is _SYMLINK and len(entry.link_target.encode(errors="surrogateescape")) >= _LONGEST_TARGET_BYTES:
            raise refusal("its target is longer than 4,095 bytes", entry.path)
        folder, _, name = entry.path.rpartition("/")
        directory = self._enter(folder, entry.path)
        children = directory.names
        there = children.get(name)
        # A tree whose owner or times a layer changes is in it once more, and is kept once.
        self._bounds.count_entry(entry, replaces=there is not None)
        if entry.kind is _DIRECTORY and there is not None and there.children is not None:
            there.entry, there.layer = entry, self._layer
        elif entry.kind is _HARDLINK:
            target = self._link_target(entry)
            if there is not None and there.children is not None:
                del children[name]
                # What the directory held, which is gone before there is a link.
                if self._link_target(entry) is not target:
                    raise refusal("what it is a hard link to is not there", entry.path)
            children[name] = target
        else:
            # Where it is, is told by the names of the directories: its path may be 4 KiB long.
            children[name] = MergedFile(entry._replace(path=""), self._layer)
        if there is not None:
            self._folder = None  # which may have led through it
        directory.touch(name, self._layer)

    def _enter(self, folder: str, member: str) -> MergedFile:
        """Return the directory that a path leads to, made if missing, and marked as one with things of the layer."""
        if folder != self._folder:
            way, missing = self._follow(folder.split("/"), member)
            self._steps += len(missing)
            for part in missing:
                self._bounds.count_directory(part)
                made = way[-1].directory.names[part] = MergedFile(_UNNAMED_DIRECTORY, self._layer)
                way.append(_Step(part, made))
            for above, step in pairwise(way):
                above.directory.touch(step.name, self._layer)
            # Members mostly follow others of the same directory.
            self._folder, self._at = folder, way[-1].directory
        return self._at

    def _follow(self, parts: Iterable[str], member: str) -> tuple[list[_Step], list[str]]:
        """Return the directories that a path leads through, links resolved, and what is missing below the last one."""
        way = [_Step("", self.root)]
        missing: list[str] = []
        rest = list(parts)[::-1]
        links = 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if missing:
                    missing.pop()
                elif len(way) > 1:
                    way.pop()
                continue
            there = None if missing else way[-1].directory.names.get(name)
            if there is None:
                check_part(name, member)  # which a link may lead to
                missing.append(name)
            elif there.children is not None:
                way.append(_Step(name, there))
            elif there.entry.kind is _SYMLINK:
                links += 1
                if links > MOST_LINKS:
                    raise refusal(f"its path leads through more than {MOST_LINKS} links", member)
                target = there.entry.link_target
                if target.startswith("/"):
                    del way[1:]
                steps = target.split("/")[::-1]
                self._steps += len(steps)
                rest += steps
            else:
                raise refusal("something on the way to it is no directory", member)
        return way, missing

    def _link_target(self, entry: LayerEntry) -> MergedFile:
        parts = split(entry.link_target, entry.path)
        self._step_bounds.count_target(len(parts))
        if not parts:
            raise refusal("it is a hard link to a directory", entry.path)
        way, missing = self._follow(parts[:-1], entry.path)
        found = None if missing else way[-1].directory.names.get(parts[-1])
        if found is None:
            raise refusal("what it is a hard link to is not there", entry.path)
        if found.children is not None:
            raise refusal("it is a hard link to a directory", entry.path)
        return found

    def _real_directory(self, parts: Iterable[str]) -> MergedFile | None:
        """Return the directory at a path that passes no link; None where there is none."""
        directory = self.root
        for part in parts:
            found = directory.names.get(part)
            if found is None or found.children is None:
                return None
            directory = found
        return directory

    def _hide(self, path: str) -> None:
        *folder, name = path.split("/")
        directory = self._real_directory(folder)
        found = directory.names.get(name) if directory is not None else None
        if directory is None or found is None:
            return
        if not directory.is_own(name, self._layer):
            del directory.names[name]
        elif found.children is not None:
            found.forget_entry(self._layer)
            self._clear(found)

    def _clear(self, directory: MergedFile) -> None:
        """Take from a directory, and from those below it, what lower layers have put there."""
        rest = [directory]
        while rest:
            above = rest.pop()
            if above.is_cleared(self._layer):
                continue
            for name, child in list(above.names.items()):
                if not above.is_own(name, self._layer):
                    del above.names[name]
                elif child.children is not None:
                    child.forget_entry(self._layer)
                    rest.append(child)
