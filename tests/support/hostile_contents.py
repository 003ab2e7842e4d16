"""Tables of contents that nobody may believe, in code: what an archive of each form may say of its images.

Each attack makes a whole archive. The name of each begins with the row of the table of attacks that it belongs to.
Nothing here knows ``minibox_store``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.archive_forms import (
    MARKER,
    REFERENCE_NAME,
    Part,
    Parts,
    bare,
    blob_parts,
    both_parts,
    docker_manifest,
    docker_parts,
    layer_id,
    minibox_parts,
    oci_index,
    oci_parts,
    older_docker_parts,
    pack_parts,
    replaced,
)
from tests.support.archives import blob_name, metadata
from tests.support.hostile_archives import HEX, IMAGE, NAME, OTHER
from tests.support.images import OCI_INDEX, OCI_MANIFEST, BuiltImage, Document, digest_of, encode_document

_BAD_DIGESTS = {
    "a digest that leads out": "sha256:../../../../etc/passwd",
    "a digest that is too short": f"sha256:{HEX[1:]}",
    "a digest in capitals": f"sha256:{HEX.upper()}",
    "a digest of another algorithm": f"md5:{HEX[:32]}",
    "a digest with a NUL": f"sha256:{HEX[:-1]}\0",
    "a digest of other digits": f"sha256:{HEX[:-1]}\u0663",
    "a digest that the archive has not": f"sha256:{HEX}",
}
_BAD_NAMES = {
    "no text at all": "",
    "a name that leads out": "../../etc/passwd",
    "an absolute name": "/etc/passwd",
    "a name with a line break": "app:1\nLoaded",
    "a name with an escape": "app\x1b[2J:1",
    "a name with a NUL": "app\0:1",
    "a name of a thousand characters": "a" * 1000,
    "a name with a space": "a b:1",
}
_NO_LISTS: list[Any] = [None, "x", {}, [5], [None], [[]]]
_NO_TEXTS: list[Any] = [None, 5, {}, []]
_BAD_SIZES = (-1, 1 << 53, 1.5, True, "10", None)
_OUTSIDE = (
    "/etc/passwd",
    "../../etc/passwd",
    "..",
    ".",
    "",
    "meta.json",
    "index.json",
    f"{HEX}/json",
    f"{HEX}/layer.tar",
)


def _minibox(content: bytes) -> bytes:
    return pack_parts(replaced(minibox_parts(IMAGE, NAME), "meta.json", content))


def _oci(content: bytes) -> bytes:
    return pack_parts([*replaced(oci_parts(IMAGE, NAME), "index.json", content), *_others()])


def _others() -> Parts:
    """Return the blobs of the other image that this one has not."""
    return [part for part in blob_parts(OTHER) if part.name not in {each.name for each in blob_parts(IMAGE)}]


def _entry(**fields: Any) -> bytes:
    return _oci(oci_index(IMAGE, NAME, **fields))


def _named(image: BuiltImage) -> Document:
    return {**image.root, "annotations": {REFERENCE_NAME: NAME}}


def _index_of(*entries: Document) -> bytes:
    return encode_document({"schemaVersion": 2, "manifests": list(entries)})


def _docker(content: bytes) -> bytes:
    return pack_parts(replaced(docker_parts(IMAGE, NAME), "manifest.json", content))


def _said(**fields: Any) -> bytes:
    return _docker(docker_manifest(IMAGE, NAME, **fields))


def _document(content: bytes) -> bytes:
    """Return an OCI archive whose manifest, under its own digest, is this."""
    entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(content), "size": len(content)}
    return _oci(oci_index(IMAGE, NAME, **entry))[:-1024] + pack_parts([Part(blob_name(digest_of(content)), content)])


def _two_images(first: str, second: str | None) -> bytes:
    """Return a docker-archive of both images under these names."""
    tags = [] if second is None else [second]
    entries = (docker_manifest(IMAGE, first)[1:-1], docker_manifest(OTHER, NAME, RepoTags=tags)[1:-1])
    parts = [*docker_parts(IMAGE, NAME)[:-1], *docker_parts(OTHER, NAME)[:-1]]
    return pack_parts([*parts, Part("manifest.json", b"[" + b",".join(entries) + b"]")])


def _manifest(**fields: Any) -> bytes:
    return _document(encode_document({**IMAGE.document(), **fields}))


def _linked(*links: tuple[str, str, bytes]) -> bytes:
    """Return an older docker-archive whose last layer is reached through these links."""
    parts = [part for part in older_docker_parts(IMAGE, NAME) if part.name != f"{layer_id(2)}/layer.tar"]
    return pack_parts([*parts, *(Part(name, flag=flag, link=target) for name, target, flag in links)])


def _last(target: str, flag: bytes = b"2") -> bytes:
    return _linked((f"{layer_id(2)}/layer.tar", target, flag))


def _chain(length: int, end: str) -> bytes:
    names = [f"{layer_id(2 + number)}/layer.tar" for number in range(length)]
    return _linked(*((name, f"../{target}", b"2") for name, target in zip(names, [*names[1:], end], strict=True)))


def _conflicting(**contents: bytes) -> bytes:
    """Return an archive that is both, of two images, in which the tables of contents tell of different ones."""
    parts = both_parts(IMAGE, NAME)
    for name, content in contents.items():
        parts = [part for part in parts if part.name != name.replace("_", ".")] + [
            Part(name.replace("_", "."), content)
        ]
    return pack_parts([*parts, *_others()])


def _docker_of_other(name: str) -> bytes:
    layers = [blob_name(digest) for digest in OTHER.layer_digests]
    return docker_manifest(OTHER, name, Config=blob_name(OTHER.config_digest), Layers=layers)


_TARS = [f"{bare(digest)}.tar" for digest in IMAGE.layer_digests]
_CONFIG = IMAGE.document()["config"]
_LAYERS = IMAGE.document()["layers"]
_NO_DOCUMENTS = {
    "nothing": b"",
    "no JSON": b"\x7fELF",
    "no text": b"\xff\xfe",
    "a number": b"5",
    "null": b"null",
    "NaN": b"[NaN]",
    "depth without end": b"[" * 100_000,
    "a key twice": b'{"schemaVersion":2,"schemaVersion":2,"manifests":[]}',
    "more than 4 MiB": b"[" + b" " * (4 << 20) + b"]",
    "an empty array": b"[]",
    "an empty object": b"{}",
}

Build = Callable[[], bytes]

MINIBOX: dict[str, Build] = {
    **{f"S6 meta.json of {what}": partial(_minibox, content) for what, content in _NO_DOCUMENTS.items()},
    **{f"S4 {what}": partial(_minibox, metadata(NAME, text)) for what, text in _BAD_DIGESTS.items()},
    **{f"S6 {what}": partial(_minibox, metadata(text, IMAGE.digest)) for what, text in _BAD_NAMES.items()},
    "S6 a config for a manifest": partial(_minibox, metadata(NAME, IMAGE.config_digest)),
    "S6 a layer for a manifest": partial(_minibox, metadata(NAME, IMAGE.layer_digests[0])),
}
OCI: dict[str, Build] = {
    **{f"S6 index.json of {what}": partial(_oci, content) for what, content in _NO_DOCUMENTS.items()},
    **{f"S4 {what}": partial(_entry, digest=text) for what, text in _BAD_DIGESTS.items()},
    **{
        f"S4 a config of {what}": partial(_manifest, config={**_CONFIG, "digest": v})
        for what, v in _BAD_DIGESTS.items()
    },
    **{f"S4 a layer of {w}": partial(_manifest, layers=[{**_LAYERS[0], "digest": v}]) for w, v in _BAD_DIGESTS.items()},
    **{f"S6 {w}": partial(_entry, annotations={REFERENCE_NAME: v}) for w, v in _BAD_NAMES.items()},
    **{
        f"S6 {what}, as containerd has it": partial(_entry, annotations={"io.containerd.image.name": text})
        for what, text in _BAD_NAMES.items()
    },
    **{f"S26 the size {size!r}": partial(_entry, size=size) for size in _BAD_SIZES},
    **{f"S26 a config of the size {v!r}": partial(_manifest, config={**_CONFIG, "size": v}) for v in _BAD_SIZES},
    "S6 a size that is too small": partial(_entry, size=len(IMAGE.blobs[IMAGE.digest]) - 1),
    "S6 a size that is too large": partial(_entry, size=len(IMAGE.blobs[IMAGE.digest]) + 1),
    "S5 a manifest that is called an index": partial(_entry, mediaType=OCI_INDEX),
    "S5 a document that is both": partial(_manifest, manifests=[]),
    "S5 a document with an index's type": partial(_manifest, mediaType=OCI_INDEX),
    "S5 a document with a key twice": partial(_document, IMAGE.blobs[IMAGE.digest][:-1] + b',"config":{}}'),
    "S5 a document with more behind it": partial(_document, IMAGE.blobs[IMAGE.digest] + b"{}"),
    "S6 a config for a manifest": partial(_entry, digest=IMAGE.config_digest, size=_CONFIG["size"]),
    "S6 a type that no image has": partial(_entry, mediaType="text/plain"),
    "S6 two images of one name": partial(_oci, _index_of(_named(IMAGE), _named(OTHER))),
    "S6 an image without a name": partial(_oci, _index_of(IMAGE.root)),
    "S6 no image": partial(_oci, _index_of()),
    "S6 a marker of another version": lambda: pack_parts(
        replaced(oci_parts(IMAGE, NAME), "oci-layout", MARKER.replace(b"1.0.0", b"2.0.0"))
    ),
    "S6 a marker that is none": lambda: pack_parts(replaced(oci_parts(IMAGE, NAME), "oci-layout", b"[]")),
    "S7 a document of more than 4 MiB": partial(_manifest, annotations={"a": "x" * (4 << 20)}),
    "S7 513 layers": partial(_manifest, layers=[_LAYERS[0]] * 513),
}
DOCKER: dict[str, Build] = {
    **{f"S6 manifest.json of {what}": partial(_docker, content) for what, content in _NO_DOCUMENTS.items()},
    **{f"S4 a config at {path!r}": partial(_said, Config=path) for path in _OUTSIDE},
    **{f"S4 a layer at {path!r}": partial(_said, Layers=[path, *_TARS[1:]]) for path in _OUTSIDE},
    **{f"S6 {what}": partial(_said, RepoTags=[text]) for what, text in _BAD_NAMES.items()},
    **{f"S6 layers that are {value!r}": partial(_said, Layers=value) for value in _NO_LISTS},
    **{f"S6 a config that is {value!r}": partial(_said, Config=value) for value in _NO_TEXTS},
    **{f"S6 names that are {value!r}": partial(_said, RepoTags=value) for value in _NO_LISTS[1:]},
    "S6 a layer too few": partial(_said, Layers=_TARS[:-1]),
    "S6 a layer too many": partial(_said, Layers=[*_TARS, _TARS[0]]),
    "S6 layers in another order": partial(_said, Layers=[_TARS[1], _TARS[0], _TARS[1]]),
    "S6 a layer for a config": partial(_said, Config=f"{bare(IMAGE.layer_digests[0])}.tar"),
    "S6 one name of two images": lambda: _two_images(NAME, NAME),
    "S6 one image with a name and one without": lambda: _two_images(NAME, None),
    "S6 the same layer member twice": lambda: pack_parts([*docker_parts(IMAGE, NAME), docker_parts(IMAGE, NAME)[0]]),
    **{
        f"S16 a {kind} to {target!r}": partial(_last, target, flag)
        for target in (*_OUTSIDE, "../../etc/passwd", "layer.tar", f"../../{layer_id(0)}/layer.tar", "../x/layer.tar")
        for kind, flag in (("symlink", b"2"), ("hard link", b"1"))
    },
    **{f"S16 a layer that is of type {flag!r}": partial(_last, "", flag) for flag in (b"3", b"4", b"6")},
    "S16 a link to itself": partial(_last, f"../{layer_id(2)}/layer.tar"),
    "S16 two links to one another": partial(_chain, 2, f"{layer_id(2)}/layer.tar"),
    "S16 a thousand links to one another": partial(_chain, 1000, f"{layer_id(2)}/layer.tar"),
    "S16 a link to the config": partial(_last, f"../{bare(IMAGE.config_digest)}.json"),
    "S16 a link where the config should be": lambda: pack_parts(
        [
            *(part for part in older_docker_parts(IMAGE, NAME) if not part.name.endswith(".json") or "/" in part.name),
            Part("manifest.json", docker_manifest(IMAGE, NAME)),
            Part(f"{bare(IMAGE.config_digest)}.json", flag=b"2", link="/etc/passwd"),
        ]
    ),
}
BOTH: dict[str, Build] = {
    "S6 manifest.json of another image": lambda: _conflicting(manifest_json=_docker_of_other(NAME)),
    "S6 manifest.json of another image, by another name": lambda: _conflicting(
        manifest_json=_docker_of_other("other:1")
    ),
    "S6 index.json of another image": lambda: _conflicting(index_json=oci_index(OTHER, NAME)),
    "S6 meta.json of another image": lambda: _conflicting(meta_json=metadata(NAME, OTHER.digest)),
    "S6 index.json of nothing": lambda: _conflicting(index_json=_index_of()),
    "S6 manifest.json that is none": lambda: _conflicting(manifest_json=b"[{"),
    "S6 meta.json that is none": lambda: _conflicting(meta_json=b"[{"),
}

CONTENTS: dict[str, dict[str, Build]] = {"minibox": MINIBOX, "OCI": OCI, "docker": DOCKER, "both": BOTH}
