"""One manifest of a stored image with all its blobs open: to be unpacked, or looked into where it lies."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from minibox_store._file_errors import file_errors
from minibox_store.documents import Descriptor
from minibox_store.graph import RememberingSource
from minibox_store.kinds import check_kind
from minibox_store.layout import Layout, opening_image
from minibox_store.limits import UnpackLimits
from minibox_store.manifest_choice import choose_manifest
from minibox_store.platforms import Platform, checked_platform
from minibox_store.rootfs.files import ImageFiles
from minibox_store.rootfs.layers import LayerPlan, LayerSource, read_layers
from minibox_store.rootfs.sidecar import Sidecars


@contextmanager
def opening_layers(
    layout: Layout, name: str, platform: Platform | None, limits: UnpackLimits
) -> Iterator[tuple[str, LayerPlan, tuple[LayerSource, ...]]]:
    """Open every blob of one manifest; yield the image's name, what is to be unpacked, and where it is.

    ``limits`` are those of who unpacks it; like the platform they are looked at before anything is opened.
    """
    check_kind("limits", limits, UnpackLimits)
    checked_platform(platform)
    bounds = layout.limits

    def choose(source: RememberingSource, root: Descriptor, found: str) -> Descriptor:
        return choose_manifest(source, root, platform, found, bounds)

    with opening_image(layout, name, choose) as image:
        layout.activity.note_used(image.name)
        plan = read_layers(RememberingSource(image, bounds), image.chosen, bounds)
        layers = (LayerSource(descriptor=each, diff_id=diff_id, source=image) for each, diff_id in plan.layers)
        yield image.name, plan, tuple(layers)


def open_files(layout: Layout, name: str, platform: Platform | None, limits: UnpackLimits) -> ImageFiles:
    """Return the files of an image, as :meth:`minibox_store.Store.open_files` says; the caller closes it."""
    root = layout.paths.root
    with file_errors(root), ExitStack() as opened:
        found, plan, layers = opened.enter_context(opening_layers(layout, name, platform, limits))
        return ImageFiles(
            found,
            plan.manifest,
            layers,
            sidecars=Sidecars(layout.paths.files),
            limits=limits,
            where=root,
            closing=opened,
        )
