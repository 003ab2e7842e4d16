"""How a tree of a store goes: judged once more under a lock, renamed aside, and only then taken apart.

So a crash leaves no half of a tree under its name, but a ``.NAME.<hex>.tmp`` beside it, for the next collection; nor
does a loss of power where the store is durable. Whatever somebody has mounted, or locked, stays; of what a process
serves nothing is asked, for it may never answer. Links are removed themselves.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import attrs

from minibox_store import _files, _locks, _trees
from minibox_store._trees import OPEN_DIRECTORY
from minibox_store.collecting import Ledger
from minibox_store.mounts import MountTable, read_mounts, served_points
from minibox_store.reports.removals import Removal
from minibox_store.values import Value

UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
_LEFT_BEHIND = "left by interrupted work"
_LONGEST_NAME_BYTES = 255 - 22  # two dots, sixteen digits and .tmp


@attrs.frozen(repr=False)
class Folder(Value):
    """One folder of a store whose entries may go.

    Args:
        ledger: what is done is told there.
        root: the store's folder.
        name: the folder's path below it.
        opened: the open directory.
        served: the entries on which something is mounted that a process serves.
        durable: whether a tree is taken apart only once it is sure on the disk that it has lost its name.
    """

    ledger: Ledger
    root: str
    name: str
    opened: int
    durable: bool
    served: frozenset[str] = frozenset()

    @classmethod
    @contextmanager
    def opening(cls, ledger: Ledger, root: str, name: str, *, durable: bool) -> "Iterator[Folder | None]":
        """Yield the folder; None where there is none, or a link or a file in its place.

        What the system says against the block ends it, and is told: other folders may go on.
        """
        try:
            opened = os.open(os.path.join(root, name), OPEN_DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                ledger.errors.append(f"{name}: {error.strerror}")
            yield None
            return
        try:
            yield cls(ledger, root, name, opened, durable, _served_in(os.path.realpath(os.path.join(root, name))))
        except OSError as error:
            entry = error.filename  # what was asked by its name in the folder
            where = f"{name}/{entry}" if isinstance(entry, str) and not os.path.isabs(entry) else name
            ledger.errors.append(f"{where}: {error.strerror or error}")
        finally:
            os.close(opened)

    def entries(self) -> list[str]:
        """Return what is in it."""
        return sorted(os.listdir(self.opened))

    def iter_entries(self, entries: Sequence[str] | None = None) -> Iterator[str]:
        """Yield these, or what is in it, one by one; what ends the collection is raised between two of them."""
        for entry in self.entries() if entries is None else entries:
            self.ledger.pause()
            yield entry

    def path(self, entry: str) -> str:
        """Return where an entry lies."""
        return os.path.join(self.root, self.name, entry)

    def relative(self, entry: str) -> str:
        """Return where an entry lies, below the store's folder."""
        return f"{self.name}/{entry}"

    def mode(self, entry: str) -> int:
        """Return of which type an entry is, 0 where there is none, or can be none; what is served is a directory."""
        if entry in self.served:
            return stat.S_IFDIR
        try:
            return stat.S_IFMT(os.stat(entry, dir_fd=self.opened, follow_symlinks=False).st_mode)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise
            return 0

    def keep(self, entry: str, reason: str) -> None:
        """Tell that an entry stays because somebody uses it."""
        self.ledger.kept.append(f"{self.relative(entry)}: {reason}")

    def fail(self, entry: str, problem: str) -> None:
        """Tell that an entry could not be removed, or not be judged."""
        self.ledger.errors.append(f"{self.relative(entry)}: {problem}")

    @contextmanager
    def telling(self, entry: str) -> Iterator[None]:
        """Tell what the system says against the removal of an entry, and go on; one that is gone is none."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            self.fail(entry, error.strerror or str(error))

    def removal(self, entry: str, kind: str, reason: str) -> Removal:
        """Return the removal of an entry, with what it gives back."""
        measure = _trees.measure_tree(entry, dir_fd=self.opened)
        path, age = self.relative(entry), measure.age_seconds
        return Removal(kind=kind, path=path, size_bytes=measure.size_bytes, reason=reason, age_seconds=age)

    # ---- mounts

    def stays_mounted(self, entry: str, mounts: MountTable | None = None, *, also: str | None = None) -> bool:
        """Whether an entry stays for the sake of a mount, or of what nobody can see; that is told.

        Args:
            entry: what is to go.
            mounts: what is mounted; read anew where it is not given.
            also: what the entry was called when it might have been mounted.
        """
        mounts = read_mounts() if mounts is None else mounts
        for each in filter(None, (entry, also)):
            if (reason := mounts.who_mounts(self.path(each))) is not None:
                self.keep(entry, reason)
                return True
        for doubt in mounts.doubts[:1]:
            self.fail(entry, doubt)
            return True
        return False

    # ---- removing

    def remove(
        self,
        entry: str,
        kind: str,
        reason: str,
        *,
        lock: Callable[[], AbstractContextManager[None]],
        is_doomed: Callable[[], bool],
        besides: Callable[[], None] = lambda: None,
    ) -> None:
        """Remove a directory with all in it, or a link, if ``is_doomed`` says so once ``lock`` is held.

        ``besides`` is done under the same lock, once the entry has lost its name.
        """
        with self.telling(entry):
            with lock():
                if not (self._is_link(entry) or stat.S_ISDIR(self.mode(entry))) or not is_doomed():
                    return
                if self.ledger.dry_run or self._is_link(entry):
                    self._remove_name(entry, kind, reason)
                    besides()
                    return
                aside = self._rename_aside(entry)
                if aside is None:
                    return
                position = len(self.ledger.removed)
                besides()
            # What takes its time is done when nobody waits.
            self.ledger.removed.insert(position, self._take_apart(aside, entry, kind, reason))

    def _is_link(self, entry: str) -> bool:
        return stat.S_ISLNK(self.mode(entry))

    def _remove_name(self, entry: str, kind: str, reason: str) -> None:
        removal = self.removal(entry, kind, reason)
        if not self.ledger.dry_run:
            _files.remove_file(entry, dir_fd=self.opened)
        self.ledger.removed.append(removal)

    def _rename_aside(self, entry: str) -> str | None:
        """Take an entry's name from it, if nobody has it locked; return what it is called now."""
        name = os.fsdecode(os.fsencode(entry)[:_LONGEST_NAME_BYTES])
        aside = f".{name}.{_files.fresh_name()}.tmp"
        if _locks.is_locked(self.path(entry)):
            self.keep(entry, "somebody works in it")
            return None
        _files.rename_file(entry, aside, dir_fd=self.opened)
        return aside

    def _take_apart(self, aside: str, entry: str, kind: str, reason: str) -> Removal:
        """Remove what was renamed aside; return what has gone of it, as the removal of ``entry``."""
        removal = attrs.evolve(self.removal(aside, kind, reason), path=self.relative(entry))
        try:
            self._remove_apart(aside)
        except FileNotFoundError:
            pass  # whoever cleans up here as well was quicker
        except OSError as error:
            self.fail(entry, f"{error.strerror}; what is left of it is {self.relative(aside)}")
            left = _trees.measure_tree(aside, dir_fd=self.opened)
            return attrs.evolve(removal, size_bytes=max(0, removal.size_bytes - left.size_bytes))
        return removal

    def remove_unfinished(self, entry: str, *, lock: Callable[[], AbstractContextManager[None]]) -> None:
        """Remove what was left half made, or half removed: a directory that nobody has locked, or a file.

        Args:
            entry: its name; it is one that :data:`UNFINISHED` matches.
            lock: what whoever writes such a file holds.
        """
        named = UNFINISHED.fullmatch(entry)
        if named is None:
            return
        if entry in self.served:
            self.keep(entry, "something is mounted there")
            return
        with self.telling(entry):
            if not stat.S_ISDIR(self.mode(entry)):
                self.remove_file(entry, "temporary", _LEFT_BEHIND, lock=lock)
                return
            if _locks.is_locked(self.path(entry)) or self.stays_mounted(entry, also=named[1]):
                return
            removal = self.removal(entry, "temporary", _LEFT_BEHIND)
            if self.ledger.dry_run or self._remove_unlocked(entry):
                self.ledger.removed.append(removal)

    def _remove_unlocked(self, entry: str) -> bool:
        """Remove a directory unless somebody has locked it since, to work in it; return whether it is gone."""
        try:
            opened = os.open(entry, OPEN_DIRECTORY, dir_fd=self.opened)
        except PermissionError:
            self._remove_apart(entry)  # whoever cannot open it has not locked it either
            return True
        try:
            if not _locks.try_lock(opened, self.path(entry)):
                return False
            self._remove_apart(entry)
            return True
        finally:
            _locks.release(opened)

    def _remove_apart(self, entry: str) -> None:
        """Remove a tree that has lost its name, here or to a process that was killed then: for good, before any part.

        Else the disk may keep the name, and lose what is below it.
        """
        if self.durable:
            _files.sync_file(self.opened)
        _files.remove_tree(entry, dir_fd=self.opened)

    def remove_file(
        self,
        entry: str,
        kind: str,
        reason: str,
        *,
        lock: Callable[[], AbstractContextManager[None]],
        is_doomed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Remove what is no directory, if ``is_doomed`` says so once ``lock`` is held."""
        with self.telling(entry), lock():
            if self.mode(entry) and is_doomed():
                self._remove_name(entry, kind, reason)


def _served_in(folder: str) -> frozenset[str]:
    return frozenset(os.path.basename(point) for point in served_points() if os.path.dirname(point) == folder)
