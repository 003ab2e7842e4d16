"""What there is: repositories, tags, and what refers to a manifest.

Spec: OCI distribution-spec 1.1, "Content Discovery"; the catalogue is docker's.
"""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.declarations import TEXT, Answer, Endpoint, Kind, counted, parameter
from minibox_server.distribution.naming import open_repository, path_digest
from minibox_server.responses import RequestError
from minibox_server.workers import Workers
from minibox_store import Referrer, Store

_MOST = 1000
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_LAST: Kind[str] = Kind(read=str, schema={"type": "string"})


@attrs.frozen(kw_only=True)
class PageQuery:
    """Which page of a list of names."""

    n: int = parameter(counted(most=_MOST), "how many at most", default=_MOST, code="PAGINATION_NUMBER_INVALID")
    # Empty it is the beginning: so the clients of go-containerregistry ask for the first page of a catalogue.
    last: str | None = parameter(
        _LAST, "the name after which the page begins; the first page without it", default=None, may_be_empty=True
    )


@attrs.frozen(kw_only=True)
class ReferrersQuery:
    """Which referrers."""

    artifact_type: str | None = parameter(TEXT, "those of this type alone", default=None, name="artifactType")


class Discovery:
    """The endpoints over one store."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        json = "application/json"
        return [
            Endpoint(
                method="GET",
                path="/v2/_catalog",
                what="List a page of the repositories.",
                call=self.catalogue,
                query=PageQuery,
                answers=(Answer(what="the repositories", media_type=json, schema=_CATALOGUE, may_have=_LINK),),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/tags/list",
                what="List a page of a repository's tags.",
                call=self.tags,
                query=PageQuery,
                answers=(Answer(what="the tags", media_type=json, schema=_TAGS, may_have=_LINK),),
                refusals=(404,),
                tag="distribution",
            ),
            Endpoint(
                method="GET",
                path="/v2/{name:path}/referrers/{digest}",
                what="List what refers to a manifest or index, as an image index.",
                call=self.referrers,
                query=ReferrersQuery,
                answers=(
                    Answer(
                        what="the referrers; none where nothing refers to it",
                        media_type=_OCI_INDEX,
                        schema=_REFERRERS,
                        may_have={"OCI-Filters-Applied": "artifactType, where one was asked for"},
                    ),
                ),
                refusals=(409,),  # a 404 would say that there is no such list here, and clients look elsewhere then
                tag="distribution",
            ),
        ]

    async def catalogue(self, request: Request, query: PageQuery) -> Response:
        """List a page of the repositories."""
        names = await self._workers.run(self._workers.reading, self._store.repositories)
        page, headers = _page(names, query, "/v2/_catalog", str)
        return JSONResponse({"repositories": page}, headers=headers)

    async def tags(self, request: Request, query: PageQuery) -> Response:
        """List a page of a repository's tags."""

        def call() -> tuple[str, tuple[str, ...]]:
            repository = open_repository(self._store, request)
            tags = repository.tags()
            if not tags and not repository.is_known():
                raise RequestError(404, f"there is no repository {repository.name}", code="NAME_UNKNOWN")
            return repository.name, tags

        name, tags = await self._workers.run(self._workers.reading, call)
        page, headers = _page(tags, query, f"/v2/{name}/tags/list", _without_case)
        return JSONResponse({"name": name, "tags": page}, headers=headers)

    async def referrers(self, request: Request, query: ReferrersQuery) -> Response:
        """List what refers to a manifest or index."""

        def call() -> tuple[Referrer, ...]:
            digest = path_digest(request)
            return open_repository(self._store, request).referrers(digest)

        found = await self._workers.run(self._workers.reading, call)
        wanted = query.artifact_type
        manifests = [_describe(each) for each in found if wanted in (None, each.artifact_type)]
        headers = {} if wanted is None else {"OCI-Filters-Applied": "artifactType"}
        content = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": manifests}
        return JSONResponse(content, headers=headers, media_type=_OCI_INDEX)


def _page(
    names: Sequence[str], query: PageQuery, path: str, key: Callable[[str], Any]
) -> tuple[list[str], dict[str, str]]:
    """Return the names of a page, and the header that says where the next one is."""
    rest = sorted((name for name in names if query.last is None or key(name) > key(query.last)), key=key)
    page = rest[: query.n]
    if not page or len(rest) <= query.n:
        return page, {}
    return page, {"Link": f'<{path}?n={query.n}&last={quote(page[-1])}>; rel="next"'}


def _without_case(tag: str) -> tuple[str, str]:
    """Return what tags are sorted by: "in lexical order (i.e. case-insensitive alphanumeric order)"."""
    return tag.lower(), tag


def _describe(referrer: Referrer) -> dict[str, object]:
    descriptor = referrer.descriptor
    described: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
    }
    if referrer.artifact_type is not None:
        described["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        described["annotations"] = dict(referrer.annotations)
    return described


_LINK = {"Link": "where the next page is, where there is one"}
_NAMES = {"type": "array", "items": {"type": "string"}, "maxItems": _MOST}
_CATALOGUE = {"type": "object", "required": ["repositories"], "properties": {"repositories": _NAMES}}
_TAGS = {"type": "object", "required": ["name", "tags"], "properties": {"name": {"type": "string"}, "tags": _NAMES}}
_REFERRER = {
    "type": "object",
    "required": ["mediaType", "digest", "size"],
    "properties": {
        "mediaType": {"type": "string"},
        "digest": {"type": "string"},
        "size": {"type": "integer", "minimum": 0},
        "artifactType": {"type": "string"},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_REFERRERS = {
    "type": "object",
    "required": ["schemaVersion", "mediaType", "manifests"],
    "properties": {
        "schemaVersion": {"type": "integer", "enum": [2]},
        "mediaType": {"type": "string", "enum": [_OCI_INDEX]},
        "manifests": {"type": "array", "items": _REFERRER},
    },
}
