"""One tar of images as an end: a target that is written whole or not at all, a source that nobody trusts."""

from minibox_store.archive.contents import ArchivedImage, read_images
from minibox_store.archive.formats import ArchiveForm
from minibox_store.archive.offering import OfferedArchive
from minibox_store.archive.reading import ArchiveReader
from minibox_store.archive.writing import ArchiveFile, ArchiveStream

__all__ = [
    "ArchiveFile",
    "ArchiveForm",
    "ArchiveReader",
    "ArchiveStream",
    "ArchivedImage",
    "OfferedArchive",
    "read_images",
]
