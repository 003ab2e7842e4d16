"""What the documents of an image say, apart from any name, and which files were read for it, as values."""

import attrs

from minibox_store.digest import Digest
from minibox_store.platforms import Platform

# Size in bytes, inode, time of the last change in nanoseconds: a file that was replaced or changed has others. Not its
# device, which is another one after a restart of the machine.
FileState = tuple[int, int, int]


# That of a file which could not be read, or not even looked at, for a reason that may go without a trace in the file,
# such as its mode: no file ever has it, so whoever compares looks again.
UNKNOWN_STATE: FileState = (-1, -1, -1)

# A document, and the state its file had before it was read; None where there was nothing.
DocumentFile = tuple[Digest, FileState | None]


@attrs.frozen(kw_only=True)
class ImageSummary:
    """What the documents below one root say.

    Attributes:
        media_type: of the root.
        size_bytes: as in :class:`minibox_store.images.Image`, and so are the next five.
        platform: what the config says; None where it says nothing, and of an index.
        platforms: of an index, those of its manifests.
        created: the config's own text.
        layers: how many.
        damaged: whether a document cannot be read.
        is_complete: whether every document and the config was there and could be read, so that the same digest always
            gives the same summary.
        files: those that it hangs on, the root's first: the documents, and a config that could not be read.
    """

    media_type: str
    size_bytes: int
    platform: Platform | None = None
    platforms: tuple[Platform, ...] = ()
    created: str | None = None
    layers: int = 0
    damaged: bool = False
    is_complete: bool = True
    files: tuple[DocumentFile, ...] = ()
