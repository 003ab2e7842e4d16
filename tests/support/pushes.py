"""Images as they are pushed to a repository of a store: blob by blob, by the library."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minibox_store import Descriptor, Digest, LocalRepository, PushedManifest
from tests.support.images import OCI_LAYER, BuiltImage, build_image_over, digest_of, encode_document

EMPTY_CONFIG = b"{}"
HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS


def push_blob(repository: LocalRepository, content: bytes, algorithm: str = "sha256") -> Descriptor:
    """Push a blob in two pieces."""
    upload = repository.begin_upload()
    half = len(content) // 2
    for piece in (content[:half], content[half:]):
        repository.append_upload(upload.id, io.BytesIO(piece))
    return repository.finish_upload(upload.id, Digest.parse(digest_of(content, algorithm)))


def push_image(repository: LocalRepository, image: BuiltImage, *tags: str) -> PushedManifest:
    """Push an image, children first, by its digest or under these tags; return what was said of it last."""
    for digest, content in image.blobs.items():
        if digest not in image.document_digests:
            push_blob(repository, content, digest.partition(":")[0])
    for digest in image.document_digests:
        references: tuple[Mapping[str, Any], ...] = ({"digest": Digest.parse(digest)},)
        if digest == image.digest and tags:
            references = tuple({"tag": tag} for tag in tags)
        for reference in references:
            pushed = repository.put_manifest(image.blobs[digest], image.media_types[digest], **reference)
    return pushed


def pins_in(root: Path) -> list[Path]:
    """Return what pins blobs in the repositories of a store, because they were pushed or asked for."""
    return sorted((root / "ingest" / "pushed").glob("*/*"))


def make_old(*paths: Path, seconds: float = DAY_SECONDS + 60) -> None:
    """Let files have been written so much earlier than they were."""
    for path in paths:
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def manifest_over(*layers: Descriptor, config: Descriptor, **fields: Any) -> bytes:
    """Return a manifest of blobs that are described."""

    def describe(descriptor: Descriptor) -> dict[str, Any]:
        media_type, digest = descriptor.media_type, str(descriptor.digest)
        return {"mediaType": media_type, "digest": digest, "size": descriptor.size_bytes}

    return encode_document(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe(config),
            "layers": [describe(layer) for layer in layers],
            **fields,
        }
    )


def for_others(image: BuiltImage, *urls: str) -> BuiltImage:
    """Return an image of the same layers, each of which only others may give away, who have it at these addresses."""
    nondistributable = OCI_LAYER.replace(".layer.", ".layer.nondistributable.")
    layers = [{**each, "mediaType": nondistributable, "urls": list(urls)} for each in image.document()["layers"]]
    made = build_image_over(layers, json.loads(image.blobs[image.config_digest])["rootfs"]["diff_ids"])
    blobs = {each["digest"]: image.blobs[each["digest"]] for each in layers}
    kinds = dict.fromkeys(blobs, nondistributable)
    return BuiltImage(root=made.root, blobs={**blobs, **made.blobs}, media_types={**kinds, **made.media_types})
