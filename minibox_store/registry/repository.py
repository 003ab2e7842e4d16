"""A repository of a registry, as a source of images.

What a registry calls a manifest is checked here for being the one that was asked for, of the type that was announced;
the bytes of all else are left to whoever verifies them.

Spec: OCI distribution-spec 1.1, "Pulling manifests" and "Pulling blobs".
"""

import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import attrs

from minibox_store import media_types
from minibox_store.codec import decode_document, describe_document
from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import (
    ContentMismatch,
    InvalidDigest,
    InvalidDocument,
    ManifestUnknown,
    RateLimited,
    RegistryError,
)
from minibox_store.graph import ContentStream
from minibox_store.limits import Limits
from minibox_store.protocols import BlobStream
from minibox_store.reference import Reference
from minibox_store.registry.dialling import OpenLines
from minibox_store.registry.downloads import BlobDownload, RangeDownload
from minibox_store.registry.failures import Failure, LineCut, quoted
from minibox_store.registry.referrer_lists import list_referrers, read_list
from minibox_store.registry.transport import Reply, Request, Transport

_T = TypeVar("_T")

# One list, without q-values: some registries read the first type alone where there are several headers, or ignore q.
ACCEPT = ", ".join(
    (
        media_types.OCI_INDEX,
        media_types.OCI_MANIFEST,
        media_types.DOCKER_MANIFEST_LIST,
        media_types.DOCKER_MANIFEST,
    )
)
_HUNG_UP = (ConnectionResetError, BrokenPipeError, LineCut)
# What is answered to a tag that is to be deleted by registries that want a digest.
_NO_TAG_ALONE = frozenset({400, 405, 501})
# To a HEAD, everything that says no more than that a GET may be answered otherwise.
_HEAD_STATUSES = frozenset({200, 501, *range(402, 500)}) - {408, 429}


