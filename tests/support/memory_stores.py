"""A store whose blobs lie in memory: what loading makes of tens of thousands of archives, in the time that a test has.

All that is replaced is the end that a load writes to, by the one that the contract suites run over beside it.
"""

from pathlib import Path
from typing import cast

from minibox_store import Store
from minibox_store.layout import Layout
from minibox_store.memory import MemoryImages

Loaded = tuple[dict[str, str], dict[str, bytes]]


class MemoryStore(Store):
    """A store that has what was loaded into it since it was last emptied, and can do nothing but load.

    ``folder`` stays as it is; the free room there is what the store believes to have.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, durability="none")
        self._images = _Images(self._layout)
        self._layout = cast("Layout", self._images)

    def take(self) -> Loaded:
        """Return the digest of each name, and each blob by its digest; and have nothing any more."""
        names = {name: str(descriptor.digest) for name, descriptor in self._images.names.items()}
        blobs = {str(digest): content for digest, content in self._images.blobs.items()}
        self._images.names.clear()
        self._images.blobs.clear()
        return names, blobs


class _Images(MemoryImages):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.paths, self.limits = layout.paths, layout.limits
