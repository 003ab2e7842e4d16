"""Undoing the last change of the names: an ordinary commit, which gives back what that change took away.

A change may also be another tool's: what index.json says, and the newest generation does not, is the last one.
"""

from collections.abc import Callable
from functools import partial

from minibox_store import media_types
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import BlobNotFound, IncompleteImage, NothingToDo, StoreDamaged
from minibox_store.graph import walk
from minibox_store.layout.layout import Layout
from minibox_store.layout.transaction import Transaction
from minibox_store.layout_index import lost_entries, name_of, names_of, with_entry
from minibox_store.protocols import BlobSource
from minibox_store.reports.images import Image

_ATTEMPTS = 5


class _IndexChanged(Exception):
    """Another process has changed index.json since the undoing was planned."""


def undo_last_change(layout: Layout, describe: Callable[[str, Descriptor, BlobSource], Image]) -> tuple[Image, ...]:
    """Give back the entries that the last change removed or replaced; return those that have names.

    Each is what ``describe`` says of it before it is given back.

    Raises:
        NothingToDo: when it did neither.
        IncompleteImage: when a blob of one of them is gone; nothing has changed then.
        StoreDamaged: when what was there before cannot be read.
        StoreBusy: when others change index.json all the time.
    """
    if not layout.is_there():
        raise NothingToDo(layout.paths.root, "there is no store, and so no change to undo")
    layout.prepare()
    for _ in range(_ATTEMPTS):
        with layout.store_lock("looking for the last change"):
            index, lost = _plan(layout)
        try:
            with layout.open_writer() as writer:
                for entry in lost:
                    _hold(layout, writer, entry)
                given_back = tuple(describe(*named, writer) for named in names_of(LayoutIndex(entries=lost)))
                writer.write_change(
                    partial(_give_back, planned=index, lost=lost),
                    [name for name, _ in names_of(LayoutIndex(entries=lost))],
                )
        except _IndexChanged:
            continue
        return given_back
    raise layout.busy_index()


def _plan(layout: Layout) -> tuple[LayoutIndex, tuple[LayoutEntry, ...]]:
    """Return index.json, and what of the content before it is to be given back. Under the store lock."""
    present, index = layout.read_content()
    known = layout.history.generations()
    # Two that say the same stand there when the newer one's change failed in the end.
    while known and layout.history.content(known[0]) == present:
        known = known[1:]
    lost: tuple[LayoutEntry, ...] = ()
    if known:
        before = layout.history.index(known[0])
        if before is None:
            raise StoreDamaged(known[0].path, "it cannot be read as an index")
        lost = lost_entries(before, index)
    if not lost:
        raise NothingToDo(layout.paths.root, "the last change removed no name and replaced none")
    return index, lost


def _hold(layout: Layout, writer: Transaction, entry: LayoutEntry) -> None:
    """Pin the whole graph of an entry."""
    missing: list[str] = []
    try:
        with layout.naming_damage():
            nodes = walk(layout, entry.descriptor, limits=layout.limits, allow_absent_manifests=True)
            for node in nodes:
                is_absent = node.document is None and media_types.is_document(node.descriptor.media_type)
                if not is_absent and not writer.has_blob(node.descriptor):
                    missing.append(str(node.descriptor.digest))
    except BlobNotFound as error:
        missing.append(error.digest)
    if missing:
        raise IncompleteImage(name_of(entry.descriptor) or str(entry.descriptor.digest), tuple(missing))


def _give_back(index: LayoutIndex, *, planned: LayoutIndex, lost: tuple[LayoutEntry, ...]) -> LayoutIndex:
    if index != planned:
        raise _IndexChanged
    for entry in lost:
        index = with_entry(index, entry)
    return index
