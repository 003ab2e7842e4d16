"""What a store holds, as images: read once, and again only where something has changed.

index.json is read whole at every call. A document's file that has gone, come or been replaced is seen at once, and so
is each change of a document that was found to be wrong. Two things are seen within a second
(:mod:`minibox_store.layout.stillness`): that a file was changed in place, which nobody may do, and that the system lets
us read one which it did not let us read before. What documents say is kept by digest, and forgotten with it.
"""

from collections.abc import Iterable
from operator import itemgetter

import attrs

from minibox_store import _signatures, media_types
from minibox_store.codec import SummaryTable
from minibox_store.documents import Descriptor, LayoutIndex
from minibox_store.layout.layout import Layout
from minibox_store.layout.listing_cache import is_current, read_cache, write_cache
from minibox_store.layout.resting import collector_at_rest
from minibox_store.layout.stillness import BlobFolders, Glance
from minibox_store.layout.summarising import summarise
from minibox_store.layout_index import NAME_ANNOTATION, names_of, without_own
from minibox_store.limits import DEFAULT_LIMITS
from minibox_store.protocols import BlobSource
from minibox_store.reports.images import Image
from minibox_store.reports.summaries import UNKNOWN_STATE, FileState, ImageSummary, listed_platform
from minibox_store.values import Value

_ATTEMPTS = 3
# To read a few images anew costs less than to ask the cache, and much less than to write it. So it is written once
# so many are not in it, or such a part of all: a store that grows image by image pays each time for that one alone.
_WORTH_KEEPING = 64
_PART_WORTH_KEEPING = 64

# A root by all that its entry says of it; of its digest the text, which is hashed much faster.
Key = tuple[str, int, str]
Summaries = dict[Key, ImageSummary]
Files = tuple[tuple[str, FileState | None], ...]


@attrs.frozen(kw_only=True, repr=False)
class _Listed(Value):
    """One listing, and all that it hangs on.

    Attributes:
        glance: at the folders, before the files were looked at last.
        index: that it was made of; None for what is known before the first.
        images: the listing.
        summaries: of the images.
        files: of the documents.
        doubtful: of those that are not complete, in their strict states: somebody may mend them in place, and these few
            cost little. Those that could not be read at all are tried again with all the others, once a second.
    """

    glance: Glance | None = None
    index: LayoutIndex | None = None
    images: tuple[Image, ...] = ()
    summaries: Summaries = attrs.field(factory=dict)
    files: Files = ()
    doubtful: Files = ()


