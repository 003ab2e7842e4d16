"""The two files that make a folder an OCI image layout: index.json and oci-layout.

Spec: OCI image-spec 1.1, image-layout.md.
"""

from collections.abc import Mapping

import attrs

from minibox_store import media_types
from minibox_store.codec.manifests import descriptor_object
from minibox_store.codec.strict import dump, load_object, structure
from minibox_store.documents import Descriptor, LayoutEntry, LayoutIndex, LayoutMarker
from minibox_store.errors import InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS
from minibox_store.values import Value

_LAYOUT_VERSION = "1.0.0"
_INDEX, _MARKER = "index.json", "oci-layout"


def decode_layout_index(
    content: bytes, *, limit_bytes: int = DEFAULT_LIMITS.index_bytes, most_values: int | None = None
) -> LayoutIndex:
    """Return index.json of a layout, with everything in it that this library does not know.

    Raises:
        InvalidDocument: when it is no index, an entry is no descriptor, or there is more of it than there may be.

    Spec: OCI image-spec 1.1, image-layout.md, "index.json file".
    """
    value = load_object(content, _INDEX, limit_bytes, most_values=most_values)
    version = value.get("schemaVersion")
    if type(version) is not int or version != 2:
        raise InvalidDocument("schemaVersion", "it must be the number 2", _INDEX)
    if not {"config", "layers"}.isdisjoint(value):
        raise InvalidDocument("", "it is both an index and a manifest", _INDEX)
    if value.get("mediaType", media_types.OCI_INDEX) not in media_types.INDEXES:
        raise InvalidDocument("mediaType", "it is no image index", _INDEX)
    entries = value.get("manifests", ())
    if "manifests" not in value or type(entries) not in (list, type(None)):
        raise InvalidDocument("manifests", "it must be an array", _INDEX)
    described = structure({"manifests": entries}, _Entries, _INDEX).manifests
    raws: list[dict[str, object]] = entries or []  # type: ignore[assignment]  # structure refused all but objects
    return LayoutIndex(
        entries=tuple(LayoutEntry(descriptor=each, raw=raw) for each, raw in zip(described, raws, strict=True)),
        raw={key: item for key, item in value.items() if key != "manifests"},
    )


@attrs.frozen(kw_only=True, repr=False)
class _Entries(Value):
    manifests: tuple[Descriptor, ...]


def encode_layout_index(index: LayoutIndex) -> bytes:
    """Return index.json; what was read and not replaced is written as it stood."""
    top = dict(index.raw) if index.raw is not None else {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX}
    entries = [entry.raw if entry.raw is not None else descriptor_object(entry.descriptor) for entry in index.entries]
    return dump({**top, "manifests": entries})


def annotated(entry: LayoutEntry, annotations: Mapping[str, str]) -> LayoutEntry:
    """Return an entry that has these annotations, and is what it was in everything else that was read of it."""
    raw = None if entry.raw is None else {**entry.raw, "annotations": dict(annotations)}
    return LayoutEntry(descriptor=attrs.evolve(entry.descriptor, annotations=annotations), raw=raw)


def decode_layout_marker(content: bytes, *, any_version: bool = False) -> LayoutMarker:
    """Return the content of an ``oci-layout`` file.

    Raises:
        InvalidDocument: when it is none, or, unless ``any_version``, of a version other than 1.x.

    Spec: OCI image-spec 1.1, image-layout.md, "oci-layout file".
    """
    marker = structure(load_object(content, _MARKER, 64 * 1024), LayoutMarker, _MARKER)
    if not any_version and not marker.image_layout_version.startswith("1."):
        problem = f"version {marker.image_layout_version!r} is not supported"
        raise InvalidDocument("imageLayoutVersion", problem, _MARKER)
    return marker


def encode_layout_marker() -> bytes:
    """Return the content of an ``oci-layout`` file of the version that this library writes."""
    return dump({"imageLayoutVersion": _LAYOUT_VERSION})
