"""The part of the store's face that gives names and takes them away: each change is one step under the store lock."""

from collections.abc import Callable

from minibox_store._file_errors import file_errors
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.layout import Layout, Listing
from minibox_store.layout_index import find_exact_name, find_name, names_for, provenance_of, with_name, without_name
from minibox_store.reference import check_image_name
from minibox_store.reports.images import Image

_Finder = Callable[[LayoutIndex], tuple[str, Descriptor]]


class NamedStore:
    """What a :class:`minibox_store.Store` does with names alone: blobs neither come nor go."""

    _layout: Layout
    _listing: Listing

    def tag(self, name: str, new_name: str) -> Image:
        """Let ``new_name`` stand for the image that ``name`` means, and return it.

        Raises:
            ImageNotFound: when there is no such image.
            InvalidReference: when an image may not have the new name.
        """
        check_image_name(new_name)
        tagged: list[Image] = []

        def change(index: LayoutIndex) -> LayoutIndex:
            _, descriptor = find_name(index, name)
            changed = with_name(index, new_name, descriptor, provenance_of(descriptor))
            # Read before the change: what fails now changes no name.
            tagged[:] = [self._listing.image(*find_name(changed, new_name))]
            return changed

        with file_errors(self._layout.paths.root):
            find_name(self._layout.read_index(), name)
            self._layout.prepare()
            self._layout.change_index(change, "tagging an image", names=[new_name])
        return tagged[0]

    def remove(self, name: str) -> str:
        """Take a name away, and return it as it stood; the blobs stay until a prune.

        Raises:
            ImageNotFound: when no entry means ``name``.

        Guarantees: atomic. Where there is no room for a new index.json, it takes that of ``listing.cache``, or of the
            oldest in ``history/``.
        """
        return self._take_away(lambda index: find_name(index, name), "removing an image")[0]

    def untag(self, name: str) -> tuple[str, ...]:
        """Take exactly this name away, and return the names under which the same image is still there, sorted.

        Where none is left, the next prune takes what no other image needs of it. Unlike :meth:`remove` it takes no
        other spelling of the name for it: who holds a list of names takes away those, and no others.

        Raises:
            ImageNotFound: when no entry has this very name.

        Guarantees: atomic; what is returned is what held when the name went.
        """
        return self._take_away(lambda index: (name, find_exact_name(index, name)), "untagging an image")[1]

    def _take_away(self, find: _Finder, doing: str) -> tuple[str, tuple[str, ...]]:
        """Take away the name that is found; return it, and those that the same image still has."""
        taken: list[tuple[str, tuple[str, ...]]] = []

        def change(index: LayoutIndex) -> LayoutIndex:
            found, descriptor = find(index)
            changed = without_name(index, found)
            taken[:] = [(found, names_for(changed, descriptor.digest))]
            return changed

        with file_errors(self._layout.paths.root):
            find(self._layout.read_index())  # where there is no such image, no store is made
            self._layout.prepare()
            self._layout.change_index(change, doing)
        return taken[0]
