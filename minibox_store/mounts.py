"""What is mounted, where, and of what: read from ``/proc``, of every process and each mount namespace once.

A place is compared by its device and its path there, as mountinfo tells them, so that another namespace or a bind mount
gives the same folder no other name. What an overlay is made of is a text that somebody once passed, and where it leads
by now may be hidden, or gone: that is compared by device and inode too, and by the text itself. What cannot be seen
counts as used. Nothing on a FUSE mount is touched: its server may be dead.
"""

import errno
import os
from collections.abc import Collection
from contextlib import suppress

import attrs

from minibox_store._mount_views import Mount, View, is_below, join_paths, parse_mountinfo, resolve_folder
from minibox_store._trees import Identity, identity_of, mount_of
from minibox_store.values import Value

_DELETED = "//deleted"
_OWN_NAMES = ("/proc/", "/dev/fd/")  # they lead whoever asks to something of his own
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_RETRIES = 3
_LOOK = os.O_PATH | os.O_CLOEXEC
_ENDED = (errno.ENOENT, errno.ESRCH, errno.EINVAL)  # the last of one that has ended, and that nobody has asked about


@attrs.frozen(repr=False)
class _Use(Value):
    """Why a place must stay: it is covered by a mount of a device, shown by it, or part of it."""

    device: str
    path: str
    by_device: str

    def is_in(self, places: Collection[tuple[str, str]]) -> bool:
        """Whether it is one of some places on devices, or lies below one."""
        return any(self.device == device and is_below(self.path, path) for device, path in places)


