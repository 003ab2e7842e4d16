"""JSON Schemas of what is answered: a few words to put them together, and those that every chapter shares.

A record may get further keys in time, as the contract says of answers, so no schema closes one; the tests hold what is
answered today to the keys that are declared.

Spec: JSON Schema 2020-12, as OpenAPI 3.1 has it.
"""

from collections.abc import Mapping

Schema = Mapping[str, object]

TEXT_SCHEMA: Schema = {"type": "string"}
COUNT_SCHEMA: Schema = {"type": "integer", "minimum": 0}
FLAG_SCHEMA: Schema = {"type": "boolean"}
DIGEST_SCHEMA: Schema = {"type": "string", "pattern": "^sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})$"}


def list_of(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    """Return the schema of what may be null too."""
    return {"anyOf": [schema, {"type": "null"}]}


def map_of(values: Schema) -> Schema:
    """Return the schema of an object whose keys are data."""
    return {"type": "object", "additionalProperties": values}


def one_of(*texts: str) -> Schema:
    """Return the schema of one of these texts."""
    return {"type": "string", "enum": list(texts)}


def record(fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object that has each of ``fields``, and may have each of ``optional``."""
    return {"type": "object", "properties": {**fields, **(optional or {})}, "required": list(fields)}


def extended(schema: Schema, fields: Mapping[str, Schema]) -> Schema:
    """Return the schema of a record that has further fields."""
    properties, needed = schema["properties"], schema["required"]
    assert isinstance(properties, Mapping)
    assert isinstance(needed, list)
    return {**schema, "properties": {**properties, **fields}, "required": [*needed, *fields]}


PROBLEM_SCHEMA = record(
    {"type": one_of("about:blank"), "title": TEXT_SCHEMA, "status": COUNT_SCHEMA, "detail": TEXT_SCHEMA},
)
DISTRIBUTION_ERRORS_SCHEMA = record(
    {"errors": {**list_of(record({"code": TEXT_SCHEMA, "message": TEXT_SCHEMA}, {"detail": {}})), "minItems": 1}},
)
IMAGE_SCHEMA = record(
    {
        "name": TEXT_SCHEMA,
        "size_bytes": COUNT_SCHEMA,
        "digest": DIGEST_SCHEMA,
        "media_type": TEXT_SCHEMA,
        "platform": or_null(TEXT_SCHEMA),
        "created": or_null(TEXT_SCHEMA),
        "layers": COUNT_SCHEMA,
    },
    {"platforms": list_of(TEXT_SCHEMA), "damaged": FLAG_SCHEMA},
)
PRUNE_SCHEMA = record(
    {
        "blobs_removed": COUNT_SCHEMA,
        "bytes_freed": COUNT_SCHEMA,
        "fuse_mounts_killed": COUNT_SCHEMA,
        "dry_run": FLAG_SCHEMA,
        "kept": list_of(TEXT_SCHEMA),
        "absent": list_of(DIGEST_SCHEMA),
        "errors": list_of(TEXT_SCHEMA),
    },
    {
        "build_cache_removed": COUNT_SCHEMA,
        "build_cache_bytes_freed": COUNT_SCHEMA,
        "plan": list_of(
            record(
                {
                    "kind": TEXT_SCHEMA,
                    "path": TEXT_SCHEMA,
                    "size_bytes": COUNT_SCHEMA,
                    "reason": TEXT_SCHEMA,
                    "age_seconds": or_null({"type": "number"}),
                }
            )
        ),
    },
)
VERSION_SCHEMA = record({})
