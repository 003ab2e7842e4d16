"""One blob on its way to a registry: begun, sent, and gone on with where the line was cut.

All of it goes in one request, unless chunks are asked for, by the caller or by a registry that takes no body so large.
After a cut the registry is asked what it has, and gets the rest; where it does not say, the upload begins anew.

Spec: OCI distribution-spec 1.1, "Pushing Blobs".
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress

import attrs

from minibox_store.digest import Digest
from minibox_store.documents import Descriptor
from minibox_store.errors import BlobNotFound, ContentMismatch, InvalidDigest, RegistryError
from minibox_store.limits import MEBIBYTE
from minibox_store.protocols import MOST_PLACES, BlobSource
from minibox_store.registry.answers import Answer
from minibox_store.registry.failures import RETRIED_STATUSES, Failure, SourceFailed, quoted
from minibox_store.registry.outgoing import BlobPart, BlobReader
from minibox_store.registry.transport import REDIRECTS, Request, Transport
from minibox_store.registry.urls import Url

# Where a registry, or what stands before it, finds a body too large without saying what it would take.
_FIRST_CHUNK_BYTES = 32 * MEBIBYTE
_SMALLEST_CHUNK_BYTES = 64 * 1024
# Many lose all of an upload whose line was cut: how often that counts as getting on, besides the usual tries.
_MOST_LOSSES = 4
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")
_NO_HEADERS: Mapping[str, str] = {}
_OCTETS: Mapping[str, str] = {"Content-Type": "application/octet-stream"}
_DONE = (200, 201, 204)
_TAKEN = (200, 201, 202, 204)


def has_blob(transport: Transport, repository: str, descriptor: Descriptor) -> bool:
    """Whether a repository holds a blob, as far as it says.

    Raises:
        StoreError: when it does not say.

    Spec: OCI distribution-spec 1.1, "Checking if content exists in the registry".
    """
    target = f"/v2/{repository}/blobs/{descriptor.digest}"
    asked = Request(target=target, method="HEAD", accepts=(200, 405, 501, *REDIRECTS), blob=descriptor.digest)
    with suppress(BlobNotFound):
        with closing(transport.open(asked, transport.attempts())) as answer:
            if answer.status == 200:
                return answer.length_bytes in (None, descriptor.size_bytes)
            if answer.status not in REDIRECTS:
                return False
        # Where it is kept a HEAD is often refused, and a GET is not.
        with closing(transport.open(Request(target=target, blob=descriptor.digest), transport.attempts())) as answer:
            return answer.length_bytes in (None, descriptor.size_bytes)
    return False


def check_digest(answer: Answer, digest: Digest, what: str) -> None:
    """Return if the registry does not say that it has kept something else than what was sent.

    Raises:
        ContentMismatch: when it says so.
    """
    announced = answer.header("Docker-Content-Digest")
    if not announced:
        return
    try:
        # It may call the same bytes by another algorithm.
        is_other = Digest.parse(announced) != digest and announced.partition(":")[0] == digest.algorithm
    except InvalidDigest:
        is_other = True
    if is_other:
        raise ContentMismatch(what, str(digest), quoted(announced, answer.secrets))


class BlobUpload:
    """The upload of one blob. For one thread.

    Args:
        transport: to the registry, by which the repository may be written to.
        repository: where it goes.
        descriptor: what the source says that it is.
        source: opened when the registry is ready, and again where it lacks some.
        chunk_bytes: how much goes in one request; None for all of it.
    """

    def __init__(
        self,
        transport: Transport,
        repository: str,
        descriptor: Descriptor,
        source: BlobSource,
        *,
        chunk_bytes: int | None = None,
    ) -> None:
        self._transport = transport
        self._repository = repository
        self._descriptor = descriptor
        self._reader = BlobReader(source, descriptor)
        self._chunk_bytes = chunk_bytes
        self._least_bytes = 0
        self._place: Url | None = None
        self._offset = 0
        self._furthest = 0
        self._is_in_doubt = False
        self._begun = 0
        self._losses = 0
        self._places = 1
        self._refused_at: int | None = None

    def begin_at(self, answer: Answer) -> None:
        """Go on with an upload that the registry has begun by an answer.

        Raises:
            RegistryError: when the answer does not say where.
        """
        self._place = self._transport.place_of(answer)
        least = answer.header("OCI-Chunk-Min-Length") or ""
        self._least_bytes = int(least) if _LENGTH.fullmatch(least) else 0
        self._offset = 0
        self._is_in_doubt = False
        # What comes of one that was begun anew counts like what came before, but not for ever.
        if self._begun <= _MOST_LOSSES:
            self._furthest = 0
        self._begun += 1

    def run(self) -> None:
        """Let the registry hold the blob.

        Raises:
            ContentMismatch: when the source's bytes are short, long or others, or the registry says that it has
                kept something else.
            StoreError: when the registry refuses it, or the tries are used up; or what the source raised.
        """
        attempts = self._transport.attempts()
        with closing(self._reader):
            while True:
                given_bytes = self._reader.given_bytes
                try:
                    if self._is_ready():
                        self._send()
                    return
                except SourceFailed as failed:
                    if not self._turns_elsewhere(failed.error):
                        raise failed.error from failed.error.__cause__
                except Failure as failure:
                    if self._asks_otherwise(failure):
                        continue
                    is_lost = self._reader.given_bytes > given_bytes and _status_of(failure) is None
                    if self._has_come_further() or (is_lost and self._may_lose()):
                        attempts.advanced()
                    attempts.failed(self._judged(failure))

    def _turns_elsewhere(self, error: Exception) -> bool:
        """Whether bytes were wrong that another place may have: then the upload begins anew, since it has got them."""
        self._places += 1
        if not isinstance(error, ContentMismatch) or self._places > MOST_PLACES or not self._reader.turns_elsewhere():
            return False
        self._place = None
        return True

    def _has_come_further(self) -> bool:
        before, self._furthest = self._furthest, max(self._furthest, self._offset)
        return self._furthest > before

    def _may_lose(self) -> bool:
        """Whether a registry may once more keep nothing of what it has got: it took its time, and was of no use."""
        self._losses += 1
        return self._losses <= _MOST_LOSSES

    def _is_ready(self) -> bool:
        """See that an upload is open, and how far it is; return False where the registry has the blob by now."""
        if self._place is not None and self._is_in_doubt and not self._is_known():
            self._place = None
        if self._place is None:
            if self._begun and has_blob(self._transport, self._repository, self._descriptor):
                return False  # it was only the answer that got lost
            request = Request(target=f"/v2/{self._repository}/blobs/uploads/", method="POST", accepts=(202,))
            with closing(self._transport.ask(request)) as answer:
                self.begin_at(answer)
        return True

    def _is_known(self) -> bool:
        """Ask the registry how much it has; return False where it does not say, or says what cannot be."""
        request = self._request("GET", (200, 202, 204))
        try:
            with closing(self._transport.ask(request)) as answer:
                taken = _taken_bytes(answer)
                if taken is None or taken > self._reader.seen_bytes:
                    return False
                self._go_on(answer, taken)
        except Failure as failure:
            status = _status_of(failure)
            if status is None or status in RETRIED_STATUSES:
                raise
            return False
        self._is_in_doubt = False
        return True

    def _go_on(self, answer: Answer, offset: int) -> None:
        self._offset = offset
        if answer.header("Location") is not None:
            self._place = self._transport.place_of(answer)

    def _send(self) -> None:
        """Send what the registry has not got yet.

        Raises:
            Failure: with what is in doubt then.
        """
        self._is_in_doubt = True
        size_bytes = self._descriptor.size_bytes
        if self._chunk_bytes is not None or self._offset:
            while self._offset < size_bytes:
                self._send_chunk()
        rest_bytes = size_bytes - self._offset
        rest = BlobPart(self._reader, self._offset, rest_bytes) if rest_bytes or not size_bytes else None
        query = [("digest", str(self._descriptor.digest))]
        with closing(self._transport.ask(self._request("PUT", _DONE, rest, _OCTETS, query))) as answer:
            check_digest(answer, self._descriptor.digest, f"blob {self._descriptor.digest} at {answer.url}")

    def _send_chunk(self) -> None:
        start, rest_bytes = self._offset, self._descriptor.size_bytes - self._offset
        count = min(rest_bytes, max(self._chunk_bytes or rest_bytes, self._least_bytes))
        end = start + count
        headers = {**_OCTETS, "Content-Range": f"{start}-{end - 1}"}
        request = self._request("PATCH", _TAKEN, BlobPart(self._reader, start, count), headers)
        with closing(self._transport.ask(request)) as answer:
            taken = _taken_bytes(answer)
            # Some take no more than they can store at once.
            self._go_on(answer, taken if taken is not None and start < taken < end else end)

    def _request(
        self,
        method: str,
        accepts: tuple[int, ...],
        body: BlobPart | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        query: Sequence[tuple[str, str]] = (),
    ) -> Request:
        assert self._place is not None
        # An upload's address often carries what stands for the right to go on with it.
        secrets, place = self._place.query_values, self._place.with_query(query) if query else self._place
        return Request(place=place, method=method, accepts=accepts, body=body, headers=headers, secrets=secrets)

    def _asks_otherwise(self, failure: Failure) -> bool:
        """Whether the registry wants the blob in other requests, and gets it so now: that is no try that failed."""
        status = _status_of(failure)
        if self._place is None:
            return False
        if status in (405, 501) and self._chunk_bytes is None:
            self._chunk_bytes, self._place = self._descriptor.size_bytes, None
            return True
        if status == 416:
            # GHCR says so of a chunk that is too large; the first time the offset may be wrong, and is asked for.
            refused_at, self._refused_at = self._refused_at, self._offset
            return refused_at == self._offset and self._takes_smaller()
        return status == 413 and self._takes_smaller()

    def _judged(self, failure: Failure) -> Failure:
        """Return what a failure of a registry means here, and change what is to be done about it."""
        status = _status_of(failure)
        if self._place is None or status is None:
            return failure
        if status == 416:
            return attrs.evolve(failure, may_retry=True)
        if status in (400, 404):
            # The upload is unknown by now, or is not what we think that it is: then we shall see whose fault it is.
            self._place = None
            is_unseen = status == 400 and self._reader.distrust()
            return attrs.evolve(failure, may_retry=True, only_once=not is_unseen)
        return failure

    def _takes_smaller(self) -> bool:
        """Begin anew in smaller chunks; return False where they are as small as they may be."""
        now = self._descriptor.size_bytes if self._chunk_bytes is None else self._chunk_bytes
        smaller = max(min(now // 4, _FIRST_CHUNK_BYTES), _SMALLEST_CHUNK_BYTES, self._least_bytes)
        if smaller >= now:
            return False
        self._chunk_bytes, self._place = smaller, None
        return True


def _status_of(failure: Failure) -> int | None:
    return failure.error.status if isinstance(failure.error, RegistryError) else None


def _taken_bytes(answer: Answer) -> int | None:
    """Return how many bytes a registry says that it has; None where it does not say.

    Of ``0-0`` nobody knows whether it is one byte or none.
    """
    found = _RANGE.fullmatch(answer.header("Range") or "")
    return int(found[1]) + 1 if found is not None and found[1] != "0" else None
