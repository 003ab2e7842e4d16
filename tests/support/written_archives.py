"""What this project's archives hold, in each form, by the words of the specifications alone.

Nothing here knows ``minibox_store``.
"""

import json
from collections.abc import Mapping
from typing import Any

from tests.support.archives import Members, blob_name, members_of, metadata
from tests.support.images import BuiltImage, encode_document
from tests.support.layouts import REFERENCE_NAME

CONTAINERD_NAME = "io.containerd.image.name"
FORMATS = ("minibox", "oci", "docker", "both")


def written_members(
    form: str, images: Mapping[str, BuiltImage], canonical: Mapping[str, str], tags: Mapping[str, str]
) -> Members:
    """Return the members that an archive of these images has, in their order.

    Args:
        form: of the archive.
        images: by name.
        canonical: of each name that is a reference, that reference.
        tags: of each name that Docker may be told, what it is told.
    """
    in_order = sorted(images.items())
    if form == "minibox":
        controls = [("meta.json", metadata(name, image.digest)) for name, image in in_order]
    else:
        controls = []
        if form != "docker":
            controls += [
                ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
                ("index.json", _index([_entry(name, image, canonical) for name, image in in_order])),
            ]
        if form != "oci":
            controls += [
                ("manifest.json", _manifest_json(in_order, tags)),
                ("repositories", _repositories(in_order, tags)),
            ]
    blobs: dict[str, bytes] = {}
    for _, image in in_order:
        documents = {blob_name(digest) for digest in image.document_digests}
        found = [(name, content) for name, content in members_of(image, "")[1:]]
        blobs.update((name, content) for name, content in found if form != "docker" or name not in documents)
    folders = () if form == "minibox" else ("blobs", *sorted({name.rpartition("/")[0] for name in blobs}))
    return [*controls, *((folder, b"") for folder in folders), *blobs.items()]


def _index(entries: list[dict[str, Any]]) -> bytes:
    kind = "application/vnd.oci.image.index.v1+json"
    return encode_document({"schemaVersion": 2, "mediaType": kind, "manifests": entries})


def _entry(name: str, image: BuiltImage, canonical: Mapping[str, str]) -> dict[str, Any]:
    names = {CONTAINERD_NAME: canonical[name]} if name in canonical else {}
    root = {key: image.root[key] for key in ("mediaType", "digest", "size")}
    return {**root, "annotations": {**names, REFERENCE_NAME: name}}


def _manifest_json(images: list[tuple[str, BuiltImage]], tags: Mapping[str, str]) -> bytes:
    entries: dict[str, dict[str, Any]] = {}
    for name, image in images:
        layers = [blob_name(digest) for digest in image.layer_digests]
        fresh = {"Config": blob_name(image.config_digest), "RepoTags": None, "Layers": layers}
        entry = entries.setdefault(image.digest, fresh)
        if name in tags and tags[name] not in (entry["RepoTags"] or []):
            entry["RepoTags"] = [*(entry["RepoTags"] or []), tags[name]]
    return json.dumps(list(entries.values()), separators=(",", ":")).encode()


def _repositories(images: list[tuple[str, BuiltImage]], tags: Mapping[str, str]) -> bytes:
    found: dict[str, dict[str, str]] = {}
    for name, image in images:
        if name in tags and image.layer_digests:
            repository, _, tag = tags[name].rpartition(":")
            found.setdefault(repository, {})[tag] = image.layer_digests[-1].partition(":")[2]
    return encode_document({key: dict(sorted(tags.items())) for key, tags in sorted(found.items())})
