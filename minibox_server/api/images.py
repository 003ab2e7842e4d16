"""The endpoints about images: decode the request, one call of the store, encode the answer."""

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.api.descriptions import describe_image
from minibox_server.api.event_schemas import told_as_it_goes_on
from minibox_server.api.feeds import accepted_form
from minibox_server.api.listing import ImageList
from minibox_server.api.operations import Operations, StreamAnswer
from minibox_server.api.pulls import Pull, PullAnswer, pull_call
from minibox_server.declarations import PLATFORM, TEXT, Answer, Endpoint, Kind, NoQuery, parameter
from minibox_server.responses import RequestError, accepts_json, error_response, text_response
from minibox_server.schemas import IMAGE_SCHEMA, list_of
from minibox_server.transfers import Transfers
from minibox_server.workers import Workers
from minibox_store import (
    LINUX_AMD64,
    Image,
    ImageNotFound,
    InvalidDocument,
    InvalidPath,
    InvalidReference,
    Platform,
    Reference,
    RegistryBlocked,
    Store,
    check_image_name,
)

LISTED_NAME = "the name that GET /images lists, or one that spells the same reference"
IMAGE_NAME: Kind[str] = Kind(read=check_image_name, schema={"type": "string", "minLength": 1, "maxLength": 512})


@attrs.frozen(kw_only=True)
class PullQuery:
    """What a pull is asked for."""

    image: str = parameter(TEXT, "the reference; Docker Hub is the default registry")
    platform: Platform = parameter(PLATFORM, "which manifest of an index is pulled", default=LINUX_AMD64)


@attrs.frozen(kw_only=True)
class ImageQuery:
    """One image, by name."""

    image: str = parameter(TEXT, LISTED_NAME)


@attrs.frozen(kw_only=True)
class TagQuery:
    """One image, and what it is to be called too."""

    image: str = parameter(TEXT, LISTED_NAME)
    new_name: str = parameter(IMAGE_NAME, "the further name; one that stands for another image moves")


class ImageEndpoints:
    """The endpoints over one store; ``unpack`` says whether a pull unpacks too."""

    def __init__(
        self, store: Store, workers: Workers, operations: Operations, transfers: Transfers, *, unpack: bool
    ) -> None:
        self._store = store
        self._transfers = transfers
        self._operations = operations
        self._unpack = unpack
        self._workers = workers
        self._listing = ImageList(store, workers)

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/images",
                what="List the named images, sorted by name.",
                call=self.images,
                answers=(Answer(what="the images", media_type="application/json", schema=list_of(IMAGE_SCHEMA)),),
            ),
            Endpoint(
                method="POST",
                path="/images/pull",
                what="Pull an image from a registry, and tell of it line by line.",
                call=self.pull,
                query=PullQuery,
                answers=(
                    Answer(what="a line for each step; the last one says how it ended"),
                    *told_as_it_goes_on(IMAGE_SCHEMA),
                ),
                refusals=(403, 404, 409, 429, 501, 502, 507),
            ),
            Endpoint(
                method="POST",
                path="/images/remove",
                what="Take a name away; blobs stay until a prune.",
                call=self.remove,
                query=ImageQuery,
                answers=(Answer(what="one line"),),
                refusals=(404,),
            ),
            Endpoint(
                method="POST",
                path="/images/tag",
                what="Give an image a further name.",
                call=self.tag,
                query=TagQuery,
                answers=(
                    Answer(status=201, what="one line"),
                    Answer(
                        status=201,
                        what="the image under its new name",
                        media_type="application/json",
                        schema=IMAGE_SCHEMA,
                    ),
                ),
                refusals=(404, 507),
            ),
        ]

    async def images(self, request: Request, query: NoQuery) -> Response:
        """List the images."""
        return Response(await self._listing.read(), media_type="application/json")

    async def pull(self, request: Request, query: PullQuery) -> Response:
        """Pull an image, and tell of it line by line."""
        try:
            Reference.parse(query.image)
            check_image_name(query.image)
            await self._workers.run(self._workers.reading, lambda: self._store.check_allowed(query.image))
        except InvalidReference as error:
            return error_response(RequestError(400, f"[error] pull failed: {error}"), request.scope)
        except RegistryBlocked as error:
            return error_response(RequestError(403, f"[error] pull failed: {error}"), request.scope)
        except (InvalidPath, InvalidDocument):
            pass  # the pull itself says what is wrong with the rules
        pull = Pull(name=query.image, platform=query.platform, unpack=self._unpack)
        running = self._operations.join(
            doing="pull",
            limiter=self._workers.pulling,
            call=pull_call(self._transfers, self._operations, pull),
            key=pull,
        )
        form = accepted_form(request.headers)
        return PullAnswer(running) if form is None else StreamAnswer(running, form)

    async def remove(self, request: Request, query: ImageQuery) -> Response:
        """Take a name away."""
        name = query.image
        try:
            removed = await self._workers.run(self._workers.changing, lambda: self._store.remove(name))
        except ImageNotFound:
            check_form(name)
            raise RequestError(404, "image not found") from None
        return text_response(f"Image {removed} removed")

    async def tag(self, request: Request, query: TagQuery) -> Response:
        """Give an image a further name."""

        def call() -> Image:
            try:
                return self._store.tag(query.image, query.new_name)
            except ImageNotFound:
                check_form(query.image)
                raise

        tagged = await self._workers.run(self._workers.changing, call)
        if accepts_json(request.headers):
            return JSONResponse(describe_image(tagged), 201)
        return text_response(f"Tagged image {query.image} as {tagged.name}", 201)


def check_form(name: str) -> None:
    """Refuse a name that no image could have; asked only of one that none has, for other tools have other rules."""
    try:
        check_image_name(name)
    except InvalidReference as error:
        raise RequestError(400, f"parameter image: {error}") from error
