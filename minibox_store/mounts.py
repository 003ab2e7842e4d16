"""What is mounted, where, and of what: read from ``/proc``, of every process and each mount namespace once.

A place is compared by its device and its path there, as mountinfo tells them, so that another namespace or a bind mount
gives the same folder no other name; and what an overlay is made of, which is a text that somebody once passed, by
device and inode too. What cannot be seen counts as used. Nothing on a FUSE mount is touched: its server may be dead.
"""

import errno
import os
import re
from collections.abc import Collection, Iterator

import attrs

from minibox_store._trees import mount_of

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_PART = re.compile(r"(?:[^:\\]|\\.)+", re.DOTALL)
_QUOTED = re.compile(r"\\(.)", re.DOTALL)
_PATH_OPTIONS = {b"lowerdir+", b"datadir+", b"upperdir", b"workdir"}
_HIDING = re.compile(rb"(^|,)hidepid=(?!0|off)")
_DELETED = "//deleted"
_RETRIES = 3
_LOOK = os.O_PATH | os.O_CLOEXEC
_ENDED = (errno.ENOENT, errno.ESRCH, errno.EINVAL)  # the last of one that has ended, and that nobody has asked about

_Identity = tuple[int, int]


@attrs.frozen(kw_only=True)
class Mount:
    """One line of a mountinfo: which part of which device is seen where.

    Attributes:
        number: of the mount; each has its own, in all namespaces together.
        parent: the number of the mount that it lies on.
        device: of the file system, as ``major:minor``.
        root: the path on the device that is seen.
        point: where it is seen, by the process that was asked.
        kind: of the file system.
        made_of: the paths that an overlay was told to be made of.
        hides_processes: whether it is a ``/proc`` that does not show everybody.
    """

    number: int
    parent: int
    device: str
    root: str
    point: str
    kind: str
    made_of: tuple[str, ...] = ()
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


class _View:
    """The mounts of one namespace as one process sees them, by its ``/proc`` folder."""

    def __init__(self, process: str, mounts: tuple[Mount, ...]) -> None:
        self.process = process
        self.mounts = mounts
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
        return any(_is_below(path, point) for point in self._served)

    def place_of(self, path: str) -> tuple[str, str] | None:
        """Return the device that an absolute path leads to, and the path there."""
        mount = self.mount_of(path)
        return None if mount is None else (mount.device, _join(mount.root, os.path.relpath(path, mount.point)))

    def place_under(self, mount: Mount) -> tuple[str, str] | None:
        """Return the place that a mount covers."""
        parent = self._by_number.get(mount.parent)
        if parent is None or parent is mount or not _is_below(mount.point, parent.point):
            return None
        return parent.device, _join(parent.root, os.path.relpath(mount.point, parent.point))


def _join(root: str, path: str) -> str:
    return os.path.normpath(os.path.join(root, path))


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@attrs.frozen
class _Use:
    """Why a place must stay: it is covered by a mount of a device, shown by it, or part of it."""

    device: str
    path: str
    by_device: str

    def is_in(self, places: Collection[tuple[str, str]]) -> bool:
        """Whether it is one of some places on devices, or lies below one."""
        return any(self.device == device and _is_below(self.path, path) for device, path in places)


class MountTable:
    """What was mounted when it was read.

    Attributes:
        doubts: a sentence for each part that could not be seen, so that anything may be mounted there.
    """

    def __init__(self) -> None:
        self.doubts: list[str] = []
        self._ours = _View("self", ())
        self._uses: set[_Use] = set()
        self._identities: set[_Identity] = set()
        self._relative: set[str] = set()

    def mounts_at(self, path: str) -> tuple[Mount, ...]:
        """Return what this process sees mounted at a path, the uppermost last."""
        resolved = _resolved(path)
        return tuple(mount for mount in self._ours.mounts if mount.point == resolved)

    def points(self) -> frozenset[str]:
        """Return where this process sees something mounted."""
        return frozenset(mount.point for mount in self._ours.mounts)

    def who_mounts(self, path: str, *, but: Collection[str] = ()) -> str | None:
        """Return why ``path``, or something below it, must stay for the sake of a mount; None when nothing is seen.

        Args:
            path: it is not followed where it is a link.
            but: the devices, as of :class:`Mount`, of mounts that do not count.
        """
        resolved = _resolved(path)
        places = {(mount.device, mount.root) for mount in self.mounts_at(path)}
        if (folder := self._ours.place_of(os.path.dirname(resolved))) is not None:
            places.add((folder[0], os.path.join(folder[1], os.path.basename(resolved))))
        for mount in self._ours.mounts:
            if mount.device not in but and _is_below(mount.point, resolved):
                return "something is mounted there"
        if any(use.by_device not in but and use.is_in(places) for use in self._uses):
            return "something is mounted there, or from there"
        if not self.mounts_at(path):
            try:
                status = os.lstat(resolved)
            except OSError:
                return None
            if (status.st_dev, status.st_ino) in self._identities:
                return "an overlay is made of it"
        return self._who_may_mean(resolved)

    def _who_may_mean(self, path: str) -> str | None:
        """Return why a path stays where an overlay was given a relative one, by somebody who worked nobody knows where.

        It counts wherever it may lead to: from the folder itself, and from each above it.
        """
        for text in self._relative:
            base = path
            while True:
                led = _join(base, text)
                if _is_below(led, path) and os.path.lexists(led):
                    return f"an overlay is made of {text!r}, which may lead there"
                if base == "/":
                    break
                base = os.path.dirname(base)
        return None

    # ---- filling it

    def add(self, view: _View, *, is_ours: bool, is_open: bool) -> None:
        """Add what one process sees; ``is_open`` says that its paths can be walked."""
        if is_ours:
            self._ours = view
        for mount in view.mounts:
            covered = view.place_under(mount)
            for place in (covered, (mount.device, mount.root)):
                if place is not None and not place[1].endswith(_DELETED):
                    self._uses.add(_Use(*place, mount.device))
            for text in mount.made_of:
                self._add_part(view, mount, text, is_open=is_open)

    def _add_part(self, view: _View, overlay: Mount, text: str, *, is_open: bool) -> None:
        if not text.startswith("/"):
            self._relative.add(text)
            return
        path = os.path.normpath(text)
        place = view.place_of(path)
        if place is not None:
            self._uses.add(_Use(*place, overlay.device))
        if is_open and not view.is_served(path):
            self._add_identities("" if view is self._ours else f"/proc/{view.process}/root", path)

    def _add_identities(self, root: str, path: str) -> None:
        """Add a folder and all above it: each has that folder in it."""
        try:
            opened = os.open(root + path, _LOOK)
        except OSError:
            return  # it is gone, or was another's view: its text has been noted
        try:
            while (identity := _identity(opened)) not in self._identities:
                self._identities.add(identity)
                above = os.open("..", _LOOK | os.O_DIRECTORY, dir_fd=opened)
                os.close(opened)
                opened = above
        except OSError:
            return  # it is no folder, or may not be left upwards
        finally:
            os.close(opened)


