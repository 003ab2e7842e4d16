"""The endpoints about the daemon and its store as a whole."""

import anyio
import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from minibox_server.api.descriptions import describe_report
from minibox_server.api.event_schemas import told_as_it_goes_on
from minibox_server.api.feeds import accepted_form
from minibox_server.api.long_answers import LongAnswer
from minibox_server.api.operations import Operations
from minibox_server.api.progress import Doing
from minibox_server.api.running import Call, Result
from minibox_server.api.store_descriptions import (
    FINDINGS_SCHEMA,
    INFO_SCHEMA,
    REPAIR_SCHEMA,
    USAGE_SCHEMA,
    describe_findings,
    describe_info,
    describe_repair,
    encode_usage,
)
from minibox_server.declarations import SWITCH, Answer, Endpoint, NoQuery, counted, parameter
from minibox_server.schemas import PRUNE_SCHEMA
from minibox_server.shared_calls import SharedCall
from minibox_server.workers import Workers
from minibox_store import Cancellation, EventListener, Store

# Of more blobs than this nobody sees one by one who needs them.
_MOST_BLOBS = 10_000
_USUAL_BLOBS = 1_000
# Each walks all documents of the store, and keeps the map of them.
_WEIGHING = 2


@attrs.frozen(kw_only=True)
class PruneQuery:
    """What a prune is asked for."""

    build_cache: bool = parameter(SWITCH, "whether unpacked layers that nothing uses go too", default=False)
    dry_run: bool = parameter(SWITCH, "whether to answer with the plan, and change nothing", default=False)


@attrs.frozen(kw_only=True)
class UsageQuery:
    """How much is told of the bytes."""

    blobs: int = parameter(
        counted(most=_MOST_BLOBS), "of how many of the largest blobs it is told who needs them", default=_USUAL_BLOBS
    )


class SystemEndpoints:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers, operations: Operations) -> None:
        self._store = store
        self._workers = workers
        self._operations = operations
        self._weighing = anyio.CapacityLimiter(_WEIGHING)
        self._usual_usage = SharedCall(workers, self._weighing, lambda: self._weigh(_USUAL_BLOBS))

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [*self._of_what_is_there(), *self._of_what_changes_it()]

    def _of_what_is_there(self) -> list[Endpoint]:
        return [
            Endpoint(
                method="GET",
                path="/ping",
                what="Say that the daemon runs.",
                call=self.ping,
                passes_others=True,
                answers=(Answer(what="Daemon is running"),),
                tag="system",
            ),
            Endpoint(
                method="GET",
                path="/system/df",
                what="Tell whose the bytes are: of each image its own and its shared ones, and of each blob.",
                call=self.usage,
                query=UsageQuery,
                answers=(Answer(what="the bytes", media_type="application/json", schema=USAGE_SCHEMA),),
                refusals=(409,),
                tag="system",
            ),
            Endpoint(
                method="GET",
                path="/system/info",
                what="Tell what the store is, and what it can do where it lies.",
                call=self.info,
                answers=(Answer(what="the store", media_type="application/json", schema=INFO_SCHEMA),),
                tag="system",
            ),
            Endpoint(
                method="POST",
                path="/system/verify",
                what="Read and hash every byte of every image, and tell what is wrong; nothing is changed.",
                call=self.verify,
                answers=(
                    Answer(what="what was found", media_type="application/json", schema=FINDINGS_SCHEMA),
                    *told_as_it_goes_on(FINDINGS_SCHEMA),
                ),
                tag="system",
            ),
        ]

    def _of_what_changes_it(self) -> list[Endpoint]:
        return [
            Endpoint(
                method="POST",
                path="/system/prune",
                what="Remove what no image needs, or say what that would be.",
                call=self.prune,
                query=PruneQuery,
                answers=(
                    Answer(what="what was removed", media_type="application/json", schema=PRUNE_SCHEMA),
                    *told_as_it_goes_on(PRUNE_SCHEMA),
                ),
                refusals=(409, 507),
                tag="system",
            ),
            Endpoint(
                method="POST",
                path="/system/repair",
                what="Set aside what is wrong, and fetch it again from where it was pulled.",
                call=self.repair,
                answers=(
                    Answer(what="what was done", media_type="application/json", schema=REPAIR_SCHEMA),
                    *told_as_it_goes_on(REPAIR_SCHEMA),
                ),
                refusals=(409, 507),
                tag="system",
            ),
        ]

    async def ping(self, request: Request, query: NoQuery) -> Response:
        """Say that the daemon runs."""
        return PlainTextResponse("Daemon is running")

    async def prune(self, request: Request, query: PruneQuery) -> Response:
        """Remove what no image needs, or say what that would be."""
        # Who sees how it goes on ends it by going away; whoever just asked for it may go, and it is done.
        is_watched = accepted_form(request.headers) is not None

        def call(on_event: EventListener, cancellation: Cancellation) -> Result:
            report = self._store.prune(
                build_cache=query.build_cache,
                dry_run=query.dry_run,
                on_event=on_event,
                cancellation=cancellation if is_watched else None,
            )
            return describe_report(report, build_cache=query.build_cache)

        return await self._answer(request, "prune", call, key=None)

    async def usage(self, request: Request, query: UsageQuery) -> Response:
        """Tell whose the bytes are."""
        if query.blobs == _USUAL_BLOBS:
            # Each page that somebody looks at asks for this whenever the store changes.
            pieces = await self._usual_usage.result()
        else:
            pieces = await self._workers.run(self._weighing, lambda: self._weigh(query.blobs))
        return LongAnswer(pieces, "application/json")

    def _weigh(self, blobs: int) -> tuple[bytes, ...]:
        return tuple(encode_usage(self._store.usage(most_blobs=blobs)))

    async def info(self, request: Request, query: NoQuery) -> Response:
        """Tell what the store is."""

        def call() -> Response:
            return JSONResponse(describe_info(self._store.info(), images=len(self._store.images())))

        return await self._workers.run(self._workers.reading, call)

    async def verify(self, request: Request, query: NoQuery) -> Response:
        """Read and hash every byte of every image."""

        def call(on_event: EventListener, cancellation: Cancellation) -> Result:
            return describe_findings(self._store.verify(on_event=on_event, cancellation=cancellation))

        return await self._answer(request, "verify", call, key="verify")

    async def repair(self, request: Request, query: NoQuery) -> Response:
        """Mend what is wrong."""

        def call(on_event: EventListener, cancellation: Cancellation) -> Result:
            return describe_repair(self._store.repair(on_event=on_event, cancellation=cancellation))

        return await self._answer(request, "repair", call, key="repair")

    async def _answer(self, request: Request, doing: Doing, call: Call, *, key: str | None) -> Response:
        return await self._operations.answer(
            request, doing=doing, limiter=self._workers.changing, call=call, plain=JSONResponse, key=key
        )
