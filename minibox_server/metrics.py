"""What the daemon counts of itself, for Prometheus: requests, operations, and the size of its store.

Each application counts for itself, from its own start; of several workers each answers for its own process. A label is
the path of a declared endpoint, a word of this program or a class of errors, and never what came from outside: so the
number of series is bounded, and nobody's name is in them.

Spec: Prometheus text exposition format.
"""

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from minibox_server.logs import OperationRecord, RequestRecord
from minibox_store import (
    BlobAdvanced,
    BlobPresent,
    BlobStarted,
    BlobStored,
    Digest,
    Event,
    EventListener,
    __version__,
)

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_OTHER = "other"
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_OPERATION_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)


class Metrics:
    """The counters of one application; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._add_requests()
        self._add_operations()
        self._add_store()

    def _add_requests(self) -> None:
        labels = ("endpoint", "method")
        self._requests = self._counter("requests", "Requests that were answered.", *labels, "status")
        self._request_seconds = Histogram(
            "minibox_request_seconds",
            "How long requests took, to the end of the answer.",
            labels,
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )
        self._request_bytes = self._counter("request_bytes", "Bytes of bodies that clients sent.", *labels)
        self._response_bytes = self._counter("response_bytes", "Bytes of bodies that were answered.", *labels)
        self._cut = self._counter("requests_cut", "Requests of which the client, or the answer, ended early.", *labels)
        self._requests_now = self._gauge("requests_now", "Requests that are being answered now.")

    def _add_operations(self) -> None:
        self._started = self._counter("operations_started", "Operations that began: pulls, pushes ...", "operation")
        self._ended = self._counter("operations_ended", "Operations that ended, by outcome.", "operation", "outcome")
        self._failures = self._counter("failures", "Operations that failed, by class of error.", "operation", "error")
        self._moved = self._counter("moved_bytes", "Bytes of blobs that operations moved.", "operation")
        self._blobs = self._counter(
            "blobs", "Blobs that operations needed: present, or stored by them.", "operation", "found"
        )
        self._operations_now = self._gauge("operations_now", "Operations that run now.", "operation")
        self._operation_seconds = Histogram(
            "minibox_operation_seconds",
            "How long operations took.",
            ("operation",),
            buckets=_OPERATION_SECONDS,
            registry=self._registry,
        )

    def _add_store(self) -> None:
        self._store_images = self._gauge("store_images", "Named images of the store.")
        self._store_bytes = self._gauge("store_bytes", "Bytes of the store's blobs, when they were last counted.")
        self._gauge("build_info", "The program, by version.", "version").labels(__version__).set(1)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"minibox_{name}", what, labels, registry=self._registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"minibox_{name}", what, labels, registry=self._registry)

    # ---- requests

    def request_began(self) -> None:
        """Count a request that is being answered from now on."""
        self._requests_now.inc()

    def request_ended(self, record: RequestRecord) -> None:
        """Count a request that has been answered, or given up."""
        self._requests_now.dec()
        series = self._series_of(record)
        series.requests.inc()
        series.seconds.observe(record.seconds)
        series.bytes_in.inc(record.bytes_in)
        series.bytes_out.inc(record.bytes_out)
        if not record.is_whole:
            self._cut.labels(*series.labels).inc()

    def _series_of(self, record: RequestRecord) -> "_Series":
        """Return the counters of requests like this one; to look them up by their labels is half of the work."""
        method = record.method if record.method in _METHODS else _OTHER
        key = (record.route or _OTHER, method, str(record.status or "none"))
        found = self._series.get(key)
        if found is None:
            labels = key[:2]
            found = self._series[key] = _Series(
                labels=labels,
                requests=self._requests.labels(*key),
                seconds=self._request_seconds.labels(*labels),
                bytes_in=self._request_bytes.labels(*labels),
                bytes_out=self._response_bytes.labels(*labels),
            )
        return found

    # ---- operations

    def operation_began(self, doing: str) -> EventListener:
        """Count an operation that runs from now on, and return the listener that counts what its events tell.

        Args:
            doing: what it is, in a word of this program, such as ``pull``.
        """
        self._started.labels(doing).inc()
        self._operations_now.labels(doing).inc()
        return _Moving(self._moved.labels(doing), self._blobs, doing)

    def operation_ended(self, record: OperationRecord) -> None:
        """Count how an operation ended."""
        doing = record.doing
        self._operations_now.labels(doing).dec()
        self._ended.labels(doing, record.outcome).inc()
        self._operation_seconds.labels(doing).observe(record.seconds)
        if record.outcome == "failed":
            self._failures.labels(doing, record.error or _OTHER).inc()

    # ---- the store

    def set_store(self, *, images: int, size_bytes: int) -> None:
        """Note how large the store is."""
        self._store_images.set(images)
        self._store_bytes.set(size_bytes)

    def encode(self) -> bytes:
        """Return all of it, as Prometheus reads it."""
        return generate_latest(self._registry)


@attrs.frozen(kw_only=True)
class _Series:
    """What is counted of the requests for one endpoint, by one method, that were answered with one status."""

    labels: tuple[str, str]
    requests: Counter
    seconds: Histogram
    bytes_in: Counter
    bytes_out: Counter


class _Moving:
    """A listener that counts the bytes and blobs of one operation; its blobs may move in several threads."""

    def __init__(self, moved: Counter, blobs: Counter, doing: str) -> None:
        self._moved = moved
        self._blobs = blobs
        self._doing = doing
        self._done: dict[Digest, int] = {}

    def __call__(self, event: Event) -> None:
        # Whatever there is of one blob is told by one thread at a time.
        match event:
            case BlobStarted():
                self._done[event.descriptor.digest] = event.offset_bytes
            case BlobAdvanced():
                self._moved.inc(max(0, event.done_bytes - self._done.get(event.digest, 0)))
                self._done[event.digest] = event.done_bytes
            case BlobPresent():
                self._blobs.labels(self._doing, "present").inc()
            case BlobStored():
                self._blobs.labels(self._doing, "stored").inc()
            case _:
                pass
