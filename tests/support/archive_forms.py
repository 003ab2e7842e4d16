"""Archives of one image in each form that there is, member by member, as the tools write them.

The members are raw blocks, so that whoever wants to harm an archive may do it to any of them. Nothing here knows
``minibox_store``.

Spec: OCI image-spec 1.1, image-layout.md; moby image/spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.archives import Members, blob_name, members_of
from tests.support.images import BuiltImage, digest_of, encode_document
from tests.support.tars import END, padded, pax, raw_header

REFERENCE_NAME = "org.opencontainers.image.ref.name"
MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_NAME_BYTES = 100


@dataclass(frozen=True)
class Part:
    """One member. ``flag`` is its type, ``link`` the target of a link, ``size`` what it claims if not its size."""

    name: str
    content: bytes = b""
    flag: bytes = b"0"
    link: str = ""
    size: int | bytes | None = None

    def encode(self) -> bytes:
        """Return its blocks; a name or target that is too long for the header is told by PAX records."""
        name, link = os.fsencode(self.name), os.fsencode(self.link)
        long = [(key, value) for key, value in ((b"path", name), (b"linkpath", link)) if len(value) > _NAME_BYTES]
        header = raw_header(
            name[:_NAME_BYTES],
            flag=self.flag,
            size=len(self.content) if self.size is None else self.size,
            link=link[:_NAME_BYTES],
        )
        return (pax(long) if long else b"") + header + padded(self.content)


Parts = list[Part]


def pack_parts(parts: Sequence[Part]) -> bytes:
    """Return the archive of these members, without any padding behind its end."""
    return b"".join(part.encode() for part in parts) + END


def bare(digest: str) -> str:
    """Return the hexadecimal digits of a digest."""
    return digest.partition(":")[2]


def blob_parts(image: BuiltImage) -> Parts:
    """Return a member for each blob of an image, in the order in which a walk comes to them."""
    return _parts(members_of(image, "a:1")[1:])


def minibox_parts(image: BuiltImage, name: str) -> Parts:
    """Return the members of a minibox archive."""
    return _parts(members_of(image, name))


def oci_parts(image: BuiltImage, name: str) -> Parts:
    """Return the members of an OCI archive, as skopeo and podman write it."""
    return [Part("oci-layout", MARKER), Part("index.json", oci_index(image, name)), *blob_parts(image)]


def oci_index(image: BuiltImage, name: str, **fields: Any) -> bytes:
    """Return index.json of an OCI archive; ``fields`` take the place of those of its one entry."""
    entry = {**image.root, "annotations": {REFERENCE_NAME: name}, **fields}
    return encode_document({"schemaVersion": 2, "manifests": [entry]})


def docker_parts(image: BuiltImage, name: str) -> Parts:
    """Return the members of a docker-archive of plain layers, as skopeo writes it: nothing has its name twice."""
    layers = dict.fromkeys(image.layer_digests)
    return [
        *(Part(f"{bare(digest)}.tar", image.blobs[digest]) for digest in layers),
        Part(f"{bare(image.config_digest)}.json", image.blobs[image.config_digest]),
        Part("manifest.json", docker_manifest(image, name)),
    ]


def docker_manifest(image: BuiltImage, name: str, **fields: Any) -> bytes:
    """Return manifest.json of a docker-archive; ``fields`` take the place of those of its one image."""
    entry = {
        "Config": f"{bare(image.config_digest)}.json",
        "RepoTags": [name],
        "Layers": [f"{bare(digest)}.tar" for digest in image.layer_digests],
    }
    return encode_document([{**entry, **fields}])  # type: ignore[arg-type]  # an array is a document too, of docker


def older_docker_parts(image: BuiltImage, name: str) -> Parts:
    """Return the members of a docker-archive as docker wrote it for ten years: a folder for each layer.

    A layer that is there already is a link to it.
    """
    parts: Parts = []
    first: dict[str, str] = {}
    for number, digest in enumerate(image.layer_digests):
        folder = layer_id(number)
        parts += [Part(folder, flag=b"5"), Part(f"{folder}/VERSION", b"1.0"), Part(f"{folder}/json", b'{"id":"x"}')]
        if digest in first:
            parts.append(Part(f"{folder}/layer.tar", flag=b"2", link=f"../{first[digest]}/layer.tar"))
        else:
            first[digest] = folder
            parts.append(Part(f"{folder}/layer.tar", image.blobs[digest]))
    count = len(image.layer_digests)
    repository, _, tag = name.rpartition(":")
    layers = [f"{layer_id(number)}/layer.tar" for number in range(count)]
    return [
        Part(f"{bare(image.config_digest)}.json", image.blobs[image.config_digest]),
        *parts,
        Part("manifest.json", docker_manifest(image, name, Layers=layers)),
        Part("repositories", encode_document({repository: {tag: layer_id(count - 1)}})),
    ]


def layer_id(number: int) -> str:
    """Return what the folder of a layer is called, which promises nothing of what is in it."""
    return bare(digest_of(f"layer {number}".encode()))


def both_parts(image: BuiltImage, name: str) -> Parts:
    """Return the members of an archive that is both, as docker writes it since version 25."""
    named = docker_manifest(
        image,
        name,
        Config=blob_name(image.config_digest),
        Layers=[blob_name(digest) for digest in image.layer_digests],
    )
    repository, _, tag = name.rpartition(":")
    repositories = encode_document({repository: {tag: bare(image.layer_digests[-1])}})
    return [
        *(Part(folder, flag=b"5") for folder in ("blobs/", "blobs/sha256/")),
        *blob_parts(image),
        Part("index.json", oci_index(image, name)),
        Part("manifest.json", named),
        Part("oci-layout", MARKER),
        Part("repositories", repositories),
    ]


FORMS: dict[str, Callable[[BuiltImage, str], Parts]] = {
    "minibox": minibox_parts,
    "OCI": oci_parts,
    "docker": docker_parts,
    "older docker": older_docker_parts,
    "both": both_parts,
}


def replaced(parts: Sequence[Part], name: str, content: bytes) -> Parts:
    """Return the members with another content of one of them.

    Raises:
        ValueError: when there is none of that name.
    """
    if all(part.name != name for part in parts):
        raise ValueError(f"there is no {name}")
    return [Part(name, content) if part.name == name else part for part in parts]


def _parts(members: Members) -> Parts:
    return [Part(name, content) for name, content in members]


def decoded(parts: Sequence[Part], name: str) -> Any:
    """Return what one member says, decoded."""
    return json.loads(next(part.content for part in parts if part.name == name))
