"""Small real images as plain values, made by rule instead of kept as fixture files.

The same arguments give the same bytes. Nothing here knows ``minibox_store``: a builder that shared its
constants or its codec would agree with their mistakes.
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

Document = dict[str, Any]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
IN_TOTO = "application/vnd.in-toto+json"
EMPTY = "application/vnd.oci.empty.v1+json"
SIGNATURE = "application/vnd.example.signature.v1"
OLD_SIGNATURE = "application/vnd.example.signature.config.v1+json"
SBOM = "application/vnd.example.sbom.v1"

DOCUMENT_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_MANIFEST_LIST)

_CREATED = "2024-01-01T00:00:00Z"
_CHUNK_BYTES = 1024 * 1024
_TAR_BLOCK_BYTES = 512
_TAR_OVERHEAD_BYTES = 3 * _TAR_BLOCK_BYTES


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer as it is stored, with the digest of its uncompressed tar."""

    content: bytes
    media_type: str
    diff_id: str


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image: the descriptor of its root, and each blob of its graph by digest.

    ``root`` has ``mediaType``, ``digest`` and ``size``; ``media_types`` has the type of each blob.
    """

    root: Document
    blobs: dict[str, bytes]
    media_types: dict[str, str]

    @property
    def digest(self) -> str:
        """The digest of the root."""
        return str(self.root["digest"])

    @property
    def media_type(self) -> str:
        """The media type of the root."""
        return str(self.root["mediaType"])

    @property
    def size_bytes(self) -> int:
        """The size of the whole graph, each blob once."""
        return sum(len(content) for content in self.blobs.values())

    @property
    def is_index(self) -> bool:
        """Whether the root is an index or a manifest list."""
        return self.media_type in INDEX_TYPES

    @property
    def document_digests(self) -> list[str]:
        """The digests of all indexes and manifests, which a registry serves as manifests."""
        return [digest for digest, media_type in self.media_types.items() if media_type in DOCUMENT_TYPES]

    @property
    def config_digest(self) -> str:
        """The digest of the configuration; the root must be a manifest."""
        return str(self.document()["config"]["digest"])

    @property
    def layer_digests(self) -> list[str]:
        """The digests of the layers in order; the root must be a manifest."""
        return [str(layer["digest"]) for layer in self.document()["layers"]]

    @property
    def platform(self) -> Document | None:
        """The platform that the configuration names; None where the root is an index."""
        if self.is_index:
            return None
        config = json.loads(self.blobs[self.config_digest])
        return {key: config[key] for key in ("architecture", "os", "variant") if key in config}

    def document(self, digest: str | None = None) -> Document:
        """Return the decoded document of this digest, of the root when there is none."""
        decoded: Document = json.loads(self.blobs[digest or self.digest])
        return decoded

    def without(self, *digests: str) -> "BuiltImage":
        """Return this image with some blobs missing, though its documents still name them."""
        return replace(
            self,
            blobs={digest: content for digest, content in self.blobs.items() if digest not in digests},
            media_types={digest: kind for digest, kind in self.media_types.items() if digest not in digests},
        )

    def corrupted(self, digest: str) -> "BuiltImage":
        """Return this image with other bytes of the same length behind one digest."""
        content = bytearray(self.blobs[digest])
        content[len(content) // 2] ^= 0xFF
        return replace(self, blobs={**self.blobs, digest: bytes(content)})


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of ``content`` as ``algorithm:hex``."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def encode_document(document: Mapping[str, Any], *, docker: bool = False) -> bytes:
    """Return a document's bytes, compact as OCI tools write them or indented as docker does.

    The two spellings differ so that a program which encodes a document anew breaks a digest.
    """
    if docker:
        return json.dumps(document, indent=3).encode()
    return json.dumps(document, separators=(",", ":")).encode()


def build_layer(files: Mapping[str, bytes], *, compressed: bool = True, docker: bool = False) -> Layer:
    """Return a layer that holds ``files`` by path and the directories above them; ``name/`` is a directory."""
    tar = _tar_of(files)
    plain, gzipped = (DOCKER_LAYER, DOCKER_LAYER_GZIP) if docker else (OCI_LAYER, OCI_LAYER_GZIP)
    content = gzip.compress(tar, mtime=0) if compressed else tar
    return Layer(content=content, media_type=gzipped if compressed else plain, diff_id=digest_of(tar))


def iter_random_tar(size_bytes: int, *, salt: str = "") -> Iterator[bytes]:
    """Yield a tar of exactly ``size_bytes``, which holds one file of random bytes, in pieces of up to 1 MiB.

    Raises:
        ValueError: unless the size is a multiple of 512, and at least 2,048.
    """
    if size_bytes % _TAR_BLOCK_BYTES or size_bytes < _TAR_OVERHEAD_BYTES + _TAR_BLOCK_BYTES:
        raise ValueError(f"no tar has {size_bytes} bytes")
    member = tarfile.TarInfo("random")
    member.size = remaining = size_bytes - _TAR_OVERHEAD_BYTES
    yield member.tobuf(tarfile.USTAR_FORMAT)
    source = random.Random(f"{salt}/{size_bytes}")
    while remaining:
        piece = source.randbytes(min(_CHUNK_BYTES, remaining))
        remaining -= len(piece)
        yield piece
    yield bytes(2 * _TAR_BLOCK_BYTES)


def random_layer(size_bytes: int, *, salt: str = "", docker: bool = False) -> Layer:
    """Return an uncompressed layer of exactly ``size_bytes`` random bytes, for which compression is of no use."""
    content = b"".join(iter_random_tar(size_bytes, salt=salt))
    return Layer(content=content, media_type=DOCKER_LAYER if docker else OCI_LAYER, diff_id=digest_of(content))


def build_image(
    layers: Sequence[Mapping[str, bytes] | Layer] | None = None,
    *,
    platform: str = "linux/amd64",
    docker: bool = False,
    salt: str = "",
    compressed: bool = True,
    algorithm: str = "sha256",
    annotations: Mapping[str, str] | None = None,
    subject: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> BuiltImage:
    """Return an image of one platform.

    Args:
        layers: Files by path for each layer, or finished layers; when None, two small ones that differ by salt
            and platform. Two images with equal layers share those blobs whatever their salt.
        platform: ``os/architecture`` or ``os/architecture/variant``.
        docker: Use Docker's schema 2 media types.
        salt: Makes the configuration, and so the manifest, another one.
        compressed: Gzip the layers that are given as files.
        algorithm: The digest algorithm of every blob.
        annotations: Those of the manifest.
        subject: The descriptor that the manifest refers to.
        config: Fields of the configuration that take the place of the usual ones.
    """
    contents = _default_layers(platform, salt) if layers is None else layers
    built = [
        item if isinstance(item, Layer) else build_layer(item, compressed=compressed, docker=docker)
        for item in contents
    ]
    parts = _Parts(algorithm)
    descriptors = [parts.add(layer.content, layer.media_type) for layer in built]
    image = build_image_over(
        descriptors,
        [layer.diff_id for layer in built],
        platform=platform,
        docker=docker,
        salt=salt,
        algorithm=algorithm,
        annotations=annotations,
        subject=subject,
        config=config,
    )
    parts.merge(image)
    return parts.finish(image.blobs[image.digest], image.media_type)


def build_image_over(
    layers: Sequence[Document],
    diff_ids: Sequence[str],
    *,
    platform: str = "linux/amd64",
    docker: bool = False,
    salt: str = "",
    algorithm: str = "sha256",
    annotations: Mapping[str, str] | None = None,
    subject: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> BuiltImage:
    """Return an image without its layers, of which only the descriptors are known; see :func:`build_image`."""
    parts = _Parts(algorithm)
    configuration = encode_document({**_config(platform, salt, diff_ids), **(config or {})}, docker=docker)
    manifest: Document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": parts.add(configuration, DOCKER_CONFIG if docker else OCI_CONFIG),
        "layers": list(layers),
    }
    if subject is not None:
        manifest["subject"] = dict(subject)
    if annotations:
        manifest["annotations"] = dict(annotations)
    return parts.finish(encode_document(manifest, docker=docker), manifest["mediaType"])


def build_index(
    images: Sequence[BuiltImage],
    *,
    attestations: bool = False,
    docker: bool = False,
    nested: int = 0,
    subject: Document | None = None,
) -> BuiltImage:
    """Return an index of ``images``, which may be indexes themselves.

    Args:
        images: The children, in this order.
        attestations: Add one attestation manifest of platform ``unknown/unknown`` for each image, as BuildKit does.
        docker: Make it a Docker manifest list.
        nested: Wrap the index in so many further indexes of one entry each.
        subject: The descriptor of what it refers to.
    """
    parts = _Parts("sha256")
    entries: list[Document] = []
    for image in images:
        parts.merge(image)
        platform = image.platform
        entries.append({**image.root, **({"platform": platform} if platform else {})})
    for image in images if attestations else ():
        attestation = _attestation(image)
        parts.merge(attestation)
        entries.append(
            {
                **attestation.root,
                "annotations": {
                    "vnd.docker.reference.digest": image.digest,
                    "vnd.docker.reference.type": "attestation-manifest",
                },
                "platform": {"architecture": "unknown", "os": "unknown"},
            }
        )
    media_type = DOCKER_MANIFEST_LIST if docker else OCI_INDEX
    for _ in range(nested):
        inner = encode_document({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}, docker=docker)
        entries = [parts.add(inner, media_type)]
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    if subject is not None:
        document["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
    return parts.finish(encode_document(document, docker=docker), media_type)


def build_artifact(
    subject: Mapping[str, Any] | None,
    *,
    kind: str | None = SIGNATURE,
    content: bytes = b"signed",
    annotations: Mapping[str, str] | None = None,
) -> BuiltImage:
    """Return what is no image to run, and refers to one, as signers and scanners make it.

    Args:
        subject: The descriptor of what it refers to.
        kind: Its artifact type; None for none, so that its config's type counts.
        content: Its only layer.
        annotations: Those of the manifest.
    """
    parts = _Parts("sha256")
    manifest: Document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        **({"artifactType": kind} if kind is not None else {}),
        "config": parts.add(b"{}", EMPTY if kind is not None else OLD_SIGNATURE),
        "layers": [parts.add(content, "application/octet-stream")],
    }
    if subject is not None:
        manifest["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
    if annotations:
        manifest["annotations"] = dict(annotations)
    return parts.finish(encode_document(manifest), OCI_MANIFEST)


class _Parts:
    """Collects the blobs of one image."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._blobs: dict[str, bytes] = {}
        self._media_types: dict[str, str] = {}

    def add(self, content: bytes, media_type: str) -> Document:
        digest = digest_of(content, self._algorithm)
        self._blobs[digest] = content
        self._media_types[digest] = media_type
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def merge(self, image: BuiltImage) -> None:
        self._blobs.update(image.blobs)
        self._media_types.update(image.media_types)

    def finish(self, root: bytes, media_type: str) -> BuiltImage:
        descriptor = self.add(root, media_type)
        return BuiltImage(root=descriptor, blobs=self._blobs, media_types=self._media_types)


