"""What a store tells of one image, as a value."""

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.platforms import Platform
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class Image(Value):
    """One named image of a store.

    Attributes:
        name: as it stands in index.json.
        descriptor: of the manifest or index that the name stands for.
        size_bytes: manifest, config and layers as their descriptors count them; of an index every document and
            each distinct blob once.
        platform: what the config says; None for an index, and where it says nothing, or more than 256 characters.
        platforms: of an index, those of its manifests; else ``platform`` alone, if there is one.
        created: the config's own text (RFC 3339 if it keeps to the specification), not trusted; None for an index, and
            where it has more than 64 characters.
        layers: how many layers; of an index, how many distinct ones.
        damaged: whether a manifest or index of the image cannot be read; the other fields are what is known then.
    """

    name: str
    descriptor: Descriptor
    size_bytes: int
    platform: Platform | None = None
    platforms: tuple[Platform, ...] = ()
    created: str | None = None
    layers: int = 0
    damaged: bool = False

    @property
    def digest(self) -> Digest:
        """The digest of the manifest or index."""
        return self.descriptor.digest
