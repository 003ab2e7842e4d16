"""OCI image layouts on disk: what a test gives to real tools, and reads back from them.

Written and read by the words of the specification alone, without ``minibox_store``.

Spec: OCI image-spec 1.1, image-layout.md.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.images import (
    OCI_INDEX,
    OCI_LAYER,
    BuiltImage,
    Document,
    build_image_over,
    digest_of,
    encode_document,
    iter_random_tar,
)

REFERENCE_NAME = "org.opencontainers.image.ref.name"


def write_layout(directory: Path, images: Mapping[str, BuiltImage]) -> None:
    """Write ``images`` by name as a fresh OCI image layout."""
    for image in images.values():
        for digest, content in image.blobs.items():
            path = blob_path(directory, digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    write_layout_files(directory, {name: image.root for name, image in images.items()})


def write_layout_files(directory: Path, roots: Mapping[str, Document]) -> None:
    """Write ``oci-layout`` and ``index.json``, with the descriptor of each root by its name."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = [{**root, "annotations": {REFERENCE_NAME: name}} for name, root in roots.items()]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    (directory / "oci-layout").write_bytes(encode_document({"imageLayoutVersion": "1.0.0"}))
    (directory / "index.json").write_bytes(encode_document(index))


def write_named_text(directory: Path, name: str, content: bytes = b"<about/>") -> str:
    """Let a layout name what is no image, as the specification's own example does, and return its digest."""
    digest = digest_of(content)
    blob_path(directory, digest).write_bytes(content)
    index = json.loads((directory / "index.json").read_bytes())
    entry = {"mediaType": "application/xml", "digest": digest, "size": len(content)}
    index["manifests"].append({**entry, "annotations": {REFERENCE_NAME: name}})
    (directory / "index.json").write_bytes(encode_document(index))
    return digest


def write_random_layout(
    directory: Path, layer_sizes_bytes: Sequence[int], *, name: str = "latest", salt: str = ""
) -> Document:
    """Write a layout with one image of big random layers, in memory of a few MiB, and return its root descriptor."""
    descriptors = [
        _write_random_blob(directory, size_bytes, f"{salt}/{number}")
        for number, size_bytes in enumerate(layer_sizes_bytes)
    ]
    image = build_image_over(descriptors, [str(layer["digest"]) for layer in descriptors], salt=salt)
    write_layout(directory, {name: image})
    return image.root


def read_layout_names(directory: Path) -> dict[str, Document]:
    """Return the named entries of a layout's index.json, by name."""
    entries = json.loads((directory / "index.json").read_bytes())["manifests"]
    named = [entry for entry in entries if REFERENCE_NAME in entry.get("annotations", {})]
    return {entry["annotations"][REFERENCE_NAME]: entry for entry in named}


def read_layout_blobs(directory: Path) -> dict[str, bytes]:
    """Return the bytes of each file below ``blobs/``, by the digest that its path spells."""
    files = [path for path in (directory / "blobs").glob("*/*") if path.is_file()]
    return {f"{path.parent.name}:{path.name}": path.read_bytes() for path in files}


def blob_path(directory: Path, digest: str) -> Path:
    """Return where a layout keeps a blob."""
    algorithm, _, encoded = digest.partition(":")
    return directory / "blobs" / algorithm / encoded


def _write_random_blob(directory: Path, size_bytes: int, salt: str) -> Document:
    folder = directory / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / "unnamed"
    hasher = hashlib.sha256()
    with unnamed.open("wb") as file:
        for piece in iter_random_tar(size_bytes, salt=salt):
            hasher.update(piece)
            file.write(piece)
    unnamed.rename(folder / hasher.hexdigest())
    return {"mediaType": OCI_LAYER, "digest": f"sha256:{hasher.hexdigest()}", "size": size_bytes}
