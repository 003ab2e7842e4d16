"""What a mountinfo says, and what paths mean to the process whose mountinfo it is."""

import errno
import os
import re
from collections.abc import Iterator

import attrs

from minibox_store.values import Value

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_PART = re.compile(r"(?:[^:\\]|\\.)+", re.DOTALL)
_QUOTED = re.compile(r"\\(.)", re.DOTALL)
_ADDED = {b"lowerdir+", b"datadir+"}
_PATH_OPTIONS = {*_ADDED, b"upperdir", b"workdir"}
_HIDING = re.compile(rb"(^|,)hidepid=(?!0|off)")
_MOST_LINKS = 40


@attrs.frozen(kw_only=True, repr=False)
class Mount(Value):
    """One line of a mountinfo: which part of which device is seen where.

    Attributes:
        number: of the mount; each has its own, in all namespaces together.
        parent: the number of the mount that it lies on.
        device: of the file system, as ``major:minor``.
        root: the path on the device that is seen.
        point: where it is seen, by the process that was asked.
        kind: of the file system.
        made_of: the paths that an overlay was told to be made of.
        added: those of them that were given one by one, as a path, or as an open folder: that may lie on a mount which
            lies nowhere, and the path begins there then.
        hides_processes: whether it is a ``/proc`` that does not show everybody.
    """

    number: int
    parent: int
    device: str
    root: str
    point: str
    kind: str
    made_of: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    hides_processes: bool = False

    @property
    def is_fuse(self) -> bool:
        """Whether a process serves it."""
        return self.kind in ("fuse", "fuseblk") or self.kind.startswith("fuse.")


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """Return the mounts that a ``mountinfo`` tells, in its order.

    Spec: proc_pid_mountinfo(5).
    """
    return tuple(_parse_line(line) for line in content.split(b"\n") if line)


def _parse_line(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    fields, kind, options = before.split(b" "), after.split(b" ")[0], after.split(b" ")[-1]
    return Mount(
        number=int(fields[0]),
        parent=int(fields[1]),
        device=fields[2].decode(),
        root=_decoded(fields[3]),
        point=_decoded(fields[4]),
        kind=os.fsdecode(kind),
        made_of=tuple(_paths_of(options)) if kind == b"overlay" else (),
        added=tuple(_added_paths_of(options)) if kind == b"overlay" else (),
        hides_processes=kind == b"proc" and _HIDING.search(options) is not None,
    )


def _decoded(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def _paths_of(options: bytes) -> Iterator[str]:
    """Yield the paths in an overlay's options. What stands behind a backslash there is itself, a ``:`` for instance."""
    for option in options.split(b","):  # a comma in a path is written as \054
        key, _, value = option.partition(b"=")
        if key == b"lowerdir":
            yield from (_QUOTED.sub(r"\1", part) for part in _PART.findall(_decoded(value)))
        elif key in _PATH_OPTIONS:
            yield _QUOTED.sub(r"\1", _decoded(value))


def _added_paths_of(options: bytes) -> Iterator[str]:
    for option in options.split(b","):
        key, _, value = option.partition(b"=")
        if key in _ADDED:
            yield _QUOTED.sub(r"\1", _decoded(value))


class View:
    """The mounts of one namespace as one process sees them, by its ``/proc`` folder."""

    def __init__(self, process: str, mounts: tuple[Mount, ...]) -> None:
        self.process = process
        self.mounts = mounts
        self.root = "" if process == "self" else f"/proc/{process}/root"
        self._by_number = {mount.number: mount for mount in mounts}
        self._by_point = {mount.point: mount for mount in mounts}  # the last one lies above the others
        self._served = [mount.point for mount in mounts if mount.is_fuse]

    def mount_of(self, path: str) -> Mount | None:
        """Return the mount that an absolute path lies in."""
        while path not in self._by_point:
            if path == "/":
                return None
            path = os.path.dirname(path)
        return self._by_point[path]

    def is_served(self, path: str) -> bool:
        """Whether an absolute path leads through what a process serves."""
        return any(is_below(path, point) for point in self._served)

    def resolve(self, path: str) -> str:
        """Return what an absolute path leads to, link by link as the process would go, and never asking a server.

        What lies behind a served mount is taken as it stands.

        Raises:
            OSError: when it leads nowhere.
        """
        resolved, links = "/", 0
        pending = path.split("/")[::-1]
        while pending:
            name = pending.pop()
            if name == "..":
                resolved = os.path.dirname(resolved)
            if name in ("", ".", ".."):
                continue
            resolved = os.path.join(resolved, name)
            if self.is_served(resolved):
                continue
            try:
                led = os.readlink(self.root + resolved)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                continue  # it is there, and no link
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            resolved = "/" if led.startswith("/") else os.path.dirname(resolved)
            pending.extend(led.split("/")[::-1])
        return resolved

    def place_of(self, path: str) -> tuple[str, str] | None:
        """Return the device that an absolute path leads to, and the path there."""
        mount = self.mount_of(path)
        return None if mount is None else (mount.device, join_paths(mount.root, os.path.relpath(path, mount.point)))

    def place_under(self, mount: Mount) -> tuple[str, str] | None:
        """Return the place that a mount covers."""
        parent = self._by_number.get(mount.parent)
        if parent is None or parent is mount or not is_below(mount.point, parent.point):
            return None
        return parent.device, join_paths(parent.root, os.path.relpath(mount.point, parent.point))


def join_paths(root: str, path: str) -> str:
    """Return a path below a root, as it is written."""
    return os.path.normpath(os.path.join(root, path))


def resolve_folder(path: str) -> str:
    """Return a path whose folder is resolved; a link at its end is itself."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
