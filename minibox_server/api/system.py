"""The endpoints about the daemon and its store as a whole."""

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from minibox_server.api.descriptions import describe_report
from minibox_server.declarations import SWITCH, Answer, Endpoint, NoQuery, parameter
from minibox_server.schemas import PRUNE_SCHEMA
from minibox_server.workers import Workers
from minibox_store import Store


@attrs.frozen(kw_only=True)
class PruneQuery:
    """What a prune is asked for."""

    build_cache: bool = parameter(SWITCH, "whether unpacked layers that nothing uses go too", default=False)
    dry_run: bool = parameter(SWITCH, "whether to answer with the plan, and change nothing", default=False)


class SystemEndpoints:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/ping",
                what="Say that the daemon runs.",
                call=self.ping,
                answers=(Answer(what="Daemon is running"),),
                tag="system",
            ),
            Endpoint(
                method="POST",
                path="/system/prune",
                what="Remove what no image needs, or say what that would be.",
                call=self.prune,
                query=PruneQuery,
                answers=(Answer(what="what was removed", media_type="application/json", schema=PRUNE_SCHEMA),),
                tag="system",
            ),
        ]

    async def ping(self, request: Request, query: NoQuery) -> Response:
        """Say that the daemon runs."""
        return PlainTextResponse("Daemon is running")

    async def prune(self, request: Request, query: PruneQuery) -> Response:
        """Remove what no image needs, or say what that would be."""
        report = await self._workers.run(
            self._workers.changing,
            lambda: self._store.prune(build_cache=query.build_cache, dry_run=query.dry_run),
        )
        return JSONResponse(describe_report(report, build_cache=query.build_cache))
