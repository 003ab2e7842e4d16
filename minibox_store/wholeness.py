"""Whether an image that came from elsewhere is whole, and what is missing where it is not. Pure.

Documents are looked for by reading them; of configs and layers somebody says whether they are there.
"""

from collections.abc import Callable

import attrs

from minibox_store import media_types
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, InvalidArchive, InvalidDocument
from minibox_store.graph import RememberingSource, walk_contents
from minibox_store.limits import Limits
from minibox_store.manifest_choice import manifests_below
from minibox_store.sentences import and_more
from minibox_store.values import Value

# Both lists, of whatever an index says, still make a sentence.
_SHOWN_PLATFORMS = 6
_SHOWN_CHARACTERS = 40

Holds = Callable[[Descriptor], bool]


@attrs.frozen(kw_only=True, repr=False)
class Presence(Value):
    """What there is of an image.

    Attributes:
        documents: how many manifests and indexes it has, those that are missing too.
        document_bytes: of these together.
        missing: every blob that is not there, as far as the documents that are there name it; each once.
    """

    documents: int
    document_bytes: int
    missing: tuple[Descriptor, ...]


class DocumentTotals:
    """How many documents all images of an archive have together, each as often as one of them has it.

    Each is walked more than once: thousands of indexes that share thousands of manifests would take hours.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._documents = self._document_bytes = 0

    def add(self, documents: int, document_bytes: int) -> None:
        """Take note of some more.

        Raises:
            InvalidArchive: when there are too many, or too large ones.
        """
        self._documents += documents
        self._document_bytes += document_bytes
        if self._documents > self._limits.documents:
            raise InvalidArchive(f"its images have more than {self._limits.documents} documents together")
        if self._document_bytes > self._limits.archive_document_bytes:
            most_bytes = self._limits.archive_document_bytes
            raise InvalidArchive(f"its images have documents of more than {most_bytes} bytes together")


def find_presence(source: RememberingSource, root: Descriptor, holds: Holds, limits: Limits) -> Presence:
    """Return what there is of the image at ``root``; ``holds`` says it of a blob that is no document.

    Raises:
        ContentMismatch, InvalidDocument: for a document that is there, and wrong.
    """
    documents = document_bytes = 0
    missing: dict[str, Descriptor] = {}

    def note_absent(descriptor: Descriptor, error: Exception) -> None:
        if not isinstance(error, BlobNotFound):
            raise error
        missing.setdefault(str(descriptor.digest), descriptor)

    for node in walk_contents(source, root, limits=limits, on_unreadable=note_absent):
        if media_types.is_document(node.descriptor.media_type):
            documents += 1
            document_bytes += node.descriptor.size_bytes
        elif not holds(node.descriptor):
            missing.setdefault(str(node.descriptor.digest), node.descriptor)
        del node  # a large document is not kept while the next one is read
    return Presence(documents=documents, document_bytes=document_bytes, missing=tuple(missing.values()))


def what_is_missing(
    source: RememberingSource, root: Descriptor, presence: Presence, holds: Holds, limits: Limits
) -> InvalidArchive:
    """Return the error for an archive that lacks something of an image: of an index, whole platforms, by their names.

    Raises:
        ContentMismatch, InvalidDocument: for a document that is there, and wrong.
    """
    digests = tuple(str(each.digest) for each in presence.missing)
    problem = f"it lacks {digests[0]}{and_more(digests)}, which its manifest names"
    if media_types.is_index(root.media_type) and any(map(_is_document, presence.missing)):
        present: dict[str, None] = {}
        absent: dict[str, None] = {}
        for each in manifests_below(source, root, limits, _pass_by, allow_absent=True):
            if each.platform is not None and not each.platform.is_unknown:
                is_whole = not find_presence(source, each, holds, limits).missing
                (present if is_whole else absent)[str(each.platform)] = None
        if absent:
            problem += f"; of its platforms it lacks {_listed(absent)}, and has {_listed(present) or 'no other'}"
    return InvalidArchive(problem, missing=digests)


def _is_document(descriptor: Descriptor) -> bool:
    return media_types.is_document(descriptor.media_type)


def _pass_by(_: InvalidDocument) -> None:
    """Take no notice of a config from which nobody can tell the platform."""


def _listed(platforms: dict[str, None]) -> str:
    shown = ", ".join(each[:_SHOWN_CHARACTERS] for each in list(platforms)[:_SHOWN_PLATFORMS])
    return shown + and_more(platforms, _SHOWN_PLATFORMS)
