"""The JSON forms of what a store tells of itself as a whole, each beside its schema."""

from collections.abc import Iterator, Mapping
from typing import get_args

from minibox_server.api.descriptions import shown
from minibox_server.api.long_answers import encode_record
from minibox_server.schemas import (
    COUNT_SCHEMA,
    DIGEST_SCHEMA,
    FLAG_SCHEMA,
    TEXT_SCHEMA,
    list_of,
    one_of,
    or_null,
    record,
)
from minibox_store import (
    BlobUsage,
    Finding,
    FindingKind,
    ImageUsage,
    IndexRepair,
    RepairReport,
    StoreInfo,
    StoreUsage,
    __version__,
)

INFO_SCHEMA = record(
    {
        "version": TEXT_SCHEMA,
        "data_root": TEXT_SCHEMA,
        "durable": FLAG_SCHEMA,
        "hard_links": or_null(FLAG_SCHEMA),
        "images": COUNT_SCHEMA,
    }
)
USAGE_SCHEMA = record(
    {
        "total_bytes": COUNT_SCHEMA,
        "reclaimable_bytes": COUNT_SCHEMA,
        "blob_count": COUNT_SCHEMA,
        "images": list_of(
            record(
                {
                    "name": or_null(TEXT_SCHEMA),
                    "digest": DIGEST_SCHEMA,
                    "size_bytes": COUNT_SCHEMA,
                    "own_bytes": COUNT_SCHEMA,
                    "shared_bytes": COUNT_SCHEMA,
                }
            )
        ),
        "blobs": list_of(
            record(
                {
                    "digest": DIGEST_SCHEMA,
                    "size_bytes": COUNT_SCHEMA,
                    "kind": or_null(one_of("manifest", "config", "layer")),
                    "media_type": or_null(TEXT_SCHEMA),
                    "needed_by": COUNT_SCHEMA,
                    "images": list_of(TEXT_SCHEMA),
                }
            )
        ),
    }
)
FINDING_SCHEMA = record(
    {
        "kind": one_of(*get_args(FindingKind)),
        "path": TEXT_SCHEMA,
        "digest": or_null(DIGEST_SCHEMA),
        "names": list_of(TEXT_SCHEMA),
        "problem": TEXT_SCHEMA,
        "is_damage": FLAG_SCHEMA,
    }
)
FINDINGS_SCHEMA = record({"is_whole": FLAG_SCHEMA, "findings": list_of(FINDING_SCHEMA)})
REPAIR_SCHEMA = record(
    {
        "is_whole": FLAG_SCHEMA,
        "index": or_null(
            record(
                {
                    "generation": COUNT_SCHEMA,
                    "kept_aside": or_null(TEXT_SCHEMA),
                    "names": list_of(TEXT_SCHEMA),
                    "left_out": list_of(TEXT_SCHEMA),
                }
            )
        ),
        "mended": list_of(record({"finding": FINDING_SCHEMA, "origin": TEXT_SCHEMA})),
        "unmended": list_of(
            record(
                {
                    "finding": FINDING_SCHEMA,
                    "kept_aside": or_null(TEXT_SCHEMA),
                    "problems": list_of(TEXT_SCHEMA),
                    "is_needed": FLAG_SCHEMA,
                }
            )
        ),
        "lost_names": list_of(record({"name": TEXT_SCHEMA, "digest": DIGEST_SCHEMA, "generation": COUNT_SCHEMA})),
        "nameless": list_of(DIGEST_SCHEMA),
    }
)


def describe_info(info: StoreInfo, *, images: int) -> Mapping[str, object]:
    """Return what GET /system/info says."""
    return {
        "version": __version__,
        "data_root": shown(info.root),
        "durable": info.durable,
        "hard_links": info.hard_links,
        "images": images,
    }


def encode_usage(usage: StoreUsage) -> Iterator[bytes]:
    """Yield what GET /system/df says: whose the bytes are, and of the largest blobs who needs them."""
    return encode_record(
        {
            "total_bytes": usage.total_bytes,
            "reclaimable_bytes": usage.reclaimable_bytes,
            "blob_count": usage.blob_count,
        },
        {"images": map(_describe_image, usage.images), "blobs": map(_describe_blob, usage.blobs)},
    )


def describe_findings(findings: tuple[Finding, ...]) -> Mapping[str, object]:
    """Return what POST /system/verify says."""
    return {
        "is_whole": not any(each.is_damage for each in findings),
        "findings": [_describe_finding(each) for each in findings],
    }


def describe_repair(report: RepairReport) -> Mapping[str, object]:
    """Return what POST /system/repair says."""
    return {
        "is_whole": report.is_whole,
        "index": None if report.index is None else _describe_index(report.index),
        "mended": [{"finding": _describe_finding(each.finding), "origin": each.origin} for each in report.mended],
        "unmended": [
            {
                "finding": _describe_finding(each.finding),
                "kept_aside": each.kept_aside,
                "problems": list(map(shown, each.problems)),
                "is_needed": each.is_needed,
            }
            for each in report.unmended
        ],
        "lost_names": [
            {"name": each.name, "digest": str(each.descriptor.digest), "generation": each.generation}
            for each in report.lost_names
        ],
        "nameless": [str(each.digest) for each in report.nameless],
    }


def _describe_index(repair: IndexRepair) -> Mapping[str, object]:
    return {
        "generation": repair.generation,
        "kept_aside": repair.kept_aside,
        "names": list(repair.names),
        "left_out": list(repair.left_out),
    }


def _describe_image(usage: ImageUsage) -> Mapping[str, object]:
    return {
        "name": usage.name,
        "digest": str(usage.digest),
        "size_bytes": usage.size_bytes,
        "own_bytes": usage.own_bytes,
        "shared_bytes": usage.shared_bytes,
    }


def _describe_blob(usage: BlobUsage) -> Mapping[str, object]:
    return {
        "digest": str(usage.digest),
        "size_bytes": usage.size_bytes,
        "kind": usage.role,
        "media_type": usage.media_type,
        "needed_by": usage.needed_by,
        "images": list(usage.names),
    }


def _describe_finding(finding: Finding) -> Mapping[str, object]:
    return {
        "kind": finding.kind,
        "path": shown(finding.path),
        "digest": None if finding.digest is None else str(finding.digest),
        "names": list(finding.names),
        "problem": shown(finding.problem),
        "is_damage": finding.is_damage,
    }
