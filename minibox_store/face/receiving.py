"""The part of the store's face that shows it as the repositories of a registry, which things are pushed to."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from minibox_store._file_errors import file_errors
from minibox_store.documents import LayoutIndex
from minibox_store.layout import Layout

if TYPE_CHECKING:
    from minibox_store.face.local_repository import LocalRepository
    from minibox_store.layout.pushed import PushedBlobs
    from minibox_store.layout.reaching import Reaches
    from minibox_store.layout.uploads import Uploads
    from minibox_store.repositories import RepositoryEntries

_MOST_REPOSITORIES = 256


class Receiving:
    """How a :class:`minibox_store.Store` is a registry."""

    _layout: Layout

    def repository(self, name: str) -> "LocalRepository":
        """Return the repository of this name, whether there is anything in it or not.

        Args:
            name: as the distribution specification has it, without a registry; not trusted.

        Raises:
            InvalidReference: when no repository may have it.
        """
        from minibox_store.face.local_repository import LocalRepository
        from minibox_store.repositories import check_repository_name

        uploads, pushed, reaches = self._receiving_parts
        return LocalRepository(
            check_repository_name(name),
            self._layout,
            uploads=uploads,
            pushed=pushed,
            reaches=reaches,
            find=self._known_entries.find,
        )

    def repositories(self) -> tuple[str, ...]:
        """Return the names of all repositories that an entry of the index belongs to, sorted."""
        with file_errors(self._layout.paths.root):
            return self._known_entries.names(self._layout.read_index())

    @cached_property
    def _receiving_parts(self) -> "tuple[Uploads, PushedBlobs, Reaches]":
        from minibox_store.layout.pushed import PushedBlobs
        from minibox_store.layout.reaching import Reaches
        from minibox_store.layout.uploads import Uploads

        return Uploads(self._layout), PushedBlobs(self._layout), Reaches(self._layout)

    @cached_property
    def _known_entries(self) -> "_KnownEntries":
        return _KnownEntries()


class _KnownEntries:
    """What the last index.json has of repositories, which is looked for again only where that has changed."""

    def __init__(self) -> None:
        self._known: tuple[LayoutIndex, Mapping[str, RepositoryEntries]] | None = None
        self._names: tuple[LayoutIndex, tuple[str, ...]] | None = None

    def find(self, index: LayoutIndex, name: str) -> "RepositoryEntries":
        from minibox_store.repositories import find_repository

        last = self._known
        known = last[1] if last is not None and last[0] is index and len(last[1]) < _MOST_REPOSITORIES else {}
        found = known.get(name)
        if found is None:
            found = find_repository(index, name)
            self._known = (index, {**known, name: found})
        return found

    def names(self, index: LayoutIndex) -> tuple[str, ...]:
        from minibox_store.repositories import repository_names

        last = self._names
        if last is None or last[0] is not index:
            self._names = last = (index, repository_names(index))
        return last[1]