def _default_layers(platform: str, salt: str) -> list[Mapping[str, bytes]]:
    stamp = f"{platform} {salt}\n".encode()
    return [
        {"etc/hostname": b"minibox\n", "etc/platform": stamp},
        {"bin/hello": b"#!/bin/sh\necho hello\n", "srv/data": stamp * 100},
    ]


def _config(platform: str, salt: str, diff_ids: Sequence[str]) -> Document:
    system, architecture, *variant = platform.split("/")
    config: Document = {"created": _CREATED, "architecture": architecture, "os": system}
    if variant:
        config["variant"] = variant[0]
    config["config"] = {"Env": ["PATH=/bin"], "Cmd": ["/bin/hello"], "Labels": {"salt": salt}}
    config["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    config["history"] = [{"created": _CREATED, "created_by": f"layer {number}"} for number in range(len(diff_ids))]
    return config


def _attestation(image: BuiltImage) -> BuiltImage:
    statement = encode_document(
        {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": "image", "digest": {"sha256": image.digest.partition(":")[2]}}],
            "predicate": {},
        }
    )
    parts = _Parts("sha256")
    rootfs = {"type": "layers", "diff_ids": [digest_of(statement)]}
    config = encode_document({"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs})
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": parts.add(config, OCI_CONFIG),
        "layers": [parts.add(statement, IN_TOTO)],
    }
    return parts.finish(encode_document(manifest), OCI_MANIFEST)


def _tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    parents = {
        f"{parent}/" for path in files for parent in PurePosixPath(path).parents if str(parent) not in (".", "/")
    }
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(parents | set(files)):
            member = tarfile.TarInfo(path.rstrip("/"))
            if path.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.size, member.mode = len(files[path]), 0o755 if path.startswith("bin/") else 0o644
                tar.addfile(member, io.BytesIO(files[path]))
    return buffer.getvalue()
