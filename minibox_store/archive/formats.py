"""The forms that an archive is written in, and the tables of contents that each of them begins with. Pure.

Blobs are called by their digests in all of them, so that one archive may be of two forms. Nothing is written as if it
were whole that is not: the forms that hold no index refuse one.

Spec: OCI image-spec 1.1, image-layout.md; Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset
Format".
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal, get_args

import attrs

from minibox_store import media_types
from minibox_store.archive.layout_plan import blob_name
from minibox_store.archive.member_names import INDEX_JSON, MANIFEST_JSON, META_JSON, OCI_LAYOUT, REPOSITORIES
from minibox_store.codec import (
    ArchiveMetadata,
    encode_archive_metadata,
    encode_layout_index,
    encode_layout_marker,
)
from minibox_store.codec.archive_files import DockerImage
from minibox_store.codec.archive_tables import encode_docker_images, encode_repositories
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, Document, Index, LayoutEntry, LayoutIndex
from minibox_store.errors import InvalidArgument, InvalidReference
from minibox_store.kinds import each_of
from minibox_store.layout_index import CONTAINERD_NAME_ANNOTATION, NAME_ANNOTATION
from minibox_store.reference import Reference
from minibox_store.sentences import and_more
from minibox_store.values import Value

ArchiveFormat = Literal["minibox", "oci", "docker", "both"]
ArchiveCompression = Literal["zstd"]

_SHOWN_PLATFORMS = 8


def _checked_digests(exclude: Iterable[Digest]) -> frozenset[Digest]:
    return frozenset(each_of("exclude", exclude, Digest))


@attrs.frozen(kw_only=True, repr=False)
class ArchiveForm(Value):
    """How an archive is written.

    Attributes:
        format: its form.
        exclude: the configs and layers that are left out, since whoever reads it has them.
        compress: how it is compressed as a whole; None leaves it as it is.

    Raises:
        InvalidArgument: on construction, for a form, a compression or a digest that is none.
    """

    format: ArchiveFormat = "minibox"
    exclude: frozenset[Digest] = attrs.field(default=frozenset(), converter=_checked_digests)
    compress: ArchiveCompression | None = None

    def __attrs_post_init__(self) -> None:
        if self.format not in get_args(ArchiveFormat):
            raise InvalidArgument("format", self.format, f"the forms are {', '.join(get_args(ArchiveFormat))}")
        if self.compress is not None and self.compress not in get_args(ArchiveCompression):
            raise InvalidArgument("compress", self.compress, "an archive is compressed with zstd or not at all")

    @property
    def has_documents(self) -> bool:
        """Whether manifests and indexes are members: what Docker reads has none."""
        return self.format != "docker"

    @property
    def has_directories(self) -> bool:
        """Whether directories are members: minibox's own form has files alone, and no other tool extracts it."""
        return self.format != "minibox"

    @property
    def holds_many(self) -> bool:
        """Whether there may be more than one image."""
        return self.format != "minibox"


@attrs.frozen(kw_only=True, repr=False)
class WrittenImage(Value):
    """One name that an archive gives, what it stands for, and the document of that."""

    name: str
    root: Descriptor
    document: Document


def control_members(form: ArchiveForm, images: Sequence[WrittenImage]) -> tuple[tuple[str, bytes], ...]:
    """Return the names and contents of the members that say what is in an archive, in their order.

    Args:
        form: of the archive.
        images: at least one; exactly one in minibox's own form.

    Raises:
        InvalidArgument: when the form cannot hold one of them, or its name.

    Guarantees: the bytes depend on the names, and on what they stand for, alone.
    """
    images = sorted(images, key=lambda image: image.name)
    if form.format == "minibox":
        metadata = ArchiveMetadata(image=images[0].name, manifest_digest=images[0].root.digest)
        return ((META_JSON, encode_archive_metadata(metadata)),)
    members: list[tuple[str, bytes]] = []
    if form.format != "docker":
        entries = tuple(_layout_entry(image) for image in images)
        members.append((OCI_LAYOUT, encode_layout_marker()))
        members.append((INDEX_JSON, encode_layout_index(LayoutIndex(entries=entries))))
    if form.format != "oci":
        tags = _tags_of(form, images)
        members.append((MANIFEST_JSON, encode_docker_images(_docker_entries(form, images, tags))))
        members.append((REPOSITORIES, encode_repositories(_repositories(images, tags))))
    return tuple(members)


