"""The registry behind this one: what the store has not is brought from there when a client asks for it, and kept.

An answer begins when all that it promises is here and was verified: a manifest comes with everything that it names, an
index alone, so that nothing is fetched which nobody asks for. What is here is never asked for again: a tag stands for
what it stood for when it was brought, until the name is taken away.

Requests for the same thing wait for one fetch, which ends when the last of them has gone. What a client shows to prove
who it is goes nowhere: the upstream sees the credentials that this machine has for it, and is bound by the rules of
the registries file.
"""

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


@attrs.frozen
class Fetch:
    """The fetch of a manifest or index by its reference."""

    name: str

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it."""
        store.fetch(self.name, on_event=on_event, cancellation=cancellation)
        return {}


@attrs.frozen
class FetchPart:
    """The fetch of what an image here names: a manifest, or a lost blob.

    Attributes:
        names: of the images of which one may name it; they are asked one after another, in one transfer.
        digest: its digest.
    """

    names: tuple[str, ...]
    digest: Digest

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it."""
        for name in self.names:
            try:
                store.fetch_part(name, self.digest, on_event=on_event, cancellation=cancellation)
            except (BlobNotFound, ImageNotFound):
                continue  # not of this image; or that one has gone meanwhile
            return {}
        raise BlobNotFound(str(self.digest))


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
        running = self._operations.join(
            doing="fetch",
            limiter=self._workers.pulling,
            call=partial(self._fetch, reference, is_manifest),
            key=("upstream", reference, is_manifest),
        )
        with running.listening(request.receive) as listener:
            try:
                await listener.result()
            except NotFound:  # the upstream's own answer, or nothing here names it
                return False
        return True

    def _fetch(
        self, wanted: Reference, is_manifest: bool, progress: Progress, cancellation: Cancellation
    ) -> dict[str, object]:
        with self._operations.pull_turns.taking(cancellation) as turn:

            def on_event(event: Event) -> None:
                progress.on_event(event)
                if isinstance(event, ManifestChosen) and not is_index(event.descriptor.media_type):
                    turn.wait(progress.wait_behind)  # from here on layers move, as those of a pull

            self._bring_in(wanted, is_manifest, on_event, cancellation)
        return {}

    def _bring_in(
        self, wanted: Reference, is_manifest: bool, on_event: EventListener, cancellation: Cancellation
    ) -> None:
        if wanted.digest is not None:
            names = self._names_of(wanted, wanted.digest)
            try:
                if names:
                    self._transfers.run(FetchPart(tuple(names), wanted.digest), on_event, cancellation)
                    return
            except BlobNotFound:
                pass  # none of them names it
            if not is_manifest:
                raise BlobNotFound(str(wanted.digest))
        self._transfers.run(Fetch(str(wanted)), on_event, cancellation)

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