class MountTable:
    """What was mounted when it was read.

    Attributes:
        doubts: a sentence for each part that could not be seen, so that anything may be mounted there.
    """

    def __init__(self) -> None:
        self.doubts: list[str] = []
        self._ours = View("self", ())
        self._uses: set[_Use] = set()
        self._identities: set[Identity] = set()
        self._relative: set[str] = set()
        self._added: set[str] = set()
        self._lost: dict[tuple[str, str], bool] = {}
        self._shown: set[tuple[str, str, str]] = set()

    def mounts_at(self, path: str) -> tuple[Mount, ...]:
        """Return what this process sees mounted at a path, the uppermost last."""
        resolved = resolve_folder(path)
        return tuple(mount for mount in self._ours.mounts if mount.point == resolved)

    def points(self) -> frozenset[str]:
        """Return where this process sees something mounted."""
        return frozenset(mount.point for mount in self._ours.mounts)

    def shown_at(self, folder: str) -> frozenset[tuple[str, str]]:
        """Return the paths at which a resolved folder, or a part of it, is seen in any namespace, each with its own.

        They are as ``/proc`` tells this process where somebody works, or what he has open.
        """
        place = self._ours.place_of(folder)
        found = {(folder, folder)}
        for device, root, point in self._shown:
            if place is None or device != place[0]:
                continue
            if is_below(place[1], root):
                found.add((join_paths(point, os.path.relpath(place[1], root)), folder))
            elif is_below(root, place[1]):
                found.add((point, join_paths(folder, os.path.relpath(root, place[1]))))
        return frozenset(found)

    def who_mounts(self, path: str, *, but: Collection[str] = ()) -> str | None:
        """Return why ``path``, or something below it, must stay for the sake of a mount; None when nothing is seen.

        Args:
            path: it is not followed where it is a link.
            but: the devices, as of :class:`Mount`, of mounts that do not count.
        """
        resolved = resolve_folder(path)
        places = {(mount.device, mount.root) for mount in self.mounts_at(path)}
        if (folder := self._ours.place_of(os.path.dirname(resolved))) is not None:
            places.add((folder[0], os.path.join(folder[1], os.path.basename(resolved))))
        for mount in self._ours.mounts:
            if mount.device not in but and is_below(mount.point, resolved):
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
        """Return why a path stays where nobody can tell what an overlay is made of.

        A relative text, of somebody who worked nobody knows where, counts wherever it may lead to: from the folder
        itself, and from each above it; so does one that may begin on a mount which lies nowhere. One that leads nowhere
        by now, such as in a namespace that has left the root in which it was meant, counts for whatever is called as a
        part of it.
        """
        for text in self._relative | self._added:
            base = path
            while True:
                with suppress(OSError):
                    if is_below(self._ours.resolve(f"{base}/{text}"), path):
                        return f"an overlay is made of {text!r}, which may lead there"
                if base == "/":
                    break
                base = os.path.dirname(base)
        name = os.path.basename(path)
        for (_, text), is_lost in self._lost.items():
            if is_lost and name in text.split("/"):
                return f"an overlay is made of {text!r}, which leads nowhere by now, and may have led there"
        return None

    # ---- filling it

    def add(self, view: View, *, is_ours: bool, is_open: bool, root: str = "/") -> None:
        """Add what one process sees; ``is_open`` says that its paths can be walked, and ``root`` where they begin."""
        if is_ours:
            self._ours = view
        for mount in view.mounts:
            self._shown.add((mount.device, mount.root, join_paths(root, mount.point.lstrip("/"))))
            covered = view.place_under(mount)
            for place in (covered, (mount.device, mount.root)):
                if place is not None and not place[1].endswith(_DELETED):
                    self._uses.add(_Use(*place, mount.device))
            self._added.update(mount.added)
            for text in mount.made_of:
                self._add_part(view, mount, text, is_open=is_open)

    def _add_part(self, view: View, overlay: Mount, text: str, *, is_open: bool) -> None:
        if not text.startswith("/"):
            self._relative.add(text)
            return
        if text.startswith(_OWN_NAMES):
            self.doubts.append(f"an overlay is made of {text!r}, which only says to whoever mounted it what that is")
            return
        for each in (view, self._ours):
            self._add_path(each, overlay, os.path.normpath(text))
        if not is_open:
            return
        try:
            path = view.resolve(text)
            if not view.is_served(path):
                self._add_identities(view.root, path)
        except OSError as error:
            if error.errno in _NOWHERE:
                self._lost.setdefault((overlay.device, text), True)
            return  # what is there and may not be looked at counts as it is written
        self._lost[overlay.device, text] = False  # another view may not lead there
        self._add_path(view, overlay, path)

    def _add_path(self, view: View, overlay: Mount, path: str) -> None:
        if (place := view.place_of(path)) is not None:
            self._uses.add(_Use(*place, overlay.device))

    def _add_identities(self, root: str, path: str) -> None:
        """Add a folder and all above it: each has that folder in it."""
        opened = os.open(root + path, _LOOK | os.O_NOFOLLOW)
        try:
            while (identity := identity_of(opened)) not in self._identities:
                self._identities.add(identity)
                above = os.open("..", _LOOK | os.O_DIRECTORY, dir_fd=opened)
                os.close(opened)
                opened = above
        except OSError:
            return  # it is no folder, or may not be left upwards
        finally:
            os.close(opened)


def read_mounts() -> MountTable:
    """Return what is mounted now, in the namespaces of all processes that this one can see."""
    table = _Reading().table
    for _ in range(_RETRIES):
        if not table.doubts:
            break
        # What was mounted while it was read shows in one view, and not yet in another that can be looked into.
        table = _Reading().table
    return table


def served_points() -> frozenset[str]:
    """Return where this process sees what another one serves: that may be dead, or stand still, and is not asked."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return frozenset(mount.point for mount in parse_mountinfo(file.read()) if mount.is_fuse)
    except OSError:
        return frozenset()  # whoever would remove anything hears of that by the doubts


class _Reading:
    """One reading of all mountinfos."""

    def __init__(self) -> None:
        self.table = MountTable()
        self._namespaces: set[str] = set()
        self._views: set[tuple[str, int, str]] = set()
        self._contents: set[bytes] = set()
        self._kept: dict[str, str] = {}
        self._closed: list[View] = []
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
        root = "/" if key is None or process == "self" else key[2]
        self._add(View(process, parse_mountinfo(content)), is_open=key is not None, root=root)

    def _add(self, view: View, *, is_open: bool, root: str) -> None:
        self.table.add(view, is_ours=view.process == "self", is_open=is_open, root=root)
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
