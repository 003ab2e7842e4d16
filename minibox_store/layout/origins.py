"""Where the blobs of a store came from, so that one that has rotted can be fetched again.

For each blob of an image that was pulled, the repository that has it: no credentials, no URL, no more than the name
that a reference begins with. A blob that came out of an archive alone has no origin.
"""

from collections.abc import Container, Iterable

import attrs

from minibox_store.digest import Digest
from minibox_store.layout.journal import Journal
from minibox_store.limits import MEBIBYTE
from minibox_store.values import Value

_LINE_BYTES = 100
_ROOM_BYTES = MEBIBYTE


@attrs.frozen(repr=False)
class Origins(Value):
    """The origins of one store."""

    journal: Journal

    def note(self, digests: Iterable[Digest], origin: str) -> None:
        """Remember where blobs came from. Under the store lock."""
        self.journal.make_way()
        self.journal.append((str(digest), origin) for digest in digests)

    def unknown(self, digests: Iterable[Digest], origin: str) -> set[Digest]:
        """Return the blobs of which it is not known that they are to be had there."""
        known = self.read()
        return {digest for digest in digests if origin not in known.get(str(digest), ())}

    def read(self) -> dict[str, tuple[str, ...]]:
        """Return for each blob its origins, the latest first."""
        found: dict[str, tuple[str, ...]] = {}
        for fields in self.journal.lines():
            if len(fields) == 2:
                digest, origin = fields
                found[digest] = (origin, *(each for each in found.get(digest, ()) if each != origin))
        return found

    def is_untidy(self, live_count: int) -> bool:
        """Whether so much is remembered, for so many blobs, that it is worth while to forget some."""
        return self.journal.size_bytes() > _ROOM_BYTES + 2 * _LINE_BYTES * live_count

    def tidy(self, live_names: Container[str]) -> None:
        """Forget all but the blobs whose digests have these hexadecimal parts. Under the store lock."""
        found = self.read()
        self.journal.make_way()
        self.journal.rewrite(
            (digest, origin)
            for digest, origins in found.items()
            if digest.partition(":")[2] in live_names
            for origin in reversed(origins)
        )