def _layout_entry(image: WrittenImage) -> LayoutEntry:
    """Return the entry of index.json: of what else a store's own says nothing, since it differs from store to store."""
    names = {NAME_ANNOTATION: image.name}
    with suppress(InvalidReference):  # by such a name no other tool could call it anyway
        # What containerd's import goes by, and Podman before all else.
        names[CONTAINERD_NAME_ANNOTATION] = str(Reference.parse(image.name))
    root = image.root
    return LayoutEntry(
        descriptor=Descriptor(
            media_type=root.media_type, digest=root.digest, size_bytes=root.size_bytes, annotations=names
        )
    )


def _tags_of(form: ArchiveForm, images: Iterable[WrittenImage]) -> dict[str, str]:
    """Return the tag of Docker's that each name is written as: other tools refuse the archive for one that is none.

    Raises:
        InvalidArgument: when a name is none, and stands nowhere else; or when two images would have one.
    """
    tags: dict[str, str] = {}
    owners: dict[str, Digest] = {}
    for image in images:
        tag = _tag_of(image.name)
        if tag is None:
            if form.format == "docker":
                raise InvalidArgument("format", form.format, f"{image.name!r} is no reference with a tag, as it wants")
            continue
        if owners.setdefault(tag, image.root.digest) != image.root.digest:
            raise InvalidArgument("format", form.format, f"two images would be called {tag} in it")
        tags[image.name] = tag
    return tags


def _tag_of(name: str) -> str | None:
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return None
    if reference.digest is not None or reference.tag is None:
        return None
    return name if name.endswith(f":{reference.tag}") else f"{name}:{reference.tag}"


def _docker_entries(form: ArchiveForm, images: Iterable[WrittenImage], tags: dict[str, str]) -> tuple[DockerImage, ...]:
    """Return one entry for each image, with all its tags."""
    entries: dict[Digest, DockerImage] = {}
    for image in images:
        config, layers = _docker_parts(form, image)
        entry = entries.get(image.root.digest) or DockerImage(config_member=config, layer_members=layers)
        tag = tags.get(image.name)
        known = entry.repo_tags if tag is None or tag in entry.repo_tags else (*entry.repo_tags, tag)
        entries[image.root.digest] = attrs.evolve(entry, repo_tags=known)
    return tuple(entries.values())


def _docker_parts(form: ArchiveForm, image: WrittenImage) -> tuple[str, tuple[str, ...]]:
    document = image.document
    if isinstance(document, Index):
        names = [str(each.platform) for each in document.manifests if each.platform and not each.is_attestation]
        shown = ", ".join(names[:_SHOWN_PLATFORMS]) or "manifests without platforms"
        shown += and_more(names, _SHOWN_PLATFORMS)
        problem = f"{image.name!r} is an index of {shown}, of which it holds one: say platform="
        raise InvalidArgument("format", form.format, problem)
    if not media_types.is_config(document.config.media_type):
        problem = f"{image.name!r} has no config of an image, but one of type {document.config.media_type!r}"
        raise InvalidArgument("format", form.format, problem)
    return blob_name(document.config), tuple(blob_name(layer) for layer in document.layers)


def _repositories(images: Iterable[WrittenImage], tags: dict[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for image in images:
        if image.name in tags and not isinstance(image.document, Index) and image.document.layers:
            repository, _, tag = tags[image.name].rpartition(":")
            found.setdefault(repository, {})[tag] = image.document.layers[-1].digest.hex
    return found
