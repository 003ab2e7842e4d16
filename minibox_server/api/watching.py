"""The endpoints by which others watch the daemon: what it offers, whether it is well, and what it has done."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.declarations import Answer, Endpoint, EndpointTable, NoQuery
from minibox_server.openapi import describe_api
from minibox_store import __version__


class WatchingEndpoints:
    """The endpoints; ``endpoints`` returns all those of the application, these among them."""

    def __init__(self, endpoints: Callable[[], EndpointTable]) -> None:
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
        ]

    async def description(self, request: Request, query: NoQuery) -> Response:
        """Describe each endpoint."""
        if self._description is None:
            self._description = bytes(JSONResponse(describe_api(self._endpoints(), version=__version__)).body)
        return Response(self._description, media_type="application/json")
