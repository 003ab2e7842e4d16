"""What can be found again of a store: names that were lost, an index that was damaged, images that nothing names."""

import errno
import os
from contextlib import suppress

import attrs

from minibox_store import _files, media_types
from minibox_store.codec import describe_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex
from minibox_store.errors import BlobNotFound, NothingToDo, StoreDamaged, StoreError
from minibox_store.graph import read_content, walk
from minibox_store.layout.history import Generation
from minibox_store.layout.inventory import map_images
from minibox_store.layout.layout import Layout
from minibox_store.layout.setting_aside import keep_aside
from minibox_store.layout_index import name_of, names_of
from minibox_store.reports.store import IndexRepair, LostName

_UNREADABLE = (StoreError, OSError)


def find_lost_names(layout: Layout) -> tuple[LostName, ...]:
    """Return each name that generations have and index.json has not: the newest whole image it stood for.

    Sorted by name. Whatever took the name away is found, a rewrite by another tool as a removal.

    Raises:
        StoreDamaged: when index.json cannot be read.
    """
    present = dict(names_of(layout.read_index()))
    found: dict[str, LostName] = {}
    whole: dict[Digest, bool] = {}
    for generation in layout.history.generations():
        index = layout.history.index(generation)
        for name, descriptor in () if index is None else names_of(index):
            if name in present or name in found:
                continue
            if descriptor.digest not in whole:
                whole[descriptor.digest] = _whole_graph(layout, descriptor) is not None
            if whole[descriptor.digest]:
                found[name] = LostName(name=name, descriptor=descriptor, generation=generation.number)
    return tuple(found[name] for name in sorted(found))


def find_nameless(layout: Layout) -> tuple[Descriptor, ...]:
    """Return each manifest or index that nothing reaches, and below which everything is there; sorted by digest.

    What another one of these reaches is not told beside it.

    Raises:
        IncompleteImage, StoreDamaged: when a root or a document cannot be read: nobody knows what is reached then.
    """
    inventory, images = map_images(layout)
    found: dict[Digest, Descriptor] = {}
    below: set[Digest] = set()
    for digest, size_bytes in inventory.unneeded(images).items():
        root = _document(layout, digest, size_bytes)
        reached = None if root is None else _whole_graph(layout, root)
        if root is not None and reached is not None:
            found[digest] = root
            below |= reached - {digest}
    return tuple(found[digest] for digest in sorted(found) if digest not in below)


def _document(layout: Layout, digest: Digest, size_bytes: int) -> Descriptor | None:
    """Return the descriptor of a blob that is a manifest or index, None where it is something else."""
    if size_bytes > layout.limits.document_bytes:
        return None
    wanted = Descriptor(media_type="", digest=digest, size_bytes=size_bytes)
    try:
        described = describe_document(read_content(layout, wanted, layout.limits), str(digest), limits=layout.limits)
    except _UNREADABLE as error:
        _check_of_blob(error)
        return None
    return attrs.evolve(described, digest=digest)


def _whole_graph(layout: Layout, root: Descriptor) -> set[Digest] | None:
    """Return the blobs of a graph if each is there in its full size, and every document is what it should be."""
    reached = set()
    try:
        for node in walk(layout, root, limits=layout.limits):
            reached.add(node.descriptor.digest)
            if node.content is None:
                os.close(layout.open_file(node.descriptor))
    except _UNREADABLE as error:
        _check_of_blob(error)
        return None
    return reached


def mend_index(layout: Layout) -> IndexRepair:
    """Write an index.json that cannot be read anew, from the newest generation that can; under the store lock.

    What is found in its place is kept in ``quarantine/``. An entry of which a blob is gone is left out, and told.

    Raises:
        NothingToDo: when it can be read; nothing has changed then.
        StoreDamaged: when no generation can be read either; nothing has changed then.
    """
    _refuse_readable(layout)
    layout.prepare_folders()
    layout.has_hard_links()  # tried by a transaction's lock, for which nobody asks who holds the store lock
    with layout.store_lock("mending index.json"):
        _refuse_readable(layout)
        generation, before = _newest_readable(layout)
        kept: list[LayoutEntry] = []
        left_out: list[LayoutEntry] = []
        for entry in before.entries:
            (left_out if _lacks_blobs(layout, entry.descriptor) else kept).append(entry)
        index = attrs.evolve(before, entries=tuple(kept))
        with layout.writing_index(index, None):
            aside = keep_aside(layout, layout.paths.index, "index.json")
    return IndexRepair(
        generation=generation.number,
        kept_aside=aside,
        names=tuple(name for name, _ in names_of(index)),
        left_out=tuple(name_of(entry.descriptor) or str(entry.descriptor.digest) for entry in left_out),
    )


def _refuse_readable(layout: Layout) -> None:
    with suppress(StoreDamaged):
        layout.read_index()
        raise NothingToDo(layout.paths.index, "it can be read")


def _newest_readable(layout: Layout) -> tuple[Generation, LayoutIndex]:
    for generation in layout.history.generations():
        index = layout.history.index(generation)
        if index is not None:
            return generation, index
    raise StoreDamaged(layout.paths.index, "it cannot be read, and no generation of it in history/ can")


def _lacks_blobs(layout: Layout, root: Descriptor) -> bool:
    """Whether a blob of a graph is gone; one that is there and wrong is for a check to find, and not forgotten here."""
    try:
        for node in walk(layout, root, limits=layout.limits, allow_absent_manifests=True):
            is_document = media_types.is_document(node.descriptor.media_type)
            if not is_document and not _files.exists(layout.paths.blob(node.descriptor.digest)):
                return True
    except BlobNotFound:
        return True
    except _UNREADABLE as error:
        _check_of_blob(error)
        return False
    return False


def _check_of_blob(error: StoreError | OSError) -> None:
    """Raise what says nothing of the blob it was met at."""
    if isinstance(error, OSError) and error.errno not in (*_files.DAMAGE, errno.EACCES):
        raise error
