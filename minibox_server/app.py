"""The application: the endpoints over one store, behind the guard."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from minibox_server.api.archives import ArchiveEndpoints
from minibox_server.api.changes import ChangesEndpoints
from minibox_server.api.files import FileEndpoints
from minibox_server.api.images import ImageEndpoints
from minibox_server.api.inspection import InspectionEndpoints
from minibox_server.api.operations import Operations
from minibox_server.api.pushes import PushEndpoints
from minibox_server.api.system import SystemEndpoints
from minibox_server.api.watching import WatchingEndpoints
from minibox_server.archive_paths import ArchivePaths
from minibox_server.declarations import EndpointTable
from minibox_server.distribution import Distribution, Upstream
from minibox_server.guard import Guard
from minibox_server.health import HealthCheck
from minibox_server.metrics import Metrics
from minibox_server.observing import Observer
from minibox_server.page import PageEndpoints
from minibox_server.responses import RequestError, error_response
from minibox_server.settings import Settings
from minibox_server.store_size import StoreSize
from minibox_server.transfers import RuledTransfers, ThreadTransfers, Transfers, store_opener
from minibox_server.workers import Workers
from minibox_store import Store, StoreError


def create_app(
    settings: Settings,
    *,
    store: Store | None = None,
    workers: Workers | None = None,
    transfers: Transfers | None = None,
) -> Starlette:
    """Return the daemon's ASGI application; nothing is read or made before the first request.

    Args:
        settings: what the operator decided.
        store: the store in DataRoot; made here where it is None.
        workers: where calls of the store run; its own, unless the caller wants to cancel them.
        transfers: where images move between registries and the store; in those threads where it is None.
    """
    workers = workers or Workers(max_pulls=settings.max_pulls)
    store = store or store_opener(settings)()
    transfers = RuledTransfers(transfers or ThreadTransfers(store))
    metrics = Metrics()
    paths = ArchivePaths(settings.archive_prefixes, settings.data_root)
    health = HealthCheck(store, workers, free_bytes=settings.ready_free_bytes)
    watching = WatchingEndpoints(health, metrics, StoreSize(store, workers), lambda: endpoints)
    operations = Operations(workers, Observer(metrics), max_pulls=settings.max_pulls)
    upstream = None if settings.upstream is None else Upstream(store, workers, operations, transfers, settings.upstream)
    endpoints: EndpointTable = EndpointTable(
        [
            *ImageEndpoints(store, workers, operations, transfers, unpack=settings.unpack).all(),
            *SystemEndpoints(store, workers, operations).all(),
            *ArchiveEndpoints(store, paths, workers, operations).all(),
            *InspectionEndpoints(store, workers).all(),
            *PushEndpoints(workers, operations, transfers).all(),
            *ChangesEndpoints(store, workers).all(),
            *FileEndpoints(store, workers).all(),
            *Distribution(store, workers, upstream).all(),
            *PageEndpoints().all(),
            *watching.all(),
        ]
    )
    app = Starlette(
        routes=endpoints.routes,
        middleware=[Middleware(Guard, settings, endpoints, metrics)],
        exception_handlers=dict.fromkeys((HTTPException, StoreError, RequestError), _answer_error),
    )
    app.state.endpoints = endpoints
    # It would send clients to an address made of their own Host header.
    app.router.redirect_slashes = False
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error, request.scope)
