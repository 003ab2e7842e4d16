"""The part of the store's face that goes back to what index.json said earlier: undo, find again, mend."""

from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.images import Image
from minibox_store.layout import Layout, Listing

if TYPE_CHECKING:
    from minibox_store.reports import LostName


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

    def lost_names(self) -> "tuple[LostName, ...]":
        """Return the names that the store had, has no more, and whose whole images are there; sorted by name.

        Such is what another tool dropped when it wrote index.json from what it had read before, and what was removed.
        """
        from minibox_store.layout.mending import find_lost_names

        with file_errors(self._layout.paths.root):
            return find_lost_names(self._layout)
