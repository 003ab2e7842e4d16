"""Which files below a folder somebody uses: open, worked in, or mounted. Read from ``/proc``, of every process.

What is open counts under whatever name a bind mount, or another namespace, gives it.
What cannot be seen counts as used: a process of another user may have anything open.
"""

import os
from collections.abc import Iterable, Iterator

import attrs

from minibox_store._mount_views import is_below, resolve_folder
from minibox_store.mounts import MountTable, read_mounts
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class Usage(Value):
    """What was seen.

    Attributes:
        opened: resolved paths that are open, or worked in, each as it is called below the folder that was asked for.
        unseen: processes whose open files could not be read.
        mounts: what is mounted.
    """

    opened: frozenset[str]
    unseen: tuple[int, ...]
    mounts: MountTable

    def who_mounts(self, path: str) -> str | None:
        """Return why ``path``, or something below it, must stay for the sake of a mount; None when nothing does."""
        return self.mounts.who_mounts(path) or next(iter(self.mounts.doubts), None)

    def who_opens(self, path: str) -> str | None:
        """Return whether somebody was seen to have ``path``, or something below it, open; None when nobody was."""
        return "somebody has it open" if _is_in_use(path, self.opened) else None

    def who_uses(self, path: str) -> str | None:
        """Return why ``path``, or something below it, must stay; None when nothing speaks against its removal."""
        if (user := self.who_opens(path)) is not None:
            return user
        if self.unseen:
            return f"process {self.unseen[0]} may have it open, and cannot be looked into"
        return self.who_mounts(path)


def _is_in_use(path: str, used: frozenset[str]) -> bool:
    """Whether something used is ``path``, a link itself, or lies below it."""
    resolved = resolve_folder(path)
    return any(is_below(each, resolved) for each in used)


def read_usage(root: str) -> Usage:
    """Return what of ``root`` is used now, by any process that this one may look into."""
    opened: set[str] = set()
    unseen = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            opened.update(_open_paths(name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError:
            unseen.append(int(name))
    mounts = read_mounts()
    names = mounts.shown_at(os.path.realpath(root))
    return Usage(opened=frozenset(_own_paths(opened, names)), unseen=tuple(unseen), mounts=mounts)


def _own_paths(paths: Iterable[str], names: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the paths that lead below one of the names of a folder, each by the folder's own."""
    for shown, own in names:
        yield from (own + path.removeprefix(shown.rstrip("/")) for path in paths if is_below(path, shown))


def _open_paths(process: str) -> Iterator[str]:
    """Yield what a process has open, works in, or runs from."""
    for link in ("cwd", "root", "exe"):
        yield _read_link(f"/proc/{process}/{link}")
    folder = f"/proc/{process}/fd"
    for name in os.listdir(folder):
        yield _read_link(f"{folder}/{name}")
    with open(f"/proc/{process}/maps", "rb") as lines:
        for line in lines:
            _, slash, path = line.rstrip(b"\n").partition(b"/")
            yield os.fsdecode(slash + path)


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except (FileNotFoundError, ProcessLookupError):
        return ""  # closed meanwhile, or a thread of the kernel
