"""The JSON forms of what one image says of itself, each beside its schema. Its maker's words stand as they are."""

from collections.abc import Mapping

from minibox_server.api.descriptions import describe_image
from minibox_server.schemas import (
    COUNT_SCHEMA,
    DIGEST_SCHEMA,
    FLAG_SCHEMA,
    IMAGE_SCHEMA,
    TEXT_SCHEMA,
    extended,
    list_of,
    map_of,
    or_null,
    record,
)
from minibox_store import (
    Descriptor,
    HistoryEntry,
    ImageConfig,
    ImageDetails,
    LayerDetails,
    ManifestDetails,
    Platform,
)

_TEXT_OR_NULL = or_null(TEXT_SCHEMA)
BLOB_SCHEMA = record({"digest": DIGEST_SCHEMA, "media_type": TEXT_SCHEMA, "size_bytes": COUNT_SCHEMA})
STEP_SCHEMA = record(
    {
        "created": _TEXT_OR_NULL,
        "created_by": _TEXT_OR_NULL,
        "author": _TEXT_OR_NULL,
        "comment": _TEXT_OR_NULL,
        "empty_layer": FLAG_SCHEMA,
        "layer": or_null(BLOB_SCHEMA),
    }
)
_CONFIG_SCHEMA = record(
    {
        "created": _TEXT_OR_NULL,
        "author": _TEXT_OR_NULL,
        "user": _TEXT_OR_NULL,
        "exposed_ports": list_of(TEXT_SCHEMA),
        "env": list_of(TEXT_SCHEMA),
        "entrypoint": list_of(TEXT_SCHEMA),
        "cmd": list_of(TEXT_SCHEMA),
        "volumes": list_of(TEXT_SCHEMA),
        "working_dir": _TEXT_OR_NULL,
        "stop_signal": _TEXT_OR_NULL,
        "labels": map_of(TEXT_SCHEMA),
    }
)


_MANIFEST_SCHEMA = extended(
    BLOB_SCHEMA,
    {
        "platform": _TEXT_OR_NULL,
        "is_attestation": FLAG_SCHEMA,
        "artifact_type": _TEXT_OR_NULL,
        "annotations": map_of(TEXT_SCHEMA),
        "subject": or_null(BLOB_SCHEMA),
        "config_descriptor": BLOB_SCHEMA,
        "config": or_null(_CONFIG_SCHEMA),
        "layers": list_of(extended(BLOB_SCHEMA, {"diff_id": or_null(DIGEST_SCHEMA)})),
        "history": list_of(STEP_SCHEMA),
    },
)
DETAILS_SCHEMA = extended(
    IMAGE_SCHEMA,
    {
        "annotations": map_of(TEXT_SCHEMA),
        "manifests": list_of(_MANIFEST_SCHEMA),
        "absent": list_of(BLOB_SCHEMA),
    },
)


def describe_details(details: ImageDetails) -> Mapping[str, object]:
    """Return what GET /images/inspect says of an image: what GET /images does, and then each manifest."""
    return {
        **describe_image(details.image),
        "annotations": dict(details.document.annotations),
        "manifests": [_describe_manifest(each) for each in details.manifests],
        "absent": [_describe_blob(each) for each in details.absent],
    }


def describe_step(step: HistoryEntry) -> Mapping[str, object]:
    """Return what GET /images/history says of one step."""
    return {
        "created": step.created,
        "created_by": step.created_by,
        "author": step.author,
        "comment": step.comment,
        "empty_layer": step.empty_layer,
        "layer": None if step.layer is None else _describe_blob(step.layer),
    }


def _describe_manifest(manifest: ManifestDetails) -> Mapping[str, object]:
    return {
        **_describe_blob(manifest.descriptor),
        "platform": _describe_platform(manifest.platform),
        "is_attestation": manifest.is_attestation,
        "artifact_type": manifest.artifact_type,
        "annotations": dict(manifest.annotations),
        "subject": None if manifest.subject is None else _describe_blob(manifest.subject),
        "config_descriptor": _describe_blob(manifest.config_descriptor),
        "config": None if manifest.config is None else _describe_config(manifest.config),
        "layers": [_describe_layer(each) for each in manifest.layers],
        "history": [describe_step(each) for each in manifest.history],
    }


def _describe_layer(layer: LayerDetails) -> Mapping[str, object]:
    return {**_describe_blob(layer.descriptor), "diff_id": None if layer.diff_id is None else str(layer.diff_id)}


def _describe_config(config: ImageConfig) -> Mapping[str, object]:
    return {
        "created": config.created,
        "author": config.author,
        "user": config.user,
        "exposed_ports": list(config.exposed_ports),
        "env": list(config.env),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "volumes": list(config.volumes),
        "working_dir": config.working_dir,
        "stop_signal": config.stop_signal,
        "labels": dict(config.labels),
    }


def _describe_platform(platform: Platform | None) -> str | None:
    return None if platform is None else str(platform)


def _describe_blob(descriptor: Descriptor) -> Mapping[str, object]:
    return {
        "digest": str(descriptor.digest),
        "media_type": descriptor.media_type,
        "size_bytes": descriptor.size_bytes,
    }
