"""The endpoints about archives: on the daemon's machine, and over the connection."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, get_args

import attrs
from anyio import CapacityLimiter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from minibox_server.api.archive_answers import ARCHIVE_TYPE, OnTheirWay, answer_archive
from minibox_server.api.descriptions import describe_image
from minibox_server.api.event_schemas import told_as_it_goes_on
from minibox_server.api.images import check_form
from minibox_server.api.inspection import naming
from minibox_server.api.operations import Operations
from minibox_server.api.running import Result
from minibox_server.archive_paths import ArchivePaths
from minibox_server.bodies import AnswerToBody, RequestBody
from minibox_server.declarations import PLATFORM, TEXT, Answer, Body, Endpoint, choice, parameter
from minibox_server.responses import RequestError, accepts_json, text_response
from minibox_server.schemas import IMAGE_SCHEMA, TEXT_SCHEMA, list_of, record
from minibox_server.workers import Workers
from minibox_store import (
    ArchiveFormat,
    Cancellation,
    ContentMismatch,
    EventListener,
    Image,
    ImageNotFound,
    IncompleteImage,
    InvalidArchive,
    InvalidDocument,
    InvalidInput,
    InvalidPath,
    Platform,
    Store,
    StoreFull,
    one_line,
)

# What the archive is, its first bytes say; the type tells it from the bodies that are passed over.
ARCHIVE_TYPES = (
    *("application/x-tar", "application/tar", "application/octet-stream"),
    *("application/gzip", "application/x-gzip", "application/zstd", "application/x-zstd", "application/x-xz"),
)
_NO_PATH = "missing path"
_OPENING = 2
LOADED_SCHEMA = record({"images": list_of(IMAGE_SCHEMA)})
SAVED_SCHEMA = record({"images": list_of(IMAGE_SCHEMA), "path": TEXT_SCHEMA})
_OF_ALL = {"ETag": "archives of the same bytes have the same", "Cache-Control": "no-cache"}
_HEADERS = {
    **_OF_ALL,
    "Content-Length": "how many bytes follow",
    "Content-Disposition": "a safe name for the file",
    "Accept-Ranges": "bytes",
}

_Opened = Callable[[Cancellation], AbstractContextManager[BinaryIO]]


@attrs.frozen(kw_only=True)
class SaveQuery:
    """What a save is asked for."""

    image: str = parameter(TEXT, "which image", missing="missing image or path")
    path: str = parameter(TEXT, "the file on the daemon's machine, absolute", missing="missing image or path")


@attrs.frozen(kw_only=True)
class LoadQuery:
    """What a load is asked for."""

    path: str | None = parameter(
        TEXT,
        "the file on the daemon's machine, absolute; without it the body is loaded",
        default=None,
        missing=_NO_PATH,
    )


@attrs.frozen(kw_only=True)
class ArchiveQuery:
    """Which archive."""

    image: tuple[str, ...] = parameter(TEXT, "which image, or images", missing="missing image", repeated=True)
    format: ArchiveFormat = parameter(choice(*get_args(ArchiveFormat)), "its form", default="minibox")
    platform: Platform | None = parameter(PLATFORM, "which manifest of an index; the whole without it", default=None)


class ArchiveEndpoints:
    """The endpoints over one store."""

    def __init__(self, store: Store, paths: ArchivePaths, workers: Workers, operations: Operations) -> None:
        self._store = store
        self._paths = paths
        self._workers = workers
        self._operations = operations
        self._on_their_way = OnTheirWay()
        # All files of an archive are opened before it is known whether they are too many.
        self._opening = CapacityLimiter(_OPENING)

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="POST",
                path="/images/save",
                what="Write an image to an archive on the daemon's machine.",
                call=self.save,
                query=SaveQuery,
                answers=(
                    Answer(what="one line"),
                    *told_as_it_goes_on(SAVED_SCHEMA),
                ),
                refusals=(403, 404, 409, 422, 507),
            ),
            Endpoint(
                method="POST",
                path="/images/load",
                what="Bring the images of an archive into the store: of a file, or of the body.",
                call=self.load,
                query=LoadQuery,
                passes_others=True,  # it has one parameter, and says "missing path" where that is misspelt
                body=Body(
                    what="the archive, of any form that the store reads, compressed or not",
                    media_types=ARCHIVE_TYPES,
                    most_bytes=None,
                    instead_of="path",
                ),
                answers=(
                    Answer(what="a line for each image"),
                    Answer(
                        what="the images that came in the body", media_type="application/json", schema=LOADED_SCHEMA
                    ),
                    *told_as_it_goes_on(LOADED_SCHEMA),
                ),
                refusals=(403, 408, 422, 501, 507),
            ),
            Endpoint(
                method="GET",
                path="/images/archive",
                what="Send an archive of images, whose exact size is said first; a range of it where one is asked for.",
                call=self.archive,
                query=ArchiveQuery,
                answers=(
                    Answer(what="the archive", media_type=ARCHIVE_TYPE, headers=_HEADERS),
                    Answer(
                        status=206,
                        what="the range",
                        media_type=ARCHIVE_TYPE,
                        headers={**_HEADERS, "Content-Range": "which bytes of how many"},
                    ),
                    Answer(status=304, what="what the client has is the same", media_type=None, headers=_OF_ALL),
                ),
                refusals=(404, 409, 416, 422),
            ),
        ]

    async def save(self, request: Request, query: SaveQuery) -> Response:
        """Write an image to a file."""
        name, path = query.image, query.path

        def call(on_event: EventListener, cancellation: Cancellation) -> Result:
            with self._paths.open_target(path) as (folder, file_name):
                try:
                    with naming(name):
                        saved = self._store.save(
                            name, file_name, dir_fd=folder, on_event=on_event, cancellation=cancellation
                        )
                except (InvalidPath, StoreFull) as error:
                    # The library was given the name alone; the client named the whole path.
                    raise attrs.evolve(error, path=path) if error.path == file_name else error from None
            return {"images": [describe_image(saved)], "path": path}

        return await self._operations.answer(
            request,
            doing="save",
            limiter=self._workers.changing,
            call=call,
            plain=lambda _: text_response(f"Saved image {name} to {path}"),
        )

    async def load(self, request: Request, query: LoadQuery) -> Response:
        """Bring the images of a file, or of the body, into the store."""
        path, said = query.path, _type_of_body(request)
        if path is None:
            if said is None or said not in ("", *ARCHIVE_TYPES):
                raise RequestError(400, _NO_PATH)
            return AnswerToBody(request, lambda body: self._load_body(request, body))
        if said in ARCHIVE_TYPES and await _has_content(request):
            raise RequestError(400, "there is both a parameter path and an archive in the body")

        return await self._answer_load(
            request, self._workers.changing, lambda cancellation: self._paths.open_archive(path), path
        )

    async def _load_body(self, request: Request, body: RequestBody) -> Response:
        @contextmanager
        def opened(cancellation: Cancellation) -> Iterator[BinaryIO]:
            with cancellation.interrupting(body):
                yield body

        watched = Request(request.scope, body.receive)
        return await self._answer_load(watched, self._workers.receiving, opened, body.name)

    async def _answer_load(self, request: Request, limiter: CapacityLimiter, opened: _Opened, source: str) -> Response:
        loaded: list[Image] = []

        def call(on_event: EventListener, cancellation: Cancellation) -> Result:
            with opened(cancellation) as file:
                try:
                    loaded.extend(self._store.load(file, on_event=on_event, cancellation=cancellation))
                except (InvalidInput, ContentMismatch, IncompleteImage) as error:
                    # Whatever is wrong in an archive, its name or its digests, is wrong with the archive.
                    if isinstance(error, InvalidArchive) and source != RequestBody.name:
                        error = attrs.evolve(error, path=source)  # the library was given an open file alone
                    raise RequestError(422, str(error)) from error
            return {"images": [describe_image(each) for each in loaded]}

        def plain(result: Result) -> Response:
            # Who names a file has the line of the contract, whatever it accepts.
            if source == RequestBody.name and accepts_json(request.headers):
                return JSONResponse(result)
            lines = [one_line(f"Loaded image {each.name} from {source}") for each in loaded]
            return PlainTextResponse("".join(f"{line}\n" for line in lines))

        return await self._operations.answer(request, doing="load", limiter=limiter, call=call, plain=plain)

    async def archive(self, request: Request, query: ArchiveQuery) -> Response:
        """Send an archive of images."""

        def call() -> Response:
            try:
                archive = self._store.open_archive(query.image, format=query.format, platform=query.platform)
            except ImageNotFound as error:
                check_form(error.name)
                raise
            except InvalidDocument as error:
                raise RequestError(422, str(error)) from error
            try:
                return answer_archive(self._workers, self._on_their_way, archive, request.headers, request.method)
            except BaseException:
                archive.close()
                raise

        return await self._workers.run(self._opening, call)


def _type_of_body(request: Request) -> str | None:
    """Return what the body of a request is said to be, nothing where it is not said; None where there is no body."""
    if "transfer-encoding" not in request.headers and not request.headers.get("content-length", "").strip("0"):
        return None
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _has_content(request: Request) -> bool:
    """Whether there is anything in the body of a request: an empty one may come in chunks, too."""
    if "transfer-encoding" not in request.headers:
        return True
    while (message := await request.receive())["type"] == "http.request":
        if message.get("body") or not message.get("more_body", False):
            return bool(message.get("body"))
    return False