def _identity(opened: int) -> _Identity:
    status = os.fstat(opened)
    return status.st_dev, status.st_ino


def _resolved(path: str) -> str:
    """Return a path whose folder is resolved; a link at its end is itself."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def read_mounts() -> MountTable:
    """Return what is mounted now, in the namespaces of all processes that this one can see."""
    table = _Reading().table
    for _ in range(_RETRIES):
        if not table.doubts:
            break
        # What was mounted while it was read shows in one view, and not yet in another that can be looked into.
        table = _Reading().table
    return table


class _Reading:
    """One reading of all mountinfos."""

    def __init__(self) -> None:
        self.table = MountTable()
        self._namespaces: set[str] = set()
        self._views: set[tuple[str, int, str]] = set()
        self._contents: set[bytes] = set()
        self._kept: dict[str, str] = {}
        self._closed: list[_View] = []
        self._overlays: set[str] = set()
        try:
            self._read("self")
            for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
                self._read(name)
                for thread in self._threads_of(name):
                    self._read(f"{name}/task/{thread}")
        except OSError as error:
            self.table.doubts.append(f"/proc does not tell what is mounted: {error.strerror}")
        self._doubt_what_is_closed()

    def _threads_of(self, process: str) -> list[str]:
        try:
            return [name for name in os.listdir(f"/proc/{process}/task") if name != process]
        except OSError:
            return []  # it has ended; or is not to be looked into, which its mounts tell

    def _read(self, process: str) -> None:
        try:
            key = _key_of(process)
        except PermissionError:
            key = None
        except OSError as error:
            if error.errno not in _ENDED:
                raise
            return
        if key is not None:
            self._namespaces.add(key[0])
            if key in self._views:
                return
            self._views.add(key)
        try:
            with open(f"/proc/{process}/mountinfo", "rb") as file:
                content = file.read()
        except OSError as error:
            if error.errno not in _ENDED:
                self.table.doubts.append(f"process {process} may have it mounted, and cannot be looked into")
            return
        if content in self._contents:
            return
        self._contents.add(content)
        self._add(_View(process, parse_mountinfo(content)), is_open=key is not None)

    def _add(self, view: _View, *, is_open: bool) -> None:
        self.table.add(view, is_ours=view.process == "self", is_open=is_open)
        if is_open:
            self._overlays.update(mount.device for mount in view.mounts if mount.made_of)
        else:
            self._closed.append(view)
        for mount in view.mounts:
            if mount.kind == "nsfs" and mount.root.startswith("mnt:"):
                self._kept[mount.root] = mount.point

    def _doubt_what_is_closed(self) -> None:
        doubts = self.table.doubts
        for view in self._closed:
            # What it has mounted is told; what an overlay's paths mean where it lives is not.
            if any(mount.made_of and mount.device not in self._overlays for mount in view.mounts):
                doubts.append(f"process {view.process} may have it mounted, and cannot be looked into")
        for namespace, point in self._kept.items():
            if namespace not in self._namespaces:
                doubts.append(f"it may be mounted in {namespace}, which {point} keeps and no process shows")
        if os.geteuid() != 0 and any(mount.hides_processes for mount in self.table.mounts_at("/proc")):
            doubts.append("it may be mounted by a process that /proc hides")


def _key_of(process: str) -> tuple[str, int, str]:
    """Return what tells one view from another: the namespace, and the root from which a process sees it."""
    namespace = os.readlink(f"/proc/{process}/ns/mnt")
    root = os.open(f"/proc/{process}/root", _LOOK)
    try:
        return namespace, mount_of(root), os.readlink(f"/proc/{process}/root")
    finally:
        os.close(root)
