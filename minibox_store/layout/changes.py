"""What happened to the names of a store, seen from index.json and the contents that it had before, whoever wrote them.

The generations are listed before index.json is read: so what is read last is the newest, and none of them comes after.
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

_POSITION_LENGTH = 32
_NOTHING = "empty"


@attrs.frozen(repr=False)
class _Content(Value):
    """One content of index.json."""

    position: str
    index: LayoutIndex
    time: float


def read_state(layout: Layout) -> StoreState:
    """Return what the names stand for now.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    content, index = layout.read_content()
    return StoreState(position=_position(content), names=dict(names_of(index)), pruned_at=_pruned_at(layout, None))


def find_state(layout: Layout, position: str) -> StoreState | None:
    """Return what the names stood for at a position; None where nobody knows any more.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    generations = layout.history.generations()
    present = read_state(layout)
    if present.position == position:
        return present
    for generation in generations:
        found = _read(layout, generation)
        if found is not None and found.position == position:
            return StoreState(position=position, names=dict(names_of(found.index)), pruned_at=present.pruned_at)
    return None


def read_changes(layout: Layout, since: StoreState) -> StoreChanges:
    """Return what happened since a state of the same store.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    generations = layout.history.generations()
    content, index = layout.read_content()
    position, pruned_at = _position(content), _pruned_at(layout, since.pruned_at)
    if position == since.position:
        state = since if pruned_at == since.pruned_at else attrs.evolve(since, pruned_at=pruned_at)
        return StoreChanges(state=state)
    present = _Content(position, index, _written_at(layout.paths.index))
    between, is_complete = _between(layout, generations, since.position, present)
    changes: list[NameChange] = []
    names = since.names
    for each in between:
        later = dict(names_of(each.index))
        changes += compare_names(names, later, time=each.time, position=each.position)
        names = later
    state = StoreState(position=position, names=names, pruned_at=pruned_at)
    return StoreChanges(state=state, names=tuple(changes), is_complete=is_complete)


def _between(
    layout: Layout, generations: tuple[Generation, ...], since: str, present: _Content
) -> tuple[list[_Content], bool]:
    """Return what index.json has said after ``since``, the oldest first, and whether that is all."""
    later = [present]
    for generation in generations:
        found = _read(layout, generation)
        if found is None:
            break
        if found.position == since:
            return later[::-1], True
        if found.position == later[-1].position:
            later[-1] = found  # the generation's own time: index.json may have been touched
        else:
            later.append(found)
    return [present], False


def _read(layout: Layout, generation: Generation) -> _Content | None:
    content = layout.history.content(generation)
    index = None if content is None else layout.history.index(generation)
    return None if index is None else _Content(_position(content), index, _written_at(generation.path))


def _position(content: bytes | None) -> str:
    return _NOTHING if content is None else hashlib.sha256(content).hexdigest()[:_POSITION_LENGTH]


def _written_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:  # it is gone already, and was there a moment ago
        return time.time()


def _pruned_at(layout: Layout, known: float | None) -> float | None:
    """Return when the last collection that has ended had begun; what is known where one is under way."""
    return _locks.last_held(layout.paths.prune_lock, known)
