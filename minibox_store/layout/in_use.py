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
        paths: resolved paths that are open, worked in, mounted on, or part of an overlay.
        unreadable: processes whose open files could not be read.
    """

    paths: frozenset[str]
    unreadable: tuple[int, ...]

    def who_uses(self, path: str) -> str | None:
        """Return why ``path``, or something below it, must stay; None when nothing speaks against its removal."""
        resolved = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        inside = resolved + "/"
        if any(each == resolved or each.startswith(inside) for each in self.paths):
            return "somebody has it open or mounted"
        if self.unreadable:
            return f"process {self.unreadable[0]} may have it open, and cannot be looked into"
        return None


def read_usage(root: str) -> Usage:
    """Return what of ``root`` is used now, by any process that this one may look into."""
    prefix = os.path.realpath(root) + "/"
    paths: set[str] = set()
    unreadable = []
    namespaces: set[str] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            paths.update(path for path in _open_paths(name) if path.startswith(prefix))
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace not in namespaces:
                namespaces.add(namespace)
                paths.update(path for path in _mounted_paths(name) if path.startswith(prefix))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError:
            unreadable.append(int(name))
    return Usage(paths=frozenset(paths), unreadable=tuple(unreadable))


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
    """Yield mount points, and the folders that overlays are made of, of one mount namespace."""
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
