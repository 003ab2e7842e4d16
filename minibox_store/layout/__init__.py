"""The local store as an end: an OCI image layout on disk, on which any number of processes may work at once."""

from minibox_store.layout.inventory import Inventory, map_images
from minibox_store.layout.layout import Layout
from minibox_store.layout.listing import Listing
from minibox_store.layout.mending import find_lost_names, mend_index
from minibox_store.layout.opened import OpenedImage, opening_image
from minibox_store.layout.sweeping import Sweep
from minibox_store.layout.undoing import undo_last_change

__all__ = [
    "Inventory",
    "Layout",
    "Listing",
    "OpenedImage",
    "Sweep",
    "find_lost_names",
    "map_images",
    "mend_index",
    "opening_image",
    "undo_last_change",
]
