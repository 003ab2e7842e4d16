"""What an archive holds, once all of it was read: its tables of contents become images, with their names.

An archive may have several tables, since tools write more than one: ``meta.json``, ``index.json`` and
``manifest.json``. The first of these that is there counts. Each further one may speak of the images that the first
reaches, and of no others: whoever reads the archive by another table gets nothing else.

Spec: OCI image-spec 1.1, image-layout.md, "index.json file"; annotations.md, `org.opencontainers.image.ref.name`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import attrs

from minibox_store import media_types
from minibox_store.archive.docker_form import DockerForm, SizeOf, config_digest, names_by_repositories
from minibox_store.archive.member_names import INDEX_JSON, MANIFEST_JSON, META_JSON, OCI_LAYOUT, REPOSITORIES
from minibox_store.archive.member_table import MemberTable
from minibox_store.codec import (
    check_index_spelling,
    decode_archive_metadata,
    decode_docker_images,
    decode_layout_index,
    decode_layout_marker,
    decode_repositories,
    describe_document,
)
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor, children
from minibox_store.errors import BlobNotFound, InvalidArchive, InvalidDocument
from minibox_store.graph import RememberingSource, walk
from minibox_store.layout_index import CONTAINERD_NAME_ANNOTATION, name_of
from minibox_store.limits import Limits
from minibox_store.reference import check_image_name, normalised
from minibox_store.values import Value
from minibox_store.wholeness import DocumentTotals


@attrs.frozen(kw_only=True, repr=False)
class ArchivedImage(Value):
    """An image that an archive tells of.

    Attributes:
        name: empty where it has none.
        root: which is not trusted. Of docker's form it is a manifest that is made here; what lacks blobs has none, and
            is known by its config.
        refusal: what is missing for that manifest: whoever wants the image is told so.
    """

    name: str
    root: Descriptor
    refusal: InvalidArchive | None = attrs.field(default=None, eq=False)


def read_images(
    members: MemberTable, source: RememberingSource, size_of: SizeOf, limits: Limits
) -> tuple[ArchivedImage, ...]:
    """Return the images of an archive in its order, one for each name; whether they are whole is not known yet.

    Args:
        members: of the archive, all of which was read.
        source: where its blobs are read from; it has the manifests that are made here, from then on.
        size_of: how large a blob is that can be had; None for one that cannot.
        limits: the bounds on what is read.

    Raises:
        InvalidArchive: when it tells of none, of too many, or of different ones in different tables.
        InvalidDocument, ContentMismatch, BlobNotFound: when a document of them is wrong or missing.
        InvalidReference: when it has a name that an image may not have.
    """
    return _Contents(members, source, size_of, limits).read()


class _Contents:
    def __init__(self, members: MemberTable, source: RememberingSource, size_of: SizeOf, limits: Limits) -> None:
        self._members = members
        self._controls = members.controls
        self._source = source
        self._size_of = size_of
        self._limits = limits

    def read(self) -> tuple[ArchivedImage, ...]:
        self._check_marker()
        readers: dict[str, Callable[[], Iterator[ArchivedImage]]] = {
            META_JSON: self._of_metadata,
            INDEX_JSON: self._of_index,
            MANIFEST_JSON: self._of_docker,
        }
        tables = [name for name in readers if name in self._controls]
        if not tables:
            raise InvalidArchive("it has no meta.json, no index.json and no manifest.json")
        found: dict[ArchivedImage, None] = {}
        for image in readers[tables[0]]():
            if image.name and image in found:
                raise InvalidArchive(f"it names {image.name[:80]!r} twice", tables[0])
            found[image] = None
            if len(found) > self._limits.documents:
                raise InvalidArchive(f"it tells of more than {self._limits.documents} images", tables[0])
        if not found:
            raise InvalidArchive("it tells of no image", tables[0])
        for image in found:
            if image.name or tables[0] == META_JSON:
                check_image_name(image.name)
        if len(tables) > 1:
            self._check_further(tables, found)
        return tuple(found)

    def _check_marker(self) -> None:
        marker = self._controls.get(OCI_LAYOUT)
        if marker is not None:
            with _naming(OCI_LAYOUT):
                decode_layout_marker(marker)
        elif INDEX_JSON in self._controls:
            raise InvalidArchive("there is no oci-layout beside it", INDEX_JSON)

    # ---- the tables

    def _of_metadata(self) -> Iterator[ArchivedImage]:
        with _naming(META_JSON):
            metadata = decode_archive_metadata(self._controls[META_JSON], limits=self._limits)
        digest = metadata.manifest_digest
        size_bytes = self._members.sizes.get(digest)
        if size_bytes is None:
            raise InvalidArchive(f"it lacks {digest}, its manifest", missing=(str(digest),))
        found = Descriptor(media_type="", digest=digest, size_bytes=size_bytes)
        described = describe_document(self._source.read(found), str(digest), limits=self._limits)
        yield ArchivedImage(name=metadata.image, root=attrs.evolve(described, digest=digest))

    def _of_index(self) -> Iterator[ArchivedImage]:
        for entry in self._entries():
            if not media_types.is_document(entry.media_type):
                problem = f"{entry.digest} in it is of type {entry.media_type[:100]!r}: no manifest or index"
                raise InvalidArchive(problem, INDEX_JSON)
            # What else the entry says stands in the document itself, or is nobody's word.
            root = Descriptor(media_type=entry.media_type, digest=entry.digest, size_bytes=entry.size_bytes)
            yield ArchivedImage(name=_name_of(entry), root=root)

    def _of_docker(self) -> Iterator[ArchivedImage]:
        with _naming(MANIFEST_JSON):
            images = decode_docker_images(self._controls[MANIFEST_JSON], limits=self._limits)
        identifiers = {}
        if REPOSITORIES in self._controls:
            with _naming(REPOSITORIES):
                identifiers = decode_repositories(self._controls[REPOSITORIES], limits=self._limits)
        names = names_by_repositories(images, identifiers, self._members)
        form = DockerForm(self._members, self._source, self._size_of, self._limits)
        for image in images:
            refusal = None
            try:
                root = form.manifest_of(image)
            except InvalidArchive as error:
                if not error.missing:
                    raise
                root = Descriptor(media_type=media_types.OCI_CONFIG, digest=config_digest(image), size_bytes=0)
                refusal = error
            for name in image.repo_tags or names.get(image, ("",)):
                yield ArchivedImage(name=name, root=root, refusal=refusal)

    def _entries(self) -> tuple[Descriptor, ...]:
        with _naming(INDEX_JSON):
            index = decode_layout_index(
                self._controls[INDEX_JSON],
                limit_bytes=self._limits.document_bytes,
                most_values=self._limits.document_values,
            )
            check_index_spelling(index)
            return tuple(entry.descriptor for entry in index.entries)

    # ---- what they must agree on

    def _check_further(self, tables: list[str], found: Iterable[ArchivedImage]) -> None:
        reached = self._reached({image.root for image in found})
        together = frozenset[Digest]().union(*reached.values())
        named: dict[str, list[Digest]] = {}
        for image in found:
            named.setdefault(normalised(image.name) or image.name, []).append(image.root.digest)
        agreed: set[tuple[str, Digest]] = set()  # what a table says a million times is looked up once
        for table in tables[1:]:
            for names, digest in self._told_by(table):
                if digest not in together:
                    raise InvalidArchive(f"{tables[0]} and {table} tell of different images: {digest}", table)
                for name in names:
                    told = (normalised(name) or name, digest)
                    if not name or told[0] not in named or told in agreed:
                        continue
                    agreed.add(told)
                    if not any(digest in reached[root] for root in named[told[0]]):
                        problem = f"{tables[0]} and {table} call different images {name[:80]!r}"
                        raise InvalidArchive(problem, table)

    def _told_by(self, table: str) -> Iterator[tuple[tuple[str, ...], Digest]]:
        if table == INDEX_JSON:
            yield from (((_name_of(entry),), entry.digest) for entry in self._entries())
        else:
            with _naming(MANIFEST_JSON):
                images = decode_docker_images(self._controls[MANIFEST_JSON], limits=self._limits)
            yield from ((image.repo_tags, config_digest(image)) for image in images)

    def _reached(self, roots: set[Descriptor]) -> Mapping[Digest, set[Digest]]:
        """Return of each root what it leads to, itself included, but for layers; what is absent too.

        Raises:
            InvalidArchive: when the images together have more documents than they may have when they come in.
        """

        def pass_by(_: Descriptor, error: Exception) -> None:
            if not isinstance(error, BlobNotFound):
                raise error

        totals = DocumentTotals(self._limits)
        reached: dict[Digest, set[Digest]] = {}
        for root in roots:
            found = reached.setdefault(root.digest, {root.digest})
            for node in walk(self._source, root, limits=self._limits, on_unreadable=pass_by):
                if media_types.is_document(node.descriptor.media_type):
                    totals.add(1, node.descriptor.size_bytes)
                if node.document is not None:
                    below = (each for each in children(node.document) if each.role != "layer")
                    found.update(each.descriptor.digest for each in below)
        return reached


def _name_of(entry: Descriptor) -> str:
    """Return what an entry of index.json is called, by the name that containerd reads where that is another one."""
    name = name_of(entry) or ""
    full_name = entry.annotations.get(CONTAINERD_NAME_ANNOTATION)
    # Beside a full name, the other one is a mere tag, as docker and containerd write it.
    return name if full_name is None or (name and normalised(full_name) == normalised(name)) else full_name


@contextmanager
def _naming(member: str) -> Iterator[None]:
    """Let what is wrong with a table be told with the member that it is."""
    try:
        yield
    except InvalidDocument as error:
        raise InvalidArchive(str(error), member) from error
