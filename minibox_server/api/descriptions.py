"""The JSON forms of what the store tells: each value of the library in one place."""

from collections.abc import Mapping

import attrs

from minibox_store import Image, PruneReport


def shown(text: str) -> str:
    r"""Return a text that may have the name of a file in it; what is no UTF-8 there is shown as such.

    >>> shown("tmp-\udcff")
    'tmp-\\udcff'
    """
    return text.encode(errors="backslashreplace").decode()


def describe_image(image: Image) -> Mapping[str, object]:
    """Return what GET /images says of an image."""
    described: dict[str, object] = {
        "name": image.name,
        "size_bytes": image.size_bytes,
        "digest": str(image.digest),
        "media_type": image.descriptor.media_type,
        "platform": None if image.platform is None else str(image.platform),
        "created": image.created,
        "layers": image.layers,
    }
    if image.platform is None:
        described["platforms"] = [str(platform) for platform in image.platforms]
    if image.damaged:
        described["damaged"] = True
    return described


def describe_report(report: PruneReport, *, build_cache: bool) -> Mapping[str, object]:
    """Return what POST /system/prune says of a collection; of a dry run, with everything that it would remove."""
    described: dict[str, object] = {
        "blobs_removed": report.blobs_removed,
        "bytes_freed": report.bytes_freed,
        "fuse_mounts_killed": report.fuse_mounts_killed,
        "dry_run": report.dry_run,
        "kept": [shown(each) for each in report.kept],
        "absent": [str(digest) for digest in report.absent],
        "errors": [shown(each) for each in report.errors],
    }
    if build_cache:
        described["build_cache_removed"] = report.build_cache_removed
        described["build_cache_bytes_freed"] = report.build_cache_bytes_freed
    if report.dry_run:
        plan = [attrs.evolve(each, path=shown(each.path), reason=shown(each.reason)) for each in report.removed]
        described["plan"] = [attrs.asdict(each) for each in plan]
    return described
