"""The endpoints about archives: on the daemon's machine, and over the connection."""

from typing import BinaryIO

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from minibox_server.api.descriptions import describe_image
from minibox_server.api.images import check_form
from minibox_server.archive_paths import ArchivePaths
from minibox_server.bodies import AnswerToBody, RequestBody
from minibox_server.declarations import TEXT, Answer, Body, Endpoint, parameter
from minibox_server.responses import RequestError, accepts_json, text_response
from minibox_server.workers import Workers
from minibox_store import (
    Cancellation,
    ContentMismatch,
    Image,
    ImageNotFound,
    IncompleteImage,
    InvalidInput,
    InvalidPath,
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


class ArchiveEndpoints:
    """The endpoints over one store."""

    def __init__(self, store: Store, paths: ArchivePaths, workers: Workers) -> None:
        self._store = store
        self._paths = paths
        self._workers = workers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
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
                what="Bring the images of an archive into the store: of a file, or of the body.",
                call=self.load,
                query=LoadQuery,
                body=Body(
                    what="the archive, of any form that the store reads, compressed or not",
                    media_types=ARCHIVE_TYPES,
                    most_bytes=None,
                    instead_of="path",
                ),
                answers=(
                    Answer(what="a line for each image"),
                    Answer(what="the images", media_type="application/json"),
                ),
                refusals=(403, 408, 422, 507),
            ),
        ]

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
                    check_form(name)
                    raise

        await self._workers.run_operation(self._workers.changing, request.receive, call)
        return text_response(f"Saved image {name} to {path}")

    async def load(self, request: Request, query: LoadQuery) -> Response:
        """Bring the images of a file, or of the body, into the store."""
        path, said = query.path, _type_of_body(request)
        if path is None:
            if said is None or said not in ("", *ARCHIVE_TYPES):
                raise RequestError(400, _NO_PATH)
            return AnswerToBody(request, lambda body: self._load_body(request, body))
        if said in ARCHIVE_TYPES:
            raise RequestError(400, "there is both a parameter path and an archive in the body")

        def call(cancellation: Cancellation) -> tuple[Image, ...]:
            with self._paths.open_archive(path) as file:
                return self._load(file, cancellation)

        loaded = await self._workers.run_operation(self._workers.changing, request.receive, call)
        return _answer(request, loaded, path)

    async def _load_body(self, request: Request, body: RequestBody) -> Response:
        def call(cancellation: Cancellation) -> tuple[Image, ...]:
            with cancellation.interrupting(body):
                return self._load(body, cancellation)

        loaded = await self._workers.run_operation(self._workers.receiving, body.receive, call)
        return _answer(request, loaded, body.name)

    def _load(self, file: BinaryIO, cancellation: Cancellation) -> tuple[Image, ...]:
        try:
            return self._store.load(file, cancellation=cancellation)
        except (InvalidInput, ContentMismatch, IncompleteImage) as error:
            # Whatever is wrong in an archive, its name or its digests, is wrong with the archive.
            raise RequestError(422, str(error)) from error


def _type_of_body(request: Request) -> str | None:
    """Return what the body of a request is said to be, nothing where it is not said; None where there is no body."""
    if "transfer-encoding" not in request.headers and not request.headers.get("content-length", "").strip("0"):
        return None
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _answer(request: Request, loaded: tuple[Image, ...], source: str) -> Response:
    if accepts_json(request.headers):
        return JSONResponse({"images": [describe_image(each) for each in loaded]})
    return PlainTextResponse("".join(f"{one_line(f'Loaded image {each.name} from {source}')}\n" for each in loaded))