class Listing:
    """The images of one store. Safe for several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._folders = BlobFolders(layout.paths)
        self._listed = _Listed()
        self._unkept = 0

    def images(self) -> tuple[Image, ...]:
        """Return every named image, sorted by name; the very same tuple as long as nothing has changed.

        Raises:
            StoreDamaged: when index.json cannot be read.
        """
        if self._listed.index is None:
            with collector_at_rest():
                return self._images()
        return self._images()

    def _images(self) -> tuple[Image, ...]:
        for _ in range(_ATTEMPTS):
            glance = self._folders.glance()
            index = self._layout.read_index()
            listed = self._listed
            if index is listed.index and self._is_current(listed, glance):
                return listed.images
            listed = self._list(index, glance)
            # An image whose name goes meanwhile, and its blobs with it, is not damaged.
            if not any(image.damaged for image in listed.images) or self._layout.read_index() is index:
                break
        self._listed = listed
        return listed.images

    def image(self, name: str, descriptor: Descriptor, source: BlobSource | None = None) -> Image:
        """Return one image whose entry is at hand, read from ``source`` if that has it open."""
        summary = None if source is not None else self._known(self._listed.summaries.get(_key(descriptor)))
        return _image(name, descriptor, summary or summarise(self._layout, descriptor, source))

    def opened_images(self, opened: Iterable[tuple[str, Descriptor, BlobSource]]) -> dict[str, Image]:
        """Return images by their names, each with its entry and whoever has it open; of each root one is read."""
        summaries: Summaries = {}
        found = {}
        for name, descriptor, source in opened:
            key = _key(descriptor)
            if key not in summaries:
                summaries[key] = summarise(self._layout, descriptor, source)
            found[name] = _image(name, descriptor, summaries[key])
        return found

    def _is_current(self, listed: _Listed, glance: Glance) -> bool:
        if not _signatures.are_unchanged(listed.doubtful, strictly=True):
            return False
        if listed.glance is not None and listed.glance.covers(glance):
            return True
        if not _signatures.are_unchanged(listed.files):
            return False
        self._listed = attrs.evolve(listed, glance=glance)
        return True

    def _list(self, index: LayoutIndex, glance: Glance) -> _Listed:
        found = [(name, descriptor, _key(descriptor)) for name, descriptor in names_of(index)]
        found.sort(key=itemgetter(0))
        summaries = self._summaries({key: descriptor for _, descriptor, key in found})
        return _Listed(
            glance=glance,
            index=index,
            images=tuple([_image(name, descriptor, summaries[key]) for name, descriptor, key in found]),
            summaries=summaries,
            files=self._files(summaries, doubtful=False),
            doubtful=self._files(summaries, doubtful=True),
        )

    def _summaries(self, roots: dict[Key, Descriptor]) -> Summaries:
        summaries: Summaries = {}
        known = self._listed.summaries
        missing = {}
        for key, root in roots.items():
            summary = self._known(known.get(key))
            if summary is None:
                missing[key] = root
            else:
                summaries[key] = summary
        # What is damaged depends on the limits, and of them a cache says nothing: it is for the usual ones alone.
        has_cache = self._layout.limits == DEFAULT_LIMITS
        kept = read_cache(self._layout.paths) if has_cache and len(missing) >= _WORTH_KEEPING else SummaryTable()
        for key, root in missing.items():
            summary = self._known(kept.find(root))
            if summary is None:
                summary = summarise(self._layout, root, among_others=True)
                self._unkept += summary.is_kept
            summaries[key] = summary
        if has_cache and self._unkept >= max(_WORTH_KEEPING, len(summaries) // _PART_WORTH_KEEPING):
            self._unkept = 0  # were it not written, the next attempt would fail as well
            write_cache(self._layout.paths, summaries.values())
        return summaries

    def _known(self, summary: ImageSummary | None) -> ImageSummary | None:
        """Return the summary, if every file of it is as it was when it was read."""
        return summary if summary is not None and is_current(self._layout.paths, summary) else None

    def _files(self, summaries: Summaries, *, doubtful: bool) -> Files:
        blob = self._layout.paths.blob
        files = ((each, summary.is_complete) for summary in summaries.values() for each in summary.files)
        return tuple(
            [
                (blob(digest), state)
                for (digest, state), is_complete in files
                if (is_complete or state == UNKNOWN_STATE) is not doubtful
            ]
        )


def _key(root: Descriptor) -> Key:
    return root.digest.hex, root.size_bytes, root.media_type


def _image(name: str, descriptor: Descriptor, summary: ImageSummary) -> Image:
    annotations: dict[str, str] = {}
    if len(descriptor.annotations) > 1 or NAME_ANNOTATION not in descriptor.annotations:
        annotations = without_own(descriptor.annotations)
    platform, platforms = summary.platform, summary.platforms
    if descriptor.media_type in media_types.MANIFESTS and not summary.damaged:
        platform = platform or listed_platform(descriptor.platform)
        platforms = (platform,) if platform else ()
    return Image(
        name=name,
        # Made by hand: attrs.evolve takes several times as long, and this is done for every image of a store.
        descriptor=Descriptor(
            media_type=descriptor.media_type,
            digest=descriptor.digest,
            size_bytes=descriptor.size_bytes,
            platform=descriptor.platform,
            annotations=annotations,
            artifact_type=descriptor.artifact_type,
            urls=descriptor.urls,
        ),
        size_bytes=summary.size_bytes,
        platform=platform,
        platforms=platforms,
        created=summary.created,
        layers=summary.layers,
        damaged=summary.damaged,
    )
