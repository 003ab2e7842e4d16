"""What a file is given beside its content: owner, attributes, mode and times, in this order, and never through a link.

A change of owner takes setuid bits and capabilities away, a mode may keep its own owner from setting attributes, an
access list changes the mode, and every other change moves the times. What can be opened
is changed by its descriptor; a link by its parent's, unfollowed; a device or FIFO by a descriptor that was opened
with O_PATH and looked at (CVE-2021-32760).

Spec: the attribute ``user.rootlesscontainers`` is a protobuf message of rootlesscontaine.rs: uid = 1, gid = 2.
"""

import errno
import os
import stat
from collections.abc import Iterator

from minibox_store.reports.unpacked import UnpackPolicy
from minibox_store.sentences import one_sentence
from minibox_store.tar import Member, MemberKind
from minibox_store.tar.member import refusal

RECORD = "user.rootlesscontainers"
OVERRIDE = "user.containers.override_stat"
OVERLAY_ATTRIBUTES = ("trusted.overlay.", "user.overlay.")
_CAPABILITY = "security.capability"
# From inside an image they would steer overlayfs, fuse-overlayfs, or whoever believes our records.
NEVER_SET = (*OVERLAY_ATTRIBUTES, "user.fuseoverlayfs.", RECORD, OVERRIDE)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.E2BIG, errno.ERANGE, errno.EINVAL)
_ROOM_BYTES = 1 << 20  # with so many to spare, a disk is not full
_SET_ID_BITS = 0o6000
_LARGEST_ID = 2**32 - 2  # the one above it means "unchanged"
_MOST_SHOWN = 32
_SHOWN_CHARACTERS = 200
_SPECIAL_TYPES = {
    MemberKind.CHARACTER_DEVICE: stat.S_IFCHR,
    MemberKind.BLOCK_DEVICE: stat.S_IFBLK,
    MemberKind.FIFO: stat.S_IFIFO,
}


