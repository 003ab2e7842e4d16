"""Which files below a folder somebody uses: open, worked in, or mounted. Read from ``/proc``, of every process.

What cannot be seen counts as used: a process of another user may have anything open.
"""

import os
import re
from collections.abc import Iterator

import attrs

_ESCAPE = re.compile(r"\\([0-7]{3})")
_LAYER_OPTIONS = ("lowerdir=", "upperdir=", "workdir=")


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
            mounted.update(path for path in _mounted_paths(name) if path.startswith(prefix))
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
    for link in ("cwd", "root"):
        yield _read_link(f"/proc/{process}/{link}")
    folder = f"/proc/{process}/fd"
    for name in os.listdir(folder):
        yield _read_link(f"{folder}/{name}")


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except (FileNotFoundError, ProcessLookupError):
        return ""  # closed meanwhile


def _mounted_paths(process: str) -> Iterator[str]:
    """Yield mount points, and the folders that overlays are made of, as one process sees them."""
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.rstrip("\n").partition(" - ")
            yield _unescaped(fields.split(" ")[4])
            for option in rest.split(" ")[-1].split(","):
                for kind in _LAYER_OPTIONS:
                    if option.startswith(kind):
                        yield from (os.path.realpath(_unescaped(path)) for path in option[len(kind) :].split(":"))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
