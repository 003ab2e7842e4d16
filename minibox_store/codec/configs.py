"""Configs of images, as far as platforms are chosen and images listed by them.

A config is read in three ways. Platforms are chosen, and images listed, by a few fields, which are read alone: that is
cheap, and a fault in what only describes does no harm. Where something is done by the labels, they too are read alone.
Who wants all of a config gets all of it, or is told what is wrong. The last two ways are in
:mod:`minibox_store.codec.whole_configs`.

Spec: OCI image-spec 1.1, config.md.
"""

import attrs

from minibox_store.codec.strict import load_object, structure
from minibox_store.digest import Digest
from minibox_store.documents import ConfigSummary
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.platforms import Platform
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class Rootfs(Value):
    """The layers, as a config tells of them."""

    diff_ids: tuple[Digest, ...] = ()


@attrs.frozen(kw_only=True, repr=False)
class Config(Value):
    """The fields of a config by which it is found, as they stand in it."""

    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    created: str | None = None
    rootfs: Rootfs = attrs.field(factory=Rootfs)


def decode_config(content: bytes, document: str = "config", *, limits: Limits = DEFAULT_LIMITS) -> ConfigSummary:
    """Return what an image's configuration says of platform, age, layers and labels. The bytes are not trusted.

    Raises:
        InvalidDocument: when they are no JSON object, or a field of platform, age or layers has another type. Labels
            only describe, and no image is refused for them: one that is no text counts as none.

    Spec: OCI image-spec 1.1, config.md, "Properties".
    """
    value = load_object(content, document, limits.document_bytes, most_values=limits.document_values)
    config = structure(value, Config, document)
    return ConfigSummary(
        platform=platform_of(config),
        created=config.created,
        diff_ids=config.rootfs.diff_ids,
        labels=_labels_of(value),
    )


def platform_of(config: Config) -> Platform | None:
    """Return the platform that a config is for; None where it names none."""
    if config.os and config.architecture:
        return Platform(os=config.os, architecture=config.architecture, variant=config.variant or None)
    return None


def _labels_of(value: dict[str, object]) -> dict[str, str]:
    execution = value.get("config")
    labels = execution.get("Labels") if isinstance(execution, dict) else None
    return {key: text for key, text in labels.items() if type(text) is str} if isinstance(labels, dict) else {}
