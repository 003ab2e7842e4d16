"""The endpoints by which others watch the daemon: what it offers, whether it is well, and what it has done."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.declarations import Answer, Endpoint, EndpointTable, NoQuery
from minibox_server.health import HealthCheck
from minibox_server.metrics import MEDIA_TYPE, Metrics
from minibox_server.openapi import describe_api
from minibox_server.responses import RequestError, text_response
from minibox_server.store_size import StoreSize
from minibox_store import __version__

_RETRY_SECONDS = 5


class WatchingEndpoints:
    """The endpoints.

    Args:
        health: whether the store is well.
        metrics: what was counted.
        size: how large the store is.
        endpoints: returns all those of the application, these among them.
    """

    def __init__(
        self, health: HealthCheck, metrics: Metrics, size: StoreSize, endpoints: Callable[[], EndpointTable]
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._size = size
        self._endpoints = endpoints
        self._description: bytes | None = None

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/openapi.json",
                what="Describe each endpoint: OpenAPI 3.1.",
                call=self.description,
                answers=(Answer(what="the description", media_type="application/json", schema={"type": "object"}),),
                tag="system",
            ),
            Endpoint(
                method="GET",
                path="/metrics",
                what="Tell what was counted since this process began, as Prometheus reads it.",
                call=self.metrics,
                answers=(Answer(what="the metrics"),),
                tag="system",
            ),
            Endpoint(
                method="GET",
                path="/healthz",
                what="Say that the daemon answers.",
                call=self.live,
                answers=(Answer(what="ok"),),
                is_open=True,
                tag="system",
            ),
            Endpoint(
                method="GET",
                path="/readyz",
                what="Say whether the store is there, its index can be read, and there is room; a 503 says what fails.",
                call=self.ready,
                answers=(Answer(what="ready"),),
                is_open=True,
                tag="system",
            ),
        ]

    async def description(self, request: Request, query: NoQuery) -> Response:
        """Describe each endpoint."""
        if self._description is None:
            self._description = bytes(JSONResponse(describe_api(self._endpoints(), version=__version__)).body)
        return Response(self._description, media_type="application/json")

    async def metrics(self, request: Request, query: NoQuery) -> Response:
        """Tell what was counted."""
        size = await self._size.look()
        if size is not None:
            self._metrics.set_store(images=size.images, size_bytes=size.size_bytes)
        return Response(self._metrics.encode(), headers={"Content-Type": MEDIA_TYPE})

    async def live(self, request: Request, query: NoQuery) -> Response:
        """Say that the daemon answers."""
        return text_response("ok")

    async def ready(self, request: Request, query: NoQuery) -> Response:
        """Say whether requests would be answered."""
        failed = (await self._health.look()).failed
        if failed:
            raise RequestError(503, f"not ready: {', '.join(failed)}", {"Retry-After": str(_RETRY_SECONDS)})
        return text_response("ready")
