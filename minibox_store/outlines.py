"""What an image does not reach, told in a few bytes for each blob that it does: by the beginnings of their digests.

Whoever asks many images for one blob leaves out all those that have not even the beginning of its digest. The few that
have it are read: a beginning that two digests share costs a look, and an outline that lies shows nothing to anybody.
"""

from collections.abc import Iterable
from typing import NamedTuple

from minibox_store.digest import Digest

# As texts they are kept and read back without being made into anything, of each of thousands of images.
MARK_CHARACTERS = 12


class Outline(NamedTuple):
    """The beginnings of digests: of the blobs that a root reaches, and of what documents among them refer to."""

    blobs: str
    subjects: str

    @property
    def size_bytes(self) -> int:
        """How many bytes both are together."""
        return len(self.blobs) + len(self.subjects)


def mark_of(digest: Digest) -> str:
    """Return what an outline has of a digest."""
    return digest.hex[:MARK_CHARACTERS]


def outline_of(blobs: Iterable[str], subjects: Iterable[str]) -> Outline:
    """Return the outline of what reaches these blobs, of which some documents refer to these subjects.

    Both are told by the hexadecimal part of their digests.
    """
    blob_marks = [each[:MARK_CHARACTERS] for each in blobs]
    return Outline("".join(blob_marks), "".join([each[:MARK_CHARACTERS] for each in subjects]))
