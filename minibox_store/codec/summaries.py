"""A store's summaries as bytes: a format of our own, which nobody else reads, and which may be lost at any time.

A line with the version of the format and the sha256 of all that follows; then one JSON object. What many images share,
a platform or a media type, stands there once, and is named by its place. An entry is looked at when it is asked for,
and one that is not exactly as it should be is as good as none.
"""

from collections.abc import Iterable
from typing import Any

import attrs

from minibox_store.codec.manifests import platform_object
from minibox_store.codec.strict import dump, load_object, structure
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import InvalidDigest, InvalidDocument
from minibox_store.limits import MAX_LISTING_BYTES
from minibox_store.media_types import is_index
from minibox_store.platforms import Platform
from minibox_store.reports.summaries import (
    MOST_CREATED_CHARACTERS,
    DocumentFile,
    ImageSummary,
    listed_platform,
)
from minibox_store.values import Value

_VERSION = b"minibox-store listing 3 "
_HEADER_BYTES = len(_VERSION) + 64 + 1


@attrs.frozen(kw_only=True, repr=False)
class _Shared(Value):
    """What entries name by its place; a place that is negative or too high is none."""

    media_types: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = ()


class SummaryTable:
    """The summaries that :func:`encode_summaries` wrote, each decoded when it is asked for. None at first."""

    def __init__(self, shared: _Shared | None = None, entries: dict[str, Any] | None = None) -> None:
        self._media_types = shared.media_types if shared else ()
        self._platforms = [listed_platform(each) for each in shared.platforms] if shared else []
        self._entries = entries or {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, root: Descriptor) -> ImageSummary | None:
        """Return the summary of ``root``; None where there is none for this very digest, size and media type.

        Asked for every image of a store at once, so the checks stand in it, and not in functions of their own.
        """
        entry: Any = self._entries.get(root.digest.hex)
        try:
            media_type, size, inode, mtime, size_bytes, platform, created, layers, outline, *of_index = entry
        except (TypeError, ValueError):
            return None
        if not (
            type(media_type) is type(size) is type(inode) is type(mtime) is type(size_bytes) is type(layers) is int
        ):
            return None
        if not 0 <= media_type < len(self._media_types) or self._media_types[media_type] != root.media_type:
            return None
        if size != root.size_bytes or size_bytes < 0 or layers < 0:
            return None
        if created is not None and not (type(created) is str and len(created) <= MOST_CREATED_CHARACTERS):
            return None
        own = None if platform is None else self._platform(platform)
        if own is None and platform is not None:
            return None
        others = self._of_index(*of_index) if len(of_index) == 2 else None
        if of_index and others is None:
            return None
        if outline is not None and type(outline) is not str:
            return None
        file = (root.digest, (size, inode, mtime))
        return ImageSummary(
            media_type=root.media_type,
            size_bytes=size_bytes,
            platform=own,
            platforms=others[0] if others else (),
            created=created,
            layers=layers,
            files=(file, *others[1]) if others else (file,),
            outline=outline,
        )

    def _of_index(
        self, platforms: object, below: object
    ) -> tuple[tuple[Platform, ...], tuple[DocumentFile, ...]] | None:
        """Return what an index has besides; None where it is not as it should be."""
        if type(platforms) is not list or type(below) is not list:
            return None
        found = [self._platform(place) for place in platforms]
        files = [_document_file(each) for each in below]
        whole = tuple([each for each in found if each is not None]), tuple([each for each in files if each is not None])
        return whole if len(whole[0]) == len(found) and len(whole[1]) == len(files) else None

    def _platform(self, place: object) -> Platform | None:
        return self._platforms[place] if type(place) is int and 0 <= place < len(self._platforms) else None


def decode_summaries(content: bytes) -> SummaryTable:
    """Return the summaries that ``content`` holds; the bytes are not trusted.

    Raises:
        InvalidDocument: when they are damaged, of another version, or nothing of the kind.
    """
    document = "the kept listing"
    body = content[_HEADER_BYTES:]
    if content[:_HEADER_BYTES] != _header(body):
        raise InvalidDocument("", "it is damaged, or of another version", document)
    value = load_object(body, document, MAX_LISTING_BYTES)
    shared = {key: item for key, item in value.items() if key != "entries"}
    entries = value.get("entries")
    if type(entries) is not dict:
        raise InvalidDocument("entries", "it must be an object", document)
    return SummaryTable(structure(shared, _Shared, document), entries)


def encode_summaries(summaries: Iterable[ImageSummary]) -> bytes:
    """Return bytes that hold the summaries; of those that are not to be kept, none."""
    media_types: dict[str, int] = {}
    platforms: dict[Platform, int] = {}
    entries: dict[str, list[object]] = {}
    for summary in summaries:
        (digest, state), *below = summary.files or ((None, None),)
        if digest is None or state is None or not summary.is_kept:
            continue
        entry: list[object] = [
            media_types.setdefault(summary.media_type, len(media_types)),
            *state,
            summary.size_bytes,
            None if summary.platform is None else platforms.setdefault(summary.platform, len(platforms)),
            summary.created,
            summary.layers,
            summary.outline,
        ]
        if is_index(summary.media_type):
            entry.append([platforms.setdefault(each, len(platforms)) for each in summary.platforms])
            entry.append([[str(each), *(state or ())] for each, state in below])
        entries[digest.hex] = entry  # its length tells the algorithm
    shared = {"media_types": list(media_types), "platforms": [platform_object(each) for each in platforms]}
    body = dump({**shared, "entries": entries})
    return _header(body) + body


def _header(body: bytes) -> bytes:
    return _VERSION + Digest.of(body).hex.encode() + b"\n"


def _document_file(value: Any) -> DocumentFile | None:
    try:
        text, size, inode, mtime = value
    except (TypeError, ValueError):
        return None
    if type(text) is not str or not (type(size) is type(inode) is type(mtime) is int):
        return None
    try:
        return Digest.parse(text), (size, inode, mtime)
    except InvalidDigest:
        return None
