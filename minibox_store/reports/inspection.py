"""What a store tells of one image, down to the words of its configs, as values.

A layer stands beside what other documents say of it only where their numbers agree: of lists that differ in length
nobody can tell which layer is meant.
"""

from collections.abc import Mapping

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, HistoryEntry, ImageConfig
from minibox_store.platforms import Platform
from minibox_store.reports.images import Image
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class LayerDetails(Value):
    """One layer of a manifest.

    Attributes:
        descriptor: of the blob as it is stored, compressed or not.
        diff_id: the digest of its uncompressed tar, as the config says; None where the config has another number of
            them than the manifest has layers, or is none.
    """

    descriptor: Descriptor
    diff_id: Digest | None = None


@attrs.frozen(kw_only=True, repr=False)
class ManifestDetails(Value):
    """One manifest of an image: the image itself, or an entry of its index.

    Attributes:
        descriptor: as the index has it.
        platform: what the config says; what the index says, where the config says nothing.
        config_descriptor: of the config.
        config: all that it says; None where it is not the config of an image to run.
        layers: in the order in which they are applied.
        annotations: the manifest's own; those of its entry are the descriptor's.
        subject: what the manifest refers to.
        artifact_type: what it is, where it is no image.
    """

    descriptor: Descriptor
    platform: Platform | None
    config_descriptor: Descriptor
    config: ImageConfig | None
    layers: tuple[LayerDetails, ...]
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @property
    def is_attestation(self) -> bool:
        """Whether it describes another manifest of the index (BuildKit), and is no image to run."""
        return self.descriptor.is_attestation

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """How the image was made, the oldest step first, each with the layer that it made.

        Every layer of the manifest is in it once. Where the config speaks of another number of layers than the
        manifest has, its steps come first, without layers, and then the layers, of which nothing is said.

        Spec: OCI image-spec 1.1, config.md, "history".
        """
        steps = self.config.history if self.config is not None else ()
        layers = [layer.descriptor for layer in self.layers]
        if sum(not step.empty_layer for step in steps) != len(layers):
            return (*steps, *(HistoryEntry(layer=layer) for layer in layers))
        rest = iter(layers)
        return tuple(step if step.empty_layer else attrs.evolve(step, layer=next(rest)) for step in steps)


@attrs.frozen(kw_only=True, repr=False)
class ImageDetails(Value):
    """One image of a store, with all that its documents and configs say.

    Attributes:
        image: what the listing has of it.
        document: its manifest or index, with annotations and subject.
        manifests: the manifest; of an index each one, attestations too, as they stand in it, those of an index within
            it before the others; the one of a platform alone, where that was asked for.
        absent: manifests and indexes that an index of another tool names, and that were never fetched.
    """

    image: Image
    document: Document
    manifests: tuple[ManifestDetails, ...]
    absent: tuple[Descriptor, ...] = ()
