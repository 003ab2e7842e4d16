"""Archives of several images as other tools write them: OCI layouts, and docker's archives.

Nothing here knows ``minibox_store``. Each builder writes what the tool that it is called by writes, in its order.
"""

import gzip
import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tests.support.archive_forms import MARKER, REFERENCE_NAME, bare
from tests.support.archives import blob_name, special
from tests.support.images import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST, BuiltImage, Document, digest_of

AnyMembers = list[tuple[str | tarfile.TarInfo, bytes]]
DockerStyle = Literal["docker", "skopeo", "containerd", "crane"]
DOCKER_STYLES: tuple[DockerStyle, ...] = ("docker", "skopeo", "containerd", "crane")
CONTAINERD_NAME = "io.containerd.image.name"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"


def entry_of(image: BuiltImage, name: str | None = None, **annotations: str) -> Document:
    """Return an entry of index.json for an image; ``containerd`` is the name that containerd reads."""
    said = {REFERENCE_NAME: name} if name is not None else {}
    if "containerd" in annotations:
        said[CONTAINERD_NAME] = annotations["containerd"]
    return {**image.root, **({"annotations": said} if said else {})}


def index_json(entries: Sequence[Document]) -> bytes:
    """Return index.json of these entries."""
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()


def oci_members(entries: Sequence[Document], *images: BuiltImage) -> AnyMembers:
    """Return the members of an OCI layout with these entries, and all blobs of these images."""
    blobs = {digest: content for image in images for digest, content in image.blobs.items()}
    return [
        *((blob_name(digest), content) for digest, content in sorted(blobs.items())),
        ("index.json", index_json(entries)),
        ("oci-layout", MARKER),
    ]


def named_oci_members(images: Mapping[str, BuiltImage]) -> AnyMembers:
    """Return the members of an OCI layout of these images, each under its name."""
    return oci_members([entry_of(image, name) for name, image in images.items()], *images.values())


def plain_layers(image: BuiltImage) -> list[bytes]:
    """Return the layers of an image as tars, which is how docker keeps them."""
    contents = [image.blobs[digest] for digest in image.layer_digests]
    return [gzip.decompress(each) if each.startswith(b"\x1f\x8b\x08") else each for each in contents]


def made_manifest(image: BuiltImage, layers: Sequence[bytes]) -> bytes:
    """Return the OCI manifest that is made of a docker image whose layers are these bytes."""
    described = [{"mediaType": _media_type(each), "digest": digest_of(each), "size": len(each)} for each in layers]
    config = {
        "mediaType": OCI_CONFIG,
        "digest": image.config_digest,
        "size": len(image.blobs[image.config_digest]),
    }
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": described}
    return json.dumps(manifest, separators=(",", ":")).encode()


def _media_type(layer: bytes) -> str:
    if layer.startswith(b"\x28\xb5\x2f\xfd"):
        return OCI_LAYER_ZSTD
    return OCI_LAYER_GZIP if layer.startswith(b"\x1f\x8b\x08") else OCI_LAYER


def made_image(image: BuiltImage, style: DockerStyle) -> BuiltImage:
    """Return what an image has become once it came out of a docker archive of this style."""
    layers = layers_in(image, style)
    manifest = made_manifest(image, layers)
    config = image.blobs[image.config_digest]
    blobs = {digest_of(each): each for each in (*layers, config, manifest)}
    root = {"mediaType": OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    return BuiltImage(root=root, blobs=blobs, media_types={})


def layers_in(image: BuiltImage, style: DockerStyle) -> list[bytes]:
    """Return the layers of an image as a docker archive of this style has them."""
    if style in ("docker", "skopeo"):
        return plain_layers(image)
    return [image.blobs[digest] for digest in image.layer_digests]


class DockerArchive:
    """A docker archive under way: its members, and what manifest.json and repositories will say.

    ``docker`` writes a folder for each layer, as up to version 24, with a link where one comes again; ``skopeo``, and
    podman, files called by diffIDs with links to them from such folders; ``containerd``, and docker from 25 on, blobs;
    ``crane``, and what else is made with go-containerregistry, its own two spellings.
    """

    def __init__(self, style: DockerStyle) -> None:
        self.style = style
        self.members: AnyMembers = []
        self.images: list[dict[str, Any]] = []
        self.repositories: dict[str, dict[str, str]] = {}
        self._written: set[str] = set()

    def add(self, image: BuiltImage, *names: str, tags: bool = True) -> "DockerArchive":
        """Add an image under these names; without ``tags`` they stand in ``repositories`` alone."""
        config = image.blobs[image.config_digest]
        keys = [self._add_layer(image, position) for position in range(len(image.layer_digests))]
        config_name = {
            "docker": f"{bare(image.config_digest)}.json",
            "skopeo": f"{bare(image.config_digest)}.json",
            "containerd": blob_name(image.config_digest),
            "crane": image.config_digest,
        }[self.style]
        self._add(config_name, config)
        self.images.append({"Config": config_name, "RepoTags": list(names) if tags and names else None, "Layers": keys})
        for name in names if keys else ():
            repository, _, tag = name.rpartition(":")
            self.repositories.setdefault(repository, {})[tag] = self._identifier(image, len(keys) - 1)
        return self

    def finish(self) -> AnyMembers:
        """Return all members, manifest.json and repositories last."""
        return [
            *self.members,
            ("manifest.json", json.dumps(self.images).encode()),
            ("repositories", json.dumps(self.repositories).encode()),
        ]

    def _identifier(self, image: BuiltImage, position: int) -> str:
        chain = "".join(digest_of(each) for each in plain_layers(image)[: position + 1])
        last = image.config_digest if position == len(image.layer_digests) - 1 else ""
        return hashlib.sha256(f"{chain}{last}".encode()).hexdigest()

    def _add_layer(self, image: BuiltImage, position: int) -> str:
        content, identifier = layers_in(image, self.style)[position], self._identifier(image, position)
        digest = digest_of(content)
        match self.style:
            case "docker":
                key = f"{identifier}/layer.tar"
                first = f"docker {digest}"
                if first in self._written:
                    target = next(name for name, data in self.members if data == content)
                    self._add_link(key, f"../{target}")
                else:
                    self._add(key, content)
                    self._written.add(first)
            case "skopeo":
                key = f"{bare(digest)}.tar"
                self._add(key, content)
                self._add_link(f"{identifier}/layer.tar", f"../{key}")
            case "containerd":
                key = blob_name(digest)
                self._add(key, content)
            case "crane":
                key = f"{bare(digest)}.tar.gz"
                self._add(key, content)
        if self.style in ("docker", "skopeo"):
            self._add(f"{identifier}/VERSION", b"1.0")
            self._add(f"{identifier}/json", b'{"id": "of no use"}')
        return key

    def _add(self, name: str, content: bytes) -> None:
        if name not in self._written:
            self._written.add(name)
            self.members.append((name, content))

    def _add_link(self, name: str, target: str) -> None:
        if name not in self._written:
            self._written.add(name)
            self.members.append((special(name, tarfile.SYMTYPE, target), b""))


def docker_members(image: BuiltImage, *names: str, style: DockerStyle) -> AnyMembers:
    """Return the members of a docker archive of one image."""
    return DockerArchive(style).add(image, *names).finish()
