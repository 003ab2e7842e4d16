"""The endpoint about the files in an image: one directory at a time, as all layers together make it.

The first look at an image reads each layer once and keeps an index of it, which nobody can cancel: so few may look at
once, and they take no place from anybody else.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice

import anyio
import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.api.images import LISTED_NAME
from minibox_server.api.inspection import naming
from minibox_server.declarations import PLATFORM, TEXT, Answer, Endpoint, counted, parameter
from minibox_server.workers import Workers
from minibox_store import FileKind, FileStatus, Platform, Store

_LOOKING = 2
_MOST_ENTRIES = 5_000
_MOST_START = 10**9

_ENTRY: Mapping[str, object] = {
    "type": "object",
    "required": ["name", "kind", "mode", "uid", "gid", "size_bytes", "modified"],
    "properties": {
        "name": {"type": "string"},
        "kind": {"type": "string", "enum": [kind.value for kind in FileKind]},
        "mode": {"type": "string", "pattern": "^[0-7]{4}$"},
        "uid": {"type": "integer"},
        "gid": {"type": "integer"},
        "size_bytes": {"type": "integer", "minimum": 0},
        "modified": {"type": ["string", "null"]},
        "layer": {"type": "integer", "minimum": 1, "description": "of a file, which layer has it, from 1 on"},
        "link_target": {"type": "string"},
    },
}
DIRECTORY: Mapping[str, object] = {
    "type": "object",
    "required": ["image", "path", "entries", "complete", "next"],
    "properties": {
        "image": {"type": "string"},
        "path": {"type": "string"},
        "entries": {"type": "array", "items": _ENTRY, "maxItems": _MOST_ENTRIES},
        "complete": {"type": "boolean", "description": "whether these are all, or the last"},
        "next": {"type": ["integer", "null"], "description": "the start of the next page; null where there is none"},
    },
}


@attrs.frozen(kw_only=True)
class FilesQuery:
    """Which directory of which image."""

    image: str = parameter(TEXT, LISTED_NAME)
    path: str = parameter(TEXT, "a directory, from the image's root; links are followed inside the image", default="/")
    platform: Platform | None = parameter(PLATFORM, "which manifest of an index", default=None)
    n: int = parameter(counted(least=1, most=_MOST_ENTRIES), "how many entries at most", default=_MOST_ENTRIES)
    start: int = parameter(
        counted(most=_MOST_START), "how many entries to leave out: the next of the page before", default=0
    )


class FileEndpoints:
    """The endpoint over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._looking = anyio.CapacityLimiter(_LOOKING)

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/images/files",
                what="List a directory of an image, sorted by name, page by page.",
                call=self.files,
                query=FilesQuery,
                answers=(Answer(what="the directory", media_type="application/json", schema=DIRECTORY),),
                refusals=(404, 409, 422, 501, 507),
            )
        ]

    async def files(self, request: Request, query: FilesQuery) -> Response:
        """List a directory of an image."""

        def call() -> Mapping[str, object]:
            with naming(query.image), self._store.open_files(query.image, platform=query.platform) as image:
                image.listdir(query.path)  # says in a sentence what is there, where that is no directory
                children = image.children(image.find(query.path, follow_links=True), query.start)
                shown = [_describe(name, node.status, node.layer) for name, node in islice(children, query.n)]
                is_complete = next(children, None) is None
                after = None if is_complete else query.start + len(shown)
                told = {"image": image.name, "path": query.path, "entries": shown}
                return {**told, "complete": is_complete, "next": after}

        return JSONResponse(await self._workers.run(self._looking, call))


def _describe(name: str, status: FileStatus, layer: int) -> Mapping[str, object]:
    described: dict[str, object] = {
        # A name is bytes: what is no UTF-8 in it is shown as such.
        "name": _text(name),
        "kind": status.kind.value,
        "mode": f"{status.mode:04o}",
        "uid": status.uid,
        "gid": status.gid,
        "size_bytes": status.size_bytes,
        "modified": _time(status.mtime_nanoseconds),
    }
    if status.kind is FileKind.FILE:
        described["layer"] = layer + 1
    elif status.kind is FileKind.SYMLINK:
        described["link_target"] = _text(status.link_target)
    return described


def _text(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _time(nanoseconds: int) -> str | None:
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return None
