"""Which of a tree's names a layer has made its own, and what its whiteouts take from the layers below.

A whiteout hides what lower layers have, and nothing of its own layer, wherever in the layer it stands. It goes through
no link. In the tree of an image what is hidden goes; in the tree of a single layer it is marked, as overlayfs wants it.

A directory is cleared once in a layer, and what is removed was made before: so the work is linear.

Spec: OCI image-spec 1.1, layer.md, "Whiteouts"; Linux, overlayfs.rst, "whiteouts and opaque directories".
"""

import os
import stat

from minibox_store.rootfs.directories import Directories, Directory


class Whiteouts:
    """The layers of one tree, of which each hides what is below it.

    Args:
        directories: of the tree.
        is_overlay: whether it is the tree of a single layer.

    Attributes:
        layer: the number of the layer that is put into the tree now.
    """

    def __init__(self, directories: Directories, *, is_overlay: bool) -> None:
        self.layer = 0
        self._directories = directories
        self._is_overlay = is_overlay

    @property
    def hides(self) -> bool:
        """Whether there may be anything to hide, so that it matters what is the layer's own."""
        return self._is_overlay or self.layer > 1

    # ---- what is its own

    def own(self, directory: Directory, name: str) -> None:
        """Take note that this layer has put something there, and so into every directory above."""
        below = name
        while directory.layer != self.layer:
            directory.layer, directory.own = self.layer, {below}
            if directory.parent is None:
                return
            below, directory = directory.name, directory.parent
        directory.own.add(below)

    def make(self, directory: Directory, missing: list[str]) -> Directory:
        """Make directories that no member names, each in the one before it; return the last."""
        for name in missing:
            is_hidden = name in (directory.whiteouts or ())
            if is_hidden:
                self.vacate(directory, name)
            made = self._directories.make(directory, name, self.layer)
            made.is_opaque = made.is_hidden = is_hidden
            if self.hides:
                self.own(directory, name)
            directory = made
        return directory

    def vacate(self, directory: Directory, name: str) -> None:
        """Remove what is in the way of a member."""
        if directory.whiteouts is not None:
            directory.whiteouts.discard(name)
        self._directories.remove(directory, name)

    # ---- what is hidden

    def hide(self, parts: tuple[str, ...]) -> None:
        """Let what lower layers have at ``parts`` be gone."""
        directory, name = self._hiding(parts[:-1]), parts[-1]
        if directory is None or (directory.cleared == self.layer and not self._is_overlay):
            return
        if directory.layer != self.layer or name not in directory.own:
            self._hide_lower(directory, name)
        elif name in directory.children:
            directory.children[name].is_hidden = self._is_overlay
            self._forget_entry(directory.children[name])
            self._clear(directory.children[name])

    def hide_below(self, parts: tuple[str, ...]) -> None:
        """Let what lower layers have in the directory ``parts`` be gone."""
        directory = self._hiding(parts)
        if directory is not None:
            self._clear(directory)

    def _hiding(self, parts: tuple[str, ...]) -> Directory | None:
        """Return the directory in which something is hidden; None where there is none, or a link leads to it."""
        if not self._is_overlay:
            return self._directories.find(parts) if self.layer > 1 else None
        found = self._directories.descend(parts)
        return None if found is None else self.make(*found)

    def _hide_lower(self, directory: Directory, name: str) -> None:
        if not self._is_overlay:
            try:
                self._directories.remove(directory, name)
            except FileNotFoundError:
                return
        elif directory.whiteouts is None or name not in directory.whiteouts:
            self._make_device(directory, name)
            if directory.whiteouts is None:
                directory.whiteouts = set()
            directory.whiteouts.add(name)

    def _clear(self, directory: Directory) -> None:
        """Leave in a directory only what this layer has put there."""
        if self._is_overlay:
            directory.is_opaque = True
            return
        stack = [directory]
        while stack:
            each = stack.pop()
            if each.cleared == self.layer:
                continue
            each.cleared = self.layer
            own = each.own if each.layer == self.layer else frozenset[str]()
            for name in os.listdir(self._directories.open(each)):
                if name not in own:
                    self._directories.remove(each, name)
                elif name in each.children:
                    self._forget_entry(each.children[name])
                    stack.append(each.children[name])

    def _forget_entry(self, directory: Directory) -> None:
        """Let a directory be one that nobody has named, if only lower layers have."""
        if directory.entry_layer != self.layer:
            directory.entry = None

    def _make_device(self, directory: Directory, name: str) -> None:
        os.mknod(name, 0o600 | stat.S_IFCHR, 0, dir_fd=self._directories.open(directory))

    def drop_idle(self, order: list[Directory]) -> list[Directory]:
        """Remove what was made for whiteouts alone and would show; return the directories that are left.

        Whiteout devices where nothing lower shows anyway are such: overlayfs may show the devices themselves there. So
        are the directories around them, where no lower layer has them either.

        Args:
            order: all directories, each behind the one that it is in.
        """
        if not self._is_overlay:
            return order
        hiding: set[Directory | None] = set()
        for directory in order:
            if directory.is_opaque or directory.parent in hiding:
                hiding.add(directory)
                for name in directory.whiteouts or ():
                    os.unlink(name, dir_fd=self._directories.open(directory))
        left = []
        for directory in reversed(order):
            shows = directory.parent in hiding or directory.is_hidden
            if directory.parent is None or not shows or not self._is_idle(directory):
                left.append(directory)
                continue
            self._directories.remove(directory.parent, directory.name)
            if directory.parent not in hiding:
                self._make_device(directory.parent, directory.name)
        return left[::-1]

    def _is_idle(self, directory: Directory) -> bool:
        is_named = directory.entry is not None or directory.children
        return not is_named and not os.listdir(self._directories.open(directory))
