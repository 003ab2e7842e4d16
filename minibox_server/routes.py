"""The endpoints of the command-line client: decode the request, one call of the store, encode the answer."""

import asyncio
import logging
from collections.abc import Mapping

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from minibox_server.archive_paths import ArchivePaths
from minibox_server.parameters import Parameters
from minibox_server.responses import RequestError, error_response, text_response
from minibox_server.workers import Workers
from minibox_store import (
    LINUX_AMD64,
    Cancellation,
    ContentMismatch,
    Event,
    Image,
    ImageNotFound,
    IncompleteImage,
    InvalidInput,
    InvalidPath,
    InvalidPlatform,
    InvalidReference,
    Platform,
    PruneReport,
    Reference,
    Store,
    StoreError,
    StoreFull,
    check_image_name,
    one_line,
    render_line,
)

LOGGER = logging.getLogger("minibox_server")


class Routes:
    """The endpoints over one store."""

    def __init__(self, store: Store, paths: ArchivePaths, workers: Workers) -> None:
        self._store = store
        self._paths = paths
        self._workers = workers
        self._listing = ImageList()

    def all(self) -> list[BaseRoute]:
        """Return each endpoint under its path and method."""
        return [
            Route("/ping", self.ping),
            Route("/images", self.images),
            Route("/images/pull", self.pull, methods=["POST"]),
            Route("/images/save", self.save, methods=["POST"]),
            Route("/images/load", self.load, methods=["POST"]),
            Route("/images/remove", self.remove, methods=["POST"]),
            Route("/system/prune", self.prune, methods=["POST"]),
        ]

    async def ping(self, request: Request) -> Response:
        """Say that the daemon runs."""
        return PlainTextResponse("Daemon is running")

    async def images(self, request: Request) -> Response:
        """List the images."""
        body = await self._workers.run(self._workers.reading, lambda: self._listing.encode(self._store.images()))
        return Response(body, media_type="application/json")

    async def pull(self, request: Request) -> Response:
        """Pull an image, and tell of it line by line."""
        parameters = Parameters(request.scope["query_string"])
        name = parameters.required("image")
        platform = _platform(parameters.optional("platform"))
        try:
            Reference.parse(name)
            check_image_name(name)
        except InvalidReference as error:
            return error_response(RequestError(400, f"[error] pull failed: {error}"), request.scope)
        return PullAnswer(self._store, self._workers, name, platform)

    async def save(self, request: Request) -> Response:
        """Write an image to a file."""
        parameters = Parameters(request.scope["query_string"])
        name = parameters.required("image", missing="missing image or path")
        path = parameters.required("path", missing="missing image or path")

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

    async def load(self, request: Request) -> Response:
        """Bring the image of a file into the store."""
        path = Parameters(request.scope["query_string"]).required("path")

        def call(cancellation: Cancellation) -> tuple[Image, ...]:
            with self._paths.open_archive(path) as file:
                try:
                    return self._store.load(file, cancellation=cancellation)
                except (InvalidInput, ContentMismatch, IncompleteImage) as error:
                    # Whatever is wrong in an archive, its name or its digests, is wrong with the archive.
                    raise RequestError(422, str(error)) from error

        loaded = await self._workers.run_operation(self._workers.changing, request.receive, call)
        return PlainTextResponse("".join(f"{one_line(f'Loaded image {each.name} from {path}')}\n" for each in loaded))

    async def remove(self, request: Request) -> Response:
        """Take a name away."""
        name = Parameters(request.scope["query_string"]).required("image")
        try:
            removed = await self._workers.run(self._workers.changing, lambda: self._store.remove(name))
        except ImageNotFound:
            _check_form(name)
            raise RequestError(404, "image not found") from None
        return text_response(f"Image {removed} removed")

    async def prune(self, request: Request) -> Response:
        """Remove what no image needs, or say what that would be."""
        parameters = Parameters(request.scope["query_string"])
        build_cache, dry_run = parameters.switch("build_cache"), parameters.switch("dry_run")
        report = await self._workers.run(
            self._workers.changing, lambda: self._store.prune(build_cache=build_cache, dry_run=dry_run)
        )
        return JSONResponse(describe_report(report, build_cache=build_cache))


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


def describe_image(image: Image) -> Mapping[str, object]:
    """Return what GET /images says of an image."""
    described: dict[str, object] = {
        "name": image.name,
        "size_bytes": image.size_bytes,
        "digest": str(image.digest),
        "media_type": image.descriptor.media_type,
        "platform": None if image.platform is None else str(image.platform),
        "created": image.created,
        "layers": image.layers,
    }
    if image.platform is None:
        described["platforms"] = [str(platform) for platform in image.platforms]
    if image.damaged:
        described["damaged"] = True
    return described


def describe_report(report: PruneReport, *, build_cache: bool) -> Mapping[str, object]:
    """Return what POST /system/prune says of a collection; of a dry run, with everything that it would remove."""
    described: dict[str, object] = {
        "blobs_removed": report.blobs_removed,
        "bytes_freed": report.bytes_freed,
        "fuse_mounts_killed": report.fuse_mounts_killed,
        "dry_run": report.dry_run,
        "kept": list(report.kept),
        "absent": [str(digest) for digest in report.absent],
        "errors": list(report.errors),
    }
    if build_cache:
        described["build_cache_removed"] = report.build_cache_removed
        described["build_cache_bytes_freed"] = report.build_cache_bytes_freed
    if report.dry_run:
        described["plan"] = [attrs.asdict(removal) for removal in report.removed]
    return described


def _check_form(name: str) -> None:
    """Refuse a name that no image could have; asked only of one that none has, for other tools have other rules."""
    try:
        check_image_name(name)
    except InvalidReference as error:
        raise RequestError(400, f"parameter image: {error}") from error


def _platform(text: str | None) -> Platform:
    try:
        return LINUX_AMD64 if text is None else Platform.parse(text)
    except InvalidPlatform as error:
        raise RequestError(400, f"parameter platform: {error}") from error


class PullAnswer(Response):
    """A pull as the answer that tells of it: each line is sent as it happens, and the last one says how it ended."""

    def __init__(self, store: Store, workers: Workers, name: str, platform: Platform) -> None:
        super().__init__(media_type="text/plain")
        del self.headers["content-length"]
        self._store = store
        self._workers = workers
        self._name = name
        self._platform = platform

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pull, and send the answer."""
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        pulling = asyncio.create_task(self._pull(receive, lines))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (line := await lines.get()) is not None:
                await send({"type": "http.response.body", "body": f"{line}\n".encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            pulling.cancel()

    async def _pull(self, receive: Receive, lines: "asyncio.Queue[str | None]") -> None:
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            # Only what makes a line crosses into the loop: the steps of a blob's bytes are far too many.
            line = render_line(event)
            if line is not None:
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def call(cancellation: Cancellation) -> None:
            self._store.pull(self._name, platform=self._platform, on_event=on_event, cancellation=cancellation)

        try:
            await self._workers.run_operation(self._workers.pulling, receive, call)
            lines.put_nowait("[pull] Done")
        except (StoreError, RequestError) as error:
            lines.put_nowait(one_line(f"[error] pull failed: {error}"))
        except Exception:
            LOGGER.exception("unexpected error in a pull")
            lines.put_nowait("[error] pull failed: internal error")
        finally:
            lines.put_nowait(None)
