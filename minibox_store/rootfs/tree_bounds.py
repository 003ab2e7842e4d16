"""How much of what an image's members say is kept in memory: counted before it is, and refused where it is too much.

A path of 4,095 bytes makes two thousand directories, and a gibibyte of names packs into a mebibyte.
"""

from minibox_store.errors import InvalidArchive
from minibox_store.limits import UnpackLimits
from minibox_store.rootfs.layer_entries import LayerEntry
from minibox_store.tar.member import MemberKind

# About what each takes beside its characters, in all that is made of it.
_FILE_BYTES = 1024
_NAME_BYTES = 128
# So many directories there may be, and for each member: with more, a few kilobytes of names would ask for millions.
_DIRECTORIES_AT_FIRST = 100_000
_DIRECTORIES_PER_MEMBER = 32


class TreeBounds:
    """What the members of a layer, or of all layers of an image, have cost so far.

    Args:
        what: they are of, for the errors.
        limits: on it.

    Raises:
        InvalidArchive: by each method, once it is too much.
    """

    def __init__(self, what: str, limits: UnpackLimits) -> None:
        self._what = what
        self._limits = limits
        self._members = 0
        self._directories = 0
        self._tree_bytes = 0
        self._extra_bytes = 0

    def count_member(self) -> None:
        """Take note of one more member."""
        self._members += 1
        if self._members > self._limits.entries:
            raise InvalidArchive(f"{self._what} has more than {self._limits.entries} members")

    def count_entry(self, entry: LayerEntry, *, replaces: bool = False) -> None:
        """Take note of what is kept of a member, in place of what had its name where it ``replaces`` that."""
        if not replaces:
            target = entry.link_target if entry.kind is MemberKind.HARDLINK else ""
            self._count(_FILE_BYTES + len(entry.path) + len(target))
        self._extra_bytes += entry.extra_bytes
        if self._extra_bytes > self._limits.extra_bytes:
            most = self._limits.extra_bytes
            raise InvalidArchive(
                f"{self._what} has more than {most} bytes of extended attributes, link targets and maps of sparse files"
            )

    def count_directory(self, name: str) -> None:
        """Take note of a directory that is kept, and is no member, or not only that."""
        self._directories += 1
        if self._directories > _DIRECTORIES_AT_FIRST + _DIRECTORIES_PER_MEMBER * self._members:
            raise InvalidArchive(f"{self._what} has more directories that no member names than any image needs")
        self._count(_FILE_BYTES + len(name))

    def count_name(self, name: str) -> None:
        """Take note of a name of which nothing else is kept."""
        self._count(_NAME_BYTES + len(name))

    def _count(self, size_bytes: int) -> None:
        self._tree_bytes += size_bytes
        if self._tree_bytes > self._limits.tree_bytes:
            most = self._limits.tree_bytes
            raise InvalidArchive(f"{self._what} has more files and longer names than are kept in {most} bytes")
