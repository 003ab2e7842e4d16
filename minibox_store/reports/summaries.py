"""What the documents of an image say, apart from any name, and which files were read for it, as values.

A listing has many images, so of each it tells no more than a line: what is longer than anybody means it to be counts as
not said. Whoever inspects one image is told what stands there.
"""

import attrs

from minibox_store.digest import Digest
from minibox_store.platforms import Platform
from minibox_store.values import Value

# Size in bytes, inode, time of the last change in nanoseconds: a file that was replaced or changed has others. Not its
# device, which is another one after a restart of the machine. The time is that of the content. In a strict state it is
# that of the inode, which nobody can set back, and which also changes with the file's links.
FileState = tuple[int, int, int]

MOST_CREATED_CHARACTERS = 64  # RFC 3339 takes 35, with nanoseconds
MOST_PLATFORM_CHARACTERS = 256  # what Platform.parse takes
# Of how many files a summary is kept for the next process: 4 KiB, an index of 15 platforms with their attestations.
MOST_KEPT_FILES = 32


# That of a file which could not be read, or not even looked at, for a reason that may go without a trace in the file,
# such as its mode: no file ever has it, so whoever compares looks again.
UNKNOWN_STATE: FileState = (-1, -1, -1)

# A document, and the state its file had before it was read; None where there was nothing.
DocumentFile = tuple[Digest, FileState | None]


@attrs.frozen(kw_only=True, repr=False)
class ImageSummary(Value):
    """What the documents below one root say.

    Attributes:
        media_type: of the root.
        size_bytes: as in :class:`minibox_store.reports.images.Image`, and so are the next five.
        platform: what the config says; None where it says nothing or too much, and of an index.
        platforms: of an index, those of its manifests.
        created: the config's own text; None where it is too long.
        layers: how many.
        damaged: whether a document cannot be read.
        is_complete: whether every document and the config was there and could be read, so that the same digest always
            gives the same summary.
        files: those that it hangs on, the root's first: the documents, and a config that could not be read. Where it
            is not complete their states are strict: who mends a file may give it the time that it had.
        outline: of what the root reaches, as the text of an :class:`minibox_store.outlines.Outline`; None where a
            document of it was not there, or where it is too long.
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
    outline: str | None = None

    @property
    def is_kept(self) -> bool:
        """Whether it is left for the next process: one that is complete, and takes no more room than others do."""
        return self.is_complete and len(self.files) <= MOST_KEPT_FILES


def listed_created(text: str | None) -> str | None:
    """Return when an image was made, as a config says it; None where that is too long to be listed."""
    return text if text is not None and len(text) <= MOST_CREATED_CHARACTERS else None


def listed_platform(platform: Platform | None) -> Platform | None:
    """Return a platform as it was given; None where its words are too long to be listed."""
    return platform if platform is not None and len(str(platform)) <= MOST_PLATFORM_CHARACTERS else None
