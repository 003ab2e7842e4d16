"""The local store as an end: an OCI image layout on disk, on which any number of processes may work at once."""

from minibox_store.layout.layout import Layout
from minibox_store.layout.listing import Listing
from minibox_store.layout.opened import OpenedImage, opening_image, opening_images
from minibox_store.layout.target import TransactionTarget
from minibox_store.layout.transaction import Transaction

__all__ = [
    "Layout",
    "Listing",
    "OpenedImage",
    "Transaction",
    "TransactionTarget",
    "opening_image",
    "opening_images",
]
