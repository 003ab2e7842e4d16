"""The OCI distribution API over the same store: what ``/v2/`` answers."""

from minibox_server.distribution.reading import Distribution
from minibox_server.distribution.upstream import Upstream

__all__ = ["Distribution", "Upstream"]
