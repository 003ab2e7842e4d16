"""Which files below a folder somebody uses: open, worked in, or mounted. Read from ``/proc``, of every process.

What cannot be seen counts as used: a process of another user may have anything open.
"""

import os
import re
from collections.abc import Iterator

import attrs

_ESCAPE = re.compile(r"\\([0-7]{3})")
_OVERLAY_OPTIONS = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir")


@attrs.frozen(kw_only=True)
class Usage:
    """What was seen.

    Attributes:
        opened: resolved paths that are open, or worked in.
        mounted: resolved paths that something is mounted on, or that an overlay is made of.
        unseen: processes whose open files could not be read.
        unseen_mounts: processes whose mounts could not be read.
    """

    opened: frozenset[str]
    mounted: frozenset[str]
    unseen: tuple[int, ...]
    unseen_mounts: tuple[int, ...]

    def who_mounts(self, path: str) -> str | None:
        """Return why ``path``, or something below it, must stay for the sake of a mount; None when nothing does."""
        if _is_below(path, self.mounted):
            return "something is mounted there, or from there"
        if self.unseen_mounts:
            return f"process {self.unseen_mounts[0]} may have it mounted, and cannot be looked into"
        return None

    def who_uses(self, path: str) -> str | None:
        """Return why ``path``, or something below it, must stay; None when nothing speaks against its removal."""
        if _is_below(path, self.opened):
            return "somebody has it open"
        if self.unseen:
            return f"process {self.unseen[0]} may have it open, and cannot be looked into"
        return self.who_mounts(path)


def _is_below(path: str, used: frozenset[str]) -> bool:
    """Whether something used is ``path``, a link itself, or lies below it."""
    resolved = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return any(each == resolved or each.startswith(resolved + "/") for each in used)


def read_usage(root: str) -> Usage:
    """Return what of ``root`` is used now, by any process that this one may look into."""
    prefix = os.path.realpath(root) + "/"
    here = _Mount.of(prefix)
    opened: set[str] = set()
    mounted: set[str] = set()
    unseen, unseen_mounts = [], []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            opened.update(path for path in _open_paths(name) if path.startswith(prefix))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError:
            unseen.append(int(name))
        try:
            for line in _mountinfo(name):
                mounted.update(path for path in _mounted_paths(line, here) if path.startswith(prefix))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            unseen_mounts.append(int(name))
    return Usage(
        opened=frozenset(opened),
        mounted=frozenset(mounted),
        unseen=tuple(unseen),
        unseen_mounts=tuple(unseen_mounts),
    )


def _open_paths(process: str) -> Iterator[str]:
    """Yield what a process has open, works in, or runs from."""
    for link in ("cwd", "root", "exe"):
        yield _read_link(f"/proc/{process}/{link}")
    folder = f"/proc/{process}/fd"
    for name in os.listdir(folder):
        yield _read_link(f"{folder}/{name}")
    with open(f"/proc/{process}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            yield line.rstrip("\n").partition("/")[1] + line.rstrip("\n").partition("/")[2]


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except (FileNotFoundError, ProcessLookupError):
        return ""  # closed meanwhile, or a thread of the kernel


@attrs.frozen
class _Mount:
    """One line of a mountinfo: which part of which device is seen where, and by which options."""

    device: str
    root: str
    point: str
    options: str

    @classmethod
    def of(cls, path: str) -> "_Mount":
        """Return the mount, as this process sees it, that ``path`` lies in."""
        found = [each for each in _mountinfo("self") if path.startswith(each.point.rstrip("/") + "/")]
        return max(reversed(found), key=lambda each: len(each.point))


def _mountinfo(process: str) -> Iterator[_Mount]:
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            fields = before.split(" ")
            yield _Mount(fields[2], _unescaped(fields[3]), _unescaped(fields[4]), after.split(" ")[-1])


def _mounted_paths(mount: _Mount, here: _Mount) -> Iterator[str]:
    """Yield where something is mounted, what is mounted elsewhere, and the folders that an overlay is made of."""
    yield mount.point
    below = here.root.rstrip("/") + "/"
    if mount.device == here.device and mount.root.startswith(below):
        yield here.point.rstrip("/") + "/" + mount.root[len(below) :]
    for option in mount.options.split(","):
        key, _, paths = option.partition("=")
        if key in _OVERLAY_OPTIONS:
            yield from (os.path.realpath(_unescaped(path)) for path in paths.split(":") if path)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
