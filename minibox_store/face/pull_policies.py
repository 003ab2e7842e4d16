"""When a pull may be left out: the store has what it would bring, and whoever pulls does not want the registry asked.

What counts is what the pull would register, not the name alone: all of the image is there, it was chosen for the
platform that is asked for, and it is of the digest that the reference names. An entry of index.json says for which
platform it was chosen, and what its tag stood for then: an index has another digest than the manifest chosen from it.
"""

from contextlib import suppress
from typing import Protocol

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    ImageNotFound,
    IncompleteImage,
    InvalidDocument,
    PlatformNotFound,
    StoreDamaged,
    StoreError,
)
from minibox_store.face.admitting import Wish
from minibox_store.graph import RememberingSource, read_content, walk
from minibox_store.layout import Layout, OpenedImage, opening_image
from minibox_store.layout_index import provenance_of
from minibox_store.media_types import is_config, is_manifest
from minibox_store.platforms import Platform, WantedPlatforms, describe_choice
from minibox_store.protocols import BlobSource
from minibox_store.reference import Reference
from minibox_store.selecting import select_image
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class HeldImage(Value):
    """A whole image of the store, for the platform that a pull asks for.

    Attributes:
        name: as it stands in index.json.
        root: of its manifest or index.
        digests: for which of them at the registry the pull would bring this very image.
    """

    name: str
    root: Descriptor
    digests: frozenset[Digest]


class Headed(Protocol):
    """A repository that may be asked without fetching anything: see :class:`minibox_store.RegistryRepository`."""

    def head(self, name: str) -> Descriptor | None:
        """Return what a name stands for, None where that is no answer."""
        ...

    def resolve(self, name: str) -> Descriptor:
        """Return what a name stands for."""
        ...


def find_held(layout: Layout, wish: Wish) -> HeldImage | None:
    """Return the store's image, if it may be what a pull would bring; None where not.

    Every document of it is verified; of the layers the size is looked at. Where a policy wants to verify what the
    registry has, an image that was chosen from it does not do: the store has no index to be shown.
    """
    try:
        with opening_image(layout, wish.name) as image:
            provenance = provenance_of(image.root)
            digests = {image.root.digest} if provenance is None else {image.root.digest, provenance.digest}
            if wish.digest is not None and wish.digest not in digests:
                return None
            if len(digests) > 1 and wish.policy is not None and wish.policy.verify is not None:
                return None
            if not _is_for(image, wish.platforms, layout):
                return None
            return HeldImage(name=image.name, root=image.root, digests=frozenset(digests))
    except (ImageNotFound, IncompleteImage, InvalidDocument, StoreDamaged):
        return None  # the pull brings, or tells, what is wrong


def _is_for(image: OpenedImage, wanted: WantedPlatforms, layout: Layout) -> bool:
    provenance = provenance_of(image.root)
    if provenance is not None and provenance.digest != image.root.digest:
        # Something was chosen, and for an older variant perhaps, where there is a better one for the one asked for.
        # A choice of several gives an index, also where these are one: the words for it do not tell it from that one.
        is_one = isinstance(wanted, Platform)
        return is_manifest(image.root.media_type) == is_one and (provenance.platform or "") == describe_choice(wanted)
    source = RememberingSource(image, layout.limits)
    try:
        return select_image(source, image.root, wanted, image.name, layout.limits).root.digest == image.root.digest
    except (PlatformNotFound, InvalidDocument):
        return False


def resolve_newer(repository: Headed, reference: Reference, held: HeldImage | None) -> Descriptor | None:
    """Return what the reference stands for at the registry; None where that would bring what is held.

    A HEAD is asked first, which costs nothing of what registries grant; where its answer is none, a GET.

    Raises:
        StoreError: as the repository's methods.
    """
    name = str(reference.digest or reference.tag)
    if held is not None:
        if reference.digest is not None:
            return None  # what a digest stands for does not change
        found = repository.head(name)
        if found is not None and found.digest in held.digests:
            return None
    root = repository.resolve(name)
    return None if held is not None and root.digest in held.digests else root


def recalled(source: BlobSource, layout: Layout, root: Descriptor) -> RememberingSource:
    """Return a source of an image that has documents and configs from the store, and asks ``source`` for the rest."""
    recalling = RememberingSource(source, layout.limits)
    with suppress(StoreError):  # somebody takes it away just now: the source is asked for what has not been read
        for node in walk(layout, root, limits=layout.limits):
            if node.content is not None:
                recalling.remember(node.descriptor.digest, node.content)
            elif is_config(node.descriptor.media_type):
                content = read_content(layout, node.descriptor, layout.limits)
                recalling.remember(node.descriptor.digest, content)
    return recalling
