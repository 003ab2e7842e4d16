"""What a document points at, found without a value for each: a collection asks that of every image of a store.

What :func:`decode_document` refuses is refused here in the same words. Where the descriptors of a document have the
three fields that they must have and no others, which are nearly all, they are checked as they stand; else the whole
document is decoded.

Spec: OCI image-spec 1.1, manifest.md, image-index.md, descriptor.md.
"""

from minibox_store import media_types
from minibox_store.codec.manifests import load_document, structure_document
from minibox_store.digest import HEX_LENGTHS, is_hexadecimal
from minibox_store.documents import Identity, Links, Manifest, children, identity
from minibox_store.limits import DEFAULT_LIMITS, MAX_SIZE_BYTES, Limits


def decode_links(
    content: bytes, media_type: str, document: str = "manifest", *, limits: Limits = DEFAULT_LIMITS
) -> Links:
    """Return what a manifest or index points at; arguments and errors are those of :func:`decode_document`.

    Guarantees: these are the children of the document that :func:`decode_document` returns.
    """
    value = load_document(content, media_type, document, limits)
    field = "manifests" if media_types.is_index(media_type) else "layers"
    items = value.get(field)
    leaves = _plain_leaves(items)
    if leaves is not None:
        value[field] = []  # they have been looked at; all the rest has not
    decoded = structure_document(value, document)
    below = [node.descriptor for node in children(decoded)]
    layers = len(items) if isinstance(decoded, Manifest) and isinstance(items, list) else 0
    return Links(
        leaves=[*(leaves or ()), *(identity(each) for each in below if not media_types.is_document(each.media_type))],
        documents=[each for each in below if media_types.is_document(each.media_type)],
        layers=layers,
    )


def _plain_leaves(items: object) -> list[Identity] | None:
    """Return what an array of plain descriptors, none of them of a document, points at; None where it is no such."""
    if type(items) is not list:
        return None
    found = []
    for item in items:
        if type(item) is not dict or len(item) != 3:
            return None
        media_type, digest, size_bytes = item.get("mediaType"), item.get("digest"), item.get("size")
        if type(media_type) is not str or type(digest) is not str or type(size_bytes) is not int:
            return None
        algorithm, _, encoded = digest.partition(":")
        if len(encoded) != HEX_LENGTHS.get(algorithm):
            return None
        if not 0 <= size_bytes <= MAX_SIZE_BYTES or media_type in media_types.DOCUMENTS:
            return None
        found.append((encoded, size_bytes, ""))
    # All at once, which takes a fraction of the time; each has an even number of digits.
    return found if is_hexadecimal("".join([encoded for encoded, _, _ in found])) else None
