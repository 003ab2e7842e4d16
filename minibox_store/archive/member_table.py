"""Which members an archive has, and what was kept of each: all that is known once it has been read. Pure.

Links are followed by their texts, inside the archive alone, and so far and no farther.
"""

from collections.abc import Mapping

from minibox_store.archive.member_names import MemberName, MemberRole, parse_member_name
from minibox_store.digest import Digest
from minibox_store.errors import InvalidArchive

_MOST_LINKS = 8


class MemberTable:
    """What an archive holds. What is kept of its layers may be noted from several threads.

    Attributes:
        sizes: of each blob, under whatever name it stands.
    """

    def __init__(self) -> None:
        self.sizes: dict[Digest, int] = {}
        self._controls: dict[str, bytes] = {}
        self._kept: dict[str, Digest | None] = {}
        self._links: dict[str, str] = {}

    @property
    def controls(self) -> Mapping[str, bytes]:
        """The contents of those members that say what the archive holds, by name."""
        return self._controls

    def check_new(self, key: str, member: str) -> None:
        """Return if no such control member, config or layer has come yet.

        Raises:
            InvalidArchive: when one has: who reads the archive otherwise would take the other one.
        """
        if key in self._controls or key in self._kept or key in self._links:
            raise InvalidArchive("it stands twice", member)

    def add_control(self, key: str, content: bytes) -> None:
        """Take what a control member says."""
        self._controls[key] = content

    def add(self, name: MemberName, size_bytes: int) -> None:
        """Take note of a blob, a config, or a layer of which is not known yet what it is."""
        if name.role is not MemberRole.BLOB:
            self._kept[name.key] = None
        if name.role is not MemberRole.LAYER and name.digest is not None:
            self.sizes[name.digest] = size_bytes

    def note_kept(self, key: str, digest: Digest, size_bytes: int) -> None:
        """Take note of what a layer is."""
        self._kept[key] = digest
        self.sizes[digest] = size_bytes

    def add_link(self, key: str, target: str) -> None:
        """Take note of a link."""
        self._links[key] = target

    def check_links(self) -> None:
        """Return if no link leads in a circle, or too far.

        Raises:
            InvalidArchive: when one does.
        """
        for key in self._links:
            self._resolved(key)

    def find(self, key: str) -> Digest | None:
        """Return the digest of what lies under a blob's, a config's or a layer's name; None for a layer that does not.

        A blob or config that the archive lacks has the digest that its name says.

        Raises:
            InvalidArchive: for a name of anything else, and for links as :meth:`check_links`.
        """
        name = parse_member_name(self._resolved(parse_member_name(key).key))
        if name.role is MemberRole.LAYER:
            return self._kept.get(name.key)
        if name.digest is None:
            raise InvalidArchive("it is no part of an image", key)
        return name.digest

    def _resolved(self, key: str) -> str:
        found = key
        for _ in range(_MOST_LINKS + 1):
            target = self._links.get(found)
            if target is None:
                return found
            found = target
        raise InvalidArchive(f"it leads over more than {_MOST_LINKS} links", key)
