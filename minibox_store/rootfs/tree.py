"""Layers into a directory, member after member: what each member does there, and what a whiteout takes away.

Nothing that exists is ever written to: what is in the way is removed, and a new file made (O_EXCL). What a directory is
given comes at the end of all, so that neither its mode nor its default attributes bear on what is put into it, and its
times last.

Spec: OCI image-spec 1.1, layer.md, "Applying Changesets".
"""

import errno
import os
from collections.abc import Callable
from typing import Literal

from minibox_store.limits import DEFAULT_UNPACK_LIMITS, UnpackLimits
from minibox_store.reports.unpacked import DEFAULT_UNPACK_POLICY, UnpackedLayers, UnpackPolicy
from minibox_store.rootfs.contents import ContentWriter
from minibox_store.rootfs.directories import MOST_OPEN, Directories, Directory, DirectoryEntry
from minibox_store.rootfs.ownership import LeftOut, Ownership, set_overlay_attribute
from minibox_store.rootfs.placing import StepBounds, place, split
from minibox_store.rootfs.tree_bounds import TreeBounds
from minibox_store.rootfs.whiteouts import Whiteouts
from minibox_store.tar import ByteStream, Member, MemberKind, TarReader
from minibox_store.tar.member import NO_XATTRS, refusal

Form = Literal["flat", "overlay"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SHOWN_CHARACTERS = 256  # more than any message shows of a name
_UNNAMED = DirectoryEntry("", 0o755, 0, 0, 0, NO_XATTRS)  # a directory that no member names, also in other tools


def check_nothing() -> None:
    """Go on."""


class TreeWriter:
    """Puts layers into one directory, the lowest first.

    Args:
        root_descriptor: an open directory, empty, in which nobody else works; it stays open.
        policy: what becomes of owners, devices and privileges.
        form: ``"flat"``: the tree is that of the image, and hidden things go. ``"overlay"``: it is that of one layer,
            and a whiteout is what overlayfs takes for one.
        limits: how many members there may be.
        check: called often; what it raises ends the work.
        most_open: how many directories are open at once, two at least.

    Guarantees: nothing outside the directory is read, changed or removed, whatever the members say.
    """

    def __init__(
        self,
        root_descriptor: int,
        *,
        policy: UnpackPolicy = DEFAULT_UNPACK_POLICY,
        form: Form = "flat",
        limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
        check: Callable[[], None] = check_nothing,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._bounds = TreeBounds("the image", limits)
        self._directories = Directories(root_descriptor, self._bounds, check, most_open)
        self._left_out = LeftOut()
        self._ownership = Ownership(policy, self._left_out)
        self._is_overlay = form == "overlay"
        self._whiteouts = Whiteouts(self._directories, is_overlay=self._is_overlay)
        self._limits = limits
        self._check = check
        self._entries = 0
        self._attribute_bytes = 0  # of all directories
        self._steps = StepBounds()
        self._way: tuple[str, ...] | None = None  # where the last member was put, and which directory that is
        self._at = self._directories.root
        self._contents = ContentWriter(check, limits.ratio_floor_bytes)
        self._forget_inheritance(root_descriptor)

    def close(self) -> None:
        """Close what is open but the root; the tree is not finished by that."""
        self._directories.close()

    def apply_layer(self, stream: ByteStream) -> None:
        """Put all members of a layer's tar into the tree.

        Args:
            stream: not trusted; read up to the end of the archive.

        Raises:
            InvalidArchive: when it is no tar, or a member cannot be put into any tree.
            OSError: what the system says of the tree.
        """
        self._whiteouts.layer += 1
        self._way = None
        reader = TarReader(stream, sparse=True)
        for member in reader:
            self._check()
            self._entries += 1
            self._bounds.count_member()
            meaning, parts = place(member)
            self._steps.count_member(len(parts))
            try:
                if meaning == "entry":
                    self._put(member, parts, reader)
                elif meaning == "whiteout":
                    self._way = None  # which may have led through what goes
                    self._bounds.count_name(parts[-1])
                    self._whiteouts.hide(parts)
                elif meaning == "opaque":
                    self._way = None
                    self._whiteouts.hide_below(parts)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise refusal("a name or link in it is longer than one can be here", member.name) from error
                raise
            self._steps.check(self._directories.steps, member.name)

    def finish(self) -> UnpackedLayers:
        """Give every directory its owner, mode, attributes and times; return what came of all layers."""
        order, rest = [], [self._directories.root]
        while rest:
            order.append(rest[-1])
            rest.extend(rest.pop().children.values())
        order = self._whiteouts.drop_idle(order)
        # Each behind what is in it: a mode may keep even its owner out. Each subtree by itself, so that the way to a
        # directory is open as a rule: level by level, each of many deep ones would be entered from the root.
        for directory in reversed(order):
            self._check()
            self._directories.open(directory)
            self._directories.open_above(directory)
            opened = self._directories.open(directory)
            if directory.is_opaque:
                set_overlay_attribute(opened, "opaque", b"y")
            member = Member(kind=MemberKind.DIRECTORY, **(directory.entry or _UNNAMED)._asdict())
            self._ownership.settle(opened, member, is_directory=True)
        return UnpackedLayers(
            layers=self._whiteouts.layer,
            entries=self._entries,
            size_bytes=self._contents.size_bytes,
            left_out=tuple(self._left_out.sentences),
            left_out_count=self._left_out.count,
        )

    # ---- members

    def _put(self, member: Member, parts: tuple[str, ...], reader: TarReader) -> None:
        if not parts:
            self._name(self._directories.root, member)
            return
        way, name = parts[:-1], parts[-1]
        if way != self._way:
            self._at, self._way = self._whiteouts.make(*self._directories.follow(way, member.name)), way
        directory = self._at
        kind = member.kind
        if kind is MemberKind.FILE:
            self._put_file(directory, name, member, reader)
        elif kind is MemberKind.DIRECTORY:
            self._put_directory(directory, name, member)
        elif kind is MemberKind.SYMLINK:
            self._put_link(directory, name, member)
        elif kind is MemberKind.HARDLINK:
            self._put_hard_link(directory, name, member)
        elif not self._put_special(directory, name, member):
            return
        if self._whiteouts.hides:
            self._bounds.count_name(name)
            self._whiteouts.own(directory, name)

    def _put_file(self, directory: Directory, name: str, member: Member, reader: TarReader) -> None:
        try:
            opened = os.open(name, _NEW, 0o600, dir_fd=self._directories.open(directory))
        except FileExistsError:
            self._vacate(directory, name)
            opened = os.open(name, _NEW, 0o600, dir_fd=self._directories.open(directory))
        try:
            self._contents.write(opened, member, reader)
            self._ownership.settle(opened, member)
        finally:
            os.close(opened)

    def _put_directory(self, directory: Directory, name: str, member: Member) -> None:
        made = directory.children.get(name)
        if made is None:
            try:
                made = self._directories.make(directory, name, self._whiteouts.layer)
            except FileExistsError:
                self._vacate(directory, name)
                made = self._directories.make(directory, name, self._whiteouts.layer)
                # What was in the way hid what lower layers have; so must this.
                made.is_opaque = self._is_overlay
        self._name(made, member)

    def _name(self, directory: Directory, member: Member) -> None:
        self._attribute_bytes += _attribute_bytes(member) - _attribute_bytes(directory.entry)
        most = self._limits.directory_attribute_bytes
        if self._attribute_bytes > most:
            raise refusal(f"the directories up to it have more than {most} bytes of attributes", member.name)
        directory.entry, directory.entry_layer = _kept(member), self._whiteouts.layer

    def _put_link(self, directory: Directory, name: str, member: Member) -> None:
        target = member.link_target
        try:
            os.symlink(target, name, dir_fd=self._directories.open(directory))
        except FileExistsError:
            self._vacate(directory, name)
            os.symlink(target, name, dir_fd=self._directories.open(directory))
        self._ownership.settle_link(self._directories.open(directory), name, member)

    def _put_special(self, directory: Directory, name: str, member: Member) -> bool:
        if self._is_overlay and _is_whiteout_device(member):
            self._left_out.add(member.name, "a device 0/0, which overlayfs takes for a whiteout")
            return False
        try:
            return self._ownership.make_special(self._directories.open(directory), name, member)
        except FileExistsError:
            self._vacate(directory, name)
            return self._ownership.make_special(self._directories.open(directory), name, member)

    def _put_hard_link(self, directory: Directory, name: str, member: Member) -> None:
        parts = split(member.link_target, member.name)
        self._steps.count_target(len(parts))
        where, missing = self._directories.follow(parts[:-1], member.name)
        target = parts[-1] if parts else ""
        if missing or target in (where.whiteouts or ()):
            raise refusal("what it is a hard link to is not there", member.name)
        if not parts or target in where.children:
            raise refusal("it is a hard link to a directory", member.name)
        if where is directory and target == name:
            self._check_there(where, target, member)
            return
        # A descriptor of its own: whatever is opened meanwhile does not close it.
        source = os.dup(self._directories.open(where))
        try:
            self._link(source, target, directory, name)
        except FileNotFoundError as error:
            raise refusal("what it is a hard link to is not there", member.name) from error
        finally:
            os.close(source)

    def _check_there(self, directory: Directory, name: str, member: Member) -> None:
        try:
            os.stat(name, dir_fd=self._directories.open(directory), follow_symlinks=False)
        except FileNotFoundError as error:
            raise refusal("what it is a hard link to is not there", member.name) from error

    def _link(self, source: int, target: str, directory: Directory, name: str) -> None:
        for attempt in (1, 2):
            try:
                into = self._directories.open(directory)
                os.link(target, name, src_dir_fd=source, dst_dir_fd=into, follow_symlinks=False)
            except FileExistsError:
                if attempt == 2:
                    raise
                self._vacate(directory, name)
            else:
                return

    def _vacate(self, directory: Directory, name: str) -> None:
        self._way = None  # which may have led through it
        self._whiteouts.vacate(directory, name)

    # ---- directories

    def _forget_inheritance(self, root_descriptor: int) -> None:
        """Let nothing of the folder around the tree be inherited by what is in it: neither group nor access list."""
        os.fchown(root_descriptor, *self._ownership.own_ids)
        os.fchmod(root_descriptor, 0o700)
        for name in ("system.posix_acl_default", "system.posix_acl_access"):
            try:
                os.removexattr(root_descriptor, name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise


def _attribute_bytes(member: Member | DirectoryEntry | None) -> int:
    if member is None or not member.xattrs:
        return 0
    return sum(len(key) + len(value) for key, value in member.xattrs.items())


def _kept(member: Member) -> DirectoryEntry:
    """Return of a directory what it is given at the end: its names may be a megabyte long, and nobody asks for them."""
    mode, uid, gid, mtime, xattrs = member.mode, member.uid, member.gid, member.mtime_nanoseconds, member.xattrs
    return DirectoryEntry(member.name[:_SHOWN_CHARACTERS], mode, uid, gid, mtime, xattrs)


def _is_whiteout_device(member: Member) -> bool:
    is_character_device = member.kind is MemberKind.CHARACTER_DEVICE
    return is_character_device and not member.device_major and not member.device_minor
