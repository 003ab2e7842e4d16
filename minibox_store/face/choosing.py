"""Which images of a store a filter means, and taking their names away: what a filter lists is what goes by it."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, decode_labels
from minibox_store.documents import Descriptor, LayoutIndex, Manifest
from minibox_store.errors import BlobNotFound, IncompleteImage
from minibox_store.filters import ImageFilter, check_filter
from minibox_store.graph import read_content
from minibox_store.layout import Layout
from minibox_store.layout.activity import NameTimes
from minibox_store.layout.inventory import map_images
from minibox_store.layout.sweeping import Sweep
from minibox_store.layout_index import name_of, names_of, without_name
from minibox_store.reports.removals import PruneReport, Removal
from minibox_store.selection import Candidate, Weights, choose_images
from minibox_store.values import Value

_ATTEMPTS = 5


@attrs.frozen(repr=False)
class Choice(Value):
    """What a filter chooses, and what that hangs on.

    Attributes:
        index: index.json as it was.
        times: of all names.
        chosen: the images, sorted by name.
    """

    index: LayoutIndex
    times: Mapping[str, NameTimes]
    chosen: tuple[Candidate, ...]

    def without_chosen(self, index: LayoutIndex) -> LayoutIndex:
        """Return an index in which the chosen names are gone; those that have gone already are no error."""
        present = {name for name, _ in names_of(index)}
        for each in self.chosen:
            if each.name in present:
                index = without_name(index, each.name)
        return index

    def holds(self, layout: Layout) -> bool:
        """Whether no name was changed since, and no chosen one written or used. Under the store lock."""
        if layout.read_index() is not self.index:
            return False
        times = layout.activity.times(self.index)
        return all(times[each.name] == self.times[each.name] for each in self.chosen)


def choose(layout: Layout, chosen_by: ImageFilter, check: Callable[[], None] = lambda: None) -> Choice:
    """Return what a filter chooses now.

    ``check`` is called before each image is looked at; it may raise.

    Raises:
        InvalidArgument: for anything but a filter, such as the text of one.
        IncompleteImage, StoreDamaged: when what the filter asks about cannot be read: nobody knows what it means then.
        StoreBusy: when images are removed and collected all the time.
    """
    check_filter(chosen_by)
    for _ in range(_ATTEMPTS):
        index = layout.read_index()
        times = layout.activity.times(index)
        candidates = [
            Candidate(
                name=name,
                descriptor=descriptor,
                written_seconds=times[name].written_seconds,
                used_seconds=times[name].used_seconds,
                read_labels=partial(_read_labels, layout, name, descriptor, check),
            )
            for name, descriptor in names_of(index)
        ]
        read_weights: Callable[[], Weights] = partial(_read_weights, layout, check)
        try:
            chosen = choose_images(chosen_by, candidates, now_seconds=time.time(), read_weights=read_weights)
        except IncompleteImage:
            if layout.read_index() is index:
                raise
            continue  # the name has gone meanwhile, and its blobs with it
        return Choice(index, times, chosen)
    raise layout.busy_index()


def prune_chosen(layout: Layout, chosen_by: ImageFilter, sweep: Sweep) -> PruneReport:
    """Take the names away of exactly the images that a filter chooses, in one step, and collect.

    The choice is made without the store lock, and made again where it holds no more under it. What will be left is
    marked before: where that fails no name has gone.

    Raises:
        IncompleteImage, StoreDamaged: as :func:`choose`, and where what is left cannot be read; nothing has changed.
        StoreBusy: when another collection runs, or others write names all the time; nothing has changed.
    """
    with sweep.holding_locks():
        for _ in range(_ATTEMPTS):
            choice = choose(layout, chosen_by, sweep.watch.check)
            sweep.mark(choice.without_chosen)
            sweep.watch.check()  # from here on names go
            if sweep.dry_run or not choice.chosen or _remove(layout, choice):
                return sweep.collect(_removals(choice.chosen, chosen_by))
    raise layout.busy_index()


def _remove(layout: Layout, choice: Choice) -> bool:
    with layout.store_lock("removing what a filter chose"):
        if not choice.holds(layout):
            return False
        with layout.replacing_index(choice.without_chosen(choice.index)):
            return True


def _removals(chosen: tuple[Candidate, ...], chosen_by: ImageFilter) -> tuple[Removal, ...]:
    now_seconds = time.time()
    return tuple(
        Removal(
            kind="name",
            path=each.name,
            size_bytes=0,
            reason=f"the filter chose it: {chosen_by}",
            age_seconds=max(0.0, now_seconds - each.written_seconds),
        )
        for each in chosen
    )


def _read_labels(layout: Layout, name: str, root: Descriptor, check: Callable[[], None]) -> Mapping[str, str]:
    check()
    if not media_types.is_manifest(root.media_type):
        return {}
    try:
        with layout.naming_damage():
            content = read_content(layout, root, layout.limits)
            manifest = decode_document(content, root.media_type, str(root.digest), limits=layout.limits)
            if not isinstance(manifest, Manifest) or not media_types.is_config(manifest.config.media_type):
                return {}
            config = read_content(layout, manifest.config, layout.limits)
            return decode_labels(config, str(manifest.config.digest), limits=layout.limits)
    except BlobNotFound as error:
        raise IncompleteImage(name, (error.digest,)) from error


def _read_weights(layout: Layout, check: Callable[[], None]) -> Weights:
    inventory, images = map_images(layout, check)
    return Weights(
        [(name_of(root), frozenset(images.reached_from(root))) for root in images.roots], inventory.sizes_bytes
    )
