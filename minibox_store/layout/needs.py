"""What a store needs still, for whoever removes what was derived from its images and knows nothing of layouts."""

from collections.abc import Iterator
from contextlib import contextmanager

from minibox_store import _files, _locks
from minibox_store.collecting import Ledger
from minibox_store.digest import HEX_LENGTHS
from minibox_store.layout.in_use import read_usage
from minibox_store.layout.layout import Layout
from minibox_store.layout.marking import Marking
from minibox_store.layout_index import names_of

_ALGORITHM_OF = {length: algorithm for algorithm, length in HEX_LENGTHS.items()}


class Needs:
    """What one collection has found alive; it is :class:`minibox_store.collecting.Living`.

    Args:
        layout: the store.
        marking: what is alive.
        ledger: what was removed, or would be.
    """

    def __init__(self, layout: Layout, marking: Marking, ledger: Ledger) -> None:
        self._layout = layout
        self._marking = marking
        self._dry_run = ledger.dry_run
        # What a dry run would have removed lies there still.
        self._gone = {removal.path for removal in ledger.removed if removal.kind == "blob"} if ledger.dry_run else set()

    @property
    def root(self) -> str:
        """The store's folder."""
        return self._layout.paths.root

    @property
    def durable(self) -> bool:
        """Whether a loss of power may leave nothing but what was there at some moment."""
        return self._layout.durable

    def has(self, encoded: str) -> bool:
        """Whether an image needs the blob with these digits, or its file stays: a transaction may hold it."""
        if encoded in self._marking.live_names:
            return True
        path = f"blobs/{_ALGORITHM_OF[len(encoded)]}/{encoded}"
        return path not in self._gone and _files.exists(f"{self.root}/{path}")

    def names(self) -> frozenset[str]:
        """Return the names in index.json as it is now."""
        return frozenset(name for name, _ in names_of(self._marking.read_index()))

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Hold the store lock, and mark what has come before it was held."""
        if self._dry_run:
            yield
            return
        with self._layout.store_lock("collecting"):
            self._marking.mark_new_roots()
            yield

    @contextmanager
    def holding_base_layers(self) -> Iterator[None]:
        """Hold the lock of the trees in ``base_layers/``."""
        if self._dry_run:
            yield
            return
        timeout_seconds = self._layout.lock_timeout_seconds
        path = self._layout.paths.base_layers_lock
        with _locks.holding_lock(path, doing="collecting", timeout_seconds=timeout_seconds):
            yield

    def who_opens(self, path: str) -> str | None:
        """Return whether somebody was seen to have something at or below a path open."""
        return read_usage(self.root).who_opens(path)

    def who_may_open(self, path: str) -> str | None:
        """Do as :meth:`who_opens`; whom nobody may look into counts too."""
        return read_usage(self.root).who_uses(path)
