"""The server of a mounted image, as a program: it opens an image of a store, and answers for it until the mount goes.

It holds the image's blobs open, and no lock: a prune cannot take their bytes away, and waits for nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from minibox_store.limits import Limits, UnpackLimits
from minibox_store.platforms import Platform
from minibox_store.values import Value

if TYPE_CHECKING:
    from minibox_store.rootfs.files import ImageFiles


@attrs.frozen(kw_only=True, repr=False)
class StoredImage(Value):
    """Which image of which store is served.

    Attributes:
        root: the store's folder.
        name: as it stands in index.json.
        platform: which manifest of an index; None for the usual one.
        store_limits: the bounds on documents.
        unpack_limits: the bounds within which a layer is read.
        settle_seconds: how long what another tool may be writing now is read again.
    """

    root: str
    name: str
    platform: Platform | None
    store_limits: Limits
    unpack_limits: UnpackLimits
    settle_seconds: float


def main() -> None:
    """Serve the image that the process which began this one names."""
    from minibox_store.rootfs.serving import serve

    serve(_open)


@contextmanager
def _open(image: StoredImage) -> Iterator[tuple["ImageFiles", str]]:
    from minibox_store.face.opened_layers import open_files
    from minibox_store.layout import Layout

    layout = Layout(image.root, limits=image.store_limits, settle_seconds=image.settle_seconds)
    with open_files(layout, image.name, image.platform, image.unpack_limits) as files:
        files.prepare()
        yield files, str(files.manifest.digest)
