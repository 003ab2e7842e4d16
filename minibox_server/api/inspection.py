"""The endpoints that tell what is in an image: its documents, and how it was made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.api.image_descriptions import DETAILS_SCHEMA, STEP_SCHEMA, describe_details, describe_step
from minibox_server.api.images import LISTED_NAME, check_form
from minibox_server.declarations import PLATFORM, TEXT, Answer, Endpoint, parameter
from minibox_server.responses import RequestError
from minibox_server.schemas import list_of
from minibox_server.workers import Workers
from minibox_store import ContentMismatch, ImageNotFound, InvalidDocument, Platform, Store


@attrs.frozen(kw_only=True)
class InspectQuery:
    """Which image."""

    image: str = parameter(TEXT, LISTED_NAME)
    platform: Platform | None = parameter(
        PLATFORM, "which manifest of an index; without it each one, or for a history the usual one", default=None
    )


class InspectionEndpoints:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/images/inspect",
                what="Tell all that an image's documents and configs say.",
                call=self.inspect,
                query=InspectQuery,
                answers=(Answer(what="the image", media_type="application/json", schema=DETAILS_SCHEMA),),
                refusals=(404, 409, 422),
            ),
            Endpoint(
                method="GET",
                path="/images/history",
                what="Tell how an image was made, the oldest step first, each with the layer that it made.",
                call=self.history,
                query=InspectQuery,
                answers=(Answer(what="the steps", media_type="application/json", schema=list_of(STEP_SCHEMA)),),
                refusals=(404, 409, 422),
            ),
        ]

    async def inspect(self, request: Request, query: InspectQuery) -> Response:
        """Tell all that an image's documents and configs say."""
        return await self._answer(
            query.image, lambda: describe_details(self._store.inspect(query.image, platform=query.platform))
        )

    async def history(self, request: Request, query: InspectQuery) -> Response:
        """Tell how an image was made."""

        def call() -> object:
            return [describe_step(each) for each in self._store.history(query.image, platform=query.platform)]

        return await self._answer(query.image, call)

    async def _answer(self, name: str, call: Callable[[], object]) -> Response:
        def answer() -> Response:
            with naming(name):
                return JSONResponse(call())

        return await self._workers.run(self._workers.reading, answer)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say of what goes wrong while an image is looked into what it means where nothing came from a registry."""
    try:
        yield
    except ImageNotFound:
        check_form(name)
        raise
    except InvalidDocument as error:
        # No registry has just said it: the image is as its maker made it.
        raise RequestError(422, str(error)) from error
    except ContentMismatch as error:
        raise RequestError(500, f"store damaged: {error}") from error
