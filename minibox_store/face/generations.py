"""The part of the store's face that goes back to what index.json said earlier: undo, find again, tell what changed."""

from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.kinds import check_kind
from minibox_store.layout import Layout, Listing
from minibox_store.reports.images import Image

if TYPE_CHECKING:
    from minibox_store.reports.store import LostName
    from minibox_store.reports.store_changes import StoreChanges, StoreState


class Generations:
    """What a :class:`minibox_store.Store` does with the last ten contents of its index.json, kept in ``history/``."""

    _layout: Layout
    _listing: Listing

    def undo(self) -> tuple[Image, ...]:
        """Give back the names that the last change took away or gave to other images; return what they stand for.

        That change may have been another tool's. Names that it added stay, and so does what they stand for. An undo is
        a change like any other: one that replaced something can be undone.

        Raises:
            NothingToDo: when the last change took nothing away and replaced nothing.
            IncompleteImage: when a blob that such an image needs is gone; nothing has changed then.

        Guarantees: atomic; every image that is given back is whole, and stays so while it is given back.
        """
        from minibox_store.layout.undoing import undo_last_change

        with file_errors(self._layout.paths.root):
            return undo_last_change(self._layout, self._listing.image)

    def state(self) -> "StoreState":
        """Return what the names stand for now, to be told later by :meth:`changes` what has become of them.

        Raises:
            StoreDamaged: when index.json cannot be read.
        """
        from minibox_store.layout.changes import read_state

        with file_errors(self._layout.paths.root):
            return read_state(self._layout)

    def find_state(self, position: str) -> "StoreState | None":
        """Return the state that has this position, which somebody may have noted: the present one, or an earlier one.

        The last ten contents of index.json are kept; None where it is none of them.

        Raises:
            StoreDamaged: when index.json cannot be read.
        """
        check_kind("position", position, str)
        from minibox_store.layout.changes import find_state

        with file_errors(self._layout.paths.root):
            return find_state(self._layout, position)

    def changes(self, since: "StoreState") -> "StoreChanges":
        """Return what happened to the names since then, by any process or tool, and the state from which to go on.

        Nothing is waited for: ask as often as you want to know. It takes a read of index.json where nothing happened.

            state = store.state()
            while True:
                time.sleep(0.5)
                changes = store.changes(state)
                for change in changes.names:
                    print(change.action, change.name)
                state = changes.state

        Each step in between is told where the contents of index.json are among the last ten, and this library wrote
        them, also where a name stands for what it stood for again; what another tool wrote and overwrote may not be.

        Args:
            since: a state of this store.

        Raises:
            StoreDamaged: when index.json cannot be read.
        """
        from minibox_store.layout.changes import read_changes
        from minibox_store.reports.store_changes import StoreState

        check_kind("since", since, StoreState, ": state returns one")

        with file_errors(self._layout.paths.root):
            return read_changes(self._layout, since)

    def lost_names(self) -> "tuple[LostName, ...]":
        """Return the names that the store had, has no more, and whose whole images are there; sorted by name.

        Such is what another tool dropped when it wrote index.json from what it had read before, and what was removed.
        """
        from minibox_store.layout.mending import find_lost_names

        with file_errors(self._layout.paths.root):
            return find_lost_names(self._layout)
