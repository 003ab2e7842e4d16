"""What is alive in a store: found once, and again for every root that has come since, before anything is removed."""

from collections.abc import Callable, Container

from minibox_store import _files
from minibox_store.collecting import NOBODY, Marks, Watch, mark_index
from minibox_store.documents import LayoutIndex, Referrer
from minibox_store.errors import BlobNotFound, IncompleteImage
from minibox_store.layout.layout import Layout
from minibox_store.layout.pins import live_pins
from minibox_store.layout_index import name_of

_ATTEMPTS = 5

IndexView = Callable[[LayoutIndex], LayoutIndex]


def plainly(index: LayoutIndex) -> LayoutIndex:
    """View an index as it is."""
    return index


class Marking:
    """The marks of one collection of one store.

    Args:
        layout: the store.
        watch: who watches.

    Attributes:
        live_names: what the files of the blobs that are alive are called.
        marked: the index.json that was marked last.
        dead_referrers: the entries of it that are kept for what they refer to alone, which is not alive.
    """

    def __init__(self, layout: Layout, watch: Watch = NOBODY) -> None:
        self.live_names: set[str] = set()
        self.marked: LayoutIndex | None = None
        self.dead_referrers: tuple[Referrer, ...] = ()
        self._layout = layout
        self._watch = watch
        self._view: IndexView = plainly
        self._marks = Marks(limits=layout.limits)

    @property
    def marks(self) -> Marks:
        """All that was found."""
        return self._marks

    def begin(self, view: IndexView) -> None:
        """Mark anew, by what ``view`` makes of index.json; raises as :meth:`mark_new_roots`.

        Who watches is told how far that is, and so the store lock may not be held.
        """
        self._view = view
        self._forget()
        self._mark_new_roots(self._watch.marking)

    def view_plainly(self) -> None:
        """Let index.json say what it says, from here on.

        What was marked of it was another view: it counts no more, for index.json may come to say the very same again,
        names and all that the view had left out.
        """
        if self._view is not plainly:
            self._view, self.marked = plainly, None

    def read_index(self) -> LayoutIndex:
        """Return index.json as it is now, as it is viewed."""
        return self._view(self._layout.read_index())

    def mark_new_roots(self) -> None:
        """Mark from what index.json says now; it costs nothing where that was marked before.

        What refers to a blob that a live transaction holds is alive too: the transaction is about to name that.

        Raises:
            IncompleteImage, StoreDamaged: when a root or a document cannot be read.
            StoreBusy: when index.json is changed all the time.
        """
        self._mark_new_roots(lambda *_: self._watch.check())

    def _mark_new_roots(self, on_root: Callable[[int, int], None]) -> None:
        for _ in range(_ATTEMPTS):
            index = self._layout.read_index()
            absent = self._marks.absent
            come = [each for each in absent.values() if _files.exists(self._layout.paths.blob(each.digest))]
            if index is self.marked and not come and not self._are_dead_held():
                return
            try:
                with self._layout.naming_damage():
                    self._marks.forget(come)
                    for descriptor in come:
                        self._marks.add_root(self._layout, descriptor)
                    dead = mark_index(self._marks, self._layout, self._view(index), self._read_held, on_root)
            except BaseException as error:
                # A walk that stopped half-way has marked half of a graph: such marks are worth nothing, neither now nor
                # when somebody asks again.
                self._forget()
                if not isinstance(error, BlobNotFound):
                    raise
                if self._layout.read_index() != index:
                    continue  # the name has gone meanwhile, and its blobs with it
                raise IncompleteImage(_name_of_missing(index, error.digest), (error.digest,)) from error
            self.marked, self.dead_referrers = index, dead
            self.live_names = self._marks.live_names()
            return
        raise self._layout.busy_index()

    def _read_held(self) -> Container[str]:
        return live_pins(self._layout)

    def _are_dead_held(self) -> bool:
        """Whether a transaction has come to hold what a referrer without a subject refers to."""
        if not self.dead_referrers:
            return False
        held = self._read_held()
        return any(each.subject.hex in held for each in self.dead_referrers)

    def spare_dead_referrers(self) -> None:
        """Let those be alive all the same, until the next collection."""
        with self._layout.naming_damage():
            for referrer in self.dead_referrers:
                self._marks.add_root(self._layout, referrer.descriptor)
        self.live_names = self._marks.live_names()
        self.dead_referrers = ()

    def _forget(self) -> None:
        self._marks, self.marked = Marks(limits=self._layout.limits), None


def _name_of_missing(index: LayoutIndex, digest: str) -> str:
    for entry in index.entries:
        if str(entry.descriptor.digest) == digest:
            return name_of(entry.descriptor) or digest
    return digest
