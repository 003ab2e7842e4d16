"""A repository of a registry, as a target of images.

Blobs and the documents below the root are put there by their digests, which changes nothing for anybody. The root, by
the tag that it gets, is put last, in one request: until then the tag stands for what it stood for.

Layers that only others may give away stay out, until the registry says that it takes no manifest without them.

Spec: OCI distribution-spec 1.1, "Pushing Manifests" and "Mounting a blob from another repository"; OCI image-spec 1.1,
"Non-Distributable Layers".
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlencode

from minibox_store import media_types
from minibox_store.codec import decode_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, IncompleteImage, InvalidDocument, RateLimited, RegistryError
from minibox_store.graph import read_content
from minibox_store.protocols import BlobSource
from minibox_store.reference import Reference
from minibox_store.referring import referrer_of
from minibox_store.registry.referrer_lists import read_list, referrers_tag, with_referrer
from minibox_store.registry.repository import ACCEPT, WritableRepository
from minibox_store.registry.transport import Request, Transport
from minibox_store.registry.uploads import BlobUpload, check_digest, has_blob

# By which registries know what comes under a tag; under another digest it is there when it was put there too.
_OF_TAGS = "sha256"
# By which a registry refuses a manifest for the blobs that it lacks, and for nothing else.
_LACKS_BLOBS = {"MANIFEST_BLOB_UNKNOWN"}

FindMounts = Callable[[Digest], Sequence[str]]


def no_mounts(digest: Digest) -> Sequence[str]:
    """Say that no other repository of the registry is known to have a blob."""
    return ()


class RepositoryTarget:
    """A repository that images can be copied to: an ImageTarget. Names are tags.

    Args:
        open_repository: returns a session with it, by which it may be written to.
        find_mounts: returns the repositories of the same registry that may have a blob, the likeliest first.
        chunk_bytes: how much of a blob goes in one request; None for all of it.
    """

    def __init__(
        self,
        open_repository: Callable[[], WritableRepository],
        *,
        find_mounts: FindMounts = no_mounts,
        chunk_bytes: int | None = None,
    ) -> None:
        self._open_repository = open_repository
        self._find_mounts = find_mounts
        self._chunk_bytes = chunk_bytes
        self._opened: set[WritableRepository] = set()
        self._is_interrupted = False

    @contextmanager
    def open_writer(self) -> Iterator["RepositoryWriter"]:
        """Begin; leaving the block without an error puts the tags, each in one step.

        What a block that is left with an error has put there nobody sees, who does not know its digest.

        Raises:
            RegistryError: when the registry cannot be reached, or refuses.
        """
        with self._open_repository() as repository:
            self._opened.add(repository)
            if self._is_interrupted:  # after that: an interrupt meanwhile has found the one or is found here
                repository.interrupt()
            try:
                repository.settle()
                writer = RepositoryWriter(repository, self._find_mounts, self._chunk_bytes)
                yield writer
                writer.finish()
            finally:
                self._opened.discard(repository)

    def interrupt(self) -> None:
        """End at once, with an error, whatever is sent or waited for, now or later. From any thread."""
        self._is_interrupted = True
        for repository in self._opened.copy():
            repository.interrupt()


class RepositoryWriter:
    """An ImageWriter over one session with a repository."""

    def __init__(self, repository: WritableRepository, find_mounts: FindMounts, chunk_bytes: int | None) -> None:
        self._repository = repository
        self._transport = repository.transport
        self._path = repository.reference.repository
        self._find_mounts = find_mounts
        self._chunk_bytes = chunk_bytes
        self._guard = threading.Lock()
        self._held: set[Digest] = set()
        # The document written last, whose turn has not come: it may be the root, which goes by its tag.
        self._waiting: tuple[Descriptor, bytes] | None = None
        self._names: dict[str, Descriptor] = {}
        self._left_out: dict[Digest, tuple[Descriptor, BlobSource]] = {}
        self._transports: dict[str, Transport] = {}

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository holds the blob, as far as it says; nobody can promise that it stays.

        For a layer that only others may give away it is not asked: most need none of it.
        """
        if _is_for_others(descriptor):
            is_held = False
        elif media_types.is_document(descriptor.media_type):
            is_held = self._has_document(descriptor)
        else:
            is_held = has_blob(self._transport, self._path, descriptor)
        if is_held:
            self._hold(descriptor)
        return is_held

    def write_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        """Put the blob there: out of another repository, where the registry knows it there, or from its source.

        A layer that only others may give away stays where it is: those who need it are told where to get it. Its
        source is kept, for a registry that does not take the manifest so.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others.
            RegistryError: when the registry refuses it.
        """
        if media_types.is_document(descriptor.media_type):
            content = read_content(source, descriptor, self._repository.limits)
            with self._guard:
                waiting, self._waiting = self._waiting, (descriptor, content)
            if waiting is not None:
                self._put_document(str(waiting[0].digest), *waiting)
        elif _is_for_others(descriptor):
            with self._guard:
                self._left_out[descriptor.digest] = (descriptor, source)
        else:
            self._put_blob(descriptor, source)
        self._hold(descriptor)

    def write_name(self, name: str, descriptor: Descriptor) -> None:
        """Let a tag stand for ``descriptor`` once the writer is left without an error.

        Raises:
            InvalidReference: when ``name`` is no tag.
            IncompleteImage: when the repository was not made to hold it.
        """
        reference = self._repository.reference
        Reference(domain=reference.domain, repository=reference.repository, tag=name)
        if descriptor.digest not in self._held:
            raise IncompleteImage(name, (str(descriptor.digest),))
        self._names[name] = descriptor

    def write_referrer(self, descriptor: Descriptor, /) -> None:
        """Do no more than was done as it was put there: what a document refers to stands in itself.

        Raises:
            IncompleteImage: when the repository was not made to hold it.
        """
        if descriptor.digest not in self._held:
            raise IncompleteImage(str(descriptor.digest), (str(descriptor.digest),))

    def interrupt(self) -> None:
        """End at once, with an error, whatever is sent or waited for. From any thread."""
        self._repository.interrupt()

    def finish(self) -> None:
        """Put the root, by its tags.

        Raises:
            StoreError: when the registry refuses it; the tag stands for what it stood for, unless only the answer
                was lost.
        """
        waiting = self._waiting
        if waiting is not None and waiting[0] not in self._names.values():
            self._put_document(str(waiting[0].digest), *waiting)
        for name, descriptor in self._names.items():
            if waiting is not None and waiting[0] == descriptor:
                content = waiting[1]
            else:
                content = read_content(self._repository, descriptor, self._repository.limits)
            # What comes of a subject may fail as well: that must not happen behind the tag.
            if descriptor.digest.algorithm != _OF_TAGS or _may_refer(content):
                self._put_document(str(descriptor.digest), descriptor, content)
            self._put(name, descriptor, content)

    def _hold(self, descriptor: Descriptor) -> None:
        with self._guard:
            self._held.add(descriptor.digest)

    def _has_document(self, descriptor: Descriptor) -> bool:
        with self._guard:
            if self._waiting is not None and self._waiting[0] == descriptor:
                return True
        request = Request(
            target=f"/v2/{self._path}/manifests/{descriptor.digest}",
            method="HEAD",
            headers={"Accept": ACCEPT},
            blob=descriptor.digest,
        )
        with suppress(BlobNotFound), closing(self._transport.open(request, self._transport.attempts())) as answer:
            return answer.length_bytes in (None, descriptor.size_bytes)
        return False

    def _put_document(self, name: str, descriptor: Descriptor, content: bytes) -> None:
        knows_subjects = self._put(name, descriptor, content)
        if not knows_subjects and _may_refer(content):
            self._list_referrer(descriptor, content)

    def _put(self, name: str, descriptor: Descriptor, content: bytes) -> bool:
        """Put a document, with what was left out where the registry does not take it without that.

        Returns whether the registry takes note by itself of what the document refers to.
        """
        try:
            return self._put_as_it_is(name, descriptor, content)
        except RegistryError as refused:
            if set(refused.codes) != _LACKS_BLOBS or not self._left_out:
                raise
            self._put_left_out(refused)
        return self._put_as_it_is(name, descriptor, content)

    def _put_left_out(self, refused: RegistryError) -> None:
        """Put the layers that were left out; where their source has none of them, the refusal stands."""
        left_out, self._left_out = self._left_out, {}
        try:
            for descriptor, source in left_out.values():
                if not has_blob(self._transport, self._path, descriptor):
                    self._put_blob(descriptor, source)
        except BlobNotFound as missing:
            raise refused from missing

    def _put_as_it_is(self, name: str, descriptor: Descriptor, content: bytes) -> bool:
        request = Request(
            target=f"/v2/{self._path}/manifests/{name}",
            method="PUT",
            headers={"Content-Type": descriptor.media_type},
            body=content,
            accepts=(200, 201, 202, 204),
        )
        with closing(self._transport.open(request, self._transport.attempts())) as answer:
            check_digest(answer, descriptor.digest, f"manifest {name} at {answer.url}")
            return answer.header("OCI-Subject") is not None

    def _list_referrer(self, descriptor: Descriptor, content: bytes) -> None:
        """Let those who look for the referrers of what a manifest refers to find it, without the registry's help."""
        limits = self._repository.limits
        document = decode_document(content, descriptor.media_type, str(descriptor.digest), limits=limits)
        referrer = referrer_of(descriptor, document)
        if referrer is None:
            return
        subject = referrer.subject
        known = read_list(self._repository, subject, limits)
        if known is None:
            raise InvalidDocument("", "it is what its tag is about, and no list of referrers", referrers_tag(subject))
        listed = with_referrer(known, referrer)
        if listed is not None:
            if len(listed) > limits.document_bytes:
                problem = f"with one more in it, it is larger than {limits.document_bytes} bytes"
                raise InvalidDocument("", problem, referrers_tag(subject))
            described = Descriptor(media_type=media_types.OCI_INDEX, digest=Digest.of(listed), size_bytes=len(listed))
            # That it is made to refer to something itself leads nowhere: such lists could refer to each other.
            self._put(referrers_tag(subject), described, listed)

    def _put_blob(self, descriptor: Descriptor, source: BlobSource) -> None:
        upload = BlobUpload(self._transport, self._path, descriptor, source, chunk_bytes=self._chunk_bytes)
        origins = [origin for origin in self._find_mounts(descriptor.digest) if origin != self._path]
        if not origins or not self._is_mounted(descriptor.digest, origins[0], upload):
            upload.run()

    def _is_mounted(self, digest: Digest, origin: str, upload: BlobUpload) -> bool:
        """Let the registry take a blob out of another repository; where it cannot, it has perhaps begun the upload."""
        transport = self._transport_for(origin)
        query = urlencode({"mount": str(digest), "from": origin})
        request = Request(target=f"/v2/{self._path}/blobs/uploads/?{query}", method="POST", accepts=(201, 202))
        try:
            with closing(transport.open(request, transport.attempts())) as answer:
                if answer.status == 202:
                    upload.begin_at(answer)
                return answer.status == 201
        except RegistryError as refused:
            # That the other repository may not be read is no reason against writing to this one.
            if refused.status is None or isinstance(refused, RateLimited):
                raise
            return False

    def _transport_for(self, origin: str) -> Transport:
        """Return what has tokens for another repository too: the own one is not lost where that is refused."""
        with self._guard:
            if origin not in self._transports:
                scope = f"repository:{self._path}:pull,push repository:{origin}:pull"
                self._transports[origin] = self._transport.with_scope(scope)
            return self._transports[origin]


def _may_refer(content: bytes) -> bool:
    return b'"subject"' in content


def _is_for_others(descriptor: Descriptor) -> bool:
    return media_types.is_nondistributable(descriptor.media_type) and bool(descriptor.urls)
