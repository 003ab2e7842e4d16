"""A push, as the endpoint that answers it: whose credentials it uses is the machine's business alone.

A request carries no credentials for a registry, and none are taken from one: what the daemon's own user is set up with
(``REGISTRY_AUTH_FILE``, Docker's ``config.json`` and the like) is all there is. So nobody can have the daemon prove
itself anywhere with what somebody else gave it.
"""

import threading
from collections.abc import Mapping

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from minibox_server.api.event_schemas import told_as_it_goes_on
from minibox_server.api.images import LISTED_NAME, check_form
from minibox_server.api.operations import Operations
from minibox_server.api.running import Result
from minibox_server.declarations import PLATFORM, TEXT, Answer, Endpoint, Kind, parameter
from minibox_server.responses import RequestError, accepts_json, text_response
from minibox_server.schemas import COUNT_SCHEMA, DIGEST_SCHEMA, TEXT_SCHEMA, record
from minibox_server.transfers import Transfers
from minibox_server.workers import Workers
from minibox_store import (
    BlobPresent,
    BlobStarted,
    BlobStored,
    Cancellation,
    Event,
    EventListener,
    ImageNotFound,
    InvalidReference,
    Platform,
    Reference,
    RegisteringName,
    Store,
)

REFERENCE: Kind[Reference] = Kind(read=Reference.parse, schema={"type": "string", "minLength": 1})
PUSHED_SCHEMA = record(
    {
        "name": TEXT_SCHEMA,
        "reference": TEXT_SCHEMA,
        "digest": DIGEST_SCHEMA,
        "media_type": TEXT_SCHEMA,
        "size_bytes": COUNT_SCHEMA,
    }
)
# The first of these says that the registry has let it in: until then it may still refuse.
_OF_THE_REGISTRY = (BlobStarted, BlobPresent, BlobStored, RegisteringName)


@attrs.frozen(kw_only=True)
class PushQuery:
    """What a push is asked for."""

    image: str = parameter(TEXT, LISTED_NAME)
    reference: Reference | None = parameter(REFERENCE, "where it goes; the image's own name without it", default=None)
    platform: Platform | None = parameter(PLATFORM, "which manifest of an index; the whole without it", default=None)


@attrs.frozen(kw_only=True)
class Push:
    """The push of an image.

    Attributes:
        image: its name.
        target: where it goes.
        platform: which manifest of an index; the whole where it is None.
    """

    image: str
    target: str
    platform: Platform | None

    def __call__(self, store: Store, on_event: EventListener, cancellation: Cancellation) -> Mapping[str, object]:
        """Do it, and return what is there then."""
        pushed = store.push(
            self.image, self.target, platform=self.platform, on_event=on_event, cancellation=cancellation
        )
        return {
            "name": self.image,
            "reference": self.target,
            "digest": str(pushed.digest),
            "media_type": pushed.media_type,
            "size_bytes": pushed.size_bytes,
        }


class PushEndpoints:
    """The endpoint over one store."""

    def __init__(self, workers: Workers, operations: Operations, transfers: Transfers) -> None:
        self._workers = workers
        self._operations = operations
        self._transfers = transfers

    def all(self) -> list[Endpoint]:
        """Return each endpoint."""
        return [
            Endpoint(
                method="POST",
                path="/images/push",
                what="Push an image to a registry, with the credentials that the daemon's machine has for it.",
                call=self.push,
                query=PushQuery,
                answers=(
                    Answer(what="one line"),
                    Answer(what="what is there now", media_type="application/json", schema=PUSHED_SCHEMA),
                    *told_as_it_goes_on(PUSHED_SCHEMA),
                ),
                refusals=(403, 404, 409, 429, 502),
            )
        ]

    async def push(self, request: Request, query: PushQuery) -> Response:
        """Push an image."""

        def call(on_event: EventListener, cancellation: Cancellation) -> Result:
            target = query.reference or _named(query.image)
            push = Push(image=query.image, target=str(target), platform=query.platform)
            try:
                return self._transfers.run(push, _HeldBack(on_event).tell, cancellation)
            except ImageNotFound:
                check_form(query.image)
                raise

        def plain(result: Result) -> Response:
            if accepts_json(request.headers):
                return JSONResponse(result)
            return text_response(f"Pushed image {result['name']} to {result['reference']}")

        key = ("push", query.image, query.reference, query.platform)
        return await self._operations.answer(
            request, doing="push", limiter=self._workers.pushing, call=call, plain=plain, key=key
        )


def _named(image: str) -> Reference:
    """Return where an image goes whose name has to say so."""
    try:
        return Reference.parse(image)
    except InvalidReference as error:
        raise RequestError(400, f"parameter image: {error}") from error


class _HeldBack:
    """The events of a push, of which none says that it goes on before the registry has let it."""

    def __init__(self, on_event: EventListener) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._held: list[Event] | None = []

    def tell(self, event: Event) -> None:
        """Tell an event, or hold it back. From any thread."""
        with self._lock:  # of several threads, none may come before what was held back
            if self._held is not None:
                self._held.append(event)
                if not isinstance(event, _OF_THE_REGISTRY):
                    return
                held, self._held = self._held, None
                for each in held:
                    self._on_event(each)
                return
        self._on_event(event)
