"""What comes in, before it comes: which part of an image."""

from minibox_store import media_types
from minibox_store.copying import EventListener
from minibox_store.documents import Descriptor
from minibox_store.events import ChoosingPlatform, IndexMade, ManifestChosen
from minibox_store.graph import RememberingSource
from minibox_store.limits import Limits
from minibox_store.platforms import Platform, WantedPlatforms
from minibox_store.selecting import ChosenImage, select_image


def choose_incoming(
    source: RememberingSource,
    root: Descriptor,
    *,
    name: str,
    wanted: WantedPlatforms,
    limits: Limits,
    on_event: EventListener,
) -> ChosenImage:
    """Return what of an image will come in, and tell how it was chosen; raises as :func:`select_image`."""
    if media_types.is_index(root.media_type):
        for platform in _named(wanted):
            on_event(ChoosingPlatform(name=name, platform=platform))
    chosen = select_image(source, root, wanted, name, limits)
    if chosen.made_from is not None:
        platforms = tuple(each.descriptor.platform for each in chosen.manifests if each.descriptor.platform is not None)
        on_event(IndexMade(original=chosen.made_from, descriptor=chosen.root, platforms=platforms))
    on_event(ManifestChosen(descriptor=chosen.root))
    return chosen


def _named(wanted: WantedPlatforms) -> tuple[Platform, ...]:
    if wanted is None or wanted == "all":
        return ()
    return (wanted,) if isinstance(wanted, Platform) else wanted
