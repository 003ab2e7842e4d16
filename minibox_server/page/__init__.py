"""The page: files of this package as they stand, below ``/ui``, which hold no secret and so need no token.

What the page shows it asks for as any other client does, with the token that its user types. Its policy lets it run
its own files alone, and talk to this daemon alone; a name in a request is looked up, and never becomes a path.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files

import attrs
from starlette.requests import Request
from starlette.responses import Response

from minibox_server.declarations import Answer, Endpoint, NoQuery
from minibox_server.responses import RequestError

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    # It is asked for each time, and sent again only where it has changed: a page never runs beside older parts of it.
    "Cache-Control": "no-cache",
}


@attrs.frozen(kw_only=True)
class PageFile:
    """One file of the page."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """What names exactly these bytes."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class PageEndpoints:
    """The page and its parts; they are read at the first request."""

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="GET",
                path="/ui",
                what="The page: images, space and work of this daemon.",
                call=self.index,
                answers=(Answer(what="the page", media_type="text/html", headers=_TOLD), _UNCHANGED),
                is_open=True,
                tag="page",
            ),
            Endpoint(
                method="GET",
                path="/ui/",
                what="Lead to the page.",
                call=self.lead,
                answers=(
                    Answer(
                        what="where it is", status=308, media_type=None, headers={**_HEADERS, "Location": "of the page"}
                    ),
                ),
                is_open=True,
                tag="page",
            ),
            Endpoint(
                method="GET",
                path="/ui/{file}",
                what="A part of the page: a style, a script or a picture.",
                call=self.part,
                answers=(
                    *(Answer(what="the part", media_type=each, headers=_TOLD) for each in _PARTS),
                    _UNCHANGED,
                ),
                refusals=(404,),
                is_open=True,
                tag="page",
            ),
        ]

    async def index(self, request: Request, query: NoQuery) -> Response:
        """Answer with the page."""
        return self._answer(request, "index.html")

    async def lead(self, request: Request, query: NoQuery) -> Response:
        """Lead to the page, by an address that holds nothing of what the client sent."""
        return Response(status_code=308, headers={**_HEADERS, "Location": "../ui"})

    async def part(self, request: Request, query: NoQuery) -> Response:
        """Answer with a part of the page."""
        name = request.path_params["file"]
        if name == "index.html" or name not in self._files:
            raise RequestError(404, f"nothing is at {request.scope['path']}")
        return self._answer(request, name)

    def _answer(self, request: Request, name: str) -> Response:
        file = self._files[name]
        headers = {**_HEADERS, "ETag": file.etag}
        known = request.headers.get("if-none-match", "")
        if file.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    @cached_property
    def _files(self) -> Mapping[str, PageFile]:
        folder = files(__package__).joinpath("static")
        found = {}
        for each in folder.iterdir():
            media_type = _MEDIA_TYPES.get(f".{each.name.rpartition('.')[2]}")
            if media_type is not None:
                found[each.name] = PageFile(content=each.read_bytes(), media_type=media_type)
        return found


_PARTS = ("text/css", "text/javascript", "image/svg+xml")
_TOLD = {**_HEADERS, "ETag": "what names exactly these bytes"}
_UNCHANGED = Answer(what="the client has it", status=304, media_type=None, headers=_TOLD)