class LeftOut:
    """What the image has and the tree has not: counted, and the first ones told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.count = 0

    def add(self, name: str, what: str) -> None:
        """Add what is missing of the member ``name``."""
        self.count += 1
        if len(self.sentences) < _MOST_SHOWN:
            shown = name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "..."
            self.sentences.append(one_sentence(f"{shown}: {what}"))


class Ownership:
    """Gives files what a policy lets them have.

    Args:
        policy: where it does not say what becomes of owners, whoever runs this does.
        left_out: is told what could not be given.

    Attributes:
        sets_owners: whether files get their owners.
        records: whether owners and devices are noted in attributes.
        own_ids: whose files are made; such an owner need not be set.
        mode_bits: those that a file may have.
    """

    def __init__(self, policy: UnpackPolicy, left_out: LeftOut) -> None:
        user, group = os.geteuid(), os.getegid()
        owners = policy.owners or ("set" if user == 0 else "record")
        self.sets_owners = owners == "set"
        self.records = owners == "record"
        self.own_ids = (user, group)
        self.mode_bits = 0o7777 if policy.privileges == "keep" else 0o7777 & ~_SET_ID_BITS
        self._keeps_privileges = policy.privileges == "keep"
        self._left_out = left_out

    def settle(self, opened: int, member: Member, *, is_directory: bool = False) -> None:
        """Give an open file or directory all that its member says."""
        uid, gid = member.uid, member.gid
        if self.sets_owners:
            if (uid, gid) != self.own_ids:
                check_ids(member)
                os.fchown(opened, uid, gid)
        elif self.records and (uid or gid):
            check_ids(member)
            self._set_xattr(opened, RECORD, encode_record(uid, gid), member)
        if member.xattrs:
            self._set_xattrs(opened, member, follow_links=True)
        os.fchmod(opened, member.mode if is_directory else member.mode & self.mode_bits)
        mtime = member.mtime_nanoseconds
        os.utime(opened, ns=(mtime, mtime))

    def settle_link(self, directory: int, name: str, member: Member) -> None:
        """Give a symbolic link its owner, attributes and times."""
        if self.sets_owners:
            if (member.uid, member.gid) != self.own_ids:
                check_ids(member)
                os.chown(name, member.uid, member.gid, dir_fd=directory, follow_symlinks=False)
        elif self.records and (member.uid or member.gid):
            self._left_out.add(member.name, "its owner, for a link has no attribute to note it in")
        if member.xattrs:
            # The last part of a path is not followed; the one before it is the very directory.
            self._set_xattrs(f"/proc/self/fd/{directory}/{name}", member, follow_links=False)
        mtime = member.mtime_nanoseconds
        os.utime(name, ns=(mtime, mtime), dir_fd=directory, follow_symlinks=False)

    def make_special(self, directory: int, name: str, member: Member) -> bool:
        """Make a device or FIFO; return False where it is left out.

        Raises:
            FileExistsError: when something is there.
            PermissionError: when it may not be made; a device is named.
        """
        if member.kind is not MemberKind.FIFO and not self.sets_owners:
            return self._record_device(directory, name, member)
        kind = _SPECIAL_TYPES[member.kind]
        device = 0 if member.kind is MemberKind.FIFO else device_number(member)
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=directory)
        except PermissionError as error:
            if member.kind is MemberKind.FIFO:
                raise
            # Root of a container seldom makes devices: what it was that this root may not make is to be known.
            shown = one_sentence(member.name[:_SHOWN_CHARACTERS])
            raise PermissionError(error.errno, f"the device {shown} cannot be made: {error.strerror}") from error
        opened = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            if stat.S_IFMT(os.fstat(opened).st_mode) != kind:
                raise OSError(errno.ELOOP, "somebody has put something else in its place", name)
            self._settle_path(f"/proc/self/fd/{opened}", member)
        finally:
            os.close(opened)
        return True

    def _settle_path(self, path: str, member: Member) -> None:
        """Do as :meth:`settle` by the path of an open descriptor, which is the very file."""
        if self.sets_owners and (member.uid, member.gid) != self.own_ids:
            check_ids(member)
            os.chown(path, member.uid, member.gid)
        elif self.records and (member.uid or member.gid):
            self._left_out.add(member.name, "its owner, for a FIFO has no attribute to note it in")
        if member.xattrs:
            self._set_xattrs(path, member, follow_links=True)
        os.chmod(path, member.mode & self.mode_bits)
        mtime = member.mtime_nanoseconds
        os.utime(path, ns=(mtime, mtime))

    def _record_device(self, directory: int, name: str, member: Member) -> bool:
        if not self.records:
            self._left_out.add(member.name, "a device")
            return False
        check_ids(member)
        device_number(member)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            kind = "char" if member.kind is MemberKind.CHARACTER_DEVICE else "block"
            owner = f"{member.uid}:{member.gid}:{member.mode:04o}"
            value = f"{owner}:{kind}-{member.device_major}-{member.device_minor}"
            self._set_xattr(opened, OVERRIDE, value.encode(), member)
            os.fchmod(opened, member.mode & 0o777)
            os.utime(opened, ns=(member.mtime_nanoseconds, member.mtime_nanoseconds))
        finally:
            os.close(opened)
        return True

    def _set_xattrs(self, target: int | str, member: Member, *, follow_links: bool) -> None:
        for key, value in member.xattrs.items():
            if key.startswith(NEVER_SET):
                self._left_out.add(
                    member.name, f"the attribute {key[:_SHOWN_CHARACTERS]}, which would steer who reads the tree"
                )
            elif key == _CAPABILITY and not self._keeps_privileges:
                self._left_out.add(member.name, "its capabilities, as was asked")
            else:
                self._set_xattr(target, key, value, member, follow_links=follow_links)

    def _set_xattr(
        self, target: int | str, key: str, value: bytes, member: Member, *, follow_links: bool = True
    ) -> None:
        try:
            os.setxattr(target, key, value, follow_symlinks=follow_links)
        except OSError as error:
            reason = error.strerror
            if error.errno == errno.ENOSPC and _has_room(target, follow_links=follow_links):
                # So ext4, and others, call attributes that are together larger than a block.
                reason = "larger than the file system takes"
            elif error.errno not in _UNSUPPORTED:
                raise
            self._left_out.add(member.name, f"the attribute {key[:_SHOWN_CHARACTERS]} ({reason})")


def _has_room(target: int | str, *, follow_links: bool) -> bool:
    if isinstance(target, int):
        found = os.fstatvfs(target)
    else:
        opened = os.open(target, os.O_PATH | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW))
        try:
            found = os.fstatvfs(opened)
        finally:
            os.close(opened)
    return found.f_bavail * found.f_frsize > _ROOM_BYTES


def set_overlay_attribute(opened: int, name: str, value: bytes) -> None:
    """Set an attribute that overlayfs keeps to itself: the one for root, where the system allows that, or a user's."""
    for prefix in OVERLAY_ATTRIBUTES if os.geteuid() == 0 else OVERLAY_ATTRIBUTES[1:]:
        try:
            os.setxattr(opened, prefix + name, value)
        except PermissionError:
            # The root of a user namespace is nobody's but its own; overlays in there read the other one.
            if prefix == OVERLAY_ATTRIBUTES[-1]:
                raise
        else:
            return


def check_ids(member: Member) -> None:
    """Refuse an owner that no file can have.

    Raises:
        InvalidArchive: naming the member.
    """
    if member.uid > _LARGEST_ID or member.gid > _LARGEST_ID:
        raise refusal(f"no file can belong to {member.uid}:{member.gid}", member.name)


def device_number(member: Member) -> int:
    """Return the number of a device, which Linux keeps in 12 and 20 bits.

    Raises:
        InvalidArchive: for what does not fit: cut short, it would be the number of another device.
    """
    if member.device_major >= 1 << 12 or member.device_minor >= 1 << 20:
        raise refusal(f"there is no device {member.device_major}:{member.device_minor}", member.name)
    return os.makedev(member.device_major, member.device_minor)


def encode_record(uid: int, gid: int) -> bytes:
    r"""Return an owner as umoci notes it: a protobuf message, without what is zero.

    >>> encode_record(1000, 0)
    b'\x08\xe8\x07'
    """
    return b"".join(bytes((number << 3, *_varint(value))) for number, value in ((1, uid), (2, gid)) if value)


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
