"""The OCI distribution API over the same store: what ``/v2/`` answers."""

from minibox_server.declarations import Endpoint
from minibox_server.distribution.discovering import Discovery
from minibox_server.distribution.managing import Managing
from minibox_server.distribution.reading import Reading
from minibox_server.distribution.uploading import Uploading
from minibox_server.distribution.upstream import Upstream
from minibox_server.workers import Workers
from minibox_store import Store


class Distribution:
    """A whole registry: what is pulled, pushed, discovered and managed; before an upstream, where there is one."""

    def __init__(self, store: Store, workers: Workers, upstream: Upstream | None = None) -> None:
        self._parts = (
            Reading(store, workers, upstream),
            Managing(store, workers),
            Discovery(store, workers),
            Uploading(store, workers),  # the last one: a repository's own path may hold these words
        )

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [endpoint for part in self._parts for endpoint in part.all()]


__all__ = ["Distribution", "Upstream"]
