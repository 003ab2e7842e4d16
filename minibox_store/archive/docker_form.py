"""Docker's form of an archive: members that are a config and layers become an OCI manifest, which is made here.

The config stays as it is, byte for byte, and so do the layers: what compresses one is told by its first bytes, and one
that is not compressed must be what the config says of it. Equal members under equal names give equal manifests.

Spec: Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset Format"; OCI image-spec 1.1,
manifest.md.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from minibox_store import media_types
from minibox_store.archive.member_names import MemberRole, parse_member_name
from minibox_store.archive.member_table import MemberTable
from minibox_store.codec import DockerImage, decode_config, encode_document
from minibox_store.decompressing import BEGINNING_BYTES, compression_of
from minibox_store.digest import Digest, Verifier, is_hexadecimal
from minibox_store.documents import Descriptor, Manifest
from minibox_store.errors import ContentMismatch, InvalidArchive
from minibox_store.graph import RememberingSource
from minibox_store.limits import MEBIBYTE, Limits
from minibox_store.sentences import and_more

_MEDIA_TYPES = {"gzip": media_types.OCI_LAYER_GZIP, "zstd": media_types.OCI_LAYER_ZSTD, "none": media_types.OCI_LAYER}

SizeOf = Callable[[Digest], int | None]


def config_digest(image: DockerImage) -> Digest:
    """Return the digest that the name of an image's config promises.

    Raises:
        InvalidArchive: when it is no name of a config.
    """
    name = parse_member_name(image.config_member)
    if name.digest is None or name.role is MemberRole.LAYER:
        raise InvalidArchive("it is no config", image.config_member)
    return name.digest


class DockerForm:
    """Makes manifests of docker's images; what was found out about a layer is not looked for twice.

    Args:
        members: of the archive.
        source: where blobs are read from; it has the manifests that are made, from then on.
        size_of: how large a blob is that can be had; None for one that cannot.
        limits: how large a config, and how many the layers, may be.
    """

    def __init__(self, members: MemberTable, source: RememberingSource, size_of: SizeOf, limits: Limits) -> None:
        self._members = members
        self._source = source
        self._size_of = size_of
        self._limits = limits
        self._diff_ids: dict[Digest, tuple[Digest, ...]] = {}
        self._layers: dict[tuple[Digest, Digest], Descriptor] = {}

    def manifest_of(self, image: DockerImage) -> Descriptor:
        """Return the descriptor of the manifest that is made of an image.

        Raises:
            InvalidArchive: when a member that it needs is missing, or is not what the config says.
            InvalidDocument: when the config is none.
        """
        if len(image.layer_members) > self._limits.layers:
            raise InvalidArchive(f"it has more than {self._limits.layers} layers", image.config_member)
        config = config_digest(image)
        self._check_whole(image, config)
        descriptor = self._described(config, media_types.OCI_CONFIG)
        diff_ids = self._read_diff_ids(descriptor)
        if len(diff_ids) != len(image.layer_members):
            problem = f"it is of {len(diff_ids)} layers, and manifest.json names {len(image.layer_members)}"
            raise InvalidArchive(problem, image.config_member)
        layers = [self._layer(key, diff_id) for key, diff_id in zip(image.layer_members, diff_ids, strict=True)]
        manifest = Manifest(media_type=media_types.OCI_MANIFEST, config=descriptor, layers=tuple(layers))
        return self._source.add_made(encode_document(manifest), media_types.OCI_MANIFEST)

    def _check_whole(self, image: DockerImage, config: Digest) -> None:
        missing = [] if self._size_of(config) is not None else [str(config)]
        for key in dict.fromkeys(image.layer_members):
            digest = self._members.find(key)
            if digest is None or self._size_of(digest) is None:
                missing.append(key if digest is None else str(digest))
        if missing:
            problem = f"it lacks {missing[0]}{and_more(missing)}, which manifest.json names"
            raise InvalidArchive(problem, missing=tuple(missing))

    def _described(self, digest: Digest, media_type: str) -> Descriptor:
        size_bytes = self._size_of(digest)
        assert size_bytes is not None  # as _check_whole has seen
        return Descriptor(media_type=media_type, digest=digest, size_bytes=size_bytes)

    def _read_diff_ids(self, config: Descriptor) -> tuple[Digest, ...]:
        found = self._diff_ids.get(config.digest)
        if found is None:
            content = self._source.read(config)
            found = decode_config(content, str(config.digest), limits=self._limits).diff_ids
            if len(found) > self._limits.layers:
                raise InvalidArchive(f"it is of more than {self._limits.layers} layers", str(config.digest))
            self._diff_ids[config.digest] = found
        return found

    def _layer(self, key: str, diff_id: Digest) -> Descriptor:
        digest = self._members.find(key)
        assert digest is not None  # as _check_whole has seen
        found = self._layers.get((digest, diff_id))
        if found is None:
            layer = self._described(digest, media_types.OCI_LAYER)
            found = self._described(digest, self._media_type_of(layer))
            if found == layer and not self._has_content(layer, diff_id):
                raise InvalidArchive(f"it is not {diff_id}, as its config says", key)
            self._layers[digest, diff_id] = found
        return found

    def _media_type_of(self, layer: Descriptor) -> str:
        return _MEDIA_TYPES[compression_of(next(self._chunks(layer, BEGINNING_BYTES), b""))]

    def _has_content(self, layer: Descriptor, diff_id: Digest) -> bool:
        """Whether a blob, which has the digest that its descriptor says, has another one too."""
        if layer.digest.algorithm == diff_id.algorithm:
            return layer.digest == diff_id
        verifier = Verifier(diff_id, layer.size_bytes)
        try:
            for chunk in self._chunks(layer, MEBIBYTE):
                verifier.update(chunk)
            return bool(verifier.finish())
        except ContentMismatch:
            return False

    def _chunks(self, layer: Descriptor, most_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of a layer, in pieces that are that large but for the last one."""
        buffer = memoryview(bytearray(most_bytes))
        stream = self._source.open_blob(layer)
        try:
            filled = 0
            while count := stream.readinto(buffer[filled:]):
                filled += count
                if filled == most_bytes:
                    yield bytes(buffer)
                    filled = 0
            if filled:
                yield bytes(buffer[:filled])
        finally:
            stream.close()


