"""Media types of the documents and blobs of images, and what each one is.

Spec: OCI image-spec 1.1, media-types.md, and Docker's Image Manifest Version 2, Schema 2.
"""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA_1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCTET_STREAM = "application/octet-stream"

INDEXES = (OCI_INDEX, DOCKER_MANIFEST_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
DOCUMENTS = frozenset({*INDEXES, *MANIFESTS})
SCHEMA_1 = (DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_SIGNED)
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
NONDISTRIBUTABLE_PREFIXES = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
LAYER_PREFIXES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")

# Types that say nothing of the document; registries behind generic web servers send them, and files in S3.
GENERIC = ("application/json", OCTET_STREAM, "binary/octet-stream", "text/plain", "")


def essence(header: str) -> str:
    """Return a Content-Type without its parameters, in lower case.

    >>> essence("Application/JSON; charset=utf-8")
    'application/json'
    """
    return header.partition(";")[0].strip().lower()


def is_index(media_type: str) -> bool:
    """Whether this is an OCI index or a Docker manifest list."""
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    """Whether this is an OCI manifest or a Docker schema 2 manifest, of one image."""
    return media_type in MANIFESTS


def is_document(media_type: str) -> bool:
    """Whether a blob of this type has children: it is walked, and fetched as a manifest."""
    return media_type in DOCUMENTS


def is_config(media_type: str) -> bool:
    """Whether this is the configuration of a runnable image."""
    return media_type in CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether this is a tar of files, compressed or not, that can be unpacked: no attestation, nothing encrypted.

    >>> is_layer("application/vnd.oci.image.layer.v1.tar+zstd"), is_layer("application/vnd.in-toto+json")
    (True, False)
    """
    return media_type.startswith(LAYER_PREFIXES) and not media_type.endswith("+encrypted")


def is_nondistributable(media_type: str) -> bool:
    """Whether this is a layer that is to be had from those alone who may give it to others.

    >>> is_nondistributable("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    True

    Spec: OCI image-spec 1.1, layer.md, "Non-Distributable Layers".
    """
    return media_type.startswith(NONDISTRIBUTABLE_PREFIXES)
