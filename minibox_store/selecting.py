"""What of an image is wanted: the manifest for one platform, an index of those for several, or all of it.

An index of several is made here where the one that there is names anything else too: each stored graph is closed, and
nothing that an index names is left out of a store. Its bytes depend on the original and on what is chosen alone.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, encode_document
from minibox_store.documents import Descriptor, Index
from minibox_store.errors import InvalidDocument, PlatformNotFound
from minibox_store.graph import RememberingSource, check_is_document
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.manifest_choice import manifests_below, platforms_of, select_manifest
from minibox_store.platforms import Platform, WantedPlatforms, choose_platform
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class ChosenManifest(Value):
    """A manifest, and for which of the platforms that were wanted it is; none where all were, or nobody asked."""

    descriptor: Descriptor
    wanted: tuple[Platform, ...] = ()


@attrs.frozen(kw_only=True, repr=False)
class ChosenImage(Value):
    """What is wanted of an image.

    Attributes:
        root: of its graph.
        manifests: those that were chosen, with their platforms as far as they are known; none where nothing was.
        made_from: the index that ``root``, which was made here, is a part of; None where ``root`` was there.
    """

    root: Descriptor
    manifests: tuple[ChosenManifest, ...] = ()
    made_from: Descriptor | None = None


def select_image(
    source: RememberingSource, root: Descriptor, wanted: WantedPlatforms, name: str, limits: Limits = DEFAULT_LIMITS
) -> ChosenImage:
    """Return what is wanted of the image at ``root``; where that is an index made here, ``source`` has it from now on.

    Several platforms, or all, of an index give an index with its entries for them, in its order, those of nested
    indexes in their place: the very one where it has no other, else a new one, of its type and with its annotations.
    Of a manifest they give that manifest. A platform is looked for as by :func:`select_manifest`; all are those that
    are known: no attestation, nothing for ``unknown/unknown``, and nothing that names no platform.

    Args:
        source: where the documents are.
        root: a manifest or an index.
        wanted: None gives the root.
        name: how an error calls the image.
        limits: how deep and how large the graph, and the new index, may be.

    Raises:
        PlatformNotFound: with those that are missing, and those that are on offer.
        BlobNotFound, ContentMismatch, InvalidDocument: as :func:`select_manifest`; for all platforms, where a config
            says what none may; and where a new index would be larger than may be read again.

    Spec: OCI image-spec 1.1, image-index.md.
    """
    if wanted is None:
        return ChosenImage(root=root)
    if isinstance(wanted, Platform):
        chosen = found = select_manifest(source, root, wanted, name, limits)
        if media_types.is_manifest(root.media_type):
            (found,) = _offered(source, root, limits, [])
        return ChosenImage(root=chosen, manifests=(ChosenManifest(descriptor=found, wanted=(wanted,)),))
    check_is_document(root)
    odd: list[InvalidDocument] = []
    offered = _offered(source, root, limits, odd)
    if media_types.is_manifest(root.media_type) and offered[0].platform is None and not odd:
        return ChosenImage(root=root, manifests=(ChosenManifest(descriptor=root),))
    chosen_ones = _chosen(offered, wanted, odd, name)
    if media_types.is_manifest(root.media_type):
        return ChosenImage(root=root, manifests=chosen_ones)
    return _index_of(source, root, chosen_ones, limits)


def select_present(
    source: RememberingSource,
    root: Descriptor,
    is_present: Callable[[Descriptor], bool],
    name: str,
    limits: Limits = DEFAULT_LIMITS,
) -> ChosenImage:
    """Return an index of those manifests below the index ``root`` that are there, as :func:`select_image` makes one.

    Args:
        source: where the documents are, as far as they are; it has the new index from now on.
        root: an index.
        is_present: whether a manifest is there, with all that it needs.
        name: how an error calls the image.
        limits: how deep and how large the graph, and the new index, may be.

    Raises:
        PlatformNotFound: when not one is there for a platform that is known.
        ContentMismatch, InvalidDocument: as :func:`select_image`.
    """
    odd: list[InvalidDocument] = []
    offered = manifests_below(source, root, limits, odd.append, allow_absent=True)
    present = [each for each in offered if is_present(each)]
    return _index_of(source, root, _chosen(present, "all", odd, name), limits)


def _offered(
    source: RememberingSource, root: Descriptor, limits: Limits, odd: list[InvalidDocument]
) -> list[Descriptor]:
    """Return the manifests at or below ``root`` with their platforms; what is ``odd`` about a config is added there."""
    if media_types.is_manifest(root.media_type):
        # What an index said of it elsewhere does not count: it is asked for by itself.
        root = attrs.evolve(root, platform=None, annotations={})
    return list(manifests_below(source, root, limits, odd.append))


def _chosen(
    offered: Sequence[Descriptor],
    wanted: tuple[Platform, ...] | Literal["all"],
    odd: Sequence[InvalidDocument],
    name: str,
) -> tuple[ChosenManifest, ...]:
    """Return the manifests that are wanted, in the order in which they are offered."""
    known = [each for each in offered if each.platform is not None and not each.platform.is_unknown]
    if wanted == "all":
        if odd or not known:
            raise odd[0] if odd else PlatformNotFound(name, "any", ())
        return tuple(ChosenManifest(descriptor=each) for each in known)
    found: dict[int, tuple[Platform, ...]] = {}
    missing = []
    for platform in dict.fromkeys(wanted):
        position = choose_platform([each.platform for each in known], platform)
        if position is None:
            missing.append(platform)
        else:
            found[position] = (*found.get(position, ()), platform)
    if missing:
        raise odd[0] if odd else PlatformNotFound(name, ", ".join(map(str, missing)), platforms_of(offered))
    return tuple(ChosenManifest(descriptor=known[position], wanted=found[position]) for position in sorted(found))


def _index_of(
    source: RememberingSource, root: Descriptor, chosen: tuple[ChosenManifest, ...], limits: Limits
) -> ChosenImage:
    """Return the index of just these manifests: the one that there is, if that is it, else a new one."""
    original = decode_document(source.read(root), root.media_type, str(root.digest), limits=limits)
    assert isinstance(original, Index)
    entries = tuple(each.descriptor for each in chosen)
    if [each.digest for each in original.manifests] == [each.digest for each in entries]:
        return ChosenImage(root=root, manifests=chosen)
    if len(entries) >= limits.documents:
        raise InvalidDocument("", f"the image has more than {limits.documents} documents", str(root.digest))
    content = encode_document(attrs.evolve(original, manifests=entries))
    if len(content) > limits.document_bytes:
        problem = f"an index of what is wanted of it is larger than {limits.document_bytes} bytes"
        raise InvalidDocument("manifests", problem, str(root.digest))
    made = source.add_made(content, root.media_type)
    return ChosenImage(root=made, manifests=chosen, made_from=root)
