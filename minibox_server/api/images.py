"""The endpoints about images: decode the request, one call of the store, encode the answer."""

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from minibox_server.api.descriptions import describe_image
from minibox_server.api.feeds import accepted_form
from minibox_server.api.operations import Operations, StreamAnswer
from minibox_server.api.pulls import PullAnswer, pull_call
from minibox_server.archive_paths import ArchivePaths
from minibox_server.declarations import PLATFORM, TEXT, Answer, Endpoint, NoQuery, parameter
from minibox_server.responses import RequestError, error_response, text_response
from minibox_server.workers import Workers
from minibox_store import (
    LINUX_AMD64,
    Cancellation,
    ContentMismatch,
    Image,
    ImageNotFound,
    IncompleteImage,
    InvalidInput,
    InvalidPath,
    InvalidReference,
    Platform,
    Reference,
    Store,
    StoreFull,
    check_image_name,
    one_line,
)


@attrs.frozen(kw_only=True)
class PullQuery:
    """What a pull is asked for."""

    image: str = parameter(TEXT, "the reference; Docker Hub is the default registry")
    platform: Platform = parameter(PLATFORM, "which manifest of an index is pulled", default=LINUX_AMD64)


@attrs.frozen(kw_only=True)
class SaveQuery:
    """What a save is asked for."""

    image: str = parameter(TEXT, "which image", missing="missing image or path")
    path: str = parameter(TEXT, "the file on the daemon's machine, absolute", missing="missing image or path")


@attrs.frozen(kw_only=True)
class LoadQuery:
    """What a load is asked for."""

    path: str = parameter(TEXT, "the file on the daemon's machine, absolute")


@attrs.frozen(kw_only=True)
class ImageQuery:
    """One image, by name."""

    image: str = parameter(TEXT, "the name that GET /images lists, or one that spells the same reference")


class ImageEndpoints:
    """The endpoints over one store; ``unpack`` says whether a pull unpacks too."""

    def __init__(
        self, store: Store, paths: ArchivePaths, workers: Workers, operations: Operations, *, unpack: bool
    ) -> None:
        self._store = store
        self._operations = operations
        self._unpack = unpack
        self._paths = paths
        self._workers = workers
        self._listing = ImageList()

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/images",
                what="List the named images, sorted by name.",
                call=self.images,
                answers=(Answer(what="the images", media_type="application/json"),),
            ),
            Endpoint(
                method="POST",
                path="/images/pull",
                what="Pull an image from a registry, and tell of it line by line.",
                call=self.pull,
                query=PullQuery,
                answers=(Answer(what="a line for each step; the last one says how it ended"),),
            ),
            Endpoint(
                method="POST",
                path="/images/save",
                what="Write an image to an archive on the daemon's machine.",
                call=self.save,
                query=SaveQuery,
                answers=(Answer(what="one line"),),
                refusals=(403, 404, 409, 507),
            ),
            Endpoint(
                method="POST",
                path="/images/load",
                what="Bring the images of an archive into the store.",
                call=self.load,
                query=LoadQuery,
                answers=(Answer(what="a line for each image"),),
                refusals=(403, 422, 507),
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
        ]

    async def images(self, request: Request, query: NoQuery) -> Response:
        """List the images."""
        body = await self._workers.run(self._workers.reading, lambda: self._listing.encode(self._store.images()))
        return Response(body, media_type="application/json")

    async def pull(self, request: Request, query: PullQuery) -> Response:
        """Pull an image, and tell of it line by line."""
        try:
            Reference.parse(query.image)
            check_image_name(query.image)
        except InvalidReference as error:
            return error_response(RequestError(400, f"[error] pull failed: {error}"), request.scope)
        running = self._operations.join(
            doing="pull",
            limiter=self._workers.pulling,
            call=pull_call(self._store, self._operations, query.image, query.platform, unpack=self._unpack),
            key=("pull", query.image, query.platform, self._unpack),
        )
        form = accepted_form(request.headers)
        return PullAnswer(running) if form is None else StreamAnswer(running, form)

    async def save(self, request: Request, query: SaveQuery) -> Response:
        """Write an image to a file."""
        name, path = query.image, query.path

        def call(cancellation: Cancellation) -> None:
            with self._paths.open_target(path) as (folder, file_name):
                try:
                    self._store.save(name, file_name, dir_fd=folder, cancellation=cancellation)
                except (InvalidPath, StoreFull) as error:
                    # The library was given the name alone; the client named the whole path.
                    raise attrs.evolve(error, path=path) if error.path == file_name else error from None
                except ImageNotFound:
                    _check_form(name)
                    raise

        await self._workers.run_operation(self._workers.changing, request.receive, call)
        return text_response(f"Saved image {name} to {path}")

    async def load(self, request: Request, query: LoadQuery) -> Response:
        """Bring the images of a file into the store."""
        path = query.path

        def call(cancellation: Cancellation) -> tuple[Image, ...]:
            with self._paths.open_archive(path) as file:
                try:
                    return self._store.load(file, cancellation=cancellation)
                except (InvalidInput, ContentMismatch, IncompleteImage) as error:
                    # Whatever is wrong in an archive, its name or its digests, is wrong with the archive.
                    raise RequestError(422, str(error)) from error

        loaded = await self._workers.run_operation(self._workers.changing, request.receive, call)
        return PlainTextResponse("".join(f"{one_line(f'Loaded image {each.name} from {path}')}\n" for each in loaded))

    async def remove(self, request: Request, query: ImageQuery) -> Response:
        """Take a name away."""
        name = query.image
        try:
            removed = await self._workers.run(self._workers.changing, lambda: self._store.remove(name))
        except ImageNotFound:
            _check_form(name)
            raise RequestError(404, "image not found") from None
        return text_response(f"Image {removed} removed")


class ImageList:
    """GET /images as bytes, made anew only when the store's listing is another one."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Image, ...], bytes] | None = None

    def encode(self, images: tuple[Image, ...]) -> bytes:
        """Return the JSON array of ``images``."""
        last = self._last
        if last is not None and last[0] is images:
            return last[1]
        body = bytes(JSONResponse([describe_image(image) for image in images]).body)
        self._last = (images, body)
        return body


def _check_form(name: str) -> None:
    """Refuse a name that no image could have; asked only of one that none has, for other tools have other rules."""
    try:
        check_image_name(name)
    except InvalidReference as error:
        raise RequestError(400, f"parameter image: {error}") from error