class RegistryRepository:
    """One repository, for the time of one operation: a source of images, and a context manager that ends it.

    Its methods may be called from several threads at once. After :meth:`interrupt` or :meth:`close` all of them fail.
    """

    def __init__(
        self,
        reference: Reference,
        transport: Transport,
        lines: OpenLines,
        limits: Limits,
        *,
        tls_transport: Callable[[], Transport] | None = None,
    ) -> None:
        self._reference = reference
        self._transport = transport
        self._lines = lines
        self._limits = limits
        self._tls_transport = tls_transport
        self._changing = threading.Lock()
        self._resolved: tuple[Descriptor, bytes] | None = None
        self._gives_ranges = True
        self._lists_referrers = True

    def resolve(self, name: str) -> Descriptor:
        """Return the descriptor of the manifest or index that a tag, or a digest, stands for now.

        It takes one request; opening the very descriptor that is returned takes no further one.

        Raises:
            InvalidReference, InvalidDigest: when ``name`` is neither a tag nor a digest.
            ManifestUnknown: when the repository has no such name, or there is no such repository.
            InvalidDocument: when it is no manifest or index, of another type than announced, or larger than 4 MiB.
            ContentMismatch: when it has not the digest that was asked for, or that the registry says it has.
        """
        asked = self._asked_digest(name)
        limit = self._limits.document_bytes
        reply = self._read_first(self._manifest_request(name), limit)
        shown = f"{self._reference.domain}/{self._reference.repository}{'@' if asked else ':'}{name}"
        if len(reply.content) > limit:
            raise InvalidDocument("", f"it is larger than {limit} bytes", shown)
        digest = _checked_digest(reply, asked, shown)
        media_type = _checked_type(reply, shown, self._limits)
        descriptor = Descriptor(media_type=media_type, digest=digest, size_bytes=len(reply.content))
        self._resolved = (descriptor, reply.content)
        return descriptor

    def head(self, name: str) -> Descriptor | None:
        """Return what :meth:`resolve` would, by a request that no registry counts and that fetches nothing.

        None is no answer: the registry does not say the digest, or refuses such a request, or does not know the name.
        Nothing of what it says is verified.

        Raises:
            InvalidReference, InvalidDigest: when ``name`` is neither a tag nor a digest.
            AuthenticationRefused, RateLimited: when it says so.
            RegistryError: when it fails, or cannot be reached.
        """
        asked = self._asked_digest(name)
        request = attrs.evolve(self._manifest_request(name), method="HEAD", accepts=_HEAD_STATUSES)
        try:
            reply = self._read_first(request, 0)
        except RegistryError as refused:
            if refused.status != 400:
                raise
            return None
        found = _announced_descriptor(reply) if reply.status == 200 else None
        return None if found is None or asked not in (None, found.digest) else found

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """Return the blob's bytes from ``offset`` on; a stream that is cut goes on by itself where it was.

        Manifests and indexes are fetched as such, whole.

        Raises:
            BlobNotFound: when the registry does not have it.
            ContentMismatch: when the registry announces another size.
            InvalidDocument: when a manifest or index is announced as something else, or larger than 4 MiB.
        """
        if media_types.is_document(descriptor.media_type):
            return ContentStream(self._read_document(descriptor), offset)
        target = self._blob_target(descriptor)
        return self._asked_first(lambda: BlobDownload(self._transport, target, descriptor, offset))

    def open_range(self, descriptor: Descriptor, offset: int, size_bytes: int, /) -> BlobStream | None:
        """Return exactly these bytes of a blob; None for a document, and where the registry gives no ranges.

        One that has given none once is not asked again.

        Raises:
            BlobNotFound, ContentMismatch: as for :meth:`open_blob`.
        """
        is_inside = 0 <= offset < offset + size_bytes <= descriptor.size_bytes
        if not is_inside or not self._gives_ranges or media_types.is_document(descriptor.media_type):
            return None
        target = self._blob_target(descriptor)
        stream = self._asked_first(lambda: RangeDownload(self._transport, target, descriptor, offset, size_bytes))
        self._gives_ranges = stream.is_given
        return stream if stream.is_given else None

    def referrers(self, descriptor: Descriptor, /) -> tuple[Descriptor, ...]:
        """Return what is listed as referring to a manifest or index, there or not; nothing of it is verified.

        Where the registry makes no such lists, and is asked for none again, it is what stands under the list's tag.

        Raises:
            InvalidDocument, ContentMismatch: when what comes is no list, or larger than 4 MiB.
            RegistryError: when the registry refuses, fails, cannot be reached, or never ends.

        Spec: OCI distribution-spec 1.1, "Listing Referrers".
        """
        repository, subject = self._reference.repository, descriptor.digest
        if self._lists_referrers:
            found = self._asked_first(lambda: list_referrers(self._transport, repository, subject, self._limits))
            if found is not None:
                return found
            self._lists_referrers = False
        asked = self._transport
        listed = read_list(self, subject, self._limits)
        if self._transport is asked:
            return () if listed is None else listed.manifests
        self._lists_referrers = True  # it was no answer of the registry that it knows no such lists
        return self.referrers(descriptor)

    def check_access(self) -> None:
        """See that the registry lets us in.

        Raises:
            AuthenticationRefused: when it, or its token server, does not.
            RegistryError: when it cannot be reached, or is no registry.

        Spec: OCI distribution-spec 1.1, "Determining Support".
        """
        self._read_first(Request(target="/v2/"), self._limits.error_bytes)

    def interrupt(self) -> None:
        """End at once, with an error, every read that blocks now and every later one. From any thread."""
        self._lines.interrupt()

    def close(self) -> None:
        """Close all connections, also those of streams that are open. A second call does nothing."""
        self._lines.interrupt()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _blob_target(self, descriptor: Descriptor) -> str:
        return f"/v2/{self._reference.repository}/blobs/{descriptor.digest}"

    def _asked_digest(self, name: str) -> Digest | None:
        """Return the digest that a name is, None where it is a tag.

        Raises:
            InvalidReference, InvalidDigest: when it is neither.
        """
        if ":" in name:
            return Digest.parse(name)
        Reference(domain=self._reference.domain, repository=self._reference.repository, tag=name)
        return None

    def _manifest_request(self, name: str, blob: Digest | None = None) -> Request:
        target = f"/v2/{self._reference.repository}/manifests/{name}"
        return Request(target=target, headers={"Accept": ACCEPT}, blob=blob)

    def _read_first(self, request: Request, limit_bytes: int) -> Reply:
        return self._asked_first(lambda: self._transport.read(request, limit_bytes))

    def _asked_first(self, ask: Callable[[], _T]) -> _T:
        """Return an answer to what a session may begin with; it also shows whether a registry here wants TLS.

        Where plain HTTP was a guess, servers with TLS refuse the request as a bad one, or hang up.
        """
        used = self._transport
        try:
            return ask()
        except RegistryError as refused:
            has_hung_up = isinstance(refused.__cause__, _HUNG_UP)
            if not (refused.status == 400 or has_hung_up):
                raise
            with self._changing:
                # Another thread may have found out meanwhile.
                if self._transport is used:
                    if self._tls_transport is None:
                        raise
                    self._change_to_tls(self._tls_transport(), refused)
        return ask()

    def _change_to_tls(self, secured: Transport, refused: RegistryError) -> None:
        try:
            secured.check_connection()
        except RegistryError as failed:
            secured.close()
            if isinstance(failed.__cause__, ssl.SSLCertVerificationError):
                raise
            raise refused from refused.__cause__
        self._transport.close()
        self._transport, self._tls_transport = secured, None

    def _read_document(self, descriptor: Descriptor) -> bytes:
        if self._resolved is not None:
            known, content = self._resolved
            if (known.digest, known.media_type) == (descriptor.digest, descriptor.media_type):
                return content
        name, size, limit = str(descriptor.digest), descriptor.size_bytes, self._limits.document_bytes
        if size > limit:
            raise InvalidDocument("", f"it is larger than {limit} bytes", name)
        request = self._manifest_request(name, descriptor.digest)
        reply = self._asked_first(lambda: self._transport.read(request, size, size))
        announced = media_types.essence(reply.content_type or "")
        if announced not in (descriptor.media_type, *media_types.GENERIC):
            problem = f"it is served as {quoted(announced, reply.secrets)}, where {descriptor.media_type} was expected"
            raise InvalidDocument("mediaType", problem, name)
        return reply.content


