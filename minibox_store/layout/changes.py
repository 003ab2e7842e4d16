"""What happened to the names of a store, seen from index.json and the contents that it had before, whoever wrote them.

A position is a content of index.json and the number of the generation that it is, or that it becomes once it is
recorded: so what is set back to what it was is told, though the content is the same again. Only contents that another
tool wrote, and overwrote before they were recorded or seen, are told by nobody.
"""

import hashlib
import os
import time

import attrs

from minibox_store import _locks
from minibox_store.documents import LayoutIndex
from minibox_store.layout.history import Generation
from minibox_store.layout.layout import Layout
from minibox_store.layout_index import names_of
from minibox_store.reports.store_changes import NameChange, StoreChanges, StoreState, compare_names
from minibox_store.values import Value

_DIGITS = 32
_NOTHING = "empty"


@attrs.frozen(repr=False)
class _Content(Value):
    """One content of index.json, and the number of the generation that it is, or will be."""

    number: int
    mark: str
    index: LayoutIndex
    time: float

    @property
    def position(self) -> str:
        return _position(self.mark, self.number)


def read_state(layout: Layout) -> StoreState:
    """Return what the names stand for now.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    newest = _newest(layout.history.generations())
    content, index = layout.read_content()
    present, _ = _place(layout, newest, "", content, index)
    return StoreState(position=present.position, names=dict(names_of(index)), pruned_at=_pruned_at(layout, None))


def find_state(layout: Layout, position: str) -> StoreState | None:
    """Return what the names stood for at a position; None where nobody knows any more.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    present = read_state(layout)
    if present.position == position:
        return present
    # Listed after the present was read, which may have become a generation meanwhile.
    for generation in layout.history.generations():
        found = _read(layout, generation)
        if found is not None and found.position == position:
            return StoreState(position=position, names=dict(names_of(found.index)), pruned_at=present.pruned_at)
    return None


def read_changes(layout: Layout, since: StoreState) -> StoreChanges:
    """Return what happened since a state of the same store.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    newest = _newest(layout.history.generations())
    content, index = layout.read_content()
    mark, pruned_at = _mark(content), _pruned_at(layout, since.pruned_at)
    if since.position in (_position(mark, newest), _position(mark, newest + 1)):
        state = since if pruned_at == since.pruned_at else attrs.evolve(since, pruned_at=pruned_at)
        return StoreChanges(state=state)
    present, earlier = _place(layout, newest, since.position, content, index)
    between, is_complete = _between(layout, earlier, since.position, present)
    changes: list[NameChange] = []
    names = since.names
    for each in between:
        later = dict(names_of(each.index))
        changes += compare_names(names, later, time=each.time, position=each.position)
        names = later
    state = StoreState(position=present.position, names=names, pruned_at=pruned_at)
    return StoreChanges(state=state, names=tuple(changes), is_complete=is_complete)


def _place(
    layout: Layout, newest: int, since: str, content: bytes | None, index: LayoutIndex
) -> tuple[_Content, tuple[Generation, ...]]:
    """Return a content of index.json with its number, and the generations that came before it, the newest first.

    It is no generation that is older than the one at ``since``, which was seen before, nor than ``newest``, the number
    of the newest one just before index.json was read. Where it is none yet, it will be the next one: who changes
    index.json records what it finds there first.
    """
    generations = layout.history.generations()
    for place, generation in enumerate(generations):
        said = layout.history.content(generation)
        if said == content:
            # The generation's own time: index.json may have been touched.
            return _content(generation.number, content, index, generation.path), generations[place + 1 :]
        if generation.number <= newest or _position(_mark(said), generation.number) == since:
            break
    return _content(_newest(generations) + 1, content, index, layout.paths.index), generations


def _between(
    layout: Layout, earlier: tuple[Generation, ...], since: str, present: _Content
) -> tuple[list[_Content], bool]:
    """Return what index.json has said after ``since``, the oldest first, and whether that is all."""
    later = [present]
    for generation in earlier:
        found = _read(layout, generation)
        if found is None or found.number + 1 != later[-1].number:
            return [present], False
        if found.position == since:
            return later[::-1], True
        later.append(found)
    # Where there was no index.json, no generation says so.
    is_first = since == _position(_NOTHING, later[-1].number)
    return (later[::-1], True) if is_first else ([present], False)


def _read(layout: Layout, generation: Generation) -> _Content | None:
    content = layout.history.content(generation)
    index = None if content is None else layout.history.index(generation)
    return None if index is None else _content(generation.number, content, index, generation.path)


def _content(number: int, content: bytes | None, index: LayoutIndex, path: str) -> _Content:
    return _Content(number, _mark(content), index, _written_at(path))


def _newest(generations: tuple[Generation, ...]) -> int:
    return generations[0].number if generations else 0


def _mark(content: bytes | None) -> str:
    return _NOTHING if content is None else hashlib.sha256(content).hexdigest()[:_DIGITS]


def _position(mark: str, number: int) -> str:
    return f"{mark}-{number}"


def _written_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:  # it is gone already, and was there a moment ago
        return time.time()


def _pruned_at(layout: Layout, known: float | None) -> float | None:
    """Return when the last collection that has ended had begun; what is known where one is under way."""
    return _locks.last_held(layout.paths.prune_lock, known)
