"""Configs of images, the whole of them, and their labels where something is done by what those say.

Spec: OCI image-spec 1.1, config.md.
"""

from collections.abc import Mapping

import attrs

from minibox_store.codec.configs import Config, platform_of
from minibox_store.codec.strict import load_object, structure
from minibox_store.documents import HistoryEntry, ImageConfig
from minibox_store.errors import InvalidDocument
from minibox_store.limits import DEFAULT_LIMITS, Limits
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class _Execution(Value):
    user: str | None = None
    exposed_ports: frozenset[str] = frozenset()
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    volumes: frozenset[str] = frozenset()
    working_dir: str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    stop_signal: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class _Labels(Value):
    labels: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, repr=False)
class _Labelled(Value):
    config: _Labels = attrs.field(factory=_Labels)


@attrs.frozen(kw_only=True, repr=False)
class _Step(Value):
    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


@attrs.frozen(kw_only=True, repr=False)
class _WholeConfig(Config):
    os_version: str | None = None
    os_features: tuple[str, ...] = ()
    author: str | None = None
    config: _Execution = attrs.field(factory=_Execution)
    history: tuple[_Step, ...] = ()


def decode_labels(content: bytes, document: str = "config", *, limits: Limits = DEFAULT_LIMITS) -> Mapping[str, str]:
    """Return the labels of an image's configuration, and look at nothing else. The bytes are not trusted.

    Raises:
        InvalidDocument: when they are no JSON object, or its labels are no texts: who removes what lacks a label must
            not take one that cannot be read for none.

    >>> decode_labels(b'{"config": {"Labels": {"tier": "test"}}}')
    {'tier': 'test'}
    """
    value = load_object(content, document, limits.document_bytes, most_values=limits.document_values)
    return structure(value, _Labelled, document).config.labels


def decode_image_config(content: bytes, document: str = "config", *, limits: Limits = DEFAULT_LIMITS) -> ImageConfig:
    """Return all that an image's configuration says. The bytes are not trusted.

    Raises:
        InvalidDocument: when they are no JSON object, a field has another type, or there are more steps in the history
            than ``limits`` allow.

    Guarantees: where this one decodes, :func:`decode_config` does, and both say the same; the platform has its version
        and features here.

    Spec: OCI image-spec 1.1, config.md, "Properties".

    >>> decode_image_config(b'{"config": {"Env": ["HOME=/root"], "Cmd": null}}').env
    ('HOME=/root',)
    """
    value = load_object(content, document, limits.document_bytes, most_values=limits.document_values)
    steps = value.get("history")
    if isinstance(steps, list) and len(steps) > limits.history:
        raise InvalidDocument("history", f"there are more than {limits.history} steps", document)
    whole = structure(value, _WholeConfig, document)
    platform = platform_of(whole)
    if platform is not None:
        platform = attrs.evolve(platform, os_version=whole.os_version or None, os_features=whole.os_features)
    execution = whole.config
    return ImageConfig(
        platform=platform,
        created=whole.created,
        diff_ids=whole.rootfs.diff_ids,
        labels=execution.labels,
        author=whole.author,
        user=execution.user,
        exposed_ports=tuple(sorted(execution.exposed_ports)),
        env=execution.env,
        entrypoint=execution.entrypoint,
        cmd=execution.cmd,
        volumes=tuple(sorted(execution.volumes)),
        working_dir=execution.working_dir,
        stop_signal=execution.stop_signal,
        history=tuple(HistoryEntry(**attrs.asdict(step, recurse=False)) for step in whole.history),
    )
