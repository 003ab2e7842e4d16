"""What an image does not reach, told in a few bytes for each blob that it does: by the beginnings of their digests.

Whoever asks many images for one blob leaves out all those that have not even the beginning of its digest. The few that
have it are read: a beginning that two digests share costs a look, and an outline that lies shows nothing to anybody.
It is kept as text, which nobody looks at before it is asked for.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

from minibox_store.digest import Digest

MARK_CHARACTERS = 12
# So long the text is that is kept: that of an index of 40 platforms, with ten blobs for each.
_MOST_CHARACTERS = 4096


class Outline(NamedTuple):
    """The beginnings of digests: of the blobs that a root reaches, and of what documents among them refer to."""

    blobs: str
    subjects: str

    @property
    def size_bytes(self) -> int:
        """How many bytes both are together."""
        return len(self.blobs) + len(self.subjects)

    def as_text(self) -> str | None:
        """Return what :meth:`parse` takes; None for one that is too long to be kept."""
        text = f"{self.blobs} {self.subjects}"
        return text if len(text) <= _MOST_CHARACTERS else None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the outline that was kept; None where ``text``, which is not trusted, is none."""
        blobs, separator, subjects = text.partition(" ")
        if not separator or len(text) > _MOST_CHARACTERS or not text.isascii():
            return None
        if len(blobs) % MARK_CHARACTERS or len(subjects) % MARK_CHARACTERS:
            return None
        return cls(blobs, subjects)


def mark_of(digest: Digest) -> str:
    """Return what an outline has of a digest."""
    return digest.hex[:MARK_CHARACTERS]


def outline_of(blobs: Iterable[str], subjects: Iterable[str]) -> Outline:
    """Return the outline of what reaches these blobs, of which some documents refer to these subjects.

    Both are told by the hexadecimal part of their digests.
    """
    blob_marks = [each[:MARK_CHARACTERS] for each in blobs]
    return Outline("".join(blob_marks), "".join([each[:MARK_CHARACTERS] for each in subjects]))
