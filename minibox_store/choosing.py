"""Which images of a store a filter means, and taking their names away: what a filter lists is what goes by it."""

import time
from collections.abc import Callable, Mapping

from minibox_store import media_types
from minibox_store.codec import decode_config
from minibox_store.documents import Descriptor, LayoutIndex, Manifest
from minibox_store.errors import StoreBusy
from minibox_store.filters import ImageFilter
from minibox_store.graph import read_content, walk
from minibox_store.layout import Layout
from minibox_store.layout.inventory import map_images
from minibox_store.layout_index import name_of, names_of, without_name
from minibox_store.reports import Removal
from minibox_store.selection import Candidate, Weights, choose_images

_ATTEMPTS = 5


def choose(layout: Layout, chosen_by: ImageFilter) -> tuple[Candidate, ...]:
    """Return the images that a filter chooses now, sorted by name.

    Raises:
        IncompleteImage, StoreDamaged: when what the filter asks about cannot be read: nobody knows what it means then.
    """
    return _choose_from(layout, layout.read_index(), chosen_by)


def remove_chosen(layout: Layout, chosen_by: ImageFilter) -> tuple[Removal, ...]:
    """Take the names away of exactly the images that a filter chooses, in one step; return what went.

    The choice is made without a lock, and made again where a name of it was written meanwhile.

    Raises:
        IncompleteImage, StoreDamaged: as :func:`choose`; nothing has changed then.
        StoreBusy: when others write names all the time.
    """
    for _ in range(_ATTEMPTS):
        index = layout.read_index()
        chosen = _choose_from(layout, index, chosen_by)
        if not chosen:
            return ()
        layout.prepare()
        with layout.store_lock("removing what a filter chose"):
            if layout.read_index() is not index or _were_written_since(layout, index, chosen):
                continue
            with layout.replacing_index(without_chosen(index, chosen)):
                pass
        return removals(chosen, chosen_by)
    raise StoreBusy(layout.paths.index, None, None, "changing index.json all the time")


def removals(chosen: tuple[Candidate, ...], chosen_by: ImageFilter) -> tuple[Removal, ...]:
    """Return the removal of each name that a filter chose."""
    now_seconds = time.time()
    return tuple(
        Removal(
            kind="name",
            path=each.name,
            size_bytes=0,
            reason=f"the filter chose it: {chosen_by}",
            age_seconds=now_seconds - each.written_seconds,
        )
        for each in chosen
    )


def without_chosen(index: LayoutIndex, chosen: tuple[Candidate, ...]) -> LayoutIndex:
    """Return the index in which the names of these are gone."""
    for each in chosen:
        index = without_name(index, each.name)
    return index


def _choose_from(layout: Layout, index: LayoutIndex, chosen_by: ImageFilter) -> tuple[Candidate, ...]:
    named = dict(names_of(index))
    times = layout.activity.times(index)
    candidates = [
        Candidate(
            name=name,
            descriptor=descriptor,
            written_seconds=times[name].written_seconds,
            used_seconds=times[name].used_seconds,
            read_labels=_reading_labels(layout, descriptor),
        )
        for name, descriptor in named.items()
    ]
    return choose_images(chosen_by, candidates, now_seconds=time.time(), read_weights=lambda: _read_weights(layout))


def _were_written_since(layout: Layout, index: LayoutIndex, chosen: tuple[Candidate, ...]) -> bool:
    times = layout.activity.times(index)
    return any(times[each.name].written_seconds != each.written_seconds for each in chosen)


def _reading_labels(layout: Layout, root: Descriptor) -> Callable[[], Mapping[str, str]]:
    def read_labels() -> Mapping[str, str]:
        with layout.naming_damage():
            for node in walk(layout, root, limits=layout.limits):
                manifest = node.document
                if node.descriptor != root or not isinstance(manifest, Manifest):
                    continue
                if media_types.is_config(manifest.config.media_type):
                    digest = manifest.config.digest
                    return decode_config(read_content(layout, manifest.config, layout.limits), str(digest)).labels
        return {}

    return read_labels


def _read_weights(layout: Layout) -> Weights:
    inventory, images = map_images(layout)
    return Weights(
        [(name_of(root), frozenset(images.reached_from(root))) for root in images.roots], inventory.sizes_bytes
    )