class WritableRepository(RegistryRepository):
    """The same for the parts of this end that do more with it than read."""

    @property
    def reference(self) -> Reference:
        """What it was opened for; its tag and digest do not matter."""
        return self._reference

    @property
    def transport(self) -> Transport:
        """How it is reached: for the parts of this end, and after :meth:`settle` only."""
        return self._transport

    @property
    def limits(self) -> Limits:
        """How large its documents may be."""
        return self._limits

    def settle(self) -> None:
        """See whether a registry on this machine wants TLS, before anything is asked that is not read.

        Raises:
            RegistryError: as :meth:`check_access`.
        """
        if self._tls_transport is not None:
            self.check_access()

    def delete(self, name: str) -> None:
        """Take a tag away, or by a digest a manifest and with it every tag that stands for it.

        Raises:
            ManifestUnknown: when the repository has no such name.
            RegistryError: when the registry refuses; many take no tag away alone, and some nothing at all.

        Spec: OCI distribution-spec 1.1, "Deleting tags" and "Deleting Manifests".
        """
        try:
            self._delete(name)
        except ManifestUnknown:
            raise
        except RegistryError as refused:
            if ":" in name or refused.status not in _NO_TAG_ALONE:
                raise
            digest = self.resolve(name).digest
            problem = f"it takes no tag away alone; by {digest} the manifest goes, and every tag of it"
            raise RegistryError("DELETE", refused.url, refused.status, refused.codes, problem) from None

    def _delete(self, name: str) -> None:
        target = f"/v2/{self.reference.repository}/manifests/{name}"
        request = Request(target=target, method="DELETE", accepts=(200, 202, 204))
        attempts, may_be_gone = self.transport.attempts(), False
        while True:
            try:
                self.transport.ask(request).close()
                return
            except Failure as failure:
                if may_be_gone and isinstance(failure.error, ManifestUnknown):
                    return  # it was only the answer that got lost
                may_be_gone |= not isinstance(failure.error, RateLimited)
                attempts.failed(failure)


def _announced_descriptor(reply: Reply) -> Descriptor | None:
    """Return what the head of an answer says that a manifest is; None where that is not all of it."""
    media_type = media_types.essence(reply.content_type or "")
    if reply.length_bytes is None or not media_types.is_document(media_type):
        return None
    try:
        digest = Digest.parse(reply.content_digest or "")
    except InvalidDigest:
        return None
    return Descriptor(media_type=media_type, digest=digest, size_bytes=reply.length_bytes)


def _checked_digest(reply: Reply, asked: Digest | None, name: str) -> Digest:
    """Return the digest of a manifest, computed from its bytes, if it is the one asked for and announced."""
    announced = None
    if reply.content_digest:
        try:
            announced = Digest.parse(reply.content_digest)
        except InvalidDigest:
            raise ContentMismatch(f"manifest {name}", "a digest", quoted(reply.content_digest, reply.secrets)) from None
    wanted = asked or announced
    actual = Digest.of(reply.content, wanted.algorithm if wanted is not None else "sha256")
    if wanted is not None and actual != wanted:
        raise ContentMismatch(f"manifest {name}", str(wanted), str(actual))
    return actual


def _checked_type(reply: Reply, name: str, limits: Limits) -> str:
    """Return the media type of a manifest, if the answer's header and the document agree on it."""
    announced = media_types.essence(reply.content_type or "")
    if announced in media_types.SCHEMA_1:
        raise InvalidDocument("", "Docker schema 1 manifests are not supported", name)
    if announced in media_types.GENERIC:
        announced = describe_document(reply.content, name, limits=limits).media_type
    if not media_types.is_document(announced):
        raise InvalidDocument("mediaType", f"{quoted(announced, reply.secrets)} is no manifest or index", name)
    return decode_document(reply.content, announced, name, limits=limits).media_type