def names_by_repositories(
    images: Iterable[DockerImage], identifiers: Mapping[str, str], members: MemberTable
) -> Mapping[DockerImage, tuple[str, ...]]:
    """Return what docker's ``repositories`` calls those images that ``manifest.json`` has no names for.

    It gives each name the identifier of a layer, which is the last one of the image: the one of that very name, or else
    the only one whose last layer lies where that name leads to.

    Raises:
        InvalidArchive: when more than one could be meant.
    """
    nameless = [image for image in dict.fromkeys(images) if not image.repo_tags and image.layer_members]
    # Images by their positions: one has up to a million layers here, and would be hashed for each of its names.
    by_key: dict[str, list[int]] = {}
    by_digest: dict[Digest | None, list[int]] = {}
    for position, image in enumerate(nameless):
        by_key.setdefault(image.layer_members[-1], []).append(position)
        by_digest.setdefault(members.find(image.layer_members[-1]), []).append(position)
    found: list[list[str]] = [[] for _ in nameless]
    for name, identifier in identifiers.items() if nameless else ():
        if len(identifier) != 64 or not is_hexadecimal(identifier):
            raise InvalidArchive(f"what it gives {name[:80]!r} is no identifier of a layer", "repositories")
        key = f"{identifier}/layer.tar"
        meant = by_key.get(key) or by_key.get(f"{identifier}.tar")
        if meant is None and (digest := members.find(key)) is not None:
            meant = by_digest.get(digest)
        if meant is not None and len(meant) > 1:
            raise InvalidArchive(f"more than one image could be {name[:80]!r}", "repositories")
        if meant:
            found[meant[0]].append(name)
    return {image: tuple(names) for image, names in zip(nameless, found, strict=True) if names}
