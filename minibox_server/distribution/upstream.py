"""The registry behind this one: what the store has not is brought from there when a client asks for it, and kept.

An answer begins when all that it promises is here and was verified: a manifest comes with everything that it names, an
index alone, so that nothing is fetched which nobody asks for. What is here is never asked for again: a tag stands for
what it stood for when it was brought, until the name is taken away.

Requests for the same thing wait for one fetch, which ends when the last of them has gone. What a client shows to prove
who it is goes nowhere: the upstream sees the credentials that this machine has for it, and is bound by the rules of
the registries file.

The upstream may be such a daemon too, and have this one behind it in the end. So each names itself in the requests that
it hands on, and brings nothing for one in which it is named already. Two such requests wait for one fetch only where
the same daemons have handed them on: else each of two daemons could wait for the fetch of the other one.

Spec: RFC 9110, section 7.6.3.
"""

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import attrs
from starlette.requests import Request

from minibox_server.api.operations import Operations
from minibox_server.api.progress import Progress
from minibox_server.transfers import Transfers
from minibox_server.workers import Workers
from minibox_store import (
    BlobNotFound,
    Cancellation,
    Digest,
    Event,
    EventListener,
    ImageNotFound,
    InvalidReference,
    ManifestChosen,
    NotFound,
    Reference,
    Store,
    StoreDamaged,
    is_index,
)

# What such daemons are called in the Via header; proxies on the way are named there too, and do not matter.
_HANDED_ON = re.compile(r"(?:^|,)\s*1\.[01]\s+(minibox-[0-9a-f]{16})\s*(?=,|$)")
# No chain of registries is so long; and the upstream is sent no more of what clients make up.
_MOST_DAEMONS = 16


@attrs.frozen
class Fetch:
    """The fetch of a manifest or index by its reference, handed on by these daemons."""

    name: str
    via: tuple[str, ...]

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it."""
        store.fetch(self.name, via=self.via, on_event=on_event, cancellation=cancellation)
        return {}


@attrs.frozen
class FetchPart:
    """The fetch of what an image here names: a manifest, or a lost blob.

    Attributes:
        names: of the images of which one may name it; they are asked one after another, in one transfer.
        digest: its digest.
        via: the daemons that hand on the request for it.
    """

    names: tuple[str, ...]
    digest: Digest
    via: tuple[str, ...]

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it."""
        for name in self.names:
            try:
                store.fetch_part(name, self.digest, via=self.via, on_event=on_event, cancellation=cancellation)
            except (BlobNotFound, ImageNotFound):
                continue  # not of this image; or that one has gone meanwhile
            return {}
        raise BlobNotFound(str(self.digest))


@attrs.frozen
class _Wanted:
    """What is asked for, and what two requests have in common that wait for one fetch of it.

    Attributes:
        reference: at the upstream.
        is_manifest: whether it is a manifest or index, and no config or layer.
        via: the daemons that hand on the request, this one last.
    """

    reference: Reference
    is_manifest: bool
    via: tuple[str, ...]


class Upstream:
    """A registry that misses are brought from.

    Args:
        store: where they are kept.
        workers: whose place a fetch takes: one among the pulls.
        operations: by which requests wait for the same fetch.
        transfers: where it runs.
        registry: as references name it.
    """

    def __init__(
        self, store: Store, workers: Workers, operations: Operations, transfers: Transfers, registry: str
    ) -> None:
        self._store = store
        self._workers = workers
        self._operations = operations
        self._transfers = transfers
        self._registry = registry
        self._pseudonym = f"minibox-{secrets.token_hex(8)}"

    async def bring(self, request: Request, repository: str, wanted: str, *, is_manifest: bool) -> bool:
        """Let the store have what was not found in a repository; return whether it is here now.

        Args:
            request: who waits for it.
            repository: the name of the repository, well formed.
            wanted: a tag, which is not trusted, or a digest.
            is_manifest: whether it is a manifest or index; a config or layer is brought where a manifest here names it,
                and it was lost, and no other one.

        Raises:
            StoreError: when the upstream refuses, fails or cannot be reached, or the store cannot take it.
        """
        try:
            joined = f"{self._registry}/{repository}{'@' if ':' in wanted else ':'}{wanted}"
            reference = Reference.parse(joined)
        except InvalidReference:
            return False
        via = _handed_on_by(request)
        if self._pseudonym in via or len(via) >= _MOST_DAEMONS:
            return False
        asked = _Wanted(reference, is_manifest, (*via, self._pseudonym))
        running = self._operations.join(
            doing="fetch", limiter=self._workers.pulling, call=partial(self._fetch, asked), key=asked
        )
        with running.listening(request.receive) as listener:
            try:
                await listener.result()
            except NotFound:  # the upstream's own answer, or nothing here names it
                return False
        return True

    def _fetch(self, wanted: _Wanted, progress: Progress, cancellation: Cancellation) -> dict[str, object]:
        with self._operations.pull_turns.taking(cancellation) as turn:

            def on_event(event: Event) -> None:
                progress.on_event(event)
                if isinstance(event, ManifestChosen) and not is_index(event.descriptor.media_type):
                    turn.wait(progress.wait_behind)  # from here on layers move, as those of a pull

            self._bring_in(wanted, on_event, cancellation)
        return {}

    def _bring_in(self, wanted: _Wanted, on_event: EventListener, cancellation: Cancellation) -> None:
        reference, digest = wanted.reference, wanted.reference.digest
        if digest is not None:
            names = self._names_of(reference, digest)
            try:
                if names:
                    self._transfers.run(FetchPart(tuple(names), digest, wanted.via), on_event, cancellation)
                    return
            except BlobNotFound:
                pass  # none of them names it
            if not wanted.is_manifest:
                raise BlobNotFound(str(digest))
        self._transfers.run(Fetch(str(reference), wanted.via), on_event, cancellation)

    def _names_of(self, wanted: Reference, digest: Digest) -> list[str]:
        """Return the names of the images that came from this repository of the upstream, if any names the digest.

        What no image of the repository names is told without a look at each: clients ask so for every layer of a push.
        """
        with suppress(StoreDamaged):
            try:
                self._store.repository(wanted.repository).find(digest)
            except BlobNotFound:
                return []
        begin = f"{wanted.domain}/{wanted.repository}"
        return [
            image.name
            for image in self._store.images()
            if image.name.startswith(begin) and image.name[len(begin) : len(begin) + 1] in (":", "@")
        ]


def _handed_on_by(request: Request) -> tuple[str, ...]:
    """Return the daemons that have handed on a request, the last of them last."""
    return tuple(_HANDED_ON.findall(", ".join(request.headers.getlist("via"))))
