"""The choice of one manifest from an image's graph, by its platform.

Spec: OCI image-spec 1.1, image-index.md and config.md.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_config
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Index, Manifest
from minibox_store.errors import BlobNotFound, InvalidDocument, PlatformNotFound
from minibox_store.graph import RememberingSource, check_bounds, check_is_document, read_document
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import LINUX_AMD64, Platform, choose_platform

OddConfigListener = Callable[[InvalidDocument], None]

# A manifest for one platform, or an index.
_Named = set[tuple[Digest, Platform | None]]


def select_manifest(
    source: RememberingSource, root: Descriptor, platform: Platform, name: str, limits: Limits = DEFAULT_LIMITS
) -> Descriptor:
    """Return the descriptor of the one manifest for ``platform`` at or below ``root``, nested indexes included.

    Attestations, and entries for the platform ``unknown/unknown``, are never chosen. There is no fallback.

    Args:
        source: where the documents are; it keeps those that were read, for the copy that follows.
        root: a manifest or an index.
        platform: what is wanted; the variants that it may run count too, the best first.
        name: how an error calls the image.
        limits: how deep and how large the graph may be.

    Raises:
        PlatformNotFound: with the platforms that are on offer.
        BlobNotFound, ContentMismatch, InvalidDocument: for a document that is missing or wrong, and was needed; and
            for a config that says what none may, where nothing else fits: nobody knows whether that one would.

    Spec: OCI image-spec 1.1, image-index.md, "platform"; config.md for a manifest whose entry has none.
    """
    check_is_document(root)
    offered: list[Descriptor] = []
    odd: list[InvalidDocument] = []
    if media_types.is_manifest(root.media_type):
        offered.append(_with_platform(source, root, limits, odd.append))
        if offered[0].platform is None and not odd:
            return offered[0]
    else:
        offered.extend(manifests_below(source, root, limits, odd.append))
    chosen = choose_platform([each.platform for each in offered], platform)
    if chosen is None and odd:
        raise odd[0]
    if chosen is None:
        raise PlatformNotFound(name, str(platform), platforms_of(offered))
    return root if offered[chosen].digest == root.digest else offered[chosen]


def platforms_of(offered: Iterable[Descriptor]) -> tuple[str, ...]:
    """Return the platforms that manifests are for, each once, in their order."""
    return tuple(dict.fromkeys(str(each.platform) for each in offered if each.platform is not None))


def choose_manifest(
    source: RememberingSource, root: Descriptor, platform: Platform | None, name: str, limits: Limits = DEFAULT_LIMITS
) -> Descriptor:
    """Return the descriptor of one manifest at or below ``root``: as :func:`select_manifest`, if a platform is given.

    Where it is None: the root, if that is a manifest; the only one that an index has for a platform, attestations
    aside; of several the one for linux/amd64, as for a pull.

    Raises:
        PlatformNotFound, InvalidDocument: as :func:`select_manifest`.
    """
    if platform is None:
        if media_types.is_manifest(root.media_type):
            return root
        offered = list(islice(manifests_below(source, root, limits, lambda _: None), 2))
        if len(offered) == 1:
            return offered[0]
        platform = LINUX_AMD64
    return select_manifest(source, root, platform, name, limits)


def manifests_below(
    source: RememberingSource,
    root: Descriptor,
    limits: Limits,
    on_odd_config: OddConfigListener,
    *,
    allow_absent: bool = False,
) -> Iterator[Descriptor]:
    """Yield the manifests of an index with their platforms; what lies in nested indexes comes in its place.

    Attestations are left out, and what an index names again: a manifest counts once for each platform. One whose
    config says what none may has none, and hides no other: ``on_odd_config`` is told. With ``allow_absent`` a manifest
    that is absent has the platform that its entry names, if any, and an index that is absent has no manifests.

    Raises:
        BlobNotFound, ContentMismatch, InvalidDocument: for a document that is missing or wrong, and was needed.
    """
    stack = [iter((root,))]
    documents = 0
    seen: _Named = set()
    while stack:
        descriptor = next(stack[-1], None)
        if descriptor is None:
            stack.pop()
        elif descriptor.is_attestation or _is_named_again(descriptor, seen):
            continue
        elif media_types.is_index(descriptor.media_type):
            documents += 1
            check_bounds(root, documents, len(stack), limits)
            read = read_document(source, descriptor, limits, allow_absent)
            if read is not None and isinstance(read[0], Index):
                stack.append(iter(read[0].manifests))
        elif media_types.is_manifest(descriptor.media_type):
            if descriptor.platform is None:
                documents += 1
                check_bounds(root, documents, len(stack), limits)
                descriptor = _with_platform(source, descriptor, limits, on_odd_config, allow_absent=allow_absent)
                if descriptor.platform is not None and _is_named_again(descriptor, seen):
                    continue
            yield descriptor


def _is_named_again(descriptor: Descriptor, seen: _Named) -> bool:
    """Whether a manifest was named for this platform before, or an index for whatever; from now on it was."""
    platform = descriptor.platform if media_types.is_manifest(descriptor.media_type) else None
    key = descriptor.digest, platform and platform.normalised()
    is_again = key in seen
    seen.add(key)
    return is_again


def _with_platform(
    source: RememberingSource,
    descriptor: Descriptor,
    limits: Limits,
    on_odd_config: OddConfigListener,
    *,
    allow_absent: bool = False,
) -> Descriptor:
    """Return the manifest's descriptor with the platform that its config names, if it names one."""
    read = read_document(source, descriptor, limits, allow_absent)
    if read is None or not isinstance(read[0], Manifest) or not media_types.is_config(read[0].config.media_type):
        return descriptor
    config = read[0].config
    try:
        platform = decode_config(source.read(config), str(config.digest), limits=limits).platform
    except InvalidDocument as odd:
        on_odd_config(odd)
        return descriptor
    except BlobNotFound:
        if allow_absent:
            return descriptor
        raise
    return attrs.evolve(descriptor, platform=platform)
