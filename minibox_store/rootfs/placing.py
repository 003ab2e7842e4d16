"""What a member of a layer means, and where: the one reading of names and whiteouts, for trees and for indexes.

A name is a way down from the image's root and nothing else: it may be absolute or begin with ``./``, and may not hold
``..``. Names that the root itself has (``.``, ``/``) may only be those of a directory (CVE-2021-29136).

Spec: OCI image-spec 1.1, layer.md, "Whiteouts".
"""

from typing import Literal, NamedTuple

from minibox_store.tar.member import Member, MemberKind, refusal

Meaning = Literal["entry", "whiteout", "opaque", "ignored"]

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_METADATA = ".wh..wh."  # of AUFS itself: its hard links and orphans
_LONGEST_NAME_BYTES = 255
_LONGEST_PATH_BYTES = 4096
# Links lead a short name through many directories. So many more than in the names themselves may be made and gone
# through, for each member and for all: no image of files comes near, and with more the work would not be linear.
_STEPS_PER_MEMBER = 32
_STEPS_PER_PART = 4
_STEPS_AT_FIRST = 100_000


class Placement(NamedTuple):
    """What a member does, and to which path.

    Attributes:
        meaning: ``entry``: it is a file, directory or the like; ``whiteout``: what lower layers have at ``parts`` is
            hidden; ``opaque``: what they have below the directory ``parts`` is; ``ignored``: nothing.
        parts: the components of the path below the image's root; none for the root itself.
    """

    meaning: Meaning
    parts: tuple[str, ...]


def place(member: Member) -> Placement:
    """Return what ``member``, which nobody vouches for, means in a layer.

    Raises:
        InvalidArchive: for a name that holds ``..``, that no file can have, or that only a directory may have; and for
            a whiteout that names nothing.

    >>> place(Member("./etc/.wh.passwd"))
    Placement(meaning='whiteout', parts=('etc', 'passwd'))
    """
    name = member.name
    parts = split(name, name)
    if not parts:
        if member.kind is not MemberKind.DIRECTORY:
            raise refusal("only a directory can be the root of an image", name)
        return Placement("entry", ())
    last = parts[-1]
    if not last.startswith(_WHITEOUT):
        return Placement("entry", parts)
    if last == _OPAQUE:
        return Placement("opaque", parts[:-1])
    if last.startswith(_METADATA):
        return Placement("ignored", parts)
    hidden = last[len(_WHITEOUT) :]
    if hidden in ("", ".", ".."):
        raise refusal("this whiteout names nothing", name)
    return Placement("whiteout", (*parts[:-1], hidden))


class StepBounds:
    """Through how many directories the links up to all members of an image may lead."""

    def __init__(self) -> None:
        self._most_steps = _STEPS_AT_FIRST

    def count_member(self, parts: int) -> None:
        """Take note of one more member, and of how many components its path has."""
        self._most_steps += _STEPS_PER_MEMBER + _STEPS_PER_PART * parts

    def count_target(self, parts: int) -> None:
        """Take note of how many components the path has that a member is a hard link to."""
        self._most_steps += _STEPS_PER_PART * parts

    def check(self, steps: int, member_name: str) -> None:
        """Return if so many steps were not too many.

        Raises:
            InvalidArchive: when they were.
        """
        if steps > self._most_steps:
            raise refusal("the links up to it lead through more directories than any image needs", member_name)


def split(path: str, member_name: str) -> tuple[str, ...]:
    """Return the components of a path below the root of an image.

    Args:
        path: the name of a member, or the target of a hard link.
        member_name: whose it is, for the error.

    Raises:
        InvalidArchive: when it holds ``..``, or is longer than a path can be.
    """
    if "/" not in path and path not in (".", "..", "") and len(path) < _LONGEST_NAME_BYTES // 4:
        return (path,)
    parts = tuple([part for part in path.split("/") if part not in ("", ".")])
    if ".." in parts:
        raise refusal("its path leads upwards", member_name)
    if len(path) >= _LONGEST_PATH_BYTES // 4 and len(path.encode(errors="surrogateescape")) >= _LONGEST_PATH_BYTES:
        raise refusal("its path is longer than 4,095 bytes", member_name)
    for part in parts:
        if len(part) >= _LONGEST_NAME_BYTES // 4:
            check_part(part, member_name)
    return parts


def check_part(part: str, member_name: str) -> None:
    """Refuse a name that no file can have.

    Raises:
        InvalidArchive: naming the member.
    """
    if len(part.encode(errors="surrogateescape")) > _LONGEST_NAME_BYTES:
        raise refusal("a part of its path is longer than 255 bytes", member_name)
